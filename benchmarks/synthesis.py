"""Speech that nobody said, for measuring without recordings: vowels and hisses in syllables."""

from __future__ import annotations

import numpy as np

from mcspex_cli.audio import Samples

VOWELS_HZ = np.array(
    [[270, 2290, 3010], [530, 1840, 2480], [730, 1090, 2440], [570, 840, 2410], [300, 870, 2240]]
)
"""The first three formants [vowel, formant] of a man's ee, e, a, o and oo (Peterson, Barney)."""

_WIDTHS_HZ = np.array([90, 120, 180])
_LEVEL = 0.08
"""Root mean square of a loud syllable: the sum of two voices does not clip."""


def talk(voice: int, take: int, seconds: float, rate_hz: int) -> Samples:
    """Have a voice talk for a while: the same numbers, the same samples.

    Args:
        voice: who; its pitch and the length of its vocal tract.
        take: what is said, and how.
        seconds: for how long; memory beyond the result's does not grow with it.
        rate_hz: the sample rate.

    Returns:
        [sample], syllables of -22 to -25 dBFS with pauses between.
    """
    rng = np.random.default_rng((voice, take))
    said = np.zeros(round(seconds * rate_hz), np.float32)
    at = 0
    while at < len(said):
        if rng.random() < 0.3:
            at = _put(said, at, _hiss(rng, round(rng.uniform(0.04, 0.09) * rate_hz)))
        length = round(rng.uniform(0.12, 0.32) * rate_hz)
        at = _put(said, at, _vowel(rng, voice, length, rate_hz))
        pause_s = rng.uniform(0.15, 0.5) if rng.random() < 0.2 else rng.uniform(0, 0.05)
        at += round(pause_s * rate_hz)
    return said


def scene(seconds: float, rate_hz: int) -> tuple[Samples, Samples]:
    """A mixture [sample] of two voices, and five seconds of what the first says elsewhere."""
    mixture = talk(0, 0, seconds, rate_hz)
    mixture += talk(1, 0, seconds, rate_hz)
    return mixture, talk(0, 1, 5.0, rate_hz)


def _put(said: Samples, at: int, sound: Samples) -> int:
    """Lay a sound at a place, cut where `said` ends; where it ends itself."""
    part = said[at : at + len(sound)]
    part[:] = sound[: len(part)]
    return at + len(sound)


def _vowel(rng: np.random.Generator, voice: int, length: int, rate_hz: int) -> Samples:
    """A syllable's voiced part: a gliding pitch's harmonics under two vowels' formants."""
    place = 0.618 * voice % 1  # neighbours far apart
    semitones = np.linspace(rng.uniform(-3, 3), rng.uniform(-3, 3), length)
    pitch_hz = 95 * 2 ** (1.3 * place + semitones / 12)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    one, other = VOWELS_HZ[rng.integers(len(VOWELS_HZ), size=2)] * (1 + 0.2 * place)
    blend = np.linspace(0, 1, length)
    sound = np.zeros(length)
    for number in range(1, int(0.48 * rate_hz / pitch_hz.max())):
        gain = np.zeros(length)
        for start_hz, end_hz, width_hz in zip(one, other, _WIDTHS_HZ, strict=True):
            away = number * pitch_hz - (start_hz + (end_hz - start_hz) * blend)
            gain += 1 / (1 + (away / width_hz) ** 2)
        sound += gain * np.sin(number * phase + rng.uniform(0, 2 * np.pi)) / np.sqrt(number)
    return _shaped(rng, sound, 1.0)


def _hiss(rng: np.random.Generator, length: int) -> Samples:
    """A consonant: noise, the higher the louder."""
    return _shaped(rng, np.diff(rng.standard_normal(length + 1)), 0.2)


def _shaped(rng: np.random.Generator, sound: np.ndarray, share: float) -> Samples:
    """A sound that swells and fades, as loud as `share` of a syllable, or a little less."""
    sound *= np.sqrt(np.sin(np.pi * (np.arange(len(sound)) + 0.5) / len(sound)))
    loudness = share * _LEVEL * rng.uniform(0.7, 1)
    shaped: Samples = (sound * loudness / sound.std()).astype(np.float32)
    return shaped
