"""What is read of videos, compressed and damaged files, and what is said of what cannot be."""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mcspex_cli import audio
from mcspex_cli.errors import AudioError
from tests.conftest import EXAMPLES, RATE_HZ, buzz
from tests.media import SoundTrack, make

SOUND = EXAMPLES / "mixture.flac"
SIX_S = buzz(120, 6)


def tracks(*sounds: audio.Samples, codec: str = "aac", **options: object) -> list[SoundTrack]:
    """Sound tracks at 8 kHz."""
    return [SoundTrack(sound, RATE_HZ, codec, **options) for sound in sounds]  # type: ignore[arg-type]


def read(path: Path, **options: object) -> tuple[audio.Samples, list[str]]:
    """A file's samples at 8 kHz and the warnings of reading it."""
    reader = audio.Reader(path, RATE_HZ, **options)  # type: ignore[arg-type]
    return reader.read(), reader.warnings


def cut(path: Path, part: float) -> Path:
    """Leave only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: round(part * len(data))])
    return path


def between_packets(path: Path, part: float) -> Path:
    """Leave only the first packets of a file."""
    with av.open(str(path)) as container:
        starts = [packet.pos or 0 for packet in container.demux(audio=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[round(part * len(starts))]])
    return path


def hit(path: Path, part: float = 0.6, size: int = 400) -> Path:
    """Overwrite some bytes of a file."""
    data = bytearray(path.read_bytes())
    at = round(part * len(data))
    data[at : at + size] = np.random.default_rng(1).bytes(size)
    path.write_bytes(data)
    return path


def blank(path: Path, part: float) -> Path:
    """Overwrite all after the first part with zeros, as a copy to a full disk may have it."""
    data = path.read_bytes()
    path.write_bytes(data[: round(part * len(data))].ljust(len(data), b"\0"))
    return path


def hole(path: Path, part: float) -> Path:
    """Overwrite a middle part with zeros, as an interrupted download may leave it."""
    data = path.read_bytes()
    at = round(part * len(data))
    path.write_bytes(data[:at] + bytes(4096) + data[at + 4096 :])
    return path


def hit_early(path: Path, part: float) -> Path:
    """Overwrite some bytes of an Ogg's first page of sound."""
    return hit(path, part / 2)


def joined(folder: Path, suffix: str, **layout: str) -> Path:
    """Two files of 3 s each, one after the other in one file."""
    data = b""
    for half in (SIX_S[:24_000], SIX_S[24_000:]):
        path = folder / f"half.{suffix}"
        soundfile.write(path, half, RATE_HZ, **layout)
        data += path.read_bytes()
    (folder / f"joined.{suffix}").write_bytes(data)
    return folder / f"joined.{suffix}"


CONTAINERS = [
    ("a.m4a", "aac", 8000),
    ("a.mp4", "aac", 8000),
    ("b.m4a", "alac", 8000),
    ("a.mov", "pcm_s16le", 8000),
    ("a.mka", "libopus", 48000),
    ("a.webm", "libopus", 48000),
    ("a.aac", "aac", 8000),
    ("a.wma", "wmav2", 16000),
    ("a.avi", "pcm_s16le", 8000),
    ("a.3gp", "aac", 8000),
    ("a.amr", "libopencore_amrnb", 8000),
    ("a.ac3", "ac3", 48000),
    ("a.mp3", "libmp3lame", 8000),
    ("a.ts", "mp2", 16000),
    ("a.wv", "wavpack", 8000),
    ("a.tta", "tta", 8000),
    ("a.flv", "libmp3lame", 44_100),
    ("a.mpg", "mp2", 48_000),
    ("a.wav", "libmp3lame", 8000),
]


