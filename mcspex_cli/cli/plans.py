"""What a batch would do, shown before it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli.cli import console

if TYPE_CHECKING:
    from mcspex_cli.extraction.jobs import Job
    from mcspex_cli.extraction.shares import BatchSettings

SHOWN = 20
"""Jobs that are listed for people; --json has all."""


def show(
    plan: Sequence[Job], settings: BatchSettings, folder: Path, *, overwrite: bool, as_json: bool
) -> None:
    """Print what would be done, and how long that would take here."""
    from mcspex_cli.extraction.batch import BatchRun, check_settings
    from mcspex_cli.extraction.journal import Journal
    from mcspex_cli.extraction.runtime import keep_memory

    journal = Journal(folder)
    if not overwrite:
        check_settings(folder, plan, journal, settings)
    run = BatchRun(plan, journal, settings)
    keep_memory()
    seconds = run.estimate_s()
    if as_json:
        rows = [_row(job) for job in run.todo]
        console.data({"done": len(run.skipped), "estimate_s": seconds, "jobs": rows}, indent=2)
        return
    shown = [
        (job.id, str(job.mixture), ", ".join(map(str, job.references)), _length(job))
        for job in run.todo[:SHOWN]
    ]
    more = len(run.todo) - len(shown)
    total = sum(job.seconds or 0.0 for job in run.todo)
    footer = (f"and {more} more" if more else "", "", "", f"{total:.1f}")
    console.table(("id", "mixture", "reference", "seconds"), shown, footer)
    console.say(
        f"{console.count(len(run.todo), 'file')} to do, {len(run.skipped)} done before; "
        f"about {console.duration(seconds)} here. Nothing was started."
    )


def _row(job: Job) -> dict[str, Any]:
    """A job for --dry-run --json."""
    return {
        "id": job.id,
        "mixture": str(job.mixture),
        "references": [str(path) for path in job.references],
        "truth": str(job.truth) if job.truth else None,
        "output": str(job.output),
        "seconds": job.seconds,
    }


def _length(job: Job) -> str:
    """A job's length for people."""
    return "unreadable" if job.seconds is None else f"{job.seconds:.1f}"
