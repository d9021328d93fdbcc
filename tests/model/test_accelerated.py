"""Training's own network gives the plain network's estimates and gradients."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from mcspex_cli.model.accelerated import accelerate
from mcspex_cli.model.config import sized
from mcspex_cli.model.layers import CONSMS
from mcspex_cli.model.systems import System, build
from tests.model.test_folded import learned


def gradients(
    system: System, precision: torch.dtype = torch.float32
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    mixture = 0.1 * torch.randn(4, 5000, generator=generator)
    reference = 0.1 * torch.randn(2, 6000, generator=generator)
    if precision == torch.float64:
        mixture, reference = mixture.double(), reference.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        estimates, logits = system(mixture, reference)
    target = torch.randn(estimates.shape, generator=generator)
    weights = torch.randn(logits.shape, generator=generator)
    ((estimates * target).sum() + (logits * weights).sum()).backward()
    return estimates.detach(), {
        n: p.grad for n, p in system.named_parameters() if p.grad is not None
    }


@pytest.fixture(params=["spexplus", *CONSMS])
def plain(request: pytest.FixtureRequest) -> System:
    kind = request.param
    config = sized("spexplus" if kind == "spexplus" else "mcspex", "tiny", 8000, 4)
    if kind != "spexplus":
        config = replace(config, consm=kind)
    return learned(replace(config, blocks=6)).train().requires_grad_(True)


def test_estimates_and_gradients_are_the_plain_networks(plain: System) -> None:
    # In float64: in float32 one PReLU that rounds to the other side of zero is 0.3 % off.
    plain = plain.double()
    fast = accelerate(deepcopy(plain))
    estimates, slopes = gradients(fast, torch.float64)
    expected, expected_slopes = gradients(plain, torch.float64)
    torch.testing.assert_close(estimates, expected, rtol=1e-9, atol=1e-10)
    assert slopes.keys() == expected_slopes.keys()
    for name, slope in expected_slopes.items():
        assert (slopes[name] - slope).norm() / slope.norm() < 1e-8, name


def test_bfloat16_is_near_float32(plain: System) -> None:
    fast = accelerate(deepcopy(plain))
    estimates, slopes = gradients(fast, torch.bfloat16)
    expected, expected_slopes = gradients(plain)
    assert (estimates - expected).norm() / expected.norm() < 0.03
    every = torch.cat([slopes[name].flatten() for name in expected_slopes])
    right = torch.cat([slope.flatten() for slope in expected_slopes.values()])
    assert torch.cosine_similarity(every, right, dim=0) > 0.99


def test_weights_keep_their_names_and_shapes(plain: System) -> None:
    before = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    fast = accelerate(deepcopy(plain))
    assert {name: tensor.shape for name, tensor in fast.state_dict().items()} == before


def test_other_norms_keep_their_blocks() -> None:
    plain = build(replace(sized("mcspex", "tiny", 8000, 4), norm="cLN")).train()
    estimates, slopes = gradients(accelerate(deepcopy(plain)))
    expected, expected_slopes = gradients(plain)
    torch.testing.assert_close(estimates, expected, rtol=1e-4, atol=1e-5)
    assert slopes.keys() == expected_slopes.keys()


@pytest.mark.filterwarnings("ignore")
def test_compiled_passes_agree() -> None:
    plain = learned(replace(sized("mcspex", "tiny", 8000, 4), blocks=2)).train()
    plain.requires_grad_(True)
    estimates, slopes = gradients(accelerate(deepcopy(plain), compiled=True))
    expected, expected_slopes = gradients(plain)
    torch.testing.assert_close(estimates, expected, rtol=1e-4, atol=1e-5)
    for name, slope in expected_slopes.items():
        assert (slopes[name] - slope).norm() / slope.norm() < 0.02, name
