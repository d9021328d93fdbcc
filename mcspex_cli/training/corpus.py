"""Every utterance of the training speakers in one tensor, and stretches cut from it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcspex_cli import audio
from mcspex_cli.errors import AudioError, ConfigError
from mcspex_cli.training.clips import Clip, GivenMixture, is_librimix, list_clips, list_mixtures

LEAST_HALF_S = 1.0
"""The only clip of a speaker is cut in two, one half for the reference, if they are this long."""

Place = tuple[int, int]
"""An utterance in a corpus: its speaker's index and its own among the speaker's."""


@dataclass
class Speaker:
    """One talker's utterances, laid end to end in the corpus as a loop."""

    name: str
    start: int
    bounds: list[int] = field(default_factory=lambda: [0])
    """Where each utterance begins, from `start`; the last bound is the loop's length."""
    sentences: list[str] = field(default_factory=list)
    """What each utterance says; never mixed with another that says the same."""

    def bound(self, utterance: int) -> int:
        """Where an utterance begins, counted on past the loop's end."""
        loops, index = divmod(utterance, len(self.sentences))
        return loops * self.bounds[-1] + self.bounds[index]


@dataclass(frozen=True)
class Arc:
    """A stretch of a speaker's loop: `length` samples from `start` (corpus) + `offset`."""

    speaker: Speaker
    offset: int
    length: int
    first: int
    """The utterance it begins in."""
    last: int
    """The utterance it ends in, counted on past the loop's end."""
    repeated: bool = False
    """Whether it starts over where it is too short; otherwise silence follows."""
    speed: float = 1.0
    """How much faster (and higher) than recorded it is heard."""

    def sentences(self) -> set[str]:
        """What the utterances that it touches say."""
        names = self.speaker.sentences
        return {names[k % len(names)] for k in range(self.first, self.last + 1)}


class Corpus:
    """Every utterance as 16-bit samples in one tensor, with who says what where."""

    def __init__(
        self,
        samples: Tensor,
        speakers: list[Speaker],
        sample_rate_hz: int,
        pairs: Sequence[tuple[Place, Place]] = (),
    ) -> None:
        self.samples, self.speakers, self.sample_rate_hz = samples, speakers, sample_rate_hz
        self.pairs = pairs
        """Given mixtures: target and interferer, each talker with a reference in either role."""

    @classmethod
    def read(cls, folders: Sequence[Path], sample_rate_hz: int, *, given: bool = False) -> Corpus:
        """Decode the clips under each folder (see `list_clips`), once.

        A speaker with a single clip has it cut in two; one whose clip is too short for
        that is left out.

        Args:
            folders: trees of speakers.
            sample_rate_hz: the rate to hold them at.
            given: also note which talkers are mixed in LibriMix sets, as `pairs`.

        Raises:
            ConfigError: a folder is missing or empty, or is no LibriMix set and `given` is
                set; or fewer than two speakers (one, if given) have two utterances.
            AudioError: a file cannot be read.
        """
        for folder in folders:
            if given and folder.is_dir() and not is_librimix(folder):
                raise ConfigError(f"{folder}: not a LibriMix set, so it gives no mixtures.")
        loops = _Loops(sample_rate_hz, halve=not given)
        with ThreadPoolExecutor() as pool:
            for name, clips in _by_speaker(list_clips(folders), given).items():
                decoded = pool.map(lambda clip: _decode(clip.path, sample_rate_hz), clips)
                loops.add(name, clips, list(decoded))
        if len(loops.speakers) < 2:
            raise ConfigError(
                f"{', '.join(map(str, folders))}: two speakers or more are needed, with two files "
                f"each or one of {2 * LEAST_HALF_S:g} s. Add speakers."
            )
        pairs = loops.pairs([m for folder in folders if given for m in list_mixtures(folder)])
        if given and not pairs:
            raise ConfigError(f"{folders[0]}: no talker has a second utterance for a reference.")
        samples = torch.from_numpy(np.concatenate(loops.pieces))
        if not samples.any():
            raise ConfigError(f"{', '.join(map(str, folders))}: all of it is silent.")
        return cls(samples, loops.speakers, sample_rate_hz, pairs)

    @property
    def seconds(self) -> float:
        """Length of all the speech."""
        return len(self.samples) / self.sample_rate_hz

    def gather(self, arcs: Sequence[Arc], length: int) -> Tensor:
        """The arcs' samples [arc, sample] in -1..1, each at its speed, where the corpus lies."""
        speeds = sorted({arc.speed for arc in arcs})
        if speeds == [1.0]:
            return self._take(arcs, length)
        gathered = torch.zeros(len(arcs), length, device=self.samples.device)
        for speed in speeds:
            rows = [row for row, arc in enumerate(arcs) if arc.speed == speed]
            taken = self._take([arcs[row] for row in rows], round(length * speed))
            gathered[rows] = taken if speed == 1 else stretch(taken, length)
        return gathered

    def _take(self, arcs: Sequence[Arc], length: int) -> Tensor:
        """The arcs' first `length` samples as recorded."""
        numbers = [
            (a.speaker.start, a.speaker.bounds[-1], a.offset, a.length, int(a.repeated))
            for a in arcs
        ]
        columns = torch.tensor(numbers).to(self.samples.device, non_blocking=True).T
        start, loop, offset, span, repeated = columns.unsqueeze(-1)
        step = torch.arange(length, device=self.samples.device).unsqueeze(0)
        heard = repeated.bool() | (step < span)
        step = torch.where(repeated.bool(), step % span.clamp_min(1), step)
        taken: Tensor = self.samples[start + (offset + step) % loop].float() / 32768 * heard
        return taken

    @cached_property
    def spectrum(self) -> Tensor:
        """The long-term average power of speech [bin], 0 Hz to half the rate, mean 1."""
        frame = 1024
        starts = torch.linspace(0, max(0, len(self.samples) - frame), 2000).long()
        index = starts[:, None] + torch.arange(frame)
        frames = self.samples[(index % len(self.samples)).to(self.samples.device)].float()
        window = torch.hann_window(frame, device=frames.device)
        power = torch.fft.rfft(frames * window).abs().square().mean(0)
        relative: Tensor = power / power.mean().clamp_min(1e-8)
        return relative


