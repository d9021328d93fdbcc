"""What a run starts from: its network, its corpus and its validation mixtures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mcspex_cli.checkpoint.names import CheckpointInfo, find_checkpoint
from mcspex_cli.checkpoint.weights import load_checkpoint
from mcspex_cli.errors import ConfigError
from mcspex_cli.model.systems import System, SystemConfig, build, sized
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.mixtures import Batch, MixtureSampler
from mcspex_cli.training.settings import TrainSettings
from mcspex_cli.training.simulate import Rendering, find_recipes, render


def make_sampler(settings: TrainSettings, device: torch.device) -> MixtureSampler:
    """Decode the training data to the device.

    Raises:
        ConfigError, AudioError: as `Corpus.read`.
    """
    data = settings.data
    rate = settings.model.sample_rate_hz
    corpus = Corpus.read(data.train, rate, given=data.mixing == "given")
    corpus.samples = corpus.samples.to(device)
    return MixtureSampler(corpus, settings.mixtures)


def read_validation(settings: TrainSettings, part: slice) -> list[Rendering]:
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
    return [render(recipes[k], settings.model.sample_rate_hz) for k in chosen]


def start_of(settings: TrainSettings) -> CheckpointInfo | None:
    """The checkpoint that a training goes on from, if it does.

    Raises:
        CheckpointError: it is not there.
    """
    name = settings.model.start_from
    return find_checkpoint(Path(name) if Path(name).is_dir() else name) if name else None


def build_system(settings: TrainSettings, speakers: int) -> System:
    """Build a new network, or take a checkpoint's with a classifier for these speakers.

    Raises:
        ConfigError: the checkpoint works at another rate.
        CheckpointError: it cannot be loaded.
    """
    model, levelled = settings.model, settings.mixtures.absent > 0
    origin = start_of(settings)
    if origin is None:
        return build(_config(settings, speakers))
    start = load_checkpoint(origin)
    if start.config.sample_rate_hz != model.sample_rate_hz:
        raise ConfigError(
            f"{model.start_from}: works at {start.config.sample_rate_hz} Hz. "
            "Set [model] sample_rate_hz to that."
        )
    if start.config.speakers != speakers:
        start.classifier = nn.Linear(start.config.embedding, speakers)
    start.config = replace(start.config, speakers=speakers, true_level=levelled)
    return start.requires_grad_(True).train()


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


def _config(settings: TrainSettings, speakers: int) -> SystemConfig:
    """The network that the settings describe."""
    model = settings.model
    config = sized(model.system, model.size, model.sample_rate_hz, speakers)
    return replace(
        config,
        scale_fuser=model.scale_fuser,
        consm=model.consm,
        scale_intermg=model.scale_intermg,
        true_level=settings.mixtures.absent > 0,
    )
