"""The examples, the README's commands, and what the bundled weights can do."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from mcspex_cli import Engine, EngineSettings, Extractor, audio, load_checkpoint, read_audio, si_sdr
from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL, bundled, read_config
from mcspex_cli.training.simulate import read_recipes, render
from mcspex_cli.training.trainer import Progress, ProgressLog
from tests.conftest import EXAMPLES, LIBRIMIX, ROOT, SHARED, needs_shared
from tests.hub import Hub

PAGES = (
    "README.md",
    *(f"docs/{n}.md" for n in ("models", "batch-and-score", "references", "extract")),
)
README = (ROOT / "README.md").read_text()


def run_script(*words: str) -> None:
    """Run a script of the examples, as a user does, but in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words])
        runpy.run_path(words[0], run_name="__main__")


def run(*words: str) -> click.testing.Result:
    """Run `mcspex` with these words, in this process: torch is imported already."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the examples, to write in."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", bundled())
def test_bundled_weights_bring_the_examples_voice_out(name: str) -> None:
    engine = Engine(load_checkpoint(name), EngineSettings(passes=1))
    rate_hz = engine.sample_rate_hz
    mixture, truth, reference = (
        read_audio(EXAMPLES / f"{n}.flac", rate_hz) for n in ("mixture", "truth", "reference")
    )
    estimate = engine.extract(mixture, engine.embed([reference]))
    assert si_sdr(estimate, truth) >= si_sdr(mixture, truth) + 5


def test_what_is_between_4_and_8_khz_stays(checkout: Path) -> None:
    """In a file of 44.1 kHz; the bundled model knows nothing above 8 kHz."""
    mixture = read_audio(EXAMPLES / "mixture.flac", 44_100)
    audio.write(checkout / "mixture.wav", mixture, 44_100)
    extractor = Extractor.load(passes=1)
    voice = extractor.enroll(EXAMPLES / "reference.flac")
    extractor.extract_file(checkout / "mixture.wav", voice, checkout / "voice.wav")
    estimate = read_audio(checkout / "voice.wav", 44_100)
    truth = read_audio(EXAMPLES / "truth.flac", 44_100)

    def power_db(samples: np.ndarray, low_hz: float, high_hz: float) -> float:
        spectrum = np.abs(np.fft.rfft(samples)) ** 2
        frequencies_hz = np.fft.rfftfreq(len(samples), 1 / 44_100)
        inside = (low_hz <= frequencies_hz) & (frequencies_hz < high_hz)
        return float(10 * np.log10(spectrum[inside].sum()))

    assert power_db(estimate, 4100, 7500) == pytest.approx(power_db(truth, 4100, 7500), abs=4)
    assert power_db(estimate, 8100, 22_050) < power_db(estimate, 4100, 7500) - 20


def test_the_api_example_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("examples/extract.py")
    assert re.search(r"SI-SDR: \S+ dB before, \S+ dB after", capsys.readouterr().out)
    assert (checkout / "examples" / "estimate.wav").is_file()


def test_the_examples_can_be_remade(checkout: Path) -> None:
    if not shutil.which("flite") or not shutil.which("espeak-ng"):
        pytest.skip("needs flite and espeak-ng")
    names = ("mixture", "reference", "truth")
    before = {n: read_audio(EXAMPLES / f"{n}.flac", 16000) for n in names}
    for name in names:
        (checkout / "examples" / f"{name}.flac").unlink()
    shutil.rmtree(checkout / "examples" / "voices")
    run_script("examples/make_examples.py")
    voices, shipped = (
        sorted(p.relative_to(f / "voices") for p in (f / "voices").rglob("*.ogg"))
        for f in (checkout / "examples", EXAMPLES)
    )
    assert voices == shipped
    for name in names:
        made = read_audio(checkout / "examples" / f"{name}.flac", 16000)
        assert len(made) == pytest.approx(len(before[name]), rel=0.02)


def test_the_training_example_trains(checkout: Path) -> None:
    """With fewer of its steps and shorter sounds, enough to bring voices out."""
    run("simulate", "examples/voices", "-n", "32", "--seed", "9", "--mixtures",
        "examples/train.toml", "-o", "new")  # fmt: skip
    config = checkout / "examples" / "train.toml"
    text = config.read_text()
    shorter = {
        "steps = 400": "steps = 160",
        "segment_s = 2.0": "segment_s = 1.0",
        "reference_s = [1.0, 4.0]": "reference_s = [1.0, 2.0]",
    }
    for old, new in shorter.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    config.write_text(text)
    before_s = time.process_time()
    done = run("train", "examples/train.toml")
    assert time.process_time() - before_s < 80  # of a processor: a busy machine does not count
    assert "step 160  loss" in done.stderr
    extractor = Extractor.load(checkout / "runs" / "example" / "last", passes=1)
    (checkout / "estimates").mkdir()
    for path in sorted((checkout / "new" / "mix_clean").iterdir()):
        target = extractor.enroll(checkout / "new" / "references" / path.name)
        extractor.extract_file(path, target, checkout / "estimates" / path.name)
    scored = run("score", "estimates", "--truth", "new/s1", "--mixtures",
                 "new/mix_clean", "--metrics", "si_sdr_i", "--json")  # fmt: skip
    assert json.loads(scored.stdout)["summary"]["metrics"]["si_sdr_i_db"]["mean"] > 0


def test_the_librimix_protocol_runs(checkout: Path, librimix: Path) -> None:
    """docs/train.md's commands on a small tree, with a network to match."""
    shutil.move(librimix.parents[1], checkout / "examples" / "Libri2Mix")
    config = checkout / "examples" / "libri2mix.toml"
    changes = {
        '"base"': '"tiny"',
        "segment_s = 4.0": "segment_s = 0.5",
        "reference_s = [2.0, 10.0]": "reference_s = [0.5, 1.0]",
        "steps = 200000": "steps = 4",
        "compile = true": "compile = false",
    }
    text = config.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    config.write_text(text)
    run("train", "examples/libri2mix.toml")
    test = checkout / "examples" / "Libri2Mix" / "wav8k" / "min" / "test"
    run("simulate", str(test), "--enrolments", str(test / "map_mixture2enrollment"),
        "-o", "test")  # fmt: skip
    listed = LIBRIMIX["test"][:2]
    mixtures = sorted((checkout / "test" / "mix_clean").iterdir())
    assert [m.stem for m in mixtures] == [
        f"{name}_{role}" for name in listed for role in ("s1", "s2")
    ]
    run("batch", "test/mix_clean", "--refs", "test/references", "--truth", "test/s1",
        "--model", "runs/libri2mix/best", "-o", "results")  # fmt: skip
    scored = run("score", "results/audio", "--truth", "test/s1", "--mixtures",
                 "test/mix_clean", "--interferers", "test/s2", "--json")  # fmt: skip
    assert json.loads(scored.stdout)["summary"]["scored"] == len(mixtures)


