"""Several processes train as one."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import find_checkpoint, load_checkpoint
from mcspex_cli.errors import EngineError
from mcspex_cli.training.trainer import Team

TOML = """
[model]
size = "tiny"
[data]
train = ["speech"]
validation = "speech/recipe.csv"
[mixtures]
segment_s = 0.5
reference_s = [0.5, 0.8]
own_reference_lengths = true
noise = 0.5
[optimiser]
steps = 4
batch = {batch}
warmup_steps = 2
[run]
out = "{out}"
device = "cpu"
log_every_steps = 1
validate_every_steps = 4
"""

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def train(corpus: Path, out: str, batch: int, processes: int) -> list[dict[str, str]]:
    (corpus / "recipe.csv").write_text(
        "id,target,interferer,reference,snr_db\n"
        "one,ann/a.flac,bob/b.flac,ann/b.flac,0\ntwo,bob/a.flac,ann/c.flac,bob/b.flac,0\n"
        "three,cyn/e.flac,ann/c.flac,cyn/f.flac,0\n"
    )
    toml = corpus.parent / f"{out}.toml"
    toml.write_text(TOML.format(batch=batch, out=out))
    if processes == 1:
        stderr = CliRunner().invoke(main, ["train", str(toml)]).stderr
    else:
        words = [sys.executable, "-m", *TORCHRUN, "mcspex_cli", "train", str(toml)]
        stderr = subprocess.run(
            words, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        ).stderr
    assert stderr.count(": the trained model") == 1, stderr  # one process speaks
    with (corpus.parent / out / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_are_one_with_twice_the_batch(corpus: Path) -> None:
    one = train(corpus, "one", 4, 1)
    two = train(corpus, "two", 2, 2)
    assert [row["step"] for row in two] == ["1", "2", "3", "4"]
    for name in ("loss", "si_sdr_db", "si_sdr_i_db", "accuracy"):
        values = ([float(row[name]) for row in rows] for rows in (one, two))
        first, second = values
        np.testing.assert_allclose(first[0], second[0], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(first, second, rtol=1e-3, err_msg=name)
    assert float(one[-1]["validation_db"]) == pytest.approx(
        float(two[-1]["validation_db"]), abs=0.02
    )
    folders = (corpus.parent / out / "last" for out in ("one", "two"))
    a, b = (load_checkpoint(find_checkpoint(folder)).state_dict() for folder in folders)
    off = torch.cat([(a[key].float() - b[key].float()).abs().flatten() for key in a])
    # But for a few whose gradient is rounding error only, which AdamW makes into steps.
    assert (off > 1e-4).float().mean() < 0.005


def start(rank: int, port: int, toml: Path) -> subprocess.Popen[str]:
    """Start one of two processes as torchrun does, which would import torch once more."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {name: str(place) for name, place in places.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "a test"}
    words = [sys.executable, "-m", "mcspex_cli", "train", str(toml)]
    return subprocess.Popen(
        words, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )


def test_the_end_of_one_process_is_one_line_of_the_others(corpus: Path) -> None:
    toml = corpus.parent / "lost.toml"
    text = TOML.format(batch=2, out="lost").replace("steps = 4\nb", "steps = 100000\nb")
    toml.write_text(text.replace('validation = "speech/recipe.csv"\n', ""))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with start(0, port, toml) as first, start(1, port, toml) as second:
        assert first.stderr
        told = ""
        while "step 2 " not in told:
            told = first.stderr.readline()
            assert told
        second.kill()
        rest = first.stderr.read()
    assert first.returncode == 1
    message = (
        "error: another process of this run has ended, or cannot be reached. Find out why, then "
    )
    assert rest.count(f"{message}continue with --resume.\n") == 1
    assert "Traceback" not in rest


def test_one_gpu_is_not_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a test")
    with pytest.raises(EngineError, match=r"'cuda:0' is one GPU for all processes. Use \"cuda\""):
        Team.join("cuda:0")
