"""Text of unknown origin on a terminal; tests/evaluation/test_report.py has CSV and Markdown."""

from __future__ import annotations

import json

import pytest

from mcspex_cli.errors import csv_cell, line, markdown, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\x9b2J\x07\x00", "\\x9b2J\\x07\\x00"),
        ("rtl\u202egpj.exe", "rtl\\u202egpj.exe"),
        ("\u2066x\u2069\u200f\u061c", "\\u2066x\\u2069\\u200f\\u061c"),
        ("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85"),
        ("a\u200bb\ufeff\u00ad", "a\\u200bb\\ufeff\\xad"),
        ("a\U000e0041\ufff9", "a\\U000e0041\\ufff9"),
        ("caf\udce9", "caf\\udce9"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),
        ("日本 ünï\ttab", "日本 ünï\ttab"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == line(text) == shown


def test_a_line_has_no_line_ends_and_can_be_cut() -> None:
    assert printable("a\r\nb") == "a\r\nb"
    assert line("a\r\nb") == "a\\r\\nb"
    assert line("abcdef", 3) == "abc..."


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (-1.5, -1.5),
        (None, None),
        (True, "true"),
        ([1, "a"], '[1, "a"]'),
        ("a,b", "a,b"),
        ("-1.50", "-1.50"),
        ("-1.5+1", "'-1.5+1"),
        ("x=1", "x=1"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", "'\t'=1"),
        ("a;=1;b;-2", "a;'=1;b;'-2"),  # where semicolons separate cells
        ("a\t@b", "a\t'@b"),
        (["a;=1"], '["a;\\u003d1"]'),
    ],
)
def test_a_cell_of_csv_runs_nothing(value: object, cell: object) -> None:
    assert csv_cell(value) == cell
    if isinstance(value, list):
        assert json.loads(str(cell)) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>&*x*|\n", "&lt;b&gt;&amp;\\*x\\*\\|\\\\n"),
        ("__init__ a_b _c_", "\\_\\_init\\_\\_ a_b \\_c\\_"),
    ],
)
def test_a_cell_of_markdown_shows_its_text(text: str, shown: str) -> None:
    assert markdown(text) == shown
