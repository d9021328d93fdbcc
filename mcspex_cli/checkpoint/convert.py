"""Checkpoints of other programs made ours, and ours taken to another sample rate.

```
SpEx+ file ─ state dict ─ our names ─ sizes from shapes ─ System with the same outputs
System at 8 kHz ─ filters resampled ─ System at 16 kHz
```

Another program's file is read as tensors, never as code. Every tensor in it must have a place in
our network, and every tensor of ours must be filled.
"""

from __future__ import annotations

import io
import re
import shlex
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mcspex_cli import files
from mcspex_cli.checkpoint import checkpoint, hub
from mcspex_cli.checkpoint.card import make_card, read_card
from mcspex_cli.errors import CheckpointError, name_some, printable
from mcspex_cli.model.config import SystemConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mcspex_cli.model.systems import System


def _number_layers(ours: str, first: int, step: int = 1) -> Callable[[re.Match[str]], str]:
    """Put a layer's number into our name: theirs is counted from `first`, ours from 0."""
    return lambda match: ours.format((int(match[1]) - first) // step)


_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^(?:encoder|decoder|spk_model)\.": "",
    r"^(en|de)coder_1d_(?:short|1)\.": r"\1coder.banks.0.",
    r"^(en|de)coder_1d_(?:middle|2)\.": r"\1coder.banks.1.",
    r"^(en|de)coder_1d_(?:long|3)\.": r"\1coder.banks.2.",
    r"^ln\.": "fusion.mixture.norm.",
    r"^proj\.": "fusion.mixture.project.",
    r"^spk_encoder\.": "aux_enc3.",
    r"^aux_enc3\.0\.": "fusion.reference.norm.",
    r"^aux_enc3\.1\.": "fusion.reference.project.",
    r"^aux_enc3\.([234])\.": _number_layers("speaker.blocks.{}.", 2),
    r"^aux_enc3\.5\.": "speaker.project.",
    r"^pred_linear\.": "classifier.",
    r"^conv_block_(\d{1,3})\.": _number_layers("extractor.stacks.{}.condition.", 1),
    r"^conv_block_(\d{1,3})_other\.": _number_layers("extractor.stacks.{}.blocks.", 1),
    r"^separation\.separation\.(\d{0,2}[02468])\.": _number_layers(
        "extractor.stacks.{}.condition.", 0, 2
    ),
    r"^separation\.separation\.(\d{0,2}[13579])\.separation\.": _number_layers(
        "extractor.stacks.{}.blocks.", 0, 2
    ),
    r"^mask([123])\.": _number_layers("masks.heads.{}.", 1),
    r"\.conv1x1\.": ".widen.",
    r"\.(?:dconv|dwconv)\.": ".depthwise.",
    r"\.(?:sconv|Output)\.": ".narrow.",
    r"\.conv_downsample\.": ".shortcut.",
    r"\.conv([12])\.": r".conv_\1.",
    r"\.(?:prelu|PReLU_)([12])\.": r".activation_\1.",
    r"\.(?:lnorm|batch_norm|norm_?)([12])\.": r".norm_\1.",
    r"(\.norm_[12])\.gamma$": r"\1.weight",
    r"(\.norm_[12])\.beta$": r"\1.bias",
}
"""From the names of all programs to ours: each pattern, in this order, is replaced."""


PROGRAMS = {
    "gemengtju/SpEx_Plus": "aux_enc3.",
    "xuchenglin28/speaker_extraction_SpEx": "spk_encoder.",
    "wenet-e2e/wesep": "spk_model.aux_enc3.",
}
"""The programs whose SpEx+ is understood: how some of its names begin, and no other program's."""

_SHOWS_CAUSALITY = "xuchenglin28/speaker_extraction_SpEx"
"""Its causal network, and no other, has a cLN, so that its weights show everything."""

_FIXED: dict[str, object] = {"causal": False, "non_linear": "relu", "activate": "relu"}
"""What other weights cannot show, and our network has: keys of mdl.json."""

_MISSING = "missing (the name is ours). Copy the file again, whole."


