"""What the bytes of a sound file say, and plain samples, which libsndfile decodes.

Decoders do not tell where a file ends by its own account, nor what follows there. `_find_ends`
reads it from the chunks. What a file announces and what comes out of it are compared: a difference
is an error, or a warning that says how much is missing, so that nothing is lost without a word.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mcspex_cli.errors import AudioError
from mcspex_cli.files import explain

if TYPE_CHECKING:
    import soundfile

Blocks = Generator[npt.NDArray[np.float32], None, None]
"""Samples as blocks [channel, sample], in order."""

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3}
SAMPLE_BYTES |= {"PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a sample, by libsndfile's name of its kind."""

_CODED = ("VORBIS", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")
"""Encodings left to libsndfile: FFmpeg decodes them wrongly or not at all."""

UNKNOWN_LENGTH = 0x7EFFF000
"""Lengths of 32 bits from here on are what programs write that do not know them (to a pipe)."""

MISCOUNTED_BYTES = 64
"""Some programs count their headers among the samples, so that a file ends a little too early."""


class _Chunks(NamedTuple):
    """How the chunks of a format (WAV, AIFF, W64, CAF) follow one another."""

    first: int
    """Where the first one begins."""
    header: str
    """The layout of a chunk's name and length, for `struct`."""
    uncounted: int
    """The bytes of a chunk that its length leaves out."""
    alignment: int
    """Chunks begin at multiples of this many bytes."""
    unknown: int
    """Lengths from here on mean that the length is not known."""


_CHUNKS = {
    b"RIFF": _Chunks(12, "<4sI", 8, 2, UNKNOWN_LENGTH),
    b"RIFX": _Chunks(12, ">4sI", 8, 2, UNKNOWN_LENGTH),
    b"FORM": _Chunks(12, ">4sI", 8, 2, UNKNOWN_LENGTH),
    b"RF64": _Chunks(12, "<4sI", 8, 2, 2**62),
    b"riff": _Chunks(40, "<4s12xQ", 0, 8, 2**62),
    b"caff": _Chunks(8, ">4sQ", 12, 1, 2**62),
}
"""The formats of chunks, by the bytes with which their files begin."""

_SOUND_CHUNKS = (b"data", b"SSND", b"BODY", b"LIST")
"""The chunks that hold sound, also in AVI. If another chunk is cut off, no sound is lost."""

_PLAIN = (*_CHUNKS, b".snd", b"dns.", b"NIST")
"""How the files begin whose plain samples libsndfile reads: those of `_CHUNKS`, AU and SPHERE."""

_MATROSKA = b"\x1aE\xdf\xa3"
"""How MKV and WebM begin."""

_FOREIGN = (*_PLAIN, b"fLaC", b"OggS", b"ftyp", _MATROSKA, b"\x30\x26\xb2\x75")
"""How files begin that may follow another: these, FLAC, Ogg, MP4, MKV or WebM, Windows Media."""

_FILE_SIZE = re.compile(
    rb"^(?:FLV.*filesize\0(.{8})|\x30\x26\xb2\x75.*"
    rb"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\0\xc0\x0c\x20\x53\x65.{24}(.{8}))",
    re.DOTALL,
)
"""Where Flash and Windows Media files say how long they are."""

_SEGMENT = re.compile(_MATROSKA + rb".{1,100}?\x18\x53\x80\x67([^\0].{7})", re.DOTALL)
"""How MKV and WebM begin; in the parentheses is the length of all that follows."""

_PCM_TAGS = (1, 3, 0xFFFE)
"""What a WAV header calls plain samples: integers, floats, and either of them (extensible)."""

_NIST_NUMBERS = re.compile(
    rb"(?:^NIST_1A\s+|(?:sample_count|channel_count|sample_n_bytes) -i )(\d{1,18})"
)
_BOXES = b"ftyp moov mdat moof mfra free skip wide udta meta uuid sidx styp pdin".split()
"""The outermost boxes of an MP4; cameras append others, whose lengths may be anything."""

TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
"""How the notes begin that stand among or after an MP3's frames, or after another file."""

ID3 = re.compile(rb"ID3[\x02-\x04]..([\0-\x7f]{4})", re.DOTALL)
"""How an ID3 tag of version 2 begins; in the parentheses is its length, 7 bits in each byte."""

FOLLOWS = "follows the first in it and is not read. Split them, or join them with an audio editor."


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate_hz: int
    channels: int
    frames: int
    """Samples per channel; in compressed files, approximately; 0 if it does not say."""
    start_s: float = 0.0
    """When the sound begins in its container's time: a video's sound may start late."""
    tracks: tuple[str, ...] = ()
    """All sound tracks of the file, of which one is read, such as "2 (1 ch, eng)"."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.frames / self.sample_rate_hz


class SoundBytes:
    """An open sound file, for decoders: bytes without a name, of which a part may be left out.

    Nothing is raised into a decoder, which would print it; `check_read` tells of it later.

    Args:
        path: its name, for messages.
        stream: the open file.
        advice: what to do about damage, which is an `AudioError`. If it is None, what can be
            read is kept, with silence where a part is lost in the middle, and a warning tells.

    Raises:
        AudioError: decoders would read noise from it, or the system does not let it be read.
    """

    def __init__(self, path: Path, stream: BinaryIO, advice: str | None) -> None:
        self.path, self._stream, self.advice = path, stream, advice
        self._begin, self.size = 0, os.fstat(stream.fileno()).st_size
        self._error: BaseException | None = None
        self.warnings: list[str] = []
        self.is_damaged = False
        """Whether damage was reported, and what is left is kept."""
        notes = id3_bytes(self.part(0, 10))  # some programs put them before any kind of file
        if any(magic in self.part(notes, 12) for magic in _FOREIGN):
            self.crop(notes, self.size)
        if self.part(self.size - 128, 3) == b"TAG":  # ID3 of version 1
            self.crop(0, self.size - 128)
        self.ends = _find_ends(self)
        """Where the parts of the file end by its own account."""
        self.own_end = max((end for end in self.ends if end <= self.size), default=self.size)
        """Where the last part ends that is whole; without any, where the file does."""
        _check_sample_bytes(self)
        _crop_followers(self)
        self.missing = _find_missing(self)
        """What is missing at the end of the file by its own account, if anything is."""

    def crop(self, begin: int, end: int) -> None:
        """Leave out what is before `begin`, and what is from `end` on."""
        self._begin, self.size = self._begin + begin, end - begin
        self.seek(0)

    def tell(self) -> int:
        """The place of the next byte."""
        return self._stream.tell() - self._begin

    def read(self, size: int) -> bytes:
        """Up to `size` bytes from there on; none once something went wrong."""
        if self._error:
            return b""
        try:
            return self._stream.read(max(0, min(size, self.size - self.tell())))
        except (OSError, KeyboardInterrupt) as error:
            self._error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, and give it; -1 if there is none such."""
        offset += {os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}.get(whence, 0)
        try:
            return self._stream.seek(self._begin + offset) - self._begin
        except (OSError, ValueError, OverflowError):  # a damaged file leads nowhere
            return -1

    def part(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on; the place of the next byte stays."""
        next_byte = self.tell()
        self.seek(start)
        part = self.read(size)
        self.seek(next_byte)
        self.check_read()
        return part

    def warn(self, text: str) -> None:
        """Tell what is wrong with the file though it can be read."""
        self.warnings.append(f"{self.path}: {text}")

    def report(self, damage: str) -> None:
        """Raise an error that tells of damage, or warn of it where what is left is kept."""
        self.check_read()
        if self.advice is not None:
            raise AudioError(f"{self.path}: {damage}. {self.advice}")
        self.is_damaged = True
        self.warn(f"{damage}.")

    def check_read(self) -> None:
        """Raise the system's error in reading the file, or a Ctrl-C meanwhile, if there was one."""
        if isinstance(self._error, OSError):
            raise AudioError(f"{self.path}: cannot be read: {explain(self._error)}")
        if self._error:
            raise self._error


def id3_bytes(data: bytes) -> int:
    """The length of the ID3 tag that begins there, or 0."""
    if not (header := ID3.match(data)):
        return 0
    length: bytes = header[1]
    return 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(length)))


