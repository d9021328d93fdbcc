"""A report as tables, remarks and files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from mcspex_cli.errors import OutputError
from mcspex_cli.evaluation import tables
from mcspex_cli.evaluation.cases import NO_GROUP, Groups
from mcspex_cli.evaluation.summary import Baseline, report
from tests.evaluation.test_summary import row, rows


def test_remarks_say_what_a_reader_of_the_means_has_to_know() -> None:
    made = [
        *rows(2),
        row("c", None, "silent truth"),
        row("d", 1.0, note="cut to 9 samples. d.wav: odd."),
    ]
    lines = tables.remarks(report(made, ["gone", "lost"], Groups({"case0": "x"})))
    assert lines == [
        "not in the means: 1 of 4 files (1 silent truth).",
        "truths without an estimate: 2. The means do not include them.",
        "files cut to the length of their truth: 1. They were a little longer or shorter.",
        "files that are damaged but could be read: 1. The column note of the JSON or CSV report "
        "says which.",
        f"files in no group: 3. The tables show them as {NO_GROUP}.",
    ]
    assert tables.remarks(report(rows())) == []


def test_csv_has_known_columns_first_and_none_that_are_empty() -> None:
    made = rows(2)
    made[0] |= {"seconds": 2.5, "references": ["r, s.wav"], "confused": False}
    made.append({"name": "broken", "status": "failed", "note": "no memory"})
    read = list(csv.DictReader(io.StringIO(tables.as_csv(report(made)))))
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
    text = tables.as_csv(report(made))
    assert text.count("\n") == len(made) + 1
    read = list(csv.DictReader(io.StringIO(text)))
    shown = [each["name"] for each in read]
    assert shown[:5] == ["'=1+1", "'+1", "'-1|x", "'@SUM(A1)", "'\t'=1"]
    assert shown[5:] == ["\\x1b[2J", "a\\nb\\r", "<b>", "\\u202e\\u2028"]
    assert {each["si_sdr_db"] for each in read} == {"-1.5"}  # numbers stay numbers


def test_names_make_no_html_and_no_rows_in_markdown() -> None:
    names = [*HOSTILE, "a|b", "[x](http://y)", "![x](http://y)", "`c`", "a_b"]
    text = tables.as_markdown(report([row(name, 1.0, confused=True) for name in names]))
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
    lines = tables.as_markdown(report(made)).splitlines()
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
    known = report(rows(60))
    short, full = tables.tables(known)[0], tables.tables(known, every=True)[0]
    assert [line[0] for line in short.rows] == known.worst
    assert short.title == "The worst 10 of 60 files by SI-SDR dB"
    assert len(full.rows) == 60
    assert "case59" in tables.as_markdown(known)


def test_a_baseline_shows_as_a_column_and_a_table() -> None:
    parts = tables.tables(report(rows(4, -2.0), baseline=Baseline(Path("old.json"), rows(4))))
    assert parts[0].headings == ("file", "SI-SDR dB", "change", "status")
    assert parts[0].rows[0][2] == "-2.00"
    title = "Change since old.json (files in both: 4, only here: 0, only there: 0)"
    assert parts[-1].title == title
    assert parts[-1].rows == [("SI-SDR dB", "-2.00", "-2.00 to -2.00", "-2.00", "4")]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".md", ".MD"])
def test_a_file_has_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    known = report(rows())
    path = tmp_path / "new" / f"report{suffix}"
    tables.check_outputs([path], [])
    tables.write(path, known)
    texts = {end: form(known) for end, form in tables.REPORT_FORMATS.values()}
    assert path.read_text() == texts[suffix.lower()]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    tables.write(tmp_path / "r.csv", report([row("caf\udce9", 1.0)]))
    assert b"caf\xe9" in (tmp_path / "r.csv").read_bytes()


def test_outputs_that_cannot_be_are_refused_before(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"The name must end in .json, .csv, .md"):
        tables.check_outputs([tmp_path / "report.txt"], [])
    (tmp_path / "folder.csv").mkdir()
    for path in ("base.json", "folder.csv"):
        with pytest.raises(OutputError, match="is an input or a folder"):
            tables.check_outputs([tmp_path / path], [None, tmp_path / "base.json"])
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make this folder"):
        tables.write(tmp_path / "file" / "r.csv", report(rows()))
