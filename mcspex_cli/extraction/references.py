"""Which reference belongs to which mixture: by name, by pattern or by folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mcspex_cli import files
from mcspex_cli.errors import PairingError
from mcspex_cli.extraction.manifests import read_scp
from mcspex_cli.extraction.profile import SUFFIX

_FIELD = re.compile(r"\{(\w+)\}")
"""A field of a template like `{speaker}_{n}`."""


@dataclass(frozen=True)
class References:
    """Clips by the names that mixtures may ask for them by."""

    source: Path
    clips: Mapping[str, Sequence[Path]]
    """A file by its path in the folder without suffix, a folder by its own."""
    by_stem: Mapping[str, Sequence[str]]
    """The names in `clips` that end in a stem."""
    pattern: re.Pattern[str] | None

    def find(self, name: str) -> str:
        """The name in `clips` for the mixture `name`, "a/b".

        With a pattern it is what that finds for the speaker; else the mixture's path, its
        stem, the folder that it is in, or that folder's name, in this order.

        Raises:
            PairingError: there is none, or more than one of equal right.
        """
        for wanted in self._wanted(name):
            if wanted in self.clips:
                return wanted
            alike = self.by_stem.get(wanted, ())
            if len(alike) > 1:
                both = " and ".join(alike[:2])
                raise PairingError(f"{self.source} has both {both} for it. Rename one.")
            if alike:
                return alike[0]
        asked = " or ".join(dict.fromkeys(self._wanted(name)))
        raise PairingError(f"no reference {asked} in {self.source}. Add it, or drop this mixture.")

    def _wanted(self, name: str) -> list[str]:
        """The names to look for, best first."""
        path = PurePosixPath(name)
        if self.pattern:
            found = self.pattern.search(name)
            if not found or found["speaker"] is None:
                raise PairingError(f"its name does not match {self.pattern.pattern!r}.")
            return [found["speaker"]]
        folder = [] if path.parent == PurePosixPath() else [str(path.parent), path.parent.name]
        return [name, path.name, *folder]


def list_references(source: Path, pattern: str | None, problems: list[str]) -> References:
    """List the clips of a folder, or of an scp with an id for each; check the pattern.

    Raises:
        PairingError: `source` is neither, or the pattern cannot be used.
    """
    if source.is_dir():
        clips = _clips_in(source, problems)
    elif source.suffix.lower() == ".scp":
        clips = {name: [path] for name, path in read_scp(source, problems).items()}
    else:
        raise PairingError(f"{source}: is neither a folder of references nor an scp.")
    by_stem = defaultdict(list)
    for name in clips:
        by_stem[PurePosixPath(name).name].append(name)
    return References(source, clips, by_stem, compile_pattern(pattern) if pattern else None)


def _clips_in(folder: Path, problems: list[str]) -> dict[str, list[Path]]:
    """A folder's clips and profiles by their names, and those of its folders by theirs."""
    clips = files.by_name(folder, also=(SUFFIX,))
    folders: dict[str, list[Path]] = defaultdict(list)
    for path in (path for same in clips.values() for path in same):
        for parent in path.relative_to(folder).parents[:-1]:
            folders[parent.as_posix()].append(path)
    for name, same in clips.items():
        others = [*same[1:], *folders.get(name, ())]
        problems += [f"{same[0]} and {path}: one name, two clips. Rename one." for path in others]
    return {**folders, **clips}


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
        parts = _FIELD.split(pattern)
        for index, part in enumerate(parts):
            parts[index] = f"(?P<{part}>[^/]+?)" if index % 2 else re.escape(part)
        text = "(?:^|/)" + "".join(parts) + "$"
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise PairingError(f"--pattern {pattern}: {error}.") from error
    if "speaker" not in compiled.groupindex:
        raise PairingError(
            f"--pattern {pattern}: has no speaker. Write it like {{speaker}}_{{n}} or "
            "(?P<speaker>[a-z]+)-.*"
        )
    return compiled
