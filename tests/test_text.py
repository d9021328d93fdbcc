"""Text of unknown origin on a terminal; tests/evaluation/test_tables.py has CSV and Markdown."""

from __future__ import annotations

import pytest

from mcspex_cli.text import csv_cell, line, markdown, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\x9b2J\x07\x00", "\\x9b2J\\x07\\x00"),
        ("rtl\u202egpj.exe", "rtl\\u202egpj.exe"),
        ("\u2066x\u2069\u200f\u061c", "\\u2066x\\u2069\\u200f\\u061c"),
        ("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85"),
        ("caf\udce9", "caf\\udce9"),
        ("日本 ünï\ttab", "日本 ünï\ttab"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == line(text) == shown


def test_a_line_has_no_line_ends_and_can_be_cut() -> None:
    assert printable("a\r\nb") == "a\r\nb"
    assert line("a\r\nb") == "a\\r\\nb"
    assert line("abcdef", 3) == "abc..."


def test_cells_of_csv_and_markdown() -> None:
    assert [csv_cell(value) for value in (-1.5, None, True, [1, "a"], "a,b", "x=1")] == [
        -1.5, None, "true", '[1, "a"]', "a,b", "x=1",
    ]  # fmt: skip
    assert csv_cell("\uff1d1") == "'\uff1d1"
    assert markdown("<b>&*x*|\n") == "&lt;b&gt;&amp;\\*x\\*\\|\\\\n"
