"""The two systems, MC-SpEx and SpEx+, put together from their exchanged parts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcspex_cli.model.decoder import INTERMGS, IndependentMasks, MultiScaleDecoder, ScaleInterMG
from mcspex_cli.model.encoder import FUSERS, MultiScaleEncoder, ScaleFuser, SeparateProjections
from mcspex_cli.model.layers import NORMS, TCNBlock, zeroed
from mcspex_cli.model.separator import CONSMS, ConcatBlock, SpeechExtractor, Stack
from mcspex_cli.model.speaker import SpeakerEncoder


@dataclass(frozen=True)
class SystemConfig:
    """All that determines a network's shape; times in ms, so a rate changes no cost.

    The letters are the papers': N filters, B channels, H hidden, P kernel, X blocks in
    each of R stacks. The defaults are SpEx+'s base sizes.
    """

    system: str = "mcspex"
    scale_fuser: str = "gate"
    """Of `FUSERS`. This and the next two are MC-SpEx's own, SpEx+ does not look at them; the
    defaults are what measured best (docs/lab-book.md)."""
    consm: str = "film"
    """Of `CONSMS`."""
    scale_intermg: str = "mixing"
    """Of `INTERMGS`."""
    true_level: bool = False
    """Whether an estimate's level is the target's own; if not, it is arbitrary."""
    sample_rate_hz: int = 8000
    windows_ms: tuple[float, float, float] = (2.5, 10.0, 20.0)
    hop_ms: float = 1.25
    filters: int = 256
    channels: int = 256
    hidden: int = 512
    kernel: int = 3
    blocks: int = 8
    stacks: int = 4
    norm: str = "gLN"
    """Of `NORMS`, in all blocks."""
    reference_channels: int = 0
    """Width of SpEx+'s reference branch; 0: as `channels`. MC-SpEx shares its fuser and has 0."""
    embedding: int = 256
    speaker_channels: tuple[int, ...] = (256, 512, 512)
    speakers: int = 101

    @property
    def windows(self) -> tuple[int, ...]:
        """Window lengths of the short, middle and long scale, in samples."""
        return tuple(round(w * self.sample_rate_hz / 1000) for w in self.windows_ms)

    @property
    def reference_width(self) -> int:
        """Channels of the fused features that the speaker encoder gets."""
        return self.reference_channels or self.channels

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_ms * self.sample_rate_hz / 1000)


