"""Signals to a group of processes, as a terminal's Ctrl-C is, answered by one of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


@contextmanager
def left_to_this_process(*numbers: signal.Signals) -> Iterator[None]:
    """Have processes that are started in this block leave these signals to this one.

    A signal that comes meanwhile is answered after the block; on Windows it is lost.
    """
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    numbers = numbers if current_thread() is main_thread() else ()
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
