"""Metrics of other packages (the extra `metrics`), imported when one is asked for.

Each takes (estimate, target) and gives None where it has no value for these sounds; the
packages' own warnings and exceptions stay inside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.metrics import COLUMNS, is_silent

PACKAGES = {
    "sdr": "fast_bss_eval",
    "sir": "fast_bss_eval",
    "sar": "fast_bss_eval",
    "pesq": "pesq",
    "stoi": "pystoi",
    "estoi": "pystoi",
}
"""The package behind each metric that is not ours."""

ADVICE = "pip install 'mcspex[metrics]'"

PESQ_MODES = {8000: "nb", 16000: "wb"}
"""PESQ's mode by sample rate; there is none for other rates."""

PESQ_S = 20.0
"""Seconds above which there is no PESQ. P.862 is meant for 8 to 12 s, and with more than 50
utterances, which 20 s cannot hold, the package writes past its arrays and kills the process."""


def missing() -> list[str]:
    """Metrics whose package is not installed, in the order of reports."""
    return [name for name in COLUMNS if name in PACKAGES and find_spec(PACKAGES[name]) is None]


def check_installed(metrics: Sequence[str]) -> None:
    """Refuse metrics whose package is not there.

    Raises:
        ConfigError: some are not, or cannot be imported.
    """
    absent = [name for name in metrics if name in missing()]
    if absent:
        raise ConfigError(f"{', '.join(absent)}: not installed. {ADVICE}")


def sdr(estimate: Samples, target: Samples) -> float | None:
    """Signal-to-distortion ratio in dB of BSS Eval: a filter of 512 taps is forgiven.

    Args:
        estimate: [sample].
        target: [sample], equally long.

    Source: Vincent et al., IEEE TASLP 2006; Scheibler, arXiv:2110.06440.
    """
    package = _package("fast_bss_eval")
    return _value(lambda: package.sdr(_wide([target]), _wide([estimate]))[0])


def sdr_sir_sar(
    estimate: Samples, target: Samples, interferers: Sequence[Samples]
) -> tuple[float | None, float | None, float | None]:
    """BSS Eval's SDR, SIR (what is left of the others) and SAR (what was added), in dB.

    Args:
        estimate: [sample].
        target: [sample], equally long.
        interferers: each [sample], equally long; silent ones do not count.

    Returns:
        All three, or SDR alone where every interferer is silent.
    """
    heard = [sound for sound in interferers if not is_silent(sound)]
    if not heard:
        return sdr(estimate, target), None, None
    measure = _package("fast_bss_eval").numpy.square_cosine_metrics
    # Of each reference, how much of the estimate's energy it explains alone, and with the rest.
    shares = _attempt(lambda: measure(_wide([target, *heard]), _wide([estimate])))
    if shares is None:
        return None, None, None
    alone, together = float(shares[0][0, 0]), float(shares[1][0, 0])
    return _ratio_db(alone), _ratio_db(alone / together), _ratio_db(together)


def pesq(estimate: Samples, target: Samples, rate_hz: int) -> float | None:
    """Perceptual evaluation of speech quality, MOS-LQO 1 to 4.6: narrow or wide band by rate.

    Args:
        estimate: [sample].
        target: [sample], equally long.
        rate_hz: 8000 or 16000; None comes back for others, and for more than `PESQ_S`.

    Source: ITU-T P.862.1 and P.862.2.
    """
    if rate_hz not in PESQ_MODES or len(target) > PESQ_S * rate_hz:
        return None
    package = _package("pesq")
    return _value(lambda: package.pesq(rate_hz, target, estimate, PESQ_MODES[rate_hz]))


def stoi(
    estimate: Samples, target: Samples, rate_hz: int, *, extended: bool = False
) -> float | None:
    """Short-time objective intelligibility, about 0 to 1; None for less than 0.4 s of speech.

    Args:
        estimate: [sample].
        target: [sample], equally long.
        rate_hz: any.
        extended: ESTOI instead.

    Source: Taal et al., IEEE TASLP 2011; Jensen and Taal, IEEE TASLP 2016.
    """
    package = _package("pystoi")
    e, t = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    return _value(lambda: package.stoi(t, e, rate_hz, extended=extended))


def _package(name: str) -> Any:
    """An installed package.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return import_module(name)
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        raise ConfigError(f"{name} cannot be imported ({error}). {ADVICE}") from error


def _attempt(measure: Callable[[], Any]) -> Any:
    """What `measure` gives; None where the package warns that it means nothing, or fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return measure()
        except Exception:  # other people's code: what it raises on odd sounds is not said
            return None


def _value(measure: Callable[[], Any]) -> float | None:
    """A finite number, or None."""
    value = _attempt(measure)
    return float(value) if value is not None and math.isfinite(value) else None


def _ratio_db(share: float) -> float | None:
    """A share of the energy against the rest of it, in dB."""
    return 10 * math.log10(share / (1 - share)) if 0 < share < 1 else None


def _wide(sounds: Sequence[Samples]) -> npt.NDArray[np.float64]:
    """[channel, sample] in float64."""
    return np.stack([np.asarray(sound, np.float64) for sound in sounds])
