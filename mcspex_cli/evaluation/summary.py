"""What many scores say together: means with intervals, ranks, groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mcspex_cli import files
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.metrics import BY_COLUMN, METRICS, Metric
from mcspex_cli.evaluation.scoring import Status, case_name

Rows = Sequence[Mapping[str, Any]]
"""The rows of a report, by column. All have "name", "status", and some of these, or None there:

- `scoring.Score.to_dict`: "note", a value for each of `metrics.BY_COLUMN`, "confused", "flipped",
  "cut", "damaged";
- from a batch: the result (`extraction.job.Result.to_dict`, which also measures some of these
  values), "mixture", "references", "span", "truth", "estimate", "residual" and "activity";
- with groups: "group".
"""

RESAMPLES, SEED = 2000, 0

_BLOCK = 2**20
"""Values drawn at once: all resamples of many rows would not fit into memory."""

NO_GROUP = "(none)"
"""The group of a case that the groups' file does not name."""


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
    """Many rows in numbers."""

    files: int
    scored: int
    """Rows that are in the means (`in_means`)."""
    statuses: dict[str, int]
    """How many rows have each status."""
    confused: int | None
    """Of those in the means, rows with target confusion; None where no row can say."""
    missing_estimates: int
    """Truths that have no estimate, and so no row."""
    metrics: dict[str, Distribution]
    """By column, those with a value."""


def summarise(rows: Rows, missing_estimates: int = 0) -> Summary:
    """Count and average rows."""
    ok = in_means(rows)
    verdicts = [row["confused"] for row in ok if row.get("confused") is not None]
    return Summary(
        files=len(rows),
        scored=len(ok),
        statuses=dict(Counter(str(row["status"]) for row in rows).most_common()),
        confused=sum(verdicts) if verdicts else None,
        missing_estimates=missing_estimates,
        metrics=distributions(ok),
    )


def in_means(rows: Rows) -> Rows:
    """The rows that count in means: those "ok" or, if there is none, those that have no truth."""
    status = status_in_means(rows)
    return [row for row in rows if row["status"] == status]


def status_in_means(rows: Rows) -> str:
    """The status of the rows that count in means."""
    is_scored = any(row["status"] == Status.OK for row in rows)
    return Status.OK if is_scored else Status.UNSCORED


def numbers(rows: Rows, column: str) -> list[float]:
    """The values that a column has."""
    return [row[column] for row in rows if row.get(column) is not None]


def distributions(rows: Rows) -> dict[str, Distribution]:
    """By column, those that have a value in a row."""
    values = {column: numbers(rows, column) for column in BY_COLUMN}
    return {column: distribution(several) for column, several in values.items() if several}


def distribution(values: Sequence[float]) -> Distribution:
    """The mean of at least one value, its 95 % bootstrap interval (percentiles), and the median.

    The interval is the same for the same values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    array, low, high = np.asarray(values, np.float64), None, None
    if len(array) > 1:
        rng, step = np.random.default_rng(SEED), max(1, _BLOCK // len(array))
        means = [
            array[rng.integers(len(array), size=(min(step, RESAMPLES - start), len(array)))].mean(1)
            for start in range(0, RESAMPLES, step)
        ]
        low, high = map(float, np.percentile(np.concatenate(means), [2.5, 97.5]))
    return Distribution(len(array), float(array.mean()), low, high, float(np.median(array)))


def worst(rows: Rows) -> list[str]:
    """Names of the ten worst rows, the very worst first, by `ranking`."""
    metric = ranking(rows)
    if metric is None:
        return []
    values = {row["name"]: row.get(metric.column) for row in in_means(rows)}
    ranked = {name: metric.badness * value for name, value in values.items() if value is not None}
    return sorted(ranked, key=lambda name: -ranked[name])[:10]


def ranking(rows: Rows) -> Metric | None:
    """The metric that ranks rows: SI-SDRi, else the first of METRICS that can and has a value."""
    ok = in_means(rows)
    able = [metric for metric in METRICS.values() if metric.badness]
    return next((m for m in (METRICS["si_sdr_i"], *able) if numbers(ok, m.column)), None)


@dataclass(frozen=True)
class Groups:
    """Which group each case belongs to."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    """What a page calls a case, from the column `title`, where there is one."""

    @cached_property
    def by_file(self) -> dict[str, str]:
        """The same by the last part of the name, where all cases of that name are in one group."""
        groups: dict[str, set[str]] = {}
        for name, group in self.by_name.items():
            groups.setdefault(PurePath(name).name, set()).add(group)
        return {file: several.pop() for file, several in groups.items() if len(several) == 1}

    def of(self, name: str) -> str:
        """A case's group; "x/a.wav" of the groups' file is also the case "a", and "a" is "x/a"."""
        name = case_name(name)
        if name in self.by_name:
            return self.by_name[name]
        last = PurePath(name).name
        # But "x/a" and "y/a" are two cases.
        return (self.by_name if last != name else self.by_file).get(last, NO_GROUP)


def read_groups(path: Path, column: str | None = None) -> Groups:
    """Read a CSV with a column `id` or `name`, and the groups in `column`.

    Without a `column`, the groups are in `group`, or in the only other one.

    Raises:
        ConfigError: it cannot be read, a case is in two groups, or a column is not clear.
    """
    files.check_exists(path)
    columns, rows = files.parse_csv(path, files.read_text(path), _is_case)
    key = next(filter(_is_case, columns), None)
    others = [name for name in columns if name != key]
    listed = ", ".join(others) or "none"
    if key is None:
        raise ConfigError(f"{path}: has no column id or name. Its columns: {listed}.")
    if not others:
        raise ConfigError(f"{path}: has no column but {key}. Add one with the groups.")
    if column is None:
        column = "group" if "group" in others else others[0] if len(others) == 1 else None
    if column not in others:
        problem = (
            f"has no column {column}" if column else "does not say which column has the groups"
        )
        raise ConfigError(f"{path}: {problem}. Name one with --group-by: {listed}.")
    for name in (key, column):
        if columns.count(name) > 1:
            raise ConfigError(f"{path}: has two columns {name}. Remove one.")
    by_name: dict[str, str] = {}
    titles = {}
    for number, cells in rows:
        if isinstance(cells, str):
            raise ConfigError(f"{path} line {number}: {cells}")
        row = dict(zip(columns, cells, strict=True))
        name, group = case_name(row[key]), row[column]
        if group and by_name.setdefault(name, group) != group:
            raise ConfigError(f"{path}: {name} is in two groups. Remove one of its lines.")
        if row.get("title"):
            titles[name] = row["title"]
    return Groups(by_name, titles)


def _is_case(heading: str) -> bool:
    return heading.lower() in ("id", "name")
