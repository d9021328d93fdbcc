"""Where extraction breaks: SI-SDR by talkers, noise, rooms, overlap, reference, level, codec.

    python -m benchmarks.limits SPEAKERS -o limits.json
    python -m benchmarks.limits SPEAKERS --only noise room -n 200 --model runs/best
    python -m benchmarks.limits SPEAKERS --genders speakers.csv

SPEAKERS is a folder of speakers whom the model was not trained on, as `mcspex simulate` takes
it. Every table begins with the same mixtures of two talkers; in its other rows the same voices
say the same, and differences are paired by mixture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.conditions import (
    ABSENCE,
    BASELINE,
    EVERYTHING,
    TABLES,
    Condition,
    draw_plans,
    fits,
    table_rows,
    without_target,
)
from mcspex_cli import Engine, EngineSettings, find_checkpoint, si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.extraction.engine import Polarity, open_engine
from mcspex_cli.extraction.levels import LevelMatcher
from mcspex_cli.extraction.presence import PresenceMeter
from mcspex_cli.training.calibration import area, equal_error
from mcspex_cli.training.data import Corpus, read_sexes
from mcspex_cli.training.mixtures import MixtureSampler, Plan

FLOOR_DB = -30.0
"""What an SI-SDR below it counts as, so that one silent estimate does not make a mean -inf."""

AT_ONCE = 25
"""Mixtures composed together."""


Row = dict[str, Any]
"""One mixture's numbers, or one line's."""


@dataclass(frozen=True)
class Case:
    """A mixture in a condition, and what it is made of; all [sample]."""

    plan: Plan
    mixture: Samples
    target: Samples
    reference: Samples


@dataclass
class Bench:
    """A model and the mixtures that it is tried on."""

    engine: Engine
    sampler: MixtureSampler
    plans: list[Plan]

    def __post_init__(self) -> None:
        self._measured: dict[str, list[Row]] = {}

    def measure(self, condition: Condition) -> list[Row]:
        """What the model makes of every mixture in a condition; of the baseline only once."""
        if condition.name not in self._measured:
            self._measured[condition.name] = [self._judge(case) for case in self._cases(condition)]
        return self._measured[condition.name]

    def presence(self, condition: Condition, *, absent: bool) -> list[float]:
        """How likely the target is to be there, for each mixture of a condition."""
        changed = without_target(condition.change) if absent else condition.change
        tried = Condition(condition.name, changed, condition.reference_s)
        return [self._presence(case) for case in self._cases(tried)]

    def _presence(self, case: Case) -> float:
        """The presence that `mcspex extract` reports."""
        voice = self.engine.embed([case.reference])
        meter = PresenceMeter(self.engine, Polarity(voice))
        meter.add(self.engine.extract(case.mixture, voice), case.mixture)
        return meter.result().presence or 0.0

    def _cases(self, condition: Condition) -> Iterator[Case]:
        """The mixtures in a condition, in the order of the plans."""
        rate = self.engine.sample_rate_hz
        for start in range(0, len(self.plans), AT_ONCE):
            length = round(condition.reference_s * rate)
            plans = [
                replace(condition.change(plan), reference_length=length)
                for plan in self.plans[start : start + AT_ONCE]
            ]
            batch = self.sampler.compose(plans)
            signals = (part.numpy() for part in (batch.mixture, batch.target, batch.reference))
            for plan, mixture, target, reference in zip(plans, *signals, strict=True):
                yield Case(
                    plan,
                    condition.treat(mixture, rate),
                    condition.treat(target, rate) if condition.is_filter else target,
                    condition.treat_reference(reference, rate),
                )

    def _extract(self, case: Case) -> Samples:
        """The estimate, as loud as `mcspex extract` writes it."""
        estimate = self.engine.extract(case.mixture, self.engine.embed([case.reference]))
        if self.engine.runtime.true_level:
            return estimate
        match = LevelMatcher(1)
        match.add(estimate[None], case.mixture[None])
        return estimate * np.float32(match.gains()[0])

    def _judge(self, case: Case) -> Row:
        """How good the estimate is, and how loud where only one speaks, None if nowhere."""
        estimate = self._extract(case)
        before = si_sdr(case.mixture, case.target)
        after = max(FLOOR_DB, si_sdr(estimate, case.target))
        others_off, target_off = (
            _outside(span, len(estimate))
            for span in (case.plan.interferers_speak, case.plan.target_speaks)
        )
        return {
            "si_sdr_db": after,
            "si_sdr_i_db": after - before,
            "target_alone_db": gain_db(estimate, case.mixture, others_off),
            "other_alone_db": gain_db(estimate, case.mixture, target_off),
        }


def gain_db(estimate: Samples, mixture: Samples, where: npt.NDArray[np.bool_]) -> float | None:
    """How much louder the estimate is than the mixture in some samples; None if there are none."""
    if not where.any():
        return None
    energies = (np.square(s[where], dtype=np.float64).sum() for s in (estimate, mixture))
    after, before = (max(float(energy), 1e-12) for energy in energies)
    return 10 * float(np.log10(after / before))


def _outside(span: tuple[float, float], length: int) -> npt.NDArray[np.bool_]:
    """Which samples are before or after a talker's span."""
    time = np.linspace(0, 1, length)
    return (time < span[0]) | (time > span[1])


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
        values = [row[key] for row in rows if row[key] is not None]
        line |= {key: float(np.median(values))} if values else {}
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


