"""Whether the target speaks in an estimate, and when: from embeddings and energy.

```
estimate ─┬─ 4 s, embedded ─── similarity to the reference ──┐
          └─ energy, next to the mixture's ─ gain ───────────┼─▶ presence in 0..1
mixture − estimate ─ 4 s, embedded ─ similarity ─────────────┘
```

A network returns some voice whichever it is asked for. Whether that is the right one shows in the
embedding of the estimate and, less surely, in the residual and in how loud the network made the
estimate. How much each of these weighs is measured for a model by `training.calibration`. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import CheckpointError
from mcspex_cli.extraction.levels import MIN_SIGNAL_S, SILENCE_DB, level_db
from mcspex_cli.extraction.vad import FrameLevels, frame_levels_db

SEGMENT_S = 4.0
"""Seconds that are embedded and judged at once: in fewer it is less sure whether the target speaks,
in more it is less clear when."""

MIN_REST_S = 2.0
"""If less than this is left at the end, it is judged together with what came before it."""

STEP_S = 0.5
"""The last segment's length is a multiple of this: each new length costs a CPU's libraries time."""

BEST_S = 20.0
"""A file is judged by its best seconds: a voice may speak for a minute of an hour."""

SURE = 0.98
"""A presence from which nobody was taken for somebody else."""

OWN_WEIGHT = 5.0
"""How much more a segment tells about itself than either of its neighbours does."""

MIN_RESIDUAL = 0.2
"""The residual's share of the mixture's energy if somebody else speaks too, even 5 dB softer."""

Vector = npt.NDArray[np.float64]

Embed = Callable[[Samples], Samples]
"""Embeds a signal [sample] at any level as [embedding]."""


@dataclass(frozen=True)
class Calibration:
    """What the similarities of a model mean, from `training.calibration`, kept in config.json."""

    centre: tuple[float, ...]
    """[embedding], the mean over many voices. Similarity is the cosine about it."""
    weights: tuple[float, ...]
    """Of `SegmentFeatures.vector` and 1, for the log odds that the target speaks."""
    threshold: float
    """The presence from which the target counts as present: as many misses as false alarms."""
    wrong_speaker: float
    """How much more similar to the reference the residual may be than the estimate."""
    measured: dict[str, Any]
    """On what it was measured, and how well it works: AUC, equal error rate."""

    @cached_property
    def _centre(self) -> Samples:
        return np.array(self.centre, np.float32)

    def similarity(self, one: Samples, other: Samples) -> float:
        """How similar two voices [embedding] are, -1 to 1."""
        a, b = one - self._centre, other - self._centre
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))

    def presence(self, segments: Sequence[SegmentFeatures]) -> float:
        """The probability, 0 to 1, that the target speaks in segments, weighted by their seconds.

        It is 0 where nothing is audible.
        """
        features = mean_features(segments)
        if features is None:
            return 0.0
        odds = float(np.dot(self.weights, [*features, 1.0]))
        return float(np.exp(-np.logaddexp(0, -odds)))

    def is_wrong_speaker(self, segments: Sequence[SegmentFeatures]) -> bool:
        """Whether the residual is so similar to the reference that the roles must be swapped.

        Where nobody else speaks, the residual is a remnant of the target itself and tells nothing.
        """
        features = mean_features([one for one in segments if one.residual_share >= MIN_RESIDUAL])
        return features is not None and bool(features[1] - features[0] > self.wrong_speaker)


@dataclass(frozen=True)
class SegmentFeatures:
    """What is measured of one segment."""

    start_s: float
    seconds: float
    similarity: float
    """Of the estimate to the reference."""
    residual_similarity: float
    """Of the residual to the reference."""
    gain: float
    """Decades by which the estimate had to be turned up to match the mixture."""
    audible: bool = True
    """False where the estimate is silent."""
    residual_share: float = 1.0
    """The residual's share of the mixture's energy."""

    @property
    def vector(self) -> tuple[float, float, float]:
        """What the calibration weighs."""
        return self.similarity, self.residual_similarity, self.gain


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, and how likely the target speaks in it."""

    start_s: float
    end_s: float
    presence: float
    present: bool

    def to_dict(self) -> dict[str, float | bool]:
        """The segment as JSON."""
        return {
            "start_s": self.start_s,
            "end_s": self.end_s,
            "presence": round(self.presence, 4),
            "present": self.present,
        }


