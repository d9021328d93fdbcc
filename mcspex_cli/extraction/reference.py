"""From what a user has of somebody's voice to a `Voice`: clips, folders, spans and profiles.

```
file ──▶ speech found ──▶ long pauses cut out ──▶ embedded ──┐
          └──▶ quality: level, noise, clipping, one voice?   ├──▶ Voice, weighted by speech
profile ─────────────────────────────────────────────────────┘
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.containers import Damaged
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.activity import (
    FRAME_S,
    Activity,
    FrameLevels,
    detect_speech,
    frame_levels_db,
    list_spans,
    smooth_activity,
)
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.levels import MIN_SIGNAL_S, check_length, check_level, level_db
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.profile import ReferenceQuality, is_profile_name, read_profile
from mcspex_cli.extraction.windows import without_rumble

LONGEST_READ_S = 600.0
"""Seconds of a clip that are looked at, from its first speech on: memory must not grow with it."""

LONG_CLIP_S = 10.0
"""A clip longer than this is cut to its speech; a shorter one only loses silence at its ends."""

LONGEST_USED_S = 60.0
"""Seconds of one clip that are embedded. More do not make a voice clearer."""

MIN_SPEECH_S = 1.5
"""Speech in all under which a voice is not followed well: with 1 s a decibel is lost, with 0.5 s
nearly everything."""

MAX_CLIPPED = 0.01

MIN_SNR_DB = 5.0
"""White noise 5 dB below the speech costs 0.2 dB, as loud as the speech 0.6 dB."""

MIN_LEVEL_DB = -75.0
"""Speech below this has lost its detail in a 16-bit file. Above it, loudness does not matter."""

_MIN_WEIGHT_S = 0.1  # a clip in which no speech is found counts as so much
_LONG_PAUSE_S = 0.5  # pauses longer than this are cut out of a long clip
_SHORT_PAUSE_S = 0.2  # pauses longer than this are not counted as speech
_END_S = 1.0  # silence longer than this is cut off the ends of a short clip
_MARGIN_S = 0.1  # kept on both sides of speech, for what is quiet at the ends of words
_BURST_S = 0.05  # shorter sounds are not speech
_FULL_SCALE = 0.995  # samples from here on count as clipped, if they are not alone
_CLIPPED_RUN = 3

_PART_S = 1.5
"""A voice is compared with itself over parts this long, or longer where there would be many."""

_MAX_PARTS = 16

_TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)"
_SPAN = re.compile(rf"\s*{_TIME}\s*-\s*(?:{_TIME})?\s*", re.ASCII)
_LONGEST_TEXT = 100

_SLACK_S = 0.5
"""A span may reach this far over the end of its file, as the lengths that programs show do."""


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


@dataclass(frozen=True)
class Span:
    """A stretch of a recording where one voice is alone."""

    start_s: float
    end_s: float
    """`math.inf` for the end of the recording."""

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read "12.0-18.5" in seconds, "0:12-0:18.5" with minutes, "1:02:03-1:02:09" or "8-".

        Raises:
            AudioError: it is not a span, ends before it starts, or is shorter than 0.3 s.
        """
        match = _SPAN.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
        start_s = _parse_time(match.groups()[:3]) if match else None
        end_s = _parse_time(match.groups()[3:]) if match else None
        if start_s is None or end_s is None:
            raise AudioError(
                f"{text[:_LONGEST_TEXT]!r} is not a span. Write it like 12.0-18.5 or 0:12-0:18.5, "
                "or 12- for all from there."
            )
        if end_s <= start_s:
            raise AudioError(f"{text}: this span ends before it starts. Swap the two times.")
        if round(end_s - start_s, 6) < MIN_SIGNAL_S:
            raise AudioError(
                f"{text}: {end_s - start_s:.2f} s is too short. Give {MIN_SIGNAL_S} s or more."
            )
        return cls(start_s, end_s)

    def __str__(self) -> str:
        """For messages: "12.0-18.5 s"."""
        end = "end" if math.isinf(self.end_s) else f"{_plain(self.end_s)} s"
        return f"{_plain(self.start_s)}-{end}"


