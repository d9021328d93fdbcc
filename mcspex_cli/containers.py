"""What FFmpeg decodes, through PyAV: videos, MP3, Ogg, M4A, WMA and whatever else it knows.

Nothing is lost without a word: what a file announces and what comes out of it are compared, and a
difference is a `DamagedError` or a warning that says how much is missing. Where FFmpeg does not
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from mcspex_cli.errors import AudioError, DamagedError
from mcspex_cli.files import explain

if TYPE_CHECKING:
    import av

Blocks = Generator[npt.NDArray[np.float32], None, None]
"""Samples as blocks [channel, sample], in order."""

Damaged = Literal["fail", "keep"]
"""What to do about a damaged file: refuse it, or take what can be read."""


@dataclass(frozen=True)
class Advice:
    """What a user can do about a file, in the words of the command that reads it."""

    damaged: str = "Copy it again."
    tracks: str = "Export another to a file of its own."
    """About a file with several sound tracks, of which the first is used."""
    channels: str = "Export one of them to a file of its own."
    """About channels that cancel each other out."""


FILE_ADVICE = Advice()
MIXTURE_ADVICE = Advice(
    "Copy it again, or take what can be read with --damaged keep.",
    "Choose another with --track.",
    "Choose one of them with --channel 0.",
)
"""There are options for mixtures, and none for references and scored files."""


_CONTAINERS = (
    "3gp aac ac3 aiff amr amrnb amrwb ape asf au avi caf dts eac3 flac flv gsm loas matroska mov "
    "mp3 mpc mpc8 mpeg mpegts mxf ogg qcp rm tak tta voc w64 wav wtv wv"
).split()
"""FFmpeg's formats that hold their sound themselves; playlists name other files, or servers."""

_RAW = ("mp3", "aac", "ac3", "eac3", "dts", "amr", "amrnb", "amrwb", "gsm", "loas")
"""Formats of bare frames: no header says how long they are, but for an MP3's Xing header."""

_EXACT = tuple("mov avi flac wav asf ogg caf aiff flv tta wv ape tak mpc mpc8".split())
"""Containers that announce how long their sound is, to a frame or so."""

_UNINDEXED = (*_RAW, "mpegts", "mpeg", "flv", "tta", "wv", "ape")
"""Formats in which nothing but notes follows the last sound."""

_FROM_ZERO = ("mov", "matroska", "avi", "asf", "flv")
"""Containers whose times count from the beginning, even if a track begins later."""

_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
"""How the notes begin that stand among or after an MP3's frames."""

_DAMAGE = re.compile(
    r"ended prematurely|exceeds containing|\bcrc\b|truncat|partial file|packet_obj_size",
    re.IGNORECASE,
)
"""What FFmpeg only complains of, though part of the sound is lost."""

_PAUSING = (*_FROM_ZERO, "mpegts", "mpeg", "mxf", "rm", "wtv")
"""Containers in which a recording may pause; elsewhere a gap in the time stamps is damage."""

_PAUSE_S = 0.1
"""Gaps between time stamps from here on are silence in the recording; less is their inaccuracy."""


UNKNOWN_LENGTH = 0x7FFFF000
"""Chunk lengths from here on are what programs write that do not know them (to a pipe)."""

_FILE_SIZE = re.compile(
    rb"^(?:FLV.*filesize\0(.{8})|\x30\x26\xb2\x75.*"
    rb"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\0\xc0\x0c\x20\x53\x65.{24}(.{8}))",
    re.DOTALL,
)
"""Where Flash and Windows Media files say how long they are."""

_VOC = b"Creative Voice File\x1a"
_ASF = b"\x30\x26\xb2\x75"
_BOXES = b"ftyp moov mdat moof mfra free skip wide udta meta uuid sidx styp pdin".split()
"""The outermost boxes of an MP4."""


@dataclass(frozen=True)
class Track:
    """One of a file's sound tracks."""

    number: int
    """Counted from 1."""
    language: str
    """As the file says it, such as "eng"; empty if it does not."""
    sample_rate_hz: int
    channels: int

    def __str__(self) -> str:
        language = f", {self.language}" if self.language else ""
        return f"{self.number} ({self.channels} ch{language})"


