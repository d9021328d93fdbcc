"""What is in a sound file: libsndfile decodes plain samples, and FFmpeg, through PyAV, all else.

Nothing is lost without a word. What a file announces and what comes out of it are compared, and a
difference is an error, or a warning that says how much is missing. Decoders do not tell
where a file ends by its own account; `_find_ends` reads that from its chunks. FFmpeg's formats
differ in what they announce, and in what their time stamps mean: `KINDS` says how.

FFmpeg gets an open file and never a name, reads only formats that hold their sound themselves, and
may open nothing else, so that playlists and the like lead nowhere.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from mcspex_cli.errors import AudioError, line
from mcspex_cli.files import explain

if TYPE_CHECKING:
    import av
    import soundfile

Blocks = Generator[npt.NDArray[np.float32], None, None]
"""Samples as blocks [channel, sample], in order."""

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3}
SAMPLE_BYTES |= {"PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a sample, by libsndfile's name of its kind."""

_CODED = ("VORBIS", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")
"""Encodings left to libsndfile: FFmpeg decodes them wrongly or not at all."""

_UNKNOWN_LENGTH = 0x7EFFF000
"""Lengths of 32 bits from here on are what programs write that do not know them (to a pipe)."""


_MISCOUNTED_BYTES = 64
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
    b"RIFF": _Chunks(12, "<4sI", 8, 2, _UNKNOWN_LENGTH),
    b"RIFX": _Chunks(12, ">4sI", 8, 2, _UNKNOWN_LENGTH),
    b"FORM": _Chunks(12, ">4sI", 8, 2, _UNKNOWN_LENGTH),
    b"RF64": _Chunks(12, "<4sI", 8, 2, 2**62),
    b"riff": _Chunks(40, "<4s12xQ", 0, 8, 2**62),
    b"caff": _Chunks(8, ">4sQ", 12, 1, 2**62),
}
"""The formats of chunks, by the bytes with which their files begin."""

_SOUND_CHUNKS = (b"data", b"SSND", b"BODY", b"LIST")
"""The chunks that hold sound, also in AVI. If another chunk is cut off, no sound is lost."""

_PLAIN = (*_CHUNKS, b".snd", b"dns.", b"NIST")
"""How the files begin whose plain samples libsndfile reads: these, AU and SPHERE."""

_MATROSKA = b"\x1aE\xdf\xa3"
"""How MKV and WebM begin."""

_FOREIGN = (*_PLAIN, b"fLaC", b"OggS", b"ftyp", _MATROSKA, b"\x30\x26\xb2\x75")
"""How files begin that may follow another one; some are MP4, MKV or WebM, and Windows Media."""

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

_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
"""How the notes begin that stand among or after an MP3's frames, or after another file."""

_ID3 = re.compile(rb"ID3[\x02-\x04]..([\0-\x7f]{4})", re.DOTALL)
"""How an ID3 tag of version 2 begins; in the parentheses is its length, 7 bits in each byte."""

_FLAC = re.compile(rb"fLaC[\0\x80]\0\0\x22")
"""How a FLAC begins: with its mark, and the head of the block that describes it."""

_NULL_PACKET = b"G\x1f\xff"
"""How the packets of a transport stream begin that only fill it up."""


class Trait(Flag):
    """What holds of a format."""

    EXACT = auto()  # its header announces how long its sound is, to a frame or so
    BARE = auto()  # it is bare frames: where it is cut between two of them, nobody can know
    LAST = auto()  # nothing but notes follows the last sound
    FROM_ZERO = auto()  # its times count from the beginning, even if a track begins later
    PAUSING = auto()  # a recording may pause; elsewhere a gap in the time stamps is damage


KINDS = {
    kind: traits
    for kinds, traits in (
        ("mov avi asf", Trait.EXACT | Trait.FROM_ZERO | Trait.PAUSING),
        ("flv", Trait.EXACT | Trait.FROM_ZERO | Trait.PAUSING | Trait.LAST),
        ("matroska", Trait.FROM_ZERO | Trait.PAUSING),
        ("mpegts mpeg", Trait.PAUSING | Trait.LAST),
        ("mxf wtv", Trait.PAUSING),
        ("rm", Trait.EXACT | Trait.PAUSING),
        ("flac wav ogg caf aiff tak mpc mpc8", Trait.EXACT),
        ("tta wv ape", Trait.EXACT | Trait.LAST),
        ("mp3", Trait.EXACT | Trait.LAST | Trait.BARE),
        ("aac ac3 eac3 dts amr amrnb amrwb gsm loas", Trait.LAST | Trait.BARE),
        ("3gp au qcp w64", Trait(0)),
    )
    for kind in kinds.split()
}
"""FFmpeg's formats that hold their sound themselves; playlists name other files, or servers."""