def _find_ends(data: SoundBytes) -> list[int]:
    """Where the parts of a file end by its own account, in order: its chunks, boxes, or all of it.

    The last end may be beyond the end of the file. After a chunk of unknown length, and after what
    is no chunk of this file, none are known.
    """
    head = data.part(0, 2**13).ljust(64, b"\0")
    if file_size := _FILE_SIZE.match(head):  # Flash's is a floating-point number
        flash, windows = file_size.groups(bytes(8))
        (flash_bytes,) = struct.unpack(">d", flash)
        flash_end = int(flash_bytes) if math.isfinite(flash_bytes) else 0
        end = max(flash_end, int.from_bytes(windows, "little"))
        return [end] if end else []
    if head.startswith(b".snd"):
        begin, length = struct.unpack_from(">II", head, 4)
        return [begin + length] if length < UNKNOWN_LENGTH else []
    if head.startswith(b"NIST"):  # the bytes of its header, and what makes the bytes of its sound
        numbers = [int(number) for number in _NIST_NUMBERS.findall(head)]
        return [numbers[0] + math.prod(numbers[1:])] if len(numbers) == 4 else []
    if segment := _SEGMENT.match(head):
        size_bytes = 9 - segment[1][0].bit_length()
        length = int.from_bytes(segment[1][:size_bytes], "big") - (1 << 7 * size_bytes)
        is_known = length < (1 << 7 * size_bytes) - 1
        return [segment.start(1) + size_bytes + length] if is_known else []
    if head[:4] not in _CHUNKS:
        return _find_box_ends(data) if head[4:8] == b"ftyp" else []
    chunks = _CHUNKS[head[:4]]
    ends: list[int] = []
    sounds: list[int] = []
    at = chunks.first
    while at < data.size:
        name, length = struct.unpack_from(chunks.header, data.part(at, 24).ljust(24, b"\0"))
        if name == b"data" and head[12:16] == b"ds64":
            length = int.from_bytes(head[28:36], "little")
        is_chunk = name.isascii() and name.decode().isprintable() and name not in _FOREIGN
        is_chunk &= name in _SOUND_CHUNKS or at + length <= data.size  # else it is mere text
        if not is_chunk or length + chunks.uncounted <= 0 or length >= chunks.unknown:
            break
        if name == b"data" and length:
            sounds.append(length)
        ends.append(at + chunks.uncounted + length)
        at = ends[-1] + -ends[-1] % chunks.alignment
    if sounds[1:]:
        rest = f"{sum(sounds[:-1]):,} bytes of sound before it are not"
        data.warn(
            f"its sound is in {len(sounds)} chunks, and only the last is read: {rest}. "
            "Export it again from the original."
        )
    return ends


