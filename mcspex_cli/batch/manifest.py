"""What belongs together: by a list (CSV, TSV, JSON lines, Kaldi's scp), or by the names of files.

```
mixture,reference,truth,id              a CSV, whose first line names its columns
mix/1.wav,refs/ann.wav,truth/1.wav,1
mix/2.wav,refs/bob.wav;refs/bob2.wav,,2
```

Paths in a manifest start from its folder. Without a manifest, a mixture's reference is found by its
name, by its folder's name, or by the part of its name that a pattern picks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mcspex_cli import files
from mcspex_cli.batch import storage
from mcspex_cli.errors import AudioError, PairingError, PlanError
from mcspex_cli.extraction.profile import SUFFIX

AUDIO, RESIDUAL, ACTIVITY, JOURNAL = "audio", "residual", "activity", "journal"
"""The folders in a batch's output folder, by what is in them."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "mixture": ("mix", "mixtures", "mixture_path", "noisy"),
    "reference": (
        *("references", "ref", "refs", "enrollment", "enrollments", "enrolment", "enrolments"),
        *("enroll", "enrollment_path", "reference_path"),
    ),
    "span": ("spans", "ref_span"),
    "truth": ("target", "target_path", "clean"),
    "output": ("estimate", "out"),
    "residual": (),
    "activity": (),
    "id": ("name", "mixture_id", "key", "utt", "utterance"),
}
"""The columns of a manifest, and what other programs call them."""

_logger = logging.getLogger("mcspex")

_HEADINGS = {name: column for column, others in COLUMNS.items() for name in (column, *others)}
_LISTS = ("reference", "span")

_FIELD = re.compile(r"\{(\w+)\}")
"""A field of a template like `{speaker}_{n}`."""

Line = tuple[int, dict[str, Any] | str]
"""A line's number, and its values by column, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One mixture and all that belongs to it; paths are text, since a plan may have 100,000."""

    id: str
    """Its name in reports and, with a suffix, in the output folder: "a/b"."""
    mixture: str
    references: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    """Spans of the mixture that are the reference, or part of it: "0:12-0:18.5"."""
    truth: str | None = None
    output: str = ""
    """The estimate's name below `audio/`; empty until it is planned, if it is the id's."""
    residual: str = ""
    """The residual's name below `residual/`, if one is to be written."""
    activity: str = ""
    """The name, below `activity/`, of the file that says when the voice speaks."""
    line: int = 0
    """The manifest's line; 0 if it is from no manifest."""
    length_s: float | None = None
    """The mixture's length; None if it is not known."""
    input_key: str = ""
    """Hashes of the mixture and references, as "a+b-c-d": of their sizes and times, of the same in
    whole seconds, of their absolute paths, and of their paths from the output folder
    (`plan.same_places`, `plan.unchanged`)."""

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """The task as a dry run shows it, with its outputs below a batch's `folder`."""
        outputs = {kind: storage.label(path) for kind, path in self.outputs(folder).items()}
        return {
            "id": self.id,
            "mixture": storage.label(self.mixture),
            "references": [storage.label(path) for path in self.references],
            "spans": self.spans,
            "truth": self.truth and storage.label(self.truth),
            "output": outputs.pop(AUDIO),
            **outputs,
            "seconds": self.length_s,
        }

    def names(self) -> dict[str, str]:
        """The names of the files that it writes, by the folder that they are in."""
        names = {AUDIO: self.output, RESIDUAL: self.residual, ACTIVITY: self.activity}
        return {kind: name for kind, name in names.items() if name}

    def outputs(self, folder: Path) -> dict[str, Path]:
        """The files that it writes below a batch's `folder`, by the same folders."""
        return {kind: folder / kind / name for kind, name in self.names().items()}


