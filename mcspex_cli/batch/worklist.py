"""What is left to do of a batch that is begun or resumed, and who may do it.

`open_work` opens the output folder, keeps other batches out of it, and compares the plan with the
journal. Its `WorkList` has the tasks that are left, in units, of one shard.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path

from mcspex_cli import audio, files
from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal
from mcspex_cli.batch.manifest import AUDIO, JOURNAL, Task
from mcspex_cli.batch.plan import BatchPlan, BatchSettings, unchanged
from mcspex_cli.errors import McspexError, OutputError
from mcspex_cli.extraction.runtime import GPU_BATCH, LENGTH_SPREAD, EngineSettings

Unit = tuple[Task, ...]
"""Tasks whose windows share a GPU's batches; of one task where each window is computed alone.

The last bit of an estimate may depend on what shares its batch. A resumed batch must write the same
bytes as one that was never interrupted. So units are made of the whole plan, not of what is left of
it, and a unit is resumed as a whole: its finished tasks are computed again and thrown away.
"""

WINDOW_S = EngineSettings().window_s
"""Mixtures up to here are one window, and share a batch only if they are about equally long."""

_AT_ONCE = 256
"""Mixtures whose lengths one thread reads in one go."""

_LOCK = "settings.lock"
"""A file in `journal/` that running batches keep locked; it has their `batch_fingerprint`."""

_LOCK_OF_ALL = "all.lock"
"""A file there that a batch keeps locked: alone if it does all of the work, else with other
shards."""


class WorkList:
    """What is left to do of a measured plan, in this shard.

    Attributes:
        key: the settings' fingerprint.
        finished_ids: the ids of all tasks of the plan, in this shard or not, that are finished;
            `distribute` adds those that a worker finished before it died.
        todo: the tasks of this shard that are left, in the plan's order.
        skipped: the tasks of this shard that were finished before.
        units: those with a task that is left; see `Unit` for why they also have finished tasks.
        audio_s: audio of this shard, finished or not.

    Raises:
        EngineError: a device is not available.
    """

    def __init__(
        self,
        plan: BatchPlan,
        journal: Journal,
        settings: BatchSettings,
        units: Sequence[Unit] | None = None,
    ) -> None:
        self.plan, self.settings, self.key = plan, settings, settings.fingerprint()
        self.finished_ids = {task.id for task in plan.tasks if journal.valid_result(task, self.key)}
        units = self._shard() if units is None else units
        tasks = [task for unit in units for task in unit]
        self.audio_s = total_s(tasks)
        self.skipped = [task for task in tasks if task.id in self.finished_ids]
        self.todo = [task for task in tasks if task.id not in self.finished_ids]
        self.units = [
            unit for unit in units if not self.finished_ids.issuperset(task.id for task in unit)
        ]

    def _shard(self) -> list[Unit]:
        """This shard's units.

        Machines with and without a GPU must agree on the shards. So those are made of units for a
        GPU, which a CPU then splits into single tasks.
        """
        tasks, (index, count) = self.plan.tasks, self.settings.shard
        size = self.settings.engine_settings.batch
        # Without a size that the user chose: at least four units for each shard, so that shards
        # take about equally long.
        usual = GPU_BATCH if count == 1 else max(1, min(GPU_BATCH, len(tasks) // (4 * count)))
        units = make_units(tasks, size or usual)
        # Shards beyond the units are empty.
        shard = equal_parts(units, min(count, len(units)))[index - 1] if index <= len(units) else []
        # Where nothing is left, units do not matter, and to look for a GPU takes seconds.
        is_finished = len(self.finished_ids) == len(tasks)
        if size or is_finished or self.settings.on_gpu():
            return shard
        ids = {task.id for unit in shard for task in unit}
        return [(task,) for task in tasks if task.id in ids]


@contextmanager
def open_work(
    plan: BatchPlan, settings: BatchSettings, *, overwrite: bool = False, is_dry_run: bool = False
) -> Iterator[WorkList]:
    """Open the output folder, which a dry run only reads, and find what is left to do of a plan.

    While the block runs, other batches are refused in the folder (`claim`).

    Raises:
        EngineError: a device is not available.
        OutputError: the folder cannot be used, has results of other files or settings and
            `overwrite` is not set, or another batch, or the same, is running in it.
    """
    folder, key = plan.folder, settings.fingerprint()
    # Of Slurm's arrays any number of commands may follow the progress.
    does_all = settings.shard == (1, 1) and settings.backend != "slurm"
    open_folder(folder, overwrite=overwrite, is_dry_run=is_dry_run)
    batch = batch_fingerprint(plan, key)
    with nullcontext() if is_dry_run else claim(folder, batch, does_all=does_all):
        journal = Journal(folder)
        plan = measure(plan, journal)
        if not overwrite:
            journal.check_replaced(plan.tasks, key)
        yield WorkList(plan, journal, settings)


def batch_fingerprint(plan: BatchPlan, settings: str) -> str:
    """What all commands, shards and tasks that work on one batch have in common."""
    return f"{settings} {plan.fingerprint()}"


@contextmanager
def claim(folder: Path, batch: str, *, does_all: bool = False) -> Iterator[None]:
    """While the block runs, have batches with other fingerprints refused in a folder.

    A command that does a whole batch, not a shard or share of it, is refused while another does
    any of it, and others are refused while it does. In object stores and on Windows none is.

    Raises:
        OutputError: a batch with another fingerprint is running there, or one of the same work.
    """
    if storage.is_url(folder):
        yield
        return
    with ExitStack() as stack:
        running, is_free = batch, True
        with suppress(ImportError, OSError):  # Windows, or a disk, has no such locks
            # Without a buffer, which on a full disk would fail again when it is closed.
            names = (folder / JOURNAL / name for name in (_LOCK, _LOCK_OF_ALL))
            first, second = (stack.enter_context(name.open("ab+", buffering=0)) for name in names)
            running = _lock(first, batch)
            is_free = _try_lock(second, alone=does_all)
        if running != batch:
            raise another_batch(folder, "is running in this folder")
        if not is_free:
            raise OutputError(
                f"{folder}: the same batch is running in this folder. Wait until it has ended, or "
                "divide the work with --shard."
            )
        yield


def another_batch(folder: Path, where: str) -> OutputError:
    """The error for a folder in which another batch `where`."""
    return OutputError(
        f"{storage.label(folder)}: a batch of other files, or with another model or other "
        f"settings, {where}. Wait until it has ended, or choose another -o."
    )


def _lock(file: FileIO, batch: str) -> str:
    """Lock an open file, and give the fingerprint that all who have locked it share.

    It is this `batch` for the first of them. The system unlocks the file of a process that ends,
    however it ends.
    """
    import fcntl

    if _try_lock(file, alone=True):
        file.truncate(0)
        file.write(batch.encode())
    fcntl.flock(file, fcntl.LOCK_SH)
    file.seek(0)
    return file.read().decode()


def _try_lock(file: FileIO, *, alone: bool) -> bool:
    """Lock an open file, for this process alone or together with others; false if it cannot."""
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_folder(folder: Path, *, overwrite: bool, is_dry_run: bool = False) -> None:
    """Make a batch's output folder, or clear up what a process killed in it has left.

    A dry run only refuses what cannot be used.

    Raises:
        OutputError: it cannot be made or written, or holds files of no batch and `overwrite` is
            not set.
    """
    journal = folder / JOURNAL
    if not (overwrite or storage.is_empty(folder) or storage.is_folder(journal)):
        raise OutputError(
            f"{storage.label(folder)}: is not empty and not the folder of a batch. Choose another "
            "-o, or add --overwrite."
        )
    if storage.is_url(folder):
        if not is_dry_run:  # what cannot be written to is refused now, and not after the first file
            storage.write(journal / _LOCK, b"")
        return
    if not is_dry_run:
        # A process that is killed before its first file must not lock itself out.
        files.make_folders(folder, journal)
        files.sweep(folder)
    for path in (folder / AUDIO / "any.wav", folder / "report.csv", journal / _LOCK):
        files.check_output(path, overwrite=True)


def measure(plan: BatchPlan, journal: Journal) -> BatchPlan:
    """The plan with its mixtures' lengths, as far as they can be read.

    What the journal knows of unchanged files is not read again.
    """

    def measured(start: int) -> list[Task]:
        tasks = []
        for task in plan.tasks[start : start + _AT_ONCE]:
            lines = journal.results.get(task.id, ())
            same = (line for line in lines if unchanged(line.input_key, task.input_key))
            line = next(same, None)
            length_s = line.length_s if line else _length_s(task.mixture)
            tasks.append(replace(task, length_s=length_s))
        return tasks

    with ThreadPoolExecutor(4) as readers:
        parts = readers.map(measured, range(0, len(plan.tasks), _AT_ONCE))
        return replace(plan, tasks=[task for part in parts for task in part])


def _length_s(mixture: str) -> float | None:
    if storage.is_url(mixture):
        return None
    try:
        length_s = _plain_wav_s(mixture)
        return audio.probe(mixture).seconds if length_s is None else length_s
    except (McspexError, OSError):
        return None


def _plain_wav_s(path: str) -> float | None:
    """The length of a plain WAV file by its first 44 bytes, 8 times as fast as a library does it.

    None for any other file.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        head, size = file.read(44), os.fstat(file.fileno()).st_size
    if len(head) < 44 or head[:4] != b"RIFF" or head[8:20] != b"WAVEfmt \x10\0\0\0":
        return None
    rate_hz, align, data = (struct.unpack_from("<I", head, at)[0] for at in (24, 32, 40))
    align &= 0xFFFF
    if head[36:40] != b"data" or data + 44 != size or not rate_hz or not align:
        return None
    return float(data // align / rate_hz)


def show_length(task: Task) -> str:
    """The seconds of a mixture, or why they are not known: those in object stores are not read."""
    if task.length_s is None:
        return "not read" if storage.is_url(task.mixture) else "unreadable"
    return f"{task.length_s:.1f}"


def make_units(tasks: Sequence[Task], size: int) -> list[Unit]:
    """Put tasks together whose windows can share batches of `size`: those about equally long."""
    if size == 1:
        return [(task,) for task in tasks]
    pairs = [(min(task.length_s, WINDOW_S), task) for task in tasks if task.length_s is not None]
    groups: list[list[Task]] = []
    room = least_s = 0.0
    for window_s, task in sorted(pairs, key=lambda pair: pair[0], reverse=True):
        if room <= 0 or window_s < least_s:
            groups.append([])
            room, least_s = float(size), (1 - LENGTH_SPREAD) * window_s
        groups[-1].append(task)
        room -= max(1.0, (task.length_s or 0.0) / WINDOW_S)
    return [*map(tuple, groups), *((task,) for task in tasks if task.length_s is None)]


def equal_parts(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Split units into `count` parts of about equal duration, each in the order of `units`."""
    loads = [(0.0, number) for number in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(units)), key=lambda index: total_s(units[index]), reverse=True):
        load, number = heapq.heappop(loads)
        parts[number].append(index)
        # A little more, so that units of unknown length are spread evenly, too.
        heapq.heappush(loads, (load + total_s(units[index]) + 1e-3, number))
    return [[units[index] for index in sorted(indices)] for indices in parts]


def total_s(tasks: Iterable[Task]) -> float:
    """The audio of some tasks; those whose length is not known count as nothing."""
    return sum(task.length_s or 0.0 for task in tasks)
