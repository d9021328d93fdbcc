"""One mixture on its way: read, computed, joined, measured, levelled and written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AbsentError, McspexError, OutputError
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
    check_distinct,
    inspect,
)
from mcspex_cli.extraction.levels import (
    SILENCE_DB,
    Level,
    LevelMatcher,
    LoudnessMeter,
    check_length,
    check_level,
    gain_db,
)
from mcspex_cli.extraction.presence import PresenceMeter
from mcspex_cli.extraction.reference import Voice
from mcspex_cli.extraction.windows import Joiner, Window, cut, without_rumble

if TYPE_CHECKING:
    from mcspex_cli.extraction.extractor import Extractor

T = TypeVar("T")

MUTE_FADE_S = 0.05
"""From the voice to what an `AbsentPolicy` makes of its absence, and back."""


@dataclass(frozen=True)
class Sound:
    """A mixture that was opened: `blocks` [channel, sample] at its own rate."""

    sample_rate_hz: int
    seconds: float
    channels: int
    blocks: Iterator[Samples]
    start_s: float = 0.0
    warnings: Callable[[], list[str]] = list
    """What is wrong with it though it can be read; complete once all is read."""


class Task:
    """One mixture on its way: read, computed, joined, measured and written."""

    def __init__(
        self,
        extractor: Extractor,
        name: str,
        voice: Voice | Callable[[], Voice],
        options: ExtractionOptions,
        open_mixture: Callable[[], Sound],
        job: Job | None = None,
    ) -> None:
        self.name, self.job, self.options = name, job, options
        self.error: McspexError | None = None
        self.elapsed_s = 0.0
        self.embedding: Samples | None = None
        self._extractor, self._engine, self._voice = extractor, extractor.engine, voice
        self._open = open_mixture
        self._samples = 0
        folder = job.outputs.estimate.parent if job else None
        self._estimate, self._mixture = _Store(folder), _Store(folder)

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """Take a step, unless one before it failed; what goes wrong costs this task only."""
        if self.error is not None:
            return None
        try:
            return step(*arguments)
        except McspexError as error:
            self.error = error
        except Exception as error:
            self.error = McspexError(
                f"{self.name}: {type(error).__name__} ({error}). This is a bug, please report it."
            )
        return None

    def windows(self) -> Iterator[Window]:
        """Read the mixture, in the reading thread."""
        self._sound = self._open()
        check_length(self.name, self._sound.seconds)
        rate_hz, channels = self._engine.sample_rate_hz, self._sound.channels
        resampler = audio.Resampler(self._sound.sample_rate_hz, rate_hz, channels)
        audible = without_rumble(resampler.run(self._kept()), rate_hz)
        yield from cut(audible, self._engine.windowing)

    def begin(self) -> None:
        """Get the voice, before the first window is computed."""
        if self.embedding is not None:
            return
        if callable(self._voice):
            self._voice = self._voice()
        if self.job is not None:
            sources = map(Path, self._voice.sources)
            check_distinct(self.job.mixture, [path for path in sources if path.is_file()])
        embedding = self._voice.embedding
        check_voice(self.name, embedding, self._extractor.model.config.embedding)
        rate_hz, channels = self._sound.sample_rate_hz, self._sound.channels
        self._joiner = Joiner(self._engine.windowing)
        self._back = audio.Resampler(self._engine.sample_rate_hz, rate_hz, channels)
        self._match = LevelMatcher(channels)
        self._meter = PresenceMeter(
            self._engine.embed_parts,
            self._engine.sample_rate_hz,
            embedding,
            self._engine.calibration,
        )
        self.embedding = embedding

    def add(self, window: Window, estimate: Samples, advance: Callable[[float], object]) -> None:
        """Take the estimate [channel, sample] of the next window."""
        self._engine.check_finite(estimate)
        estimate, mixture = self._joiner.add(window, estimate)
        self._match.add(estimate, mixture)
        self._meter.add(estimate, mixture)
        self._estimate.append(self._back.step(estimate, last=False))
        advance(estimate.shape[1] / self._engine.sample_rate_hz)

    def end(self) -> None:
        """Judge the whole, after the last window."""
        nothing = np.zeros((self._sound.channels, 0), np.float32)
        self._estimate.append(self._back.step(nothing, last=True))
        check_level(self.name, self._match.mixture_mean_square())
        self._presence = self._meter.result()

    def close(self) -> None:
        """Give memory and disk back."""
        self._estimate.close()
        self._mixture.close()

    def outcome(self) -> Result | McspexError:
        """`finish`, in the writing thread."""
        with closing(self):
            return self.attempt(self.finish) or cast(McspexError, self.error)

    def finish(self) -> Result:
        """Set the level, write what is to be written, and tell what was done."""
        if self.error is not None:
            raise self.error
        presence, policy = self._presence, ABSENT[self.options.absent]
        if policy.fails and presence.present is False:
            raise AbsentError(
                f"{self.name}: the voice is not in it (presence {presence.presence:.2f}). "
                "Check the reference, or use --absent keep."
            )
        true_level = self._engine.runtime.true_level
        self._matched = np.ones(self._sound.channels) if true_level else self._match.gain()
        matched = self._matched if self.options.parsed_level.policy.matched else 1.0
        self._gain = np.ones_like(self._matched) * matched * 10 ** (self.options.wet_db / 20)
        levels = self._measured()
        speech = find_spans(presence, max(gain_db(self._matched)))
        # What is written and told counts from where the sound begins in its container.
        start_s = self._sound.start_s
        speech = [(round(one + start_s, 3), round(end + start_s, 3)) for one, end in speech]
        segments = tuple(
            replace(one, start_s=one.start_s + start_s, end_s=one.end_s + start_s)
            for one in presence.segments
        )
        self._told = replace(presence, segments=segments)
        estimate = self._write(levels, speech)
        return self._result(levels, speech, estimate)

    def _kept(self) -> Iterator[Samples]:
        """The mixture's blocks; kept for later where the residual, or a mix, needs them."""
        keep = self.options.dry_db is not None or (self.job and self.job.outputs.residual)
        for block in self._sound.blocks:
            self._samples += block.shape[1]
            if keep:
                self._mixture.append(block)
            yield block
            if self.error is not None:
                return

    def _blocks(self) -> Iterator[tuple[Samples, Samples | None]]:
        """The estimate before its level is set and, if it is asked for, the residual."""
        dry_db, residual = self.options.dry_db, self.job is not None and self.job.outputs.residual
        dry = np.float32(0.0 if dry_db is None else 10 ** (dry_db / 20))
        channels, start = self._sound.channels, 0
        voice = self._estimate.read(channels, self._samples)
        mixture = self._mixture.read(channels, self._samples)
        for block in voice:
            if self.error is not None:
                raise self.error
            gated = self._gated(block, start)
            start += block.shape[1]
            estimate = gated * _column(self._gain)
            if dry_db is None and not residual:
                yield estimate, None
                continue
            whole = next(mixture)
            yield (
                estimate + dry * whole,
                whole - gated * _column(self._matched) if residual else None,
            )

    def _gated(self, block: Samples, start: int) -> Samples:
        """A block that begins at sample `start`, as the `AbsentPolicy` wants it."""
        low, presence = np.float32(ABSENT[self.options.absent].gain), self._presence
        if low == 1 or presence.present is None:
            return block
        if not presence.present:
            return block * low
        at_s = (start + np.arange(block.shape[1])) / self._sound.sample_rate_hz
        gate = np.interp(at_s, *mute_gains(presence, MUTE_FADE_S)).astype(np.float32)
        return cast(Samples, block * (low + (1 - low) * gate))

    def _measured(self) -> _Levels:
        """Run through all once, for the factors that set the levels of estimate and residual."""
        level, loudness_lufs = self.options.parsed_level, -np.inf
        rate_hz, channels = self._sound.sample_rate_hz, self._sound.channels
        meter = LoudnessMeter(rate_hz, channels) if level.policy.needs_loudness else None
        peak = residual_peak = 0.0
        for estimate, residual in self._blocks():
            peak = max(peak, float(np.abs(estimate).max(initial=0)))
            if residual is not None:
                residual_peak = max(residual_peak, float(np.abs(residual).max(initial=0)))
            if meter:
                meter.add(estimate)
        if meter:
            loudness_lufs = meter.loudness_lufs()
        outputs, subtype = self.job.outputs if self.job else None, self.options.subtype
        clips = outputs is None or not audio.holds_over_full_scale(outputs.estimate, subtype)
        factor, limited = level.factor(peak, loudness_lufs, clips=clips)
        residual_factor = 1.0
        if outputs and outputs.residual:
            clips = not audio.holds_over_full_scale(outputs.residual, subtype)
            residual_factor, _ = Level("raw").factor(residual_peak, -np.inf, clips=clips)
        silent = bool(peak * factor < 10 ** (SILENCE_DB / 20))
        return _Levels(factor, limited, residual_factor, silent)

    def _write(self, levels: _Levels, speech: Sequence[tuple[float, float]]) -> Samples | None:
        """Write every file whole or none of them; without a job, give the estimate back."""
        factors = np.float32(levels.factor), np.float32(levels.residual_factor)
        if self.job is None:
            return np.concatenate([block * factors[0] for block, _ in self._blocks()], axis=-1)
        job, outputs = self.job, self.job.outputs
        sound, subtype = self._sound, self.options.subtype
        shape = sound.sample_rate_hz, sound.channels, subtype, self._samples
        with files.together(), ExitStack() as stack:
            places = [path for path in (outputs.estimate, outputs.residual) if path]
            writers = [stack.enter_context(audio.Writer(path, *shape)) for path in places]
            for blocks in self._blocks():
                for writer, block, factor in zip(writers, blocks, factors, strict=False):
                    writer.write(cast(Samples, block) * factor)
            if outputs.activity:
                file = job.id or job.mixture.stem
                report = ActivityReport(job.name, file, outputs.speaker, self._told, speech)
                write_activity(outputs.activity, report)
        return None

    def _result(
        self,
        levels: _Levels,
        speech: Sequence[tuple[float, float]],
        estimate: Samples | None,
    ) -> Result:
        presence, model, runtime = self._presence, self._extractor.model, self._engine.runtime
        voice = cast(Voice, self._voice)
        gains_db = gain_db(self._gain * levels.factor)
        return Result(
            mixture=self.job.name if self.job else self.name,
            references=voice.sources,
            reference_seconds=voice.seconds,
            outputs=self.job.outputs if self.job else None,
            start_s=self._sound.start_s,
            seconds=self._samples / self._sound.sample_rate_hz,
            sample_rate_hz=self._sound.sample_rate_hz,
            elapsed_s=self.elapsed_s,
            gain_db=gains_db,
            limited=levels.limited,
            residual_gain_db=gain_db(np.array([levels.residual_factor]))[0],
            silent=levels.silent,
            presence=presence.presence,
            present=presence.present,
            wrong_speaker=presence.wrong_speaker,
            similarity=presence.similarity,
            speech_left=share_of_speech(
                presence.estimate_db + max(gain_db(self._matched)), presence.mixture_db
            ),
            active_s=round(sum(end_s - start_s for start_s, end_s in speech), 2),
            segments=self._told.segments,
            warnings=tuple(self._warnings(levels, gains_db)),
            device=runtime.device,
            precision=runtime.precision,
            runtime=runtime.name,
            model=model.name,
            model_revision=model.revision,
            model_sha256=model.sha256,
            estimate=estimate,
        )

    def _warnings(self, levels: _Levels, gains_db: Sequence[float]) -> Iterator[str]:
        presence, options = self._presence, self.options
        yield from self._sound.warnings()
        if levels.limited:
            yield f"turned down (gain {gains_db[0]:+.1f} dB) so that it does not clip."
        if levels.residual_factor < 1:
            down_db = -gain_db(np.array([levels.residual_factor]))[0]
            yield f"the residual was turned down by {down_db:.1f} dB so that it does not clip."
        as_mixed = (options.level, options.wet_db, options.dry_db) == ("match", 0.0, None)
        if (
            self.job
            and self.job.outputs.residual
            and not (as_mixed and levels.factor == levels.residual_factor == 1)
        ):
            yield "estimate and residual do not add up to the mixture: their levels were changed."
        if presence.present is False:
            gain = ABSENT[options.absent].gain
            content = "silence" if gain == 0 else "another voice, or a remnant"
            yield (
                f"the voice is probably not in the mixture (presence {presence.presence:.2f}); "
                f"the result is {content}."
            )
        elif presence.wrong_speaker:
            yield (
                "may follow the wrong person: what is left sounds like the reference. Try a "
                "longer reference, or listen to the residual (--residual)."
            )
        elif levels.silent:
            yield "nothing of this voice was found; the result is silent."


