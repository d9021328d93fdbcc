"""Shared fixtures: synthetic talkers, a tiny checkpoint, and where the speech corpus lies."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import find_checkpoint, save_checkpoint
from mcspex_cli.extraction.onnx import place
from mcspex_cli.extraction.presence import Calibration
from mcspex_cli.extraction.runtime import choose_precision
from mcspex_cli.model.config import sized
from tests.hub import Hub

if TYPE_CHECKING:  # the process that only hands out the tests imports no torch
    from mcspex_cli.model.systems import System

RATE_HZ = 8000
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the speech corpus is not here")


LONGEST = (
    *("test_examples.py", "test_batch.py", "test_backends.py", "test_models.py", "test_serve.py"),
    *("test_package.py", "test_runtimes.py", "test_trainer.py", "test_calibration.py"),
    *("test_agreement.py", "test_benchmarks.py", "test_distributed.py", "test_growth.py"),
    *("test_memory.py",),
)
"""The files whose tests take longest, or are few and take long, longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process waits for one at the end.

    Of the others, files with many tests come first.
    """
    tests = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), -tests[item.path]))


def auto_precision() -> str:
    """The precision that these tests have unless they ask for one."""
    import torch

    return choose_precision("auto", torch.device("cpu"))


def buzz(pitch_hz: float, seconds: float, seed: int = 0) -> audio.Samples:
    """A voice-like sound [sample]: harmonics of a wavering pitch, in syllables, not silent."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * pitch_hz * (t + 0.002 * np.sin(2 * np.pi * 3 * t + rng.uniform(0, 6)))
    tone = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 12))
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 4) * t + rng.uniform(0, 6))
    return (0.15 * tone * syllables).astype(np.float32)


def calibration(size: int, **changed: Any) -> Calibration:
    """A calibration about 0 that is 73 to 95 % sure of any voice, by its similarity alone."""
    zeros, weights = (0.0,) * size, ((1.0, 0.0, 0.0, 2.0), (1.0, 0.0))
    thresholds = 0.5, 0.5, 0.25, 9.0, -2.0, -2.0
    return replace(Calibration(zeros, (), (*zeros, 0.0), *weights, *thresholds), **changed)


@pytest.fixture(autouse=True)
def _alike(monkeypatch: pytest.MonkeyPatch, no_cache: Path) -> None:
    """The same arithmetic on every machine; one thread is fastest for systems this tiny."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("MCSPEX_CACHE", str(no_cache))


@pytest.fixture(scope="session")
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which nothing is prepared."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["mcspex", "spexplus"])
def tiny(request: pytest.FixtureRequest) -> System:
    """A tiny system of each kind with random weights, ready to extract."""
    import torch

    from mcspex_cli.model.systems import build

    torch.manual_seed(1)
    return build(sized(request.param, "tiny", RATE_HZ, 4)).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MC-SpEx checkpoint with random weights, and half of the usual blocks."""
    import torch

    from mcspex_cli.model.systems import build

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    system = build(replace(sized("mcspex", "tiny", RATE_HZ, 4), blocks=2))
    for stack in system.extractor.stacks:  # untrained, it would follow every voice alike
        torch.nn.init.normal_(stack.condition.modulate.weight)
    save_checkpoint(folder, system, {"made by": "a test"})
    return folder


@pytest.fixture(scope="session")
def for_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def exported(tiny_folder: Path, for_all: Path) -> Path:
    """The tiny model as the command exports it, with a card.

    Processes that tests start are ready soonest with it, since it needs no torch.
    """
    folder = for_all / "exported"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            shutil.copytree(tiny_folder, folder / "tiny")
            (folder / "tiny" / "README.md").write_text("# Mine\n")
            words = ["models", "export", str(folder / "tiny"), "-o", str(folder / "onnx")]
            done = CliRunner().invoke(main, [*words, "--to", "onnx"])
            assert done.exit_code == 0, done.output
            assert done.stdout == ""
            assert done.stderr.startswith(f"{folder / 'onnx'}  (tiny as ONNX, ")
            assert done.stderr.count("\n") == 1
    return folder / "onnx"


@pytest.fixture(scope="session")
def prepared(tiny_folder: Path, exported: Path, for_all: Path) -> Path:
    """A cache that has the graphs of `tiny_folder`."""
    folder = for_all / "prepared"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCSPEX_CACHE", str(folder))
        if not (graphs := place(find_checkpoint(tiny_folder))).exists():
            shutil.copytree(exported, graphs, ignore=shutil.ignore_patterns("*.md", "config.json"))
    return folder


