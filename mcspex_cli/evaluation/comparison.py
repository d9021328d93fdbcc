"""Several systems side by side: their outputs for each case, the scores, and which to show."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.cases import NO_GROUP, Groups, Pairing, files_by_name
from mcspex_cli.evaluation.metrics import BUILT_IN, BY_COLUMN, METRICS, Metric
from mcspex_cli.evaluation.scoring import (
    FLIPPED,
    REFUSED,
    ScoreSettings,
    score_file,
    score_files,
)
from mcspex_cli.evaluation.summary import (
    Summary,
    is_row,
    numbers,
    ranking,
    read_rows,
    scored,
    summarise,
)

REPORT = "report.json"
"""A folder with this file, if its rows name an `estimate`, is one of `mcspex batch`."""

NO_ESTIMATE = ("failed", "pending")
"""Statuses of a batch's files that have no estimate."""

OTHERS = "Other cases"
"""The section of cases that are in no group."""

REASONS = BEST, WORST, DRAWN = "best", "worst", "drawn at random"
"""Why a case is shown."""

SETTINGS = ScoreSettings(BUILT_IN, flipped_ok=True)
"""How outputs without a score are scored: quickly, and by what can be heard."""

NAMED = 5


@dataclass(frozen=True)
class Output:
    """What one system has for a case."""

    estimate: Path | None
    mixture: Path | None = None
    truth: Path | None = None
    problem: str = ""
    """Why there is no estimate."""
    row: Mapping[str, Any] | None = None
    """Its score in the run's own report."""


@dataclass(frozen=True)
class Run:
    """A system's outputs by the name of the case."""

    label: str
    folder: Path
    outputs: Mapping[str, Output]


@dataclass(frozen=True)
class ComparisonCase:
    """One mixture, its truth, and what each system made of it."""

    name: str
    title: str
    group: str
    mixture: Path | None
    truth: Path | None
    outputs: tuple[Output | None, ...]
    """In the order of the runs; None where a run does not have the case."""
    rows: tuple[Mapping[str, Any] | None, ...] = ()
    """The scores, likewise, as `Row.to_dict` has them; None where there are none."""
    inputs: Mapping[str, float] = field(default_factory=dict)
    """What is measured of the mixture, by the column that the estimates have it in."""

    @property
    def files(self) -> list[Path | None]:
        """Mixture, estimates and truth."""
        return [self.mixture, *(o.estimate if o else None for o in self.outputs), self.truth]


