"""Profiles keep a voice for a model, and are believed only as far as they are checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, bundled, find_checkpoint
from mcspex_cli.errors import CheckpointError, OutputError
from mcspex_cli.extraction.profile import (
    Enrolment,
    Profile,
    ReferenceQuality,
    check_profile_output,
    find_profiles,
    read_profile,
    write_profile,
)

EMBEDDING = np.linspace(-1, 1, 16, dtype=np.float32)
QUALITY = ReferenceQuality("a.wav", 3.0, 2.5, 2.0, -20.5, 0.0, 31.0, None)


@pytest.fixture
def model(tiny_folder: Path) -> CheckpointInfo:
    return find_checkpoint(tiny_folder)


@pytest.fixture
def profile(model: CheckpointInfo) -> Profile:
    made = Enrolment(model.name, model.revision, model.sha256, 2.0, EMBEDDING)
    return Profile("Alice", (made,), (QUALITY,), "2026-01-31")


def test_what_is_written_is_read(tmp_path: Path, profile: Profile, model: CheckpointInfo) -> None:
    path = tmp_path / "alice.safetensors"
    write_profile(path, profile)
    read = read_profile(path)
    assert read == profile
    found = read.enrolment_for(model, path)
    assert np.array_equal(found.embedding, EMBEDDING)
    assert found.seconds == 2.0
    assert path.stat().st_size < 2000
    assert [p.name for p in tmp_path.iterdir()] == ["alice.safetensors"]
    json.dumps(read.to_dict(path), allow_nan=False)
    assert len(Profile("A", (), ()).created) == 10


def test_another_models_profile_is_refused(
    tmp_path: Path, profile: Profile, model: CheckpointInfo
) -> None:
    other = replace(model, name="org/other", sha256="b" * 64, revision="c" * 40, source="hub")
    message = (
        rf"p.safetensors: enrolled for tiny \(sha256 {model.sha256[:12]}\), not for "
        r"org/other@c{12} \(sha256 b{12}\). Enroll it again: mcspex enroll ... --model org/other"
    )
    with pytest.raises(CheckpointError, match=message):
        profile.enrolment_for(other, Path("p.safetensors"))
    wide = replace(model, config=replace(model.config, embedding=17))
    with pytest.raises(CheckpointError, match="enrolled for tiny"):
        profile.enrolment_for(wide, Path("p.safetensors"))


def test_nothing_is_replaced_unasked(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "alice.safetensors"
    write_profile(path, profile)
    with pytest.raises(OutputError, match=r"exists already. Add --overwrite"):
        write_profile(path, replace(profile, name="Bob"))
    assert read_profile(path).name == "Alice"
    write_profile(path, replace(profile, name="Bob"), overwrite=True)
    assert read_profile(path).name == "Bob"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")  # damaged, but a profile
    write_profile(path, profile, overwrite=True)
    for other in ("text", "model"):
        place = tmp_path / f"{other}.safetensors"
        if other == "text":
            place.write_text("mine")
        else:
            save_file({"x": EMBEDDING}, place)
        before = place.read_bytes()
        with pytest.raises(OutputError, match="is not a voice profile, and --overwrite"):
            write_profile(place, profile, overwrite=True)
        assert place.read_bytes() == before
    (tmp_path / "folder.safetensors").mkdir()
    for name, message in (
        ("alice.wav", r"a profile's name ends in .safetensors"),
        ("folder.safetensors", "is a folder"),
        ("alice.safetensors/a.safetensors", "alice.safetensors is not a folder"),
        ("n" * 300 + ".safetensors", "its name is too long"),
    ):
        with pytest.raises(OutputError, match=message):
            check_profile_output(tmp_path / name, "Ann", 1, overwrite=True)


Change = Callable[[dict[str, Any], dict[str, Any]], object]
"""Spoils a file's JSON and its tensors."""

KEY = "embedding." + "a" * 64

