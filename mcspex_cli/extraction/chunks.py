"""Cutting a stream into equal windows and joining what a network made of them; pure.

```
window k      |context|fade|        keep        |fade|context|
window k+1                                      |fade|        keep ...
                                       context ^ discarded on both sides
joined        ...           keep of k           |k→k+1|  keep of k+1 ...
```

Near a window's edges a network lacks context, so those samples are dropped, not blended;
the cross-fade lies where both windows know their surroundings. The last window is moved
back to end with the signal instead of being padded, because padding changes the answer
(the norms are global). A signal shorter than a window is one window of its own length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mcspex_cli.audio import Samples


@dataclass(frozen=True)
class Windowing:
    """Lengths in samples; every window but the first and last adds `hop` new ones."""

    window: int
    context: int
    fade: int

    def __post_init__(self) -> None:
        """Refuse lengths that leave nothing to keep.

        Raises:
            ValueError: a negative length, or `hop` below 1.
        """
        if min(self.context, self.fade) < 0 or self.hop < 1:
            raise ValueError(f"{self} keeps nothing of a window")

    @property
    def hop(self) -> int:
        """Samples from one window's start to the next."""
        return self.window - 2 * self.context - self.fade


@dataclass(frozen=True)
class Window:
    """A stretch of the signal: `samples` [..., sample] from `start` on."""

    start: int
    samples: Samples
    last: bool


def cut(blocks: Iterable[Samples], windowing: Windowing) -> Iterator[Window]:
    """Cut a stream of blocks [..., sample] into windows, holding little more than one.

    Nothing comes of a stream without samples.
    """
    held: Samples | None = None
    held_from = start = 0
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=-1)
        end = held_from + held.shape[-1]
        # A window is only known not to be the last when there is a sample after it.
        while start + windowing.window < end:
            at = start - held_from
            yield Window(start, held[..., at : at + windowing.window], last=False)
            start += windowing.hop
        forget = max(held_from, min(start, end - windowing.window))
        held, held_from = held[..., forget - held_from :], forget
    if held is not None and held.shape[-1]:
        at = max(0, held.shape[-1] - windowing.window)
        yield Window(held_from + at, held[..., at:], last=True)


def join(pieces: Iterable[tuple[Window, Samples]], windowing: Windowing) -> Iterator[Samples]:
    """Join what was made of each window [..., sample] into blocks of one signal.

    The blocks together are as long as the signal that was cut.
    """
    ramp = (np.arange(windowing.fade, dtype=np.float32) + 0.5) / max(1, windowing.fade)
    done, tail = 0, None
    for window, made in pieces:
        fresh = made[..., done - window.start :].copy()
        if tail is not None:
            faded = slice(0, windowing.fade)
            fresh[..., faded] = tail * (1 - ramp) + fresh[..., faded] * ramp
        if window.last:
            yield fresh
            return
        keep = window.start + windowing.window - windowing.context - windowing.fade - done
        yield fresh[..., :keep]
        tail = fresh[..., keep : keep + windowing.fade]
        done += keep
