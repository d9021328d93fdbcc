"""Lists of mixtures in files: CSV, TSV, JSON lines and Kaldi's scp."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli.errors import PairingError

COLUMNS = ("mixture", "reference", "references", "truth", "output", "id")
"""What a manifest may say of a mixture; other columns are ignored."""

SEPARATOR = ";"
"""Between several references in a CSV's cell."""


@dataclass(frozen=True)
class Entry:
    """A mixture as a folder or a manifest names it, not yet checked."""

    where: str
    """What a message names: the file, or the manifest's line."""
    mixture: Path
    id: str
    """Its name in reports and, with a suffix, in the output folder: "a/b"."""
    output: str = ""
    """Its output below the output folder, if that is not the id with a suffix."""
    references: tuple[Path, ...] = ()
    truth: Path | None = None


def read_manifest(path: Path, problems: list[str]) -> list[Entry]:
    """Read a manifest; paths in it start from its folder.

    CSV and TSV have their columns' names in the first line, JSON lines have them as keys; a
    line of an scp is an id and a mixture. What is wrong with a line goes to `problems`.

    Raises:
        PairingError: the file is not there, not text, of another suffix or without lines, or
            has no column of mixtures.
    """
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".scp": _scp}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PairingError(f"{path}: a manifest ends in {', '.join(readers)}. Rename it.")
    entries = []
    for number, row in reader(path, problems):
        where = f"{path} line {number}"
        wrong = _wrong(row)
        if wrong:
            problems.append(f"{where}: {wrong}")
        else:
            entries.append(_entry(path.parent, where, row))
    if not entries and not problems:
        raise PairingError(f"{path}: lists no mixtures.")
    return entries


def read_scp(path: Path, problems: list[str]) -> dict[str, Path]:
    """Read a Kaldi scp, an id and a file in each line, into files by id.

    Raises:
        PairingError: the file is not there or not text.
    """
    files: dict[str, Path] = {}
    for number, row in _scp(path, problems):
        if row["id"] in files:
            problems.append(f"{path} line {number}: {row['id']} is there twice. Drop one.")
        files[row["id"]] = path.parent / row["mixture"]
    return files


def _entry(folder: Path, where: str, row: dict[str, Any]) -> Entry:
    """One row's files, and its id: the one given, its output's name or its mixture's."""
    named = row.get("references") or row.get("reference") or ()
    clips = named.split(SEPARATOR) if isinstance(named, str) else named
    mixture = Path(row["mixture"])
    inside = not mixture.is_absolute() and ".." not in mixture.parts
    name = row.get("output") or (mixture.as_posix() if inside else mixture.name)
    truth = row.get("truth")
    return Entry(
        where=where,
        mixture=folder / mixture,
        id=row.get("id") or str(Path(name).with_suffix("")),
        output=row.get("output") or "",
        references=tuple(folder / clip.strip() for clip in clips if clip.strip()),
        truth=folder / truth if truth else None,
    )


def _wrong(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, if anything."""
    for column in COLUMNS:
        value = row.get(column)
        several = column.startswith("reference") and isinstance(value, list)
        texts: list[Any] = value if isinstance(value, list) and several else [value]
        for text in texts:
            if not isinstance(text, str if several else str | None):
                return f"{column} is {text!r}, not text."
            if text and not _can_be_a_name(text):
                return f"{column} {text!r} cannot be a file's name."
    return None if row.get("mixture") else "names no mixture."


def _can_be_a_name(text: str) -> bool:
    """Whether there can be files called so."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return bool(Path(text).name) and all(ord(letter) >= 32 for letter in text)


def _table(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV or TSV."""
    rows = csv.reader(
        io.StringIO(_text(path), newline=""),
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
    )
    try:
        columns = [name.strip() for name in next(rows, [])]
        if "mixture" not in columns:
            raise PairingError(
                f"{path}: has no column 'mixture' in its first line. Columns: {', '.join(COLUMNS)}."
            )
        for row in rows:
            if len(row) == len(columns):
                yield rows.line_num, dict(zip(columns, map(str.strip, row), strict=True))
            elif row:
                problems.append(
                    f"{path} line {rows.line_num}: has {len(row)} columns, not {len(columns)}."
                )
    except csv.Error as error:
        problems.append(f"{path} line {rows.line_num}: {error}.")


def _json_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path} line {number}: not JSON ({error}).")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.append(f'{path} line {number}: not an object like {{"mixture": "a.wav"}}.')


def _scp(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of an scp."""
    for number, line in enumerate(_lines(path), 1):
        words = line.split(maxsplit=1)
        if len(words) == 2 and not words[1].rstrip().endswith("|"):
            yield number, {"id": words[0], "mixture": words[1].strip()}
        elif len(words) == 2:
            problems.append(f"{path} line {number}: commands are not run. Save the sound first.")
        elif words:
            problems.append(f"{path} line {number}: needs an id and a file.")


def _lines(path: Path) -> list[str]:
    """A text file's lines; only a line feed ends one."""
    return [line.rstrip("\r") for line in _text(path).split("\n")]


def _text(path: Path) -> str:
    """A text file's content."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise PairingError(f"{path}: cannot be read ({reason}).") from error
