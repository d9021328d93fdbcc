"""How fast a batch's driver is: many files of a second, and a network so small that it is free.

    python -m benchmarks.batch files 10000                  # this machine, one process
    python -m benchmarks.batch files 2000 --engine ray      # any further options of `mcspex batch`
    python -m benchmarks.batch plan 100000                  # only planned

A line of JSON says how long it took, how much memory the driver needed, and how large the journal
is. Files are links to a few hundred, so that making them takes no time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mcspex_cli import audio
from mcspex_cli.checkpoint.checkpoint import save_checkpoint
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build

RATE_HZ = 8000
DIFFERENT = 250

PLANNING = """
import re
from pathlib import Path
from mcspex_cli.batch.journal import Journal
from mcspex_cli.batch.worklist import measure
from mcspex_cli.batch.plan import BatchRequest, plan_batch
request = {"reference_folder": Path("refs"), "pattern": "{speaker}_{n}"}
plan = plan_batch(BatchRequest(Path("out"), [Path("mix")], **request))
measure(plan, Journal(Path("out")))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
"""What it prints is the memory that it needed, in kB; `getrusage` has that of its parent, too."""


def make_set(folder: Path, count: int, seconds: float) -> None:
    """Write `count` mixtures of about `seconds` to mix/, fifty references, and a tiny model."""
    rng = np.random.default_rng(0)

    def write(path: Path, length_s: float) -> None:
        t = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
        tone = np.sin(2 * np.pi * rng.uniform(90, 250) * t) * (1 + np.sin(6 * np.pi * t))
        audio.write(path, (0.1 * tone + 0.001 * rng.standard_normal(len(t))).astype("f4"), RATE_HZ)

    for name in ("mix", "refs", "sounds"):
        (folder / name).mkdir()
    for number in range(DIFFERENT):
        write(folder / f"sounds/{number}.wav", seconds + number / RATE_HZ)
    for number in range(50):
        write(folder / f"refs/{number}.wav", 3)
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"mix/{number // 1000}").mkdir()
        link = folder / f"mix/{number // 1000}/{number % 50}_{number}.wav"
        os.link(folder / f"sounds/{number % DIFFERENT}.wav", link)
    torch.manual_seed(1)
    save_checkpoint(folder / "model", build(sized("mcspex", "tiny", RATE_HZ, 4)), {"made by": "us"})


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["files", "plan"])
    parser.add_argument("count", type=int)
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        make_set(folder, arguments.count, 1.0)
        command = [sys.executable, "-c", PLANNING]
        if arguments.what == "files":
            command = [sys.executable, "-m", "mcspex_cli", "batch", "mix", "--refs", "refs"]
            command += ["--pattern", "{speaker}_{n}", "-o", "out", "--model", "model", "-q"]
            options += [] if "--engine" in options else ["--devices", "cpu"]
        began = time.perf_counter()
        driver = subprocess.Popen([*command, *options], cwd=folder, stdout=subprocess.PIPE)
        driver_cpu_s = 0.0
        while driver.poll() is None:
            fields = Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()
            driver_cpu_s = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") or driver_cpu_s
            time.sleep(0.2)
        printed = driver.communicate()[0]
        took_s = time.perf_counter() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        journal = sum(path.stat().st_size for path in folder.glob("out/journal/*"))
        values = {
            "files": arguments.count,
            "options": options,
            "wall_s": round(took_s, 1),
            "exit_code": driver.returncode,
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
            "driver_cpu_s": round(driver_cpu_s, 1),
            "files_per_s": round(arguments.count / took_s, 1),
            "largest_process_mb": round(int(printed or usage.ru_maxrss) / 1024),
            "journal_mb": round(journal / 1e6, 1),
        }
    print(json.dumps(values))


if __name__ == "__main__":
    main()
