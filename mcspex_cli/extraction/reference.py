"""From what a user has of somebody's voice to a `Voice`: clips, folders, spans and profiles.

```
clip ──▶ cut to its speech ──▶ embedded ──┐
  └──▶ quality                            ├──▶ Voice, weighted by speech
profile ──────────────────────────────────┘
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.clip import LONGEST_USED_S, Clip, read_clip
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.levels import FRAME_S, Activity, FrameLevels, check_length, level_db
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.profile import (
    Profile,
    ReferenceQuality,
    is_profile_name,
    read_profile,
)

MIN_SPEECH_S = 1.5
"""Speech in all under which a voice is not followed well: with 1 s a decibel is lost, with 0.5 s
nearly everything."""

MAX_CLIPPED = 0.01

MIN_SNR_DB = 5.0
"""White noise 5 dB below the speech costs 0.2 dB, as loud as the speech 0.6 dB."""


MIN_RANGE_DB = 6.0
"""The range of the middle 90 % of the levels of 10 ms: of speech 20 dB and more, of noise 3."""

MIN_LEVEL_DB = -75.0
"""Speech below this has lost its detail in a 16-bit file. Above it, loudness does not matter."""

_MIN_WEIGHT_S = 0.1  # a clip in which no speech is found counts as so much

_PART_S = 1.5
"""A voice is compared with itself over parts this long, or longer where there would be many."""

_MAX_PARTS = 16


@dataclass(frozen=True, eq=False)
class Voice:
    """Somebody's voice, as one model embeds it."""

    embedding: Samples
    """[embedding]."""
    qualities: tuple[ReferenceQuality, ...]
    """Of each clip, also of those that a profile was made from."""
    seconds: float
    """Of the speech that it was made from."""
    warnings: tuple[str, ...]
    """What is wrong with its clips, a line each."""
    sources: tuple[str, ...]
    """Clips, spans and profiles, as messages name them."""


def enroll(
    sources: Iterable[Path | audio.Reader | Clip],
    engine: Engine,
    model: CheckpointInfo,
    advance: Callable[[float], object] = lambda _: None,
) -> Voice:
    """Embed one voice from clips, folders of clips and profiles, weighted by their speech.

    Args:
        sources: all of one person; `check_sources` gives readers of clips, `clip.read_spans` clips
            of a recording.
        engine: of `model`.
        model: what profiles must be for.
        advance: called with the seconds of sound read since its last call, also before a clip is
            embedded.

    Raises:
        AudioError: a clip cannot be read, is silent or shorter than 0.3 s; there is none.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    voices = []
    for source in sources:
        for one in list_sources([source]) if isinstance(source, Path) else [source]:
            advance(0.0)
            if isinstance(one, Clip):
                voices.append(embed_clip(one, engine))
            elif isinstance(one, Path) and is_profile_name(one):
                profile = read_profile(one)
                known = profile.enrolment_for(model, one)
                voices.append(
                    Voice(known.embedding, profile.qualities, known.seconds, (), (str(one),))
                )
            else:
                voices.append(embed_clip(read_clip(one, engine.sample_rate_hz, advance), engine))
    return join_voices(voices, engine.calibration)


def embed_clip(clip: Clip, engine: Engine) -> Voice:
    """Embed one clip.

    Raises:
        AudioError: its speech is shorter than 0.3 s.
        EngineError: as `Engine.embed`.
    """
    used, two_voices = clip.trimmed(), None
    check_length(f"{clip.name}: its speech", len(used) / clip.sample_rate_hz)
    if calibration := engine.calibration:
        similarity = similarity_of_parts(clip, engine, calibration)
        if similarity is not None:
            two_voices = similarity < calibration.same_voice_parts
    quality = measure_quality(clip, len(used) / clip.sample_rate_hz, two_voices)
    seconds = min(max(_MIN_WEIGHT_S, quality.speech_s), LONGEST_USED_S)
    return Voice(engine.embed([used]), (quality,), seconds, clip.warnings, (clip.name,))


def join_voices(voices: Sequence[Voice], calibration: Calibration | None = None) -> Voice:
    """Join voices of one person, each weighted by its seconds of speech.

    With a calibration, those that do not sound like the others are warned of.

    Raises:
        AudioError: there is none.
    """
    if not voices:
        raise AudioError("no reference was given. Name a clip of the voice alone.")
    weights = [voice.seconds for voice in voices]
    mean = np.average([voice.embedding for voice in voices], axis=0, weights=weights)
    qualities = tuple(quality for voice in voices for quality in voice.qualities)
    warnings = [warning for voice in voices for warning in voice.warnings]
    warnings += [quality.warning for quality in qualities if quality.warning]
    if sum(weights) < MIN_SPEECH_S:
        short = f"only {sum(weights):.1f} s of speech; with 3 s or more a voice is followed better."
        warnings.insert(0, short)
    if calibration and len(voices) > 1:
        warnings += _unlike(voices, calibration)
    return Voice(
        mean.astype(np.float32),
        qualities,
        sum(weights),
        tuple(warnings),
        tuple(source for voice in voices for source in voice.sources),
    )


def _unlike(voices: Sequence[Voice], calibration: Calibration) -> Iterator[str]:
    """Name the voices that do not sound like the others, in one line."""

    def similarity(place: int) -> float:
        others = rest[:place] + rest[place + 1 :]
        weights = [other.seconds for other in others]
        mean = np.average([other.embedding for other in others], axis=0, weights=weights)
        return calibration.similarity(rest[place].embedding, mean)

    rest, names = list(voices), []
    while len(rest) > 1:
        worst = min(range(len(rest)), key=similarity)
        if similarity(worst) >= calibration.same_voice_clips:
            break
        names.append(" and ".join(rest.pop(worst).sources))
    if names and len(voices) == 2:
        both = " and ".join(source for voice in voices for source in voice.sources)
        yield f"{both} do not sound like one voice. Give clips of one person."
    elif names:
        do = "does" if len(names) == 1 else "do"
        yield f"{', '.join(names)} {do} not sound like the other clips. Give clips of one person."


def list_sources(sources: Iterable[Path]) -> list[Path]:
    """List sources with the sound files of each folder, however deep, in its place.

    Raises:
        AudioError: a source does not exist, or a folder has no sound files.
    """
    listed: list[Path] = []
    for source in sources:
        files.check_exists(source)
        found = files.find(source) if source.is_dir() else [source]
        if not found:
            raise AudioError(f"{source}: no sound files in this folder.")
        listed += found
    return listed


def check_sources(
    sources: Iterable[Path], *models: CheckpointInfo
) -> dict[Path, Profile | audio.Reader]:
    """Read headers only, to refuse before any work what cannot be enrolled.

    Args:
        sources: of `list_sources`.
        models: what profiles must be for.

    Returns:
        The profiles and, for the clips, readers that are open, unless there are very many.

    Raises:
        AudioError: a clip is not a sound file, or too short.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    checked: dict[Path, Profile | audio.Reader] = {}
    for path in sources:
        if is_profile_name(path):
            checked[path] = profile = read_profile(path)
            for model in models:
                profile.enrolment_for(model, path)
        else:
            checked[path] = reader = audio.Reader(path)
            check_length(str(path), reader.info.seconds)
            if len(checked) > audio.MOST_OPEN:
                reader.close()
    return checked


