"""A recording of any length as windows of equal length, and back to one signal.

```
window k      |context|fade |      keep      |fade |context|
window k+1                           |context|fade |      keep      |fade |context|
joined                  ... |   keep of k    |k→k+1|  keep of k+1   | ...
```

A network lacks context near the edges of a window, so the estimate is not used there. The
cross-fade lies where both windows have context on both sides. The last window is moved back so that
it ends with the signal. It is never padded: padding changes the statistics of the networks' global
norms, and with them the estimate. A signal shorter than a window is one window of its own length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mcspex_cli.audio import Samples


@dataclass(frozen=True)
class Windowing:
    """Lengths in samples; every window but the first and the last adds `hop` new samples."""

    window: int
    context: int
    fade: int

    def __post_init__(self) -> None:
        if min(self.context, self.fade) < 0 or self.hop < 1:
            raise ValueError(f"{self} keeps nothing of a window")

    @property
    def hop(self) -> int:
        """Samples from the start of one window to the start of the next."""
        return self.window - 2 * self.context - self.fade


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a signal: `samples` [channel, sample], the first of which is number `start`."""

    start: int
    samples: Samples
    last: bool


def cut(blocks: Iterable[Samples], windowing: Windowing) -> Iterator[Window]:
    """Cut a stream of blocks [channel, sample] into windows, holding little more than one.

    A stream without samples gives no window.
    """
    held: Samples | None = None
    held_from = start = 0
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=-1)
        end = held_from + held.shape[-1]
        # A window is the last one unless a sample follows it.
        while start + windowing.window < end:
            at = start - held_from
            yield Window(start, held[..., at : at + windowing.window], last=False)
            start += windowing.hop
        forget = max(held_from, min(start, end - windowing.window))
        held, held_from = held[..., forget - held_from :], forget
    if held is not None and held.shape[-1]:
        at = max(0, held.shape[-1] - windowing.window)
        yield Window(held_from + at, held[..., at:], last=True)


class Joiner:
    """Puts the estimates of one signal's windows together again, in order.

    All blocks together are exactly as long as the signal that was cut. At both ends of a
    window, `context` samples are dropped; in the `fade` samples next to them, two windows are
    cross-faded.
    """

    def __init__(self, context: int, fade: int) -> None:
        self._context, self._fade = context, fade
        self._ramp = (np.arange(fade, dtype=np.float32) + 0.5) / max(1, fade)
        self.done = 0
        """How many samples have been given, until the last window."""
        self._tail: Samples | None = None

    def add(self, window: Window, estimate: Samples) -> tuple[Samples, Samples]:
        """Take the estimate [channel, sample] of the next window.

        Returns:
            The samples of the estimate that are final now, and the same samples of the mixture.
        """
        begin = self.done - window.start
        fresh, mixture = estimate[..., begin:].copy(), window.samples[..., begin:]
        if self._tail is not None:
            faded = slice(0, self._fade)
            fresh[..., faded] = self._tail * (1 - self._ramp) + fresh[..., faded] * self._ramp
        if window.last:
            return fresh, mixture
        keep = fresh.shape[-1] - self._context - self._fade
        self._tail = fresh[..., keep : keep + self._fade]
        self.done += keep
        return fresh[..., :keep], mixture[..., :keep]
