"""What a batch leaves behind: scores, reports, the list of failures and the record of the run.

Paths in these files start from the batch's folder, so that a set can be moved as a whole.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mcspex_cli import __version__, files
from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Done, Journal, JournalWriter, fingerprint
from mcspex_cli.batch.manifest import AUDIO, Task, outputs
from mcspex_cli.batch.plan import BatchPlan, Locations
from mcspex_cli.batch.run import BatchSettings
from mcspex_cli.evaluation import tables
from mcspex_cli.evaluation.cases import Pairing
from mcspex_cli.evaluation.comparison import batch_run
from mcspex_cli.evaluation.groups import read_groups
from mcspex_cli.evaluation.page import PageSettings, write_page
from mcspex_cli.evaluation.scoring import ScoreSettings, score_files
from mcspex_cli.evaluation.summary import Report, report

RECORD, FAILED = "run.json", "failed.jsonl"

_SCORED_AT_ONCE = 1000
"""Files that are copied from an object store before they are scored."""

_OF_THE_RUN = (
    *("elapsed_s", "real_time_factor", "device", "precision", "runtime"),
    *("model", "model_revision", "model_sha256", "output"),
)
"""What a result's row has that differs from run to run, or is in `run.json` for all."""


def score(
    plan: BatchPlan,
    settings: BatchSettings,
    scoring: ScoreSettings,
    advance: Callable[[float], object] = lambda _: None,
) -> None:
    """Score the tasks that are done, have a truth and have no such score in the journal yet.

    `advance` is called with the share that is done.
    """
    journal, writer = Journal(plan.folder), JournalWriter(plan.folder)
    locations = Locations(plan.folder)
    pairings, keys, settings_key = [], [], settings.fingerprint()
    for task in plan.tasks:
        if task.truth and journal.is_done(task, settings_key):
            done, truth = journal.done[task.id], Path(task.truth)
            parts = (done.files[AUDIO], done.inputs, storage.stamp(truth), astuple(scoring))
            key = fingerprint((*parts, locations.of(task.truth)[1]))
            if journal.scores.get(task.id, {}).get("key") != key:
                estimate = outputs(plan.folder, task)[AUDIO]
                pairings.append(Pairing(task.id, estimate, truth, Path(task.mixture)))
                keys.append(key)
    number = 0
    for start in range(0, len(pairings), _SCORED_AT_ONCE):
        with tempfile.TemporaryDirectory() as scratch:
            part = pairings[start : start + _SCORED_AT_ONCE]
            fetched = [_fetched(pairing, Path(scratch)) for pairing in part]
            for row in score_files(fetched, scoring):
                writer.add_score(row.name, keys[number], row.to_dict())
                number += 1
                advance(number / len(keys))


def _fetched(pairing: Pairing, scratch: Path) -> Pairing:
    """A pairing of files on this disk."""
    estimate = storage.fetch(pairing.estimate, scratch)
    target = pairing.target and storage.fetch(pairing.target, scratch)
    mixture = pairing.mixture and storage.fetch(pairing.mixture, scratch)
    return replace(pairing, estimate=estimate, target=target, mixture=mixture)


