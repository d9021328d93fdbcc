"""`mcspex batch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options, plans
from mcspex_cli.cli.models import find_model, prepare
from mcspex_cli.cli.score import choose_metrics, conclude, say_remarks, show
from mcspex_cli.errors import PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.evaluation.batches import Batch
    from mcspex_cli.evaluation.scoring import ScoreSettings
    from mcspex_cli.evaluation.summary import Report
    from mcspex_cli.extraction.jobs import Job
    from mcspex_cli.extraction.shares import BatchSettings


@click.command()
@click.argument("mixtures", nargs=-1, type=options.PATH, metavar="[MIXTURES...]")
@click.option(
    "--manifest",
    type=options.PATH,
    metavar="FILE",
    help="Instead of MIXTURES: .csv or .tsv with columns mixture and, if wanted, "
    "reference(s), truth, output, id; .jsonl; or .scp.",
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
    help="References by name: a clip or a folder of clips like the mixture, or its folder.",
)
@click.option(
    "--pattern",
    metavar="TEXT",
    help="Which part of a mixture's name is the reference's: {speaker}_{n}, or a regular "
    "expression with (?P<speaker>...).",
)
@click.option("--allow-unused", is_flag=True, help="Accept references without a mixture.")
@click.option(
    "--truth", type=options.PATH, metavar="DIR|SCP", help="What the targets said: scores them."
)
@click.option(
    "--metrics",
    metavar="NAMES",
    default="si_sdr,si_sdr_i,snr",
    show_default=True,
    help="What to score: also sdr, pesq, stoi, estoi. mcspex score has more.",
)
@click.option("--resample", is_flag=True, help="Score at the truth's rate, whatever the others'.")
@click.option("--groups", type=options.PATH, metavar="CSV", help="Cases (id or name) and groups.")
@click.option("--group-by", metavar="COLUMN", help="Its column.  [default: group, or the only one]")
@click.option(
    "-o", "--output", required=True, type=options.PATH, metavar="DIR", help="Gets audio/, reports."
)
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["wav", "flac", "ogg"]),
    default="wav",
    show_default=True,
    help="Of the estimates.",
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
def batch(dry_run: bool, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Extract from folders or lists of mixtures, each with its reference.

    The plan is checked before anything is done. What is done stays done: run the same
    command again to go on after a failure, a crash or Ctrl-C. DIR gets audio/, report.csv,
    report.json, report.html and run.json, and failed.jsonl if a file failed (exit code 3).

    \b
    mcspex batch mixtures/ --refs references/ -o out
    mcspex batch mixtures/ --refs speakers/ --pattern '{speaker}_{n}' --truth truth/ -o out
    mcspex batch --manifest plan.csv -o out --shard 2/8
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.extraction.planning import check_profiles

    _check_scoring(asked)
    shown = not (quiet or as_json)
    plan, settings = _plan(asked), _settings(asked, quiet=not shown)
    check_profiles(plan, settings.checkpoint)
    prepare(settings.checkpoint, settings.runtime, quiet=not shown)
    if dry_run:
        over = asked["overwrite"]
        plans.show(plan, settings, asked["output"], overwrite=over, as_json=as_json)
        return
    batch = _open(plan, settings, asked)
    failed = _work(batch, shown=shown)
    if batch.run.stopping.is_set() and batch.run.left:
        left = console.count(batch.run.left, "file")
        console.error(f"stopped, {left} left. Go on with the same command.")
        click.get_current_context().exit(130)
    document, record = _score(batch, asked, shown=shown)
    _tell(batch, document, record, as_json=as_json, quiet=quiet)
    if failed:
        failures = console.count(failed, "file")
        raise PartialFailure(f"{failures} failed, see above and {batch.folder}/failed.jsonl.")
    conclude(document, {})


def _plan(asked: dict[str, Any]) -> list[Job]:
    """Check the question, then the files."""
    from mcspex_cli.extraction.planning import BatchRequest, measured, plan_batch

    if bool(asked["mixtures"]) == bool(asked["manifest"]):
        raise click.UsageError("name MIXTURES, or a --manifest, and not both.")
    if asked["references"] and asked["refs"]:
        raise click.UsageError("--ref is one voice for all, --refs one for each: not both.")
    if asked["pattern"] and not asked["refs"]:
        raise click.UsageError("--pattern says which of --refs belongs to a mixture; add --refs.")
    request = BatchRequest(
        output=asked["output"],
        mixtures=asked["mixtures"],
        manifest=asked["manifest"],
        references=asked["references"],
        reference_folder=asked["refs"],
        pattern=asked["pattern"],
        truth=asked["truth"],
        suffix=f".{asked['suffix']}",
        allow_unused=asked["allow_unused"],
    )
    return measured(plan_batch(request))


def _settings(asked: dict[str, Any], *, quiet: bool) -> BatchSettings:
    """How it is to be computed."""
    from mcspex_cli.extraction.jobs import FileSettings
    from mcspex_cli.extraction.shares import BatchSettings

    info = find_model(asked["model"], offline=asked["offline"], quiet=quiet)
    options.check_presence(info, asked["absent"])
    return BatchSettings(
        info,
        FileSettings(*(asked[name] for name in options.WRITING)),
        devices=tuple(name.strip() for name in asked["devices"].split(",")),
        precision=asked["precision"],
        runtime="torch" if asked["runtime"] == "auto" else asked["runtime"],
        batch=asked["batch_size"],
        jobs=asked["jobs"] or 0,
        shard=asked["shard"],
        fail_fast=asked["fail_fast"],
    )


def _open(plan: Sequence[Job], settings: BatchSettings, asked: dict[str, Any]) -> Batch:
    """Check all that can fail before the work, then take the output folder."""
    from mcspex_cli import files
    from mcspex_cli.evaluation.batches import Batch
    from mcspex_cli.extraction.batch import BatchRun, check_settings, open_folder

    folder = asked["output"]
    journal = open_folder(folder, overwrite=asked["overwrite"])
    if not asked["overwrite"]:
        check_settings(folder, plan, journal, settings)
    run = BatchRun(plan, journal, settings)
    files.make_folders(*{job.output.parent for job in run.todo})
    return Batch(folder, plan, journal, run)


def _check_scoring(asked: dict[str, Any]) -> None:
    """Refuse before the work what would be refused after it."""
    from mcspex_cli.evaluation.summary import read_groups

    _scoring(asked)
    if asked["groups"]:
        read_groups(asked["groups"], asked["group_by"])


def _scoring(asked: dict[str, Any]) -> ScoreSettings:
    """What to score."""
    from mcspex_cli.evaluation.scoring import ScoreSettings

    metrics = choose_metrics(asked["metrics"], {"target", "mixture"})
    channel = None if asked["channel"] == "all" else asked["channel"]
    return ScoreSettings(metrics, resample=asked["resample"], channel=channel)


def _work(batch: Batch, *, shown: bool) -> int:
    """Do what is left, saying what fails; the number of files that did."""
    from mcspex_cli import files
    from mcspex_cli.extraction.runtime import keep_memory

    keep_memory()
    run, failed = batch.run, 0
    try:
        with console.progress(shown=shown) as bar, console.ending_gently(run.stopping.set):
            task = bar.add_task("extracting", total=sum(job.seconds or 0.0 for job in run.todo))
            for outcome in run:
                if outcome.row is None:
                    failed += 1
                    console.error(outcome.reason)
                bar.advance(task, outcome.job.seconds or 0.0)
    finally:
        files.sweep(batch.folder)  # what processes left that were ended in their work
    return failed


def _score(batch: Batch, asked: dict[str, Any], *, shown: bool) -> tuple[Report, dict[str, Any]]:
    """Score what is not yet scored, then write the reports."""
    from mcspex_cli.evaluation import batches

    settings = _scoring(asked)
    batch.journal.read()
    lacking = batches.unscored(batch, settings)
    with console.progress(shown=shown) as bar:
        task = bar.add_task("scoring", total=len(lacking))
        for _ in batches.score_jobs(batch, lacking, settings):
            bar.advance(task)
    return batches.write(batch, sys.argv, asked["groups"], asked["group_by"])


def _tell(
    batch: Batch, document: Report, record: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:
    """Say what was done and how good it is."""
    from mcspex_cli.evaluation.tables import absences

    if as_json:
        console.data({**record, "summary": asdict(document.summary)}, indent=2)
    elif not quiet:
        if document.summary.metrics:
            show(document)
        before, factor = len(batch.run.skipped), record["real_time_factor"]
        console.say(
            f"{batch.folder}: {record['done']} of {record['files']} files done"
            + (f", {before} of them before" if before else "")
            + f"; {console.duration(record['audio_s'])} of audio"
            + (f", real-time factor {factor:.3f}" if factor else "")
        )
    if voices := absences(document.rows):
        muted = batch.run.settings.files.absent == "mute"
        console.warn(f"{voices} ({'silenced' if muted else '--absent mute silences them'})")
    if any(job.truth for job in batch.plan):
        say_remarks(document, quiet=quiet)
    pending = document.summary.statuses.get("pending", 0)
    if pending:
        console.warn(
            f"{console.count(pending, 'file')} left to do, by other shards or another run."
        )
