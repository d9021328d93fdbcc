"""Cutting, joining, and what cannot be heard."""

from __future__ import annotations

import numpy as np
import pytest

from mcspex_cli.audio import Samples, without_rumble
from mcspex_cli.extraction.windows import Joiner, Windowing, cut

RATE_HZ = 8000
WINDOWINGS = [
    Windowing(10, 0, 0),
    Windowing(10, 2, 0),
    Windowing(10, 2, 3),
    Windowing(11, 3, 4),
    Windowing(12, 0, 11),
]


def blocks_of(signal: Samples, size: int) -> list[Samples]:
    return [signal[..., i : i + size] for i in range(0, signal.shape[-1], size)]


@pytest.mark.parametrize("windowing", WINDOWINGS, ids=str)
@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_the_identity_is_the_identity_at_every_length(windowing: Windowing, size: int) -> None:
    for length in range(1, 70):
        signal = np.arange(2 * length, dtype=np.float32).reshape(2, length)
        joiner = Joiner(windowing.context, windowing.fade)
        pairs = [joiner.add(w, w.samples) for w in cut(blocks_of(signal, size), windowing)]
        estimate, mixture = (np.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))
        np.testing.assert_allclose(estimate, signal, rtol=1e-6)
        np.testing.assert_array_equal(mixture, signal)


@pytest.mark.parametrize("windowing", WINDOWINGS, ids=str)
def test_windows_are_equally_long_and_the_last_ends_with_the_signal(windowing: Windowing) -> None:
    for length in range(1, 70):
        signal = np.arange(length, dtype=np.float32)
        windows = list(cut(blocks_of(signal, 7), windowing))
        assert {w.samples.shape[-1] for w in windows} == {min(length, windowing.window)}
        assert [w.last for w in windows] == [False] * (len(windows) - 1) + [True]
        assert windows[-1].start + windows[-1].samples.shape[-1] == length
        for number, window in enumerate(windows[:-1]):
            assert window.start == number * windowing.hop
            np.testing.assert_array_equal(
                window.samples, signal[window.start : window.start + windowing.window]
            )


@pytest.mark.parametrize("length", [25, 30, 31, 40, 47])
def test_what_is_near_the_edges_of_a_window_is_discarded(length: int) -> None:
    windowing, signal = Windowing(12, 3, 2), np.ones((1, length), np.float32)
    joiner, joined = Joiner(windowing.context, windowing.fade), []
    for window in cut([signal], windowing):
        spoiled = window.samples.copy()
        if window.start:
            spoiled[:, :3] = 1e6
        if not window.last:
            spoiled[:, -3:] = 1e6
        joined.append(joiner.add(window, spoiled)[0])
    np.testing.assert_allclose(np.concatenate(joined, axis=1), signal)


def test_memory_is_bounded_by_a_window_and_a_block() -> None:
    windowing = Windowing(100, 10, 5)
    held = [w.samples.base.nbytes for w in cut((np.zeros((1, 7), np.float32),) * 10_000, windowing)]
    assert max(held) < 4 * 250


def test_no_samples_are_no_windows() -> None:
    windowing = Windowing(10, 2, 2)
    assert list(cut([], windowing)) == []
    assert list(cut([np.zeros((1, 0), np.float32)], windowing)) == []


@pytest.mark.parametrize("lengths", [(10, 5, 0), (10, -1, 0), (4, 1, 2)])
def test_lengths_that_keep_nothing_are_refused(lengths: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="keeps nothing"):
        Windowing(*lengths)


def audible(signal: Samples, size: int = 10**6) -> Samples:
    parts = list(without_rumble(blocks_of(signal, size), RATE_HZ))
    return np.concatenate(parts, axis=1) if parts else signal[:, :0]


@pytest.mark.parametrize(
    ("hz", "gain"), [(0, 0), (3, 0), (20, 0), (54, 0.02), (68, 1), (90, 1), (1000, 1)]
)
def test_what_is_below_60_hz_goes_and_the_rest_stays_where_it_is(hz: float, gain: float) -> None:
    tone = np.cos(2 * np.pi * hz * np.arange(4 * RATE_HZ) / RATE_HZ).astype(np.float32)[None]
    left = audible(tone)
    inside = slice(RATE_HZ // 2, -RATE_HZ // 2)
    if gain == 1:
        np.testing.assert_allclose(left[:, inside], tone[:, inside], atol=0.01)
    else:
        assert np.abs(left[:, inside]).max() <= gain + 1e-3


@pytest.mark.parametrize("length", [1, 9, 1600, 1601, 2400, 3201, 40_000])
def test_blocks_of_any_size_are_filtered_as_one(length: int) -> None:
    signal = np.random.default_rng(0).standard_normal((2, length)).astype(np.float32)
    whole = audible(signal)
    assert whole.shape == signal.shape
    for size in (max(1, length // 7), 977, 5000):
        np.testing.assert_allclose(audible(signal, size), whole, atol=1e-4)
    constant = np.full((1, length), 0.4, np.float32)
    assert np.abs(audible(constant)).max() < 1e-5  # at the ends, too
