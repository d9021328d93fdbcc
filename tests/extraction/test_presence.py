"""What likenesses mean: closed forms, what is not heard, and calibrations that are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mcspex_cli.errors import CheckpointError
from mcspex_cli.extraction.presence import Calibration, Evidence, parse_calibration, pooled

MADE = Calibration((1.0, 0.0, -1.0), (2.0, -1.0, 0.5, -0.25), 0.6, 0.3, {"auc": 0.9})


def evidence(
    likeness: float, rest: float = 0.0, gain: float = 0.0, seconds: float = 4.0, **more: Any
) -> Evidence:
    return Evidence(0.0, seconds, likeness, rest, gain, **more)


def raw(**changed: Any) -> dict[str, Any]:
    """A calibration as config.json has it."""
    made = {
        "centre": [1.0, 0.0, -1.0],
        "weights": [2.0, -1.0, 0.5, -0.25],
        "threshold": 0.6,
        "wrong_speaker": 0.3,
        "measured": {"auc": 0.9},
    }
    return {**made, **changed}


def test_likeness_is_the_cosine_about_the_centre() -> None:
    centre = np.array(MADE.centre, np.float32)
    east, north = np.eye(3, dtype=np.float32)[:2]
    assert MADE.likeness(centre + east, centre + 3 * east) == pytest.approx(1)
    assert MADE.likeness(centre + east, centre - 2 * east) == pytest.approx(-1)
    assert MADE.likeness(centre + east, centre + north) == pytest.approx(0, abs=1e-6)
    assert MADE.likeness(centre + east, centre + east + north) == pytest.approx(np.sqrt(0.5))


def test_a_voice_at_the_centre_is_like_none() -> None:
    centre = np.array(MADE.centre, np.float32)
    assert MADE.likeness(centre, centre + 1) == 0


def test_presence_is_the_logistic_of_weighed_features() -> None:
    odds = 2 * 0.7 - 0.2 + 0.5 * -3 - 0.25
    assert MADE.presence([evidence(0.7, 0.2, -3.0)]) == pytest.approx(1 / (1 + np.exp(-odds)))


def test_segments_are_weighed_by_their_seconds() -> None:
    one, other = evidence(1.0, 0.0, 2.0, seconds=3), evidence(0.0, 1.0, 0.0, seconds=1)
    features = pooled([one, other])
    assert features is not None
    assert features.tolist() == pytest.approx([0.75, 0.25, 1.5])
    assert MADE.presence([one, other]) == pytest.approx(MADE.presence([evidence(0.75, 0.25, 1.5)]))


def test_what_is_not_audible_does_not_count() -> None:
    silent = evidence(-1.0, 1.0, audible=False)
    assert MADE.presence([evidence(0.5), silent]) == MADE.presence([evidence(0.5)])
    assert pooled([silent]) is None
    assert pooled([]) is None
    assert (MADE.presence([silent]), MADE.presence([])) == (0.0, 0.0)
    assert not MADE.is_wrong([silent])


@pytest.mark.parametrize(("odds", "presence"), [(-5e3, 0.0), (-800, 0.0), (0, 0.5), (5e3, 1.0)])
def test_extreme_odds_are_probabilities(odds: float, presence: float) -> None:
    made = Calibration((0.0,), (0.0, 0.0, 0.0, odds), 0.5, 0.0, {})
    assert made.presence([evidence(0.0)]) == presence


def test_the_wrong_speaker_is_one_who_is_left_with_the_voice() -> None:
    assert not MADE.is_wrong([evidence(0.5, 0.79)])
    assert MADE.is_wrong([evidence(0.5, 0.81)])
    assert MADE.is_wrong([evidence(0.5, 1.0, seconds=9), evidence(0.5, 0.0, seconds=1)])
    assert not MADE.is_wrong([evidence(0.5, 1.0, seconds=1), evidence(0.5, 0.0, seconds=9)])


def test_where_one_voice_speaks_alone_what_is_left_is_nobody() -> None:
    swapped, alone = evidence(0.5, 0.9), evidence(0.5, 0.9, residual_share=0.1)
    assert MADE.is_wrong([swapped, alone])
    assert not MADE.is_wrong([alone])
    assert not MADE.is_wrong([alone, evidence(0.5, 0.5, seconds=1)])
    assert MADE.presence([alone]) == MADE.presence([swapped])


def test_a_calibration_comes_through_json() -> None:
    assert parse_calibration(json.loads(json.dumps(raw())), 3, "config.json") == MADE


def test_none_is_none() -> None:
    assert parse_calibration(None, 3, "config.json") is None


MALFORMED = [
    *(pytest.param({k: v for k, v in raw().items() if k != key}, id=f"no {key}") for key in raw()),
    pytest.param([], id="list"),
    pytest.param("none", id="text"),
    pytest.param(3, id="number"),
    pytest.param(raw(centre=["a", 0, 0]), id="centre of text"),
    pytest.param(raw(centre=[None, 0, 0]), id="centre of null"),
    pytest.param(raw(centre=5), id="centre a number"),
    pytest.param(raw(centre={"x": 1}), id="centre an object"),
    pytest.param(raw(weights=[[1], 0, 0, 0]), id="weights of lists"),
    pytest.param(raw(threshold=None), id="threshold null"),
    pytest.param(raw(threshold=10**400), id="threshold beyond floats"),
    pytest.param(raw(wrong_speaker=[]), id="wrong_speaker a list"),
    pytest.param(raw(measured=None), id="measured null"),
    pytest.param(raw(measured="much"), id="measured text"),
]


@pytest.mark.parametrize("value", MALFORMED)
def test_what_is_malformed_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_calibration(value, 3, "m/config.json")
    assert str(caught.value) == "m/config.json: its calibration is malformed. Calibrate it again."


ODD = [
    pytest.param(raw(centre=[1.0, 0.0]), id="too short a centre"),
    pytest.param(raw(centre=[1.0, 0.0, 0.0, 0.0]), id="too long a centre"),
    pytest.param(raw(centre=[]), id="no centre"),
    pytest.param(raw(weights=[1.0] * 3), id="three weights"),
    pytest.param(raw(weights=[1.0] * 5), id="five weights"),
    pytest.param(raw(centre=[float("nan"), 0, 0]), id="NaN in the centre"),
    pytest.param(raw(weights=[float("inf"), 0, 0, 0]), id="infinite weight"),
    pytest.param(raw(threshold=float("nan")), id="NaN threshold"),
    pytest.param(raw(wrong_speaker=float("-inf")), id="infinite wrong_speaker"),
]


@pytest.mark.parametrize("value", ODD)
def test_what_does_not_fit_the_model_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_calibration(value, 3, "m")
    assert str(caught.value) == "m: its calibration is of another model. Calibrate it again."
