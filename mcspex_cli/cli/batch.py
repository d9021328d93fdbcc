"""`mcspex batch`."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli import files
from mcspex_cli.cli import console, options, score
from mcspex_cli.cli.options import choice, flag, option, path, table
from mcspex_cli.errors import PartialFailure, name_some
from mcspex_cli.extraction.runtime import MOST_AT_ONCE, EngineSettings

if TYPE_CHECKING:
    from mcspex_cli.batch.workers import Outcome
    from mcspex_cli.batch.worklist import WorkList
    from mcspex_cli.evaluation.report import Groups, Report
    from mcspex_cli.extraction.job import ExtractionOptions

_MAX_LISTED = 20
"""How many files --dry-run lists, and how many warnings of references are shown, for people."""


def _resources(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, float]:
    """--resources as amounts of "cpu" and "gpu"."""
    amounts = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"(cpu|gpu)=(\d{1,9}|\d{0,9}\.\d{1,4})", part.strip())
        if not match:
            raise click.BadParameter(f"{part!r} is neither cpu=N nor gpu=N, as in gpu=1,cpu=4.")
        amounts[match[1]] = amount = float(match[2])
        if amount > MOST_AT_ONCE:
            raise click.BadParameter(f"{part!r}: at most {MOST_AT_ONCE} are possible.")
        if amount > 1 and amount % 1:
            raise click.BadParameter(f"{part!r}: above 1 only whole numbers are possible.")
    return amounts


def _batch_size(_: click.Context, __: click.Parameter, text: str) -> int:
    """--batch-size as a number, 0 for auto."""
    if text == "auto":
        return 0
    size = int(text) if re.fullmatch(r"\d{1,9}", text) else 0
    if not 1 <= size <= MOST_AT_ONCE:
        raise click.BadParameter(f"{text!r} is neither auto nor a number from 1 to {MOST_AT_ONCE}.")
    return size


def _shard(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int]:
    """--shard as (I, N); without one, this task's place in its Slurm array, or all."""
    if text is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N, like 2/8.")
        return int(match[1]), int(match[2])
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return 1, 1
    defaults = {"ID": "0", "MIN": "0", "STEP": "1", "COUNT": "1"}
    texts = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", text) for name, text in defaults.items()]
    if not all(text.isdecimal() for text in texts):
        raise click.BadParameter(f"SLURM_ARRAY_TASK_ID {texts[0]!r} is not a number; give I/N.")
    task, first, step, count = map(int, texts)
    index = (task - first) // max(1, step) + 1
    if not 1 <= index <= count:
        raise click.BadParameter(f"Slurm's array has gaps (task {task} of {count}); give I/N.")
    return index, count