class _OnlyBytes:
    """An open file for FFmpeg: bytes without a name, and none after the first `size` of them.

    Nothing is raised into FFmpeg, which would print it; `error` is for those who look later.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.size = stream, size
        self.tell = stream.tell
        self.error: OSError | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(max(0, min(size, self.size - self._stream.tell())))
        except OSError as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = self.size + offset, os.SEEK_SET
        try:
            return self._stream.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # a damaged file leads nowhere
            return -1

    def part(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on."""
        self.seek(start)
        return self.read(size)


@dataclass
class _Progress:
    """How far a track is decoded, in samples per channel, and what was wrong so far."""

    done: int = 0
    silent: int = 0
    """Those of `done` that stand for gaps."""
    lost: int = 0
    """Those of `silent` that stand for damaged parts."""
    origin: int | None = None
    """The time of the first sample."""
    damages: list[tuple[float, str]] = field(default_factory=list)
    after_damage: bool = False


class Container:
    """An open file of which FFmpeg decodes a sound track.

    Pauses in a recording, as its time stamps tell them, become silence.

    Raises:
        AudioError: FFmpeg cannot read it, or there is no such sound track in it.
    """

    def __init__(self, path: Path, stream: BinaryIO, track: str | None, advice: Advice) -> None:
        import av

        _prepare_logging()
        self.warnings = list[str]()
        self._mp3_frames, ending = _count_mp3_frames(stream), _find_ending(stream)
        self._cut_off = ending.missing
        if ending.following:
            self.warnings.append(
                f"{path}: another file of {ending.following:,} bytes follows the first in it and "
                "is not read. Split them, or join them with an audio editor."
            )
        stream.seek(0)
        size = os.fstat(stream.fileno()).st_size - ending.following
        self._path, self._bytes, self._advice = path, _OnlyBytes(stream, size), advice
        self._last = b"", 0  # the first bytes of the last packet, and its length
        self._end = 0  # where the packets end that held sound
        self._early: int | None = None  # samples of an encoder's delay that are still to be dropped
        try:
            with av.logging.Capture() as log:
                self._container = av.open(
                    self._bytes,
                    "r",
                    container_options={
                        "format_whitelist": ",".join(_CONTAINERS),
                        "protocol_whitelist": "",
                    },
                    io_open=_refuse_to_open,
                    metadata_errors="replace",
                )
        except (av.FFmpegError, OSError, ValueError) as error:
            text = f"not a readable sound file ({_reason(error, log)}). Export it again as WAV."
            if any("moov atom not found" in message for _, _, message in log):
                self._cut_off = "its index (moov atom) is missing"
            if self._cut_off:
                text = f"truncated: {self._cut_off}, so that nothing can be read. Copy it again."
            raise AudioError(f"{path}: {text}") from error
        try:
            self._choose(track)
        except BaseException:
            self._container.close()
            raise
        self._kind = self._container.format.name.split(",")[0]
        self._announce()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _choose(self, track: str | None) -> None:
        """Find the sound tracks and take one."""
        from av.stream import Discard

        path = self._path
        streams = [s for s in self._container.streams.audio if s.codec_context is not None]
        if not streams and self._container.streams.audio:
            raise AudioError(f"{path}: its sound has an unknown encoding. Convert it to WAV.")
        if not streams:
            raise AudioError(f"{path}: has no sound track. Name a file that has one.")
        self.tracks = tuple(
            Track(number, (s.language or "").replace("und", ""), s.rate or 0, s.channels or 0)
            for number, s in enumerate(streams, 1)
        )
        names = [(str(t.number), t.language, t.language[:2]) for t in self.tracks]
        chosen = [i for i, n in enumerate(names) if track is None or track.lower() in n]
        listing = ", ".join(map(str, self.tracks))
        if not chosen:
            raise AudioError(f"{path}: has no sound track {track}. It has: {listing}.")
        if track is None and len(streams) > 1:
            self.warnings.append(
                f"{path}: has {len(streams)} sound tracks: {listing}. The first is used. "
                f"{self._advice.tracks}"
            )
        self._stream = streams[chosen[0]]
        self._stream.codec_context.thread_count = 1  # its log must come from this thread
        self._stream.codec_context.options = {"err_detect": "crccheck"}
        chosen_track = self.tracks[chosen[0]]
        self.sample_rate_hz, self.channels = chosen_track.sample_rate_hz, chosen_track.channels
        for other in self._container.streams:
            if other is not self._stream:
                other.discard = Discard.all

    def _announce(self) -> None:
        """Find out when the sound starts, and how long it is by the header."""
        from av.stream import Disposition

        source, container = self._stream, self._container
        self._tick_s = float(source.time_base or 1 / max(self.sample_rate_hz, 1))
        start_s = (source.start_time or 0) * self._tick_s
        end_s = (container.duration or 0) / 1e6
        length_s = (source.duration or 0) * self._tick_s
        others = [s for s in container.streams if not s.disposition & Disposition.attached_pic]
        self._is_alone = len(others) == 1  # so that the length announced is the sound's
        self._is_exact = self._kind in _EXACT and (self._is_alone or self._kind in ("mov", "ogg"))
        if self._kind == "matroska":
            clock = re.match(r"(\d+):(\d+):(\d+\.?\d*)", source.metadata.get("DURATION", ""))
            if clock:
                end_s = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
            self._is_exact = self._is_alone or clock is not None
            length_s = max(0.0, end_s - start_s)
        if self._kind == "mp3" and self._mp3_frames:
            frame_samples = 1152 if self.sample_rate_hz >= 32_000 else 576
            counted_s = self._mp3_frames * frame_samples / self.sample_rate_hz
            self._is_exact, length_s = True, min(length_s or counted_s, counted_s)
        if self._kind == "avi" and source.codec_context.name.startswith("pcm"):
            length_s = source.frames / self.sample_rate_hz  # FFmpeg's is an estimate
        if self._kind not in _FROM_ZERO:
            start_s -= (container.start_time or 0) / 1e6
        self.start_s = round(max(0.0, start_s), 3) if start_s > 0.04 else 0.0
        self.frames = round((length_s or end_s) * self.sample_rate_hz)

    def blocks(self, size: int, damaged: Damaged) -> Blocks:
        """Decode to blocks [channel, sample] of `size` samples, the last shorter.

        Raises:
            DamagedError: the file is damaged or truncated, and `damaged` is not "keep".
        """
        held: list[npt.NDArray[np.float32]] = []
        count = 0
        for piece in self._pieces(damaged, size):
            held.append(piece)
            count += piece.shape[1]
            while count >= size:
                joined = np.concatenate(held, axis=1)
                yield joined[:, :size]
                held, count = [joined[:, size:]], count - size
        if count:
            yield np.concatenate(held, axis=1)

    def _pieces(self, damaged: Damaged, size: int) -> Blocks:
        """The decoded samples in pieces, with silence where the time stamps jump."""
        progress = _Progress()
        for frames, damage in self._decoded():
            if damage and not frames:
                self._note(progress, damage, damaged)
            for number, frame in enumerate(frames, 1):
                if damage and number == len(frames):  # those before it are good
                    self._note(progress, damage, damaged)
                samples = _to_float(frame, self.channels)
                if samples is None or frame.sample_rate != self.sample_rate_hz:
                    self._note(progress, "its sound is of another kind there", damaged)
                    continue
                early = min(self._early or 0, samples.shape[1])
                samples, self._early = samples[:, early:], (self._early or 0) - early
                gap = self._gap(progress, frame, damaged)
                for start in range(0, gap, size):
                    yield np.zeros((self.channels, min(size, gap - start)), np.float32)
                yield samples
                progress.done += gap + samples.shape[1]
                progress.silent += gap
                progress.after_damage = False
        self._check_end(progress, damaged)

    def _note(self, progress: _Progress, reason: str, damaged: Damaged) -> None:
        """Remember a damage at this place, or raise it."""
        at_s = progress.done / self.sample_rate_hz
        if damaged == "fail":
            raise DamagedError(
                f"{self._path}: damaged after {at_s:.2f} s ({reason}). {self._advice.damaged}"
            )
        progress.damages.append((at_s, reason))
        progress.after_damage = True

    def _gap(self, progress: _Progress, frame: av.AudioFrame, damaged: Damaged) -> int:
        """Samples of silence that a frame's time stamp puts before it."""
        if frame.pts is None:
            return 0
        rate_hz, pause = self.sample_rate_hz, round(_PAUSE_S * self.sample_rate_hz)
        at = round(frame.pts * self._tick_s * rate_hz)
        progress.origin = at if progress.origin is None else progress.origin
        gap = at - progress.origin - progress.done
        longest = 3600 * rate_hz - progress.silent
        if self.frames and (self._is_exact or self._kind in _FROM_ZERO):
            longest = round(1.2 * self.frames) + 10 * rate_hz - progress.done
        if gap > max(longest, pause):
            text = (
                f"a time stamp leaves a gap of {gap / rate_hz:.0f} s, more than the file announces"
            )
            self._note(progress, text, damaged)
        if gap > max(longest, pause) or gap < -pause:  # what follows is joined to what was before
            progress.origin += gap
            return 0
        if gap > pause and not progress.after_damage and self._kind not in _PAUSING:
            self._note(progress, f"{gap / rate_hz:.2f} s are missing there", damaged)
        if progress.after_damage:
            progress.lost += max(0, gap)
            return max(0, gap)
        return gap if gap > pause else 0

    def _check_end(self, progress: _Progress, damaged: Damaged) -> None:
        """After the last sample: say what is missing, or what is more than announced."""
        path, rate_hz, damages = self._path, self.sample_rate_hz, progress.damages
        announced_s, done_s = self.frames / rate_hz, progress.done / rate_hz
        if self._bytes.error:
            raise AudioError(f"{path}: cannot be read: {explain(self._bytes.error)}")
        if not progress.done:
            reason = f" ({damages[0][1]})" if damages else ""
            raise AudioError(f"{path}: holds no samples{reason}. Copy or record it again.")
        missing_s = announced_s - done_s if self._is_exact else 0.0
        text = ""
        if damages:
            text = f"damaged after {damages[0][0]:.2f} s ({damages[0][1]})"
            text += f", and at {len(damages) - 1} more places" if len(damages) > 1 else ""
            if progress.lost:
                text += f"; {progress.lost / rate_hz:.2f} s could not be read and are silent"
            if missing_s > 0.02:
                text += f"; {missing_s:.2f} of {announced_s:.2f} s are missing"
        elif missing_s > max(0.15, 2500 / rate_hz) + 0.001 * announced_s:
            text = f"truncated: {done_s:.2f} of {announced_s:.2f} s can be read"
        elif self._cut_off:
            text = f"truncated after {done_s:.2f} s: {self._cut_off}"
        elif (rest := self._unread()) > 0.5 * self._end / done_s:
            text = f"{rest:,} bytes after {done_s:.2f} s are not sound that can be read"
        if text:
            report(f"{path}: {text}", damaged, self.warnings, self._advice)
        elif self._kind in _RAW and (rest or self._last[1] < _mpeg_frame_bytes(self._last[0])):
            self.warnings.append(
                f"{path}: ends in the middle of a frame, after {done_s:.2f} s: it may have been "
                "cut off."
            )
        more = progress.done - progress.silent - self.frames
        if self._is_exact and self.frames and more > 0.01 * self.frames + rate_hz:
            self.warnings.append(
                f"{path}: its header announces {announced_s:.2f} s, but {done_s:.2f} s follow "
                "(several files joined into one?). All was read."
            )

    def _unskipped(self, first: av.Packet[av.AudioStream]) -> int:
        """Samples of Opus's delay that the container does not have FFmpeg skip, but should.

        FFmpeg before 6 wrote too short a delay to WebM and MP4 for sound of less than 48 kHz.
        """
        head = self._stream.codec_context.extradata or b""
        if self._kind == "ogg" or not head.startswith(b"OpusHead"):
            return 0
        skipped = bytes(first.get_sidedata("skip_samples"))[:4]
        return max(0, int.from_bytes(head[10:12], "little") - int.from_bytes(skipped, "little"))

    def _unread(self) -> int:
        """How many bytes follow the last sound, where none should but notes such as ID3."""
        if self._kind not in _UNINDEXED or not self._is_alone:
            return 0
        part, size = self._bytes.part, self._bytes.size
        notes, rest = part(max(self._end, size - 160), 160), part(self._end, 2**24)
        noted = any(tag in rest[:64] + notes for tag in _TAGS)
        return 0 if noted and part(0, 8) not in rest else max(0, size - self._end)

    def _decoded(self) -> Iterator[tuple[list[av.AudioFrame], str]]:
        """Frames packet by packet, each with what is wrong with it, if anything is."""
        import av

        packets, end = self._container.demux(self._stream), None
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
                is_cut = packet.is_corrupt and self._kind not in ("wav", "caf")  # `framing` knows
                if is_cut or any(frame.is_corrupt for frame in frames):
                    damage = damage or "part of it is missing"
                data = bytes(packet)
                if data.startswith(_TAGS) or not any(data):
                    damage = ""
                self._last = data[:4], len(data)
                if self._early is None:
                    self._early = self._unskipped(packet)
                if frames:
                    self._end = (packet.pos or self._end) + packet.size
                if self._kind in _RAW and packet.pos is not None and packet.pos >= 0:
                    if end is not None and packet.pos > end + 1:
                        damage = damage or f"{packet.pos - end} bytes there are no sound"
                    end = packet.pos + packet.size
            worst = [message for _, _, message in log if _DAMAGE.search(message)]
            yield frames, damage or (_printable(worst[0]) if worst else "")