def write(
    plan: BatchPlan,
    settings: BatchSettings,
    command: Sequence[str],
    groups: Path | None = None,
    group_by: str | None = None,
) -> tuple[Report, dict[str, Any]]:
    """Write the report as .csv, .json and .html, run.json and, if anything failed, failed.jsonl.

    Returns:
        The report, and the content of run.json.

    Raises:
        OutputError: the folder cannot be written.
    """
    journal, key = Journal(plan.folder), settings.fingerprint()
    done = {t.id: journal.done[t.id] for t in plan.tasks if journal.is_done(t, key)}
    failed = [task for task in plan.tasks if task.id in journal.failed]
    locations = Locations(plan.folder)
    rows = [_row(task, journal, done.get(task.id), locations) for task in plan.tasks]
    record = _record(plan, journal, settings, command, done)
    failures = [_failure(task, journal.failed[task.id].reason, locations) for task in failed]
    document = report(rows, groups=read_groups(groups, group_by) if groups else None)
    with storage.on_disk(plan.folder) as folder:
        _write(folder / RECORD, json.dumps(record, indent=2) + "\n")
        # In a store, where nothing is removed, an empty list says that nothing failed.
        if failures or folder != plan.folder:
            _write(folder / FAILED, "".join(json.dumps(failure) + "\n" for failure in failures))
        else:
            (folder / FAILED).unlink(missing_ok=True)
        page, path = folder / "report.html", folder / "report.json"
        if not path.is_file() or path.read_bytes() != tables.as_json(document).encode():
            page.unlink(missing_ok=True)  # so that none is left that belongs to another report
        tables.write(path, document)
        # When a voice speaks is too long for a cell of a table.
        short = [{k: v for k, v in row.items() if k != "segments"} for row in document.rows]
        tables.write(folder / "report.csv", replace(document, rows=short))
        here = folder == plan.folder and not any(storage.url(task.mixture) for task in plan.tasks)
        if done and here and not page.exists():  # its sounds have to be on this disk
            asked = PageSettings(
                groups=groups, group_by=group_by, overwrite=True, title=folder.resolve().name
            )
            write_page([batch_run(folder, settings.model.name, rows)], page, asked)
    return document, record


def _inputs(task: Task, locations: Locations) -> dict[str, Any]:
    return {
        "mixture": locations.of(task.mixture)[1],
        "references": [locations.of(path)[1] for path in task.references],
        **({"span": list(task.spans)} if task.spans else {}),
        "truth": locations.of(task.truth)[1] if task.truth else None,
    }


def _row(task: Task, journal: Journal, done: Done | None, locations: Locations) -> dict[str, Any]:
    """A task's row in the report: what is known of its result, and its score if there is one."""
    score = journal.scores.get(task.id) if task.truth and done else None
    if done is None:
        failure = journal.failed.get(task.id)
        row = {
            "status": "failed" if failure else "pending",
            "note": failure.reason if failure else "",
        }
    else:
        result = {name: v for name, v in done.row.items() if name not in _OF_THE_RUN}
        result["warnings"] = [text.replace(task.mixture, task.id) for text in result["warnings"]]
        scores = score["row"] if score else {"status": "done", "note": ""}
        row = {**result, **{k: v for k, v in scores.items() if v is not None or k not in result}}
    names = {kind: path.as_posix() for kind, path in outputs(Path(), task).items()}
    return {
        **row,
        "name": task.id,
        **_inputs(task, locations),
        "estimate": names.pop(AUDIO),
        "residual": None,
        "activity": None,
        **names,
    }


def _record(
    plan: BatchPlan,
    journal: Journal,
    settings: BatchSettings,
    command: Sequence[str],
    done: Mapping[str, Done],
) -> dict[str, Any]:
    """What was done, by what, where: the content of run.json."""
    rows = [one.row for one in done.values()]
    worked_s = sum(run["audio_s"] for run in journal.runs)
    wall_s = sum(run["wall_s"] for run in journal.runs)
    return {
        "mcspex": __version__,
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(command),
        "model": settings.model.name,
        "model_revision": settings.model.revision,
        "model_sha256": settings.model.sha256,
        **{name: sorted({r[name] for r in rows}) for name in ("device", "precision", "runtime")},
        **asdict(settings.options),
        "files": len(plan.tasks),
        "done": len(done),
        "failed": sum(task.id in journal.failed for task in plan.tasks),
        "audio_s": round(sum(one.seconds for one in done.values()), 3),
        "wall_s": round(wall_s, 3),
        "real_time_factor": round(wall_s / worked_s, 5) if worked_s else None,
        "runs": journal.runs,
    }


def _failure(task: Task, reason: str, locations: Locations) -> dict[str, Any]:
    return {
        "id": task.id,
        **_inputs(task, locations),
        "output": task.output,
        "residual": task.residual,
        "activity": task.activity,
        "reason": reason,
    }


def _write(path: Path, text: str) -> None:
    with files.whole(path) as partial:
        partial.write_bytes(text.encode("utf-8", "surrogateescape"))
