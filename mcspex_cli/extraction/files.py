"""Mixture files in, estimate files out: streamed, levelled, whole or not at all.

```
reading thread        this thread                              writing thread
mixture file ──────▶ windows, network, spool, measure ──────▶ level, estimate file
```
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.checks import check_level
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.levels import Loudness
from mcspex_cli.extraction.signals import Piece
from mcspex_cli.extraction.sources import Order, Source, signals, unforeseen
from mcspex_cli.extraction.spool import Spool

_WRITTEN_BEHIND = 4
"""Estimates that may wait to be written."""


@dataclass(frozen=True)
class Extraction:
    """What was done for one mixture."""

    mixture: Path
    output: Path
    seconds: float
    sample_rate_hz: int
    elapsed_s: float
    gain_db: tuple[float, ...]
    """What the network's output was multiplied by, for each channel."""
    limited: bool
    """Whether the level asked for would have clipped, so that all was turned down."""
    silent: bool
    """Whether the estimate is silent."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.elapsed_s / self.seconds


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

    Two passes, so that one gain holds for the whole file and memory does not grow with it:
    first to an unnamed temporary file while levels are measured, then to the output.

    `embedding` [embedding] is `engine`'s; `advance` is called with the seconds of audio done
    since its last call.

    Raises:
        AudioError: the mixture cannot be read, is silent or shorter than 0.3 s.
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
                spooled = _spool(engine, source, pieces, settings, advance)
                elapsed_s = time.monotonic() - began
                ready = writer.submit(_write, spooled, settings, elapsed_s)
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


@dataclass
class _Spooled:
    """An estimate at the network's level, and what was measured on the way."""

    source: Source
    out: audio.Writer
    spool: Spool
    loudness: Loudness


def _spool(
    engine: Engine,
    source: Source,
    pieces: Iterator[Piece],
    settings: FileSettings,
    advance: Callable[[float], object],
) -> _Spooled:
    """Take the estimate, at the file's rate, to a temporary file."""
    job = source.order.job
    first = next(pieces)  # only now is the mixture's header known
    loudness = Loudness(source.channels, engine.runtime.true_level)

    def at_network_rate() -> Iterator[Samples]:
        """The estimates as they come."""
        for estimate, mixture in chain([first], pieces):
            loudness.add(estimate, mixture)
            yield estimate

    rate_hz, channels = source.sample_rate_hz, source.channels
    with ExitStack() as undo:
        out = undo.enter_context(audio.Writer(job.output, rate_hz, channels, settings.subtype))
        spool = undo.enter_context(closing(Spool(job.output, channels)))
        back = audio.Resampler(engine.sample_rate_hz, rate_hz, channels)
        for block in back.run(at_network_rate()):
            loudness.add_peak(block)
            spool.append(block)
            advance(block.shape[1] / rate_hz)
        check_level(str(job.mixture), loudness.mixture_mean_square())
        undo.pop_all()
    return _Spooled(source, out, spool, loudness)


def _write(made: _Spooled, settings: FileSettings, elapsed_s: float) -> Result:
    """Write an estimate at its level."""
    source, loudness, job = made.source, made.loudness, made.source.order.job
    is_float = settings.subtype == "FLOAT" and job.output.suffix.lower() == ".wav"
    loudness.decide(settings.level, clips=not is_float)
    factors = loudness.gain.astype(np.float32)[:, None]
    rate_hz = source.sample_rate_hz
    try:
        with closing(made.spool) as spool, made.out as out:
            for block in spool.exactly(source.frames):
                out.write(block * factors)
    except McspexError as error:
        return error
    except Exception as error:
        return unforeseen(job.mixture, error)
    return Extraction(
        mixture=job.mixture,
        output=job.output,
        seconds=source.frames / rate_hz,
        sample_rate_hz=rate_hz,
        elapsed_s=elapsed_s,
        gain_db=loudness.gain_db(),
        limited=loudness.limited,
        silent=loudness.is_silent(),
    )
