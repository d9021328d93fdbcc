"""One HTML page to hear, see and compare what systems made of the same recordings."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from mcspex_cli import __version__, audio, files
from mcspex_cli.errors import McspexError, OutputError, PairingError, line
from mcspex_cli.evaluation import scoring, spectrogram, summary
from mcspex_cli.evaluation.metrics import BUILT_IN, BY_COLUMN, INPUT_METRICS, METRICS, Metric
from mcspex_cli.evaluation.scoring import Pairing, Status
from mcspex_cli.evaluation.spectrogram import RANGE_DB, SHADES
from mcspex_cli.evaluation.summary import numbers

NO_ESTIMATE = (Status.FAILED, Status.PENDING)
"""Statuses of a batch's files that have no estimate."""

OTHER_CASES = "Other cases"
"""The section of cases that are in no group."""

REASONS = BEST, WORST, DRAWN = "best", "worst", "drawn at random"
"""Why a case is shown."""

SETTINGS = scoring.ScoreSettings(BUILT_IN, flipped_ok=True)
"""How outputs without a score are scored: quickly, and without regard to the sign."""

NAMED = 5
"""Cases that a warning names."""

EMBEDDED_CASES = 12
"""Cases shown in a page that holds its sounds, unless more are asked for."""

PLAYERS = 400
"""Up to here players look up their length at once; browsers refuse a thousand that do."""

PLAY_HZ = 48_000
"""Recordings of a higher rate are resampled to it, the highest that every browser plays."""

SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-6 5.4 4.2h-10.8z",
    "M0-6.2 5.4 0 0 6.2-5.4 0z",
)
"""Circle, square, triangle, diamond: the systems in turn."""

_TYPES = {".flac": "audio/flac", ".png": "image/png"}

_OURS = re.compile(r"\d{5,}\.(flac|png)")
"""Names of the files beside a page: numbers, since nothing that a user named is safe."""

Store = Callable[[bytes, str], Markup]
"""Stores data of a suffix and returns its URL."""


@dataclass(frozen=True)
class PageSettings:
    """What to show and how.

    `truth` and `mixtures` are folders, `groups` is a CSV (`summary.read_groups`) and `group_by`
    its column. At most `max_cases` are shown (None: 12 if `embed`, else all), some of them drawn
    with `seed`. Without `embed`, sounds and pictures go to a folder beside the page.
    """

    truth: Path | None = None
    mixtures: Path | None = None
    groups: Path | None = None
    group_by: str | None = None
    max_cases: int | None = None
    seed: int = 0
    embed: bool = True
    overwrite: bool = False
    title: str = "Target speaker extraction"


@dataclass(frozen=True)
class Output:
    """What one system has for a case."""

    estimate: Path | None = None
    mixture: Path | None = None
    truth: Path | None = None
    problem: str = "No output for this case."
    """Why there is no estimate."""
    row: Mapping[str, Any] | None = None
    """Its scores, as `Row.to_dict` has them."""


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
        is_path = not equals or Path(word).exists()
        if not (word if is_path else label.strip() and folder):
            raise PairingError(f"{word!r}: is neither FOLDER nor NAME=FOLDER. Name a folder.")
        system = read_system(Path(word)) if is_path else read_system(Path(folder), label)
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
    if rows := summary.read_batch(folder):
        return batch_system(folder, label, rows)
    outputs = {name: Output(path) for name, path in _files(folder, " of estimates").items()}
    if not outputs:
        raise PairingError(f"{folder}: no sound files in this folder.")
    return SystemOutputs(label, folder, outputs)


def _files(folder: Path, kind: str = "") -> dict[str, Path]:
    files.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder{kind}.")
    return scoring.files_by_case(folder)


def batch_system(folder: Path, label: str, rows: Iterable[Mapping[str, Any]]) -> SystemOutputs:
    """The outputs of a batch in `folder`, by the rows of its report."""
    outputs = {}
    for row in rows:
        estimate, mixture, truth = (
            folder / row[key] if row.get(key) else None for key in ("estimate", "mixture", "truth")
        )
        note, score = row.get("note") or "", None
        if row["status"] in NO_ESTIMATE:
            output = Output(None, mixture, truth, note or row["status"])
        else:
            if any(row.get(column) is not None for column in BY_COLUMN):
                score = {"confused": None, **row, "note": note}
                if row["status"] == Status.FLIPPED:
                    note = f"{Status.FLIPPED}. {note}".strip()
                    score |= {"status": Status.OK, "note": note}
            output = Output(estimate, mixture, truth, row=score)
        outputs[row["name"]] = output
    return SystemOutputs(label, folder, outputs)


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
    inputs: Mapping[str, float] = field(default_factory=dict)
    """What is measured of the mixture, by the column that estimates have the same in."""

    @property
    def rows(self) -> list[Mapping[str, Any] | None]:
        """The scores, None where there are none."""
        return [output.row for output in self.outputs]


