"""Fixed mixtures from a CSV: the same signals on every machine, for validation."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcspex_cli import audio, paths
from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError, OutputError

COLUMNS = ("id", "target", "interferer", "reference", "snr_db")

PEAK = 0.9
"""The highest peak of a rendered mixture."""


@dataclass(frozen=True)
class Recipe:
    """One row: who is mixed with whom, how loud, and the clip that names the target."""

    id: str
    target: Path
    interferer: Path
    reference: Path
    snr_db: float


@dataclass(frozen=True)
class Rendering:
    """A recipe as signals [sample]; mixture = target + interferer."""

    id: str
    mixture: Samples
    target: Samples
    interferer: Samples
    reference: Samples


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
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text. Save it as a CSV in UTF-8.") from error
    for column in COLUMNS:
        if column not in (reader.fieldnames or ()):
            raise ConfigError(f"{path}: column {column!r} is missing in its first line.")
    recipes = [_parse(path, reader.line_num, row) for row in reader]
    seen: set[str] = set()
    for recipe in recipes:
        if recipe.id in seen:
            raise ConfigError(f"{path}: id {recipe.id!r} is there twice. Rename one.")
        seen.add(recipe.id)
    if not recipes:
        raise ConfigError(f"{path}: has no rows.")
    return recipes


def render(recipe: Recipe, sample_rate_hz: int) -> Rendering:
    """Render a recipe: cut to the shorter talker, set the SNR, keep the peak under 0.9.

    Raises:
        AudioError: a file cannot be read.
        ConfigError: the interferer is silent, so no gain sets the SNR.
    """
    target = audio.read(recipe.target, sample_rate_hz)
    interferer = audio.read(recipe.interferer, sample_rate_hz)
    length = min(len(target), len(interferer))
    target, interferer = target[:length], interferer[:length]
    wanted = np.square(target, dtype=np.float64).sum()
    unwanted = np.square(interferer, dtype=np.float64).sum()
    if unwanted == 0:
        raise ConfigError(f"{recipe.id}: {recipe.interferer} is silent. Choose another.")
    interferer = interferer * np.float32(np.sqrt(wanted / unwanted / 10 ** (recipe.snr_db / 10)))
    peak = float(np.abs(target + interferer).max())
    scale = np.float32(PEAK / peak if peak > PEAK else 1.0)
    target, interferer = target * scale, interferer * scale
    reference = audio.read(recipe.reference, sample_rate_hz)
    return Rendering(recipe.id, target + interferer, target, interferer, reference)


def write_renderings(
    recipes: list[Recipe], folder: Path, sample_rate_hz: int, *, overwrite: bool = False
) -> Iterator[str]:
    """Render each recipe into a folder in LibriMix's layout, yielding its id.

    Written: `mix_clean/ID.wav`, `s1/ID.wav` (target), `s2/ID.wav` (interferer) and
    `references/ID.wav`.

    Raises:
        OutputError: the folder cannot be written, or holds files and `overwrite` is not set.
        AudioError, ConfigError: as `render`.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty. Choose another -o, or add --overwrite.")
    paths.make_folders(*(folder / name for name in ("mix_clean", "s1", "s2", "references")))
    for recipe in recipes:
        made = render(recipe, sample_rate_hz)
        audio.write(folder / "mix_clean" / f"{made.id}.wav", made.mixture, sample_rate_hz)
        audio.write(folder / "s1" / f"{made.id}.wav", made.target, sample_rate_hz)
        audio.write(folder / "s2" / f"{made.id}.wav", made.interferer, sample_rate_hz)
        audio.write(folder / "references" / f"{made.id}.wav", made.reference, sample_rate_hz)
        yield made.id


def _parse(path: Path, line: int, row: dict[str, str]) -> Recipe:
    """Check one row."""
    if any(row[column] is None for column in COLUMNS):
        raise ConfigError(f"{path} line {line}: has fewer columns than the first line.")
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
