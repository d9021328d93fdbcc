"""The same networks for training: a frame's channels together in memory, blocks of few passes.

A dilated block is two matrix products and little else, but torch's own modules spend half of
its time on everything between: each norm, PReLU and filter reads and writes all features, on
the way forward and back. Here a block is one autograd function. Its norms are never applied to
the features: each is a mean and a deviation per signal, which go into the filter or product
after it, and their gradients come from sums that the gradients of the weights need anyway.

```
x ── 1x1 ── u ── PReLU · norm 1 · depthwise ── v ── PReLU ── q ── norm 2 · 1x1 ── + x
      (moments of PReLU(u))      (one pass; moments of q)      (one product)
```

Between products, forward and back are five passes over the features, which torch.compile makes
one loop each. Everything works in the precision of the features, float32 or autocast's bfloat16,
with sums and the gradients of parameters in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcspex_cli.model.layers import ConcatBlock, GlobalLayerNorm, TCNBlock
from mcspex_cli.model.systems import (
    FrameDecoder,
    FrameEncoder,
    MultiScaleDecoder,
    MultiScaleEncoder,
    System,
)


def accelerate(system: System, *, compiled: bool = False) -> System:
    """Have `system` itself train faster; parameters and their names stay what they are.

    Of blocks with another norm than gLN, or not three taps, only the 1x1 convolutions change.
    Copies for validation are best made before. `compiled` makes each pass one loop with
    torch.compile, which takes a minute once and needs a C++ compiler (on a GPU, Triton).
    """
    for module in system.modules():
        if isinstance(module, MultiScaleEncoder):
            module.__class__ = FrameEncoder
        elif isinstance(module, MultiScaleDecoder):
            module.__class__ = FrameDecoder
        elif (
            isinstance(module, TCNBlock)
            and isinstance(module.norm_1, GlobalLayerNorm)
            and module.depthwise.kernel_size == (3,)
        ):
            concat = isinstance(module, ConcatBlock)
            module.__class__ = AcceleratedConcatBlock if concat else AcceleratedBlock
            module.compiled = compiled  # type: ignore[assignment]
        elif isinstance(module, nn.Conv1d) and module.kernel_size == (1,):
            module.__class__ = Pointwise
    if compiled:
        for part in (system.fusion, system.masks):
            part.compile(dynamic=False)
    return system


class Pointwise(nn.Conv1d):
    """A 1x1 convolution as a matrix product; a frame's channels come out together."""

    def forward(self, features: Tensor) -> Tensor:
        """Project `features` [batch, channel_in, frame] to [batch, channel_out, frame]."""
        weight = self.weight.squeeze(-1)
        return functional.linear(features.transpose(1, 2), weight, self.bias).transpose(1, 2)


class AcceleratedBlock(TCNBlock):
    """A `TCNBlock` with gLN as one autograd function."""

    compiled: bool

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """As `TCNBlock.forward`, and by it if not all frames are valid."""
        if valid is not None:
            return super().forward(features, valid)
        return self.refine(features, self.widen.get_parameter("bias").expand(len(features), -1))

    def refine(self, features: Tensor, bias: Tensor) -> Tensor:
        """Refine `features` [batch, channel, frame], the widening's bias [batch, hidden] given."""
        refined: Tensor = BlockFunction.apply(  # type: ignore[no-untyped-call]
            self.compiled,
            self.depthwise.dilation[0],
            features.transpose(1, 2),
            self.widen.weight.squeeze(-1),
            bias,
            self.activation_1.weight,
            self.norm_1.weight,
            self.norm_1.bias,
            self.depthwise.weight.squeeze(1),
            self.depthwise.bias,
            self.activation_2.weight,
            self.norm_2.weight,
            self.norm_2.bias,
            self.narrow.weight.squeeze(-1),
            self.narrow.bias,
        )
        return refined.transpose(1, 2)


