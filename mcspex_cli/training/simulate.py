"""Mixtures to keep: rendered from recipes or drawn from a corpus, and written to files."""

from __future__ import annotations

import csv
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError, OutputError, csv_cell
from mcspex_cli.training.data import (
    Corpus,
    Utterance,
    is_librimix,
    list_librimix,
    read_csv,
    read_enrolments,
)
from mcspex_cli.training.mixtures import MixtureSampler, Plan
from mcspex_cli.training.settings import DataSettings, MixtureSettings

_logger = logging.getLogger("mcspex")

PEAK = 0.9
"""The highest peak of a rendered mixture."""

_MOST_SNR_DB = 100
"""As in `MixtureSettings`."""

PARTS = ("mix_clean", "mix_both", "s1", "s2", "noise", "references")
TABLE = "mixtures.csv"
"""The folders of what is written, and the list of the mixtures in them."""


@dataclass(frozen=True)
class Recipe:
    """One mixture as files: who is mixed with whom, how loud, and the clip of the target."""

    id: str
    target: Path
    interferers: tuple[Path, ...]
    """One; two in a LibriMix set of three talkers."""
    reference: Path
    snr_db: float | None = None
    """None: as loud as the files are."""
    mixture: Path | None = None
    """The mixture, where it is a file; else target plus interferers."""


def read_recipes(path: Path) -> list[Recipe]:
    """Read a CSV with columns id, target, interferer, reference, snr_db (more are ignored).

    Paths in it are relative to the CSV's folder.

    Raises:
        ConfigError: the file or a row cannot be used.
    """
    recipes: dict[str, Recipe] = {}
    for line, row in read_csv(path, ("id", "target", "interferer", "reference", "snr_db")):
        where, name = f"{path} line {line}", row["id"]
        target, interferer, reference = sources = [
            path.parent / row[column] for column in ("target", "interferer", "reference")
        ]
        try:
            snr_db = float(row["snr_db"])
        except ValueError:
            snr_db = math.nan
        if not abs(snr_db) <= _MOST_SNR_DB:
            limits = f"from -{_MOST_SNR_DB} to {_MOST_SNR_DB}"
            raise ConfigError(f"{where}: snr_db {row['snr_db']!r} is not a number {limits}.")
        is_hidden = name.startswith(".")  # which no search of the folder finds again
        is_too_long = len(os.fsencode(f"{name}.wav")) > files.LONGEST_NAME
        is_path = Path(name).name != name
        if is_hidden or is_too_long or is_path or min(name, default="") < " ":
            raise ConfigError(f"{where}: id {name!r} cannot be the name of a file.")
        key = files.name_key(name)
        if key in recipes:
            raise ConfigError(f"{where}: id {name!r} is used twice. Rename one.")
        for file in sources:
            if not file.is_file():
                problem = "is not a file. Name one." if file.exists() else "does not exist."
                raise ConfigError(f"{where}: {file} {problem}")
        if len({file.resolve() for file in sources}) < len(sources):
            raise ConfigError(f"{where}: needs three different files. One is there twice.")
        recipes[key] = Recipe(name, target, (interferer,), reference, snr_db)
    if not recipes:
        raise ConfigError(f"{path}: has no rows. Name another file.")
    return list(recipes.values())


