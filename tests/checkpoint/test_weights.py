"""Checkpoints: there and back, and every way that one can be unusable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mcspex_cli.checkpoint.checkpoint import (
    bundled,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mcspex_cli.errors import CheckpointError
from mcspex_cli.model.systems import build, sized


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def edit(folder: Path, **changes: object) -> None:
    """Change values of config.json's system."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["system"].update(changes)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["mcspex", "spexplus"])
def test_a_saved_system_comes_back_in_half_precision(tmp_path: Path, name: str) -> None:
    system = build(sized(name, "tiny", 16000, 7)).eval()
    save_checkpoint(tmp_path / "m", system, {"minutes": 3})
    info = find_checkpoint(tmp_path / "m")
    loaded = load_checkpoint(info)
    assert info.provenance == {"minutes": 3}
    assert loaded.config == system.config
    assert not loaded.training
    for key, tensor in system.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    # What was rounded once is not rounded again.
    save_checkpoint(tmp_path / "again", loaded, {})
    assert find_checkpoint(tmp_path / "again").sha256 == info.sha256


def test_a_system_saved_in_full_precision_comes_back_exactly(tmp_path: Path) -> None:
    system = build(sized("spexplus", "tiny", 8000, 7)).eval()
    save_checkpoint(tmp_path, system, {}, half=False)
    for key, tensor in load_checkpoint(tmp_path).state_dict().items():
        assert torch.equal(tensor, system.state_dict()[key])


def test_a_config_from_before_a_key_was_there_means_what_it_did(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("norm", "reference_channels", "true_level"):
        del config["system"][key]
    path.write_text(json.dumps(config))
    loaded = load_checkpoint(folder).config
    assert (loaded.norm, loaded.reference_width, loaded.true_level) == ("gLN", 16, False)


def test_bundled_models_are_found_by_name_and_fit_their_config() -> None:
    assert bundled()
    for name, folder in bundled().items():
        info = find_checkpoint(name)
        assert (info.name, info.folder) == (name, folder)
        assert load_checkpoint(info).config.sample_rate_hz in (8000, 16000)
        assert (folder / "README.md").is_file()
        assert (folder / "model.safetensors").stat().st_size < 30 * 2**20


def test_an_unknown_name_lists_the_known_ones() -> None:
    names = ", ".join(bundled())
    with pytest.raises(CheckpointError, match=f"nobody: no such model. Bundled: {names}; or name"):
        find_checkpoint("nobody")


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a model, there is no config.json in it"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.json: damaged. Copy the model again."),
        ("{", "config.json: damaged. Copy the model again."),
        ("[]", "config.json: another program's. mcspex runs MC-SpEx and SpEx. only."),
        ("{}", "config.json: another program's."),
        ('{"format": 1, "system": 3, "sha256": ""}', "config.json: damaged."),
        ('{"format": 1, "system": {}, "sha256": 3}', "config.json: damaged."),
        ('{"format": 1, "system": {}, "sha256": "", "provenance": []}', "config.json: damaged."),
    ],
)
def test_a_config_that_is_none_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(folder)


def test_a_newer_format_asks_for_a_newer_program(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"format 2 is not 1. Update mcspex"):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": 10**9}, "filters is 1000000000, not a number from 2 to 4096"),
        ({"filters": 1.5}, "filters is 1.5"),
        ({"filters": True}, "filters is True"),
        ({"hop_ms": "1"}, "hop_ms is '1'"),
        ({"hop_ms": float("nan")}, "hop_ms is nan"),
        ({"kernel": 4}, "kernel is 4, it must be odd"),
        ({"system": ["mcspex"]}, r"system \['mcspex'\] is unknown"),
        ({"hop_ms": 10**400}, "hop_ms is 1000"),
        ({"stacks": -1}, "stacks is -1"),
        ({"windows_ms": [1, 2]}, "windows_ms must be 3 numbers"),
        ({"windows_ms": [5, 10, 1e9]}, "windows_ms is 1000000000.0"),
        ({"windows_ms": [20, 10, 5]}, "windows must grow"),
        ({"speaker_channels": [16, 32, 10**7]}, "speaker_channels is 10000000"),
        ({"system": "voicefilter"}, "system 'voicefilter' is unknown. Known: mcspex, spexplus"),
        ({"consm": "loud"}, "consm 'loud' is unknown. Known: steady, listening"),
        ({"scale_fuser": 3}, "scale_fuser 3 is unknown. Known: gate, attention"),
        ({"true_level": "yes"}, "true_level 'yes' is unknown. Known: True, False"),
        ({"norm": "gln"}, "norm 'gln' is unknown. Known: gLN, cLN, BN"),
        ({"reference_channels": -1}, "reference_channels is -1, not a number from 0 to 4096"),
        ({"reference_channels": 8}, r"reference_channels are SpEx\+'s; for mcspex, set 0"),
        ({"colour": "red"}, r"unknown or missing keys \(colour\)"),
    ],
)
def test_a_config_asking_for_the_impossible_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_weights_of_another_system_are_refused_by_name(folder: Path) -> None:
    edit(folder, system="spexplus")
    with pytest.raises(CheckpointError, match=r"not the weights of this system: .* and \d+ more"):
        load_checkpoint(folder)


def test_weights_of_another_size_are_refused_by_name(folder: Path) -> None:
    edit(folder, speakers=5)
    with pytest.raises(CheckpointError, match=r"classifier.bias, classifier.weight do not fit"):
        load_checkpoint(folder)


@pytest.mark.parametrize("length", [0, 5, 1000, -100])
def test_truncated_weights_are_refused(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged or not safetensors"):
        load_checkpoint(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read"):
        load_checkpoint(folder)


def test_changed_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256 is not the one in"):
        load_checkpoint(folder)