SIZES: dict[str, SystemConfig] = {
    "base": SystemConfig(),
    # Twice the hop halves the work; the windows keep their overlap.
    "small": SystemConfig(
        windows_ms=(5.0, 10.0, 20.0),
        hop_ms=2.5,
        filters=128,
        channels=128,
        hidden=256,
        stacks=3,
        embedding=128,
        speaker_channels=(128, 256, 256),
    ),
    # Learns within minutes on a CPU what takes the others hours: for comparing designs.
    "mini": SystemConfig(
        windows_ms=(5.0, 10.0, 20.0),
        hop_ms=2.5,
        filters=64,
        channels=64,
        hidden=128,
        blocks=6,
        stacks=2,
        embedding=64,
        speaker_channels=(64, 128, 128),
    ),
    "tiny": SystemConfig(
        windows_ms=(5.0, 10.0, 20.0),
        hop_ms=2.5,
        filters=16,
        channels=16,
        hidden=32,
        blocks=4,
        stacks=2,
        embedding=16,
        speaker_channels=(16, 32, 32),
        speakers=4,
    ),
}


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
        self.encoder = MultiScaleEncoder(config.filters, config.windows, config.hop)
        self.fusion = fusion
        widths = config.reference_width, *config.speaker_channels
        self.speaker = SpeakerEncoder(widths, config.embedding)
        self.classifier = nn.Linear(config.embedding, config.speakers)
        self.extractor = extractor
        self.masks = masks
        self.decoder = MultiScaleDecoder(config.filters, config.windows, config.hop)

    @property
    def least_reference_samples(self) -> int:
        """The shortest reference that leaves a frame to average."""
        return self.config.windows[0] + (self.speaker.least_frames - 1) * self.config.hop

    def embed(self, reference: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed `reference` [batch, sample] as [batch, embedding].

        Raises:
            ValueError: fewer than `least_reference_samples` samples.
        """
        shortest = reference.shape[-1] if lengths is None else int(lengths.min())
        if shortest < self.least_reference_samples:
            raise ValueError(f"a reference needs {self.least_reference_samples} samples or more")
        fused = self.fusion.reference(self.encoder(reference))
        embedding: Tensor = self.speaker(fused, self._valid(lengths, fused))
        return embedding

    def extract(self, mixture: Tensor, embedding: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Extract the voice of `embedding` [batch, embedding] from `mixture` [batch, sample].

        Returns the short scale's estimate [batch, sample], as long as the mixture, of any
        length from one sample on; its level is arbitrary unless `config.true_level`. A silent
        mixture gives a finite, not necessarily silent, estimate. Behind the end of a signal that
        is shorter than others, the estimate means nothing.
        """
        length = mixture.shape[-1]
        scales = self.encoder(self._whole_frames(mixture))
        fused = self.fusion.mixture(scales)
        # The hop that a mixture ends in is completed; a reference's is left out.
        valid = self._valid(None if lengths is None else lengths + self.config.hop - 1, fused)
        mask = self.masks(self.extractor(fused, embedding, valid))[0]
        return self.decoder.short(zeroed(scales[0] * mask, valid), length)

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

    def _valid(self, lengths: Tensor | None, features: Tensor) -> Tensor | None:
        """Which frames of `features` lie within `lengths` [batch], as [batch, 1, frame]."""
        if lengths is None:
            return None
        frames = ((lengths - self.config.windows[0]) // self.config.hop + 1).clamp_min(1)
        numbers = torch.arange(features.shape[-1], device=features.device)
        return numbers < frames[:, None, None]

    def _whole_frames(self, samples: Tensor) -> Tensor:
        """Complete the last hop with zeros, fewer than a hop unless under a window."""
        window, hop = self.config.windows[0], self.config.hop
        length = samples.shape[-1]
        missing = window - length if length < window else (window - length) % hop
        return functional.pad(samples, (0, missing))


def build_mcspex(config: SystemConfig) -> System:
    """MC-SpEx: ScaleFuser, ConSM before each stack, ScaleInterMG."""
    stacks = (
        Stack(
            CONSMS[config.consm](config.channels, config.embedding),
            _blocks(config, range(config.blocks)),
        )
        for _ in range(config.stacks)
    )
    return System(
        config,
        FUSERS[config.scale_fuser](config.filters, config.channels),
        SpeechExtractor(stacks),
        INTERMGS[config.scale_intermg](config.channels, config.filters),
    )


def build_spexplus(config: SystemConfig) -> System:
    """SpEx+: separate projections, the embedding in each stack's first block, separate masks."""
    stacks = (
        Stack(
            ConcatBlock(
                config.channels, config.hidden, config.kernel, config.embedding, config.norm
            ),
            _blocks(config, range(1, config.blocks)),
        )
        for _ in range(config.stacks)
    )
    return System(
        config,
        SeparateProjections(config.filters, config.channels, config.reference_width),
        SpeechExtractor(stacks),
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
        KeyError: `config.system` is not in `SYSTEMS`.
    """
    return SYSTEMS[config.system](config)


def sized(system: str, size: str, sample_rate_hz: int, speakers: int) -> SystemConfig:
    """One of `SIZES` as a config of `system` at a rate, for a number of training speakers."""
    return replace(SIZES[size], system=system, sample_rate_hz=sample_rate_hz, speakers=speakers)


def _blocks(config: SystemConfig, exponents: range) -> list[TCNBlock]:
    """TCN blocks of dilation 2^exponent."""
    sizes = config.channels, config.hidden, config.kernel
    return [TCNBlock(*sizes, 2**e, config.norm) for e in exponents]
