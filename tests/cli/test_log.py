"""--log-file: what is kept of what was said, and what cannot be forged in it."""

from __future__ import annotations

import os
import re
import shutil
from datetime import datetime, timezone
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mcspex_cli import __version__
from mcspex_cli.__main__ import Commands, main
from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL
from mcspex_cli.cli import console, options
from mcspex_cli.cli.doctor import Finding, show
from tests.cli.test_commands import COMMANDS, MODELS, run
from tests.conftest import EXAMPLES

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (INFO|WARNING|ERROR) (.*)\n")
FULL = Path("/dev/full")


def kept(path: Path) -> list[tuple[str, str]]:
    """The level and text of each line, all of which have to be lines of a log."""
    with path.open(newline="") as file:
        found = [LINE.fullmatch(line) for line in file]
    assert all(found)
    return [(line[2], line[3]) for line in found if line]


@pytest.mark.parametrize("name", [name for name, c in COMMANDS.items() if c is not MODELS])
def test_every_command_has_it_once(name: str) -> None:
    assert [p.name for p in COMMANDS[name].params].count("log_file") == 1


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("-", 2, "Error: Invalid value for '--log-file': messages go to standard error anyway."),
        ("", 2, "Error: Invalid value for '--log-file': the name is empty."),
        ("m.target.wav", 1, "error: m.target.wav: has another use in this command. Choose another"),
    ],
)
def test_a_place_for_no_log_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "mixture.flac", "m.flac")
    reference = EXAMPLES / "reference.flac"
    done = run("extract", "m.flac", "--ref", reference, "--log-file", name, "--overwrite")
    assert done.exit_code == code
    assert message in done.stderr


def test_a_run_is_kept_from_start_to_end_after_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.txt"
    before_it = "2026-01-01T00:00:00Z INFO what was there\n"
    path.write_text(before_it)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead of the log
    before = datetime.now(timezone.utc).replace(microsecond=0)
    done = run("models", "path", "no nsense", "--log-file", path)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no nsense: no such model.")
    text = path.read_text()
    assert text.startswith(before_it)
    path.write_text(text.removeprefix(before_it))
    start, error, end = kept(path)
    assert start[0] == "INFO"
    assert re.fullmatch(
        rf"mcspex {re.escape(__version__)}, Python 3\.\d+\.\S+: "
        rf"mcspex models path 'no nsense' --log-file {re.escape(str(path))}",
        start[1],
    )
    assert error == ("ERROR", done.stderr.removeprefix("error: ").rstrip("\n"))
    assert end[0] == "INFO"
    assert re.fullmatch(r"ended with exit code 1 after \d+\.\d s", end[1])
    said = datetime.strptime(path.read_text()[:20], "%Y-%m-%dT%H:%M:%S%z")
    assert before <= said <= datetime.now(timezone.utc)
    run("models", "path", DEFAULT_MODEL, "--log-file", path)
    assert [level for level, _ in kept(path)] == ["INFO", "ERROR", "INFO", "INFO", "INFO"]
    assert kept(path)[-1][1].startswith("ended with exit code 0 ")


def test_what_is_said_and_warned_of_is_kept(scene: Path, tiny_folder: Path) -> None:
    path = scene / "log.txt"
    words = ("extract", scene / "mixture.wav", "--ref", scene / "reference.wav", "--device", "cpu")
    done = run(*words, "--model", tiny_folder, "--precision", "float32", "--log-file", path)
    assert done.exit_code == 0, done.output
    said = [text for _, text in kept(path)[1:-1]]
    assert done.stderr.splitlines() == said
    assert any("mixture.target.wav" in text for text in said)
    assert (scene / "mixture.wav").exists()


def test_findings_are_kept(tmp_path: Path) -> None:
    console.logger.addHandler(console.LogFile(tmp_path / "log.txt"))
    show(Finding("soxr", "failed", "is gone", "Install it."))
    show(Finding("torch", "ok", "9.9"))
    console.close_log_files()
    assert kept(tmp_path / "log.txt") == [
        ("ERROR", "soxr: is gone. Install it."),
        ("INFO", "torch: 9.9."),
    ]


