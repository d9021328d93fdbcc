"""One mixture file in, one estimate file out: streamed, levelled, whole or not at all."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.engine import (
    SILENCE_DB,
    Engine,
    check_length,
    check_level,
    check_signal,
    level_db,
)
from mcspex_cli.extraction.jobs import Job

LEVELS = ("match", "peak", "raw")
PEAK = 0.891
"""Highest sample of "peak", and of what would clip (-1 dBFS): room for a player's resampler."""
FULL_SCALE = 0.999
"""Highest sample that is left as it is."""


@dataclass(frozen=True)
class FileSettings:
    """How a mixture is read and its estimate written."""

    channel: str = "mix"
    """"mix", a channel's number, or "all": each channel extracted for itself."""
    level: str = "match"
    """"match" (as loud as in the mixture), "peak" (to -1 dBFS) or "raw" (the network's).

    Most networks' level is arbitrary, and matched by least squares; some have learnt it."""
    subtype: str = "PCM_16"

    def __post_init__(self) -> None:
        """Refuse a level that is none of `LEVELS`.

        Raises:
            ValueError: as said.
        """
        if self.level not in LEVELS:
            raise ValueError(f"level {self.level!r} is none of {', '.join(LEVELS)}")


@dataclass(frozen=True)
class Extraction:
    """What was done for one mixture."""

    mixture: Path
    output: Path
    seconds: float
    sample_rate_hz: int
    elapsed_s: float
    gain_db: tuple[float, ...]
    """What the network's output was multiplied by, for each channel."""
    limited: bool
    """Whether the level asked for would have clipped, so that all was turned down."""
    silent: bool
    """Whether the estimate is silent."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.elapsed_s / self.seconds


def read_references(paths: Sequence[Path], engine: Engine) -> list[Samples]:
    """Read clips [sample] of one voice at the engine's rate, mixed to one channel.

    Raises:
        AudioError: a clip cannot be read, is silent or too short; the message names it.
    """
    clips = []
    for path in paths:
        clip = audio.read(path, engine.sample_rate_hz)
        check_signal(str(path), clip, engine.sample_rate_hz)
        clips.append(clip)
    return clips


def extract_file(
    engine: Engine,
    job: Job,
    embedding: Samples,
    settings: FileSettings | None = None,
    advance: Callable[[float], object] = lambda _: None,
) -> Extraction:
    """Extract the voice of `embedding` from a file to a file at the same rate and length.

    Two passes, so that one gain holds for the whole file and memory does not grow with it:
    first to an unnamed temporary file while levels are measured, then to the output.

    `embedding` [embedding] is `engine`'s; `advance` is called with the seconds of audio done
    since its last call.

    Raises:
        AudioError: the mixture cannot be read, is silent or shorter than 0.3 s.
        OutputError: the output cannot be written.
        EngineError: the precision gave numbers that are not finite.
    """
    began = time.monotonic()
    measured = _extract(engine, job, embedding, settings or FileSettings(), advance)
    return Extraction(
        mixture=job.mixture,
        output=job.output,
        seconds=measured.frames / measured.rate_hz,
        sample_rate_hz=measured.rate_hz,
        elapsed_s=time.monotonic() - began,
        gain_db=tuple(round(level_db(float(g) ** 2), 2) for g in measured.gain),
        limited=measured.limited,
        silent=bool((measured.peak * np.abs(measured.gain)).max() < 10 ** (SILENCE_DB / 20)),
    )


def _extract(
    engine: Engine,
    job: Job,
    embedding: Samples,
    settings: FileSettings,
    advance: Callable[[float], object],
) -> _Measured:
    """Run both passes and say what was measured and decided on the way."""
    info = audio.probe(job.mixture)
    check_length(str(job.mixture), info.seconds)
    source = audio.Reader(job.mixture, engine.sample_rate_hz, settings.channel)
    measured = _Measured(info.channels if settings.channel == "all" else 1, info.sample_rate_hz)
    with (
        audio.Writer(job.output, info.sample_rate_hz, measured.channels, settings.subtype) as out,
        _spool(job.output) as spool,
    ):
        for block in _estimates(engine, source, embedding, measured):
            _append(spool, block, job.output)
            advance(block.shape[1] / info.sample_rate_hz)
        measured.frames = source.frames
        check_level(str(job.mixture), measured.mixture_mean_square())
        levelled = engine.system.config.true_level
        measured.decide(settings, job.output, true_level=levelled)
        factors = measured.gain.astype(np.float32)[:, None]
        for block in _exactly(_unspool(spool, measured.channels), source.frames):
            out.write(block * factors)
    return measured


@dataclass
class _Measured:
    """What the first pass learns, and the gain [channel] that follows from it.

    The products <m, m>, <e, e> and <m, e> are at the network's rate, |e|'s peak, `frames` and
    `rate_hz` the file's; each product and peak is [channel].
    """

    channels: int
    rate_hz: int
    frames: int = 0
    samples: int = 0
    limited: bool = False

    def __post_init__(self) -> None:
        self.mixture, self.estimate, self.shared, self.peak = np.zeros((4, self.channels))
        self.gain = np.ones(self.channels)

    def add(self, estimate: Samples, mixture: Samples) -> None:
        """Take account of a block [channel, sample] of both."""
        e, m = estimate.astype(np.float64), mixture.astype(np.float64)
        self.samples += e.shape[1]
        self.mixture += np.square(m).sum(axis=1)
        self.estimate += np.square(e).sum(axis=1)
        self.shared += (e * m).sum(axis=1)

    def mixture_mean_square(self) -> float:
        """Mean square of the loudest channel."""
        return float(self.mixture.max()) / max(1, self.samples)

    def decide(self, settings: FileSettings, output: Path, *, true_level: bool) -> None:
        """Set the gain that a level policy asks for, less what would clip."""
        if settings.level == "match" and not true_level:
            audible = self.estimate > 0
            np.divide(self.shared, self.estimate, out=self.gain, where=audible)
        loudest = float((np.abs(self.gain) * self.peak).max())
        is_float = settings.subtype == "FLOAT" and output.suffix.lower() == ".wav"
        exact = settings.level == "raw" and is_float
        self.limited = settings.level != "peak" and loudest > FULL_SCALE and not exact
        if self.limited or (settings.level == "peak" and loudest > 0):
            self.gain *= PEAK / loudest


def _estimates(
    engine: Engine, source: audio.Reader, embedding: Samples, measured: _Measured
) -> Iterator[Samples]:
    """The network's output [channel, sample] at the file's rate, measured on the way."""

    def at_network_rate() -> Iterator[Samples]:
        """The estimates as they come."""
        for estimate, mixture in engine.stream(source, embedding):
            measured.add(estimate, mixture)
            yield estimate

    back = audio.Resampler(engine.sample_rate_hz, measured.rate_hz, measured.channels)
    for block in back.run(at_network_rate()):
        if block.shape[1]:
            measured.peak = np.maximum(measured.peak, np.abs(block).max(axis=1))
        yield block


def _exactly(blocks: Iterator[Samples], frames: int) -> Iterator[Samples]:
    """Cut or complete a stream to `frames`: resampling there and back may be off by one."""
    left, channels = frames, 1
    for block in blocks:
        channels = len(block)
        if left > 0:
            yield block[:, :left]
        left -= block.shape[1]
    if left > 0:
        yield np.zeros((channels, left), np.float32)


def _unspool(spool: IO[bytes], channels: int) -> Iterator[Samples]:
    """Read blocks [channel, sample] back."""
    spool.seek(0)
    while data := spool.read(channels * 4 * 2**18):
        yield np.frombuffer(data, np.float32).reshape(-1, channels).T


def _append(spool: IO[bytes], block: Samples, output: Path) -> None:
    """Write a block [channel, sample] to the temporary file, through to the disk."""
    try:
        spool.write(block.T.tobytes())
        spool.flush()
    except OSError as error:
        reason = error.strerror
        raise OutputError(f"{output}: writing failed ({reason}). Free some space.") from error


def _spool(output: Path) -> IO[bytes]:
    """An unnamed temporary file on the output's disk."""
    try:
        return tempfile.TemporaryFile(dir=output.parent)
    except OSError as error:
        reason = error.strerror
        raise OutputError(f"{output.parent}: cannot write there ({reason}).") from error
