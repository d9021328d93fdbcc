"""The scripts in benchmarks/, at sizes that take seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import against_reference, long_files
from benchmarks.against_reference import Ours, Theirs, prepare
from tests.checkpoint.published import Sizes
from tests.checkpoint.test_convert import SMALL


def some(folder: Path, sizes: Sizes) -> dict[str, Theirs | Ours]:
    """Not all contestants: each takes seconds to start."""
    return {name: c for name, c in prepare(folder, sizes).items() if "bfloat16" not in name}


def test_ours_is_compared_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["against_reference", "--seconds", "1", "--rounds", "1", "--threads", "1", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(against_reference, "prepare", some)
    monkeypatch.setattr(against_reference, "REST_S", 0.0)
    against_reference.main(SMALL)
    said = capsys.readouterr().out
    rows = json.loads(said)["rows"]
    assert [row["name"] for row in rows][:2] == [against_reference.REFERENCE, "SpEx+ base, float32"]
    assert rows[0]["ratio"] == rows[0]["ratio_min"] == rows[0]["ratio_max"] == 1
    for row in rows:
        assert row["real_time_factor"] > 0
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert rows[1]["si_sdr_db"] > 60  # the same is computed
    assert [row["si_sdr_db"] is None for row in rows] == [True, False, True]
    against_reference.show(rows)
    assert capsys.readouterr().out.count("\n") == 4


def test_long_files_are_compared_with_short_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exported: object
) -> None:
    words = ["long_files", "--minutes", "0.05", "0.1", "--model", str(exported)]
    monkeypatch.setattr(sys, "argv", words)
    long_files.main()
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["0.05", "min"]
    assert first.split()[3] == first.split()[6] == "1.00"
    assert 0.5 < float(second.split()[6]) < 2
