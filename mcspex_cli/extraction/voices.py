"""From what a user has of somebody's voice to its embedding: clips, folders, spans, profiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint import profiles
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.checks import check_signal
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.quality import (
    LEAST_SPEECH_S,
    Clipping,
    ReferenceQuality,
    assess,
    has_two_voices,
    judged,
)
from mcspex_cli.extraction.trimming import CAP_S, trim

LONGEST_READ_S = 600.0
"""Seconds of a clip that are looked at; memory must not grow with it."""

_LEAST_WEIGHT_S = 0.1
"""A clip in which no speech is found counts as so much."""


@dataclass(frozen=True, eq=False)
class Voice:
    """Somebody's voice, as a model hears it."""

    embedding: Samples
    """[embedding]."""
    qualities: tuple[ReferenceQuality, ...]
    """Of each clip, those that a profile was made of included."""
    seconds: float
    """Of speech that it was made of."""
    sources: tuple[str, ...]
    """Clips, spans and profiles, as messages name them."""

    @property
    def warnings(self) -> list[str]:
        """What is wrong with its clips, a line each; too little speech is said once."""
        short = f"only {self.seconds:.1f} s of speech; 3 s or more follow a voice better."
        lines = [quality.warning for quality in self.qualities if quality.warning]
        return ([short] if self.seconds < LEAST_SPEECH_S else []) + lines


def list_sources(sources: Iterable[Path]) -> list[Path]:
    """Give each folder's sound files, however deep, in its place.

    Raises:
        AudioError: a source is not there, or a folder has no sound files.
    """
    listed: list[Path] = []
    for source in sources:
        files.check_exists(source)
        found = files.find(source) if source.is_dir() else [source]
        if not found:
            raise AudioError(f"{source}: no sound files in this folder.")
        listed += found
    return listed


def check_sources(sources: Iterable[Path], model: CheckpointInfo) -> float:
    """Read headers only, to refuse before any work what cannot be enrolled.

    Returns:
        Seconds of all clips together; a profile's are none.

    Raises:
        AudioError: a clip is not there or no sound file.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    seconds = 0.0
    for path in list_sources(sources):
        if profiles.is_profile(path):
            profiles.embedding_for(path, profiles.read(path), model)
        else:
            seconds += audio.probe(path).seconds
    return seconds


def enroll(
    sources: Sequence[Path], engine: Engine, model: CheckpointInfo, *, assessed: bool = True
) -> Voice:
    """Embed one voice from clips, folders of clips and profiles, weighed by their speech.

    A clip over 10 s is cut to its speech, of at most 60 s; of a shorter one, silence at the
    ends. Only the first 10 min of a clip are read.

    Args:
        sources: of one person.
        engine: of `model`.
        model: what profiles have to be for.
        assessed: False spares the time that the qualities take.

    Raises:
        AudioError: a clip cannot be read, is silent or shorter than 0.3 s.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    return joined([_voice(path, engine, model, assessed) for path in list_sources(sources)])


def enroll_samples(clips: Sequence[tuple[str, Samples]], engine: Engine) -> Voice:
    """Embed one voice from clips [sample] at the engine's rate, each with its name.

    Raises:
        AudioError: a clip is silent or shorter than 0.3 s.
    """
    voices = []
    for name, clip in clips:
        clipping = Clipping()
        list(clipping.through([np.atleast_2d(clip)]))
        voices.append(_clip_voice(name, clip, clipping.share, engine, assessed=True))
    return joined(voices)


def joined(voices: Sequence[Voice]) -> Voice:
    """One person's voice of several, each weighed by its seconds of speech.

    Raises:
        AudioError: there is none.
    """
    if not voices:
        raise AudioError("no reference was given. Name a clip of the voice alone.")
    weights = [voice.seconds for voice in voices]
    mean = np.average([voice.embedding for voice in voices], axis=0, weights=weights)
    total_s = sum(weights)
    return Voice(
        mean.astype(np.float32),
        tuple(quality for voice in voices for quality in voice.qualities),
        total_s,
        tuple(source for voice in voices for source in voice.sources),
    )


def _voice(path: Path, engine: Engine, model: CheckpointInfo, assessed: bool) -> Voice:
    """One file's."""
    if not profiles.is_profile(path):
        samples, clipped = _read(path, engine.sample_rate_hz)
        return _clip_voice(str(path), samples, clipped, engine, assessed=assessed)
    profile = profiles.read(path)
    known = profiles.embedding_for(path, profile, model)
    qualities = tuple(ReferenceQuality(**row) for row in profile.qualities) if assessed else ()
    return Voice(known.embedding, qualities, known.seconds, (str(path),))


def _clip_voice(
    name: str, samples: Samples, clipped: float, engine: Engine, *, assessed: bool
) -> Voice:
    """One clip's."""
    check_signal(name, samples, engine.sample_rate_hz)
    used = trim(samples, engine.sample_rate_hz)
    quality = assess(name, samples, used, engine.sample_rate_hz, clipped)
    seconds = min(max(_LEAST_WEIGHT_S, quality.speech_s), CAP_S)
    qualities = (judged(quality, has_two_voices(used, engine)),) if assessed else ()
    return Voice(engine.embed([used]), qualities, seconds, (name,))


def _read(path: Path, sample_rate_hz: int) -> tuple[Samples, float]:
    """A clip [sample], and the share of its samples that are clipped, at the file's own rate."""
    rate_hz = audio.probe(path).sample_rate_hz
    clipping = Clipping()
    blocks = islice(audio.Reader(path, rate_hz), round(LONGEST_READ_S / audio.BLOCK_S))
    resampler = audio.Resampler(rate_hz, sample_rate_hz, 1)
    read = list(resampler.run(clipping.through(blocks)))
    return np.concatenate(read, axis=-1)[0], clipping.share
