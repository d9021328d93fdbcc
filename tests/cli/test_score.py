"""`mcspex score`."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from mcspex_cli import Extractor, audio, files
from mcspex_cli.__main__ import main
from mcspex_cli.cli import console
from tests.cli.test_batch import children, linux
from tests.conftest import EXAMPLES, RATE_HZ, buzz

FAST = ("--metrics", "si_sdr,si_sdr_i,snr")


def run(*words: object) -> click.testing.Result:
    return CliRunner().invoke(main, ["score", *map(str, words)])


@pytest.fixture
def words(tmp_path: Path) -> list[Path | str]:
    """Three cases as folders e, t, m and o; the third is of the wrong talker."""
    for number, name in enumerate("abc"):
        target, other = buzz(110, 1, number), buzz(190, 1, number + 9)
        estimate = target + 0.1 * (number + 1) * other if name != "c" else other
        for folder, sound in (
            ("t", target),
            ("m", target + other),
            ("o", other),
            ("e", estimate),
        ):
            files.make_folders(tmp_path / folder)
            suffix = ".target.wav" if folder == "e" else ".wav"
            audio.write(tmp_path / folder / f"{name}{suffix}", sound, RATE_HZ)
    return [tmp_path / "e", "--truth", tmp_path / "t", "--mixtures", tmp_path / "m"]


def test_a_table_has_files_means_and_confusion(words: list[Path | str]) -> None:
    done = run(*words, *FAST)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert " ".join(lines[0]) == "file SI-SDR dB SI-SDRi dB SNR dB status"
    assert lines[1][0] == "a"
    assert [line[-1] for line in lines[1:4]] == ["ok", "ok", "confused"]
    assert lines[4][:3] == ["mean", "of", "3"]
    assert lines[6] == ["Means"]
    assert " ".join(lines[7]) == "metric mean 95 % interval median files"
    assert lines[8][:3] == ["SI-SDR", "dB", lines[4][3]]
    assert done.stderr == "target confusion: 1 of 3 (33.3 %): c\n"


def test_one_file_has_one_row_and_no_interval(scene: Path) -> None:
    sounds = (scene / "mixture.wav", "--truth", scene / "truth.wav")
    done = run(*sounds, "--metrics", "si_sdr")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["file", "mixture.wav", "mean"]
    assert lines[1][1] == lines[2][3]


def test_all_metrics_that_are_installed_are_computed(words: list[Path | str]) -> None:
    done = run(*words, "--interferers", words[0].parent / "o", "--format", "csv")  # type: ignore[union-attr]
    rows = list(csv.DictReader(done.stdout.splitlines()))
    known = "si_sdr_db si_sdr_i_db snr_db sdr_db sir_db sar_db pesq stoi estoi".split()
    assert list(rows[0]) == ["name", *known, "input_si_sdr_db", "confused", "status"]
    assert all(np.isfinite(float(rows[0][column])) for column in known)


def test_json_has_no_infinities(scene: Path) -> None:
    sounds = (scene / "truth.wav", "--truth", scene / "truth.wav")
    done = run(*sounds, "--mixtures", scene / "mixture.wav", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["summary"]["files"] == 1
    row = report["scores"][0]
    assert (row["status"], row["si_sdr_db"], row["si_sdr_i_db"]) == ("exact", None, None)
    assert done.stderr == "warning: not in the means: 1 of 1 files (1 exact).\n"


@pytest.mark.parametrize("form", ["csv", "json", "markdown"])
def test_a_file_holds_what_its_format_prints(
    words: list[Path | str], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "out" / f"r.{'md' if form == 'markdown' else form}"
    done = run(*words, *FAST, "--format", form, "-o", path, "-o", tmp_path / "second.md")
    assert path.read_text() == done.stdout
    assert (tmp_path / "second.md").read_text().startswith("| file |")
    assert done.stderr.endswith(f"{path}\n{tmp_path / 'second.md'}\n")


def test_files_are_written_even_if_nobody_reads_the_table(
    words: list[Path | str], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-m",
        "mcspex_cli",
        "score",
        *words,
        *FAST,
        "-o",
        tmp_path / "r.json",
    ]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    assert len(json.loads((tmp_path / "r.json").read_text())["scores"]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="files have no such limit")
def test_of_several_files_all_or_none_are_written(words: list[Path | str], tmp_path: Path) -> None:
    import resource

    small, large = tmp_path / "r.csv", tmp_path / "r.json"
    small.write_text("before")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # of which the CSV takes half
    try:
        done = run(*words, *FAST, "-o", small, "-o", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert done.exit_code == 1
    assert f"error: {large}: cannot be written: it is larger than the disk" in done.stderr
    assert str(small) not in done.stderr
    assert small.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"e", "m", "o", "t", "r.csv"}
    assert run(*words, *FAST, "-o", small, "-o", large).exit_code == 0
    assert 750 > small.stat().st_size > 300
    assert large.stat().st_size > 1500


def test_refused_files_are_lines_and_exit_3_if_others_are_fine(
    words: list[Path | str], tmp_path: Path
) -> None:
    (tmp_path / "e/a.target.wav").write_bytes(b"")
    audio.write(tmp_path / "e/b.target.wav", buzz(110, 0.5), RATE_HZ)
    done = run(*words, *FAST)
    assert done.exit_code == 3
    said = done.stderr.splitlines()
    assert said[0].startswith(f"error: {tmp_path}/e/a.target.wav: the file is empty")
    assert said[1].startswith(f"error: {tmp_path}/e/b.target.wav: 4000 samples, but")
    assert said[2:] == [
        "warning: not in the means: 2 of 3 files (1 unreadable, 1 length differs).",
        "target confusion: 1 of 1 (100.0 %): c",
        "error: 2 of 3 files could not be scored, see above.",
    ]
    (tmp_path / "e/c.target.wav").unlink()
    (tmp_path / "e/c.target.wav").symlink_to("c.target.wav")  # in a circle
    done = run(*words, *FAST)
    assert done.exit_code == 1
    assert done.stderr.endswith("error: 3 of 3 files could not be scored, see above.\n")


def test_the_only_file_refused_is_exit_1_and_its_line_comes_once(scene: Path) -> None:
    (scene / "broken.wav").write_text("no")
    done = run(scene / "broken.wav", "--truth", scene / "truth.wav", *FAST[:1], "si_sdr")
    assert done.exit_code == 1
    assert done.stderr.count("not a readable sound file") == 1


def test_missing_estimates_trimmed_files_and_flips_are_told(
    words: list[Path | str], tmp_path: Path
) -> None:
    (tmp_path / "e/c.target.wav").unlink()
    for name, sign, cut in (("a", -1, 0), ("b", 1, 9)):
        path = tmp_path / f"e/{name}.target.wav"
        audio.write(path, sign * audio.read(path, RATE_HZ)[cut:], RATE_HZ)
    audio.write(path, audio.read(tmp_path / "m/b.wav", RATE_HZ)[:-9], RATE_HZ)
    done = run(*words, *FAST, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["summary"]["missing_estimates"] == 1
    assert done.stderr.splitlines()[:4] == [
        "warning: not in the means: 1 of 2 files (1 sign flipped).",
        "warning: truths without an estimate: 1 (c). The means do not include them.",
        "warning: files cut to equal lengths: 1. Their lengths differed a little.",
        "A flipped sign cannot be heard. --flipped-ok counts such files in the means.",
    ]
    done = run(*words, *FAST, "--json", "--flipped-ok")
    assert json.loads(done.stdout)["summary"]["scored"] == 2
    assert done.stderr.splitlines()[0].startswith("warning: truths")


def test_groups_and_baseline_and_threshold_in_one_go(
    words: list[Path | str], tmp_path: Path
) -> None:
    (tmp_path / "g.csv").write_text("id,sex,room\na,same,1\nb.wav,other,1\n")
    report = tmp_path / "r.json"
    groups = ("--groups", tmp_path / "g.csv", "--group-by", "sex")
    assert run(*words, *FAST, "-o", report).exit_code == 0
    audio.write(tmp_path / "e/a.target.wav", buzz(110, 1) + 0.3 * buzz(190, 1, 9), RATE_HZ)
    limits = ("--fail-under", "si_sdr_i=3", "--fail-under", "snr_db=50")
    done = run(*words, *FAST, *groups, "--baseline", report, *limits)
    assert done.exit_code == 4
    assert "Means by group\n" in done.stdout
    assert f"Change since {report} (files in both: 3, only here: 0, only there: 0)" in done.stdout
    change = next(line.split() for line in done.stdout.splitlines() if line.startswith(" a "))[-2]
    assert float(change) == pytest.approx(-9.5, abs=0.5)
    assert "warning: files in no group: 1." in done.stderr
    assert done.stderr.count("is under") == 2
    assert done.stderr.splitlines()[-1].endswith(" is under 50.")
    assert "error: mean SI-SDRi dB " in done.stderr.splitlines()[-1]
    done = run(*words, *FAST, *groups, "--baseline", report, "--fail-under", "si_sdr_i=-90")
    assert done.exit_code == 0


def test_a_threshold_without_a_value_is_an_error(words: list[Path | str], tmp_path: Path) -> None:
    for name in "abc":
        audio.write(tmp_path / f"e/{name}.target.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    done = run(*words, *FAST, "--fail-under", "si_sdr=2")
    assert "error: --fail-under si_sdr: no file has a value. See above." in done.stderr


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ('{"format": "html", "scores": 3}', ""),
        ('{"a": 1}\n{"a": 2}\n', "warning: presence is not known: {}: cannot be read as JSON"),
        ('{"format": 9}', "warning: presence is not known: {}: is a report in format 9"),
    ],
)
def test_another_report_beside_the_estimates_stops_no_scores(
    words: list[Path | str], tmp_path: Path, content: str, warning: str
) -> None:
    (tmp_path / "report.json").write_text(content)
    done = run(*words, *FAST)
    assert (done.exit_code, "warning" in done.stderr) == (0, bool(warning)), done.output
    assert done.stderr.startswith(warning.format(tmp_path / "report.json"))


def test_a_metric_that_no_file_has_a_value_of_is_said(
    words: list[Path | str], tmp_path: Path
) -> None:
    shutil.copytree(words[2], tmp_path / "copy")
    done = run(*words[:3], "--mixtures", tmp_path / "copy", *FAST)
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: no file has a value of SI-SDRi. docs/batch-and-score")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--fail-under", "si-sdr=3"], "write METRIC=MEAN with one of si_sdr, si_sdr_i, snr"),
        (["--fail-under", "si_sdr=nan"], "--fail-under si_sdr=nan"),
        (["--metrics", "si_sdr,mos"], "--metrics mos: unknown. Use si_sdr, si_sdr_i"),
        (["--metrics", "sir"], "--metrics sir needs --interferers"),
        (["--workers", "0"], "--workers"),
        (["--workers", "1025"], "--workers"),
        ([*FAST, "--fail-under", "pesq=2"], "--fail-under pesq is not computed. Add it to --met"),
        (["--fail-over", "dnsmos_ovrl=2"], "--fail-over dnsmos_ovrl is not computed. Add"),
        (["--fail-over", "sir=2"], "--fail-over sir needs --interferers."),
        (["--group-by", "sex"], "--group-by means nothing without --groups. Add it."),
        (["--format", "xml"], "--format"),
    ],
)
def test_wrong_usage_is_exit_2(words: list[Path | str], extra: list[str], message: str) -> None:
    done = run(*words, *extra)
    assert done.exit_code == 2
    assert message in done.stderr
    done = run(*words[:3], "--metrics", "si_sdr_i")
    assert (done.exit_code, "si_sdr_i needs --mixtures" in done.stderr) == (2, True)


def test_an_output_that_is_an_input_is_refused_before_work(
    words: list[Path | str], tmp_path: Path
) -> None:
    base = tmp_path / "b.json"
    base.write_text("{}")
    done = run(*words, "--baseline", base, "-o", base)
    assert done.exit_code == 1
    assert "is an input" in done.stderr
    assert base.read_text() == "{}"
    done = run(*words, "-o", tmp_path / "c.json", "-o", tmp_path / "e" / ".." / "c.json")
    assert (done.exit_code, "c.json: is named twice. Leave out one -o." in done.stderr) == (1, True)
    assert not (tmp_path / "c.json").exists()


WITHOUT = (
    "import sys\n"
    "for name in ('fast_bss_eval', 'pesq', 'pystoi'): sys.modules[name] = None\n"
    "from mcspex_cli.__main__ import main\n"
    "main(sys.argv[1:], prog_name='mcspex')\n"
)


def without_extra(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, "score", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_the_extra_its_columns_are_absent_and_only_a_wish_for_them_is_refused(
    words: list[Path | str],
) -> None:
    done = without_extra(*words, "--format", "csv")
    assert done.returncode == 0, done.stderr
    head = "name,si_sdr_db,si_sdr_i_db,snr_db,input_si_sdr_db,confused,status"
    assert done.stdout.splitlines()[0] == head
    assert done.stderr == "target confusion: 1 of 3 (33.3 %): c\n"
    for wish in (("--metrics", "si_sdr,stoi"), ("--fail-under", "stoi=1")):
        done = without_extra(*words, *wish)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "error: stoi: the package for it is not installed. Run in a checkout of mcspex: "
            "pip install '.[metrics]'\n"
        )


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_is_one_line_and_no_end_leaves_a_worker(
    number: int, words: list[Path | str], tmp_path: Path
) -> None:
    for folder, suffix in (("e", ".target.wav"), ("t", ".wav"), ("m", ".wav")):
        for copy in range(3000):
            os.link(tmp_path / folder / f"a{suffix}", tmp_path / folder / f"x{copy}{suffix}")
    command = [sys.executable, "-m", "mcspex_cli", "score", *map(str, words), "--workers", "2"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(children(running.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)  # while workers are started, the command does not hear Ctrl-C
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal does
    else:
        running.send_signal(number)
    began = time.monotonic()
    out, said = running.communicate(timeout=60)
    assert (running.returncode, out) == (130 if number == signal.SIGINT else -number, "")
    if number == signal.SIGINT:
        assert said.count("\n") == 1
        assert said.startswith("error: interrupted.")
    with pytest.raises(ProcessLookupError):  # multiprocessing's own tracker ends a little later
        while time.monotonic() < began + 20:
            os.killpg(running.pid, 0)
            time.sleep(0.02)


def test_a_narrow_terminal_cuts_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    def narrow(_: object) -> Console:
        return Console(force_terminal=True, width=80, no_color=True, highlight=False)

    monkeypatch.setattr(console, "_rich", narrow)
    metrics = [f"{name} dB" for name in ("SI-SDR", "SI-SDRi", "SNR", "SDR", "SIR", "SAR")]
    headings = ("file", *metrics, "PESQ", "STOI", "ESTOI", "status")
    name = "4077-13754-0001_5142-33396-0065"
    row = (name, *["-32.48"] * 6, "1.08", "0.228", "-0.010", "silent estimate")
    console.table(headings, [row])
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("-32.48") == 6
    assert "".join(line[1:].split(" ")[0] for line in text.splitlines()[2:]) == name


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("file",), [("9:100:x:[b]",)])
    assert "9:100:x:[b]" in capsys.readouterr().out


# Without a truth.


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch of two of the example set by the bundled model: mix/ and out/."""
    root = tmp_path_factory.mktemp("extracted")
    (root / "mix").mkdir()
    for name in ("awb_1", "slt_2"):
        shutil.copy(EXAMPLES / f"set/mixtures/{name}.flac", root / "mix")
    words = ["batch", root / "mix", *REFS, "--allow-unused", "--passes", "1", "-o", root / "out"]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "file Presence Similarity Speech left status"
    assert re.match(r"mean of 2 (0\.\d\d|1\.00) ", lines[3])
    return root


