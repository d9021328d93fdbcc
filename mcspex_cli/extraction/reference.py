"""From recordings of one person, or profiles, to a `Voice`.

```
clip ──▶ cut to its speech ──▶ embedded ──┐
  └──▶ quality                            ├──▶ Voice, weighted by speech
profile ──────────────────────────────────┘
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Real
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction import speech
from mcspex_cli.extraction.engine import Engine, is_inverted
from mcspex_cli.extraction.presence import Calibration, cosine
from mcspex_cli.extraction.profile import (
    Enrolment,
    Profile,
    ReferenceQuality,
    is_profile_name,
    read_profile,
)

LONGEST_READ_S = 600.0
"""How much of a clip is read, from its first speech on: memory must not grow with the clip."""

_LONG_CLIP_S = 10.0
"""A clip longer than this is cut to its speech; a shorter one only loses silence at its ends."""

LONGEST_USED_S = 60.0
"""How much of a clip's speech is embedded. More does not make the embedding better. A clip in which
no speech is found is embedded whole."""

_MIN_SPEECH_S = 1.5
"""With less speech in all, a target is not extracted well: with 1 s a decibel is lost, with 0.5 s
nearly everything."""

_MAX_CLIPPED_SHARE = 0.01

_MIN_SNR_DB = 5.0
"""White noise 5 dB below the speech costs 0.2 dB; noise as loud as the speech costs 0.6 dB."""

_MIN_RANGE_DB = 6.0
"""The range of the middle 90 % of the levels of frames with speech: in a quiet room it is 20 dB and
more. Of noise, all of which is taken for speech, it is 3 dB."""

_MIN_LEVEL_DB = -75.0
"""Speech below this has lost its detail in a 16-bit file. Above it, loudness does not matter."""

_LONG_PAUSE_S = 0.5  # pauses longer than this are cut out of a long clip
_SHORT_PAUSE_S = 0.2  # pauses longer than this are not counted as speech
_END_SILENCE_S = 1.0  # silence longer than this is cut off the ends of a short clip
_MARGIN_S = 0.1  # kept on both sides of speech, as the ends of words are quiet
_BURST_S = 0.05  # shorter sounds are not speech
_FULL_SCALE_SLACK = 0.005  # samples so near to full scale count as being at it
_SPAN_SLACK_S = 0.5  # a span may reach this far over the end of its file: players round lengths
_MIN_WEIGHT_S = 0.1  # the weight of a clip in which no speech is found

_PART_S = 1.5
"""A clip is compared with itself in parts this long, or longer if there would be too many."""

_MAX_PARTS = 16

_SECONDS = r"(?:[0-5]?\d(?:\.\d*)?|\.\d+)"
_TIME = rf"(?:\d+:[0-5]?\d:{_SECONDS}|\d+:{_SECONDS}|\d+(?:\.\d*)?|\.\d+)"
_SPAN = re.compile(rf"\s*({_TIME})\s*-\s*({_TIME}|)\s*", re.ASCII)
_LONGEST_TEXT = 100
_UNREAD = "{}: only {} are read, and of their speech no more than 60 s are used."


@dataclass(frozen=True)
class Span:
    """A stretch of a recording in which one person speaks alone.

    Raises:
        TypeError, ValueError: it ends before it starts, or a time is negative, NaN or no number.
    """

    start_s: float
    end_s: float
    """`math.inf` for the end of the recording."""

    def __post_init__(self) -> None:
        if not (isinstance(self.start_s, Real) and isinstance(self.end_s, Real)):
            times = f"{self.start_s!r:.40} and {self.end_s!r:.40}"
            raise TypeError(f"a span is of two numbers of seconds, not {times}")
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"a span cannot go from {self.start_s} to {self.end_s} s")

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read "12.0-18.5" in seconds, "0:12-0:18.5" with minutes, "1:02:03-1:02:09" or "8-".

        Raises:
            AudioError: it is not a span, ends before it starts, or is shorter than 0.3 s.
        """
        match = _SPAN.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
        if not match:
            raise AudioError(
                f"{text[:_LONGEST_TEXT]!r} is not a span. Write it like 12.0-18.5 or 0:12-0:18.5, "
                "or 12- (to the end)."
            )
        start_s, end_s = (_parse_time(time) if time else math.inf for time in match.groups())
        if end_s == start_s:
            raise AudioError(f"{text}: this span is empty. Give two different times.")
        if end_s < start_s:
            raise AudioError(f"{text}: this span ends before it starts. Swap the two times.")
        audio.check_length(text, round(end_s - start_s, 6))
        return cls(start_s, end_s)

    def __str__(self) -> str:
        """For messages: "12.0-18.5 s"."""
        end = "end" if math.isinf(self.end_s) else f"{round(float(self.end_s), 3)} s"
        return f"{round(float(self.start_s), 3)}-{end}"


