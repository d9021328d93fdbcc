"""Processes of ours: how they start, how they end with this one, and what their end means."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread

CONTEXT = get_context("spawn")
"""A forked torch may hang; a spawned one does not."""


def start(process: BaseProcess) -> None:
    """Start a process that leaves Ctrl-C, and Slurm's SIGTERM, to this one."""
    with left_to_this_process(signal.SIGINT, signal.SIGTERM):
        process.start()


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


def end_with_parent() -> None:
    """Have this process end at once when the one that started it does."""
    Thread(target=_wait_for_parent, daemon=True).start()


def end(process: BaseProcess) -> None:
    """End a process now: one started by `start` does not listen to anything less."""
    process.kill()
    process.join()


def ending(process: BaseProcess) -> str:
    """How a process ended, in words that go on from "its process"."""
    code = process.exitcode or 0
    return f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"


def _wait_for_parent() -> None:
    """Wait for the parent's end, then end."""
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
