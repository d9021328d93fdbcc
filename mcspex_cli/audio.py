"""Sound files in and out, channels, resampling; `soundfiles` and `containers` decode them."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from mcspex_cli import files
from mcspex_cli.containers import Container, Damaged, Track
from mcspex_cli.errors import AudioError, NonFiniteError, OutputError
from mcspex_cli.soundfiles import (
    HIGHEST_HZ,
    LOWEST_HZ,
    MOST_CHANNELS,
    SAMPLE_BYTES,
    SoundFile,
    open_file,
)

Sound: TypeAlias = SoundFile | Container
"""An open sound file, whoever decodes it."""

Samples = npt.NDArray[np.float32]
"""Samples in -1..1, [sample] or [channel, sample] as the function says."""

BLOCK_S = 10.0
"""Seconds read at a time from a long file."""

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


def probe(path: Path | str, track: str | None = None) -> AudioInfo:
    """Read a file's header.

    A file whose header has no length, as of a live recording, is decoded to measure it.

    Raises:
        AudioError: the file is missing, a directory, empty or not sound, or its rate or number of
            channels is none that anybody records with.
    """
    with _open(Path(path), track) as sound:
        rate_hz = sound.sample_rate_hz
        frames = sound.frames or sum(block.shape[1] for block in sound.blocks(rate_hz, "keep"))
        return AudioInfo(rate_hz, sound.channels, frames, sound.start_s, sound.tracks)


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
    joined = np.concatenate(list(reader), axis=-1)
    if warnings is not None:
        warnings += reader.warnings
    return joined if channel == "all" else joined[0]


class Reader:
    """A file as blocks [channel, sample] at a rate; memory does not grow with its length.

    Args:
        path: anything that libsndfile or FFmpeg reads.
        sample_rate_hz: the rate of the blocks; the file is resampled (soxr, HQ) if need be. None
            is the file's own rate, which the attribute has from the first block on.
        channel: "mix" (mean of all channels), a channel's number from 0, or "all".
        track: the number, from 1, or the language of a sound track; None takes the first.
        damaged: "fail" raises at the first damage; "keep" reads what can be read, with silence
            where a part is lost in the middle, and a warning that says how much is missing.

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
    ) -> None:
        if damaged not in ("fail", "keep"):
            raise ValueError(f'damaged is "fail" or "keep", not {damaged!r}')
        if sample_rate_hz is not None:
            _check_rate(sample_rate_hz)
        self.path, self.channel = Path(path), channel
        self.sample_rate_hz = sample_rate_hz or 0
        self._track, self._damaged = track, damaged
        self.frames = 0
        """Samples per channel read so far, at the file's own rate."""
        self.warnings: list[str] = []
        """What is wrong with the file though it can be read; complete once all is read."""

    def __iter__(self) -> Generator[Samples, None, None]:
        """Read the file from its beginning."""
        self.frames = 0
        with _open(self.path, self._track) as sound, closing(self._blocks(sound)) as blocks:
            self.warnings = sound.warnings
            kept = sound.channels if self.channel == "all" else 1
            self.sample_rate_hz = self.sample_rate_hz or sound.sample_rate_hz
            resampler = Resampler(sound.sample_rate_hz, self.sample_rate_hz, kept)
            yield from resampler.run(blocks)

    def _blocks(self, sound: Sound) -> Generator[Samples, None, None]:
        """Blocks of the chosen channels at the file's rate, every sample checked."""
        size = round(BLOCK_S * sound.sample_rate_hz)
        if sound.channels > 1:
            size = min(size, _BLOCK_SAMPLES // sound.channels)
        meter = MixMeter()
        with closing(sound.blocks(size, self._damaged)) as blocks:
            for block in blocks:
                finite = np.isfinite(block).all(axis=0)
                if not finite.all():
                    at_s = (self.frames + int(np.argmin(finite))) / sound.sample_rate_hz
                    raise NonFiniteError(
                        f"{self.path}: NaN or infinite sample at {at_s:.2f} s. "
                        "Export it again as 16-bit PCM."
                    )
                self.frames += block.shape[1]
                chosen = select(block, self.channel, self.path)
                if self.channel == "mix":
                    meter.add(block, chosen)
                yield chosen
        cure = "Choose one of them with --channel 0."
        if meter.loss_db > _CANCELLED_DB:
            raise AudioError(f"{self.path}: its channels cancel each other out in the mix. {cure}")
        if meter.loss_db > WEAKENED_DB:
            self.warnings.append(
                f"{self.path}: its channels nearly cancel each other out in the mix, which is "
                f"{meter.loss_db:.0f} dB below them. {cure}"
            )


@contextmanager
def _open(path: Path, track: str | None = None) -> Iterator[Sound]:
    """Open a sound file; `track` is the number, from 1, or the language of a sound track."""
    with ExitStack() as stack:
        stream = stack.enter_context(_bytes(path))
        sound: Sound
        if file := open_file(path, stream):
            sound = SoundFile(path, stream, stack.enter_context(file))
        else:
            sound = stack.enter_context(Container(path, stream, track))
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
    files.check_exists(path)
    if path.is_dir():
        raise AudioError(f"{path}: is a directory. Name a sound file in it.")
    if not path.is_file():
        raise AudioError(f"{path}: is not a regular file. Save the sound to one first.")
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("rb", buffering=0))
            is_empty = not stream.read(1)
            stream.seek(0)
        except OSError as error:
            raise AudioError(f"{path}: cannot be read: {files.explain(error)}") from error
        if is_empty:
            raise AudioError(f"{path}: the file is empty (0 bytes). Copy or record it again.")
        yield stream


class MixMeter:
    """How far below its channels a mix is, while they pass by: opposite ones cancel each other."""

    def __init__(self) -> None:
        self._mixed = self._separate = 0.0

    def add(self, channels: Samples, mix: Samples) -> None:
        """Take a block [channel, sample], and its mix [1, sample]."""
        if len(channels) > 1:
            self._mixed += float(np.sum(np.square(mix, dtype=np.float64)))
            self._separate += float(np.mean(np.sum(np.square(channels, dtype=np.float64), axis=1)))

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
    if not channel.isdecimal() or int(channel) >= len(samples):
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
