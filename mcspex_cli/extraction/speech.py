"""Where a signal has speech, by its levels.

Speech is told from pauses (voice activity detection, VAD) by its level alone.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from mcspex_cli.audio import SILENCE_DB, Samples

FRAME_S = 0.01
_FRAMES_PER_S = 100

FrameLevels = npt.NDArray[np.float64]
"""dB of full scale [frame]; of digital silence -120."""

Activity = npt.NDArray[np.bool_]
"""Whether there is speech [frame]."""


_CUT_DB = 60.0
"""Frames this far below the loud ones are neither speech nor noise: sound was cut out there."""

_CONTRAST_DB = 8.0
"""With less than this between its quiet and its loud parts, a recording has no pauses."""

_NOISE_RANGE_DB, _LOUD_FRAMES, _RARE_DB = 15.0, 200, 10.0
"""In a long recording, less than 5 % of the frames may have speech. The others are then noise,
whose range is smaller than that of speech, and the loudest 2 s are far above them."""

_SOFTEST_DB = 35.0  # what is this far below the loud frames is no speech, however quiet the room
_PAUSE_FRAMES = 20  # the shortest pause. Closures within words are shorter
_SMOOTHED_FRAMES = 5  # over which a level is averaged

_LONG_PAUSE_S, _BURST_S, _MARGIN_S = 1.0, 0.05, 0.25
"""What `find_pauses` takes for a pause, for no speech because it is too short, and for the ends of
words beside speech."""

_EVENED_S, _SOFT_DB = 0.7, 6.0
"""Speech is too soft where its level over so many seconds is this far below that of all speech."""

_BURST_DB, _BURST_MARGIN_FRAMES = 12.0, 10
"""A burst is this far above the louder part of speech. Its gain is held, and fades, over so many
frames on either side."""

_MOST_DB = 40.0  # by which soft speech is turned up

_MIN_SHARE_DB = -20.0
"""A frame of an estimate that is so far below its mixture is a remnant of other people."""


def frame_levels_db(samples: Samples, sample_rate_hz: int) -> FrameLevels:
    """Measure the mean-square level of every 10 ms of `samples` [..., sample].

    Frame k begins at k times 10 ms: where these are not a whole number of samples, frames differ
    by one sample. The last frame may be shorter.

    Returns:
        [..., frame], dB of full scale, no less than -120.
    """
    length = samples.shape[-1]
    if not length:
        return np.zeros(samples.shape)
    frames = -(-length * _FRAMES_PER_S // sample_rate_hz)
    starts = np.arange(frames) * sample_rate_hz // _FRAMES_PER_S
    energies = np.add.reduceat(np.square(samples, dtype=np.float64), starts, axis=-1)
    return _levels_db(energies / np.diff(np.append(starts, length)))


def detect_speech(levels_db: FrameLevels) -> Activity:
    """Tell frames [frame] with speech from frames without, by a threshold that fits the recording.

    The threshold lies a quarter of the way from the level of the quietest 0.2 s to that of the
    loud frames; in a quiet room, 35 dB below the loud frames. Digital silence is never speech.
    Speech that is rare is what stands out of the noise.

    A recording without pauses is active throughout. So are constant noise and music, which
    cannot be told from it by their level. A silent recording is active nowhere.
    """
    levels_db = np.asarray(levels_db, np.float64)
    audible = levels_db[levels_db > SILENCE_DB]
    if not len(audible):
        return np.zeros(len(levels_db), np.bool_)
    loud_db = float(np.percentile(audible, 95))
    sounding = levels_db > max(SILENCE_DB, loud_db - _CUT_DB)
    powers = 10 ** (levels_db / 10)
    shortest = min(_PAUSE_FRAMES, int(sounding.sum()))
    pauses = np.convolve(powers[sounding], np.ones(shortest) / shortest, "valid")
    quiet_db = float(_levels_db(pauses.min()))
    loudest_db = float(np.sort(audible)[-_LOUD_FRAMES:][0])
    if loud_db - quiet_db < _NOISE_RANGE_DB and loudest_db - loud_db > _RARE_DB:
        quiet_db, loud_db = loud_db, loudest_db  # speech is rare: these were both noise
    if loud_db - quiet_db < _CONTRAST_DB:
        return sounding
    threshold_db = max(quiet_db + max(4.0, (loud_db - quiet_db) / 4), loud_db - _SOFTEST_DB)
    # Every frame is averaged with its neighbours, so that no single one decides.
    window = np.ones(min(_SMOOTHED_FRAMES, len(levels_db)))
    neighbours = np.convolve(np.ones(len(levels_db)), window, "same")
    smoothed_db = _levels_db(np.convolve(powers, window, "same") / neighbours)
    return sounding & (smoothed_db > threshold_db)


def find_pauses(samples: Samples, sample_rate_hz: int) -> Activity:
    """Tell which samples [sample] are in pauses of 1 s or more, 0.25 s beside speech left out."""
    speech = detect_speech(frame_levels_db(samples, sample_rate_hz))
    pauses = smooth_activity(~speech, _LONG_PAUSE_S, _BURST_S)
    if pauses.any():
        margin = np.ones(2 * round(_MARGIN_S / FRAME_S) + 1)
        pauses = np.convolve(~pauses, margin, "same") < 0.5
    return pauses[np.arange(len(samples)) * _FRAMES_PER_S // sample_rate_hz]


def even_gains_db(levels_db: FrameLevels) -> FrameLevels:
    """Gains, in dB, that turn soft passages up and bursts down, such as a cough or a slammed door.

    They are 0 for speech that is about equally loud throughout. In pauses they are those of the
    speech beside them. `levels_db` and the gains are [frame].
    """
    is_speech = detect_speech(levels_db)
    if not is_speech.any():
        return np.zeros_like(levels_db)
    loudest_db = np.percentile(levels_db[is_speech], 75) + _BURST_DB
    soft_gains_db = _soft_gains_db(np.minimum(levels_db, loudest_db), is_speech)
    return soft_gains_db - _held(np.maximum(levels_db - loudest_db, 0))


def _soft_gains_db(levels_db: FrameLevels, is_speech: Activity) -> FrameLevels:
    """Gains that turn speech up where its level, over `_EVENED_S`, is too far below its mean."""
    powers = 10 ** (levels_db / 10)
    half = round(_EVENED_S / FRAME_S / 2)
    window = np.hanning(2 * half + 3)[1:-1]
    sums, counts = (
        np.convolve(values, window)[half : half + len(levels_db)]
        for values in (powers * is_speech, is_speech)
    )
    frames, near = np.arange(len(levels_db)), np.flatnonzero(counts > 1e-6)
    local_db = np.interp(frames, near, _levels_db(sums[near] / counts[near]))
    mean_db = float(_levels_db(powers[is_speech].mean()))
    return np.clip(mean_db - _SOFT_DB - local_db, 0, _MOST_DB)


def _held(excess_db: FrameLevels) -> FrameLevels:
    """What bursts have too much, held beside them and faded."""
    width = 2 * _BURST_MARGIN_FRAMES + 1
    padded_db = np.pad(excess_db, 2 * _BURST_MARGIN_FRAMES, mode="edge")
    held_db = sliding_window_view(padded_db, width).max(axis=1)
    fade = np.hanning(width + 2)[1:-1]
    return np.convolve(held_db, fade / fade.sum(), "valid")


def detect_audible(estimate_db: FrameLevels, mixture_db: FrameLevels) -> Activity:
    """Tell frames [frame] in which an estimate has speech from those with pauses and remnants.

    Remnants are far softer than the mixture there. The estimate is at its level in the mixture.
    """
    return detect_speech(estimate_db) & (estimate_db > mixture_db + _MIN_SHARE_DB)


def share_of_speech(estimate_db: FrameLevels, mixture_db: FrameLevels) -> float | None:
    """The share of the mixture's speech [frame] in which the estimate is heard too, 0 to 1.

    The estimate is at its level in the mixture. Without speech in the mixture it is None.
    """
    speech = detect_speech(mixture_db)
    return float(detect_audible(estimate_db, mixture_db)[speech].mean()) if speech.any() else None


def smooth_activity(activity: Activity, min_speech_s: float, min_pause_s: float) -> Activity:
    """Fill pauses shorter than `min_pause_s`, then drop speech shorter than `min_speech_s`.

    What comes before the first and after the last speech of `activity` [frame] is not a pause.
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


def _runs(activity: Activity) -> list[tuple[int, int]]:
    """The stretches of True, as (first frame, frame behind the last)."""
    edges = np.diff(np.concatenate(([0], np.asarray(activity, np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _levels_db(mean_squares: npt.ArrayLike) -> FrameLevels:
    return 10 * np.log10(np.maximum(mean_squares, 1e-12))
