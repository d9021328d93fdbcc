"""What is left of a batch, and the workers that do it.

```
WorkList: plan − done, this shard's, in units ──▶ an engine ──▶ Worker ──▶ files, journal
                                                            ├──▶ Worker
                                                            └──▶ ...
```

A `Worker` has the model loaded, extracts the units that it is given, and writes each task to its
own file of the journal. An engine (`engines`) hands units to workers, here or on other machines.
"""

from __future__ import annotations

import heapq
import os
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import files
from mcspex_cli.batch.journal import FOLDER, Journal, Writer, fingerprint, same_files
from mcspex_cli.batch.manifest import ACTIVITY, AUDIO, RESIDUAL, Task, outputs
from mcspex_cli.batch.plan import Plan
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import DiskFullError, McspexError, OutputError
from mcspex_cli.extraction.engine import open_engine
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.job import ExtractionOptions, Job, Outputs
from mcspex_cli.extraction.reference import Span, Voice
from mcspex_cli.extraction.runtime import ON_GPU, EngineSettings, choose_device, cores

Unit = tuple[Task, ...]
"""Tasks whose windows share batches; made from the whole plan, so that it is always the same."""

WINDOW_S = EngineSettings().window_s
"""Mixtures up to here are one window, and share a batch only if they are equally long."""

CORES_EACH = 2
"""Cores for each process: one alone takes 2.5 times as long as two, whose caches hold more."""

MEMORY_EACH = 1.5e9
"""Bytes of this machine's memory for each process: torch, a model and its windows."""

WORTH_A_PROCESS_S = 60.0
"""Seconds of audio for which another process is worth its start."""

