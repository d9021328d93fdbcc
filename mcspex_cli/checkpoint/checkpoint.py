"""Checkpoints: found by name, loaded as a ready network, checked and saved.

```
"mcspex-16k" │ folder │ "org/name@revision"  ─ find_checkpoint ─ CheckpointInfo
CheckpointInfo ─ load_checkpoint ─ System ─ save_checkpoint ─ folder
```

A checkpoint is a folder with model.safetensors and config.json, which describes it:

```json
{"format": 1, "system": {"system": "mcspex", "sample_rate_hz": 8000, ...},
 "sha256": "of model.safetensors", "provenance": {...}, "calibration": {...}}
```
"""

from __future__ import annotations

import hashlib
import os
import re
import reprlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from mcspex_cli import files
from mcspex_cli.checkpoint import hub
from mcspex_cli.checkpoint.hub import CARD, CONFIG, FILES, WEIGHTS, HubName
from mcspex_cli.errors import (
    CheckpointError,
    ForeignModel,
    HubError,
    OutputError,
    explain_value,
    name_some,
    printable,
)
from mcspex_cli.model.config import SystemConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mcspex_cli.model.systems import System

DEFAULT_MODEL = "mcspex-16k"

GRAPHS, EMBED, EXTRACT = "graphs.json", "embed.onnx", "extract.onnx"
"""The ONNX graphs of an exported model, and their list; see `mcspex_cli.extraction.onnx`."""

FORMAT = 1
"""Version of config.json; a newer one needs a newer mcspex."""

_COPY_AGAIN = "Copy the model again."

_FORMER_CONSMS = {"steady": "film", "listening": "feature_film"}
"""What `consm` was called in files of 0.6.0 and before."""

Checked = TypeVar("Checked")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """config.json; unknown keys beside these are left alone."""

    format: int = FORMAT
    system: SystemConfig
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the weights' file."""
    provenance: dict[str, Any] = {}
    calibration: Any = None
    """See `mcspex_cli.extraction.presence`, which checks it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint on disk, described without loading it."""

    name: str
    folder: Path
    sha256: str
    config: SystemConfig
    provenance: dict[str, Any]
    revision: str | None = None
    """The commit, if it comes from the Hub."""
    calibration: Any = None
    """What its similarities mean, unchecked; see `mcspex_cli.extraction.presence`."""
    refs: tuple[str, ...] = ()
    """The branches and tags that pointed to its commit when the Hub was last asked."""
    source: Literal["bundled", "hub", "folder"] = "folder"
    """Where it comes from."""
    remedy: str = _COPY_AGAIN
    """What helps if its files are damaged."""

    @property
    def weights(self) -> Path:
        """Its weights' file, to which `sha256` belongs."""
        return self.folder / WEIGHTS

    @property
    def weight_bytes(self) -> int:
        """The size of its weights' file; 0 if that is missing."""
        return self.weights.stat().st_size if self.weights.is_file() else 0

    @property
    def has_only_graphs(self) -> bool:
        """Whether it was exported: it has ONNX graphs, and no weights for torch."""
        return (self.folder / GRAPHS).is_file() and not self.weights.exists()

    @property
    def label(self) -> str:
        """Its name, with its commit if it comes from the Hub."""
        return HubName(self.name, self.revision).label

    @property
    def argument(self) -> str:
        """What names it in a command."""
        return shlex.quote(str(self.folder)) if self.source == "folder" else self.name

    @property
    def title(self) -> str:
        """The name of its system, as its paper writes it."""
        titles = {"mcspex": "MC-SpEx", "spexplus": "SpEx+"}
        return titles.get(self.config.system, self.config.system)


def bundled() -> dict[str, Path]:
    """List the checkpoints that come with the package: name to folder."""
    package = Path(__file__).parents[1]
    for root in (package / "weights", package.parent / "weights"):
        if root.is_dir():
            return {p.name: p for p in sorted(root.iterdir()) if (p / CONFIG).is_file()}
    return {}


