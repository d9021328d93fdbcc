"""Several signals as batches of windows: what goes in comes out, each for itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.chunks import Windowing
from mcspex_cli.extraction.signals import Signal, batches, cut_all, joined

SHORT = Windowing(100, 10, 5)
VOICE = np.zeros(4, np.float32)


def noise(seed: int, length: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, length)).astype(np.float32)


def through(signals: list[Signal], size: int) -> Iterator[tuple[Signal, np.ndarray]]:
    """Each signal with what a network that changes nothing but the sign makes of it."""
    done = []
    for batch in batches(cut_all(signals, SHORT), lambda: size):
        for cut in batch:
            samples = cut.window.samples
            made = None if cut.error else np.concatenate([-samples, samples])
            done.append(replace(cut, made=made))
    for signal, own in groupby(done, key=lambda cut: cut.signal):
        estimates, mixtures = zip(*joined(own, SHORT), strict=True)
        np.testing.assert_allclose(
            np.concatenate(estimates, axis=1), -np.concatenate(mixtures, axis=1), atol=1e-6
        )
        yield signal, np.concatenate(mixtures, axis=1)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_cut_batched_and_joined_they_are_what_they_were(size: int) -> None:
    lengths = [1, 99, 100, 101, 100, 100, 175, 176, 1000, 40, 40]
    sounds = [noise(i, length, 1 + i % 2) for i, length in enumerate(lengths)]
    signals = [Signal(np.array_split(sound, 3, axis=1), VOICE, i) for i, sound in enumerate(sounds)]
    came = list(through(signals, size))
    assert [signal.label for signal, _ in came] == list(range(len(lengths)))
    for (_, back), sound in zip(came, sounds, strict=True):
        np.testing.assert_allclose(back, sound, atol=1e-6)


def shapes(signals: list[Signal], size: int) -> list[list[object]]:
    """The labels of the signals in each batch."""
    return [
        [c.signal.label for c in batch] for batch in batches(cut_all(signals, SHORT), lambda: size)
    ]


def test_a_batch_has_neighbours_of_one_length_and_unit() -> None:
    made = [("a", 50, 1), ("b", 50, 1), ("c", 51, 1), ("d", 50, 1), ("e", 50, 2), ("f", 50, 2)]
    signals = [Signal([noise(0, length)], VOICE, label, unit) for label, length, unit in made]
    assert shapes(signals, 4) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def test_long_signals_share_batches_of_full_windows() -> None:
    signals = [Signal([noise(0, 250)], VOICE, label) for label in "ab"]
    assert shapes(signals, 2) == [["a", "a"], ["a", "b"], ["b", "b"]]


def test_a_batch_counts_channels() -> None:
    signals = [Signal([noise(0, 60, 2)], VOICE, label) for label in "abc"]
    assert shapes(signals, 1) == [["a"], ["b"], ["c"]]
    assert shapes(signals, 3) == [["a", "b"], ["c"]]


def test_the_size_may_shrink_on_the_way() -> None:
    signals = [Signal([noise(0, 60)], VOICE, label) for label in "abcd"]
    sizes = [2]
    made = []
    for batch in batches(cut_all(signals, SHORT), lambda: sizes[0]):
        made.append([cut.signal.label for cut in batch])
        sizes[0] = 1
    assert made == [["a", "b"], ["c"], ["d"]]


def test_a_signal_that_breaks_gives_what_came_before_and_spares_its_neighbours() -> None:
    def breaking() -> Iterator[np.ndarray]:
        yield noise(1, 260)
        raise AudioError("b.wav: damaged.")

    signals = [
        Signal([noise(0, 100)], VOICE, "a"),
        Signal(breaking(), VOICE, "b"),
        Signal([noise(2, 100)], VOICE, "c"),
    ]
    cuts = [
        cut if cut.error else replace(cut, made=np.concatenate([cut.window.samples] * 2))
        for batch in batches(cut_all(signals, SHORT), lambda: 2)
        for cut in batch
    ]
    by_label = {c.signal.label: [d for d in cuts if d.signal is c.signal] for c in cuts}
    came = []
    with pytest.raises(AudioError, match=r"b.wav: damaged"):
        for estimate, _ in joined(by_label["b"], SHORT):
            came.append(estimate)
    before = np.concatenate(came, axis=1)
    np.testing.assert_allclose(before, noise(1, 260)[:, : before.shape[1]], atol=1e-6)
    assert before.shape[1] > 0
    for label, seed in (("a", 0), ("c", 2)):
        ((estimate, _),) = joined(by_label[label], SHORT)
        np.testing.assert_array_equal(estimate, noise(seed, 100))
