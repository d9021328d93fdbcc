"""Norms and the dilated block that every network here is stacked from.

Signals of unequal lengths can share a batch: zeros follow the shorter ones, and `valid`
[batch, 1, frame] (booleans) says which frames belong to each. Norms then count only these frames,
and whatever comes after them is set to zero before a frame sees its neighbours. So each signal
comes out as it does alone. If `valid` is None, all frames are valid, and nothing more is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn


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
        values = zeroed(features.to(torch.promote_types(features.dtype, torch.float32)), valid)
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


def zeroed(features: Tensor, valid: Tensor | None) -> Tensor:
    """Set `features` [batch, channel, frame] to zero where they are not valid."""
    return features if valid is None else features * valid


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
        normalised = zeroed(self.norm_1(self.activation_1(widened), valid), valid)
        seen = self.activation_2(self.depthwise(normalised))
        residual: Tensor = self.narrow(self.norm_2(seen, valid))
        return residual
