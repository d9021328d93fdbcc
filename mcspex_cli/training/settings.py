"""A training run's settings, read from TOML and checked before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mcspex_cli.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


PRECISIONS = ("float32", "bfloat16")
"""What a network is trained in; float16 would need its gradients scaled."""


NOISES = ("white", "pink", "speech", "babble", "hum")
"""White; 3 dB less per octave; speech's average spectrum; several talkers; mains hum."""


@dataclass(frozen=True)
class MixtureSettings:
    """What a drawn mixture may be. Ranges are uniform; single numbers are probabilities."""

    segment_s: float = 3.0
    reference_s: tuple[float, float] = (1.5, 8.0)
    """Drawn once for a batch: references are never padded."""
    reference_lengths: int = 4
    """Different lengths of references, spread over `reference_s`: each is compiled once."""
    mixtures_per_reference: int = 1
    """Rows of a batch, one after another, that share a target speaker and a reference."""
    snr_db: tuple[float, float] = (-5.0, 5.0)
    """Of the target over each interferer, while they speak."""
    level_db: tuple[float, float] = (-40.0, -18.0)
    speed: tuple[float, float] = (1.0, 1.0)
    """Of each voice, in hundredths; a target's reference is as fast as the target."""
    third_talker: float = 0.0
    partial_overlap: float = 0.0
    overlap: tuple[float, float] = (0.2, 0.9)
    """The share of the segment in which both speak, where the overlap is partial."""
    absent: float = 0.0
    """The target does not speak; then levels are learnt too, so that silence can be."""
    noise: float = 0.0
    noise_db: tuple[float, float] = (0.0, 20.0)
    """Of the talkers over the noise."""
    noise_kinds: tuple[str, ...] = NOISES
    room: float = 0.0
    t60_s: tuple[float, float] = (0.1, 0.6)
    narrow_band: float = 0.0
    band_hz: tuple[float, float] = (2000.0, 4000.0)
    """The highest frequency left, where the band is narrow."""
    band_from_hz: tuple[float, float] = (50.0, 350.0)
    """The lowest; a telephone's is 300 Hz."""
    reference_noise: float = 0.0
    reference_room: float = 0.0
    reference_narrow_band: float = 0.0


@dataclass(frozen=True)
class ModelSettings:
    """Which network: `system` of SYSTEMS, `size` of SIZES, or a checkpoint to go on from."""

    system: str = "mcspex"
    size: str = "small"
    sample_rate_hz: int = 8000
    start_from: str = ""
    scale_fuser: str = "gate"
    """MC-SpEx's insides, of FUSERS, CONSMS and INTERMGS."""
    consm: str = "steady"
    scale_intermg: str = "mixing"


@dataclass(frozen=True)
class DataSettings:
    """Trees of speakers (see `list_clips`) and what to validate on; paths from the TOML."""

    train: tuple[str, ...] = ()
    mixing: str = "drawn"
    """Whether mixtures are "drawn" anew or taken as a LibriMix set has "given" them."""
    validation: str = ""
    """A recipe's CSV, a LibriMix set or a folder that `mcspex simulate` made."""
    enrolments: str = ""
    """SpeakerBeam's `map_mixture2enrollment` for that set; without it, references are drawn."""
    validation_mixtures: int = 64


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW with a warm-up, a plateau and a linear decay to zero."""

    steps: int = 10_000
    minutes: float = 0.0
    """If not 0, the run ends after this time instead, and the schedule is sized to it."""
    batch: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_share: float = 0.4
    """The share of the run, at its end, in which the learning rate falls to zero."""
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    average: float = 0.999
    """Decay per step of the moving average of the weights, which is what is saved."""


@dataclass(frozen=True)
class RunSettings:
    """Where and how it runs."""

    out: str = "runs/mcspex"
    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    """Compile the extractor, four fifths of the work, with torch.compile."""
    tensorboard: bool = False
    seed: int = 0
    log_every_steps: int = 50
    validate_every_steps: int = 1000


@dataclass(frozen=True)
class TrainSettings:
    """The whole TOML: one table for each field."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    mixtures: MixtureSettings = field(default_factory=MixtureSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)
    folder: Path = Path()
    """The TOML's folder, which relative paths start from."""

    @classmethod
    def read(cls, path: Path, minutes: float | None = None) -> TrainSettings:
        """Read a TOML file; `minutes`, if given, replaces its own.

        Raises:
            ConfigError: it is missing, not TOML, or a table, key or type is wrong.
        """
        tables = _tables(path)
        kinds = {
            "model": ModelSettings,
            "data": DataSettings,
            "mixtures": MixtureSettings,
            "optimiser": OptimiserSettings,
            "run": RunSettings,
        }
        for name in tables.keys() - kinds.keys():
            raise ConfigError(f"{path}: [{name}] is unknown. Tables: {', '.join(kinds)}.")
        made = {name: _fill(path, name, kinds[name], table) for name, table in tables.items()}
        settings = cls(**made, folder=path.parent)
        if minutes is not None:
            optimiser = replace(settings.optimiser, minutes=minutes)
            settings = replace(settings, optimiser=optimiser)
        _check(path, settings)
        return settings

    @classmethod
    def read_mixtures(cls, path: Path) -> MixtureSettings:
        """Read the table [mixtures] of a TOML file, whatever else is in it.

        Raises:
            ConfigError: as `read`.
        """
        settings: MixtureSettings = _fill(
            path, "mixtures", MixtureSettings, _tables(path).get("mixtures", {})
        )
        _check_mixtures(path, settings)
        return settings

    def resolve(self, path: str) -> Path:
        """A path of the TOML as seen from here."""
        return self.folder / path


def _tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error}).") from error


