"""Several processes for one batch, each with its own engine and share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as SharedEvent
from threading import Event

from mcspex_cli.errors import McspexError
from mcspex_cli.extraction import processes
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.runtime import keep_memory
from mcspex_cli.extraction.shares import Share
from mcspex_cli.extraction.work import Outcome, work

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
    told = processes.CONTEXT.Event()
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
            processes.end(worker.process)


def _start(part: Share, stopping: SharedEvent) -> _Worker:
    """Start a process on its share."""
    answers, speaker = processes.CONTEXT.Pipe(duplex=False)
    process = processes.CONTEXT.Process(target=_serve, args=(part, speaker, stopping), daemon=True)
    processes.start(process)
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
    cause = processes.ending(worker.process)
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
    processes.end_with_parent()
    keep_memory()
    try:
        for outcome in work(part, stopping.is_set):
            speaker.send(outcome)
        speaker.send(None)
    except McspexError as error:
        speaker.send(error)
