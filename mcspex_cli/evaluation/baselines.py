"""An earlier report, and what has changed since."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.metrics import COLUMNS
from mcspex_cli.evaluation.statistics import Row, differences, distribution, scored

FORMAT = 1
"""The version of a report's layout."""

_ADVICE = "Make one with mcspex score ... -o report.json."


@dataclass(frozen=True)
class Baseline:
    """The rows of an earlier report, and where they are from."""

    path: Path
    rows: tuple[Row, ...]


def read_baseline(path: Path) -> Baseline:
    """Read what `score --json` or `batch` wrote.

    Raises:
        AudioError: there is no such file.
        ConfigError: it is no report, or of another version.
    """
    files.check_exists(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}). {_ADVICE}") from error
    if not isinstance(document, dict) or "format" not in document:
        raise ConfigError(f"{path}: is no report of mcspex. {_ADVICE}")
    if document["format"] != FORMAT:
        raise ConfigError(
            f"{path}: a report in format {document['format']}, this version reads {FORMAT}. "
            "Score the baseline again."
        )
    rows = document.get("scores")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ConfigError(f"{path}: its scores are damaged. {_ADVICE}")
    return Baseline(path, tuple(rows))


def compare(rows: Sequence[Row], baseline: Baseline) -> dict[str, Any]:
    """What a report says of a baseline: differences by case, and their means with intervals.

    Only cases count that are "ok" in both. An interval is over the differences of the same
    cases (a paired bootstrap), so it is narrow where both have the same hard ones.

    Raises:
        PairingError: no case is in both.
    """
    here = {row["name"] for row in scored(rows)}
    there = {row["name"] for row in scored(baseline.rows)}
    if here and not here & there:
        raise PairingError(f"{baseline.path}: has none of these cases. Is it of this test set?")
    changes = {c: differences(rows, baseline.rows, c) for c in COLUMNS.values()}
    changes = {column: found for column, found in changes.items() if found}
    return {
        "path": str(baseline.path),
        "both": len(here & there),
        "only_here": len(here - there),
        "only_there": len(there - here),
        "metrics": {c: asdict(distribution([*d.values()])) for c, d in changes.items()},
        "differences": [
            {"name": name, **{c: d[name] for c, d in changes.items() if name in d}}
            for name in (row["name"] for row in rows)
            if name in here & there
        ],
    }


def _is_row(row: object) -> bool:
    """Whether a row of a report has a name, a status, and nothing but numbers for metrics."""
    if not isinstance(row, dict):
        return False
    named = isinstance(row.get("name"), str) and isinstance(row.get("status"), str)
    return named and all(_is_number(row.get(column)) for column in COLUMNS.values())


def _is_number(value: object) -> bool:
    """Whether a value is a finite number, or none."""
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
