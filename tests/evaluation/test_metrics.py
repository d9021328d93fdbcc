"""Metrics: closed forms, silence rules, and the same values as other libraries give.

Those libraries are imported where they are used: each process of the tests imports every file.
"""

from __future__ import annotations

import builtins
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soxr

from mcspex_cli import audio
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.metrics import (
    BY_COLUMN,
    METRICS,
    MIXTURE_METRICS,
    Sounds,
    bss_eval,
    check_installed,
    dnsmos,
    is_flipped,
    is_silent,
    pesq,
    si_sdr,
    snr,
    speech_left,
    stoi,
)
from tests.conftest import EXAMPLES, RATE_HZ, buzz

RNG = np.random.default_rng(0)
N = 8000
TARGET = np.sin(2 * np.pi * 100 * np.arange(N) / N)
ORTHOGONAL = np.sin(2 * np.pi * 101 * np.arange(N) / N)


@pytest.mark.parametrize("ratio_db", [-30, 0, 7.5, 90])
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
    import fast_bss_eval

    for _ in range(5):
        target = RNG.standard_normal(4000) + 0.2
        estimate = 0.7 * target + RNG.uniform(0.1, 2) * RNG.standard_normal(4000)
        theirs = fast_bss_eval.si_sdr(target[None], estimate[None], zero_mean=True)[0]
        assert si_sdr(estimate, target) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1, 4), (1, 4))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        si_sdr(np.ones(shapes[0]), np.ones(shapes[1]))
    with pytest.raises(ValueError, match="equally long"):
        snr(np.ones(shapes[0]), np.ones(shapes[1]))


@pytest.mark.parametrize("ratio_db", [-30, 0, 7.5, 90])
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


@pytest.mark.parametrize("measure", [si_sdr, snr])
def test_samples_that_are_not_finite_have_no_value_and_others_than_numbers_are_refused(
    measure: Callable[[Any, Any], float],
) -> None:
    for value in (math.nan, math.inf):
        assert math.isnan(measure(np.full(N, value), TARGET))
        assert math.isnan(measure(TARGET, np.where(TARGET > 0.5, value, TARGET)))
    for wrong in (TARGET + 1j, TARGET > 0, np.array(["a"] * N)):
        with pytest.raises(TypeError, match="samples are real numbers, not"):
            measure(wrong, TARGET)
    masked = np.ma.masked_array(TARGET, TARGET > 0.5)
    for pair in ((masked, TARGET), (TARGET, masked)):
        with pytest.raises(TypeError, match="samples are a masked array"):
            measure(*pair)
    assert measure((1000 * TARGET).astype(np.int16), 1000 * TARGET) > 50


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_no_level_is_too_high_or_too_low(scale: float) -> None:
    estimate = TARGET + 0.1 * ORTHOGONAL
    assert si_sdr(scale * estimate, TARGET) == pytest.approx(20.0)
    assert snr(scale * estimate, TARGET) == pytest.approx(min(0, -20 * math.log10(scale)), abs=0.1)
    if scale > 1:
        assert si_sdr(estimate, scale * TARGET) == pytest.approx(20.0)
        assert snr(scale * estimate, scale * TARGET) == pytest.approx(20.0)


def test_a_flip_is_an_inner_product_below_zero_whatever_the_offset() -> None:
    assert is_flipped(ORTHOGONAL - 0.1 * TARGET + 5, TARGET + 5)
    assert not is_flipped(ORTHOGONAL + 0.1 * TARGET - 5, TARGET + 5)


def test_silence() -> None:
    assert is_silent(np.zeros(0))
    assert is_silent(np.full(10, 0.9))
    assert is_silent(1e-6 * TARGET)
    assert not is_silent(1e-4 * TARGET)


# Metrics of other packages: nan where they have no value.

VOICE, OTHER = buzz(110, 3, 1), buzz(190, 3, 2)
NOISE = 0.02 * np.random.default_rng(0).standard_normal(len(VOICE)).astype(np.float32)
MIXED = VOICE + 0.3 * OTHER + NOISE


def example() -> tuple[audio.Samples, audio.Samples]:
    """A real mixture and its truth."""
    return tuple(audio.read(EXAMPLES / f"{n}.flac", RATE_HZ) for n in ("mixture", "truth"))  # type: ignore[return-value]


def test_sdr_alone_is_fast_bss_evals() -> None:
    import fast_bss_eval

    estimate, target = (sound.astype(np.float64) for sound in example())
    expected = fast_bss_eval.sdr(target[None], estimate[None])[0]
    ratios = bss_eval(*example())
    assert ratios[0] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(ratios[1:]).all()


