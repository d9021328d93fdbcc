"""Completion in the real shells, typed into a terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.names import DEFAULT_MODEL
from tests.conftest import ROOT

pytest.importorskip("pty")

from tests.cli.terminals import in_terminal

CASES = [
    ("ext", "extract"),
    ("extract --preci", "extract --precision"),
    ("extract --precision bf", "extract --precision bfloat16"),
    ("extract --model mcs", f"extract --model {DEFAULT_MODEL}"),
    ("extract --model ann", "extract --model ann/voices"),
    ("extract --model my_", "extract --model my_folder/"),
    ("extract --ref unus", "extract --ref unusual.wav"),
    ("extract unus", "extract unusual.wav"),
    ("models ver", "models verify"),
    ("models show mcs", f"models show {DEFAULT_MODEL}"),
    ("models push my_", "models push my_folder/"),
    ("completion f", "completion fish"),
]


def needs(shell: str) -> pytest.MarkDecorator:
    """Skip where a shell is not installed."""
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not here")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder to type in, with bin/mcspex, which tells what it is run with, and a Hub model."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "unusual.wav").write_bytes(b"")
    (folder / "my_folder").mkdir()
    (folder / "bin").mkdir()
    script = folder / "bin" / "mcspex"
    run = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m mcspex_cli"
    script.write_text(
        f'#!/bin/sh\n[ -n "$_MCSPEX_COMPLETE" ] && {run} "$@"\n[ "$1" = completion ] && [ -n '
        f'"$REAL" ] && {run} "$@"\necho "RAN:<$*>"\n'
    )
    script.chmod(0o755)
    snapshot = folder / "hub" / "models--ann--voices" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_folder, snapshot)
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [script, "completion", shell],
            env={**surroundings(folder), "REAL": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        (folder / f"mcspex.{shell}").write_text(done.stdout)
    return folder


def surroundings(home: Path) -> dict[str, str]:
    """The environment of a shell there."""
    places = os.pathsep.join([str(home / "bin"), os.environ["PATH"]])
    return {
        "PATH": places,
        "HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "LC_ALL": "C.UTF-8",
    }


def ran(said: str) -> list[str]:
    """The commands that were run in the end, as completed."""
    return [part.partition(">")[0].strip() for part in said.split("RAN:<")[1:]]


def wanted() -> list[str]:
    """What all cases should come to."""
    return [line for _, line in CASES]


@needs("bash")
def test_bash(home: Path) -> None:
    lines = "".join(f"mcspex {typed}\t\n" for typed, _ in CASES)
    command = ["bash", "--norc", "--noprofile", "-i"]
    typed = f". ./mcspex.bash\n{lines}exit 0\n"
    code, said = in_terminal(command, home, surroundings(home), typed)
    assert code == 0, said
    assert ran(said) == wanted()


@needs("zsh")
def test_zsh(home: Path) -> None:
    lines = "".join(f"mcspex {typed}\t\n" for typed, _ in CASES)
    typed = f"autoload -U compinit; compinit -u -D; . ./mcspex.zsh\n{lines}exit 0\n"
    code, said = in_terminal(["zsh", "-f", "-i"], home, surroundings(home), typed)
    assert code == 0, said
    assert ran(said) == [line.rstrip("/") for line in wanted()]  # it takes the last one back


@needs("fish")
@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_fish(home: Path, typed: str, completed: str) -> None:
    code = f"source mcspex.fish; complete -C {shlex.quote(f'mcspex {typed}')}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code],
        cwd=home,
        env=surroundings(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert completed.rpartition(" ")[2] in offered


def test_the_script_says_how_it_is_installed_on_a_terminal(home: Path) -> None:
    command = [sys.executable, "-m", "mcspex_cli", "completion", "bash"]
    environment = {**surroundings(home), "PYTHONPATH": str(ROOT)}
    _, said = in_terminal(command, home, environment)
    assert "To install it: mcspex completion bash > ~/.local/share/" in said


def test_another_shell_is_wrong_usage() -> None:
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


def test_models_are_offered_without_torch(home: Path) -> None:
    """And nothing is logged while somebody types."""
    code = (
        "import sys\nfrom mcspex_cli.__main__ import main\n"
        "try: main(prog_name='mcspex')\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **surroundings(home),
            "PYTHONPATH": str(ROOT),
            "_MCSPEX_COMPLETE": "bash_complete",
            "COMP_WORDS": f"mcspex extract --log-file {home / 'typed.log'} --model a",
            "COMP_CWORD": "5",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["dir,a", "plain,ann/voices"]
    assert not (home / "typed.log").exists()
