"""Mixtures made on the fly: plans turned into signals, a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcspex_cli.training import acoustics
from mcspex_cli.training.acoustics import Room
from mcspex_cli.training.corpus import Arc, Corpus
from mcspex_cli.training.plans import Plan, Planner, Surroundings
from mcspex_cli.training.settings import MixtureSettings

_RAMP_S = 0.02
"""How softly a talker starts or stops where the overlap is partial."""


@dataclass(frozen=True)
class Batch:
    """One training step's signals; mixture = target (and its late echoes) + interferer + noise."""

    mixture: Tensor
    """[batch, sample]"""
    target: Tensor
    """[batch, sample], zero where the target says nothing; in a room its early part"""
    interferer: Tensor
    """[batch, sample], all other talkers"""
    noise: Tensor
    """[batch, sample]"""
    reference: Tensor
    """[batch / k, sample], each for k rows one after another (`mixtures_per_reference`); its
    length is drawn once for the batch: references are never padded"""
    speaker: Tensor
    """[batch / k], the target's index among the corpus's speakers"""
    present: Tensor
    """[batch], whether the target is in the mixture"""


class MixtureSampler:
    """Draws batches. Row k of step n comes from a generator seeded by (seed, n, k) alone.

    So a batch is the same in one process or shared among several, and a run that was
    resumed sees what an uninterrupted one would have. Plans are made on the CPU, a few
    numbers for each mixture; all arithmetic is where the corpus lies, which may be a GPU.
    """

    def __init__(self, corpus: Corpus, settings: MixtureSettings) -> None:
        self.corpus, self.settings = corpus, settings
        self.planner = Planner(corpus, settings)

    def draw(self, seed: int, step: int, rows: range) -> Batch:
        """Draw some rows of a step's batch."""
        return self.compose(*self.plan(seed, step, rows))

    def plan(self, seed: int, step: int, rows: range) -> tuple[list[Plan], int]:
        """Draw the plans for some rows of a step, and the length of its references.

        `rows` holds whole groups of `mixtures_per_reference`.
        """
        settings = self.settings
        lengths_s = np.linspace(*settings.reference_s, settings.reference_lengths)
        reference_s = np.random.default_rng((seed, step)).choice(lengths_s)
        length = round(reference_s * self.corpus.sample_rate_hz)
        plans: list[Plan] = []
        for row in rows:
            # Row 0 would be seeded like the step itself: trailing zeros do not count.
            rng = np.random.default_rng((seed, step, 1 + row))
            first = row % settings.mixtures_per_reference == 0
            plans.append(self.planner.draw(rng, length, None if first else plans[-1]))
        return plans, length

    def compose(self, plans: Sequence[Plan], reference_length: int) -> Batch:
        """Turn plans into signals."""
        arounds = [plan.around for plan in plans]
        target = self._speaking([p.target for p in plans], [p.target_speaks for p in plans])
        talkers = torch.cat((target.unsqueeze(1), self._interferers(plans)), dim=1)
        heard, target = self._in_rooms([a.room for a in arounds], talkers)
        interferer = (heard[:, 1:] * self._gains(plans, heard)).sum(1)
        leads = plans[:: self.settings.mixtures_per_reference]
        present = self._column([p.present for p in plans])
        target, echoing = target * present, heard[:, 0] * present
        noise = self._noise(arounds, echoing + interferer)
        signals = torch.stack((echoing + interferer + noise, target, interferer, noise))
        signals = self._narrowed(arounds, signals)
        level = self._column([p.level_db for p in plans])
        mixture, target, interferer, noise = signals * _gain_to_level(signals[0], level)
        return Batch(
            mixture=mixture,
            target=target,
            interferer=interferer,
            noise=noise,
            reference=self._references(leads, reference_length),
            speaker=self._column([p.speaker for p in leads]).squeeze(1).long(),
            present=present.squeeze(1).bool(),
        )

    def _speaking(self, arcs: list[Arc], spans: list[tuple[float, float]]) -> Tensor:
        """Arcs [arc, sample] that are heard in a span of the segment only."""
        length = self.planner.length
        voices = self.corpus.gather(arcs, length)
        if all(span == (0.0, 1.0) for span in spans):
            return voices
        time = torch.linspace(0, 1, length, device=voices.device)
        ramp = _RAMP_S / self.settings.segment_s
        start, end = (self._column([span[side] for span in spans]) for side in (0, 1))
        risen = ((time - start) / ramp + (start == 0)).clamp(0, 1)
        return voices * risen * ((end - time) / ramp + (end == 1)).clamp(0, 1)

    def _interferers(self, plans: Sequence[Plan]) -> Tensor:
        """Each plan's interferers [batch, talker, sample]; silence for the third that is not."""
        count = max(len(p.interferers) for p in plans)
        rows = [row for row, p in enumerate(plans) for _ in p.interferers]
        places = [place for p in plans for place in range(len(p.interferers))]
        arcs = [arc for p in plans for arc in p.interferers]
        voices = self._speaking(arcs, [plans[row].interferers_speak for row in rows])
        talkers = torch.zeros(len(plans), count, voices.shape[-1], device=voices.device)
        talkers[rows, places] = voices
        return talkers

    def _in_rooms(self, rooms: list[Room | None], talkers: Tensor) -> tuple[Tensor, Tensor]:
        """Talkers [batch, talker, sample] as heard, and the first one's early part."""
        heard, early = talkers, talkers[:, 0]
        rows = [row for row, room in enumerate(rooms) if room]
        if rows:
            rate = self.corpus.sample_rate_hz
            length = round(self.settings.t60_s[1] * rate)
            inside = [room for room in rooms if room]
            responses = acoustics.room_responses(inside, length, rate, talkers.device)
            responses = responses[:, : talkers.shape[1]]
            heard, early = heard.clone(), early.clone()
            heard[rows] = acoustics.convolve(talkers[rows], responses)
            first = acoustics.early_part(responses[:, 0], rate)
            early[rows] = acoustics.convolve(talkers[rows, 0], first)
        return heard, early

    def _gains(self, plans: Sequence[Plan], heard: Tensor) -> Tensor:
        """What brings each interferer to its SNR [batch, talker, 1], by power while speaking."""
        energy = heard.square().sum(-1)
        spans = self._column([p.target_speaks[1] - p.target_speaks[0] for p in plans])
        others = self._column([p.interferers_speak[1] - p.interferers_speak[0] for p in plans])
        ratio = (energy[:, :1] / spans) / (energy[:, 1:] / others).clamp_min(1e-8)
        count = energy.shape[1] - 1
        wanted = [[*p.snr_db, *[0.0] * (count - len(p.snr_db))] for p in plans]
        snr = torch.tensor(wanted).to(heard.device, non_blocking=True)
        given = self._column([not p.snr_db for p in plans]).bool()
        gains = torch.where(given, 1.0, (ratio / 10 ** (snr / 10)).sqrt())
        return gains.unsqueeze(-1)

    def _noise(self, arounds: list[Surroundings], speech: Tensor) -> Tensor:
        """The noise around `speech` [batch, sample], so far below it as drawn."""
        length, rate = speech.shape[-1], self.corpus.sample_rate_hz
        noise = torch.zeros_like(speech)
        made = [row for row, a in enumerate(arounds) if a.noise not in ("", "babble")]
        if made:
            kinds, seeds = [arounds[k].noise for k in made], [arounds[k].seed for k in made]
            spectrum = self.corpus.spectrum
            noise[made] = acoustics.stationary_noise(kinds, seeds, length, rate, spectrum)
        for row in (row for row, a in enumerate(arounds) if a.noise == "babble"):
            babble = self.corpus.gather(arounds[row].babblers, length).sum(0)
            noise[row] = babble / babble.square().mean().sqrt().clamp_min(1e-8)
        below = 10 ** (-self._column([a.noise_db for a in arounds]) / 20)
        return noise * below * speech.square().mean(-1, keepdim=True).sqrt()

    def _narrowed(self, arounds: list[Surroundings], signals: Tensor) -> Tensor:
        """Signals [..., batch, sample] with the narrow bands that were drawn."""
        rows = [row for row, a in enumerate(arounds) if a.highest_hz]
        if not rows:
            return signals
        lowest = self._column([arounds[row].lowest_hz for row in rows]).squeeze(1)
        highest = self._column([arounds[row].highest_hz for row in rows]).squeeze(1)
        rate = self.corpus.sample_rate_hz
        narrowed = signals.clone()
        limited = acoustics.limit_band(signals[..., rows, :], lowest, highest, rate)
        narrowed[..., rows, :] = limited
        return narrowed

    def _references(self, plans: Sequence[Plan], length: int) -> Tensor:
        """The references [batch, sample] in their own surroundings."""
        arounds = [p.around_reference for p in plans]
        dry = self.corpus.gather([p.reference for p in plans], length)
        heard = self._in_rooms([a.room for a in arounds], dry.unsqueeze(1))[0].squeeze(1)
        heard = self._narrowed(arounds, heard + self._noise(arounds, heard))
        return heard * _gain_to_level(heard, self._column([p.reference_level_db for p in plans]))

    def _column(self, values: Sequence[float]) -> Tensor:
        """A number for each row, [row, 1], where the corpus lies."""
        column = torch.tensor(values, dtype=torch.float32).unsqueeze(1)
        return column.to(self.corpus.samples.device, non_blocking=True)


def _gain_to_level(signals: Tensor, level_db: Tensor) -> Tensor:
    """The gains [batch, 1] that bring `signals` [batch, sample] to levels [batch, 1]."""
    rms = signals.square().mean(-1, keepdim=True).sqrt()
    return 10 ** (level_db / 20) / rms.clamp_min(1e-4)
