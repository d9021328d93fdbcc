"""Long clips are cut to their speech, short ones at their ends only; levels are made usable."""

from __future__ import annotations

import numpy as np
import pytest

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.synthesis import talk
from mcspex_cli.extraction.trimming import CAP_S, only_speech, trim
from tests.conftest import RATE_HZ


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def seconds(samples: Samples) -> float:
    return len(samples) / RATE_HZ


def test_pauses_of_a_long_clip_are_cut() -> None:
    said = talk(1, 0, 3, RATE_HZ)
    clip = np.concatenate([silence(4), said, silence(3), said, silence(2)])
    assert seconds(trim(clip, RATE_HZ)) == pytest.approx(6.2, abs=0.4)


def test_a_long_clip_has_an_end() -> None:
    said = talk(1, 0, CAP_S + 20, RATE_HZ)
    assert seconds(trim(said, RATE_HZ)) == CAP_S
    assert np.array_equal(trim(said, RATE_HZ)[:800], said[:800])


@pytest.mark.parametrize(("before_s", "after_s", "left_s"), [(0.9, 0.5, 4.4), (3, 4, 3.2)])
def test_a_short_clip_loses_long_silence_at_its_ends(
    before_s: float, after_s: float, left_s: float
) -> None:
    clip = np.concatenate([silence(before_s), talk(1, 0, 3, RATE_HZ), silence(after_s)])
    assert seconds(trim(clip, RATE_HZ)) == pytest.approx(left_s, abs=0.3)


def test_pauses_in_a_short_clip_stay() -> None:
    said = talk(1, 0, 2, RATE_HZ)
    clip = np.concatenate([said, silence(3), said])
    assert trim(clip, RATE_HZ) is clip or np.array_equal(trim(clip, RATE_HZ), clip)
    assert seconds(only_speech(clip, RATE_HZ)) < 4.1


def test_without_speech_nothing_is_cut() -> None:
    assert trim(silence(12), RATE_HZ) is not None
    assert seconds(trim(silence(12), RATE_HZ)) == 12
    assert len(only_speech(silence(12), RATE_HZ)) == 0
