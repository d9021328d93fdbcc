"""Sound files in and out, channels, resampling.

`containers` decodes plain samples, and `ffmpeg` everything else. Nothing is lost without a word: a
file that is damaged, or shorter than its header says, is an error, or is read with a warning.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from mcspex_cli import files
from mcspex_cli.containers import SAMPLE_BYTES, PlainFile, SoundBytes, open_plain
from mcspex_cli.containers import AudioInfo as AudioInfo  # noqa: PLC0414
from mcspex_cli.errors import AudioError, NonFiniteError, OutputError
from mcspex_cli.ffmpeg import FFmpegFile

if TYPE_CHECKING:
    import soundfile

_logger = logging.getLogger("mcspex")

Samples = npt.NDArray[np.float32]
"""Samples in -1..1, [sample] or [channel, sample] as the function says."""

Floats = npt.NDArray[np.floating[Any]]
"""Samples as users may give them, in any precision."""

Damaged = Literal["fail", "keep"]
"""What to do about a damaged file: refuse it, or take what can be read."""

LOWEST_HZ, HIGHEST_HZ = 1_000, 1_000_000
"""Sample rates that are believed; others come from damaged headers."""

MOST_CHANNELS = 256

MIN_SIGNAL_S = 0.3
"""A mixture or a reference that is shorter than this is of no use."""

SILENCE_DB = -90.0
"""RMS level, dB of full scale, below which a signal counts as silent."""

LOUDEST = 1e12
"""Samples beyond this are no sound; sums over the squares of those below it are finite."""

FULL_SCALE = 0.999
"""A sample above this counts as clipping."""

BLOCK_S = 10.0
"""Seconds read at a time from a long file."""

_BLOCK_SAMPLES = 2**24
"""The most samples in a block, of all channels together."""

_WRITE_FRAMES = 2**16
"""Frames handed to libsndfile at once; its Vorbis writer crashes on millions."""

_LARGEST_WAV = 2**32 - 2**16
"""A WAV with more bytes of samples is written as RF64."""

_CLIPPED_PEAK = 1 + 2**-12
"""Rounding may exceed 1 by this much; clipping that is inaudible."""

_CANCELLED_DB, WEAKENED_DB = 60.0, 20.0
"""A mix this many dB below its channels: an error, a warning."""

_LOWEST_VOICE_HZ = 60.0
"""Below it there is no voice, but wind, steps, and the hum of mains at 50 Hz. In the norms of the
networks, which see all frequencies, they drown the voices."""

_RUMBLE_FILTER_S = 0.4
"""The length of the filter that takes out rumble; a longer one is steeper."""


@dataclass(frozen=True)
class Format:
    """A kind of sound file that is written, chosen by the suffix of its name."""

    suffix: str
    container: str
    """Libsndfile's name."""
    subtypes: tuple[str, ...]
    """What its samples can be; where there is only one, it takes the place of the default."""
    highest_hz: int = HIGHEST_HZ
    most_channels: int = MOST_CHANNELS
    exact_hz: int = HIGHEST_HZ
    """Above this rate only multiples of 10 Hz can be written."""

    @property
    def is_lossless(self) -> bool:
        """Whether a file has just the samples that were written, each rounded to its subtype."""
        return SAMPLE_BYTES.keys() >= set(self.subtypes)


FORMATS = {
    form.suffix: form
    for form in (
        Format(".wav", "WAV", ("PCM_16", "PCM_24", "FLOAT")),
        Format(
            ".flac",
            "FLAC",
            ("PCM_16", "PCM_24"),
            highest_hz=655_350,
            most_channels=8,
            exact_hz=65_535,
        ),
        Format(".ogg", "OGG", ("VORBIS",), highest_hz=192_000, most_channels=255),
    )
}
"""The output formats by suffix. A new one is a row here and, where they lack it, in these tables:

- `files.SUFFIXES`: its suffix, by which its files are found in folders
- `containers.SAMPLE_BYTES`: its subtypes if they are plain samples, by which it counts as lossless
  and its files are found to be cut short
- `containers._CODED`: its subtypes if they are coded, and FFmpeg does not read them well
- `_OVER_FULL_SCALE`: those of its subtypes that do not clip.
"""

_OVER_FULL_SCALE = ("FLOAT", "DOUBLE")
"""The subtypes that hold samples beyond -1..1."""

