"""The workers of a batch, and how its work is distributed among them.

```
WorkList: what of the plan is left, this shard's, in units
  ──▶ parcels, the longest first ──▶ processes as they become free ──▶ Worker ──▶ files, journal
                 ▲                              │
                 └── what a dead one had left ◀─┘

WorkerProcess: a process, as `distribute` sees it ──▶ WorkerHost: in it ──▶ Worker: loads, extracts
```

`backends` decides where the processes are. If one is enough, none is started: its `Worker` is here.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal, JournalWriter
from mcspex_cli.batch.manifest import ACTIVITY, AUDIO, RESIDUAL, Task
from mcspex_cli.batch.plan import BatchSettings
from mcspex_cli.batch.worklist import Unit, WorkList, total_s
from mcspex_cli.errors import DiskFullError, EngineError, McspexError, error_line
from mcspex_cli.extraction.engine import open_engine
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.job import Job, Outputs, Result, speaker_name
from mcspex_cli.extraction.reference import Span, Voice
from mcspex_cli.extraction.runtime import keep_memory

_KNOWN_VOICES = 1000

_PARCEL_S, _PARCEL_UNITS = 30.0, 16
"""The most seconds of audio, and the most units, in a parcel: what a process is given at once."""

DEATHS_PER_FILE = 3
"""A file fails when this many processes died on its unit. In a unit of several files, each is then
tried alone and fails at the next death."""

_DEATHS_IN_A_ROW = 10
"""A batch ends when this many processes, plus as many as it has, die with no file done in between.

The number of processes is added because one lost machine may kill all of them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task: its result (`Result.to_dict`), or why it failed."""

    task: Task
    result: dict[str, Any] | None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    """What is wrong with its references."""


Outcomes = Generator[Outcome, None, None]
Answer = Future[list[Outcome] | McspexError]
"""The outcomes of a parcel, once it is done, or an error that stops the whole batch."""

_NO_PARCEL: Sequence[Unit] = ()
"""What a process does while it starts."""


@dataclass
class _RunningTask:
    """A task that is being extracted."""

    task: Task
    copies: Path
    """A folder for what is fetched for it, and for outputs that are to be sent or thrown away."""
    fetch_error: McspexError | None = None
    """Why there is no copy; the extraction fails, too, but cannot say why."""
    warnings: tuple[str, ...] = ()
    """What is wrong with its references."""


class Worker:
    """A loaded model that extracts the units it is given, and writes to a file of the journal.

    Raises:
        CheckpointError, EngineError: the model or the device cannot be used.
    """

    def __init__(
        self, folder: Path, settings: BatchSettings, device: str, threads: int = 0
    ) -> None:
        keep_memory()
        self._folder, self._key, self._options = folder, settings.fingerprint(), settings.options
        engine_settings = replace(settings.engine_settings, device=device, threads=threads)
        self.extractor = Extractor(settings.model, open_engine(settings.model, engine_settings))
        self._writer = JournalWriter(folder)
        self._enroll = lru_cache(_KNOWN_VOICES)(self._enroll_or_error)

    def extract(
        self, units: Sequence[Unit], finished_ids: set[str], stopping: Callable[[], bool]
    ) -> Outcomes:
        """Extract what is not finished of some units, beginning no other task once `stopping()`.

        On a GPU, whose results depend a little on what else is in a batch, a unit that was begun
        is finished. Each outcome is in the journal before it is yielded.

        Raises:
            DiskFullError: nothing more can be written.
        """
        if self.extractor.engine.signals_at_once == 1:
            tasks = [task for unit in units for task in unit if task.id not in finished_ids]
            yield from self._extract(tasks, finished_ids, stopping)
            return
        for unit in units:
            if not stopping():
                yield from self._extract(unit, finished_ids, lambda: False)

    def _extract(
        self, tasks: Sequence[Task], finished_ids: set[str], stopping: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """Extract tasks in one go, and throw away what comes of finished ones (see `Unit`)."""
        is_remote = storage.is_url(self._folder)
        running_tasks: deque[_RunningTask] = deque()

        def jobs() -> Iterator[Job]:
            for number, task in enumerate(tasks):
                if stopping():
                    return
                item, mixture = _RunningTask(task, Path(scratch, str(number))), Path(task.mixture)
                running_tasks.append(item)
                try:
                    mixture = storage.fetch(mixture, item.copies)
                except McspexError as error:
                    item.fetch_error = error
                is_aside = is_remote or task.id in finished_ids
                paths = task.outputs(item.copies if is_aside else self._folder)
                speaker = speaker_name(task.references, task.spans)
                files = paths[AUDIO], paths.get(RESIDUAL), paths.get(ACTIVITY)
                outputs = Outputs(*files, speaker, overwrite=True)
                yield Job(mixture, partial(self._voice, item), outputs)

        with (
            storage.temporary_copies() as scratch,
            closing(self.extractor.extract_files(jobs(), self._options)) as results,
        ):
            for _, result in results:
                item = running_tasks.popleft()
                end = item.fetch_error or result
                if isinstance(end, DiskFullError):
                    raise end
                outcome = None if item.task.id in finished_ids else self._finish(item, end)
                shutil.rmtree(item.copies, ignore_errors=True)
                if outcome:
                    yield outcome

    def _finish(self, item: _RunningTask, end: Result | McspexError) -> Outcome:
        """Send the outputs to their store, if they go to one, and write the end to the journal.

        A task whose outputs cannot be sent has failed. A journal that cannot be written ends all.
        """
        task, copies = item.task, item.copies
        try:
            if isinstance(end, McspexError):
                raise end
            values = end.to_dict()
            values["warnings"] = [storage.with_urls(text, copies) for text in values["warnings"]]
            if storage.is_url(self._folder):
                for kind, path in task.outputs(self._folder).items():
                    storage.send(task.outputs(copies)[kind], path)
            self._writer.add_result(task, self._key, values)
        except DiskFullError:
            raise
        except McspexError as error:
            reason = storage.with_urls(str(error), copies)
            self._writer.add_failure(task, self._key, reason)
            return Outcome(task, None, reason, item.warnings)
        return Outcome(task, values, "", item.warnings)

    def _voice(self, item: _RunningTask) -> Voice:
        """The voice of a task's references; an enrolment that failed is not tried again."""
        task = item.task
        voice = self._enroll(task.references, task.spans, task.mixture if task.spans else None)
        if isinstance(voice, McspexError):
            raise voice
        item.warnings = voice.warnings
        return voice

    def _enroll_or_error(
        self, references: Sequence[str], spans: Sequence[str], mixture: str | None
    ) -> Voice | McspexError:
        with storage.temporary_copies() as copies:
            try:
                voice = self.extractor.enroll(
                    [storage.fetch(path, copies) for path in references],
                    spans=[Span.parse(span) for span in spans],
                    mixture=storage.fetch(mixture, copies) if mixture else None,
                    options=self._options,
                )
            except DiskFullError:
                raise
            except McspexError as error:
                return type(error)(storage.with_urls(str(error), copies))
        sources = ", ".join(voice.sources)
        warnings = [  # which name their clips: in a batch, nobody would know which are meant
            text if any(source in text for source in voice.sources) else f"{sources}: {text}"
            for text in voice.warnings
        ]
        return replace(voice, warnings=tuple(storage.with_urls(text, copies) for text in warnings))


