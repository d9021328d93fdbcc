"""One network at work: references to embeddings, and windows of any recording to estimates.

The `Engine` brings signals, and soft passages in them, to the network's level, and to the polarity
of the reference, which it finds. It makes batches that fit into memory, and runs a
`runtime.Runtime` over them as often as it is told. `TorchRuntime` runs the network in torch;
`onnx.OnnxRuntime` does the same in ONNX Runtime.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from mcspex_cli.audio import (
    LOUDEST,
    MIN_SIGNAL_S,
    MOST_CHANNELS,
    SILENCE_DB,
    Floats,
    Samples,
    check_length,
    check_level,
)
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, load_checkpoint
from mcspex_cli.errors import EngineError, is_lack_of_memory
from mcspex_cli.extraction import onnx, speech
from mcspex_cli.extraction.presence import Calibration, cosine, parse_calibration
from mcspex_cli.extraction.runtime import (
    GPU_BATCH,
    LENGTH_SPREAD,
    EngineSettings,
    OutOfMemoryError,
    Runtime,
    choose_device,
    choose_precision,
)
from mcspex_cli.extraction.windows import Joiner, Window, Windowing, cut

if TYPE_CHECKING:
    import torch

    from mcspex_cli.model.systems import System

Owner = TypeVar("Owner")

LEVEL_DB = -28.0
"""The RMS level at which a network gets every reference and window, whatever their level in the
file: a network does worse at levels that it did not train on."""

_SILENT = 10 ** (SILENCE_DB / 10)
"""The mean square up to which a signal is silent."""

_SHARE = 0.45
"""Of what no estimate explains, the target gets this times its part of all energy. Chosen on
quiet and noisy mixtures, and on single voices in noise: more is better in quiet."""

_LONGEST_EMBEDDED_S = 30.0
"""Seconds of reference embedded at once, so that memory does not grow with a clip."""

POLARITY_SIMILARITY = 0.6
"""The cosine to the reference that an estimate needs to decide the polarity of a mixture. With
`mcspex-16k` it finds 94 % of 63 inverted mixtures; 0.7 finds 84 %."""

_POLARITY_LEAD = 0.2
"""How much larger its cosine must be than that of the estimate of the other polarity. With 0.1, a
mixture that was not inverted was once taken for inverted, by its first second."""


def is_inverted(inverse: float, upright: float) -> bool:
    """Whether a sound is inverted, by how similar its estimates are to the reference.

    `inverse` is the similarity of the inverted sound's estimate, `upright` that of the sound's own.
    The inverse must be similar enough, and clearly more so.
    """
    return inverse >= max(POLARITY_SIMILARITY, upright + _POLARITY_LEAD)


@dataclass(eq=False)
class Polarity:
    """Whether a mixture has the polarity of the reference, or the inverse one.

    Microphones and amplifiers may invert sound. Nobody hears it, but a network that learned from
    references and mixtures of one microphone hardly finds the target then: SI-SDRi fell from 7.5
    to -0.7 dB on 45 mixtures. `Engine.find_polarities` decides it. Not from the paper.
    """

    embedding: Samples
    """[embedding], of the reference."""
    sign: float = 1.0
    """1 or -1: what sound of the mixture is multiplied by to have the reference's polarity."""
    is_known: bool = False


@dataclass(frozen=True, eq=False)
class _Signal:
    """One channel of a window, in the polarity of the reference."""

    samples: Samples
    """[sample]."""
    embedding: Samples
    """[embedding], of whom to extract."""
    first: Samples | None = None
    """Its estimate [sample] by one pass, if there is one already."""

    def times(self, gain: Samples) -> _Signal:
        first = None if self.first is None else self.first * gain
        return _Signal(self.samples * gain, self.embedding, first)


