"""The only place that prints: people read stderr, programs read stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def say(text: str) -> None:
    """Tell a person something."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Tell a person of something that may be wrong."""
    click.echo(click.style("warning: ", fg="yellow") + text, err=True, color=_colour())


def error(text: str) -> None:
    """Tell a person why it did not work."""
    click.echo(click.style("error: ", fg="red") + text, err=True, color=_colour())


def data(value: Any, *, indent: int | None = None) -> None:
    """Print a value, free of NaN and infinity, as JSON to stdout."""
    click.echo(json.dumps(value, indent=indent, allow_nan=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str]) -> None:
    """Print a table to stdout: first column left, the others right."""
    from rich.table import Table

    made = Table(box=None, header_style="bold", footer_style="bold", show_footer=True)
    for number, (heading, foot) in enumerate(zip(headings, footer, strict=True)):
        made.add_column(heading, foot, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console = _console(stderr=False)
    if not console.is_terminal:
        console.width = 10_000  # nothing is cut in a file or pipe
    console.print(made)


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


def _console(*, stderr: bool) -> Console:
    """A rich console; it respects NO_COLOR by itself."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


def _colour() -> bool | None:
    """False where NO_COLOR asks for none, else as the terminal is."""
    return False if os.environ.get("NO_COLOR") else sys.stderr.isatty()
