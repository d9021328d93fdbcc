"""`mcspex doctor` as it is run, and its checks one by one, in places where they fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mcspex_cli
from mcspex_cli import audio
from mcspex_cli.checkpoint import checkpoint
from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL
from mcspex_cli.cli import doctor as checks
from mcspex_cli.cli.doctor import FAILED, NOTE, OK, WARNING, Finding, guard
from mcspex_cli.errors import AudioError
from tests.conftest import ROOT
from tests.hub import Hub

ORDER = (
    *("mcspex", "Python", "torch", "CUDA", "torchaudio", "sound files", "FFmpeg"),
    *("soxr", "extras", "temporary files", "model cache", "graph cache", "Hub"),
    *("bundled models", "self-test"),
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
    detail = "does not import (OSError: libc10_cuda.so: cannot open). Training changes the "
    assert (found["status"], found["detail"]) == (
        "note",
        f"{detail}speed of speech in a simpler way",
    )


def test_every_trouble_has_its_line_and_remedy(ill: subprocess.CompletedProcess[str]) -> None:
    assert (ill.returncode, ill.stderr) == (1, "")
    lines = ill.stdout.splitlines()
    found = {line[9:26].strip(): line for line in lines[:-2] if line[:9].strip()}
    below = {name: lines[lines.index(line) + 1].strip() for name, line in found.items()}
    starts = {
        "torchaudio": "note     torchaudio       does not import (ModuleNotFoundError: No module",
        "model cache": "warning  model cache      ",
        "Hub": "warning  Hub              cannot reach http://127.0.0.1:9 (",
        "bundled models": "failed   bundled models   model.safetensors: its sha256 is not",
        "self-test": "failed   self-test        ",
    }
    for name, start in starts.items():
        assert found[name].startswith(start)
    assert below["bundled models"] == below["self-test"] == "Install mcspex again."
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


# The checks, one by one.


def run(check: Callable[..., tuple[str, ...]], *arguments: object, **options: object) -> Finding:
    """The finding of one check."""
    return guard("it", partial(check, *arguments, **options))


@pytest.mark.parametrize(
    ("error", "detail", "remedy"),
    [
        (ZeroDivisionError("by\nzero"), "ZeroDivisionError: by", "report this"),
        (SystemExit(), "SystemExit", "report this"),
        (MemoryError("std::bad_alloc"), "MemoryError: std::bad_alloc", "with more memory"),
        (AudioError("a.wav: is silent. Record it again."), "a.wav: is silent", "Record it again."),
    ],
)
def test_a_check_that_breaks_is_a_failed_finding(
    error: BaseException, detail: str, remedy: str
) -> None:
    def check() -> tuple[str, ...]:
        raise error

    found = guard("it", check)
    assert (found.name, found.status, found.detail) == ("it", FAILED, detail)
    assert found.remedy.endswith((remedy, f"{remedy}."))


def install(site: Path, version: str, *asks: str) -> None:
    """What pip leaves of a distribution."""
    info = site / f"mcspex-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: mcspex", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {a}" for a in asks), ""]))


def test_extras_are_those_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = ("numpy>=1.26", "soundfile>=1; extra == 'sound'", 'no-such-thing<3 ; extra == "dream"')
    install(tmp_path, mcspex_cli.__version__, *asks, "pytest; extra == 'test'")
    monkeypatch.syspath_prepend(tmp_path)
    found = run(checks.check_extras)
    assert (found.status, found.detail) == (OK, "sound installed; not installed: dream")
    assert found.remedy == "If you want them: Run in a checkout of mcspex: pip install '.[dream]'"
    assert run(checks.check_mcspex).status == OK


def test_packages_that_are_absent_or_unfit_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ("no-extra; extra == 'test'", "for-old; python_version < '3'")
    install(tmp_path, mcspex_cli.__version__, "numpy>=99", "no-such-thing>=2", *others)
    monkeypatch.syspath_prepend(tmp_path)
    found = run(checks.check_mcspex)
    numpy = f"numpy {np.__version__} is not >=99"
    assert (found.status, found.remedy) == (FAILED, "Install mcspex again.")
    assert found.detail.partition("; ")[2] == f"no-such-thing is not installed, {numpy}"


def test_another_version_in_pips_eyes_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "0.0.1")
    monkeypatch.syspath_prepend(tmp_path)
    found = run(checks.check_mcspex)
    assert found.status == WARNING
    assert found.detail.endswith("but pip knows of 0.0.1")
    assert run(checks.check_extras).detail.startswith("unknown")


def test_an_untested_python_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(checks.check_python).status == OK
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert run(checks.check_python).remedy == "Use Python 3.10 to 3.13."


def test_a_format_that_is_lost_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = audio.Format(".flac", "FLAC", ("VORBIS",))  # which FLAC cannot hold
    monkeypatch.setitem(audio.FORMATS, ".flac", broken)
    finding = run(checks.check_sound_files)
    assert (finding.status, finding.detail) == (FAILED, "libsndfile cannot write FLAC of VORBIS")
    assert finding.remedy.startswith("Install it again: pip install")


def test_the_hub_answers(hub: Hub) -> None:
    found = run(checks.check_hub, offline=False)
    assert (found.status, found.detail) == (OK, f"{hub.url} answers")
    hub.fail("/api/models", status=503)
    found = run(checks.check_hub, offline=False)
    assert (found.status, found.detail) == (WARNING, "the Hub has a problem (503)")
    assert found.remedy == "Models that are on this disk still work. Try again later."


def test_an_address_that_is_none_is_a_warning(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    for address in ("no scheme", "http://[", "http://127.0.0.1:99999999"):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        found = run(checks.check_hub, offline=False)
        assert (found.status, bool(found.detail)) == (WARNING, True)
    assert capsys.readouterr().err == ""


def test_a_hub_that_hangs_is_left(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_HUB_TIMEOUT_S", 0.2)
    fault = hub.fail("/api/models", wait_s=30)
    found = run(checks.check_hub, offline=False)
    assert found.status == WARNING
    assert found.remedy.startswith("Models that are on this disk still work.")
    assert fault.times


def test_offline_asks_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert run(checks.check_hub, offline=True).detail.startswith("not asked: --offline")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(checks.check_hub, offline=False).detail.startswith("not asked: HF_HUB_OFFLINE")
    assert not hub.requests


def test_a_cache_says_what_it_has(hub: Hub, tiny_folder: Path) -> None:
    files = ("config.json", "model.safetensors")
    hub.add("ann/tiny", {name: (tiny_folder / name).read_bytes() for name in files})
    info = checkpoint.find_checkpoint("ann/tiny")
    found = run(checks.check_cache)
    assert found.status == OK
    assert found.detail.endswith(f"GB free; 1 downloaded, {info.weight_bytes / 1e6:.1f} MB")
    (info.folder / "model.safetensors").unlink()
    found = run(checks.check_cache)
    assert (found.status, "is missing" in found.detail) == (WARNING, True)
    assert "models pull ann/tiny" in found.remedy


def test_caches_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    place = tmp_path / "file"
    place.write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    found = run(checks.check_cache)
    assert (found.status, "HF_HOME" in found.remedy) == (WARNING, True)
    for wrong in (place, tmp_path / ("a" * 300) / "cache"):  # of which even asking fails
        monkeypatch.setenv("MCSPEX_CACHE", str(wrong))
        found = run(checks.check_graphs)
        assert (found.status, "MCSPEX_CACHE" in found.remedy) == (WARNING, True)


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run(checks.check_temporary).detail.startswith(f"{tmp_path}, ")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    found = run(checks.check_temporary)
    assert (found.status, "TMPDIR" in found.remedy) == (FAILED, True)


def test_a_bundled_model_that_is_not_there_or_damaged_is_a_failure(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    monkeypatch.setattr(checkpoint, "bundled", lambda: {DEFAULT_MODEL: folder})
    assert run(checks.check_bundled).status == OK
    (folder / "config.json").write_bytes(b"{")
    found = run(checks.check_bundled)
    assert (found.status, found.remedy) == (FAILED, "Install mcspex again.")
    monkeypatch.setattr(checkpoint, "bundled", dict)
    assert run(checks.check_bundled).detail == f"{DEFAULT_MODEL} is not installed"


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        (DEFAULT_MODEL, OK, f"{DEFAULT_MODEL} is used without --model"),
        ("nonsense", FAILED, "nonsense: no such model"),
        ("ann/voices", NOTE, "ann/voices will be downloaded"),
    ],
)
def test_the_model_that_is_used_without_an_option_is_checked(
    hub: Hub, name: str, status: str, detail: str
) -> None:
    found = run(checks.check_chosen_model, name)
    assert (found.status, found.detail) == (status, detail)
    assert bool(found.remedy) == (status != OK)
    assert not hub.requests


def test_a_damaged_model_that_is_used_without_an_option_is_a_failure(
    tmp_path: Path, tiny_folder: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "mine")
    (folder / "model.safetensors").write_bytes(b"")
    found = run(checks.check_chosen_model, str(folder))
    detail = "mine: model.safetensors: damaged, or not safetensors"
    assert (found.status, found.detail) == (FAILED, detail)


def test_a_model_that_extracts_nothing_fails_the_self_test(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "bundled", lambda: {checkpoint.DEFAULT_MODEL: tiny_folder})
    found = run(checks.run_self_test)
    assert found.status == FAILED
    assert "the voice was not extracted: SI-SDR -0.0 dB before" in found.detail
    assert found.remedy
