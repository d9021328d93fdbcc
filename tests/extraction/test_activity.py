"""When a voice speaks: from levels and presence made by hand, and the files it is noted in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.presence import (
    ActivityReport,
    PresenceResult,
    Segment,
    find_spans,
    mute_gains,
    write_activity,
)

SOFT_DB, LOUD_DB = -70.0, -20.0


def measured(
    *loud: tuple[float, float],
    seconds: float = 12.0,
    mixture_db: float = LOUD_DB,
    presences: tuple[float, ...] = (),
    **told: Any,
) -> PresenceResult:
    """An estimate that is loud from .. to, in a steady mixture; segments of 4 s."""
    levels = np.full(round(seconds * 100), SOFT_DB)
    for start_s, end_s in loud:
        levels[round(start_s * 100) : round(end_s * 100)] = LOUD_DB
    segments = tuple(
        Segment(4.0 * k, min(4.0 * k + 4, seconds), presence, presence >= 0.5, presence < 0.25)
        for k, presence in enumerate(presences)
    )
    return PresenceResult(levels, np.full_like(levels, mixture_db), segments=segments, **told)


def test_spans_are_where_it_is_loud() -> None:
    found = find_spans([measured((1.0, 3.0), (5.0, 9.5))], [0.0])
    assert np.array(found) == pytest.approx(np.array([(1.0, 3.0), (5.0, 9.5)]), abs=0.03)


@pytest.mark.parametrize(
    ("loud", "expected"),
    [
        (((1.0, 3.0), (3.4, 5.0)), [(1.0, 5.0)]),  # a pause of 0.4 s is none
        (((1.0, 3.0), (3.6, 5.0)), [(1.0, 3.0), (3.6, 5.0)]),  # 0.6 s are one
        (((1.0, 3.0), (6.0, 6.2)), [(1.0, 3.0)]),  # 0.2 s are no speech
        (((1.0, 3.0), (6.0, 6.4)), [(1.0, 3.0), (6.0, 6.4)]),  # 0.4 s are
        (((1.0, 1.2), (1.4, 1.6), (6.0, 8.0)), [(1.0, 1.6), (6.0, 8.0)]),  # pauses go first
    ],
)
def test_short_pauses_are_filled_then_short_bursts_dropped(
    loud: tuple[tuple[float, float], ...], expected: list[tuple[float, float]]
) -> None:
    found = find_spans([measured(*loud)], [0.0])
    assert len(found) == len(expected)
    assert np.array(found) == pytest.approx(np.array(expected), abs=0.035)


def test_what_is_far_below_the_mixture_is_not_the_voice() -> None:
    assert find_spans([measured((1.0, 3.0), mixture_db=LOUD_DB + 19)], [0.0])
    assert find_spans([measured((1.0, 3.0), mixture_db=LOUD_DB + 21)], [0.0]) == []


def test_levels_are_compared_at_the_matched_gain() -> None:
    far = measured((1.0, 3.0), mixture_db=LOUD_DB + 40)
    assert find_spans([far], [30.0])
    assert find_spans([far], [10.0]) == []


def test_segments_without_the_voice_have_no_spans() -> None:
    result = measured((1.0, 11.0), presences=(0.9, 0.3, 0.8), presence=0.9, present=True)
    found = find_spans([result], [0.0])
    assert np.array(found) == pytest.approx(np.array([(1.0, 4.0), (8.0, 11.0)]), abs=0.03)


def test_an_absent_voice_speaks_never_and_an_unknown_one_by_its_level() -> None:
    assert find_spans([measured((1.0, 3.0), presence=0.1, present=False)], [0.0]) == []
    assert len(find_spans([measured((1.0, 3.0))], [0.0])) == 1


def test_a_voice_speaks_where_it_does_in_any_channel() -> None:
    """Each channel at its own gain; one without the voice counts for nothing."""
    one, other = measured((1.0, 3.0), present=True), measured((6.0, 8.0), mixture_db=LOUD_DB + 40)
    absent = measured((9.0, 11.0), presence=0.1, present=False)
    spans = find_spans([one, other, absent], [0.0, 30.0, 0.0])
    assert np.array(spans) == pytest.approx(np.array([(1.0, 3.0), (6.0, 8.0)]), abs=0.03)


def test_silence_has_no_spans() -> None:
    nothing = PresenceResult(np.full(300, -120.0), np.full(300, -120.0))
    assert find_spans([nothing], [0.0]) == []
    assert find_spans([PresenceResult(np.zeros(0), np.zeros(0))], [0.0]) == []


def test_the_gate_closes_over_surely_absent_segments_and_fades() -> None:
    """0.3 is under the threshold, but not surely absent."""
    times, gains = mute_gains(measured(presences=(0.9, 0.1, 0.3)).segments, 0.05)
    assert times == pytest.approx([0.0, 3.975, 4.025, 7.975, 8.025])
    assert gains == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert mute_gains(measured(presences=(0.1, 0.1, 0.1)).segments, 0.05) == ([0.0], [0.0])
    assert mute_gains(measured(presences=(0.9,), seconds=3.0).segments, 0.05) == ([0.0], [1.0])


def written(
    folder: Path,
    suffix: str,
    spans: list[tuple[float, float]],
    speaker: str = "target",
    file: str = "day 1",
) -> str:
    """What an activity file says of some spans."""
    path = folder / f"a{suffix}"
    result = measured(presences=(0.91234, 0.2, 0.7), presence=0.87654, present=True)
    write_activity(path, ActivityReport("talks/day 1.wav", file, speaker, result, spans))
    assert list(folder.iterdir()) == [path]
    return path.read_bytes().decode()


SPANS = [(0.5, 2.25), (3661.5, 3725.04)]


def test_json_has_all(tmp_path: Path) -> None:
    document = json.loads(written(tmp_path, ".json", SPANS, speaker="alice"))
    assert document == {
        "mixture": "talks/day 1.wav",
        "speaker": "alice",
        "presence": 0.8765,
        "present": True,
        "frame_s": 0.01,
        "active_s": 65.29,
        "spans": [
            {"start_s": 0.5, "end_s": 2.25},
            {"start_s": 3661.5, "end_s": 3725.04},
        ],
        "segments": [
            {"start_s": 0.0, "end_s": 4.0, "presence": 0.9123, "present": True},
            {"start_s": 4.0, "end_s": 8.0, "presence": 0.2, "present": False},
            {"start_s": 8.0, "end_s": 12.0, "presence": 0.7, "present": True},
        ],
    }


def test_json_of_an_uncalibrated_model_has_nulls(tmp_path: Path) -> None:
    report = ActivityReport("stdin", "stdin", "target", measured(), [])
    write_activity(tmp_path / "a.JSON", report)
    document = json.loads((tmp_path / "a.JSON").read_text())
    assert (document["presence"], document["present"]) == (None, None)
    assert (document["spans"], document["segments"], document["active_s"]) == ([], [], 0)
    assert document["mixture"] == "stdin"


def parse_rttm(text: str) -> list[tuple[str, str, float, float]]:
    """File, speaker, from and to of NIST's ten fields."""
    found = []
    for line in text.splitlines():
        kind, file, channel, start, length, *rest = line.split(" ")
        assert (kind, channel, rest[:2], rest[3:]) == ("SPEAKER", "1", ["<NA>"] * 2, ["<NA>"] * 2)
        found.append((file, rest[2], float(start), float(start) + float(length)))
    return found


