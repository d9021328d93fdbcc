"""Whether the target speaks in an estimate, and when: from embeddings and energy.

```
estimate ─┬─ 2 s, embedded ── similarity to the reference ──┬─▶ presence of 2 s ─┬─▶ activity
          └─ energy, next to the mixture's ── gain ─────────┘                    │
                                                   soft maximum of all of them ──┴─▶ presence
```

A network returns some voice whichever it is asked for. Whether that is the right one shows in the
embedding of the estimate and, less surely, in how loud the network made it. How much each of these
weighs is measured for a model by `training.calibration`. One stretch in which the target surely
speaks makes the file present, whatever is in the rest: people take turns. Ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import CheckpointError
from mcspex_cli.extraction.levels import MIN_SIGNAL_S, SILENCE_DB, FrameLevels, frame_levels_db

_logger = logging.getLogger("mcspex")

SEGMENT_S = 2.0
"""Seconds that are embedded and judged at once. A turn is often no longer, and a segment that two
people share is hard to judge."""

STEP_S = 0.5
"""The last segment's length is a multiple of this: each new length costs a CPU's libraries time."""

SHARPNESS = 2.0
"""How much a file's best stretches count for more than the rest: 0 is their mean, infinity their
maximum. Chosen, as `SEGMENT_S`, on recordings of 4 to 60 s with turns and with overlap."""

SURE = 0.98
"""A presence from which the estimate is not suspected to be another person."""

MIN_RESIDUAL = 0.2
"""The residual's share of the mixture's energy if somebody else speaks too, even 5 dB softer."""

TOGETHER = 8
"""Segments that are embedded in one call."""

Vector = npt.NDArray[np.float64]

Embed = Callable[[Samples], Samples]
"""Embeds signals [signal, sample] at any level as [signal, embedding]."""


@dataclass(frozen=True)
class Calibration:
    """What the similarities of a model mean, from `training.calibration`, kept in config.json."""

    centre: tuple[float, ...]
    """[embedding], the mean over many voices. Similarity is the cosine about it."""
    segment_weights: tuple[float, float, float]
    """Of similarity, gain and 1, for the log odds that the target speaks in a segment."""
    file_weights: tuple[float, float]
    """Of the soft maximum of a file's segments and 1, for the log odds of the file."""
    threshold: float
    """The presence from which a file has the target: 3 % of the files with it are below."""
    segment_threshold: float
    """The same for a segment: as many misses as false alarms."""
    mute_threshold: float
    """The presence under which a segment may be muted: 3 % of those with the target are below."""
    wrong_speaker: float
    """How much more similar to the reference the residual may be than the estimate."""
    same_voice_parts: float
    """The mean similarity of two parts of a clip that 95 % of the clips of one voice have."""
    same_voice_clips: float
    """The similarity of one clip to the others that 95 % of the clips of one voice have."""
    measured: dict[str, Any] = field(default_factory=dict)
    """On what it was measured, and how well it works: AUC, equal error rate."""

    @cached_property
    def _centre(self) -> Samples:
        return np.array(self.centre, np.float32)

    def similarity(self, one: Samples, other: Samples) -> float:
        """How similar two voices [embedding] are, -1 to 1."""
        a, b = one - self._centre, other - self._centre
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))

    def segment_odds(self, features: Vector) -> Vector:
        """The log odds that the target speaks, from the features [segment, 2] of segments."""
        odds: Vector = features @ self.segment_weights[:2] + self.segment_weights[2]
        return odds

    def file_odds(self, features: Vector) -> float:
        """The log odds that the target speaks in a file, from the features of its segments.

        Segments count by the soft maximum of their odds. Without any, it is surely absent.
        """
        if not len(features):
            return -np.inf
        odds = SHARPNESS * self.segment_odds(features)
        highest = float(odds.max())
        score = (highest + float(np.log(np.exp(odds - highest).mean()))) / SHARPNESS
        return self.file_weights[0] * score + self.file_weights[1]


@dataclass(frozen=True)
class SegmentFeatures:
    """What is measured of one segment."""

    start_s: float
    seconds: float
    audible: bool = False
    """Whether neither estimate nor mixture is silent."""
    similarity: float = 0.0
    """Of the estimate to the reference."""
    gain: float = 0.0
    """Decades by which the estimate had to be turned up to match the mixture."""
    residual_similarity: float | None = None
    """Of the residual to the reference; measured only where another person may be followed."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, and how likely the target speaks in it."""

    start_s: float
    end_s: float
    presence: float
    present: bool
    """Whether presence reaches the calibration's threshold of a segment."""
    surely_absent: bool = False
    """Whether presence is so low that the segment may be muted."""

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
    presence: float | None = None
    present: bool | None = None
    """Whether presence reaches the calibration's threshold."""
    wrong_speaker: bool | None = None
    """Whether the residual is more similar to the reference than right estimates leave it."""
    segments: tuple[Segment, ...] = ()
    similarity: float | None = None
    """Of the estimate to the reference, the mean over audible segments."""


