"""The `mcspex` command: its subcommands, exit codes and interrupts."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any


def _end_at_once(*_: Any) -> None:
    """End the process quietly, though it may be in the middle of an import."""
    with suppress(OSError):
        os.write(2, b"error: interrupted before anything was begun.\n")
    os._exit(130)


# The imports below may take a second. In one, a KeyboardInterrupt would be a long traceback.
_handlers = {
    number: signal.getsignal(number)
    for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    if number and signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
}
"""The handlers that are restored after the imports."""
for number in _handlers:
    with suppress(ValueError):  # not in the main thread
        signal.signal(number, _end_at_once)

import _thread
import atexit
import errno
import io
import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

import click

from mcspex_cli import __version__, files
from mcspex_cli.cli import console
from mcspex_cli.cli.batch import batch
from mcspex_cli.cli.doctor import doctor
from mcspex_cli.cli.extract import enroll, extract
from mcspex_cli.cli.live import live
from mcspex_cli.cli.models import models
from mcspex_cli.cli.score import report, score
from mcspex_cli.cli.serve import serve
from mcspex_cli.cli.train import simulate, train
from mcspex_cli.errors import TOO_LITTLE_MEMORY, McspexError, PlanError, is_lack_of_memory
from mcspex_cli.extraction.runtime import share_cores


class Commands(click.Group):
    """Shows a failure that a user can cause as one line, sets its exit code, and logs the end."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; help that cannot be printed is an error too."""
        _set_up_process()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            console.error(f"standard output: cannot be written ({error.strerror}). Free space.")
            # What is still buffered would fail once more as the interpreter ends.
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
            sys.exit(1)
        finally:
            _expect_end()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments for the log's first line."""
        ctx.meta["mcspex.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand and say in one line why it fails; the log gets a bug's traceback."""
        start_s, code = time.monotonic(), 1
        try:
            super().invoke(ctx)
            code = 0
        except click.exceptions.Exit as end:
            code = end.exit_code
            raise
        except click.ClickException as error:
            code = error.exit_code
            console.log(logging.ERROR, error.format_message())
            raise
        except click.Abort:
            console.log(logging.ERROR, "aborted")
            raise
        except BaseException as error:
            code, messages = _explain(error)
            if code == 130:
                _expect_end()
            for message in messages:
                console.error(message)
            if messages:
                ctx.exit(code)
            if getattr(error, "errno", None) != errno.EPIPE:
                for text in traceback.format_exc().splitlines():
                    console.log(logging.ERROR, text)
            raise
        finally:
            seconds = time.monotonic() - start_s
            console.log(logging.INFO, f"ended with exit code {code} after {seconds:.1f} s")
            console.close_log_files()


def _explain(error: BaseException) -> tuple[int, list[str]]:
    """The exit code of an error and the messages that explain it; a bug has none."""
    if _interrupts or isinstance(error, KeyboardInterrupt):
        return 130, ["interrupted. Finished files are kept; unfinished ones are removed."]
    if isinstance(error, McspexError):
        problems = error.problems if isinstance(error, PlanError) else ()
        return error.exit_code, [*problems, str(error)]
    if isinstance(error, OSError) and error.filename is not None:
        return 1, [f"{error.filename}: {files.explain(error)}"]
    messages = []
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        # Of Path.resolve, before Python 3.13.
        messages = [f"{error}. Its links lead in a circle: remove one of them."]
    elif isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        advice = f"no file can have this name in the encoding {error.encoding}. Set PYTHONUTF8=1."
        messages = [f"{error.object}: {advice}"]
    elif is_lack_of_memory(error):
        messages = [TOO_LITTLE_MEMORY]
    elif isinstance(error, ImportError) and not str(error.name).startswith("mcspex_cli"):
        messages = [f"a package does not import ({error}). mcspex doctor says how to repair it."]
    return 1, messages


class _Stderr(io.FileIO):
    """Standard error, which may be full or closed: what cannot be written there is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _is_own_process() -> bool:
    """Whether the process ends with the command; in tests it goes on."""
    return isinstance(getattr(sys.stderr, "buffer", None), _Stderr)


def _expect_end() -> None:
    """Let an interrupt end the process at once; in what is left to do, it would be a traceback."""
    if not _is_own_process():
        return
    console.on_interrupts(lambda *_: os._exit(130))
    # Where an interrupt came within `exec`, Python notes that and ends by a signal, not by an exit
    # code. The next `exec` takes the note away.
    exec("")


_interrupts: list[float] = []
"""When signals came. Any error after one follows from it: modules whose import is
interrupted, and libraries that take a KeyboardInterrupt for an error of their own, raise others."""

_C_PLUS_PLUS = ("<module>", "torch.distributed")
"""The function and the module from which torch calls C++ that lets no Python exception out."""

_LONGEST_END_S = 10.0
"""How long an interrupted command may take to clear up: a thread may wait for a disk or a server
that does not answer."""


def _end_without_clearing_up() -> None:
    console.error("interrupted, while something did not answer. Finished files are kept.")
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise a KeyboardInterrupt, where it does no harm at once, else soon after.

    Raised in callbacks of soundfile and in destructors, it would be lost, and the sound file would
    seem to be cut off. While torch.distributed is imported, it would end the process by SIGABRT.
    A signal that comes twice, as `timeout` sends it, counts once: a second KeyboardInterrupt would
    come while the first is explained.
    """
    now_s = time.monotonic()
    if _interrupts and now_s - _interrupts[-1] < 0.1:
        return
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
        if name.startswith(("vio_", "__del__")) or (name, module) == _C_PLUS_PLUS:
            threading.Timer(0.01, _thread.interrupt_main, [number]).start()
            return
        frame = frame.f_back
    _interrupts.append(now_s)
    if _is_own_process():
        end = threading.Timer(_LONGEST_END_S, _end_without_clearing_up)
        end.daemon = True
        end.start()
    raise KeyboardInterrupt


def _set_up_process() -> None:
    """Prepare streams and signals, check the working folder, and spare the cores."""
    _interrupts.clear()  # of an earlier command in this process
    if os.name == "posix" and sys.stderr is sys.__stderr__:  # which it is not in tests
        # Otherwise the next file that is opened would take the place of a closed stream.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)  # libraries and other processes may write to it
        os.close(number)
        for number in range(3):  # a program that shares a stream may have made it non-blocking:
            os.set_blocking(number, True)  # sound would be lost where it is not there yet
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        stderr = _Stderr(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(stderr, encoding, "backslashreplace", write_through=True)
        # Python gives up handlers as it ends, which takes long after torch: a signal would end it.
        atexit.register(console.on_interrupts, signal.SIG_IGN)
    if isinstance(sys.stdout, io.TextIOWrapper):  # which it is not if it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # where names are not of its encoding
    try:
        Path.cwd()
    except OSError:
        console.error("the working folder no longer exists. Change to another folder.")
        sys.exit(1)
    console.on_interrupts(_interrupt)
    share_cores()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mcspex")
def main() -> None:
    """Pull one person's voice out of a recording, given a sample of that voice.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 some of several files failed,
    4 a mean below --fail-under, 5 the voice is absent, 130 interrupted.
    """


commands = (extract, batch, live, serve, enroll, score, report, models, simulate, train, doctor)
for command in commands:
    main.add_command(command)

for number, handler in _handlers.items():
    if signal.getsignal(number) is _end_at_once:
        signal.signal(number, handler)

if __name__ == "__main__":
    main(prog_name="mcspex")
