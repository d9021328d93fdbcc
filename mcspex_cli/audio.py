"""Sound files in and out, resampling: the place that touches soundfile and soxr."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mcspex_cli import decoding, files, integrity
from mcspex_cli.errors import AudioError, NonFiniteError, OutputError

Samples = npt.NDArray[np.float32]
"""Samples in -1..1, [sample] or [channel, sample] as the function says."""

BLOCK_S = 10.0
"""Seconds read at a time from a long file."""

_OGG_HZ = 192_000
"""The highest rate for libsndfile's Vorbis writer."""

_WRITE_FRAMES = 2**16
"""Frames handed to libsndfile at once; its Vorbis writer crashes on millions."""

OUTPUT_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    `frames` counts samples per channel; where ffmpeg decodes the file it is approximate.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.frames / self.sample_rate_hz


def probe(path: Path) -> AudioInfo:
    """Read a file's header.

    Raises:
        AudioError: the file is missing, a directory, empty, cut short or not sound, or needs
            an ffmpeg that is not here.
    """
    with _open(path) as sound:
        return AudioInfo(path, sound.sample_rate_hz, sound.channels, sound.frames)


def read(path: Path | str, sample_rate_hz: int, channel: str = "mix") -> Samples:
    """Read a whole file at a rate; arguments and errors are those of `Reader`.

    Returns:
        [sample] for one channel or the mix, [channel, sample] for "all".
    """
    joined = np.concatenate(list(Reader(Path(path), sample_rate_hz, channel)), axis=-1)
    return joined if channel == "all" else joined[0]


class Reader:
    """A file as blocks [channel, sample] at a rate; memory does not grow with its length.

    Args:
        path: anything that libsndfile reads, or ffmpeg where there is one: the first sound
            track then.
        sample_rate_hz: the rate of the blocks; the file is resampled (soxr, HQ) if need be.
        channel: "mix" (mean of all channels), a channel's number from 0, or "all".

    Raises:
        AudioError: as `probe`; while reading also for a damaged file, or a channel that is
            not there.
        NonFiniteError: a sample is NaN or infinite.
    """

    def __init__(self, path: Path, sample_rate_hz: int, channel: str = "mix") -> None:
        self.path, self.sample_rate_hz, self.channel = path, sample_rate_hz, channel
        self.frames = 0
        """Samples per channel read so far, at the file's own rate."""

    def __iter__(self) -> Generator[Samples, None, None]:
        """Read the file from its beginning."""
        self.frames = 0
        with _open(self.path) as sound, closing(self._blocks(sound)) as blocks:
            select = _selector(self.path, self.channel, sound.channels)
            kept = sound.channels if self.channel == "all" else 1
            resampler = Resampler(sound.sample_rate_hz, self.sample_rate_hz, kept)
            yield from resampler.run(map(select, blocks))

    def _blocks(self, sound: integrity.Sound) -> Generator[Samples, None, None]:
        """Blocks of all channels at the file's rate, every sample checked."""
        with closing(sound.blocks(round(BLOCK_S * sound.sample_rate_hz))) as blocks:
            for block in blocks:
                finite = np.isfinite(block).all(axis=0)
                if not finite.all():
                    at_s = (self.frames + int(np.argmin(finite))) / sound.sample_rate_hz
                    raise NonFiniteError(
                        f"{self.path}: NaN or infinite sample at {at_s:.2f} s. "
                        "Export it again as 16-bit PCM."
                    )
                self.frames += block.shape[1]
                yield block


def write(path: Path | str, samples: Samples, sample_rate_hz: int, subtype: str = "PCM_16") -> None:
    """Write `samples` [sample] or [channel, sample] to a file, whole or not at all.

    Raises:
        OutputError: as `Writer`.
    """
    frames = np.atleast_2d(samples)
    with Writer(Path(path), sample_rate_hz, len(frames), subtype) as writer:
        writer.write(frames)


