"""Mixture files as signals for the engine, read ahead of their need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.ahead import ahead
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.levels import check_length
from mcspex_cli.extraction.signals import Signal

_READ_AHEAD = 4
"""Blocks, or short mixtures, read before they are needed."""


@dataclass(frozen=True)
class Order:
    """A job, the voice wanted, and with whom it shares batches."""

    job: Job
    voice: Callable[[], Samples]
    """Gives the embedding [embedding], or raises a `McspexError`."""
    unit: int | None = None
    """Jobs next to each other share batches if their units are equal."""
    wanted: bool = True
    """False for a job whose output is there: it only keeps its unit's batches what they were."""


class Source:
    """A mixture as blocks [channel, sample] at the engine's rate, checked while it is read."""

    def __init__(self, order: Order, sample_rate_hz: int, settings: FileSettings) -> None:
        self.order, self._settings = order, settings
        self._reader = audio.Reader(order.job.mixture, sample_rate_hz, settings.channel)
        self.channels = self.sample_rate_hz = 0

    @property
    def frames(self) -> int:
        """Samples per channel, once all are read."""
        return self._reader.frames

    def again(self) -> audio.Reader:
        """The mixture once more, as it is in the file, the channels that were asked for."""
        path, channel = self.order.job.mixture, self._settings.channel
        return audio.Reader(path, self.sample_rate_hz, channel)

    def __iter__(self) -> Iterator[Samples]:
        """Probe the file, then read it."""
        info = audio.probe(self.order.job.mixture)
        check_length(str(info.path), info.seconds)
        for output in (self.order.job.output, self.order.job.residual):
            if output:
                audio.check_format(output, self._settings.subtype, info.sample_rate_hz)
        self.channels = info.channels if self._settings.channel == "all" else 1
        self.sample_rate_hz = info.sample_rate_hz
        yield from self._reader


def signals(
    orders: Iterable[Order], sample_rate_hz: int, settings: FileSettings
) -> Iterator[Signal]:
    """Each order as a signal, its mixture read ahead by another thread."""
    sources = (Source(order, sample_rate_hz, settings) for order in orders)
    with closing(ahead(_read_all(sources), _READ_AHEAD)) as reading:
        for source, items in groupby(reading, key=lambda item: item[0]):
            blocks = _unless_broken(block for _, block in items)
            try:
                embedding = source.order.voice()
            except McspexError as error:
                blocks, embedding = _unless_broken(iter([error])), np.zeros(0, np.float32)
            yield Signal(blocks, embedding, label=source, unit=source.order.unit)


def _read_all(sources: Iterable[Source]) -> Iterator[tuple[Source, Samples | McspexError]]:
    """The blocks of every source, each ending with the error that it failed of."""
    for source in sources:
        try:
            for block in source:
                yield source, block
        except McspexError as error:
            yield source, error
        except Exception as error:
            yield source, unforeseen(source.order.job.mixture, error)


def _unless_broken(blocks: Iterator[Samples | McspexError]) -> Iterator[Samples]:
    """Blocks, up to an error, which is raised."""
    for block in blocks:
        if isinstance(block, McspexError):
            raise block
        yield block


def unforeseen(path: Path, error: Exception) -> McspexError:
    """Make a failure of one file of a bug, which must not end the work on the others."""
    name = type(error).__name__
    return McspexError(f"{path}: unforeseen {name} ({error}). Please report this.")
