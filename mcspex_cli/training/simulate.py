"""Mixtures to keep: rendered from recipes or drawn from a corpus, and written to files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError, OutputError
from mcspex_cli.text import csv_cell
from mcspex_cli.training.data import (
    Corpus,
    Utterance,
    is_librimix,
    list_librimix,
    read_enrolments,
    read_lines,
    read_rows,
)
from mcspex_cli.training.mixtures import MixtureSampler, Plan
from mcspex_cli.training.settings import MixtureSettings, TrainSettings

PEAK = 0.9
"""The highest peak of a rendered mixture."""

RECIPE_COLUMNS = ("id", "target", "interferer", "reference", "snr_db")


@dataclass(frozen=True)
class Recipe:
    """One mixture as files: who is mixed with whom, how loud, and the clip of the target."""

    id: str
    target: Path
    interferers: tuple[Path, ...]
    """One; two in a LibriMix set of three talkers."""
    reference: Path
    snr_db: float | None
    """None: as loud as the files are."""
    mixture: Path | None = None
    """The mixture, where it is a file; else target plus interferers."""


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
            "mcspex simulate made, or the CSV of a recipe."
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
        recipes.append(Recipe(mixture.stem, target, (interferer,), reference, None, mixture))
    if not recipes:
        raise ConfigError(f"{folder}: has no mixtures in {name}. Simulate the folder again.")
    return recipes


def read_recipes(path: Path) -> list[Recipe]:
    """Read a CSV with columns id, target, interferer, reference, snr_db (more are ignored).

    Paths in it are relative to the CSV's folder.

    Raises:
        ConfigError: the file, a column or a named sound file is missing, a number is none,
            or an id is used twice or would leave the output folder.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such recipe.")
    recipes: dict[str, Recipe] = {}
    for line, row in read_rows(path, read_lines(path), RECIPE_COLUMNS):
        recipe = _parse_recipe(path, line, row)
        if recipe.id in recipes:
            raise ConfigError(f"{path} line {line}: id {recipe.id!r} is used twice. Rename one.")
        recipes[recipe.id] = recipe
    if not recipes:
        raise ConfigError(f"{path}: has no rows.")
    return list(recipes.values())


def librimix_recipes(folder: Path, enrolments: Path | None = None) -> list[Recipe]:
    """Each mixture of a LibriMix set once for each talker, as ID_s1, ID_s2 and so on.

    The reference is what SpeakerBeam's `map_mixture2enrollment` names or, without one,
    another utterance of the target in the set, drawn the same on every machine.

    Raises:
        ConfigError: as `list_librimix` and `read_enrolments`; or there is no reference for
            a target.
    """
    mixtures = list_librimix(folder)
    enrolled = read_enrolments(enrolments, folder) if enrolments else None
    by_speaker: dict[str, list[Utterance]] = {}
    for clip in (clip for mixture in mixtures for clip in mixture.talkers):
        by_speaker.setdefault(clip.speaker, []).append(clip)
    rng = np.random.default_rng(0)
    recipes = []
    for mixture in mixtures:
        for role, target in enumerate(mixture.talkers):
            if enrolled is None:
                others = [c for c in by_speaker[target.speaker] if c.sentence != target.sentence]
                reference = others[int(rng.integers(len(others)))].path if others else None
            else:
                reference = enrolled.get((mixture.id, target.sentence))
            if reference is None:
                raise ConfigError(
                    f"{enrolments or folder}: has no reference for {target.path}: another "
                    "utterance of its speaker."
                )
            others = [clip for clip in mixture.talkers if clip is not target]
            recipes.append(
                Recipe(
                    f"{mixture.id}_s{role + 1}",
                    target.path,
                    tuple(clip.path for clip in others),
                    reference,
                    None,
                    mixture.path,
                )
            )
    return recipes


