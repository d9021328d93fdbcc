"""How good an estimate is: every metric, and the table METRICS that names them.

Some compare it with the target. The others need no truth: they are for real recordings, and
`docs/scores-without-truth.md` says what they can and cannot tell. Sounds are [sample]. Functions
that need a package raise ConfigError if it cannot be imported, and their values are nan where the
package has none.

A new metric is one more row of METRICS. The command line's choices and help, the columns of
tables, CSV and JSON, the means and the HTML page all come from the table. One that needs what no
other does is more work: `Need` says what.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import soxr

from mcspex_cli.audio import Samples, without_rumble
from mcspex_cli.errors import CheckpointError, ConfigError, import_package, install_extra
from mcspex_cli.extraction.speech import frame_levels_db, share_of_speech

if TYPE_CHECKING:
    from mcspex_cli.extraction.extractor import Extractor

_logger = logging.getLogger("mcspex")

EXACT_DB = 200.0
"""From here on an estimate is a copy: float32 samples are good to about 150 dB."""

_SILENCE = 1e-10
"""Variance below which a signal counts as silent (-100 dBFS)."""

_ROUNDING = 1e-24
"""A signal that keeps at most this share of its energy without its mean is a constant: float64
leaves so much of one."""

_BLOCK = 2**16
"""Samples that are converted to float64 at a time."""

_DNSMOS_HZ = _WHISPER_HZ = 16_000
"""The only rate that these networks know."""

_ALIGNED_DB = 3.0
"""An estimate counts as late if aligning it brings its SI-SDR this far above 0 dB."""

_SDR_SAMPLES = 2048
"""Samples below which there is no SDR: its filter on the target has 512."""

_PESQ_MODES = {8000: "nb", 16000: "wb"}
"""PESQ's mode by sample rate; there is none for other rates."""

_PESQ_S = 20.0
"""Seconds above which there is no PESQ. P.862 is meant for 8 to 12 s, and with more than 50
utterances, which 20 s cannot hold, the package writes past its arrays and kills the process."""


