"""Files: what a search finds, and whose unfinished files are swept up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcspex_cli import files
from mcspex_cli.batch.manifest import files_by_name
from mcspex_cli.errors import AudioError, ConfigError, DiskFullError, OutputError
from tests.conftest import ROOT


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, *without: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in files.find(folder, set(without))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path / "root", "a.wav", "b/c.FLAC", "b/d/e.mp3", "notes.txt", "f.wav.bak")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("names", "links", "expected"),
    [
        ([], {}, []),
        (["g.wav/h.wav"], {}, ["g.wav/h.wav"]),
        ([".a.wav", ".cache/x.wav", "b/._c.flac", ".a.wav.0-1.partial"], {}, []),
        (
            ["../else/x/1.wav", "../else/2.wav"],
            {"b/link": "../../else", "z.wav": "../else/2.wav"},
            ["b/link/2.wav", "b/link/x/1.wav", "z.wav"],
        ),
        (["../else/1.wav"], {"one": "../else", "two": "../else"}, ["one/1.wav", "two/1.wav"]),
        (
            ["one/1.wav", "two/2.wav"],
            {"one/to": "../two", "two/to": "../one"},
            ["one/1.wav", "one/to/2.wav", "two/2.wav", "two/to/1.wav"],
        ),
        ([], {"gone.wav": "nowhere"}, ["gone.wav"]),
        ([], {"gone.wav": "gone.wav"}, ["gone.wav"]),
        ([], {"gone.wav": "x" * 300}, ["gone.wav"]),
    ],
)
def test_files_links_and_links_to_nothing_are_listed_and_hidden_ones_are_not(
    folder: Path, names: list[str], links: dict[str, str], expected: list[str]
) -> None:
    touch(folder, *names)
    for name, target in links.items():
        (folder / name).symlink_to(target)
    expected = sorted(["a.wav", "b/c.FLAC", "b/d/e.mp3", *expected])
    assert found(folder) == expected
    (folder.parent / "link").symlink_to(folder)
    assert found(folder.parent / "link") == expected


@pytest.mark.parametrize("target", [".", "b", "b/d", "b/d/loop"])
def test_a_link_in_a_circle_is_named_once_and_the_rest_is_found(
    folder: Path, target: str, warnings: Callable[[], list[str]]
) -> None:
    before = files.find(folder)
    (folder / "b" / "d" / "loop").symlink_to(folder / target)
    assert files.find(folder) == files.find(folder) == before
    loop = folder / "b" / "d" / "loop"
    expected = [f"{loop}: links to a folder above it and is not followed."]
    assert warnings() == (
        [] if target.endswith("loop") else expected
    )  # to itself: no folder at all


def test_containers_are_found_like_any_recording(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.mp3", "a.mp4", "c.MOV", "d/a.m4a", "d.txt", "e.mp4.flac")
    names = ["a.mp3", "a.mp4", "a.wav", "c.MOV", "d/a.m4a", "e.mp4.flac"]
    assert found(tmp_path) == names
    problems: list[str] = []
    named = files_by_name(tmp_path, "references", problems)
    assert (list(named), len(problems)) == (["a", "c", "d/a", "e.mp4"], 2)


def test_every_kind_of_recording_that_can_be_read_is_found(tmp_path: Path) -> None:
    read = (
        "wav WAV flac ogg opus mp3 mp2 m4a m4b mp4 mkv mka mov webm aac ac3 eac3 dts wma wmv amr "
    )
    read += "3gp 3gpp 3ga 3g2 avi flv mpg vob ts m2t m2ts wv tta ape tak mpc sph aiff caf w64 au "
    read += "bwf bw64 weba m4r mpga gsm qcp"
    names = sorted(f"{number}.{suffix}" for number, suffix in enumerate(read.split()))
    touch(tmp_path, *names, "a.txt", "b.csv", "c.m3u8", "d.json", "e")
    assert found(tmp_path) == names


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none: cannot be searched: its folder does not exist"):
        files.find(tmp_path / "none")


def test_folders_left_out_are_not_entered(folder: Path, tmp_path: Path) -> None:
    touch(tmp_path / "else", "1.wav")
    (folder / "link").symlink_to(tmp_path / "else")
    left_out = (folder / "b" / "d").resolve(), (tmp_path / "else").resolve()
    assert found(folder, *left_out) == ["a.wav", "b/c.FLAC"]


def test_what_is_written_whole_appears_at_once_and_alone(tmp_path: Path) -> None:
    with files.whole(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        assert [p.name for p in tmp_path.iterdir()] == [partial.name]
        assert partial.name.startswith(".a.txt.")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_what_fails_in_the_middle_leaves_the_old(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), files.whole(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="has no such permissions")
def test_what_replaces_a_file_or_folder_has_its_permissions(tmp_path: Path) -> None:
    alone, both, folder = tmp_path / "alone", tmp_path / "both", tmp_path / "folder"
    touch(tmp_path, "alone", "both", "folder/1", "folder/2")
    modes = {alone: 0o600, both: 0o640, folder / "1": 0o604, folder / "2": 0o666, folder: 0o711}
    for path, mode in modes.items():
        path.chmod(mode)
    with files.whole(alone) as partial:
        partial.write_text("new")
    with files.together():
        for path in (both, tmp_path / "new"):
            with files.whole(path) as partial:
                partial.write_text("new")
    with files.whole_folder(folder) as unfinished:
        (unfinished / "1").write_text("new")
    assert {path: path.stat().st_mode & 0o777 for path in modes} == modes
    assert all(path.read_text() == "new" for path in (alone, both, folder / "1"))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.txt"
    message = r"a.txt: cannot be written: its folder does not exist\. Make that folder first"
    with pytest.raises(OutputError, match=message), files.whole(path) as partial:
        partial.write_text("new")


@pytest.mark.parametrize("target", ["nowhere", "place"])
def test_a_link_to_nothing_is_no_folder_for_outputs(tmp_path: Path, target: str) -> None:
    (tmp_path / "place").symlink_to(target)
    message = r"b.wav: .*place is not a folder\. Choose another place\."
    with pytest.raises(OutputError, match=message):
        files.check_output(tmp_path / "place" / "a" / "b.wav", overwrite=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_may_never_end_is_not_read_but_a_pipe_without_a_name_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ConfigError, match=r"is not a regular file\. Save its content to one"):
            files.read_text(path)
    end, start = os.pipe()
    os.write(start, "\ufeffa\r\n".encode())
    os.close(start)
    assert files.read_text(Path(f"/dev/fd/{end}")) == "a\r\n"
    os.close(end)


def test_files_written_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write(*names: str) -> None:
        with files.together():
            for name in names:
                with files.whole(tmp_path / name) as partial:
                    partial.write_text("new")
                assert {(tmp_path / n).read_text() for n in "a"} == {"old"}

    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written: it is a folder"):
        write("a", "b", "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]
    write("a", "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "folder"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"


def test_what_has_its_name_is_taken_back_where_another_cannot_get_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with files.together():
            for name in "abc":
                with files.whole(tmp_path / name) as partial:
                    partial.write_text("new")
            (tmp_path / "c").mkdir()  # somebody else's, just now

    with pytest.raises(OutputError, match="c: cannot be written: it is a folder"):
        write()
    (tmp_path / "c").rmdir()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_only_what_dead_processes_of_this_machine_left_is_swept(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from mcspex_cli import files\n"
    program += "files.hidden_name(Path(sys.argv[1])).touch()"
    touch(tmp_path, "deep/x.wav")
    living = files.hidden_name(tmp_path / "living.wav")
    living.touch()
    for name in ("dead.wav", "deep/dead.flac"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], cwd=ROOT, check=True)
    assert len(list(tmp_path.rglob(".*dead*.partial"))) == 2
    foreign = living.name.replace(files._MACHINE, "0" * 8).replace(str(os.getpid()), "999999999")
    kept = {"deep/x.wav", living.name, foreign, ".x.partial", "x.partial", ".y.wav.12.partial"}
    touch(tmp_path, *kept)
    files.sweep(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who is a zombie")
def test_a_zombie_is_dead(tmp_path: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert zombie.stdout
    zombie.stdout.read()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    name = files.hidden_name(tmp_path / "a.wav").name
    touch(tmp_path, name.replace(f"-{os.getpid()}-", f"-{zombie.pid}-"))
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    zombie.stdout.close()
    assert zombie.wait() == 0


def test_another_users_process_is_alive(tmp_path: Path) -> None:
    name = files.hidden_name(tmp_path / "a.wav").name.replace(f"-{os.getpid()}-", "-1-")
    touch(tmp_path, name)
    files.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "a" / "out") as folder:
        touch(folder, "1")
        raise RuntimeError
    assert not list((tmp_path / "a").iterdir())
    with files.whole_folder(tmp_path / "a" / "out") as folder:
        touch(folder, "1", "2")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in tmp_path.rglob("*")].count("out") == 1
    (tmp_path / "a" / "out" / "3").write_text("kept")
    with files.whole_folder(tmp_path / "a" / "out") as folder:
        (folder / "1").write_text("new")
    made = {p.name: p.read_text() for p in (tmp_path / "a" / "out").iterdir()}
    assert made == {"1": "new", "2": "", "3": "kept"}
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_dead_ones_folder_is_swept_up(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = files.hidden_name(tmp_path / "out").name.replace(f"-{os.getpid()}-", f"-{process.pid}-")
    touch(tmp_path / name, "1")
    mine = files.hidden_name(tmp_path / "out")
    touch(mine, "1")
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


def test_two_that_make_one_folder_do_no_harm(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "out") as folder:
        touch(folder, "1")
        touch(tmp_path / "out", "1")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_where_a_disk_is_mounted_is_refused_before_the_work() -> None:
    with (
        pytest.raises(OutputError, match=r"^/: cannot be written: .* a disk is mounted there"),
        files.whole_folder(Path("/")),
    ):
        pytest.fail("it cannot be replaced")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"out: cannot be written: a part of this path is a file"),
        files.whole_folder(tmp_path / "file" / "out"),
    ):
        pass


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from mcspex_cli import files\n"
        "with files.whole(Path(sys.argv[1])) as name:\n"
        "    name.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    assert len(list(tmp_path.iterdir())) == 1
    files.check_output(tmp_path / "b.txt", overwrite=False)  # a dry run, say, which removes nothing
    assert len(list(tmp_path.iterdir())) == 1
    with files.whole(tmp_path / "b.txt") as partial:
        partial.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with files.whole(tmp_path / "a.txt") as partial:
                partial.write_text(str(number) * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set((tmp_path / "a.txt").read_text())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folders_files_are_all_old_or_all_new_whenever_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """Kill a writer at each of its system calls that matter, then look at what is there."""
    program = (
        "import os, sys; from pathlib import Path; from mcspex_cli import files\n"
        "if sys.argv[2] == 'False': files._exchange = lambda one, other: False\n"
        "def hook(event, arguments):\n"
        "    global left\n"
        "    if event in ('os.rename', 'open', 'os.link', 'os.mkdir', 'os.remove', 'os.rmdir'):\n"
        "        left -= 1\n"
        "        if left == 0: os._exit(9)\n"
        "for left in range(1, 40):\n"
        "    if process := os.fork():\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)\n"
        "        continue\n"
        "    folder = Path(sys.argv[1], str(left), 'model')\n"
        "    sys.addaudithook(hook)\n"
        "    with files.whole_folder(folder) as new:\n"
        "        for name in 'ab': (new / name).write_text('new')\n"
        "    os._exit(0)\n"
    )
    folders = [tmp_path / str(left) / "model" for left in range(1, 40)]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in "abc":
            (folder / name).write_text("old")
    command = [sys.executable, "-c", program, str(tmp_path), str(exchange)]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    codes = [int(line) for line in said.split()]
    assert codes == sorted(codes, reverse=True)
    assert set(codes) == {9, 0}
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)
    states = []
    for folder in folders:
        with pytest.raises(RuntimeError), files.whole_folder(folder):
            raise RuntimeError
        states.append("".join((folder / name).read_text() for name in "abc"))
    assert set(states) == {"oldoldold", "newnewold"}
    assert states == sorted(states, reverse=True)
    for folder in folders:
        with files.whole_folder(folder) as unfinished:
            (unfinished / "c").write_text("last")
        assert (folder / "c").read_text() == "last"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on files")
def test_no_room_and_no_permission_have_their_own_sentences(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(OutputError, match=r"a: cannot be written: it is larger than the disk"),
            files.whole(tmp_path / "a") as partial,
        ):
            partial.write_bytes(bytes(2000))
        with (
            pytest.raises(OutputError, match=rf"^{tmp_path}/set/b: cannot be written: it "),
            files.whole_folder(tmp_path / "set") as folder,
            files.whole(folder / "b") as partial,
        ):
            partial.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    full = files.output_error(tmp_path / "a", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, DiskFullError)
    assert str(full).endswith("the disk is full. Free some space, or choose another disk.")
    for code in files._REASONS:
        reason, remedy = files.explain(OSError(code, os.strerror(code))).split(". ")
        assert reason[0].islower()
        assert remedy[0].isupper()
    assert files.explain(OSError(errno.EXDEV, "Odd")) == "Odd. Check this path."
    with (
        pytest.raises(OutputError, match=r"its name is too long\. Choose a shorter one"),
        files.whole(tmp_path / ("n" * 300)) as partial,
    ):
        partial.touch()
    with (
        pytest.raises(OutputError, match=r"cannot be written: it is a folder\. Name a file"),
        files.whole(tmp_path) as partial,
    ):
        partial.touch()