REFS = ("--refs", EXAMPLES / "set/references", "--pattern", "{speaker}_{n}")
FREE = ("--metrics", "similarity_i,presence,similarity,speech_left")


def test_without_truth_there_are_the_batchs_columns_and_the_mixtures(extracted: Path) -> None:
    done = run(extracted / "out/audio", *REFS, "--mixtures", extracted / "mix", *FREE, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == "These are hints: docs/scores-without-truth.md says what they can tell.\n"
    document = json.loads(done.stdout)
    rows = json.loads((extracted / "out/report.json").read_text())["scores"]
    for row, batch in zip(document["scores"], rows, strict=True):
        assert (row["name"], row["status"], row["confused"]) == (batch["name"], "ok", None)
        assert row["presence"] == batch["presence"] > 0.5
        assert row["similarity"] == pytest.approx(batch["similarity"], abs=0.02)
        # The network hears nothing above 4 kHz, which the files have.
        assert row["speech_left"] == pytest.approx(batch["speech_left"], abs=0.06)
        gain = row["similarity"] - row["input_similarity"]
        assert row["similarity_i"] == pytest.approx(gain)
        assert row["si_sdr_db"] is None
    assert document["summary"]["metrics"]["input_similarity"]["count"] == 2
    gains = {row["name"]: row["similarity_i"] for row in document["scores"]}
    assert document["worst"] == sorted(gains, key=lambda name: gains[name])


def test_truth_and_references_give_both_kinds_of_scores(extracted: Path, tmp_path: Path) -> None:
    truth = (tmp_path / "truth.flac", extracted / "out/audio/slt_2.wav")
    shutil.copy(EXAMPLES / "set/truth/slt_2.flac", truth[0])
    reference = ("--ref", EXAMPLES / "set/references/slt.flac")
    done = run(truth[1], "--truth", truth[0], *reference, "--metrics", "snr,similarity")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "file SNR dB Similarity status"
    assert (done.exit_code, done.stderr) == (0, "")
    limits = ("--fail-under", "similarity=1", "--fail-over", "similarity=0.1")
    done = run(truth[1], *reference, "--metrics", "similarity", *limits)
    assert done.exit_code == 4
    assert re.search(r"Similarity 0.\d\d is under 1; mean .* is over 0.1\.", done.stderr)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "score by what? Add --truth, or for scores without a truth --ref, --refs, --tr"),
        (
            ["--ref", "r.wav", "--refs", "refs"],
            2,
            "--ref names one voice for all files, --refs one for",
        ),
        (["--ref", "r.wav", "--pattern", "{speaker}"], 2, "--pattern means nothing without --refs"),
        (
            ["--ref", "r.wav", "--interferers", "x"],
            2,
            "--interferers means nothing without --truth",
        ),
        (
            ["--metrics", "dnsmos_sig", "--model", "x"],
            2,
            "--model means nothing without --ref or --",
        ),
        (
            ["--truth", "t", "--interferers", "./t"],
            2,
            "--truth and --interferers both name t: give",
        ),
        (["--truth", "t", "--mixtures", "t"], 2, "--truth and --mixtures both name t: give each"),
        (["--ref", "r.wav", "--whisper", "x"], 2, "--whisper means nothing without --transcripts."),
        (["--ref", "r.wav", "--json", "--format", "csv"], 2, "--json and --format csv are two"),
        (["--ref", "r.wav", "--channel", "left"], 2, "--channel left: is none of mix, 0, 1, ..."),
        (["--ref", "r.wav", "--channel", ""], 2, "'--channel': it is empty."),
        (["--ref", "r.wav", "--group-by", ""], 2, "'--group-by': it is empty."),
        (["--ref", "r.wav", "--metrics", "si_sdr"], 2, "--metrics si_sdr needs --truth."),
        (["--ref", "r.wav", "--metrics", "presence"], 2, "needs the estimates of mcspex batch"),
        (["--metrics", "similarity"], 2, "--metrics similarity needs --ref or --refs."),
        (["--ref", "r.wav", "--metrics", "speech_left"], 2, "speech_left needs --mixtures."),
        (["--truth", "none"], 1, "error: none: no such file or folder."),
        (["--refs", "r.wav"], 1, "of references nor an scp. --ref names one voice for all."),
        (["--refs", "refs"], 1, "error: e/b.wav: refs has no reference b. Add it, or say with"),
        (["--ref", "text.wav"], 1, "text.wav: not a readable sound file"),
        (["--ref", "r.wav", "--fail-over", "wer=x"], 2, "--fail-over wer=x: write METRIC=MEAN"),
    ],
)
def test_what_cannot_be_scored_without_truth_is_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("e/a.wav", "e/b.wav", "refs/a.wav", "r.wav"):
        files.make_folders(Path(name).parent)
        audio.write(name, buzz(110, 1), RATE_HZ)
    Path("text.wav").write_text("no sound")
    monkeypatch.setattr(Extractor, "load", None)
    done = run("e", *words)
    assert (done.exit_code, message in done.stderr) == (code, True), done.output
    assert "Traceback" not in done.output


