"""Scores of files: whether they can be compared, and a score for each."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError, NonFiniteError
from mcspex_cli.evaluation.metrics import (
    BUILT_IN,
    BY_COLUMN,
    EXACT_DB,
    METRICS,
    MIXTURE_METRICS,
    NOTHING,
    Metric,
    Sounds,
    Transcribe,
    Verifier,
    find_shift,
    is_flipped,
    is_silent,
    si_sdr,
)
from mcspex_cli.evaluation.pairing import Pairing
from mcspex_cli.extraction.runtime import cores, end_with_parent, leave_signals

_logger = logging.getLogger("mcspex")

_TRIM = 0.01
"""The difference in length, as a share, up to which all are cut to the shortest."""

LOSSLESS = frozenset(
    (
        *(suffix for suffix, form in audio.FORMATS.items() if form.is_lossless),
        *".aif .aiff .aifc .caf .w64 .rf64 .au .snd".split(),
    )
)
"""Suffixes of files that have no more samples than were written."""

_PADDING = 2048
"""Samples by which other files may be longer: AAC, for one, fills its last frame."""

SHIFTED = "not aligned"
"""What the note of an estimate says that is late or early."""

_MOST_PROCESSES = 61 if os.name == "nt" else 1024
"""Python starts no more than 61 in a pool on Windows."""

_CHUNK = 8
"""Files that a process scores before it asks for more."""

_MANY, _MANY_IF_QUICK = 40, 200
"""Files from which on several processes pay off; more of them where all metrics are quick."""


class Status:
    """What has become of a file: all statuses that a row may have."""

    OK, DONE = "ok", "done"
    """Scored; or extracted by a batch and, since it has no truth, not scored. `report.in_means`
    says which of the two count in means; no others do."""
    FAILED, PENDING = "failed", "pending"
    """Not extracted by a batch, which failed at it or has not come to it."""
    SILENT_TRUTH, SILENT_ESTIMATE = "silent truth", "silent estimate"
    UNRELATED, EXACT = "unrelated estimate", "exact"
    """There is no finite SI-SDR: a file is silent, one can hear the estimate but nothing of the
    truth is in it, or it is a copy of the truth."""
    FLIPPED = "sign flipped"
    REFUSED = ("unreadable", "not finite", "rate differs", "length differs", "channels differ")
    UNREADABLE, NOT_FINITE, RATE_DIFFERS, LENGTH_DIFFERS, CHANNELS_DIFFER = REFUSED
    """The files could not be compared; the note says why."""


@dataclass(frozen=True)
class ScoreSettings:
    """What to compute, and what to accept."""

    metrics: tuple[str, ...] = BUILT_IN
    resample: bool = False
    """Convert files of another sample rate to the truth's, or without one to the estimate's."""
    flipped_ok: bool = False
    """Give sign-flipped estimates, which sound the same, the status "ok" and a note."""
    channel: str | None = None
    """The channel, or "mix", that a mono estimate was extracted from."""


@dataclass(frozen=True)
class Score:
    """One estimate's values and status."""

    name: str
    status: str
    """One of `Status`."""
    note: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    """By column, those that exist."""
    confused: bool | None = None
    """Target confusion, that is, whether the wrong talker was extracted: the estimate is worse than
    the mixture, or nearer to an interferer than to the truth. None where neither is known.
    (Without a truth `extraction.presence` guesses it: `wrong_speaker`.)"""
    flipped: bool = False
    """Whether its sign is flipped, be the status "sign flipped" or, if that is accepted, "ok"."""
    cut: bool = False
    """Whether files were cut to the shortest of them."""
    damaged: bool = False
    """Whether a file is damaged, but could be read."""

    def with_note(self, text: str) -> Score:
        """The same with one more sentence, before the others, in its note."""
        return replace(self, note=f"{text} {self.note}".strip())

    def to_dict(self) -> dict[str, Any]:
        """A row of a report: every metric's column, None where there is no value."""
        return {
            "name": self.name,
            "status": self.status,
            "note": self.note,
            **{column: self.values.get(column) for column in BY_COLUMN},
            "confused": self.confused,
            "flipped": self.flipped or None,
            "cut": self.cut or None,
            "damaged": self.damaged or None,
        }


