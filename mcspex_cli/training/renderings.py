"""Mixtures to keep: rendered from recipes or drawn from a corpus, and written to files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError, OutputError
from mcspex_cli.training.corpus import Corpus
from mcspex_cli.training.mixtures import MixtureSampler
from mcspex_cli.training.plans import Plan
from mcspex_cli.training.recipes import Recipe
from mcspex_cli.training.settings import MixtureSettings

PEAK = 0.9
"""The highest peak of a rendered mixture."""


@dataclass(frozen=True)
class Rendering:
    """A mixture as signals [sample]: target + interferer (+ late echoes) + noise."""

    id: str
    mixture: Samples
    target: Samples
    interferer: Samples
    reference: Samples
    noise: Samples | None = None
    labels: dict[str, str] = field(default_factory=dict)
    """What there is to say about it, for a table."""


def render(recipe: Recipe, sample_rate_hz: int) -> Rendering:
    """Render a recipe: cut to the shorter talker, set the SNR, keep the peak under 0.9.

    Raises:
        AudioError: a file cannot be read.
        ConfigError: a talker is silent, so no gain sets the SNR.
    """
    target = audio.read(recipe.target, sample_rate_hz)
    interferer = audio.read(recipe.interferer, sample_rate_hz)
    length = min(len(target), len(interferer))
    target, interferer = target[:length], interferer[:length]
    if recipe.snr_db is not None:
        interferer = interferer * _gain(recipe, target, interferer, recipe.snr_db)
    mixture = target + interferer
    if recipe.mixture:
        mixture = audio.read(recipe.mixture, sample_rate_hz)[:length]
    peak = float(np.abs(mixture).max())
    scale = np.float32(PEAK / peak if peak > PEAK else 1.0)
    return Rendering(
        recipe.id,
        mixture * scale,
        target * scale,
        interferer * scale,
        audio.read(recipe.reference, sample_rate_hz),
        labels={
            "target": str(recipe.target),
            "interferer": str(recipe.interferer),
            "reference": str(recipe.reference),
            "snr_db": "" if recipe.snr_db is None else f"{recipe.snr_db:.2f}",
        },
    )


def draw_renderings(
    corpus: Corpus, settings: MixtureSettings, count: int, seed: int
) -> Iterator[Rendering]:
    """Draw mixtures as training does, the same for the same seed; no file peaks over 0.9."""
    sampler = MixtureSampler(corpus, settings)
    for step in range(count):
        plans, reference_length = sampler.plan(seed, step, range(1))
        batch = sampler.compose(plans, reference_length)
        clean = batch.mixture - batch.noise
        parts = (batch.mixture, batch.target, batch.interferer, batch.noise, clean)
        mixture, target, interferer, noise, _ = _turned_down(torch.cat(parts)).numpy()
        yield Rendering(
            f"{step:05d}",
            mixture,
            target,
            interferer,
            _turned_down(batch.reference).numpy()[0],
            noise if settings.noise else None,
            _labels(plans[0]),
        )


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds files, unless they may be overwritten.

    Raises:
        OutputError: as said.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty. Choose another -o, or add --overwrite.")


def write_renderings(
    renderings: Iterable[Rendering], folder: Path, sample_rate_hz: int, *, overwrite: bool = False
) -> Iterator[str]:
    """Write renderings to a folder in LibriMix's layout, yielding each one's id.

    Written: `mix_clean/ID.wav` (without noise), `s1/ID.wav` (target), `s2/ID.wav`
    (interferer), `references/ID.wav`; where there is noise, `mix_both/ID.wav` (with it) and
    `noise/ID.wav`; and `mixtures.csv`, a row each.

    Raises:
        OutputError: the folder cannot be written, or holds files and `overwrite` is not set.
        ConfigError: an id comes twice.
    """
    check_free(folder, overwrite=overwrite)
    files.make_folders(folder)
    with (
        files.whole(folder / "mixtures.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        written: set[str] = set()
        for made in renderings:
            if not written:
                table.writerow(["id", *made.labels])
            if made.id in written:
                raise ConfigError(f"{folder}: two mixtures have the id {made.id}. Rename one.")
            written.add(made.id)
            table.writerow([made.id, *made.labels.values()])
            for name, signal in _signals(made).items():
                files.make_folders(folder / name)
                audio.write(folder / name / f"{made.id}.wav", signal, sample_rate_hz)
            yield made.id


def _turned_down(signals: Tensor) -> Tensor:
    """Signals [signal, sample], all by the same gain, with the highest peak at 0.9 at most."""
    return (signals * (PEAK / signals.abs().max().clamp_min(PEAK))).cpu()


def _signals(made: Rendering) -> dict[str, Samples]:
    """What is written of a rendering, by folder."""
    signals = {"s1": made.target, "s2": made.interferer, "references": made.reference}
    if made.noise is None:
        return {"mix_clean": made.mixture, **signals}
    clean = made.mixture - made.noise
    return {"mix_clean": clean, "mix_both": made.mixture, "noise": made.noise, **signals}


def _labels(plan: Plan) -> dict[str, str]:
    """A drawn mixture's row."""
    around = plan.around
    return {
        "target": plan.target.speaker.name,
        "interferer": " + ".join(arc.speaker.name for arc in plan.interferers),
        "talkers": str(1 + len(plan.interferers)),
        "snr_db": " + ".join(f"{snr:.2f}" for snr in plan.snr_db),
        "present": str(plan.present).lower(),
        "noise": around.noise,
        "noise_db": f"{around.noise_db:.1f}" if around.noise else "",
        "t60_s": f"{around.room.t60_s:.2f}" if around.room else "",
        "lowest_hz": f"{around.lowest_hz:.0f}" if around.highest_hz else "",
        "highest_hz": f"{around.highest_hz:.0f}" if around.highest_hz else "",
    }


def _gain(recipe: Recipe, target: Samples, interferer: Samples, snr_db: float) -> np.float32:
    """What brings the interferer `snr_db` below the target, by energy."""
    wanted = np.square(target, dtype=np.float64).sum()
    unwanted = np.square(interferer, dtype=np.float64).sum()
    for path, energy in ((recipe.target, wanted), (recipe.interferer, unwanted)):
        if energy == 0:
            raise ConfigError(f"{recipe.id}: {path} is silent. Choose another.")
    return np.float32(np.sqrt(wanted / unwanted / 10 ** (snr_db / 10)))