def _devices(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise click.BadParameter(f"{text!r} has an empty name. Write cpu, or cuda:0,cuda:1.")
    return names


@dataclass(frozen=True)
class BatchOptions:
    """The arguments of `mcspex batch`; the batch's own settings have the same names."""

    mixtures: tuple[Path, ...] = options.argument("[MIXTURES...]", nargs=-1, type=options.PATH)
    manifest: Path | None = path(
        "FILE",
        "Instead of MIXTURES: a .csv or .tsv file with the column mixture and, as needed, "
        "reference(s), span, truth, output, residual, activity, id; a .jsonl file with the same "
        "keys; or a .scp file.",
    )
    references: tuple[Path, ...] = options.references(
        "One voice for all mixtures: a clip of it alone, a folder of clips, or a profile. "
        "Repeatable."
    )
    reference_folder: Path | None = path(
        "DIR|SCP",
        "A voice for each mixture: clips, or folders of clips, that are named like the mixture or "
        "its folder.",
        "--refs",
    )
    pattern: str | None = option(
        "TEXT",
        "Which part of the mixture's name is the name of its reference: {speaker}_{n}, or a "
        "regular expression with (?P<speaker>...).",
    )
    allow_unused: bool = flag("Accept references, and truths, that no mixture needs.")
    truth: Path | None = path("DIR|SCP", "The targets' speech alone, to score the estimates.")
    metrics: str = option(
        "NAMES",
        "What to compute with --truth: some of {}.",
        cls=options.TableOption,
        rows=score.metrics_of_batch,
        strict=False,
        default="si_sdr,si_sdr_i,snr",
    )
    resample: bool = flag("Also score files of other sample rates, at the truth's.")
    groups: Path | None = options.GROUPS
    group_by: str | None = options.GROUP_BY
    output: Path = path(
        *("DIR", "Folder for audio/ and the reports.", "-o", "--output"),
        type=options.FOLDER,
        required=True,
    )
    residual: bool = flag("Also write what is left of each mixture, to residual/.")
    activity: str | None = choice(
        table("extraction.job", "ACTIVITY_FORMATS"),
        "Also write when the person speaks, to activity/",
    )
    form: str = choice(
        table("audio", "FORMATS"),
        "Format of the estimates and residuals",
        "--format",
        default="wav",
    )
    model: str | None = options.MODEL
    offline: bool = options.OFFLINE
    devices: tuple[str, ...] = option(
        "TEXT",
        "Where the network runs: cpu, cuda, or several GPUs: cuda:0,cuda:1.",
        default="auto",
        callback=_devices,
    )
    precision: str = options.PRECISION
    runtime: str = options.RUNTIME
    passes: int = options.PASSES_OPTION
    batch_size: int = option(
        "auto|N",
        "How many windows are computed at once; auto is 1 on a CPU, 16 on a GPU, and fewer if "
        "memory is short.",
        default="auto",
        callback=_batch_size,
    )
    extraction: ExtractionOptions = options.EXTRACTION
    jobs: int = option(
        None,
        "How many processes, Ray actors or Slurm tasks.  [default: one process per GPU, or per two "
        "cores with a minute of audio; as many actors as there is room for; a task for each hour "
        "of audio]",
        type=click.IntRange(1),
        callback=lambda _, __, number: number or 0,
    )
    shard: tuple[int, int] = option(
        "I/N",
        "Do the I-th of N parts of equal duration.  [default: by SLURM_ARRAY_TASK_ID]",
        callback=_shard,
    )
    backend: str = choice(
        table("batch.backends", "BACKENDS"), "What does the work", "--engine", default="local"
    )
    resources: dict[str, float] = option(
        "cpu=N,gpu=N",
        "What each Ray actor or Slurm task gets.  [default: a GPU if Ray has any, and two cores]",
        callback=_resources,
    )
    gpus: int | None = option(
        None, "Short for --resources gpu=N.", type=click.IntRange(0, MOST_AT_ONCE)
    )
    address: str | None = option(
        "auto|ray://HOST:PORT",
        "The Ray cluster.  [default: RAY_ADDRESS, or start Ray on this machine]",
        type=options.TEXT,
    )
    partition: str | None = option("NAME", "The partition of Slurm.", type=options.TEXT)
    time_min: int = option(
        "MINUTES",
        "Time limit of a Slurm task; one that needs longer is queued again and continues.",
        "--time",
        type=click.IntRange(5),  # its warning comes up to 2.5 minutes before the end
        default=60,
    )
    parallelism: int = option(
        None,
        "How many tasks of the Slurm array may run at once.",
        "--array-parallelism",
        type=click.IntRange(1),
        default=256,
    )
    wait: bool = option(
        None, "Wait for the Slurm array, or only submit it.", "--wait/--no-wait", default=True
    )
    dry_run: bool = flag("Only check and show the plan, and how long it would take.")
    fail_fast: bool = flag("Stop at the first file that fails.")
    overwrite: bool = flag(
        "Use a DIR with other files, or replace results of another model or other settings."
    )
    as_json: bool = options.JSON
    verbose: bool = flag("Show each file when it is done.", "-v", "--verbose")


@options.command(has_quiet=True)
def batch(request: BatchOptions = options.group(BatchOptions)) -> None:
    """Extract from many mixtures, each with its own reference.

    The plan is checked before anything is started. After a failure, a crash or Ctrl-C, run the
    same command again: it continues. DIR gets audio/, report.csv, report.json, report.html and
    run.json, and failed.jsonl if a file failed (exit code 3).

    \b
    mcspex batch mixtures/ --refs references/ -o out
    mcspex batch mixtures/ --refs speakers/ --pattern '{speaker}_{n}' --truth truth/ -o out
    mcspex batch --manifest plan.csv -o out --shard 2/8
    mcspex batch --manifest plan.csv -o out --engine ray --address auto
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.batch import results
    from mcspex_cli.evaluation.scoring import ScoreSettings

    _check_usage(request)
    score_settings = ScoreSettings(
        score.choose_metrics(request.metrics, {"target", "mixture"}, in_batch=True),
        resample=request.resample,
        channel=None if request.extraction.channel == "all" else request.extraction.channel,
    )
    groups = _read_groups(request)
    work = _prepare(request)
    if request.shard != (1, 1) and not options.is_given("shard"):
        index, count = request.shard
        console.say(f"part {index} of {count}, as task of a Slurm array; --shard 1/1 does all.")
    if request.dry_run:
        _show_plan(work, as_json=request.as_json)
        return
    finished_before, stopping = len(work.finished_ids), Event()
    failed, left = _extract(work, stopping, verbose=request.verbose)
    if left and _say_how_to_go_on(work, left, stopping):
        click.get_current_context().exit(130 if stopping.is_set() else 0)
    with console.progress("scoring") as update:
        results.score(work, score_settings, lambda share: update(completed=share))
    report, record = results.write(work, score_settings, sys.argv, groups)
    if request.as_json:
        console.data({**record, "summary": asdict(report.summary)}, indent=2)
    elif not console.messages.quiet:
        _show_results(work, report, record, finished_before)
    console.messages.quiet = click.get_current_context().params["quiet"]  # even with --json
    _say_remarks(work, report, score_settings.metrics)
    if failed:
        listed = f"{work.plan.label}/{results.FAILURES}"
        raise PartialFailure(f"{console.count(failed, 'file')} failed, see above and {listed}.")
    lost = report.summary.statuses.get("pending", 0)
    if lost and not left and work.settings.shard == (1, 1):
        raise PartialFailure(
            f"{console.count(lost, 'file')} done, but replaced or removed since. If another batch "
            "with other settings writes to this folder, end it; then use --overwrite. All machines "
            "need the same version of mcspex."
        )
    score.conclude(report)


def _check_usage(request: BatchOptions) -> None:
    """Refuse combinations of options that mean nothing, and a backend that is not here."""
    from mcspex_cli.batch.backends import BACKENDS

    if bool(request.mixtures) == bool(request.manifest):
        raise click.UsageError("name either MIXTURES or a --manifest.")
    score.check_reference_usage(request.references, request.reference_folder)
    options.check_needs(
        {
            **dict.fromkeys(("metrics", "resample"), ("truth", "manifest")),
            "group_by": ("groups",),
            "pattern": ("reference_folder",),
        }
    )
    for each in click.get_current_context().command.params:
        users = [name for name, backend in BACKENDS.items() if each.name in backend.options]
        if users and request.backend not in users and options.is_given(each.name or ""):
            raise click.UsageError(f"{each.opts[0]} is for --engine {' or '.join(users)}.")
    BACKENDS[request.backend].check()


def _read_groups(request: BatchOptions) -> Groups | None:
    """The groups as they are before the work, which may take days."""
    from mcspex_cli.evaluation.report import read_groups

    if request.groups is None:
        return None
    files.check_no_input([request.output / "report.csv"], files.identities(request.groups))
    return read_groups(request.groups, request.group_by)


def _prepare(request: BatchOptions) -> WorkList:
    """Check the whole plan, and open the output folder unless it is a dry run."""
    from mcspex_cli.batch import backends, plan, worklist
    from mcspex_cli.extraction import onnx
    from mcspex_cli.extraction.job import check_absent

    values = vars(request)
    batch_plan = plan.plan_batch(options.call(plan.BatchRequest, values))
    options.check_subtype(batch_plan.sounds(), request.extraction.subtype)
    model = options.find_model(request.model, offline=request.offline)
    check_absent(request.extraction.absent, model, model.calibration)
    # Whether a file is extracted alone or with others must not change its result. So "auto" always
    # chooses as it does for a very long mixture.
    engine_settings = EngineSettings(
        request.devices[0],
        request.precision,
        batch=request.batch_size,
        runtime=request.runtime,
        passes=request.passes,
    )
    engine_settings = onnx.choose_runtime(model, engine_settings, math.inf)
    values = values | {
        "model": model,
        "engine_settings": engine_settings,
        "options": request.extraction,
        "cpus": request.resources.get("cpu", 2.0),
        "gpus": request.resources.get("gpu", request.gpus),
    }
    settings = options.call(plan.BatchSettings, values)
    is_half = request.precision in ("bfloat16", "float16")
    if is_half and request.backend == "local" and not settings.on_gpu():
        options.warn_of_slow(request.precision)
    plan.check_profiles(batch_plan, model)
    if engine_settings.runtime == "onnx":
        onnx.find_or_prepare(model)  # here once, and not in each process
    if not request.dry_run:
        settings = backends.connect(settings)
    work = click.get_current_context().with_resource(
        worklist.open_work(
            batch_plan, settings, overwrite=request.overwrite, is_dry_run=request.dry_run
        )
    )
    if not request.dry_run:
        backends.check_no_array(work)
    return work


def _show_plan(work: WorkList, *, as_json: bool) -> None:
    """Print what would be done, and how long that would take here."""
    from mcspex_cli.batch.backends import estimate_s
    from mcspex_cli.batch.worklist import show_length, total_s

    time_s, folder = estimate_s(work), work.plan.folder
    if as_json:
        tasks = [task.to_dict(folder) for task in work.todo]
        console.data({"done": len(work.skipped), "estimate_s": time_s, "jobs": tasks}, indent=2)
        return
    rows = []
    for task in work.todo[:_MAX_LISTED]:
        values = task.to_dict(folder)
        voice = ", ".join((*values["references"], *values["spans"]))
        rows.append((task.id, values["mixture"], voice, show_length(task)))
    more = len(work.todo) - len(rows)
    footer = (f"and {more} more" if more else "", "", "", f"{total_s(work.todo):.1f}")
    console.table(("id", "mixture", "reference", "seconds"), rows, footer)
    if time_s is None:
        time = "how long it takes is not known, because no length is known"
    else:
        is_known = all(task.length_s is not None for task in work.todo)
        without = "" if is_known else ", without the files whose length is not known"
        time = f"about {console.duration(time_s)} here{without}"
    console.tell(
        f"{console.count(len(work.todo), 'file')} to do, {len(work.skipped)} done before; {time}. "
        "Nothing was started."
    )


def _extract(work: WorkList, stopping: Event, *, verbose: bool) -> tuple[int, int]:
    """Do what is left, and show failures; return how many files failed and how many are left.

    Ctrl-C sets `stopping`.
    """
    from mcspex_cli.batch import backends, worklist

    warned = set[str]()
    failed = ended = 0

    def stop() -> None:
        stopping.set()
        if work.settings.backend != "slurm":  # whose array goes on
            console.tell(
                "ending when the current files are done. Press Ctrl-C again to end at once."
            )

    with (
        console.progress("extracting", worklist.total_s(work.todo)) as update,
        console.ending_gently(stop),
        closing(backends.run(work, stopping)) as outcomes,
    ):
        for outcome in outcomes:
            _show(outcome, warned, verbose=verbose)
            ended += 1
            failed += outcome.result is None
            update(advance=outcome.task.length_s or 0.0)
    if len(warned) > _MAX_LISTED:
        console.warn(f"{len(warned) - _MAX_LISTED} more warnings of references; -v shows them all.")
    return failed, len(work.todo) - ended


def _say_how_to_go_on(work: WorkList, left: int, stopping: Event) -> bool:
    """If Slurm's array works on the rest, or Ctrl-C ended the command, say so and return True."""
    from mcspex_cli.batch.backends import find_array

    array = find_array(work) if work.settings.backend == "slurm" else None
    if array:
        without = "" if work.settings.wait else ", without --no-wait,"
        console.tell(
            f"Slurm's array {array} works on {console.count(left, 'file')}. Run the same "
            f"command again{without} to see its progress and, when it has ended, to write the "
            f"reports. To end it: scancel {array}"
        )
    elif stopping.is_set():
        console.error(f"stopped, {console.count(left, 'file')} left. Run the same command again.")
    return bool(array) or stopping.is_set()


def _show(outcome: Outcome, warned: set[str], *, verbose: bool) -> None:
    """Show a file's warnings, why it failed and, if `verbose`, what came out."""
    for text in outcome.warnings:
        if text not in warned and (verbose or len(warned) < _MAX_LISTED):
            console.warn(text)
        warned.add(text)
    result = outcome.result
    if result is None:
        console.error(outcome.reason)
    elif verbose:
        for text in result["warnings"]:
            console.warn(f"{outcome.task.id}: {text}")
        console.tell(f"{outcome.task.id}  ({', '.join(console.figures(result))})")


def _show_results(
    work: WorkList, report: Report, record: dict[str, Any], finished_before: int
) -> None:
    """Say how much of the whole plan is done, in how much time, and how good it is."""
    if report.summary.metrics:
        score.show(report, only_of_truth=work.plan.has_truth)
    factor = record["real_time_factor"]
    console.say(
        f"{work.plan.label}: {record['done']} of {record['files']} files done"
        + (f", {finished_before} of them before" if finished_before else "")
        + f"; {console.duration(record['audio_s'])} of audio"
        + (f", real-time factor {factor:.3f}" if factor else "")
    )


def _say_remarks(work: WorkList, report: Report, metrics: Sequence[str]) -> None:
    """Say what is wrong with the results, what the means leave out, and what is left to do."""
    from mcspex_cli.evaluation.report import absences_text
    from mcspex_cli.extraction.job import LEVELS_CHANGED

    if voices := absences_text(report.rows):
        muted = work.settings.options.absent == "mute"
        console.warn(f"{voices} ({'silenced' if muted else '--absent mute silences them'})")
    warned = [  # of more than its absence, and than what `--level` does
        row["name"]
        for row in report.rows
        if len({*(row.get("warnings") or ())} - {LEVELS_CHANGED}) > (row.get("present") is False)
    ]
    if warned:
        which = name_some(warned)
        console.warn(f"files with warnings, which are in report.csv: {len(warned)} ({which}).")
    if work.plan.has_truth:
        score.say_remarks(report, metrics)
    if pending := report.summary.statuses.get("pending", 0):
        left = console.count(pending, "file")
        console.warn(f"{left} left to do, by other shards or another run.")
