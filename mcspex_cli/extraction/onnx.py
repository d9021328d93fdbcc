"""A model as two ONNX graphs, which run without torch: on disk, exported, and run.

```
FOLDER/embed.onnx      reference [batch, sample] to embedding [batch, embedding]
       extract.onnx    mixture [batch, sample], embedding to estimate [batch, sample]
       graphs.json     what they were made of, and their checksums
```

A folder of `mcspex models export` has them, and the cache has those that were made on first use.
torch is only imported to export.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mcspex_cli import __version__, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import (
    EMBED,
    EXTRACT,
    GRAPHS,
    CheckpointInfo,
    check_replaceable,
    load_checkpoint,
    read_graphs,
)
from mcspex_cli.checkpoint.hub import CARD, CONFIG, checksum
from mcspex_cli.errors import (
    CheckpointError,
    EngineError,
    OutputError,
    error_line,
    install_extra,
    is_lack_of_memory,
)
from mcspex_cli.extraction.runtime import GPU_BATCH, EngineSettings, OutOfMemoryError, Runtime

if TYPE_CHECKING:
    from mcspex_cli.model.config import SystemConfig
    from mcspex_cli.model.systems import System

_logger = logging.getLogger("mcspex")

_VERSION = 1
"""The version of how graphs are made; graphs of an older one are made again."""

RUNNER, EXPORTER = "onnxruntime", ("onnx", "onnxscript")
"""The packages that run graphs, and that make them."""

_SHORT_AUDIO_S = 8.0
"""Seconds of audio up to which a start without torch saves more than torch's speed does."""

_INPUTS = {EMBED: ("reference",), EXTRACT: ("mixture", "embedding")}
_OUTPUT = {EMBED: "embedding", EXTRACT: "estimate"}

_OPSET = 18  # the version of ONNX's operators, of 2022: what the exporter writes best
_TOLERANCE = 1e-4  # how far a graph may be from torch, as a part of the largest value
_CUDA = "CUDAExecutionProvider"

_FATAL_SEVERITY = 4  # the level below which ONNX Runtime logs nothing: we raise its errors