def _parse_time(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


class Clip:
    """A reference as sound [sample], with what is measured of it only once.

    Args:
        clipped: the share of clipped samples, if it was counted in the file.
        warnings: what is wrong with its file though it can be read.

    Raises:
        AudioError: it is shorter than 0.3 s, or silent.
    """

    def __init__(
        self,
        name: str,
        samples: Samples,
        sample_rate_hz: int,
        clipped: float | None = None,
        warnings: Iterable[str] = (),
    ) -> None:
        self.name, self.sample_rate_hz, self.warnings = name, sample_rate_hz, tuple(warnings)
        self.seconds = len(samples) / sample_rate_hz
        audio.check_length(name, self.seconds)
        self.clipped = float(_clipped(samples[None]).mean()) if clipped is None else clipped
        blocks = list(audio.without_rumble([samples[None]], sample_rate_hz))
        self.samples: Samples = np.concatenate(blocks, axis=-1)[0]
        """[sample], without what is too low for a voice."""
        audio.check_level(name, float(np.mean(np.square(self.samples, dtype=np.float64))))
        self.levels_db = speech.frame_levels_db(self.samples, sample_rate_hz)
        activity = speech.detect_speech(self.levels_db)
        self.is_speech = speech.smooth_activity(activity, _BURST_S, _SHORT_PAUSE_S)
        """Whether there is speech [frame], pauses of 0.2 s left out."""
        self.speech_s = min(float(self.is_speech.sum()) * speech.FRAME_S, self.seconds)
        words = speech.smooth_activity(activity, _BURST_S, _LONG_PAUSE_S)
        self.stretches = speech.list_spans(words)
        """Its speech with pauses of up to 0.5 s: from and to, in seconds."""

    def trimmed(self) -> Samples:
        """The clip [sample] cut to its speech.

        Over 10 s long, its pauses over 0.5 s are cut out and the rest, up to 60 s, is joined;
        else silence over 1 s is cut off its ends. 0.1 s is kept around what stays. A clip
        without speech stays as it is, however long.
        """
        spans = self.stretches
        if not spans:
            return self.samples
        if self.seconds <= _LONG_CLIP_S:
            start_s, end_s = spans[0][0], spans[-1][1]
            start_s = start_s if start_s > _END_SILENCE_S else 0.0
            spans = [(start_s, end_s if self.seconds - end_s > _END_SILENCE_S else self.seconds)]
        return self._joined(spans, _MARGIN_S)

    def only_speech(self) -> Samples:
        """Its speech [sample] of up to 60 s, short pauses left out too."""
        return self._joined(speech.list_spans(self.is_speech), 0.0)

    def _joined(self, spans: Iterable[tuple[float, float]], margin_s: float) -> Samples:
        rate_hz, pieces = self.sample_rate_hz, [self.samples[:0]]
        for start_s, end_s in spans:
            start, end = round((start_s - margin_s) * rate_hz), round((end_s + margin_s) * rate_hz)
            pieces.append(self.samples[max(0, start) : end])
        joined: Samples = np.concatenate(pieces)
        return joined[: round(LONGEST_USED_S * rate_hz)]

    def similarity_of_parts(self, engine: Engine) -> float | None:
        """The mean similarity of any two parts of its speech.

        It is low if two people speak in turns. It is None with less than 3 s of speech, or without
        a calibration.
        """
        samples, calibration = self.only_speech(), engine.calibration
        count = min(_MAX_PARTS, int(len(samples) / (_PART_S * self.sample_rate_hz)))
        if count < 2 or calibration is None:
            return None
        length = len(samples) // count
        embeddings = engine.embed_parts(samples[: count * length].reshape(count, length))
        pairs = combinations(embeddings, 2)
        return float(np.mean([calibration.similarity(one, other) for one, other in pairs]))

    def quality(self, used_s: float, two_voices: bool | None) -> ReferenceQuality:
        """How good it is, with a warning of the first of the faults below that it has.

        `join_voices` warns of too little speech, since it knows all clips.
        """
        speech_levels_db, snr_db = self.levels_db[self.is_speech], self._snr_db()
        speech_db = _mean_db(speech_levels_db)
        # Of the speech alone: a long clip may be silent nearly throughout.
        range_db = math.inf
        if len(speech_levels_db):
            range_db = float(np.ptp(np.percentile(speech_levels_db, (5, 95))))
        reason = None
        if two_voices:
            reason = "sounds like two voices. Give clips, or spans, of one voice alone."
        elif self.clipped > _MAX_CLIPPED_SHARE:
            share = f"{100 * self.clipped:.1f} %"
            reason = f"{share} of its samples are clipped. Record it with less gain."
        elif snr_db is not None and snr_db < _MIN_SNR_DB:
            reason = f"noise only {snr_db:.0f} dB below the speech. Take a cleaner clip."
        elif self.seconds >= _MIN_SPEECH_S and range_db < _MIN_RANGE_DB:
            reason = "is equally loud throughout, as noise and tones are. Give a clip of speech."
        elif speech_db < _MIN_LEVEL_DB:
            reason = f"very quiet ({speech_db:.0f} dB). Turn it up."
        return ReferenceQuality(
            path=self.name,
            seconds=round(self.seconds, 3),
            used_s=round(used_s, 3),
            speech_s=round(self.speech_s, 3),
            level_db=round(speech_db, 1),
            clipped=round(self.clipped, 6),
            snr_db=snr_db,
            two_voices=two_voices,
            warning=f"{self.name}: {reason}" if reason else None,
        )

    def _snr_db(self) -> float | None:
        """The level of speech over that of noise; None without speech, or 0.2 s of pauses."""
        # Words fade: what is next to them is not a pause yet.
        near = np.convolve(self.is_speech, np.ones(11), "same")[: len(self.is_speech)] > 0.5
        speech_db, pauses_db = self.levels_db[self.is_speech], self.levels_db[~near]
        if len(pauses_db) < 20 or not len(speech_db):
            return None
        ratio = 10 ** ((_mean_db(speech_db) - _mean_db(pauses_db)) / 10) - 1
        return round(min(60.0, 10 * math.log10(max(ratio, 1e-3))), 1)


def _mean_db(levels_db: speech.FrameLevels) -> float:
    """The level of some frames together, no less than -120 dB."""
    power = float(np.mean(10 ** (levels_db / 10))) if len(levels_db) else 0.0
    return 10 * math.log10(max(power, 1e-12))


Pieces = list[tuple[Samples, float]]
"""Blocks [1, sample] of a recording, each with the share of its samples that are clipped."""


def read_clip(
    path: Path,
    sample_rate_hz: int,
    advance: Callable[[float], object] = lambda _: None,
) -> Clip:
    """Read a clip; of a long one, only 10 min from its first speech on.

    `advance` is called with the seconds of each block.

    Raises:
        AudioError: it cannot be read, is silent or shorter than 0.3 s.
    """
    reader = audio.Reader(path)
    kept: Pieces = []
    beginning: Pieces = []  # the first 10 min, in case there is no speech in all of the file
    part = ""  # what is read, if that is not all
    for block in reader:
        rate_hz = reader.sample_rate_hz
        advance(block.shape[1] / rate_hz)
        if _seconds(kept, rate_hz) >= LONGEST_READ_S:
            beginning = beginning or kept
            kept = _from_speech(kept, rate_hz)
            if (kept_s := _seconds(kept, rate_hz)) >= LONGEST_READ_S:
                start_s = (reader.frames - block.shape[1]) / rate_hz - kept_s
                part = f"the 10 min from {start_s:.1f} s on"
                break
        kept.append((block, float(_clipped(reader.original).mean())))
    if beginning and not part:
        kept = _from_speech(kept, reader.sample_rate_hz)
        if not kept:
            kept, part = beginning, "its first 10 min"
    if part:
        reader.warnings.append(_UNREAD.format(path, part))
    return _clip_of(str(path), kept, reader.sample_rate_hz, sample_rate_hz, reader.warnings)


def _seconds(pieces: Pieces, rate_hz: int) -> float:
    return sum(block.shape[1] for block, _ in pieces) / rate_hz


def read_spans(
    reader: audio.Reader,
    spans: Sequence[Span],
    sample_rate_hz: int,
    advance: Callable[[float], object] = lambda _: None,
) -> Iterator[Clip]:
    """Cut spans out of a recording of any length. Memory is that of the spans.

    Spans may be in any order, and overlap. Their times are the container's, as players show them:
    the sound of a video may begin late. At most 10 min of one are read. It may reach half a second
    over the end of the file. The reader has to be of one channel or the mix, at the file's own
    rate. `advance` is called with the seconds of each block.

    Yields:
        A clip for each span, called "FILE 12.0-18.5 s".

    Raises:
        AudioError: the file cannot be read or ends before a span does; a span is silent.
    """
    check_spans(reader, spans)
    rate_hz, begin_s = reader.info.sample_rate_hz, reader.info.start_s
    ends_s = [min(span.end_s, span.start_s + LONGEST_READ_S) for span in spans]
    bounds = [
        (round((span.start_s - begin_s) * rate_hz), round((end_s - begin_s) * rate_hz))
        for span, end_s in zip(spans, ends_s, strict=True)
    ]
    cuts: list[Pieces] = [[] for _ in spans]
    done, last = 0, max((end for _, end in bounds), default=0)
    for block in reader:
        advance(block.shape[1] / rate_hz)
        clipped = _clipped(reader.original if reader.channel == "mix" else block)
        for pieces, (start, end) in zip(cuts, bounds, strict=True):
            part = slice(max(0, start - done), max(0, end - done))
            if clipped[part].size:
                pieces.append((block[:, part].copy(), float(clipped[part].mean())))
        done += block.shape[1]
        if done >= last:
            break
    for span, end_s, pieces in zip(spans, ends_s, cuts, strict=True):
        if done < last:
            _check_end(reader.path, span, begin_s + done / rate_hz)
        name = f"{reader.path} {span}"
        warnings = reader.warnings if span is spans[0] else []  # each of them once
        if min(span.end_s, begin_s + reader.info.seconds) > end_s:
            warnings = [*warnings, _UNREAD.format(name, "its first 10 min")]
        clip = _clip_of(name, pieces, rate_hz, sample_rate_hz, warnings)
        if not clip.stretches:
            raise AudioError(f"{name}: has no speech. Choose another span.")
        yield clip


def check_spans(reader: audio.Reader, spans: Iterable[Span]) -> None:
    """Refuse spans that are not in a recording, by its header or, if need be, its measured length.

    Raises:
        AudioError: it ends before one does, or its sound begins after one does.
    """
    path, begin_s = reader.path, reader.info.start_s
    for span in spans:
        try:
            _check_end(path, span, begin_s + reader.info.seconds)
        except AudioError:
            reader.measure()
            _check_end(path, span, begin_s + reader.info.seconds)
        if span.end_s <= begin_s:
            raise AudioError(
                f"{path}: its sound begins at {begin_s:.2f} s, after the span {span}. Choose "
                "another span."
            )


def _check_end(path: Path, span: Span, end_s: float) -> None:
    """Refuse a span of a recording that ends before it, or leaves too little of it."""
    ends, needed_s = f"{path}: ends at {end_s:.2f} s,", span.start_s + audio.MIN_SIGNAL_S
    if end_s < span.end_s - _SPAN_SLACK_S and not math.isinf(span.end_s):
        raise AudioError(f"{ends} before the span {span} does. Choose another span.")
    if end_s < needed_s:
        raise AudioError(
            f"{ends} but the span {span} needs {needed_s:.2f} s or more. Choose another span."
        )


def _clip_of(name: str, pieces: Pieces, from_hz: int, to_hz: int, warnings: Iterable[str]) -> Clip:
    blocks, shares = zip(*pieces, strict=True)
    clipped = np.average(shares, weights=[block.shape[1] for block in blocks])
    samples = np.concatenate([*audio.Resampler(from_hz, to_hz, 1).run(blocks)], axis=-1)[0]
    return Clip(name, samples, to_hz, float(clipped), warnings)


def _from_speech(pieces: Pieces, rate_hz: int) -> Pieces:
    """The pieces from the first with speech on; none if no piece has any.

    A piece that is equally loud throughout does not count as speech.
    """
    for index, (block, _) in enumerate(pieces):
        audible = block[0] - block[0].mean()  # an offset is not heard
        activity = speech.detect_speech(speech.frame_levels_db(audible, rate_hz))
        if not activity.all() and speech.smooth_activity(activity, _BURST_S, _SHORT_PAUSE_S).any():
            return pieces[index:]
    return []


def _clipped(samples: Samples) -> npt.NDArray[np.bool_]:
    """Which samples [channel, sample] are clipped in any channel, in runs of 3 or more.

    Floats may be beyond full scale. They are clipped only where they stand at one level.
    """
    levels = np.abs(samples)
    levels[np.abs(levels - 1) <= _FULL_SCALE_SLACK] = 1
    same = (levels[:, 1:] == levels[:, :-1]) & (levels[:, 1:] >= 1)
    runs: npt.NDArray[np.bool_] = np.any(same[:, 1:] & same[:, :-1], axis=0)
    clipped = np.zeros(samples.shape[1], np.bool_)
    for shift in range(3):
        clipped[shift : shift + len(runs)] |= runs
    return clipped


@dataclass(frozen=True, eq=False)
class Voice:
    """A person's voice, as one model embeds it."""

    embedding: Samples
    """[embedding]."""
    qualities: tuple[ReferenceQuality, ...]
    """Of each clip, also of those that a profile was made of."""
    seconds: float
    """How much speech it was made of."""
    warnings: tuple[str, ...]
    """What is wrong with its clips, a line each."""
    sources: tuple[str, ...]
    """The clips, spans and profiles that it was made of, as messages name them."""
    model_sha256: str = ""
    """Of the weights of the model that embedded it; empty if that is not known."""
    folder: str = ""
    """The working folder that relative `sources` start from."""

    def enrolment(self, model: CheckpointInfo) -> Enrolment:
        """What a profile keeps of it."""
        seconds = round(self.seconds, 3)
        return Enrolment(model.name, model.revision, model.sha256, seconds, self.embedding)


def enroll(
    sources: Iterable[Path | Clip],
    engine: Engine,
    model: CheckpointInfo,
    advance: Callable[[float], object] = lambda _: None,
) -> Voice:
    """Make a voice of clips, folders of clips and profiles, weighted by their speech.

    What is there twice, under one name or two, counts once, with a warning. `advance` is called
    with the seconds of each block that is read, and with 0 before each source.

    Raises:
        AudioError: a clip cannot be read, is silent or shorter than 0.3 s; there is none.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    listed: list[Path | Clip] = []
    for source in sources:
        listed += list_sources([source]) if isinstance(source, Path) else [source]
    voices: list[Voice] = []
    warnings: list[str] = []
    names: dict[object, str] = {}
    for one in listed:
        name = one.name if isinstance(one, Clip) else str(one)
        keys = {name} if isinstance(one, Clip) else files.identities(one)
        if first := next((names[key] for key in keys if key in names), None):
            same = "is there twice" if first == name else f"is the same file as {first}"
            warnings.append(f"{name}: {same}, and counts once.")
            continue
        names |= dict.fromkeys(keys, name)
        advance(0.0)
        if isinstance(one, Path) and is_profile_name(one):
            profile = read_profile(one)
            enrolment = profile.enrolment_for(model, one)
            voice = Voice(enrolment.embedding, profile.qualities, enrolment.seconds, (), (name,))
        else:
            clip = one if isinstance(one, Clip) else read_clip(one, engine.sample_rate_hz, advance)
            voice = embed_clip(clip, engine, _mean(voices) if voices else None)
        voices.append(voice)
    voice = join_voices(voices, engine.calibration)
    return replace(
        voice,
        warnings=(*warnings, *voice.warnings),
        model_sha256=model.sha256,
        folder=files.working_folder(),
    )


def embed_clip(clip: Clip, engine: Engine, others: Samples | None = None) -> Voice:
    """Embed one clip, of whose speech 0.3 s or more must be left after trimming.

    Its polarity is inverted if that makes it more similar to the embedding of the `others`
    [embedding]: one person's clips may be from several microphones. See `engine.Polarity`.
    """
    used, two_voices = clip.trimmed(), None
    similarity = clip.similarity_of_parts(engine)
    if similarity is not None and engine.calibration:
        two_voices = similarity < engine.calibration.same_voice_parts
    quality = clip.quality(len(used) / clip.sample_rate_hz, two_voices)
    seconds = min(max(_MIN_WEIGHT_S, quality.speech_s), LONGEST_USED_S)
    embedding = engine.embed([used], f"{clip.name}: its speech")
    if others is not None:
        inverse = engine.embed([-used])
        if is_inverted(cosine(inverse, others), cosine(embedding, others)):
            embedding = inverse
    return Voice(embedding, (quality,), seconds, clip.warnings, (clip.name,))


def join_voices(voices: Sequence[Voice], calibration: Calibration | None = None) -> Voice:
    """Join voices of one person, each weighted by its seconds of speech.

    Besides their own warnings there are those of too little speech, of a clip that is in a profile
    and there again and, with a calibration, of voices that do not sound like the others.
    """
    if not voices:
        raise AudioError("no reference was given. Name a clip of the voice alone.")
    seconds = sum(voice.seconds for voice in voices)
    qualities = tuple(quality for voice in voices for quality in voice.qualities)
    sources = tuple(source for voice in voices for source in voice.sources)
    warnings = [warning for voice in voices for warning in voice.warnings]
    warnings += [quality.warning for quality in qualities if quality.warning]
    if seconds < _MIN_SPEECH_S:
        short = f"only {seconds:.1f} s of speech. Give 3 s or more for a better result."
        warnings.insert(0, short)
    warnings += _find_doubles(voices)
    outliers = _find_outliers(voices, calibration) if calibration else []
    if outliers and len(voices) == 2:
        both = " and ".join(sources)
        warnings.append(f"{both} do not sound like one voice. Give clips of one person.")
    elif outliers:
        do = "does" if len(outliers) == 1 else "do"
        names = ", ".join(" and ".join(voice.sources) for voice in outliers)
        warnings.append(f"{names} {do} not sound like the other clips. Give clips of one person.")
    return Voice(_mean(voices).astype(np.float32), qualities, seconds, tuple(warnings), sources)


def _find_doubles(voices: Iterable[Voice]) -> Iterator[str]:
    """A warning for each two voices, of which one is a profile's, that have a clip in common."""
    clips: dict[ReferenceQuality, Voice] = {}
    for voice in voices:
        for quality in voice.qualities:
            # A profile has the name without folders, but the same measurements.
            clip = replace(quality, path="", two_voices=None, warning=None)
            both = (*clips.setdefault(clip, voice).sources, *voice.sources)
            if len({*both}) > 1 and any(is_profile_name(Path(one)) for one in both):
                yield (
                    f"{' and '.join(both)} have a clip in common ({Path(quality.path).name}), "
                    "which counts twice. Leave one of them out."
                )
                break


def _find_outliers(voices: Sequence[Voice], calibration: Calibration) -> list[Voice]:
    """The voices that are not similar to the rest, the least similar one first."""
    rest, outliers = list(voices), []

    def similarity(index: int) -> float:
        return calibration.similarity(
            rest[index].embedding, _mean(rest[:index] + rest[index + 1 :])
        )

    while len(rest) > 1:
        worst = min(range(len(rest)), key=similarity)
        if similarity(worst) >= calibration.same_voice_clips:
            break
        outliers.append(rest.pop(worst))
    return outliers


def _mean(voices: Sequence[Voice]) -> Samples:
    """The mean of the voices' embeddings, [embedding], weighted by seconds of speech."""
    weights = [voice.seconds for voice in voices]
    return np.average([voice.embedding for voice in voices], axis=0, weights=weights)


def list_sources(sources: Iterable[Path]) -> list[Path]:
    """Replace each folder among sources by the sound files in it, however deep.

    Raises:
        AudioError: a source does not exist, or a folder has no sound files.
    """
    listed: list[Path] = []
    for source in sources:
        files.check_exists(source)
        clips = files.find(source) if source.is_dir() else [source]
        if not clips:
            raise AudioError(f"{source}: no sound files in this folder. Name a clip or a profile.")
        listed += clips
    return listed


def check_references(sources: Iterable[Path], *models: CheckpointInfo) -> dict[Path, Profile]:
    """Read profiles and the headers of clips; refuse what cannot be enrolled for each of `models`.

    Returns:
        The profiles, by their paths.

    Raises:
        AudioError: a clip is not a sound file, or too short.
        CheckpointError: a profile cannot be used, or is for other models.
    """
    profiles: dict[Path, Profile] = {}
    for path in sources:
        if is_profile_name(path):
            profiles[path] = profile = read_profile(path)
            for model in models:
                profile.enrolment_for(model, path)
        else:
            audio.Reader(path, shortest_s=audio.MIN_SIGNAL_S).check()
    return profiles
