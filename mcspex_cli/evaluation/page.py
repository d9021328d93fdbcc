"""One HTML page to hear, see and compare what systems made of the same recordings."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from mcspex_cli import __version__, audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import McspexError, OutputError, line
from mcspex_cli.evaluation import report
from mcspex_cli.evaluation.comparison import (
    BEST,
    DRAWN,
    VALUED,
    WORST,
    Comparison,
    ComparisonCase,
    PageSettings,
    SystemOutputs,
    compare_systems,
)
from mcspex_cli.evaluation.metrics import METRICS, Metric
from mcspex_cli.evaluation.pairing import is_batch

_PLAYERS = 400
"""Up to here players look up their length at once; browsers refuse a thousand that do."""

_PLAY_HZ = 48_000
"""Recordings of a higher rate are resampled to it, the highest that every browser plays."""

_EMBEDDED_S = 120.0
"""An embedded sound ends here: browsers open no page of half a gigabyte."""

_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-6 5.4 4.2h-10.8z",
    "M0-6.2 5.4 0 0 6.2-5.4 0z",
)
"""Circle, square, triangle, diamond: the systems in turn."""

_TYPES = {".flac": "audio/flac", ".png": "image/png"}

_OURS = re.compile(r"\d{5,}\.(flac|png)")
"""Names of the files beside a page: numbers, since nothing that a user named is safe."""

SPECTRUM_S, _SPECTRUM_HOP_S = 0.032, 0.008
"""How much sound each spectrum of a picture covers, and how far apart the spectra begin."""

COLUMNS, ROWS = 512, 160
"""The largest spectrogram; longer sounds and finer spectra are averaged into it."""

_FRAMES_AT_ONCE = 512
"""About how many spectra are computed at once: a few columns of a long sound, many of a short."""

RANGE_DB = 80.0
"""From the brightest colour down to black."""

QUIET_DB = -100.0
"""The brightest colour is never below this, so that silence is black."""

SHADES = 64
"""Colours in use: 1.25 dB each, no step is seen and the file is a third smaller than with 256."""

_ANCHORS = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"
"""From silent to loud: lightness rises evenly, as in matplotlib's magma."""

_CEILING = 0.85
"""If an output has nothing above this share of the mixture's frequencies, a remark says so."""

Levels = npt.NDArray[np.floating[Any]]
"""A spectrogram in dB, [row, column]; the first row is the highest frequency."""

Store = Callable[[bytes, str], Markup]
"""Stores data of a suffix and returns its URL."""


@dataclass(frozen=True)
class Page:
    """What was written; `warnings` say what is missing in it."""

    path: Path
    cases: int
    shown: int
    warnings: tuple[str, ...]


def write_page(
    systems: Sequence[SystemOutputs],
    output: Path,
    settings: PageSettings,
    progress: Callable[[float], object] = lambda _: None,
) -> Page:
    """Write the page of some systems, whole or not at all.

    Memory holds one case's sounds at a time. A file that cannot be read leaves its place on the
    page empty. `progress` is called with the share that is done.

    Raises:
        AudioError, PairingError: a folder of the settings is not there, or two files in it have one
            name.
        OutputError: the page's place cannot, or must not, be written.
    """
    _check_page(output, systems, settings)
    comparison = compare_systems(systems, settings, lambda share: progress(share / 2))
    shown, warnings = comparison.choose(), comparison.warnings()
    folder = _media_folder(output)
    if settings.embed and output.exists() and _is_of_report(folder):
        warnings.append(
            f"{folder}: has sounds of the earlier page. The new page does not need this folder; "
            "delete it if nothing else does."
        )
    names = [case.name for case in comparison.cases if case.name in shown]
    sections = {
        group: [case for case in cases if case.name in shown]
        for group, cases in comparison.by_group().items()
    }
    with (
        files.together(overwrite=settings.overwrite),
        files.whole(output) as partial,
        _media(output, embed=settings.embed) as store,
    ):

        def show(case: ComparisonCase) -> tuple[ComparisonCase, list[Cell]]:
            longest_s = _EMBEDDED_S if settings.embed else math.inf
            cells = _cells(case, systems, store, warnings, longest_s)
            progress(0.5 + 0.5 * (names.index(case.name) + 1) / len(names))
            return case, cells

        pieces = _template().generate(
            **_context(comparison),
            **_assets(settings.embed),
            settings=settings,
            shown=shown,
            ids={name: f"case-{number}" for number, name in enumerate(names, 1)},
            # Cases are read while the page is written: memory holds one at a time.
            sections=((group, map(show, cases)) for group, cases in sections.items() if cases),
        )
        with partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.writelines(pieces)
    return Page(output, len(comparison.cases), len(names), tuple(dict.fromkeys(warnings)))


