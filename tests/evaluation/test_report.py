"""Means, intervals, ranks, groups, baselines; reports as tables, remarks and files."""

from __future__ import annotations

import csv
import io
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcspex_cli.errors import AudioError, ConfigError, OutputError, PairingError
from mcspex_cli.evaluation import report as reports
from mcspex_cli.evaluation.metrics import METRICS
from mcspex_cli.evaluation.report import (
    NO_GROUP,
    Baseline,
    Distribution,
    Groups,
    Summary,
    make_report,
    read_groups,
)


def row(name: str, si_sdr_db: float | None, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {"name": name, "status": status, "note": "", "si_sdr_db": si_sdr_db, **more}


def rows(count: int = 4, shift_db: float = 0.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [row(f"case{n}", float(rng.normal(10, 3)) + shift_db) for n in range(count)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Means.


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        mean = reports.distribution(rng.normal(5, 2, 60))
        covered += mean.low <= 5 <= mean.high  # type: ignore[operator]
    assert 88 <= covered <= 99


def test_an_interval_is_as_wide_as_the_normal_law_says_and_always_the_same() -> None:
    values = list(np.random.default_rng(2).normal(0, 3, 1000))
    mean = reports.distribution(values)
    width = 2 * 1.96 * np.std(values) / np.sqrt(1000)
    assert mean.high - mean.low == pytest.approx(width, rel=0.08)  # type: ignore[operator]
    assert reports.distribution(values) == mean


def test_one_value_has_no_interval_and_equal_ones_an_empty_one() -> None:
    assert reports.distribution([3.0]) == Distribution(1, 3.0, None, None, 3.0)
    assert reports.distribution([3.0] * 5) == Distribution(5, 3.0, 3.0, 3.0, 3.0)


def test_memory_does_not_grow_with_rows_times_resamples() -> None:
    values = list(np.random.default_rng(3).normal(0, 1, 10_000))
    tracemalloc.start()
    reports.distribution(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20  # all draws at once would be 160 MB and more


def test_only_ok_rows_are_in_the_means_and_all_are_counted() -> None:
    made = [
        row("a", 1.0, confused=True),
        row("b", 4.0, confused=False),
        row("c", 99.0, "sign flipped", confused=True),
        row("d", None, "unreadable"),
        {"name": "e", "status": "failed", "note": "out of memory"},
    ]
    means = reports.summarise(made, missing_estimates=2)
    assert (means.files, means.scored, means.confused, means.missing_estimates) == (5, 2, 1, 2)
    assert means.statuses == {"ok": 2, "sign flipped": 1, "unreadable": 1, "failed": 1}
    assert list(means.metrics) == ["si_sdr_db"]
    mean = means.metrics["si_sdr_db"]
    assert (mean.count, mean.mean, mean.median) == (2, 2.5, 2.5)


def test_rows_without_truth_are_in_the_means_only_where_no_row_has_one() -> None:
    unscored = [row("a", None, "done", presence=0.5), row("b", None, "failed")]
    means = reports.summarise(unscored)
    assert (means.files, means.scored, means.metrics["presence"].mean) == (2, 1, 0.5)
    both = make_report([*unscored, row("c", 1.0, presence=0.9)])
    assert (both.summary.scored, both.summary.metrics["presence"].mean) == (1, 0.9)
    assert reports.remarks(both) == [
        "not in the means: 2 of 3 files (1 without a truth, 1 failed)."
    ]


def test_nothing_is_known_of_nothing() -> None:
    assert reports.summarise([]) == Summary(0, 0, {}, None, 0, {})
    assert reports.worst([]) == []


def test_the_worst_are_by_improvement_if_there_is_one() -> None:
    made = [row(f"r{n:02d}", float(n)) for n in range(20)]
    assert reports.worst(made) == [f"r{n:02d}" for n in range(10)]
    made.append(row("gain", 50.0, si_sdr_i_db=-3.0))
    made.append(row("flipped", 50.0, "sign flipped", si_sdr_i_db=-9.0))
    assert reports.worst(made) == ["gain"]
    assert reports.worst([row("a", None, stoi=0.5), row("b", None, stoi=0.1)]) == ["b", "a"]


def test_the_worst_by_a_number_that_should_be_low_are_the_highest() -> None:
    made = [row("a", None, wer=0.5, speech_left=0.9), row("b", None, wer=1.5, speech_left=0.1)]
    assert reports.worst(made) == ["b", "a"]
    assert reports.ranking(made) == METRICS["wer"]
    assert reports.ranking([row("a", None, speech_left=0.9, input_wer=2.0)]) is None
    made[0]["similarity_i"] = 0.2
    assert reports.worst(made) == ["a"]


# Groups.


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("id,group,pair\na,same,x\nb,other,y\n", None),
        ("pair,id,group\nx,a,same\ny,b,other\n", "group"),
        ("\ufeffname,gender\na.wav,same\ndeep/b.target.flac,other\n", None),
        ("sex,ID\nsame,s1/a.m4a\nother,b\n", "sex"),
    ],
)
def test_groups_are_matched_by_name_with_or_without_suffix(
    tmp_path: Path, text: str, column: str | None
) -> None:
    groups = read_groups(write(tmp_path / "g.csv", text), column)
    names = ("a", "b", "a.wav", "c")
    assert [groups.of(name) for name in names] == ["same", "other", "same", NO_GROUP]


def test_folders_decide_where_file_names_are_the_same(tmp_path: Path) -> None:
    groups = read_groups(write(tmp_path / "g.csv", "id,group\nx/a,one\ny/a,two\nz/b,\n"))
    assert [groups.of(n) for n in ("x/a", "y/a", "a", "b")] == ["one", "two", NO_GROUP, NO_GROUP]


def test_groups_tell_a_mixture_from_the_estimate_of_another(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("id,sex\na.wav,f\na.target.wav,m\nb.target,x\n")
    groups = read_groups(tmp_path / "g.csv")
    assert [groups.of(name) for name in ("a", "a.wav", "a.target", "b")] == ["f", "f", "m", "x"]


def test_groups_may_have_titles(tmp_path: Path) -> None:
    path = write(tmp_path / "g.csv", "\ufeffname,sex,group,title\na.wav,f,one,A & B\nb,m,,\n")
    groups = read_groups(path)
    assert (groups.by_name, groups.titles) == ({"a": "one"}, {"a": "A & B"})
    assert read_groups(path, "sex").of("b") == "m"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("case,group\na,x\n", None, "has no column id or name. Its columns: case, group."),
        ("", None, "has no column id or name. Its columns: none."),
        ("ID\na\n", "sex", "has no column but ID. Add one with the groups."),
        (
            "id,sex,age\na,f,3\n",
            None,
            "does not say which column has the groups. Name one with --group-by: sex, age.",
        ),
        ("id,sex\na,f\n", "age", "has no column age. Name one with --group-by: sex."),
        ("id,sex\na,f\na.wav,m\n", None, "a is in two groups. Remove one of its lines."),
        ("id,sex,sex\na,f,m\n", "sex", "has two columns sex. Remove one."),
    ],
)
def test_a_csv_that_does_not_say_the_groups_is_one_line(
    tmp_path: Path, text: str, column: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read_groups(write(tmp_path / "g.csv", text), column)
    assert str(error.value) == f"{tmp_path / 'g.csv'}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,sex\n\na,f,x\n", "3: has 3 columns, not 2."),
        ('id,sex\n"a,f\nb,m\n', "2: unexpected end of data. Check its quotes."),
    ],
)
def test_a_row_of_groups_that_cannot_be_read_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"g.csv line {message}$"):
        read_groups(write(tmp_path / "g.csv", text))


