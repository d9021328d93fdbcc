"""What is left of a batch, and the processes that do it.

```
WorkList: plan − done, this shard's, in units ──▶ run_locally ──▶ Workers ──▶ files, journal
```
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from functools import cache, lru_cache, partial
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from mcspex_cli.batch.journal import Journal, Writer, fingerprint
from mcspex_cli.batch.manifest import ACTIVITY, AUDIO, RESIDUAL, Task, outputs
from mcspex_cli.batch.plan import Plan
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import DiskFullError, EngineError, McspexError
from mcspex_cli.extraction.engine import open_engine
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.job import ExtractionOptions, Job, Outputs
from mcspex_cli.extraction.reference import Span, Voice
from mcspex_cli.extraction.runtime import ON_GPU, EngineSettings, choose_device, cores, keep_memory

Unit = tuple[Task, ...]
"""Tasks whose windows share batches; made from the whole plan, so that it is always the same."""

WINDOW_S = EngineSettings().window_s
"""Mixtures up to here are one window, and share a batch only if they are equally long."""

CORES_EACH, MEMORY_EACH = 2, 1.5e9
"""For each process: with one core it takes 2.5 times as long; torch, a model and its windows."""

WORTH_A_PROCESS_S = 60.0
"""Seconds of audio for which another process is worth its start."""

HANDED_OUT_S, _HANDED_OUT = 30.0, 16
"""Seconds of audio, and units, that a process is given at once, at most."""


_KNOWN_VOICES = 1000

_PATIENCE_S = 0.2
_DEATHS = 10
"""Deaths in a row, without one file done, after which no other process is started."""


@dataclass(frozen=True)
class BatchSettings:
    """How a batch is computed."""

    model: CheckpointInfo
    options: ExtractionOptions = field(default_factory=ExtractionOptions)
    devices: tuple[str, ...] = ("auto",)
    precision: str = "auto"
    runtime: str = "torch"
    """Not "auto": what is done must not depend on what is installed."""
    batch_size: int = 0
    """Signals at once; 0 for one on a CPU, sixteen on a GPU, fewer where memory is short."""
    jobs: int = 0
    """Processes; 0 for one per GPU, or for two CPU cores if there is work and memory for it."""
    shard: tuple[int, int] = (1, 1)
    """(i, n): the i-th of n shares of about equal duration, i from 1."""
    fail_fast: bool = False

    def key(self) -> str:
        """Fingerprint of all that an estimate depends on."""
        engine = EngineSettings()
        return fingerprint(
            (
                *(self.model.sha256, self.precision, self.runtime),
                *(engine.window_s, engine.context_s, engine.fade_s),
                *astuple(self.options),
                self.model.calibration if self.options.absent == "mute" else None,
            )
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task: its row (`Result.to_dict`), or why it failed."""

    task: Task
    row: dict[str, Any] | None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    """Of its references."""


