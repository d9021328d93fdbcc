"""Sound files in and out, channels, resampling.

Libsndfile reads what is not compressed, and writes; `containers` decodes everything else. Nothing
is lost without a word: a file that is shorter or longer than its header says, or damaged, is a
`DamagedError`, or is read to its end with a warning.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mcspex_cli import files
from mcspex_cli.containers import (
    FILE_ADVICE,
    UNKNOWN_LENGTH,
    Advice,
    Blocks,
    Container,
    Damaged,
    Track,
    report,
)
from mcspex_cli.errors import AudioError, NonFiniteError, OutputError

if TYPE_CHECKING:
    import soundfile

Samples = npt.NDArray[np.float32]
"""Samples in -1..1, [sample] or [channel, sample] as the function says."""

LOWEST_HZ, HIGHEST_HZ = 1_000, 1_000_000
"""Sample rates that are believed; others come from damaged headers."""

MOST_CHANNELS = 256

LOUDEST = 1e30
"""Samples beyond this are no sound, and would soon be infinite."""

BLOCK_S = 10.0
"""Seconds read at a time from a long file."""

MOST_OPEN = 32
"""Files that a command keeps open from when it has checked their headers until it reads them."""

_BLOCK_SAMPLES = 2**24
"""The most samples in a block, of all channels together."""

_WRITE_FRAMES = 2**16
"""Frames handed to libsndfile at once; its Vorbis writer crashes on millions."""

_LARGEST_WAV = 2**32 - 2**16
"""Bytes of samples; RF64 is the same for more."""

_CANCELLED_DB, WEAKENED_DB = 60.0, 20.0
"""How far below its channels a mix is where they cancel each other out, or nearly so."""


@dataclass(frozen=True)
class Format:
    """A kind of sound file that is written, chosen by the suffix of its name."""

    suffix: str
    container: str
    """Libsndfile's name."""
    subtypes: tuple[str, ...]
    """What its samples can be; where there is only one, it takes the place of any other."""
    highest_hz: int = HIGHEST_HZ
    most_channels: int = MOST_CHANNELS


FORMATS = {
    form.suffix: form
    for form in (
        Format(".wav", "WAV", ("PCM_16", "PCM_24", "FLOAT")),
        Format(".flac", "FLAC", ("PCM_16", "PCM_24"), 655_350, most_channels=8),
        Format(".ogg", "OGG", ("VORBIS",), 192_000, most_channels=255),
    )
}
"""The output formats by suffix."""

