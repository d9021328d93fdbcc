"""The networks' shapes, sizes and laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mcspex_cli.checkpoint.checkpoint import new_system
from mcspex_cli.model.config import SIZES, sized
from mcspex_cli.model.layers import CONSMS, FUSERS, INTERMGS, ConcatBlock, ConSM, GlobalLayerNorm
from mcspex_cli.model.systems import SYSTEMS, System, build
from tests.conftest import RATE_HZ, buzz
from tests.model.test_folded import error_db


def weights(system: nn.Module) -> int:
    return sum(p.numel() for p in system.parameters())


@pytest.fixture
def voices() -> torch.Tensor:
    """Three signals [batch, sample] of one second."""
    return torch.from_numpy(np.stack([buzz(p, 1.0, p) for p in (100, 140, 210)]))


def test_sizes_are_those_promised() -> None:
    spexplus = weights(build(sized("spexplus", "base", 8000, 101)))
    assert 11.0e6 < spexplus < 11.2e6
    assert abs(weights(build(sized("mcspex", "base", 8000, 101))) / spexplus - 1) < 0.15
    for system in SYSTEMS:
        assert 1e6 < weights(build(sized(system, "small", 8000, 101))) < 2.5e6
        assert weights(build(sized(system, "tiny", 8000, 4))) < 50_000


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rate_hz", [8000, 16000])
def test_times_in_ms_give_samples_at_every_rate(size: str, rate_hz: int) -> None:
    config = sized("mcspex", size, rate_hz, 4)
    per_ms = rate_hz // 1000
    assert config.hop == config.hop_ms * per_ms
    assert config.windows == tuple(w * per_ms for w in config.windows_ms)


def test_the_papers_sizes_at_8_khz() -> None:
    config = SIZES["base"]
    assert (config.windows, config.hop) == ((20, 80, 160), 10)


@pytest.mark.parametrize("length", [1, 19, 20, 21, 39, 40, 41, 1001, 8000])
def test_an_estimate_is_as_long_as_its_mixture(tiny: System, length: int) -> None:
    estimate = tiny.extract(torch.randn(2, length), torch.randn(2, tiny.config.embedding))
    assert estimate.shape == (2, length)
    assert estimate.isfinite().all()


def test_an_equal_length_batch_is_its_singles(tiny: System, voices: torch.Tensor) -> None:
    embeddings = tiny.embed(voices)
    batch = tiny.extract(voices, embeddings)
    for one, voice, estimate in zip(voices, embeddings, batch, strict=True):
        single = tiny.embed(one[None])
        assert error_db(single[0], voice) < -100
        assert error_db(tiny.extract(one[None], single)[0], estimate) < -100


def test_zeros_are_part_of_a_signal_unless_lengths_say_otherwise(
    tiny: System, voices: torch.Tensor
) -> None:
    embedding, longer = tiny.embed(voices), functional.pad(voices, (0, 8000))
    assert error_db(tiny.embed(longer), embedding) > -60
    assert error_db(tiny.embed(longer, torch.full((3,), 8000)), embedding) < -100


def test_forward_trains_what_extract_uses(tiny: System, voices: torch.Tensor) -> None:
    reference = voices.flip(0)[:, :7000]
    estimates, logits = tiny(voices, reference)
    assert estimates.shape == (3, 3, 8000)
    assert logits.shape == (3, 4)
    short = tiny.extract(voices, tiny.embed(reference))
    assert error_db(short, estimates[0]) < -100


def test_every_weight_of_a_system_is_trained(tiny: System, voices: torch.Tensor) -> None:
    system = build(tiny.config).train()
    estimates, logits = system(voices, voices)
    (estimates.square().sum() + logits.square().sum()).backward()
    idle = [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_the_embedding_steers_the_estimate(tiny: System, voices: torch.Tensor) -> None:
    system = build(tiny.config).eval()
    for module in system.modules():
        if isinstance(module, ConSM):
            nn.init.normal_(module.modulate.weight)
    one, other = torch.randn(2, 1, tiny.config.embedding)
    with torch.no_grad():
        a, b = system.extract(voices[:1], one), system.extract(voices[:1], other)
    assert error_db(a, b) > -60


def test_a_reference_that_leaves_no_frame_is_refused(tiny: System) -> None:
    least = tiny.least_reference_samples
    assert tiny.embed(torch.randn(1, least)).isfinite().all()
    with pytest.raises(ValueError, match=f"needs {least} samples"):
        tiny.embed(torch.randn(1, least - 1))


def test_global_layer_norm_is_the_papers_formula() -> None:
    x = torch.randn(2, 6, 50, dtype=torch.float64) * 3 + 1
    norm = GlobalLayerNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean = x.mean((1, 2), keepdim=True)
    variance = (x - mean).square().mean((1, 2), keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]
    torch.testing.assert_close(norm(x), expected)


def test_concat_block_is_a_convolution_of_features_and_repeated_embedding() -> None:
    block = ConcatBlock(8, 16, 3, 4)
    x, e = torch.randn(2, 8, 30), torch.randn(2, 4)
    both = torch.cat([x, e[..., None].expand(-1, -1, 30)], dim=1)
    kernel = torch.cat([block.widen.weight, block.condition.weight[..., None]], dim=1)
    widened = functional.conv1d(both, kernel, block.widen.bias)
    torch.testing.assert_close(block(x, e), x + block.transform(widened))


@pytest.mark.parametrize("kind", CONSMS)
def test_consm_scales_and_shifts_as_the_speaker_asks(kind: str) -> None:
    consm = CONSMS[kind](8, 4)
    x, e = torch.randn(2, 8, 30), torch.randn(2, 4)
    scale, shift = consm.modulation(x, e).chunk(2, dim=1)
    torch.testing.assert_close(consm(x, e), x * (1 + scale) + shift)
    assert not torch.allclose(consm(x, e), consm(x, e.flip(0)), atol=1e-3)
    nn.init.zeros_(consm.modulate.weight)
    nn.init.zeros_(consm.modulate.bias)
    torch.testing.assert_close(consm(x, e), x)


@pytest.mark.parametrize("kind", FUSERS)
def test_a_fuser_weighs_by_the_frame_and_by_one_on_average(kind: str) -> None:
    fuser = FUSERS[kind](6, 8)
    scales = tuple(torch.randn(2, 6, 30).relu() for _ in range(3))
    features = fuser.normalise(scales)
    weights = fuser.weigh(features).expand_as(features).detach()
    assert weights.min() >= 0
    assert weights.std(dim=-1).mean() > 1e-3
    assert float(weights.mean()) == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(fuser(scales), fuser.project(features * weights))


@pytest.mark.parametrize("kind", INTERMGS)
def test_masks_inform_each_other(kind: str) -> None:
    masks = INTERMGS[kind](8, 6)
    own = torch.randn(1, 18, 30)
    changed = own.clone()
    changed[:, 12:] += 1  # the long scale's head
    before, after = masks.inform(own), masks.inform(changed)
    assert (before - after)[:, :6].abs().max() > 1e-3  # reaches the short scale's mask
    assert all(m.shape == (1, 6, 30) and m.min() >= 0 for m in masks(torch.randn(1, 8, 30)))


def test_mcspex_shares_its_fuser_and_spexplus_does_not() -> None:
    mcspex, spexplus = (build(sized(s, "tiny", RATE_HZ, 4)) for s in ("mcspex", "spexplus"))
    scales = mcspex.encoder(torch.randn(1, 800))
    torch.testing.assert_close(mcspex.fusion.mixture(scales), mcspex.fusion.reference(scales))
    assert (spexplus.fusion.mixture(scales) - spexplus.fusion.reference(scales)).abs().max() > 0.01


GOLDEN = {
    "mcspex": "encoder fusion speaker classifier extractor masks decoder",
    "spexplus": "encoder fusion speaker classifier extractor masks decoder",
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_state_dict_keys_are_stable(system: str) -> None:
    keys = build(sized(system, "tiny", RATE_HZ, 4)).state_dict().keys()
    assert list(dict.fromkeys(k.split(".")[0] for k in keys)) == GOLDEN[system].split()
    own = {
        "mcspex": {
            "fusion.gate.0.weight",
            "extractor.stacks.1.condition.modulate.bias",
            "extractor.stacks.1.blocks.3.narrow.weight",
            "masks.interact.2.weight",
        },
        "spexplus": {
            "fusion.reference.project.weight",
            "extractor.stacks.1.condition.condition.weight",
            "extractor.stacks.1.blocks.2.narrow.weight",
            "masks.heads.2.weight",
        },
    }
    assert own[system] <= keys
    assert len(keys) == {"mcspex": 175, "spexplus": 171}[system]


@pytest.mark.parametrize("system", SYSTEMS)
def test_16_khz_has_the_weights_of_8_khz_but_for_its_windows(system: str) -> None:
    low = build(sized(system, "tiny", 8000, 4))
    high = build(replace(low.config, sample_rate_hz=16000))
    shapes = {k: v.shape for k, v in low.state_dict().items()}
    differing = {k for k, v in high.state_dict().items() if shapes[k] != v.shape}
    assert {k.rsplit(".", 2)[0] for k in differing} == {"encoder.banks", "decoder.banks"}


@pytest.mark.parametrize(("former", "name"), [("steady", "film"), ("listening", "feature_film")])
def test_checkpoints_may_have_the_former_names_of_consms(former: str, name: str) -> None:
    config = replace(sized("mcspex", "tiny", 8000, 4), consm=former)
    assert new_system(config, "config.json").config.consm == name
