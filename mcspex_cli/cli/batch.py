"""`mcspex batch`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model, prepare
from mcspex_cli.cli.score import MetricsOption, choose_metrics, conclude, say_remarks, show
from mcspex_cli.errors import DiskFullError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.batch.plan import BatchRequest
    from mcspex_cli.batch.run import Outcome, WorkList
    from mcspex_cli.evaluation.summary import Report

LISTED = 20
"""Files that --dry-run lists for people, and warnings of references; --json has all files."""


def _engines() -> dict[str, str]:
    from mcspex_cli.batch.engines import ENGINES

    return {engine.name: engine.help for engine in ENGINES.values()}


def _resources(text: str | None) -> dict[str, float]:
    """--resources as amounts of "cpu" and "gpu"."""
    amounts = {}
    for part in text.split(",") if text else ():
        name, _, amount = part.strip().partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            amounts[name] = -1.0
        if name not in ("cpu", "gpu") or not 0 <= amounts[name] < 1e4:
            raise click.BadParameter(f"{part!r} is neither cpu=N nor gpu=N, as in gpu=1,cpu=4.")
        if amounts[name] > 1 and amounts[name] % 1:
            raise click.BadParameter(f"{part!r}: above 1 only whole numbers are possible.")
    return amounts


@click.command()
@click.argument("mixtures", nargs=-1, type=options.PATH, metavar="[MIXTURES...]")
@click.option(
    "--manifest",
    type=options.PATH,
    metavar="FILE",
    help="Instead of MIXTURES: a .csv or .tsv with a column mixture and, if wanted, reference(s), "
    "span, truth, output, residual, activity, id; a .jsonl with the same keys; or a .scp.",
)
@options.reference(
    "A clip of the one voice wanted from all, a folder of clips, or a profile. Repeatable."
)
@options.references_by_name(
    "References by name: a clip, or a folder of clips, called like the mixture or its folder.",
    "Which part of a mixture's name is its reference's: {speaker}_{n}, or a regular expression "
    "with (?P<speaker>...).",
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
    help="With --truth: some of {of_truth}, those that need no interferers.",
)
@click.option("--resample", is_flag=True, help="Score at the truth's rate, whatever the others'.")
@options.grouping
@click.option(
    "-o",
    "--output",
    required=True,
    type=options.PATH,
    metavar="DIR",
    help="Folder for audio/ and the reports.",
)
@click.option(
    "--residual", is_flag=True, help="Write what is left of each mixture, too, to residual/."
)
@click.option(
    "--activity",
    cls=options.TableOption,
    rows=options.activity_formats,
    callback=options.as_suffix,
    help="Also write when the voice speaks, to activity/",
)
@click.option(
    "--format",
    "suffix",
    cls=options.TableOption,
    rows=options.output_formats,
    default="wav",
    show_default=True,
    callback=options.as_suffix,
    help="Format of the estimates and residuals",
)
@options.model
@click.option(
    "--devices",
    default="auto",
    show_default=True,
    callback=lambda _, __, text: tuple(name.strip() for name in text.split(",")),
    help="cpu, cuda, or several: cuda:0,cuda:1.",
)
@options.precision
@options.runtime
@options.writing
@options.treating
@options.batch_size
@click.option(
    "--jobs",
    type=click.IntRange(1),
    callback=lambda _, __, number: number or 0,
    help="Processes, actors or tasks of an array.  [default: one per GPU, or per two cores with a "
    "minute of audio; as many actors as there is room for; a task for an hour of audio]",
)
@options.shard
@click.option(
    "--engine",
    cls=options.TableOption,
    rows=_engines,
    default="local",
    show_default=True,
    help="What does the work",
)
@click.option(
    "--resources",
    metavar="cpu=N,gpu=N",
    callback=lambda _, __, text: _resources(text),
    help="What each Ray actor or Slurm task has.  [default: a GPU if Ray has any, and two cores]",
)
@click.option("--gpus", type=click.IntRange(0), help="Short for --resources gpu=N.")
@click.option(
    "--address",
    metavar="auto|ray://HOST:PORT",
    help="The Ray cluster.  [default: RAY_ADDRESS, or a Ray of this machine's own]",
)
@click.option("--partition", metavar="NAME", help="Slurm's partition.")
@click.option(
    "--time",
    "time_min",
    type=click.IntRange(5),  # its warning comes up to 2.5 minutes before the end
    metavar="MINUTES",
    default=60,
    show_default=True,
    help="Slurm's limit for a task; one that needs longer is queued again and goes on.",
)
@click.option(
    "--array-parallelism",
    "parallelism",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Tasks of Slurm's array at once.",
)
@click.option(
    "--wait/--no-wait", default=True, help="Wait for Slurm's array, or leave it.  [default: wait]"
)
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
    gpus: int | None,
    resources: dict[str, float],
    overwrite: bool,
    groups: Path | None,
    group_by: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Extract from folders or lists of mixtures, each with its reference.

    The plan is checked before anything is done. What is done stays done: run the same
    command again to go on after a failure, a crash or Ctrl-C. DIR gets audio/, report.csv,
    report.json, report.html and run.json, and failed.jsonl if a file failed (exit code 3).

    \b
    mcspex batch mixtures/ --refs references/ -o out
    mcspex batch mixtures/ --refs speakers/ --pattern '{speaker}_{n}' --truth truth/ -o out
    mcspex batch --manifest plan.csv -o out --shard 2/8
    mcspex batch --manifest plan.csv -o out --engine ray --address auto
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.batch import engines, results, storage
    from mcspex_cli.batch.journal import Journal, open_folder
    from mcspex_cli.batch.plan import BatchRequest, check_profiles, measure, plan_batch
    from mcspex_cli.batch.run import BatchSettings, WorkList
    from mcspex_cli.evaluation.scoring import ScoreSettings
    from mcspex_cli.evaluation.summary import read_groups
    from mcspex_cli.extraction.job import check_presence

    shown = not (quiet or as_json)
    request = options.filled(BatchRequest, values)
    _check_usage(request)
    _check_engine(values["engine"])
    scoring = ScoreSettings(
        choose_metrics(values["metrics"], {"target", "mixture"}, only_truth=True),
        resample=values["resample"],
        channel=None if values["channel"] == "all" else values["channel"],
    )
    values["options"] = extraction = options.extraction_options(values)
    if groups:
        read_groups(groups, group_by)
    plan = plan_batch(request)
    for text in plan.warnings:
        console.warn(text)
    model = find_model(values["model"], offline=values["offline"], quiet=not shown)
    check_presence(model, model.calibration, extraction.absent)
    runtime = "torch" if values["runtime"] == "auto" else values["runtime"]
    values |= {
        **{"model": model, "runtime": runtime},
        **{"cpus": resources.get("cpu", 2.0), "gpus": resources.get("gpu", gpus)},
    }
    settings = options.filled(BatchSettings, values)
    check_profiles(plan, model)
    prepare(model, runtime, quiet=not shown)
    if not dry_run:
        settings = engines.connect(settings)
    journal = Journal(plan.folder) if dry_run else open_folder(plan.folder, overwrite=overwrite)
    plan = measure(plan, journal)
    if not overwrite:
        journal.check(plan.tasks, settings.fingerprint())
    work = WorkList(plan, journal, settings)
    del journal  # of 100,000 files it takes as much memory as the plan
    if dry_run:
        _show_plan(work, as_json=as_json)
        return
    failed = _work(work, shown=shown, verbose=verbose)
    with console.progress(shown=shown) as bar:
        part = bar.add_task("scoring", total=1.0)
        results.score(plan, settings, scoring, lambda share: bar.update(part, completed=share))
    report, record = results.write(plan, settings, scoring, sys.argv, groups, group_by)
    if as_json:
        console.data({**record, "summary": asdict(report.summary)}, indent=2)
    elif shown:
        _summarise(work, report, record)
    _remark(work, report, quiet=quiet)
    if failed:
        place = f"{storage.name(plan.folder)}/{results.FAILED}"
        raise PartialFailure(f"{console.count(failed, 'file')} failed, see above and {place}.")
    conclude(report)


def _check_usage(request: BatchRequest) -> None:
    """Refuse combinations of options that mean nothing."""
    if bool(request.mixtures) == bool(request.manifest):
        raise click.UsageError("name MIXTURES, or a --manifest, and not both.")
    if request.references and request.reference_folder:
        raise click.UsageError("--ref is one voice for all, --refs one for each: not both.")
    if request.pattern is not None and not request.reference_folder:
        raise click.UsageError("--pattern says which of --refs belongs to a mixture; add --refs.")


def _check_engine(name: str) -> None:
    """Refuse an engine that is not here, and options that are for another."""
    from mcspex_cli.batch.engines import ENGINES

    context = click.get_current_context()
    for option in context.command.params:
        users = [engine.name for engine in ENGINES.values() if option.name in engine.options]
        given = context.get_parameter_source(option.name or "") == ParameterSource.COMMANDLINE
        if given and users and name not in users:
            raise click.UsageError(f"{option.opts[0]} is for --engine {' or '.join(users)}.")
    ENGINES[name].check()


def _show_plan(work: WorkList, *, as_json: bool) -> None:
    """Print what would be done, and how long that would take here."""
    from mcspex_cli.batch.engines import estimate_s
    from mcspex_cli.batch.pairing import AUDIO
    from mcspex_cli.batch.run import seconds

    time_s = estimate_s(work)
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
                    for kind, path in task.outputs(work.plan.folder).items()
                },
                "seconds": task.seconds,
            }
            for task in work.todo
        ]
        console.data({"done": len(work.skipped), "estimate_s": time_s, "jobs": rows}, indent=2)
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
    footer = (f"and {more} more" if more else "", "", "", f"{seconds(work.todo):.1f}")
    console.table(("id", "mixture", "reference", "seconds"), listed, footer)
    console.say(
        f"{console.count(len(work.todo), 'file')} to do, {len(work.skipped)} done before; "
        f"about {console.duration(time_s)} here. Nothing was started."
    )


def _work(work: WorkList, *, shown: bool, verbose: bool) -> int:
    """Do what is left, saying what fails; the number of files that did."""
    from mcspex_cli import files
    from mcspex_cli.batch.engines import find_array, run
    from mcspex_cli.batch.journal import Journal
    from mcspex_cli.batch.run import seconds

    stopping, warned = Event(), set[str]()
    failed = done = 0
    try:
        with console.progress(shown=shown) as bar, console.ending_gently(stopping.set):
            task = bar.add_task("extracting", total=seconds(work.todo))
            for outcome in run(work, stopping):
                _show(outcome, warned, verbose=verbose)
                failed, done = failed + (outcome.row is None), done + (outcome.row is not None)
                bar.advance(task, outcome.task.seconds or 0.0)
    except DiskFullError as error:
        ended = Journal(work.plan.folder)
        left = sum(not ended.result(task, work.key) for task in work.todo)
        raise DiskFullError(
            f"{error} {console.count(left, 'file')} left; then go on with the same command."
        ) from error
    finally:
        files.sweep(work.plan.folder)  # what processes left that were ended in their work
    if len(warned) > LISTED:
        console.warn(f"{len(warned) - LISTED} more warnings of references; -v shows them all.")
    left = len(work.todo) - done - failed
    if left and work.settings.engine == "slurm" and (job := find_array(work.plan.folder)):
        without = "" if work.settings.wait else ", without --no-wait,"
        console.say(
            f"Slurm's array {job} works on {console.count(left, 'file')}. Run the same "
            f"command again{without} to see its progress and, when it has ended, to write the "
            f"reports. To end it: scancel {job}"
        )
        click.get_current_context().exit(130 if stopping.is_set() else 0)
    if stopping.is_set() and left:
        console.error(f"stopped, {console.count(left, 'file')} left. Go on with the same command.")
        click.get_current_context().exit(130)
    return failed


def _show(outcome: Outcome, warned: set[str], *, verbose: bool) -> None:
    """Report one file: why it failed, what may be wrong with its references and, in full, all."""
    for text in outcome.warnings:
        if text not in warned and (verbose or len(warned) < LISTED):
            console.warn(text)
        warned.add(text)
    row = outcome.row
    if row is None:
        console.error(outcome.reason)
    elif verbose:
        for text in row["warnings"]:
            console.warn(f"{outcome.task.id}: {text}")
        presence = "" if row["presence"] is None else f", presence {row['presence']:.2f}"
        gains = ", ".join(f"{gain:+.1f}" for gain in row["gain_db"])
        console.say(
            f"{outcome.task.id}  ({row['seconds']:.1f} s in {row['elapsed_s']:.1f} s, real-time "
            f"factor {row['real_time_factor']:.3f}{presence}, gain {gains} dB, speaks "
            f"{row['active_s']:.1f} s)"
        )


def _summarise(work: WorkList, report: Report, record: dict[str, Any]) -> None:
    """Say what was done and how good it is."""
    from mcspex_cli.batch import storage
    from mcspex_cli.evaluation.metrics import BY_COLUMN

    if report.summary.metrics:
        has_truth = any(task.truth for task in work.plan.tasks)
        others = [c for c, metric in BY_COLUMN.items() if "target" not in metric.needs]
        show(report, hidden=others if has_truth else ())
    before, factor = len(work.skipped), record["real_time_factor"]
    console.say(
        f"{storage.name(work.plan.folder)}: {record['done']} of {record['files']} files done"
        + (f", {before} of them before" if before else "")
        + f"; {console.duration(record['audio_s'])} of audio"
        + (f", real-time factor {factor:.3f}" if factor else "")
    )


def _remark(work: WorkList, report: Report, *, quiet: bool) -> None:
    """Say which voices are absent, what the scores leave out, and what other runs have to do."""
    from mcspex_cli.evaluation.summary import absences

    if voices := absences(report.rows):
        muted = work.settings.options.absent == "mute"
        console.warn(f"{voices} ({'silenced' if muted else '--absent mute silences them'})")
    if any(task.truth for task in work.plan.tasks):
        say_remarks(report, quiet=quiet)
    if pending := report.summary.statuses.get("pending", 0):
        console.warn(
            f"{console.count(pending, 'file')} left to do, by other shards or another run."
        )
