"""`mcspex batch` as a user types it, interrupts it, kills it and goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result

import mcspex_cli
from mcspex_cli import audio, files
from mcspex_cli.__main__ import main
from mcspex_cli.batch import results
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from tests.conftest import RATE_HZ, ROOT, auto_precision, buzz
from tests.media import SoundTrack, make

Run = Callable[..., Result]

LONG = 20
"""Mixtures in the batches that are interrupted."""

REPORTS = {"report.csv", "report.json", "run.json"}

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
unless_nohup = pytest.mark.skipif(
    signal.getsignal(getattr(signal, "SIGHUP", signal.SIGINT)) is signal.SIG_IGN,
    reason="under nohup, programs ignore it when their terminal closes",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six mixtures mix/SPEAKER/N.wav with references and truth; the working folder."""
    monkeypatch.chdir(tmp_path)
    for speaker, pitch_hz in (("ann", 190.0), ("bob", 110.0)):
        write(f"refs/{speaker}.wav", buzz(pitch_hz, 1, 7))
        for number in range(3):
            truth = buzz(pitch_hz, 0.6 + 0.1 * number, number)
            write(f"truth/{speaker}/{number}.wav", truth)
            write(f"mix/{speaker}/{number}.wav", truth + buzz(150, len(truth) / RATE_HZ, 9))
    return tmp_path


def write(name: str, sound: audio.Samples) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    audio.write(name, sound, RATE_HZ)


@pytest.fixture
def batch(folder: Path, tiny_folder: Path) -> Run:
    """Runs `mcspex batch` there with the tiny model."""

    def run(*arguments: str, model: str = str(tiny_folder)) -> Result:
        words = ["batch", *arguments, "--model", model, "--devices", "cpu"]
        return CliRunner().invoke(main, words)

    return run


ASKED = ("mix", "--refs", "refs", "-o", "out")


def listing(folder: str | Path) -> set[str]:
    """The files of a folder, but for those of the journal, whose names are its writers'."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(p.relative_to(folder)) for p in files if p.parent.name != "journal"}


def said(done: Result) -> list[str]:
    """The lines for people, but for what is wrong with these short references."""
    lines = done.stderr.splitlines()
    return [line for line in lines if not re.match(r"warning: (refs/|ref\.wav)", line)]


def sounds(folder: str | Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in Path(folder, "audio").rglob("*")
        if p.is_file()
    }


def times(folder: str | Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in Path(folder, "audio").rglob("*.wav")}


def rows(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The report's rows by name."""
    document = json.loads(Path(folder, "report.json").read_text())
    return {row["name"]: row for row in document["scores"]}


def journal(folder: str | Path, kind: str = "done") -> list[str]:
    """The ids of the journal's whole lines of a kind, in the order of their times."""
    lines = []
    for path in Path(folder, "journal").glob("*.jsonl"):
        whole = [text for text in path.read_text().splitlines() if text.endswith("}")]
        lines += [json.loads(text) for text in whole]
    return [line[kind] for line in sorted(lines, key=lambda line: line["at"]) if kind in line]


def test_a_batch_leaves_estimates_and_reports(batch: Run) -> None:
    done = batch(*ASKED)
    assert done.exit_code == 0, done.output
    assert done.stdout.split("\n")[0].split() == ["file", "Speech", "left", "status"]
    lines = said(done)
    assert lines[0].startswith("out: 6 of 6 files done; 4.2 s of audio, real-time")
    expected = {f"audio/{s}/{n}.wav" for s in ("ann", "bob") for n in range(3)}
    assert listing("out") - {"report.html"} == expected | REPORTS
    for name in expected:
        written = soundfile.info(Path("out", name))
        mixture = soundfile.info(Path("mix", name.removeprefix("audio/")))
        assert (written.frames, written.samplerate) == (mixture.frames, mixture.samplerate)


def test_an_estimate_is_what_extract_gives(batch: Run, tiny_folder: Path) -> None:
    assert batch(*ASKED).exit_code == 0
    words = ["extract", "mix/ann/1.wav", "--ref", "refs/ann.wav", "-o", "one.wav"]
    CliRunner().invoke(main, [*words, "--model", str(tiny_folder), "--device", "cpu"])
    assert Path("one.wav").read_bytes() == Path("out/audio/ann/1.wav").read_bytes()


