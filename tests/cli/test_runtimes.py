"""`mcspex models export`, and --runtime wherever it is."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mcspex_cli import Extractor, audio
from mcspex_cli.__main__ import main
from mcspex_cli.batch.journal import Journal
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import install_extra
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction import onnx as graphs
from tests.conftest import RATE_HZ, ROOT, buzz

GRAPHS = {"embed.onnx", "extract.onnx", "graphs.json"}


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def cached(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, with the tiny model prepared in it."""
    monkeypatch.setenv("MCSPEX_CACHE", str(prepared))
    return prepared


def mcspex(*words: object, hook: str = "", code: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with code before and after it."""
    script = f"""
import sys
{hook}
from mcspex_cli.__main__ import main
try:
    main({[str(w) for w in words]!r})
finally:
    {code or "pass"}
"""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


WITHOUT = """
from importlib import util
find = util.find_spec
util.find_spec = lambda name, package=None: None if name in {} else find(name, package)
"""


# --- export ---------------------------------------------------------------------------------


def test_an_export_has_all_that_others_need(exported: Path) -> None:
    assert names(exported) == GRAPHS | {"config.json", "README.md"}
    assert names(exported.parent) == {"tiny", "onnx"}
    config = (exported.parent / "tiny" / "config.json").read_bytes()
    assert (exported / "config.json").read_bytes() == config
    assert (exported / "README.md").read_text() == "# Mine\n"
    assert run("models", "verify", exported).stdout == "onnx: good, compared with its config\n"
    assert "MC-SpEx, ONNX, for --runtime" in run("models", "show", exported).stdout


def test_the_documented_script_extracts_a_voice_without_mcspex(
    exported: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    Path("mcspex-onnx").symlink_to(exported)
    page = (ROOT / "docs" / "models.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert "mcspex_cli" not in script and "torch" not in script
    (scene / "script.py").write_text(script)
    runpy.run_path("script.py")
    mixture, voice = (audio.read(scene / f"{n}.wav", RATE_HZ) for n in ("mixture", "voice"))
    assert len(voice) == len(mixture)
    assert 0 < np.square(voice).sum() < np.square(mixture).sum()  # a part of it


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        (
            "out",
            ("--overwrite",),
            "is there, and not part of an mcspex model. Name another folder.",
        ),
        (
            ".",
            ("--overwrite",),
            ".: is the current folder, or a folder above it. Name another folder.",
        ),
        ("other", ("--overwrite",), "other: has the weights of another model. Name another -o."),
        ("other", (), "other: has a model. Name another folder, or add --overwrite."),
        ("file", (), "file: is a file. Name a folder."),
    ],
)
def test_an_export_harms_nothing(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: tuple[str, ...],
    said: str,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("precious")
    (tmp_path / "file").touch()
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "sha256": 64 * "0"}))
    monkeypatch.chdir(tmp_path)
    done = run("models", "export", tiny_folder, "-o", name, *words)
    assert done.exit_code == 1
    assert done.stderr.endswith(f"{said}\n")
    assert names(tmp_path) == {"out", "other", "file"}
    assert names(tmp_path / "out") == {"model.safetensors"}
    assert names(other) == names(tiny_folder)


def test_graphs_can_lie_beside_their_weights(
    exported: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcspex_cli.extraction import onnx as exporting

    def export(_: object, __: object, folder: Path) -> None:
        for name in GRAPHS:
            shutil.copyfile(exported / name, folder / name)

    monkeypatch.setattr(exporting, "export", export)
    monkeypatch.chdir(scene)
    shutil.copytree(exported.parent / "tiny", scene / "tiny")
    assert run("models", "export", "tiny", "-o", "tiny", "--overwrite").exit_code == 0
    assert names(scene / "tiny") == GRAPHS | {"config.json", "model.safetensors", "README.md"}
    words = ("extract", "mixture.wav", "--ref", "reference.wav", "--overwrite", "--json")
    for name in ("torch", "onnx"):
        done = run(*words, "--model", "tiny", "--runtime", name)
        assert json.loads(done.stdout)["runtime"] == name, done.output


def test_an_extra_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("models", "export", "mcspex-16k", "-o", "out")
    done = mcspex(*words, hook=WITHOUT.format(["onnx", "onnxscript"]))
    said = f"error: onnx: onnx, onnxscript are not installed. {install_extra('onnx')}\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not names(tmp_path)


# --- extract --------------------------------------------------------------------------------


def extract(*words: object) -> Result:
    return run("extract", "mixture.wav", "--ref", "reference.wav", "--overwrite", *words)


def test_every_runtime_gives_torchs_estimate(
    scene: Path, tiny_folder: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    made = {}
    for runtime in ("torch", "onnx"):
        done = extract("--model", tiny_folder, "--runtime", runtime, "--precision", "float32",
                       "--subtype", "FLOAT", "-o", "out.wav", "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
        row = json.loads(done.stdout)
        assert (row["runtime"], row["device"], row["precision"]) == (runtime, "cpu", "float32")
        made[runtime] = audio.read(Path("out.wav"), RATE_HZ)
    assert si_sdr(made["onnx"], made["torch"]) > 80
    told = extract("--model", tiny_folder, "--runtime", "onnx", "-v").stderr
    assert ", onnx, gain" in told


def test_a_prepared_model_needs_no_torch(
    scene: Path, tiny_folder: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    for name in ("onnx", "auto"):
        done = mcspex(
            "extract", "mixture.wav", "--ref", "reference.wav", "--model", tiny_folder,
            "--runtime", name, "--overwrite", "-q",
            hook="class No:\n def find_spec(self, name, *_):\n"
                 "  assert name.split('.')[0] not in {'torch', 'torchaudio', 'onnxscript'}, name\n"
                 "sys.meta_path.insert(0, No())",
            code="assert 'torch' not in sys.modules",
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


def test_a_model_is_prepared_once(
    scene: Path, tiny_folder: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcspex_cli.extraction import onnx as exporting

    info = find_checkpoint(tiny_folder)
    monkeypatch.setenv("MCSPEX_CACHE", str(prepared))
    good = graphs.place(info)
    monkeypatch.setenv("MCSPEX_CACHE", str(scene / "cache"))

    def export(_: object, __: object, folder: Path) -> None:
        for name in GRAPHS:
            shutil.copyfile(good / name, folder / name)

    monkeypatch.setattr(exporting, "export", export)
    monkeypatch.chdir(scene)
    first, second = (extract("--model", tiny_folder, "--runtime", "onnx") for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stderr.startswith("tiny: making graphs for onnx, which is done once ...\n")
    assert second.stderr.startswith("mixture.target.wav  (2.0 s in ")
    assert names(scene / "cache" / "graphs") == {graphs.fingerprint(info)}
    (graphs.place(info) / "embed.onnx").write_bytes(b"damaged")
    assert "making graphs" in extract("--model", tiny_folder, "--runtime", "onnx").stderr
    assert graphs.find(info) == graphs.place(info)


def test_an_exported_folder_is_a_model_without_weights(
    scene: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    row = json.loads(extract("--model", exported, "--json").stdout)
    assert (row["runtime"], row["model"]) == ("onnx", "onnx")
    words = ("batch", "mixture.wav", "--ref", "reference.wav", "--model", exported, "-o", "out")
    assert run(*words, "--devices", "cpu").exit_code == 0
    assert json.loads(Path("out/run.json").read_text())["runtime"] == ["onnx"]
    assert Extractor.load(exported).engine.runtime.name == "onnx"
    done = extract("--model", exported, "--runtime", "torch")
    assert (done.exit_code, done.stderr) == (
        1,
        f"error: {exported}: has only graphs, which are for --runtime onnx. "
        "Name the model that was exported.\n",
    )
    damaged = Path(shutil.copytree(exported, scene / "damaged"))
    (damaged / "extract.onnx").write_bytes((exported / "extract.onnx").read_bytes()[:-1])
    done = extract("--model", damaged, "--runtime", "onnx")
    said = f"error: {damaged / 'extract.onnx'}: damaged. Export the model again.\n"
    assert (done.exit_code, done.stderr) == (1, said)
    assert "extract.onnx: damaged." in run("models", "verify", damaged).stderr


def test_a_runtime_that_is_not_installed_is_one_line(
    scene: Path, tiny_folder: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    done = mcspex(
        "extract", "mixture.wav", "--ref", "reference.wav", "--model", tiny_folder,
        "--runtime", "onnx", hook=WITHOUT.format([graphs.RUNNER]),
    )  # fmt: skip
    message = f"error: onnx: onnxruntime is not installed. {install_extra('onnx')}\n"
    assert (done.returncode, done.stderr) == (1, message)


# --- batch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "used"), [("auto", "torch"), ("onnx", "onnx")])
def test_a_batch_says_what_ran_it_and_keeps_to_it(
    scene: Path, tiny_folder: Path, cached: Path, monkeypatch: pytest.MonkeyPatch,
    asked: str, used: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(scene)
    (scene / "mix").mkdir()
    for number in range(2):
        audio.write(scene / "mix" / f"{number}.wav", buzz(100 + 50 * number, 0.6), RATE_HZ)
    words = ("batch", "mix", "--ref", "reference.wav", "--model", tiny_folder, "-o", "out")
    done = run(*words, "--runtime", asked, "--devices", "cpu")
    assert done.exit_code == 0, done.output
    assert json.loads(Path("out/run.json").read_text())["runtime"] == [used]
    done = Journal(Path("out")).results.values()
    assert [one.result()["runtime"] for lines in done for one in lines] == [used, used]
    again = run(*words, "--runtime", used, "--devices", "cpu")
    assert "2 of them before" in again.stderr
    other = run(*words, "--runtime", "torch" if used == "onnx" else "onnx", "--devices", "cpu")
    assert "was made with another model or other settings" in other.stderr


def test_several_processes_share_what_is_prepared(
    scene: Path, tiny_folder: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    (scene / "mix").mkdir()
    for number in range(4):
        audio.write(scene / "mix" / f"{number}.wav", buzz(100 + 50 * number, 0.6), RATE_HZ)
    done = run("batch", "mix", "--ref", "reference.wav", "--model", tiny_folder, "-o", "out",
               "--runtime", "onnx", "--jobs", "2")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert all(np.isfinite(audio.read(p, RATE_HZ)).all() for p in Path("out/audio").iterdir())
