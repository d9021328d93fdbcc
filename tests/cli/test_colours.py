"""Colours on a real terminal, and none where NO_COLOR, a pipe or a log asks for none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT

pty = pytest.importorskip("pty")

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def in_terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run a command whose input, output and errors are a terminal; its exit code and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 4096):
            said += block
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), said.decode(errors="replace")


@pytest.fixture
def mcspex(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the command in a terminal; keywords are environment variables."""
    (tmp_path / "shadow" / "torch").mkdir(parents=True)
    (tmp_path / "shadow" / "torch" / "__init__.py").write_text("raise OSError('none here')\n")

    def run(*words: object, torch: bool = False, **environment: str) -> tuple[int, str]:
        places = [ROOT] if torch else [tmp_path / "shadow", ROOT]
        given = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        given |= {"PYTHONPATH": os.pathsep.join(map(str, places)), **environment}
        command = [sys.executable, "-m", "mcspex_cli", *map(str, words)]
        return in_terminal(command, tmp_path, given)

    return run


def test_doctor(mcspex: Callable[..., tuple[int, str]]) -> None:
    code, said = mcspex("doctor", "--offline")
    assert code == 1
    assert "\x1b[32mok       \x1b[0mPython" in said
    assert "\x1b[31mfailed   \x1b[0mtorch" in said
    code, said = mcspex("doctor", "--offline", NO_COLOR="1")
    assert code == 1
    assert "failed   torch" in said
    assert "\x1b" not in said


def test_errors_and_an_empty_no_color(mcspex: Callable[..., tuple[int, str]]) -> None:
    words = ("models", "path", "nonsense")
    assert "\x1b[31merror: \x1b[0mnonsense: no such model" in mcspex(*words)[1]
    assert "\x1b[31merror: " in mcspex(*words, NO_COLOR="")[1]
    assert mcspex(*words, NO_COLOR="1")[1].startswith("error: nonsense: no such model")


def test_tables(mcspex: Callable[..., tuple[int, str]]) -> None:
    for environment in ({}, {"NO_COLOR": "1"}):
        code, said = mcspex("models", "list", **environment)
        assert code == 0
        assert "mcspex-16k" in said
        assert not COLOUR.search(said)  # headings are bold, which is no colour


def test_progress_bars_and_their_absence_from_a_log(
    mcspex: Callable[..., tuple[int, str]], corpus: Path, tmp_path: Path
) -> None:
    recipe, log = corpus / "recipe.csv", tmp_path / "log.txt"
    recipe.write_text(
        "id,target,interferer,reference,snr_db\none,ann/a.flac,bob/b.flac,ann/b.flac,0\n"
    )
    words = ("simulate", "--recipe", recipe, "--log-file", log, "-o", "mixed")
    code, said = mcspex(*words, torch=True)
    assert code == 0, said
    assert "rendering" in said
    assert COLOUR.search(said)
    kept = log.read_text()
    assert "INFO mixed: 1 mixture " in kept
    assert "\x1b" not in kept
    assert "rendering" not in kept


def test_a_progress_bar_without_colours(tmp_path: Path) -> None:
    code = (
        "from mcspex_cli.cli import console\n"
        "with console.progress('working', 2) as update: update(advance=1)"
    )
    for no_color, coloured in (("", True), ("1", False)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": no_color}
        _, said = in_terminal([sys.executable, "-c", code], tmp_path, environment)
        assert "working" in said
        assert bool(COLOUR.search(said)) is coloured


def test_none_in_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mcspex_cli", "models", "path", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: nonsense")


def test_nothing_is_said_in_a_bars_line(tmp_path: Path) -> None:
    code = (
        "from mcspex_cli.cli import console\n"
        "with console.progress('working', 2) as update:\n"
        "    update(advance=1, refresh=True)\n"
        "    console.warn('careful')\n"
        "    console.say('a [b] ' + 'long ' * 40)\n"
        "console.say('after')\n"
    )
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    status, said = in_terminal([sys.executable, "-c", code], tmp_path, given)
    assert status == 0
    lines = re.split(r"\r\n|\r", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said))
    for told in ("warning: careful", "a [b] " + "long " * 40, "after"):
        assert told.rstrip() in map(str.rstrip, lines)