_FOLLOWS = "follows the first in it and is not read. Split them, or join them with an audio editor."

_CHANGE = "its sound is of another"

_USELESS = "truncated: {}, so that nothing can be read. Copy it again."

_PAUSE_S = 0.1
"""Gaps between time stamps from here on are silence in the recording; less is their inaccuracy."""

_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
"""NumPy's types of samples by FFmpeg's names, to which it adds "p" where channels are apart."""

_DAMAGE = re.compile(
    r"ended prematurely|exceeds containing|\bcrc\b|truncat|partial file|packet_obj_size",
    re.IGNORECASE,
)
"""What FFmpeg only complains of, though part of the sound is lost."""


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
    """

    def __init__(self, path: Path, stream: BinaryIO, advice: str | None) -> None:
        self.path, self._stream, self.advice = path, stream, advice
        self._begin, self.size = 0, os.fstat(stream.fileno()).st_size
        self._error: BaseException | None = None
        self.warnings: list[str] = []
        self.is_damaged = False
        """Whether damage was reported, and what is left is kept."""
        notes = _id3_bytes(self.part(0, 10))  # some programs put them before any kind of file
        if any(magic in self.part(notes, 12) for magic in _FOREIGN):
            self.crop(notes, self.size)
        if self.part(self.size - 128, 3) == b"TAG":  # ID3 of version 1
            self.crop(0, self.size - 128)
        self.ends = _find_ends(self)
        """Where the parts of the file end by its own account."""

    def crop(self, begin: int, end: int) -> None:
        """Leave out what is before `begin`, and what is from `end` on."""
        self._begin, self.size = self._begin + begin, end - begin
        self.seek(0)

    def tell(self) -> int:
        """The place of the next byte."""
        return self._stream.tell() - self._begin

    def read(self, size: int) -> bytes:
        """Up to `size` bytes from there on."""
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
        """Raise what the system had against reading the file, if anything, or a Ctrl-C."""
        if isinstance(self._error, OSError):
            raise AudioError(f"{self.path}: cannot be read: {explain(self._error)}")
        if self._error:
            raise self._error


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
        return [begin + length] if length < _UNKNOWN_LENGTH else []
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
    """What is missing at the end of a file by its own account, if anything is."""
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


def _check_end_mark(data: SoundBytes, seconds: float) -> None:
    """Warn of an Ogg file of which the last page does not say so, as of a recording stopped."""
    if data.part(0, 4) == b"OggS" and not _last_ogg_page(data)[5] & 4:
        data.warn(
            "its end is not marked, so that it may have been cut off. "
            f"The {seconds:.2f} s that are there were read."
        )


def open_decoder(data: SoundBytes, track: str | None) -> PlainFile | Container:
    """Choose what decodes a file, of which `track` is a sound track's number or language.

    Raises:
        AudioError: it is not a sound file, or has no such track.
    """
    import soundfile

    _check_sample_bytes(data)
    head = data.part(0, 12)
    rest_at = max((end for end in data.ends if end <= data.size), default=data.size)
    following, rest = data.part(rest_at, 12), f"{data.size - rest_at:,} bytes"
    start = b"ftyp" if head[4:8] == b"ftyp" else head[:4]
    follows = ""
    is_avi = head[8:11] == following[8:11] == b"AVI"  # large ones have several such parts
    is_read_on = is_avi or head[:4] == following[:4] == _MATROSKA
    if any(magic in following for magic in (start, *_FOREIGN)) and not is_read_on:
        follows = f"another file of {rest} {_FOLLOWS}"
    elif following.lstrip(b"\0").startswith(_TAGS):
        follows = f"{rest} of notes (tags) follow its sound and are not read."
    if follows:
        data.warn(follows)
        data.crop(0, rest_at)
    pages = data.part(0, 2**18) if head.startswith(b"OggS") else b""
    is_short = pages.count(b"OggS") == 3 and len(pages) < 2**18  # FFmpeg would not be exact
    if head.startswith(_PLAIN) or (is_short and not _find_missing(data)):
        data.seek(0)
        with suppress(soundfile.LibsndfileError):
            file = soundfile.SoundFile(data)
            if file.subtype in (*SAMPLE_BYTES, *_CODED):
                if track not in (None, "1"):
                    raise AudioError(f"{data.path}: has no sound track {track}. It has only one.")
                return PlainFile(data, file)
    return Container(data, track)


def _check_sample_bytes(data: SoundBytes) -> None:
    """Refuse samples that do not take as many bytes as they have bits: decoders would read noise.

    WAV (also as RIFX, RF64 and W64) and CAF can have such. Two numbers of a WAV's header have to
    say so, since some programs write one of them wrongly. But where one says 24 bits and the other
    4 bytes, libsndfile guesses, and often wrongly.
    """
    head = data.part(0, 2**12)
    kind, at = head[:4], head.find(b"desc" if head.startswith(b"caff") else b"fmt ")
    if at < 0 or kind not in _CHUNKS or kind == b"FORM":
        return
    form = head[at + struct.calcsize(_CHUNKS[kind].header) :].ljust(32, b"\0")
    if kind == b"caff":
        coding, frame_bytes, frames, channels, bits = struct.unpack_from(">8x4s4xIIII", form)
        is_sure = coding == b"lpcm" and frames == 1
    else:
        layout = ">HHIIHH" if kind == b"RIFX" else "<HHIIHH"
        coding, channels, rate_hz, bytes_per_s, frame_bytes, bits = struct.unpack_from(layout, form)
        is_guessed = (coding, bits, frame_bytes) == (1, 24, 4 * channels)
        is_sure = is_guessed or (coding in _PCM_TAGS and bytes_per_s == rate_hz * frame_bytes)
    needed = -(-bits // 8)  # some programs forget to multiply it by the channels
    is_usual = frame_bytes in (0, needed, channels * needed)
    if is_sure and channels and bits and not is_usual:
        raise AudioError(
            f"{data.path}: its header says that its samples have {bits} bits, and take "
            f"{8 * frame_bytes // channels}. Export it again as 16-bit PCM."
        )


class PlainFile:
    """A file that libsndfile decodes, once."""

    def __init__(self, data: SoundBytes, file: soundfile.SoundFile) -> None:
        import soundfile

        self.data, self._file, self._missing = data, file, ""
        begin = data.tell()  # of the first sample: to it libsndfile goes when it opens a file
        size, rate_hz = data.size, file.samplerate
        frames, frame_bytes = file.frames, SAMPLE_BYTES.get(file.subtype, 0) * file.channels
        end = next((end for end in data.ends if end >= begin), 0)
        rest = size - max((end for end in data.ends if end <= size), default=size)
        if size < end <= size + _MISCOUNTED_BYTES:
            data.warn(f"its header announces {end - size} bytes more than there are.")
        elif end > size > begin:
            here_s = frames / rate_hz
            whole_s = here_s * (end - begin) / (size - begin)
            self._missing = f"truncated: {here_s:.2f} of {whole_s:.2f} s are there"
        elif begin <= end <= size and frame_bytes:
            frames = min(frames, (end - begin) // frame_bytes)  # libsndfile may read on
            if rest >= max(2 * frame_bytes, _MISCOUNTED_BYTES):
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
        _check_end_mark(data, frames / rate_hz)
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


class Container:
    """A file that FFmpeg decodes, once.

    Pauses in a recording, as its time stamps tell them, become silence.
    """

    def __init__(self, data: SoundBytes, track: str | None) -> None:
        import av

        if (av.logging.get_level() or 0) < av.logging.WARNING:  # its log is for our messages alone
            av.logging.set_level(av.logging.WARNING)
            av.logging.set_skip_repeated(False)
            logging.getLogger("libav").addHandler(logging.NullHandler())
            logging.getLogger("libav").propagate = False
        self.data, self._missing = data, _find_missing(data)
        self._own_end = max((end for end in data.ends if end <= data.size), default=data.size)
        # What is behind the end of a WAV is read as its sound, as of an unfinished recording.
        is_unfinished = data.size - self._own_end > _MISCOUNTED_BYTES
        self._options = {"ignore_length": "1"} if is_unfinished else {}
        self._container, log = self._open()
        self._kind = self._container.format.name.split(",")[0]
        # To find out what a file holds, FFmpeg reads its beginning and its end.
        at_open = _complaints(log, self._kind)
        self._doubt = "".join(at_open[:1])
        self._damage = next(filter(_DAMAGE.search, at_open), "")
        self._traits = KINDS[self._kind]
        self._source, tracks = self._choose(track)
        self._decoder = _decoder_of(self._source, self._kind)
        # FFmpeg before 6 wrote too short a delay of Opus, which is skipped, to WebM and MKV.
        head, self._early = self._decoder.extradata or b"", 0
        if head.startswith(b"OpusHead"):
            self._early = max(0, int.from_bytes(head[10:12], "little") - self._decoder.delay)
        texts = " ".join(text for _, _, text in log)
        self.info = self._announce(tracks, texts)
        if "duplicated MOOV" in texts:
            data.warn(f"another file {_FOLLOWS}")
        self._done = 0  # samples per channel, of which some are silence for gaps
        self._silent = 0
        self._lost = 0  # those of the silent ones that are for damaged parts
        self._origin: int | None = None  # the time of the first sample; None if not known yet
        self._damages: list[tuple[float, str]] = []
        self._is_after_damage = False
        self._complaint = ""  # what FFmpeg complained of at the last packet, or on opening
        self._joined = 1  # how many files are in it, one after the other
        self._end = 0  # where the packets end that held sound
        self._last = b""  # the last of them
        self._largest = 0  # the bytes of the largest of them, but the last

    def _open(self) -> tuple[av.container.InputContainer, list[tuple[int, str, str]]]:
        """Open the file, and give what FFmpeg logs of it."""
        import av

        self.data.seek(0)
        with av.logging.Capture() as log:
            try:
                container = av.open(
                    self.data,
                    "r",
                    container_options=self._options
                    | {
                        "format_whitelist": ",".join(KINDS),
                        "protocol_whitelist": "",
                    },
                    io_open=_refuse_to_open,
                    metadata_errors="replace",
                )
                return container, log
            except (av.FFmpegError, OSError, ValueError) as error:
                missing, text = self._missing, _reason(error, log)
                if any("moov atom not found" in message for _, _, message in log):
                    missing = "its index (moov atom) is missing"
                text = f"not a readable sound file ({text}). Export it again as WAV."
                if missing:
                    text = _USELESS.format(missing)
                self.data.check_read()
                raise AudioError(f"{self.data.path}: {text}") from error

    def _choose(self, track: str | None) -> tuple[av.AudioStream, tuple[str, ...]]:
        """Find the sound tracks and take one."""
        from av.stream import Discard

        path, sources = self.data.path, self._container.streams.audio
        streams = [source for source in sources if source.codec_context is not None]
        if not streams and self._missing:
            raise AudioError(f"{path}: {_USELESS.format(self._missing)}")
        if not sources:
            raise AudioError(f"{path}: has no sound track. Name a file that has one.")
        if not streams:
            raise AudioError(f"{path}: its sound has an unknown encoding. Convert it to WAV.")
        tracks, chosen = [], []
        for number, source in enumerate(streams, 1):
            language = (source.language or "").replace("und", "")
            tracks.append(f"{number} ({_channels(source)} ch{language and f', {language}'})")
            names = (str(number), language.lower(), language[:2].lower())
            if track is None or track.lower() in names:
                chosen.append(source)
        if not chosen:
            raise AudioError(f"{path}: has no sound track {track}. It has: {', '.join(tracks)}.")
        for other in self._container.streams:
            if other is not chosen[0]:
                other.discard = Discard.all
        return chosen[0], tuple(tracks)

    def _announce(self, tracks: tuple[str, ...], log: str) -> AudioInfo:
        """Find out when the sound starts, and how long it is by the header."""
        from av.stream import Disposition

        source, container, kind = self._source, self._container, self._kind
        rate_hz, channels = source.rate or 0, source.channels or 0
        self._is_timed = True  # AVI has no time stamps: FFmpeg counts chunks, some twice
        self._tick_s = float(source.time_base or 1 / max(rate_hz, 1))
        start_s = (source.start_time or 0) * self._tick_s
        end_s, length_s = (container.duration or 0) / 1e6, (source.duration or 0) * self._tick_s
        others = [s for s in container.streams if not s.disposition & Disposition.attached_pic]
        self._is_alone = len(others) == 1  # so that the length announced is the sound's
        self._is_exact = Trait.EXACT in self._traits and (
            self._is_alone or kind in ("mov", "ogg", "rm")
        )
        if kind == "matroska":
            clock = re.match(r"(\d+):(\d+):(\d+\.?\d*)", source.metadata.get("DURATION", ""))
            if clock:
                end_s = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
            self._is_exact = self._is_alone or clock is not None
            length_s = max(0.0, end_s - start_s)
        if "bitrate" in log:  # by which FFmpeg estimates a length
            self._is_exact = False
        if kind == "avi":
            self._is_timed = source.codec_context.name.startswith("pcm")
            if self._is_timed:
                length_s, self._is_exact = source.frames / max(rate_hz, 1), self._is_alone
            if int.from_bytes(self.data.part(4, 4), "little") >= _UNKNOWN_LENGTH:  # from a pipe
                length_s, end_s, self._is_exact = 0.0, 0.0, False
        if Trait.FROM_ZERO not in self._traits:
            start_s -= (container.start_time or 0) / 1e6
        start_s = round(max(0.0, start_s), 3) if start_s > 0.04 else 0.0
        frames = round((length_s or end_s) * rate_hz)
        return AudioInfo(rate_hz, channels, frames, start_s, tracks)

    def blocks(self, size: int) -> Blocks:
        """As `PlainFile.blocks`."""
        held: list[npt.NDArray[np.float32]] = []
        count = 0
        for piece in self._pieces(size):
            held.append(piece)
            count += piece.shape[1]
            while count >= size:
                joined = np.concatenate(held, axis=1)
                yield joined[:, :size]
                held, count = [joined[:, size:]], count - size
        if count:
            yield np.concatenate(held, axis=1)

    def _pieces(self, size: int) -> Blocks:
        """The decoded samples in pieces, with silence where the time stamps jump."""
        channels, is_mixed = self.info.channels, False
        for frame, damage in self._frames():
            if damage and not self._done and frame is None and Trait.BARE in self._traits:
                if not self._is_after_damage:
                    self.data.warn("does not begin with a whole frame: it may have been cut off.")
                self._is_after_damage = True
            elif damage:
                self._note(damage)
            if frame is None:
                continue
            samples = _to_float(frame)
            if samples is not None and len(samples) != channels:  # as in broadcasts, from 2 to 5.1
                if not is_mixed and len(samples) > 1:
                    self.data.warn(
                        f"has {len(samples)} channels, not {channels}, after "
                        f"{self._done / self.info.sample_rate_hz:.2f} s: their mean is used there."
                    )
                    is_mixed = True
                samples = np.repeat(samples.mean(axis=0, keepdims=True), channels, axis=0)
            if samples is None or frame.sample_rate != self.info.sample_rate_hz:
                kind = "kind" if samples is None else f"sample rate, {frame.sample_rate} Hz,"
                self._note(f"{_CHANGE} {kind} there")
                continue
            if self._kind == "mov" and not self._done and (ticks := frame.pts or 0) < 0:
                # FFmpeg skips too little where a track's clock is slower than its sample rate.
                self._early = round(-ticks * self._tick_s * self.info.sample_rate_hz)
            early = min(self._early, samples.shape[1])
            samples, self._early = samples[:, early:], self._early - early
            gap = self._gap(frame)
            for start in range(0, gap, size):
                yield np.zeros((channels, min(size, gap - start)), np.float32)
            yield samples
            self._done += gap + samples.shape[1]
            self._silent += gap
            self._is_after_damage = False
        self._check_end()

    def _packets(self) -> Iterator[av.Packet[Any]]:
        """The packets of the sound track; of joined FLACs, whose ends FFmpeg mixes up, of each."""
        data, size = self.data, self.data.size
        starts = []
        for at in range(0, size if self._kind == "flac" else 0, 2**20):
            starts += [at + mark.start() for mark in _FLAC.finditer(data.part(at, 2**20 + 7))]
        starts[:1], self._joined = [0], max(1, len(starts))
        if self._joined == 1:
            yield from self._container.demux(self._source)
            return
        frames, before = 0, 0
        for start, end in zip(starts, [*starts[1:], size], strict=True):
            data.crop(start - before, end - before)
            before = start
            try:
                container, _ = self._open()
            except AudioError:
                self._note("the next of the files in it cannot be read")
                continue
            source = container.streams.audio[0]
            frames += round((source.duration or 0) * (source.time_base or 0) * (source.rate or 0))
            self.info = replace(self.info, frames=frames)
            for packet in container.demux(source):
                if packet.size or end == size:  # an empty one ends the decoding
                    yield packet

    def _frames(self) -> Iterator[tuple[av.AudioFrame | None, str]]:
        """Frames, and what is wrong with their packets, if anything is: maybe without a frame."""
        import av

        packets, end = self._packets(), None
        notes = 0  # the bytes that are left of an ID3 tag, whose pictures may look like frames
        while True:
            packet, frames, damage = None, [], ""
            with av.logging.Capture() as log:
                try:
                    packet = next(packets)
                    frames = self._decoder.decode(packet)
                except StopIteration:
                    return
                except (av.FFmpegError, OSError, ValueError, IndexError) as error:
                    damage = _reason(error, log)
            self.data.check_read()
            if packet is not None and packet.size:
                if packet.has_sidedata("encryption_info"):
                    text = "its sound is encrypted (DRM). Use a copy that is not."
                    raise AudioError(f"{self.data.path}: {text}")
                is_cut = packet.is_corrupt and self._kind not in ("wav", "caf")  # chunks tell
                if is_cut or any(frame.is_corrupt for frame in frames):
                    damage = damage or "part of it is missing"
                data = bytes(packet)
                if Trait.BARE in self._traits:
                    notes = max(notes, _id3_bytes(data))
                if notes:
                    frames, self._origin = [], None  # they count in the time stamps
                is_sound = any(data) and not data.startswith(_TAGS) and not notes
                notes = max(0, notes - len(data))
                is_blank = "opus" in self._decoder.name and len(data) > 8 and not any(data)
                zeros = "zeros are in the place of sound"  # which Opus decodes as silence
                damage = zeros if is_blank else damage if is_sound else ""
                # A packet of which all is to be skipped gives no frame.
                if frames or (is_sound and packet.has_sidedata("skip_samples")):
                    self._largest = max(self._largest, len(self._last))
                    self._end, self._last = (packet.pos or self._end) + packet.size, data
                if Trait.BARE in self._traits and packet.pos is not None and packet.pos >= 0:
                    if end is None and packet.pos >= 2**12 and not any(self.data.part(0, 3)):
                        self.data.warn(f"its first {packet.pos:,} bytes are not sound.")
                    if end is not None and packet.pos > end + 1:
                        damage = damage or f"{packet.pos - end} bytes in it are not sound"
                    end = packet.pos + packet.size
            self._complaint = "".join(_complaints(log, self._kind)[:1]) or self._doubt
            losses = [text for text in _complaints(log) if _DAMAGE.search(text)]
            yield from ((frame, "") for frame in frames[:-1])  # which are good
            yield frames[-1] if frames else None, damage or "".join(losses[:1])

    def _note(self, reason: str) -> None:
        """Remember a damage at this place, or raise it."""
        at_s = self._done / self.info.sample_rate_hz
        if self.data.advice is not None:
            if reason.startswith(_CHANGE) and self._done:
                split = "Split it there with an audio editor"
                self.data.advice = self.data.advice.replace("Copy it again", split)
            self.data.report(f"damaged after {at_s:.2f} s ({reason})")
        if (at_s, reason) not in self._damages[-1:]:
            self._damages.append((at_s, reason))
        self._is_after_damage = True

    def _gap(self, frame: av.AudioFrame) -> int:
        """Samples of silence that a frame's time stamp puts before it."""
        if frame.pts is None or not self._is_timed:
            return 0
        rate_hz, announced = self.info.sample_rate_hz, self.info.frames
        at, pause = round(frame.pts * self._tick_s * rate_hz), round(_PAUSE_S * rate_hz)
        self._origin = at - self._done if self._origin is None else self._origin
        gap = at - self._origin - self._done
        longest = 3600 * rate_hz - self._silent
        if announced and (self._is_exact or Trait.FROM_ZERO in self._traits):
            longest = round(1.2 * announced) + 10 * rate_hz - self._done
        longest = max(longest, pause)
        if gap > longest:
            gap_s = gap / rate_hz
            self._note(f"a time stamp leaves a gap of {gap_s:.0f} s, more than the file announces")
        if gap > longest or gap < -pause:  # what follows is joined to what was before
            self._origin += gap
            return 0
        is_pause = Trait.PAUSING in self._traits and not self._complaint
        if gap > pause and not self._is_after_damage and not is_pause:
            self._note(self._complaint or f"{gap / rate_hz:.2f} s are missing there")
        if not self._is_after_damage:
            return gap if gap > pause else 0
        self._lost += max(0, gap)
        return max(0, gap)

    def _check_end(self) -> None:
        """After the last sample: report what is missing, or what is more than announced."""
        data, info, damages = self.data, self.info, self._damages
        rate_hz, announced_s = info.sample_rate_hz, info.seconds
        done_s = self._done / rate_hz
        data.check_read()
        if not self._done:
            reason = f" ({damages[0][1]})" if damages else ""
            raise AudioError(f"{data.path}: holds no samples{reason}. Copy or record it again.")
        missing_s = announced_s - done_s if self._is_exact else 0.0
        inaccuracy_s = max(0.15, (4096 if self._kind == "caf" else 2500) / rate_hz)
        rest = self._unread()
        if damages:
            text = f"damaged after {damages[0][0]:.2f} s ({damages[0][1]})"
            text += f", and at {len(damages) - 1} more places" if len(damages) > 1 else ""
            if self._lost:
                text += f"; {self._lost / rate_hz:.2f} s could not be read and are silent"
            if missing_s > 0.02:
                text += f"; {missing_s:.2f} of {announced_s:.2f} s are missing"
            data.report(text)
        elif missing_s > inaccuracy_s + 0.001 * announced_s:
            data.report(f"truncated: {done_s:.2f} of {announced_s:.2f} s can be read")
        elif self._missing:
            data.report(f"truncated after {done_s:.2f} s: {self._missing}")
        elif self._damage:
            data.report(f"damaged at its beginning or end ({self._damage})")
        elif rest > (0 if self._is_followed() else 0.5 * self._end / done_s):
            data.report(f"{rest:,} bytes after {done_s:.2f} s are not sound that can be read")
        else:
            self._warn_of_end(rest, done_s)
        more = self._done - self._silent - info.frames
        if self._joined > 1 and not data.is_damaged:
            data.warn(f"{self._joined} files are joined into one. All was read.")
        elif self._is_exact and info.frames and more > 0.01 * info.frames + rate_hz:
            data.warn(
                f"its header announces {announced_s:.2f} s, but {done_s:.2f} s follow (several "
                "files joined into one?). All was read."
            )

    def _warn_of_end(self, rest: int, done_s: float) -> None:
        """Warn if the end of the sound may be missing, or if more follows that cannot be read."""
        data = self.data
        if Trait.BARE in self._traits and (rest or self._is_last_cut()):
            data.warn(
                f"ends in the middle of a frame, after {done_s:.2f} s: it may have been cut off."
            )
        elif ignored := self._ignored():
            data.warn(f"about {ignored:,} bytes follow its sound and are not read.")
        elif (zeros := self._zeros()) > 0.1 * self._end / done_s:
            data.warn(f"its last {zeros:,} bytes are zeros: it may be an interrupted copy.")
        else:
            _check_end_mark(data, done_s)

    def _unread(self) -> int:
        """How many bytes follow the last sound, where none should but notes such as ID3."""
        if self._kind == "ogg" and self._is_alone:
            page_at = self.data.part(self._end, 2**24).find(b"OggS")
            return self.data.size - self._end - page_at if page_at >= 0 else 0
        if Trait.LAST not in self._traits or not self._is_alone:
            return 0
        part, size = self.data.part, self.data.size
        notes, rest = part(max(self._end, size - 160), 160), part(self._end, 2**24)
        noted = any(tag in rest[:64] + notes for tag in _TAGS)
        if self._kind == "mpegts":
            size -= 192 * rest.count(_NULL_PACKET)
        elif self._kind == "aac" and rest:  # places do not count the tags among the frames
            for start in range(0, self.data.size, 2**24):
                tags = _ID3.finditer(part(start, 2**24 + 9))
                size -= sum(_id3_bytes(tag[0]) for tag in tags if start + tag.start())
        return 0 if noted and part(0, 8) not in rest else max(0, size - self._end)

    def _ignored(self) -> int:
        """About how many bytes follow the sound, also those that its last packet has swallowed."""
        part, size, own_end = self.data.part, self.data.size, self._own_end
        if self._end <= own_end < size - _MISCOUNTED_BYTES and self._kind not in ("mov", "asf"):
            rest, count = part(own_end, 2**20), size - own_end
        else:
            rest, count = self._last[2 * self._largest + 2**10 :], len(self._last) - self._largest
        return count if any(rest) and self._largest else 0

    def _zeros(self) -> int:
        """How many zeros, up to a MiB, end a file that does not announce how long its sound is."""
        is_fragmented = b"mvex" in self.data.part(0, 2**16)
        if self._is_exact and self.info.frames and not is_fragmented:
            return 0
        begin = max(self._end, self.data.size - 2**20)
        tail = self.data.part(begin, 2**20)
        return len(tail) - len(tail.rstrip(b"\0"))

    def _is_followed(self) -> bool:
        """Whether another file of this kind follows the last sound."""
        is_whole = Trait.EXACT in self._traits and Trait.BARE not in self._traits
        return is_whole and self.data.part(0, 8) in self.data.part(self._end, 2**24)

    def _is_last_cut(self) -> bool:
        """Whether the last frame would be longer if another followed it."""
        frames = self._source.codec_context.parse(2 * self._last)
        return not frames or frames[0].size > len(self._last)


