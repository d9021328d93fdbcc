"""Several signals as batches of equally long windows, and back to one by one; pure.

```
signal 1   |--- window ---|--- window ---|           batch: 1 1 2 2
signal 2   |--- window ---|--- window ---|--- window ---|      2
```
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.chunks import Window, Windowing, cut, join

Piece = tuple[Samples, Samples]
"""An estimate [channel, sample] and the mixture's samples that it belongs to."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A stream of blocks [channel, sample] and the voice [embedding] wanted from it."""

    blocks: Iterable[Samples]
    embedding: Samples
    label: Any = None
    """The caller's own."""
    unit: Hashable = None
    """Neighbours are batched together if their units are equal."""


@dataclass(frozen=True)
class Cut:
    """A signal's window, or what went wrong with the signal; then what was made of it."""

    signal: Signal
    window: Window
    error: McspexError | None = None
    made: Samples | None = None
    """The estimate above the mixture, [2 * channel, sample]."""


def cut_all(signals: Iterable[Signal], windowing: Windowing) -> Iterator[Cut]:
    """Cut each signal into windows; one that cannot be read ends with the reason."""
    for signal in signals:
        try:
            for window in cut(signal.blocks, windowing):
                yield Cut(signal, window)
        except McspexError as error:
            yield Cut(signal, Window(0, np.zeros((1, 0), np.float32), last=True), error)


def batches(cuts: Iterable[Cut], size: Callable[[], int]) -> Iterator[list[Cut]]:
    """Put neighbours of one unit and length together, `size()` channels or just over it."""
    for _, alike in groupby(cuts, key=_kind):
        batch: list[Cut] = []
        for one in alike:
            batch.append(one)
            if sum(len(cut.window.samples) for cut in batch) >= size():
                yield batch
                batch = []
        if batch:
            yield batch


def joined(cuts: Iterable[Cut], windowing: Windowing) -> Iterator[Piece]:
    """Join what was made of one signal's windows.

    Raises:
        McspexError: what went wrong with the signal, after what came before it.
    """
    for both in join(_windows(cuts), windowing):
        estimate, mixture = np.split(both, 2)
        yield estimate, mixture


def _kind(one: Cut) -> Hashable:
    """What neighbours must share to be one batch."""
    return one.error is None, one.signal.unit, one.window.samples.shape[-1]


def _windows(cuts: Iterable[Cut]) -> Iterator[tuple[Window, Samples]]:
    """Windows and what was made of them, up to what went wrong."""
    for one in cuts:
        if one.error:
            raise one.error
        if one.made is not None:
            yield one.window, one.made
