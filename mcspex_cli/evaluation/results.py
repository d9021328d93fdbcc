"""How each system did in each case, on the whole and by group; and which cases to show."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mcspex_cli.evaluation import scoring
from mcspex_cli.evaluation.pairing import Trio
from mcspex_cli.evaluation.runs import Case, Output, Run

REASONS = BEST, WORST, DRAWN = "best", "worst", "drawn at random"
"""Why a case is shown."""

SETTINGS = scoring.ScoreSettings(("si_sdr", "si_sdr_i"))
"""Only what a page shows."""


@dataclass(frozen=True)
class Result:
    """One output's numbers; a value is None where it does not exist."""

    status: str
    """"ok", or as `scoring.Score` says."""
    note: str = ""
    """Why it could not be scored, or how it was."""
    si_sdr_db: float | None = None
    si_sdr_i_db: float | None = None
    input_db: float | None = None
    """The mixture's own SI-SDR."""
    confused: bool = False
    flipped: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is something to say instead of a number."""
        return self.si_sdr_db is None and bool(self.note)


@dataclass(frozen=True)
class Judged:
    """A case and how each system did in it; None where there is no estimate or no truth."""

    case: Case
    input_db: float | None
    results: tuple[Result | None, ...]

    @property
    def merit_db(self) -> float | None:
        """Mean SI-SDRi over the systems; without a mixture, mean SI-SDR."""
        fine = [r for r in self.results if r and r.status == "ok"]
        gains = [r.si_sdr_i_db for r in fine] if self.case.mixture else [r.si_sdr_db for r in fine]
        return _mean([gain for gain in gains if gain is not None])


@dataclass(frozen=True)
class Standing:
    """One system over some cases: means over what could be scored."""

    label: str
    files: int
    scored: int
    si_sdr_db: float | None
    si_sdr_i_db: float | None
    median_i_db: float | None
    confused: int | None
    """Outputs worse than the mixture: most often the wrong speaker."""


def judge(case: Case) -> Judged:
    """Score what each system gave for a case; a file that cannot be scored is a result too."""
    results = tuple(_result(case, output) for output in case.outputs)
    known = next((r.input_db for r in results if r and r.input_db is not None), None)
    if known is None and case.truth and case.mixture:
        alone = _score(Trio(case.name, case.mixture, case.truth, None))
        known = alone.si_sdr_db
    return Judged(case, known, results)


def _result(case: Case, output: Output | None) -> Result | None:
    """An output's numbers, if it can have any: its run's own report's, or found now."""
    if not output or not output.estimate or not case.truth:
        return None
    if output.score and (output.truth, output.mixture) == (case.truth, case.mixture):
        return _from_row(output.score)
    return _score(Trio(case.name, output.estimate, case.truth, case.mixture))


def _score(trio: Trio) -> Result:
    """Score a trio."""
    return _from_row(asdict(scoring.score(trio, SETTINGS)))


def _from_row(row: Mapping[str, Any]) -> Result:
    """What a `scoring.Score`, as a dict, says.

    A sign flip, which neither the ear nor SI-SDR notices, is let pass with a note.
    """
    flipped = row["status"] == "sign flipped"
    return Result(
        "ok" if flipped else row["status"],
        f"Sign flipped. {row['note']}".strip() if flipped else row["note"],
        row["si_sdr_db"],
        row["si_sdr_i_db"],
        row["input_si_sdr_db"],
        confused=row["confused"] is True,
        flipped=flipped,
    )


def stand(judged: Sequence[Judged], runs: Sequence[Run]) -> list[Standing]:
    """Sum up each system over some cases."""
    return [
        _standing(run.label, [row.results[number] for row in judged])
        for number, run in enumerate(runs)
    ]


def _standing(label: str, results: Sequence[Result | None]) -> Standing:
    """Sum up one system."""
    there = [result for result in results if result]
    fine = [result for result in there if result.status == "ok"]
    gains = [r.si_sdr_i_db for r in fine if r.si_sdr_i_db is not None]
    return Standing(
        label,
        files=len(there),
        scored=len(fine),
        si_sdr_db=_mean([r.si_sdr_db for r in fine if r.si_sdr_db is not None]),
        si_sdr_i_db=_mean(gains),
        median_i_db=float(np.median(gains)) if gains else None,
        confused=sum(r.confused for r in fine) if gains else None,
    )


def by_group(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The cases of each group, groups and cases in the order given."""
    groups: dict[str, list[Judged]] = {}
    for row in judged:
        groups.setdefault(row.case.group, []).append(row)
    return groups


def choose(judged: Sequence[Judged], count: int, seed: int) -> Mapping[str, str]:
    """Which cases to show, by name, and why: "best", "worst" or "drawn at random".

    A third each (the best first, then the worst, get what three does not divide); best and
    worst by `merit_db`, the rest drawn from all others with `seed`. Without scores all are
    drawn. If there are not more than `count`, all are shown and the reason is empty.
    """
    if len(judged) <= count:
        return {row.case.name: "" for row in judged}
    ranked = sorted(
        (row for row in judged if row.merit_db is not None), key=lambda row: -(row.merit_db or 0)
    )
    best = ranked[: (count + 2) // 3]
    worst = ranked[len(best) :][::-1][: (count + 1) // 3]
    reasons = {row.case.name: BEST for row in best} | {row.case.name: WORST for row in worst}
    others = [row.case.name for row in judged if row.case.name not in reasons]
    drawn = random.Random(seed).sample(others, count - len(reasons))
    return reasons | dict.fromkeys(drawn, DRAWN)


def _mean(values: Sequence[float]) -> float | None:
    """The mean, none of nothing."""
    return float(np.mean(values)) if values else None