def test_the_reports_say_what_was_done_by_what(batch: Run, tiny_folder: Path) -> None:
    assert batch(*ASKED).exit_code == 0
    record = json.loads(Path("out/run.json").read_text())
    assert record["mcspex"] == mcspex_cli.__version__
    assert re.match(r"\d+\.\d+", record["torch"])
    assert record["model_sha256"] == find_checkpoint(tiny_folder).sha256
    assert record["command"] == sys.argv
    assert (record["files"], record["done"], record["failed"]) == (6, 6, 0)
    assert record["audio_s"] == pytest.approx(4.2)
    (run,) = record["runs"]
    assert record["real_time_factor"] == pytest.approx(run["wall_s"] / 4.2, abs=1e-4)
    assert (record["device"], record["precision"]) == (["cpu"], [auto_precision()])
    row = rows("out")["bob/2"]
    assert (row["mixture"], row["references"]) == ("../mix/bob/2.wav", ["../refs/bob.wav"])
    assert row["estimate"] == "audio/bob/2.wav"
    assert (row["status"], row["seconds"], row["truth"]) == ("done", 0.8, None)
    assert (row["sample_rate_hz"], row["limited"], row["silent"]) == (RATE_HZ, False, False)
    assert len(row["gain_db"]) == 1
    with Path("out/report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["name"] for line in table] == list(rows("out"))
    assert json.loads(table[0]["references"]) == ["../refs/ann.wav"]
    assert {float(line["seconds"]) for line in table} == {0.6, 0.7, 0.8}


def test_json_is_the_record_and_quiet_is_quiet(batch: Run) -> None:
    done = batch(*ASKED, "--truth", "truth", "--json")
    said = json.loads(done.stdout)
    assert (said["files"], said["done"], said["audio_s"]) == (6, 6, 4.2)
    assert said["summary"]["metrics"]["si_sdr_db"]["mean"] < 50
    assert batch(*ASKED, "-q").output == ""


def test_truth_scores_as_score_does(batch: Run) -> None:
    assert batch(*ASKED, "--truth", "truth").exit_code == 0
    words = ["score", "out/audio", "--truth", "truth", "--mixtures", "mix", "--json"]
    scored = CliRunner().invoke(main, [*words, "--metrics", "si_sdr,si_sdr_i,snr"])
    expected = {row["name"]: row for row in json.loads(scored.stdout)["scores"]}
    assert expected.keys() == rows("out").keys()
    for name, row in rows("out").items():
        for column in ("si_sdr_db", "si_sdr_i_db", "snr_db", "input_si_sdr_db"):
            assert row[column] == pytest.approx(expected[name][column], abs=1e-9)
        assert (row["status"], row["confused"]) == (
            expected[name]["status"],
            expected[name]["confused"],
        )


def test_truth_and_metrics_may_come_later_without_extracting_again(batch: Run) -> None:
    assert batch(*ASKED).exit_code == 0
    before = times("out")
    assert batch(*ASKED, "--truth", "truth").exit_code == 0
    assert "si_sdr_db" in rows("out")["ann/0"]
    scores = journal("out", "scored")
    assert len(scores) == 6
    assert batch(*ASKED, "--truth", "truth").exit_code == 0
    assert journal("out", "scored") == scores
    assert batch(*ASKED, "--truth", "truth", "--metrics", "snr").exit_code == 0
    assert rows("out")["ann/0"]["si_sdr_db"] is None
    assert times("out") == before


def test_truth_that_changed_is_scored_again(batch: Run) -> None:
    batch(*ASKED, "--truth", "truth")
    before = rows("out")
    write("truth/ann/0.wav", buzz(170, 0.6, 4))
    batch(*ASKED, "--truth", "truth")
    changed = {name for name, row in rows("out").items() if row != before[name]}
    assert changed == {"ann/0"}


def test_a_truth_that_could_not_be_read_is_scored_as_soon_as_it_can(batch: Run) -> None:
    truth = Path("truth/ann/0.wav")
    content, status = truth.read_bytes(), truth.stat()
    for text, code in ((b"?" * len(content), 3), (content, 0), (content, 0)):
        truth.write_bytes(text)
        os.utime(truth, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert batch(*ASKED, "--truth", "truth").exit_code == code
        assert (rows("out")["ann/0"]["status"] == "ok") == (code == 0)
    assert len(journal("out", "scored")) == 7


def test_groups_are_in_the_report(batch: Run) -> None:
    names = [f"{s}/{n}" for s in ("ann", "bob") for n in range(3)]
    Path("groups.csv").write_text(
        "name,gender\n" + "".join(f"{name},{'f' if name[0] == 'a' else 'm'}\n" for name in names)
    )
    done = batch(*ASKED, "--truth", "truth", "--groups", "groups.csv")
    assert done.exit_code == 0, done.output
    assert rows("out")["bob/1"]["group"] == "m"
    titled = "name,gender,title\n" + "".join(f"{n},{'fm'[n[0] == 'b']},Case {n}\n" for n in names)
    Path("groups.csv").write_text(titled)
    done = batch(*ASKED, "--truth", "truth", "--groups", "groups.csv", "--group-by", "gender")
    assert done.exit_code == 0, done.output
    assert "Case ann/0" in Path("out/report.html").read_text()
    done = batch(*ASKED, "--groups", "out/report.csv", "--group-by", "status")
    assert done.exit_code == 1
    assert "out/report.csv: is an input, and inputs are never overwritten" in done.stderr


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="pipes have no names here")
def test_groups_are_read_once_so_that_they_may_be_in_a_pipe_or_change(batch: Run) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"name,group,title\nann/0,f,Ann's first\n")
    os.close(writer)
    done = batch(*ASKED, "--groups", f"/dev/fd/{reader}")
    os.close(reader)
    assert done.exit_code == 0, done.stderr
    assert rows("out")["ann/0"]["group"] == "f"
    assert "Ann&#39;s first" in Path("out/report.html").read_text()


def test_a_pattern_finds_the_speaker(batch: Run) -> None:
    for number in range(2):
        write(f"flat/bob_{number}.wav", buzz(100, 0.5, number))
    asked = ("flat", "--refs", "refs", "--allow-unused", "-o", "out")
    assert batch(*asked, "--pattern", "{speaker}_{n}").exit_code == 0
    assert rows("out")["bob_1"]["references"] == ["../refs/bob.wav"]


def test_a_manifest_names_all(batch: Run) -> None:
    Path("plan.csv").write_text(
        "mixture,references,truth,output,id\n"
        "mix/ann/0.wav,refs/ann.wav,truth/ann/0.wav,x/first.flac,7\n"
        "mix/ann/0.wav,refs/bob.wav;mix/bob/0.wav,,,two\n"
    )
    done = batch("--manifest", "plan.csv", "-o", "out")
    assert done.exit_code == 0, done.output
    assert set(sounds("out")) == {"audio/x/first.flac", "audio/two.wav"}
    assert rows("out")["7"]["estimate"] == "audio/x/first.flac"
    assert rows("out")["7"]["si_sdr_db"] is not None
    assert rows("out")["two"]["references"] == ["../refs/bob.wav", "../mix/bob/0.wav"]
    assert rows("out")["two"]["status"] == "done"


