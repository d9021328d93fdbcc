"""Lines of tables: what many mixtures' numbers come to, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]
"""One mixture's numbers, or one line's."""


def summarise(name: str, rows: Sequence[Row], first: Sequence[Row] | None = None) -> Row:
    """One line of a table: means, standard errors and, if paired, the change from `first`."""
    after, gains = (np.array([row[key] for row in rows]) for key in ("si_sdr_db", "si_sdr_i_db"))
    line: Row = {
        "condition": name,
        "mixtures": len(rows),
        "si_sdr_db": float(after.mean()),
        "si_sdr_i_db": float(gains.mean()),
        "standard_error_db": standard_error(gains),
        "confused_percent": 100 * float((gains < 0).mean()),
    }
    if first:
        change = after - [row["si_sdr_db"] for row in first]
        line |= {"change_db": float(change.mean()), "change_error_db": standard_error(change)}
    for key in ("target_alone_db", "other_alone_db"):
        known = [row[key] for row in rows if row[key] is not None]
        line |= {key: float(np.median(known))} if known else {}
    return line | {"each_si_sdr_i_db": np.round(gains, 2).tolist()}


def standard_error(values: npt.NDArray[np.float64]) -> float:
    """Of the mean; nan for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def column(line: Row, key: str, form: str) -> str:
    """A cell; empty where the line has no such number."""
    return form.format(**line).replace("-0.0 ", "0.0 ") if key in line else ""


COLUMNS = {
    "": ("condition", "{condition}"),
    "SI-SDR": ("si_sdr_db", "{si_sdr_db:.1f} dB"),
    "SI-SDRi": ("si_sdr_i_db", "{si_sdr_i_db:.1f} ± {standard_error_db:.1f} dB"),
    "confused": ("confused_percent", "{confused_percent:.0f} %"),
    "against the first row": ("change_db", "{change_db:+.1f} ± {change_error_db:.1f} dB"),
    "target where alone": ("target_alone_db", "{target_alone_db:+.1f} dB"),
    "other where alone": ("other_alone_db", "{other_alone_db:+.1f} dB"),
    "AUC": ("auc", "{auc:.2f}"),
    "equal error rate": ("equal_error_percent", "{equal_error_percent:.0f} %"),
    "present, but missed": ("missed_percent", "{missed_percent:.0f} %"),
    "absent, but taken for present": ("false_percent", "{false_percent:.0f} %"),
}
"""A table's columns, which it has if any of its lines has: key and form."""


def markdown(lines: Sequence[Row]) -> str:
    """A table of lines."""
    used = {name: c for name, c in COLUMNS.items() if any(c[0] in line for line in lines)}
    rows = [list(used), *([column(line, *c) for c in used.values()] for line in lines)]
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(used)}", *rest])
