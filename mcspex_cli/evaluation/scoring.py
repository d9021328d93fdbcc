"""Scores of files: which belong together, whether they can be compared, and a row for each."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError, McspexError, NonFiniteError, PairingError
from mcspex_cli.evaluation.metrics import (
    BUILT_IN,
    METRICS,
    Sounds,
    is_flipped,
    is_silent,
)

TRIM = 0.01
"""The difference in length, as a share, up to which all are cut to the shortest."""

LOSSLESS = frozenset(".wav .flac .aif .aiff .aifc .caf .w64 .rf64 .au .snd".split())
"""Suffixes of files that have no more samples than were written."""

PADDING = 2048
"""Samples by which other files may be longer: AAC, for one, fills its last frame."""

EXACT_DB = 200.0
"""From here on an estimate is a copy: float32 samples are good to about 150 dB."""

REFUSED = ("unreadable", "not finite", "rate differs", "length differs", "channels differ")
"""Statuses of files that were not scored; the row's note says why."""

FLIPPED = "sign flipped"

CUT = "cut to"
"""How the note begins of files that were cut to one length."""

CHUNK = 8


@dataclass(frozen=True)
class ScoreSettings:
    """What to compute, and what to accept."""

    metrics: tuple[str, ...] = BUILT_IN
    resample: bool = False
    """Convert files of another sample rate to the truth's."""
    flipped_ok: bool = False
    """Give sign-flipped estimates, which sound the same, the status "ok" and a note."""
    channel: str | None = None
    """The mixture's channel that was extracted; None: it has the estimate's channels, or one."""


@dataclass(frozen=True)
class Row:
    """One estimate's scores.

    The status is "ok", or says why the row is in no mean: "silent truth", "silent estimate",
    "exact" (a copy of the truth), "sign flipped", or one of `REFUSED`.
    """

    name: str
    status: str
    note: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    """By column, those that exist."""
    input_si_sdr_db: float | None = None
    confused: bool | None = None
    """Whether the wrong talker was extracted: the estimate is worse than the mixture, or nearer
    to an interferer than to the truth. None where neither is known."""

    def to_dict(self) -> dict[str, Any]:
        """The row as reports have it: every metric's column, None where there is no value."""
        return {
            "name": self.name,
            "status": self.status,
            "note": self.note,
            **{metric.column: self.values.get(metric.column) for metric in METRICS.values()},
            "input_si_sdr_db": self.input_si_sdr_db,
            "confused": self.confused,
        }


@dataclass(frozen=True)
class Pairing:
    """An estimate and the files that it is compared with, under one name."""

    name: str
    estimate: Path
    target: Path
    mixture: Path | None = None
    interferers: tuple[Path, ...] = ()
    """The other talkers of the mixture, each alone."""


def pair(
    estimates: Path, truth: Path, mixtures: Path | None = None, interferers: Sequence[Path] = ()
) -> list[Pairing]:
    """Pair a file with a file, or each estimate of a folder with the files of its `case_name`.

    Raises:
        PairingError: a folder is compared with a file, two files of a folder have one name, or
            a file is missing in one of the other folders.
    """
    others = [truth, *([mixtures] if mixtures else []), *interferers]
    if any(estimates.is_dir() != other.is_dir() for other in others):
        raise PairingError(
            "estimates, truth, mixtures and interferers must be all files or all folders."
        )
    if not estimates.is_dir():
        return [Pairing(estimates.name, estimates, truth, mixtures, tuple(interferers))]
    named_estimates = files_by_name(estimates)
    if not named_estimates:
        raise PairingError(f"{estimates}: no sound files in this folder.")
    folders = [(folder, files_by_name(folder)) for folder in others]
    pairings = []
    for name, path in named_estimates.items():
        for folder, named in folders:
            if name not in named:
                raise PairingError(
                    f"{path}: no file {name} (.wav, .flac, ...) in {folder}. Add it, or remove "
                    "the estimate."
                )
        target, *rest = (named[name] for _, named in folders)
        mixture = rest.pop(0) if mixtures else None
        pairings.append(Pairing(name, path, target, mixture, tuple(rest)))
    return pairings


