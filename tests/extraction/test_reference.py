"""Clips, folders, spans and profiles become one voice, each by its speech; poor ones are named."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.voices import talk
from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, find_checkpoint, load_checkpoint
from mcspex_cli.errors import AudioError, CheckpointError
from mcspex_cli.extraction import reference as reference_module
from mcspex_cli.extraction.engine import Engine, open_engine
from mcspex_cli.extraction.profile import Profile, ReferenceQuality, write_profile
from mcspex_cli.extraction.reference import (
    LONGEST_USED_S,
    Clip,
    Span,
    Voice,
    check_references,
    embed_clip,
    enroll,
    join_voices,
    list_sources,
    read_clip,
    read_spans,
)
from mcspex_cli.extraction.runtime import EngineSettings
from tests.conftest import EXAMPLES, RATE_HZ, buzz
from tests.media import SoundTrack, make

VOICE_HZ = 16000
"""The rate of the bundled model."""


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
    assert voice.embedding == pytest.approx(engine.embed([clip]), abs=0.02)
    assert 2 < voice.seconds <= 3
    assert voice.sources == (str(clips / "a.wav"),)
    assert not voice.warnings


def test_what_is_there_twice_counts_once(
    clips: Path, engine: Engine, model: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips)
    first, second = Path("a.wav"), Path("deeper/b.flac")
    (clips / "link.wav").hardlink_to(first)
    once = enroll([first, second], engine, model)
    spans = [*read_spans(audio.Reader(second), [Span(0, 2), Span(0, 2)], RATE_HZ)]
    write_profile(Path("v.safetensors"), Profile("v", (once.enrolment(model),), once.qualities))
    for sources, name, same in (
        ([first, second, first], "a.wav", "is there twice"),
        ([first, Path("deeper/../a.wav"), second], "deeper/../a.wav", "is the same file as a.wav"),
        ([first, Path("link.wav"), second], "link.wav", "is the same file as a.wav"),
        ([first, Path("deeper"), second], "deeper/b.flac", "is there twice"),
        ([Path("v.safetensors"), Path("v.safetensors")], "v.safetensors", "is there twice"),
        (spans, "deeper/b.flac 0.0-2.0 s", "is there twice"),
    ):
        voice = enroll(sources, engine, model)
        assert voice.warnings[0] == f"{name}: {same}, and counts once."
        if first in sources:
            assert np.array_equal(voice.embedding, once.embedding)
            assert voice.sources == ("a.wav", "deeper/b.flac")


def test_a_clip_that_is_in_a_profile_too_is_warned_of(
    clips: Path, engine: Engine, model: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips)
    first, second, profile, copy = map(
        Path, ("a.wav", "deeper/b.flac", "v.safetensors", "w.safetensors")
    )
    voice = enroll([first, second], engine, model)
    qualities = tuple(quality.rename(Path(quality.path).name) for quality in voice.qualities)
    for path in (profile, copy):
        write_profile(path, Profile("v", (voice.enrolment(model),), qualities))
    for sources, clip in (
        ([second, profile], "b.flac"),
        ([profile, first], "a.wav"),
        ([profile, copy], "a.wav"),
    ):
        assert enroll(sources, engine, model).warnings == (
            f"{sources[0]} and {sources[1]} have a clip in common ({clip}), which counts twice. "
            "Leave one of them out.",
        )
    assert not enroll([first, second], engine, model).warnings


def test_a_folder_is_all_its_clips(clips: Path, engine: Engine, model: CheckpointInfo) -> None:
    whole = enroll([clips], engine, model)
    one, other = (enroll([clips / name], engine, model) for name in ("a.wav", "deeper/b.flac"))
    share = one.seconds / (one.seconds + other.seconds)
    mean = share * one.embedding + (1 - share) * other.embedding
    assert whole.embedding == pytest.approx(mean, abs=1e-6)
    assert [Path(q.path).name for q in whole.qualities] == ["a.wav", "b.flac"]


def test_a_folders_recordings_of_other_programs_are_clips_too(tmp_path: Path) -> None:
    for name in ("memo.m4a", "memo2.m4a", "memo2.wav", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_sources([tmp_path])] == [
        "memo.m4a",
        "memo2.m4a",
        "memo2.wav",
    ]


def test_a_profile_counts_with_its_seconds(
    clips: Path, engine: Engine, model: CheckpointInfo
) -> None:
    whole = enroll([clips], engine, model)
    other = enroll([clips / "deeper"], engine, model)
    path = clips / "p.safetensors"
    write_profile(path, Profile("p", (other.enrolment(model),), other.qualities))
    voice = enroll([clips / "a.wav", path], engine, model)
    assert voice.embedding == pytest.approx(whole.embedding, abs=1e-4)
    assert voice.seconds == pytest.approx(whole.seconds, abs=0.01)
    assert voice.qualities == whole.qualities
    assert len(enroll([clips], engine, model).sources) == 2  # a folder is its sounds
    sources = list_sources([clips, path])
    assert list(check_references(sources, model)) == [path]
    with pytest.raises(CheckpointError, match=r"p.safetensors: enrolled for tiny"):
        check_references(sources, model, replace(model, sha256="a" * 64))


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
        join_voices([])


def test_what_is_not_read_of_a_clip_is_told(
    clips: Path, engine: Engine, model: CheckpointInfo
) -> None:
    clip = clips / "a.wav"
    clip.write_bytes(2 * clip.read_bytes())
    (warning,) = enroll([clip], engine, model).warnings
    assert warning == (
        f"{clip}: another file of 48,044 bytes follows the first in it and is not read. "
        "Split them, or join them with an audio editor."
    )
    said = talk(1, 0, 3, RATE_HZ)
    track = SoundTrack(np.stack([said, -0.9 * said]), RATE_HZ, "pcm_s16le")
    first, second = read_clip(make(clips / "two.mkv", track, track), RATE_HZ).warnings
    assert first.endswith(" The first is used. Export another to a file of its own.")
    assert "its channels nearly cancel each other out" in second
    assert second.endswith(" Export one of them to a file of its own.")


def quality_of(samples: Samples, engine: Engine) -> tuple[ReferenceQuality, Voice]:
    voice = join_voices([embed_clip(Clip("x.wav", samples, RATE_HZ), engine)])
    return voice.qualities[0], voice


def test_a_good_clip_has_no_warning(engine: Engine) -> None:
    silence = np.zeros(4 * RATE_HZ, np.float32)
    said = talk(1, 0, 4, RATE_HZ)
    quality, voice = quality_of(np.concatenate([silence, said, silence]), engine)
    assert (quality.seconds, quality.clipped) == (12.0, 0.0)
    assert quality.snr_db == pytest.approx(60, abs=1)  # what takes out rumble rings in the silence
    assert quality.used_s == pytest.approx(4.0, abs=0.3)
    assert quality.speech_s == pytest.approx(3.2, abs=0.6)
    assert quality.level_db == pytest.approx(-23, abs=2)
    assert quality.two_voices is None
    assert voice.warnings == ()


def test_poor_clips_have_a_warning(engine: Engine) -> None:
    said = np.concatenate([talk(1, 0, 4, RATE_HZ), np.zeros(8000, np.float32)])
    noise = np.random.default_rng(0).standard_normal(len(said)).astype(np.float32)
    for samples, warning in (
        (0.04 * noise + said, r"x.wav: noise only \d dB below the speech"),
        (np.clip(40 * said, -1, 1), r"x.wav: [\d.]+ % of its samples are clipped"),
        (said * 1e-3, r"x.wav: very quiet \(-8\d dB\)"),
        (said[:8000], r"only [01].\d s of speech. Give 3 s or more for a better result"),
        (0.04 * noise, r"x.wav: is equally loud throughout, as noise and tones are"),
        (0.2 * np.sin(0.4 * np.arange(16000)), r"x.wav: is equally loud throughout"),
    ):
        _, voice = quality_of(samples.astype(np.float32), engine)
        (line,) = voice.warnings
        assert re.match(warning, line), line


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_a_long_clip_with_little_speech_is_not_called_equally_loud(
    engine: Engine, floor: float
) -> None:
    said = np.concatenate([np.zeros(120 * RATE_HZ, np.float32), talk(1, 0, 4, RATE_HZ)])
    noise = np.random.default_rng(0).standard_normal(len(said)).astype(np.float32)
    assert quality_of(said + floor * noise, engine)[1].warnings == ()


@pytest.mark.parametrize("gain", [1, 50])
def test_clipping_counts_runs_at_one_level_from_full_scale_on(gain: float) -> None:
    samples = np.tile(np.float32([0.01, -0.01]), 4000)
    samples[10:14] = 1.0
    samples[20:22] = -1.0
    assert Clip("x.wav", samples * gain, RATE_HZ).clipped == 4 / 8000
    loud = gain * 3 * talk(1, 0, 4, RATE_HZ)
    assert Clip("x.wav", loud.astype(np.float32), RATE_HZ).clipped < 0.001


def test_clipping_is_counted_in_the_file_before_it_is_mixed_and_resampled(tmp_path: Path) -> None:
    sound = 0.5 * np.sin(2 * np.pi * 300 * np.arange(5 * 44_100) / 44_100)
    sound[44_100 : 3 * 44_100 : 100] = 0
    loud = np.clip(4 * sound, -1, 1)
    share = float(np.mean(np.abs(loud) >= 0.995))
    audio.write(tmp_path / "x.wav", np.stack([0.1 * sound, loud]), 44_100)
    assert read_clip(tmp_path / "x.wav", RATE_HZ).clipped == pytest.approx(share, abs=0.01)
    for channel, expected in (("mix", share), ("0", 0.0), ("1", share)):
        (clip,) = spans_of(tmp_path / "x.wav", [Span(0, 5)], channel)
        assert clip.clipped == pytest.approx(expected, abs=0.01)


def test_only_the_beginning_of_hours_is_read(
    clips: Path, engine: Engine, model: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "LONGEST_READ_S", 20.0)
    audio.write(clips / "long.wav", talk(1, 0, 35, RATE_HZ), RATE_HZ)
    (quality,) = enroll([clips / "long.wav"], engine, model).qualities
    assert quality.seconds == 20.0


@pytest.fixture(scope="module")
def people() -> dict[str, Samples]:
    """Some seconds of three people."""
    return {
        name: np.concatenate(
            [audio.read(EXAMPLES / f"set/truth/{name}_{n}.flac", VOICE_HZ) for n in (1, 2)]
        )
        for name in ("awb", "rms", "slt")
    }


@pytest.fixture(scope="module")
def trained() -> Engine:
    return open_engine(find_checkpoint(), EngineSettings("cpu", "float32"))


def test_two_people_in_one_clip_are_warned_of(people: dict[str, Samples], trained: Engine) -> None:
    """By the bundled model, which is calibrated; one that is not cannot tell."""

    def voice_of(samples: Samples) -> Voice:
        return join_voices([embed_clip(Clip("clip.wav", samples, VOICE_HZ), trained)])

    for sound in people.values():
        voice = voice_of(sound)
        assert voice.qualities[0].two_voices is False
        assert voice.warnings == ()
    voice = voice_of(np.concatenate([people["slt"], 0.5 * people["rms"]]))
    assert voice.qualities[0].two_voices
    assert voice.warnings[0].startswith("clip.wav: sounds like two voices")
    assert voice_of(people["awb"][: 2 * VOICE_HZ]).qualities[0].two_voices is None


def test_clips_of_several_people_are_named(
    people: dict[str, Samples], trained: Engine, tmp_path: Path
) -> None:
    for name, sound in people.items():
        for part, piece in enumerate(np.array_split(sound, 3)):
            audio.write(tmp_path / f"{name}{part}.wav", piece, VOICE_HZ)
    model = find_checkpoint()

    def warnings(*names: str) -> tuple[str, ...]:
        return enroll([tmp_path / f"{name}.wav" for name in names], trained, model).warnings

    assert warnings("awb0", "awb1", "awb2") == ()
    (line,) = warnings("awb0", "awb1", "slt0", "awb2")
    assert line == (
        f"{tmp_path}/slt0.wav does not sound like the other clips. Give clips of one person."
    )
    (line,) = warnings("awb0", "rms0")
    assert line == (
        f"{tmp_path}/awb0.wav and {tmp_path}/rms0.wav do not sound like one voice. "
        "Give clips of one person."
    )


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def seconds(samples: Samples) -> float:
    return len(samples) / RATE_HZ


def trim(samples: Samples) -> Samples:
    return Clip("x", samples, RATE_HZ).trimmed()


def test_pauses_of_a_long_clip_are_cut() -> None:
    said = talk(1, 0, 3, RATE_HZ)
    clip = np.concatenate([silence(4), said, silence(3), said, silence(2)])
    assert seconds(trim(clip)) == pytest.approx(6.2, abs=0.4)


def test_a_long_clip_has_an_end() -> None:
    said = talk(1, 0, LONGEST_USED_S + 20, RATE_HZ)
    assert seconds(trim(said)) == LONGEST_USED_S
    assert trim(said)[800:1600] == pytest.approx(said[800:1600], abs=0.01)


@pytest.mark.parametrize(("before_s", "after_s", "left_s"), [(0.9, 0.5, 4.4), (3, 4, 3.2)])
def test_a_short_clip_loses_long_silence_at_its_ends(
    before_s: float, after_s: float, left_s: float
) -> None:
    clip = np.concatenate([silence(before_s), talk(1, 0, 3, RATE_HZ), silence(after_s)])
    assert seconds(trim(clip)) == pytest.approx(left_s, abs=0.3)


def test_pauses_in_a_short_clip_stay() -> None:
    said = talk(1, 0, 2, RATE_HZ)
    clip = np.concatenate([said, silence(3), said])
    assert seconds(trim(clip)) == seconds(clip)
    assert seconds(Clip("x", clip, RATE_HZ).only_speech()) < 4.1


@pytest.mark.parametrize(
    ("text", "start_s", "end_s"),
    [
        ("12.0-18.5", 12, 18.5),
        ("0:12-0:18.5", 12, 18.5),
        ("1:02:03-1:02:09", 3723, 3729),
        ("90 - 2:00", 90, 120),
        ("0-0.3", 0, 0.3),
        (".5-2.", 0.5, 2),
        ("8-", 8, np.inf),
        ("1:00 -", 60, np.inf),
    ],
)
def test_spans_are_read(text: str, start_s: float, end_s: float) -> None:
    assert Span.parse(text) == Span(start_s, end_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((t, "is not a span") for t in ("", "12", "-3-5", "a-b", "1:75-2:00", "1:60:00-1:60:09")),
        *((t, "is not a span") for t in ("1e3-2e3", "nan-5", "٣-٩", "1-2-3", "9" * 500)),
        ("5-4", "5-4: this span ends before it starts"),
        ("5-5", "5-5: this span is empty"),
        ("0-0", "is empty"),
        ("5-5.2", r"0.20 s is too short. Give 0.3 s"),
    ],
)
def test_what_is_no_span_is_refused(text: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        Span.parse(text)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(3, 1), (1, 1), (-3, 1), (np.nan, 1), (0, np.nan), (np.inf, np.inf)]
)
def test_times_that_are_no_span_are_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(ValueError, match="a span cannot go from"):
        Span(start_s, end_s)


def test_spans_are_shown_in_seconds() -> None:
    assert str(Span.parse("0:12-0:18.5")) == "12.0-18.5 s"
    assert str(Span(0.125, 3600)) == "0.125-3600.0 s"


def spans_of(path: Path, spans: Sequence[Span], channel: str = "mix") -> list[Clip]:
    return list(read_spans(audio.Reader(path, None, channel), spans, RATE_HZ))


def test_damage_in_the_recording_of_spans_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "damaged.flac"
    audio.write(path, buzz(120, 12), RATE_HZ)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    reader = audio.Reader(path, damaged="keep")
    first, second = read_spans(reader, [Span(0.5, 3), Span(9, 11)], RATE_HZ)
    (warning,) = first.warnings
    assert "damaged after" in warning
    assert second.warnings == ()


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    """25 s, two channels at 16 kHz: a voice on the left, from 0 to 5 s silence."""
    sound = np.repeat(buzz(120, 25), 2)
    sound[: 5 * 16000] = 0
    path = tmp_path / "meeting.wav"
    audio.write(path, np.stack([sound, 0 * sound]), 16000)
    return path


def test_a_span_is_that_part_of_the_file(meeting: Path) -> None:
    whole = audio.read(meeting, RATE_HZ)
    spans = [Span(8, 12.5), Span(6, 9)]
    first, second = spans_of(meeting, spans)
    assert first.name == f"{meeting} 8.0-12.5 s"
    assert (first.seconds, second.seconds) == (4.5, 3.0)
    assert first.samples[800:-800] == pytest.approx(whole[64800:99200], abs=2e-3)
    assert second.samples[800:-800] == pytest.approx(whole[48800:71200], abs=2e-3)
    (left,) = spans_of(meeting, spans[:1], "0")
    assert left.samples == pytest.approx(2 * first.samples, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "seconds"), [("20-", 5.0), ("20-25.5", 5.0), ("20-25.2", 5.0), ("24.7-", 0.3)]
)
def test_a_span_may_reach_a_little_over_the_end(meeting: Path, text: str, seconds: float) -> None:
    (clip,) = spans_of(meeting, [Span.parse(text)])
    assert clip.seconds == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize(
    ("span", "channel", "message"),
    [
        (Span(20, 25.6), "mix", r"meeting.wav: ends at 25.00 s, before the span 20.0-25.6 s does"),
        (Span(25, 25.4), "mix", r"ends at 25.00 s, but the span 25.0-25.4 s needs 25.30 s"),
        (Span(26, np.inf), "mix", r"ends at 25.00 s, but the span 26.0-end needs 26.30 s"),
        (Span(1, 3), "mix", r"meeting.wav 1.0-3.0 s: is silent"),
        (Span(8, 9), "1", r"meeting.wav 8.0-9.0 s: is silent"),
        (Span(8, 9), "2", "has no channel 2"),
    ],
)
def test_spans_that_cannot_be_used(meeting: Path, span: Span, channel: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        spans_of(meeting, [span], channel)


def test_a_span_may_be_in_sound_that_a_header_does_not_know_of(tmp_path: Path) -> None:
    path = tmp_path / "joined.flac"
    audio.write(path, talk(1, 0, 3, RATE_HZ), RATE_HZ)
    path.write_bytes(2 * path.read_bytes())
    assert audio.probe(path).seconds == pytest.approx(3, abs=0.01)
    (clip,) = spans_of(path, [Span(3.5, 6)])
    assert clip.seconds == pytest.approx(2.5, abs=0.01)
    with pytest.raises(AudioError, match=r"joined.flac: ends at 6.00 s, before the span 5.0-8.0 s"):
        spans_of(path, [Span(5, 8)])


def test_a_span_behind_the_sound_of_a_longer_video_is_refused(tmp_path: Path) -> None:
    track = SoundTrack(buzz(120, 3), RATE_HZ, "pcm_s16le")
    path = make(tmp_path / "talk.mkv", track, picture_s=8)
    (clip,) = spans_of(path, [Span(1, 2.99)])
    assert len(clip.samples) == pytest.approx(15920, abs=80)
    for span in (Span(5, 7), Span(1, 4)):
        with pytest.raises(AudioError, match=rf"talk.mkv: ends at 3.00 s, before the span {span}"):
            spans_of(path, [span])


def test_memory_is_that_of_the_spans(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    audio.write(path, np.tile(buzz(120, 20), 30), RATE_HZ)
    spans_of(path, [Span(1, 3)])
    tracemalloc.start()
    spans_of(path, [Span(1, 3), Span(500, 503)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # the file has 19 MB of samples


def test_how_much_of_a_long_reference_is_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 100 s in place of 10 min."""
    monkeypatch.setattr(reference_module, "LONGEST_READ_S", 100.0)
    path = tmp_path / "long.flac"
    audio.write(path, np.tile(talk(1, 0, 20, RATE_HZ), 6), RATE_HZ)
    used = "are read, and of their speech no more than 60 s are used."
    assert read_clip(path, RATE_HZ).warnings == (f"{path}: only the 10 min from 0.0 s on {used}",)
    spans = [Span.parse(text) for text in ("5-", "25-", "5-110")]
    warnings = [clip.warnings for clip in spans_of(path, spans)]
    assert warnings[0] == (f"{path} 5.0-end: only its first 10 min {used}",)
    assert warnings[1] == ()
    assert len(warnings[2]) == 1
    noise = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    audio.write(path, np.tile(0.1 * noise, 120), RATE_HZ)
    assert read_clip(path, RATE_HZ).warnings == (f"{path}: only its first 10 min {used}",)