class _Loops:
    """Speakers in the making: their utterances, one after another."""

    def __init__(self, sample_rate_hz: int, *, halve: bool) -> None:
        self.least_half = round(LEAST_HALF_S * sample_rate_hz) if halve else None
        self.pieces: list[npt.NDArray[np.int16]] = []
        self.speakers: list[Speaker] = []
        self.places: dict[Path, Place] = {}
        """What a file has become."""

    def add(self, name: str, clips: list[Clip], sounds: list[npt.NDArray[np.int16]]) -> None:
        """Lay a speaker's clips behind the speakers before, unless there is too little."""
        sentences = [clip.sentence for clip in clips]
        if len(clips) == 1 and self.least_half is not None:
            if len(sounds[0]) < 2 * self.least_half:
                return
            sounds = np.array_split(sounds[0], 2)
            sentences = [f"{sentences[0]}/{half}" for half in (1, 2)]
        start = self.speakers[-1].start + self.speakers[-1].bounds[-1] if self.speakers else 0
        bounds = np.cumsum([0, *map(len, sounds)]).tolist()
        for utterance, clip in enumerate(clips):
            self.places[clip.path] = len(self.speakers), utterance
        self.speakers.append(Speaker(name, start, bounds, sentences))
        self.pieces += sounds

    def pairs(self, mixtures: list[GivenMixture]) -> list[tuple[Place, Place]]:
        """Each given mixture once for each talker who says something else elsewhere."""
        pairs = []
        for mixture in mixtures:
            one, other = (self.places[clip.path] for clip in mixture.talkers)
            for target, interferer in ((one, other), (other, one)):
                if len(set(self.speakers[target[0]].sentences)) > 1:
                    pairs.append((target, interferer))
        return pairs


def stretch(signals: Tensor, length: int) -> Tensor:
    """Resample signals [..., sample] to `length` samples, band-limited, as if played slower.

    By cutting or padding the spectrum; a signal's two ends are taken to meet.
    """
    spectrum = torch.fft.rfft(signals)
    if length < signals.shape[-1]:
        spectrum = spectrum[..., : length // 2 + 1]
    stretched: Tensor = torch.fft.irfft(spectrum, n=length) * (length / signals.shape[-1])
    return stretched


def draw_arc(speaker: Speaker, length: int, speed: float, rng: np.random.Generator) -> Arc:
    """A random stretch, `length` samples at most as heard, that leaves one utterance untouched.

    Unless there is only one.
    """
    count, loop = len(speaker.sentences), speaker.bounds[-1]
    first = int(rng.integers(count))
    start, end = speaker.bounds[first], speaker.bounds[first + 1]
    needed = round(length * speed)
    # Late in the utterance only if what follows can still fill the segment.
    before = speaker.bound(first + max(1, count - 1))
    latest = max(start, min(end - 1, before - needed))
    offset = int(rng.integers(start, latest + 1))
    stop = min(offset + needed, before)
    last = first
    while speaker.bound(last + 1) < stop:
        last += 1
    return Arc(speaker, offset % loop, stop - offset, first, last, speed=speed)


def draw_reference(target: Arc, length: int, rng: np.random.Generator) -> Arc:
    """A stretch of the target's other utterances, none saying what the target says.

    From a random place in the first half of what there is, for `length` samples; it starts
    over where it is too short. As fast as the target.

    Raises:
        ConfigError: the speaker says nothing else.
    """
    speaker, said = target.speaker, target.sentences()
    count = len(speaker.sentences)
    others = range(target.last + 1, target.first + count)
    runs: list[list[int]] = []
    for utterance in others:
        if speaker.sentences[utterance % count] in said:
            continue
        if runs and runs[-1][-1] == utterance - 1:
            runs[-1].append(utterance)
        else:
            runs.append([utterance])
    if not runs:
        raise ConfigError(f"{speaker.name}: has no second utterance to take a reference from.")
    run = runs[int(rng.integers(len(runs)))]
    start = speaker.bound(run[0])
    whole = speaker.bound(run[-1] + 1) - start
    start += int(rng.integers(whole // 2 + 1))
    end = min(start + round(length * target.speed), speaker.bound(run[-1] + 1))
    touched = [k for k in run if speaker.bound(k + 1) > start and speaker.bound(k) < end]
    return Arc(speaker, start, end - start, touched[0], touched[-1], True, target.speed)


def _by_speaker(clips: Sequence[Clip], given: bool) -> dict[str, list[Clip]]:
    """Each speaker's clips; unless mixtures are given, only the last that says the same."""
    by_speaker: dict[str, dict[object, Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, {})[clip if given else clip.sentence] = clip
    return {name: list(own.values()) for name, own in by_speaker.items()}


def _decode(path: Path, sample_rate_hz: int) -> npt.NDArray[np.int16]:
    """A file as 16-bit samples."""
    sound = audio.read(path, sample_rate_hz)
    if not len(sound):
        raise AudioError(f"{path}: is too short to train on. Leave it out.")
    return np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