def _find_box_ends(data: SoundBytes) -> list[int]:
    """Where the outermost boxes of an MP4 end, up to another MP4 or to what is no box."""
    ends: list[int] = []
    at = 0
    while at < data.size:
        length, name, long_length = struct.unpack(">I4sQ", data.part(at, 16).ljust(16, b"\0"))
        length = long_length if length == 1 else length
        is_foreign = name not in _BOXES and at + length > data.size
        if length < 8 or is_foreign or (at and name == b"ftyp"):
            break
        at += length
        ends.append(at)
    return ends


def _find_missing(data: SoundBytes) -> str:
    size, head = data.size, data.part(0, 2**9)
    if head.startswith(b"OggS"):
        page = _last_ogg_page(data)
        if len(page) < 28 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            return "its last Ogg page is missing"
    elif (head[:1] == head[188:189] == b"G" and size % 188) or (
        head[4:5] == head[196:197] == b"G" and size % 192  # of cameras, with times
    ):
        return "its last packet is not whole"  # of MPEG-TS
    elif data.ends and data.ends[-1] > size:
        return f"{data.ends[-1] - size:,} bytes are missing at its end"
    return ""


def _last_ogg_page(data: SoundBytes) -> bytes:
    tail = data.part(max(0, data.size - 2**16), 2**16)  # a page is under 64 KiB
    return tail[tail.rfind(b"OggS") :]


