"""The layout is the architecture: order of imports, sizes, names, what the wheel carries."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mcspex_cli
from mcspex_cli.checkpoint.names import DEFAULT_MODEL, bundled
from mcspex_cli.evaluation.metrics import si_sdr
from tests.conftest import EXAMPLES, ROOT

ORDER = """
errors paths integrity decoding audio formats
model.layers model.encoder model.speaker model.extractor model.decoder model.systems model.folding
checkpoint.configs checkpoint.cache checkpoint.troubles checkpoint.hub checkpoint.names
checkpoint.graphs checkpoint.weights checkpoint.cards checkpoint.foreign
checkpoint.layouts checkpoint.convert checkpoint.verification checkpoint.publishing
extraction.tuning extraction.ahead extraction.chunks extraction.signals
extraction.presence extraction.runtime extraction.torch_runtime extraction.graph_runtime
extraction.onnx_runtime extraction.openvino_runtime extraction.exporting
extraction.engine extraction.opening extraction.reference
extraction.levels extraction.jobs extraction.manifests extraction.references extraction.planning
extraction.journal extraction.shares extraction.spool extraction.sources
extraction.activity extraction.outputs extraction.files
extraction.work extraction.processes extraction.workers extraction.batch
extraction.synthesis extraction.benchmark
evaluation.metrics evaluation.perceptual evaluation.pairing evaluation.scoring
evaluation.statistics evaluation.groups evaluation.baselines evaluation.tables evaluation.reports
evaluation.runs evaluation.results evaluation.pictures evaluation.shelves
evaluation.exhibits evaluation.gallery evaluation.batches evaluation.speed
diagnosis.findings diagnosis.voices diagnosis.software diagnosis.storage diagnosis.selftest
diagnosis.checkup
training.settings training.clips training.corpus training.acoustics training.plans
training.mixtures training.recipes training.renderings training.losses training.team
training.journal training.preparation training.trainer training.calibration
cli.plain cli.log cli.console cli.options cli.streams cli.interrupts cli.downloads cli.outcomes
cli.extract cli.enroll cli.results cli.plans cli.batch cli.evaluate cli.report cli.exchange
cli.calibrate cli.models cli.bench cli.train cli.doctor cli.completion
__main__
""".split()

SOURCES = {
    str(p.relative_to(ROOT / "mcspex_cli").with_suffix("")).replace(os.sep, "."): p
    for p in sorted((ROOT / "mcspex_cli").rglob("*.py"))
    if p.name != "__init__.py"
}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports, at its top only or anywhere; not for type checking."""
    tree = ast.parse(path.read_text())
    found = set()
    nodes = tree.body if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def test_every_module_has_its_place_in_the_reading_order() -> None:
    assert sorted(SOURCES) == sorted(ORDER)


def test_the_layout_is_drawn_in_the_same_order() -> None:
    text = (ROOT / "docs" / "code.md").read_text()
    drawn = [name for cell in re.findall(r"^\| (`.*?) \|", text, re.M) for name in cell.split(", ")]
    ours = [name.split(".")[-1] for name in ORDER if not name.startswith(("cli.", "__main__"))]
    assert drawn == [f"`{name}`" for name in ours]


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_upwards(name: str) -> None:
    ours = {i.removeprefix("mcspex_cli.") for i in imports(SOURCES[name])} & set(ORDER)
    below = {i for i in ours if ORDER.index(i) >= ORDER.index(name)}
    assert not below


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("soundfile", {"audio", "integrity", "formats"}),
        ("soxr", {"audio"}),
        ("safetensors", {"checkpoint.weights", "extraction.profile"}),
        ("huggingface_hub", {f"checkpoint.{n}" for n in ("troubles", "cache", "hub", "cards")}),
        ("torchaudio", set()),
        ("jinja2", {"evaluation.gallery"}),
        ("onnx", set()),
        ("onnxscript", set()),
        ("onnxruntime", {"extraction.onnx_runtime"}),
        ("openvino", {"extraction.openvino_runtime"}),
        ("rich", {"cli.console"}),
        ("click", {"__main__", *(n for n in ORDER if n.startswith("cli."))}),
    ],
)
def test_a_resource_has_one_owner(package: str, owners: set[str]) -> None:
    users = {
        name
        for name, path in SOURCES.items()
        if any(i.split(".")[0] == package for i in imports(path))
    }
    assert users <= owners


WITHOUT_TORCH = ["errors", "audio", "extraction.jobs", "extraction.opening", "__main__"]
WITHOUT_TORCH += [f"extraction.{n}" for n in ("engine", "graph_runtime", "files", "voices")]
WITHOUT_TORCH += [name for name in ORDER if name.startswith(("checkpoint.", "diagnosis.", "cli."))]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_torch_waits_until_it_is_needed(name: str) -> None:
    assert not any(i.split(".")[0] == "torch" for i in imports(SOURCES[name], top_level=True))


@pytest.mark.parametrize("name", ORDER)
def test_files_and_functions_are_short_and_documented(name: str) -> None:
    text = SOURCES[name].read_text()
    assert text.count("\n") <= 300
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 40, f"{node.name}: {lines} lines"
            if not node.name.startswith("__"):
                assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def test_public_names_are_there() -> None:
    for name in mcspex_cli.__all__:
        assert getattr(mcspex_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mcspex_cli.nonsense


def test_every_error_is_drawn() -> None:
    from mcspex_cli import errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert f"{name} " in (errors.__doc__ or "")


def test_the_changelogs_newest_version_is_the_packages() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert next(v for v in versions if v != "Unreleased") == mcspex_cli.__version__


def test_weights_stay_small_and_have_cards_with_licences() -> None:
    assert DEFAULT_MODEL in bundled()
    sizes = [p.stat().st_size for p in (ROOT / "weights").rglob("*") if p.is_file()]
    assert sum(sizes) < 80 * 2**20
    for folder in bundled().values():
        card = (folder / "README.md").read_text()
        for word in ("CC BY 4.0", "LibriSpeech", "speechocean762", "AN4", "Voice Conversion"):
            assert word in card
        assert json.loads((folder / "config.json").read_text())["sha256"] in card


@pytest.mark.parametrize(
    "tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
)
def test_the_code_passes_its_linters(tool: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True)
    return next(folder.glob("mcspex-*.whl"))


def test_the_wheel_carries_code_types_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "mcspex_cli/py.typed" in names
    assert {f"mcspex_cli/evaluation/gallery.{kind}" for kind in ("html", "css", "js")} <= names
    assert f"mcspex_cli/weights/{DEFAULT_MODEL}/model.safetensors" in names
    assert not any(n.startswith(("tests/", "examples/", "docs/", "benchmarks/")) for n in names)
    assert wheel.stat().st_size < 60 * 2**20


def test_the_installed_wheel_does_the_main_job_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    for name in ("mixture", "reference"):
        (work / f"{name}.flac").write_bytes((EXAMPLES / f"{name}.flac").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [str(site / "bin" / "mcspex"), "extract", "mixture.flac", "--ref", "reference.flac"]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = mcspex_cli.read_audio
    truth = read(EXAMPLES / "truth.flac", 8000)
    before = si_sdr(read(EXAMPLES / "mixture.flac", 8000), truth)
    assert si_sdr(read(work / "mixture.target.wav", 8000), truth) >= before + 5