@dataclass
class Cell:
    """One sound of a case on the page; without a `sound`, `problem` says why."""

    label: str
    path: Path | None
    problem: str
    scores: Mapping[str, Any]
    """What is measured of it, by column; of an output its row."""
    system: int | None = None
    """The number of the system that has made it."""
    sound: str = ""
    picture: str = ""
    """URLs, which the template takes as they are."""
    seconds: float = 0.0
    whole_s: float = 0.0
    """The length of the file, of which the sound may be the beginning."""
    rate_hz: int = 0
    quieter_db: float = 0.0
    """By how much a sound beyond full scale was turned down."""
    why_black: str = ""
    """Why the picture is black above a frequency, if the mixture's goes higher."""

    @property
    def length(self) -> str:
        """The duration and sample rate in words, empty without a sound."""
        if not self.sound:
            return ""
        length = f"{self.seconds:.2f} s"
        if self.whole_s - self.seconds > 0.01:
            length = f"first {self.seconds:g} s of {self.whole_s:.2f} s"
        return f"{length} at {self.rate_hz / 1000:.4g} kHz"


def _cells(
    case: ComparisonCase,
    systems: Sequence[SystemOutputs],
    store: Store,
    warnings: list[str],
    longest_s: float,
) -> list[Cell]:
    """Mixture, each system's output, truth; the first sound sets the brightest colour.

    Of each sound there is the beginning, up to `longest_s`. `warnings` gets a line for each file
    that cannot be read.
    """
    cells = [
        Cell("Mixture", case.mixture, "No mixture is known.", case.mixture_values),
        *(
            Cell(systems[number].label, output.estimate, output.problem, output.row, number)
            for number, output in enumerate(case.outputs)
        ),
        Cell("Truth", case.truth, "No truth is known.", {}),
    ]
    loudest_db = mixture_ceiling_hz = None
    for cell in cells:
        if cell.path is None:
            continue
        try:
            reader = audio.Reader(cell.path)
            cell.rate_hz = reader.sample_rate_hz = min(reader.info.sample_rate_hz, _PLAY_HZ)
            samples = np.concatenate([*_beginning(reader, longest_s)], axis=-1)[0]
            cell.whole_s = reader.info.seconds
        except McspexError as error:
            cell.problem = str(error)
            warnings.append(cell.problem)
            continue
        levels = spectrogram(samples, cell.rate_hz)
        if loudest_db is None:
            loudest_db = max(float(levels.max()), QUIET_DB)
        ceiling_hz = _height(levels, loudest_db) * cell.rate_hz / 2
        if cell is cells[0]:
            mixture_ceiling_hz = ceiling_hz
        elif mixture_ceiling_hz and cell.system is not None:
            highest_hz = min(mixture_ceiling_hz, cell.rate_hz / 2)
            cell.why_black = _why_black(ceiling_hz, highest_hz)
        peak = max(1.0, float(np.abs(samples).max()))
        cell.quieter_db = 20 * math.log10(peak)
        cell.seconds = len(samples) / cell.rate_hz
        cell.sound = store(audio.encode(samples / peak, cell.rate_hz), ".flac")
        cell.picture = store(draw_spectrogram(levels, loudest_db), ".png")
    _leave_out_folders(cells)
    return cells


