"""What a model's similarities mean: learned from recordings with and without a voice.

Half of the recordings are mixtures of two people, half have people who take turns; some of both are
heard in rooms. Each is extracted from twice: for a voice in it, and for one that is not in it. A
logistic regression then tells segments with the voice from those without by what
`extraction.presence` measures, and another one files. How well that works is measured on speakers
to whom it was not fitted. How echo changes embeddings is measured with the references, as they are
and in rooms. Ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import ConfigError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction.engine import Engine, Polarity
from mcspex_cli.extraction.presence import SEGMENT_S, Calibration, PresenceMeter, features_of
from mcspex_cli.extraction.reference import Clip
from mcspex_cli.training import acoustics
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.settings import MixtureSettings
from mcspex_cli.training.simulate import Rendering, draw_renderings, read_recipes, render

Vector = npt.NDArray[np.float64]

_FOLDS = 6
"""Parts of the speakers; each is judged by what was fitted to the others."""

LOST = 0.03
"""The share of present voices, and of segments with one, that may be taken for absent."""

_UNLIKE = 0.05
"""The share of good references that may be warned of, and of right estimates for the wrong
speaker's."""

_DRAWN = MixtureSettings(segment_s=6.0, room=1 / 3)
"""What a drawn mixture is; recordings with turns are in rooms as often."""

_ECHO_T60_S = (0.1, 0.8)
_ECHO_PARTS = 3
"""Segments of each reference in which the change by echo is measured, at most."""

_ECHO_SHARE = 1 / 128
"""The share of an embedding's directions that similarities ignore because of echo. Of 256, 0 to 20
were tried; with more than 2, recordings without echo are judged worse."""

MIN_CASES = 50
"""Recordings below which nothing can be measured."""

_MIN_COMPARED_S = 4.0
"""Seconds of speech that a clip must have to be compared with others of its voice."""

SPEAKING, SILENT = 0.15, 0.02
"""Shares of a segment's energy: above the first the target is in it, below the second not."""

TURNS_S = (4.0, 30.0)
"""The length of a drawn recording with turns."""

TURN_S = (1.0, 6.0)
_TARGET_SHARE = (0.1, 0.6)
"""The share of a recording with turns in which the target speaks."""

_LOWEST_ODDS = -50.0
"""The log odds of a recording in which nothing is audible."""

_RIDGE, _ECHO_RIDGE = 1e-3, 0.1
"""Keep a regression's weights finite where the cases are told apart without error. Echo has as many
weights as an embedding, so they are kept smaller."""


@dataclass(frozen=True, eq=False)
class Case:
    """A recording, and who is in it."""

    rendering: Rendering
    speaker: str
    """The target's."""
    others: frozenset[str]
    turns: bool = False
    """Whether they take turns; otherwise they talk at the same time."""
    echo: bool = False
    """Whether they are heard in a room that was computed."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One extraction from a case: whose voice, and what came out."""

    features: Vector
    """[segment, 3], see `presence.features_of`."""
    shares: Vector
    """The voice's share of the mixture's energy [segment]."""
    excess: float | None
    """How much more similar to the reference the residual is than the estimate; None for a voice
    that is not in the recording."""
    present: bool
    speaker: str
    confused: bool = False
    """Target confusion: the estimate is nearer to the interferer than to the target. As in
    `evaluation.scoring.Score`, which also looks at SI-SDRi; not judged where people take turns."""
    turns: bool = False
    echo: bool = False
    seconds: float = 0.0


def read_cases(
    sources: Sequence[Path], count: int, sample_rate_hz: int, seed: int
) -> Iterator[Case]:
    """Mixtures, given or drawn, and as many recordings with turns by the same speakers.

    The sources are CSVs of recipes, where a file's speaker is the folder that it is in, and folders
    of speakers, from which `count` mixtures are drawn.

    Raises:
        ConfigError: as `read_recipes`, `Corpus.read` and `draw_turns`.
    """
    folders = [path for path in sources if path.is_dir()]
    recipes = [each for path in sources if path not in folders for each in read_recipes(path)]
    voices: dict[str, list[Samples]] = {}
    if recipes:
        for recipe in recipes:
            target, *others = (path.parent.name for path in (recipe.target, *recipe.interferers))
            yield Case(render(recipe, sample_rate_hz), target, frozenset(others))
        files = {p for r in recipes for p in (r.target, r.reference, *r.interferers)}
        for path in sorted(files):
            voices.setdefault(path.parent.name, []).append(audio.read(path, sample_rate_hz))
        yield from draw_turns(voices, len(recipes), sample_rate_hz, seed)
    if folders:
        corpus = Corpus.read(folders, sample_rate_hz)
        for rendering in draw_renderings(corpus, _DRAWN, count, seed):
            target, *others = rendering.talkers
            echo = bool(rendering.labels["t60_s"])
            yield Case(rendering, target, frozenset(others), echo=echo)
        voices = {}
        for speaker in corpus.speakers:
            loop = corpus.samples[speaker.start : speaker.start + speaker.bounds[-1]].numpy()
            loop = loop.astype(np.float32) / np.float32(32768)
            voices[speaker.name] = np.split(loop, speaker.bounds[1:-1])
        yield from draw_turns(voices, count, sample_rate_hz, seed)


