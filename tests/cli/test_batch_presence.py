"""Whose voice is absent in a batch: in its journal and reports, said, silenced, or failed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.evaluation.report import absences_text
from tests.cli.test_recordings import SET, calibrated
from tests.conftest import RATE_HZ, buzz

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two short mixtures and a reference; the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mix").mkdir()
    for number in range(2):
        sound = buzz(110, 0.6, number) + buzz(150, 0.6, 9)
        audio.write(tmp_path / "mix" / f"{number}.wav", sound, RATE_HZ)
    audio.write(tmp_path / "ref.wav", buzz(110, 1, 7), RATE_HZ)
    return tmp_path


@pytest.fixture
def absent(tiny_folder: Path, folder: Path) -> str:
    """A model for which no voice is there."""
    return str(calibrated(tiny_folder, folder / "model", threshold=1.0))


def batch(*words: str, model: str = "") -> Result:
    named = ["--model", model] if model else []
    return CliRunner().invoke(main, ["batch", *words, *named, "--devices", "cpu"])


ASKED = ("mix", "--ref", "ref.wav", "-o", "out")


def rows(folder: str = "out") -> dict[str, dict[str, Any]]:
    """The report's rows by name."""
    document = json.loads(Path(folder, "report.json").read_text())
    return {row["name"]: row for row in document["scores"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A batch by the bundled model: two voices that are there, two that are not."""
    root = tmp_path_factory.mktemp("whole")
    lines = ["mixture,reference,id"]
    for mixture, voice in (("rms_1", "rms"), ("slt_1", "awb"), ("slt_2", "rms"), ("slt_2", "slt")):
        paths = f"{SET}/mixtures/{mixture}.flac,{SET}/references/{voice}.flac"
        lines.append(f"{paths},{mixture}-{voice}")
    (root / "plan.csv").write_text("\n".join(lines) + "\n")
    return root, batch("--manifest", f"{root}/plan.csv", "-o", f"{root}/out", "--passes", "1")


ABSENT = "2 of 4 voices are probably absent: slt_1-awb, slt_2-rms (--absent mute silences them)"


def test_absent_voices_are_listed_after_the_summary(whole: tuple[Path, Result]) -> None:
    root, done = whole
    assert done.exit_code == 0, done.output
    said = done.stderr.splitlines()
    assert said[-2].startswith(f"{root}/out: 4 of 4 files done")
    assert said[-1] == f"warning: {ABSENT}"


def test_presence_is_in_the_reports(whole: tuple[Path, Result]) -> None:
    root, _ = whole
    with (root / "out" / "report.csv").open(newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    for name, row in rows(f"{root}/out").items():
        there = name in ("rms_1-rms", "slt_2-slt")
        assert row["present"] is there
        assert (row["presence"] > 0.5) is there
        assert isinstance(row["wrong_speaker"], bool)
        for key in ("presence", "present", "wrong_speaker"):
            assert json.loads(table[name][key]) == row[key]
        assert row["segments"][0].keys() == {"start_s", "end_s", "presence", "present"}
        assert "segments" not in table[name]


def test_presence_is_also_scored_beside_a_truth(whole: tuple[Path, Result]) -> None:
    root, _ = whole
    truth = Path(f"{SET}/truth/rms_1.flac").absolute()
    estimate = next((root / "out" / "audio").glob("rms_1-rms.*"))
    words = ("score", str(estimate), "--truth", str(truth), "--metrics", "si_sdr,presence")
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["scores"]
    assert row["presence"] == rows(f"{root}/out")["rms_1-rms"]["presence"]


def test_absent_voices_are_silenced_if_asked_for(absent: str) -> None:
    done = batch(*ASKED, "--absent", "mute", model=absent)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1] == (
        "warning: 2 of 2 voices are probably absent: 0, 1 (silenced)"
    )
    for name in "01":
        assert not soundfile.read(f"out/audio/{name}.wav")[0].any()
        assert rows()[name]["silent"] is True
    record = json.loads(Path("out/run.json").read_text())
    assert (record["absent"], record["wet_db"], record["dry_db"]) == ("mute", 0.0, None)
    done = batch(*ASKED, model=absent)
    assert done.exit_code == 1
    assert "was made with another model or other settings" in done.stderr


def about_voices(done: Result) -> list[str]:
    """The lines for people, but for what is wrong with the short reference."""
    return [line for line in done.stderr.splitlines() if not line.startswith("warning: ref.wav")]


def test_an_absent_voice_is_a_row_that_failed_if_asked_for(absent: str) -> None:
    done = batch(*ASKED, "--absent", "fail", model=absent)
    assert done.exit_code == 3
    said = about_voices(done)
    assert said[0].startswith("error: mix/0.wav: the voice is not in it (presence 0.")
    assert said[-1] == "error: 2 files failed, see above and out/failed.jsonl."
    assert "absent:" not in done.stderr
    failed = [json.loads(line) for line in Path("out/failed.jsonl").read_text().splitlines()]
    assert [row["id"] for row in failed] == ["0", "1"]
    assert "Check the reference, or use --absent keep." in failed[0]["reason"]
    assert {row["status"] for row in rows().values()} == {"failed"}
    assert list(Path("out/audio").iterdir()) == []


def test_one_absent_voice_is_told_as_one(absent: str) -> None:
    done = batch("mix/0.wav", *ASKED[1:], "--json", model=absent)
    assert json.loads(done.stdout)["done"] == 1
    line = "1 of 1 voices is probably absent: 0 (--absent mute silences them)"
    assert about_voices(done) == [f"warning: {line}"]


def test_a_model_that_cannot_tell_says_nothing(folder: Path, tiny_folder: Path) -> None:
    done = batch(
        *ASKED, "--level", "lufs=-30", "--dry", "-20", "--wet", "-3", model=str(tiny_folder)
    )
    assert done.exit_code == 0, done.output
    assert "absent" not in done.stderr
    for row in rows().values():
        assert (row["presence"], row["present"], row["wrong_speaker"]) == (None, None, None)
    record = json.loads(Path("out/run.json").read_text())
    assert (record["level"], record["wet_db"], record["dry_db"]) == ("lufs=-30", -3.0, -20.0)
    done = batch(*ASKED[:-1], "new", "--absent", "fail", model=str(tiny_folder))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "cannot tell whether a voice is there" in done.stderr
    assert not Path("new").exists()


def test_mix_back_is_that_of_extract(absent: str) -> None:
    how = ("--level", "lufs=-30", "--dry", "-20", "--wet", "-3", "--absent", "mute")
    assert batch(*ASKED, *how, model=absent).exit_code == 0
    words = ["extract", "mix/0.wav", "--ref", "ref.wav", "-o", "one.wav", "--model", absent]
    assert CliRunner().invoke(main, [*words, *how, "--device", "cpu"]).exit_code == 0
    assert Path("one.wav").read_bytes() == Path("out/audio/0.wav").read_bytes()


def test_of_many_absent_voices_ten_are_named() -> None:
    rows = [{"name": f"n{k}", "present": k % 2 == 0} for k in range(24)]
    rows += [{"name": "failed"}, {"name": "unknown", "present": None}]
    said = absences_text(rows)
    assert said.startswith("12 of 24 voices are probably absent: n1, n3, ")
    assert said.endswith(", n19 and 2 more")
    assert absences_text(rows[::2]) == ""
