"""How fast a model is on this machine: real-time factor, start, memory, and SI-SDR to float32.

    python -m benchmarks.extraction
    python -m benchmarks.extraction --model mcspex-16k --seconds 5 60 --precision float32 auto

Every combination of length, passes, runtime and precision has a process of its own and extracts
from a mixture of examples/, repeated to that length. The columns:

load    from the start of the process to a model that is ready
first   to embed the reference and to extract for the first time
RTF     real-time factor, the median of --repeat further extractions
memory  the peak of the process
SI-SDR  of the estimate against the first row of that length and number of passes
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mcspex_cli import McspexError, read_audio, si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.extraction.engine import open_engine
from mcspex_cli.extraction.runtime import (
    PASSES,
    PRECISIONS,
    RUNTIMES,
    EngineSettings,
    has_quick_bfloat16,
    keep_memory,
    share_cores,
)

EXAMPLES = Path(__file__).parents[1] / "examples"


def describe_machine(threads: int) -> str:
    """This machine in words: CPU, threads (0 for torch's choice), torch, and GPU."""
    import torch

    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    skills = torch.backends.cpu.get_cpu_capability() + ", bfloat16" * has_quick_bfloat16()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = threads or torch.get_num_threads()
    return f"{cpu} ({skills}), {threads} threads; torch {torch.__version__}; {gpu}"


def peak_memory_mib() -> float:
    """The most memory that this process has had, as Linux tells it; elsewhere 0."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def measure(
    model: str | None, settings: EngineSettings, seconds: float, repeat: int
) -> tuple[dict[str, Any], Samples]:
    """Load, enroll and extract in this process; what was measured, and the estimate."""
    began = time.perf_counter()
    keep_memory()
    engine = open_engine(find_checkpoint(model), settings)
    times = [time.perf_counter() - began]
    mixture, reference = (
        read_audio(EXAMPLES / f"{name}.flac", engine.sample_rate_hz)
        for name in ("mixture", "reference")
    )
    mixture = np.resize(mixture, round(seconds * engine.sample_rate_hz))
    for _ in range(repeat + 1):
        began = time.perf_counter()
        estimate = engine.extract(mixture, engine.embed([reference]))
        times.append(time.perf_counter() - began)
    runtime = engine.runtime
    row = {
        "runtime": runtime.name,
        "precision": runtime.precision,
        "device": runtime.device,
        "passes": str(engine.passes),
        "audio": f"{seconds:g} s",
        "load": f"{times[0]:.2f} s",
        "first": f"{times[1]:.2f} s",
        "RTF": f"{median(times[2:]) / seconds:.4f}",
        "memory": f"{peak_memory_mib():.0f} MiB",
    }
    return row, estimate


def main() -> None:
    """Measure every combination that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0])
    parser.add_argument("--runtime", nargs="+", default=["torch"], choices=RUNTIMES)
    parser.add_argument("--precision", nargs="+", default=["float32", "auto"], choices=PRECISIONS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--passes", type=int, nargs="+", default=[PASSES])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    share_cores()
    print(describe_machine(options.threads))
    spawn, width = multiprocessing.get_context("spawn"), 11
    for seconds, passes in product(options.seconds, options.passes):
        first: Samples | None = None
        for runtime, precision in product(options.runtime, options.precision):
            settings = EngineSettings(
                options.device, precision, threads=options.threads, runtime=runtime, passes=passes
            )
            with ProcessPoolExecutor(1, spawn) as pool:
                work = pool.submit(measure, options.model, settings, seconds, options.repeat)
                try:
                    row, estimate = work.result()
                except McspexError as error:
                    print(f"{runtime} {precision}, {passes} passes: {error}")
                    continue
            if first is None:
                print("".join(name.rjust(width) for name in (*row, "SI-SDR")))
            near = "-" if first is None else f"{si_sdr(estimate, first):.1f} dB"
            first = estimate if first is None else first
            print("".join(str(value).rjust(width) for value in (*row.values(), near)))


if __name__ == "__main__":
    main()