def draw_turns(
    voices: Mapping[str, Sequence[Samples]], count: int, sample_rate_hz: int, seed: int
) -> Iterator[Case]:
    """Draw recordings in which two to four people take turns; some are in a room.

    Each speaker has two or more utterances [sample]. One of the target's is its reference, and is
    not in the recording. Utterances that are too short for a reference are not used.

    Raises:
        ConfigError: there are fewer than three speakers.
    """
    rng = np.random.default_rng(seed)
    shortest = audio.MIN_SIGNAL_S * sample_rate_hz
    voices = {
        name: [clip for clip in clips if len(clip) >= shortest] for name, clips in voices.items()
    }
    names = sorted(name for name, spoken in voices.items() if len(spoken) > 1)
    if len(names) < 3:
        raise ConfigError(
            "recordings with turns need three speakers, each with two utterances. Add speakers."
        )
    for number in range(count):
        size = min(int(rng.integers(2, 5)), len(names) - 1)
        target, *others = (str(name) for name in rng.choice(names, size, replace=False))
        reference, *rest = (voices[target][int(k)] for k in rng.permutation(len(voices[target])))
        spoken = {target: rest, **{other: voices[other] for other in others}}
        length = round(float(np.exp(rng.uniform(*np.log(TURNS_S)))) * sample_rate_hz)
        tracks = _draw_tracks(target, spoken, length, sample_rate_hz, rng)
        echo = bool(rng.random() < _DRAWN.room)
        if echo:
            t60_s = float(rng.uniform(*_DRAWN.t60_s))
            tracks = _in_room(tracks, sample_rate_hz, t60_s, rng)
        target_track, other_track = tracks
        id_ = f"turns-{number:04d}"
        rendering = Rendering(id_, target_track + other_track, target_track, other_track, reference)
        yield Case(rendering, target, frozenset(others), turns=True, echo=echo)