SUBTYPES = tuple(
    dict.fromkeys(s for form in FORMATS.values() if len(form.subtypes) > 1 for s in form.subtypes)
)
"""What a user may ask the samples of an output to be."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    `frames` counts samples per channel; in compressed files it is approximate.
    """

    sample_rate_hz: int
    channels: int
    frames: int
    start_s: float = 0.0
    """When the sound begins in its container's time: a video's sound may start late."""
    tracks: tuple[Track, ...] = ()
    """All sound tracks of the file, of which one is read."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.frames / self.sample_rate_hz


def probe(path: Path | str, track: str | None = None, advice: Advice = FILE_ADVICE) -> AudioInfo:
    """Read a file's header.

    A file whose header has no length, as of a live recording, is decoded to measure it.

    Raises:
        AudioError: the file is missing, a directory, empty or not sound, or its rate or number of
            channels is none that anybody records with.
    """
    with closing(Reader(path, track=track, advice=advice)) as reader:
        return reader.info


def read(
    path: Path | str,
    sample_rate_hz: int,
    channel: str = "mix",
    *,
    track: str | None = None,
    damaged: Damaged = "fail",
    warnings: list[str] | None = None,
) -> Samples:
    """Read a whole file at a rate; arguments and errors are those of `Reader`.

    `warnings`, if given, gets what is wrong with the file though it can be read.

    Returns:
        [sample] for one channel or the mix, [channel, sample] for "all".
    """
    reader = Reader(path, sample_rate_hz, channel, track=track, damaged=damaged)
    samples = reader.read()
    if warnings is not None:
        warnings += reader.warnings
    return samples


class Reader:
    """A file as blocks [channel, sample] at a rate; memory does not grow with its length.

    Args:
        path: anything that libsndfile or FFmpeg reads.
        sample_rate_hz: the rate of the blocks; the file is resampled (soxr, HQ) if need be. None
            is the file's own rate, which the attribute has from the first block on. The attribute
            may be set until then.
        channel: "mix" (mean of all channels), a channel's number from 0, or "all".
        track: the number, from 1, or the language of a sound track; None takes the first.
        damaged: "fail" raises at the first damage; "keep" reads what can be read, with silence
            where a part is lost in the middle, and a warning that says how much is missing.
        advice: what messages tell the user to do.

    Raises:
        ValueError: the rate is not from 1 kHz to 1 MHz, or `damaged` is neither word.
        AudioError: as `probe`; while reading also for a channel that is not there, and for channels
            that cancel each other out in the mix.
        DamagedError: the file is damaged or cut off.
        NonFiniteError: a sample is NaN or infinite.
    """

    def __init__(
        self,
        path: Path | str,
        sample_rate_hz: int | None = None,
        channel: str = "mix",
        *,
        track: str | None = None,
        damaged: Damaged = "fail",
        advice: Advice = FILE_ADVICE,
    ) -> None:
        self._opened = ExitStack()
        self._sound: SoundFile | Container | None = None
        self.original: Samples = np.zeros((1, 0), np.float32)
        """All channels [channel, sample] of the last block, at the file's own rate."""
        if damaged not in ("fail", "keep"):
            raise ValueError(f'damaged is "fail" or "keep", not {damaged!r}')
        if sample_rate_hz is not None:
            _check_rate(sample_rate_hz)
        self.path, self.channel = Path(path), channel
        self.sample_rate_hz = sample_rate_hz or 0
        self._track, self._damaged, self._advice = track, damaged, advice
        self.frames = 0
        """Samples per channel read so far, at the file's own rate."""
        self.warnings: list[str] = []
        """What is wrong with the file though it can be read; complete once all is read."""

    @cached_property
    def info(self) -> AudioInfo:
        """What the file's header says, as of `probe`; the file stays open until it is read."""
        sound = self._open()
        rate_hz, frames = sound.sample_rate_hz, sound.frames
        if not frames:
            frames = sum(block.shape[1] for block in sound.blocks(rate_hz, "keep"))
            self.close()
        return AudioInfo(rate_hz, sound.channels, frames, sound.start_s, sound.tracks)

    def close(self) -> None:
        """Close the file; whoever reads it opens it again."""
        self._sound = None
        self.original = self.original[:, :0].copy()
        self._opened.close()

    __del__ = close  # for files of which only the header is read

    def read(self) -> Samples:
        """Read all of it: [sample] for one channel or the mix, [channel, sample] for "all"."""
        joined = np.concatenate(list(self), axis=-1)
        return joined if self.channel == "all" else joined[0]

    def __iter__(self) -> Generator[Samples, None, None]:
        """Read the file from its beginning."""
        self.frames, sound = 0, self._open()
        with closing(self), closing(self._blocks(sound)) as blocks:
            self.warnings = sound.warnings
            kept = sound.channels if self.channel == "all" else 1
            self.sample_rate_hz = self.sample_rate_hz or sound.sample_rate_hz
            resampler = Resampler(sound.sample_rate_hz, self.sample_rate_hz, kept)
            yield from resampler.run(blocks)

    def _open(self) -> SoundFile | Container:
        if self._sound is None:
            opening = _open(self.path, self._track, self._advice)
            self._sound = self._opened.enter_context(opening)
        return self._sound

    def _blocks(self, sound: SoundFile | Container) -> Generator[Samples, None, None]:
        """Blocks of the chosen channels at the file's rate, every sample checked."""
        size = round(BLOCK_S * sound.sample_rate_hz)
        if sound.channels > 1:
            size = min(size, _BLOCK_SAMPLES // sound.channels)
        meter = MixMeter()
        with closing(sound.blocks(size, self._damaged)) as blocks:
            for block in blocks:
                usable = (np.abs(block) <= LOUDEST).all(axis=0)  # false for NaN too
                if not usable.all():
                    at = int(np.argmin(usable))
                    at_s = (self.frames + at) / sound.sample_rate_hz
                    kind = (
                        "impossibly loud" if np.isfinite(block[:, at]).all() else "NaN or infinite"
                    )
                    raise NonFiniteError(
                        f"{self.path}: {kind} sample at {at_s:.2f} s. Export it again as 16-bit "
                        "PCM."
                    )
                self.frames += block.shape[1]
                self.original = block
                chosen = select(block, self.channel, self.path)
                if self.channel == "mix":
                    meter.add(block, chosen)
                yield chosen
        cure = self._advice.channels
        if meter.loss_db > _CANCELLED_DB:
            raise AudioError(f"{self.path}: its channels cancel each other out in the mix. {cure}")
        if meter.loss_db > WEAKENED_DB:
            self.warnings.append(
                f"{self.path}: its channels nearly cancel each other out in the mix, which is "
                f"{meter.loss_db:.0f} dB below them. {cure}"
            )


@contextmanager
def _open(path: Path, track: str | None, advice: Advice) -> Iterator[SoundFile | Container]:
    """Open a sound file; `track` is the number, from 1, or the language of a sound track."""
    with ExitStack() as stack:
        stream = stack.enter_context(_bytes(path))
        sound: SoundFile | Container
        if file := _open_pcm(path, stream):
            sound = SoundFile(path, stream, stack.enter_context(file), advice)
        else:
            sound = stack.enter_context(Container(path, stream, track, advice))
        if not LOWEST_HZ <= sound.sample_rate_hz <= HIGHEST_HZ:
            raise AudioError(
                f"{path}: its header says {sound.sample_rate_hz} Hz, but only 1 kHz to 1 MHz are "
                "read. The header may be damaged: export it again."
            )
        if not 1 <= sound.channels <= MOST_CHANNELS:
            raise AudioError(
                f"{path}: its header says {sound.channels} channels, but only 1 to "
                f"{MOST_CHANNELS} are read. Export it again."
            )
        if isinstance(sound, SoundFile) and track not in (None, "1"):
            raise AudioError(f"{path}: has no sound track {track}. It has only one.")
        yield sound


@contextmanager
def _bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file's bytes, of which there is at least one."""
    with ExitStack() as stack:
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise AudioError(f"{path}: is a directory. Name a sound file in it.")
            if not stat.S_ISREG(mode):
                raise AudioError(f"{path}: is not a regular file. Save the sound to one first.")
            stream = stack.enter_context(path.open("rb", buffering=0))
            is_empty = not stream.read(1)
            stream.seek(0)
        except FileNotFoundError as error:
            raise AudioError(f"{path}: no such file or folder.") from error
        except OSError as error:
            raise AudioError(f"{path}: cannot be read: {files.explain(error)}") from error
        if is_empty:
            raise AudioError(f"{path}: the file is empty (0 bytes). Copy or record it again.")
        yield stream


def is_channel_number(channel: str) -> bool:
    """Whether it is "0", "1", ..."""
    return channel.isascii() and channel.isdecimal() and len(channel) < 5


class MixMeter:
    """How far below its channels a mix is, while they pass by: opposite ones cancel each other."""

    def __init__(self) -> None:
        self._mixed = self._separate = 0.0

    def add(self, channels: Samples, mix: Samples) -> None:
        """Take a block [channel, sample], and its mix [1, sample]."""
        if len(channels) > 1 and mix.size:
            length = mix.shape[1]  # variances, since an offset is not heard
            self._mixed += length * float(np.var(mix, dtype=np.float64))
            variances = np.var(channels, axis=1, dtype=np.float64)
            self._separate += length * float(np.mean(variances))

    @property
    def loss_db(self) -> float:
        """By how much the mix is softer so far; 0 for silence, or one channel."""
        if self._separate <= 0:
            return 0.0
        return float(-10 * np.log10(max(self._mixed / self._separate, 1e-30)))


def select(samples: Samples, channel: str, source: Path | str = "samples") -> Samples:
    """Choose "all" channels of `samples` [channel, sample], their "mix" (mean), or one from "0".

    Raises:
        AudioError: there is no such channel; the message names `source`.
    """
    if channel == "all":
        return samples
    if channel == "mix":
        mean: Samples = samples.mean(axis=0, keepdims=True)
        return mean
    if not is_channel_number(channel) or int(channel) >= len(samples):
        raise AudioError(
            f"{source}: has no channel {channel}. It has {len(samples)}, counted from 0; or use "
            "mix."
        )
    return samples[int(channel) : int(channel) + 1]


def write(path: Path | str, samples: Samples, sample_rate_hz: int, subtype: str = "PCM_16") -> None:
    """Write `samples` [sample] or [channel, sample] to a file, whole or not at all.

    Raises:
        TypeError: the samples are not real floating-point numbers.
        ValueError: their shape or the rate is impossible.
        NonFiniteError, OutputError: as `Writer`.
    """
    array = np.asarray(samples)
    if array.dtype.kind != "f":
        raise TypeError(f"samples are floats in -1..1, not {array.dtype}; divide integers by 2**15")
    if array.ndim not in (1, 2):
        raise ValueError(f"samples are [sample] or [channel, sample], not of shape {array.shape}")
    frames = np.atleast_2d(array)
    with Writer(Path(path), sample_rate_hz, len(frames), subtype, frames.shape[1]) as writer:
        writer.write(frames)


def encode(samples: Samples, sample_rate_hz: int) -> bytes:
    """A 16-bit FLAC file of `samples` [sample], at up to 65,535 Hz; beyond -1..1 is clipped."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class Writer:
    """A sound file that appears under its name only when it is complete.

    Its format is the one of `FORMATS` with the path's suffix; a WAV that will have `frames` samples
    per channel is an RF64 if that is more than a WAV can hold. Used as a context manager; leaving
    it by an exception removes what was written.

    Raises:
        ValueError: the rate or the number of channels is impossible.
        OutputError: the suffix or subtype is not supported, or the place not writable.
    """

    def __init__(
        self, path: Path, sample_rate_hz: int, channels: int, subtype: str, frames: int = 0
    ) -> None:
        import soundfile

        if not 1 <= channels <= MOST_CHANNELS:
            raise ValueError(
                f"{channels} channels cannot be written; samples are [channel, sample]"
            )
        form, subtype = check_format(path, subtype, sample_rate_hz, channels)
        is_large = frames * channels * SAMPLE_BYTES.get(subtype, 0) > _LARGEST_WAV
        container = "RF64" if form.container == "WAV" and is_large else form.container
        self._path, self._channels, self._frames = path, channels, 0
        self._partial = files.partial(path)
        self._stream: BinaryIO | None = None
        try:
            self._stream = self._partial.open("w+b")
            target = str(self._partial) if os.name == "nt" else self._stream.fileno()
            shape = (sample_rate_hz, channels, subtype, None, container)
            self._file = soundfile.SoundFile(target, "w", *shape, closefd=False)
        except BaseException as error:  # a Ctrl-C just here must not leave it either
            try:
                if isinstance(error, soundfile.LibsndfileError | OSError):
                    raise self._failure(error) from error
                raise
            finally:
                self._discard()

    def write(self, block: Samples) -> None:
        """Append `block` [channel, sample].

        Raises:
            ValueError: it has another number of channels.
            NonFiniteError: a sample is NaN or infinite.
            OutputError: the disk is full or went away.
        """
        import soundfile

        if block.ndim != 2 or len(block) != self._channels:
            raise ValueError(f"a block is [{self._channels}, sample], not of shape {block.shape}")
        if not np.isfinite(block).all():
            raise NonFiniteError(f"{self._path}: NaN or infinite samples are not written.")
        try:
            for start in range(0, block.shape[1], _WRITE_FRAMES):
                self._file.write(block[:, start : start + _WRITE_FRAMES].T)
        except (soundfile.LibsndfileError, AssertionError) as error:
            raise self._failure(error) from error
        self._frames += block.shape[1]

    def _failure(self, error: Exception) -> OutputError:
        """What to raise. Libsndfile hides the system's reason; writing once more has it again."""
        if self._stream and not self._stream.closed:
            try:
                for _ in range(64):
                    self._stream.write(bytes(2**16))
                    self._stream.flush()
            except OSError as reason:
                error = reason
        if isinstance(error, OSError):
            return files.output_error(self._path, error)
        text = getattr(error, "error_string", None) or error
        return OutputError(f"{self._path}: cannot be written: {text} Try another format.")

    def _discard(self) -> None:
        with suppress(OSError):
            if self._stream:
                self._stream.close()
        with suppress(OSError):
            self._partial.unlink()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        import soundfile

        try:
            self._file.close()
            if kind is None:
                name = str(self._partial) if os.name == "nt" else os.fsencode(self._partial)
                written = soundfile.info(name).frames if self._frames else 0
                if written != self._frames:
                    raise OSError(f"only {written} of {self._frames} samples were written")
                files.appear(self._partial, self._path)
        except (soundfile.LibsndfileError, OSError) as failure:
            raise self._failure(failure) from failure
        finally:
            self._discard()


def check_format(
    path: Path, subtype: str, sample_rate_hz: int, channels: int = 1
) -> tuple[Format, str]:
    """The format and the subtype that an output gets.

    Raises:
        ValueError: the rate is not from 1 kHz to 1 MHz.
        OutputError: the suffix cannot be written, or not with this subtype, rate or channels.
    """
    _check_rate(sample_rate_hz)
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        suffixes = " or ".join((", ".join([*FORMATS][:-1]), [*FORMATS][-1]))
        raise OutputError(f"{path}: cannot write this format. End the name in {suffixes}.")
    if sample_rate_hz > form.highest_hz:
        raise OutputError(
            f"{path}: {form.container} holds at most {form.highest_hz} Hz, not {sample_rate_hz}. "
            "Write WAV."
        )
    if channels > form.most_channels:
        raise OutputError(
            f"{path}: {form.container} holds at most {form.most_channels} channels, not "
            f"{channels}. Write WAV, or choose a channel."
        )
    if len(form.subtypes) == 1:
        return form, form.subtypes[0]
    if subtype not in form.subtypes:
        choices = " or ".join(form.subtypes)
        raise OutputError(
            f"{path}: {form.container} has no {subtype} samples. Use --subtype {choices}."
        )
    return form, subtype


def holds_over_full_scale(path: Path, subtype: str) -> bool:
    """Whether an output can hold samples beyond -1..1, so that nothing need be turned down."""
    form = FORMATS.get(path.suffix.lower())
    return form is not None and subtype == "FLOAT" and subtype in form.subtypes


def _check_rate(sample_rate_hz: float) -> None:
    if not LOWEST_HZ <= sample_rate_hz <= HIGHEST_HZ:
        raise ValueError(f"a sample rate is from 1000 to 1000000 Hz, not {sample_rate_hz}")


class Resampler:
    """A streaming resampler for blocks [channel, sample]; the identity at equal rates."""

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self._channels = channels
        self._stream: Any = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32")

    def run(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Resample every block, and at the end what the filter still holds."""
        for block in blocks:
            yield self.step(block, last=False)
        if self._stream:
            yield self.step(np.zeros((self._channels, 0), np.float32), last=True)

    def step(self, block: Samples, *, last: bool) -> Samples:
        """Resample one block; the last one gets what the filter still holds."""
        if not self._stream:
            return block
        out: Samples = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        return out.T


_MAGIC = (
    *(b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff", b"caff", b".snd", b"dns.", b"NIST"),
    *(b"2BIT", b" paf", b"fap ", b"\x64\xa3\1\0", b"\0\1\xa3\x64"),
)
"""How the files begin whose PCM libsndfile reads: WAV, AIFF, W64, CAF, AU, SPHERE, ..."""

_CUT = re.compile(r"(?:data|SSND|BODY|riff|Data Size  |Riff size) : (\d+) \(should be (\d+)\)")
"""How libsndfile's log says that the samples (WAV, AIFF, AU) or all (W64, RF64) are too short."""

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3}
SAMPLE_BYTES |= {"PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

_CODED = ("VORBIS", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")
"""Encodings that FFmpeg does not decode, or not as they were encoded."""

_CHUNKS = {"WAV": "<4sI", "WAVEX": "<4sI", "RF64": "<4sI", "AIFF": ">4sI", "CAF": ">4sq"}
_CHUNKS |= {"W64": "<4s12xQ", "AU": "", "NIST": "", "AVR": ""}
"""How a chunk after the samples begins: its name and its length; AU and others have no chunks."""

_SAMPLE_COUNTS = {"NIST": rb"sample_count -i (\d+)", "AVR": rb"Frames +: (\d+)"}
_SAMPLE_COUNTS |= {"W64": rb"data : (\d+)"}
"""Where a header, or libsndfile's log of it, has a number that libsndfile does not go by: of the
samples per channel or, in W64, of the bytes of its chunk."""

_BIG_ENDIAN = ("AIFF", "CAF", "AU")


def _open_pcm(path: Path, stream: BinaryIO) -> soundfile.SoundFile | None:
    """What libsndfile makes of an open file, if it is one that it reads well; else None."""
    import soundfile

    magic = stream.read(4)
    if magic not in _MAGIC and not (magic == b"OggS" and _is_short_ogg(stream)):
        return None
    stream.seek(0)
    source = str(path) if os.name == "nt" else stream.fileno()
    with suppress(soundfile.LibsndfileError, TypeError):
        file = soundfile.SoundFile(source, closefd=False)
        if file.subtype in (*SAMPLE_BYTES, *_CODED):
            return file
        file.close()
    return None


def _is_short_ogg(stream: BinaryIO) -> bool:
    """Whether there is one page after the two of the header: FFmpeg would not read it exactly."""
    start = stream.read(2**18)
    return len(start) < 2**18 and start.count(b"OggS") == 2


class SoundFile:
    """An open file that libsndfile reads."""

    def __init__(
        self, path: Path, stream: BinaryIO, file: soundfile.SoundFile, advice: Advice
    ) -> None:
        self._path, self._stream, self._file, self._advice = path, stream, file, advice
        self.sample_rate_hz, self.channels = file.samplerate, file.channels
        self.frames, self.start_s = file.frames, 0.0
        self.tracks: tuple[Track, ...] = (Track(1, "", self.sample_rate_hz, self.channels),)
        self.warnings: list[str] = []
        self._frame_bytes = SAMPLE_BYTES.get(file.subtype, 0) * file.channels
        self._size = path.stat().st_size
        self._data_at = stream.tell() if os.name != "nt" else 0
        self._is_unfinished = False
        self._truncation = self._find_truncation()
        self._is_unfinished = not self._truncation and self._check_length()

    def _find_truncation(self) -> str:
        """How much of the samples is there, if the file ends before its header says."""
        for there, length in _CUT.findall(self._file.extra_info):
            if int(length) < int(there) < UNKNOWN_LENGTH:
                here_s = self.frames / self.sample_rate_hz
                whole_s = here_s * int(there) / int(length)
                return f"truncated: {here_s:.2f} of {whole_s:.2f} s are there"
        self._stream.seek(0)
        header = self._stream.read(1024) + self._file.extra_info.encode()
        if count := re.search(_SAMPLE_COUNTS.get(self._file.format, b"$^"), header):
            announced = int(count[1])
            if self._file.format == "W64":
                announced = (announced - 24) // self._frame_bytes
            here_s, whole_s = (n / self.sample_rate_hz for n in (self.frames, announced))
            if announced > self.frames:
                return f"truncated: {here_s:.2f} of {whole_s:.2f} s are there"
            self.frames = announced or self.frames
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
            report(f"{self._path}: {self._truncation}", damaged, self.warnings, self._advice)
        if self._is_unfinished:
            yield from self._raw_blocks(size)
            return
        done = 0
        with suppress(soundfile.LibsndfileError):  # what is missing is said below
            self._stream.seek(self._data_at)  # where libsndfile, which shares it, expects it
            while done < self.frames:
                part = min(size, self.frames - done)
                block = self._file.read(part, dtype="float32", always_2d=True).T
                if not block.size:
                    break
                done += block.shape[1]
                yield block
        if done < self.frames:
            done_s, announced_s = done / self.sample_rate_hz, self.frames / self.sample_rate_hz
            text = f"{self._path}: truncated: {done_s:.2f} of {announced_s:.2f} s can be read"
            report(text, damaged, self.warnings, self._advice)

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