def _id3_bytes(data: bytes) -> int:
    """The length of the ID3 tag that begins there, or 0."""
    if not (header := _ID3.match(data)):
        return 0
    length: bytes = header[1]
    return 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(length)))


def _decoder_of(source: av.AudioStream, kind: str) -> av.AudioCodecContext:
    """What decodes a sound track of a file of this `kind`."""
    import av

    decoder = source.codec_context
    better = f"libopencore_{decoder.name}"  # which also knows the comfort noise in AMR's pauses
    if better in av.codecs_available:
        rate_hz, layout = decoder.sample_rate, decoder.layout
        decoder = cast("av.AudioCodecContext", av.AudioCodecContext.create(better, "r"))
        decoder.sample_rate, decoder.layout = rate_hz, layout
    decoder.thread_count = 1  # its log must come from this thread
    decoder.options = {"err_detect": "crccheck"}
    if (kind, decoder.name) == ("caf", "alac"):  # FFmpeg 8 would shorten a short last packet again
        decoder.options |= {"flags2": "skip_manual"}
    return decoder


def _channels(source: av.AudioStream) -> int:
    """How many channels a sound track has.

    Some files, such as QuickTime's, name each channel. PyAV frees that list twice, with each layout
    that it gives of the track, so the track gets a layout without one.
    """
    layout = source.codec_context.layout
    if "(" in layout.name:
        source.codec_context.layout = f"{layout.nb_channels}C"
    return layout.nb_channels


