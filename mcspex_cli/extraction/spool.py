"""An estimate on the disk until its level is known, so that memory does not grow with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.errors import OutputError

_READ_SAMPLES = 2**18
"""Samples per channel read back at once."""


class Spool:
    """Blocks [channel, sample] in an unnamed temporary file on the disk of an output.

    Raises:
        OutputError: the output's folder cannot be written.
    """

    def __init__(self, output: Path, channels: int) -> None:
        self._output, self._channels = output, channels
        try:
            self._file = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115 (see close)
        except OSError as error:
            reason = error.strerror
            raise OutputError(f"{output.parent}: cannot write there ({reason}).") from error

    def append(self, block: Samples) -> None:
        """Add a block [channel, sample], through to the disk.

        Raises:
            OutputError: the disk is full or went away.
        """
        try:
            self._file.write(block.T.tobytes())
            self._file.flush()
        except OSError as error:
            reason = error.strerror
            raise OutputError(
                f"{self._output}: writing failed ({reason}). Free some space."
            ) from error

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def exactly(self, frames: int) -> Iterator[Samples]:
        """Give all back, cut or completed to `frames` samples per channel.

        Resampling there and back may be off by one.
        """
        left = frames
        self._file.seek(0)
        while left > 0 and (data := self._file.read(self._channels * 4 * _READ_SAMPLES)):
            block = np.frombuffer(data, np.float32).reshape(-1, self._channels).T
            yield block[:, :left]
            left -= block.shape[1]
        if left > 0:
            yield np.zeros((self._channels, left), np.float32)
