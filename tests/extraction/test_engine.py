"""The engine: one signal, many windows, the same answer."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.voices import talk
from mcspex_cli import audio, si_sdr
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import AudioError, EngineError
from mcspex_cli.extraction.engine import LEVEL_DB, Engine, Polarity, TorchRuntime, open_engine
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.reference import Voice
from mcspex_cli.extraction.runtime import EngineSettings, OutOfMemoryError, Runtime
from mcspex_cli.extraction.speech import find_pauses
from mcspex_cli.extraction.windows import Window
from mcspex_cli.model.systems import System
from tests.conftest import EXAMPLES, RATE_HZ, buzz

SHORT = EngineSettings("cpu", "float32", window_s=1.0, context_s=0.2, fade_s=0.1)


def test_a_single_pass_gives_the_networks_own_answer(tiny: System) -> None:
    mixture, reference = (at_level(buzz(*one)) for one in ((100, 0.9), (200, 1.5)))
    engine = Engine(tiny, replace(SHORT, passes=1))
    voice = tiny.embed(torch.from_numpy(reference)[None])
    expected = tiny.extract(torch.from_numpy(mixture)[None], voice)[0]
    np.testing.assert_allclose(
        engine.extract(mixture, engine.embed([reference])), expected, atol=1e-5
    )


class Identity(Runtime):
    """A network for which everybody is the whole mixture."""

    name, device, precision, batch = "torch", "cpu", "float32", 1
    sample_rate_hz, hop, true_level = RATE_HZ, 20, False

    def embed(self, references: audio.Samples) -> audio.Samples:
        return references[:, :1]

    def extract(self, mixtures: Sequence[audio.Samples], _: audio.Samples) -> list[audio.Samples]:
        return list(mixtures)


@pytest.mark.parametrize("passes", range(1, 6))
@pytest.mark.parametrize("length", [1, 19, 2000, 12345])
def test_passes_of_the_identity_are_the_identity(passes: int, length: int) -> None:
    engine, mixture = Engine(Identity(), replace(SHORT, passes=passes)), buzz(100, 2)[:length]
    estimate = engine.extract(mixture, np.ones(1, np.float32))
    np.testing.assert_allclose(estimate, mixture, atol=1e-6)


def test_the_network_gets_an_uneven_mixture_even() -> None:
    given: list[audio.Samples] = []

    class Listener(Identity):
        def extract(self, mixtures: Sequence[audio.Samples], _: audio.Samples) -> list[Any]:
            given.extend(mixtures)
            return list(mixtures)

    voice = talk(1, 0, 3, RATE_HZ)
    mixture = np.append(voice, 0.03 * voice)
    estimate = Engine(Listener(), EngineSettings("cpu", passes=1)).extract(mixture, voice[:1])
    np.testing.assert_allclose(estimate, mixture, atol=1e-6)
    loud, soft = (np.sqrt(np.mean(half**2)) for half in np.split(given[0], 2))
    assert 2 < loud / soft < 5  # and not 33


@pytest.mark.parametrize("passes", range(1, 4))
def test_a_single_pass_that_was_computed_before_changes_nothing(tiny: System, passes: int) -> None:
    engine = Engine(tiny, replace(SHORT, passes=passes))
    voice = engine.embed([buzz(200, 1)])
    windows = [buzz(hz, 1)[None] * 3 for hz in (100, 150)]
    polarities = [Polarity(voice), Polarity(voice, sign=-1)]
    expected, firsts = (engine.compute(windows, polarities, n) for n in (None, 1))
    for known in ([firsts[0], None], [None, firsts[1]]):
        estimates = engine.compute(windows, polarities, firsts=known)
        np.testing.assert_allclose(estimates, expected, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_a_pause_does_not_change_what_is_found_in_speech(tiny: System, level: float) -> None:
    """The networks' norms see all that they get; each channel has its own pauses."""
    engine = Engine(tiny, replace(batched(1), passes=2))
    polarity = Polarity(engine.embed([buzz(200, 1)]))
    noise = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
    pause, voice = level * noise, buzz(100, 2)
    window = np.stack([np.append(voice, pause), np.append(pause, voice), np.append(voice, voice)])
    shares = [find_pauses(samples, RATE_HZ).mean() for samples in window]
    assert shares == pytest.approx([0.44, 0.44, 0], abs=0.02)
    for samples, found in zip(window, engine.compute([window], [polarity])[0], strict=True):
        is_speech = ~find_pauses(samples, RATE_HZ)
        (alone,) = engine.compute([samples[None, is_speech]], [polarity])[0]
        assert si_sdr(found[is_speech], alone) > 100
        (whole,) = engine.compute([samples[None]], [polarity], passes=1)[0]
        if level and not is_speech.all():
            assert si_sdr(found[~is_speech], whole[~is_speech]) > 100
        else:
            assert not found[~is_speech].any()