def librimix_recipes(folder: Path, enrolments: Path | None = None) -> list[Recipe]:
    """Each mixture of a LibriMix set once for each talker, as ID_s1, ID_s2 and so on.

    The reference is what SpeakerBeam's `map_mixture2enrollment` names or, without one,
    another utterance of the target in the set, drawn the same on every machine.

    Raises:
        ConfigError: there is no reference for a target.
    """
    mixtures = list_librimix(folder)
    enrolled = read_enrolments(enrolments, folder) if enrolments else {}
    by_speaker: dict[str, list[Utterance]] = {}
    for clip in (clip for mixture in mixtures for clip in mixture.talkers):
        by_speaker.setdefault(clip.speaker, []).append(clip)
    rng = np.random.default_rng(0)
    recipes = []
    for mixture in mixtures:
        for role, target in enumerate(mixture.talkers, 1):
            reference = enrolled.get((mixture.id, target.sentence))
            same = [c.path for c in by_speaker[target.speaker] if c.sentence != target.sentence]
            if same and not enrolments:
                reference = same[int(rng.integers(len(same)))]
            if reference is None:
                advice = "Its speaker has no other clip: name enrolments, or leave the mixture out."
                advice = "Add a line for it." if enrolments else advice
                source = enrolments or folder
                raise ConfigError(f"{source}: has no reference for {target.path}. {advice}")
            others = tuple(clip.path for clip in mixture.talkers if clip is not target)
            name = f"{mixture.id}_s{role}"
            recipes.append(Recipe(name, target.path, others, reference, mixture=mixture.path))
    return recipes


def simulated_recipes(folder: Path) -> list[Recipe]:
    """The mixtures of a folder that `mcspex simulate` made, noise included, by id."""
    recipes = []
    for clean in files.find(folder / "mix_clean"):
        target, interferer, reference = sources = [
            folder / part / clean.name for part in ("s1", "s2", "references")
        ]
        for file in sources:
            if not file.is_file():
                raise ConfigError(f"{file}: is missing. Simulate the folder again.")
        noisy = folder / "mix_both" / clean.name
        mixture = noisy if noisy.is_file() else clean
        recipes.append(Recipe(clean.stem, target, (interferer,), reference, mixture=mixture))
    if not recipes:
        raise ConfigError(f"{folder}: has no mixtures in mix_clean. Simulate the folder again.")
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
    talkers: tuple[str, ...] = ()
    """The speakers of one that was drawn, the target first."""


def render(recipe: Recipe, sample_rate_hz: int) -> Rendering:
    """Render a recipe: cut to the shortest talker, set the SNR, keep the peak under 0.9.

    No signal of it exceeds full scale. Those of its files may, if they are floats or resampled.

    Raises:
        AudioError: a file cannot be read, or the reference is too short.
        ConfigError: the reference is silent, or a talker, so that no gain sets the SNR.
    """
    sources = recipe.target, *recipe.interferers
    talkers = [audio.read(path, sample_rate_hz) for path in sources]
    length = min(map(len, talkers))
    target, *others = (talker[:length] for talker in talkers)
    interferer = np.sum(others, axis=0)
    if recipe.snr_db is not None:
        energies = [np.square(s, dtype=np.float64).sum() for s in (target, interferer)]
        for path, energy in zip(sources, energies, strict=False):
            if audio.level_db(energy / length) < audio.SILENCE_DB:
                raise ConfigError(f"{recipe.id}: {path} is silent. Choose another file.")
        gain = np.sqrt(energies[0] / energies[1] / 10 ** (recipe.snr_db / 10))
        interferer = interferer * np.float32(gain)
    mixture = target + interferer
    if recipe.mixture:
        mixture = audio.read(recipe.mixture, sample_rate_hz)[:length]
    reference = audio.read(recipe.reference, sample_rate_hz)
    name = f"{recipe.id}: {recipe.reference}, the reference"
    audio.check_length(name, len(reference) / sample_rate_hz)
    if audio.level_db(float(np.square(reference).mean())) < audio.SILENCE_DB:
        raise ConfigError(f"{recipe.id}: {recipe.reference} is silent. Choose another file.")
    peak, target_peak, interferer_peak, reference_peak = (
        float(np.abs(signal).max(initial=0)) for signal in (mixture, target, interferer, reference)
    )
    peak = max(peak, PEAK * target_peak, PEAK * interferer_peak)
    scale = np.float32(PEAK / peak if peak > PEAK else 1.0)
    return Rendering(
        recipe.id,
        mixture * scale,
        target * scale,
        interferer * scale,
        reference / np.float32(max(1.0, reference_peak)),
        labels={
            "target": str(recipe.target),
            "interferer": " + ".join(map(str, recipe.interferers)),
            "reference": str(recipe.reference),
            "snr_db": "" if recipe.snr_db is None else f"{recipe.snr_db:.2f}",
        },
    )


