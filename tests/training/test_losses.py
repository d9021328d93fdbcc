"""The training loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.training.losses import multi_scale_loss, si_sdr_db


def test_it_is_the_reported_metric() -> None:
    target = torch.randn(3, 4000) + 0.3
    estimate = 0.5 * target + torch.randn(3, 4000)
    expected = [si_sdr(e, t) for e, t in zip(estimate.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(si_sdr_db(estimate, target), expected, atol=1e-3)


def test_silence_has_a_finite_value_and_gradient() -> None:
    for estimate, target in (
        (torch.zeros(1, 100), torch.randn(1, 100)),
        (torch.randn(1, 100), torch.zeros(1, 100)),
        (torch.zeros(1, 100), torch.zeros(1, 100)),
    ):
        estimate.requires_grad_()
        value = si_sdr_db(estimate, target)
        value.sum().backward()
        assert value.isfinite().all()
        assert estimate.grad is not None and estimate.grad.isfinite().all()


def test_scales_and_classifier_are_weighted_as_published() -> None:
    target = torch.randn(2, 4000)
    estimates = torch.stack([target + s * torch.randn(2, 4000) for s in (0.1, 0.3, 1.0)])
    logits, speaker = torch.zeros(2, 5), torch.tensor([0, 3])
    losses = multi_scale_loss(estimates, logits, target, speaker)
    short, middle, long = (float(si_sdr_db(e, target).mean()) for e in estimates)
    expected = -(0.8 * short + 0.1 * middle + 0.1 * long) + 0.5 * math.log(5)
    assert float(losses.total) == pytest.approx(expected, abs=1e-4)
    assert float(losses.si_sdr_db) == pytest.approx(short)
    assert float(losses.accuracy) == 0.5
