"""What training minimises, and the optimiser that does it.

The loss is SpEx+'s. Muon has the matrices of 1x1 convolutions, AdamW all other parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcspex_cli.model.systems import System
from mcspex_cli.training.mixtures import Batch
from mcspex_cli.training.settings import OptimiserSettings

_SCALE_WEIGHTS = (0.8, 0.1, 0.1)
"""Of the short, middle and long estimate. Source: SpEx+, section 3.2."""

_CLASSIFIER_WEIGHT = 0.5
"""Of the speaker classifier's cross-entropy. Source: SpEx+, section 3.2."""

_FLOOR = 1e-3
"""Share of energy below which it no longer pays to make the error smaller, or silence deeper."""

_MOMENTUM = 0.95
"""Of Muon, in Nesterov's form. Source: Jordan et al., 2024, as the coefficients below."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x³ and x⁵ in the polynomial whose iterations bring all singular values near 1."""

_ITERATIONS = 5

_LEAST_SIDE = 9
"""Matrices with a side shorter than this are AdamW's."""


@dataclass(frozen=True)
class Losses:
    """A step's loss and what it is made of, all scalars."""

    loss: Tensor
    si_sdr_db: Tensor
    """Mean SI-SDR of the short estimate, in dB, where the target is present."""
    si_sdr_i_db: Tensor
    """The same less the mixture's."""
    accuracy: Tensor
    """Share of references whose speaker the classifier named."""


def multi_scale_loss(
    estimates: Tensor, logits: Tensor, batch: Batch, *, true_level: bool
) -> Losses:
    """The estimates' quality over the three scales plus the classifier's cross-entropy.

    Quality is SI-SDR; for networks that learn a true level, SNR where the target is present
    and `silence_db` where it is not, since by SI-SDR silence could not be told from speech.

    Args:
        estimates: [scale, batch, sample], short first.
        logits: [batch, speaker].
        batch: what went in and should come out.
        true_level: whether the network learns the level.
    """
    estimates, target, present = estimates.float(), batch.target, batch.present
    scored = si_sdr_db(estimates, target)
    quality = scored
    if true_level:
        silent = silence_db(estimates, batch.mixture)
        quality = torch.where(present, snr_db(estimates, target), silent)
    scales = zip(_SCALE_WEIGHTS, quality.mean(-1), strict=True)
    weighted = torch.stack([weight * mean for weight, mean in scales]).sum()
    named = functional.cross_entropy(logits.float(), batch.speaker)
    with torch.no_grad():
        count = present.sum().clamp_min(1)
        reached = (scored[0] * present).sum() / count
        before = (si_sdr_db(batch.mixture, target) * present).sum() / count
        accuracy = (logits.argmax(-1) == batch.speaker).float().mean()
    loss = _CLASSIFIER_WEIGHT * named - weighted
    return Losses(loss, si_sdr_db=reached, si_sdr_i_db=reached - before, accuracy=accuracy)


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """SI-SDR in dB over the last axis, zero-mean, differentiable, finite for silence.

    A trainer's measure: `evaluation.metrics.si_sdr` is the one to report.
    """
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    tiny, product = 1e-8, (estimate * target).sum(-1, keepdim=True)
    kept = product / (target.square().sum(-1, keepdim=True) + tiny) * target
    error = (estimate - kept).square().sum(-1)
    return 10 * torch.log10((kept.square().sum(-1) + tiny) / (error + tiny))


def snr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """SNR in dB over the last axis: unlike SI-SDR, a wrong level costs. Differentiable.

    At most 30 dB: beyond that a better estimate gains nothing.
    """
    energy = target.square().sum(-1)
    error = (estimate - target).square().sum(-1)
    return -10 * torch.log10(error / energy.clamp_min(1e-8) + _FLOOR)


def silence_db(estimate: Tensor, mixture: Tensor) -> Tensor:
    """How far an estimate is below the mixture, in dB over the last axis, at most 30.

    It is the quality of an estimate whose target is absent. Source: ours.
    """
    share = estimate.square().sum(-1) / mixture.square().sum(-1).clamp_min(1e-8)
    return -10 * torch.log10(share + _FLOOR)


class Optimiser:
    """Both optimisers as one, with one factor for their two rates.

    Muon makes each matrix's update orthogonal: every direction in it counts alike. With
    `muon_rate` 0, AdamW has all parameters.

    Its state is `{"adam": ..., "momenta": [...]}`, both in the order of the system's parameters.
    """

    def __init__(self, system: System, settings: OptimiserSettings) -> None:
        self.settings = settings
        weights = {
            module.weight
            for module in system.modules()
            if isinstance(module, nn.Conv1d)
            and module.kernel_size == (1,)
            and min(module.weight.shape[:2]) >= _LEAST_SIDE
        }
        chosen = weights if settings.muon_rate else set()
        self.matrices: list[Tensor] = [p for p in system.parameters() if p in chosen]
        self.adam = torch.optim.AdamW(
            [p for p in system.parameters() if p not in chosen],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.shapes: dict[tuple[int, ...], list[int]] = {}
        for k, matrix in enumerate(self.matrices):
            self.shapes.setdefault(tuple(matrix.shape[:2]), []).append(k)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Descend, at both rates times `factor`."""
        settings = self.settings
        for group in self.adam.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.adam.step()
        if not self.matrices:
            return
        rate = settings.muon_rate * factor
        slopes = [p.grad for p in self.matrices if p.grad is not None]
        torch._foreach_lerp_(self.momenta, slopes, 1 - _MOMENTUM)
        updates = torch._foreach_lerp(slopes, self.momenta, _MOMENTUM)
        torch._foreach_mul_(self.matrices, 1 - rate * settings.weight_decay)
        for (rows, columns), places in self.shapes.items():
            directions = orthogonalise(torch.stack([updates[k].squeeze(-1) for k in places]))
            scale = rate * max(1.0, rows / columns) ** 0.5
            matrices = [self.matrices[k] for k in places]
            torch._foreach_add_(matrices, list(directions.unsqueeze(-1)), alpha=-scale)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved state, but with the present settings.

        A state of other parameters raises a ValueError.
        """
        self.adam.load_state_dict(state["adam"])
        for group in self.adam.param_groups:
            group["weight_decay"] = self.settings.weight_decay
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of `matrices` [matrix, row, column] to between 0.7 and 1.2.

    In the matrices' own precision: bfloat16 is a hundredth as fast as float32 on CPUs without
    instructions for it.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.transpose(1, 2)).transpose(1, 2)
    first, third, fifth = _COEFFICIENTS
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
        x = torch.baddbmm(x, polynomial, x, beta=first)
    return x


def rate_factor(settings: OptimiserSettings, step: int, share: float) -> float:
    """Linear warm-up to 1, plateau, linear decay to 0 over the last `decay_share` of the run.

    With `decay_minutes`, the decay takes all of the schedule, of which `share` (0 to 1) is done.
    """
    decay_share = 1.0 if settings.decay_minutes else settings.decay_share
    rising = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    falling = min(1.0, max(0.0, 1 - share) / decay_share) if decay_share else 1.0
    return rising * falling
