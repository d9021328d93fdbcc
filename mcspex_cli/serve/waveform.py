"""What a page shows of a sound of any length: its peaks, and pictures of parts of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.evaluation.spectrogram import COLUMNS, QUIET_DB, WINDOW_S, Levels, draw, spectrogram

PEAKS_PER_S = 100.0
MOST_PEAKS = 100_000
"""A page holds at most so many peaks of a sound, 400 kB; they are finer for shorter sounds."""

PICTURE_HZ = 16_000
"""Pictures show what is below half of this, where speech is."""

LONGEST_WHOLE_S = 60.0
"""Of a longer part, a picture shows a sample for each of its columns."""

_SAMPLE_S = 2 * WINDOW_S


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


def read_peaks(path: Path) -> tuple[bytes, float]:
    """The peaks of a whole file of one channel, and the seconds of each."""
    info = audio.probe(path)
    meter = PeakMeter(info.sample_rate_hz, info.seconds)
    peaks = [meter.add(block[0]) for block in audio.Reader(path)]
    return b"".join([*peaks, meter.end()]), meter.peak_s


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