def test_an_inverted_window_comes_out_inverted(tiny: System) -> None:
    engine = Engine(tiny, SHORT)
    voice, window = engine.embed([buzz(200, 1)]), buzz(100, 1)[None]
    (upright,) = engine.compute([window], [Polarity(voice)])
    (inverse,) = engine.compute([-window], [Polarity(voice, sign=-1)])
    np.testing.assert_array_equal(inverse, -upright)


class Lossy(Runtime):
    """A network for two voices, one below and one above 500 Hz, that loses all below 150 Hz."""

    name, device, precision, batch = "torch", "cpu", "float32", 1
    sample_rate_hz, hop, true_level = RATE_HZ, 1, False

    def embed(self, references: audio.Samples) -> audio.Samples:
        """How much lies above 500 Hz."""
        powers = np.abs(np.fft.rfft(references)) ** 2
        upper = powers[:, powers.shape[1] // 8 :].sum(-1, keepdims=True)
        return (upper / powers.sum(-1, keepdims=True)).astype(np.float32)

    def extract(
        self, mixtures: Sequence[audio.Samples], embeddings: audio.Samples
    ) -> list[audio.Samples]:
        """One of the two bands, at a level of its own."""
        estimates = []
        for mixture, voice in zip(mixtures, embeddings, strict=True):
            spectrum = np.fft.rfft(mixture)
            hz = np.fft.rfftfreq(len(mixture), 1 / RATE_HZ)
            band = (hz > 500) if voice[0] > 0.5 else (hz > 150) & (hz < 500)
            estimates.append(np.fft.irfft(7 * band * spectrum, len(mixture)).astype(np.float32))
        return estimates


def test_the_target_gets_its_share_of_what_the_estimates_of_all_voices_leave() -> None:
    lost, voice, other = (
        peak * np.sin(2 * np.pi * hz * np.arange(RATE_HZ) / RATE_HZ, dtype=np.float32)
        for hz, peak in ((100, 0.02), (200, 0.05), (1000, 0.05))
    )
    engine = Engine(Lossy(), replace(SHORT, passes=2))
    estimate = engine.extract(lost + voice + other, engine.embed([voice]))
    share = 0.45 * 0.05**2 / (0.02**2 + 0.05**2 + 0.05**2)
    np.testing.assert_allclose(estimate, 7 * (voice + share * lost), atol=1e-4)


def at_level(samples: audio.Samples) -> audio.Samples:
    """Samples at the level at which networks get them."""
    return samples * 10 ** (LEVEL_DB / 20) / np.sqrt(np.mean(samples**2))


@pytest.mark.parametrize("gain", [1e-3, 0.03, 10.0, 1e11])
def test_levels_do_not_matter(tiny: System, gain: float) -> None:
    mixture, reference = buzz(100, 2.5), buzz(200, 1.5)
    engine = Engine(tiny, SHORT)
    expected = engine.extract(mixture, engine.embed([reference]))
    factor = np.float32(gain)
    made = engine.extract(factor * mixture, engine.embed([factor * reference]))
    assert si_sdr(made, expected) > 60
    assert np.std(made.astype(np.float64)) == pytest.approx(gain * np.std(expected), rel=1e-3)


@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_nothing_is_found_in_silence(tiny: System, level: float) -> None:
    engine = Engine(tiny, SHORT)
    voice = engine.embed([buzz(200, 1)])
    assert (engine.extract(np.full(8000, level, np.float32), voice) == 0).all()


@pytest.mark.parametrize("length", [1, 19, 20, 8000, 8001, 12345, 40000])
def test_an_estimate_is_as_long_as_its_mixture(tiny: System, length: int) -> None:
    engine = Engine(tiny, SHORT)
    voice = engine.embed([buzz(200, 1)])
    assert engine.extract(buzz(100, 5)[:length], voice).shape == (length,)


def test_batches_of_windows_give_what_single_windows_give(tiny: System) -> None:
    mixture = buzz(100, 7.3)
    one, many = (
        Engine(tiny, EngineSettings("cpu", "float32", 1.0, 0.2, 0.1, batch)) for batch in (1, 5)
    )
    voice = one.embed([buzz(200, 1)])
    np.testing.assert_allclose(one.extract(mixture, voice), many.extract(mixture, voice), atol=1e-5)


def test_short_mixtures_of_unequal_lengths_share_a_batch_and_come_out_as_alone(
    tiny: System,
) -> None:
    one, many = (Engine(tiny, batched(batch)) for batch in (1, 4))
    mixtures = [buzz(100 + 20 * k, s, k) * 0.3**k for k, s in enumerate((0.9, 0.81, 0.86, 0.9))]
    voices = [one.embed([buzz(200 + 10 * k, 1)]) for k in range(4)]
    windows = [(k, Window(0, mixture[None], True)) for k, mixture in enumerate(mixtures)]
    (batch,) = many.batches(windows)
    estimates = many.compute(
        [window.samples for _, window in batch], [Polarity(voices[k]) for k, _ in batch]
    )
    for mixture, voice, estimate in zip(mixtures, voices, estimates, strict=True):
        assert si_sdr(estimate[0], one.extract(mixture, voice)) > 100


def test_windows_of_one_mixture_that_are_computed_at_once_have_one_polarity() -> None:
    engine = open_engine(find_checkpoint(), EngineSettings("cpu", "float32"))
    rate_hz = engine.sample_rate_hz
    reference, mixture = (
        audio.read(EXAMPLES / "set" / f"{name}.flac", rate_hz)
        for name in ("references/rms", "mixtures/rms_1")
    )
    polarity = Polarity(engine.embed([reference]))
    windows = [-mixture[None, :100], *np.array_split(-mixture[None], 2, axis=-1)]
    too_short, *estimates = engine.find_polarities(windows, [polarity] * 3)
    assert (polarity.sign, too_short) == (-1, None)
    for window, estimate in zip(windows[1:], estimates, strict=True):
        if estimate is not None:
            (expected,) = engine.compute([window], [polarity], passes=1)
            np.testing.assert_allclose(estimate, expected, atol=1e-6)
    assert any(estimate is not None for estimate in estimates)


class TwoFaced(Identity):
    """A network for which sound is as similar to [1, 0] as its polarity says."""

    upright, inverse = 0.0, 0.0

    def embed(self, references: audio.Samples) -> audio.Samples:
        cosines = np.where((references**3).mean(1) > 0, self.upright, self.inverse)
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


@pytest.mark.parametrize(
    ("upright", "inverse", "expected"),
    [
        (0.61, 0.9, (1, True)),
        (0.45, 0.62, (1, False)),  # neither is sure
        (0.4, 0.61, (-1, True)),
        (0.3, 0.59, (1, False)),
    ],
)
def test_a_polarity_is_known_once_its_evidence_is_strong(
    upright: float, inverse: float, expected: tuple[float, bool]
) -> None:
    runtime = TwoFaced()
    runtime.upright, runtime.inverse = upright, inverse
    polarity = Polarity(np.array([1, 0], np.float32))
    lopsided = np.tile(np.array([0.3, -0.1, -0.1, -0.1], np.float32), 2000)
    Engine(runtime, SHORT).find_polarities([lopsided[None]], [polarity])
    assert (polarity.sign, polarity.is_known) == expected


def test_several_references_are_averaged_by_duration(tiny: System) -> None:
    engine = Engine(tiny, SHORT)
    long, short = buzz(200, 3), buzz(210, 1)
    expected = 0.75 * engine.embed([long]) + 0.25 * engine.embed([short])
    np.testing.assert_allclose(engine.embed([long, short]), expected, rtol=1e-5, atol=1e-6)


def test_a_long_reference_is_embedded_in_parts(tiny: System) -> None:
    engine = Engine(tiny, SHORT)
    clip = buzz(200, 61)
    parts = [engine.embed([part]) for part in np.array_split(clip, 3)]
    np.testing.assert_allclose(engine.embed([clip]), np.mean(parts, axis=0), atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_are_near(tiny: System, precision: str) -> None:
    mixture, reference = buzz(100, 2.5), buzz(200, 1)
    exact = Engine(tiny, SHORT)
    rough = Engine(tiny, EngineSettings("cpu", precision, 1.0, 0.2, 0.1))
    a = exact.extract(mixture, exact.embed([reference]))
    b = rough.extract(mixture, rough.embed([reference]))
    assert b.dtype == np.float32
    assert np.square(a - b).sum() < np.square(a).sum() * 10 ** (-25 / 10)


def test_a_precision_that_overflows_says_so(tiny: System) -> None:
    for bank in tiny.encoder.banks:
        torch.nn.init.constant_(bank.weight, 1e5)
    engine = Engine(tiny, EngineSettings("cpu", "float16"))
    with pytest.raises(EngineError, match=r"float16 overflowed on cpu\. Use --precision float32"):
        engine.extract(buzz(100, 1), engine.embed([buzz(200, 1)]))


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (buzz(100, 0.29), "0.29 s is too short"),
        (np.zeros(8000, np.float32), "is silent"),
        (buzz(100, 1) * np.float32(1e-7), "is silent"),
    ],
)
def test_a_reference_of_no_use_is_refused(tiny: System, clip: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        Engine(tiny, SHORT).embed([clip])


def test_a_damaged_model_is_not_blamed_on_the_precision(tiny: System) -> None:
    torch.nn.init.constant_(tiny.encoder.banks[0].weight, float("nan"))
    engine = Engine(tiny, SHORT)
    with pytest.raises(EngineError, match=r"gave numbers that are not finite"):
        engine.embed([buzz(200, 1)])


def test_0_3_s_are_enough(tiny: System) -> None:
    assert np.isfinite(Engine(tiny, SHORT).embed([buzz(100, 0.3)])).all()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "tpu", "meta", "hpu"])
