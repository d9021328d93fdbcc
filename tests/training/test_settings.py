"""The TOML of a training run."""

from __future__ import annotations

import json
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
    settings = read(
        tmp_path,
        DATA + 'validation = "/dev.csv"\n[optimiser]\nminutes = 3\n'
        '[mixtures]\nsnr_db = [0, 1.0]\nspeakers_csv = ["a.csv", "b.csv"]\n'
        'room_folder = "../rooms"',
    )
    assert settings.optimiser.minutes == 3.0
    assert settings.mixtures.snr_db == (0.0, 1.0)
    assert settings.data.train == (tmp_path / "speech",)
    assert settings.data.validation == Path("/dev.csv")
    assert settings.mixtures.speakers_csv == (tmp_path / "a.csv", tmp_path / "b.csv")
    assert settings.mixtures.room_folder == tmp_path / ".." / "rooms"
    assert settings.mixtures.noise_folder is None
    assert settings.run.out == tmp_path / "runs" / "mcspex"


def test_a_network_to_start_from_is_a_folder_beside_the_file_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    here, named = (
        read(tmp_path, DATA + f'[model]\nstart_from = "{name}"').model.start_from
        for name in ("mine", "mcspex-16k")
    )
    assert (here, named) == (str(tmp_path / "mine"), "mcspex-16k")


def test_a_checkpoint_is_told_no_folders(tmp_path: Path) -> None:
    text = '[mixtures]\nnoise_folder = "secret/musan"\nspeakers_csv = ["secret/who.csv"]'
    kept = json.loads(json.dumps(read(tmp_path, DATA + text).mixtures.to_dict()))
    assert (kept["noise_folder"], kept["speakers_csv"]) == ("musan", ["who.csv"])
    assert (kept["room_folder"], kept["snr_db"]) == (None, [-5.0, 5.0])


