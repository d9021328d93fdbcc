"""How long windows and their overlap should be: SI-SDRi on long mixtures, and agreement.

    python -m benchmarks.windows MIXTURES REFERENCES TRUTH

Each is a folder of WAVs of the same names. Every setting is compared with the whole file in
one window: agreement is the SI-SDR of its estimate against that one's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mcspex_cli import Engine, EngineSettings, load_checkpoint, read_audio, si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.model.systems import System

WHOLE = (1e6, 1.0, 0.25)
SETTINGS = [WHOLE]
"""Seconds of window, context and fade."""
SETTINGS += [(window, 1.0, 0.25) for window in (4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)]
SETTINGS += [(16.0, context, 0.25) for context in (0.0, 0.25, 0.5, 2.0)]
SETTINGS += [(16.0, 0.5, fade) for fade in (0.0, 0.05, 1.0)]


def cases(folders: list[Path], rate_hz: int) -> Iterator[tuple[Samples, ...]]:
    """Mixture, reference and truth [sample] of every name."""
    for name in sorted(path.name for path in folders[0].glob("*.wav")):
        yield tuple(read_audio(folder / name, rate_hz) for folder in folders)


def estimates(system: System, setting: tuple[float, ...], folders: list[Path]) -> list[Samples]:
    """What a setting makes of every mixture."""
    window_s, context_s, fade_s, *_ = setting
    settings = EngineSettings("cpu", "auto", window_s, context_s, fade_s, passes=1)
    engine = Engine(system, settings)
    return [
        engine.extract(mixture, engine.embed([reference]))
        for mixture, reference, _ in cases(folders, engine.sample_rate_hz)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs=3, type=Path, metavar="FOLDER")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    system, folders = load_checkpoint(arguments.model), arguments.folders
    whole = estimates(system, WHOLE, folders)
    inputs = list(cases(folders, system.config.sample_rate_hz))
    print("| window s | context s | fade s | work | SI-SDRi dB | agreement dB |")
    print("|---|---|---|---|---|---|")
    for setting in SETTINGS:
        window, context, fade = setting
        extracted = whole if setting == WHOLE else estimates(system, setting, folders)
        gains = [
            si_sdr(estimate, truth) - si_sdr(mixture, truth)
            for estimate, (mixture, _, truth) in zip(extracted, inputs, strict=True)
        ]
        agreements = [
            si_sdr(a, b) for a, b in zip(extracted, whole, strict=True) if setting != WHOLE
        ]
        size = "whole" if setting == WHOLE else f"{window:g}"
        work = window / (window - 2 * context - fade)
        agreement = f"{np.median(agreements):.1f}" if agreements else ""
        print(
            f"| {size} | {context:g} | {fade:g} | {work:.2f} | {np.mean(gains):.2f} | {agreement} |"
        )


if __name__ == "__main__":
    main()
