"""The engine: one signal, many windows, the same answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mcspex_cli import audio, si_sdr
from mcspex_cli.errors import AudioError, EngineError, McspexError
from mcspex_cli.extraction.engine import LEVEL_DB, Engine
from mcspex_cli.extraction.runtime import EngineSettings, OutOfMemoryError, TorchRuntime
from mcspex_cli.extraction.signals import Signal
from mcspex_cli.model.systems import System
from tests.conftest import RATE_HZ, buzz

SHORT = EngineSettings("cpu", "float32", window_s=1.0, context_s=0.2, fade_s=0.1)


def test_a_short_mixture_is_the_networks_own_answer(tiny: System) -> None:
    mixture, reference = (at_level(buzz(*one)) for one in ((100, 0.9), (200, 1.5)))
    engine = Engine(tiny, SHORT)
    voice = tiny.embed(torch.from_numpy(reference)[None])
    expected = tiny.extract(torch.from_numpy(mixture)[None], voice)[0]
    np.testing.assert_allclose(
        engine.extract(mixture, engine.embed([reference])), expected, atol=1e-5
    )


def at_level(samples: audio.Samples) -> audio.Samples:
    """Samples at the level at which networks get them."""
    return samples * 10 ** (LEVEL_DB / 20) / np.sqrt(np.mean(samples**2))


@pytest.mark.parametrize("gain", [1e-3, 0.03, 10.0, 1e30])
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


def test_the_mixture_comes_back_beside_its_estimate(tiny: System) -> None:
    mixture = np.stack([buzz(100, 4.7), buzz(150, 4.7)])
    engine = Engine(tiny, SHORT)
    voice = engine.embed([buzz(200, 1)])
    blocks = [mixture[:, i : i + 3000] for i in range(0, mixture.shape[1], 3000)]
    estimates, mixtures = zip(*engine.stream(blocks, voice), strict=True)
    np.testing.assert_allclose(np.concatenate(mixtures, axis=1), mixture, atol=1e-6)
    for channel, whole in enumerate(mixture):
        np.testing.assert_allclose(
            np.concatenate(estimates, axis=1)[channel], engine.extract(whole, voice), atol=1e-5
        )


def test_a_cached_embedding_is_a_fresh_one(tiny: System, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = buzz(200, 1.5)
    engine = Engine(tiny, SHORT)
    fresh = engine.embed([reference])
    monkeypatch.setattr(engine.runtime, "embed", None)
    np.testing.assert_array_equal(engine.embed([reference.copy()]), fresh)


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
    with pytest.raises(EngineError, match=r"weights are not finite"):
        engine.embed([buzz(200, 1)])


def test_0_3_s_are_enough(tiny: System) -> None:
    assert np.isfinite(Engine(tiny, SHORT).embed([buzz(100, 0.3)])).all()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "tpu"])
def test_a_device_that_is_not_there_is_refused(tiny: System, device: str) -> None:
    with pytest.raises(EngineError, match=f"device '{device}' is not available. Use one of: auto"):
        Engine(tiny, EngineSettings(device=device))


def test_an_unknown_precision_is_refused(tiny: System) -> None:
    with pytest.raises(EngineError, match="precision 'int3' is unknown"):
        Engine(tiny, EngineSettings(precision="int3"))


def test_the_rate_is_the_systems(tiny: System) -> None:
    assert Engine(tiny).sample_rate_hz == RATE_HZ


def batched(batch: int) -> EngineSettings:
    return EngineSettings("cpu", "float32", 1.0, 0.2, 0.1, batch)


def extracted(engine: Engine, signals: list[Signal]) -> list[np.ndarray | McspexError]:
    """Each signal's estimate, or what went wrong with it."""
    made: list[np.ndarray | McspexError] = []
    for signal, pieces in engine.stream_all(signals):
        assert signal is signals[len(made)]
        try:
            made.append(np.concatenate([estimate for estimate, _ in pieces], axis=1)[0])
        except McspexError as error:
            made.append(error)
    return made


