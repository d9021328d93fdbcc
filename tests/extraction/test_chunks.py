"""Cutting and joining."""

from __future__ import annotations

import numpy as np
import pytest

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.chunks import Windowing, cut, join

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
        windows = list(cut(blocks_of(signal, size), windowing))
        joined = np.concatenate(list(join(((w, w.samples) for w in windows), windowing)), axis=1)
        np.testing.assert_allclose(joined, signal, rtol=1e-6)


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
def test_what_lies_near_a_windows_edges_is_discarded(length: int) -> None:
    windowing = Windowing(12, 3, 2)
    signal = np.ones(length, np.float32)

    def spoil(samples: Samples, start: int, last: bool) -> Samples:
        """Ruin the context at every edge that is not the signal's own."""
        made = samples.copy()
        if start:
            made[:3] = 1e6
        if not last:
            made[-3:] = 1e6
        return made

    windows = cut([signal], windowing)
    pieces = ((w, spoil(w.samples, w.start, w.last)) for w in windows)
    np.testing.assert_allclose(np.concatenate(list(join(pieces, windowing))), signal)


def test_memory_is_bounded_by_a_window_and_a_block() -> None:
    windowing = Windowing(100, 10, 5)
    held = [w.samples.base.nbytes for w in cut((np.zeros((1, 7), np.float32),) * 10_000, windowing)]
    assert max(held) < 4 * 250


def test_nothing_comes_of_nothing() -> None:
    windowing = Windowing(10, 2, 2)
    assert list(cut([], windowing)) == []
    assert list(cut([np.zeros((1, 0), np.float32)], windowing)) == []


@pytest.mark.parametrize("lengths", [(10, 5, 0), (10, -1, 0), (4, 1, 2)])
def test_lengths_that_keep_nothing_are_refused(lengths: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="keeps nothing"):
        Windowing(*lengths)