def read_manifest(path: Path, problems: list[str]) -> list[Task]:
    """Read a manifest in the format of its suffix.

    CSV and TSV have their columns' names in the first line, JSON lines have them as keys; a
    line of an scp is an id and a mixture. Headings are understood in any case; a CSV may be
    separated by semicolons or tabs. `problems` gets a line for each row that cannot be used; a
    warning names the columns that are not used.

    Raises:
        PairingError: the file is not there, not text, of another suffix or without lines, or
            has no column of mixtures.
    """
    label = storage.label(path)
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".scp": _scp}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise PairingError(f"{label}: a manifest's name ends in {', '.join(readers)}. Rename it.")
    try:
        text = storage.read(path, PairingError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = "cannot be read (not UTF-8 text). Save it again as UTF-8."
        raise PairingError(f"{label}: {problem}") from error
    tasks: list[Task] = []
    unknown: dict[str, None] = {}
    for line, row in read(label, text, unknown):
        try:
            if isinstance(row, str):
                raise PairingError(row)
            tasks.append(_task(os.path.dirname(path), line, row))  # noqa: PTH120
        except (AudioError, PairingError) as error:
            problems.append(f"{label} line {line}: {error}")
    if not tasks and not problems:
        raise PairingError(f"{label}: lists no files. Add some, or name another list.")
    if unknown:
        names = ", ".join(map(repr, unknown))
        _logger.warning(f"{label}: not used: {names}. The columns are {', '.join(COLUMNS)}.")
    return tasks


def _table(label: str, text: str, unknown: dict[str, None]) -> Iterator[Line]:
    usual = "\t" if label.lower().endswith(".tsv") else ","
    headings, rows = files.parse_csv(label, text, _is_mixture, usual, PairingError)
    if not any(map(_is_mixture, headings)):
        first = text.partition("\n")[0].strip()
        raise PairingError(
            f"{label}: has no column 'mixture' in its first line, which is {first[:80]!r}. "
            f"The columns are {', '.join(COLUMNS)}."
        )
    columns = _columns(label, headings, unknown)
    for number, cells in rows:
        if isinstance(cells, str):
            yield number, cells
        else:
            values = zip(columns, cells, strict=True)
            yield number, {column: cell for column, cell in values if column}


def _is_mixture(heading: str) -> bool:
    return _HEADINGS.get(heading.lower()) == "mixture"


def _json_lines(label: str, text: str, unknown: dict[str, None]) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line, object_pairs_hook=_unique) if line.strip() else None
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON ({error})."
            continue
        if isinstance(row, dict):
            values = zip(_columns(label, list(row), unknown), row.values(), strict=True)
            yield number, {key: value for key, value in values if key and value is not None}
        elif line.strip():
            yield number, 'not an object like {"mixture": "a.wav"}.'


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which no key may be there twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("it has a key twice")
    return row


def _scp(_: str, text: str, __: dict[str, None]) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split(maxsplit=1)
        if len(words) == 1:
            yield number, "needs an id and a file."
        elif words and words[1].rstrip().endswith("|"):
            yield number, "is a command, which is not run. Write its sound to a file and name that."
        elif words:
            yield number, {"id": words[0], "mixture": words[1].strip()}


def _columns(label: str, headings: Sequence[str], unknown: dict[str, None]) -> list[str]:
    """The columns that headings name, "" for one that is not used, which goes to `unknown`."""
    columns = [_HEADINGS.get(heading.strip().lower(), "") for heading in headings]
    first: dict[str, str] = {}
    for column, heading in zip(columns, headings, strict=True):
        if column and column in first:
            both = f"{first[column]!r} and {heading!r}"
            raise PairingError(f"{label}: {both} both name the {column}. Remove one.")
        first[column] = heading
        if not column and heading.strip().lower() != "reason":  # which failed.jsonl has
            unknown[heading.strip()] = None
    return columns


