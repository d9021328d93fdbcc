"""The network that a run starts with: a new one, or a checkpoint's, grown and resampled."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, load_checkpoint
from mcspex_cli.checkpoint.convert import at_sample_rate
from mcspex_cli.errors import ConfigError
from mcspex_cli.model.config import SystemConfig, sized
from mcspex_cli.model.layers import ConSM, TCNBlock
from mcspex_cli.model.systems import System, build
from mcspex_cli.training.mixtures import Batch, MixtureSampler
from mcspex_cli.training.settings import TrainSettings

_REFERENCES_PER_SPEAKER = 4
"""How many references, on average, a classifier is computed from."""

_MOST_REFERENCES = 4096
"""They take some minutes on a CPU."""

_REFERENCES_AT_ONCE = 16

_SHRINKAGE = 0.05
"""The share of an equal variance in all directions in the covariance of a speaker's embeddings."""

_PRIOR_COUNT = 0.6
"""The mean of all speakers counts in each speaker's mean like this many references."""

_LOGIT_SCALE = 0.25
"""By itself the analysis is too sure, since it knows so few references of each speaker."""

_SPREAD = 0.2
"""How unequally, relative to an equal share, the copies of a unit share its outgoing weights."""


def build_system(
    settings: TrainSettings, start: CheckpointInfo | None, sample_rate_hz: int, speakers: int
) -> System:
    """Build a new network, or take a checkpoint's with a classifier for these speakers.

    A checkpoint's network is taken to the sample rate and grown to the sizes in the settings,
    which keeps its output (see `grow`).

    Raises:
        ConfigError: the settings name another system than the checkpoint's, or other parts of it,
            or would make its network smaller.
        CheckpointError: it cannot be loaded, or has no counterpart at the sample rate.
    """
    model = settings.model
    true_level = settings.mixtures.absent > 0
    keys = ("scale_fuser", "consm", "scale_intermg")
    parts = {key: getattr(model, key) for key in keys if getattr(model, key)}
    if start is None:
        config = sized(model.system or "mcspex", model.size or "small", sample_rate_hz, speakers)
        config = replace(config, true_level=true_level, **parts)
        return build(enlarge(config, model.width, model.stacks, model.blocks))
    if start.config.system == "spexplus":
        parts = {}  # which it does not have
    for key, value in {"system": model.system, **parts}.items():
        own = getattr(start.config, key)
        if value not in (None, own):
            raise ConfigError(
                f'[model] {key} = "{value}" cannot be: {start.label}, which start_from names, has '
                f'"{own}". Leave {key} out.'
            )
    system = load_checkpoint(start)
    if system.config.sample_rate_hz != sample_rate_hz:
        system = at_sample_rate(system, sample_rate_hz)
    system = grow(system, model.width, model.stacks, model.blocks)
    if system.config.speakers != speakers:
        system.classifier = nn.Linear(system.config.embedding, speakers)
    system.config = replace(system.config, speakers=speakers, true_level=true_level)
    return system.requires_grad_(True).train()


@torch.no_grad()
def match_level(system: System, batch: Batch) -> None:
    """Scale the decoders so that estimates begin as loud as targets.

    Where the level counts, a network that begins 40 dB too loud would unlearn to speak at
    all: its masks are rectified, and what is zero everywhere learns nothing any more.
    Where nobody in the batch is present, they stay as they are.
    """
    if not batch.present.any():
        return
    batch = batch.to(system.classifier.weight.device)
    estimates, _ = system(batch.mixture, batch.reference, batch.reference_lengths)
    for bank, estimate in zip(system.decoder.banks, estimates, strict=True):
        power = batch.target[batch.present].square().mean()
        gain = (power / estimate[batch.present].square().mean().clamp_min(1e-12)).sqrt()
        for parameter in bank.parameters():
            parameter.mul_(gain)


@torch.no_grad()
def fit_classifier(system: System, sampler: MixtureSampler, seed: int) -> None:
    """Compute the speaker classifier, by linear discriminant analysis of embedded references.

    The references are drawn as in training, `_REFERENCES_PER_SPEAKER` on average. A classifier that
    begins at random learns slowly at the low rates that suit a trained network. Source: ours; the
    constants were chosen for `mcspex-16k` (docs/lab-book.md).
    """
    was_training, speakers = system.training, system.config.speakers
    device = system.classifier.weight.device
    system.eval()
    embedded, named = [], []
    count = min(_MOST_REFERENCES, _REFERENCES_PER_SPEAKER * speakers)
    for step in range(math.ceil(count / _REFERENCES_AT_ONCE)):
        rows = range(_REFERENCES_AT_ONCE * sampler.settings.mixtures_per_reference)
        references, lengths, speaker = sampler.compose_references(sampler.plan(seed, step, rows))
        lengths = None if lengths is None else lengths.to(device)
        embedded.append(system.embed(references.to(device), lengths).cpu().double())
        named.append(speaker.cpu())
    system.train(was_training)
    embeddings, speaker = torch.cat(embedded), torch.cat(named)
    counts = speaker.bincount(minlength=speakers)[:, None].double()
    sums = embeddings.new_zeros(speakers, embeddings.shape[1]).index_add(0, speaker, embeddings)
    deviations = embeddings - (sums / counts.clamp_min(1))[speaker]
    covariance = deviations.T @ deviations / max(1, len(speaker) - int((counts > 0).sum()))
    variance = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = torch.lerp(covariance, variance * torch.eye(len(covariance)).double(), _SHRINKAGE)
    means = (sums + _PRIOR_COUNT * embeddings.mean(0)) / (counts + _PRIOR_COUNT)
    weight = _LOGIT_SCALE * torch.linalg.solve(covariance, means.T).T
    bias = -0.5 * (weight * means).sum(1)
    system.classifier.weight.copy_(weight)
    system.classifier.bias.copy_(bias - bias.mean())


