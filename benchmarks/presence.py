"""How well it is told when a voice speaks in a long recording in which it does at times.

    python -m benchmarks.presence RECIPE.csv --model NAME

Recordings of 90 s are joined from a recipe's mixtures, some with the target and some without. Two
things are looked at: the presence of every 4 s, and the spans of `--activity`. A mixture's speaker
is the folder of its files, as in `mcspex models calibrate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcspex_cli import Engine, EngineSettings, find_checkpoint
from mcspex_cli.audio import Samples
from mcspex_cli.extraction.activity import MUTED_BELOW, find_spans
from mcspex_cli.extraction.engine import open_engine
from mcspex_cli.extraction.levels import LevelMatcher, gain_db
from mcspex_cli.extraction.presence import PresenceMeter, PresenceResult
from mcspex_cli.extraction.vad import FRAME_S, detect_speech, frame_levels_db, smooth_activity
from mcspex_cli.training.calibration import Case, area, given_cases
from mcspex_cli.training.simulate import read_recipes

SECONDS = 90
SHARES = (0.0, 0.25, 0.5, 0.75)
"""Of a recording's mixtures, those with the target."""
LEVEL = 0.05
THERE, NOT_THERE = 0.15, 0.02
"""Shares of the energy of 4 s from which the target speaks in them, and up to which it does not."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recording:
    """Mixtures joined; all [sample]."""

    mixture: Samples
    target: Samples
    reference: Samples


def recordings(cases: Sequence[Case], rate_hz: int, seed: int) -> Iterator[Recording]:
    """For each speaker and share a recording, drawn."""
    rng = np.random.default_rng(seed)
    for number, speaker in enumerate(sorted({case.speaker for case in cases})):
        own = [case for case in cases if case.speaker == speaker]
        others = [case for case in cases if speaker not in {case.speaker, *case.others}]
        for share in (SHARES[number % 4], SHARES[(number + 2) % 4]):
            mixture: list[Samples] = []
            target: list[Samples] = []
            while sum(len(one) for one in mixture) < SECONDS * rate_hz:
                present = rng.random() < share
                drawn_from = own if present else others
                turn = drawn_from[rng.integers(len(drawn_from))].rendering
                gain = np.float32(LEVEL / turn.mixture.std())
                mixture.append(gain * turn.mixture)
                target.append(gain * present * turn.target)
            reference = own[rng.integers(len(own))].rendering.reference
            yield Recording(np.concatenate(mixture), np.concatenate(target), reference)


def listen(engine: Engine, recording: Recording) -> tuple[PresenceResult, float]:
    """What is heard of a recording, and the gain in dB that its estimate is written with."""
    voice = engine.embed([recording.reference])
    match = LevelMatcher(1)
    meter = PresenceMeter(engine.embed_part, engine.sample_rate_hz, voice, engine.calibration)
    for estimate, mixture in engine.stream([recording.mixture[None]], voice):
        meter.add(estimate, mixture)
        match.add(estimate, mixture)
    return meter.result(), gain_db(match.gain())[0]


def segments(
    result: PresenceResult, recording: Recording, rate_hz: int
) -> Iterator[tuple[float, float]]:
    """The target's share of the energy, and its presence, of every 4 s."""
    for one in result.segments:
        part = slice(round(one.start_s * rate_hz), round(one.end_s * rate_hz))
        energies = [float(np.square(s[part]).sum()) for s in (recording.target, recording.mixture)]
        yield energies[0] / max(energies[1], 1e-9), one.presence


def frames(
    result: PresenceResult, gain: float, recording: Recording, rate_hz: int
) -> tuple[Flags, Flags]:
    """Whether the target speaks, and whether it is said to, in every frame."""
    speaks = smooth_activity(detect_speech(frame_levels_db(recording.target, rate_hz)), 0.2, 0.3)
    said = np.zeros_like(speaks)
    for start_s, end_s in find_spans(result, gain):
        said[round(start_s / FRAME_S) : round(end_s / FRAME_S)] = True
    return speaks, said


def tell(shares: npt.NDArray[np.float64], presences: npt.NDArray[np.float64], least: float) -> None:
    """Print what was found of segments."""
    there, not_there = presences[shares > THERE], presences[shares < NOT_THERE]
    print(f"{len(there)} segments with the target, {len(not_there)} without")
    print(f"AUC {area(there, not_there):.3f}")
    for name, limit in (("threshold", least), ("muted below", MUTED_BELOW)):
        missed, false = (there < limit).mean(), (not_there >= limit).mean()
        print(f"{name} {limit:.2f}: {100 * missed:.1f} % with it below, {100 * false:.1f} % not")


def main() -> None:
    """Measure and print, as the command line asks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    engine = open_engine(find_checkpoint(asked.model), EngineSettings())
    if engine.calibration is None:
        parser.error("this model is not calibrated: mcspex models calibrate")
    rate_hz = engine.sample_rate_hz
    cases = list(given_cases(read_recipes(asked.recipe), rate_hz))
    found, speaking, files = [], [], []
    for recording in recordings(cases, rate_hz, asked.seed):
        result, gain = listen(engine, recording)
        found += list(segments(result, recording, rate_hz))
        speaking.append(frames(result, gain, recording, rate_hz))
        files.append((bool(recording.target.any()), bool(result.present)))
    shares, presences = np.array(found).T
    tell(shares, presences, engine.calibration.threshold)
    speaks, said = (np.concatenate(flags) for flags in zip(*speaking, strict=True))
    right = (speaks & said).sum()
    print(f"spans: {100 * right / speaks.sum():.1f} % of the target's speech found; "
          f"{100 * (said & ~speaks).sum() / (~speaks).sum():.1f} % of the rest taken for it; "
          f"F1 {2 * right / (speaks.sum() + said.sum()):.2f}")  # fmt: skip
    for present in (True, False):
        taken = [said for there, said in files if there == present]
        print(f"{len(taken)} recordings {'with' if present else 'without'} the target: "
              f"{sum(taken)} taken for one with it")  # fmt: skip


if __name__ == "__main__":
    main()