DEFAULT_SUBTYPE = "PCM_16"

SUBTYPES = tuple(
    dict.fromkeys(s for form in FORMATS.values() if len(form.subtypes) > 1 for s in form.subtypes)
)
"""What a user may ask the samples of an output to be."""


@dataclass(frozen=True)
class Advice:
    """What a user can do about a file, in the words of the command that reads it."""

    damaged: str = "Copy it again."
    tracks: str = "Export another to a file of its own."
    """About a file with several sound tracks, of which the first is used."""
    channels: str = "Export one of them to a file of its own."
    """About channels that cancel each other out."""


_FILE_ADVICE = Advice()
MIXTURE_ADVICE = Advice(
    "Copy it again, or take what can be read with --damaged keep.",
    "Choose another with --track.",
    "Choose one of them with --channel 0.",
)
"""For mixtures, which have options for this; references and scored files have none."""


def probe(path: Path | str, track: str | None = None) -> AudioInfo:
    """Read a file's header; see `Reader.info`."""
    return Reader(path, track=track).info


def read(
    path: Path | str,
    sample_rate_hz: int,
    channel: str = "mix",
    *,
    track: str | None = None,
    damaged: Damaged = "fail",
) -> Samples:
    """Read a whole file at a rate; arguments and errors are those of `Reader`.

    What is wrong with the file though it can be read is logged as warnings.

    Returns:
        [sample] for one channel or the mix, [channel, sample] for "all".
    """
    reader = Reader(path, sample_rate_hz, channel, track=track, damaged=damaged)
    samples = reader.read()
    for text in reader.warnings:
        _logger.warning(text)
    return samples


