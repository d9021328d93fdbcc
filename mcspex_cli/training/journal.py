"""What a run reports now and then, kept in its folder."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, OutputError

FILE = "progress.csv"


@dataclass(frozen=True)
class Progress:
    """A report; numbers are means since the last one."""

    step: int
    share: float
    """Of the run, 0 to 1."""
    loss: float
    si_sdr_db: float
    si_sdr_i_db: float
    accuracy: float
    """Share of references whose speaker was named."""
    learning_rate: float
    audio_s_per_s: float
    """Seconds of mixtures trained on, per second."""
    elapsed_s: float
    validation_db: float | None = None
    """Mean SI-SDRi on the recipe, where this report follows a validation."""

    @property
    def left_s(self) -> float:
        """Seconds to the end of the run."""
        return self.elapsed_s * (1 / self.share - 1)


class Journal:
    """Appends reports to `progress.csv` and, if asked to, for TensorBoard.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.path = folder / FILE
        self.writer: Any = _writer(folder, step) if tensorboard else None
        names = [field.name for field in fields(Progress)]
        kept = []
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if _step(row) <= step]
        with files.whole(self.path) as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(kept)

    def add(self, progress: Progress) -> None:
        """Write one report."""
        row = asdict(progress)
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow("" if v is None else v for v in row.values())
        except OSError as error:
            reason = error.strerror
            raise OutputError(f"{self.path}: cannot be written ({reason}).") from error
        if self.writer:
            for name, value in row.items():
                if value is not None:
                    self.writer.add_scalar(name, value, progress.step)
            self.writer.flush()


def _step(row: dict[str, str]) -> float:
    """A row's step; a row cut short by a crash is of no step."""
    return float(row["step"]) if row["step"].isdigit() and row["elapsed_s"] else math.inf


def _writer(folder: Path, step: int) -> Any:
    """TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "[run] tensorboard needs the package of that name: pip install mcspex[tensorboard]."
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