def test_long_work_says_once_a_minute_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = [0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock_s[0])
    for quiet, expected in ((False, "working: 50 %, 1 min 20 s left\n"), (True, "")):
        monkeypatch.setattr(console.messages, "quiet", quiet)
        for _ in console.track("abcd", "working", 8, lambda _: 2):
            clock_s[0] += 40
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028", "\x85", "\x1b[2K\n"])
def test_no_line_can_be_forged(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log.txt"
    forged = f"x{end}2026-01-01T00:00:00Z INFO ended with exit code 0 after 1.0 s"
    assert run("models", "path", forged, "--log-file", path).exit_code == 1
    assert [level for level, _ in kept(path)] == ["INFO", "ERROR", "INFO"]
    assert len(path.read_text().splitlines()) == 3
    assert "\x1b" not in path.read_text()


def test_wrong_usage_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert run("extract", "--ref", "a.wav", "--log-file", path).exit_code == 2
    _, error, end = kept(path)
    assert error == ("ERROR", "Missing argument 'MIXTURE...'.")
    assert end[1].startswith("ended with exit code 2 ")


def test_a_log_that_cannot_be_opened_is_refused_before_any_work(scene: Path) -> None:
    words = ("extract", scene / "mixture.wav", "--ref", scene / "reference.wav", "--log-file")
    for place in (scene, scene / "none" / "log.txt", scene / "mixture.wav" / "log.txt"):
        done = run(*words, place)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"error: {place}: cannot be written (")
        assert done.stderr.count("\n") == 1
    assert not (scene / "mixture.target.wav").exists()


def test_a_recording_is_no_log(scene: Path) -> None:
    for name in ("mixture.wav", "reference.wav"):
        before = (scene / name).read_bytes()
        done = run("models", "path", DEFAULT_MODEL, "--log-file", scene / name)
        assert done.exit_code == 1
        problem = "contains something other than a log. Choose another --log-file."
        assert done.stderr == f"error: {scene / name}: {problem}\n"
        assert (scene / name).read_bytes() == before


@pytest.mark.skipif(not FULL.exists(), reason="no disk is always full here")
def test_a_full_disk_is_warned_of_once_and_the_work_done() -> None:
    done = run("models", "path", DEFAULT_MODEL, "--log-file", FULL)
    assert (done.exit_code, done.stdout.rstrip().endswith(DEFAULT_MODEL)) == (0, True)
    assert done.stderr == (f"warning: {FULL}: the log is incomplete (No space left on device).\n")


@options.command()
def broken() -> None:
    """Have a bug."""
    raise ZeroDivisionError("here\n2026-01-01T00:00:00Z INFO forged")


@options.command()
def undecided() -> None:
    """Be left by whoever was asked."""
    raise click.Abort


def test_a_bugs_traceback_is_kept(tmp_path: Path) -> None:
    group = Commands(commands={"broken": broken, "undecided": undecided})
    path = tmp_path / "log.txt"
    done = CliRunner().invoke(group, ["broken", "--log-file", str(path)])
    assert isinstance(done.exception, ZeroDivisionError)
    lines = kept(path)
    assert lines[1] == ("ERROR", "Traceback (most recent call last):")
    assert ("ERROR", "ZeroDivisionError: here") in lines
    assert ("ERROR", "2026-01-01T00:00:00Z INFO forged") in lines
    assert lines[-1][1].startswith("ended with exit code 1 ")
    assert CliRunner().invoke(group, ["undecided", "--log-file", str(path)]).exit_code == 1
    assert ("ERROR", "aborted") in kept(path)


def test_one_commands_log_is_not_the_nexts(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    run("models", "path", "nonsense", "--log-file", path)
    before = path.read_bytes()
    assert CliRunner().invoke(main, ["models", "path", "nonsense"]).exit_code == 1
    assert path.read_bytes() == before


def test_passwords_of_urls_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    run("models", "path", "s3://ann:secret@store/model", "--log-file", path)
    assert "secret" not in path.read_text()
    assert "s3://store/model" in path.read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_that_nobody_reads_is_no_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run("models", "list", "--log-file", tmp_path / "pipe")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {tmp_path / 'pipe'}: cannot be written (")


def test_a_log_may_have_the_name_of_another_options_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("extract", "m.wav", "--ref", "a.wav", "--device", "cpu", "--log-file", "cpu")
    assert done.stderr == "error: a.wav: no such file or folder. Check the name.\n"
    assert "a.wav: no such file" in Path("cpu").read_text()


@pytest.mark.parametrize(
    "use",
    [
        ("batch", "--manifest", "{file}", "-o", "out"),
        ("extract", "mixture.wav", "--ref", "a.wav", "-o{file}"),
        ("extract", "mixture.wav", "--ref", "a.wav", "--ref={file}"),
        ("report", "{file}", "-o", "page.html"),
    ],
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "mixture,reference\n",
            "contains something other than a log. Choose another --log-file.\n",
        ),
        (None, "has another use in this command. Choose another --log-file.\n"),
    ],
)
def test_an_input_or_output_is_no_log(
    tmp_path: Path, use: tuple[str, ...], content: str | None, message: str
) -> None:
    file = tmp_path / "plan.csv"
    if content:
        file.write_text(content)
    (tmp_path / "x").mkdir()
    other_name = tmp_path / "x" / ".." / "plan.csv"
    done = run(*(word.format(file=file) for word in use), "--log-file", other_name)
    assert done.exit_code == 1
    assert done.stderr.endswith(f"plan.csv: {message}")
    if content:
        assert file.read_text() == content
