"""Many scores together: means with intervals, groups, changes; as tables, sentences and files."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mcspex_cli import errors, files
from mcspex_cli.errors import ConfigError, OutputError, PairingError, name_some
from mcspex_cli.evaluation.metrics import BY_COLUMN, METRICS, Metric
from mcspex_cli.evaluation.pairing import case_name, case_names, is_batch
from mcspex_cli.evaluation.scoring import SHIFTED, Status

_logger = logging.getLogger("mcspex")

Rows = Sequence[Mapping[str, Any]]
"""The rows of a report, by column. All have "name", "status", and some of these, or None there:

- `scoring.Score.to_dict`: "note", a value for each of `metrics.BY_COLUMN`, "confused", "flipped",
  "cut", "damaged";
- from a batch: the result (`extraction.job.Result.to_dict`, which also measures some of these
  values), "mixture", "references", "span", "truth", "estimate", "residual" and "activity";
- with groups: "group".
"""

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**20
"""In values: all resamples of many rows would not fit into memory."""

NO_GROUP = "(none)"
"""The group of a case that the groups' file does not name."""

FORMAT = 1
"""The version of reports in JSON."""

LARGEST = 1e6
"""No score is beyond it."""

_FILES_OF_ROWS = ("estimate", "mixture", "truth")
"""The files that a batch's rows name, if they have them."""

_FEW = 50
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
    """Many rows in numbers."""

    files: int
    scored: int
    """Rows that are in the means (`in_means`)."""
    statuses: dict[str, int]
    """How many rows have each status."""
    confused: int | None
    """Of those in the means, rows with target confusion; None where no row can say."""
    missing_estimates: int
    """Truths that have no estimate, and so no row (`Report.missing`)."""
    metrics: dict[str, Distribution]
    """By column, those with a value."""


def summarise(rows: Rows, missing_estimates: int = 0) -> Summary:
    """Count and average rows."""
    ok = in_means(rows)
    verdicts = [row["confused"] for row in ok if row.get("confused") is not None]
    return Summary(
        files=len(rows),
        scored=len(ok),
        statuses=dict(Counter(str(row["status"]) for row in rows).most_common()),
        confused=sum(verdicts) if verdicts else None,
        missing_estimates=missing_estimates,
        metrics=distributions(ok),
    )


def in_means(rows: Rows) -> Rows:
    """The rows that count in means."""
    status = status_in_means(rows)
    return [row for row in rows if row["status"] == status]


def status_in_means(rows: Rows) -> str:
    """The status of rows that count in means: "ok" or, if no row has it, that without a truth."""
    is_scored = any(row["status"] == Status.OK for row in rows)
    return Status.OK if is_scored else Status.DONE


def refusals(rows: Rows) -> list[str]:
    """Why files could not be scored, a sentence for each."""
    return [row["note"] for row in rows if row["status"] in Status.REFUSED]


def values_of(rows: Rows, column: str) -> list[float]:
    """The values that a column has."""
    return [row[column] for row in rows if row.get(column) is not None]


def distributions(rows: Rows) -> dict[str, Distribution]:
    """By column, those that have a value in a row."""
    values = {column: values_of(rows, column) for column in BY_COLUMN}
    return {column: distribution(several) for column, several in values.items() if several}


