"""Presence: closed forms, segments that tile a file in blocks of any size, bad calibrations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcspex_cli import audio
from mcspex_cli.checkpoint.checkpoint import load_checkpoint
from mcspex_cli.errors import CheckpointError
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.levels import frame_levels_db
from mcspex_cli.extraction.presence import (
    Calibration,
    PresenceMeter,
    PresenceResult,
    Segment,
    join_channels,
    parse_calibration,
    probability,
)
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build
from tests.conftest import EXAMPLES, RATE_HZ, buzz, calibration


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine(load_checkpoint(tiny_folder), EngineSettings("cpu", "float32"))


@pytest.fixture(scope="module")
def bundled() -> Extractor:
    return Extractor.load(device="cpu", precision="float32")


@pytest.fixture(scope="module")
def voice(engine: Engine) -> audio.Samples:
    return engine.embed([buzz(110, 2, 3)])


@pytest.fixture(scope="module")
def made(voice: audio.Samples) -> Calibration:
    return calibration(len(voice), segment_weights=(3.0, 0.2, 0.1))


def measure(
    engine: Engine,
    voice: audio.Samples,
    both: Sequence[audio.Samples],
    made: Calibration | None,
    sizes: Sequence[int] = (),
) -> PresenceResult:
    """Measure estimate and mixture [sample], in blocks of some sizes, over and over."""
    meter = PresenceMeter(engine.embed_parts, engine.sample_rate_hz, voice, made)
    estimate, mixture = both
    at, turn = 0, 0
    while at < len(estimate):
        size = sizes[turn % len(sizes)] if sizes else len(estimate)
        meter.add(estimate[at : at + size], mixture[at : at + size])
        at, turn = at + size, turn + 1
    return meter.result()


def scene(seconds: float, rate_hz: int = RATE_HZ) -> tuple[audio.Samples, audio.Samples]:
    """An estimate and its mixture, with something of another voice in both."""
    one, other = (
        np.resize(buzz(pitch_hz, 5, k), round(seconds * rate_hz))
        for k, pitch_hz in enumerate((110, 190))
    )
    return 0.3 * (one + 0.1 * other), one + other


def test_similarity_is_the_cosine_about_the_centre() -> None:
    made = calibration(3, centre=(1.0, 0.0, -1.0))
    centre = np.array(made.centre, np.float32)
    east, north = np.eye(3, dtype=np.float32)[:2]
    for one, other, expected in (
        (east, 3 * east, 1.0),
        (east, -2 * east, -1.0),
        (east, north, 0.0),
        (east, east + north, np.sqrt(0.5)),
        (0 * east, east, 0.0),  # a voice at the centre is like none
    ):
        found = made.similarity(centre + one, centre + other)
        assert found == pytest.approx(expected, abs=1e-6)


def test_one_sure_segment_makes_a_file_present() -> None:
    """The soft maximum, by hand; it lies between the mean and the maximum."""
    made = calibration(1, segment_weights=(2.0, -0.5, 1.0), file_weights=(1.5, -0.25))
    features = np.array([[0.9, 2.0], [-0.5, 3.0], [0.1, 2.5]])
    odds = np.array([2 * 0.9 - 0.5 * 2 + 1, -1 - 1.5 + 1, 0.2 - 1.25 + 1])
    assert made.segment_odds(features).tolist() == pytest.approx(odds.tolist())
    soft = np.log(np.mean(np.exp(2 * odds))) / 2
    assert made.file_odds(features) == pytest.approx(1.5 * soft - 0.25)
    sure = np.array([[1.0, 0.0], *[[-1.0, 4.0]] * 9])
    unsure = np.array([[0.0, 4.0]] * 10)
    assert made.file_odds(sure) > made.file_odds(unsure) + 1
    assert probability(made.file_odds(features[:0])) == 0


@pytest.mark.parametrize(("odds", "presence"), [(-5e3, 0.0), (-800, 0.0), (0, 0.5), (5e3, 1.0)])
def test_extreme_odds_are_probabilities(odds: float, presence: float) -> None:
    assert probability(odds) == presence
    made = calibration(1, segment_weights=(0.0, 0.0, odds))
    assert probability(made.file_odds(np.zeros((3, 2)))) == pytest.approx(presence)


@pytest.mark.parametrize("seconds", [0.5, 1.7, 2.0, 3.1, 4.0, 9.3])
def test_segments_tile_a_file(
    engine: Engine, voice: audio.Samples, made: Calibration, seconds: float
) -> None:
    result = measure(engine, voice, scene(seconds), made, (1000,))
    assert result.segments[0].start_s == 0
    assert result.segments[-1].end_s == pytest.approx(seconds, abs=1e-3)
    assert all(one.end_s == other.start_s for one, other in pairwise(result.segments))
    assert len(result.segments) == -(-round(seconds * 1000) // 2000)
    assert len(result.estimate_db) == len(result.mixture_db) == round(seconds * 100)
    row = result.segments[0].to_dict()
    assert list(row) == ["start_s", "end_s", "presence", "present"]


@pytest.mark.parametrize("sizes", [(333,), (32_000,), (32_001, 5), (1, 40_000, 7000), (16_000,)])
def test_blocks_of_any_size_measure_the_same(
    engine: Engine, voice: audio.Samples, made: Calibration, sizes: tuple[int, ...]
) -> None:
    both = scene(9.3)
    whole, parts = (measure(engine, voice, both, made, s) for s in ((), sizes))
    np.testing.assert_array_equal(parts.estimate_db, whole.estimate_db)
    np.testing.assert_array_equal(parts.mixture_db, whole.mixture_db)
    assert parts.segments == whole.segments
    assert (parts.presence, parts.present) == (whole.presence, whole.present)


def test_a_segment_is_judged_by_similarity_and_gain(
    engine: Engine, voice: audio.Samples, made: Calibration
) -> None:
    """By hand, of one segment: the cosines, and the gain that matches the estimate."""
    estimate, mixture = scene(2.0)
    result = measure(engine, voice, (estimate, mixture), made)
    e, m = estimate.astype(np.float64), mixture.astype(np.float64)
    gain = (e @ m) / (e @ e)
    similarity, residual_similarity = (
        made.similarity(engine.embed_parts(part.astype(np.float32)[None])[0], voice)
        for part in (gain * e, m - gain * e)
    )
    odds = 3 * similarity + 0.2 * np.log10(gain) + 0.1
    assert result.segments[0].presence == pytest.approx(probability(odds), abs=1e-5)
    assert result.presence == pytest.approx(probability(odds), abs=1e-5)
    assert result.present is bool(odds >= 0)
    excess = residual_similarity - similarity
    for limit in (excess - 0.01, excess + 0.01):
        other = measure(engine, voice, (estimate, mixture), replace(made, wrong_speaker=limit))
        assert other.wrong_speaker is bool(excess > limit)


def test_the_end_is_judged_by_the_last_two_seconds(
    engine: Engine, voice: audio.Samples, made: Calibration
) -> None:
    estimate, mixture = scene(4.1)
    end = slice(-2 * RATE_HZ, None)
    alone = measure(engine, voice, (estimate[end], mixture[end]), made)
    result = measure(engine, voice, (estimate, mixture), made)
    assert result.segments[-1].presence == pytest.approx(alone.segments[0].presence, abs=1e-6)
    assert (result.segments[-1].start_s, result.segments[-1].end_s) == (4.0, 4.1)


def test_the_speaker_encoder_runs_once_for_a_segment(
    engine: Engine, voice: audio.Samples, made: Calibration
) -> None:
    """And once more where the voice is unsure and somebody else is left."""
    runs: list[tuple[int, ...]] = []

    def embed(parts: audio.Samples) -> audio.Samples:
        runs.append(parts.shape)
        return engine.embed_parts(parts)

    for weights, expected in (((0.0, 0.0, 9.0), 1), ((0.0, 0.0, 0.0), 2)):
        runs.clear()
        meter = PresenceMeter(embed, RATE_HZ, voice, replace(made, segment_weights=weights))
        meter.add(*scene(4.0))
        meter.result()
        assert runs == [(2, 2 * RATE_HZ)] * expected


@pytest.mark.parametrize(("rest_db", "wrong"), [(-7.0, False), (-5.0, True), (5.0, True)])
def test_the_wrong_speaker_needs_somebody_else_to_be_there(
    engine: Engine, voice: audio.Samples, made: Calibration, rest_db: float, wrong: bool
) -> None:
    """The residual of a voice alone is similar to it too."""
    time = np.arange(3 * RATE_HZ) / RATE_HZ
    estimate = np.sin(2 * np.pi * 200 * time).astype(np.float32)
    rest = 10 ** (rest_db / 20) * np.cos(2 * np.pi * 200 * time)
    both = estimate, (estimate + rest).astype(np.float32)
    low = replace(made, segment_weights=(0.0, 0.0, 0.0), wrong_speaker=-9.0)
    assert measure(engine, voice, both, low).wrong_speaker is wrong


@pytest.mark.parametrize("silent", ["estimate", "mixture", "both"])
def test_silence_has_no_voice(
    engine: Engine, voice: audio.Samples, made: Calibration, silent: str
) -> None:
    estimate, mixture = scene(3.0)
    if silent != "mixture":
        estimate *= 0
    if silent != "estimate":
        mixture *= 0
    result = measure(engine, voice, (estimate, mixture), made)
    assert (result.presence, result.present, result.wrong_speaker) == (0.0, False, False)
    assert [(one.presence, one.present) for one in result.segments] == [(0.0, False)] * 2
    assert np.isfinite(result.estimate_db).all()


def test_a_silent_stretch_spares_the_rest(
    engine: Engine, voice: audio.Samples, made: Calibration
) -> None:
    estimate, mixture = scene(4.0)
    estimate[: 2 * RATE_HZ], mixture[: 2 * RATE_HZ] = 0, 0
    result = measure(engine, voice, (estimate, mixture), replace(made, segment_weights=(0, 0, 3.0)))
    assert result.present
    assert [one.present for one in result.segments] == [False, True]


def test_without_a_calibration_there_are_only_levels(engine: Engine, voice: audio.Samples) -> None:
    result = measure(engine, voice, scene(4.5), None)
    assert len(result.estimate_db) == 450
    assert (result.presence, result.present, result.wrong_speaker) == (None, None, None)
    assert result.segments == ()


def test_a_voice_in_one_channel_is_in_the_mixture() -> None:
    """Each segment counts by the channel in which the voice is surest, and times begin later."""
    nothing = np.zeros(0)

    def channel(presence: float, *segments: float) -> PresenceResult:
        judged = (Segment(2.0 * k, 2.0 * k + 2, one, one > 0.5) for k, one in enumerate(segments))
        return PresenceResult(nothing, nothing, presence, presence > 0.5, False, tuple(judged))

    joined = join_channels([channel(0.3, 0.2, 0.3), channel(0.9, 0.9, 0.1)], 1.5)
    assert (joined.presence, joined.present) == (0.9, True)
    assert joined.segments == (Segment(1.5, 3.5, 0.9, True), Segment(3.5, 5.5, 0.3, False))


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000])
@pytest.mark.parametrize("seconds", [0.5, 5.004])
def test_levels_are_those_of_the_whole_at_any_rate(rate_hz: int, seconds: float) -> None:
    torch.manual_seed(1)
    system = build(sized("mcspex", "tiny", rate_hz, 4)).eval().requires_grad_(False)
    engine = Engine(system, EngineSettings("cpu", "float32"))
    both, voice = scene(seconds, rate_hz), engine.embed([buzz(110, 2)])
    result = measure(engine, voice, both, calibration(len(voice)), (9999,))
    np.testing.assert_array_equal(result.estimate_db, frame_levels_db(both[0], rate_hz))
    np.testing.assert_array_equal(result.mixture_db, frame_levels_db(both[1], rate_hz))
    assert [one.end_s for one in result.segments[:-1]] == [2.0, 4.0][: len(result.segments) - 1]


TURNS = {
    "of five files": [
        *("set/references/awb", "set/mixtures/awb_1", "reference"),
        *("set/references/slt", "set/mixtures/rms_1"),
    ],
    "of an interview": ["interview"],
}
"""Recordings with turns, as the files of the examples that they are made of."""


@pytest.mark.parametrize(
    ("recording", "reference", "present"),
    [
        ("of five files", "set/truth/awb_2.flac", True),
        ("of five files", "set/truth/rms_2.flac", True),
        ("of an interview", "set/references/awb.flac", True),
        ("of an interview", "set/references/rms.flac", True),
        ("of an interview", "voices/kal", False),
    ],
)
def test_voices_are_found_in_a_recording_with_turns(
    bundled: Extractor, recording: str, reference: str, present: bool
) -> None:
    rate_hz = bundled.sample_rate_hz
    parts = [audio.read(EXAMPLES / f"{name}.flac", rate_hz) for name in TURNS[recording]]
    voice = bundled.enroll(EXAMPLES / reference)
    result = bundled.extract(np.concatenate(parts), voice, sample_rate_hz=rate_hz)
    assert result.present is present, result.presence


def raw(**changed: Any) -> dict[str, Any]:
    """A calibration as config.json has it."""
    return {**json.loads(json.dumps(asdict(calibration(3)))), "measured": {"auc": 0.9}, **changed}


def test_a_calibration_comes_through_json() -> None:
    assert parse_calibration(raw(), 3, "m") == replace(calibration(3), measured={"auc": 0.9})
    assert parse_calibration(None, 3, "m") is None


def test_an_older_calibration_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    old = {"centre": [0.0] * 3, "weights": [0.0] * 4, "threshold": 0.5, "wrong_speaker": 0.1}
    assert parse_calibration({**old, "measured": {}}, 3, "m") is None
    assert "m: was calibrated by an older mcspex" in caplog.text


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"centre": [0.0] * 3}, "malformed"),
        *((value, "malformed") for value in ([], "none", 3, raw(centre=["a"]), raw(centre=5))),
        *((raw(**one), "malformed") for one in (
            {"segment_weights": [1.0, 1.0]}, {"file_weights": [[1], 0]}, {"threshold": None},
            {"threshold": 10**400}, {"wrong_speaker": []}, {"measured": "much"},
        )),
        *((raw(**one), "of another model") for one in (
            {"centre": [1.0, 0.0]}, {"centre": []}, {"centre": [float("nan"), 0, 0]},
            {"segment_weights": [float("inf"), 0, 0]}, {"threshold": float("nan")},
        )),
    ],
)  # fmt: skip
def test_a_calibration_that_cannot_be_used_is_named(value: Any, kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m: its calibration is {kind}. Calibrate it again"):
        parse_calibration(value, 3, "m")
