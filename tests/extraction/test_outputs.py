"""What is written of an estimate: voice and rest, mixed, as loud as asked for, or silenced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile

from mcspex_cli import audio
from mcspex_cli.errors import AbsentError, AudioError, OutputError
from mcspex_cli.extraction import outputs
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.files import extract_file
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.levels import PEAK
from mcspex_cli.extraction.outputs import Extraction
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.runtime import EngineSettings, Runtime
from mcspex_cli.extraction.synthesis import talk
from tests.conftest import RATE_HZ, buzz

Run = Callable[..., Extraction]


TALK = talk(0, 0, 5.0, RATE_HZ) + talk(1, 0, 5.0, RATE_HZ)
"""Two voices."""


class Softener(Runtime):
    """Gives back what is low of a mixture, upside down and soft: what comes of it is known."""

    name, device, precision, batch = "torch", "cpu", "float32", 1
    sample_rate_hz, true_level = RATE_HZ, False
    gain, late = -0.01, 0

    def embed(self, reference: audio.Samples) -> audio.Samples:
        """Energies of eight bands."""
        bands = np.array_split(np.abs(np.fft.rfft(reference)), 8)
        return np.array([np.sqrt(np.square(band).mean()) for band in bands], np.float32)

    def extract(self, mixtures: audio.Samples, voices: audio.Samples) -> audio.Samples:
        """The mean of neighbours: cos² of half the frequency."""
        padded = np.pad(mixtures, ((0, 0), (1, 1)), mode="edge")
        low = (padded[:, :-2] + 2 * mixtures + padded[:, 2:]) / 4
        return np.roll(self.gain * low, self.late, axis=1).astype(np.float32)


def calibration(*weights: float, threshold: float) -> Calibration:
    """By likeness, the rest's likeness, gain and 1; a threshold of 0 or 1.1 decides all."""
    return Calibration((0.0,) * 8, weights or (1.0, -1.0, 0.0, 2.0), threshold, 9.0, {})


@pytest.fixture
def engine() -> Engine:
    return Engine(Softener(), EngineSettings(window_s=2.0, context_s=0.2, fade_s=0.1))


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """Extracts mixture.wav of `tmp_path` to e.wav, r.wav and a.json, or as a job says."""
    voice = engine.embed([buzz(110, 2, 3)])

    def extract(job: dict[str, Any] | None = None, **settings: Any) -> Extraction:
        places = {"output": "e.wav", "residual": "r.wav", "activity": "a.json", **(job or {})}
        named = {kind: tmp_path / name for kind, name in places.items() if name}
        made = Job(tmp_path / "mixture.wav", **named)
        return extract_file(engine, made, voice, FileSettings(**settings))

    return extract


@pytest.fixture
def mixture(tmp_path: Path) -> audio.Samples:
    """Five seconds of two voices, in mixture.wav."""
    return put(tmp_path, TALK)


def put(
    folder: Path, sound: audio.Samples, rate_hz: int = RATE_HZ, subtype: str = "FLOAT"
) -> audio.Samples:
    """Write mixture.wav."""
    audio.write(folder / "mixture.wav", sound, rate_hz, subtype)
    return sound


def get(path: Path) -> np.ndarray:
    """A file's samples, [channel, sample]."""
    return soundfile.read(path, dtype="float64", always_2d=True)[0].T


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
def test_voice_and_rest_are_the_mixture_sample_by_sample(
    run: Run, tmp_path: Path, shape: tuple[int, int, int], channel: str, subtype: str
) -> None:
    rate_hz, length, channels = shape
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.standard_normal((channels, length)).astype(np.float32)
    put(tmp_path, sound, rate_hz, "PCM_16")
    done = run(channel=channel, subtype=subtype)
    given = get(tmp_path / "mixture.wav")
    if channel != "all":
        given = given.mean(axis=0, keepdims=True) if channel == "mix" else given[1:]
    voice, rest = get(tmp_path / "e.wav"), get(tmp_path / "r.wav")
    assert voice.shape == rest.shape == given.shape
    assert soundfile.info(tmp_path / "r.wav").samplerate == rate_hz
    assert soundfile.info(tmp_path / "r.wav").subtype == subtype
    tolerance = 2 / 2**15 if subtype == "PCM_16" else 1e-6
    assert np.abs(voice + rest - given).max() <= tolerance
    assert (done.limited, done.residual_gain_db) == (False, 0.0)


