"""A System run by torch: folded on a CPU, under autocast elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mcspex_cli.audio import Samples
from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.runtime import EngineSettings, OutOfMemoryError, Runtime
from mcspex_cli.model.folding import can_fold, fold
from mcspex_cli.model.systems import System


class TorchRuntime(Runtime):
    """A System on a device.

    Raises:
        EngineError: the device or precision is not to be had here.
    """

    name = "torch"

    def __init__(self, system: System, settings: EngineSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = choose_device(settings.device)
        self.device, self.precision = str(device), choose_precision(settings.precision, device)
        self.sample_rate_hz = system.config.sample_rate_hz
        self.true_level = system.config.true_level
        self.batch = 16 if device.type == "cuda" else 1
        dtype = getattr(torch, self.precision)
        self._folded = device.type == "cpu" and dtype != torch.float16 and can_fold(system)
        self.system = fold(system, dtype) if self._folded else system.to(device).eval()
        self._autocast = torch.autocast(
            device.type, dtype, enabled=not self._folded and dtype != torch.float32
        )
        self._device, self._dtype = device, dtype if self._folded else torch.float32

    def has_finite_weights(self) -> bool:
        """As `Runtime.has_finite_weights`."""
        return all(bool(tensor.isfinite().all()) for tensor in self.system.state_dict().values())

    def embed(self, reference: Samples) -> Samples:
        """As `Runtime.embed`."""
        with self._computing():
            made: Samples = self._array(self.system.embed(self._tensor(reference[None])))[0]
            return made

    def extract(self, mixtures: Samples, voices: Samples) -> Samples:
        """As `Runtime.extract`."""
        with self._computing():
            at_once = 1 if self._folded else len(mixtures)
            parts = [torch.split(self._tensor(v), at_once) for v in (mixtures, voices)]
            made = [
                self.system.extract(mixture, voice) for mixture, voice in zip(*parts, strict=True)
            ]
            return self._array(torch.cat(made))

    def _tensor(self, values: Samples) -> Tensor:
        """Values where the system is."""
        return torch.from_numpy(values).to(self._device, self._dtype)

    def _array(self, values: Tensor) -> Samples:
        """Values back here."""
        array: Samples = values.float().cpu().numpy()
        return array

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The precision, and lack of memory told from other errors."""
        try:
            with torch.inference_mode(), self._autocast:
                yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemoryError from error
            raise


def choose_device(name: str) -> torch.device:
    """The device that a name means here; "auto" is CUDA if there, else the CPU.

    Raises:
        EngineError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        has = "cuda, cpu" if torch.cuda.is_available() else "cpu"
        raise EngineError(f"device {name!r} is not available. Use one of: auto, {has}.") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """What a precision's name means on a device; "auto" is bfloat16 where it is quick."""
    if name != "auto":
        return name
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = device.type == "cpu" and has_quick_bfloat16()
    return "bfloat16" if quick else "float32"


def has_quick_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself, which torch asks it."""
    if hasattr(torch.cpu, "get_capabilities"):  # newer torch
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())
