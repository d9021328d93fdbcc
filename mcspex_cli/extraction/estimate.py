"""An estimate on its way out: joined, measured, levelled, written.

```
windows of the network ─▶ joined ─┬─▶ level, presence ─▶ gain, gate ─┬─▶ estimate
                                  └─▶ kept ──────────────────────────┼─▶ residual
                                                                     └─▶ activity
```

One gain holds for a whole file, and it is only known when all of the file has been computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AbsentError, McspexError
from mcspex_cli.extraction.activity import (
    ActivityReport,
    find_spans,
    mute_gains,
    share_of_speech,
    write_activity,
)
from mcspex_cli.extraction.job import ABSENT, ExtractionOptions, Job
from mcspex_cli.extraction.levels import (
    SILENCE_DB,
    Level,
    LevelMatcher,
    LoudnessMeter,
    check_level,
    gain_db,
)
from mcspex_cli.extraction.mixture import Mixture, Store
from mcspex_cli.extraction.presence import PresenceMeter, PresenceResult, join_channels
from mcspex_cli.extraction.windows import Joiner, Window

if TYPE_CHECKING:
    from mcspex_cli.extraction.engine import Engine

MUTE_FADE_S = 0.05
"""From the voice to silence where it is absent, and back."""


class Estimate:
    """The estimate of one mixture, joined from its windows, and what is measured of it.

    Args:
        engine: what the windows were computed by.
        mixture: of which the first window has been read.
        embedding: [embedding], of the voice.
        folder: where a long estimate is kept; the system's temporary folder if it is None.
    """

    def __init__(
        self, engine: Engine, mixture: Mixture, embedding: Samples, folder: Path | None
    ) -> None:
        self._engine, self._mixture = engine, mixture
        self._joiner = Joiner(engine.windowing)
        channels = mixture.channels
        self._back = audio.Resampler(engine.sample_rate_hz, mixture.sample_rate_hz, channels)
        self._matcher = LevelMatcher(channels)
        self._meters = [
            PresenceMeter(engine.embed_parts, engine.sample_rate_hz, embedding, engine.calibration)
            for _ in range(channels)
        ]
        self.kept = Store(folder)
        self.gain: npt.NDArray[np.float64] = np.ones(channels)
        """What the network's estimate is multiplied by to match the mixture [channel]."""
        self.presences: list[PresenceResult] = []
        """Of each channel."""

    def add(self, window: Window, samples: Samples) -> float:
        """Take what the network made of the next window [channel, sample].

        Returns:
            The seconds of sound that are done by it.

        Raises:
            EngineError: it is not finite.
            OutputError: the disk is too full to keep it.
        """
        self._engine.check_finite(samples)
        estimate, mixture = self._joiner.add(window, samples)
        self._matcher.add(estimate, mixture)
        for meter, *signals in zip(self._meters, estimate, mixture, strict=True):
            meter.add(*signals)
        self.kept.append(self._back.step(estimate, last=window.last))
        if window.last:
            check_level(self._mixture.name, self._matcher.mixture_mean_square())
            self.presences = [meter.result() for meter in self._meters]
            if not self._engine.runtime.true_level:
                self.gain = self._matcher.gain()
        return float(estimate.shape[1] / self._engine.sample_rate_hz)