def distribution(values: Sequence[float]) -> Distribution:
    """The mean of at least one value, its 95 % bootstrap interval (percentiles), and the median.

    The interval is the same for the same values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    array, count = np.asarray(values, np.float64), len(values)
    low = high = None
    if count > 1:
        rng = np.random.default_rng(0)
        at_once = max(1, _DRAWN_AT_ONCE // count)
        sizes = [min(at_once, _RESAMPLES - done) for done in range(0, _RESAMPLES, at_once)]
        means = [array[rng.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
        low, high = map(float, np.percentile(np.concatenate(means), [2.5, 97.5]))
    return Distribution(count, float(array.mean()), low, high, float(np.median(array)))


def worst(rows: Rows) -> list[str]:
    """Names of the ten worst rows, the very worst first, by `ranking`."""
    metric = ranking(rows)
    if metric is None:
        return []
    ranked = [row for row in in_means(rows) if row.get(metric.column) is not None]
    ranked.sort(key=lambda row: metric.badness * row[metric.column], reverse=True)
    return [row["name"] for row in ranked[:10]]


def ranking(rows: Rows) -> Metric | None:
    """The metric that ranks rows: SI-SDRi, else the first of METRICS that can and has a value."""
    ok = in_means(rows)
    able = [metric for metric in METRICS.values() if metric.badness]
    return next((m for m in (METRICS["si_sdr_i"], *able) if values_of(ok, m.column)), None)


@dataclass(frozen=True)
class Groups:
    """Which group each case belongs to."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    """What a page calls a case, from the column `title`, where there is one."""
    path: Path = Path()
    """The file that says so."""

    @cached_property
    def by_file(self) -> dict[str, str]:
        """The same by the last part of the name, where all cases of that name are in one group."""
        groups: dict[str, set[str]] = {}
        for name, group in self.by_name.items():
            groups.setdefault(PurePath(name).name, set()).add(group)
        return {file: several.pop() for file, several in groups.items() if len(several) == 1}

    def of(self, name: str) -> str:
        """The group of the same name or, if only one of two names has a folder, of its last part.

        So "x/a" and "a" are one case, "x/a" and "y/a" are two.
        """
        name = name if name in self.by_name else case_name(name)
        last = PurePath(name).name
        others = self.by_name if last != name else self.by_file
        return self.by_name.get(name) or others.get(last, NO_GROUP)


def read_groups(path: Path, column: str | None = None) -> Groups:
    """Read a CSV with a column `id` or `name`, and the groups in `column`.

    Without a `column`, the groups are in `group`, or in the only other one.

    Raises:
        AudioError: there is no such file.
        ConfigError: it cannot be read, a case is in two groups, or a column is not clear.
    """
    files.check_exists(path)
    columns, rows = files.parse_csv(path, files.read_text(path), _is_case)
    key = next(filter(_is_case, columns), None)
    others = [name for name in columns if name != key]
    listed = ", ".join(others) or "none"
    if key is None:
        raise ConfigError(f"{path}: has no column id or name. Its columns: {listed}.")
    if not others:
        raise ConfigError(f"{path}: has no column but {key}. Add one with the groups.")
    if column is None and ("group" in others or len(others) == 1):
        column = "group" if "group" in others else others[0]
    if column not in others:
        problem = (
            f"has no column {column}" if column else "does not say which column has the groups"
        )
        raise ConfigError(f"{path}: {problem}. Name one with --group-by: {listed}.")
    for name in (key, column):
        if columns.count(name) > 1:
            raise ConfigError(f"{path}: has two columns {name}. Remove one.")
    cases = []
    for number, cells in rows:
        if isinstance(cells, str):
            raise ConfigError(f"{path} line {number}: {cells}")
        cases.append(dict(zip(columns, cells, strict=True)))
    by_name: dict[str, str] = {}
    titles: dict[str, str] = {}
    for name, row in zip(case_names([row[key] for row in cases]), cases, strict=True):
        group = row[column]
        if group and by_name.setdefault(name, group) != group:
            raise ConfigError(f"{path}: {name} is in two groups. Remove one of its lines.")
        if row.get("title"):
            titles[name] = row["title"]
    return Groups(by_name, titles, path)


def _is_case(heading: str) -> bool:
    return heading.lower() in ("id", "name")


@dataclass(frozen=True)
class Baseline:
    """The rows of an earlier report."""

    path: Path
    rows: Rows


@dataclass(frozen=True)
class Change:
    """What has changed since a baseline, over the cases that are in the means of both."""

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
    """Names of the ten worst rows."""
    change: Change | None
    """Since a baseline, if there is one."""
    rows: Rows
    missing: Sequence[str] = ()
    """Names of the truths without an estimate."""


def make_report(
    rows: Rows,
    missing: Sequence[str] = (),
    groups: Groups | None = None,
    baseline: Baseline | None = None,
) -> Report:
    """Build a report; columns that are not metrics are kept, and non-finite values become None.

    `missing` are the names of truths without an estimate; `groups` add "group" to every row.
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
    change = _change(rows, baseline) if baseline else None
    return Report(summarise(rows, len(missing)), parts, worst(rows), change, rows, missing)


