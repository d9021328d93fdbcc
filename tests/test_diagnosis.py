"""Checks one by one, in places where they fail."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import mcspex_cli
from mcspex_cli import audio
from mcspex_cli.checkpoint import checkpoint
from mcspex_cli.cli import doctor as diagnosis
from mcspex_cli.cli.doctor import FAILED, OK, WARNING, Finding, guarded, works
from mcspex_cli.errors import AudioError
from tests.hub import Hub

GOOD = Finding("self-test", OK, "")


def run(check: Callable[..., tuple[str, ...]], *arguments: object, **options: object) -> Finding:
    """The finding of one check."""
    return guarded("it", partial(check, *arguments, **options))


@pytest.mark.parametrize(
    ("findings", "well"),
    [
        ([GOOD], True),
        ([Finding("Hub", WARNING, ""), GOOD], True),
        ([Finding("soxr", FAILED, ""), GOOD], False),
        ([Finding("soxr", FAILED, ""), Finding("soxr", OK, ""), GOOD], False),
        ([Finding("soxr", OK, "")], False),
        ([Finding("self-test", WARNING, "")], False),
    ],
)
def test_it_works_if_the_self_test_passed_and_nothing_failed(
    findings: list[Finding], well: bool
) -> None:
    assert works(findings) is well


@pytest.mark.parametrize(
    ("error", "detail", "remedy"),
    [
        (ZeroDivisionError("by\nzero"), "ZeroDivisionError: by", "report this"),
        (SystemExit(), "SystemExit", "report this"),
        (AudioError("a.wav: is silent. Record it again."), "a.wav: is silent", "Record it again."),
    ],
)
def test_a_check_that_breaks_is_a_failed_finding(
    error: BaseException, detail: str, remedy: str
) -> None:
    def check() -> tuple[str, ...]:
        raise error

    found = guarded("it", check)
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
    found = run(diagnosis.check_extras)
    assert (found.status, found.detail) == (OK, "sound installed; not installed: dream")
    assert found.remedy == "If you want them: pip install 'mcspex[dream]'"
    assert run(diagnosis.check_mcspex).status == OK


def test_another_version_in_pips_eyes_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "0.0.1")
    monkeypatch.syspath_prepend(tmp_path)
    found = run(diagnosis.check_mcspex)
    assert found.status == WARNING
    assert found.detail.endswith("but pip knows of 0.0.1")
    assert run(diagnosis.check_extras).detail.startswith("unknown")


def test_an_untested_python_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(diagnosis.check_python).status == OK
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert run(diagnosis.check_python).remedy == "Use Python 3.10 to 3.13."


def test_torch_and_sound_libraries_are_there() -> None:
    for check in (diagnosis.check_torch, diagnosis.check_sound_files, diagnosis.check_resampler):
        assert run(check).status == OK, run(check)
    assert run(diagnosis.check_cuda).status in {OK, WARNING}


def test_a_format_that_is_lost_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = audio.Format(".flac", "FLAC", ("VORBIS",))  # which FLAC cannot hold
    monkeypatch.setitem(audio.FORMATS, ".flac", broken)
    finding = run(diagnosis.check_sound_files)
    assert (finding.status, finding.detail) == (FAILED, "libsndfile does not write and read FLAC")
    assert finding.remedy.startswith("Install it again: pip install")


def test_ffmpeg_comes_with_pyav() -> None:
    finding = run(diagnosis.check_ffmpeg)
    assert finding.status == OK
    assert finding.detail.startswith("in PyAV ")


def test_the_hub_answers(hub: Hub) -> None:
    found = run(diagnosis.check_hub, offline=False)
    assert (found.status, found.detail) == (OK, f"{hub.url} answers")
    hub.fail("/api/models", status=503)
    found = run(diagnosis.check_hub, offline=False)
    assert (found.status, found.detail) == (WARNING, "the Hub has a problem (503)")


def test_an_address_that_is_none_is_a_warning(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    for address in ("no scheme", "http://[", "http://127.0.0.1:99999999"):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        found = run(diagnosis.check_hub, offline=False)
        assert (found.status, bool(found.detail)) == (WARNING, True)
    assert capsys.readouterr().err == ""


def test_a_hub_that_hangs_is_left(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_HUB_S", 0.2)
    fault = hub.fail("/api/models", wait_s=30)
    found = run(diagnosis.check_hub, offline=False)
    assert found.status == WARNING
    assert found.remedy.startswith("Models that are on this disk still work.")
    assert fault.times


def test_offline_asks_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert run(diagnosis.check_hub, offline=True).detail.startswith("not asked: --offline")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(diagnosis.check_hub, offline=False).detail.startswith("not asked: HF_HUB_OFFLINE")
    assert not hub.requests


def test_a_cache_says_what_it_has(hub: Hub, tiny_folder: Path) -> None:
    files = ("config.json", "model.safetensors")
    hub.add("ann/tiny", {name: (tiny_folder / name).read_bytes() for name in files})
    info = checkpoint.find_checkpoint("ann/tiny")
    found = run(diagnosis.check_cache)
    assert found.status == OK
    assert f": 1 downloaded, {info.weight_bytes / 1e6:.1f} MB; " in found.detail
    (info.folder / "model.safetensors").unlink()
    found = run(diagnosis.check_cache)
    assert (found.status, "is missing" in found.detail) == (WARNING, True)
    assert "models pull ann/tiny" in found.remedy


def test_caches_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    place = tmp_path / "file"
    place.write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    found = run(diagnosis.check_cache)
    assert (found.status, "HF_HOME" in found.remedy) == (WARNING, True)
    monkeypatch.setenv("MCSPEX_CACHE", str(place))
    found = run(diagnosis.check_graphs)
    assert (found.status, "MCSPEX_CACHE" in found.remedy) == (WARNING, True)


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run(diagnosis.check_temporary).detail.startswith(f"{tmp_path}, ")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    found = run(diagnosis.check_temporary)
    assert (found.status, "TMPDIR=" in found.detail) == (WARNING, True)
    monkeypatch.setattr(tempfile, "tempdir", os.devnull)
    assert run(diagnosis.check_temporary).status == FAILED


def test_no_bundled_model_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "bundled", dict)
    findings = {finding.name: finding for finding in diagnosis.check_up(offline=True)}
    assert findings["models"].detail == "no bundled model is installed"


def test_a_damaged_config_is_a_failure(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    assert run(diagnosis.check_model, folder).status == OK
    (folder / "config.json").write_bytes(b"{")
    found = run(diagnosis.check_model, folder)
    assert (found.status, found.remedy) == (FAILED, "Install mcspex again.")


def test_a_model_that_extracts_nothing_fails_the_self_test(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "bundled", lambda: {checkpoint.DEFAULT_MODEL: tiny_folder})
    found = run(diagnosis.run_self_test)
    assert found.status == FAILED
    assert "the voice was not extracted: SI-SDR -0.0 dB before" in found.detail
    assert found.remedy
