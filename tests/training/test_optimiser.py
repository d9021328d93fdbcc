"""Muon beside AdamW."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import build
from mcspex_cli.training.optimiser import Optimiser, orthogonalise
from mcspex_cli.training.settings import OptimiserSettings
from tests.conftest import RATE_HZ


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
