"""A training run's settings, read from TOML and checked before anything is loaded.

`examples/train.toml` says what each of them does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, explain_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_logger = logging.getLogger("mcspex")

Kind = TypeVar("Kind")

Range = tuple[Kind, Kind]
"""Two rising numbers, between which values are drawn uniformly."""

Noise = Literal["white", "pink", "speech", "babble", "hum"]
"""White; 3 dB less per octave; speech's average spectrum; several talkers; mains hum."""

Probability = Annotated[float, Meta(ge=0, le=1)]
Decibels = Annotated[float, Meta(ge=-100, le=100)]
Seconds = Annotated[float, Meta(ge=0.5, le=600)]
Minutes = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=64)]
Steps = Annotated[int, Meta(ge=1, le=10**12)]


@dataclass(frozen=True)
class ModelSettings:
    """Which network: `system` of SYSTEMS and `size` of SIZES, or a checkpoint to start from."""

    system: str | None = None
    """If this or one of its three parts below is not given, the checkpoint's; for a new network,
    mcspex and what measured best."""
    size: str | None = None
    """Of a new network; "small" if it is not given."""
    sample_rate_hz: Annotated[int, Meta(ge=4000, le=192_000)] = 0
    """If it is not given, the checkpoint's, and 8 kHz for a new network."""
    start_from: str = ""
    width: Annotated[float, Meta(ge=1, le=8)] = 1.0
    stacks: Count = 0
    """If this or the next is not given, as many as there are."""
    blocks: Annotated[int, Meta(ge=1, le=16)] = 0
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
    validation_mixtures: Annotated[int, Meta(ge=1, le=10**6)] = 64


@dataclass(frozen=True)
class MixtureSettings:
    """What a drawn mixture may be. Single numbers from 0 to 1 are probabilities."""

    segment_s: Seconds = 3.0
    reference_s: Range[Seconds] = (1.5, 8.0)
    reference_lengths: Count = 4
    own_reference_lengths: bool = False
    mixtures_per_reference: Count = 1
    snr_db: Range[Decibels] = (-5.0, 5.0)
    level_db: Range[Annotated[float, Meta(ge=-100, le=0)]] = (-40.0, -18.0)
    speed: Range[Annotated[float, Meta(ge=0.5, le=2)]] = (1.0, 1.0)
    third_talker: Probability = 0.0
    same_sex: Probability = 0.0
    speakers_csv: tuple[Path, ...] = ()
    partial_overlap: Probability = 0.0
    overlap: Range[Annotated[float, Meta(ge=0.05, le=1)]] = (0.2, 0.9)
    absent: Probability = 0.0
    noise: Probability = 0.0
    noise_db: Range[Decibels] = (0.0, 20.0)
    noise_kinds: Annotated[tuple[Noise, ...], Meta(min_length=1)] = get_args(Noise)
    noise_folder: Path | None = None
    noise_files: Probability = 0.5
    """That a noise is from `noise_folder`, where one is named, and not computed."""
    room: Probability = 0.0
    t60_s: Range[Annotated[float, Meta(ge=0.05, le=5)]] = (0.1, 0.6)
    room_folder: Path | None = None
    room_files: Probability = 0.3
    """The same for rooms and `room_folder`."""
    narrow_band: Probability = 0.0
    band_hz: Range[Annotated[float, Meta(ge=100, le=96_000)]] = (2000.0, 4000.0)
    band_from_hz: Range[Annotated[float, Meta(ge=0, le=96_000)]] = (50.0, 350.0)
    band_slope_db: Range[Annotated[float, Meta(ge=6, le=480)]] = (12.0, 240.0)
    inverted: Probability = 0.0
    reference_noise: Probability = 0.0
    reference_room: Probability = 0.0
    reference_narrow_band: Probability = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            numbers = [n for n in value if isinstance(n, float)] if type(value) is tuple else []
            if numbers != sorted(numbers):
                raise ValueError(f"[mixtures] {name} must be two rising numbers.")
        if self.same_sex and not self.speakers_csv:
            raise ValueError(
                "[mixtures] same_sex needs to know the speakers. Add speakers_csv, a list of CSV "
                "files with the columns speaker and sex."
            )
        if self.band_from_hz[0] >= self.band_hz[1]:
            raise ValueError(
                "[mixtures] band_from_hz is where a narrow band begins, and band_hz where it ends. "
                "Lower the one, or raise the other."
            )

    def to_dict(self) -> dict[str, object]:
        """The settings for a checkpoint's provenance: of paths, only the last name."""
        return msgspec.to_builtins(asdict(self), enc_hook=lambda path: path.name)


@dataclass(frozen=True)
class OptimiserSettings:
    """Muon and AdamW with a warm-up, a plateau and a linear decay to zero."""

    steps: Steps = 10_000
    minutes: Minutes = 0.0
    batch: Annotated[int, Meta(ge=2, le=4096)] = 8
    learning_rate: Annotated[float, Meta(ge=1e-12, le=10)] = 1e-3
    muon_rate: Annotated[float, Meta(ge=0, le=10)] = 0.005
    warmup_steps: Annotated[int, Meta(ge=0, le=10**12)] = 200
    decay_share: Probability = 0.4
    decay_minutes: Minutes = 0.0
    """If set, all that is left is the decay: the rate falls to zero within so many minutes, counted
    from the first run or resume that has this setting, and the run ends. `steps`, `minutes` and
    `decay_share` then mean nothing."""
    weight_decay: Probability = 0.01
    clip_norm: Annotated[float, Meta(ge=1e-9, le=1e9)] = 5.0
    average: Annotated[float, Meta(ge=0, le=0.999999)] = 0.999
    """Decay per step of the moving average of the weights."""