@dataclass(frozen=True, eq=False)
class Clip:
    """A reference as sound, with what is measured of it only once."""

    name: str
    samples: Samples
    """[sample], without what is below 20 Hz."""
    sample_rate_hz: int
    levels_db: FrameLevels
    activity: Activity
    clipped: float
    """Share of its samples that are clipped."""

    @classmethod
    def measure(
        cls, name: str, samples: Samples, sample_rate_hz: int, clipped: float | None = None
    ) -> Clip:
        """Measure a clip [sample].

        Args:
            name: what messages call it.
            samples: at least 0.3 s.
            sample_rate_hz: of the samples.
            clipped: the share of clipped samples, if it was counted at another rate.

        Raises:
            AudioError: it is shorter than 0.3 s, or silent.
        """
        check_length(name, len(samples) / sample_rate_hz)
        if clipped is None:
            clipped = _count_clipped(samples) / max(1, len(samples))
        samples = np.concatenate(list(without_rumble([samples[None]], sample_rate_hz)), axis=-1)[0]
        check_level(name, float(np.mean(np.square(samples, dtype=np.float64))))
        levels_db = frame_levels_db(samples, sample_rate_hz)
        return cls(name, samples, sample_rate_hz, levels_db, detect_speech(levels_db), clipped)

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / self.sample_rate_hz

    def speech(self) -> Activity:
        """Whether there is speech [frame], pauses of 0.2 s left out."""
        return smooth_activity(self.activity, _BURST_S, _SHORT_PAUSE_S)

    def trimmed(self) -> Samples:
        """The clip [sample] cut to its speech.

        Over 10 s long, its pauses over 0.5 s are cut out and the rest, up to 60 s, is joined;
        else silence over 1 s is cut off its ends. 0.1 s is kept around what stays. A clip
        without speech, or with nothing to cut, stays as it is.
        """
        spans = list_spans(smooth_activity(self.activity, _BURST_S, _LONG_PAUSE_S))
        if not spans:
            return self.samples
        if self.seconds <= LONG_CLIP_S:
            start_s, end_s = spans[0][0], spans[-1][1]
            spans = [
                (
                    start_s if start_s > _END_S else 0.0,
                    end_s if self.seconds - end_s > _END_S else self.seconds,
                )
            ]
        joined: Samples = np.concatenate([self._piece(span, _MARGIN_S) for span in spans])
        return joined[: round(LONGEST_USED_S * self.sample_rate_hz)]

    def only_speech(self) -> Samples:
        """Its speech [sample] of up to 60 s, short pauses left out too."""
        pieces = [self._piece(span, 0.0) for span in list_spans(self.speech())]
        joined: Samples = np.concatenate(pieces) if pieces else self.samples[:0]
        return joined[: round(LONGEST_USED_S * self.sample_rate_hz)]

    def _piece(self, span: tuple[float, float], margin_s: float) -> Samples:
        start, end = (
            round(s * self.sample_rate_hz) for s in (span[0] - margin_s, span[1] + margin_s)
        )
        return self.samples[max(0, start) : end]


