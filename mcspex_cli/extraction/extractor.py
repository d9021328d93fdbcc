"""The one road from a mixture to a target: every whole recording takes it.

```
reading thread          this thread                            writing thread
mixture ─▶ windows ─▶ network ─▶ joined ─┬─▶ level, presence ─▶ gain, gate ─┬─▶ estimate
                                         └─▶ kept ──────────────────────────┼─▶ residual
                                                                            └─▶ activity
```

The three threads work at the same time, on neighbouring files too. One gain holds for a whole file,
and it is only known when all of the file has been computed. Until then its estimate is in a
temporary file, or in memory if it is short, so that memory does not grow with the recording.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio, files
from mcspex_cli.audio import Floats, Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint
from mcspex_cli.errors import (
    TOO_LITTLE_MEMORY,
    AbsentError,
    EngineError,
    McspexError,
    OutputError,
    is_lack_of_memory,
)
from mcspex_cli.extraction import levels
from mcspex_cli.extraction.engine import Engine, Polarity, as_samples, open_engine
from mcspex_cli.extraction.job import (
    ABSENT,
    ABSENT_ACCEPTED,
    LEVELS_CHANGED,
    ExtractionOptions,
    Job,
    Outputs,
    Result,
    check_absent,
    check_embedding,
    check_sources,
    check_voice,
    open_mixture,
    write_activity,
)
from mcspex_cli.extraction.presence import (
    PresenceMeter,
    PresenceResult,
    join_channels,
    mute_gains,
)
from mcspex_cli.extraction.reference import Clip, Span, Voice, enroll, read_spans
from mcspex_cli.extraction.runtime import PASSES, EngineSettings
from mcspex_cli.extraction.windows import Joiner, Window, cut

if TYPE_CHECKING:
    from mcspex_cli.extraction.streaming import LiveExtractor

_logger = logging.getLogger("mcspex")

T = TypeVar("T")

_LOOKAHEAD = 4
"""Windows read ahead, and files waiting to be written; at least `engine.signals_at_once`."""


class Extractor:
    """A loaded model that extracts targets from files and arrays.

    ```python
    extractor = Extractor.load()
    voice = extractor.enroll("reference.wav")
    extractor.extract_file("mixture.wav", voice, Outputs("target.wav"))
    ```

    Args:
        model: the checkpoint.
        engine: the engine that it was loaded into; `load` makes one.
    """

    def __init__(self, model: CheckpointInfo, engine: Engine) -> None:
        self.model, self.engine = model, engine
        self.sample_rate_hz = engine.sample_rate_hz

    @classmethod
    def load(
        cls,
        model: str | Path | CheckpointInfo | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        runtime: str = "auto",
        passes: int = PASSES,
        offline: bool = False,
    ) -> Extractor:
        """Load a model: a folder, a bundled name, or org/name[@revision] on the Hugging Face Hub.

        Without a model it is the bundled default. The Hub is never asked if `offline` is set.
        `EngineSettings` explains the other arguments.

        Raises:
            CheckpointError: there is no such model, or it is damaged.
            EngineError: the device, precision or runtime is not available here.
        """
        if not isinstance(model, CheckpointInfo):
            model = find_checkpoint(model, offline=offline)
        settings = EngineSettings(device, precision, runtime=runtime, passes=passes)
        return cls(model, open_engine(model, settings))

    def enroll(
        self,
        references: Path | str | Iterable[Path | str] = (),
        *,
        spans: Span | Iterable[Span] = (),
        mixture: Path | str | None = None,
        options: ExtractionOptions | None = None,
        advance: Callable[[float], object] | None = None,
    ) -> Voice:
        """Make a voice from clips, folders of clips, profiles, and spans of the mixture.

        A clip over 10 s is cut to its speech, of at most 60 s, unless no speech is found in it; a
        shorter one only loses silence at its ends. Of each, 10 min from its first speech on are
        read.

        Args:
            references: files and folders, all of one person alone.
            spans: when the person speaks alone in `mixture`.
            mixture: the recording that the spans are in.
            options: how the mixture is read: its channel (for "all" the mix), its track, and what
                to do if it is damaged.
            advance: called with the seconds of sound read since its last call. An exception that
                it raises ends the work.

        Raises:
            AudioError: a clip or span cannot be used, or there is none.
            CheckpointError: a profile cannot be used, or is for other models.
            TypeError, ValueError: a reference is not a path or has an empty name, a span is not a
                `Span`, or there are spans and no `mixture`.
        """
        try:
            names = [references] if isinstance(references, str | os.PathLike) else [*references]
            sources: list[Path | Clip] = [Path(name) for name in names]
        except TypeError as error:
            raise TypeError(f"references are paths of files, not {references!r:.80}") from error
        if "" in names:  # which would mean all files in the working folder
            raise ValueError("a reference has an empty name; name a file or a folder")
        options = self._check_options(options)
        advance = advance or (lambda _: None)
        spans = (spans,) if isinstance(spans, Span) else tuple(spans)
        if not all(isinstance(span, Span) for span in spans):
            raise TypeError("spans are Spans, such as Span(12.0, 18.5)")
        if spans:
            if mixture is None:
                raise ValueError("spans need the mixture that they are of")
            channel = "mix" if options.channel == "all" else options.channel
            reader = open_mixture(Path(mixture), replace(options, channel=channel))
            sources += read_spans(reader, spans, self.sample_rate_hz, advance)
        return enroll(sources, self.engine, self.model, advance)

    def extract(
        self,
        samples: Floats,
        voice: Voice,
        *,
        sample_rate_hz: int | None = None,
        options: ExtractionOptions | None = None,
    ) -> Result:
        """Extract a target from samples in memory.

        Args:
            samples: [sample] or [channel, sample], 0.3 s or more of sound.
            voice: the target's, from `enroll` with the same model.
            sample_rate_hz: of the samples; None if it is the network's own.
            options: how to extract; `channel` chooses among several channels.

        Returns:
            The result with its `estimate`, at `sample_rate_hz` and as long as the samples. It has
            the level of the level policy, and is never so loud that a file would clip.

        Raises:
            McspexError: as `extract_file`.
            TypeError, ValueError: the samples are not [sample] or [channel, sample], or not
                finite, or the rate is not from 1 kHz to 1 MHz.
        """
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        block = np.atleast_2d(as_samples("the mixture", samples, 1, 2))
        rate_hz = audio.check_rate(rate_hz)
        options = self._check_options(options)
        mixture = audio.ArrayReader("the mixture", block, rate_hz, options.channel)
        extraction = _Extraction(self, options, check_voice(voice), mixture, files.UsedFiles())
        with closing(extraction):
            for _ in self._compute_all([extraction], lambda _: None):
                pass
            result = extraction.finish()
        if isinstance(result, McspexError):
            raise result
        if options.channel == "all" and samples.ndim == 2:
            return result
        assert result.estimate is not None
        return replace(result, estimate=result.estimate[0])

    def live(
        self,
        voice: Voice,
        *,
        latency_s: float = 1.0,
        sample_rate_hz: int | None = None,
        absent: str = "keep",
    ) -> LiveExtractor:
        """Extract a target from sound that is still arriving.

        Args:
            voice: the target's, from `enroll` with the same model.
            latency_s: how much later a sample comes out than it went in, 0.1 to 3 s. With a
                longer one the result is better, and costs less computing.
            sample_rate_hz: of the sound, in and out; None if it is the network's own.
            absent: "keep", or "mute" for silence where the target is absent.

        Raises:
            CheckpointError: the model cannot tell whether a target is absent.
            McspexError: the voice is not of this model.
            ValueError: the latency, rate or policy is not possible.
        """
        from mcspex_cli.extraction.streaming import LiveExtractor, Timing

        check_embedding("live", check_voice(voice), self.model)
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        rate_hz = audio.check_rate(rate_hz)
        timing = Timing.for_latency(latency_s, rate_hz)
        if absent not in ABSENT_ACCEPTED:
            raise ValueError(f"absent {absent!r} is none of {', '.join(ABSENT_ACCEPTED)}")
        check_absent(absent, self.model, self.engine.calibration)
        mutes = ABSENT_ACCEPTED[absent].mutes
        return LiveExtractor(self.engine, voice.embedding, timing, rate_hz, mutes=mutes)

    def extract_file(
        self,
        mixture: Path | str,
        voice: Voice,
        outputs: Outputs | Path | str,
        options: ExtractionOptions | None = None,
        advance: Callable[[float], object] | None = None,
    ) -> Result:
        """Extract a target from a file to files of the same rate and length.

        Every file appears when it is whole, or not at all.

        Args:
            mixture: any sound file or video.
            voice: the target's, from `enroll` with the same model.
            outputs: the files to write; a path alone names the estimate.
            options: how to read, extract and write.
            advance: called with the seconds of audio done since its last call.

        Raises:
            AudioError: the mixture cannot be read, is silent or shorter than 0.3 s.
            AbsentError: the target is absent, and the options say that this is an error.
            CheckpointError: the options depend on presence, and the model cannot tell it.
            OutputError: an output exists, is an input, or cannot be written.
            EngineError: the precision gave numbers that are not finite, or memory is short.
        """
        outputs = outputs if isinstance(outputs, Outputs) else Outputs(Path(outputs))
        ((_, result),) = self.extract_files([Job(Path(mixture), voice, outputs)], options, advance)
        if isinstance(result, McspexError):
            raise result
        return result

    def extract_files(
        self,
        jobs: Iterable[Job],
        options: ExtractionOptions | None = None,
        advance: Callable[[float], object] | None = None,
    ) -> Generator[tuple[Job, Result | McspexError], None, None]:
        """Extract several files; reading, computing and writing overlap, also between files.

        Args:
            jobs: what to extract; the next one is taken, in another thread, when it is needed.
            options: how to read, extract and write all of them.
            advance: called with the seconds of audio done since its last call.

        Yields:
            Each job, in order, with its result or its error, which does not stop the others. What
            `jobs` itself raises comes after the results of the jobs before.
        """
        options, used_files = self._check_options(options), files.UsedFiles()
        advance = advance or (lambda _: None)
        lookahead = max(_LOOKAHEAD, self.engine.signals_at_once)
        unfinished: deque[tuple[Job, _Extraction]] = deque()
        pending: deque[Future[Result | McspexError]] = deque()  # of the first of these
        failures: list[Exception] = []  # of `jobs`, which is read ahead

        def extractions() -> Iterator[_Extraction]:
            try:
                for job in jobs:
                    if not isinstance(job, Job):
                        raise TypeError(f"extract_files takes Jobs, not {job!r:.80}")
                    extraction = _Extraction(self, options, job.voice, job, used_files)
                    unfinished.append((job, extraction))
                    yield extraction
            except Exception as error:
                failures.append(error)

        try:
            with (
                ThreadPoolExecutor(1, "mcspex-write") as writer,
                closing(self._compute_all(extractions(), advance)) as computed,
            ):
                try:
                    for extraction in computed:
                        pending.append(writer.submit(extraction.finish))
                        while pending and (len(pending) > lookahead or pending[0].done()):
                            yield unfinished[0][0], pending.popleft().result()
                            unfinished.popleft()
                    while pending:
                        yield unfinished[0][0], pending.popleft().result()
                        unfinished.popleft()
                    if failures:
                        raise failures[0]
                except (KeyboardInterrupt, SystemExit, GeneratorExit):
                    for _, extraction in tuple(unfinished):  # what is half written is not finished
                        extraction.fail(McspexError(f"{extraction.path}: was interrupted."))
                    raise
        finally:
            for _, extraction in tuple(unfinished):  # the caller stopped early
                extraction.close()

    def _check_options(self, options: ExtractionOptions | None) -> ExtractionOptions:
        if options is not None and not isinstance(options, ExtractionOptions):
            raise TypeError(f"options are ExtractionOptions, not {options!r:.80}")
        options = options or ExtractionOptions()
        check_absent(options.absent, self.model, self.engine.calibration)
        return options

    def _compute_all(
        self, extractions: Iterable[_Extraction], advance: Callable[[float], object]
    ) -> Generator[_Extraction, None, None]:
        """Read every mixture ahead, and run the network on it; yield each that is computed."""
        with closing(
            _prefetch(_windows(extractions), max(_LOOKAHEAD, self.engine.signals_at_once))
        ) as windows:
            began = time.monotonic()
            for batch in self.engine.batches(windows):
                for extraction, window in batch:
                    if window.start == 0:
                        extraction.attempt(extraction.begin)
                intact = [
                    (extraction, window) for extraction, window in batch if extraction.error is None
                ]
                try:
                    signals = [window.samples for _, window in intact]
                    polarities = [extraction.polarity for extraction, _ in intact]
                    firsts = self.engine.find_polarities(signals, polarities)
                    estimates = self.engine.compute(signals, polarities, firsts=firsts)
                except Exception as error:  # the network failed, and all of them with it
                    for extraction, _ in intact:
                        extraction.fail(error)
                else:
                    for (extraction, window), estimate in zip(intact, estimates, strict=True):
                        advance(extraction.attempt(extraction.add, window, estimate) or 0.0)
                seconds = time.monotonic() - began
                samples = sum(window.samples.size for _, window in batch)
                for extraction, window in batch:
                    extraction.elapsed_s += seconds * window.samples.size / max(1, samples)
                for extraction, window in batch:
                    if window.last:
                        yield extraction
                began = time.monotonic()


def _windows(
    extractions: Iterable[_Extraction],
) -> Generator[tuple[_Extraction, Window], None, None]:
    """The windows of every mixture; the last one of a mixture that failed has no samples."""
    nothing = Window(0, np.zeros((1, 0), np.float32), last=True)
    for extraction in extractions:
        windows, last = extraction.read(), False
        while not last:
            window = extraction.attempt(next, windows, nothing) or nothing
            yield extraction, window
            last = window.last


def _prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Make items in another thread, up to `depth` of them before they are used."""
    end = object()
    with ThreadPoolExecutor(1, "mcspex-read") as reader:
        pending = deque(reader.submit(next, items, end) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(reader.submit(next, items, end))
                yield cast(T, item)
        finally:
            reader.shutdown(cancel_futures=True)
            items.close()


class _Extraction:
    """One mixture on its way, in four steps that set the fields below.

    `read` is called in the reading thread, `begin` and `add` in the thread of the network, and
    `finish` in the writing thread. If a step fails, its error is kept as `error`, and the steps
    after it are not taken. Gains are linear.
    """

    # From the beginning on:
    job: Job | None  # None for samples in memory
    path: str  # the mixture's, in messages; a row of a report has `Job.name`
    error: McspexError | None = None
    elapsed_s: float = 0.0  # see `Result.elapsed_s`
    _voice: Voice | Callable[[], Voice]  # a Voice from `begin` on
    # From `read` on:
    _mixture: audio.Reader
    _channels: int  # of the mixture that are extracted, each for itself
    _mixture_store: _Store | None = None  # only where the residual or a mix needs the mixture
    _sounds: Sequence[Path] = ()  # the files for the estimate and, if there is one, the residual
    # From `begin` on:
    polarity: Polarity
    _joiner: Joiner
    _matcher: levels.LevelMatcher
    _meters: list[PresenceMeter]  # one for each channel
    _back: audio.Resampler  # from the network's sample rate to the mixture's
    _estimate_store: _Store  # the network's estimate at the mixture's sample rate
    _channel_presences: list[PresenceResult]  # filled by the last `add`
    # In `finish`:
    _match_gains: npt.NDArray[np.float64]  # [channel], to the estimate's level in the mixture
    _estimate_gains: npt.NDArray[np.float64]  # [channel], but for the level that is chosen
    _presence: PresenceResult  # of all channels together

    def __init__(
        self,
        extractor: Extractor,
        options: ExtractionOptions,
        voice: Voice | Callable[[], Voice],
        source: Job | audio.ArrayReader,
        used_files: files.UsedFiles,
    ) -> None:
        if isinstance(source, Job):
            self.job, self.path = source, str(source.mixture)
        else:
            self.job, self._mixture, self.path = None, source, str(source.path)
        self._model, self._engine = extractor.model, extractor.engine
        self._options, self._voice, self._used_files = options, voice, used_files
        self._absent, self._level = ABSENT[options.absent], levels.Level.parse(options.level)
        self._stores = ExitStack()

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """Take a step, unless one before it failed."""
        if self.error is None:
            try:
                return step(*arguments)
            except Exception as error:
                self.fail(error)
        return None

    def fail(self, error: Exception) -> None:
        """Keep an error; if it is a bug, log its traceback."""
        if isinstance(error, EngineError):
            self.error = EngineError(f"{self.path}: {error}")
        elif isinstance(error, McspexError):
            self.error = error
        elif is_lack_of_memory(error):
            self.error = EngineError(f"{self.path}: {TOO_LITTLE_MEMORY}")
        else:
            self.error = McspexError(
                f"{self.path}: {type(error).__name__} ({error}). This is a bug, please report it."
            )
            self.error.__cause__ = error
            _logger.error("The traceback of the bug, for your report:", exc_info=error)

    def read(self) -> Iterator[Window]:
        """Open the mixture, if it is a file, and give its windows at the network's rate."""
        job, options, network_hz = self.job, self._options, self._engine.sample_rate_hz
        if job:
            job.check_outputs(self._used_files)
            self._mixture = job.reader or job.open(options)
            self._sounds = job.outputs.sounds()
            files.make_folders(*{path.parent for path in job.outputs.paths()})
        info = self._mixture.info
        blocks: Iterable[Samples] = self._mixture
        self._channels = info.channels if options.channel == "all" else 1
        if options.dry_db is not None or self._sounds[1:]:
            self._mixture_store = self._open_store()
            blocks = self._mixture_store.keep(blocks)
        resampler = audio.Resampler(info.sample_rate_hz, network_hz, self._channels)
        audible = audio.without_rumble(resampler.run(blocks), network_hz)
        yield from cut(audible, self._engine.windowing)

    def begin(self) -> None:
        """Get the voice, before the first window is computed."""
        engine, channels, info = self._engine, self._channels, self._mixture.info
        self._voice = voice = self._call(self._voice) if callable(self._voice) else self._voice
        if not isinstance(voice, Voice):
            raise McspexError(
                f"{self.path}: the function in its Job gave {voice!r:.80}, not a Voice as "
                "Extractor.enroll does."
            )
        if self.job:
            check_sources(self.job, voice, info.seconds)
        check_embedding(self.path, voice, self._model)
        self._estimate_store = self._open_store()
        self.polarity = Polarity(np.asarray(voice.embedding, np.float32))
        self._meters = [PresenceMeter(engine, self.polarity) for _ in range(channels)]
        self._channel_presences = []
        self._joiner = Joiner(engine.windowing.context, engine.windowing.fade)
        self._matcher = levels.LevelMatcher(channels)
        self._back = audio.Resampler(engine.sample_rate_hz, info.sample_rate_hz, channels)

    def _call(self, function: Callable[[], Voice]) -> Voice:
        """Get the voice from the function in the job, whose errors are bugs only if it is ours."""
        try:
            return function()
        except Exception as error:
            _, *frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
            module = frames[0].f_globals["__name__"] if frames else ""  # in which the function is
            is_ours = module.startswith("mcspex_cli.")
            if is_ours or isinstance(error, McspexError) or is_lack_of_memory(error):
                raise
            raise McspexError(
                f"{self.path}: the function in its Job failed: {type(error).__name__} ({error})."
            ) from error

    def _open_store(self) -> _Store:
        """Open a store on the disk that gets the outputs."""
        folder = self.job.outputs.estimate.parent if self.job else None
        return self._stores.enter_context(closing(_Store(folder)))

    def add(self, window: Window, estimate: Samples) -> float:
        """Take the estimate [channel, sample] of the next window.

        Returns:
            The seconds of sound that it adds to what is computed.
        """
        self._engine.check_finite(estimate)
        estimate, mixture = self._joiner.add(window, estimate)
        self._matcher.add(estimate, mixture)
        if window.last:
            audio.check_level(self.path, self._matcher.mixture_mean_square())
        self._estimate_store.append(self._back.step(estimate, last=window.last))
        for meter, channel, whole in zip(self._meters, estimate, mixture, strict=True):
            meter.add(channel, whole)
            if window.last:
                self._channel_presences.append(meter.result())
        return float(estimate.shape[1] / self._engine.sample_rate_hz)

    def close(self) -> None:
        """Give memory and disk back."""
        self._stores.close()

    def finish(self) -> Result | McspexError:
        """Judge presence, choose the level, write the files and `close`; or the error of a step."""
        with closing(self):
            return self.attempt(self._finish) or cast(McspexError, self.error)

    def _finish(self) -> Result:
        began = time.monotonic()
        job, mixture, runtime = self.job, self._mixture, self._engine.runtime
        voice, start_s = cast(Voice, self._voice), mixture.info.start_s
        ones = np.ones(self._channels)
        self._match_gains = ones if runtime.true_level else self._matcher.gains()
        self._estimate_gains = ones * 10 ** (self._options.wet_db / 20)
        if self._level.policy.matched:
            self._estimate_gains *= self._match_gains
        match_gains_db = levels.gains_db(self._match_gains)
        presence = join_channels(self._channel_presences, match_gains_db, start_s)
        if self._absent.fails and presence.present is False:
            raise AbsentError(
                f"{self.path}: the voice is not in it (presence {presence.presence:.2f}). "
                "Check the reference, or use --absent keep."
            )
        self._presence = presence
        level, residual_level, silent = self._choose_levels()
        estimate = None
        if job:
            self._write(job, level.gain, residual_level.gain)
        else:
            blocks = [block * np.float32(level.gain) for block, _ in self._blocks()]
            estimate = np.concatenate(blocks, axis=-1)
        return Result(
            mixture=job.name if job else self.path,
            references=voice.sources,
            reference_seconds=voice.seconds,
            outputs=job.outputs if job else None,
            start_s=start_s,
            seconds=mixture.frames / mixture.info.sample_rate_hz,
            sample_rate_hz=mixture.info.sample_rate_hz,
            elapsed_s=self.elapsed_s + time.monotonic() - began,
            gain_db=levels.gains_db(self._estimate_gains * level.gain),
            limited=level.limit_db > 0,
            residual_gain_db=round(0.0 - residual_level.limit_db, 2),
            silent=silent,
            presence=presence.presence,
            present=presence.present,
            wrong_speaker=presence.wrong_speaker,
            similarity=presence.similarity,
            speech_left=presence.speech_left,
            active_s=presence.active_s,
            segments=presence.segments,
            warnings=tuple(self._warnings(level, residual_level.limit_db, silent=silent)),
            device=runtime.device,
            precision=runtime.precision,
            runtime=runtime.name,
            passes=self._engine.passes,
            model=self._model.name,
            model_revision=self._model.revision,
            model_sha256=self._model.sha256,
            estimate=estimate,
        )

    def _choose_levels(self) -> tuple[levels.LevelGain, levels.LevelGain, bool]:
        """Read all that is to be written once, and choose its gains by how loud it is.

        Returns:
            The gain of the estimate and all that is mixed with it; that of the residual, 1 or less
            against clipping; and whether the estimate is then silent.
        """
        shape = self._mixture.info.sample_rate_hz, self._channels
        subtype = self._options.subtype
        clips = [not audio.holds_over_full_scale(path, subtype) for path in self._sounds]
        meter = levels.GainMeter(self._level, *shape)
        residual_meter = levels.GainMeter(levels.Level.parse("raw"), *shape)
        for estimate, residual in self._blocks():
            meter.add(estimate)
            if residual is not None:
                residual_meter.add(residual)
        level = meter.gain(clips=clips[0] if clips else True)
        silent = bool(meter.peak * level.gain < 10 ** (audio.SILENCE_DB / 20))
        return level, residual_meter.gain(clips=any(clips[1:])), silent

    def _write(self, job: Job, *gains: float) -> None:
        """Write the files, all of them or none; `gains` are those of the estimate and residual."""
        rate_hz, subtype = self._mixture.info.sample_rate_hz, self._options.subtype
        shape = rate_hz, self._channels, subtype, self._mixture.frames
        job.check_folder()
        with files.together(overwrite=job.outputs.overwrite):
            with ExitStack() as stack:
                writers = [
                    stack.enter_context(audio.open_writer(path, *shape)) for path in self._sounds
                ]
                for blocks in self._blocks():
                    if self.error:  # it was interrupted
                        raise self.error
                    for writer, block, gain in zip(writers, blocks, gains, strict=False):
                        assert block is not None
                        writer.write(block * np.float32(gain))
            write_activity(job, self._presence)

    def _blocks(self) -> Iterator[tuple[Samples, Samples | None]]:
        """Blocks of the estimate before its level is chosen and, if asked for, of the residual."""
        channels, samples = self._channels, self._mixture.frames
        mixtures = self._mixture_store.read(channels, samples) if self._mixture_store else None
        dry_db = self._options.dry_db
        dry_gain = np.float32(0.0 if dry_db is None else 10 ** (dry_db / 20))
        estimate_gains = self._estimate_gains[:, None].astype(np.float32)
        match_gains = self._match_gains[:, None].astype(np.float32)
        start = 0
        for block in self._estimate_store.read(channels, samples):
            estimate = self._mute_absent(block, start)
            start += block.shape[1]
            if mixtures is None:
                yield estimate * estimate_gains, None
            else:
                mixture = next(mixtures)
                residual = mixture - estimate * match_gains
                yield estimate * estimate_gains + dry_gain * mixture, residual

    def _mute_absent(self, block: Samples, start: int) -> Samples:
        """A block that begins at sample `start`, silent where the target is absent."""
        if not self._absent.mutes or self._presence.present is None:
            return block
        at_s = (start + np.arange(block.shape[1])) / self._mixture.info.sample_rate_hz
        gates = [
            np.interp(at_s, *mute_gains(one.segments)) if one.present else np.zeros_like(at_s)
            for one in self._channel_presences
        ]
        return block * np.array(gates, np.float32)

    def _warnings(
        self, level: levels.LevelGain, residual_limit_db: float, *, silent: bool
    ) -> Iterator[str]:
        """What may be wrong with it, a line each."""
        presence, options = self._presence, self._options
        yield from self._mixture.warnings
        if level.limit_db:
            yield f"turned down by {level.limit_db:.1f} dB so that it does not clip."
        if residual_limit_db:
            yield (
                f"the residual was turned down by {residual_limit_db:.1f} dB so that it does not "
                "clip."
            )
        if level.too_soft and not silent:
            yield f"too soft to be measured, so that the level {options.level} changes nothing."
        policy = self._level.policy
        choices = (policy.matched, policy.goal, options.wet_db, options.dry_db)
        is_changed = level.limit_db or residual_limit_db or choices != (True, None, 0.0, None)
        if self._sounds[1:] and is_changed:
            yield LEVELS_CHANGED
        if presence.present is False:
            content = "silence" if options.dry_db is None else "the mixture alone"
            content = content if self._absent.mutes else "another voice, or a remnant"
            yield (
                f"the voice is probably not in the mixture (presence {presence.presence:.2f}); "
                f"the result is {content}."
            )
        elif presence.wrong_speaker:
            yield (
                "may follow the wrong person: what is left sounds like the reference. Try a "
                "longer reference, or listen to the residual (--residual)."
            )
        elif silent:
            yield "nothing of this voice was found; the result is silent."


class _Store:
    """Keeps blocks [channel, sample] until they are needed: in memory or, if long, on the disk."""

    IN_MEMORY_BYTES = 2**24
    READ_SAMPLES = 2**18

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder  # None for that of temporary files, which only long sound needs
        self._file: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (see close)
            self.IN_MEMORY_BYTES, dir=str(folder) if folder else None
        )

    def append(self, block: Samples) -> None:
        """Add a block; an OutputError says if the disk is full, or must not be written."""
        try:
            self._file.write(np.ascontiguousarray(block.T).data)
        except OSError as error:
            raise self._failure(error) from error

    def keep(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Pass blocks on, and add each of them."""
        for block in blocks:
            self.append(block)
            yield block

    def read(self, channels: int, samples: int) -> Iterator[Samples]:
        """Give all back, cut or padded to `samples`: resampling there and back may differ."""
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
        folder = self._folder or Path(tempfile.tempdir or "TMPDIR")
        return files.output_error(folder, error, "a temporary file cannot be written")
