"""How loud estimates become."""

from __future__ import annotations

import numpy as np
import pytest

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.levels import (
    PEAK,
    GainMeter,
    Level,
    LevelMatcher,
    LoudnessMeter,
    gains_db,
)


def test_the_voice_is_matched_by_least_squares_in_every_channel() -> None:
    rng = np.random.default_rng(0)
    voice = rng.standard_normal((2, 4000)).astype(np.float32)
    mixture = voice * np.array([[0.5], [-2.0]], np.float32)
    match = LevelMatcher(2)
    for start in (0, 1500):
        part = slice(start, 1500 if start == 0 else None)
        match.add(voice[:, part], mixture[:, part])
    assert match.gains() == pytest.approx([0.5, -2.0])
    assert match.mixture_mean_square() == pytest.approx(np.square(mixture[1]).mean(), rel=1e-4)
    assert gains_db(match.gains()) == (-6.02, 6.02)


def test_a_silent_estimate_is_left_as_it_is() -> None:
    match = LevelMatcher(1)
    match.add(np.zeros((1, 10), np.float32), np.ones((1, 10), np.float32))
    assert match.gains() == [1.0]


@pytest.mark.parametrize(
    ("text", "peak", "clips", "gain", "down_db"),
    [
        ("match", 0.5, True, 1.0, 0.0),
        ("match", 2.0, True, PEAK / 2, 7.02),
        ("match", 2.0, False, 1.0, 0.0),
        ("raw", 2.0, True, PEAK / 2, 7.02),
        ("raw", 2.0, False, 1.0, 0.0),
        ("peak", 0.1, True, PEAK / 0.1, 0.0),
        ("peak", 0.0, True, 1.0, 0.0),
        ("lufs=-9.03", 0.25, True, 2.0, 0.0),
        ("lufs=-40", 0.5, True, 10 ** (-30.97 / 20), 0.0),
        ("lufs=0", 0.5, True, PEAK / 0.5, 4.01),
        ("lufs=0", 0.5, False, 10 ** (9.03 / 20), 0.0),
        ("lufs=-23", 0.0, True, 1.0, 0.0),
    ],
)
def test_policies(text: str, peak: float, clips: bool, gain: float, down_db: float) -> None:
    """Of a sine of 997 Hz, whose loudness is 3.01 dB below its peak."""
    meter = GainMeter(Level.parse(text), 48000, 1)
    for block in np.split(np.float32(peak) * sine(997, 0, 2, 48000)[None], 4, axis=1):
        meter.add(block)
    assert meter.peak == pytest.approx(peak, rel=1e-3)
    level_gain = meter.gain(clips=clips)
    assert level_gain.gain == pytest.approx(gain, rel=0.005)
    assert level_gain.limit_db == pytest.approx(down_db, abs=0.02)
    assert level_gain.too_soft == (text.startswith(("peak", "lufs")) and not peak)


@pytest.mark.parametrize(
    "text", ["", "loud", "lufs", "lufs=", "lufs=x", "lufs=5", "lufs=nan", "LUFS=-23", "lufs=-71"]
)
def test_other_levels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of match, .*lufs=-70 to lufs=0, "):
        Level.parse(text)


def loudness(samples: Samples, rate_hz: int, blocks: int = 1) -> float:
    """Of samples [channel, sample], given in so many blocks."""
    meter = LoudnessMeter(rate_hz, len(samples))
    for block in np.array_split(samples.astype(np.float32), blocks, axis=1):
        meter.add(block)
    return meter.level()


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
    import pyloudnorm  # which imports scipy.signal: too long for all who only collect tests

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
