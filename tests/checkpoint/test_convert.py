"""Other programs' SpEx+ made ours: the same outputs, or a line that says why not."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soxr
import torch
from safetensors.torch import load_file, save_file

from mcspex_cli import audio
from mcspex_cli.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from mcspex_cli.checkpoint.convert import at_sample_rate, convert
from mcspex_cli.errors import CheckpointError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import System, build
from tests.checkpoint.published import RENAMED, Published, Sizes, State, published
from tests.conftest import EXAMPLES, ROOT

OFFICIAL, XUCHENGLIN, WESEP = RENAMED
SMALL = Sizes(
    **{"L": 8, "N": 6, "X": 3, "R": 2, "B": 5, "H": 7, "P": 3},
    **{"longer": (16, 32), "reference": 9, "widths": (9, 12, 12), "embedding": 4, "speakers": 3},
)
ODD = replace(SMALL, L=9, N=8, X=2, R=3, B=8, H=4, P=5, reference=8, widths=(6, 6, 10))
SHORT = replace(SMALL, X=1, R=1, longer=(8, 8), speakers=1)


def renamed(state: State, layout: str) -> State:
    return OrderedDict((RENAMED[layout](key), tensor) for key, tensor in state.items())


@pytest.fixture
def small() -> State:
    """The state dict of a small network in the official format."""
    return published(SMALL).state_dict()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write what is given by torch.save; give back its path."""

    def write(content: object, **kwargs: Any) -> Path:
        torch.save(content, tmp_path / "best.pt.tar", **kwargs)
        return tmp_path / "best.pt.tar"

    return write


def assert_alike(system: System, network: Published, tolerance: float = 1e-5) -> None:
    """Compare all outputs, for signals of whole hops as the published network needs them."""
    length, hop = network.sizes.L, network.hop
    mixture, reference = torch.randn(2, length + 150 * hop), torch.randn(2, length + 97 * hop)
    with torch.no_grad():
        expected, scores = network(mixture, reference, torch.full((2,), reference.shape[-1]))
        estimates, logits = system(mixture, reference)
        short = system.extract(mixture, system.embed(reference))
    assert min(float(e.std(dim=-1).min()) for e in expected) > 1e-3  # they say something
    pairs = zip([*estimates, short, logits], [*expected, expected[0], scores], strict=True)
    for estimate, truth in pairs:
        torch.testing.assert_close(estimate, truth, rtol=tolerance, atol=tolerance)


KINDS = [(layout, norm) for layout in RENAMED for norm in ("gLN", "cLN", "BN")]
KINDS.remove((XUCHENGLIN, "cLN"))  # refused, see below


@pytest.mark.parametrize(("layout", "norm"), KINDS)
@pytest.mark.parametrize("sizes", [SMALL, ODD, SHORT], ids=["small", "odd", "short"])
def test_a_converted_system_has_the_published_networks_outputs(
    file: Callable[..., Path], tmp_path: Path, layout: str, norm: str, sizes: Sizes
) -> None:
    network = published(replace(sizes, norm=norm))
    done = convert(file(renamed(network.state_dict(), layout)))
    assert done.summary.endswith(layout)
    config = done.system.config
    assert (config.norm, config.reference_channels) == (norm, 0 if sizes is ODD else 9)
    assert not done.system.training
    assert_alike(done.system, network)
    save_checkpoint(tmp_path / "ours", done.system, {}, half=False)
    assert_alike(load_checkpoint(tmp_path / "ours"), network)


@pytest.mark.parametrize("norm", ["gLN", "cLN", "BN"])
def test_every_tensor_is_heard_in_what_is_compared(norm: str) -> None:
    network = published(replace(SMALL, norm=norm))
    mixture, reference = torch.randn(2, 1, 8 + 97 * 4)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("tracked"):
                continue
            before = network(mixture, reference, torch.tensor([reference.shape[-1]]))
            tensor.add_(0.1)
            after = network(mixture, reference, torch.tensor([reference.shape[-1]]))
            tensor.sub_(0.1)
            changes = [(a - b).abs().max() for a, b in zip(before[0], after[0], strict=True)]
            assert max(*changes, (before[1] - after[1]).abs().max()) > 1e-4, name


