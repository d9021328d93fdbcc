"""A model's graphs run by ONNX Runtime: the quickest to begin."""

from __future__ import annotations

import os
from typing import Any

from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.graphs import EMBED, EXTRACT, Graphs
from mcspex_cli.extraction.graph_runtime import GraphRuntime
from mcspex_cli.extraction.runtime import EngineSettings

_CUDA = "CUDAExecutionProvider"

_FATAL = 4
"""The level below which ONNX Runtime is silent: its errors are raised, and ours to tell."""


class OnnxRuntime(GraphRuntime):
    """Graphs in float32, on a CPU, or on a GPU where ONNX Runtime can use it."""

    name = "onnx"

    def choose(self, settings: EngineSettings) -> None:
        """As `GraphRuntime.choose`."""
        # From 1.29 on it would tell its makers of every model that it runs.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        on_gpu = _CUDA in onnxruntime.get_available_providers()
        known = ("auto", "cpu", "cuda") if on_gpu else ("auto", "cpu")
        kind, _, self._number = settings.device.partition(":")
        if kind not in known or not (self._number or "0").isdecimal():
            raise self.refuse("device", settings.device, *known)
        if settings.precision not in ("auto", "float32"):
            raise self.refuse("precision", settings.precision, "auto", "float32")
        if on_gpu and kind != "cpu":
            self.device, self.batch = f"cuda:{self._number or 0}", 16

    def load(self, graphs: Graphs, settings: EngineSettings) -> None:
        """As `GraphRuntime.load`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.log_severity_level = _FATAL
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device != "cpu":
            providers.insert(0, (_CUDA, {"device_id": self._number or "0"}))
        self._sessions = {
            name: onnxruntime.InferenceSession(graphs.folder / name, options, providers)
            for name in (EMBED, EXTRACT)
        }
        if self.device != "cpu" and _CUDA not in self._sessions[EXTRACT].get_providers():
            if settings.device != "auto":  # it takes the CPU without a word
                raise self.refuse("device", settings.device, "auto", "cpu")
            self.device, self.batch = "cpu", 1

    def compute(self, graph: str, *inputs: Samples) -> Samples:
        """As `GraphRuntime.compute`."""
        import onnxruntime

        session = self._sessions[graph]
        names = (wanted.name for wanted in session.get_inputs())
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = _FATAL
        made: Samples = session.run(None, dict(zip(names, inputs, strict=True)), quiet)[0]
        return made
