"""The other commands, and what all commands share."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from mcspex_cli import __main__, __version__, audio
from mcspex_cli.__main__ import main
from mcspex_cli.extraction import runtime
from tests.conftest import EXAMPLES, RATE_HZ, ROOT, buzz

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def run(*words: str) -> click.testing.Result:
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["extract", "--help"],
        ["extract"],
        ["models", "calibrate", "nobody", "speakers"],
        ["simulate", "nobody", "-o", "out"],
        ["simulate", "--recipe", "none.csv", "-o", "out"],
    ],
)
def test_what_needs_no_network_needs_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom mcspex_cli.__main__ import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'rich', 'soundfile', 'huggingface_hub'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_fast() -> None:
    command = [sys.executable, "-m", "mcspex_cli", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds / 5 < 0.4  # about 0.1 s of a processor; the rest is room for a busy machine


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"mcspex, version {__version__}\n"


MODELS = main.commands["models"]
assert isinstance(MODELS, click.Group)
COMMANDS = {**main.commands, **{f"models {name}": c for name, c in MODELS.commands.items()}}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert any(f"mcspex {name}" in page.read_text() for page in PAGES)
    command = COMMANDS[name]
    assert command.help
    assert run(*name.split(), "--help").exit_code == 0
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_simulate_then_train_then_extract_then_score(corpus: Path) -> None:
    recipe, out = corpus / "recipe.csv", corpus.parent / "mixed"
    recipe.write_text(
        "id,target,interferer,reference,snr_db\none,ann/a.flac,bob/b.flac,ann/b.flac,0\n"
    )
    done = run("simulate", "--recipe", recipe, "-o", out)
    assert (done.exit_code, done.stderr) == (0, f"{out}: 1 mixture at 8000 Hz\n")
    config = corpus.parent / "train.toml"
    config.write_text(
        '[model]\nsize = "tiny"\n[data]\ntrain = ["speech"]\nvalidation = "mixed"\n'
        "[mixtures]\nsegment_s = 0.5\nreference_s = [0.5, 0.6]\n"
        '[optimiser]\nsteps = 4\nbatch = 2\n[run]\nout = "run"\nlog_every_steps = 2\n'
        'device = "cpu"\n'
    )
    done = run("train", config)
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("3 speakers, 0.00 h of speech\nstep 2  loss ")
    assert "validation SI-SDRi" in done.stderr
    model = corpus.parent / "run" / "best"
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(
        rf"{model}: the trained model \(validation SI-SDRi \S+ dB\). Use it with: "
        rf"mcspex extract MIXTURE --ref REFERENCE --model {model}",
        last,
    )
    again = run("train", config)
    assert again.exit_code == 1
    assert "Continue it with --resume" in again.stderr
    words = ("extract", out / "mix_clean/one.wav", "--ref", out / "references/one.wav")
    done = run(*words, "--model", model, "-o", out / "estimates", "--device", "cpu")
    assert done.exit_code == 0, done.output
    words = ("score", out / "estimates", "--truth", out / "s1", "--mixtures", out / "mix_clean")
    done = run(*words, "--json")
    assert json.loads(done.stdout)["summary"]["scored"] == 1


def test_training_in_a_precision_that_is_slow_here_is_a_warning(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_quick_bfloat16", lambda: False)
    config = corpus.parent / "train.toml"
    config.write_text(
        '[model]\nsize = "tiny"\n[data]\ntrain = ["speech"]\n[mixtures]\nsegment_s = 0.5\n'
        "reference_s = [0.5, 0.6]\n[optimiser]\nsteps = 1\nbatch = 2\n"
        '[run]\nout = "run"\ndevice = "cpu"\nprecision = "bfloat16"\n'
    )
    done = run("train", config)
    assert done.exit_code == 0, done.output
    assert "warning: bfloat16 is many times slower than float32 on this CPU." in done.stderr


ENDING = (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM))
NOT_IGNORED = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
"""Under nohup, programs ignore SIGHUP, too."""


@pytest.mark.parametrize("number", NOT_IGNORED)
def test_interrupted_training_goes_on_where_it_stopped(corpus: Path, number: int) -> None:
    config = corpus.parent / "train.toml"
    text = (
        '[model]\nsize = "tiny"\n[data]\ntrain = ["speech"]\n[mixtures]\nsegment_s = 0.5\n'
        "reference_s = [0.5, 0.6]\n[optimiser]\nsteps = STEPS\nbatch = 2\n"
        '[run]\nout = "run"\nlog_every_steps = 1\ndevice = "cpu"\n'
    )
    config.write_text(text.replace("STEPS", "1000000"))

    def interrupt() -> None:
        progress, deadline = corpus.parent / "run" / "progress.csv", time.monotonic() + 60
        while not progress.exists() or progress.read_text().count("\n") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    begun = run("train", config, "--minutes", 90.5)
    interrupting.join()
    assert begun.exit_code == 130, begun.output
    stopped = re.search(
        r"stopped after step (\d+)\. Continue with: mcspex train .* --resume --minutes 90.5\n",
        begun.stderr,
    )
    assert stopped
    step = int(stopped[1])
    config.write_text(text.replace("STEPS", str(step + 2)))
    done = run("train", config, "--resume")
    assert done.exit_code == 0, done.output
    assert f"step {step + 1} " in done.stderr
    model = corpus.parent / "run" / "last"
    assert done.stderr.endswith(
        f"{model}: the trained model. Use it with: "
        f"mcspex extract MIXTURE --ref REFERENCE --model {model}\n"
    )


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    recipe = ("simulate", "--recipe", tmp_path / "none.csv", "-o", tmp_path / "out")
    for done in (run("train", tmp_path / "none.toml"), run(*recipe)):
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "extract {0}/mixture.flac --ref {0}/reference.flac -o s3://set/voice.wav",
        "extract {0}/mixture.flac --ref {0}/reference.flac -o v.wav --activity gs://set/v.srt",
        "enroll {0}/reference.flac -o s3://set/voice.safetensors",
        "simulate {0}/voices -n 1 -o s3://set/sim",
        "score {0}/set/truth --truth {0}/set/truth -o file:///tmp/scores.json",
        "models convert mcspex-16k --sample-rate 8000 -o s3://set/model",
        "train to_a_url.toml",
    ],
)
def test_a_url_is_no_place_for_outputs(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = f"[data]\ntrain = ['{EXAMPLES / 'voices'}']\n[run]\nout = 's3://set/run'\n"
    Path("to_a_url.toml").write_text(settings + "[model]\nsize = 'tiny'\n")
    done = run(*words.format(EXAMPLES).split())
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith(": only batch writes to URLs. Choose a place on this disk.")
    assert [path.name for path in tmp_path.iterdir()] == ["to_a_url.toml"]


@pytest.mark.parametrize("value", ["nan", "1e400", "1e300"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((command, option) for command in ("extract", "batch") for option in ("--dry", "--wet")),
        ("live", "--latency"),
        ("train", "--minutes"),
    ],
)
def test_a_number_is_finite(command: str, option: str, value: str, tmp_path: Path) -> None:
    inputs = () if command == "live" else (tmp_path / "input",)
    done = run(command, *inputs, option, value)
    assert done.exit_code == 2
    assert f"Invalid value for '{option}': " in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk is always full here")
@pytest.mark.parametrize("words", [["models", "path", "mcspex-16k"], ["--help"], ["-h"]])
def test_a_full_disk_under_stdout_is_one_line(words: list[str]) -> None:
    command = [sys.executable, "-m", "mcspex_cli", *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "error: standard output: cannot be written (No space left on device). Free space.\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full", "2>&- >/dev/null <&-"])
def test_a_closed_or_full_stderr_changes_nothing(closing: str, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m mcspex_cli models path"
    for name, code in (("mcspex-16k", 0), ("nonsense", 1), ("--nonsense", 2)):
        words = ["sh", "-c", f"{command} {name} {closing}"]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=False)
        assert done.returncode == code
        assert (done.stdout == b"") == (code > 0 or "/dev/null" in closing)  # messages are no data


def test_no_file_takes_the_place_of_a_closed_stderr(tmp_path: Path) -> None:
    """What a library then writes to standard error would be written into that file."""
    code = (
        "import os, sys; from mcspex_cli.__main__ import main\n"
        "try: main(['models', 'path', 'mcspex-16k'])\nexcept SystemExit: pass\n"
        "assert os.open(sys.argv[1], os.O_CREAT) > 2"
    )
    words = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", code, tmp_path / "a"]
    assert subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=False).returncode == 0


@pytest.mark.parametrize(
    "words", ["models path mcspex-16k", "extract none.wav --ref none.wav --json"]
)
def test_a_closed_stdout_is_an_error_before_any_work(words: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m mcspex_cli {words} >&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output is closed. Redirect it")


def test_a_deleted_working_folder_is_one_line(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && "
    script += f"PYTHONPATH={ROOT} {shlex.quote(sys.executable)} -m mcspex_cli models list"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    message = "error: the working folder no longer exists. Change to another folder.\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_completion_is_clicks_own() -> None:
    for shell in ("bash", "zsh", "fish"):
        environment = {**os.environ, "_MCSPEX_COMPLETE": f"{shell}_source"}
        code = "from mcspex_cli.__main__ import main; main(prog_name='mcspex')"
        command = [sys.executable, "-c", code]
        script = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert "_MCSPEX_COMPLETE" in script
    typed = {"COMP_WORDS": "mcspex extract --precision bf", "COMP_CWORD": "3"}
    environment = {**os.environ, "_MCSPEX_COMPLETE": "bash_complete", **typed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,bfloat16\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="terminals do not hang up here")
@pytest.mark.parametrize(("before", "exit_code"), [("SIG_DFL", 130), ("SIG_IGN", 0)])
@pytest.mark.parametrize("during", [True, False], ids=["at work", "at the end"])
def test_a_closed_terminal_ends_as_ctrl_c_does_but_under_nohup(
    before: str, exit_code: int, during: bool
) -> None:
    hang_up = "os.kill(os.getpid(), signal.SIGHUP)"
    code = (
        "import os, signal\nfrom mcspex_cli.__main__ import main\n"
        "from mcspex_cli.checkpoint import checkpoint\n"
        f"signal.signal(signal.SIGHUP, signal.{before})\n"
        f"if {during}: checkpoint.bundled = lambda: {hang_up} or {{}}\n"
        "code = 0\ntry: main(['models', 'list'])\nexcept SystemExit as end: code = end.code\n"
        f"if not {during}: {hang_up}\n"
        "os._exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.count("\n") == (exit_code == 130 and during), done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
@pytest.mark.parametrize("ignored", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_is_ignored_does_not_stop_long_work(ignored: str) -> None:
    """A shell without job control starts what is in the background so."""
    script = (
        "import os, signal\nfrom mcspex_cli.cli.console import ending_gently\n"
        f"number = signal.{ignored}\n"
        "for handler in (signal.SIG_IGN, signal.SIG_DFL):\n"
        "    signal.signal(number, handler)\n"
        "    with ending_gently(lambda: print('stopped'), 'SIGHUP'):\n"
        "        os.kill(os.getpid(), number)\n"
        "    print(signal.getsignal(number) is handler)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\nstopped\nTrue\n"), done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_modules_are_imported_is_one_line(number: str) -> None:
    code = (
        "import os, signal, sys\n"
        f"if '{number}' != 'SIGINT': signal.signal(signal.{number}, signal.SIG_DFL)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'mcspex_cli.cli.live': os.kill(os.getpid(), signal.{number})\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import mcspex_cli.__main__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: interrupted before anything was begun.\n"
    code = (
        f"import signal\nbefore = signal.getsignal(signal.{number})\n"
        f"import mcspex_cli.__main__\nassert signal.getsignal(signal.{number}) is before"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
@pytest.mark.parametrize("error", ["ImportError", "RecursionError"])
def test_a_signal_that_a_package_makes_another_error_of_is_one_line(error: str) -> None:
    """As compiled modules and NumPy do while they are imported."""
    code = (
        "import os, signal, sys\nfrom mcspex_cli.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'rich.table':\n"
        "            try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "            except BaseException: pass\n"
        f"            raise {error}('initialization failed')\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main(['models', 'list'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert re.fullmatch("error: interrupted. Finished files are kept.*\n", done.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    script = (
        "import av, resource, soundfile, soxr, torch\nfrom mcspex_cli.__main__ import main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\nmain()"
    )
    words = ["simulate", str(EXAMPLES / "voices"), "-n", "1", "--rate", "192000"]
    toml = tmp_path / "long.toml"
    toml.write_text("[mixtures]\nsegment_s = 600.0\n")
    words += ["--mixtures", str(toml), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # whose stacks need memory
        capture_output=True,
        text=True,
        check=False,
    )
    advice = "Close other programs, or use a machine with more."
    assert done.stderr == f"error: there is too little memory. {advice}\n"
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == [toml]


def test_a_package_that_does_not_import_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.table", None)
    done = run("models", "list")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: a package does not import (")
    assert done.stderr.endswith("). mcspex doctor says how to repair it.\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_libsndfile_reads_is_one_line(name: str, tmp_path: Path) -> None:
    """What is raised in its callbacks does not get out of them."""
    for number in range(20):
        audio.write(tmp_path / f"{number}.wav", buzz(110, 5), RATE_HZ)
    script = (
        "import os, signal, sys\nfrom mcspex_cli.__main__ import main\n"
        "from mcspex_cli.containers import SoundBytes\n"
        "seek, calls = SoundBytes.seek, []\n"
        "def interrupted(self, *place):\n"
        "    calls.append(sys._getframe(1).f_code.co_name)\n"
        f"    if calls.count('vio_seek') == 2: os.kill(os.getpid(), signal.{name})\n"
        "    return seek(self, *place)\n"
        "SoundBytes.seek = interrupted\n"
        "main(['score', '.', '--truth', '.'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert re.fullmatch("error: interrupted. .*\n", done.stderr)


def test_a_signal_while_torch_is_imported_waits_where_it_would_abort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers: list[object] = []
    timer = SimpleNamespace(start=lambda: timers.append(timer))
    monkeypatch.setattr(threading, "Timer", lambda *_: timer)
    monkeypatch.setattr(__main__, "_interrupts", [])
    code = "import sys\ninterrupt(2, sys._getframe())"
    exec(code, {"__name__": "torch.distributed", "interrupt": __main__._interrupt})
    assert timers == [timer]
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"__name__": "torch", "interrupt": __main__._interrupt})
    exec(code, {"__name__": "torch", "interrupt": __main__._interrupt})  # sent twice, as one


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("code", [130, 0], ids=["before the end", "at the end"])
def test_ctrl_c_after_a_command_is_quiet(name: str, code: int) -> None:
    """Python gives up handlers of signals before it clears its modules."""
    number = int(getattr(signal, name))
    script = (
        "import atexit, os, signal\nfrom mcspex_cli.__main__ import main\n"
        "class Late:\n"
        f"    def end(self, kill=os.kill, own=os.getpid()): kill(own, {number})\n"
        "    __del__ = end\n"
        "late = Late()\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        f"if {code}: atexit.register(late.end)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("mcspex, version ")


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "mix.wav", "--ref", "r.wav", "--output=~/x.wav"),
        ("extract", "mix.wav", "--ref", "r.wav", "-o", "x.wav", "--residual=~/x/y.wav"),
        ("enroll", "r.wav", "--output=~nobody/x.safetensors"),
        ("batch", "mixtures", "--refs", "r", "--output=~/out"),
        ("score", "e", "--truth", "t", "--output=~/x.json"),
        ("models", "convert", "mcspex-16k", "--sample-rate", "8000", "--output=~/x"),
        ("simulate", "s", "-n", "1", "--output=~/x"),
        ("doctor", "--log-file=~/x.log"),
    ],
)
def test_a_home_folder_that_the_shell_did_not_put_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    home = words[-1].partition("=")[2].partition("/")[0]
    assert done.exit_code == 2
    assert f"the shell reads {home} as a home folder only at the beginning" in done.stderr
    assert list(tmp_path.iterdir()) == []
