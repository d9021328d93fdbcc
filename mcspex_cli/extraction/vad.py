"""Voice activity detection: where in a recording somebody speaks, by its level alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples

FrameLevels = npt.NDArray[np.float64]
"""dB of full scale [frame]."""

Activity = npt.NDArray[np.bool_]
"""Whether there is speech [frame]."""

FRAME_S = 0.01
"""Seconds of a frame."""

FLOOR_DB = -120.0
"""The level of digital silence."""

_FRAMES_PER_S = 100

_SILENT_DB = -90.0
"""A recording whose loud frames are below this has no speech."""

_CUT_DB = 60.0
"""What is this far below the loud frames is neither speech nor a room's noise: it was cut out."""

_SOFTEST_DB = 35.0
"""What is this far below the loud frames is no speech, however quiet the room."""

_CONTRAST_DB = 8.0
"""With less than this between its quiet and its loud parts, a recording has no pauses."""

_PAUSE_FRAMES = 20
"""The shortest pause. Closures within words are shorter."""

_SMOOTHED_FRAMES = 5


def frame_levels_db(samples: Samples, sample_rate_hz: int) -> FrameLevels:
    """Measure the mean-square level of every 10 ms of `samples` [sample].

    Returns:
        [frame], dB of full scale, no less than -120. The last frame may be shorter. Without
        samples there are no frames. Where 10 ms are not a whole number of samples, frames differ
        by one sample, so that frame k begins at k times 10 ms whatever the rate.
    """
    frames = -(-len(samples) * _FRAMES_PER_S // sample_rate_hz)
    if not frames:
        return np.zeros(0)
    starts = np.arange(frames) * sample_rate_hz // _FRAMES_PER_S
    energies = np.add.reduceat(np.square(samples, dtype=np.float64), starts)
    return _levels_db(energies / np.diff(np.append(starts, len(samples))))


def detect_speech(levels_db: FrameLevels) -> Activity:
    """Tell frames with speech from frames without, by a threshold that fits the recording.

    The threshold lies a quarter of the way from the level of the quietest 0.2 s to that of the
    loud frames; in a quiet room, 35 dB below the loud frames. Digital silence is never speech.

    A recording without pauses is active throughout. So are constant noise and music, which
    cannot be told from it by their level. A silent recording is active nowhere.

    Args:
        levels_db: [frame], from `frame_levels_db`.

    Returns:
        [frame].
    """
    levels_db = np.asarray(levels_db, np.float64)
    audible = levels_db[levels_db > _SILENT_DB]
    if not len(audible):
        return np.zeros(len(levels_db), np.bool_)
    loud_db = float(np.percentile(audible, 95))
    sounding = levels_db > max(_SILENT_DB, loud_db - _CUT_DB)
    quiet_db = _quietest_db(levels_db[sounding])
    if loud_db - quiet_db < _CONTRAST_DB:
        return sounding
    threshold_db = max(quiet_db + max(4.0, (loud_db - quiet_db) / 4), loud_db - _SOFTEST_DB)
    # Every frame is averaged with its neighbours, so that no single one decides.
    window = np.ones(min(_SMOOTHED_FRAMES, len(levels_db)))
    powers = np.convolve(10 ** (levels_db / 10), window, "same")
    smoothed_db = _levels_db(powers / np.convolve(np.ones(len(levels_db)), window, "same"))
    activity: Activity = sounding & (smoothed_db > threshold_db)
    return activity


def smooth_activity(activity: Activity, min_speech_s: float, min_pause_s: float) -> Activity:
    """Fill pauses shorter than `min_pause_s`, then drop speech shorter than `min_speech_s`.

    What comes before the first and after the last speech is not a pause.

    Args:
        activity: [frame].
        min_speech_s: the shortest speech to keep.
        min_pause_s: the shortest pause to keep.

    Returns:
        [frame], a new array.
    """
    result = np.array(activity, np.bool_)
    # A frame more or less by rounding does not count.
    shortest_pause, shortest_speech = (s / FRAME_S - 1e-7 for s in (min_pause_s, min_speech_s))
    for (_, end), (start, _) in pairwise(_runs(result)):
        if start - end < shortest_pause:
            result[end:start] = True
    for start, end in _runs(result):
        if end - start < shortest_speech:
            result[start:end] = False
    return result


def list_spans(activity: Activity) -> list[tuple[float, float]]:
    """List the stretches of speech in `activity` [frame] as (start_s, end_s), in order."""
    return [(round(start * FRAME_S, 2), round(end * FRAME_S, 2)) for start, end in _runs(activity)]


def _quietest_db(levels_db: FrameLevels) -> float:
    """The level of the quietest 0.2 s, or of everything if there is less."""
    frames = min(_PAUSE_FRAMES, len(levels_db))
    powers = np.convolve(10 ** (levels_db / 10), np.ones(frames) / frames, "valid")
    return float(_levels_db(powers.min()))


def _runs(activity: Activity) -> list[tuple[int, int]]:
    """The stretches of True, as (first frame, frame behind the last)."""
    edges = np.diff(np.concatenate(([0], np.asarray(activity, np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _levels_db(mean_squares: npt.ArrayLike) -> FrameLevels:
    levels: FrameLevels = 10 * np.log10(np.maximum(mean_squares, 10 ** (FLOOR_DB / 10)))
    return levels
