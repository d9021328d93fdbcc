"""Folded networks give what the networks themselves give, however they are put together."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from mcspex_cli.model.config import SystemConfig, sized
from mcspex_cli.model.layers import CONSMS, FUSERS, INTERMGS, NORMS
from mcspex_cli.model.systems import System, build, can_fold, fold

KINDS = [("spexplus", "gate", "film", "mixing")]
KINDS += [("mcspex", *parts) for parts in product(FUSERS, CONSMS, INTERMGS)]

LENGTHS = [1, 39, 300, 8000, 8001, 23_456]
"""Samples: under a window, under a dilation, whole hops and others."""


def learned(config: SystemConfig) -> System:
    """A network of which nothing is as it begins: neither norms nor slopes nor statistics."""
    torch.manual_seed(1)
    system = build(config).eval().requires_grad_(False)
    for parameter in system.parameters():
        parameter.add_(0.1 * parameter.abs().mean() * torch.randn_like(parameter))
        if parameter.ndim < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
    for buffer in system.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.3 * torch.rand_like(buffer))
    return system


def error_db(made: Tensor, expected: Tensor) -> float:
    made, expected = made.double(), expected.double()
    return 20 * float(torch.log10((made - expected).norm() / expected.norm()))


@pytest.fixture(params=KINDS, ids="-".join)
def system(request: pytest.FixtureRequest) -> System:
    kind, fuser, consm, intermg = request.param
    config = sized(kind, "tiny", 8000, 4)
    return learned(replace(config, scale_fuser=fuser, consm=consm, scale_intermg=intermg, blocks=5))


@torch.inference_mode()
def test_a_folded_network_is_the_same_network(system: System) -> None:
    folded = fold(system)
    voice = system.embed(0.1 * torch.randn(1, 12_345))
    for length in LENGTHS:
        mixture = 0.1 * torch.randn(1, length)
        expected = system.extract(mixture, voice)
        assert folded.extract(mixture, voice).shape == expected.shape
        assert error_db(folded.extract(mixture, voice), expected) < -100


@torch.inference_mode()
def test_a_folded_network_embeds_alike(system: System) -> None:
    folded = fold(system)
    for length in (system.least_reference_samples, 12_345):
        reference = 0.1 * torch.randn(1, length)
        assert error_db(folded.embed(reference), system.embed(reference)) < -100


@torch.inference_mode()
def test_bfloat16_is_near(system: System) -> None:
    folded = fold(system, torch.bfloat16)
    mixture, reference = 0.1 * torch.randn(1, 16_000), 0.1 * torch.randn(1, 16_000)
    voice = folded.embed(reference.bfloat16())
    assert voice.dtype == torch.bfloat16
    made = folded.extract(mixture.bfloat16(), voice)
    assert error_db(made, system.extract(mixture, system.embed(reference))) < -30


@torch.inference_mode()
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 30.0])
def test_a_folded_network_takes_any_level(scale: float) -> None:
    system = learned(sized("mcspex", "tiny", 8000, 4))
    mixture, voice = scale * torch.randn(1, 8000), torch.randn(1, 16)
    assert error_db(fold(system).extract(mixture, voice), system.extract(mixture, voice)) < -90


def test_folding_leaves_the_network_alone() -> None:
    system = learned(sized("spexplus", "tiny", 8000, 4))
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    folded = fold(system, torch.bfloat16)
    assert {t.dtype for t in folded.parameters()} == {torch.bfloat16}
    for name, tensor in system.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("norm", NORMS)
def test_only_gln_can_be_folded(norm: str) -> None:
    system = build(replace(sized("spexplus", "tiny", 8000, 4), norm=norm))
    assert can_fold(system) == (norm == "gLN")