def test_rttm_is_read_again(tmp_path: Path) -> None:
    text = written(tmp_path, ".rttm", SPANS, speaker="Alice  B.\tSmith")
    assert text == (
        "SPEAKER day_1 1 0.500 1.750 <NA> <NA> Alice_B._Smith <NA> <NA>\n"
        "SPEAKER day_1 1 3661.500 63.540 <NA> <NA> Alice_B._Smith <NA> <NA>\n"
    )
    assert parse_rttm(text) == [
        ("day_1", "Alice_B._Smith", start_s, pytest.approx(end_s)) for start_s, end_s in SPANS
    ]


def test_rttm_takes_a_mixtures_id_and_no_name_is_a_dash(tmp_path: Path) -> None:
    ((file, speaker, *_),) = parse_rttm(
        written(tmp_path, ".RTTM", SPANS[:1], file="a b", speaker=" ")
    )
    assert (file, speaker) == ("a_b", "_")


def test_srt_is_exact(tmp_path: Path) -> None:
    text = written(tmp_path, ".srt", [*SPANS, (36_000.0, 360_000.999)], speaker="Alice B.")
    assert text == (
        "1\n00:00:00,500 --> 00:00:02,250\nAlice B.\n"
        "\n"
        "2\n01:01:01,500 --> 01:02:05,040\nAlice B.\n"
        "\n"
        "3\n10:00:00,000 --> 100:00:00,999\nAlice B.\n"
    )
    assert len(re.findall(r"^\d\d+:\d\d:\d\d,\d{3} --> \d\d+:\d\d:\d\d,\d{3}$", text, re.M)) == 3


@pytest.mark.parametrize("suffix", [".rttm", ".srt"])
def test_of_nothing_the_file_is_empty(tmp_path: Path, suffix: str) -> None:
    assert written(tmp_path, suffix, []) == ""


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    report = ActivityReport("m.wav", "m", "target", measured(), SPANS)
    with pytest.raises(OutputError, match=r"none/a.srt"):
        write_activity(tmp_path / "none" / "a.srt", report)
