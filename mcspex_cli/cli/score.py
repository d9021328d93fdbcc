"""`mcspex score`, and how commands show scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options
from mcspex_cli.errors import BelowThreshold, McspexError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.evaluation.summary import Report

NEEDS = {"target": "--truth", "mixture": "--mixtures", "interferers": "--interferers"}
"""The option that gives what a metric needs."""


class MetricsOption(click.Option):
    """An option whose help names the metrics and formats there are, imported only for the help."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        from mcspex_cli.evaluation.metrics import METRICS
        from mcspex_cli.evaluation.tables import FORMATS

        self.help = (self.help or "").format(
            metrics=",".join(METRICS),
            formats=", ".join(FORMATS),
            suffixes=", ".join(suffix for suffix, _ in FORMATS.values()),
        )
        return super().get_help_record(ctx)


def _check_format(_: click.Context, __: click.Parameter, name: str) -> str:
    from mcspex_cli.evaluation.tables import FORMATS

    if name not in ("table", *FORMATS):
        raise click.BadParameter(f"{name!r} is not one of table, {', '.join(FORMATS)}.")
    return name


@click.command()
@click.argument("estimates", type=options.PATH, metavar="ESTIMATES")
@click.option(
    "--truth",
    required=True,
    type=options.PATH,
    metavar="FILE|DIR",
    help="The target's speech alone, as it was recorded.",
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
    help="Another talker's speech alone, for SIR, SAR and target confusion. Repeatable.",
)
@click.option(
    "--metrics",
    cls=MetricsOption,
    metavar="NAMES",
    help="Some of {metrics}.  [default: all that are installed]",
)
@options.grouping
@click.option(
    "--baseline", type=options.PATH, metavar="JSON", help="An earlier report to compare with."
)
@click.option(
    "--fail-under",
    multiple=True,
    metavar="METRIC=MEAN",
    help="Exit with 4 if the mean is lower, as in si_sdr_i=10. Repeatable.",
)
@click.option("--resample", is_flag=True, help="Convert other sample rates to the truth's.")
@click.option("--flipped-ok", is_flag=True, help="Count sign-flipped files: they sound the same.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one, or as many as cores for many files]",
)
@click.option(
    "--format",
    "form",
    cls=MetricsOption,
    default="table",
    show_default=True,
    callback=_check_format,
    metavar="NAME",
    help="What to print to stdout: table, {formats}.",
)
@options.as_json
@click.option("--all", "every", is_flag=True, help="List all files, not the worst ten of over 50.")
@click.option(
    "-o",
    "--output",
    "outputs",
    cls=MetricsOption,
    multiple=True,
    type=options.PATH,
    metavar="FILE",
    help="Also write to a file that ends in {suffixes}. Repeatable.",
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

    Files in folders are paired by name (a.target.wav with a.wav). SI-SDR is zero-mean and computed
    in float64; SI-SDRi is its gain over the mixture's. Files with several channels get the mean
    over their channels. Silent, exact, sign-flipped and unusable files have a status and stay out
    of the means, which come with 95 % bootstrap intervals.

    \b
    mcspex score estimates/ --truth truth/ --mixtures mixtures/ -o report.json
    mcspex score estimates/ --truth truth/ --baseline report.json --fail-under si_sdr=10
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli import files
    from mcspex_cli.evaluation import tables
    from mcspex_cli.evaluation.metrics import check_installed
    from mcspex_cli.evaluation.scoring import ScoreSettings, missing_estimates, pair, score_files
    from mcspex_cli.evaluation.summary import read_baseline, read_groups, report

    limits = _limits(fail_under)
    given = {"target"} | ({"mixture"} if mixtures else set())
    chosen = choose_metrics(metrics, given | ({"interferers"} if interferers else set()))
    check_installed([*limits])
    compared = [estimates, truth, *([mixtures] if mixtures else []), *interferers]
    for path in compared:
        files.check_exists(path)
    tables.check_outputs(outputs, [*compared, groups, baseline])
    known_groups = read_groups(groups, group_by) if groups else None
    known_baseline = read_baseline(baseline) if baseline else None
    pairings = pair(estimates, truth, mixtures, interferers)
    missing = missing_estimates(estimates, truth)
    settings = ScoreSettings(chosen, resample, flipped_ok)
    rows = []
    with console.progress(shown=True) as bar:
        task = bar.add_task("scoring", total=len(pairings))
        for row in score_files(pairings, settings, workers):
            rows.append(row.to_dict())
            bar.advance(task)
    result = report(rows, missing, known_groups, known_baseline)
    show(result, "json" if as_json else form, every=every)
    say_remarks(result)
    for path in outputs:
        tables.write(path, result)
        console.say(str(path))
    conclude(result, limits)


def choose_metrics(names: str | None, given: set[str]) -> tuple[str, ...]:
    """The metrics of a --metrics, or without one all that are installed.

    `given` is what there is to compare with, as `Metric.needs` names it.

    Raises:
        UsageError: a metric is unknown, or needs something that is not given.
        ConfigError: a metric's package is not installed.
    """
    from mcspex_cli.evaluation.metrics import METRICS, check_installed

    if names is None:
        return tuple(name for name, metric in METRICS.items() if metric.is_installed)
    chosen = [name.strip().removesuffix("_db") for name in names.split(",")]
    for name in chosen:
        if name not in METRICS:
            raise click.UsageError(f"--metrics {name}: unknown. Use {', '.join(METRICS)}.")
        for need in METRICS[name].needs:
            if need not in given:
                raise click.UsageError(f"--metrics {name} needs {NEEDS[need]}.")
    check_installed(chosen)
    return tuple(chosen)


def show(report: Report, form: str = "table", *, every: bool = False) -> None:
    """Print a report to stdout: as a table for people, or in one of the formats of files."""
    from mcspex_cli.evaluation import tables

    if form != "table":
        console.text(tables.FORMATS[form][1](report))
        return
    for table in tables.tables(report, every=every):
        console.table(table.headings, table.rows, table.footer, table.title)


def say_remarks(report: Report, *, quiet: bool = False) -> None:
    """Say on stderr which files were not scored, and what a reader of the means has to know.

    With `quiet`, only what is wrong. If there is only one file, `conclude` says its reason.
    """
    from mcspex_cli.evaluation import tables
    from mcspex_cli.evaluation.scoring import FLIPPED, REFUSED

    for row in report.rows if len(report.rows) > 1 else ():
        if row["status"] in REFUSED:
            console.error(row["note"])
    for line in tables.remarks(report):
        console.warn(line)
    if quiet:
        return
    if FLIPPED in report.summary.statuses:
        console.say("Nobody hears a flipped sign. --flipped-ok counts such files.")
    if line := tables.confusion(report):
        console.say(line)


def conclude(report: Report, limits: Mapping[str, float]) -> None:
    """End a command as its scores deserve, after everything is printed.

    `limits` are the lowest means allowed, by the metric's name.

    Raises:
        McspexError: no file could be scored, or a limit is on a metric without a value.
        PartialFailure: some files could not be scored.
        BelowThreshold: a mean is under its limit.
    """
    from mcspex_cli.evaluation.metrics import METRICS
    from mcspex_cli.evaluation.scoring import REFUSED

    refused = sum(row["status"] in REFUSED for row in report.rows)
    if refused and len(report.rows) == 1:
        raise McspexError(report.rows[0]["note"])
    if refused:
        kind = McspexError if refused == len(report.rows) else PartialFailure
        raise kind(f"{refused} of {len(report.rows)} files could not be scored, see above.")
    short = []
    for name, limit in limits.items():
        metric = METRICS[name]
        if metric.column not in report.summary.metrics:
            raise McspexError(f"--fail-under {name}: no file has a value. Is it in --metrics?")
        mean = report.summary.metrics[metric.column].mean
        if mean < limit:
            short.append(f"mean {metric.heading} {metric.text(mean)} is under {limit:g}")
    if short:
        raise BelowThreshold(f"{'; '.join(short)}.")


def _limits(texts: Sequence[str]) -> dict[str, float]:
    from mcspex_cli.evaluation.metrics import METRICS

    limits: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        name = name.strip().removesuffix("_db")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in METRICS or not math.isfinite(limit):
            known = ", ".join(METRICS)
            raise click.UsageError(f"--fail-under {text}: write METRIC=MEAN with one of {known}.")
        if name in limits:
            raise click.UsageError(f"--fail-under names {name} twice.")
        limits[name] = limit
    return limits
