"""Scoring files against files: pairing by name, checks, one row each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcspex_cli import audio, paths
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError, PairingError
from mcspex_cli.evaluation.metrics import is_silent, si_sdr

TRIM = 0.01
"""The difference in length, as a share, up to which both are cut to the shorter."""


@dataclass(frozen=True)
class Trio:
    """An estimate, its truth and, for the improvement, its mixture."""

    name: str
    estimate: Path
    truth: Path
    mixture: Path | None


@dataclass(frozen=True)
class Score:
    """One estimate's numbers; a value is None where it does not exist."""

    name: str
    si_sdr_db: float | None
    si_sdr_i_db: float | None
    status: str
    """"ok"; or out of the means: "silent truth", "silent estimate", "exact" (infinitely good)."""


@dataclass(frozen=True)
class Summary:
    """Means over the rows whose status is "ok"."""

    files: int
    scored: int
    si_sdr_db: float | None
    si_sdr_i_db: float | None
    negative: int | None
    """Rows with a negative SI-SDRi: most often the wrong speaker (target confusion)."""


def pair(estimates: Path, truth: Path, mixtures: Path | None) -> list[Trio]:
    """Pair a file with a file, or each estimate of a folder with its namesakes.

    Namesakes have the same path below their folder but for the suffix; an estimate's
    `.target` before the suffix is left out of account.

    Raises:
        PairingError: a folder against a file, or an estimate without truth or mixture.
    """
    if estimates.is_dir() != truth.is_dir() or (
        mixtures is not None and estimates.is_dir() != mixtures.is_dir()
    ):
        raise PairingError("estimates, truth and mixtures must be all files or all folders.")
    if not estimates.is_dir():
        return [Trio(estimates.name, estimates, truth, mixtures)]
    found = _by_name(estimates)
    if not found:
        raise PairingError(f"{estimates}: no sound files in this folder.")
    truths = _by_name(truth)
    mixed = _by_name(mixtures) if mixtures else {}
    return [
        Trio(
            name,
            path,
            _namesake(name, path, truths, truth),
            _namesake(name, path, mixed, mixtures) if mixtures else None,
        )
        for name, path in found.items()
    ]


def score(trio: Trio) -> Score:
    """Score one estimate.

    Raises:
        AudioError: a file cannot be read, or is not mono.
        PairingError: rates differ, or lengths differ by more than 1 %.
    """
    rate = audio.probe(trio.truth).sample_rate_hz
    truth = _read(trio.truth, rate, trio.truth)
    estimate = _read(trio.estimate, rate, trio.truth)
    estimate, target = _same_length(trio.estimate, estimate, trio.truth, truth)
    if is_silent(target):
        return Score(trio.name, None, None, "silent truth")
    if is_silent(estimate):
        return Score(trio.name, None, None, "silent estimate")
    value, gain = si_sdr(estimate, target), None
    if math.isinf(value):
        return Score(trio.name, None, None, "exact" if value > 0 else "silent estimate")
    if trio.mixture:
        mixture = _read(trio.mixture, rate, trio.truth)
        before = si_sdr(*_same_length(trio.mixture, mixture, trio.truth, truth))
        gain = value - before if math.isfinite(before) else None
    return Score(trio.name, value, gain, "ok")


def score_all(trios: Sequence[Trio]) -> Iterator[Score]:
    """Score each, in order."""
    return map(score, trios)


def summarise(scores: Sequence[Score]) -> Summary:
    """Means of what could be scored."""
    fine = [s for s in scores if s.status == "ok"]
    values = [s.si_sdr_db for s in fine if s.si_sdr_db is not None]
    gains = [s.si_sdr_i_db for s in fine if s.si_sdr_i_db is not None]
    return Summary(
        files=len(scores),
        scored=len(fine),
        si_sdr_db=float(np.mean(values)) if values else None,
        si_sdr_i_db=float(np.mean(gains)) if gains else None,
        negative=sum(g < 0 for g in gains) if gains else None,
    )


def _by_name(folder: Path) -> dict[str, Path]:
    """Sound files under a folder by the name they are paired by."""
    named: dict[str, Path] = {}
    for path in paths.find(folder):
        name = str(path.relative_to(folder).with_suffix("")).removesuffix(".target")
        if name in named:
            raise PairingError(f"{named[name]} and {path}: one name, two files. Move one away.")
        named[name] = path
    return named


def _namesake(name: str, path: Path, named: dict[str, Path], folder: Path) -> Path:
    """The file of another folder that belongs to `path`."""
    if name not in named:
        raise PairingError(f"{path}: {folder} has no {name}.wav (or .flac, ...) for it. Add it.")
    return named[name]


def _read(path: Path, rate_hz: int, truth: Path) -> Samples:
    """Read a mono file [sample], refusing another rate than the truth's."""
    info = audio.probe(path)
    if info.sample_rate_hz != rate_hz:
        raise PairingError(
            f"{path}: {info.sample_rate_hz} Hz, but {truth} has {rate_hz} Hz. Resample one."
        )
    if info.channels != 1:
        raise AudioError(f"{path}: has {info.channels} channels, scoring needs one. Split it.")
    return audio.read(path, rate_hz)


def _same_length(
    path: Path, samples: Samples, truth: Path, target: Samples
) -> tuple[Samples, Samples]:
    """Cut both to the shorter if they differ by little."""
    short, long = sorted((len(samples), len(target)))
    if long - short > TRIM * long:
        raise PairingError(
            f"{path}: {len(samples)} samples, but {truth} has {len(target)}. Of one mixture?"
        )
    return samples[:short], target[:short]
