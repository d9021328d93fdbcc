"""`mcspex enroll`, and profiles wherever --ref is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import bundled, find_checkpoint
from mcspex_cli.extraction.profile import Enrolment, Profile, read_profile, write_profile
from tests.conftest import EXAMPLES, RATE_HZ, ROOT, buzz

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`mcspex` in a folder with the examples and a tiny model, called "tiny"."""
    monkeypatch.chdir(tmp_path)
    for name in ("mixture", "reference"):
        shutil.copy(EXAMPLES / f"{name}.flac", tmp_path)
    shutil.copytree(EXAMPLES / "set" / "references", tmp_path / "refs")
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    monkeypatch.setenv("MCSPEX_MODEL", "tiny")
    return lambda *words: CliRunner().invoke(main, words)


def test_a_profile_is_a_reference(run: Run, tmp_path: Path) -> None:
    done = run("enroll", "reference.flac", "-o", "alice.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stdout.split("\n")[1].split()[0] == "reference.flac"
    assert "alice.safetensors: 4." in done.stderr
    assert "of speech, for tiny" in done.stderr
    made = (tmp_path / "alice.safetensors").read_bytes()
    assert len(made) < 4096
    assert str(tmp_path).encode() not in made
    for name, reference in (("1.wav", "alice.safetensors"), ("2.wav", "reference.flac")):
        done = run("extract", "mixture.flac", "--ref", reference, "-o", name)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "1.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="names are text here")
def test_names_that_are_no_text_are_shown_with_escapes(
    run: Run, tmp_path: Path, exported: Path
) -> None:
    clip = tmp_path / os.fsdecode(b"\xe4.flac")
    (tmp_path / "reference.flac").rename(clip)
    output = clip.with_suffix(".safetensors")
    # In a process of its own: pytest cannot pass on a log with such names.
    words = ["enroll", clip, "-o", output, "--model", exported]
    command = [sys.executable, "-m", "mcspex_cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, rb"/\udce4.safetensors: 4." in done.stderr) == (0, True), done.stderr
    profile = read_profile(output)
    assert (profile.name, profile.qualities[0].path) == ("\\udce4", "\\udce4.flac")


def test_a_terminal_without_a_letter_gets_an_escape(tmp_path: Path, tiny_folder: Path) -> None:
    sha256 = find_checkpoint(tiny_folder).sha256
    enrolment = Enrolment("tiny", None, sha256, 1.0, np.zeros(4, np.float32))
    write_profile(tmp_path / "a.safetensors", Profile("Ä", (enrolment,)))
    command = [sys.executable, "-m", "mcspex_cli", "enroll", "--list", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)
    assert b"  \\xc4  " in done.stdout


def test_a_name_that_is_too_long_is_refused_before_the_model_is_loaded(run: Run) -> None:
    words = "--name", "n" * 1001, "--model", "none"
    done = run("enroll", "reference.flac", "-o", "a.safetensors", *words)
    assert done.stderr.startswith("error: a.safetensors: too large. A profile's name")


def test_a_models_folder_may_have_spaces(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").rename(tmp_path / "my model")
    monkeypatch.setenv("MCSPEX_MODEL", "my model")
    done = run("enroll", "reference.flac", "-o", "alice.safetensors")
    assert done.exit_code == 0, done.output
    assert "of speech, for my model" in done.stderr


def test_several_clips_models_and_json(run: Run, tmp_path: Path) -> None:
    """A folder, and two models; one that is named twice is there once."""
    shutil.copytree(bundled()["mcspex-16k"], tmp_path / "small")
    models = [word for name in ("tiny", "small", "tiny") for word in ("--model", name)]
    done = run("enroll", "refs", *models, "-o", "all.safetensors", "--name", "All", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [model["name"] for model in said["models"]] == ["tiny", "small"]
    assert [row["path"] for row in said["references"]] == ["awb.flac", "rms.flac", "slt.flac"]
    assert said["name"] == "All"
    for model in ("tiny", "small"):
        done = run("extract", "mixture.flac", "--ref", "all.safetensors", "--model", model, "-o",
                   f"{model}.wav", "--passes", "1", "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
    again = run("enroll", "all.safetensors", "reference.flac", "-o", "more.safetensors", "-q")
    assert (again.exit_code, again.output) == (0, "")
    assert len(read_profile(tmp_path / "more.safetensors").qualities) == 4


def test_poor_clips_are_warned_of(run: Run, tmp_path: Path) -> None:
    audio.write(tmp_path / "loud.wav", np.clip(20 * buzz(110, 3), -1, 1), RATE_HZ)
    done = run("enroll", "loud.wav", "-o", "a.safetensors", "-q")
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: loud.wav: ")
    assert "of its samples are clipped" in done.stderr
    warned = run("extract", "mixture.flac", "--ref", "a.safetensors", "-o", "x.wav", "-q")
    assert "warning: loud.wav: " in warned.stderr


def test_what_cannot_be_enrolled(run: Run, tmp_path: Path) -> None:
    assert run("enroll", "reference.flac", "-o", "new/p.safetensors").exit_code == 0
    (tmp_path / "new/p.safetensors").rename(tmp_path / "p.safetensors")
    (tmp_path / "mine.safetensors").write_text("mine")
    audio.write(tmp_path / "silent.wav", np.zeros(9000, np.float32), RATE_HZ)
    usage = [
        (["reference.flac"], "say with -o where the profile goes"),
        (["-o", "a.safetensors"], "name a REF"),
        (["--list", "--show"], "--list or --show, not both"),
        (["--list", "-o", "a.safetensors"], "--list and --show write nothing; leave -o"),
        (["reference.flac", "-o", "a.safetensors", "--name", ""], "'--name': it is empty."),
    ]
    errors = [
        (["reference.flac", "-o", "mine.safetensors"], "mine.safetensors: exists already"),
        (["p.safetensors", "-o", "p.safetensors", "--overwrite"], "safetensors: is an input"),
        (["reference.flac", "-o", "n" * 300 + ".safetensors"], "its name is too long"),
        (["reference.flac", "-o", "alice.wav"], "alice.wav: a profile's name ends in"),
        (["none.wav", "-o", "a.safetensors"], "none.wav: no such file or folder"),
        (["silent.wav", "-o", "a.safetensors"], "silent.wav: is silent"),
        (["mine.safetensors", "-o", "a.safetensors"], "mine.safetensors: damaged, or not"),
        (["tiny/model.safetensors", "-o", "a.safetensors"], "is not a voice profile"),
    ]
    for code, cases in ((2, usage), (1, errors)):
        for words, message in cases:
            done = run("enroll", *words)
            assert (done.exit_code, message in done.stderr) == (code, True), done.output
            assert not (tmp_path / "a.safetensors").exists()
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_profiles_are_listed_and_shown(run: Run, tmp_path: Path) -> None:
    assert (
        run("enroll", "reference.flac", "-o", "alice.safetensors", "--name", "Al\nice").exit_code
        == 0
    )
    listed = run("enroll", "--list")
    assert listed.exit_code == 0
    assert listed.stdout.split("\n")[1].split()[:2] == ["alice.safetensors", "Al\\nice"]
    (row,) = json.loads(run("enroll", "--list", ".", "--json").stdout)
    assert row["models"][0]["name"] == "tiny"
    shown = run("enroll", "--show", "alice.safetensors")
    assert "name     Al\\nice" in shown.stdout.splitlines()
    assert "model    tiny (sha256 " in shown.stdout
    assert "reference.flac" in shown.stdout
    assert json.loads(run("enroll", "--show", "alice.safetensors", "--json").stdout) == [row]
    (tmp_path / "broken.safetensors").write_text("no")
    both = run("enroll", "--list")
    assert both.exit_code == 1
    assert "alice" in both.stdout
    assert "error: broken.safetensors: damaged, or not a voice profile" in both.stderr
    assert both.stderr.endswith("error: 1 profile cannot be used, see above.\n")
    assert run("enroll", "--list", "nowhere").exit_code == 1


def test_batches_take_profiles(run: Run, tmp_path: Path) -> None:
    assert run("enroll", "reference.flac", "-o", "mixture.safetensors", "-q").exit_code == 0
    (tmp_path / "voices").mkdir()
    shutil.copy("mixture.safetensors", "voices")
    (tmp_path / "plan.csv").write_text("mixture,reference\nmixture.flac,mixture.safetensors\n")
    (tmp_path / "clip").mkdir()
    shutil.copy("reference.flac", "clip")
    made = {}
    for name, words in {
        "ref": ["mixture.flac", "--ref", "mixture.safetensors"],
        "refs": ["mixture.flac", "--refs", "voices"],
        "plan": ["--manifest", "plan.csv"],
        "folder": ["mixture.flac", "--ref", "clip"],
    }.items():
        done = run("batch", *words, "-o", f"out/{name}", "--jobs", "1", "-q")
        assert done.exit_code == 0, done.output
        made[name] = (tmp_path / "out" / name / "audio" / "mixture.wav").read_bytes()
    assert len(set(made.values())) == 1


def test_batches_refuse_profiles_before_any_work(run: Run, tmp_path: Path) -> None:
    small = bundled()["mcspex-16k"]
    words = ("enroll", "reference.flac", "--model", str(small), "-o", "mixture.safetensors", "-q")
    assert run(*words).exit_code == 0
    other = run("batch", "mixture.flac", "--ref", "mixture.safetensors", "-o", "out")
    assert other.exit_code == 1
    assert "mixture.safetensors: enrolled for mcspex-16k" in other.stderr
    assert "1 problem, see above. Nothing was started." in other.stderr
    (tmp_path / "refs2").mkdir()
    shutil.copy("mixture.safetensors", "refs2")
    shutil.copy("reference.flac", "refs2/mixture.flac")
    twice = run("batch", "mixture.flac", "--refs", "refs2", "-o", "out")
    assert twice.exit_code == 1
    assert "both have the same name. Rename one." in twice.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "tiny").rename(tmp_path / "the tiny")
    words = ("extract", "mixture.flac", "--ref", "mixture.safetensors", "--model", "./the tiny")
    extracted = run(*words)
    assert extracted.exit_code == 1
    assert extracted.stderr.endswith("again: mcspex enroll ... --model 'the tiny'\n")
