"""Folders of speech as lists of clips: plain ones, LibriSpeech's tree and LibriMix's."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import files
from mcspex_cli.errors import ConfigError

TALKERS = ("s1", "s2")
"""The folders of a LibriMix set that hold its talkers, beside `mix_clean`."""

_LIBRISPEECH = re.compile(r"(\d+)-(\d+)-\d+")
"""An utterance of LibriSpeech: speaker, chapter, number."""


@dataclass(frozen=True)
class Clip:
    """A sound file of one speaker."""

    path: Path
    speaker: str
    sentence: str
    """Clips of equal sentences say the same: never mixed, never each other's reference."""


@dataclass(frozen=True)
class GivenMixture:
    """One mixture of a LibriMix set."""

    id: str
    path: Path
    talkers: tuple[Clip, Clip]


def list_clips(folders: Sequence[Path]) -> list[Clip]:
    """List the clips under each folder, by path.

    A LibriMix set (`mix_clean`, `s1`, `s2`) gives its talkers, LibriSpeech's
    `SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` its speakers under the same names; in any
    other tree a file's folder is its speaker and its stem its sentence.

    Raises:
        ConfigError: a folder is missing, holds no sound files, or holds LibriMix sets
            instead of being one.
    """
    clips: list[Clip] = []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder of speakers.")
        sets = sorted(child for child in folder.iterdir() if is_librimix(child))
        if sets:
            raise ConfigError(f"{folder}: holds LibriMix sets. Name one of them, like {sets[0]}.")
        if is_librimix(folder):
            found = [clip for mixture in list_mixtures(folder) for clip in mixture.talkers]
        else:
            found = [_clip(path) for path in files.find(folder)]
        if not found:
            raise ConfigError(f"{folder}: no sound files in it. Name a folder of speakers.")
        clips += found
    return clips


def is_librimix(folder: Path) -> bool:
    """Whether a folder is one set of a LibriMix tree, like `wav8k/min/train-100`."""
    return all((folder / name).is_dir() for name in ("mix_clean", *TALKERS))


def list_mixtures(folder: Path) -> list[GivenMixture]:
    """List a LibriMix set's mixtures, by id.

    `../metadata/mixture_SET_mix_clean.csv` (as LibriMix's scripts write it) or
    `mixture_SET_mix_clean.csv` in the folder says which there are; without it, what
    `mix_clean` holds.

    Raises:
        ConfigError: the folder is no such set or an empty one, a file is missing, the
            metadata cannot be read, or an id does not name two LibriSpeech utterances.
    """
    if not is_librimix(folder):
        raise ConfigError(f"{folder}: not a LibriMix set; it needs mix_clean, s1 and s2.")
    present = {path.stem: path for path in files.find(folder / "mix_clean")}
    mixtures = []
    for name in sorted(_listed_ids(folder) or present):
        if name not in present:
            raise ConfigError(f"{folder}: mix_clean/{name}.wav is missing. Generate the set again.")
        mixtures.append(_given(folder, name, present[name]))
    if not mixtures:
        raise ConfigError(f"{folder}: mix_clean is empty. Generate the set again.")
    return mixtures


def read_enrolments(path: Path, folder: Path) -> dict[tuple[str, str], Path]:
    """Read SpeakerBeam's `map_mixture2enrollment` for a LibriMix set.

    Each line: mixture id, the target's utterance id, and the clip to enrol with, like
    `s1/4077-13754-0004_5142-36377-0020`.

    Returns:
        The clip's path for each (mixture id, utterance id).

    Raises:
        ConfigError: the file cannot be read, or a line names no clip of the set, or one
            of another speaker, or the target's own utterance.
    """
    enrolments = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 3:
            raise ConfigError(f"{path} line {number}: needs mixture, utterance and clip.")
        mixture, utterance, name = words
        clip = folder / f"{name}.wav"
        if not clip.is_file() or name.split("/")[0] not in TALKERS:
            raise ConfigError(f"{path} line {number}: {clip} does not exist. Is it of this set?")
        said = clip.stem.split("_")[TALKERS.index(clip.parent.name)]
        if said == utterance or _speaker(said) != _speaker(utterance):
            raise ConfigError(f"{path} line {number}: {name} is no other clip of the same voice.")
        enrolments[mixture, utterance] = clip
    return enrolments


def read_rows(
    path: Path, lines: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV's lines with their line numbers; `path` is what messages name.

    Raises:
        ConfigError: one of `columns` is missing, in the first line or in a row.
    """
    reader = csv.DictReader(lines)
    for column in columns:
        if column not in (reader.fieldnames or ()):
            raise ConfigError(f"{path}: column {column!r} is missing in its first line.")
    for row in reader:
        if any(row[column] is None for column in columns):
            raise ConfigError(
                f"{path} line {reader.line_num}: has fewer columns than the first line."
            )
        yield reader.line_num, row


def _clip(path: Path) -> Clip:
    """A file outside LibriMix."""
    named = _LIBRISPEECH.fullmatch(path.stem)
    if named and (path.parent.name, path.parent.parent.name) == (named[2], named[1]):
        return Clip(path, _speaker(path.stem), path.stem)
    return Clip(path, str(path.parent), path.stem)


def _given(folder: Path, name: str, path: Path) -> GivenMixture:
    """A mixture and its talkers, whose utterances its id names."""
    utterances = name.split("_")
    if len(utterances) != 2 or not all(_LIBRISPEECH.fullmatch(u) for u in utterances):
        raise ConfigError(f"{path}: is not named UTTERANCE_UTTERANCE, as LibriMix names mixtures.")
    clips = []
    for role, utterance in zip(TALKERS, utterances, strict=True):
        clip = folder / role / path.name
        if not clip.is_file():
            raise ConfigError(f"{clip}: is missing. Generate the set again.")
        clips.append(Clip(clip, _speaker(utterance), utterance))
    return GivenMixture(name, path, (clips[0], clips[1]))


def _listed_ids(folder: Path) -> set[str]:
    """Ids that the set's metadata lists; none if there is none."""
    name = f"mixture_{folder.name}_mix_clean.csv"
    for path in (folder.parent / "metadata" / name, folder / name):
        if path.is_file():
            rows = read_rows(path, _lines(path), ["mixture_ID"])
            return {row["mixture_ID"] for _, row in rows}
    return set()


def _speaker(utterance: str) -> str:
    """The speaker of a LibriSpeech utterance, by the name that all trees share."""
    return f"librispeech/{utterance.split('-', maxsplit=1)[0]}"


def _lines(path: Path) -> list[str]:
    """A text file's lines."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}).") from error