@dataclass(frozen=True)
class Rendering:
    """A mixture as signals [sample]: target + interferer (+ late echoes) + noise."""

    id: str
    mixture: Samples
    target: Samples
    interferer: Samples
    """All other talkers."""
    reference: Samples
    noise: Samples | None = None
    labels: dict[str, str] = field(default_factory=dict)
    """What is known about it, for a table."""


def render(recipe: Recipe, sample_rate_hz: int) -> Rendering:
    """Render a recipe: cut to the shortest talker, set the SNR, keep the peak under 0.9.

    Raises:
        AudioError: a file cannot be read.
        ConfigError: a talker is silent, so no gain sets the SNR.
    """
    target, *others = (
        audio.read(path, sample_rate_hz) for path in (recipe.target, *recipe.interferers)
    )
    length = min(map(len, (target, *others)))
    target, interferer = target[:length], np.sum([o[:length] for o in others], axis=0)
    if recipe.snr_db is not None:
        interferer = interferer * _gain(recipe, target, interferer, recipe.snr_db)
    mixture = target + interferer
    if recipe.mixture:
        mixture = audio.read(recipe.mixture, sample_rate_hz)[:length]
    peak = float(np.abs(mixture).max(initial=0))
    scale = np.float32(PEAK / peak if peak > PEAK else 1.0)
    return Rendering(
        recipe.id,
        mixture * scale,
        target * scale,
        interferer * scale,
        audio.read(recipe.reference, sample_rate_hz),
        labels={
            "target": str(recipe.target),
            "interferer": " + ".join(map(str, recipe.interferers)),
            "reference": str(recipe.reference),
            "snr_db": "" if recipe.snr_db is None else f"{recipe.snr_db:.2f}",
        },
    )


def read_validation(settings: TrainSettings, sample_rate_hz: int, part: slice) -> list[Rendering]:
    """Render a part of the validation mixtures, which are spread evenly over what there is.

    Raises:
        ConfigError, AudioError: as `find_recipes` and `render`.
    """
    data = settings.data
    if not data.validation:
        return []
    recipes = find_recipes(data.validation, data.enrolments)
    count = min(len(recipes), data.validation_mixtures)
    chosen = np.linspace(0, len(recipes) - 1, count).round().astype(int)[part]
    return [render(recipes[k], sample_rate_hz) for k in chosen]


def draw_renderings(
    corpus: Corpus, settings: MixtureSettings, count: int, seed: int
) -> Iterator[Rendering]:
    """Draw mixtures as training does, the same for the same seed; no file peaks over 0.9.

    Raises:
        ConfigError, AudioError: as `MixtureSampler`.
    """
    sampler = MixtureSampler(corpus, settings)
    for step in range(count):
        plans = sampler.plan(seed, step, range(1))
        batch = sampler.compose(plans)
        clean = batch.mixture - batch.noise
        parts = torch.cat((batch.mixture, batch.target, batch.interferer, batch.noise, clean))
        mixture, target, interferer, noise, _ = (parts * _gain_to_peak(parts)).numpy()
        yield Rendering(
            f"{step:05d}",
            mixture,
            target,
            interferer,
            (batch.reference * _gain_to_peak(batch.reference)).numpy()[0],
            noise if settings.noise else None,
            _labels(plans[0], sampler),
        )


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds files, unless they may be overwritten.

    Raises:
        OutputError: it holds files.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty. Choose another -o, or add --overwrite.")