@dataclass(frozen=True)
class Comparison:
    """All cases of all systems."""

    systems: Sequence[SystemOutputs]
    cases: Sequence[ComparisonCase]
    settings: PageSettings = PageSettings()

    def rows(self) -> list[Mapping[str, Any]]:
        """The scores of all outputs that have some."""
        return [row for case in self.cases for row in case.rows if row]

    @property
    def ranking(self) -> Metric | None:
        """The metric that says which case is best: SI-SDRi if there is one."""
        return summary.ranking(self.rows())

    def summaries(self, cases: Sequence[ComparisonCase]) -> list[summary.Summary]:
        """Each system over some cases."""
        outputs = zip(*(case.outputs for case in cases), strict=True)
        return [summary.summarise([o.row for o in system if o.row]) for system in outputs]

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
        badness: dict[str, float] = {}
        if metric := self.ranking:
            for case in self.cases:
                ok = summary.scored([row for row in case.rows if row])
                if values := numbers(ok, metric.column):
                    badness[case.name] = metric.badness * float(np.mean(values))
        ranked = sorted(badness, key=lambda name: badness[name])
        best = ranked[: (count + 2) // 3]
        worst = ranked[len(best) :][::-1][: (count + 1) // 3]
        reasons = dict.fromkeys(best, BEST) | dict.fromkeys(worst, WORST)
        others = [case.name for case in self.cases if case.name not in reasons]
        drawn = random.Random(seed).sample(others, count - len(reasons))
        return reasons | dict.fromkeys(drawn, DRAWN)

    def warnings(self) -> list[str]:
        """Which outputs, truths and mixtures are missing, and which files cannot be scored."""
        lines = []
        for number, system in enumerate(self.systems):
            outputs = [case.outputs[number] for case in self.cases]
            lines += self._missing(f"{system.label}: no output", [o.estimate for o in outputs])
            flipped = sum(o.row["note"].startswith(Status.FLIPPED) for o in outputs if o.row)
            if flipped:
                lines.append(
                    f"{system.label}: sign-flipped outputs: {flipped}. They count here; "
                    "mcspex score counts them with --flipped-ok."
                )
        if any(case.truth for case in self.cases):
            lines += self._missing("no truth", [case.truth for case in self.cases])
        else:
            content = "only what needs none" if self.rows() else "no scores"
            lines.append(f"no truth is known, so the page has {content}. Add --truth DIR.")
        lines += self._missing("no mixture", [case.mixture for case in self.cases])
        lines += [row["note"] for row in self.rows() if row["status"] in Status.REFUSED]
        if self.settings.groups and all(case.group == OTHER_CASES for case in self.cases):
            lines.append(f"{self.settings.groups}: names none of the cases.")
        return lines

    def _missing(self, what: str, paths: Sequence[Path | None]) -> list[str]:
        names = [case.name for case, path in zip(self.cases, paths, strict=True) if not path]
        listed = ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])
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
    unscored = []
    for case in cases:
        for number, output in enumerate(case.outputs):
            if not _has_score(output, case):
                case.outputs[number] = replace(output, row=None)
                if output.estimate and case.truth:
                    pairing = Pairing(case.name, output.estimate, case.truth, case.mixture)
                    unscored.append((case, number, output, pairing))
    scores = scoring.score_files([pairing for *_, pairing in unscored], SETTINGS)
    scored = zip(unscored, scores, strict=True)
    for done, ((case, number, output, _), score) in enumerate(scored, 1):
        row, own = score.to_dict(), output.row or {}
        for column, metric in BY_COLUMN.items():
            # What its own row says without a truth holds whatever the truth is.
            if "target" not in metric.needs and own.get(column) is not None:
                row[column] = own[column]
        case.outputs[number] = replace(output, row=row)
        advance(done / len(unscored))
    for case in cases:
        case.inputs = _inputs(case)
    return Comparison(systems, cases, settings)