def measure_quality(clip: Clip, used_s: float, two_voices: bool | None) -> ReferenceQuality:
    """Measure how good a clip is, and warn of what is worst about it.

    Little speech in one clip is not a reason to warn: see `join_voices`.

    Args:
        clip: the clip.
        used_s: how much of it trimming left.
        two_voices: whether its parts sound like two people; None if that cannot be told.
    """
    speech = clip.speech
    speech_db = _mean_db(clip.levels_db[speech])
    snr_db = _snr_db(clip.levels_db, speech, speech_db)
    range_db = float(np.ptp(np.percentile(clip.levels_db, (5, 95))))
    reason = None
    if two_voices:
        reason = "sounds like two voices. Give clips, or spans, of one voice alone."
    elif clip.clipped > MAX_CLIPPED:
        share = f"{100 * clip.clipped:.1f} %"
        reason = f"{share} of its samples are clipped. Record it with less gain."
    elif snr_db is not None and snr_db < MIN_SNR_DB:
        reason = f"noise only {snr_db:.0f} dB below the speech. Take a cleaner clip."
    elif clip.seconds >= MIN_SPEECH_S and range_db < MIN_RANGE_DB:
        reason = "is equally loud throughout, as noise and tones are. Give a clip of speech."
    elif speech_db < MIN_LEVEL_DB:
        reason = f"very quiet ({speech_db:.0f} dB). Turn it up."
    return ReferenceQuality(
        path=clip.name,
        seconds=round(clip.seconds, 3),
        used_s=round(used_s, 3),
        speech_s=round(min(float(speech.sum()) * FRAME_S, clip.seconds), 3),
        level_db=round(speech_db, 1),
        clipped=round(clip.clipped, 6),
        snr_db=snr_db,
        two_voices=two_voices,
        warning=f"{clip.name}: {reason}" if reason else None,
    )


def similarity_of_parts(clip: Clip, engine: Engine, calibration: Calibration) -> float | None:
    """The mean similarity of any two parts of a clip's speech, each of 1.5 s or more.

    If two people speak in it, one after the other or in turns, it is low.

    Returns:
        None with less than 3 s of speech.
    """
    speech = clip.only_speech()
    count = min(_MAX_PARTS, int(len(speech) / (_PART_S * clip.sample_rate_hz)))
    if count < 2:
        return None
    length = len(speech) // count
    embeddings = engine.embed_parts(speech[: count * length].reshape(count, length))
    pairs = combinations(embeddings, 2)
    return float(np.mean([calibration.similarity(one, other) for one, other in pairs]))


def _snr_db(levels_db: FrameLevels, speech: Activity, speech_db: float) -> float | None:
    """Speech over noise, which is in both; None with less than 0.2 s of pauses."""
    # Words fade: what is next to them is not a pause yet.
    near = np.convolve(speech, np.ones(11), "same")[: len(speech)] > 0.5
    pauses = levels_db[~near]
    if len(pauses) < 20 or not speech.any():
        return None
    ratio = 10 ** ((speech_db - _mean_db(pauses)) / 10) - 1
    return round(min(60.0, level_db(max(ratio, 1e-3))), 1)


def _mean_db(levels_db: FrameLevels) -> float:
    powers = 10 ** (levels_db / 10)
    return level_db(max(float(np.mean(powers)), 1e-12)) if len(levels_db) else -120.0
