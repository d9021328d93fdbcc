"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SCALE_WEIGHTS = (0.8, 0.1, 0.1)
"""Of the short, middle and long estimate. Source: SpEx+, section 3.2."""

CLASSIFIER_WEIGHT = 0.5
"""Of the speaker classifier's cross-entropy. Source: SpEx+, section 3.2."""


@dataclass(frozen=True)
class Losses:
    """A step's loss and what it is made of."""

    total: Tensor
    si_sdr_db: Tensor
    """Mean SI-SDR of the short estimate, in dB."""
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


def multi_scale_loss(estimates: Tensor, logits: Tensor, target: Tensor, speaker: Tensor) -> Losses:
    """SI-SDR over the three scales plus the speaker classifier's cross-entropy.

    Args:
        estimates: [scale, batch, sample], short first.
        logits: [batch, speaker].
        target: [batch, sample].
        speaker: [batch], indices.
    """
    quality = si_sdr_db(estimates.float(), target).mean(-1)
    weights = torch.tensor(SCALE_WEIGHTS, device=quality.device)
    named = functional.cross_entropy(logits.float(), speaker)
    return Losses(
        total=CLASSIFIER_WEIGHT * named - (weights * quality).sum(),
        si_sdr_db=quality[0].detach(),
        accuracy=(logits.argmax(-1) == speaker).float().mean().detach(),
    )
