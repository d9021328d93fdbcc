"""Sound from standard input, and to standard output."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcspex_cli.errors import AudioError, OutputError

STDIN, STDOUT = "standard input", "standard output"
"""What messages call the files that hold them."""

_BLOCK = 2**20
"""Bytes copied at a time."""


@contextmanager
def stdin_file() -> Iterator[Path]:
    """Keep standard input in a file, since it is read twice, and some formats from their end.

    The file is removed when the block is left. To have messages call it `STDIN`, use it with
    `console.shown_as`.

    Raises:
        AudioError: standard input is a terminal, closed or empty, or cannot be read.
        OutputError: there is no room for it.
    """
    if sys.stdin is None:
        raise AudioError(f"{STDIN} is closed. Pipe a sound file into it.")
    if sys.stdin.isatty():
        raise AudioError(f"{STDIN} is a terminal. Pipe a sound file into it.")
    with folder() as made:
        path = made / "stdin"
        if not _copy_stdin(path):
            raise AudioError(f"{STDIN} is empty. Pipe a sound file into it.")
        yield path


def check_stdout() -> None:
    """Before any work: refuse to write sound to a terminal.

    Raises:
        OutputError: standard output is one, or is closed.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed. Redirect it to a file or program.")
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal. Redirect it to a file or program.")


def to_stdout(path: Path) -> None:
    """Copy a finished file to standard output.

    Raises:
        OutputError: who reads it has gone, or its disk is full.
        AudioError: the file cannot be read.
    """
    check_stdout()
    try:
        file = path.open("rb")
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).") from error
    with file:
        try:
            shutil.copyfileobj(file, sys.stdout.buffer, _BLOCK)
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            _abandon_stdout()
            raise OutputError("standard output was closed before all was written.") from error
        except OSError as error:
            _abandon_stdout()
            reason = error.strerror
            raise OutputError(f"standard output: writing failed ({reason}). Free space?") from error


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards.

    Raises:
        OutputError: there is no place for it.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="mcspex-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"no temporary folder ({error.strerror}). Set TMPDIR.") from error
    with made as name:
        yield Path(name)


def _copy_stdin(path: Path) -> int:
    """Copy standard input to a file; how many bytes that were."""
    copied = 0
    try:
        with path.open("wb") as file:
            while block := _next_block():
                copied += file.write(block)
    except OSError as error:
        reason = error.strerror
        raise OutputError(f"{STDIN}: cannot be kept ({reason}). Set TMPDIR.") from error
    return copied


def _next_block() -> bytes:
    """More of standard input, empty at its end."""
    try:
        return sys.stdin.buffer.read(_BLOCK)
    except OSError as error:
        raise AudioError(f"{STDIN}: cannot be read ({error.strerror}).") from error


def _abandon_stdout() -> None:
    """Let what is still buffered go nowhere; the interpreter would fail on it at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
