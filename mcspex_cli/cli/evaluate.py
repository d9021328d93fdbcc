"""`mcspex score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options

if TYPE_CHECKING:
    from mcspex_cli.evaluation.scoring import Score, Summary


@click.command()
@click.argument("estimates", type=options.PATH, metavar="ESTIMATES")
@click.option(
    "--truth",
    required=True,
    type=options.PATH,
    metavar="FILE|DIR",
    help="What the target really said.",
)
@click.option(
    "--mixtures",
    type=options.PATH,
    metavar="FILE|DIR",
    help="What the estimates were extracted from, for SI-SDRi.",
)
@options.as_json
def score(estimates: Path, truth: Path, mixtures: Path | None, as_json: bool) -> None:
    """Score ESTIMATES, a file or a folder, against the truth.

    SI-SDR in dB, zero-mean, in float64; SI-SDRi is its gain over the mixture's. Files in
    folders are paired by name (a.target.wav with a.wav).
    """
    from mcspex_cli import paths
    from mcspex_cli.evaluation.scoring import pair, score_all, summarise

    for path in filter(None, (estimates, truth, mixtures)):
        paths.check_exists(path)
    scores = list(score_all(pair(estimates, truth, mixtures)))
    summary = summarise(scores)
    if as_json:
        rows = [asdict(row) for row in scores]
        console.data({"summary": asdict(summary), "scores": rows}, indent=2)
    else:
        _show(scores, summary)


def _show(scores: Sequence[Score], summary: Summary) -> None:
    """A table on stdout, remarks on stderr."""
    rows = [(s.name, _db(s.si_sdr_db), _db(s.si_sdr_i_db), s.status) for s in scores]
    footer = (f"mean of {summary.scored}", _db(summary.si_sdr_db), _db(summary.si_sdr_i_db), "")
    console.table(("file", "SI-SDR dB", "SI-SDRi dB", "status"), rows, footer)
    if summary.scored < summary.files:
        console.warn(
            f"{summary.files - summary.scored} files are not in the means, see their status."
        )
    if summary.negative is not None and summary.scored > 1:
        share = 100 * summary.negative / summary.scored
        console.say(f"negative SI-SDRi (target confusion): {summary.negative} ({share:.1f} %)")


def _db(value: float | None) -> str:
    """Two decimals, or a dash for what does not exist."""
    return "-" if value is None else f"{value:.2f}"
