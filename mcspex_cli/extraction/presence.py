"""Whether the target speaks in an estimate, and when: from embeddings and energy.

```
estimate ─┬─ 2 s, embedded ─┬─ similarity to the reference ─┬─▶ presence of 2 s ─┬─▶ presence
          │                 └─ echo ────────────────────────┤                    ▼
          ├─ energy, next to the mixture's ── gain ─────────┘                    │
          └─ levels of 10 ms, next to the mixture's ─────────────────────────▶ activity
```

A network returns somebody's speech even if the target is absent. Whether it is the target's shows
in the embedding of the estimate and, less surely, in how loud the network made it. Echo changes
embeddings, too: a voice in a room is less similar to its reference. So the directions in which echo
moves embeddings most are left out of similarities, and whether an estimate has echo is weighed
besides. How much each weighs is measured for a model by `training.calibration`. The presence of a
file is a soft maximum of those of its segments: the best count most, because people take turns; see
`_SHARPNESS`. Not from the paper.

Activity is when the target speaks, to 10 ms: where the estimate is as loud as speech in it, no more
than 20 dB below the mixture, and in a segment in which the target is present.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import MIN_SIGNAL_S, SILENCE_DB, Floats, Samples
from mcspex_cli.errors import CheckpointError
from mcspex_cli.extraction import speech
from mcspex_cli.extraction.speech import FRAME_S, FrameLevels

if TYPE_CHECKING:
    from mcspex_cli.extraction.engine import Engine, Polarity

_logger = logging.getLogger("mcspex")

SEGMENT_S = 2.0
"""The length of a segment, which is embedded and judged as one. A turn is often no longer, and a
segment in which two people speak by turns is hard to judge."""

_SHORT_LENGTH_STEP_S = 0.5
"""A recording under 2 s is judged by its last n x 0.5 s (all of it, if it has less than that): each
new length costs a CPU's libraries time."""

_SHARPNESS = 2.0
"""How much more a file's best segments count: with 0 its odds are the mean of theirs, with infinity
the maximum. Chosen, as `SEGMENT_S`, on recordings of 4 to 60 s with turns and with overlap."""

_SURE_PRESENCE = 0.98
"""A presence from which the estimate is not suspected to be another person's speech."""

_MIN_RESIDUAL_SHARE = 0.2
"""The residual has at least this share of the mixture's energy if somebody else speaks too."""

_SEGMENTS_AT_ONCE = 8  # in one call of the speaker encoder

_SHORTEST_PAUSE_S, _SHORTEST_SPEECH_S = 0.5, 0.3
"""In activity, shorter pauses are filled, and then shorter speech is dropped. Chosen on recordings
of 90 s in which the target speaks at times among others."""

MUTE_FADE_S = 0.05
"""How long the fade to silence takes where the target is absent, and the fade back."""

Numbers = npt.NDArray[np.float64]

Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A presence."""


@dataclass(frozen=True)
class Calibration:
    """What the similarities of a model mean, from `training.calibration`.

    config.json keeps it under these names; `wrong_speaker`, `same_voice_parts` and
    `same_voice_clips` are thresholds, too.
    """

    centre: tuple[float, ...]
    """[embedding], the mean over many people. It is subtracted before a similarity is taken."""
    echo_directions: tuple[tuple[float, ...], ...]
    """[direction, embedding], orthonormal: how echo changes embeddings. Similarities ignore it."""
    echo_weights: tuple[float, ...]
    """[embedding + 1]. Of a centred embedding of length 1, and of 1, for the log odds of echo."""
    segment_weights: tuple[float, float, float, float]
    """Of similarity, gain, echo and 1, for the log odds that the target speaks in a segment."""
    file_weights: tuple[float, float]
    """Of the soft maximum of a file's segments and 1, for the log odds of the file."""
    threshold: Threshold
    """From this presence on a file has the target. Of the files with the target and without echo,
    3 % are below."""
    segment_threshold: Threshold
    """From this presence on a segment has the target. It gives as many misses as false alarms."""
    mute_threshold: Threshold
    """Below this presence a segment is muted with `--absent mute`. 3 % of those with the target are
    below."""
    wrong_speaker: float
    """Above this excess of the residual's similarity to the reference over the estimate's, the
    estimate may follow another person."""
    same_voice_parts: float
    """With a lower mean similarity of its parts, a clip sounds like two voices. 5 % of the clips of
    one person alone are below."""
    same_voice_clips: float
    """With a lower similarity to the others, a clip sounds like another person. 5 % of the clips of
    one person are below."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What it was measured on, and how well it works: AUC, equal error rate. Numbers are of
    recordings without echo where their names do not say `echo`."""

    @cached_property
    def _arrays(self) -> tuple[Samples, Samples, Samples]:
        """Centre, echo directions and echo weights."""
        centre = np.array(self.centre, np.float32)
        directions = np.array(self.echo_directions, np.float32).reshape(-1, len(centre))
        return centre, directions, np.array(self.echo_weights, np.float32)

    def similarity(self, one: Samples, other: Samples) -> float:
        """How similar two embeddings [embedding] are apart from echo, -1 to 1."""
        centre, directions, _ = self._arrays
        a, b = (e - (directions @ e) @ directions for e in (one - centre, other - centre))
        return cosine(a, b)

    def echo(self, embedding: Samples) -> float:
        """The probability that a sound has echo, by its embedding [embedding]."""
        centre, _, weights = self._arrays
        centred = embedding - centre
        unit = centred / max(float(np.linalg.norm(centred)), 1e-12)
        return probability(float(weights[:-1] @ unit + weights[-1]))

    def segment_odds(self, features: Numbers) -> Numbers:
        """The log odds that the target speaks, from the features [segment, 3] of segments."""
        return features @ self.segment_weights[:-1] + self.segment_weights[-1]

    def file_odds(self, features: Numbers) -> float:
        """The log odds that the target speaks in a file, from the features of its segments.

        A linear function of the soft maximum of its segments' odds: a mean in which the best count
        most. Without segments it is surely absent.
        """
        if not len(features):
            return -np.inf
        odds = _SHARPNESS * self.segment_odds(features)
        score = float(np.logaddexp.reduce(odds) - np.log(len(odds))) / _SHARPNESS
        return self.file_weights[0] * score + self.file_weights[1]


