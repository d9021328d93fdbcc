"""The two encoders: from samples to features, and from a reference's features to its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcspex_cli.model.layers import BatchNorm

Scales = tuple[Tensor, Tensor, Tensor]
"""Features of the short, middle and long scale, each [batch, filter, frame]."""


def concatenated(scales: Sequence[Tensor]) -> Tensor:
    """Put scales [batch, filter, frame] on each other, keeping a frame's filters together.

    That is how they lie in memory in a folded network, and `torch.cat` would not keep it.
    """
    if scales[0].stride(1) == 1:
        return torch.cat([scale.transpose(1, 2) for scale in scales], dim=2).transpose(1, 2)
    return torch.cat(list(scales), dim=1)


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


class NormProjection(nn.Module):
    """Concatenate the scales, normalise each frame, project to the network's width.

    Source: SpEx+ (`cLN` before a 1x1 convolution).
    """

    def __init__(self, filters: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3 * filters)
        self.project = nn.Conv1d(3 * filters, channels, 1)

    def normalised(self, scales: Scales) -> Tensor:
        """Concatenate `scales` and normalise each frame (cLN): [batch, 3 * filter, frame]."""
        rows: Tensor = self.norm(concatenated(scales).transpose(1, 2))
        return rows.transpose(1, 2)

    def forward(self, scales: Scales) -> Tensor:
        """Fuse `scales`, each [batch, filter, frame], into [batch, channel, frame]."""
        fused: Tensor = self.project(self.normalised(scales))
        return fused


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
        features = self.normalised(scales)
        fused: Tensor = self.project(features * self.weigh(features))
        return fused

    def mixture(self, scales: Scales) -> Tensor:
        """Fuse a mixture's scales."""
        fused: Tensor = self(scales)
        return fused

    def reference(self, scales: Scales) -> Tensor:
        """Fuse a reference's scales: the same weights, so the same feature space."""
        fused: Tensor = self(scales)
        return fused


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
        self.least_frames = POOL ** len(self.blocks)
        """Frames below which pooling leaves nothing to average."""

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
