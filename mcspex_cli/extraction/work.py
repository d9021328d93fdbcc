"""One process's part in a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.engine import Engine, open_engine
from mcspex_cli.extraction.files import extract_files
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.outputs import Extraction
from mcspex_cli.extraction.reference import enroll
from mcspex_cli.extraction.runtime import EngineSettings
from mcspex_cli.extraction.shares import WINDOW_S, Share
from mcspex_cli.extraction.sources import Order, unforeseen


@dataclass(frozen=True)
class Outcome:
    """What came of one job: its row for the journal, or why it failed."""

    job: Job
    row: dict[str, Any] | None
    reason: str = ""


def work(share: Share, stopping: Callable[[], bool]) -> Iterator[Outcome]:
    """Do a share, starting no unit once `stopping()`.

    Raises:
        CheckpointError, EngineError: the model or the device cannot be used.
    """
    engine = _engine(share)
    voices = _Voices(engine, share.settings.checkpoint)

    def orders() -> Iterator[Order]:
        """What is wanted, and what only keeps batches as they were."""
        for number, unit in enumerate(share.units):
            if stopping():
                return
            for job in unit:
                wanted = job.id not in share.done
                if wanted or engine.batch > 1:
                    yield Order(job, partial(voices.of, job.references), number, wanted)

    for job, result in extract_files(engine, orders(), share.settings.files):
        if isinstance(result, McspexError):
            yield Outcome(job, None, str(result))
        else:
            yield Outcome(job, _row(result, engine))


def real_time_factor(share: Share) -> float:
    """Seconds that the network of a share takes for a second of audio, tried on a few."""
    engine = _engine(share)
    noise = np.random.default_rng(0).standard_normal(round(WINDOW_S * engine.sample_rate_hz))
    mixture = (0.05 * noise).astype(np.float32)
    voice = engine.embed([mixture])
    engine.extract(mixture[: engine.sample_rate_hz], voice)
    began = time.perf_counter()
    engine.extract(mixture, voice)
    return (time.perf_counter() - began) / WINDOW_S


def _engine(share: Share) -> Engine:
    """The engine that a share asks for."""
    settings = share.settings
    return open_engine(
        settings.checkpoint,
        EngineSettings(
            share.device,
            settings.precision,
            batch=settings.batch,
            threads=share.threads,
            runtime=settings.runtime,
        ),
    )


class _Voices:
    """Embeddings by their clips and profiles, each made once; so is what a bad one raises."""

    def __init__(self, engine: Engine, model: CheckpointInfo) -> None:
        self._engine, self._model = engine, model
        self._known: dict[tuple[Path, ...], Samples | McspexError] = {}

    def of(self, references: tuple[Path, ...]) -> Samples:
        """The embedding [embedding] of some clips.

        Raises:
            McspexError: a clip cannot be used.
        """
        if references not in self._known:
            self._known[references] = self._embed(references)
        voice = self._known[references]
        if isinstance(voice, McspexError):
            raise voice
        return voice

    def _embed(self, references: tuple[Path, ...]) -> Samples | McspexError:
        """The embedding, or why there is none."""
        try:
            return enroll(references, self._engine, self._model).embedding
        except McspexError as error:
            return error
        except Exception as error:
            return unforeseen(references[0], error)


def _row(done: Extraction, engine: Engine) -> dict[str, Any]:
    """What the journal keeps of an extraction."""
    presence = done.presence
    return {
        "seconds": round(done.seconds, 6),
        "sample_rate_hz": done.sample_rate_hz,
        "elapsed_s": round(done.elapsed_s, 4),
        "gain_db": list(done.gain_db),
        "limited": done.limited,
        "silent": done.silent,
        "presence": None if presence.presence is None else round(presence.presence, 4),
        "present": presence.present,
        "wrong_speaker": presence.wrong_speaker,
        "device": engine.runtime.device,
        "precision": engine.runtime.precision,
        "runtime": engine.runtime.name,
    }
