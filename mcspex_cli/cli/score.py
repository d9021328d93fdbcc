"""`mcspex score`, and how commands show scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model
from mcspex_cli.errors import BelowThreshold, McspexError, PairingError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.evaluation.metrics import CompareWith
    from mcspex_cli.evaluation.scoring import Pairing
    from mcspex_cli.evaluation.summary import Report

NEEDS = {
    "target": "--truth",
    "mixture": "--mixtures",
    "interferers": "--interferers",
    "reference": "--ref or --refs",
    "transcript": "--transcripts",
    "batch": "the estimates of mcspex batch in its output folder",
}
"""What gives a metric what it needs."""

ASKED_FOR = {"target", "reference", "transcript"}
"""What, if it is given, says that the metrics that need it are wanted."""


class MetricsOption(click.Option):
    """An option whose help names the metrics and formats there are, imported only for the help."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        from mcspex_cli.evaluation.metrics import METRICS
        from mcspex_cli.evaluation.summary import REPORT_FORMATS

        self.help = (self.help or "").format(
            metrics=",".join(METRICS),
            of_truth=",".join(name for name, m in METRICS.items() if "target" in m.needs),
            suffixes=", ".join(suffix for suffix, _ in REPORT_FORMATS.values()),
        )
        return super().get_help_record(ctx)


def _formats() -> dict[str, str]:
    from mcspex_cli.evaluation.summary import REPORT_FORMATS

    return dict.fromkeys(["table", *REPORT_FORMATS], "")


@dataclass(frozen=True)
class ScoreRequest:
    """What `mcspex score` is asked for."""

    estimates: Path
    truth: Path | None
    mixtures: Path | None
    interferers: tuple[Path, ...]
    references: tuple[Path, ...]
    reference_folder: Path | None
    pattern: str | None
    transcripts: Path | None
    whisper: str
    model: str | None
    offline: bool
    metrics: str | None
    groups: Path | None
    group_by: str | None
    baseline: Path | None
    fail_under: tuple[str, ...]
    fail_over: tuple[str, ...]
    channel: str | None
    resample: bool
    flipped_ok: bool
    workers: int | None
    form: str
    as_json: bool
    every: bool
    outputs: tuple[Path, ...]