@dataclass(frozen=True)
class Conversion:
    """A network made of another one, with what a folder has beside it."""

    system: System
    """float32, in evaluation mode."""
    summary: str
    """What it is, in a few words."""
    origin: str
    """The same in sentences, for its card."""
    provenance: dict[str, Any]
    calibration: Any = None
    licence: str | None = None
    notes: tuple[str, ...] = ()
    """What a person should know, a line each."""
    more: str = ""
    """What follows in the card."""

    def save(self, folder: Path, licence: str | None, *, half: bool) -> None:
        """Write it to a folder as a checkpoint; a `licence` replaces its own."""
        checkpoint.save_checkpoint(
            folder, self.system, self.provenance, half=half, calibration=self.calibration
        )
        info = checkpoint.find_checkpoint(folder)
        card = make_card(info, info.name, licence or self.licence, origin=self.origin)
        with files.whole(folder / hub.CARD) as partial:
            partial.write_text(card + self.more, "utf-8")


def convert(path: Path, config: Path | None = None, sample_rate_hz: int = 8000) -> Conversion:
    """Make another program's SpEx+ checkpoint a `System` with the same outputs.

    Args:
        path: a state dict, or a checkpoint with one, written by torch.save or as safetensors.
        config: its mdl.json, which says what the weights cannot show.
        sample_rate_hz: the rate that it was trained at, which the weights do not show.

    Raises:
        CheckpointError: the file cannot be read as tensors, or is of a network that ours cannot be.
    """
    state = _read_state(path)
    names = [n for n, mark in PROGRAMS.items() if any(key.startswith(mark) for key in state)]
    if "encoder.banks.0.weight" in state:
        raise CheckpointError(
            f"{path}: belongs to a model of mcspex. For another sample rate, name its folder: "
            f"mcspex models convert {shlex.quote(str(path.parent))} --sample-rate 8000 -o DIR"
        )
    if not names:
        layers = name_some(sorted(state), 3)
        raise CheckpointError(
            f"{path}: its layers ({layers}) are not those of a known SpEx+. Known: "
            f"{', '.join(PROGRAMS)}."
        )
    name, weights = names[0], _Weights(path, state)
    sizes = _sizes(weights, sample_rate_hz, may_be_causal=name == _SHOWS_CAUSALITY)
    notes = [f"Taken to work at {sample_rate_hz} Hz, which weights do not show."]
    if config:
        _check_json(config)
    elif name != _SHOWS_CAUSALITY:
        notes.append("Assumed to be non-causal with ReLU masks: the weights do not say.")
    if not weights.classified:
        notes.append(
            "It has no speaker classifier; the model gets one for a single speaker, with zeros."
        )
    file, sha256 = printable(path.name), hub.checksum(path)
    return Conversion(
        system=_assemble(weights, sizes),
        summary=f"SpEx+, from the layers of {name}",
        origin=f"Converted from `{file}` (sha256 `{sha256}`), whose layers are named as in {name}.",
        provenance={"converted_from": {"file": file, "sha256": sha256, "layout": name}},
        notes=tuple(notes),
    )


def resample(info: checkpoint.CheckpointInfo, sample_rate_hz: int) -> Conversion:
    """Take a checkpoint of ours to another sample rate, as `at_sample_rate` does.

    Its provenance, calibration and card are kept.
    """
    system = at_sample_rate(checkpoint.load_checkpoint(info), sample_rate_hz)
    card = read_card(info.folder)
    resampled_from = {"model": info.label, "sha256": info.sha256}
    return Conversion(
        system=system,
        summary=f"{info.label} at {sample_rate_hz} Hz",
        origin=f"{info.label} (sha256 `{info.sha256}`), taken from {info.config.sample_rate_hz} Hz "
        f"to {sample_rate_hz} Hz by `mcspex models convert`. In the band of the lower rate its "
        "output is the same; above, it has learned nothing.",
        provenance={**info.provenance, "resampled_from": resampled_from},
        calibration=info.calibration,
        licence=card.licence if card else None,
        more=f"\n## The card of {info.label}\n\n{card.text}\n" if card else "",
    )