def _gather(systems: Sequence[SystemOutputs], settings: PageSettings) -> list[ComparisonCase]:
    truths, mixtures = (
        _files(folder) if folder else {} for folder in (settings.truth, settings.mixtures)
    )
    groups = summary.Groups()
    if settings.groups:
        groups = summary.read_groups(settings.groups, settings.group_by)
    ranks = {name: rank for rank, name in enumerate(groups.by_name)}
    names = {name for system in systems for name in system.outputs}
    cases = []
    for name in sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name)):
        outputs = [system.outputs.get(name, Output()) for system in systems]
        group = groups.of(name)
        cases.append(
            ComparisonCase(
                name,
                groups.titles.get(name, name),
                OTHER_CASES if group == summary.NO_GROUP else group,
                mixtures.get(name) or next((o.mixture for o in outputs if o.mixture), None),
                truths.get(name) or next((o.truth for o in outputs if o.truth), None),
                outputs,
            )
        )
    return sorted(cases, key=lambda case: case.group == OTHER_CASES)


def _has_score(output: Output, case: ComparisonCase) -> bool:
    """Whether an output has been scored, with the case's mixture and, if it has one, truth."""
    if output.row is None or (case.truth and output.row["status"] == Status.DONE):
        return False
    pairs = ((output.truth, case.truth), (output.mixture, case.mixture))
    return all(a == b or (a and b and a.resolve() == b.resolve()) for a, b in pairs)


def _inputs(case: ComparisonCase) -> dict[str, float]:
    """What is measured of a case's mixture: from its outputs' scores, or measured now."""
    rows = [row for row in case.rows if row]
    values = {column: numbers(rows, f"input_{column}") for column in BY_COLUMN}
    inputs = {column: of[0] for column, of in values.items() if of}
    if "si_sdr_db" not in inputs and case.truth and case.mixture:
        settings = replace(SETTINGS, metrics=("si_sdr",))
        pairing = Pairing(case.name, case.mixture, case.truth)
        inputs |= scoring.score_file(pairing, settings).values
    return inputs


@dataclass(frozen=True)
class Page:
    """What was written; `warnings` say what is missing in it."""

    path: Path
    cases: int
    shown: int
    warnings: tuple[str, ...]


@dataclass
class Cell:
    """One sound of a case on the page; without a `sound`, `problem` says why."""

    label: str
    path: Path | None
    problem: str
    system: int | None = None
    row: Mapping[str, Any] | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)
    """What is measured of a mixture, by column."""
    sound: str = ""
    picture: str = ""
    """URLs, which the template takes as they are."""
    seconds: float = 0.0
    rate_hz: int = 0
    quieter_db: float = 0.0
    """By how much a sound beyond full scale was turned down."""
    why_black: str = ""
    """Why the picture is black above a frequency, if the mixture's goes higher."""

    @property
    def length(self) -> str:
        """The duration and sample rate in words, empty without a sound."""
        return f"{self.seconds:.2f} s at {self.rate_hz / 1000:.4g} kHz" if self.sound else ""


