"""What is in a sound file: libsndfile decodes plain samples, and FFmpeg, through PyAV, all else.

Nothing is lost without a word: what a file announces and what comes out of it are compared, and a
difference is a `DamagedError` or a warning that says how much is missing. Where a decoder does not
tell where a file ends, its chunks, pages, packets or frames do.

FFmpeg gets an open file and never a name, reads only formats that hold their sound themselves, and
may open nothing else, so that playlists and the like lead nowhere.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mcspex_cli.errors import AudioError, DamagedError, line
from mcspex_cli.files import explain

if TYPE_CHECKING:
    import av
    import soundfile

Blocks = Generator[npt.NDArray[np.float32], None, None]
"""Samples as blocks [channel, sample], in order."""

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3}
SAMPLE_BYTES |= {"PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a sample, by libsndfile's name of its kind."""

_MAGIC = (
    *(b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff", b"caff", b".snd", b"dns.", b"NIST"),
    *(b"2BIT", b" paf", b"fap ", b"\x64\xa3\1\0", b"\0\1\xa3\x64"),
)
"""How the files begin whose plain samples libsndfile reads: WAV, AIFF, W64, CAF, AU, SPHERE, ..."""

_BIG_ENDIAN = ("AIFF", "CAF", "AU")

_CODED = ("VORBIS", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")
"""Encodings that FFmpeg does not decode, or not as they were encoded."""

_SAMPLE_COUNTS = {"NIST": rb"sample_count -i (\d+)", "AVR": rb"Frames +: (\d+)"}
"""Where a header, or libsndfile's log of it, has the samples per channel."""

_CONTAINERS = (
    "3gp aac ac3 aiff amr amrnb amrwb ape asf au avi caf dts eac3 flac flv gsm loas matroska mov "
    "mp3 mpc mpc8 mpeg mpegts mxf ogg qcp rm tak tta voc w64 wav wtv wv"
).split()
"""FFmpeg's formats that hold their sound themselves; playlists name other files, or servers."""

_RAW = ("mp3", "aac", "ac3", "eac3", "dts", "amr", "amrnb", "amrwb", "gsm", "loas")
"""Formats of bare frames: no header says how long they are, but for many MP3s'."""

_EXACT = tuple("mov avi flac wav asf ogg caf aiff flv tta wv ape tak mpc mpc8".split())
"""Containers that announce how long their sound is, to a frame or so."""

_UNINDEXED = (*_RAW, "mpegts", "mpeg", "flv", "tta", "wv", "ape")
"""Formats in which nothing but notes follows the last sound."""

_FROM_ZERO = ("mov", "matroska", "avi", "asf", "flv")
"""Containers whose times count from the beginning, even if a track begins later."""

_PAUSING = (*_FROM_ZERO, "mpegts", "mpeg", "mxf", "rm", "wtv")
"""Containers in which a recording may pause; elsewhere a gap in the time stamps is damage."""

_PAUSE_S = 0.1
"""Gaps between time stamps from here on are silence in the recording; less is their inaccuracy."""

_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
"""How the notes begin that stand among or after an MP3's frames, or after another file."""

_DAMAGE = re.compile(
    r"ended prematurely|exceeds containing|\bcrc\b|truncat|partial file|packet_obj_size",
    re.IGNORECASE,
)
"""What FFmpeg only complains of, though part of the sound is lost."""

_UNKNOWN_LENGTH = 0x7FFFF000
"""Chunk lengths from here on are what programs write that do not know them (to a pipe)."""

_FILE_SIZE = re.compile(
    rb"^(?:FLV.*filesize\0(.{8})|\x30\x26\xb2\x75.*"
    rb"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\0\xc0\x0c\x20\x53\x65.{24}(.{8}))",
    re.DOTALL,
)
"""Where Flash and Windows Media files say how long they are."""

_VOC = b"Creative Voice File\x1a"
_ASF = b"\x30\x26\xb2\x75"
_CHUNKED = dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"FORM"), (12, 2))
_CHUNKED |= {b"riff": (40, 8), b"caff": (8, 1)}
"""Where the first chunk of a file begins, and to how many bytes its chunks are aligned."""

