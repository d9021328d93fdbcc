"""What ffmpeg decodes for us, how it fails, and what it must not be talked into."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mcspex_cli import audio, decoding, files
from mcspex_cli.__main__ import main
from mcspex_cli.errors import AudioError
from tests.conftest import EXAMPLES, RATE_HZ, ROOT, buzz

needs_ffmpeg = pytest.mark.skipif(decoding.programs() is None, reason="ffmpeg is not installed")

SOUND = EXAMPLES / "mixture.flac"
PICTURES = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5")


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg to make a file; skip where it was built without an encoder for it."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown encoder" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr


def encoded(path: Path, *options: str) -> Path:
    """The example mixture in another container."""
    ffmpeg("-i", SOUND, *options, path)
    return path


def with_picture(path: Path, *options: str) -> Path:
    """The same as a video."""
    ffmpeg(*PICTURES, "-i", SOUND, "-shortest", *options, path)
    return path


def cut(path: Path, part: float) -> Path:
    """Leave only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: round(part * len(data))])
    return path


def fake(folder: Path, ffmpeg_does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script before the real ffmpeg."""
    script = folder / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{ffmpeg_does}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


def children() -> set[str]:
    """The processes that this one has, by id."""
    task = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return set(task.read_text().split())


CONTAINERS = [
    ("a.m4a", ("-c:a", "aac"), 8000),
    ("a.mp4", ("-c:a", "aac", "-movflags", "+faststart"), 8000),
    ("a.m4a", ("-c:a", "alac"), 8000),
    ("a.mka", ("-c:a", "libvorbis"), 8000),
    ("a.webm", ("-c:a", "libopus"), 48000),
    ("a.aac", ("-c:a", "aac"), 8000),
    ("a.wma", ("-c:a", "wmav2", "-ar", "16000"), 16000),
    ("a.avi", ("-c:a", "pcm_s16le"), 8000),
    ("a.3gp", ("-c:a", "aac"), 8000),
    ("a.ac3", ("-c:a", "ac3", "-ar", "44100"), 44100),
]


@needs_ffmpeg
@pytest.mark.parametrize(("name", "options", "rate_hz"), CONTAINERS)
def test_containers_are_read_as_what_they_hold(
    tmp_path: Path, name: str, options: tuple[str, ...], rate_hz: int
) -> None:
    path = encoded(tmp_path / name, *options)
    info = audio.probe(path)
    assert (info.sample_rate_hz, info.channels) == (rate_hz, 1)
    truth = audio.read(SOUND, 8000)
    assert info.seconds == pytest.approx(len(truth) / 8000, abs=0.3)
    read = audio.read(path, 8000)
    size = 2**17
    spectra = [np.fft.rfft(sound, size) for sound in (read, truth)]
    fit = np.fft.irfft(spectra[0] * spectra[1].conj(), size)
    assert abs((fit.argmax() + size // 2) % size - size // 2) <= 1024  # some pad by a frame
    assert fit.max() / np.linalg.norm(read) / np.linalg.norm(truth) > 0.9


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi"])
def test_the_sound_of_a_video_is_read(tmp_path: Path, name: str) -> None:
    path = with_picture(
        tmp_path / name, "-c:v", "mpeg4", "-c:a", "pcm_s16le" if "v" in name[2:] else "aac"
    )
    assert len(audio.read(path, 8000)) == pytest.approx(len(audio.read(SOUND, 8000)), abs=2100)


@needs_ffmpeg
def test_lossless_sound_is_the_same_sample_for_sample(tmp_path: Path) -> None:
    stereo = np.stack([buzz(120, 25), buzz(190, 25, 1)])
    audio.write(tmp_path / "a.wav", stereo, 8000)
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", "alac", tmp_path / "a.m4a")
    plain, decoded = (audio.Reader(tmp_path / f"a.{s}", 8000, "all") for s in ("wav", "m4a"))
    blocks = list(decoded)
    assert [block.shape[1] for block in blocks] == [80000, 80000, 40000]
    np.testing.assert_array_equal(np.hstack(blocks), np.hstack(list(plain)))
    assert decoded.frames == plain.frames
    one = audio.read(tmp_path / "a.m4a", 8000, "1")
    np.testing.assert_allclose(one, stereo[1], atol=1e-4)
    with pytest.raises(AudioError, match="has no channel 2"):
        audio.read(tmp_path / "a.m4a", 8000, "2")


@needs_ffmpeg
def test_a_telephones_recording_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.amr"
    rng = np.random.default_rng(0)
    frames = (b"\x04" + rng.bytes(12) for _ in range(100))  # 4.75 kbit/s, 20 ms each
    path.write_bytes(b"#!AMR\n" + b"".join(frames))
    assert audio.probe(path).seconds == pytest.approx(2, abs=0.2)
    read = audio.read(path, 8000)
    assert len(read) == 16_000
    assert read.any()


@needs_ffmpeg
def test_a_second_track_and_cover_art_are_left_alone(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", buzz(120, 2), 8000)
    tracks = ("-map", "0:v", "-map", "1", "-map", "2", "-c:a", "pcm_s16le", "-t", "2")
    ffmpeg(*PICTURES, "-i", tmp_path / "a.wav", "-i", SOUND, *tracks, tmp_path / "a.mkv")
    read = audio.read(tmp_path / "a.mkv", 8000)
    np.testing.assert_array_equal(read, audio.read(tmp_path / "a.wav", 8000))


@needs_ffmpeg
def test_a_pause_in_the_time_stamps_is_silence(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", buzz(120, 4), 8000)
    drop = ("-af", "aselect='not(between(t,1,3))'", "-c:a", "pcm_s16le")
    ffmpeg("-i", tmp_path / "a.wav", *drop, tmp_path / "a.mkv")
    read = audio.read(tmp_path / "a.mkv", 8000)
    assert len(read) == pytest.approx(4 * 8000, abs=1024)
    assert not read[12_000:20_000].any()
    np.testing.assert_allclose(read[-4000:], buzz(120, 4)[-4000:], atol=1e-4)


@needs_ffmpeg
@pytest.mark.parametrize("options", [("-f", "webm", "-live", "1"), ("-f", "matroska")])
def test_a_container_without_a_length_is_measured(tmp_path: Path, options: tuple[str, ...]) -> None:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", SOUND, "-c:a", "libopus", *options, "-"]
    path = tmp_path / "a.webm"
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert audio.probe(path).seconds == pytest.approx(audio.probe(SOUND).seconds, abs=0.1)


@needs_ffmpeg
@pytest.mark.parametrize(
    "name",
    ["two words.m4a", "a:b.m4a", "http:x.m4a", "-i.m4a", "%03d.m4a", "é\udcff'\".m4a", "a|b.m4a"],
)
def test_a_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = encoded(tmp_path / "made.m4a")
    made.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(audio.read(name, 8000)) > 30_000


@needs_ffmpeg
@pytest.mark.parametrize("name", ["p.m3u8", "p.mp4", "p.ffconcat", "p.xml", "p.sdp"])
def test_a_file_that_names_others_is_not_followed(tmp_path: Path, name: str) -> None:
    encoded(tmp_path / "other.ts", "-c:a", "mp2", "-ar", "16000")
    encoded(tmp_path / "other.m4a")
    text = {
        ".ffconcat": "ffconcat version 1.0\nfile other.m4a\n",
        ".xml": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="0" bandwidth="9">'
        "<BaseURL>other.m4a</BaseURL></Representation></AdaptationSet></Period></MPD>",
        ".sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    }.get(
        Path(name).suffix,
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.ts\n#EXT-X-ENDLIST\n",
    )
    (tmp_path / name).write_text(text)
    with pytest.raises(AudioError, match="not a readable sound file"):
        audio.read(tmp_path / name, 8000)


def no_moov(folder: Path) -> Path:
    return cut(encoded(folder / "a.mp4"), 0.5)


def cut_in_its_samples(folder: Path) -> Path:
    return cut(encoded(folder / "a.m4a", "-movflags", "+faststart"), 0.6)


def cut_matroska(folder: Path) -> Path:
    return cut(with_picture(folder / "a.mkv", "-c:v", "mpeg4", "-c:a", "aac"), 0.6)


def cut_webm(folder: Path) -> Path:
    return cut(encoded(folder / "a.webm"), 0.6)


def damaged(folder: Path) -> Path:
    path = encoded(folder / "a.m4a", "-movflags", "+faststart")
    data = bytearray(path.read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 400] = np.random.default_rng(1).bytes(400)
    path.write_bytes(data)
    return path


def mute(folder: Path) -> Path:
    ffmpeg(*PICTURES, "-t", "1", "-c:v", "mpeg4", folder / "a.mp4")
    return folder / "a.mp4"


def text(folder: Path) -> Path:
    (folder / "a.m4a").write_text("this is not sound\n" * 100)
    return folder / "a.m4a"


def noise(folder: Path) -> Path:
    (folder / "a.m4a").write_bytes(np.random.default_rng(0).bytes(20_000))
    return folder / "a.m4a"


def empty(folder: Path) -> Path:
    (folder / "a.m4a").touch()
    return folder / "a.m4a"


def not_numbers(folder: Path) -> Path:
    sound = buzz(120, 2)
    sound[8000] = np.nan
    audio.write(folder / "a.wav", sound, 8000, "FLOAT")
    ffmpeg("-i", folder / "a.wav", "-c:a", "copy", folder / "a.mkv")
    return folder / "a.mkv"


@needs_ffmpeg
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_moov, r"truncated, its index \(moov atom\) is missing"),
        (cut_in_its_samples, r"damaged after \d\.\d\d s \(.+\)\. Copy it again"),
        (cut_matroska, r"damaged (or truncated|after .* s) \(File ended prematurely"),
        (cut_webm, r"damaged (or truncated|after .* s) \(File ended prematurely"),
        (damaged, r"damaged after 2\.\d\d s \(.+\)\. Copy it again, or keep what is left: ffmpeg"),
        (mute, "has no sound track"),
        (text, "not a readable sound file"),
        (noise, "not a readable sound file"),
        (empty, r"the file is empty \(0 bytes\)"),
        (not_numbers, r"NaN or infinite sample at 1\.00 s"),
    ],
)
def test_a_bad_container_is_named_with_its_cure(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(AudioError, match=message) as caught:
        audio.read(path, 8000)
    assert re.fullmatch(rf"{re.escape(str(path))}: [ -~]+", str(caught.value))


@pytest.mark.parametrize("present", [(), ("ffmpeg",), ("ffprobe",)])
def test_without_ffmpeg_the_cure_is_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]
) -> None:
    path = text(tmp_path)
    for name in present:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=r"not a readable sound file here\. Install ffmpeg"):
        audio.probe(path)
    assert audio.probe(SOUND).sample_rate_hz == 8000


@needs_ffmpeg
def test_what_was_read_with_ffmpeg_is_refused_once_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encoded(tmp_path / "a.m4a")
    audio.probe(path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AudioError, match="Install ffmpeg"):
        audio.probe(path)


@needs_ffmpeg
def test_a_file_that_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.m4a")
    assert audio.probe(path).sample_rate_hz == 8000
    encoded(path, "-ar", "16000")
    assert audio.probe(path).sample_rate_hz == 16000


SAMPLES = "head -c 64000 /dev/zero"


@needs_ffmpeg
@pytest.mark.parametrize(
    ("does", "message"),
    [
        (
            f"{SAMPLES}; printf 'first\\n[aac @ 0x5a] [x @ 0x1] no\\033[2J luck\\n' >&2; exit 1",
            r"damaged after 2\.00 s \(no \[2J luck\)\. Copy it again",
        ),
        ("echo it is a pity >&2; exit 1", r"ffmpeg cannot decode it \(it is a pity\)"),
        (f"{SAMPLES}; kill -9 $$", r"damaged after 2\.00 s \(exit code -9\)"),
        (f"{SAMPLES}; printf xyz", r"truncated, 2\.00 of 4\.1\d s\. Copy it again"),
        (f"yes complaint | head -n 300000 >&2; {SAMPLES}; exit 1", r"2\.00 s \(complaint\)"),
        ("exit 0", "holds no samples"),
    ],
)
def test_how_ffmpeg_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, message: str
) -> None:
    path = encoded(tmp_path / "a.m4a")
    fake(tmp_path, does, monkeypatch)
    with pytest.raises(AudioError, match=message) as caught:
        audio.read(path, 8000)
    assert str(caught.value).isprintable()


@needs_ffmpeg
def test_an_ffmpeg_that_is_no_program_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encoded(tmp_path / "a.m4a")
    fake(tmp_path, "", monkeypatch)
    (tmp_path / "bin" / "ffmpeg").write_bytes(b"\x7fELF rubbish")
    with pytest.raises(AudioError, match=r"ffmpeg: cannot be started \(Exec format error\)"):
        audio.read(path, 8000)


@needs_ffmpeg
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("how", ["closed", "left by an error"])
def test_ffmpeg_ends_when_reading_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, wrapped: bool
) -> None:
    audio.write(tmp_path / "long.flac", np.tile(buzz(120, 10), 60), 8000)
    path = tmp_path / "a.m4a"
    ffmpeg("-i", tmp_path / "long.flac", "-c:a", "alac", path)
    if wrapped:
        fake(tmp_path, f'{shutil.which("ffmpeg")} "$@"; exit $?', monkeypatch)
    before = children()
    blocks = iter(audio.Reader(path, 8000))
    next(blocks)
    assert len(children() - before) == 1
    if how == "closed":
        blocks.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            blocks.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert children() == before


def test_only_one_module_knows_of_ffmpegs_programs() -> None:
    callers = [p for p in (ROOT / "mcspex_cli").rglob("*.py") if '"ffprobe"' in p.read_text()]
    assert [path.name for path in callers] == ["decoding.py"]


def test_users_folders_are_searched_for_containers_too(tmp_path: Path) -> None:
    for name in ("a.wav", "a.mp4", "b.mp4", "c.MOV", "d/a.m4a", "d.txt", "e.mp4.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files.find(
        tmp_path,
    )
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a.wav", "b.mp4", "c.MOV", "d/a.m4a", "e.mp4.flac"]
    assert [path.name for path in files.find(tmp_path)] == ["a.wav", "e.mp4.flac"]
    assert sorted(
        files.by_name(
            tmp_path,
        )
    ) == ["a", "b", "c", "d/a", "e.mp4"]


@needs_ffmpeg
def test_a_batch_reads_videos_and_without_ffmpeg_only_they_fail(
    scene: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    Path("mix").mkdir()
    shutil.copy("mixture.wav", "mix/plain.wav")
    ffmpeg(*PICTURES, "-i", "mixture.wav", "-shortest", "-c:v", "mpeg4", "mix/video.mp4")
    ffmpeg("-i", "reference.wav", "reference.m4a")
    words = ["batch", "mix", "--model", str(tiny_folder), "--devices", "cpu"]
    done = CliRunner().invoke(main, [*words, "--ref", "reference.m4a", "-o", "one"])
    assert done.exit_code == 0, done.output
    made = sorted(path.name for path in Path("one/audio").iterdir())
    assert made == ["plain.wav", "video.wav"]
    estimate, mixture = (
        len(audio.read(p, RATE_HZ)) for p in ("one/audio/video.wav", "mix/video.mp4")
    )
    assert estimate == mixture
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(main, [*words, "--ref", "reference.wav", "-o", "two"])
    assert done.exit_code == 3
    said = "error: mix/video.mp4: not a readable sound file here. Install ffmpeg, or convert it"
    assert done.stderr.startswith(said)
    assert [path.name for path in Path("two/audio").iterdir()] == ["plain.wav"]
