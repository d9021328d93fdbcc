"""How commands that score show what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console
from mcspex_cli.errors import BelowThreshold, McspexError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.evaluation.tables import Document


def metrics(names: str | None, *, mixtures: bool, interferers: bool) -> tuple[str, ...]:
    """The metrics asked for, or all that can be computed, with advice for the others."""
    from mcspex_cli.evaluation import perceptual
    from mcspex_cli.evaluation.metrics import COLUMNS

    if names is None:
        if missing := perceptual.missing():
            console.warn(f"no {', '.join(missing)}: not installed. {perceptual.ADVICE}")
        return tuple(name for name in COLUMNS if name not in missing)
    chosen = [name.strip().removesuffix("_db") for name in names.split(",")]
    if unknown := [name for name in chosen if name not in COLUMNS]:
        raise click.UsageError(f"--metrics {unknown[0]}: unknown, use {', '.join(COLUMNS)}.")
    if "si_sdr_i" in chosen and not mixtures:
        raise click.UsageError("--metrics si_sdr_i needs --mixtures.")
    if {"sir", "sar"} & set(chosen) and not interferers:
        raise click.UsageError("--metrics sir and sar need --interferers.")
    perceptual.check_installed(chosen)
    return tuple(chosen)


def show(document: Document, form: str, *, every: bool = False) -> None:
    """Print a document to stdout: as "table" for people, or json, csv or markdown."""
    from mcspex_cli.evaluation import reports, tables

    if form != "table":
        console.text(reports.document_text(document, form))
        return
    for table in tables.tables(document, every=every):
        console.table(table.headings, table.rows, table.footer, table.title)


def remark(document: Document, *, quiet: bool = False) -> None:
    """Say on stderr which files were refused, and what a reader of the means has to know.

    If `quiet`, only what is wrong. A single file's refusal is left to `conclude`.
    """
    from mcspex_cli.evaluation import tables
    from mcspex_cli.evaluation.scoring import REFUSED

    rows = document["scores"]
    for row in rows if len(rows) > 1 else ():
        if row["status"] in REFUSED:
            console.error(row["note"])
    for line in tables.remarks(document):
        console.warn(line)
    if quiet:
        return
    if "sign flipped" in document["summary"]["statuses"]:
        console.say("A flipped sign is not heard; mcspex score --flipped-ok counts such files.")
    if said := tables.confusion(document):
        console.say(said)


def remark_absent(document: Document, absent: str) -> None:
    """Warn on stderr of voices that are not there; `absent` is what was done with them."""
    from mcspex_cli.evaluation import tables

    if said := tables.absences(document):
        hint = "silenced" if absent == "mute" else "--absent mute silences them"
        console.warn(f"{said} ({hint})")


def save(document: Document, outputs: Sequence[Path]) -> None:
    """Write a document to files, each in the format of its suffix."""
    from mcspex_cli.evaluation import reports

    for path in outputs:
        reports.write(path, document)
        console.say(str(path))


def conclude(document: Document, limits: Mapping[str, float]) -> None:
    """End a command as its numbers deserve; all is printed by now.

    Raises:
        McspexError: no file could be scored, or a limit is on a metric without a value.
        PartialFailure: some files could not be scored.
        BelowThreshold: a mean is under its limit.
    """
    from mcspex_cli.evaluation import reports
    from mcspex_cli.evaluation.scoring import REFUSED

    rows = document["scores"]
    refused = sum(row["status"] in REFUSED for row in rows)
    if refused and len(rows) == 1:
        raise McspexError(rows[0]["note"])
    if refused:
        kind = McspexError if refused == len(rows) else PartialFailure
        raise kind(f"{refused} of {len(rows)} files could not be scored, see above.")
    if short := reports.shortfalls(document, limits):
        raise BelowThreshold(f"{'; '.join(short)}.")