def test_the_shipped_examples_are_valid() -> None:
    for name in ("train.toml", "libri2mix.toml"):
        assert TrainSettings.read(EXAMPLES / name).data.train
    assert TrainSettings.read_mixtures(EXAMPLES / "noisy.toml").noise == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "is not TOML"),
        ("a = " + 100_000 * "[", "is not TOML"),
        ("a = " + 5_000 * "9", "is not TOML"),
        ("\ufeff[dada]\n", r"there is no table \[dada\]"),
        ("[dada]\n", r"there is no table \[dada\]. Tables: model, data, mixtures, optimiser, run"),
        ("data = 3", r"data must be a table, \[data\]"),
        ("[data]\ntrain = [3]", r"train = \[3\] must be a list of paths in brackets"),
        ('[data]\ntrain = [""]', r"train = \[\"\"\] must be a list of paths in brackets"),
        ("", "train must name one or more folders of speakers"),
        ('[data]\ntrain = ["a"]\nmixing = "x"', 'mixing = "x" must be one of drawn, given'),
        (
            '[data]\ntrain = ["a"]\nmixing = "given"\n[mixtures]\nspeed = [0.9, 1.1]',
            r'\[mixtures\] speed cannot be set where \[data\] mixing is "given"',
        ),
    ],
)
def test_a_mistake_in_the_tables_or_the_data_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=r"train.toml: .*" + message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("model", "colour = 1", r"\[model\] has no key colour. Keys: system, size"),
        ("model", 'consm = "x"', r'\[model\] consm = "x" must be one of '),
        ("model", 'system = "x"', r'\[model\] system = "x" must be one of mcspex, spexplus'),
        ("model", 'size = "x"', 'size = "x" must be one of base, small, mini, tiny'),
        ("model", "sample_rate_hz = 1", "= 1 must be a whole number, from 4000 to 192000"),
        ("model", "width = 0.5", "width = 0.5 must be a number, from 1 to 8"),
        ("model", "stacks = 0", "stacks = 0 must be a whole number, from 1 to 64"),
        ("model", "sample_rate_hz = 8e3", "= 8000.0 must be a whole number, from 4000 to 192000"),
        ("optimiser", 'batch = "8"', r'\[optimiser\] batch = "8" must be a whole number, from 2'),
        ("optimiser", "batch = 1", "batch = 1 must be a whole number, from 2 to 4096"),
        ("optimiser", "batch = 5000", "batch = 5000 must be a whole number, from 2 to 4096"),
        ("optimiser", "steps = 0", "steps = 0 must be a whole number, from 1 to"),
        ("optimiser", "learning_rate = 0", "learning_rate = 0 must be a number, from 1e-12 to 10"),
        ("optimiser", "decay_share = 2", "decay_share = 2 must be a number, from 0 to 1"),
        ("optimiser", "average = 2.0", "average = 2.0 must be a number, from 0 to 0.999999"),
        ("optimiser", "clip_norm = nan", "clip_norm = NaN must be a number, from 1e-09"),
        ("run", "compile = 1", r"\[run\] compile = 1 must be true or false"),
        ("run", "out = 3", r"\[run\] out = 3 must be a path in quotes"),
        ("run", 'precision = "x"', 'precision = "x" must be one of float32, bfloat16'),
        ("run", "log_every_steps = 0", "log_every_steps = 0 must be a whole number, from 1 to"),
        ("run", "seed = -1", "seed = -1 must be a whole number, from 0 to"),
        ("mixtures", "snr_db = 3", r"snr_db = 3 must be two rising numbers in brackets, from -100"),
        ("mixtures", 'snr_db = ["a", 1]', r'snr_db = \["a", 1\] must be two rising numbers'),
        ("mixtures", "snr_db = [1, 2, 3]", "snr_db = .* must be two rising numbers"),
        ("mixtures", "snr_db = [5, -5]", "snr_db = .* must be two rising numbers"),
        ("mixtures", "snr_db = [nan, 5]", r"snr_db = \[NaN, 5\] must be two rising numbers"),
        ("mixtures", "segment_s = 0.1", "segment_s = 0.1 must be a number, from 0.5 to 600"),
        ("mixtures", "reference_s = [0.1, 3]", "must be two rising numbers .*, from 0.5 to 600"),
        ("mixtures", "reference_lengths = 0", "= 0 must be a whole number, from 1 to 64"),
        ("mixtures", "mixtures_per_reference = 3", "batch must be a multiple .* which is 3"),
        ("mixtures", "noise = 1.5", "noise = 1.5 must be a number, from 0 to 1"),
        ("mixtures", "absent = nan", "absent = NaN must be a number, from 0 to 1"),
        ("mixtures", "speed = [0.1, 1.0]", "speed = .* must be two rising numbers .*, from 0.5"),
        (
            "mixtures",
            'noise_kinds = ["loud"]',
            "noise_kinds = .* must be a list of one or more of white, ",
        ),
        (
            "mixtures",
            "noise_kinds = []",
            "noise_kinds = .* must be a list of one or more of white, ",
        ),
        ("mixtures", 'noise_kinds = "pink"', "noise_kinds = .* must be a list of one or more of"),
        ("mixtures", "noise_folder = 3", "noise_folder = 3 must be a path in quotes"),
        ("mixtures", "same_sex = 0.5", "same_sex needs to know the speakers. Add speakers_csv"),
        ("mixtures", "absent = 1", "absent = 1 leaves no target to learn from. Lower it."),
        (
            "mixtures",
            "band_hz = [100, 300]\nband_from_hz = [300, 4000]",
            "band_from_hz is where a narrow band begins, and band_hz where it ends. Lower",
        ),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(
    tmp_path: Path, table: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=r"train.toml: .*" + message):
        read(tmp_path, f"{DATA}[{table}]\n{text}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: no such file"):
        TrainSettings.read(tmp_path / "none.toml")


def test_the_mixtures_of_a_file_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "noisy.toml"
    path.write_text("[mixtures]\nnoise = 0.5\n[whatever]\nx = 1\n")
    assert TrainSettings.read_mixtures(path).noise == 0.5
    path.write_text("[mixtures]\nnoise = 5\n")
    with pytest.raises(ConfigError, match="noise = 5 must be a number, from 0 to 1"):
        TrainSettings.read_mixtures(path)
    path.write_text("[mixture]\nnoise = 0.5\n")
    with pytest.raises(ConfigError, match=r"has no table \[mixtures\], so it does not say"):
        TrainSettings.read_mixtures(path)
    path.write_text("")
    assert TrainSettings.read_mixtures(path) == MixtureSettings()
