"""Programme loudness by ITU-R BS.1770-4, measured block by block; pure.

```
blocks ──▶ K-weighting (by FFT) ──▶ energy of each 100 ms ──▶ 400 ms, gated twice ──▶ LUFS
```
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples

_STEP_S = 0.1
"""Gating blocks of four steps overlap by three."""
_HISTORY, _STEPS = 5, 25
"""Steps that the weighting remembers, and steps of one FFT; its response is gone by then."""
_ABSOLUTE_LUFS, _RELATIVE_LU = -70.0, -10.0
"""What is softer than this, or than this under the mean of the rest, does not count."""
_OFFSET_DB = -0.691
"""Makes a full-scale sine of 997 Hz in one channel -3.01 LUFS."""


class Meter:
    """The integrated loudness of blocks [channel, sample]; every channel has the weight 1."""

    def __init__(self, sample_rate_hz: int, channels: int) -> None:
        self._step = round(sample_rate_hz * _STEP_S)
        self._length = _STEPS * self._step
        self._response = _k_weighting(self._length, sample_rate_hz)
        self._held: Samples = np.zeros((channels, _HISTORY * self._step), np.float32)
        self._energies: list[npt.NDArray[np.float64]] = []
        self._samples = 0

    def add(self, block: Samples) -> None:
        """Take account of a block."""
        self._samples += block.shape[1]
        self._held = np.concatenate([self._held, block], axis=1)
        while self._held.shape[1] >= self._length:
            self._energies.append(self._weigh(self._held[:, : self._length]))
            self._held = self._held[:, self._length - _HISTORY * self._step :]

    def loudness_lufs(self) -> float:
        """Loudness of all so far; -inf where nothing is louder than -70 LUFS.

        Of less than 400 ms, all is one gating block.
        """
        rest = self._length - self._held.shape[1]
        last = self._weigh(np.pad(self._held, ((0, 0), (0, rest))))
        energies = np.concatenate([*self._energies, last])
        steps = self._samples // self._step
        if steps < 4:
            powers = energies.sum(keepdims=True) / max(1, self._samples)
        else:
            powers = np.convolve(energies[:steps], np.ones(4), "valid") / (4 * self._step)
        powers = powers[powers > _power(_ABSOLUTE_LUFS)]
        if powers.size:
            powers = powers[powers > powers.mean() * 10 ** (_RELATIVE_LU / 10)]
        return _OFFSET_DB + 10 * float(np.log10(powers.mean())) if powers.size else -np.inf

    def _weigh(self, samples: Samples) -> npt.NDArray[np.float64]:
        """The weighted energy [step] of all channels, of what comes after the history."""
        weighted = np.fft.irfft(np.fft.rfft(samples) * self._response, self._length)
        fresh = weighted[:, _HISTORY * self._step :].reshape(len(samples), -1, self._step)
        energies: npt.NDArray[np.float64] = np.square(fresh).sum(axis=(0, 2))
        return energies


def _power(loudness_lufs: float) -> float:
    """The weighted mean square that has a loudness."""
    return float(10 ** ((loudness_lufs - _OFFSET_DB) / 10))


def _k_weighting(length: int, sample_rate_hz: int) -> npt.NDArray[np.complex128]:
    """The response [bin] of BS.1770's two filters: a head's shelf, then a high-pass.

    The recommendation gives coefficients for 48 kHz; these are the analogue filters behind them,
    made digital (bilinear transform) for any rate.
    """
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(length))
    gain, band = 10 ** (3.999843853973347 / 20), 10 ** (3.999843853973347 / 20 * 0.4996667741545416)
    k = np.tan(np.pi * 1681.974450955533 / sample_rate_hz)
    k_over_q = k / 0.7071752369554196
    shelf = (
        (gain + band * k_over_q + k * k)
        + 2 * (k * k - gain) * z
        + (gain - band * k_over_q + k * k) * z * z
    ) / ((1 + k_over_q + k * k) + 2 * (k * k - 1) * z + (1 - k_over_q + k * k) * z * z)
    k = np.tan(np.pi * 38.13547087602444 / sample_rate_hz)
    k_over_q = k / 0.5003270373238773
    below = (1 + k_over_q + k * k, 2 * (k * k - 1), 1 - k_over_q + k * k)
    # The recommendation leaves the numerator of the second as it is.
    high_pass = (1 - z) ** 2 * below[0] / (below[0] + below[1] * z + below[2] * z * z)
    response: npt.NDArray[np.complex128] = shelf * high_pass
    return response
