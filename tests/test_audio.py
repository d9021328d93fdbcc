"""Sound files in and out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mcspex_cli import audio, files
from mcspex_cli.errors import AudioError, NonFiniteError, OutputError
from tests.conftest import buzz

FORMATS = [
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "PCM_32"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "DOUBLE"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAV", "ALAW"),
    ("wav", "WAV", "GSM610"),
    ("wav", "WAV", "MS_ADPCM"),
    ("wav", "WAV", "IMA_ADPCM"),
    ("sph", "NIST", "PCM_16"),
    ("wav", "RF64", "PCM_16"),
    ("w64", "W64", "PCM_16"),
    ("aiff", "AIFF", "PCM_16"),
    ("caf", "CAF", "PCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
]


def tone(rate_hz: int, frequency_hz: float, seconds: float = 1.0) -> audio.Samples:
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * t)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "container", "subtype"), FORMATS)
def test_every_format_is_read_as_what_it_says(
    tmp_path: Path, suffix: str, container: str, subtype: str
) -> None:
    path, rate_hz = tmp_path / f"a.{suffix}", 48000
    sound = tone(rate_hz, 440)
    soundfile.write(path, sound, rate_hz, format=container, subtype=subtype)
    read = audio.read(path, rate_hz)
    padded = {"MPEG_LAYER_III": 2500, "GSM610": 320, "MS_ADPCM": 1500, "IMA_ADPCM": 1500}
    assert abs(len(read) - len(sound)) <= padded.get(subtype, 0)
    spectrum = np.abs(np.fft.rfft(read * np.hanning(len(read))))
    assert spectrum.argmax() * rate_hz / len(read) == pytest.approx(440, abs=2)
    assert np.abs(read[5000:40000]).max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_mixed_chosen_or_kept(tmp_path: Path) -> None:
    left, right = tone(8000, 300), tone(8000, 700)
    audio.write(tmp_path / "a.wav", np.stack([left, right]), 8000, "FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav", 8000), (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav", 8000, "1"), right)
    np.testing.assert_array_equal(
        audio.read(tmp_path / "a.wav", 8000, "all"), np.stack([left, right])
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_only_the_channels_that_are_used_have_to_be_sound(tmp_path: Path, bad: float) -> None:
    good = tone(8000, 300)
    broken = np.full_like(good, bad)
    soundfile.write(tmp_path / "a.wav", np.stack([good, broken, broken]).T, 8000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav", 8000, "0"), good)
    for channel in ("1", "mix", "all"):
        with pytest.raises(NonFiniteError, match=r"sample at 0.00 s"):
            audio.read(tmp_path / "a.wav", 8000, channel)


@pytest.mark.parametrize("channel", ["2", "-1", "left"])
def test_a_channel_that_is_not_there_is_named(tmp_path: Path, channel: str) -> None:
    audio.write(tmp_path / "a.wav", np.stack([tone(8000, 300)] * 2), 8000)
    with pytest.raises(AudioError, match=f"has no channel {channel}. It has 2"):
        audio.read(tmp_path / "a.wav", 8000, channel)


@pytest.mark.parametrize("rate_hz", [11025, 16000, 44100, 44101, 48000])
def test_resampling_keeps_time_and_refuses_aliases(tmp_path: Path, rate_hz: int) -> None:
    seconds = 12.3  # more than a block
    audio.write(tmp_path / "low.wav", tone(rate_hz, 1000, seconds), rate_hz, "FLOAT")
    low = audio.read(tmp_path / "low.wav", 8000)
    expected = tone(8000, 1000, seconds)
    length = min(len(low), len(expected))
    assert abs(len(low) - len(expected)) <= 1
    middle = slice(400, length - 400)
    assert np.abs(low[middle] - expected[middle]).max() < 1e-3
    audio.write(tmp_path / "high.wav", tone(rate_hz, 5000, seconds), rate_hz, "FLOAT")
    high = audio.read(tmp_path / "high.wav", 8000)
    assert np.sqrt(np.mean(high[400:-400] ** 2)) < 0.35 * 10 ** (-60 / 20)


def test_a_long_file_comes_in_blocks_that_join_to_it(tmp_path: Path) -> None:
    sound = buzz(120, 25)
    audio.write(tmp_path / "a.wav", sound, 8000, "FLOAT")
    reader = audio.Reader(tmp_path / "a.wav", 8000)
    blocks = list(reader)
    assert [b.shape for b in blocks] == [(1, 80000), (1, 80000), (1, 40000)]
    assert reader.frames == len(sound)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[0], sound)


@pytest.mark.parametrize(
    ("suffix", "subtype", "container", "written"),
    [
        ("wav", "PCM_16", "WAV", "PCM_16"),
        ("wav", "PCM_24", "WAV", "PCM_24"),
        ("wav", "FLOAT", "WAV", "FLOAT"),
        ("flac", "PCM_24", "FLAC", "PCM_24"),
        ("ogg", "PCM_16", "OGG", "VORBIS"),
    ],
)
def test_the_suffix_and_the_subtype_decide_what_is_written(
    tmp_path: Path, suffix: str, subtype: str, container: str, written: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    audio.write(path, tone(8000, 300), 8000, subtype)
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.frames) == (container, written, 8000)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "subtype", "message"),
    [
        ("a.mp4", "PCM_16", r"cannot write this format. End the name in .wav, .flac"),
        ("a.wav", "PCM_99", "WAV has no PCM_99 samples. Use --subtype PCM_16 or PCM_24 or FLOAT"),
        ("a.flac", "FLOAT", "FLAC has no FLOAT samples. Use --subtype PCM_16 or PCM_24"),
        ("a.ogg", "PCM_24", "OGG has no PCM_24 samples. Leave --subtype out, or write WAV"),
        ("a.ogg", "PCM_16", "OGG holds at most 192000 Hz, not 250000. Write WAV"),
        ("a.flac", "PCM_16", "FLAC cannot hold 250001 Hz. Write WAV"),
        ("none/a.wav", "PCM_16", r"cannot be written: its folder does not exist"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, name: str, subtype: str, message: str
) -> None:
    rate_hz = 250_001 if "250001" in message else 250_000
    with pytest.raises(OutputError, match=message):
        audio.write(tmp_path / name, tone(8000, 300), rate_hz, subtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0.wav", "a\ud800.wav"])
def test_a_name_that_no_file_can_have_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(AudioError, match="no file can have this name"):
        audio.write(tmp_path / name, tone(8000, 300), 8000)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OutputError, match="cannot make this folder"):
        files.make_folders(tmp_path / "a" / "b")


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, tone(8000, 300), 8000)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), audio.open_writer(path, 8000, 1, "PCM_16") as writer:
        writer.write(np.zeros((1, 100), np.float32))
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def make_bad(folder: Path, kind: str) -> Path:
    """One of the files that must be refused."""
    path = folder / f"{kind}.wav"
    sound = buzz(120, 2)
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not sound\n" * 100)
    elif kind == "no-samples":
        audio.write(path, sound[:0], 8000)
    elif kind == "truncated":
        audio.write(path, sound, 8000)
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "nan":
        sound[8000] = np.nan
        soundfile.write(path, sound, 8000, "FLOAT")
    elif kind == "inf":
        sound[4000] = np.inf
        soundfile.write(path, sound, 8000, "FLOAT")
    elif kind == "loud":
        sound[4000] = 1e13
        soundfile.write(path, sound, 8000, "FLOAT")
    elif kind == "directory":
        path.mkdir()
    return path


BAD = [
    ("missing", "no such file or folder"),
    ("empty", r"the file is empty \(0 bytes\)"),
    ("text", "not a readable sound file"),
    ("no-samples", "holds no samples"),
    ("truncated", r"truncated: 1\.25 of 2\.00 s are there\. Copy it again"),
    ("nan", r"NaN or infinite sample at 1.00 s"),
    ("inf", r"NaN or infinite sample at 0.50 s"),
    ("loud", r"impossibly loud sample at 0.50 s"),
    ("directory", "is a directory"),
]


@pytest.mark.parametrize(("kind", "message"), BAD)
def test_a_bad_file_is_named_with_its_cure(tmp_path: Path, kind: str, message: str) -> None:
    path = make_bad(tmp_path, kind)
    with pytest.raises(AudioError, match=message) as caught:
        audio.read(path, 8000)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_wav_of_more_than_4_gib_is_an_rf64_which_is_the_same_for_more(tmp_path: Path) -> None:
    sound = np.zeros((2, 100), np.float32)
    for name, frames, container in (("a.wav", 2**29, "WAV"), ("b.wav", 2**30, "RF64")):
        with audio.open_writer(tmp_path / name, 8000, 2, "PCM_16", frames) as writer:
            writer.write(sound)
        assert soundfile.info(tmp_path / name).format == container
        assert audio.read(tmp_path / name, 8000, "all").shape == sound.shape


def test_channels_that_a_format_cannot_hold_are_refused_at_once(tmp_path: Path) -> None:
    for form in audio.FORMATS.values():
        with pytest.raises(OutputError, match=r"holds at most \d+ channels|cannot be written"):
            audio.check_format(tmp_path / f"a{form.suffix}", "PCM_16", 8000, form.most_channels + 1)
        path = tmp_path / f"b{form.suffix}"
        audio.write(path, np.zeros((form.most_channels, 300), np.float32), 8000)
        assert soundfile.info(path).channels == form.most_channels


def test_what_is_written_is_noticed_in_folders(tmp_path: Path) -> None:
    paths = [tmp_path / f"a{suffix}" for suffix in audio.FORMATS]
    for path in paths:
        audio.write(path, buzz(120, 1), 8000)
    assert sorted(files.find(tmp_path)) == sorted(paths)


def test_hours_of_ogg_are_written_in_pieces(tmp_path: Path) -> None:
    sound = np.tile(buzz(120, 10), 80)
    audio.write(tmp_path / "a.ogg", sound, 8000)
    assert soundfile.info(tmp_path / "a.ogg").frames == len(sound) == 6_400_000


@pytest.mark.parametrize("suffix", audio.FORMATS)
def test_no_samples_are_a_file_that_opens_or_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    if suffix == ".flac":  # libsndfile would leave a file of no bytes
        with pytest.raises(OutputError, match=r"empty.flac: cannot be written: .* another format"):
            audio.write(path, np.zeros(0, np.float32), 8000)
        assert not list(tmp_path.iterdir())
    else:
        audio.write(path, np.zeros(0, np.float32), 8000)
        assert soundfile.info(path).frames == 0


def test_a_place_taken_by_a_directory_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with (
        pytest.raises(OutputError, match=r"cannot be written: it is a folder"),
        audio.open_writer(path, 8000, 1, "PCM_16") as writer,
    ):
        writer.write(np.zeros((1, 100), np.float32))
        path.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_an_unreadable_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, buzz(120, 1), 8000)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(AudioError, match="cannot be read"):
        audio.probe(path)


@pytest.mark.skipif(os.name == "nt", reason="needs limits on files")
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path, name: str) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sound = np.random.default_rng(0).normal(0, 0.2, 400_000).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=rf"{name}: cannot be written: it is larger than the"):
            audio.write(tmp_path / name, sound, 8000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (np.zeros((20, 2), np.float32), ValueError, r"transpose those of shape \(20, 2\)"),
        (np.zeros((1, 2, 3), np.float32), ValueError, r"not of shape \(1, 2, 3\)"),
        (3 * tone(8000, 300), ValueError, r"reach 1.5 and would be clipped; turn them down, or"),
        (np.zeros(100, np.int16), TypeError, "floats in -1..1, not int16"),
        (np.zeros(100, np.complex64), TypeError, "not complex64"),
        (np.ma.masked_array(np.zeros(100), True), TypeError, "are a masked array; fill what"),
        (np.array([0, np.nan], np.float32), NonFiniteError, "NaN or infinite samples are not"),
        (np.array([0, np.inf]), NonFiniteError, "NaN or infinite samples are not written"),
        (np.full(100, 1e300), NonFiniteError, "NaN or infinite samples are not written"),
    ],
)
def test_arrays_that_are_no_sound_are_not_written(
    tmp_path: Path, samples: np.ndarray, error: type[Exception], message: str
) -> None:
    subtype = "FLOAT" if np.abs(samples).max() > 10 else "PCM_16"
    with pytest.raises(error, match=message):
        audio.write(tmp_path / "a.wav", samples, 8000, subtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.longdouble])
def test_floats_of_any_precision_are_written(tmp_path: Path, kind: type) -> None:
    audio.write(tmp_path / "a.wav", tone(8000, 300).astype(kind), 8000.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav", 8000), tone(8000, 300), atol=1e-3)
    with pytest.raises(ValueError, match=r"a whole number of Hz, not 8000\.5"):
        audio.write(tmp_path / "a.wav", tone(8000, 300), 8000.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", [{"channel": 1}, {"channel": None}, {"track": 2}])
def test_channels_and_tracks_are_text(tmp_path: Path, argument: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r'channel and track are text, such as "1", not'):
        audio.read(tmp_path / "a.wav", 8000, **argument)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate_hz", [0, -1, 999, 1_000_001, float("nan")])
def test_rates_that_nobody_uses_are_refused(tmp_path: Path, rate_hz: int) -> None:
    with pytest.raises(ValueError, match="a sample rate is from 1000 to 1000000 Hz"):
        audio.write(tmp_path / "a.wav", tone(8000, 300), rate_hz)
    with pytest.raises(ValueError, match="a sample rate is from 1000 to 1000000 Hz"):
        audio.Reader(tmp_path / "a.wav", rate_hz)


def test_channels_that_cancel_each_other_are_named(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    left, path = tone(8000, 300), tmp_path / "a.wav"
    audio.write(path, np.stack([left, -left]), 8000)
    with pytest.raises(AudioError, match=r"cancel each other out in the mix\. Export one of"):
        audio.read(path, 8000)
    with pytest.raises(AudioError, match=r"Choose one of them with --channel 0\.$"):
        list(audio.Reader(path, advice=audio.MIXTURE_ADVICE))
    np.testing.assert_allclose(audio.read(path, 8000, "0"), left, atol=1e-4)
    audio.write(path, np.stack([left, -0.95 * left]), 8000)
    audio.read(path, 8000)
    (warning,) = warnings()
    assert " nearly cancel each other out in the mix, which is 32 dB below" in warning
    audio.write(path, np.stack([left + 0.4, 0.4 - left]), 8000)
    with pytest.raises(AudioError, match="cancel each other out"):  # an offset is not heard
        audio.read(path, 8000)
    for right in (left, 0 * left, tone(8000, 700), -0.5 * left):
        audio.write(path, np.stack([left, right]), 8000)
        audio.read(path, 8000)
        assert warnings() == []
    audio.write(path, np.zeros((2, 8000), np.float32), 8000)
    assert not audio.read(path, 8000).any()
    assert warnings() == []


def test_the_table_of_formats_says_what_holds_loud_samples(tmp_path: Path) -> None:
    for form in audio.FORMATS.values():
        for subtype in form.subtypes:
            path = tmp_path / f"{subtype}{form.suffix}"
            soundfile.write(path, 4 * tone(8000, 300), 8000, subtype)
            holds = bool(np.abs(audio.read(path, 8000)).max() > 1.5)
            expected = audio.holds_over_full_scale(path, subtype)
            assert holds in ({True, False} if subtype == "VORBIS" else {expected})
            with nullcontext() if expected else pytest.raises(ValueError, match="would be clipped"):
                audio.write(path, 4 * tone(8000, 300), 8000, subtype)
    assert audio.SUBTYPES == ("PCM_16", "PCM_24", "FLOAT")