def at_sample_rate(system: System, sample_rate_hz: int) -> System:
    """Return the same network for another sample rate, in evaluation mode.

    A network's times are in milliseconds, so only the filters of the encoder and the decoder
    change: they are resampled by band-limited interpolation, `g[n] = sum_k f[k] sinc(n / r - k)`
    for r = new rate / old rate (below 1, their band is limited to the new one as well). The
    encoder's are divided by r, because it sums over r times as many samples. In the band that
    both rates have, the output stays the same (to 35 dB; the interpolation ends where the
    windows do). Source: ours.

    Args:
        system: any system, at `system.config.sample_rate_hz`; it is not changed.
        sample_rate_hz: the new rate.

    Raises:
        CheckpointError: the windows or the hop are not a whole number of samples at the new rate.
    """
    import torch

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

    def resample_filters(filters: Tensor) -> Tensor:
        """Interpolate filters [..., tap] by sinc functions to `ratio` times as many taps."""
        taps = torch.arange(filters.shape[-1], dtype=torch.float64)
        new = torch.arange(int(filters.shape[-1] * ratio), dtype=torch.float64) / float(ratio)
        band = min(1.0, float(ratio))
        kernel = band * torch.sinc(band * (new[:, None] - taps))
        return (filters.double() @ kernel.T.to(filters.device)).to(filters.dtype)

    tensors = {key: tensor.detach().clone() for key, tensor in system.state_dict().items()}
    for scale in range(len(old.windows)):
        encoder, decoder = f"encoder.banks.{scale}.weight", f"decoder.banks.{scale}.weight"
        tensors[encoder] = resample_filters(tensors[encoder]) / float(ratio)
        tensors[decoder] = resample_filters(tensors[decoder])
    return checkpoint.fill(checkpoint.new_system(config, f"{sample_rate_hz} Hz"), tensors)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file; its names without what wrappers put before them."""
    from torch import Tensor, strided

    state: Any
    if path.suffix == ".safetensors":
        state, _ = checkpoint.read_tensors(path, "Name a checkpoint's file.")
    else:
        state = _read_pickle(path)
    for key in ("model_state_dict", "models", "state_dict", "model"):
        if isinstance(state, dict) and key in state:
            state = state[key]
            state = state[0] if isinstance(state, list | tuple) and state else state
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: has no state dict. Save the network's state_dict().")
    for key, value in state.items():
        is_plain = (
            isinstance(value, Tensor)
            and value.layout == strided
            and not (value.is_nested or value.is_quantized or value.is_meta or value.is_complex())
        )
        if not isinstance(key, str) or not is_plain:
            raise CheckpointError(
                f"{path}: {key} is not a plain tensor ({type(value).__name__}). "
                "Save the network's state_dict()."
            )
    tensors: dict[str, Tensor] = state
    for wrapper in ("module.", "_orig_mod.", "model."):  # DataParallel, torch.compile, Lightning
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def _read_pickle(path: Path) -> Any:
    """Read what torch.save wrote, as far as it is tensors and plain containers."""
    import torch

    file = io.BytesIO(checkpoint.read_bytes(path, "Name a checkpoint's file."))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about formats that are refused below anyway
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: the bytes may be anything
            text = "not a PyTorch checkpoint, or a damaged one. Copy it again, whole."
            if code := re.search(r"GLOBAL (\S+)", str(error)):
                text = f"reading it would run code ({code[1]}). Save only the network's "
                text += "state_dict()."
            raise CheckpointError(f"{path}: {text}") from error


class _Weights:
    """A foreign state dict by our names, with its own names for error messages."""

    def __init__(self, path: Path, state: dict[str, Tensor]) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[str, str] = {}
        for theirs, tensor in state.items():
            key = theirs
            for pattern, ours in _NAMES.items():
                key = re.sub(pattern, ours, key)
            if key in self.tensors:
                raise self.refusal([theirs, key], "the same layer twice. Keep the one in use.")
            self.tensors[key], self.names[key] = tensor, theirs
        self.classified = any(key.startswith("classifier.") for key in self.tensors)

    def refusal(self, keys: Iterable[str], reason: str) -> CheckpointError:
        """Return an error about these tensors, by their own names where they have one."""
        names = name_some([self.names.get(key, key) for key in keys], 3)
        return CheckpointError(f"{self.path}: {names}: {reason}")

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a convolution's weight: three axes."""
        if key not in self.tensors:
            raise self.refusal([key], _MISSING)
        shape = tuple(self.tensors[key].shape)
        if len(shape) != 3:
            raise self.refusal([key], f"{list(shape)} is not the shape of a convolution.")
        return shape

    def count(self, pattern: str) -> int:
        """Return how many different numbers a pattern finds in the names."""
        return len({m[1] for key in self.tensors if (m := re.match(pattern, key))})


