"""One document and its forms, groups, baselines, thresholds."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcspex_cli.errors import AudioError, ConfigError, OutputError, PairingError
from mcspex_cli.evaluation import reports, tables
from mcspex_cli.evaluation.baselines import Baseline, compare, read_baseline
from mcspex_cli.evaluation.groups import NONE, read_groups


def rows(count: int = 4, shift_db: float = 0.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"case{n}",
            "status": "ok",
            "note": "",
            "si_sdr_db": float(rng.normal(10, 3)) + shift_db,
            "pesq": None,
            "confused": False,
        }
        for n in range(count)
    ]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Groups.


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("id,group,pair\na,same,x\nb,other,y\n", None),
        ("pair,id,group\nx,a,same\ny,b,other\n", "group"),
        ("\ufeffname,gender\na.wav,same\ndeep/b.target.flac,other\n", None),
        ("sex,ID\nsame,s1/a.wav\nother,b\n", "sex"),
    ],
)
def test_groups_are_found_by_name_with_or_without_suffix(
    tmp_path: Path, text: str, column: str | None
) -> None:
    groups = read_groups(write(tmp_path / "g.csv", text), column)
    assert [groups.of(name) for name in ("a", "b", "a.wav", "c")] == ["same", "other", "same", NONE]


def test_folders_decide_where_file_names_are_alike(tmp_path: Path) -> None:
    text = "id,group\nx/a,one\ny/a,two\nz/b,\n"
    groups = read_groups(write(tmp_path / "g.csv", text))
    assert [groups.of(n) for n in ("x/a", "y/a", "a", "b")] == ["one", "two", NONE, NONE]


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("case,group\na,x\n", None, "no column id or name. It has case, group."),
        ("", None, "no column id or name. It has none."),
        ("id,sex,age\na,f,3\n", None, "which column to group by? --group-by sex, age."),
        ("id\na\n", None, "which column to group by? --group-by none."),
        ("id,sex\na,f\n", "age", "no column age to group by. It has sex."),
    ],
)
def test_a_csv_that_does_not_say_the_groups_is_one_line(
    tmp_path: Path, text: str, column: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read_groups(write(tmp_path / "g.csv", text), column)
    assert str(error.value) == f"{tmp_path / 'g.csv'}: {message}"


def test_a_file_of_groups_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_bytes(b"id,group\n\xff\xfe,x\n")
    with pytest.raises(ConfigError, match="cannot be read as CSV"):
        read_groups(tmp_path / "g.csv")
    with pytest.raises(AudioError, match="no such file"):
        read_groups(tmp_path / "none.csv")


# Baselines.


def test_a_paired_interval_holds_the_known_shift_and_is_narrow(tmp_path: Path) -> None:
    now = rows(40, 1.5)
    for number, row in enumerate(now):
        row["si_sdr_db"] += 0.2 * (-1) ** number
    report = tmp_path / "report.json"
    reports.write(report, reports.build([*rows(40), {"name": "gone", "status": "ok"}]))
    now.append({"name": "new", "status": "ok"})
    found = compare(now, read_baseline(report))
    assert (found["both"], found["only_here"], found["only_there"]) == (40, 1, 1)
    change = found["metrics"]["si_sdr_db"]
    assert change["low"] <= 1.5 <= change["high"]
    assert change["high"] - change["low"] < 0.2  # the two means' own intervals are ten times that
    assert len(found["differences"]) == 40
    assert found["differences"][3]["name"] == "case3"
    assert found["differences"][3]["si_sdr_db"] == pytest.approx(
        now[3]["si_sdr_db"] - rows(40)[3]["si_sdr_db"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is no report of mcspex"),
        ('{"scores": []}', "is no report of mcspex"),
        ('{"format": 9, "scores": []}', "a report in format 9, this version reads 1"),
        ('{"format": 1}', "its scores are damaged"),
        ('{"format": 1, "scores": [3]}', "its scores are damaged"),
        ('{"format": 1, "scores": [{"name": "a"}]}', "its scores are damaged"),
        (
            '{"format": 1, "scores": [{"name": "a", "status": "ok", "snr_db": NaN}]}',
            "its scores are damaged",
        ),
        (
            '{"format": 1, "scores": [{"name": "a", "status": "ok", "pesq": "3"}]}',
            "its scores are damaged",
        ),
    ],
)
def test_a_baseline_that_is_none_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_baseline(write(tmp_path / "b.json", text))
    assert str(error.value).startswith(f"{tmp_path / 'b.json'}: ")
    assert "\n" not in str(error.value)


def test_a_baseline_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        read_baseline(tmp_path / "none.json")


def test_a_baseline_of_other_cases_is_refused() -> None:
    other = Baseline(Path("b.json"), ({"name": "else", "status": "ok"},))
    with pytest.raises(PairingError, match="has none of these cases"):
        reports.build(rows(), baseline=other)


# The document.


def test_a_document_has_everything_and_no_nan(tmp_path: Path) -> None:
    made = rows(3)
    made[1]["seconds"] = math.nan
    made[2] |= {"seconds": 1.5, "references": ["r.wav"], "group": "overwritten"}
    groups = read_groups(write(tmp_path / "g.csv", "id,group\ncase0,x\ncase1,x\ngone,y\n"))
    document = reports.build(made, ["gone"], groups)
    again = json.loads(reports.document_text(document, "json"))
    assert again == document
    assert list(document) == ["format", "summary", "groups", "worst", "baseline", "scores"]
    assert list(document["groups"]) == [NONE, "x", "y"]
    assert document["groups"]["x"].keys() == document["summary"].keys()
    assert document["groups"]["y"]["missing_estimates"] == 1
    assert [row["group"] for row in document["scores"]] == ["x", "x", NONE]
    assert document["scores"][1]["seconds"] is None
    assert document["baseline"] is None
    assert tables.remarks(document) == [
        "1 truths have no estimate; the means are without them.",
        f"1 files are in no row of the groups; they are in group {NONE}.",
    ]


def test_csv_has_known_columns_first_and_none_that_are_empty() -> None:
    made = rows(2)
    made[0] |= {"seconds": 2.5, "references": ["r, s.wav"]}
    made.append({"name": "=broken,\n", "status": "failed", "note": "no memory"})
    text = reports.document_text(reports.build(made), "csv")
    read = list(csv.DictReader(io.StringIO(text)))
    head = ["name", "si_sdr_db", "confused", "status", "note", "seconds", "references"]
    assert list(read[0]) == head
    assert float(read[0]["si_sdr_db"]) == made[0]["si_sdr_db"]
    assert read[0]["confused"] == "false"
    assert json.loads(read[0]["references"]) == ["r, s.wav"]
    assert (read[2]["name"], read[2]["si_sdr_db"], read[2]["note"]) == (
        "=broken,\n",
        "",
        "no memory",
    )


def test_markdown_has_tables_and_remarks(tmp_path: Path) -> None:
    made = rows(2)
    made[0] |= {"name": "a|b", "confused": True}
    made.append({"name": "c", "status": "silent truth", "note": ""})
    text = reports.document_text(reports.build(made), "markdown")
    lines = text.splitlines()
    assert lines[0] == "| file | SI-SDR dB | status |"
    assert lines[1] == "| --- | ---: | ---: |"
    assert lines[2].startswith("| a\\|b | ")
    assert lines[2].endswith(" | confused |")
    assert lines[4] == "| c | - | silent truth |"
    assert lines[5].startswith("| **mean of 2** | **")
    assert "## Means" in lines
    assert "- 1 of 3 files are not in the means: 1 silent truth." in lines
    assert lines[-1] == "- target confusion: 1 of 2 (50.0 %): a|b"


def test_many_files_are_listed_only_if_asked_for() -> None:
    document = reports.build(rows(60))
    short, full = tables.tables(document)[0], tables.tables(document, every=True)[0]
    assert [row[0] for row in short.rows] == document["worst"]
    assert short.title == "The worst 10 of 60 files by SI-SDR dB"
    assert len(full.rows) == 60
    assert "case59" in reports.document_text(document, "markdown")


def test_a_baseline_shows_as_a_column_and_a_table() -> None:
    before = Baseline(Path("old.json"), tuple(rows(4)))
    made = tables.tables(reports.build(rows(4, -2.0), baseline=before))
    assert made[0].headings == ("file", "SI-SDR dB", "change", "status")
    assert made[0].rows[0][2] == "-2.00"
    assert made[-1].title == "Change since old.json: 4 files in both, 0 only here, 0 only there"
    assert made[-1].rows == [("SI-SDR dB", "-2.00", "-2.00 to -2.00", "-2.00", "4")]


# Files and thresholds.


@pytest.mark.parametrize("suffix", [".json", ".csv", ".md", ".MD"])
def test_a_file_holds_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    document = reports.build(rows())
    path = tmp_path / "new" / f"report{suffix}"
    reports.check_outputs([path], [])
    reports.write(path, document)
    form = reports.FORMATS[suffix.lower()]
    assert path.read_text() == reports.document_text(document, form)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    made = [{**rows(1)[0], "name": "caf\udce9"}]
    reports.write(tmp_path / "r.csv", reports.build(made))
    assert b"caf\xe9" in (tmp_path / "r.csv").read_bytes()


def test_outputs_that_cannot_be_are_refused_before(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"unknown format. End the name in .json, .csv, .md"):
        reports.check_outputs([tmp_path / "report.txt"], [])
    (tmp_path / "folder.csv").mkdir()
    for path in ("base.json", "folder.csv"):
        with pytest.raises(OutputError, match="is an input or a folder"):
            reports.check_outputs([tmp_path / path], [None, tmp_path / "base.json"])
    write(tmp_path / "file", "")
    with pytest.raises(OutputError, match="cannot make this folder"):
        reports.write(tmp_path / "file" / "r.csv", reports.build(rows()))


def test_means_under_their_limit_are_named() -> None:
    document = reports.build(rows())
    mean = document["summary"]["metrics"]["si_sdr_db"]["mean"]
    assert reports.shortfalls(document, {"si_sdr_db": mean}) == []
    assert reports.shortfalls(document, {"si_sdr_db": 40.0}) == [
        f"mean SI-SDR dB {mean:.2f} is under 40"
    ]
    with pytest.raises(PairingError, match="--fail-under pesq: no file has a value"):
        reports.shortfalls(document, {"pesq": 2.0})
