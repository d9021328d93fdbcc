"""From a checkpoint to an engine that runs it, by one runtime or another."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from mcspex_cli.checkpoint import graphs
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.checkpoint.weights import load_checkpoint
from mcspex_cli.errors import CheckpointError, EngineError
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.presence import parse_calibration
from mcspex_cli.extraction.runtime import EngineSettings, Runtime

if TYPE_CHECKING:
    from mcspex_cli.extraction.graph_runtime import GraphRuntime

SHORT_S = 8.0
"""Seconds of audio up to which a start without torch saves more than torch's speed does."""

_QUICK = {"onnx": ("auto", "float32"), "openvino": ("auto", "float32", "bfloat16")}
"""What begins sooner than torch, the soonest first, and the precisions that each may have."""


def choose(info: CheckpointInfo, settings: EngineSettings, seconds: float) -> str:
    """The runtime for so many seconds of audio in all.

    "auto" is torch; but for little audio on a CPU, an installed runtime whose graphs are there,
    since it begins sooner.
    """
    if settings.runtime != "auto":
        return settings.runtime
    little = seconds <= SHORT_S or graphs.are_alone(info)
    if little and settings.device in ("auto", "cpu") and _are_ready(info):
        for name, precisions in _QUICK.items():
            if settings.precision in precisions and find_spec(graphs.PACKAGES[name]):
                return name
    return "torch"


def _are_ready(info: CheckpointInfo) -> bool:
    """Whether a model's graphs are there and good, or all that it has."""
    try:
        return graphs.find(info) is not None
    except CheckpointError:
        return graphs.are_alone(info)


def lacks_graphs(info: CheckpointInfo, runtime: str) -> bool:
    """Whether graphs have to be made, which takes a while, before this runtime can work.

    Raises:
        EngineError: it, or what makes graphs, is not installed.
        CheckpointError: the model's own graphs are damaged.
    """
    if runtime not in graphs.PACKAGES:
        return False
    graphs.check_installed(runtime, graphs.PACKAGES[runtime])
    if graphs.find(info):
        return False
    graphs.check_installed(runtime, *graphs.EXPORTER)
    return True


def open_engine(info: CheckpointInfo, settings: EngineSettings) -> Engine:
    """Make an engine of a checkpoint, with the runtime that `settings` names; "auto" is torch.

    Raises:
        CheckpointError: the weights, graphs or calibration are damaged or do not fit.
        EngineError: the runtime, device or precision is not to be had here.
    """
    runtime = _runtime(info, settings)
    calibration = parse_calibration(info.calibration, info.config["embedding"], info.label)
    return Engine(runtime, settings, calibration)


def _runtime(info: CheckpointInfo, settings: EngineSettings) -> Runtime:
    """The runtime asked for."""
    if settings.runtime in graphs.PACKAGES:
        return _graph_runtime(info, settings)
    from mcspex_cli.extraction.torch_runtime import TorchRuntime

    return TorchRuntime(load_checkpoint(info), settings)


def _graph_runtime(info: CheckpointInfo, settings: EngineSettings) -> GraphRuntime:
    """A runtime that takes graphs, which are made if need be."""
    from mcspex_cli.extraction.onnx_runtime import OnnxRuntime
    from mcspex_cli.extraction.openvino_runtime import OpenvinoRuntime

    if lacks_graphs(info, settings.runtime):
        from mcspex_cli.extraction.exporting import prepare

        prepare(info)
    found = graphs.find(info)
    if found is None:
        raise EngineError(f"{graphs.place(info)}: its graphs do not last. Set MCSPEX_CACHE.")
    kinds = {kind.name: kind for kind in (OnnxRuntime, OpenvinoRuntime)}
    return kinds[settings.runtime](found, settings)