def test_a_device_that_is_not_there_is_refused(tiny: System, device: str) -> None:
    with pytest.raises(EngineError, match=f"device '{device}' is not available. Use one of: auto"):
        Engine(tiny, EngineSettings(device=device))


def test_an_unknown_precision_is_refused(tiny: System) -> None:
    with pytest.raises(EngineError, match="precision 'int3' is unknown"):
        Engine(tiny, EngineSettings(precision="int3"))


def test_the_rate_is_the_systems(tiny: System) -> None:
    assert Engine(tiny).sample_rate_hz == RATE_HZ


def batched(batch: int) -> EngineSettings:
    return EngineSettings("cpu", "float32", 1.0, 0.2, 0.1, batch, passes=1)


class Cramped(TorchRuntime):
    """A runtime on a device with room for only so many samples at once."""

    room = 0

    def extract(
        self, mixtures: Sequence[audio.Samples], voices: audio.Samples
    ) -> list[audio.Samples]:
        if sum(map(len, mixtures)) > self.room:
            raise OutOfMemoryError
        return super().extract(mixtures, voices)


def cramped(system: System, room: int, batch: int) -> Engine:
    runtime = Cramped(system, batched(batch))
    runtime.room = room
    return Engine(runtime, batched(batch))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_torchs_lack_of_memory_is_known_as_such(tiny: System, error: RuntimeError) -> None:
    runtime = TorchRuntime(tiny, SHORT)

    def full(*_: object) -> None:
        raise error

    runtime.system.extract = runtime.system.embed = full  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError):
        runtime.embed(buzz(100, 1)[None])
    with pytest.raises(OutOfMemoryError):
        runtime.extract(buzz(100, 1)[None], np.zeros((1, 16), np.float32))


