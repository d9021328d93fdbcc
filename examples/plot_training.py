"""Draw the curves of training runs: python examples/plot_training.py OUT.svg RUN/progress.csv...

Needs matplotlib. A curve is named by its file, or by its folder if the file is progress.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def read(path: Path) -> dict[str, list[float]]:
    """A run's steps, SI-SDRi in training, and the steps and SI-SDRi of its validations."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row["validation_db"]]
    return {
        "step": [float(row["step"]) for row in rows],
        "training": [float(row["si_sdr_i_db"]) for row in rows],
        "validated step": [float(row["step"]) for row in validated],
        "validation": [float(row["validation_db"]) for row in validated],
    }


def draw(axes: Axes, name: str, run: dict[str, list[float]]) -> None:
    """Add one run: thin in training, dotted line with marks in validation."""
    (line,) = axes.plot(run["step"], run["training"], linewidth=0.8, alpha=0.5)
    axes.plot(
        run["validated step"],
        run["validation"],
        marker="o",
        markersize=4,
        color=line.get_color(),
        label=f"{name}: {run['validation'][-1]:.2f} dB" if run["validation"] else name,
    )


def main(output: Path, runs: list[Path]) -> None:
    """Draw the runs into one picture."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for path in runs:
        draw(axes, path.parent.name if path.stem == "progress" else path.stem, read(path))
    axes.set(xlabel="step", ylabel="SI-SDRi in dB (thin: training, marks: validation)")
    axes.set_ylim(bottom=max(-2.0, axes.get_ylim()[0]))  # the first steps are far below
    axes.grid(alpha=0.3)
    axes.legend()
    # Without a date or random names, the same curves make the same file.
    undated = {"Date": None, "Creator": None} if output.suffix == ".svg" else None
    with mpl.rc_context({"svg.hashsalt": "mcspex"}):
        figure.savefig(output, metadata=undated)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT.svg")
    parser.add_argument("runs", type=Path, nargs="+", metavar="progress.csv")
    arguments = parser.parse_args()
    try:
        main(arguments.output, arguments.runs)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