def cosine(one: Floats, other: Floats) -> float:
    """The cosine of two embeddings [embedding]."""
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))


def probability(odds: float) -> float:
    """Log odds as a probability."""
    return float(np.exp(-np.logaddexp(0, -odds)))


def parse_calibration(raw: Any, embedding: int, model: str) -> Calibration | None:
    """Check a config's calibration; None, for a model without one, stays None.

    A calibration by mcspex 0.6 or older, which knows no echo, counts as none, with a warning.

    Raises:
        CheckpointError: it is malformed, or not for embeddings of this length.
    """
    if raw is None:
        return None
    if isinstance(raw, dict) and "echo_weights" not in raw:
        _logger.warning(
            f"{model}: was calibrated by an older mcspex, so it gives no presence. "
            "Calibrate it again: mcspex models calibrate"
        )
        return None
    try:
        calibration = msgspec.convert(raw, Calibration)
    except (msgspec.ValidationError, OverflowError) as error:
        raise CheckpointError(
            f"{model}: its calibration is malformed. Calibrate it again."
        ) from error
    numbers = [value for name, value in vars(calibration).items() if name != "measured"]
    vectors = [calibration.centre, calibration.echo_weights[1:], *calibration.echo_directions]
    if {len(vector) for vector in vectors} != {embedding} or not all(
        np.isfinite(value).all() for value in numbers
    ):
        raise CheckpointError(f"{model}: its calibration is of another model. Calibrate it again.")
    return calibration


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, and how likely the target speaks in it."""

    start_s: float
    end_s: float
    presence: float = 0.0
    present: bool = False
    """Whether presence reaches the calibration's `segment_threshold`."""
    surely_absent: bool = False
    """Whether presence is below the calibration's `mute_threshold`."""
    similarity: float | None = None
    """Of the estimate to the reference; None where the estimate or the mixture is silent."""
    gain_decades: float = 0.0
    """The decimal logarithm of the gain that the network's estimate needs in the mixture."""
    echo: float = 0.0
    """The probability that the estimate has echo."""
    residual_similarity: float | None = None
    """Of the residual to the reference; measured only where another person may be followed."""

    def to_dict(self) -> dict[str, float | bool]:
        """The segment as JSON."""
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "presence": round(self.presence, 4),
            "present": self.present,
        }


@dataclass(frozen=True)
class PresenceResult:
    """The presence in a channel, from `PresenceMeter`, or in a mixture, from `join_channels`."""

    estimate_db: FrameLevels
    """[frame], levels of the network's own estimate."""
    mixture_db: FrameLevels
    presence: float | None = None
    present: bool | None = None
    """Whether presence reaches the calibration's `threshold`."""
    wrong_speaker: bool | None = None
    """Whether the residual is more similar to the reference than right estimates leave it."""
    segments: tuple[Segment, ...] = ()
    similarity: float | None = None
    """Of the estimate to the reference, the mean over audible segments."""
    excess: float | None = None
    """How much more similar to the reference residuals are than estimates, where measured."""
    spans: tuple[tuple[float, float], ...] = ()
    """When the target speaks, as (start_s, end_s); only `join_channels` finds it."""
    speech_left: float | None = None
    """In what share of the mixture's speech the estimate is heard; only of `join_channels`."""

    @property
    def active_s(self) -> float:
        """How long the target speaks."""
        return round(sum(end_s - start_s for start_s, end_s in self.spans), 2)


