"""Networks on features: fusion, speaker encoder, speech extractor and masks; see `systems`.

What is called `Folded...` is the same for CPUs, twice as fast; see `systems.fold`.

Signals of unequal lengths can share a batch: zeros follow the shorter ones, and `valid`
[batch, 1, frame] (booleans) says which frames belong to each. Norms then count only these frames,
and whatever comes after them is set to zero before a frame sees its neighbours. So each signal
comes out as it does alone. If `valid` is None, all frames are valid, and nothing more is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from mcspex_cli.model.config import SystemConfig

Scales = tuple[Tensor, Tensor, Tensor]
"""Features of the short, middle and long scale, each [batch, filter, frame]."""


def concatenate(scales: Sequence[Tensor]) -> Tensor:
    """Put scales [batch, filter, frame] on each other, keeping a frame's filters together.

    That is how they lie in memory in a folded network, and `torch.cat` would not keep it.
    """
    if scales[0].stride(1) == 1:
        return torch.cat([scale.transpose(1, 2) for scale in scales], dim=2).transpose(1, 2)
    return torch.cat(list(scales), dim=1)


class GlobalLayerNorm(nn.GroupNorm):
    """Normalise over channels and time together, then scale each channel (gLN).

    The statistics see every valid frame, so the same speech inside a longer signal comes
    out differently. Shape: [batch, channel, frame], kept. Source: Conv-TasNet, section
    II-D; eps 1e-5 as in SpEx+.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=1, num_channels=channels, eps=1e-5)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise `features` [batch, channel, frame]."""
        if valid is None:
            return super().forward(features)
        own = features * valid.float()  # in float32 under autocast, too
        count = features.shape[1] * valid.sum((1, 2))
        mean = own.sum((1, 2)) / count
        variance = (own.square().sum((1, 2)) / count - mean.square()).clamp_min(0)
        scale = self.weight * (variance + self.eps).rsqrt()[:, None]
        offset = self.bias - mean[:, None] * scale
        return torch.addcmul(offset[..., None], own, scale[..., None])


class ChannelLayerNorm(nn.LayerNorm):
    """Normalise the channels of each frame on their own (cLN).

    Shape: [batch, channel, frame], kept. Source: Conv-TasNet, section II-D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5)

    def forward(self, features: Tensor, _: Tensor | None = None) -> Tensor:
        """Normalise `features` [batch, channel, frame]."""
        return super().forward(features.transpose(1, 2)).transpose(1, 2)


class BatchNorm(nn.BatchNorm1d):
    """Normalise each channel by its statistics in training.

    Shape: [batch, channel, frame], kept. In training, the statistics see all valid frames, those of
    all processes that train together (`torch.nn.SyncBatchNorm` does that on GPUs only).
    """

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise `features` [batch, channel, frame]."""
        shared = distributed.is_available() and distributed.is_initialized()
        if not self.training or (valid is None and not shared):
            return super().forward(features)
        values = zero_invalid(
            features.to(torch.promote_types(features.dtype, torch.float32)), valid
        )
        frames = features[:, 0].numel() if valid is None else valid.sum()
        counts = values.new_ones(values.shape[1]) * frames
        total = torch.stack((values.sum((0, 2)), values.square().sum((0, 2)), counts))
        if shared:
            total = _SumOfProcesses.apply(total)  # type: ignore[no-untyped-call]
        mean, square, count = total[0] / total[2], total[1] / total[2], total[2]
        variance = (square - mean.square()).clamp_min(0)
        if self.running_mean is not None and self.running_var is not None:
            momentum = self.momentum or 0.0
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = (features - mean[:, None]) * scale[:, None] + self.bias[:, None]
        return normalised.to(features.dtype)


class _SumOfProcesses(torch.autograd.Function):
    """The sum over all processes; every one's loss depends on it, so gradients are summed too."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _SumOfProcesses.forward(None, gradient)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "gLN": GlobalLayerNorm,
    "cLN": ChannelLayerNorm,
    "BN": BatchNorm,
}
"""The norms that dilated blocks can have, by Conv-TasNet's names for them."""


