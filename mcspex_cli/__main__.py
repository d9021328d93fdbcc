"""The `mcspex` command: its sub-commands and what a failure looks like."""

from __future__ import annotations

import errno
import signal
from typing import Any

import click

from mcspex_cli import __version__
from mcspex_cli.cli import console, log
from mcspex_cli.cli.batch import batch
from mcspex_cli.cli.bench import bench
from mcspex_cli.cli.completion import completion
from mcspex_cli.cli.doctor import doctor
from mcspex_cli.cli.enroll import enroll
from mcspex_cli.cli.evaluate import score
from mcspex_cli.cli.extract import extract
from mcspex_cli.cli.models import models
from mcspex_cli.cli.report import report
from mcspex_cli.cli.train import simulate, train
from mcspex_cli.errors import McspexError, PlanError
from mcspex_cli.extraction.tuning import share_cores

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""How a disk refuses to take more; all places but standard output say so themselves."""


class Commands(click.Group):
    """Turns every `McspexError` into one line and its exit code, and Ctrl-C into 130."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was typed."""
        log.remember(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command, with its log."""
        _end_gently()
        share_cores()
        with log.kept():
            return self._answered(ctx)

    def _answered(self, ctx: click.Context) -> Any:
        """Run the sub-command, and say why it fails."""
        try:
            return super().invoke(ctx)
        except McspexError as error:
            for problem in error.problems if isinstance(error, PlanError) else ():
                console.error(problem)
            console.error(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:
            # A path that the system itself refuses: too long, in a locked folder, gone.
            if error.filename is None and error.errno in _FULL:
                console.error(f"standard output: writing failed ({error.strerror}). Free space?")
                ctx.exit(1)
            if error.filename is None:
                raise
            console.error(f"{error.filename}: {error.strerror}. Check this path.")
            ctx.exit(1)
        except KeyboardInterrupt:
            console.error("interrupted. What was finished is kept, nothing half-written is left.")
            ctx.exit(130)


def _end_gently() -> None:
    """Have SIGTERM, and a terminal's end unless nohup ignores it, do what Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) == signal.SIG_DFL:
        signal.signal(hang_up, signal.default_int_handler)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mcspex")
def main() -> None:
    """Pull one person's voice out of a recording, given a sample of that voice.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 some of several files failed,
    4 a mean below --fail-under, 5 the voice is absent, 130 interrupted.
    """


for command in (
    *(extract, batch, enroll, score, report, models, bench, simulate, train),
    *(doctor, completion),
):
    main.add_command(command)
log.add_option(main, console.warn)

if __name__ == "__main__":
    main(prog_name="mcspex")