def read_validation(data: DataSettings, sample_rate_hz: int, part: slice) -> list[Rendering]:
    """Render a part of the validation mixtures, which are spread evenly over what there is.

    They come from a recipe, a LibriMix set, or a folder that `mcspex simulate` made.

    Raises:
        ConfigError: it is none of these, or there are enrolments without a LibriMix set.
    """
    path = data.validation
    is_simulated = bool(path and (path / "references").is_dir())
    if data.enrolments and (is_simulated or not path or not is_librimix(path)):
        raise ConfigError("[data] enrolments is for validation on a LibriMix set. Leave it out.")
    if not path:
        return []
    if is_simulated:
        recipes = simulated_recipes(path)
    elif is_librimix(path):
        recipes = librimix_recipes(path, data.enrolments)
    elif path.is_dir():
        raise ConfigError(
            f"{path}: has no mix_clean, s1 and s2. Name a LibriMix set, a folder that "
            "mcspex simulate made, or the CSV of a recipe."
        )
    else:
        recipes = read_recipes(path)
    folders = [folder.resolve() for folder in data.train]
    targets = [recipe.target.resolve() for recipe in recipes]
    trained = sum(any(map(target.is_relative_to, folders)) for target in targets)
    if trained and not part.start:  # other processes would say the same
        _logger.warning(
            f"{path}: in {trained} of {len(recipes)} mixtures the target is a file that [data] "
            "train has too, so that the validation score is too good. Name other mixtures."
        )
    count = min(len(recipes), data.validation_mixtures)
    chosen = np.linspace(0, len(recipes) - 1, count).round().astype(int)[part]
    return [render(recipes[k], sample_rate_hz) for k in chosen]


def draw_renderings(
    corpus: Corpus, settings: MixtureSettings, count: int, seed: int
) -> Iterator[Rendering]:
    """Draw mixtures as training does, the same for the same seed; no file peaks over 0.9."""

    def at_peak(signals: torch.Tensor) -> torch.Tensor:
        """All `signals` with one gain, which brings the highest peak to 0.9 at most."""
        return signals * (PEAK / signals.abs().max().clamp_min(PEAK))

    sampler = MixtureSampler(corpus, settings)
    for step in range(count):
        (plan,) = sampler.plan(seed, step, range(1))
        batch = sampler.compose([plan])
        clean = batch.mixture - batch.noise
        parts = torch.cat((batch.mixture, batch.target, batch.interferer, batch.noise, clean))
        mixture, target, interferer, noise, _ = at_peak(parts).numpy()
        yield Rendering(
            f"{step:05d}",
            mixture,
            target,
            interferer,
            at_peak(batch.reference).numpy()[0],
            noise if settings.noise else None,
            _labels(plan, sampler),
            tuple(stretch.speaker.name for stretch in (plan.target, *plan.interferers)),
        )


def _labels(plan: Plan, sampler: MixtureSampler) -> dict[str, str]:
    around, noises, rooms = plan.around, sampler.noises, sampler.rooms
    recorded, narrow = around.noise_stretch, around.highest_hz > 0
    return {
        "target": plan.target.speaker.name,
        "interferer": " + ".join(stretch.speaker.name for stretch in plan.interferers),
        "talkers": str(1 + len(plan.interferers)),
        "snr_db": " + ".join(f"{snr:.2f}" for snr in plan.snr_db),
        "present": str(plan.present).lower(),
        "noise": noises.names[recorded.file] if noises and recorded else around.noise,
        "noise_db": f"{around.noise_db:.1f}" if around.noise else "",
        "t60_s": f"{around.room.t60_s:.2f}" if around.room else "",
        "room_file": rooms.names[around.responses[0]] if rooms and around.responses else "",
        "lowest_hz": f"{around.lowest_hz:.0f}" if narrow else "",
        "highest_hz": f"{around.highest_hz:.0f}" if narrow else "",
    }


