"""A recording of any length as windows of equal length, and back to one signal.

```
samples ─┬─▶ the network's rate ─▶ without what is below 20 Hz ─▶ windows
         └─▶ kept, where the residual or a mix needs them

window k      |context|fade|        keep        |fade|context|
window k+1                                      |fade|        keep ...
                                       context ^ discarded on both sides
joined        ...           keep of k           |k→k+1|  keep of k+1 ...
```

A network lacks context near the edges of a window, so the samples there are not used. The
cross-fade lies where both windows have context on both sides. The last window is moved back so that
it ends with the signal. It is never padded: padding changes the statistics of the networks' global
norms, and with them the estimate. A signal shorter than a window is one window of its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mcspex_cli.audio import Reader, Resampler, Samples
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.speech import MIN_SIGNAL_S, check_length

LOWEST_HZ = 20.0
"""What is below this cannot be heard, and is taken out before a network gets the sound."""

_FILTER_S = 0.4  # the length of that filter, which decides how steep it is


@dataclass(frozen=True)
class Windowing:
    """Lengths in samples; every window but the first and the last adds `hop` new samples."""

    window: int
    context: int
    fade: int

    def __post_init__(self) -> None:
        if min(self.context, self.fade) < 0 or self.hop < 1:
            raise ValueError(f"{self} keeps nothing of a window")

    @property
    def hop(self) -> int:
        """Samples from the start of one window to the start of the next."""
        return self.window - 2 * self.context - self.fade


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a signal: `samples` [channel, sample], the first of which is number `start`."""

    start: int
    samples: Samples
    last: bool


def cut(blocks: Iterable[Samples], windowing: Windowing) -> Iterator[Window]:
    """Cut a stream of blocks [channel, sample] into windows, holding little more than one.

    A stream without samples gives no window.
    """
    held: Samples | None = None
    held_from = start = 0
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=-1)
        end = held_from + held.shape[-1]
        # Only a sample after a window tells that the window is not the last one.
        while start + windowing.window < end:
            at = start - held_from
            yield Window(start, held[..., at : at + windowing.window], last=False)
            start += windowing.hop
        forget = max(held_from, min(start, end - windowing.window))
        held, held_from = held[..., forget - held_from :], forget
    if held is not None and held.shape[-1]:
        at = max(0, held.shape[-1] - windowing.window)
        yield Window(held_from + at, held[..., at:], last=True)


class Joiner:
    """Puts the estimates of one signal's windows together again, in order.

    All blocks together are exactly as long as the signal that was cut. `context` is what is
    dropped at both ends of a window, but for `fade` samples, in which two windows are cross-faded.
    """

    def __init__(self, context: int, fade: int) -> None:
        self._context, self._fade = context, fade
        self._ramp = (np.arange(fade, dtype=np.float32) + 0.5) / max(1, fade)
        self._done = 0
        self._tail: Samples | None = None

    def add(self, window: Window, estimate: Samples) -> tuple[Samples, Samples]:
        """Take the estimate [channel, sample] of the next window.

        Returns:
            The samples of the estimate that are final now, and the same samples of the mixture.
        """
        begin = self._done - window.start
        fresh, mixture = estimate[..., begin:].copy(), window.samples[..., begin:]
        if self._tail is not None:
            faded = slice(0, self._fade)
            fresh[..., faded] = self._tail * (1 - self._ramp) + fresh[..., faded] * self._ramp
        if window.last:
            return fresh, mixture
        keep = fresh.shape[-1] - self._context - self._fade
        self._tail = fresh[..., keep : keep + self._fade]
        self._done += keep
        return fresh[..., :keep], mixture[..., :keep]


def without_rumble(blocks: Iterable[Samples], sample_rate_hz: int) -> Iterator[Samples]:
    """Take a constant offset, and what is below 20 Hz, out of a stream of blocks [channel, sample].

    The filter is a linear-phase one whose delay is taken out, so that what is left stays where it
    was. Both ends of the signal are mirrored, so that an offset makes no click there. As many
    samples come out as went in, in other blocks.
    """
    half = round(_FILTER_S / 2 * sample_rate_hz)
    taps = _low_pass(half, sample_rate_hz)
    begun, held = False, None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=-1)
        if not begun and held.shape[-1] > half:
            held, begun = np.pad(held, ((0, 0), (half, 0)), mode="reflect"), True
        if begun and held.shape[-1] > 2 * half:
            yield held[..., half:-half] - _convolved(held, taps)
            held = held[..., -2 * half :]
    if held is not None and held.shape[-1]:
        ends = (0 if begun else half, half)
        held = np.pad(held, ((0, 0), ends), mode="reflect")
        yield held[..., half:-half] - _convolved(held, taps)


def _low_pass(half: int, sample_rate_hz: int) -> Samples:
    """The taps [2 * half + 1] of a low-pass at `LOWEST_HZ`: a sinc under a Hann window."""
    times_s = np.arange(-half, half + 1) / sample_rate_hz
    taps = np.sinc(2 * LOWEST_HZ * times_s) * np.hanning(2 * half + 3)[1:-1]
    return np.asarray(taps / taps.sum(), np.float32)


def _convolved(samples: Samples, taps: Samples) -> Samples:
    """Samples [channel, sample] under a filter, without the ends that the filter only half sees."""
    size = 2 ** int(np.ceil(np.log2(samples.shape[-1])))
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(taps, size)
    valid = np.fft.irfft(spectrum, size)[..., len(taps) - 1 : samples.shape[-1]]
    return valid.astype(np.float32)


@dataclass(eq=False)
class Mixture:
    """An open mixture, which is read once."""

    name: str
    sample_rate_hz: int
    channels: int
    blocks: Iterable[Samples]
    """[channel, sample] at its own rate."""
    announced_s: float = 0.0
    """Its length, as its header says."""
    start_s: float = 0.0
    """Where its sound begins in its container."""
    keep: Callable[[Samples], object] | None = None
    """Gets every block."""
    samples: int = field(default=0, init=False)
    """Read so far, of each channel."""

    def warnings(self) -> list[str]:
        """What is wrong with its file though it can be read; complete once all is read."""
        return self.blocks.warnings if isinstance(self.blocks, Reader) else []

    def windows(self, sample_rate_hz: int, windowing: Windowing) -> Iterator[Window]:
        """Read it as windows at the rate of a network.

        Raises:
            AudioError: it cannot be read, or is shorter than 0.3 s.
        """
        return cut(without_rumble(self._resampled(sample_rate_hz), sample_rate_hz), windowing)

    def _resampled(self, sample_rate_hz: int) -> Iterator[Samples]:
        resampler = Resampler(self.sample_rate_hz, sample_rate_hz, self.channels)
        for block in self.blocks:
            self.samples += block.shape[1]
            if self.keep:
                self.keep(block)
            yield resampler.step(block, last=False)
        seconds = self.samples / self.sample_rate_hz
        if seconds < MIN_SIGNAL_S and self.warnings():  # of a damaged file this much is left
            raise AudioError(
                f"{self.name}: is damaged, and only {seconds:.2f} s of it can be read, which is "
                "too short. Export it again from the original."
            )
        check_length(self.name, seconds)
        yield resampler.step(np.zeros((self.channels, 0), np.float32), last=True)
