"""How a network is run: settings, runtimes, devices, precisions, and this process's own setup.

A `Runtime` is a network that is ready to run: torch's is in `engine`, ONNX Runtime's in `onnx`.
Nothing here needs torch or NumPy to be imported: the command line takes its choices from here.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from numbers import Real
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from mcspex_cli.errors import EngineError

if TYPE_CHECKING:
    import torch

    from mcspex_cli.audio import Samples

RUNTIMES = ("auto", "torch", "onnx")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

_MIN_WINDOW_S = 0.3

PASSES, MOST_PASSES = 3, 16
"""How many passes `EngineSettings` has by itself, and at most."""

MOST_AT_ONCE = 4096
"""The most that `EngineSettings` has of `batch`, since so many windows are read ahead, and of
`threads`, since many more would end the process."""

GPU_BATCH = 16
"""Signals that a GPU computes at once, unless `EngineSettings.batch` says otherwise."""

LENGTH_SPREAD = 0.1
"""How much shorter than the longest of its batch a signal may be, as a part of that length."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, by <malloc.h>
_KEPT_BYTES = 2**30  # freed memory up to which glibc keeps it
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_SPIN_COUNT = "2000"
"""How often a thread looks for work before it sleeps; GCC's OpenMP would look 300,000 times."""


@dataclass(frozen=True)
class EngineSettings:
    """How a network is run.

    `passes` changes the result, and so do windows of other lengths a little, since a network's
    norms see a whole window. The rest changes it by rounding only.

    Raises:
        EngineError: a precision or a runtime is unknown.
        TypeError, ValueError: a value has the wrong type, or is out of range.
    """

    device: str = "auto"
    """"auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", ..."""
    precision: str = "auto"
    """One of `PRECISIONS`; "auto" is bfloat16 where the device computes in it, else float32."""
    window_s: float = 16.0
    context_s: float = 0.5
    fade_s: float = 0.25
    batch: int = 0
    """Signals (windows times channels) at once; 0 for one on a CPU, sixteen on a GPU."""
    threads: int = 0
    """CPU threads of the whole process; 0 for as many as the runtime chooses."""
    runtime: str = "auto"
    """What runs the network, one of `RUNTIMES`. "auto" is what `onnx.choose_runtime` decides."""
    passes: int = PASSES
    """How often the network computes each window, each time shifted by another part of a hop. Half
    of the passes, rounded up, are for the target. The others are for the other voices, and the
    target gets a part of what all estimates leave of the mixture. With 1, the result is the
    network's own estimate."""

    def __post_init__(self) -> None:
        for what, names in (("device", ()), ("precision", PRECISIONS), ("runtime", RUNTIMES)):
            name = getattr(self, what)
            if not isinstance(name, str):
                raise TypeError(f'{what} is text, such as "auto", not {name!r:.80}')
            if names and name not in names:
                choices = ", ".join(names)
                raise EngineError(f"{what} {name!r} is unknown. Use one of: {choices}.")
        for length_s in (self.window_s, self.context_s, self.fade_s):
            if not isinstance(length_s, Real):
                raise TypeError(
                    f"window_s, context_s and fade_s are numbers of seconds, not {length_s!r:.80}"
                )
        kept_s = self.window_s - 2 * self.context_s - self.fade_s
        is_long_enough = _MIN_WINDOW_S <= self.window_s < math.inf and kept_s > 0
        if not is_long_enough or self.context_s < 0 or self.fade_s < 0:
            raise ValueError(
                f"window_s must be {_MIN_WINDOW_S} s or more and longer than twice context_s plus "
                "fade_s, all from 0"
            )
        for what, least, most in (
            ("batch", 0, MOST_AT_ONCE),
            ("threads", 0, MOST_AT_ONCE),
            ("passes", 1, MOST_PASSES),
        ):
            count = getattr(self, what)
            if not isinstance(count, int):  # NumPy's numbers could not be written as JSON
                raise TypeError(f"{what} is an int, not {count!r:.80}")
            if not least <= count <= most:
                raise ValueError(f"{what} must be from {least} to {most}, not {count}")


class OutOfMemoryError(Exception):
    """The device has too little memory for so many samples at once."""


class Runtime(ABC):
    """A network that is ready to run; signals are float32 at `sample_rate_hz`."""

    name: str
    """Of `RUNTIMES`, but not "auto"."""
    sample_rate_hz: int
    hop: int
    """Samples from one of the network's frames to the next."""
    true_level: bool
    """Whether an estimate has the target's own level; else its level is arbitrary."""
    device: str
    precision: str
    batch: int
    """How many signals are computed at once, unless the settings say otherwise."""
    spread: float = 0.0
    """As `LENGTH_SPREAD`; 0 if the signals of a batch must be equally long."""
    embedding: int = 0
    """The length of an embedding; 0 if it is not known."""

    @abstractmethod
    def embed(self, references: Samples) -> Samples:
        """Embed references [signal, sample] as [signal, embedding].

        It raises an OutOfMemoryError if they are too many, or too long, for the device.
        """

    @abstractmethod
    def extract(self, mixtures: Sequence[Samples], embeddings: Samples) -> list[Samples]:
        """Extract from mixtures [sample] with embeddings [signal, embedding]; fails as `embed`.

        Every estimate is as long as its mixture, and the same as if it were computed alone.
        """


def choose_device(name: str) -> torch.device:
    """The device that a name means here; "auto" is CUDA if there is a GPU, else the CPU.

    Raises:
        EngineError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        has = "cuda, cpu" if torch.cuda.is_available() else "cpu"
        raise EngineError(f"device {name!r} is not available. Use one of: auto, {has}.") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """What the name of a precision means on a device; "auto" is bfloat16 where that is quick."""
    import torch

    if name != "auto":
        return name
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = device.type == "cpu" and has_quick_bfloat16()
    return "bfloat16" if quick else "float32"


def has_quick_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):  # newer torch
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def share_cores() -> None:
    """Let threads that wait for each other sleep soon; call this before torch is imported.

    A thread that does not sleep takes the core from the one that it waits for, as soon as another
    program wants a core too: two such programs at once were eighty times as slow. Only for
    programs of our own: a library leaves the settings of its host alone.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor of that size; elsewhere do nothing.

    To give megabytes back to the system, and ask for them again at every layer, made networks on
    a CPU two to three times as slow. Only for programs of our own, like `share_cores`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)


@contextmanager
def leave_signals(*names: str) -> Iterator[None]:
    """Have processes that start in this block leave signals, such as Ctrl-C, to this one."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Have this process end as soon as the one that has started it does, however that ends."""

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def cores() -> int:
    """Count the cores that this process may use, or for which a container gives it time."""
    has_affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    for text in _limits("cpu.max"):  # only version 2 has it
        with suppress(ValueError):  # "max 100000"
            quota, period = map(int, text.split())
            count = min(count, max(1, round(quota / period)))
    return count


def memory() -> float:
    """The bytes of memory of this machine or container; infinite where the system does not say."""
    least = math.inf
    with suppress(AttributeError, ValueError, OSError):
        least = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for text in (*_limits("memory.max"), *_limits("memory.limit_in_bytes")):
        with suppress(ValueError):  # "max"
            least = min(least, int(text))
    return least


def _limits(name: str) -> Iterator[str]:
    """What the files of this name say in the control groups of this process, and in those above.

    Linux limits containers by them. There are two versions, with files of other names.
    """
    with suppress(OSError):
        for group in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = group.split(":", 2)
            folder = _CONTROL_GROUPS / kinds / place.lstrip("/")
            for each in (folder, *folder.parents):
                with suppress(OSError):
                    yield (each / name).read_text()
