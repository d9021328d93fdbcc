"""What a batch leaves behind: scores, reports, the list of failures and the run's record."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mcspex_cli import __version__, files
from mcspex_cli.evaluation import tables
from mcspex_cli.evaluation.comparison import read_run
from mcspex_cli.evaluation.page import PageSettings, write_page
from mcspex_cli.evaluation.scoring import Pairing, Row, ScoreSettings, score_files
from mcspex_cli.evaluation.summary import Report, read_groups, report
from mcspex_cli.extraction.batch import BatchRun
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.journal import Journal, fingerprint, stamp
from mcspex_cli.extraction.planning import AUDIO

RUN, FAILED = "run.json", "failed.jsonl"

KEPT = ("seconds", "gain_db", "limited", "silent", "presence", "present", "wrong_speaker")
"""What a report has of a journal's lines; old ones lack the last three."""


@dataclass(frozen=True)
class Batch:
    """A plan, what was done of it and where."""

    folder: Path
    plan: Sequence[Job]
    journal: Journal
    run: BatchRun


def unscored(batch: Batch, settings: ScoreSettings) -> list[tuple[Job, str]]:
    """The jobs done whose truth is known but not their score, and a key for each score."""
    lacking = []
    lines = batch.run.lines()
    for job in batch.plan:
        if job.truth and (line := lines.get(job.id)):
            of = [line["file"], line["inputs"], stamp(job.truth), str(job.truth), astuple(settings)]
            key = fingerprint(of)
            if batch.journal.scores.get(job.id, {}).get("key") != key:
                lacking.append((job, key))
    return lacking


def score_jobs(
    batch: Batch, lacking: Sequence[tuple[Job, str]], settings: ScoreSettings
) -> Iterator[Row]:
    """Score jobs, each in the journal before it is yielded."""
    pairings = [Pairing(j.id, j.output, j.truth, j.mixture) for j, _ in lacking if j.truth]
    for (job, key), row in zip(lacking, score_files(pairings, settings), strict=True):
        batch.journal.add_score(job, key, row.to_dict())
        yield row


def write(
    batch: Batch, command: Sequence[str], groups: Path | None = None, group_by: str | None = None
) -> tuple[Report, dict[str, Any]]:
    """Write the report as .csv, .json and .html, run.json and, if anything failed, failed.jsonl.

    `groups` is a CSV for `read_groups`. The page is left as it is if the report is.

    Returns:
        The report, and what run.json says.

    Raises:
        OutputError: the folder cannot be written.
    """
    batch.journal.read()  # another shard may have ended while this one scored
    lines = batch.run.lines()
    rows = [_row(batch, job, lines.get(job.id)) for job in batch.plan]
    document = report(rows, groups=read_groups(groups, group_by) if groups else None)
    record = _record(batch, command, lines)
    _write_text(batch.folder / RUN, json.dumps(record, indent=2) + "\n")
    _write_failures(batch)
    page = batch.folder / "report.html"
    if tables.as_json(document).encode() != _read(batch.folder / "report.json"):
        page.unlink(missing_ok=True)  # so that none is left that belongs to another report
    for name in ("report.csv", "report.json"):
        tables.write(batch.folder / name, document)
    if lines and not page.exists():
        run = read_run(batch.folder, batch.run.settings.checkpoint.name)
        title = batch.folder.resolve().name
        settings = PageSettings(groups=groups, group_by=group_by, overwrite=True, title=title)
        write_page([run], page, settings)
    return document, record


def _write_failures(batch: Batch) -> None:
    """Write failed.jsonl, or remove it if nothing failed."""
    failed = [job for job in batch.plan if job.id in batch.journal.failed]
    if failed:
        texts = [json.dumps(_failure(batch, job)) + "\n" for job in failed]
        _write_text(batch.folder / FAILED, "".join(texts))
    else:
        (batch.folder / FAILED).unlink(missing_ok=True)


def _record(
    batch: Batch, command: Sequence[str], lines: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What was done, by what, where: the content of run.json; `lines` are those of the run."""
    settings = batch.run.settings
    audio_s = sum(line["seconds"] for line in lines.values())
    runs = batch.journal.runs
    worked_s = sum(run["audio_s"] for run in runs)
    wall_s = sum(run["wall_s"] for run in runs)
    return {
        "mcspex": __version__,
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(command),
        "model": settings.checkpoint.name,
        "model_revision": settings.checkpoint.revision,
        "model_sha256": settings.checkpoint.sha256,
        "device": sorted({line["device"] for line in lines.values()}),
        "precision": sorted({line["precision"] for line in lines.values()}),
        "runtime": sorted({line.get("runtime", "torch") for line in lines.values()}),
        "level": settings.files.level,
        "channel": settings.files.channel,
        "subtype": settings.files.subtype,
        "absent": settings.files.absent,
        "wet_db": settings.files.wet_db,
        "dry_db": settings.files.dry_db,
        "files": len(batch.plan),
        "done": len(lines),
        "failed": sum(job.id in batch.journal.failed for job in batch.plan),
        "audio_s": round(audio_s, 3),
        "wall_s": round(wall_s, 3),
        "real_time_factor": round(wall_s / worked_s, 5) if worked_s else None,
        "runs": runs,
    }


def _row(batch: Batch, job: Job, line: Mapping[str, Any] | None) -> dict[str, Any]:
    """A job's row in the report: its score, if there is one, and what is known besides."""
    score = batch.journal.scores.get(job.id) if job.truth else None
    if line is None:
        failure = batch.journal.failed.get(job.id)
        status = "failed" if failure else "pending"
        said: Mapping[str, Any] = {"status": status, "note": failure["reason"] if failure else ""}
    else:
        said = score["row"] if score else {"status": "done", "note": ""}
    known = {key: line.get(key) for key in KEPT} if line else {}
    return {
        **said,
        "name": job.id,
        "mixture": str(job.mixture.absolute()),
        "references": [str(path.absolute()) for path in job.references],
        "estimate": job.output.relative_to(batch.folder).as_posix(),
        "truth": str(job.truth.absolute()) if job.truth else None,
        **known,
    }


def _failure(batch: Batch, job: Job) -> dict[str, Any]:
    """A job that failed, as a manifest's line, with the reason."""
    return {
        "id": job.id,
        "mixture": str(job.mixture.resolve()),
        "output": job.output.relative_to(batch.folder / AUDIO).as_posix(),
        "references": [str(path.resolve()) for path in job.references],
        "truth": str(job.truth.resolve()) if job.truth else None,
        "reason": batch.journal.failed[job.id]["reason"],
    }


def _read(path: Path) -> bytes:
    """A file's content, empty if it is not there."""
    return path.read_bytes() if path.is_file() else b""


def _write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with files.whole(path) as partial:
        partial.write_bytes(text.encode("utf-8", "surrogateescape"))
