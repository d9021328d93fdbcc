"""A report as text: tables and remarks for people, and the files JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import files, text
from mcspex_cli.errors import OutputError
from mcspex_cli.evaluation.cases import NO_GROUP
from mcspex_cli.evaluation.metrics import BY_COLUMN, Metric
from mcspex_cli.evaluation.scoring import CUT
from mcspex_cli.evaluation.summary import (
    Distribution,
    Report,
    Rows,
    Summary,
    ranking,
    scored,
)

FEW = 50
"""Up to so many files a table shows them all."""

_FIRST = ("name", "group", *BY_COLUMN, "input_si_sdr_db", "confused", "status", "note")
"""The order of columns in CSV; others come after."""


@dataclass(frozen=True)
class Table:
    """Text for people; `footer` is empty or has a cell for each heading."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    footer: tuple[str, ...] = ()


def tables(report: Report, *, every: bool = False, hidden: Collection[str] = ()) -> list[Table]:
    """Files (the worst ten of more than `FEW`, unless `every`), means, groups, baseline.

    `hidden` are columns that are left out.
    """
    summary = report.summary
    every = every or summary.files <= FEW or not report.worst
    means = {c: BY_COLUMN[c] for c in BY_COLUMN if c in summary.metrics and c not in hidden}
    valued = [c for c in BY_COLUMN if any(row.get(c) is not None for row in report.rows)]
    shown = [BY_COLUMN[c] for c in valued if c not in hidden and not BY_COLUMN[c].of_mixture]
    parts = [_files(report, shown, every=every)]
    if summary.scored > 1:
        parts.append(_means("Means", means, summary.metrics))
    if report.groups:
        parts.append(_groups(report.groups, [*means.values()]))
    if report.baseline:
        change = report.baseline
        title = (
            f"Change since {change.path} (files in both: {change.both}, only here: "
            f"{change.only_here}, only there: {change.only_there})"
        )
        parts.append(_means(title, means, change.metrics, sign="+"))
    return parts


def remarks(report: Report) -> list[str]:
    """What a reader of the means has to know; nothing where all is well."""
    summary = report.summary
    others = {status: n for status, n in summary.statuses.items() if status != "ok"}
    left_out, missing = sum(others.values()), summary.missing_estimates
    notes = [str(row.get("note") or "") for row in scored(report.rows)]
    cut = sum(CUT in note for note in notes)
    odd = sum(": " in note for note in notes)  # only a reader's warnings name a file like this
    loose = sum(row.get("group") == NO_GROUP for row in report.rows)
    reasons = ", ".join(f"{number} {status}" for status, number in others.items())
    lines = (
        (left_out, f"not in the means: {left_out} of {summary.files} files ({reasons})."),
        (missing, f"truths without an estimate: {missing}. The means do not include them."),
        (
            cut,
            f"files cut to the length of their truth: {cut}. They were a little longer or shorter.",
        ),
        (
            odd,
            f"files that are damaged but could be read: {odd}. The column note of the JSON or CSV "
            "report says which.",
        ),
        (loose, f"files in no group: {loose}. The tables show them as {NO_GROUP}."),
    )
    return [line for number, line in lines if number]


def confusion(report: Report) -> str:
    """How often the wrong talker was extracted, and where; "" if that is not known."""
    summary = report.summary
    if summary.confused is None:
        return ""
    names = [row["name"] for row in scored(report.rows) if row.get("confused")]
    share = 100 * summary.confused / summary.scored
    which = f": {_listed(names)}" if names else ""
    return f"target confusion: {summary.confused} of {summary.scored} ({share:.1f} %){which}"


def absences(rows: Rows) -> str:
    """Which voices are probably not in their mixtures; "" for none."""
    judged = [row for row in rows if row.get("present") is not None]
    names = [row["name"] for row in judged if not row["present"]]
    verb = "is" if len(names) == 1 else "are"
    counts = f"{len(names)} of {len(judged)} voices {verb} probably absent"
    return f"{counts}: {_listed(names)}" if names else ""


def as_json(report: Report) -> str:
    """A report as JSON without NaN or infinity."""
    return json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"