def find_checkpoint(
    model: str | Path | None = None,
    *,
    offline: bool = False,
    download: Callable[[HubName], CheckpointInfo] | None = None,
) -> CheckpointInfo:
    """Find a model: an existing folder, a bundled name, or org/name[@revision] on the Hub.

    They are tried in this order. A model that was downloaded before is used as it is, without a
    request, so that it does not change by itself; `pull` asks for a newer one.

    Args:
        model: a `Path` is always a folder, and None is the default model.
        offline: do not ask the Hub.
        download: what gets a model that is not on this disk, if not `pull`.

    Raises:
        CheckpointError: there is no such model, or its config.json cannot be used.
        HubError: it is not on this disk, and the Hub does not give it or must not be asked.
    """
    bundle = bundled()
    if model is None:
        if DEFAULT_MODEL not in bundle:
            raise CheckpointError(
                f"{DEFAULT_MODEL}: is not where it belongs. Install mcspex again."
            )
        return _describe(bundle[DEFAULT_MODEL])
    if not isinstance(model, str | Path):
        raise TypeError(f"a model is a name or a folder, not {model!r:.80}")
    name = HubName.parse(model) if isinstance(model, str) else None
    bundled_folder = bundle.get(model) if isinstance(model, str) else None
    folder = Path(model)
    is_folder = str(model) != "" and os.path.isdir(folder)  # noqa: PTH112 (too long is no error)
    if is_folder and (not (name or bundled_folder) or (folder / CONFIG).is_file()):
        return _describe(folder)
    if bundled_folder:
        return _describe(bundled_folder)
    if os.path.isfile(folder):  # noqa: PTH113 (too long is no error)
        raise CheckpointError(f"{model}: is a file. A model is a folder; name the one that has it.")
    if isinstance(model, Path):
        raise CheckpointError(f"{model}: no such folder. A bundled model is named by a str.")
    if name is None:
        raise CheckpointError(
            f"{model or repr(model)}: no such model. Bundled: {', '.join(bundle) or 'none'}; or "
            f"name a folder with {CONFIG}, or org/name on the Hugging Face Hub."
        )
    if commit := hub.cached(name):
        return _describe(commit.folder, commit)
    if not offline:
        try:
            return (download or pull)(name)
        except HubError as error:
            if not is_folder:
                raise
            raise HubError(
                f"{name}: this folder has no {CONFIG}, and the Hub has no such model. "
                f"Name a folder that has {CONFIG}, such as {name}/best."
            ) from error
    what = f"this folder has no {CONFIG}" if is_folder else "there is no such folder"
    raise HubError(
        f"{name}: {what}, and it has not been downloaded. Once you are online: {name.pull_command}"
    )


def pull(name: HubName, progress: Callable[[int, int], None] | None = None) -> CheckpointInfo:
    """Ask the Hub for `name` and download what is not on this disk yet.

    The config is checked before the weights are asked for. The weights must have the size that
    follows from it, and the checksums that it and the Hub state.

    Args:
        name: what to get.
        progress: gets the bytes received since the last call, and the bytes to be received in all.
    """
    listing = hub.look_up(name)
    total = listing.missing_bytes

    def advance(count: int) -> None:
        if progress:
            progress(count, total)

    folder = hub.fetch(listing, CONFIG, advance).parent
    try:
        config = read_config(folder, str(name), "Tell its author.")
        remote = listing.files[WEIGHTS]
        largest = _largest_bytes(new_system(config.system, name))
        if remote.size > largest:
            raise CheckpointError(
                f"{name}: its weights have {remote.size:,} bytes, but the network in its config "
                f"has {largest:,} at most. Tell its author."
            )
        is_other = len(remote.digest) == 64 and remote.digest != config.sha256
        if is_other or hub.checksum(hub.fetch(listing, WEIGHTS, advance)) != config.sha256:
            raise CheckpointError(
                f"{name}: its {CONFIG} belongs to other weights (sha256). Tell its author."
            )
    except HubError:
        raise  # the config may be good
    except CheckpointError:
        hub.remove([listing.commit])
        raise
    if CARD in listing.files:
        hub.fetch(listing, CARD, advance)
    hub.point_to(listing)
    return _describe(folder, listing.commit)


def available() -> tuple[list[CheckpointInfo], list[CheckpointError]]:
    """List every model that works offline: the bundled ones, then the downloaded ones.

    Returns:
        The models, and an error for each of ours in the cache that is damaged or incomplete, or
        for a cache that cannot be read.
    """
    models, damaged = [_describe(folder) for folder in bundled().values()], []
    try:
        for *_, model in _downloads():
            if isinstance(model, CheckpointError):
                damaged.append(model)
            else:
                models.append(model)
    except HubError as error:
        damaged.append(error)
    except OSError as error:  # a cache that may not be entered
        damaged.append(CheckpointError(f"{error.filename}: {files.explain(error)}"))
    return models, damaged


