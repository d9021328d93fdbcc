"""A checkpoint's files, and config.json, which describes it and is checked key by key.

```json
{"format": 1, "system": {"system": "mcspex", "sample_rate_hz": 8000, ...},
 "sha256": "of model.safetensors", "provenance": {...}, "calibration": {...}}
```
"""

from __future__ import annotations

import hashlib
import re
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from mcspex_cli import files
from mcspex_cli.errors import CheckpointError, ForeignModel

if TYPE_CHECKING:
    from mcspex_cli.model.systems import SystemConfig

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
"""The files of a checkpoint; the card is for people."""

GRAPHS = "graphs.json"
"""Lists the ONNX graphs in the folder of an exported model; see `mcspex_cli.extraction.onnx`."""

FORMAT = 1
"""Version of config.json; a newer one needs a newer mcspex."""

LARGEST_CONFIG = 2**20
"""Bytes."""

COPY_AGAIN = "Copy the model again."

FORMER_CONSMS = {"steady": "film", "listening": "feature_film"}
"""What `consm` was called in files of 0.6.0 and before."""

Width = Annotated[int, Meta(ge=1, le=8192)]
WindowMs = Annotated[float, Meta(ge=0.1, le=1000)]
Checked = TypeVar("Checked")


class SystemFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network's `SystemConfig` as config.json has it, with the values that each key may have.

    The limits keep a hostile file from asking for all memory. Defaults are for keys that the
    first files lack, and are what the networks of their time were.
    """

    system: str
    scale_fuser: str = "gate"
    consm: str = "feature_film"
    scale_intermg: str = "mixing"
    true_level: bool = False
    sample_rate_hz: Annotated[int, Meta(ge=4000, le=192_000)]
    windows_ms: tuple[WindowMs, WindowMs, WindowMs]
    hop_ms: Annotated[float, Meta(ge=0.1, le=100)]
    filters: Annotated[int, Meta(ge=2, le=4096)]
    channels: Annotated[int, Meta(ge=2, le=4096)]
    hidden: Width
    kernel: Annotated[int, Meta(ge=1, le=31)]
    blocks: Annotated[int, Meta(ge=1, le=16)]
    stacks: Annotated[int, Meta(ge=1, le=32)]
    norm: str = "gLN"
    reference_channels: Annotated[int, Meta(ge=0, le=4096)] = 0
    embedding: Annotated[int, Meta(ge=1, le=4096)]
    speaker_channels: tuple[Width, Width, Width]
    speakers: Annotated[int, Meta(ge=1, le=1_000_000)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json; unknown keys beside these are left alone."""

    format: int
    system: SystemFields
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the weights' file."""
    provenance: dict[str, Any] = {}
    calibration: Any = None
    """See `mcspex_cli.extraction.presence`, which checks it."""


def read_config(folder: Path, name: str = "", remedy: str = COPY_AGAIN) -> Config:
    """Read and check a folder's config.json.

    Args:
        folder: A checkpoint's folder.
        name: What errors call the checkpoint, if not by its folder.
        remedy: What helps if the file is damaged.

    Raises:
        ForeignModel: It belongs to another program.
        CheckpointError: It is missing, damaged or newer than this program, or a key has a value
            that it must not have.
    """
    path, label = folder / CONFIG, f"{name}: {CONFIG}" if name else str(folder / CONFIG)
    if not path.is_file():
        raise CheckpointError(f"{name or folder}: not a model, because it has no {CONFIG}.")
    if path.stat().st_size > LARGEST_CONFIG:
        raise CheckpointError(f"{label}: too large for a model's. {remedy}")
    try:
        raw = msgspec.json.decode(read_bytes(path, remedy))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: damaged. {remedy}") from error
    if not isinstance(raw, dict) or not {"format", "system", "sha256"} <= raw.keys():
        raise ForeignModel(
            f"{label}: belongs to another program. mcspex runs MC-SpEx and SpEx+ only."
        )
    if raw["format"] != FORMAT:
        raise CheckpointError(
            f"{label}: has format {str(raw['format'])[:20]}, and this mcspex reads {FORMAT}. "
            "Update mcspex: pip install -U mcspex"
        )
    return _check(raw, Config, label)


