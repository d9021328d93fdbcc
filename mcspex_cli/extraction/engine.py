"""A System at work: device, precision, windows, batches and the embedding cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from mcspex_cli.audio import Samples
from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.checks import check_signal
from mcspex_cli.extraction.chunks import Windowing
from mcspex_cli.extraction.signals import Cut, Piece, Signal, batches, cut_all, joined
from mcspex_cli.model.systems import System

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

LONGEST_EMBEDDED_S = 30.0
"""Seconds of reference embedded at once: memory must not grow with a clip."""


@dataclass(frozen=True)
class EngineSettings:
    """How to compute; none of it changes what is computed by more than rounding and seams."""

    device: str = "auto"
    """"auto" (CUDA if there, else CPU), "cpu", "cuda", "cuda:1", ..."""
    precision: str = "auto"
    """"auto" (bfloat16 on a GPU that has it, else float32), or one of `PRECISIONS`."""
    window_s: float = 8.0
    context_s: float = 1.0
    fade_s: float = 0.25
    batch: int = 0
    """Signals (windows times channels) at once; 0 for one on a CPU, sixteen on a GPU."""
    threads: int = 0
    """CPU threads, for all of this process; 0 for as many as torch likes."""


class Engine:
    """Embeds references and extracts targets with one System on one device.

    ```python
    engine = Engine(load_checkpoint())
    voice = engine.embed([reference])
    estimate = engine.extract(mixture, voice)
    ```

    Raises:
        EngineError: the device or precision is not to be had here.
    """

    def __init__(self, system: System, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.device = choose_device(self.settings.device)
        self.precision = _choose_precision(self.settings.precision, self.device)
        self.system = system.to(self.device).eval()
        self.sample_rate_hz = system.config.sample_rate_hz
        self.batch = self.settings.batch or (16 if self.device.type == "cuda" else 1)
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
        embeddings = [self._embed_one(part) for part in parts]
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

    @torch.inference_mode()
    def _compute(self, mixtures: Samples, voices: Samples) -> Samples:
        """Run the network on equally long mixtures [signal, sample], each for its voice.

        Where memory is short, by halves, and from then on in smaller batches.
        """
        try:
            batch = torch.from_numpy(mixtures).to(self.device)
            with self._autocast():
                estimates = self.system.extract(batch, torch.from_numpy(voices).to(self.device))
            made: Samples = estimates.float().cpu().numpy()
            return made
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(mixtures) == 1:
                raise self._short_of_memory() from error
        half = len(mixtures) // 2
        self.batch = max(1, min(self.batch, half))
        parts = (slice(half), slice(half, None))
        return np.concatenate([self._compute(mixtures[part], voices[part]) for part in parts])

    @torch.inference_mode()
    def _embed_one(self, clip: Samples) -> Samples:
        """Embed a clip, or remember that it was."""
        key = hashlib.sha256(np.ascontiguousarray(clip).tobytes()).digest()
        if key not in self._embeddings:
            try:
                with self._autocast():
                    embedding = self.system.embed(torch.from_numpy(clip).to(self.device)[None])
            except RuntimeError as error:
                if _is_out_of_memory(error):
                    raise self._short_of_memory() from error
                raise
            self._embeddings[key] = self._finite(embedding.float().cpu().numpy())[0]
        return self._embeddings[key]

    def _short_of_memory(self) -> EngineError:
        """What to raise where even one signal is too much."""
        return EngineError(f"{self.device} is out of memory. Free some.")

    def _finite(self, values: Samples) -> Samples:
        """`values`, refused if they overflowed."""
        if not np.isfinite(values).all():
            cure = "Is the model damaged, or the recording at an absurd level?"
            if self.precision != "float32":
                cure = "Use --precision float32."
            raise EngineError(f"{self.precision} overflowed on {self.device}. {cure}")
        return values

    def _autocast(self) -> AbstractContextManager[Any]:
        """The precision's context."""
        dtype = getattr(torch, self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _windowing(self) -> Windowing:
        """The settings' seconds as samples."""
        rate, settings = self.sample_rate_hz, self.settings
        seconds = settings.window_s, settings.context_s, settings.fade_s
        return Windowing(*(round(s * rate) for s in seconds))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU's allocator, had too little."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def choose_device(name: str) -> torch.device:
    """The device that a name means here; "auto" is CUDA if there, else the CPU.

    Raises:
        EngineError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        has = "cuda, cpu" if torch.cuda.is_available() else "cpu"
        raise EngineError(f"device {name!r} is not available. Use one of: auto, {has}.") from error
    return device


def _choose_precision(name: str, device: torch.device) -> str:
    """What "auto" means on a device."""
    if name not in PRECISIONS:
        raise EngineError(f"precision {name!r} is unknown. Use one of: {', '.join(PRECISIONS)}.")
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
