"""The terminal: people read stderr, programs read stdout, `--log-file` keeps what people read.

Everything for people goes through the logger "mcspex": one handler writes it to the terminal,
and a second one, if there is a log file, writes it there with the time:

```
2026-08-30T09:15:02Z INFO mcspex 0.7.0, Python 3.12.4: mcspex extract a.wav --ref b.wav
2026-08-30T09:15:04Z INFO a.target.wav  (61.2 s in 1.4 s, real-time factor 0.023, presence 0.97)
2026-08-30T09:15:04Z INFO ended with exit code 0 after 2.1 s
```
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from mcspex_cli.errors import OutputError
from mcspex_cli.text import line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")

LONGEST_MESSAGE = 1000
"""Characters after which a warning or an error is cut."""

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "red", "error": "red"}
_LEVELS = {"ok": logging.INFO, "note": logging.INFO, "warning": logging.WARNING}

_logger = logging.getLogger("mcspex")
_logger.propagate = False
_logger.setLevel(logging.INFO)

_bars: list[Progress] = []
"""Progress bars on the terminal now: messages go above them."""

_names: dict[str, str] = {}
"""What messages call a path, where that is not the path itself."""


class _Terminal(logging.Handler):
    """Writes messages to stderr; a stderr that is closed or full is left alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.__dict__.get("log_file_only"):
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            word = record.levelname.lower()
            styled = click.style(f"{word}: ", fg=_COLOURS[word])
            text = styled + line(text, LONGEST_MESSAGE)
        else:
            text = line(text)
        if record.exc_info:  # of a bug
            text += f"\n{printable(logging.Formatter().formatException(record.exc_info))}"
        with suppress(OSError):
            if _bars:
                from rich.text import Text

                _bars[-1].console.print(Text.from_ansi(text), soft_wrap=True)
            elif sys.stderr is not None:
                click.echo(text, err=True, color=_is_coloured(sys.stderr))


class LogFile(logging.FileHandler):
    """Appends messages with UTC times to a file, one line each.

    Raises:
        OutputError: the file cannot be opened, or is not text (a recording, say).
    """

    def __init__(self, path: Path) -> None:
        try:
            if path.is_file():
                with path.open("rb") as file:
                    if b"\0" in file.read(4096):
                        raise OutputError(f"{path}: is not text. Choose another --log-file.")
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}). Choose another --log-file."
            ) from error
        self.path, self._failed = path, False
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(text)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, which no message can forge."""
        record.text = line(record.getMessage())
        return super().format(record)

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Warn once that the log is incomplete."""
        if not self._failed:
            self._failed = True
            reason = getattr(sys.exc_info()[1], "strerror", None) or "unknown reason"
            warn(f"{self.path}: the log is incomplete ({reason}).")

    def close(self) -> None:
        """Close the file, which may be on a full disk."""
        with suppress(OSError):
            super().close()


_logger.addHandler(_Terminal())


def add_log_file(path: Path) -> None:
    """Append all further messages to a file too.

    Raises:
        OutputError: as `LogFile`.
    """
    _logger.addHandler(LogFile(path))


def close_log_files() -> None:
    """Stop writing messages to files."""
    for handler in [h for h in _logger.handlers if isinstance(h, LogFile)]:
        _logger.removeHandler(handler)
        handler.close()


def log(level: int, text: str) -> None:
    """Write a message to the log files only."""
    _logger.log(level, "%s", named(text), extra={"log_file_only": True})


def say(text: str) -> None:
    """Tell a person something."""
    _logger.info("%s", named(text))


def warn(text: str) -> None:
    """Warn a person of something that may be wrong."""
    _logger.warning("%s", named(text))


def error(text: str) -> None:
    """Tell a person why something failed."""
    _logger.error("%s", named(text))


@contextmanager
def shown_as(path: Path, name: str) -> Iterator[None]:
    """Call a file `name` in messages instead of by its path."""
    before = dict(_names)
    _names.update({str(path): name, str(path.resolve()): name})
    try:
        yield
    finally:
        _names.clear()
        _names.update(before)


def named(text: str) -> str:
    """Return `text` with paths replaced by the names they are shown as."""
    for path in sorted(_names, key=len, reverse=True):
        text = text.replace(path, _names[path])
    return text


