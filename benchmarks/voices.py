"""Speech for tests and measuring without recordings of people: the voices of the examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples

VOICES = Path(__file__).parents[1] / "examples" / "voices"

LEVEL = 0.06
"""Root mean square of what a voice says; two of them do not clip together."""


def talk(voice: int, take: int, seconds: float, rate_hz: int) -> Samples:
    """What a voice says for a while: its clips, from number `take` on, again and again.

    Args:
        voice: who.
        take: with which clip the voice begins.
        seconds: for how long.
        rate_hz: the sample rate.

    Returns:
        [sample], at `LEVEL`.
    """
    folders = sorted(folder for folder in VOICES.iterdir() if folder.is_dir())
    clips = sorted(folders[voice % len(folders)].iterdir())
    parts = [audio.read(clip, rate_hz) for clip in clips]
    once = np.concatenate([*parts[take % len(parts) :], *parts[: take % len(parts)]])
    return np.resize(once * np.float32(LEVEL / once.std()), round(seconds * rate_hz))


def scene(seconds: float, rate_hz: int) -> tuple[Samples, Samples]:
    """A mixture [sample] of two voices, and five seconds of what the first says elsewhere."""
    mixture = talk(0, 0, seconds, rate_hz)
    mixture += talk(1, 0, seconds, rate_hz)
    return mixture, talk(0, 3, 5.0, rate_hz)
