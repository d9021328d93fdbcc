"""How quick a runtime is here, and how much memory it takes, each in a process of its own."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.names import CheckpointInfo, find_checkpoint
from mcspex_cli.errors import EngineError, McspexError
from mcspex_cli.extraction import processes
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.opening import open_engine
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.shares import cores
from mcspex_cli.extraction.synthesis import scene
from mcspex_cli.extraction.tuning import keep_memory

RATE_HZ = 8000
"""Of networks with random weights."""


@dataclass(frozen=True)
class Case:
    """What to measure."""

    info: CheckpointInfo
    settings: EngineSettings
    seconds: float
    """Of the mixture."""
    repeat: int
    known: frozenset[tuple[str, str]] = frozenset()
    """Runtimes and precisions that need no measuring: "auto" may turn out to be one."""


@dataclass(frozen=True)
class Measurement:
    """What was measured, and what was extracted meanwhile."""

    runtime: str
    device: str
    precision: str
    seconds: float
    load_s: float
    """From the process's start to a model that is ready: Python, libraries, weights."""
    first_s: float
    """The reference's embedding and the first extraction, after that."""
    times_s: tuple[float, ...]
    """Of the extractions that followed."""
    peak_mib: float | None
    """Of the process; on CUDA, what torch had of the device."""
    estimate: Samples

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for one of audio: the median, or without repeats the first's."""
        return median(self.times_s or (self.first_s,)) / self.seconds


def measure(case: Case) -> Measurement | None:
    """Measure in a new process; None if it comes to what is known.

    Raises:
        McspexError: it does not work here.
    """
    answers, speaker = processes.CONTEXT.Pipe(duplex=False)
    process = processes.CONTEXT.Process(
        target=_serve, args=(case, time.monotonic(), speaker), daemon=True
    )
    processes.start(process)
    speaker.close()  # so that the process has the only one, and its death is an end of file
    try:
        answer: Measurement | McspexError | None = answers.recv()
    except (EOFError, OSError):
        process.join()
        raise EngineError(f"its process {processes.ending(process)}, short of memory?") from None
    finally:
        processes.end(process)
    if isinstance(answer, McspexError):
        raise answer
    return answer


def _serve(case: Case, began: float, speaker: Connection) -> None:
    """Measure in this process, as the commands compute."""
    processes.end_with_parent()
    keep_memory()
    try:
        engine = open_engine(case.info, case.settings)
        speaker.send(_measured(engine, case, time.monotonic() - began))
    except McspexError as error:
        speaker.send(error)
    except Exception as error:  # whatever a runtime's library throws costs this case only
        speaker.send(EngineError(f"{type(error).__name__}: {error}"))


def _measured(engine: Engine, case: Case, load_s: float) -> Measurement | None:
    """Time an engine's work."""
    used = engine.runtime
    if (used.name, used.precision) in case.known:
        return None
    mixture, reference = scene(case.seconds, engine.sample_rate_hz)
    began = time.monotonic()
    voice = engine.embed([reference])
    estimate = engine.extract(mixture, voice)
    ends = [time.monotonic()]
    for _ in range(case.repeat):
        estimate = engine.extract(mixture, voice)
        ends.append(time.monotonic())
    times_s = tuple(end - start for start, end in pairwise(ends))
    return Measurement(
        runtime=used.name,
        device=used.device,
        precision=used.precision,
        seconds=case.seconds,
        load_s=load_s,
        first_s=ends[0] - began,
        times_s=times_s,
        peak_mib=_peak_mib(used.device),
        estimate=estimate,
    )


def _peak_mib(device: str) -> float | None:
    """The most memory that this process has had, if the system tells."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_reserved(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux begins with the parent's
        sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in sizes:
            return int(sizes["VmHWM"].split()[0]) / 2**10
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def random_checkpoint(folder: Path, system: str, size: str) -> CheckpointInfo:
    """Write a checkpoint of this size with random weights, always the same, into a folder."""
    import torch

    from mcspex_cli.checkpoint.weights import save_checkpoint
    from mcspex_cli.model.systems import build, sized

    torch.manual_seed(0)
    path = folder / f"{system}-{size}-random"
    save_checkpoint(path, build(sized(system, size, RATE_HZ, 1)), {"made by": "mcspex bench"})
    return find_checkpoint(path)


def describe_machine(threads: int) -> str:
    """This machine in words: CPU, cores used (0 for torch's choice), torch, and GPU."""
    import torch

    from mcspex_cli.extraction.torch_runtime import has_quick_bfloat16

    skills = torch.backends.cpu.get_cpu_capability() + ", bfloat16" * has_quick_bfloat16()
    used = f"{threads or torch.get_num_threads()} of {cores()} cores"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{_cpu()} ({skills}), {used}; torch {torch.__version__}; {gpu}"


def _cpu() -> str:
    """What the CPU calls itself, or its family where the system does not tell."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        named = re.search(r"^model name\s*: (.+)$", listed.read_text(), re.M)
    elif sys.platform == "darwin":
        command = ["sysctl", "machdep.cpu.brand_string"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        named = re.search(r": (.+)$", said, re.M)
    else:
        named = None
    return named[1] if named else platform.processor() or platform.machine()
