"""Units dealt out to members, which may die: the processes of this machine, or Ray's actors.

```
WorkList ──▶ parcels, the longest first ──▶ members as they become free ──▶ files, journal
                         ▲                              │
                         └── what a dead one had left ◀─┘
```
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

import numpy as np

from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal, JournalWriter
from mcspex_cli.batch.run import (
    WINDOW_S,
    BatchSettings,
    Outcome,
    Unit,
    Worker,
    WorkList,
    on_gpu,
    seconds,
)
from mcspex_cli.errors import EngineError, McspexError
from mcspex_cli.extraction.runtime import cores, keep_memory

CORES_EACH, MEMORY_EACH = 2, 1.5e9
"""For each process: with one core it takes 2.5 times as long; torch, a model and its windows."""

WORTH_A_PROCESS_S = 60.0
"""Seconds of audio for which another process is worth its start."""

HANDED_OUT_S, HANDED_OUT = 30.0, 16
"""Seconds of audio, and units, that a member is given at once, at most."""

DEATHS = 3
"""Members that may die of a file before it counts as failed."""

_DEATHS_IN_A_ROW = 10
"""Deaths without a file done between them, besides one of each member (a machine that is lost takes
many with it), after which no other member is started."""

_PATIENCE_S = 0.2


class Member(Protocol):
    """A process, or an actor, with a model of its own; it does one parcel of units at a time."""

    deaths: tuple[type[Exception], ...]
    """What its parcels end with if it dies."""

    def start(self) -> Future[list[Outcome] | McspexError]:
        """Begin, or begin anew after a death; the result is an empty list once the model is there.

        As from `submit`, it is the error that keeps all members from working, if there is one.
        """

    def submit(self, parcel: Sequence[Unit], done: set[str]) -> Future[list[Outcome] | McspexError]:
        """Hand out units; those of their tasks that are done only keep the others company."""

    def stop(self) -> None:
        """Have it begin no other file."""

    def end(self, *, now: bool) -> None:
        """End it, at once even if it works."""


class Station:
    """What a member has in its process: a worker, and whether to begin no other task."""

    def __init__(
        self,
        folder: Path,
        settings: BatchSettings,
        device: str,
        threads: int,
        stopping: Callable[[], bool] | None = None,
    ) -> None:
        self._stopped = threading.Event()
        self._stopping = stopping or self._stopped.is_set
        self._load = partial(Worker, folder, settings, device, threads)
        self._worker: Worker | None = None
        keep_memory()

    def extract(self, parcel: Sequence[Unit], done: set[str]) -> list[Outcome] | McspexError:
        """Do a parcel; an error is given back rather than raised, since Ray would decorate it."""
        try:
            self._worker = self._worker or self._load()
            return list(self._worker.extract(parcel, done, self._stopping))
        except McspexError as error:
            return error

    def stop(self) -> None:
        """Begin no other task."""
        self._stopped.set()


def deal(
    work: WorkList, members: Sequence[Member], stopping: Event
) -> Generator[Outcome, None, None]:
    """Hand a work list out to members as they become free, the longest units first."""
    waiting = deque[Sequence[Unit]](_parcels(work.units, len(members)))
    writer, deaths, in_a_row = JournalWriter(work.plan.folder), Counter[str](), 0
    nothing: Sequence[Unit] = ()
    running = {member.start(): (member, nothing) for member in members}
    idle: list[Member] = []
    told = False
    try:
        while waiting or any(parcel for _, parcel in running.values()):
            if stopping.is_set() and not told:
                told = True
                waiting.clear()
                for member, _ in running.values():
                    member.stop()
            while idle and waiting:
                member, parcel = idle.pop(), waiting.popleft()
                done = {task.id for unit in parcel for task in unit} & work.done
                running[member.submit(parcel, done)] = (member, parcel)
            for future in wait(running, _PATIENCE_S, FIRST_COMPLETED).done:
                member, parcel = running.pop(future)
                try:
                    outcomes = future.result()
                except member.deaths as death:
                    outcomes, left = _after_death(work, parcel, deaths, writer)
                    waiting.extendleft(() if stopping.is_set() else left)
                    in_a_row = 0 if any(outcome.row for outcome in outcomes) else in_a_row + 1
                    if in_a_row >= _DEATHS_IN_A_ROW + len(members):
                        reason = (str(death).strip() or type(death).__name__).splitlines()[-1]
                        raise EngineError(
                            f"{in_a_row} processes in a row died before they finished a file (the "
                            f"last: {reason}). If memory is short, use fewer --jobs."
                        ) from None
                    if waiting:
                        running[member.start()] = (member, nothing)
                    yield from outcomes
                    continue
                if isinstance(outcomes, McspexError):
                    raise outcomes
                in_a_row = 0 if parcel else in_a_row
                idle.append(member)
                yield from outcomes
    finally:
        for member in members:
            member.end(now=bool(running))


def _parcels(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Units as they are handed out to `count` members: the longest first, short ones together."""
    most_s = min(HANDED_OUT_S, sum(map(seconds, units)) / (4 * count))
    parcels: list[list[Unit]] = []
    length_s = 0.0
    for unit in sorted(units, key=seconds, reverse=True):
        full = not parcels or len(parcels[-1]) >= HANDED_OUT
        if full or length_s + seconds(unit) > most_s:
            parcels.append([])
            length_s = 0.0
        parcels[-1].append(unit)
        length_s += seconds(unit)
    return parcels


