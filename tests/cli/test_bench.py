"""`mcspex bench` as a user types it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.names import find_checkpoint
from mcspex_cli.errors import EngineError
from mcspex_cli.evaluation import speed
from mcspex_cli.extraction.benchmark import Case, Measurement, measure, random_checkpoint
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.model.systems import SIZES, SYSTEMS


def bench(folder: Path, *words: str) -> Result:
    """Runs the command with a model, the shortest way."""
    words = ("bench", "--model", str(folder), "--seconds", "1", "--repeat", "1", *words)
    return CliRunner().invoke(main, words)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Nothing is measured: what would have been; float16 fails, auto is bfloat16."""
    cases: list[Case] = []

    def pretend(case: Case) -> Measurement | None:
        cases.append(case)
        precision = {"auto": "bfloat16"}.get(case.settings.precision, case.settings.precision)
        if precision == "float16":
            raise EngineError("float16 overflowed on cpu. Use --precision float32.")
        if ("torch", precision) in case.known:
            return None
        sound = np.random.default_rng(0).standard_normal(100).astype(np.float32)
        sound[0] += precision == "bfloat16"
        return Measurement("torch", "cpu", precision, case.seconds, 1, 2, (3.0,), None, sound)

    monkeypatch.setattr(speed, "measure", pretend)
    return cases


def test_the_table_has_a_row_for_each_precision(tiny_folder: Path) -> None:
    done = bench(tiny_folder, "--device", "cpu", "--precision", "float32,bfloat16")
    assert done.exit_code == 0, done.output
    machine, model, headings, *rows = done.stdout.splitlines()
    assert " cores; torch " in machine
    assert model == "tiny"
    assert headings.split()[:6] == ["runtime", "precision", "device", "audio", "load", "first"]
    assert [row.split()[:5] for row in rows] == [
        ["torch", "float32", "cpu", "1", "s"],
        ["torch", "bfloat16", "cpu", "1", "s"],
    ]
    assert rows[0].split()[-1] == "-"
    assert float(rows[1].split()[-1]) > 20


def test_json_has_sane_numbers(tiny_folder: Path) -> None:
    done = bench(tiny_folder, "--device", "cpu", "--precision", "bfloat16", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["model_sha256"] == find_checkpoint(tiny_folder).sha256
    assert document["failures"] == []
    (row,) = document["measurements"]
    assert (row["runtime"], row["precision"], row["seconds"]) == ("torch", "bfloat16", 1)
    assert 0.1 < row["load_s"] < 60
    assert len(row["times_s"]) == 1
    assert row["real_time_factor"] == pytest.approx(row["times_s"][0], abs=1e-4)
    assert 50 < row["peak_memory_mib"] < 2000
    assert 20 < row["si_sdr_db"] < 100  # against what was measured for this alone


def test_a_device_that_is_not_there_is_one_line(tiny_folder: Path) -> None:
    done = bench(tiny_folder, "--device", "cuda:9", "--precision", "float32", "-q")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: device 'cuda:9' is not available.")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_what_fails_does_not_stop_the_others(tiny_folder: Path, pretended: list[Case]) -> None:
    done = bench(tiny_folder, "--precision", "float32,float16,bfloat16")
    assert done.exit_code == 3
    assert done.stderr == (
        "error: auto float16, 1 s: float16 overflowed on cpu. Use --precision float32.\n"
        "error: 1 of 3 measurements failed, see above.\n"
    )
    rows = [line.split() for line in done.stdout.splitlines()[3:]]
    assert [(row[1], row[-1]) for row in rows] == [("float32", "-"), ("bfloat16", rows[1][-1])]
    done = bench(tiny_folder, "--precision", "float16", "--seconds", "2", "--json")
    assert done.exit_code == 1
    assert [f["seconds"] for f in json.loads(done.stdout)["failures"]] == [1, 2]


def test_the_same_is_measured_once(tiny_folder: Path, pretended: list[Case]) -> None:
    done = bench(tiny_folder, "--precision", "bfloat16,auto,float32", "--seconds", "3,4", "--json")
    rows = json.loads(done.stdout)["measurements"]
    assert [(row["seconds"], row["precision"]) for row in rows] == [
        (length, precision) for length in (1, 3, 4) for precision in ("bfloat16", "float32")
    ]
    assert [row["si_sdr_db"] is None for row in rows] == [False, True] * 3
    assert {case.repeat for case in pretended} == {1}


def test_settings_reach_the_runtime(tiny_folder: Path, pretended: list[Case]) -> None:
    bench(tiny_folder, "--precision", "bfloat16", "--threads", "2", "--runtime", "auto,torch")
    asked, same, exact = (case.settings for case in pretended)
    assert asked == EngineSettings(precision="bfloat16", threads=2)
    assert same == EngineSettings(precision="bfloat16", threads=2, runtime="torch")
    assert exact == EngineSettings(precision="float32", threads=2, runtime="torch")
    assert [case.repeat for case in pretended] == [1, 1, 0]


@pytest.mark.parametrize(("system", "size"), [("mcspex", "small"), ("spexplus", "base")])
def test_random_weights_of_a_size(pretended: list[Case], system: str, size: str) -> None:
    words = ["bench", "--size", size, "--system", system, "--precision", "float32"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1] == f"{system}-{size}-random"
    assert not pretended[0].info.folder.exists()
    assert pretended[0].info.config["channels"] == SIZES[size].channels


def test_all_sizes_and_systems_are_of_the_model(tmp_path: Path) -> None:
    options = {option.name: option.type for option in main.commands["bench"].params}
    known: Any = options
    assert set(known["size"].choices) <= SIZES.keys()
    assert set(known["system"].choices) == SYSTEMS.keys()
    first, again = (random_checkpoint(tmp_path / n, "mcspex", "tiny") for n in "ab")
    assert first.sha256 == again.sha256


@pytest.mark.parametrize(
    "words",
    [
        ["--precision", "int8"],
        ["--precision", "float32,"],
        ["--runtime", "abacus"],
        ["--seconds", "long"],
        ["--seconds", "0.5"],
        ["--seconds", "nan"],
        ["--repeat", "0"],
        ["--threads", "0"],
        ["--size", "huge"],
        ["--size", "base"],
        ["--system", "spexplus"],
    ],
)
def test_wrong_usage_is_exit_2(tiny_folder: Path, words: list[str]) -> None:
    done = bench(tiny_folder, *words)
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_killed_process_costs_its_measurement(tiny_folder: Path) -> None:
    def kill() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.02)
        multiprocessing.active_children()[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(EngineError, match=r"its process was killed \(signal 9\)"):
        measure(Case(find_checkpoint(tiny_folder), EngineSettings(), 1, 1))
    thread.join()


def test_ctrl_c_ends_all_of_it() -> None:
    command = [sys.executable, "-m", "mcspex_cli", "bench", "--seconds", "3000"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert running.stdout
    assert "torch" in running.stdout.readline()
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said.startswith("error: interrupted.")
    assert said.count("\n") == 1
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # multiprocessing's own tracker ends a little later
        while time.monotonic() < deadline:
            os.killpg(running.pid, 0)
            time.sleep(0.02)
