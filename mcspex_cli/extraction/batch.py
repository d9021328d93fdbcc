"""A batch at work: what is left of a plan, in which order, by how many processes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from mcspex_cli import files
from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.journal import NAME, Journal, inputs_key, same_files
from mcspex_cli.extraction.shares import BatchSettings, Share, Unit, cores, shares, units

if TYPE_CHECKING:
    from mcspex_cli.extraction.work import Outcome

ON_GPU = 16
"""Signals at once on a GPU, if nothing is said."""

WORTH_A_PROCESS_S = 60.0
"""Seconds of audio for which another process is worth its start."""


CORES_EACH = 2
"""Cores for each process: one alone takes 2.5 times as long as two, whose caches hold more."""


class BatchRun:
    """What is left to do of a plan; iterating does it, an `Outcome` at a time.

    Every outcome is in the journal before it is yielded. `skipped` are the jobs of this
    shard that were done before, `todo` those that are not.

    Raises:
        EngineError: a device is not available.
        McspexError: while iterating: the model cannot be loaded, or the journal written.
    """

    def __init__(self, plan: Sequence[Job], journal: Journal, settings: BatchSettings) -> None:
        self.settings, self._journal, self._key = settings, journal, settings.key()
        self._plan = plan
        self._inputs = {job.id: inputs_key(job) for job in plan}
        self._done = {j.id for j in plan if journal.is_done(j, self._inputs[j.id], self._key)}
        self._units: list[Unit] = []
        mine = list(plan)
        if len(self._done) < len(plan):
            self._units = self._mine()
            mine = [job for unit in self._units for job in unit]
        self.seconds = sum(job.seconds or 0.0 for job in mine)
        """Audio of this shard, done or not."""
        self.skipped = [job for job in mine if job.id in self._done]
        self.todo = [job for job in mine if job.id not in self._done]
        self.left = len(self.todo)
        """Jobs not yet tried."""
        self.stopping = Event()
        """Set it to end after the jobs in hand."""

    def _mine(self) -> list[Unit]:
        """This shard's units: those of one machine must be those of another, whatever it has."""
        (index, count), size = self.settings.shard, self.settings.batch
        on_gpu = _on_gpu(self.settings)
        if not size:  # few enough together for shards of equal duration
            size = ON_GPU if count == 1 else max(1, min(ON_GPU, len(self._plan) // (4 * count)))
        mine = shares(units(self._plan, size), count)[index - 1]
        if on_gpu or self.settings.batch:
            return mine
        ids = {job.id for unit in mine for job in unit}
        return [(job,) for job in self._plan if job.id in ids]

    def __iter__(self) -> Iterator[Outcome]:
        """Do what is left."""
        left = [unit for unit in self._units if any(j.id not in self._done for j in unit)]
        began, done = time.time(), []
        try:
            with closing(self._outcomes(left)) as outcomes:
                for outcome in outcomes:
                    self._note(outcome)
                    done.append(outcome)
                    yield outcome
                    if outcome.row is None and self.settings.fail_fast:
                        return
        finally:
            if done:
                self._journal.add_run(_run_line(began, done))

    def _note(self, outcome: Outcome) -> None:
        """Put an outcome into the journal."""
        job, self.left = outcome.job, self.left - 1
        if outcome.row is None:
            self._journal.add_failed(job, outcome.reason)
        else:
            self._journal.add_done(job, self._inputs[job.id], self._key, outcome.row)

    def estimate_s(self) -> float:
        """How long the rest would take here, by trying the network on a few seconds.

        Raises:
            McspexError: the model or a device cannot be used.
        """
        from mcspex_cli.extraction.work import real_time_factor

        seconds = sum(job.seconds or 0.0 for job in self.todo)
        if not seconds:
            return 0.0
        processes = self._processes()
        share = Share((), frozenset(), self.settings, self.settings.devices[0], self._threads())
        return seconds * real_time_factor(share) / processes

    def lines(self) -> dict[str, dict[str, Any]]:
        """The journal's lines, by id, of all that is done as the plan has it now."""
        is_done, inputs = self._journal.is_done, self._inputs
        return {
            job.id: self._journal.done[job.id]
            for job in self._plan
            if is_done(job, inputs[job.id], self._key)
        }

    def _outcomes(self, left: Sequence[Unit]) -> Generator[Outcome, None, None]:
        """What comes of each job, from this process or from several."""
        if not left:
            return
        settings, done = self.settings, frozenset(self._done)
        dealt = shares(left, min(self._processes(), len(left)))
        parts = [
            Share(part, done, settings, device, self._threads())
            for part, device in zip(dealt, cycle(settings.devices), strict=False)
        ]
        if len(parts) > 1:
            from mcspex_cli.extraction.workers import in_processes

            yield from in_processes(parts, self.stopping)
        else:
            from mcspex_cli.extraction.work import work

            yield from work(parts[0], self.stopping.is_set)

    def _processes(self) -> int:
        """How many to use: as told, one for each GPU, or one for two cores with enough to do.

        By all of the shard, not by what is left of it: how many threads each has may decide
        an estimate's last bit.
        """
        if self.settings.jobs:
            return self.settings.jobs
        if _on_gpu(self.settings):
            return len(self.settings.devices)
        return min(max(1, cores() // CORES_EACH), 1 + int(self.seconds / WORTH_A_PROCESS_S))

    def _threads(self) -> int:
        """CPU threads for each process; 0 for torch's choice."""
        processes = self._processes()
        return max(1, cores() // processes) if processes > 1 else 0


def open_folder(folder: Path, *, overwrite: bool) -> Journal:
    """Make a batch's output folder, or clear up what a process killed in it has left.

    Raises:
        OutputError: it cannot be made, or holds files but is of no batch and `overwrite`
            is not set.
    """
    journal = folder / NAME
    if folder.is_dir() and any(folder.iterdir()) and not journal.exists() and not overwrite:
        raise OutputError(
            f"{folder}: is not empty and not a batch's. Choose another -o, or add --overwrite."
        )
    files.make_folders(folder)
    files.sweep(folder)
    files.touch(journal)  # a process killed before its first file must not lock itself out
    return Journal(folder)


def check_settings(
    folder: Path, plan: Sequence[Job], journal: Journal, settings: BatchSettings
) -> None:
    """Refuse to replace estimates that were made of other files, by another model or otherwise.

    Raises:
        OutputError: as said.
    """
    for job in plan:
        line = journal.done.get(job.id)
        if line is None:
            continue
        alike = same_files(str(line.get("inputs")), inputs_key(job))
        if not alike or line.get("settings") != settings.key():
            what = "another model or other settings" if alike else "another mixture or reference"
            raise OutputError(
                f"{folder}: its {job.id} was made with {what}. Choose another -o, or add "
                "--overwrite to replace it."
            )


def _on_gpu(settings: BatchSettings) -> bool:
    """Whether a batch is computed on GPUs; every device of torch's is tried."""
    if settings.runtime != "torch":
        return all(device.startswith("cuda") for device in settings.devices)
    from mcspex_cli.extraction.runtime import choose_device

    return "cpu" not in [choose_device(device).type for device in settings.devices]


def _run_line(began: float, done: Sequence[Outcome]) -> dict[str, Any]:
    """What a process says of itself in the journal."""
    rows = [outcome.row for outcome in done if outcome.row]
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "wall_s": round(time.time() - began, 3),
        "audio_s": round(sum(row["seconds"] for row in rows), 3),
        "done": len(rows),
        "failed": len(done) - len(rows),
    }
