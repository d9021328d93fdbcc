"""What is written of a mixture once its estimate is whole: the voice, the rest, when it speaks.

```
spool ─▶ match ─▶ mute ─┬─▶ wet ─┬─▶ + ─▶ level ─▶ estimate file
                        ▼        │   ▲
mixture, again ───────▶ − ─▶ residual file
                │                    │
                └──────────▶ dry ────┘
```

First all is run through to be measured, then once more to be written, with one gain throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import AbsentError, AudioError
from mcspex_cli.extraction.activity import ActivityReport, find_spans, mute_gains, write_activity
from mcspex_cli.extraction.jobs import FileSettings
from mcspex_cli.extraction.levels import SILENCE_DB, Level, LoudnessMeter, gain_db
from mcspex_cli.extraction.presence import PresenceResult
from mcspex_cli.extraction.sources import Source
from mcspex_cli.extraction.spool import Spool

FADE_S = 0.05
"""From voice to silence and back, where the voice is absent and muted."""

Gains = npt.NDArray[np.float64]
"""A factor for each [channel], or [sample]."""


@dataclass(frozen=True)
class Extraction:
    """What was done for one mixture."""

    mixture: Path
    output: Path
    seconds: float
    sample_rate_hz: int
    elapsed_s: float
    gain_db: tuple[float, ...]
    """What the network's output was multiplied by, for each channel."""
    limited: bool
    """Whether the level asked for would have clipped, so that all was turned down."""
    silent: bool
    """Whether the estimate is silent."""
    presence: PresenceResult
    """Whether the voice is there, and when."""
    active_s: float
    """How long it speaks."""
    residual_gain_db: float = 0.0
    """What the residual was turned down by not to clip."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.elapsed_s / self.seconds


@dataclass
class Made:
    """An estimate at the network's level, and what was measured on the way."""

    source: Source
    out: audio.Writer
    spool: Spool
    match: Gains
    """What brings the estimate to the voice's level in the mixture [channel]."""
    presence: PresenceResult
    settings: FileSettings
    elapsed_s: float = 0.0
    factor: float = 1.0
    """What sets the level asked for."""
    limited: bool = False
    residual_factor: float = 1.0
    silent: bool = False

    @property
    def is_absent(self) -> bool:
        """Whether the voice is known not to be there."""
        return self.presence.present is False

    @cached_property
    def gain(self) -> Gains:
        """What the network's estimate is multiplied by before the level is set [channel]."""
        matched = Level.parse(self.settings.level).policy.matched
        base = self.match if matched else np.ones_like(self.match)
        scaled: Gains = base * 10 ** (self.settings.wet_db / 20)
        return scaled

    def blocks(self) -> Iterator[tuple[Samples, Samples | None]]:
        """The estimate and, if it is asked for, the residual, [channel, sample] of each."""
        job, frames = self.source.order.job, self.source.frames
        voice = self.spool.exactly(frames)
        if not job.residual and self.settings.dry_db is None:
            for start, block in _counted(voice):
                yield self._gated(block, start) * _column(self.gain), None
            return
        dry = 0.0 if self.settings.dry_db is None else 10 ** (self.settings.dry_db / 20)
        for start, (block, mixture) in _counted_pairs(voice, self.source.again()):
            gated = self._gated(block, start)
            made = gated * _column(self.gain) + np.float32(dry) * mixture
            yield made, mixture - gated * _column(self.match) if job.residual else None

    def _gated(self, block: Samples, start: int) -> Samples:
        """A block that begins at sample `start`, silent where the voice is absent and muted."""
        if self.settings.absent != "mute" or self.presence.present is None:
            return block
        if self.is_absent:
            return np.zeros_like(block)
        at_s = (start + np.arange(block.shape[1])) / self.source.sample_rate_hz
        return block * np.interp(at_s, *self._gate).astype(np.float32)

    @cached_property
    def _gate(self) -> tuple[list[float], list[float]]:
        """Points in time, and the gains there, that mute where the voice is not."""
        return mute_gains(self.presence, FADE_S)


