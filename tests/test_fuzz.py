"""500 damaged files of every format, seeded: no traceback, no hang, no silent loss."""

from __future__ import annotations

import faulthandler
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mcspex_cli import audio
from mcspex_cli.errors import McspexError
from tests.conftest import RATE_HZ, buzz
from tests.media import SoundTrack, make

SECONDS = 2.0
FILES = 500
FILE_S = 10.0
"""For which a file may be read at most."""

PLAIN = {
    "wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "xing.mp3": ("MP3", "MPEG_LAYER_III"),
}
CODED = {
    "m4a": "aac",
    "mp4": "alac",
    "mkv": "aac",
    "webm": "libopus",
    "avi": "pcm_s16le",
    "mov": "pcm_s16le",
    "wma": "wmav2",
    "aac": "aac",
    "mp3": "libmp3lame",
    "amr": "libopencore_amrnb",
    "ac3": "ac3",
    "ts": "mp2",
}
BARE = ("aac", "mp3", "amr", "ac3", "ts")
"""Formats of bare frames: where they are cut between two of them, nobody can know."""


def originals(folder: Path) -> dict[str, bytes]:
    """A good file of each format."""
    sound = buzz(120, SECONDS)
    for suffix, (container, subtype) in PLAIN.items():
        soundfile.write(folder / f"a.{suffix}", sound, RATE_HZ, subtype, format=container)
    for suffix, codec in CODED.items():
        rate_hz = {"libopus": 48_000, "wmav2": 16_000, "ac3": 48_000, "mp2": 16_000}.get(
            codec, 8000
        )
        options = {"b": "12200" if suffix == "amr" else "64000"}
        samples = np.repeat(sound, rate_hz // RATE_HZ)
        track = SoundTrack(samples, rate_hz, codec, options=options)
        mux = {"movflags": "+faststart"} if suffix in ("m4a", "mp4", "mov") else {}
        make(folder / f"b.{suffix}", track, options=mux)
    return {path.name.partition(".")[2]: path.read_bytes() for path in sorted(folder.iterdir())}


def mutate(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Damage a file in one of six ways."""
    kind = ("flip", "hit", "head", "cut", "lack", "double")[rng.integers(6)]
    new, at = bytearray(data), int(rng.integers(len(data)))
    if kind == "flip":
        for place in rng.integers(len(data), size=rng.integers(1, 8)):
            new[place] ^= 1 << int(rng.integers(8))
    elif kind == "hit":
        new[at : at + 200] = rng.bytes(min(200, len(data) - at))
    elif kind == "head":
        place = int(rng.integers(min(len(data), 120)))
        new[place : place + 4] = rng.bytes(4)
    elif kind == "cut":
        new = new[: max(1, at)]
    elif kind == "lack":
        del new[at : at + 500]
    else:
        new[at:at] = new[at : at + 1000]
    return kind, bytes(new)


def test_damaged_files_of_every_format_are_read_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng, seen = np.random.default_rng(16), Counter[str]()
    (tmp_path / "good").mkdir()
    good = originals(tmp_path / "good")
    assert len(good) == len(PLAIN) + len(CODED)
    whole = {}
    for suffix, data in good.items():
        (tmp_path / f"x.{suffix}").write_bytes(data)
        reader = audio.Reader(tmp_path / f"x.{suffix}", RATE_HZ)
        whole[suffix] = len(reader.read())
        assert reader.warnings == []
    for number in range(FILES):
        suffix = list(good)[number % len(good)]
        kind, data = mutate(good[suffix], rng)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(data)
        for damaged in ("fail", "keep"):
            began, samples = time.monotonic(), None
            reader = audio.Reader(path, RATE_HZ, damaged=damaged)
            faulthandler.dump_traceback_later(60, exit=True)
            try:
                samples = reader.read()
            except McspexError as error:
                assert str(error).startswith(f"{path}: "), error
                assert "\n" not in str(error)
                seen["refused"] += 1
            faulthandler.cancel_dump_traceback_later()
            assert time.monotonic() - began < FILE_S, path
            if samples is None:
                continue
            seen["read"] += 1
            assert np.isfinite(samples).all()
            assert len(samples) < 600 * RATE_HZ, path
            if kind == "cut" and suffix not in BARE and not reader.warnings:
                assert len(samples) > whole[suffix] - 0.2 * RATE_HZ, (path, len(samples))
        path.unlink()
    assert min(seen["read"], seen["refused"]) > 0.2 * FILES
    assert capfd.readouterr() == ("", "")  # libraries print nothing
