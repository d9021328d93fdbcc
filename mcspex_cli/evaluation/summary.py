"""What many scores say together: means, groups, changes; and a report of them for people and files.

Rows are mappings: `scoring.Row.to_dict`, or any that have "name" and "status" and some of the
columns of METRICS. Only rows with the status "ok" are in means, or "done" in a batch without truth.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mcspex_cli import errors, files
from mcspex_cli.errors import ConfigError, OutputError, PairingError
from mcspex_cli.evaluation.metrics import BY_COLUMN, METRICS, Metric
from mcspex_cli.evaluation.scoring import Status, case_name
from mcspex_cli.extraction.job import check_no_input, identities

Rows = Sequence[Mapping[str, Any]]

COUNTED = (Status.OK, Status.DONE)
"""The statuses of rows that are in means, see `scored`."""

FORMAT = 1

NO_GROUP = "(none)"
"""The group of a case that the groups' file does not name."""

RESAMPLES, SEED = 2000, 0

_BLOCK = 2**20
"""Values drawn at once: all resamples of many rows would not fit into memory."""

FEW = 50
"""Tables show all files if there are no more than this."""

_FIRST = ("name", "group", *BY_COLUMN, "confused", "status", "note")
"""The order of columns in CSV; others come after."""


@dataclass(frozen=True)
class Distribution:
    """One metric over several files; the 95 % interval is None for a single value."""

    count: int
    mean: float
    low: float | None
    high: float | None
    median: float


@dataclass(frozen=True)
class Summary:
    """Many rows in numbers; everything but `files` and `statuses` is of those in `COUNTED`."""

    files: int
    scored: int
    statuses: dict[str, int]
    confused: int | None
    """Rows with target confusion (`Row.confused`); None where no row can say."""
    missing_estimates: int
    metrics: dict[str, Distribution]
    """By column, those with a value."""


@dataclass(frozen=True)
class Baseline:
    """The rows of an earlier report."""

    path: Path
    rows: Rows


@dataclass(frozen=True)
class Change:
    """What has changed since a baseline, over the cases that are "ok" in both."""

    path: str
    both: int
    only_here: int
    only_there: int
    metrics: dict[str, Distribution]
    """Of the differences, by column."""
    differences: list[dict[str, Any]]
    """For each case its name and, by column, how much has been gained."""


@dataclass(frozen=True)
class Report:
    """Everything that is known of some rows."""

    summary: Summary
    groups: dict[str, Summary]
    worst: list[str]
    baseline: Change | None
    rows: Rows


@dataclass(frozen=True)
class Groups:
    """Which group each case belongs to."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    by_file: Mapping[str, str] = field(default_factory=dict)
    """The same by the last part of the name, where all cases of that name are in one group."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What a page calls a case, from the column `title`, where there is one."""

    def of(self, name: str) -> str:
        """A case's group; the file and the case may differ in leading folders and suffix."""
        name = case_name(name)
        if name in self.by_name:
            return self.by_name[name]
        last = PurePath(name).name
        # A folder that only one of the two names has says nothing; two that differ do.
        return (self.by_name if last != name else self.by_file).get(last, NO_GROUP)


def read_groups(path: Path, column: str | None = None) -> Groups:
    """Read a CSV with a column `id` or `name`, and the groups in `column`.

    Without a `column`, the groups are in `group`, or in the only other one.

    Raises:
        ConfigError: it cannot be read, a case is in two groups, or a column is not clear.
    """
    files.check_exists(path)
    columns, rows = files.parse_csv(path, files.read_text(path), _is_case)
    key = next(filter(_is_case, columns), None)
    others = [name for name in columns if name != key]
    listed = ", ".join(others) or "none"
    if key is None:
        raise ConfigError(f"{path}: has no column id or name. Its columns: {listed}.")
    if column is None:
        column = "group" if "group" in others else others[0] if len(others) == 1 else None
    if column not in others:
        problem = (
            f"has no column {column}" if column else "does not say which column has the groups"
        )
        raise ConfigError(f"{path}: {problem}. Name one with --group-by: {listed}.")
    for name in (key, column):
        if columns.count(name) > 1:
            raise ConfigError(f"{path}: has two columns {name}. Remove one.")
    by_name: dict[str, str] = {}
    titles = {}
    for number, cells in rows:
        if isinstance(cells, str):
            raise ConfigError(f"{path} line {number}: {cells}")
        row = dict(zip(columns, cells, strict=True))
        name, group = case_name(row[key]), row[column]
        if group and by_name.setdefault(name, group) != group:
            raise ConfigError(f"{path}: {name} is in two groups. Remove one of its lines.")
        if row.get("title"):
            titles[name] = row["title"]
    by_file: dict[str, set[str]] = {}
    for name, group in by_name.items():
        by_file.setdefault(PurePath(name).name, set()).add(group)
    return Groups(by_name, {file: g.pop() for file, g in by_file.items() if len(g) == 1}, titles)


