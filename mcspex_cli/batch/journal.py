"""A batch's memory: a line for each task that ended, so that nothing done is done again.

Every process that works on a batch appends to a file of its own in `journal/`, each line in one
write, so that a killed one spoils no more than its own last line, on any file system; who reads
the journal merges the files by the times of their lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli.batch.manifest import Task, outputs
from mcspex_cli.errors import OutputError

FOLDER = "journal"


@dataclass(frozen=True, slots=True)
class Done:
    """A task that is done; what is known of its result stays text until it is asked for."""

    inputs: str
    """`Task.inputs` as they were."""
    settings: str
    """Fingerprint of all that an estimate depends on besides."""
    files: dict[str, list[int] | None]
    """Size and time of each file written, by the folder that it is in."""
    seconds: float
    line: bytes

    @property
    def row(self) -> dict[str, Any]:
        """What is known of the result (`Result.to_dict`)."""
        row: dict[str, Any] = json.loads(self.line)["row"]
        return row


class Journal:
    """The journal of an output folder, read once and then written to.

    Attributes:
        done: each task that is done, by id.
        failed: why each task failed that was not done since, by id.
        scores: the last score of each task, by id: "key", what it is a score of, and "row".
        runs: what each process that worked here did.

    Raises:
        OutputError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / FOLDER / f"{time.time_ns():x}-{os.getpid()}.jsonl"
        self._torn = False
        self.read()

    def read(self) -> None:
        """Read it again: other processes may have written to it."""
        self.done: dict[str, Done] = {}
        self.failed: dict[str, str] = {}
        self.scores: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        lines: list[tuple[int, dict[str, Any], bytes]] = []
        place = self.folder / FOLDER
        try:
            files = sorted(place.glob("*.jsonl")) if place.is_dir() else []
            for path in files:
                for data in path.read_bytes().splitlines():
                    try:
                        line = json.loads(data)
                        lines.append((int(line["at"]), _without_row(line), data))
                    except (ValueError, KeyError, TypeError):
                        continue  # a process was killed while it wrote this
        except OSError as error:
            raise OutputError(f"{place}: cannot be read ({error.strerror}).") from error
        lines.sort(key=lambda line: line[0])
        for _, line, data in lines:
            self._take(line, data)

    def is_done(self, task: Task, settings: str) -> bool:
        """Whether the line, inputs, settings and output files all agree that it is."""
        known = self.done.get(task.id)
        return (
            known is not None
            and known.settings == settings
            and same_files(known.inputs, task.inputs)[1]
            and all(
                (now := stamp(path)) is not None and known.files.get(kind) == now
                for kind, path in outputs(self.folder, task).items()
            )
        )

    def add_done(self, task: Task, settings: str, row: Mapping[str, Any]) -> None:
        """Remember a task whose outputs are there under their names."""
        files = {kind: stamp(path) for kind, path in outputs(self.folder, task).items()}
        line = {"done": task.id, "inputs": task.inputs, "settings": settings, "files": files}
        self._append({**line, "seconds": row["seconds"], "row": dict(row)})

    def add_failed(self, task: Task, reason: str) -> None:
        """Remember a task that failed; it will be tried again."""
        self._append({"failed": task.id, "reason": reason})

    def add_score(self, task: Task, key: str, row: Mapping[str, Any]) -> None:
        """Remember a task's score; `key` tells what it is a score of."""
        self._append({"scored": task.id, "key": key, "score": dict(row)})

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Remember what a process did."""
        self._append({"run": dict(run)})

    def _take(self, line: dict[str, Any], data: bytes) -> None:
        """Take account of a line, which replaces what was known of its task before."""
        try:
            if "run" in line:
                self.runs.append(line["run"])
            elif "scored" in line:
                self.scores[line["scored"]] = {"key": line["key"], "row": line["score"]}
            elif "failed" in line:
                self.failed[line["failed"]] = line["reason"]
                self.done.pop(line["failed"], None)
            else:
                inputs, settings, files = line["inputs"], line["settings"], line["files"]
                done = Done(inputs, settings, files, line["seconds"], data)
                self.done[line["done"]] = done
                self.failed.pop(line["done"], None)
        except (KeyError, TypeError):
            return

    def _append(self, line: dict[str, Any]) -> None:
        """Write a line at once; after one that was cut short, begin a new one."""
        line = {"at": time.time_ns(), **line}
        data = json.dumps(line).encode()
        try:
            self._path.parent.mkdir(exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                written = os.write(file, b"\n" * self._torn + data + b"\n")
            finally:
                os.close(file)
        except OSError as error:
            self._torn = True
            raise OutputError(f"{self._path}: cannot be written ({error.strerror}).") from error
        if written < len(data) + 1:
            self._torn = True
            raise OutputError(f"{self._path}: cannot be written (No space left on device).")
        self._torn = False
        self._take(_without_row(line), data)


def _without_row(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what takes most of the room, and what only a report needs."""
    line.pop("row", None)
    return line


def same_files(one: str, other: str) -> tuple[bool, bool]:
    """Whether two `Task.inputs` name the same files, and whether those are also unchanged.

    The same files have the same places, or lie in the same way from the output folder: a set
    that was moved as a whole is the same.
    """
    if one == other:
        return True, True
    (stamps, *places), (stamps_, *places_) = one.split("-"), other.split("-")
    same = any(place == place_ for place, place_ in zip(places, places_, strict=False))
    return same, same and stamps == stamps_


def fingerprint(value: object) -> str:
    """Tells a value made of texts, numbers, lists and tuples from others."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def stamp(path: Path) -> list[int] | None:
    """A file's size and time; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
