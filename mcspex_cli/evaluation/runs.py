"""What systems gave for each case: folders of estimates, or of `mcspex batch`, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.baselines import FORMAT
from mcspex_cli.evaluation.groups import NONE, Groups
from mcspex_cli.evaluation.pairing import by_name

REPORT = "report.json"
"""By this file, with rows that name an `estimate`, a folder of `mcspex batch` is known."""

UNMADE = ("failed", "pending")
"""Statuses of a batch's files that have no estimate."""

_SCORED = {"si_sdr_db", "si_sdr_i_db", "input_si_sdr_db", "confused", "note"}
"""What a row has that was scored."""

OTHERS = "Other cases"
"""The section of cases that the groups do not name."""


@dataclass(frozen=True)
class Output:
    """What one system has for a case; `problem` says why it has no estimate."""

    estimate: Path | None
    mixture: Path | None = None
    truth: Path | None = None
    problem: str = ""
    score: Mapping[str, Any] | None = None
    """Its row in the run's report, if that has a score."""


@dataclass(frozen=True)
class Run:
    """A system's outputs by the name of the case."""

    label: str
    folder: Path
    outputs: Mapping[str, Output]


@dataclass(frozen=True)
class Case:
    """One mixture, its truth and what each system gave, in the order of the runs."""

    name: str
    title: str
    group: str
    mixture: Path | None
    truth: Path | None
    outputs: tuple[Output | None, ...]


def read_runs(words: Sequence[str]) -> list[Run]:
    """Read `FOLDER` or `NAME=FOLDER` each; a path that exists is never taken apart.

    Raises:
        AudioError, ConfigError, PairingError: as `read_run`.
        PairingError: two have one label.
    """
    runs: list[Run] = []
    for word in words:
        label, equals, folder = word.partition("=")
        named = bool(equals) and not Path(word).exists()
        run = read_run(Path(folder), label) if named else read_run(Path(word))
        for other in runs:
            if other.label == run.label:
                raise PairingError(
                    f"{other.folder} and {run.folder}: both are called {run.label}. "
                    f"Name one: NAME={run.folder}"
                )
        runs.append(run)
    return runs


def read_run(folder: Path, label: str = "") -> Run:
    """Read a folder of estimates or of `mcspex batch`; without a label it has its own name.

    Raises:
        AudioError: there is no such folder.
        ConfigError: its report.json is damaged or of another version.
        PairingError: it is a file, holds no sound files, or two of them have one name.
    """
    files.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder of estimates.")
    label = label.strip() or folder.resolve().name
    path = folder / REPORT
    if rows := _batch_rows(path):
        return Run(label, folder, dict(_batch_output(path, row) for row in rows))
    outputs = {name: Output(path) for name, path in by_name(folder).items()}
    if not outputs:
        raise PairingError(f"{folder}: no sound files in this folder.")
    return Run(label, folder, outputs)


def gather(
    runs: Sequence[Run], truth: Path | None, mixtures: Path | None, groups: Groups | None = None
) -> list[Case]:
    """Put the runs side by side: the cases of all of them, in the order of the groups' CSV.

    A case's mixture and truth are the namesakes in `truth` and `mixtures`, else what the first
    run that has them says.

    Raises:
        AudioError: there is no folder `truth` or `mixtures`.
        PairingError: two files in one of them have one name.
    """
    truths, mixed, groups = _namesakes(truth), _namesakes(mixtures), groups or Groups({}, {})
    ranks = {name: rank for rank, name in enumerate(groups.by_name)}
    names = {name for run in runs for name in run.outputs}
    cases = []
    for name in sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name)):
        outputs = tuple(run.outputs.get(name) for run in runs)
        group = groups.of(name)
        said = [o.mixture for o in outputs if o], [o.truth for o in outputs if o]
        mixture, target = (next(filter(None, found), None) for found in said)
        cases.append(
            Case(
                name,
                groups.titles.get(name, name),
                OTHERS if group == NONE else group,
                mixed.get(name, mixture),
                truths.get(name, target),
                outputs,
            )
        )
    return sorted(cases, key=lambda case: case.group == OTHERS)


def _namesakes(folder: Path | None) -> dict[str, Path]:
    """Sound files of a folder by name, none without a folder."""
    if folder is None:
        return {}
    files.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder.")
    return by_name(folder)


def _batch_rows(path: Path) -> list[dict[str, Any]]:
    """What `mcspex batch` wrote of its files; nothing if it was not there."""
    if not path.is_file():
        return []
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged ({error}). Run mcspex batch again.") from error
    if not isinstance(report, dict) or "format" not in report:
        return []
    if report["format"] != FORMAT:
        raise ConfigError(f"{path}: has format {report['format']}, not {FORMAT}. Update mcspex.")
    rows = report.get("scores")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: is damaged (no scores). Run mcspex batch again.")
    return rows if any("estimate" in row for row in rows) else []


def _batch_output(path: Path, row: Mapping[str, Any]) -> tuple[str, Output]:
    """A case and its output, by a row of a batch's report."""
    try:
        name, status = str(row["name"]), str(row["status"])
        estimate = None if status in UNMADE else path.parent / row["estimate"]
        mixture, truth = (Path(row[key]) if row.get(key) else None for key in ("mixture", "truth"))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error!r}). Run mcspex batch again.") from error
    problem = "" if estimate else str(row.get("note") or status)
    score = row if row.keys() >= _SCORED and estimate else None
    numbers = [row[key] for key in _SCORED if key.endswith("_db")] if score else []
    if not all(isinstance(number, int | float | None) for number in numbers):
        raise ConfigError(f"{path}: is damaged (scores of {name}). Run mcspex batch again.")
    return name, Output(estimate, mixture, truth, problem, score)
