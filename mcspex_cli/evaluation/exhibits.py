"""What a page shows of its cases: their sounds, pictures and scores, and a plot of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mcspex_cli import audio
from mcspex_cli.errors import McspexError
from mcspex_cli.evaluation import pictures
from mcspex_cli.evaluation.pictures import Axis
from mcspex_cli.evaluation.results import Judged, Result
from mcspex_cli.evaluation.runs import Case, Run
from mcspex_cli.evaluation.shelves import Put

PLAY_HZ = 48_000
"""Recordings of a higher rate are resampled to it, the highest that every browser plays."""

QUIET_DB = -100.0
"""The loudest colour is never below this, so that silence is black."""

WIDTH, HEIGHT = 640, 400
"""The plot's pixels, its axes within these margins:"""
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 32, 56

NAMED = 5
"""As many cases a warning names."""


@dataclass(frozen=True)
class Cell:
    """One sound of a case on the page; without a `sound`, `problem` says why."""

    label: str
    problem: str = ""
    sound: str = ""
    picture: str = ""
    seconds: float = 0.0
    rate_hz: int = 0
    quieter_db: float = 0.0
    """By how much a sound beyond full scale was turned down."""
    system: int | None = None
    result: Result | None = None
    input_db: float | None = None

    @property
    def length(self) -> str:
        """How long at which rate, empty without a sound."""
        return f"{self.seconds:.2f} s at {self.rate_hz / 1000:.4g} kHz" if self.sound else ""


@dataclass(frozen=True)
class Point:
    """One output in the plot, in pixels."""

    x: float
    y: float
    system: int
    judged: Judged
    result: Result


@dataclass(frozen=True)
class Plot:
    """SI-SDRi against the mixture's SI-SDR."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]


@dataclass
class _Easel:
    """Reads sounds and stores them with their pictures; the first sets the brightest colour."""

    put: Put
    loudest_db: float | None = None

    def cell(self, label: str, path: Path | None, absent: str) -> Cell:
        """The cell of a file, or why there is none."""
        if path is None:
            return Cell(label, absent)
        try:
            rate_hz = min(audio.probe(path).sample_rate_hz, PLAY_HZ)
            samples = audio.read(path, rate_hz)
        except McspexError as error:
            return Cell(label, str(error))
        levels = pictures.spectrogram(samples, rate_hz)
        if self.loudest_db is None:
            self.loudest_db = max(float(levels.max()), QUIET_DB)
        peak = max(1.0, float(np.abs(samples).max()))
        return Cell(
            label,
            sound=self.put(audio.encode(samples / peak, rate_hz), ".flac"),
            picture=self.put(pictures.draw(levels, self.loudest_db), ".png"),
            seconds=len(samples) / rate_hz,
            rate_hz=rate_hz,
            quieter_db=20 * math.log10(peak),
        )


def cells(judged: Judged, labels: Sequence[str], put: Put) -> tuple[list[Cell], list[str]]:
    """The cells of a case: mixture, each system's output, truth; and what was wrong with them.

    Paths in the cells are cut to names: a page is published, a folder's place is not.
    """
    case, easel = judged.case, _Easel(put)
    made = [easel.cell("Mixture", case.mixture, "No mixture is known.")]
    made[0] = replace(made[0], input_db=judged.input_db)
    for number, (label, output) in enumerate(zip(labels, case.outputs, strict=True)):
        absent = (output and output.problem) or "No output for this case."
        cell = easel.cell(label, output.estimate if output else None, absent)
        made.append(replace(cell, system=number, result=judged.results[number]))
    made.append(easel.cell("Truth", case.truth, "No truth is known."))
    files = [case.mixture, *(output and output.estimate for output in case.outputs), case.truth]
    problems = [c.problem for c, path in zip(made, files, strict=True) if path and c.problem]
    return [_discreet(cell, [path for path in files if path]) for cell in made], problems


def _discreet(cell: Cell, files: Sequence[Path]) -> Cell:
    """A cell whose texts have names for paths."""
    result = cell.result
    if result and result.note:
        result = replace(result, note=_shortened(result.note, files))
    return replace(cell, problem=_shortened(cell.problem, files), result=result)


def _shortened(text: str, files: Sequence[Path]) -> str:
    """A text with each path cut to its name."""
    for path in files:
        text = text.replace(str(path), path.name)
    return text


def remarks(runs: Sequence[Run], judged: Sequence[Judged]) -> list[str]:
    """Warnings: outputs, truths and mixtures that are not there, files that cannot be scored."""
    cases = [row.case for row in judged]
    said = []
    for number, run in enumerate(runs):
        missing = [c for c in cases if not ((output := c.outputs[number]) and output.estimate)]
        said += _missing(f"{run.label}: no output", missing, len(cases))
        results = (row.results[number] for row in judged)
        flipped = sum(result.flipped for result in results if result)
        if flipped:
            said.append(
                f"{run.label}: {flipped} outputs are sign-flipped. They count here, "
                "but not in mcspex score without --flipped-ok."
            )
    no_truth = [case for case in cases if not case.truth]
    if len(no_truth) == len(cases):
        said.append("no truth is known, so the page has no scores. Add --truth DIR.")
    else:
        said += _missing("no truth", no_truth, len(cases))
    said += _missing("no mixture", [case for case in cases if not case.mixture], len(cases))
    notes = [result.note for row in judged for result in row.results if result and result.failed]
    return said + notes


def _missing(what: str, cases: Sequence[Case], among: int) -> list[str]:
    """A line on cases that lack something, if there are any."""
    if not cases:
        return []
    names = ", ".join(case.name for case in cases[:NAMED])
    more = ", ..." if len(cases) > NAMED else ""
    return [f"{what} for {len(cases)} of {among} cases: {names}{more}"]


def plot(judged: Sequence[Judged]) -> Plot | None:
    """Every output whose SI-SDRi is known; None if there is none."""
    outputs = [(number, row) for row in judged for number in range(len(row.results))]
    found = [
        (result.input_db, result.si_sdr_i_db, number, row, result)
        for number, row in outputs
        if (result := row.results[number])
        and result.input_db is not None
        and result.si_sdr_i_db is not None
    ]
    if not found:
        return None
    x = pictures.axis([before for before, *_ in found], LEFT, WIDTH - RIGHT)
    gains = [gain for _, gain, *_ in found]
    y = pictures.axis([*gains, 0.0], HEIGHT - BOTTOM, TOP)
    points = [Point(x.at(b), y.at(g), number, row, r) for b, g, number, row, r in found]
    return Plot(x, y, tuple(points))
