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
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from mcspex_cli.errors import AudioError, OutputError, line, printable, without_passwords

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")

LONGEST_MESSAGE = 1000
"""Characters after which a warning or an error is cut."""

COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "red", "error": "red"}

_bars: list[Progress] = []
"""Progress bars on the terminal now: messages go above them."""


class _Terminal(logging.Handler):
    """Writes messages to stderr; a stderr that is closed or full is left alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "log_file_only"):
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            word = record.levelname.lower()
            text = click.style(f"{word}: ", fg=COLOURS[word]) + line(text, LONGEST_MESSAGE)
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
        OutputError: the file cannot be opened, or contains something other than a log.
    """

    def __init__(self, path: Path) -> None:
        try:
            if path.is_file():
                with path.open("rb") as file:
                    begin = file.read(26)
                if begin and not re.fullmatch(rb"\d{4}-\d\d-\d\dT[\d:]{8}Z [A-Z]{4}.", begin):
                    raise OutputError(
                        f"{path}: contains something other than a log. Choose another --log-file."
                    )
            # Opening a pipe that nobody reads would wait forever; this fails.
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK) if path.is_fifo() else None
            super().__init__(path, encoding="utf-8")
            if pipe is not None:
                os.close(pipe)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}). Choose another --log-file."
            ) from error
        self.path, self._failed = path, False
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(text)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, which no message can forge, and without passwords."""
        record.text = without_passwords(line(record.getMessage()))
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


class _Messages(logging.Filter):
    """Whether messages of the command are shown, and what they call some files."""

    quiet = False
    """Whether progress is hidden, and all but warnings, errors and what `tell` says."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        """The names that messages show instead of some paths."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a message is shown; put names in it for paths, the longest path first."""
        for path in sorted(self.names, key=len, reverse=True):
            record.msg = record.msg.replace(path, self.names[path])
        return (
            not self.quiet or record.levelno >= logging.WARNING or hasattr(record, "is_always_said")
        )


messages = _Messages()
logger = logging.getLogger("mcspex")
logger.propagate = False
logger.setLevel(logging.INFO)
logger.addHandler(_Terminal())
logger.addFilter(messages)

say, warn, error = logger.info, logger.warning, logger.error
"""Show a message; a warning of what may be wrong; an error, with the reason of a failure."""


def tell(text: str) -> None:
    """Show a message even if the command is to be quiet, such as the answer to a Ctrl-C."""
    logger.info(text, extra={"is_always_said": True})


def log(level: int, text: str) -> None:
    """Write a message to the log files only."""
    logger.log(level, text, extra={"is_always_said": True, "log_file_only": True})


def check_log_files(others: Iterable[Path | str]) -> None:
    """Refuse a log file that is one of the files that a command reads or writes."""
    for handler in logger.handlers:
        if isinstance(handler, LogFile) and os.path.realpath(handler.path) in map(
            os.path.realpath, others
        ):
            raise OutputError(
                f"{handler.path}: has another use in this command. Choose another --log-file."
            )


def close_log_files() -> None:
    """Stop writing messages to files."""
    for handler in [h for h in logger.handlers if isinstance(h, LogFile)]:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def shown_as(path: Path, name: str) -> Iterator[None]:
    """Call a file `name` in messages instead of by its path."""
    names = dict.fromkeys((str(path), str(path.resolve())), name)
    messages.names.update(names)
    try:
        yield
    finally:
        for each in names:
            del messages.names[each]


def data(value: Any, *, indent: int | None = None) -> None:
    """Print a value without NaN and infinity as JSON to stdout."""
    click.echo(json.dumps(value, indent=indent, allow_nan=False), file=stdout())


def text(value: str) -> None:
    """Print text that is data to stdout."""
    click.echo(printable(value), file=stdout(), nl=False)


def coloured(value: str) -> None:
    """Print a line with `click.style` in it to stdout; its colours are only for terminals."""
    click.echo(value, file=stdout(), color=_is_coloured(sys.stdout))


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print facts to stdout: a line for each, its name first."""
    text("".join(f"{name:9}{line(value)}\n" for name, value in rows))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    footer: Sequence[str] = (),
    title: str = "",
) -> None:
    """Print a table to stdout, the first column left-aligned, the others right-aligned.

    On a narrow terminal the first column may break anywhere, the last at spaces, and headings put
    their unit on a second line; numbers are never cut. Files and pipes get rows of any width.
    """
    from rich.table import Table

    console = _rich(stdout())
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
        click.echo(f"\n{line(title)}", file=stdout())
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


def figures(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return two texts about a `Result.to_dict`: on its speed, and on its sound."""
    speed = (
        f"{result['seconds']:.1f} s in {result['elapsed_s']:.1f} s, "
        f"real-time factor {result['real_time_factor']:.3f}"
    )
    if result["presence"] is not None:
        speed += f", presence {result['presence']:.2f}"
    gains = ", ".join(f"{gain:+.1f}" for gain in result["gain_db"])
    return speed, f"gain {gains} dB, speaks {result['active_s']:.1f} s"


