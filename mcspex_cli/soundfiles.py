"""Sound files that are not compressed, which libsndfile reads; `containers` has all others.

Nothing is lost without a word: a file that is shorter or longer than its header says, or damaged,
is a `DamagedError`, or is read to its end with a warning.
"""

from __future__ import annotations

import io
import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mcspex_cli.containers import Blocks, Damaged, Track, report
from mcspex_cli.errors import AudioError
from mcspex_cli.framing import UNKNOWN_LENGTH

if TYPE_CHECKING:
    import soundfile

LOWEST_HZ, HIGHEST_HZ = 1_000, 1_000_000
"""Sample rates that are believed; others come from damaged headers."""

MOST_CHANNELS = 256

_MAGIC = (
    *(b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff", b"caff", b".snd", b"dns.", b"NIST"),
    *(b"2BIT", b" paf", b"fap ", b"\x64\xa3\1\0", b"\0\1\xa3\x64"),
)
"""How the files begin whose PCM libsndfile reads: WAV, AIFF, W64, CAF, AU, SPHERE, ..."""

_CUT = re.compile(r"(?:data|SSND|riff|Data Size  |Riff size) : (\d+) \(should be (\d+)\)")
"""How libsndfile's log says that the samples (WAV, AIFF, AU) or all (W64, RF64) are too short."""

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3}
SAMPLE_BYTES |= {"PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

_CHUNKS = {"WAV": "<4sI", "WAVEX": "<4sI", "RF64": "<4sI", "AIFF": ">4sI", "CAF": ">4sq"}
_CHUNKS |= {"W64": "<4s12xQ", "AU": ""}
"""How a chunk after the samples begins: its name and its length; AU has no chunks."""

_BIG_ENDIAN = ("AIFF", "CAF", "AU")


def open_file(path: Path, stream: BinaryIO) -> soundfile.SoundFile | None:
    """What libsndfile makes of an open file, if it is one that it reads well; else None."""
    import soundfile

    magic = stream.read(4)
    if magic not in _MAGIC and not (magic == b"OggS" and _is_short_ogg(stream)):
        return None
    stream.seek(0)
    source = str(path) if os.name == "nt" else stream.fileno()
    with suppress(soundfile.LibsndfileError, TypeError):
        file = soundfile.SoundFile(source, closefd=False)
        if file.subtype in (*SAMPLE_BYTES, "VORBIS"):
            return file
        file.close()
    return None


def _is_short_ogg(stream: BinaryIO) -> bool:
    """Whether there is one page after the two of the header: FFmpeg would not read it exactly."""
    start = stream.read(2**18)
    return len(start) < 2**18 and start.count(b"OggS") == 2


class SoundFile:
    """An open file that libsndfile reads."""

    def __init__(self, path: Path, stream: BinaryIO, file: soundfile.SoundFile) -> None:
        self._path, self._stream, self._file = path, stream, file
        self.sample_rate_hz, self.channels = file.samplerate, file.channels
        self.frames, self.start_s = file.frames, 0.0
        self.tracks: tuple[Track, ...] = (Track(1, "", self.sample_rate_hz, self.channels),)
        self.warnings: list[str] = []
        self._frame_bytes = SAMPLE_BYTES.get(file.subtype, 0) * file.channels
        self._size = path.stat().st_size
        self._data_at = stream.tell() if os.name != "nt" else 0
        self._truncation = self._find_truncation()
        self._is_unfinished = not self._truncation and self._check_length()

    def _find_truncation(self) -> str:
        """How much of the samples is there, if the file ends before its header says."""
        for there, length in _CUT.findall(self._file.extra_info):
            if int(length) < int(there) < UNKNOWN_LENGTH:
                here_s = self.frames / self.sample_rate_hz
                whole_s = here_s * int(there) / int(length)
                return f"truncated: {here_s:.2f} of {whole_s:.2f} s are there"
        return ""

    def _check_length(self) -> bool:
        """Whether the samples go on after their announced end, as in an unfinished recording."""
        name, announced_s = self._file.format, self.frames / self.sample_rate_hz
        rest = 0
        if self._data_at and self._frame_bytes and name in _CHUNKS:
            rest = self._unexplained(_CHUNKS[name], self._data_at + self.frames * self._frame_bytes)
        if rest < max(2 * self._frame_bytes, 64):
            if not self.frames:
                raise AudioError(f"{self._path}: holds no samples. Copy or record it again.")
            return False
        self._stream.seek(self._size - rest)
        follows = self._stream.read(4)
        seconds = rest / self._frame_bytes / self.sample_rate_hz
        if follows in _MAGIC:
            self.warnings.append(
                f"{self._path}: another sound file of {seconds:.2f} s follows the first in it and "
                "is not read. Split them, or join them with an audio editor."
            )
            return False
        self.frames += rest // self._frame_bytes
        self.warnings.append(
            f"{self._path}: its header announces {announced_s:.2f} s, but {seconds:.2f} s more "
            "follow (an unfinished recording?). All was read, to the end of the file."
        )
        return True

    def _unexplained(self, layout: str, at: int) -> int:
        """How many bytes from `at` to the end of the file are not well-formed chunks."""
        while layout and at < self._size:
            at += at % 2 if "I" in layout else -at % 8 if "Q" in layout else 0
            self._stream.seek(at)
            head = self._stream.read(struct.calcsize(layout))
            if len(head) < struct.calcsize(layout):
                return 0
            name, length = struct.unpack(layout, head)
            length += 0 if "Q" in layout else len(head)
            is_name = all(32 <= byte < 127 for byte in name) and name not in _MAGIC
            if not is_name or not len(head) <= length <= self._size - at:
                break
            at += length
        return max(0, self._size - at)

    def blocks(self, size: int, damaged: Damaged) -> Blocks:
        """Yield blocks [channel, sample] of `size` samples or less, as `Container.blocks` does."""
        import soundfile

        if self._truncation:
            report(f"{self._path}: {self._truncation}", damaged, self.warnings)
        if self._is_unfinished:
            yield from self._raw_blocks(size)
            return
        done = 0
        with suppress(soundfile.LibsndfileError):  # what is missing is said below
            if self.frames:
                self._file.seek(0)
            while (block := self._file.read(size, dtype="float32", always_2d=True).T).size:
                done += block.shape[1]
                yield block
        if done < self.frames:
            done_s, announced_s = done / self.sample_rate_hz, self.frames / self.sample_rate_hz
            text = f"{self._path}: truncated: {done_s:.2f} of {announced_s:.2f} s can be read"
            report(text, damaged, self.warnings)

    def _raw_blocks(self, size: int) -> Blocks:
        """All from the first sample to the end of the file, whatever the header announces."""
        import soundfile

        endian = self._file.endian
        if endian == "FILE":
            endian = "BIG" if self._file.format in _BIG_ENDIAN else "LITTLE"
        self._stream.seek(self._data_at)
        while data := self._stream.read(size * self._frame_bytes):
            data = data[: len(data) - len(data) % self._frame_bytes]
            block, _ = soundfile.read(
                io.BytesIO(data),
                dtype="float32",
                always_2d=True,
                samplerate=self.sample_rate_hz,
                channels=self.channels,
                format="RAW",
                subtype=self._file.subtype,
                endian=endian,
            )
            if block.size:
                yield block.T