class WorkerProcess(Protocol):
    """A process (or actor of Ray) with a `WorkerHost` in it, which does a parcel at a time."""

    deaths: tuple[type[Exception], ...]
    """The errors that its answers raise once it has died."""

    def start(self) -> Answer:
        """Begin, or begin anew after a death; it answers like `submit` to an empty parcel."""

    def submit(self, parcel: Sequence[Unit], finished_ids: set[str]) -> Answer:
        """Hand out units; some of their tasks may be finished (see `Unit`)."""

    def stop(self) -> None:
        """Have it begin no other file."""

    def end(self, *, now: bool) -> None:
        """End it; with `now`, in the middle of its work."""


def distribute(
    work: WorkList,
    processes: Sequence[WorkerProcess],
    stopping: Event,
    check: Callable[[], object] = lambda: None,
) -> Outcomes:
    """Hand a work list out to processes as they become free, the longest units first.

    A process that dies is started anew, and what it had left of its parcel comes next. The
    processes are ended at the end, and in the middle of their work if that was broken off.

    Raises:
        EngineError: too many processes died in a row (`_DEATHS_IN_A_ROW`), or as one of them says,
            or as `check` does, which is called again and again.
    """
    waiting = deque[Sequence[Unit]](_parcels(work.units, len(processes)))
    writer, deaths_by_task, in_a_row = JournalWriter(work.plan.folder), Counter[str](), 0
    running = {process.start(): (process, _NO_PARCEL) for process in processes}
    idle: list[WorkerProcess] = []
    stopped = False
    try:
        while waiting or any(parcel for _, parcel in running.values()):
            if stopping.is_set() and not stopped:
                stopped = True
                waiting.clear()
                for process, _ in running.values():
                    process.stop()
            while idle and waiting:
                process, parcel = idle.pop(), waiting.popleft()
                finished_ids = work.finished_ids.intersection(t.id for unit in parcel for t in unit)
                running[process.submit(parcel, finished_ids)] = (process, parcel)
            check()
            for future in wait(running, 0.2, FIRST_COMPLETED).done:
                process, parcel = running.pop(future)
                try:
                    outcomes = future.result()
                except process.deaths as death:
                    outcomes, left = _after_death(work, parcel, deaths_by_task, writer)
                    waiting.extendleft(() if stopping.is_set() else reversed(left))
                    in_a_row = 0 if any(outcome.result for outcome in outcomes) else in_a_row + 1
                    if in_a_row >= _DEATHS_IN_A_ROW + len(processes):
                        raise EngineError(
                            f"{in_a_row} processes in a row died before they finished a file (the "
                            f"last: {error_line(death, -1)}). If memory is short, use fewer --jobs."
                        ) from None
                    if waiting:
                        running[process.start()] = (process, _NO_PARCEL)
                else:
                    if isinstance(outcomes, McspexError):
                        raise outcomes
                    in_a_row = 0 if parcel else in_a_row
                    idle.append(process)
                yield from outcomes
    finally:
        # What still runs is not wanted any more: a start without work, or work broken off.
        for process in processes:
            process.end(now=bool(running))