@dataclass(frozen=True)
class Comparison:
    """All cases of all runs."""

    runs: Sequence[Run]
    cases: Sequence[ComparisonCase]

    def rows(self) -> list[Mapping[str, Any]]:
        """The scores of all outputs that have some."""
        return [row for case in self.cases for row in case.rows if row]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of which there is a value; those of mixtures are the `inputs` of a case."""
        rows = self.rows()
        return [metric for metric in METRICS.values() if numbers(rows, metric.column)]

    @property
    def ranking(self) -> Metric | None:
        """The metric that says which case is best: SI-SDRi if there is one."""
        return ranking(self.rows())

    def summaries(self, cases: Sequence[ComparisonCase] | None = None) -> list[Summary]:
        """Each system over some cases, or all."""
        cases = self.cases if cases is None else cases
        return [
            summarise([row for case in cases if (row := case.rows[number])])
            for number in range(len(self.runs))
        ]

    def by_group(self) -> dict[str, list[ComparisonCase]]:
        """The cases of each group, groups and cases in order."""
        groups: dict[str, list[ComparisonCase]] = {}
        for case in self.cases:
            groups.setdefault(case.group, []).append(case)
        return groups

    def choose(self, count: int, seed: int) -> Mapping[str, str]:
        """Which cases to show, by name, and why: "best", "worst" or "drawn at random".

        A third each; best and worst by the mean of `ranking` over the systems. Without scores all
        are drawn. If there are not more than `count`, all are shown and the reason is empty.
        """
        if len(self.cases) <= count:
            return {case.name: "" for case in self.cases}
        metric, means = self.ranking, dict[str, float]()
        for case in self.cases if metric else ():
            ok = scored([row for row in case.rows if row])
            if metric and (values := numbers(ok, metric.column)):
                means[case.name] = float(np.mean(values))
        ranked = sorted(means, key=lambda name: metric.badness * means[name] if metric else 0.0)
        best = ranked[: (count + 2) // 3]
        worst = ranked[len(best) :][::-1][: (count + 1) // 3]
        reasons = dict.fromkeys(best, BEST) | dict.fromkeys(worst, WORST)
        others = [case.name for case in self.cases if case.name not in reasons]
        drawn = random.Random(seed).sample(others, count - len(reasons))
        return reasons | dict.fromkeys(drawn, DRAWN)

    def warnings(self) -> list[str]:
        """Which outputs, truths and mixtures are missing, and which files cannot be scored."""
        lines = []
        for number, run in enumerate(self.runs):
            lines += self._missing(f"{run.label}: no output", lambda case: case.files[1 + number])  # noqa: B023
            rows = [row for case in self.cases if (row := case.rows[number])]
            flipped = sum(str(row["note"]).startswith(FLIPPED) for row in rows)
            if flipped:
                lines.append(
                    f"{run.label}: sign-flipped outputs: {flipped}. They count here; mcspex score "
                    "counts them with --flipped-ok."
                )
        if not any(case.truth for case in self.cases):
            missing = "only what needs none" if self.rows() else "no scores"
            lines.append(f"no truth is known, so the page has {missing}. Add --truth DIR.")
        else:
            lines += self._missing("no truth", lambda case: case.truth)
        lines += self._missing("no mixture", lambda case: case.mixture)
        return lines + [row["note"] for row in self.rows() if row["status"] in REFUSED]

    def _missing(self, what: str, file: Callable[[ComparisonCase], Path | None]) -> list[str]:
        """A line on the cases without a file, if there are any."""
        names = [case.name for case in self.cases if not file(case)]
        more = ", ..." if len(names) > NAMED else ""
        shown = ", ".join(names[:NAMED])
        line = f"{what} for {len(names)} of {len(self.cases)} cases: {shown}{more}"
        return [line] if names else []


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
        PairingError: it is a file, has no sound files, or two of them have one name.
    """
    files.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder of estimates.")
    label = label.strip() or folder.resolve().name
    if rows := _batch_rows(folder / REPORT):
        return batch_run(folder, label, rows)
    outputs = {name: Output(path) for name, path in files_by_name(folder).items()}
    if not outputs:
        raise PairingError(f"{folder}: no sound files in this folder.")
    return Run(label, folder, outputs)


def batch_run(folder: Path, label: str, rows: Iterable[Mapping[str, Any]]) -> Run:
    """The run of a batch in `folder`, by the rows of its report.

    Raises:
        ConfigError: a row lacks what each has, or has something else in its place.
    """
    return Run(label, folder, dict(_batch_output(folder / REPORT, row) for row in rows))


def compare_runs(
    runs: Sequence[Run],
    truth: Path | None = None,
    mixtures: Path | None = None,
    groups: Groups | None = None,
    advance: Callable[[float], object] = lambda _: None,
) -> Comparison:
    """Put runs side by side and score what has no score yet.

    The cases are those of all runs, in the order of the groups' file. A case's mixture and truth
    are the files of its name in `truth` and `mixtures`, else what the first run that has them says.

    `advance` is called with the share that is done.

    Raises:
        AudioError: there is no folder `truth` or `mixtures`.
        PairingError: two files in one of them have one name.
    """
    cases = _gather(runs, truth, mixtures, groups or Groups())
    rows = [[_own_row(output, case) for output in case.outputs] for case in cases]
    lacking = [
        (case, row, number, Pairing(case.name, output.estimate, case.truth, case.mixture))
        for case, row in zip(cases, rows, strict=True)
        for number, output in enumerate(case.outputs)
        if output and output.estimate and case.truth and not row[number]
    ]
    scores = score_files([pairing for *_, pairing in lacking], SETTINGS)
    for done, ((case, row, number, _), score) in enumerate(zip(lacking, scores, strict=True), 1):
        row[number] = score.to_dict() | _without_truth(case.outputs[number])
        advance(done / len(lacking))
    return Comparison(
        runs,
        [
            replace(case, rows=tuple(row), inputs=_inputs(case, row))
            for case, row in zip(cases, rows, strict=True)
        ],
    )


