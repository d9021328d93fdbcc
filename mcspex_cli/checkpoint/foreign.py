"""Another program's checkpoint file to its state dict, read as tensors and never as code."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli.checkpoint.weights import read_tensors
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_CONTAINERS = ("model_state_dict", "models", "state_dict", "model")
"""Where a checkpoint keeps its state dict: SpEx+'s authors, wesep, Lightning, ClearerVoice."""

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, by its own names less what wrappers put before them."""
    state = read_tensors(path)[0] if path.suffix == ".safetensors" else _read_pickle(path)
    for key in _CONTAINERS:
        if isinstance(state, dict) and key in state:
            state = state[key]
            state = state[0] if isinstance(state, list | tuple) and state else state
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: no state dict is in it. Save the network's state_dict().")
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise CheckpointError(
                f"{path}: {key} is no plain tensor ({type(value).__name__}). "
                "Save the network's state_dict()."
            )
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _read_pickle(path: Path) -> Any:
    """What torch.save wrote, as far as it is tensors and plain containers."""
    import torch

    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats that are refused below anyway
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: it unpickles bytes that may be anything
            if code := re.search(r"GLOBAL (\S+)", str(error)):
                raise CheckpointError(
                    f"{path}: needs code to be run ({code[1]}), which is not done. "
                    "Save the network's state_dict() alone."
                ) from error
            raise CheckpointError(
                f"{path}: not a PyTorch checkpoint, or a damaged one. Copy it again, whole."
            ) from error


def _is_plain(value: object) -> bool:
    """Whether this is a tensor of real numbers that are there, one after another."""
    from torch import Tensor, strided

    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.is_meta:
        return False
    return value.layout == strided and not value.is_complex()
