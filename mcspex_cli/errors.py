"""Every failure that a user can cause or repair; text of unknown origin, made safe to show.

Also what other packages' errors say, in our words, and what to do where a package is missing.

A failure ends a command with exit code 1, unless its class has another. Exit code 2 is a wrong
command line (Click's own), 130 an interruption. A message says which file or value, why, and what
to do now, in one line.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import msgspec


class McspexError(Exception):
    """The root: what the command line turns into one line and an exit code."""

    exit_code = 1


class AudioError(McspexError):
    """A recording, or a span of one, is missing, empty, damaged, silent or too short."""


class NonFiniteError(AudioError):
    """A sound file has samples that are NaN or infinite."""


class OutputError(McspexError):
    """An output exists already, collides with another or cannot be written."""


class DiskFullError(OutputError):
    """The disk, or the user's share of it, is full: no other file will fit either."""


class CheckpointError(McspexError):
    """A model or a voice profile is unknown, incomplete, damaged or of another system."""


class ForeignModel(CheckpointError):  # noqa: N818
    """A model of another program."""


class HubError(CheckpointError):
    """The Hub cannot be reached, does not have a model, or refuses access to it."""


class EngineError(McspexError):
    """A device or precision is not available or does not give usable numbers."""


class PairingError(McspexError):
    """Files that should be compared or combined do not match."""


class PlanError(PairingError):
    """A batch that cannot be started; `problems` has a line for each reason."""

    def __init__(self, message: str, problems: Sequence[str]) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class ConfigError(McspexError):
    """A configuration file is missing, malformed or out of range."""


class PartialFailure(McspexError):  # noqa: N818
    """Some of several files failed; each has had its own line."""

    exit_code = 3


class BelowThreshold(McspexError):  # noqa: N818
    """A mean is worse than the user's threshold."""

    exit_code = 4


class AbsentError(McspexError):
    """The voice is not in a mixture, and that is not accepted."""

    exit_code = 5


TOO_LITTLE_MEMORY = "there is too little memory. Close other programs, or use a machine with more."

_MEMORY = re.compile("allocate memory|bad_alloc|out of memory|start new thread|map segment")
"""How torch, ONNX Runtime, Python's threads and the system's loader of libraries say that."""


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether an error, of whatever kind, says that memory is short."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def error_line(error: BaseException, line: int = 0) -> str:
    """One line, by default the first, of the message of another package's error."""
    return (str(error).strip() or type(error).__name__).splitlines()[line]


def install_extra(extra: str) -> str:
    """What to do where the packages of an extra are missing, as the end of a message."""
    return f"Run in a checkout of mcspex: pip install '.[{extra}]'"


def import_package(name: str, extra: str) -> Any:
    """A package of an extra of mcspex, or a ConfigError that says how to install it."""
    try:
        return import_module(name)
    except (ImportError, OSError, ValueError) as error:  # ValueError: built for another numpy
        reason = f"{name} cannot be imported ({error})."
        raise ConfigError(f"{reason} {install_extra(extra)}") from error


def explain_value(error: msgspec.ValidationError, raw: Any) -> str:
    """Say which value of `raw` was refused, and why."""
    reason, _, path = str(error).partition(" - at `$")
    if missing := re.search("required field `(.*)`", reason):
        return f"{missing[1]} is a missing key. Is mcspex up to date?"
    for step in re.findall(r"\w+", path):
        raw = raw[int(step) if isinstance(raw, list | tuple) else step]
    if error.__cause__ and isinstance(raw, dict):  # a class refuses its keys, in its own words
        return reason
    return f"{path.strip('.`')} is {reprlib.repr(raw)}. {reason}."


_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # controls other than tab, line feed, carriage return
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reverse the order of what follows
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff"  # what is not seen
    "\ufff9-\ufffb\U000e0000-\U000e007f"
    "\u2028\u2029]"  # line and paragraph separators
)

_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")
"""The user and password of a URL."""

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


def without_passwords(text: str) -> str:
    """The same text, in which URLs have no users and passwords."""
    return _PASSWORD.sub("", text)


def name_some(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


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
    return match[0].encode("unicode_escape").decode()
