"""What a latency costs: SI-SDRi of live extraction against that of the whole file, and CPU time.

    python -m benchmarks.live RECIPES --every 12

RECIPES is a CSV as `mcspex simulate --recipe` reads it. One thread is used, so that CPU seconds are
those of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcspex_cli import Extractor, si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.extraction.runtime import keep_memory
from mcspex_cli.extraction.streaming import LiveExtractor, Timing
from mcspex_cli.training.simulate import Rendering, read_recipes, render

LATENCIES_S = (0.25, 0.5, 1.0, 2.0)
SETTINGS = [(latency_s, None, None) for latency_s in LATENCIES_S]
"""Seconds of latency, window and hop; None for what `Timing` chooses."""
MORE = [(1.0, window_s, 0.56) for window_s in (2.0, 3.0, 6.0)]
MORE += [(1.0, 4.0, hop_s) for hop_s in (0.2, 0.4)]
BEGINNING_S, LONG_S = 2.0, 3.5
"""What is left out of mixtures of at least so much for the column "after 2 s"."""


def timing(setting: tuple[float, float | None, float | None], rate_hz: int) -> Timing:
    """The lengths of a setting; as much is left for computing as `Timing` leaves."""
    latency_s, window_s, hop_s = setting
    chosen = Timing.for_latency(latency_s, rate_hz)
    if window_s is None or hop_s is None:
        return chosen
    hop = round(hop_s * rate_hz)
    future = chosen.latency - hop - chosen.reserve - chosen.fade
    return Timing(round(window_s * rate_hz), hop, chosen.fade, future, chosen.reserve)


def gains_db(estimate: Samples, mixture: Rendering, rate_hz: int) -> tuple[float, float]:
    """SI-SDRi, and SI-SDRi without the beginning; the latter is NaN for a short mixture."""
    whole, late = slice(None), slice(round(BEGINNING_S * rate_hz), None)
    gains = [
        si_sdr(estimate[part], mixture.target[part])
        - si_sdr(mixture.mixture[part], mixture.target[part])
        for part in ((whole, late) if len(estimate) >= LONG_S * rate_hz else (whole,))
    ]
    return gains[0], gains[1] if gains[1:] else float("nan")


def measure(
    extractor: Extractor,
    mixtures: Sequence[Rendering],
    setting: tuple[float, float | None, float | None],
) -> tuple[list[tuple[float, float]], float]:
    """As `gains_db` of every mixture, and CPU seconds for a second of sound."""
    engine, gains, seconds = extractor.engine, [], 0.0
    rate_hz = engine.sample_rate_hz
    began = time.process_time()
    for one in mixtures:
        embedding = engine.embed([one.reference])
        live = LiveExtractor(engine, embedding, timing(setting, rate_hz), rate_hz, mutes=False)
        estimate = np.concatenate([live.push(one.mixture), live.flush()])
        gains.append(gains_db(estimate, one, rate_hz))
        seconds += len(one.mixture) / rate_hz
    return gains, (time.process_time() - began) / seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use one mixture of so many")
    parser.add_argument("--more", action="store_true", help="vary window and hop, too")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    keep_memory()
    extractor = Extractor.load(arguments.model, device="cpu")
    engine, rate_hz = extractor.engine, extractor.sample_rate_hz
    recipes = read_recipes(arguments.recipes)[:: arguments.every]
    mixtures = [render(recipe, rate_hz) for recipe in recipes]
    whole, late = np.nanmean(
        [
            gains_db(engine.extract(m.mixture, engine.embed([m.reference])), m, rate_hz)
            for m in mixtures
        ],
        axis=0,
    )
    print(f"{len(mixtures)} mixtures; the whole file: {whole:.2f} dB, after 2 s {late:.2f} dB")
    print("| latency s | window s | hop s | future s | SI-SDRi dB | against the file dB | ", end="")
    print("after 2 s dB | CPU |\n|---|---|---|---|---|---|---|---|")
    for setting in MORE if arguments.more else SETTINGS:
        gains, cpu = measure(extractor, mixtures, setting)
        lengths = timing(setting, 1000)
        times = " | ".join(
            f"{length / 1000:g}"
            for length in (lengths.latency, lengths.window, lengths.hop, lengths.future)
        )
        gain, later = np.nanmean(gains, axis=0)
        numbers = f"{gain:.2f} | {gain - whole:+.2f} | {later:.2f} | {cpu:.2f}"
        print(f"| {times} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