def _sizes(weights: _Weights, sample_rate_hz: int, *, may_be_causal: bool) -> SystemConfig:
    """Read all sizes from the tensors' shapes; `_assemble` sees whether they agree."""
    filters = [weights.shape(f"encoder.banks.{k}.weight") for k in range(3)]
    first = "extractor.stacks.0"
    channels = weights.shape("fusion.mixture.project.weight")[0]
    reference = weights.shape("fusion.reference.project.weight")[0]
    classifier = weights.tensors.get("classifier.weight")
    per_ms = max(sample_rate_hz, 1) / 1000  # the limits are checked below
    sizes = {
        "system": "spexplus",
        "sample_rate_hz": sample_rate_hz,
        "windows_ms": [shape[2] / per_ms for shape in filters],
        "hop_ms": filters[0][2] // 2 / per_ms,
        "filters": filters[0][0],
        "channels": channels,
        "hidden": weights.shape(f"{first}.condition.widen.weight")[0],
        "kernel": weights.shape(f"{first}.condition.depthwise.weight")[2],
        "blocks": 1 + weights.count(rf"{first}\.blocks\.(\d+)\."),
        "stacks": weights.count(r"extractor\.stacks\.(\d+)\."),
        "norm": _norm(weights, may_be_causal=may_be_causal),
        "reference_channels": 0 if reference == channels else reference,
        "embedding": weights.shape("speaker.project.weight")[0],
        "speaker_channels": [
            weights.shape(f"speaker.blocks.{k}.conv_1.weight")[0] for k in range(3)
        ],
        "speakers": 1 if classifier is None or not classifier.ndim else len(classifier),
    }
    return checkpoint.check_fields(sizes, SystemConfig, weights.path)


def _norm(weights: _Weights, *, may_be_causal: bool) -> str:
    """Return which of `NORMS` the blocks have. A gLN is a column or has a gamma."""
    kinds: dict[str, str] = {}
    for key, tensor in weights.tensors.items():
        if match := re.match(r"(extractor\..*\.norm_[12]\.)weight$", key):
            per_frame = "BN" if f"{match[1]}running_mean" in weights.tensors else "cLN"
            is_global = tensor.ndim == 2 or weights.names[key].endswith(".gamma")
            kinds.setdefault("gLN" if is_global else per_frame, key)
    if len(kinds) > 1:
        raise weights.refusal(kinds.values(), f"norms of several kinds ({', '.join(kinds)}).")
    kind = next(iter(kinds), "gLN")
    if may_be_causal and kind == "cLN":
        raise weights.refusal(
            kinds.values(), f"{kind} is the norm of a causal network, and ours is not causal."
        )
    return kind


def _check_json(path: Path) -> None:
    """Refuse a mdl.json that describes what our network cannot be."""
    remedy = "Give the mdl.json of the training."
    try:
        raw = msgspec.json.decode(checkpoint.read_bytes(path, remedy), type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a JSON object. {remedy}") from error
    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            theirs, fixed = (msgspec.json.encode(v).decode()[:60] for v in (raw[key], value))
            raise CheckpointError(f"{path}: {key} is {theirs}; mcspex has SpEx+ with {fixed} only.")


def _assemble(weights: _Weights, config: SystemConfig) -> System:
    """Fill our whole network with all of these tensors."""
    import torch

    system = checkpoint.new_system(config, weights.path)
    expected, tensors = system.state_dict(), dict(weights.tensors)
    if not weights.classified:
        tensors |= {
            k: torch.zeros(t.shape) for k, t in expected.items() if k.startswith("classifier.")
        }
    places = {key for key in expected if not key.endswith(".condition.condition.weight")}
    # A tensor that has one of our names already was not written by their program.
    if odd := [key for key in tensors if key not in places or weights.names.get(key) == key]:
        raise weights.refusal(odd, "no place for this in the SpEx+ that mcspex has.")
    if missing := [key for key in expected if key in places and key not in tensors]:
        raise weights.refusal(missing, _MISSING)
    for key, tensor in list(tensors.items()):
        if re.match(r"extractor\..*\.norm_[12]\.", key) and tensor.shape[1:] == (1,):
            tensors[key] = tensor.flatten()
        if match := re.match(r"(extractor\.stacks\.\d+\.condition\.)widen\.weight$", key):
            # Theirs sees the features and the embedding at once, ours one after the other.
            weights.shape(key)  # which refuses what is no convolution
            condition = f"{match[1]}condition.weight"
            tensors[key] = tensor[:, : config.channels]
            tensors[condition] = tensor[:, config.channels :].flatten(1)
            weights.names[condition] = weights.names[key]
    if odd := [key for key, t in expected.items() if tensors[key].shape != t.shape]:
        raise weights.refusal(odd, "not of the size that the other layers require.")
    values = {
        k: tensors[k].detach().to(t.dtype, copy=True).contiguous() for k, t in expected.items()
    }
    if odd := [key for key, value in values.items() if not value.isfinite().all()]:
        raise weights.refusal(odd, "some numbers are not finite. Use an earlier checkpoint.")
    return checkpoint.fill(system, values)
