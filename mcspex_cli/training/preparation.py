"""What a run starts from: its corpus, its validation mixtures, and the level of its network."""

from __future__ import annotations

import numpy as np
import torch

from mcspex_cli.model.systems import System
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.mixtures import Batch, MixtureSampler
from mcspex_cli.training.settings import TrainSettings
from mcspex_cli.training.simulate import Rendering, find_recipes, render


def make_sampler(
    settings: TrainSettings, sample_rate_hz: int, device: torch.device
) -> MixtureSampler:
    """Decode the training data to the device.

    Raises:
        ConfigError, AudioError: as `Corpus.read`.
    """
    data = settings.data
    corpus = Corpus.read(data.train, sample_rate_hz, given=data.mixing == "given")
    corpus.samples = corpus.samples.to(device)
    return MixtureSampler(corpus, settings.mixtures)


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


@torch.no_grad()
def calibrate(system: System, batch: Batch) -> None:
    """Scale the decoders so that estimates begin as loud as targets.

    Where the level counts, a network that begins 40 dB too loud would unlearn to speak at
    all: its masks are rectified, and what is zero everywhere learns nothing any more.
    """
    estimates, _ = system(batch.mixture, batch.reference)
    for bank, estimate in zip(system.decoder.banks, estimates, strict=True):
        wanted = batch.target[batch.present].square().mean()
        gain = (wanted / estimate[batch.present].square().mean().clamp_min(1e-12)).sqrt()
        for parameter in bank.parameters():
            parameter.mul_(gain)
