"""How loud signals are: levels, loudness, speech by its level; and how loud an estimate is to be.

Speech is told from pauses (voice activity detection, VAD) by its level alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError

MIN_SIGNAL_S = 0.3
"""A mixture or a reference that is shorter than this is of no use."""

SILENCE_DB = -90.0
"""RMS level, dB of full scale, below which a signal counts as silent."""

FRAME_S = 0.01
_FRAMES_PER_S = 100

FrameLevels = npt.NDArray[np.float64]
"""dB of full scale [frame]; of digital silence -120."""

Activity = npt.NDArray[np.bool_]
"""Whether there is speech [frame]."""


def level_db(mean_square: float) -> float:
    """The level of a mean square, in dB of full scale."""
    return 10 * float(np.log10(max(mean_square, 1e-30)))


def check_length(name: str, seconds: float) -> None:
    """Refuse a signal shorter than 0.3 s with an `AudioError`."""
    if seconds < MIN_SIGNAL_S:
        shown_s = min(seconds, MIN_SIGNAL_S - 0.01)  # "0.30 s is too short" would be odd
        raise AudioError(f"{name}: {shown_s:.2f} s is too short. Give {MIN_SIGNAL_S} s or more.")


def check_level(name: str, mean_square: float) -> None:
    """Refuse a silent signal with an `AudioError`."""
    if level_db(mean_square) < SILENCE_DB:
        raise AudioError(f"{name}: is silent. Check the recording and its channels.")


def frame_levels_db(samples: Samples, sample_rate_hz: int) -> FrameLevels:
    """Measure the mean-square level of every 10 ms of `samples` [..., sample].

    Frame k begins at k times 10 ms: where these are not a whole number of samples, frames differ
    by one sample. The last frame may be shorter.

    Returns:
        [..., frame], dB of full scale, no less than -120.
    """
    length = samples.shape[-1]
    if not length:
        return np.zeros(samples.shape)
    frames = -(-length * _FRAMES_PER_S // sample_rate_hz)
    starts = np.arange(frames) * sample_rate_hz // _FRAMES_PER_S
    energies = np.add.reduceat(np.square(samples, dtype=np.float64), starts, axis=-1)
    return _levels_db(energies / np.diff(np.append(starts, length)))


_CUT_DB = 60.0
"""Frames this far below the loud ones are neither speech nor noise: sound was cut out there."""

_CONTRAST_DB = 8.0
"""With less than this between its quiet and its loud parts, a recording has no pauses."""

_SOFTEST_DB = 35.0  # what is this far below the loud frames is no speech, however quiet the room
_PAUSE_FRAMES = 20  # the shortest pause. Closures within words are shorter
_SMOOTHED_FRAMES = 5  # over which a level is averaged

MIN_SHARE_DB = -20.0
"""A frame of an estimate that is so far below its mixture is a remnant of other people."""


def detect_speech(levels_db: FrameLevels) -> Activity:
    """Tell frames [frame] with speech from frames without, by a threshold that fits the recording.

    The threshold lies a quarter of the way from the level of the quietest 0.2 s to that of the
    loud frames; in a quiet room, 35 dB below the loud frames. Digital silence is never speech.

    A recording without pauses is active throughout. So are constant noise and music, which
    cannot be told from it by their level. A silent recording is active nowhere.
    """
    levels_db = np.asarray(levels_db, np.float64)
    audible = levels_db[levels_db > SILENCE_DB]
    if not len(audible):
        return np.zeros(len(levels_db), np.bool_)
    loud_db = float(np.percentile(audible, 95))
    sounding = levels_db > max(SILENCE_DB, loud_db - _CUT_DB)
    powers = 10 ** (levels_db / 10)
    shortest = min(_PAUSE_FRAMES, int(sounding.sum()))
    pauses = np.convolve(powers[sounding], np.ones(shortest) / shortest, "valid")
    quiet_db = float(_levels_db(pauses.min()))
    if loud_db - quiet_db < _CONTRAST_DB:
        return sounding
    threshold_db = max(quiet_db + max(4.0, (loud_db - quiet_db) / 4), loud_db - _SOFTEST_DB)
    # Every frame is averaged with its neighbours, so that no single one decides.
    window = np.ones(min(_SMOOTHED_FRAMES, len(levels_db)))
    neighbours = np.convolve(np.ones(len(levels_db)), window, "same")
    smoothed_db = _levels_db(np.convolve(powers, window, "same") / neighbours)
    activity: Activity = sounding & (smoothed_db > threshold_db)
    return activity


def detect_target(estimate_db: FrameLevels, mixture_db: FrameLevels) -> Activity:
    """Tell frames [frame] of an estimate with the target from those with pauses and remnants.

    The estimate is at its level in the mixture.
    """
    return detect_speech(estimate_db) & (estimate_db > mixture_db + MIN_SHARE_DB)


def share_of_speech(estimate_db: FrameLevels, mixture_db: FrameLevels) -> float | None:
    """The share of the mixture's speech [frame] in which the estimate is heard too, 0 to 1.

    The estimate is at its level in the mixture. Without speech in the mixture it is None.
    """
    speech = detect_speech(mixture_db)
    return float(detect_target(estimate_db, mixture_db)[speech].mean()) if speech.any() else None


def smooth_activity(activity: Activity, min_speech_s: float, min_pause_s: float) -> Activity:
    """Fill pauses shorter than `min_pause_s`, then drop speech shorter than `min_speech_s`.

    What comes before the first and after the last speech of `activity` [frame] is not a pause.
    """
    result = np.array(activity, np.bool_)
    # A frame more or less by rounding does not count.
    shortest_pause, shortest_speech = (s / FRAME_S - 1e-7 for s in (min_pause_s, min_speech_s))
    for (_, end), (start, _) in pairwise(_runs(result)):
        if start - end < shortest_pause:
            result[end:start] = True
    for start, end in _runs(result):
        if end - start < shortest_speech:
            result[start:end] = False
    return result


def list_spans(activity: Activity) -> list[tuple[float, float]]:
    """List the stretches of speech in `activity` [frame] as (start_s, end_s), in order."""
    return [(round(start * FRAME_S, 2), round(end * FRAME_S, 2)) for start, end in _runs(activity)]


def _runs(activity: Activity) -> list[tuple[int, int]]:
    """The stretches of True, as (first frame, frame behind the last)."""
    edges = np.diff(np.concatenate(([0], np.asarray(activity, np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _levels_db(mean_squares: npt.ArrayLike) -> FrameLevels:
    levels: FrameLevels = 10 * np.log10(np.maximum(mean_squares, 1e-12))
    return levels


PEAK = 0.891
"""The highest sample of "peak", and of what would clip: -1 dBFS, room for players to resample."""

FULL_SCALE = 0.999
"""A sample above this counts as clipping."""


@dataclass(frozen=True)
class LevelPolicy:
    """One way to choose the level of an estimate; a row of `LEVELS`."""

    name: str
    help: str
    """What the estimate becomes, for `--help`."""
    gain: Callable[[float, float, float], float] = lambda *_: 1.0
    """The gain for the estimate, from its peak, its loudness in LUFS and the number."""
    number: tuple[float, float] | None = None
    """The lowest and highest number that goes with the name, as in "lufs=-23"; None for none."""
    matched: bool = True
    """Whether the estimate first gets the level that it has in the mixture."""
    needs_loudness: bool = False


def _to_peak(peak: float, *_: float) -> float:
    return PEAK / peak if peak > 0 else 1.0


def _to_loudness(_: float, loudness_lufs: float, number: float) -> float:
    return 10 ** ((number - loudness_lufs) / 20) if np.isfinite(loudness_lufs) else 1.0


_LUFS_HELP = "this loud by ITU-R BS.1770, as in lufs=-23"

LEVELS = {
    policy.name: policy
    for policy in (
        LevelPolicy("match", "as loud as in the mixture"),
        LevelPolicy("peak", "highest sample at -1 dBFS", _to_peak),
        LevelPolicy("lufs", _LUFS_HELP, _to_loudness, (-70.0, 0.0), needs_loudness=True),
        LevelPolicy("raw", "as the network gives it", matched=False),
    )
}
"""Every level policy by its name."""


@dataclass(frozen=True)
class Level:
    """A level as a user asks for it: a policy and, for some, a number."""

    policy: LevelPolicy
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Level:
        """Read "match", "peak", "raw" or "lufs=-23", or raise a ValueError."""
        name, equals, digits = text.partition("=")
        policy = LEVELS.get(name)
        if policy and policy.number:
            with suppress(ValueError):
                if policy.number[0] <= float(digits) <= policy.number[1]:
                    return cls(policy, float(digits))
        elif policy and not equals:
            return cls(policy)
        ranges = {row.name: row.number for row in LEVELS.values()}
        choices = ", ".join(
            f"{name}={limits[0]:g} to {name}={limits[1]:g}" if limits else name
            for name, limits in ranges.items()
        )
        raise ValueError(f"level {text!r} is not one of {choices}")

    def gain(self, peak: float, loudness_lufs: float, *, clips: bool) -> tuple[float, float]:
        """The gain for an estimate, from its highest sample and its loudness.

        Returns:
            The gain, and by how many dB it is less than the policy asks for. It is less only
            where the file format `clips` samples over full scale.
        """
        gain = self.policy.gain(peak, loudness_lufs, self.number)
        if clips and gain * peak > FULL_SCALE:
            return PEAK / peak, level_db((gain * peak / PEAK) ** 2)
        return gain, 0.0


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

    def gain(self) -> npt.NDArray[np.float64]:
        """The gains [channel] for the network's estimate; 1 where the estimate is silent."""
        gain = np.ones_like(self._estimate)
        np.divide(self._shared, self._estimate, out=gain, where=self._estimate > 0)
        return gain


def gain_db(gain: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Linear gains [channel] in dB."""
    return tuple(round(level_db(float(one) ** 2), 2) for one in gain)


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
        powers = powers[powers > 10 ** ((_ABSOLUTE_LUFS - _OFFSET_DB) / 10)]
        if powers.size:
            powers = powers[powers > powers.mean() * 10 ** (_RELATIVE_LU / 10)]
        return _OFFSET_DB + 10 * float(np.log10(powers.mean())) if powers.size else -np.inf

    def _weigh(self, samples: Samples) -> npt.NDArray[np.float64]:
        """The weighted energy [step] of all channels, of what comes after the history."""
        weighted = np.fft.irfft(np.fft.rfft(samples) * self._response, self._length)
        fresh = weighted[:, _HISTORY_STEPS * self._step :].reshape(len(samples), -1, self._step)
        energies: npt.NDArray[np.float64] = np.square(fresh).sum(axis=(0, 2))
        return energies


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
    response: npt.NDArray[np.complex128] = shelf * high_pass
    return response
