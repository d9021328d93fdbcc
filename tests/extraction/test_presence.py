"""Presence and activity: closed forms, blocks of any size, bad calibrations, files of activity."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mcspex_cli import audio, si_sdr
from mcspex_cli.checkpoint.checkpoint import load_checkpoint
from mcspex_cli.errors import CheckpointError, OutputError
from mcspex_cli.extraction.engine import Engine, Polarity
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.job import Job, Outputs, write_activity
from mcspex_cli.extraction.presence import (
    Calibration,
    PresenceMeter,
    PresenceResult,
    Segment,
    find_spans,
    join_channels,
    mute_gains,
    parse_calibration,
    probability,
)
from mcspex_cli.extraction.reference import Voice
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.speech import frame_levels_db
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build
from mcspex_cli.training import acoustics
from tests.conftest import EXAMPLES, RATE_HZ, buzz, calibration


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine(load_checkpoint(tiny_folder), EngineSettings("cpu", "float32"))


@pytest.fixture(scope="module")
def bundled() -> Extractor:
    return Extractor.load(device="cpu", precision="float32", passes=1)


@pytest.fixture(scope="module")
def voice(engine: Engine) -> audio.Samples:
    return engine.embed([buzz(110, 2, 3)])


@pytest.fixture(scope="module")
def made(voice: audio.Samples) -> Calibration:
    return calibration(
        len(voice),
        echo_weights=(2.0, *[0.0] * (len(voice) - 1), 0.5),
        segment_weights=(3.0, 0.2, 0.4, 0.1),
    )


def measure(
    engine: Engine,
    voice: audio.Samples,
    both: Sequence[audio.Samples],
    made: Calibration | None,
    sizes: Sequence[int] = (),
) -> PresenceResult:
    """Measure estimate and mixture [sample], in blocks of some sizes, over and over."""
    engine.calibration = made
    meter = PresenceMeter(engine, Polarity(voice))
    estimate, mixture = both
    at, turn = 0, 0
    while at < len(estimate):
        size = sizes[turn % len(sizes)] if sizes else len(estimate)
        meter.add(estimate[at : at + size], mixture[at : at + size])
        at, turn = at + size, turn + 1
    return meter.result()


def test_a_segment_is_judged_in_one_polarity_though_that_is_found_in_the_middle_of_it(
    engine: Engine, voice: audio.Samples
) -> None:
    engine.calibration = calibration(len(voice))
    estimate, mixture = scene(2)
    polarity = Polarity(voice)
    upright, late = PresenceMeter(engine, Polarity(voice)), PresenceMeter(engine, polarity)
    upright.add(estimate, mixture)
    late.add(-estimate[:9000], -mixture[:9000])
    polarity.sign = -1.0
    late.add(-estimate[9000:], -mixture[9000:])
    assert late.result().segments == upright.result().segments


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


def test_similarity_ignores_what_echo_changes() -> None:
    made = calibration(3, centre=(1.0, 0.0, -1.0), echo_directions=((0.6, 0.8, 0.0),))
    centre = np.array(made.centre, np.float32)
    echo, across, up = np.array([[0.6, 0.8, 0], [0.8, -0.6, 0], [0, 0, 1]], np.float32)
    one, other = centre + across + up, centre + up
    assert made.similarity(one, other) == pytest.approx(np.sqrt(0.5))
    assert made.similarity(one + 5 * echo, other - 2 * echo) == pytest.approx(np.sqrt(0.5))
    assert made.similarity(centre + echo, other) == 0  # nothing of it is left


def test_echo_is_told_from_the_direction_of_an_embedding() -> None:
    made = calibration(2, centre=(1.0, 1.0), echo_weights=(3.0, -4.0, 0.5))
    for embedding, odds in (([1, -4], 4.5), ([4, 5], 0.6 * 3 - 0.8 * 4 + 0.5), ([1, 1], 0.5)):
        echo = made.echo(np.array(embedding, np.float32))
        assert echo == pytest.approx(1 / (1 + np.exp(-odds)))


def test_one_sure_segment_makes_a_file_present() -> None:
    """The soft maximum, by hand; it lies between the mean and the maximum."""
    made = calibration(1, segment_weights=(2.0, -0.5, 0.1, 1.0), file_weights=(1.5, -0.25))
    features = np.array([[0.9, 2.0, 1.0], [-0.5, 3.0, 0.0], [0.1, 2.5, -3.0]])
    odds = np.array([2 * 0.9 - 0.5 * 2 + 0.1 + 1, -1 - 1.5 + 1, 0.2 - 1.25 - 0.3 + 1])
    assert made.segment_odds(features).tolist() == pytest.approx(odds.tolist())
    soft = np.log(np.mean(np.exp(2 * odds))) / 2
    assert made.file_odds(features) == pytest.approx(1.5 * soft - 0.25)
    sure = np.array([[1.0, 0.0, 0.0], *[[-1.0, 4.0, 0.0]] * 9])
    unsure = np.array([[0.0, 4.0, 0.0]] * 10)
    assert made.file_odds(sure) > made.file_odds(unsure) + 1
    assert probability(made.file_odds(features[:0])) == 0


@pytest.mark.parametrize(("odds", "presence"), [(-5e3, 0.0), (-800, 0.0), (0, 0.5), (5e3, 1.0)])
def test_extreme_odds_are_probabilities(odds: float, presence: float) -> None:
    assert probability(odds) == presence
    made = calibration(1, segment_weights=(0.0, 0.0, 0.0, odds))
    assert probability(made.file_odds(np.zeros((3, 3)))) == pytest.approx(presence)


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


def test_a_segment_is_judged_by_similarity_gain_and_echo(
    engine: Engine, voice: audio.Samples, made: Calibration
) -> None:
    """By hand, of one segment: the cosines, and the gain that matches the estimate."""
    estimate, mixture = scene(2.0)
    result = measure(engine, voice, (estimate, mixture), made)
    e, m = estimate.astype(np.float64), mixture.astype(np.float64)
    gain = (e @ m) / (e @ e)
    embedding, residual_embedding = (
        engine.embed_parts(part.astype(np.float32)[None])[0] for part in (gain * e, m - gain * e)
    )
    similarity = made.similarity(embedding, voice)
    residual_similarity = made.similarity(residual_embedding, voice)
    odds = 3 * similarity + 0.2 * np.log10(gain) + 0.4 * made.echo(embedding) + 0.1
    assert abs(made.echo(embedding) - 0.5) > 0.01
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


@pytest.mark.parametrize(("rest_db", "wrong"), [(-7.0, False), (-5.0, True), (5.0, True)])
def test_the_wrong_speaker_needs_somebody_else_to_be_there(
    engine: Engine, voice: audio.Samples, made: Calibration, rest_db: float, wrong: bool
) -> None:
    """The residual of a voice alone is similar to it too."""
    time = np.arange(3 * RATE_HZ) / RATE_HZ
    estimate = np.sin(2 * np.pi * 200 * time).astype(np.float32)
    rest = 10 ** (rest_db / 20) * np.cos(2 * np.pi * 200 * time)
    both = estimate, (estimate + rest).astype(np.float32)
    low = replace(made, segment_weights=(0.0, 0.0, 0.0, 0.0), wrong_speaker=-9.0)
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
    result = measure(
        engine, voice, (estimate, mixture), replace(made, segment_weights=(0, 0, 0, 3.0))
    )
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

    results = [channel(0.3, 0.2, 0.3), channel(0.9, 0.9, 0.1)]
    joined = join_channels(results, [0.0, 0.0], 1.5)
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
    "of an interview": ["set/references/slt", "set/mixtures/slt_1", "set/references/rms"],
}
"""Recordings with turns, as the files of the examples that they are made of."""


@pytest.mark.parametrize(
    ("recording", "reference", "present"),
    [
        ("of five files", "set/truth/rms_2.flac", True),
        ("of an interview", "voices/kal/kal-000.ogg", False),
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


@pytest.mark.parametrize("t60_s", [0.2, 0.6])
def test_a_voice_is_found_in_an_echoing_room_and_another_is_not(
    bundled: Extractor, t60_s: float
) -> None:
    rate_hz = bundled.sample_rate_hz
    room = acoustics.draw_room(t60_s, 1, np.random.default_rng(0))
    length = round(t60_s * rate_hz)
    response = acoustics.room_responses([room], length, rate_hz, torch.device("cpu"))[0, 0]
    mixture = torch.from_numpy(audio.read(EXAMPLES / "mixture.flac", rate_hz))
    heard = acoustics.convolve(mixture, response).numpy()
    for reference, present in (("reference.flac", True), ("set/references/awb.flac", False)):
        result = bundled.extract(heard, bundled.enroll(EXAMPLES / reference))
        assert result.present is present, result.presence


def test_a_voice_is_found_whatever_polarity_mixture_and_references_have(
    bundled: Extractor, tmp_path: Path
) -> None:
    """A loudspeaker that moves in where it should move out sounds the same."""
    rate_hz = bundled.sample_rate_hz
    reference, mixture, target = (
        audio.read(EXAMPLES / "set" / f"{name}.flac", rate_hz)
        for name in ("references/rms", "mixtures/rms_1", "truth/rms_1")
    )
    clips = tmp_path / "same.wav", tmp_path / "inverse.wav"
    for clip, sign in zip(clips, (1, -1), strict=True):
        soundfile.write(clip, sign * reference, rate_hz, "FLOAT")
    gains = []
    for references in ([clips[0]], [clips[1]], [*clips]):
        voice = bundled.enroll(references)
        results = [
            bundled.extract(sign * mixture, voice, sample_rate_hz=rate_hz) for sign in (1, -1)
        ]
        assert all(result.present for result in results)
        estimates = [result.estimate for result in results if result.estimate is not None]
        np.testing.assert_allclose(estimates[0], -estimates[1], atol=1e-4)
        gains.append(si_sdr(estimates[0], target) - si_sdr(mixture, target))
    assert min(gains) > max(gains) - 2
    assert min(gains) > 5


def raw(**changed: Any) -> dict[str, Any]:
    """A calibration as config.json has it."""
    return {**json.loads(json.dumps(asdict(calibration(3)))), "measured": {"auc": 0.9}, **changed}


def test_a_calibration_comes_through_json() -> None:
    assert parse_calibration(raw(), 3, "m") == replace(calibration(3), measured={"auc": 0.9})
    assert parse_calibration(None, 3, "m") is None


def test_an_older_calibration_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    old = raw(segment_weights=[0.0] * 3)
    del old["echo_directions"], old["echo_weights"]
    assert parse_calibration(old, 3, "m") is None
    assert "m: was calibrated by an older mcspex" in caplog.text


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"centre": [0.0] * 3, "echo_weights": [0.0] * 4}, "malformed"),
        *((value, "malformed") for value in ([], "none", 3, raw(centre=["a"]), raw(centre=5))),
        *((raw(**one), "malformed") for one in (
            {"segment_weights": [1.0] * 3}, {"echo_directions": [1.0]},
            {"file_weights": [[1], 0]}, {"threshold": None}, {"threshold": 10**400},
            {"threshold": 1.1}, {"segment_threshold": -0.1}, {"mute_threshold": 5.0},
            {"wrong_speaker": []}, {"measured": "much"},
        )),
        *((raw(**one), "of another model") for one in (
            {"centre": [1.0, 0.0]}, {"centre": []}, {"centre": [float("nan"), 0, 0]},
            {"segment_weights": [float("inf"), 0, 0, 0]}, {"echo_weights": [0.0] * 3},
            {"echo_directions": [[0.0] * 3, [0.0]]}, {"wrong_speaker": float("nan")},
        )),
    ],
)  # fmt: skip
def test_a_calibration_that_cannot_be_used_is_named(value: Any, kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m: its calibration is {kind}. Calibrate it again"):
        parse_calibration(value, 3, "m")


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


@pytest.mark.parametrize(
    ("results", "gains_db", "expected"),
    [
        *(([measured(*loud)], [0.0], expected) for loud, expected in (
            (((1.0, 3.0), (5.0, 9.5)), [(1.0, 3.0), (5.0, 9.5)]),
            (((1.0, 3.0), (3.4, 5.0)), [(1.0, 5.0)]),  # a pause of 0.4 s is none
            (((1.0, 3.0), (3.6, 5.0)), [(1.0, 3.0), (3.6, 5.0)]),  # 0.6 s are one
            (((1.0, 3.0), (6.0, 6.2)), [(1.0, 3.0)]),  # 0.2 s are no speech
            (((1.0, 3.0), (6.0, 6.4)), [(1.0, 3.0), (6.0, 6.4)]),  # 0.4 s are
            (((1.0, 1.2), (1.4, 1.6), (6.0, 8.0)), [(1.0, 1.6), (6.0, 8.0)]),  # pauses go first
        )),
        # what is 20 dB below the mixture is not the voice; levels are compared at the matched gain
        ([measured((1.0, 3.0), mixture_db=LOUD_DB + 19)], [0.0], [(1.0, 3.0)]),
        ([measured((1.0, 3.0), mixture_db=LOUD_DB + 21)], [0.0], []),
        ([measured((1.0, 3.0), mixture_db=LOUD_DB + 40)], [30.0], [(1.0, 3.0)]),
        ([measured((1.0, 3.0), mixture_db=LOUD_DB + 40)], [10.0], []),
        # segments without the voice have no spans, nor have files
        ([measured((1.0, 11.0), presences=(0.9, 0.3, 0.8), presence=0.9, present=True)], [0.0],
         [(1.0, 4.0), (8.0, 11.0)]),
        ([measured((1.0, 3.0), presence=0.1, present=False)], [0.0], []),
        # in any channel: each at its own gain, and one without the voice counts for nothing
        ([measured((1.0, 3.0), present=True), measured((6.0, 8.0), mixture_db=LOUD_DB + 40),
          measured((9.0, 11.0), presence=0.1, present=False)],
         [0.0, 30.0, 0.0], [(1.0, 3.0), (6.0, 8.0)]),
        ([PresenceResult(np.full(300, -120.0), np.full(300, -120.0))], [0.0], []),
        ([PresenceResult(np.zeros(0), np.zeros(0))], [0.0], []),
    ],
)  # fmt: skip
def test_spans_are_where_the_voice_is_loud(
    results: list[PresenceResult], gains_db: list[float], expected: list[tuple[float, float]]
) -> None:
    spans = find_spans(results, gains_db)
    assert len(spans) == len(expected)
    assert np.ravel(spans) == pytest.approx(np.ravel(expected), abs=0.035)


def test_the_gate_closes_over_surely_absent_segments_and_fades() -> None:
    """0.3 is under the threshold, but not surely absent."""
    times, gains = mute_gains(measured(presences=(0.9, 0.1, 0.3)).segments)
    assert times == pytest.approx([0.0, 3.975, 4.025, 7.975, 8.025])
    assert gains == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert mute_gains(measured(presences=(0.1, 0.1, 0.1)).segments) == ([0.0], [0.0])
    assert mute_gains(measured(presences=(0.9,), seconds=3.0).segments) == ([0.0], [1.0])


NOBODY = Voice(np.ones(2, np.float32), (), 2.0, (), ())


def written(
    folder: Path,
    suffix: str,
    spans: list[tuple[float, float]],
    speaker: str = "target",
    id: str = "",
) -> str:
    """What an activity file says of some spans."""
    path = folder / f"a{suffix}"
    result = measured(presences=(0.91234, 0.2, 0.7), presence=0.87654, present=True)
    outputs = Outputs("e.wav", activity=path, speaker=speaker)
    job = Job("talks/day 1.wav", NOBODY, outputs, id)
    write_activity(job, replace(result, spans=tuple(spans)))
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
    outputs = Outputs("e.wav", activity=tmp_path / "a.JSON")
    write_activity(Job("/tmp/x", NOBODY, outputs, "stdin"), measured())
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
        written(tmp_path, ".RTTM", SPANS[:1], id="a b", speaker=" ")
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
    result = replace(measured(), spans=tuple(SPANS))
    with pytest.raises(OutputError, match=r"none/a.srt"):
        outputs = Outputs("e.wav", activity=tmp_path / "none" / "a.srt")
        write_activity(Job("m.wav", NOBODY, outputs), result)
