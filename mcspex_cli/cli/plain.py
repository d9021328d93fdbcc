"""Text that neither steers a terminal nor passes for another line, whoever wrote it."""

from __future__ import annotations

import re

_STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters other than tab, line feed and carriage return."""

_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""What some programs take for the end of a line."""


def printable(text: str) -> str:
    """Text with what is none made visible: bytes of names, and what would steer a terminal."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    return _STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}", shown)


def line(text: str, longest: int | None = None) -> str:
    """Text as one line that can be read, cut after `longest` characters."""
    text = printable(text).translate(_BREAKS)
    return text if longest is None or len(text) <= longest else f"{text[:longest]}..."