def _change(rows: Rows, baseline: Baseline) -> Change:
    """The differences by case, and their means with intervals (a paired bootstrap)."""
    here, there = (
        {files.normal(row["name"]): row for row in in_means(several)}
        for several in (rows, baseline.rows)
    )
    both = [name for name in here if name in there]
    differences = []
    for name in both:
        now, before = here[name], there[name]
        both_have = [c for c in BY_COLUMN if now.get(c) is not None and before.get(c) is not None]
        differences.append({"name": now["name"], **{c: now[c] - before[c] for c in both_have}})
    return Change(
        str(baseline.path),
        both=len(both),
        only_here=len(here) - len(both),
        only_there=len(there) - len(both),
        metrics=distributions(differences),
        differences=differences,
    )


def read_baseline(path: Path) -> Baseline:
    """Read what `score -o report.json` or `batch` wrote; anything else is refused."""
    advice = "Make one with: mcspex score ... -o report.json"
    files.check_exists(path)
    rows = read_rows(path, advice)
    if rows is None:
        raise ConfigError(f"{path}: is not a report of mcspex. {advice}")
    return Baseline(path, rows)


def check_baseline(baseline: Baseline, names: Iterable[str]) -> None:
    """Refuse, with a PairingError, a baseline that has none of these cases."""
    known = {files.normal(row["name"]) for row in baseline.rows}
    if known.isdisjoint(map(files.normal, names)):
        raise PairingError(
            f"{baseline.path}: has none of these cases. Is it a report of this test set?"
        )


def read_rows(path: Path, advice: str) -> list[dict[str, Any]] | None:
    """The rows of a report in JSON; None if it is JSON of something else.

    Raises:
        ConfigError: it is damaged or of another version; `advice` says what to do.
    """
    try:
        document = json.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}). {advice}") from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        return None
    if document["format"] != FORMAT:
        raise ConfigError(
            f"{path}: is a report in format {document['format']}, but this version of mcspex reads "
            f"format {FORMAT}. {advice}"
        )
    rows = document.get("scores")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ConfigError(f"{path}: its scores are damaged. {advice}")
    for name, times in Counter(row["name"] for row in rows).items():
        if times > 1:
            raise ConfigError(f"{path}: has {name} {times} times. {advice}")
    return rows


def read_batch(folder: Path) -> list[dict[str, Any]]:
    """The rows of the report that `mcspex batch` left in a folder; none without a report.

    A row whose estimate, mixture or truth is newer than the report loses what was measured.
    """
    path = folder / "report.json"
    rows = read_rows(path, "Run mcspex batch again.") if path.is_file() else None
    if not rows or not any("estimate" in row for row in rows):
        return []
    replaced = [row for row in rows if _is_replaced(folder, row, path.stat().st_mtime_ns)]
    for row in replaced:
        kept = {key: row.get(key) for key in ("name", *_FILES_OF_ROWS)}
        row.clear()
        row.update(kept, status=Status.DONE)
    if replaced:
        _logger.warning(
            f"{path}: is older than the files of {name_some([row['name'] for row in replaced])}, "
            "so what it says of them is not used. Run mcspex batch again; if you have copied the "
            "folder, copy it with its times (cp -a)."
        )
    return rows


def _is_replaced(folder: Path, row: Mapping[str, Any], report_ns: int) -> bool:
    """Whether a file of a finished row is newer than its report."""
    if row["status"] in (Status.FAILED, Status.PENDING):
        return False
    for key in _FILES_OF_ROWS:
        with suppress(OSError):
            if row.get(key) and (folder / row[key]).stat().st_mtime_ns > report_ns:
                return True
    return False


def read_presences(estimates: Path) -> dict[Path, float | None]:
    """The presences that `mcspex batch` measured, by real path, if it made these estimates.

    From a file alone presence cannot be told: it also takes the level that the network chose.
    """
    above = estimates.resolve().parents
    # The report is beside the folder audio/, in which there may be others.
    beside_audio = [folder.parent for folder in above if folder.name == "audio"]
    return {
        files.real_path(folder / row["estimate"]): row.get("presence")
        for folder in dict.fromkeys((*above[:2], *beside_audio))
        for row in read_batch(folder)
        if row.get("estimate")
    }


