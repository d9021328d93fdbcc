"""Metrics of other packages: the same values as called directly, None where there is none."""

from __future__ import annotations

import builtins
import warnings
from typing import Any

import fast_bss_eval
import numpy as np
import pesq
import pystoi
import pytest

from mcspex_cli import audio
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation import perceptual
from tests.conftest import EXAMPLES, RATE_HZ, buzz

TARGET = buzz(110, 3, 1)
OTHER = buzz(190, 3, 2)
NOISE = 0.02 * np.random.default_rng(0).standard_normal(len(TARGET)).astype(np.float32)
ESTIMATE = TARGET + 0.3 * OTHER + NOISE


def example() -> tuple[audio.Samples, audio.Samples]:
    """A real mixture and its truth."""
    return tuple(audio.read(EXAMPLES / f"{n}.flac", RATE_HZ) for n in ("mixture", "truth"))  # type: ignore[return-value]


def test_sdr_is_fast_bss_evals() -> None:
    estimate, target = (sound.astype(np.float64) for sound in example())
    expected = fast_bss_eval.sdr(target[None], estimate[None])[0]
    assert perceptual.sdr(*example()) == pytest.approx(expected, abs=1e-6)


def test_sdr_sir_and_sar_are_fast_bss_evals() -> None:
    both = np.stack([TARGET, OTHER]).astype(np.float64)
    other = OTHER + 0.1 * TARGET
    estimates = np.stack([ESTIMATE, other]).astype(np.float64)
    sdr, sir, sar, order = fast_bss_eval.bss_eval_sources(both, estimates)
    assert list(order) == [0, 1]
    found = perceptual.sdr_sir_sar(ESTIMATE, TARGET, [OTHER])
    assert found == pytest.approx((sdr[0], sir[0], sar[0]), abs=1e-6)
    swapped = perceptual.sdr_sir_sar(ESTIMATE, OTHER, [TARGET])
    assert swapped[1] < 0 < found[1]  # type: ignore[operator]


def test_three_talkers_leave_less_sir_than_two() -> None:
    third = buzz(260, 3, 3)
    two = perceptual.sdr_sir_sar(ESTIMATE + 0.3 * third, TARGET, [OTHER])
    three = perceptual.sdr_sir_sar(ESTIMATE + 0.3 * third, TARGET, [OTHER, third])
    assert three[0] == pytest.approx(two[0], abs=1e-6)
    assert three[1] < two[1]  # type: ignore[operator]


def test_a_silent_interferer_does_not_count() -> None:
    silence = np.zeros_like(TARGET)
    expected = perceptual.sdr(ESTIMATE, TARGET)
    assert perceptual.sdr_sir_sar(ESTIMATE, TARGET, [silence]) == (expected, None, None)
    both = perceptual.sdr_sir_sar(ESTIMATE, TARGET, [silence, OTHER])
    assert both == perceptual.sdr_sir_sar(ESTIMATE, TARGET, [OTHER])


@pytest.mark.parametrize(("rate_hz", "mode"), [(8000, "nb"), (16000, "wb")])
def test_pesq_is_the_packages_at_the_rates_it_knows(rate_hz: int, mode: str) -> None:
    estimate, target = example()
    expected = pesq.pesq(rate_hz, target, estimate, mode)
    assert perceptual.pesq(estimate, target, rate_hz) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rate_hz", [11025, 44100])
def test_there_is_no_pesq_at_other_rates(rate_hz: int) -> None:
    assert perceptual.pesq(ESTIMATE, TARGET, rate_hz) is None


def test_pesq_has_no_value_for_what_the_package_refuses() -> None:
    with pytest.raises(pesq.BufferTooShortError):
        pesq.pesq(RATE_HZ, TARGET[:1000], ESTIMATE[:1000], "nb")
    assert perceptual.pesq(ESTIMATE[:1000], TARGET[:1000], RATE_HZ) is None
    click = np.zeros(RATE_HZ, np.float32)
    click[4000:4100] = 0.5
    with pytest.raises(pesq.NoUtterancesError):
        pesq.pesq(RATE_HZ, click, click, "nb")
    assert perceptual.pesq(click, click, RATE_HZ) is None


def test_pesq_does_not_kill_the_process_on_many_utterances() -> None:
    rng = np.random.default_rng(0)
    burst = np.r_[rng.standard_normal(1600), np.zeros(2000)].astype(np.float32)
    many = 0.1 * np.tile(burst, 130)  # the package ends with a segmentation fault
    assert perceptual.pesq(many, many, RATE_HZ) is None


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_the_packages(extended: bool) -> None:
    estimate, target = (sound.astype(np.float64) for sound in example())
    expected = pystoi.stoi(target, estimate, RATE_HZ, extended=extended)
    found = perceptual.stoi(*example(), RATE_HZ, extended=extended)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.3 < expected < 0.95


@pytest.mark.parametrize("samples", [10, 300, 2000])
def test_stoi_has_no_value_for_too_little_speech_and_no_warning_leaks(samples: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert perceptual.stoi(ESTIMATE[:samples], TARGET[:samples], RATE_HZ) is None


def test_a_package_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name.startswith("cypesq") or "cypesq" in str(rest):
            raise ImportError("built for another machine")
        return real(name, *rest)

    for name in [n for n in sys.modules if n.split(".")[0] == "pesq"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ConfigError, match=r"pesq cannot be imported \(built.*pip install"):
        perceptual.pesq(ESTIMATE, TARGET, RATE_HZ)


def test_all_are_installed_here() -> None:
    assert perceptual.missing() == []
    perceptual.check_installed(list(perceptual.PACKAGES))
