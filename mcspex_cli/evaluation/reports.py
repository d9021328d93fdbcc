"""One document of everything that scoring found, and its forms: JSON, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mcspex_cli import files
from mcspex_cli.errors import OutputError, PairingError
from mcspex_cli.evaluation.baselines import FORMAT, Baseline, compare
from mcspex_cli.evaluation.groups import Groups
from mcspex_cli.evaluation.statistics import Row, summarise, worst
from mcspex_cli.evaluation.tables import LABELS, Document, Table, cell, confusion, remarks, tables

FORMATS = {".json": "json", ".csv": "csv", ".md": "markdown"}
"""A file's format by its suffix."""

_ORDER = ("name", "group", *LABELS, "input_si_sdr_db", "confused", "status", "note")


def build(
    rows: Sequence[Row],
    missing: Sequence[str] = (),
    groups: Groups | None = None,
    baseline: Baseline | None = None,
) -> Document:
    """Put everything that is known of rows into one document.

    Args:
        rows: each a `Score` as a dict, or more: other columns are kept. Only rows with the
            status "ok" are in means.
        missing: names of the truths without an estimate.
        groups: adds "group" to every row, and a summary for each group.
        baseline: adds what has changed since.

    Returns:
        "format", "summary", "groups" (summary by name), "worst" (names), "baseline" (`compare`,
        or None) and "scores" (the rows).

    Raises:
        PairingError: the baseline has none of the cases.
    """
    kept = [{key: _finite(value) for key, value in row.items()} for row in rows]
    parts: dict[str, Any] = {}
    if groups:
        kept = [{**row, "group": groups.of(row["name"])} for row in kept]
        absent = [groups.of(name) for name in missing]
        for group in sorted({*(row["group"] for row in kept), *absent}):
            members = [row for row in kept if row["group"] == group]
            parts[group] = asdict(summarise(members, absent.count(group)))
    return {
        "format": FORMAT,
        "summary": asdict(summarise(kept, len(missing))),
        "groups": parts,
        "worst": worst(kept),
        "baseline": compare(kept, baseline) if baseline else None,
        "scores": kept,
    }


def document_text(document: Document, form: str) -> str:
    """A document as "json", "csv" (the rows alone) or "markdown"."""
    if form == "json":
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    if form == "csv":
        return _csv(document["scores"])
    parts = []
    for table in tables(document, every=True):
        parts += [f"## {table.title}\n\n" if table.title else "", _markdown(table), "\n"]
    parts += [f"- {line}\n" for line in [*remarks(document), confusion(document)] if line]
    return "".join(parts)


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Refuse files for documents before there is one.

    Raises:
        OutputError: a suffix names no format, or a file would replace an input or a folder.
    """
    taken = [path.resolve() for path in inputs if path]
    for path in outputs:
        if path.suffix.lower() not in FORMATS:
            raise OutputError(f"{path}: unknown format. End the name in {', '.join(FORMATS)}.")
        if path.is_dir() or path.resolve() in taken:
            raise OutputError(f"{path}: is an input or a folder. Choose another name.")


def write(path: Path, document: Document) -> None:
    """Write a document, in the format of the file's suffix, whole or not at all.

    Raises:
        OutputError: the place is not writable.
    """
    text = document_text(document, FORMATS[path.suffix.lower()])
    files.make_folders(path.parent)
    with files.whole(path) as partial:
        # A file name that is no UTF-8 comes out as the bytes it is.
        partial.write_bytes(text.encode("utf-8", "surrogateescape"))


def shortfalls(document: Document, limits: Mapping[str, float]) -> list[str]:
    """Which means are under their limit.

    Args:
        document: as `build` makes it.
        limits: the lowest mean allowed, by column.

    Raises:
        PairingError: a column has no mean.
    """
    found = document["summary"]["metrics"]
    for column in limits:
        if column not in found:
            raise PairingError(f"--fail-under {column}: no file has a value. See the warnings.")
    means = {column: float(found[column]["mean"]) for column in limits}
    return [
        f"mean {LABELS[column]} {cell(column, mean)} is under {limits[column]:g}"
        for column, mean in means.items()
        if mean < limits[column]
    ]


def _csv(rows: Sequence[Row]) -> str:
    """Rows as CSV: known columns first, those without any value left out."""
    seen = dict.fromkeys(key for row in rows for key in row)
    ordered = [key for key in _ORDER if key in seen] + [key for key in seen if key not in _ORDER]
    columns = [key for key in ordered if any(row.get(key) not in (None, "") for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A CSV cell: lists and truth values as JSON has them."""
    return json.dumps(value) if isinstance(value, bool | list | tuple | dict) else value


def _markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.headings, ("---", *["---:"] * (len(table.headings) - 1)), *table.rows]
    lines += [tuple(f"**{c}**" if c else "" for c in table.footer)] if table.footer else []
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |\n" for row in lines)


def _finite(value: Any) -> Any:
    """A value as JSON can hold it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
