"""Mixtures drawn on the fly: what is random about each, then whole batches of signals."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcspex_cli.errors import ConfigError, EngineError, McspexError
from mcspex_cli.training import acoustics, data
from mcspex_cli.training.acoustics import Room
from mcspex_cli.training.data import (
    Corpus,
    NoiseFiles,
    NoiseStretch,
    RoomFiles,
    Stretch,
    UtteranceIndex,
    draw_reference,
    draw_stretch,
)
from mcspex_cli.training.settings import MixtureSettings

_MAX_TALKERS = 3

_TRIES = 1000
"""Draws for talkers who do not say the same sentence."""

_BABBLERS = 6

_RAMP_S = 0.02
"""How softly a talker starts or stops where the overlap is partial."""


@dataclass(frozen=True)
class Surroundings:
    """What a microphone adds to the talkers; nothing by default."""

    noise: str = ""
    """Of `settings.Noise`, or "file"."""
    noise_db: float = 0.0
    babblers: tuple[Stretch, ...] = ()
    seed: int = 0
    """Of a computed noise."""
    noise_stretch: NoiseStretch | None = None
    room: Room | None = None
    """Of computed responses."""
    responses: tuple[int, ...] = ()
    """The numbers of recorded ones in `RoomFiles.responses`, one for each talker."""
    highest_hz: float = 0.0
    """Of a narrow band; 0 if the band is not narrow."""
    lowest_hz: float = 0.0
    slope_db: float = 0.0
    """How fast a narrow band falls below `lowest_hz`, per octave."""
    inverted: bool = False
    """Whether the microphone has the other polarity."""


@dataclass(frozen=True)
class Plan:
    """All that is random about one mixture, drawn before any signal is touched."""

    speaker: int
    target: Stretch
    interferers: tuple[Stretch, ...]
    """One or two."""
    reference: Stretch
    reference_length: int
    """In samples."""
    snr_db: tuple[float, ...]
    """For each interferer; empty if the talkers are as loud as in their files."""
    target_speaks: tuple[float, float]
    """From when to when, as shares of the segment."""
    interferers_speak: tuple[float, float]
    present: bool
    level_db: float
    reference_level_db: float
    around: Surroundings
    around_reference: Surroundings


@dataclass(frozen=True)
class Batch:
    """One training step's signals, [batch, sample] but for the references.

    The mixture is the target (and its late echoes), the interferer and the noise.
    """

    mixture: Tensor
    target: Tensor
    """Zero where the target says nothing; in a room its early part."""
    interferer: Tensor
    """All other talkers."""
    noise: Tensor
    reference: Tensor
    """[batch / k, sample], each for k rows one after another (`mixtures_per_reference`)"""
    reference_lengths: Tensor | None
    """[batch / k], in samples, with zeros behind them; None if all references are equally long"""
    speaker: Tensor
    """[batch / k], the target's index among the corpus's speakers"""
    present: Tensor
    """[batch], whether the target is in the mixture"""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from without waiting; for a DataLoader."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: change(t) for k, t in tensors.items() if t is not None})


class MixtureSampler:
    """Draws batches. Row k of step n comes from a generator seeded by (seed, n, k) alone.

    So a batch is the same in one process or shared among several, and a run that was
    resumed sees what an uninterrupted one would have. (A row that shares the reference of
    the row before it depends on that one's seed as well.) Plans are made on the CPU, a few
    numbers for each mixture; all arithmetic is where the corpus lies, which may be a GPU.

    Raises:
        ConfigError, AudioError: a file or folder in the settings cannot be used.
    """

    def __init__(self, corpus: Corpus, settings: MixtureSettings) -> None:
        self.corpus, self.settings = corpus, settings
        self.length = round(settings.segment_s * corpus.sample_rate_hz)
        form = corpus.sample_rate_hz, corpus.samples.device
        self.noises = NoiseFiles(settings.noise_folder, *form) if settings.noise_folder else None
        self.rooms = RoomFiles(settings.room_folder, *form) if settings.room_folder else None
        self.same_sex: list[list[int]] = [[] for _ in corpus.speakers]
        """For each speaker, the others of the same sex; none where it is not known."""
        if settings.same_sex:
            sexes = data.read_sexes(settings.speakers_csv, [s.name for s in corpus.speakers])
            self.same_sex = [
                [other for other, sex in enumerate(sexes) if own and sex == own and other != who]
                for who, own in enumerate(sexes)
            ]
        self.mixtures_of: dict[int, list[tuple[UtteranceIndex, ...]]] = {}
        """The corpus's mixtures by their target speaker."""
        for indices in corpus.mixtures:
            self.mixtures_of.setdefault(indices[0].speaker, []).append(indices)

    def draw(self, seed: int, step: int, rows: range) -> Batch:
        """Draw some rows of a step's batch, whole groups of `mixtures_per_reference`."""
        return self.compose(self.plan(seed, step, rows))

    def plan(self, seed: int, step: int, rows: range) -> list[Plan]:
        """Draw the plans for some rows of a step."""
        settings, span_s = self.settings, self.settings.reference_s
        # In tenths of a second: Fourier transforms of most other lengths are slow.
        lengths_s = np.linspace(*span_s, settings.reference_lengths).round(1).clip(*span_s)
        lengths = (lengths_s * self.corpus.sample_rate_hz).round().astype(int)
        length = int(np.random.default_rng((seed, step)).choice(lengths))
        plans: list[Plan] = []
        for row in rows:
            # Row 0 would be seeded like the step itself: trailing zeros do not count.
            rng = np.random.default_rng((seed, step, 1 + row))
            first = row % settings.mixtures_per_reference == 0
            if first and settings.own_reference_lengths:
                length = int(rng.choice(lengths))
            plans.append(self.plan_mixture(rng, length, None if first else plans[-1]))
        return plans

    def plan_mixture(
        self, rng: np.random.Generator, reference_length: int, like: Plan | None = None
    ) -> Plan:
        """Draw all that is random about one mixture.

        With `like`, the mixture is another one of that plan's target speaker, for the same
        reference, of which `reference_length` samples are used.
        """
        settings, given = self.settings, bool(self.corpus.mixtures)
        draw_talkers = self._draw_given_talkers if given else self._draw_talkers
        who, target, interferers = draw_talkers(rng, like)
        # One of them may come late or end early.
        partial = rng.random() < settings.partial_overlap
        both = rng.uniform(*settings.overlap) if partial else 1.0
        short = (0.0, both) if rng.random() < 0.5 else (1.0 - both, 1.0)
        spans = (short, (0.0, 1.0)) if rng.random() < 0.5 else ((0.0, 1.0), short)
        return Plan(
            speaker=who,
            target=target,
            interferers=interferers,
            reference=like.reference if like else draw_reference(target, reference_length, rng),
            reference_length=reference_length,
            snr_db=() if given else tuple(rng.uniform(*settings.snr_db) for _ in interferers),
            target_speaks=spans[0],
            interferers_speak=spans[1],
            present=bool(rng.random() >= settings.absent),
            level_db=rng.uniform(*settings.level_db),
            reference_level_db=rng.uniform(*settings.level_db),
            around=self._draw_surroundings("", who, self.length, rng),
            around_reference=self._draw_surroundings("reference_", who, reference_length, rng),
        )

    def _draw_talkers(
        self, rng: np.random.Generator, like: Plan | None
    ) -> tuple[int, Stretch, tuple[Stretch, ...]]:
        """A target's index, its stretch, and those of one or two others with other sentences."""
        settings, speakers = self.settings, self.corpus.speakers
        count = 1 + (len(speakers) > 2 and rng.random() < settings.third_talker)
        of_same_sex = rng.random() < settings.same_sex

        def draw_speed() -> float:
            """In hundredths, so that equal ones are resampled together."""
            low, high = (round(100 * v) for v in settings.speed)
            return int(rng.integers(low, high + 1)) / 100

        for _ in range(_TRIES):
            who = like.speaker if like else int(rng.integers(len(speakers)))
            speed = like.target.speed if like else draw_speed()
            target = draw_stretch(speakers[who], self.length, speed, rng)
            if like and target.sentences() & like.reference.sentences():
                continue
            if of_same_sex and len(self.same_sex[who]) >= count:
                others = rng.choice(self.same_sex[who], count, replace=False)
            else:
                others = rng.choice(len(speakers) - 1, count, replace=False)
                others += others >= who
            interferers = tuple(
                draw_stretch(speakers[other], self.length, draw_speed(), rng) for other in others
            )
            # Half a clip, "name/1", may say what another speaker's clip of that name says.
            sentences = [
                {name.partition("/")[0] for name in stretch.sentences()}
                for stretch in (target, *interferers)
            ]
            if len(set.union(*sentences)) == sum(map(len, sentences)):
                return who, target, interferers
        raise ConfigError(
            "files of the same name count as the same sentence and are never mixed, and "
            f"{_TRIES} draws found no other pair. Rename the files, or shorten segment_s."
        )

    def _draw_given_talkers(
        self, rng: np.random.Generator, like: Plan | None
    ) -> tuple[int, Stretch, tuple[Stretch, ...]]:
        """A given mixture's target, from a random place on, and those who talk beside it."""
        mixtures, speakers = self.corpus.mixtures, self.corpus.speakers
        if like:
            sentences, avoided = like.target.speaker.sentences, like.reference.sentences()
            own = self.mixtures_of[like.speaker]
            mixtures = [m for m in own if sentences[m[0].utterance] not in avoided]
        indices = mixtures[int(rng.integers(len(mixtures)))]
        who, utterance = indices[0]
        bounds = speakers[who].bounds
        whole = bounds[utterance + 1] - bounds[utterance]
        skip = int(rng.integers(max(0, whole - self.length) + 1))

        def cut(index: UtteranceIndex) -> Stretch:
            """At most a segment of an utterance, from `skip` on."""
            speaker, k = speakers[index.speaker], index.utterance
            start = speaker.bounds[k] + skip
            left = max(0, speaker.bounds[k + 1] - start)
            return Stretch(speaker, start, min(self.length, left), k, k)

        target, *interferers = map(cut, indices)
        return who, target, tuple(interferers)

    def _draw_surroundings(
        self, prefix: str, who: int, length: int, rng: np.random.Generator
    ) -> Surroundings:
        """The mixture's surroundings (no prefix) or the reference's, by their probabilities."""
        settings, speakers = self.settings, self.corpus.speakers
        chances = [getattr(settings, prefix + name) for name in ("noise", "room", "narrow_band")]
        noisy, reverberant, narrow = rng.random(3) < chances
        recorded_noise, recorded_room = rng.random(2) < (settings.noise_files, settings.room_files)
        kind = str(rng.choice(settings.noise_kinds)) if noisy else ""
        stretch: NoiseStretch | None = None
        if noisy and recorded_noise and self.noises:
            kind, stretch = "file", self.noises.draw(length, rng)
        responses: tuple[int, ...] = ()
        if reverberant and recorded_room and self.rooms:
            responses = self.rooms.draw(_MAX_TALKERS, rng)
        count = _BABBLERS if kind == "babble" else 0
        babblers = (who + rng.integers(1, len(speakers), size=count)) % len(speakers)
        t60_s = rng.uniform(*settings.t60_s)
        computed_room = reverberant and not responses
        return Surroundings(
            noise=kind,
            noise_db=rng.uniform(*settings.noise_db),
            babblers=tuple(
                replace(draw_stretch(speakers[k], self.length, 1.0, rng), repeated=True)
                for k in babblers
            ),
            seed=int(rng.integers(2**31)),
            noise_stretch=stretch,
            room=acoustics.draw_room(t60_s, _MAX_TALKERS, rng) if computed_room else None,
            responses=responses,
            highest_hz=rng.uniform(*settings.band_hz) if narrow else 0.0,
            lowest_hz=rng.uniform(*settings.band_from_hz) if narrow else 0.0,
            slope_db=float(np.exp(rng.uniform(*np.log(settings.band_slope_db)))) if narrow else 0.0,
            inverted=settings.inverted > 0 and bool(rng.random() < settings.inverted),
        )

    def compose(self, plans: Sequence[Plan]) -> Batch:
        """Turn plans into signals."""
        arounds = [plan.around for plan in plans]
        talkers, target = self._in_rooms(arounds, self._talkers(plans))
        interferer = (talkers[:, 1:] * self._gains(plans, talkers)).sum(1)
        present = self._column([p.present for p in plans])
        target, reverberant = target * present, talkers[:, 0] * present
        noise = self._noise(arounds, reverberant + interferer)
        signals = torch.stack((reverberant + interferer + noise, target, interferer, noise))
        signals = self._by_microphones(arounds, signals)
        level_db = self._column([p.level_db for p in plans])
        mixture, target, interferer, noise = signals * _gain_to_level(signals[0], level_db)
        reference, lengths, speaker = self.compose_references(plans)
        return Batch(
            mixture=mixture,
            target=target,
            interferer=interferer,
            noise=noise,
            reference=reference,
            reference_lengths=lengths,
            speaker=speaker,
            present=present.squeeze(1).bool(),
        )

    def compose_references(self, plans: Sequence[Plan]) -> tuple[Tensor, Tensor | None, Tensor]:
        """The references in their own surroundings, their lengths and speakers, as in `Batch`."""
        plans = plans[:: self.settings.mixtures_per_reference]
        speaker = self._column([plan.speaker for plan in plans]).squeeze(1).long()
        lengths = [plan.reference_length for plan in plans]
        references = torch.zeros(len(plans), max(lengths), device=self.corpus.samples.device)
        for length in sorted(set(lengths)):
            rows = [row for row, own in enumerate(lengths) if own == length]
            arounds = [plans[row].around_reference for row in rows]
            dry = self.corpus.gather([plans[row].reference for row in rows], length)
            reverberant = self._in_rooms(arounds, dry.unsqueeze(1))[0].squeeze(1)
            noisy = reverberant + self._noise(arounds, reverberant)
            noisy = self._by_microphones(arounds, noisy)
            level_db = self._column([plans[row].reference_level_db for row in rows])
            references[rows, :length] = noisy * _gain_to_level(noisy, level_db)
        if len(set(lengths)) == 1:
            return references, None, speaker
        own_lengths = torch.tensor(lengths).to(references.device, non_blocking=True)
        return references, own_lengths, speaker

    def _talkers(self, plans: Sequence[Plan]) -> Tensor:
        """What each plan's talkers say [batch, talker, sample], the target first.

        There is silence where others have a third talker.
        """
        rows, talkers, stretches, spans = [], [], [], []
        for row, plan in enumerate(plans):
            for talker, stretch in enumerate((plan.target, *plan.interferers)):
                rows.append(row)
                talkers.append(talker)
                stretches.append(stretch)
                spans.append(plan.interferers_speak if talker else plan.target_speaks)
        voices = self.corpus.gather(stretches, self.length)
        if any(span != (0.0, 1.0) for span in spans):
            time = torch.linspace(0, 1, self.length, device=voices.device)
            ramp = _RAMP_S / self.settings.segment_s
            start, end = map(self._column, zip(*spans, strict=True))
            voices = voices * ((time - start) / ramp + (start == 0)).clamp(0, 1)
            voices = voices * ((end - time) / ramp + (end == 1)).clamp(0, 1)
        signals = voices.new_zeros(len(plans), 1 + max(talkers), self.length)
        signals[rows, talkers] = voices
        return signals

    def _in_rooms(self, arounds: Sequence[Surroundings], talkers: Tensor) -> tuple[Tensor, Tensor]:
        """Talkers [batch, talker, sample] in their rooms, and the first one's early part."""
        reverberant, early = talkers.clone(), talkers[:, 0].clone()
        rate, count = self.corpus.sample_rate_hz, talkers.shape[1]
        computed = {row: a.room for row, a in enumerate(arounds) if a.room}
        recorded = {row: a.responses[:count] for row, a in enumerate(arounds) if a.responses}
        rooms: list[tuple[list[int], Tensor]] = []
        if computed:
            length = round(self.settings.t60_s[1] * rate)
            responses = acoustics.room_responses(
                list(computed.values()), length, rate, talkers.device
            )
            rooms.append((list(computed), responses[:, :count]))
        if recorded and self.rooms:
            index = torch.tensor(list(recorded.values())).to(talkers.device, non_blocking=True)
            rooms.append((list(recorded), self.rooms.responses[index]))
        for rows, responses in rooms:
            reverberant[rows] = acoustics.convolve(talkers[rows], responses)
            first = acoustics.early_part(responses[:, 0], rate)
            early[rows] = acoustics.convolve(talkers[rows, 0], first)
        return reverberant, early

    def _gains(self, plans: Sequence[Plan], talkers: Tensor) -> Tensor:
        """Gains [batch, talker, 1] that bring interferers to their SNR, by power while speaking."""
        energy = talkers.square().sum(-1)
        spans = self._column([p.target_speaks[1] - p.target_speaks[0] for p in plans])
        others = self._column([p.interferers_speak[1] - p.interferers_speak[0] for p in plans])
        ratio = (energy[:, :1] / spans) / (energy[:, 1:] / others).clamp_min(1e-8)
        count = energy.shape[1] - 1
        ratios_db = [[*p.snr_db, *[0.0] * (count - len(p.snr_db))] for p in plans]
        snr_db = torch.tensor(ratios_db).to(talkers.device, non_blocking=True)
        as_recorded = self._column([not p.snr_db for p in plans]).bool()
        gains = torch.where(as_recorded, 1.0, (ratio / 10 ** (snr_db / 10)).sqrt())
        return gains.unsqueeze(-1)

    def _noise(self, arounds: Sequence[Surroundings], speech: Tensor) -> Tensor:
        """The noise around `speech` [batch, sample], as far below it as was drawn."""
        length, rate = speech.shape[-1], self.corpus.sample_rate_hz
        noise = torch.zeros_like(speech)
        computed = [row for row, a in enumerate(arounds) if a.noise not in ("", "babble", "file")]
        if computed:
            kinds, seeds = ([getattr(arounds[k], n) for k in computed] for n in ("noise", "seed"))
            spectrum = self.corpus.spectrum
            noise[computed] = acoustics.stationary_noise(kinds, seeds, length, rate, spectrum)
        for row in (row for row, a in enumerate(arounds) if a.noise == "babble"):
            babble = self.corpus.gather(arounds[row].babblers, length).sum(0)
            noise[row] = acoustics.at_unit_rms(babble)
        recorded = {row: a.noise_stretch for row, a in enumerate(arounds) if a.noise_stretch}
        if recorded and self.noises:
            noise[list(recorded)] = self.noises.gather(list(recorded.values()), length)
        below = 10 ** (-self._column([a.noise_db for a in arounds]) / 20)
        return noise * below * speech.square().mean(-1, keepdim=True).sqrt()

    def _by_microphones(self, arounds: Sequence[Surroundings], signals: Tensor) -> Tensor:
        """Signals [..., batch, sample] in the polarities and narrow bands that were drawn."""
        signals = signals * self._column([-1.0 if a.inverted else 1.0 for a in arounds])
        rows = [row for row, a in enumerate(arounds) if a.highest_hz]
        if not rows:
            return signals
        lowest = self._column([arounds[row].lowest_hz for row in rows])
        highest = self._column([arounds[row].highest_hz for row in rows])
        slope = self._column([arounds[row].slope_db for row in rows])
        narrowed = signals.clone()
        narrowed[..., rows, :] = acoustics.limit_band(
            signals[..., rows, :], lowest, highest, slope, self.corpus.sample_rate_hz
        )
        return narrowed

    def _column(self, values: Sequence[float]) -> Tensor:
        """A number for each row, [row, 1], where the corpus lies."""
        column = torch.tensor(values, dtype=torch.float32).unsqueeze(1)
        return column.to(self.corpus.samples.device, non_blocking=True)


def _gain_to_level(signals: Tensor, level_db: Tensor) -> Tensor:
    """The gains [batch, 1] that bring `signals` [batch, sample] to levels [batch, 1]."""
    rms = signals.square().mean(-1, keepdim=True).sqrt()
    return 10 ** (level_db / 20) / rms.clamp_min(1e-4)


def draw_batches(
    sampler: MixtureSampler,
    seed: int,
    first_step: int,
    rows: range,
    workers: int,
    *,
    for_cuda: bool = False,
) -> Iterator[Batch]:
    """Draw some rows of each step's batch, from a step on, without end.

    With `workers`, that many processes draw ahead, from a corpus that lies on the CPU. The batches
    are the same. They are in pinned memory, from which a GPU copies fast, if they are `for_cuda`.

    Raises:
        ConfigError: no talkers can be drawn.
        EngineError: one of the processes ended.
    """
    steps = itertools.count(first_step)
    if not workers:
        yield from (sampler.draw(seed, step, rows) for step in steps)
        return
    loader = DataLoader(
        _Draws(sampler, seed, rows),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=for_cuda,
        worker_init_fn=_leave_interrupts,
    )
    draws = iter(loader)
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        # torch raises errors of processes that end wherever the program is. It checks them below.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for drawn in draws:
            if isinstance(drawn, McspexError):
                raise drawn
            yield drawn
    except RuntimeError as error:
        raise EngineError(
            "a process that draws mixtures ended, probably for lack of memory. Lower [run] "
            "workers, or give the machine, or its /dev/shm, more memory."
        ) from error


class _Draws(Dataset["Batch | McspexError"]):
    """The steps' batches as torch's DataLoader wants them: an item for each number."""

    def __init__(self, sampler: MixtureSampler, seed: int, rows: range) -> None:
        self.sampler, self.seed, self.rows = sampler, seed, rows

    def __getitem__(self, step: int) -> Batch | McspexError:
        try:
            return self.sampler.draw(self.seed, step, self.rows)
        except McspexError as error:  # as it is: raised, it would come with a traceback in it
            return error


def _leave_interrupts(_: int) -> None:
    """Have Ctrl-C end the training alone, which then ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
