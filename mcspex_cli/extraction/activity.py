"""Activity: when somebody speaks (voice activity detection, VAD), and the files that say so.

Speech is told by its level alone. A frame of 10 ms has the target's speech where the estimate is as
loud as speech in it, no more than 20 dB below the mixture (softer is a remnant of others), and in a
segment in which the target is present. Pauses under 0.5 s are filled, then speech under 0.3 s is
dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mcspex_cli import files

if TYPE_CHECKING:
    from mcspex_cli.audio import Samples
    from mcspex_cli.extraction.presence import PresenceResult, Segment

FrameLevels = npt.NDArray[np.float64]
"""dB of full scale [frame]."""

Activity = npt.NDArray[np.bool_]
"""Whether there is speech [frame]."""

FRAME_S = 0.01
"""Seconds of a frame."""

FLOOR_DB = -120.0
"""The level of digital silence."""

_FRAMES_PER_S = 100

_SILENT_DB = -90.0  # a recording whose loud frames are below this has no speech
_CUT_DB = 60.0
"""What is this far below the loud frames is neither speech nor a room's noise: it was cut out."""

_SOFTEST_DB = 35.0  # what is this far below the loud frames is no speech, however quiet the room
_CONTRAST_DB = 8.0
"""With less than this between its quiet and its loud parts, a recording has no pauses."""

_PAUSE_FRAMES = 20  # the shortest pause. Closures within words are shorter
_SMOOTHED_FRAMES = 5

MIN_SHARE_DB = -20.0
MIN_SPEECH_S = 0.3
MIN_PAUSE_S = 0.5
"""Chosen on recordings of 90 s in which the target speaks at times among others."""


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


@dataclass(frozen=True)
class ActivityReport:
    """What an activity file says of one mixture."""

    mixture: str
    """Its id or path."""
    file: str
    """What RTTM calls it."""
    speaker: str
    presence: PresenceResult
    spans: Sequence[tuple[float, float]]
    """When the target speaks: from and to, in seconds."""


def find_spans(
    results: Sequence[PresenceResult], gains_db: Sequence[float]
) -> list[tuple[float, float]]:
    """List when the target speaks, in any channel, as (start_s, end_s).

    Args:
        results: of the whole file, for each channel.
        gains_db: what brings the network's estimate to its level in the mixture [channel].
    """
    speaks = np.zeros(len(results[0].estimate_db), np.bool_)
    for result, gain_db in zip(results, gains_db, strict=True):
        if result.present is False:
            continue
        estimate_db = result.estimate_db + gain_db
        here = detect_speech(estimate_db) & (estimate_db > result.mixture_db + MIN_SHARE_DB)
        for segment in result.segments:
            if not segment.present:
                here[round(segment.start_s / FRAME_S) : round(segment.end_s / FRAME_S)] = False
        speaks |= here
    return list_spans(smooth_activity(speaks, MIN_SPEECH_S, MIN_PAUSE_S))


def share_of_speech(estimate_db: FrameLevels, mixture_db: FrameLevels) -> float | None:
    """The share of the mixture's speech in which the estimate is heard too.

    Args:
        estimate_db: [frame], at its level in the mixture.
        mixture_db: [frame].

    Returns:
        0 to 1; None without speech in the mixture.
    """
    speech = detect_speech(mixture_db)
    if not speech.any():
        return None
    left = detect_speech(estimate_db) & (estimate_db > mixture_db + MIN_SHARE_DB)
    return float(left[speech].mean())


def mute_gains(segments: Sequence[Segment], fade_s: float) -> tuple[list[float], list[float]]:
    """Points in time, in seconds, and the gains there that mute segments without the target."""
    kept = [float(not one.surely_absent) for one in segments]
    times, gains = [0.0], [kept[0]]
    for one, before, after in zip(segments, kept, kept[1:], strict=False):
        if before != after:
            times += [one.end_s - fade_s / 2, one.end_s + fade_s / 2]
            gains += [before, after]
    return times, gains


def write_activity(path: Path, report: ActivityReport) -> None:
    """Write a report as the file's suffix says, see `ACTIVITY_FORMATS`.

    Raises:
        OutputError: it cannot be written.
    """
    text = ACTIVITY_FORMATS[path.suffix.lower()](report)
    with files.whole(path) as partial:
        # File names may hold bytes that are not text.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _json(report: ActivityReport) -> str:
    result = report.presence
    document = {
        "mixture": report.mixture,
        "speaker": report.speaker,
        "presence": None if result.presence is None else round(result.presence, 4),
        "present": result.present,
        "frame_s": FRAME_S,
        "active_s": round(sum(end_s - start_s for start_s, end_s in report.spans), 2),
        "spans": [{"start_s": start_s, "end_s": end_s} for start_s, end_s in report.spans],
        "segments": [segment.to_dict() for segment in result.segments],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rttm(report: ActivityReport) -> str:
    """NIST's Rich Transcription Time Marked: a line for each span. Its names have no spaces."""
    file, speaker = ("_".join(name.split()) or "_" for name in (report.file, report.speaker))
    return "".join(
        f"SPEAKER {file} 1 {start_s:.3f} {end_s - start_s:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
        for start_s, end_s in report.spans
    )


def _srt(report: ActivityReport) -> str:
    """SubRip: a numbered block for each span, its text the speaker's name on one line."""
    speaker = " ".join(report.speaker.split())
    return "\n".join(
        f"{number}\n{_timestamp(start_s)} --> {_timestamp(end_s)}\n{speaker}\n"
        for number, (start_s, end_s) in enumerate(report.spans, 1)
    )


def _timestamp(seconds: float) -> str:
    """A time in SubRip: 00:01:02,345."""
    left, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, seconds_left = divmod(left, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds_left:02},{thousandths:03}"


ACTIVITY_FORMATS: dict[str, Callable[[ActivityReport], str]] = {
    ".json": _json,
    ".rttm": _rttm,
    ".srt": _srt,
}
"""The formats of activity files by their suffix."""