def test_one_voice_for_all_another_format_and_level(batch: Run) -> None:
    done = batch(
        "mix", "--ref", "refs/ann.wav", "--ref", "refs/bob.wav", "-o", "out", "--format", "flac",
        "--level", "peak", "--subtype", "PCM_24",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert rows("out")["bob/0"]["references"] == ["../refs/ann.wav", "../refs/bob.wav"]
    info = soundfile.info("out/audio/bob/0.flac")
    assert (info.format, info.subtype) == ("FLAC", "PCM_24")
    assert np.abs(soundfile.read("out/audio/bob/0.flac")[0]).max() == pytest.approx(0.891, abs=1e-3)


def test_a_second_run_does_nothing_again(batch: Run) -> None:
    batch(*ASKED)
    before, report = times("out"), Path("out/report.json").read_bytes()
    done = batch(*ASKED)
    assert done.exit_code == 0
    assert "6 of 6 files done, 6 of them before" in done.stderr
    assert times("out") == before
    assert Path("out/report.json").read_bytes() == report


def test_estimates_that_the_reports_leave_out_are_told(batch: Run) -> None:
    assert batch(*ASKED).exit_code == 0
    asked = ("mix/bob", "--ref", "refs/bob.wav", "-o", "out")
    left_out = "warning: out: the reports leave out estimates of earlier runs: bob/0, bob/1, bob/2."
    shutil.rmtree("out/audio/ann")
    done = batch(*asked)
    assert (done.exit_code, rows("out").keys()) == (0, {"0", "1", "2"})
    assert left_out in done.stderr
    shutil.rmtree("out/audio/bob")
    assert "leave out" not in batch(*asked).stderr


def test_batches_are_near_to_singles(batch: Run) -> None:
    batch(*ASKED, "--subtype", "FLOAT")
    done = batch("mix", "--refs", "refs", "-o", "four", "--batch-size", "4", "--subtype", "FLOAT")
    assert done.exit_code == 0, done.output
    for name in sounds("out"):
        one, four = (soundfile.read(Path(place, name))[0] for place in ("out", "four"))
        assert np.square(one - four).sum() < np.square(one).sum() * 10 ** (-100 / 10)


@pytest.fixture
def twenty(folder: Path) -> list[str]:
    """Twenty short mixtures, the eighth of them no sound; their ids."""
    for number in range(20):
        write(f"many/{number:02}.wav", buzz(100 + 5 * number, 0.4, number))
    Path("many/07.wav").write_text("no sound")
    return [f"{number:02}" for number in range(20)]


def test_a_file_whose_name_is_no_text_goes_through(batch: Run) -> None:
    odd = os.fsdecode(b"mix/odd\xff.wav")
    shutil.copy("mix/ann/0.wav", odd)
    done = batch("mix", "--ref", "refs/ann.wav", "-o", "out")
    assert done.exit_code == 0, done.output
    assert Path(os.fsdecode(b"out/audio/odd\xff.wav")).exists()


def test_a_name_as_long_as_disks_allow_goes_through(batch: Run) -> None:
    shutil.copy("mix/ann/0.wav", f"mix/{'x' * 250}.wav")
    done = batch("mix", "--ref", "refs/ann.wav", "-o", "out")
    assert done.exit_code == 0, done.output
    assert Path(f"out/audio/{'x' * 250}.wav").exists()


def test_a_page_of_another_report_is_not_left(batch: Run) -> None:
    batch(*ASKED)
    page = Path("out/report.html")
    page.write_text("old")
    report = Path("out/report.json")
    report.write_text(report.read_text().replace("ann/0", "ann/7"))
    batch(*ASKED)
    assert "ann/0" in page.read_text()
    page.unlink()
    page.mkdir()
    done = batch(*ASKED)
    assert done.exit_code == 1
    assert said(done) == ["error: out/report.html: is a folder. Name a file."]


def test_that_nothing_can_be_scored_is_an_error_even_if_quiet(batch: Run) -> None:
    for path in Path("truth").rglob("*.wav"):
        audio.write(path, audio.read(path, 8000)[:1000], 8000)
    done = batch(*ASKED, "--truth", "truth", "-q")
    assert done.exit_code == 1
    assert "samples, but" in done.stderr
    assert Path("out/report.json").exists()


def test_a_stereo_mixture_is_scored_by_the_channel_that_was_used(batch: Run) -> None:
    mono = audio.read("mix/ann/0.wav", 8000)
    audio.write("mix/ann/0.wav", np.stack([mono, 0.5 * mono]), 8000)
    assert batch(*ASKED, "--truth", "truth", "--channel", "0").exit_code == 0
    assert rows("out")["ann/0"]["si_sdr_i_db"] is not None


MANY = ("many", "--ref", "refs/ann.wav", "-o", "out")


def test_one_corrupt_file_of_twenty_costs_only_itself_and_is_tried_again(
    batch: Run, twenty: list[str]
) -> None:
    asked = (*MANY, "--batch-size", "4")
    done = batch(*asked)
    assert done.exit_code == 3
    lines = said(done)
    assert lines[0].startswith("error: many/07.wav: not a readable sound file")
    assert lines[-1] == "error: 1 file failed, see above and out/failed.jsonl."
    assert set(sounds("out")) == {f"audio/{name}.wav" for name in twenty if name != "07"}
    made = rows("out")
    assert list(made) == twenty
    assert {name for name, row in made.items() if row["status"] == "failed"} == {"07"}
    assert made["07"]["note"].startswith("many/07.wav: not a readable sound file")
    (failure,) = map(json.loads, Path("out/failed.jsonl").read_text().splitlines())
    assert (failure["id"], failure["reason"]) == ("07", made["07"]["note"])
    assert json.loads(Path("out/run.json").read_text())["failed"] == 1
    write("many/07.wav", buzz(100, 0.4))
    done = batch(*asked)
    assert done.exit_code == 0
    assert "20 of 20 files done, 19 of them before" in done.stderr
    assert not Path("out/failed.jsonl").exists()


def test_what_failed_is_a_manifest_for_another_folder(batch: Run, twenty: list[str]) -> None:
    batch(*MANY)
    refused = batch("--manifest", "out/failed.jsonl", "-o", "out")
    assert refused.exit_code == 1
    assert "out/failed.jsonl: is in the output folder, so the reports" in refused.stderr
    assert batch("--manifest", "out/failed.jsonl", "-o", "rest").exit_code == 3
    write("many/07.wav", buzz(100, 0.4))
    done = batch("--manifest", "out/failed.jsonl", "-o", "rest")
    assert done.exit_code == 0, done.output
    assert not Path("rest/failed.jsonl").exists()
    assert set(sounds("rest")) == {"audio/07.wav"}


def test_any_name_that_failed_may_be_in_that_manifest(batch: Run) -> None:
    for name in ("a\nb", "tab\t", " ;=", '"q"', "é"):
        Path(f"mix/{name}.wav").write_text("no sound")
    assert batch("mix", "--ref", "refs/ann.wav", "-o", "out").exit_code == 3
    for name in ("a\nb", "tab\t", " ;=", '"q"', "é"):
        shutil.copy("mix/ann/1.wav", f"mix/{name}.wav")
    done = batch("--manifest", "out/failed.jsonl", "-o", "again")
    assert done.exit_code == 0, done.output
    assert {name[6:-4] for name in sounds("again")} == {"a\nb", "tab\t", " ;=", '"q"', "é"}


def test_a_failure_keeps_what_its_manifest_said(batch: Run) -> None:
    Path("mix/ann/0.wav").write_text("no sound")
    columns = "mixture,reference,span,truth,output,residual,activity,id"
    row = "mix/ann/0.wav,refs/ann.wav,0-1,truth/ann/0.wav,x/y.flac,z.flac,a.srt,7"
    Path("plan.csv").write_text(f"{columns}\n{row}\n")
    assert batch("--manifest", "plan.csv", "-o", "out").exit_code == 3
    write("mix/ann/0.wav", buzz(150, 0.5))
    done = batch("--manifest", "out/failed.jsonl", "-o", "rest", "--resample")
    assert listing("rest") >= {"audio/x/y.flac", "residual/z.flac", "activity/a.srt"}, done.output
    assert "si_sdr_db" in rows("rest")["7"]


def test_a_result_that_another_run_replaces_meanwhile_is_said(
    batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(*_: object) -> None:
        next(Path("out/audio").rglob("*.wav")).write_bytes(b"of another run")

    monkeypatch.setattr(results, "score", score)
    done = batch(*ASKED)
    assert done.exit_code == 3
    assert "error: 1 file done, but replaced or removed since. If another batch" in done.stderr


def test_fail_fast_stops_and_the_rest_is_pending(batch: Run, twenty: list[str]) -> None:
    done = batch(*MANY, "--fail-fast")
    assert done.exit_code == 3
    statuses = [row["status"] for row in rows("out").values()]
    assert statuses == ["done"] * 7 + ["failed"] + ["pending"] * 12
    assert not list(Path("out").rglob(".*"))


def test_a_bad_reference_costs_only_its_own_mixtures(batch: Run) -> None:
    write("refs/bob.wav", np.zeros(8000, np.float32))
    done = batch(*ASKED, "--truth", "truth", "--batch-size", "4")
    assert done.exit_code == 3
    assert done.stderr.count("error: refs/bob.wav: is silent.") >= 3
    assert {name for name, row in rows("out").items() if row["status"] == "failed"} == {
        "bob/0",
        "bob/1",
        "bob/2",
    }
    assert len(journal("out", "scored")) == 3


def test_other_settings_are_refused_in_the_same_folder(
    batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch(*ASKED)
    before = sounds("out")
    done = batch(*ASKED, "--level", "peak")
    assert (done.exit_code, done.stderr) == (
        1,
        "error: out: its ann/0 was made with another model or other settings, or by another "
        "version of mcspex. Choose another -o, or add --overwrite to replace it.\n",
    )
    assert sounds("out") == before
    assert batch(*ASKED, "--level", "peak", "--dry-run").exit_code == 1
    assert batch(*ASKED, "--level", "peak", "--overwrite").exit_code == 0
    assert sounds("out") != before
    monkeypatch.setattr("mcspex_cli.batch.plan.__version__", "9.0.0")
    assert "by another version" in batch(*ASKED, "--level", "peak").stderr
    assert json.loads(Path("out/run.json").read_text())["level"] == "peak"


def test_samples_that_a_format_does_not_have_are_refused_before_any_work(batch: Run) -> None:
    for suffix, subtype in (("ogg", "PCM_16"), ("flac", "FLOAT")):
        done = batch(*ASKED, "--format", suffix, "--subtype", subtype)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        message = f"error: out/audio/ann/0.{suffix}: {suffix.upper()} has no {subtype} samples."
        assert done.stderr.startswith(message)
        assert not Path("out").exists()


def test_another_format_is_refused_beside_the_first(batch: Run) -> None:
    batch(*ASKED)
    done = batch(*ASKED, "--format", "flac")
    assert (done.exit_code, done.stderr) == (
        1,
        "error: out: has ann/0 as a .wav file already. Choose another -o, or add --overwrite to "
        "have both.\n",
    )
    shutil.rmtree("out/audio")
    assert batch(*ASKED, "--format", "flac").exit_code == 0
    assert {Path(name).suffix for name in sounds("out")} == {".flac"}


def test_another_voice_does_not_replace_the_first(batch: Run) -> None:
    assert batch("mix", "--ref", "refs/ann.wav", "-o", "out").exit_code == 0
    before = sounds("out")
    other = ("mix", "--ref", "refs/bob.wav", "-o", "out")
    done = batch(*other)
    assert done.exit_code == 1
    assert "its ann/0 was made with another mixture or reference." in done.stderr
    assert sounds("out") == before
    assert batch(*other, "--overwrite").exit_code == 0
    assert sounds("out") != before


def test_another_mixture_of_the_manifest_does_not_replace_the_first(batch: Run) -> None:
    list_ = Path("list.csv")
    list_.write_text("mixture,id,output\nmix/ann/0.wav,a,x.wav\nmix/ann/1.wav,b,y.wav\n")
    asked = ("--manifest", "list.csv", "--ref", "refs/ann.wav", "-o", "out")
    assert batch(*asked).exit_code == 0
    before = sounds("out")
    for lines in ("mix/ann/2.wav,c,x.wav", "mix/ann/1.wav,b,x.wav", "mix/ann/1.wav,new,x.wav"):
        list_.write_text(f"mixture,id,output\n{lines}\n")
        done = batch(*asked)
        assert done.exit_code == 1
        assert "was made with another mixture or reference." in done.stderr
    assert sounds("out") == before
    list_.write_text("mixture,id,output\nmix/ann/0.wav,new,x.wav\n")  # the same under another id
    assert batch(*asked).exit_code == 0
    list_.write_text("mixture,id,output\nmix/ann/2.wav,c,x.wav\n")
    assert batch(*asked, "--overwrite").exit_code == 0
    assert sounds("out") != before


def test_a_reference_among_the_mixtures_is_not_one(batch: Run) -> None:
    assert batch("refs", "--ref", "refs/ann.wav", "-o", "out").exit_code == 0
    assert list(rows("out")) == ["bob"]
    assert batch(*ASKED, "--level", "peak").exit_code == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "mix",
            "mix: is not empty and not the folder of a batch. Choose another -o, or add "
            "--overwrite.",
        ),
        (
            "refs/ann.wav",
            "refs/ann.wav: cannot make this folder: something else has this name. "
            "Choose another name.",
        ),
        (
            "refs/ann.wav/x",
            "refs/ann.wav/x: cannot make this folder: a part of this path is a file, not a folder. "
            "Choose another path.",
        ),
    ],
)
def test_a_place_that_is_no_batchs_is_refused(batch: Run, output: str, message: str) -> None:
    before = listing(".")
    done = batch("mix/ann/0.wav", "--ref", "refs/ann.wav", "-o", output)
    assert (done.exit_code, done.stderr) == (1, f"error: {message}\n")
    assert listing(".") == before


