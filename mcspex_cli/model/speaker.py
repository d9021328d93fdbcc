"""From a reference's features to one vector that says whose voice it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mcspex_cli.model.layers import BatchNorm

POOL = 3
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
        self.pool = nn.MaxPool1d(POOL)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Refine and shorten `features` [batch, channel, frame]."""
        seen = self.activation_1(self.norm_1(self.conv_1(features), valid))
        residual = self.norm_2(self.conv_2(seen), valid)
        pooled: Tensor = self.pool(self.activation_2(residual + self.shortcut(features)))
        return pooled


class SpeakerEncoder(nn.Module):
    """Residual blocks, a projection, and the mean over time: the embedding E_r.

    Source: SpEx+, section 2.2, with its mean over valid frames; the same in MC-SpEx.
    """

    def __init__(self, channels: Sequence[int], embedding: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(channels)))
        self.project = nn.Conv1d(channels[-1], embedding, 1)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embed `features` [batch, channel, frame] as [batch, embedding]."""
        for block in self.blocks:
            features = block(features, valid)
            if valid is not None:  # a pooled frame is valid if the last of its frames is
                valid = valid[..., POOL - 1 :: POOL]
        projected: Tensor = self.project(features)
        if valid is None:
            return projected.mean(dim=-1)
        return (projected * valid).sum(-1) / valid.sum(-1)