def score_file(
    pairing: Pairing,
    settings: ScoreSettings,
    verifier: Verifier | None = None,
    transcribe: Transcribe | None = None,
) -> Score:
    """Score one estimate; if the files cannot be compared, status and note say why.

    An estimate with several channels is scored channel by channel and has the mean of their
    values. The other files need as many channels, or one, which then counts for every channel.
    Similarities need a `verifier`, word error rates `transcribe`.
    """
    try:
        of_files, channels = _read(pairing, settings)
        if verifier:
            measure = verifier(pairing.references)
            channels = [replace(sounds, measure_similarity=measure) for sounds in channels]
        if transcribe:
            channels = [replace(sounds, transcribe=transcribe) for sounds in channels]
        scores = [_score_channel(of_files, sounds, settings) for sounds in channels]
    except _RefusedError as refused:
        return Score(pairing.name, refused.status, str(refused))
    except NonFiniteError as error:
        return Score(pairing.name, Status.NOT_FINITE, str(error))
    except (AudioError, OSError) as error:
        return Score(pairing.name, Status.UNREADABLE, str(error))
    except MemoryError:
        reason = f"{pairing.estimate}: there is too little memory to score a recording so long. "
        reason += "Choose --metrics that need less, such as si_sdr,si_sdr_i,snr."
        return Score(pairing.name, Status.UNREADABLE, reason)
    return _average(scores) if len(scores) > 1 else scores[0]


def score_files(
    pairings: Sequence[Pairing],
    settings: ScoreSettings,
    workers: int | None = None,
    verifier: Verifier | None = None,
    transcribe: Transcribe | None = None,
) -> Iterator[Score]:
    """Score each, in order, by as many processes; without a number, by as many as pay off.

    For similarities and word error rates there is one process: their networks use all cores. If one
    of several is killed, this one scores what is left.
    """
    workers = workers or sensible_workers(len(pairings), settings.metrics)
    workers = min(workers, len(pairings), _MOST_PROCESSES)
    if workers > 1 and not (verifier or transcribe):
        done = yield from _score_by_processes(pairings, settings, workers)
        pairings = pairings[done:]
    for pairing in pairings:
        yield score_file(pairing, settings, verifier, transcribe)


def _score_by_processes(
    pairings: Sequence[Pairing], settings: ScoreSettings, workers: int
) -> Generator[Score, None, int]:
    """Score each, in order, until a process is killed; return how many were scored."""
    done = 0
    # Processes that were forked from one that has used torch may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent)
    try:
        with _prepare_for_workers():
            scores = pool.map(partial(score_file, settings=settings), pairings, chunksize=_CHUNK)
        for score in scores:
            yield score
            done += 1
    except (KeyboardInterrupt, GeneratorExit):
        for process in dict(pool._processes or {}).values():
            process.terminate()  # nobody needs what it computes any more, and it writes nothing
        raise
    except BrokenProcessPool:
        _logger.warning(
            "a process that scored was killed, perhaps because memory ran out. What is left is "
            "scored one by one."
        )
    finally:
        pool.shutdown(cancel_futures=True)
    return done


