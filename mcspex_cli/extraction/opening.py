"""From a checkpoint to an engine that runs it."""

from __future__ import annotations

from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.checkpoint.weights import load_checkpoint
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.runtime import EngineSettings, Runtime


def open_engine(info: CheckpointInfo, settings: EngineSettings) -> Engine:
    """Make an engine of a checkpoint, with the runtime that `settings` asks for.

    Raises:
        CheckpointError: the weights are damaged or do not fit.
        EngineError: the runtime, device or precision is not to be had here.
    """
    return Engine(_runtime(info, settings), settings)


def _runtime(info: CheckpointInfo, settings: EngineSettings) -> Runtime:
    """The runtime asked for; "auto" is torch."""
    from mcspex_cli.extraction.torch_runtime import TorchRuntime

    return TorchRuntime(load_checkpoint(info), settings)
