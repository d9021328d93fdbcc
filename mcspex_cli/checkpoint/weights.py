"""From a checkpoint on disk to a ready System, strictly; and back to a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import files
from mcspex_cli.checkpoint.configs import CONFIG, FORMAT, GRAPHS, WEIGHTS, parse_config
from mcspex_cli.checkpoint.names import CheckpointInfo, find_checkpoint
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mcspex_cli.model.systems import System

STATISTICS = ("running_", "num_batches_")
"""How the names of tensors begin that are counted, not learned."""


def load_checkpoint(model: str | Path | CheckpointInfo | None = None) -> System:
    """Load a folder, bundled name or Hub name as a System in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: as `find_checkpoint`; or the weights are missing, damaged or do not
            fit the system that the config describes.
    """
    import torch

    from mcspex_cli.model.systems import build

    info = model if isinstance(model, CheckpointInfo) else find_checkpoint(model)
    if (info.folder / GRAPHS).is_file() and not (info.folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{info.folder}: has graphs, but no {WEIGHTS}, which torch needs. Use --runtime onnx."
        )
    config = parse_config(info.config, info.folder / CONFIG)
    path = info.folder / WEIGHTS
    tensors, sha256 = read_tensors(path, info.remedy)
    with torch.device("meta"):
        system = build(config)
    _check_fit(path, system, tensors)
    system.load_state_dict(
        {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, assign=True
    )
    if sha256 != info.sha256:
        raise CheckpointError(f"{path}: sha256 is not the one in {CONFIG}. {info.remedy}")
    return system.eval().requires_grad_(False)


def read_tensors(path: Path, remedy: str = "Copy it again.") -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file, whosever: its tensors by name, and its sha256.

    Raises:
        CheckpointError: it cannot be read, or is damaged or something else.
    """
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        return load(data), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    except Exception as error:  # safetensors' errors share no base class
        raise CheckpointError(f"{path}: damaged or not safetensors. {remedy}") from error


def count_weights(info: CheckpointInfo) -> int:
    """How many weights a checkpoint has, without loading them; running statistics are none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    from safetensors import safe_open

    path = info.folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' errors share no base class
        raise CheckpointError(f"{path}: damaged or not safetensors. {info.remedy}") from error
    learned = (s for key, s in shapes.items() if not key.rpartition(".")[2].startswith(STATISTICS))
    return sum(prod(shape) for shape in learned)


def save_checkpoint(
    folder: Path, system: System, provenance: dict[str, Any], *, half: bool = True
) -> None:
    """Write `system` to a folder as half-precision weights and config.json.

    Running statistics keep float32, and so does what half precision cannot hold.

    Args:
        folder: made if need be.
        system: what to write.
        provenance: where it comes from, for config.json.
        half: False keeps float32 throughout, twice as large, for weights that are another
            program's and shall give its outputs.

    Raises:
        OutputError: the folder cannot be made.
    """
    import torch
    from safetensors.torch import save

    tensors = {key: t.detach().cpu().contiguous() for key, t in system.state_dict().items()}
    for name, _ in system.named_parameters():
        rounded = tensors[name].to(torch.float16)
        if half and rounded.isfinite().all():
            tensors[name] = rounded
    data = save(tensors)
    config = {
        "format": FORMAT,
        "system": asdict(system.config),
        "sha256": hashlib.sha256(data).hexdigest(),
        "provenance": provenance,
    }
    files.make_folders(folder)
    for name, content in ((WEIGHTS, data), (CONFIG, json.dumps(config, indent=2).encode() + b"\n")):
        with files.whole(folder / name) as partial:
            partial.write_bytes(content)


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
