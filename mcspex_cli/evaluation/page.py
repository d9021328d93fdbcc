"""One HTML page to hear, see and compare what systems made of the same recordings."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from mcspex_cli import __version__, audio, files, text
from mcspex_cli.errors import McspexError, OutputError
from mcspex_cli.evaluation.cases import read_groups
from mcspex_cli.evaluation.comparison import (
    OTHERS,
    REASONS,
    Comparison,
    ComparisonCase,
    Run,
    compare_runs,
)
from mcspex_cli.evaluation.metrics import METRICS, OF_MIXTURES, Metric
from mcspex_cli.evaluation.spectrogram import (
    QUIET_DB,
    RANGE_DB,
    SHADES,
    draw,
    height,
    spectrogram,
    why_black,
)
from mcspex_cli.evaluation.summary import COUNTED, Summary

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
class Page:
    """What was written; `warnings` say what is missing in it."""

    path: Path
    cases: int
    shown: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One sound of a case on the page; without a `sound`, `problem` says why."""

    label: str
    system: int | None = None
    row: Mapping[str, Any] | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)
    """What is measured of a mixture, by column."""
    problem: str = ""
    sound: str = ""
    picture: str = ""
    """URLs, which the template takes as they are."""
    seconds: float = 0.0
    rate_hz: int = 0
    quieter_db: float = 0.0
    """By how much a sound beyond full scale was turned down."""
    ceiling_hz: float = 0.0
    """Above this frequency the picture is black."""
    why_black: str = ""
    """What that means, if the mixture goes higher."""

    @property
    def length(self) -> str:
        """How long at which rate, empty without a sound."""
        return f"{self.seconds:.2f} s at {self.rate_hz / 1000:.4g} kHz" if self.sound else ""