def _is_case(heading: str) -> bool:
    return heading.lower() in ("id", "name")


def report(
    rows: Rows,
    missing: Sequence[str] = (),
    groups: Groups | None = None,
    baseline: Baseline | None = None,
) -> Report:
    """Put everything that is known of rows into one report, other columns than METRICS' too.

    `missing` are the names of truths without an estimate; `groups` add "group" to every row.

    Raises:
        PairingError: the baseline has none of the cases.
    """
    # JSON has no numbers that are not finite.
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
    parts: dict[str, Summary] = {}
    if groups:
        rows = [{**row, "group": groups.of(row["name"])} for row in rows]
        absent = [groups.of(name) for name in missing]
        for group in sorted({*(row["group"] for row in rows), *absent}):
            members = [row for row in rows if row["group"] == group]
            parts[group] = summarise(members, absent.count(group))
    change = compare(rows, baseline) if baseline else None
    return Report(summarise(rows, len(missing)), parts, worst(rows), change, rows)


def summarise(rows: Rows, missing_estimates: int = 0) -> Summary:
    """Count and average rows."""
    ok = scored(rows)
    verdicts = [row["confused"] for row in ok if row.get("confused") is not None]
    return Summary(
        files=len(rows),
        scored=len(ok),
        statuses=dict(Counter(str(row["status"]) for row in rows).most_common()),
        confused=sum(verdicts) if verdicts else None,
        missing_estimates=missing_estimates,
        metrics=_distributions(ok),
    )


def scored(rows: Rows) -> Rows:
    """The rows that count in means: those "ok", or "done" where no row has scores of a truth."""
    by_status = [[row for row in rows if row["status"] == status] for status in COUNTED]
    return next(filter(None, by_status), [])


def numbers(rows: Rows, column: str) -> list[float]:
    """The values that a column has."""
    return [row[column] for row in rows if row.get(column) is not None]


def _distributions(rows: Rows) -> dict[str, Distribution]:
    values = {column: numbers(rows, column) for column in BY_COLUMN}
    return {column: distribution(of) for column, of in values.items() if of}