def enroll(  # noqa: PLR0913
    sources: Sequence[Path],
    engine: Engine,
    model: CheckpointInfo,
    *,
    spans: Sequence[Span] = (),
    mixture: Path | None = None,
    channel: str = "mix",
    track: str | None = None,
    damaged: Damaged = "fail",
) -> Voice:
    """Embed one voice from clips, folders of clips, profiles and spans, weighted by their speech.

    A clip over 10 s is cut to its speech, of at most 60 s; a shorter one only loses silence at its
    ends. Only 10 min of a clip are read, from its first speech on.

    Args:
        sources: all of one person.
        engine: of `model`.
        model: what profiles must be for.
        spans: stretches of `mixture` where the voice is alone.
        mixture: the recording that `spans` are of.
        channel: of the mixture: "mix" or a channel's number from 0; "all" means the mix.
        track: of the mixture: the number, from 1, or the language of a sound track.
        damaged: "keep" takes what can be read of a damaged mixture.

    Raises:
        AudioError: a clip or span cannot be read, is silent or shorter than 0.3 s; there is none.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    voices = []
    for path in list_sources(sources):
        if is_profile_name(path):
            profile = read_profile(path)
            known = profile.enrolment_for(model, path)
            voices.append(
                Voice(known.embedding, profile.qualities, known.seconds, (), (str(path),))
            )
        else:
            samples, clipped = read_clip(path, engine.sample_rate_hz)
            clip = Clip.measure(str(path), samples, engine.sample_rate_hz, clipped)
            voices.append(embed_clip(clip, engine))
    if spans and mixture:
        cuts = read_spans(mixture, spans, engine.sample_rate_hz, channel, track, damaged)
        voices += [embed_clip(clip, engine) for clip in cuts]
    return join_voices(voices, engine.calibration)


def embed_clip(clip: Clip, engine: Engine) -> Voice:
    """Embed one clip.

    Raises:
        EngineError: as `Engine.embed`.
    """
    used, two_voices = clip.trimmed(), None
    if calibration := engine.calibration:
        similarity = similarity_of_parts(clip, engine, calibration)
        if similarity is not None:
            two_voices = similarity < calibration.same_voice_parts
    quality = measure_quality(clip, len(used) / clip.sample_rate_hz, two_voices)
    seconds = min(max(_MIN_WEIGHT_S, quality.speech_s), LONGEST_USED_S)
    return Voice(engine.embed([used]), (quality,), seconds, (), (clip.name,))


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
    warnings = [quality.warning for quality in qualities if quality.warning]
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


def check_sources(sources: Iterable[Path], model: CheckpointInfo) -> None:
    """Read headers only, to refuse before any work what cannot be enrolled.

    Args:
        sources: of `list_sources`.
        model: what profiles must be for.

    Raises:
        AudioError: a clip is not a sound file.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    for path in sources:
        if is_profile_name(path):
            read_profile(path).enrolment_for(model, path)
        else:
            audio.probe(path)


def read_clip(path: Path, sample_rate_hz: int) -> tuple[Samples, float]:
    """Read a clip, of a long one 10 min from its first speech on.

    Returns:
        [sample] at the rate asked for, and the share of its samples that are clipped, counted at
        the file's own rate.

    Raises:
        AudioError: it cannot be read.
    """
    longest = round(LONGEST_READ_S / audio.BLOCK_S)
    kept: list[Samples] = []
    beginning: list[Samples] = []
    """The first 10 min, in case there is no speech in all of the file."""
    reader = audio.Reader(path)
    for block in reader:
        kept.append(block)
        if len(kept) == longest:
            beginning = beginning or kept
            first = _first_with_speech(kept, reader.sample_rate_hz)
            if first == 0:
                break
            kept = kept[first:]
    rate_hz = reader.sample_rate_hz
    if beginning:
        kept = kept[_first_with_speech(kept, rate_hz) :] or beginning
    clipped = sum(_count_clipped(block[0]) for block in kept)
    frames = sum(block.shape[1] for block in kept)
    blocks = audio.Resampler(rate_hz, sample_rate_hz, 1).run(kept)
    return np.concatenate(list(blocks), axis=-1)[0], clipped / max(1, frames)


