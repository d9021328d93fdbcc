"""What the engine needs of whatever runs a network: arrays in, arrays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from mcspex_cli.audio import Samples
from mcspex_cli.errors import EngineError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

RUNTIMES = ("auto", "torch", "onnx", "openvino")


@dataclass(frozen=True)
class EngineSettings:
    """How to compute; none of it changes what is computed by more than rounding and seams."""

    device: str = "auto"
    """"auto" (CUDA if there, else CPU), "cpu", "cuda", "cuda:1", ..."""
    precision: str = "auto"
    """"auto" (bfloat16 where the device has it, else float32), or one of `PRECISIONS`."""
    window_s: float = 16.0
    context_s: float = 0.5
    fade_s: float = 0.25
    batch: int = 0
    """Signals (windows times channels) at once; 0 for one on a CPU, sixteen on a GPU."""
    threads: int = 0
    """CPU threads, for all of this process; 0 for as many as the runtime likes."""
    runtime: str = "auto"
    """What runs the network, one of `RUNTIMES`; "auto" is torch, see `opening.choose`."""

    def __post_init__(self) -> None:
        """Refuse what is not to be had anywhere.

        Raises:
            EngineError: a precision not in `PRECISIONS`, or a runtime not in `RUNTIMES`.
        """
        asked = (("precision", self.precision, PRECISIONS), ("runtime", self.runtime, RUNTIMES))
        for what, name, known in asked:
            if name not in known:
                choices = ", ".join(known)
                raise EngineError(f"{what} {name!r} is unknown. Use one of: {choices}.")


class OutOfMemoryError(Exception):
    """The device has too little memory for so many samples at once."""


class Runtime(ABC):
    """A network, ready to be run; signals are float32 at `sample_rate_hz`."""

    name: str
    """Of `RUNTIMES`."""
    sample_rate_hz: int
    true_level: bool
    """Whether an estimate's level is the target's own; if not, it is arbitrary."""
    device: str
    precision: str
    batch: int
    """How many signals at once pay here."""

    def has_finite_weights(self) -> bool:
        """Whether the model's weights are all finite, as far as this runtime can tell."""
        return True

    @abstractmethod
    def embed(self, reference: Samples) -> Samples:
        """Embed a reference [sample] as [embedding].

        Raises:
            OutOfMemoryError: it is too long for the device.
        """

    @abstractmethod
    def extract(self, mixtures: Samples, voices: Samples) -> Samples:
        """Extract from mixtures [signal, sample], each for its voice [signal, embedding].

        Returns:
            [signal, sample].

        Raises:
            OutOfMemoryError: they are too many, or too long, for the device.
        """
