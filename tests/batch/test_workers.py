"""A batch at work: what is done stays done, and an interruption changes nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from mcspex_cli import audio
from mcspex_cli.batch import backends
from mcspex_cli.batch.backends import estimate_s
from mcspex_cli.batch.journal import Journal
from mcspex_cli.batch.manifest import Task
from mcspex_cli.batch.plan import BatchRequest, BatchSettings, plan_batch
from mcspex_cli.batch.workers import Outcome, Worker
from mcspex_cli.batch.worklist import (
    WINDOW_S,
    Unit,
    WorkList,
    equal_parts,
    make_units,
    open_folder,
    open_work,
)
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.job import ExtractionOptions
from mcspex_cli.extraction.runtime import EngineSettings
from tests.conftest import RATE_HZ, buzz

LENGTHS = [4000, 5000] * 5
IDS = [f"{i:02}" for i in range(len(LENGTHS))]
FINE = ExtractionOptions(subtype="PCM_24")


@pytest.fixture
def settings(tiny_folder: Path) -> BatchSettings:
    # 24 bits show nearly the last of every sum; a FLOAT file has the time in its header.
    return BatchSettings(find_checkpoint(tiny_folder), FINE, devices=("cpu",))


@pytest.fixture
def set_(tmp_path: Path) -> Path:
    """Ten mixtures of two lengths, and two voices, in a manifest."""
    for name in ("ann", "bob"):
        audio.write(tmp_path / f"{name}.wav", buzz(100 + ord(name[0]), 1), RATE_HZ)
    lines = ["mixture,reference"]
    for i, length in enumerate(LENGTHS):
        audio.write(tmp_path / f"{i:02}.wav", buzz(100 + 5 * i, 1, i)[:length], RATE_HZ)
        lines.append(f"{i:02}.wav,{'bob.wav' if i in (3, 7) else 'ann.wav'}")
    (tmp_path / "plan.csv").write_text("\n".join(lines))
    return tmp_path


def opened(set_: Path, settings: BatchSettings, output: str = "out", **asked: Any) -> WorkList:
    request = BatchRequest(set_ / output, manifest=set_ / "plan.csv", **asked)
    with open_work(plan_batch(request), settings) as work:
        return work


def run(work: WorkList, stopping: Event | None = None) -> Iterator[Outcome]:
    return backends.run(work, stopping or Event())


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "journal" not in p.parts}


def times(set_: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (set_ / "out/audio").glob("*.wav")}


def ids(tasks: list[Task]) -> list[str]:
    return [task.id for task in tasks]


def test_every_outcome_is_in_the_journal_before_it_is_told(
    set_: Path, settings: BatchSettings
) -> None:
    seen = []
    for outcome in run(opened(set_, settings)):
        seen.append(outcome.task.id)
        assert outcome.result
        assert list(Journal(set_ / "out").results)[: len(seen)] == seen
        assert outcome.task.outputs(set_ / "out")["audio"].exists()
    assert seen == IDS
    (line,) = Journal(set_ / "out").runs
    assert (line.done, line.failed) == (len(IDS), 0)
    assert line.audio_s == pytest.approx(sum(LENGTHS) / RATE_HZ)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("stop", "moments"), [("asked", (1,)), ("closed", (1, 4))])
def test_going_on_gives_what_an_uninterrupted_run_gives(
    set_: Path, settings: BatchSettings, batch_size: int, stop: str, moments: tuple[int, ...]
) -> None:
    settings = replace(settings, engine_settings=EngineSettings(batch=batch_size))
    asked: dict[str, Any] = {"residual": True, "activity": ".rttm"}
    assert len(list(run(opened(set_, settings, "whole", **asked)))) == len(IDS)
    for told in moments:
        stopping = Event()
        outcomes = run(opened(set_, settings, **asked), stopping)
        for _ in range(told):
            next(outcomes)
        if stop == "asked":
            stopping.set()
            assert all(outcome.result for outcome in outcomes)
        else:
            outcomes.close()  # type: ignore[attr-defined]
    before = times(set_)
    work = opened(set_, settings, **asked)
    assert work.todo
    assert work.skipped
    done = set(ids(work.skipped))
    assert sorted(outcome.task.id for outcome in run(work)) == sorted(ids(work.todo))
    kept = {id_: time for id_, time in before.items() if id_ in done}
    assert kept.items() <= times(set_).items()
    assert contents(set_ / "out") == contents(set_ / "whole")
    assert opened(set_, settings, **asked).todo == []


def test_what_comes_of_finished_tasks_is_thrown_away_at_once(
    set_: Path, settings: BatchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, engine_settings=EngineSettings(batch=3))
    unit = tuple(opened(set_, settings).todo)
    (set_ / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(set_ / "scratch"))
    worker = Worker(set_ / "out", settings, "cpu")
    outcomes = worker.extract([unit], set(IDS[:-1]), lambda: False)
    assert next(outcomes).task.id == IDS[-1]
    earlier = ids([*unit])[: ids([*unit]).index(IDS[-1])]
    assert earlier  # those after it may have begun
    assert not {path.stem for path in (set_ / "scratch").rglob("*.wav")} & {*earlier}
    assert not [*outcomes]
    assert [path.stem for path in (set_ / "out/audio").iterdir()] == [IDS[-1]]


def test_only_what_changed_is_done_again(set_: Path, settings: BatchSettings) -> None:
    list(run(opened(set_, settings)))
    before = times(set_)
    audio.write(set_ / "02.wav", buzz(300, 1), RATE_HZ)
    (set_ / "out/audio/05.wav").unlink()
    os.utime(set_ / "bob.wav")  # 03 and 07 have it
    work = opened(set_, settings)
    assert ids(work.todo) == ["02", "03", "05", "07"]
    assert [outcome.task.id for outcome in run(work)] == ids(work.todo)
    after = times(set_)
    assert {id_ for id_ in after if after[id_] != before.get(id_)} == set(ids(work.todo))


def test_a_shard_has_its_own_tasks_also_when_all_are_finished(
    set_: Path, settings: BatchSettings
) -> None:
    shard = opened(set_, replace(settings, shard=(1, 2)))
    list(run(opened(set_, settings)))
    finished = opened(set_, replace(settings, shard=(1, 2)))
    assert ids(finished.skipped) == ids(shard.todo) != IDS
    assert finished.audio_s == shard.audio_s


def test_an_output_that_is_asked_for_later_is_made_later(
    set_: Path, settings: BatchSettings
) -> None:
    list(run(opened(set_, settings)))
    audio_before = contents(set_ / "out/audio")
    work = opened(set_, settings, residual=True)
    assert len(work.todo) == len(IDS)
    list(run(work))
    assert contents(set_ / "out/audio") == audio_before
    assert len(list((set_ / "out/residual").iterdir())) == len(IDS)
    assert opened(set_, settings).todo == []


def test_an_estimate_of_time_is_for_what_is_left(set_: Path, settings: BatchSettings) -> None:
    work = opened(set_, settings)
    assert (estimate_s(work) or 0) > 0
    work.todo = [replace(task, length_s=None) for task in work.todo]
    assert estimate_s(work) is None
    list(run(opened(set_, settings)))
    assert estimate_s(opened(set_, settings)) == 0


@pytest.mark.parametrize("names", [["notes.txt"], ["audio/a.wav"], [".hidden"]])
def test_a_folder_of_something_else_is_refused_unless_told(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for is_dry_run in (True, False):
        with pytest.raises(OutputError, match=r"is not empty and not the folder of a batch. Cho"):
            open_folder(tmp_path, overwrite=False, is_dry_run=is_dry_run)
        open_folder(tmp_path, overwrite=True, is_dry_run=True)
    assert len([*tmp_path.iterdir()]) == 1
    open_folder(tmp_path, overwrite=True)
    assert all((tmp_path / name).exists() for name in names)


def test_a_folder_is_made_and_may_be_opened_again_before_anything_is_done(tmp_path: Path) -> None:
    for _ in range(2):
        open_folder(tmp_path / "deep/er/out", overwrite=False)
        assert Journal(tmp_path / "deep/er/out").results == {}


OTHER: list[dict[str, Any]] = [
    *({"engine_settings": one} for one in (
        EngineSettings(precision="bfloat16"), EngineSettings(runtime="onnx"),
        EngineSettings(passes=1),
    )),
    *({"options": replace(FINE, **change)} for change in (
        {"level": "raw"}, {"channel": "0"}, {"subtype": "PCM_16"}, {"absent": "fail"},
        {"wet_db": -3.0}, {"dry_db": -20.0}, {"track": "2"}, {"damaged": "keep"},
    )),
]  # fmt: skip
"""What changes an estimate."""

SAME: list[dict[str, Any]] = [
    {"devices": ("cpu",)},
    {"engine_settings": EngineSettings(batch=4, threads=3)},
    {"jobs": 3},
    {"shard": (2, 3)},
    {"fail_fast": True},
]
"""What only says how."""


def test_estimates_of_other_settings_are_not_mixed_in(set_: Path, settings: BatchSettings) -> None:
    next(run(opened(set_, settings)))
    for change in SAME:
        opened(set_, replace(settings, **change))
    model = replace(settings.model, sha256="0" * 64)
    for change in (*OTHER, {"model": model}):
        with pytest.raises(OutputError, match="its 00 was made with another model or other set"):
            opened(set_, replace(settings, **change))


def tasks(*seconds: float | None) -> list[Task]:
    return [Task(str(i), f"{i}.wav", length_s=s) for i, s in enumerate(seconds)]


def some(seed: int, count: int = 400) -> list[Task]:
    """Tasks as a data set has them: many lengths, some of them equal, one unreadable."""
    rng = np.random.default_rng(seed)
    seconds = np.where(rng.random(count) < 0.5, rng.choice([3.0, 4.0, 5.5], count), 0)
    seconds = np.where(seconds > 0, seconds, rng.gamma(2, 4, count) + 0.3)
    return tasks(*map(float, seconds), None)


def ids_in(made: list[Unit]) -> list[str]:
    return [task.id for unit in made for task in unit]


@pytest.mark.parametrize("size", [1, 2, 16])
def test_units_are_a_partition_and_hold_only_what_is_about_equally_long(size: int) -> None:
    for seed in range(3):
        made = make_units(some(seed), size)
        assert sorted(ids_in(made)) == sorted(ids(some(seed)))
        for unit in made:
            assert len(unit) == 1 or all(task.length_s for task in unit)
            windows_s = [min(task.length_s or 0, WINDOW_S) for task in unit]
            assert min(windows_s) >= 0.9 * max(windows_s)
            assert len(unit) <= size
            assert windows_s == sorted(windows_s, reverse=True)


def test_units_are_as_full_as_they_can_be() -> None:
    made = make_units(tasks(3, 3.7, 3, 18, 3.1, 80, None, 3.4, 18, 18), 3)
    assert [ids(list(unit)) for unit in made] == [
        ["3", "5"],  # 18 s and 80 s are more than three windows
        ["8", "9"],
        ["1", "7"],
        ["4", "0", "2"],
        ["6"],
    ]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 16), (8, 1), (500, 1), (500, 16)])
def test_shares_are_a_partition_in_order_and_always_the_same(count: int, size: int) -> None:
    work = make_units(some(0), size)
    parts = equal_parts(work, count)
    assert len(parts) == count
    assert sorted(ids_in([unit for share in parts for unit in share])) == sorted(ids_in(work))
    place = {unit[0].id: number for number, unit in enumerate(work)}
    for share in parts:
        assert sorted(share, key=lambda unit: place[unit[0].id]) == share
    assert equal_parts(make_units(some(0), size), count) == parts


@pytest.mark.parametrize(("count", "size"), [(2, 1), (8, 1), (16, 1), (4, 16)])
def test_shares_are_even_within_a_tenth(count: int, size: int) -> None:
    for seed in range(5):
        parts = equal_parts(make_units(some(seed), size), count)
        loads = [sum(task.length_s or 0 for unit in share for task in unit) for share in parts]
        assert max(loads) <= 1.1 * min(loads)
    assert [len(share) for share in equal_parts([(t,) for t in tasks(*[None] * 4)], 2)] == [2, 2]


@pytest.mark.parametrize(
    ("jobs", "memory", "remedy"), [(3, 3.5e9, "--jobs 2."), (2, 3.5e9, ""), (1, 1e9, "")]
)
def test_more_processes_than_the_memory_holds_are_warned_of(
    set_: Path,
    settings: BatchSettings,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    memory: float,
    remedy: str,
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(backends, "memory", lambda: memory)
    monkeypatch.setattr(backends._logger, "warning", messages.append)
    backends._run_here(opened(set_, replace(settings, jobs=jobs)), Event())
    assert len(messages) == bool(remedy)
    assert all(message.endswith(remedy) for message in messages)