def write(made: Made) -> Extraction:
    """Write all that is asked for of an estimate, each file whole or not at all.

    Raises:
        AbsentError: the voice is not there, and that is not to be accepted.
        AudioError: the mixture changed or went away meanwhile.
        OutputError: the disk is full or went away.
    """
    job, rate_hz = made.source.order.job, made.source.sample_rate_hz
    with ExitStack() as files:
        out = files.enter_context(made.out)
        files.enter_context(closing(made.spool))
        if made.settings.absent == "fail" and made.is_absent:
            raise _absent(job.mixture, made.presence)
        _measure(made)
        rest = None
        if job.residual:
            channels, subtype = made.source.channels, made.settings.subtype
            rest = files.enter_context(audio.Writer(job.residual, rate_hz, channels, subtype))
        for estimate, residual in made.blocks():
            out.write(estimate * np.float32(made.factor))
            if rest and residual is not None:
                rest.write(residual * np.float32(made.residual_factor))
        spans = find_spans(made.presence, max(gain_db(made.match)))
        if job.activity:
            file = job.id or job.mixture.stem
            report = ActivityReport(job.name, file, job.speaker, made.presence, spans)
            write_activity(job.activity, report)
    return Extraction(
        mixture=job.mixture,
        output=job.output,
        seconds=made.source.frames / rate_hz,
        sample_rate_hz=rate_hz,
        elapsed_s=made.elapsed_s,
        gain_db=gain_db(made.gain * made.factor),
        limited=made.limited,
        silent=made.silent,
        presence=made.presence,
        active_s=round(sum(end_s - start_s for start_s, end_s in spans), 2),
        residual_gain_db=gain_db(np.array([made.residual_factor]))[0],
    )


def _absent(mixture: Path, presence: PresenceResult) -> AbsentError:
    """What to raise where the voice is not accepted to be absent."""
    return AbsentError(
        f"{mixture}: the voice is not in it (presence {presence.presence:.2f}). "
        "Check the reference, or use --absent keep."
    )


def _measure(made: Made) -> None:
    """Run through all, for the factors that set the levels of estimate and residual."""
    settings, source = made.settings, made.source
    level, loudness_lufs = Level.parse(settings.level), -np.inf
    meter = (
        LoudnessMeter(source.sample_rate_hz, source.channels)
        if level.policy.needs_loudness
        else None
    )
    peak = residual_peak = 0.0
    for estimate, residual in made.blocks():
        peak = max(peak, float(np.abs(estimate).max(initial=0)))
        if residual is not None:
            residual_peak = max(residual_peak, float(np.abs(residual).max(initial=0)))
        if meter:
            meter.add(estimate)
    if meter:
        loudness_lufs = meter.loudness_lufs()
    job = source.order.job
    clips = _clips(job.output, settings.subtype)
    made.factor, made.limited = level.factor(peak, loudness_lufs, clips=clips)
    if job.residual:
        clips = _clips(job.residual, settings.subtype)
        made.residual_factor, _ = Level("raw").factor(residual_peak, -np.inf, clips=clips)
    made.silent = bool(peak * made.factor < 10 ** (SILENCE_DB / 20))


def _clips(path: Path, subtype: str) -> bool:
    """Whether a file cannot hold samples over full scale."""
    return subtype != "FLOAT" or path.suffix.lower() != ".wav"


def _column(gain: Gains) -> Samples:
    """Gains [channel] for blocks [channel, sample]."""
    return gain.astype(np.float32)[:, None]


def _counted(blocks: Iterator[Samples]) -> Iterator[tuple[int, Samples]]:
    """Blocks [channel, sample] with the sample that each begins at."""
    start = 0
    for block in blocks:
        yield start, block
        start += block.shape[1]


def _counted_pairs(
    voice: Iterator[Samples], mixture: audio.Reader
) -> Iterator[tuple[int, tuple[Samples, Samples]]]:
    """The same of estimate and mixture, cut to equal lengths.

    Raises:
        AudioError: the mixture is shorter than it was.
    """
    held: Samples | None = None
    with closing(iter(mixture)) as blocks:  # so that what decodes it ends now, whatever happens
        for start, block in _counted(voice):
            while held is None or held.shape[1] < block.shape[1]:
                more = next(blocks, None)
                if more is None:
                    raise AudioError(f"{mixture.path}: changed while it was read. Run it again.")
                held = more if held is None else np.concatenate([held, more], axis=1)
            yield start, (block, held[:, : block.shape[1]])
            held = held[:, block.shape[1] :]
