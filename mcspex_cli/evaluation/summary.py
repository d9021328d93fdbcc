"""What many scores say together: means and how sure they are, by group and against a baseline.

Rows are mappings: `scoring.Row.to_dict`, or any that have "name" and "status" and some of the
columns of METRICS. Only rows with the status "ok" are in means, or "done" in a batch without truth.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.metrics import BY_COLUMN, METRICS, Metric

if TYPE_CHECKING:
    from mcspex_cli.evaluation.cases import Groups

Rows = Sequence[Mapping[str, Any]]

COUNTED = ("ok", "done")
"""The statuses of rows that are in means, see `scored`."""

FORMAT = 1

RESAMPLES, SEED = 2000, 0

_BLOCK = 2**20


@dataclass(frozen=True)
class Distribution:
    """One metric over several files; the 95 % interval is None for a single value."""

    count: int
    mean: float
    low: float | None
    high: float | None
    median: float


@dataclass(frozen=True)
class Summary:
    """Many rows in numbers; everything but `files` and `statuses` is of those in `COUNTED`."""

    files: int
    scored: int
    statuses: dict[str, int]
    confused: int | None
    """Rows in which the wrong talker was extracted, None where no row can tell."""
    missing_estimates: int
    metrics: dict[str, Distribution]
    """By column, those with a value."""


@dataclass(frozen=True)
class Baseline:
    """The rows of an earlier report."""

    path: Path
    rows: Rows


@dataclass(frozen=True)
class Change:
    """What has changed since a baseline, over the cases that are "ok" in both."""

    path: str
    both: int
    only_here: int
    only_there: int
    metrics: dict[str, Distribution]
    """Of the differences, by column."""
    differences: list[dict[str, Any]]
    """For each case its name and, by column, how much has been gained."""


@dataclass(frozen=True)
class Report:
    """Everything that is known of some rows."""

    summary: Summary
    groups: dict[str, Summary]
    worst: list[str]
    baseline: Change | None
    rows: Rows

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "format": FORMAT,
            "summary": asdict(self.summary),
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "worst": self.worst,
            "baseline": asdict(self.baseline) if self.baseline else None,
            "scores": list(self.rows),
        }


def report(
    rows: Rows,
    missing: Sequence[str] = (),
    groups: Groups | None = None,
    baseline: Baseline | None = None,
) -> Report:
    """Put everything that is known of rows into one report, other columns than METRICS' too.

    `missing` are the names of truths without an estimate; `groups` add "group" to every row.

    Raises:
        PairingError: the baseline has none of the cases.
    """
    # JSON has no numbers that are not finite.
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
    parts: dict[str, Summary] = {}
    if groups:
        rows = [{**row, "group": groups.of(row["name"])} for row in rows]
        absent = [groups.of(name) for name in missing]
        for group in sorted({*(row["group"] for row in rows), *absent}):
            members = [row for row in rows if row["group"] == group]
            parts[group] = summarise(members, absent.count(group))
    return Report(
        summarise(rows, len(missing)),
        parts,
        worst(rows),
        compare(rows, baseline) if baseline else None,
        rows,
    )


def summarise(rows: Rows, missing_estimates: int = 0) -> Summary:
    """Count and average rows."""
    ok = scored(rows)
    verdicts = [row["confused"] for row in ok if row.get("confused") is not None]
    values = {column: numbers(ok, column) for column in BY_COLUMN}
    return Summary(
        files=len(rows),
        scored=len(ok),
        statuses=dict(Counter(str(row["status"]) for row in rows).most_common()),
        confused=sum(verdicts) if verdicts else None,
        missing_estimates=missing_estimates,
        metrics={column: distribution(of) for column, of in values.items() if of},
    )


def scored(rows: Rows) -> Rows:
    """The rows that count in means: those "ok", or "done" where no row has scores of a truth."""
    by_status = [[row for row in rows if row["status"] == status] for status in COUNTED]
    return next(filter(None, by_status), [])


def numbers(rows: Rows, column: str) -> list[float]:
    """The values that a column has."""
    return [row[column] for row in rows if row.get(column) is not None]


def distribution(values: Sequence[float]) -> Distribution:
    """Mean, its interval and the median of at least one value."""
    low, high = interval(values)
    return Distribution(len(values), float(np.mean(values)), low, high, float(np.median(values)))


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean's 95 % bootstrap interval (percentiles), the same for the same values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if len(values) < 2:
        return None, None
    array, rng = np.asarray(values, np.float64), np.random.default_rng(SEED)
    step = max(1, _BLOCK // len(array))
    means = [
        array[rng.integers(len(array), size=(min(step, RESAMPLES - start), len(array)))].mean(1)
        for start in range(0, RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def worst(rows: Rows, count: int = 10) -> list[str]:
    """Names of the worst rows, the very worst first, by `ranking`."""
    metric = ranking(rows)
    if metric is None:
        return []
    values = {row["name"]: row.get(metric.column) for row in scored(rows)}
    ranked = {name: metric.badness * value for name, value in values.items() if value is not None}
    return sorted(ranked, key=lambda name: -ranked[name])[:count]


def ranking(rows: Rows) -> Metric | None:
    """The metric that ranks rows: SI-SDRi, else the first of METRICS that can and has a value."""
    ok = scored(rows)
    able = [metric for metric in METRICS.values() if metric.badness]
    return next((m for m in (METRICS["si_sdr_i"], *able) if numbers(ok, m.column)), None)


def read_baseline(path: Path) -> Baseline:
    """Read what `score -o report.json` or `batch` wrote.

    Raises:
        AudioError: there is no such file.
        ConfigError: it is not a report, or of another version.
    """
    advice = "Make one with: mcspex score ... -o report.json"
    files.check_exists(path)
    rows = read_rows(path, advice)
    if rows is None:
        raise ConfigError(f"{path}: is not a report of mcspex. {advice}")
    if not all(map(is_row, rows)):
        raise ConfigError(f"{path}: its scores are damaged. {advice}")
    return Baseline(path, rows)


def read_rows(path: Path, advice: str) -> list[dict[str, Any]] | None:
    """The rows of a report in JSON; None if it is JSON of something else.

    Raises:
        ConfigError: it is damaged or of another version; `advice` says what to do.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}). {advice}") from error
    if not isinstance(document, dict) or "format" not in document:
        return None
    if document["format"] != FORMAT:
        raise ConfigError(
            f"{path}: is a report in format {document['format']}, but this version of mcspex reads "
            f"format {FORMAT}. {advice}"
        )
    rows = document.get("scores")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: its scores are damaged. {advice}")
    return rows


