"""A System at work: device, precision, windows, batches and the embedding cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcspex_cli.audio import Samples
from mcspex_cli.errors import AudioError, EngineError
from mcspex_cli.extraction.chunks import Window, Windowing, cut, join
from mcspex_cli.model.systems import System

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

LEAST_S = 0.3
"""Seconds below which neither a mixture nor a reference is of any use."""

LONGEST_EMBEDDED_S = 30.0
"""Seconds of reference embedded at once: memory must not grow with a clip."""

SILENCE_DB = -90.0
"""RMS level, dB of full scale, below which a signal counts as silent."""


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
        self.device = choose_device(self.settings.device)
        self.precision = _choose_precision(self.settings.precision, self.device)
        self.system = system.to(self.device).eval()
        self.sample_rate_hz = system.config.sample_rate_hz
        self._batch = self.settings.batch or (16 if self.device.type == "cuda" else 1)
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

    def stream(
        self, blocks: Iterable[Samples], embedding: Samples
    ) -> Iterator[tuple[Samples, Samples]]:
        """Extract from a stream of blocks [channel, sample], each channel for itself.

        Yields:
            The estimate [channel, sample] beside the mixture's samples that it belongs to.
            Blocks are of other lengths than those that went in, in all equally long.

        Raises:
            EngineError: the precision gave numbers that are not finite.
        """
        windowing = self._windowing()
        voice = torch.from_numpy(embedding).to(self.device)
        pieces = self._pieces(cut(blocks, windowing), voice)
        for joined in join(pieces, windowing):
            estimate, mixture = np.split(joined, 2)
            yield estimate, mixture

    def _pieces(self, windows: Iterable[Window], voice: Tensor) -> Iterator[tuple[Window, Samples]]:
        """Each window with its estimate above its mixture: [2 * channel, sample]."""
        for group in _groups(windows, self._batch):
            mixtures = np.concatenate([w.samples for w in group])
            estimates = self._compute(mixtures, voice)
            for window, estimate in zip(group, np.split(estimates, len(group)), strict=True):
                yield window, np.concatenate([estimate, window.samples])

    @torch.inference_mode()
    def _compute(self, mixtures: Samples, voice: Tensor) -> Samples:
        """Run the network on equally long mixtures [batch, sample]."""
        batch = torch.from_numpy(mixtures).to(self.device)
        with self._autocast():
            estimates = self.system.extract(batch, voice.expand(len(batch), -1))
        return self._finite(estimates)

    @torch.inference_mode()
    def _embed_one(self, clip: Samples) -> Samples:
        """Embed a clip, or remember that it was."""
        key = hashlib.sha256(np.ascontiguousarray(clip).tobytes()).digest()
        if key not in self._embeddings:
            with self._autocast():
                embedding = self.system.embed(torch.from_numpy(clip).to(self.device)[None])
            self._embeddings[key] = self._finite(embedding)[0]
        return self._embeddings[key]

    def _finite(self, values: Tensor) -> Samples:
        """To float32 on the CPU, refusing what overflowed."""
        array: Samples = values.float().cpu().numpy()
        if not np.isfinite(array).all():
            cure = "Is the model damaged, or the recording at an absurd level?"
            if self.precision != "float32":
                cure = "Use --precision float32."
            raise EngineError(f"{self.precision} overflowed on {self.device}. {cure}")
        return array

    def _autocast(self) -> AbstractContextManager[Any]:
        """The precision's context."""
        dtype = getattr(torch, self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _windowing(self) -> Windowing:
        """The settings' seconds as samples."""
        rate, settings = self.sample_rate_hz, self.settings
        seconds = settings.window_s, settings.context_s, settings.fade_s
        return Windowing(*(round(s * rate) for s in seconds))


def _groups(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Windows of about `size` signals in all; those of one stream are equally long."""
    group: list[Window] = []
    for window in windows:
        group.append(window)
        if len(group) * len(window.samples) >= size:
            yield group
            group = []
    if group:
        yield group


def check_signal(name: str, samples: Samples, sample_rate_hz: int) -> None:
    """Refuse a signal [sample] that no network could use.

    Raises:
        AudioError: it is shorter than 0.3 s or silent.
    """
    check_length(name, len(samples) / sample_rate_hz)
    check_level(name, float(np.mean(np.square(samples, dtype=np.float64))))


def check_length(name: str, seconds: float) -> None:
    """Refuse a signal of under 0.3 s.

    Raises:
        AudioError: as said.
    """
    if seconds < LEAST_S:
        raise AudioError(f"{name}: {seconds:.2f} s is too short. Give {LEAST_S} s or more.")


def check_level(name: str, mean_square: float) -> None:
    """Refuse a silent signal.

    Raises:
        AudioError: as said.
    """
    if level_db(mean_square) < SILENCE_DB:
        raise AudioError(f"{name}: is silent. Check the recording and its channels.")


def level_db(mean_square: float) -> float:
    """Level in dB of full scale."""
    return 10 * float(np.log10(max(mean_square, 1e-30)))


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
