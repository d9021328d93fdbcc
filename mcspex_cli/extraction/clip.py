"""A reference as sound: a clip or a span of a recording, read, and cut to its speech."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.containers import MIXTURE_ADVICE, Damaged
from mcspex_cli.errors import AudioError
from mcspex_cli.extraction.levels import (
    MIN_SIGNAL_S,
    Activity,
    FrameLevels,
    check_length,
    check_level,
    detect_speech,
    frame_levels_db,
    list_spans,
    smooth_activity,
)
from mcspex_cli.extraction.windows import without_rumble

LONGEST_READ_S = 600.0
"""Seconds of a clip that are looked at, from its first speech on: memory must not grow with it."""

LONG_CLIP_S = 10.0
"""A clip longer than this is cut to its speech; a shorter one only loses silence at its ends."""

LONGEST_USED_S = 60.0
"""Seconds of one clip that are embedded. More do not make a voice clearer."""

_LONG_PAUSE_S = 0.5  # pauses longer than this are cut out of a long clip
_SHORT_PAUSE_S = 0.2  # pauses longer than this are not counted as speech
_END_S = 1.0  # silence longer than this is cut off the ends of a short clip
_MARGIN_S = 0.1  # kept on both sides of speech, for what is quiet at the ends of words
_BURST_S = 0.05  # shorter sounds are not speech
_FULL_SCALE = 0.995  # samples from here on count as clipped, if they are not alone
_TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)"
_SPAN = re.compile(rf"\s*{_TIME}\s*-\s*(?:{_TIME})?\s*", re.ASCII)
_LONGEST_TEXT = 100
_LONG = "only {} are read, and of their speech no more than 60 s are used."
_SLACK_S = 0.5
"""A span may reach this far over the end of its file, as the lengths that programs show do."""


@dataclass(frozen=True)
class Span:
    """A stretch of a recording where one voice is alone."""

    start_s: float
    end_s: float
    """`math.inf` for the end of the recording."""

    def __post_init__(self) -> None:
        """Refuse times that are no span.

        Raises:
            ValueError: it ends before it starts, or a time is negative or NaN.
        """
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"a span from {self.start_s} to {self.end_s} s is none")

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
        if end_s == start_s:
            raise AudioError(f"{text}: this span is empty. Give two different times.")
        if end_s < start_s:
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
    speech: Activity
    """Whether there is speech [frame], pauses of 0.2 s left out."""
    stretches: Sequence[tuple[float, float]]
    """Its speech with pauses of up to 0.5 s: from and to, in seconds."""
    clipped: float
    """Share of its samples that are clipped."""
    warnings: tuple[str, ...] = ()
    """What is wrong with its file though it can be read."""

    @classmethod
    def measure(
        cls, name: str, samples: Samples, sample_rate_hz: int, clipped: float | None = None
    ) -> Clip:
        """Measure a clip [sample].

        Args:
            name: what messages call it.
            samples: at least 0.3 s.
            sample_rate_hz: of the samples.
            clipped: the share of clipped samples, if it was counted in the file.

        Raises:
            AudioError: it is shorter than 0.3 s, or silent.
        """
        check_length(name, len(samples) / sample_rate_hz)
        if clipped is None:
            clipped = float(_clipped(samples[None]).mean())
        samples = np.concatenate(list(without_rumble([samples[None]], sample_rate_hz)), axis=-1)[0]
        check_level(name, float(np.mean(np.square(samples, dtype=np.float64))))
        levels_db = frame_levels_db(samples, sample_rate_hz)
        activity = detect_speech(levels_db)
        speech = smooth_activity(activity, _BURST_S, _SHORT_PAUSE_S)
        stretches = list_spans(smooth_activity(activity, _BURST_S, _LONG_PAUSE_S))
        return cls(name, samples, sample_rate_hz, levels_db, speech, stretches, clipped)

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / self.sample_rate_hz

    def trimmed(self) -> Samples:
        """The clip [sample] cut to its speech.

        Over 10 s long, its pauses over 0.5 s are cut out and the rest, up to 60 s, is joined;
        else silence over 1 s is cut off its ends. 0.1 s is kept around what stays. A clip
        without speech, or with nothing to cut, stays as it is.
        """
        spans = self.stretches
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
        pieces = [self._piece(span, 0.0) for span in list_spans(self.speech)]
        joined: Samples = np.concatenate(pieces) if pieces else self.samples[:0]
        return joined[: round(LONGEST_USED_S * self.sample_rate_hz)]

    def _piece(self, span: tuple[float, float], margin_s: float) -> Samples:
        start, end = (
            round(s * self.sample_rate_hz) for s in (span[0] - margin_s, span[1] + margin_s)
        )
        return self.samples[max(0, start) : end]


def read_clip(
    file: Path | audio.Reader,
    sample_rate_hz: int,
    advance: Callable[[float], object] = lambda _: None,
) -> Clip:
    """Read a clip, of a long one 10 min from its first speech on.

    `advance` is called with the seconds of each block.

    Raises:
        AudioError: it cannot be read, is silent or shorter than 0.3 s.
    """
    longest = round(LONGEST_READ_S / audio.BLOCK_S)
    kept: list[Samples] = []
    beginning: list[Samples] = []
    """The first 10 min, in case there is no speech in all of the file."""
    clipped: list[float] = []
    """The share of clipped samples in each block that was read."""
    reader = file if isinstance(file, audio.Reader) else audio.Reader(file)
    path, warnings = reader.path, []
    for block in reader:
        advance(block.shape[1] / reader.sample_rate_hz)
        if len(kept) == longest:
            beginning = beginning or kept
            first = _first_with_speech(kept, reader.sample_rate_hz)
            if first == 0:
                start_s = _plain((len(clipped) - longest) * audio.BLOCK_S)
                warnings = [f"{path}: {_LONG.format(f'the 10 min from {start_s} s on')}"]
                break
            kept = kept[first:]
        kept.append(block)
        clipped.append(float(_clipped(reader.original).mean()))
    rate_hz, end = reader.sample_rate_hz, len(clipped)
    if beginning and not warnings:
        kept = kept[_first_with_speech(kept, rate_hz) :]
        if not kept:
            kept, end = beginning, longest
    blocks = audio.Resampler(rate_hz, sample_rate_hz, 1).run(kept)
    samples = np.concatenate(list(blocks), axis=-1)[0]
    share = np.average(clipped[end - len(kept) : end], weights=[len(one[0]) for one in kept])
    clip = Clip.measure(str(path), samples, sample_rate_hz, float(share))
    return replace(clip, warnings=(*reader.warnings, *warnings))


def read_spans(
    path: Path,
    spans: Sequence[Span],
    sample_rate_hz: int,
    channel: str = "mix",
    track: str | None = None,
    damaged: Damaged = "fail",
    advance: Callable[[float], object] = lambda _: None,
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
        advance: called with the seconds of each block.

    Yields:
        A clip for each span, called "FILE 12.0-18.5 s".

    Raises:
        AudioError: the file cannot be read or ends before a span does; a span is silent.
    """
    channel = "mix" if channel == "all" else channel
    reader = audio.Reader(path, None, channel, track=track, damaged=damaged, advice=MIXTURE_ADVICE)
    info = reader.info
    rate_hz, start_s = info.sample_rate_hz, info.start_s
    check_spans(path, spans, info)
    bounds = [
        (
            round((s.start_s - start_s) * rate_hz),
            round((min(s.end_s, s.start_s + LONGEST_READ_S) - start_s) * rate_hz),
        )
        for s in spans
    ]
    cuts: list[list[Samples]] = [[] for _ in spans]
    """The pieces of each span [2, sample]: its samples, and whether they are clipped."""
    at, last = 0, max((end for _, end in bounds), default=0)
    for block in reader:
        advance(block.shape[1] / rate_hz)
        original = reader.original if channel == "mix" else block
        both = np.concatenate([block, _clipped(original)[None].astype(np.float32)])
        for pieces, (start, end) in zip(cuts, bounds, strict=True):
            piece = both[:, max(0, start - at) : max(0, end - at)]
            if piece.size:
                pieces.append(piece.copy())
        at += block.shape[1]
        if at >= last:
            break
    for span, pieces in zip(spans, cuts, strict=True):
        _check_end(path, span, math.inf if at >= last else start_s + at / rate_hz, "its sound ends")
        resampler = audio.Resampler(rate_hz, sample_rate_hz, 1)
        samples, clipped = np.concatenate(pieces, axis=-1)
        samples = np.concatenate(list(resampler.run([samples[None]])), axis=-1)[0]
        clip = Clip.measure(f"{path} {span}", samples, sample_rate_hz, float(clipped.mean()))
        if not clip.stretches:
            raise AudioError(f"{clip.name}: has no speech. Choose another span.")
        is_cut = min(span.end_s, start_s + info.seconds) > span.start_s + LONGEST_READ_S
        yield (
            replace(clip, warnings=(f"{clip.name}: {_LONG.format('its first 10 min')}",))
            if is_cut
            else clip
        )


def check_spans(path: Path, spans: Iterable[Span], info: audio.AudioInfo) -> None:
    """Refuse spans that are not in a recording, by its header.

    Raises:
        AudioError: it ends before one does, or its sound begins after one does.
    """
    for span in spans:
        _check_end(path, span, info.start_s + info.seconds, "ends")
        if span.end_s <= info.start_s:
            raise AudioError(
                f"{path}: its sound begins at {info.start_s:.2f} s, after the span {span}."
            )


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


def _clipped(samples: Samples) -> npt.NDArray[np.bool_]:
    """Which of samples [channel, sample] any channel has at full scale, in runs of 3 or more."""
    full = np.abs(samples) >= _FULL_SCALE
    runs = full[:, :-2] & full[:, 1:-1] & full[:, 2:]
    clipped = np.zeros(samples.shape[1], np.bool_)
    for shift in range(3):
        clipped[shift : shift + runs.shape[1]] |= runs.any(axis=0)
    return clipped


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