def test_curves_are_drawn(checkout: Path) -> None:
    report = Progress(10, 0.5, 1.5, 2.0, 2.5, 0.5, 1e-3, 30.0, 60.0)
    for name in ("one", "two"):
        (checkout / name).mkdir()
        journal = ProgressLog(checkout / name, 0, tensorboard=False)
        journal.add(report)
        journal.add(replace(report, step=20, validation_db=3.25))
    run_script("examples/plot_training.py", "curve.svg", "one/progress.csv",
        "two/progress.csv")  # fmt: skip
    drawn = (checkout / "curve.svg").read_text()
    assert drawn.count("3.25 dB") == 2


@pytest.mark.parametrize("name", ["plot_training", "demo_page"])
@pytest.mark.parametrize(
    ("words", "message"), [([], "arguments are required"), (["a/b.svg", "a/c"], "a/.*: [Nn]o such")]
)
def test_a_script_says_what_it_needs(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_script(f"examples/{name}.py", *words)
    assert end.value.code == 2
    assert re.search(rf"{name}.py: error: .*{message}", capsys.readouterr().err)


def test_noisy_mixtures_can_be_made(checkout: Path, corpus: Path) -> None:
    run("simulate", str(corpus), "-n", "2", "--mixtures", "examples/noisy.toml", "-o",
        "noisy")  # fmt: skip
    made = [read_audio(path, 8000) for path in sorted((checkout / "noisy" / "noise").iterdir())]
    assert len(made) == 2
    assert all(noise.std() > 1e-4 for noise in made)


def test_the_readmes_main_command_does_the_main_job(checkout: Path) -> None:
    command = re.search(r"^pip install \. && (mcspex extract .*)$", README, re.M)
    assert command
    done = run(*command[1].split()[1:])
    assert "real-time factor" in done.stderr
    words = command[1].split()
    output = checkout / words[words.index("-o") + 1]
    scored = run("score", str(output), "--truth", "examples/truth.flac",
                 "--mixtures", "examples/mixture.flac")  # fmt: skip
    gain_db = float(scored.stdout.split("\n")[1].split()[2])
    assert gain_db >= 5


def test_the_readmes_python_writes_a_voice(checkout: Path) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    for name, example in (("mix.wav", "mixture"), ("alice.wav", "reference")):
        audio.write(checkout / name, read_audio(EXAMPLES / f"{example}.flac", 16000), 16000)
    (checkout / "readme.py").write_text(snippet)
    runpy.run_path("readme.py")
    estimate, mixture, truth = (
        read_audio(path, 8000) for path in ("alice_alone.wav", "mix.wav", EXAMPLES / "truth.flac")
    )
    assert 0.1 < np.abs(estimate).max() < 1
    assert si_sdr(estimate, truth) >= si_sdr(mixture, truth) + 5


def test_the_readmes_first_screen_says_what_a_listener_will_miss() -> None:
    screen = " ".join(README.splitlines()[:40])
    khz = read_config(bundled()[DEFAULT_MODEL]).system.sample_rate_hz / 2000
    assert f"nothing above {khz:g} kHz" in screen
    assert "you can still hear the other voice" in screen


def test_the_consoles_show_what_is_said(
    checkout: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command in a console block, run in order, against the output below it.

    Numbers are not compared, so the interview may be shorter (two turns and a half), and one pass
    is enough.
    """
    interview = checkout / "examples" / "interview.flac"
    audio.write(interview, read_audio(interview, 16_000)[: 8 * 16_000], 16_000)
    hub.tokens["hf_yours"] = "your-name"
    home = str(checkout / "home")
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_yours",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (checkout / "docs").mkdir()
    for page in PAGES:
        blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
        commands = [part for block in blocks for part in block.split("$ ")[1:]]
        assert len(commands) >= 2
        for part in commands:
            command, _, said = part.replace("\\\n", "").partition("\n")
            command = re.sub(r"mcspex (extract|batch) ", r"mcspex \1 --passes 1 ", command)
            output = output_of(command)
            assert "Traceback" not in output
            shown = output.replace(hub.url, "HUB").replace(home, "HOME")
            for line in without_numbers(said):
                assert line in without_numbers(shown), f"{command}: {line}\n{shown}"


def output_of(command: str) -> str:
    """What a command prints; run in this process, which has torch already, unless it is bash's."""
    plain = command.removesuffix(quiet := " 2>/dev/null").removesuffix(code := " || echo code $?")
    if plain.startswith("mcspex ") and not re.search("[|<>;]", plain):
        done = CliRunner().invoke(main, shlex.split(plain)[1:])
        output = done.stdout if command.endswith(quiet) else done.output
        return output + f"code {done.exit_code}" * (command.endswith(code) and done.exit_code > 0)
    if command.startswith("python"):
        command = f"{sys.executable} {command.removeprefix('python ')}"
    bash = ["bash", "-c", f"exec 2>&1; {command}"]
    return subprocess.run(bash, capture_output=True, text=True, check=False).stdout


def without_numbers(text: str) -> list[str]:
    """Lines with numbers and commits, which depend on the machine, and spaces made alike."""
    text = re.sub(r"\b(?=[a-f]*\d)[0-9a-f]{12,40}\b", "COMMIT", text)
    return [re.sub(r"[-+]?\d[\d.]*", "#", " ".join(line.split())) for line in text.splitlines()]


def test_ci_runs_the_readmes_test_command() -> None:
    command = re.search(r"^pip install .*&& .*pytest.*$", README, re.M)
    assert command
    assert command[0] in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 130


@needs_shared
def test_bundled_weights_do_on_speech_what_their_card_says() -> None:
    """Every 24th mixture of the recipe, in one pass, against the card's mean for one pass."""
    folder = bundled()[DEFAULT_MODEL]
    card = " ".join((folder / "README.md").read_text().split())
    claimed = float(re.search(r"With one pass: ([\d.]+) dB", card)[1])  # type: ignore[index]
    engine = Engine(load_checkpoint(folder), EngineSettings(passes=1))
    gains = []
    for recipe in read_recipes(SHARED / "speech" / "dev-recipe.csv")[::24]:
        item = render(recipe, engine.sample_rate_hz)
        estimate = engine.extract(item.mixture, engine.embed([item.reference]))
        gains.append(si_sdr(estimate, item.target) - si_sdr(item.mixture, item.target))
    spread = np.std(gains) / np.sqrt(len(gains))
    assert abs(np.mean(gains) - claimed) < 3 * spread