@contextmanager
def progress(label: str, total: float | None = 1.0) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; invisible in a quiet command, and unless stderr is a terminal.

    It gives a function that sets `completed`, `total` or `description`, or adds `advance`.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    visible = not messages.quiet and sys.stderr is not None and sys.stderr.isatty()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    console = _rich(sys.stderr if visible else None)
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        if visible:
            _bars.append(bar)
        try:
            task = bar.add_task(label, total=total)
            yield partial(bar.update, task)
        finally:
            if visible:
                _bars.remove(bar)


def track(
    items: Iterable[Item], label: str, total: float, size: Callable[[Item], float] = lambda _: 1.0
) -> Iterator[Item]:
    """Pass items on, with a progress bar or, without a terminal, a line each minute.

    Args:
        items: what is worked through.
        label: what the bar and the lines call it.
        total: the sum of all sizes.
        size: of an item, in proportion to the time that it takes.
    """
    began_s = told_s = time.monotonic()
    done = 0.0
    with progress(label, total) as update:
        for item in items:
            yield item
            done += size(item)
            update(completed=done)
            now_s = time.monotonic()
            if not _bars and now_s - told_s >= 60 and done < total:
                told_s = now_s
                left = duration((now_s - began_s) * (total / done - 1))
                say(f"{label}: {100 * done / total:.0f} %, {left} left")


def on_interrupts(
    handler: Any, names: Iterable[str] = ("SIGINT", "SIGTERM", "SIGHUP")
) -> dict[int, Any]:
    """Let `handler` answer Ctrl-C and the like, and return what answered each before.

    Signals that are ignored stay so, as under nohup or in a background job.
    """
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # not on Windows
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


@contextmanager
def ending_gently(stop: Callable[[], object], *others: str) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) call `stop`, and the second one end the program at once.

    So do the `others`, names of signals.
    """

    def handle(*_: object) -> None:
        restore()
        stop()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = on_interrupts(handle, ("SIGINT", "SIGTERM", *others))
    try:
        yield
    finally:
        restore()


def check_sound_input(advice: str) -> None:
    """Refuse a standard input from which no sound can come."""
    if state := _unusable(sys.stdin):
        raise AudioError(f"standard input is {state}. {advice}")


def check_sound_output(inputs: Iterable[Path] = (), *, from_stdin: bool = False) -> None:
    """Refuse to write sound to a terminal or to a file that is read, before any work."""
    if state := _unusable(sys.stdout):
        raise OutputError(f"standard output is {state}. Redirect it to a file or program.")
    with suppress(OSError, ValueError):  # a stream without a file, or an input that is not there
        output = os.fstat(sys.stdout.fileno())
        states = [os.fstat(sys.stdin.fileno())] if from_stdin and sys.stdin else []
        states += [path.stat() for path in inputs]
        if stat.S_ISREG(output.st_mode) and any(os.path.samestat(output, one) for one in states):
            raise OutputError(
                "standard output is an input, and inputs are never overwritten. Redirect it to "
                "another file."
            )


def _unusable(stream: TextIO | None) -> str:
    if stream is None or stream.closed:
        return "closed"
    return "a terminal" if stream.isatty() else ""


def stdout() -> TextIO:
    """Standard output, or an error if the caller has closed it."""
    if sys.stdout is None:
        raise OutputError("standard output is closed. Redirect it to a file or a program.")
    return sys.stdout


def _rich(file: TextIO | None) -> Console:
    from rich.console import Console

    # Names stay as they are, also `a:x:b` and `[b]`.
    quiet = file is None
    return Console(file=file, quiet=quiet, highlight=False, markup=False, emoji=False)


def _is_coloured(stream: TextIO) -> bool:
    """Whether to colour what goes to a stream: on a terminal, unless NO_COLOR is set."""
    return not os.environ.get("NO_COLOR") and stream.isatty()
