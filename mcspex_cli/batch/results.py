"""What a batch leaves behind: scores, reports, the list of failures and the record of the run.

Paths in these files start from the batch's folder, so that a set can be moved as a whole, and
estimates and scores are kept if their files have the same sizes and times there.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mcspex_cli import __version__, files
from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal, JournalWriter, ResultLine
from mcspex_cli.batch.manifest import ACTIVITY, AUDIO, JOURNAL, RESIDUAL, Task
from mcspex_cli.batch.plan import BatchPlan, Locations, hash_of
from mcspex_cli.batch.worklist import WorkList
from mcspex_cli.errors import DiskFullError, McspexError, name_some
from mcspex_cli.evaluation import page, report
from mcspex_cli.evaluation.comparison import (
    PageSettings,
    SystemOutputs,
    batch_system,
    compare_systems,
)
from mcspex_cli.evaluation.pairing import Pairing
from mcspex_cli.evaluation.scoring import Score, ScoreSettings, Status, score_files

_logger = logging.getLogger("mcspex")

_RECORD, FAILURES = "run.json", "failed.jsonl"

_QUIET_S, _WRITING_S = 2, 600
"""How long a shard waits for another that writes its reports: seconds before it says so, and
seconds before it gives up."""

_SCORED_AT_ONCE = 1000
"""Files that are copied from an object store before they are scored."""

_INPUT_KEYS = ("mixture", "references", "span", "truth")
"""The keys under which the list of failures has a task's inputs, as rows have them."""

_RUN_KEYS = (
    "elapsed_s real_time_factor device precision runtime passes model model_revision model_sha256 "
    "output"
).split()
"""The keys of a result that rows lack: they differ from run to run, or `run.json` has them."""


def score(
    work: WorkList, score_settings: ScoreSettings, advance: Callable[[float], object]
) -> None:
    """Score the tasks that are finished, have a truth and have no such score in the journal yet.

    Those that could not be scored are tried again: sizes and times do not tell whether a file can
    be read by now. `advance` is called with the share that is done.
    """
    folder = work.plan.folder
    journal, writer, locations = Journal(folder), JournalWriter(folder), Locations(folder)
    unscored: list[tuple[Task, str]] = []
    for task in work.plan.tasks:
        if task.truth and (line := journal.valid_result(task, work.key)):
            key = _score_key(task, line, score_settings, locations)
            score = journal.scores.get((task.id, key))
            if not score or score["status"] in Status.REFUSED:
                unscored.append((task, key))
    for start in range(0, len(unscored), _SCORED_AT_ONCE):
        part = unscored[start : start + _SCORED_AT_ONCE]
        with storage.temporary_copies() as scratch:
            scores = _scores(folder, [task for task, _ in part], score_settings, scratch)
            pairs = zip(part, scores, strict=True)
            for number, ((task, key), result) in enumerate(pairs, start + 1):
                writer.add_score(task.id, key, result.to_dict())
                advance(number / len(unscored))


def _scores(
    folder: Path, tasks: Sequence[Task], score_settings: ScoreSettings, scratch: Path
) -> Iterator[Score]:
    """The scores of tasks, in order; what cannot be fetched from its store is unreadable."""
    pairings, unreadable = list[Pairing](), dict[str, Score]()
    for task in tasks:
        try:
            pairings.append(_fetch_pairing(folder, task, scratch))
        except DiskFullError:
            raise
        except McspexError as error:
            unreadable[task.id] = Score(task.id, Status.UNREADABLE, str(error))
    scores = score_files(pairings, score_settings)
    for task in tasks:
        score = unreadable.get(task.id) or next(scores)
        yield replace(score, note=storage.with_urls(score.note, scratch))


def _score_key(
    task: Task, line: ResultLine, score_settings: ScoreSettings, locations: Locations
) -> str:
    """A hash of the estimate, the truth and the settings that a score is of."""
    if not task.truth:
        return ""
    stamp, truth = storage.stamp(task.truth), locations.of(task.truth).relative
    version = stamp and stamp.version
    estimate = (line.files[AUDIO], line.input_key)
    return hash_of((*estimate, version, truth, astuple(score_settings)))