def test_a_dry_run_refuses_an_output_that_cannot_be_a_folder(batch: Run) -> None:
    done = batch("mix", "--refs", "refs", "-o", "refs/ann.wav", "--dry-run")
    assert done.exit_code == 1
    message = "refs/ann.wav is not a folder. Choose another place.\n"
    assert done.stderr == f"error: refs/ann.wav/audio/any.wav: {message}"


def test_a_place_that_cannot_be_written_is_refused_before_any_work(batch: Run) -> None:
    for place in ("out/audio", "out/journal/settings.lock", "out/report.csv"):
        assert batch("mix", "--refs", "refs", "-o", "out", "--overwrite").exit_code == 0
        gone = Path(place)
        shutil.rmtree("out/audio")
        if gone.is_file():
            gone.unlink()
            gone.mkdir()
        else:
            gone.touch()
        before = len(journal("out"))
        done = batch("mix", "--refs", "refs", "-o", "out")
        assert done.exit_code == 1
        assert re.fullmatch(f"error: {place}.*: .*is (not )?a folder. .*\n", done.stderr)
        assert len(journal("out")) == before
        shutil.rmtree("out")


def test_a_bad_plan_lists_all_and_writes_nothing(batch: Run) -> None:
    Path("plan.csv").write_text(
        "mixture,reference,id\nnone.wav,refs/ann.wav,1\nmix/ann/0.wav,none.wav,2\n,refs/ann.wav,\n"
        "mix/ann/1.wav,refs/ann.wav,../3\n"
    )
    before = listing(".")
    done = batch("--manifest", "plan.csv", "-o", "out")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "error: plan.csv line 2: none.wav does not exist, or is not a file.",
        "error: plan.csv line 3: none.wav does not exist, or is not a file.",
        "error: plan.csv line 4: names no mixture. Name one, or drop the line.",
        "error: plan.csv line 5: output '../3.wav' leaves the output folder. Give it another id or "
        "name.",
        "error: 4 problems, see above. Nothing was started.",
    ]
    assert listing(".") == before
    assert not Path("out").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(batch: Run) -> None:
    Path("mix/ann/0.wav").write_text("no sound")
    before = listing(".")
    done = batch(*ASKED, "--dry-run")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["id", "mixture", "reference", "seconds"]
    assert lines[1] == ["ann/0", "mix/ann/0.wav", "refs/ann.wav", "unreadable"]
    assert lines[6] == ["bob/2", "mix/bob/2.wav", "refs/bob.wav", "0.8"]
    assert lines[7] == ["3.6"]
    assert re.match(
        r"6 files to do, 0 done before; about [\d.]+ s here, without the files whose length is not "
        r"known. Nothing was started.\n$",
        done.stderr,
    )
    assert listing(".") == before
    assert not Path("out").exists()


