"""One mixture on its way to the target: read, joined from its windows, measured, levelled, written.

```
samples ─┬─▶ the network's rate ─▶ without what is below 20 Hz ─▶ windows ─▶ (the network)
         └─▶ kept, where the residual or a mix needs them

windows of the network ─▶ joined ─┬─▶ level, presence ─▶ gain, gate ─┬─▶ estimate
                                  └─▶ kept ──────────────────────────┼─▶ residual
                                                                     └─▶ activity
```

One gain holds for a whole file, and it is only known when all of the file has been computed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AbsentError, AudioError, EngineError, McspexError, OutputError
from mcspex_cli.extraction.activity import (
    ActivityReport,
    find_spans,
    mute_gains,
    share_of_speech,
    write_activity,
)
from mcspex_cli.extraction.job import (
    ABSENT,
    ExtractionOptions,
    Job,
    Places,
    Result,
    check_references,
    inspect,
)
from mcspex_cli.extraction.levels import (
    MIN_SIGNAL_S,
    SILENCE_DB,
    Level,
    LevelMatcher,
    LoudnessMeter,
    check_length,
    check_level,
    gain_db,
)
from mcspex_cli.extraction.presence import PresenceMeter, PresenceResult, join_channels
from mcspex_cli.extraction.reference import Voice
from mcspex_cli.extraction.windows import Joiner, Window, Windowing, cut, without_rumble

if TYPE_CHECKING:
    from mcspex_cli.extraction.engine import Engine
    from mcspex_cli.extraction.extractor import Extractor

_logger = logging.getLogger("mcspex")

T = TypeVar("T")

MUTE_FADE_S = 0.05
"""From the voice to silence where it is absent, and back."""


class Store:
    """Blocks [channel, sample] until they are needed again: in memory, or on the disk if long.

    Args:
        folder: where the file of a long one is; the system's temporary folder if it is None.
    """

    IN_MEMORY_BYTES = 2**24
    READ_SAMPLES = 2**18

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._file: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (see close)
            self.IN_MEMORY_BYTES, dir=str(self._folder)
        )

    def append(self, block: Samples) -> None:
        """Add a block.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        try:
            self._file.write(np.ascontiguousarray(block.T).data)
        except OSError as error:
            raise self._failure(error) from error

    def read(self, channels: int, samples: int) -> Iterator[Samples]:
        """Give all back, cut or completed to `samples`: resampling there and back may be off.

        Raises:
            OutputError: as `append`.
        """
        try:
            self._file.seek(0)
        except OSError as error:
            raise self._failure(error) from error
        for start in range(0, samples, self.READ_SAMPLES):
            length = min(self.READ_SAMPLES, samples - start)
            data = self._file.read(4 * channels * length)
            block = np.frombuffer(data, np.float32).reshape(-1, channels).T
            yield np.pad(block, ((0, 0), (0, length - block.shape[1])))

    def close(self) -> None:
        """Give memory and disk back."""
        with suppress(OSError):
            self._file.close()

    __del__ = close  # for mixtures that are abandoned

    def _failure(self, error: OSError) -> OutputError:
        return files.output_error(self._folder, error, "a temporary file cannot be written")


@dataclass(eq=False)
class Mixture:
    """An open mixture, which is read once."""

    name: str
    sample_rate_hz: int
    channels: int
    blocks: Iterable[Samples]
    """[channel, sample] at its own rate."""
    announced_s: float = 0.0
    """Its length, as its header says."""
    start_s: float = 0.0
    """Where its sound begins in its container."""
    kept: Store | None = None
    """Gets every block, if it is not None."""
    warnings: Callable[[], list[str]] = list
    """What is wrong with it though it can be read; complete once all is read."""
    samples: int = field(default=0, init=False)
    """Read so far, of each channel."""

    @property
    def seconds(self) -> float:
        """Its length, once all is read."""
        return self.samples / self.sample_rate_hz

    def windows(self, sample_rate_hz: int, windowing: Windowing) -> Iterator[Window]:
        """Read it as windows at the rate of a network.

        Raises:
            AudioError: it cannot be read, or is shorter than 0.3 s.
            OutputError: the disk is too full to keep it.
        """
        resampler = audio.Resampler(self.sample_rate_hz, sample_rate_hz, self.channels)
        yield from cut(without_rumble(resampler.run(self._read()), sample_rate_hz), windowing)

    def _read(self) -> Iterator[Samples]:
        for block in self.blocks:
            self.samples += block.shape[1]
            if self.kept:
                self.kept.append(block)
            yield block
        if self.seconds < MIN_SIGNAL_S and self.warnings():  # of a damaged file this much is left
            raise AudioError(
                f"{self.name}: is damaged, and only {self.seconds:.2f} s of it can be read, which "
                "is too short. Export it again from the original."
            )
        check_length(self.name, self.seconds)


