"""Activity: when the target speaks, and the files that say so.

A frame of 10 ms has the target's speech where the estimate is as loud as speech in it, no more than
20 dB below the mixture (softer is a remnant of others), and in a segment in which the target is
present. Pauses under 0.5 s are filled, then speech under 0.3 s is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcspex_cli import files
from mcspex_cli.extraction.levels import (
    FRAME_S,
    FrameLevels,
    detect_speech,
    list_spans,
    smooth_activity,
)

if TYPE_CHECKING:
    from mcspex_cli.extraction.presence import PresenceResult, Segment

MIN_SHARE_DB = -20.0
MIN_SPEECH_S = 0.3
MIN_PAUSE_S = 0.5
"""Chosen on recordings of 90 s in which the target speaks at times among others."""


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
