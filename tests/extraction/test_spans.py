"""Spans: as people write them, and cut out of files without reading those whole."""

from __future__ import annotations

import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio, decoding
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.spans import Span, cut, parse_span
from tests.conftest import RATE_HZ, buzz


@pytest.mark.parametrize(
    ("text", "start_s", "end_s"),
    [
        ("12.0-18.5", 12, 18.5),
        ("0:12-0:18.5", 12, 18.5),
        ("1:02:03-1:02:09", 3723, 3729),
        ("90 - 2:00", 90, 120),
        ("0-0.3", 0, 0.3),
    ],
)
def test_spans_are_read(text: str, start_s: float, end_s: float) -> None:
    assert parse_span(text) == Span(start_s, end_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((t, "is no span") for t in ("", "12", "-3-5", "a-b", "1:75-2:00", "1:60:00-1:60:09")),
        *((t, "is no span") for t in ("1e3-2e3", "nan-5", "٣-٩", "1-2-3", "9" * 500)),
        ("5-4", "5-4: ends before it starts"),
        ("5-5", "ends before it starts"),
        ("5-5.2", r"0.20 s is too short. Give 0.3 s"),
    ],
)
def test_what_is_no_span_is_refused(text: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        parse_span(text)


def test_spans_are_shown_in_seconds() -> None:
    assert str(parse_span("0:12-0:18.5")) == "12.0-18.5 s"
    assert str(Span(0.125, 3600)) == "0.125-3600.0 s"


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    """25 s, two channels at 16 kHz: a voice on the left, from 0 to 5 s silence."""
    sound = np.repeat(buzz(120, 25), 2)
    sound[: 5 * 16000] = 0
    path = tmp_path / "meeting.wav"
    audio.write(path, np.stack([sound, 0 * sound]), 16000)
    return path


def test_a_cut_is_that_part_of_the_file(meeting: Path) -> None:
    whole = audio.read(meeting, RATE_HZ)
    spans = [Span(8, 12.5), Span(6, 9)]
    (name, first), (_, second) = cut(meeting, spans, RATE_HZ)
    assert name == f"{meeting} 8.0-12.5 s"
    assert (len(first), len(second)) == (36000, 24000)
    assert first[800:-800] == pytest.approx(whole[64800:99200], abs=1e-4)
    assert second[800:-800] == pytest.approx(whole[48800:71200], abs=1e-4)
    ((_, left),) = cut(meeting, spans[:1], RATE_HZ, "0")
    assert left == pytest.approx(2 * first, abs=1e-4)


@pytest.mark.parametrize(
    ("span", "channel", "message"),
    [
        (Span(20, 25.5), "mix", r"meeting.wav: ends at 25.00 s, before the span 20.0-25.5 s does"),
        (Span(1, 3), "mix", r"meeting.wav 1.0-3.0 s: is silent"),
        (Span(8, 9), "1", r"meeting.wav 8.0-9.0 s: is silent"),
        (Span(8, 9), "2", "has no channel 2"),
    ],
)
def test_spans_that_cannot_be_used(meeting: Path, span: Span, channel: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        cut(meeting, [span], RATE_HZ, channel)


@pytest.mark.skipif(decoding.programs() is None, reason="ffmpeg is not installed")
def test_a_span_behind_the_sound_of_a_longer_video_is_refused(tmp_path: Path) -> None:
    audio.write(tmp_path / "said.wav", buzz(120, 3), RATE_HZ)
    path = tmp_path / "talk.mkv"
    made = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5", "-i", tmp_path / "said.wav")
    made += ("-t", "8", "-c:a", "pcm_s16le", "-y", path)
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", *map(str, made)], check=True)
    assert len(cut(path, [Span(1, 2.99)], RATE_HZ)[0][1]) == pytest.approx(15920, abs=80)
    for span in (Span(5, 7), Span(1, 4)):
        with pytest.raises(AudioError, match=rf"talk.mkv: its sound ends before the span {span}"):
            cut(path, [span], RATE_HZ)


def test_memory_is_that_of_the_spans(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    audio.write(path, np.tile(buzz(120, 20), 90), RATE_HZ)
    cut(path, [Span(1, 3)], RATE_HZ)
    tracemalloc.start()
    cut(path, [Span(1, 3), Span(1500, 1503)], RATE_HZ)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # the file has 58 MB of samples
