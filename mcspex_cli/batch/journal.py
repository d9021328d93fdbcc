"""A batch's memory: a line for each task that ended, so that it can be resumed.

Every process that works on a batch appends to a file of its own in `journal/`, each line in one
write, so that a killed one spoils no more than its own last line, on any file system.

Who reads the journal merges the files. The clocks of machines differ, so no line is older or newer
than that of another file: a line counts if it agrees with the files that are there now. What is
left to do by these lines is decided in `workers.WorkList`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mcspex_cli import files
from mcspex_cli.batch import storage
from mcspex_cli.batch.pairing import AUDIO, Task
from mcspex_cli.errors import OutputError

FOLDER = "journal"

_LARGEST_OBJECT = 2**16
"""Bytes of an object after which another is begun, since each line writes all of it again."""


@dataclass(frozen=True, slots=True)
class Done:
    """A task that is done. Its result stays text until `row` is read, which saves memory."""

    inputs: str
    """As `Task.inputs` was then."""
    settings: str
    """As `BatchSettings.fingerprint` was then."""
    files: dict[str, list[int] | None]
    """Size and time of each file written, by the folder that it is in."""
    seconds: float
    """The mixture's length."""
    line: bytes

    @property
    def row(self) -> dict[str, Any]:
        """What is known of the result (`Result.to_dict`)."""
        row: dict[str, Any] = json.loads(self.line)["row"]
        return row


class Failure(NamedTuple):
    """A task that failed."""

    inputs: str
    settings: str
    reason: str
    job: str
    """Slurm's number of the array, or job, that it failed in."""


