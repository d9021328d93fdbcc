"""Mixture files in, estimate files out: streamed, levelled, whole or not at all.

```
reading thread        this thread                              writing thread
mixture file ──────▶ windows, network, spool, listen ───────▶ level, estimate file
```
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.levels import LevelMatcher, check_level
from mcspex_cli.extraction.outputs import Extraction, Made, write
from mcspex_cli.extraction.presence import PresenceMeter
from mcspex_cli.extraction.signals import Piece
from mcspex_cli.extraction.sources import Order, Source, signals, unforeseen
from mcspex_cli.extraction.spool import Spool

_WRITTEN_BEHIND = 4
"""Estimates that may wait to be written."""


Result = Extraction | McspexError
"""What came of a job."""


def extract_file(
    engine: Engine,
    job: Job,
    embedding: Samples,
    settings: FileSettings | None = None,
    advance: Callable[[float], object] = lambda _: None,
) -> Extraction:
    """Extract the voice of `embedding` from a file to a file at the same rate and length.

    First to an unnamed temporary file, then to the output (see `outputs`), so that one gain holds
    for the whole file and memory does not grow with it.

    `embedding` [embedding] is `engine`'s; `advance` is called with the seconds of audio done
    since its last call.

    Raises:
        AudioError: the mixture cannot be read, is silent or shorter than 0.3 s.
        AbsentError: the voice is not in it, and the settings say that this is to fail.
        OutputError: the output cannot be written.
        EngineError: the precision gave numbers that are not finite, or memory is short.
    """
    order = Order(job, lambda: embedding)
    ((_, result),) = extract_files(engine, [order], settings, advance)
    if isinstance(result, McspexError):
        raise result
    return result


def extract_files(
    engine: Engine,
    orders: Iterable[Order],
    settings: FileSettings | None = None,
    advance: Callable[[float], object] = lambda _: None,
) -> Iterator[tuple[Job, Result]]:
    """Extract several files as `extract_file` does, with reading and writing beside computing.

    Yields:
        Each wanted job, in order, with what was done or the error it failed of.
    """
    settings = settings or FileSettings()
    began = time.monotonic()
    pending: deque[tuple[Job, Future[Result]]] = deque()
    with ThreadPoolExecutor(1) as writer:
        sources = signals(orders, engine.sample_rate_hz, settings)
        for signal, pieces in engine.stream_all(sources):
            source: Source = signal.label
            if not source.order.wanted:
                continue
            ready: Future[Result] = Future()
            try:
                made = _spool(engine, source, pieces, signal.embedding, settings, advance)
                made.elapsed_s = time.monotonic() - began
                ready = writer.submit(_write, made)
            except McspexError as error:
                ready.set_result(error)
            except Exception as error:
                ready.set_result(unforeseen(source.order.job.mixture, error))
            began = time.monotonic()
            pending.append((source.order.job, ready))
            while pending and (len(pending) > _WRITTEN_BEHIND or pending[0][1].done()):
                job, ready = pending.popleft()
                yield job, ready.result()
        for job, ready in pending:
            yield job, ready.result()


def _spool(
    engine: Engine,
    source: Source,
    pieces: Iterator[Piece],
    voice: Samples,
    settings: FileSettings,
    advance: Callable[[float], object],
) -> Made:
    """Take the estimate, at the file's rate, to a temporary file, and listen to it."""
    job = source.order.job
    first = next(pieces)  # only now is the mixture's header known
    rate_hz, channels = source.sample_rate_hz, source.channels
    match = LevelMatcher(channels)
    meter = PresenceMeter(engine.embed_part, engine.sample_rate_hz, voice, engine.calibration)

    def at_network_rate() -> Iterator[Samples]:
        """The estimates as they come."""
        for estimate, mixture in chain([first], pieces):
            match.add(estimate, mixture)
            meter.add(estimate, mixture)
            yield estimate

    with ExitStack() as undo:
        out = undo.enter_context(audio.Writer(job.output, rate_hz, channels, settings.subtype))
        spool = undo.enter_context(closing(Spool(job.output, channels)))
        back = audio.Resampler(engine.sample_rate_hz, rate_hz, channels)
        for block in back.run(at_network_rate()):
            spool.append(block)
            advance(block.shape[1] / rate_hz)
        check_level(str(job.mixture), match.mixture_mean_square())
        gain = np.ones(channels) if engine.runtime.true_level else match.gain()
        made = Made(source, out, spool, gain, meter.result(), settings)
        undo.pop_all()
    return made


def _write(made: Made) -> Result:
    """Write what was made, or say why not."""
    try:
        return write(made)
    except McspexError as error:
        return error
    except Exception as error:
        return unforeseen(made.source.order.job.mixture, error)
