"""A batch at work: what is done stays done, and an interruption changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcspex_cli import audio, files
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import EngineError, OutputError
from mcspex_cli.extraction.batch import BatchRun, check_settings, open_folder
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.journal import Journal
from mcspex_cli.extraction.planning import measured
from mcspex_cli.extraction.shares import BatchSettings
from mcspex_cli.extraction.work import Outcome
from tests.conftest import AUTO, RATE_HZ, buzz

LENGTHS = [4000, 5000] * 8
FINE = FileSettings(subtype="PCM_24")


@pytest.fixture
def settings(tiny_folder: Path) -> BatchSettings:
    # 24 bits show nearly the last of every sum; a FLOAT file has the time in its header.
    return BatchSettings(find_checkpoint(tiny_folder), FINE, devices=("cpu",))


@pytest.fixture
def plan(tmp_path: Path) -> list[Job]:
    """Sixteen mixtures of two lengths, and two voices."""
    for name in ("ann", "bob"):
        audio.write(tmp_path / f"{name}.wav", buzz(100 + ord(name[0]), 1), RATE_HZ)
    jobs = []
    for i, length in enumerate(LENGTHS):
        mixture = tmp_path / f"{i:02}.wav"
        audio.write(mixture, buzz(100 + 5 * i, 1, i)[:length], RATE_HZ)
        reference = tmp_path / ("bob.wav" if i in (3, 7) else "ann.wav")
        output = tmp_path / "out" / "audio" / mixture.name
        jobs.append(Job(mixture, output, (reference,), id=mixture.stem))
    return measured(jobs)


def opened(plan: Sequence[Job], settings: BatchSettings) -> BatchRun:
    folder = plan[0].output.parents[1]
    journal = open_folder(folder, overwrite=False)
    files.make_folders(folder / "audio")
    return BatchRun(plan, journal, settings)


def elsewhere(plan: Sequence[Job], name: str) -> list[Job]:
    """The plan with another output folder."""
    return [
        replace(job, output=job.output.parents[2] / name / "audio" / job.output.name)
        for job in plan
    ]


def contents(plan: Sequence[Job]) -> dict[str, bytes]:
    folder = plan[0].output.parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(plan: Sequence[Job]) -> dict[str, int]:
    return {job.id: job.output.stat().st_mtime_ns for job in plan if job.output.exists()}


def test_every_outcome_is_in_the_journal_before_it_is_told(
    plan: list[Job], settings: BatchSettings, tmp_path: Path
) -> None:
    seen = []
    run = opened(plan, settings)
    for outcome in run:
        seen.append(outcome.job.id)
        assert outcome.row
        assert list(Journal(tmp_path / "out").done) == seen
        assert outcome.job.output.exists()
        assert run.left == len(plan) - len(seen)
    assert seen == [job.id for job in plan]
    (line,) = Journal(tmp_path / "out").runs
    assert (line["done"], line["failed"]) == (16, 0)
    assert line["audio_s"] == pytest.approx(sum(LENGTHS) / RATE_HZ)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("stop", "moments"), [("asked", (1,)), ("closed", (1, 4))])
def test_going_on_gives_what_an_uninterrupted_run_gives(
    plan: list[Job], settings: BatchSettings, batch: int, stop: str, moments: tuple[int, ...]
) -> None:
    settings = replace(settings, batch=batch)
    whole = elsewhere(plan, "whole")
    assert len(list(opened(whole, settings))) == len(plan)
    for told in moments:
        run = opened(plan, settings)
        outcomes = iter(run)
        for _ in range(told):
            next(outcomes)
        if stop == "asked":
            run.stopping.set()
            assert all(outcome.row for outcome in outcomes)
            assert 0 < run.left < len(plan) - told
        else:
            outcomes.close()  # type: ignore[attr-defined]
    before = times(plan)
    run = opened(plan, settings)
    assert run.todo
    assert run.skipped
    done = {job.id for job in run.skipped}
    assert [outcome.job for outcome in run] == run.todo
    assert {id_: time for id_, time in times(plan).items() if id_ in done} == {
        id_: time for id_, time in before.items() if id_ in done
    }
    assert contents(plan) == contents(whole)
    assert opened(plan, settings).todo == []


@pytest.mark.parametrize("batch", [1, 4])
def test_shards_together_give_what_one_run_gives(
    plan: list[Job], settings: BatchSettings, batch: int
) -> None:
    settings = replace(settings, batch=batch)
    whole = elsewhere(plan, "whole")
    list(opened(whole, settings))
    done: list[str] = []
    for index in (2, 3, 1):
        run = opened(plan, replace(settings, shard=(index, 3)))
        assert run.todo
        assert run.skipped == []
        done += [outcome.job.id for outcome in run]
    assert sorted(done) == [job.id for job in plan]
    assert contents(plan) == contents(whole)


def test_only_what_changed_is_done_again(plan: list[Job], settings: BatchSettings) -> None:
    list(opened(plan, settings))
    before = times(plan)
    audio.write(plan[2].mixture, buzz(300, 1), RATE_HZ)
    plan[5].output.unlink()
    os.utime(plan[7].references[0])  # job 3 has it too
    run = opened(measured(plan), settings)
    assert [job.id for job in run.todo] == ["02", "03", "05", "07"]
    assert [outcome.job.id for outcome in run] == ["02", "03", "05", "07"]
    after = times(plan)
    assert {id_ for id_ in after if after[id_] != before.get(id_)} == {"02", "03", "05", "07"}


def test_what_has_changed_since_is_not_taken_for_done(
    plan: list[Job], settings: BatchSettings
) -> None:
    list(opened(plan, settings))
    assert len(opened(plan, settings).lines()) == 16
    os.utime(plan[2].mixture)
    assert "02" not in opened(plan, settings).lines()
    other = replace(settings, files=FileSettings(level="raw", subtype="PCM_24"))
    assert opened(plan, other).lines() == {}


def outcomes(plan: list[Job], settings: BatchSettings) -> dict[str, Outcome]:
    return {outcome.job.id: outcome for outcome in opened(plan, settings)}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bad_reference_costs_only_its_own_mixtures(
    plan: list[Job], settings: BatchSettings, batch: int
) -> None:
    audio.write(plan[3].references[0], np.zeros(9000, np.float32), RATE_HZ)
    made = outcomes(plan, replace(settings, batch=batch))
    failed = {id_: outcome.reason for id_, outcome in made.items() if outcome.row is None}
    reason = f"{plan[3].references[0]}: is silent. Check the recording and its channels."
    assert failed == {"03": reason, "07": reason}
    assert len(made) == 16
    assert [job.id for job in plan if not job.output.exists()] == ["03", "07"]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bad_mixture_costs_only_itself_and_is_tried_again(
    plan: list[Job], settings: BatchSettings, tmp_path: Path, batch: int
) -> None:
    settings = replace(settings, batch=batch)
    whole = elsewhere(plan, "whole")
    list(opened(whole, settings))
    data = plan[4].mixture.read_bytes()
    plan[4].mixture.write_bytes(data[:3000])
    broken = measured(plan)
    made = outcomes(broken, settings)
    assert [id_ for id_, outcome in made.items() if outcome.row is None] == ["04"]
    assert list(Journal(tmp_path / "out").failed) == ["04"]
    plan[4].mixture.write_bytes(data)
    assert list(outcomes(measured(plan), settings)) == ["04"]
    assert list(Journal(tmp_path / "out").failed) == []
    if batch == 1:
        assert contents(plan) == contents(whole)


def test_fail_fast_stops_at_the_first(
    plan: list[Job], settings: BatchSettings, tmp_path: Path
) -> None:
    plan[1].mixture.write_text("no sound")
    run = opened(plan, replace(settings, fail_fast=True))
    assert [outcome.row is None for outcome in run] == [False, True]
    assert run.left == 14
    assert list(Journal(tmp_path / "out").failed) == ["01"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_rows_say_what_was_done(plan: list[Job], settings: BatchSettings) -> None:
    row = outcomes(plan, settings)["00"].row
    assert row
    assert (row["seconds"], row["sample_rate_hz"]) == (0.5, 8000)
    assert (row["device"], row["precision"]) == ("cpu", AUTO)
    assert (row["limited"], row["silent"]) == (False, False)
    assert row["elapsed_s"] > 0


def test_an_estimate_of_time_is_for_what_is_left(plan: list[Job], settings: BatchSettings) -> None:
    run = opened(plan, settings)
    assert run.estimate_s() > 0
    list(run)
    assert opened(plan, settings).estimate_s() == 0


def test_a_device_that_is_not_there_is_refused_before_the_work(
    plan: list[Job], settings: BatchSettings
) -> None:
    with pytest.raises(EngineError, match="device 'tpu' is not available"):
        opened(plan, replace(settings, devices=("cpu", "tpu")))


@pytest.mark.parametrize("names", [["notes.txt"], ["audio/a.wav"], [".hidden"]])
def test_a_folder_of_something_else_is_refused_unless_told(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        files.make_folders((tmp_path / name).parent)
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match=r"is not empty and not a batch's. Choose another -o, or"):
        open_folder(tmp_path, overwrite=False)
    open_folder(tmp_path, overwrite=True)
    assert all((tmp_path / name).exists() for name in names)


@pytest.mark.parametrize("name", ["out", "deep/er/out"])
def test_a_folder_is_made_and_may_be_opened_again_before_anything_is_done(
    tmp_path: Path, name: str
) -> None:
    open_folder(tmp_path / name, overwrite=False)
    files.make_folders(tmp_path / name / "audio")
    assert open_folder(tmp_path / name, overwrite=False).done == {}


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"out: cannot make this folder: something else"):
        open_folder(tmp_path / "out", overwrite=False)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "none" / "journal.jsonl")
    with pytest.raises(OutputError, match=r"journal.jsonl: cannot be written: its folder does not"):
        open_folder(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"runtime": "onnx"},
        {"files": FileSettings(level="raw", subtype="PCM_24")},
        {"files": FileSettings(channel="0", subtype="PCM_24")},
        {"files": FileSettings()},
    ],
)
def test_estimates_of_other_settings_are_not_mixed_in(
    plan: list[Job], settings: BatchSettings, tmp_path: Path, change: dict[str, Any]
) -> None:
    plan = plan[:1]
    list(opened(plan, settings))
    journal = Journal(tmp_path / "out")
    check_settings(tmp_path / "out", plan, journal, replace(settings, batch=4, jobs=2))
    with pytest.raises(OutputError, match="its 00 was made with another model or other settings"):
        check_settings(tmp_path / "out", plan, journal, replace(settings, **change))
