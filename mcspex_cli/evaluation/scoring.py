"""Scoring files against files: checks, one row each, by one process or several."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError, McspexError, NonFiniteError
from mcspex_cli.evaluation import perceptual
from mcspex_cli.evaluation.metrics import is_flipped, is_silent, si_sdr, snr
from mcspex_cli.evaluation.pairing import Trio, pair
from mcspex_cli.extraction.processes import left_to_this_process
from mcspex_cli.extraction.shares import cores

__all__ = ["Score", "ScoreSettings", "Trio", "pair", "score", "score_all", "sensible_workers"]

TRIM = 0.01
"""The difference in length, as a share, up to which all are cut to the shortest."""

EXACT_DB = 200.0
"""From here on an estimate is a copy: float32 samples are good to about 150 dB."""

REFUSED = ("length differs", "rate differs", "not finite", "unreadable")
"""Statuses of files that were not scored; the row's note says why."""

SLOW = frozenset(perceptual.PACKAGES)
"""Metrics that cost more than reading the files."""

CHUNK = 8
"""Files handed to a worker at once."""


@dataclass(frozen=True)
class ScoreSettings:
    """What to compute, and what to let pass."""

    metrics: tuple[str, ...] = ("si_sdr", "si_sdr_i", "snr")
    resample: bool = False
    """Bring what has another rate to the truth's."""
    flipped_ok: bool = False
    """Give sign-flipped estimates, which sound the same, the status "ok" and a note."""
    channel: str | None = None
    """The channel of a mixture with several, as `extract` took it; without one it is refused."""


@dataclass(frozen=True)
class Score:
    """One estimate's numbers; a value is None where it does not exist or is not asked for."""

    name: str
    status: str
    """"ok"; out of the means: "silent truth", "silent estimate", "exact" (infinitely good),
    "sign flipped" (SI-SDR does not see it, SNR does); or one of `REFUSED`."""
    note: str = ""
    si_sdr_db: float | None = None
    si_sdr_i_db: float | None = None
    snr_db: float | None = None
    sdr_db: float | None = None
    sir_db: float | None = None
    sar_db: float | None = None
    pesq: float | None = None
    stoi: float | None = None
    estoi: float | None = None
    input_si_sdr_db: float | None = None
    """The mixture's own."""
    confused: bool | None = None
    """Whether the wrong talker was followed: worse than the mixture, or nearer to an
    interferer than to the truth. None where neither is given."""


@dataclass(frozen=True)
class Sounds:
    """What a `Trio` names, each [sample], equally long."""

    rate_hz: int
    estimate: Samples
    target: Samples
    mixture: Samples | None
    interferers: tuple[Samples, ...]
    note: str