class TorchRuntime(Runtime):
    """A `System` in torch: folded on a CPU, if it and the precision allow it; else autocast."""

    name = "torch"
    spread = LENGTH_SPREAD

    def __init__(self, system: System, settings: EngineSettings) -> None:
        import torch

        from mcspex_cli.model.systems import can_fold, fold

        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = choose_device(settings.device)
        self.device, self.precision = str(device), choose_precision(settings.precision, device)
        self.sample_rate_hz, self.hop = system.config.sample_rate_hz, system.config.hop
        self.true_level = system.config.true_level
        self.embedding = system.config.embedding
        self.batch = GPU_BATCH if device.type == "cuda" else 1
        dtype = getattr(torch, self.precision)
        folded = device.type == "cpu" and dtype != torch.float16 and can_fold(system)
        self.system = fold(system, dtype) if folded else system.to(device).eval()
        self._autocast = torch.autocast(
            device.type, dtype, enabled=not folded and dtype != torch.float32
        )
        self._device = device
        self._dtype = dtype if folded else torch.float32  # of what goes in

    def embed(self, references: Samples) -> Samples:
        """As `Runtime.embed`."""
        return self._run(self.system.embed, references)

    def extract(self, mixtures: Sequence[Samples], embeddings: Samples) -> list[Samples]:
        """As `Runtime.extract`."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        counts = [len(mixture) for mixture in mixtures]

        def network(mixture: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            lengths = None if len({*counts}) == 1 else torch.tensor(counts, device=self._device)
            return self.system.extract(mixture, embedding, lengths)

        padded = pad_sequence([torch.from_numpy(mixture) for mixture in mixtures], batch_first=True)
        rows = self._run(network, padded, embeddings)
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def _run(
        self, network: Callable[..., torch.Tensor], *signals: Samples | torch.Tensor
    ) -> Samples:
        """What the network makes of signals; lack of memory is told from other errors."""
        import torch

        try:
            with torch.inference_mode(), self._autocast:
                tensors = [torch.as_tensor(one).to(self._device, self._dtype) for one in signals]
                return network(*tensors).float().cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if is_lack_of_memory(error):
                raise OutOfMemoryError from error
            raise


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
        TypeError: the system is neither a `System` nor a `Runtime`.
    """

    def __init__(
        self,
        system: System | Runtime,
        settings: EngineSettings | None = None,
        calibration: Calibration | None = None,
        label: str = "the model",
    ) -> None:
        settings = settings or EngineSettings()
        if not isinstance(system, Runtime):
            if not hasattr(system, "config"):
                raise TypeError(f"an Engine runs a System or a Runtime, not {system!r:.80}")
            if settings.runtime not in ("auto", "torch"):
                raise EngineError(
                    f"a System runs in torch. For {settings.runtime}, use open_engine."
                )
            system = TorchRuntime(system, settings)
        self.runtime, self.calibration, self.label = system, calibration, label
        self.sample_rate_hz, self.passes = system.sample_rate_hz, settings.passes
        self.signals_at_once = settings.batch or system.batch
        """Windows times channels; halved whenever memory is short."""
        seconds = settings.window_s, settings.context_s, settings.fade_s
        self.windowing = Windowing(*(round(s * self.sample_rate_hz) for s in seconds))
        self._process = os.getpid()

    def embed(self, references: Sequence[Floats], name: str = "the reference") -> Samples:
        """Embed one person from one or more clips [sample] at `sample_rate_hz`.

        Clips are embedded unpadded, those over 30 s in equal parts, and averaged by duration.
        Messages call them `name`.

        Returns:
            [embedding].

        Raises:
            AudioError: a clip is shorter than 0.3 s or silent.
            EngineError: the precision gave numbers that are not finite, or memory is short.
            TypeError, ValueError: there is no clip, or `as_samples` refuses one.
        """
        if not len(references):
            raise ValueError("embed needs one clip or more")
        longest, parts = round(_LONGEST_EMBEDDED_S * self.sample_rate_hz), []
        for reference in references:
            clip = as_samples("a reference", reference, 1)
            mean_square = float(_power(clip)[0])
            check_length(name, len(clip) / self.sample_rate_hz)
            check_level(name, mean_square)
            parts += np.array_split(clip, -(-len(clip) // longest))
        embeddings = [self.embed_parts(part[None])[0] for part in parts]
        weights = [float(len(part)) for part in parts]
        return np.average(embeddings, axis=0, weights=weights).astype(np.float32)

    def embed_parts(self, parts: Samples) -> Samples:
        """Embed equally long stretches of sound [part, sample], unchecked, as [part, embedding].

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
        """
        self.check_process()
        try:
            embeddings = self._embed(parts)
        except OutOfMemoryError as error:
            raise self._short_of_memory() from error
        self.check_finite(embeddings)
        return embeddings

    def _embed(self, parts: Samples) -> Samples:
        levelled = parts * to_level(parts)
        at_once = max(1, round(_LONGEST_EMBEDDED_S * self.sample_rate_hz) // parts.shape[1])
        starts = range(0, len(parts), at_once)
        return np.concatenate(
            [self.runtime.embed(levelled[start : start + at_once]) for start in starts]
        )

    def extract(self, mixture: Floats, embedding: Floats) -> Samples:
        """Extract the target of `embedding` [embedding] from `mixture` [sample].

        Returns:
            [sample], as long as the mixture, at the network's own, arbitrary level.

        Raises:
            EngineError: the precision gave numbers that are not finite, or memory is short.
            TypeError, ValueError: `as_samples` refuses the mixture or the embedding, or the
                embedding is of another length.
        """
        sound = as_samples("a mixture", mixture, 1)
        voice = as_samples("an embedding", embedding, 1)
        length = len(voice)
        if self.runtime.embedding not in (0, length):
            raise ValueError(
                f"an embedding of this model has {self.runtime.embedding} numbers, not {length}"
            )
        joiner = Joiner(self.windowing.context, self.windowing.fade)
        polarity, parts = Polarity(voice), []
        for batch in self.batches((None, window) for window in cut([sound[None]], self.windowing)):
            windows = [window.samples for _, window in batch]
            estimates = self.compute(windows, [polarity] * len(batch))
            for (_, window), estimate in zip(batch, estimates, strict=True):
                self.check_finite(estimate)
                parts.append(joiner.add(window, estimate)[0])
        return np.concatenate(parts, axis=-1)[0]

    def find_polarities(
        self, windows: Sequence[Samples], polarities: Sequence[Polarity]
    ) -> list[Samples | None]:
        """Decide each of the polarities by its windows [channel, sample], unless it is known.

        Try windows upright. Where none resembles the reference, try them inverted. The polarity is
        known once an upright one resembles it, or once `is_inverted` is sure of an inverted one;
        until then it stays upright. None of 63 mixtures was inverted by mistake. Windows of one
        mixture have one `Polarity`; those under 0.3 s decide nothing.

        Returns:
            For each window, where it was computed, what `compute` gives for it by one pass.
        """
        shortest = MIN_SIGNAL_S * self.sample_rate_hz
        long_enough = [k for k, window in enumerate(windows) if window.shape[-1] >= shortest]
        estimates: dict[float, dict[int, Samples]] = {}
        upright: dict[int, float] = {}
        for sign in (1.0, -1.0):
            tried = [k for k in long_enough if not polarities[k].is_known]
            views = [replace(polarities[k], sign=sign) for k in tried]
            computed = self.compute([windows[k] for k in tried], views, passes=1)
            estimates[sign] = dict(zip(tried, computed, strict=True))
            for k, estimate in estimates[sign].items():
                if (polarity := polarities[k]).is_known:  # by another window of its mixture
                    continue
                similarity = self._similarity(sign * estimate, sign * windows[k], polarity)
                if sign > 0:
                    upright[k] = similarity
                    polarity.is_known = similarity >= POLARITY_SIMILARITY
                elif is_inverted(similarity, upright[k]):
                    polarity.sign, polarity.is_known = sign, True
        return [estimates[polarity.sign].get(k) for k, polarity in enumerate(polarities)]

    def _similarity(self, estimate: Samples, mixture: Samples, polarity: Polarity) -> float:
        """How similar the most similar channel of an estimate is to the reference; -1 to 1."""
        if not np.isfinite(estimate).all():
            return -1.0  # whoever uses the estimate says why
        same_way = np.sign((estimate * mixture).sum(-1, keepdims=True))
        embeddings = self.embed_parts(same_way * estimate)
        return max(cosine(one, polarity.embedding) for one in embeddings)

    def batches(
        self, windows: Iterable[tuple[Owner, Window]]
    ) -> Iterator[list[tuple[Owner, Window]]]:
        """Put neighbours of about equal length together.

        A batch ends once it has `signals_at_once` channels or more. The runtime's `spread` says how
        much their lengths may differ.
        """
        batch: list[tuple[Owner, Window]] = []
        for owner, window in windows:
            lengths = [one.samples.shape[-1] for one in (window, *(other for _, other in batch))]
            if min(lengths) < (1 - self.runtime.spread) * max(lengths):
                yield batch
                batch = []
            batch.append((owner, window))
            if sum(len(one.samples) for _, one in batch) >= self.signals_at_once:
                yield batch
                batch = []
        if batch:
            yield batch

    def compute(
        self,
        windows: Sequence[Samples],
        polarities: Sequence[Polarity],
        passes: int | None = None,
        firsts: Sequence[Samples | None] | None = None,
    ) -> list[Samples]:
        """Run the network on windows [channel, sample], each for the target of its `Polarity`.

        The network gets them in the polarity of their reference, and what it gives comes back in
        that of the windows. They are about equally long, as `batches` makes them. If memory is
        short, they are computed in halves, and later batches are smaller; if it is too short for
        one signal, that is an EngineError. The caller has to `check_finite` each estimate.

        Args:
            windows: parts of mixtures.
            polarities: for each window that of its mixture, as far as it is known.
            passes: how often, as `EngineSettings.passes`; None for the engine's own.
            firsts: for each window its estimate by one pass, if there is one already.

        Returns:
            For each window its estimate [channel, sample].
        """
        self.check_process()
        if not windows:
            return []
        signals: list[_Signal] = []
        firsts = firsts or [None] * len(windows)
        for window, polarity, first in zip(windows, polarities, firsts, strict=True):
            sign, voice = polarity.sign, polarity.embedding
            given = [None] * len(window) if first is None else [*(sign * first)]
            channels = zip(sign * window, given, strict=True)
            signals += [_Signal(samples, voice, one) for samples, one in channels]
        passes = passes or self.passes
        run = self._without_pauses if passes > 1 else self._estimates
        estimates = iter(run(signals, passes))
        return [
            polarity.sign * np.stack([next(estimates) for _ in window])
            for window, polarity in zip(windows, polarities, strict=True)
        ]

    def _without_pauses(self, signals: Sequence[_Signal], passes: int) -> list[Samples]:
        """Estimates of signals, each computed as if it had no long pauses.

        The networks' norms see a whole signal, and the networks learned from signals without long
        pauses. In five mixtures, a pause of 5 s cost 3 dB on average, and up to 12 dB. What comes
        out in pauses is of a single pass over the whole signal: noise alone would be turned up.
        """
        pauses = {}
        for k, signal in enumerate(signals):
            is_pause = speech.find_pauses(signal.samples, self.sample_rate_hz)
            if is_pause.any() and not is_pause.all():
                pauses[k] = is_pause
        if not pauses:
            return self._estimates(signals, passes)
        wholes = self._estimates([signals[k] for k in pauses], 1)
        parts = [*signals]
        for k, is_pause in pauses.items():
            parts[k] = _Signal(signals[k].samples[~is_pause], signals[k].embedding)
        estimates = self._estimates(parts, passes)
        for (k, is_pause), whole in zip(pauses.items(), wholes, strict=True):
            part = estimates[k]
            estimates[k] = whole * _fit(whole[~is_pause], part)
            if _power(signals[k].samples[is_pause]) <= _SILENT:
                estimates[k][is_pause] = 0
            estimates[k][~is_pause] = part
        return estimates

    def _estimates(self, signals: Sequence[_Signal], passes: int) -> list[Samples]:
        """The network's estimates of signals; for silence, where it would hum, silence."""
        gains = [self._gains(signal.samples) for signal in signals]
        levelled = [one.times(gain) for one, gain in zip(signals, gains, strict=True)]
        estimates = None
        try:
            estimates = self._run_passes(levelled, passes)
        except OutOfMemoryError as error:
            if len(signals) == 1:
                raise self._short_of_memory() from error
        if estimates is None:  # not in `except`: the error's traceback holds the tensors
            half = len(signals) // 2
            self.signals_at_once = max(1, min(self.signals_at_once, half))
            halves = signals[:half], signals[half:]
            return [one for some in halves for one in self._estimates(some, passes)]
        return [
            np.where(_power(signal.samples) <= _SILENT, np.float32(0), estimate / gain)
            for signal, estimate, gain in zip(signals, estimates, gains, strict=True)
        ]

    def _gains(self, signal: Samples) -> Samples:
        """Gains [sample or 1] that make a signal [sample] even, and bring it to `LEVEL_DB`.

        The network's norms see all of a signal: it hardly hears what is far softer than the rest.
        """
        levels_db = speech.frame_levels_db(signal, self.sample_rate_hz)
        gains_db = speech.even_gains_db(levels_db)
        if not gains_db.any():
            return to_level(signal)
        frames = np.arange(len(signal)) / (speech.FRAME_S * self.sample_rate_hz) - 0.5
        gains = 10 ** (np.interp(frames, np.arange(len(gains_db)), gains_db) / 20)
        even = gains.astype(np.float32)
        return even * to_level(signal * even)

    def _run_passes(self, signals: Sequence[_Signal], passes: int) -> list[Samples]:
        """Estimates from several passes of the network over signals.

        Passes 0, 2, 4, ... are for the target; a signal may have its estimate by pass 0, which is
        not shifted. Passes 1, 3, ... are for the other voices; their reference is what the mean of
        the former leaves of the mixture. See `_refine`.
        """
        shifts = [round(number * self.runtime.hop / passes) for number in range(passes)]
        missing = [signal for signal in signals if signal.first is None]
        computed = iter(self._run_once(missing) if missing else ())
        firsts = [next(computed) if one.first is None else one.first for one in signals]
        estimates = self._mean_of_shifts(signals, shifts[2::2], firsts)
        if passes == 1:
            return estimates
        mixtures = [signal.samples for signal in signals]
        rests = [_rest(*pair) for pair in zip(mixtures, estimates, strict=True)]
        others = [_Signal(*pair) for pair in zip(mixtures, self._voices(rests), strict=True)]
        other_estimates = self._mean_of_shifts(others, shifts[1::2])
        return [_refine(*three) for three in zip(estimates, mixtures, other_estimates, strict=True)]

    def _voices(self, signals: Sequence[Samples]) -> Samples:
        """Embed each of signals [sample], as [signal, embedding]; short ones are repeated."""
        shortest = round(MIN_SIGNAL_S * self.sample_rate_hz)
        lengthened = (np.resize(signal, max(len(signal), shortest)) for signal in signals)
        groups = groupby(lengthened, len)
        return np.concatenate([self._embed(np.stack(list(group))) for _, group in groups])

    def _mean_of_shifts(
        self, signals: Sequence[_Signal], shifts: Sequence[int], *others: Sequence[Samples]
    ) -> list[Samples]:
        """The mean of what the network gives for signals at some shifts, and of `others`.

        A network's errors depend on where in a sound its frames fall. They differ from shift to
        shift, so that the mean has less of them.
        """
        runs = [*others, *(self._run_once(signals, shift) for shift in shifts)]
        return [
            np.mean(estimates, axis=0, dtype=np.float32) for estimates in zip(*runs, strict=True)
        ]

    def _run_once(self, signals: Sequence[_Signal], shift: int = 0) -> list[Samples]:
        """One pass of the network over signals, each `shift` samples later."""
        shifted = [np.pad(signal.samples, (shift, 0)) for signal in signals]
        embeddings = np.stack([signal.embedding for signal in signals])
        return [one[shift:] for one in self.runtime.extract(shifted, embeddings)]

    def check_finite(self, numbers: Samples) -> None:
        """Refuse what the network gave if it is not finite: by the precision, or the model."""
        if np.isfinite(numbers).all():
            return
        runtime = self.runtime
        if runtime.precision != "float32":
            raise EngineError(
                f"{runtime.precision} overflowed on {runtime.device}. Use --precision float32."
            )
        raise EngineError(
            f"{self.label}: gave numbers that are not finite. The model, or the profile of the "
            "voice, is damaged. Install the model, or enroll the voice, again."
        )

    def _short_of_memory(self) -> EngineError:
        return EngineError(
            f"{self.runtime.device} is out of memory. Close other programs, or use a shorter "
            "window or another device."
        )

    def check_process(self) -> None:
        """Refuse to compute in a fork, where the threads of the libraries are gone."""
        if os.getpid() != self._process:
            raise EngineError(
                "this engine was made before the process forked, and would hang here. Make an "
                'engine in each process, or start processes with multiprocessing\'s "spawn".'
            )


def open_engine(
    info: CheckpointInfo, settings: EngineSettings | None = None, seconds: float = math.inf
) -> Engine:
    """Load a checkpoint with the runtime that `settings` name, for `seconds` of audio in all.

    Raises:
        CheckpointError: the weights, graphs or calibration are damaged, or do not fit.
        EngineError: the runtime, device or precision is not available here.
        OutputError: graphs for ONNX Runtime were made, and cannot be kept.
    """
    settings = onnx.choose_runtime(info, settings or EngineSettings(), seconds)
    if settings.runtime == "onnx":
        graphs = onnx.find_or_prepare(info)
        system: System | Runtime = onnx.OnnxRuntime(graphs, info.config, settings)
    else:
        system = load_checkpoint(info)
    calibration = parse_calibration(info.calibration, info.config.embedding, info.label)
    return Engine(system, settings, calibration, info.label)


def as_samples(name: str, samples: Floats, *dimensions: int, whole: bool = True) -> Samples:
    """Give sound as float32, and refuse an array that is not sound.

    Args:
        name: what messages call it.
        samples: [sample] or [channel, sample].
        dimensions: how many it may have: 1, 2 or both.
        whole: whether it is all of a sound; a block of one may be empty, or shorter than it has
            channels.

    Raises:
        TypeError: it is not an array of floats.
        ValueError: it has another shape, no samples, or some that are not finite or far too loud.
    """
    shape = " or ".join({1: "[sample]", 2: "[channel, sample]"}[number] for number in dimensions)
    is_array = isinstance(samples, np.ndarray) and not isinstance(samples, np.ma.MaskedArray)
    if not is_array or samples.dtype.kind != "f":
        kind = samples.dtype if is_array else type(samples).__name__
        raise TypeError(
            f"{name} must be a NumPy array {shape} of float numbers in -1..1, not {kind}."
        )
    samples = np.asarray(samples)  # and not np.matrix, say
    problem = f"{name} has the shape {list(samples.shape)}; it must be {shape}."
    if samples.ndim not in dimensions or samples.shape[:-1] == (0,):
        raise ValueError(problem)
    if whole and not samples.size:
        raise ValueError(f"{name} has no samples.")
    if samples.ndim == 2 and len(samples) > (samples.shape[1] if whole else MOST_CHANNELS):
        raise ValueError(f"{problem} Transpose it.")
    with np.errstate(over="ignore"):
        sound = samples.astype(np.float32)
    if not np.isfinite(sound).all():
        raise ValueError(f"{name} has samples that are NaN or infinite.")
    if np.abs(sound).max(initial=0) > LOUDEST:
        raise ValueError(f"{name} has impossibly loud samples: sound is in -1..1.")
    return sound


def _refine(estimate: Samples, signal: Samples, other: Samples) -> Samples:
    """Give an estimate its share of what it and that of the `other` voices leave of the signal.

    All voices together are the mixture, but for noise. In "mixture consistency" (Wisdom et al.,
    "Differentiable consistency constraints for improved deep speech enhancement", 2019) the
    estimates get all that they leave; here, where it may be noise, the target gets a part.

    Returns:
        [sample], at the estimate's own level.
    """
    rest = _rest(signal, estimate)
    left = _rest(rest, other)
    target, others = signal - rest, rest - left
    energy, *energies = (
        float(np.square(one, dtype=np.float64).sum()) for one in (target, others, left)
    )
    if not energy:
        return estimate
    share = np.float32(_SHARE * energy / (energy + sum(energies)))
    return np.divide(target + share * left, _fit(estimate, signal), dtype=np.float32)


def _rest(signal: Samples, estimate: Samples) -> Samples:
    """What an estimate [sample] of any level leaves of a signal [sample]."""
    return signal - _fit(estimate, signal) * estimate


def _fit(estimate: Samples, signal: Samples) -> np.float32:
    """The gain of `estimate` [sample] that brings it closest to `signal` [sample]."""
    product, energy = ((estimate * one).sum(dtype=np.float64) for one in (signal, estimate))
    return np.float32(product / energy if energy else 0)


def to_level(signals: Samples) -> Samples:
    """The gains [..., 1] that bring signals [..., sample] to `LEVEL_DB`; 1 for silent ones."""
    power = _power(signals)
    gains = np.sqrt(10 ** (LEVEL_DB / 10) / np.maximum(power, 1e-30))
    return np.where(power <= _SILENT, 1.0, gains).astype(np.float32)


def _power(signals: Samples) -> npt.NDArray[np.float64]:
    """Mean squares [..., 1] of signals [..., sample]."""
    return np.square(signals, dtype=np.float64).mean(-1, keepdims=True)