@pytest.mark.parametrize("text", ["\n id ; Sex\n\na ; f\n;\n", "id\tSex\r\na\tf\r\n"])
def test_groups_are_separated_like_manifests(tmp_path: Path, text: str) -> None:
    assert read_groups(write(tmp_path / "g.csv", text)).by_name == {"a": "f"}


def test_groups_that_are_not_text_or_not_there_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_bytes(b"id,group\n\xff\xfe,x\n")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_groups(tmp_path / "g.csv")
    with pytest.raises(AudioError, match="no such file"):
        read_groups(tmp_path / "none.csv")


# Baselines.


def test_a_paired_interval_holds_the_known_shift_and_is_narrow(tmp_path: Path) -> None:
    now = rows(40, 1.5)
    for number, each in enumerate(now):
        each["si_sdr_db"] += 0.2 * (-1) ** number
    before = make_report([*rows(40), row("gone", None), row("flipped", 3.0, "sign flipped")])
    reports.write(tmp_path / "report.json", before)
    now += [row("new", None), row("flipped", 3.0)]
    change = make_report(now, baseline=reports.read_baseline(tmp_path / "report.json")).change
    assert change
    assert (change.both, change.only_here, change.only_there) == (40, 2, 1)
    gain = change.metrics["si_sdr_db"]
    assert gain.low <= 1.5 <= gain.high  # type: ignore[operator]
    assert gain.high - gain.low < 0.2  # type: ignore[operator] # the two means' are ten times that
    assert change.differences[3] == {
        "name": "case3",
        "si_sdr_db": pytest.approx(now[3]["si_sdr_db"] - rows(40)[3]["si_sdr_db"]),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 200_000, "cannot be read as JSON"),
        ("[1]", "is not a report of mcspex"),
        ('{"scores": []}', "is not a report of mcspex"),
        ('{"format": 9, "scores": []}', "in format 9, but this version of mcspex reads format 1"),
        ('{"format": 1}', "its scores are damaged"),
        ('{"format": 1, "scores": [3]}', "its scores are damaged"),
        ('{"format": 1, "scores": [{"name": "a"}]}', "its scores are damaged"),
        (
            r'{"format": 1, "scores": [{"name": "a", "status": "ok", "truth": "a\u0000"}]}',
            "damaged",
        ),
        ('{"format": 1, "scores": [{"name": "a", "status": "ok", "snr_db": NaN}]}', "damaged"),
        ('{"format": 1, "scores": [{"name": "a", "status": "ok", "pesq": "3"}]}', "damaged"),
        (f'{{"format": 1, "scores": [{{"name": "a", "status": "ok", "snr_db": {10**400}}}]}}', "d"),
        ('{"format": 1, "scores": [{"name": "a", "status": "ok", "snr_db": 1e300}]}', "damaged"),
        ('{"format": 1, "scores": [{"name": "a", "status": "ok", "confused": "no"}]}', "damaged"),
        (json.dumps({"format": 1, "scores": [row("a", 1.0)] * 3}), "has a 3 times"),
    ],
)
def test_what_is_not_a_baseline_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        reports.read_baseline(write(tmp_path / "b.json", text))
    assert str(error.value).startswith(f"{tmp_path / 'b.json'}: ")
    assert "\n" not in str(error.value)


