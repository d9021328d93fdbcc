"""What runs a network: every runtime gives what torch gives."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcspex_cli.checkpoint.checkpoint import (
    EMBED,
    EXTRACT,
    GRAPHS,
    CheckpointInfo,
    find_checkpoint,
    load_checkpoint,
)
from mcspex_cli.cli import doctor
from mcspex_cli.errors import CheckpointError, EngineError
from mcspex_cli.extraction import onnx as graphs
from mcspex_cli.extraction import runtime
from mcspex_cli.extraction.engine import Engine, TorchRuntime, open_engine
from mcspex_cli.extraction.onnx import OnnxRuntime, choose_runtime
from mcspex_cli.extraction.runtime import (
    EngineSettings,
    OutOfMemoryError,
    share_cores,
)
from mcspex_cli.model.config import sized
from mcspex_cli.model.systems import System, build
from tests.conftest import RATE_HZ, buzz

SETTINGS = EngineSettings("cpu", "float32", 1.0, 0.2, 0.1)

DESIGNS: dict[str, dict[str, Any]] = {
    "mcspex": {},
    "spexplus": {
        "system": "spexplus",
        "reference_channels": 8,
        "norm": "BN",
        "true_level": True,
    },
    "other parts": {
        "scale_fuser": "attention",
        "consm": "feature_film",
        "scale_intermg": "cascade",
        "norm": "cLN",
    },
}


def info_of(system: System, folder: Path) -> CheckpointInfo:
    """A checkpoint that a system might be."""
    return CheckpointInfo("a", folder, "0" * 64, system.config, {})


@pytest.fixture(scope="module", params=DESIGNS)
def design(
    request: pytest.FixtureRequest,
    tiny_folder: Path,
    exported: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[System, Path]:
    """A small system of every design with random weights, and the folder of its graphs."""
    if request.param == "mcspex":
        return load_checkpoint(tiny_folder).requires_grad_(False), exported
    torch.manual_seed(1)
    config = replace(sized("mcspex", "tiny", RATE_HZ, 4), blocks=1, stacks=1)
    system = build(replace(config, **DESIGNS[request.param])).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("graphs")
    info = info_of(system, folder)
    graphs.export(system, info, folder)
    graphs.check_graphs(folder, info)
    return system, folder


def runtime_of(design: tuple[System, Path], settings: EngineSettings = SETTINGS) -> OnnxRuntime:
    return OnnxRuntime(design[1], design[0].config, settings)


def agree(made: np.ndarray, expected: np.ndarray, by_db: float = 80) -> bool:
    """Whether what differs has so much less power than what is expected."""
    assert made.shape == expected.shape
    off = np.square(made - expected).sum(dtype=np.float64)
    return bool(off < np.square(expected).sum() * 10 ** (-by_db / 10))


def test_a_runtime_gives_what_torch_gives(design: tuple[System, Path]) -> None:
    exact, other = TorchRuntime(design[0], SETTINGS), runtime_of(design)
    system = design[0]
    assert (other.sample_rate_hz, other.true_level) == (RATE_HZ, system.config.true_level)
    assert (other.device, other.precision, other.batch) == ("cpu", "float32", 1)
    for length in (system.least_reference_samples, 5000, 8001):
        reference = buzz(200, 2)[:length]
        assert agree(other.embed(reference[None]), exact.embed(reference[None]))
    voices = np.random.default_rng(0).standard_normal((3, 16), np.float32)
    for length in (1, 19, 39, 40, 41, 61, 4000, 8001):
        mixtures = np.stack([buzz(100 + 10 * i, 2, i)[-length:] for i in range(3)])
        expected = np.stack(exact.extract(mixtures, voices))
        assert agree(np.stack(other.extract(mixtures, voices)), expected)
        assert agree(np.stack(other.extract(mixtures[:1], voices[:1])), expected[:1])
    (shorter,) = exact.extract([mixtures[0][:-1]], voices[:1])
    both = other.extract([mixtures[0][:-1], mixtures[1]], voices[:2])
    assert agree(both[0], shorter)
    assert agree(both[1], expected[1])


def test_a_long_signal_in_windows_is_what_torch_makes_of_it(design: tuple[System, Path]) -> None:
    exact, other = Engine(design[0], SETTINGS), Engine(runtime_of(design), SETTINGS)
    mixture, reference = buzz(100, 4.71), buzz(200, 1)
    expected = exact.extract(mixture, exact.embed([reference]))
    assert agree(other.extract(mixture, other.embed([reference])), expected)


def test_a_graph_says_what_it_is_and_nothing_of_whose_disk_it_is_from(
    design: tuple[System, Path],
) -> None:
    import onnx

    for name, inputs in ((EMBED, ["reference"]), (EXTRACT, ["mixture", "embedding"])):
        model = onnx.load(design[1] / name)
        onnx.checker.check_model(model)
        said = {entry.key: entry.value for entry in model.metadata_props}
        assert said["sample_rate_hz"] == str(RATE_HZ)
        assert said["model_sha256"] == graphs.read_graphs(design[1])["model_sha256"]
        assert [value.name for value in model.graph.input] == inputs
        shape = model.graph.input[0].type.tensor_type.shape
        assert [axis.dim_param for axis in shape.dim] == ["batch", "sample"]
        assert b".py" not in model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bfloat16"}, "auto, float32; or --runtime torch"),
        ({"device": "cuda"}, "device 'cuda' is not available to onnx. Use one of"),
        ({"device": "cpu:x"}, "device 'cpu:x' is not available"),
    ],
)
def test_what_onnx_cannot_do_is_refused(
    design: tuple[System, Path], change: dict[str, str], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        runtime_of(design, replace(SETTINGS, **change))


def test_a_graph_that_is_none_is_one_line(tmp_path: Path) -> None:
    for name in (EMBED, EXTRACT):
        (tmp_path / name).write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot load .*\. Update it, or use --runtime torch"):
        OnnxRuntime(tmp_path, sized("mcspex", "tiny", RATE_HZ, 4), SETTINGS)


class Session:
    """What ONNX Runtime makes where it has been built for GPUs, and there may be one."""

    def __init__(self, works: bool) -> None:
        self.works = works

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"] * self.works + ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("works", "device", "used"),
    [(True, "auto", "cuda:0"), (True, "cuda:1", "cuda:1"), (True, "cpu", "cpu"),
     (False, "auto", "cpu"), (False, "cuda", "")],
)  # fmt: skip
def test_onnx_takes_a_gpu_that_it_can_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works: bool, device: str, used: str
) -> None:
    import onnxruntime

    both = [["CUDAExecutionProvider", "CPUExecutionProvider"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", both.pop)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_: Session(works))
    config, settings = sized("mcspex", "tiny", RATE_HZ, 4), replace(SETTINGS, device=device)
    if not used:
        with pytest.raises(EngineError, match="device 'cuda' is not available to onnx"):
            OnnxRuntime(tmp_path, config, settings)
        return
    runtime = OnnxRuntime(tmp_path, config, settings)
    assert (runtime.device, runtime.batch) == (used, 1 if used == "cpu" else 16)


def test_a_lack_of_memory_is_told_from_other_errors(design: tuple[System, Path]) -> None:
    runtime = runtime_of(design)

    def fail(*_: object) -> np.ndarray:
        raise RuntimeError("std::bad_alloc")

    runtime._sessions[EMBED].run = fail
    with pytest.raises(OutOfMemoryError):
        runtime.embed(buzz(100, 1)[None])


def test_graphs_that_are_not_the_system_are_not_kept(
    design: tuple[System, Path], tiny: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: System, path: Path, __: dict[str, str]) -> None:
        shutil.copyfile(design[1] / path.name, path)

    monkeypatch.setattr(graphs, "_write", write)
    monkeypatch.setattr(graphs, "load_checkpoint", lambda _: tiny)
    with pytest.raises(EngineError, match=r"\.onnx: differs from torch by .*, which is too"):
        graphs.export_model(info_of(tiny, tmp_path / "none"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- which, and from where ------------------------------------------------------------------


@pytest.fixture
def info(tiny_folder: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointInfo:
    """The tiny checkpoint, prepared."""
    monkeypatch.setenv("MCSPEX_CACHE", str(prepared))
    return find_checkpoint(tiny_folder)


@pytest.mark.parametrize(
    ("change", "seconds", "expected"),
    [
        ({}, 3, "onnx"),
        ({}, 100, "torch"),
        ({"precision": "float32", "device": "cpu"}, 3, "onnx"),
        ({"precision": "bfloat16"}, 3, "torch"),
        ({"precision": "float16"}, 3, "torch"),
        ({"device": "cuda"}, 3, "torch"),
        ({"runtime": "torch"}, 3, "torch"),
        ({"runtime": "onnx"}, 100, "onnx"),
    ],
)
def test_auto_is_torch_but_for_little_audio(
    info: CheckpointInfo, change: dict[str, str], seconds: float, expected: str
) -> None:
    chosen = choose_runtime(info, EngineSettings(**change), seconds)  # type: ignore[arg-type]
    assert chosen == EngineSettings(**change | {"runtime": expected})  # type: ignore[arg-type]


def test_auto_takes_nothing_that_is_not_prepared(
    info: CheckpointInfo, no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCSPEX_CACHE", str(no_cache))
    assert choose_runtime(info, EngineSettings(), 3).runtime == "torch"
    monkeypatch.setenv("MCSPEX_CACHE", str(no_cache / ("n" * 300)))  # no folder may be called that
    assert choose_runtime(info, EngineSettings(), 3).runtime == "torch"


def test_without_a_home_folder_torch_runs_and_onnx_says_what_to_do(
    info: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MCSPEX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # knows nobody
    assert choose_runtime(info, EngineSettings(), 3).runtime == "torch"
    with pytest.raises(EngineError, match=r"no home folder.* Let MCSPEX_CACHE name a folder"):
        open_engine(info, replace(SETTINGS, runtime="onnx"))
    assert doctor.check_graphs()[0] == doctor.WARNING


def test_auto_takes_nothing_that_is_not_installed(
    info: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "find_spec", lambda name: name != "onnxruntime" or None)
    assert choose_runtime(info, EngineSettings(), 3).runtime == "torch"


def test_an_engine_is_opened_with_the_runtime_asked_for(info: CheckpointInfo) -> None:
    mixture, reference = buzz(100, 1), buzz(200, 1)
    made = {}
    for name in ("auto", "torch", "onnx"):
        engine = open_engine(info, replace(SETTINGS, runtime=name))
        assert engine.runtime.name == name.replace("auto", "torch")
        made[name] = engine.extract(mixture, engine.embed([reference]))
        assert agree(made[name], made["auto"])


def test_a_system_runs_in_torch_only(tiny: System) -> None:
    with pytest.raises(EngineError, match=r"a System runs in torch. For onnx, use open_engine"):
        Engine(tiny, replace(SETTINGS, runtime="onnx"))


@pytest.fixture
def cached(info: CheckpointInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The graphs of a model in a cache of their own."""
    good = graphs.place(info)
    monkeypatch.setenv("MCSPEX_CACHE", str(tmp_path))
    return Path(shutil.copytree(good, graphs.place(info)))