def check_ids(recipes: Iterable[Recipe]) -> None:
    """Refuse two recipes of one id, with a ConfigError, as two LibriMix sets may have."""
    for id_, times in Counter(recipe.id for recipe in recipes).items():
        if times > 1:
            raise ConfigError(f"two mixtures have the id {id_}. Name one of their sets.")


def check_output(folder: Path, sources: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless it has a set that may be overwritten.

    Raises:
        OutputError: it has something else, or one of the folders that its sounds come from, or is
            the current folder, which cannot be replaced.
    """
    if folder.resolve() in {Path.cwd(), *Path.cwd().parents}:
        raise OutputError(
            f"{folder}: is the current folder, or a folder above it. Choose another -o."
        )
    for source in set(sources):
        if source.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{source}: has the files that are mixed. Choose another -o.")
    paths = folder.iterdir() if folder.is_dir() else ()
    names = {path.name for path in paths if not path.name.startswith(".")}
    if names and not overwrite:
        raise OutputError(f"{folder}: is not empty. Choose another -o, or add --overwrite.")
    if names and not ({TABLE} <= names <= {TABLE, *PARTS} and _has_only_its_mixtures(folder)):
        raise OutputError(
            f"{folder}: has more than a set that mcspex simulate wrote. Choose another -o."
        )


def _has_only_its_mixtures(folder: Path) -> bool:
    """Whether a set's folders have only files of mixtures that are in its table."""
    with (folder / TABLE).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        ids = {cell for row in csv.reader(file) for cell in row[:1]}
    paths = (path for part in PARTS for path in (folder / part).glob("[!.]*"))
    return all(path.suffix == ".wav" and csv_cell(path.stem) in ids for path in paths)


def write_renderings(
    renderings: Iterable[Rendering], folder: Path, sample_rate_hz: int, *, overwrite: bool = False
) -> Iterator[str]:
    """Write renderings to a folder in LibriMix's layout, yielding the id of each.

    Written: `mix_clean/ID.wav` (without noise), `s1/ID.wav` (target), `s2/ID.wav`
    (interferer), `references/ID.wav`; where there is noise, `mix_both/ID.wav` (with it) and
    `noise/ID.wav`; and `mixtures.csv`, with a row for each. They appear together, at the end, in
    place of an earlier set.

    Raises:
        OutputError: the folder cannot be written, or something is there and `overwrite` is not set.
    """
    with (
        files.whole_folder(folder) as unfinished,
        (unfinished / TABLE).open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file,
    ):
        table, written = csv.writer(file), set[Path]()
        for rendering in renderings:
            name, mixture, noise = rendering.id, rendering.mixture, rendering.noise
            if not written:
                table.writerow(["id", *rendering.labels])
            table.writerow(map(csv_cell, [name, *rendering.labels.values()]))
            signals = {
                "mix_clean": mixture if noise is None else mixture - noise,
                "s1": rendering.target,
                "s2": rendering.interferer,
                "references": rendering.reference,
            }
            if noise is not None:
                signals |= {"mix_both": mixture, "noise": noise}
            for part, signal in signals.items():
                (unfinished / part).mkdir(exist_ok=True)
                audio.write(unfinished / part / f"{name}.wav", signal, sample_rate_hz)
                written.add(Path(part, f"{name}.wav"))
            yield name
        paths = sorted({Path(TABLE), *written})
        if lost := [path for path in paths if not (unfinished / path).is_file()]:
            raise OutputError(
                f"{folder}: {lost[0]} was deleted before all was done. Run the command again."
            )
        check_output(folder, (), overwrite=overwrite)  # again: another program may have written
        for part in PARTS:
            if not (unfinished / part).exists():
                shutil.rmtree(folder / part, ignore_errors=True)
