"""Several processes for one batch, each with its own engine and share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as SharedEvent
from threading import Event, Thread

from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.shares import Share
from mcspex_cli.extraction.work import Outcome, work

_CONTEXT = get_context("spawn")
"""A forked torch may hang; a spawned one does not."""

_PATIENCE_S = 0.2
"""How soon processes are told to stop."""


@dataclass
class _Worker:
    """A process, what it still has to answer for, and where it does."""

    process: BaseProcess
    answers: Connection
    left: dict[str, Outcome]
    """The outcomes that stand if it dies."""


def in_processes(parts: Sequence[Share], stopping: Event) -> Iterator[Outcome]:
    """Do each share in a process of its own, yielding outcomes as they come.

    A process that dies, killed for its memory or by a broken driver, costs what it has not
    done yet; the others go on.

    Raises:
        McspexError: a process cannot use the model or its device.
    """
    workers: list[_Worker] = []
    told = _CONTEXT.Event()
    try:
        with _ignoring_interrupts():
            workers += [_start(part, told) for part in parts]
        running: dict[object, _Worker] = {worker.answers: worker for worker in workers}
        while running:
            if stopping.is_set():
                told.set()
            for ready in wait([worker.answers for worker in running.values()], _PATIENCE_S):
                worker = running[ready]
                try:
                    answer = worker.answers.recv()
                except EOFError:
                    answer = None
                    worker.process.join()
                    if worker.process.exitcode:
                        yield from _died(worker)
                if isinstance(answer, McspexError):
                    raise answer
                if answer is None:
                    del running[worker.answers]
                else:
                    worker.left.pop(answer.job.id, None)
                    yield answer
    finally:
        for worker in workers:
            worker.process.kill()  # it does not listen to anything less
            worker.process.join()


def _start(part: Share, stopping: SharedEvent) -> _Worker:
    """Start a process on its share."""
    answers, speaker = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_serve, args=(part, speaker, stopping), daemon=True)
    process.start()
    speaker.close()  # so that its end in the process is the last, and its death an end of file
    wanted = [job for unit in part.units for job in unit if job.id not in part.done]
    return _Worker(process, answers, {job.id: Outcome(job, None) for job in wanted})


def _serve(part: Share, speaker: Connection, stopping: SharedEvent) -> None:
    """Do a share in this process; it does not outlive the one that started it."""
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        for outcome in work(part, stopping.is_set):
            speaker.send(outcome)
        speaker.send(None)
    except McspexError as error:
        speaker.send(error)


def _end_with_parent() -> None:
    """Wait for the parent's end, then end at once."""
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _died(worker: _Worker) -> Iterator[Outcome]:
    """What a dead process leaves: the job in hand, or one near it, was too much for it."""
    code = worker.process.exitcode or 0
    cause = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
    for outcome in worker.left.values():
        path = outcome.job.mixture
        reason = f"{path}: its process {cause}. Run again, with fewer --jobs if memory is short."
        yield Outcome(outcome.job, None, reason)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Have processes that are started here leave Ctrl-C, and Slurm's SIGTERM, to this one."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