def check_end_mark(data: SoundBytes, seconds: float) -> None:
    """Warn of an Ogg file whose last page is not marked as the last, as after a crash."""
    if data.part(0, 4) == b"OggS" and not _last_ogg_page(data)[5] & 4:
        data.warn(
            "its end is not marked, so that it may have been cut off. "
            f"The {seconds:.2f} s that are there were read."
        )


def _crop_followers(data: SoundBytes) -> None:
    """Leave out another file, or notes, that follow the end of a file, with a warning."""
    head, following = data.part(0, 12), data.part(data.own_end, 12)
    rest = f"{data.size - data.own_end:,} bytes"
    start = b"ftyp" if head[4:8] == b"ftyp" else head[:4]
    is_avi = head[8:11] == following[8:11] == b"AVI"  # large ones have several such parts
    is_read_on = is_avi or head[:4] == following[:4] == _MATROSKA
    if any(magic in following for magic in (start, *_FOREIGN)) and not is_read_on:
        data.warn(f"another file of {rest} {FOLLOWS}")
    elif following.lstrip(b"\0").startswith(TAGS):
        data.warn(f"{rest} of notes (tags) follow its sound and are not read.")
    else:
        return
    data.crop(0, data.own_end)


def _check_sample_bytes(data: SoundBytes) -> None:
    """Refuse samples whose bits do not fit their bytes: decoders would read noise.

    WAV (also as RIFX, RF64 and W64) and CAF can have such.
    """
    head = data.part(0, 2**12)
    kind, at = head[:4], head.find(b"desc" if head.startswith(b"caff") else b"fmt ")
    if at < 0 or kind not in _CHUNKS or kind == b"FORM":
        return
    form = head[at + struct.calcsize(_CHUNKS[kind].header) :].ljust(32, b"\0")
    if kind == b"caff":
        coding, frame_bytes, frames, channels, bits = struct.unpack_from(">8x4s4xIIII", form)
        is_sure = coding == b"lpcm" and frames == 1
        is_usual = not is_sure or _take_usual_bytes(bits, channels, frame_bytes)
    else:
        layout = ">HHIIHH" if kind == b"RIFX" else "<HHIIHH"
        values = struct.unpack_from(layout, form)
        _, channels, _, _, frame_bytes, bits = values
        is_usual = is_usual_wav(*values)
    if channels and bits and not is_usual:
        raise AudioError(
            f"{data.path}: its header says that its samples have {bits} bits, and take "
            f"{8 * frame_bytes // channels}. Export it again as 16-bit PCM."
        )


def is_usual_wav(
    coding: int, channels: int, rate_hz: int, bytes_per_s: int, frame_bytes: int, bits: int
) -> bool:
    """Whether samples take as many bytes as they have bits, by what the header of a WAV says.

    If they do not, two of its numbers have to say so, since some programs write one of them
    wrongly. But where one says 24 bits and the other 4 bytes, libsndfile guesses, and often
    wrongly.
    """
    is_guessed = (coding, bits, frame_bytes) == (1, 24, 4 * channels)
    is_sure = is_guessed or (coding in _PCM_TAGS and bytes_per_s == rate_hz * frame_bytes)
    return not is_sure or _take_usual_bytes(bits, channels, frame_bytes)