_KNOWN_VOICES = 1000
"""Voices that a worker keeps."""


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
        engine, options = EngineSettings(), self.options
        return fingerprint(
            (
                *(self.model.sha256, self.precision, self.runtime),
                *(engine.window_s, engine.context_s, engine.fade_s),
                *(options.channel, options.level, options.subtype),
                *(options.wet_db, options.dry_db, options.track, options.damaged),
                *(options.absent, self.model.calibration if options.absent == "mute" else None),
            )
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task: its row (`Result.to_dict`), or why it failed."""

    task: Task
    row: dict[str, Any] | None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    """Of its references, the first time that they are used."""


class WorkList:
    """What is left to do of a plan, in this shard.

    Attributes:
        todo: the tasks that are left, in the plan's order.
        skipped: the tasks of this shard that were done before.
        units: what is left, as `Worker.extract` takes it: with tasks that are done where they
            keep a unit whole.
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
        self.seconds = sum(task.seconds or 0.0 for task in tasks)
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
        """How many processes to use: as asked for, one for each GPU, or for two cores each.

        By all of the shard, not by what is left of it: how many threads each has may decide
        an estimate's last bit.
        """
        if self.settings.jobs:
            return self.settings.jobs
        if on_gpu(self.settings):
            return len(self.settings.devices)
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
        self._voices: dict[object, Voice | McspexError] = {}

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
        warnings: dict[str, tuple[str, ...]] = {}

        def jobs() -> Iterator[Job]:
            for task in tasks:
                if stopping():
                    return
                begun.append(task)
                folder = Path(scratch) if task.id in done else self._folder
                voice = partial(self._voice, task, warnings)
                yield Job(Path(task.mixture), voice, _outputs(folder, task))

        with tempfile.TemporaryDirectory() as scratch:
            for _, result in self.extractor.extract_files(jobs(), self.settings.options):
                task = begun.popleft()
                if isinstance(result, DiskFullError):
                    raise result
                if task.id in done:
                    continue
                if isinstance(result, McspexError):
                    self._writer.add_failed(task, str(result))
                    yield Outcome(task, None, str(result), warnings.pop(task.id, ()))
                else:
                    row = result.to_dict()
                    self._writer.add_done(task, self._key, row)
                    yield Outcome(task, row, "", warnings.pop(task.id, ()))

    def _voice(self, task: Task, warnings: dict[str, tuple[str, ...]]) -> Voice:
        """The voice of a task's references, each made once; a bad one fails each time.

        Raises:
            McspexError: a reference cannot be used.
        """
        key = (task.references, task.spans and (task.mixture, task.spans))
        if key not in self._voices:
            for old in list(islice(self._voices, max(0, len(self._voices) - _KNOWN_VOICES))):
                del self._voices[old]
            try:
                voice = self.extractor.enroll(
                    [Path(path) for path in task.references],
                    spans=[Span.parse(span) for span in task.spans],
                    mixture=Path(task.mixture),
                    channel=self.settings.options.channel,
                )
                sources = ", ".join(voice.sources)
                warnings[task.id] = tuple(
                    text
                    if any(source in text for source in voice.sources)
                    else f"{sources}: {text}"
                    for text in voice.warnings
                )
                self._voices[key] = voice
            except McspexError as error:
                self._voices[key] = error
            except Exception as error:
                self._voices[key] = McspexError(
                    f"{task.references[0] if task.references else task.mixture}: "
                    f"{type(error).__name__} ({error}). This is a bug, please report it."
                )
        voice_or_error = self._voices[key]
        if isinstance(voice_or_error, McspexError):
            raise voice_or_error
        return voice_or_error

    def real_time_factor(self) -> float:
        """Seconds that the network takes for a second of audio, tried on a few."""
        engine = self.extractor.engine
        noise = np.random.default_rng(0).standard_normal(round(WINDOW_S * engine.sample_rate_hz))
        mixture = (0.05 * noise).astype(np.float32)
        voice = engine.embed([mixture])
        engine.extract(mixture[: engine.sample_rate_hz], voice)
        began = time.perf_counter()
        engine.extract(mixture, voice)
        return (time.perf_counter() - began) / WINDOW_S


def _outputs(folder: Path, task: Task) -> Outputs:
    """A task's outputs, which replace what is there."""
    places = outputs(folder, task)
    name = Path(task.references[0]).stem if len(task.references) == 1 else ""
    return Outputs(
        places[AUDIO],
        places.get(RESIDUAL),
        places.get(ACTIVITY),
        speaker=name if name and not task.spans else "target",
        overwrite=True,
    )


def open_folder(folder: Path, *, overwrite: bool) -> Journal:
    """Make a batch's output folder, or clear up what a process killed in it has left.

    Raises:
        OutputError: it cannot be made, or holds files but is of no batch and `overwrite`
            is not set.
    """
    journal = folder / FOLDER
    if folder.is_dir() and any(folder.iterdir()) and not journal.is_dir() and not overwrite:
        raise OutputError(
            f"{folder}: is not empty and not the folder of a batch. Choose another -o, or add "
            "--overwrite."
        )
    files.make_folders(
        folder, journal
    )  # a process killed before its first file must not lock itself out
    files.sweep(folder)
    return Journal(folder)


def check_settings(plan: Plan, journal: Journal, settings: BatchSettings) -> None:
    """Refuse to replace estimates that were made of other files, by another model or otherwise.

    Raises:
        OutputError: as said.
    """
    key = settings.key()
    for task in plan.tasks:
        known = journal.done.get(task.id)
        if known is None:
            continue
        same, _ = same_files(known.inputs, task.inputs)
        if not same or known.settings != key:
            what = "another model or other settings" if same else "another mixture or reference"
            raise OutputError(
                f"{plan.folder}: its {task.id} was made with {what}. Choose another -o, or add "
                "--overwrite to replace it."
            )


def estimate_s(work: WorkList) -> float:
    """How long a work list would take here, by trying the network on a few seconds.

    Raises:
        McspexError: the model or a device cannot be used.
    """
    seconds = sum(task.seconds or 0.0 for task in work.todo)
    if not seconds:
        return 0.0
    worker = Worker(work.plan.folder, work.settings, work.settings.devices[0], work.threads())
    return seconds * worker.real_time_factor() / work.processes()


def units(tasks: Sequence[Task], size: int) -> list[Unit]:
    """Put tasks together whose windows can share batches of `size`.

    Those are mixtures of one window and equal length, and mixtures of more than one window.
    """
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
    lengths = [sum(task.seconds or 0.0 for task in unit) for unit in work]
    loads = [(0.0, number) for number in range(count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(work)), key=lambda index: (-lengths[index], index)):
        load, number = heapq.heappop(loads)
        dealt[number].append(index)
        heapq.heappush(loads, (load + lengths[index] + 1e-3, number))
    return [[work[index] for index in sorted(indices)] for indices in dealt]


def on_gpu(settings: BatchSettings) -> bool:
    """Whether a batch is computed on GPUs; every device of torch's is tried."""
    if settings.runtime != "torch":
        return all(device.startswith("cuda") for device in settings.devices)
    return "cpu" not in [choose_device(device).type for device in settings.devices]


def _memory() -> float:
    """Bytes of memory, free or not; infinitely many where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float("inf")
