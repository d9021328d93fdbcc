"""Live extraction: as many samples out as in, the promised time later, however the sound comes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import Extractor, si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.errors import CheckpointError, McspexError
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.reference import Voice
from mcspex_cli.extraction.runtime import Runtime
from mcspex_cli.extraction.streaming import Timing
from tests.conftest import RATE_HZ, buzz, calibration

VOICE = Voice(np.ones(9, np.float32), (), 3.0, (), ())


class Tone(Runtime):
    """Gives a band of the mixture, and a little of the rest, at a level of its own."""

    name, device, precision, batch, true_level = "tone", "cpu", "float32", 1, False

    def __init__(self, low_hz: float = 0, high_hz: float = 1e6, rest: float = 0.0) -> None:
        self.sample_rate_hz, self.hop = RATE_HZ, 20
        self._band, self._rest = (low_hz, high_hz), rest

    def embed(self, references: Samples) -> Samples:
        return np.ones((len(references), 16), np.float32)

    def extract(self, mixtures: Sequence[Samples], voices: Samples) -> list[Samples]:
        length = len(mixtures[0])
        at_hz = np.fft.rfftfreq(length, 1 / RATE_HZ)
        within = (at_hz >= self._band[0]) & (at_hz <= self._band[1])
        spectra = np.fft.rfft(mixtures) * np.where(within, 1, self._rest)
        return list((-37 * np.fft.irfft(spectra, length)).astype(np.float32))


@pytest.fixture
def extractor(tiny_folder: Path) -> Extractor:
    return Extractor.load(tiny_folder, device="cpu", precision="float32")


def with_runtime(extractor: Extractor, runtime: Runtime, **changed: float) -> Extractor:
    """An extractor whose network is another, and whose presence is sure of any voice."""
    size = extractor.model.config.embedding
    return Extractor(extractor.model, Engine(runtime, calibration=calibration(size, **changed)))


def voice_of(extractor: Extractor) -> Voice:
    return Voice(np.ones(extractor.model.config.embedding, np.float32), (), 3.0, (), ())


def blocks(samples: Samples, size: int | None) -> Iterator[Samples]:
    """Blocks of a size, or of many, some of them empty."""
    rng, start = np.random.default_rng(3), 0
    while start < samples.shape[-1]:
        length = size or int(rng.integers(0, 4000))
        yield samples[..., start : start + length]
        start += length


@pytest.mark.parametrize(
    ("rate_hz", "latency_s"), [(8000, 0.1), (16000, 0.25), (11025, 1.0), (8000, 3.0)]
)
def test_samples_come_out_when_they_are_due(
    extractor: Extractor, rate_hz: int, latency_s: float
) -> None:
    tone = with_runtime(extractor, Tone())
    live = tone.live(voice_of(tone), latency_s=latency_s, sample_rate_hz=rate_hz)
    latency = round(latency_s * rate_hz)
    assert live.timing.latency == latency
    received = given = 0
    for block in blocks(np.zeros(5 * rate_hz + 17, np.float32), None):
        received += len(block)
        given += len(live.push(block))
        assert given == max(0, received - latency)
    assert given + len(live.flush()) == received
    assert len(live.flush()) == 0
    with pytest.raises(ValueError, match=r"^this stream was flushed\. Begin a new one\.$"):
        live.push(np.zeros(1, np.float32))


@pytest.mark.parametrize("rate_hz", [8000, 48_000])
@pytest.mark.parametrize("length", [0, 1, 2, 100, 2400, 7999])
def test_a_stream_may_end_at_any_time(extractor: Extractor, length: int, rate_hz: int) -> None:
    live = extractor.live(voice_of(extractor), latency_s=0.5, sample_rate_hz=rate_hz)
    before = live.push(buzz(120, 1)[:length])
    assert len(before) + len(live.flush()) == length


def test_the_size_of_blocks_does_not_matter(extractor: Extractor) -> None:
    mixture, voice = buzz(110, 4) + buzz(190, 4), voice_of(extractor)
    extractor, outputs = with_runtime(extractor, extractor.engine.runtime), []
    for size in (None, 37, 1600, len(mixture)):
        live = extractor.live(voice, latency_s=0.5, absent="mute")
        parts = [live.push(block) for block in blocks(mixture, size)]
        outputs.append(np.concatenate([*parts, live.flush()]))
    assert np.abs(outputs[0]).max() > 1e-4
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])


@pytest.mark.parametrize("offset", [0, 0.3])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 16000, 44100])
def test_a_network_that_changes_nothing_gives_the_mixture_in_its_place(
    extractor: Extractor, rate_hz: int, offset: float
) -> None:
    tone = with_runtime(extractor, Tone())
    times_s = np.arange(5 * rate_hz) / rate_hz
    mixture = sum(np.sin(2 * np.pi * hz * times_s + hz) for hz in (211, 977, 2503)) / 10
    stereo = np.stack([1.5 * mixture, 0.5 * mixture]).astype(np.float32) + np.float32(offset)
    live = tone.live(voice_of(tone), latency_s=0.3, sample_rate_hz=rate_hz)
    parts = [live.push(block) for block in blocks(stereo, None)]
    estimate = np.concatenate([*parts, live.flush()])
    assert si_sdr(estimate, mixture) > 40
    assert abs(estimate.mean()) < 1e-3
    assert np.std(estimate) == pytest.approx(np.std(mixture), rel=0.01)


def test_an_impulse_comes_out_where_it_went_in(extractor: Extractor) -> None:
    tone = with_runtime(extractor, Tone())
    live = tone.live(voice_of(tone), latency_s=0.25)
    mixture = np.zeros(3 * RATE_HZ, np.float32)
    mixture[12_345] = 0.5
    estimate = np.concatenate([live.push(mixture), live.flush()])
    assert np.abs(estimate).argmax() == 12_345
    assert estimate[12_345] == pytest.approx(0.5, rel=0.02)


def test_what_others_leave_is_not_turned_up_while_the_voice_is_silent(
    extractor: Extractor,
) -> None:
    tone = with_runtime(extractor, Tone(400, 500, rest=0.02))
    times_s = np.arange(40 * RATE_HZ) / RATE_HZ
    other = 0.1 * np.sin(2 * np.pi * 1000 * times_s)
    target = 0.1 * np.sin(2 * np.pi * 440 * times_s) * ((times_s < 5) | (times_s > 35))
    live = tone.live(voice_of(tone))
    estimate = np.concatenate([live.push((target + other).astype(np.float32)), live.flush()])
    levels = np.std(estimate.reshape(40, -1), axis=1) / 0.0707
    assert levels[1:5] == pytest.approx(1, abs=0.05)
    assert (levels[10:34] < 0.03).all()
    assert levels[37:] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("right", "cancel"), [(-1.0, True), (-0.95, True), (-0.5, False), (0.0, False), (1.0, False)]
)
def test_channels_that_cancel_each_other_out_are_told(
    extractor: Extractor, right: float, cancel: bool
) -> None:
    tone = with_runtime(extractor, Tone())
    live, left = tone.live(voice_of(tone)), buzz(120, 2)
    live.push(np.zeros((2, 1000), np.float32))
    stereo = np.stack([left, np.float32(right) * left])
    live.push(stereo[:, :5000])
    assert not live.channels_cancel  # not before a second has come
    live.push(stereo[:, 5000:])
    assert live.channels_cancel == cancel
    live.push(left)
    assert live.channels_cancel == cancel


def test_a_model_that_cannot_tell_whether_a_voice_is_there_does_not_mute(
    extractor: Extractor,
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot tell whether a voice is there"):
        extractor.live(voice_of(extractor), absent="mute")


def test_nothing_clips(extractor: Extractor) -> None:
    tone = with_runtime(extractor, Tone(400, 500))
    times_s = np.arange(4 * RATE_HZ) / RATE_HZ
    mixture = 1.2 * np.sin(2 * np.pi * 440 * times_s) - 0.5 * np.sin(2 * np.pi * 1320 * times_s)
    live = tone.live(voice_of(tone))
    estimate = np.concatenate([live.push(mixture.astype(np.float32)), live.flush()])
    assert 0.9 < np.abs(estimate).max() <= 1
    assert np.dot(estimate, mixture) > 0
    assert live.limited


@pytest.mark.parametrize(("threshold", "level"), [(0.1, 0.0707), (0.99, 0.0)])
def test_an_absent_voice_is_muted(extractor: Extractor, threshold: float, level: float) -> None:
    tone = with_runtime(extractor, Tone(), mute_threshold=threshold)
    live = tone.live(voice_of(tone), absent="mute")
    assert live.presence is None
    times_s = np.arange(4 * RATE_HZ) / RATE_HZ
    live.push((0.1 * np.sin(2 * np.pi * 440 * times_s)).astype(np.float32))
    rest = live.flush()
    assert live.presence is not None
    assert 0.5 < live.presence < 0.99
    assert np.std(rest) == pytest.approx(level, abs=1e-3)


class Slow(Tone):
    """Takes its time."""

    def extract(self, mixtures: Sequence[Samples], voices: Samples) -> list[Samples]:
        time.sleep(0.05)
        return super().extract(mixtures, voices)


def test_computing_goes_on_while_sound_comes(extractor: Extractor) -> None:
    slow = with_runtime(extractor, Slow())
    live, waits_s = slow.live(voice_of(slow), latency_s=0.5), []
    for block in blocks(buzz(120, 2), 200):
        time.sleep(200 / RATE_HZ)
        began = time.monotonic()
        live.push(block)
        waits_s.append(time.monotonic() - began)
    live.flush()
    assert np.percentile(waits_s, 90) < 0.04  # about every twelfth block begins a window
    assert live.computed_s > 6 * 0.05


def test_what_is_wrong_is_said(extractor: Extractor) -> None:
    voice = voice_of(extractor)
    for latency_s in (0.05, 4.0):
        with pytest.raises(ValueError, match=f"^a latency of {latency_s:g} s is not from 0.1 to 3"):
            extractor.live(voice, latency_s=latency_s)
    with pytest.raises(TypeError, match=r"^a latency is a number of seconds, not '1'$"):
        extractor.live(voice, latency_s="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^a sample rate is from 1000 to 1000000 Hz, not 500$"):
        extractor.live(voice, sample_rate_hz=500)
    with pytest.raises(ValueError, match=r"^absent 'fail' is none of keep, mute$"):
        extractor.live(voice, absent="fail")
    with pytest.raises(McspexError, match=r"^live: the voice is not one of this model"):
        extractor.live(VOICE)
    live = extractor.live(voice)
    with pytest.raises(TypeError, match=r"^a block must be a NumPy array .* of float numbers"):
        live.push(np.zeros(5, np.int16))  # type: ignore[arg-type]
    for shape in ((1, 1, 1), (0, 5)):
        text = re.escape(f"a block has the shape {list(shape)}; it must be [sample] or")
        with pytest.raises(ValueError, match=f"^{text}"):
            live.push(np.zeros(shape, np.float32))
    for sample in (np.nan, 1e300):
        with pytest.raises(ValueError, match=r"^a block has samples that are NaN or infinite\.$"):
            live.push(np.array([sample]))


def test_a_window_is_longer_than_what_it_has_to_hold() -> None:
    for latency_s in np.linspace(0.1, 3, 59):
        timing = Timing.for_latency(latency_s, 44100)
        assert min(timing.hop, timing.fade, timing.future, timing.reserve) > 0
        assert timing.window > timing.hop + timing.fade + timing.future + 44100
