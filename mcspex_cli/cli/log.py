"""--log-file: what a command says, with the time, in a file that only grows.

```
2026-08-30T09:15:02Z INFO mcspex 0.5.0, Python 3.12.4: mcspex extract a.wav --ref b.wav
2026-08-30T09:15:04Z INFO a.target.wav  (61.2 s in 1.4 s, real-time factor 0.023, presence 0.97)
2026-08-30T09:15:04Z INFO ended with exit code 0 after 2.1 s
```
"""

from __future__ import annotations

import errno
import platform
import shlex
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from mcspex_cli import __version__
from mcspex_cli.cli.plain import line
from mcspex_cli.errors import OutputError

_ARGV = "mcspex.argv"
"""Where a context keeps what was typed."""

_BEGINNING = 4096
"""Bytes of a file that tell whether it is text."""

Complain = Callable[[str], object]


class Log:
    """A file to which each message is appended in one write, so that programs can share it.

    Raises:
        OutputError: it cannot be opened, or is no text: a recording, say, named by mistake.
    """

    def __init__(self, path: Path, complain: Complain) -> None:
        self.path, self._complain, self._failed = path, complain, False
        try:
            if _is_binary(path):
                raise OutputError(f"{path}: is no text. Choose another --log-file.")
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}). Choose another --log-file."
            ) from error

    def write(self, level: str, text: str) -> None:
        """Append a line; of those that cannot be, the first is complained of."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            self._file.write(f"{now} {level} {line(text)}\n".encode())
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._complain(f"{self.path}: the log is not complete ({error.strerror}).")

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()


def _is_binary(path: Path) -> bool:
    """Whether a file is there that begins as text does not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"\0" in file.read(_BEGINNING)


_logs: list[Log] = []
"""The command's log, if it has one."""


def note(level: str, text: str) -> None:
    """Write a message to the log, if there is one."""
    for log in _logs:
        log.write(level, text)


def add_option(command: click.Command, complain: Complain) -> None:
    """Give a command --log-file; a group's commands instead of it.

    Args:
        command: what to add it to.
        complain: is told, once, that the log cannot be written any more.
    """
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_option(below, complain)
        return

    def start(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
        """Open the log before anything is done; not while a shell completes."""
        if path is None or ctx.resilient_parsing:
            return
        _logs.append(Log(path, complain))
        typed = shlex.join(["mcspex", *ctx.meta.get(_ARGV, ())])
        note("INFO", f"mcspex {__version__}, Python {platform.python_version()}: {typed}")

    option = click.Option(
        ["--log-file"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        is_eager=True,  # so that it has what is wrong with other options
        callback=start,
        help="Append what is said here to this file, with times.",
    )
    command.params.append(option)


def remember(ctx: click.Context, typed: list[str]) -> None:
    """Keep what was typed for the log's first line."""
    ctx.meta[_ARGV] = list(typed)


@contextmanager
def kept() -> Iterator[None]:
    """Write a command's end to its log, and what ends it untold: wrong usage, or a bug."""
    began, code = time.monotonic(), 1
    try:
        yield
        code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
        raise
    except click.ClickException as error:
        code = error.exit_code
        note("ERROR", error.format_message())
        raise
    except click.Abort:
        note("ERROR", "aborted")
        raise
    except BaseException as error:
        if not isinstance(error, OSError) or error.errno != errno.EPIPE:
            for text in traceback.format_exc().splitlines():
                note("ERROR", text)
        raise
    finally:
        note("INFO", f"ended with exit code {code} after {time.monotonic() - began:.1f} s")
        while _logs:
            _logs.pop().close()
