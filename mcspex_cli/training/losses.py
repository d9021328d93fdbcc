"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mcspex_cli.training.mixtures import Batch

SCALE_WEIGHTS = (0.8, 0.1, 0.1)
"""Of the short, middle and long estimate. Source: SpEx+, section 3.2."""

CLASSIFIER_WEIGHT = 0.5
"""Of the speaker classifier's cross-entropy. Source: SpEx+, section 3.2."""


FLOOR = 1e-3
"""The share of energy under which less error (or an absent target's estimate) stops to pay."""


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


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """SI-SDR in dB over the last axis, zero-mean, differentiable, finite for silence.

    A trainer's measure: `evaluation.metrics.si_sdr` is the one to report.
    """
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    tiny = 1e-8
    gain = (estimate * target).sum(-1, keepdim=True) / (
        target.square().sum(-1, keepdim=True) + tiny
    )
    kept = gain * target
    error = (estimate - kept).square().sum(-1)
    return 10 * torch.log10((kept.square().sum(-1) + tiny) / (error + tiny))


def snr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """SNR in dB over the last axis: unlike SI-SDR, a wrong level costs. Differentiable.

    At most 30 dB, where a better estimate stops to pay.
    """
    energy = target.square().sum(-1)
    error = (estimate - target).square().sum(-1)
    return -10 * torch.log10(error / energy.clamp_min(1e-8) + FLOOR)


def silence_db(estimate: Tensor, mixture: Tensor) -> Tensor:
    """How far an estimate is below the mixture, in dB over the last axis, at most 30.

    What an absent target's estimate is judged by. Source: ours.
    """
    share = estimate.square().sum(-1) / mixture.square().sum(-1).clamp_min(1e-8)
    return -10 * torch.log10(share + FLOOR)


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
        true_level: whether the level counts.
    """
    estimates, target, present = estimates.float(), batch.target, batch.present
    scored = si_sdr_db(estimates, target)
    quality = scored
    if true_level:
        silent = silence_db(estimates, batch.mixture)
        quality = torch.where(present, snr_db(estimates, target), silent)
    scales = zip(SCALE_WEIGHTS, quality.mean(-1), strict=True)
    weighted = torch.stack([weight * mean for weight, mean in scales]).sum()
    named = functional.cross_entropy(logits.float(), batch.speaker)
    with torch.no_grad():
        count = present.sum().clamp_min(1)
        reached = (scored[0] * present).sum() / count
        before = (si_sdr_db(batch.mixture, target) * present).sum() / count
        accuracy = (logits.argmax(-1) == batch.speaker).float().mean()
    return Losses(
        loss=CLASSIFIER_WEIGHT * named - weighted,
        si_sdr_db=reached,
        si_sdr_i_db=reached - before,
        accuracy=accuracy,
    )