def sensible_workers(count: int, metrics: Sequence[str]) -> int:
    """One process for few files; as many as cores where starting them pays off."""
    is_quick = set(metrics) <= set(BUILT_IN)
    if count < (_MANY_IF_QUICK if is_quick else _MANY):
        return 1
    return min(cores(), count // _CHUNK)


@contextmanager
def _prepare_for_workers() -> Iterator[None]:
    """Have processes that start in this block ignore Ctrl-C and use one thread each."""
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    try:
        with leave_signals("SIGINT"):
            yield
    finally:
        for name, value in threads.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _RefusedError(Exception):
    """Files that cannot be compared: a status and why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _read(pairing: Pairing, settings: ScoreSettings) -> tuple[Score, list[Sounds]]:
    """A score with what is known of the files, and their sounds for each channel of the estimate.

    All sounds have the rate of the truth or, without one, of the estimate, and are cut to the
    shortest of them.
    """
    standard = pairing.truth or pairing.estimate
    sounds, rate_hz, notes = _read_sounds(pairing, standard, settings)
    lengths = {path: sound.shape[1] for path, sound in sounds.items()}
    for path, length in lengths.items():
        _check_length(path, length, standard, lengths[standard])
    shortest = min(lengths.values())
    is_cut = max(lengths.values()) > shortest
    score = Score(pairing.name, Status.OK, " ".join(notes), cut=is_cut, damaged=bool(notes))
    if is_cut:
        score = score.with_note(f"cut to {shortest} samples.")

    def channel(path: Path | None, number: int) -> Samples:
        if path is None:
            return NOTHING
        return sounds[path][number if len(sounds[path]) > 1 else 0, :shortest]

    return score, [
        Sounds(
            rate_hz,
            channel(pairing.estimate, number),
            channel(pairing.truth, number),
            channel(pairing.mixture, number),
            tuple(channel(path, number) for path in pairing.interferers),
            transcript=pairing.transcript,
            presence=math.nan if pairing.presence is None else pairing.presence,
        )
        for number in range(len(sounds[pairing.estimate]))
    ]


def _read_sounds(
    pairing: Pairing, standard: Path, settings: ScoreSettings
) -> tuple[dict[Path, Samples], int, list[str]]:
    """The sounds [channel, sample] of all files, the rate of all of them, and what is damaged."""
    others = (pairing.truth, pairing.mixture, *pairing.interferers)
    paths = (pairing.estimate, *(path for path in others if path))
    readers = {path: audio.Reader(path, channel="all") for path in paths}
    rate_hz = readers[standard].info.sample_rate_hz
    channels = readers[pairing.estimate].info.channels
    sounds: dict[Path, Samples] = {}
    notes: list[str] = []
    for path, reader in readers.items():
        own_hz = reader.info.sample_rate_hz
        if own_hz != rate_hz and not settings.resample:
            reason = f"{path}: {own_hz} Hz, but {standard} has {rate_hz} Hz. Use --resample."
            raise _RefusedError(Status.RATE_DIFFERS, reason)
        reader.sample_rate_hz = rate_hz
        sound = reader.read()
        notes += reader.warnings
        if channels == 1 and settings.channel:
            sound = audio.select(sound, settings.channel if len(sound) > 1 else "mix", path)
        if len(sound) not in (1, channels):
            reason = f"{path}: {len(sound)} channels, but {pairing.estimate} has {channels}."
            hint = "Give both the same channels, or make this one mono."
            if channels == 1:
                hint = "Say with --channel what of it was extracted: mix, 0, 1, ..."
            raise _RefusedError(Status.CHANNELS_DIFFER, f"{reason} {hint}")
        sounds[path] = sound
    return sounds, rate_hz, notes


def _check_length(path: Path, length: int, standard: Path, expected: int) -> None:
    """Refuse a file that is not about as long as the one that the others are compared with."""
    padding = 0 if path.suffix.lower() in LOSSLESS else _PADDING
    if max(expected - length, length - padding - expected) > _TRIM * max(length, expected):
        reason = f"{path}: {length} samples, but {standard} has {expected}."
        raise _RefusedError(Status.LENGTH_DIFFERS, f"{reason} Are they of the same mixture?")


def _score_channel(score: Score, sounds: Sounds, settings: ScoreSettings) -> Score:
    """The score of one channel; `score` has what is known of the files."""
    has_truth = sounds.target.size > 0
    if has_truth and is_silent(sounds.target):
        return replace(score, status=Status.SILENT_TRUTH)
    if is_silent(sounds.estimate):
        return replace(score, status=Status.SILENT_ESTIMATE)
    metrics = [METRICS[name] for name in settings.metrics]
    if sounds.mixture.size:
        # SI-SDR of the mixture always: it shows why an estimate counts as confused.
        names = ("si_sdr", *settings.metrics)
        metrics += [metric for name, metric in MIXTURE_METRICS.items() if name in names]
    if not has_truth:
        return replace(score, values=_values(metrics, sounds))
    si_sdr_db = sounds.si_sdr_db
    if si_sdr_db == -math.inf:
        score = score.with_note("it has nothing of the truth in it.")
        return replace(score, status=Status.UNRELATED)
    if si_sdr_db >= EXACT_DB:
        return replace(score, status=Status.EXACT)
    if si_sdr_db > 0 and is_flipped(sounds.estimate, sounds.target):
        score = replace(score, flipped=True)
        if settings.flipped_ok:
            score = score.with_note(f"{Status.FLIPPED}.")
        else:
            score = replace(score, status=Status.FLIPPED)
    if si_sdr_db < 0 and (shift := find_shift(sounds.estimate, sounds.target)):
        direction = "late" if shift > 0 else "early"
        score = score.with_note(f"{SHIFTED}: {abs(shift)} samples too {direction}.")
    confused = _is_confused(sounds)
    return replace(score, values=_values(metrics, sounds), confused=confused)


def _is_confused(sounds: Sounds) -> bool | None:
    """See `Score.confused`."""
    gain_db = sounds.si_sdr_db - sounds.input_si_sdr_db
    has_mixture = math.isfinite(gain_db)
    if has_mixture and gain_db < 0:
        return True
    if sounds.interferers:
        return any(si_sdr(sounds.estimate, one) > sounds.si_sdr_db for one in sounds.interferers)
    return False if has_mixture else None


def _values(metrics: Sequence[Metric], sounds: Sounds) -> dict[str, float]:
    """By column, the values that exist."""
    values = {metric.column: float(metric.function(sounds)) for metric in metrics}
    return {column: value for column, value in values.items() if math.isfinite(value)}


def _average(channels: Sequence[Score]) -> Score:
    """One score for a file's channels: mean values, and the first status that is not "ok"."""
    number = next((n for n, score in enumerate(channels) if score.status != Status.OK), None)
    score = channels[number or 0]
    where = f"mean of {len(channels)} channels." if number is None else f"channel {number}."
    columns = [column for column in score.values if all(column in c.values for c in channels)]
    verdicts = [channel.confused for channel in channels if channel.confused is not None]
    return replace(
        score.with_note(where),
        values={column: float(np.mean([c.values[column] for c in channels])) for column in columns},
        confused=any(verdicts) if len(verdicts) == len(channels) else None,
        flipped=any(channel.flipped for channel in channels),
    )
