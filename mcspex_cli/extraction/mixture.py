"""A mixture on its way in: a file or an array as windows for the network.

```
blocks at their own rate ─┬─▶ the network's rate ─▶ without what is below 20 Hz ─▶ windows
                          └─▶ kept, where the residual or a mix needs them
```
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError, OutputError
from mcspex_cli.extraction.job import ExtractionOptions, Job, inspect
from mcspex_cli.extraction.levels import MIN_SIGNAL_S, check_length
from mcspex_cli.extraction.windows import Window, Windowing, cut, without_rumble


class Store:
    """Blocks [channel, sample] until they are needed again: in memory, or on the disk if long.

    Args:
        folder: where the file of a long one is; the system's temporary folder if it is None.
    """

    IN_MEMORY_BYTES = 2**24
    READ_SAMPLES = 2**18

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._file: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (see close)
            self.IN_MEMORY_BYTES, dir=str(self._folder)
        )

    def append(self, block: Samples) -> None:
        """Add a block.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        try:
            self._file.write(np.ascontiguousarray(block.T).data)
        except OSError as error:
            raise self._failure(error) from error

    def read(self, channels: int, samples: int) -> Iterator[Samples]:
        """Give all back, cut or completed to `samples`: resampling there and back may be off.

        Raises:
            OutputError: as `append`.
        """
        try:
            self._file.seek(0)
        except OSError as error:
            raise self._failure(error) from error
        for start in range(0, samples, self.READ_SAMPLES):
            length = min(self.READ_SAMPLES, samples - start)
            data = self._file.read(4 * channels * length)
            block = np.frombuffer(data, np.float32).reshape(-1, channels).T
            yield np.pad(block, ((0, 0), (0, length - block.shape[1])))

    def close(self) -> None:
        """Give memory and disk back."""
        with suppress(OSError):
            self._file.close()

    __del__ = close  # for mixtures that are abandoned

    def _failure(self, error: OSError) -> OutputError:
        return files.output_error(self._folder, error, "a temporary file cannot be written")


@dataclass(eq=False)
class Mixture:
    """An open mixture, which is read once."""

    name: str
    sample_rate_hz: int
    channels: int
    blocks: Iterable[Samples]
    """[channel, sample] at its own rate."""
    announced_s: float = 0.0
    """Its length, as its header says."""
    start_s: float = 0.0
    """Where its sound begins in its container."""
    kept: Store | None = None
    """Gets every block, if it is not None."""
    warnings: Callable[[], list[str]] = list
    """What is wrong with it though it can be read; complete once all is read."""
    samples: int = field(default=0, init=False)
    """Read so far, of each channel."""

    @property
    def seconds(self) -> float:
        """Its length, once all is read."""
        return self.samples / self.sample_rate_hz

    def windows(self, sample_rate_hz: int, windowing: Windowing) -> Iterator[Window]:
        """Read it as windows at the rate of a network.

        Raises:
            AudioError: it cannot be read, or is shorter than 0.3 s.
            OutputError: the disk is too full to keep it.
        """
        resampler = audio.Resampler(self.sample_rate_hz, sample_rate_hz, self.channels)
        yield from cut(without_rumble(resampler.run(self._read()), sample_rate_hz), windowing)

    def _read(self) -> Iterator[Samples]:
        for block in self.blocks:
            self.samples += block.shape[1]
            if self.kept:
                self.kept.append(block)
            yield block
        if self.seconds < MIN_SIGNAL_S and self.warnings():  # of a damaged file this much is left
            raise AudioError(
                f"{self.name}: is damaged, and only {self.seconds:.2f} s of it can be read, which "
                "is too short. Export it again from the original."
            )
        check_length(self.name, self.seconds)


def open_mixture(job: Job, options: ExtractionOptions) -> Mixture:
    """Open the mixture of a job, and make the folders of its outputs.

    Raises:
        AudioError, OutputError: as `inspect`; a folder cannot be made.
    """
    info = job.info or inspect(job, options)
    files.make_folders(*{path.parent for path in job.outputs.paths()})
    reader = audio.Reader(
        job.mixture,
        info.sample_rate_hz,
        options.channel,
        track=options.track,
        damaged=options.damaged,
    )
    is_kept = job.outputs.residual is not None or options.dry_db is not None
    return Mixture(
        str(job.mixture),
        info.sample_rate_hz,
        info.channels if options.channel == "all" else 1,
        reader,
        info.seconds,
        info.start_s,
        Store(job.outputs.estimate.parent) if is_kept else None,
        lambda: reader.warnings,
    )