def distribution(values: Sequence[float]) -> Distribution:
    """The mean of at least one value, its 95 % bootstrap interval (percentiles), and the median.

    The interval is the same for the same values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    array, low, high = np.asarray(values, np.float64), None, None
    if len(array) > 1:
        rng, step = np.random.default_rng(SEED), max(1, _BLOCK // len(array))
        means = [
            array[rng.integers(len(array), size=(min(step, RESAMPLES - start), len(array)))].mean(1)
            for start in range(0, RESAMPLES, step)
        ]
        low, high = map(float, np.percentile(np.concatenate(means), [2.5, 97.5]))
    return Distribution(len(array), float(array.mean()), low, high, float(np.median(array)))


def worst(rows: Rows) -> list[str]:
    """Names of the ten worst rows, the very worst first, by `ranking`."""
    metric = ranking(rows)
    if metric is None:
        return []
    values = {row["name"]: row.get(metric.column) for row in scored(rows)}
    ranked = {name: metric.badness * value for name, value in values.items() if value is not None}
    return sorted(ranked, key=lambda name: -ranked[name])[:10]


def ranking(rows: Rows) -> Metric | None:
    """The metric that ranks rows: SI-SDRi, else the first of METRICS that can and has a value."""
    ok = scored(rows)
    able = [metric for metric in METRICS.values() if metric.badness]
    return next((m for m in (METRICS["si_sdr_i"], *able) if numbers(ok, m.column)), None)


def read_baseline(path: Path) -> Baseline:
    """Read what `score -o report.json` or `batch` wrote; anything else is refused."""
    advice = "Make one with: mcspex score ... -o report.json"
    files.check_exists(path)
    rows = read_rows(path, advice)
    if rows is None:
        raise ConfigError(f"{path}: is not a report of mcspex. {advice}")
    return Baseline(path, rows)


def read_rows(path: Path, advice: str) -> list[dict[str, Any]] | None:
    """The rows of a report in JSON; None if it is JSON of something else.

    Raises:
        ConfigError: it is damaged or of another version; `advice` says what to do.
    """
    try:
        document = json.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}). {advice}") from error
    if not isinstance(document, dict) or "format" not in document:
        return None
    if document["format"] != FORMAT:
        raise ConfigError(
            f"{path}: is a report in format {document['format']}, but this version of mcspex reads "
            f"format {FORMAT}. {advice}"
        )
    rows = document.get("scores")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ConfigError(f"{path}: its scores are damaged. {advice}")
    return rows


def read_batch(folder: Path) -> list[dict[str, Any]]:
    """The rows of the report that `mcspex batch` left in a folder; none without a report."""
    path = folder / "report.json"
    rows = read_rows(path, "Run mcspex batch again.") if path.is_file() else None
    return rows if rows and any("estimate" in row for row in rows) else []


def _is_row(row: Any) -> bool:
    """Whether a row has a name and a status, and finite numbers and texts, or None, elsewhere."""
    if not isinstance(row, dict):
        return False
    values = [row.get(key) for key in BY_COLUMN]
    texts = [row.get(key) for key in ("note", "estimate", "mixture", "truth")]
    return (
        isinstance(row.get("name"), str)
        and isinstance(row.get("status"), str)
        and all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values)
        and all(v is None or isinstance(v, str) for v in texts)
    )


def compare(rows: Rows, baseline: Baseline) -> Change:
    """What has changed since a baseline: differences by case, their means and intervals.

    An interval is over the differences of the same cases (a paired bootstrap).

    Raises:
        PairingError: no case is in both.
    """
    here, there = ({row["name"]: row for row in scored(of)} for of in (rows, baseline.rows))
    both = [name for name in here if name in there]
    if here and not both:
        raise PairingError(
            f"{baseline.path}: has none of these cases. Is it a report of this test set?"
        )
    differences = []
    for name in both:
        now, before = here[name], there[name]
        both_have = [c for c in BY_COLUMN if now.get(c) is not None and before.get(c) is not None]
        differences.append({"name": name, **{c: now[c] - before[c] for c in both_have}})
    return Change(
        str(baseline.path),
        both=len(both),
        only_here=len(here) - len(both),
        only_there=len(there) - len(both),
        metrics=_distributions(differences),
        differences=differences,
    )


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
    summary, change = report.summary, report.baseline
    shown = {column: metric for column, metric in BY_COLUMN.items() if column not in hidden}
    means = [metric for column, metric in shown.items() if column in summary.metrics]
    valued = [metric for column, metric in shown.items() if numbers(report.rows, column)]
    every = every or summary.files <= FEW or not report.worst
    parts = [_files(report, [m for m in valued if not m.is_of_input], every=every)]
    if summary.scored > 1:
        parts.append(_means("Means", means, summary.metrics))
    if report.groups:
        parts.append(_groups(report.groups, means))
    if change:
        title = (
            f"Change since {change.path} (files in both: {change.both}, only here: "
            f"{change.only_here}, only there: {change.only_there})"
        )
        parts.append(_means(title, means, change.metrics, sign="+"))
    return parts


def _files(report: Report, metrics: Sequence[Metric], *, every: bool) -> Table:
    by_name = {row["name"]: row for row in report.rows}
    rows = report.rows if every else [by_name[name] for name in report.worst]
    ranked = ranking(report.rows)
    differences = report.baseline.differences if ranked and report.baseline else []
    changes = {row["name"]: row.get(ranked.column) for row in differences if ranked}
    lines = []
    for row in rows:
        cells = [str(row["name"]), *(metric.text(row.get(metric.column)) for metric in metrics)]
        if ranked and changes:
            cells.append(ranked.text(changes.get(row["name"]), "+"))
        confused = row["status"] == Status.OK and row.get("confused")
        lines.append((*cells, "confused" if confused else str(row["status"])))
    change = ["change"] if changes else []
    headings = ("file", *(metric.heading for metric in metrics), *change, "status")
    if not every:
        by = ranked.heading if ranked else ""
        return Table(f"The worst {len(rows)} of {len(report.rows)} files by {by}", headings, lines)
    means = _mean_cells(report.summary, metrics)
    footer = (f"mean of {report.summary.scored}", *means, *("" for _ in change), "")
    return Table("", headings, lines, footer)


def _means(
    title: str, metrics: Sequence[Metric], spreads: Mapping[str, Distribution], sign: str = ""
) -> Table:
    rows = []
    for metric in metrics:
        if spread := spreads.get(metric.column):
            values = (spread.mean, spread.low, spread.high, spread.median)
            mean, low, high, median = (metric.text(value, sign) for value in values)
            between = "-" if spread.low is None else f"{low} to {high}"
            rows.append((metric.heading, mean, between, median, str(spread.count)))
    return Table(title, ("metric", "mean", "95 % interval", "median", "files"), rows)


def _groups(groups: Mapping[str, Summary], metrics: Sequence[Metric]) -> Table:
    rows = []
    for name, group in groups.items():
        confused = "-" if group.confused is None else str(group.confused)
        cells = _mean_cells(group, metrics)
        rows.append((name, str(group.files), str(group.scored), confused, *cells))
    headings = ("group", "files", "scored", "confused", *(metric.heading for metric in metrics))
    return Table("Means by group", headings, rows)


def _mean_cells(summary: Summary, metrics: Sequence[Metric]) -> list[str]:
    means = {column: spread.mean for column, spread in summary.metrics.items()}
    return [metric.text(means.get(metric.column)) for metric in metrics]


def remarks(report: Report) -> list[str]:
    """What a reader of the means has to know; nothing where all is well."""
    summary = report.summary
    others = {status: n for status, n in summary.statuses.items() if status != Status.OK}
    left_out, missing = sum(others.values()), summary.missing_estimates
    reasons = ", ".join(f"{number} {status}" for status, number in others.items())
    cut, damaged = (
        sum(bool(row.get(key)) for row in scored(report.rows)) for key in ("cut", "damaged")
    )
    loose = sum(row.get("group") == NO_GROUP for row in report.rows)
    short = "They were a little longer or shorter."
    where = "The column note of the JSON or CSV report says which."
    lines = (
        (left_out, f"not in the means: {left_out} of {summary.files} files ({reasons})."),
        (missing, f"truths without an estimate: {missing}. The means do not include them."),
        (cut, f"files cut to the length of their truth: {cut}. {short}"),
        (damaged, f"files that are damaged but could be read: {damaged}. {where}"),
        (loose, f"files in no group: {loose}. The tables show them as {NO_GROUP}."),
    )
    return [line for number, line in lines if number]


def confusion(report: Report) -> str:
    """How many files have target confusion, and which; "" if that is not known."""
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


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


def as_json(report: Report) -> str:
    """A report as JSON without NaN or infinity."""
    document = {"format": FORMAT, **vars(report)}
    document["scores"] = document.pop("rows")
    return json.dumps(document, default=asdict, indent=2, allow_nan=False) + "\n"


def as_csv(report: Report) -> str:
    """A report's rows as CSV: known columns first, those without any value left out."""
    keys = dict.fromkeys(key for row in report.rows for key in row)
    ordered = [key for key in _FIRST if key in keys] + [key for key in keys if key not in _FIRST]
    columns = [key for key in ordered if any(row.get(key) not in (None, "") for row in report.rows)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([errors.csv_cell(row.get(key)) for key in columns] for row in report.rows)
    return file.getvalue()


def as_markdown(report: Report) -> str:
    """A report's tables with all files, and the remarks, as Markdown."""
    parts = []
    for table in tables(report, every=True):
        heading, *rows = [map(errors.markdown, row) for row in (table.headings, *table.rows)]
        rule = ["---", *["---:"] * (len(table.headings) - 1)]
        footer = [f"**{errors.markdown(cell)}**" if cell else "" for cell in table.footer]
        parts.append(f"## {errors.markdown(table.title)}\n\n" if table.title else "")
        for row in (heading, rule, *rows, *([footer] if footer else [])):
            parts.append("| " + " | ".join(row) + " |\n")
        parts.append("\n")
    lines = [line for line in (*remarks(report), confusion(report)) if line]
    return "".join(parts) + "".join(f"- {errors.markdown(line)}\n" for line in lines)


REPORT_FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "json": (".json", as_json),
    "csv": (".csv", as_csv),
    "markdown": (".md", as_markdown),
}
"""By name, what a report can be written as: the suffix of a file, and how."""


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Refuse files for reports whose suffix names no format, inputs, and what cannot be written."""
    taken = set[object]().union(*(identities(path) for path in inputs if path))
    suffixes = [suffix for suffix, _ in REPORT_FORMATS.values()]
    for path in outputs:
        if path.suffix.lower() not in suffixes:
            endings = ", ".join(suffixes)
            raise OutputError(f"{path}: unknown format. The name must end in {endings}.")
        check_no_input(path, taken)
        files.check_output(path, overwrite=True)


def write(path: Path, report: Report) -> None:
    """Write a report in the format of the file's suffix, whole or not at all."""
    content = dict(REPORT_FORMATS.values())[path.suffix.lower()](report)
    files.make_folders(path.parent)
    with files.whole(path) as partial:
        # A file name that is not UTF-8 comes out as the bytes it is.
        partial.write_bytes(content.encode("utf-8", "surrogateescape"))
