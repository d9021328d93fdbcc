"""Speech that nobody said."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.synthesis import scene, talk


def spectrum(sound: np.ndarray) -> np.ndarray:
    """The mean spectrum, normalised."""
    frames = sound[: len(sound) // 1024 * 1024].reshape(-1, 1024)
    mean = np.abs(np.fft.rfft(frames)).mean(0)
    return mean / np.linalg.norm(mean)


def test_the_same_numbers_are_the_same_samples() -> None:
    np.testing.assert_array_equal(talk(0, 3, 2, 8000), talk(0, 3, 2, 8000))
    assert not np.array_equal(talk(0, 3, 2, 8000), talk(0, 4, 2, 8000))
    np.testing.assert_array_equal(talk(0, 3, 2, 8000), talk(0, 3, 4, 8000)[:16000])


@pytest.mark.parametrize("rate_hz", [8000, 16000])
@pytest.mark.parametrize("voice", [0, 1, 2])
def test_it_is_as_loud_as_speech_with_pauses(voice: int, rate_hz: int) -> None:
    sound = talk(voice, 0, 10, rate_hz)
    assert (len(sound), sound.dtype) == (10 * rate_hz, np.float32)
    assert 0.04 < sound.std() < 0.08
    assert 0.1 < np.abs(sound).max() < 0.5
    assert abs(sound.mean()) < 1e-3
    assert 0.05 < np.mean(sound == 0) < 0.4


def test_a_mixture_is_not_clipped_and_holds_both() -> None:
    mixture, reference = scene(30, 8000)
    assert (len(mixture), len(reference)) == (30 * 8000, 5 * 8000)
    assert np.abs(mixture).max() < 1
    np.testing.assert_allclose(mixture, talk(0, 0, 30, 8000) + talk(1, 0, 30, 8000))


def test_voices_differ_more_than_takes() -> None:
    own, again, other = (spectrum(talk(*who, 30, 8000)) for who in ((0, 0), (0, 1), (1, 0)))
    assert own @ again > 0.97
    assert own @ other < 0.92


def test_a_part_of_a_second_is_enough() -> None:
    assert len(talk(0, 0, 0.01, 8000)) == 80