def test_a_baseline_that_is_missing_or_of_other_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        reports.read_baseline(tmp_path / "none.json")
    with pytest.raises(PairingError, match="has none of these cases"):
        reports.check_baseline(Baseline(Path("b.json"), [row("else", 1.0)]), ["case0"])


# The report.


def test_a_report_has_everything_and_no_nan(tmp_path: Path) -> None:
    made = rows(3)
    made[1]["seconds"] = math.nan
    made[2] |= {"seconds": 1.5, "references": ["r.wav"], "group": "overwritten"}
    groups = read_groups(write(tmp_path / "g.csv", "id,group\ncase0,x\ncase1,x\ngone,y\n"))
    known = json.loads(reports.as_json(make_report(made, ["gone"], groups)))
    assert list(known) == ["format", "summary", "groups", "worst", "baseline", "scores"]
    assert list(known["groups"]) == [NO_GROUP, "x", "y"]
    assert known["groups"]["x"].keys() == known["summary"].keys()
    assert known["groups"]["y"]["missing_estimates"] == 1
    assert [each["group"] for each in known["scores"]] == ["x", "x", NO_GROUP]
    assert known["scores"][1]["seconds"] is None
    assert known["baseline"] is None


def test_remarks_say_what_a_reader_of_the_means_has_to_know() -> None:
    made = [
        *rows(2),
        row("c", None, "silent truth"),
        row("d", 1.0, note="cut to 9 samples. d.wav: odd.", cut=True, damaged=True),
    ]
    lines = reports.remarks(make_report(made, ["gone", "lost"], Groups({"case0": "x"})))
    assert lines == [
        "not in the means: 1 of 4 files (1 silent truth).",
        "truths without an estimate: 2 (gone, lost). The means do not include them.",
        "files cut to equal lengths: 1. Their lengths differed a little.",
        "files that are damaged but could be read: 1. The column note of the JSON or CSV report "
        "says which.",
        f"files in no group: 3. The tables show them as {NO_GROUP}.",
    ]
    assert reports.remarks(make_report(rows()), ["si_sdr"]) == []