def test_the_published_sizes_are_read_off_the_weights(
    file: Callable[..., Path], tmp_path: Path
) -> None:
    network = published(Sizes())
    done = convert(file({"epoch": 76, "model_state_dict": network.state_dict()}))
    config = done.system.config
    assert (config.windows, config.hop, config.windows_ms) == ((20, 80, 160), 10, (2.5, 10, 20))
    assert (config.filters, config.channels, config.hidden, config.kernel) == (256, 256, 512, 3)
    assert (config.blocks, config.stacks, config.speakers, config.norm) == (8, 4, 101, "gLN")
    assert (config.reference_channels, config.speaker_channels) == (0, (256, 512, 512))
    assert_alike(done.system, network)
    save_checkpoint(tmp_path / "ours", done.system, {}, half=False)
    assert_alike(load_checkpoint(tmp_path / "ours"), network)


CONTAINERS: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "official": lambda state: {"epoch": 3, "model_state_dict": state, "optim_state_dict": {}},
    "wesep": lambda state: {"models": [state, {"other": torch.ones(1)}], "epoch": 3},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "clearervoice": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_every_container_is_opened(file: Callable[..., Path], container: str, zipped: bool) -> None:
    network = published(SMALL)
    content = CONTAINERS[container](network.state_dict())
    done = convert(file(content, _use_new_zipfile_serialization=zipped))
    assert_alike(done.system, network)


def test_safetensors_are_read_too(tmp_path: Path, small: State) -> None:
    save_file(small, tmp_path / "spexplus.safetensors")
    ours = convert(tmp_path / "spexplus.safetensors").system.state_dict()
    assert torch.equal(ours["masks.heads.1.weight"], small["mask2.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_become_float32(file: Callable[..., Path], dtype: torch.dtype) -> None:
    network = published(SMALL).to(dtype)
    system = convert(file(network.state_dict())).system
    assert {t.dtype for t in system.state_dict().values()} == {torch.float32, torch.int64}
    assert_alike(system, network.float())


def test_parameters_that_learn_are_read_as_what_they_are(file: Callable[..., Path]) -> None:
    network = published(SMALL)
    state = {**network.state_dict(), **dict(network.named_parameters())}
    system = convert(file(state)).system
    assert not any(p.requires_grad for p in system.parameters())


@pytest.mark.parametrize("rate_hz", [8000, 11025, 48000])
def test_windows_keep_their_samples_at_every_rate(
    file: Callable[..., Path], tmp_path: Path, rate_hz: int
) -> None:
    sizes = replace(SMALL, L=21, longer=(80, 160))
    path = file(renamed(published(sizes).state_dict(), WESEP))
    save_checkpoint(tmp_path / "m", convert(path, sample_rate_hz=rate_hz).system, {})
    config = load_checkpoint(tmp_path / "m").config
    assert (config.sample_rate_hz, config.windows, config.hop) == (rate_hz, (21, 80, 160), 10)


@pytest.mark.parametrize("rate_hz", [0, 3999, 10**9])
def test_an_impossible_rate_is_refused(
    file: Callable[..., Path], small: State, rate_hz: int
) -> None:
    with pytest.raises(CheckpointError, match=rf"sample_rate_hz is {rate_hz}. Expected `int`"):
        convert(file(small), sample_rate_hz=rate_hz)


def test_what_weights_do_not_show_is_said(file: Callable[..., Path], small: State) -> None:
    rate, mask = convert(file(small), sample_rate_hz=16000).notes
    assert rate == "Taken to work at 16000 Hz, which weights do not show."
    assert mask == "Assumed to be non-causal with ReLU masks: the weights do not say."
    assert len(convert(file(renamed(small, XUCHENGLIN))).notes) == 1  # its norms show the first


def test_without_a_classifier_there_is_one_speaker(file: Callable[..., Path], small: State) -> None:
    state = {k: v for k, v in renamed(small, WESEP).items() if not k.startswith("pred_linear")}
    done = convert(file({"models": [state]}))
    assert done.notes[-1] == (
        "It has no speaker classifier; the model gets one for a single speaker, with zeros."
    )
    assert done.system.config.speakers == 1
    assert not done.system.classifier.weight.any()
    assert not done.system.classifier.bias.any()


# The JSON beside the weights.


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("layout", RENAMED)
def test_a_json_says_what_weights_do_not(
    file: Callable[..., Path], tmp_path: Path, small: State, layout: str
) -> None:
    config = write(tmp_path / "mdl.json", {"causal": False, "non_linear": "relu", "colour": "red"})
    assert len(convert(file(renamed(small, layout)), config).notes) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"causal": True}, r"causal is true; mcspex has SpEx\+ with false only"),
        ({"non_linear": "sigmoid"}, r'non_linear is "sigmoid"; mcspex has .* with "relu" only'),
        ({"activate": "softmax"}, r'activate is "softmax"; mcspex has .* with "relu" only'),
        ("L: 20", r"mdl.json: not a JSON object\. Give the mdl.json of the training"),
        ("[" * 200_000, r"mdl.json: not a JSON object"),
        ([1], r"mdl.json: not a JSON object\. Give"),
    ],
)
def test_a_json_of_another_network_is_refused(
    file: Callable[..., Path], tmp_path: Path, small: State, content: object, message: str
) -> None:
    config = write(tmp_path / "mdl.json", content)
    with pytest.raises(CheckpointError, match=message):
        convert(file(small), config)


