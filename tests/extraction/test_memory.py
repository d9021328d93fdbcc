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
def test_half_an_hour_needs_no_more_memory_than_a_minute(scene: Path, tiny_folder: Path) -> None:
    minute = buzz(110, 60)
    peak_mib = {}
    for minutes in (1, 30):
        path = scene / f"{minutes}.wav"
        with audio.open_writer(path, 16000, 1, "PCM_16") as writer:
            for _ in range(2 * minutes):  # half the rate, twice the time
                writer.write(minute[None])
        words = ["extract", str(path), "--ref", str(scene / "reference.wav"), "-q"]
        words += ["--model", str(tiny_folder), "--device", "cpu", "--passes", "1"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
        )
        peak_mib[minutes] = float(done.stdout)
        written = soundfile.info(scene / f"{minutes}.target.wav")
        assert written.frames == soundfile.info(path).frames == minutes * 60 * 16000
    assert peak_mib[30] < peak_mib[1] + 50
