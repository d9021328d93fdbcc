"""Ctrl-C while something long is at work."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ending_gently(stop: Callable[[], object]) -> Iterator[None]:
    """Have the first Ctrl-C (or SIGTERM) call `stop`, and a second one end all at once."""

    def handle(number: int, _: object) -> None:
        """Ask for the end, and give the signal its old meaning back."""
        stop()
        signal.signal(number, before[number])

    before = {int(n): signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
