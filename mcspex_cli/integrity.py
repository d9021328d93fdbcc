"""Files that libsndfile reads, to their end: it reads on in silence where one was cut short."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from mcspex_cli import files
from mcspex_cli.errors import AudioError

if TYPE_CHECKING:
    import soundfile

Blocks = Generator[npt.NDArray[np.float32], None, None]
"""Samples as blocks [channel, sample], in order."""

_CUT = re.compile(r"(?:data|SSND|riff) : (\d+) \(should be (\d+)\)")
"""How libsndfile's log says that the samples (WAV, AIFF) or all (W64) should be longer."""

_UNKNOWN_LENGTH = 0x7FFFF000
"""Chunk lengths from here on are what programs write that do not know it (to a pipe)."""

_UNKNOWN_FRAMES = 2**60
"""Lengths from here on mean that a FLAC's header has none; libsndfile fails at its end."""


class Sound(Protocol):
    """An open sound file, whoever decodes it."""

    sample_rate_hz: int
    channels: int
    frames: int

    def blocks(self, size: int) -> Blocks:
        """Its samples as blocks [channel, sample]."""


class Plain:
    """An open file that libsndfile decodes."""

    def __init__(self, path: Path, file: soundfile.SoundFile) -> None:
        self._path, self._file = path, file
        self.sample_rate_hz, self.channels = file.samplerate, file.channels
        self.frames = file.frames

    def blocks(self, size: int) -> Blocks:
        """Blocks [channel, sample], to the end that the header promises."""
        import soundfile

        frames = 0
        try:
            while (block := self._file.read(size, dtype="float32", always_2d=True).T).size:
                frames += block.shape[1]
                yield block
        except soundfile.LibsndfileError as error:
            at_s = frames / self.sample_rate_hz
            raise AudioError(f"{self._path}: damaged after {at_s:.2f} s. Copy it again.") from error
        check_whole(self._path, self._file, frames)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file's bytes, of which there is at least one.

    Raises:
        AudioError: it is missing, a directory or other than a file, locked or empty.
    """
    files.check_exists(path)
    if path.is_dir():
        raise AudioError(f"{path}: is a directory. Name a sound file in it.")
    if not path.is_file():
        raise AudioError(f"{path}: is no regular file. Save the sound to one first.")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).") from error
    with stream:
        if not stream.read(1):
            raise AudioError(f"{path}: the file is empty (0 bytes). Copy or record it again.")
        stream.seek(0)
        yield stream


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