def _gather(
    runs: Sequence[Run], truth: Path | None, mixtures: Path | None, groups: Groups
) -> list[ComparisonCase]:
    truths, mixed = ({} if folder is None else _files(folder) for folder in (truth, mixtures))
    ranks = {name: rank for rank, name in enumerate(groups.by_name)}
    names = {name for run in runs for name in run.outputs}
    cases = []
    for name in sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name)):
        outputs = tuple(run.outputs.get(name) for run in runs)
        known = [output for output in outputs if output]
        group = groups.of(name)
        cases.append(
            ComparisonCase(
                name,
                groups.titles.get(name, name),
                OTHERS if group == NO_GROUP else group,
                mixed.get(name) or next((o.mixture for o in known if o.mixture), None),
                truths.get(name) or next((o.truth for o in known if o.truth), None),
                outputs,
            )
        )
    return sorted(cases, key=lambda case: case.group == OTHERS)


def _files(folder: Path) -> dict[str, Path]:
    files.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder.")
    return files_by_name(folder)


def _own_row(output: Output | None, case: ComparisonCase) -> Mapping[str, Any] | None:
    """The score that an output's run has, if it is of the case's truth and mixture."""
    if output is None or output.row is None:
        return None
    pairs = ((output.truth, case.truth), (output.mixture, case.mixture))
    same = all(a == b or (a and b and a.resolve() == b.resolve()) for a, b in pairs)
    unscored = case.truth is not None and output.row["status"] == "done"
    return output.row if same and not unscored else None


def _without_truth(output: Output | None) -> dict[str, Any]:
    """The values in an output's own row that hold whatever the truth is."""
    known = (output and output.row) or {}
    columns = [c for c, metric in BY_COLUMN.items() if "target" not in metric.needs]
    return {column: known[column] for column in columns if known.get(column) is not None}


def _inputs(case: ComparisonCase, rows: Sequence[Mapping[str, Any] | None]) -> dict[str, float]:
    """What is measured of a case's mixture, by the scores of its outputs or measured now."""
    inputs = {}
    for column in BY_COLUMN:
        values = numbers([row for row in rows if row], f"input_{column}")
        if values:
            inputs[column] = values[0]
    if "si_sdr_db" not in inputs and case.truth and case.mixture:
        row = score_file(Pairing(case.name, case.mixture, case.truth), SETTINGS)
        if "si_sdr_db" in row.values:
            inputs["si_sdr_db"] = row.values["si_sdr_db"]
    return inputs


def _batch_rows(path: Path) -> list[dict[str, Any]]:
    """What `mcspex batch` wrote of its files; nothing if it did not write this."""
    if not path.is_file():
        return []
    rows = read_rows(path, "Run mcspex batch again.") or []
    return rows if any("estimate" in row for row in rows) else []


def _batch_output(path: Path, row: Mapping[str, Any]) -> tuple[str, Output]:
    try:
        name, status = str(row["name"]), str(row["status"])
        estimate = None if status in NO_ESTIMATE else path.parent / row["estimate"]
        mixture, truth = (
            path.parent / row[key] if row.get(key) else None for key in ("mixture", "truth")
        )
    except KeyError as error:
        raise ConfigError(f"{path}: a row has no {error}. Run mcspex batch again.") from error
    except TypeError as error:
        raise ConfigError(f"{path}: a row has a damaged value. Run mcspex batch again.") from error
    score = None
    if status not in NO_ESTIMATE and any(row.get(column) is not None for column in BY_COLUMN):
        if not is_row(row):
            raise ConfigError(f"{path}: a row has a damaged value. Run mcspex batch again.")
        note = str(row.get("note") or "")
        flipped = {"status": "ok", "note": f"{FLIPPED}. {note}".strip()}
        score = {"confused": None, **row, "note": note, **(flipped if status == FLIPPED else {})}
    problem = "" if estimate else str(row.get("note") or status)
    return name, Output(estimate, mixture, truth, problem, score)
