"""When the voice speaks: from the estimate's level, beside the mixture's, and from presence.

Frames of 10 ms count as speech where the estimate is as loud as its speech (`speech.active`), no
more than `LEAST_SHARE_DB` below the mixture (softer is what is left of others), and in a segment in
which the voice is there. Pauses under `LEAST_PAUSE_S` are filled, then bursts under
`LEAST_SPEECH_S` dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mcspex_cli import files
from mcspex_cli.extraction import speech
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.listening import Heard
from mcspex_cli.extraction.speech import FRAME_S

LEAST_SHARE_DB = -20.0
LEAST_SPEECH_S = 0.3
LEAST_PAUSE_S = 0.5
"""Chosen on recordings of 90 s in which the voice speaks at times among others."""

MUTED_BELOW = 0.25
"""Presence under which a segment is muted: one with the voice is a greater loss than one without
is a nuisance, so it has to be surer than either."""

Span = tuple[float, float]
"""From and to, in seconds."""


def find_spans(heard: Heard, gain_db: float) -> list[Span]:
    """List when the voice speaks, of a network's estimate that `gain_db` brings to its level."""
    if heard.present is False:
        return []
    estimate_db = heard.estimate_db + gain_db
    speaks = speech.active(estimate_db) & (estimate_db > heard.mixture_db + LEAST_SHARE_DB)
    for segment in heard.segments:
        if not segment.present:
            speaks[round(segment.start_s / FRAME_S) : round(segment.end_s / FRAME_S)] = False
    return speech.spans(speech.steady(speaks, LEAST_SPEECH_S, LEAST_PAUSE_S))


def gate(heard: Heard, fade_s: float) -> tuple[list[float], list[float]]:
    """Points in time, in seconds, and gains there that silence segments without the voice."""
    kept = [float(one.presence >= MUTED_BELOW) for one in heard.segments]
    times, gains = [0.0], [kept[0]]
    for one, before, after in zip(heard.segments, kept, kept[1:], strict=False):
        if before != after:
            times += [one.end_s - fade_s / 2, one.end_s + fade_s / 2]
            gains += [before, after]
    return times, gains


def write(job: Job, heard: Heard, spans: Sequence[Span]) -> None:
    """Write when the voice speaks to the job's file: JSON, RTTM or SubRip by its suffix.

    Raises:
        OutputError: it cannot be written.
    """
    if job.activity is None:
        return
    suffix = job.activity.suffix.lower()
    text = _json(job, heard, spans) if suffix == ".json" else FORMS[suffix](job, spans)
    with files.whole(job.activity) as partial:
        # Names of files may have bytes that are no text.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _json(job: Job, heard: Heard, spans: Sequence[Span]) -> str:
    """All there is to know."""
    presence = None if heard.presence is None else round(heard.presence, 4)
    document = {
        "mixture": job.name,
        "speaker": job.speaker,
        "presence": presence,
        "present": heard.present,
        "frame_s": FRAME_S,
        "active_s": round(sum(end_s - start_s for start_s, end_s in spans), 2),
        "spans": [{"start_s": start_s, "end_s": end_s} for start_s, end_s in spans],
        "segments": [
            {
                "start_s": one.start_s,
                "end_s": one.end_s,
                "presence": round(one.presence, 4),
                "present": one.present,
            }
            for one in heard.segments
        ],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rttm(job: Job, spans: Sequence[Span]) -> str:
    """NIST's Rich Transcription Time Marked: a line per span; names have no spaces in it."""
    file, speaker = (
        "_".join(name.split()) or "_" for name in (job.id or job.mixture.stem, job.speaker)
    )
    return "".join(
        f"SPEAKER {file} 1 {start_s:.3f} {end_s - start_s:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
        for start_s, end_s in spans
    )


def _srt(job: Job, spans: Sequence[Span]) -> str:
    """SubRip: a numbered block per span with the speaker's name, on one line, as its text."""
    speaker = " ".join(job.speaker.split())
    return "\n".join(
        f"{number}\n{_clock(start_s)} --> {_clock(end_s)}\n{speaker}\n"
        for number, (start_s, end_s) in enumerate(spans, 1)
    )


def _clock(seconds: float) -> str:
    """A time as SubRip has it, 00:01:02,345."""
    left, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, seconds_left = divmod(left, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds_left:02},{thousandths:03}"


FORMS = {".rttm": _rttm, ".srt": _srt}
"""What is written beside JSON, by its suffix."""
