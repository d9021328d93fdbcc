"""A System to two ONNX graphs, compared with it before anyone uses them."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mcspex_cli import __version__, files
from mcspex_cli.checkpoint import graphs
from mcspex_cli.checkpoint.configs import CARD, CONFIG
from mcspex_cli.checkpoint.graphs import EMBED, EXTRACT
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.checkpoint.weights import load_checkpoint
from mcspex_cli.errors import EngineError, OutputError
from mcspex_cli.extraction.graph_runtime import GraphRuntime
from mcspex_cli.extraction.onnx_runtime import OnnxRuntime
from mcspex_cli.extraction.openvino_runtime import OpenvinoRuntime
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.model.layers import Depthwise
from mcspex_cli.model.systems import System

_INPUTS = {EMBED: ("reference",), EXTRACT: ("mixture", "embedding")}
_OUTPUT = {EMBED: "embedding", EXTRACT: "estimate"}

_OPSET = 18
"""The version of ONNX's operators, of 2022: what the exporter writes best."""

_TOLERANCE = 1e-4
"""How far a graph may be from torch, as a part of the largest value."""


def export_model(info: CheckpointInfo, folder: Path) -> None:
    """Write a model's graphs, config.json and card to a folder, which is whole or not made.

    Raises:
        CheckpointError: the model does not load.
        EngineError: a graph does not agree with torch.
        OutputError: the folder cannot be written.
    """
    with files.whole_folder(folder) as unfinished:
        export(load_checkpoint(info), info, unfinished)
        for name in (CONFIG, CARD):
            if (info.folder / name).is_file():
                shutil.copyfile(info.folder / name, unfinished / name)


def prepare(info: CheckpointInfo) -> None:
    """Put a model's graphs into the cache.

    Raises:
        CheckpointError, EngineError, OutputError: as `export_model`.
    """
    folder = graphs.place(info)
    try:
        files.make_folders(folder.parent)
    except OutputError as error:
        raise OutputError(f"{error} Let MCSPEX_CACHE name another.") from error
    files.sweep(folder.parent)
    with files.whole_folder(folder) as unfinished:
        export(load_checkpoint(info), info, unfinished)


def export(system: System, info: CheckpointInfo, folder: Path) -> None:
    """Write a System's graphs, and what is to be known of them, to a folder that is there.

    Raises:
        EngineError: a graph does not agree with the System.
    """
    config = system.config
    facts = {
        "mcspex": __version__,
        "model_sha256": info.sha256,
        "sample_rate_hz": config.sample_rate_hz,
        "true_level": config.true_level,
        "least_samples": config.windows[0],
        "least_reference_samples": system.least_reference_samples,
    }
    plain = _plain(system)
    for name in (EMBED, EXTRACT):
        _write(plain, name, folder / name, {key: str(value) for key, value in facts.items()})
    graphs.seal(folder, info, facts)
    _check(system, graphs.read(folder, info))


class _Part(nn.Module):
    """One of a System's two uses as a module."""

    def __init__(self, system: System, name: str) -> None:
        super().__init__()
        self.system, self.use = system, Path(name).stem

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embed or extract."""
        made: Tensor = getattr(self.system, self.use)(*inputs)
        return made


def _plain(system: System) -> System:
    """A copy in operators that ONNX Runtime is quick at: it takes two thirds of the time."""
    plain = copy.deepcopy(system).cpu().float().eval().requires_grad_(False)
    for module in list(plain.modules()):
        for name, part in module.named_children():
            if isinstance(part, Depthwise):  # under a compiler it would not be a convolution
                setattr(module, name, _convolution(part))
            elif isinstance(part, nn.PReLU):
                setattr(module, name, nn.LeakyReLU(part.weight.item()))
    return plain


def _convolution(part: Depthwise) -> nn.Conv1d:
    """The same as nothing but a convolution."""
    made = nn.Conv1d(
        part.in_channels,
        part.out_channels,
        part.kernel_size[0],
        padding=int(part.padding[0]),
        dilation=part.dilation[0],
        groups=part.groups,
    )
    made.load_state_dict(part.state_dict())
    return made.requires_grad_(False)


def _write(system: System, name: str, path: Path, facts: dict[str, str]) -> None:
    """Write one graph."""
    signal = torch.zeros(2, 2 * system.least_reference_samples + 1)
    examples = (signal, torch.zeros(2, system.config.embedding))[: len(_INPUTS[name])]
    axes = ({0: "batch", 1: "sample"}, {0: "batch"})[: len(_INPUTS[name])]
    with _silence():
        program = torch.onnx.export(
            _Part(system, name),
            examples,
            dynamo=True,
            opset_version=_OPSET,
            input_names=_INPUTS[name],
            output_names=[_OUTPUT[name]],
            dynamic_shapes=(axes,),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # where in whose files each line of the network is
    if name == EXTRACT:
        program.model.graph.outputs[0].shape = program.model.graph.inputs[0].shape
    program.model.metadata_props.update(facts)
    program.save(path)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's remarks on other people's code to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check(system: System, made: graphs.Graphs) -> None:
    """Compare graphs with the System at other lengths and batches than they were made with."""
    runtime = _runtime(made)
    if runtime is None:
        return
    rng = np.random.default_rng(0)
    least = system.least_reference_samples
    for batch, length in ((1, least), (3, system.config.sample_rate_hz + least + 7)):
        signals = 0.1 * rng.standard_normal((batch, length), np.float32)
        voices = rng.standard_normal((batch, system.config.embedding), np.float32)
        for name, inputs in ((EMBED, [signals]), (EXTRACT, [signals, voices])):
            with torch.inference_mode():
                expected = _Part(system, name)(*map(torch.from_numpy, inputs)).numpy()
            off = np.abs(runtime.run(name, *inputs) - expected).max() / np.abs(expected).max()
            if not off <= _TOLERANCE:
                raise EngineError(
                    f"{name}: is {off:.1e} off torch under {runtime.name}, which is too much. "
                    "Update torch, onnxscript and it, or use --runtime torch."
                )


def _runtime(made: graphs.Graphs) -> GraphRuntime | None:
    """The graphs in a runtime that is installed, if one is; float32, on a CPU."""
    for kind in (OnnxRuntime, OpenvinoRuntime):
        if find_spec(graphs.PACKAGES[kind.name]):
            return kind(made, EngineSettings("cpu", "float32"))
    return None
