"""Several processes for one batch, each with its own engine and share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as SharedEvent
from threading import Event, Thread

from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.memory import keep_memory
from mcspex_cli.extraction.shares import Share
from mcspex_cli.extraction.work import Outcome, work
from mcspex_cli.interrupts import left_to_this_process

_CONTEXT = get_context("spawn")
"""A forked torch may hang; a spawned one does not."""

_PATIENCE_S = 0.2
"""How soon processes are told to stop."""


@dataclass
class _Worker:
    """A process, its share, what it still has to answer for, and where it does."""

    process: BaseProcess
    answers: Connection
    share: Share
    left: dict[str, Job]
    """Jobs without an answer, in the order in which they are done."""
    answered: bool = False


def in_processes(parts: Sequence[Share], stopping: Event) -> Iterator[Outcome]:
    """Do each share in a process of its own, yielding outcomes as they come.

    A process that dies, killed for its memory or by a broken driver, costs the file that it
    had in hand; another takes its place. If that dies before any answer, the rest fails too.

    Raises:
        McspexError: a process cannot use the model or its device.
    """
    told = _CONTEXT.Event()
    running: dict[object, _Worker] = {}
    try:
        for part in parts:
            worker = _start(part, told)
            running[worker.answers] = worker
        while running:
            if stopping.is_set():
                told.set()
            for ready in wait([worker.answers for worker in running.values()], _PATIENCE_S):
                worker = running[ready]
                answer = _answer(worker)
                if isinstance(answer, McspexError):
                    raise answer
                if answer is not None:
                    yield answer
                    continue
                del running[ready]
                worker.process.join()
                if worker.process.exitcode:
                    yield from _lost(worker)
                    if worker.left and not stopping.is_set():
                        worker = _start(_rest(worker), told)
                        running[worker.answers] = worker
    finally:
        for worker in running.values():
            worker.process.kill()  # it does not listen to anything less
            worker.process.join()


def _start(part: Share, stopping: SharedEvent) -> _Worker:
    """Start a process on its share."""
    answers, speaker = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_serve, args=(part, speaker, stopping), daemon=True)
    with left_to_this_process(signal.SIGINT, signal.SIGTERM):  # the latter is Slurm's
        process.start()
    speaker.close()  # so that its end in the process is the last, and its death an end of file
    wanted = [job for unit in part.units for job in unit if job.id not in part.done]
    return _Worker(process, answers, part, {job.id: job for job in wanted})


def _answer(worker: _Worker) -> Outcome | McspexError | None:
    """What a process says: an outcome, why it cannot work, or None at its end."""
    try:
        answer: Outcome | McspexError | None = worker.answers.recv()
    except (EOFError, OSError):
        return None
    if isinstance(answer, Outcome):
        worker.left.pop(answer.job.id, None)
        worker.answered = True
    return answer


def _lost(worker: _Worker) -> Iterator[Outcome]:
    """What a dead process costs: the job in hand, or all that was left if it never answered."""
    code = worker.process.exitcode or 0
    cause = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
    lost = list(worker.left.values())[: 1 if worker.answered else None]
    for job in lost:
        del worker.left[job.id]
        reason = (
            f"{job.mixture}: its process {cause}. Run again, with fewer --jobs if memory is short."
        )
        yield Outcome(job, None, reason)


def _rest(worker: _Worker) -> Share:
    """What a dead process leaves to another."""
    units = tuple(u for u in worker.share.units if any(job.id in worker.left for job in u))
    gone = {job.id for unit in units for job in unit} - worker.left.keys()
    return replace(worker.share, units=units, done=worker.share.done | gone)


def _serve(part: Share, speaker: Connection, stopping: SharedEvent) -> None:
    """Do a share in this process; it does not outlive the one that started it."""
    Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
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