def missing_estimates(estimates: Path, truth: Path) -> list[str]:
    """Names of the truths without an estimate; none where both are files.

    Raises:
        PairingError: two files of a folder have one name.
    """
    if not estimates.is_dir():
        return []
    return sorted(files_by_name(truth).keys() - files_by_name(estimates).keys())


def case_name(path: str | Path) -> str:
    """The name that pairs a file with others: without the suffix of sound and `.target`."""
    path = Path(path)
    if path.suffix.lower() in files.SUFFIXES:
        path = path.with_suffix("")
    return str(path).removesuffix(".target")


def files_by_name(folder: Path) -> dict[str, Path]:
    """All recordings under a folder by `case_name`.

    Raises:
        PairingError: two have one name.
    """
    named: dict[str, Path] = {}
    for path in files.find(folder):
        name = case_name(path.relative_to(folder))
        if name in named:
            raise PairingError(f"{named[name]} and {path}: both have the name {name}. Move one.")
        named[name] = path
    return named


def score_file(pairing: Pairing, settings: ScoreSettings | None = None) -> Row:
    """Score one estimate; files that cannot be compared give a row that says why.

    An estimate with several channels is scored channel by channel and has the mean of their
    values. The other files need as many channels, or one, which then counts for every channel.

    Raises:
        ConfigError: a metric's package cannot be imported.
    """
    settings, name = settings or ScoreSettings(), pairing.name
    try:
        channels, note = _read(pairing, settings)
    except _RefusedError as refused:
        return Row(name, refused.status, str(refused))
    except NonFiniteError as error:
        return Row(name, "not finite", str(error))
    except (AudioError, OSError) as error:
        return Row(name, "unreadable", str(error))
    rows = [_score_channel(name, sounds, note, settings) for sounds in channels]
    return rows[0] if len(rows) == 1 else _average(rows)


