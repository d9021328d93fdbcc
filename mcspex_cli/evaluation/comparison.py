"""What several systems made of the same recordings, side by side: files, scores and warnings."""

from __future__ import annotations

import filecmp
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import files
from mcspex_cli.errors import PairingError, name_some
from mcspex_cli.evaluation import report, scoring
from mcspex_cli.evaluation.metrics import BY_COLUMN, METRICS, MIXTURE_METRICS, Metric
from mcspex_cli.evaluation.pairing import Pairing, files_by_case, is_batch
from mcspex_cli.evaluation.scoring import Status

OTHER_CASES = "Other cases"
"""What pages call `report.NO_GROUP`."""

VALUED = (Status.OK, Status.DONE)
"""Tables show the values of rows with these statuses, whether they are in the means or not."""

BEST, WORST, DRAWN = "best", "worst", "drawn at random"
"""Why a case is shown."""

_EMBEDDED_CASES = 12
"""Cases shown in a page that holds its sounds, unless more are asked for."""

SETTINGS = scoring.ScoreSettings(flipped_ok=True)
"""How outputs without a score are scored: quickly, and without regard to the sign."""


@dataclass(frozen=True)
class PageSettings:
    """Where the cases' files are, which cases a page shows, and how."""

    truth: Path | None = None
    mixtures: Path | None = None
    """Folders of truths and mixtures, which go before those that the systems' folders name."""
    groups: report.Groups | None = None
    scores: scoring.ScoreSettings = SETTINGS
    max_cases: int | None = None
    """How many cases are shown at most; None for all, or `_EMBEDDED_CASES` if `embed`."""
    seed: int = 0
    """Of those that are drawn at random."""
    embed: bool = True
    """Put sounds and pictures into the page, or else into a folder beside it."""
    overwrite: bool = False
    title: str = "Target speaker extraction"


@dataclass(frozen=True)
class Output:
    """What one system has for a case."""

    estimate: Path | None = None
    mixture: Path | None = None
    truth: Path | None = None
    problem: str = ""
    """Why there is no estimate."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Its row in the batch's report or, once it was scored here, `Score.to_dict`; else empty."""


@dataclass(frozen=True)
class SystemOutputs:
    """What one system made, a RUN on the command line; `outputs` by the name of the case."""

    label: str
    folder: Path
    outputs: Mapping[str, Output]


def read_systems(words: Sequence[str]) -> list[SystemOutputs]:
    """Read `FOLDER` or `NAME=FOLDER` each, under different labels.

    A path that exists is never taken apart.
    """
    systems: dict[str, SystemOutputs] = {}
    for word in words:
        label, equals, folder = word.partition("=")
        has_name = equals and not Path(word).exists()
        if not has_name:
            label, folder = "", word
        if not folder or (has_name and not label.strip()):
            raise PairingError(f"{word!r}: is neither FOLDER nor NAME=FOLDER. Name a folder.")
        system = read_system(Path(folder), label)
        if system.label in systems:
            raise PairingError(
                f"{systems[system.label].folder} and {system.folder}: both are called "
                f"{system.label}. Name one: NAME={system.folder}"
            )
        systems[system.label] = system
    return list(systems.values())


def read_system(folder: Path, label: str = "") -> SystemOutputs:
    """Read a folder of estimates or of `mcspex batch`; without a label it has its own name.

    Raises:
        AudioError, PairingError: there is no such folder, or it has no sound files.
        ConfigError: its report.json is damaged or of another version.
    """
    label = label.strip() or folder.resolve().name
    if rows := report.read_batch(folder):
        return batch_system(folder, label, rows)
    if is_batch(folder):
        raise PairingError(
            f"{folder}: has no report, as its batch has not ended. Run it again, or name "
            f"{folder / 'audio'} with --truth and --mixtures."
        )
    estimates = files_by_case(folder)
    if not estimates:
        raise PairingError(f"{folder}: no sound files in this folder. Name another.")
    return SystemOutputs(label, folder, {name: Output(path) for name, path in estimates.items()})


def batch_system(folder: Path, label: str, rows: Iterable[Mapping[str, Any]]) -> SystemOutputs:
    """The outputs of a batch in `folder`, by the rows of its report."""
    outputs = {files.normal(row["name"]): _batch_output(folder, row) for row in rows}
    return SystemOutputs(label, folder, outputs)


def _batch_output(folder: Path, row: Mapping[str, Any]) -> Output:
    estimate, mixture, truth = (
        folder / row[key] if row.get(key) else None for key in ("estimate", "mixture", "truth")
    )
    status, note = row["status"], row.get("note") or ""
    if status in (Status.FAILED, Status.PENDING):
        return Output(None, mixture, truth, note or status)
    if all(row.get(column) is None for column in BY_COLUMN):
        return Output(estimate, mixture, truth)
    row = {"confused": None, **row, "note": note, "flipped": status == Status.FLIPPED}
    if row["flipped"]:  # which counts here, see SETTINGS
        row |= {"status": Status.OK, "note": f"{Status.FLIPPED}. {note}".strip()}
    return Output(estimate, mixture, truth, row=row)


