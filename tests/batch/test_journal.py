"""A batch's memory: what is written stays, whoever writes and however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mcspex_cli.batch.journal import Journal, JournalWriter, Run
from mcspex_cli.batch.manifest import JOURNAL, Task
from mcspex_cli.batch.plan import BatchRequest, hash_of, plan_batch
from mcspex_cli.errors import DiskFullError, OutputError
from tests.conftest import ROOT


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A task with its files, the output too."""
    (tmp_path / "audio").mkdir()
    for name in ("a.wav", "ref.wav", "audio/a.wav"):
        (tmp_path / name).write_text(name)
    return planned(tmp_path)


def planned(folder: Path, *references: str) -> Task:
    """The task as it is planned now."""
    clips = tuple(folder / name for name in references or ("ref.wav",))
    request = BatchRequest(folder, [folder / "a.wav"], references=clips)
    return plan_batch(request).tasks[0]


def row(**more: object) -> dict[str, object]:
    return {"seconds": 2.0, **more}


def the_file(folder: Path) -> Path:
    (path,) = (folder / JOURNAL).glob("*.jsonl")
    return path


def test_what_is_written_is_read_by_the_next(tmp_path: Path, task: Task) -> None:
    writer = JournalWriter(tmp_path)
    writer.add_result(task, "s", row(gain_db=[1.5]))
    failed = replace(task, id="b")
    writer.add_failure(failed, "s", "b.wav: no.")
    writer.add_score(task.id, "k", {"si_sdr_db": 3.5})
    writer.add_run(run := Run("2026-08-30T09:15:02Z", 1.5, 60.0, 3, 1))
    journal = Journal(tmp_path)
    done = journal.valid_result(task, "s")
    assert done
    assert (done.input_key, done.settings, done.length_s) == (task.input_key, "s", 2.0)
    assert done.result() == row(gain_db=[1.5])
    assert journal.failure(failed, "s") == "b.wav: no."
    assert journal.failure(failed, "other settings") is None
    assert journal.failure(replace(failed, input_key="other-inputs"), "s") is None
    assert journal.scores == {("a", "k"): {"si_sdr_db": 3.5}}
    assert journal.runs == [run]


def test_what_is_done_is_done_whatever_fails_later_by_whatever_clock(
    tmp_path: Path, task: Task
) -> None:
    one, other = JournalWriter(tmp_path), JournalWriter(tmp_path)
    one.add_failure(task, "s", "no.")
    other.add_result(task, "s", row())
    one.add_failure(task, "s", "no more.")
    journal = Journal(tmp_path)
    assert journal.valid_result(task, "s")
    assert journal.failure(task, "s") == "no more."
    assert len(list((tmp_path / JOURNAL).iterdir())) == 2
    (tmp_path / "audio/a.wav").unlink()
    assert not Journal(tmp_path).valid_result(task, "s")


@pytest.mark.parametrize("order", [1, -1])
def test_the_settings_of_the_estimate_that_is_there_count_whoever_is_read_first(
    tmp_path: Path, task: Task, order: int
) -> None:
    writers = [JournalWriter(tmp_path), JournalWriter(tmp_path)][::order]
    writers[0].add_result(task, "before", row())
    (tmp_path / "audio/a.wav").write_text("another estimate")
    writers[1].add_result(task, "now", row())
    journal = Journal(tmp_path)
    assert [bool(journal.valid_result(task, one)) for one in ("before", "now")] == [False, True]
    journal.check_replaced([task], "now")
    with pytest.raises(OutputError, match="another model or other settings"):
        journal.check_replaced([task], "before")
    (tmp_path / "audio/a.wav").unlink()
    Journal(tmp_path).check_replaced([task], "before")


def test_an_estimate_is_outside_a_plan_under_whatever_name_it_has(
    tmp_path: Path, task: Task
) -> None:
    named = replace(task, id="b", output="named.wav")
    (tmp_path / "audio/named.wav").write_text("an estimate")
    for one in (task, named):
        JournalWriter(tmp_path).add_result(one, "s", row())
    assert Journal(tmp_path).estimates_outside([task, named]) == []
    assert Journal(tmp_path).estimates_outside([task]) == ["b"]
    (tmp_path / "audio/named.wav").write_text("of another program")
    assert Journal(tmp_path).estimates_outside([task]) == []


def test_a_failure_is_of_the_slurm_job_that_it_happened_in(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("17", "18"):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", number)
        JournalWriter(tmp_path).add_failure(task, "s", f"no, said {number}.")
    journal = Journal(tmp_path)
    said = [journal.failure(task, "s", job) for job in ("17", "18", "19")]
    assert said == ["no, said 17.", "no, said 18.", None]


def test_no_journal_is_an_empty_one_and_reading_makes_none(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none").results == {}
    assert list(tmp_path.iterdir()) == []


def test_a_line_cut_anywhere_costs_only_itself(tmp_path: Path, task: Task) -> None:
    writer = JournalWriter(tmp_path)
    writer.add_result(task, "s", row())
    first = len(the_file(tmp_path).read_bytes())
    writer.add_result(replace(task, id="b"), "s", row())
    data = the_file(tmp_path).read_bytes()
    for end in range(first, len(data)):
        the_file(tmp_path).write_bytes(data[:end])
        whole = data[:end].endswith(b"}}")
        assert list(Journal(tmp_path).results) == (["a", "b"] if whole else ["a"])


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"\0" * 40, b"nonsense", b"{}", b"[]", b"3", b"null", b'"done"', b'{"done": 3}',
     b'{"done": {}}', b'{"other": "a"}', b'{"done": "a"}', b'{"run": 3}', b'{"scored": "a"}',
     b'{"failed": "a"}', b'{"failed": []}', b'{"run": {}}', b'{"run": {"began": 1}}', b"[" * 99_999,
     *(b'{"done": "z", "inputs": %s, "settings": "s", "output": "z", "files": %s, '
       b'"row": {"seconds": %s}}' % values
       for values in ((b"1", b"{}", b"1"), (b'"i"', b"[1]", b"1"), (b'"i"', b"{}", b'"1"')))],
)  # fmt: skip
def test_lines_that_say_nothing_are_passed_over(tmp_path: Path, task: Task, line: bytes) -> None:
    JournalWriter(tmp_path).add_result(task, "s", row())
    with the_file(tmp_path).open("ab") as file:
        file.write(line)
    JournalWriter(tmp_path).add_failure(replace(task, id="b"), "s", "no.")
    journal = Journal(tmp_path)
    assert (list(journal.results), list(journal.failures), journal.runs) == (["a"], ["b"], [])


