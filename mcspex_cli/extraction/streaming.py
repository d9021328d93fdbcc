"""A target from sound that is still arriving: samples in, as many samples out, some time later.

```
            |◀────────────────── window ───────────────────▶|
            |        past         | hop |fade|   future     |
window k    |                     |=====|────|              |  ready `reserve` later
window k+1        |                     |====|──────|              |
out         ...       of k−1      |of k |k→k+1| of k+1 ...
            latency = hop + fade + future + reserve
```

The networks are not causal: they need to know what comes before and after a sample, and their
norms see a whole window. So the network runs anew on the last seconds each time a hop of new sound
has arrived, and gives a hop of output that lies a while before the window's end. Two windows are
joined by a cross-fade. `reserve` is the time that the network may take to compute. Each window is
resampled as a whole, which adds no delay: a streaming resampler would add 0.1 s, and another one
on the way back. Not from the paper.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import FULL_SCALE, Floats, Samples
from mcspex_cli.extraction.engine import Engine, Polarity, as_samples
from mcspex_cli.extraction.presence import MUTE_FADE_S, SEGMENT_S, PresenceMeter, Segment
from mcspex_cli.extraction.windows import Joiner, Window

LATENCIES_S = (0.1, 3.0)
"""The shortest and the longest latency."""

_FADE_S = 0.02

_LEVEL_MEMORY_S = 20.0
"""The time constant by which the level forgets: speech of so long ago counts 37 %."""

_PRESENCE_STEP_S = 0.4
"""Presence is measured no more often than this, as it costs about an eighth of a window."""

_MIN_JUDGED_S = 1.0
"""Presence is not measured by less sound than this."""

_MUTED_AFTER_S = 1.2
"""The output is muted when presence was too low for so long."""

_WAITING_WINDOWS = 4
"""How many windows may wait to be computed, so that a long block does not fill the memory."""


@dataclass(frozen=True)
class Timing:
    """The lengths in the drawing above, in samples at the rate of the sound."""

    window: int
    hop: int
    fade: int
    future: int
    reserve: int

    @property
    def latency(self) -> int:
        """How much later a sample comes out than it went in."""
        return self.hop + self.fade + self.future + self.reserve

    @classmethod
    def for_latency(cls, latency_s: float, sample_rate_hz: int) -> Timing:
        """Share a latency out.

        A longer hop costs less computing, and takes its length from the future of its last samples,
        but only half of it on average. So the hop and the reserve grow with the latency, for slower
        machines. These shares, and the length of the window, are a compromise between quality and
        computing time; docs/live.md has both.

        Raises:
            TypeError: the latency is no number.
            ValueError: it is out of `LATENCIES_S`.
        """
        if not isinstance(latency_s, Real):
            raise TypeError(f"a latency is a number of seconds, not {latency_s!r:.80}")
        if not LATENCIES_S[0] <= latency_s <= LATENCIES_S[1]:
            low, high = LATENCIES_S
            raise ValueError(f"a latency of {latency_s:g} s is not from {low:g} to {high:g} s")
        window_s = min(max(2.0, 4 * latency_s), 4.0)
        times_s = window_s, 0.56 * latency_s, _FADE_S, 0.2 * latency_s
        window, hop, fade, reserve = (round(one * sample_rate_hz) for one in times_s)
        future = round(latency_s * sample_rate_hz) - hop - fade - reserve
        return cls(window, hop, fade, future, reserve)


class LiveExtractor:
    """Extracts one target from a stream of blocks; `Extractor.live` makes one.

    ```python
    live = extractor.live(voice, latency_s=1.0, sample_rate_hz=16000)
    for block in microphone:
        play(live.push(block))
    play(live.flush())
    ```

    What comes out does not depend on how the stream is cut into blocks. The network runs in a
    thread of its own: `push` only waits for it where it is late.
    """

    def __init__(
        self, engine: Engine, embedding: Samples, timing: Timing, sample_rate_hz: int, mutes: bool
    ) -> None:
        self.timing, self.sample_rate_hz = timing, sample_rate_hz
        self._engine = engine
        self.presence: float | None = None
        """How likely, 0 to 1, the target speaks in the last 2 s that went in (when it was measured
        last, see `_PRESENCE_STEP_S`); None at first, and for a model that cannot tell."""
        self.present: bool | None = None
        """Whether presence is high enough to say that it does."""
        self.limited = False
        """Whether anything was turned down so that it does not clip."""
        self._mix = audio.MixMeter()
        self._stream = _Stream(engine, embedding, timing, sample_rate_hz, mutes)
        self._worker = ThreadPoolExecutor(1, "mcspex-live")
        self._waiting: deque[Future[_Output]] = deque()
        self._held: list[Samples] = []
        """The newest sound, a window or more once there is so much."""
        self._received = self._computed = self._given = 0
        """How many samples came in, were computed, and came out so far."""
        self._window_end = timing.hop + timing.fade + timing.future
        """How many samples will have come in when the next window is due."""
        self._ready: list[Samples] = []
        """Output that is not due yet."""
        self._flushed = False

    @property
    def computed_s(self) -> float:
        """How long the network, and all else that is done for a window, has taken so far."""
        return self._stream.computed_s

    @property
    def channels_cancel(self) -> bool:
        """Whether the channels of a second or more cancel each other out in the mix, or nearly."""
        is_known = self._flushed or self._received >= self.sample_rate_hz
        return is_known and self._mix.loss_db > audio.WEAKENED_DB

    def push(self, samples: Floats) -> Samples:
        """Take the next samples.

        Args:
            samples: [sample], or [channel, sample], of which the mean is taken. Any number of them.

        Returns:
            [sample], what is due: in all as many as were pushed so far, less the latency.

        Raises:
            EngineError: the network fails.
            TypeError, ValueError: the samples are no sound, or `flush` was called before.
        """
        self._engine.check_process()  # a fork has no worker
        if self._flushed:
            raise ValueError("this stream was flushed. Begin a new one.")
        channels = np.atleast_2d(as_samples("a block", samples, 1, 2, whole=False))
        mono = audio.select(channels, "mix")[0]
        self._mix.add(channels, mono[None])
        while mono.size:
            part, mono = np.split(mono, [self._window_end - self._received])
            self._held.append(part)
            self._received += len(part)
            if self._received == self._window_end:
                self._begin_window(last=False)
                self._window_end += self.timing.hop
        return self._take(max(0, self._received - self.timing.latency))

    def flush(self) -> Samples:
        """End the stream, and give all that has not come out yet, [sample]; fails as `push`."""
        self._engine.check_process()
        if not self._flushed and self._received:
            self._begin_window(last=True)
        self._flushed = True
        rest = self._take(self._received)
        self._worker.shutdown()
        return rest

    def _begin_window(self, *, last: bool) -> None:
        """Have the newest window computed."""
        held = np.concatenate(self._held)[-self.timing.window :]
        self._held = [held]
        window = Window(self._received - len(held), held[None], last)
        self._waiting.append(self._worker.submit(self._stream.add, window))
        while len(self._waiting) > _WAITING_WINDOWS:
            self._collect()

    def _collect(self) -> None:
        """Take in what the oldest window adds, and wait for it if it is not ready."""
        output = self._waiting[0].result()
        self._waiting.popleft()
        self._ready.append(output.samples)
        self._computed += len(output.samples)
        self.limited = self.limited or output.limited
        if output.segment:
            self.presence, self.present = output.segment.presence, output.segment.present

    def _take(self, until: int) -> Samples:
        """Take the output that was not given yet, up to sample `until`."""
        while self._computed < until:
            self._collect()
        ready = np.concatenate([np.zeros(0, np.float32), *self._ready])
        taken, rest = np.split(ready, [until - self._given])
        self._ready, self._given = [rest], until
        return taken


class _Output(NamedTuple):
    """What one window adds to the output."""

    samples: Samples
    """[sample]."""
    segment: Segment | None
    """The last one in which presence was measured."""
    limited: bool


class _Stream:
    """Turns windows into output, one after the other, in the worker's thread."""

    def __init__(
        self, engine: Engine, embedding: Samples, timing: Timing, sample_rate_hz: int, mutes: bool
    ) -> None:
        self.computed_s = 0.0
        self._engine, self._timing = engine, timing
        self._rate_hz, self._mutes = sample_rate_hz, mutes
        self._polarity = Polarity(embedding)
        self._joiner = Joiner(timing.future, timing.fade)
        self._products = np.zeros(3)
        """<mixture, estimate>, <estimate, estimate> and seconds so far; what is old counts less."""
        self._segment: Segment | None = None
        hop_s = timing.hop / sample_rate_hz
        step_s = hop_s * np.ceil(_PRESENCE_STEP_S / hop_s - 1e-6)
        self._presences: deque[float] = deque(maxlen=max(1, round(_MUTED_AFTER_S / step_s)))
        """The last ones that were measured where the estimate was not silent."""
        self._measured_at = -np.inf
        self._gate_gain = 1.0

    def add(self, window: Window) -> _Output:
        """Compute a window, whose samples are [1, sample]."""
        began, timing = time.perf_counter(), self._timing
        network_hz, length = self._engine.sample_rate_hz, window.samples.shape[1]
        mixture = audio.Resampler(self._rate_hz, network_hz, 1).step(window.samples, last=True)
        if not mixture.size:  # the whole stream is shorter than one sample of the network
            return _Output(np.zeros_like(window.samples[0]), None, limited=False)
        mixture = np.concatenate(list(audio.without_rumble([mixture], network_hz)), axis=-1)
        estimate = self._extract(mixture, window.start + length)
        back = audio.Resampler(network_hz, self._rate_hz, 1).step(estimate, last=True)
        back = np.pad(back, ((0, 0), (0, max(0, length - back.shape[1]))))[:, :length]
        begin = self._joiner.done - window.start
        end = length if window.last else length - timing.future
        peak = float(np.abs(back[0, begin:end]).max(initial=0))
        final = end - begin - (0 if window.last else timing.fade)
        gain = self._gain(estimate[0], mixture[0], final / self._rate_hz)
        limited = peak * abs(gain) > FULL_SCALE
        gain = gain * FULL_SCALE / (peak * abs(gain)) if limited else gain
        joined, _ = self._joiner.add(window, back * np.float32(gain))
        samples = self._mute_absent(joined[0])
        self.computed_s += time.perf_counter() - began
        return _Output(samples, self._segment, limited)

    def _extract(self, mixture: Samples, end: int) -> Samples:
        """The estimate [1, sample] of a window, at the network's rate.

        `end` is where the window ends in the stream, at the stream's rate.
        """
        polarity = self._polarity
        is_due = (end - self._measured_at) / self._rate_hz >= _PRESENCE_STEP_S
        firsts = self._engine.find_polarities([mixture], [polarity]) if is_due else [None]
        (estimate,) = self._engine.compute([mixture], [polarity], passes=1, firsts=firsts)
        self._engine.check_finite(estimate)
        if is_due:
            self._measure_presence(estimate, mixture)
            self._measured_at = end
        return estimate

    def _gain(self, estimate: Samples, mixture: Samples, seconds: float) -> float:
        """The gain that brings a window's estimate to its level in the mixture.

        It is the least squares over the window and what came before, so that it is steady. Least
        squares over a pause, or over remnants of other people, would turn them up. So while the
        estimate is softer than before, what came before is forgotten as much more slowly. `seconds`
        of the window are output.
        """
        if self._engine.runtime.true_level:
            return 1.0
        e, m = estimate.astype(np.float64), mixture.astype(np.float64)
        window = np.array([(e * m).sum(), np.square(e).sum(), len(e)]) / self._engine.sample_rate_hz
        loudness = 1.0
        if self._products[1] > 0:
            loudness = min(1.0, window[1] / window[2] * self._products[2] / self._products[1])
        self._products *= np.exp(-seconds / _LEVEL_MEMORY_S * loudness)
        self._products += window * seconds / window[2]
        shared, energy, _ = self._products + window
        return float(shared / energy) if energy > 0 else 1.0

    def _measure_presence(self, estimate: Samples, mixture: Samples) -> None:
        """Judge the last 2 s of a window."""
        rate_hz = self._engine.sample_rate_hz
        if self._engine.calibration is None or estimate.shape[1] < _MIN_JUDGED_S * rate_hz:
            return
        meter = PresenceMeter(self._engine, self._polarity, residuals=False)
        newest = slice(-round(SEGMENT_S * rate_hz), None)
        meter.add(estimate[0, newest], mixture[0, newest])
        self._segment = meter.result().segments[-1]
        if self._segment.similarity is not None:  # in silence the gate stays as it is
            self._presences.append(self._segment.presence)

    def _mute_absent(self, samples: Samples) -> Samples:
        """Samples as the policy for an absent target says, with a fade where that changes."""
        calibration, before = self._engine.calibration, self._gate_gain
        if calibration is None or not self._mutes:
            return samples
        is_open = max(self._presences, default=1.0) >= calibration.mute_threshold
        self._gate_gain = float(is_open)
        fade = min(len(samples), round(MUTE_FADE_S * self._rate_hz))
        gains = np.full(len(samples), self._gate_gain, np.float32)
        gains[:fade] = np.linspace(before, self._gate_gain, fade)
        return samples * gains
