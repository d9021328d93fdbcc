"""How near an estimate is to its target: pure functions of arrays, always (estimate, target)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

COLUMNS = {
    "si_sdr": "si_sdr_db",
    "si_sdr_i": "si_sdr_i_db",
    "snr": "snr_db",
    "sdr": "sdr_db",
    "sir": "sir_db",
    "sar": "sar_db",
    "pesq": "pesq",
    "stoi": "stoi",
    "estoi": "estoi",
}
"""Every metric by the name that a user gives, and its column in reports."""

SILENCE = 1e-10
"""Mean square below which a signal counts as silent (-100 dBFS)."""

ROUNDING = 1e-24
"""Share of a signal's energy that float64 leaves of a constant after its mean is removed."""


def si_sdr(estimate: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, zero-mean, in float64.

    ```
    kept  = <e, t> / <t, t> * t        SI-SDR = 10 log10(|kept|^2 / |e - kept|^2)
    ```

    Args:
        estimate: [sample].
        target: [sample], equally long.

    Returns:
        dB; +inf for a scaled copy of the target, -inf for a silent estimate or one
        orthogonal to the target, nan for a silent target, which has no SI-SDR.
        A sign flip does not change the value.

    Raises:
        ValueError: the shapes differ or are not [sample].

    Source: Le Roux et al., SDR - half-baked or well done?, ICASSP 2019.
    """
    e, t = _alike(estimate, target)
    if is_silent(t):
        return math.nan
    power = _dot(e, e)
    e, t = e - e.mean(), t - t.mean()
    if _dot(e, e) <= ROUNDING * power:
        return -math.inf
    kept = _dot(e, t) / _dot(t, t) * t
    signal, error = _dot(kept, kept), _dot(e - kept, e - kept)
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / error) if error > 0 else math.inf


def snr(estimate: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Signal-to-noise ratio in dB in float64, level and sign as they are.

    ```
    SNR = 10 log10(|t|^2 / |t - e|^2)
    ```

    Args:
        estimate: [sample].
        target: [sample], equally long.

    Returns:
        dB; +inf for the target itself, 0 for a silent estimate, at most -6 for a target with
        its sign flipped, nan for a silent target.

    Raises:
        ValueError: the shapes differ or are not [sample].
    """
    e, t = _alike(estimate, target)
    if is_silent(t):
        return math.nan
    error = _dot(t - e, t - e)
    return 10 * math.log10(_dot(t, t) / error) if error > 0 else math.inf


def is_flipped(estimate: npt.ArrayLike, target: npt.ArrayLike) -> bool:
    """Whether an estimate [sample] follows its target [sample] with the sign turned round.

    Raises:
        ValueError: the shapes differ or are not [sample].
    """
    e, t = _alike(estimate, target)
    return _dot(e - e.mean(), t - t.mean()) < 0


def is_silent(samples: npt.NDArray[np.floating]) -> bool:
    """Whether `samples` [sample] vary by less than -100 dBFS (or are empty)."""
    return samples.size == 0 or float(np.var(samples, dtype=np.float64)) < SILENCE


def _alike(
    estimate: npt.ArrayLike, target: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both in float64, checked to be [sample] and equally long."""
    e, t = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    if e.ndim != 1 or e.shape != t.shape:
        raise ValueError(f"estimate {e.shape} and target {t.shape} must be [sample] alike")
    return e, t


def _dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Inner product, without BLAS: its threads wait for each other on a busy machine."""
    return float(np.einsum("i,i", a, b))