def finding(status: str, name: str, detail: str, remedy: str) -> None:
    """Print one result of `mcspex doctor` to stdout: status, name, detail, and the remedy below."""
    word = click.style(f"{status:9}", fg=_COLOURS[status])
    text = f"{word}{line(name):17}{line(detail, LONGEST_MESSAGE)}"
    if remedy:
        text += f"\n{'':26}{line(remedy, LONGEST_MESSAGE)}"
    click.echo(text, file=_stdout(), color=_is_coloured(sys.stdout))
    message = " ".join(filter(None, (f"{name}: {detail}.", remedy)))
    log(_LEVELS.get(status, logging.ERROR), message)


def data(value: Any, *, indent: int | None = None) -> None:
    """Print a value without NaN and infinity as JSON to stdout."""
    click.echo(json.dumps(value, indent=indent, allow_nan=False), file=_stdout())


def text(value: str) -> None:
    """Print text that is data to stdout."""
    click.echo(printable(value), file=_stdout(), nl=False)


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    footer: Sequence[str] = (),
    title: str = "",
) -> None:
    """Print a table to stdout, the first column left-aligned, the others right-aligned.

    On a narrow terminal the first column may break anywhere, the last at spaces, and headings put
    their unit on a second line; numbers are never cut. Files and pipes get rows of any width.
    """
    from rich.table import Table

    console = _rich(_stdout())
    if not console.is_terminal:
        console.width = 10_000
    grid = Table(
        box=None,
        header_style="bold",
        footer_style="bold",
        show_footer=bool(footer),
        collapse_padding=console.is_terminal,
    )
    for number, heading in enumerate(headings):
        edge = number in (0, len(headings) - 1)
        grid.add_column(
            heading.replace(" dB", "\ndB") if console.is_terminal and not edge else heading,
            footer[number] if footer else "",
            justify="right" if number else "left",
            overflow="ellipsis" if number else "fold",
            no_wrap=not edge or not console.is_terminal,
            min_width=min(len(heading), 10) if edge else None,
        )
    for row in rows:
        grid.add_row(*map(line, row))
    if title:
        click.echo(f"\n{line(title)}", file=_stdout())
    console.print(grid)


def count(number: int, noun: str) -> str:
    """Return a number of things, like "1 file" or "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(bytes_: int) -> str:
    """Return a size for people, like "5.0 MB"."""
    from rich.filesize import decimal

    return decimal(bytes_)


def duration(seconds: float) -> str:
    """Return a time for people, like "3.2 s", "12 min 5 s" or "3 h 12 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def progress(*, shown: bool) -> Iterator[Progress]:
    """A progress bar on stderr; invisible unless `shown` and stderr is a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    visible = shown and sys.stderr is not None and sys.stderr.isatty()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    console = _rich(sys.stderr if visible else None)
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        if visible:
            _bars.append(bar)
        try:
            yield bar
        finally:
            if visible:
                _bars.remove(bar)


def track(
    items: Iterable[Item],
    label: str,
    total: float,
    size: Callable[[Item], float] = lambda _: 1.0,
    *,
    shown: bool = True,
) -> Iterator[Item]:
    """Pass items on, with a progress bar or, without a terminal, a line each minute.

    Args:
        items: what is worked through.
        label: what the bar and the lines call it.
        total: the sum of all sizes.
        size: of an item, in proportion to the time that it takes.
        shown: whether to show anything.
    """
    began_s = told_s = time.monotonic()
    with progress(shown=shown) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))
            now_s, share = time.monotonic(), bar.tasks[0].completed / total
            if shown and bar.disable and now_s - told_s >= 60 and share < 1:
                told_s = now_s
                left = duration((now_s - began_s) * (1 / share - 1))
                say(f"{label}: {100 * share:.0f} %, {left} left")


@contextmanager
def ending_gently(stop: Callable[[], object]) -> Iterator[None]:
    """Have the first Ctrl-C (or SIGTERM) call `stop`, and a second one end everything at once."""

    def handle(number: int, _: object) -> None:
        stop()
        signal.signal(number, before[number])

    before = {int(n): signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stdout() -> TextIO:
    """Standard output, which a caller may have closed."""
    if sys.stdout is None:
        raise OutputError("standard output is closed. Redirect it to a file or a program.")
    return sys.stdout


def _rich(file: TextIO | None) -> Console:
    """A rich console that writes to `file`, without colours if NO_COLOR is set."""
    from rich.console import Console

    plain = True if os.environ.get("NO_COLOR") else None
    return Console(file=file, quiet=file is None, highlight=False, markup=False, no_color=plain)


def _is_coloured(stream: TextIO) -> bool:
    """Whether to colour what goes to a stream: on a terminal, unless NO_COLOR is set."""
    return not os.environ.get("NO_COLOR") and stream.isatty()
