"""Lists of mixtures: CSV, TSV, JSON lines and Kaldi's scp.

```
mixture,reference,truth,id              a CSV, whose first line names its columns
mix/1.wav,refs/ann.wav,truth/1.wav,1
mix/2.wav,refs/bob.wav;refs/bob2.wav,,2
```

Paths in a manifest start from its folder.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli.batch.storage import read, url
from mcspex_cli.errors import PairingError

AUDIO, RESIDUAL, ACTIVITY = "audio", "residual", "activity"
"""The folders in a batch's output folder, by what is in them."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "mixture": ("mix", "mixtures", "mixture_path", "noisy"),
    "reference": ("ref", "enrollment", "enrolment", "enroll", "enrollment_path", "reference_path"),
    "references": ("refs", "enrollments", "enrolments"),
    "span": ("spans", "ref_span"),
    "truth": ("target", "target_path", "clean"),
    "output": ("estimate", "out"),
    "residual": (),
    "activity": (),
    "id": ("name", "mixture_id", "key", "utt", "utterance"),
}
"""What a manifest may say of a mixture, and the names that other programs have for it."""

SEPARATOR = ";"
"""Between several references, or spans, in one cell."""

_HEADINGS = {name: column for column, others in COLUMNS.items() for name in (column, *others)}

NOT_USED = "reason"
"""A column that is not used and needs no warning: `failed.jsonl` has it."""

Row = tuple[int, dict[str, Any]]
"""A line's number, and its values by column."""

_LISTS = ("reference", "references", "span")


@dataclass(frozen=True, slots=True)
class Task:
    """One mixture and all that belongs to it; paths are text, since a plan may have 100,000."""

    id: str
    """Its name in reports and, with a suffix, in the output folder: "a/b"."""
    mixture: str
    references: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    """Spans of the mixture that are the reference, or part of it: "0:12-0:18.5"."""
    truth: str | None = None
    output: str = ""
    """The estimate's name below `audio/`; empty until it is planned, if it is the id's."""
    residual: str = ""
    """The residual's name below `residual/`, if one is to be written."""
    activity: str = ""
    """The name, below `activity/`, of the file that says when the voice speaks."""
    line: int = 0
    """The manifest's line; 0 if it is from no manifest."""
    seconds: float | None = None
    """The mixture's length; None if it is not known."""
    inputs: str = ""
    """Tells the mixture and references as they are now from others (`journal.same_files`)."""


def outputs(folder: Path, task: Task) -> dict[str, Path]:
    """The files that a task writes below a batch's `folder`, by the folder that they are in."""
    names = {AUDIO: task.output, RESIDUAL: task.residual, ACTIVITY: task.activity}
    return {kind: folder / kind / name for kind, name in names.items() if name}


def read_manifest(path: Path, problems: list[str], warnings: list[str]) -> list[Task]:
    """Read a manifest in the format of its suffix.

    CSV and TSV have their columns' names in the first line, JSON lines have them as keys; a
    line of an scp is an id and a mixture. Headings are understood in any case; a CSV may be
    separated by semicolons or tabs. `problems` gets a line for each row that cannot be used,
    `warnings` the columns that are not used.

    Raises:
        PairingError: the file is not there, not text, of another suffix or without lines, or
            has no column of mixtures.
    """
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".scp": _scp}
    unknown: dict[str, None] = {}
    if path.suffix.lower() not in readers:
        raise PairingError(f"{path}: a manifest's name ends in {', '.join(readers)}. Rename it.")
    rows = readers[path.suffix.lower()](path, problems, unknown)
    tasks, shared = [], dict[str, str]()
    for line, row in rows:
        if reason := _problem(row):
            problems.append(f"{path} line {line}: {reason}")
        else:
            tasks.append(_task(path.parent, line, row, shared))
    if not tasks and not problems:
        raise PairingError(f"{path}: lists no mixtures.")
    if unknown:
        names = ", ".join(map(repr, unknown))
        warnings.append(f"{path}: {names} is not used. The columns are {', '.join(COLUMNS)}.")
    return tasks


def read_scp(path: Path, problems: list[str]) -> dict[str, str]:
    """Read a Kaldi scp, an id and a file in each line, into files by id.

    Raises:
        PairingError: the file is not there or not text.
    """
    files: dict[str, str] = {}
    for line, row in _scp(path, problems, {}):
        if row["id"] in files:
            problems.append(f"{path} line {line}: {row['id']} is there twice. Remove one line.")
        mixture = row["mixture"]
        files[row["id"]] = str(Path(mixture) if url(mixture) else path.parent / mixture)
    return files


