"""A model's graphs run by OpenVINO: nearly as quick to begin, and quicker at work on CPUs."""

from __future__ import annotations

from mcspex_cli import files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.graphs import EMBED, EXTRACT, Graphs, cache
from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.graph_runtime import GraphRuntime
from mcspex_cli.extraction.runtime import EngineSettings

_TYPES = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names for our precisions."""


class OpenvinoRuntime(GraphRuntime):
    """Graphs on a CPU, in bfloat16 where it has that, else in float32."""

    name = "openvino"

    def choose(self, settings: EngineSettings) -> None:
        """As `GraphRuntime.choose`."""
        import openvino

        self._core = openvino.Core()
        if settings.device not in ("auto", "cpu"):
            raise self.refuse("device", settings.device, "auto", "cpu")
        can = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        known = ("bfloat16", "float32") if "BF16" in can else ("float32",)
        if settings.precision not in ("auto", *known):
            raise self.refuse("precision", settings.precision, "auto", *known)
        self.precision = known[0] if settings.precision == "auto" else settings.precision

    def load(self, graphs: Graphs, settings: EngineSettings) -> None:
        """As `GraphRuntime.load`; what was compiled once is kept in the cache."""
        options: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _TYPES[self.precision],
            **_cache(),
        }
        if settings.threads:
            options["INFERENCE_NUM_THREADS"] = settings.threads
        self._graphs = {
            name: self._core.compile_model(graphs.folder / name, "CPU", options)
            for name in (EMBED, EXTRACT)
        }

    def compute(self, graph: str, *inputs: Samples) -> Samples:
        """As `GraphRuntime.compute`."""
        made: Samples = self._graphs[graph](inputs)[0].copy()
        return made


def _cache() -> dict[str, object]:
    """Where to keep what is compiled; nowhere, if no folder can be made."""
    folder = cache() / "openvino"
    try:
        files.make_folders(folder)
    except OutputError:
        return {}
    return {"CACHE_DIR": str(folder)}
