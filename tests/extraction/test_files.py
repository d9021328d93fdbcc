"""File to file: length, rate, channels, level, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mcspex_cli import audio
from mcspex_cli.checkpoint.checkpoint import load_checkpoint
from mcspex_cli.errors import AudioError, OutputError
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.files import (
    Extraction,
    Result,
    extract_file,
    extract_files,
)
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.levels import PEAK
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.sources import Order
from tests.conftest import RATE_HZ, buzz
from tests.test_audio import BAD, make_bad


@pytest.fixture
def engine(tiny_folder: Path) -> Engine:
    settings = EngineSettings("cpu", "float32", window_s=1.0, context_s=0.2, fade_s=0.1)
    return Engine(load_checkpoint(tiny_folder), settings)


@pytest.fixture
def voice(engine: Engine) -> audio.Samples:
    return engine.embed([buzz(110, 2, 3)])


def run(
    engine: Engine, voice: audio.Samples, folder: Path, name: str = "mixture.wav", **settings: str
) -> tuple[Extraction, np.ndarray]:
    """Extract a file of `folder`; the result and what was written, [channel, sample]."""
    job = Job(folder / name, folder / "out.wav")
    done = extract_file(engine, job, voice, FileSettings(**settings))
    return done, soundfile.read(job.output, always_2d=True)[0].T


@pytest.mark.parametrize(
    ("rate_hz", "length"),
    [(8000, 2400), (8000, 16001), (44100, 99_999), (48000, 1_000_003), (11025, 33_333)],
)
def test_the_output_has_the_mixtures_rate_and_length(
    engine: Engine, voice: audio.Samples, tmp_path: Path, rate_hz: int, length: int
) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal(length).astype(np.float32)
    audio.write(tmp_path / "mixture.wav", sound, rate_hz)
    done, written = run(engine, voice, tmp_path)
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.samplerate, written.shape, info.subtype) == (rate_hz, (1, length), "PCM_16")
    assert done.seconds == length / rate_hz
    assert done.real_time_factor > 0


def test_match_is_least_squares_to_the_mixture(
    engine: Engine, voice: audio.Samples, scene: Path
) -> None:
    done, written = run(engine, voice, scene, level="match", subtype="FLOAT")
    mixture = audio.read(scene / "mixture.wav", RATE_HZ).astype(np.float64)
    raw = engine.extract(mixture.astype(np.float32), voice).astype(np.float64)
    gain = (raw @ mixture) / (raw @ raw)
    np.testing.assert_allclose(written[0], gain * raw, atol=1e-5)
    assert done.gain_db[0] == pytest.approx(20 * np.log10(abs(gain)), abs=0.01)
    assert not done.limited


def test_raw_is_the_networks_own_level(engine: Engine, voice: audio.Samples, scene: Path) -> None:
    done, written = run(engine, voice, scene, level="raw", subtype="FLOAT")
    raw = engine.extract(audio.read(scene / "mixture.wav", RATE_HZ), voice)
    np.testing.assert_allclose(written[0], raw, atol=1e-5)
    assert done.gain_db == (0.0,)


def test_peak_is_minus_one_dbfs(engine: Engine, voice: audio.Samples, scene: Path) -> None:
    done, written = run(engine, voice, scene, level="peak", subtype="FLOAT")
    assert np.abs(written).max() == pytest.approx(PEAK, abs=1e-5)
    assert not done.limited


@pytest.mark.parametrize("level", ["match", "raw"])
def test_clipped_samples_are_never_written(
    engine: Engine, voice: audio.Samples, tmp_path: Path, level: str
) -> None:
    # Full scale for a moment: the estimate at its best level would overshoot.
    loud = np.clip(40 * buzz(110, 2, 1), -1, 1)
    audio.write(tmp_path / "mixture.wav", loud, RATE_HZ)
    for decoder in engine.runtime.system.decoder.banks:
        decoder.bias.fill_(5.0)
    done, written = run(engine, voice, tmp_path, level=level)
    assert np.abs(written).max() <= PEAK + 1e-4
    if level == "raw":
        assert done.limited
        assert done.gain_db[0] < 0


def test_all_channels_are_extracted_each_for_itself(
    engine: Engine, voice: audio.Samples, tmp_path: Path
) -> None:
    channels = np.stack([buzz(110, 2.5, 1), 0.5 * buzz(170, 2.5, 2)])
    audio.write(tmp_path / "both.wav", channels, RATE_HZ, "FLOAT")
    audio.write(tmp_path / "one.wav", channels[1], RATE_HZ, "FLOAT")
    done, written = run(engine, voice, tmp_path, "both.wav", channel="all", subtype="FLOAT")
    assert written.shape == channels.shape
    assert len(done.gain_db) == 2
    _, alone = run(engine, voice, tmp_path, "one.wav", subtype="FLOAT")
    np.testing.assert_allclose(written[1], alone[0], atol=1e-5)


def test_an_opposite_sign_is_put_right(engine: Engine, voice: audio.Samples, scene: Path) -> None:
    _, before = run(engine, voice, scene)
    for decoder in engine.runtime.system.decoder.banks:
        decoder.weight.neg_()
        decoder.bias.neg_()
    _, after = run(engine, voice, scene)
    np.testing.assert_array_equal(before, after)


def test_a_silent_estimate_is_a_file_and_a_flag(
    engine: Engine, voice: audio.Samples, scene: Path
) -> None:
    for decoder in engine.runtime.system.decoder.banks:
        decoder.weight.zero_()
        decoder.bias.zero_()
    done, written = run(engine, voice, scene)
    assert done.silent
    assert written.shape == (1, 16000)
    assert not written.any()


@pytest.mark.parametrize(
    ("kind", "message"), [*BAD, ("silent", "is silent"), ("short", "0.25 s is too short")]
)
def test_a_bad_mixture_leaves_nothing_behind(
    engine: Engine, voice: audio.Samples, tmp_path: Path, kind: str, message: str
) -> None:
    path = make_bad(tmp_path, kind)
    if kind == "silent":
        audio.write(path, np.zeros(16000, np.float32), RATE_HZ)
    elif kind == "short":
        audio.write(path, buzz(110, 0.25), RATE_HZ)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AudioError, match=message) as caught:
        extract_file(engine, Job(path, tmp_path / "out.wav"), voice)
    assert str(caught.value).startswith(f"{path}: ")
    assert sorted(tmp_path.iterdir()) == before


def test_an_interruption_leaves_nothing_behind(
    engine: Engine, voice: audio.Samples, scene: Path
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    before = sorted(scene.iterdir())
    with pytest.raises(KeyboardInterrupt):
        extract_file(engine, Job(scene / "mixture.wav", scene / "out.wav"), voice, None, interrupt)
    assert sorted(scene.iterdir()) == before


def test_a_place_that_cannot_be_written_is_named(
    engine: Engine, voice: audio.Samples, scene: Path
) -> None:
    with pytest.raises(OutputError, match=r"out.wav: cannot be written \(No such file"):
        extract_file(engine, Job(scene / "mixture.wav", scene / "none" / "out.wav"), voice)


def test_a_format_that_cannot_be_written_is_refused_before_the_work(
    engine: Engine, voice: audio.Samples, scene: Path
) -> None:
    settings, job = FileSettings(subtype="FLOAT"), Job(scene / "mixture.wav", scene / "x.flac")
    engine.runtime.system.extract = None  # type: ignore[method-assign,assignment]
    with pytest.raises(OutputError, match="FLAC has no float samples"):
        extract_file(engine, job, voice, settings)


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="level 'loud' is not one of match, peak, lufs"):
        FileSettings(level="loud")


def test_progress_adds_up_to_the_length(engine: Engine, voice: audio.Samples, scene: Path) -> None:
    steps: list[float] = []
    job = Job(scene / "mixture.wav", scene / "out.wav")
    extract_file(engine, job, voice, None, steps.append)
    assert sum(steps) == pytest.approx(2.0)
    assert len(steps) > 1


def batch_engine(tiny_folder: Path, batch: int) -> Engine:
    settings = EngineSettings(
        "cpu", "float32", window_s=1.0, context_s=0.2, fade_s=0.1, batch=batch
    )
    return Engine(load_checkpoint(tiny_folder), settings)


def mixtures(folder: Path, *lengths: int, rates: tuple[int, ...] = (RATE_HZ,)) -> list[Path]:
    """Files of these lengths in samples."""
    made = []
    for i, length in enumerate(lengths):
        made.append(folder / f"{i}.wav")
        audio.write(made[-1], buzz(100 + 10 * i, 5, i)[:length], rates[i % len(rates)])
    return made


def together(
    engine: Engine, voice: audio.Samples, files: list[Path], **settings: str
) -> list[Result]:
    """What comes of some files, written beside them as NAME.together.wav."""
    jobs = [Job(path, path.with_suffix(".together.wav")) for path in files]
    orders = [Order(job, lambda: voice) for job in jobs]
    came = list(extract_files(engine, orders, FileSettings(**settings)))
    assert [job for job, _ in came] == jobs
    return [result for _, result in came]


def alone(engine: Engine, voice: audio.Samples, path: Path, **settings: str) -> Extraction:
    """The same of one file, written beside it as NAME.alone.wav."""
    job = Job(path, path.with_suffix(".alone.wav"))
    return extract_file(engine, job, voice, FileSettings(**settings))


LENGTHS = (8000, 8000, 30_000, 5000, 4800, 8001, 8000, 33_333)


def test_several_files_are_what_they_are_one_by_one_to_the_byte(
    engine: Engine, voice: audio.Samples, tmp_path: Path
) -> None:
    files = mixtures(tmp_path, *LENGTHS, rates=(8000, 16000, 8000))
    for path, done in zip(files, together(engine, voice, files), strict=True):
        one = alone(engine, voice, path)
        assert isinstance(done, Extraction)
        assert path.with_suffix(".together.wav").read_bytes() == one.output.read_bytes()
        assert (done.gain_db, done.seconds, done.mixture) == (one.gain_db, one.seconds, path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("batch", [4, 5])
def test_several_files_in_batches_are_near(
    tiny_folder: Path, engine: Engine, voice: audio.Samples, tmp_path: Path, batch: int
) -> None:
    files = mixtures(tmp_path, 8000, 8000, 8000, 8000, 8000, 30_000, 30_000, 5000)
    together(batch_engine(tiny_folder, batch), voice, files, subtype="FLOAT")
    for path in files:
        expected = audio.read(alone(engine, voice, path, subtype="FLOAT").output, RATE_HZ)
        difference = audio.read(path.with_suffix(".together.wav"), RATE_HZ) - expected
        assert np.square(difference).sum() < np.square(expected).sum() * 10 ** (-100 / 10)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("nan", "NaN or infinite sample at 21.00 s"), ("cut", "truncated|damaged")],
)
def test_a_file_that_breaks_in_its_middle_costs_only_itself(
    tiny_folder: Path, voice: audio.Samples, tmp_path: Path, kind: str, message: str, batch: int
) -> None:
    files = mixtures(tmp_path, *[8000] * 5)
    sound = buzz(120, 25)
    if kind == "nan":
        sound[21 * RATE_HZ] = np.nan
        audio.write(files[2], sound, RATE_HZ, "FLOAT")
    else:
        files[2] = files[2].with_suffix(".flac")
        audio.write(files[2], sound, RATE_HZ)
        files[2].write_bytes(files[2].read_bytes()[:-20_000])
    engine = batch_engine(tiny_folder, batch)
    results = together(engine, voice, files)
    assert isinstance(results[2], AudioError)
    with pytest.raises(AudioError, match=message):
        raise results[2]
    others = [*files[:2], *files[3:]]
    assert [path.with_suffix(".together.wav").exists() for path in others] == [True] * 4
    assert not [*tmp_path.glob("2.together.*"), *tmp_path.glob(".*")]
    expected = [path.with_suffix(".together.wav").read_bytes() for path in others]
    if batch == 1:
        assert expected == [alone(engine, voice, path).output.read_bytes() for path in others]


@pytest.mark.parametrize(("kind", "message"), [*BAD, ("silent", "is silent")])
def test_so_does_any_file_of_no_use(
    engine: Engine, voice: audio.Samples, tmp_path: Path, kind: str, message: str
) -> None:
    files = mixtures(tmp_path, 8000, 8000)
    bad = make_bad(tmp_path, kind)
    if kind == "silent":
        audio.write(bad, np.zeros(16000, np.float32), RATE_HZ)
    first, second, third = together(engine, voice, [files[0], bad, files[1]])
    assert isinstance(first, Extraction)
    assert isinstance(third, Extraction)
    with pytest.raises(AudioError, match=message):
        raise second  # type: ignore[misc]


def test_a_voice_that_cannot_be_had_costs_only_its_own_files(
    engine: Engine, voice: audio.Samples, tmp_path: Path
) -> None:
    def none() -> audio.Samples:
        raise AudioError("bob.wav: is silent.")

    files = mixtures(tmp_path, 30_000, 30_000, 8000)
    voices = [lambda: voice, none, lambda: voice]
    orders = [
        Order(Job(path, path.with_suffix(".out.wav")), v)
        for path, v in zip(files, voices, strict=True)
    ]
    results = [result for _, result in extract_files(engine, orders)]
    assert [isinstance(result, Extraction) for result in results] == [True, False, True]
    assert str(results[1]) == "bob.wav: is silent."
    assert sorted(p.name for p in tmp_path.glob("*.out.wav")) == ["0.out.wav", "2.out.wav"]


def test_a_place_that_cannot_be_written_costs_only_its_own_file(
    engine: Engine, voice: audio.Samples, tmp_path: Path
) -> None:
    files = mixtures(tmp_path, 8000, 8000, 8000)
    places = [tmp_path / "0.out.wav", tmp_path / "none" / "x.wav", tmp_path / "2.out.wav"]
    orders = [
        Order(Job(path, place), lambda: voice) for path, place in zip(files, places, strict=True)
    ]
    first, second, third = (result for _, result in extract_files(engine, orders))
    assert isinstance(second, OutputError)
    assert isinstance(first, Extraction)
    assert isinstance(third, Extraction)


def test_what_is_not_wanted_keeps_batches_as_they_were_and_writes_nothing(
    tiny_folder: Path, voice: audio.Samples, tmp_path: Path
) -> None:
    files = mixtures(tmp_path, *[8000] * 6)
    engine = batch_engine(tiny_folder, 3)
    together(engine, voice, files, subtype="FLOAT")
    wanted = {1, 5}
    orders = [
        Order(Job(path, path.with_suffix(".out.wav")), lambda: voice, wanted=i in wanted)
        for i, path in enumerate(files)
    ]
    came = list(extract_files(engine, orders, FileSettings(subtype="FLOAT")))
    assert [job.mixture for job, _ in came] == [files[1], files[5]]
    assert sorted(p.name for p in tmp_path.glob("*.out.wav")) == ["1.out.wav", "5.out.wav"]
    for i in wanted:
        # Not their bytes: libsndfile writes the time into float files.
        again, before = (files[i].with_suffix(f".{n}.wav") for n in ("out", "together"))
        np.testing.assert_array_equal(soundfile.read(again)[0], soundfile.read(before)[0])


def test_giving_up_between_files_leaves_whole_ones_only(
    engine: Engine, voice: audio.Samples, tmp_path: Path
) -> None:
    files = mixtures(tmp_path, *[30_000] * 8)
    orders = [Order(Job(path, path.with_suffix(".out.wav")), lambda: voice) for path in files]
    results = extract_files(engine, orders)
    job, _ = next(results)
    results.close()  # type: ignore[attr-defined]
    assert job.output.exists()
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.glob("*.out.wav"):
        assert soundfile.info(path).frames == 30_000
    assert len(list(tmp_path.glob("*.out.wav"))) < 8


def test_no_files_are_no_results(engine: Engine) -> None:
    assert list(extract_files(engine, [])) == []
