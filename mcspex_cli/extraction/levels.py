"""How loud an estimate is to be: measured while it is made, decided when it is whole; pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.checks import level_db

PEAK = 0.891
"""Highest sample of "peak", and of what would clip (-1 dBFS): room for a player's resampler."""
FULL_SCALE = 0.999
"""Highest sample that is left as it is."""

LUFS = (-70.0, 0.0)
"""The loudness that may be asked for."""


@dataclass(frozen=True)
class Level:
    """A level policy: "match", "peak", "raw", or "lufs" with its number."""

    kind: str
    lufs: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Level:
        """Read "match", "peak", "raw" or "lufs=-23".

        Raises:
            ValueError: it is none of them.
        """
        if text in ("match", "peak", "raw"):
            return cls(text)
        kind, _, number = text.partition("=")
        try:
            lufs = float(number) if kind == "lufs" else np.nan
        except ValueError:
            lufs = np.nan
        if not LUFS[0] <= lufs <= LUFS[1]:
            raise ValueError(f"level {text!r} is none of match, peak, raw and lufs=-70 to lufs=0")
        return cls(kind, lufs)

    def factor(self, peak: float, loudness_lufs: float, *, clips: bool) -> tuple[float, bool]:
        """What to multiply a whole file by, and whether that is less than was asked for.

        Args:
            peak: its highest absolute sample.
            loudness_lufs: its loudness, for "lufs".
            clips: whether the file format cannot hold samples over full scale; then even "raw" is
                turned down.
        """
        wanted = 1.0
        if self.kind == "peak" and peak > 0:
            return PEAK / peak, False
        if self.kind == "lufs" and np.isfinite(loudness_lufs):
            wanted = 10 ** ((self.lufs - loudness_lufs) / 20)
        if wanted * peak > FULL_SCALE and (clips or self.kind != "raw"):
            return PEAK / peak, True
        return wanted, False


class Match:
    """How loud a voice is in its mixture, by least squares for each channel.

    The products <m, m>, <e, e> and <m, e> are of all blocks so far, at the network's rate.
    """

    def __init__(self, channels: int) -> None:
        self._samples = 0
        self._mixture, self._estimate, self._shared = np.zeros((3, channels))

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Take account of a block [channel, sample] of both."""
        e, m = estimate.astype(np.float64), mixture.astype(np.float64)
        self._samples += e.shape[1]
        self._mixture += np.square(m).sum(axis=1)
        self._estimate += np.square(e).sum(axis=1)
        self._shared += (e * m).sum(axis=1)

    def mixture_mean_square(self) -> float:
        """Mean square of the loudest channel."""
        return float(self._mixture.max()) / max(1, self._samples)

    def gain(self) -> npt.NDArray[np.float64]:
        """What to multiply the network's estimate by [channel]; 1 where that is silent."""
        gain = np.ones_like(self._estimate)
        np.divide(self._shared, self._estimate, out=gain, where=self._estimate > 0)
        return gain


def gain_db(gain: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Gains [channel] in dB."""
    return tuple(round(level_db(float(one) ** 2), 2) for one in gain)
