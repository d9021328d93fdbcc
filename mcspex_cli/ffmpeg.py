"""What FFmpeg, through PyAV, decodes: all sound files but plain samples, and videos.

FFmpeg's formats differ in what they announce, and in what their time stamps mean: `KINDS` says
how. What a file announces and what comes out of it are compared: see `FFmpegFile._check_end`.

FFmpeg gets an open file and never a name, reads only formats that hold their sound themselves, and
may open nothing else, so that playlists and the like lead nowhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from mcspex_cli.containers import (
    FOLLOWS,
    ID3,
    MISCOUNTED_BYTES,
    TAGS,
    UNKNOWN_LENGTH,
    AudioInfo,
    Blocks,
    SoundBytes,
    check_end_mark,
    id3_bytes,
)
from mcspex_cli.errors import AudioError, line

if TYPE_CHECKING:
    import av

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


class FFmpegFile:
    """A file that FFmpeg decodes, once.

    Pauses in a recording, as its time stamps tell them, become silence.
    """

    def __init__(self, data: SoundBytes, track: str | None) -> None:
        import av
        from av.stream import Disposition

        if (av.logging.get_level() or 0) < av.logging.WARNING:  # its log is for our messages alone
            av.logging.set_level(av.logging.WARNING)
            av.logging.set_skip_repeated(False)
            logging.getLogger("libav").addHandler(logging.NullHandler())
            logging.getLogger("libav").propagate = False
        self.data = data
        self._container, log = self._open()
        self._kind = self._container.format.name.split(",")[0]
        # To find out what a file holds, FFmpeg reads its beginning and its end.
        self._at_open = _complaints(log, self._kind)
        self._traits = KINDS[self._kind]
        self._source, tracks = self._choose(track)
        self._decoder = _decoder_of(self._source, self._kind)
        streams = self._container.streams
        sources = [s for s in streams if not s.disposition & Disposition.attached_pic]
        self._is_alone = len(sources) == 1  # so that the length announced is the sound's
        # AVI has no time stamps: FFmpeg counts chunks, some twice.
        self._is_timed = self._kind != "avi" or self._source.codec_context.name.startswith("pcm")
        self._tick_s = float(self._source.time_base or 1 / max(self._source.rate or 0, 1))
        self._early = 0  # samples per channel that are still to be left out, at the beginning
        # FFmpeg before 6 wrote to WebM and MKV that less is to be left out of Opus.
        if (head := self._decoder.extradata or b"").startswith(b"OpusHead"):
            self._early = max(0, int.from_bytes(head[10:12], "little") - self._decoder.delay)
        texts = " ".join(text for _, _, text in log)
        self.info = self._announce(tracks, texts)
        if "duplicated MOOV" in texts:
            data.warn(f"another file {FOLLOWS}")
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

        options = {"format_whitelist": ",".join(KINDS), "protocol_whitelist": ""}
        # What is behind the end of a WAV is read as its sound, as of an unfinished recording.
        if self.data.size - self.data.own_end > MISCOUNTED_BYTES:
            options["ignore_length"] = "1"
        self.data.seek(0)
        with av.logging.Capture() as log:
            try:
                container = av.open(
                    self.data,
                    "r",
                    container_options=options,
                    io_open=_refuse_to_open,
                    metadata_errors="replace",
                )
                return container, log
            except (av.FFmpegError, OSError, ValueError) as error:
                missing, text = self.data.missing, _reason(error, log)
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
        if not streams and self.data.missing:
            raise AudioError(f"{path}: {_USELESS.format(self.data.missing)}")
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

    def _announce(self, tracks: tuple[str, ...], texts: str) -> AudioInfo:
        """Find out when the sound starts, how long it is by the header, and if that is exact."""
        source, container, kind = self._source, self._container, self._kind
        rate_hz, channels = source.rate or 0, source.channels or 0
        start_s = (source.start_time or 0) * self._tick_s
        end_s, length_s = (container.duration or 0) / 1e6, (source.duration or 0) * self._tick_s
        is_exact = Trait.EXACT in self._traits and (self._is_alone or kind in ("mov", "ogg", "rm"))
        if kind == "matroska":
            clock = re.match(r"(\d+):(\d+):(\d+\.?\d*)", source.metadata.get("DURATION", ""))
            if clock:
                end_s = 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
            is_exact = self._is_alone or clock is not None
            length_s = max(0.0, end_s - start_s)
        if "bitrate" in texts:  # by which FFmpeg estimates a length
            is_exact = False
        if kind == "avi":
            if self._is_timed:
                length_s, is_exact = source.frames / max(rate_hz, 1), self._is_alone
            if int.from_bytes(self.data.part(4, 4), "little") >= UNKNOWN_LENGTH:  # from a pipe
                length_s, end_s, is_exact = 0.0, 0.0, False
        self._is_exact = is_exact
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

        packets, is_bare = self._packets(), Trait.BARE in self._traits
        end = None  # where the last packet ended, if packets tell their place
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
            if packet is not None and packet.size:
                if packet.has_sidedata("encryption_info"):
                    text = "its sound is encrypted (DRM). Use a copy that is not."
                    raise AudioError(f"{self.data.path}: {text}")
                is_cut = packet.is_corrupt and self._kind not in ("wav", "caf")  # chunks tell
                if is_cut or any(frame.is_corrupt for frame in frames):
                    damage = damage or "part of it is missing"
                data = bytes(packet)
                notes = max(notes, id3_bytes(data)) if is_bare else 0
                if notes:
                    frames, self._origin = [], None  # they count in the time stamps
                is_sound = any(data) and not data.startswith(TAGS) and not notes
                notes = max(0, notes - len(data))
                is_blank = "opus" in self._decoder.name and len(data) > 8 and not any(data)
                if not is_sound:  # Opus decodes zeros as silence
                    damage = "zeros are in the place of sound" if is_blank else ""
                # A packet of which all is to be skipped gives no frame.
                if frames or (is_sound and packet.has_sidedata("skip_samples")):
                    self._largest = max(self._largest, len(self._last))
                    self._end, self._last = (packet.pos or self._end) + packet.size, data
                if is_bare and packet.pos is not None and packet.pos >= 0:
                    if end is None and packet.pos >= 2**12 and not any(self.data.part(0, 3)):
                        self.data.warn(f"its first {packet.pos:,} bytes are not sound.")
                    if end is not None and packet.pos > end + 1:
                        damage = damage or f"{packet.pos - end} bytes in it are not sound"
                    end = packet.pos + packet.size
            self._complaint = next(iter((*_complaints(log, self._kind), *self._at_open)), "")
            damage = damage or next(filter(_DAMAGE.search, _complaints(log)), "")
            yield from ((frame, "") for frame in frames[:-1])  # which are good
            yield frames[-1] if frames else None, damage

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
        elif data.missing:
            data.report(f"truncated after {done_s:.2f} s: {data.missing}")
        elif damage := next(filter(_DAMAGE.search, self._at_open), ""):
            data.report(f"damaged at its beginning or end ({damage})")
        elif rest > 0.5 * self._end / done_s or (rest and self._is_followed()):
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
            check_end_mark(data, done_s)

    def _unread(self) -> int:
        """How many bytes follow the last sound, where none should but notes such as ID3."""
        if self._kind == "ogg" and self._is_alone:
            page_at = self.data.part(self._end, 2**24).find(b"OggS")
            return self.data.size - self._end - page_at if page_at >= 0 else 0
        if Trait.LAST not in self._traits or not self._is_alone:
            return 0
        part, size = self.data.part, self.data.size
        notes, rest = part(max(self._end, size - 160), 160), part(self._end, 2**24)
        noted = any(tag in rest[:64] + notes for tag in TAGS)
        if self._kind == "mpegts":
            size -= 192 * rest.count(_NULL_PACKET)
        elif self._kind == "aac" and rest:  # places do not count the tags among the frames
            for start in range(0, self.data.size, 2**24):
                tags = ID3.finditer(part(start, 2**24 + 9))
                size -= sum(id3_bytes(tag[0]) for tag in tags if start + tag.start())
        return 0 if noted and part(0, 8) not in rest else max(0, size - self._end)

    def _ignored(self) -> int:
        """About how many bytes follow the sound, also those that its last packet has swallowed."""
        part, size, own_end = self.data.part, self.data.size, self.data.own_end
        if self._end <= own_end < size - MISCOUNTED_BYTES and self._kind not in ("mov", "asf"):
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
