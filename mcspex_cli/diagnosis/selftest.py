"""The main job done once: two made-up voices, one of them wanted, from file to file."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mcspex_cli.diagnosis.findings import OK, Finding, Trouble, told
from mcspex_cli.errors import CheckpointError

SECONDS = 4.0
RATE_HZ = 16_000
"""Of the files: twice most models' rate, so that resampling is part of it."""

LEAST_DB = 5.0
"""How much nearer the estimate has to be; the bundled model comes 10 dB nearer."""


def run() -> Finding:
    """Extract as `mcspex extract` does, with the default model, and measure the result.

    Raises:
        McspexError: a step fails, or the estimate is hardly nearer to its target.
    """
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="mcspex-doctor-") as folder:
            before_db, after_db, runtime = _extract(Path(folder))
    except CheckpointError as error:
        raise Trouble(told(error)[0], "Install mcspex again.") from error
    said = f"SI-SDR {before_db:.1f} dB before, {after_db:.1f} dB after ({runtime})"
    if not after_db - before_db >= LEAST_DB:
        remedy = "Try --precision float32 and --device cpu with extract; install mcspex again."
        raise Trouble(f"the wanted voice was not extracted: {said}", remedy)
    elapsed_s = time.monotonic() - began
    return Finding("self-test", OK, f"{said}, {SECONDS:g} s extracted in {elapsed_s:.1f} s")


def _extract(folder: Path) -> tuple[float, float, str]:
    """The mixture's and the estimate's SI-SDR in dB, and what ran the network."""
    from mcspex_cli import audio
    from mcspex_cli.diagnosis.voices import speak
    from mcspex_cli.evaluation.metrics import si_sdr
    from mcspex_cli.extraction.extractor import Extractor

    mixture, reference, estimate = (folder / f"{name}.wav" for name in ("mix", "ref", "target"))
    target, other = (speak(voice, 1, SECONDS, RATE_HZ) for voice in ("low", "high"))
    audio.write(mixture, target + other, RATE_HZ)
    audio.write(reference, speak("low", 10, SECONDS, RATE_HZ), RATE_HZ)
    extractor = Extractor.load()
    result = extractor.extract_file(mixture, extractor.enroll(reference), estimate)
    before, after = (si_sdr(audio.read(path, RATE_HZ), target) for path in (mixture, estimate))
    return before, after, f"{result.runtime}, {result.precision} on {result.device}"
