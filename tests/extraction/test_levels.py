"""How loud estimates become."""

from __future__ import annotations

import numpy as np
import pytest

from mcspex_cli.extraction.levels import PEAK, Level, Match, gain_db


def test_the_voice_is_matched_by_least_squares_in_every_channel() -> None:
    rng = np.random.default_rng(0)
    voice = rng.standard_normal((2, 4000)).astype(np.float32)
    mixture = voice * np.array([[0.5], [-2.0]], np.float32)
    match = Match(2)
    for start in (0, 1500):
        part = slice(start, 1500 if start == 0 else None)
        match.add(voice[:, part], mixture[:, part])
    assert match.gain() == pytest.approx([0.5, -2.0])
    assert match.mixture_mean_square() == pytest.approx(np.square(mixture[1]).mean(), rel=1e-4)
    assert gain_db(match.gain()) == (-6.02, 6.02)


def test_a_silent_estimate_is_left_as_it_is() -> None:
    match = Match(1)
    match.add(np.zeros((1, 10), np.float32), np.ones((1, 10), np.float32))
    assert match.gain() == [1.0]


@pytest.mark.parametrize(
    ("text", "peak", "lufs", "clips", "factor", "limited"),
    [
        ("match", 0.5, 0, True, 1.0, False),
        ("match", 2.0, 0, True, PEAK / 2, True),
        ("match", 2.0, 0, False, PEAK / 2, True),
        ("raw", 2.0, 0, True, PEAK / 2, True),
        ("raw", 2.0, 0, False, 1.0, False),
        ("peak", 0.1, 0, True, PEAK / 0.1, False),
        ("peak", 0.0, 0, True, 1.0, False),
        ("lufs=-23", 0.5, -29.0, True, 10 ** (6 / 20), False),
        ("lufs=-23", 0.25, -29.0, True, 10 ** (6 / 20), False),
        ("lufs=-40", 0.5, -20.0, True, 0.1, False),
        ("lufs=-23", 0.0, -np.inf, True, 1.0, False),
    ],
)
def test_policies(
    text: str, peak: float, lufs: float, clips: bool, factor: float, limited: bool
) -> None:
    made, less = Level.parse(text).factor(peak, lufs, clips=clips)
    assert (made, less) == (pytest.approx(factor), limited)


@pytest.mark.parametrize(
    "text", ["", "loud", "lufs", "lufs=", "lufs=x", "lufs=5", "lufs=nan", "LUFS=-23", "lufs=-71"]
)
def test_other_levels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is none of match, peak, raw and lufs=-70"):
        Level.parse(text)