DAMAGES: dict[str, Change] = {
    "newer": lambda said, _: said.update(format=3),
    "no format": lambda said, _: said.pop("format"),
    "a list": lambda said, _: said.update(models={}),
    "no models": lambda said, tensors: (said.update(models=[]), tensors.clear()),
    "another tensor": lambda _, tensors: tensors.update(x=EMBEDDING),
    "no tensor": lambda _, tensors: tensors.pop(KEY),
    "matrix": lambda _, tensors: tensors.update({KEY: EMBEDDING.reshape(4, 4)}),
    "empty": lambda _, tensors: tensors.update({KEY: EMBEDDING[:0]}),
    "doubles": lambda _, tensors: tensors.update({KEY: EMBEDDING.astype(np.float64)}),
    "not finite": lambda _, tensors: tensors.update({KEY: EMBEDDING * np.inf}),
    "long": lambda _, tensors: tensors.update({KEY: np.zeros(5000, np.float32)}),
    "negative": lambda said, _: said["models"][0].update(seconds=-1),
    "infinite": lambda said, _: said["models"][0].update(seconds=float("inf")),
    "true": lambda said, _: said["models"][0].update(seconds=True),
    "no text": lambda said, _: said.update(name=5),
    "long text": lambda said, _: said.update(name="x" * 1001),
    "no date": lambda said, _: said.update(created="yesterday"),
    "checksum": lambda said, _: said["models"][0].update(sha256="../x"),
    "quality": lambda said, _: said["qualities"][0].pop("snr_db"),
    "two": lambda said, _: said["qualities"][0].update(two_voices="yes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, damage: str) -> None:
    model = {"name": "m", "revision": None, "sha256": "a" * 64, "seconds": 2.0}
    said: dict[str, Any] = {"format": 1, "name": "A", "created": "2026-01-31", "models": [model]}
    said["qualities"] = [vars(QUALITY).copy()]
    tensors: dict[str, Any] = {KEY: EMBEDDING}
    path = tmp_path / "p.safetensors"
    save_file(tensors, path, {"mcspex_profile": json.dumps(said)})
    assert read_profile(path).name == "A"
    DAMAGES[damage](said, tensors)
    save_file(tensors, path, {"mcspex_profile": json.dumps(said)})
    message = (
        "made by a newer mcspex"
        if damage == "newer"
        else "this voice profile is damaged. Enroll the voice again"
    )
    with pytest.raises(CheckpointError, match=rf"p.safetensors: {message}"):
        read_profile(path)


def test_files_that_are_none_are_refused(tmp_path: Path, profile: Profile) -> None:
    good, path = tmp_path / "good.safetensors", tmp_path / "p.safetensors"
    write_profile(good, profile)
    data = good.read_bytes()
    damaged = "damaged, or not a voice profile"
    for content in (b"", b"no", data[:-1], data[:30], data + b"x", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=damaged):
            read_profile(path)
    save_file({"x": np.zeros(2**22, np.float32)}, path, {"mcspex_profile": "{}"})
    with pytest.raises(CheckpointError, match="bytes are too many for a voice profile"):
        read_profile(path)
    save_file({"x": EMBEDDING}, path, {"mcspex_profile": "[" * 100_000})
    with pytest.raises(CheckpointError, match="this voice profile is damaged"):
        read_profile(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_profile(tmp_path / "none.safetensors")
    (weights,) = next(iter(bundled().values())).glob("model.safetensors")
    with pytest.raises(CheckpointError, match="is not a voice profile but other safetensors"):
        read_profile(weights)


def test_as_much_as_can_be_written_can_be_read(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "p.safetensors"
    clip = replace(QUALITY, path="ö" * 120 + ".wav")
    large = replace(profile, name="ö" * 1000, qualities=(clip,) * 10_000)
    write_profile(path, large)
    assert read_profile(path) == large
    for more in (
        replace(large, name="ö" * 1001),
        replace(large, qualities=(*large.qualities, clip)),
    ):
        with pytest.raises(OutputError, match=r"p.safetensors: too large\. A profile's name"):
            write_profile(path, more, overwrite=True)
    assert read_profile(path) == large


def test_a_folders_profiles_are_found(tmp_path: Path, profile: Profile) -> None:
    write_profile(tmp_path / "b.safetensors", profile)
    (tmp_path / "a.safetensors").write_text("damaged")
    save_file({"x": EMBEDDING}, tmp_path / "model.safetensors")
    (tmp_path / ".c.safetensors").write_text("hidden")
    found = find_profiles(tmp_path)
    assert [path.name for path in found] == ["a.safetensors", "b.safetensors"]


def test_every_flipped_bit_is_noticed(tmp_path: Path, profile: Profile) -> None:
    good, path = tmp_path / "good.safetensors", tmp_path / "p.safetensors"
    write_profile(good, profile)
    data = good.read_bytes()
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"p.safetensors: "):
            read_profile(path)


def test_a_pipe_is_not_a_profile(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"p.safetensors: is not a file"):
        read_profile(tmp_path / "p.safetensors")
