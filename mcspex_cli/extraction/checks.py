"""Whether a signal is of any use to a network: long enough, and not silent."""

from __future__ import annotations

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError

LEAST_S = 0.3
"""Seconds below which neither a mixture nor a reference is of any use."""

SILENCE_DB = -90.0
"""RMS level, dB of full scale, below which a signal counts as silent."""


def check_signal(name: str, samples: Samples, sample_rate_hz: int) -> None:
    """Refuse a signal [sample] that no network could use.

    Raises:
        AudioError: it is shorter than 0.3 s or silent.
    """
    check_length(name, len(samples) / sample_rate_hz)
    check_level(name, float(np.mean(np.square(samples, dtype=np.float64))))


def check_length(name: str, seconds: float) -> None:
    """Refuse a signal of under 0.3 s.

    Raises:
        AudioError: as said.
    """
    if seconds < LEAST_S:
        raise AudioError(f"{name}: {seconds:.2f} s is too short. Give {LEAST_S} s or more.")


def check_level(name: str, mean_square: float) -> None:
    """Refuse a silent signal.

    Raises:
        AudioError: as said.
    """
    if level_db(mean_square) < SILENCE_DB:
        raise AudioError(f"{name}: is silent. Check the recording and its channels.")


def level_db(mean_square: float) -> float:
    """Level in dB of full scale."""
    return 10 * float(np.log10(max(mean_square, 1e-30)))