def _task(root: str, line: int, row: dict[str, Any]) -> Task:
    """A row's files, and its id: the one given, its output's name or its mixture's."""
    for column, value in row.items():
        for text in value if column in _LISTS and isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise PairingError(f"{column} is {text!r}, not text.")
            if text and not _can_be_a_name(text):
                raise PairingError(f"{column} {text!r} cannot be a file's name.")
    mixture, truth = row.get("mixture"), row.get("truth")
    if not mixture:
        raise PairingError("names no mixture. Name one, or drop the line.")
    # Many rows may name the same references: memory holds each path once.
    references = tuple(sys.intern(_resolve(root, name)) for name in _several(row.get("reference")))
    outside = storage.is_url(mixture) or os.path.isabs(mixture) or ".." in mixture.split("/")  # noqa: PTH117
    name = row.get("output") or (os.path.basename(mixture) if outside else mixture)  # noqa: PTH119
    return Task(
        id=row.get("id") or os.path.splitext(os.path.normpath(name))[0],  # noqa: PTH122
        mixture=_resolve(root, mixture),
        references=references,
        spans=_several(row.get("span")),
        truth=_resolve(root, truth) if truth else None,
        output=row.get("output") or "",
        residual=row.get("residual") or "",
        activity=row.get("activity") or "",
        line=line,
    )


def _resolve(root: str, text: str) -> str:
    if storage.is_url(text):
        return str(storage.to_path(text))
    home, *below = text.split("/")
    if home.startswith("~") and below and not os.path.lexists(os.path.join(root, home)):  # noqa: PTH118
        raise PairingError(f"{text}: {home} is not read as a home folder. Write the whole path.")
    path = os.path.join(root, text)  # noqa: PTH118
    return os.path.normpath(path) if storage.is_url(root) else path  # stores know no ".."


def _several(value: str | Sequence[str] | None) -> tuple[str, ...]:
    parts = value.split(";") if isinstance(value, str) else value or ()
    return tuple(part.strip() for part in parts if part.strip())


def _can_be_a_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return text.strip("/") not in ("", ".") and "\0" not in text


class References(NamedTuple):
    """Clips by the names under which mixtures find their reference."""

    source: Path
    clips: Mapping[str, tuple[str, ...]]
    """By path in the folder: one file for a path without suffix, all files for a folder's."""
    by_stem: Mapping[str, Sequence[str]]
    """For the last part of a name, all names in `clips` that end in it."""
    pattern: re.Pattern[str] | None
    template: str | None
    """The pattern as the user wrote it."""

    def find(self, name: str) -> tuple[str, ...]:
        """The clips for the mixture `name`, "a/b".

        With a pattern they are called what that finds for the speaker; else like the mixture's
        path, its stem, the folder that it is in, or that folder's name, in this order. A clip of
        its stem that is not among those of its folder does not fit better than they do.

        Raises:
            PairingError: there is none, or two that fit equally well.
        """
        name = files.normal(name)
        if self.pattern:
            match = self.pattern.search(name)
            if not match or match["speaker"] is None:
                raise PairingError(f"its name {name} does not match --pattern {self.template}.")
            names, advice = [match["speaker"]], "leave this mixture out."
        else:
            path = PurePosixPath(name)
            names = [name, path.name]
            if path.parent != PurePosixPath():
                names += [str(path.parent), path.parent.name]
            advice = (
                "say with --pattern, like {speaker}_{n}, which part of a mixture's name is its "
                "reference's."
            )
        for place, candidate in enumerate(names):
            called = self._called(candidate)
            if place == 1 and len(called) == 1:
                # A clip of the mixture's file name may be of another person than its folder.
                own = next((one for one in map(self._called, names[2:]) if len(one) == 1), called)
                if not set(self.clips[called[0]]) <= set(self.clips[own[0]]):
                    called = [*called, *own]
            if len(called) > 1:
                both = " and ".join(called[:2])
                raise PairingError(
                    f"{storage.label(self.source)} has both {both} for it. Rename one."
                )
            if called:
                return self.clips[called[0]]
        tried = " or ".join(dict.fromkeys(names))
        raise PairingError(
            f"{storage.label(self.source)} has no reference {tried}. Add it, or {advice}"
        )

    def _called(self, candidate: str) -> Sequence[str]:
        """The name in `clips` that is this one, else all that end in it."""
        return [candidate] if candidate in self.clips else self.by_stem.get(candidate, ())


