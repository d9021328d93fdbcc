"""Text of unknown origin, such as file names, made safe for terminals, tables, spreadsheets."""

from __future__ import annotations

import json
import re
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # controls other than tab, line feed, carriage return
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reverse the order of what follows
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff"  # what is not seen
    "\ufff9-\ufffb\U000e0000-\U000e007f"
    "\u2028\u2029]"  # line and paragraph separators
)

_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r"})

_MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown gives a meaning; an underscore has none within a word."""

_FORMULA = re.compile(r"(^(?!-\d+(?:\.\d+)?\Z)|[;\t])(?=[=+@\t\uff1d\uff0b\uff0d\uff20-])")
"""Where a cell begins with what a spreadsheet takes for a formula, and would run. Some spreadsheets
take a semicolon or a tab within a cell for the beginning of another. A negative number is none."""


def printable(text: str) -> str:
    r"""Show what is not printable as an escape, such as `\x1b` or `\u202e`; lines stay lines."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    return _UNSAFE.sub(_escape, shown)


def line(text: str, longest: int | None = None) -> str:
    r"""The same on one line, with `\n` for a line end, cut after `longest` characters."""
    text = printable(text).translate(_BREAKS)
    return text if longest is None or len(text) <= longest else f"{text[:longest]}..."


def markdown(text: str) -> str:
    """The same as Markdown that shows the text and nothing else: no HTML, no links, no table."""
    escaped = _MARKDOWN.sub(r"\\\1", line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: numbers as they are, lists and truth values as JSON.

    Text is put on one line without control characters. An apostrophe goes before a formula (what
    begins with =, +, -, @ or a tab, also after a semicolon or tab); spreadsheets then show it and
    do not run it. In JSON an escape does the same. Bytes of a file name that are not UTF-8 stay as
    they are.

    Source: OWASP, CSV Injection.
    """
    if isinstance(value, str):
        cell = _UNSAFE.sub(_escape, value).translate(_BREAKS)
        return _FORMULA.sub(r"\1'", cell)
    if isinstance(value, bool | list | tuple | dict):
        return re.sub("(?<=;)[=+@-]", lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value))
    return value


def _escape(match: re.Match[str]) -> str:
    """An escape as Python and JSON write it."""
    code = ord(match[0])
    return (
        f"\\x{code:02x}" if code < 2**8 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
    )
