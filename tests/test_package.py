"""The package as a whole: its layers, its public names, its wheel, and its linters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mcspex_cli
from mcspex_cli import si_sdr
from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL, bundled
from tests.conftest import EXAMPLES, ROOT

MODULES = [p for p in (ROOT / "mcspex_cli").rglob("*.py") if p.name != "__init__.py"]


def test_no_module_name_is_used_twice() -> None:
    stems = [path.stem for path in MODULES]
    assert sorted(set(stems)) == sorted(stems)


def test_public_names_are_there() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    for name in mcspex_cli.__all__:
        assert getattr(mcspex_cli, name) is not None
        assert name == "__version__" or re.search(rf"\b{name}\b", page), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mcspex_cli.nonsense


def test_the_changelogs_newest_version_is_the_packages() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert next(v for v in versions if v != "Unreleased") == mcspex_cli.__version__


def test_weights_stay_small_and_have_cards_with_licences() -> None:
    assert DEFAULT_MODEL in bundled()
    sizes = [p.stat().st_size for p in (ROOT / "weights").rglob("*") if p.is_file()]
    assert sum(sizes) < 80 * 2**20
    for folder in bundled().values():
        card = (folder / "README.md").read_text()
        for word in ("CC BY 4.0", "LibriSpeech", "speechocean762", "AN4", "Voice Conversion"):
            assert word in card
        assert json.loads((folder / "config.json").read_text())["sha256"] in card


@pytest.mark.parametrize(
    "tool",
    [
        [sys.executable, "-m", "ruff", "check", "."],
        [sys.executable, "-m", "ruff", "format", "--check", "."],
        [sys.executable, "-m", "mypy"],
        [str(Path(sys.executable).with_name("lint-imports"))],
    ],
)
def test_the_code_passes_its_linters(tool: list[str]) -> None:
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_users_write_passes_their_type_checker(tmp_path: Path) -> None:
    shown = re.findall("```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    path = tmp_path / "program.py"
    path.write_text(
        "import numpy as np\n"
        "from mcspex_cli import ExtractionOptions, Job, McspexError, Outputs, Span\n"
        + "".join(shown)
        + """
samples = np.zeros(16000)
one = extractor.extract(samples, voice, options=ExtractionOptions(channel="all")).estimate
write_audio("all.wav", one, 16000)
live = extractor.live(voice)
write_audio("live.wav", live.push(samples), 16000)
outputs = Outputs("a.wav", residual="b.wav", activity="c.srt", overwrite=True)
for job, result_or_error in extractor.extract_files([Job("mix.wav", lambda: voice, outputs)]):
    if not isinstance(result_or_error, McspexError):
        print(job.name, result_or_error.presence)
voice = extractor.enroll(f"{n}.wav" for n in range(3))
voice = extractor.enroll(spans=[Span(12.0, 18.5)], mixture="mix.wav")
"""
    )
    command = [sys.executable, "-m", "mypy", str(path)]  # as strict as ours
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True)
    return next(folder.glob("mcspex-*.whl"))


def test_the_wheel_carries_code_types_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "mcspex_cli/py.typed" in names
    assert {f"mcspex_cli/evaluation/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert f"mcspex_cli/weights/{DEFAULT_MODEL}/model.safetensors" in names
    assert not any(n.startswith(("tests/", "examples/", "docs/", "benchmarks/")) for n in names)
    assert wheel.stat().st_size < 60 * 2**20


def test_the_installed_wheel_does_the_main_job_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-compile", "--target", str(site), str(wheel)], check=True)
    for name in ("mixture", "reference"):
        (work / f"{name}.flac").write_bytes((EXAMPLES / f"{name}.flac").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [str(site / "bin" / "mcspex"), "extract", "mixture.flac", "--ref", "reference.flac"]
    command += ["--passes", "1"]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = mcspex_cli.read_audio
    truth = read(EXAMPLES / "truth.flac", 8000)
    before = si_sdr(read(EXAMPLES / "mixture.flac", 8000), truth)
    assert si_sdr(read(work / "mixture.target.wav", 8000), truth) >= before + 5
