"""The TOML of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcspex_cli.errors import ConfigError
from mcspex_cli.training.settings import MixtureSettings, TrainSettings
from tests.conftest import EXAMPLES

DATA = '[data]\ntrain = ["speech"]\n'


def read(folder: Path, text: str) -> TrainSettings:
    path = folder / "train.toml"
    path.write_text(text)
    return TrainSettings.read(path)


def test_values_defaults_and_paths(tmp_path: Path) -> None:
    settings = read(tmp_path, DATA + "[optimiser]\nminutes = 3\n[mixtures]\nsnr_db = [0.0, 1.0]")
    assert settings.optimiser.minutes == 3.0
    assert settings.mixtures.snr_db == (0.0, 1.0)
    assert settings.model.system == "mcspex"
    assert settings.resolve("speech") == tmp_path / "speech"
    assert settings.resolve("/speech") == Path("/speech")


def test_the_shipped_example_is_valid() -> None:
    assert TrainSettings.read(EXAMPLES / "train.toml").data.train


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "not TOML"),
        ("[dada]\n", r"\[dada\] is unknown. Tables: model, data"),
        ("data = 3", r"data must be a table, \[data\]"),
        (DATA + "[model]\ncolour = 1", r"\[model\] colour is unknown. Keys: system"),
        (DATA + '[optimiser]\nbatch = "8"', r"\[optimiser\] batch = '8' must be a int"),
        (DATA + "[run]\ncompile = 1", r"\[run\] compile = 1 must be a bool"),
        (DATA + "[mixtures]\nsnr_db = 3", r"\[mixtures\] snr_db = 3 must be a list"),
        (DATA + '[mixtures]\nsnr_db = ["a", 1]', r"\[mixtures\] snr_db must be two numbers"),
        (DATA + "[mixtures]\nsnr_db = [5, -5]", r"\[mixtures\] snr_db must be two numbers, rising"),
        (DATA + "[mixtures]\nsegment_s = 0.1", r"segment_s must be from 0.5 to"),
        (DATA + "[mixtures]\nreference_s = [0.1, 3]", r"reference_s must be .* from 0.5 to 600"),
        (DATA + "[mixtures]\nnoise = 1.5", r"noise must be a probability, from 0 to 1"),
        (DATA + "[mixtures]\nabsent = nan", r"absent must be a probability"),
        (DATA + "[mixtures]\nspeed = [0.1, 1.0]", r"speed must be .* from 0.5 to 2"),
        (DATA + '[mixtures]\nnoise_kinds = ["loud"]', r"noise_kinds must be of white, pink"),
        (DATA + "[mixtures]\nnoise_kinds = []", r"noise_kinds must be of white, pink"),
        (DATA + '[model]\nconsm = "x"', "consm must be one of steady, listening"),
        (
            '[data]\ntrain = ["a"]\nmixing = "given"\n[mixtures]\nspeed = [0.9, 1.1]',
            "speed changes",
        ),
        ('[data]\ntrain = ["a"]\nmixing = "x"', "mixing must be one of drawn, given"),
        (DATA + '[model]\nsystem = "x"', "system must be one of mcspex, spexplus"),
        (DATA + '[model]\nsize = "x"', "size must be one of base, small, mini, tiny"),
        (DATA + "[model]\nsample_rate_hz = 1", "sample_rate_hz must be from 4000 to 192000"),
        (DATA + '[run]\nprecision = "x"', "precision must be one of float32, bfloat16"),
        (DATA + "[optimiser]\nsteps = 0", "steps must be from 1 to"),
        (DATA + "[optimiser]\nbatch = 1", "batch must be from 2 to"),
        (DATA + "[optimiser]\nlearning_rate = 0", "learning_rate must be from 1e-12 to 10"),
        (DATA + "[optimiser]\ndecay_share = 2", "decay_share must be from 0 to 1"),
        (DATA + "[mixtures]\nsnr_db = [nan, 5]", "snr_db must be two numbers, rising"),
        (DATA + "[run]\nlog_every_steps = 0", "log_every_steps must be from 1 to"),
        (DATA + "[run]\nseed = -1", "seed must be from 0 to"),
        (DATA + "[optimiser]\naverage = 2.0", "average must be from 0 to 0.999999"),
        (DATA + "[optimiser]\nclip_norm = nan", "clip_norm must be from"),
        ("[data]\ntrain = [3]", "train must name folders"),
        ("", "train must name folders"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        TrainSettings.read(tmp_path / "none.toml")


def test_the_mixtures_of_a_file_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "noisy.toml"
    path.write_text("[mixtures]\nnoise = 0.5\n[whatever]\nx = 1\n")
    assert TrainSettings.read_mixtures(path).noise == 0.5
    path.write_text("[mixtures]\nnoise = 5\n")
    with pytest.raises(ConfigError, match="noise must be a probability"):
        TrainSettings.read_mixtures(path)
    path.write_text("")
    assert TrainSettings.read_mixtures(path) == MixtureSettings()