def parse_system(raw: object, where: object) -> SystemConfig:
    """Check a network's description, a dict or `SystemFields`, and build its `SystemConfig`.

    Raises:
        CheckpointError: A key is unknown or missing, or its value is impossible; names `where`.
    """
    from mcspex_cli.model.systems import CHOICES, SystemConfig

    fields = raw if isinstance(raw, SystemFields) else _check(raw, SystemFields, where)
    config = SystemConfig(**msgspec.structs.asdict(fields))
    config = replace(config, consm=FORMER_CONSMS.get(config.consm, config.consm))
    for key, choices in CHOICES.items():
        value = getattr(config, key)
        if value not in choices:
            known = ", ".join(choices)
            raise CheckpointError(f"{where}: {key} {value[:60]!r} is unknown. Known: {known}.")
    if config.kernel % 2 == 0:
        raise CheckpointError(f"{where}: kernel is {config.kernel}. It must be odd.")
    if config.hop < 1 or config.windows[0] < 1 or list(config.windows) != sorted(config.windows):
        raise CheckpointError(
            f"{where}: windows_ms must grow from the first to the last, and the windows and the "
            "hop must have a sample or more."
        )
    if config.system == "mcspex" and config.reference_width != config.channels:
        raise CheckpointError(f"{where}: only SpEx+ has reference_channels. For mcspex, set 0.")
    return config


def largest_weights(system: SystemFields, where: object) -> int:
    """How many bytes the weights of a network can have, in full precision.

    Raises:
        CheckpointError: As `parse_system`.
    """
    import torch

    from mcspex_cli.model.systems import build

    with torch.device("meta"):
        tensors = build(parse_system(system, where)).state_dict().values()
    return 2**16 + sum(256 + 8 * int(tensor.numel()) for tensor in tensors)


def write_config(folder: Path, config: Config | dict[str, Any]) -> None:
    """Write a folder's config.json, whole.

    Raises:
        OutputError: It cannot be written.
    """
    with files.whole(folder / CONFIG) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")


def write_calibration(folder: Path, calibration: dict[str, Any]) -> None:
    """Set or replace the calibration in a folder's config.json.

    Raises:
        CheckpointError: As `read_config`.
        OutputError: It cannot be written.
    """
    read_config(folder)
    raw = msgspec.json.decode((folder / CONFIG).read_bytes())  # with its unknown keys
    write_config(folder, {**raw, "calibration": calibration})


def check_regular(path: Path, remedy: str) -> None:
    """Refuse what is not a file, or a device or a pipe, from which reading may never end.

    Raises:
        CheckpointError: It is not a regular file.
    """
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "is missing"
        raise CheckpointError(f"{path}: {reason}. {remedy}")


def read_bytes(path: Path, remedy: str) -> bytes:
    """Read a regular file.

    Raises:
        CheckpointError: It is not one, or cannot be read.
    """
    check_regular(path, remedy)
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise CheckpointError(f"{path}: is larger than the memory. {remedy}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {files.explain(error)}") from error


def checksum(path: Path, *, git: bool = False) -> str:
    """Return a file's sha256, or git's sha1 of it, as hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file", str(path))
    with path.open("rb") as file:
        digest = hashlib.sha256()
        if git:
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _check(raw: object, kind: type[Checked], where: object) -> Checked:
    """Convert `raw` to a struct; errors name the key."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        if field := re.search(r"(unknown|required) field `(.*)`", reason):
            problem = {"unknown": "an unknown", "required": "a missing"}[field[1]]
            text = f"{field[2][:60]} is {problem} key. Is mcspex up to date?"
            raise CheckpointError(f"{where}: {text}") from error
        value: Any = raw
        for step in re.findall(r"\w+", place):
            value = value[int(step) if isinstance(value, list | tuple) else step]
        key, text = place.strip(".`").removeprefix("system."), reprlib.repr(value)
        raise CheckpointError(f"{where}: {key} is {text}. {reason}.") from error
