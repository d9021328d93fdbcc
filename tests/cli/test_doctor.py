"""`mcspex doctor` as it is run, on machines that lack one thing or another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL
from tests.conftest import ROOT
from tests.hub import Hub

ORDER = (
    *("mcspex", "Python", "torch", "CUDA", "torchaudio", "sound files", "FFmpeg"),
    *("soxr", "extras", "temporary files", "model cache", "graph cache", "Hub"),
    *(DEFAULT_MODEL, "self-test"),
)


def doctor(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a folder and a changed environment."""
    command = [sys.executable, "-m", "mcspex_cli", "doctor", *words]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def shadow(folder: Path, package: str, line: str) -> Path:
    """A package that does not import, before the real one."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"{line}\n")
    return folder


def paths(*folders: Path) -> str:
    """PYTHONPATH with folders first."""
    return os.pathsep.join(map(str, folders))


def by_name(said: str) -> dict[str, dict[str, Any]]:
    """The findings of --json."""
    return {finding["name"]: finding for finding in json.loads(said)["findings"]}


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.CompletedProcess[str]]:
    """--json where all is well but torchaudio, whose libraries are not those of torch."""
    folder = tmp_path_factory.mktemp("well")
    shadow(folder, "torchaudio", 'raise OSError("libc10_cuda.so: cannot open\\nshared object")')
    settings = {"HF_HOME": str(folder / "home"), "MCSPEX_CACHE": str(folder / "cache")}
    with Hub() as hub:
        done = doctor(
            folder, "--json", PYTHONPATH=paths(folder, ROOT), HF_ENDPOINT=hub.url, **settings
        )
        done.args = hub.url
        yield done


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Without FFmpeg, torchaudio, Hub and a place for models, and the bundled one damaged."""
    folder = tmp_path_factory.mktemp("ill")
    shutil.copytree(ROOT / "mcspex_cli", folder / "mcspex_cli")
    shutil.copytree(ROOT / "weights", folder / "weights")
    shutil.copytree(ROOT / "examples", folder / "examples")
    weights = folder / "weights" / DEFAULT_MODEL / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 255
    weights.write_bytes(data)
    absent = "raise ModuleNotFoundError(\"No module named 'torchaudio'\")"
    shadow(folder / "shadows", "torchaudio", absent)
    (folder / "file").write_bytes(b"")
    (folder / "bin").mkdir()
    return doctor(
        folder,
        PYTHONPATH=paths(folder / "shadows", folder),
        PATH=str(folder / "bin"),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(folder / "file" / "home"),
    )


@pytest.fixture(scope="module")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """--json where torch does not import."""
    folder = tmp_path_factory.mktemp("torchless")
    shadow(folder, "torch", 'raise OSError("libtorch_cpu.so: no such file")')
    return doctor(folder, "--json", "--offline", PYTHONPATH=paths(folder, ROOT))


def test_all_is_well(well: subprocess.CompletedProcess[str]) -> None:
    said = json.loads(well.stdout)
    assert said.keys() == {"works", "findings"}
    assert (said["works"], well.returncode, well.stderr) == (True, 0, "")
    found = by_name(well.stdout)
    assert tuple(found) == ORDER
    for finding in said["findings"]:
        assert finding.keys() == {"name", "status", "detail", "remedy"}
        assert finding["status"] in {"ok", "note", "warning"}
        assert finding["detail"]
        assert finding["status"] == "ok" or finding["remedy"]
    assert found["Hub"]["detail"] == f"{well.args} answers"
    assert " dB before, " in found["self-test"]["detail"]


def test_a_broken_torchaudio_is_a_note_that_says_what_is_lost(
    well: subprocess.CompletedProcess[str],
) -> None:
    found = by_name(well.stdout)["torchaudio"]
    detail = "does not import (OSError: libc10_cuda.so: cannot open). Training cannot augment "
    assert (found["status"], found["detail"]) == ("note", f"{detail}speech on the GPU")


def test_every_trouble_has_its_line_and_remedy(ill: subprocess.CompletedProcess[str]) -> None:
    assert (ill.returncode, ill.stderr) == (1, "")
    lines = ill.stdout.splitlines()
    found = {line[9:26].strip(): line for line in lines[:-2] if line[:9].strip()}
    below = {name: lines[lines.index(line) + 1].strip() for name, line in found.items()}
    starts = {
        "torchaudio": "note     torchaudio       does not import (ModuleNotFoundError: No module",
        "model cache": "warning  model cache      ",
        "Hub": "warning  Hub              cannot reach http://127.0.0.1:9 (",
        DEFAULT_MODEL: f"failed   {DEFAULT_MODEL:17}model.safetensors: its sha256 is not",
        "self-test": "failed   self-test        ",
    }
    for name, start in starts.items():
        assert found[name].startswith(start)
    assert "model.safetensors: its sha" in found[DEFAULT_MODEL]
    assert below[DEFAULT_MODEL] == below["self-test"] == "Install mcspex again."
    assert below["Hub"].startswith("Models that are on this disk still work.")
    assert below["model cache"] == "Set HF_HOME to a folder that can be written."
    assert lines[-1].startswith("mcspex does not work here (")
    assert "2 failed" in lines[-1]
    assert "Traceback" not in ill.stdout


def test_without_torch_the_rest_is_told(torchless: subprocess.CompletedProcess[str]) -> None:
    assert (torchless.returncode, torchless.stderr) == (1, "")
    found = by_name(torchless.stdout)
    assert tuple(found) == ORDER
    assert not json.loads(torchless.stdout)["works"]
    assert found["torch"]["status"] == found["self-test"]["status"] == "failed"
    assert "OSError: libtorch_cpu.so: no such file" in found["torch"]["detail"]
    assert "pip install" in found["torch"]["remedy"]
    assert found["Hub"]["detail"].startswith("not asked: --offline")
    for name in ("sound files", "FFmpeg", "soxr"):
        assert found[name]["status"] == "ok"