def write_renderings(
    renderings: Iterable[Rendering], folder: Path, sample_rate_hz: int, *, overwrite: bool = False
) -> Iterator[str]:
    """Write renderings to a folder in LibriMix's layout, yielding the id of each.

    Written: `mix_clean/ID.wav` (without noise), `s1/ID.wav` (target), `s2/ID.wav`
    (interferer), `references/ID.wav`; where there is noise, `mix_both/ID.wav` (with it) and
    `noise/ID.wav`; and `mixtures.csv`, with a row for each.

    Raises:
        OutputError: the folder cannot be written, or holds files and `overwrite` is not set.
        ConfigError: two have the same id.
    """
    check_free(folder, overwrite=overwrite)
    files.make_folders(folder)
    with (
        files.whole(folder / "mixtures.csv") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        written: set[str] = set()
        for rendering in renderings:
            if not written:
                table.writerow(["id", *rendering.labels])
            if rendering.id in written:
                raise ConfigError(f"{folder}: two mixtures have the id {rendering.id}. Rename one.")
            written.add(rendering.id)
            table.writerow(map(csv_cell, [rendering.id, *rendering.labels.values()]))
            for name, signal in _signals(rendering).items():
                files.make_folders(folder / name)
                audio.write(folder / name / f"{rendering.id}.wav", signal, sample_rate_hz)
            yield rendering.id


def _parse_recipe(path: Path, line: int, row: dict[str, str]) -> Recipe:
    """Check one row."""
    sources = [path.parent / row[column] for column in ("target", "interferer", "reference")]
    try:
        snr_db = float(row["snr_db"])
    except ValueError:
        snr_db = math.nan
    if not math.isfinite(snr_db):
        raise ConfigError(f"{path} line {line}: snr_db {row['snr_db']!r} is not a number.")
    name = row["id"]
    if not name or Path(name).name != name:
        raise ConfigError(f"{path} line {line}: id {name!r} cannot be the name of a file.")
    for file in sources:
        if not file.is_file():
            raise ConfigError(f"{path} line {line}: {file} does not exist.")
    return Recipe(name, sources[0], (sources[1],), sources[2], snr_db)


def _gain(recipe: Recipe, target: Samples, interferer: Samples, snr_db: float) -> np.float32:
    """What brings the interferer `snr_db` below the target, by energy."""
    energies = []
    for path, talker in ((recipe.target, target), (recipe.interferers[0], interferer)):
        energies.append(np.square(talker, dtype=np.float64).sum())
        if energies[-1] == 0:
            raise ConfigError(f"{recipe.id}: {path} is silent. Choose another file.")
    return np.float32(np.sqrt(energies[0] / energies[1] / 10 ** (snr_db / 10)))


def _gain_to_peak(signals: torch.Tensor) -> torch.Tensor:
    """The gain, at most 1, that brings the highest peak of all `signals` to 0.9."""
    return PEAK / signals.abs().max().clamp_min(PEAK)


def _signals(rendering: Rendering) -> dict[str, Samples]:
    """What is written of a rendering, by folder."""
    signals = {
        "s1": rendering.target,
        "s2": rendering.interferer,
        "references": rendering.reference,
    }
    if rendering.noise is None:
        return {"mix_clean": rendering.mixture, **signals}
    clean = rendering.mixture - rendering.noise
    return {"mix_clean": clean, "mix_both": rendering.mixture, "noise": rendering.noise, **signals}


def _labels(plan: Plan, sampler: MixtureSampler) -> dict[str, str]:
    """A drawn mixture's row."""
    around, noises, rooms = plan.around, sampler.planner.noises, sampler.planner.rooms
    noise = around.noise
    if noises and around.noise_stretch:
        noise = noises.names[around.noise_stretch.file]
    return {
        "target": plan.target.speaker.name,
        "interferer": " + ".join(stretch.speaker.name for stretch in plan.interferers),
        "talkers": str(1 + len(plan.interferers)),
        "snr_db": " + ".join(f"{snr:.2f}" for snr in plan.snr_db),
        "present": str(plan.present).lower(),
        "noise": noise,
        "noise_db": f"{around.noise_db:.1f}" if around.noise else "",
        "t60_s": f"{around.room.t60_s:.2f}" if around.room else "",
        "room_file": rooms.names[around.room_files[0]] if rooms and around.room_files else "",
        "lowest_hz": f"{around.lowest_hz:.0f}" if around.highest_hz else "",
        "highest_hz": f"{around.highest_hz:.0f}" if around.highest_hz else "",
    }