def _parcels(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Units as they are handed out to `count` processes: the longest first, short ones together."""
    most_s = min(_PARCEL_S, sum(map(total_s, units)) / (4 * count))
    parcels: list[list[Unit]] = []
    length_s = 0.0
    for unit in sorted(units, key=total_s, reverse=True):
        full = not parcels or len(parcels[-1]) >= _PARCEL_UNITS
        if full or length_s + total_s(unit) > most_s:
            parcels.append([])
            length_s = 0.0
        parcels[-1].append(unit)
        length_s += total_s(unit)
    return parcels


def _after_death(
    work: WorkList, parcel: Sequence[Unit], deaths_by_task: Counter[str], writer: JournalWriter
) -> tuple[list[Outcome], list[Sequence[Unit]]]:
    """What came of a dead process's parcel, and the parcels that are left of it, in order.

    The first unit that is not finished is suspected, and tried again alone, before the others.
    After `DEATHS_PER_FILE` deaths its files are tried one by one, and each that another process
    dies of has failed.

    What it finished is added to `work.finished_ids`, the suspects to `deaths_by_task`, and a file
    that has failed to the journal.
    """
    journal = Journal(work.plan.folder)
    lost = [task for unit in parcel for task in unit if task.id not in work.finished_ids]
    lines = [(task, journal.valid_result(task, work.key)) for task in lost]
    outcomes = [Outcome(task, line.result()) for task, line in lines if line]
    work.finished_ids.update(outcome.task.id for outcome in outcomes)
    left = [unit for unit in parcel if any(task.id not in work.finished_ids for task in unit)]
    if not left:
        return outcomes, []
    suspects = [task for task in left[0] if task.id not in work.finished_ids]
    deaths_by_task.update(task.id for task in suspects)
    others: list[Sequence[Unit]] = [left[1:]] if left[1:] else []
    if deaths_by_task[suspects[0].id] < DEATHS_PER_FILE:
        return outcomes, [[left[0]], *others]
    if len(suspects) > 1:
        return outcomes, [*([(task,)] for task in suspects), *others]
    (task,) = suspects
    reason = (
        f"{storage.label(task.mixture)}: {deaths_by_task[task.id]} processes that worked on it "
        "were killed, one after the other. Run the command again, with fewer --jobs if memory is "
        "short."
    )
    writer.add_failure(task, work.key, reason)
    return [*outcomes, Outcome(task, None, reason)], others


class WorkerHost:
    """Runs a `Worker` in another process, here or elsewhere; the first parcel loads the model."""

    def __init__(
        self,
        folder: Path,
        settings: BatchSettings,
        device: str,
        threads: int,
        cwd: Path,
        stopping: Any = None,
    ) -> None:
        self._folder, self._cwd, self._stopping = folder, cwd, stopping or Event()
        self._load = partial(Worker, folder, settings, device, threads)
        self._worker: Worker | None = None

    def extract(
        self, parcel: Sequence[Unit], finished_ids: set[str]
    ) -> list[Outcome] | McspexError:
        """Do a parcel. An error is returned, not raised: Ray would wrap it in one of its own."""
        with suppress(OSError):
            os.chdir(self._cwd)
        if not (storage.is_url(self._folder) or self._folder.is_dir()):
            return EngineError(
                f"{self._cwd / self._folder}: is not there on the machine {socket.gethostname()}. "
                "All machines need the files under the same paths: use a shared folder."
            )
        try:
            self._worker = self._worker or self._load()
            return list(self._worker.extract(parcel, finished_ids, self._stopping.is_set))
        except McspexError as error:
            return error

    def stop(self) -> None:
        """Begin no other file."""
        self._stopping.set()