class LevelledEstimate:
    """An estimate as the options want it: at its level, and silent where the voice is absent.

    Args:
        mixture: that was read to its end.
        estimate: of it, complete.
        options: how loud it is to be, ...
        job: where it is written; None for an array, which is not written.

    Raises:
        AbsentError: the voice is absent, and the options say that this is to fail.
    """

    def __init__(
        self, mixture: Mixture, estimate: Estimate, options: ExtractionOptions, job: Job | None
    ) -> None:
        self._mixture, self._estimate, self._options, self._job = mixture, estimate, options, job
        self._policy = ABSENT[options.absent]
        self.presence = join_channels(estimate.presences, mixture.start_s)
        if self._policy.fails and self.presence.present is False:
            raise AbsentError(
                f"{mixture.name}: the voice is not in it (presence {self.presence.presence:.2f}). "
                "Check the reference, or use --absent keep."
            )
        matched_db = gain_db(estimate.gain)
        self.spans = [
            (round(start_s + mixture.start_s, 3), round(end_s + mixture.start_s, 3))
            for start_s, end_s in find_spans(estimate.presences, matched_db)
        ]
        """When the voice speaks, counted as its container counts."""
        levels, level_db = max(
            zip(estimate.presences, matched_db, strict=True),
            key=lambda channel: channel[0].presence or 0.0,
        )
        self.speech_left = share_of_speech(levels.estimate_db + level_db, levels.mixture_db)
        """The share of the mixture's speech in which the estimate is heard too."""
        level = options.parsed_level
        policy = level.policy
        matched = estimate.gain if policy.matched else 1.0
        self._gain = np.ones_like(estimate.gain) * matched * 10 ** (options.wet_db / 20)
        shape = mixture.sample_rate_hz, mixture.channels
        self._set_factors(level, LoudnessMeter(*shape) if policy.needs_loudness else None)

    def _set_factors(self, level: Level, meter: LoudnessMeter | None) -> None:
        """Run through all once, for the factors of estimate and residual."""
        outputs, subtype = self._outputs, self._options.subtype
        peak = residual_peak = 0.0
        for estimate, residual in self._blocks():
            peak = max(peak, float(np.abs(estimate).max(initial=0)))
            if residual is not None:
                residual_peak = max(residual_peak, float(np.abs(residual).max(initial=0)))
            if meter:
                meter.add(estimate)
        clips = [not audio.holds_over_full_scale(path, subtype) for path in outputs] or [True]
        loudness_lufs = meter.loudness_lufs() if meter else -np.inf
        self._factor, self._down_db = level.factor(peak, loudness_lufs, clips=clips[0])
        self._residual_factor, self._residual_down_db = 1.0, 0.0
        if len(outputs) > 1:
            self._residual_factor, self._residual_down_db = Level("raw").factor(
                residual_peak, -np.inf, clips=clips[1]
            )
        self.silent = bool(peak * self._factor < 10 ** (SILENCE_DB / 20))

    @property
    def limited(self) -> bool:
        """Whether the level that was asked for would have clipped."""
        return self._down_db > 0

    @property
    def gains_db(self) -> tuple[float, ...]:
        """What the network's estimate was multiplied by [channel]."""
        return gain_db(self._gain * self._factor)

    @property
    def residual_gain_db(self) -> float:
        """What the residual was turned down by, not to clip; 0 or less."""
        return round(0.0 - self._residual_down_db, 2)

    @cached_property
    def _outputs(self) -> list[Path]:
        """The sound files to be written: the estimate and, if it is asked for, the residual."""
        outputs = self._job.outputs if self._job else None
        return [path for path in (outputs.estimate, outputs.residual) if path] if outputs else []

    def samples(self) -> Samples:
        """The estimate [channel, sample]."""
        factor = np.float32(self._factor)
        return np.concatenate([estimate * factor for estimate, _ in self._blocks()], axis=-1)

    def write(self, interrupted: Callable[[], McspexError | None]) -> None:
        """Write the files of the job, all of them or none.

        Args:
            interrupted: why to stop, asked after every block.

        Raises:
            OutputError: one cannot be written.
        """
        assert self._job is not None
        outputs, factors = self._job.outputs, (self._factor, self._residual_factor)
        mixture = self._mixture
        shape = mixture.sample_rate_hz, mixture.channels, self._options.subtype, mixture.samples
        with files.together(), ExitStack() as stack:
            writers = [stack.enter_context(audio.Writer(path, *shape)) for path in self._outputs]
            for blocks in self._blocks():
                if error := interrupted():
                    raise error
                for writer, block, factor in zip(writers, blocks, factors, strict=False):
                    assert block is not None
                    writer.write(block * np.float32(factor))
            if path := outputs.activity:
                name = self._job.id or self._job.mixture.stem
                report = ActivityReport(
                    self._job.name, name, outputs.speaker, self.presence, self.spans
                )
                write_activity(path, report)

    def _blocks(self) -> Iterator[tuple[Samples, Samples | None]]:
        """The estimate before its level is set and, if it is asked for, the residual."""
        channels, samples = self._mixture.channels, self._mixture.samples
        mixture = self._mixture.kept.read(channels, samples) if self._mixture.kept else None
        dry_db = self._options.dry_db
        dry = np.float32(0.0 if dry_db is None else 10 ** (dry_db / 20))
        gain, matched = np.array([self._gain, self._estimate.gain], np.float32)[:, :, None]
        start = 0
        for block in self._estimate.kept.read(channels, samples):
            voice = self._gated(block, start)
            start += block.shape[1]
            if mixture is None:
                yield voice * gain, None
            else:
                whole = next(mixture)
                yield voice * gain + dry * whole, whole - voice * matched

    def _gated(self, block: Samples, start: int) -> Samples:
        """A block that begins at sample `start`, silent where its voice is absent."""
        if not self._policy.mutes or self.presence.present is None:
            return block
        at_s = (start + np.arange(block.shape[1])) / self._mixture.sample_rate_hz
        gates = [
            np.interp(at_s, *mute_gains(one.segments, MUTE_FADE_S)) if one.present else 0 * at_s
            for one in self._estimate.presences
        ]
        return block * np.array(gates, np.float32)

    def warnings(self) -> Iterator[str]:
        """What may be wrong with it, a line each."""
        presence, options = self.presence, self._options
        yield from self._mixture.warnings()
        if self.limited:
            yield f"turned down by {self._down_db:.1f} dB so that it does not clip."
        if self._residual_down_db:
            yield (
                f"the residual was turned down by {self._residual_down_db:.1f} dB so that it does "
                "not clip."
            )
        as_mixed = (options.level, options.wet_db, options.dry_db) == ("match", 0.0, None)
        changed = self.limited or self._residual_down_db or not as_mixed
        if len(self._outputs) > 1 and changed:
            yield "estimate and residual do not add up to the mixture: their levels were changed."
        if presence.present is False:
            content = "silence" if self._policy.mutes else "another voice, or a remnant"
            yield (
                f"the voice is probably not in the mixture (presence {presence.presence:.2f}); "
                f"the result is {content}."
            )
        elif presence.wrong_speaker:
            yield (
                "may follow the wrong person: what is left sounds like the reference. Try a "
                "longer reference, or listen to the residual (--residual)."
            )
        elif self.silent:
            yield "nothing of this voice was found; the result is silent."