def as_csv(report: Report) -> str:
    """A report's rows as CSV: known columns first, those without any value left out."""
    seen = dict.fromkeys(key for row in report.rows for key in row)
    ordered = [key for key in _FIRST if key in seen] + [key for key in seen if key not in _FIRST]
    columns = [key for key in ordered if any(row.get(key) not in (None, "") for row in report.rows)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([text.csv_cell(row.get(key)) for key in columns] for row in report.rows)
    return file.getvalue()


def as_markdown(report: Report) -> str:
    """A report's tables with all files, and the remarks, as Markdown."""
    parts = []
    for table in tables(report, every=True):
        heading, *rows = [map(text.markdown, row) for row in (table.headings, *table.rows)]
        rule = ["---", *["---:"] * (len(table.headings) - 1)]
        footer = [f"**{text.markdown(cell)}**" if cell else "" for cell in table.footer]
        parts.append(f"## {text.markdown(table.title)}\n\n" if table.title else "")
        for row in (heading, rule, *rows, *([footer] if footer else [])):
            parts.append("| " + " | ".join(row) + " |\n")
        parts.append("\n")
    lines = [line for line in (*remarks(report), confusion(report)) if line]
    return "".join(parts) + "".join(f"- {text.markdown(line)}\n" for line in lines)


REPORT_FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "json": (".json", as_json),
    "csv": (".csv", as_csv),
    "markdown": (".md", as_markdown),
}
"""By name, what a report can be written as: the suffix of a file, and how."""


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Refuse files for reports before there is one.

    Raises:
        OutputError: a suffix names no format, or a file would replace an input or a folder.
    """
    taken = [path.resolve() for path in inputs if path]
    suffixes = [suffix for suffix, _ in REPORT_FORMATS.values()]
    for path in outputs:
        if path.suffix.lower() not in suffixes:
            known = ", ".join(suffixes)
            raise OutputError(f"{path}: unknown format. The name must end in {known}.")
        if path.is_dir() or path.resolve() in taken:
            raise OutputError(f"{path}: is an input or a folder. Choose another name.")


def write(path: Path, report: Report) -> None:
    """Write a report in the format of the file's suffix, whole or not at all.

    Raises:
        OutputError: the place is not writable.
    """
    form = next(form for suffix, form in REPORT_FORMATS.values() if suffix == path.suffix.lower())
    content = form(report)
    files.make_folders(path.parent)
    with files.whole(path) as partial:
        # A file name that is not UTF-8 comes out as the bytes it is.
        partial.write_bytes(content.encode("utf-8", "surrogateescape"))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


def _files(report: Report, metrics: Sequence[Metric], *, every: bool) -> Table:
    rows, means = report.rows, report.summary.metrics
    ranked = ranking(rows)
    changes = report.baseline.differences if ranked and report.baseline else []
    change = {row["name"]: row.get(ranked.column) for row in changes if ranked}
    by_name = {row["name"]: row for row in rows}
    shown = rows if every else [by_name[name] for name in report.worst]
    cells = [
        (
            str(row["name"]),
            *(metric.text(row.get(metric.column)) for metric in metrics),
            *([ranked.text(change.get(row["name"]), "+")] if ranked and change else []),
            "confused" if row["status"] == "ok" and row.get("confused") else str(row["status"]),
        )
        for row in shown
    ]
    more = [""] * bool(change)
    headings = ("file", *(metric.heading for metric in metrics), *(["change"] * bool(change)))
    label = ranked.heading if ranked else ""
    title = "" if every else f"The worst {len(shown)} of {len(rows)} files by {label}"
    footer = (f"mean of {report.summary.scored}", *_mean_cells(means, metrics), *more, "")
    return Table(title, (*headings, "status"), cells, footer if every else ())


def _means(
    title: str,
    metrics: Mapping[str, Metric],
    spreads: Mapping[str, Distribution],
    sign: str = "",
) -> Table:
    rows = []
    for column, metric in metrics.items():
        if spread := spreads.get(column):
            values = (spread.mean, spread.low, spread.high, spread.median)
            mean, low, high, median = (metric.text(value, sign) for value in values)
            between = "-" if spread.low is None else f"{low} to {high}"
            rows.append((metric.heading, mean, between, median, str(spread.count)))
    return Table(title, ("metric", "mean", "95 % interval", "median", "files"), rows)


def _groups(groups: Mapping[str, Summary], metrics: Sequence[Metric]) -> Table:
    rows = []
    for name, group in groups.items():
        confused = "-" if group.confused is None else str(group.confused)
        cells = _mean_cells(group.metrics, metrics)
        rows.append((name, str(group.files), str(group.scored), confused, *cells))
    headings = ("group", "files", "scored", "confused", *(metric.heading for metric in metrics))
    return Table("Means by group", headings, rows)


def _mean_cells(means: Mapping[str, Distribution], metrics: Sequence[Metric]) -> list[str]:
    return [m.text(means[m.column].mean if m.column in means else None) for m in metrics]
