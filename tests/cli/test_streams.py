"""Sound through real pipes: from other programs, to other programs, and to nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio
from mcspex_cli.cli import console
from tests.conftest import EXAMPLES, RATE_HZ, ROOT, buzz

READ = """
from mcspex_cli import audio
from mcspex_cli.cli import console, extract
from mcspex_cli.errors import McspexError
try:
    console.check_sound_input("Pipe a sound file into it.")
    with extract._temporary_folder() as folder:
        path = folder / "stdin"
        with console.shown_as(path, "standard input"):
            extract._copy_stdin(path)
            print(path, flush=True)
            try:
                print(len(audio.read(path, 8000)))
            except McspexError as error:
                console.error(str(error))
except McspexError as error:
    console.error(str(error))
"""
"""Reads standard input as a sound file: prints where that was kept, and its length."""

WRITE = """
import sys
from pathlib import Path
from mcspex_cli.cli import console, extract
from mcspex_cli.errors import McspexError
try:
    console.check_sound_output()
    extract._copy_to_stdout(Path(sys.argv[1]))
except McspexError as error:
    console.error(str(error))
    sys.exit(error.exit_code)
"""
"""Copies a file to standard output."""

LENGTH = len(audio.read(EXAMPLES / "mixture.flac", RATE_HZ))

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


def command(script: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty; scripts find the package."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def fed(data: bytes) -> tuple[list[str], str]:
    """What the reading script prints, and says, of bytes that are piped into it."""
    done = subprocess.run(command(READ), input=data, capture_output=True, check=False)
    return done.stdout.decode().splitlines(), done.stderr.decode()


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Two seconds of sound."""
    audio.write(tmp_path / "a.wav", buzz(120, 2), RATE_HZ)
    return tmp_path / "a.wav"


FEEDERS = [
    ("ffmpeg", "-v", "error", "-i", "IN", "-f", "wav", "-"),
    ("ffmpeg", "-v", "error", "-i", "IN", "-c:a", "pcm_s24le", "-f", "wav", "pipe:1"),
    ("ffmpeg", "-v", "error", "-i", "IN", "-c:a", "libvorbis", "-f", "ogg", "-"),
    ("ffmpeg", "-v", "error", "-i", "IN", "-f", "matroska", "-"),
    ("sox", "-V1", "IN", "-t", "wav", "-"),
    ("sox", "-V1", "IN", "-b", "24", "-t", "wav", "-"),
    ("cat", "IN"),
]


@pytest.mark.parametrize("feeder", FEEDERS, ids=lambda words: "-".join(words[:1] + words[-3:-1]))
def test_other_programs_are_read_through_a_pipe(
    feeder: tuple[str, ...], kept: Path, tmp_path: Path
) -> None:
    if not shutil.which(feeder[0]):
        pytest.skip(f"{feeder[0]} is not installed")
    audio.write(tmp_path / "in.wav", audio.read(EXAMPLES / "mixture.flac", RATE_HZ), RATE_HZ)
    words = [str(tmp_path / "in.wav") if word == "IN" else word for word in feeder]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            command(READ), stdin=source.stdout, capture_output=True, text=True, check=False
        )
    path, length = done.stdout.splitlines()
    assert int(length) == pytest.approx(LENGTH, abs=64)
    assert Path(path).is_relative_to(kept)
    assert list(kept.iterdir()) == []
    assert done.stderr == ""


def test_a_stream_that_ends_early_is_truncated(kept: Path, wav: Path) -> None:
    (_,), said = fed(wav.read_bytes()[:20_000])
    assert said.startswith("error: standard input: truncated: 1.25 of 2.00 s are there. Copy it")
    assert list(kept.iterdir()) == []


def test_what_is_no_sound_is_called_standard_input(kept: Path) -> None:
    (path,), said = fed(b"no sound\n" * 100)
    assert said.startswith("error: standard input: not a readable sound file")
    assert path not in said
    assert said.count("\n") == 1


def test_nothing_at_all_is_refused(kept: Path) -> None:
    assert fed(b"") == ([], "error: standard input is empty. Pipe a sound file into it.\n")
    assert list(kept.iterdir()) == []


