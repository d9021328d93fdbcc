"""The one road from a mixture to a target: every command and every Python user takes it.

```
reading thread         this thread                               writing thread
mixture ─▶ windows ─▶ network ─▶ estimate, joined and measured ─▶ level ─▶ estimate, residual,
                                                                           activity
```

`mixture` has what comes before the network, `estimate` what comes after it. The three threads work
at the same time, on neighbouring files too. Until a file is done its estimate is in a temporary
file, or in memory if it is short, so that memory does not grow with the recording.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint
from mcspex_cli.containers import Damaged
from mcspex_cli.errors import EngineError, McspexError
from mcspex_cli.extraction.clip import Clip, Span, read_spans
from mcspex_cli.extraction.engine import Engine, check_rate, check_samples, open_engine
from mcspex_cli.extraction.estimate import Estimate, LevelledEstimate
from mcspex_cli.extraction.job import (
    ExtractionOptions,
    Job,
    Outputs,
    Places,
    Result,
    check_presence,
    check_references,
    check_voice,
)
from mcspex_cli.extraction.mixture import Mixture, Store, open_mixture
from mcspex_cli.extraction.reference import Voice, enroll
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.streaming import LiveExtractor, Timing
from mcspex_cli.extraction.windows import Window

_logger = logging.getLogger("mcspex")

T = TypeVar("T")

READ_AHEAD = 4
"""Windows, or short mixtures, that are read before they are needed."""

WRITTEN_BEHIND = 4
"""Estimates that may wait to be written."""


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
        offline: bool = False,
    ) -> Extractor:
        """Load a model.

        Args:
            model: a folder, a bundled name, or org/name[@revision] on the Hugging Face Hub; the
                bundled default if it is None.
            device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1", ...
            precision: "auto", "float32", "bfloat16" or "float16".
            runtime: "auto" (torch), or one of `runtime.RUNTIMES`.
            offline: never ask the Hub.

        Raises:
            CheckpointError: there is no such model, or it is damaged.
            EngineError: the device, precision or runtime is not available here.
        """
        if not isinstance(model, CheckpointInfo):
            model = find_checkpoint(model, offline=offline)
        settings = EngineSettings(device, precision, runtime=runtime)
        return cls(model, open_engine(model, settings))

    def enroll(
        self,
        references: Path | str | Sequence[Path | str] = (),
        *,
        spans: Sequence[Span] = (),
        mixture: Path | None = None,
        channel: str = "mix",
        track: str | None = None,
        damaged: Damaged = "fail",
        advance: Callable[[float], object] = lambda _: None,
    ) -> Voice:
        """Embed one voice from clips, folders of clips, profiles, and spans of the mixture.

        A clip over 10 s is cut to its speech, of at most 60 s; a shorter one only loses silence at
        its ends. Only 10 min of a clip are read, from its first speech on.

        Args:
            references: files and folders, all of one person alone.
            spans: when the person speaks alone in `mixture`.
            mixture: the recording that the spans are of.
            channel: the channel of the mixture that the spans are taken from.
            track: the sound track that they are taken from, as in `ExtractionOptions`.
            damaged: what is done with a damaged mixture, as in `ExtractionOptions`.
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
            paths = [Path(path) for path in references if str(path)]
        except TypeError as error:
            raise TypeError(f"references are paths of files, not {references!r:.80}") from error
        if not all(isinstance(span, Span) for span in spans):
            raise TypeError("spans are Spans, such as Span(12.0, 18.5)")
        if spans and mixture is None:
            raise ValueError("spans need the mixture that they are of")
        ExtractionOptions(channel, track=track, damaged=damaged)  # refuses what means nothing
        clips: Iterable[Clip] = ()
        if spans:
            rate_hz = self.sample_rate_hz
            clips = read_spans(
                Path(mixture or ""), spans, rate_hz, channel, track, damaged, advance
            )
        return enroll([*paths, *clips], self.engine, self.model, advance)

    def check_voice(self, name: str, voice: Voice) -> None:
        """Refuse what is no voice of this model; `name` is what asks for it.

        Raises:
            McspexError: it is of another model, or damaged.
            TypeError: it is no voice.
        """
        embedding = np.asarray(check_voice(voice).embedding)
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
            AudioError: the samples are silent or shorter than 0.3 s.
            AbsentError: the voice is absent, and the options say that this is to fail.
            CheckpointError: the options need to know whether it is, and the model cannot tell.
            TypeError, ValueError: the samples are not [sample] or [channel, sample], not finite,
                or the rate is no rate.
        """
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        block = np.atleast_2d(check_samples("the mixture", samples, 2))
        check_rate(rate_hz)
        options = self._checked(options)
        block = audio.select(block, options.channel, "the mixture")
        kept = None if options.dry_db is None else Store(None)
        mixture = Mixture("the mixture", rate_hz, len(block), [block], kept=kept)
        work = _MixtureWork(self, options, check_voice(voice), mixture=mixture)
        with closing(work):
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
        self.check_voice("live", voice)
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
        job = Job(Path(mixture), voice, outputs)
        ((_, result),) = self.extract_files([job], options, advance)
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
        options, places = self._checked(options), Places()
        opened: deque[_MixtureWork] = deque()
        pending: deque[tuple[Job, Future[Result | McspexError]]] = deque()

        def works() -> Iterator[_MixtureWork]:
            for job in jobs:
                if not isinstance(job, Job):
                    raise TypeError(f"extract_files takes Jobs, not {job!r}")
                opened.append(_MixtureWork(self, options, job.voice, job, places))
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
                        while pending and (len(pending) > WRITTEN_BEHIND or pending[0][1].done()):
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
        self, works: Iterable[_MixtureWork], advance: Callable[[float], object]
    ) -> Generator[_MixtureWork, None, None]:
        """Read every mixture ahead and run the network on it; what is yielded is done."""
        began = time.monotonic()
        with closing(_prefetched(_windows(works), READ_AHEAD)) as windows:
            for batch in self.engine.batches(windows):
                for work, _ in batch:
                    work.attempt(work.begin)
                live = [(one, window) for one, window in batch if one.error is None]
                pairs = [(window.samples, one.embedding) for one, window in live]
                try:
                    estimates = self.engine.compute(pairs) if pairs else []
                except Exception as error:  # the network failed, and all of them with it
                    estimates = []
                    for work, _ in live:
                        work.fail(error)
                for (work, window), estimate in zip(live, estimates, strict=False):
                    advance(work.attempt(work.add, window, estimate) or 0.0)
                for work, window in batch:
                    if window.last:
                        work.elapsed_s = time.monotonic() - began
                        yield work
                        began = time.monotonic()


class _MixtureWork:
    """One mixture on its way: `read`, `begin` and `add`, `outcome`, each in a thread of its own.

    What goes wrong in one step is kept as `error`, and the steps after it are not taken.
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
        self._estimate: Estimate | None = None

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
        if self._estimate is not None:
            return
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
        self._estimate = Estimate(self._extractor.engine, self._mixture, self.embedding, folder)

    def add(self, window: Window, samples: Samples) -> float:
        """As `Estimate.add`."""
        assert self._estimate is not None
        return self._estimate.add(window, samples)

    def outcome(self) -> Result | McspexError:
        """Write what is to be written, and tell what was done."""
        with closing(self):
            return self.attempt(self.result) or cast(McspexError, self.error)

    def result(self) -> Result:
        """As `outcome`, but what went wrong is raised."""
        if self.error is not None:
            raise self.error
        mixture, estimate, job = self._mixture, self._estimate, self.job
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
        for store in (self._mixture and self._mixture.kept, self._estimate and self._estimate.kept):
            if store:
                store.close()


def _windows(
    works: Iterable[_MixtureWork],
) -> Generator[tuple[_MixtureWork, Window], None, None]:
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
