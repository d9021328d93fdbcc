"""A model's two ONNX graphs on disk: named, found and looked over, without torch.

```
FOLDER/embed.onnx      reference [batch, sample] to embedding [batch, embedding]
       extract.onnx    mixture [batch, sample], embedding to estimate [batch, sample]
       graphs.json     what they are of, and their checksums
```

A folder of `mcspex models export` has them, and the cache has those made on first use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mcspex_cli.checkpoint.cache import checksum
from mcspex_cli.checkpoint.configs import WEIGHTS
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.errors import CheckpointError, EngineError, OutputError

EMBED, EXTRACT, FACTS = "embed.onnx", "extract.onnx", "graphs.json"

VERSION = 1
"""Of how graphs are made; older ones are made anew."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The package of each runtime that takes graphs."""


EXPORTER = ("onnx", "onnxscript")
"""The packages that graphs are made with."""


@dataclass(frozen=True)
class Graphs:
    """Graphs on disk, and what a runtime has to know of them."""

    folder: Path
    sample_rate_hz: int
    true_level: bool
    least_samples: int
    """The shortest mixture that the graph takes; a runtime completes others with zeros."""


def check_installed(runtime: str, *packages: str) -> None:
    """Refuse a runtime of which a package is not there.

    Raises:
        EngineError: as said.
    """
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        names = ", ".join(absent)
        raise EngineError(
            f"{runtime}: {names} {verb} not installed. pip install 'mcspex[{runtime}]'"
        )


def cache() -> Path:
    """The folder for what can be made again: MCSPEX_CACHE, or mcspex in the user's cache."""
    if os.environ.get("MCSPEX_CACHE"):
        return Path(os.environ["MCSPEX_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mcspex"


def fingerprint(info: CheckpointInfo) -> str:
    """Tells graphs of one model, made in one way, from all others."""
    said = json.dumps([VERSION, info.sha256, info.config], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def place(info: CheckpointInfo) -> Path:
    """Where a model's graphs are: in its own folder, else in the cache, or would be."""
    own = (info.folder / FACTS).is_file()
    return info.folder if own else cache() / "graphs" / fingerprint(info)


def are_alone(info: CheckpointInfo) -> bool:
    """Whether a model's folder has graphs, and no weights of which to make them, or for torch."""
    return (info.folder / FACTS).is_file() and not (info.folder / WEIGHTS).exists()


def check_weights(info: CheckpointInfo) -> None:
    """Refuse a model that has only graphs where weights are needed.

    Raises:
        CheckpointError: as said.
    """
    if are_alone(info):
        raise CheckpointError(
            f"{info.folder}: has graphs, but no {WEIGHTS}, which torch needs. "
            "Use --runtime onnx or openvino."
        )


def find(info: CheckpointInfo) -> Graphs | None:
    """A model's graphs; None if there are none yet, or only damaged ones in the cache.

    Raises:
        CheckpointError: those in its own folder are damaged, or another's.
    """
    folder = place(info)
    try:
        return read(folder, info) if (folder / FACTS).is_file() else None
    except CheckpointError:
        if folder == info.folder:
            raise
        return None


def read(folder: Path, info: CheckpointInfo) -> Graphs:
    """The graphs in a folder, which are to be whole, and of this model.

    Raises:
        CheckpointError: they are not.
    """
    again = "Export the model again."
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        if facts["fingerprint"] != fingerprint(info):
            raise CheckpointError(f"{folder}: graphs of another model or mcspex. {again}")
        for name in (EMBED, EXTRACT):
            if checksum(folder / name) != facts["sha256"][name]:
                raise CheckpointError(f"{folder / name}: damaged. {again}")
        kept = facts["sample_rate_hz"], facts["true_level"], facts["least_samples"]
    except OSError as error:
        path = error.filename or folder
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). {again}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FACTS}: damaged. {again}") from error
    return Graphs(folder, *kept)


def check_free(folder: Path, info: CheckpointInfo, *, overwrite: bool) -> None:
    """Refuse a folder for graphs in which something would be replaced unasked, or mixed up.

    Raises:
        OutputError: as said.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file. Name a folder.")
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder}: is there already. Name another -o, or add --overwrite.")
    weights = folder / WEIGHTS
    if weights.exists() and checksum(weights) != info.sha256:
        raise OutputError(f"{folder}: has the weights of another model. Name another -o.")


def seal(folder: Path, info: CheckpointInfo, facts: Mapping[str, Any]) -> None:
    """Write graphs.json beside new graphs."""
    sums = {name: checksum(folder / name) for name in (EMBED, EXTRACT)}
    said = {"fingerprint": fingerprint(info), **facts, "sha256": sums}
    (folder / FACTS).write_text(json.dumps(said, indent=2) + "\n")