@dataclass(frozen=True)
class _Levels:
    """What estimate and residual are multiplied by at last."""

    factor: float
    limited: bool
    residual_factor: float
    silent: bool


class _Store:
    """Blocks [channel, sample] until they are needed again: in memory, or on the disk if long."""

    IN_MEMORY_BYTES = 2**24
    READ_SAMPLES = 2**18

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (see close)
            self.IN_MEMORY_BYTES, dir=str(folder) if folder else None
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

    __del__ = close  # for tasks that are abandoned

    def _failure(self, error: OSError) -> OutputError:
        folder = self._folder or Path(tempfile.gettempdir())
        return files.output_error(folder, error, "a temporary file cannot be written")


def open_mixture(job: Job, options: ExtractionOptions, places: Places) -> Sound:
    """Open a job's mixture, and make the folders of its outputs."""
    places.add(job)
    info = job.info or inspect(job, options)
    files.make_folders(*{path.parent for path in job.outputs.paths()})
    reader = audio.Reader(
        job.mixture,
        info.sample_rate_hz,
        options.channel,
        track=options.track,
        damaged=options.damaged,
    )
    channels = info.channels if options.channel == "all" else 1
    return Sound(
        info.sample_rate_hz,
        info.seconds,
        channels,
        iter(reader),
        info.start_s,
        lambda: reader.warnings,
    )


def check_voice(name: str, embedding: Samples, length: int) -> None:
    """Refuse what is not an embedding [length] of a voice; `name` is what asks for it.

    Raises:
        McspexError: it is of another length, or not finite.
    """
    if np.shape(embedding) != (length,) or not np.isfinite(embedding).all():
        raise McspexError(
            f"{name}: the voice is not one of this model, or is damaged. "
            "Enroll it with the model that extracts it."
        )


def _column(gain: npt.NDArray[np.float64]) -> Samples:
    """Gains [channel] for blocks [channel, sample]."""
    return gain.astype(np.float32)[:, None]