def _is_row(row: Any) -> bool:
    """Whether its name and status are text, and other known columns of the right type or None."""
    if not isinstance(row, dict):
        return False
    values = [row.get(key) for key in BY_COLUMN]
    texts = [row.get(key) for key in ("note", *_FILES_OF_ROWS)]
    return (
        isinstance(row.get("name"), str)
        and isinstance(row.get("status"), str)
        and row.get("confused") in (None, True, False)
        and all(v is None or (type(v) in (int, float) and abs(v) <= LARGEST) for v in values)
        and all(v is None or (isinstance(v, str) and "\0" not in v) for v in texts)
    )


@dataclass(frozen=True)
class Table:
    """Text for people; `footer` is empty or has a cell for each heading."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    footer: tuple[str, ...] = ()


def tables(report: Report, *, every: bool = False, only_of_truth: bool = False) -> list[Table]:
    """Files (the worst ten of more than `_FEW`, unless `every`), means, groups, baseline.

    With `only_of_truth`, metrics that need no truth are left out.
    """
    summary, change = report.summary, report.change
    shown = [m for m in BY_COLUMN.values() if "target" in m.needs or not only_of_truth]
    means = [metric for metric in shown if metric.column in summary.metrics]
    valued = [metric for metric in shown if values_of(report.rows, metric.column)]
    every = every or summary.files <= _FEW or not report.worst
    parts = [_files(report, [m for m in valued if not m.is_of_mixture], every=every)]
    if summary.scored > 1:
        parts.append(_means("Means", means, summary.metrics))
    if report.groups:
        parts.append(_groups(report.groups, means))
    if change and change.metrics:
        title = (
            f"Change since {change.path} (files in both: {change.both}, only here: "
            f"{change.only_here}, only there: {change.only_there})"
        )
        parts.append(_means(title, means, change.metrics, sign="+"))
    return parts


def _files(report: Report, metrics: Sequence[Metric], *, every: bool) -> Table:
    rows = report.rows
    if not every:
        by_name = {row["name"]: row for row in rows}
        rows = [by_name[name] for name in report.worst]
    ranked = ranking(report.rows)
    changes: dict[str, float | None] = {}
    if ranked and report.change:
        changes = {row["name"]: row.get(ranked.column) for row in report.change.differences}
    lines = []
    for row in rows:
        cells = [str(row["name"]), *(metric.text(row.get(metric.column)) for metric in metrics)]
        if ranked and changes:
            cells.append(ranked.text(changes.get(row["name"]), "+"))
        confused = row["status"] == Status.OK and row.get("confused")
        lines.append((*cells, "confused" if confused else str(row["status"])))
    change = ["change"] if changes else []
    headings = ("file", *(metric.heading for metric in metrics), *change, "status")
    if ranked and not every:
        title = f"The worst {len(rows)} of {len(report.rows)} files by {ranked.heading}"
        return Table(title, headings, lines)
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


def remarks(report: Report, metrics: Sequence[str] = ()) -> list[str]:
    """What a reader of the means has to know; nothing where all is well.

    `metrics` are the names of those that were to be computed.
    """
    summary, change, missing = report.summary, report.change, report.missing
    ok, counted = in_means(report.rows), status_in_means(report.rows)
    others = {status: n for status, n in summary.statuses.items() if status != counted}
    left_out = sum(others.values())
    reasons = ", ".join(
        f"{number} {'without a truth' if status == Status.DONE else status}"
        for status, number in others.items()
    )
    cut, damaged = (sum(bool(row.get(key)) for row in ok) for key in ("cut", "damaged"))
    shifted = sum(SHIFTED in (row.get("note") or "") for row in ok)
    loose = sum(row.get("group") == NO_GROUP for row in report.rows)
    where = "The column note of the JSON or CSV report says which."
    lines = (
        (left_out, f"not in the means: {left_out} of {summary.files} files ({reasons})."),
        (
            len(missing),
            f"truths without an estimate: {len(missing)} ({name_some(missing)}). The means do not "
            "include them.",
        ),
        (cut, f"files cut to equal lengths: {cut}. Their lengths differed a little."),
        (damaged, f"files that are damaged but could be read: {damaged}. {where}"),
        (
            shifted,
            f"files not aligned with their truth, which counts as an error: {shifted}. {where}",
        ),
        (loose, f"files in no group: {loose}. The tables show them as {NO_GROUP}."),
    )
    texts = [line for number, line in lines if number]
    chosen = [METRICS[name] for name in metrics if Status.OK in summary.statuses]
    empty = [metric for metric in chosen if metric.column not in summary.metrics]
    for needs_truth, page in ((True, "batch-and-score"), (False, "scores-without-truth")):
        if labels := [m.label for m in empty if ("target" in m.needs) == needs_truth]:
            advice = f"docs/{page}.md explains why a value may be missing."
            texts.append(f"no file has a value of {', '.join(labels)}. {advice}")
    if change and not change.metrics:
        texts.append(f"{change.path}: no case has a value in it and here. Nothing is compared.")
    return texts


def confusion_text(report: Report) -> str:
    """How many files of those that can be judged have target confusion, and which; "" of none."""
    judged = [row for row in in_means(report.rows) if row.get("confused") is not None]
    if not judged:
        return ""
    names = [row["name"] for row in judged if row["confused"]]
    share = 100 * len(names) / len(judged)
    which = f": {name_some(names)}" if names else ""
    return f"target confusion: {len(names)} of {len(judged)} ({share:.1f} %){which}"


def absences_text(rows: Rows) -> str:
    """Which voices are probably not in their mixtures; "" for none."""
    judged = [row for row in rows if row.get("present") is not None]
    names = [row["name"] for row in judged if not row["present"]]
    verb = "is" if len(names) == 1 else "are"
    counts = f"{len(names)} of {len(judged)} voices {verb} probably absent"
    return f"{counts}: {name_some(names)}" if names else ""


def as_json(report: Report) -> str:
    """A report as JSON without NaN or infinity."""
    document = {
        "format": FORMAT,
        "summary": report.summary,
        "groups": report.groups,
        "worst": report.worst,
        "baseline": report.change,
        "scores": report.rows,
    }
    return json.dumps(document, default=asdict, indent=2, allow_nan=False) + "\n"


def as_csv(report: Report) -> str:
    """A report's rows as CSV: known columns first, those without any value left out."""
    keys = dict.fromkeys((*_FIRST, *(key for row in report.rows for key in row)))
    keys.pop("segments", None)  # too long for a cell
    columns = [key for key in keys if any(row.get(key) not in (None, "") for row in report.rows)]
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
    lines = [line for line in (*remarks(report), confusion_text(report)) if line]
    return "".join(parts) + "".join(f"- {errors.markdown(line)}\n" for line in lines)


