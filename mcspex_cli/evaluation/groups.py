"""Which group each case belongs to, by a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mcspex_cli import files
from mcspex_cli.errors import ConfigError

NO_GROUP = "(none)"
"""The group of a case that the groups' file does not name."""


def case_name(path: str | Path) -> str:
    """The name that pairs a file with others: without the suffix of sound and `.target`."""
    path = Path(path)
    if path.suffix.lower() in files.SUFFIXES:
        path = path.with_suffix("")
    return str(path).removesuffix(".target")


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
        AudioError: there is no such file.
        ConfigError: it cannot be read, a case is in two groups, or it is not clear which column
            to take.
    """
    files.check_exists(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            titles = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error}).") from error
    key = next((title for title in titles if title.strip().lower() in ("id", "name")), None)
    others = [title for title in titles if title != key]
    if key is None:
        columns = ", ".join(titles) or "none"
        raise ConfigError(f"{path}: has no column id or name. Its columns: {columns}.")
    if column is None:
        column = "group" if "group" in others else others[0] if len(others) == 1 else None
    if column not in others:
        columns = ", ".join(others) or "none"
        problem = (
            f"has no column {column}" if column else "does not say which column has the groups"
        )
        raise ConfigError(f"{path}: {problem}. Name one with --group-by: {columns}.")
    by_name: dict[str, str] = {}
    names = {}
    for row in rows:
        name, group = case_name(row[key] or ""), row[column]
        if group and by_name.setdefault(name, group) != group:
            raise ConfigError(f"{path}: {name} is in two groups. Remove one of its lines.")
        if row.get("title"):
            names[name] = row["title"]
    by_file: dict[str, set[str]] = {}
    for name, group in by_name.items():
        by_file.setdefault(PurePath(name).name, set()).add(group)
    return Groups(by_name, {file: g.pop() for file, g in by_file.items() if len(g) == 1}, names)
