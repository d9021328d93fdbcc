"""Whether the wanted voice is in an estimate, and when: from embeddings and energy.

```
estimate ─┬─ 4 s, embedded ─── likeness to the reference ──┐
          └─ energy, next to the mixture's ─ gain ─────────┼─▶ presence in 0..1
mixture − estimate ─ 4 s, embedded ─ likeness ─────────────┘
```

A network gives back some voice whoever is asked for. Whether it is the right one shows in the
embedding of what came out, less surely in what was left and in how loud the network itself made
it. How much each of these says is measured for a model by `training.calibration`. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import CheckpointError

LEAST_RESIDUAL = 0.2
"""Share of the mixture's energy that what is left has where somebody else speaks, too, be they
5 dB softer."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What a model's likenesses mean; made by `training.calibration`, kept in its config.json."""

    centre: tuple[float, ...]
    """[embedding], the mean over many voices; likeness is the cosine about it."""
    weights: tuple[float, ...]
    """Of `Evidence.features` and 1, for the log odds of the voice being there."""
    threshold: float
    """Presence from which a voice counts as there: as many wrongs of either kind."""
    wrong_speaker: float
    """How much more like the reference than the estimate what is left may be."""
    measured: dict[str, Any]
    """On what it was made, and how well it tells: AUC, equal error rate."""

    @cached_property
    def _centre(self) -> Samples:
        """The centre as an array."""
        return np.array(self.centre, np.float32)

    def likeness(self, one: Samples, other: Samples) -> float:
        """How alike two voices [embedding] are, -1 to 1."""
        a, b = one - self._centre, other - self._centre
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))

    def presence(self, evidence: Sequence[Evidence]) -> float:
        """The probability, 0 to 1, that the voice is in segments, weighed by their seconds.

        0 where nothing is to be heard.
        """
        features = pooled(evidence)
        if features is None:
            return 0.0
        odds = float(np.dot(self.weights, [*features, 1.0]))
        return float(np.exp(-np.logaddexp(0, -odds)))

    def is_wrong(self, evidence: Sequence[Evidence]) -> bool:
        """Whether what was left is so much more like the reference that the roles are swapped.

        Where nobody else speaks, what is left is a remnant of the voice itself, and tells nothing.
        """
        features = pooled([one for one in evidence if one.residual_share >= LEAST_RESIDUAL])
        return features is not None and bool(features[1] - features[0] > self.wrong_speaker)


@dataclass(frozen=True)
class Evidence:
    """What one segment of an estimate tells."""

    start_s: float
    seconds: float
    likeness: float
    """Of the estimate to the reference."""
    residual_likeness: float
    """Of what is left of the mixture to the reference."""
    gain: float
    """Decades that the estimate had to be turned up by to match the mixture."""
    audible: bool = True
    """False where the estimate is silent."""
    residual_share: float = 1.0
    """Of what is left in the mixture's energy."""

    @property
    def features(self) -> tuple[float, float, float]:
        """What is weighed."""
        return self.likeness, self.residual_likeness, self.gain


def pooled(evidence: Sequence[Evidence]) -> Vector | None:
    """The mean features of segments by their seconds; None where nothing is to be heard."""
    heard = [one for one in evidence if one.audible]
    if not heard:
        return None
    features: Vector = np.average(
        [one.features for one in heard], axis=0, weights=[one.seconds for one in heard]
    )
    return features


def parse_calibration(raw: Any, embedding: int, path: object) -> Calibration | None:
    """A config's calibration, checked; None for None, of a model that has none.

    Raises:
        CheckpointError: it is malformed or not for embeddings of this length.
    """
    if raw is None:
        return None
    try:
        made = Calibration(
            tuple(map(float, raw["centre"])),
            tuple(map(float, raw["weights"])),
            float(raw["threshold"]),
            float(raw["wrong_speaker"]),
            dict(raw["measured"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: its calibration is malformed. Calibrate it again."
        ) from error
    numbers = (*made.centre, *made.weights, made.threshold, made.wrong_speaker)
    counts = len(made.centre), len(made.weights)
    if not np.isfinite(numbers).all() or counts != (embedding, 4):
        raise CheckpointError(f"{path}: its calibration is of another model. Calibrate it again.")
    return made
