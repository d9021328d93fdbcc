"""Listening while an estimate is made: segments tile a file however it comes in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mcspex_cli import audio
from mcspex_cli.checkpoint.weights import load_checkpoint
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.listening import Heard, Listener
from mcspex_cli.extraction.presence import Calibration, Evidence
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.speech import frame_levels_db
from mcspex_cli.model.systems import build, sized
from tests.conftest import RATE_HZ, buzz


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine(load_checkpoint(tiny_folder), EngineSettings("cpu", "float32"))


@pytest.fixture(scope="module")
def voice(engine: Engine) -> audio.Samples:
    return engine.embed([buzz(110, 2, 3)])


def calibration(engine: Engine, *weights: float, threshold: float = 0.5) -> Calibration:
    """One for a network, about 0, by likeness, the rest's likeness, gain and 1."""
    size = len(engine.embed_part(buzz(110, 1)))
    return Calibration((0.0,) * size, weights or (3.0, -1.0, 0.2, 0.1), threshold, 0.1, {})


def listen(
    engine: Engine,
    voice: audio.Samples,
    both: Sequence[audio.Samples],
    sizes: Sequence[int] = (),
    made: Calibration | None = None,
) -> Heard:
    """Listen to estimate and mixture [channel, sample], in blocks of some sizes, over and over."""
    listener = Listener(engine, voice, made)
    estimate, mixture = (np.atleast_2d(one) for one in both)
    at, turn = 0, 0
    while at < estimate.shape[1]:
        size = sizes[turn % len(sizes)] if sizes else estimate.shape[1]
        listener.add(estimate[:, at : at + size], mixture[:, at : at + size])
        at, turn = at + size, turn + 1
    return listener.finish()


def scene(seconds: float, rate_hz: int = RATE_HZ) -> tuple[audio.Samples, audio.Samples]:
    """An estimate and its mixture, with something of another voice in both."""
    one, other = (
        np.resize(buzz(pitch_hz, 5, k), round(seconds * rate_hz))
        for k, pitch_hz in enumerate((110, 190))
    )
    return 0.3 * (one + 0.1 * other), one + other