def _fetch_pairing(folder: Path, task: Task, scratch: Path) -> Pairing:
    estimate = storage.fetch(task.outputs(folder)[AUDIO], scratch)
    truth = storage.fetch(task.truth, scratch) if task.truth else None
    return Pairing(task.id, estimate, truth, storage.fetch(task.mixture, scratch))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Have shards that end together write their reports in turn: the last one knows of all."""
    if storage.is_url(folder):  # which has no locks
        yield
        return
    lock = FileLock(folder / JOURNAL / "reports.lock")
    try:
        try:
            lock.acquire(timeout=_QUIET_S)
        except Timeout:
            _logger.info(f"waiting for another run, which writes the reports of {folder}")
            lock.acquire(timeout=_WRITING_S)
    except Timeout:
        _logger.warning(
            f"{folder}: another run has been writing the reports for {_WRITING_S} s, so this one "
            "no longer waits. If a finished file is missing in them, run this command again."
        )
    except (NotImplementedError, OSError):  # for example on a disk without locks
        pass
    try:
        yield
    finally:
        lock.release()


def write(
    work: WorkList,
    score_settings: ScoreSettings,
    command: Sequence[str],
    groups: report.Groups | None = None,
) -> tuple[report.Report, dict[str, Any]]:
    """Write the report as .csv, .json and .html, run.json and, if anything failed, failed.jsonl.

    Returns:
        The report, and the content of run.json.
    """
    plan = work.plan
    with _one_at_a_time(plan.folder), storage.on_disk(plan.folder) as folder:
        journal = Journal(plan.folder)
        if others := journal.estimates_outside(plan.tasks):
            _logger.warning(
                f"{plan.label}: the reports leave out estimates of earlier runs: "
                f"{name_some(others)}. To have them there too, name all mixtures."
            )
        results, rows = _rows(work, journal, score_settings)
        failures = [
            _failure(task, row)
            for task, row in zip(plan.tasks, rows, strict=True)
            if row["status"] == Status.FAILED
        ]
        record = _record(work, journal, command, results, len(failures))
        whole = report.make_report(rows, groups=groups)
        texts = {
            _RECORD: json.dumps(record, indent=2) + "\n",
            "report.json": report.as_json(whole),
            "report.csv": report.as_csv(whole),
        }
        html, last = folder / "report.html", folder / "report.json"
        is_same = last.is_file() and last.read_bytes() == texts[last.name].encode()
        if groups or not is_same:  # the page also has the groups' titles and order
            html.unlink(missing_ok=True)  # so that none is left that belongs to another report
        # In a store, where nothing is removed, an empty list says that nothing failed.
        if failures or folder != plan.folder:
            texts[FAILURES] = "".join(json.dumps(failure) + "\n" for failure in failures)
        else:
            (folder / FAILURES).unlink(missing_ok=True)
        for name, text in texts.items():
            with files.whole(folder / name) as partial:
                partial.write_bytes(text.encode("utf-8", "surrogateescape"))
        if results and not html.is_file():
            title = plan.folder.resolve().name
            look = PageSettings(groups=groups, overwrite=True, title=title)
            with storage.temporary_copies() as scratch:
                system = batch_system(folder, work.settings.model.name, rows)
                page.write_page([_with_sounds(system, plan, look, scratch)], html, look)
    return whole, record


def _rows(
    work: WorkList, journal: Journal, score_settings: ScoreSettings
) -> tuple[list[ResultLine], list[dict[str, Any]]]:
    """The results that there are, and a row of the report for each task (see `report.Rows`)."""
    locations = Locations(work.plan.folder)
    results, rows = list[ResultLine](), list[dict[str, Any]]()
    for task in work.plan.tasks:
        row: dict[str, Any] = {"status": Status.PENDING, "note": ""}
        if line := journal.valid_result(task, work.key):
            results.append(line)
            score_key = _score_key(task, line, score_settings, locations)
            score = journal.scores.get((task.id, score_key))
            row = _row(task, line, score or {"status": Status.DONE, "note": ""})
        elif reason := journal.failure(task, work.key):
            row = {"status": Status.FAILED, "note": reason}
        outputs = {kind: path.as_posix() for kind, path in task.outputs(Path()).items()}
        row |= {
            "name": task.id,
            "mixture": locations.of(task.mixture).relative,
            "references": [locations.of(path).relative for path in task.references],
            **({"span": list(task.spans)} if task.spans else {}),
            "truth": locations.of(task.truth).relative if task.truth else None,
            "estimate": outputs[AUDIO],
            **{kind: outputs.get(kind) for kind in (RESIDUAL, ACTIVITY)},
        }
        rows.append(row)
    return results, rows


def _row(task: Task, line: ResultLine, score: Mapping[str, Any]) -> dict[str, Any]:
    """A task's result with its score, whose values count where both have some."""
    row = {name: value for name, value in line.result().items() if name not in _RUN_KEYS}
    row["warnings"] = [text.replace(task.mixture, task.id) for text in row.get("warnings", ())]
    return row | {name: v for name, v in score.items() if v is not None or name not in row}


def _failure(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of failed.jsonl, which can be read as a manifest."""
    return {
        "id": task.id,
        **{key: row[key] for key in _INPUT_KEYS if key in row},
        "output": task.output,
        RESIDUAL: task.residual,
        ACTIVITY: task.activity,
        "reason": row["note"],
    }


def _with_sounds(
    system: SystemOutputs, plan: BatchPlan, look: PageSettings, scratch: Path
) -> SystemOutputs:
    """The outputs with copies on this disk of the sounds of the cases that their page shows."""
    sounds = (path for task in plan.tasks for path in (task.mixture, task.truth or ""))
    if not storage.is_url(plan.folder) and not any(map(storage.is_url, sounds)):
        return system
    shown = compare_systems([system], look).choose()
    cases = dict(system.outputs)
    for task in plan.tasks:
        name = files.normal(task.id)
        if name in shown and (case := cases[name]).estimate:
            with suppress(McspexError):  # what cannot be fetched has an empty place on the page
                own = _fetch_pairing(plan.folder, task, scratch)
                cases[name] = replace(
                    case, estimate=own.estimate, truth=own.truth, mixture=own.mixture
                )
    return replace(system, outputs=cases)


def _record(
    work: WorkList,
    journal: Journal,
    command: Sequence[str],
    lines: Sequence[ResultLine],
    failed: int,
) -> dict[str, Any]:
    """The content of run.json: what was done, by which versions and model, and how fast."""
    settings, results = work.settings, [line.result() for line in lines]
    worked_s = sum(run.audio_s for run in journal.runs)
    wall_s = sum(run.wall_s for run in journal.runs)
    return {
        "mcspex": __version__,
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(command),
        "model": settings.model.name,
        "model_revision": settings.model.revision,
        "model_sha256": settings.model.sha256,
        **{
            name: sorted({result[name] for result in results if name in result})
            for name in ("device", "precision", "runtime")
        },
        "passes": settings.engine_settings.passes,
        **asdict(settings.options),
        "files": len(work.plan.tasks),
        "done": len(lines),
        "failed": failed,
        "audio_s": round(sum(line.length_s for line in lines), 3),
        "wall_s": round(wall_s, 3),
        "real_time_factor": round(wall_s / worked_s, 5) if worked_s else None,
        "runs": [asdict(run) for run in journal.runs],
    }