def _take_usual_bytes(bits: int, channels: int, frame_bytes: int) -> bool:
    needed = -(-bits // 8)  # some programs forget to multiply it by the channels
    return frame_bytes in (0, needed, channels * needed)


def open_plain(data: SoundBytes, track: str | None) -> PlainFile | None:
    """Open a file that libsndfile decodes; None leaves it to FFmpeg.

    Raises:
        AudioError: it has no such sound track.
    """
    import soundfile

    head = data.part(0, 4)
    pages = data.part(0, 2**18) if head == b"OggS" else b""
    is_short = pages.count(b"OggS") == 3 and len(pages) < 2**18  # FFmpeg would not be exact
    if head.startswith(_PLAIN) or (is_short and not data.missing):
        data.seek(0)
        with suppress(soundfile.LibsndfileError):
            file = soundfile.SoundFile(data)
            if file.subtype in (*SAMPLE_BYTES, *_CODED):
                if track not in (None, "1"):
                    raise AudioError(f"{data.path}: has no sound track {track}. It has only one.")
                return PlainFile(data, file)
    return None


class PlainFile:
    """A file that libsndfile decodes, once."""

    def __init__(self, data: SoundBytes, file: soundfile.SoundFile) -> None:
        import soundfile

        self.data, self._file, self._missing = data, file, ""
        begin = data.tell()  # of the first sample: to it libsndfile goes when it opens a file
        size, rate_hz = data.size, file.samplerate
        frames, frame_bytes = file.frames, SAMPLE_BYTES.get(file.subtype, 0) * file.channels
        end = next((end for end in data.ends if end >= begin), 0)
        rest = size - data.own_end
        if size < end <= size + MISCOUNTED_BYTES:
            data.warn(f"its header announces {end - size} bytes more than there are.")
        elif end > size > begin:
            here_s = frames / rate_hz
            whole_s = here_s * (end - begin) / (size - begin)
            self._missing = f"truncated: {here_s:.2f} of {whole_s:.2f} s are there"
        elif begin <= end <= size and frame_bytes:
            frames = min(frames, (end - begin) // frame_bytes)  # libsndfile may read on
            if rest >= max(2 * frame_bytes, MISCOUNTED_BYTES):
                data.warn(
                    f"its header announces {frames / rate_hz:.2f} s, but "
                    f"{rest / frame_bytes / rate_hz:.2f} s more follow (an unfinished recording?). "
                    "All was read, to the end of the file."
                )
                data.crop(begin, size)
                is_big = file.endian == "FILE" and file.format in ("AIFF", "CAF", "AU")
                self._file = soundfile.SoundFile(
                    data,
                    samplerate=rate_hz,
                    channels=file.channels,
                    subtype=file.subtype,
                    endian="BIG" if is_big or file.endian == "BIG" else "LITTLE",
                    format="RAW",
                )
                frames = self._file.frames
        if not frames:
            raise AudioError(f"{data.path}: holds no samples. Copy or record it again.")
        check_end_mark(data, frames / rate_hz)
        tracks = (f"1 ({file.channels} ch)",)
        self.info = AudioInfo(rate_hz, file.channels, frames, tracks=tracks)

    def blocks(self, size: int) -> Blocks:
        """Decode to blocks [channel, sample] of `size` samples, the last shorter.

        Raises:
            AudioError: the file is damaged or truncated, and what is left is not to be kept.
        """
        import soundfile

        if self._missing:
            self.data.report(self._missing)
        info, done = self.info, 0
        with suppress(soundfile.LibsndfileError):  # what is missing is reported below
            while done < info.frames:
                count = min(size, info.frames - done)
                block = self._file.read(count, dtype="float32", always_2d=True).T
                self.data.check_read()
                if not block.size:
                    break
                done += block.shape[1]
                yield block
        if done < info.frames:
            done_s = done / info.sample_rate_hz
            self.data.report(f"truncated: {done_s:.2f} of {info.seconds:.2f} s can be read")