def test_the_rest_is_at_the_mixtures_level_whatever_the_estimates(
    run: Run, mixture: audio.Samples, tmp_path: Path
) -> None:
    run(subtype="FLOAT")
    expected = get(tmp_path / "r.wav")
    for number, settings in enumerate(
        ({"level": "peak"}, {"level": "raw"}, {"level": "lufs=-30"}, {"wet_db": -20, "dry_db": -9})
    ):
        run({"output": f"{number}.wav", "residual": f"{number}.r.wav"}, subtype="FLOAT", **settings)
        np.testing.assert_allclose(get(tmp_path / f"{number}.r.wav"), expected, atol=1e-6)


def test_the_rest_has_the_format_of_its_name(
    run: Run, mixture: audio.Samples, tmp_path: Path
) -> None:
    run({"residual": "r.flac"}, subtype="PCM_24")
    info = soundfile.info(tmp_path / "r.flac")
    assert (info.format, info.subtype, info.frames) == ("FLAC", "PCM_24", len(mixture))
    with pytest.raises(OutputError, match=r"r2.flac: FLAC has no float samples"):
        run({"output": "e2.wav", "residual": "r2.flac", "activity": "a2.json"}, subtype="FLOAT")
    assert listing(tmp_path) == ["a.json", "e.wav", "mixture.wav", "r.flac"]


@pytest.mark.parametrize(("name", "subtype"), [("r.wav", "PCM_16"), ("r.ogg", "FLOAT")])
def test_a_rest_that_would_clip_is_turned_down(
    run: Run, engine: Engine, tmp_path: Path, name: str, subtype: str
) -> None:
    """What nearly fills the scale has edges, at which a voice that is late has the other sign."""
    engine.runtime.late = 3
    put(tmp_path, 0.99 * np.sign(np.sin(0.15 * np.arange(2 * RATE_HZ))).astype(np.float32))
    done = run({"residual": name}, subtype=subtype, dry_db=-20)
    assert done.residual_gain_db < 0
    if name == "r.wav":  # Vorbis does not keep samples
        assert np.abs(get(tmp_path / name)).max() == pytest.approx(PEAK, abs=1e-4)
    free = run({"output": "f.wav", "residual": "f.r.wav"}, subtype="FLOAT")
    assert free.residual_gain_db == 0
    peak = np.abs(get(tmp_path / "f.r.wav")).max()
    assert peak > 1
    assert done.residual_gain_db == pytest.approx(20 * np.log10(PEAK / peak), abs=0.01)


def test_dry_0_without_the_voice_is_the_mixture(
    run: Run, mixture: audio.Samples, tmp_path: Path
) -> None:
    done = run(wet_db=-120, dry_db=0, subtype="FLOAT")
    np.testing.assert_allclose(get(tmp_path / "e.wav")[0], mixture, atol=1e-5)
    assert not done.silent


@pytest.mark.parametrize("level", ["match", "raw"])
@pytest.mark.parametrize(("wet_db", "dry_db"), [(0, -20), (6, -6), (-12, None), (3, 10)])
def test_wet_and_dry_are_gains_of_voice_and_mixture(
    run: Run, mixture: audio.Samples, tmp_path: Path, level: str, wet_db: float, dry_db: float
) -> None:
    mixture = put(tmp_path, 0.1 * mixture)  # nothing is to be turned down
    plain = run({"output": "p.wav", "residual": "", "activity": ""}, subtype="FLOAT", level=level)
    done = run(subtype="FLOAT", level=level, wet_db=wet_db, dry_db=dry_db)
    dry = 0 if dry_db is None else 10 ** (dry_db / 20)
    expected = 10 ** (wet_db / 20) * get(tmp_path / "p.wav")[0] + dry * mixture
    assert not done.limited
    np.testing.assert_allclose(get(tmp_path / "e.wav")[0], expected, atol=1e-6)
    assert done.gain_db[0] == pytest.approx(plain.gain_db[0] + wet_db, abs=0.02)


def test_channels_kept_apart_each_have_their_own_dry(run: Run, tmp_path: Path) -> None:
    sound = np.stack([0.3 * buzz(110, 2, 1), 0.1 * buzz(190, 2, 2)])
    put(tmp_path, sound)
    run(channel="all", wet_db=-120, dry_db=-6, subtype="FLOAT")
    np.testing.assert_allclose(get(tmp_path / "e.wav"), 10 ** (-6 / 20) * sound, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"dry_db": -15.0}, {"subtype": "FLOAT"}])