@dataclass
class ComparisonCase:
    """One mixture, its truth, and what each system made of it."""

    name: str
    title: str
    group: str
    mixture: Path | None
    truth: Path | None
    outputs: list[Output]
    """In the order of the systems."""
    mixture_values: Mapping[str, float] = field(default_factory=dict)
    """What is measured of the mixture, by the column that estimates have the same in."""

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of those outputs that have one."""
        return [output.row for output in self.outputs if output.row]


@dataclass(frozen=True)
class Comparison:
    """All cases of all systems."""

    systems: Sequence[SystemOutputs]
    cases: Sequence[ComparisonCase]
    settings: PageSettings

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of all outputs that have one."""
        return [row for case in self.cases for row in case.rows]

    @property
    def ranking(self) -> Metric | None:
        """The metric that says which case is best: SI-SDRi if there is one."""
        return report.ranking(self.rows)

    def by_system(self, cases: Sequence[ComparisonCase]) -> list[list[Mapping[str, Any]]]:
        """The rows of each system for some cases."""
        systems = range(len(self.systems))
        outputs = [[case.outputs[number] for case in cases] for number in systems]
        return [[output.row for output in own if output.row] for own in outputs]

    @property
    def has_same_cases(self) -> bool:
        """Whether the means of all systems are over the same cases."""
        counted = (report.in_means(rows) for rows in self.by_system(self.cases))
        return len({frozenset(files.normal(row["name"]) for row in rows) for rows in counted}) < 2

    def summaries(self, cases: Sequence[ComparisonCase]) -> list[report.Summary]:
        """Each system over some cases."""
        return [report.summarise(rows) for rows in self.by_system(cases)]

    def by_group(self) -> dict[str, list[ComparisonCase]]:
        """The cases of each group, groups and cases in order."""
        groups: dict[str, list[ComparisonCase]] = {}
        for case in self.cases:
            groups.setdefault(case.group, []).append(case)
        return groups

    def choose(self) -> Mapping[str, str]:
        """Which cases to show, by name, and why: "best", "worst" or "drawn at random".

        A third each; best and worst by the mean of `ranking` over the systems. Without scores all
        are drawn. If all cases are shown, the reason is empty.
        """
        count = self.settings.max_cases
        if count is None:
            count = _EMBEDDED_CASES if self.settings.embed else len(self.cases)
        if len(self.cases) <= count:
            return {case.name: "" for case in self.cases}
        badness: dict[str, float] = {}
        if metric := self.ranking:
            for case in self.cases:
                if values := report.values_of(report.in_means(case.rows), metric.column):
                    badness[case.name] = metric.badness * float(np.mean(values))
        ranked = sorted(badness, key=lambda name: badness[name])
        best = ranked[: (count + 2) // 3]
        worst = ranked[len(best) :][::-1][: (count + 1) // 3]
        reasons = dict.fromkeys(best, BEST) | dict.fromkeys(worst, WORST)
        others = [case.name for case in self.cases if case.name not in reasons]
        drawn = random.Random(self.settings.seed).sample(others, count - len(reasons))
        return reasons | dict.fromkeys(drawn, DRAWN)

    def warnings(self) -> list[str]:
        """Which outputs, truths and mixtures are missing, and which files cannot be scored."""
        lines = []
        for number, system in enumerate(self.systems):
            outputs = [case.outputs[number] for case in self.cases]
            estimates = [output.estimate for output in outputs]
            lines += self._missing(f"{system.label}: no output", estimates)
            if flipped := sum(bool(output.row.get("flipped")) for output in outputs):
                lines.append(
                    f"{system.label}: sign-flipped outputs: {flipped}. They count here; "
                    "mcspex score counts them with --flipped-ok."
                )
        if any(case.truth for case in self.cases):
            lines += self._missing("no truth", [case.truth for case in self.cases])
        else:
            content = "only what needs none" if self.rows else "no scores"
            lines.append(f"no truth is known, so the page has {content}. Add --truth DIR.")
        lines += self._missing("no mixture", [case.mixture for case in self.cases])
        lines += report.refusals(self.rows)
        settings = self.settings
        for kind, folder in (("truth", settings.truth), ("mixture", settings.mixtures)):
            paths = [getattr(case, kind) for case in self.cases]
            if not folder:
                lines += self._replaced(kind)
            elif not any(path.is_relative_to(folder) for path in paths if path):
                lines.append(f"{folder}: has none of the cases.")
        if settings.groups and all(case.group == OTHER_CASES for case in self.cases):
            lines.append(f"{settings.groups.path}: names none of the cases.")
        return lines

    def _replaced(self, kind: str) -> list[str]:
        """Which systems have their own truths or mixtures, other than those that are used here."""
        lines = []
        for number, system in enumerate(self.systems):
            names = [
                case.name
                for case in self.cases
                if _differ(getattr(case.outputs[number], kind), getattr(case, kind))
            ]
            if names:
                lines.append(
                    f"{system.label}: compared with other {kind}s here than in its own batch: "
                    f"{name_some(names)}. Are the runs of the same targets?"
                )
        return lines

    def _missing(self, what: str, paths: Sequence[Path | None]) -> list[str]:
        names = [case.name for case, path in zip(self.cases, paths, strict=True) if not path]
        listed = name_some(names)
        return [f"{what} for {len(names)} of {len(paths)} cases: {listed}"] if names else []


def compare_systems(
    systems: Sequence[SystemOutputs],
    settings: PageSettings,
    advance: Callable[[float], object] = lambda _: None,
) -> Comparison:
    """Put systems side by side and score what has no score yet.

    The cases are those of all systems, in the order of the groups' file. A case's mixture and truth
    are the files of its name in the settings' folders, else those that the first system has.
    `advance` is called with the share that is done.
    """
    cases = _gather(systems, settings)
    unscored: list[tuple[ComparisonCase, int, Pairing]] = []
    for case in cases:
        for number, output in enumerate(case.outputs):
            if _has_score(output, case):
                continue
            if output.estimate and case.truth:
                pairing = Pairing(case.name, output.estimate, case.truth, case.mixture)
                unscored.append((case, number, pairing))
            else:
                case.outputs[number] = replace(output, row={})
    scores = scoring.score_files([pairing for *_, pairing in unscored], settings.scores)
    for done, ((case, number, _), score) in enumerate(zip(unscored, scores, strict=True), 1):
        output, row = case.outputs[number], score.to_dict()
        for column, metric in BY_COLUMN.items():
            # What its own row says without a truth holds whatever the truth is.
            if "target" not in metric.needs and output.row.get(column) is not None:
                row[column] = output.row[column]
        case.outputs[number] = replace(output, row=row)
        advance(done / len(unscored))
    for case in cases:
        case.mixture_values = _mixture_values(case, settings.scores)
    return Comparison(systems, cases, settings)


def _gather(systems: Sequence[SystemOutputs], settings: PageSettings) -> list[ComparisonCase]:
    truths, mixtures = (
        files_by_case(folder) if folder else {} for folder in (settings.truth, settings.mixtures)
    )
    groups = settings.groups or report.Groups()
    ranks = {name: rank for rank, name in enumerate(groups.by_name)}
    absent = Output(problem="No output for this case.")
    cases = []
    for name in {name for system in systems for name in system.outputs}:
        outputs = [system.outputs.get(name, absent) for system in systems]
        group = groups.of(name)
        cases.append(
            ComparisonCase(
                name,
                groups.titles.get(name, name),
                OTHER_CASES if group == report.NO_GROUP else group,
                mixtures.get(name) or next((o.mixture for o in outputs if o.mixture), None),
                truths.get(name) or next((o.truth for o in outputs if o.truth), None),
                outputs,
            )
        )
    last = len(ranks)
    return sorted(cases, key=lambda c: (c.group == OTHER_CASES, ranks.get(c.name, last), c.name))


def _has_score(output: Output, case: ComparisonCase) -> bool:
    """Whether an output has been scored, with the case's mixture and, if it has one, truth.

    What was refused is tried again: now there may be other settings, such as `resample`.
    """
    if not output.row or (case.truth and output.row["status"] in (Status.DONE, *Status.REFUSED)):
        return False
    pairs = ((output.truth, case.truth), (output.mixture, case.mixture))
    return all(a == b or (a and b and files.real_path(a) == files.real_path(b)) for a, b in pairs)


def _differ(one: Path | None, other: Path | None) -> bool:
    """Whether two files have other contents, as far as they are there and can be read."""
    if not one or not other or files.real_path(one) == files.real_path(other):
        return False
    with suppress(OSError):
        return not filecmp.cmp(one, other, shallow=False)
    return False


def _mixture_values(case: ComparisonCase, settings: scoring.ScoreSettings) -> dict[str, float]:
    """What is measured of a case's mixture: from its outputs' rows, or measured now."""
    values = {}
    for name, metric in MIXTURE_METRICS.items():
        if measured := report.values_of(case.rows, metric.column):
            values[METRICS[name].column] = measured[0]
    if "si_sdr_db" not in values and case.truth and case.mixture:
        settings = replace(settings, metrics=("si_sdr",))
        pairing = Pairing(case.name, case.mixture, case.truth)
        values |= scoring.score_file(pairing, settings).values
    return values
