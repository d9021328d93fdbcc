"""Fixed mixtures, named by files: a CSV's rows, or a LibriMix set with its references."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcspex_cli import files
from mcspex_cli.errors import ConfigError
from mcspex_cli.training.clips import (
    TALKERS,
    Clip,
    is_librimix,
    list_mixtures,
    read_enrolments,
    read_rows,
)

COLUMNS = ("id", "target", "interferer", "reference", "snr_db")


@dataclass(frozen=True)
class Recipe:
    """One row: who is mixed with whom, how loud, and the clip that names the target."""

    id: str
    target: Path
    interferer: Path
    reference: Path
    snr_db: float | None
    """None: as loud as the files are."""
    mixture: Path | None = None
    """The mixture, where it is a file; else target plus interferer."""


def find_recipes(path: Path, enrolments: Path | None = None) -> list[Recipe]:
    """The recipes of a CSV, of a LibriMix set, or of a folder that `mcspex simulate` made.

    Raises:
        ConfigError: it is none of these; or as the readers of each.
    """
    if (path / "references").is_dir():
        return simulated_recipes(path)
    if is_librimix(path):
        return librimix_recipes(path, enrolments)
    if path.is_dir():
        raise ConfigError(
            f"{path}: has no mix_clean, s1 and s2. Name a LibriMix set, a folder that "
            "mcspex simulate made, or a recipe's CSV."
        )
    return read_recipes(path)


def simulated_recipes(folder: Path) -> list[Recipe]:
    """The mixtures of a folder that `mcspex simulate` made, noise included, by id.

    Raises:
        ConfigError: a file is missing.
    """
    name = "mix_both" if (folder / "mix_both").is_dir() else "mix_clean"
    recipes = []
    for mixture in files.find(folder / name):
        target, interferer, reference = (
            folder / part / mixture.name for part in ("s1", "s2", "references")
        )
        for file in (target, interferer, reference):
            if not file.is_file():
                raise ConfigError(f"{file}: is missing. Simulate the folder again.")
        recipes.append(Recipe(mixture.stem, target, interferer, reference, None, mixture))
    if not recipes:
        raise ConfigError(f"{folder}: no mixtures in its {name}. Simulate the folder again.")
    return recipes


def read_recipes(path: Path) -> list[Recipe]:
    """Read a CSV with columns id, target, interferer, reference, snr_db (more are ignored).

    Paths in it are relative to the CSV's folder.

    Raises:
        ConfigError: the file, a column or a named sound file is missing, a number is none,
            or an id is used twice or would leave the output folder.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text. Save it as a CSV in UTF-8.") from error
    recipes = [_parse(path, line, row) for line, row in read_rows(path, lines, COLUMNS)]
    seen: set[str] = set()
    for recipe in recipes:
        if recipe.id in seen:
            raise ConfigError(f"{path}: id {recipe.id!r} is there twice. Rename one.")
        seen.add(recipe.id)
    if not recipes:
        raise ConfigError(f"{path}: has no rows.")
    return recipes


def librimix_recipes(folder: Path, enrolments: Path | None = None) -> list[Recipe]:
    """Each mixture of a LibriMix set twice, as ID_s1 and ID_s2 by who is the target.

    The reference is what SpeakerBeam's `map_mixture2enrollment` names or, without one,
    another utterance of the target in the set, drawn the same on every machine.

    Raises:
        ConfigError: as `list_mixtures` and `read_enrolments`; or there is no reference for
            a target.
    """
    mixtures = list_mixtures(folder)
    named = read_enrolments(enrolments, folder) if enrolments else None
    by_speaker: dict[str, list[Clip]] = {}
    for clip in (clip for mixture in mixtures for clip in mixture.talkers):
        by_speaker.setdefault(clip.speaker, []).append(clip)
    rng = np.random.default_rng(0)
    recipes = []
    for mixture in mixtures:
        for role, target in enumerate(mixture.talkers):
            if named is None:
                others = [c for c in by_speaker[target.speaker] if c.sentence != target.sentence]
                reference = others[int(rng.integers(len(others)))].path if others else None
            else:
                reference = named.get((mixture.id, target.sentence))
            if reference is None:
                raise ConfigError(f"{enrolments or folder}: no reference for {target.path}.")
            other = mixture.talkers[1 - role].path
            name = f"{mixture.id}_{TALKERS[role]}"
            recipes.append(Recipe(name, target.path, other, reference, None, mixture.path))
    return recipes


def _parse(path: Path, line: int, row: dict[str, str]) -> Recipe:
    """Check one row."""
    files = [path.parent / row[column] for column in ("target", "interferer", "reference")]
    try:
        snr_db = float(row["snr_db"])
    except ValueError:
        snr_db = math.nan
    if not math.isfinite(snr_db):
        raise ConfigError(f"{path} line {line}: snr_db {row['snr_db']!r} is no number.")
    name = row["id"]
    if not name or Path(name).name != name:
        raise ConfigError(f"{path} line {line}: id {name!r} cannot be a file's name.")
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{path} line {line}: {file} does not exist.")
    return Recipe(name, files[0], files[1], files[2], snr_db)
