"""One network at work: references to embeddings, and windows of any recording to estimates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import HIGHEST_HZ, LOUDEST, LOWEST_HZ, MOST_CHANNELS, Samples
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import EngineError
from mcspex_cli.extraction.levels import SILENCE_DB, check_length, check_level
from mcspex_cli.extraction.presence import Calibration, parse_calibration
from mcspex_cli.extraction.runtime import (
    RUNTIMES,
    EngineSettings,
    OutOfMemoryError,
    Runtime,
    TorchRuntime,
)
from mcspex_cli.extraction.windows import Joiner, Window, Windowing, cut

if TYPE_CHECKING:
    from mcspex_cli.model.systems import System

Owner = TypeVar("Owner")

LEVEL_DB = -28.0
"""The RMS level at which a network gets every reference and window, whatever their level in the
file: a network does worse at levels that it did not train on."""

LONGEST_EMBEDDED_S = 30.0
"""Seconds of reference embedded at once, so that memory does not grow with a clip."""


class Engine:
    """Embeds references and extracts targets with one network.

    ```python
    engine = Engine(load_checkpoint())
    embedding = engine.embed([reference])
    estimate = engine.extract(mixture, embedding)
    ```

    `Extractor` is the road for files, levels and presence; this has the network's own numbers.

    Args:
        system: a `System`, which torch runs, or a `Runtime` that is ready.
        settings: how to compute.
        calibration: what the similarities of this model mean, if that was measured.
        label: what messages call the model.

    Raises:
        EngineError: the device or precision is not available here.
        TypeError: the system is none.
    """

    def __init__(
        self,
        system: System | Runtime,
        settings: EngineSettings | None = None,
        calibration: Calibration | None = None,
        label: str = "the model",
    ) -> None:
        self.label = label
        self.settings = settings or EngineSettings()
        self.calibration = calibration
        if not isinstance(system, Runtime):
            if not hasattr(system, "config"):
                raise TypeError(f"an Engine runs a System or a Runtime, not {system!r:.80}")
            if self.settings.runtime not in ("auto", "torch"):
                raise EngineError(
                    f"a System runs in torch. For {self.settings.runtime}, use open_engine."
                )
            system = TorchRuntime(system, self.settings)
        self.runtime = system
        self.sample_rate_hz = self.runtime.sample_rate_hz
        self.batch = self.settings.batch or self.runtime.batch
        """Signals computed at once; halved whenever memory is short."""
        seconds = self.settings.window_s, self.settings.context_s, self.settings.fade_s
        self.windowing = Windowing(*(round(s * self.sample_rate_hz) for s in seconds))
        self._embeddings: dict[bytes, Samples] = {}
        self._process = os.getpid()

    def embed(self, references: Sequence[Samples]) -> Samples:
        """Embed one voice from one or more clips [sample] at `sample_rate_hz`.

        Clips are embedded unpadded, those over 30 s in equal parts, and averaged by duration.
        A clip that was embedded before is not computed again.

        Returns:
            [embedding].

        Raises:
            AudioError: a clip is shorter than 0.3 s or silent.
            EngineError: the precision gave numbers that are not finite.
            ValueError: there is no clip, or one is not [sample] or not finite.
        """
        if not len(references):
            raise ValueError("embed needs one clip or more")
        clips = [check_samples("a reference", clip, 1) for clip in references]
        for clip in clips:
            check_length("the reference", len(clip) / self.sample_rate_hz)
            check_level("the reference", float(_power(clip)[0]))
        return self.embed_checked(clips)

    def embed_checked(self, clips: Sequence[Samples]) -> Samples:
        """As `embed`, of clips that are known to be sound of 0.3 s or more."""
        longest = round(LONGEST_EMBEDDED_S * self.sample_rate_hz)
        parts = [part for clip in clips for part in np.array_split(clip, -(-len(clip) // longest))]
        embeddings = [self._remembered(part) for part in parts]
        weights = [float(len(part)) for part in parts]
        averaged: Samples = np.average(embeddings, axis=0, weights=weights).astype(np.float32)
        return averaged

    def embed_parts(self, parts: Samples) -> Samples:
        """Embed equally long stretches of sound [part, sample], unchecked and not remembered.

        Returns:
            [part, embedding].

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
        """
        self._check_process()
        levelled = parts * to_level(parts)
        at_once = max(1, round(LONGEST_EMBEDDED_S * self.sample_rate_hz) // parts.shape[1])
        starts = range(0, len(parts), at_once)
        try:
            embeddings = np.concatenate(
                [self.runtime.embed(levelled[start : start + at_once]) for start in starts]
            )
        except OutOfMemoryError as error:
            raise self._short_of_memory() from error
        self.check_finite(embeddings)
        return embeddings

    def extract(self, mixture: Samples, embedding: Samples) -> Samples:
        """Extract the voice of `embedding` [embedding] from `mixture` [sample].

        Returns:
            [sample], as long as the mixture, at the network's own, arbitrary level.

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
            ValueError: the mixture is not [sample] or not finite, or the embedding is of
                another length.
        """
        mixture = check_samples("a mixture", mixture, 1)
        self._check_embedding(embedding)
        parts = [estimate for estimate, _ in self.stream([mixture[None]], embedding)]
        return np.concatenate(parts, axis=-1)[0] if parts else mixture[:0]

    def stream(
        self, blocks: Iterable[Samples], embedding: Samples
    ) -> Iterator[tuple[Samples, Samples]]:
        """Extract from a stream of blocks [channel, sample], each channel for itself.

        Yields:
            The estimate and the mixture's samples that it belongs to, both [channel, sample],
            in other blocks than those that went in.

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
            TypeError, ValueError: a block is not [channel, sample] or not finite, or the embedding
                is of another length.
        """
        self._check_embedding(embedding)
        joiner = Joiner(self.windowing)
        checked = (_check_block(block) for block in blocks)
        for batch in self.batches((None, window) for window in cut(checked, self.windowing)):
            estimates = self.compute([(window.samples, embedding) for _, window in batch])
            for (_, window), estimate in zip(batch, estimates, strict=True):
                self.check_finite(estimate)
                yield joiner.add(window, estimate)

    def batches(
        self, windows: Iterable[tuple[Owner, Window]]
    ) -> Iterator[list[tuple[Owner, Window]]]:
        """Put neighbours of about equal length together until they have `batch` channels or more.

        The runtime's `spread` says how much their lengths may differ.
        """
        batch: list[tuple[Owner, Window]] = []
        for owner, window in windows:
            lengths = [one.samples.shape[-1] for one in (window, *(other for _, other in batch))]
            if min(lengths) < (1 - self.runtime.spread) * max(lengths):
                yield batch
                batch = []
            batch.append((owner, window))
            if sum(len(one.samples) for _, one in batch) >= self.batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def compute(self, pairs: Sequence[tuple[Samples, Samples]]) -> list[Samples]:
        """Run the network on mixtures [channel, sample], each with its [embedding].

        They are about equally long, as `batches` has them. Where memory is short this goes on by
        halves, and from then on in smaller batches.

        Returns:
            The estimates [channel, sample], not checked for numbers that are not finite.

        Raises:
            EngineError: even one signal is too much for the memory.
        """
        self._check_process()
        signals = [signal for mixture, _ in pairs for signal in mixture]
        counts = [len(mixture) for mixture, _ in pairs]
        voices = np.repeat([embedding for _, embedding in pairs], counts, axis=0)
        estimates = iter(self._estimates(signals, voices))
        return [np.stack(list(islice(estimates, count))) for count in counts]

    def check_finite(self, values: Samples) -> None:
        """Refuse what the network gave where it is not finite.

        Raises:
            EngineError: it is not; the message says whether the precision or the model is to blame.
        """
        if np.isfinite(values).all():
            return
        runtime = self.runtime
        if not runtime.has_finite_weights():
            raise EngineError(
                f"{self.label}: its weights are not finite. Install or copy it again."
            )
        if runtime.precision != "float32":
            raise EngineError(
                f"{runtime.precision} overflowed on {runtime.device}. Use --precision float32."
            )
        raise EngineError(
            f"{self.label}: gave numbers that are not finite. The model, or the profile of the "
            "voice, is damaged. Install the model, or enroll the voice, again."
        )

    def _estimates(self, signals: Sequence[Samples], voices: Samples) -> list[Samples]:
        """What the network gives for signals [sample]; silence for silence, where it would hum."""
        gains = [to_level(signal) for signal in signals]
        levelled = [signal * gain for signal, gain in zip(signals, gains, strict=True)]
        try:
            estimates = self.runtime.extract(levelled, voices)
        except OutOfMemoryError as error:
            if len(signals) == 1:
                raise self._short_of_memory() from error
            half = len(signals) // 2
            self.batch = max(1, min(self.batch, half))
            parts = (slice(half), slice(half, None))
            return [one for part in parts for one in self._estimates(signals[part], voices[part])]
        return [
            np.where(is_silent(signal), np.float32(0), estimate / gain)
            for signal, estimate, gain in zip(signals, estimates, gains, strict=True)
        ]

    def _remembered(self, clip: Samples) -> Samples:
        key = hashlib.sha256(np.ascontiguousarray(clip).tobytes()).digest()
        if key not in self._embeddings:
            self._embeddings[key] = self.embed_parts(clip[None])[0]
        return self._embeddings[key]

    def _short_of_memory(self) -> EngineError:
        return EngineError(
            f"{self.runtime.device} is out of memory. Close other programs, or use a shorter "
            "window or another device."
        )

    def _check_embedding(self, embedding: Samples) -> None:
        length = len(check_samples("an embedding", embedding, 1))
        if self.runtime.embedding not in (0, length):
            raise ValueError(
                f"an embedding of this model has {self.runtime.embedding} numbers, not {length}"
            )

    def _check_process(self) -> None:
        """Refuse to compute in a fork, where the threads of the libraries are gone."""
        if os.getpid() != self._process:
            raise EngineError(
                "this engine was made before the process forked, and would hang here. Make an "
                'engine in each process, or start processes with multiprocessing\'s "spawn".'
            )


def open_engine(info: CheckpointInfo, settings: EngineSettings | None = None) -> Engine:
    """Load a checkpoint with the runtime that `settings` name; "auto" is torch.

    Raises:
        CheckpointError: the weights, graphs or calibration are damaged, or do not fit.
        EngineError: the runtime, device or precision is not available here.
    """
    settings = settings or EngineSettings()
    name = "torch" if settings.runtime == "auto" else settings.runtime
    runtime = RUNTIMES[name](info, settings)
    calibration = parse_calibration(info.calibration, info.config.embedding, info.label)
    return Engine(runtime, settings, calibration, info.label)


def choose_runtime(info: CheckpointInfo, settings: EngineSettings, seconds: float) -> str:
    """The runtime for `seconds` of audio in all: what "auto" means for a single command."""
    if settings.runtime != "auto":
        return settings.runtime
    from mcspex_cli.extraction import onnx

    return "onnx" if onnx.starts_sooner(info, settings, seconds) else "torch"


def check_samples(name: str, samples: Samples, dimensions: int) -> Samples:
    """Refuse an array that is not sound.

    Args:
        name: what messages call it.
        samples: [sample] or [channel, sample].
        dimensions: how many are allowed at most, 1 or 2.

    Returns:
        The samples as float32.

    Raises:
        TypeError: it is no array of numbers.
        ValueError: it has another shape, no samples, or samples that are not finite.
    """
    shape = "[sample]" if dimensions == 1 else "[sample] or [channel, sample]"
    is_array = isinstance(samples, np.ndarray) and not np.ma.isMaskedArray(samples)
    if not is_array or samples.dtype.kind != "f":
        raise TypeError(f"{name} must be a NumPy array {shape} of float numbers in -1..1.")
    if not 1 <= samples.ndim <= dimensions:
        raise ValueError(f"{name} has the shape {list(samples.shape)}; it must be {shape}.")
    if samples.ndim == 2 and samples.shape[0] > samples.shape[1]:
        raise ValueError(
            f"{name} has the shape {list(samples.shape)}; it must be {shape}. Transpose it."
        )
    if not samples.size:
        raise ValueError(f"{name} has no samples.")
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} has samples that are NaN or infinite.")
    if np.abs(samples).max() > LOUDEST:
        raise ValueError(f"{name} has impossibly loud samples: sound is in -1..1.")
    return samples


def _check_block(block: Samples) -> Samples:
    if np.ndim(block) != 2 or len(block) > MOST_CHANNELS:
        raise ValueError(f"a block must be [channel, sample], not of shape {list(np.shape(block))}")
    if block.size:
        check_samples("a block", block.reshape(-1), 1)
    return block


def check_rate(sample_rate_hz: float) -> None:
    """Refuse what is no sample rate.

    Raises:
        TypeError: it is no number.
        ValueError: it is not from 1 kHz to 1 MHz.
    """
    if isinstance(sample_rate_hz, bool) or not isinstance(sample_rate_hz, Real | np.number):
        raise TypeError(f"a sample rate is a number, not {sample_rate_hz!r:.80}")
    if not LOWEST_HZ <= sample_rate_hz <= HIGHEST_HZ:
        raise ValueError(f"a sample rate is from 1000 to 1000000 Hz, not {sample_rate_hz}")


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