def _refuse_to_open(*address: object) -> Any:
    raise PermissionError(f"{address[0]} is not opened")


def _to_float(frame: av.AudioFrame) -> npt.NDArray[np.float32] | None:
    """A decoded frame as [channel, sample] in -1..1; None if it has integers of 64 bits."""
    count, is_planar = frame.layout.nb_channels, frame.format.is_planar
    dtype = _SAMPLE_TYPES.get(frame.format.name.removesuffix("p"))
    if dtype is None:
        return None
    # Not `to_ndarray`: of 8 channels and more, PyAV also reads memory that is not the frame's.
    planes = frame.planes[: count if is_planar else 1]
    size = frame.samples if is_planar else frame.samples * count
    samples: npt.NDArray[Any] = np.stack(
        [np.frombuffer(bytes(plane), dtype, size) for plane in planes]
    )
    if not is_planar:
        samples = samples.reshape(-1, count).T
    if samples.dtype.kind in "iu":
        is_unsigned, scale = samples.dtype.kind == "u", 2.0 ** (8 * samples.itemsize - 1)
        samples = samples.astype(np.dtype("float32" if samples.itemsize < 4 else "float64"))
        samples = samples / scale - is_unsigned
    return samples.astype(np.float32)


def _complaints(log: list[Any], kind: str = "") -> list[str]:
    """What FFmpeg, or its part for a `kind` of file, logged of errors, each on one line."""
    import av

    errors = [text for level, part, text in log if level <= av.logging.ERROR and kind in part]
    lines = [line(re.sub(r" at PTS -?\d+", "", text).strip(" .\n"), 200) for text in errors]
    return [text for text in lines if text]


def _reason(error: Exception, log: list[Any]) -> str:
    """FFmpeg's last complaint, or its error's name where that says anything."""
    text = [getattr(error, "strerror", "") or str(error), *_complaints(log)][-1]
    if text.startswith("Format not on whitelist"):
        return "mcspex does not read this format"
    if re.search("create or replace stream|Packet processing failed", text):  # of joined Oggs
        return f"{_CHANGE} kind there"
    is_clear = not re.match("Error number|Resource temporarily unavailable", text)
    return text if is_clear else "what is there cannot be decoded"