def list_references(source: Path, pattern: str | None, problems: list[str]) -> References:
    """List the clips of a folder, or of an scp with an id for each; check the pattern.

    What cannot be used goes to `problems`.
    """
    compiled = None if pattern is None else compile_pattern(files.normal(pattern))
    paths = files_by_name(source, "references", problems, also=(SUFFIX,))
    folders: dict[str, list[str]] = defaultdict(list)
    if storage.is_folder(source):
        for name, path in paths.items():
            for parent in PurePosixPath(name).parents[:-1]:
                folders[str(parent)].append(path)
    for name, path in paths.items():
        for other in folders.get(name, ()):
            _note_same_name(path, other, problems)
    clips = {name: tuple(members) for name, members in folders.items()}
    clips |= {name: (path,) for name, path in paths.items()}
    by_stem = defaultdict(list)
    for name in clips:
        by_stem[PurePosixPath(name).name].append(name)
    return References(source, clips, by_stem, compiled, pattern)


def files_by_name(
    source: Path, kind: str, problems: list[str], also: Collection[str] = ()
) -> dict[str, str]:
    """The files of a folder by their paths in it without suffix, or those of an scp by their ids.

    All names are `normal`: look up a normal name. Of several files of one name the first counts,
    and `problems` gets a line for each other.
    """
    paths: dict[str, str] = {}
    storage.check_exists(source)
    if storage.is_folder(source):
        for path in storage.find(source, also=also):
            name = files.normal(path.relative_to(source).with_suffix("").as_posix())
            first = paths.setdefault(name, str(path))
            if first != str(path):
                _note_same_name(first, str(path), problems)
    elif source.suffix.lower() == ".scp":
        for task in read_manifest(source, problems):
            if files.normal(task.id) in paths:
                twice = f"{task.id} is there twice. Remove one line."
                problems.append(f"{storage.label(source)} line {task.line}: {twice}")
            paths[files.normal(task.id)] = task.mixture
    else:
        advice = "--ref names one voice for all." if kind == "references" else "Name one of these."
        raise PairingError(
            f"{storage.label(source)}: is neither a folder of {kind} nor an scp. {advice}"
        )
    return paths


def refuse(problems: Sequence[str]) -> None:
    """Raise a `PlanError` with all that is wrong, in the order of names and numbers, if any is."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        ordered = sorted(problems, key=lambda text: re.sub(r"\d+", lambda n: n[0].zfill(20), text))
        raise PlanError(f"{count}, see above. Nothing was started.", ordered)


def _note_same_name(first: str, second: str, problems: list[str]) -> None:
    both = f"{storage.label(first)} and {storage.label(second)}"
    problems.append(f"{both}: both have the same name. Rename one.")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Make a regular expression, with a group `speaker`, of a template or expression.

    `{speaker}_{n}` matches a mixture's file name without its suffix, each field any letters
    up to the next fixed one. Anything else is a regular expression for its path.

    Raises:
        PairingError: it is not a regular expression, or does not say where the speaker is.
    """
    fields, text = _FIELD.findall(pattern), pattern
    if "speaker" in fields:
        if len(set(fields)) < len(fields) or not all(map(str.isidentifier, fields)):
            raise PairingError(
                f"--pattern {pattern}: names a field twice, or by a number. Give each field a name "
                "of its own, as in {speaker}_{n}."
            )
        fixed = map(re.escape, _FIELD.split(pattern)[::2])
        groups = [*(f"(?P<{field}>[^/]+?)" for field in fields), "$"]
        text = "(?:^|/)" + "".join(part + group for part, group in zip(fixed, groups, strict=True))
    try:
        compiled = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise PairingError(
            f"--pattern {pattern}: is not a regular expression ({error})."
        ) from error
    if "speaker" not in compiled.groupindex:
        raise PairingError(
            f"--pattern {pattern}: does not say where the speaker is. Write it like "
            "{speaker}_{n} or (?P<speaker>[a-z]+)-.*"
        )
    return compiled
