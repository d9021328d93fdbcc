"""How loud signals are, and how loud an estimate is to be: levels, loudness, level policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError

MIN_SIGNAL_S = 0.3
"""Seconds below which neither a mixture nor a reference is of any use."""

SILENCE_DB = -90.0
"""RMS level, dB of full scale, below which a signal counts as silent."""

PEAK = 0.891
"""Highest sample of "peak", and of what would clip (-1 dBFS): room for a player's resampler."""

FULL_SCALE = 0.999
"""Highest sample that is left as it is."""

_STEP_S = 0.1  # gating blocks of four steps overlap by three
_HISTORY, _STEPS = 5, 25
"""Steps that the weighting remembers, and steps of one FFT; its response is gone by then."""
_ABSOLUTE_LUFS, _RELATIVE_LU = -70.0, -10.0
"""What is softer than this, or than this under the mean of the rest, does not count."""
_OFFSET_DB = -0.691  # makes a full-scale sine of 997 Hz in one channel -3.01 LUFS


def level_db(mean_square: float) -> float:
    """The level of a mean square, in dB of full scale."""
    return 10 * float(np.log10(max(mean_square, 1e-30)))


def check_length(name: str, seconds: float) -> None:
    """Refuse a signal shorter than 0.3 s.

    Raises:
        AudioError: it is shorter.
    """
    if seconds < MIN_SIGNAL_S:
        raise AudioError(f"{name}: {seconds:.2f} s is too short. Give {MIN_SIGNAL_S} s or more.")


def check_level(name: str, mean_square: float) -> None:
    """Refuse a silent signal.

    Raises:
        AudioError: it is silent.
    """
    if level_db(mean_square) < SILENCE_DB:
        raise AudioError(f"{name}: is silent. Check the recording and its channels.")


@dataclass(frozen=True)
class LevelPolicy:
    """One way to choose the level of an estimate; a row of `LEVELS`."""

    name: str
    help: str
    """What the estimate becomes, for `--help`."""
    factor: Callable[[float, float, float], float]
    """What to multiply the estimate by, from its peak, its loudness in LUFS and the number."""
    number: tuple[float, float] | None = None
    """The lowest and highest number that goes with the name, as in "lufs=-23"; None for none."""
    matched: bool = True
    """Whether the estimate first gets the level that it has in the mixture."""
    needs_loudness: bool = False


LEVELS = {
    policy.name: policy
    for policy in (
        LevelPolicy("match", "as loud as in the mixture", lambda *_: 1.0),
        LevelPolicy(
            "peak", "highest sample at -1 dBFS", lambda peak, *_: PEAK / peak if peak > 0 else 1.0
        ),
        LevelPolicy(
            "lufs",
            "this loud by ITU-R BS.1770, as in lufs=-23",
            lambda _, loudness, lufs: (
                10 ** ((lufs - loudness) / 20) if np.isfinite(loudness) else 1.0
            ),
            number=(-70.0, 0.0),
            needs_loudness=True,
        ),
        LevelPolicy("raw", "as the network gives it", lambda *_: 1.0, matched=False),
    )
}
"""Every level policy by its name."""


@dataclass(frozen=True)
class Level:
    """A level as a user asks for it: the name of a policy and, for some, a number."""

    name: str = "match"
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Level:
        """Read "match", "peak", "raw" or "lufs=-23".

        Raises:
            ValueError: it is none of them, or its number is out of range.
        """
        name, equals, digits = text.partition("=")
        policy = LEVELS.get(name)
        if policy and policy.number is None and not equals:
            return cls(name)
        if policy and policy.number:
            try:
                number = float(digits)
            except ValueError:
                number = np.nan
            if policy.number[0] <= number <= policy.number[1]:
                return cls(name, number)
        choices = ", ".join(
            f"{row.name}={row.number[0]:g} to {row.name}={row.number[1]:g}"
            if row.number
            else row.name
            for row in LEVELS.values()
        )
        raise ValueError(f"level {text!r} is not one of {choices}")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.name}={self.number:g}" if self.policy.number else self.name

    @property
    def policy(self) -> LevelPolicy:
        """Its row of `LEVELS`."""
        return LEVELS[self.name]

    def factor(self, peak: float, loudness_lufs: float, *, clips: bool) -> tuple[float, float]:
        """What to multiply a whole estimate by.

        Args:
            peak: its highest absolute sample.
            loudness_lufs: its loudness, where the policy needs it.
            clips: whether the file format cannot hold samples over full scale.

        Returns:
            The factor, and by how many dB it is less than the policy asks for, so as not to clip.
        """
        factor = self.policy.factor(peak, loudness_lufs, self.number)
        if clips and factor * peak > FULL_SCALE:
            return PEAK / peak, level_db((factor * peak / PEAK) ** 2)
        return factor, 0.0


class LevelMatcher:
    """Measures how loud a voice is in its mixture, by least squares, for each channel.

    The products <m, m>, <e, e> and <m, e> are of all blocks so far.
    """

    def __init__(self, channels: int) -> None:
        self._samples = 0
        self._mixture, self._estimate, self._shared = np.zeros((3, channels))

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Take account of a block [channel, sample] of both."""
        e, m = estimate.astype(np.float64), mixture.astype(np.float64)
        self._samples += e.shape[1]
        self._mixture += np.square(m).sum(axis=1)
        self._estimate += np.square(e).sum(axis=1)
        self._shared += (e * m).sum(axis=1)

    def mixture_mean_square(self) -> float:
        """Mean square of the mixture's loudest channel."""
        return float(self._mixture.max()) / max(1, self._samples)

    def gain(self) -> npt.NDArray[np.float64]:
        """What to multiply the network's estimate by [channel]; 1 where the estimate is silent."""
        gain = np.ones_like(self._estimate)
        np.divide(self._shared, self._estimate, out=gain, where=self._estimate > 0)
        return gain


def gain_db(gain: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Gains [channel] in dB."""
    return tuple(round(level_db(float(one) ** 2), 2) for one in gain)


class LoudnessMeter:
    """Measures the integrated loudness (ITU-R BS.1770-4) of blocks [channel, sample].

    ```
    blocks ──▶ K-weighting (by FFT) ──▶ energy of each 100 ms ──▶ 400 ms, gated twice ──▶ LUFS
    ```

    Every channel has the weight 1.
    """

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
