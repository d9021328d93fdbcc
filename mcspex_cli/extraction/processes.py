"""Processes of ours: how they start, how they end with this one, and what their end means."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread

CONTEXT = get_context("spawn")
"""A forked torch may hang; a spawned one does not."""


def start(process: BaseProcess) -> None:
    """Start a process that leaves Ctrl-C, and Slurm's SIGTERM, to this one."""
    numbers = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        process.start()
    finally:
        for number, handler in zip(numbers, before, strict=True):
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