def downloads_of(name: HubName) -> list[HubName]:
    """List the downloaded commits that a name stands for, damaged ones too.

    Without a revision these are all of the repository; else those of a branch, of a tag, or whose
    commit begins with at least seven digits.
    """
    commits = []
    for commit, refs, _ in _downloads():
        revision = name.revision or str(commit.revision)
        by_digits = len(revision) >= 7 and str(commit.revision).startswith(revision)
        if commit.repo == name.repo and (by_digits or revision in refs):
            commits.append(commit)
    return commits


def _downloads() -> Iterator[tuple[HubName, list[str], CheckpointInfo | CheckpointError]]:
    """What is in the cache, but for models of other programs; an error for what is damaged."""
    for commit, refs in hub.downloads().items():
        try:
            info = _describe(commit.folder, commit, tuple(refs))
            if not info.weight_bytes:
                raise CheckpointError(f"{info.label}: {WEIGHTS} is missing. {info.remedy}")
            yield commit, refs, info
        except ForeignModel:
            continue
        except CheckpointError as error:
            yield commit, refs, error


def load_checkpoint(model: str | Path | CheckpointInfo | None = None) -> System:
    """Load a model as a `System` in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: as `find_checkpoint`; or the weights are missing, damaged, not finite
            or do not fit the system that the config describes.
    """
    info = model if isinstance(model, CheckpointInfo) else find_checkpoint(model)
    path = info.weights
    if info.has_only_graphs:
        raise CheckpointError(
            f"{info.folder}: has only graphs, which are for --runtime onnx. Name the model that "
            "was exported."
        )
    system = new_system(info.config, info.folder / CONFIG)
    if info.weight_bytes > _largest_bytes(system):
        raise CheckpointError(
            f"{path}: has {info.weight_bytes:,} bytes, too many for this network. {info.remedy}"
        )
    tensors, sha256 = read_tensors(path, info.remedy)
    if sha256 != info.sha256:
        raise CheckpointError(f"{path}: its sha256 is not the one in {CONFIG}. {info.remedy}")
    tensors = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
    expected, actual = (
        {(key, tensor.shape, tensor.dtype) for key, tensor in state.items()}
        for state in (system.state_dict(), tensors)
    )
    if odd := sorted({key for key, *_ in expected ^ actual}):
        raise CheckpointError(
            f"{path}: not the weights of this system: {name_some(odd, 3)} have another shape or "
            f"kind of numbers. Use the {CONFIG} that came with them."
        )
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{path}: {name_some(bad, 3)}: some numbers are not finite. Use another checkpoint."
        )
    return fill(system, tensors)


def new_system(config: SystemConfig, where: object) -> System:
    """Build the system that a config describes, without memory for its tensors.

    Raises:
        CheckpointError: the config, which is called `where`, names a part that does not exist, or
            has times that are too long.
    """
    import torch

    from mcspex_cli.audio import MIN_SIGNAL_S
    from mcspex_cli.model.systems import CHOICES, build

    config = replace(config, consm=_FORMER_CONSMS.get(config.consm, config.consm))
    for key, choices in CHOICES.items():
        if (value := getattr(config, key)) not in choices:
            others = ", ".join(choices)
            raise CheckpointError(f"{where}: {key} {value[:60]!r} is unknown. Known: {others}.")
    with torch.device("meta"):
        system = build(config)
    if system.least_reference_samples > MIN_SIGNAL_S * config.sample_rate_hz:
        raise CheckpointError(
            f"{where}: hop_ms and windows_ms are too long for a reference of {MIN_SIGNAL_S} s. Use "
            f"the {CONFIG} that came with the weights."
        )
    return system


def fill(system: System, tensors: dict[str, Tensor]) -> System:
    """Give a new system all of its tensors, for use and not for training."""
    system.load_state_dict(tensors, assign=True)
    return system.eval().requires_grad_(False)


def _largest_bytes(system: System) -> int:
    """How many bytes the file of a system's weights can have, in full precision."""
    return 2**16 + sum(256 + 8 * int(t.numel()) for t in system.state_dict().values())


