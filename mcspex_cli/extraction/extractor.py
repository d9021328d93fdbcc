"""The one road from a mixture to a target: every command and every Python user takes it.

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
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint
from mcspex_cli.errors import AbsentError, EngineError, McspexError, OutputError
from mcspex_cli.extraction import levels
from mcspex_cli.extraction.engine import Engine, check_samples, open_engine
from mcspex_cli.extraction.job import (
    ABSENT,
    ExtractionOptions,
    Job,
    Outputs,
    Places,
    Result,
    check_presence,
    check_references,
    check_voice,
    open_mixture,
)
from mcspex_cli.extraction.presence import (
    Polarity,
    PresenceMeter,
    join_channels,
    mute_gains,
    write_activity,
)
from mcspex_cli.extraction.reference import Clip, Span, Voice, enroll, read_spans
from mcspex_cli.extraction.runtime import SHIFTS, EngineSettings
from mcspex_cli.extraction.windows import Joiner, Mixture, Window

if TYPE_CHECKING:
    from mcspex_cli.extraction.streaming import LiveExtractor

_logger = logging.getLogger("mcspex")

T = TypeVar("T")

AHEAD = 4
"""Windows that are read before they are needed, and estimates that may wait to be written: so
many, or as many as the engine computes at once."""

MUTE_FADE_S = 0.05
"""From the voice to silence where it is absent, and back."""


class Extractor:
    """A loaded model that extracts voices from files and arrays.

    ```python
    extractor = Extractor.load()
    voice = extractor.enroll("reference.wav")
    extractor.extract_file("mixture.wav", voice, Outputs("target.wav"))
    ```

    Args:
        model: the checkpoint.
        engine: it, loaded; see `load`.
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
        shifts: int = SHIFTS,
        offline: bool = False,
    ) -> Extractor:
        """Load a model: a folder, a bundled name, or org/name[@revision] on the Hugging Face Hub.

        Without a model it is the bundled default. The Hub is never asked if `offline` is set;
        `EngineSettings` says what all others mean.

        Raises:
            CheckpointError: there is no such model, or it is damaged.
            EngineError: the device, precision or runtime is not available here.
        """
        if not isinstance(model, CheckpointInfo):
            model = find_checkpoint(model, offline=offline)
        settings = EngineSettings(device, precision, runtime=runtime, shifts=shifts)
        return cls(model, open_engine(model, settings))

    def enroll(
        self,
        references: Path | str | Sequence[Path | str | audio.Reader] = (),
        *,
        spans: Sequence[Span] = (),
        mixture: Path | None = None,
        channel: str = "mix",
        track: str | None = None,
        damaged: audio.Damaged = "fail",
        advance: Callable[[float], object] = lambda _: None,
    ) -> Voice:
        """Embed one voice from clips, folders of clips, profiles, and spans of the mixture.

        A clip over 10 s is cut to its speech, of at most 60 s; a shorter one only loses silence at
        its ends. Only 10 min of a clip are read, from its first speech on.

        Args:
            references: files, folders and open files, all of one person alone.
            spans: when the person speaks alone in `mixture`.
            mixture: the recording that the spans are of.
            channel: how the mixture is read, as in `ExtractionOptions`; so are the next two.
            track: its sound track.
            damaged: what is done if it is damaged.
            advance: called with the seconds of sound read since its last call. What it raises
                ends the work.

        Raises:
            AudioError: a clip or span cannot be used, or there is none.
            CheckpointError: a profile cannot be used, or is for other models.
            TypeError, ValueError: a reference is not a path, or a span not a `Span` of a mixture.
        """
        if isinstance(references, str | os.PathLike):
            references = [references]
        try:
            sources: list[Path | audio.Reader | Clip] = [
                one if isinstance(one, audio.Reader) else Path(one)
                for one in references
                if str(one)
            ]
        except TypeError as error:
            raise TypeError(f"references are paths of files, not {references!r:.80}") from error
        if not all(isinstance(span, Span) for span in spans):
            raise TypeError("spans are Spans, such as Span(12.0, 18.5)")
        channel = "mix" if channel == "all" else channel
        options = ExtractionOptions(channel, track=track, damaged=damaged)
        if spans:
            if mixture is None:
                raise ValueError("spans need the mixture that they are of")
            reader = open_mixture(Path(mixture), options)
            sources += read_spans(reader, spans, self.sample_rate_hz, advance)
        return enroll(sources, self.engine, self.model, advance)

    def check_voice(self, name: str, voice: Voice) -> None:
        """Refuse a voice of another model, or a damaged one; `name` is what asks for it."""
        embedding = np.asarray(voice.embedding)
        is_known = embedding.shape == (self.model.config.embedding,) and embedding.dtype.kind == "f"
        if not is_known or not np.isfinite(embedding).all():
            sources = f" ({', '.join(voice.sources)})" if voice.sources else ""
            raise McspexError(
                f"{name}: the voice{sources} is not one of this model, or is damaged. "
                "Enroll it with the model that extracts it."
            )

    def extract(
        self,
        samples: Samples,
        voice: Voice,
        *,
        sample_rate_hz: int | None = None,
        options: ExtractionOptions | None = None,
    ) -> Result:
        """Extract a voice from samples in memory.

        Args:
            samples: [sample] or [channel, sample], of one second or an hour.
            voice: of `enroll`, by the same model.
            sample_rate_hz: of the samples; None if it is the network's own.
            options: how; `channel` decides what is made of several channels.

        Returns:
            The result with its `estimate` at `sample_rate_hz`, as long as the samples, at the level
            of the level policy, and never so loud that a file would clip.

        Raises:
            McspexError: as `extract_file`.
            TypeError, ValueError: the samples are not [sample] or [channel, sample], not finite,
                or the rate is no rate.
        """
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        block = np.atleast_2d(check_samples("the mixture", samples, 1, 2))
        audio.check_rate(rate_hz)
        options = self._checked(options)
        block = audio.select(block, options.channel, "the mixture")
        mixture = Mixture("the mixture", rate_hz, len(block), [block])
        with closing(_Extraction(self, options, check_voice(voice), mixture)) as work:
            for _ in self._computed([work], lambda _: None):
                pass
            result = work.result()
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
        """Extract a voice from sound that is still arriving.

        Args:
            voice: of `enroll`, by the same model.
            latency_s: how much later a sample comes out than it went in, 0.1 to 3 s. With a
                longer one the result is better, and costs less computing.
            sample_rate_hz: of the sound, in and out; None if it is the network's own.
            absent: "keep", or "mute" for silence where the voice is absent.

        Raises:
            CheckpointError: the model cannot tell whether a voice is absent.
            McspexError: the voice is not of this model.
            ValueError: the latency, rate or policy is none.
        """
        from mcspex_cli.extraction.streaming import LiveExtractor, Timing

        self.check_voice("live", check_voice(voice))
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        timing = Timing.for_latency(latency_s, rate_hz)
        live = LiveExtractor(self.engine, voice, timing, rate_hz, absent)
        check_presence(self.model, self.engine.calibration, absent)
        return live

    def extract_file(
        self,
        mixture: Path | str,
        voice: Voice,
        outputs: Outputs | Path | str,
        options: ExtractionOptions | None = None,
        advance: Callable[[float], object] = lambda _: None,
    ) -> Result:
        """Extract a voice from a file to files of the same rate and length.

        Every file appears when it is whole, or not at all.

        Args:
            mixture: any sound file or video.
            voice: of `enroll`, by the same model.
            outputs: where to; a path alone is the estimate's.
            options: how.
            advance: called with the seconds of audio done since its last call.

        Raises:
            AudioError: the mixture cannot be read, is silent or shorter than 0.3 s.
            AbsentError: the voice is absent, and the options say that this is to fail.
            CheckpointError: the options need to know whether it is, and the model cannot tell.
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
        advance: Callable[[float], object] = lambda _: None,
    ) -> Generator[tuple[Job, Result | McspexError], None, None]:
        """Extract several files; reading, computing and writing overlap, also between files.

        Args:
            jobs: read one after the other as they are needed, in another thread.
            options: how, for all of them.
            advance: called with the seconds of audio done since its last call.

        Yields:
            Each job, in order, with its result or the error that it failed of. An error costs its
            own job only.
        """
        options, places, ahead = self._checked(options), Places(), max(AHEAD, self.engine.batch)
        opened: deque[_Extraction] = deque()
        pending: deque[tuple[Job, Future[Result | McspexError]]] = deque()

        def works() -> Iterator[_Extraction]:
            for job in jobs:
                if not isinstance(job, Job):
                    raise TypeError(f"extract_files takes Jobs, not {job!r}")
                opened.append(_Extraction(self, options, job.voice, job, places))
                yield opened[-1]

        try:
            with (
                ThreadPoolExecutor(1, "mcspex-write") as writer,
                closing(self._computed(works(), advance)) as computed,
            ):
                try:
                    for work in computed:
                        assert work.job is not None
                        pending.append((work.job, writer.submit(work.outcome)))
                        while pending and (len(pending) > ahead or pending[0][1].done()):
                            job, ready = pending.popleft()
                            yield job, ready.result()
                            opened.popleft()
                    for job, ready in pending:
                        yield job, ready.result()
                except (KeyboardInterrupt, SystemExit, GeneratorExit):
                    for work in tuple(opened):  # what is half written is not finished
                        work.fail(McspexError(f"{work.name}: was interrupted."))
                    raise
        finally:
            for work in tuple(opened):  # the caller stopped early
                work.close()

    def _checked(self, options: ExtractionOptions | None) -> ExtractionOptions:
        if options is not None and not isinstance(options, ExtractionOptions):
            raise TypeError(f"options are ExtractionOptions, not {options!r:.80}")
        options = options or ExtractionOptions()
        check_presence(self.model, self.engine.calibration, options.absent)
        return options

    def _computed(
        self, works: Iterable[_Extraction], advance: Callable[[float], object]
    ) -> Generator[_Extraction, None, None]:
        """Read every mixture ahead and run the network on it; what is yielded is done."""
        began = time.monotonic()
        ahead = max(AHEAD, self.engine.batch)
        with closing(_prefetched(_windows(works), ahead)) as windows:
            for batch in self.engine.batches(windows):
                for work, window in batch:
                    if window.start == 0:
                        work.attempt(work.begin)
                live = [(one, window) for one, window in batch if one.error is None]
                signals = [one.polarity.signals(window.samples) for one, window in live]
                voices = (one.embedding for one, _ in live)
                pairs = [
                    (signal, voice)
                    for both, voice in zip(signals, voices, strict=True)
                    for signal in both
                ]
                try:
                    estimates = iter(self.engine.compute(pairs) if pairs else [])
                except Exception as error:  # the network failed, and all of them with it
                    estimates = iter([])
                    for work, _ in live:
                        work.fail(error)
                for (work, window), both in zip(live, signals, strict=True):
                    own = list(islice(estimates, len(both)))
                    advance(work.attempt(work.add, window, own) or 0.0)
                for work, window in batch:
                    if window.last:
                        work.elapsed_s = time.monotonic() - began
                        yield work
                        began = time.monotonic()


def _windows(works: Iterable[_Extraction]) -> Generator[tuple[_Extraction, Window], None, None]:
    """The windows of every mixture; the last one of a mixture that failed has no samples."""
    nothing = Window(0, np.zeros((1, 0), np.float32), last=True)
    for work in works:
        windows, window = work.read(), None
        while window is None or not window.last:
            window = work.attempt(next, windows, nothing) or nothing
            yield work, window


def _prefetched(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Make every item up to `depth` ahead of its use, in another thread."""
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
    """One mixture on its way: `read`, `begin` and `add`, `outcome`.

    Each of the three is in a thread of its own. What goes wrong in one step is kept as `error`, and
    the steps after it are not taken.
    """

    _mixture: Mixture
    embedding: Samples
    """[embedding], of the voice; known from `begin` on."""
    polarity: Polarity
    """Of the mixture; from `begin` on."""

    def __init__(
        self,
        extractor: Extractor,
        options: ExtractionOptions,
        voice: Voice | Callable[[], Voice],
        source: Job | Mixture,
        places: Places | None = None,
    ) -> None:
        if isinstance(source, Mixture):
            self.job, self._mixture, self.name = None, source, source.name
        else:
            self.job, self.name = source, str(source.mixture)
        self.elapsed_s = 0.0
        self.error: McspexError | None = None
        self._extractor, self._engine = extractor, extractor.engine
        self._options, self._voice, self._places = options, voice, places
        self._policy = ABSENT[options.absent]
        self._outputs: list[Path] = []
        """The estimate's file and, if it is asked for, the residual's."""
        self._stores = ExitStack()
        self._whole: _Store | None = None
        """The mixture, where the residual or a mix needs it."""

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
        """Open the mixture, if it is a file, and give its windows."""
        job, options = self.job, self._options
        if job and self._places:
            self._places.add(job)
            self._outputs = job.outputs.sounds()
            reader = job.reader or job.open(options)
            job.outputs.make_folders()
            self._mixture = Mixture(
                self.name,
                reader.info.sample_rate_hz,
                reader.info.channels if options.channel == "all" else 1,
                reader,
                reader.info.seconds,
                reader.info.start_s,
                warnings=lambda: reader.warnings,
            )
        if options.dry_db is not None or self._outputs[1:]:
            self._whole = self._store()
            self._mixture.keep = self._whole.append
        yield from self._mixture.windows(self._engine.sample_rate_hz, self._engine.windowing)

    def begin(self) -> None:
        """Get the voice, before the first window is computed."""
        mixture, engine, channels = self._mixture, self._engine, self._mixture.channels
        self._voice = voice = self._voice() if callable(self._voice) else self._voice
        if self.job:
            # A span is no file, and Path.is_file would raise if its name is too long for one.
            clips = [Path(one) for one in voice.sources if os.path.isfile(one)]  # noqa: PTH113
            lengths_s = {one.path: one.seconds for one in voice.qualities}
            check_references(self.job, clips, lengths_s | {self.name: mixture.announced_s})
        self._extractor.check_voice(self.name, voice)
        self.embedding = voice.embedding.astype(np.float32)
        self.polarity = Polarity(engine, self.embedding)
        self._kept = self._store()
        self._joiner, self._matcher = Joiner(engine.windowing), levels.LevelMatcher(channels)
        self._back = audio.Resampler(engine.sample_rate_hz, mixture.sample_rate_hz, channels)
        self._meters = [PresenceMeter(engine, self.embedding) for _ in range(channels)]

    def _store(self) -> _Store:
        """A new store, on the disk that gets the outputs."""
        folder = self.job.outputs.estimate.parent if self.job else None
        return self._stores.enter_context(closing(_Store(folder)))

    def add(self, window: Window, estimates: Sequence[Samples]) -> float:
        """Take what the network made of the next window's signals, each [channel, sample].

        Returns:
            The seconds of sound that are done by it.
        """
        for samples in estimates:
            self._engine.check_finite(samples)
        estimate = self.polarity.choose(window.samples, estimates)
        estimate, mixture = self._joiner.add(window, estimate)
        self._matcher.add(estimate, mixture)
        for meter, *signals in zip(self._meters, estimate, mixture, strict=True):
            meter.add(*(self.polarity.sign * signal for signal in signals))
        self._kept.append(self._back.step(estimate, last=window.last))
        if window.last:
            levels.check_level(self.name, self._matcher.mixture_mean_square())
            self._presences = [meter.result() for meter in self._meters]
        return float(estimate.shape[1] / self._engine.sample_rate_hz)

    def outcome(self) -> Result | McspexError:
        """Write what is to be written, and tell what was done."""
        with closing(self):
            return self.attempt(self.result) or cast(McspexError, self.error)

    def close(self) -> None:
        """Give memory and disk back."""
        self._stores.close()

    def result(self) -> Result:
        """As `outcome`, but what went wrong is raised."""
        if self.error is not None:
            raise self.error
        job, mixture, voice, model = self.job, self._mixture, self._voice, self._extractor.model
        assert isinstance(voice, Voice)
        self._judge()
        self._choose_level()
        if job:
            self._write(job)
        presence, runtime = self._presence, self._engine.runtime
        return Result(
            mixture=job.name if job else self.name,
            references=voice.sources,
            reference_seconds=voice.seconds,
            outputs=job.outputs if job else None,
            start_s=mixture.start_s,
            seconds=mixture.samples / mixture.sample_rate_hz,
            sample_rate_hz=mixture.sample_rate_hz,
            elapsed_s=self.elapsed_s,
            gain_db=levels.gain_db(self._gain * self._factor),
            limited=self._down_db > 0,
            residual_gain_db=round(0.0 - self._residual_down_db, 2),
            silent=self._silent,
            presence=presence.presence,
            present=presence.present,
            wrong_speaker=presence.wrong_speaker,
            similarity=presence.similarity,
            speech_left=presence.speech_left,
            active_s=presence.active_s,
            segments=presence.segments,
            warnings=tuple(self._warnings()),
            device=runtime.device,
            precision=runtime.precision,
            runtime=runtime.name,
            shifts=self._engine.shifts,
            model=model.name,
            model_revision=model.revision,
            model_sha256=model.sha256,
            estimate=None if job else self._samples(),
        )

    def _judge(self) -> None:
        """Find out whether the voice is there, and when.

        Raises:
            AbsentError: it is not, and the options say that this is to fail.
        """
        self._matched: npt.NDArray[np.float64] = np.ones(self._mixture.channels)
        """What the network's estimate is multiplied by to match the mixture [channel]."""
        if not self._engine.runtime.true_level:
            self._matched = self._matcher.gain()
        matched_db = levels.gain_db(self._matched)
        presence = join_channels(self._presences, matched_db, self._mixture.start_s)
        self._presence = presence
        if self._policy.fails and presence.present is False:
            raise AbsentError(
                f"{self.name}: the voice is not in it (presence {presence.presence:.2f}). "
                "Check the reference, or use --absent keep."
            )

    def _choose_level(self) -> None:
        """Run through all once, for the factors of estimate and residual."""
        options, level, meter = self._options, levels.Level.parse(self._options.level), None
        if level.policy.needs_loudness:
            meter = levels.LoudnessMeter(self._mixture.sample_rate_hz, self._mixture.channels)
        matched = self._matched if level.policy.matched else np.ones_like(self._matched)
        self._gain = matched * 10 ** (options.wet_db / 20)
        peak = residual_peak = 0.0
        for estimate, residual in self._blocks():
            peak = max(peak, float(np.abs(estimate).max(initial=0)))
            if residual is not None:
                residual_peak = max(residual_peak, float(np.abs(residual).max(initial=0)))
            if meter:
                meter.add(estimate)
        loudness_lufs = meter.loudness_lufs() if meter else -np.inf
        clips = [not audio.holds_over_full_scale(path, options.subtype) for path in self._outputs]
        self._factor, self._down_db = level.factor(
            peak, loudness_lufs, clips=clips[0] if clips else True
        )
        self._residual_factor, self._residual_down_db = levels.Level.parse("raw").factor(
            residual_peak, -np.inf, clips=clips[1:] == [True]
        )
        self._silent = bool(peak * self._factor < 10 ** (levels.SILENCE_DB / 20))

    def _samples(self) -> Samples:
        """The estimate [channel, sample]."""
        factor = np.float32(self._factor)
        return np.concatenate([estimate * factor for estimate, _ in self._blocks()], axis=-1)

    def _write(self, job: Job) -> None:
        """Write the files, all of them or none."""
        mixture, factors = self._mixture, (self._factor, self._residual_factor)
        shape = mixture.sample_rate_hz, mixture.channels, self._options.subtype, mixture.samples
        with files.together(), ExitStack() as stack:
            writers = [
                stack.enter_context(audio.open_writer(path, *shape)) for path in self._outputs
            ]
            for blocks in self._blocks():
                if self.error:  # it was interrupted
                    raise self.error
                for writer, block, factor in zip(writers, blocks, factors, strict=False):
                    assert block is not None
                    writer.write(block * np.float32(factor))
            if path := job.outputs.activity:
                file = job.id or job.mixture.stem
                write_activity(path, self._presence, job.name, file, job.outputs.speaker)

    def _blocks(self) -> Iterator[tuple[Samples, Samples | None]]:
        """The estimate before its level is set and, if it is asked for, the residual."""
        channels, samples = self._mixture.channels, self._mixture.samples
        mixture = self._whole.read(channels, samples) if self._whole else None
        dry_db = self._options.dry_db
        dry = np.float32(0.0 if dry_db is None else 10 ** (dry_db / 20))
        gain, matched = np.array([self._gain, self._matched], np.float32)[:, :, None]
        start = 0
        for block in self._kept.read(channels, samples):
            voice = self._gated(block, start)
            start += block.shape[1]
            if mixture is None:
                yield voice * gain, None
            else:
                whole = next(mixture)
                yield voice * gain + dry * whole, whole - voice * matched

    def _gated(self, block: Samples, start: int) -> Samples:
        """A block that begins at sample `start`, silent where its voice is absent."""
        if not self._policy.mutes or self._presence.present is None:
            return block
        at_s = (start + np.arange(block.shape[1])) / self._mixture.sample_rate_hz
        gates = [
            np.interp(at_s, *mute_gains(one.segments, MUTE_FADE_S))
            if one.present
            else np.zeros_like(at_s)
            for one in self._presences
        ]
        return block * np.array(gates, np.float32)

    def _warnings(self) -> Iterator[str]:
        """What may be wrong with it, a line each."""
        presence, options = self._presence, self._options
        yield from self._mixture.warnings()
        if self._down_db:
            yield f"turned down by {self._down_db:.1f} dB so that it does not clip."
        if self._residual_down_db:
            yield (
                f"the residual was turned down by {self._residual_down_db:.1f} dB so that it does "
                "not clip."
            )
        as_mixed = (options.level, options.wet_db, options.dry_db) == ("match", 0.0, None)
        if self._outputs[1:] and (self._down_db or self._residual_down_db or not as_mixed):
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
        elif self._silent:
            yield "nothing of this voice was found; the result is silent."


class _Store:
    """Blocks [channel, sample] until they are needed again: in memory, or on the disk if long."""

    IN_MEMORY_BYTES = 2**24
    READ_SAMPLES = 2**18

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._file: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (see close)
            self.IN_MEMORY_BYTES, dir=str(self._folder)
        )

    def append(self, block: Samples) -> None:
        """Add a block; an OutputError says if the disk is full, or must not be written."""
        try:
            self._file.write(np.ascontiguousarray(block.T).data)
        except OSError as error:
            raise self._failure(error) from error

    def read(self, channels: int, samples: int) -> Iterator[Samples]:
        """Give all back, cut or completed to `samples`: resampling there and back may be off."""
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
