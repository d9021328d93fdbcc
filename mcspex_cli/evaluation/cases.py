"""Cases: which files belong together under one name, and which group a case is in."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.summary import read_rows

TRANSCRIPTS = (".txt", ".vtt")
"""The formats of transcripts, by the suffix of the file."""


NO_GROUP = "(none)"
"""The group of a case that the groups' file does not name."""


def case_name(path: str | Path) -> str:
    """The name that pairs a file with others: without the suffix of sound and `.target`."""
    path = Path(path)
    if path.suffix.lower() in files.SUFFIXES:
        path = path.with_suffix("")
    return str(path).removesuffix(".target")


@dataclass(frozen=True)
class Pairing:
    """An estimate and the files that it is compared with, under one name."""

    name: str
    estimate: Path
    target: Path | None = None
    mixture: Path | None = None
    interferers: tuple[Path, ...] = ()
    """The other talkers of the mixture, each alone."""
    references: tuple[Path, ...] = ()
    """Clips and profiles of the voice."""
    transcript: str = ""
    """What the target says."""
    presence: float | None = None
    """What the extraction measured."""


def pair(
    estimates: Path,
    truth: Path | None = None,
    mixtures: Path | None = None,
    interferers: Sequence[Path] = (),
) -> list[Pairing]:
    """Pair a file with a file, or each estimate of a folder with the files of its `case_name`.

    Raises:
        PairingError: a folder is compared with a file, two files of a folder have one name, or
            a file is missing in one of the other folders.
    """
    others = [path for path in (truth, mixtures, *interferers) if path]
    if any(estimates.is_dir() != other.is_dir() for other in others):
        raise PairingError(
            "estimates, truth, mixtures and interferers must be all files or all folders."
        )
    if not estimates.is_dir():
        return [Pairing(estimates.name, estimates, truth, mixtures, tuple(interferers))]
    named_estimates = files_by_name(estimates)
    if not named_estimates:
        raise PairingError(f"{estimates}: no sound files in this folder.")
    folders = {folder: files_by_name(folder) for folder in others}
    for name, path in named_estimates.items():
        for folder, named in folders.items():
            if name not in named:
                raise PairingError(
                    f"{path}: no file {name} (.wav, .flac, ...) in {folder}. Add it, or remove "
                    "the estimate."
                )
    return [
        Pairing(
            name,
            path,
            folders[truth][name] if truth else None,
            folders[mixtures][name] if mixtures else None,
            tuple(folders[folder][name] for folder in interferers),
        )
        for name, path in named_estimates.items()
    ]


def missing_estimates(estimates: Path, truth: Path) -> list[str]:
    """Names of the truths without an estimate; none where both are files.

    Raises:
        PairingError: two files of a folder have one name.
    """
    if not estimates.is_dir():
        return []
    return sorted(files_by_name(truth).keys() - files_by_name(estimates).keys())


def files_by_name(folder: Path) -> dict[str, Path]:
    """All recordings under a folder by `case_name`.

    Raises:
        PairingError: two have one name.
    """
    named: dict[str, Path] = {}
    for path in files.find(folder):
        name = case_name(path.relative_to(folder))
        if name in named:
            raise PairingError(f"{named[name]} and {path}: both have the name {name}. Move one.")
        named[name] = path
    return named


def add_transcripts(pairings: Sequence[Pairing], place: Path) -> list[Pairing]:
    """Give each pairing the transcript of its name: `place` is a folder, or the one file.

    Raises:
        AudioError: there is no such place.
        ConfigError: a transcript cannot be read.
        PairingError: a transcript is missing, or two have one name.
    """
    files.check_exists(place)
    if not place.is_dir():
        if len(pairings) > 1:
            raise PairingError(f"{place}: is a file. Name a folder with a transcript for each.")
        return [replace(pairings[0], transcript=read_transcript(place))]
    named: dict[str, Path] = {}
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() in TRANSCRIPTS and path.is_file():
            name = case_name(path.relative_to(place).with_suffix(""))
            if name in named:
                raise PairingError(
                    f"{named[name]} and {path}: both have the name {name}. Move one."
                )
            named[name] = path
    texts = []
    for pairing in pairings:
        name = case_name(pairing.name)
        if name not in named:
            suffixes = ", ".join(TRANSCRIPTS)
            raise PairingError(
                f"{pairing.estimate}: no transcript {name} ({suffixes}) in {place}. Add it, or "
                "remove the estimate."
            )
        texts.append(replace(pairing, transcript=read_transcript(named[name])))
    return texts


def read_transcript(path: Path) -> str:
    """Read the words of a text file, or of a WebVTT file without its times, tags and notes.

    Raises:
        ConfigError: it is not text, or its suffix says WebVTT and it is not.
    """
    if path.suffix.lower() not in TRANSCRIPTS:
        raise ConfigError(f"{path}: is no transcript. Its name must end in .txt or .vtt.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}).") from error
    if path.suffix.lower() == ".txt":
        return content
    try:
        import webvtt
    except ImportError as error:
        raise ConfigError(
            f"{path}: webvtt cannot be imported. Run: pip install 'mcspex[transcripts]'"
        ) from error
    try:
        return "\n".join(caption.text for caption in webvtt.from_string(content).captions)
    except webvtt.errors.MalformedFileError as error:
        raise ConfigError(f"{path}: is not WebVTT ({error}). Name plain text .txt.") from error


def add_presences(pairings: Sequence[Pairing], estimates: Path) -> list[Pairing]:
    """Give pairings the presence that `mcspex batch` measured, if it made these estimates.

    From a file alone it cannot be told: it also takes the level that the network chose.

    Raises:
        ConfigError: the batch's report is damaged.
    """
    known: dict[Path, float | None] = {}
    for folder in estimates.resolve().parents[:2]:
        path = folder / "report.json"
        for row in (path.is_file() and read_rows(path, "Run mcspex batch again.")) or ():
            if isinstance(row.get("estimate"), str) and isinstance(row.get("presence"), float):
                known[(folder / row["estimate"]).resolve()] = row["presence"]
    return [replace(one, presence=known.get(one.estimate.resolve())) for one in pairings]


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