def report(damage: str, damaged: Damaged, warnings: list[str], advice: Advice) -> None:
    """Raise a `DamagedError`, or add to the warnings if what can be read is to be kept."""
    if damaged == "fail":
        raise DamagedError(f"{damage}. {advice.damaged}")
    warnings.append(f"{damage}.")


def _prepare_logging() -> None:
    """Have FFmpeg's complaints kept for our messages and written nowhere."""
    import av

    if av.logging.get_level() is None:
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)
        logging.getLogger("libav").addHandler(logging.NullHandler())


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
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32 if samples.itemsize < 4 else np.float64)
        samples /= 2.0 ** (15 if frame.format.bytes == 2 else 31)
    if len(samples) == 1 and channels > 1:
        samples = np.repeat(samples, channels, axis=0)
    return samples.astype(np.float32) if len(samples) == channels else None


def _reason(error: Exception, log: list[Any]) -> str:
    """FFmpeg's last complaint, or its error's name where that says anything."""
    messages = [message for _, _, message in log if message.strip()]
    text = messages[-1] if messages else getattr(error, "strerror", "") or str(error)
    if text.startswith("Format not on whitelist"):
        return "mcspex does not read this format"
    is_clear = not re.match("Error number|Resource temporarily unavailable", text)
    return _printable(text) if is_clear else "what is there cannot be decoded"