def test_a_missing_json_is_refused(file: Callable[..., Path], tmp_path: Path, small: State) -> None:
    with pytest.raises(CheckpointError, match=r"no.json: no such file or folder\. Give the mdl"):
        convert(file(small), tmp_path / "no.json")


# Files that are no state dict.


class Touches:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_code_in_a_file_is_not_run(
    file: Callable[..., Path], tmp_path: Path, small: State, zipped: bool
) -> None:
    path = file({**small, "x": Touches(tmp_path / "run")}, _use_new_zipfile_serialization=zipped)
    message = r"best.pt.tar: reading it would run code \(_?io.open\)\. Save only the network"
    with pytest.raises(CheckpointError, match=message):
        convert(path)
    assert not (tmp_path / "run").exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Touches(tmp_path / "run")))
    with pytest.raises(CheckpointError, match=r"model.pkl: not a PyTorch checkpoint"):
        convert(path)
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name, message in (
        ("no.pt", "no.pt: no such file or folder. Name a checkpoint's file."),
        ("", "cannot be read: it is a folder. Name a file."),
        ("pipe.pt", "pipe.pt: is not a regular file."),
        ("zero.safetensors", "zero.safetensors: is not a regular file."),
    ):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            convert(tmp_path / name)


@pytest.mark.parametrize("content", ["", "hello, world\n", "<!DOCTYPE html>\n", "a,b\n1,2\n"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: str) -> None:
    message = r"x.pt: not a PyTorch checkpoint, or a damaged one\. Copy it again, whole"
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path / "x.pt", content))
    with pytest.raises(CheckpointError, match=r"damaged, or not safetensors"):
        convert(write(tmp_path / "x.safetensors", content))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("share", [0.01, 0.99])
def test_truncated_files_are_refused(
    file: Callable[..., Path], small: State, zipped: bool, share: float
) -> None:
    path = file(small, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"not a PyTorch checkpoint, or a damaged one"):
        convert(path)


def test_a_script_is_refused(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match=r"script.pt: not a PyTorch checkpoint"):
        convert(tmp_path / "script.pt")


# What is in a file that can be read.

