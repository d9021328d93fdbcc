"""The same networks for CPUs, twice as fast: frames lie together in memory, norms are folded.

A CPU multiplies matrices near its peak and waits for memory in everything between. So each
frame's channels lie together, which is how matrix products read and write fastest, and a
block's two norms are never applied to the features: each becomes two numbers, mean and
deviation, that go into the bias and gain of the convolution after it.

```
x ─┬─ 1x1 ─ PReLU ─┬─ depthwise + bias ─ PReLU ─┬─ 1x1 + bias ─ · gain ─ + ─
   │               └ mean, deviation ─┘         └ mean, deviation ─┘     │
   └─────────────────────────────────────────────────────────────────────┘
```

The blocks take the mixtures of a batch one after another, because each has its own mean and
deviation.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mcspex_cli.model.decoder import FrameDecoder
from mcspex_cli.model.encoder import FrameEncoder, ResBlock
from mcspex_cli.model.layers import GlobalLayerNorm, TCNBlock
from mcspex_cli.model.separator import ConcatBlock, SpeechExtractor, Stack
from mcspex_cli.model.systems import System


def can_fold(system: System) -> bool:
    """Whether `fold` knows the norm of its blocks: gLN, which all our own checkpoints have."""
    return system.config.norm == "gLN"


@torch.no_grad()
def fold(system: System, dtype: torch.dtype = torch.float32) -> System:
    """Make a copy of `system` for CPUs that computes in `dtype`.

    It agrees with `system` but for rounding, and takes tensors of `dtype`.

    Raises:
        ValueError: `can_fold` is false.
    """
    if not can_fold(system):
        raise ValueError(f"blocks with {system.config.norm} cannot be folded")
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


class FoldedResBlock(ResBlock):
    """A `ResBlock` whose batch norms are part of the convolutions before them."""

    def forward(self, features: Tensor, _: Tensor | None = None) -> Tensor:
        """As `ResBlock.forward`."""
        residual = self.conv_2(self.activation_1(self.conv_1(features)))
        pooled: Tensor = self.pool(self.activation_2(residual + self.shortcut(features)))
        return pooled


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

    With m and d the mean and deviation of what PReLU gave, and w a tap of the depthwise
    filter: sum(w (gain (x - m) / d + bias)) = (sum(w gain x) + sum(w (bias d - gain m))) / d,
    where the sums over taps leave out those beyond either end. Its last factor, 1 / d, is
    not applied, for PReLU passes it on and the second norm takes it out. The second norm
    goes into the 1x1 convolution in the same way.
    """

    def __init__(self, block: TCNBlock, dtype: torch.dtype) -> None:
        super().__init__()
        norm_1, norm_2, look, narrow = block.norm_1, block.norm_2, block.depthwise, block.narrow
        assert isinstance(norm_1, GlobalLayerNorm) and isinstance(norm_2, GlobalLayerNorm)
        assert look.bias is not None and narrow.bias is not None
        self.dtype, self.dilation, self.epsilon = dtype, look.dilation[0], norm_1.eps
        self.slopes = block.activation_1.weight.item(), block.activation_2.weight.item()
        self.widen = FoldedPointwise(block.widen)
        self.condition = block.condition if isinstance(block, ConcatBlock) else None
        taps = look.weight[:, 0]
        self.by_mean, self.by_deviation = taps * norm_1.weight[:, None], taps * norm_1.bias[:, None]
        self.taps = self.by_mean[:, None, :, None].to(dtype)
        self.look_bias = look.bias.detach()
        weight = narrow.weight[..., 0]
        self.weight = (weight * norm_2.weight)[..., None, None].to(dtype)
        self.narrow_by_mean = weight @ norm_2.weight
        self.narrow_bias = narrow.bias.detach() + weight @ norm_2.bias

    def forward(self, rows: Tensor, embedding: Tensor, frames: int) -> Tensor:
        """Refine rows [frame, channel], of which the first `frames` count."""
        seen = self.widen.project(rows)
        if self.condition is not None:
            seen += self.condition(embedding)
        functional.leaky_relu_(seen, self.slopes[0])
        mean, variance = _moments(seen, frames)
        deviation = (variance + self.epsilon).sqrt()
        seen = self._look(seen, mean, deviation, frames)
        functional.leaky_relu_(seen, self.slopes[1])
        mean, variance = _moments(seen, frames)
        gain = (variance + self.epsilon * deviation.square()).rsqrt()
        bias = self.narrow_bias / gain - self.narrow_by_mean * mean
        residual = _filtered(seen, self.weight, bias.to(self.dtype))
        return torch.add(rows, residual, alpha=gain.item())

    def _look(self, rows: Tensor, mean: Tensor, deviation: Tensor, frames: int) -> Tensor:
        """Filter normalised rows [frame, hidden] along time, times `deviation`."""
        by_tap = self.by_deviation * deviation - self.by_mean * mean
        bias = by_tap.sum(1) + self.look_bias * deviation
        looked = _filtered(rows, self.taps, bias.to(self.dtype), self.dilation)
        lost = by_tap.t().to(self.dtype)
        margin = len(lost) // 2
        for tap in range(margin):
            beyond = min((margin - tap) * self.dilation, frames)
            looked[:beyond] -= lost[tap]
            looked[frames - beyond : frames] -= lost[-1 - tap]
        return looked


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
