"""SpEx+ as other programs have trained and saved it, made ours: the same network, its outputs.

```
file ─ state dict ─ their names to ours ─ sizes from shapes ─ our config ─ System
```

Every tensor of theirs finds its place and every one of ours is filled, or nothing is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from mcspex_cli import files
from mcspex_cli.checkpoint.cache import checksum
from mcspex_cli.checkpoint.cards import Particulars, make_card
from mcspex_cli.checkpoint.configs import CARD, parse_config
from mcspex_cli.checkpoint.foreign import read_state
from mcspex_cli.checkpoint.layouts import FIXED, LAYOUTS, SCALES, Layout
from mcspex_cli.checkpoint.names import find_checkpoint
from mcspex_cli.checkpoint.weights import count_weights, save_checkpoint
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mcspex_cli.model.systems import System, SystemConfig

_MISSING = "missing (the name is ours). Copy the file again, whole."


@dataclass(frozen=True)
class Conversion:
    """What came of a file."""

    system: System
    """float32, in evaluation mode."""
    layout: str
    """Whose names the layers had: a repository."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def convert(path: Path, config: Path | None = None, sample_rate_hz: int = 8000) -> Conversion:
    """Make another program's SpEx+ checkpoint a System with the same outputs.

    Args:
        path: what torch.save has written, or safetensors: a state dict or a checkpoint with one.
        config: its mdl.json; what it says is compared with the weights.
        sample_rate_hz: the rate that it was trained at, which the weights do not show.

    Raises:
        CheckpointError: the file cannot be read as tensors, is of another network, or of one
            that ours cannot be.
    """
    state = read_state(path)
    name, layout = _recognise(path, state)
    found = _by_our_names(path, state, layout)
    classified = any(key.startswith("classifier.") for key in found.tensors)
    ours = parse_config(asdict(_deduce(found, layout, sample_rate_hz)), path)
    notes = [f"Taken to work at {sample_rate_hz} Hz, which weights do not show."]
    if config:
        _compare(config, layout, ours, classified)
    elif not layout.causal_with:
        notes.append("Taken to be not causal, with ReLU masks, which weights do not show.")
    if not classified:
        notes.append("It has no speaker classifier: ours is of one speaker, all zeros.")
    return Conversion(_assemble(found, ours, classified), name, tuple(notes))


def keep(made: Conversion, source: Path, folder: Path, licence: str | None, *, half: bool) -> None:
    """Write what came of `source` to a folder, with a card that says where it is from.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    origin = {"file": source.name, "sha256": checksum(source), "layout": made.layout}
    save_checkpoint(folder, made.system, {"converted_from": origin}, half=half)
    info = find_checkpoint(folder)
    told = (
        f"Converted from `{source.name}` (sha256 `{origin['sha256']}`), whose layers are named as "
        f"those of {made.layout}."
    )
    said = Particulars(info.name, count_weights(info), licence, origin=told)
    with files.whole(folder / CARD) as partial:
        partial.write_text(make_card(info, said))


def _recognise(path: Path, state: Collection[str]) -> tuple[str, Layout]:
    """Whose names these are."""
    for name, layout in LAYOUTS.items():
        if any(key.startswith(layout.mark) for key in state):
            return name, layout
    raise CheckpointError(
        f"{path}: its layers ({_some(state)}) are those of no SpEx+ that is known here. "
        f"Known: {', '.join(LAYOUTS)}."
    )


def _some(names: Collection[str]) -> str:
    """The first three names, and how many more there are."""
    first = ", ".join(list(names)[:3])
    return f"{first} and {len(names) - 3} more" if len(names) > 3 else first


@dataclass(frozen=True)
class _Found:
    """A foreign state dict by our names, and what its own were."""

    path: Path
    tensors: dict[str, Tensor]
    names: dict[str, str]

    def refusal(self, keys: Collection[str], why: str) -> CheckpointError:
        """An error about these tensors, by their own names where they have one."""
        return CheckpointError(f"{self.path}: {_some([self.names.get(k, k) for k in keys])}: {why}")

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a convolution's weight, of three axes.

        Raises:
            CheckpointError: it is missing or no convolution's.
        """
        if key not in self.tensors:
            raise self.refusal([key], _MISSING)
        shape = tuple(self.tensors[key].shape)
        if len(shape) != 3:
            raise self.refusal([key], f"{list(shape)} is not a convolution's shape.")
        return shape

    def count(self, numbered: str) -> int:
        """How many numbers a pattern finds in the names."""
        return len({m[1] for key in self.tensors if (m := re.match(numbered, key))})