def several(engine: Engine, *lengths: int) -> list[Signal]:
    """Mixtures of these lengths, every one with a voice of its own."""
    voices = [engine.embed([buzz(90 + 30 * i, 1)]) for i in range(3)]
    mixtures = [buzz(100 + 10 * i, 4, i)[:length] for i, length in enumerate(lengths)]
    return [Signal([m[None]], voices[i % 3], i) for i, m in enumerate(mixtures)]


LENGTHS = (8000, 8000, 30_000, 5000, 5000, 8000, 20_001, 8001, 4000)


def test_several_streams_are_what_they_are_one_by_one(tiny: System) -> None:
    engine = Engine(tiny, batched(1))
    signals = several(engine, *LENGTHS)
    together = extracted(engine, signals)
    assert len(together) == len(LENGTHS)
    for signal, estimate in zip(signals, together, strict=True):
        (alone,) = extracted(engine, [signal])
        np.testing.assert_array_equal(estimate, alone)


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_in_batches_they_agree_to_100_db(tiny: System, batch: int) -> None:
    engine = Engine(tiny, batched(batch))
    signals = several(engine, *LENGTHS)
    singles = extracted(Engine(tiny, batched(1)), signals)
    for estimate, alone in zip(extracted(engine, signals), singles, strict=True):
        assert np.square(estimate - alone).sum() < np.square(alone).sum() * 10 ** (-100 / 10)


def test_a_stream_that_overflows_costs_only_itself(tiny: System) -> None:
    engine = Engine(tiny, batched(4))
    signals = several(engine, 8000, 8000, 8000, 8000, 6000)
    expected = extracted(engine, signals)
    signals[1] = replace(signals[1], embedding=np.full_like(signals[1].embedding, 1e38))
    made = extracted(engine, signals)
    assert isinstance(made[1], EngineError)
    assert "not finite" in str(made[1])
    for index in (0, 2, 3, 4):
        np.testing.assert_array_equal(made[index], expected[index])


class Cramped(TorchRuntime):
    """A runtime on a device with room for only so many samples at once."""

    room = 0

    def extract(self, mixtures: audio.Samples, voices: audio.Samples) -> audio.Samples:
        if mixtures.size > self.room:
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
        runtime.embed(buzz(100, 1))
    with pytest.raises(OutOfMemoryError):
        runtime.extract(buzz(100, 1)[None], np.zeros((1, 16), np.float32))


@pytest.mark.parametrize(("batch", "left"), [(7, 1), (5, 1), (4, 2), (3, 1), (2, 2)])
def test_where_memory_is_short_batches_shrink_and_nothing_else_changes(
    tiny: System, batch: int, left: int
) -> None:
    engine = cramped(tiny, 2 * 8000, batch)
    signals = several(engine, *LENGTHS)
    made = extracted(engine, signals)
    assert engine.batch == left
    roomy = extracted(Engine(tiny, batched(1)), signals)
    for estimate, expected in zip(made, roomy, strict=True):
        np.testing.assert_allclose(estimate, expected, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_too_little_memory_for_one_window_costs_only_the_streams_with_such(
    tiny: System, batch: int
) -> None:
    engine = cramped(tiny, 5000, batch)
    signals = several(engine, 5000, 8000, 8000, 30_000, 5000, 4000)
    expected = extracted(Engine(tiny, batched(1)), signals)
    made = extracted(engine, signals)
    assert [isinstance(one, EngineError) for one in made] == [False, True, True, True, False, False]
    assert str(made[1]) == (
        "cpu is out of memory. Close other programs, or use a shorter window or another device."
    )
    assert engine.batch == 1
    for index in (0, 4, 5):
        np.testing.assert_allclose(made[index], expected[index], atol=1e-5)


def test_another_failure_of_the_network_is_not_taken_for_a_lack_of_memory(tiny: System) -> None:
    engine = Engine(tiny, batched(2))
    with pytest.raises(RuntimeError, match=r"shapes|size"):
        extracted(engine, [Signal([buzz(100, 1)[None]], np.zeros(3, np.float32))])
