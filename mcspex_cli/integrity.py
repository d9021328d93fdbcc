"""Whether a sound file is whole: libsndfile reads on in silence where one was cut short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mcspex_cli.errors import AudioError

if TYPE_CHECKING:
    import soundfile

_CUT = re.compile(r"(?:data|SSND|riff) : (\d+) \(should be (\d+)\)")
"""How libsndfile's log says that the samples (WAV, AIFF) or all (W64) should be longer."""

_UNKNOWN_LENGTH = 0x7FFFF000
"""Chunk lengths from here on are what programs write that do not know it (to a pipe)."""

_UNKNOWN_FRAMES = 2**60
"""Lengths from here on mean that a FLAC's header has none; libsndfile fails at its end."""


def check_header(path: Path, file: soundfile.SoundFile) -> None:
    """Refuse a file that holds nothing, or less than its header says.

    Raises:
        AudioError: it is empty or cut short.
    """
    for said, there in _CUT.findall(file.extra_info):
        if int(there) < int(said) < _UNKNOWN_LENGTH:
            raise AudioError(f"{path}: truncated, {there} of {said} bytes. Copy it again.")
    if file.format == "OGG" and not _has_last_page(path):
        raise AudioError(f"{path}: truncated, its last Ogg page is missing. Copy it again.")
    if file.frames > _UNKNOWN_FRAMES:
        raise AudioError(
            f"{path}: its header has no length (written to a pipe?). Convert it: "
            f"ffmpeg -i {path.name} {path.stem}.wav"
        )
    if file.frames == 0:
        raise AudioError(f"{path}: holds no samples. Copy or record it again.")


def _has_last_page(path: Path) -> bool:
    """Whether the last Ogg page is marked as the end of its stream (a page is under 64 KiB)."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 2**16))
        tail = stream.read()
    flags = tail.rfind(b"OggS") + 5
    return flags < len(tail) and bool(tail[flags] & 4)


def check_whole(path: Path, file: soundfile.SoundFile, frames: int) -> None:
    """After the last block: refuse a file of which more, or less, should have come.

    The length of an MP3 without a length header is a guess from its first frame, and reading
    ends there; what is left unread tells.

    Raises:
        AudioError: as said.
    """
    if file.format == "MP3":
        unread = path.stat().st_size - file.name.tell()
        if unread > max(2**14, path.stat().st_size // 20) or frames < 0.95 * file.frames:
            raise AudioError(
                f"{path}: an MP3 whose length cannot be told. Convert it: "
                f"ffmpeg -i {path.name} {path.stem}.wav"
            )
    elif frames < file.frames:
        held, said = frames / file.samplerate, file.frames / file.samplerate
        raise AudioError(f"{path}: truncated, {held:.2f} of {said:.2f} s. Copy it again.")