def test_confusion_is_a_share_of_the_files_that_can_be_judged() -> None:
    verdicts = [True, False, None, None]
    made = make_report([row(f"{n}", 1.0, confused=verdict) for n, verdict in enumerate(verdicts)])
    assert reports.confusion_text(made) == "target confusion: 1 of 2 (50.0 %): 0"
    assert reports.confusion_text(make_report([row("a", 1.0, confused=None)])) == ""


def test_what_was_to_be_computed_or_compared_and_has_no_value_is_said() -> None:
    made = make_report(rows(2), baseline=Baseline(Path("b.json"), [row("case0", None, stoi=0.5)]))
    assert reports.remarks(made, ["si_sdr", "si_sdr_i", "pesq", "wer"]) == [
        "no file has a value of SI-SDRi, PESQ. docs/batch-and-score.md explains why a value may be "
        "missing.",
        "no file has a value of WER. docs/scores-without-truth.md explains why a value may be "
        "missing.",
        "b.json: no case has a value in it and here. Nothing is compared.",
    ]
    assert [table.title for table in reports.tables(made)] == ["", "Means"]
    silent = make_report([row("a", None, "silent estimate")])
    assert len(reports.remarks(silent, ["si_sdr"])) == 1


def test_csv_has_known_columns_first_and_none_that_are_empty() -> None:
    made = rows(2)
    made[0] |= {"seconds": 2.5, "references": ["r, s.wav"], "confused": False, "segments": [1]}
    made.append({"name": "broken", "status": "failed", "note": "no memory"})
    read = list(csv.DictReader(io.StringIO(reports.as_csv(make_report(made)))))
    head = ["name", "si_sdr_db", "confused", "status", "note", "seconds", "references"]
    assert list(read[0]) == head
    assert float(read[0]["si_sdr_db"]) == made[0]["si_sdr_db"]
    assert read[0]["confused"] == "false"
    assert json.loads(read[0]["references"]) == ["r, s.wav"]
    assert (read[2]["name"], read[2]["si_sdr_db"], read[2]["note"]) == ("broken", "", "no memory")


HOSTILE = [
    "=1+1",
    "+1",
    "-1|x",
    "@SUM(A1)",
    "\t=1",
    "\x1b[2J",
    "a\nb\r",
    "<b>",
    "\u202e\u2028",
]


def test_names_run_nothing_in_a_spreadsheet_and_stay_on_their_line() -> None:
    made = [row(name, -1.5) for name in HOSTILE]
    text = reports.as_csv(make_report(made))
    assert text.count("\n") == len(made) + 1
    read = list(csv.DictReader(io.StringIO(text)))
    shown = [each["name"] for each in read]
    assert shown[:5] == ["'=1+1", "'+1", "'-1|x", "'@SUM(A1)", "'\t'=1"]
    assert shown[5:] == ["\\x1b[2J", "a\\nb\\r", "<b>", "\\u202e\\u2028"]
    assert {each["si_sdr_db"] for each in read} == {"-1.5"}  # numbers stay numbers


