"""`mcspex score`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options, results

if TYPE_CHECKING:
    from mcspex_cli.evaluation.scoring import ScoreSettings
    from mcspex_cli.evaluation.tables import Document


@dataclass(frozen=True)
class Inputs:
    """What is compared, with what, and in which groups."""

    estimates: Path
    truth: Path
    mixtures: Path | None
    interferers: tuple[Path, ...]
    groups: Path | None
    group_by: str | None
    baseline: Path | None

    def compared(self) -> list[Path]:
        """The files or folders that hold sounds."""
        mixtures = [self.mixtures] if self.mixtures else []
        return [self.estimates, self.truth, *mixtures, *self.interferers]


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
    help="What the estimates were extracted from, for SI-SDRi and target confusion.",
)
@click.option(
    "--interferers",
    multiple=True,
    type=options.PATH,
    metavar="FILE|DIR",
    help="What another talker said, for SIR, SAR and target confusion. Repeatable.",
)
@click.option(
    "--metrics",
    metavar="NAMES",
    help="Of si_sdr,si_sdr_i,snr,sdr,sir,sar,pesq,stoi,estoi. Default: all there are.",
)
@click.option("--groups", type=options.PATH, metavar="CSV", help="Cases (id or name) and groups.")
@click.option("--group-by", metavar="COLUMN", help="Its column.  [default: group, or the only one]")
@click.option(
    "--baseline", type=options.PATH, metavar="JSON", help="An earlier report, to compare."
)
@click.option(
    "--fail-under",
    multiple=True,
    metavar="METRIC=MEAN",
    help="Exit 4 if a mean is lower, like si_sdr_i=10. Repeatable.",
)
@click.option("--resample", is_flag=True, help="Bring other sample rates to the truth's.")
@click.option("--flipped-ok", is_flag=True, help="Count sign-flipped files; they sound the same.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one, or as many as cores for many files]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
    help="What to print to stdout.",
)
@options.as_json
@click.option("--all", "every", is_flag=True, help="List all files, not the worst ten of over 50.")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=options.PATH,
    metavar="FILE",
    help="Also write to a .json, .csv or .md file. Repeatable.",
)
def score(
    estimates: Path,
    truth: Path,
    mixtures: Path | None,
    interferers: tuple[Path, ...],
    metrics: str | None,
    groups: Path | None,
    group_by: str | None,
    baseline: Path | None,
    fail_under: tuple[str, ...],
    resample: bool,
    flipped_ok: bool,
    workers: int | None,
    form: str,
    as_json: bool,
    every: bool,
    outputs: tuple[Path, ...],
) -> None:
    """Score ESTIMATES, a file or a folder, against the truth.

    Files in folders are paired by name (a.target.wav with a.wav). SI-SDR is zero-mean, in
    float64; SI-SDRi is its gain over the mixture's. Silent, exact, sign-flipped and refused
    files have a status and stay out of the means, which come with 95 % bootstrap intervals.

    \b
    mcspex score estimates/ --truth truth/ --mixtures mixtures/ -o report.json
    mcspex score estimates/ --truth truth/ --baseline report.json --fail-under si_sdr=10
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.evaluation.scoring import ScoreSettings

    inputs = Inputs(estimates, truth, mixtures, interferers, groups, group_by, baseline)
    limits = _limits(fail_under)
    chosen = results.metrics(metrics, mixtures=bool(mixtures), interferers=bool(interferers))
    settings = ScoreSettings(chosen, resample, flipped_ok)
    document = _document(inputs, settings, workers, outputs)
    results.show(document, "json" if as_json else form, every=every)
    results.remark(document)
    results.save(document, outputs)
    results.conclude(document, limits)


def _limits(texts: Sequence[str]) -> dict[str, float]:
    """The lowest means allowed, by column."""
    limits = dict(map(_limit, texts))
    if len(limits) < len(texts):
        raise click.UsageError("--fail-under names a metric twice.")
    return limits


def _limit(text: str) -> tuple[str, float]:
    """The column and the number of a --fail-under."""
    from mcspex_cli.evaluation.metrics import COLUMNS

    name, _, number = text.partition("=")
    column = COLUMNS.get(name.strip().removesuffix("_db"))
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if column is None or not math.isfinite(limit):
        known = ", ".join(COLUMNS)
        raise click.UsageError(f"--fail-under {text}: write METRIC=MEAN with one of {known}.")
    return column, limit


def _document(
    inputs: Inputs, settings: ScoreSettings, workers: int | None, outputs: Sequence[Path]
) -> Document:
    """Check everything that can be checked before, then score."""
    from mcspex_cli import files
    from mcspex_cli.evaluation import reports
    from mcspex_cli.evaluation.baselines import read_baseline
    from mcspex_cli.evaluation.groups import read_groups
    from mcspex_cli.evaluation.pairing import pair, without_estimate
    from mcspex_cli.evaluation.scoring import sensible_workers

    for path in inputs.compared():
        files.check_exists(path)
    reports.check_outputs(outputs, [*inputs.compared(), inputs.groups, inputs.baseline])
    groups = read_groups(inputs.groups, inputs.group_by) if inputs.groups else None
    baseline = read_baseline(inputs.baseline) if inputs.baseline else None
    trios = pair(inputs.estimates, inputs.truth, inputs.mixtures, inputs.interferers)
    absent = without_estimate(inputs.estimates, inputs.truth)
    workers = workers or sensible_workers(len(trios), settings.metrics)
    rows = _score(trios, settings, min(workers, len(trios)))
    return reports.build(rows, absent, groups, baseline)


def _score(trios: Sequence[Any], settings: ScoreSettings, workers: int) -> list[dict[str, Any]]:
    """Rows in order, with a progress bar."""
    from mcspex_cli.evaluation.scoring import score_all

    rows = []
    with console.progress(shown=True) as bar:
        task = bar.add_task("scoring", total=len(trios))
        for row in score_all(trios, settings, workers):
            rows.append(asdict(row))
            bar.advance(task)
    return rows
