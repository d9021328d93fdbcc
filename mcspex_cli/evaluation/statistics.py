"""Means over rows and how sure they are: pure functions of rows, which are plain dicts.

A row is a `Score` as a dict, or any dict with its "name" and "status" and some of its columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcspex_cli.evaluation.metrics import COLUMNS

Row = Mapping[str, Any]

RESAMPLES = 2000
"""Bootstrap samples behind an interval."""

SEED = 0

_BLOCK = 2**20
"""Draws held in memory at once."""


@dataclass(frozen=True)
class Distribution:
    """What is known of one metric; the interval is None for a single value."""

    count: int
    mean: float
    low: float | None
    high: float | None
    median: float


@dataclass(frozen=True)
class Summary:
    """What is known of many rows; everything but `files` and `statuses` is over those "ok"."""

    files: int
    scored: int
    statuses: dict[str, int]
    confused: int | None
    """Rows in which the wrong talker was followed, None where no row can say."""
    missing_estimates: int
    """Truths for which there is no estimate."""
    metrics: dict[str, Distribution]


def summarise(rows: Sequence[Row], missing_estimates: int = 0) -> Summary:
    """Count and average rows."""
    fine = scored(rows)
    judged = [row["confused"] for row in fine if row.get("confused") is not None]
    values = {column: numbers(fine, column) for column in COLUMNS.values()}
    return Summary(
        files=len(rows),
        scored=len(fine),
        statuses=dict(Counter(str(row["status"]) for row in rows).most_common()),
        confused=sum(judged) if judged else None,
        missing_estimates=missing_estimates,
        metrics={column: distribution(found) for column, found in values.items() if found},
    )


def scored(rows: Sequence[Row]) -> list[Row]:
    """The rows that count."""
    return [row for row in rows if row["status"] == "ok"]


def numbers(rows: Sequence[Row], column: str) -> list[float]:
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


def differences(rows: Sequence[Row], before: Sequence[Row], column: str) -> dict[str, float]:
    """By name, how much more a column has in `rows` than `before`, where both have a value."""
    past = {row["name"]: row[column] for row in scored(before) if row.get(column) is not None}
    return {
        row["name"]: row[column] - past[row["name"]]
        for row in scored(rows)
        if row.get(column) is not None and row["name"] in past
    }


def worst(rows: Sequence[Row], count: int = 10) -> list[str]:
    """Names of the lowest rows, lowest first (`ranked_by`)."""
    column = ranked_by(scored(rows)) or ""
    found = [row for row in scored(rows) if row.get(column) is not None]
    return [row["name"] for row in sorted(found, key=lambda row: float(row[column]))[:count]]


def ranked_by(rows: Sequence[Row]) -> str | None:
    """The column that says which row is worst: SI-SDRi, else SI-SDR, else any."""
    columns = ("si_sdr_i_db", *COLUMNS.values())
    return next((column for column in columns if numbers(rows, column)), None)
