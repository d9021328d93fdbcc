"""A network at work on signals of any length: windows, batches and the embedding cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import Samples
from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.checks import SILENCE_DB, check_signal
from mcspex_cli.extraction.chunks import Windowing
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.runtime import EngineSettings, OutOfMemoryError, Runtime
from mcspex_cli.extraction.signals import Cut, Piece, Signal, batches, cut_all, joined

if TYPE_CHECKING:
    from mcspex_cli.model.systems import System

LEVEL_DB = -28.0
"""RMS level at which networks get references and windows, whatever they have in their files: what
networks have learnt at some levels they do less well at others."""

LONGEST_EMBEDDED_S = 30.0
"""Seconds of reference embedded at once: memory must not grow with a clip."""


class Engine:
    """Embeds references and extracts targets with one System, run by torch, or other `Runtime`.

    ```python
    engine = Engine(load_checkpoint())
    voice = engine.embed([reference])
    estimate = engine.extract(mixture, voice)
    ```

    Raises:
        EngineError: the device or precision is not to be had here, or not for a System.
    """

    def __init__(
        self,
        system: System | Runtime,
        settings: EngineSettings | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.calibration = calibration
        """What its model's likenesses mean, if that is known."""
        self.runtime = _runtime(system, self.settings)
        self.sample_rate_hz = self.runtime.sample_rate_hz
        self.batch = self.settings.batch or self.runtime.batch
        """Signals at once; halved whenever memory is short."""
        self._embeddings: dict[bytes, Samples] = {}

    def embed(self, references: Sequence[Samples]) -> Samples:
        """Embed one voice from one or more clips [sample] at `sample_rate_hz`.

        Clips are embedded unpadded, those over 30 s in equal parts, and averaged by duration.
        What was embedded before is not computed again.

        Returns:
            [embedding].

        Raises:
            AudioError: a clip is shorter than 0.3 s or silent.
            EngineError: the precision gave numbers that are not finite.
        """
        for clip in references:
            check_signal("the reference", clip, self.sample_rate_hz)
        longest = round(LONGEST_EMBEDDED_S * self.sample_rate_hz)
        parts = [
            part for clip in references for part in np.array_split(clip, -(-len(clip) // longest))
        ]
        embeddings = [self._remembered(part) for part in parts]
        weights = [float(len(part)) for part in parts]
        averaged: Samples = np.average(embeddings, axis=0, weights=weights).astype(np.float32)
        return averaged

    def extract(self, mixture: Samples, embedding: Samples) -> Samples:
        """Extract the voice of `embedding` from `mixture` [sample] at `sample_rate_hz`.

        Returns:
            [sample], as long as the mixture, at the network's own, arbitrary level.

        Raises:
            EngineError: the precision gave numbers that are not finite.
        """
        parts = [estimate for estimate, _ in self.stream([np.atleast_2d(mixture)], embedding)]
        return np.concatenate(parts, axis=-1)[0] if parts else mixture[:0]

    def stream(self, blocks: Iterable[Samples], embedding: Samples) -> Iterator[Piece]:
        """Extract from a stream of blocks [channel, sample], each channel for itself.

        Yields:
            The estimate [channel, sample] beside the mixture's samples that it belongs to.
            Blocks are of other lengths than those that went in, in all equally long.

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
        """
        for _, pieces in self.stream_all([Signal(blocks, embedding)]):
            yield from pieces

    def stream_all(self, signals: Iterable[Signal]) -> Iterator[tuple[Signal, Iterator[Piece]]]:
        """Extract from several streams; equally long windows of neighbours share a batch.

        What goes wrong with one stream, in reading or computing it, is raised where its own
        pieces are taken, and spares the others.

        Yields:
            Each signal, in order, with its pieces, which are those of `stream`.
        """
        windowing = self._windowing()
        made = self._made(cut_all(signals, windowing))
        for signal, own in groupby(made, key=lambda cut: cut.signal):
            yield signal, joined(own, windowing)

    def _made(self, cuts: Iterable[Cut]) -> Iterator[Cut]:
        """What the network makes of every window; a signal gone wrong passes as it is."""
        for batch in batches(cuts, lambda: self.batch):
            yield from batch if batch[0].error else self._made_at_once(batch)

    def _made_at_once(self, batch: Sequence[Cut]) -> Iterator[Cut]:
        """What the network makes of equally long windows."""
        mixtures = [cut.window.samples for cut in batch]
        counts = [len(mixture) for mixture in mixtures]
        voices = np.repeat([cut.signal.embedding for cut in batch], counts, axis=0)
        try:
            estimates = self._compute(np.concatenate(mixtures), voices)
        except EngineError as error:
            yield from (replace(cut, error=error) for cut in batch)
            return
        ends = np.cumsum(counts)[:-1]
        for cut, estimate in zip(batch, np.split(estimates, ends), strict=True):
            try:
                made = np.concatenate([self._finite(estimate), cut.window.samples])
                yield replace(cut, made=made)
            except EngineError as error:
                yield replace(cut, error=error)

    def _compute(self, mixtures: Samples, voices: Samples) -> Samples:
        """Run the network on equally long mixtures [signal, sample], each for its voice.

        Where memory is short, by halves, and from then on in smaller batches. Nothing is found in
        a silent mixture, in which a network only hears itself.
        """
        gains = to_level(mixtures)
        try:
            made = self.runtime.extract(mixtures * gains, voices) / gains
            return np.where(is_silent(mixtures), np.float32(0), made)
        except OutOfMemoryError as error:
            if len(mixtures) == 1:
                raise self._short_of_memory() from error
        half = len(mixtures) // 2
        self.batch = max(1, min(self.batch, half))
        parts = (slice(half), slice(half, None))
        return np.concatenate([self._compute(mixtures[part], voices[part]) for part in parts])

    def embed_part(self, part: Samples) -> Samples:
        """Embed a stretch of sound [sample], unchecked and not remembered; its level is no matter.

        Returns:
            [embedding].

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
        """
        try:
            return self._finite(self.runtime.embed(part * to_level(part)))
        except OutOfMemoryError as error:
            raise self._short_of_memory() from error

    def _remembered(self, clip: Samples) -> Samples:
        """Embed a clip, or remember that it was."""
        key = hashlib.sha256(np.ascontiguousarray(clip).tobytes()).digest()
        if key not in self._embeddings:
            self._embeddings[key] = self.embed_part(clip)
        return self._embeddings[key]

    def _short_of_memory(self) -> EngineError:
        """What to raise where even one signal is too much."""
        return EngineError(f"{self.runtime.device} is out of memory. Free some.")

    def _finite(self, values: Samples) -> Samples:
        """`values`, refused if they overflowed."""
        if not np.isfinite(values).all():
            cure = "Is the model damaged, or the recording at an absurd level?"
            if self.runtime.precision != "float32":
                cure = "Use --precision float32."
            raise EngineError(
                f"{self.runtime.precision} overflowed on {self.runtime.device}. {cure}"
            )
        return values

    def _windowing(self) -> Windowing:
        """The settings' seconds as samples."""
        rate, settings = self.sample_rate_hz, self.settings
        seconds = settings.window_s, settings.context_s, settings.fade_s
        return Windowing(*(round(s * rate) for s in seconds))


def to_level(signals: Samples) -> Samples:
    """The gains [..., 1] that bring signals [..., sample] to `LEVEL_DB`; 1 for silent ones."""
    power = 10 ** (LEVEL_DB / 10) / np.maximum(_power(signals), 1e-30)
    gains: Samples = np.where(is_silent(signals), 1.0, np.sqrt(power)).astype(np.float32)
    return gains


def is_silent(signals: Samples) -> npt.NDArray[np.bool_]:
    """Whether signals [..., sample] are silent, [..., 1]."""
    silent: npt.NDArray[np.bool_] = _power(signals) <= 10 ** (SILENCE_DB / 10)
    return silent


def _power(signals: Samples) -> npt.NDArray[np.float64]:
    """Mean squares [..., 1] of signals [..., sample]."""
    power: npt.NDArray[np.float64] = np.square(signals, dtype=np.float64).mean(-1, keepdims=True)
    return power


def _runtime(system: System | Runtime, settings: EngineSettings) -> Runtime:
    """A runtime as it is; a System in torch."""
    if isinstance(system, Runtime):
        return system
    if settings.runtime not in ("auto", "torch"):
        raise EngineError(f"a System runs in torch. For {settings.runtime}, use open_engine.")
    from mcspex_cli.extraction.torch_runtime import TorchRuntime

    return TorchRuntime(system, settings)
