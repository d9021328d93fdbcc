"""Clips, folders, spans and profiles become one voice, each by its speech; poor ones are named."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint import profiles
from mcspex_cli.checkpoint.names import CheckpointInfo, find_checkpoint
from mcspex_cli.checkpoint.profiles import Profile
from mcspex_cli.checkpoint.weights import load_checkpoint
from mcspex_cli.errors import AudioError, CheckpointError
from mcspex_cli.extraction import voices
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.quality import Clipping, ReferenceQuality, has_two_voices
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.synthesis import talk
from mcspex_cli.extraction.voices import Voice, enroll, enroll_samples, joined, list_sources
from tests.conftest import EXAMPLES, RATE_HZ


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> CheckpointInfo:
    return find_checkpoint(tiny_folder)


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine(load_checkpoint(tiny_folder), EngineSettings("cpu", "float32"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder: 3 s in a.wav, 6 s of another rate in deeper/b.flac, a text."""
    audio.write(tmp_path / "a.wav", talk(1, 0, 3, RATE_HZ), RATE_HZ)
    (tmp_path / "deeper").mkdir()
    audio.write(tmp_path / "deeper" / "b.flac", talk(1, 1, 6, 16000), 16000)
    (tmp_path / "notes.txt").write_text("no sound")
    return tmp_path


def test_one_clip_is_its_embedding(clips: Path, engine: Engine, model: CheckpointInfo) -> None:
    voice = enroll([clips / "a.wav"], engine, model)
    clip = audio.read(clips / "a.wav", RATE_HZ)
    assert np.array_equal(voice.embedding, engine.embed([clip]))
    assert 2 < voice.seconds <= 3
    assert voice.sources == (str(clips / "a.wav"),)
    assert not voice.warnings


def test_a_folder_is_all_its_clips(clips: Path, engine: Engine, model: CheckpointInfo) -> None:
    whole = enroll([clips], engine, model)
    one, other = (enroll([clips / name], engine, model) for name in ("a.wav", "deeper/b.flac"))
    share = one.seconds / (one.seconds + other.seconds)
    mean = share * one.embedding + (1 - share) * other.embedding
    assert whole.embedding == pytest.approx(mean, abs=1e-6)
    assert [Path(q.path).name for q in whole.qualities] == ["a.wav", "b.flac"]
    assert enroll([clips], engine, model, assessed=False).embedding == pytest.approx(mean)


def test_a_folders_recordings_of_other_programs_are_clips_too(tmp_path: Path) -> None:
    for name in ("memo.m4a", "memo2.m4a", "memo2.wav", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_sources([tmp_path])] == ["memo.m4a", "memo2.wav"]


def test_a_profile_counts_with_its_seconds(
    clips: Path, engine: Engine, model: CheckpointInfo
) -> None:
    whole = enroll([clips], engine, model)
    other = enroll([clips / "deeper"], engine, model)
    made = profiles.enrolment(model, other.embedding, other.seconds)
    path = clips / "p.safetensors"
    rows = tuple(vars(quality) for quality in other.qualities)
    profiles.write(path, Profile("p", profiles.today(), (made,), rows))
    voice = enroll([clips / "a.wav", path], engine, model)
    assert voice.embedding == pytest.approx(whole.embedding, abs=1e-4)
    assert voice.seconds == pytest.approx(whole.seconds, abs=0.01)
    assert voice.qualities == whole.qualities
    assert len(enroll([clips], engine, model).sources) == 2  # a folder is its sounds
    assert voices.check_sources([clips, path], model) == pytest.approx(9, abs=0.01)
    with pytest.raises(CheckpointError, match=r"p.safetensors: enrolled for tiny"):
        voices.check_sources([clips, path], replace(model, sha256="a" * 64))