def test_ten_minutes_are_read_of_many_channels_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their blocks are shorter."""
    monkeypatch.setattr(reference_module, "LONGEST_READ_S", 10.0)
    path = tmp_path / "wide.wav"
    audio.write(path, np.tile(talk(1, 0, 20, 8000), (256, 1)), 8000)
    clip = read_clip(path, RATE_HZ)
    assert 10 <= clip.seconds < 20
    assert "from 0.0 s on" in clip.warnings[0]


@pytest.mark.parametrize(("noise", "offset"), [(0.0, 0.0), (0.001, 0.0), (0.0, 0.3)])
def test_a_reference_that_begins_with_silence_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, offset: float
) -> None:
    """2 min without speech, and then 4 s of it; of no clip more than 100 s are read."""
    monkeypatch.setattr(reference_module, "LONGEST_READ_S", 100.0)
    rng = np.random.default_rng(0)
    speech = talk(1, 0, 4, RATE_HZ)
    quiet = np.zeros(120 * RATE_HZ, np.float32)
    sound = np.concatenate([quiet, speech, np.zeros(RATE_HZ, np.float32)])
    sound += (noise * rng.standard_normal(len(sound))).astype(np.float32) + np.float32(offset)
    audio.write(tmp_path / "late.flac", sound, RATE_HZ)
    clip = read_clip(tmp_path / "late.flac", RATE_HZ)
    assert len(clip.trimmed()) / RATE_HZ == pytest.approx(4.5, abs=0.6)
    audio.write(tmp_path / "noise.flac", sound[: 110 * RATE_HZ], RATE_HZ)
    if noise:
        assert read_clip(tmp_path / "noise.flac", RATE_HZ).seconds >= 60
    else:
        with pytest.raises(AudioError, match="is silent"):
            read_clip(tmp_path / "noise.flac", RATE_HZ)


def test_an_offset_changes_nothing(clips: Path, engine: Engine, model: CheckpointInfo) -> None:
    sound = audio.read(clips / "a.wav", RATE_HZ)
    drift = 0.1 * np.sin(2 * np.pi * 3 * np.arange(len(sound)) / RATE_HZ)
    audio.write(clips / "offset.wav", (sound + 0.3 + drift).astype(np.float32), RATE_HZ, "FLOAT")
    plain, offset = (enroll([clips / name], engine, model) for name in ("a.wav", "offset.wav"))
    assert offset.embedding == pytest.approx(plain.embedding, abs=0.02)
    assert offset.seconds == pytest.approx(plain.seconds, abs=0.2)
    assert offset.warnings == plain.warnings