def zero_invalid(features: Tensor, valid: Tensor | None) -> Tensor:
    """Set `features` [batch, channel, frame] to zero where they are not valid."""
    return features if valid is None else features * valid


class NormProjection(nn.Module):
    """Concatenate the scales, normalise each frame, project to the network's width.

    Source: SpEx+ (`cLN` before a 1x1 convolution).
    """

    def __init__(self, filters: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3 * filters)
        self.project = nn.Conv1d(3 * filters, channels, 1)

    def normalise(self, scales: Scales) -> Tensor:
        """Concatenate `scales` and normalise each frame (cLN): [batch, 3 * filter, frame]."""
        rows: Tensor = self.norm(concatenate(scales).transpose(1, 2))
        return rows.transpose(1, 2)

    def forward(self, scales: Scales) -> Tensor:
        """Fuse `scales`, each [batch, filter, frame], into [batch, channel, frame]."""
        return self.project(self.normalise(scales))


class SeparateProjections(nn.Module):
    """SpEx+'s fusion: one norm and projection for the mixture, another for the reference."""

    def __init__(self, filters: int, channels: int, reference_channels: int) -> None:
        super().__init__()
        self.mixture = NormProjection(filters, channels)
        self.reference = NormProjection(filters, reference_channels)


class ScaleFuser(NormProjection):
    """MC-SpEx's fusion: the scales weigh each other, then become one; shared by both inputs.

    ```
    scales ─ concat ─ cLN ─┬──────────── x ─ 1x1 3N→B ─
                           └─ weigh ─────┘
    ```

    From the paper: one module between encoder and network, its weights shared by mixture
    and reference. Ours: what weighs, in the two subclasses; `FUSERS` names them.
    """

    def weigh(self, features: Tensor) -> Tensor:
        """Weights [batch, 3 * filter, frame], 1 on average, for normalised features like them."""
        raise NotImplementedError

    def forward(self, scales: Scales) -> Tensor:
        """Fuse `scales`, each [batch, filter, frame], into [batch, channel, frame]."""
        features = self.normalise(scales)
        return self.project(features * self.weigh(features))

    def mixture(self, scales: Scales) -> Tensor:
        """Fuse a mixture's scales."""
        return self(scales)

    def reference(self, scales: Scales) -> Tensor:
        """Fuse a reference's scales: the same weights, so the same feature space."""
        return self(scales)


