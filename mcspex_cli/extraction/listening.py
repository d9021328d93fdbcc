"""Listening to an estimate while it is made: is the voice in it, when, and is it the right one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.extraction.checks import LEAST_S, SILENCE_DB, level_db
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.presence import Calibration, Evidence, Vector, pooled
from mcspex_cli.extraction.speech import Levels, frame_levels_db

SEGMENT_S = 4.0
"""What is embedded and judged at once: less says less, more tells less well when."""

LEAST_REST_S = 2.0
"""Less than this at the end is judged with what was before it."""

STEP_S = 0.5
"""Lengths judged are multiples of it: to a CPU's libraries each new length is new work."""

BEST_S = 20.0
"""A file is judged by its best seconds: a voice may speak for a minute of an hour."""

SURE = 0.98
"""A presence from which nobody was taken for somebody else."""

OWN_WEIGHT = 5.0
"""How much more a segment says of itself than either of its neighbours does."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, and how sure it is that the voice speaks in it."""

    start_s: float
    end_s: float
    presence: float
    present: bool


@dataclass(frozen=True)
class Heard:
    """What listening to a whole file told; presence only of a model that is calibrated."""

    estimate_db: Levels
    """[frame] of 10 ms, of the network's own estimate."""
    mixture_db: Levels
    features: Vector | None = None
    """The evidence that presence is told by, see `Calibration`; None where nothing is heard."""
    presence: float | None = None
    present: bool | None = None
    """Whether presence is as high as where the voice is there."""
    wrong_speaker: bool | None = None
    """Whether what is left is more like the reference than right ones leave it."""
    segments: tuple[Segment, ...] = ()


class Listener:
    """Takes an estimate and its mixture in blocks, and keeps only what it makes of them."""

    def __init__(
        self, engine: Engine, voice: Samples, calibration: Calibration | None = None
    ) -> None:
        self._engine, self._voice, self._rate_hz = engine, voice, engine.sample_rate_hz
        self._calibration = calibration or engine.calibration
        self._segment = round(SEGMENT_S * self._rate_hz)
        self._held: Samples | None = None
        """Estimate and mixture [2, channel, sample], as far back as may be needed."""
        self._fresh = 0
        """Samples at the end of those held that were not judged."""
        self._done = 0
        self._evidence: list[Evidence] = []
        self._levels: list[tuple[Levels, Levels]] = []

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Listen to a block [channel, sample] of both, at the engine's rate.

        Of several channels that in which a segment of the mixture is loudest is heard.

        Raises:
            EngineError: as `Engine.embed_part`.
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

    def finish(self) -> Heard:
        """Judge the rest, then all.

        Raises:
            EngineError: as `Engine.embed_part`.
        """
        if self._fresh and self._held is not None:
            rest = self._rest(self._held.shape[-1])
            self._judge(self._held[..., -rest:], self._held[..., -self._fresh :])
        estimate_db, mixture_db = (
            np.concatenate(levels) for levels in zip(*self._levels, strict=True)
        )
        heard = Heard(estimate_db, mixture_db)
        if self._calibration is None:
            return heard
        return _judged(heard, self._evidence, self._calibration)

    def _rest(self, held: int) -> int:
        """The samples that the rest is judged by, of few different lengths (see `STEP_S`)."""
        step = round(STEP_S * self._rate_hz)
        if held > self._fresh:
            return max(-(-self._fresh // step) * step, round(LEAST_REST_S * self._rate_hz))
        return max(1, held // step) * step

    def _judge(self, part: Samples, new: Samples) -> None:
        """Take evidence of a part [2, channel, sample] of which `new` was not heard before."""
        channel = int(np.square(part[1], dtype=np.float64).sum(axis=-1).argmax())
        estimate, mixture = new[:, channel]
        rate_hz, fresh = self._rate_hz, len(mixture)
        self._levels.append((frame_levels_db(estimate, rate_hz), frame_levels_db(mixture, rate_hz)))
        if self._calibration:
            one = self._evidence_of(part[:, channel], self._calibration)
            self._evidence.append(
                replace(one, start_s=self._done / rate_hz, seconds=fresh / rate_hz)
            )
        self._done += fresh
        self._fresh -= fresh

    def _evidence_of(self, both: Samples, calibration: Calibration) -> Evidence:
        """What a segment of estimate and mixture [2, sample] tells."""
        estimate, mixture = both.astype(np.float64)
        energy, shared = _product(estimate, estimate), _product(estimate, mixture)
        whole = _product(mixture, mixture)
        silent = level_db(whole / len(mixture)) < SILENCE_DB
        if silent or energy == 0 or shared == 0 or len(mixture) < LEAST_S * self._rate_hz:
            return Evidence(0.0, 0.0, 0.0, 0.0, 0.0, audible=False)
        gain = shared / energy
        parts = (gain * estimate, mixture - gain * estimate)
        likeness, residual_likeness = (
            calibration.likeness(self._engine.embed_part(part.astype(np.float32)), self._voice)
            for part in parts
        )
        left = _product(parts[1], parts[1]) / whole
        decades = float(np.log10(abs(gain)))
        return Evidence(0.0, 0.0, likeness, residual_likeness, decades, residual_share=left)


def _judged(heard: Heard, evidence: Sequence[Evidence], calibration: Calibration) -> Heard:
    """What was heard, with what the evidence says."""
    best: list[Evidence] = []
    for one in sorted(evidence, key=lambda one: calibration.presence([one]), reverse=True):
        if one.audible and sum(other.seconds for other in best) < BEST_S:
            best.append(one)
    presence = calibration.presence(best)
    return replace(
        heard,
        features=pooled(best),
        presence=presence,
        present=presence >= calibration.threshold,
        wrong_speaker=presence < SURE and calibration.is_wrong(best),
        segments=tuple(_segments(evidence, calibration)),
    )


def _segments(evidence: Sequence[Evidence], calibration: Calibration) -> Iterator[Segment]:
    """How sure it is of each segment, its neighbours considered."""
    for k, one in enumerate(evidence):
        own = replace(one, seconds=OWN_WEIGHT * one.seconds)
        around = [*evidence[max(0, k - 1) : k], own, *evidence[k + 1 : k + 2]]
        presence = calibration.presence(around) if one.audible else 0.0
        end_s = round(one.start_s + one.seconds, 3)
        there = presence >= calibration.threshold
        yield Segment(round(one.start_s, 3), end_s, presence, there)


def _product(one: Vector, other: Vector) -> float:
    """The inner product of signals [sample].

    Not by `@`: the threads of NumPy's linear algebra would spin on the cores that torch needs next.
    """
    return float((one * other).sum())