REPORT_FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "json": (".json", as_json),
    "csv": (".csv", as_csv),
    "markdown": (".md", as_markdown),
}
"""By name, what a report can be written as: the suffix of a file, and how. A row is all that a new
format needs."""


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Refuse paths that are inputs, a batch's, named twice, of unknown suffix or not writable."""
    taken = files.identities(*filter(None, inputs))
    before = set[object]()
    suffixes = [suffix for suffix, _ in REPORT_FORMATS.values()]
    for path in outputs:
        files.check_suffix(path, suffixes)
        files.check_no_input([path], taken)
        content = {"report": "report", "run": "record"}.get(path.stem)
        if content and is_batch(path.parent):
            raise OutputError(f"{path}: is the {content} of a batch. Choose another -o.")
        if files.identities(path) & before:
            raise OutputError(f"{path}: is named twice. Leave out one -o.")
        files.check_output(path, overwrite=True)
        before |= files.identities(path)


def write(path: Path, report: Report) -> None:
    """Write a report in the format of the file's suffix, whole or not at all."""
    content = dict(REPORT_FORMATS.values())[path.suffix.lower()](report)
    files.make_folders(path.parent)
    with files.whole(path) as partial:
        # A file name that is not UTF-8 comes out as the bytes it is.
        partial.write_bytes(content.encode("utf-8", "surrogateescape"))