def _after_death(
    work: WorkList, parcel: Sequence[Unit], deaths: Counter[str], writer: JournalWriter
) -> tuple[list[Outcome], list[Sequence[Unit]]]:
    """What a dead member did of a parcel, and the parcels that are left of it for others.

    The first unit that was not done is suspected, and tried again alone. After `DEATHS` of them
    its files are tried one by one, and each that another member dies of has failed.
    """
    journal = Journal(work.plan.folder)
    lost = [task for unit in parcel for task in unit if task.id not in work.done]
    results = [(task, journal.result(task, work.key)) for task in lost]
    outcomes = [Outcome(task, done.row) for task, done in results if done]
    work.done.update(outcome.task.id for outcome in outcomes)
    left = [unit for unit in parcel if any(task.id not in work.done for task in unit)]
    if not left:
        return outcomes, []
    suspects = [task for task in left[0] if task.id not in work.done]
    deaths.update(task.id for task in suspects)
    parcels: list[Sequence[Unit]] = [left[1:]] if left[1:] else []
    if deaths[suspects[0].id] < DEATHS:
        return outcomes, [*parcels, [left[0]]]
    if len(suspects) > 1:
        return outcomes, [*parcels, *([unit] for unit in zip(suspects, strict=True))]
    (task,) = suspects
    reason = (
        f"{storage.name(task.mixture)}: {DEATHS} processes that worked on it were killed, one "
        "after the other. Run the command again, with fewer --jobs if memory is short."
    )
    writer.add_failed(task, work.key, reason)
    return [*outcomes, Outcome(task, None, reason)], parcels


def processes(work: WorkList) -> int:
    """How many processes this machine uses: one for each GPU, or for two cores each."""
    if work.settings.jobs:
        return work.settings.jobs
    if on_gpu(work.settings):
        return len(work.settings.devices)
    # By all of the shard: how many threads each has may decide an estimate's last bit.
    worth = 1 + int(work.seconds / WORTH_A_PROCESS_S)
    return max(1, min(cores() // CORES_EACH, worth, int(_memory() / MEMORY_EACH)))


def threads(work: WorkList) -> int:
    """CPU threads for each process; 0 for torch's choice."""
    count = processes(work)
    return max(1, cores() // count) if count > 1 else 0


def _memory() -> float:
    """Bytes of memory, free or not; infinitely many where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float("inf")


def estimate_s(work: WorkList) -> float:
    """How long a work list would take here, by trying the network on a few seconds.

    Raises:
        McspexError: the model or a device cannot be used.
    """
    if not seconds(work.todo):
        return 0.0
    worker = Worker(work.plan.folder, work.settings, work.settings.devices[0], threads(work))
    engine = worker.extractor.engine
    noise = np.random.default_rng(0).standard_normal(round(WINDOW_S * engine.sample_rate_hz))
    mixture = (0.05 * noise).astype(np.float32)
    voice = engine.embed([mixture])
    engine.extract(mixture[: engine.sample_rate_hz], voice)
    began = time.perf_counter()
    engine.extract(mixture, voice)
    took_s = time.perf_counter() - began
    return seconds(work.todo) * took_s / WINDOW_S / processes(work)


def run_here(work: WorkList, stopping: Event) -> Generator[Outcome, None, None]:
    """Do a work list in this process, or in several of this machine."""
    settings, count = work.settings, min(processes(work), len(work.units))
    if count == 1:
        keep_memory()
        worker = Worker(work.plan.folder, settings, settings.devices[0], threads(work))
        return worker.extract(work.units, work.done, stopping.is_set)
    with _left_to_this_process("SIGHUP"):
        resource_tracker.ensure_running()  # it dies of a terminal's end, and then knows nothing
    devices = [settings.devices[i % len(settings.devices)] for i in range(count)]
    return deal(work, [LocalProcess(work, device, threads(work)) for device in devices], stopping)


class LocalProcess:
    """A member: a pool of one process, so that the death of one spares the others."""

    deaths: tuple[type[Exception], ...] = (BrokenProcessPool,)

    def __init__(self, work: WorkList, device: str, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._arguments = (work.plan.folder, work.settings, device, count, self._stop)
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> Future[list[Outcome] | McspexError]:
        """As `Member.start`."""
        if self._pool:
            self._pool.shutdown(wait=False)
        self._pool = ProcessPoolExecutor(1, self._context, _begin, self._arguments)
        return self.submit([], set())

    def submit(self, parcel: Sequence[Unit], done: set[str]) -> Future[list[Outcome] | McspexError]:
        """As `Member.submit`."""
        assert self._pool
        with _left_to_this_process("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2"):
            return self._pool.submit(_extract, parcel, done)

    def stop(self) -> None:
        """As `Member.stop`."""
        self._stop.set()

    def end(self, *, now: bool) -> None:
        """As `Member.end`."""
        if self._pool:
            for process in [*(self._pool._processes or {}).values()] if now else ():
                process.kill()
                process.join()
            self._pool.shutdown(wait=not now, cancel_futures=True)


_here: list[Station] = []
"""In a process of a `LocalProcess`: its station."""


def _begin(folder: Path, settings: BatchSettings, device: str, count: int, stop: Any) -> None:
    """Prepare this process, which does not outlive the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    _here.append(Station(folder, settings, device, count, stop.is_set))


def _extract(parcel: Sequence[Unit], done: set[str]) -> list[Outcome] | McspexError:
    return _here[0].extract(parcel, done)


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
