"""Loudness against the recommendation's own figures and another program's meter."""

from __future__ import annotations

import numpy as np
import pyloudnorm
import pytest

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.loudness import Meter


def loudness(samples: Samples, rate_hz: int, blocks: int = 1) -> float:
    """Of samples [channel, sample], given in so many blocks."""
    meter = Meter(rate_hz, len(samples))
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