@click.command()
@click.argument("estimates", type=options.PATH, metavar="ESTIMATES")
@click.option(
    "--truth",
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
@options.reference(
    "Without a truth: a clip, or a profile, of the one voice in all estimates. Repeatable."
)
@options.references_by_name(
    "Without a truth: a reference for each estimate, by name, as for batch.",
    "Which part of an estimate's name is its reference's, as for batch.",
)
@click.option(
    "--transcripts",
    type=options.PATH,
    metavar="FILE|DIR",
    help="What the targets say, as .txt or .vtt, for word error rates.",
)
@click.option(
    "--whisper",
    default="base",
    show_default=True,
    metavar="NAME|DIR",
    help="The faster-whisper model for --transcripts; it has to be on this disk.",
)
@options.model
@click.option(
    "--metrics",
    cls=MetricsOption,
    metavar="NAMES",
    help="Some of {metrics}.  [default: all that are installed, for what is given]",
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
@click.option(
    "--fail-over",
    multiple=True,
    metavar="METRIC=MEAN",
    help="Exit with 4 if the mean is higher, as in wer=0.3. Repeatable.",
)
@click.option(
    "--channel",
    metavar="mix|0|1|..",
    help="What a mono estimate was extracted from, if the other files have several channels.",
)
@click.option(
    "--resample",
    is_flag=True,
    help="Convert other sample rates to the truth's, or without one to the estimate's.",
)
@click.option("--flipped-ok", is_flag=True, help="Count sign-flipped files: they sound the same.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes, where no network is used.  [default: one, or all cores for many files]",
)
@click.option(
    "--format",
    "form",
    cls=options.TableOption,
    rows=_formats,
    default="table",
    show_default=True,
    help="What to print to stdout",
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
def score(**values: Any) -> None:
    """Score ESTIMATES, a file or a folder, against the truth, or by what can be said without.

    Files in folders are paired by name (a.target.wav with a.wav). SI-SDR is zero-mean and computed
    in float64; SI-SDRi is its gain over the mixture's. Files with several channels get the mean
    over their channels. Silent, exact, sign-flipped and unusable files have a status and stay out
    of the means, which come with 95 % bootstrap intervals.

    Without --truth there are the similarity to a reference, the presence that batch measured, how
    much of the mixture's speech is left, DNSMOS and word error rates. These are hints.

    \b
    mcspex score estimates/ --truth truth/ --mixtures mixtures/ -o report.json
    mcspex score estimates/ --truth truth/ --baseline report.json --fail-under si_sdr=10
    mcspex score out/audio --refs refs/ --mixtures mixtures/
    """  # noqa: D301 (click needs the character itself)
    request = options.filled(ScoreRequest, values)
    _check_usage(request)
    _score(request, _limits(request))


def _check_usage(request: ScoreRequest) -> None:
    """Refuse combinations of options that mean nothing."""
    by_reference = request.references or request.reference_folder
    given = request.truth or by_reference or request.transcripts or request.metrics
    channel = request.channel
    for message, is_wrong in {
        "score by what? Add --truth, or for scores without a truth --ref, --refs, --transcripts "
        "or --metrics.": not given,
        "--ref is one voice for all, --refs one for each: not both.": request.references
        and request.reference_folder,
        "--pattern says which of --refs belongs to an estimate; add --refs.": request.pattern
        is not None
        and not request.reference_folder,
        "--interferers are compared with the truth; add --truth.": request.interferers
        and not request.truth,
        f"--channel {channel}: is none of mix, 0, 1, ...": channel
        and channel != "mix"
        and not channel.isdecimal(),
    }.items():
        if is_wrong:
            raise click.UsageError(message)


def _score(request: ScoreRequest, limits: Sequence[Limit]) -> None:
    from mcspex_cli import files
    from mcspex_cli.evaluation import summary
    from mcspex_cli.evaluation.metrics import check_installed
    from mcspex_cli.evaluation.scoring import ScoreSettings, missing_estimates, score_files

    check_installed([*(["wer"] if request.transcripts else []), *(limit.name for limit in limits)])
    places = (request.estimates, request.truth, request.mixtures, *request.interferers)
    folders = (*request.references, request.reference_folder, request.transcripts)
    inputs = [path for path in (*places, *folders) if path]
    for path in inputs:
        files.check_exists(path)
    summary.check_outputs(request.outputs, [*inputs, request.groups, request.baseline])
    groups = summary.read_groups(request.groups, request.group_by) if request.groups else None
    baseline = summary.read_baseline(request.baseline) if request.baseline else None
    pairings = _pair(request)
    sources = {
        "target": request.truth,
        "mixture": request.mixtures,
        "interferers": request.interferers,
        "reference": pairings[0].references,
        "transcript": request.transcripts,
        "batch": any(pairing.presence is not None for pairing in pairings),
    }
    given = {need for need, source in sources.items() if source}
    chosen = choose_metrics(request.metrics, given)
    settings = ScoreSettings(chosen, request.resample, request.flipped_ok, request.channel)
    compare_with = transcribe = None
    if "wer" in chosen:
        from mcspex_cli.evaluation.recognition import open_transcriber

        transcribe = open_transcriber(request.whisper)
    if {"similarity", "similarity_i"}.intersection(chosen):
        compare_with = _open_verifier(request, pairings)
    scores = score_files(pairings, settings, request.workers, compare_with, transcribe)
    rows = [row.to_dict() for row in console.track(scores, "scoring", len(pairings))]
    missing = missing_estimates(request.estimates, request.truth) if request.truth else []
    result = summary.report(rows, missing, groups, baseline)
    show(result, "json" if request.as_json else request.form, every=request.every)
    say_remarks(result)
    if not request.truth:
        console.say("These are hints: docs/scores-without-truth.md says what they can tell.")
    for path in request.outputs:
        summary.write(path, result)
        console.say(str(path))
    conclude(result, limits)


def _pair(request: ScoreRequest) -> list[Pairing]:
    """Each estimate with all that it is compared with."""
    from mcspex_cli.evaluation.recognition import add_presences, add_transcripts
    from mcspex_cli.evaluation.scoring import pair

    pairings = pair(request.estimates, request.truth, request.mixtures, request.interferers)
    if request.references or request.reference_folder:
        pairings = _add_references(pairings, request)
    if not request.truth or pairings[0].references:
        pairings = add_presences(pairings, request.estimates)
    if request.transcripts:
        pairings = add_transcripts(pairings, request.transcripts)
    return pairings


def _add_references(pairings: Sequence[Pairing], request: ScoreRequest) -> list[Pairing]:
    """Give each pairing its reference, found as `mcspex batch` finds it."""
    from mcspex_cli.batch.pairing import list_references
    from mcspex_cli.batch.plan import refuse
    from mcspex_cli.evaluation.scoring import case_name
    from mcspex_cli.extraction.reference import list_sources

    if request.reference_folder is None:
        sources = tuple(list_sources(request.references))
        return [replace(pairing, references=sources) for pairing in pairings]
    problems: list[str] = []
    warnings: list[str] = []
    known = list_references(request.reference_folder, request.pattern, problems, warnings)
    for text in warnings:
        console.warn(text)
    results = []
    for pairing in pairings:
        try:
            clips = known.clips[known.find(Path(case_name(pairing.name)).as_posix())]
            results.append(replace(pairing, references=tuple(map(Path, clips))))
        except PairingError as error:
            problems.append(f"{pairing.estimate}: {error}")
    refuse(problems)
    return results


def _open_verifier(request: ScoreRequest, pairings: Sequence[Pairing]) -> CompareWith:
    """Load the model, after what can be refused without it."""
    from mcspex_cli.evaluation.recognition import open_verifier
    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.reference import check_sources

    model = find_model(request.model, offline=request.offline)
    check_sources(dict.fromkeys(path for one in pairings for path in one.references), model)
    return open_verifier(Extractor.load(model), console.warn)


def choose_metrics(
    names: str | None, given: set[str], *, only_truth: bool = False
) -> tuple[str, ...]:
    """The metrics of a --metrics, or without one all that are installed and meant.

    Args:
        names: of the option.
        given: what there is to compare with, as `Metric.needs` names it. With a truth, metrics
            that need none are only meant if they are named, or if references or transcripts are
            given for them.
        only_truth: whether metrics that need no truth are refused.

    Raises:
        UsageError: a metric is unknown, or needs something that is not given; or there is none.
        ConfigError: a metric's package is not installed.
    """
    from mcspex_cli.evaluation.metrics import METRICS, check_installed

    if names is None:
        meant = [
            name
            for name, metric in METRICS.items()
            if given.issuperset(metric.needs)
            and ("target" not in given or ASKED_FOR.intersection(metric.needs))
        ]
        return tuple(name for name in meant if METRICS[name].is_installed)
    chosen = [name.strip().removesuffix("_db") for name in names.split(",")]
    for name in chosen:
        if name not in METRICS:
            raise click.UsageError(f"--metrics {name}: unknown. Use {', '.join(METRICS)}.")
        if only_truth and "target" not in METRICS[name].needs:
            raise click.UsageError(
                f"--metrics {name} needs no truth. Use mcspex score on the folder audio/."
            )
        for need in METRICS[name].needs:
            if need not in given:
                raise click.UsageError(f"--metrics {name} needs {NEEDS[need]}.")
    check_installed(chosen)
    return tuple(chosen)


def show(
    report: Report, form: str = "table", *, every: bool = False, hidden: Collection[str] = ()
) -> None:
    """Print a report to stdout: as a table for people, or in one of the formats of files.

    `hidden` are columns that the table leaves out.
    """
    from mcspex_cli.evaluation import summary

    if form != "table":
        console.text(summary.REPORT_FORMATS[form][1](report))
        return
    for table in summary.tables(report, every=every, hidden=hidden):
        console.table(table.headings, table.rows, table.footer, table.title)


def say_remarks(report: Report, *, quiet: bool = False) -> None:
    """Say on stderr which files were not scored, and what a reader of the means has to know.

    With `quiet`, only what is wrong. If there is only one file, `conclude` says its reason.
    """
    from mcspex_cli.evaluation import summary
    from mcspex_cli.evaluation.scoring import FLIPPED, REFUSED

    for row in report.rows if len(report.rows) > 1 else ():
        if row["status"] in REFUSED:
            console.error(row["note"])
    for line in summary.remarks(report):
        console.warn(line)
    if quiet:
        return
    if FLIPPED in report.summary.statuses:
        console.say("Nobody hears a flipped sign. --flipped-ok counts such files.")
    if line := summary.confusion(report):
        console.say(line)


@dataclass(frozen=True)
class Limit:
    """A mean that a metric's may not be under, or over."""

    side: str
    """"under" or "over"."""
    name: str
    value: float


def conclude(report: Report, limits: Sequence[Limit] = ()) -> None:
    """End a command as its scores deserve, after everything is printed.

    Raises:
        McspexError: no file could be scored, or a limit is on a metric without a value.
        PartialFailure: some files could not be scored.
        BelowThreshold: a mean is past its limit.
    """
    from mcspex_cli.evaluation.metrics import METRICS
    from mcspex_cli.evaluation.scoring import REFUSED

    refused = sum(row["status"] in REFUSED for row in report.rows)
    if refused and len(report.rows) == 1:
        raise McspexError(report.rows[0]["note"])
    if refused:
        kind = McspexError if refused == len(report.rows) else PartialFailure
        raise kind(f"{refused} of {len(report.rows)} files could not be scored, see above.")
    reasons = []
    for limit in limits:
        metric = METRICS[limit.name]
        if metric.column not in report.summary.metrics:
            raise McspexError(
                f"--fail-{limit.side} {limit.name}: no file has a value. Is it in --metrics?"
            )
        mean = report.summary.metrics[metric.column].mean
        if mean > limit.value if limit.side == "over" else mean < limit.value:
            text = f"mean {metric.heading} {metric.text(mean)} is {limit.side} {limit.value:g}"
            reasons.append(text)
    if reasons:
        raise BelowThreshold(f"{'; '.join(reasons)}.")


def _limits(request: ScoreRequest) -> list[Limit]:
    """The limits of --fail-under and --fail-over."""
    from mcspex_cli.evaluation.metrics import METRICS

    limits: dict[tuple[str, str], Limit] = {}
    for side, texts in (("under", request.fail_under), ("over", request.fail_over)):
        for text in texts:
            name, _, number = text.partition("=")
            name = name.strip().removesuffix("_db")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if name not in METRICS or not math.isfinite(value):
                raise click.UsageError(
                    f"--fail-{side} {text}: write METRIC=MEAN with one of {', '.join(METRICS)}."
                )
            if (side, name) in limits:
                raise click.UsageError(f"--fail-{side} names {name} twice.")
            limits[side, name] = Limit(side, name, value)
    return list(limits.values())
