"""Which reference belongs to which mixture: by its name, its folder's name, or a pattern."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mcspex_cli.batch import storage
from mcspex_cli.batch.manifest import read_scp
from mcspex_cli.errors import PairingError
from mcspex_cli.extraction.profile import SUFFIX

_FIELD = re.compile(r"\{(\w+)\}")
"""A field of a template like `{speaker}_{n}`."""


class References(NamedTuple):
    """Clips by the names that mixtures may ask for them by."""

    source: Path
    clips: Mapping[str, Sequence[str]]
    """A file by its path in the folder without suffix, a folder by its own."""
    by_stem: Mapping[str, Sequence[str]]
    """The names in `clips` that end in a stem."""
    pattern: re.Pattern[str] | None
    template: str
    """The pattern as the user wrote it."""

    def find(self, name: str) -> str:
        """The name in `clips` for the mixture `name`, "a/b".

        With a pattern it is what that finds for the speaker; else the mixture's path, its
        stem, the folder that it is in, or that folder's name, in this order.

        Raises:
            PairingError: there is none, or two that fit equally well.
        """
        path = PurePosixPath(name)
        if self.pattern:
            match = self.pattern.search(name)
            if not match or match["speaker"] is None:
                raise PairingError(f"its name {name} does not match --pattern {self.template}.")
            names = [match["speaker"]]
        else:
            names = [name, path.name]
            if path.parent != PurePosixPath():
                names += [str(path.parent), path.parent.name]
        for candidate in names:
            if candidate in self.clips:
                return candidate
            alike = self.by_stem.get(candidate, ())
            if len(alike) > 1:
                both = " and ".join(alike[:2])
                raise PairingError(f"{self.source} has both {both} for it. Rename one.")
            if alike:
                return alike[0]
        tried = " or ".join(dict.fromkeys(names))
        hint = (
            "Add it, or leave this mixture out."
            if self.pattern
            else "Add it, or say with --pattern, like {speaker}_{n}, which part of a mixture's "
            "name is its reference's."
        )
        raise PairingError(f"{self.source} has no reference {tried}. {hint}")


def list_references(
    source: Path, pattern: str | None, problems: list[str], warnings: list[str]
) -> References:
    """List the clips of a folder, or of an scp with an id for each; check the pattern.

    What cannot be used goes to `problems`, links that were not followed to `warnings`.

    Raises:
        PairingError: `source` is neither, or the pattern cannot be used.
    """
    clips: dict[str, Sequence[str]]
    if storage.is_folder(source):
        clips = _clips_in(source, problems, warnings)
    elif source.suffix.lower() == ".scp":
        clips = {name: (path,) for name, path in read_scp(source, problems).items()}
    else:
        raise PairingError(f"{source}: is neither a folder of references nor an scp.")
    by_stem = defaultdict(list)
    for name in clips:
        by_stem[PurePosixPath(name).name].append(name)
    compiled = compile_pattern(pattern) if pattern is not None else None
    return References(source, clips, by_stem, compiled, pattern or "")


def _clips_in(folder: Path, problems: list[str], warnings: list[str]) -> dict[str, Sequence[str]]:
    """A folder's clips and profiles by their names, and those of its folders by theirs."""
    named = storage.by_name(folder, also=(SUFFIX,), warnings=warnings)
    folders: dict[str, list[str]] = defaultdict(list)
    for name, same in named.items():
        for parent in PurePosixPath(name).parents:
            if parent.name:
                folders[str(parent)] += map(str, same)
    for name, same in named.items():
        others = [*map(str, same[1:]), *folders.get(name, ())]
        problems += [f"{same[0]} and {path}: two clips of one name. Rename one." for path in others]
    return {**folders, **{name: tuple(map(str, same)) for name, same in named.items()}}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Make a regular expression, with a group `speaker`, of a template or expression.

    `{speaker}_{n}` matches a mixture's file name without its suffix, each field any letters
    up to the next fixed one. Anything else is a regular expression for its path.

    Raises:
        PairingError: it is no expression, or says nothing of the speaker.
    """
    fields = _FIELD.findall(pattern)
    text = pattern
    if "speaker" in fields:
        if len(set(fields)) < len(fields):
            raise PairingError(f"--pattern {pattern}: names a field twice.")
        for field in fields:
            if not field.isidentifier():
                raise PairingError(
                    f"--pattern {pattern}: a field's name begins with a letter, as in {{n}}."
                )
        parts = _FIELD.split(pattern)
        for index, part in enumerate(parts):
            parts[index] = f"(?P<{part}>[^/]+?)" if index % 2 else re.escape(part)
        text = "(?:^|/)" + "".join(parts) + "$"
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise PairingError(
            f"--pattern {pattern}: is not a regular expression ({error})."
        ) from error
    if "speaker" not in compiled.groupindex:
        raise PairingError(
            f"--pattern {pattern}: does not say where the speaker is. Write it like "
            "{speaker}_{n} or (?P<speaker>[a-z]+)-.*"
        )
    return compiled