class Journal:
    """What the files of a journal say, read once.

    Attributes:
        done: the lines of each task that was done, by id: one for each time.
        failed: likewise of each task that failed.
        scores: scores by id and key, as `add_score` got them.
        runs: how much each command did here and how fast, the first one first.

    Raises:
        OutputError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[str, list[Done]] = {}
        self.failed: dict[str, list[Failure]] = {}
        self.scores: dict[tuple[str, str], dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        place = folder / FOLDER
        storage.listed.cache_clear()
        is_object = storage.url(place)
        names = storage.listed(str(place)) if is_object else [one.name for one in place.glob("*")]
        for name in sorted(name for name in names if name.endswith(".jsonl")):
            for data in storage.read(place / name, OutputError).splitlines():
                with suppress(ValueError, KeyError, TypeError):  # of a process killed at it
                    self._take(json.loads(data), data)
        self.runs.sort(key=lambda run: str(run.get("began")))

    def result(self, task: Task, settings: str) -> Done | None:
        """The line that agrees with inputs, settings and output files; None if there is none."""
        for known in self.done.get(task.id, ()):
            if known.settings == settings and unchanged(known.inputs, task.inputs):
                places = task.outputs(self.folder).items()
                stamps = {kind: storage.stamp(path) for kind, path in places}
                if all(
                    now and known.files.get(kind) == now.version for kind, now in stamps.items()
                ):
                    return known
        return None

    def failure(self, task: Task, settings: str, job: str | None = None) -> str | None:
        """Why a task failed with these files and settings, and in that `job`; None if it did not.

        Whether it was done before or after that is not looked at.
        """
        for known in reversed(self.failed.get(task.id, ())):
            is_same = known.settings == settings and unchanged(known.inputs, task.inputs)
            if is_same and job in (None, known.job):
                return known.reason
        return None

    def check(self, tasks: Sequence[Task], settings: str) -> None:
        """Refuse to replace estimates that were made of other files or with other settings."""
        for task in tasks:
            lines = self.done.get(task.id, [])
            if len(lines) > 1:  # whose estimate is there?
                now = storage.stamp(task.outputs(self.folder)[AUDIO])
                lines = [one for one in lines if now and one.files[AUDIO] == now.version] or lines
            same = [one for one in lines if same_place(one.inputs, task.inputs)]
            if lines and not any(one.settings == settings for one in same):
                what = "another model or other settings" if same else "another mixture or reference"
                raise OutputError(
                    f"{storage.name(self.folder)}: its {task.id} was made with {what}. Choose "
                    "another -o, or add --overwrite to replace it."
                )

    def _take(self, line: dict[str, Any], data: bytes) -> None:
        if "run" in line:
            self.runs.append(dict(line["run"]))
        elif "scored" in line:
            self.scores[line["scored"], line["key"]] = line["row"]
        elif "failed" in line:
            failure = Failure(line["inputs"], line["settings"], line["reason"], line["job"])
            self.failed.setdefault(line["failed"], []).append(failure)
        else:
            seconds = line["row"]["seconds"]
            done = Done(line["inputs"], line["settings"], line["files"], seconds, data)
            self.done.setdefault(line["done"], []).append(done)


def open_folder(folder: Path, *, overwrite: bool) -> Journal:
    """Make a batch's output folder, or clear up what a process killed in it has left.

    Raises:
        OutputError: it cannot be made, or holds files of no batch and `overwrite` is not set.
    """
    journal = folder / FOLDER
    in_use = storage.is_folder(folder) and (storage.url(folder) or any(folder.iterdir()))
    if in_use and not storage.is_folder(journal) and not overwrite:
        raise OutputError(
            f"{storage.name(folder)}: is not empty and not the folder of a batch. Choose another "
            "-o, or add --overwrite."
        )
    if not storage.url(folder):
        # A process that is killed before its first file must not lock itself out.
        files.make_folders(folder, journal)
        files.sweep(folder)
    return Journal(folder)


class JournalWriter:
    """The file of a journal that this process appends to; it appears with the first line.

    Its methods raise `OutputError` where they cannot write, `DiskFullError` on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_torn = False
        self._begin()

    def _begin(self) -> None:
        self._path = self.folder / FOLDER / f"{time.time_ns():x}-{os.getpid()}.jsonl"
        self._object = b""
        """The content of the object, in a store: since none can append, each line writes all."""

    def add_done(self, task: Task, settings: str, row: Mapping[str, Any]) -> None:
        """Remember a task whose outputs are there under their names."""
        written = {}
        for kind, path in task.outputs(self.folder).items():
            stamp = storage.stamp(path, anew=True)
            written[kind] = stamp and stamp.version
        line = {"done": task.id, "inputs": task.inputs, "settings": settings, "files": written}
        self._append({**line, "row": row})

    def add_failed(self, task: Task, settings: str, reason: str) -> None:
        """Remember a task that failed; it will be tried again."""
        job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")
        line = {"failed": task.id, "inputs": task.inputs, "settings": settings, "job": job}
        self._append({**line, "reason": reason})

    def add_score(self, id_: str, key: str, row: Mapping[str, Any]) -> None:
        """Remember a task's score; `key` is a hash of what was scored, and how."""
        self._append({"scored": id_, "key": key, "row": row})

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Remember how much a command did, and how fast."""
        self._append({"run": run})

    def _append(self, line: dict[str, Any]) -> None:
        """Write a line at once; after one that was cut short, begin a new one."""
        data = b"\n" * self._is_torn + json.dumps({"at": time.time_ns(), **line}).encode() + b"\n"
        if storage.url(self._path):
            self._object += data
            storage.write(self._path, self._object)
            if len(self._object) > _LARGEST_OBJECT:
                self._begin()
            return
        self._is_torn = True
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                if (file.write(data) or 0) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise files.output_error(self._path, error) from error
        self._is_torn = False


def same_place(one: str, other: str) -> bool:
    """Whether two `Task.inputs` are of files in the same places, whatever is in those now.

    It is enough that they lie in the same way from the output folder: all was moved together.
    """
    places = zip(one.split("-")[1:], other.split("-")[1:], strict=False)
    return one == other or any(place == other_place for place, other_place in places)


def unchanged(one: str, other: str) -> bool:
    """Whether two `Task.inputs` are of files in the same places, with the same sizes and times."""
    same_stamps = one.partition("-")[0] == other.partition("-")[0]
    return one == other or (same_stamps and same_place(one, other))


def fingerprint(value: object) -> str:
    """A hash of a value made of texts, numbers, lists and tuples."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