def tabulate(bench: Bench, conditions: Sequence[Condition]) -> list[Row]:
    """A line for each condition, compared with the first."""
    first, *others = conditions
    rows = bench.measure(first)
    compared = [summarise(c.name, bench.measure(c), rows) for c in others]
    return [summarise(first.name, rows), *compared]


def by_gender(bench: Bench, condition: Condition, genders: dict[str, str]) -> list[Row]:
    """A condition's two lines for talkers of one gender and of two, where there are such."""
    groups: dict[str, list[Row]] = {"of the same gender": [], "of different genders": []}
    for plan, row in zip(bench.plans, bench.measure(condition), strict=True):
        talkers = plan.target, plan.interferers[0]
        both = {genders.get(talker.speaker.name, "") for talker in talkers}
        if "" not in both:
            groups[list(groups)[len(both) - 1]].append(row)
    return [summarise(name, rows) for name, rows in groups.items() if rows]


def absence(bench: Bench) -> list[Row]:
    """How well targets who are not there are told from those who are; nothing uncalibrated."""
    lines: list[Row] = []
    if bench.engine.calibration is None:
        return lines
    for condition in (c for c in ABSENCE if fits(c, bench.plans)):
        present, absent = (bench.presence(condition, absent=a) for a in (False, True))
        error, _ = equal_error(np.array(present), np.array(absent))
        least = bench.engine.calibration.threshold
        lines.append(
            {
                "condition": condition.name,
                "auc": area(np.array(present), np.array(absent)),
                "equal_error_percent": 100 * error,
                "missed_percent": 100 * float(np.mean(np.less(present, least))),
                "false_percent": 100 * float(np.mean(np.greater_equal(absent, least))),
            }
        )
    return lines


def tables(bench: Bench, names: list[str], genders: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Each of some tables as it is done."""
    for name in names:
        if name == "absence":
            yield name, absence(bench)
            continue
        lines = tabulate(bench, table_rows(name, bench.plans))
        if name == "talkers":
            lines[1:1] = by_gender(bench, BASELINE, genders)
        yield name, lines


def main() -> None:
    """Measure and print every table, as the command line asks."""
    every = [*TABLES, "absence"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speakers", nargs="+", type=Path, metavar="SPEAKERS")
    parser.add_argument("--model")
    parser.add_argument("-n", "--count", type=int, default=100, help="mixtures in each condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="TABLE")
    parser.add_argument("--genders", type=Path, help="CSV with columns speaker and sex")
    parser.add_argument("-o", "--output", type=Path, help="JSON, every mixture's SI-SDRi in it")
    options = parser.parse_args()
    began = time.monotonic()
    model = find_checkpoint(options.model)
    engine = open_engine(model, EngineSettings(passes=1))
    corpus = Corpus.read(options.speakers, engine.sample_rate_hz)
    plans = draw_plans(corpus, options.count, options.seed)
    bench = Bench(engine, MixtureSampler(corpus, EVERYTHING), plans)
    genders: dict[str, str] = {}
    if options.genders:
        names = [speaker.name for speaker in corpus.speakers]
        genders = dict(zip(names, read_sexes([options.genders], names), strict=True))
    results = {}
    for name, lines in tables(bench, options.only, genders):
        results[name] = lines
        print(f"{name}\n\n{markdown(lines)}\n", flush=True)
    print(f"{options.count} mixtures a row, {time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.output:
        about: Row = {
            "model": model.label,
            "sha256": model.sha256,
            "precision": engine.runtime.precision,
        }
        about |= {"mixtures": options.count, "seed": options.seed}
        options.output.write_text(json.dumps(about | {"tables": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
