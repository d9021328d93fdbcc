"""A recording that somebody gave to a page: decoded to what browsers play, and to its peaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli import audio
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.job import ExtractionOptions
from mcspex_cli.serve.waveform import PeakMeter


class CancelledError(McspexError):
    """Its user wants it no more."""


@dataclass(frozen=True)
class Upload:
    """A file from a page; `name` is what its user calls it, and is never a path."""

    name: str
    path: Path


class Recording:
    """The mixture of a session, as a WAV file that a browser can play from anywhere.

    Args:
        upload: the file as it came.
        info: its header.
        options: which channel and which sound track of it are used.
    """

    def __init__(self, upload: Upload, info: audio.AudioInfo, options: ExtractionOptions) -> None:
        self.upload, self.info, self.options = upload, info, options
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
        )
        rate_hz = self.info.sample_rate_hz
        try:
            with audio.Writer(self.playable, rate_hz, 1, "PCM_16", self.info.frames) as writer:
                for block in reader:
                    if not is_current():
                        raise CancelledError("cancelled.")  # so that no file appears
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
