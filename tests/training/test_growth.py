"""Growing a network keeps what it does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mcspex_cli.errors import ConfigError
from mcspex_cli.model.config import SystemConfig, sized
from mcspex_cli.model.layers import CONSMS, FUSERS, INTERMGS
from mcspex_cli.model.systems import System, build
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.growth import enlarge, fit_classifier, grow
from mcspex_cli.training.mixtures import MixtureSampler
from mcspex_cli.training.settings import MixtureSettings
from tests.conftest import RATE_HZ

TINY = sized("mcspex", "tiny", RATE_HZ, 5)
KINDS = dict.fromkeys(  # each once: TINY has the first of each part
    (
        *(replace(TINY, scale_fuser=name) for name in FUSERS),
        *(replace(TINY, consm=name) for name in CONSMS),
        *(replace(TINY, scale_intermg=name) for name in INTERMGS),
        replace(TINY, system="spexplus"),
        replace(TINY, system="spexplus", reference_channels=24, norm="BN"),
    )
)


def trained(config: SystemConfig) -> System:
    """A network whose weights, norms and running statistics are far from their first values."""
    torch.manual_seed(1)
    system = build(config).requires_grad_(False)
    for parameter in system.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
        else:
            parameter.mul_(1.5)
    for buffer in system.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand(buffer.shape))
    return system.eval()


def difference_db(one: Tensor, other: Tensor) -> float:
    """How far below `one` the difference is."""
    ratio = (one - other).square().sum() / one.square().sum()
    return 10 * math.log10(max(float(ratio), 1e-30))


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.system} {c.scale_fuser} {c.consm}")
def test_a_grown_network_does_what_it_did(config: SystemConfig) -> None:
    system = trained(config)
    before = {key: tensor.clone() for key, tensor in system.state_dict().items()}
    signals = torch.randn(2, 4000), torch.randn(2, 3000)
    estimates, logits = system(*signals)
    for sizes, most_db in (
        ({}, -math.inf),
        ({"stacks": 3, "blocks": 6}, -math.inf),
        ({"width": 2.0}, -110),
        ({"width": 3.0, "stacks": 3}, -110),
        ({"width": 1.5, "blocks": 5}, -14),
    ):
        grown = grow(system, **sizes)
        assert grown.config == enlarge(config, **{"width": 1.0, "stacks": 0, "blocks": 0, **sizes})
        new_estimates, new_logits = grown(*signals)
        if most_db == -math.inf:
            assert torch.equal(new_estimates, estimates) and torch.equal(new_logits, logits)
        else:
            assert difference_db(estimates, new_estimates) < most_db
            assert difference_db(logits, new_logits) < most_db
    assert all(torch.equal(tensor, before[key]) for key, tensor in system.state_dict().items())


def test_copies_of_a_unit_learn_different_things() -> None:
    grown = grow(trained(TINY), width=2.0, stacks=3).requires_grad_(True)
    estimates, _ = grown(torch.randn(2, 4000), torch.randn(2, 3000))
    estimates.square().mean().backward()
    gradients = {name: p.grad for name, p in grown.named_parameters() if p.grad is not None}
    rows = gradients["extractor.stacks.0.blocks.0.widen.weight"].squeeze(-1)
    apart = torch.cdist(rows, rows) + 1e9 * torch.eye(len(rows))
    assert (apart.min(-1).values > 1e-2 * rows.norm(dim=-1)).all()
    assert gradients["extractor.stacks.2.blocks.0.narrow.weight"].abs().max() > 0


def test_growth_is_the_same_every_time() -> None:
    one, same = (grow(trained(TINY), 1.5, 3).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, same[key]) for key, tensor in one.items())


@pytest.mark.parametrize("sizes", [{"stacks": 1}, {"blocks": 2}])
def test_a_network_does_not_shrink(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"only add to what there is: 2 stacks of 4 blocks"):
        grow(trained(TINY), **sizes)


def test_a_computed_classifier_names_speakers_by_references_that_it_has_not_seen(
    corpus: Path,
) -> None:
    sampler = MixtureSampler(Corpus.read([corpus], RATE_HZ), MixtureSettings(segment_s=0.5))
    system = trained(replace(TINY, speakers=3))
    fit_classifier(system, sampler, seed=0)
    references, lengths, speakers = sampler.compose_references(sampler.plan(1, 0, range(60)))
    named = system.classifier(system.embed(references, lengths)).argmax(1)
    assert (named == speakers).double().mean() > 0.6  # by chance: 0.33