def _fill(path: Path, name: str, kind: type, table: Any) -> Any:
    """Build one table's dataclass, naming the first key that does not fit."""
    defaults = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} must be a table, [{name}].")
    values = {}
    for key, given in table.items():
        if key not in defaults:
            raise ConfigError(f"{path}: [{name}] {key} is unknown. Keys: {', '.join(defaults)}.")
        default = defaults[key]
        value = tuple(given) if isinstance(given, list) else given
        if isinstance(default, float) and type(given) is int:
            value = float(given)
        if type(value) is not type(default):
            wanted = "list" if isinstance(default, tuple) else type(default).__name__
            raise ConfigError(f"{path}: [{name}] {key} = {value!r} must be a {wanted}.")
        values[key] = value
    return kind(**values)


MIXINGS = ("drawn", "given")

_DRAWN = ("snr_db", "speed", "third_talker", "partial_overlap")
"""Keys of [mixtures] that mean nothing where mixtures are given."""

_RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("model", "sample_rate_hz"): (4000, 192_000),
    ("data", "validation_mixtures"): (1, 1e6),
    ("optimiser", "steps"): (1, 1e12),
    ("optimiser", "minutes"): (0, 1e9),
    ("optimiser", "batch"): (2, 1e6),
    ("optimiser", "learning_rate"): (1e-12, 10),
    ("optimiser", "warmup_steps"): (0, 1e12),
    ("optimiser", "decay_share"): (0, 1),
    ("optimiser", "weight_decay"): (0, 1),
    ("optimiser", "clip_norm"): (1e-9, 1e9),
    ("optimiser", "average"): (0, 0.999999),
    ("run", "seed"): (0, 2**63),
    ("run", "log_every_steps"): (1, 1e12),
    ("run", "validate_every_steps"): (1, 1e12),
}

_SPANS: dict[str, tuple[float, float]] = {
    "reference_s": (0.5, 600),
    "snr_db": (-100, 100),
    "level_db": (-100, 0),
    "speed": (0.5, 2),
    "overlap": (0.05, 1),
    "noise_db": (-100, 100),
    "t60_s": (0.05, 5),
    "band_hz": (100, 96_000),
    "band_from_hz": (0, 96_000),
}
"""Ranges of [mixtures], and what they must lie in; every other number there is a probability."""


def _check(path: Path, settings: TrainSettings) -> None:
    """Refuse what no run could use."""
    for (name, key), (low, high) in _RANGES.items():
        if not low <= getattr(getattr(settings, name), key) <= high:
            raise ConfigError(f"{path}: [{name}] {key} must be from {low:g} to {high:g}.")
    _check_mixtures(path, settings.mixtures)
    _check_words(path, settings)
    shared = settings.mixtures.mixtures_per_reference
    if settings.optimiser.batch % shared:
        raise ConfigError(
            f"{path}: [optimiser] batch must be a multiple of [mixtures] mixtures_per_reference, "
            f"which is {shared}."
        )
    changed = [n for n in _DRAWN if getattr(settings.mixtures, n) != getattr(MixtureSettings(), n)]
    if settings.data.mixing == "given" and changed:
        raise ConfigError(f'{path}: [mixtures] {changed[0]} changes mixtures that are "given".')


def _check_mixtures(path: Path, mixtures: MixtureSettings) -> None:
    """Refuse ranges that fall or leave their limits, and probabilities outside 0 to 1."""
    for name, value in asdict(mixtures).items():
        if name in _SPANS:
            low, high = _SPANS[name]
            if len(value) != 2 or not all(type(v) in (int, float) for v in value):
                raise ConfigError(f"{path}: [mixtures] {name} must be two numbers, rising.")
            if not low <= value[0] <= value[1] <= high:
                raise ConfigError(
                    f"{path}: [mixtures] {name} must be two numbers, rising, "
                    f"from {low:g} to {high:g}."
                )
        elif name == "noise_kinds":
            if not value or any(kind not in NOISES for kind in value):
                raise ConfigError(f"{path}: [mixtures] {name} must be of {', '.join(NOISES)}.")
        elif name in ("reference_lengths", "mixtures_per_reference"):
            if not 1 <= value <= 64:
                raise ConfigError(f"{path}: [mixtures] {name} must be from 1 to 64.")
        elif name == "segment_s":
            if not 0.5 <= value <= 600:
                raise ConfigError(f"{path}: [mixtures] segment_s must be from 0.5 to 600.")
        elif not 0 <= value <= 1:
            raise ConfigError(f"{path}: [mixtures] {name} must be a probability, from 0 to 1.")


def _check_words(path: Path, settings: TrainSettings) -> None:
    """Refuse names that nothing goes by."""
    from mcspex_cli.model.decoder import INTERMGS
    from mcspex_cli.model.encoder import FUSERS
    from mcspex_cli.model.extractor import CONSMS
    from mcspex_cli.model.systems import SIZES, SYSTEMS

    choices: dict[tuple[str, str], Collection[str]] = {
        ("model", "system"): SYSTEMS,
        ("model", "size"): SIZES,
        ("model", "scale_fuser"): FUSERS,
        ("model", "consm"): CONSMS,
        ("model", "scale_intermg"): INTERMGS,
        ("data", "mixing"): MIXINGS,
        ("run", "precision"): PRECISIONS,
    }
    for (name, key), known in choices.items():
        if getattr(getattr(settings, name), key) not in known:
            raise ConfigError(f"{path}: [{name}] {key} must be one of {', '.join(known)}.")
    folders = settings.data.train
    if not folders or not all(isinstance(folder, str) for folder in folders):
        raise ConfigError(f"{path}: [data] train must name folders of speakers.")