Change = Callable[[State], object]
"""From the state dict of a small network to what is in a file."""


def put(key: object, value: object, layout: str = OFFICIAL) -> Change:
    return lambda state: {**renamed(state, layout), key: value}


def without(part: str) -> Change:
    return lambda state: {key: value for key, value in state.items() if part not in key}


def reshaped(key: str, *shape: int) -> Change:
    return lambda state: {**state, key: state[key].new_zeros(shape)}


def with_a_longer_stack(state: State) -> State:
    return state | {
        k.replace("other.1", "other.2"): v for k, v in state.items() if "2_other.1" in k
    }


def with_a_norm_of_another_kind(state: State) -> State:
    for place, letter in (("weight", "gamma"), ("bias", "beta")):
        state[f"conv_block_2.lnorm1.{place}"] = state.pop(f"conv_block_2.lnorm1.{letter}")[:, 0]
    return state


def causal(_: State) -> State:
    return renamed(published(replace(SMALL, norm="cLN")).state_dict(), XUCHENGLIN)


NO_PLACE = r"no place for this in the SpEx\+ that mcspex has"
NO_STATE = r"has no state dict. Save the network's"
MISSING = r"missing \(the name is ours\). Copy"

REFUSED: list[tuple[Change, str]] = [
    (lambda _: {}, NO_STATE),
    (lambda _: {"models": []}, NO_STATE),
    (
        lambda state: {"model_state_dict": state, "args": argparse.Namespace(N=6)},
        r"would run code \(argparse.Namespace\)",
    ),
    (put("epoch", 3), r"epoch is not a plain tensor \(int\)"),
    (put(3, torch.ones(1)), r"3 is not a plain tensor \(Tensor\)"),
    (put("ln.weight", torch.ones(18).to_sparse()), r"ln.weight is not a plain tensor"),
    (
        lambda _: {"state_dict": {f"masker.{k}.weight": torch.ones(1) for k in "abcd"}},
        r"its layers \(masker.a.weight, masker.b.weight, masker.c.weight and 1 more\) are not "
        r"those of a known SpEx\+. Known: gemengtju/SpEx_Plus, xuchenglin28/",
    ),
    *(
        (put(key, torch.ones(4, 4, 1), layout), rf"best.pt.tar: {key}: {NO_PLACE}")
        for layout, key in [
            (OFFICIAL, "masks.heads.0.gain"),
            (OFFICIAL, "extractor.stacks.0.condition.condition.weight"),
            (WESEP, "separation.separation.1.separation.0.Sc_conv.weight"),
            (XUCHENGLIN, "lstm.weight_hh_l0"),
        ]
    ),
    (
        lambda state: {**state, **{f"skip.{k}.weight": torch.ones(1) for k in range(5)}},
        rf"skip.0.weight, skip.1.weight, skip.2.weight and 2 more: {NO_PLACE}",
    ),
    (with_a_longer_stack, rf"conv_block_2_other.2.* and 9 more: {NO_PLACE}"),
    (without("2_other.1"), rf"stacks.1.blocks.1.widen.weight, .*: {MISSING}"),
    (without("encoder_1d_long.weight"), rf"encoder.banks.2.weight: {MISSING}"),
    (without("3.batch_norm1.running_var"), rf"speaker.blocks.1.norm_1.running_var: {MISSING}"),
    (
        put("conv_block_1.lnorm1.weight", torch.ones(7, 1)),
        r"conv_block_1.lnorm1.weight, conv_block_1.lnorm1.gamma: the same layer twice",
    ),
    (
        with_a_norm_of_another_kind,
        r"lnorm1.gamma, conv_block_2.lnorm1.weight: norms of several kinds \(gLN, cLN\)",
    ),
    (
        causal,
        r"conv_block_1.norm1.weight: cLN is the norm of a causal network, and ours is not causal",
    ),
    *(
        (
            put("mask2.weight", torch.full((6, 5, 1), value, dtype=torch.float64)),
            r"mask2.weight: some numbers are not finite. Use",
        )
        for value in (float("nan"), float("inf"), 1e39)
    ),
    (reshaped("decoder_1d_3.weight", 6, 1, 30), "decoder_1d_3.weight: not of the size"),
    (reshaped("conv_block_2.conv1x1.weight", 7, 8, 1), "conv_block_2.conv1x1.weight: not of the"),
    (reshaped("conv_block_2.conv1x1.weight", 7, 9), r"conv1x1.weight: \[7, 9\] is not the shape"),
    (reshaped("conv_block_2_other.0.lnorm1.gamma", 7, 2), "lnorm1.gamma: not of the size"),
    (reshaped("encoder_1d_short.weight", 6, 8), r"short.weight: \[6, 8\] is not the shape of"),
    (reshaped("encoder_1d_short.weight", 6, 1, 1), "hop_ms is 0.0. Expected `float` >= 0.1"),
    (reshaped("conv_block_1.dconv.weight", 7, 1, 4), "kernel is 4. It must be odd"),
    (reshaped("pred_linear.weight"), "pred_linear.weight, pred_linear.bias: not of the size"),
    (reshaped("proj.weight", 5000, 18, 1), "channels is 5000. Expected `int` <= 4096"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_no_network_of_ours_is_refused(
    file: Callable[..., Path], small: State, change: Change, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(file(change(small)))


@pytest.mark.parametrize("is_state", [False, True])
def test_the_weights_of_our_own_models_are_told_from_others(
    file: Callable[..., Path], is_state: bool
) -> None:
    weights = ROOT / "weights/mcspex-16k/model.safetensors"
    path = file({"model": load_file(weights)}) if is_state else weights
    folder = re.escape(str(path.parent))
    with pytest.raises(CheckpointError, match=f"models convert {folder} --sample-rate 8000 -o DIR"):
        convert(path)


def test_a_gamma_is_a_global_norms_in_any_shape(file: Callable[..., Path]) -> None:
    network = published(SMALL)
    columns = (".gamma", ".beta")
    state = network.state_dict()
    state = {k: v.flatten() if k.endswith(columns) else v for k, v in state.items()}
    assert_alike(convert(file(state)).system, network)


def test_a_network_at_another_rate_gives_the_same_voice_in_its_band() -> None:
    system = load_checkpoint()
    own_hz, rate_hz = system.config.sample_rate_hz, 24_000
    mixture, target, reference = (
        audio.read(EXAMPLES / f"{name}.flac", own_hz) for name in ("mixture", "truth", "reference")
    )
    faster = at_sample_rate(system, rate_hz)
    assert faster.config.windows_ms == system.config.windows_ms

    def extract(network: System, *signals: audio.Samples) -> audio.Samples:
        mixed, voice = (torch.from_numpy(signal)[None] for signal in signals)
        return network.extract(mixed, network.embed(voice))[0].numpy()

    def resampled(samples: audio.Samples, old: int, new: int) -> audio.Samples:
        return soxr.resample(samples, old, new, quality="VHQ")

    slow = extract(system, mixture, reference)
    fast = extract(
        faster, resampled(mixture, own_hz, rate_hz), resampled(reference, own_hz, rate_hz)
    )
    fast = resampled(fast, rate_hz, own_hz)[: len(slow)]
    assert si_sdr(fast, slow) > 33
    assert si_sdr(fast, target) == pytest.approx(si_sdr(slow, target), abs=0.03)
    back = at_sample_rate(faster, own_hz)
    assert back.config == system.config
    assert si_sdr(extract(back, mixture, reference), slow) > 30


def test_a_rate_without_whole_samples_is_refused() -> None:
    system = build(sized("mcspex", "tiny", 8000, 4))
    with pytest.raises(CheckpointError, match=r"11025 Hz: this network.s windows of .* Use a mu"):
        at_sample_rate(system, 11_025)