def write_page(
    runs: Sequence[Run],
    output: Path,
    settings: PageSettings | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> Page:
    """Write the page of some runs, whole or not at all.

    Memory holds one case's sounds at a time. A file that cannot be read leaves its place on the
    page empty. `progress` is called with the share that is done.

    Raises:
        AudioError: a folder of the settings is missing.
        ConfigError: the groups cannot be read.
        OutputError: the page's place cannot, or must not, be written.
        PairingError: two files have one name.
    """
    settings = settings or PageSettings()
    folders = [*(run.folder for run in runs), settings.truth, settings.mixtures]
    inputs = [path for path in (settings.groups, *folders) if path]
    _check_place(output, inputs, embed=settings.embed, overwrite=settings.overwrite)
    groups = read_groups(settings.groups, settings.group_by) if settings.groups else None
    comparison = compare_runs(
        runs, settings.truth, settings.mixtures, groups, lambda share: progress(share / 2)
    )
    cases = comparison.cases
    most = EMBEDDED_CASES if settings.embed else len(cases)
    shown = comparison.choose(
        most if settings.max_cases is None else settings.max_cases, settings.seed
    )
    warnings = comparison.warnings()
    if groups and all(case.group == OTHERS for case in cases):
        warnings.append(f"{settings.groups}: names none of the cases.")
    names = [case.name for case in cases if case.name in shown]
    ids = {name: f"case-{number}" for number, name in enumerate(names, 1)}
    with files.whole(output) as partial, _media(output, embed=settings.embed) as store:

        def show(case: ComparisonCase) -> dict[str, Any]:
            cells = _cells(case, [run.label for run in runs], store)
            pairs = zip(cells, case.files, strict=True)
            warnings.extend(cell.problem for cell, path in pairs if path and cell.problem)
            progress(0.5 + 0.5 * (names.index(case.name) + 1) / len(names))
            return {
                "case": case,
                "cells": [_without_folders(cell, case) for cell in cells],
                "length": next((cell.length for cell in cells if cell.length), ""),
            }

        groups_shown = {
            group: [case for case in members if case.name in ids]
            for group, members in comparison.by_group().items()
        }
        pieces = _template().generate(
            **_context(comparison, settings),
            **_assets(settings.embed),
            shown=shown,
            ids=ids,
            # Cases are read while the page is written: memory holds one at a time.
            sections=((group, map(show, part)) for group, part in groups_shown.items() if part),
        )
        with partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.writelines(pieces)
    return Page(output, len(cases), len(shown), tuple(dict.fromkeys(warnings)))


def _cells(case: ComparisonCase, labels: Sequence[str], store: Store) -> list[Cell]:
    """Mixture, each system's output, truth; the first sound sets the brightest colour."""
    cells = [Cell("Mixture", inputs=case.inputs, problem="No mixture is known.")]
    for number, label in enumerate(labels):
        output = case.outputs[number]
        problem = (output and output.problem) or "No output for this case."
        cells.append(Cell(label, number, case.rows[number], problem=problem))
    cells.append(Cell("Truth", problem="No truth is known."))
    loudest_db: float | None = None
    for number, path in enumerate(case.files):
        if path is None:
            continue
        try:
            reader = audio.Reader(path)
            rate_hz = reader.sample_rate_hz = min(reader.info.sample_rate_hz, PLAY_HZ)
            samples = reader.read()
        except McspexError as error:
            cells[number] = replace(cells[number], problem=str(error))
            continue
        levels = spectrogram(samples, rate_hz)
        if loudest_db is None:
            loudest_db = max(float(levels.max()), QUIET_DB)
        ceiling_hz = height(levels, loudest_db) * rate_hz / 2
        peak = max(1.0, float(np.abs(samples).max()))
        cells[number] = replace(
            cells[number],
            problem="",
            sound=store(audio.encode(samples / peak, rate_hz), ".flac"),
            picture=store(draw(levels, loudest_db), ".png"),
            seconds=len(samples) / rate_hz,
            rate_hz=rate_hz,
            quieter_db=20 * math.log10(peak),
            ceiling_hz=ceiling_hz,
            why_black=why_black(ceiling_hz, min(cells[0].ceiling_hz, rate_hz / 2)),
        )
    return cells


def _without_folders(cell: Cell, case: ComparisonCase) -> Cell:
    """A cell whose texts have names for paths: a page is published, a folder's place is not."""

    def shorten(sentence: str) -> str:
        for path in case.files:
            sentence = sentence.replace(str(path), path.name) if path else sentence
        return sentence

    row = {**cell.row, "note": shorten(cell.row["note"])} if cell.row else None
    return replace(cell, problem=shorten(cell.problem), row=row)


def _context(comparison: Comparison, settings: PageSettings) -> dict[str, Any]:
    groups = comparison.by_group() if settings.groups else {}
    metrics, ranking, summaries = comparison.metrics, comparison.ranking, comparison.summaries()
    has_truth = any(case.truth for case in comparison.cases)
    of_mixtures = METRICS["si_sdr"] if has_truth else ranking
    values = ("input_si_sdr_db", METRICS["si_sdr_i"].column)
    return {
        "title": settings.title,
        "version": __version__,
        "seed": settings.seed,
        "labels": [run.label for run in comparison.runs],
        "cases": comparison.cases,
        "reasons": REASONS,
        "metrics": metrics,
        "input_metrics": [METRICS["si_sdr"], *(m for m in metrics if m.name in OF_MIXTURES)],
        "ranking": ranking,
        "si_sdr": METRICS["si_sdr"],
        "has_truth": has_truth,
        "of_mixtures": of_mixtures
        if of_mixtures and any(of_mixtures.column in case.inputs for case in comparison.cases)
        else None,
        "summaries": summaries if metrics or has_truth else [],
        "verdicts": any(summary.confused is not None for summary in summaries),
        "lower": [metric.label for metric in metrics if metric.better == "lower"],
        "neither": [metric.label for metric in metrics if metric.better == "neither"],
        "counted": COUNTED,
        "groups": {name: comparison.summaries(cases) for name, cases in groups.items()},
        "sizes": {name: len(cases) for name, cases in groups.items()},
        "points": [
            (number, case, row)
            for case in comparison.cases
            for number, row in enumerate(case.rows)
            if row and all(row.get(column) is not None for column in values)
        ],
        "best": _best,
        "shapes": SHAPES,
        "range_db": RANGE_DB,
        "scale": _data_url(draw(np.linspace(-RANGE_DB, 0, SHADES)[None], 0.0), ".png"),
        "players": PLAYERS,
    }


def _best(summaries: Sequence[Summary], metric: Metric) -> float:
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
        finalize=lambda value: text.line(value) if type(value) is str else value,
    )
    environment.filters.update(value=_value)
    return environment.get_template("page.html")


def _value(value: float | None, metric: Metric) -> str:
    return "–" if value is None else metric.text(value).replace("-", "−")


def _check_place(output: Path, inputs: Sequence[Path], *, embed: bool, overwrite: bool) -> None:
    """Refuse a page that would destroy something or has no folder."""
    if output.suffix.lower() != ".html":
        raise OutputError(f"{output}: a page's name must end in .html.")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder. Choose another name.")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder. Make it, or choose another -o.")
    folder = _media_folder(output)
    for path in (output,) if embed else (output, folder):
        if any(path.resolve() in (p.resolve(), *p.resolve().parents) for p in inputs):
            raise OutputError(f"{path}: is an input and is not overwritten. Choose another -o.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already. Add --overwrite to replace it.")
    if not embed and folder.exists():
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