def read_tensors(path: Path, remedy: str = _COPY_AGAIN) -> tuple[dict[str, Tensor], str]:
    """Read any safetensors file: its tensors by name, and its sha256."""
    from safetensors.torch import load

    data = read_bytes(path, remedy)
    return _parse(load, data, path, remedy), hashlib.sha256(data).hexdigest()


def count_weights(info: CheckpointInfo) -> int:
    """Count a checkpoint's weights, without its running statistics, and without torch."""
    from safetensors import deserialize

    data = read_bytes(info.weights, info.remedy)
    tensors = _parse(deserialize, data, info.weights, info.remedy)
    statistics = re.compile(r"(.*\.)?(running_|num_batches_)")
    return sum(prod(tensor["shape"]) for key, tensor in tensors if not statistics.match(key))


def _parse(parse: Callable[[bytes], Any], data: bytes, path: Path, remedy: str) -> Any:
    """Parse the bytes of a safetensors file by one of the library's functions."""
    try:
        return parse(data)
    except Exception as error:  # safetensors' errors have no common class
        raise CheckpointError(f"{path}: damaged, or not safetensors. {remedy}") from error


def save_checkpoint(
    folder: Path,
    system: System,
    provenance: dict[str, Any],
    *,
    half: bool = True,
    calibration: Any = None,
) -> None:
    """Write `system` to a folder as model.safetensors and config.json, which appear together.

    Whenever the process is killed, the folder has a whole checkpoint, the old or the new one.
    `half` rounds to half precision each tensor of weights whose numbers are not too large for it.
    """
    import torch
    from safetensors.torch import save

    tensors = {key: t.detach().cpu().contiguous() for key, t in system.state_dict().items()}
    for name, _ in system.named_parameters():
        rounded = tensors[name].to(torch.float16)
        if half and rounded.isfinite().all():
            tensors[name] = rounded
    data = save(tensors)
    config = Config(
        system=system.config,
        sha256=hashlib.sha256(data).hexdigest(),
        provenance=provenance,
        calibration=calibration,
    )
    with files.whole_folder(folder) as unfinished:
        (unfinished / WEIGHTS).write_bytes(data)
        (unfinished / CONFIG).write_bytes(_as_json(config))


def write_calibration(info: CheckpointInfo, calibration: dict[str, Any]) -> None:
    """Set or replace the calibration in a model's config.json, unless its weights have changed."""
    if read_config(info.folder).sha256 != info.sha256:
        raise CheckpointError(
            f"{info.folder}: was replaced while it was calibrated, as by a training run. Copy the "
            "model, and calibrate the copy."
        )
    path = info.folder / CONFIG
    raw = msgspec.json.decode(path.read_bytes())  # with its unknown keys
    with files.whole(path) as partial:
        partial.write_bytes(_as_json({**raw, "calibration": calibration}))