def test_there_is_no_sdr_of_so_short_a_sound_that_its_filter_fits_anything() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    assert np.isnan(bss_eval(noise[:500], VOICE[:500], [OTHER[:500]])).all()
    assert bss_eval(noise, VOICE[:4000])[0] < 0


def test_sdr_sir_and_sar_are_fast_bss_evals() -> None:
    import fast_bss_eval

    both = np.stack([VOICE, OTHER]).astype(np.float64)
    estimates = np.stack([MIXED, OTHER + 0.1 * VOICE]).astype(np.float64)
    with np.errstate(divide="ignore"):  # the second has no artifacts
        sdr, sir, sar, order = fast_bss_eval.bss_eval_sources(both, estimates)
    assert list(order) == [0, 1]
    ratios = bss_eval(MIXED, VOICE, [OTHER])
    assert ratios == pytest.approx((sdr[0], sir[0], sar[0]), abs=1e-6)
    assert bss_eval(MIXED, OTHER, [VOICE])[1] < 0 < ratios[1]


def test_three_talkers_leave_less_sir_than_two_and_a_silent_one_does_not_count() -> None:
    third, silence = buzz(260, 3, 3), np.zeros_like(VOICE)
    two = bss_eval(MIXED + 0.3 * third, VOICE, [OTHER])
    three = bss_eval(MIXED + 0.3 * third, VOICE, [OTHER, third])
    assert three[0] == pytest.approx(two[0], abs=1e-6)
    assert three[1] < two[1]
    assert bss_eval(MIXED, VOICE, [silence, OTHER]) == bss_eval(MIXED, VOICE, [OTHER])
    assert bss_eval(MIXED, VOICE, [silence])[0] == bss_eval(MIXED, VOICE)[0]


@pytest.mark.parametrize("gain", [1.0, 0.5, -1.0])
def test_copies_among_the_talkers_cost_sir_and_sar_alone(gain: float) -> None:
    for seed in range(4):
        voice, other = np.random.default_rng(seed).normal(0, 0.1, (2, 16000)).astype(np.float32)
        estimate, copy = voice + np.float32(0.1) * other, np.float32(gain) * other
        for interferers in ([other, copy], [other, np.float32(gain) * voice]):
            ratios = bss_eval(estimate, voice, interferers)
            assert ratios[0] == pytest.approx(bss_eval(estimate, voice)[0], abs=1e-6)
            assert np.isnan(ratios[1:]).all()


@pytest.mark.parametrize(("rate_hz", "mode"), [(8000, "nb"), (16000, "wb")])
def test_pesq_is_the_packages_at_the_rates_it_knows(rate_hz: int, mode: str) -> None:
    import pesq as pesq_package

    estimate, target = example()
    expected = pesq_package.pesq(rate_hz, target, estimate, mode)
    assert pesq(estimate, target, rate_hz) == pytest.approx(expected, abs=1e-6)


def test_pesq_is_nan_where_the_package_fails_or_would_kill_the_process() -> None:
    import pesq as pesq_package

    with pytest.raises(pesq_package.BufferTooShortError):
        pesq_package.pesq(RATE_HZ, VOICE[:1000], MIXED[:1000], "nb")
    assert math.isnan(pesq(MIXED[:1000], VOICE[:1000], RATE_HZ))
    click = np.zeros(RATE_HZ, np.float32)
    click[4000:4100] = 0.5
    with pytest.raises(pesq_package.NoUtterancesError):
        pesq_package.pesq(RATE_HZ, click, click, "nb")
    assert math.isnan(pesq(click, click, RATE_HZ))
    assert math.isnan(pesq(MIXED, VOICE, 11025))
    burst = np.r_[NOISE[:1600], np.zeros(2000)].astype(np.float32)
    many = np.tile(5 * burst, 130)  # with which the package ends in a segmentation fault
    assert math.isnan(pesq(many, many, RATE_HZ))


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_the_packages(extended: bool) -> None:
    import pystoi

    estimate, target = (sound.astype(np.float64) for sound in example())
    expected = pystoi.stoi(target, estimate, RATE_HZ, extended=extended)
    assert stoi(*example(), RATE_HZ, extended=extended) == pytest.approx(expected, abs=1e-6)
    assert 0.3 < expected < 0.95


