"""What a model's likenesses mean: learned from mixtures with and without the voice asked for.

Every mixture is extracted from twice: for the voice in it that its reference is of, and for one
that is not in it. A logistic regression then tells both by the evidence of `extraction.presence`.
How well it does is measured on speakers that it was not fitted to. Ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.presence import Calibration, PresenceMeter
from mcspex_cli.training.simulate import Recipe, Rendering, render

Vector = npt.NDArray[np.float64]

FOLDS = 6
"""Parts of the speakers; each is judged by what was fitted to the others."""

FALSE_ALARMS = 0.05
"""The share of right estimates that may be taken for the wrong speaker's."""

LEAST_CASES = 50
"""Mixtures below which nothing can be measured."""

_RIDGE = 1e-3
"""Keeps the regression's weights finite where the cases are told apart without error."""


@dataclass(frozen=True)
class Case:
    """A mixture, and who is in it."""

    rendering: Rendering
    speaker: str
    """The target's."""
    others: frozenset[str]


@dataclass(frozen=True)
class Trial:
    """A voice asked for, and what came out."""

    features: Vector
    present: bool
    speaker: str
    swapped: bool
    """Whether another voice came out, more of it than of the one asked for."""


def given_cases(recipes: Iterable[Recipe], sample_rate_hz: int) -> Iterator[Case]:
    """Render recipes; a file's speaker is the folder that it is in."""
    for recipe in recipes:
        others = frozenset(path.parent.name for path in recipe.interferers)
        yield Case(render(recipe, sample_rate_hz), recipe.target.parent.name, others)


def drawn_cases(renderings: Iterable[Rendering]) -> Iterator[Case]:
    """Drawn mixtures as cases; they name their speakers."""
    for one in renderings:
        yield Case(one, one.labels["target"], frozenset(one.labels["interferer"].split(" + ")))


class Calibrator:
    """Listens to mixtures, then makes a calibration for the engine's model.

    Raises:
        ConfigError: there are too few mixtures, or too few voices in them.
    """

    def __init__(self, engine: Engine, cases: Iterable[Case], seed: int = 0) -> None:
        self._engine = engine
        self.cases = list(cases)
        if len(self.cases) < LEAST_CASES:
            raise ConfigError(
                f"{len(self.cases)} mixtures are too few; {LEAST_CASES} or more tell."
            )
        self._rng = np.random.default_rng(seed)
        self._voices = [engine.embed([case.rendering.reference]) for case in self.cases]
        centre = np.unique(self._voices, axis=0).mean(axis=0, dtype=np.float64)
        self._centre = tuple(round(float(x), 5) for x in centre)
        self._unfitted = Calibration(self._centre, (0.0,) * 4, 0.0, 0.0, {})

    def trials(self) -> Iterator[Trial]:
        """Extract each mixture for its target, then for somebody who is not in it."""
        for index, case in enumerate(self.cases):
            yield self._trial(case, self._voices[index], case.speaker)
            absent = self._somebody_else(case)
            yield self._trial(case, self._voices[absent], self.cases[absent].speaker)

    def calibration(self, trials: Sequence[Trial]) -> Calibration:
        """Fit all trials, and measure on each speaker what was fitted to others.

        Raises:
            ConfigError: there are too few voices, or none of them came out.
        """
        features = np.array([trial.features for trial in trials])
        present = np.array([trial.present for trial in trials])
        swapped = np.array([trial.swapped for trial in trials])
        speakers = sorted({trial.speaker for trial in trials})
        _check(len(speakers), lost=bool(swapped[present].all()))
        places = dict(zip(self._rng.permutation(speakers), range(len(speakers)), strict=True))
        fold = np.array([places[trial.speaker] % FOLDS for trial in trials])
        odds = np.zeros(len(trials))
        for part in range(FOLDS):
            fitted = fit(features[fold != part], present[fold != part])
            odds[fold == part] = _odds(features[fold == part], fitted)
        rate, threshold = equal_error(odds[present], odds[~present])
        swaps = features[:, 1] - features[:, 0]
        wrong = float(np.quantile(swaps[present & ~swapped], 1 - FALSE_ALARMS))
        measured: dict[str, Any] = {
            "mixtures": len(self.cases),
            "speakers": len(speakers),
            "auc": round(area(odds[present], odds[~present]), 4),
            "equal_error_rate": round(rate, 4),
            "misses_at_false_alarms": {
                str(share): round(misses(odds[present], odds[~present], share), 4)
                for share in (0.01, 0.05, 0.1, 0.2)
            },
            "swapped": int((present & swapped).sum()),
            "wrong_speaker_hits": _share(swaps[present & swapped] > wrong),
            "wrong_speaker_false_alarms": _share(swaps[present & ~swapped] > wrong),
        }
        weights = tuple(round(float(w), 5) for w in fit(features, present))
        presence = 1 / (1 + np.exp(-threshold))
        return Calibration(self._centre, weights, round(presence, 4), round(wrong, 4), measured)

    def _trial(self, case: Case, voice: Samples, speaker: str) -> Trial:
        """Ask a mixture for a voice."""
        mixture, one = case.rendering.mixture, case.rendering
        meter = PresenceMeter(
            self._engine.embed_part, self._engine.sample_rate_hz, voice, self._unfitted
        )
        estimate = self._engine.extract(mixture, voice)
        meter.add(estimate[None], mixture[None])
        features = meter.result().features
        if features is None:
            features = np.zeros(len(self._unfitted.weights) - 1)
        ratios = [si_sdr(estimate, talker) for talker in (one.target, one.interferer)]
        present = speaker == case.speaker
        return Trial(features, present, speaker, present and ratios[1] > ratios[0])

    def _somebody_else(self, case: Case) -> int:
        """The place of a case whose target is not in this one."""
        inside = {case.speaker, *case.others}
        places = [k for k, other in enumerate(self.cases) if other.speaker not in inside]
        if not places:
            raise ConfigError(f"{case.rendering.id}: nobody is absent. Use more speakers.")
        return int(self._rng.choice(places))


