"""The `mcspex` command: its subcommands, exit codes, interrupts and log file."""

from __future__ import annotations

import errno
import io
import logging
import os
import platform
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mcspex_cli import __version__
from mcspex_cli.cli import console
from mcspex_cli.cli.batch import batch
from mcspex_cli.cli.doctor import doctor
from mcspex_cli.cli.enroll import enroll
from mcspex_cli.cli.extract import extract
from mcspex_cli.cli.live import live
from mcspex_cli.cli.models import models
from mcspex_cli.cli.report import report
from mcspex_cli.cli.score import score
from mcspex_cli.cli.serve import serve
from mcspex_cli.cli.train import simulate, train
from mcspex_cli.errors import McspexError, PlanError
from mcspex_cli.extraction.runtime import share_cores

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Commands(click.Group):
    """Turns every `McspexError` into one line and its exit code, and Ctrl-C into exit code 130."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; help that cannot be printed is an error too."""
        _set_up_process()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            console.error(f"standard output: cannot be written ({error.strerror}). Free space.")
            # What is still buffered would fail once more as the interpreter ends.
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
            sys.exit(1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments for the log's first line."""
        ctx.meta["mcspex.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand and say in one line why it fails."""
        with _logged():
            try:
                return super().invoke(ctx)
            except McspexError as error:
                for problem in error.problems if isinstance(error, PlanError) else ():
                    console.error(problem)
                console.error(str(error))
                ctx.exit(error.exit_code)
            except OSError as error:
                if error.filename is None:
                    raise
                from mcspex_cli import files

                console.error(f"{error.filename}: {files.explain(error)}")
                ctx.exit(1)
            except RuntimeError as error:  # of Path.resolve, before Python 3.13
                if not str(error).startswith("Symlink loop"):
                    raise
                console.error(f"{error}. Its links lead in a circle: remove one of them.")
                ctx.exit(1)
            except KeyboardInterrupt:
                console.error("interrupted. Finished files are kept; unfinished ones are removed.")
                ctx.exit(130)


class _Stderr(io.FileIO):
    """Standard error, which may be full or closed: what cannot be written there is dropped."""

    def write(self, data: Any) -> int:
        """Write, or not."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _set_up_streams() -> None:
    """Make standard error fail silently, and let no file become what a closed stream was."""
    if os.name != "posix" or sys.stderr is not sys.__stderr__:  # as in tests
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)  # libraries and other processes may write to it
    os.close(number)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    stderr = _Stderr(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(stderr, encoding, "backslashreplace", write_through=True)


def _set_up_process() -> None:
    """Check the working folder, make SIGTERM and SIGHUP act like Ctrl-C, and spare the cores."""
    _set_up_streams()
    try:
        Path.cwd()
    except OSError:
        console.error("the working folder no longer exists. Change to another folder.")
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) == signal.SIG_DFL:
        signal.signal(hang_up, signal.default_int_handler)
    share_cores()


@contextmanager
def _logged() -> Iterator[None]:
    """Write the end of a command to its log file, and the traceback if it ends by a bug."""
    start, code = time.monotonic(), 1
    try:
        yield
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
        if not isinstance(error, OSError) or error.errno != errno.EPIPE:
            for text in traceback.format_exc().splitlines():
                console.log(logging.ERROR, text)
        raise
    finally:
        seconds = time.monotonic() - start
        console.log(logging.INFO, f"ended with exit code {code} after {seconds:.1f} s")
        console.close_log_files()


def add_log_option(command: click.Command) -> None:
    """Add --log-file to a command, or to each command of a group."""
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            add_log_option(subcommand)
        return

    def open_log(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is not None and not ctx.resilient_parsing:
            console.add_log_file(path)
            arguments = shlex.join(["mcspex", *ctx.meta.get("mcspex.arguments", ())])
            python = platform.python_version()
            console.log(logging.INFO, f"mcspex {__version__}, Python {python}: {arguments}")

    command.params.append(
        click.Option(
            ["--log-file"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            expose_value=False,
            is_eager=True,  # so that the log records what is wrong with other options
            callback=open_log,
            help="Append all messages to this file, with times.",
        )
    )


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
add_log_option(main)

if __name__ == "__main__":
    main(prog_name="mcspex")