@pytest.fixture
def warnings(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Gives the warnings that were shown since it was called last."""

    def read() -> list[str]:
        lines = capsys.readouterr().err.splitlines()
        return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]

    return read


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A folder with mixture.wav, reference.wav and truth.wav, 2 s at 8 kHz."""
    target, other = buzz(110, 2, 1), buzz(190, 2, 2)
    audio.write(tmp_path / "mixture.wav", target + other, RATE_HZ)
    audio.write(tmp_path / "truth.wav", target, RATE_HZ)
    audio.write(tmp_path / "reference.wav", buzz(110, 2, 3), RATE_HZ)
    return tmp_path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three talkers with three utterances each, the second's named like the first's."""
    folder = tmp_path / "speech"
    for talker, (pitch_hz, names) in {
        "ann": (200.0, "abc"),
        "bob": (100.0, "abd"),
        "cyn": (150.0, "efg"),
    }.items():
        (folder / talker).mkdir(parents=True)
        for seed, name in enumerate(names):
            sound = buzz(pitch_hz, 1.0 + 0.2 * seed, seed)
            audio.write(folder / talker / f"{name}.flac", sound, RATE_HZ)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of our own, which the real client asks instead of the world's, with an empty cache."""
    from huggingface_hub import close_session, constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_HUB_ETAG_TIMEOUT": 1,
            "HF_HUB_DOWNLOAD_TIMEOUT": 1,
            "DOWNLOAD_CHUNK_SIZE": 2**14,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        yield server
        close_session()


def speak(path: Path, utterance: str, seconds: float, gain: float = 1.0) -> audio.Samples:
    """Write an utterance SPEAKER-CHAPTER-NUMBER, the pitch by the speaker; give it back."""
    speaker, _, number = (int(part) for part in utterance.split("-"))
    sound = gain * buzz(90 + speaker % 97, seconds, speaker + number)
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, sound, RATE_HZ)
    return sound


LIBRIMIX = {
    "train-100": (
        "19-198-0001_26-495-0001",
        "26-495-0002_19-198-0002",
        "27-123-0001_19-198-0003",  # 27 says nothing else
    ),
    "dev": ("84-121123-0000_174-50561-0000", "174-50561-0001_84-121550-0000"),
    "test": (
        "4077-13754-0001_5142-33396-0065",
        "4077-13754-0004_5142-36377-0020",
        "5142-36377-0021_4077-13754-0002",
    ),
}
"""The mixtures of each set; the third of `test` is not in its metadata."""


@pytest.fixture(scope="session")
def _libri(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `librimix` and `librispeech` are copies of."""
    folder = tmp_path_factory.mktemp("libri")
    root = folder / "Libri2Mix" / "wav8k" / "min"
    for name, ids in LIBRIMIX.items():
        for number, id_ in enumerate(ids):
            one, other = id_.split("_")
            seconds = 1.2 + 0.1 * number
            mixture = speak(root / name / "s1" / f"{id_}.wav", one, seconds)
            mixture = mixture + speak(root / name / "s2" / f"{id_}.wav", other, seconds, 0.6)
            (root / name / "mix_clean").mkdir(exist_ok=True)
            audio.write(root / name / "mix_clean" / f"{id_}.wav", mixture, RATE_HZ)
    rows = ["mixture_ID,mixture_path,source_1_path,source_2_path,length"]
    for id_ in LIBRIMIX["test"][:2]:
        rows.append(",".join([id_, *(f"/d/{f}/{id_}.wav" for f in ("mix_clean", "s1", "s2")), "1"]))
    (root / "metadata").mkdir()
    (root / "metadata" / "mixture_test_mix_clean.csv").write_text("\n".join(rows) + "\n")
    one, other = LIBRIMIX["test"][:2]
    (root / "test" / "map_mixture2enrollment").write_text(
        f"{one} 4077-13754-0001 s1/{other}\n"
        f"{one} 5142-33396-0065 s2/{other}\n"
        f"{other} 4077-13754-0004 s1/{one}\n"
        f"{other} 5142-36377-0020 s2/{one}\n"
    )
    names = ("84-121123-0000", "84-121123-0001", "84-121550-0000", "174-50561-0000")
    for utterance in (*names, "174-50561-0001"):
        speaker, chapter, _ = utterance.split("-")
        path = folder / "LibriSpeech" / "dev-clean" / speaker / chapter / f"{utterance}.flac"
        speak(path, utterance, 1.0)
    return folder


@pytest.fixture
def librimix(_libri: Path, tmp_path: Path) -> Path:
    """A small Libri2Mix/wav8k/min, its test set with metadata and SpeakerBeam's enrolments."""
    shutil.copytree(_libri / "Libri2Mix", tmp_path / "Libri2Mix")
    return tmp_path / "Libri2Mix" / "wav8k" / "min"


@pytest.fixture
def librispeech(_libri: Path, tmp_path: Path) -> Path:
    """A tree SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac: two speakers, one of two chapters."""
    shutil.copytree(_libri / "LibriSpeech", tmp_path / "LibriSpeech")
    return tmp_path / "LibriSpeech" / "dev-clean"


@pytest.fixture
def three_talkers(tmp_path: Path) -> Path:
    """A small Libri3Mix set of two mixtures, whose folder `s3` holds the third talkers."""
    folder = tmp_path / "Libri3Mix" / "dev"
    (folder / "mix_clean").mkdir(parents=True)
    for utterances in (("84-1-0", "174-2-0", "61-3-0"), ("174-2-1", "61-3-1", "84-1-1")):
        name = "_".join(utterances)
        talkers = [
            speak(folder / f"s{role}" / f"{name}.wav", utterance, 1.2, 0.5)
            for role, utterance in enumerate(utterances, 1)
        ]
        audio.write(folder / "mix_clean" / f"{name}.wav", np.sum(talkers, axis=0), RATE_HZ)
    return folder
