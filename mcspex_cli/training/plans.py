"""What a mixture is to be: every random number in it, drawn before any signal is touched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mcspex_cli.errors import ConfigError
from mcspex_cli.training.acoustics import Room, draw_room
from mcspex_cli.training.corpus import Arc, Corpus, Place, Speaker, draw_arc, draw_reference
from mcspex_cli.training.settings import MixtureSettings

MOST_TALKERS = 3

_TRIES = 1000
"""Draws for talkers who do not say the same sentence."""

_BABBLERS = 6


@dataclass(frozen=True)
class Surroundings:
    """What a microphone adds to the talkers, drawn; nothing by default."""

    noise: str = ""
    noise_db: float = 0.0
    babblers: tuple[Arc, ...] = ()
    seed: int = 0
    """Of the noise."""
    room: Room | None = None
    highest_hz: float = 0.0
    """Of a narrow band; 0 where it is not."""
    lowest_hz: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All that is random about one mixture."""

    speaker: int
    target: Arc
    interferers: tuple[Arc, ...]
    """One or two."""
    reference: Arc
    snr_db: tuple[float, ...]
    """For each interferer; empty if the talkers are as loud as they were given."""
    target_speaks: tuple[float, float]
    """From and to, as shares of the segment."""
    interferers_speak: tuple[float, float]
    present: bool
    level_db: float
    reference_level_db: float
    around: Surroundings
    around_reference: Surroundings


class Planner:
    """Draws plans for mixtures of a corpus."""

    def __init__(self, corpus: Corpus, settings: MixtureSettings) -> None:
        self.corpus, self.settings = corpus, settings
        self.length = round(settings.segment_s * corpus.sample_rate_hz)
        self.pairs_of: dict[int, list[tuple[Place, Place]]] = {}
        """The given mixtures in which each speaker is the target."""
        for pair in corpus.pairs:
            self.pairs_of.setdefault(pair[0][0], []).append(pair)

    def draw(self, rng: np.random.Generator, reference_length: int, like: Plan | None) -> Plan:
        """Draw all that is random about one mixture.

        With `like`, the mixture is another one of that plan's target speaker, for the same
        reference, of which `reference_length` samples are used.
        """
        settings = self.settings
        given = bool(self.corpus.pairs)
        draw_talkers = self._given if given else self._drawn
        who, target, interferers = draw_talkers(rng, like)
        target_speaks, interferers_speak = self._turns(rng)
        return Plan(
            speaker=who,
            target=target,
            interferers=interferers,
            reference=like.reference if like else draw_reference(target, reference_length, rng),
            snr_db=() if given else tuple(rng.uniform(*settings.snr_db) for _ in interferers),
            target_speaks=target_speaks,
            interferers_speak=interferers_speak,
            present=bool(rng.random() >= settings.absent),
            level_db=rng.uniform(*settings.level_db),
            reference_level_db=rng.uniform(*settings.level_db),
            around=self._surroundings("", who, rng),
            around_reference=self._surroundings("reference_", who, rng),
        )

    def _drawn(
        self, rng: np.random.Generator, like: Plan | None
    ) -> tuple[int, Arc, tuple[Arc, ...]]:
        """A target's index, its arc, and those of one or two others who say something else."""
        settings, speakers = self.settings, self.corpus.speakers
        count = 1 + (len(speakers) > 2 and rng.random() < settings.third_talker)
        for _ in range(_TRIES):
            who = like.speaker if like else int(rng.integers(len(speakers)))
            speed = like.target.speed if like else self._speed(rng)
            target = draw_arc(speakers[who], self.length, speed, rng)
            if like and target.sentences() & like.reference.sentences():
                continue
            others = rng.choice(len(speakers) - 1, count, replace=False)
            others += others >= who
            arcs = [draw_arc(speakers[k], self.length, self._speed(rng), rng) for k in others]
            # Half a clip, "name/1", may say what another speaker's clip of that name says.
            said = [{name.partition("/")[0] for name in arc.sentences()} for arc in (target, *arcs)]
            if len(set.union(*said)) == sum(map(len, said)):
                return who, target, tuple(arcs)
        raise ConfigError(
            "speakers with files of equal names, which are taken for equal sentences, are never "
            f"mixed, and {_TRIES} draws found no others. Rename the files, or shorten segment_s."
        )

    def _given(
        self, rng: np.random.Generator, like: Plan | None
    ) -> tuple[int, Arc, tuple[Arc, ...]]:
        """A given mixture's target, from a random place on, and the interferer beside it."""
        pairs = self.corpus.pairs
        if like:
            said, avoided = like.target.speaker.sentences, like.reference.sentences()
            pairs = [p for p in self.pairs_of[like.speaker] if said[p[0][1]] not in avoided]
        (who, utterance), other = pairs[int(rng.integers(len(pairs)))]
        speaker = self.corpus.speakers[who]
        whole = speaker.bounds[utterance + 1] - speaker.bounds[utterance]
        skip = int(rng.integers(max(0, whole - self.length) + 1))
        target, interferer = (
            _part(self.corpus.speakers[index], said, skip, self.length)
            for index, said in ((who, utterance), other)
        )
        return who, target, (interferer,)

    def _speed(self, rng: np.random.Generator) -> float:
        """A voice's speed, in hundredths, so that equal ones are resampled together."""
        low, high = (round(100 * v) for v in self.settings.speed)
        return int(rng.integers(low, high + 1)) / 100

    def _turns(self, rng: np.random.Generator) -> tuple[tuple[float, float], tuple[float, float]]:
        """From when to when the target and the others speak: one of them may come late or end."""
        partial = rng.random() < self.settings.partial_overlap
        both = rng.uniform(*self.settings.overlap) if partial else 1.0
        short = (0.0, both) if rng.random() < 0.5 else (1.0 - both, 1.0)
        whole = (0.0, 1.0)
        return (short, whole) if rng.random() < 0.5 else (whole, short)

    def _surroundings(self, prefix: str, who: int, rng: np.random.Generator) -> Surroundings:
        """The mixture's surroundings (no prefix) or the reference's, by their probabilities."""
        settings, speakers = self.settings, self.corpus.speakers
        chances = [getattr(settings, prefix + name) for name in ("noise", "room", "narrow_band")]
        noisy, echoing, narrow = rng.random(3) < chances
        kind = str(rng.choice(settings.noise_kinds)) if noisy else ""
        count = _BABBLERS if kind == "babble" else 0
        babblers = (who + rng.integers(1, len(speakers), size=count)) % len(speakers)
        t60_s = rng.uniform(*settings.t60_s)
        return Surroundings(
            noise=kind,
            noise_db=rng.uniform(*settings.noise_db),
            babblers=tuple(
                replace(draw_arc(speakers[k], self.length, 1.0, rng), repeated=True)
                for k in babblers
            ),
            seed=int(rng.integers(2**31)),
            room=draw_room(t60_s, MOST_TALKERS, rng) if echoing else None,
            highest_hz=rng.uniform(*settings.band_hz) if narrow else 0.0,
            lowest_hz=rng.uniform(*settings.band_from_hz) if narrow else 0.0,
        )


def _part(speaker: Speaker, utterance: int, skip: int, length: int) -> Arc:
    """At most `length` samples of one utterance, from `skip` on."""
    start = speaker.bounds[utterance] + skip
    left = max(0, speaker.bounds[utterance + 1] - start)
    return Arc(speaker, start, min(length, left), utterance, utterance)
