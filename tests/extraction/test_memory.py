"""Memory does not grow with a file's length, or what is too long for it is refused alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mcspex_cli import audio
from tests.conftest import buzz

PROGRAM = """
import json, resource, sys
from mcspex_cli.__main__ import main
if sys.argv[1] == "score":
    import fast_bss_eval, mcspex_cli.audio
    resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0])
        * resource.getpagesize() + 250 * 2**20, resource.RLIM_INFINITY))
for more in json.loads(sys.argv.pop()):
    main([*sys.argv[1:], *more], standalone_mode=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run(words: list[str], *more: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with each of `more` words in one process; it prints its peak [MiB] so far."""
    command = [sys.executable, "-c", PROGRAM, *words, json.dumps(more)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_long_file_needs_no_more_memory_than_a_short_one(scene: Path, tiny_folder: Path) -> None:
    """Ten minutes at 48 kHz, which are 110 MiB, and one."""
    ten_seconds = buzz(110, 60)  # at six times the rate
    for minutes in (1, 10):
        path = scene / f"{minutes}.wav"
        with audio.open_writer(path, 48_000, 1, "PCM_16") as writer:
            for _ in range(6 * minutes):
                writer.write(ten_seconds[None])
    words = ["extract", "--ref", str(scene / "reference.wav"), "-q"]
    words += ["--model", str(tiny_folder), "--device", "cpu", "--passes", "1"]
    done = run(words, [str(scene / "1.wav")], [str(scene / "10.wav")])
    assert done.returncode == 0, done.stderr
    for minutes in (1, 10):
        written = soundfile.info(scene / f"{minutes}.target.wav")
        assert written.frames == minutes * 60 * 48_000
    short_mib, long_mib = map(float, done.stdout.split())
    assert long_mib < short_mib + 50


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such limit elsewhere")
def test_si_sdr_takes_little_more_memory_than_the_sounds_and_where_it_is_short_the_others_go_on(
    tmp_path: Path,
) -> None:
    """Of 8 million samples, 31 MiB in each file; a few copies in float64 are over the limit."""
    for name, times in (("long", 500), ("short", 1)):
        for number, folder in enumerate(("estimate", "truth")):
            (tmp_path / folder).mkdir(exist_ok=True)
            sound = buzz(110, 2, 0) + 0.1 * (1 - number) * buzz(190, 2, 1)
            audio.write(tmp_path / folder / f"{name}.wav", np.tile(sound, times), 16_000)
    words = ["score", str(tmp_path / "estimate"), "--truth", str(tmp_path / "truth"), "--json"]
    done = run(words, ["--metrics", "si_sdr"], ["--metrics", "si_sdr,sdr"])
    read, text = json.JSONDecoder().raw_decode, done.stdout
    first, end = read(text)
    second, _ = read(text, text.index("{", end))
    for result, statuses in ((first, ["ok", "ok"]), (second, ["unreadable", "ok"])):
        assert [row["status"] for row in result["scores"]] == statuses, done.stderr
    assert f"error: {tmp_path}/estimate/long.wav: there is too little memory" in done.stderr
    assert "Traceback" not in done.stderr