def read_spans(
    path: Path,
    spans: Sequence[Span],
    sample_rate_hz: int,
    channel: str = "mix",
    track: str | None = None,
    damaged: Damaged = "fail",
) -> Iterator[Clip]:
    """Cut spans out of a recording of any length. Memory is that of the spans.

    Of a span, at most 10 min are read. It may reach half a second over the end of the file.

    Args:
        path: the recording, which is read up to the end of the last span.
        spans: in any order. They may overlap. Their times are the container's, as players show
            them: the sound of a video may begin late.
        sample_rate_hz: of the clips.
        channel: "mix" or a channel's number from 0; "all" means the mix.
        track: the number, from 1, or the language of a sound track.
        damaged: "keep" takes what can be read of a damaged recording.

    Yields:
        A clip for each span, called "FILE 12.0-18.5 s".

    Raises:
        AudioError: the file cannot be read or ends before a span does; a span is silent.
    """
    info = audio.probe(path, track)
    rate_hz, start_s = info.sample_rate_hz, info.start_s
    for span in spans:
        _check_end(path, span, start_s + info.seconds, "ends")
    bounds = [
        (
            round((s.start_s - start_s) * rate_hz),
            round((min(s.end_s, s.start_s + LONGEST_READ_S) - start_s) * rate_hz),
        )
        for s in spans
    ]
    cuts: list[list[Samples]] = [[] for _ in spans]
    at, last = 0, max((end for _, end in bounds), default=0)
    channel = "mix" if channel == "all" else channel
    for block in audio.Reader(path, rate_hz, channel, track=track, damaged=damaged):
        for pieces, (start, end) in zip(cuts, bounds, strict=True):
            piece = block[:, max(0, start - at) : max(0, end - at)]
            if piece.size:
                pieces.append(piece.copy())
        at += block.shape[1]
        if at >= last:
            break
    for span, pieces in zip(spans, cuts, strict=True):
        _check_end(path, span, math.inf if at >= last else start_s + at / rate_hz, "its sound ends")
        if not pieces:
            raise AudioError(f"{path}: its sound begins at {start_s:.2f} s, after the span {span}.")
        resampler = audio.Resampler(rate_hz, sample_rate_hz, 1)
        samples = np.concatenate(list(resampler.run(pieces)), axis=-1)[0]
        clip = Clip.measure(f"{path} {span}", samples, sample_rate_hz)
        if not clip.activity.any():
            raise AudioError(f"{clip.name}: has no speech. Choose another span.")
        yield clip


def measure_quality(clip: Clip, used_s: float, two_voices: bool | None) -> ReferenceQuality:
    """Measure how good a clip is, and warn of what is worst about it.

    Little speech in one clip is not a reason to warn: see `join_voices`.

    Args:
        clip: the clip.
        used_s: how much of it trimming left.
        two_voices: whether its parts sound like two people; None if that cannot be told.
    """
    speech = clip.speech()
    speech_db = _mean_db(clip.levels_db[speech])
    snr_db = _snr_db(clip.levels_db, speech, speech_db)
    reason = None
    if two_voices:
        reason = "sounds like two voices. Give clips, or spans, of one voice alone."
    elif clip.clipped > MAX_CLIPPED:
        share = f"{100 * clip.clipped:.1f} %"
        reason = f"{share} of its samples are clipped. Record it with less gain."
    elif snr_db is not None and snr_db < MIN_SNR_DB:
        reason = f"noise only {snr_db:.0f} dB below the speech. Take a cleaner clip."
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


def _check_end(path: Path, span: Span, seconds: float, ends: str) -> None:
    """Refuse a span that is not in so many seconds."""
    needed_s = span.start_s + MIN_SIGNAL_S if math.isinf(span.end_s) else span.end_s - _SLACK_S
    if seconds < max(needed_s, span.start_s + MIN_SIGNAL_S):
        at = f" at {seconds:.2f} s" if ends == "ends" else ""
        raise AudioError(f"{path}: {ends}{at}, before the span {span} does.")


def _first_with_speech(blocks: Sequence[Samples], rate_hz: int) -> int:
    """The place of the first block with speech; their number if none has any.

    What is equally loud all the time is not taken for speech.
    """
    for place, block in enumerate(blocks):
        activity = detect_speech(frame_levels_db(block[0], rate_hz))
        if not activity.all() and smooth_activity(activity, _BURST_S, _SHORT_PAUSE_S).any():
            return place
    return len(blocks)


def _count_clipped(samples: Samples) -> int:
    """How many samples are at full scale, in runs of 3 or more."""
    at_full = np.abs(samples) >= _FULL_SCALE
    edges = np.diff(np.concatenate(([0], at_full.astype(np.int8), [0])))
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return int(runs[runs >= _CLIPPED_RUN].sum())


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


def _parse_time(parts: Sequence[str | None]) -> float | None:
    """Hours, minutes and seconds as seconds; infinity for none of them, None for no time."""
    if parts[2] is None:
        return math.inf
    hours, minutes, seconds = (float(part or 0) for part in parts)
    if (parts[1] is not None and seconds >= 60) or (parts[0] is not None and minutes >= 60):
        return None
    return 3600 * hours + 60 * minutes + seconds


def _plain(seconds: float) -> str:
    """Seconds with one decimal or as many as they have."""
    whole, _, digits = f"{seconds:.3f}".rstrip("0").partition(".")
    return f"{whole}.{digits or '0'}"
