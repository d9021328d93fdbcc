"""The only place that prints: people read stderr, programs read stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mcspex_cli.cli import log
from mcspex_cli.cli.plain import line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_LONGEST = 1000
"""Characters of a warning or an error."""

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
_LEVELS = {"ok": "INFO", "warning": "WARNING", "failed": "ERROR"}


_shown: dict[str, str] = {}
"""What is said instead of a path."""


_bars: list[Progress] = []
"""Those that are on the terminal now, into whose line nothing must be printed."""


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
    text = named(text)
    _echo(printable(text))
    log.note("INFO", text)


def warn(text: str) -> None:
    """Tell a person of something that may be wrong."""
    text = named(text)
    _tell("warning: ", "yellow", text)
    log.note("WARNING", text)


def error(text: str) -> None:
    """Tell a person why it did not work."""
    text = named(text)
    _tell("error: ", "red", text)
    log.note("ERROR", text)


def _tell(word: str, colour: str, text: str) -> None:
    """Print a line after a coloured word to stderr."""
    _echo(click.style(word, fg=colour) + line(text, _LONGEST))


def _echo(said: str) -> None:
    """Print lines to stderr, above the bar if there is one."""
    if not _bars:
        click.echo(said, err=True, color=_colour(sys.stderr))
        return
    from rich.text import Text

    _bars[-1].console.print(Text.from_ansi(said), soft_wrap=True)


def finding(status: str, name: str, detail: str, remedy: str) -> None:
    """Print to stdout whether something is "ok", a "warning" or "failed", the remedy below."""
    word = click.style(f"{status:9}", fg=_COLOURS[status])
    colour = _colour(sys.stdout)
    click.echo(f"{word}{line(name):17}{line(detail, _LONGEST)}", color=colour)
    if remedy:
        click.echo(f"{'':26}{line(remedy, _LONGEST)}", color=colour)
    log.note(_LEVELS[status], " ".join(filter(None, (f"{name}: {detail}.", remedy))))


def data(value: Any, *, indent: int | None = None) -> None:
    """Print a value, free of NaN and infinity, as JSON to stdout."""
    click.echo(json.dumps(value, indent=indent, allow_nan=False))


def text(value: str) -> None:
    """Print text that is data to stdout, as it is."""
    click.echo(printable(value), nl=False)


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
        made.add_row(*map(printable, row))
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
    visible = shown and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        if visible:
            _bars.append(bar)
        try:
            yield bar
        finally:
            if visible:
                _bars.remove(bar)


def named(text: str) -> str:
    """Text with the names that paths are shown as, the longest path first."""
    for path in sorted(_shown, key=len, reverse=True):
        text = text.replace(path, _shown[path])
    return text


def _console(*, stderr: bool) -> Console:
    """A rich console, without colours where NO_COLOR asks for none."""
    from rich.console import Console

    plain = True if os.environ.get("NO_COLOR") else None
    return Console(stderr=stderr, highlight=False, markup=False, no_color=plain)


def _colour(stream: TextIO) -> bool:
    """Whether to colour what goes to a stream: on a terminal, unless NO_COLOR asks for none."""
    return not os.environ.get("NO_COLOR") and stream.isatty()