def _leave_out_folders(cells: Sequence[Cell]) -> None:
    """Name files alone in all texts: a page is published, a folder's place is not."""
    for path in [cell.path for cell in cells if cell.path]:
        for cell in cells:
            cell.problem = cell.problem.replace(str(path), path.name)
            if note := cell.scores.get("note"):
                cell.scores = {**cell.scores, "note": note.replace(str(path), path.name)}


def _beginning(reader: audio.Reader, longest_s: float) -> Iterator[Samples]:
    """The blocks of a file's first `longest_s`."""
    left = longest_s * reader.sample_rate_hz
    with closing(iter(reader)) as blocks:
        for block in blocks:
            yield block[:, : int(min(left, block.shape[1]))]
            left -= block.shape[1]
            if left <= 0:
                return


def spectrogram(samples: Samples, rate_hz: int) -> Levels:
    """The power of `samples` [sample] over time and frequency, at most ROWS x COLUMNS.

    A full-scale sine is at about -6 dB at any rate. A sound shorter than a window is padded.
    """
    size = max(16, round(SPECTRUM_S * rate_hz))
    hop = max(1, round(_SPECTRUM_HOP_S * rate_hz))
    window = np.hanning(size) / np.hanning(size).sum()
    padded = np.pad(samples, (size // 2, size - size // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    times = np.linspace(0, len(frames), min(len(frames), COLUMNS) + 1).astype(int)
    bins = np.linspace(0, size // 2 + 1, min(size // 2 + 1, ROWS) + 1).astype(int)
    power = np.empty((len(bins) - 1, len(times) - 1))
    step = max(1, _FRAMES_AT_ONCE * (len(times) - 1) // len(frames))  # columns at once
    for column in range(0, len(times) - 1, step):
        edges = times[column : column + step + 1]
        spectrum = np.abs(np.fft.rfft(frames[edges[0] : edges[-1]] * window)) ** 2
        pooled = np.add.reduceat(np.add.reduceat(spectrum, edges[:-1] - edges[0]), bins[:-1], 1)
        means = pooled / np.outer(np.diff(edges), np.diff(bins))
        power[::-1, column : column + step] = means.T
    return 10 * np.log10(power + 1e-20)


def _height(levels: Levels, loudest_db: float) -> float:
    """The share of a picture's height above which it is black, but for a few moments.

    Where a sound begins or ends it may click, which has all frequencies.
    """
    inner = levels[:, 3:-3] if levels.shape[1] > 6 else levels
    bright = np.flatnonzero((inner > loudest_db - RANGE_DB).mean(axis=1) > 0.02)
    return float(1 - bright[0] / len(levels)) if bright.size else 0.0


def _why_black(ceiling_hz: float, mixture_hz: float) -> str:
    """Why an output has nothing above a frequency; empty if its mixture ends there too."""
    if not 0 < ceiling_hz < _CEILING * mixture_hz:
        return ""
    for rate_hz in (8000, 16000, 24000, 32000):
        if -0.05 < 2 * ceiling_hz / rate_hz - 1 < 0.1:  # the window blurs the edge upwards
            return (
                f"Black above {rate_hz / 2000:g} kHz: a model for {rate_hz / 1000:g} kHz returns "
                "nothing higher."
            )
    return f"Black above {ceiling_hz / 1000:.1f} kHz: this output has no sound there."


def draw_spectrogram(levels: Levels, loudest_db: float) -> bytes:
    """A PNG of a spectrogram: `loudest_db` is the brightest colour, RANGE_DB below it black."""
    share = np.clip(1 + (levels - loudest_db) / RANGE_DB, 0, 1)
    picture = Image.fromarray(np.rint(share * (SHADES - 1)).astype(np.uint8))
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in _ANCHORS.split()])
    shades = np.linspace(0, len(anchors) - 1, SHADES)
    colours = [np.interp(shades, range(len(anchors)), channel) for channel in anchors.T]
    picture.putpalette(np.rint(np.stack(colours, axis=1)).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _context(comparison: Comparison) -> dict[str, Any]:
    """What the template needs to know of all cases."""
    cases, rows, ranking = comparison.cases, comparison.rows, comparison.ranking
    metrics = [metric for metric in METRICS.values() if report.values_of(rows, metric.column)]
    has_truth = any(case.truth for case in cases)
    summaries = comparison.summaries(cases) if metrics or has_truth else []
    of_mixture = METRICS["si_sdr"] if has_truth else ranking
    if of_mixture and not any(of_mixture.column in case.mixture_values for case in cases):
        of_mixture = None
    plotted = ("input_si_sdr_db", "si_sdr_i_db")
    shades_db = np.linspace(-RANGE_DB, 0, SHADES)
    return {
        "version": __version__,
        "comparison": comparison,
        "labels": [system.label for system in comparison.systems],
        "cases": cases,
        "groups": comparison.by_group() if comparison.settings.groups else {},
        "summaries": summaries,
        "verdicts": any(system.confused is not None for system in summaries),
        "all_metrics": METRICS.values(),
        "metrics": metrics,
        "ranking": ranking,
        "mixture_metric": of_mixture,
        "si_sdr": METRICS["si_sdr"],
        "has_truth": has_truth,
        "statuses_in_means": [*map(report.status_in_means, comparison.by_system(cases))],
        "valued": VALUED,
        "points": [
            (number, case, output.row)
            for case in cases
            for number, output in enumerate(case.outputs)
            if all(output.row.get(column) is not None for column in plotted)
        ],
        "best": _best,
        "reasons": (BEST, WORST, DRAWN),
        "shapes": _SHAPES,
        "range_db": RANGE_DB,
        "scale": _data_url(draw_spectrogram(shades_db[None], 0.0), ".png"),
        "players": _PLAYERS,
    }


def _best(summaries: Sequence[report.Summary], metric: Metric) -> float:
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


@cache
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

    def show_value(value: float | None, metric: Metric) -> str:
        return "–" if value is None else metric.text(value).replace("-", "−")

    environment.filters["value"] = show_value
    return environment.get_template("page.html")


def _check_page(output: Path, systems: Sequence[SystemOutputs], settings: PageSettings) -> None:
    """Refuse a page that would destroy something or has no folder."""
    files.check_suffix(output, (".html",))
    if not output.parent.exists():
        raise OutputError(f"{output.parent}: no such folder. Make it, or choose another -o.")
    groups = settings.groups and settings.groups.path
    inputs = [settings.truth, settings.mixtures, groups, *(s.folder for s in systems)]
    # Folders above an input, too: the folder of the page's sounds is replaced as a whole.
    paths = {each for path in inputs if path for each in (path, *path.resolve().parents)}
    taken = files.identities(*paths)
    files.check_no_input([output], taken)
    files.check_output(output, overwrite=settings.overwrite)
    folder = _media_folder(output)
    if settings.embed:
        return
    runs = [s.folder / "audio" if is_batch(s.folder) else s.folder for s in systems]
    searched = (path.resolve() for path in (settings.truth, settings.mixtures, *runs) if path)
    if any(folder.resolve().is_relative_to(path) for path in searched):
        raise OutputError(
            f"{folder}: is in a folder of sounds that are compared, and would be taken for some of "
            "them. Choose another -o."
        )
    if not folder.exists():
        return
    files.check_no_input([folder], taken)
    if not settings.overwrite:
        raise OutputError(f"{folder}: exists already. Add --overwrite to replace it.")
    if not _is_of_report(folder):
        raise OutputError(
            f"{folder}: has files that are not of a report. Move it, or choose another -o."
        )


def _media_folder(output: Path) -> Path:
    return output.with_name(f"{output.stem}_files")


def _is_of_report(folder: Path) -> bool:
    with suppress(OSError):  # it may not be there, or not be read
        return all(_OURS.fullmatch(path.name) for path in folder.iterdir())
    return False


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
    return Markup(f"data:{_TYPES[suffix]};base64,{base64.b64encode(data).decode()}")