def test_a_long_dry_run_is_cut(batch: Run, twenty: list[str]) -> None:
    for number in range(3):
        write(f"many/more{number}.wav", buzz(90, 0.4))
    done = batch(*MANY, "--dry-run")
    assert len(done.stdout.splitlines()) == 22
    assert done.stdout.splitlines()[-1].split() == ["and", "3", "more", "8.8"]


def test_a_dry_run_as_json_has_every_job_that_is_left(batch: Run) -> None:
    assert batch("mix", "--refs", "refs", "-o", "out", "--shard", "1/2").exit_code == 0
    before = listing(".")
    said = json.loads(batch(*ASKED, "--dry-run", "--json").stdout)
    assert said["done"] == len(journal("out"))
    assert sorted([*journal("out"), *(job["id"] for job in said["jobs"])]) == sorted(rows("out"))
    assert said["estimate_s"] > 0
    job = said["jobs"][0]
    assert job["mixture"] == f"mix/{job['id']}.wav"
    assert job["output"] == f"out/audio/{job['id']}.wav"
    assert job["seconds"] in (0.6, 0.7, 0.8)
    assert listing(".") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '-o'"),
        (("mix", "--refs", "refs"), "Missing option '-o'"),
        (("-o", "out", "--refs", "refs"), "name either MIXTURES or a --manifest."),
        ((*ASKED, "--manifest", "m.csv"), "name either MIXTURES or a --manifest."),
        (
            (*ASKED, "--ref", "refs/ann.wav"),
            "--ref names one voice for all files, --refs one for each",
        ),
        (("mix", "-o", "out", "--pattern", "{speaker}"), "--pattern means nothing without --refs."),
        ((*ASKED, "--batch-size", "0"), "'0' is neither auto nor a number from 1 to 4096."),
        ((*ASKED, "--batch-size", "many"), "'many' is neither auto nor a number from 1 to 4096."),
        *(
            ((*ASKED, "--batch-size", size), "is neither auto nor a number from 1 to 4096.")
            for size in ("4097", "9" * 5000)
        ),
        ((*ASKED, "--batch-size", "-1"), "'-1' is neither auto nor a number from 1 to 4096."),
        ((*ASKED, "--jobs", "0"), "0 is not in the range x>=1"),
        ((*ASKED, "--format", "mp3"), "'mp3' is none of wav"),
        ((*ASKED, "--metrics", "loudness", "--truth", "truth"), "--metrics loudness: unknown"),
        *(
            (
                (*ASKED, "--metrics", name, "--truth", "truth"),
                f"--metrics {name}: batch computes si_sdr, si_sdr_i, snr, sdr, pesq, stoi, estoi.",
            )
            for name in ("sir", "presence")
        ),
        ((*ASKED, "--metrics", "si_sdr"), "--metrics means nothing without --truth or --manifest."),
        ((*ASKED, "--resample"), "--resample means nothing without --truth or --manifest."),
        ((*ASKED, "--group-by", "sex"), "--group-by means nothing without --groups. Add it."),
        *(
            ((*ASKED, "--shard", shard), f"'{shard}' is not I/N with I from 1 to N, like 2/8.")
            for shard in (
                "0/2",
                "3/2",
                "1",
                "1/",
                "/2",
                "a/b",
                "-1/2",
                "1/2/3",
                "1.5/2",
                "1/9999999999",
            )
        ),
    ],
)
def test_wrong_usage_is_exit_2(batch: Run, arguments: tuple[str, ...], message: str) -> None:
    done = batch(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert not Path("out").exists()


@pytest.mark.parametrize("devices", ["", "cpu,,cuda"])
def test_a_device_has_a_name(batch: Run, devices: str) -> None:
    done = CliRunner().invoke(main, ["batch", *ASKED, "--devices", devices])
    assert done.exit_code == 2
    assert f"'{devices}' has an empty name." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nobody"), "nobody: no such model."),
        (("--devices", "cpu,tpu"), "device 'tpu' is not available."),
        (("--groups", "none.csv"), "none.csv: "),
    ],
)
def test_what_cannot_be_had_is_one_line_and_exit_1(
    batch: Run, tiny_folder: Path, arguments: tuple[str, str], message: str
) -> None:
    words = ["batch", *ASKED, "--model", str(tiny_folder), "--devices", "cpu", *arguments]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not Path("out/audio").exists()


