"""Two-talker mixtures drawn on the fly from a corpus held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcspex_cli import audio, paths
from mcspex_cli.errors import ConfigError

_TRIES = 1000
"""Draws for a pair that does not say the same sentence."""


@dataclass(frozen=True)
class MixtureSettings:
    """What a drawn mixture may be; ranges are uniform."""

    segment_s: float = 3.0
    reference_s: tuple[float, float] = (1.5, 8.0)
    snr_db: tuple[float, float] = (-5.0, 5.0)
    level_db: tuple[float, float] = (-40.0, -18.0)


@dataclass(frozen=True)
class Batch:
    """One training step's signals."""

    mixture: Tensor
    """[batch, sample]"""
    target: Tensor
    """[batch, sample], zero where the target has no more to say"""
    reference: Tensor
    """[batch, sample], its length drawn once for the batch: references are never padded"""
    speaker: Tensor
    """[batch], the target's index among the corpus's speakers"""


@dataclass
class Speaker:
    """One talker's utterances, laid end to end in the corpus as a loop."""

    name: str
    start: int
    bounds: list[int] = field(default_factory=lambda: [0])
    """Where each utterance begins, from `start`; the last bound is the loop's length."""
    sentences: list[str] = field(default_factory=list)
    """Each utterance's file stem; equal stems are taken for equal sentences."""


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

    def sentences(self) -> set[str]:
        """Stems of the utterances that it touches."""
        names = self.speaker.sentences
        return {names[k % len(names)] for k in range(self.first, self.last + 1)}


class Corpus:
    """Every utterance as 16-bit samples in one tensor, with who says what where."""

    def __init__(self, samples: Tensor, speakers: list[Speaker], sample_rate_hz: int) -> None:
        self.samples, self.speakers, self.sample_rate_hz = samples, speakers, sample_rate_hz

    @classmethod
    def read(cls, folders: Sequence[Path], sample_rate_hz: int) -> Corpus:
        """Decode `.../SPEAKER/*.{wav,flac,ogg,...}` under each folder, once.

        Raises:
            ConfigError: a folder is missing, or fewer than two speakers have two utterances.
            AudioError: a file cannot be read.
        """
        pieces: list[npt.NDArray[np.int16]] = []
        speakers: list[Speaker] = []
        at = 0
        for name, files in _by_speaker(folders).items():
            speaker = Speaker(name, at)
            for path in files:
                sound = audio.read(path, sample_rate_hz)
                pieces.append(np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16))
                speaker.bounds.append(speaker.bounds[-1] + len(sound))
                speaker.sentences.append(path.stem)
            at += speaker.bounds[-1]
            speakers.append(speaker)
        if len(speakers) < 2:
            raise ConfigError("training needs two speakers or more with two utterances each.")
        return cls(torch.from_numpy(np.concatenate(pieces)), speakers, sample_rate_hz)

    @property
    def seconds(self) -> float:
        """Length of all the speech."""
        return len(self.samples) / self.sample_rate_hz