def si_sdr(estimate: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, zero-mean, in float64.

    ```
    kept  = <e, t> / <t, t> * t        SI-SDR = 10 log10(|kept|^2 / |e - kept|^2)
    ```

    Args:
        estimate: [sample], of real numbers.
        target: [sample], equally long.

    Returns:
        dB; +inf for a scaled copy of the target, -inf for a constant estimate (as of zeros) or one
        orthogonal to the target, nan for a silent target, which has no SI-SDR, and for samples
        that are not finite. A sign flip does not change the value.

    Raises:
        TypeError: the samples are complex numbers, truth values, masked or no numbers.
        ValueError: the shapes differ or are not [sample].

    Source: Le Roux et al., SDR - half-baked or well done?, ICASSP 2019.
    """
    signals = _checked(estimate, target)
    if is_silent(signals[1]) or not _are_finite(*signals):
        return math.nan
    e, t = map(_Centred, signals)
    if _dot(e, e) <= _ROUNDING * e.power:
        return -math.inf
    gain = _dot(e, t) / _dot(t, t)
    signal = gain**2 * _dot(t, t)
    error = sum(_energy(one - gain * other) for one, other in zip(e, t, strict=True))
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / error) if error > 0 else math.inf


def snr(estimate: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Signal-to-noise ratio in dB in float64: 10 log10(|t|^2 / |t - e|^2).

    Arguments and errors are those of `si_sdr`.

    Returns:
        dB; +inf for the target itself, 0 for a silent estimate, at most -6 for a target with
        its sign flipped, nan for a silent target and for samples that are not finite.
    """
    e, t = _checked(estimate, target)
    if is_silent(t) or not _are_finite(e, t):
        return math.nan
    if not (t != e).any():
        return math.inf
    errors = (other - one for one, other in zip(_blocks(e), _blocks(t), strict=True))
    return _energy_db(_blocks(t)) - _energy_db(errors)


def is_flipped(estimate: npt.ArrayLike, target: npt.ArrayLike) -> bool:
    """Whether an estimate [sample] follows its target [sample] with the opposite sign."""
    return _dot(*map(_Centred, _checked(estimate, target))) < 0


def find_shift(estimate: npt.NDArray[np.floating], target: npt.NDArray[np.floating]) -> int:
    """By how many samples a bad estimate is late (or early, below 0); 0 for one that is just bad.

    It is late if its SI-SDR is much better once it is aligned. Shifts by up to 2^16 samples, or
    half its length if that is less, count. Both are [sample], and equally long.
    """
    half = min(_BLOCK, len(target))
    size = 1 << (2 * half - 1).bit_length()
    spectrum = np.zeros(size // 2 + 1, np.complex128)
    for e, t in zip(_blocks(estimate), _blocks(target), strict=True):
        spectrum += np.fft.rfft(e, size) * np.fft.rfft(t, size).conj()
    shift = int(np.abs(np.fft.irfft(spectrum, size)).argmax())
    shift -= size if shift > half else 0
    late, early = max(shift, 0), max(-shift, 0)
    if not 0 < late + early <= len(target) // 2:
        return 0
    end = len(target)
    aligned_db = si_sdr(estimate[late : end - early], target[early : end - late])
    return shift if aligned_db > max(0.0, si_sdr(estimate, target)) + _ALIGNED_DB else 0


def is_silent(samples: npt.NDArray[np.floating]) -> bool:
    """Whether `samples` [sample] vary by less than -100 dBFS (or are empty)."""
    size = max(1, samples.size)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is not silent
        mean = sum(float(block.sum()) for block in _blocks(samples)) / size
        return sum(_energy(block - mean) for block in _blocks(samples)) / size < _SILENCE


def bss_eval(
    estimate: Samples, target: Samples, interferers: Sequence[Samples] = ()
) -> tuple[float, float, float]:
    """SDR, SIR and SAR of BSS Eval, in dB, of sounds that are equally long.

    Silent interferers do not count. SIR and SAR are nan without any, and where one is a copy of the
    target or of another. All are nan for sounds so short that the filter fits anything.

    Source: Vincent et al., IEEE TASLP 2006; Scheibler, arXiv:2110.06440.
    """
    package = import_package("fast_bss_eval", "metrics")
    if len(target) < _SDR_SAMPLES:
        return (math.nan,) * 3
    sources = [target, *(sound for sound in interferers if not is_silent(sound))]
    e, s = (np.stack([np.asarray(x, np.float64) for x in xs]) for xs in ([estimate], sources))
    sdr = float(_attempt(lambda: package.sdr(s[:1], e)[0]))
    if len(s) == 1 or any(si_sdr(*pair) >= EXACT_DB for pair in combinations(s, 2)):
        return sdr, math.nan, math.nan
    # For each source, the shares of the estimate's energy that it explains alone, and with the rest
    shares = _attempt(lambda: package.numpy.square_cosine_metrics(s, e), otherwise=None)
    alone, together = (float(share[0, 0]) for share in shares) if shares else (math.nan,) * 2
    if not alone - 1e-6 <= together <= 1 + 1e-6:  # of sources that are nearly copies
        return sdr, math.nan, math.nan
    sir, sar = (
        10 * math.log10(share / (1 - share)) if 0 < share < 1 else math.nan
        for share in (alone / together, together)
    )
    return sdr, sir, sar


def pesq(estimate: Samples, target: Samples, rate_hz: int) -> float:
    """Perceptual evaluation of speech quality, MOS-LQO 1 to 4.6: narrow or wide band by rate.

    It is nan at other rates than 8 and 16 kHz, and beyond `_PESQ_S`.

    Source: ITU-T P.862.1 and P.862.2.
    """
    if rate_hz not in _PESQ_MODES or len(target) > _PESQ_S * rate_hz:
        return math.nan
    package = import_package("pesq", "metrics")
    return float(_attempt(lambda: package.pesq(rate_hz, target, estimate, _PESQ_MODES[rate_hz])))


def stoi(estimate: Samples, target: Samples, rate_hz: int, *, extended: bool = False) -> float:
    """Short-time objective intelligibility (or ESTOI), about 0 to 1.

    It is nan for less than 0.4 s of speech.

    Source: Taal et al., IEEE TASLP 2011; Jensen and Taal, IEEE TASLP 2016.
    """
    package = import_package("pystoi", "metrics")
    e, t = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    state = np.random.get_state()
    np.random.seed(0)  # the package adds noise to what is silent
    try:
        return float(_attempt(lambda: package.stoi(t, e, rate_hz, extended=extended)))
    finally:
        np.random.set_state(state)


def dnsmos(samples: Samples, rate_hz: int) -> dict[str, float]:
    """DNSMOS of a sound: what listeners would say of it, 1 (bad) to 5.

    A shorter sound than 9 s is repeated, a longer one has the mean over windows of 9 s, a second
    apart. It takes about 0.7 s of one core for each window, up to 6 s for a short sound.

    Returns:
        "sig_mos" (the speech), "bak_mos" (the background) and "ovrl_mos" (all), by P.835, and
        "p808_mos"; nothing for silence.

    Source: Reddy et al., ICASSP 2021 (P.808) and ICASSP 2022 (P.835).
    """
    package = import_package("speechmos.dnsmos", "metrics")
    if is_silent(samples):
        return {}
    sound = soxr.resample(samples, rate_hz, _DNSMOS_HZ)
    sound = sound / max(1.0, float(np.abs(sound).max()))
    return _attempt(lambda: package.run(sound, _DNSMOS_HZ), otherwise={})


def speech_left(estimate: Samples, mixture: Samples, rate_hz: int) -> float:
    """The share, 0 to 1, of the mixture's speech in which the estimate is heard too.

    It is nan for a mixture without speech. Ours.
    """
    share = share_of_speech(frame_levels_db(estimate, rate_hz), frame_levels_db(mixture, rate_hz))
    return math.nan if share is None else share


MeasureSimilarity = Callable[[Samples, int], float]
"""Measures how similar a sound [sample] at a rate is to a voice."""

Verifier = Callable[[tuple[Path, ...]], MeasureSimilarity]
"""Embeds a voice's references once, and returns what measures the similarity to it."""

Transcribe = Callable[[Samples, int], str]
"""The words of a sound [sample] at a rate."""


def open_verifier(extractor: Extractor) -> Verifier:
    """Return a verifier that compares sounds with voices by the speaker encoder of a model.

    A sound's similarity is the mean over segments of 2 s, -1 to 1; nan where nothing is audible.
    A sound of the other polarity than the reference is inverted before, see `engine.Polarity`.
    A voice (clips, folders or profiles) is embedded once; warnings tell what may be wrong with it.

    Raises:
        CheckpointError: the model is not calibrated: its similarities mean nothing.
    """
    from mcspex_cli.extraction.engine import Polarity, is_inverted
    from mcspex_cli.extraction.presence import PresenceMeter

    engine = extractor.engine
    if engine.calibration is None:
        raise CheckpointError(
            f"{extractor.model.label}: cannot tell how similar voices are. Calibrate it: "
            f"mcspex models calibrate {extractor.model.argument} SPEAKERS"
        )

    @cache
    def verifier(references: tuple[Path, ...]) -> MeasureSimilarity:
        voice = extractor.enroll(references)
        for text in voice.warnings:
            _logger.warning(text)

        def mean_similarity(signal: Samples) -> float:
            meter = PresenceMeter(engine, Polarity(voice.embedding))
            meter.add(signal, signal)
            similarity = meter.result().similarity
            return math.nan if similarity is None else similarity

        def measure(sound: Samples, rate_hz: int) -> float:
            signal = soxr.resample(sound, rate_hz, engine.sample_rate_hz)
            same, inverse = mean_similarity(signal), mean_similarity(-signal)
            return inverse if is_inverted(inverse, same) else same

        return measure

    return verifier


def open_transcriber(model: str) -> Transcribe:
    """Load a Whisper model from this disk; it recognises words in whichever language they are.

    `model` is its folder, or its name if faster-whisper has downloaded it before.

    Raises:
        ConfigError: faster-whisper cannot be imported, or the model is not here or damaged.
    """
    package = import_package("faster_whisper", "transcripts")
    is_folder = Path(model).is_dir()
    try:
        # Without a tokenizer the package would fetch one from the network.
        if is_folder and not (Path(model) / "tokenizer.json").is_file():
            raise FileNotFoundError("it has no tokenizer.json")
        whisper = package.WhisperModel(model, local_files_only=True)
    except Exception as error:  # the package raises all kinds of errors on what is not a model
        reason = " ".join(str(error).split())
        problem = f"cannot be loaded ({reason})" if is_folder else "is not on this disk"
        raise ConfigError(
            f"--whisper {model}: {problem}. Name the folder of a faster-whisper model, or get "
            "one: hf download Systran/faster-whisper-base"
        ) from error

    def transcribe(sound: Samples, rate_hz: int) -> str:
        signal = soxr.resample(sound, rate_hz, _WHISPER_HZ).astype(np.float32)
        segments, _ = whisper.transcribe(signal, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def word_error_rate(words: str, transcript: str) -> float:
    """Words that are wrong, missing or too many, as a share of those in the transcript.

    Upper case and punctuation do not count. It may exceed 1. It is nan for an empty transcript.
    """
    jiwer = import_package("jiwer", "transcripts")
    without_punctuation = jiwer.RemovePunctuation()
    # Words are separated by single spaces: jiwer takes the two around a line break for one.
    expected, recognised = (
        " ".join(without_punctuation(text.lower()).split()) for text in (transcript, words)
    )
    return float(jiwer.wer(expected, recognised)) if expected else math.nan


NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Sounds:
    """What metrics look at: sounds [sample], all equally long, and what else is known of them.

    What is not known is empty; a function that is not known returns nan, or no words.
    """

    rate_hz: int
    estimate: Samples
    target: Samples = field(default_factory=lambda: NOTHING)
    mixture: Samples = field(default_factory=lambda: NOTHING)
    interferers: tuple[Samples, ...] = ()
    measure_similarity: MeasureSimilarity = lambda *_: math.nan
    transcribe: Transcribe = lambda *_: ""
    transcript: str = ""
    """What the target says."""
    presence: float = math.nan
    """What the extraction measured."""

    @cached_property
    def si_sdr_db(self) -> float:
        """SI-SDR of the estimate."""
        return si_sdr(self.estimate, self.target)

    @cached_property
    def input_si_sdr_db(self) -> float:
        """SI-SDR of the mixture, nan without one or without a target."""
        is_known = self.mixture.size and self.target.size
        return si_sdr(self.mixture, self.target) if is_known else math.nan

    @cached_property
    def bss_eval(self) -> tuple[float, float, float]:
        """SDR, SIR and SAR, which are computed together."""
        return bss_eval(self.estimate, self.target, self.interferers)

    @cached_property
    def similarity(self) -> float:
        """How similar the estimate is to the reference."""
        return self.measure_similarity(self.estimate, self.rate_hz)

    @cached_property
    def dnsmos(self) -> dict[str, float]:
        """The four values of DNSMOS, which are computed together."""
        return dnsmos(self.estimate, self.rate_hz)

    @cached_property
    def audible_mixture(self) -> Samples:
        """The mixture without what is too low to be heard."""
        return _audible(self.mixture, self.rate_hz)

    @cached_property
    def of_mixture(self) -> Sounds:
        """The same with the audible mixture in the estimate's place."""
        return replace(self, estimate=self.audible_mixture)


Need = Literal["target", "mixture", "interferers", "reference", "transcript", "batch"]
"""What a metric can need beside the estimate; "batch" is what `mcspex batch` measured.

A new one also takes a field of `Sounds`, which `evaluation.scoring` fills from a `Pairing`, and a
row of `cli.score.SOURCES`, which says where users give it.
"""


@dataclass(frozen=True)
class Metric:
    """One metric: what people and files call it, and how its value comes about."""

    name: str
    """What a user writes after --metrics; those of the mixture cannot be chosen."""
    label: str
    """What tables and pages call it."""
    unit: str
    digits: int
    function: Callable[[Sounds], float]
    """Its value; nan or infinite where these sounds have none."""
    needs: tuple[Need, ...]
    """What has to be given, beside the estimate, for it to have a value."""
    meaning: str
    """What it measures, as half a sentence."""
    packages: tuple[str, ...] = ()
    """The packages that compute it; empty if it is computed here."""
    extra: str = "metrics"
    """The extra of mcspex that installs them."""
    better: Literal["higher", "lower", "neither"] = "higher"
    """Which values are good ones."""
    also_of_mixture: bool = False
    """Whether the mixture's value is computed too, where there is a mixture."""
    is_of_mixture: bool = False
    """Whether it is the mixture's value, a row of `MIXTURE_METRICS`."""

    @property
    def column(self) -> str:
        """Its column in CSV and JSON, with the unit as suffix."""
        return f"{self.name}_{self.unit.lower()}" if self.unit else self.name

    @property
    def heading(self) -> str:
        """Its label with the unit."""
        return f"{self.label} {self.unit}".strip()

    @property
    def is_installed(self) -> bool:
        """Whether its packages are installed, if it needs some."""
        return all(find_spec(package) for package in self.packages)

    @property
    def badness(self) -> int:
        """The sign by which the worst value becomes the highest; 0 if none is better or worse."""
        return {"higher": -1, "lower": 1, "neither": 0}[self.better]

    def text(self, value: float | None, sign: str = "") -> str:
        """A value to the digits that matter, or a dash; with sign "+", a change."""
        if value is None:
            return "-"
        rounded = round(value, self.digits) + 0.0  # never -0.0
        return f"{rounded:{sign}.{self.digits}f}"


TARGET: tuple[Need, ...] = ("target",)
WITH_MIXTURE: tuple[Need, ...] = ("target", "mixture")
WITH_INTERFERERS: tuple[Need, ...] = ("target", "interferers")
BSS, STOI, MOS = ("fast_bss_eval",), ("pystoi",), ("speechmos",)

# fmt: off
METRICS = {metric.name: metric for metric in (
    Metric("si_sdr", "SI-SDR", "dB", 2, lambda s: s.si_sdr_db, TARGET,
           "the target against everything else in the output; its level does not count",
           also_of_mixture=True),
    Metric("si_sdr_i", "SI-SDRi", "dB", 2, lambda s: s.si_sdr_db - s.input_si_sdr_db, WITH_MIXTURE,
           "by how much the output's SI-SDR exceeds the mixture's"),
    Metric("snr", "SNR", "dB", 2, lambda s: snr(s.estimate, s.target), TARGET,
           "like SI-SDR, but a wrong level or sign counts as an error"),
    Metric("sdr", "SDR", "dB", 2, lambda s: s.bss_eval[0], TARGET,
           "like SI-SDR, but a short filter on the target does not count", BSS),
    Metric("sir", "SIR", "dB", 2, lambda s: s.bss_eval[1], WITH_INTERFERERS,
           "the target against what is left of the other talkers", BSS),
    Metric("sar", "SAR", "dB", 2, lambda s: s.bss_eval[2], WITH_INTERFERERS,
           "all talkers against what the system has added", BSS),
    Metric("pesq", "PESQ", "", 2, lambda s: pesq(s.estimate, s.target, s.rate_hz), TARGET,
           "predicted rating of the quality by listeners, 1 to 4.6", ("pesq",)),
    Metric("stoi", "STOI", "", 3, lambda s: stoi(s.estimate, s.target, s.rate_hz), TARGET,
           "predicted intelligibility, 0 to 1", STOI),
    Metric("estoi", "ESTOI", "", 3,
           lambda s: stoi(s.estimate, s.target, s.rate_hz, extended=True), TARGET,
           "the same for noise that comes and goes, such as other talkers", STOI),
    Metric("similarity_i", "Similarity gain", "", 2,
           lambda s: s.similarity - s.of_mixture.similarity, ("reference", "mixture"),
           "by how much the output is more like the reference than the mixture is"),
    Metric("presence", "Presence", "", 2, lambda s: s.presence, ("batch",),
           "how sure the extraction was that the voice is there, 0 to 1"),
    Metric("similarity", "Similarity", "", 2, lambda s: s.similarity, ("reference",),
           "how like the reference the voice is to the model, -1 to 1", also_of_mixture=True),
    Metric("speech_left", "Speech left", "", 2,
           lambda s: speech_left(_audible(s.estimate, s.rate_hz), s.audible_mixture, s.rate_hz),
           ("mixture",),
           "share of the mixture's speech in which the output is heard, 0 to 1", better="neither"),
    Metric("dnsmos_sig", "SIG", "", 2, lambda s: s.dnsmos.get("sig_mos", math.nan), (),
           "DNSMOS: predicted rating of the speech, 1 to 5", MOS, also_of_mixture=True),
    Metric("dnsmos_bak", "BAK", "", 2, lambda s: s.dnsmos.get("bak_mos", math.nan), (),
           "DNSMOS: predicted rating of the background, 1 to 5", MOS, also_of_mixture=True),
    Metric("dnsmos_ovrl", "OVRL", "", 2, lambda s: s.dnsmos.get("ovrl_mos", math.nan), (),
           "DNSMOS: predicted rating of all, 1 to 5", MOS, also_of_mixture=True),
    Metric("dnsmos_p808", "P808", "", 2, lambda s: s.dnsmos.get("p808_mos", math.nan), (),
           "DNSMOS: predicted rating of all by another network, 1 to 5", MOS, also_of_mixture=True),
    Metric("wer", "WER", "", 3,
           lambda s: word_error_rate(s.transcribe(s.estimate, s.rate_hz), s.transcript),
           ("transcript",), "share of the words that a recogniser gets wrong",
           ("jiwer", "faster_whisper"), "transcripts", "lower", also_of_mixture=True),
)}
# fmt: on
"""Every metric by its name, in the order of tables."""

BUILT_IN = ("si_sdr", "si_sdr_i", "snr")
"""The metrics with the truth that need no package and hardly more time than reading files."""


def _of_mixture(metric: Metric) -> Metric:
    return replace(
        metric,
        name=f"input_{metric.name}",
        label=f"{metric.label} of the mixture",
        function=lambda sounds: metric.function(sounds.of_mixture),
        needs=(*metric.needs, "mixture"),
        is_of_mixture=True,
    )


MIXTURE_METRICS = {m.name: _of_mixture(m) for m in METRICS.values() if m.also_of_mixture}
"""What is measured of the mixture too, by the name of the metric of the estimate."""

# The mixture's SI-SDR, to which SI-SDRi refers, is that of the whole mixture. It comes last.
MIXTURE_METRICS["si_sdr"] = replace(
    MIXTURE_METRICS.pop("si_sdr"), function=lambda sounds: sounds.input_si_sdr_db
)

BY_COLUMN = {metric.column: metric for metric in (*METRICS.values(), *MIXTURE_METRICS.values())}
"""Every metric, of the estimate or the mixture, by its column in reports."""


def check_installed(names: Sequence[str]) -> None:
    """Refuse metrics whose package is not installed, with a ConfigError."""
    absent = [METRICS[name] for name in names if not METRICS[name].is_installed]
    if absent:
        which = ", ".join(metric.name for metric in absent)
        reason = f"{which}: the package for it is not installed."
        raise ConfigError(f"{reason} {install_extra(absent[0].extra)}")


def _audible(sound: Samples, rate_hz: int) -> Samples:
    """A sound [sample] without what is too low to be heard, such as a constant offset."""
    return np.concatenate([*without_rumble([sound[None]], rate_hz)], axis=-1)[0]


def _checked(
    estimate: npt.ArrayLike, target: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both as arrays [sample], if they are equally long and have real numbers."""
    if isinstance(estimate, np.ma.MaskedArray) or isinstance(target, np.ma.MaskedArray):
        raise TypeError("samples are a masked array; leave out, in both, what is masked")
    e, t = np.asarray(estimate), np.asarray(target)
    for samples in (e, t):
        if samples.dtype.kind not in "fiu":
            raise TypeError(f"samples are real numbers, not {samples.dtype}")
    if e.ndim != 1 or e.shape != t.shape:
        raise ValueError(
            f"estimate {e.shape} and target {t.shape} must both be [sample] and equally long"
        )
    return e, t


def _are_finite(*signals: npt.NDArray[Any]) -> bool:
    return all(bool(np.isfinite(signal).all()) for signal in signals)


_Block = npt.NDArray[np.float64]


def _blocks(signal: npt.NDArray[Any]) -> Iterator[_Block]:
    """A signal [sample] in float64, in blocks: as a whole, one of hours would take gigabytes."""
    for start in range(0, len(signal), _BLOCK):
        yield signal[start : start + _BLOCK].astype(np.float64)


class _Centred:
    """The blocks of a signal [sample] of finite numbers, without its mean.

    They are multiplied by a power of two, so that no square is too large or too small.

    Attributes:
        power: the energy of the signal with its mean.
    """

    def __init__(self, signal: npt.NDArray[Any]) -> None:
        self._signal = signal
        self._exponent = max(_exponent(block) for block in _blocks(signal))
        self._mean = 0.0  # not yet taken off in the next two lines
        self.power = _dot(self, self)
        self._mean = sum(float(block.sum()) for block in self) / len(signal)

    def __iter__(self) -> Iterator[_Block]:
        for block in _blocks(self._signal):
            yield np.ldexp(block, -self._exponent) - self._mean


def _exponent(block: _Block) -> int:
    """The lowest power of two, as its exponent, that is larger than all samples."""
    return int(np.frexp(np.abs(block).max())[1])


def _energy_db(blocks: Iterable[_Block]) -> float:
    """The energy of blocks that are not all zeros, of which no square may be left out."""
    energies = []
    for block in blocks:
        exponent = _exponent(block)
        if energy := _energy(np.ldexp(block, -exponent)):
            energies.append((energy, exponent))
    top = max(exponent for _, exponent in energies)
    total = sum(math.ldexp(energy, 2 * (exponent - top)) for energy, exponent in energies)
    return 10 * math.log10(total) + 20 * top * math.log10(2)


def _energy(block: _Block) -> float:
    return _dot([block], [block])


def _dot(one: Iterable[_Block], other: Iterable[_Block]) -> float:
    """The inner product of two signals, without BLAS: its threads wait for each other."""
    return sum(float(np.einsum("i,i", a, b)) for a, b in zip(one, other, strict=True))


def _attempt(measure: Callable[[], Any], otherwise: Any = math.nan) -> Any:
    """What a package computes; `otherwise` where it fails or warns that the value means nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return measure()
        except MemoryError:
            raise
        except Exception:  # the packages raise all kinds of errors on sounds that they do not like
            return otherwise
