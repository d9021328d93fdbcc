"""What a report says to people: tables and remarks, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcspex_cli.evaluation.groups import NONE
from mcspex_cli.evaluation.statistics import ranked_by, scored

Document = dict[str, Any]
"""What `reports.build` describes; JSON without NaN or infinity."""

LABELS = {
    "si_sdr_db": "SI-SDR dB",
    "si_sdr_i_db": "SI-SDRi dB",
    "snr_db": "SNR dB",
    "sdr_db": "SDR dB",
    "sir_db": "SIR dB",
    "sar_db": "SAR dB",
    "pesq": "PESQ",
    "stoi": "STOI",
    "estoi": "ESTOI",
}

FEW = 50
"""Up to so many files a table shows them all."""


@dataclass(frozen=True)
class Table:
    """Text for people; `footer` is empty or has a cell for each heading."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    footer: tuple[str, ...] = ()


def tables(document: Document, *, every: bool = False) -> list[Table]:
    """Files (the worst ten of more than `FEW`, unless `every`), means, groups, baseline."""
    summary = document["summary"]
    made = [_files(document, every=every or summary["files"] <= FEW)]
    if summary["scored"] > 1:
        made.append(_means("Means", summary["metrics"]))
    if document["groups"]:
        made.append(_groups(document["groups"], tuple(summary["metrics"])))
    if document["baseline"]:
        against = document["baseline"]
        title = f"Change since {against['path']}: {against['both']} files in both, "
        title += f"{against['only_here']} only here, {against['only_there']} only there"
        made.append(_means(title, against["metrics"], sign="+"))
    return made


def remarks(document: Document) -> list[str]:
    """What a reader of the means has to know; nothing where all is well."""
    summary, rows = document["summary"], document["scores"]
    left_out = {k: n for k, n in summary["statuses"].items() if k != "ok"}
    said = ", ".join(f"{n} {status}" for status, n in left_out.items())
    cut = sum("cut to" in (row.get("note") or "") for row in scored(rows))
    loose = sum(row.get("group") == NONE for row in rows)
    counts = (
        (sum(left_out.values()), f"of {summary['files']} files are not in the means: {said}."),
        (summary["missing_estimates"], "truths have no estimate; the means are without them."),
        (cut, "files differ in length from their truth by up to 1 % and were cut."),
        (loose, f"files are in no row of the groups; they are in group {NONE}."),
    )
    return [f"{count} {text}" for count, text in counts if count]


def confusion(document: Document) -> str:
    """How often the wrong talker was followed, and where; "" if that is not known."""
    summary = document["summary"]
    if summary["confused"] is None:
        return ""
    names = [row["name"] for row in scored(document["scores"]) if row.get("confused")]
    share = 100 * summary["confused"] / summary["scored"]
    which = f": {_listed(names)}" if names else ""
    return f"target confusion: {summary['confused']} of {summary['scored']} ({share:.1f} %){which}"


def absences(document: Document) -> str:
    """Which voices are probably not in their mixtures; "" for none."""
    judged = [row for row in document["scores"] if row.get("present") is not None]
    names = [row["name"] for row in judged if not row["present"]]
    verb = "is" if len(names) == 1 else "are"
    said = f"{len(names)} of {len(judged)} voices {verb} probably absent: {_listed(names)}"
    return said if names else ""


def cell(column: str, value: float | None, sign: str = "") -> str:
    """A metric's value to the digits that matter, or a dash for what does not exist."""
    digits = 3 if column in ("stoi", "estoi") else 2
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


def _files(document: Document, *, every: bool) -> Table:
    """A row for each file, or the worst ten, and the means."""
    rows, means = document["scores"], document["summary"]["metrics"]
    columns = [column for column in LABELS if any(row.get(column) is not None for row in rows)]
    ranked = ranked_by(scored(rows)) or ""
    changes = (document["baseline"] or {}).get("differences", [])
    change = {row["name"]: row[ranked] for row in changes if ranked in row}
    by_name = {row["name"]: row for row in rows}
    shown = rows if every else [by_name[name] for name in document["worst"]]
    cells = [
        (
            str(row["name"]),
            *(cell(column, row.get(column)) for column in columns),
            *([cell(ranked, change.get(row["name"]), "+")] if change else []),
            "confused" if row["status"] == "ok" and row.get("confused") else str(row["status"]),
        )
        for row in shown
    ]
    footer = [f"mean of {document['summary']['scored']}"]
    footer += [
        cell(column, means[column]["mean"] if column in means else None) for column in columns
    ]
    headings = ("file", *(LABELS[c] for c in columns), *(["change"] if change else []), "status")
    footer += [""] * (len(headings) - len(footer))
    label = LABELS.get(ranked, "rank")
    title = "" if every else f"The worst {len(shown)} of {len(rows)} files by {label}"
    return Table(title, headings, cells, tuple(footer) if every else ())


def _means(title: str, metrics: Mapping[str, Mapping[str, Any]], sign: str = "") -> Table:
    """A row for each metric: mean, interval, median."""
    rows = []
    for column, found in metrics.items():
        mean, low, high, median = (
            cell(column, found[key], sign) for key in ("mean", "low", "high", "median")
        )
        between = "-" if found["low"] is None else f"{low} to {high}"
        rows.append((LABELS[column], mean, between, median, str(found["count"])))
    return Table(title, ("metric", "mean", "95 % interval", "median", "files"), rows)


def _groups(groups: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """A row for each group: how many, and the means."""
    rows = [
        (
            name,
            str(found["files"]),
            str(found["scored"]),
            "-" if found["confused"] is None else str(found["confused"]),
            *(cell(c, found["metrics"].get(c, {}).get("mean")) for c in columns),
        )
        for name, found in groups.items()
    ]
    headings = ("group", "files", "scored", "confused", *(LABELS[c] for c in columns))
    return Table("Means by group", headings, rows)
