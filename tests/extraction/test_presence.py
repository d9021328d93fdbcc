"""Presence: closed forms, segments that tile a file in blocks of any size, bad calibrations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
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
from mcspex_cli.extraction.presence import (
    Calibration,
    PresenceMeter,
    PresenceResult,
    SegmentFeatures,
    mean_features,
    parse_calibration,
)
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.vad import frame_levels_db
from mcspex_cli.model.systems import build, sized
from tests.conftest import RATE_HZ, buzz

MADE = Calibration((1.0, 0.0, -1.0), (2.0, -1.0, 0.5, -0.25), 0.6, 0.3, {"auc": 0.9})


def evidence(
    similarity: float, rest: float = 0.0, gain: float = 0.0, seconds: float = 4.0, **more: Any
) -> SegmentFeatures:
    return SegmentFeatures(0.0, seconds, similarity, rest, gain, **more)


def raw(**changed: Any) -> dict[str, Any]:
    """A calibration as config.json has it."""
    made = {
        "centre": [1.0, 0.0, -1.0],
        "weights": [2.0, -1.0, 0.5, -0.25],
        "threshold": 0.6,
        "wrong_speaker": 0.3,
        "measured": {"auc": 0.9},
    }
    return {**made, **changed}


def test_similarity_is_the_cosine_about_the_centre() -> None:
    centre = np.array(MADE.centre, np.float32)
    east, north = np.eye(3, dtype=np.float32)[:2]
    assert MADE.similarity(centre + east, centre + 3 * east) == pytest.approx(1)
    assert MADE.similarity(centre + east, centre - 2 * east) == pytest.approx(-1)
    assert MADE.similarity(centre + east, centre + north) == pytest.approx(0, abs=1e-6)
    assert MADE.similarity(centre + east, centre + east + north) == pytest.approx(np.sqrt(0.5))


def test_a_voice_at_the_centre_is_like_none() -> None:
    centre = np.array(MADE.centre, np.float32)
    assert MADE.similarity(centre, centre + 1) == 0


def test_presence_is_the_logistic_of_weighed_features() -> None:
    odds = 2 * 0.7 - 0.2 + 0.5 * -3 - 0.25
    assert MADE.presence([evidence(0.7, 0.2, -3.0)]) == pytest.approx(1 / (1 + np.exp(-odds)))


def test_segments_are_weighed_by_their_seconds() -> None:
    one, other = evidence(1.0, 0.0, 2.0, seconds=3), evidence(0.0, 1.0, 0.0, seconds=1)
    features = mean_features([one, other])
    assert features is not None
    assert features.tolist() == pytest.approx([0.75, 0.25, 1.5])
    assert MADE.presence([one, other]) == pytest.approx(MADE.presence([evidence(0.75, 0.25, 1.5)]))


def test_what_is_not_audible_does_not_count() -> None:
    silent = evidence(-1.0, 1.0, audible=False)
    assert MADE.presence([evidence(0.5), silent]) == MADE.presence([evidence(0.5)])
    assert mean_features([silent]) is None
    assert mean_features([]) is None
    assert (MADE.presence([silent]), MADE.presence([])) == (0.0, 0.0)
    assert not MADE.is_wrong_speaker([silent])


@pytest.mark.parametrize(("odds", "presence"), [(-5e3, 0.0), (-800, 0.0), (0, 0.5), (5e3, 1.0)])
def test_extreme_odds_are_probabilities(odds: float, presence: float) -> None:
    made = Calibration((0.0,), (0.0, 0.0, 0.0, odds), 0.5, 0.0, {})
    assert made.presence([evidence(0.0)]) == presence


def test_the_wrong_speaker_is_one_who_is_left_with_the_voice() -> None:
    assert not MADE.is_wrong_speaker([evidence(0.5, 0.79)])
    assert MADE.is_wrong_speaker([evidence(0.5, 0.81)])
    assert MADE.is_wrong_speaker([evidence(0.5, 1.0, seconds=9), evidence(0.5, 0.0, seconds=1)])
    assert not MADE.is_wrong_speaker([evidence(0.5, 1.0, seconds=1), evidence(0.5, 0.0, seconds=9)])


def test_where_one_voice_speaks_alone_what_is_left_is_nobody() -> None:
    swapped, alone = evidence(0.5, 0.9), evidence(0.5, 0.9, residual_share=0.1)
    assert MADE.is_wrong_speaker([swapped, alone])
    assert not MADE.is_wrong_speaker([alone])
    assert not MADE.is_wrong_speaker([alone, evidence(0.5, 0.5, seconds=1)])
    assert MADE.presence([alone]) == MADE.presence([swapped])


def test_a_calibration_comes_through_json() -> None:
    assert parse_calibration(json.loads(json.dumps(raw())), 3, "config.json") == MADE


def test_none_is_none() -> None:
    assert parse_calibration(None, 3, "config.json") is None


MALFORMED = [
    *(pytest.param({k: v for k, v in raw().items() if k != key}, id=f"no {key}") for key in raw()),
    pytest.param([], id="list"),
    pytest.param("none", id="text"),
    pytest.param(3, id="number"),
    pytest.param(raw(centre=["a", 0, 0]), id="centre of text"),
    pytest.param(raw(centre=[None, 0, 0]), id="centre of null"),
    pytest.param(raw(centre=5), id="centre a number"),
    pytest.param(raw(centre={"x": 1}), id="centre an object"),
    pytest.param(raw(weights=[[1], 0, 0, 0]), id="weights of lists"),
    pytest.param(raw(threshold=None), id="threshold null"),
    pytest.param(raw(threshold=10**400), id="threshold beyond floats"),
    pytest.param(raw(wrong_speaker=[]), id="wrong_speaker a list"),
    pytest.param(raw(measured=None), id="measured null"),
    pytest.param(raw(measured="much"), id="measured text"),
]


@pytest.mark.parametrize("value", MALFORMED)
def test_what_is_malformed_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_calibration(value, 3, "m/config.json")
    assert str(caught.value) == "m/config.json: its calibration is malformed. Calibrate it again."


ODD = [
    pytest.param(raw(centre=[1.0, 0.0]), id="too short a centre"),
    pytest.param(raw(centre=[1.0, 0.0, 0.0, 0.0]), id="too long a centre"),
    pytest.param(raw(centre=[]), id="no centre"),
    pytest.param(raw(weights=[1.0] * 3), id="three weights"),
    pytest.param(raw(weights=[1.0] * 5), id="five weights"),
    pytest.param(raw(centre=[float("nan"), 0, 0]), id="NaN in the centre"),
    pytest.param(raw(weights=[float("inf"), 0, 0, 0]), id="infinite weight"),
    pytest.param(raw(threshold=float("nan")), id="NaN threshold"),
    pytest.param(raw(wrong_speaker=float("-inf")), id="infinite wrong_speaker"),
]


@pytest.mark.parametrize("value", ODD)
def test_what_does_not_fit_the_model_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_calibration(value, 3, "m")
    assert str(caught.value) == "m: its calibration is of another model. Calibrate it again."


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine(load_checkpoint(tiny_folder), EngineSettings("cpu", "float32"))


@pytest.fixture(scope="module")
def voice(engine: Engine) -> audio.Samples:
    return engine.embed([buzz(110, 2, 3)])


def calibration(engine: Engine, *weights: float, threshold: float = 0.5) -> Calibration:
    """One for a network, about 0, by similarity, the rest's similarity, gain and 1."""
    size = len(engine.embed_part(buzz(110, 1)))
    return Calibration((0.0,) * size, weights or (3.0, -1.0, 0.2, 0.1), threshold, 0.1, {})


