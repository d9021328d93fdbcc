"""How well a model tells that a voice is present, by the length of the recording.

    python -m benchmarks.presence MODEL SPEAKERS... [-n 100] [--seed 1]

Recordings are drawn from folders of SPEAKERS as `mcspex models calibrate` draws them, half of them
mixtures and half with turns, by another seed. Each is extracted from for its target and for a voice
that is not in it. Use speakers to whom the model was neither trained nor calibrated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from mcspex_cli import EngineSettings, find_checkpoint
from mcspex_cli.audio import Samples
from mcspex_cli.extraction.engine import Engine, Polarity, open_engine
from mcspex_cli.extraction.levels import LevelMatcher, gains_db
from mcspex_cli.extraction.presence import PresenceMeter, PresenceResult, find_spans
from mcspex_cli.extraction.speech import FRAME_S, detect_speech, frame_levels_db, smooth_activity
from mcspex_cli.training.calibration import SILENT, SPEAKING, Case, area, read_cases

LENGTHS_S = (4, 8, 16, 31)


def measure(engine: Engine, mixture: Samples, voice: Samples) -> tuple[PresenceResult, float]:
    """The presence of a voice [embedding] in a mixture, and the gain of the estimate in dB."""
    meter = PresenceMeter(engine, Polarity(voice))
    matcher, estimate = LevelMatcher(1), engine.extract(mixture, voice)[None]
    meter.add(estimate[0], mixture)
    matcher.add(estimate, mixture[None])
    return meter.result(), gains_db(matcher.gains())[0]


def segments(result: PresenceResult, case: Case, rate_hz: int) -> Iterator[tuple[float, float]]:
    """The target's share of the energy, and its presence, in every segment."""
    for one in result.segments:
        part = slice(round(one.start_s * rate_hz), round(one.end_s * rate_hz))
        target, mixture = (
            float(np.square(signal[part]).sum())
            for signal in (case.rendering.target, case.rendering.mixture)
        )
        yield target / max(mixture, 1e-9), one.presence


def frames(result: PresenceResult, gain: float, case: Case, rate_hz: int) -> tuple[int, int, int]:
    """Frames in which the target speaks, in which activity says so, and in which both agree."""
    levels_db = frame_levels_db(case.rendering.target, rate_hz)
    speaks = smooth_activity(detect_speech(levels_db), 0.2, 0.3)
    active = np.zeros_like(speaks)
    for start_s, end_s in find_spans([result], [gain]):
        active[round(start_s / FRAME_S) : round(end_s / FRAME_S)] = True
    return int(speaks.sum()), int(active.sum()), int((speaks & active).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("speakers", type=Path, nargs="+")
    parser.add_argument("-n", type=int, default=100, help="mixtures, and recordings with turns")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    engine = open_engine(find_checkpoint(options.model), EngineSettings())
    calibration, rate_hz = engine.calibration, engine.sample_rate_hz
    if calibration is None:
        parser.error("this model is not calibrated. Run: mcspex models calibrate")
    cases = list(read_cases(options.speakers, options.n, rate_hz, options.seed))
    rng = np.random.default_rng(options.seed)
    voices = [engine.embed([case.rendering.reference]) for case in cases]
    rows, shares, counts = [], [], []
    for case, voice in zip(cases, voices, strict=True):
        inside = {case.speaker, *case.others}
        absent = rng.choice([k for k, c in enumerate(cases) if c.speaker not in inside])
        result, gain = measure(engine, case.rendering.mixture, voice)
        other, _ = measure(engine, case.rendering.mixture, voices[absent])
        seconds = len(case.rendering.mixture) / rate_hz
        rows.append((case.turns, seconds, result.presence, other.presence))
        shares += list(segments(result, case, rate_hz))
        counts.append(frames(result, gain, case, rate_hz))
    turns, seconds, present, absent = np.array(rows, float).T
    kinds = [("mixtures", turns == 0), ("turns", turns == 1)]
    kinds += [
        (f"turns, {low} to {high} s", (turns == 1) & (seconds >= low) & (seconds < high))
        for low, high in pairwise(LENGTHS_S)
    ]
    print("| | recordings | AUC | present called absent | absent called present |")
    print("|---|---|---|---|---|")
    for name, own in kinds:
        missed = 100 * (present[own] < calibration.threshold).mean()
        false = 100 * (absent[own] >= calibration.threshold).mean()
        auc = area(present[own], absent[own])
        print(f"| {name} | {own.sum()} | {auc:.3f} | {missed:.1f} % | {false:.1f} % |")
    share, presence = np.array(shares).T
    there, gone = presence[share > SPEAKING], presence[share < SILENT]
    lost, right = (100 * (part < calibration.mute_threshold).mean() for part in (there, gone))
    print(f"segments: AUC {area(there, gone):.3f}")
    print(f"muted: {lost:.1f} % of the segments with the target, {right:.1f} % of those without")
    speaks, active, both = np.sum(counts, axis=0)
    print(f"activity: F1 {2 * both / (speaks + active):.2f}")


if __name__ == "__main__":
    main()