def test_names_make_no_html_and_no_rows_in_markdown() -> None:
    names = [*HOSTILE, "a|b", "[x](http://y)", "![x](http://y)", "`c`", "a_b"]
    text = reports.as_markdown(make_report([row(name, 1.0, confused=True) for name in names]))
    lines = text.splitlines()
    table = lines[2 : lines.index("")]
    assert len(table) == len(names) + 1  # the means
    assert all(line.count("|") - line.count("\\|") == 4 for line in table)
    for part in ("<", "\x1b", "\u202e", "\u2028", " [x]", "![x]"):
        assert part not in text
    assert "| &lt;b&gt; |" in text
    assert "| a\\|b |" in text
    assert "| a_b |" in text


def test_markdown_has_tables_and_remarks() -> None:
    made = rows(2)
    made[0] |= {"name": "a", "confused": True}
    made[1] |= {"confused": False}
    made.append(row("c", None, "silent truth"))
    lines = reports.as_markdown(make_report(made)).splitlines()
    assert lines[0] == "| file | SI-SDR dB | status |"
    assert lines[1] == "| --- | ---: | ---: |"
    assert lines[2].startswith("| a | ")
    assert lines[2].endswith(" | confused |")
    assert lines[4] == "| c | - | silent truth |"
    assert lines[5].startswith("| **mean of 2** | **")
    assert "## Means" in lines
    assert "- not in the means: 1 of 3 files (1 silent truth)." in lines
    assert lines[-1] == "- target confusion: 1 of 2 (50.0 %): a"


def test_many_files_are_listed_only_if_asked_for() -> None:
    known = make_report(rows(60))
    short, full = reports.tables(known)[0], reports.tables(known, every=True)[0]
    assert [line[0] for line in short.rows] == known.worst
    assert short.title == "The worst 10 of 60 files by SI-SDR dB"
    assert len(full.rows) == 60
    assert "case59" in reports.as_markdown(known)


def test_a_baseline_shows_as_a_column_and_a_table() -> None:
    parts = reports.tables(make_report(rows(4, -2.0), baseline=Baseline(Path("old.json"), rows(4))))
    assert parts[0].headings == ("file", "SI-SDR dB", "change", "status")
    assert parts[0].rows[0][2] == "-2.00"
    title = "Change since old.json (files in both: 4, only here: 0, only there: 0)"
    assert parts[-1].title == title
    assert parts[-1].rows == [("SI-SDR dB", "-2.00", "-2.00 to -2.00", "-2.00", "4")]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".md", ".MD"])
def test_a_file_has_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    known = make_report(rows())
    path = tmp_path / "new" / f"report{suffix}"
    reports.check_outputs([path], [])
    reports.write(path, known)
    texts = {end: form(known) for end, form in reports.REPORT_FORMATS.values()}
    assert path.read_text() == texts[suffix.lower()]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    reports.write(tmp_path / "r.csv", make_report([row("caf\udce9", 1.0)]))
    assert b"caf\xe9" in (tmp_path / "r.csv").read_bytes()


def test_outputs_that_cannot_be_are_refused_before(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"End the name in .json, .csv, .md"):
        reports.check_outputs([tmp_path / "report.txt"], [])
    (tmp_path / "folder.csv").mkdir()
    for path, message in (("base.json", "is an input"), ("folder.csv", "is a folder")):
        with pytest.raises(OutputError, match=message):
            reports.check_outputs([tmp_path / path], [None, tmp_path / "base.json"])
    for name in ("audio", "journal"):
        (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"report.json: is the report of a batch. Choose"):
        reports.check_outputs([tmp_path / "out/report.json"], [])
    with pytest.raises(OutputError, match=r"run.json: is the record of a batch. Choose"):
        reports.check_outputs([tmp_path / "out/run.json"], [])
    reports.check_outputs([tmp_path / "out/scores.json"], [])
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make this folder"):
        reports.write(tmp_path / "file" / "r.csv", make_report(rows()))
