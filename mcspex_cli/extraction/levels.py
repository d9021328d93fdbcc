"""How loud an estimate is to be: measured while it is made, decided when it is whole; pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.checks import SILENCE_DB, level_db

PEAK = 0.891
"""Highest sample of "peak", and of what would clip (-1 dBFS): room for a player's resampler."""
FULL_SCALE = 0.999
"""Highest sample that is left as it is."""


@dataclass
class Loudness:
    """What is measured of an estimate, and the gain [channel] that follows from it.

    The products <m, m>, <e, e> and <m, e> are at the network's rate, |e|'s peak at the
    file's; each is [channel].
    """

    channels: int
    true_level: bool
    """Whether the network has learnt how loud a voice is."""
    samples: int = 0
    limited: bool = False
    """Whether the level asked for would have clipped, so that all was turned down."""

    def __post_init__(self) -> None:
        self.mixture, self.estimate, self.shared, self.peak = np.zeros((4, self.channels))
        self.gain = np.ones(self.channels)

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Take account of a block [channel, sample] of both, at the network's rate."""
        e, m = estimate.astype(np.float64), mixture.astype(np.float64)
        self.samples += e.shape[1]
        self.mixture += np.square(m).sum(axis=1)
        self.estimate += np.square(e).sum(axis=1)
        self.shared += (e * m).sum(axis=1)

    def add_peak(self, estimate: Samples) -> None:
        """Take account of a block [channel, sample] at the file's rate."""
        if estimate.shape[1]:
            self.peak = np.maximum(self.peak, np.abs(estimate).max(axis=1))

    def mixture_mean_square(self) -> float:
        """Mean square of the loudest channel."""
        return float(self.mixture.max()) / max(1, self.samples)

    def decide(self, level: str, *, clips: bool) -> None:
        """Set the gain that a policy of `LEVELS` asks for, less what would clip, if it can."""
        if level == "match" and not self.true_level:
            audible = self.estimate > 0
            np.divide(self.shared, self.estimate, out=self.gain, where=audible)
        loudest = float((np.abs(self.gain) * self.peak).max())
        self.limited = level != "peak" and loudest > FULL_SCALE and (clips or level != "raw")
        if self.limited or (level == "peak" and loudest > 0):
            self.gain *= PEAK / loudest

    def gain_db(self) -> tuple[float, ...]:
        """The gain of each channel."""
        return tuple(round(level_db(float(gain) ** 2), 2) for gain in self.gain)

    def is_silent(self) -> bool:
        """Whether nothing is left to hear."""
        return bool((self.peak * np.abs(self.gain)).max() < 10 ** (SILENCE_DB / 20))
