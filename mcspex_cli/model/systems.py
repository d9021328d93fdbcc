"""The two systems, MC-SpEx and SpEx+, with their encoder and decoder; `layers` is in between.

```
samples ─▶ encoder ─▶ fusion ─▶ stacks ─▶ masks ─▶ decoder ─▶ samples
             └─── features of three scales ─▲
```
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mcspex_cli.model.config import SystemConfig
from mcspex_cli.model.layers import (
    CONSMS,
    FUSERS,
    INTERMGS,
    NORMS,
    ConcatBlock,
    FoldedExtractor,
    FoldedPointwise,
    FoldedResBlock,
    IndependentMasks,
    ResBlock,
    ScaleFuser,
    ScaleInterMG,
    Scales,
    SeparateProjections,
    SpeakerEncoder,
    SpeechExtractor,
)


class MultiScaleEncoder(nn.Module):
    """Three parallel learned filter banks, short, middle and long, on one frame grid.

    ```
    sample  |0      hop     2hop
    short   [----]                  frame t of every scale starts at sample t * hop
    middle  [------------]
    long    [------------------------]   (zeros follow the last sample)
    ```

    Source: SpEx+, section 2.1; the same in MC-SpEx. Non-negative through ReLU.
    """

    def __init__(self, filters: int, windows: Sequence[int], hop: int) -> None:
        super().__init__()
        self.windows, self.hop = tuple(windows), hop
        self.banks = nn.ModuleList(nn.Conv1d(1, filters, w, stride=hop) for w in windows)

    def forward(self, samples: Tensor) -> Scales:
        """Encode `samples` [batch, sample], at least one short window long.

        Frames: (sample - short window) // hop + 1. Samples beyond the last whole
        hop are not seen; `System` completes the hop.
        """
        length = samples.shape[-1]
        covered = (length - self.windows[0]) // self.hop * self.hop
        short, middle, long = (
            self.encode(bank, functional.pad(samples, (0, covered + window - length)))
            for bank, window in zip(self.banks, self.windows, strict=True)
        )
        return short, middle, long

    def encode(self, bank: nn.Module, samples: Tensor) -> Tensor:
        """Encode `samples` [batch, sample] by the `bank` of a scale: [batch, filter, frame]."""
        return functional.relu(bank(samples.unsqueeze(1)))


class FrameEncoder(MultiScaleEncoder):
    """The filter banks as matrix products over the frames' samples, which CPUs compute faster.

    The filters of a frame lie together in memory.
    """

    def encode(self, bank: nn.Module, samples: Tensor) -> Tensor:
        """As `MultiScaleEncoder.encode`."""
        assert isinstance(bank, nn.Conv1d)
        frames = samples.unfold(-1, bank.kernel_size[0], self.hop)
        features = functional.linear(frames, bank.weight.squeeze(1), bank.bias)
        return functional.relu(features).transpose(1, 2)


class MultiScaleDecoder(nn.Module):
    """Three transposed convolutions, from masked features back to samples.

    Source: SpEx+, section 2.4; the same in MC-SpEx.
    """

    def __init__(self, filters: int, windows: Sequence[int], hop: int) -> None:
        super().__init__()
        self.banks = nn.ModuleList(nn.ConvTranspose1d(filters, 1, w, stride=hop) for w in windows)

    def forward(self, scales: Scales, length: int) -> Tensor:
        """Decode every scale [batch, filter, frame] to [scale, batch, sample]."""
        decoded = zip(self.banks, scales, strict=True)
        return torch.stack([self.decode(bank, features, length) for bank, features in decoded])

    def decode(self, bank: nn.Module, features: Tensor, length: int) -> Tensor:
        """Decode a scale [batch, filter, frame] to [batch, sample] by its `bank`."""
        decoded: Tensor = bank(features)
        return decoded.squeeze(1)[:, :length]


class FrameDecoder(MultiScaleDecoder):
    """The transposed convolutions as matrix products, then overlapping frames added in float32.

    For CPUs, where libraries compile a transposed convolution anew for each length of a signal,
    which takes longer than to extract from 10 s of it.
    """

    def decode(self, bank: nn.Module, features: Tensor, length: int) -> Tensor:
        """As `MultiScaleDecoder.decode`."""
        assert isinstance(bank, nn.ConvTranspose1d) and bank.bias is not None
        window, hop = bank.kernel_size[0], bank.stride[0]
        frames = functional.linear(features.transpose(1, 2), bank.weight.squeeze(1).t())
        wide = frames.to(torch.promote_types(frames.dtype, torch.float32))
        covered = (features.shape[-1] - 1) * hop + window
        added = functional.fold(wide.transpose(1, 2), (1, covered), (1, window), stride=(1, hop))
        return added[:, 0, 0, :length] + bank.bias


class System(nn.Module):
    """A target-speaker extraction network: reference to embedding, mixture to estimate.

    The rest of the program knows `embed`, `extract` and, for training, `forward`. Samples
    are at `config.sample_rate_hz`, nominally in -1..1. Where signals of a batch are shorter
    than others, zeros follow them, and `lengths` [batch] says how many samples each has; the
    result is the same as without the zeros. Without `lengths`, zeros are part of a signal, and
    change the answer through the global norms.
    """

    def __init__(
        self,
        config: SystemConfig,
        fusion: ScaleFuser | SeparateProjections,
        extractor: SpeechExtractor,
        masks: ScaleInterMG | IndependentMasks,
    ) -> None:
        super().__init__()
        self.config = config
        windows, hop = config.windows, config.hop
        self.encoder = MultiScaleEncoder(config.filters, windows, hop)
        self.fusion = fusion
        widths = config.reference_width, *config.speaker_channels
        self.speaker = SpeakerEncoder(widths, config.embedding)
        self.least_reference_samples = windows[0] + (self.speaker.least_frames - 1) * hop
        """The shortest reference that leaves a frame to average."""
        self.classifier = nn.Linear(config.embedding, config.speakers)
        self.extractor = extractor
        self.masks = masks
        self.decoder = MultiScaleDecoder(config.filters, windows, hop)

    def embed(self, reference: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed `reference` [batch, sample] as [batch, embedding].

        Raises:
            ValueError: fewer than `least_reference_samples` samples.
        """
        shortest = reference.shape[-1] if lengths is None else int(lengths.min())
        if shortest < self.least_reference_samples:
            raise ValueError(f"a reference needs {self.least_reference_samples} samples or more")
        fused = self.fusion.reference(self.encoder(reference))
        valid = None if lengths is None else self._valid(lengths, fused)
        return self.speaker(fused, valid)

    def extract(self, mixture: Tensor, embedding: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Extract the voice of `embedding` [batch, embedding] from `mixture` [batch, sample].

        Returns the short scale's estimate [batch, sample], as long as the mixture, of any
        length from one sample on; its level is arbitrary unless `config.true_level`. A silent
        mixture gives a finite, not necessarily silent, estimate. Behind the end of a signal that
        is shorter than others, the estimate means nothing.
        """
        scales = self.encoder(self._whole_frames(mixture))
        fused = self.fusion.mixture(scales)
        valid = None
        if lengths is not None:  # the hop that a mixture ends in is completed
            valid = self._valid(lengths + self.encoder.hop - 1, fused)
        mask = self.masks(self.extractor(fused, embedding, valid))[0]
        masked = scales[0] * mask
        if valid is not None:
            masked = masked * valid
        return self.decoder.decode(self.decoder.banks[0], masked, mixture.shape[-1])

    def forward(
        self, mixture: Tensor, reference: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run everything that training needs.

        Args:
            mixture: [batch, sample].
            reference: [batch / k, sample], of another length if need be, each for k mixtures
                that follow one another.
            lengths: of the references [batch / k].

        Returns:
            The estimates [scale, batch, sample], short first, and the speaker classifier's
            logits [batch / k, speaker].
        """
        voices = self.embed(reference, lengths)
        embedding = voices.repeat_interleave(len(mixture) // len(voices), dim=0)
        scales = self.encoder(self._whole_frames(mixture))
        short, middle, long = self.masks(self.extractor(self.fusion.mixture(scales), embedding))
        masked = scales[0] * short, scales[1] * middle, scales[2] * long
        return self.decoder(masked, mixture.shape[-1]), self.classifier(voices)

    def _valid(self, lengths: Tensor, features: Tensor) -> Tensor:
        """Which frames of `features` lie within `lengths` [batch], as [batch, 1, frame]."""
        frames = ((lengths - self.encoder.windows[0]) // self.encoder.hop + 1).clamp_min(1)
        numbers = torch.arange(features.shape[-1], device=features.device)
        return numbers < frames[:, None, None]

    def _whole_frames(self, samples: Tensor) -> Tensor:
        """Complete the last hop with zeros, fewer than a hop unless under a window."""
        window, length = self.encoder.windows[0], samples.shape[-1]
        missing = window - length if length < window else (window - length) % self.encoder.hop
        return functional.pad(samples, (0, missing))


def build_mcspex(config: SystemConfig) -> System:
    """MC-SpEx: ScaleFuser, ConSM before each stack, ScaleInterMG."""
    condition = partial(CONSMS[config.consm], config.channels, config.embedding)
    return System(
        config,
        FUSERS[config.scale_fuser](config.filters, config.channels),
        SpeechExtractor(config, condition, range(config.blocks)),
        INTERMGS[config.scale_intermg](config.channels, config.filters),
    )


def build_spexplus(config: SystemConfig) -> System:
    """SpEx+: separate projections, the embedding in each stack's first block, separate masks."""
    sizes = config.channels, config.hidden, config.kernel, config.embedding
    return System(
        config,
        SeparateProjections(config.filters, config.channels, config.reference_width),
        SpeechExtractor(
            config, partial(ConcatBlock, *sizes, norm=config.norm), range(1, config.blocks)
        ),
        IndependentMasks(config.channels, config.filters),
    )


SYSTEMS: dict[str, Callable[[SystemConfig], System]] = {
    "mcspex": build_mcspex,
    "spexplus": build_spexplus,
}

CHOICES: dict[str, Collection[str]] = {
    "system": SYSTEMS,
    "scale_fuser": FUSERS,
    "consm": CONSMS,
    "scale_intermg": INTERMGS,
    "norm": NORMS,
}
"""The names that each of these fields of a `SystemConfig` may have."""


def build(config: SystemConfig) -> System:
    """Build the system that `config` names, with random weights.

    Raises:
        KeyError: a name is not in `CHOICES`.
    """
    return SYSTEMS[config.system](config)


def can_fold(system: System) -> bool:
    """Whether `fold` knows the norm of its blocks: gLN, which all our own checkpoints have."""
    return system.config.norm == "gLN"


@torch.no_grad()
def fold(system: System, dtype: torch.dtype = torch.float32) -> System:
    """Make a copy of `system` for CPUs that computes in `dtype`, twice as fast.

    A CPU multiplies matrices near its peak and waits for memory in everything between. So each
    frame's channels lie together, which is how matrix products read and write fastest, and norms
    become parts of the convolutions beside them. The copy agrees with `system` but for rounding,
    and takes tensors of `dtype`. `can_fold` says which systems can be folded.
    """
    folded = copy.deepcopy(system).eval().requires_grad_(False)
    folded.encoder.__class__, folded.decoder.__class__ = FrameEncoder, FrameDecoder
    folded.extractor = FoldedExtractor(folded.extractor, dtype)  # type: ignore[assignment]
    for block in (m for m in folded.speaker.modules() if isinstance(m, ResBlock)):
        block.conv_1 = fuse_conv_bn_eval(block.conv_1, block.norm_1)
        block.conv_2 = fuse_conv_bn_eval(block.conv_2, block.norm_2)
        block.__class__ = FoldedResBlock
        del block.norm_1, block.norm_2
    for module in list(folded.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.Conv1d) and part.kernel_size == (1,):
                setattr(module, name, FoldedPointwise(part))
    return folded.to(dtype)