@dataclass(frozen=True)
class RunSettings:
    """Where and how it runs."""

    out: Path = Path("runs/mcspex")
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    """float16 would need its gradients scaled."""
    compile: bool = False
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Processes that draw mixtures ahead, on the CPU; with 0, they are drawn where it trains."""
    tensorboard: bool = False
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    log_every_steps: Steps = 50
    validate_every_steps: Steps = 1000
    validate_every_minutes: Minutes = 0.0
    save_every_minutes: Annotated[float, Meta(ge=0.01, le=1e9)] = 5.0


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
        settings = _convert(path, tables)
        model, run, optimiser = settings.model, settings.run, settings.optimiser
        if model.start_from and (path.parent / model.start_from).is_dir():
            model = replace(model, start_from=str(path.parent / model.start_from))
        if "out" not in tables.get("run", {}):
            run = replace(run, out=path.parent / run.out)
        whole = run.out.resolve()
        if ".." in run.out.parts and whole.is_relative_to(Path.cwd()):
            run = replace(run, out=whole.relative_to(Path.cwd()))  # which is easier to read
        if minutes is not None:
            if optimiser.decay_minutes:
                raise ConfigError(
                    f"{path}: [optimiser] decay_minutes and --minutes both say when this run ends. "
                    "Leave one out."
                )
            optimiser = replace(optimiser, minutes=minutes)
        settings = replace(settings, model=model, run=run, optimiser=optimiser)
        for problem in _problems(settings):
            raise ConfigError(f"{path}: {problem}")
        return settings

    @classmethod
    def read_mixtures(cls, path: Path) -> MixtureSettings:
        """Read the table [mixtures] of a TOML file as `read` does, whatever else is in it."""
        tables = _read_tables(path)
        if tables and "mixtures" not in tables:
            raise ConfigError(f"{path}: has no table [mixtures], so it does not say what to draw.")
        return _convert(path, {"mixtures": tables.get("mixtures", {})}).mixtures


def _read_tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML ({error}).") from error


def _convert(path: Path, tables: dict[str, Any]) -> TrainSettings:
    """Check each key and value; also warn of a folder that no mixture would use."""
    kinds = get_type_hints(TrainSettings)
    for name, table in tables.items():
        if name not in kinds:
            raise ConfigError(f"{path}: there is no table [{name}]. Tables: {', '.join(kinds)}.")
        keys = list(get_type_hints(kinds[name]))
        for key in table if isinstance(table, dict) else ():
            if key not in keys:
                raise ConfigError(f"{path}: [{name}] has no key {key}. Keys: {', '.join(keys)}.")

    def from_folder(_: type, text: object) -> Path:
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError("Expected a path in quotes")
        if text.startswith("~/"):
            raise ValueError("Expected a path on this disk, written out")
        return path.parent / text

    try:
        settings = msgspec.convert(tables, TrainSettings, dec_hook=from_folder)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}: {explain_value(error, tables)} See examples/train.toml."
        ) from error
    for kind in ("noise", "room"):
        chances = (getattr(settings.mixtures, name) for name in (kind, f"reference_{kind}"))
        if getattr(settings.mixtures, f"{kind}_folder") and not any(chances):
            _logger.warning(
                f"{path}: [mixtures] {kind}_folder is not used, because {kind} and "
                f"reference_{kind} are 0. Set one of them, or leave {kind}_folder out."
            )
    return settings


def _problems(settings: TrainSettings) -> Iterator[str]:
    """What does not go together, or has no such name."""
    from mcspex_cli.model.config import SIZES
    from mcspex_cli.model.systems import CHOICES

    mixtures = settings.mixtures
    for key, choices in {**CHOICES, "size": SIZES}.items():
        value = getattr(settings.model, key, None)
        if value is not None and value not in choices:
            yield f"[model] {key} {value!r} is unknown. Known: {', '.join(choices)}."
    if settings.model.start_from and settings.model.size:
        yield "[model] size is for a new network. Leave it out: start_from has a size already."
    if mixtures.absent == 1:
        yield "[mixtures] absent = 1 leaves no target to learn from. Lower it."
    for key in ("snr_db", "speed", "third_talker", "same_sex", "partial_overlap"):
        is_set = getattr(mixtures, key) != getattr(MixtureSettings, key)
        if is_set and settings.data.mixing == "given":
            yield (
                f'[mixtures] {key} cannot be set where [data] mixing is "given": the mixtures are '
                "there already. Remove it."
            )
    if settings.optimiser.batch % mixtures.mixtures_per_reference:
        yield (
            "[optimiser] batch must be a multiple of [mixtures] mixtures_per_reference, which is "
            f"{mixtures.mixtures_per_reference}."
        )
    if not settings.data.train:
        yield "[data] train must name one or more folders of speakers."
