"""From the extractor's features to speech: a mask per scale, then samples per scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcspex_cli.model.encoder import Scales, concatenated


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
        corrected: Tensor = own + self.interact(own)
        return corrected


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
        coarse = functional.relu(concatenated((middle, long)))
        return concatenated((short + self.to_short(coarse), middle, long))


INTERMGS: dict[str, type[ScaleInterMG]] = {
    "mixing": MixingScaleInterMG,
    "cascade": CascadeScaleInterMG,
}


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
