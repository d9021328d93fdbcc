"""Work dealt out: whole, evenly, always alike; and only equals share batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.shares import WINDOW_S, BatchSettings, Unit, shares, units


def jobs(*seconds: float | None) -> list[Job]:
    return [
        Job(Path(f"{i}.wav"), Path(f"out/{i}.wav"), id=str(i), seconds=s)
        for i, s in enumerate(seconds)
    ]


def some(seed: int, count: int = 400) -> list[Job]:
    """Jobs as a data set has them: many lengths, some of them equal, one unreadable."""
    rng = np.random.default_rng(seed)
    seconds = np.where(rng.random(count) < 0.5, rng.choice([3.0, 4.0, 5.5], count), 0)
    seconds = np.where(seconds > 0, seconds, rng.gamma(2, 4, count) + 0.3)
    return jobs(*map(float, seconds), None)


def ids(made: list[Unit]) -> list[str]:
    return [job.id for unit in made for job in unit]


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("seed", range(3))
def test_units_are_a_partition_of_the_plan_and_hold_only_equals(seed: int, size: int) -> None:
    plan = some(seed)
    made = units(plan, size)
    assert sorted(ids(made)) == sorted(job.id for job in plan)
    for unit in made:
        lengths = {job.seconds for job in unit}
        long = all(job.seconds and job.seconds > WINDOW_S for job in unit)
        assert len(unit) == 1 or (long and None not in lengths) or lengths == {unit[0].seconds}
        assert len(unit) <= size
        assert [int(job.id) for job in unit] == sorted(int(job.id) for job in unit)


def test_units_are_as_full_as_they_can_be() -> None:
    made = units(jobs(3, 4, 3, 18, 3, 80, None, 3, 18, 18), 3)
    assert [[job.id for job in unit] for unit in made] == [
        ["0", "2", "4"],
        ["7"],
        ["1"],
        ["3", "5"],  # 18 s and 80 s are more than three windows
        ["8", "9"],
        ["6"],
    ]


def test_without_batches_every_job_is_a_unit() -> None:
    plan = jobs(3, 3, 9, None, 9)
    assert units(plan, 1) == [(job,) for job in plan]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 500])
@pytest.mark.parametrize("size", [1, 16])
def test_shares_are_a_partition_for_every_number_of_them(count: int, size: int) -> None:
    work = units(some(0), size)
    dealt = shares(work, count)
    assert len(dealt) == count
    assert sorted(ids([unit for share in dealt for unit in share])) == sorted(ids(work))
    place = {unit[0].id: number for number, unit in enumerate(work)}
    for share in dealt:  # each in the order of the whole
        assert sorted(share, key=lambda unit: place[unit[0].id]) == share


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "size"), [(2, 1), (8, 1), (16, 1), (4, 16)])
def test_shares_are_even_within_a_tenth(seed: int, count: int, size: int) -> None:
    dealt = shares(units(some(seed), size), count)
    loads = [sum(job.seconds or 0 for unit in share for job in unit) for share in dealt]
    assert max(loads) <= 1.1 * min(loads)


def test_shares_are_always_the_same() -> None:
    assert shares(units(some(1), 4), 5) == shares(units(some(1), 4), 5)


def test_work_of_unknown_length_is_dealt_out_too() -> None:
    dealt = shares([(job,) for job in jobs(None, None, None, None)], 2)
    assert [len(share) for share in dealt] == [2, 2]


@pytest.fixture
def settings(tiny_folder: Path) -> BatchSettings:
    return BatchSettings(find_checkpoint(tiny_folder))


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"runtime": "onnx"},
        {"files": FileSettings(level="raw")},
        {"files": FileSettings(channel="0")},
        {"files": FileSettings(subtype="FLOAT")},
    ],
)
def test_settings_that_change_an_estimate_change_the_key(
    settings: BatchSettings, change: dict[str, Any]
) -> None:
    assert replace(settings, **change).key() != settings.key()


def test_so_does_another_model(settings: BatchSettings) -> None:
    other = replace(settings.checkpoint, sha256="0" * 64)
    assert replace(settings, checkpoint=other).key() != settings.key()


@pytest.mark.parametrize(
    "change",
    [{"devices": ("cpu",)}, {"batch": 4}, {"jobs": 3}, {"shard": (2, 3)}, {"fail_fast": True}],
)
def test_settings_that_only_say_how_do_not(settings: BatchSettings, change: dict[str, Any]) -> None:
    assert replace(settings, **change).key() == settings.key()
