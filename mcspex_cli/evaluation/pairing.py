"""Which files are compared: an estimate, its truth, its mixture and the other talkers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import files
from mcspex_cli.errors import PairingError


@dataclass(frozen=True)
class Trio:
    """An estimate, its truth and, for the improvement, its mixture."""

    name: str
    estimate: Path
    truth: Path
    mixture: Path | None
    interferers: tuple[Path, ...] = ()
    """What the other talkers of the mixture said, each alone."""


def pair(
    estimates: Path, truth: Path, mixtures: Path | None, interferers: Sequence[Path] = ()
) -> list[Trio]:
    """Pair a file with a file, or each estimate of a folder with its namesakes.

    Namesakes have the same path below their folder but for the suffix; an estimate's
    `.target` before the suffix is left out of account.

    Raises:
        PairingError: a folder against a file, or an estimate without a namesake in one of
            the others.
    """
    others = [truth, *([mixtures] if mixtures else []), *interferers]
    if any(estimates.is_dir() != other.is_dir() for other in others):
        raise PairingError(
            "estimates, truth, mixtures and interferers must be all files or all folders."
        )
    if not estimates.is_dir():
        return [Trio(estimates.name, estimates, truth, mixtures, tuple(interferers))]
    found = by_name(estimates)
    if not found:
        raise PairingError(f"{estimates}: no sound files in this folder.")
    named = [(folder, by_name(folder)) for folder in others]
    trios = []
    for name, path in found.items():
        target, *rest = (_namesake(name, path, files, folder) for folder, files in named)
        mixture = rest.pop(0) if mixtures else None
        trios.append(Trio(name, path, target, mixture, tuple(rest)))
    return trios


def without_estimate(estimates: Path, truth: Path) -> list[str]:
    """Names of the truths for which there is no estimate; none where both are files.

    Raises:
        PairingError: two files of one folder have one name.
    """
    if not estimates.is_dir():
        return []
    return sorted(by_name(truth).keys() - by_name(estimates).keys())


def plain_name(path: str | Path) -> str:
    """The name by which a file is paired: without sound suffix and `.target`."""
    known = Path(path)
    if known.suffix.lower() in files.SUFFIXES:
        known = known.with_suffix("")
    return str(known).removesuffix(".target")


def by_name(folder: Path) -> dict[str, Path]:
    """Sound files under a folder by the name they are paired by."""
    named: dict[str, Path] = {}
    for path in files.find(folder):
        name = plain_name(path.relative_to(folder))
        if name in named:
            raise PairingError(f"{named[name]} and {path}: one name, two files. Move one away.")
        named[name] = path
    return named


def _namesake(name: str, path: Path, named: dict[str, Path], folder: Path) -> Path:
    """The file of another folder that belongs to `path`."""
    if name not in named:
        raise PairingError(f"{path}: {folder} has no {name}.wav (or .flac, ...) for it. Add it.")
    return named[name]
