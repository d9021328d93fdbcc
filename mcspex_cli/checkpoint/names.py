"""From a name or a folder to a checkpoint on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli.checkpoint.configs import CONFIG, read_config
from mcspex_cli.errors import CheckpointError

DEFAULT_MODEL = "mcspex-small-8k"


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
    package = Path(__file__).parents[1]
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
    raw = read_config(folder)
    return CheckpointInfo(
        name=folder.resolve().name,
        folder=folder,
        sha256=raw["sha256"],
        config=raw["system"],
        provenance=raw.get("provenance", {}),
    )