class MixtureSampler:
    """Draws batches; the same generator state gives the same batch.

    The plan is made on the CPU, a few numbers for each signal; the samples are gathered,
    scaled and summed where the corpus lies, which may be a GPU.
    """

    def __init__(self, corpus: Corpus, settings: MixtureSettings) -> None:
        self.corpus, self.settings = corpus, settings

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """Draw `size` mixtures of two different speakers."""
        length, reference_length = self._lengths(rng)
        plans = [self._pair(length, rng) for _ in range(size)]
        target = self._gather([t for _, t, _, _ in plans], length)
        interferer = self._gather([i for _, _, i, _ in plans], length)
        reference = self._gather([r for _, _, _, r in plans], reference_length)
        snr = self._uniform(self.settings.snr_db, size, rng)
        interferer = interferer * gain_for_snr(target, interferer, snr)
        mixture = target + interferer
        scale = self._gain_for_level(mixture, rng)
        reference = reference * self._gain_for_level(reference, rng)
        speaker = torch.tensor([s for s, _, _, _ in plans], device=mixture.device)
        return Batch(mixture * scale, target * scale, reference, speaker)

    def _lengths(self, rng: np.random.Generator) -> tuple[int, int]:
        """Samples of the mixtures and of the references."""
        rate = self.corpus.sample_rate_hz
        return round(self.settings.segment_s * rate), round(
            rng.uniform(*self.settings.reference_s) * rate
        )

    def _pair(self, length: int, rng: np.random.Generator) -> tuple[int, Arc, Arc, Arc]:
        """A target's index, its arc, an interferer's and the reference's."""
        speakers = self.corpus.speakers
        who, other = rng.choice(len(speakers), 2, replace=False)
        for _ in range(_TRIES):
            target = _arc(speakers[who], length, rng)
            interferer = _arc(speakers[other], length, rng)
            if not target.sentences() & interferer.sentences():
                return int(who), target, interferer, _rest(target, rng)
            other = (who + rng.integers(1, len(speakers))) % len(speakers)
        raise ConfigError(
            f"{speakers[who].name}: all others have files of the same names, which are taken for "
            "the same sentences and never mixed. Rename them, or shorten segment_s."
        )

    def _gather(self, arcs: Sequence[Arc], length: int) -> Tensor:
        """The arcs' samples [batch, sample] in -1..1."""
        where = self.corpus.samples.device

        def column(values: list[int]) -> Tensor:
            """A number for each arc, [batch, 1]."""
            return torch.tensor(values, device=where).unsqueeze(1)

        step = torch.arange(length, device=where).unsqueeze(0)
        span = column([a.length for a in arcs])
        repeated = column([int(a.repeated) for a in arcs]).bool()
        heard = repeated | (step < span)
        loop = column([a.speaker.bounds[-1] for a in arcs])
        index = column([a.offset for a in arcs]) + torch.where(repeated, step % span, step)
        index = column([a.speaker.start for a in arcs]) + index % loop
        return self.corpus.samples[index].float() / 32768 * heard

    def _gain_for_level(self, signals: Tensor, rng: np.random.Generator) -> Tensor:
        """The gains [batch, 1] that bring `signals` [batch, sample] to random levels."""
        level = 10 ** (self._uniform(self.settings.level_db, len(signals), rng) / 20)
        return level / signals.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-4)

    def _uniform(self, span: tuple[float, float], size: int, rng: np.random.Generator) -> Tensor:
        """Uniform numbers [batch, 1] on the corpus's device."""
        drawn = rng.uniform(*span, size=(size, 1)).astype(np.float32)
        return torch.from_numpy(drawn).to(self.corpus.samples.device)


def gain_for_snr(target: Tensor, interferer: Tensor, snr_db: Tensor) -> Tensor:
    """The gain [batch, 1] that puts `interferer` `snr_db` below `target`, by energy."""
    ratio = target.square().sum(-1, keepdim=True) / interferer.square().sum(
        -1, keepdim=True
    ).clamp_min(1e-8)
    return (ratio / 10 ** (snr_db / 10)).sqrt()


def _by_speaker(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of every folder that has two sound files or more: a speaker each."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder of speakers.")
        for path in paths.find(folder):
            found.setdefault(str(path.parent), []).append(path)
    return {name: files for name, files in found.items() if len(files) > 1}


def _arc(speaker: Speaker, length: int, rng: np.random.Generator) -> Arc:
    """A random stretch of at most `length` that leaves one whole utterance untouched."""
    count, loop = len(speaker.sentences), speaker.bounds[-1]
    first = int(rng.integers(count))
    start, end = speaker.bounds[first], speaker.bounds[first + 1]
    # Late in the utterance only if what follows can still fill the segment.
    before = _bound(speaker, first + count - 1)
    latest = max(start, min(end - 1, before - length))
    offset = int(rng.integers(start, latest + 1))
    stop = min(offset + length, before)
    last = first
    while _bound(speaker, last + 1) < stop:
        last += 1
    return Arc(speaker, offset % loop, stop - offset, first, last)


def _rest(target: Arc, rng: np.random.Generator) -> Arc:
    """The utterances that `target` does not touch, from a random one of their samples on."""
    speaker = target.speaker
    count = len(speaker.sentences)
    start = _bound(speaker, target.last + 1)
    length = _bound(speaker, target.first + count) - start
    skip = int(rng.integers(length // 2 + 1))
    last = target.first + count - 1
    return Arc(speaker, start + skip, length - skip, target.last + 1, last, repeated=True)


def _bound(speaker: Speaker, utterance: int) -> int:
    """Where an utterance begins, counted on past the loop's end."""
    loops, index = divmod(utterance, len(speaker.sentences))
    return loops * speaker.bounds[-1] + speaker.bounds[index]