class WorkList:
    """What is left to do of a plan, in this shard.

    Attributes:
        todo: the tasks that are left, in the plan's order.
        skipped: the tasks of this shard that were done before.
        units: what is left, with tasks that are done where they keep a unit whole.
        seconds: audio of this shard, done or not.

    Raises:
        EngineError: a device is not available.
    """

    def __init__(self, plan: Plan, journal: Journal, settings: BatchSettings) -> None:
        self.plan, self.settings = plan, settings
        key = settings.key()
        self.done = {task.id for task in plan.tasks if journal.is_done(task, key)}
        units = self._shard() if len(self.done) < len(plan.tasks) else [tuple(plan.tasks)]
        tasks = [task for unit in units for task in unit]
        self.seconds = seconds(tasks)
        self.skipped = [task for task in tasks if task.id in self.done]
        self.todo = [task for task in tasks if task.id not in self.done]
        self.units = [unit for unit in units if any(task.id not in self.done for task in unit)]

    def _shard(self) -> list[Unit]:
        """This shard's units: those of one machine must be those of another, whatever it has."""
        tasks, (index, count) = self.plan.tasks, self.settings.shard
        size, gpu = self.settings.batch_size, on_gpu(self.settings)
        if not size:  # few enough together for shards of equal duration
            size = ON_GPU if count == 1 else max(1, min(ON_GPU, len(tasks) // (4 * count)))
        share = shares(units(tasks, size), count)[index - 1]
        if gpu or self.settings.batch_size:
            return share
        ids = {task.id for unit in share for task in unit}
        return [(task,) for task in tasks if task.id in ids]

    def processes(self) -> int:
        """How many processes to use: as asked for, one for each GPU, or for two cores each."""
        if self.settings.jobs:
            return self.settings.jobs
        if on_gpu(self.settings):
            return len(self.settings.devices)
        # By all of the shard: how many threads each has may decide an estimate's last bit.
        worth = 1 + int(self.seconds / WORTH_A_PROCESS_S)
        return max(1, min(cores() // CORES_EACH, worth, int(_memory() / MEMORY_EACH)))

    def threads(self) -> int:
        """CPU threads for each process; 0 for torch's choice."""
        processes = self.processes()
        return max(1, cores() // processes) if processes > 1 else 0


class Worker:
    """A loaded model that extracts the units it is given, and writes to a file of the journal.

    Raises:
        CheckpointError, EngineError: the model or the device cannot be used.
    """

    def __init__(
        self, folder: Path, settings: BatchSettings, device: str, threads: int = 0
    ) -> None:
        self.settings, self._folder, self._key = settings, folder, settings.key()
        engine = EngineSettings(
            device,
            settings.precision,
            batch=settings.batch_size,
            threads=threads,
            runtime=settings.runtime,
        )
        self.extractor = Extractor(settings.model, open_engine(settings.model, engine))
        self._writer = Writer(folder)
        self._enroll = lru_cache(_KNOWN_VOICES)(self._enroll_or_error)
        self._warnings: dict[str, tuple[str, ...]] = {}

    def extract(
        self, units: Sequence[Unit], done: set[str], stopping: Callable[[], bool]
    ) -> Generator[Outcome, None, None]:
        """Extract every task of the units that is not done, beginning no other once `stopping()`.

        Each outcome is in the journal before it is yielded.

        Raises:
            DiskFullError: nothing more can be written.
        """
        if self.extractor.engine.batch == 1:
            tasks = [task for unit in units for task in unit if task.id not in done]
            yield from self._extract(tasks, done, stopping)
            return
        for unit in units:
            if not stopping():
                yield from self._extract(unit, done, lambda: False)

    def _extract(
        self, tasks: Sequence[Task], done: set[str], stopping: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """Extract tasks in one go; what is done is only computed again, for the others' sake."""
        begun: deque[Task] = deque()

        def jobs() -> Iterator[Job]:
            for task in tasks:
                if stopping():
                    return
                begun.append(task)
                folder = Path(scratch) if task.id in done else self._folder
                yield Job(Path(task.mixture), partial(self._voice, task), _outputs(folder, task))

        with tempfile.TemporaryDirectory() as scratch:
            for _, result in self.extractor.extract_files(jobs(), self.settings.options):
                task = begun.popleft()
                if isinstance(result, DiskFullError):
                    raise result
                if task.id in done:
                    continue
                warnings = self._warnings.pop(task.id, ())
                if isinstance(result, McspexError):
                    self._writer.add_failed(task, str(result))
                    yield Outcome(task, None, str(result), warnings)
                else:
                    row = result.to_dict()
                    self._writer.add_done(task, self._key, row)
                    yield Outcome(task, row, "", warnings)

    def _voice(self, task: Task) -> Voice:
        """The voice of a task's references and spans; a bad one fails each time."""
        voice = self._enroll(task.references, task.spans, task.mixture if task.spans else None)
        if isinstance(voice, McspexError):
            raise voice
        sources = ", ".join(voice.sources)
        self._warnings[task.id] = tuple(
            text if any(source in text for source in voice.sources) else f"{sources}: {text}"
            for text in voice.warnings
        )
        return voice

    def _enroll_or_error(
        self, references: Sequence[str], spans: Sequence[str], mixture: str | None
    ) -> Voice | McspexError:
        options = self.settings.options
        try:
            return self.extractor.enroll(
                references,
                spans=[Span.parse(span) for span in spans],
                mixture=Path(mixture) if mixture else None,
                channel=options.channel,
                track=options.track,
                damaged=options.damaged,
            )
        except McspexError as error:
            return error


def _outputs(folder: Path, task: Task) -> Outputs:
    places = outputs(folder, task)
    name = Path(task.references[0]).stem if len(task.references) == 1 else ""
    return Outputs(
        places[AUDIO],
        places.get(RESIDUAL),
        places.get(ACTIVITY),
        speaker=name if name and not task.spans else "target",
        overwrite=True,
    )


def estimate_s(work: WorkList) -> float:
    """How long a work list would take here, by trying the network on a few seconds.

    Raises:
        McspexError: the model or a device cannot be used.
    """
    if not seconds(work.todo):
        return 0.0
    worker = Worker(work.plan.folder, work.settings, work.settings.devices[0], work.threads())
    engine = worker.extractor.engine
    noise = np.random.default_rng(0).standard_normal(round(WINDOW_S * engine.sample_rate_hz))
    mixture = (0.05 * noise).astype(np.float32)
    voice = engine.embed([mixture])
    engine.extract(mixture[: engine.sample_rate_hz], voice)
    began = time.perf_counter()
    engine.extract(mixture, voice)
    took_s = time.perf_counter() - began
    return seconds(work.todo) * took_s / WINDOW_S / work.processes()


def units(tasks: Sequence[Task], size: int) -> list[Unit]:
    """Put tasks together whose windows can share batches of `size`: those equally long, or long."""
    if size == 1:
        return [(task,) for task in tasks]
    alike: dict[object, list[list[Task]]] = defaultdict(list)
    room: dict[object, float] = {}
    for task in tasks:
        windows = 1.0 if task.seconds is None else max(1.0, task.seconds / WINDOW_S)
        key = task.id if task.seconds is None else "long" if windows > 1 else task.seconds
        if room.get(key, 0) <= 0:
            alike[key].append([])
            room[key] = size
        alike[key][-1].append(task)
        room[key] -= windows
    return [tuple(unit) for made in alike.values() for unit in made]


def shares(work: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Deal units out to `count` of about equal duration, each in the order of `work`."""
    loads = [(0.0, number) for number in range(count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(work)), key=lambda index: seconds(work[index]), reverse=True):
        load, number = heapq.heappop(loads)
        dealt[number].append(index)
        heapq.heappush(loads, (load + seconds(work[index]) + 1e-3, number))
    return [[work[index] for index in sorted(indices)] for indices in dealt]


def seconds(tasks: Iterable[Task]) -> float:
    """The audio of some tasks; those whose length is not known count as nothing."""
    return sum(task.seconds or 0.0 for task in tasks)


def on_gpu(settings: BatchSettings) -> bool:
    """Whether a batch is computed on GPUs; every device of torch's is tried."""
    if settings.runtime != "torch":
        return all(device.startswith("cuda") for device in settings.devices)
    if settings.devices == ("cpu",):
        return False  # without torch, which takes seconds to import
    return "cpu" not in [choose_device(device).type for device in settings.devices]


def _memory() -> float:
    """Bytes of memory, free or not; infinitely many where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float("inf")


def run_locally(work: WorkList, stopping: Event) -> Iterator[Outcome]:
    """Do a work list on this machine, in this process or in several.

    A process that dies, killed for its memory or by a broken driver, costs the file that it had
    in hand; another takes its place.

    Yields:
        What came of each task, which is in the journal by then.

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
    """Do a work list in pools of one process each, so that the death of one spares the others."""
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
    most_s = min(HANDED_OUT_S, sum(map(seconds, units)) / (4 * count))
    parcels: list[list[Unit]] = []
    length_s = 0.0
    for unit in sorted(units, key=seconds, reverse=True):
        full = not parcels or len(parcels[-1]) >= _HANDED_OUT
        if full or length_s + seconds(unit) > most_s:
            parcels.append([])
            length_s = 0.0
        parcels[-1].append(unit)
        length_s += seconds(unit)
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


_here: list[tuple[Callable[[], Worker], Callable[[], bool]]] = []
"""In a process of `_in_processes`: its worker, and whether to begin no other task."""


def _begin(folder: Path, settings: BatchSettings, device: str, threads: int, stop: Any) -> None:
    """Prepare this process, which does not outlive the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    # Loaded by its first parcel, so that what goes wrong is told to whoever asked.
    _here.append((cache(lambda: Worker(folder, settings, device, threads)), stop.is_set))


def _work(parcel: list[Unit], done: set[str]) -> list[Outcome]:
    worker, stopping = _here[0]
    return list(worker().extract(parcel, done, stopping))


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
