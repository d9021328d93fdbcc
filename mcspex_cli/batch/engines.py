"""Engines: who hands the units of a work list to workers, and where those are.

An engine is any function like `run_locally`. Whatever it does, what is done is in the journal, so
that a batch can begin with one engine and go on with another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mcspex_cli.batch.journal import Journal, Writer
from mcspex_cli.batch.run import BatchSettings, Outcome, Unit, Worker, WorkList
from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.runtime import keep_memory

HANDED_OUT_S = 30.0
"""Seconds of audio that a process is given at once: reading and writing go on meanwhile."""

_HANDED_OUT = 16
"""Units that a process is given at once, at most."""

_PATIENCE_S = 0.2
_DEATHS = 10
"""Deaths in a row, without one file done, after which no other process is started."""


def run_locally(work: WorkList, stopping: Event) -> Iterator[Outcome]:
    """Do a work list on this machine, in this process or in several.

    A process that dies, killed for its memory or by a broken driver, costs the file that it had
    in hand; another takes its place.

    Yields:
        What came of each task, each in the journal by then.

    Raises:
        DiskFullError: nothing more can be written.
        McspexError: the model or a device cannot be used, or processes die again and again.
    """
    began, settings = time.time(), work.settings
    audio_s, counts = 0.0, [0, 0]
    processes = min(work.processes(), len(work.units))
    if processes > 1:
        run = _in_processes(work, processes, stopping)
    elif processes:
        keep_memory()
        worker = Worker(work.plan.folder, settings, settings.devices[0], work.threads())
        run = worker.extract(work.units, work.done, stopping.is_set)
    else:
        return
    with closing(run) as outcomes:
        try:
            for outcome in outcomes:
                counts[outcome.row is None] += 1
                audio_s += outcome.row["seconds"] if outcome.row else 0.0
                yield outcome
                if outcome.row is None and settings.fail_fast:
                    return
        finally:
            if any(counts):
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
                line = {"began": at, "wall_s": round(time.time() - began, 3)}
                line |= {"audio_s": round(audio_s, 3), "done": counts[0], "failed": counts[1]}
                Writer(work.plan.folder).add_run(line)


def _in_processes(work: WorkList, count: int, stopping: Event) -> Generator[Outcome, None, None]:
    """Do a work list in several processes, the longest units first.

    Each process is a pool of one, so that its death spares the others.
    """
    context = multiprocessing.get_context("spawn")
    devices = [work.settings.devices[i % len(work.settings.devices)] for i in range(count)]
    waiting = deque(_parcels(work.units, count))
    writer, deaths = Writer(work.plan.folder), 0
    with _left_to_this_process("SIGHUP"):
        resource_tracker.ensure_running()  # it dies of a terminal's end, and then knows nothing
    stop = context.Event()

    def start(device: str) -> ProcessPoolExecutor:
        arguments = (work.plan.folder, work.settings, device, work.threads(), stop)
        return ProcessPoolExecutor(1, context, _begin, arguments)

    pools = [start(device) for device in devices]
    running: dict[Future[list[Outcome]], tuple[int, list[Unit]]] = {}
    idle = list(range(count))[::-1]
    ours: set[multiprocessing.process.BaseProcess] = set()
    others = set(multiprocessing.active_children())
    try:
        while running or (waiting and not stopping.is_set()):
            while idle and waiting and not stopping.is_set():
                number, parcel = idle.pop(), waiting.popleft()
                done = {task.id for unit in parcel for task in unit} & work.done
                with _left_to_this_process("SIGINT", "SIGTERM", "SIGHUP"):
                    running[pools[number].submit(_work, parcel, done)] = (number, parcel)
                ours |= {*multiprocessing.active_children()} - others
            ready, _ = wait(running, _PATIENCE_S, FIRST_COMPLETED)
            if stopping.is_set():
                stop.set()
            for future in ready:
                number, parcel = running.pop(future)
                idle.append(number)
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    pools[number].shutdown(wait=False)
                    pools[number] = start(devices[number])
                    outcomes, rest = _after_death(work, parcel, writer)
                    waiting.extendleft([rest] if rest else [])
                    deaths = 0 if any(outcome.row for outcome in outcomes) else deaths + 1
                    if deaths >= _DEATHS:
                        raise EngineError(
                            f"{deaths} processes in a row died before they finished a file. "
                            "If memory is short, use fewer --jobs."
                        ) from None
                else:
                    deaths = 0
                yield from outcomes
    finally:
        for process in ours if running else ():
            process.kill()
            process.join()
        for pool in pools:
            pool.shutdown(wait=not running, cancel_futures=True)


def _parcels(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Units as they are handed out to `count` processes: the longest first, short ones together."""
    lengths = [sum(task.seconds or 0.0 for task in unit) for unit in units]
    most_s = min(HANDED_OUT_S, sum(lengths) / (4 * count))
    parcels: list[list[Unit]] = []
    seconds = 0.0
    for index in sorted(range(len(units)), key=lambda index: (-lengths[index], index)):
        if not parcels or seconds + lengths[index] > most_s or len(parcels[-1]) >= _HANDED_OUT:
            parcels.append([])
            seconds = 0.0
        parcels[-1].append(units[index])
        seconds += lengths[index]
    return parcels


def _after_death(
    work: WorkList, parcel: list[Unit], writer: Writer
) -> tuple[list[Outcome], list[Unit]]:
    """What a dead process did of a parcel and what it costs, and what is left for another."""
    journal, key = Journal(work.plan.folder), work.settings.key()
    outcomes, rest, blamed = [], list[Unit](), False
    for unit in parcel:
        left = []
        for task in unit:
            if task.id in work.done:
                continue
            if journal.is_done(task, key):
                outcomes.append(Outcome(task, journal.done[task.id].row))
            elif not blamed:
                blamed = True
                reason = (
                    f"{task.mixture}: the process that worked on it was killed. Run the command "
                    "again, with fewer --jobs if memory is short."
                )
                writer.add_failed(task, reason)
                outcomes.append(Outcome(task, None, reason))
            else:
                left.append(task)
        work.done.update(task.id for task in unit if task not in left)
        if left:
            rest.append(unit)
    return outcomes, rest


_worker: list[Callable[[], Worker]] = []
_stop: list[Callable[[], bool]] = []


def _begin(folder: Path, settings: BatchSettings, device: str, threads: int, stop: Any) -> None:
    """Prepare this process, which does not outlive the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    loaded: list[Worker] = []

    def worker() -> Worker:
        if not loaded:  # only now, so that what goes wrong is told to whoever asked
            loaded.append(Worker(folder, settings, device, threads))
        return loaded[0]

    _worker.append(worker)
    _stop.append(stop.is_set)


def _work(parcel: list[Unit], done: set[str]) -> list[Outcome]:
    """Extract a parcel in this process."""
    return list(_worker[0]().extract(parcel, done, _stop[0]))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


@contextmanager
def _left_to_this_process(*names: str) -> Iterator[None]:
    """Have processes that start in this block leave signals, such as Ctrl-C, to this one."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if not hasattr(signal, "pthread_sigmask"):  # on Windows a worker is ended by its pipe
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
