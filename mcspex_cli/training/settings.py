"""A training run's settings, read from TOML and checked before anything is loaded.

`examples/train.toml` says what each of them does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from mcspex_cli import files
from mcspex_cli.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Limits:
    """The least and the greatest that a number may be, or the two ends of a range."""

    low: float
    high: float

    def allow(self, value: Any) -> bool:
        """Whether a number is within the limits, or a range is and rises."""
        low, high = value if isinstance(value, tuple) else (value, value)
        return bool(self.low <= low <= high <= self.high)


Range = tuple[float, float]
"""Two rising numbers, between which values are drawn uniformly."""

Noise = Literal["white", "pink", "speech", "babble", "hum"]
"""White; 3 dB less per octave; speech's average spectrum; several talkers; mains hum."""

Probability = Annotated[float, Limits(0, 1)]
Decibels = Annotated[Range, Limits(-100, 100)]
Count = Annotated[int, Limits(1, 64)]
Steps = Annotated[int, Limits(1, 1e12)]
Minutes = Annotated[float, Limits(0, 1e9)]


@dataclass(frozen=True)
class ModelSettings:
    """Which network: `system` of SYSTEMS and `size` of SIZES, or a checkpoint to start from."""

    system: str | None = None
    """If this or one of its three parts below is not given, the checkpoint's; for a new network,
    mcspex and what measured best."""
    size: str | None = None
    """Of a new network; "small" if it is not given."""
    sample_rate_hz: Annotated[int, Limits(4000, 192_000)] = 0
    """If it is not given, the checkpoint's, and 8 kHz for a new network."""
    start_from: str = ""
    width: Annotated[float, Limits(1, 8)] = 1.0
    stacks: Annotated[int, Limits(1, 64)] = 0
    """If this or the next is not given, as many as there are."""
    blocks: Annotated[int, Limits(1, 16)] = 0
    scale_fuser: str | None = None
    consm: str | None = None
    scale_intermg: str | None = None


@dataclass(frozen=True)
class DataSettings:
    """Trees of speakers (see `list_utterances`) and what to validate on."""

    train: tuple[Path, ...] = ()
    mixing: Literal["drawn", "given"] = "drawn"
    validation: Path | None = None
    enrolments: Path | None = None
    validation_mixtures: Annotated[int, Limits(1, 1e6)] = 64


@dataclass(frozen=True)
class MixtureSettings:
    """What a drawn mixture may be. Single numbers from 0 to 1 are probabilities."""

    segment_s: Annotated[float, Limits(0.5, 600)] = 3.0
    reference_s: Annotated[Range, Limits(0.5, 600)] = (1.5, 8.0)
    reference_lengths: Count = 4
    own_reference_lengths: bool = False
    mixtures_per_reference: Count = 1
    snr_db: Decibels = (-5.0, 5.0)
    level_db: Annotated[Range, Limits(-100, 0)] = (-40.0, -18.0)
    speed: Annotated[Range, Limits(0.5, 2)] = (1.0, 1.0)
    third_talker: Probability = 0.0
    same_sex: Probability = 0.0
    speakers_csv: tuple[Path, ...] = ()
    partial_overlap: Probability = 0.0
    overlap: Annotated[Range, Limits(0.05, 1)] = (0.2, 0.9)
    absent: Probability = 0.0
    noise: Probability = 0.0
    noise_db: Decibels = (0.0, 20.0)
    noise_kinds: Annotated[tuple[Noise, ...], msgspec.Meta(min_length=1)] = get_args(Noise)
    noise_folder: Path | None = None
    noise_files: Probability = 0.5
    """That a noise is from `noise_folder`, where one is named, and not computed."""
    room: Probability = 0.0
    t60_s: Annotated[Range, Limits(0.05, 5)] = (0.1, 0.6)
    room_folder: Path | None = None
    room_files: Probability = 0.3
    """The same for rooms and `room_folder`."""
    narrow_band: Probability = 0.0
    band_hz: Annotated[Range, Limits(100, 96_000)] = (2000.0, 4000.0)
    band_from_hz: Annotated[Range, Limits(0, 96_000)] = (50.0, 350.0)
    inverted: Probability = 0.0
    reference_noise: Probability = 0.0
    reference_room: Probability = 0.0
    reference_narrow_band: Probability = 0.0

    def __post_init__(self) -> None:
        if self.same_sex and not self.speakers_csv:
            raise ValueError(
                "same_sex needs to know the speakers. Add speakers_csv, a list of CSV files with "
                "the columns speaker and sex."
            )
        if self.band_from_hz[0] >= self.band_hz[1]:
            raise ValueError(
                "band_from_hz is where a narrow band begins, and band_hz where it ends. Lower the "
                "one, or raise the other."
            )

    def to_dict(self) -> dict[str, object]:
        """The settings for a checkpoint's provenance: of paths, only the last name."""
        settings: dict[str, object] = msgspec.to_builtins(self, enc_hook=lambda path: path.name)
        return settings