def features_of(segments: Sequence[Segment]) -> Numbers:
    """Similarity, gain in decades and echo [segment, 3] of the segments that are audible."""
    rows = [(s.similarity, s.gain_decades, s.echo) for s in segments if s.similarity is not None]
    return np.array(rows, np.float64).reshape(-1, 3)


class PresenceMeter:
    """Measures a channel of an estimate and of its mixture, which it takes in blocks.

    It embeds each segment of the estimate, and also its residual if the estimate may be another
    person's speech.

    Args:
        engine: of the model. Without a calibration only levels are measured.
        polarity: of the mixture. Sound is multiplied by its sign where it is embedded, so that a
            segment is in one polarity even if that becomes known in the middle of it.
        residuals: whether residuals may be embedded, for `PresenceResult.wrong_speaker`.
    """

    def __init__(self, engine: Engine, polarity: Polarity, *, residuals: bool = True) -> None:
        self._engine, self._polarity, self._residuals = engine, polarity, residuals
        self._segment_samples = round(SEGMENT_S * engine.sample_rate_hz)
        # What has [2, ...] below is of the estimate, then of the mixture.
        self._last: Samples = np.zeros((2, 0), np.float32)  # [2, sample], newest whole segment
        self._fresh = self._last  # [2, sample], what came after it
        self._pending: list[tuple[Samples, Samples]] = []
        """Segments [2, sample] that are not measured yet, and what is new in each."""
        self._segments: list[Segment] = []  # those that are measured
        self._measured_samples = 0
        self._levels_db: list[FrameLevels] = [np.zeros((2, 0))]  # [2, frame]

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Take a block [sample] of both."""
        self._fresh = np.concatenate([self._fresh, np.stack([estimate, mixture])], axis=-1)
        while self._fresh.shape[-1] >= self._segment_samples:
            self._last, self._fresh = np.split(self._fresh, [self._segment_samples], axis=-1)
            self._pending.append((self._last, self._last))
            if len(self._pending) == _SEGMENTS_AT_ONCE:
                self._measure()

    def result(self) -> PresenceResult:
        """Measure the rest, as the end of a segment of 2 s if possible, and judge the file."""
        if self._fresh.shape[-1]:
            held = np.concatenate([self._last, self._fresh], axis=-1)
            step = round(_SHORT_LENGTH_STEP_S * self._engine.sample_rate_hz)
            length = self._segment_samples
            if not self._last.size:
                length = max(1, held.shape[-1] // step) * step
            self._pending.append((held[:, -length:], self._fresh))
        self._measure()
        estimate_db, mixture_db = np.concatenate(self._levels_db, axis=-1)
        calibration = self._engine.calibration
        if calibration is None:
            return PresenceResult(estimate_db, mixture_db)
        features = features_of(self._segments)
        presence = probability(calibration.file_odds(features))
        excess = [
            one.residual_similarity - one.similarity
            for one in self._segments
            if one.residual_similarity is not None and one.similarity is not None
        ]
        mean_excess = float(np.mean(excess)) if excess else None
        is_wrong = mean_excess is not None and mean_excess > calibration.wrong_speaker
        return PresenceResult(
            estimate_db,
            mixture_db,
            presence=presence,
            present=presence >= calibration.threshold,
            wrong_speaker=presence < _SURE_PRESENCE and is_wrong,
            segments=tuple(self._segments),
            similarity=float(features[:, 0].mean()) if len(features) else None,
            excess=mean_excess,
        )

    def _measure(self) -> None:
        """Measure the segments that are pending."""
        if not self._pending:
            return
        parts, fresh = zip(*self._pending, strict=True)
        self._pending = []
        calibration, rate_hz = self._engine.calibration, self._engine.sample_rate_hz
        self._levels_db.append(speech.frame_levels_db(np.concatenate(fresh, axis=-1), rate_hz))
        ends = self._measured_samples + np.cumsum([new.shape[-1] for new in fresh])
        starts = [self._measured_samples, *ends[:-1]]
        self._measured_samples = ends[-1]
        if calibration is None:
            return
        estimates, mixtures = np.stack(parts, axis=1).astype(np.float64)
        samples = estimates.shape[-1]
        # Not by `@`, whose threads would spin on the cores that torch needs next.
        shared = (estimates * mixtures).sum(-1)
        energies, mixture_energies = np.square(estimates).sum(-1), np.square(mixtures).sum(-1)
        audible = (energies > 0) & (shared != 0) & (samples >= MIN_SIGNAL_S * rate_hz)
        audible &= mixture_energies >= samples * 10 ** (SILENCE_DB / 10)
        gains = np.divide(shared, energies, out=np.zeros_like(shared), where=audible)
        decades = np.log10(np.abs(gains), out=np.zeros_like(gains), where=audible)
        matched = estimates * gains[:, None]
        similarities, echoes = self._compare(matched, audible, calibration)
        odds = calibration.segment_odds(np.stack([similarities, decades, echoes], axis=1))
        presences = np.where(audible, [probability(one) for one in odds], 0.0)
        residuals = mixtures - matched
        unsure = self._residuals & audible & (presences < _SURE_PRESENCE)
        unsure &= np.square(residuals).sum(-1) >= _MIN_RESIDUAL_SHARE * mixture_energies
        residual_similarities, _ = self._compare(residuals, unsure, calibration)
        for k, presence in enumerate(presences.tolist()):
            self._segments.append(
                Segment(
                    start_s=float(starts[k] / rate_hz),
                    end_s=float(ends[k] / rate_hz),
                    presence=presence,
                    present=presence >= calibration.segment_threshold,
                    surely_absent=presence < calibration.mute_threshold,
                    similarity=float(similarities[k]) if audible[k] else None,
                    gain_decades=float(decades[k]),
                    echo=float(echoes[k]),
                    residual_similarity=float(residual_similarities[k]) if unsure[k] else None,
                )
            )

    def _compare(
        self, signals: Numbers, chosen: npt.NDArray[np.bool_], calibration: Calibration
    ) -> tuple[Numbers, Numbers]:
        """Similarity to the reference, and echo, of the `chosen` signals [signal, sample].

        Both are 0 for the others.
        """
        similarities, echoes = np.zeros((2, len(signals)))
        if chosen.any():
            parts = (self._polarity.sign * signals[chosen]).astype(np.float32)
            embeddings, voice = self._engine.embed_parts(parts), self._polarity.embedding
            similarities[chosen] = [calibration.similarity(e, voice) for e in embeddings]
            echoes[chosen] = [calibration.echo(e) for e in embeddings]
        return similarities, echoes


def join_channels(
    results: Sequence[PresenceResult], gains_db: Sequence[float], start_s: float
) -> PresenceResult:
    """Judge a mixture by its channels: the target is present if it is in one of them.

    `gains_db` bring the network's estimate to its level in the mixture, for each channel.
    `start_s` is added to all times.
    """
    best, gain_db = max(
        zip(results, gains_db, strict=True), key=lambda channel: channel[0].presence or 0.0
    )
    segments = []
    for channels in zip(*(result.segments for result in results), strict=True):
        surest = max(channels, key=lambda segment: segment.presence)
        start, end = surest.start_s + start_s, surest.end_s + start_s
        segments.append(replace(surest, start_s=start, end_s=end))
    spans = find_spans(results, gains_db)
    return replace(
        best,
        segments=tuple(segments),
        spans=tuple((round(a_s + start_s, 3), round(b_s + start_s, 3)) for a_s, b_s in spans),
        speech_left=speech.share_of_speech(best.estimate_db + gain_db, best.mixture_db),
    )


def find_spans(
    results: Sequence[PresenceResult], gains_db: Sequence[float]
) -> list[tuple[float, float]]:
    """List when the target speaks in any channel, as (start_s, end_s); see `join_channels`."""
    speaks = np.zeros(len(results[0].estimate_db), np.bool_)
    for result, gain_db in zip(results, gains_db, strict=True):
        if result.present is False:
            continue
        here = speech.detect_audible(result.estimate_db + gain_db, result.mixture_db)
        for segment in result.segments:
            if not segment.present:
                here[round(segment.start_s / FRAME_S) : round(segment.end_s / FRAME_S)] = False
        speaks |= here
    return speech.list_spans(speech.smooth_activity(speaks, _SHORTEST_SPEECH_S, _SHORTEST_PAUSE_S))


def mute_gains(segments: Sequence[Segment]) -> tuple[list[float], list[float]]:
    """Points in time, in seconds, and the gains there that mute segments without the target."""
    kept = [float(not one.surely_absent) for one in segments]
    times, gains = [0.0], [kept[0]]
    for one, before, after in zip(segments, kept, kept[1:], strict=False):
        if before != after:
            times += [one.end_s - MUTE_FADE_S / 2, one.end_s + MUTE_FADE_S / 2]
            gains += [before, after]
    return times, gains