def enlarge(config: SystemConfig, width: float, stacks: int, blocks: int) -> SystemConfig:
    """A system's sizes with `width` times as many units in every layer, and more blocks.

    0 leaves the stacks, or the blocks in each, as they are.

    Raises:
        ConfigError: `config` has more stacks or blocks.
    """
    if 0 < stacks < config.stacks or 0 < blocks < config.blocks:
        raise ConfigError(
            f"[model] stacks and blocks can only add to what there is: {config.stacks} stacks of "
            f"{config.blocks} blocks. Raise them, or leave them out."
        )

    def times(size: int) -> int:
        return round(width * size)

    return replace(
        config,
        filters=times(config.filters),
        channels=times(config.channels),
        hidden=times(config.hidden),
        reference_channels=times(config.reference_channels),
        embedding=times(config.embedding),
        speaker_channels=tuple(map(times, config.speaker_channels)),
        stacks=stacks or config.stacks,
        blocks=blocks or config.blocks,
    )


def grow(system: System, width: float = 1.0, stacks: int = 0, blocks: int = 0) -> System:
    """Make a network wider and deeper so that its output stays the same, as far as it can.

    A wider layer repeats units of the narrow one. Whatever reads a repeated unit divides its
    weights among the copies, in unequal random shares, so that the copies learn different
    things. New blocks and stacks come last and begin as the identity: their last layer is
    zero. A width of 2, 3 and so on, and any depth, keep the output exactly; other widths
    closely, since norms average over units of which some are repeated and some are not.
    `system` is not changed. `stacks` and `blocks` (in each) are the new network's, as in `enlarge`.
    Source: ours, after Net2Net (Chen et al. 2016).

    Raises:
        ConfigError: the network has more stacks or blocks.
    """
    config = enlarge(system.config, width, stacks, blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        grown = build(config)
        new = grown.load_state_dict(_widen(system, config), strict=False).missing_keys
    for name, module in grown.named_modules():
        if isinstance(module, TCNBlock | ConSM) and any(key.startswith(f"{name}.") for key in new):
            last = module.narrow if isinstance(module, TCNBlock) else module.modulate
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
    return grown.eval().requires_grad_(False)


Axis = tuple[str, Fraction] | None
"""The size that an axis of a weight follows, and how many times it; None if it follows none."""


def _widen(system: System, config: SystemConfig) -> dict[str, Tensor]:
    """The network's weights at the widths of `config`."""
    old = system.config
    with torch.device("meta"):
        shapes = build(replace(config, stacks=old.stacks, blocks=old.blocks)).state_dict()
    transposed = {
        f"{name}.weight"
        for name, module in system.named_modules()
        if isinstance(module, nn.ConvTranspose1d)
    }
    indices: dict[tuple[str, int, int], Tensor] = {}
    widened = {}
    for key, axes in _axes(old).items():
        tensor = system.state_dict()[key].detach().clone()
        inputs = 0 if key in transposed else 1
        # Inputs come last, so that copies of an output share their inputs in different ways.
        for axis in sorted(range(tensor.ndim), key=lambda axis: axis == inputs):
            named = axes[axis]
            if named is None or tensor.shape[axis] == shapes[key].shape[axis]:
                continue
            name, times = named[0], max(1, int(named[1]))
            sizes = tensor.shape[axis] // times, shapes[key].shape[axis] // times
            index = indices.setdefault((name, *sizes), _copies(*sizes))
            index = torch.cat([index + part * sizes[0] for part in range(times)])
            tensor = tensor.index_select(axis, index)
            if axis == inputs:
                tensor = tensor * _random_shares(index, axis, tensor.shape)
        widened[key] = tensor
    return widened


def _axes(config: SystemConfig) -> dict[str, tuple[Axis, ...]]:
    """The size that each axis of each weight follows, whatever the network's parts are.

    Read off a network of the same kind whose sizes are all different.
    """
    primes = iter((101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157))
    sizes = {name: 2 * next(primes) for name in ("filters", "hidden", "embedding")}
    # Equal widths stay equal: a residual block between such has no weights in its shortcut.
    widths = (config.channels, config.reference_width, *config.speaker_channels)
    by_width = {width: 2 * next(primes) for width in dict.fromkeys(widths)}
    probe = replace(
        config,
        filters=sizes["filters"],
        hidden=sizes["hidden"],
        embedding=sizes["embedding"],
        channels=by_width[config.channels],
        reference_channels=by_width[config.reference_width] if config.reference_channels else 0,
        speaker_channels=tuple(by_width[width] for width in config.speaker_channels),
        speakers=1,
    )
    sizes |= {f"channels {width}": size for width, size in by_width.items()}
    axes = {
        size * times: (name, times)
        for name, size in sizes.items()
        for times in (Fraction(1, 2), Fraction(1), Fraction(2), Fraction(3))
    }
    with torch.device("meta"):
        weights = build(probe).state_dict()
    return {key: tuple(axes.get(n) for n in weight.shape) for key, weight in weights.items()}


def _copies(units: int, wider: int) -> Tensor:
    """For each of `wider` units, the one of `units` that it is a copy of; each of them is used."""
    whole, left = divmod(wider, units)
    return torch.cat([torch.arange(units).repeat(whole), torch.randperm(units)[:left]])


def _random_shares(index: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """Random shares [shape] for inputs that are copies of `index`; those of a unit sum to 1."""
    share = 1 + _SPREAD * (2 * torch.rand(shape) - 1)
    total = torch.zeros(shape).index_add_(axis, index, share)
    return share / total.index_select(axis, index)
