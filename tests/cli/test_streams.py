"""Sound between pipes: from other programs, to nobody, and what is left where it ends too soon."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.cli import console
from tests.conftest import RATE_HZ, ROOT, buzz

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty; the command finds the package."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@pytest.fixture
def command(kept: Path, scene: Path, exported: Path) -> list[str]:
    """Takes one stream to another."""
    words = [sys.executable, "-W", "error", "-m", "mcspex_cli", "extract", "-", "-o", "-"]
    words += ["--ref", str(scene / "reference.wav"), "--model", str(exported)]
    return [*words, "--device", "cpu", "-q"]


@pytest.fixture
def terminal() -> Iterator[int]:
    """One end of a terminal."""
    import pty

    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def in_shell(command: list[str], line: str) -> list[str]:
    """The command as a shell runs it in a line."""
    return ["sh", "-c", line, "sh", *command]


FEEDERS = [
    ("cat", "mixture.wav"),
    ("sox", "-V1", "mixture.wav", "-t", "wav", "-"),
    ("ffmpeg", "-v", "error", "-i", "mixture.wav", "-f", "wav", "-"),
    ("ffmpeg", "-v", "error", "-i", "mixture.wav", "-c:a", "flac", "-f", "matroska", "-"),
]


@pytest.mark.parametrize("feeder", FEEDERS, ids=" ".join)
def test_a_pipeline_of_programs_gives_what_a_file_gives(
    command: list[str], kept: Path, scene: Path, feeder: tuple[str, ...]
) -> None:
    if not shutil.which(feeder[0]):
        pytest.skip(f"{feeder[0]} is not installed")
    with subprocess.Popen(feeder, cwd=scene, stdout=subprocess.PIPE) as process:
        done = subprocess.run(command, stdin=process.stdout, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    words = command[command.index("extract") :]
    words[1:4] = [str(scene / "mixture.wav"), "-o", str(scene / "file.wav")]
    assert CliRunner().invoke(main, words).exit_code == 0
    estimate, expected = (
        soundfile.read(source)[0] for source in (io.BytesIO(done.stdout), scene / "file.wav")
    )
    assert len(estimate) == len(expected) == 2 * RATE_HZ
    assert np.abs(estimate - expected).max() <= 2 / 2**15
    assert list(kept.iterdir()) == []


@posix
def test_streams_that_another_program_made_non_blocking_lose_nothing(
    command: list[str], scene: Path
) -> None:
    audio.write(scene / "long.wav", buzz(110, 10, 1) + buzz(190, 10, 2), RATE_HZ)
    data = (scene / "long.wav").read_bytes()
    (source, ours), (sound, sink) = os.pipe(), os.pipe()
    for end in (source, sink):
        os.set_blocking(end, False)
    with subprocess.Popen(command, stdin=source, stdout=sink, stderr=subprocess.PIPE) as process:
        os.close(source)
        os.close(sink)
        with os.fdopen(ours, "wb", 0) as feed:
            for start in range(0, len(data), 2**14):
                feed.write(data[start : start + 2**14])
                time.sleep(0.3)
        with os.fdopen(sound, "rb") as out:
            time.sleep(2)  # until the pipe is full
            estimate = out.read()
        assert process.stderr
        assert process.stderr.read() == b""
    assert (process.returncode, len(estimate)) == (0, len(data))


def test_a_listener_who_has_gone_is_one_line(command: list[str], kept: Path, scene: Path) -> None:
    with (
        (scene / "mixture.wav").open("rb") as mixture,
        subprocess.Popen(
            command, stdin=mixture, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 1
    assert said == "error: standard output was closed before all was written.\n"
    assert list(kept.iterdir()) == []


@posix
@pytest.mark.parametrize(("line", "state"), [('exec "$@"', "a terminal"), ('"$@" <&-', "closed")])
def test_sound_does_not_come_from_where_there_is_none(
    command: list[str], terminal: int, line: str, state: str
) -> None:
    words = in_shell(command, line)
    done = subprocess.run(words, stdin=terminal, capture_output=True, text=True, check=False)
    said = f"error: standard input is {state}. Pipe a sound file into it.\n"
    assert (done.stdout, done.stderr) == ("", said)


@posix
@pytest.mark.parametrize(("line", "state"), [('exec "$@"', "a terminal"), ('"$@" >&-', "closed")])
def test_sound_is_not_written_where_it_is_no_use(
    command: list[str], terminal: int, line: str, state: str
) -> None:
    words = in_shell(command, line)
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    said = f"error: standard output is {state}. Redirect it to a file or program.\n"
    assert (done.returncode, done.stderr) == (1, said)


@posix
@pytest.mark.parametrize(
    ("blocks", "output", "refused", "is_temporary"),
    [
        (18, "-", "standard input: cannot be kept", True),
        (18, "o.wav", "standard input: cannot be kept", True),
        (90, "-", "standard output: cannot be written", True),
        (90, "o.wav", "o.wav: cannot be written", False),
    ],
)
def test_a_full_disk_is_named_and_nothing_is_left(
    command: list[str], kept: Path, scene: Path, blocks: int, output: str, refused: str,
    is_temporary: bool,
) -> None:  # fmt: skip
    """The input is of 63 blocks of 512 bytes, and the output of twice as many."""
    limited = in_shell(command, f'ulimit -f {blocks}; exec "$@"')
    words = [*limited, "--subtype", "FLOAT", "-o", output]
    before, sound = set(scene.iterdir()), (scene / "mixture.wav").read_bytes()
    done = subprocess.run(words, input=sound, capture_output=True, check=False, cwd=scene)
    said = f"error: {refused}: it is larger than the disk or its limit allows. Choose another disk."
    said += f" Temporary files are in TMPDIR ({kept})." if is_temporary else ""
    assert (done.returncode, done.stderr.decode()) == (1, f"{said}\n")
    assert set(scene.iterdir()) == before
    assert list(kept.iterdir()) == []


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_stream_leaves_nothing(
    command: list[str], kept: Path, scene: Path, number: int
) -> None:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write((scene / "mixture.wav").read_bytes())
        process.stdin.flush()
        while not any(path.is_file() for path in kept.rglob("*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 130)
    if number == signal.SIGKILL:  # what a killed process leaves, the next one removes
        assert list(kept.iterdir())
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert list(kept.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_costs_one_line(command: list[str], scene: Path) -> None:
    with Path("/dev/full").open("wb") as full, (scene / "mixture.wav").open("rb") as mixture:
        done = subprocess.run(
            command, stdin=mixture, stdout=full, stderr=subprocess.PIPE, text=True, check=False
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
