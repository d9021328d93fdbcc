"""SI-SDR: closed forms, silence rules, and another library."""

from __future__ import annotations

import math

import fast_bss_eval
import numpy as np
import pytest

from mcspex_cli.evaluation.metrics import is_flipped, is_silent, si_sdr, snr

RNG = np.random.default_rng(0)
N = 8000
TARGET = np.sin(2 * np.pi * 100 * np.arange(N) / N)
ORTHOGONAL = np.sin(2 * np.pi * 101 * np.arange(N) / N)


@pytest.mark.parametrize("ratio_db", [-30, -3.01, 0, 7.5, 40, 90])
def test_an_orthogonal_error_gives_its_ratio(ratio_db: float) -> None:
    estimate = TARGET + ORTHOGONAL * 10 ** (-ratio_db / 20)
    assert si_sdr(estimate, TARGET) == pytest.approx(ratio_db, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-4, -1.0, 1000.0])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_scale_sign_and_offset_do_not_count(scale: float, offset: float) -> None:
    estimate = TARGET + 0.1 * ORTHOGONAL
    assert si_sdr(scale * estimate + offset, TARGET - offset) == pytest.approx(20.0, abs=1e-6)


def test_the_extremes() -> None:
    assert si_sdr(2 * TARGET, TARGET) > 250
    assert si_sdr(np.zeros(N), TARGET) == -math.inf
    for constant in (0.5, 0.1, 1e-3):
        assert si_sdr(np.full(N, constant), TARGET) == -math.inf
    assert math.isnan(si_sdr(TARGET, np.zeros(N)))
    assert math.isnan(si_sdr(TARGET, np.full(N, 0.5)))


def test_float32_input_is_computed_in_float64() -> None:
    estimate = (TARGET + 1e-3 * ORTHOGONAL).astype(np.float32)
    assert si_sdr(estimate, TARGET.astype(np.float32)) == pytest.approx(60, abs=0.01)


def test_it_agrees_with_fast_bss_eval() -> None:
    for _ in range(5):
        target = RNG.standard_normal(4000) + 0.2
        estimate = 0.7 * target + RNG.uniform(0.1, 2) * RNG.standard_normal(4000)
        theirs = fast_bss_eval.si_sdr(target[None], estimate[None], zero_mean=True)[0]
        assert si_sdr(estimate, target) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1, 4), (1, 4))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="alike"):
        si_sdr(np.ones(shapes[0]), np.ones(shapes[1]))
    with pytest.raises(ValueError, match="alike"):
        snr(np.ones(shapes[0]), np.ones(shapes[1]))


@pytest.mark.parametrize("ratio_db", [-30, -3.01, 0, 7.5, 40, 90])
def test_snr_of_an_added_error_is_its_ratio(ratio_db: float) -> None:
    estimate = TARGET + ORTHOGONAL * 10 ** (-ratio_db / 20)
    assert snr(estimate, TARGET) == pytest.approx(ratio_db, abs=1e-9)


def test_snr_sees_level_sign_and_offset() -> None:
    assert snr(0.9 * TARGET, TARGET) == pytest.approx(20)
    assert snr(-TARGET, TARGET) == pytest.approx(-20 * math.log10(2))
    assert snr(TARGET + 0.1 * math.sqrt(0.5), TARGET) == pytest.approx(20)
    assert snr(np.zeros(N), TARGET) == 0
    assert snr(TARGET, TARGET) == math.inf
    assert math.isnan(snr(TARGET, np.zeros(N)))


def test_a_flip_is_an_inner_product_below_zero_whatever_the_offset() -> None:
    assert is_flipped(ORTHOGONAL - 0.1 * TARGET + 5, TARGET + 5)
    assert not is_flipped(ORTHOGONAL + 0.1 * TARGET - 5, TARGET + 5)


def test_silence() -> None:
    assert is_silent(np.zeros(0))
    assert is_silent(np.full(10, 0.9))
    assert is_silent(1e-6 * TARGET)
    assert not is_silent(1e-4 * TARGET)
