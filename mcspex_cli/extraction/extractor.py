"""The one road from a mixture to a target: every command and every Python user takes it.

```
reading thread              this thread                              writing thread
mixture ─▶ 20 Hz ─▶ windows ─▶ network ─▶ join ─┬─▶ match, presence ─▶ level ─▶ estimate, residual,
                                                └─▶ temporary file ──────┘      activity
```

The three work at the same time, on neighbouring files too. One gain holds for a whole file, and it
is only known when the file is done: until then the estimate is in a temporary file, or in memory
if it is short, so that memory does not grow with the recording.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint
from mcspex_cli.containers import Damaged
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.engine import Engine, check_array, open_engine
from mcspex_cli.extraction.job import ExtractionOptions, Job, Outputs, Places, Result
from mcspex_cli.extraction.reference import Span, Voice, enroll
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.streaming import LiveExtractor, Timing
from mcspex_cli.extraction.task import Sound, Task, check_voice, open_mixture
from mcspex_cli.extraction.windows import Window

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
    ) -> Voice:
        """Embed one voice from clips, folders of clips, profiles, and spans of the mixture.

        Args:
            references: files and folders, all of one person alone.
            spans: when the person speaks alone in `mixture`.
            mixture: the recording that the spans are of.
            channel: the channel of the mixture that the spans are taken from.
            track: the sound track that they are taken from, as in `ExtractionOptions`.
            damaged: what is done with a damaged mixture, as in `ExtractionOptions`.

        Raises:
            AudioError: a clip or span cannot be used, or there is none.
            CheckpointError: a profile cannot be used, or is for other models.
        """
        if isinstance(references, str | os.PathLike):
            references = [references]
        if spans and mixture is None:
            raise ValueError("spans need the mixture that they are of")
        return enroll(
            [Path(path) for path in references],
            self.engine,
            self.model,
            spans=spans,
            mixture=None if mixture is None else Path(mixture),
            channel=channel,
            track=track,
            damaged=damaged,
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
            TypeError, ValueError: the samples are not [sample] or [channel, sample], not finite,
                or the rate is no rate.
        """
        check_array("the mixture", samples, 2)
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        if rate_hz < 1:
            raise ValueError(f"a sample rate of {rate_hz} Hz is none; give 1000 or more")
        options = options or ExtractionOptions()
        block = np.atleast_2d(samples).astype(np.float32)
        block = audio.select(block, options.channel, "the mixture")
        sound = Sound(rate_hz, block.shape[1] / rate_hz, len(block), iter([block]))
        task = Task(self, "the mixture", voice, options, lambda: sound)
        for _ in self._computed([task], lambda _: None):
            pass
        result = task.finish()
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
            McspexError: the voice is not of this model.
            ValueError: the latency, rate or policy is none.
        """
        check_voice("live", voice.embedding, self.model.config.embedding)
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        return LiveExtractor(
            self.engine, voice, Timing.for_latency(latency_s, rate_hz), rate_hz, absent
        )

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
        options = options or ExtractionOptions()
        places = Places()
        opened: deque[Task] = deque()
        pending: deque[tuple[Job, Future[Result | McspexError]]] = deque()

        def tasks() -> Iterator[Task]:
            for job in jobs:
                opener = partial(open_mixture, job, options, places)
                opened.append(Task(self, str(job.mixture), job.voice, options, opener, job))
                yield opened[-1]

        try:
            with (
                ThreadPoolExecutor(1, "mcspex-write") as writer,
                closing(self._computed(tasks(), advance)) as computed,
            ):
                try:
                    for task in computed:
                        assert task.job is not None
                        pending.append((task.job, writer.submit(task.outcome)))
                        while pending and (len(pending) > WRITTEN_BEHIND or pending[0][1].done()):
                            job, ready = pending.popleft()
                            yield job, ready.result()
                            opened.popleft()
                    for job, ready in pending:
                        yield job, ready.result()
                except BaseException:  # Ctrl-C, say: what is half written shall not be finished
                    for task in tuple(opened):
                        task.error = task.error or McspexError(f"{task.name}: was interrupted.")
                    raise
        finally:
            for task in tuple(opened):  # where whoever asked wants no more
                task.close()

    def _computed(
        self, tasks: Iterable[Task], advance: Callable[[float], object]
    ) -> Generator[Task, None, None]:
        """Read every task's mixture ahead and run the network on it; what is yielded is done."""
        began = time.monotonic()
        with closing(_prefetched(_windows(tasks), READ_AHEAD)) as windows:
            for batch in self.engine.batches(windows):
                for task, _ in batch:
                    task.attempt(task.begin)
                live = [(task, window) for task, window in batch if task.error is None]
                pairs = [(window.samples, cast(Samples, task.embedding)) for task, window in live]
                try:
                    estimates = self.engine.compute(pairs) if pairs else []
                    for (task, window), estimate in zip(live, estimates, strict=True):
                        task.attempt(task.add, window, estimate, advance)
                except McspexError as error:  # the network failed, and all of them with it
                    for task, _ in live:
                        task.error = error
                for task, window in batch:
                    if window.last:
                        task.attempt(task.end)
                        task.elapsed_s = time.monotonic() - began
                        yield task
                        began = time.monotonic()


def _windows(tasks: Iterable[Task]) -> Generator[tuple[Task, Window], None, None]:
    """The windows of every task; the last one of a task that failed has no samples."""
    nothing = Window(0, np.zeros((1, 0), np.float32), last=True)
    for task in tasks:
        windows, window = task.windows(), None
        while window is None or not window.last:
            window = task.attempt(next, windows, nothing) or nothing
            yield task, window


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
