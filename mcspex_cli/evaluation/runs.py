"""What systems gave for each case: folders of estimates, or of `mcspex batch`, side by side."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli import paths
from mcspex_cli.errors import ConfigError, PairingError

REPORT = "report.json"
"""By this file, with a `format` in it, a folder of `mcspex batch` is known."""

FORMAT = 1

OTHERS = "Other cases"
"""The section of cases that the groups do not name."""


@dataclass(frozen=True)
class Output:
    """What one system has for a case; `problem` says why it has no estimate."""

    estimate: Path | None
    mixture: Path | None = None
    truth: Path | None = None
    problem: str = ""


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


@dataclass(frozen=True)
class Place:
    """Where a CSV puts a case: its section, and its heading if that is not its name."""

    group: str
    title: str


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
    paths.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder of estimates.")
    label = label.strip() or folder.resolve().name
    report = _report(folder / REPORT)
    if report is not None:
        return Run(label, folder, _batch_outputs(folder, report))
    outputs = {name: Output(path) for name, path in paths.by_name(folder).items()}
    if not outputs:
        raise PairingError(f"{folder}: no sound files in this folder.")
    return Run(label, folder, outputs)


def read_places(path: Path, group: str = "group") -> dict[str, Place]:
    """Read a CSV of cases: `id` (or `name`), the column `group`, and maybe `title`.

    Raises:
        ConfigError: it cannot be read, a column is missing, or a case is in it twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}).") from error
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or ())
    key = "id" if "id" in columns else "name"
    if key not in columns:
        raise ConfigError(f"{path}: column 'id' (or 'name') is missing in its first line.")
    if group not in columns:
        raise ConfigError(f"{path}: column {group!r} is missing; it has {', '.join(columns)}.")
    places: dict[str, Place] = {}
    for row in reader:
        name = row[key] or ""
        if name in places:
            raise ConfigError(f"{path} line {reader.line_num}: {name} is in it twice. Drop one.")
        places[name] = Place(row[group] or OTHERS, row.get("title") or name)
    return places


def gather(
    runs: Sequence[Run], truth: Path | None, mixtures: Path | None, places: Mapping[str, Place]
) -> list[Case]:
    """Put the runs side by side: the cases of all of them, those of `places` first.

    A case's mixture and truth are the namesakes in `truth` and `mixtures`, else what the first
    run that has them says.

    Raises:
        AudioError: there is no folder `truth` or `mixtures`.
        PairingError: two files in one of them have one name.
    """
    truths, mixed = _namesakes(truth), _namesakes(mixtures)
    names = {name for run in runs for name in run.outputs}
    order = [name for name in places if name in names] + sorted(names - places.keys())
    cases = []
    for name in order:
        outputs = tuple(run.outputs.get(name) for run in runs)
        place = places.get(name, Place(OTHERS, name))
        said = [o.mixture for o in outputs if o], [o.truth for o in outputs if o]
        mixture, target = (next(filter(None, found), None) for found in said)
        cases.append(
            Case(
                name,
                place.title,
                place.group,
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
    paths.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder.")
    return paths.by_name(folder)


def _report(path: Path) -> dict[str, Any] | None:
    """What `mcspex batch` wrote of its run; none if the file is not there or not its own."""
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged ({error}). Run mcspex batch again.") from error
    if not isinstance(report, dict) or "format" not in report:
        return None
    if report["format"] != FORMAT:
        raise ConfigError(f"{path}: has format {report['format']}, not {FORMAT}. Update mcspex.")
    return report


def _batch_outputs(folder: Path, report: dict[str, Any]) -> dict[str, Output]:
    """The outputs that a batch's report lists."""
    outputs: dict[str, Output] = {}
    try:
        for row in report["scores"]:
            made = row["status"] != "failed" and row.get("estimate")
            reason = str(row.get("note") or row.get("error") or row["status"])
            outputs[str(row["name"])] = Output(
                folder / row["estimate"] if made else None,
                Path(row["mixture"]) if row.get("mixture") else None,
                Path(row["truth"]) if row.get("truth") else None,
                "" if made else reason,
            )
    except (KeyError, TypeError, AttributeError) as error:
        path = folder / REPORT
        raise ConfigError(f"{path}: is damaged ({error!r}). Run mcspex batch again.") from error
    if not outputs:
        raise PairingError(f"{folder}: its {REPORT} lists no files. Run mcspex batch again.")
    return outputs
