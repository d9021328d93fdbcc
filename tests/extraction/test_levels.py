"""How loud estimates become, and where speech is by its level, in quiet rooms and in noise."""

from __future__ import annotations

import numpy as np
import pyloudnorm
import pytest

from benchmarks.voices import talk
from mcspex_cli.audio import Samples
from mcspex_cli.extraction.levels import (
    FRAME_S,
    PEAK,
    Level,
    LevelMatcher,
    LoudnessMeter,
    detect_speech,
    frame_levels_db,
    gain_db,
    list_spans,
    smooth_activity,
)
from tests.conftest import RATE_HZ


def test_the_voice_is_matched_by_least_squares_in_every_channel() -> None:
    rng = np.random.default_rng(0)
    voice = rng.standard_normal((2, 4000)).astype(np.float32)
    mixture = voice * np.array([[0.5], [-2.0]], np.float32)
    match = LevelMatcher(2)
    for start in (0, 1500):
        part = slice(start, 1500 if start == 0 else None)
        match.add(voice[:, part], mixture[:, part])
    assert match.gain() == pytest.approx([0.5, -2.0])
    assert match.mixture_mean_square() == pytest.approx(np.square(mixture[1]).mean(), rel=1e-4)
    assert gain_db(match.gain()) == (-6.02, 6.02)


def test_a_silent_estimate_is_left_as_it_is() -> None:
    match = LevelMatcher(1)
    match.add(np.zeros((1, 10), np.float32), np.ones((1, 10), np.float32))
    assert match.gain() == [1.0]


@pytest.mark.parametrize(
    ("text", "peak", "lufs", "clips", "gain", "down_db"),
    [
        ("match", 0.5, 0, True, 1.0, 0.0),
        ("match", 2.0, 0, True, PEAK / 2, 7.02),
        ("match", 2.0, 0, False, 1.0, 0.0),
        ("raw", 2.0, 0, True, PEAK / 2, 7.02),
        ("raw", 2.0, 0, False, 1.0, 0.0),
        ("peak", 0.1, 0, True, PEAK / 0.1, 0.0),
        ("peak", 0.0, 0, True, 1.0, 0.0),
        ("lufs=-23", 0.5, -29.0, True, 10 ** (6 / 20), 0.0),
        ("lufs=-23", 0.25, -29.0, True, 10 ** (6 / 20), 0.0),
        ("lufs=-40", 0.5, -20.0, True, 0.1, 0.0),
        ("lufs=-23", 0.0, -np.inf, True, 1.0, 0.0),
    ],
)
def test_policies(
    text: str, peak: float, lufs: float, clips: bool, gain: float, down_db: float
) -> None:
    expected = pytest.approx((gain, down_db), abs=0.005)
    assert Level.parse(text).gain(peak, lufs, clips=clips) == expected


@pytest.mark.parametrize(
    "text", ["", "loud", "lufs", "lufs=", "lufs=x", "lufs=5", "lufs=nan", "LUFS=-23", "lufs=-71"]
)
def test_other_levels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of match, peak, lufs=-70 to lufs=0, raw"):
        Level.parse(text)


def loudness(samples: Samples, rate_hz: int, blocks: int = 1) -> float:
    """Of samples [channel, sample], given in so many blocks."""
    meter = LoudnessMeter(rate_hz, len(samples))
    for block in np.array_split(samples.astype(np.float32), blocks, axis=1):
        meter.add(block)
    return meter.loudness_lufs()


def sine(hertz: float, level_db: float, seconds: float, rate_hz: int) -> Samples:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def test_a_full_scale_sine_of_997_hz_has_3_01_lufs() -> None:
    assert loudness(sine(997, 0, 5, 48000)[None], 48000) == pytest.approx(-3.01, abs=0.01)


def test_two_channels_at_minus_23_are_minus_23_lufs() -> None:
    tone = sine(1000, -23, 20, 48000)
    assert loudness(np.stack([tone, tone]), 48000) == pytest.approx(-23.0, abs=0.02)


def test_what_is_soft_between_loud_parts_is_gated_out() -> None:
    """A tone at -36, then -23, then -36 dBFS on both channels: -23 LUFS."""
    parts = [
        sine(1000, level, seconds, 48000) for level, seconds in ((-36, 10), (-23, 60), (-36, 10))
    ]
    tone = np.concatenate(parts)
    assert loudness(np.stack([tone, tone]), 48000) == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 44100, 48000, 96000])