@pytest.mark.skipif(
    bool(importlib.util.find_spec("faster_whisper")), reason="faster-whisper is installed"
)
def test_transcripts_without_a_recogniser_are_one_line(scene: Path) -> None:
    (scene / "t.txt").write_text("hello")
    done = run(scene / "truth.wav", "--transcripts", scene / "t.txt")
    assert (done.exit_code, done.stderr) == (
        1,
        "error: wer: the package for it is not installed. Run in a checkout of mcspex: "
        "pip install '.[transcripts]'\n",
    )


def test_an_estimate_is_not_heard_by_its_constant_offset(scene: Path) -> None:
    truth = audio.read(scene / "truth.wav", RATE_HZ)
    half = np.where(np.arange(len(truth)) < len(truth) // 2, truth, 0)
    shares = []
    for name, offset in (("plain", 0.0), ("offset", 0.2)):
        audio.write(scene / f"{name}.wav", half + np.float32(offset), RATE_HZ)
        words = ("--mixtures", scene / "mixture.wav", "--metrics", "speech_left", "--json")
        (row,) = json.loads(run(scene / f"{name}.wav", *words).stdout)["scores"]
        shares.append(row["speech_left"])
    assert shares == [pytest.approx(0.5, abs=0.05), pytest.approx(shares[0], abs=0.02)]


def test_a_mono_estimate_of_a_stereo_mixture_needs_its_channel(scene: Path) -> None:
    mixture = audio.read(scene / "mixture.wav", RATE_HZ)
    audio.write(scene / "mixture.wav", np.stack([mixture, 0.5 * mixture]), RATE_HZ)
    words = (scene / "truth.wav", "--mixtures", scene / "mixture.wav", "--metrics", "speech_left")
    done = run(*words)
    assert done.stderr.splitlines()[-1] == (
        f"error: {scene}/mixture.wav: 2 channels, but {scene}/truth.wav has 1. Say with --channel "
        "what of it was extracted: mix, 0, 1, ..."
    )
    for channel in ("mix", "1"):
        assert run(*words, "--channel", channel).exit_code == 0
    assert "has no channel 2. It has 2" in run(*words, "--channel", "2").stderr