def listen(
    engine: Engine,
    voice: audio.Samples,
    both: Sequence[audio.Samples],
    sizes: Sequence[int] = (),
    made: Calibration | None = None,
) -> PresenceResult:
    """Listen to estimate and mixture [channel, sample], in blocks of some sizes, over and over."""
    meter = PresenceMeter(
        engine.embed_part, engine.sample_rate_hz, voice, made or engine.calibration
    )
    estimate, mixture = (np.atleast_2d(one) for one in both)
    at, turn = 0, 0
    while at < estimate.shape[1]:
        size = sizes[turn % len(sizes)] if sizes else estimate.shape[1]
        meter.add(estimate[:, at : at + size], mixture[:, at : at + size])
        at, turn = at + size, turn + 1
    return meter.result()


def scene(seconds: float, rate_hz: int = RATE_HZ) -> tuple[audio.Samples, audio.Samples]:
    """An estimate and its mixture, with something of another voice in both."""
    one, other = (
        np.resize(buzz(pitch_hz, 5, k), round(seconds * rate_hz))
        for k, pitch_hz in enumerate((110, 190))
    )
    return 0.3 * (one + 0.1 * other), one + other


@pytest.mark.parametrize("seconds", [0.3, 3.9, 4.0, 4.1, 8.0, 9.0])
def test_segments_tile_the_file(engine: Engine, voice: audio.Samples, seconds: float) -> None:
    result = listen(engine, voice, scene(seconds), made=calibration(engine))
    assert result.segments[0].start_s == 0
    assert result.segments[-1].end_s == pytest.approx(seconds)
    for before, after in pairwise(result.segments):
        assert before.end_s == after.start_s == before.start_s + 4
    assert len(result.segments) == -(-round(seconds * 1000) // 4000)
    assert len(result.estimate_db) == len(result.mixture_db) == round(seconds * 100)


@pytest.mark.parametrize("sizes", [(333,), (32_000,), (32_001, 5), (1, 40_000, 7000), (64_000,)])
def test_blocks_of_any_size_are_result_alike(
    engine: Engine, voice: audio.Samples, sizes: tuple[int, ...]
) -> None:
    both, made = scene(9.3), calibration(engine)
    whole, parts = (listen(engine, voice, both, s, made) for s in ((), sizes))
    np.testing.assert_array_equal(parts.estimate_db, whole.estimate_db)
    np.testing.assert_array_equal(parts.mixture_db, whole.mixture_db)
    assert parts.segments == whole.segments
    assert (parts.presence, parts.present) == (whole.presence, whole.present)
    assert parts.features is not None
    assert whole.features is not None
    assert parts.features.tolist() == whole.features.tolist()


def test_a_segment_is_told_by_what_comes_out_and_what_is_left(
    engine: Engine, voice: audio.Samples
) -> None:
    """By hand, of one segment: the cosines, and the gain that matches the estimate."""
    estimate, mixture = scene(3.0)
    made = calibration(engine)
    result = listen(engine, voice, (estimate, mixture), made=made)
    e, m = estimate.astype(np.float64), mixture.astype(np.float64)
    gain = (e @ m) / (e @ e)
    similarities = [
        made.similarity(engine.embed_part(part.astype(np.float32)), voice)
        for part in (gain * e, m - gain * e)
    ]
    assert result.features is not None
    expected = [*similarities, np.log10(gain)]
    assert result.features.tolist() == pytest.approx(expected, abs=1e-5)
    presence = made.presence([SegmentFeatures(0, 3, *expected)])
    assert result.presence == pytest.approx(presence, abs=1e-5)
    assert result.segments[0].presence == pytest.approx(presence, abs=1e-5)
    assert result.present is (presence >= 0.5)
    assert result.wrong_speaker is (expected[1] - expected[0] > made.wrong_speaker)


def test_a_short_end_is_judged_by_the_last_two_seconds(
    engine: Engine, voice: audio.Samples
) -> None:
    estimate, mixture = scene(4.1)
    made = calibration(engine)
    end = slice(-2 * RATE_HZ, None)
    alone = listen(engine, voice, (estimate[end], mixture[end]), made=made)
    result = listen(engine, voice, (estimate, mixture), made=made)
    first = listen(engine, voice, (estimate[: 4 * RATE_HZ], mixture[: 4 * RATE_HZ]), made=made)
    assert alone.features is not None
    assert first.features is not None
    assert result.features is not None
    mean = (4 * first.features + 0.1 * alone.features) / 4.1
    assert result.features.tolist() == pytest.approx(mean.tolist(), abs=1e-6)


def test_a_file_is_judged_by_its_best_twenty_seconds(engine: Engine, voice: audio.Samples) -> None:
    """The voice is result for 20 s of 40; the rest is there, but turned up by 60 dB."""
    estimate, mixture = scene(40)
    estimate[: 20 * RATE_HZ] *= 1e-3
    made = calibration(engine, 0.0, 0.0, -4.0, 7.0)
    result = listen(engine, voice, (estimate, mixture), made=made)
    best = listen(engine, voice, (estimate[20 * RATE_HZ :], mixture[20 * RATE_HZ :]), made=made)
    assert result.presence == pytest.approx(best.presence, abs=1e-6)
    assert result.present
    there = [one.present for one in result.segments]
    assert there == [False] * 5 + [True] * 5


@pytest.mark.parametrize(("rest_db", "wrong"), [(-7.0, False), (-5.0, True), (5.0, True)])
def test_the_wrong_speaker_needs_somebody_else_to_be_there(
    engine: Engine, voice: audio.Samples, rest_db: float, wrong: bool
) -> None:
    """What is left of a voice alone is like it too."""
    time = np.arange(3 * RATE_HZ) / RATE_HZ
    estimate = np.sin(2 * np.pi * 200 * time).astype(np.float32)
    rest = 10 ** (rest_db / 20) * np.cos(2 * np.pi * 200 * time)
    made = replace(calibration(engine), wrong_speaker=-9.0)
    result = listen(engine, voice, (estimate, (estimate + rest).astype(np.float32)), made=made)
    assert result.wrong_speaker is wrong


@pytest.mark.parametrize("silent", ["estimate", "mixture", "both"])
def test_nothing_is_result_in_silence(engine: Engine, voice: audio.Samples, silent: str) -> None:
    estimate, mixture = scene(5.0)
    if silent != "mixture":
        estimate *= 0
    if silent != "estimate":
        mixture *= 0
    result = listen(engine, voice, (estimate, mixture), made=calibration(engine))
    assert (result.presence, result.present, result.wrong_speaker) == (0.0, False, False)
    assert result.features is None
    assert [(one.presence, one.present) for one in result.segments] == [(0.0, False)] * 2
    assert np.isfinite(result.estimate_db).all()


def test_a_silent_stretch_spares_the_rest(engine: Engine, voice: audio.Samples) -> None:
    estimate, mixture = scene(8.0)
    estimate[: 4 * RATE_HZ], mixture[: 4 * RATE_HZ] = 0, 0
    made = calibration(engine, 0.0, 0.0, 0.0, 3.0)
    result = listen(engine, voice, (estimate, mixture), made=made)
    assert result.present
    assert [one.present for one in result.segments] == [False, True]


def test_without_a_calibration_there_are_only_levels(engine: Engine, voice: audio.Samples) -> None:
    result = listen(engine, voice, scene(4.5))
    assert len(result.estimate_db) == 450
    assert (result.presence, result.present, result.wrong_speaker) == (None, None, None)
    assert (result.features, result.segments) == (None, ())


def test_the_engines_calibration_is_used(engine: Engine, voice: audio.Samples) -> None:
    own = Engine(engine.runtime, engine.settings, calibration(engine, threshold=0.0))
    assert listen(own, voice, scene(1.0)).present is True
    other = calibration(engine, threshold=1.1)
    assert listen(own, voice, scene(1.0), made=other).present is False


def test_the_loudest_channel_is_result(engine: Engine, voice: audio.Samples) -> None:
    estimate, mixture = scene(2.0)
    both = np.stack([-0.5 * estimate, estimate]), np.stack([-0.5 * mixture, mixture])
    stereo, mono = listen(engine, voice, both), listen(engine, voice, (estimate, mixture))
    np.testing.assert_array_equal(stereo.estimate_db, mono.estimate_db)
    np.testing.assert_array_equal(stereo.mixture_db, mono.mixture_db)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050])
@pytest.mark.parametrize("seconds", [0.5, 9.004])
def test_levels_are_those_of_the_whole_at_any_rate(rate_hz: int, seconds: float) -> None:
    torch.manual_seed(1)
    system = build(sized("mcspex", "tiny", rate_hz, 4)).eval().requires_grad_(False)
    engine = Engine(system, EngineSettings("cpu", "float32"))
    both = scene(seconds, rate_hz)
    result = listen(engine, engine.embed([buzz(110, 2)]), both, (9999,), calibration(engine))
    np.testing.assert_array_equal(result.estimate_db, frame_levels_db(both[0], rate_hz))
    np.testing.assert_array_equal(result.mixture_db, frame_levels_db(both[1], rate_hz))
    assert len(result.estimate_db) == int(np.ceil(100 * round(seconds * rate_hz) / rate_hz))
    assert [one.end_s for one in result.segments[:-1]] == [4.0, 8.0][: len(result.segments) - 1]
    assert result.segments[-1].end_s == pytest.approx(seconds, abs=1e-3)
