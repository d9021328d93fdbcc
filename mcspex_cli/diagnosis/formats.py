"""Which formats of sound files the libsndfile that is here reads and writes, found by trying."""

from __future__ import annotations

import io

import numpy as np

from mcspex_cli.errors import AudioError

FORMATS = {
    "WAV": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "OGG": ("OGG", "VORBIS"),
    "OPUS": ("OGG", "OPUS"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
}
"""libsndfile's format and subtype, by the name that people know."""

_RATE_HZ = 16_000


def try_format(name: str) -> None:
    """Write 0.1 s of a tone in one of `FORMATS`, in memory, and read it back.

    Raises:
        AudioError: it is not written or read here, or comes back as something else.
    """
    import soundfile

    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(_RATE_HZ // 10) / _RATE_HZ)
    layout, subtype = FORMATS[name]
    file = io.BytesIO()
    try:
        soundfile.write(file, tone, _RATE_HZ, format=layout, subtype=subtype)
        file.seek(0)
        back, rate_hz = soundfile.read(file)
    except (soundfile.LibsndfileError, ValueError) as error:
        reason = getattr(error, "error_string", None) or error
        raise AudioError(f"{name}: {reason} Install soundfile again.") from error
    if rate_hz != _RATE_HZ or len(back) < len(tone) // 2 or not 0.1 < back.std() < 1:
        raise AudioError(f"{name}: came back as another sound. Install soundfile again.")


def library() -> str:
    """Libsndfile's version.

    Raises:
        OSError: there is no libsndfile.
    """
    import soundfile

    return str(soundfile.__libsndfile_version__)