class GatedScaleFuser(ScaleFuser):
    """A gate in (0, 2) for every filter of every scale, from all three scales of its frame."""

    def __init__(self, filters: int, channels: int) -> None:
        super().__init__(filters, channels)
        self.gate = nn.Sequential(
            nn.Conv1d(3 * filters, filters // 2, 1),
            nn.PReLU(),
            nn.Conv1d(filters // 2, 3 * filters, 1),
        )

    def weigh(self, features: Tensor) -> Tensor:
        """As `ScaleFuser.weigh`."""
        return 2 * torch.sigmoid(self.gate(features))


class AttentiveScaleFuser(ScaleFuser):
    """Three shares of a whole, one for each scale: a frame leans on what resolves it best."""

    def __init__(self, filters: int, channels: int) -> None:
        super().__init__(filters, channels)
        self.attention = nn.Sequential(
            nn.Conv1d(3 * filters, filters // 2, 1), nn.PReLU(), nn.Conv1d(filters // 2, 3, 1)
        )

    def weigh(self, features: Tensor) -> Tensor:
        """As `ScaleFuser.weigh`; equal for all filters of a scale."""
        shares = 3 * torch.softmax(self.attention(features), dim=1)
        return shares.repeat_interleave(features.shape[1] // 3, dim=1)


FUSERS: dict[str, type[ScaleFuser]] = {"gate": GatedScaleFuser, "attention": AttentiveScaleFuser}
"""The fusers by the name that `SystemConfig.scale_fuser` has."""


class TCNBlock(nn.Module):
    """Widen, look around with a dilated depthwise convolution, narrow, add to the input.

    ```
    x ─┬─ 1x1 B→H ─ PReLU ─ norm ─ depthwise ─ PReLU ─ norm ─ 1x1 H→B ─ + ─
       └────────────────────────────────────────────────────────────────┘
    ```

    Shape: [batch, channel, frame], kept. The norm is one of `NORMS`. Source: Conv-TasNet,
    section II-C; SpEx+, with gLN.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, dilation: int, norm: str = "gLN"
    ) -> None:
        super().__init__()
        self.widen = nn.Conv1d(channels, hidden, 1)
        self.activation_1 = nn.PReLU()
        self.norm_1 = NORMS[norm](hidden)
        padding = dilation * (kernel - 1) // 2
        self.depthwise = nn.Conv1d(
            hidden, hidden, kernel, dilation=dilation, padding=padding, groups=hidden
        )
        self.activation_2 = nn.PReLU()
        self.norm_2 = NORMS[norm](hidden)
        self.narrow = nn.Conv1d(hidden, channels, 1)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Refine `features` [batch, channel, frame]."""
        return features + self.transform(self.widen(features), valid)

    def transform(self, widened: Tensor, valid: Tensor | None = None) -> Tensor:
        """Take widened features [batch, hidden, frame] to the residual [batch, channel, frame]."""
        normalised = zero_invalid(self.norm_1(self.activation_1(widened), valid), valid)
        hidden = self.activation_2(self.depthwise(normalised))
        return self.narrow(self.norm_2(hidden, valid))


_POOL = 3
"""Frames merged by each residual block."""


class ResBlock(nn.Module):
    """Two pointwise convolutions beside a shortcut, then the maximum of every three frames.

    Shape: [batch, channel_in, frame] to [batch, channel_out, frame // 3]. Source: SpEx+.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(channels_in, channels_out, 1, bias=False)
        self.norm_1 = BatchNorm(channels_out)
        self.activation_1 = nn.PReLU()
        self.conv_2 = nn.Conv1d(channels_out, channels_out, 1, bias=False)
        self.norm_2 = BatchNorm(channels_out)
        self.activation_2 = nn.PReLU()
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Conv1d(channels_in, channels_out, 1, bias=False)
        self.pool = nn.MaxPool1d(_POOL)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Refine and shorten `features` [batch, channel, frame]."""
        hidden = self.activation_1(self.norm_1(self.conv_1(features), valid))
        residual = self.norm_2(self.conv_2(hidden), valid)
        return self.pool(self.activation_2(residual + self.shortcut(features)))


class FoldedResBlock(ResBlock):
    """A `ResBlock` whose batch norms are part of the convolutions before them."""

    def forward(self, features: Tensor, _: Tensor | None = None) -> Tensor:
        """As `ResBlock.forward`."""
        residual = self.conv_2(self.activation_1(self.conv_1(features)))
        return self.pool(self.activation_2(residual + self.shortcut(features)))


class SpeakerEncoder(nn.Module):
    """Residual blocks, a projection, and the mean over time: the embedding E_r.

    Source: SpEx+, section 2.2, with its mean over valid frames; the same in MC-SpEx.
    """

    def __init__(self, channels: Sequence[int], embedding: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(channels)))
        self.project = nn.Conv1d(channels[-1], embedding, 1)
        self.least_frames = _POOL ** len(self.blocks)
        """Frames below which pooling leaves nothing to average."""

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embed `features` [batch, channel, frame] as [batch, embedding]."""
        for block in self.blocks:
            features = block(features, valid)
            if valid is not None:  # a pooled frame is valid if the last of its frames is
                valid = valid[..., _POOL - 1 :: _POOL]
        projected: Tensor = self.project(features)
        if valid is None:
            return projected.mean(dim=-1)
        return (projected * valid).sum(-1) / valid.sum(-1)


class ConcatBlock(TCNBlock):
    """A TCN block that also sees the embedding, as if concatenated to every frame.

    A 1x1 convolution of [features; embedding] is the convolution of the features plus one
    projection of the embedding, the same for all frames; so nothing is repeated or copied.
    Source: SpEx+, section 2.3.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, embedding: int, norm: str = "gLN"
    ) -> None:
        super().__init__(channels, hidden, kernel, dilation=1, norm=norm)
        self.condition = nn.Linear(embedding, hidden, bias=False)

    def forward(  # type: ignore[override]
        self, features: Tensor, embedding: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Refine `features` [batch, channel, frame] for `embedding` [batch, embedding]."""
        condition = self.condition(embedding).unsqueeze(-1)
        return features + self.transform(self.widen(features) + condition, valid)


class ConSM(nn.Module):
    """Conditional speaker modulation: scale and shift the features as the speaker asks.

    `x · (1 + scale) + shift`, from the paper: a module before each stack that modulates
    the features by E_r. Ours: where scale and shift come from, in the two subclasses;
    `CONSMS` names them. A frame's scale and shift must not depend on other frames: some may
    be behind the signal's end. The sizes of layers are those of a frame or of E_r, a half of
    them, twice or three times as many: `growth.grow` widens no others.
    """

    modulate: nn.Linear | nn.Conv1d
    """The last layer, which gives scale and shift. Where its weights are zero nothing is changed:
    so begins a stack that `growth.grow` adds."""

    def modulation(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Scale and shift, [batch, 2 * channel, frame or 1]."""
        raise NotImplementedError

    def forward(self, features: Tensor, embedding: Tensor, _: Tensor | None = None) -> Tensor:
        """Modulate `features` [batch, channel, frame] by `embedding` [batch, embedding]."""
        scale, shift = self.modulation(features, embedding).chunk(2, dim=1)
        return features * (1 + scale) + shift


class FiLMConSM(ConSM):
    """FiLM: one scale and shift for all frames, linear in E_r. Source: Perez et al., 2018."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(embedding, 2 * channels)

    def modulation(self, _: Tensor, embedding: Tensor) -> Tensor:
        """As `ConSM.modulation`, [batch, 2 * channel, 1]."""
        return self.modulate(embedding).unsqueeze(-1)


class FeatureFiLMConSM(ConSM):
    """FiLM by the features too: each frame has a scale and shift of its own.

    ```
    E_r ─ linear ─────┐
    x ─── 1x1 B→B/2 ─ + ─ PReLU ─ 1x1 B/2→2B ─ (scale, shift)
    ```
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.listen = nn.Conv1d(channels, channels // 2, 1)
        self.condition = nn.Linear(embedding, channels // 2, bias=False)
        self.activation = nn.PReLU()
        self.modulate = nn.Conv1d(channels // 2, 2 * channels, 1)

    def modulation(self, features: Tensor, embedding: Tensor) -> Tensor:
        """As `ConSM.modulation`."""
        condition = self.listen(features) + self.condition(embedding).unsqueeze(-1)
        return self.modulate(self.activation(condition))


CONSMS: dict[str, Callable[[int, int], ConSM]] = {
    "film": FiLMConSM,
    "feature_film": FeatureFiLMConSM,
}
"""The ConSMs by the name that `SystemConfig.consm` has, each made from the channels of a frame and
of E_r. New networks have the one that `config.SIZES` names."""


class Stack(nn.Module):
    """A conditioned step and the dilated blocks after it."""

    def __init__(self, condition: ConSM | ConcatBlock, blocks: Iterable[TCNBlock]) -> None:
        super().__init__()
        self.condition = condition
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: Tensor, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Refine `features` [batch, channel, frame] for `embedding` [batch, embedding]."""
        refined: Tensor = self.condition(features, embedding, valid)
        for block in self.blocks:
            refined = block(refined, valid)
        return refined


class SpeechExtractor(nn.Module):
    """The stacks one after another. Source: SpEx+, figure 1; MC-SpEx, figure 1.

    Args:
        config: of the whole system.
        condition: makes what each stack begins with.
        exponents: a stack has a block of dilation 2^e for each e of these.
    """

    def __init__(
        self, config: SystemConfig, condition: Callable[[], ConSM | ConcatBlock], exponents: range
    ) -> None:
        super().__init__()
        sizes = config.channels, config.hidden, config.kernel
        self.stacks = nn.ModuleList()
        for _ in range(config.stacks):
            first = condition()
            blocks = [TCNBlock(*sizes, 2**exponent, config.norm) for exponent in exponents]
            self.stacks.append(Stack(first, blocks))

    def forward(self, features: Tensor, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Follow `embedding` [batch, embedding] through `features` [batch, channel, frame]."""
        for stack in self.stacks:
            features = stack(features, embedding, valid)
        return features


class IndependentMasks(nn.Module):
    """SpEx+'s masks: a 1x1 convolution and ReLU for each scale, none knowing the others."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv1d(channels, filters, 1) for _ in range(3))

    def forward(self, features: Tensor) -> Scales:
        """Turn `features` [batch, channel, frame] into three masks [batch, filter, frame]."""
        short, middle, long = (functional.relu(head(features)) for head in self.heads)
        return short, middle, long


class ScaleInterMG(nn.Module):
    """MC-SpEx's mask generator: the scales' masks inform each other.

    From the paper: three masks, the scales informing each other while they are made. Ours:
    how they do, in the two subclasses; `INTERMGS` names them.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.heads = nn.Conv1d(channels, 3 * filters, 1)

    def inform(self, own: Tensor) -> Tensor:
        """Each head's output, put right by the others'. Shape: [batch, 3 * filter, frame]."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Scales:
        """Turn `features` [batch, channel, frame] into three masks [batch, filter, frame]."""
        short, middle, long = functional.relu(self.inform(self.heads(features))).chunk(3, dim=1)
        return short, middle, long


class MixingScaleInterMG(ScaleInterMG):
    """One shared layer hears all three heads and corrects each.

    ```
    x ─┬─ 1x1 → short  ─┬─────────────────── + ─ ReLU ─ mask
       ├─ 1x1 → middle ─┼─ (likewise)
       └─ 1x1 → long   ─┤
                        └─ concat ─ 1x1 3N→B ─ PReLU ─ 1x1 B→3N ─┘
    ```
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters)
        self.interact = nn.Sequential(
            nn.Conv1d(3 * filters, channels, 1), nn.PReLU(), nn.Conv1d(channels, 3 * filters, 1)
        )

    def inform(self, own: Tensor) -> Tensor:
        """As `ScaleInterMG.inform`."""
        return own + self.interact(own)


class CascadeScaleInterMG(ScaleInterMG):
    """From coarse to fine: the long head tells the middle one, both tell the short one."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters)
        self.to_middle = nn.Conv1d(filters, filters, 1)
        self.to_short = nn.Conv1d(2 * filters, filters, 1)

    def inform(self, own: Tensor) -> Tensor:
        """As `ScaleInterMG.inform`."""
        short, middle, long = own.chunk(3, dim=1)
        middle = middle + self.to_middle(functional.relu(long))
        coarse = functional.relu(concatenate((middle, long)))
        return concatenate((short + self.to_short(coarse), middle, long))


INTERMGS: dict[str, type[ScaleInterMG]] = {
    "mixing": MixingScaleInterMG,
    "cascade": CascadeScaleInterMG,
}
"""The mask generators by the name that `SystemConfig.scale_intermg` has."""


class FoldedPointwise(nn.Module):
    """A 1x1 convolution that leaves a frame's channels together.

    Shape: [batch, channel_in, frame] to [batch, channel_out, frame].
    """

    def __init__(self, convolution: nn.Conv1d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight[..., None], requires_grad=False)
        self.bias = convolution.bias

    def forward(self, features: Tensor) -> Tensor:
        """Project `features`."""
        rows = self.project(features.transpose(1, 2).flatten(0, 1).contiguous())
        return rows.view(len(features), -1, rows.shape[1]).transpose(1, 2)

    def project(self, rows: Tensor) -> Tensor:
        """Project rows [frame, channel_in] to [frame, channel_out]."""
        return _filtered(rows, self.weight, self.bias)


class FoldedExtractor(nn.Module):
    """The stacks on frames completed to a multiple of every dilation.

    The mixtures of a batch are taken one after another, because each has its own norms.
    What the blocks then make of the frames that are too many is put back to zero wherever
    another frame, or a mean, would see it.
    """

    def __init__(self, extractor: SpeechExtractor, dtype: torch.dtype) -> None:
        super().__init__()
        stacks = (stack for stack in extractor.stacks if isinstance(stack, Stack))
        steps = [step for stack in stacks for step in (stack.condition, *stack.blocks)]
        self.steps = nn.ModuleList(
            FoldedBlock(step, dtype) if isinstance(step, TCNBlock) else step for step in steps
        )
        self.multiple = max(s.dilation for s in self.steps if isinstance(s, FoldedBlock))

    def forward(self, features: Tensor, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Follow `embedding` [batch, embedding] through `features` [batch, channel, frame]."""
        batch, _, longest = features.shape
        frames = [longest] * batch if valid is None else valid.sum((1, 2)).tolist()
        refined = torch.zeros_like(features.transpose(1, 2))
        for index, count in enumerate(frames):
            one = slice(index, index + 1)
            refined[index, :count] = self._refine(features[one, :, :count], embedding[one])
        return refined.transpose(1, 2)

    def _refine(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Take features [1, channel, frame] of one signal to rows [frame, channel]."""
        frames = features.shape[-1]
        rows = functional.pad(_rows(features), (0, 0, 0, -frames % self.multiple))
        for step in self.steps:
            if isinstance(step, FoldedBlock):
                rows = step(rows, embedding, frames)
            else:  # a ConSM, which takes features whose channels are together
                rows = _rows(step(rows[None].transpose(1, 2), embedding))
        return rows[:frames]


class FoldedBlock(nn.Module):
    """A TCN block, or a ConcatBlock, whose norms are folded into its convolutions.

    ```
    x ─┬─ 1x1 ─ PReLU ─┬─ depthwise + bias ─ PReLU ─┬─ 1x1 + bias ─ · gain ─ + ─
       │               └ mean, deviation ─┘         └ mean, deviation ─┘     │
       └─────────────────────────────────────────────────────────────────────┘
    ```

    A norm is never applied to the features. It becomes two numbers, mean and deviation, that go
    into the bias and gain of the convolution after it.

    With m and d the mean and deviation of what PReLU gave, and w a tap of the depthwise
    filter: sum(w (gain (x - m) / d + bias)) = (sum(w gain x) + sum(w (bias d - gain m))) / d,
    where the sums over taps leave out those beyond either end. Its last factor, 1 / d, is
    not applied, for PReLU passes it on and the second norm takes it out. The second norm
    goes into the 1x1 convolution in the same way.
    """

    def __init__(self, block: TCNBlock, dtype: torch.dtype) -> None:
        super().__init__()
        norm_1, norm_2 = block.norm_1, block.norm_2
        depthwise, narrow = block.depthwise, block.narrow
        assert isinstance(norm_1, GlobalLayerNorm) and isinstance(norm_2, GlobalLayerNorm)
        assert depthwise.bias is not None and narrow.bias is not None
        self.dtype, self.dilation, self.epsilon = dtype, depthwise.dilation[0], norm_1.eps
        self.slopes = block.activation_1.weight.item(), block.activation_2.weight.item()
        self.widen = FoldedPointwise(block.widen)
        self.condition = block.condition if isinstance(block, ConcatBlock) else None
        taps = depthwise.weight[:, 0]
        self.by_mean, self.by_deviation = taps * norm_1.weight[:, None], taps * norm_1.bias[:, None]
        self.taps = self.by_mean[:, None, :, None].to(dtype)
        self.tap_bias = depthwise.bias.detach()
        weight = narrow.weight[..., 0]
        self.weight = (weight * norm_2.weight)[..., None, None].to(dtype)
        self.narrow_by_mean = weight @ norm_2.weight
        self.narrow_bias = narrow.bias.detach() + weight @ norm_2.bias

    def forward(self, rows: Tensor, embedding: Tensor, frames: int) -> Tensor:
        """Refine rows [frame, channel], of which the first `frames` count."""
        hidden = self.widen.project(rows)
        if self.condition is not None:
            hidden += self.condition(embedding)
        functional.leaky_relu_(hidden, self.slopes[0])
        mean, variance = _moments(hidden, frames)
        deviation = (variance + self.epsilon).sqrt()
        hidden = self._depthwise(hidden, mean, deviation, frames)
        functional.leaky_relu_(hidden, self.slopes[1])
        mean, variance = _moments(hidden, frames)
        gain = (variance + self.epsilon * deviation.square()).rsqrt()
        bias = self.narrow_bias / gain - self.narrow_by_mean * mean
        residual = _filtered(hidden, self.weight, bias.to(self.dtype))
        return torch.add(rows, residual, alpha=gain.item())

    def _depthwise(self, rows: Tensor, mean: Tensor, deviation: Tensor, frames: int) -> Tensor:
        """Filter normalised rows [frame, hidden] along time, times `deviation`."""
        by_tap = self.by_deviation * deviation - self.by_mean * mean
        bias = by_tap.sum(1) + self.tap_bias * deviation
        filtered = _filtered(rows, self.taps, bias.to(self.dtype), self.dilation)
        lost = by_tap.t().to(self.dtype)
        margin = len(lost) // 2
        for tap in range(margin):
            beyond = min((margin - tap) * self.dilation, frames)
            filtered[:beyond] -= lost[tap]
            filtered[frames - beyond : frames] -= lost[-1 - tap]
        return filtered


def _moments(rows: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Mean and variance, in float32, of the first `frames` rows; the others are set to zero.

    The sums are taken in parts, lest bfloat16 rounds them as a whole.
    """
    rows[frames:] = 0
    count = frames * rows.shape[1]
    mean = rows.sum(0).float().sum() / count
    power = torch.linalg.vector_norm(rows, dim=1).float().square().sum() / count
    return mean, (power - mean.square()).clamp_min(0)


def _filtered(rows: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """Filter rows [frame, channel_in] by `weight` [channel_out, channel_in or 1, tap, 1].

    The rows are made an image as wide as the dilation, and so filtered downwards without
    any: libraries are quick at images whose channels lie together, and slow at dilation.
    """
    image = rows.view(1, -1, dilation, rows.shape[1]).permute(0, 3, 1, 2)
    groups = 1 if weight.shape[1] == rows.shape[1] else rows.shape[1]
    margin = weight.shape[2] // 2
    filtered = functional.conv2d(image, weight, bias, padding=(margin, 0), groups=groups)
    return filtered.permute(0, 2, 3, 1).reshape(-1, len(weight))


def _rows(features: Tensor) -> Tensor:
    """Features [1, channel, frame] as rows [frame, channel]."""
    return features[0].t().contiguous()
