"""A batch's memory: a line for each job that ended, so that nothing done is done again.

`journal.jsonl` is only ever appended to, each line in one write, so that several processes
may share it and none can spoil more than its own last line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.jobs import Job

NAME = "journal.jsonl"


class Journal:
    """The journal of an output folder, read once and then written to.

    `done` has the last line of each job that is done, `failed` of those that failed since,
    `scores` the last score of each, `runs` a line of every process that worked here.

    Raises:
        OutputError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        self.read()

    def read(self) -> None:
        """Read it again: other processes may have written to it."""
        self.done, self.failed, self.scores, self.runs = {}, {}, {}, []
        try:
            text = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be read ({error.strerror}).") from error
        for line in text.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # what a process wrote that was killed in doing so

    def is_done(self, job: Job, inputs: str, settings: str) -> bool:
        """Whether line, inputs, settings and the output file all agree that it is."""
        line = self.done.get(job.id)
        return (
            line is not None
            and (line.get("inputs"), line.get("settings")) == (inputs, settings)
            and line.get("file") == stamp(job.output)
        )

    def add_done(self, job: Job, inputs: str, settings: str, row: Mapping[str, Any]) -> None:
        """Remember a job whose output is there under its name."""
        line = {"id": job.id, "inputs": inputs, "settings": settings, "file": stamp(job.output)}
        self._append({"done": {**line, **row}})

    def add_failed(self, job: Job, reason: str) -> None:
        """Remember a job that failed; it will be tried again."""
        self._append({"failed": {"id": job.id, "reason": reason}})

    def add_score(self, job: Job, key: str, row: Mapping[str, Any]) -> None:
        """Remember a job's score; `key` tells what it is a score of."""
        self._append({"score": {"id": job.id, "key": key, "row": dict(row)}})

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Remember what a process did."""
        self._append({"run": dict(run)})

    def _take(self, line: dict[str, Any]) -> None:
        """Take account of a line, which replaces what was said of its job before."""
        ((kind, value),) = line.items()
        if kind == "run":
            self.runs.append(value)
        elif kind == "score":
            self.scores[value["id"]] = value
        else:
            last = {"done": self.done, "failed": self.failed}[kind]
            self.done.pop(value["id"], None)
            self.failed.pop(value["id"], None)
            last[value["id"]] = value

    def _append(self, line: dict[str, Any]) -> None:
        """Write a line at once; a line break before it ends one that was cut short."""
        data = f"\n{json.dumps(line)}\n".encode()
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                written = os.write(file, data)
            finally:
                os.close(file)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror}).") from error
        if written < len(data):
            raise OutputError(f"{self._path}: cannot be written (disk full). Free some space.")
        self._take(line)


def inputs_key(job: Job) -> str:
    """Tells a job's mixture and references, by their paths, and what they are, by size and time.

    The two come apart with `same_files`.
    """
    files = (job.mixture, *job.references)
    paths = fingerprint([str(path.resolve()) for path in files])
    return f"{paths}-{fingerprint([stamp(path) for path in files])}"


def same_files(one: str, other: str) -> bool:
    """Whether two keys of inputs are of the same files, changed or not."""
    return one.partition("-")[0] == other.partition("-")[0]


def fingerprint(value: object) -> str:
    """Tells a value, as JSON has it, from others."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def stamp(path: Path) -> list[int] | None:
    """A file's size and time; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