def join_channels(results: Sequence[PresenceResult], start_s: float) -> PresenceResult:
    """Judge a mixture by its channels: the target is present if it is in one of them.

    Args:
        results: of each channel.
        start_s: what is added to all times.
    """
    best = max(results, key=lambda one: one.presence or 0.0)
    surest = (
        max(places, key=lambda one: one.presence)
        for places in zip(*(one.segments for one in results), strict=True)
    )
    segments = tuple(
        replace(one, start_s=one.start_s + start_s, end_s=one.end_s + start_s) for one in surest
    )
    return replace(best, segments=segments)


class PresenceMeter:
    """Takes a channel of an estimate and of its mixture in blocks, and keeps what it measures.

    The speaker encoder runs once for each segment, and once more for its residual where the wrong
    person may have been followed; it gets several segments in one call.

    Args:
        embed: the model's speaker encoder. It is called from `add` and `finish`.
        sample_rate_hz: of the blocks.
        embedding: [embedding], of the reference.
        calibration: of the model. Without one only levels are measured, and nothing is embedded.
        residuals: whether residuals are embedded, which show that the wrong person is followed.
    """

    def __init__(
        self,
        embed: Embed,
        sample_rate_hz: int,
        embedding: Samples,
        calibration: Calibration | None,
        *,
        residuals: bool = True,
    ) -> None:
        self.segments: list[SegmentFeatures] = []
        """What is measured so far."""
        self._embed, self._rate_hz = embed, sample_rate_hz
        self._embedding, self._calibration = embedding, calibration
        self._residuals = residuals
        self._segment = round(SEGMENT_S * self._rate_hz)
        self._held: Samples | None = None
        """Estimate and mixture [2, sample], as far back as may be needed."""
        self._fresh = 0
        """Samples at the end of those held that are in no segment yet."""
        self._done = 0
        self._pending: list[tuple[Samples, Samples]] = []
        """Segments [2, sample] that are not measured yet, and what is new in each."""
        self._levels: list[tuple[FrameLevels, FrameLevels]] = []

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Take a block [sample] of both.

        Raises:
            EngineError: as `embed` does.
        """
        both = np.stack([estimate, mixture])
        held = both if self._held is None else np.concatenate([self._held, both], axis=-1)
        self._fresh += both.shape[-1]
        while self._fresh >= self._segment:
            end = held.shape[-1] - self._fresh + self._segment
            segment = held[..., end - self._segment : end]
            self._take(segment, segment)
            held = held[..., end - self._segment :]
        self._held = held

    def finish(self) -> None:
        """Measure the rest: by the last 2 s if there are so many, else by whole steps.

        Raises:
            EngineError: as `embed` does.
        """
        if self._fresh and self._held is not None:
            step, held = round(STEP_S * self._rate_hz), self._held.shape[-1]
            rest = self._segment if held >= self._segment else max(1, held // step) * step
            self._take(self._held[..., -rest:], self._held[..., -self._fresh :])
        self._measure()

    def result(self) -> PresenceResult:
        """Measure the rest, then judge the whole file.

        Raises:
            EngineError: as `embed` does.
        """
        self.finish()
        estimate_db, mixture_db = (
            np.concatenate([np.zeros(0), *(levels[k] for levels in self._levels)]) for k in (0, 1)
        )
        calibration = self._calibration
        if calibration is None:
            return PresenceResult(estimate_db, mixture_db)
        presence = probability(calibration.file_odds(self.features()))
        excess = [
            one.residual_similarity - one.similarity
            for one in self.segments
            if one.residual_similarity is not None
        ]
        wrong = bool(excess) and float(np.mean(excess)) > calibration.wrong_speaker
        return PresenceResult(
            estimate_db,
            mixture_db,
            presence,
            presence >= calibration.threshold,
            presence < SURE and wrong,
            tuple(self._judged(calibration)),
            self.similarity(),
        )

    def similarity(self) -> float | None:
        """The mean similarity of what is measured so far, None where nothing is audible."""
        features = self.features()
        return float(features[:, 0].mean()) if len(features) else None

    def features(self) -> Vector:
        """Similarity and gain [segment, 2] of the segments that are audible."""
        audible = [(one.similarity, one.gain) for one in self.segments if one.audible]
        return np.array(audible, np.float64).reshape(-1, 2)

    def _judged(self, calibration: Calibration) -> Iterator[Segment]:
        """Each segment with its presence; 0 where nothing is audible."""
        for one in self.segments:
            features = np.array([[one.similarity, one.gain]])
            odds = float(calibration.segment_odds(features)[0])
            presence = probability(odds) if one.audible else 0.0
            end_s = round(one.start_s + one.seconds, 3)
            yield Segment(
                round(one.start_s, 3),
                end_s,
                presence,
                presence >= calibration.segment_threshold,
                presence < calibration.mute_threshold,
            )

    def _take(self, part: Samples, new: Samples) -> None:
        """Keep a part [2, sample], of which `new` is in no segment yet, to be measured."""
        self._pending.append((part, new))
        self._fresh -= new.shape[-1]
        if len(self._pending) == TOGETHER:
            self._measure()

    def _measure(self) -> None:
        """Measure what is pending."""
        if not self._pending:
            return
        parts, fresh = zip(*self._pending, strict=True)
        self._pending = []
        estimate, mixture = np.concatenate(fresh, axis=-1)
        rate_hz = self._rate_hz
        self._levels.append((frame_levels_db(estimate, rate_hz), frame_levels_db(mixture, rate_hz)))
        if self._calibration:
            seconds = np.array([new.shape[-1] for new in fresh]) / rate_hz
            starts_s = self._done / rate_hz + np.cumsum(seconds) - seconds
            times = list(zip(starts_s.tolist(), seconds.tolist(), strict=True))
            self.segments += self._features(np.stack(parts), times, self._calibration)
        self._done += len(estimate)

    def _features(
        self, both: Samples, times: Sequence[tuple[float, float]], calibration: Calibration
    ) -> list[SegmentFeatures]:
        """Measure segments of estimate and mixture [segment, 2, sample] at times (from, seconds).

        Products are not taken by `@`: the threads of NumPy's linear algebra would spin on the cores
        that torch needs next.
        """
        estimates, mixtures = both[:, 0].astype(np.float64), both[:, 1].astype(np.float64)
        energies, wholes = np.square(estimates).sum(-1), np.square(mixtures).sum(-1)
        shared, samples = (estimates * mixtures).sum(-1), both.shape[-1]
        audible = (wholes >= samples * 10 ** (SILENCE_DB / 10)) & (energies > 0) & (shared != 0)
        if samples < MIN_SIGNAL_S * self._rate_hz or not audible.any():
            return [SegmentFeatures(*time) for time in times]
        gains = np.divide(shared, energies, out=np.zeros_like(shared), where=audible)
        matched = estimates * gains[:, None]
        similarities = self._similarities(matched, audible, calibration)
        decades = np.log10(np.abs(gains), out=np.zeros_like(gains), where=audible)
        odds = calibration.segment_odds(np.stack([similarities, decades], axis=1))
        residuals = mixtures - matched
        unsure = self._residuals & audible & (np.square(residuals).sum(-1) >= MIN_RESIDUAL * wholes)
        unsure &= np.array([probability(one) < SURE for one in odds])
        residual_similarities = self._similarities(residuals, unsure, calibration)
        return [
            SegmentFeatures(
                *times[k],
                True,
                float(similarities[k]),
                float(decades[k]),
                float(residual_similarities[k]) if unsure[k] else None,
            )
            if audible[k]
            else SegmentFeatures(*times[k])
            for k in range(len(times))
        ]

    def _similarities(
        self, signals: Vector, chosen: npt.NDArray[np.bool_], calibration: Calibration
    ) -> Vector:
        """How similar the chosen ones of signals [signal, sample] are to the reference, else 0."""
        similarities = np.zeros(len(signals))
        if chosen.any():
            voices = self._embed(signals[chosen].astype(np.float32))
            similarities[chosen] = [calibration.similarity(one, self._embedding) for one in voices]
        return similarities


def probability(odds: float) -> float:
    """Log odds as a probability."""
    return float(np.exp(-np.logaddexp(0, -odds)))


def parse_calibration(raw: Any, embedding: int, path: object) -> Calibration | None:
    """Check a config's calibration; None, for a model without one, stays None.

    One made by mcspex 0.6 or older cannot be used. The model works, but does not tell presence.

    Raises:
        CheckpointError: it is malformed, or not for embeddings of this length.
    """
    if raw is None:
        return None
    if isinstance(raw, dict) and "weights" in raw:
        _logger.warning(
            f"{path}: was calibrated by an older mcspex, so that presence is not told. "
            "Calibrate it again: mcspex models calibrate"
        )
        return None
    try:
        calibration = msgspec.convert(raw, Calibration)
    except (msgspec.ValidationError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: its calibration is malformed. Calibrate it again."
        ) from error
    numbers = [
        value
        for one in vars(calibration).values()
        for value in (one if isinstance(one, tuple) else [one])
        if isinstance(value, float)
    ]
    if not np.isfinite(numbers).all() or len(calibration.centre) != embedding:
        raise CheckpointError(f"{path}: its calibration is of another model. Calibrate it again.")
    return calibration
