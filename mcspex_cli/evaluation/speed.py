"""How quick runtimes and precisions are beside each other, and how near they come to torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from mcspex_cli.errors import McspexError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction.benchmark import Case, Measurement, measure

Row = tuple[Measurement, float | None]
"""With its SI-SDR in dB against torch in float32; None for that itself."""

EXACT = ("torch", "float32")
"""Runtime and precision that the others are compared with."""


@dataclass
class Comparison:
    """What came of several cases."""

    rows: list[Row] = field(default_factory=list)
    failures: list[tuple[Case, McspexError]] = field(default_factory=list)


def compare(
    cases: Sequence[Case],
    begin: Callable[[Case], None],
    fail: Callable[[Case, McspexError], None],
) -> Comparison:
    """Measure cases, those of one length next to each other; what fails does not stop the others.

    A case that comes to the same as one before, as "auto" may, is not measured again.
    """
    made = Comparison()
    for _, group in groupby(cases, key=lambda case: case.seconds):
        alike, measured = list(group), list[Measurement]()
        for case in alike:
            begin(case)
            known = frozenset((done.runtime, done.precision) for done in measured)
            try:
                done = measure(replace(case, known=known))
            except McspexError as error:
                made.failures.append((case, error))
                fail(case, error)
            else:
                measured += [done] if done else []
        made.rows += _compared(measured, alike[0])
    return made


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as data without NaN, times in seconds."""
    return {
        "measurements": [_facts(*row) for row in comparison.rows],
        "failures": [
            {
                "runtime": case.settings.runtime,
                "precision": case.settings.precision,
                "seconds": case.seconds,
                "error": str(error),
            }
            for case, error in comparison.failures
        ],
    }


def _compared(measured: Sequence[Measurement], case: Case) -> list[Row]:
    """Say of measurements of one length how near they come to torch in float32."""
    exact = next((m for m in measured if (m.runtime, m.precision) == EXACT), None)
    others = [done for done in measured if done is not exact]
    if exact is None and others:
        exact = _exact(case)
    near = {id(done): si_sdr(done.estimate, exact.estimate) for done in others if exact}
    values_db = [near.get(id(done), math.nan) for done in measured]
    finite = [value if math.isfinite(value) else None for value in values_db]
    return list(zip(measured, finite, strict=True))


def _exact(case: Case) -> Measurement | None:
    """What torch in float32 makes of this case, if that works here."""
    runtime, precision = EXACT
    settings = replace(case.settings, runtime=runtime, precision=precision)
    try:
        return measure(replace(case, settings=settings, repeat=0))
    except McspexError:
        return None


def _facts(done: Measurement, near_db: float | None) -> dict[str, Any]:
    """A row as data."""
    return {
        "runtime": done.runtime,
        "precision": done.precision,
        "device": done.device,
        "seconds": done.seconds,
        "load_s": round(done.load_s, 3),
        "first_s": round(done.first_s, 4),
        "times_s": [round(time_s, 4) for time_s in done.times_s],
        "real_time_factor": round(done.real_time_factor, 5),
        "peak_memory_mib": None if done.peak_mib is None else round(done.peak_mib, 1),
        "si_sdr_db": None if near_db is None else round(near_db, 2),
    }
