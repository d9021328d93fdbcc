"""The only place that prints: people read stderr, programs read stdout."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


_STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters other than tab, line feed and carriage return."""

_LONGEST = 1000
"""Characters of a warning or an error."""


_shown: dict[str, str] = {}
"""What is said instead of a path."""


@contextmanager
def shown_as(path: Path, name: str) -> Iterator[None]:
    """Have messages to people call a file by `name` instead of its path."""
    known = dict(_shown)
    _shown.update({str(path): name, str(path.resolve()): name})
    try:
        yield
    finally:
        _shown.clear()
        _shown.update(known)


def say(text: str) -> None:
    """Tell a person something."""
    click.echo(_printable(_named(text)), err=True)


def warn(text: str) -> None:
    """Tell a person of something that may be wrong."""
    click.echo(click.style("warning: ", fg="yellow") + _line(text), err=True, color=_colour())


def error(text: str) -> None:
    """Tell a person why it did not work."""
    click.echo(click.style("error: ", fg="red") + _line(text), err=True, color=_colour())


def data(value: Any, *, indent: int | None = None) -> None:
    """Print a value, free of NaN and infinity, as JSON to stdout."""
    click.echo(json.dumps(value, indent=indent, allow_nan=False))


def text(value: str) -> None:
    """Print text that is data to stdout, as it is."""
    click.echo(_printable(value), nl=False)


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    footer: Sequence[str] = (),
    title: str = "",
) -> None:
    """Print a table to stdout: first column left, the others right.

    Where a terminal is too narrow, the first column breaks anywhere and the last at spaces,
    and headings have their unit below them; numbers are not cut.
    """
    from rich.table import Table

    console = _console(stderr=False)
    if not console.is_terminal:
        console.width = 10_000  # a file or pipe is as wide as it needs to be
    made = Table(
        box=None,
        header_style="bold",
        footer_style="bold",
        show_footer=bool(footer),
        collapse_padding=console.is_terminal,
    )
    for number, heading in enumerate(headings):
        edge = number in (0, len(headings) - 1)
        made.add_column(
            heading.replace(" dB", "\ndB") if console.is_terminal and not edge else heading,
            footer[number] if footer else "",
            justify="right" if number else "left",
            overflow="ellipsis" if number else "fold",
            no_wrap=not edge or not console.is_terminal,
            min_width=min(len(heading), 10) if edge else None,
        )
    for row in rows:
        made.add_row(*map(_printable, row))
    if title:
        click.echo(f"\n{title}")
    console.print(made)


def count(number: int, noun: str) -> str:
    """A number of things: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(length: int) -> str:
    """Bytes for people: "312 B", "4.1 kB", "5.0 MB", "1.2 GB"."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if length >= 10**power:
            return f"{length / 10**power:.1f} {unit}"
    return f"{length} B"


def duration(seconds: float) -> str:
    """A time for people: "3.2 s", "12 min 5 s", "3 h 12 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def progress(*, shown: bool) -> Iterator[Progress]:
    """A progress bar on stderr, silent unless `shown` and on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    console = _console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        yield bar


def _line(text: str) -> str:
    """Text as one line that can be read, whatever a file or a server has put into it."""
    text = _printable(_named(text)).replace("\n", "\\n").replace("\r", "\\r")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _named(text: str) -> str:
    """Text with the names that paths are shown as, the longest path first."""
    for path in sorted(_shown, key=len, reverse=True):
        text = text.replace(path, _shown[path])
    return text


def _printable(value: str) -> str:
    """Text with what is none made visible: bytes of names, and what would steer a terminal."""
    shown = value.encode("utf-8", "backslashreplace").decode()
    return _STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}", shown)


def _console(*, stderr: bool) -> Console:
    """A rich console; it respects NO_COLOR by itself."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


def _colour() -> bool | None:
    """False where NO_COLOR asks for none, else as the terminal is."""
    return False if os.environ.get("NO_COLOR") else sys.stderr.isatty()
