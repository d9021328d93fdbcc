"""Reports, kept."""

from __future__ import annotations

import csv
import resource
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mcspex_cli.errors import ConfigError, OutputError
from mcspex_cli.training.trainer import Progress, ProgressLog

REPORT = Progress(10, 0.25, 1.5, 2.0, 2.5, 0.5, 1e-3, 30.0, 60.0)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_reports_are_rows(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path, 0, tensorboard=False)
    log.add(REPORT)
    log.add(replace(REPORT, step=20, validation_db=4.5))
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20"]
    assert [row["validation_db"] for row in rows(tmp_path)] == ["", "4.5"]
    assert rows(tmp_path)[0]["si_sdr_i_db"] == "2.5"


def test_a_resumed_run_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path, 0, tensorboard=False)
    for step in (10, 20, 30):
        log.add(replace(REPORT, step=step))
    ProgressLog(tmp_path, 20, tensorboard=False).add(replace(REPORT, step=30, loss=9.0))
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20", "30"]
    assert rows(tmp_path)[2]["loss"] == "9.0"
    ProgressLog(tmp_path, 0, tensorboard=False)
    assert rows(tmp_path) == []


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = ProgressLog(tmp_path, 0, tensorboard=True)
    log.add(replace(REPORT, validation_db=4.5))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "si_sdr_i_db", "validation_db", "audio_s_per_s"} <= set(
        events.Tags()["scalars"]
    )
    assert events.Scalars("loss")[0].value == pytest.approx(1.5)
    _, highest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, highest))  # as a disk that is full then
    try:
        with pytest.raises(OutputError, match=f"{tmp_path}: cannot be written: it is larger than"):
            for _ in range(3):
                log.add(REPORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (highest, highest))


def test_tensorboard_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install '.\[tensorboard\]'"):
        ProgressLog(tmp_path, 0, tensorboard=True)


@pytest.mark.parametrize("rest", [b"15,0.3", b"\0" * 99, b"\xff\n", b"1,2,3,4,5,6,7,8,9,10,11\n"])
def test_a_row_spoilt_by_a_crash_is_dropped(tmp_path: Path, rest: bytes) -> None:
    ProgressLog(tmp_path, 0, tensorboard=False).add(REPORT)
    with (tmp_path / "progress.csv").open("ab") as file:
        file.write(rest)
    ProgressLog(tmp_path, 20, tensorboard=False)
    assert [row["step"] for row in rows(tmp_path)] == ["10"]


def test_a_log_of_other_columns_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("step,loss\n10,2.0\n")
    ProgressLog(tmp_path, 20, tensorboard=False)
    assert rows(tmp_path) == []


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path, 0, tensorboard=False)
    log.path = tmp_path / "gone" / "progress.csv"
    with pytest.raises(OutputError, match=r"progress.csv: cannot be written: its folder does not"):
        log.add(REPORT)