def _as_json(config: Config | dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def find_source(folder: Path) -> str:
    """Say where a folder's model comes from, if it must not be changed; "" for a user's own."""
    resolved = folder.resolve()
    if resolved.is_relative_to(hub.location().resolve()):
        return "comes from the Hub"
    is_bundled = resolved in {path.resolve() for path in bundled().values()}
    return "comes with mcspex" if is_bundled else ""


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write a checkpoint or graphs to a folder that has anything else.

    With `overwrite` a checkpoint or graphs are replaced, but never files that only have such names.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file. Name a folder.")
    if folder.resolve() in {Path.cwd(), *Path.cwd().parents}:
        raise OutputError(
            f"{folder}: is the current folder, or a folder above it. Name another folder."
        )
    names = (*FILES, GRAPHS, EMBED, EXTRACT)
    existing = [folder / name for name in names if (folder / name).exists()]
    if not existing:
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise OutputError(f"{folder}: is not empty, and not a model. Name another folder.")
        return
    try:
        read_config(folder)
    except CheckpointError as error:
        raise OutputError(
            f"{existing[0]}: is there, and not part of an mcspex model. Name another folder."
        ) from error
    if source := find_source(folder):
        raise OutputError(f"{folder}: has a model that {source}. Name another folder.")
    if not overwrite:
        raise OutputError(f"{folder}: has a model. Name another folder, or add --overwrite.")


def verify(info: CheckpointInfo) -> str:
    """Load a checkpoint, and return what is wrong with it; nothing if it is good.

    Without torch only the checksum of the weights is compared.
    """
    try:
        if info.has_only_graphs:
            read_graphs(info.folder)
        else:
            load_checkpoint(info)
    except CheckpointError as error:
        return str(error).removeprefix(f"{info.folder}{os.sep}")
    except (ImportError, OSError):  # torch is missing or broken: its absence is not the model's
        if not info.weights.is_file() or hub.checksum(info.weights) != info.sha256:
            return f"{WEIGHTS}: its sha256 is not the one in {CONFIG}. {info.remedy}"
    return ""


def read_graphs(folder: Path) -> dict[str, Any]:
    """Read what graphs.json says of the graphs beside it, and compare their checksums with it."""
    path, remedy = folder / GRAPHS, "Export the model again."
    try:
        facts = msgspec.json.decode(read_bytes(path, remedy), type=dict[str, Any])
        sums = {name: str(facts["sha256"][name]) for name in (EMBED, EXTRACT)}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged. {remedy}") from error
    for name, sha256 in sums.items():
        if hashlib.sha256(read_bytes(folder / name, remedy)).hexdigest() != sha256:
            raise CheckpointError(f"{folder / name}: damaged. {remedy}")
    return facts


def _describe(
    folder: Path, commit: HubName | None = None, refs: tuple[str, ...] = ()
) -> CheckpointInfo:
    source: Literal["bundled", "hub", "folder"] = "folder"
    remedy = _COPY_AGAIN
    if commit:
        source, remedy = "hub", f"Get it again: {commit.pull_command}"
    elif folder in bundled().values():
        source, remedy = "bundled", "Install mcspex again."
    config = read_config(folder, commit.label if commit else "", remedy)
    return CheckpointInfo(
        name=commit.repo if commit else printable(folder.resolve().name),
        folder=folder,
        sha256=config.sha256,
        config=config.system,
        provenance=config.provenance,
        revision=commit.revision if commit else None,
        calibration=config.calibration,
        refs=refs,
        source=source,
        remedy=remedy,
    )


def read_config(folder: Path, name: str = "", remedy: str = _COPY_AGAIN) -> Config:
    """Read and check a folder's config.json; errors call the checkpoint `name`.

    Raises:
        ForeignModel: it belongs to another program.
        CheckpointError: it is missing, damaged or newer than this program, or a key has a value
            that it must not have.
    """
    path, label = folder / CONFIG, f"{name}: {CONFIG}" if name else str(folder / CONFIG)
    if not path.is_file():
        raise CheckpointError(f"{name or folder}: not a model, because it has no {CONFIG}.")
    if path.stat().st_size > hub.LARGEST[CONFIG]:
        raise CheckpointError(f"{label}: too large for a model's. {remedy}")
    try:
        raw = msgspec.json.decode(read_bytes(path, remedy))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: damaged. {remedy}") from error
    if not isinstance(raw, dict) or not {"format", "system", "sha256"} <= raw.keys():
        raise ForeignModel(
            f"{label}: belongs to another program. mcspex runs MC-SpEx and SpEx+ only."
        )
    if raw["format"] != FORMAT:
        raise CheckpointError(
            f"{label}: has format {reprlib.repr(raw['format'])}, and this mcspex reads {FORMAT}. "
            "Update mcspex."
        )
    keys = raw["system"] if isinstance(raw["system"], dict) else ()
    if unknown := [key for key in keys if key not in SystemConfig.__dataclass_fields__]:
        key = unknown[0][:60]
        raise CheckpointError(f"{label}: {key} is an unknown key. Is mcspex up to date?")
    return check_fields(raw, Config, label)


def check_fields(raw: object, kind: type[Checked], where: object) -> Checked:
    """Convert `raw` to a class with typed fields; errors name `where` and the key."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason = explain_value(error, raw).removeprefix("system.")
        raise CheckpointError(f"{where}: {reason}") from error


def read_bytes(path: Path, remedy: str) -> bytes:
    """Read a file; errors say `remedy`."""
    try:
        return files.read_bytes(path, CheckpointError)
    except CheckpointError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        problem = f"{path}: no such file or folder." if is_missing else error
        raise CheckpointError(f"{problem} {remedy}") from error
