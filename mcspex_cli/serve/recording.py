"""A recording that somebody gave to a page: decoded for browsers, its peaks and pictures of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.containers import MIXTURE_ADVICE
from mcspex_cli.errors import McspexError, OutputError
from mcspex_cli.evaluation.spectrogram import COLUMNS, QUIET_DB, WINDOW_S, Levels, draw, spectrogram
from mcspex_cli.extraction.job import ExtractionOptions

PEAKS_PER_S = 100.0
MOST_PEAKS = 100_000
"""A page holds at most so many peaks of a sound, 400 kB; they are finer for shorter sounds."""

PICTURE_HZ = 16_000
"""Pictures show what is below half of this, where speech is."""

LONGEST_WHOLE_S = 60.0
"""Of a longer part, a picture shows a sample for each of its columns."""

_SAMPLE_S = 2 * WINDOW_S
_SAMPLE_BYTES = 2
"""Of a sample in the WAV file that a browser plays."""


class CancelledError(McspexError):
    """Its user wants it no more."""


@dataclass(frozen=True)
class Upload:
    """A file from a page; `name` is what its user calls it, and is never a path."""

    name: str
    path: Path


class PeakMeter:
    """The highest absolute sample of every short stretch, while a sound passes by.

    Args:
        sample_rate_hz: of the sound.
        seconds: its length as its header has it, which decides how long a stretch is.
    """

    def __init__(self, sample_rate_hz: int, seconds: float) -> None:
        per_s = min(PEAKS_PER_S, MOST_PEAKS / max(seconds, 1.0))
        self._stretch = max(1, round(sample_rate_hz / per_s))
        self._rest = np.zeros(0, np.float32)
        self.peak_s = self._stretch / sample_rate_hz
        """Seconds of a stretch."""

    def add(self, samples: Samples) -> bytes:
        """The peaks, 32-bit floats, of the stretches that `samples` [sample] complete."""
        samples = np.abs(np.concatenate([self._rest, samples]))
        whole = len(samples) // self._stretch * self._stretch
        self._rest = samples[whole:]
        return self._peaks(samples[:whole])

    def end(self) -> bytes:
        """The peak of what is left."""
        return self._peaks(self._rest) if len(self._rest) else b""

    def _peaks(self, samples: Samples) -> bytes:
        starts = np.arange(0, len(samples), self._stretch)
        peaks = np.maximum.reduceat(samples, starts) if len(starts) else samples
        return peaks.astype("<f4").tobytes()


class Recording:
    """The mixture of a session, as a WAV file that a browser can play from anywhere.

    Args:
        upload: the file as it came.
        info: its header.
        options: which channel and which sound track of it are used.
        max_bytes: how large the WAV file may be.

    Raises:
        OutputError: by its header it would be larger.
    """

    def __init__(
        self, upload: Upload, info: audio.AudioInfo, options: ExtractionOptions, max_bytes: int
    ) -> None:
        self.upload, self.info, self.options = upload, info, options
        self._max_bytes = max_bytes
        self._check_size(info.frames)
        self.playable = upload.path.with_name("mixture.wav")
        self._meter = PeakMeter(info.sample_rate_hz, info.seconds)
        self.peaks = bytearray()
        """So far; see `PeakMeter`."""
        self.is_decoded = False
        self.error = ""
        self.warnings: list[str] = []

    def decode(self, is_current: Callable[[], bool]) -> None:
        """Decode it all, or until it is not wanted any more; never raises."""
        reader = audio.Reader(
            self.upload.path,
            channel=self.options.channel,
            track=self.options.track,
            damaged=self.options.damaged,
            advice=MIXTURE_ADVICE,
        )
        rate_hz, frames = self.info.sample_rate_hz, 0
        try:
            with audio.Writer(self.playable, rate_hz, 1, "PCM_16", self.info.frames) as writer:
                for block in reader:
                    if not is_current():
                        raise CancelledError("cancelled.")  # so that no file appears
                    frames += block.shape[1]
                    self._check_size(frames)  # a header may announce less than there is
                    writer.write(block)
                    self.peaks += self._meter.add(block[0])
            self.peaks += self._meter.end()
            self.warnings = list(reader.warnings)
        except McspexError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"{type(error).__name__} ({error}). This is a bug, please report it."
        finally:
            self.is_decoded = True

    def _check_size(self, frames: int) -> None:
        if _SAMPLE_BYTES * frames > self._max_bytes:
            raise OutputError(
                f"{self.upload.name}: is too long. Decoded, it takes more than the "
                f"{self._max_bytes / 2**20:,.0f} MB that a recording may take. "
                "Start mcspex serve with a larger --max-upload."
            )

    def to_dict(self) -> dict[str, Any]:
        """What the page knows of it."""
        options = self.options
        return {
            "name": self.upload.name,
            "seconds": self.info.seconds,
            "peak_s": self._meter.peak_s,
            "channels": self.info.channels,
            "channel": options.channel,
            "tracks": [str(track) for track in self.info.tracks],
            "track": int(options.track or 1),
            "decoded": self.is_decoded,
            "error": self.error,
            "warnings": self.warnings,
        }


def read_peaks(path: Path) -> bytes:
    """The peaks of a whole file of one channel."""
    reader = audio.Reader(path)
    meter = PeakMeter(reader.info.sample_rate_hz, reader.info.seconds)
    peaks = [meter.add(block[0]) for block in reader]
    return b"".join([*peaks, meter.end()])


def draw_part(path: Path, mixture: Path, start_s: float, end_s: float) -> bytes:
    """A PNG of the spectrogram of a part of a WAV file, as bright as its mixture's would be.

    Args:
        path: the file, of one channel.
        mixture: what it was extracted from; its loudest place has the brightest colour.
        start_s: the part's beginning.
        end_s: its end, which may be the end of a file of hours.

    Raises:
        OSError: a file is not there any more.
    """
    loudest_db = max(float(_levels(mixture, start_s, end_s).max()), QUIET_DB)
    return draw(_levels(path, start_s, end_s), loudest_db)


def _levels(path: Path, start_s: float, end_s: float) -> Levels:
    import soundfile

    with path.open("rb") as stream, soundfile.SoundFile(stream) as file:
        rate_hz, frames = file.samplerate, file.frames
        first, last = (min(max(0, round(s * rate_hz)), frames) for s in (start_s, end_s))
        count, length = 1, max(last - first, 1)
        if length > LONGEST_WHOLE_S * rate_hz:
            count, length = COLUMNS, math.ceil(_SAMPLE_S * rate_hz)
        pieces = []
        for start in np.linspace(first, max(first, last - length), count).astype(int):
            file.seek(start)
            pieces.append(file.read(length, "float32"))
    samples = np.concatenate(pieces)
    if rate_hz > PICTURE_HZ:
        resampler = audio.Resampler(rate_hz, PICTURE_HZ, 1)
        samples = np.concatenate(list(resampler.run([samples[None]])), axis=-1)[0]
    return spectrogram(samples, min(rate_hz, PICTURE_HZ))