def test_another_meter_agrees_at_every_rate(rate_hz: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(rate_hz * 12)
    pauses = np.arange(len(noise)) // rate_hz % 4 < 2
    samples = (np.where(pauses, 0.2, 0.002) * noise + sine(60, -20, 12, rate_hz)).astype(np.float32)
    other = pyloudnorm.Meter(rate_hz, filter_class="DeMan").integrated_loudness(samples)
    assert loudness(samples[None], rate_hz) == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize("blocks", [2, 7, 400])
def test_blocks_of_any_length_measure_the_same(blocks: int) -> None:
    samples = np.random.default_rng(1).standard_normal((2, 44100)).astype(np.float32) / 10
    whole = loudness(samples, 16000)
    assert loudness(samples, 16000, blocks) == pytest.approx(whole, abs=1e-4)


def test_less_than_a_gating_block_is_one() -> None:
    assert loudness(sine(1000, -20, 0.35, 8000)[None], 8000) == pytest.approx(-23, abs=0.5)


@pytest.mark.parametrize(
    "samples", [np.zeros((1, 0)), np.zeros((2, 8000)), np.full((1, 8000), 1e-6)]
)
def test_silence_has_no_loudness(samples: Samples) -> None:
    assert loudness(samples, 8000) == -np.inf


def found(samples: Samples) -> list[tuple[float, float]]:
    return list_spans(smooth_activity(detect_speech(frame_levels_db(samples, RATE_HZ)), 0.1, 0.6))


def noise(seconds: float, level_db: float, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return (10 ** (level_db / 20) * rng.standard_normal(round(seconds * RATE_HZ))).astype(
        np.float32
    )


def padded(seconds: float = 2.0) -> Samples:
    """Speech between two silences of 1 s."""
    silence = np.zeros(RATE_HZ, np.float32)
    return np.concatenate([silence, talk(1, 0, seconds, RATE_HZ), silence])


def test_levels_are_of_10_ms() -> None:
    samples = np.concatenate([np.ones(80), np.zeros(80), np.full(20, 0.1)]).astype(np.float32)
    assert frame_levels_db(samples, RATE_HZ) == pytest.approx([0, -120, -20], abs=1e-4)
    assert len(frame_levels_db(samples[:0], RATE_HZ)) == 0
    assert not detect_speech(np.zeros(0)).size


@pytest.mark.parametrize("noise_db", [None, -70.0, -50.0, -35.0])
def test_speech_is_found_between_silences(noise_db: float | None) -> None:
    """-35 dB is 11 dB below the voice, digital silence 97 dB."""
    samples = padded()
    if noise_db is not None:
        samples = samples + noise(4, noise_db)
    ((start_s, end_s),) = found(samples)
    assert start_s == pytest.approx(1.0, abs=0.15)
    assert end_s == pytest.approx(3.0, abs=0.3)


def test_noise_is_no_speech_where_there_is_also_digital_silence() -> None:
    quiet = noise(3, -45)
    samples = np.concatenate([np.zeros(RATE_HZ, np.float32), quiet, talk(1, 0, 2, RATE_HZ)])
    ((start_s, _),) = found(samples)
    assert start_s == pytest.approx(4.0, abs=0.15)


def test_what_has_no_pauses_is_active_throughout() -> None:
    assert detect_speech(frame_levels_db(noise(2, -30), RATE_HZ)).all()
    sound = talk(1, 0, 4, RATE_HZ)
    said = detect_speech(frame_levels_db(sound, RATE_HZ))
    dense = sound[np.repeat(said, 80)]
    assert smooth_activity(detect_speech(frame_levels_db(dense, RATE_HZ)), 0.1, 0.3).mean() > 0.97


@pytest.mark.parametrize("level_db", [-300.0, -95.0])
def test_silence_is_active_nowhere(level_db: float) -> None:
    assert not detect_speech(frame_levels_db(noise(1, level_db), RATE_HZ)).any()


def test_the_level_of_a_recording_does_not_matter() -> None:
    samples = padded() + noise(4, -50)
    assert found(samples * 0.1) == found(samples)


def test_gaps_are_filled_before_bursts_are_dropped() -> None:
    marks = "..xx.xx....x......xxxxx.."
    said = np.array([mark == "x" for mark in marks])
    both = smooth_activity(said, 0.04, 0.03)
    assert "".join("x" if frame else "." for frame in both) == "..xxxxx...........xxxxx.."
    assert (smooth_activity(said, 0.0, 0.0) == said).all()
    assert list_spans(both) == [(0.02, 0.07), (0.18, 0.23)]
    assert list_spans(np.zeros(3, np.bool_)) == []
    assert FRAME_S == 0.01
