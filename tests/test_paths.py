"""Paths: what a search finds, and whose unfinished files are swept up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcspex_cli import paths
from mcspex_cli.errors import AudioError, OutputError
from tests.conftest import ROOT


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, *without: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths.find(folder, set(without))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path / "root", "a.wav", "b/c.FLAC", "b/d/e.mp3", "notes.txt", "f.wav.bak")
    return tmp_path / "root"


def test_links_to_folders_and_files_are_followed(folder: Path, tmp_path: Path) -> None:
    touch(tmp_path / "else", "x/1.wav", "2.wav")
    (folder / "b" / "link").symlink_to(tmp_path / "else")
    (folder / "z.wav").symlink_to(tmp_path / "else" / "2.wav")
    expected = ["a.wav", "b/c.FLAC", "b/d/e.mp3", "b/link/2.wav", "b/link/x/1.wav", "z.wav"]
    assert found(folder) == expected


def test_one_folder_by_two_links_is_no_loop(folder: Path, tmp_path: Path) -> None:
    touch(tmp_path / "else", "1.wav")
    for name in ("one", "two"):
        (folder / name).symlink_to(tmp_path / "else")
    assert {"one/1.wav", "two/1.wav"} < set(found(folder))


@pytest.mark.parametrize("target", [".", "b", "b/d"])
def test_a_link_to_a_folder_above_it_is_refused(folder: Path, target: str) -> None:
    (folder / "b" / "d" / "loop").symlink_to(folder / target)
    with pytest.raises(AudioError, match=r"b/d/loop: links to a folder above it. Remove this link"):
        paths.find(folder)


def test_two_folders_that_link_to_each_other_are_refused(folder: Path) -> None:
    touch(folder, "one/1.wav", "two/2.wav")
    (folder / "one" / "to").symlink_to(folder / "two")
    (folder / "two" / "to").symlink_to(folder / "one")
    with pytest.raises(AudioError, match=r"one/to/to: links to a folder above it"):
        paths.find(folder)


def test_a_root_that_is_a_link_itself_is_searched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert found(tmp_path / "link") == ["a.wav", "b/c.FLAC", "b/d/e.mp3"]


def test_what_is_hidden_is_left_out(folder: Path) -> None:
    touch(folder, ".a.wav", ".cache/x.wav", "b/._c.flac", ".a.wav.0-1.partial")
    assert found(folder) == ["a.wav", "b/c.FLAC", "b/d/e.mp3"]


def test_a_link_to_nothing_is_listed_so_that_somebody_notices(folder: Path) -> None:
    (folder / "gone.wav").symlink_to("nowhere")
    assert found(folder) == ["a.wav", "b/c.FLAC", "b/d/e.mp3", "gone.wav"]


def test_a_folder_named_like_a_sound_is_a_folder(folder: Path) -> None:
    touch(folder, "g.wav/h.wav")
    assert "g.wav/h.wav" in found(folder)


def test_folders_left_out_are_not_entered(folder: Path, tmp_path: Path) -> None:
    touch(tmp_path / "else", "1.wav")
    (folder / "link").symlink_to(tmp_path / "else")
    left_out = (folder / "b" / "d").resolve(), (tmp_path / "else").resolve()
    assert found(folder, *left_out) == ["a.wav", "b/c.FLAC"]


def test_what_is_written_whole_appears_at_once_and_alone(tmp_path: Path) -> None:
    with paths.whole(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        assert [p.name for p in tmp_path.iterdir()] == [partial.name]
        assert partial.name.startswith(".a.txt.")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_what_fails_in_the_middle_leaves_the_old(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), paths.whole(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.txt"
    message = r"a.txt: cannot be written \(No such file or directory\)"
    with pytest.raises(OutputError, match=message), paths.whole(path) as partial:
        partial.write_text("new")


def test_only_what_dead_processes_of_this_machine_left_is_swept(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from mcspex_cli import paths\n"
    program += "paths.partial(Path(sys.argv[1])).touch()"
    touch(tmp_path, "deep/x.wav")
    for name in ("dead.wav", "deep/dead.flac"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], cwd=ROOT, check=True)
    living = paths.partial(tmp_path / "living.wav")
    living.touch()
    assert len(list(tmp_path.rglob(".*dead*.partial"))) == 2
    foreign = living.name.replace(paths._MACHINE, "0" * 8).replace(str(os.getpid()), "999999999")
    kept = {"deep/x.wav", living.name, foreign, ".x.partial", "x.partial", ".y.wav.12.partial"}
    touch(tmp_path, *kept)
    paths.sweep(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who is a zombie")
def test_a_zombie_is_dead(tmp_path: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert zombie.stdout
    zombie.stdout.read()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    name = paths.partial(tmp_path / "a.wav").name
    touch(tmp_path, name.replace(f"-{os.getpid()}.", f"-{zombie.pid}."))
    paths.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    zombie.stdout.close()
    assert zombie.wait() == 0


def test_another_users_process_is_alive(tmp_path: Path) -> None:
    name = paths.partial(tmp_path / "a.wav").name.replace(f"-{os.getpid()}.", "-1.")
    touch(tmp_path, name)
    paths.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), paths.whole_folder(tmp_path / "a" / "out") as folder:
        touch(folder, "1")
        raise RuntimeError
    assert not list((tmp_path / "a").iterdir())
    with paths.whole_folder(tmp_path / "a" / "out") as folder:
        touch(folder, "1", "2")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in tmp_path.rglob("*")].count("out") == 1
    (tmp_path / "a" / "out" / "3").write_text("kept")
    with paths.whole_folder(tmp_path / "a" / "out") as folder:
        (folder / "1").write_text("new")
    made = {p.name: p.read_text() for p in (tmp_path / "a" / "out").iterdir()}
    assert made == {"1": "new", "2": "", "3": "kept"}
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_dead_ones_folder_is_swept_up(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = paths.partial(tmp_path / "out").name.replace(f"-{os.getpid()}.", f"-{process.pid}.")
    touch(tmp_path / name, "1")
    mine = paths.partial(tmp_path / "out")
    touch(mine, "1")
    paths.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


def test_two_that_make_one_folder_do_no_harm(tmp_path: Path) -> None:
    with paths.whole_folder(tmp_path / "out") as folder:
        touch(folder, "1")
        touch(tmp_path / "out", "1")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"out: cannot be written \(Not a directory\)"),
        paths.whole_folder(tmp_path / "file" / "out"),
    ):
        pass