@pytest.mark.parametrize(("rate_hz", "lufs"), [(8000, -33.0), (44_100, -27.5)])
def test_loudness_is_as_asked_for_by_another_meter(
    run: Run, tmp_path: Path, rate_hz: int, lufs: float, settings: dict[str, Any]
) -> None:
    put(tmp_path, np.resize(TALK, 5 * rate_hz), rate_hz)
    done = run(level=f"lufs={lufs}", **settings)
    meter = pyloudnorm.Meter(rate_hz, filter_class="DeMan")
    assert not done.limited
    assert meter.integrated_loudness(get(tmp_path / "e.wav")[0]) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_loudness_gives_way_where_it_would_clip(
    run: Run, mixture: audio.Samples, tmp_path: Path, subtype: str
) -> None:
    done = run(level="lufs=0", subtype=subtype)
    assert done.limited is (subtype != "FLOAT")  # float samples do not clip
    peak = np.abs(get(tmp_path / "e.wav")).max()
    assert peak == pytest.approx(PEAK, abs=1e-4) if done.limited else peak > 1


def test_peak_holds_with_a_dry_share(run: Run, mixture: audio.Samples, tmp_path: Path) -> None:
    done = run(level="peak", dry_db=-3, subtype="FLOAT")
    assert not done.limited
    assert np.abs(get(tmp_path / "e.wav")).max() == pytest.approx(PEAK, abs=1e-5)


def test_an_absent_voice_is_silenced(
    run: Run, engine: Engine, mixture: audio.Samples, tmp_path: Path
) -> None:
    engine.calibration = calibration(threshold=1.1)
    done = run(absent="mute", subtype="FLOAT")
    assert (done.presence.present, done.silent, done.active_s) == (False, True, 0)
    assert not get(tmp_path / "e.wav").any()
    np.testing.assert_allclose(get(tmp_path / "r.wav")[0], mixture, atol=1e-7)
    document = json.loads((tmp_path / "a.json").read_text())
    assert (document["present"], document["spans"]) == (False, [])


def test_an_absent_voice_leaves_the_dry_share(
    run: Run, engine: Engine, mixture: audio.Samples, tmp_path: Path
) -> None:
    engine.calibration = calibration(threshold=1.1)
    done = run(absent="mute", dry_db=-10, subtype="FLOAT")
    np.testing.assert_allclose(get(tmp_path / "e.wav")[0], 10 ** (-10 / 20) * mixture, atol=1e-7)
    assert not done.silent


@pytest.mark.parametrize("level", ["peak", "lufs=-23"])
def test_silence_has_no_level_to_be_brought_to(
    run: Run, engine: Engine, mixture: audio.Samples, tmp_path: Path, level: str
) -> None:
    engine.calibration = calibration(threshold=1.1)
    done = run(absent="mute", level=level)
    assert (done.silent, done.limited) == (True, False)
    assert not get(tmp_path / "e.wav").any()


def test_a_present_voice_is_not_touched(
    run: Run, engine: Engine, mixture: audio.Samples, tmp_path: Path
) -> None:
    run({"output": "p.wav", "residual": "", "activity": ""})
    engine.calibration = calibration(threshold=0.0)
    for absent in ("keep", "mute", "fail"):
        done = run(absent=absent)
        assert done.presence.present
        assert (tmp_path / "e.wav").read_bytes() == (tmp_path / "p.wav").read_bytes()


@pytest.mark.parametrize("rate_hz", [8000, 44_100])
def test_segments_without_the_voice_are_faded_to_silence(
    run: Run, engine: Engine, tmp_path: Path, rate_hz: int
) -> None:
    """By the gain, which is high where the mixture is: for its middle four seconds."""
    at_s = np.arange(12 * rate_hz) / rate_hz
    middle = at_s // 4 == 1
    sound = 0.2 * np.sin(2 * np.pi * np.where(middle, 3000, 200) * at_s)
    sound = put(tmp_path, sound.astype(np.float32), rate_hz)
    run({"output": "p.wav", "residual": "", "activity": ""}, subtype="FLOAT")
    # Presence falls from 0.99 to 0.1 where the gain goes from 2 to 2.5 decades.
    engine.calibration = calibration(0.0, 0.0, -14.0, 32.0, threshold=0.01)
    done = run(absent="mute", subtype="FLOAT")
    assert [one.presence >= 0.25 for one in done.presence.segments] == [True, False, True]
    plain, muted, rest = (get(tmp_path / f"{name}.wav")[0] for name in "per")
    nearest = np.abs(at_s[:, None] - [4.0, 8.0]).min(axis=1)
    assert not muted[middle & (nearest > 0.026)].any()
    whole = ~middle & (nearest > 0.026)
    np.testing.assert_array_equal(muted[whole], plain[whole])
    np.testing.assert_allclose(muted + rest, sound, atol=1e-6)
    for edge_s in (4, 8):
        fade = np.abs(at_s - edge_s) < 0.025
        gains = 0.5 + (1 if edge_s == 8 else -1) * (at_s[fade] - edge_s) / 0.05
        np.testing.assert_allclose(muted[fade], gains * plain[fade], atol=1e-6)


