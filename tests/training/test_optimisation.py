"""What training minimises, and Muon beside AdamW."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build
from mcspex_cli.training.mixtures import Batch
from mcspex_cli.training.optimisation import (
    Optimiser,
    multi_scale_loss,
    orthogonalise,
    rate_factor,
    si_sdr_db,
    silence_db,
    snr_db,
)
from mcspex_cli.training.settings import OptimiserSettings
from tests.conftest import RATE_HZ


def batch_of(
    target: torch.Tensor,
    interferer: torch.Tensor,
    speaker: torch.Tensor,
    present: torch.Tensor | None = None,
) -> Batch:
    present = torch.ones(len(target), dtype=torch.bool) if present is None else present
    noise = torch.zeros_like(target)
    return Batch(target + interferer, target, interferer, noise, target, None, speaker, present)


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
    batch = batch_of(target, torch.randn(2, 4000), speaker)
    losses = multi_scale_loss(estimates, logits, batch, true_level=False)
    short, middle, long = (float(si_sdr_db(e, target).mean()) for e in estimates)
    expected = -(0.8 * short + 0.1 * middle + 0.1 * long) + 0.5 * math.log(5)
    assert float(losses.loss) == pytest.approx(expected, abs=1e-4)
    assert float(losses.si_sdr_db) == pytest.approx(short)
    before = float(si_sdr_db(batch.mixture, target).mean())
    assert float(losses.si_sdr_i_db) == pytest.approx(short - before)
    assert float(losses.accuracy) == 0.5


def test_snr_counts_the_level_and_stops_at_30_db() -> None:
    target = torch.randn(1, 4000)
    assert float(snr_db(0.9 * target, target)) == pytest.approx(20, abs=0.5)
    assert float(snr_db(target, target)) == pytest.approx(30)
    assert float(si_sdr_db(0.9 * target, target)) > 60


def test_silence_is_measured_below_the_mixture() -> None:
    mixture = torch.randn(1, 4000)
    assert float(silence_db(mixture, mixture)) == pytest.approx(0, abs=0.01)
    assert float(silence_db(0.1 * mixture, mixture)) == pytest.approx(20, abs=0.5)
    assert float(silence_db(0 * mixture, mixture)) == pytest.approx(30)


def test_an_absent_target_teaches_silence() -> None:
    mixture = torch.randn(2, 4000)
    target = torch.stack((mixture[0] / 2, torch.zeros(4000)))
    batch = batch_of(target, mixture - target, torch.tensor([0, 1]), torch.tensor([True, False]))
    loud = torch.stack([mixture] * 3).requires_grad_()
    losses = multi_scale_loss(loud, torch.zeros(2, 2), batch, true_level=True)
    losses.loss.backward()
    assert loud.grad is not None
    # Going down the gradient makes the absent voice's estimate quieter.
    quieter = loud.detach() - 100 * loud.grad
    assert quieter[0, 1].square().sum() < loud[0, 1].square().sum()
    # What is reported is of those who speak.
    assert float(losses.si_sdr_i_db) == pytest.approx(0, abs=1e-4)
    silent = loud.detach() * torch.tensor([0.5, 0.0])[:, None]
    better = multi_scale_loss(silent, torch.zeros(2, 2), batch, true_level=True)
    assert float(better.loss) == pytest.approx(0.5 * math.log(2) - 30, abs=0.01)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_has_the_1x1_matrices_and_adamw_the_rest() -> None:
    system = build(sized("mcspex", "tiny", RATE_HZ, 4))
    optimiser = Optimiser(system, OptimiserSettings(muon_rate=0.01, weight_decay=0.0))
    names = {parameter: name for name, parameter in system.named_parameters()}
    muon = {names[p] for p in optimiser.matrices}
    assert "extractor.stacks.0.blocks.0.widen.weight" in muon
    assert not any("bias" in name or "bank" in name or "depthwise" in name for name in muon)
    adam = sum(len(group["params"]) for group in optimiser.adam.param_groups)
    assert adam + len(muon) == len(names)
    before = system.extractor.stacks[0].blocks[0].widen.weight.detach().clone()
    for parameter in system.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step(0.5)
    moved = (system.extractor.stacks[0].blocks[0].widen.weight - before).detach().squeeze(-1)
    # 0.01 * 0.5 * sqrt(32 / 16), times singular values near 1.
    assert torch.linalg.svdvals(moved).mean() == pytest.approx(0.00707, rel=0.2)


def test_without_a_rate_for_it_there_is_no_muon() -> None:
    system = build(sized("mcspex", "tiny", RATE_HZ, 4))
    assert Optimiser(system, OptimiserSettings(muon_rate=0.0)).matrices == []


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    system = build(sized("mcspex", "tiny", RATE_HZ, 4))
    other = deepcopy(system)
    settings = OptimiserSettings(muon_rate=0.01)
    one, two = Optimiser(system, settings), Optimiser(other, settings)
    for step in range(4):
        for parameter, twin in zip(system.parameters(), other.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        if step == 2:
            state = deepcopy(two.state_dict())
            two = Optimiser(other, settings)
            two.load_state_dict(state)
        one.step(1.0)
        two.step(1.0)
    for parameter, twin in zip(system.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin)


@pytest.mark.parametrize("muon_rate", [0.0, 0.01])
def test_a_saved_state_takes_on_the_present_weight_decay(muon_rate: float) -> None:
    """With slopes of zero, weights change by it alone."""
    system = build(sized("mcspex", "tiny", RATE_HZ, 4))
    state = Optimiser(system, OptimiserSettings(muon_rate=muon_rate)).state_dict()
    optimiser = Optimiser(system, OptimiserSettings(muon_rate=muon_rate, weight_decay=0.0))
    optimiser.load_state_dict(state)
    before = deepcopy(system.state_dict())
    for parameter in system.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(1.0)
    for key, tensor in system.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_the_rates_rise_stay_and_fall() -> None:
    chosen = OptimiserSettings(warmup_steps=10, decay_share=0.5)
    rates = [rate_factor(chosen, step, step / 100) for step in range(101)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9:51] == pytest.approx([1.0] * 42)
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0