def open_mixture(job: Job, options: ExtractionOptions) -> Mixture:
    """Open the mixture of a job, and make the folders of its outputs.

    Raises:
        AudioError, OutputError: as `inspect`; a folder cannot be made.
    """
    reader = job.reader or inspect(job, options).reader
    assert reader is not None
    info = reader.info
    files.make_folders(*{path.parent for path in job.outputs.paths()})
    is_kept = job.outputs.residual is not None or options.dry_db is not None
    return Mixture(
        str(job.mixture),
        info.sample_rate_hz,
        info.channels if options.channel == "all" else 1,
        reader,
        info.seconds,
        info.start_s,
        Store(job.outputs.estimate.parent) if is_kept else None,
        lambda: reader.warnings,
    )


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


class MixtureExtraction:
    """One mixture on its way: `read`, `begin` and `estimate.add`, `outcome`.

    Each of the three is in a thread of its own. What goes wrong in one step is kept as `error`, and
    the steps after it are not taken.
    """

    def __init__(
        self,
        extractor: Extractor,
        options: ExtractionOptions,
        voice: Voice | Callable[[], Voice],
        job: Job | None = None,
        places: Places | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.name = str(job.mixture) if job else "the mixture"
        self.job, self.elapsed_s = job, 0.0
        self.error: McspexError | None = None
        self._extractor, self._options, self._voice = extractor, options, voice
        self._places, self._mixture = places, mixture
        self.estimate: Estimate | None = None
        """What the windows are added to, from `begin` on."""

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """Take a step, unless one before it failed."""
        if self.error is None:
            try:
                return step(*arguments)
            except Exception as error:
                self.fail(error)
        return None

    def fail(self, error: Exception) -> None:
        """Keep what went wrong; of a bug, the traceback is logged."""
        if isinstance(error, EngineError):
            self.error = EngineError(f"{self.name}: {error}")
        elif isinstance(error, McspexError):
            self.error = error
        else:
            self.error = McspexError(
                f"{self.name}: {type(error).__name__} ({error}). This is a bug, please report it."
            )
            self.error.__cause__ = error
            _logger.error("The traceback of the bug, for your report:", exc_info=error)

    def read(self) -> Iterator[Window]:
        """The windows of the mixture."""
        if self._mixture is None:
            assert self.job is not None and self._places is not None
            self._places.add(self.job)
            self._mixture = open_mixture(self.job, self._options)
        engine = self._extractor.engine
        yield from self._mixture.windows(engine.sample_rate_hz, engine.windowing)

    def begin(self) -> None:
        """Get the voice, before the first window is computed."""
        assert self._mixture is not None
        voice = self._voice() if callable(self._voice) else self._voice
        if self.job is not None:
            # A span is no file, and Path.is_file would raise if its name is too long for one.
            clips = [Path(one) for one in voice.sources if os.path.isfile(one)]  # noqa: PTH113
            lengths_s = {one.path: one.seconds for one in voice.qualities}
            lengths_s[str(self.job.mixture)] = self._mixture.announced_s
            check_references(self.job, clips, lengths_s)
        self._extractor.check_voice(self.name, voice)
        self.voice, self.embedding = voice, voice.embedding.astype(np.float32)
        folder = self.job.outputs.estimate.parent if self.job else None
        self.estimate = Estimate(self._extractor.engine, self._mixture, self.embedding, folder)

    def outcome(self) -> Result | McspexError:
        """Write what is to be written, and tell what was done."""
        with closing(self):
            return self.attempt(self.result) or cast(McspexError, self.error)

    def result(self) -> Result:
        """As `outcome`, but what went wrong is raised."""
        if self.error is not None:
            raise self.error
        mixture, estimate, job = self._mixture, self.estimate, self.job
        assert mixture is not None and estimate is not None
        levelled = LevelledEstimate(mixture, estimate, self._options, job)
        if job:
            levelled.write(lambda: self.error)
        presence, extractor = levelled.presence, self._extractor
        model, runtime = extractor.model, extractor.engine.runtime
        return Result(
            mixture=job.name if job else self.name,
            references=self.voice.sources,
            reference_seconds=self.voice.seconds,
            outputs=job.outputs if job else None,
            start_s=mixture.start_s,
            seconds=mixture.seconds,
            sample_rate_hz=mixture.sample_rate_hz,
            elapsed_s=self.elapsed_s,
            gain_db=levelled.gains_db,
            limited=levelled.limited,
            residual_gain_db=levelled.residual_gain_db,
            silent=levelled.silent,
            presence=presence.presence,
            present=presence.present,
            wrong_speaker=presence.wrong_speaker,
            similarity=presence.similarity,
            speech_left=levelled.speech_left,
            active_s=round(sum(end_s - start_s for start_s, end_s in levelled.spans), 2),
            segments=presence.segments,
            warnings=tuple(levelled.warnings()),
            device=runtime.device,
            precision=runtime.precision,
            runtime=runtime.name,
            model=model.name,
            model_revision=model.revision,
            model_sha256=model.sha256,
            estimate=None if job else levelled.samples(),
        )

    def close(self) -> None:
        """Give memory and disk back."""
        for store in (self._mixture and self._mixture.kept, self.estimate and self.estimate.kept):
            if store:
                store.close()