def compare(rows: Rows, baseline: Baseline) -> Change:
    """What has changed since a baseline: differences by case, their means and intervals.

    An interval is over the differences of the same cases (a paired bootstrap).

    Raises:
        PairingError: no case is in both.
    """
    here, there = ({row["name"]: row for row in scored(of)} for of in (rows, baseline.rows))
    both = [name for name in here if name in there]
    if here and not both:
        raise PairingError(
            f"{baseline.path}: has none of these cases. Is it a report of this test set?"
        )
    gains = {
        column: {
            name: here[name][column] - there[name][column]
            for name in both
            if here[name].get(column) is not None and there[name].get(column) is not None
        }
        for column in BY_COLUMN
    }
    gains = {column: by_name for column, by_name in gains.items() if by_name}
    return Change(
        str(baseline.path),
        both=len(both),
        only_here=len(here) - len(both),
        only_there=len(there) - len(both),
        metrics={column: distribution([*by_name.values()]) for column, by_name in gains.items()},
        differences=[
            {"name": name, **{c: by_name[name] for c, by_name in gains.items() if name in by_name}}
            for name in both
        ],
    )


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row of a report has a name, a status, and finite numbers or None for scores."""
    named = isinstance(row.get("name"), str) and isinstance(row.get("status"), str)
    values = [row[key] for key in (*BY_COLUMN, "input_si_sdr_db") if row.get(key) is not None]
    return named and all(type(value) in (int, float) and math.isfinite(value) for value in values)
