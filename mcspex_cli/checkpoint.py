"""From a name or a folder to a ready System, strictly; and back to a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import paths
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from mcspex_cli.model.systems import System, SystemConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
"""Version of config.json; a newer one asks for a newer mcspex."""

DEFAULT_MODEL = "mcspex-small-8k"

_LIMITS = {
    "sample_rate_hz": (4000, 192_000),
    "hop_ms": (0.1, 100),
    "filters": (2, 4096),
    "channels": (2, 4096),
    "hidden": (1, 8192),
    "kernel": (1, 31),
    "blocks": (1, 16),
    "stacks": (1, 32),
    "embedding": (1, 4096),
    "speakers": (1, 1_000_000),
}
"""What a config may ask for: a hostile one must not allocate the machine's memory."""

_ADDED_LATER: dict[str, object] = {
    "scale_fuser": "gate",
    "consm": "listening",
    "scale_intermg": "mixing",
    "true_level": False,
}
"""Keys that the first configs lack, and what the networks of their time were."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint on disk, described without loading it."""

    name: str
    folder: Path
    sha256: str
    config: dict[str, Any]
    provenance: dict[str, Any]


def bundled() -> dict[str, Path]:
    """The checkpoints that come with the package: name to folder."""
    package = Path(__file__).parent
    for root in (package / "weights", package.parent / "weights"):
        if root.is_dir():
            return {p.name: p for p in sorted(root.iterdir()) if (p / CONFIG).is_file()}
    return {}


def find_checkpoint(model: str | Path = DEFAULT_MODEL) -> CheckpointInfo:
    """Resolve `model`, a folder or a bundled name, in this order.

    Raises:
        CheckpointError: there is no such model, or its config.json cannot be used.
    """
    folder = Path(model)
    if not folder.is_dir():
        known = bundled()
        if str(model) not in known:
            names = ", ".join(known) or "none"
            raise CheckpointError(
                f"{model}: no such model. Bundled: {names}; or name a folder with {CONFIG}."
            )
        folder = known[str(model)]
    raw = _read_config(folder)
    return CheckpointInfo(
        name=folder.resolve().name,
        folder=folder,
        sha256=raw["sha256"],
        config=raw["system"],
        provenance=raw.get("provenance", {}),
    )


def load_checkpoint(model: str | Path | CheckpointInfo = DEFAULT_MODEL) -> System:
    """Load a bundled name or a folder as a System in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: as `find_checkpoint`; or the weights are missing, damaged or do not
            fit the system that the config describes.
    """
    import torch
    from safetensors.torch import load

    from mcspex_cli.model.systems import build

    info = model if isinstance(model, CheckpointInfo) else find_checkpoint(model)
    config = parse_config(info.config, info.folder / CONFIG)
    path = info.folder / WEIGHTS
    try:
        data = path.read_bytes()
        tensors = load(data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read. Copy the model again, whole.") from error
    except Exception as error:  # safetensors' errors share no base class
        raise CheckpointError(
            f"{path}: damaged or not safetensors. Copy the model again."
        ) from error
    with torch.device("meta"):
        system = build(config)
    _check_fit(path, system, tensors)
    system.load_state_dict(
        {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, assign=True
    )
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise CheckpointError(f"{path}: sha256 is not the one in {CONFIG}. Copy the model again.")
    return system.eval().requires_grad_(False)


def save_checkpoint(folder: Path, system: System, provenance: dict[str, Any]) -> None:
    """Write `system` to a folder as half-precision weights and config.json.

    Running statistics keep float32, whose range they may need.

    Raises:
        OutputError: the folder cannot be made.
    """
    import torch
    from safetensors.torch import save

    learned = {name for name, _ in system.named_parameters()}
    tensors = {
        key: (tensor.to(torch.float16) if key in learned else tensor).detach().cpu().contiguous()
        for key, tensor in system.state_dict().items()
    }
    data = save(tensors)
    config = {
        "format": FORMAT,
        "system": asdict(system.config),
        "sha256": hashlib.sha256(data).hexdigest(),
        "provenance": provenance,
    }
    paths.make_folders(folder)
    for name, content in ((WEIGHTS, data), (CONFIG, json.dumps(config, indent=2).encode() + b"\n")):
        with paths.whole(folder / name) as partial:
            partial.write_bytes(content)


def parse_config(raw: dict[str, Any], path: Path) -> SystemConfig:
    """Check a config's every value and build the SystemConfig.

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
    if config.hop < 1 or list(config.windows) != sorted(config.windows):
        raise CheckpointError(f"{path}: windows must grow and the hop be a sample or more.")
    return config


def _check_choices(path: Path, raw: dict[str, Any]) -> None:
    """Refuse a value that is none of those that its key can have."""
    from mcspex_cli.model.decoder import INTERMGS
    from mcspex_cli.model.encoder import FUSERS
    from mcspex_cli.model.extractor import CONSMS
    from mcspex_cli.model.systems import SYSTEMS

    choices: dict[str, Collection[object]] = {
        "system": SYSTEMS,
        "scale_fuser": FUSERS,
        "consm": CONSMS,
        "scale_intermg": INTERMGS,
        "true_level": (True, False),
    }
    for key, choice in choices.items():
        if not isinstance(raw[key], str | bool) or raw[key] not in choice:
            names = ", ".join(map(str, choice))
            raise CheckpointError(f"{path}: {key} {raw[key]!r} is unknown. Known: {names}.")


def _check_number(path: Path, key: str, value: object, low: float, high: float) -> None:
    """Refuse what is no number, is outside its limits, or is fractional where sizes are meant."""
    whole = not key.endswith("_ms")
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    if not right or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise CheckpointError(f"{path}: {key} is {value!r}, not a number from {low} to {high}.")


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict with the keys that every version has."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a model, there is no {CONFIG} in it.")
    try:
        raw = json.loads(path.read_text())
        version, _, _ = raw["format"], raw["system"].keys(), raw["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model's config. Copy the model again.") from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: format {version} is not {FORMAT}. Update mcspex.")
    loaded: dict[str, Any] = raw
    return loaded


def _check_fit(path: Path, system: System, tensors: dict[str, Any]) -> None:
    """Name the first three tensors that are missing, unexpected or of another shape."""
    wanted = {key: tuple(t.shape) for key, t in system.state_dict().items()}
    given = {key: tuple(t.shape) for key, t in tensors.items()}
    odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(
            f"{path}: not the weights of this system: {', '.join(odd[:3])}{more} do not fit. "
            "Use the config.json that came with them."
        )
