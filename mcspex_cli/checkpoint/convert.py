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
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mcspex_cli import files
from mcspex_cli.checkpoint.card import make_card, read_card
from mcspex_cli.checkpoint.checkpoint import (
    CheckpointInfo,
    find_checkpoint,
    first_names,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from mcspex_cli.checkpoint.config import CARD, checksum, parse_system, read_bytes
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mcspex_cli.model.systems import System, SystemConfig

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern in a name, and what replaces it."""

_SCALES = ("short", "middle", "long")

_RENAMES: tuple[Rename, ...] = (
    (r"^encoder_1d_(short|middle|long)\.", lambda m: f"encoder.banks.{_SCALES.index(m[1])}."),
    (r"^ln\.", "fusion.mixture.norm."),
    (r"^proj\.", "fusion.mixture.project."),
    (r"^aux_enc3\.0\.", "fusion.reference.norm."),
    (r"^aux_enc3\.1\.", "fusion.reference.project."),
    (r"^aux_enc3\.([234])\.", lambda m: f"speaker.blocks.{int(m[1]) - 2}."),
    (r"^aux_enc3\.5\.", "speaker.project."),
    (r"^pred_linear\.", "classifier."),
    (r"^conv_block_(\d{1,4})\.", lambda m: f"extractor.stacks.{int(m[1]) - 1}.condition."),
    (
        r"^conv_block_(\d{1,4})_other\.(\d{1,4})\.",
        lambda m: f"extractor.stacks.{int(m[1]) - 1}.blocks.{m[2]}.",
    ),
    (r"^mask([123])\.", lambda m: f"masks.heads.{int(m[1]) - 1}."),
    (r"^decoder_1d_([123])\.", lambda m: f"decoder.banks.{int(m[1]) - 1}."),
    (r"\.conv1x1\.", ".widen."),
    (r"\.dconv\.", ".depthwise."),
    (r"\.sconv\.", ".narrow."),
    (r"\.conv_downsample\.", ".shortcut."),
    (r"\.conv([12])\.", r".conv_\1."),
    (r"\.prelu([12])\.", r".activation_\1."),
    (r"\.(lnorm[12])\.gamma$", r".\1.weight"),
    (r"\.(lnorm[12])\.beta$", r".\1.bias"),
    (r"\.(?:lnorm|batch_norm)([12])\.", r".norm_\1."),
)
"""From the names of SpEx+'s authors to ours; other programs' names become theirs first."""


@dataclass(frozen=True)
class Layout:
    """What one program calls the layers of SpEx+, and its sizes in the JSON beside them."""

    mark: str
    """How some of its names begin, and no other program's."""
    renames: tuple[Rename, ...]
    letters: dict[str, str]
    """From the JSON's keys to our fields."""
    fixed: dict[str, object] = field(default_factory=dict)
    """Values of the JSON without which it is another network than ours."""
    causal_norm: str = ""
    """The norm that only its causal network has, if its weights show everything else."""

    def our_name(self, name: str) -> str:
        """Return our name of a tensor; something that fits nothing of ours if there is none."""
        for pattern, replacement in (*self.renames, *_RENAMES):
            name = re.sub(pattern, replacement, name)
        return name


_LETTERS = {
    **{"L": "short", "N": "filters", "X": "blocks", "R": "stacks", "B": "channels", "H": "hidden"},
    **{"P": "kernel", "norm": "norm"},
}
_FIXED: dict[str, object] = {"causal": False, "non_linear": "relu", "activate": "relu"}
"""What weights cannot show, and what our network has."""

LAYOUTS = {
    "gemengtju/SpEx_Plus": Layout(
        "aux_enc3.",
        (),
        # Its JSON has an R that no line of its network reads: there are always four stacks.
        {letter: fact for letter, fact in _LETTERS.items() if letter != "R"},
        {"num_spks": 1},
    ),
    "xuchenglin28/speaker_extraction_SpEx": Layout(
        "spk_encoder.",
        (
            (r"^spk_encoder\.", "aux_enc3."),
            (r"\.norm([12])\.", r".lnorm\1."),
            (
                r"^decoder_1d_(short|middle|long)\.",
                lambda m: f"decoder_1d_{_SCALES.index(m[1]) + 1}.",
            ),
        ),
        {
            **{"L1": "short", "L2": "middle", "L3": "long", "N": "filters", "B": "blocks"},
            **{"O": "channels", "P": "hidden", "Q": "kernel"},
            **{"spk_embed_dim": "embedding", "num_spks": "speakers"},
        },
        causal_norm="cLN",
    ),
    "wenet-e2e/wesep": Layout(
        "spk_model.aux_enc3.",
        (
            (r"^(?:encoder|decoder|spk_model)\.", ""),
            (
                r"^separation\.separation\.(\d{0,3}[02468])\.",
                lambda m: f"conv_block_{int(m[1]) // 2 + 1}.",
            ),
            (
                r"^separation\.separation\.(\d{0,3}[13579])\.separation\.",
                lambda m: f"conv_block_{int(m[1]) // 2 + 1}_other.",
            ),
            (r"\.PReLU_([12])\.", r".prelu\1."),
            (r"\.norm_([12])\.", r".lnorm\1."),
            (r"\.dwconv\.", ".dconv."),
            (r"\.Output\.", ".sconv."),
        ),
        {**_LETTERS, "spk_emb_dim": "embedding", "spksInTrain": "speakers"},
    ),
}
"""The programs whose SpEx+ is understood."""

_MISSING = "missing (the name is ours). Copy the file again, whole."


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint."""

    system: System
    """float32, in evaluation mode."""
    layout: str
    """The program whose names the layers had."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def convert(path: Path, config: Path | None = None, sample_rate_hz: int = 8000) -> Conversion:
    """Make another program's SpEx+ checkpoint a `System` with the same outputs.

    Args:
        path: A state dict, or a checkpoint with one, written by torch.save or as safetensors.
        config: Its mdl.json, which is compared with the weights.
        sample_rate_hz: The rate that it was trained at, which the weights do not show.

    Raises:
        CheckpointError: The file cannot be read as tensors, or is of a network that ours cannot be.
    """
    state = _read_state(path)
    for name, layout in LAYOUTS.items():  # noqa: B007
        if any(key.startswith(layout.mark) for key in state):
            break
    else:
        raise CheckpointError(
            f"{path}: its layers ({first_names(list(state))}) are not those of a known SpEx+. "
            f"Known: {', '.join(LAYOUTS)}."
        )
    weights = _Weights(path, {}, {})
    for theirs, tensor in state.items():
        ours = layout.our_name(theirs)
        if ours in weights.tensors:
            raise weights.refusal([theirs, ours], "the same layer twice. Keep the one in use.")
        weights.tensors[ours], weights.names[ours] = tensor, theirs
    classified = any(key.startswith("classifier.") for key in weights.tensors)
    ours_config = parse_system(asdict(_sizes(weights, layout, sample_rate_hz)), path)
    notes = [f"Taken to work at {sample_rate_hz} Hz, which weights do not show."]
    if config:
        _compare(config, layout, ours_config, classified)
    elif not layout.causal_norm:
        notes.append("Assumed to be non-causal with ReLU masks: the weights do not say.")
    if not classified:
        notes.append(
            "It has no speaker classifier; the model gets one for a single speaker, with zeros."
        )
    return Conversion(_assemble(weights, ours_config, classified), name, tuple(notes))


def save_conversion(
    conversion: Conversion, source: Path, folder: Path, licence: str | None, *, half: bool
) -> None:
    """Write a conversion of the file `source` to a folder, with a card that says so.

    Raises:
        OutputError: The folder cannot be written.
    """
    origin = {"file": source.name, "sha256": checksum(source), "layout": conversion.layout}
    save_checkpoint(folder, conversion.system, {"converted_from": origin}, half=half)
    text = (
        f"Converted from `{source.name}` (sha256 `{origin['sha256']}`), whose layers are named as "
        f"in {conversion.layout}."
    )
    _write_card(folder, licence, text)


def save_at_sample_rate(
    info: CheckpointInfo, sample_rate_hz: int, folder: Path, licence: str | None, *, half: bool
) -> None:
    """Write a checkpoint of ours, taken to another sample rate, to a folder.

    Its provenance and calibration are copied, and its card with a note above it.

    Raises:
        CheckpointError: As `load_checkpoint` and `at_sample_rate`.
        OutputError: The folder cannot be written.
    """
    system = at_sample_rate(load_checkpoint(info), sample_rate_hz)
    origin = {"model": info.label, "sha256": info.sha256}
    provenance = {**info.provenance, "resampled_from": origin}
    save_checkpoint(folder, system, provenance, half=half, calibration=info.calibration)
    text = (
        f"{info.label} (sha256 `{info.sha256}`), taken from {info.config.sample_rate_hz} Hz to "
        f"{sample_rate_hz} Hz by `mcspex models convert`. In the band of the lower rate its "
        "output is the same; above, it has learned nothing."
    )
    if card := read_card(info.folder):
        more = f"\n## The card of {info.label}\n\n{card.text}\n"
        _write_card(folder, licence or card.licence, text, more)
    else:
        _write_card(folder, licence, text)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file; its names without what wrappers put before them."""
    remedy = "Name a checkpoint's file."
    state = read_tensors(path, remedy)[0] if path.suffix == ".safetensors" else _read_pickle(path)
    for key in ("model_state_dict", "models", "state_dict", "model"):
        if isinstance(state, dict) and key in state:
            state = state[key]
            state = state[0] if isinstance(state, list | tuple) and state else state
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: has no state dict. Save the network's state_dict().")
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise CheckpointError(
                f"{path}: {key} is not a plain tensor ({type(value).__name__}). "
                "Save the network's state_dict()."
            )
    for wrapper in ("module.", "_orig_mod.", "model."):  # DataParallel, torch.compile, Lightning
        if all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def at_sample_rate(system: System, sample_rate_hz: int) -> System:
    """Return the same network for another sample rate, in evaluation mode.

    A network's times are in milliseconds, so only the filters of the encoder and the decoder
    change: they are resampled by band-limited interpolation, `g[n] = sum_k f[k] sinc(n / r - k)`
    for r = new rate / old rate (below 1, their band is limited to the new one as well). The
    encoder's are divided by r, because it sums over r times as many samples. In the band that
    both rates have, the output stays the same (to 35 dB; the interpolation ends where the
    windows do). Source: ours.

    Args:
        system: Any system, at `system.config.sample_rate_hz`; it is not changed.
        sample_rate_hz: The new rate, 4,000 to 192,000.

    Raises:
        CheckpointError: The windows or the hop are not a whole number of samples at the new rate.
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
        converted = build(parse_system(asdict(config), f"{sample_rate_hz} Hz"))
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


def _write_card(folder: Path, licence: str | None, origin: str, more: str = "") -> None:
    info = find_checkpoint(folder)
    with files.whole(folder / CARD) as partial:
        partial.write_text(make_card(info, info.name, licence, origin=origin) + more, "utf-8")


def _read_pickle(path: Path) -> Any:
    """Read what torch.save wrote, as far as it is tensors and plain containers."""
    import torch

    file = io.BytesIO(read_bytes(path, "Name a checkpoint's file."))
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


def _is_plain(value: object) -> bool:
    """Whether this is a dense tensor of real numbers."""
    from torch import Tensor, strided

    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.is_meta:
        return False
    return value.layout == strided and not value.is_complex()


@dataclass(frozen=True)
class _Weights:
    """A foreign state dict by our names, with its own names for error messages."""

    path: Path
    tensors: dict[str, Tensor]
    names: dict[str, str]

    def refusal(self, keys: Collection[str], reason: str) -> CheckpointError:
        """Return an error about these tensors, by their own names where they have one."""
        names = first_names([self.names.get(key, key) for key in keys])
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
        """Return how many numbers a pattern finds in the names."""
        return len({m[1] for key in self.tensors if (m := re.match(pattern, key))})


def _sizes(weights: _Weights, layout: Layout, sample_rate_hz: int) -> SystemConfig:
    """Read all sizes from the tensors' shapes; `_assemble` sees whether they agree."""
    from mcspex_cli.model.systems import SystemConfig

    short, middle, long = (weights.shape(f"encoder.banks.{k}.weight")[2] for k in range(3))
    first = "extractor.stacks.0"
    channels = weights.shape("fusion.mixture.project.weight")[0]
    reference = weights.shape("fusion.reference.project.weight")[0]
    one, two, three = (weights.shape(f"speaker.blocks.{k}.conv_1.weight")[0] for k in range(3))
    classifier = weights.tensors.get("classifier.weight")
    per_ms = max(sample_rate_hz, 1) / 1000  # `parse_system` checks the limits
    return SystemConfig(
        system="spexplus",
        sample_rate_hz=sample_rate_hz,
        windows_ms=(short / per_ms, middle / per_ms, long / per_ms),
        hop_ms=short // 2 / per_ms,
        filters=weights.shape("encoder.banks.0.weight")[0],
        channels=channels,
        hidden=weights.shape(f"{first}.condition.widen.weight")[0],
        kernel=weights.shape(f"{first}.condition.depthwise.weight")[2],
        blocks=1 + weights.count(rf"{first}\.blocks\.(\d+)\."),
        stacks=weights.count(r"extractor\.stacks\.(\d+)\."),
        norm=_norm(weights, layout),
        reference_channels=0 if reference == channels else reference,
        embedding=weights.shape("speaker.project.weight")[0],
        speaker_channels=(one, two, three),
        speakers=1 if classifier is None or not classifier.ndim else len(classifier),
    )


def _norm(weights: _Weights, layout: Layout) -> str:
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
    if kind == layout.causal_norm:
        raise weights.refusal(
            kinds.values(), f"{kind} is the norm of a causal network, and ours is not causal."
        )
    return kind


def _compare(path: Path, layout: Layout, config: SystemConfig, classified: bool) -> None:
    """Refuse a mdl.json that disagrees with the weights, or describes what ours cannot be."""
    remedy = "Give the mdl.json of the training."
    try:
        raw = msgspec.json.decode(read_bytes(path, remedy), type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a JSON object. {remedy}") from error
    for key, value in {**_FIXED, **layout.fixed}.items():
        if raw.get(key, value) != value:
            theirs, ours = (msgspec.json.encode(v).decode()[:60] for v in (raw[key], value))
            raise CheckpointError(f"{path}: {key} is {theirs}; mcspex has SpEx+ with {ours} only.")
    facts = {**asdict(config), **dict(zip(_SCALES, config.windows, strict=True))}
    if not classified:
        del facts["speakers"]
    for letter, fact in layout.letters.items():
        if fact in facts and raw.get(letter, facts[fact]) != facts[fact]:
            raise CheckpointError(
                f"{path}: has {letter} = {str(raw[letter])[:60]}, and the weights have "
                f"{facts[fact]}. Give the JSON that belongs to them."
            )


def _assemble(weights: _Weights, config: SystemConfig, classified: bool) -> System:
    """Fill our whole network with all of these tensors."""
    import torch

    from mcspex_cli.model.systems import build

    with torch.device("meta"):
        system = build(config)
    expected = system.state_dict()
    if not classified:
        weights.tensors.update(
            {k: torch.zeros(t.shape) for k, t in expected.items() if k.startswith("classifier.")}
        )
    split = {k for k in expected if k.endswith(".condition.condition.weight")}
    places = expected.keys() - split
    if odd := [k for k in weights.tensors if k not in places or weights.names.get(k) == k]:
        raise weights.refusal(odd, "no place for this in the SpEx+ that mcspex has.")
    if missing := [k for k in expected if k in places and k not in weights.tensors]:
        raise weights.refusal(missing, _MISSING)
    tensors = dict(weights.tensors)
    for key, tensor in weights.tensors.items():
        if re.match(r"extractor\..*\.norm_[12]\.", key) and tensor.shape[1:] == (1,):
            tensors[key] = tensor.flatten()
        if match := re.match(r"(extractor\.stacks\.\d+\.condition\.)widen\.weight$", key):
            # Theirs sees the features and the embedding at once, ours one after the other.
            weights.shape(key)
            condition = f"{match[1]}condition.weight"
            tensors[key] = tensor[:, : config.channels]
            tensors[condition] = tensor[:, config.channels :].flatten(1)
            weights.names[condition] = weights.names[key]
    if odd := [k for k, t in expected.items() if tensors[k].shape != t.shape]:
        raise weights.refusal(odd, "not of the size that the other layers require.")
    values = {
        k: tensors[k].detach().to(t.dtype, copy=True).contiguous() for k, t in expected.items()
    }
    if odd := [k for k, value in values.items() if not value.isfinite().all()]:
        raise weights.refusal(odd, "some numbers are not finite. Use an earlier checkpoint.")
    system.load_state_dict(values, assign=True)
    return system.eval().requires_grad_(False)