def write_page(
    systems: Sequence[SystemOutputs],
    output: Path,
    settings: PageSettings | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> Page:
    """Write the page of some systems, whole or not at all.

    Memory holds one case's sounds at a time. A file that cannot be read leaves its place on the
    page empty. `progress` is called with the share that is done.

    Raises:
        AudioError, ConfigError: a folder of the settings is missing, the groups cannot be read.
        OutputError: the page's place cannot, or must not, be written.
        PairingError: two files have one name.
    """
    settings = settings or PageSettings()
    _check_place(output, systems, settings)
    comparison = compare_systems(systems, settings, lambda share: progress(share / 2))
    cases, count = comparison.cases, settings.max_cases
    if count is None:
        count = EMBEDDED_CASES if settings.embed else len(cases)
    shown, warnings = comparison.choose(count, settings.seed), comparison.warnings()
    names = [case.name for case in cases if case.name in shown]
    with files.whole(output) as partial, _media(output, embed=settings.embed) as store:

        def show(case: ComparisonCase) -> dict[str, Any]:
            cells = _cells(case, [system.label for system in systems], store)
            warnings.extend(cell.problem for cell in cells if cell.path and cell.problem)
            _hide_folders(cells)
            progress(0.5 + 0.5 * (names.index(case.name) + 1) / len(names))
            length = next((cell.length for cell in cells if cell.length), "")
            return {"case": case, "cells": cells, "length": length}

        by_group = comparison.by_group().items()
        parts = {group: [c for c in members if c.name in shown] for group, members in by_group}
        pieces = _template().generate(
            **_context(comparison),
            **_assets(settings.embed),
            shown=shown,
            ids={name: f"case-{number}" for number, name in enumerate(names, 1)},
            # Cases are read while the page is written: memory holds one at a time.
            sections=((group, map(show, part)) for group, part in parts.items() if part),
        )
        with partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.writelines(pieces)
    return Page(output, len(cases), len(shown), tuple(dict.fromkeys(warnings)))


def _cells(case: ComparisonCase, labels: Sequence[str], store: Store) -> list[Cell]:
    """Mixture, each system's output, truth; the first sound sets the brightest colour."""
    cells = [Cell("Mixture", case.mixture, "No mixture is known.", inputs=case.inputs)]
    for number, (label, output) in enumerate(zip(labels, case.outputs, strict=True)):
        cells.append(Cell(label, output.estimate, output.problem, number, output.row))
    cells.append(Cell("Truth", case.truth, "No truth is known."))
    loudest_db = mixture_ceiling_hz = None
    for cell in cells:
        if cell.path is None:
            continue
        try:
            reader = audio.Reader(cell.path)
            cell.rate_hz = reader.sample_rate_hz = min(reader.info.sample_rate_hz, PLAY_HZ)
            samples = reader.read()
        except McspexError as error:
            cell.problem = str(error)
            continue
        levels = spectrogram.measure(samples, cell.rate_hz)
        if loudest_db is None:
            loudest_db = max(float(levels.max()), spectrogram.QUIET_DB)
        ceiling_hz = spectrogram.height(levels, loudest_db) * cell.rate_hz / 2
        if cell is cells[0]:
            mixture_ceiling_hz = ceiling_hz
        elif mixture_ceiling_hz:
            highest_hz = min(mixture_ceiling_hz, cell.rate_hz / 2)
            cell.why_black = spectrogram.why_black(ceiling_hz, highest_hz)
        peak = max(1.0, float(np.abs(samples).max()))
        cell.problem, cell.quieter_db = "", 20 * math.log10(peak)
        cell.seconds = len(samples) / cell.rate_hz
        cell.sound = store(audio.encode(samples / peak, cell.rate_hz), ".flac")
        cell.picture = store(spectrogram.draw(levels, loudest_db), ".png")
    return cells


def _hide_folders(cells: Sequence[Cell]) -> None:
    """Put names for paths in all texts: a page is published, a folder's place is not."""
    for cell in cells:
        for path in (other.path for other in cells if other.path):
            cell.problem = cell.problem.replace(str(path), path.name)
            if cell.row:
                cell.row = {**cell.row, "note": cell.row["note"].replace(str(path), path.name)}


def _context(comparison: Comparison) -> dict[str, Any]:
    """What the template needs to know of all cases."""
    cases, rows, settings = comparison.cases, comparison.rows(), comparison.settings
    groups = comparison.by_group() if settings.groups else {}
    best, summaries = comparison.ranking, comparison.summaries(cases)
    metrics = [metric for metric in METRICS.values() if numbers(rows, metric.column)]
    has_truth = any(case.truth for case in cases)
    input_metric = METRICS["si_sdr"] if has_truth else best
    values, shades_db = ("input_si_sdr_db", "si_sdr_i_db"), np.linspace(-RANGE_DB, 0, SHADES)
    return {
        "title": settings.title,
        "version": __version__,
        "seed": settings.seed,
        "labels": [system.label for system in comparison.systems],
        "cases": cases,
        "reasons": REASONS,
        "metrics": metrics,
        "input_metrics": [metric for metric in METRICS.values() if metric.name in INPUT_METRICS],
        "ranking": best,
        "si_sdr": METRICS["si_sdr"],
        "has_truth": has_truth,
        "input_metric": input_metric
        if input_metric and any(input_metric.column in case.inputs for case in cases)
        else None,
        "summaries": summaries if metrics or has_truth else [],
        "verdicts": any(system.confused is not None for system in summaries),
        "lower": [metric.label for metric in metrics if metric.better == "lower"],
        "neither": [metric.label for metric in metrics if metric.better == "neither"],
        "counted": summary.COUNTED,
        "groups": {name: comparison.summaries(members) for name, members in groups.items()},
        "sizes": {name: len(members) for name, members in groups.items()},
        "points": [
            (number, case, row)
            for case in cases
            for number, row in enumerate(case.rows)
            if row and all(row.get(column) is not None for column in values)
        ],
        "best": _best,
        "shapes": SHAPES,
        "range_db": RANGE_DB,
        "scale": _data_url(spectrogram.draw(shades_db[None], 0.0), ".png"),
        "players": PLAYERS,
    }


def _best(summaries: Sequence[summary.Summary], metric: Metric) -> float:
    """The best mean of several systems; nothing is best of one, or where no value is better."""
    means = [s.metrics[metric.column].mean for s in summaries if metric.column in s.metrics]
    if len(means) < 2 or not metric.badness:
        return math.nan
    return min(means, key=lambda mean: metric.badness * mean)


def _assets(embed: bool) -> dict[str, Any]:
    """The style, the script and the policy that lets only these two run."""
    folder = resources.files("mcspex_cli.evaluation")
    style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"
        for part in (style, script)
    ]
    media = "data:" if embed else "data: file: 'self'"
    policy = (
        f"default-src 'none'; img-src {media}; media-src {media}; style-src {hashes[0]}; "
        f"script-src {hashes[1]}; base-uri 'none'; form-action 'none'"
    )
    return {"style": Markup(style), "script": Markup(script), "policy": policy}


