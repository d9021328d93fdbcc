"""How loud an estimate becomes: the level policies and their gains. `extractor` applies them.

A new policy is a new row of `LEVELS`. Options, help and menus follow.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import FULL_SCALE, Samples, level_db

PEAK = 0.891
"""The highest sample of "peak", and of what would clip: -1 dBFS, room for players to resample."""

_PEAK_DB = float(20 * np.log10(PEAK))

_STEP_S = 0.1  # gating blocks of four steps overlap by three
_HISTORY_STEPS, _FFT_STEPS = 5, 25
"""How long the weighting's response is at most, and how long one FFT is."""
_ABSOLUTE_LUFS, _RELATIVE_LU = -70.0, -10.0
"""What is softer than the first does not count, nor what is so far below the mean of the rest."""
_OFFSET_DB = -0.691  # makes a full-scale sine of 997 Hz in one channel -3.01 LUFS


class LoudnessMeter:
    """Measures the integrated loudness (ITU-R BS.1770-4) of blocks [channel, sample].

    ```
    blocks ──▶ K-weighting (by FFT) ──▶ energy of each 100 ms ──▶ 400 ms, gated twice ──▶ LUFS
    ```

    Every channel has the weight 1.
    """

    def __init__(self, sample_rate_hz: int, channels: int) -> None:
        self._step = round(sample_rate_hz * _STEP_S)
        self._length = _FFT_STEPS * self._step
        self._response = _k_weighting(self._length, sample_rate_hz)
        self._held: Samples = np.zeros((channels, _HISTORY_STEPS * self._step), np.float32)
        self._energies: list[npt.NDArray[np.float64]] = []
        self._samples = 0

    def add(self, block: Samples) -> None:
        """Take account of a block."""
        self._samples += block.shape[1]
        self._held = np.concatenate([self._held, block], axis=1)
        while self._held.shape[1] >= self._length:
            self._energies.append(self._weigh(self._held[:, : self._length]))
            self._held = self._held[:, self._length - _HISTORY_STEPS * self._step :]

    def level(self) -> float:
        """Loudness of all so far in LUFS; -inf where nothing is louder than -70 LUFS.

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
        powers = powers[powers > 10 ** ((_ABSOLUTE_LUFS - _OFFSET_DB) / 10)]
        if powers.size:
            powers = powers[powers > powers.mean() * 10 ** (_RELATIVE_LU / 10)]
        return _OFFSET_DB + 10 * float(np.log10(powers.mean())) if powers.size else -np.inf

    def _weigh(self, samples: Samples) -> npt.NDArray[np.float64]:
        """The weighted energy [step] of all channels, of what comes after the history."""
        weighted = np.fft.irfft(np.fft.rfft(samples) * self._response, self._length)
        fresh = weighted[:, _HISTORY_STEPS * self._step :].reshape(len(samples), -1, self._step)
        return np.square(fresh).sum(axis=(0, 2))


def _k_weighting(length: int, sample_rate_hz: int) -> npt.NDArray[np.complex128]:
    """The response [bin] of BS.1770's two filters: a head's shelf, then a high-pass.

    The recommendation gives coefficients for 48 kHz; these are the analogue filters behind them,
    made digital (bilinear transform) for any rate.
    """
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(length))
    gain, band = 10 ** (3.999843853973347 / 20), 10 ** (3.999843853973347 / 20 * 0.4996667741545416)
    k, q = np.tan(np.pi * 1681.974450955533 / sample_rate_hz), 0.7071752369554196
    fall, rise = 1 - z, k * (1 + z)
    shelf = gain * fall**2 + band / q * fall * rise + rise**2
    shelf /= fall**2 + fall * rise / q + rise**2
    k, q = np.tan(np.pi * 38.13547087602444 / sample_rate_hz), 0.5003270373238773
    rise = k * (1 + z)
    # The recommendation leaves the numerator of the second as it is.
    high_pass = (1 + k / q + k * k) * fall**2 / (fall**2 + fall * rise / q + rise**2)
    return shelf * high_pass


@dataclass(frozen=True)
class LevelPolicy:
    """One way to choose the level of an estimate; a row of `LEVELS`."""

    name: str
    help: str
    """What the estimate becomes, for `--help`."""
    goal: float | tuple[float, float] | None = None
    """The level that is chosen, or the lowest and the highest that a user may ask for, as in
    "lufs=-23"; None leaves the level as it is."""
    in_lufs: bool = False
    """Whether the goal is a loudness in LUFS; else it is of the highest sample, in dBFS."""
    matched: bool = True
    """Whether the estimate is first brought to the level that it has in the mixture."""
    example: tuple[str, str] | None = None
    """For menus, which cannot ask for a number: a level of the range, and its help."""


LEVELS = {
    policy.name: policy
    for policy in (
        LevelPolicy("match", "as loud as in the mixture"),
        LevelPolicy("peak", "as loud as possible: highest sample at -1 dBFS", _PEAK_DB),
        LevelPolicy(
            "lufs",
            "this loud by ITU-R BS.1770, as in lufs=-23",
            (-70.0, 0.0),
            in_lufs=True,
            example=("lufs=-23", "-23 LUFS, as in broadcasting"),
        ),
        LevelPolicy("raw", "at whatever level the model gives", matched=False),
    )
}
"""Every level policy by its name. A goal that is neither a peak nor a loudness in LUFS also needs
a measure in `GainMeter`."""


@dataclass(frozen=True)
class LevelGain:
    """The gain that gives an estimate its level."""

    gain: float
    limit_db: float = 0.0
    """By how much the gain is less than the policy asks for, so that nothing clips."""
    too_soft: bool = False
    """Whether the estimate is too soft to be measured, so that the policy changes nothing."""


@dataclass(frozen=True)
class Level:
    """A level as a user asks for it: a policy and the level that it is to reach."""

    policy: LevelPolicy
    goal: float | None = None

    @classmethod
    def parse(cls, text: str) -> Level:
        """Read the name of a policy, perhaps with a number as in "lufs=-23".

        Raises:
            ValueError: there is no such policy, or it takes no such number.
        """
        name, equals, digits = text.partition("=")
        if policy := LEVELS.get(name):
            if isinstance(policy.goal, tuple):
                with suppress(ValueError):
                    if policy.goal[0] <= float(digits) <= policy.goal[1]:
                        return cls(policy, float(digits))
            elif not equals:
                return cls(policy, policy.goal)
        choices = ", ".join(
            f"{row.name}={row.goal[0]:g} to {row.name}={row.goal[1]:g}"
            if isinstance(row.goal, tuple)
            else row.name
            for row in LEVELS.values()
        )
        raise ValueError(f"level {text!r} is not one of {choices}")


class GainMeter:
    """Measures a signal, and says which gain brings it to a level."""

    def __init__(self, level: Level, sample_rate_hz: int, channels: int) -> None:
        self._goal = level.goal
        in_lufs = level.policy.in_lufs
        self._loudness = LoudnessMeter(sample_rate_hz, channels) if in_lufs else None
        self.peak = 0.0
        """The highest absolute sample so far."""

    def add(self, block: Samples) -> None:
        """Take account of a block [channel, sample]."""
        self.peak = max(self.peak, float(np.abs(block).max(initial=0)))
        if self._loudness:
            self._loudness.add(block)

    def gain(self, *, clips: bool) -> LevelGain:
        """The gain for the signal.

        It is less than the policy asks for only where the file format `clips` samples over full
        scale.
        """
        gain, too_soft = 1.0, False
        if self._goal is not None:
            peak_db = level_db(self.peak**2) if self.peak else -np.inf
            measured_db = self._loudness.level() if self._loudness else peak_db
            too_soft = not np.isfinite(measured_db)
            gain = 1.0 if too_soft else 10 ** ((self._goal - measured_db) / 20)
        if clips and gain * self.peak > FULL_SCALE:
            return LevelGain(PEAK / self.peak, level_db((gain * self.peak / PEAK) ** 2))
        return LevelGain(gain, too_soft=too_soft)


class LevelMatcher:
    """Measures how loud an estimate is in its mixture, by least squares, for each channel.

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

    def gains(self) -> npt.NDArray[np.float64]:
        """The gains [channel] for the network's estimate; 1 where the estimate is silent."""
        gains = np.ones_like(self._estimate)
        np.divide(self._shared, self._estimate, out=gains, where=self._estimate > 0)
        return gains


def gains_db(gains: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Linear gains [channel] in dB."""
    levels_db = 20 * np.log10(np.maximum(np.abs(gains), 1e-15))
    return tuple(levels_db.round(2).tolist())
