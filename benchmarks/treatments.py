"""What becomes of a recording before anybody extracts from it: bands, levels, codecs."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import soundfile

from mcspex_cli.audio import Samples

Treatment = Callable[[Samples, int], Samples]
"""A recording [sample] and its rate in Hz to what becomes of it, equally long."""


def as_it_is(recording: Samples, sample_rate_hz: int) -> Samples:  # noqa: ARG001
    """No treatment."""
    return recording


def telephone(recording: Samples, sample_rate_hz: int) -> Samples:
    """What is left of 300 to 3400 Hz, with edges of 100 Hz."""
    hertz = np.fft.rfftfreq(len(recording), 1 / sample_rate_hz)
    kept = np.clip((hertz - 200) / 100, 0, 1) * np.clip((3500 - hertz) / 100, 0, 1)
    left = np.fft.irfft(np.fft.rfft(recording) * kept, n=len(recording))
    return np.asarray(left, np.float32)


def at_level(level_db: float) -> Treatment:
    """A 16-bit file with this RMS level, dB of full scale; what goes beyond is clipped."""

    def treat(recording: Samples, sample_rate_hz: int) -> Samples:  # noqa: ARG001
        rms = np.sqrt(np.mean(np.square(recording)))
        return _in_16_bits(recording * np.float32(10 ** (level_db / 20) / rms))

    return treat


def clipped(over_db: float) -> Treatment:
    """A 16-bit file whose peak would have been so far over full scale."""

    def treat(recording: Samples, sample_rate_hz: int) -> Samples:  # noqa: ARG001
        return _in_16_bits(recording * np.float32(10 ** (over_db / 20) / np.abs(recording).max()))

    return treat


def coded(container: str, subtype: str, level: float | None = None) -> Treatment:
    """Through libsndfile's encoder and back; `level` is its 0 (best) to 1 (smallest)."""
    options = {} if level is None else {"compression_level": level}
    if container == "MP3":
        options["bitrate_mode"] = "CONSTANT"  # type: ignore[assignment]

    def treat(recording: Samples, sample_rate_hz: int) -> Samples:
        file = io.BytesIO()
        soundfile.write(
            file, recording, sample_rate_hz, format=container, subtype=subtype, **options
        )
        file.seek(0)
        decoded: Samples = soundfile.read(file, dtype="float32")[0][: len(recording)]
        return decoded

    return treat


def _in_16_bits(recording: Samples) -> Samples:
    """Clipped and rounded."""
    return np.asarray(np.clip(np.rint(recording * 32768), -32768, 32767) / 32768, np.float32)