def _template() -> jinja2.Template:
    """The page; everything put into it is escaped, and shown as one line without controls."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mcspex_cli.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: line(value) if type(value) is str else value,
    )
    environment.filters.update(value=_value)
    return environment.get_template("page.html")


def _value(value: float | None, metric: Metric) -> str:
    return "–" if value is None else metric.text(value).replace("-", "−")


def _check_place(output: Path, systems: Sequence[SystemOutputs], settings: PageSettings) -> None:
    """Refuse a page that would destroy something or has no folder."""
    if output.suffix.lower() != ".html":
        raise OutputError(f"{output}: a page's name must end in .html.")
    if not output.parent.exists():
        raise OutputError(f"{output.parent}: no such folder. Make it, or choose another -o.")
    folder = _media_folder(output)
    inputs = [settings.truth, settings.mixtures, settings.groups, *(s.folder for s in systems)]
    taken = [path.resolve() for path in inputs if path]
    for path in (output,) if settings.embed else (output, folder):
        if any(path.resolve() in (place, *place.parents) for place in taken):
            raise OutputError(f"{path}: is an input and is not overwritten. Choose another -o.")
        if path.exists() and not settings.overwrite:
            raise OutputError(f"{path}: exists already. Add --overwrite to replace it.")
    files.check_output(output, overwrite=settings.overwrite)
    if not settings.embed and folder.exists():
        ours = folder.is_dir() and all(_OURS.fullmatch(path.name) for path in folder.iterdir())
        if not ours:
            raise OutputError(
                f"{folder}: has files that are not of a report. Move it, or choose another -o."
            )


def _media_folder(output: Path) -> Path:
    return output.with_name(f"{output.stem}_files")


@contextmanager
def _media(output: Path, *, embed: bool) -> Iterator[Store]:
    """Where sounds and pictures go: into the page, or a folder that appears when complete."""
    if embed:
        yield _data_url
        return
    folder = _media_folder(output)
    # Quoted whole, a colon too: before a slash it would end a scheme.
    address = quote(os.fsencode(folder.name), safe="")
    names: list[str] = []

    with files.whole_folder(folder) as partial:

        def store(data: bytes, suffix: str) -> Markup:
            names.append(f"{len(names) + 1:05d}{suffix}")
            (partial / names[-1]).write_bytes(data)
            return Markup(f"{address}/{names[-1]}")

        yield store
        if folder.exists():
            shutil.rmtree(folder)


def _data_url(data: bytes, suffix: str) -> Markup:
    """Data as its own address."""
    return Markup(f"data:{_TYPES[suffix]};base64,{base64.b64encode(data).decode()}")