def score_files(
    pairings: Sequence[Pairing], settings: ScoreSettings | None = None, workers: int | None = None
) -> Iterator[Row]:
    """Score each, in order, by as many processes; without a number, by as many as pay off.

    Raises:
        ConfigError: a metric's package cannot be imported.
        McspexError: a process was killed.
    """
    settings = settings or ScoreSettings()
    workers = min(workers or sensible_workers(len(pairings), settings.metrics), len(pairings))
    if workers <= 1:
        for pairing in pairings:
            yield score_file(pairing, settings)
        return
    # Processes that were forked from one that has used torch may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    others = active_children()
    try:
        with _prepared_for_workers():
            rows = pool.map(partial(score_file, settings=settings), pairings, chunksize=CHUNK)
        yield from rows
    except (KeyboardInterrupt, GeneratorExit):
        for process in set(active_children()) - set(others):
            process.terminate()  # nobody needs what it computes any more, and it writes nothing
        raise
    except BrokenProcessPool as error:
        raise McspexError(
            "a scoring process was killed, perhaps because memory ran out. Use --workers 1."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def sensible_workers(files: int, metrics: Sequence[str]) -> int:
    """One process for few files; as many as cores where starting them pays off."""
    if files < (200 if set(metrics) <= set(BUILT_IN) else 40):
        return 1
    linux = hasattr(os, "sched_getaffinity")
    return min(len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1, files // CHUNK)


@contextmanager
def _prepared_for_workers() -> Iterator[None]:
    """Have processes that start in this block leave Ctrl-C to this one, and use one thread each."""
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name, value in threads.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _RefusedError(Exception):
    """Files that cannot be compared: a status and why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _read(pairing: Pairing, settings: ScoreSettings) -> tuple[list[Sounds], str]:
    """The sounds of each channel of the estimate, at the truth's rate and cut alike, and a note."""
    truth = audio.probe(pairing.target)
    mixtures = [pairing.mixture] if pairing.mixture else []
    compared = [pairing.estimate, pairing.target, *mixtures, *pairing.interferers]
    sounds: list[Samples] = []
    notes: list[str] = []
    for path in compared:
        rate_hz = audio.probe(path).sample_rate_hz
        if rate_hz != truth.sample_rate_hz and not settings.resample:
            raise _RefusedError(
                "rate differs",
                f"{path}: {rate_hz} Hz, but {pairing.target} has {truth.sample_rate_hz} Hz. "
                "Use --resample.",
            )
        channel = settings.channel if path == pairing.mixture else None
        sound = audio.read(path, truth.sample_rate_hz, channel or "all", warnings=notes)
        sounds.append(np.atleast_2d(sound))
        if len(sounds[-1]) not in (1, len(sounds[0])):
            raise _RefusedError(
                "channels differ",
                f"{path}: {len(sounds[-1])} channels, but {compared[0]} has {len(sounds[0])}. "
                "Make both mono, or give both the same channels.",
            )
    lengths = [sound.shape[1] for sound in sounds]
    for path, length in zip(compared, lengths, strict=True):
        padding = 0 if path.suffix.lower() in LOSSLESS else PADDING
        if max(lengths[1] - length, length - padding - lengths[1]) > TRIM * max(length, lengths[1]):
            raise _RefusedError(
                "length differs",
                f"{path}: {length} samples, but {pairing.target} has {lengths[1]}. "
                "Are they of the same mixture?",
            )
    shortest = min(lengths)
    channels = []
    for number in range(len(sounds[0])):
        estimate, target, *rest = (s[number if len(s) > 1 else 0, :shortest] for s in sounds)
        mixture = rest.pop(0) if mixtures else np.zeros(0, np.float32)
        channels.append(Sounds(truth.sample_rate_hz, estimate, target, mixture, tuple(rest)))
    if max(lengths) != shortest:
        notes.insert(0, f"{CUT} {shortest} samples.")
    return channels, " ".join(notes)


def _score_channel(name: str, sounds: Sounds, note: str, settings: ScoreSettings) -> Row:
    value = sounds.si_sdr_db
    if is_silent(sounds.target):
        return Row(name, "silent truth", note)
    if is_silent(sounds.estimate):
        return Row(name, "silent estimate", note)
    if value == -math.inf:
        return Row(name, "silent estimate", "it has nothing of the truth in it.")
    if value >= EXACT_DB:
        return Row(name, "exact", note)
    status, gain_db = "ok", value - sounds.input_si_sdr_db
    if value > 0 and is_flipped(sounds.estimate, sounds.target):
        status = "ok" if settings.flipped_ok else FLIPPED
        note = f"{FLIPPED}. {note}".strip() if settings.flipped_ok else note
    nearer = any(
        Sounds(sounds.rate_hz, sounds.estimate, other).si_sdr_db > value
        for other in sounds.interferers
    )
    known = math.isfinite(gain_db) or bool(sounds.interferers)
    chosen = {name: METRICS[name].function(sounds) for name in settings.metrics}
    return Row(
        name,
        status,
        note,
        {METRICS[key].column: float(x) for key, x in chosen.items() if math.isfinite(x)},
        sounds.input_si_sdr_db if math.isfinite(gain_db) else None,
        nearer or gain_db < 0 if known else None,
    )


def _average(rows: Sequence[Row]) -> Row:
    """One row for the channels of a file: mean values, and the first status that is not "ok"."""
    number, row = next(((n, r) for n, r in enumerate(rows) if r.status != "ok"), (0, rows[0]))
    where = f"mean of {len(rows)} channels." if row.status == "ok" else f"channel {number}."
    columns = [column for column in row.values if all(column in r.values for r in rows)]
    inputs = [r.input_si_sdr_db for r in rows if r.input_si_sdr_db is not None]
    verdicts = [r.confused for r in rows if r.confused is not None]
    return Row(
        row.name,
        row.status,
        f"{where} {row.note}".strip(),
        {column: float(np.mean([r.values[column] for r in rows])) for column in columns},
        float(np.mean(inputs)) if len(inputs) == len(rows) else None,
        any(verdicts) if len(verdicts) == len(rows) else None,
    )