class OnnxRuntime(Runtime):
    """Graphs run by ONNX Runtime in float32, on a CPU, or on a GPU that it can use.

    They take no lengths, so that the signals of a batch must be equally long. `config` is that of
    the network that they were made of.

    Raises:
        EngineError: the device or precision is not available to ONNX Runtime, or it cannot load
            these graphs.
    """

    name = "onnx"

    def __init__(self, folder: Path, config: SystemConfig, settings: EngineSettings) -> None:
        # From version 1.29 on, it would tell its makers of every model that it runs.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        self.sample_rate_hz, self.true_level = config.sample_rate_hz, config.true_level
        self.embedding, self.hop = config.embedding, config.hop
        self._min_samples = config.windows[0]
        self.device, self.precision, self.batch = "cpu", "float32", 1
        has_gpu = _CUDA in onnxruntime.get_available_providers()
        devices = ("auto", "cpu", "cuda") if has_gpu else ("auto", "cpu")
        kind, _, number = settings.device.partition(":")
        if kind not in devices or not (number or "0").isdecimal():
            raise _refusal("device", settings.device, devices)
        if settings.precision not in ("auto", "float32"):
            raise _refusal("precision", settings.precision, ("auto", "float32"))
        providers: list[Any] = ["CPUExecutionProvider"]
        if has_gpu and kind != "cpu":
            providers.insert(0, (_CUDA, {"device_id": number or "0"}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.log_severity_level = _FATAL_SEVERITY
        try:
            with redirect_stdout(None):  # where it would print of a second try, amid the sound
                self._sessions = {
                    name: onnxruntime.InferenceSession(folder / name, options, providers)
                    for name in (EMBED, EXTRACT)
                }
        except Exception as error:  # its errors share no base class
            raise EngineError(
                f"{RUNNER} cannot load {folder} ({error_line(error, -1)}). Update it, or use "
                "--runtime torch."
            ) from error
        if len(providers) > 1 and _CUDA in self._sessions[EXTRACT].get_providers():
            self.device, self.batch = f"cuda:{number or 0}", GPU_BATCH
        elif kind == "cuda":  # it takes the CPU without a word
            raise _refusal("device", settings.device, ("auto", "cpu"))

    def embed(self, references: Samples) -> Samples:
        """As `Runtime.embed`."""
        return self.run(EMBED, references)

    def extract(self, mixtures: Sequence[Samples], embeddings: Samples) -> list[Samples]:
        """As `Runtime.extract`."""
        if len({*map(len, mixtures)}) > 1:
            pairs = zip(mixtures, embeddings, strict=True)
            return [self.extract([mixture], one[None])[0] for mixture, one in pairs]
        batch = np.stack(mixtures)
        length = batch.shape[1]
        completed = np.pad(batch, ((0, 0), (0, max(0, self._min_samples - length))))
        return list(self.run(EXTRACT, completed, embeddings)[:, :length])

    def run(self, graph: str, *inputs: Samples) -> Samples:
        """Run `EMBED` or `EXTRACT` on its inputs."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL_SEVERITY
        arrays = (np.ascontiguousarray(array, np.float32) for array in inputs)
        feeds = dict(zip(_INPUTS[graph], arrays, strict=True))
        try:
            output: Samples = self._sessions[graph].run(None, feeds, options)[0]
        except Exception as error:  # as above
            if is_lack_of_memory(error):
                raise OutOfMemoryError from error
            raise
        return output


def _refusal(what: str, name: str, known: tuple[str, ...]) -> EngineError:
    choices = ", ".join(known)
    return EngineError(
        f"{what} {name!r} is not available to onnx. Use one of: {choices}; or --runtime torch."
    )


def choose_runtime(
    info: CheckpointInfo, settings: EngineSettings, seconds: float
) -> EngineSettings:
    """Decide what "auto" runs, for `seconds` of audio in all.

    With little audio, ONNX Runtime is done sooner than torch, if its graphs are there. It is not
    taken where a GPU, or a precision that it lacks, is named.
    """
    if settings.runtime != "auto":
        return settings
    can_run = settings.device in ("auto", "cpu") and settings.precision in ("auto", "float32")
    is_onnx = info.has_only_graphs
    if can_run and seconds <= _SHORT_AUDIO_S and find_spec(RUNNER):
        with suppress(CheckpointError, EngineError):
            is_onnx = is_onnx or find(info) is not None
    return replace(settings, runtime="onnx" if is_onnx else "torch")


def check_installed(*packages: str) -> None:
    """Refuse to go on without a package."""
    if absent := [package for package in packages if find_spec(package) is None]:
        verb = "is" if len(absent) == 1 else "are"
        names = ", ".join(absent)
        raise EngineError(f"onnx: {names} {verb} not installed. {install_extra('onnx')}")


def cache() -> Path:
    """The folder for what can be made again: MCSPEX_CACHE, or mcspex in the user's cache."""
    if own := os.environ.get("MCSPEX_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcspex"
    except RuntimeError as error:  # a user whom the system does not know, as in a container
        raise EngineError(
            "onnx: you have no home folder, where graphs could be kept. Let MCSPEX_CACHE name a "
            "folder, or use --runtime torch."
        ) from error


def fingerprint(info: CheckpointInfo) -> str:
    """Identifies the graphs of one model, made in one way."""
    facts = [_VERSION, info.sha256, msgspec.to_builtins(info.config)]
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def place(info: CheckpointInfo) -> Path:
    """Where the graphs of a model are, or would be: in its own folder, else in the cache."""
    own = (info.folder / GRAPHS).is_file()
    return info.folder if own else cache() / "graphs" / fingerprint(info)


def find(info: CheckpointInfo) -> Path | None:
    """The folder of a model's graphs; None if there are none, or damaged ones in the cache.

    Damaged ones in the model's own folder, or those of another model, are a CheckpointError.
    """
    folder = place(info)
    if not os.path.isfile(folder / GRAPHS):  # noqa: PTH113  false also where one may not look
        return None
    try:
        check_graphs(folder, info)
    except CheckpointError:
        if folder == info.folder:
            raise
        return None
    return folder


def check_graphs(folder: Path, info: CheckpointInfo) -> None:
    """Refuse graphs that are not whole, or not of this model."""
    if read_graphs(folder).get("fingerprint") != fingerprint(info):
        raise CheckpointError(
            f"{folder}: graphs of another model or mcspex. Export the model again."
        )


def export_model(info: CheckpointInfo, folder: Path, *, overwrite: bool = False) -> None:
    """Write the graphs, the config.json and the card of a model to a folder, all or nothing.

    Raises:
        CheckpointError: the model does not load.
        EngineError: a graph does not agree with torch.
        OutputError: the folder cannot be written, or as `check_replaceable`.
    """
    with files.whole_folder(folder) as unfinished:
        export(load_checkpoint(info), info, unfinished)
        check_replaceable(folder, overwrite=overwrite)
        for name in (CONFIG, CARD):
            if (info.folder / name).is_file():
                shutil.copyfile(info.folder / name, unfinished / name)


def find_or_prepare(info: CheckpointInfo) -> Path:
    """The folder of a model's graphs; where there are none, they are put into the cache first.

    Raises:
        EngineError, CheckpointError, OutputError: a package is missing, or as `export_model`.
    """
    check_installed(RUNNER)
    if folder := find(info):
        return folder
    check_installed(*EXPORTER)
    _logger.info(f"{info.label}: making graphs for onnx, which is done once ...")
    folder = place(info)
    try:
        files.make_folders(folder.parent)
    except OutputError as error:
        raise OutputError(f"{error} Let MCSPEX_CACHE name another folder.") from error
    files.sweep(folder.parent)
    with files.whole_folder(folder) as unfinished:
        export(load_checkpoint(info), info, unfinished)
    return folder


def export(system: System, info: CheckpointInfo, folder: Path) -> None:
    """Write the graphs of a `System`, and what must be known of them, to a folder that exists."""
    config = system.config
    facts = {
        "mcspex": __version__,
        "model_sha256": info.sha256,
        "sample_rate_hz": config.sample_rate_hz,
        "true_level": config.true_level,
        "least_samples": config.windows[0],
        "least_reference_samples": system.least_reference_samples,
    }
    for name in (EMBED, EXTRACT):
        _write(system, folder / name, {key: str(value) for key, value in facts.items()})
    sums = {name: checksum(folder / name) for name in (EMBED, EXTRACT)}
    document = {"fingerprint": fingerprint(info), **facts, "sha256": sums}
    (folder / GRAPHS).write_text(json.dumps(document, indent=2) + "\n")
    if find_spec(RUNNER):
        _compare(system, OnnxRuntime(folder, config, EngineSettings("cpu", "float32")))


def _write(system: System, path: Path, facts: dict[str, str]) -> None:
    """Write the graph that `path` names, in operators that ONNX Runtime is quick at."""
    import torch
    from torch import Tensor, nn

    class Part(nn.Module):
        """One of the two uses of a `System`."""

        def __init__(self, system: System) -> None:
            super().__init__()
            self.system = system

        def forward(self, *inputs: Tensor) -> Tensor:
            return getattr(self.system, path.stem)(*inputs)  # embed or extract

    plain = copy.deepcopy(system).cpu().float().eval().requires_grad_(False)
    for module in list(plain.modules()):
        for child, part in module.named_children():
            if isinstance(part, nn.PReLU):
                setattr(module, child, nn.LeakyReLU(part.weight.item()))
    signal = torch.zeros(2, 2 * system.least_reference_samples + 1)
    inputs = _INPUTS[path.name]
    with _silence():
        program = torch.onnx.export(
            Part(plain),
            (signal, torch.zeros(2, system.config.embedding))[: len(inputs)],
            dynamo=True,
            opset_version=_OPSET,
            input_names=inputs,
            output_names=[_OUTPUT[path.name]],
            dynamic_shapes=(({0: "batch", 1: "sample"}, {0: "batch"})[: len(inputs)],),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # the files and lines of whoever exported it
    if path.name == EXTRACT:
        program.model.graph.outputs[0].shape = program.model.graph.inputs[0].shape
    program.model.metadata_props.update(facts)
    program.save(path)


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the exporter's remarks on other packages' code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _compare(system: System, runtime: OnnxRuntime) -> None:
    """Compare graphs with the `System` at other lengths and batches than they were made with."""
    import torch

    rng = np.random.default_rng(0)
    shortest = system.least_reference_samples
    for batch, length in ((1, shortest), (3, system.config.sample_rate_hz + shortest + 7)):
        signals = 0.1 * rng.standard_normal((batch, length), np.float32)
        embeddings = rng.standard_normal((batch, system.config.embedding), np.float32)
        for name, inputs in ((EMBED, [signals]), (EXTRACT, [signals, embeddings])):
            use = system.embed if name == EMBED else system.extract
            with torch.inference_mode():
                expected = use(*map(torch.from_numpy, inputs)).numpy()
            off = np.abs(runtime.run(name, *inputs) - expected).max() / np.abs(expected).max()
            if not off <= _TOLERANCE:
                raise EngineError(
                    f"{name}: differs from torch by {off:.1e}, which is too much. "
                    "Update torch, onnxscript and onnxruntime, or use --runtime torch."
                )