@pytest.mark.parametrize(("name", "codec", "rate_hz"), CONTAINERS)
def test_containers_are_read_as_what_they_hold(
    tmp_path: Path, name: str, codec: str, rate_hz: int
) -> None:
    truth = audio.read(SOUND, rate_hz)
    rate = {"libopencore_amrnb": "12200"}.get(codec, "64000")
    path = make(tmp_path / name, SoundTrack(truth, rate_hz, codec, options={"b": rate}))
    info = audio.probe(path)
    assert (info.sample_rate_hz, info.channels, info.start_s) == (rate_hz, 1, 0.0)
    assert info.seconds == pytest.approx(len(truth) / rate_hz, abs=0.3)
    samples, warnings = read(path)
    assert warnings == []
    truth, size = audio.read(SOUND, RATE_HZ), 2**17
    spectra = [np.fft.rfft(sound, size) for sound in (samples, truth)]
    fit = np.fft.irfft(spectra[0] * spectra[1].conj(), size)
    assert abs((fit.argmax() + size // 2) % size - size // 2) <= 1200  # some pad by a frame
    least = 0.6 if name == "a.amr" else 0.9
    assert fit.max() / np.linalg.norm(samples) / np.linalg.norm(truth) > least


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.opus", "libopus")])
def test_sound_of_eight_channels_is_read(tmp_path: Path, name: str, codec: str) -> None:
    tones = np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * np.arange(200, 600, 50)[:, None])
    path = make(tmp_path / name, SoundTrack(np.float32(0.1 * tones), 48_000, codec))
    samples = audio.read(path, 48_000, "all")[:, :48_000]
    assert np.abs(samples - 0.1 * tones)[[0, 1, 2, 4, 5, 6, 7]].mean() < 0.02  # 3 is for rumble


def test_a_video_that_names_each_of_its_channels_is_read(tmp_path: Path) -> None:
    sound = np.stack([audio.read(SOUND, RATE_HZ) * (8 - number) / 8 for number in range(8)])
    path = make(tmp_path / "a.mov", SoundTrack(sound, RATE_HZ, "pcm_s16le"))
    data = bytearray(path.read_bytes())
    order_of_mpeg_7_1_b = struct.pack(">II", 127 << 16 | 8, 0)
    at = data.index(b"chan") + 8
    data[at : at + 8] = order_of_mpeg_7_1_b
    path.write_bytes(data)
    for _ in range(2):
        assert audio.probe(path).channels == 8
        assert np.abs(audio.read(path, RATE_HZ, "all") - sound).max() < 1e-4


@pytest.mark.parametrize("picture_s", [6, 9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.wmv"])
def test_the_sound_of_a_video_is_read(tmp_path: Path, name: str, picture_s: int) -> None:
    codec = {"wmv": "wmav2", "mov": "pcm_s16le", "avi": "pcm_s16le"}.get(name[2:], "aac")
    sound = SoundTrack(np.repeat(SIX_S, 2), 2 * RATE_HZ, codec, options={"b": "64000"})
    path = make(tmp_path / name, sound, picture_s=picture_s)
    samples, warnings = read(path)
    assert (len(samples), warnings) == (pytest.approx(len(SIX_S), abs=1100), [])


@pytest.mark.parametrize(
    ("name", "codec", "subtype"),
    [
        ("a.m4a", "alac", "PCM_16"),
        ("a.caf", "alac", "PCM_16"),
        ("a.mkv", "pcm_s16le", "PCM_16"),
        ("a.flac", "", "PCM_24"),
    ],
)
def test_lossless_sound_is_the_same_sample_for_sample(
    tmp_path: Path, name: str, codec: str, subtype: str
) -> None:
    stereo = np.stack([buzz(120, 25), buzz(190, 25, 1)])
    audio.write(tmp_path / "plain.wav", stereo, RATE_HZ, subtype)
    plain = audio.Reader(tmp_path / "plain.wav", RATE_HZ, "all")
    path, sound = tmp_path / name, audio.read(plain.path, RATE_HZ, "all")
    if codec:
        make(path, *tracks(sound, codec=codec))
    else:
        soundfile.write(path, (sound.T * 2.0**31).astype(np.int32), RATE_HZ, subtype)
    decoded = audio.Reader(path, RATE_HZ, "all")
    blocks = list(decoded)
    assert [block.shape[1] for block in blocks] == [80000, 80000, 40000]
    np.testing.assert_array_equal(np.hstack(blocks), np.hstack(list(plain)))
    assert decoded.frames == plain.frames
    np.testing.assert_allclose(audio.read(path, RATE_HZ, "1"), stereo[1], atol=1e-4)
    with pytest.raises(AudioError, match="has no channel 2"):
        audio.read(path, RATE_HZ, "2")


def test_one_of_several_sound_tracks_is_chosen_by_number_or_language(tmp_path: Path) -> None:
    other = buzz(190, 3)
    english, german = tracks(SIX_S, other, codec="pcm_s16le")
    made = [
        SoundTrack(track.samples, RATE_HZ, "pcm_s16le", language=language)
        for track, language in ((english, "eng"), (german, "deu"))
    ]
    path = make(tmp_path / "a.mkv", *made, picture_s=6)
    info = audio.probe(path)
    assert info.tracks == ("1 (1 ch, eng)", "2 (1 ch, deu)")
    samples, warnings = read(path)
    assert len(samples) == len(SIX_S)
    expected = "has 2 sound tracks: 1 (1 ch, eng), 2 (1 ch, deu). The first is used"
    assert [expected in warning for warning in warnings] == [True]
    for track in ("2", "deu", "DE"):
        samples, warnings = read(path, track=track)
        assert (len(samples), warnings) == (len(other), [])
    assert audio.probe(path, "2").frames == pytest.approx(len(other), abs=1)
    with pytest.raises(AudioError, match=r"no sound track 3\. It has: 1 \(1 ch, eng\), 2 \(1 ch"):
        read(path, track="3")
    with pytest.raises(AudioError, match="has no sound track deu"):
        audio.write(tmp_path / "a.wav", SIX_S, RATE_HZ)
        read(tmp_path / "a.wav", track="deu")


def test_a_track_is_chosen_as_the_file_spells_its_language(tmp_path: Path) -> None:
    sound = SoundTrack(SIX_S, RATE_HZ, "pcm_s16le", language="DEU")
    path = make(tmp_path / "a.mkv", sound, picture_s=6)
    assert audio.probe(path).tracks == ("1 (1 ch, DEU)",)
    for track in ("DEU", "deu", "De"):
        assert len(read(path, track=track)[0]) == len(SIX_S)


def test_a_short_file_with_a_warning_is_not_called_damaged(tmp_path: Path) -> None:
    """The length that ASF announces is that of its longest track."""
    path = make(tmp_path / "a.asf", *tracks(SIX_S[: RATE_HZ // 4], SIX_S, codec="pcm_s16le"))
    reader = audio.Reader(path, damaged="keep", shortest_s=0.3)
    with pytest.raises(AudioError, match=r"a\.asf: 0\.25 s is too short"):
        reader.read()
    assert "has 2 sound tracks" in reader.warnings[0]


def test_an_avi_without_a_rate_is_one_line(tmp_path: Path) -> None:
    no_rate = (b"strf", 12, bytes(4))
    path = patched(tmp_path, encoded("a.avi", "pcm_s16le", RATE_HZ), no_rate)
    with pytest.raises(AudioError, match=r"Invalid sample rate: 0"):
        audio.probe(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm", "a.m4a", "a.mov"])
def test_sound_that_starts_late_says_so_and_is_not_padded(tmp_path: Path, name: str) -> None:
    codec, rate_hz = ("libopus", 48_000) if name == "a.webm" else ("pcm_s16le", RATE_HZ)
    codec = "alac" if name in ("a.mp4", "a.m4a") else codec
    sound = audio.read(EXAMPLES / "mixture.flac", rate_hz)
    late = SoundTrack(sound, rate_hz, codec, start_s=2.0)
    path = make(tmp_path / name, late, picture_s=7 if name in ("a.mkv", "a.mp4", "a.mov") else 0)
    info = audio.probe(path)
    assert info.start_s == pytest.approx(2.0, abs=0.03)
    assert info.seconds == pytest.approx(len(sound) / rate_hz, abs=0.05)
    assert len(audio.read(path, rate_hz)) == pytest.approx(len(sound), abs=rate_hz // 20)


@pytest.mark.parametrize(
    ("name", "rate_hz"),
    [
        *(("a.webm", 8000), ("a.mka", 16_000), ("a.webm", 48_000)),
        *(("a.mp4", 8000), ("a.mp4", 16_000), ("a.mp4", 48_000)),
    ],
)
def test_opus_is_read_from_its_first_sample(tmp_path: Path, name: str, rate_hz: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, rate_hz).astype(np.float32)
    no_chance = {"fflags": "bitexact"}  # else random numbers in it could look like what is sought
    path = make(tmp_path / name, SoundTrack(noise, rate_hz, "libopus"), options=no_chance)
    if (data := bytearray(path.read_bytes())).count(b"\x56\xaa"):  # CodecDelay, as before FFmpeg 6
        at = data.index(b"\x56\xaa") + 3
        size = data[at - 1] & 0x7F
        data[at : at + size] = round(312e9 / 48_000 * rate_hz / 48_000).to_bytes(size, "big")
        path.write_bytes(data)
    assert audio.probe(path).start_s == 0.0
    samples = audio.read(path, rate_hz)
    assert len(samples) == pytest.approx(len(noise), abs=rate_hz // 40)
    fit = np.correlate(samples[: rate_hz // 2], noise[800 : 800 + rate_hz // 8], "valid")
    assert fit.argmax() == pytest.approx(800, abs=1)


def test_a_pause_in_the_time_stamps_is_silence(tmp_path: Path) -> None:
    for name, codec in (("a.mkv", "pcm_s16le"), ("a.m4a", "alac")):
        path = make(tmp_path / name, *tracks(SIX_S, codec=codec, gap=(2.0, 1.5)))
        samples, warnings = read(path)
        assert (len(samples), warnings) == (pytest.approx(7.5 * RATE_HZ, abs=1), [])
        assert not samples[20_500:28_000].any()
        np.testing.assert_allclose(samples[-4000:], SIX_S[-4000:], atol=1e-4)


def test_a_header_without_a_length_is_measured(tmp_path: Path) -> None:
    live = make(
        tmp_path / "a.webm",
        SoundTrack(np.repeat(SIX_S, 6), 48_000, "libopus"),
        options={"live": "1"},
    )
    assert audio.probe(live).seconds == pytest.approx(6, abs=0.1)
    samples, warnings = read(live)
    assert (len(samples), warnings) == (pytest.approx(len(SIX_S), abs=400), [])


# --- odd files of which nothing is lost --------------------------------------------------------


def aac_in_avi(folder: Path) -> Path:
    """AVI has no time stamps, and FFmpeg counts a chunk of more than the block's size twice."""
    return patched(folder, encoded("a.avi", "aac", 16_000), (b"strf", 20, struct.pack("<H", 400)))


def piped_wma(folder: Path) -> Path:
    sound = SoundTrack(np.repeat(SIX_S, 2), 2 * RATE_HZ, "wmav2", options={"b": "64000"})
    return make(folder / "a.wma", sound, pipe_format="asf")


def short_packet(folder: Path) -> Path:
    """FFmpeg before 8 announced whole packets of 4096 samples for all of a CAF."""
    announced = (b"pakt", 20, struct.pack(">QII", 24 * 4096, 0, 0))
    sound = SoundTrack(np.repeat(SIX_S[:47_200], 2), 2 * RATE_HZ, "alac")
    return patched(folder, lambda folder: make(folder / "a.caf", sound), announced)


def piped_avi(folder: Path) -> Path:
    return make(folder / "a.avi", SoundTrack(SIX_S, RATE_HZ, "pcm_s16le"), pipe_format="avi")


def amr_with_pauses(folder: Path) -> Path:
    """In the pauses of a telephone call, AMR only says how loud the noise is (DTX)."""
    sound, noise = SIX_S.copy(), np.random.default_rng(0).normal(0, 1e-3, len(SIX_S))
    sound[43_000:] = 0
    track = SoundTrack(sound + noise, RATE_HZ, "libopencore_amrnb", options={"dtx": "1"})
    return make(folder / "a.amr", track)


def stuffed(folder: Path) -> Path:
    """Cameras fill up a transport stream with packets that hold nothing."""
    sound = SoundTrack(np.repeat(SIX_S, 2), 2 * RATE_HZ, "mp2", options={"b": "32000"})
    path = make(folder / "a.m2ts", sound, options={"mpegts_m2ts_mode": "1"})
    path.write_bytes(path.read_bytes() + 200 * (bytes(4) + b"G\x1f\xff\x10".ljust(188, b"\xff")))
    return path


def aac_of_segments(folder: Path) -> Path:
    """Each segment of an HTTP live stream begins with an ID3 tag."""
    path = encoded("a.aac", "aac", 16_000)(folder)
    frames = re.findall(rb"\xff\xf1`@.{5,}?(?=\xff\xf1`@|$)", path.read_bytes(), re.DOTALL)
    tag = b"ID3\x04\0\0\0\0\0\x3f" + bytes(63)
    path.write_bytes(b"".join(tag * (at % 10 == 0) + frame for at, frame in enumerate(frames)))
    return path


def padded_mp3(folder: Path) -> Path:
    """The last frame of this MP3 holds nothing but padding."""
    sound = SoundTrack(np.repeat(SIX_S, 2)[:95_064], 2 * RATE_HZ, "libmp3lame")
    return make(folder / "a.mp3", sound)


def with_notes(name: str, codec: str) -> Callable[[Path], Path]:
    """Some programs put the notes of MP3s before and after files of every kind."""

    def made(folder: Path) -> Path:
        path = make(folder / name, SoundTrack(SIX_S, RATE_HZ, codec))
        before, after = b"ID3\3\0\0\0\0\1\0" + bytes(128), b"TAG" + b"x" * 125
        path.write_bytes(before + path.read_bytes() + (b"" if codec == "aac" else after))
        return path

    return made


def wavpack_with_notes(folder: Path) -> Path:
    path = make(folder / "a.wv", SoundTrack(SIX_S, RATE_HZ, "wavpack"))
    path.write_bytes(path.read_bytes() + b"TAG" + b"x" * 125)
    return path


@pytest.mark.parametrize(
    "whole",
    [
        with_notes("a.wav", "pcm_s16le"),
        with_notes("a.wav", "adpcm_ms"),
        with_notes("a.aiff", "pcm_s16be"),
        with_notes("a.mkv", "flac"),
        with_notes("a.mp4", "aac"),
        wavpack_with_notes,
        aac_in_avi,
        short_packet,
        piped_wma,
        piped_avi,
        amr_with_pauses,
        stuffed,
        aac_of_segments,
        padded_mp3,
    ],
)
def test_nothing_is_missing_in_an_odd_file(tmp_path: Path, whole: Callable[[Path], Path]) -> None:
    path = whole(tmp_path)
    samples, warnings = read(path)
    assert (len(samples), warnings) == (pytest.approx(len(SIX_S), abs=1200), [])
    assert audio.probe(path).seconds == pytest.approx(6, abs=1.3)
    assert np.abs(samples[2000:42_000].reshape(-1, 100)).max(axis=1).min() > 0.01  # no holes


# --- nothing is lost without a word ----------------------------------------------------------


def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    sound = np.concatenate([np.random.default_rng(0).normal(0, 0.2, 8000), SIX_S * 1e-3])
    track = SoundTrack(sound.astype(np.float32), RATE_HZ, "libmp3lame", options={"q": "5"})
    path = make(tmp_path / "a.mp3", track, options={"write_xing": "0"})
    samples, warnings = read(path)
    assert (len(samples), warnings) == (pytest.approx(len(sound), abs=2500), [])


JOINED = [
    ("ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("mp3", {"format": "MP3", "subtype": "MPEG_LAYER_III"}),
    ("flac", {"format": "FLAC", "subtype": "PCM_16"}),
]
"""Kinds of files that can be joined by writing one after the other."""


@pytest.mark.parametrize(("suffix", "layout"), JOINED)
def test_files_joined_into_one_are_read_whole(
    tmp_path: Path, suffix: str, layout: dict[str, str]
) -> None:
    samples, warnings = read(joined(tmp_path, suffix, **layout))
    assert len(samples) == pytest.approx(len(SIX_S), abs=2500)
    assert all("All was read." in warning for warning in warnings)


@pytest.mark.parametrize("lengths_s", [(1, 1), (5, 0.1), (0.2, 5, 1)])
def test_short_flacs_joined_into_one_are_read_sample_by_sample(
    tmp_path: Path, lengths_s: tuple[float, ...]
) -> None:
    path, data, parts = tmp_path / "a.flac", b"", []
    for length_s in lengths_s:
        parts.append(SIX_S[: round(length_s * RATE_HZ)])
        audio.write(path, parts[-1], RATE_HZ)
        data += path.read_bytes()
    path.write_bytes(data)
    audio.Reader(path, shortest_s=audio.MIN_SIGNAL_S).check()
    samples, warnings = read(path)
    np.testing.assert_allclose(samples, np.concatenate(parts), atol=1e-4)
    assert warnings == [f"{path}: {len(lengths_s)} files are joined into one. All was read."]
    path.write_bytes(data[: -len(data) // 20])
    with pytest.raises(AudioError, match=r"damaged after|truncated"):
        audio.read(path, RATE_HZ)
    path.write_bytes(data + data[:50])
    with pytest.raises(AudioError, match=r"\(the next of the files in it cannot be read\)"):
        audio.read(path, RATE_HZ)
    assert len(read(path, damaged="keep")[0]) == len(samples)


def test_a_picture_in_the_second_of_two_joined_mp3_is_no_damage(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp3", *tracks(SIX_S, codec="libmp3lame"))
    data = path.read_bytes()
    path.write_bytes(2 * data)
    expected, _ = read(path)
    picture = np.random.default_rng(0).bytes(100_000)  # of which some looks like frames
    length = bytes(len(picture) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(data + b"ID3\x04\0\0" + length + picture + data)
    samples, warnings = read(path)
    assert warnings == []
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp3", "libmp3lame"), ("a.mkv", "pcm_s16le"), ("a.avi", "pcm_s16le")]
)
@pytest.mark.parametrize("picture_s", [0, 30])
def test_long_files_joined_into_one_are_read_whole(
    tmp_path: Path, name: str, codec: str, picture_s: int
) -> None:
    if picture_s and name == "a.mp3":
        pytest.skip("an MP3 has no picture")
    sound = np.tile(SIX_S, 5)
    path = make(tmp_path / name, *tracks(sound, codec=codec), picture_s=picture_s)
    assert len(read(path)[0]) == pytest.approx(len(sound), abs=300)
    path.write_bytes(path.read_bytes() * 2)
    samples, warnings = read(path)
    assert len(samples) == pytest.approx(2 * len(sound), abs=1600)
    assert all("All was read." in warning for warning in warnings)


def test_a_file_that_is_not_read_because_another_is_before_it_is_warned_of(tmp_path: Path) -> None:
    for suffix, subtype in (
        *((suffix, "PCM_16") for suffix in ("wav", "aiff", "rf64", "w64")),
        ("w64", "MS_ADPCM"),
        ("caf", "ALAC_16"),
    ):
        samples, warnings = read(joined(tmp_path, suffix, subtype=subtype))
        assert len(samples) == pytest.approx(24_000, abs=600)
        assert ["follows the first in it and is not read" in text for text in warnings] == [True]
    for name, codec in (("a.mp4", "aac"), ("a.wma", "wmav2"), ("a.flv", "libmp3lame")):
        path = encoded(name, codec, 44_100)(tmp_path)
        whole, data = len(read(path)[0]), path.read_bytes()
        path.write_bytes(data * 2)
        samples, (warning,) = read(path)
        assert len(samples) == whole
        expected = f"another file of {len(data):,} bytes follows the first in it and is not read"
        assert expected in warning


@pytest.mark.parametrize("first", ["wav", "aiff", "m4a", "avi"])
@pytest.mark.parametrize("second", ["flac", "ogg", "m4a", "mkv"])
def test_a_file_of_another_kind_after_the_first_is_not_read_as_its_sound(
    tmp_path: Path, first: str, second: str
) -> None:
    codecs = {"wav": "pcm_s16le", "aiff": "pcm_s16be", "flac": "flac", "ogg": "flac"}
    codecs["avi"] = "pcm_s16le"
    paths = [
        make(tmp_path / f"{place}.{kind}", *tracks(SIX_S, codec=codecs.get(kind, "aac")))
        for place, kind in ((1, first), (2, second))
    ]
    whole, data = len(read(paths[0])[0]), paths[1].read_bytes()
    with paths[0].open("ab") as file:
        file.write(data)
    samples, (warning,) = read(paths[0])
    assert len(samples) == whole
    assert f"another file of {len(data):,} bytes follows the first in it and is not" in warning


@pytest.mark.parametrize(("first", "codec"), [("flac", "flac"), ("mkv", "flac")])
@pytest.mark.parametrize("second", ["a.wav", "a.aac"])
def test_what_follows_a_file_of_any_kind_is_told_of(
    tmp_path: Path, first: str, codec: str, second: str
) -> None:
    if first == "flac" and av.__version__ < "18":
        pytest.skip("PyAV 17, the newest for Python 3.10, gives no frame before damage in a packet")
    path = make(tmp_path / f"1.{first}", *tracks(SIX_S, codec=codec))
    whole = len(read(path)[0])
    other = make(tmp_path / second, *tracks(SIX_S, codec="aac" if "aac" in second else "pcm_s16le"))
    with path.open("ab") as file:
        file.write(other.read_bytes())
    samples, (warning,) = read(path)
    assert len(samples) == whole
    assert re.search(r"another file of [\d,]+ bytes|[\d,]+ bytes follow its sound and are", warning)


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "options", "part"),
    [
        ("a.mp4", "aac", 8000, {"movflags": "frag_keyframe+empty_moov"}, b"moof"),
        ("a.webm", "libopus", 48_000, {"live": "1", "cluster_time_limit": "500"}, b"\x1fC\xb6u"),
    ],
)
def test_zeros_in_the_place_of_the_last_parts_are_warned_of(
    tmp_path: Path, name: str, codec: str, rate_hz: int, options: dict[str, str], part: bytes
) -> None:
    if name == "a.mp4":
        options = options | {"frag_duration": "500000"}
    path = encoded(name, codec, rate_hz, **options)(tmp_path)
    assert read(path)[1] == []
    data = path.read_bytes()
    end = data.rindex(part, 0, len(data) * 9 // 10) - (4 if part == b"moof" else 0)
    path.write_bytes(data[:end].ljust(len(data), b"\0"))
    samples, (warning,) = read(path)
    assert 4 < len(samples) / RATE_HZ < 5.9
    assert "bytes are zeros: it may be an interrupted copy." in warning


def test_one_after_another_of_two_kinds_of_mp4_is_not_read(tmp_path: Path) -> None:
    whole, parts = (
        encoded(name, "aac", movflags=flags)(tmp_path).read_bytes()
        for name, flags in (("a.mp4", "faststart"), ("b.mp4", "frag_every_frame+empty_moov"))
    )
    for first, second in ((parts, parts), (whole, parts), (parts, whole)):
        (tmp_path / "c.mp4").write_bytes(first + second)
        samples, (warning,) = read(tmp_path / "c.mp4")
        assert len(samples) == pytest.approx(len(SIX_S), abs=2048)
        assert f"another file of {len(second):,} bytes follows the first" in warning


@pytest.mark.parametrize("more", [2, 8, 44])
def test_a_header_that_is_counted_among_the_samples_is_no_damage(tmp_path: Path, more: int) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, SIX_S, RATE_HZ)
    data = path.read_bytes()
    path.write_bytes(data[:40] + struct.pack("<I", len(data) - 44 + more) + data[44:])
    samples, (warning,) = read(path)
    assert len(samples) == len(SIX_S)
    assert warning == f"{path}: its header announces {more} bytes more than there are."


def test_a_file_that_is_cut_where_a_part_begins_is_truncated(tmp_path: Path) -> None:
    parts = encoded("a.mp4", "aac", movflags="frag_every_frame+empty_moov")(tmp_path)
    data = parts.read_bytes()
    parts.write_bytes(data[: data.index(b"moof", len(data) // 2) + 9])
    with pytest.raises(AudioError, match=r"truncated after \d\.\d\d s: .* bytes are missing"):
        read(parts)


@pytest.mark.parametrize(
    ("name", "number"), [("a.wav", 0), ("a.wav", 5), ("a.wav", 12), ("a.tta", 0), ("a.tta", 5)]
)
def test_ctrl_c_while_a_decoder_reads_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    path = (encoded(name, "tta") if name == "a.tta" else plain("wav", "WAV", "PCM_16"))(tmp_path)
    count = itertools.count()

    class Stream(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if next(count) == number:
                raise KeyboardInterrupt
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Stream(self))
    with pytest.raises(KeyboardInterrupt):
        read(path)
    assert next(count) < number + 20


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -1.0])
def test_a_flash_file_of_an_impossible_size_is_read(tmp_path: Path, size: float) -> None:
    source = encoded("a.flv", "libmp3lame", 44_100)
    path = patched(tmp_path, source, (b"filesize", 9, struct.pack(">d", size)))
    assert len(read(path)[0]) == pytest.approx(5.46 * RATE_HZ, abs=400)


def test_what_a_camera_appends_to_an_mp4_is_no_damage(tmp_path: Path) -> None:
    path = encoded("a.mp4", "aac")(tmp_path)
    path.write_bytes(path.read_bytes() + b"SEFHe\0\0\0" * 40)
    assert read(path)[1] == []


@pytest.mark.parametrize("notes", [b"ID3\4\0", b"APETAGEX", b"LYRICSBEGIN", b"\0TAG"])
def test_notes_behind_a_plain_file_are_no_sound(tmp_path: Path, notes: bytes) -> None:
    path = plain("wav", "WAV", "PCM_16")(tmp_path)
    path.write_bytes(path.read_bytes() + notes + bytes(range(256)) * 80)
    samples, (warning,) = read(path)
    assert len(samples) == len(SIX_S)
    assert "bytes of notes (tags) follow its sound and are not read." in warning


def test_what_follows_a_file_and_cannot_be_read_is_damage(tmp_path: Path) -> None:
    path = encoded("a.tta", "tta", 44_100)(tmp_path)
    short = make(tmp_path / "b.tta", *tracks(SIX_S[:2000], codec="tta")).read_bytes()
    (tmp_path / "c.tta").write_bytes(path.read_bytes() + short)
    with pytest.raises(AudioError, match=r"bytes after 5\.\d\d s are not sound that can be"):
        read(tmp_path / "c.tta")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(AudioError, match=r"bytes after 5\.\d\d s are not sound that can be"):
        read(path)
    assert len(read(path, damaged="keep")[0]) == pytest.approx(5.46 * RATE_HZ, abs=400)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_no_block_that_an_ogg_lacks_is_missing_silently(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.tile(SIX_S, 3), RATE_HZ, format="OGG", subtype=subtype)
    data, whole = path.read_bytes(), len(read(path)[0])
    for at in range(5000, len(data) - 5000, 800):
        path.write_bytes(data[:at] + data[at + 4096 :])
        samples, warnings = read(path, damaged="keep")
        assert warnings or len(samples) > whole - 0.1 * RATE_HZ


@pytest.mark.parametrize("seconds", [3, 6])
def test_an_ogg_that_ends_between_two_pages_is_read_with_a_warning(
    tmp_path: Path, seconds: int
) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, SIX_S[: seconds * RATE_HZ], RATE_HZ, format="OGG")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"OggS")])
    samples, warnings = read(path)
    assert 0.3 * seconds < len(samples) / RATE_HZ < seconds
    assert warnings == [
        f"{path}: its end is not marked, so that it may have been cut off. "
        f"The {len(samples) / RATE_HZ:.2f} s that are there were read."
    ]


@pytest.mark.parametrize(
    ("form", "subtype", "channels", "endian"),
    [
        ("WAV", "PCM_16", 1, "FILE"),
        ("WAV", "PCM_24", 1, "BIG"),
        ("WAV", "PCM_U8", 1, "FILE"),
        ("WAVEX", "PCM_24", 1, "FILE"),
        ("WAVEX", "PCM_24", 2, "FILE"),
        ("RF64", "PCM_24", 1, "FILE"),
        ("W64", "PCM_16", 2, "FILE"),
        ("CAF", "PCM_24", 1, "FILE"),
    ],
)
def test_samples_that_take_more_bytes_than_they_have_are_not_read_as_noise(
    tmp_path: Path, form: str, subtype: str, channels: int, endian: str
) -> None:
    path = tmp_path / f"a.{form.lower()}"
    soundfile.write(path, np.stack([SIX_S] * channels, 1), RATE_HZ, subtype, endian, form)
    data = bytearray(path.read_bytes())
    sizes = (4 * channels * RATE_HZ, 4 * channels)
    if form == "CAF":
        at, fields = data.index(b"desc") + 12 + 16, struct.pack(">I", sizes[1])
    else:
        at = data.index(b"fmt ") + (24 if form == "W64" else 8) + 8
        fields = struct.pack(">IH" if endian == "BIG" else "<IH", *sizes)
    data[at : at + len(fields)] = fields
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"have \d+ bits, and take 32\. Export it again"):
        audio.read(path, RATE_HZ)
    if form == "CAF":
        return
    # If only one of the two numbers of a WAV says so, it is a mistake of the header.
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    if (form, subtype) == ("WAV", "PCM_24"):  # libsndfile would guess which of them is right
        with pytest.raises(AudioError, match="have 24 bits, and take 32"):
            audio.read(path, RATE_HZ)
    else:
        assert len(audio.read(path, RATE_HZ)) == len(SIX_S)


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize("bits", [24, 32])
def test_samples_that_take_fewer_bytes_than_they_have_are_not_read_as_noise(
    tmp_path: Path, bits: int, endian: str
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SIX_S, RATE_HZ, "PCM_16", endian)
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 8 + 14
    data[at : at + 2] = struct.pack(">H" if endian == "BIG" else "<H", bits)
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"have {bits} bits, and take 16\. Export it again"):
        audio.read(path, RATE_HZ)


def test_a_header_that_forgets_the_channels_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([SIX_S, -SIX_S / 2], 1), RATE_HZ, "PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 8 + 8
    data[at : at + 6] = struct.pack("<IH", 2 * RATE_HZ, 2)
    path.write_bytes(data)
    np.testing.assert_allclose(audio.read(path, RATE_HZ, "0"), SIX_S, atol=1e-4)


def test_sound_in_two_chunks_of_a_wav_is_warned_of(tmp_path: Path) -> None:
    path = plain("wav", "WAV")(tmp_path)
    whole = path.read_bytes()
    more = SIX_S[:8000].astype("<f4").tobytes()[:16_000]
    chunk = b"data" + struct.pack("<I", 16_000) + more
    path.write_bytes(whole[:4] + struct.pack("<I", len(whole) + 16_000) + whole[8:] + chunk)
    samples, warnings = read(path)
    assert len(samples) == 8000
    assert [text.partition(". ")[0] for text in warnings] == [
        f"{path}: its sound is in 2 chunks, and only the last is read: "
        "96,000 bytes of sound before it are not"
    ]


@pytest.mark.parametrize("suffix", ["ts", "aac", "ac3"])
@pytest.mark.parametrize(("before", "after"), [(2, 6), (6, 2), (1, 2)])
def test_a_broadcast_whose_channels_change_is_read_whole(
    tmp_path: Path, suffix: str, before: int, after: int
) -> None:
    sound, path = audio.read(SOUND, 48_000), tmp_path / f"a.{suffix}"
    codec, data = {"ac3": "ac3"}.get(suffix, "aac"), b""
    for count, start_s in ((before, 0.0), (after, len(sound) / 48_000)):
        track = SoundTrack(np.tile(sound, (count, 1)), 48_000, codec, start_s)
        data += make(path, track).read_bytes()
    path.write_bytes(data)
    samples, warnings = read(path)
    assert len(samples) / RATE_HZ == pytest.approx(2 * len(sound) / 48_000, abs=0.2)
    assert re.fullmatch(
        rf"{path}: has {after} channels, not {before}, after \d\.\d\d s: "
        "their mean is used there.",
        *warnings,
    )


def test_a_broadcast_whose_sample_rate_changes_says_where(tmp_path: Path) -> None:
    path, data = tmp_path / "a.aac", b""
    for rate_hz in (48_000, 24_000):
        data += make(path, SoundTrack(audio.read(SOUND, rate_hz), rate_hz)).read_bytes()
    path.write_bytes(data)
    with pytest.raises(
        AudioError,
        match=r"damaged after \d\.\d\d s .*sample rate, 24000 Hz, there\). Split it there",
    ):
        read(path)
    advice = r"Split it there with an audio editor, or take what can be read with --damaged keep\."
    with pytest.raises(AudioError, match=advice):
        list(audio.Reader(path, advice=audio.MIXTURE_ADVICE))
    _, (warning,) = read(path, damaged="keep")
    assert "more places" not in warning


def test_an_ogg_that_goes_on_in_another_codec_says_where(tmp_path: Path) -> None:
    one, two = (joined(tmp_path, suffix, **layout) for suffix, layout in JOINED[:2])
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(
        AudioError, match=r"after 6\.0\d s \(its sound is of another kind there\)\. Split it there"
    ):
        read(one)


@pytest.mark.parametrize(("name", "codec", "rate_hz"), [("a.ac3", "ac3", 48_000)])
@pytest.mark.parametrize("before", [b"\n", bytes(5000)])
def test_bare_frames_may_begin_with_something_else(
    tmp_path: Path, name: str, codec: str, rate_hz: int, before: bytes
) -> None:
    path = encoded(name, codec, rate_hz)(tmp_path)
    whole = len(read(path)[0])
    path.write_bytes(before + path.read_bytes())
    samples, warnings = read(path)
    assert len(samples) == pytest.approx(whole, abs=300)
    assert len(warnings) < 2
    path.write_bytes(path.read_bytes()[len(before) + 1000 :])
    samples, (warning,) = read(path)
    assert len(samples) == pytest.approx(whole, abs=1200)
    assert "does not begin with a whole frame: it may have been cut off." in warning


def test_zeros_in_the_place_of_an_mp3s_beginning_are_warned_of(tmp_path: Path) -> None:
    path = encoded("a.mp3", "libmp3lame")(tmp_path)
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])
    samples, warnings = read(path)
    assert len(samples) < 5.8 * RATE_HZ
    assert re.search(r"its first [\d,]+ bytes are not sound\.", warnings[0])


UNFINISHED = [
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAVEX", "FLOAT"),
    ("rf64", "RF64", "PCM_16"),
    ("aiff", "AIFF", "PCM_24"),
    ("au", "AU", "PCM_16"),
]


@pytest.mark.parametrize("announced", [0, 16_000])
@pytest.mark.parametrize(("suffix", "container", "subtype"), UNFINISHED)
def test_an_unfinished_recording_is_read_to_its_end(
    tmp_path: Path, suffix: str, container: str, subtype: str, announced: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    sound, files = np.stack([SIX_S, -SIX_S / 2]), []
    for length in (announced, len(SIX_S)):
        soundfile.write(path, sound[:, :length].T, RATE_HZ, format=container, subtype=subtype)
        files.append(path.read_bytes())
    before, now = files
    frame_bytes = (len(now) - len(before)) // (len(SIX_S) - announced)
    head = len(before) - announced * frame_bytes
    path.write_bytes(before[:head] + now[head:])
    samples, (warning,) = read(path, channel="all")
    assert samples.shape == sound.shape
    np.testing.assert_allclose(samples, sound, atol=1e-4)
    announced_s, more_s = announced / RATE_HZ, 6 - announced / RATE_HZ
    expected = f"its header announces {announced_s:.2f} s, but {more_s:.2f} s more follow"
    assert expected in warning
    assert audio.probe(path).frames == len(SIX_S)


def patched(folder: Path, source: Callable[[Path], Path], *edits: tuple[bytes, int, bytes]) -> Path:
    """A file with other bytes at some distance after some of its own."""
    path = source(folder)
    data = bytearray(path.read_bytes())
    for mark, distance, value in edits:
        at = data.index(mark) + distance
        data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def plain(suffix: str, container: str, subtype: str | None = None) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        soundfile.write(folder / f"a.{suffix}", SIX_S, RATE_HZ, format=container, subtype=subtype)
        return folder / f"a.{suffix}"

    return made


NO_LENGTH = [
    (plain("wav", "WAV"), (b"data", 4, b"\xff" * 4)),
    (plain("wav", "WAV"), (b"RIFF", 4, struct.pack("<I", 96_044))),  # 8 too many
    (plain("wav", "WAV", "GSM610"), (b"RIFF", 4, bytes(4)), (b"data", 4, bytes(4))),
    (plain("wav", "WAV", "IMA_ADPCM"), (b"RIFF", 4, b"\xff" * 4), (b"data", 4, b"\xff" * 4)),
    (plain("wav", "WAV", "GSM610"), (b"data", 4, struct.pack("<I", 6500))),
    (plain("wav", "WAV", "IMA_ADPCM"), (b"data", 4, struct.pack("<I", 8192))),
    (plain("caf", "CAF"), (b"data", 4, b"\xff" * 8)),
    (plain("w64", "W64"), (b"data", 16, bytes(8))),
    (plain("aiff", "AIFF"), (b"SSND", 4, bytes.fromhex("7f000008"))),  # as SoX writes to a pipe
    (plain("au", "AU"), (b".snd", 8, b"\xff" * 4)),
    (plain("rf64", "RF64"), (b"ds64", 8, bytes(24))),
    (plain("flac", "FLAC"), (b"fLaC", 22, bytes(4))),
]


@pytest.mark.parametrize(("source", "edits"), [(row[0], row[1:]) for row in NO_LENGTH])
def test_a_header_without_a_length_is_read_to_the_end(
    tmp_path: Path, source: Callable[[Path], Path], edits: tuple[tuple[bytes, int, bytes], ...]
) -> None:
    coded = soundfile.info(source(tmp_path)).subtype.endswith(("ADPCM", "GSM610"))
    path = patched(tmp_path, source, *edits)
    assert len(read(path)[0]) == pytest.approx(len(SIX_S), abs=700 if coded else 0)


def test_chunks_after_the_samples_are_no_sound(tmp_path: Path) -> None:
    for container, order in (("WAV", "little"), ("AIFF", "big")):
        path = tmp_path / f"a.{container.lower()}"
        soundfile.write(path, SIX_S, RATE_HZ, format=container)
        data = path.read_bytes()
        note = b"LIST" + (5000).to_bytes(4, order) + bytes(5000)  # type: ignore[arg-type]
        path.write_bytes(data + note)
        samples, warnings = read(path)
        assert (len(samples), warnings) == (len(SIX_S), [])


# --- damaged files -----------------------------------------------------------------------------


def flac(folder: Path) -> Path:
    audio.write(folder / "a.flac", SIX_S, RATE_HZ)
    return folder / "a.flac"


def encoded(
    name: str, codec: str, rate_hz: int = RATE_HZ, **options: str
) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        sound = np.repeat(SIX_S, rate_hz // RATE_HZ)
        track = SoundTrack(sound, rate_hz, codec, options={"b": "64000"})
        return make(folder / name, track, options=options)

    return made


def film(folder: Path) -> Path:
    return make(folder / "a.mkv", *tracks(SIX_S), picture_s=6)


DAMAGED = [
    (flac, cut, r"damaged after (3\.0[47]|2\.05) s", 3.0, 3.8),
    (flac, hit, r"damaged after (3\.0[47]|2\.05) s", 5.8, 6.0),
    (plain("ogg", "OGG"), cut, r"truncated after \d\.\d\d s: its last Ogg page", 1.5, 4.0),
    (plain("ogg", "OGG"), hit, r"damaged after \d\.\d\d s \(CRC mismatch", 2.0, 6.1),
    (plain("mp3", "MP3"), hit, r"damaged after 3\.\d\d s", 5.5, 6.1),
    (plain("mp3", "MP3"), cut, r"truncated: 3\.\d\d of 6\.\d\d s", 3.0, 4.0),
    (plain("wav", "WAV"), cut, r"truncated: 3\.\d\d of 6\.00 s", 3.5, 3.7),
    (plain("aiff", "AIFF"), cut, r"truncated", 3.5, 3.7),
    (plain("w64", "W64"), cut, r"truncated: 3\.\d\d of 6\.00 s", 3.5, 3.7),
    (plain("caf", "CAF"), cut, r"truncated", 3.3, 3.7),
    (plain("au", "AU"), cut, r"truncated", 3.4, 3.7),
    (plain("g.wav", "WAV", "G721_32"), cut, r"truncated: 3\.\d\d of 6\.0\d s", 3.4, 3.7),
    (plain("sph", "NIST"), cut, r"truncated: 3\.\d\d of 6\.00 s", 3.5, 3.7),
    (plain("svx", "SVX"), cut, r"truncated: 3\.\d\d of 6\.00 s", 3.5, 3.7),
    (encoded("b.tta", "tta"), between_packets, r"truncated: \d\.\d\d of 6\.00 s", 3.0, 5.0),
    (encoded("b.flac", "flac"), between_packets, r"truncated: 3\.\d\d of 6\.00 s", 3.0, 4.0),
    (encoded("b.mp3", "libmp3lame"), between_packets, r"truncated: 3\.\d\d of 6\.00 s", 3.0, 4.0),
    (plain("rf64", "RF64"), cut, r"truncated", 3.5, 3.7),
    (encoded("a.flv", "libmp3lame", 44_100), cut, r"truncated", 3.0, 3.8),
    (encoded("a.m2ts", "mp2", 16_000, mpegts_m2ts_mode="1"), cut, r"last packet is not", 3.0, 3.9),
    (encoded("a.tta", "tta", 44_100), cut, r"damaged after 3", 3.0, 3.8),
    (encoded("a.ts", "mp2", 16_000), cut, r"after 3\.\d\d s", 3.0, 3.8),
    (encoded("a.ts", "mp2", 16_000), blank, r"3\.\d\d s \(what is there cannot", 3.0, 3.8),
    (encoded("a.ac3", "ac3", 48_000), blank, r"after 3\.\d\d s", 3.0, 3.8),
    (plain("mp3", "MP3"), blank, r"3\.\d\d of 6\.\d\d s", 3.0, 4.0),
    (encoded("a.m4a", "aac", movflags="+faststart"), cut, r"damaged after 3\.\d\d s \(", 3.0, 3.9),
    (encoded("a.m4a", "aac", movflags="+faststart"), hit, r"damaged after 3\.\d\d s \(", 5.9, 6.1),
    (encoded("a.mkv", "aac"), cut, r"damaged after 3\.\d\d s \(File ended prem", 3.0, 4.0),
    (encoded("a.webm", "libopus", 48_000), hit, r"damaged after \d\.\d\d s", 5.5, 6.1),
    (encoded("a.avi", "pcm_s16le"), cut, r"damaged after 3", 3.0, 4.0),
    (plain("ogg", "OGG"), hit_early, r"damaged at its beginning or end \(CRC mismatch", 2.0, 5.0),
    (encoded("a.webm", "libopus", 48_000), hole, r"damaged after \d\.\d\d s \(", 5.5, 6.1),
    (film, hole, r"damaged after \d\.\d\d s \(", 5.5, 6.1),
    (encoded("a.mp4", "libopus", 48_000), hole, r"s \(zeros are in the place of", 5.5, 6.1),
    (encoded("a.wma", "wmav2", 16_000), hole, r"damaged after \d\.\d\d s \(", 5.5, 6.2),
    (encoded("a.rm", "ac3", 48_000), between_packets, r"truncated: 3\.\d\d of 6\.\d", 3.0, 3.9),
    (encoded("a.aac", "aac"), hit, r"damaged after 3\.\d\d s \(", 5.5, 6.2),
    (encoded("a.ac3", "ac3", 48_000), hit, r"damaged after 3\.\d\d s \(", 5.5, 6.2),
    (encoded("a.wma", "wmav2", 16_000), blank, r"3\.\d\d of 6\.\d\d s", 3.0, 4.0),
    (encoded("a.wma", "wmav2", 16_000), hit, r"damaged after 3\.\d\d s \(", 5.5, 6.2),
]


@pytest.mark.parametrize(("whole", "damage", "message", "least_s", "most_s"), DAMAGED)
def test_damage_is_said_and_what_is_left_can_be_kept(
    tmp_path: Path,
    whole: Callable[[Path], Path],
    damage: Callable[..., Path],
    message: str,
    least_s: float,
    most_s: float,
) -> None:
    path = damage(whole(tmp_path), 0.6)
    with pytest.raises(AudioError, match=message) as caught:
        read(path)
    assert re.fullmatch(rf"{re.escape(str(path))}: [ -~]+\. Copy it again\.", str(caught.value))
    with pytest.raises(AudioError, match=r"or take what can be read with --damaged keep\.$"):
        list(audio.Reader(path, advice=audio.MIXTURE_ADVICE))
    samples, warnings = read(path, damaged="keep")
    assert least_s <= len(samples) / RATE_HZ <= most_s
    assert len(warnings) == 1
    assert re.search(message, warnings[0])
    first = samples[: int(2.0 * RATE_HZ)]
    if path.suffix in (".flac", ".wav", ".aiff", ".w64", ".caf", ".au", ".rf64", ".avi"):
        np.testing.assert_allclose(
            first, SIX_S[: len(first)], atol=0.1 if path.name == "a.g.wav" else 1e-4
        )


def test_a_cover_picture_hides_no_damage(tmp_path: Path) -> None:
    path = flac(tmp_path)
    data = path.read_bytes()
    picture = b"\0\0\0\3" + (9).to_bytes(4, "big") + b"image/png" + bytes(4 + 16) + bytes(4)
    block = bytes([6]) + len(picture).to_bytes(3, "big") + picture
    path.write_bytes(data[:42] + block + data[42:])  # after the first block
    assert read(path)[1] == []
    for start in range(len(path.read_bytes()) - 3000, 100, -1):
        if path.read_bytes()[start : start + 2] == b"\xff\xf8":  # a frame begins here
            break
    path.write_bytes(path.read_bytes()[:start])
    with pytest.raises(AudioError, match=r"truncated: 5\.\d\d of 6\.00 s can be read"):
        read(path)


def test_an_mp3_that_ends_in_the_middle_of_a_frame_is_warned_of(tmp_path: Path) -> None:
    track = SoundTrack(SIX_S, RATE_HZ, "libmp3lame", options={"b": "32000"})
    path = cut(make(tmp_path / "a.mp3", track, options={"write_xing": "0"}), 0.6)
    _, (warning,) = read(path)
    assert "ends in the middle of a frame, after 3.74 s: it may have been cut off" in warning
    data = path.read_bytes()
    end = data.index(b"\xff\xe3") + 288 * 40
    path.write_bytes(data[:end] + b"TAG" + bytes(125))  # notes are no damage
    assert read(path)[1] == []


def no_moov(folder: Path) -> Path:
    return cut(encoded("a.mp4", "aac")(folder), 0.5)


def half_a_moov(folder: Path) -> Path:
    path = encoded("a.mp4", "aac")(folder)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") + 250])
    return path


def mute(folder: Path) -> Path:
    return make(folder / "a.mp4", picture_s=1)


def noise(folder: Path) -> Path:
    (folder / "a.m4a").write_bytes(np.random.default_rng(0).bytes(20_000))
    return folder / "a.m4a"


def encrypted(folder: Path) -> Path:
    key = {"encryption_key": "0f" * 16, "encryption_kid": "f0" * 16}
    return encoded("a.mp4", "aac", encryption_scheme="cenc-aes-ctr", **key)(folder)


def integers_of_64_bits(folder: Path) -> Path:
    return patched(folder, plain("wav", "WAV"), (b"fmt ", 22, b"\x40"), (b"fmt ", 20, b"\x08"))


def no_channels(folder: Path) -> Path:
    return patched(folder, plain("wav", "WAV"), (b"fmt ", 10, b"\0"))


def wrong_rate(hertz: int) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        soundfile.write(folder / "a.wav", SIX_S[:16_000], hertz)
        return folder / "a.wav"

    return made


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (no_moov, r"truncated: its index \(moov atom\) is missing"),
        (
            half_a_moov,
            r"truncated: [\d,]+ bytes are missing at its end, so that nothing can be read",
        ),
        (mute, "has no sound track"),
        (noise, "not a readable sound file"),
        (encrypted, r"its sound is encrypted \(DRM\)\. Use a copy that is not\."),
        (integers_of_64_bits, "its sound is of another kind there"),
        (no_channels, "its header says 0 channels, but only 1 to 256 are read"),
        (wrong_rate(1), "its header says 1 Hz, but only 1 kHz to 1 MHz are read"),
        (wrong_rate(999), "its header says 999 Hz"),
        (wrong_rate(2**31 - 1), "its header says 2147483647 Hz"),
    ],
)
def test_a_bad_file_is_named_with_its_cure(
    tmp_path: Path, bad: Callable[[Path], Path], message: str
) -> None:
    path = bad(tmp_path)
    with pytest.raises(AudioError, match=message) as caught:
        audio.read(path, RATE_HZ)
    assert re.fullmatch(rf"{re.escape(str(path))}: [ -~]+", str(caught.value))


def late_matroska(folder: Path) -> Path:
    path = encoded("a.mkv", "pcm_s16le")(folder)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x1f\x43\xb6\x75")  # the last cluster, whose time is two bytes
    at = data.index(b"\xe7\x82", at) + 2
    data[at : at + 2] = b"\xff\xff"
    path.write_bytes(data)
    return path


def late_wma(folder: Path) -> Path:
    path = encoded("a.wma", "wmav2", 16_000)(folder)
    data = bytearray(path.read_bytes())
    last_ms = struct.pack("<I", 9084)  # 6 s, and 3.1 s that a player reads ahead
    at = data.rindex(last_ms)
    data[at : at + 4] = struct.pack("<I", 33_500_000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("late", "gap"), [(late_matroska, r"6\d"), (late_wma, "33491")], ids=["mkv", "wma"]
)
def test_a_damaged_time_stamp_does_not_become_hours_of_silence(
    tmp_path: Path, late: Callable[[Path], Path], gap: str
) -> None:
    path = late(tmp_path)
    with pytest.raises(
        AudioError, match=rf"a time stamp leaves a gap of {gap} s, more than the file"
    ):
        read(path)
    samples, (warning,) = read(path, damaged="keep")
    assert len(samples) == pytest.approx(len(SIX_S), abs=200)
    assert "a time stamp leaves a gap" in warning


# --- hostile files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["two words.m4a", "a:b.m4a", "http:x.m4a", "-i.m4a", "%03d.m4a", "é\udcff'\".m4a", "a|b.m4a"],
)
def test_a_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    encoded("made.m4a", "aac")(tmp_path).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(audio.read(name, RATE_HZ)) > 40_000


PLAYLISTS = {
    "p.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
    "p.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
    "p.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n",
    "p.ffconcat": "ffconcat version 1.0\nfile {other}\n",
    "q.mp3": "concat:{other}|{other}",
    "p.xml": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="0" bandwidth="9">'
    "<BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "p.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_names_others_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    other = encoded("other.ts", "mp2", 16_000)(tmp_path)
    monkeypatch.chdir(tmp_path)
    for address in (other.name, str(other), f"file:{other}"):
        (tmp_path / name).write_text(PLAYLISTS[name].format(other=address))
        with pytest.raises(AudioError, match="not a readable sound file"):
            audio.read(tmp_path / name, RATE_HZ)


def test_devices_and_endless_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    for path in (tmp_path / "a.wav", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(AudioError, match="is not a regular file"):
            audio.probe(path)
    (tmp_path / "link.wav").symlink_to("/dev/zero")
    with pytest.raises(AudioError, match="is not a regular file"):
        audio.read(tmp_path / "link.wav", RATE_HZ)


@pytest.mark.parametrize("shape", [(2 * RATE_HZ, 1), (RATE_HZ, 2)])
def test_a_file_that_is_replaced_by_one_of_another_shape_is_not_read_as_the_first(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SIX_S, RATE_HZ)
    reader = audio.Reader(path)
    reader.check()
    soundfile.write(path, np.stack([SIX_S] * shape[1], 1), shape[0])
    with pytest.raises(AudioError, match=r"a\.wav: was replaced meanwhile\. Run the command again"):
        list(reader)


def test_a_file_that_grows_while_it_is_read_has_an_end(tmp_path: Path) -> None:
    path = encoded("a.aac", "aac")(tmp_path)
    data, blocks = path.read_bytes(), 0
    with path.open("ab") as file:
        for _ in audio.Reader(path, 1000):
            blocks += 1
            file.write(data * 10)
            file.flush()
            assert blocks < 10