def _draw_tracks(
    target: str,
    spoken: Mapping[str, Sequence[Samples]],
    length: int,
    sample_rate_hz: int,
    rng: np.random.Generator,
) -> Samples:
    """The track of the target, and that of all others [2, sample], with pauses and some overlap.

    It is the target's turn as soon as it has spoken for less than its share of the time.
    """
    others = [name for name in spoken if name != target]
    share = rng.uniform(*_TARGET_SHARE)
    gains = {name: 10 ** (rng.uniform(-3, 3) / 20) for name in spoken}
    tracks = np.zeros((2, length), np.float32)
    at, target_samples, last = 0, 0, ""
    while at < length:
        is_due = last != target and target_samples <= share * at
        turn = target if is_due else str(rng.choice([o for o in others if o != last] or others))
        clip = spoken[turn][int(rng.integers(len(spoken[turn])))]
        most = share * length if is_due else length
        taken = int(min(rng.uniform(*TURN_S) * sample_rate_hz, max(most, sample_rate_hz)))
        start = int(rng.integers(max(1, len(clip) - taken + 1)))
        clip = clip[start : start + taken][: length - at]
        rms = float(np.sqrt(np.mean(np.square(clip)))) or 1.0
        track = tracks[0] if is_due else tracks[1]
        track[at : at + len(clip)] += np.float32(0.05 * gains[turn] / rms) * clip
        target_samples += len(clip) if is_due else 0
        pause_s = rng.uniform(0, 0.6) if rng.random() < 0.7 else -rng.uniform(0, 1.2)
        at += max(len(clip) + round(pause_s * sample_rate_hz), sample_rate_hz // 2)
        last = turn
    return tracks


def _in_room(
    tracks: Samples, sample_rate_hz: int, t60_s: float, rng: np.random.Generator
) -> Samples:
    """How tracks [track, sample] sound if each comes from another place in a room."""
    room = acoustics.draw_room(t60_s, len(tracks), rng)
    length = round(t60_s * sample_rate_hz)
    responses = acoustics.room_responses([room], length, sample_rate_hz, torch.device("cpu"))
    return acoustics.convolve(torch.from_numpy(tracks), responses[0]).numpy()


class Calibrator:
    """Extracts from recordings, then makes a calibration for the engine's model.

    Meanwhile the engine has one that is not fitted.

    Raises:
        ConfigError: there are too few recordings, or too few voices in them.
    """

    def __init__(self, engine: Engine, cases: Iterable[Case], seed: int = 0) -> None:
        self._engine = engine
        self.cases = list(cases)
        if len(self.cases) < MIN_CASES:
            raise ConfigError(
                f"{len(self.cases)} mixtures and recordings with turns are too few. {MIN_CASES} "
                "are needed: raise -n, or add rows to the CSV."
            )
        self.seconds = 2 * sum(len(c.rendering.mixture) for c in self.cases) / engine.sample_rate_hz
        """Of sound in all trials."""
        self._rng = np.random.default_rng(seed)
        self._voices = [engine.embed([case.rendering.reference]) for case in self.cases]
        centre = np.unique(self._voices, axis=0).mean(axis=0, dtype=np.float64)
        directions, weights = self._measure_echo(centre)
        self._unfitted = Calibration(
            centre=_rounded(centre),
            echo_directions=tuple(map(_rounded, directions)),
            echo_weights=_rounded(weights),
            segment_weights=(0.0, 0.0, 0.0, 0.0),
            file_weights=(0.0, 0.0),
            threshold=0.0,
            segment_threshold=0.0,
            mute_threshold=0.0,
            wrong_speaker=0.0,
            same_voice_parts=0.0,
            same_voice_clips=0.0,
        )
        engine.calibration = self._unfitted

    def trials(self) -> Iterator[Trial]:
        """Extract from each recording its target, then a voice that is not in it.

        Raises:
            ConfigError: a recording has all the voices, or there are too few.
        """
        absent_voices = []
        for case in self.cases:
            inside = {case.speaker, *case.others}
            absent_voices.append([k for k, c in enumerate(self.cases) if c.speaker not in inside])
            if not absent_voices[-1]:
                raise ConfigError(
                    f"{case.rendering.id}: has all speakers, so that none is absent. Add speakers."
                )
        _check_voices({case.speaker for case in self.cases})
        for number, (case, absent) in enumerate(zip(self.cases, absent_voices, strict=True)):
            yield self._trial(case, number)
            yield self._trial(case, int(self._rng.choice(absent)))

    def calibration(self, trials: Sequence[Trial]) -> Calibration:
        """Fit all trials; measure how well that works on speakers to whom it was not fitted.

        Raises:
            ConfigError: there are too few voices, or none of them came out.
        """
        present = np.array([trial.present for trial in trials])
        confused = np.array([trial.confused for trial in trials])
        turns = np.array([trial.turns for trial in trials])
        echo = np.array([trial.echo for trial in trials])
        speakers = sorted({trial.speaker for trial in trials})
        _check_voices(speakers)
        if confused[present].all():
            raise ConfigError("the wrong voice came out of every mixture. Train the model first.")
        odds, with_target, without = self._cross_validate(trials, speakers)
        present_odds, absent_odds = odds[present & ~echo], odds[~present & ~echo]
        fitted = _fit_weights(self._unfitted, trials)
        fitted_odds = _file_odds(fitted, trials)[present & ~echo]
        fitted_with_target, fitted_without = _segment_odds(fitted, trials)
        excess = np.array([trial.excess for trial in trials], np.float64)  # nan for None
        right = excess[present & ~confused & np.isfinite(excess)]
        wrong = float(np.quantile(right, 1 - _UNLIKE)) if len(right) else 1.0
        segment_odds = equal_error(fitted_with_target, fitted_without)[1]
        kept_odds = float(np.quantile(fitted_with_target, LOST))
        parts, clips = self._same_voice()
        called_present = odds >= np.quantile(present_odds, LOST)
        kinds = {"auc_mixtures": ~turns & ~echo, "auc_turns": turns & ~echo, "auc_echo": echo}
        return replace(
            fitted,
            threshold=_probability(np.quantile(fitted_odds, LOST)),
            segment_threshold=_probability(segment_odds),
            mute_threshold=_probability(min(kept_odds, segment_odds)),
            wrong_speaker=round(wrong, 4),
            same_voice_parts=round(parts, 4),
            same_voice_clips=round(clips, 4),
            measured={
                "recordings": len(self.cases),
                "speakers": len(speakers),
                "auc": round(area(present_odds, absent_odds), 4),
                "equal_error_rate": round(equal_error(present_odds, absent_odds)[0], 4),
                "absent_taken_for_present": _true_share(called_present[~present & ~echo]),
                "segment_auc": round(area(with_target, without), 4),
                **{
                    kind: round(area(odds[present & own], odds[~present & own]), 4)
                    for kind, own in kinds.items()
                    if own.any()
                },
                "echo_present_taken_for_absent": _true_share(~called_present[present & echo]),
                "echo_absent_taken_for_present": _true_share(called_present[~present & echo]),
                "swapped": int((present & confused).sum()),
                "wrong_speaker_hits": _true_share(excess[present & confused] > wrong),
                "wrong_speaker_false_alarms": _true_share(excess[present & ~confused] > wrong),
            },
        )

    def _measure_echo(self, centre: Vector) -> tuple[Vector, Vector]:
        """How echo changes embeddings: see `Calibration.echo_directions` and `echo_weights`."""
        rate_hz = self._engine.sample_rate_hz
        size = round(SEGMENT_S * rate_hz)
        dry = []
        for case in self.cases:
            reference = case.rendering.reference
            starts = range(0, max(1, len(reference) - size + 1), size)
            dry += [reference[start : start + size] for start in starts[:_ECHO_PARTS]]
        t60s = self._rng.uniform(*_ECHO_T60_S, len(dry)).tolist()
        reverberant = [
            _in_room(part[None], rate_hz, t60_s, self._rng)[0]
            for part, t60_s in zip(dry, t60s, strict=True)
        ]
        pairs = zip(dry, reverberant, strict=True)
        embeddings = np.concatenate([self._engine.embed_parts(np.stack(pair)) for pair in pairs])
        units = embeddings - centre
        units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
        directions = np.linalg.svd(units[1::2] - units[::2], full_matrices=False)[2]
        has_echo = np.arange(len(units)) % 2 == 1
        count = round(_ECHO_SHARE * units.shape[1])
        return directions[:count], fit(units, has_echo, _ECHO_RIDGE)

    def _cross_validate(
        self, trials: Sequence[Trial], speakers: Sequence[str]
    ) -> tuple[Vector, Vector, Vector]:
        """The log odds of files, and of segments with and without their target.

        Those of each speaker come from a fit to the other speakers.
        """
        places = dict(zip(self._rng.permutation(speakers), range(len(speakers)), strict=True))
        fold = np.array([places[trial.speaker] % _FOLDS for trial in trials])
        odds = np.zeros(len(trials))
        segments = []
        for part in range(_FOLDS):
            own = [trial for trial, other in zip(trials, fold, strict=True) if other == part]
            others = [trial for trial, other in zip(trials, fold, strict=True) if other != part]
            fitted = _fit_weights(self._unfitted, others)
            odds[fold == part] = _file_odds(fitted, own)
            segments.append(_segment_odds(fitted, own))
        with_target, without = (np.concatenate(each) for each in zip(*segments, strict=True))
        return odds, with_target, without

    def _same_voice(self) -> tuple[float, float]:
        """How similar at least parts of a clip are, and clips of a voice; see `Calibration`."""
        rate_hz = self._engine.sample_rate_hz
        parts, clips = [], []
        for case, voice in zip(self.cases, self._voices, strict=True):
            rendering = case.rendering
            clip = Clip(rendering.id, rendering.reference, rate_hz)
            similarity = clip.similarity_of_parts(self._engine)
            if similarity is not None and clip.speech_s >= _MIN_COMPARED_S:
                parts.append(similarity)
            if case.echo:
                continue
            speech = Clip(rendering.id, rendering.target, rate_hz).only_speech()
            if len(speech) >= _MIN_COMPARED_S * rate_hz:
                other = self._engine.embed_parts(speech[None])[0]
                clips.append(self._unfitted.similarity(voice, other))
        return (
            float(np.quantile(parts, _UNLIKE)) if parts else -1.0,
            float(np.quantile(clips, _UNLIKE)) if clips else -1.0,
        )

    def _trial(self, case: Case, number: int) -> Trial:
        """Extract from a case's recording the target of the case `number`."""
        engine, rendering, rate_hz = self._engine, case.rendering, self._engine.sample_rate_hz
        speaker, voice = self.cases[number].speaker, self._voices[number]
        present = speaker == case.speaker
        polarity = Polarity(voice)
        meter = PresenceMeter(engine, polarity, residuals=present)
        engine.find_polarities([rendering.mixture[None]], [polarity])
        estimate = polarity.sign * engine.extract(polarity.sign * rendering.mixture, voice)
        meter.add(estimate, rendering.mixture)
        result = meter.result()
        shares = []
        for segment in result.segments:
            if segment.similarity is None:
                continue
            part = slice(round(segment.start_s * rate_hz), round(segment.end_s * rate_hz))
            target, mixture = (
                float(np.square(signal[part], dtype=np.float64).sum())
                for signal in (rendering.target, rendering.mixture)
            )
            shares.append(target / max(mixture, 1e-12) if present else 0.0)
        confused = si_sdr(estimate, rendering.interferer) > si_sdr(estimate, rendering.target)
        return Trial(
            features=features_of(result.segments),
            shares=np.array(shares),
            excess=result.excess,
            present=present,
            speaker=speaker,
            confused=present and confused and not case.turns,
            turns=case.turns,
            echo=case.echo,
            seconds=len(rendering.mixture) / rate_hz,
        )


def _check_voices(speakers: Collection[str]) -> None:
    if len(speakers) < _FOLDS:
        raise ConfigError(f"{len(speakers)} voices are too few. Give {_FOLDS} or more.")


def _fit_weights(unfitted: Calibration, trials: Sequence[Trial]) -> Calibration:
    """The weights of segments, and then of files, that tell present from absent voices best."""
    features = np.concatenate([trial.features for trial in trials])
    shares = np.concatenate([trial.shares for trial in trials])
    clear = (shares > SPEAKING) | (shares < SILENT)
    weights = fit(features[clear], shares[clear] > SPEAKING)
    fitted = replace(unfitted, segment_weights=_rounded(weights), file_weights=(1.0, 0.0))
    present = np.array([trial.present for trial in trials])
    return replace(fitted, file_weights=_rounded(fit(_file_odds(fitted, trials)[:, None], present)))


def _file_odds(fitted: Calibration, trials: Sequence[Trial]) -> Vector:
    """The log odds of each trial's file."""
    return np.array([max(fitted.file_odds(trial.features), _LOWEST_ODDS) for trial in trials])


def _segment_odds(fitted: Calibration, trials: Sequence[Trial]) -> tuple[Vector, Vector]:
    """The log odds of the trials' segments with the target, and of those without."""
    odds = np.concatenate([fitted.segment_odds(trial.features) for trial in trials])
    shares = np.concatenate([trial.shares for trial in trials])
    return odds[shares > SPEAKING], odds[shares < SILENT]


def _rounded(numbers: Vector) -> Any:
    return tuple(round(float(number), 5) for number in numbers)


def _probability(odds: float) -> float:
    return float(np.floor(1e4 / (1 + np.exp(-odds))) / 1e4)


def _true_share(flags: npt.NDArray[np.bool_]) -> float | None:
    """The share of the flags that are set; None without any."""
    return round(float(flags.mean()), 4) if flags.size else None


def fit(features: Vector, present: npt.NDArray[np.bool_], ridge: float = _RIDGE) -> Vector:
    """Fit log odds to features [trial, feature] by Newton's method.

    Returns:
        A weight for each feature, then the offset.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    inputs = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(30):
        likely = 1 / (1 + np.exp(-inputs @ weights))
        curvature = inputs.T * (likely * (1 - likely)) @ inputs / len(inputs)
        slope = inputs.T @ (likely - present) / len(inputs) + ridge * weights
        weights -= np.linalg.solve(curvature + ridge * np.eye(len(weights)), slope)
    plain = weights[:-1] / spread
    return np.append(plain, weights[-1] - plain @ mean)


def area(present: Vector, absent: Vector) -> float:
    """The area under the ROC curve: how often a present voice scores above an absent one."""
    ahead = present[:, None] - absent[None]
    return float((ahead > 0).mean() + (ahead == 0).mean() / 2)


def equal_error(present: Vector, absent: Vector) -> tuple[float, float]:
    """The rate at which misses and false alarms are as many, and the score at which they are."""
    scores = np.sort(np.concatenate([present, absent]))
    missed = np.searchsorted(np.sort(present), scores) / len(present)
    false = 1 - np.searchsorted(np.sort(absent), scores) / len(absent)
    at = int(np.argmin(np.abs(missed - false)))
    return float(missed[at] + false[at]) / 2, float(scores[at])
