"""Means, intervals and ranks of rows."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from mcspex_cli.evaluation import statistics


def row(name: str, si_sdr_db: float | None, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {"name": name, "status": status, "si_sdr_db": si_sdr_db, **more}


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = statistics.interval(list(rng.normal(5, 2, 60)))
        assert low is not None
        assert high is not None
        covered += low <= 5 <= high
    assert 88 <= covered <= 99


def test_an_interval_is_as_wide_as_the_normal_law_says_and_always_the_same() -> None:
    values = list(np.random.default_rng(2).normal(0, 3, 1000))
    low, high = statistics.interval(values)
    width = 2 * 1.96 * np.std(values) / np.sqrt(1000)
    assert high - low == pytest.approx(width, rel=0.08)  # type: ignore[operator]
    assert statistics.interval(values) == (low, high)


def test_one_value_has_no_interval_and_equal_ones_an_empty_one() -> None:
    assert statistics.interval([3.0]) == (None, None)
    assert statistics.interval([3.0] * 5) == (3.0, 3.0)
    assert statistics.distribution([3.0]) == statistics.Distribution(1, 3.0, None, None, 3.0)


def test_memory_does_not_grow_with_rows_times_resamples() -> None:
    values = list(np.random.default_rng(3).normal(0, 1, 10_000))
    tracemalloc.start()
    statistics.interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20  # all draws at once would be 160 MB and more


def test_only_ok_rows_are_in_the_means_and_all_are_counted() -> None:
    rows = [
        row("a", 1.0, confused=True),
        row("b", 4.0, confused=False),
        row("c", 99.0, "sign flipped", confused=True),
        row("d", None, "unreadable"),
        {"name": "e", "status": "failed", "note": "out of memory"},
    ]
    found = statistics.summarise(rows, missing_estimates=2)
    assert (found.files, found.scored, found.confused, found.missing_estimates) == (5, 2, 1, 2)
    assert found.statuses == {"ok": 2, "sign flipped": 1, "unreadable": 1, "failed": 1}
    assert list(found.metrics) == ["si_sdr_db"]
    mean = found.metrics["si_sdr_db"]
    assert (mean.count, mean.mean, mean.median) == (2, 2.5, 2.5)


def test_nothing_is_known_of_nothing() -> None:
    assert statistics.summarise([]) == statistics.Summary(0, 0, {}, None, 0, {})
    assert statistics.worst([]) == []


def test_the_worst_are_by_improvement_if_there_is_one() -> None:
    rows = [row(f"r{n:02d}", float(n)) for n in range(20)]
    assert statistics.worst(rows) == [f"r{n:02d}" for n in range(10)]
    rows.append(row("gain", 50.0, si_sdr_i_db=-3.0))
    rows.append(row("flipped", 50.0, "sign flipped", si_sdr_i_db=-9.0))
    assert statistics.worst(rows) == ["gain"]
    assert statistics.worst([row("a", None, stoi=0.5), row("b", None, stoi=0.1)]) == ["b", "a"]


def test_differences_are_of_rows_that_are_ok_in_both() -> None:
    before = [row("a", 1.0), row("b", 2.0, "exact"), row("c", 0.0), row("x", 5.0)]
    now = [row("a", 4.0), row("b", 2.0), row("c", 9.0, "unreadable"), row("y", 5.0)]
    assert statistics.differences(now, before, "si_sdr_db") == {"a": 3.0}
    assert statistics.differences(now, before, "pesq") == {}
