"""Where speech is by its level, in quiet rooms and in noise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.voices import talk
from mcspex_cli.audio import Samples
from mcspex_cli.extraction.speech import (
    FRAME_S,
    detect_speech,
    even_gains_db,
    find_pauses,
    frame_levels_db,
    list_spans,
    smooth_activity,
)
from tests.conftest import RATE_HZ


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


@pytest.mark.parametrize("wavering_db", [0, 5])
def test_rare_speech_is_found_in_noise(wavering_db: float) -> None:
    """As on the track of a microphone whose owner hardly speaks: 3 s in 2 min."""
    wave = np.sin(np.arange(120 * RATE_HZ) / RATE_HZ, dtype=np.float32)
    samples = noise(120, -60) * 10 ** (wavering_db / 20 * wave)
    samples[60 * RATE_HZ : 63 * RATE_HZ] += talk(1, 0, 3, RATE_HZ)
    ((start_s, end_s),) = found(samples)
    assert start_s == pytest.approx(60.0, abs=0.15)
    assert end_s == pytest.approx(63.0, abs=0.5)


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


@pytest.mark.parametrize("noise_db", [None, -45.0])
def test_pauses_of_a_second_are_found_but_for_what_is_next_to_speech(
    noise_db: float | None,
) -> None:
    voice, pause = talk(1, 0, 2, RATE_HZ), np.zeros(3 * RATE_HZ, np.float32)
    samples = np.concatenate([pause, voice, pause[: RATE_HZ // 2], voice, pause])
    if noise_db is not None:
        samples = samples + noise(10.5, noise_db)
    (before, after) = list_spans(find_pauses(samples, RATE_HZ)[:: RATE_HZ // 100])
    assert before == pytest.approx((0.0, 2.75), abs=0.1)
    assert after == pytest.approx((7.75, 10.5), abs=0.4)
    assert not find_pauses(noise(2, -30), RATE_HZ).any()


def test_only_soft_passages_and_bursts_change_what_a_network_gets() -> None:
    voice = np.concatenate([talk(1, number, 2, RATE_HZ) for number in range(2)])
    assert not even_gains_db(frame_levels_db(voice, RATE_HZ)).any()
    soft, loud = voice.copy(), voice.copy()
    soft[2 * RATE_HZ :] *= 0.05  # 26 dB, half of which is left
    gains_db = even_gains_db(frame_levels_db(soft, RATE_HZ))
    assert not gains_db[:140].any()
    assert gains_db[250:] == pytest.approx(13, abs=2)
    loud[RATE_HZ : RATE_HZ * 11 // 10] += noise(0.1, 10)
    levels_db = frame_levels_db(loud, RATE_HZ)
    gains_db = even_gains_db(levels_db)
    assert np.flatnonzero(gains_db)[[0, -1]] == pytest.approx([80, 129], abs=3)
    assert np.ptp((levels_db + gains_db)[100:110]) < 6
    assert not even_gains_db(np.full(3, -120.0)).any()


def test_gaps_are_filled_before_bursts_are_dropped() -> None:
    marks = "..xx.xx....x......xxxxx.."
    said = np.array([mark == "x" for mark in marks])
    both = smooth_activity(said, 0.04, 0.03)
    assert "".join("x" if frame else "." for frame in both) == "..xxxxx...........xxxxx.."
    assert (smooth_activity(said, 0.0, 0.0) == said).all()
    assert list_spans(both) == [(0.02, 0.07), (0.18, 0.23)]
    assert list_spans(np.zeros(3, np.bool_)) == []
    assert FRAME_S == 0.01