@pytest.mark.parametrize("damage", ["bits", "missing", "facts"])
def test_damaged_graphs_of_the_cache_are_not_used(
    info: CheckpointInfo, cached: Path, damage: str
) -> None:
    assert graphs.find(info) == cached
    if damage == "bits":
        data = bytearray((cached / EXTRACT).read_bytes())
        data[len(data) // 2] ^= 1
        (cached / EXTRACT).write_bytes(data)
    elif damage == "missing":
        (cached / EMBED).unlink()
    else:
        (cached / GRAPHS).write_text("[1")
    assert graphs.find(info) is None
    assert choose_runtime(info, EngineSettings(), 3).runtime == "torch"


def test_graphs_of_another_config_are_refused(info: CheckpointInfo) -> None:
    other = replace(info, config=replace(info.config, true_level=True))
    with pytest.raises(CheckpointError, match=r"graphs of another model or mcspex\. Export"):
        graphs.check_graphs(graphs.place(info), other)


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCSPEX_CACHE", "/a")
    assert graphs.cache() == Path("/a")
    monkeypatch.delenv("MCSPEX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert graphs.cache() == Path("/b/mcspex")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert graphs.cache() == Path.home() / ".cache" / "mcspex"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"PATH": "/bin"}, {"PATH": "/bin", "GOMP_SPINCOUNT": "2000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(before))
    share_cores()
    assert os.environ == after


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="only Linux has control groups")
def test_the_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_CONTROL_GROUPS", tmp_path)
    whole = runtime.cores(), runtime.memory()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (runtime.cores(), runtime.memory()) == whole
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert (runtime.cores(), runtime.memory()) == (1, 2**30)