def _check(speakers: int, *, lost: bool) -> None:
    """Refuse trials that tell nothing.

    Raises:
        ConfigError: as said.
    """
    if speakers < FOLDS:
        raise ConfigError(f"{speakers} voices are too few to be held out; {FOLDS} or more.")
    if lost:
        raise ConfigError("the wrong voice came out of every mixture. Train the model first.")


def fit(features: Vector, present: npt.NDArray[np.bool_]) -> Vector:
    """Fit log odds to features [trial, feature] by Newton's method.

    Returns:
        A weight for each feature, then the offset.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    inputs = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    weights = np.zeros(inputs.shape[1])
    ridge = _RIDGE * np.eye(len(weights))
    for _ in range(30):
        likely = 1 / (1 + np.exp(-inputs @ weights))
        curvature = inputs.T * (likely * (1 - likely)) @ inputs / len(inputs) + ridge
        slope = inputs.T @ (likely - present) / len(inputs) + _RIDGE * weights
        weights -= np.linalg.solve(curvature, slope)
    plain = weights[:-1] / spread
    return np.append(plain, weights[-1] - plain @ mean)


def area(present: Vector, absent: Vector) -> float:
    """The area under the ROC curve: how often a present voice scores above an absent one."""
    ahead = present[:, None] - absent[None]
    return float((ahead > 0).mean() + (ahead == 0).mean() / 2)


def equal_error(present: Vector, absent: Vector) -> tuple[float, float]:
    """The rate at which misses and false alarms are as many, and the score at which they are."""
    scores = np.sort(np.concatenate([present, absent]))
    missed = np.searchsorted(np.sort(present), scores) / len(present)
    false = 1 - np.searchsorted(np.sort(absent), scores) / len(absent)
    at = int(np.argmin(np.abs(missed - false)))
    return float(missed[at] + false[at]) / 2, float(scores[at])


def misses(present: Vector, absent: Vector, false_alarms: float) -> float:
    """The share of present voices missed where so many absent ones are taken for present."""
    return float((present <= np.quantile(absent, 1 - false_alarms)).mean())


def _odds(features: Vector, weights: Vector) -> Vector:
    """Log odds of trials."""
    odds: Vector = features @ weights[:-1] + weights[-1]
    return odds


def _share(flags: npt.NDArray[np.bool_]) -> float | None:
    """The share that is true; None of none."""
    return round(float(flags.mean()), 4) if flags.size else None
