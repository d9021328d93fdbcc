"""A training run's settings, read from TOML and checked before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec

from mcspex_cli.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


PRECISIONS = ("float32", "bfloat16")
"""What a network is trained in; float16 would need its gradients scaled."""

NOISES = ("white", "pink", "speech", "babble", "hum")
"""White; 3 dB less per octave; speech's average spectrum; several talkers; mains hum."""

MIXINGS = ("drawn", "given")


@dataclass(frozen=True)
class Limits:
    """The least and the greatest that a number may be, or the two ends of a range."""

    low: float
    high: float


Range = tuple[float, float]
"""Two rising numbers, between which values are drawn uniformly."""

Probability = Annotated[float, Limits(0, 1)]
Seconds = Annotated[float, Limits(0.5, 600)]
Decibels = Annotated[Range, Limits(-100, 100)]
Count = Annotated[int, Limits(1, 64)]
Steps = Annotated[int, Limits(1, 1e12)]


@dataclass(frozen=True)
class MixtureSettings:
    """What a drawn mixture may be. Ranges are uniform; single numbers are probabilities."""

    segment_s: Seconds = 3.0
    reference_s: Annotated[Range, Limits(0.5, 600)] = (1.5, 8.0)
    """Drawn in tenths of a second, once for a batch or, with `own_reference_lengths`, for each."""
    reference_lengths: Count = 4
    """Different lengths of references, spread over `reference_s`: each is compiled once."""
    own_reference_lengths: bool = False
    """Each reference of a batch has its own length, and is computed with zeros behind it."""
    mixtures_per_reference: Count = 1
    """Rows of a batch, one after another, that share a target speaker and a reference."""
    snr_db: Decibels = (-5.0, 5.0)
    """Of the target over each interferer, while they speak."""
    level_db: Annotated[Range, Limits(-100, 0)] = (-40.0, -18.0)
    speed: Annotated[Range, Limits(0.5, 2)] = (1.0, 1.0)
    """Of each voice, in hundredths; a target's reference is as fast as the target."""
    third_talker: Probability = 0.0
    same_sex: Probability = 0.0
    """The other talkers are of the target's sex; otherwise they are drawn from all speakers."""
    speakers_csv: tuple[Path, ...] = ()
    """Tables with columns speaker and sex."""
    partial_overlap: Probability = 0.0
    overlap: Annotated[Range, Limits(0.05, 1)] = (0.2, 0.9)
    """The share of the segment in which both speak, where the overlap is partial."""
    absent: Probability = 0.0
    """The target does not speak; then levels are learnt too, so that silence can be."""
    noise: Probability = 0.0
    noise_db: Decibels = (0.0, 20.0)
    """Of the talkers over the noise."""
    noise_kinds: tuple[str, ...] = NOISES
    noise_folder: Path | None = None
    noise_files: Probability = 0.5
    """A noise is a stretch of a file in `noise_folder`, where there is one, not computed."""
    room: Probability = 0.0
    t60_s: Annotated[Range, Limits(0.05, 5)] = (0.1, 0.6)
    """Of a computed room."""
    room_folder: Path | None = None
    room_files: Probability = 0.3
    """A room is made of responses in `room_folder`, where there is one, not computed."""
    narrow_band: Probability = 0.0
    band_hz: Annotated[Range, Limits(100, 96_000)] = (2000.0, 4000.0)
    """The highest frequency left, where the band is narrow."""
    band_from_hz: Annotated[Range, Limits(0, 96_000)] = (50.0, 350.0)
    """The lowest; a telephone's is 300 Hz."""
    reference_noise: Probability = 0.0
    reference_room: Probability = 0.0
    reference_narrow_band: Probability = 0.0

    def to_dict(self) -> dict[str, object]:
        """The settings for a checkpoint's provenance: of paths, only the last name."""
        return {key: _without_folders(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ModelSettings:
    """Which network: `system` of SYSTEMS and `size` of SIZES, or a checkpoint to start from.

    `width`, `stacks` and `blocks` make either larger, and `sample_rate_hz` resamples the latter.
    """

    system: str = "mcspex"
    size: str = "small"
    sample_rate_hz: Annotated[int, Limits(4000, 192_000)] = 0
    """If it is not given, the checkpoint's, and 8 kHz for a new network."""
    start_from: str = ""
    width: Annotated[float, Limits(1, 8)] = 1.0
    """How many times as many units each layer has."""
    stacks: Annotated[int, Limits(1, 64)] = 0
    """If this or the next is not given, as many as there are."""
    blocks: Annotated[int, Limits(1, 16)] = 0
    scale_fuser: str = "gate"
    """MC-SpEx's insides, of FUSERS, CONSMS and INTERMGS."""
    consm: str = "film"
    scale_intermg: str = "mixing"


@dataclass(frozen=True)
class DataSettings:
    """Trees of speakers (see `list_utterances`) and what to validate on."""

    train: tuple[Path, ...] = ()
    mixing: str = "drawn"
    """Whether mixtures are "drawn" anew or taken as a LibriMix set has "given" them."""
    validation: Path | None = None
    """A recipe's CSV, a LibriMix set or a folder that `mcspex simulate` made."""
    enrolments: Path | None = None
    """SpeakerBeam's `map_mixture2enrollment` for that set; without it, references are drawn."""
    validation_mixtures: Annotated[int, Limits(1, 1e6)] = 64


@dataclass(frozen=True)
class OptimiserSettings:
    """Muon and AdamW with a warm-up, a plateau and a linear decay to zero."""

    steps: Steps = 10_000
    minutes: Annotated[float, Limits(0, 1e9)] = 0.0
    """If not 0, the run ends after this time instead, and the schedule is sized to it."""
    batch: Annotated[int, Limits(2, 1e6)] = 8
    learning_rate: Annotated[float, Limits(1e-12, 10)] = 1e-3
    """AdamW's."""
    muon_rate: Annotated[float, Limits(0, 10)] = 0.005
    """Muon's, for the 1x1 convolutions: about 0.005 for a new network, 0.001 and less for a
    trained one; 0 leaves all to AdamW."""
    warmup_steps: Annotated[int, Limits(0, 1e12)] = 200
    decay_share: Probability = 0.4
    """The share of the run, at its end, in which the learning rates fall to zero."""
    decay_minutes: Annotated[float, Limits(0, 1e9)] = 0.0
    """If not 0, the rates fall to zero from where the run is now, within this time, and the run
    ends: for a resumed copy of a run that has no end of its own."""
    weight_decay: Probability = 0.01
    clip_norm: Annotated[float, Limits(1e-9, 1e9)] = 5.0
    average: Annotated[float, Limits(0, 0.999999)] = 0.999
    """Decay per step of the moving average of the weights, which is what is saved."""


@dataclass(frozen=True)
class RunSettings:
    """Where and how it runs."""

    out: Path = Path("runs/mcspex")
    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    """Make what lies between matrix products one loop each, with torch.compile."""
    tensorboard: bool = False
    seed: Annotated[int, Limits(0, 2**63)] = 0
    log_every_steps: Steps = 50
    validate_every_steps: Steps = 1000
    validate_every_minutes: Annotated[float, Limits(0, 1e9)] = 0.0
    """If not 0, validation goes by the clock instead."""
    save_every_minutes: Annotated[float, Limits(0.01, 1e9)] = 5.0
    """How often what `--resume` needs is written, beside each validation."""


@dataclass(frozen=True)
class TrainSettings:
    """The whole TOML: one table for each field. Paths start from the TOML's folder."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    mixtures: MixtureSettings = field(default_factory=MixtureSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def read(cls, path: Path, minutes: float | None = None) -> TrainSettings:
        """Read a TOML file; `minutes`, if given, replaces its own.

        Raises:
            ConfigError: it is missing, not TOML, or a table, key or value is wrong.
        """
        tables = _read_tables(path)
        names = [f.name for f in fields(cls)]
        for name in tables.keys() - set(names):
            raise ConfigError(f"{path}: there is no table [{name}]. Tables: {', '.join(names)}.")
        model = _convert(path, tables, "model", ModelSettings)
        if model.start_from and (path.parent / model.start_from).is_dir():
            model = replace(model, start_from=str(path.parent / model.start_from))
        settings = cls(
            model,
            _convert(path, tables, "data", DataSettings),
            _convert(path, tables, "mixtures", MixtureSettings),
            _convert(path, tables, "optimiser", OptimiserSettings),
            _convert(path, tables, "run", RunSettings),
        )
        if minutes is not None:
            optimiser = replace(settings.optimiser, minutes=minutes)
            settings = replace(settings, optimiser=optimiser)
        _check_names(path, settings)
        _check_mixtures(path, settings.mixtures)
        _check_together(path, settings)
        return settings

    @classmethod
    def read_mixtures(cls, path: Path) -> MixtureSettings:
        """Read the table [mixtures] of a TOML file, whatever else is in it.

        Raises:
            ConfigError: as `read`.
        """
        settings = _convert(path, _read_tables(path), "mixtures", MixtureSettings)
        _check_mixtures(path, settings)
        return settings


def _read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML ({error}).") from error


_Table = TypeVar("_Table")


def _convert(path: Path, tables: dict[str, Any], name: str, kind: type[_Table]) -> _Table:
    """One table as its dataclass, naming the first key that does not fit."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} must be a table, [{name}].")
    hints = get_type_hints(kind, include_extras=True)

    def from_folder(_: type, text: object) -> Path:
        """A path of the TOML as seen from the working folder."""
        if not isinstance(text, str) or not text:
            raise ValueError
        return path.parent / text

    values = {}
    for key, value in table.items():
        if key not in hints:
            raise ConfigError(f"{path}: [{name}] has no key {key}. Keys: {', '.join(hints)}.")
        try:
            values[key] = msgspec.convert(value, hints[key], dec_hook=from_folder)
            fits = _within_limits(values[key], hints[key])
        except msgspec.ValidationError:
            fits = False
        if not fits:
            text = json.dumps(value, default=str)
            raise ConfigError(f"{path}: [{name}] {key} = {text} must be {_describe(hints[key])}.")
    for key, hint in hints.items():
        if hint is Path and key not in values:
            values[key] = path.parent / getattr(kind(), key)
    return kind(**values)


def _limits(hint: Any) -> Limits | None:
    """The limits that a field's type is annotated with."""
    return next((each for each in get_args(hint) if isinstance(each, Limits)), None)


def _within_limits(value: Any, hint: Any) -> bool:
    """Whether a number lies within its field's limits, or a range does and rises."""
    limits = _limits(hint)
    if limits is None:
        return True
    low, high = value if isinstance(value, tuple) else (value, value)
    return bool(limits.low <= low <= high <= limits.high)


def _describe(hint: Any) -> str:
    """What a value of this type is, in words."""
    limits = _limits(hint)
    kind = get_args(hint)[0] if limits else hint
    words = {
        int: "a whole number",
        float: "a number",
        Range: "two rising numbers in brackets",
        bool: "true or false",
        str: "a text in quotes",
        tuple[str, ...]: "a list of texts in brackets",
        tuple[Path, ...]: "a list of paths in brackets",
    }.get(kind, "a path in quotes")
    return f"{words}, from {limits.low:g} to {limits.high:g}" if limits else words


_ONLY_DRAWN = ("snr_db", "speed", "third_talker", "same_sex", "partial_overlap")
"""Keys of [mixtures] that mean nothing where mixtures are given."""


def _check_together(path: Path, settings: TrainSettings) -> None:
    """Refuse what does not go together."""
    defaults, mixtures = MixtureSettings(), settings.mixtures
    changed = [key for key in _ONLY_DRAWN if getattr(mixtures, key) != getattr(defaults, key)]
    if settings.data.mixing == "given" and changed:
        raise ConfigError(
            f"{path}: [mixtures] {changed[0]} cannot be set where [data] mixing is "
            '"given": the mixtures are there already. Remove it.'
        )
    if settings.optimiser.batch % mixtures.mixtures_per_reference:
        raise ConfigError(
            f"{path}: [optimiser] batch must be a multiple of [mixtures] mixtures_per_reference, "
            f"which is {mixtures.mixtures_per_reference}."
        )
    if not settings.data.train:
        raise ConfigError(f"{path}: [data] train must name one or more folders of speakers.")


def _check_mixtures(path: Path, mixtures: MixtureSettings) -> None:
    """Refuse kinds of noise that there are not, and sexes that nothing tells."""
    kinds = mixtures.noise_kinds
    if not kinds or any(kind not in NOISES for kind in kinds):
        raise ConfigError(
            f"{path}: [mixtures] noise_kinds must be one or more of {', '.join(NOISES)}."
        )
    if mixtures.same_sex and not mixtures.speakers_csv:
        raise ConfigError(
            f"{path}: [mixtures] same_sex needs to know the speakers. Add speakers_csv, "
            "a list of CSV files with the columns speaker and sex."
        )


def _check_names(path: Path, settings: TrainSettings) -> None:
    """Refuse names that are in none of the tables that they are looked up in."""
    from mcspex_cli.model.config import SIZES
    from mcspex_cli.model.systems import CHOICES

    choices: dict[tuple[str, str], Collection[str]] = {
        ("model", "size"): SIZES,
        ("data", "mixing"): MIXINGS,
        ("run", "precision"): PRECISIONS,
        **{("model", key): CHOICES[key] for key in CHOICES if hasattr(settings.model, key)},
    }
    for (name, key), known in choices.items():
        value = getattr(getattr(settings, name), key)
        if value not in known:
            raise ConfigError(
                f'{path}: [{name}] {key} = "{value}" must be one of {", ".join(known)}.'
            )


def _without_folders(value: object) -> object:
    """A setting's value with each path cut to its last name."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return [_without_folders(each) for each in value]
    return value