def test_shards_one_after_the_other_are_one_run(batch: Run) -> None:
    more = ("--truth", "truth", "--batch-size", "4")
    assert batch("mix", "--refs", "refs", "-o", "whole", *more).exit_code == 0
    for index in (2, 3, 1):
        done = batch(*ASKED, *more, "--shard", f"{index}/3")
        assert done.exit_code == 0, done.output
        assert len(journal("out")) < 6 or index == 1
    assert sounds("out") == sounds("whole")
    for name in ("report.json", "report.csv"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    assert len(json.loads(Path("out/run.json").read_text())["runs"]) == 3


@pytest.mark.parametrize(
    ("slurm", "shard"),
    [
        ({"ID": "1", "MIN": "0", "COUNT": "2"}, "2/2"),
        ({"ID": "4", "MIN": "4", "COUNT": "3", "MAX": "6", "STEP": "0"}, "1/3"),
        ({"ID": "7", "MIN": "3", "COUNT": "3", "STEP": "2", "MAX": "7"}, "3/3"),
    ],
)
def test_a_slurm_array_is_shards(
    batch: Run, monkeypatch: pytest.MonkeyPatch, slurm: dict[str, str], shard: str
) -> None:
    expected = json.loads(batch(*ASKED, "--dry-run", "--json", "--shard", shard).stdout)["jobs"]
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    made = json.loads(batch(*ASKED, "--dry-run", "--json").stdout)["jobs"]
    assert 0 < len(made) < 6
    assert made == expected
    part = f"part {shard.replace('/', ' of ')}, as task of a Slurm array; --shard 1/1 does all.\n"
    assert part in batch(*ASKED, "--dry-run").stderr
    said = batch(*ASKED, "--dry-run", "--shard", "1/1").stderr
    assert said.startswith("6 files to do")


def test_a_slurm_array_with_gaps_has_to_be_told(
    batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ID": "9", "MIN": "1", "COUNT": "3", "MAX": "9"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    done = batch(*ASKED)
    assert done.exit_code == 2
    assert "Slurm's array has gaps (task 9 of 3); give I/N." in " ".join(done.stderr.split())
    assert batch(*ASKED, "--shard", "2/3").exit_code == 0


def test_a_shard_that_ends_while_another_scores_is_not_forgotten(
    batch: Run, tiny_folder: Path
) -> None:
    from mcspex_cli.batch import results
    from mcspex_cli.batch.plan import BatchRequest, BatchSettings, plan_batch
    from mcspex_cli.batch.worklist import open_work
    from mcspex_cli.evaluation.scoring import ScoreSettings
    from mcspex_cli.extraction.runtime import EngineSettings

    batch(*ASKED, "--shard", "1/2")
    request = BatchRequest(Path("out"), [Path("mix")], reference_folder=Path("refs"))
    settings = BatchSettings(
        find_checkpoint(tiny_folder),
        engine_settings=EngineSettings(runtime="torch"),
        devices=("cpu",),
        shard=(1, 2),
    )
    with open_work(plan_batch(request), settings) as work:
        assert work.todo == []
        batch(*ASKED, "--shard", "2/2")
    results.write(work, ScoreSettings(), [])
    assert {row["status"] for row in rows("out").values()} == {"done"}


def test_who_waits_for_the_reports_of_another_says_so(
    batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    from mcspex_cli.batch import results

    assert "waiting" not in batch(*ASKED).stderr
    monkeypatch.setattr(results, "_QUIET_S", 0.1)
    monkeypatch.setattr(results, "_WRITING_S", 0.2)
    with FileLock("out/journal/reports.lock"):
        done, quiet = batch(*ASKED), batch(*ASKED, "-q")
    assert (done.exit_code, quiet.exit_code) == (0, 0)
    warning = (
        "warning: out: another run has been writing the reports for 0.2 s, so this one no "
        "longer waits. If a finished file is missing in them, run this command again."
    )
    assert said(done)[:2] == [
        "waiting for another run, which writes the reports of out",
        warning,
    ]
    assert said(quiet) == [warning]


def test_residuals_and_activities_have_folders_of_their_own(batch: Run) -> None:
    done = batch(*ASKED, "--residual", "--activity", "rttm", "-v")
    assert done.exit_code == 0, done.output
    for place, suffix in (("audio", "wav"), ("residual", "wav"), ("activity", "rttm")):
        assert listing(f"out/{place}") == {
            f"{s}/{n}.{suffix}" for s in ("ann", "bob") for n in range(3)
        }
    mixture, audio_, rest = (
        audio.read(f"{place}/ann/1.wav", RATE_HZ) for place in ("mix", "out/audio", "out/residual")
    )
    assert np.abs(mixture - audio_ - rest).max() < 1e-3
    row = rows("out")["ann/1"]
    assert (row["residual"], row["activity"]) == ("residual/ann/1.wav", "activity/ann/1.rttm")
    assert re.search(
        r"^ann/1  \(0\.7 s in [\d.]+ s, real-time factor [\d.]+, gain .* dB, speaks [\d.]+ s\)$",
        done.stderr,
        re.M,
    )
    before = times("out")
    assert "6 of them before" in batch(*ASKED).stderr
    assert times("out") == before


def test_a_span_of_the_mixture_is_a_reference(batch: Run, tiny_folder: Path) -> None:
    Path("plan.csv").write_text("mixture,span,residual,id\nmix/ann/2.wav,0-0.5,rest.wav,x\n")
    assert batch("--manifest", "plan.csv", "-o", "out").exit_code == 0
    words = ["extract", "mix/ann/2.wav", "--ref-span", "0-0.5", "-o", "one.wav", "--residual"]
    words += ["rest.wav", "--model", str(tiny_folder), "--device", "cpu"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert Path("one.wav").read_bytes() == Path("out/audio/x.wav").read_bytes()
    assert Path("rest.wav").read_bytes() == Path("out/residual/rest.wav").read_bytes()


def test_a_span_is_of_the_sound_track_that_is_asked_for(batch: Run, tiny_folder: Path) -> None:
    tracks = (SoundTrack(buzz(hz, 2, 5), RATE_HZ, "flac") for hz in (110, 190))
    make(Path("talk.mkv"), *tracks, picture_s=2)
    Path("plan.csv").write_text("mixture,span,id\ntalk.mkv,0-1,x\n")
    assert batch("--manifest", "plan.csv", "-o", "out", "--track", "2").exit_code == 0
    warned = "warning: files with warnings, which are in report.csv: 1 (x)."
    assert warned in batch("--manifest", "plan.csv", "-o", "first").stderr.splitlines()
    words = ["extract", "talk.mkv", "--ref-span", "0-1", "--track", "2", "-o", "one.wav"]
    words += ["--model", str(tiny_folder), "--device", "cpu"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert Path("one.wav").read_bytes() == Path("out/audio/x.wav").read_bytes()


def test_what_is_wrong_with_a_reference_is_said_once(batch: Run) -> None:
    warnings = [line for line in batch(*ASKED).stderr.splitlines() if line.startswith("warning:")]
    assert sum("refs/ann.wav: " in line and "of speech" in line for line in warnings) == 1
    assert len(warnings) == len(set(warnings))


def test_a_moved_set_is_gone_on_with_and_its_reports_stay_right(
    batch: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("set").mkdir()
    for name in ("mix", "refs", "truth"):
        Path(name).rename(Path("set", name))
    Path("set/mix/ann/9.wav").write_text("no sound")
    write("set/truth/ann/9.wav", buzz(190, 0.5))
    asked = ("set/mix", "--ref", "set/refs/ann.wav", "--truth", "set/truth", "-o", "set/out")
    assert batch(*asked).exit_code == 3
    for name in ("report.json", "report.csv", "failed.jsonl"):
        assert str(folder) not in Path("set/out", name).read_text()
    before = times("set/out")
    shutil.copytree("set", "moved")  # other files, of the same sizes and times
    shutil.rmtree("set")
    monkeypatch.chdir("moved")
    done = batch("mix", "--ref", "refs/ann.wav", "--truth", "truth", "-o", "out")
    assert done.exit_code == 3
    assert "6 of 7 files done, 6 of them before" in done.stderr
    assert Path("out", rows("out")["ann/0"]["truth"]).resolve() == Path("truth/ann/0.wav").resolve()
    assert sorted(times("out").values()) == sorted(before.values())
    journals = [path.read_text() for path in Path("out/journal").glob("*.jsonl")]
    assert sum(text.count('"scored": ') for text in journals) == 6
    assert CliRunner().invoke(main, ["report", "out", "-o", "page.html"]).exit_code == 0
    Path("out").rename("deeper out")
    done = batch("mix", "--ref", "refs/ann.wav", "--truth", "truth", "-o", "deeper out")
    assert "6 of 7 files done, 6 of them before" in done.stderr
    Path("deeper out").rename("out")
    write("mix/ann/9.wav", buzz(150, 0.5))
    assert batch("--manifest", "out/failed.jsonl", "-o", "rest").exit_code == 0
    assert set(sounds("rest")) == {"audio/ann/9.wav"}


def test_columns_that_are_not_used_and_links_in_a_circle_are_warned_of(
    batch: Run, folder: Path
) -> None:
    Path("plan.csv").write_text("Mixture;enrollment;age\nmix/ann/0.wav;refs/ann.wav;7\n")
    done = batch("--manifest", "plan.csv", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "warning: plan.csv: not used: 'age'. The columns are mixture, " in done.stderr
    Path("mix/ann/loop").symlink_to(folder / "mix")
    done = batch("mix", "--ref", "refs/ann.wav", "-o", "two")
    assert done.exit_code == 0, done.output
    assert "warning: mix/ann/loop: links to a folder above it and is not followed." in done.stderr


def test_cells_that_a_spreadsheet_would_run_are_text(batch: Run) -> None:
    name = "=cmd|' calc'!A0\u202e"
    shutil.copy("mix/ann/0.wav", f"mix/{name}.wav")
    assert batch(f"mix/{name}.wav", "--ref", "refs/ann.wav", "-o", "out").exit_code == 0
    text = Path("out/report.csv").read_text()
    assert "\n'=cmd" in text
    assert "\u202e" not in text
    assert name in rows("out")


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.call(command, stderr=subprocess.DEVNULL):
        pytest.skip("cannot mount a disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_full_disk_stops_the_batch_with_one_line(
    batch: Run, small_disk: Path, exported: Path, jobs: str
) -> None:
    for number in range(60):
        write(f"many/{number:02}.wav", buzz(100 + number, 0.5, number))
    asked = ("many", "--ref", "refs/ann.wav", "--jobs", jobs)
    done = batch(*asked, "-o", str(small_disk / "out"), model=str(exported))
    assert done.exit_code == 1
    lines = said(done)
    assert len(lines) == 1, lines
    assert re.search(
        r"error: .*: the disk is full. Free some space, or choose another disk. \d+ files left; "
        r"then run the same command again.$",
        lines[0],
    )
    assert 0 < len(journal(small_disk / "out")) < 60
    assert not list(small_disk.rglob("*.partial"))


def test_a_disk_that_is_full_from_the_start_is_called_full(
    batch: Run, small_disk: Path, exported: Path
) -> None:
    (small_disk / "out").mkdir()
    with suppress(OSError), (small_disk / "full").open("wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))
    asked = ("mix", "--refs", "refs", "-o", str(small_disk / "out"))
    done = batch(*asked, model=str(exported))
    assert done.exit_code == 1
    (line,) = said(done)
    assert re.match(r"error: .*/out/.*: the disk is full\. .*files left; then run the same", line)


# What follows kills processes, so it starts some.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Path:
    """A folder with mixtures that take a while, and in whole/ what comes of them undisturbed."""
    folder = tmp_path_factory.mktemp("long")
    audio.write(folder / "ref.wav", buzz(110, 2, 3), RATE_HZ)
    (folder / "mix" / "deep").mkdir(parents=True)
    for number in range(LONG):
        path = folder / "mix" / ("deep" if number % 2 else ".") / f"{number:02}.wav"
        audio.write(path, buzz(100 + number, 3 + 0.1 * number, number), RATE_HZ)
    torch.set_num_threads(1)  # as each test, which comes after this
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = words_for("whole", exported)
        done = CliRunner().invoke(main, words)
    finally:
        os.chdir(before)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def long(whole: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An output folder's name for this test, in the folder of `whole`, now the working one."""
    monkeypatch.chdir(whole)
    return re.sub(r"\W+", "_", request.node.name)


def words_for(output: str, model: Path, *more: str) -> list[str]:
    words = ["batch", "mix", "--ref", "ref.wav", "-o", output, "--model", str(model)]
    return [*words, "--devices", "cpu", *(more or ("--jobs", "1"))]


@pytest.fixture
def start(long: str, exported: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process group of its own, with one thread as the tests have.

    It is nicer than the test, which has to see what it does while it does it.
    """
    started = []

    def run(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mcspex_cli", *words_for(long, exported, *more)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        os.setpriority(os.PRIO_PROCESS, started[-1].pid, 5)
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def finish(long: str, exported: Path) -> Run:
    """Goes on in this process, to the end."""

    def run(*more: str) -> Result:
        return CliRunner().invoke(main, words_for(long, exported, *more))

    return run


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something that happens while a process runs."""
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.002)


def children(process: int) -> list[int]:
    """The workers that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            worker = b"spawn_main" in (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == process and worker:
            found.append(int(folder.name))
    return found


def state(process: int) -> str:
    """What the system says of a process: Z of a zombie, T of one that was stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return state(process) != "Z"
    except OSError:
        return False


def assert_like_whole(output: str) -> None:
    assert sounds(output) == sounds("whole")
    for name in ("report.json", "report.csv"):
        assert Path(output, name).read_bytes() == Path("whole", name).read_bytes()
    assert not list(Path(output).rglob("*.partial"))
    assert not Path(output, "failed.jsonl").exists()


def done_times(output: str) -> dict[str, int]:
    """When the files that are done were written."""
    return {
        name: Path(output, "audio", f"{name}.wav").stat().st_mtime_ns for name in journal(output)
    }


def test_a_killed_run_goes_on_where_it_was(
    long: str, start: Callable[..., subprocess.Popen[str]], finish: Run
) -> None:
    before: dict[str, int] = {}
    for lines in (0, 4):
        running, had = start(), len(journal(long))
        if lines:
            wait_for(lambda had=had, lines=lines: len(journal(long)) >= had + lines, running)
        else:
            wait_for(Path(long, "audio").exists, running)
        running.kill()
        assert running.wait(60) == -signal.SIGKILL
        left = files.hidden_name(Path(long, "audio", "x.wav")).name
        Path(long, left.replace(f"-{os.getpid()}-", f"-{running.pid}-")).touch()
        after = done_times(long)
        assert before.items() <= after.items()
        before = after
    assert 4 <= len(before) < LONG
    done = finish()
    assert done.exit_code == 0, done.output
    assert f"{LONG} of {LONG} files done, {len(before)} of them before" in done.stderr
    assert before.items() <= done_times(long).items()
    assert_like_whole(long)


@linux
@unless_nohup
def test_a_terminal_that_closes_leaves_nothing_and_says_one_line(
    long: str, start: Callable[..., subprocess.Popen[str]], two_cores: None, finish: Run
) -> None:
    running = start("--jobs", "2")
    wait_for(lambda: len(journal(long)) >= 2, running)
    os.killpg(running.pid, signal.SIGHUP)  # the resource tracker of multiprocessing has it, too
    _, text = running.communicate(timeout=60)
    lines = [line for line in text.splitlines() if not line.startswith("warning: ref.wav")]
    assert lines == ["error: interrupted. Finished files are kept; unfinished ones are removed."]
    assert running.returncode == 130
    assert not list(Path(long).rglob("*.partial"))
    assert finish().exit_code == 0
    assert_like_whole(long)


@linux
def test_a_killed_parents_workers_end_and_another_run_goes_on(
    long: str, start: Callable[..., subprocess.Popen[str]], two_cores: None, finish: Run
) -> None:
    running = start("--jobs", "2")
    wait_for(lambda: len(journal(long)) >= 3, running)
    workers = children(running.pid)
    assert len(workers) == 2
    running.kill()
    running.wait(60)
    wait_for(lambda: not any(map(runs, workers)))
    before = done_times(long)
    assert 3 <= len(before) < LONG
    done = finish()
    assert done.exit_code == 0, done.output
    assert before.items() <= done_times(long).items()
    assert_like_whole(long)


@pytest.fixture
def two_cores() -> Iterator[None]:
    """With two, each of two workers has one thread, which may decide an estimate's last bit."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield
    os.sched_setaffinity(0, before)


@linux
@pytest.mark.parametrize(("jobs", "number"), [("1", signal.SIGINT), ("2", signal.SIGTERM)])
def test_a_signal_to_all_ends_after_the_files_in_hand(
    long: str,
    start: Callable[..., subprocess.Popen[str]],
    two_cores: None,
    finish: Run,
    jobs: str,
    number: signal.Signals,
) -> None:
    running = start("--jobs", jobs)
    wait_for(lambda: len(journal(long)) >= 2, running)
    for worker in children(running.pid):
        os.kill(worker, signal.SIGINT)  # a terminal sends it to them, too
    os.killpg(running.pid, number)  # as a terminal or Slurm does
    _, text = running.communicate(timeout=60)
    assert running.returncode == 130, text
    lines = [line for line in text.splitlines() if not line.startswith("warning: ref.wav")]
    assert lines[0] == "ending when the current files are done. Press Ctrl-C again to end at once."
    assert len(lines) == 2, text
    found = re.fullmatch(
        r"error: stopped, (\d+) files? left. Run the same command again.", lines[1]
    )
    assert found, text
    done = journal(long)
    assert len(done) + int(found[1]) == LONG
    assert set(sounds(long)) == {f"audio/{name}.wav" for name in done}
    assert not list(Path(long).rglob("*.partial"))
    before = done_times(long)
    assert finish().exit_code == 0
    assert before.items() <= done_times(long).items()
    assert_like_whole(long)


def has_open(process: int, name: str) -> bool:
    """Whether a process has a file of that name open."""
    try:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return False
    return any(link.endswith(f"/{name}") for link in links)


@linux
def test_others_do_the_files_that_killed_workers_had_in_hand(
    long: str,
    start: Callable[..., subprocess.Popen[str]],
    two_cores: None,
    finish: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write("ref.wav", buzz(110, 2, 3))
    # A file is read 64 s ahead, so that a shorter one would soon be closed and not be seen in hand.
    for number, seconds in enumerate((3, 3, 110, 110, 3)):
        write(f"mix/{number}.wav", buzz(100 + number, seconds, number))
    assert finish("--jobs", "1", "--passes", "1").exit_code == 0
    Path(long).rename("whole")
    stopped: set[int] = set()

    def both_stopped() -> bool:
        """Whether both workers stand still with a long one, which come first, in hand."""
        for worker in set(children(running.pid)) - stopped:
            if has_open(worker, "2.wav") or has_open(worker, "3.wav"):
                os.kill(worker, signal.SIGSTOP)
                stopped.add(worker)
        return len(stopped) == 2

    running = start("--jobs", "2", "--passes", "1")
    wait_for(both_stopped, running)
    for worker in stopped:
        os.kill(worker, signal.SIGKILL)
    _, text = running.communicate(timeout=60)
    assert running.returncode == 0, text
    assert not journal(long, "failed")
    assert_like_whole(long)


@linux
def test_another_batch_is_refused_while_one_runs(
    long: str, start: Callable[..., subprocess.Popen[str]], finish: Run
) -> None:
    first = start()
    wait_for(Path(long, "audio").exists, first)
    os.kill(first.pid, signal.SIGSTOP)
    wait_for(lambda: state(first.pid) == "T", first)
    before = times(long)
    others = [("--level", "peak"), ("--ref", "mix/02.wav"), ("--residual",)]
    for other in others:
        done = finish("--jobs", "1", "--overwrite", *other)
        assert (done.exit_code, said(done)) == (
            1,
            [
                f"error: {long}: a batch of other files, or with another model or other settings, "
                "is running in this folder. Wait until it has ended, or choose another -o."
            ],
        )
        assert times(long) == before
    first.kill()
    first.wait(60)
    assert finish("--jobs", "1", "--overwrite", *others[0]).exit_code == 0


@linux
@pytest.mark.parametrize(
    "shards",
    [("1/1", "1/1"), ("1/1", "2/2"), ("1/2", "1/1")],
)
def test_the_same_work_is_refused_while_it_is_done(
    long: str, start: Callable[..., subprocess.Popen[str]], finish: Run, shards: tuple[str, str]
) -> None:
    first = start("--jobs", "1", "--shard", shards[0])
    wait_for(Path(long, "audio").exists, first)
    os.kill(first.pid, signal.SIGSTOP)
    wait_for(lambda: state(first.pid) == "T", first)
    done = finish("--jobs", "1", "--shard", shards[1])
    assert (done.exit_code, said(done)) == (
        1,
        [
            f"error: {long}: the same batch is running in this folder. Wait until it has ended, or "
            "divide the work with --shard."
        ],
    )
    if shards == ("1/1", "1/1"):  # one is enough to see that nothing is disturbed
        os.kill(first.pid, signal.SIGCONT)
        _, text = first.communicate(timeout=60)
        assert first.returncode == 0, text
        assert_like_whole(long)


def test_two_shards_at_once_are_one_run(
    long: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    both = [start("--jobs", "1", "--shard", f"{index}/2") for index in (1, 2)]
    for process in both:
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
    assert_like_whole(long)
