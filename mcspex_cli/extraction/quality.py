"""How good a reference is: enough speech, of one voice, loud, clean and not clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.checks import level_db
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.speech import Activity, Levels, active, frame_levels_db, steady
from mcspex_cli.extraction.trimming import only_speech

LEAST_SPEECH_S = 1.5
"""Speech in all under which a voice is not followed well: at 1 s a decibel is lost, at 0.5 s
nearly all."""

MOST_CLIPPED = 0.01
LEAST_SNR_DB = 5.0
"""White noise 5 dB below the speech costs 0.2 dB, as loud as the speech 0.6 dB."""

LEAST_LEVEL_DB = -75.0
"""Speech below this has lost its detail in a 16-bit file; above, loudness is no matter."""

_FULL_SCALE = 0.995
"""Samples from here on count as clipped, if they are not alone."""

_CLIPPED_RUN = 3

_PART_S = 1.5
"""A voice is compared with itself over parts so long, or longer where there would be many."""

_MOST_PARTS = 16

_TWO_SIDES = 0.3
"""The beginning and the end of a clip are less alike only if two people speak: on dev speakers
1 of 40 clips of one person is, and so are 6 of 7 in which one follows the other."""

_TWO_PARTS = -0.05
"""The same for any two parts, which finds people who take turns."""


@dataclass(frozen=True)
class ReferenceQuality:
    """What can be said of one clip; all of it can be JSON."""

    path: str
    """The file, or the span of one: "meeting.wav 12.0-18.5 s"."""
    seconds: float
    """Of the whole clip."""
    used_s: float
    """What is left of them without long pauses: this is embedded."""
    speech_s: float
    level_db: float
    """Of the speech, dB of full scale; -120 without speech."""
    clipped: float
    """Share of the samples that are at full scale, in runs of 3 or more."""
    snr_db: float | None
    """Speech over what is heard in pauses, at most 60; None without pauses."""
    two_voices: bool | None
    """Whether parts of it sound like two people; None for a model that cannot tell, or under
    3 s of speech. Two people who speak at once are not noticed."""
    warning: str | None = None
    """What is worst about it, in a line."""


class Clipping:
    """Counts samples at full scale in a stream of blocks [1, sample]."""

    def __init__(self) -> None:
        self._clipped = self._samples = 0

    @property
    def share(self) -> float:
        """Of all samples so far."""
        return self._clipped / max(self._samples, 1)

    def through(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """The blocks as they are, counted; a run that crosses two may be missed."""
        for block in blocks:
            at_full = np.abs(block[0]) >= _FULL_SCALE
            edges = np.diff(np.concatenate(([0], at_full.astype(np.int8), [0])))
            runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
            self._clipped += int(runs[runs >= _CLIPPED_RUN].sum())
            self._samples += block.shape[1]
            yield block


def assess(
    name: str, samples: Samples, used: Samples, sample_rate_hz: int, clipped: float = 0.0
) -> ReferenceQuality:
    """Measure a clip.

    Args:
        name: what it is called.
        samples: [sample], the whole clip.
        used: [sample], what trimming left of it.
        sample_rate_hz: of both.
        clipped: the share of clipped samples, of `Clipping`.

    Returns:
        The quality but for what needs a model: see `judged`.
    """
    rate_hz = sample_rate_hz
    levels = frame_levels_db(samples, rate_hz)
    said = steady(active(levels), 0.05, 0.2)
    speech = _mean_db(levels[said])
    return ReferenceQuality(
        path=name,
        seconds=round(len(samples) / rate_hz, 3),
        used_s=round(len(used) / rate_hz, 3),
        speech_s=round(min(float(said.sum()) * 0.01, len(samples) / rate_hz), 3),
        level_db=round(speech, 1),
        clipped=round(clipped, 6),
        snr_db=_snr_db(levels, said, speech),
        two_voices=None,
    )


def judged(quality: ReferenceQuality, two_voices: bool | None) -> ReferenceQuality:
    """The quality with what `has_two_voices` said, and a warning if it is poor.

    A clip with little speech is none by itself: see `Voice.warnings`.
    """
    reason = None
    if two_voices:
        reason = "sounds like two voices. Give clips, or spans, of one alone."
    elif quality.clipped > MOST_CLIPPED:
        share = f"{100 * quality.clipped:.1f} %"
        reason = f"{share} of its samples are clipped. Record it with less gain."
    elif quality.snr_db is not None and quality.snr_db < LEAST_SNR_DB:
        reason = f"noise only {quality.snr_db:.0f} dB below the speech. Take a cleaner clip."
    elif quality.level_db < LEAST_LEVEL_DB:
        reason = f"very quiet ({quality.level_db:.0f} dB). Turn it up."
    warning = f"{quality.path}: {reason}" if reason else None
    return replace(quality, two_voices=two_voices, warning=warning)


def has_two_voices(used: Samples, engine: Engine) -> bool | None:
    """Whether two people speak one after the other, or in turns, in a clip [sample].

    Its speech is taken in parts of 1.5 s or more. What is before and behind is compared at
    every place, with and without the part there, which may have both; and so are any two parts.

    Returns:
        None with less than 3 s of speech, or a model without calibration.
    """
    if engine.calibration is None:
        return None
    speech = only_speech(used, engine.sample_rate_hz)
    count = min(_MOST_PARTS, int(len(speech) / (_PART_S * engine.sample_rate_hz)))
    if count < 2:
        return None
    centre = np.array(engine.calibration.centre, np.float32)
    parts = np.array_split(speech, count)
    voices = np.array([engine.embed([part]) - centre for part in parts])
    voices /= np.maximum(np.linalg.norm(voices, axis=1, keepdims=True), 1e-12)
    places = [(i, i + gap) for gap in (0, 1) for i in range(1, count - gap)]
    sides = min(_cosine(voices[:end].mean(0), voices[start:].mean(0)) for end, start in places)
    return sides < _TWO_SIDES or float((voices @ voices.T).min()) < _TWO_PARTS


def _snr_db(levels: Levels, said: Activity, speech_db: float) -> float | None:
    """Speech over noise, which both have; None under 0.2 s of pauses."""
    # Words fade: what is next to them is no pause yet.
    near = np.convolve(said, np.ones(11), "same")[: len(said)] > 0.5
    pauses = levels[~near]
    if len(pauses) < 20 or not said.any():
        return None
    noise_db = _mean_db(pauses)
    ratio = 10 ** ((speech_db - noise_db) / 10) - 1
    return round(min(60.0, level_db(max(ratio, 1e-3))), 1)


def _mean_db(levels: Levels) -> float:
    """The level of frames together; -120 of none."""
    return level_db(max(float(np.mean(10 ** (levels / 10))), 1e-12)) if len(levels) else -120.0


def _cosine(one: Samples, other: Samples) -> float:
    """Of two vectors."""
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