def _by_our_names(path: Path, state: dict[str, Tensor], layout: Layout) -> _Found:
    """Rename every tensor."""
    found = _Found(path, {}, {})
    for theirs, tensor in state.items():
        ours = layout.ours(theirs)
        if ours in found.tensors:
            raise found.refusal([theirs, ours], "the same layer twice. Keep the one that is used.")
        found.tensors[ours], found.names[ours] = tensor, theirs
    return found


def _deduce(found: _Found, layout: Layout, sample_rate_hz: int) -> SystemConfig:
    """Read all sizes off the tensors' shapes; whether they agree is for `_assemble` to see."""
    from mcspex_cli.model.systems import SystemConfig

    short, middle, long = _windows(found)
    first = "extractor.stacks.0"
    kernel = found.shape(f"{first}.condition.depthwise.weight")[2]
    if kernel % 2 == 0:
        raise found.refusal([f"{first}.condition.depthwise.weight"], f"{kernel} taps are not odd.")
    channels = found.shape("fusion.mixture.project.weight")[0]
    reference = found.shape("fusion.reference.project.weight")[0]
    residuals = [found.shape(f"speaker.blocks.{k}.conv_1.weight")[0] for k in range(3)]
    classifier = found.tensors.get("classifier.weight")
    per_ms = max(sample_rate_hz, 1) / 1000  # limits are for `parse_config` to see
    return SystemConfig(
        system="spexplus",
        sample_rate_hz=sample_rate_hz,
        windows_ms=(short / per_ms, middle / per_ms, long / per_ms),
        hop_ms=short // 2 / per_ms,
        filters=found.shape("encoder.banks.0.weight")[0],
        channels=channels,
        hidden=found.shape(f"{first}.condition.widen.weight")[0],
        kernel=kernel,
        blocks=1 + found.count(rf"{first}\.blocks\.(\d+)\."),
        stacks=found.count(r"extractor\.stacks\.(\d+)\."),
        norm=_norm(found, layout),
        reference_channels=0 if reference == channels else reference,
        embedding=found.shape("speaker.project.weight")[0],
        speaker_channels=tuple(residuals),
        speakers=1 if classifier is None or not classifier.ndim else len(classifier),
    )


def _windows(found: _Found) -> tuple[int, int, int]:
    """The short, middle and long window in samples; the hop is half the short one.

    Raises:
        CheckpointError: they do not grow, or leave no hop.
    """
    banks = [f"encoder.banks.{scale}.weight" for scale in range(3)]
    short, middle, long = (found.shape(bank)[2] for bank in banks)
    if not 2 <= short <= middle <= long:
        raise found.refusal(
            banks, f"windows of {short}, {middle} and {long} samples do not grow from 2 on."
        )
    return short, middle, long


def _norm(found: _Found, layout: Layout) -> str:
    """Which of `NORMS` the blocks have: a gLN is a column or has a gamma, a BN has statistics.

    Raises:
        CheckpointError: they have several, or that of a causal network.
    """
    kinds: dict[str, str] = {}
    for key, tensor in found.tensors.items():
        if match := re.match(r"(extractor\..*\.norm_[12]\.)weight$", key):
            whole = "BN" if f"{match[1]}running_mean" in found.tensors else "cLN"
            overall = tensor.ndim == 2 or found.names[key].endswith(".gamma")
            kinds.setdefault("gLN" if overall else whole, key)
    if len(kinds) > 1:
        raise found.refusal(kinds.values(), f"norms of several kinds ({', '.join(kinds)}).")
    kind = next(iter(kinds), "gLN")
    if kind == layout.causal_with:
        raise found.refusal(
            kinds.values(), f"{kind} is the norm of a causal network, and ours is none."
        )
    return kind


