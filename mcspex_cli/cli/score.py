"""`mcspex score` and `mcspex report`, and how commands show scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mcspex_cli import files
from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import flag, option, path, paths
from mcspex_cli.errors import BelowThreshold, ConfigError, McspexError, PairingError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.evaluation.comparison import PageSettings
    from mcspex_cli.evaluation.metrics import Need
    from mcspex_cli.evaluation.pairing import Pairing
    from mcspex_cli.evaluation.report import Report


def metrics_of_batch() -> dict[str, str]:
    """The metrics that `mcspex batch --truth` offers: those of the truth and the mixture."""
    from mcspex_cli.evaluation.metrics import METRICS

    given = {"target", "mixture"}
    return {
        name: metric.meaning
        for name, metric in METRICS.items()
        if "target" in metric.needs and given.issuperset(metric.needs)
    }


def _formats() -> dict[str, str]:
    from mcspex_cli.evaluation.report import REPORT_FORMATS

    return dict.fromkeys(["table", *REPORT_FORMATS], "")


def _suffixes() -> dict[str, str]:
    from mcspex_cli.evaluation.report import REPORT_FORMATS

    return {suffix: "" for suffix, _ in REPORT_FORMATS.values()}


class Limit(NamedTuple):
    """A value of a metric's mean; the command fails if the mean is "under" it, or "over" it."""

    side: str
    metric: str
    value: float


