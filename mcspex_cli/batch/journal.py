"""What is done of a batch: the lines that every process writes, and by which it is resumed.

Every process that works on a batch appends to a file of its own in `journal/`: a line for each task
that ended, in one write. So a killed process spoils no more than its own last line, on any disk.
These are the four kinds of lines, shortened; `at` is for people who read them:

```
{"at": 1788, "done": "a", "inputs": "...", "settings": "...", "output": "a.wav", "files": {...},
 "row": {"seconds": 4.2, ...}}
{"at": 1789, "failed": "b", "inputs": "...", "settings": "...", "job": "", "reason": "..."}
{"at": 1790, "scored": "a", "key": "...", "row": {"si_sdr": 12.9, ...}}
{"at": 1791, "run": {"began": "2026-08-30T09:15:02Z", "wall_s": 3.1, ...}}
```

Whoever reads the journal merges the files. The clocks of machines differ, so no line is older or
newer than that of another file: a line counts if it agrees with the files that are there now
(`Journal.valid_result`). A `WorkList` has what is left to do by these lines.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from mcspex_cli import audio, files
from mcspex_cli.batch import storage
from mcspex_cli.batch.manifest import AUDIO, JOURNAL, Task
from mcspex_cli.batch.plan import same_places, unchanged
from mcspex_cli.errors import OutputError
from mcspex_cli.evaluation.scoring import Status

_LINE_ERRORS = (ValueError, KeyError, TypeError, RecursionError, msgspec.MsgspecError)
"""The errors of a line that a killed process cut short, or that another version wrote."""

_LARGEST_OBJECT = 2**16
"""Bytes of an object after which another is begun, since each line writes all of it again."""


@dataclass(frozen=True, slots=True)
class ResultLine:
    """That a task was finished. Its result stays text until it is read, which saves memory."""

    input_key: str
    """As `Task.input_key` was then."""
    settings: str
    """As `BatchSettings.fingerprint` was then."""
    output: str
    """The estimate's file, below `audio/`."""
    files: dict[str, list[int] | None]
    """Size and time of each file written, by the folder that it is in."""
    length_s: float
    """The length of the mixture."""
    text: bytes

    def result(self) -> dict[str, Any]:
        """What is known of it (`Result.to_dict`)."""
        return json.loads(self.text)["row"]


@dataclass(frozen=True, slots=True)
class FailureLine:
    """That a task failed."""

    input_key: str
    settings: str
    reason: str
    slurm_job: str
    """Slurm's number of the array, or job, that it failed in; empty without Slurm."""


@dataclass(frozen=True)
class Run:
    """How much a command did, and how fast; one of the runs in run.json."""

    began: str
    """When, as "2026-08-30T09:15:02Z"."""
    wall_s: float
    audio_s: float
    done: int
    """Tasks that it finished."""
    failed: int