def test_an_absent_voice_that_is_to_fail_leaves_nothing(
    run: Run, engine: Engine, mixture: audio.Samples, tmp_path: Path
) -> None:
    engine.calibration = calibration(threshold=1.1)
    with pytest.raises(AbsentError) as caught:
        run(absent="fail")
    presence = float(str(caught.value).split("(presence ")[1].split(")")[0])
    assert 0 < presence < 1
    assert str(caught.value).startswith(f"{tmp_path}/mixture.wav: the voice is not in it (presence")
    assert str(caught.value).endswith("Check the reference, or use --absent keep.")
    assert listing(tmp_path) == ["mixture.wav"]


def test_an_uncalibrated_model_mutes_and_fails_nothing(
    run: Run, mixture: audio.Samples, tmp_path: Path
) -> None:
    for absent in ("mute", "fail"):
        done = run(absent=absent)
        assert (done.presence.present, done.silent) == (None, False)


def test_what_was_there_stays_when_it_fails(
    run: Run, engine: Engine, mixture: audio.Samples, tmp_path: Path
) -> None:
    engine.calibration = calibration(threshold=0.0)
    run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    engine.calibration = replace(engine.calibration, threshold=1.1)
    with pytest.raises(AbsentError):
        run(absent="fail")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("what", ["shorter", "gone", "no sound"])
@pytest.mark.parametrize("settings", [{}, {"dry_db": -20}])
def test_a_mixture_that_changes_meanwhile_leaves_nothing(
    run: Run,
    mixture: audio.Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    settings: dict[str, Any],
) -> None:
    """It is read twice: for the network, then to be mixed with what came out."""

    def write(made: outputs.Made) -> Extraction:
        if what == "shorter":
            put(tmp_path, mixture[:20_000])
        elif what == "gone":
            (tmp_path / "mixture.wav").unlink()
        else:
            (tmp_path / "mixture.wav").write_text("no sound")
        return outputs.write(made)

    monkeypatch.setattr("mcspex_cli.extraction.files.write", write)
    message = {
        "shorter": "changed while it was read. Run it again",
        "gone": "no such file",
        "no sound": "not a readable sound file",
    }[what]
    with pytest.raises(AudioError, match=message):
        run(None if not settings else {"residual": ""}, **settings)
    assert listing(tmp_path) == ([] if what == "gone" else ["mixture.wav"])


def test_a_mixture_that_is_gone_is_not_needed_for_the_voice_alone(
    run: Run, mixture: audio.Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(made: outputs.Made) -> Extraction:
        (tmp_path / "mixture.wav").unlink()
        return outputs.write(made)

    monkeypatch.setattr("mcspex_cli.extraction.files.write", write)
    run({"residual": ""})
    assert listing(tmp_path) == ["a.json", "e.wav"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_of_the_rest_leaves_nothing(
    run: Run, mixture: audio.Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(audio.Writer):
        """Whose file is on a full disk if it is the residual's."""

        def __init__(self, path: Path, *layout: Any) -> None:
            super().__init__(path, *layout)
            if path.name == "r.wav":
                self._file.close()
                full = os.open("/dev/full", os.O_WRONLY)
                raw = {"format": "RAW", "subtype": "FLOAT"}
                self._file = soundfile.SoundFile(full, "w", RATE_HZ, 1, **raw)

    monkeypatch.setattr(audio, "Writer", Full)
    with pytest.raises(OutputError, match=r"r.wav: writing failed \(.*\). Free space\?"):
        run()
    assert listing(tmp_path) == ["mixture.wav"]


@pytest.mark.parametrize("name", ["none/r.wav", "none/a.json"])
def test_a_place_that_is_gone_costs_all_three(
    run: Run, mixture: audio.Samples, tmp_path: Path, name: str
) -> None:
    kind = "residual" if name.endswith(".wav") else "activity"
    with pytest.raises(OutputError, match=name):
        run({kind: name})
    assert listing(tmp_path) == ["mixture.wav"]


def test_activity_is_that_of_the_voice_in_the_file(run: Run, tmp_path: Path) -> None:
    """Between two silences, at whatever level the network's own is."""
    quiet = np.zeros(2 * RATE_HZ, np.float32)
    put(tmp_path, np.concatenate([quiet, talk(0, 0, 3.0, RATE_HZ), quiet]))
    done = run()
    document = json.loads((tmp_path / "a.json").read_text())
    spans = [(one["start_s"], one["end_s"]) for one in document["spans"]]
    assert spans
    assert spans[0][0] >= 1.9
    assert spans[-1][1] <= 5.2
    assert done.active_s == document["active_s"] == pytest.approx(sum(b - a for a, b in spans))