WRITER = """
import sys
from pathlib import Path
from mcspex_cli.batch.journal import JournalWriter
from mcspex_cli.batch.manifest import Task
folder, name = Path(sys.argv[1]), sys.argv[2]
writer = JournalWriter(folder)
for number in range(300):
    task = Task(f"{name}/{number}", "a.wav", output="out.wav")
    writer.add_result(task, "s", {"seconds": 1.0, "text": name * 300})
"""


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([*command, name], env=environment) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    done = Journal(tmp_path).results
    assert sorted(done) == sorted(f"{name}/{number}" for name in "abc" for number in range(300))
    assert all(one.result()["text"] == name[0] * 300 for name, (one,) in done.items())


def is_done(folder: Path, task: Task, settings: str = "s") -> bool:
    return Journal(folder).valid_result(task, settings) is not None


def test_a_task_is_done_while_nothing_has_changed(tmp_path: Path, task: Task) -> None:
    assert not is_done(tmp_path, task)
    JournalWriter(tmp_path).add_result(task, "s", row())
    assert is_done(tmp_path, planned(tmp_path))
    assert not is_done(tmp_path, replace(task, id="b"))
    assert not is_done(tmp_path, task, "other settings")


@pytest.mark.parametrize("name", ["a.wav", "ref.wav", "audio/a.wav"])
@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_file_undoes_it(tmp_path: Path, task: Task, name: str, change: str) -> None:
    JournalWriter(tmp_path).add_result(task, "s", row())
    path, before = tmp_path / name, (tmp_path / name).stat()
    if change == "size":
        path.write_text(name + "more")
    later = before.st_mtime_ns + (1_000_000 if change == "time" else 0)
    os.utime(path, ns=(before.st_atime_ns, later))
    assert not is_done(tmp_path, planned(tmp_path))


def test_a_time_that_an_archive_has_cut_to_seconds_does_not(tmp_path: Path, task: Task) -> None:
    JournalWriter(tmp_path).add_result(task, "s", row())
    for path in tmp_path.rglob("*.wav"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime_ns // 10**9))
    assert is_done(tmp_path, planned(tmp_path))


def test_so_does_an_output_that_is_gone(tmp_path: Path, task: Task) -> None:
    JournalWriter(tmp_path).add_result(task, "s", row())
    (tmp_path / "audio/a.wav").unlink()
    assert not is_done(tmp_path, planned(tmp_path))


def test_another_reference_undoes_it(tmp_path: Path, task: Task) -> None:
    JournalWriter(tmp_path).add_result(task, "s", row())
    (tmp_path / "q.wav").write_text("ref.wav")
    status = (tmp_path / "ref.wav").stat()
    os.utime(tmp_path / "q.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not is_done(tmp_path, planned(tmp_path, "q.wav"))
    assert not is_done(tmp_path, planned(tmp_path, "ref.wav", "q.wav"))


def test_the_place_that_a_path_is_written_from_does_not(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), tmp_path / "link", Path("..", tmp_path.name)):
        assert planned(folder).input_key == task.input_key


def test_a_hash_tells_values_apart_and_is_always_the_same() -> None:
    assert hash_of(("a", [1, "x"], None)) == "90b3e77baf3841b5"
    values = (1, "1", [1], None, 1.5, ("a", 1), "\udcff")
    assert len({hash_of(value) for value in values}) == len(values)


def test_a_journal_that_cannot_be_read_or_written_says_so(tmp_path: Path, task: Task) -> None:
    with pytest.raises(OutputError, match=r"none/journal/.*: cannot be written: its folder does"):
        JournalWriter(tmp_path / "none").add_result(task, "s", row())
    (tmp_path / JOURNAL / "x.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"x.jsonl: cannot be read: it is a folder"):
        Journal(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so_and_what_comes_later_has_its_own_line(
    tmp_path: Path, task: Task
) -> None:
    writer = JournalWriter(tmp_path)
    writer.add_failure(task, "s", "no.")
    path = the_file(tmp_path)
    kept = path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"cannot be written: the disk is full"):
        writer.add_failure(task, "s", "no.")
    path.unlink()
    path.write_bytes(kept.read_bytes() + b'{"at": 1, "done": "a", "in')
    writer.add_failure(replace(task, id="b"), "s", "no.")
    assert list(Journal(tmp_path).failures) == ["a", "b"]
    assert json.loads(path.read_bytes().splitlines()[-1])["failed"] == "b"
