"""`mcspex batch`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model, prepare
from mcspex_cli.cli.score import MetricsOption, choose_metrics, conclude, say_remarks, show
from mcspex_cli.errors import DiskFullError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.batch.plan import BatchRequest
    from mcspex_cli.batch.run import BatchSettings, Outcome, WorkList
    from mcspex_cli.evaluation.scoring import ScoreSettings
    from mcspex_cli.evaluation.summary import Report

LISTED = 20
"""Files that --dry-run lists for people, and warnings of references; --json has all files."""


@dataclass(frozen=True)
class Talk:
    """How much to say, and how."""

    as_json: bool
    quiet: bool
    verbose: bool

    @property
    def shown(self) -> bool:
        """Whether people are told how it goes."""
        return not (self.quiet or self.as_json)


@click.command()
@click.argument("mixtures", nargs=-1, type=options.PATH, metavar="[MIXTURES...]")
@click.option(
    "--manifest",
    type=options.PATH,
    metavar="FILE",
    help="Instead of MIXTURES: a .csv or .tsv with a column mixture and, if wanted, reference(s), "
    "span, truth, output, residual, activity, id; a .jsonl with the same keys; or a .scp.",
)
@click.option(
    "--ref",
    "references",
    multiple=True,
    type=options.PATH,
    metavar="FILE|DIR",
    help="A clip of the one voice wanted from all, a folder of clips, or a profile. Repeatable.",
)
@click.option(
    "--refs",
    type=options.PATH,
    metavar="DIR|SCP",
    help="References by name: a clip, or a folder of clips, called like the mixture or its folder.",
)
@click.option(
    "--pattern",
    metavar="TEXT",
    help="Which part of a mixture's name is its reference's: {speaker}_{n}, or a regular "
    "expression with (?P<speaker>...).",
)
@click.option("--allow-unused", is_flag=True, help="Accept references without a mixture.")
@click.option(
    "--truth", type=options.PATH, metavar="DIR|SCP", help="What the targets said: scores them."
)
@click.option(
    "--metrics",
    cls=MetricsOption,
    metavar="NAMES",
    default="si_sdr,si_sdr_i,snr",
    show_default=True,
    help="Some of {metrics}, those that need no interferers.",
)
@click.option("--resample", is_flag=True, help="Score at the truth's rate, whatever the others'.")
@click.option("--groups", type=options.PATH, metavar="CSV", help="Cases (id or name) and groups.")
@click.option("--group-by", metavar="COLUMN", help="Its column.  [default: group, or the only one]")
@click.option(
    "-o", "--output", required=True, type=options.PATH, metavar="DIR", help="Gets audio/, reports."
)
@click.option(
    "--residual", is_flag=True, help="Write what is left of each mixture, too, to residual/."
)
@click.option(
    "--activity",
    type=click.Choice(["json", "rttm", "srt"]),
    help="Write when the voice speaks, too, to activity/.",
)
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["wav", "flac", "ogg"]),
    default="wav",
    show_default=True,
    help="Of the estimates and residuals.",
)
@options.model
@click.option(
    "--devices", default="auto", show_default=True, help="cpu, cuda, or several: cuda:0,cuda:1."
)
@options.precision
@options.runtime
@options.writing
@options.treating
@options.batch_size
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Processes.  [default: one per GPU, or per two cores with a minute of audio]",
)
@options.shard
@click.option("--dry-run", is_flag=True, help="Show the plan and how long it would take.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first file that fails.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Use a DIR that is not empty, or of another model or settings.",
)
@options.as_json
@options.quiet
@click.option("-v", "--verbose", is_flag=True, help="Say what was done of each file.")
def batch(
    dry_run: bool,
    overwrite: bool,
    groups: Path | None,
    group_by: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Extract from folders or lists of mixtures, each with its reference.

    The plan is checked before anything is done. What is done stays done: run the same
    command again to go on after a failure, a crash or Ctrl-C. DIR gets audio/, report.csv,
    report.json, report.html and run.json, and failed.jsonl if a file failed (exit code 3).

    \b
    mcspex batch mixtures/ --refs references/ -o out
    mcspex batch mixtures/ --refs speakers/ --pattern '{speaker}_{n}' --truth truth/ -o out
    mcspex batch --manifest plan.csv -o out --shard 2/8
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.batch.journal import Journal
    from mcspex_cli.batch.plan import check_profiles, measure, plan_batch
    from mcspex_cli.batch.run import WorkList, check_settings, open_folder
    from mcspex_cli.evaluation.summary import read_groups

    talk = Talk(as_json, quiet, verbose)
    request, scoring = _request(**chosen), _scoring(**chosen)
    if groups:
        read_groups(groups, group_by)
    plan = plan_batch(request)
    for text in plan.warnings:
        console.warn(text)
    settings = _settings(quiet=not talk.shown, **chosen)
    check_profiles(plan, settings.model)
    prepare(settings.model, settings.runtime, quiet=not talk.shown)
    journal = Journal(plan.folder) if dry_run else open_folder(plan.folder, overwrite=overwrite)
    plan = measure(plan, journal)
    if not overwrite:
        check_settings(plan, journal, settings)
    work = WorkList(plan, journal, settings)
    del journal  # of 100,000 files it takes as much memory as the plan
    if dry_run:
        _show(work, as_json=as_json)
        return
    failed = _work(work, talk)
    report, record = _report(work, scoring, (groups, group_by), talk)
    _summarise(work, report, record, talk)
    if failed:
        failures = console.count(failed, "file")
        raise PartialFailure(f"{failures} failed, see above and {plan.folder}/failed.jsonl.")
    conclude(report, {})


def _request(
    *,
    output: Path,
    mixtures: tuple[Path, ...],
    manifest: Path | None,
    references: tuple[Path, ...],
    refs: Path | None,
    pattern: str | None,
    truth: Path | None,
    suffix: str,
    residual: bool,
    activity: str | None,
    allow_unused: bool,
    **_: Any,
) -> BatchRequest:
    """What is asked for, if it makes sense."""
    from mcspex_cli.batch.plan import BatchRequest

    if bool(mixtures) == bool(manifest):
        raise click.UsageError("name MIXTURES, or a --manifest, and not both.")
    if references and refs:
        raise click.UsageError("--ref is one voice for all, --refs one for each: not both.")
    if pattern is not None and not refs:
        raise click.UsageError("--pattern says which of --refs belongs to a mixture; add --refs.")
    return BatchRequest(
        output=output,
        mixtures=mixtures,
        manifest=manifest,
        references=references,
        reference_folder=refs,
        pattern=pattern,
        truth=truth,
        suffix=f".{suffix}",
        residual=residual,
        activity=f".{activity}" if activity else None,
        allow_unused=allow_unused,
    )


def _settings(
    *,
    quiet: bool,
    model: str | None,
    offline: bool,
    devices: str,
    precision: str,
    runtime: str,
    batch_size: int,
    jobs: int | None,
    shard: tuple[int, int],
    fail_fast: bool,
    **chosen: Any,
) -> BatchSettings:
    """How it is to be computed."""
    from mcspex_cli.batch.run import BatchSettings

    extraction = options.extraction_options(chosen)
    info = find_model(model, offline=offline, quiet=quiet)
    options.check_presence(info, extraction.absent)
    return BatchSettings(
        info,
        extraction,
        devices=tuple(name.strip() for name in devices.split(",")),
        precision=precision,
        runtime="torch" if runtime == "auto" else runtime,
        batch_size=batch_size,
        jobs=jobs or 0,
        shard=shard,
        fail_fast=fail_fast,
    )


def _scoring(*, metrics: str, resample: bool, channel: str, **_: Any) -> ScoreSettings:
    """What to score."""
    from mcspex_cli.evaluation.scoring import ScoreSettings

    names = choose_metrics(metrics, {"target", "mixture"})
    return ScoreSettings(names, resample=resample, channel=None if channel == "all" else channel)


def _show(work: WorkList, *, as_json: bool) -> None:
    """Print what would be done, and how long that would take here."""
    from mcspex_cli.batch.manifest import AUDIO, outputs
    from mcspex_cli.batch.run import estimate_s

    seconds = estimate_s(work)
    if as_json:
        rows = [
            {
                "id": task.id,
                "mixture": task.mixture,
                "references": list(task.references),
                "spans": list(task.spans),
                "truth": task.truth,
                **{
                    "output" if kind == AUDIO else kind: str(path)
                    for kind, path in outputs(work.plan.folder, task).items()
                },
                "seconds": task.seconds,
            }
            for task in work.todo
        ]
        console.data({"done": len(work.skipped), "estimate_s": seconds, "jobs": rows}, indent=2)
        return
    listed = [
        (
            task.id,
            task.mixture,
            ", ".join((*task.references, *task.spans)),
            "unreadable" if task.seconds is None else f"{task.seconds:.1f}",
        )
        for task in work.todo[:LISTED]
    ]
    more = len(work.todo) - len(listed)
    total = sum(task.seconds or 0.0 for task in work.todo)
    footer = (f"and {more} more" if more else "", "", "", f"{total:.1f}")
    console.table(("id", "mixture", "reference", "seconds"), listed, footer)
    console.say(
        f"{console.count(len(work.todo), 'file')} to do, {len(work.skipped)} done before; "
        f"about {console.duration(seconds)} here. Nothing was started."
    )


def _work(work: WorkList, talk: Talk) -> int:
    """Do what is left, saying what fails; the number of files that did.

    Raises:
        DiskFullError: with how many files are left.
    """
    from mcspex_cli import files
    from mcspex_cli.batch.engines import run_locally
    from mcspex_cli.batch.journal import Journal

    stopping, warned = Event(), set[str]()
    failed = done = 0
    try:
        with console.progress(shown=talk.shown) as bar, console.ending_gently(stopping.set):
            task = bar.add_task("extracting", total=sum(t.seconds or 0.0 for t in work.todo))
            for outcome in run_locally(work, stopping):
                _tell(outcome, warned, talk)
                failed, done = failed + (outcome.row is None), done + (outcome.row is not None)
                bar.advance(task, outcome.task.seconds or 0.0)
    except DiskFullError as error:
        ended = Journal(work.plan.folder)
        left = sum(task.id not in ended.done for task in work.todo)
        raise DiskFullError(
            f"{error} {console.count(left, 'file')} left; then go on with the same command."
        ) from error
    finally:
        files.sweep(work.plan.folder)  # what processes left that were ended in their work
    if len(warned) > LISTED:
        console.warn(f"{len(warned) - LISTED} more warnings of references; -v shows them all.")
    left = len(work.todo) - done - failed
    if stopping.is_set() and left:
        console.error(f"stopped, {console.count(left, 'file')} left. Go on with the same command.")
        click.get_current_context().exit(130)
    return failed


def _tell(outcome: Outcome, warned: set[str], talk: Talk) -> None:
    """Report one file: why it failed, what may be wrong with its references and, in full, all."""
    for text in outcome.warnings:
        if text not in warned and (talk.verbose or len(warned) < LISTED):
            console.warn(text)
        warned.add(text)
    row = outcome.row
    if row is None:
        console.error(outcome.reason)
    elif talk.verbose:
        for text in row["warnings"]:
            console.warn(f"{outcome.task.id}: {text}")
        presence = "" if row["presence"] is None else f", presence {row['presence']:.2f}"
        gains = ", ".join(f"{gain:+.1f}" for gain in row["gain_db"])
        console.say(
            f"{outcome.task.id}  ({row['seconds']:.1f} s in {row['elapsed_s']:.1f} s, real-time "
            f"factor {row['real_time_factor']:.3f}{presence}, gain {gains} dB, speaks "
            f"{row['active_s']:.1f} s)"
        )


def _report(
    work: WorkList, scoring: ScoreSettings, groups: tuple[Path | None, str | None], talk: Talk
) -> tuple[Report, dict[str, Any]]:
    """Score what is not yet scored, then write the reports."""
    from mcspex_cli.batch import results
    from mcspex_cli.batch.journal import Journal

    plan, settings = work.plan, work.settings
    lacking = results.unscored(plan, Journal(plan.folder), settings, scoring)
    with console.progress(shown=talk.shown) as bar:
        task = bar.add_task("scoring", total=len(lacking))
        for _ in results.score_tasks(plan, lacking, scoring):
            bar.advance(task)
    return results.write(plan, settings, sys.argv, *groups)


def _summarise(work: WorkList, report: Report, record: dict[str, Any], talk: Talk) -> None:
    """Say what was done and how good it is."""
    from mcspex_cli.evaluation.tables import absences

    if talk.as_json:
        console.data({**record, "summary": asdict(report.summary)}, indent=2)
    elif not talk.quiet:
        if report.summary.metrics:
            show(report)
        before, factor = len(work.skipped), record["real_time_factor"]
        console.say(
            f"{work.plan.folder}: {record['done']} of {record['files']} files done"
            + (f", {before} of them before" if before else "")
            + f"; {console.duration(record['audio_s'])} of audio"
            + (f", real-time factor {factor:.3f}" if factor else "")
        )
    if voices := absences(report.rows):
        muted = work.settings.options.absent == "mute"
        console.warn(f"{voices} ({'silenced' if muted else '--absent mute silences them'})")
    if any(task.truth for task in work.plan.tasks):
        say_remarks(report, quiet=talk.quiet)
    pending = report.summary.statuses.get("pending", 0)
    if pending:
        console.warn(
            f"{console.count(pending, 'file')} left to do, by other shards or another run."
        )
