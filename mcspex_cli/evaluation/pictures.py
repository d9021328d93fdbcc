"""Pictures of sound: spectrograms, their colours, PNG files and the axes of a plot."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples

Levels = npt.NDArray[np.float64]
"""A spectrogram in dB, [row, column]; the first row is the highest frequency."""

WINDOW_S = 0.032
HOP_S = 0.008
COLUMNS, ROWS = 512, 160
"""The largest picture; longer sounds and finer spectra are averaged into it."""

RANGE_DB = 80.0
"""From the loudest colour down to black."""

SHADES = 64
"""Colours in use: 1.25 dB each, no step is seen and the file is a third smaller than with 256."""

_FLOOR = 1e-20
"""Power added before taking the logarithm of it."""

_ANCHORS = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"
"""From silent to loud: lightness rises evenly, as in matplotlib's magma."""


def spectrogram(samples: Samples, rate_hz: int) -> Levels:
    """The power of `samples` [sample] over time and frequency, at most ROWS x COLUMNS.

    A full-scale sine is at about -6 dB at any rate. A sound shorter than a window is padded.
    """
    size = max(16, round(WINDOW_S * rate_hz))
    hop = max(1, round(HOP_S * rate_hz))
    window = np.hanning(size) / np.hanning(size).sum()
    padded = np.pad(samples, (size // 2, size - size // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    times = _edges(len(frames), COLUMNS)
    bins = _edges(size // 2 + 1, ROWS)
    power = np.empty((len(bins) - 1, len(times) - 1))
    for column, (start, end) in enumerate(pairwise(times)):
        spectrum = np.abs(np.fft.rfft(frames[start:end] * window)) ** 2
        pooled = np.add.reduceat(spectrum.mean(axis=0), bins[:-1])
        power[::-1, column] = pooled / np.diff(bins)
    levels: Levels = 10 * np.log10(power + _FLOOR)
    return levels


def draw(levels: Levels, loudest_db: float) -> bytes:
    """A PNG of a spectrogram: `loudest_db` is the brightest colour, RANGE_DB below it black."""
    share = np.clip(1 + (levels - loudest_db) / RANGE_DB, 0, 1)
    return png(np.rint(share * (SHADES - 1)).astype(np.uint8), _palette())


def scale() -> bytes:
    """A PNG of all colours, from silent to loud, one pixel each."""
    return png(np.arange(SHADES, dtype=np.uint8)[None], _palette())


def png(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of `pixels` [row, column], which are indices of `palette` [colour, rgb].

    Source: Portable Network Graphics (W3C, third edition), 5 and 11.
    """
    rows, columns = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    lines = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each line begins with filter 0, none
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(lines, 9)))
    file = b"\x89PNG\r\n\x1a\n"
    for kind, body in (*chunks, (b"IEND", b"")):
        file += struct.pack(">I", len(body)) + kind + body
        file += struct.pack(">I", zlib.crc32(kind + body))
    return file


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on a line of pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """A value's place in pixels, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round numbers (1, 2 or 5 times a power of ten apart), at most nine of them."""
        rough = (self.high - self.low) / 8
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def axis(values: list[float], start: float, end: float) -> Axis:
    """An axis that holds all `values`, with some room on both sides (one value: 1 dB)."""
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 1.0)
    return Axis(low - room, high + room, start, end)


def _edges(count: int, most: int) -> npt.NDArray[np.int64]:
    """Where `count` things are cut into at most `most` parts of about one size."""
    return np.linspace(0, count, min(count, most) + 1).astype(np.int64)


def _palette() -> npt.NDArray[np.uint8]:
    """SHADES colours [colour, rgb] between the anchors."""
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in _ANCHORS.split()])
    places = np.linspace(0, len(anchors) - 1, SHADES)
    channels = [np.interp(places, range(len(anchors)), anchors[:, c]) for c in range(3)]
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return colours