class Reader:
    """A file as blocks [channel, sample] at a rate; memory does not grow with its length.

    Args:
        path: a sound file or a video, of the kinds in `ffmpeg.KINDS`.
        sample_rate_hz: the rate of the blocks; the file is resampled (soxr, HQ) if need be. None
            is the file's own rate, which the attribute has from the first block on. The attribute
            may be set until then.
        channel: "mix" (mean of all channels), a channel's number from 0, or "all".
        track: the number, from 1, or the language of a sound track; None takes the first.
        damaged: "fail" raises at the first damage; "keep" reads what can be read, with silence
            where a part is lost in the middle, and a warning that says how much is missing.
        advice: what messages tell the user to do.
        shortest_s: a file shorter than this is an error, by its header and when it has been read.

    Raises:
        TypeError: the channel or track is not text, or the rate is not a number.
        ValueError: the rate is not from 1 kHz to 1 MHz, or `damaged` is neither word.
        AudioError: as `info`; while reading, also for a file that is damaged or cut off, and for
            channels that cancel each other out.
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
        advice: Advice = _FILE_ADVICE,
        shortest_s: float = 0.0,
    ) -> None:
        if not isinstance(channel, str) or not isinstance(track, str | None):
            raise TypeError(f'channel and track are text, such as "1", not {channel!r}, {track!r}')
        if damaged not in ("fail", "keep"):
            raise ValueError(f'damaged is "fail" or "keep", not {damaged!r}')
        self.path, self.channel = Path(path), channel
        self.sample_rate_hz = 0 if sample_rate_hz is None else check_rate(sample_rate_hz)
        self._track, self._damaged, self._advice = track, damaged, advice
        self._shortest_s = shortest_s
        self.frames = 0
        """Samples per channel read so far, at the file's own rate."""
        self.original: Samples = np.zeros((1, 0), np.float32)
        """All channels [channel, sample] of the last block, at the file's own rate."""
        self.warnings: list[str] = []
        """What is wrong with the file though it can be read; complete once all is read."""

    @cached_property
    def info(self) -> AudioInfo:
        """What the file's header says.

        A file whose header has no length, as of a live recording, or a too short one, is decoded
        to measure it.

        Raises:
            AudioError: the file is missing, a directory, empty, too short or not sound, it has no
                such track or channel, or its rate or number of channels is not plausible.
        """
        with self._open("keep") as decoder:
            info = decoder.info
            if not info.frames or info.seconds < self._shortest_s:  # more may be joined to it
                info = _measure(decoder)
        check_length(str(self.path), info.frames / info.sample_rate_hz, self._shortest_s)
        return info

    def check(self) -> None:
        """Raise what `info` raises, if anything."""
        _ = self.info

    def measure(self) -> None:
        """Decode the file, so that `info` has its true length; headers may announce less."""
        with self._open("keep") as decoder:
            self.info = _measure(decoder)

    def read(self) -> Samples:
        """Read all of it: [sample] for one channel or the mix, [channel, sample] for "all"."""
        joined = np.concatenate(list(self), axis=-1)
        return joined if self.channel == "all" else joined[0]

    def __iter__(self) -> Generator[Samples, None, None]:
        """Read the file from its beginning."""
        with self._open(self._damaged) as decoder:
            self.frames, self.warnings, info = 0, decoder.data.warnings, decoder.info
            known = vars(self).get("info", info)  # by which the caller may have made its plans
            if (known.sample_rate_hz, known.channels) != (info.sample_rate_hz, info.channels):
                raise AudioError(f"{self.path}: was replaced meanwhile. Run the command again.")
            self.sample_rate_hz = self.sample_rate_hz or info.sample_rate_hz
            kept = info.channels if self.channel == "all" else 1
            resampler = Resampler(info.sample_rate_hz, self.sample_rate_hz, kept)
            yield from resampler.run(self._blocks(decoder))
        self.original = self.original[:, :0].copy()  # the last block's memory is given back

    @contextmanager
    def _open(self, damaged: Damaged) -> Iterator[PlainFile | FFmpegFile]:
        with _open_file(self.path) as stream:
            advice = self._advice.damaged if damaged == "fail" else None
            data = SoundBytes(self.path, stream, advice)
            decoder = open_plain(data, self._track) or FFmpegFile(data, self._track)
            data.check_read()
            info = decoder.info
            if not LOWEST_HZ <= info.sample_rate_hz <= HIGHEST_HZ:
                raise AudioError(
                    f"{self.path}: its header says {info.sample_rate_hz} Hz, but only 1 kHz to 1 "
                    "MHz are read. The header may be damaged: export it again."
                )
            if not 1 <= info.channels <= MOST_CHANNELS:
                raise AudioError(
                    f"{self.path}: its header says {info.channels} channels, but only 1 to "
                    f"{MOST_CHANNELS} are read. Export it again."
                )
            _check_channel(self.channel, info.channels, self.path)
            if len(info.tracks) > 1 and self._track is None:
                data.warn(
                    f"has {len(info.tracks)} sound tracks: {', '.join(info.tracks)}. The first is "
                    f"used. {self._advice.tracks}"
                )
            yield decoder

    def _blocks(self, decoder: PlainFile | FFmpegFile) -> Iterator[Samples]:
        """Blocks of the chosen channels at the file's rate, each of their samples checked."""
        path, rate_hz = self.path, decoder.info.sample_rate_hz
        size = min(round(BLOCK_S * rate_hz), _BLOCK_SAMPLES // decoder.info.channels)
        meter = MixMeter()
        for block in decoder.blocks(size):
            with np.errstate(over="ignore", invalid="ignore"):
                chosen = select(block, self.channel, path)
            usable = (np.abs(chosen) <= LOUDEST).all(axis=0)  # false for NaN too
            if not usable.all():
                at = int(np.argmin(usable))
                is_number = np.isfinite(chosen[:, at]).all()
                raise NonFiniteError(
                    f"{path}: {'impossibly loud' if is_number else 'NaN or infinite'} sample at "
                    f"{(self.frames + at) / rate_hz:.2f} s. Export it again as 16-bit PCM."
                )
            self.frames += block.shape[1]
            self.original = block
            if self.channel == "mix":
                meter.add(block, chosen)
            yield chosen
        if meter.loss_db > WEAKENED_DB:
            advice = self._advice.channels
            if meter.loss_db > _CANCELLED_DB:
                raise AudioError(f"{path}: its channels cancel each other out in the mix. {advice}")
            self.warnings.append(
                f"{path}: its channels nearly cancel each other out in the mix, which is "
                f"{meter.loss_db:.0f} dB below them. {advice}"
            )
        seconds = self.frames / rate_hz
        if seconds < self._shortest_s and decoder.data.is_damaged:
            raise AudioError(
                f"{path}: is damaged, and only {seconds:.2f} s of it can be read, which is too "
                "short. Export it again from the original."
            )
        check_length(str(path), seconds, self._shortest_s)


class ArrayReader(Reader):
    """Samples [channel, sample] in memory, in the place of a file.

    There is one block. Its channels are not compared: a mix in which they cancel each other out is
    only silent. `original` stays empty.
    """

    def __init__(self, name: str, samples: Samples, sample_rate_hz: int, channel: str) -> None:
        super().__init__(name, sample_rate_hz, channel)
        channels, frames = samples.shape
        self.info = AudioInfo(sample_rate_hz, channels, frames)
        self._samples = select(samples, channel, name)
        check_length(name, self.info.seconds)

    def __iter__(self) -> Generator[Samples, None, None]:
        """Give all of them as one block [channel, sample]."""
        self.frames = self.info.frames
        yield self._samples


def _measure(decoder: PlainFile | FFmpegFile) -> AudioInfo:
    """What a file's header says, with the length that decoding it gives."""
    frames = sum(block.shape[1] for block in decoder.blocks(decoder.info.sample_rate_hz))
    return replace(decoder.info, frames=frames)


def _open_file(path: Path) -> BinaryIO:
    """Open a file, in which there is at least one byte."""
    status = files.check_exists(path)
    problem = ""
    if stat.S_ISDIR(status.st_mode):
        problem = "is a directory. Name a sound file in it."
    elif not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file. Save the sound to one first."
    elif not status.st_size:
        problem = "the file is empty (0 bytes). Copy or record it again."
    if problem:
        raise AudioError(f"{path}: {problem}")
    with files.reading(path):
        return path.open("rb", buffering=0)


def is_channel_number(channel: str) -> bool:
    """Whether it is "0", "1", ...; no file has 10,000 channels."""
    return channel.isascii() and channel.isdecimal() and len(channel) < 5


class MixMeter:
    """Measures in blocks how far a mix is below its channels: opposite ones cancel each other."""

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
    _check_channel(channel, len(samples), source)
    if channel == "all":
        return samples
    if channel == "mix":
        return samples.mean(axis=0, keepdims=True)
    return samples[int(channel) : int(channel) + 1]


def _check_channel(channel: str, channels: int, source: Path | str) -> None:
    is_there = is_channel_number(channel) and int(channel) < channels
    if not is_there and channel not in ("mix", "all"):
        raise AudioError(
            f"{source}: has no channel {channel}. It has {channels}, counted from 0. Choose one of "
            "them, or mix."
        )


def write(
    path: Path | str, samples: Floats, sample_rate_hz: int, subtype: str = DEFAULT_SUBTYPE
) -> None:
    """Write `samples` [sample] or [channel, sample] to a file, whole or not at all.

    Raises:
        TypeError: the samples are not real floating-point numbers.
        ValueError: their shape or the rate is impossible, or they would be clipped.
        NonFiniteError, OutputError: as `open_writer`.
    """
    if isinstance(samples, np.ma.MaskedArray):
        raise TypeError("samples are a masked array; fill what is masked, with 0 for silence")
    array = np.asarray(samples)
    if array.dtype.kind != "f":
        raise TypeError(f"samples are floats in -1..1, not {array.dtype}; divide integers by 2**15")
    if array.ndim not in (1, 2):
        raise ValueError(f"samples are [sample] or [channel, sample], not of shape {array.shape}")
    frames = np.atleast_2d(array)
    if len(frames) > max(1, frames.shape[1]):
        raise ValueError(f"samples are [channel, sample]; transpose those of shape {array.shape}")
    peak = np.abs(array).max(initial=0)
    if _CLIPPED_PEAK < peak < np.inf and not holds_over_full_scale(Path(path), subtype):
        raise ValueError(
            f"samples are in -1..1, but these reach {peak:.4g} and would be clipped; turn them "
            'down, or write a WAV with subtype="FLOAT"'
        )
    channels, length = frames.shape
    with open_writer(Path(path), sample_rate_hz, channels, subtype, length) as writer:
        writer.write(frames)


def encode(samples: Samples, sample_rate_hz: int) -> bytes:
    """A 16-bit FLAC file of `samples` [sample], at up to 65,535 Hz; beyond -1..1 is clipped."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class Writer:
    """A sound file in the making; see `open_writer`."""

    def __init__(self, path: Path, file: soundfile.SoundFile, stream: BinaryIO) -> None:
        self._path, self._file, self._stream = path, file, stream
        self.frames = 0
        """Samples per channel written so far."""

    def write(self, block: Samples) -> None:
        """Append `block` [channel, sample].

        Raises:
            ValueError: it has another number of channels.
            NonFiniteError: a sample is NaN or infinite.
            OutputError: the disk is full or went away.
        """
        if block.ndim != 2 or len(block) != self._file.channels:
            shape = f"[{self._file.channels}, sample]"
            raise ValueError(f"a block is {shape}, not of shape {block.shape}")
        with np.errstate(over="ignore"):
            block = block.astype(np.float32, copy=False)
        if not np.isfinite(block).all():
            raise NonFiniteError(f"{self._path}: NaN or infinite samples are not written.")
        with _failures(self._path, self._stream):
            for start in range(0, block.shape[1], _WRITE_FRAMES):
                self._file.write(block[:, start : start + _WRITE_FRAMES].T)
        self.frames += block.shape[1]


@contextmanager
def open_writer(
    path: Path, sample_rate_hz: int, channels: int, subtype: str, frames: int = 0
) -> Iterator[Writer]:
    """Write a sound file that appears under its name only when it is complete.

    Its format is the one of `FORMATS` with the path's suffix; a WAV that will have `frames` samples
    per channel is an RF64 if that is more than a WAV can hold. Leaving the context by an exception
    removes what was written.

    Raises:
        ValueError: the rate or the number of channels is impossible.
        OutputError: the suffix or subtype is not supported, or the place not writable.
    """
    import soundfile

    if not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"{channels} channels cannot be written; samples are [channel, sample]")
    form, subtype = check_format(path, subtype, sample_rate_hz, channels)
    is_large = frames * channels * SAMPLE_BYTES.get(subtype, 0) > _LARGEST_WAV
    container = "RF64" if form.container == "WAV" and is_large else form.container
    with files.whole(path) as partial, partial.open("w+b") as stream:
        target = str(partial) if os.name == "nt" else stream.fileno()
        with _failures(path, stream):
            file = soundfile.SoundFile(
                target, "w", int(sample_rate_hz), channels, subtype, None, container, closefd=False
            )
        writer = Writer(path, file, stream)
        try:
            yield writer
        finally:
            with _failures(path, stream):
                file.close()
        # Libsndfile does not report all that a full disk refuses.
        stream.seek(0)
        with _failures(path, stream):
            there = soundfile.SoundFile(target, closefd=False).frames
        if there != writer.frames:
            raise OSError(f"only {there} of {writer.frames} samples were written")


@contextmanager
def _failures(path: Path, stream: BinaryIO) -> Iterator[None]:
    """Give libsndfile's failures the system's reason, which it does not keep.

    Zeros are written to the failed output, which is removed anyway: up to 4 MiB, as a nearly full
    disk may take some. The system then refuses them for the same reason.
    """
    import soundfile

    try:
        yield
    except (soundfile.LibsndfileError, AssertionError) as error:
        try:
            for _ in range(64):
                stream.write(bytes(2**16))
                stream.flush()
        except OSError as reason:
            raise files.output_error(path, reason) from reason
        text = getattr(error, "error_string", None) or error
        raise OutputError(f"{path}: cannot be written: {text} Try another format.") from error


def check_format(
    path: Path, subtype: str, sample_rate_hz: int, channels: int = 1
) -> tuple[Format, str]:
    """The format and the subtype that an output gets.

    Raises:
        ValueError: the rate is not from 1 kHz to 1 MHz.
        OutputError: the suffix cannot be written, or not with this subtype, rate or channels.
    """
    check_rate(sample_rate_hz)
    files.check_suffix(path, FORMATS)
    form = FORMATS[path.suffix.lower()]
    if len(form.subtypes) == 1 and subtype == DEFAULT_SUBTYPE:
        subtype = form.subtypes[0]
    check_subtype(path, subtype)
    problem = ""
    if sample_rate_hz > form.highest_hz:
        problem = f"holds at most {form.highest_hz} Hz, not {sample_rate_hz}. Write WAV."
    elif sample_rate_hz > form.exact_hz and sample_rate_hz % 10:
        problem = f"cannot hold {sample_rate_hz} Hz. Write WAV."
    elif channels > form.most_channels:
        problem = f"holds at most {form.most_channels} channels, not {channels}. "
        problem += "Write WAV, or choose a channel."
    if problem:
        raise OutputError(f"{path}: {form.container} {problem}")
    return form, subtype


def check_subtype(path: Path, subtype: str) -> None:
    """Refuse samples that the format of an output does not have, with an OutputError."""
    form = FORMATS.get(path.suffix.lower())
    if form and subtype not in form.subtypes:
        remedy = f"Use --subtype {' or '.join(form.subtypes)}."
        if len(form.subtypes) == 1:
            remedy = "Leave --subtype out, or write WAV."
        raise OutputError(f"{path}: {form.container} has no {subtype} samples. {remedy}")


def holds_over_full_scale(path: Path, subtype: str) -> bool:
    """Whether an output can hold samples beyond -1..1, so that nothing need be turned down."""
    form = FORMATS.get(path.suffix.lower())
    return form is not None and subtype in _OVER_FULL_SCALE and subtype in form.subtypes


def check_rate(sample_rate_hz: float) -> int:
    """A sample rate, which may be NumPy's, as an int.

    Raises:
        TypeError: it is no number.
        ValueError: it is not from 1 kHz to 1 MHz, or not whole.
    """
    if isinstance(sample_rate_hz, bool) or not isinstance(sample_rate_hz, Real | np.number):
        raise TypeError(f"a sample rate is a number, not {sample_rate_hz!r:.80}")
    if not LOWEST_HZ <= sample_rate_hz <= HIGHEST_HZ:
        raise ValueError(f"a sample rate is from 1000 to 1000000 Hz, not {sample_rate_hz}")
    if sample_rate_hz % 1:
        raise ValueError(f"a sample rate is a whole number of Hz, not {sample_rate_hz}")
    return int(sample_rate_hz)


def level_db(mean_square: float) -> float:
    """The level of a mean square, in dB of full scale."""
    return 10 * float(np.log10(max(mean_square, 1e-30)))


def check_length(name: str, seconds: float, shortest_s: float = MIN_SIGNAL_S) -> None:
    """Refuse a signal shorter than `shortest_s` with an `AudioError`."""
    if seconds < shortest_s:
        shown_s = min(seconds, shortest_s - 0.01)  # "0.30 s is too short" would be odd
        raise AudioError(f"{name}: {shown_s:.2f} s is too short. Give {shortest_s} s or more.")


def check_level(name: str, mean_square: float) -> None:
    """Refuse a silent signal with an `AudioError`."""
    if level_db(mean_square) < SILENCE_DB:
        raise AudioError(f"{name}: is silent. Check the recording and its channels.")


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


def without_rumble(blocks: Iterable[Samples], sample_rate_hz: int) -> Iterator[Samples]:
    """Take a constant offset, and what is below 60 Hz, out of a stream of blocks [channel, sample].

    The filter is a linear-phase one whose delay is taken out, so that what is left stays where it
    was. Both ends of the signal are mirrored, so that an offset makes no click there. As many
    samples come out as went in, in other blocks.
    """
    half = round(_RUMBLE_FILTER_S / 2 * sample_rate_hz)
    taps = _low_pass(half, sample_rate_hz)
    begun, held = False, None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=-1)
        if not begun and held.shape[-1] > half:
            held, begun = np.pad(held, ((0, 0), (half, 0)), mode="reflect"), True
        if begun and held.shape[-1] > 2 * half:
            yield held[..., half:-half] - _filter(held, taps)
            held = held[..., -2 * half :]
    if held is not None and held.shape[-1]:
        ends = (0 if begun else half, half)
        held = np.pad(held, ((0, 0), ends), mode="reflect")
        yield held[..., half:-half] - _filter(held, taps)


def _low_pass(half: int, sample_rate_hz: int) -> Samples:
    """The taps [2 * half + 1] of a low-pass at `_LOWEST_VOICE_HZ`: a sinc under a Hann window."""
    times_s = np.arange(-half, half + 1) / sample_rate_hz
    taps = np.sinc(2 * _LOWEST_VOICE_HZ * times_s) * np.hanning(2 * half + 3)[1:-1]
    return np.asarray(taps / taps.sum(), np.float32)


def _filter(samples: Samples, taps: Samples) -> Samples:
    """Samples [channel, sample] under a filter, without the ends that the filter only half sees."""
    size = 2 ** int(np.ceil(np.log2(samples.shape[-1])))
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(taps, size)
    valid = np.fft.irfft(spectrum, size)[..., len(taps) - 1 : samples.shape[-1]]
    return valid.astype(np.float32)
