"""Spans of a recording where one voice is alone, to take as references: "0:12-0:18.5"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.checks import LEAST_S, check_signal
from mcspex_cli.extraction.speech import active, frame_levels_db

_TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)"
_SPAN = re.compile(rf"\s*{_TIME}\s*-\s*{_TIME}\s*", re.ASCII)

_LONGEST_TEXT = 100

_SLACK_S = 0.1
"""What may lack at a span's end: the lengths that videos tell are approximate."""


@dataclass(frozen=True)
class Span:
    """A stretch of a recording."""

    start_s: float
    end_s: float

    def __str__(self) -> str:
        """For messages: "12.0-18.5 s"."""
        return f"{_plain(self.start_s)}-{_plain(self.end_s)} s"


def parse_span(text: str) -> Span:
    """Read a span: "12.0-18.5" in seconds, "0:12-0:18.5" or "1:02:03-1:02:09" with minutes.

    Raises:
        AudioError: it is no span, ends before it starts, or is shorter than 0.3 s.
    """
    found = _SPAN.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    start_s, end_s = (_seconds(found.groups()[i : i + 3]) for i in (0, 3)) if found else (None,) * 2
    if start_s is None or end_s is None:
        raise AudioError(
            f"{text[:_LONGEST_TEXT]!r}: is no span. Write it like 12.0-18.5 or 0:12-0:18.5."
        )
    if end_s <= start_s:
        raise AudioError(f"{text}: ends before it starts. Swap the two.")
    if round(end_s - start_s, 6) < LEAST_S:
        raise AudioError(f"{text}: {end_s - start_s:.2f} s is too short. Give {LEAST_S} s or more.")
    return Span(start_s, end_s)


def cut(
    path: Path, spans: Sequence[Span], sample_rate_hz: int, channel: str = "mix"
) -> list[tuple[str, Samples]]:
    """Cut spans out of a recording of any length; memory is that of the spans.

    Args:
        path: the recording, which is read up to the last span's end.
        spans: in any order; they may overlap.
        sample_rate_hz: of what is returned.
        channel: "mix" or a channel's number from 0; "all" means the mix.

    Returns:
        For each span "FILE 12.0-18.5 s" and its samples [sample].

    Raises:
        AudioError: the file cannot be read, ends before a span does, or a span is silent.
    """
    info = audio.probe(path)
    for span in spans:
        if span.end_s > info.seconds:
            raise AudioError(f"{path}: ends at {info.seconds:.2f} s, before the span {span} does.")
    native = _read(path, spans, info.sample_rate_hz, "mix" if channel == "all" else channel)
    clips = []
    for span, pieces in zip(spans, native, strict=True):
        cut_s = sum(piece.shape[1] for piece in pieces) / info.sample_rate_hz
        if cut_s < span.end_s - span.start_s - _SLACK_S:
            raise AudioError(f"{path}: its sound ends before the span {span} does.")
        resampler = audio.Resampler(info.sample_rate_hz, sample_rate_hz, 1)
        clip = np.concatenate(list(resampler.run(pieces)), axis=-1)[0]
        name = f"{path} {span}"
        check_signal(name, clip, sample_rate_hz)
        if not active(frame_levels_db(clip, sample_rate_hz)).any():
            raise AudioError(f"{name}: has no speech. Choose another span.")
        clips.append((name, clip))
    return clips


def _read(path: Path, spans: Sequence[Span], rate_hz: int, channel: str) -> list[list[Samples]]:
    """The blocks [1, sample] of each span at the file's own rate."""
    bounds = [(round(span.start_s * rate_hz), round(span.end_s * rate_hz)) for span in spans]
    found: list[list[Samples]] = [[] for _ in spans]
    at, last = 0, max((end for _, end in bounds), default=0)
    for block in audio.Reader(path, rate_hz, channel):
        for pieces, (start, end) in zip(found, bounds, strict=True):
            piece = block[:, max(0, start - at) : max(0, end - at)]
            if piece.size:
                pieces.append(piece.copy())
        at += block.shape[1]
        if at >= last:
            break
    return found


def _seconds(parts: Sequence[str | None]) -> float | None:
    """Hours, minutes and seconds as seconds; None where they are no time."""
    hours, minutes, seconds = (float(part or 0) for part in parts)
    if (parts[1] is not None and seconds >= 60) or (parts[0] is not None and minutes >= 60):
        return None
    return 3600 * hours + 60 * minutes + seconds


def _plain(seconds: float) -> str:
    """Seconds with no more digits than they have, but one."""
    whole, _, digits = f"{seconds:.3f}".rstrip("0").partition(".")
    return f"{whole}.{digits or '0'}"