def _printable(text: str) -> str:
    """A message of FFmpeg's on one line, without what would steer a terminal."""
    text = re.sub(r" at PTS -?\d+", "", text)
    return "".join(c if c.isprintable() else " " for c in text).strip(" .")[:200]


@dataclass(frozen=True)
class _Ending:
    """How a file ends."""

    missing: str = ""
    """What is missing at its end; empty if nothing is."""
    following: int = 0
    """Bytes of another file that follows the first in this one, as `cat a.mp4 b.mp4` makes it."""


def _find_ending(stream: BinaryIO) -> _Ending:
    """Compare a file's length with what its outermost structure says."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(2**13)
    if head[:4] == b"OggS":
        stream.seek(max(0, size - 2**16))  # a page is under 64 KiB
        tail = stream.read(2**16)
        page = tail[tail.rfind(b"OggS") :]
        is_last = len(page) > 27 and page[5] & 4
        is_whole = is_last and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return _Ending("" if is_whole else "its last Ogg page is missing")
    if head[:1] == head[188:189] == b"G":  # MPEG-TS
        return _Ending("its last packet is not whole" if size % 188 else "")
    end = _announced_end(stream, head, size)
    if end > size:
        return _Ending(f"{end - size:,} bytes are missing at its end")
    stream.seek(max(0, size - 2**12))
    if head[:4] == _ASF and not any(stream.read(2**12)):
        return _Ending("its end is all zeros")
    stream.seek(end)
    following = stream.read(8)
    if head[:4] in following[:5] or following[4:] == b"ftyp":  # a byte of padding may be between
        return _Ending(following=size - end if head[8:12] != b"AVI " else 0)  # AVIs are read on
    is_marked = head[:20] == _VOC and size - end > 64
    return _Ending(f"{size - end:,} bytes follow the mark of its end" if is_marked else "")


def _announced_end(stream: BinaryIO, head: bytes, size: int) -> int:
    """Where a file that begins with `head` ends; its `size` if it does not say."""
    if file_size := _FILE_SIZE.match(head):  # Flash's is a floating-point number
        flash, windows = file_size.groups(bytes(8))
        return max(int(struct.unpack(">d", flash)[0]), int.from_bytes(windows, "little")) or size
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        length = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return 8 + length + length % 2 if 0 < length < UNKNOWN_LENGTH else size
    if head[:4] == b"riff":  # W64
        return int.from_bytes(head[16:24], "little") or size
    if head[:4] == b".snd":
        begin, length = struct.unpack(">II", head[4:12])
        return begin + length if 0 < length < UNKNOWN_LENGTH else size
    chunks_at = size
    if head[:4] == b"caff":
        chunks_at = 8
    elif head[:20] == _VOC:
        chunks_at = int.from_bytes(head[20:22], "little")
    elif head[4:8] in (b"ftyp", b"wide", b"moov", b"skip"):
        chunks_at = 0
    return _end_of_chunks(stream, head, size, chunks_at)


def _end_of_chunks(stream: BinaryIO, head: bytes, size: int, at: int) -> int:
    """Where the last of the chunks ends that begin `at` (CAF, VOC, MP4)."""
    while at < size:
        stream.seek(at)
        chunk = stream.read(16)
        if at > 8 and (head[:8] in chunk[:9] or chunk[4:8] == b"ftyp"):  # another file
            return at
        if head[:4] == b"caff":
            length = int.from_bytes(chunk[4:12], "big") + 12
        elif head[:20] == _VOC:
            if not chunk[0]:  # the end
                return at + 1
            length = int.from_bytes(chunk[1:4], "little") + 4
        else:
            length = int.from_bytes(chunk[:4], "big")
            length = int.from_bytes(chunk[8:16], "big") if length == 1 else length
            if at + length > size and chunk[4:8] not in _BOXES:  # what a camera appends, say
                return at
        if not any(chunk[:4]) or not 5 <= length < 2**62:  # up to the end, or nonsense
            return size
        at += length
    return at


def _count_mp3_frames(stream: BinaryIO) -> int:
    """How many frames an MP3 has by its own header (Xing, Info or VBRI); 0 where there is none."""
    stream.seek(0)
    head = stream.read(2**12)
    if head[:3] == b"ID3":
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 127
        stream.seek(10 + size)
        head = stream.read(2**12)
    header = re.search(rb"(?:(?:Xing|Info)\0\0\0[\x01-\x0f]|VBRI.{10})(.{4})", head, re.DOTALL)
    if not header or (header[0][:4] != b"VBRI" and not header[0][7] & 1):
        return 0
    return int.from_bytes(header[1], "big")


def _mpeg_frame_bytes(header: bytes) -> int:
    """How long a frame of MP3 or MP2 is by its header; 0 where that is not the header of one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # version 3 is MPEG 1
    kilobits = {
        (3, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
        (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0),
    }.get((version, layer), (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0))[
        header[2] >> 4
    ]
    rate_hz = (44_100, 48_000, 32_000, 0)[header[2] >> 2 & 3] // {3: 1, 2: 2}.get(version, 4)
    if layer not in (2, 3) or not rate_hz or not kilobits:
        return 0
    samples = 1152 if (version, layer) == (3, 3) or layer == 2 else 576
    return samples // 8 * 1000 * kilobits // rate_hz + (header[2] >> 1 & 1)
