"""The one road from a mixture to a target: every command and every Python user takes it.

```
reading thread         this thread                               writing thread
mixture ─▶ windows ─▶ network ─▶ estimate, joined and measured ─▶ level ─▶ estimate, residual,
                                                                           activity
```

`mixture` has what is done with each of them. The three threads work at the same time, on
neighbouring files too. Until a file is done its estimate is in a temporary file, or in memory if it
is short, so that memory does not grow with the recording.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint
from mcspex_cli.containers import Damaged
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.clip import Clip, Span, read_spans
from mcspex_cli.extraction.engine import Engine, check_rate, check_samples, open_engine
from mcspex_cli.extraction.job import (
    ExtractionOptions,
    Job,
    Outputs,
    Places,
    Result,
    check_presence,
    check_voice,
)
from mcspex_cli.extraction.mixture import Mixture, MixtureExtraction, Store
from mcspex_cli.extraction.reference import Voice, enroll
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.windows import Window

if TYPE_CHECKING:
    from mcspex_cli.extraction.streaming import LiveExtractor

T = TypeVar("T")

AHEAD = 4
"""Windows that are read before they are needed, and estimates that may wait to be written: so
many, or as many as the engine computes at once."""


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
        references: Path | str | Sequence[Path | str | audio.Reader] = (),
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
            references: files, folders and open files, all of one person alone.
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
            paths = [
                one if isinstance(one, audio.Reader) else Path(one)
                for one in references
                if str(one)
            ]
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
        work = MixtureExtraction(self, options, check_voice(voice), mixture=mixture)
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
        from mcspex_cli.extraction.streaming import LiveExtractor, Timing

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
        options, places, ahead = self._checked(options), Places(), max(AHEAD, self.engine.batch)
        opened: deque[MixtureExtraction] = deque()
        pending: deque[tuple[Job, Future[Result | McspexError]]] = deque()

        def works() -> Iterator[MixtureExtraction]:
            for job in jobs:
                if not isinstance(job, Job):
                    raise TypeError(f"extract_files takes Jobs, not {job!r}")
                opened.append(MixtureExtraction(self, options, job.voice, job, places))
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
        self, works: Iterable[MixtureExtraction], advance: Callable[[float], object]
    ) -> Generator[MixtureExtraction, None, None]:
        """Read every mixture ahead and run the network on it; what is yielded is done."""
        began = time.monotonic()
        ahead = max(AHEAD, self.engine.batch)
        with closing(_prefetched(_windows(works), ahead)) as windows:
            for batch in self.engine.batches(windows):
                for work, window in batch:
                    if window.start == 0:
                        work.attempt(work.begin)
                live = [(one, window) for one, window in batch if one.error is None]
                pairs = [(window.samples, one.embedding) for one, window in live]
                try:
                    estimates = self.engine.compute(pairs) if pairs else []
                except Exception as error:  # the network failed, and all of them with it
                    estimates = []
                    for work, _ in live:
                        work.fail(error)
                for (work, window), samples in zip(live, estimates, strict=False):
                    assert work.estimate is not None
                    advance(work.attempt(work.estimate.add, window, samples) or 0.0)
                for work, window in batch:
                    if window.last:
                        work.elapsed_s = time.monotonic() - began
                        yield work
                        began = time.monotonic()


def _windows(
    works: Iterable[MixtureExtraction],
) -> Generator[tuple[MixtureExtraction, Window], None, None]:
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