class Journal:
    """What the files of a journal say, read once.

    Attributes:
        results: for each task that was ever finished, by id: a line for each time.
        failures: likewise for each task that failed.
        scores: scores by id and key, as `add_score` got them; one that was refused only where no
            other try went well.
        runs: how much each command did here and how fast, the first one first.

    Raises:
        OutputError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, list[ResultLine]] = {}
        self.failures: dict[str, list[FailureLine]] = {}
        self.scores: dict[tuple[str, str], dict[str, Any]] = {}
        self.runs: list[Run] = []
        lines = folder / JOURNAL
        storage.objects.cache_clear()
        is_object = storage.is_url(lines)
        paths = map(lines.joinpath, storage.objects(str(lines))) if is_object else lines.glob("*")
        for path in sorted(path for path in paths if path.suffix == ".jsonl"):
            for data in storage.read(path, OutputError).splitlines():
                with suppress(*_LINE_ERRORS):
                    self._take(json.loads(data), data)
        self.runs.sort(key=lambda run: run.began)

    def valid_result(self, task: Task, settings: str) -> ResultLine | None:
        """The line that agrees with inputs, settings and the output files that are there now.

        None if there is none: the task is not done.
        """
        for line in self.results.get(task.id, ()):
            if line.settings == settings and unchanged(line.input_key, task.input_key):
                outputs = task.outputs(self.folder).items()
                stamps = {kind: storage.stamp(path) for kind, path in outputs}
                if all(now and now.is_still(line.files.get(kind)) for kind, now in stamps.items()):
                    return line
        return None

    def failure(self, task: Task, settings: str, slurm_job: str | None = None) -> str | None:
        """Why a task failed with these files and settings, if it did: in that job, if one is named.

        Whether it was finished before or after that is not looked at.
        """
        for line in reversed(self.failures.get(task.id, ())):
            is_same = line.settings == settings and unchanged(line.input_key, task.input_key)
            if is_same and slurm_job in (None, line.slurm_job):
                return line.reason
        return None

    def estimates_outside(self, tasks: Sequence[Task]) -> list[str]:
        """The ids of finished tasks that are none of these, and whose estimates are still there."""
        ids = {task.id for task in tasks}

        def is_there(line: ResultLine) -> bool:
            stamp = storage.stamp(self.folder / AUDIO / line.output)
            return stamp is not None and stamp.is_still(line.files.get(AUDIO))

        return sorted(
            id_ for id_ in self.results.keys() - ids if any(map(is_there, self.results[id_]))
        )

    def check_replaced(self, tasks: Sequence[Task], settings: str) -> None:
        """Refuse to replace estimates that were made of other files or with other settings.

        One of another format would not be replaced: it would stay beside the new one.
        """
        by_estimate: dict[tuple[int, ...], list[ResultLine]] = {}
        for line in chain.from_iterable(self.results.values()):
            by_estimate.setdefault(tuple(line.files.get(AUDIO) or ()), []).append(line)
        if not by_estimate:
            return
        for task in tasks:
            self._check_format(task)
            lines = self._lines_of_estimate(task, by_estimate)
            same = [line for line in lines if same_places(line.input_key, task.input_key)]
            if lines and not any(line.settings == settings for line in same):
                name = task.id if task.id in self.results else task.output
                what = "another mixture or reference"
                if same:
                    what = "another model or other settings, or by another version of mcspex"
                raise OutputError(
                    f"{storage.label(self.folder)}: its {name} was made with {what}. Choose "
                    "another -o, or add --overwrite to replace it."
                )

    def _check_format(self, task: Task) -> None:
        """Refuse a task whose estimate is there in another format, but not in this one."""
        path, lines = task.outputs(self.folder)[AUDIO], self.results.get(task.id)
        if not lines or storage.stamp(path):
            return
        for other in map(path.with_suffix, audio.FORMATS):
            stamp = storage.stamp(other)
            if stamp and any(stamp.is_still(line.files.get(AUDIO)) for line in lines):
                raise OutputError(
                    f"{storage.label(self.folder)}: has {task.id} as a {other.suffix} file "
                    "already. Choose another -o, or add --overwrite to have both."
                )

    def _lines_of_estimate(
        self, task: Task, by_estimate: Mapping[tuple[int, ...], list[ResultLine]]
    ) -> list[ResultLine]:
        """The lines that wrote the estimate that is there now, or all of the task's if none did.

        Those lines may be of another id: a manifest can give one output to two mixtures in turn.
        """
        lines = self.results.get(task.id, [])
        now = storage.stamp(task.outputs(self.folder)[AUDIO])
        return by_estimate.get(tuple(now.version), lines) if now else lines

    def _take(self, line: dict[str, Any], data: bytes) -> None:
        if "run" in line:
            self.runs.append(msgspec.convert(line["run"], Run))
        elif "scored" in line:
            score, key = msgspec.convert(line["row"], dict[str, Any]), (line["scored"], line["key"])
            if key not in self.scores or score["status"] not in Status.REFUSED:
                self.scores[key] = score
        elif "failed" in line:
            values = line | {"input_key": line["inputs"], "slurm_job": line["job"]}
            failure = msgspec.convert(values, FailureLine)
            self.failures.setdefault(line["failed"], []).append(failure)
        else:
            length_s = line["row"]["seconds"]
            values = line | {"input_key": line["inputs"], "length_s": length_s, "text": data}
            result = msgspec.convert(values, ResultLine)
            self.results.setdefault(line["done"], []).append(result)


class JournalWriter:
    """The file of a journal that this process appends to; it appears with the first line.

    Its methods raise `OutputError` where they cannot write, `DiskFullError` on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_torn = False
        self._begin()

    def _begin(self) -> None:
        self._path = self.folder / JOURNAL / f"{time.time_ns():x}-{os.getpid()}.jsonl"
        self._object = b""
        """The content of the object, in a store: since none can append, each line writes all."""

    def add_result(self, task: Task, settings: str, result: Mapping[str, Any]) -> None:
        """Remember a task whose outputs are there under their names."""
        outputs = task.outputs(self.folder).items()
        stamps = {kind: storage.stamp(path, anew=True) for kind, path in outputs}
        versions = {kind: stamp and stamp.version for kind, stamp in stamps.items()}
        line = {"done": task.id, "inputs": task.input_key, "settings": settings}
        self._append({**line, "output": task.output, "files": versions, "row": result})

    def add_failure(self, task: Task, settings: str, reason: str) -> None:
        """Remember a task that failed; it will be tried again."""
        job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")
        line = {"failed": task.id, "inputs": task.input_key, "settings": settings, "job": job}
        self._append({**line, "reason": reason})

    def add_score(self, id_: str, key: str, score: Mapping[str, Any]) -> None:
        """Remember a task's score; `key` is a hash of what was scored, and how."""
        self._append({"scored": id_, "key": key, "row": score})

    def add_run(self, run: Run) -> None:
        """Remember how much a command did, and how fast."""
        self._append({"run": asdict(run)})

    def _append(self, line: dict[str, Any]) -> None:
        """Write a line at once; after one that was cut short, begin a new one."""
        data = json.dumps({"at": time.time_ns(), **line}).encode() + b"\n"
        if self._is_torn:
            data = b"\n" + data
        if storage.is_url(self._path):
            self._object += data
            storage.write(self._path, self._object)
            if len(self._object) > _LARGEST_OBJECT:
                self._begin()
            return
        self._is_torn = True
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                if (file.write(data) or 0) < len(data):  # a disk that is nearly full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise files.output_error(self._path, error) from error
        self._is_torn = False