def _task(folder: Path, line: int, row: dict[str, Any], shared: dict[str, str]) -> Task:
    """A row's files, and its id: the one given, its output's name or its mixture's.

    `shared` has one copy of each reference's path, which many rows may name.
    """
    root = "" if folder == Path() else f"{folder}{os.sep}"

    def place(text: str) -> str:
        if url(text):
            return str(Path(text))
        return text if os.path.isabs(text) else root + text  # noqa: PTH117

    references = _several(row.get("references") or row.get("reference"))
    clips = tuple(shared.setdefault(name, name) for name in map(place, references))
    mixture, truth = row["mixture"], row.get("truth")
    inside = not url(mixture) and not os.path.isabs(mixture) and ".." not in mixture.split("/")  # noqa: PTH117
    name = row.get("output") or (mixture if inside else os.path.basename(mixture))  # noqa: PTH119
    return Task(
        id=row.get("id") or os.path.splitext(os.path.normpath(name))[0],  # noqa: PTH122
        mixture=place(mixture),
        references=clips,
        spans=_several(row.get("span")),
        truth=place(truth) if truth else None,
        output=row.get("output") or "",
        residual=row.get("residual") or "",
        activity=row.get("activity") or "",
        line=line,
    )


def _several(value: str | Sequence[str] | None) -> tuple[str, ...]:
    parts = value.split(SEPARATOR) if isinstance(value, str) else value or ()
    return tuple(part.strip() for part in parts if part.strip())


def _problem(row: dict[str, Any]) -> str | None:
    for column, value in row.items():
        texts = value if column in _LISTS and isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str) and (text is not None or texts is value):
                return f"{column} is {text!r}, not text."
            if text and not _can_be_a_name(text):
                return f"{column} {text!r} cannot be a file's name."
    return None if row.get("mixture") else "names no mixture."


def _can_be_a_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return text.strip("/") not in ("", ".") and min(text) >= " "


def _columns(path: Path, headings: Sequence[str], unknown: dict[str, None]) -> list[str]:
    """The columns that headings name, "" for one that is not used, which goes to `unknown`.

    Raises:
        PairingError: two headings name one column.
    """
    columns = [_HEADINGS.get(heading.strip().lower(), "") for heading in headings]
    first: dict[str, str] = {}
    for column, heading in zip(columns, headings, strict=True):
        if column and column in first:
            both = f"{first[column]!r} and {heading!r}"
            raise PairingError(f"{path}: {both} both name the {column}. Remove one.")
        first[column] = heading
        if not column and heading.strip().lower() != NOT_USED:
            unknown[heading.strip()] = None
    return columns


def _table(path: Path, problems: list[str], unknown: dict[str, None]) -> Iterator[Row]:
    text = _text(path)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for delimiter in (usual, *",;\t".replace(usual, "")):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        headings = next(rows, [])
        if any(_HEADINGS.get(heading.strip().lower()) == "mixture" for heading in headings):
            break
    else:
        first = text.partition("\n")[0].strip()
        raise PairingError(
            f"{path}: has no column 'mixture' in its first line, which is {first[:80]!r}. "
            f"The columns are {', '.join(COLUMNS)}."
        )
    columns = _columns(path, headings, unknown)
    try:
        for row in rows:
            if len(row) == len(columns):
                pairs = zip(columns, row, strict=True)
                yield rows.line_num, {column: cell.strip() for column, cell in pairs if column}
            elif row:
                problems.append(
                    f"{path} line {rows.line_num}: has {len(row)} columns, not {len(columns)}."
                )
    except csv.Error as error:
        problems.append(f"{path} line {rows.line_num}: {error}.")


def _json_lines(path: Path, problems: list[str], unknown: dict[str, None]) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path} line {number}: not JSON ({error}).")
            continue
        if not isinstance(row, dict):
            problems.append(f'{path} line {number}: not an object like {{"mixture": "a.wav"}}.')
            continue
        columns = _columns(path, list(row), unknown)
        values = zip(columns, row.values(), strict=True)
        yield number, {column: value for column, value in values if column}


def _scp(path: Path, problems: list[str], _: dict[str, None]) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        words = line.split(maxsplit=1)
        if len(words) == 2 and not words[1].rstrip().endswith("|"):
            yield number, {"id": words[0], "mixture": words[1].strip()}
        elif len(words) == 2:
            problems.append(
                f"{path} line {number}: is a command, which is not run. Write its sound to a file "
                "and name that."
            )
        elif words:
            problems.append(f"{path} line {number}: needs an id and a file.")


def _text(path: Path) -> str:
    try:
        return read(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise PairingError(f"{path}: cannot be read ({reason}).") from error
