"""Which group each case belongs to, from a CSV that the user wrote."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mcspex_cli import files
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.pairing import plain_name

NONE = "(none)"
"""The group of what is in no row."""

_NAMES = ("id", "name")


@dataclass(frozen=True)
class Groups:
    """Group by case."""

    by_name: Mapping[str, str]
    by_file: Mapping[str, str]
    """The same by the last part of the name, where that is one group."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What a page calls a case, from the column `title`, where there is one."""

    def of(self, name: str) -> str:
        """A case's group; folders before its name, and its suffix, may be in either."""
        plain = plain_name(name)
        if plain in self.by_name:
            return self.by_name[plain]
        last = PurePath(plain).name
        # A folder that only one of the two has says nothing; two that differ do.
        return (self.by_name if last != plain else self.by_file).get(last, NONE)


def read_groups(path: Path, column: str | None = None) -> Groups:
    """Read a CSV with a column `id` or `name`, and the groups in another.

    Args:
        path: the CSV; its first line names the columns.
        column: the groups' column; by default `group`, or the only other one.

    Raises:
        AudioError: there is no such file.
        ConfigError: it cannot be read, or it is not clear which column to take.
    """
    files.check_exists(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            titles = list(reader.fieldnames or [])
            key = _key(path, titles)
            chosen = _chosen(path, [t for t in titles if t != key], column)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error}).") from error
    found = [(plain_name(row[key] or ""), row) for row in rows]
    by_name: dict[str, str] = {}
    for name, row in found:
        if row[chosen] and by_name.setdefault(name, row[chosen]) != row[chosen]:
            raise ConfigError(f"{path}: {name} is in two groups. Drop a row.")
    by_file: dict[str, set[str]] = {}
    for name, group in by_name.items():
        by_file.setdefault(PurePath(name).name, set()).add(group)
    headings = {name: row["title"] for name, row in found if row.get("title")}
    return Groups(by_name, {file: g.pop() for file, g in by_file.items() if len(g) == 1}, headings)


def _key(path: Path, titles: Sequence[str]) -> str:
    """The column with the cases' names."""
    for title in titles:
        if title.strip().lower() in _NAMES:
            return title
    raise ConfigError(f"{path}: no column id or name. It has {_listed(titles)}.")


def _chosen(path: Path, titles: Sequence[str], column: str | None) -> str:
    """The column with the groups."""
    if column is not None and column not in titles:
        raise ConfigError(f"{path}: no column {column} to group by. It has {_listed(titles)}.")
    if column is not None:
        return column
    if "group" in titles:
        return "group"
    if len(titles) != 1:
        raise ConfigError(f"{path}: which column to group by? --group-by {_listed(titles)}.")
    return titles[0]


def _listed(titles: Sequence[str]) -> str:
    """Titles in a message."""
    return ", ".join(titles) or "none"
