"""What all runtimes that take ONNX graphs have in common."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.graphs import EMBED, EXTRACT, PACKAGES, Graphs, check_installed
from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.runtime import EngineSettings, OutOfMemoryError, Runtime


class GraphRuntime(Runtime):
    """A model's graphs, loaded on a device by another program than torch.

    Raises:
        EngineError: the program, device or precision is not to be had here, or it does not
            take these graphs.
    """

    def __init__(self, graphs: Graphs, settings: EngineSettings) -> None:
        package = PACKAGES[self.name]
        check_installed(self.name, package)
        self.sample_rate_hz, self.true_level = graphs.sample_rate_hz, graphs.true_level
        self._least = graphs.least_samples
        self.device, self.precision, self.batch = "cpu", "float32", 1
        self.choose(settings)
        try:
            self.load(graphs, settings)
        except EngineError:
            raise
        except Exception as error:  # such errors share no base class
            raise EngineError(
                f"{package} cannot load {graphs.folder} ({_last_line(error)}). "
                "Update it, or use --runtime torch."
            ) from error

    @abstractmethod
    def choose(self, settings: EngineSettings) -> None:
        """Set `device` and `precision`, and `batch` if it is not one.

        Raises:
            EngineError: what is asked for is not to be had here.
        """

    @abstractmethod
    def load(self, graphs: Graphs, settings: EngineSettings) -> None:
        """Make both graphs ready."""

    @abstractmethod
    def compute(self, graph: str, *inputs: Samples) -> Samples:
        """Run a graph, `EMBED` or `EXTRACT`, on its inputs."""

    def embed(self, reference: Samples) -> Samples:
        """As `Runtime.embed`."""
        embedding: Samples = self.run(EMBED, reference[None])[0]
        return embedding

    def extract(self, mixtures: Samples, voices: Samples) -> Samples:
        """As `Runtime.extract`."""
        length = mixtures.shape[1]
        missing = max(0, self._least - length)
        completed = np.pad(mixtures, ((0, 0), (0, missing))) if missing else mixtures
        return self.run(EXTRACT, completed, voices)[:, :length]

    def run(self, graph: str, *inputs: Samples) -> Samples:
        """As `compute`, with lack of memory told from other errors."""
        try:
            return self.compute(graph, *(np.ascontiguousarray(i, np.float32) for i in inputs))
        except Exception as error:  # as above
            if "alloc" in str(error):
                raise OutOfMemoryError from error
            raise

    def refuse(self, what: str, asked: str, *available: str) -> EngineError:
        """The error for a device or precision that is not to be had."""
        choices = ", ".join(available)
        return EngineError(
            f"{what} {asked!r} is not available to {self.name}. Use one of: {choices}; or "
            "--runtime torch."
        )


def _last_line(error: Exception) -> str:
    """What an error says, without where in whose code it does."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