def test_estoi_of_an_estimate_that_is_silent_in_part_is_always_the_same() -> None:
    estimate, target = example()
    estimate[len(estimate) // 4 :] = 0
    values = {stoi(estimate, target, RATE_HZ, extended=True) for _ in range(3)}
    assert len(values) == 1


@pytest.mark.parametrize("samples", [10, 300, 2000])
def test_stoi_is_nan_for_too_little_speech_and_no_warning_gets_out(samples: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(stoi(MIXED[:samples], VOICE[:samples], RATE_HZ))


def test_a_package_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name.startswith("cypesq") or "cypesq" in str(rest):
            raise ImportError("built for another machine")
        return real(name, *rest)

    for name in [n for n in sys.modules if n.split(".")[0] == "pesq"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ConfigError, match=r"pesq cannot be imported \(built.*pip install"):
        pesq(MIXED, VOICE, RATE_HZ)


def test_dnsmos_is_speechmoss_at_16_khz() -> None:
    from speechmos import dnsmos as speechmos

    sound = np.resize(example()[0], 5 * RATE_HZ)  # of which the package makes a single window
    sound *= 3 / np.abs(sound).max()  # which it would refuse
    resampled = soxr.resample(sound, RATE_HZ, 16000)
    expected = speechmos.run(resampled / np.abs(resampled).max(), 16000)
    sounds = Sounds(RATE_HZ, sound)
    for name in ("sig", "bak", "ovrl", "p808"):
        value = METRICS[f"dnsmos_{name}"].function(sounds)
        assert value == pytest.approx(expected[f"{name}_mos"])
        assert 1 < value < 5
        silent = replace(sounds, mixture=0 * sound)
        assert math.isnan(MIXTURE_METRICS[f"dnsmos_{name}"].function(silent))
    assert dnsmos(0 * sound, RATE_HZ) == {}


def test_speech_left_is_the_share_of_the_mixtures_speech_time() -> None:
    one, other = np.split(np.r_[VOICE[: 2 * RATE_HZ], OTHER[:RATE_HZ]], [2 * RATE_HZ])
    silence = np.zeros(RATE_HZ, np.float32)
    mixture = np.r_[one, silence, other]
    pause = np.zeros_like(one)
    for estimate, share in (
        (mixture, 1),
        (np.r_[one, silence, 0 * other], 2 / 3),
        (np.r_[pause, silence, other], 1 / 3),
        (np.r_[one, silence, 0.05 * other], 2 / 3),  # a remnant
        (0 * mixture, 0),
    ):
        assert speech_left(estimate, mixture, RATE_HZ) == pytest.approx(share, abs=0.03)
    assert math.isnan(speech_left(mixture, 0 * mixture, RATE_HZ))


# The table.


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if "target" in m.needs])
def test_a_metric_with_truth_is_nan_without_what_else_it_needs(name: str) -> None:
    known = {"estimate": MIXED, "target": VOICE, "mixture": VOICE + OTHER, "interferers": (OTHER,)}
    metric = METRICS[name]
    assert metric.is_installed
    assert math.isfinite(metric.function(Sounds(RATE_HZ, **known)))
    for need in set(metric.needs) - {"target"}:
        others = {key: value for key, value in known.items() if key != need}
        assert math.isnan(metric.function(Sounds(RATE_HZ, **others)))


def test_columns_headings_and_digits_come_from_the_table() -> None:
    gain, other = METRICS["si_sdr_i"], METRICS["stoi"]
    assert (gain.column, gain.heading) == ("si_sdr_i_db", "SI-SDRi dB")
    assert (other.column, other.heading) == ("stoi", "STOI")
    assert [other.text(value) for value in (0.12345, None)] == ["0.123", "-"]
    assert METRICS["snr"].text(3, "+") == "+3.00"
    assert BY_COLUMN["input_wer"].heading == "WER of the mixture"
    assert [METRICS[name].badness for name in ("snr", "wer", "speech_left")] == [-1, 1, 0]
    assert METRICS["snr"].text(-0.001) == "0.00"


def test_what_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcspex_cli.evaluation.metrics.find_spec", lambda _: None)
    check_installed(["si_sdr", "similarity"])
    for name, extra in (("dnsmos_sig", "metrics"), ("wer", "transcripts")):
        with pytest.raises(ConfigError) as error:
            check_installed(["snr", name])
        assert str(error.value) == (
            f"{name}: the package for it is not installed. Run in a checkout of mcspex: "
            f"pip install '.[{extra}]'"
        )