def _compare(path: Path, layout: Layout, ours: SystemConfig, classified: bool) -> None:
    """Refuse a mdl.json that says other than the weights, or what ours cannot be.

    Raises:
        CheckpointError: so, or it is no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON. Give the mdl.json of the training.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: not a JSON object. Give the mdl.json of the training.")
    for key, value in {**FIXED, **layout.fixed}.items():
        if raw.get(key, value) != value:
            said, meant = json.dumps(raw[key]), json.dumps(value)
            raise CheckpointError(f"{path}: {key} is {said}; mcspex has SpEx+ with {meant} only.")
    facts = {**asdict(ours), **dict(zip(SCALES, ours.windows, strict=True))}
    if not classified:
        del facts["speakers"]
    for letter, fact in layout.letters.items():
        if fact in facts and raw.get(letter, facts[fact]) != facts[fact]:
            raise CheckpointError(
                f"{path}: says {letter} = {raw[letter]}, the weights have {facts[fact]}. "
                "Give the JSON that belongs to them."
            )


def _assemble(found: _Found, config: SystemConfig, classified: bool) -> System:
    """Fill our network with these tensors, all of it with all of them.

    Raises:
        CheckpointError: a tensor has no place, is missing, does not fit or is not finite.
    """
    import torch

    from mcspex_cli.model.systems import build

    with torch.device("meta"):
        system = build(config)
    wanted = system.state_dict()
    if not classified:
        zeros = {k: torch.zeros(t.shape) for k, t in wanted.items() if k.startswith("classifier.")}
        found.tensors.update(zeros)
    split = {k for k in wanted if k.endswith(".condition.condition.weight")}
    odd = [k for k in found.tensors if k not in wanted.keys() - split or found.names.get(k) == k]
    if odd:
        raise found.refusal(odd, "no place for this in the SpEx+ that mcspex has.")
    if missing := [k for k in wanted if k not in found.tensors and k not in split]:
        raise found.refusal(missing, _MISSING)
    tensors = _reshaped(found, config)
    if odd := [k for k, t in wanted.items() if tensors[k].shape != t.shape]:
        raise found.refusal(odd, "not of the size that the other layers ask for.")
    values = {k: tensors[k].detach().to(t.dtype, copy=True).contiguous() for k, t in wanted.items()}
    if odd := [k for k, value in values.items() if not value.isfinite().all()]:
        raise found.refusal(odd, "some numbers are not finite. Take an earlier checkpoint.")
    system.load_state_dict(values, assign=True)
    return system.eval().requires_grad_(False)


def _reshaped(found: _Found, config: SystemConfig) -> dict[str, Tensor]:
    """Part what sees features and embedding at once, and make columns rows."""
    tensors = dict(found.tensors)
    for key, tensor in found.tensors.items():
        if re.match(r"extractor\..*\.norm_[12]\.", key) and tensor.shape[1:] == (1,):
            tensors[key] = tensor.flatten()
        if match := re.match(r"(extractor\.stacks\.\d+\.condition\.)widen\.weight$", key):
            found.shape(key)
            told = f"{match[1]}condition.weight"
            tensors[key] = tensor[:, : config.channels]
            tensors[told] = tensor[:, config.channels :].flatten(1)
            found.names[told] = found.names[key]
    return tensors


def at_sample_rate(system: System, sample_rate_hz: int) -> System:
    """Return the same network for another sample rate, in evaluation mode.

    A network's times are in milliseconds, so only the filters of the encoder and the decoder
    change: they are resampled by band-limited interpolation, `g[n] = sum_k f[k] sinc(n / r - k)`
    for r = new rate / old rate (below 1, their band is limited to the new one as well). The
    encoder's are divided by r, because it sums over r times as many samples. In the band that
    both rates have, the output stays the same. Source: ours.

    Args:
        system: Any system, at `system.config.sample_rate_hz`; it is not changed.
        sample_rate_hz: The new rate, 4,000 to 192,000.

    Raises:
        CheckpointError: the windows or the hop are no whole number of samples at the new rate.
    """
    import torch

    from mcspex_cli.model.systems import build

    old = system.config
    ratio = Fraction(sample_rate_hz, old.sample_rate_hz)
    if any(length * ratio % 1 for length in (*old.windows, old.hop)):
        raise CheckpointError(
            f"{sample_rate_hz} Hz: this network's windows of {old.windows} samples and its hop of "
            f"{old.hop} at {old.sample_rate_hz} Hz have no whole number of samples there. "
            f"Use a multiple of {old.sample_rate_hz} Hz."
        )
    short, middle, long = (1000 * length / old.sample_rate_hz for length in old.windows)
    config = replace(
        old,
        sample_rate_hz=sample_rate_hz,
        windows_ms=(short, middle, long),
        hop_ms=1000 * old.hop / old.sample_rate_hz,
    )
    tensors = {key: tensor.detach().clone() for key, tensor in system.state_dict().items()}
    for scale in range(len(old.windows)):
        encoder, decoder = f"encoder.banks.{scale}.weight", f"decoder.banks.{scale}.weight"
        tensors[encoder] = _resampled(tensors[encoder], ratio) / float(ratio)
        tensors[decoder] = _resampled(tensors[decoder], ratio)
    with torch.device("meta"):
        converted = build(parse_config(asdict(config), "the new config"))
    converted.load_state_dict(tensors, assign=True)
    return converted.eval().requires_grad_(False)


def _resampled(filters: Tensor, ratio: Fraction) -> Tensor:
    """Interpolate filters [..., tap] by sinc functions to `ratio` times as many taps."""
    import torch

    old = torch.arange(filters.shape[-1], dtype=torch.float64)
    new = torch.arange(int(filters.shape[-1] * ratio), dtype=torch.float64) / float(ratio)
    band = min(1.0, float(ratio))
    kernel = band * torch.sinc(band * (new[:, None] - old))
    return (filters.double() @ kernel.T.to(filters.device)).to(filters.dtype)