@dataclass(frozen=True)
class OptimiserSettings:
    """Muon and AdamW with a warm-up, a plateau and a linear decay to zero."""

    steps: Steps = 10_000
    minutes: Minutes = 0.0
    batch: Annotated[int, Limits(2, 4096)] = 8
    learning_rate: Annotated[float, Limits(1e-12, 10)] = 1e-3
    muon_rate: Annotated[float, Limits(0, 10)] = 0.005
    warmup_steps: Annotated[int, Limits(0, 1e12)] = 200
    decay_share: Probability = 0.4
    decay_minutes: Minutes = 0.0
    weight_decay: Probability = 0.01
    clip_norm: Annotated[float, Limits(1e-9, 1e9)] = 5.0
    average: Annotated[float, Limits(0, 0.999999)] = 0.999
    """Decay per step of the moving average of the weights."""


@dataclass(frozen=True)
class RunSettings:
    """Where and how it runs."""

    out: Path = Path("runs/mcspex")
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    """float16 would need its gradients scaled."""
    compile: bool = False
    workers: Annotated[int, Limits(0, 1024)] = 0
    """Processes that draw mixtures ahead, on the CPU; with 0, they are drawn where it trains."""
    tensorboard: bool = False
    seed: Annotated[int, Limits(0, 2**63)] = 0
    log_every_steps: Steps = 50
    validate_every_steps: Steps = 1000
    validate_every_minutes: Minutes = 0.0
    save_every_minutes: Annotated[float, Limits(0.01, 1e9)] = 5.0


@dataclass(frozen=True)
class TrainSettings:
    """The whole TOML: one table for each field. Paths start from the TOML's folder."""

    model: ModelSettings
    data: DataSettings
    mixtures: MixtureSettings
    optimiser: OptimiserSettings
    run: RunSettings

    @classmethod
    def read(cls, path: Path, minutes: float | None = None) -> TrainSettings:
        """Read a TOML file; `minutes`, if given, replaces its own.

        Raises:
            ConfigError: it is missing, not TOML, or a table, key or value is wrong.
        """
        tables, kinds = _read_tables(path), get_type_hints(cls)
        for name in tables.keys() - kinds.keys():
            raise ConfigError(f"{path}: there is no table [{name}]. Tables: {', '.join(kinds)}.")
        settings = cls(**{name: _convert(path, tables, name, kind) for name, kind in kinds.items()})
        model = settings.model
        if model.start_from and (path.parent / model.start_from).is_dir():
            model = replace(model, start_from=str(path.parent / model.start_from))
            settings = replace(settings, model=model)
        if minutes is not None:
            settings = replace(settings, optimiser=replace(settings.optimiser, minutes=minutes))
        _check(path, settings)
        return settings

    @classmethod
    def read_mixtures(cls, path: Path) -> MixtureSettings:
        """Read the table [mixtures] of a TOML file as `read` does, whatever else is in it."""
        tables = _read_tables(path)
        if tables and "mixtures" not in tables:
            raise ConfigError(f"{path}: has no table [mixtures], so it does not say what to draw.")
        return _convert(path, tables, "mixtures", MixtureSettings)


def _read_tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
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
        limits = _limits(hints[key])
        try:
            values[key] = msgspec.convert(value, hints[key], dec_hook=from_folder)
            fits = limits is None or limits.allow(values[key])
        except msgspec.ValidationError:
            fits = False
        if not fits:
            text = json.dumps(value, default=str)
            raise ConfigError(f"{path}: [{name}] {key} = {text} must be {_describe(hints[key])}.")
    for key, hint in hints.items():
        if hint is Path and key not in values:
            values[key] = path.parent / getattr(kind(), key)
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{path}: [{name}] {error}") from error


def _limits(hint: Any) -> Limits | None:
    """The limits that a field's type is annotated with."""
    return next((each for each in get_args(hint) if isinstance(each, Limits)), None)


def _describe(hint: Any) -> str:
    """What a value of this type is, in words."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    words = {
        int: "a whole number",
        float: "a number",
        Range: "two rising numbers in brackets",
        bool: "true or false",
        str: "a text in quotes",
        str | None: "a text in quotes",
        tuple[Path, ...]: "a list of paths in brackets",
        tuple[Noise, ...]: f"a list of one or more of {', '.join(get_args(Noise))}",
    }.get(kind, "a path in quotes")
    limits = _limits(hint)
    return f"{words}, from {limits.low:g} to {limits.high:g}" if limits else words


_ONLY_DRAWN = ("snr_db", "speed", "third_talker", "same_sex", "partial_overlap")
"""Keys of [mixtures] that mean nothing where mixtures are given."""


def _check(path: Path, settings: TrainSettings) -> None:
    """Refuse names that are in no table of networks, and what does not go together."""
    from mcspex_cli.model.config import SIZES
    from mcspex_cli.model.systems import CHOICES

    for key, choices in {**CHOICES, "size": SIZES}.items():
        value = getattr(settings.model, key, None)
        if value is not None and value not in choices:
            raise ConfigError(
                f'{path}: [model] {key} = "{value}" must be one of {", ".join(choices)}.'
            )
    defaults, mixtures = MixtureSettings(), settings.mixtures
    if mixtures.absent == 1:
        raise ConfigError(
            f"{path}: [mixtures] absent = 1 leaves no target to learn from. Lower it."
        )
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