class AcceleratedConcatBlock(ConcatBlock, AcceleratedBlock):
    """A `ConcatBlock` with gLN: its embedding is a bias of each signal's own."""

    def forward(  # type: ignore[override]
        self, features: Tensor, embedding: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """As `ConcatBlock.forward`, and by it if not all frames are valid."""
        if valid is not None:
            return super().forward(features, embedding, valid)
        return self.refine(features, self.widen.get_parameter("bias") + self.condition(embedding))


class BlockFunction(torch.autograd.Function):
    """A block forward and back; see the head of this file for its letters.

    Features are [batch, frame, channel]. Suffixes 1 and 2 are the first PReLU and norm and the
    second; a norm's `deviation` is the reciprocal one, [batch].
    """

    @staticmethod
    def forward(ctx: Any, compiled: bool, dilation: int, x: Tensor, *parameters: Tensor) -> Tensor:
        """Refine x; `parameters` as `AcceleratedBlock.refine` gives them."""
        widen, bias, slope_1, gain_1, shift_1, taps, tap_bias = parameters[:7]
        slope_2, gain_2, shift_2, narrow, narrow_bias = parameters[7:]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        dtype, count = x.dtype, x.shape[1] * len(widen)
        with torch.autocast(x.device.type, enabled=False):
            u = torch.baddbmm(bias[:, None].to(dtype), x, _for_each_signal(widen.t(), x))
            mean_1, deviation_1 = _statistics(_pass(_moments, compiled)(u, slope_1), count)
            scale = deviation_1[:, None] * gain_1
            offset = shift_1 - mean_1[:, None] * scale
            v, q, *sums = _pass(_depthwise, compiled)(
                u, slope_1, scale[:, None], offset[:, None], taps.t(), tap_bias, slope_2, dilation
            )
            mean_2, deviation_2 = _statistics(sums, count)
            project = narrow * gain_2 * deviation_2[:, None, None]
            constant = narrow_bias + narrow @ shift_2 - mean_2[:, None] * project.sum(-1)
            base = x + constant[:, None].to(dtype)
            y = torch.baddbmm(base, q, project.transpose(1, 2).to(dtype))
        statistics = mean_1, deviation_1, mean_2, deviation_2
        ctx.save_for_backward(x, u, v, q, *statistics, *parameters)
        ctx.compiled, ctx.dilation = compiled, dilation
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and of each parameter."""
        x, u, v, q, mean_1, deviation_1, mean_2, deviation_2, *parameters = ctx.saved_tensors
        widen, _, slope_1, gain_1, shift_1, taps, _ = parameters[:7]
        slope_2, gain_2, shift_2, narrow, _ = parameters[7:]
        compiled, dilation, dtype, frames = ctx.compiled, ctx.dilation, x.dtype, x.shape[1]
        d_y = d_y.to(dtype)

        # y = x + narrow (gain_2 (q - mean_2) deviation_2 + shift_2): sums over frames suffice.
        outer = _wide(torch.bmm(d_y.transpose(1, 2), q))
        d_narrow_bias = _wide(d_y).sum(1)
        by_q, by_one = (narrow * outer).sum(1), d_narrow_bias @ narrow
        scale = deviation_2[:, None] * gain_2
        offset = shift_2 - mean_2[:, None] * scale
        d_narrow = (outer * scale[:, None]).sum(0) + d_narrow_bias.t() @ offset
        d_gain_2, constant, slope = _norm_gradients(
            by_q, by_one, mean_2, deviation_2, gain_2, frames
        )
        d_q = torch.bmm(d_y, (narrow * scale[:, None]).to(dtype))

        # q = PReLU(v), v = depthwise(p scale + offset), p = PReLU(u).
        back = _pass(_activation_back, compiled)
        d_v, d_slope_2 = back(d_q, v, q, slope_2, constant, slope)
        products = _pass(_tap_sums, compiled)(d_v, u, slope_1, dilation)
        total = _wide(d_v).sum(1)
        margin = min(dilation, frames)
        first, last = _wide(d_v[:, :margin]).sum(1), _wide(d_v[:, -margin:]).sum(1)
        sums = torch.stack((total - first, total, total - last))
        scale = deviation_1[:, None] * gain_1
        offset = shift_1 - mean_1[:, None] * scale
        d_taps = (torch.stack(products) * scale + sums * offset).sum(1).t()
        by_tap = taps.t()[:, None]
        by_p, by_one_1 = (by_tap * torch.stack(products)).sum(0), (by_tap * sums).sum(0)
        d_gain_1, constant, slope = _norm_gradients(
            by_p, by_one_1, mean_1, deviation_1, gain_1, frames
        )
        weights = (by_tap * scale)[:, :, None]
        back = _pass(_depthwise_back, compiled)
        d_u, d_slope_1 = back(d_v, u, slope_1, weights, constant, slope, dilation)

        rows = d_u.flatten(0, 1)
        return (
            None,
            None,
            torch.baddbmm(d_y, d_u, _for_each_signal(widen.to(dtype), d_u)),
            _wide(rows.t() @ x.reshape(len(rows), -1)),
            _wide(d_u).sum(1),
            d_slope_1.sum().view(1),
            d_gain_1,
            by_one_1.sum(0),
            d_taps,
            total.sum(0),
            d_slope_2.sum().view(1),
            d_gain_2,
            by_one.sum(0),
            d_narrow,
            d_narrow_bias.sum(0),
        )


def _for_each_signal(matrix: Tensor, features: Tensor) -> Tensor:
    """A matrix for each signal of `features`, in their precision, without a copy."""
    return matrix.to(features.dtype).expand(len(features), -1, -1)


def _statistics(sums: Any, count: int) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation [batch] of `count` values with these sums."""
    mean, square = sums[0] / count, sums[1] / count
    return mean, torch.rsqrt((square - mean.square()).clamp_min(0) + 1e-5)


def _norm_gradients(
    by_value: Tensor, by_one: Tensor, mean: Tensor, deviation: Tensor, gain: Tensor, frames: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a norm's gradients are, from sums over its frames.

    `by_value` is the output's gradient times what was normalised, `by_one` the output's gradient,
    both summed [batch, hidden]. `mean` and `deviation` are [batch], `gain` is [hidden].

    Returns:
        The gain's gradient [hidden]; and a constant and a slope [batch, 1, 1]: the input's
        gradient is the output's times gain and deviation, plus constant + slope * input.
    """
    normalised = deviation[:, None] * (by_value - mean[:, None] * by_one)
    count = frames * len(gain)
    slope = -deviation.square() * (normalised @ gain) / count
    constant = -deviation * (by_one @ gain) / count - slope * mean
    return normalised.sum(0), constant[:, None, None], slope[:, None, None]


def _wide(tensor: Tensor) -> Tensor:
    """In float32 if it was of less, for sums."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _prelu(values: Tensor, slope: Tensor) -> Tensor:
    return torch.where(values > 0, values, slope * values)


def _neighbours(values: Tensor, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """The frames `dilation` before, the frames themselves and those after; zeros beyond."""
    frames = values.shape[1]
    padded = functional.pad(values, (0, 0, dilation, dilation))
    later = padded[:, 2 * dilation :]
    return padded[:, :frames], values, later


def _moments(u: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of PReLU(u) and of its square, for each signal."""
    p = _prelu(_wide(u), slope)
    return p.sum((1, 2)), p.square().sum((1, 2))


def _depthwise(  # noqa: PLR0913, PLR0917
    u: Tensor,
    slope_1: Tensor,
    scale: Tensor,
    offset: Tensor,
    taps: Tensor,
    bias: Tensor,
    slope_2: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V and q of u, and the sums of q and its square for each signal."""
    normalised = _prelu(_wide(u), slope_1) * scale + offset
    before, here, after = _neighbours(normalised, dilation)
    v = before * taps[0] + here * taps[1] + after * taps[2] + bias
    q = _prelu(v, slope_2)
    return v.to(u.dtype), q.to(u.dtype), q.sum((1, 2)), q.square().sum((1, 2))


def _activation_back(
    d_q: Tensor, v: Tensor, q: Tensor, slope_2: Tensor, constant: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of v, and of PReLU's slope for each signal; `d_q` is without the norm's."""
    total = _wide(d_q) + constant + slope * _wide(q)
    negative = v <= 0
    d_slope = torch.where(negative, total * _wide(v), 0.0).sum((1, 2))
    return torch.where(negative, slope_2 * total, total).to(v.dtype), d_slope


def _tap_sums(d_v: Tensor, u: Tensor, slope: Tensor, dilation: int) -> tuple[Tensor, ...]:
    """For each tap, the sum over frames of v's gradient times what the tap saw of PReLU(u)."""
    seen = _neighbours(_prelu(_wide(u), slope), dilation)
    return tuple((_wide(d_v) * each).sum(1) for each in seen)


def _depthwise_back(
    d_v: Tensor,
    u: Tensor,
    slope_1: Tensor,
    weights: Tensor,
    constant: Tensor,
    slope: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """The gradient of u, and of PReLU's slope by signal; `weights` [tap, batch, 1, hidden]."""
    before, here, after = _neighbours(_wide(d_v), dilation)
    wide_u = _wide(u)
    d_p = after * weights[0] + here * weights[1] + before * weights[2]
    d_p = d_p + constant + slope * _prelu(wide_u, slope_1)
    negative = wide_u <= 0
    d_slope = torch.where(negative, d_p * wide_u, 0.0).sum((1, 2))
    return torch.where(negative, slope_1 * d_p, d_p).to(u.dtype), d_slope


@cache
def _pass(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """One of the functions above as it is or compiled; torch.compile takes long to import."""
    return torch.compile(function) if compiled else function
