"""One page to hear, see and compare what systems gave: players, spectrograms and scores."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mcspex_cli import __version__, files
from mcspex_cli.evaluation import exhibits, pictures, results, shelves
from mcspex_cli.evaluation.groups import read_groups
from mcspex_cli.evaluation.results import Judged, Standing
from mcspex_cli.evaluation.runs import OTHERS, Run, gather
from mcspex_cli.evaluation.shelves import Put

EMBEDDED_CASES = 12
"""Cases shown in a page that holds its sounds, unless more are asked for."""

PLAYERS = 400
"""Up to here players look up their length at once; browsers refuse a thousand that do."""

SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-6 5.4 4.2h-10.8z",
    "M0-6.2 5.4 0 0 6.2-5.4 0z",
)
"""Circle, square, triangle, diamond: the systems in turn."""


@dataclass(frozen=True)
class PageSettings:
    """What to show and how.

    `truth` and `mixtures` are folders of namesakes, `groups` a CSV (`groups.read_groups`) and
    `group_by` its column. At most `max_cases` are shown (None: 12 if `embed`, else all), some
    of them drawn with `seed`. Without `embed`, sounds and pictures go to a folder beside the page.
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


@dataclass
class _Draft:
    """A page in the making."""

    runs: Sequence[Run]
    judged: Sequence[Judged]
    shown: Mapping[str, str]
    """Why each case is shown, by name."""
    warnings: list[str] = field(default_factory=list)

    @property
    def ids(self) -> dict[str, str]:
        """The anchors of the cases shown, by name."""
        shown = (row.case.name for row in self.judged if row.case.name in self.shown)
        return {name: f"case-{number}" for number, name in enumerate(shown, 1)}


def write_page(
    runs: Sequence[Run],
    output: Path,
    settings: PageSettings | None = None,
    progress: Callable[[float], None] | None = None,
) -> Page:
    """Write the page of some runs, whole or not at all; `progress` hears the share done.

    Memory holds one case's sounds at a time. A file that cannot be used costs its cell.

    Raises:
        AudioError: a folder of the settings is missing.
        ConfigError: the groups cannot be read.
        OutputError: the page's place cannot, or must not, be written.
        PairingError: two files have one name.
    """
    settings = settings or PageSettings()
    folders = [*(run.folder for run in runs), settings.truth, settings.mixtures]
    inputs = [path for path in (settings.groups, *folders) if path]
    shelves.check_place(output, inputs, embed=settings.embed, overwrite=settings.overwrite)
    groups = read_groups(settings.groups, settings.group_by) if settings.groups else None
    cases = gather(runs, settings.truth, settings.mixtures, groups)
    tell = progress or (lambda _: None)
    judged = []
    for number, case in enumerate(cases, 1):
        judged.append(results.judge(case))
        tell(number / (2 * len(cases)))
    most = EMBEDDED_CASES if settings.embed else len(cases)
    count = most if settings.max_cases is None else settings.max_cases
    draft = _Draft(runs, judged, results.choose(judged, count, settings.seed))
    draft.warnings += exhibits.remarks(runs, judged)
    if groups and all(case.group == OTHERS for case in cases):
        draft.warnings.append(f"{settings.groups}: names none of the cases.")
    with files.whole(output) as partial, shelves.shelf(output, embed=settings.embed) as put:
        text = _template().generate(_context(draft, settings, put, tell))
        with partial.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.writelines(text)
    return Page(output, len(cases), len(draft.shown), tuple(dict.fromkeys(draft.warnings)))


def _context(
    draft: _Draft, settings: PageSettings, put: Put, progress: Callable[[float], None]
) -> dict[str, Any]:
    """What the template names; sections are made while they are written."""
    scored = any(row.case.truth for row in draft.judged)
    groups = results.by_group(draft.judged) if settings.groups else {}
    reasons = list(draft.shown.values())
    players = len(draft.shown) * (2 + len(draft.runs))
    return {
        "title": settings.title,
        "version": __version__,
        "seed": settings.seed,
        "labels": [run.label for run in draft.runs],
        "judged": draft.judged,
        "shown": draft.shown,
        "ids": draft.ids,
        "counts": {word.split()[0]: reasons.count(word) for word in results.REASONS},
        "standings": results.stand(draft.judged, draft.runs) if scored else [],
        "groups": {name: results.stand(rows, draft.runs) for name, rows in groups.items()},
        "sizes": {name: len(rows) for name, rows in groups.items()},
        "plot": exhibits.plot(draft.judged),
        "size": (exhibits.WIDTH, exhibits.HEIGHT),
        "best": _best,
        "shapes": SHAPES,
        "range_db": pictures.RANGE_DB,
        "scale": shelves.data_url(pictures.scale(), ".png"),
        "preload": "metadata" if players <= PLAYERS else "none",
        "sections": _sections(draft, put, progress),
        **_assets(settings.embed),
    }


def _sections(
    draft: _Draft, put: Put, progress: Callable[[float], None]
) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Groups with a case to show and, as they are asked for, these cases."""
    labels = [run.label for run in draft.runs]
    ids = draft.ids
    done: list[str] = []

    def show(rows: Sequence[Judged]) -> Iterator[dict[str, Any]]:
        """Read, draw and store the sounds of one case after another."""
        for row in rows:
            cells, problems = exhibits.cells(row, labels, put)
            draft.warnings += problems
            name = row.case.name
            done.append(name)
            yield {
                "id": ids[name],
                "case": row.case,
                "why": draft.shown[name],
                "cells": cells,
                "length": next(filter(None, (cell.length for cell in cells)), ""),
            }
            progress(0.5 + 0.5 * len(done) / len(ids))

    for group, rows in results.by_group(draft.judged).items():
        shown = [row for row in rows if row.case.name in ids]
        if shown:
            yield group, show(shown)


def _assets(embed: bool) -> dict[str, Any]:
    """The style, the script and the policy that lets only these two run."""
    folder = resources.files("mcspex_cli.evaluation")
    style, script = ((folder / f"gallery.{kind}").read_text("utf-8") for kind in ("css", "js"))
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in (style, script)
    ]
    media = "data:" if embed else "data: file: 'self'"
    policy = (
        f"default-src 'none'; img-src {media}; media-src {media}; style-src {hashes[0]}; "
        f"script-src {hashes[1]}; base-uri 'none'; form-action 'none'"
    )
    return {"style": Markup(style), "script": Markup(script), "policy": policy}


def _template() -> jinja2.Template:
    """The page, everything put into it escaped."""
    room = jinja2.Environment(
        loader=jinja2.PackageLoader("mcspex_cli.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    room.filters.update(db=_db, tick=_tick)
    return room.get_template("gallery.html")


def _db(value: float | None) -> str:
    """Two decimals with a true minus, or a dash for what does not exist."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _tick(value: float) -> str:
    """A tick's number with a true minus."""
    return f"{value:.6g}".replace("-", "−")


def _best(standings: Sequence[Standing]) -> float:
    """The highest mean SI-SDRi of several systems; nothing is best of one."""
    gains = [row.si_sdr_i_db for row in standings if row.si_sdr_i_db is not None]
    return max(gains) if len(gains) > 1 else math.nan