@pytest.mark.parametrize(("batch", "left"), [(7, 1), (5, 1), (4, 2), (3, 1), (2, 2)])
def test_where_memory_is_short_batches_shrink_and_nothing_else_changes(
    tiny: System, batch: int, left: int
) -> None:
    engine, roomy = cramped(tiny, 2 * 8000, batch), Engine(tiny, batched(1))
    mixture, voice = buzz(100, 7.3), roomy.embed([buzz(200, 1)])
    np.testing.assert_allclose(
        engine.extract(mixture, voice), roomy.extract(mixture, voice), atol=1e-5
    )
    assert engine.signals_at_once == left


def test_the_memory_of_a_failed_try_is_free_when_its_halves_are_computed(tiny: System) -> None:
    runtime = TorchRuntime(tiny, batched(4))
    network, tried = runtime.system.extract, []

    def narrow(mixture: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert [one() for one in tried] == [None] * len(tried)
        tried.append(weakref.ref(mixture))
        if len(mixture) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return network(mixture, *rest)

    runtime.system.extract = narrow  # type: ignore[assignment]
    engine = Engine(runtime, batched(4))
    engine.extract(buzz(100, 2.7), engine.embed([buzz(200, 1)]))
    assert (len(tried), engine.signals_at_once) == (8, 1)


def test_too_little_memory_for_one_window_is_one_line(tiny: System) -> None:
    engine = cramped(tiny, 5000, 4)
    voice = engine.embed([buzz(200, 1)])
    assert engine.extract(buzz(100, 0.6), voice).shape == (4800,)
    with pytest.raises(EngineError, match=r"^cpu is out of memory\. Close other programs, or"):
        engine.extract(buzz(100, 3), voice)


def test_windows_within_a_tenth_share_batches_whatever_signal_they_are_of(tiny: System) -> None:
    engine = Engine(tiny, batched(3))
    lengths = (8000, 7200, 8001, 5000, 5500, 5000, 5000, 5600)
    windows = [(n, Window(0, np.zeros((1, length)), True)) for n, length in enumerate(lengths)]
    batches = [[owner for owner, _ in batch] for batch in engine.batches(windows)]
    assert batches == [[0, 1], [2], [3, 4, 5], [6], [7]]
    stereo = [(n, Window(0, np.zeros((2, 8000)), True)) for n in range(3)]
    assert [len(batch) for batch in engine.batches(stereo)] == [2, 1]


@pytest.mark.parametrize(
    ("mixture", "error", "message"),
    [
        (np.zeros((2, 8000), np.float32), ValueError, r"shape \[2, 8000\]; it must be \[sample\]"),
        (np.full(8000, np.nan, np.float32), ValueError, "NaN or infinite"),
        (np.zeros(0, np.float32), ValueError, "has no samples"),
        ([0.0] * 8000, TypeError, "must be a NumPy array"),
        (np.zeros(8000, np.complex64), TypeError, "must be a NumPy array"),
        (np.zeros(8000, np.int16), TypeError, "must be a NumPy array"),
    ],
)
def test_what_is_no_mixture_is_refused(
    tiny: System, mixture: np.ndarray, error: type[Exception], message: str
) -> None:
    engine = Engine(tiny, SHORT)
    for use in (lambda: engine.extract(mixture, np.zeros(16)), lambda: engine.embed([mixture])):
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize(
    "settings",
    [
        *({"window_s": value} for value in (0.0, -1.0, 1e-4, 1.25, np.nan, np.inf)),
        *({"fade_s": value} for value in (-1.0, np.nan)),
        *({name: value} for name in ("batch", "threads") for value in (-1, 10**9)),
        *({"passes": value} for value in (0, 17)),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EngineSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda engine: engine.extract(buzz(1, 1), np.ones(7, "f")), ValueError, "16 numbers"),
        (lambda engine: engine.extract(buzz(1, 1), np.ones((1, 16))), ValueError, r"be \[sample\]"),
        (lambda engine: engine.extract(buzz(1, 1), np.full(16, np.nan)), ValueError, "NaN"),
        (lambda engine: engine.extract(buzz(1, 1), "alice"), TypeError, "an embedding must be"),
        (lambda engine: engine.embed([]), ValueError, "embed needs one clip or more"),
        (lambda _: Engine("tiny"), TypeError, "runs a System or a Runtime"),  # type: ignore[arg-type]
        (lambda _: EngineSettings(device=None), TypeError, "device is text"),  # type: ignore[arg-type]
        (lambda _: EngineSettings(window_s="16"), TypeError, "numbers of seconds, not '16'"),  # type: ignore[arg-type]
        (lambda _: EngineSettings(precision=None), TypeError, 'precision is text, such as "auto"'),  # type: ignore[arg-type]
        (lambda _: EngineSettings(passes=np.int64(2)), TypeError, "passes is an int, not"),  # type: ignore[arg-type]
        (lambda _: EngineSettings(batch=1.5), TypeError, "batch is an int, not 1.5"),  # type: ignore[arg-type]
    ],
)
def test_what_an_engine_cannot_use_is_refused(
    tiny: System, use: Callable[[Engine], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        use(Engine(tiny, SHORT))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_refused_instead_of_hanging(tiny_folder: Path) -> None:
    extractor = Extractor.load(tiny_folder, device="cpu", precision="float32")
    embedding = extractor.engine.embed([buzz(200, 1)])
    voice, sound = Voice(embedding, (), 1.0, (), ()), buzz(100, 2)
    live = extractor.live(voice)
    live.push(sound)
    for use in (
        lambda: extractor.extract(sound, voice),
        lambda: extractor.live(voice).push(sound),
        lambda: live.push(sound),
        lambda: live.push(np.tile(sound, 30)),  # more windows than may wait
        live.flush,
    ):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                use()
            except EngineError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