class _RefusedError(Exception):
    """Files that cannot be compared: a status and why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def score(trio: Trio, settings: ScoreSettings | None = None) -> Score:
    """Score one estimate; files that cannot be compared give a row that says why.

    Raises:
        ConfigError: a metric's package cannot be imported.
    """
    settings = settings or ScoreSettings()
    try:
        sounds = _load(trio, settings)
    except _RefusedError as refused:
        return Score(trio.name, refused.status, str(refused))
    except NonFiniteError as error:
        return Score(trio.name, "not finite", str(error))
    except (AudioError, OSError) as error:
        return Score(trio.name, "unreadable", str(error))
    row = _judge(trio.name, sounds)
    if row.status == "sign flipped" and settings.flipped_ok:
        row = replace(row, status="ok", note=f"sign flipped. {sounds.note}".strip())
    if row.status in ("ok", "sign flipped"):
        row = replace(row, **_extras(sounds, settings.metrics))
    dropped = {"si_sdr", "si_sdr_i", "snr"} - set(settings.metrics)
    unwanted: dict[str, Any] = dict.fromkeys(f"{name}_db" for name in dropped)
    return replace(row, **unwanted)


def score_all(
    trios: Sequence[Trio], settings: ScoreSettings | None = None, workers: int = 1
) -> Iterator[Score]:
    """Score each, in order, by as many processes.

    Raises:
        ConfigError: a metric's package cannot be imported.
        McspexError: a worker was killed.
    """
    settings = settings or ScoreSettings()
    if workers == 1:
        yield from map(score, trios, repeat(settings))
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    others = active_children()
    try:
        with _for_workers():
            rows = pool.map(partial(score, settings=settings), trios, chunksize=CHUNK)
        yield from rows
    except (KeyboardInterrupt, GeneratorExit):
        for process in set(active_children()) - set(others):
            process.terminate()  # what it computes is not wanted any more, and it writes nothing
        raise
    except BrokenProcessPool as error:
        raise McspexError("a worker was killed (out of memory?). Use --workers 1.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def sensible_workers(files: int, metrics: Sequence[str]) -> int:
    """One process for few files; as many as cores where starting them pays off."""
    if files < (40 if SLOW & set(metrics) else 200):
        return 1
    return min(cores(), files // CHUNK)


@contextmanager
def _for_workers() -> Iterator[None]:
    """Have processes that are started in this block leave Ctrl-C to this one.

    They also compute in one thread each: several would only wait for each other.
    """
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    try:
        with left_to_this_process(signal.SIGINT):
            yield
    finally:
        for name, value in threads.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _judge(name: str, sounds: Sounds) -> Score:
    """Status, SI-SDR, SNR, and whether the wrong talker was followed."""
    estimate, target = sounds.estimate, sounds.target
    if is_silent(target):
        return Score(name, "silent truth", sounds.note)
    if is_silent(estimate):
        return Score(name, "silent estimate", sounds.note)
    value = si_sdr(estimate, target)
    if value == -math.inf:
        return Score(name, "silent estimate", "nothing of the truth is in it.")
    flipped = value > 0 and is_flipped(estimate, target)
    if value >= EXACT_DB:
        return Score(name, "exact", sounds.note)
    before = si_sdr(sounds.mixture, target) if sounds.mixture is not None else math.nan
    gain = value - before if math.isfinite(before) else None
    nearer = any(si_sdr(estimate, other) > value for other in sounds.interferers)
    known = gain is not None or bool(sounds.interferers)
    return Score(
        name,
        "sign flipped" if flipped else "ok",
        sounds.note,
        si_sdr_db=value,
        si_sdr_i_db=gain,
        snr_db=snr(estimate, target),
        input_si_sdr_db=before if gain is not None else None,
        confused=nearer or (gain is not None and gain < 0) if known else None,
    )


def _extras(sounds: Sounds, metrics: Sequence[str]) -> dict[str, Any]:
    """The values that other packages compute, by column."""
    estimate, target, rate_hz = sounds.estimate, sounds.target, sounds.rate_hz
    values: dict[str, float | None] = {}
    if {"sir", "sar"} & set(metrics) and sounds.interferers:
        found = perceptual.sdr_sir_sar(estimate, target, sounds.interferers)
        values.update(zip(("sdr_db", "sir_db", "sar_db"), found, strict=True))
    elif "sdr" in metrics:
        values["sdr_db"] = perceptual.sdr(estimate, target)
    if "pesq" in metrics:
        values["pesq"] = perceptual.pesq(estimate, target, rate_hz)
    for name in {"stoi", "estoi"} & set(metrics):
        extended = name == "estoi"
        values[name] = perceptual.stoi(estimate, target, rate_hz, extended=extended)
    return {
        column: value for column, value in values.items() if column.removesuffix("_db") in metrics
    }


def _load(trio: Trio, settings: ScoreSettings) -> Sounds:
    """Read what is compared, at the truth's rate, cut to the shortest if they differ by little."""
    rate_hz = audio.probe(trio.truth).sample_rate_hz
    channels = {trio.mixture: settings.channel}
    files = [trio.truth, trio.estimate, *([trio.mixture] if trio.mixture else [])]
    files += trio.interferers
    sounds = [_read(path, trio.truth, settings, channels.get(path)) for path in files]
    for path, sound in zip(files, sounds, strict=True):
        _check_length(path, sound, trio.truth, sounds[0])
    shortest = min(map(len, sounds))
    note = f"cut to {shortest} samples." if any(len(s) != shortest for s in sounds) else ""
    target, estimate, *rest = (sound[:shortest] for sound in sounds)
    mixture = rest.pop(0) if trio.mixture else None
    return Sounds(rate_hz, estimate, target, mixture, tuple(rest), note)


def _read(path: Path, truth: Path, settings: ScoreSettings, channel: str | None) -> Samples:
    """Read a mono file [sample], refusing another rate than the truth's unless resampled."""
    info, rate_hz = audio.probe(path), audio.probe(truth).sample_rate_hz
    if info.channels != 1 and channel is None:
        raise AudioError(f"{path}: has {info.channels} channels, scoring needs one. Split it.")
    if info.sample_rate_hz != rate_hz and not settings.resample:
        raise _RefusedError(
            "rate differs",
            f"{path}: {info.sample_rate_hz} Hz, but {truth} has {rate_hz} Hz. Use --resample.",
        )
    return audio.read(path, rate_hz, channel or "mix")


def _check_length(path: Path, sound: Samples, truth: Path, target: Samples) -> None:
    """Refuse what cannot be of the same mixture."""
    short, long = sorted((len(sound), len(target)))
    if long - short > TRIM * long:
        raise _RefusedError(
            "length differs",
            f"{path}: {len(sound)} samples, but {truth} has {len(target)}. Of one mixture?",
        )
