"""Two voices that nobody has, for the self-test: a model hears them as speech."""

from __future__ import annotations

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.synthesis import VOWELS_HZ

_WIDTHS_HZ = np.array([80, 110, 170])
_HIGHEST_HZ = 3800
_LEVEL = 0.08
"""Root mean square of a loud word: the sum of two voices does not clip."""

VOICES = {"low": (100.0, 1.0), "high": (210.0, 1.17)}
"""Pitch in Hz, and formants as multiples of a man's."""


def speak(voice: str, take: int, seconds: float, rate_hz: int) -> Samples:
    """Have one of `VOICES` say something: the same numbers, the same samples.

    Harmonics fall as those of a throat do, by 12 dB an octave, and glide through three vowels
    a word. `synthesis.talk` is brighter, and quicker to make, but models trained on people
    hardly tell its voices apart.

    Args:
        voice: of `VOICES`.
        take: what is said.
        seconds: for how long.
        rate_hz: the sample rate.

    Returns:
        [sample], words of -22 to -26 dBFS with pauses between.
    """
    pitch_hz, tract = VOICES[voice]
    rng = np.random.default_rng((round(pitch_hz), take))
    said = np.zeros(round(seconds * rate_hz), np.float32)
    at = 0
    while at < len(said):
        word = _word(rng, pitch_hz, VOWELS_HZ * tract, rate_hz)[: len(said) - at]
        said[at : at + len(word)] = word
        at += len(word)
        if rng.random() < 0.4:
            at += round(rng.uniform(0.1, 0.3) * rate_hz)
    return said


def _word(
    rng: np.random.Generator, pitch_hz: float, vowels_hz: np.ndarray, rate_hz: int
) -> Samples:
    """Three vowels in one breath, the pitch going up and down."""
    length = round(rng.uniform(0.2, 0.45) * rate_hz)
    along = np.linspace(0, 1, length)
    bends = rng.uniform((-2, 0, -4), (3, 4, 0))
    melody_hz = pitch_hz * 2 ** (np.interp(along, (0, 0.3, 1), bends) / 12)
    chosen = vowels_hz[rng.integers(len(vowels_hz), size=3)]
    formants_hz = np.array([np.interp(along, (0, 0.5, 1), track) for track in chosen.T])
    phase = 2 * np.pi * np.cumsum(melody_hz) / rate_hz
    sound = np.zeros(length)
    for number in range(1, int(min(_HIGHEST_HZ, 0.48 * rate_hz) / melody_hz.max())):
        ratio = number * melody_hz / formants_hz
        damped = _WIDTHS_HZ[:, None] / formants_hz * ratio
        gain = np.prod(np.hypot(1 - ratio**2, damped), axis=0) ** -1
        sound += gain * np.sin(number * phase) / number**2
    edge_s = np.minimum(along, 1 - along) * length / rate_hz
    sound *= np.minimum(1, edge_s / 0.03)
    word: Samples = (sound * _LEVEL * rng.uniform(0.6, 1) / sound.std()).astype(np.float32)
    return word