def _limits(
    __: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> tuple[Limit, ...]:
    """--fail-under or --fail-over as limits."""
    from mcspex_cli.evaluation.metrics import METRICS

    name_of_option = parameter.opts[0]
    limits: dict[str, Limit] = {}
    for text in texts:
        name, _, number = text.partition("=")
        name = name.strip().removesuffix("_db")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in METRICS or not math.isfinite(value):
            raise click.UsageError(
                f"{name_of_option} {text}: write METRIC=MEAN with one of {', '.join(METRICS)}."
            )
        if name in limits:
            raise click.UsageError(f"{name_of_option} names {name} twice.")
        limits[name] = Limit(name_of_option.removeprefix("--fail-"), name, value)
    return tuple(limits.values())


def _channel(_: click.Context, __: click.Parameter, channel: str | None) -> str | None:
    if channel and channel != "mix" and not channel.isdecimal():
        raise click.UsageError(f"--channel {channel}: is none of mix, 0, 1, ...")
    return channel


_CHANNEL = option(
    "mix|0|1|..",
    "What a mono estimate was extracted from, if the other files have several channels.",
    type=options.TEXT,
    callback=_channel,
)
_RESAMPLE = flag("Convert other sample rates to the truth's, or without a truth to the estimate's.")


@dataclass(frozen=True)
class ScoreRequest:
    """The arguments of `mcspex score`."""

    estimates: Path = options.argument("ESTIMATES", type=options.PATH)
    truth: Path | None = path("FILE|DIR", "The target's speech alone, as it was recorded.")
    mixtures: Path | None = path(
        "FILE|DIR", "What the estimates were extracted from, for SI-SDRi and target confusion."
    )
    interferers: tuple[Path, ...] = paths(
        "FILE|DIR", "Another talker's speech alone, for SIR, SAR and target confusion. Repeatable."
    )
    references: tuple[Path, ...] = options.references(
        "For scores without a truth: a clip or profile of the one voice in all estimates. "
        "Repeatable."
    )
    reference_folder: Path | None = path(
        "DIR|SCP",
        "For scores without a truth: a reference for each estimate, by name, as in batch.",
        "--refs",
    )
    pattern: str | None = option(
        "TEXT", "Which part of an estimate's name is the name of its reference, as in batch."
    )
    transcripts: Path | None = path(
        "FILE|DIR", "What the targets say, as .txt or .vtt, for word error rates."
    )
    whisper: str = option(
        "NAME|DIR",
        "The faster-whisper model for --transcripts; it must be on this disk already.",
        default="base",
    )
    model: str | None = options.MODEL
    offline: bool = options.OFFLINE
    metrics: str | None = option(
        "NAMES",
        "Some of {}.  [default: all that are installed and have what they need]",
        cls=options.TableOption,
        rows=options.table("evaluation.metrics", "METRICS"),
        strict=False,
    )
    groups: Path | None = options.GROUPS
    group_by: str | None = options.GROUP_BY
    baseline: Path | None = path("JSON", "An earlier report to compare with.")
    fail_under: tuple[Limit, ...] = option(
        "METRIC=MEAN",
        "Exit with 4 if the mean is lower, as in si_sdr_i=10. Repeatable.",
        multiple=True,
        callback=_limits,
    )
    fail_over: tuple[Limit, ...] = option(
        "METRIC=MEAN",
        "Exit with 4 if the mean is higher, as in wer=0.3. Repeatable.",
        multiple=True,
        callback=_limits,
    )
    channel: str | None = _CHANNEL
    resample: bool = _RESAMPLE
    flipped_ok: bool = flag("Count sign-flipped files in the means, as they sound the same.")
    workers: int | None = option(
        "N",
        "How many processes; with voices or words to compare, it is always one.  [default: one, or "
        "for many files one per core]",
        type=click.IntRange(1, 1024),
    )
    form: str = options.choice(_formats, "What to print to stdout", "--format", default="table")
    as_json: bool = options.JSON
    every: bool = flag(
        "List all files. By default, of more than 50 only the worst ten are listed.",
        "--all",
    )
    outputs: tuple[Path, ...] = paths(
        "FILE",
        "Also write to a file that ends in {}. Repeatable.",
        "-o",
        "--output",
        cls=options.TableOption,
        rows=_suffixes,
        strict=False,
    )


@options.command()
def score(request: ScoreRequest = options.group(ScoreRequest)) -> None:
    """Score ESTIMATES, a file or a folder, with or without the truth.

    Files in folders are paired by name (a.target.wav with a.wav). SI-SDR is zero-mean and computed
    in float64; SI-SDRi is the improvement over the mixture. Files with several channels get the
    mean over their channels. Silent, exact, sign-flipped and unusable files have a status and stay
    out of the means, which have 95 % bootstrap intervals.

    Without --truth, the scores are the similarity to a reference, the presence that batch measured,
    how much of the mixture's speech is left, DNSMOS and word error rates. These are hints.

    \b
    mcspex score estimates/ --truth truth/ --mixtures mixtures/ -o report.json
    mcspex score estimates/ --truth truth/ --baseline report.json --fail-under si_sdr=10
    mcspex score out/audio --refs refs/ --mixtures mixtures/
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli import Extractor
    from mcspex_cli.evaluation import metrics, report, scoring
    from mcspex_cli.evaluation.pairing import missing_estimates
    from mcspex_cli.extraction.reference import check_references

    _check_usage(request)
    limits = (*request.fail_under, *request.fail_over)
    of_words = [m.name for m in metrics.METRICS.values() if "transcript" in m.needs]
    metrics.check_installed(
        [*(of_words if request.transcripts else ()), *(limit.metric for limit in limits)]
    )
    inputs = [*_compared_paths(request), request.groups, request.baseline]
    report.check_outputs(request.outputs, inputs)
    groups = report.read_groups(request.groups, request.group_by) if request.groups else None
    baseline = report.read_baseline(request.baseline) if request.baseline else None
    pairings = _pair(request)
    if baseline:  # before the work: all scores would be lost
        report.check_baseline(baseline, [pairing.name for pairing in pairings])
    given = {need for need, source in SOURCES.items() if source.read(request, pairings)}
    chosen = choose_metrics(request.metrics, given)
    _check_limits(limits, chosen, given)
    settings = scoring.ScoreSettings(chosen, request.resample, request.flipped_ok, request.channel)
    needs = {need for name in chosen for need in metrics.METRICS[name].needs}
    verifier = transcribe = None
    if "transcript" in needs:
        transcribe = metrics.open_transcriber(request.whisper)
    if "reference" in needs:
        model = options.find_model(request.model, offline=request.offline)
        clips = dict.fromkeys(clip for pairing in pairings for clip in pairing.references)
        check_references(clips, model)
        verifier = metrics.open_verifier(Extractor.load(model))
    scores = scoring.score_files(pairings, settings, request.workers, verifier, transcribe)
    rows = [score.to_dict() for score in console.track(scores, "scoring", len(pairings))]
    missing = missing_estimates(request.estimates, request.truth) if request.truth else []
    result = report.make_report(rows, missing, groups, baseline)
    try:  # before anything is shown, since standard output may be closed or full
        with files.together():
            for output in request.outputs:
                report.write(output, result)
    finally:
        show(result, "json" if request.as_json else request.form, every=request.every)
    say_remarks(result, chosen)
    if not request.truth:
        console.say("These are hints: docs/scores-without-truth.md says what they can tell.")
    for output in request.outputs:
        console.say(str(output))
    conclude(result, limits)


def _check_usage(request: ScoreRequest) -> None:
    """Refuse combinations of options that mean nothing."""
    by_reference = request.references or request.reference_folder
    if not (request.truth or by_reference or request.transcripts or request.metrics):
        raise click.UsageError(
            "score by what? Add --truth, or for scores without a truth --ref, --refs, "
            "--transcripts or --metrics."
        )
    check_reference_usage(request.references, request.reference_folder)
    options.check_needs(
        {
            "interferers": ("truth",),
            "flipped_ok": ("truth",),
            "model": ("references", "reference_folder"),
            "whisper": ("transcripts",),
            "group_by": ("groups",),
            "pattern": ("reference_folder",),
        }
    )
    _check_roles(request.truth, request.mixtures, request.interferers)
    if request.as_json and request.form not in ("table", "json"):
        raise click.UsageError(f"--json and --format {request.form} are two formats: name one.")


def _check_limits(limits: Sequence[Limit], chosen: Sequence[str], given: set[Need]) -> None:
    """Refuse a limit on a metric that is not computed."""
    from mcspex_cli.evaluation.metrics import METRICS

    for limit in limits:
        if limit.metric not in chosen:
            needs = [SOURCES[n].name for n in METRICS[limit.metric].needs if n not in given]
            problem = f"needs {needs[0]}." if needs else "is not computed. Add it to --metrics."
            raise click.UsageError(f"--fail-{limit.side} {limit.metric} {problem}")


def check_reference_usage(references: Sequence[Path], folder: Path | None) -> None:
    """Refuse --ref beside --refs."""
    if references and folder:
        raise click.UsageError(
            "--ref names one voice for all files, --refs one for each: give only one of them."
        )


def _check_roles(truth: Path | None, mixtures: Path | None, interferers: Sequence[Path]) -> None:
    """Refuse files that are given as two things, as scores would look right and be wrong."""
    roles = [("--truth", truth), ("--mixtures", mixtures)]
    roles += [("--interferers", each) for each in interferers]
    first: dict[Path, str] = {}
    for role, each in roles:
        if each and (other := first.setdefault(each.resolve(), role)) != role:
            raise click.UsageError(f"{other} and {role} both name {each}: give each its own files.")


def _compared_paths(request: ScoreRequest) -> list[Path]:
    """The files and folders to compare, each of which has to be there."""
    optional = (request.truth, request.mixtures, request.reference_folder, request.transcripts)
    given = [request.estimates, *request.interferers, *request.references, *filter(None, optional)]
    for each in given:
        files.check_exists(each)
    return given


def _pair(request: ScoreRequest) -> list[Pairing]:
    """Each estimate with the files that it is compared with, its words and its presence."""
    from mcspex_cli.evaluation import report
    from mcspex_cli.evaluation.pairing import pair

    pairings = pair(
        request.estimates, request.truth, request.mixtures, request.interferers, request.transcripts
    )
    if request.references or request.reference_folder:
        pairings = _add_references(pairings, request)
    presences: dict[Path, float | None] = {}
    try:
        presences = report.read_presences(request.estimates)
    except ConfigError as error:
        console.warn(f"presence is not known: {error}")
    return [replace(p, presence=presences.get(files.real_path(p.estimate))) for p in pairings]


def _add_references(pairings: Sequence[Pairing], request: ScoreRequest) -> list[Pairing]:
    """Give each pairing its reference, found as `mcspex batch` finds it."""
    from mcspex_cli.batch.manifest import list_references, refuse
    from mcspex_cli.evaluation.pairing import case_name
    from mcspex_cli.extraction.reference import list_sources

    if request.reference_folder is None:
        sources = tuple(list_sources(request.references))
        return [replace(pairing, references=sources) for pairing in pairings]
    problems: list[str] = []
    by_name = list_references(request.reference_folder, request.pattern, problems)
    results = []
    for pairing in pairings:
        try:
            name = pairing.name if request.estimates.is_dir() else case_name(pairing.name)
            clips = by_name.find(Path(name).as_posix())
            results.append(replace(pairing, references=tuple(map(Path, clips))))
        except PairingError as error:
            problems.append(f"{pairing.estimate}: {error}")
    refuse(problems)
    return results


class Source(NamedTuple):
    """Where what a metric needs comes from."""

    name: str
    """The option or input, for messages."""
    read: Callable[[ScoreRequest, Sequence[Pairing]], object]
    """Returns it; it is not given where this is false."""


SOURCES: dict[Need, Source] = {
    "target": Source("--truth", lambda request, _: request.truth),
    "mixture": Source("--mixtures", lambda request, _: request.mixtures),
    "interferers": Source("--interferers", lambda request, _: request.interferers),
    "reference": Source("--ref or --refs", lambda _, pairings: pairings[0].references),
    "transcript": Source("--transcripts", lambda request, _: request.transcripts),
    "batch": Source(
        "the estimates of mcspex batch in its output folder, by a model that is calibrated",
        lambda _, pairings: any(pairing.presence is not None for pairing in pairings),
    ),
}
"""For every `Need` of metrics, where it comes from."""


def choose_metrics(
    names: str | None, given: set[Need], *, in_batch: bool = False
) -> tuple[str, ...]:
    """The metrics that --metrics names; without it all that are installed and have what they need.

    `given` is what there is to compare with. If a truth is given, those that need neither it, nor
    references, nor transcripts have to be named: they say less than it.
    """
    from mcspex_cli.evaluation.metrics import METRICS, check_installed

    if names is None:
        decisive = {"target", "reference", "transcript"}
        return tuple(
            name
            for name, metric in METRICS.items()
            if given.issuperset(metric.needs)
            and ("target" not in given or decisive.intersection(metric.needs))
            and metric.is_installed
        )
    chosen = [name.strip().removesuffix("_db") for name in names.split(",")]
    for name in chosen:
        if name not in METRICS:
            text = name or repr(names)
            raise click.UsageError(f"--metrics {text}: unknown. Use {', '.join(METRICS)}.")
        if in_batch and name not in metrics_of_batch():
            possible = ", ".join(metrics_of_batch())
            raise click.UsageError(
                f"--metrics {name}: batch computes {possible}. Use mcspex score on its audio/."
            )
        for need in METRICS[name].needs:
            if need not in given:
                raise click.UsageError(f"--metrics {name} needs {SOURCES[need].name}.")
    check_installed(chosen)
    return tuple(chosen)


def show(
    report: Report, form: str = "table", *, every: bool = False, only_of_truth: bool = False
) -> None:
    """Print a report to stdout: its `tables` for people, or in one of the formats of files."""
    from mcspex_cli.evaluation.report import REPORT_FORMATS, tables

    if form != "table":
        console.text(REPORT_FORMATS[form][1](report))
        return
    for table in tables(report, every=every, only_of_truth=only_of_truth):
        console.table(table.headings, table.rows, table.footer, table.title)


def say_remarks(report: Report, metrics: Sequence[str]) -> None:
    """Say on stderr which files were not scored, and what a reader of the means has to know.

    `metrics` are the names of those that were to be computed. If there is only one file, `conclude`
    says its reason.
    """
    from mcspex_cli.evaluation.report import confusion_text, refusals, remarks
    from mcspex_cli.evaluation.scoring import Status

    for line in refusals(report.rows) if len(report.rows) > 1 else ():
        console.error(line)
    for line in remarks(report, metrics):
        console.warn(line)
    if Status.FLIPPED in report.summary.statuses:
        console.say("A flipped sign cannot be heard. --flipped-ok counts such files in the means.")
    if line := confusion_text(report):
        console.say(line)


def conclude(report: Report, limits: Sequence[Limit] = ()) -> None:
    """Fail if the scores call for it, after everything is printed.

    Raises:
        McspexError: no file could be scored, or a limit is on a metric without a value.
        PartialFailure: some files could not be scored.
        BelowThreshold: a mean is past its limit.
    """
    from mcspex_cli.evaluation.metrics import METRICS
    from mcspex_cli.evaluation.report import refusals

    refused, count = refusals(report.rows), len(report.rows)
    if refused and count == 1:
        raise McspexError(refused[0])
    if refused:
        kind = McspexError if len(refused) == count else PartialFailure
        raise kind(f"{len(refused)} of {count} files could not be scored, see above.")
    reasons = []
    for limit in limits:
        metric = METRICS[limit.metric]
        spread = report.summary.metrics.get(metric.column)
        if spread is None:
            name = f"--fail-{limit.side} {limit.metric}"
            raise McspexError(f"{name}: no file has a value. See above.")
        if spread.mean > limit.value if limit.side == "over" else spread.mean < limit.value:
            mean = f"mean {metric.heading} {metric.text(spread.mean)}"
            reasons.append(f"{mean} is {limit.side} {limit.value:g}")
    if reasons:
        raise BelowThreshold(f"{'; '.join(reasons)}.")


def _page_settings(
    truth: Path | None = path("DIR", "The targets' speech alone."),
    mixtures: Path | None = path("DIR", "What the estimates were extracted from."),
    groups: Path | None = path(
        "CSV",
        "A table of cases (id or name) and their groups, which make sections of the page; a column "
        "called title has the names that the page shows.",
    ),
    group_by: str | None = options.GROUP_BY,
    channel: str | None = _CHANNEL,
    resample: bool = _RESAMPLE,
    max_cases: int | None = option(
        "N",
        "Show at most this many cases: a third of them the best, a third the worst, a third drawn "
        "at random.  [default: 12; all with --no-embed]",
        type=click.IntRange(min=0),
    ),
    seed: int = option(None, "Seed for the cases that are drawn at random.", default=0),
    title: str = option(
        "TEXT", "The page's heading.", type=options.TEXT, default="Target speaker extraction"
    ),
    embed: bool = option(
        None,
        "Put sounds, up to 2 min of each, and pictures into the page (default), or whole sounds "
        "into PAGE_files/ beside it.",
        "--embed/--no-embed",
        default=True,
        show_default=False,
    ),
    overwrite: bool = flag("Replace an existing page and its files."),
) -> PageSettings:
    values = locals()  # most options are called like the fields of `PageSettings`
    from mcspex_cli.evaluation.comparison import SETTINGS, PageSettings
    from mcspex_cli.evaluation.report import read_groups

    options.check_needs({"group_by": ("groups",)})
    _check_roles(truth, mixtures, ())
    values["groups"] = read_groups(groups, group_by) if groups else None
    values["scores"] = replace(SETTINGS, resample=resample, channel=channel)
    return options.call(PageSettings, values)


@options.command()
def report(
    runs: tuple[str, ...] = options.argument("RUN...", nargs=-1, required=True),
    output: Path = path("PAGE.html", "The page to write.", "-o", "--output", required=True),
    settings: PageSettings = options.group(_page_settings),
) -> None:
    """Make a web page on which you can compare and hear results.

    It shows players, spectrograms and scores of one or several systems side by side. A RUN is a
    folder of estimates or of mcspex batch; NAME=FOLDER gives it another name. Files are paired by
    name (a.target.wav with a.wav). The page needs no network.
    """
    from mcspex_cli.evaluation.comparison import read_systems
    from mcspex_cli.evaluation.page import write_page

    with console.progress("comparing") as update:
        page = write_page(
            read_systems(runs), output, settings, lambda share: update(completed=share)
        )
    for warning in page.warnings:
        console.warn(warning)
    size = console.size(output.stat().st_size)
    console.say(f"{output}  ({page.shown} of {page.cases} cases shown, {size})")