def encode(samples: Samples, sample_rate_hz: int) -> bytes:
    """A 16-bit FLAC file of `samples` [sample], at up to 65,535 Hz; beyond -1..1 is clipped."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class Writer:
    """A sound file that appears under its name only when it is complete.

    WAV, FLAC or OGG by the suffix. Used as a context manager; leaving it by an exception
    removes what was written.

    Raises:
        OutputError: the suffix or subtype is not supported, or the place not writable.
    """

    def __init__(self, path: Path, sample_rate_hz: int, channels: int, subtype: str) -> None:
        import soundfile

        self._path = path
        self._partial = files.partial(path)
        layout = _format(path, subtype, sample_rate_hz)
        try:
            self._partial.touch()
            name = str(self._partial) if os.name == "nt" else os.fsencode(self._partial)
            self._file = soundfile.SoundFile(name, "w", sample_rate_hz, channels, **layout)
        except BaseException as error:  # a Ctrl-C just here must not leave it either
            with suppress(OSError):
                self._partial.unlink()
            if isinstance(error, soundfile.LibsndfileError | OSError):
                raise OutputError(f"{path}: cannot be written ({_reason(error)}).") from error
            raise

    def write(self, block: Samples) -> None:
        """Append `block` [channel, sample].

        Raises:
            OutputError: the disk is full or went away.
        """
        import soundfile

        try:
            for start in range(0, block.shape[1], _WRITE_FRAMES):
                self._file.write(block[:, start : start + _WRITE_FRAMES].T)
        except (soundfile.LibsndfileError, OSError) as error:
            reason = _reason(error)
            raise OutputError(f"{self._path}: writing failed ({reason}). Free space?") from error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import soundfile

        try:
            self._file.close()
            if kind is None:
                self._partial.replace(self._path)
        except (soundfile.LibsndfileError, OSError) as failure:
            reason = _reason(failure)
            raise OutputError(f"{self._path}: cannot be written ({reason}).") from failure
        finally:
            self._partial.unlink(missing_ok=True)


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
            yield self.step(block, last=False) if self._stream else block
        if self._stream:
            yield self.step(np.zeros((self._channels, 0), np.float32), last=True)

    def step(self, block: Samples, *, last: bool) -> Samples:
        """Resample one block; the last one flushes."""
        if self._stream is None:
            return block
        out: Samples = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        return out.T


@contextmanager
def _open(path: Path) -> Iterator[integrity.Sound]:
    """Open for reading, or say why not."""
    import soundfile

    with integrity.opened(path) as stream:
        try:
            file = soundfile.SoundFile(stream)
        except soundfile.LibsndfileError:
            file = None
        if file is not None:
            with file:
                integrity.check_header(path, file)
                yield integrity.Plain(path, file)
            return
    yield decoding.Decoded(path)


def _selector(path: Path, channel: str, channels: int) -> Any:
    """The function that takes [channel, sample] to the channels asked for."""
    if channel == "all":
        return lambda block: block
    if channel == "mix":
        return lambda block: block.mean(axis=0, keepdims=True)
    if not channel.isdecimal() or int(channel) >= channels:
        raise AudioError(
            f"{path}: has no channel {channel}. It has {channels}, counted from 0; or use mix."
        )
    index = int(channel)
    return lambda block: block[index : index + 1]


def check_format(path: Path, subtype: str, sample_rate_hz: int) -> None:
    """Refuse an output whose suffix, or subtype under it, cannot be written.

    Raises:
        OutputError: as said.
    """
    _format(path, subtype, sample_rate_hz)


def _format(path: Path, subtype: str, sample_rate_hz: int) -> dict[str, str]:
    """Libsndfile's format and subtype for an output path."""
    name = OUTPUT_FORMATS.get(path.suffix.lower())
    if name is None:
        raise OutputError(f"{path}: cannot write this format. End the name in .wav, .flac or .ogg.")
    if name == "OGG":
        if sample_rate_hz > _OGG_HZ:
            raise OutputError(f"{path}: {sample_rate_hz} Hz is too much for OGG. Write WAV.")
        return {"format": name, "subtype": "VORBIS"}
    if name == "FLAC" and subtype == "FLOAT":
        raise OutputError(f"{path}: FLAC has no float samples. Use --subtype PCM_24, or .wav.")
    return {"format": name, "subtype": subtype}


def _reason(error: Exception) -> str:
    """An error's own words, without the path that the message has already."""
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)
