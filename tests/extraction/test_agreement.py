"""The bundled model on real sounds: what makes it quick changes nothing that one could hear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mcspex_cli import audio, si_sdr
from mcspex_cli.audio import Samples
from mcspex_cli.checkpoint.checkpoint import load_checkpoint
from mcspex_cli.extraction.engine import Engine, to_level
from mcspex_cli.extraction.runtime import EngineSettings, has_quick_bfloat16
from mcspex_cli.model.systems import System
from tests.conftest import EXAMPLES

Case = tuple[Samples, Samples, Samples]
RATE_HZ = 16000
WHOLE_S = 1e6

bfloat16 = pytest.mark.skipif(
    not has_quick_bfloat16(), reason="this CPU emulates bfloat16, which takes minutes"
)


@pytest.fixture(scope="module")
def system() -> System:
    return load_checkpoint("mcspex-16k")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Mixture, reference and truth of all examples."""
    folder = EXAMPLES / "set"

    def read(path: Path) -> Samples:
        return audio.read(path, RATE_HZ)

    return [
        (read(path), read(reference(path)), read(folder / "truth" / path.name))
        for path in sorted((folder / "mixtures").glob("*.flac"))
    ]


def reference(mixture: Path) -> Path:
    folder = mixture.parents[1] / "references"
    return folder / f"{mixture.stem.partition('_')[0]}.flac"


def engine(system: System, precision: str = "float32", window_s: float = WHOLE_S) -> Engine:
    return Engine(system, EngineSettings("cpu", precision, window_s, passes=1))


def extracted(engine: Engine, case: Case) -> Samples:
    return engine.extract(case[0], engine.embed([case[1]]))


@bfloat16
def test_bfloat16_loses_nothing(system: System, cases: list[Case]) -> None:
    scores = {}
    for precision in ("float32", "bfloat16"):
        ready = engine(system, precision)
        scores[precision] = [si_sdr(extracted(ready, case), case[2]) for case in cases]
    lost = np.subtract(scores["float32"], scores["bfloat16"])
    assert len(lost) == 6
    assert np.mean(lost) < 0.05
    assert np.abs(lost).max() < 0.2


@torch.inference_mode()
def test_folding_loses_nothing(system: System, cases: list[Case]) -> None:
    folded = engine(system)
    for case in cases[::3]:
        mixture, reference, _ = (torch.from_numpy(sound * to_level(sound))[None] for sound in case)
        expected = system.extract(mixture, system.embed(reference))[0].numpy()
        assert si_sdr(extracted(folded, case), expected) > 80


def test_windows_lose_nothing(system: System, cases: list[Case]) -> None:
    one, other = cases[0], cases[1]
    times = 5
    mixture, truth = (np.concatenate([one[i], other[i]] * times) for i in (0, 2))
    assert len(mixture) > 3 * RATE_HZ * EngineSettings().window_s / 2
    case = (mixture, one[1], truth)
    whole = extracted(engine(system), case)
    cut = extracted(engine(system, window_s=EngineSettings().window_s), case)
    assert si_sdr(cut, whole) > 15  # each window has norms of its own
    assert si_sdr(cut, truth) > si_sdr(whole, truth) - 0.3
