"""Whether memory and speed stay the same however long a file is: 1 min, 10 min and hours.

    python -m benchmarks.long_files
    python -m benchmarks.long_files --minutes 1 180 --model mcspex-16k

Each file is extracted from by `mcspex extract` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.voices import talk
from mcspex_cli import audio
from mcspex_cli.audio import Samples

RATE_HZ = 16000


@lru_cache
def minute(take: int) -> Samples:
    """A minute [sample] of two synthetic voices."""
    return talk(0, take, 60, RATE_HZ) + talk(1, take, 60, RATE_HZ)


def write(path: Path, seconds: float) -> None:
    """Write a mixture a minute at a time; what is said comes again after ten."""
    with audio.open_writer(path, RATE_HZ, 1, "PCM_16") as writer:
        for number in range(math.ceil(seconds / 60)):
            left = round((seconds - 60 * number) * RATE_HZ)
            writer.write(minute(1 + number % 10)[None, :left])


def measure(folder: Path, minutes: float, options: list[str]) -> dict[str, Any]:
    """Extract from a file of that length: seconds for one of audio, and peak memory in MiB."""
    mixture, seconds = folder / "mixture.wav", 60 * minutes
    write(mixture, seconds)
    command = [sys.executable, "-m", "mcspex_cli", "extract", str(mixture), "--overwrite", "-q"]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--ref", str(folder / "reference.wav"), *options])
    _, status, usage = os.wait4(process.pid, 0)  # what this child used, not all children
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"mcspex extract failed at {minutes:g} min")
    elapsed_s = time.monotonic() - began
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "minutes": minutes,
        "real_time_factor": elapsed_s / seconds,
        "peak_memory_mib": usage.ru_maxrss / unit,
    }


def main() -> None:
    """Measure every length, and print it beside the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60])
    parser.add_argument("--json", action="store_true")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        audio.write(Path(folder) / "reference.wav", talk(0, 0, 5, RATE_HZ), RATE_HZ)
        rows = [measure(Path(folder), minutes, options) for minutes in arguments.minutes]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'audio':>9}{'RTF':>10}{'of first':>10}{'memory':>11}{'of first':>10}")
    first = rows[0]
    for row in rows:
        speed, memory = row["real_time_factor"], row["peak_memory_mib"]
        speeds = f"{speed:10.4f}{speed / first['real_time_factor']:10.2f}"
        sizes = f"{memory:7.0f} MiB{memory / first['peak_memory_mib']:10.2f}"
        print(f"{row['minutes']:5g} min{speeds}{sizes}")


if __name__ == "__main__":
    main()
