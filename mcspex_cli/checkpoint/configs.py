"""config.json: what a checkpoint says of itself, believed only as far as it is checked."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import files
from mcspex_cli.errors import CheckpointError, ForeignModel

if TYPE_CHECKING:
    from mcspex_cli.model.systems import SystemConfig

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
GRAPHS = "graphs.json"
"""What the folder of an exported model has; see `extraction.onnx`."""
FILES = (CONFIG, WEIGHTS, CARD)
"""What a model is made of; the card is for people."""

FORMAT = 1
"""Version of config.json; a newer one asks for a newer mcspex."""

REMEDY = "Copy the model again."
"""What helps when a file of a folder is damaged."""

_LIMITS = {
    "sample_rate_hz": (4000, 192_000),
    "hop_ms": (0.1, 100),
    "filters": (2, 4096),
    "channels": (2, 4096),
    "hidden": (1, 8192),
    "kernel": (1, 31),
    "blocks": (1, 16),
    "stacks": (1, 32),
    "reference_channels": (0, 4096),
    "embedding": (1, 4096),
    "speakers": (1, 1_000_000),
}
"""What a config may ask for: a hostile one must not allocate the machine's memory."""

_ADDED_LATER: dict[str, object] = {
    "scale_fuser": "gate",
    "consm": "listening",
    "scale_intermg": "mixing",
    "true_level": False,
    "norm": "gLN",
    "reference_channels": 0,
}
"""Keys that the first configs lack, and what the networks of their time were."""


def parse_config(raw: dict[str, Any], path: object) -> SystemConfig:
    """Check a config's every value and build the SystemConfig; `path` is what errors name.

    Raises:
        CheckpointError: an unknown or missing key, a wrong type or a value out of range.
    """
    from mcspex_cli.model.systems import SystemConfig

    raw = {**_ADDED_LATER, **raw}
    known = {f.name for f in fields(SystemConfig)}
    if raw.keys() != known:
        odd = ", ".join(sorted(raw.keys() ^ known)[:3])
        raise CheckpointError(f"{path}: unknown or missing keys ({odd}). Is mcspex up to date?")
    _check_choices(path, raw)
    for key, (low, high) in _LIMITS.items():
        _check_number(path, key, raw[key], low, high)
    for key, low, high, count in (("windows_ms", 0.1, 1000, 3), ("speaker_channels", 1, 8192, 3)):
        if not isinstance(raw[key], list | tuple) or len(raw[key]) != count:
            raise CheckpointError(f"{path}: {key} must be {count} numbers.")
        for value in raw[key]:
            _check_number(path, key, value, low, high)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    config = SystemConfig(**values)
    if config.kernel % 2 == 0:
        raise CheckpointError(f"{path}: kernel is {config.kernel}, it must be odd.")
    if config.hop < 1 or config.windows[0] < 1 or list(config.windows) != sorted(config.windows):
        raise CheckpointError(f"{path}: windows must grow; none is shorter than a sample.")
    if config.system == "mcspex" and config.reference_width != config.channels:
        raise CheckpointError(f"{path}: reference_channels are SpEx+'s; for mcspex, set 0.")
    return config


def _check_choices(path: object, raw: dict[str, Any]) -> None:
    """Refuse a value that is none of those that its key can have."""
    from mcspex_cli.model.decoder import INTERMGS
    from mcspex_cli.model.encoder import FUSERS
    from mcspex_cli.model.extractor import CONSMS
    from mcspex_cli.model.layers import NORMS
    from mcspex_cli.model.systems import SYSTEMS

    choices: dict[str, Collection[object]] = {
        "system": SYSTEMS,
        "scale_fuser": FUSERS,
        "consm": CONSMS,
        "scale_intermg": INTERMGS,
        "true_level": (True, False),
        "norm": NORMS,
    }
    for key, choice in choices.items():
        if not isinstance(raw[key], str | bool) or raw[key] not in choice:
            names = ", ".join(map(str, choice))
            raise CheckpointError(f"{path}: {key} {_short(raw[key])} is unknown. Known: {names}.")


def _check_number(path: object, key: str, value: object, low: float, high: float) -> None:
    """Refuse what is no number, is outside its limits, or is fractional where sizes are meant."""
    whole = not key.endswith("_ms")
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    if not right or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise CheckpointError(
            f"{path}: {key} is {_short(value)}, not a number from {low} to {high}."
        )


def read_config(folder: Path, name: str = "", remedy: str = REMEDY) -> dict[str, Any]:
    """config.json as a dict with the keys that every version has.

    Args:
        folder: Where it lies.
        name: What errors are to name instead, of a model whose folder nobody knows.
        remedy: What helps if it is damaged.

    Raises:
        ForeignModel: it is another program's.
        CheckpointError: there is none, it is damaged, or of a newer version.
    """
    path = folder / CONFIG
    named = f"{name}: {CONFIG}" if name else str(path)
    if not path.is_file():
        raise CheckpointError(f"{name or folder}: not a model, there is no {CONFIG} in it.")
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{named}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{named}: damaged. {remedy}") from error
    if not isinstance(raw, dict) or not {"format", "system", "sha256"} <= raw.keys():
        raise ForeignModel(f"{named}: another program's. mcspex runs MC-SpEx and SpEx+ only.")
    if raw["format"] != FORMAT:
        raise CheckpointError(
            f"{named}: format {_short(raw['format'])} is not {FORMAT}. "
            "Update mcspex (pip install -U)."
        )
    kinds = {"system": dict, "sha256": str, "provenance": dict}
    if not all(isinstance(raw.setdefault(key, kind()), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{named}: damaged. {remedy}")
    return raw


def write_calibration(folder: Path, calibration: dict[str, Any]) -> None:
    """Put a calibration into a folder's config.json, or replace the one there.

    Raises:
        CheckpointError: as `read_config`.
        OutputError: it cannot be written.
    """
    config = {**read_config(folder), "calibration": calibration}
    with files.whole(folder / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _short(value: object) -> str:
    """A value of a file as a message can have it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def largest_weights(config: SystemConfig) -> int:
    """The size that a float32 weights file of this network can have at most, in bytes."""
    import torch

    from mcspex_cli.model.systems import build

    with torch.device("meta"):
        tensors = build(config).state_dict()
    header = 1024 + 256 * len(tensors)
    return header + int(sum(t.numel() * t.element_size() for t in tensors.values()))