@posix
def test_a_terminal_is_no_sound(kept: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command(READ), stdin=theirs, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stderr == "error: standard input is a terminal. Pipe a sound file into it.\n"
    assert done.stdout == ""


@posix
def test_a_closed_standard_input_is_refused(kept: Path) -> None:
    words = ["sh", "-c", 'exec "$@" <&-', "sh", *command(READ)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == "error: standard input is closed. Pipe a sound file into it.\n"


@posix
def test_a_full_disk_is_an_error_and_leaves_nothing(kept: Path, wav: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    data = wav.read_bytes()
    done = subprocess.run(command(limited + READ), input=data, capture_output=True, check=False)
    said = "error: standard input: cannot be kept (File too large). Set TMPDIR.\n"
    assert done.stderr.decode() == said
    assert list(kept.iterdir()) == []


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stream_leaves_nothing(kept: Path, wav: Path, number: int) -> None:
    taught = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    waits = taught + READ.replace("print(len", "import os, sys; os.read(int(sys.argv[1]), 1); (len")
    theirs, ours = os.pipe()  # nothing is ever written to it
    with subprocess.Popen(
        command(waits, str(theirs)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[theirs],
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(wav.read_bytes())
        process.stdin.close()
        path = Path(process.stdout.readline().decode().strip())
        assert path.read_bytes() == wav.read_bytes()
        process.send_signal(number)
        process.wait(60)
    os.close(theirs)
    os.close(ours)
    assert list(kept.iterdir()) == []


def test_a_file_comes_out_byte_for_byte(kept: Path, wav: Path) -> None:
    done = subprocess.run(command(WRITE, wav), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == wav.read_bytes()


@pytest.mark.parametrize("seconds", [0.1, 60])
def test_a_reader_that_has_gone_costs_one_line(kept: Path, tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, np.tile(buzz(120, 0.1), round(10 * seconds)), RATE_HZ)
    with subprocess.Popen(
        command(WRITE, path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 1
    assert said == "error: standard output was closed before all was written.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_costs_one_line(kept: Path, wav: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(WRITE, wav), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    reason = "No space left on device"
    assert done.stderr == f"error: standard output: writing failed ({reason}).\n"


@posix
@pytest.mark.parametrize(
    "words",
    [
        "extract {mix} --ref {ref} -o - >> {mix}",
        "extract {mix} --ref {ref} -o - >> {ref}",
        "extract {mix} --ref {folder} -o - >> {ref}",
        "extract - --ref {ref} -o - < {mix} >> {mix}",
        "live --ref {ref} < {mix} >> {mix}",
        "live --ref {ref} < {mix} >> {ref}",
    ],
)
def test_sound_is_not_appended_to_an_input(kept: Path, tmp_path: Path, words: str) -> None:
    (tmp_path / "refs").mkdir()
    paths = {"mix": tmp_path / "mix.wav", "ref": tmp_path / "refs" / "ref.wav"}
    for seed, path in enumerate(paths.values()):
        audio.write(path, buzz(110, 1, seed), RATE_HZ)
    before = [path.read_bytes() for path in paths.values()]
    line = f"exec {sys.executable} -m mcspex_cli " + words.format(**paths, folder=tmp_path / "refs")
    done = subprocess.run(
        ["sh", "-c", line], stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output is an input, and inputs are never overwritten. Redirect it to "
        "another file.\n"
    )
    assert [path.read_bytes() for path in paths.values()] == before


@posix
@pytest.mark.parametrize(("closing", "state"), [("", "a terminal"), (">&-", "closed")])
def test_sound_is_not_written_where_it_is_no_use(
    kept: Path, tmp_path: Path, closing: str, state: str
) -> None:
    import pty

    words = ["sh", "-c", f'exec "$@" {closing}', "sh", *command(WRITE, tmp_path / "none.wav")]
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            words, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    said = f"error: standard output is {state}. Redirect it to a file or program.\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_messages_use_a_files_name_longest_path_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = tmp_path / "a", tmp_path / "a" / "b.wav"
    with console.shown_as(short, "folder"), console.shown_as(long, "standard input"):
        console.say(f"{long} in {short}")
        console.warn(f"{long}: odd")
        console.error(f"{long}: bad")
    console.say(f"{long}")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "standard input in folder",
        "warning: standard input: odd",
        "error: standard input: bad",
        str(long),
    ]