_BOXES = b"ftyp moov mdat moof mfra free skip wide udta meta uuid sidx styp pdin".split()
"""The outermost boxes of an MP4."""


class _Bytes:
    """A part of an open file, for decoders: bytes without a name, and none beyond its end.

    Nothing is raised into a decoder, which would print it; `error` is for those who look later.
    """

    def __init__(self, stream: BinaryIO, begin: int = 0) -> None:
        self.stream, self.begin = stream, begin
        self.size = os.fstat(stream.fileno()).st_size - begin
        self.error: OSError | None = None
        self.seek(0)

    def tell(self) -> int:
        return self.stream.tell() - self.begin

    def read(self, size: int) -> bytes:
        try:
            return self.stream.read(max(0, min(size, self.size - self.tell())))
        except OSError as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        offset += {os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}.get(whence, 0)
        try:
            return self.stream.seek(self.begin + offset) - self.begin
        except (OSError, ValueError, OverflowError):  # a damaged file leads nowhere
            return -1

    def part(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on."""
        self.seek(start)
        return self.read(size)


# --- where a file ends by its own account --------------------------------------------------------


def _find_ends(data: _Bytes) -> list[int]:
    """Where the parts of a file end by its own account, in order: its chunks, or the whole of it.

    The last end may be beyond the end of the file. After a chunk of unknown length, and after what
    is no chunk of this file, none are known.
    """
    head = data.part(0, 2**13)
    is_mp4 = head[4:8] in (b"ftyp", b"wide", b"moov", b"skip")
    if file_size := _FILE_SIZE.match(head):  # Flash's is a floating-point number
        flash, windows = file_size.groups(bytes(8))
        end = max(int(struct.unpack(">d", flash)[0]), int.from_bytes(windows, "little"))
        return [end] if end else []
    if head[:4] == b".snd":
        begin, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
        return [begin + length] if length < _UNKNOWN_LENGTH else []
    is_voc, (at, alignment) = head.startswith(_VOC), _CHUNKED.get(head[:4], (data.size, 1))
    if is_mp4 or is_voc:
        at = int.from_bytes(head[20:22], "little") if is_voc else 0
    ends: list[int] = []
    while at < data.size:
        chunk = data.part(at, 24)
        name, length = chunk[4:8] if is_mp4 else chunk[:4], _chunk_bytes(head, chunk)
        is_foreign = is_mp4 and at + length > data.size and name not in _BOXES  # a camera's, say
        is_named = is_voc or (len(chunk) >= 8 and name.isascii() and name.decode().isprintable())
        if is_foreign or not is_named or not 0 < length < 2**62:
            break
        if at > 8 and _is_another(head, chunk):
            break
        ends.append(at + length)
        if is_voc and not chunk[0]:
            break
        at = ends[-1] + -ends[-1] % alignment
    return ends


def _chunk_bytes(head: bytes, chunk: bytes) -> int:
    """How long a chunk is, with its header, in a file that begins with `head`; 0 if unknown."""
    match head[:4]:
        case b"RIFF" | b"RF64" | b"RIFX" | b"FORM":
            is_little = head[:4] in (b"RIFF", b"RF64")
            length = int.from_bytes(chunk[4:8], "little" if is_little else "big")
            if head[12:16] == b"ds64" and chunk[:4] == b"data":
                length = int.from_bytes(head[28:36], "little")
            return 8 + length if length < _UNKNOWN_LENGTH or head[:4] == b"RF64" else 0
        case b"riff":  # W64
            return int.from_bytes(chunk[16:24], "little")
        case b"caff":
            return 12 + int.from_bytes(chunk[4:12], "big")
        case b"Crea":  # VOC
            return 4 + int.from_bytes(chunk[1:4], "little") if chunk[0] else 1
    length = int.from_bytes(chunk[:4], "big")  # MP4
    return int.from_bytes(chunk[8:16], "big") if length == 1 else length


def _is_another(head: bytes, following: bytes) -> bool:
    """Whether another file like that which begins with `head` follows, perhaps after padding."""
    return head[: 8 if head[4:8] in _BOXES else 4] in following or following[4:8] == b"ftyp"


def _find_ending(data: _Bytes) -> tuple[str, int]:
    """What is missing at the end of a file, if anything is, and where the file ends.

    Another file may follow, as `cat a.mp4 b.mp4` makes it.
    """
    size, head = data.size, data.part(0, 2**9)
    end = (_find_ends(data) or [size])[-1]
    missing = f"{end - size:,} bytes are missing at its end" if end > size else ""
    if head[:4] == b"OggS":
        tail = data.part(max(0, size - 2**16), 2**16)  # a page is under 64 KiB
        page = tail[tail.rfind(b"OggS") :]
        is_last = len(page) > 27 and page[5] & 4
        if not is_last or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            missing = "its last Ogg page is missing"
    elif head[:1] == head[188:189] == b"G" and size % 188:  # MPEG-TS
        missing = "its last packet is not whole"
    elif head[:4] == _ASF and not missing and not any(data.part(max(0, size - 2**12), 2**12)):
        missing = "its end is all zeros"
    elif _is_another(head, data.part(end, 12)):
        return "", size if head[8:12] == b"AVI " else end  # AVIs are read on
    elif head.startswith(_VOC) and size - end > 64:
        missing = f"{size - end:,} bytes follow the mark of its end"
    return missing, size


# --- decoders ------------------------------------------------------------------------------------


class Decoder:
    """An open sound file, of which one track is decoded, once.

    Args:
        path: its name, for messages.
        stream: the open file.
        cure: what to do about damage, of which a `DamagedError` tells. If it is None, what can be
            read is kept, with silence where a part is lost in the middle, and a warning tells.
    """

    tracks: tuple[str, ...]
    """All sound tracks, such as "2 (1 ch, eng)"."""
    sample_rate_hz: int
    channels: int
    frames: int
    """Samples per channel that the header announces; 0 if it does not say."""
    start_s = 0.0
    """When the sound begins in its container's time."""

    def __init__(self, path: Path, stream: BinaryIO, cure: str | None) -> None:
        self._path, self._data, self._cure = path, _Bytes(stream), cure
        self.warnings: list[str] = []

    def blocks(self, size: int) -> Blocks:
        """Decode to blocks [channel, sample] of `size` samples, the last shorter.

        Raises:
            DamagedError: the file is damaged or truncated, and there is a cure.
        """
        raise NotImplementedError

    def _report(self, damage: str) -> None:
        if self._cure is not None:
            raise DamagedError(f"{self._path}: {damage}. {self._cure}")
        self.warnings.append(f"{self._path}: {damage}.")

    def _warn_of_another(self, what: str) -> None:
        self.warnings.append(
            f"{self._path}: another {what} follows the first in it and is not read. Split them, or "
            "join them with an audio editor."
        )


def open_decoder(path: Path, stream: BinaryIO, track: str | None, cure: str | None) -> Decoder:
    """Choose what decodes a file, of which `track` is a sound track's number or language.

    Raises:
        AudioError: it is not a sound file, or has no such track.
    """
    import soundfile

    start = stream.read(4)
    if start == b"OggS":
        start += stream.read(2**18)
    is_short = start.count(b"OggS") == 3 and len(start) < 2**18  # FFmpeg would not be exact
    if start in _MAGIC or is_short:
        stream.seek(0)
        with suppress(soundfile.LibsndfileError, TypeError):
            source = str(path) if os.name == "nt" else stream.fileno()
            file = soundfile.SoundFile(source, closefd=False)
            if file.subtype in (*SAMPLE_BYTES, *_CODED):
                if track not in (None, "1"):
                    raise AudioError(f"{path}: has no sound track {track}. It has only one.")
                return PlainFile(path, stream, cure, file)
            file.close()
    return Container(path, stream, cure, track)


class PlainFile(Decoder):
    """A file that libsndfile decodes."""

    def __init__(
        self, path: Path, stream: BinaryIO, cure: str | None, file: soundfile.SoundFile
    ) -> None:
        begin = stream.tell() if os.name != "nt" else 0  # libsndfile shares the position
        super().__init__(path, stream, cure)
        self._file, self._begin, self._missing = file, begin, ""
        self.sample_rate_hz, self.channels = file.samplerate, file.channels
        self.tracks = (f"1 ({file.channels} ch)",)
        self.frames = file.frames
        if begin:
            self._check_length(begin, SAMPLE_BYTES.get(file.subtype, 0) * file.channels)
        if not self.frames:
            raise AudioError(f"{path}: holds no samples. Copy or record it again.")

    def _check_length(self, begin: int, frame_bytes: int) -> None:
        """Compare what is there with what the header announces; samples are from `begin` on."""
        import soundfile

        data, file = self._data, self._file
        here_s, size = file.frames / file.samplerate, data.size
        ends = _find_ends(data)
        header = data.part(0, 1024) + file.extra_info.encode()
        if count := re.search(_SAMPLE_COUNTS.get(file.format, b"$^"), header):
            ends = [begin + int(count[1]) * frame_bytes]
        end = next((end for end in ends if end >= begin), 0)
        if end > size:
            whole_s = here_s * (end - begin) / (size - begin)
            self._missing = f"truncated: {here_s:.2f} of {whole_s:.2f} s are there"
        if not begin <= end <= size or not frame_bytes:
            return
        self.frames = min(file.frames, (end - begin) // frame_bytes)  # libsndfile may read on
        rest_at = max(one for one in ends if end <= one <= size)
        if size - rest_at < max(2 * frame_bytes, 64):
            return
        rest_s = (size - rest_at) / frame_bytes / file.samplerate
        following = data.part(rest_at, 12)
        if any(magic in following for magic in _MAGIC):
            self._warn_of_another(f"sound file of {rest_s:.2f} s")
            return
        if following.lstrip(b"\0").startswith(_TAGS):
            self.warnings.append(
                f"{self._path}: {size - rest_at:,} bytes of notes (tags) follow its sound and are "
                "not read."
            )
            return
        announced_s = self.frames / file.samplerate
        self.warnings.append(
            f"{self._path}: its header announces {announced_s:.2f} s, but {rest_s:.2f} s more "
            "follow (an unfinished recording?). All was read, to the end of the file."
        )
        is_big = file.endian == "BIG" or (file.endian == "FILE" and file.format in _BIG_ENDIAN)
        self._file = soundfile.SoundFile(
            _Bytes(data.stream, begin),
            samplerate=file.samplerate,
            channels=file.channels,
            subtype=file.subtype,
            endian="BIG" if is_big else "LITTLE",
            format="RAW",
        )
        self.frames = self._file.frames

    def blocks(self, size: int) -> Blocks:
        """As `Decoder.blocks`."""
        import soundfile

        if self._missing:
            self._report(self._missing)
        self._data.stream.seek(self._begin)  # where libsndfile, which shares it, expects it
        done = 0
        with suppress(soundfile.LibsndfileError):  # what is missing is reported below
            while done < self.frames:
                count = min(size, self.frames - done)
                block = self._file.read(count, dtype="float32", always_2d=True).T
                if not block.size:
                    break
                done += block.shape[1]
                yield block
        if done < self.frames:
            done_s, announced_s = done / self.sample_rate_hz, self.frames / self.sample_rate_hz
            self._report(f"truncated: {done_s:.2f} of {announced_s:.2f} s can be read")


class Container(Decoder):
    """A file that FFmpeg decodes.

    Pauses in a recording, as its time stamps tell them, become silence.
    """

    def __init__(self, path: Path, stream: BinaryIO, cure: str | None, track: str | None) -> None:
        import av

        super().__init__(path, stream, cure)
        if (av.logging.get_level() or 0) < av.logging.WARNING:  # its log is for our messages alone
            av.logging.set_level(av.logging.WARNING)
            av.logging.set_skip_repeated(False)
            logging.getLogger("libav").addHandler(logging.NullHandler())
            logging.getLogger("libav").propagate = False
        self._cut_off, end = _find_ending(self._data)
        if end < self._data.size:
            self._warn_of_another(f"file of {self._data.size - end:,} bytes")
            self._data.size = end
        self._data.seek(0)
        try:
            with av.logging.Capture() as log:
                self._container = av.open(
                    self._data,
                    "r",
                    container_options={
                        "format_whitelist": ",".join(_CONTAINERS),
                        "protocol_whitelist": "",
                    },
                    io_open=_refuse_to_open,
                    metadata_errors="replace",
                )
        except (av.FFmpegError, OSError, ValueError) as error:
            if any("moov atom not found" in message for _, _, message in log):
                self._cut_off = "its index (moov atom) is missing"
            text = f"not a readable sound file ({_reason(error, log)}). Export it again as WAV."
            if self._cut_off:
                text = f"truncated: {self._cut_off}, so that nothing can be read. Copy it again."
            raise AudioError(f"{path}: {text}") from error
        self._kind = self._container.format.name.split(",")[0]
        self._choose(track)
        self._announce(" ".join(message for _, _, message in log))
        self._done = 0  # samples per channel, of which some are silence for gaps
        self._silent = 0
        self._lost = 0  # those of the silent ones that are for damaged parts
        self._origin: int | None = None  # the time of the first sample
        self._damages: list[tuple[float, str]] = []
        self._is_after_damage = False
        self._early: int | None = None  # samples of an encoder's delay that are still to be dropped
        self._end = 0  # where the packets end that held sound
        self._last = b""  # the last of them

    def _choose(self, track: str | None) -> None:
        """Find the sound tracks and take one."""
        from av.stream import Discard

        path, sources = self._path, self._container.streams.audio
        streams = [source for source in sources if source.codec_context is not None]
        if not sources:
            raise AudioError(f"{path}: has no sound track. Name a file that has one.")
        if not streams:
            raise AudioError(f"{path}: its sound has an unknown encoding. Convert it to WAV.")
        tracks, chosen = [], []
        for number, source in enumerate(streams, 1):
            language = (source.language or "").replace("und", "")
            tracks.append(f"{number} ({source.channels} ch{language and f', {language}'})")
            if track is None or track.lower() in (str(number), language, language[:2]):
                chosen.append(source)
        if not chosen:
            raise AudioError(f"{path}: has no sound track {track}. It has: {', '.join(tracks)}.")
        self.tracks, self._source = tuple(tracks), chosen[0]
        source = self._source
        source.codec_context.thread_count = 1  # its log must come from this thread
        source.codec_context.options = {"err_detect": "crccheck"}
        self.sample_rate_hz, self.channels = source.rate or 0, source.channels or 0
        for other in self._container.streams:
            if other is not source:
                other.discard = Discard.all

    def _announce(self, log: str) -> None:
        """Find out when the sound starts, and how long it is by the header."""
        from av.stream import Disposition

        source, container, kind = self._source, self._container, self._kind
        self._tick_s = float(source.time_base or 1 / max(self.sample_rate_hz, 1))
        start_s = (source.start_time or 0) * self._tick_s
        end_s = (container.duration or 0) / 1e6
        length_s = (source.duration or 0) * self._tick_s
        others = [s for s in container.streams if not s.disposition & Disposition.attached_pic]
        self._is_alone = len(others) == 1  # so that the length announced is the sound's
        self._is_exact = kind in _EXACT and (self._is_alone or kind in ("mov", "ogg"))
        if kind == "matroska":
            clock = re.match(r"(\d+):(\d+):(\d+\.?\d*)", source.metadata.get("DURATION", ""))
            if clock:
                end_s = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
            self._is_exact = self._is_alone or clock is not None
            length_s = max(0.0, end_s - start_s)
        if kind == "mp3":
            self._is_exact = "bitrate" not in log  # by which FFmpeg estimates a length
        if kind == "avi" and source.codec_context.name.startswith("pcm"):
            length_s = source.frames / self.sample_rate_hz  # FFmpeg's is an estimate
        if kind not in _FROM_ZERO:
            start_s -= (container.start_time or 0) / 1e6
        self.start_s = round(max(0.0, start_s), 3) if start_s > 0.04 else 0.0
        self.frames = round((length_s or end_s) * self.sample_rate_hz)
        self._is_joined = "concatenated file" in log

    def blocks(self, size: int) -> Blocks:
        """As `Decoder.blocks`."""
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
        for frames, damage in self._decoded():
            if damage and not frames:
                self._note(damage)
            for number, frame in enumerate(frames, 1):
                if damage and number == len(frames):  # those before it are good
                    self._note(damage)
                samples = _to_float(frame, self.channels)
                if samples is None or frame.sample_rate != self.sample_rate_hz:
                    self._note("its sound is of another kind there")
                    continue
                early = min(self._early or 0, samples.shape[1])
                samples, self._early = samples[:, early:], (self._early or 0) - early
                gap = self._gap(frame)
                for start in range(0, gap, size):
                    yield np.zeros((self.channels, min(size, gap - start)), np.float32)
                yield samples
                self._done += gap + samples.shape[1]
                self._silent += gap
                self._is_after_damage = False
        self._check_end()

    def _decoded(self) -> Iterator[tuple[list[av.AudioFrame], str]]:
        """Frames packet by packet, each with what is wrong with it, if anything is."""
        import av

        packets, end = self._container.demux(self._source), None
        while True:
            frames: list[av.AudioFrame] = []
            damage, packet = "", None
            with av.logging.Capture() as log:
                try:
                    packet = next(packets, None)
                    if packet is not None:
                        frames = packet.decode()
                except (av.FFmpegError, OSError, ValueError, IndexError) as error:
                    damage = _reason(error, log)
            if packet is None and not damage:
                return
            if packet is not None and packet.size:
                is_cut = packet.is_corrupt and self._kind not in ("wav", "caf")  # chunks tell
                if is_cut or any(frame.is_corrupt for frame in frames):
                    damage = damage or "part of it is missing"
                data = bytes(packet)
                if data.startswith(_TAGS) or not any(data):
                    damage = ""
                if self._early is None:
                    self._early = self._unskipped(packet)
                if frames:
                    self._end, self._last = (packet.pos or self._end) + packet.size, data
                if self._kind in _RAW and packet.pos is not None and packet.pos >= 0:
                    if end is not None and packet.pos > end + 1:
                        damage = damage or f"{packet.pos - end} bytes there are no sound"
                    end = packet.pos + packet.size
            losses = [text for text in _complaints(log) if _DAMAGE.search(text)]
            yield frames, damage or (losses[0] if losses else "")

    def _note(self, reason: str) -> None:
        """Remember a damage at this place, or raise it."""
        at_s = self._done / self.sample_rate_hz
        if self._cure is not None:
            self._report(f"damaged after {at_s:.2f} s ({reason})")
        self._damages.append((at_s, reason))
        self._is_after_damage = True

    def _gap(self, frame: av.AudioFrame) -> int:
        """Samples of silence that a frame's time stamp puts before it."""
        if frame.pts is None:
            return 0
        rate_hz, pause = self.sample_rate_hz, round(_PAUSE_S * self.sample_rate_hz)
        at = round(frame.pts * self._tick_s * rate_hz)
        self._origin = at if self._origin is None else self._origin
        gap = at - self._origin - self._done
        longest = 3600 * rate_hz - self._silent
        if self.frames and (self._is_exact or self._kind in _FROM_ZERO):
            longest = round(1.2 * self.frames) + 10 * rate_hz - self._done
        longest = max(longest, pause)
        if gap > longest:
            gap_s = gap / rate_hz
            self._note(f"a time stamp leaves a gap of {gap_s:.0f} s, more than the file announces")
        if gap > longest or gap < -pause:  # what follows is joined to what was before
            self._origin += gap
            return 0
        if gap > pause and not self._is_after_damage and self._kind not in _PAUSING:
            self._note(f"{gap / rate_hz:.2f} s are missing there")
        if not self._is_after_damage:
            return gap if gap > pause else 0
        self._lost += max(0, gap)
        return max(0, gap)

    def _check_end(self) -> None:
        """After the last sample: report what is missing, or what is more than announced."""
        rate_hz, damages = self.sample_rate_hz, self._damages
        announced_s, done_s = self.frames / rate_hz, self._done / rate_hz
        if self._data.error:
            raise AudioError(f"{self._path}: cannot be read: {explain(self._data.error)}")
        if not self._done:
            reason = f" ({damages[0][1]})" if damages else ""
            raise AudioError(f"{self._path}: holds no samples{reason}. Copy or record it again.")
        missing_s = announced_s - done_s if self._is_exact else 0.0
        rest = self._unread()
        if damages:
            text = f"damaged after {damages[0][0]:.2f} s ({damages[0][1]})"
            text += f", and at {len(damages) - 1} more places" if len(damages) > 1 else ""
            if self._lost:
                text += f"; {self._lost / rate_hz:.2f} s could not be read and are silent"
            if missing_s > 0.02:
                text += f"; {missing_s:.2f} of {announced_s:.2f} s are missing"
            self._report(text)
        elif missing_s > max(0.15, 2500 / rate_hz) + 0.001 * announced_s:
            self._report(f"truncated: {done_s:.2f} of {announced_s:.2f} s can be read")
        elif self._cut_off:
            self._report(f"truncated after {done_s:.2f} s: {self._cut_off}")
        elif rest > 0.5 * self._end / done_s:
            self._report(f"{rest:,} bytes after {done_s:.2f} s are not sound that can be read")
        elif self._kind in _RAW and (rest or self._is_last_cut()):
            self.warnings.append(
                f"{self._path}: ends in the middle of a frame, after {done_s:.2f} s: it may have "
                "been cut off."
            )
        elif self._is_joined and self._end + 128 >= self._data.size:
            self.warnings.append(f"{self._path}: several files are joined into one. All was read.")
        more = self._done - self._silent - self.frames
        if self._is_exact and self.frames and more > 0.01 * self.frames + rate_hz:
            self.warnings.append(
                f"{self._path}: its header announces {announced_s:.2f} s, but {done_s:.2f} s "
                "follow (several files joined into one?). All was read."
            )

    def _unskipped(self, first: av.Packet[av.AudioStream]) -> int:
        """Samples of Opus's delay that the container does not have FFmpeg skip, but should.

        FFmpeg before 6 wrote too short a delay to WebM and MP4 for sound of less than 48 kHz.
        """
        head = self._source.codec_context.extradata or b""
        if self._kind == "ogg" or not head.startswith(b"OpusHead"):
            return 0
        skipped = bytes(first.get_sidedata("skip_samples"))[:4]
        return max(0, int.from_bytes(head[10:12], "little") - int.from_bytes(skipped, "little"))

    def _unread(self) -> int:
        """How many bytes follow the last sound, where none should but notes such as ID3."""
        if self._kind not in _UNINDEXED or not self._is_alone:
            return 0
        part, size = self._data.part, self._data.size
        notes, rest = part(max(self._end, size - 160), 160), part(self._end, 2**24)
        noted = any(tag in rest[:64] + notes for tag in _TAGS)
        return 0 if noted and part(0, 8) not in rest else max(0, size - self._end)

    def _is_last_cut(self) -> bool:
        """Whether the last frame would be longer if another followed it."""
        frames = self._source.codec_context.parse(2 * self._last)
        return not frames or frames[0].size > len(self._last)


def _refuse_to_open(*address: object) -> Any:
    raise PermissionError(f"{address[0]} is not opened")


def _to_float(frame: av.AudioFrame, channels: int) -> npt.NDArray[np.float32] | None:
    """A decoded frame as [channel, sample] in -1..1; None if it is not like the file's header."""
    try:
        samples: npt.NDArray[Any] = frame.to_ndarray()
    except ValueError:  # integers of 64 bits
        return None
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind in "iu":
        is_unsigned, scale = samples.dtype.kind == "u", 2.0 ** (8 * samples.itemsize - 1)
        samples = samples.astype(np.dtype("float32" if samples.itemsize < 4 else "float64"))
        samples = samples / scale - is_unsigned
    if len(samples) == 1 and channels > 1:
        samples = np.repeat(samples, channels, axis=0)
    return samples.astype(np.float32) if len(samples) == channels else None


def _complaints(log: list[Any]) -> list[str]:
    """What FFmpeg logged of errors, each on one line; its warnings are of other things."""
    import av

    errors = [text for level, _, text in log if level <= av.logging.ERROR]
    lines = [line(re.sub(r" at PTS -?\d+", "", text).strip(" .\n"), 200) for text in errors]
    return [text for text in lines if text]


def _reason(error: Exception, log: list[Any]) -> str:
    """FFmpeg's last complaint, or its error's name where that says anything."""
    text = [getattr(error, "strerror", "") or str(error), *_complaints(log)][-1]
    if text.startswith("Format not on whitelist"):
        return "mcspex does not read this format"
    is_clear = not re.match("Error number|Resource temporarily unavailable", text)
    return text if is_clear else "what is there cannot be decoded"
