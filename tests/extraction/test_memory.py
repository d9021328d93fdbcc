"""Memory does not grow with a file's length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from mcspex_cli import audio
from tests.conftest import buzz

PROGRAM = """
import resource, sys
from mcspex_cli.__main__ import main
main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_long_file_needs_no_more_memory_than_a_short_one(scene: Path, tiny_folder: Path) -> None:
    """Ten minutes at 48 kHz, which are 110 MiB, and one."""
    ten_seconds = buzz(110, 60)  # at six times the rate
    peak_mib = {}
    for minutes in (1, 10):
        path = scene / f"{minutes}.wav"
        with audio.open_writer(path, 48_000, 1, "PCM_16") as writer:
            for _ in range(6 * minutes):
                writer.write(ten_seconds[None])
        words = ["extract", str(path), "--ref", str(scene / "reference.wav"), "-q"]
        words += ["--model", str(tiny_folder), "--device", "cpu", "--passes", "1"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
        )
        peak_mib[minutes] = float(done.stdout)
        written = soundfile.info(scene / f"{minutes}.target.wav")
        assert written.frames == soundfile.info(path).frames == minutes * 60 * 48_000
    assert peak_mib[10] < peak_mib[1] + 50