@dataclass(frozen=True)
class PresenceResult:
    """What a `PresenceMeter` measured of a file; presence only for a calibrated model."""

    estimate_db: FrameLevels
    """[frame] of 10 ms, of the network's own estimate."""
    mixture_db: FrameLevels
    features: Vector | None = None
    """What presence was computed from, see `Calibration`; None where nothing is audible."""
    presence: float | None = None
    present: bool | None = None
    """Whether presence reaches the calibration's threshold."""
    wrong_speaker: bool | None = None
    """Whether the residual is more similar to the reference than right estimates leave it."""
    segments: tuple[Segment, ...] = ()


class PresenceMeter:
    """Takes an estimate and its mixture in blocks, and keeps only what it measures of them.

    Args:
        embed: the model's speaker encoder. It is called from `add` and `result`.
        sample_rate_hz: of the blocks.
        embedding: [embedding], of the reference.
        calibration: of the model. Without one only levels are measured, and nothing is embedded.
    """

    def __init__(
        self,
        embed: Embed,
        sample_rate_hz: int,
        embedding: Samples,
        calibration: Calibration | None,
    ) -> None:
        self._embed, self._rate_hz = embed, sample_rate_hz
        self._embedding, self._calibration = embedding, calibration
        self._segment = round(SEGMENT_S * self._rate_hz)
        self._held: Samples | None = None
        """Estimate and mixture [2, channel, sample], as far back as may be needed."""
        self._fresh = 0
        """Samples at the end of those held that are not judged yet."""
        self._done = 0
        self._features: list[SegmentFeatures] = []
        self._levels: list[tuple[FrameLevels, FrameLevels]] = []

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Measure a block [channel, sample] of both.

        Of several channels the one in which a segment of the mixture is loudest is measured.

        Raises:
            EngineError: as `embed` does.
        """
        both = np.stack([estimate, mixture])
        held = both if self._held is None else np.concatenate([self._held, both], axis=-1)
        self._fresh += both.shape[-1]
        while self._fresh >= self._segment:
            end = held.shape[-1] - self._fresh + self._segment
            segment = held[..., end - self._segment : end]
            self._judge(segment, segment)
            held = held[..., end - self._segment :]
        self._held = held

    def result(self) -> PresenceResult:
        """Measure the rest, then judge the whole file.

        Raises:
            EngineError: as `embed` does.
        """
        if self._fresh and self._held is not None:
            rest = self._rest(self._held.shape[-1])
            self._judge(self._held[..., -rest:], self._held[..., -self._fresh :])
        estimate_db, mixture_db = (
            np.concatenate([np.zeros(0), *(levels[k] for levels in self._levels)]) for k in (0, 1)
        )
        result = PresenceResult(estimate_db, mixture_db)
        if self._calibration is None:
            return result
        return _judged(result, self._features, self._calibration)

    def _rest(self, held: int) -> int:
        """The samples that the rest is judged by, of few different lengths (see `STEP_S`)."""
        step = round(STEP_S * self._rate_hz)
        if held > self._fresh:
            return max(-(-self._fresh // step) * step, round(MIN_REST_S * self._rate_hz))
        return max(1, held // step) * step

    def _judge(self, part: Samples, new: Samples) -> None:
        """Measure a part [2, channel, sample] of which `new` was not measured before."""
        channel = int(np.square(part[1], dtype=np.float64).sum(axis=-1).argmax())
        estimate, mixture = new[:, channel]
        rate_hz, fresh = self._rate_hz, len(mixture)
        self._levels.append((frame_levels_db(estimate, rate_hz), frame_levels_db(mixture, rate_hz)))
        if self._calibration:
            one = self._measure(part[:, channel], self._calibration)
            self._features.append(
                replace(one, start_s=self._done / rate_hz, seconds=fresh / rate_hz)
            )
        self._done += fresh
        self._fresh -= fresh

    def _measure(self, both: Samples, calibration: Calibration) -> SegmentFeatures:
        """The features of a segment of estimate and mixture [2, sample]."""
        estimate, mixture = both.astype(np.float64)
        energy, shared = _product(estimate, estimate), _product(estimate, mixture)
        whole = _product(mixture, mixture)
        silent = level_db(whole / len(mixture)) < SILENCE_DB
        if silent or energy == 0 or shared == 0 or len(mixture) < MIN_SIGNAL_S * self._rate_hz:
            return SegmentFeatures(0.0, 0.0, 0.0, 0.0, 0.0, audible=False)
        gain = shared / energy
        parts = (gain * estimate, mixture - gain * estimate)
        similarity, residual_similarity = (
            calibration.similarity(self._embed(part.astype(np.float32)), self._embedding)
            for part in parts
        )
        left = _product(parts[1], parts[1]) / whole
        decades = float(np.log10(abs(gain)))
        return SegmentFeatures(
            0.0, 0.0, similarity, residual_similarity, decades, residual_share=left
        )


def mean_features(segments: Sequence[SegmentFeatures]) -> Vector | None:
    """The mean features of segments by their seconds; None where nothing is audible."""
    audible = [one for one in segments if one.audible]
    if not audible:
        return None
    features: Vector = np.average(
        [one.vector for one in audible], axis=0, weights=[one.seconds for one in audible]
    )
    return features


def parse_calibration(raw: Any, embedding: int, path: object) -> Calibration | None:
    """Check a config's calibration; None, for a model without one, stays None.

    Raises:
        CheckpointError: it is malformed, or not for embeddings of this length.
    """
    if raw is None:
        return None
    try:
        parsed = Calibration(
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
    numbers = (*parsed.centre, *parsed.weights, parsed.threshold, parsed.wrong_speaker)
    counts = len(parsed.centre), len(parsed.weights)
    if not np.isfinite(numbers).all() or counts != (embedding, 4):
        raise CheckpointError(f"{path}: its calibration is of another model. Calibrate it again.")
    return parsed


def _judged(
    result: PresenceResult, features: Sequence[SegmentFeatures], calibration: Calibration
) -> PresenceResult:
    """The result with what the features tell."""
    best: list[SegmentFeatures] = []
    for one in sorted(features, key=lambda one: calibration.presence([one]), reverse=True):
        if one.audible and sum(other.seconds for other in best) < BEST_S:
            best.append(one)
    presence = calibration.presence(best)
    return replace(
        result,
        features=mean_features(best),
        presence=presence,
        present=presence >= calibration.threshold,
        wrong_speaker=presence < SURE and calibration.is_wrong_speaker(best),
        segments=tuple(_segments(features, calibration)),
    )


def _segments(features: Sequence[SegmentFeatures], calibration: Calibration) -> Iterator[Segment]:
    """Each segment's presence, its neighbours considered."""
    for k, one in enumerate(features):
        own = replace(one, seconds=OWN_WEIGHT * one.seconds)
        around = [*features[max(0, k - 1) : k], own, *features[k + 1 : k + 2]]
        presence = calibration.presence(around) if one.audible else 0.0
        end_s = round(one.start_s + one.seconds, 3)
        yield Segment(round(one.start_s, 3), end_s, presence, presence >= calibration.threshold)


def _product(one: Vector, other: Vector) -> float:
    """The inner product of signals [sample].

    Not by `@`: the threads of NumPy's linear algebra would spin on the cores that torch needs next.
    """
    return float((one * other).sum())
