"""How near an estimate is to its target: pure functions of arrays, always (estimate, target)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

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
    e, t = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    if e.ndim != 1 or e.shape != t.shape:
        raise ValueError(f"estimate {e.shape} and target {t.shape} must be [sample] alike")
    if is_silent(t):
        return math.nan
    power = float(e @ e)
    e, t = e - e.mean(), t - t.mean()
    if float(e @ e) <= ROUNDING * power:
        return -math.inf
    kept = (e @ t) / (t @ t) * t
    signal, error = float(kept @ kept), float((e - kept) @ (e - kept))
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / error) if error > 0 else math.inf


def is_silent(samples: npt.NDArray[np.floating]) -> bool:
    """Whether `samples` [sample] vary by less than -100 dBFS (or are empty)."""
    return samples.size == 0 or float(np.var(samples, dtype=np.float64)) < SILENCE
