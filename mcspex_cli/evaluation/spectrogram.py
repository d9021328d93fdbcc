"""Pictures of sounds: time, frequency and level."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from mcspex_cli.audio import Samples

WINDOW_S = 0.032
HOP_S = 0.008
COLUMNS, ROWS = 512, 160
"""The largest spectrogram; longer sounds and finer spectra are averaged into it."""

RANGE_DB = 80.0
"""From the brightest colour down to black."""

QUIET_DB = -100.0
"""The brightest colour is never below this, so that silence is black."""

SHADES = 64
"""Colours in use: 1.25 dB each, no step is seen and the file is a third smaller than with 256."""

ANCHORS = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"
"""From silent to loud: lightness rises evenly, as in matplotlib's magma."""

CEILING = 0.85
"""An output that is black above this share of the mixture's range lacks the rest."""

Levels = npt.NDArray[np.float64]
"""A spectrogram in dB, [row, column]; the first row is the highest frequency."""


def measure(samples: Samples, rate_hz: int) -> Levels:
    """The power of `samples` [sample] over time and frequency, at most ROWS x COLUMNS.

    A full-scale sine is at about -6 dB at any rate. A sound shorter than a window is padded.
    """
    size = max(16, round(WINDOW_S * rate_hz))
    hop = max(1, round(HOP_S * rate_hz))
    window = np.hanning(size) / np.hanning(size).sum()
    padded = np.pad(samples, (size // 2, size - size // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    times = np.linspace(0, len(frames), min(len(frames), COLUMNS) + 1).astype(int)
    bins = np.linspace(0, size // 2 + 1, min(size // 2 + 1, ROWS) + 1).astype(int)
    power = np.empty((len(bins) - 1, len(times) - 1))
    for column, (start, end) in enumerate(pairwise(times)):
        spectrum = np.abs(np.fft.rfft(frames[start:end] * window)) ** 2
        pooled = np.add.reduceat(spectrum.mean(axis=0), bins[:-1])
        power[::-1, column] = pooled / np.diff(bins)
    levels: Levels = 10 * np.log10(power + 1e-20)
    return levels


def height(levels: Levels, loudest_db: float) -> float:
    """The share of a picture's height above which it is black, but for a few moments.

    Where a sound begins or ends it may click, which has all frequencies.
    """
    inner = levels[:, 3:-3] if levels.shape[1] > 6 else levels
    bright = np.flatnonzero((inner > loudest_db - RANGE_DB).mean(axis=1) > 0.02)
    return float(1 - bright[0] / len(levels)) if bright.size else 0.0


def why_black(ceiling_hz: float, mixture_hz: float) -> str:
    """Why an output has nothing above a frequency; empty if its mixture ends there too."""
    if not 0 < ceiling_hz < CEILING * mixture_hz:
        return ""
    for rate_hz in (8000, 16000, 24000, 32000):
        if -0.05 < 2 * ceiling_hz / rate_hz - 1 < 0.1:  # the window blurs the edge upwards
            return (
                f"Black above {rate_hz / 2000:g} kHz: a model for {rate_hz / 1000:g} kHz returns "
                "nothing higher."
            )
    return f"Black above {ceiling_hz / 1000:.1f} kHz: this output has no sound there."


def draw(levels: Levels, loudest_db: float) -> bytes:
    """A PNG of a spectrogram: `loudest_db` is the brightest colour, RANGE_DB below it black."""
    share = np.clip(1 + (levels - loudest_db) / RANGE_DB, 0, 1)
    picture = Image.fromarray(np.rint(share * (SHADES - 1)).astype(np.uint8))
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS.split()])
    places = np.linspace(0, len(anchors) - 1, SHADES)
    colours = [np.interp(places, range(len(anchors)), channel) for channel in anchors.T]
    picture.putpalette(np.rint(np.stack(colours, axis=1)).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
