"""The one road: levels, residuals, absent voices, several files, what is refused."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from mcspex_cli import audio
from mcspex_cli.audio import Samples, without_rumble
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint
from mcspex_cli.errors import AbsentError, AudioError, CheckpointError, McspexError, OutputError
from mcspex_cli.extraction import engine as engine_module
from mcspex_cli.extraction.engine import Engine, open_engine
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.job import (
    ExtractionOptions,
    Job,
    Outputs,
    Result,
    check_distinct,
)
from mcspex_cli.extraction.levels import PEAK
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.profile import ReferenceQuality
from mcspex_cli.extraction.reference import Span, Voice
from mcspex_cli.extraction.runtime import EngineSettings, Runtime
from mcspex_cli.files import UsedFiles
from tests import conftest
from tests.conftest import RATE_HZ, buzz
from tests.test_audio import BAD, make_bad

Run = Callable[..., Result]

SHORT = EngineSettings("cpu", "float32", window_s=1.0, context_s=0.2, fade_s=0.1)
MIXTURE = buzz(110, 5, 1) + buzz(190, 5, 2)


class Softener(Runtime):
    """Gives back what is low of a mixture, upside down and soft: what comes of it is known."""

    name, device, precision, batch = "torch", "cpu", "float32", 1
    sample_rate_hz, hop, true_level = RATE_HZ, 20, False
    gain, late = -0.01, 0

    def embed(self, references: Samples) -> Samples:
        """Energies of eight bands."""
        bands = np.array_split(np.abs(np.fft.rfft(references)), 8, axis=-1)
        energies = [np.sqrt(np.square(band).mean(-1)) for band in bands]
        return np.stack(energies, axis=-1).astype(np.float32)

    def extract(self, mixtures: Sequence[Samples], voices: Samples) -> list[Samples]:
        """The mean of neighbours: cos² of half the frequency."""
        padded = np.pad(mixtures, ((0, 0), (1, 1)), mode="edge")
        low = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
        return list(np.roll(self.gain * low, self.late, axis=1).astype(np.float32))


def calibration(threshold: float, **changed: Any) -> Calibration:
    """One for the network of these tests; a threshold of 0 or 1.1 decides everything."""
    return conftest.calibration(8, threshold=threshold, **changed)


def named(embedding: Samples, *sources: str) -> Voice:
    return Voice(embedding, (), 2.0, (), sources)


@pytest.fixture
def soft() -> Extractor:
    """An extractor whose estimates are known."""
    settings = EngineSettings(window_s=2.0, context_s=0.2, fade_s=0.1)
    config: Any = SimpleNamespace(embedding=8)
    info = CheckpointInfo("soft", Path("soft"), "0" * 64, config, {})
    return Extractor(info, Engine(Softener(), settings))


@pytest.fixture
def run(soft: Extractor, tmp_path: Path) -> Run:
    """Extracts mixture.wav of `tmp_path` to e.wav, r.wav and a.json, or to other names."""
    voice = named(soft.engine.embed([buzz(110, 2, 3)]))

    def extract(places: dict[str, str] | None = None, **options: Any) -> Result:
        names = {"estimate": "e.wav", "residual": "r.wav", "activity": "a.json", **(places or {})}
        paths = {kind: tmp_path / name for kind, name in names.items() if name}
        outputs = Outputs(**paths, overwrite=True)
        return soft.extract_file(
            tmp_path / "mixture.wav", voice, outputs, ExtractionOptions(**options)
        )

    return extract


@pytest.fixture
def mixture(tmp_path: Path) -> Samples:
    """Five seconds of two voices, in mixture.wav."""
    return put(tmp_path, MIXTURE)


@pytest.fixture
def tiny_extractor(tiny_folder: Path) -> Extractor:
    """The tiny model, with windows of a second."""
    info = find_checkpoint(tiny_folder)
    return Extractor(info, open_engine(info, SHORT))


@pytest.fixture
def voice(tiny_extractor: Extractor) -> Voice:
    return named(tiny_extractor.engine.embed([buzz(110, 2, 3)]))


def put(folder: Path, sound: Samples, rate_hz: int = RATE_HZ, subtype: str = "FLOAT") -> Samples:
    """Write mixture.wav."""
    audio.write(folder / "mixture.wav", sound, rate_hz, subtype)
    return sound


def get(path: Path) -> np.ndarray:
    """The samples of a file, [channel, sample]."""
    return soundfile.read(path, dtype="float64", always_2d=True)[0].T


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- estimate and residual ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "channel"),
    [
        ((8000, 16_001, 1), "mix"),
        ((8000, 2_400, 1), "mix"),
        ((44_100, 99_999, 2), "mix"),
        ((44_100, 99_999, 2), "all"),
        ((44_100, 66_151, 2), "1"),
        ((11_025, 33_333, 1), "mix"),
        ((48_000, 600_001, 1), "mix"),  # more than a block of reading
    ],
)
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_estimate_and_residual_are_the_mixture_sample_by_sample(
    run: Run, tmp_path: Path, shape: tuple[int, int, int], channel: str, subtype: str
) -> None:
    rate_hz, length, channels = shape
    rng = np.random.default_rng(0)
    # An offset is not shown to the network, and stays in the residual.
    sound = 0.1 * rng.standard_normal((channels, length)).astype(np.float32) + np.float32(0.2)
    put(tmp_path, sound, rate_hz, "PCM_16")
    result = run(channel=channel, subtype=subtype)
    given = get(tmp_path / "mixture.wav")
    if channel != "all":
        given = given.mean(axis=0, keepdims=True) if channel == "mix" else given[1:]
    estimate, residual = get(tmp_path / "e.wav"), get(tmp_path / "r.wav")
    assert estimate.shape == residual.shape == given.shape
    for name in ("e", "r"):
        info = soundfile.info(tmp_path / f"{name}.wav")
        assert (info.samplerate, info.subtype) == (rate_hz, subtype)
    assert np.abs(estimate + residual - given).max() <= (2 / 2**15 if subtype[0] == "P" else 1e-6)
    assert np.abs(estimate.mean()) < 1e-3
    assert (result.limited, result.residual_gain_db, result.warnings) == (False, 0.0, ())
    assert (result.seconds, result.sample_rate_hz) == (length / rate_hz, rate_hz)


def test_a_float_mixture_beyond_full_scale_comes_apart_exactly(run: Run, tmp_path: Path) -> None:
    sound = put(tmp_path, 5 * MIXTURE)
    result = run(subtype="FLOAT")
    estimate, residual = get(tmp_path / "e.wav"), get(tmp_path / "r.wav")
    assert np.abs(estimate).max() > 1
    np.testing.assert_allclose((estimate + residual)[0], sound, atol=1e-5)
    assert (result.limited, result.residual_gain_db, result.warnings) == (False, 0, ())


@pytest.mark.parametrize(
    "options",
    [{"level": "peak"}, {"level": "raw"}, {"level": "lufs=-30"}, {"wet_db": -20, "dry_db": -9}],
)
def test_the_residual_keeps_its_level_and_it_is_said_that_they_do_not_add_up(
    run: Run, mixture: Samples, tmp_path: Path, options: dict[str, Any]
) -> None:
    run(subtype="FLOAT")
    expected = get(tmp_path / "r.wav")
    result = run(subtype="FLOAT", **options)
    np.testing.assert_allclose(get(tmp_path / "r.wav"), expected, atol=1e-6)
    assert "estimate and residual do not add up" in result.warnings[-1]
    assert not run({"residual": ""}, subtype="FLOAT", **options).warnings


@pytest.mark.parametrize(("name", "subtype"), [("r.wav", "PCM_16"), ("r.ogg", "PCM_16")])
def test_a_residual_that_would_clip_is_turned_down(
    run: Run, soft: Extractor, tmp_path: Path, name: str, subtype: str
) -> None:
    """A square that nearly fills the scale: at its edges a late voice has the other sign."""
    soft.engine.runtime.late = 3  # type: ignore[attr-defined]
    put(tmp_path, 0.99 * np.sign(np.sin(0.15 * np.arange(2 * RATE_HZ))).astype(np.float32))
    result = run({"residual": name}, subtype=subtype)
    assert result.residual_gain_db < 0
    assert any("do not add up" in line for line in result.warnings)
    if name == "r.wav":  # Vorbis does not keep samples
        assert np.abs(get(tmp_path / name)).max() == pytest.approx(PEAK, abs=1e-4)
    free = run({"estimate": "f.wav", "residual": "f.r.wav"}, subtype="FLOAT")
    assert (free.residual_gain_db, free.limited, free.warnings) == (0, False, ())
    peak = np.abs(get(tmp_path / "f.r.wav")).max()
    assert peak > 1
    assert result.residual_gain_db == pytest.approx(20 * np.log10(PEAK / peak), abs=0.01)


@pytest.mark.parametrize(
    "rumble",
    [
        lambda at_s: 0.4 + 0 * at_s,
        lambda at_s: 0.05 * at_s - 0.2,
        lambda at_s: 0.3 * np.sin(2 * np.pi * 5 * at_s),
        lambda at_s: 0.3 * np.sin(2 * np.pi * 50 * at_s),
    ],
)
def test_what_is_too_low_for_a_voice_changes_nothing(
    run: Run, tmp_path: Path, rumble: Callable[[np.ndarray], np.ndarray]
) -> None:
    plain = {"estimate": "p.wav", "residual": "", "activity": ""}
    put(tmp_path, MIXTURE)
    expected = run(plain, subtype="FLOAT")
    put(tmp_path, MIXTURE + rumble(np.arange(len(MIXTURE)) / RATE_HZ).astype(np.float32))
    result = run(subtype="FLOAT")
    assert result.gain_db == pytest.approx(expected.gain_db, abs=0.2)
    inside = slice(RATE_HZ // 2, -RATE_HZ // 2)  # both ends are mirrored, which is no sine
    plain_estimate, estimate = (get(tmp_path / name)[0, inside] for name in ("p.wav", "e.wav"))
    np.testing.assert_allclose(estimate, plain_estimate, atol=0.01)


# --- levels ------------------------------------------------------------------------------------


def test_match_is_least_squares_to_the_mixture_of_either_sign(
    tiny_extractor: Extractor, voice: Voice, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "POLARITY_SIMILARITY", 2)  # so that nothing is inverted
    engine, options = tiny_extractor.engine, ExtractionOptions(subtype="FLOAT")
    mixture = audio.read(scene / "mixture.wav", RATE_HZ)
    result = tiny_extractor.extract_file(scene / "mixture.wav", voice, scene / "o.wav", options)
    audible = np.concatenate([*without_rumble([mixture[None]], RATE_HZ)], axis=1)[0]
    raw = engine.extract(audible, voice.embedding).astype(np.float64)
    gain = float(raw @ audible / (raw @ raw))
    written = get(scene / "o.wav")[0]
    np.testing.assert_allclose(written, gain * raw, atol=1e-5)
    assert result.gain_db[0] == pytest.approx(20 * np.log10(abs(gain)), abs=0.01)
    extract = engine.runtime.extract

    def flipped(*signals: Any) -> list[Samples]:
        return [-estimate for estimate in extract(*signals)]

    monkeypatch.setattr(engine.runtime, "extract", flipped)
    tiny_extractor.extract_file(scene / "mixture.wav", voice, scene / "p.wav", options)
    np.testing.assert_allclose(get(scene / "p.wav")[0], written, atol=1e-6)


def test_peak_is_minus_one_dbfs(run: Run, mixture: Samples, tmp_path: Path) -> None:
    for dry_db in (None, -3):
        result = run({"residual": ""}, level="peak", dry_db=dry_db, subtype="FLOAT")
        assert not result.limited
        assert np.abs(get(tmp_path / "e.wav")).max() == pytest.approx(PEAK, abs=1e-5)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("level", ["lufs=0", "raw"])
def test_what_would_clip_is_turned_down_but_not_in_float_files(
    run: Run, soft: Extractor, mixture: Samples, tmp_path: Path, subtype: str, level: str
) -> None:
    soft.engine.runtime.gain = 20.0  # type: ignore[attr-defined]
    result = run({"residual": ""}, level=level, subtype=subtype)
    assert result.limited is (subtype == "PCM_16")
    assert bool(result.warnings) is result.limited
    peak = np.abs(get(tmp_path / "e.wav")).max()
    assert peak == pytest.approx(PEAK, abs=1e-4) if result.limited else peak > 1


def test_what_is_too_soft_for_a_loudness_keeps_its_level_and_says_so(
    run: Run, mixture: Samples
) -> None:
    result = run({}, level="lufs=-23", wet_db=-60)
    assert "too soft to be measured, so that the level lufs=-23 changes nothing." in result.warnings


@pytest.mark.parametrize("options", [{}, {"dry_db": -15.0}, {"subtype": "FLOAT"}])
@pytest.mark.parametrize(("rate_hz", "lufs"), [(8000, -33.0), (44_100, -27.5)])
def test_loudness_is_as_asked_for_by_another_meter(
    run: Run, tmp_path: Path, rate_hz: int, lufs: float, options: dict[str, Any]
) -> None:
    import pyloudnorm  # which imports scipy.signal: too long for all who only collect tests

    put(tmp_path, np.resize(MIXTURE, 5 * rate_hz), rate_hz)
    assert not run({"residual": ""}, level=f"lufs={lufs}", **options).limited
    meter = pyloudnorm.Meter(rate_hz, filter_class="DeMan")
    assert meter.integrated_loudness(get(tmp_path / "e.wav")[0]) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize("level", ["match", "raw"])
@pytest.mark.parametrize(("wet_db", "dry_db"), [(0, -20), (6, -6), (-12, None), (-120, 0)])
def test_wet_and_dry_are_gains_of_voice_and_mixture(
    run: Run, tmp_path: Path, level: str, wet_db: float, dry_db: float | None
) -> None:
    sound = put(tmp_path, np.stack([0.1 * MIXTURE, 0.05 * MIXTURE[::-1]]))
    common = {"level": level, "subtype": "FLOAT", "channel": "all"}
    plain = run({"estimate": "p.wav", "residual": ""}, **common)
    result = run(wet_db=wet_db, dry_db=dry_db, **common)
    dry = 0 if dry_db is None else 10 ** (dry_db / 20)
    expected = 10 ** (wet_db / 20) * get(tmp_path / "p.wav") + dry * sound
    np.testing.assert_allclose(get(tmp_path / "e.wav"), expected, atol=1e-6)
    assert result.gain_db[1] == pytest.approx(plain.gain_db[1] + wet_db, abs=0.02)


# --- voices that are absent --------------------------------------------------------------------


def test_an_absent_voice_is_silenced_but_not_the_dry_mixture(
    run: Run, soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    soft.engine.calibration = calibration(threshold=1.1)
    result = run(absent="mute", subtype="FLOAT")
    assert (result.present, result.silent, result.active_s) == (False, True, 0)
    assert not get(tmp_path / "e.wav").any()
    np.testing.assert_allclose(get(tmp_path / "r.wav")[0], mixture, atol=1e-7)
    document = json.loads((tmp_path / "a.json").read_text())
    assert (document["present"], document["spans"]) == (False, [])
    assert run(absent="mute", level="peak").silent  # silence has no level
    run(absent="mute", dry_db=-10, subtype="FLOAT")
    np.testing.assert_allclose(get(tmp_path / "e.wav")[0], 10 ** (-10 / 20) * mixture, atol=1e-7)


def test_a_voice_that_is_present_is_not_touched(
    run: Run, soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    run({"estimate": "p.wav", "residual": "", "activity": ""})
    soft.engine.calibration = calibration(threshold=0.0)
    for absent in ("keep", "mute", "fail"):
        assert run(absent=absent).present
        assert (tmp_path / "e.wav").read_bytes() == (tmp_path / "p.wav").read_bytes()


def test_a_model_without_calibration_neither_mutes_nor_fails(
    run: Run, soft: Extractor, mixture: Samples
) -> None:
    soft.engine.calibration = None
    assert run().present is None
    message = r"^soft: cannot tell whether a voice is there\. Use --absent keep, or calibrate it: "
    for absent in ("mute", "fail"):
        with pytest.raises(CheckpointError, match=message):
            run(absent=absent)
        with pytest.raises(CheckpointError, match=message):
            soft.extract(MIXTURE, named(np.ones(8)), options=ExtractionOptions(absent=absent))


@pytest.mark.parametrize("rate_hz", [8000, 44_100])
def test_segments_without_the_voice_are_faded_to_silence(
    run: Run, soft: Extractor, tmp_path: Path, rate_hz: int
) -> None:
    """By the gain, which is high where the mixture is: for its middle four seconds."""
    at_s = np.arange(12 * rate_hz) / rate_hz
    middle = at_s // 4 == 1
    sound = 0.2 * np.sin(2 * np.pi * np.where(middle, 3000, 200) * at_s)
    sound = put(tmp_path, sound.astype(np.float32), rate_hz)
    run({"estimate": "p.wav", "residual": "", "activity": ""}, subtype="FLOAT")
    # Presence falls from 0.99 to 0.1 where the gain goes from 2 to 2.5 decades.
    soft.engine.calibration = calibration(0.01, segment_weights=(0.0, -14.0, 0.0, 32.0))
    result = run(absent="mute", subtype="FLOAT")
    kept = [one.presence >= 0.25 for one in result.segments]
    assert kept == [True, True, False, False, True, True]
    plain, muted, residual = (get(tmp_path / f"{name}.wav")[0] for name in "per")
    nearest = np.abs(at_s[:, None] - [4.0, 8.0]).min(axis=1)
    assert not muted[middle & (nearest > 0.026)].any()
    whole = ~middle & (nearest > 0.026)
    np.testing.assert_array_equal(muted[whole], plain[whole])
    np.testing.assert_allclose(muted + residual, sound, atol=1e-6)
    for edge_s in (4, 8):
        fade = np.abs(at_s - edge_s) < 0.025
        gains = 0.5 + (1 if edge_s == 8 else -1) * (at_s[fade] - edge_s) / 0.05
        np.testing.assert_allclose(muted[fade], gains * plain[fade], atol=1e-6)


def test_each_channel_is_judged_for_itself(run: Run, soft: Extractor, tmp_path: Path) -> None:
    """By the gain: the voice is in the first channel only, and for its first two seconds."""
    at_s = np.arange(4 * RATE_HZ) / RATE_HZ
    low, high = (0.2 * np.sin(2 * np.pi * hz * at_s) for hz in (200, 3000))
    put(tmp_path, np.stack([np.where(at_s < 2, low, high), high]).astype(np.float32))
    soft.engine.calibration = calibration(0.5, segment_weights=(0.0, -14.0, 0.0, 32.0))
    result = run(absent="mute", channel="all", subtype="FLOAT")
    assert (result.present, result.silent) == (True, False)
    assert [one.present for one in result.segments] == [True, False]
    first, second = get(tmp_path / "e.wav")
    assert np.abs(first[:15_000]).max() > 0.1
    assert not first[17_000:].any()
    assert not second.any()
    (span,) = json.loads((tmp_path / "a.json").read_text())["spans"]
    assert (span["start_s"], span["end_s"]) == pytest.approx((0, 2), abs=0.1)


def test_a_failure_leaves_what_was_there(
    run: Run, soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    soft.engine.calibration = calibration(threshold=0.0)
    run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    soft.engine.calibration = replace(soft.engine.calibration, threshold=1.1)
    with pytest.raises(AbsentError, match=r"mixture.wav: the voice is not in it \(presence 0\."):
        run(absent="fail")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_silent_estimate_is_written_and_said(
    run: Run, soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    soft.engine.runtime.gain = 0.0  # type: ignore[attr-defined]
    result = run()
    assert result.silent
    assert result.warnings == ("nothing of this voice was found; the result is silent.",)
    assert not get(tmp_path / "e.wav").any()


# --- samples in memory -------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8000, 44_100])
def test_samples_give_what_a_file_gives(soft: Extractor, tmp_path: Path, rate_hz: int) -> None:
    sound = put(tmp_path, np.stack([MIXTURE, 0.5 * MIXTURE]), rate_hz)
    voice = named(soft.engine.embed([buzz(110, 2, 3)]))
    for channel in ("mix", "1", "all"):
        options = ExtractionOptions(channel=channel, subtype="FLOAT")
        outputs = Outputs(tmp_path / "o.wav", overwrite=True)
        written = soft.extract_file(tmp_path / "mixture.wav", voice, outputs, options)
        result = soft.extract(sound, voice, sample_rate_hz=rate_hz, options=options)
        assert result.estimate is not None
        assert result.estimate.shape == (sound.shape if channel == "all" else sound[0].shape)
        np.testing.assert_allclose(
            np.atleast_2d(result.estimate), get(tmp_path / "o.wav"), atol=1e-6
        )
        assert result.gain_db == written.gain_db
        row = result.to_dict()
        assert (row["output"], row["mixture"]) == (None, "the mixture")
        assert set(row) == set(written.to_dict())


def test_an_estimate_in_memory_is_safe_to_write(soft: Extractor) -> None:
    soft.engine.runtime.gain = 20.0  # type: ignore[attr-defined]
    voice = named(soft.engine.embed([buzz(110, 2, 3)]))
    result = soft.extract(MIXTURE, voice, options=ExtractionOptions(level="raw"))
    assert result.estimate is not None
    assert np.abs(result.estimate).max() == pytest.approx(PEAK)
    assert result.limited


@pytest.mark.parametrize(
    ("samples", "rate_hz", "error", "message"),
    [
        (np.zeros((9000, 2), np.float32), 8000, ValueError, "Transpose it"),
        (np.zeros((1, 2, 9000), np.float32), 8000, ValueError, "shape"),
        (np.full(9000, np.inf, np.float32), 8000, ValueError, "NaN or infinite"),
        (MIXTURE.astype(np.float64) * 1e300, 8000, ValueError, "NaN or infinite"),
        (np.full((2, 9000), 3e38, np.float32), 8000, ValueError, "impossibly loud samples"),
        (np.zeros(0, np.float32), 8000, ValueError, "no samples"),
        ([0.0], 8000, TypeError, "NumPy array"),
        *(
            (MIXTURE.astype(kind), 8000, TypeError, "float numbers")
            for kind in (np.int16, np.bool_, np.complex64, object)
        ),
        (np.ma.masked_array(MIXTURE, MIXTURE > 0), 8000, TypeError, "float numbers"),
        *(
            (MIXTURE, rate_hz, ValueError, "a sample rate is from 1000 to")
            for rate_hz in (0, -1, 999, 10**9, np.nan, np.inf)
        ),
        *((MIXTURE, rate_hz, TypeError, "is a number, not") for rate_hz in (True, "8000")),
        (MIXTURE[:2000], 8000, AudioError, "0.25 s is too short"),
        (MIXTURE[:2399], 8000, AudioError, "0.29 s is too short"),
        (0 * MIXTURE, 8000, AudioError, "is silent"),
        (0 * MIXTURE + np.float32(0.3), 8000, AudioError, "is silent"),
    ],
)
def test_what_is_no_mixture_is_refused(
    soft: Extractor, samples: Any, rate_hz: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        soft.extract(samples, named(np.ones(8, np.float32)), sample_rate_hz=rate_hz)


@pytest.mark.parametrize(
    "embedding", [np.ones(7), np.full(8, np.nan), np.ones((1, 8)), np.ones(8, complex)]
)
def test_a_voice_of_another_model_is_refused(soft: Extractor, embedding: np.ndarray) -> None:
    with pytest.raises(McspexError, match=r"\(alice.wav\) is not one of this model, or is damaged"):
        soft.extract(MIXTURE, named(embedding, "alice.wav"))


def test_a_voice_of_a_model_with_embeddings_as_long_is_refused(
    soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    voice = soft.enroll(tmp_path / "mixture.wav")
    other = Extractor(replace(soft.model, sha256="1" * 64), soft.engine)
    for use in (lambda: other.extract(MIXTURE, voice), lambda: other.live(voice)):
        with pytest.raises(McspexError, match="is not one of this model, or is damaged"):
            use()
    assert soft.extract(MIXTURE, voice).estimate is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "loud"}, "level 'loud' is not one of match"),
        ({"absent": "ignore"}, "absent 'ignore' is none of keep, mute, fail"),
        ({"subtype": "PCM_99"}, "subtype 'PCM_99' is none of PCM_16"),
        ({"damaged": "maybe"}, "damaged 'maybe' is none of fail, keep"),
        ({"channel": "left"}, "channel 'left' is neither mix nor all nor a number"),
        ({"dry_db": float("nan")}, "wet_db and dry_db are from -120 to 40 dB"),
        ({"wet_db": 1e6}, "from -120 to 40 dB"),
        ({"dry_db": False}, "wet_db and dry_db are numbers of dB, not False"),
        ({"channel": "٣"}, "channel '٣' is neither mix nor all"),
        ({"channel": 5000 * "9"}, "is neither mix nor all"),
        ({"channel": 0}, 'channel is text, such as "1", not 0'),
        ({"track": 1}, "track is text"),
        ({"level": -23}, 'level is text, such as "match", not -23'),
        ({"absent": ["keep"]}, "absent is text"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ExtractionOptions(**options)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x, v: x.extract(MIXTURE, "alice.wav"), "a voice is what Extractor.enroll gives"),
        (lambda x, v: x.extract_file("m.wav", None, "o.wav"), "a voice is what Extractor.enroll"),
        (lambda x, v: x.extract(MIXTURE, v, options={"level": "peak"}), "are ExtractionOptions"),
        (lambda x, v: list(x.extract_files(["m.wav"])), "extract_files takes Jobs, not 'm.wav'"),
        (lambda x, v: x.enroll([MIXTURE]), "references are paths of files"),
        (lambda x, v: x.enroll(None), "references are paths of files"),
        (lambda x, v: x.enroll(spans=["0-1"], mixture="m.wav"), "spans are Spans"),
        (
            lambda x, v: x.enroll(spans=[Span(0, 1)], mixture="m.wav", options="all"),
            "options are ExtractionOptions",
        ),
        (lambda x, v: x.enroll("m.wav", options="all"), "options are ExtractionOptions"),
        (lambda x, v: Span("0", "3"), "a span is of two numbers of seconds, not '0' and '3'"),
        (lambda x, v: Job("m.wav", v, None), "not '?NoneType"),
        (lambda x, v: Outputs(None), "not '?NoneType"),
        (lambda x, v: Outputs("o.wav", speaker=None), "speaker is text, not None"),
        (lambda x, v: Outputs("o.wav", overwrite="no"), "overwrite is True or False, not 'no'"),
        (lambda x, v: Job("m.wav", v, "o.wav", id=3), "id is text, not 3"),
    ],
)
def test_arguments_of_another_type_are_refused(
    soft: Extractor, use: Callable[[Extractor, Voice], object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        use(soft, named(np.ones(8, np.float32)))


@pytest.mark.parametrize("name", ["a\0.wav", "a\ud800.wav"])
def test_a_name_that_no_file_can_have_is_one_line(soft: Extractor, name: str) -> None:
    voice = named(np.ones(8, np.float32))
    for outputs in (
        Outputs("o.wav", name),
        Outputs(name),
        Outputs("o.wav", activity=f"{name}.srt"),
    ):
        with pytest.raises(McspexError, match="no file can have this name"):
            soft.extract_file("m.wav", voice, outputs)
    with pytest.raises(McspexError, match="no file can have this name"):
        soft.extract_file(name, voice, "o.wav")
    with pytest.raises(McspexError, match="no file can have this name"):
        soft.enroll(name)


def test_paths_may_be_text_and_spans_one_or_any_iterable(
    soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    path, spans = tmp_path / "mixture.wav", [Span(1.0, 3.0)]
    texts = (soft.enroll(str(path)), soft.enroll(spans=spans[0], mixture=str(path)))
    paths = (soft.enroll(path), soft.enroll(spans=iter(spans), mixture=path))
    for one, other in zip(texts, paths, strict=True):
        np.testing.assert_array_equal(one.embedding, other.embedding)


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.float32, float, Fraction])
def test_a_rate_may_be_any_kind_of_whole_number(soft: Extractor, kind: Callable[..., Any]) -> None:
    rate_hz, voice = kind(16000), named(np.ones(8, np.float32))
    result = soft.extract(MIXTURE, voice, sample_rate_hz=rate_hz)
    assert json.loads(json.dumps(result.to_dict()))["sample_rate_hz"] == 16000
    live = soft.live(voice, sample_rate_hz=rate_hz)
    assert len(live.push(MIXTURE)) + len(live.flush()) == len(MIXTURE)


def test_where_nothing_can_be_kept_on_a_disk_only_long_sound_fails(
    soft: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose disk is read-only."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    voice = named(np.ones(8, np.float32))
    assert soft.extract(MIXTURE, voice).estimate is not None
    with pytest.raises(OutputError, match=r"^TMPDIR: a temporary file cannot be written: "):
        soft.extract(np.tile(MIXTURE, 110), voice)


@pytest.mark.parametrize("references", ["", ["", "mixture.wav"]])
def test_an_empty_name_is_no_reference(soft: Extractor, references: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"^a reference has an empty name; name a file"):
        soft.enroll(references)


# --- several files -----------------------------------------------------------------------------


def write_all(folder: Path, *lengths: int, rates: tuple[int, ...] = (RATE_HZ,)) -> list[Path]:
    """Files of these lengths in samples."""
    paths = [folder / f"{number}.wav" for number in range(len(lengths))]
    for number, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        sound = buzz(100 + 10 * number, 5, number)[:length]
        audio.write(path, sound, rates[number % len(rates)])
    return paths


def together(
    extractor: Extractor, voice: Voice, paths: list[Path], **options: Any
) -> list[Result | McspexError]:
    """What comes of some files, written beside them as NAME.together.wav."""
    jobs = [Job(path, voice, Outputs(path.with_suffix(".together.wav"))) for path in paths]
    done = list(extractor.extract_files(jobs, ExtractionOptions(**options)))
    assert [job for job, _ in done] == jobs
    return [result for _, result in done]


def alone(extractor: Extractor, voice: Voice, path: Path, **options: Any) -> Path:
    """The same of one file, written beside it as NAME.alone.wav."""
    output = path.with_suffix(".alone.wav")
    extractor.extract_file(path, voice, output, ExtractionOptions(**options))
    return output


LENGTHS = (8000, 8000, 30_000, 5000, 4800, 8001, 8000, 33_333)


def test_several_files_are_what_they_are_one_by_one_to_the_byte(
    tiny_extractor: Extractor, voice: Voice, tmp_path: Path
) -> None:
    paths = write_all(tmp_path, *LENGTHS, rates=(8000, 16000, 8000))
    for path, result in zip(paths, together(tiny_extractor, voice, paths), strict=True):
        assert isinstance(result, Result)
        expected = alone(tiny_extractor, voice, path).read_bytes()
        assert path.with_suffix(".together.wav").read_bytes() == expected
        assert result.real_time_factor > 0
    assert not list(tmp_path.glob(".*"))


def test_outputs_of_mixtures_that_were_opened_before_are_not_written_over(
    soft: Extractor, tmp_path: Path
) -> None:
    paths, voice = write_all(tmp_path, 8000, 8000), named(soft.engine.embed([buzz(110, 2, 3)]))
    first, second = (
        Job(path, voice, Outputs(tmp_path / "o.wav", overwrite=True)) for path in paths
    )
    first = replace(first, reader=first.open(ExtractionOptions()))
    (_, done), (_, refused) = soft.extract_files([first, second])
    assert isinstance(done, Result)
    assert re.search("would both be written to .*o.wav", str(refused))


def test_files_of_one_batch_share_its_time_by_their_lengths(
    tiny_extractor: Extractor, voice: Voice, tmp_path: Path
) -> None:
    def slow() -> Voice:
        time.sleep(0.4)
        return voice

    tiny_extractor.engine.signals_at_once = 4
    paths = write_all(tmp_path, 8000, 8000, 8000, 8000)
    jobs = [Job(path, voice, Outputs(path.with_suffix(".out.wav"))) for path in paths]
    jobs[0] = replace(jobs[0], voice=slow)
    results = [result for _, result in tiny_extractor.extract_files(jobs)]
    assert all(isinstance(one, Result) and one.elapsed_s > 0.1 for one in results)


@pytest.mark.parametrize("batch", [4, 5])
def test_several_files_in_batches_are_near(
    tiny_extractor: Extractor, voice: Voice, tmp_path: Path, batch: int
) -> None:
    paths = write_all(tmp_path, 8000, 8000, 8000, 8000, 8000, 30_000, 30_000, 5000)
    expected = [get(alone(tiny_extractor, voice, path, subtype="FLOAT")) for path in paths]
    tiny_extractor.engine.signals_at_once = batch
    together(tiny_extractor, voice, paths, subtype="FLOAT")
    for path, one in zip(paths, expected, strict=True):
        difference = get(path.with_suffix(".together.wav")) - one
        assert np.square(difference).sum() < np.square(one).sum() * 10 ** (-95 / 10)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("late nan", "NaN or infinite sample at 21.00 s"), *BAD, ("silent", "silent")],
)
def test_a_bad_file_costs_only_itself(
    tiny_extractor: Extractor,
    voice: Voice,
    tmp_path: Path,
    kind: str,
    message: str,
    batch: int,
) -> None:
    paths = write_all(tmp_path, *[8000] * 4)
    if kind == "late nan":
        sound = buzz(120, 25)
        sound[21 * RATE_HZ] = np.nan
        bad = tmp_path / "bad.wav"
        soundfile.write(bad, sound, RATE_HZ, subtype="FLOAT")
    else:
        bad = make_bad(tmp_path, kind)
        if kind == "silent":
            audio.write(bad, np.zeros(16000, np.float32), RATE_HZ)
    tiny_extractor.engine.signals_at_once = batch
    results = together(tiny_extractor, voice, [*paths[:2], bad, *paths[2:]])
    assert [isinstance(result, Result) for result in results] == [True, True, False, True, True]
    with pytest.raises(AudioError, match=message) as caught:
        raise results[2]  # type: ignore[misc]
    assert str(caught.value).startswith(f"{bad}: ")
    names = sorted(path.name for path in tmp_path.glob("*.together.wav"))
    assert names == [f"{number}.together.wav" for number in range(4)]
    assert not list(tmp_path.glob(".*"))


def test_a_bad_voice_or_place_costs_only_its_own_files(
    tiny_extractor: Extractor, voice: Voice, tmp_path: Path
) -> None:
    def fail() -> Voice:
        raise AudioError("bob.wav: is silent.")

    paths = write_all(tmp_path, 30_000, 30_000, 8000, 8000, 8000)
    (tmp_path / "file").touch()
    jobs = [
        Job(paths[0], voice, Outputs(tmp_path / "0.out.wav")),
        Job(paths[1], fail, Outputs(tmp_path / "1.out.wav")),
        Job(paths[2], voice, Outputs(tmp_path / "file" / "2.out.wav")),
        Job(paths[3], lambda: voice, Outputs(tmp_path / "new" / "3.out.wav")),
        Job(paths[4], lambda: None, Outputs(tmp_path / "4.out.wav")),  # type: ignore[arg-type, return-value]
        Job(paths[4], lambda: {}["bob"], Outputs(tmp_path / "5.out.wav")),
    ]
    results = [result for _, result in tiny_extractor.extract_files(jobs)]
    assert [isinstance(result, Result) for result in results] == [1, 0, 0, 1, 0, 0]
    assert str(results[1]) == "bob.wav: is silent."
    assert isinstance(results[2], OutputError)
    assert str(results[4]).startswith(f"{paths[4]}: the function in its Job gave None, not a Voice")
    assert str(results[5]) == f"{paths[4]}: the function in its Job failed: KeyError ('bob')."
    assert sorted(p.name for p in tmp_path.rglob("*.out.wav")) == ["0.out.wav", "3.out.wav"]


def test_giving_up_between_files_leaves_whole_ones_only(
    tiny_extractor: Extractor, voice: Voice, tmp_path: Path
) -> None:
    paths = write_all(tmp_path, *[30_000] * 12)
    read = []

    def jobs() -> Iterator[Job]:
        for path in paths:
            read.append(path)
            yield Job(path, voice, Outputs(path.with_suffix(".out.wav")))

    results = tiny_extractor.extract_files(jobs())
    job, _ = next(results)
    results.close()  # type: ignore[attr-defined]
    assert job.outputs.estimate.exists()
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.glob("*.out.wav"):
        assert soundfile.info(path).frames == 30_000
    assert len(list(tmp_path.glob("*.out.wav"))) < len(read) < 12


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("sizes do not match"),
            "RuntimeError (sizes do not match). This is a bug, please report it.",
        ),
        *(
            (error, "there is too little memory. Close other programs, or use a machine with more.")
            for error in (MemoryError("std::bad_alloc"), RuntimeError("can't start new thread"))
        ),
    ],
)
def test_a_failure_of_the_program_costs_only_its_own_file_and_the_traceback_of_a_bug_is_logged(
    soft: Extractor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: Any,
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(logging.getLogger("mcspex"), "propagate", True)
    paths, network = write_all(tmp_path, 8000, 9000, 8500), soft.engine.runtime.extract

    def extract(mixtures: Sequence[Samples], voices: Samples) -> list[Samples]:
        if len(mixtures[0]) == 9000:
            raise error
        return network(mixtures, voices)

    soft.engine.runtime.extract = extract  # type: ignore[method-assign]
    voice = named(np.ones(8, np.float32))
    first, second, third = together(soft, voice, paths)
    assert isinstance(first, Result)
    assert isinstance(third, Result)
    assert str(second) == f"{paths[1]}: {message}"
    assert ("Traceback" in caplog.text) == ("bug" in message)


def test_jobs_that_end_by_an_error_leave_the_files_before_it(
    soft: Extractor, tmp_path: Path
) -> None:
    (path,), voice = write_all(tmp_path, 8000), named(np.ones(8, np.float32))

    def jobs() -> Iterator[Job]:
        yield Job(path, voice, Outputs(tmp_path / "o.wav"))
        raise RuntimeError("mine")

    results = soft.extract_files(jobs())
    assert isinstance(next(results)[1], Result)
    with pytest.raises(RuntimeError, match="mine"):
        next(results)
    assert get(tmp_path / "o.wav").shape == (1, 8000)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("before", [b"", b"mine"])
def test_all_outputs_of_a_mixture_appear_or_none(
    soft: Extractor, mixture: Samples, tmp_path: Path, before: bytes
) -> None:
    """The last of the three cannot get its name, for a folder has it by then."""
    paths = [tmp_path / name for name in ("e.wav", "r.wav", "a.json")]
    if before:
        for path in paths[:2]:
            path.write_bytes(before)
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=r"a.json: cannot be written"):
        soft.extract_file(
            tmp_path / "mixture.wav",
            named(np.ones(8, np.float32)),
            Outputs(*paths, overwrite=True),
            advance=lambda _: paths[2].mkdir(exist_ok=True),
        )
    paths[2].rmdir()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("mixture.wav", 844, "0.03 s is too short"),
        ("mixture.flac", 2000, "holds no samples"),
        ("mixture.flac", 9000, "is damaged, and only 0.26 s of it can be read"),
    ],
)
def test_too_little_of_a_damaged_mixture_is_refused(
    soft: Extractor, tmp_path: Path, name: str, size: int, message: str
) -> None:
    path, voice = tmp_path / name, named(np.ones(8, np.float32))
    audio.write(path, MIXTURE, 16_000)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AudioError, match=f"{name}: {message}"):
        soft.extract_file(path, voice, tmp_path / "o.wav", ExtractionOptions(damaged="keep"))
    assert listing(tmp_path) == [name]


def test_no_jobs_are_no_results(soft: Extractor) -> None:
    assert list(soft.extract_files([])) == []


def test_threads_with_one_output_each_write_it_whole(
    soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    voice, errors = named(soft.engine.embed([buzz(110, 2, 3)])), []

    def work() -> None:
        outputs = Outputs(tmp_path / "o.wav", overwrite=True)
        try:
            soft.extract_file(tmp_path / "mixture.wav", voice, outputs)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert get(tmp_path / "o.wav").shape == (1, len(mixture))
    assert listing(tmp_path) == ["mixture.wav", "o.wav"]


def test_progress_adds_up_to_the_length_and_an_interruption_leaves_nothing(
    tiny_extractor: Extractor, voice: Voice, scene: Path
) -> None:
    steps: list[float] = []
    outputs = Outputs(scene / "out.wav", overwrite=True)
    tiny_extractor.extract_file(scene / "mixture.wav", voice, outputs, None, steps.append)
    assert sum(steps) == pytest.approx(2.0)
    assert len(steps) > 1

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    before = listing(scene)
    with pytest.raises(KeyboardInterrupt):
        tiny_extractor.extract_file(
            scene / "mixture.wav", voice, scene / "new.wav", None, interrupt
        )
    assert listing(scene) == before


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"estimate": "mixture.wav"}, "mixture.wav: is an input, and inputs are never"),
        ({"estimate": "link.wav"}, "link.wav: is an input"),
        ({"estimate": "sub/../mixture.wav"}, "is an input"),
        ({"residual": "mixture.wav"}, "mixture.wav: is an input"),
        ({"estimate": "x.wav", "residual": "x.wav"}, "x.wav: is named for two outputs"),
        ({"estimate": "sub"}, r"sub: cannot write this format. End the name in .wav, .flac"),
        ({"estimate": "x.mp3"}, r"x.mp3: cannot write this format. End the name in .wav, .flac"),
        ({"residual": "x.mp3"}, r"x.mp3: cannot write this format"),
        ({"activity": "x.txt"}, r"x.txt: cannot write this format. End the name in .json"),
        ({"estimate": "folder.wav"}, "folder.wav: is a folder. Name a file."),
        ({"estimate": "pipe.wav"}, "pipe.wav: is not a regular file. Choose another name."),
        ({"estimate": "mixture.wav/x.wav"}, "mixture.wav is not a folder"),
        ({"estimate": "n" * 300 + ".wav"}, "its name is too long"),
    ],
)
def test_a_place_that_must_not_be_written_is_refused(
    run: Run, mixture: Samples, tmp_path: Path, places: dict[str, str], message: str
) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "mixture.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    for name in ("sub", "folder.wav"):
        (tmp_path / name).mkdir()
    before = listing(tmp_path), (tmp_path / "mixture.wav").read_bytes()
    with pytest.raises(OutputError, match=message):
        run(places)
    assert (listing(tmp_path), (tmp_path / "mixture.wav").read_bytes()) == before


def test_another_working_folder_makes_no_other_file_of_a_path(
    soft: Extractor, mixture: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    audio.write(other / "mixture.wav", mixture, RATE_HZ)
    audio.write(tmp_path / "ref.wav", mixture[::2], RATE_HZ)
    monkeypatch.chdir(tmp_path)
    voice = soft.enroll("ref.wav")
    jobs = [Job("mixture.wav", voice, "a.wav"), Job(tmp_path / "mixture.wav", voice, "a.wav")]
    shutil.copy("mixture.wav", other / "ref.wav")
    monkeypatch.chdir(other)
    for (_, result), path in zip(soft.extract_files(jobs), ("mixture.wav", "a.wav"), strict=True):
        assert str(result) == (
            f"{path}: was a path in {tmp_path} when the Job was made, but the working folder has "
            "changed. Use absolute paths."
        )
    soft.extract_file("mixture.wav", voice, "a.wav")  # other/ref.wav is not the reference
    assert listing(tmp_path) == ["mixture.wav", "other", "ref.wav"]
    with pytest.raises(
        OutputError, match=r"ref.wav: is an input, and inputs are never overwritten"
    ):
        soft.extract_file("mixture.wav", voice, Outputs(tmp_path / "ref.wav", overwrite=True))


def test_a_home_folder_that_python_does_not_know_is_refused(
    soft: Extractor, mixture: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    voice = named(np.ones(8, np.float32))
    for outputs in (
        Outputs("~/x.wav"),
        Outputs("e.wav", "~ann/x.wav"),
        Outputs("e.wav", activity="~/x.srt"),
    ):
        with pytest.raises(OutputError, match=r": ~(ann)? is not read as a home folder here"):
            soft.extract_file("mixture.wav", voice, outputs)
    assert listing(tmp_path) == ["mixture.wav"]


def test_what_exists_is_replaced_only_if_that_is_asked_for(
    soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    (tmp_path / "o.wav").symlink_to("o.wav")  # in a circle, so that it leads nowhere
    path, voice = str(tmp_path / "mixture.wav"), named(np.ones(8, np.float32))
    with pytest.raises(OutputError, match=r"o.wav: exists already. Add --overwrite"):
        soft.extract_file(path, voice, str(tmp_path / "o.wav"))
    soft.extract_file(path, voice, Outputs(str(tmp_path / "o.wav"), overwrite=True))  # type: ignore[arg-type]
    assert get(tmp_path / "o.wav").shape == (1, len(mixture))


@pytest.mark.parametrize("kind", ["estimate", "residual", "activity"])
def test_what_another_program_writes_meanwhile_is_not_replaced(
    soft: Extractor, mixture: Samples, tmp_path: Path, kind: str
) -> None:
    places = [tmp_path / name for name in ("o.wav", "r.wav", "a.json")]
    new = dict(zip(("estimate", "residual", "activity"), places, strict=True))[kind]
    voice = named(np.ones(8, np.float32))
    with pytest.raises(OutputError, match=rf"{new.name}: exists already. Add --overwrite"):
        soft.extract_file(
            tmp_path / "mixture.wav",
            voice,
            Outputs(*places),
            advance=lambda _: new.write_text("mine") and None,
        )
    assert new.read_text() == "mine"
    assert listing(tmp_path) == sorted(["mixture.wav", new.name])


def test_two_jobs_with_one_output_are_refused(soft: Extractor, tmp_path: Path) -> None:
    voice, places = named(np.ones(8, np.float32)), UsedFiles()
    Job(tmp_path / "a.wav", voice, Outputs(tmp_path / "o.wav")).check_outputs(places)
    with pytest.raises(OutputError, match=r"a.wav and .*b.wav would both be written to .*o.wav"):
        Job(tmp_path / "b.wav", voice, Outputs(tmp_path / "o.wav")).check_outputs(places)
    with pytest.raises(OutputError, match=r"a.wav and .*b.wav would both be written to .*O.wav"):
        Job(tmp_path / "b.wav", voice, Outputs(tmp_path / "O.wav")).check_outputs(places)
    with pytest.raises(OutputError, match="is an input"):
        Job(tmp_path / "c.wav", voice, Outputs(tmp_path / "b.wav")).check_outputs(places)
    (tmp_path / "o.wav").touch()
    with pytest.raises(OutputError, match=r"o.wav: would be overwritten by the output for .*a.wav"):
        Job(tmp_path / "o.wav", voice, Outputs(tmp_path / "p.wav")).check_outputs(places)
    # Another process replaces an output, and the next file that it makes gets the inode of that.
    (tmp_path / "q.wav").touch()
    for name, mixture in (("q.wav", "d.wav"), ("r.wav", "e.wav")):
        outputs = Outputs(tmp_path / name, overwrite=True)
        Job(tmp_path / mixture, voice, outputs).check_outputs(places)
        (tmp_path / name).rename(tmp_path / "r.wav")


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="cannot become another user for a while")
def test_a_write_protected_folder_is_refused() -> None:
    """By somebody who is not root, who may write anywhere."""
    users = os.getresuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for inner, mode in (("locked", 0o555), ("free", 0o777)):
            (folder / inner).mkdir()
            (folder / inner).chmod(mode)
        job = Job(folder / "m.wav", named(np.ones(8)), Outputs(folder / "free" / "e.wav"))
        if users[0] == 0:
            os.setresuid(65534, 65534, 0)
        try:
            job.check_outputs(UsedFiles())
            for inner in ("locked", "locked/new"):
                outputs = Outputs(folder / "free" / "f.wav", folder / inner / "r.wav")
                with pytest.raises(OutputError, match="locked is write-protected"):
                    replace(job, outputs=outputs).check_outputs(UsedFiles())
        finally:
            os.setresuid(*users)


@pytest.mark.parametrize("how", ["same", "link", "hard link"])
@pytest.mark.parametrize("kind", ["estimate", "residual"])
def test_a_reference_is_never_overwritten(
    soft: Extractor, mixture: Samples, tmp_path: Path, how: str, kind: str
) -> None:
    reference, place = tmp_path / "reference.wav", tmp_path / "place.wav"
    audio.write(reference, buzz(110, 2), RATE_HZ)
    before = reference.read_bytes()
    if how == "same":
        place = reference
    elif how == "link":
        place.symlink_to(reference)
    else:
        place.hardlink_to(reference)
    voice = named(np.ones(8, np.float32), str(reference))
    places = {"estimate": tmp_path / "o.wav", kind: place}
    for one in (voice, lambda: voice):
        job = Job(tmp_path / "mixture.wav", one, Outputs(**places, overwrite=True))
        ((_, result),) = soft.extract_files([job])
        assert isinstance(result, OutputError)
        assert "is an input, and inputs are never overwritten" in str(result)
    assert (place.read_bytes(), (tmp_path / "o.wav").exists()) == (before, False)


@pytest.mark.parametrize(
    "name", ["copy.flac", "copy.ogg", "copy24.wav", "copy16k.wav", "inverse.wav"]
)
def test_a_mixture_in_another_format_is_its_own_reference_too(
    soft: Extractor, tmp_path: Path, name: str
) -> None:
    put(tmp_path, MIXTURE, subtype="PCM_16")
    rate_hz = 16000 if "16k" in name else RATE_HZ
    sound = np.repeat(MIXTURE, rate_hz // RATE_HZ)
    gain = -0.5 if "inverse" in name else 0.5
    audio.write(tmp_path / name, gain * sound, rate_hz, "PCM_24" if "24" in name else "PCM_16")
    quality = ReferenceQuality(str(tmp_path / name), 5.0, 5.0, 5.0, -20, 0.0, None, None)
    voice = replace(named(np.ones(8, np.float32), str(tmp_path / name)), qualities=(quality,))
    with pytest.raises(AudioError, match="is its own reference"):
        soft.extract_file(tmp_path / "mixture.wav", voice, tmp_path / "o.wav")
    put(tmp_path, 0.1 * MIXTURE + 0.5, subtype="PCM_16")  # an offset is no sound that they share
    audio.write(tmp_path / name, 0.1 * sound[::-1] + 0.5, rate_hz)
    soft.extract_file(tmp_path / "mixture.wav", voice, tmp_path / "o.wav")


@pytest.mark.parametrize("how", ["same", "link", "copy"])
def test_a_mixture_is_not_its_own_reference(
    soft: Extractor, mixture: Samples, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "mixture.wav"
    reference = path if how == "same" else tmp_path / "reference.wav"
    if how == "link":
        reference.symlink_to(path)
    elif how == "copy":
        reference.write_bytes(path.read_bytes())
    voice = named(np.ones(8, np.float32), str(reference))
    with pytest.raises(AudioError, match="is its own reference"):
        check_distinct(path, [reference])
    with pytest.raises(AudioError, match="is its own reference"):
        soft.extract_file(path, voice, tmp_path / "o.wav")
    audio.write(tmp_path / "other.wav", MIXTURE[1:], RATE_HZ, "FLOAT")
    check_distinct(path, [tmp_path / "other.wav", tmp_path / "none.wav"])


def test_a_wrong_format_is_refused_before_the_network_runs(
    soft: Extractor, mixture: Samples, tmp_path: Path
) -> None:
    soft.engine.runtime.extract = None  # type: ignore[method-assign,assignment]
    options, voice = ExtractionOptions(subtype="FLOAT"), named(np.ones(8, np.float32))
    with pytest.raises(OutputError, match="FLAC has no"):
        soft.extract_file(tmp_path / "mixture.wav", voice, tmp_path / "x.flac", options)