def test_clips_in_memory_are_enrolled_by_name(engine: Engine, clips: Path) -> None:
    clip = audio.read(clips / "a.wav", RATE_HZ)
    voice = enroll_samples([("meeting.wav 1.0-4.0 s", clip)], engine)
    assert voice.sources == ("meeting.wav 1.0-4.0 s",)
    assert np.array_equal(voice.embedding, engine.embed([clip]))
    with pytest.raises(AudioError, match=r"m.wav 1.0-1.2 s: 0.20 s is too short"):
        enroll_samples([("m.wav 1.0-1.2 s", clip[:1600])], engine)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.wav", np.ones(1600, np.float32), "short.wav: 0.20 s is too short"),
        ("silent.wav", np.zeros(9000, np.float32), "silent.wav: is silent"),
        ("empty", None, "empty: no sound files in this folder"),
        ("none.wav", None, "none.wav: no such file or folder"),
    ],
)
def test_what_is_no_voice_is_named(
    clips: Path, engine: Engine, model: CheckpointInfo, name: str, content: Samples, message: str
) -> None:
    (clips / "empty").mkdir()
    if content is not None:
        audio.write(clips / name, content, RATE_HZ)
    with pytest.raises(AudioError, match=message):
        enroll([clips / "a.wav", clips / name], engine, model)
    with pytest.raises(AudioError, match="no reference was given"):
        joined([])


def quality_of(samples: Samples, engine: Engine) -> tuple[ReferenceQuality, Voice]:
    voice = enroll_samples([("x.wav", samples)], engine)
    return voice.qualities[0], voice


def test_a_good_clip_has_no_warning(engine: Engine) -> None:
    silence = np.zeros(4 * RATE_HZ, np.float32)
    said = talk(1, 0, 4, RATE_HZ)
    quality, voice = quality_of(np.concatenate([silence, said, silence]), engine)
    assert (quality.seconds, quality.clipped, quality.snr_db) == (12.0, 0.0, 60.0)
    assert quality.used_s == pytest.approx(4.0, abs=0.3)
    assert quality.speech_s == pytest.approx(3.2, abs=0.6)
    assert quality.level_db == pytest.approx(-23, abs=2)
    assert quality.two_voices is None
    assert voice.warnings == []


def test_poor_clips_have_a_warning(engine: Engine) -> None:
    said = np.concatenate([talk(1, 0, 4, RATE_HZ), np.zeros(8000, np.float32)])
    noise = np.random.default_rng(0).standard_normal(len(said)).astype(np.float32)
    for samples, warning in (
        (0.04 * noise + said, r"x.wav: noise only \d dB below the speech"),
        (np.clip(40 * said, -1, 1), r"x.wav: [\d.]+ % of its samples are clipped"),
        (said * 1e-3, r"x.wav: very quiet \(-8\d dB\)"),
        (said[:8000], r"only [01].\d s of speech; 3 s or more follow a voice better"),
    ):
        _, voice = quality_of(samples.astype(np.float32), engine)
        (line,) = voice.warnings
        assert re.match(warning, line), line


def test_clipping_counts_runs_at_full_scale() -> None:
    block = np.zeros((1, 1000), np.float32)
    block[0, 10:14] = 1.0
    block[0, 20:22] = -1.0
    clipping = Clipping()
    assert [b is block for b in clipping.through([block, block])] == [True, True]
    assert clipping.share == 0.004


def test_only_the_beginning_of_hours_is_read(
    clips: Path, engine: Engine, model: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voices, "LONGEST_READ_S", 20.0)
    audio.write(clips / "long.wav", talk(1, 0, 35, RATE_HZ), RATE_HZ)
    (quality,) = enroll([clips / "long.wav"], engine, model).qualities
    assert quality.seconds == 20.0


def test_two_people_in_one_clip_are_told() -> None:
    """By the bundled model, with the mean of the voices that are joined as its centre."""
    engine = Engine(load_checkpoint(), EngineSettings("cpu", "float32"))
    clips = {
        name: np.concatenate(
            [audio.read(EXAMPLES / f"set/truth/{name}_{n}.flac", RATE_HZ) for n in (1, 2)]
        )
        for name in ("awb", "rms", "slt")
    }
    assert has_two_voices(clips["awb"], engine) is None  # it is not calibrated
    centre = np.mean([engine.embed([clip]) for clip in clips.values()], axis=0)
    engine.calibration = Calibration(tuple(map(float, centre)), (0.0,) * 4, 0.5, 0.5, {})
    assert [has_two_voices(clip, engine) for clip in clips.values()] == [False] * 3
    assert has_two_voices(clips["awb"][:16000], engine) is None
    both = np.concatenate([clips["awb"], clips["slt"] * 0.5])
    voice = enroll_samples([("both.wav", both)], engine)
    assert voice.qualities[0].two_voices
    assert voice.warnings[0].startswith("both.wav: sounds like two voices")
