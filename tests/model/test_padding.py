"""A signal comes out of a batch of unequal lengths as it does alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mcspex_cli.model.accelerated import accelerate
from mcspex_cli.model.config import sized
from mcspex_cli.model.layers import NORMS, BatchNorm
from mcspex_cli.model.systems import System, fold
from tests.model.test_folded import KINDS, error_db, learned

LENGTHS = (8000, 7201, 7999, 7220, 7980)
"""Samples: within a tenth; whole hops and others, one sample and one hop apart."""
FAR_APART = (8000, 1300, 1, 39, 4001)
"""Shorter than a window and than a dilation, too."""


def batch_of(lengths: tuple[int, ...]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Signals [sample], the same as one batch, and their lengths."""
    generator = torch.Generator().manual_seed(2)
    signals = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    return signals, pad_sequence(signals, batch_first=True), torch.tensor(lengths)


def check(system: System, alone: System, lengths: tuple[int, ...]) -> None:
    """Compare what `system` gives for a batch with what `alone` gives for each signal."""
    signals, padded, counts = batch_of(lengths)
    voices = torch.randn(len(lengths), 16)
    together = system.extract(padded, voices, counts)
    for signal, voice, estimate in zip(signals, voices, together, strict=True):
        expected = alone.extract(signal[None], voice[None])[0]
        assert error_db(estimate[: len(signal)], expected) < -100


@pytest.fixture(params=KINDS, ids="-".join)
def system(request: pytest.FixtureRequest) -> System:
    kind, fuser, consm, intermg = request.param
    config = sized(kind, "tiny", 8000, 4)
    return learned(replace(config, scale_fuser=fuser, consm=consm, scale_intermg=intermg, blocks=6))


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [LENGTHS, FAR_APART])
def test_mixtures_of_unequal_lengths(system: System, lengths: tuple[int, ...]) -> None:
    check(system, system, lengths)
    folded = fold(system)
    check(folded, folded, lengths)


@torch.inference_mode()
def test_references_of_unequal_lengths(system: System) -> None:
    least = system.least_reference_samples
    signals, padded, counts = batch_of((8000, 7201, 4001, least, least + 19))
    for network in (system, fold(system)):
        for signal, voice in zip(signals, network.embed(padded, counts), strict=True):
            assert error_db(voice, network.embed(signal[None])[0]) < -100
    with pytest.raises(ValueError, match=f"needs {least} samples or more"):
        system.embed(padded, torch.tensor([8000, 7201, 4001, least - 1, 7000]))


@torch.inference_mode()
@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("kind", ["mcspex", "spexplus"])
def test_blocks_of_every_norm_and_those_of_training(kind: str, norm: str) -> None:
    system = learned(replace(sized(kind, "tiny", 8000, 4), norm=norm, blocks=6))
    check(system, system, LENGTHS)
    check(accelerate(deepcopy(system)), system, LENGTHS)


@torch.inference_mode()
def test_bfloat16_is_near() -> None:
    system = learned(sized("mcspex", "tiny", 8000, 4))
    signals, padded, counts = batch_of(LENGTHS)
    voices = torch.randn(len(LENGTHS), 16)
    with torch.autocast("cpu", torch.bfloat16):
        plain = system.extract(padded, voices, counts)
    folded = fold(system, torch.bfloat16).extract(padded.bfloat16(), voices.bfloat16(), counts)
    for row, (signal, expected) in enumerate(
        zip(signals, system.extract(padded, voices, counts), strict=True)
    ):
        for rough in (plain, folded):
            assert error_db(rough[row, : len(signal)], expected[: len(signal)]) < -30


def test_batch_norm_counts_valid_frames_only() -> None:
    torch.manual_seed(0)
    norm, features = BatchNorm(5).train(), torch.randn(3, 5, 20)
    valid = torch.arange(20) < torch.tensor([20, 11, 4])[:, None, None]
    together = deepcopy(norm)(features, valid)
    rows = torch.cat([one[:, :count] for one, count in zip(features, (20, 11, 4), strict=True)], 1)
    expected = norm(rows[None])[0]
    got = torch.cat([one[:, :count] for one, count in zip(together, (20, 11, 4), strict=True)], 1)
    torch.testing.assert_close(got, expected)
