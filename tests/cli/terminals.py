"""Programs in a terminal of their own: a real pseudo-terminal, what comes out of it as text."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def in_terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], typed: str = ""
) -> tuple[int, str]:
    """Run a command whose input, output and errors are a terminal; its exit code and output.

    `typed` waits in the terminal from the beginning, as if somebody typed ahead.
    """
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 4096):
            said += block
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), said.decode(errors="replace")
