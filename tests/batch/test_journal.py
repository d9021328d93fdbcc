"""A batch's memory: what is written stays, whoever writes and however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.journal import NAME, Journal, fingerprint, inputs_key
from tests.conftest import ROOT


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in ("a.wav", "r.wav", "out.wav"):
        (tmp_path / name).write_text(name)
    return Job(tmp_path / "a.wav", tmp_path / "out.wav", (tmp_path / "r.wav",), id="a")


def named(job: Job, *names: str) -> list[Job]:
    return [replace(job, id=name) for name in names]


def test_what_is_written_is_read_by_the_next(tmp_path: Path, job: Job) -> None:
    journal = Journal(tmp_path)
    a, b = named(job, "a", "b")
    journal.add_done(a, "i", "s", {"seconds": 2.0})
    journal.add_failed(b, "b.wav: no.")
    journal.add_score(a, "k", {"si_sdr_db": 3.5})
    journal.add_run({"done": 1})
    other = Journal(tmp_path)
    assert other.done == journal.done
    assert (other.done["a"]["seconds"], other.done["a"]["inputs"]) == (2.0, "i")
    assert other.failed == journal.failed == {"b": {"id": "b", "reason": "b.wav: no."}}
    assert (
        other.scores == journal.scores == {"a": {"id": "a", "key": "k", "row": {"si_sdr_db": 3.5}}}
    )
    assert other.runs == journal.runs == [{"done": 1}]


def test_the_last_word_on_a_job_counts(tmp_path: Path, job: Job) -> None:
    journal = Journal(tmp_path)
    journal.add_failed(job, "no.")
    journal.add_done(job, "i", "s", {})
    assert (list(Journal(tmp_path).done), list(Journal(tmp_path).failed)) == (["a"], [])
    journal.add_failed(job, "no more.")
    assert (list(Journal(tmp_path).done), list(Journal(tmp_path).failed)) == ([], ["a"])


def test_another_processs_lines_are_there_after_reading_again(tmp_path: Path, job: Job) -> None:
    mine, theirs = Journal(tmp_path), Journal(tmp_path)
    theirs.add_done(job, "i", "s", {})
    assert mine.done == {}
    mine.read()
    assert list(mine.done) == ["a"]


def test_no_journal_is_an_empty_one_and_reading_makes_none(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none").done == {}
    assert list(tmp_path.iterdir()) == []


def test_a_line_cut_anywhere_costs_only_itself(tmp_path: Path, job: Job) -> None:
    journal = Journal(tmp_path)
    a, b, c = named(job, "a", "b", "c")
    journal.add_done(a, "i", "s", {})
    journal.add_done(b, "i", "s", {})
    data = (tmp_path / NAME).read_bytes()
    second = data.index(b'"b"') - len(b'{"done": {"id": ')
    for end in range(second, len(data)):
        (tmp_path / NAME).write_bytes(data[:end])
        whole = data[:end].endswith(b"}}")
        torn = Journal(tmp_path)
        assert list(torn.done) == (["a", "b"] if whole else ["a"])
        torn.add_done(c, "i", "s", {})
        assert list(Journal(tmp_path).done) == (["a", "b", "c"] if whole else ["a", "c"])


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"\0" * 40, b"nonsense", b"{}", b"[]", b"3", b"null", b'"done"', b'{"done": 3}',
     b'{"done": {}}', b'{"other": {"id": "a"}}', b'{"done": {"id": []}}', b'{"a": 1, "b": 2}'],
)  # fmt: skip
def test_lines_that_say_nothing_are_passed_over(tmp_path: Path, job: Job, line: bytes) -> None:
    Journal(tmp_path).add_done(job, "i", "s", {})
    with (tmp_path / NAME).open("ab") as file:
        file.write(line)
    Journal(tmp_path).add_failed(replace(job, id="b"), "no.")
    journal = Journal(tmp_path)
    assert (list(journal.done), list(journal.failed)) == (["a"], ["b"])


WRITER = """
import sys
from pathlib import Path
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.journal import Journal
folder, name = Path(sys.argv[1]), sys.argv[2]
journal = Journal(folder)
print(flush=True)
sys.stdin.read(1)
for number in range(300):
    job = Job(folder / "a.wav", folder / "out.wav", id=f"{name}/{number}")
    journal.add_done(job, "i", "s", {"text": name * 300})
"""


def test_several_processes_lose_nothing(tmp_path: Path, job: Job) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "abc"
    ]
    for writer in writers:  # all of them wait for the start
        assert writer.stdout
        assert writer.stdout.readline() == b"\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()
    for writer in writers:
        assert writer.wait(60) == 0
        assert writer.stdout
        writer.stdout.close()
    done = Journal(tmp_path).done
    assert sorted(done) == sorted(f"{name}/{number}" for name in "abc" for number in range(300))
    assert all(line["text"] == name[0] * 300 for name, line in done.items())


def done(tmp_path: Path, job: Job, settings: str = "s") -> bool:
    return Journal(tmp_path).is_done(job, inputs_key(job), settings)


def test_a_job_is_done_while_nothing_has_changed(tmp_path: Path, job: Job) -> None:
    assert not done(tmp_path, job)
    Journal(tmp_path).add_done(job, inputs_key(job), "s", {})
    assert done(tmp_path, job)
    assert not done(tmp_path, replace(job, id="b"))
    assert not done(tmp_path, job, "other settings")


@pytest.mark.parametrize("name", ["a.wav", "r.wav", "out.wav"])
@pytest.mark.parametrize("change", ["time", "size", "gone"])
def test_a_changed_file_undoes_it(tmp_path: Path, job: Job, name: str, change: str) -> None:
    Journal(tmp_path).add_done(job, inputs_key(job), "s", {})
    path = tmp_path / name
    before = path.stat()
    if change == "gone":
        path.unlink()
    elif change == "size":
        path.write_text(name + "more")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert not done(tmp_path, job)


def test_another_reference_undoes_it(tmp_path: Path, job: Job) -> None:
    Journal(tmp_path).add_done(job, inputs_key(job), "s", {})
    (tmp_path / "q.wav").write_text("q.wav")
    assert not done(tmp_path, replace(job, references=(tmp_path / "q.wav",)))
    assert not done(tmp_path, replace(job, references=(*job.references, tmp_path / "q.wav")))


def test_the_place_that_a_path_is_written_from_does_not(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = inputs_key(job)
    monkeypatch.chdir(tmp_path)
    assert inputs_key(replace(job, mixture=Path("a.wav"), references=(Path("r.wav"),))) == key


def test_a_fingerprint_tells_values_apart_and_is_always_the_same() -> None:
    assert fingerprint({"a": [1, "x"]}) == "bf5c117331004f32"
    assert len({fingerprint(value) for value in (1, "1", [1], None, 1.5, {"a": 1})}) == 6


@pytest.mark.parametrize("name", ["none", NAME])
def test_a_journal_that_cannot_be_written_or_read_says_so(
    tmp_path: Path, job: Job, name: str
) -> None:
    folder = tmp_path / "none"
    if name == NAME:
        (folder / NAME).mkdir(parents=True)
        with pytest.raises(OutputError, match=r"journal.jsonl: cannot be read \(Is a directory\)"):
            Journal(folder)
    else:
        with pytest.raises(OutputError, match=r"journal.jsonl: cannot be written \(No such file"):
            Journal(folder).add_done(job, "i", "s", {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so(tmp_path: Path, job: Job) -> None:
    journal = Journal(tmp_path)
    (tmp_path / NAME).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        journal.add_failed(job, "no.")