@pytest.mark.parametrize("seconds", [0.3, 3.9, 4.0, 4.1, 8.0, 9.0])
def test_segments_tile_the_file(engine: Engine, voice: audio.Samples, seconds: float) -> None:
    heard = listen(engine, voice, scene(seconds), made=calibration(engine))
    assert heard.segments[0].start_s == 0
    assert heard.segments[-1].end_s == pytest.approx(seconds)
    for before, after in pairwise(heard.segments):
        assert before.end_s == after.start_s == before.start_s + 4
    assert len(heard.segments) == -(-round(seconds * 1000) // 4000)
    assert len(heard.estimate_db) == len(heard.mixture_db) == round(seconds * 100)


@pytest.mark.parametrize("sizes", [(333,), (32_000,), (32_001, 5), (1, 40_000, 7000), (64_000,)])
def test_blocks_of_any_size_are_heard_alike(
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
    heard = listen(engine, voice, (estimate, mixture), made=made)
    e, m = estimate.astype(np.float64), mixture.astype(np.float64)
    gain = (e @ m) / (e @ e)
    likenesses = [
        made.likeness(engine.embed_part(part.astype(np.float32)), voice)
        for part in (gain * e, m - gain * e)
    ]
    assert heard.features is not None
    expected = [*likenesses, np.log10(gain)]
    assert heard.features.tolist() == pytest.approx(expected, abs=1e-5)
    presence = made.presence([Evidence(0, 3, *expected)])
    assert heard.presence == pytest.approx(presence, abs=1e-5)
    assert heard.segments[0].presence == pytest.approx(presence, abs=1e-5)
    assert heard.present is (presence >= 0.5)
    assert heard.wrong_speaker is (expected[1] - expected[0] > made.wrong_speaker)


def test_a_short_end_is_judged_by_the_last_two_seconds(
    engine: Engine, voice: audio.Samples
) -> None:
    estimate, mixture = scene(4.1)
    made = calibration(engine)
    end = slice(-2 * RATE_HZ, None)
    alone = listen(engine, voice, (estimate[end], mixture[end]), made=made)
    heard = listen(engine, voice, (estimate, mixture), made=made)
    first = listen(engine, voice, (estimate[: 4 * RATE_HZ], mixture[: 4 * RATE_HZ]), made=made)
    assert alone.features is not None
    assert first.features is not None
    assert heard.features is not None
    mean = (4 * first.features + 0.1 * alone.features) / 4.1
    assert heard.features.tolist() == pytest.approx(mean.tolist(), abs=1e-6)


def test_a_file_is_judged_by_its_best_twenty_seconds(engine: Engine, voice: audio.Samples) -> None:
    """The voice is heard for 20 s of 40; the rest is there, but turned up by 60 dB."""
    estimate, mixture = scene(40)
    estimate[: 20 * RATE_HZ] *= 1e-3
    made = calibration(engine, 0.0, 0.0, -4.0, 7.0)
    heard = listen(engine, voice, (estimate, mixture), made=made)
    best = listen(engine, voice, (estimate[20 * RATE_HZ :], mixture[20 * RATE_HZ :]), made=made)
    assert heard.presence == pytest.approx(best.presence, abs=1e-6)
    assert heard.present
    there = [one.present for one in heard.segments]
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
    heard = listen(engine, voice, (estimate, (estimate + rest).astype(np.float32)), made=made)
    assert heard.wrong_speaker is wrong


@pytest.mark.parametrize("silent", ["estimate", "mixture", "both"])
def test_nothing_is_heard_in_silence(engine: Engine, voice: audio.Samples, silent: str) -> None:
    estimate, mixture = scene(5.0)
    if silent != "mixture":
        estimate *= 0
    if silent != "estimate":
        mixture *= 0
    heard = listen(engine, voice, (estimate, mixture), made=calibration(engine))
    assert (heard.presence, heard.present, heard.wrong_speaker) == (0.0, False, False)
    assert heard.features is None
    assert [(one.presence, one.present) for one in heard.segments] == [(0.0, False)] * 2
    assert np.isfinite(heard.estimate_db).all()


def test_a_silent_stretch_spares_the_rest(engine: Engine, voice: audio.Samples) -> None:
    estimate, mixture = scene(8.0)
    estimate[: 4 * RATE_HZ], mixture[: 4 * RATE_HZ] = 0, 0
    made = calibration(engine, 0.0, 0.0, 0.0, 3.0)
    heard = listen(engine, voice, (estimate, mixture), made=made)
    assert heard.present
    assert [one.present for one in heard.segments] == [False, True]


def test_without_a_calibration_there_are_only_levels(engine: Engine, voice: audio.Samples) -> None:
    heard = listen(engine, voice, scene(4.5))
    assert len(heard.estimate_db) == 450
    assert (heard.presence, heard.present, heard.wrong_speaker) == (None, None, None)
    assert (heard.features, heard.segments) == (None, ())


def test_the_engines_calibration_is_used(engine: Engine, voice: audio.Samples) -> None:
    own = Engine(engine.runtime, engine.settings, calibration(engine, threshold=0.0))
    assert listen(own, voice, scene(1.0)).present is True
    other = calibration(engine, threshold=1.1)
    assert listen(own, voice, scene(1.0), made=other).present is False


def test_the_loudest_channel_is_heard(engine: Engine, voice: audio.Samples) -> None:
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
    heard = listen(engine, engine.embed([buzz(110, 2)]), both, (9999,), calibration(engine))
    np.testing.assert_array_equal(heard.estimate_db, frame_levels_db(both[0], rate_hz))
    np.testing.assert_array_equal(heard.mixture_db, frame_levels_db(both[1], rate_hz))
    assert len(heard.estimate_db) == int(np.ceil(100 * round(seconds * rate_hz) / rate_hz))
    assert [one.end_s for one in heard.segments[:-1]] == [4.0, 8.0][: len(heard.segments) - 1]
    assert heard.segments[-1].end_s == pytest.approx(seconds, abs=1e-3)
