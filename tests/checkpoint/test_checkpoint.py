"""Checkpoints: there and back, and every way that one can be unusable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mcspex_cli.checkpoint import checkpoint
from mcspex_cli.checkpoint.checkpoint import (
    bundled,
    count_weights,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    verify,
)
from mcspex_cli.errors import CheckpointError
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build


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


@pytest.mark.parametrize("model", [5, b"mcspex-16k", ["mcspex-16k"]])
def test_a_model_is_a_name_or_a_folder(model: object) -> None:
    with pytest.raises(TypeError, match=r"^a model is a name or a folder, not "):
        find_checkpoint(model)  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_ones() -> None:
    names = ", ".join(bundled())
    with pytest.raises(CheckpointError, match=f"nobody: no such model. Bundled: {names}; or name"):
        find_checkpoint("nobody")
    with pytest.raises(CheckpointError, match=r"mcspex-16k: no such folder\. A bundled"):
        find_checkpoint(Path("mcspex-16k"))  # always a folder


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "a/" * 3000])
def test_a_name_that_no_file_can_have_is_unknown(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        find_checkpoint(name)


def test_the_file_of_the_weights_is_not_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voice").mkdir()
    for name in ("model.safetensors", "voice/model.safetensors"):  # one might be org/name
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(CheckpointError, match=r"model.safetensors: is a file. A model is a"):
            find_checkpoint(name, offline=True)


def test_a_package_without_its_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "bundled", dict)
    with pytest.raises(CheckpointError, match=r"mcspex-16k: .* Install mcspex again"):
        find_checkpoint()


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a model, because it has no config.json"):
        find_checkpoint(tmp_path)


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config.json: damaged\. Copy the model again"),
        (DEEP, r"config.json: damaged"),
        (" " * 2**21, r"config.json: too large for a model's"),
        ("[]", r"config.json: belongs to another program\. mcspex runs MC-SpEx and SpEx\+ only"),
        ("{}", r"config.json: belongs to another program"),
        (
            '{"format": 2, "system": 0, "sha256": 0}',
            r"has format 2, .* Update mcspex",
        ),
        ('{"format": 1, "system": 3, "sha256": ""}', r"system is 3\. Expected `object`, got `int`"),
        ('{"format": 1, "system": {}, "sha256": ""}', r"system is {}|is a missing key"),
    ],
)
def test_a_config_that_is_none_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": 10**9}, r"config.json: filters is 1000000000\. Expected `int` <= 4096"),
        ({"filters": 1.5}, r"filters is 1\.5\. Expected `int`, got `float`"),
        ({"hop_ms": "1"}, r"hop_ms is '1'\. Expected `float`"),
        ({"hop_ms": 10**400}, r"config.json: damaged|hop_ms is 1000"),
        (
            {"hop_ms": 20},
            r"config.json: hop_ms and windows_ms are too long for a ref",
        ),
        ({"kernel": 4}, r"kernel is 4\. It must be odd"),
        ({"system": ["mcspex"]}, r"system is \['mcspex'\]\. Expected `str`"),
        ({"windows_ms": [1, 2]}, r"windows_ms is \[1, 2\]\. Expected `array` of length 3, got 2"),
        ({"windows_ms": [20, 10, 5]}, r"windows_ms must grow"),
        ({"system": "voicefilter"}, r"system 'voicefilter' is unknown\. Known: mcspex, spexplus"),
        ({"consm": "loud"}, r"consm 'loud' is unknown\. Known: "),
        ({"norm": "gln"}, r"norm 'gln' is unknown\. Known: gLN, cLN, BN"),
        ({"reference_channels": 8}, r"only SpEx\+ has reference_channels\. For mcspex, set 0"),
        ({"colour": "red"}, r"colour is an unknown key\. Is mcspex up to date\?"),
    ],
)
def test_a_config_asking_for_the_impossible_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_provenance_with_numbers_that_json_lacks_is_written_and_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", build(sized("mcspex", "tiny", 8000, 4)), {"db": float("nan")})
    assert find_checkpoint(tmp_path / "m").provenance == {"db": None}


def test_weights_of_another_system_are_refused_by_name(folder: Path) -> None:
    edit(folder, system="spexplus")
    with pytest.raises(CheckpointError, match=r"not the weights of this system: .* and \d+ more"):
        load_checkpoint(folder)


def test_weights_of_another_size_are_refused_by_name(folder: Path) -> None:
    edit(folder, speakers=5)
    with pytest.raises(CheckpointError, match=r"classifier.bias, classifier.weight have another"):
        load_checkpoint(folder)


def replace_weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change one weight, with the right checksum."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.weight"] = change(tensors["classifier.weight"].float())
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int8), r"classifier.weight have another shape or kind of numbers"),
        (lambda t: t > 0, r"classifier.weight have another shape or kind"),
        (lambda t: t.to(torch.complex64), r"classifier.weight have another shape or kind"),
        (lambda t: t * float("nan"), r"classifier.weight: some numbers are not finite"),
    ],
    ids=["int8", "bool", "complex", "nan"],
)
def test_weights_of_another_kind_are_refused_and_not_called_good(
    folder: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    replace_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    assert re.search(message, verify(find_checkpoint(folder)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_of_other_precisions_are_taken(folder: Path, dtype: torch.dtype) -> None:
    replace_weights(folder, lambda t: t.to(dtype))
    assert load_checkpoint(folder).classifier.weight.dtype == torch.float32


@pytest.mark.parametrize("length", [0, 5, 1000, -100])
def test_truncated_weights_are_refused(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged, or not safetensors"):
        load_checkpoint(folder)


def test_changed_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its sha256 is not the one in config.json\. Copy"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", "missing folder pipe device nothing circle huge".split())
def test_what_is_not_a_file_is_refused_at_once(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**43)  # takes no room on the disk
    elif kind != "missing":
        path.symlink_to({"device": "/dev/zero", "circle": name}.get(kind, "nothing"))
    with pytest.raises(
        CheckpointError, match=r"no such file|is not a reg|cannot be read|not a model|too "
    ):
        load_checkpoint(folder)
    if name != "config.json":
        info = find_checkpoint(folder)
        assert verify(info)
        if kind != "huge":
            with pytest.raises(CheckpointError, match=r"no such file|is not a reg|cannot be read"):
                count_weights(info)


SAVING = """
import os, sys, torch
from pathlib import Path
from mcspex_cli.checkpoint.checkpoint import save_checkpoint
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build
torch.set_num_threads(1)
systems = [build(sized("mcspex", "tiny", 8000, speakers)) for speakers in (4, 9)]
for _ in sys.stdin:
    if process := os.fork():
        os.waitpid(process, 0)
        print("killed", flush=True)
        continue
    print("process", os.getpid(), flush=True)
    for step in range(10**6):
        save_checkpoint(Path(sys.argv[1]), systems[step % 2], {"step": step})
        print("step", step, flush=True)
"""
"""For each line that it reads, a process that saves one checkpoint over another."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_a_checkpoint_is_whole_whenever_its_saving_is_killed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "best"
    steps = set()
    command, pipe = [sys.executable, "-c", SAVING, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as starting:
        assert starting.stdin and starting.stdout
        for _ in range(4):
            print(file=starting.stdin, flush=True)
            process = next(line for line in starting.stdout if line.startswith("process "))
            for _ in range(2):
                assert starting.stdout.readline().startswith("step ")
            time.sleep(rng.uniform(0, 0.1))
            os.kill(int(process.split()[1]), signal.SIGKILL)
            assert "killed\n" in starting.stdout
            info = find_checkpoint(folder)
            assert load_checkpoint(info).config.speakers == (4, 9)[info.provenance["step"] % 2]
            steps.add(info.provenance["step"])
    assert max(steps) > 0
