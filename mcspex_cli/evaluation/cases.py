"""Which files belong together: an estimate, and all that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.groups import case_name
from mcspex_cli.evaluation.summary import read_rows

TRANSCRIPTS = (".txt", ".vtt")
"""The formats of transcripts, by the suffix of the file."""


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
