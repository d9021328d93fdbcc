"""Where in a recording somebody speaks, by its level alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples

Levels = npt.NDArray[np.float64]
"""dB of full scale [frame]."""

Activity = npt.NDArray[np.bool_]
"""Whether there is speech [frame]."""

FRAME_S = 0.01
"""Seconds of a frame."""

_FRAMES_PER_S = 100

FLOOR_DB = -120.0
"""The level of digital silence."""

_SILENT_DB = -90.0
"""A recording whose loud frames are below this has no speech."""

_NEVER_DB = 60.0
"""So far below the loud frames there is no speech, and no room's noise either: it is cut audio."""

_LEAST_DB = 35.0
"""So far below the loud frames there is no speech, however quiet the room."""

_CONTRAST_DB = 8.0
"""Less than this between the quiet and the loud parts is no pause."""

_QUIET_FRAMES = 20
"""A pause is at least so long; shorter are the closures within words."""

_SMOOTH_FRAMES = 5


def frame_levels_db(samples: Samples, sample_rate_hz: int) -> Levels:
    """Measure the mean-square level of every 10 ms of `samples` [sample].

    Returns:
        [frame], dB of full scale, no less than -120; the last frame may be shorter. Without
        samples there are no frames. Where 10 ms are no whole samples, frames differ by one, so
        that frame k begins at 10 ms times k whatever the rate.
    """
    frames = -(-len(samples) * _FRAMES_PER_S // sample_rate_hz)
    starts = np.arange(frames) * sample_rate_hz // _FRAMES_PER_S
    if not len(starts):
        return np.zeros(0)
    energies = np.add.reduceat(np.square(samples, dtype=np.float64), starts)
    lengths = np.diff(np.append(starts, len(samples)))
    levels: Levels = _db(energies / lengths)
    return levels


def active(levels_db: Levels) -> Activity:
    """Tell frames with speech from those without, by a threshold that fits the recording.

    It lies between the level of the quietest 0.2 s and that of the loud frames, a quarter of
    the way up; in a quiet room 35 dB below the loud frames. Digital silence is never speech.

    A recording without pauses is active throughout. So is constant noise, which its level
    does not tell from that; and music. A silent recording is active nowhere.

    Args:
        levels_db: [frame], of `frame_levels_db`.

    Returns:
        [frame].
    """
    levels_db = np.asarray(levels_db, np.float64)
    nowhere = np.zeros(len(levels_db), np.bool_)
    heard = levels_db[levels_db > _SILENT_DB]
    if not len(heard):
        return nowhere
    loud_db = float(np.percentile(heard, 95))
    sounding = levels_db > max(_SILENT_DB, loud_db - _NEVER_DB)
    quiet_db = _quiet_db(levels_db[sounding])
    if loud_db - quiet_db < _CONTRAST_DB:
        return sounding
    threshold_db = max(quiet_db + max(4.0, (loud_db - quiet_db) / 4), loud_db - _LEAST_DB)
    above: Activity = sounding & (_smooth(levels_db, _SMOOTH_FRAMES) > threshold_db)
    return above


def steady(active: Activity, least_on_s: float, least_off_s: float) -> Activity:
    """Fill gaps shorter than `least_off_s` between speech, then drop bursts under `least_on_s`.

    What is before the first and after the last speech is no gap.

    Args:
        active: [frame].
        least_on_s: the shortest speech that is kept.
        least_off_s: the shortest pause that is.

    Returns:
        [frame], a new array.
    """
    result = np.array(active, np.bool_)
    runs = _runs(result)
    for (_, end), (start, _) in pairwise(runs):
        if _shorter(start - end, least_off_s):
            result[end:start] = True
    for start, end in _runs(result):
        if _shorter(end - start, least_on_s):
            result[start:end] = False
    return result


def spans(active: Activity) -> list[tuple[float, float]]:
    """List the stretches of speech in `active` [frame] as (start_s, end_s), in order."""
    return [(round(start * FRAME_S, 2), round(end * FRAME_S, 2)) for start, end in _runs(active)]


def _quiet_db(levels_db: Levels) -> float:
    """The level of the quietest 0.2 s; of all, if there is no more."""
    if len(levels_db) <= _QUIET_FRAMES:
        return float(_db(_power(levels_db).mean()))
    window = np.ones(_QUIET_FRAMES) / _QUIET_FRAMES
    return float(_db(np.convolve(_power(levels_db), window, "valid").min()))


def _smooth(levels_db: Levels, frames: int) -> Levels:
    """The level of every frame with its neighbours, so that no single one decides."""
    window = np.ones(min(frames, len(levels_db)))
    power = np.convolve(_power(levels_db), window, "same")
    levels: Levels = _db(power / np.convolve(np.ones(len(levels_db)), window, "same"))
    return levels


def _runs(active: Activity) -> list[tuple[int, int]]:
    """The stretches of True, as (first frame, frame behind the last)."""
    edges = np.diff(np.concatenate(([0], np.asarray(active, np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _shorter(frames: int, seconds: float) -> bool:
    """Whether frames are less than a time; a frame more or less by rounding is none."""
    return frames * FRAME_S < seconds - 1e-9


def _power(levels_db: Levels) -> Levels:
    """Mean squares of levels."""
    powers: Levels = 10 ** (levels_db / 10)
    return powers


def _db(mean_square: npt.ArrayLike) -> Levels:
    """Levels of mean squares."""
    levels: Levels = 10 * np.log10(np.maximum(mean_square, 10 ** (FLOOR_DB / 10)))
    return levels
