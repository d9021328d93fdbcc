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


def test_the_folder_of_a_run_is_shown_without_detours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path)
    text = DATA + '[run]\nout = "{}runs/x"'
    outs = [read(Path("examples"), text.format(up)).run.out for up in ("../", "")]
    assert outs == [Path("runs/x"), Path("examples/runs/x")]
    outside = read(Path("examples"), text.format("../../")).run.out
    assert outside == Path("examples/../../runs/x")


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
        ("data = 3", r"data is 3. Expected `object`, got `int`. See examples/train.toml."),
        ("[data]\ntrain = [3]", r"data.train\[0\] is 3. Expected a path in quotes."),
        ('[data]\ntrain = [""]', r"data.train\[0\] is ''. Expected a path in quotes."),
        ("", "train must name one or more folders of speakers"),
        ('[data]\ntrain = ["a"]\nmixing = "x"', "data.mixing is 'x'. Invalid enum value"),
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
        ("model", 'consm = "x"', r"\[model\] consm 'x' is unknown. Known: "),
        ("model", 'size = "x"', r"\[model\] size 'x' is unknown. Known: base, small, mini, tiny"),
        ("model", "sample_rate_hz = 8e3", "sample_rate_hz is 8000.0. Expected `int`, got `float`"),
        ("optimiser", 'batch = "8"', "optimiser.batch is '8'. Expected `int`, got `str`"),
        ("optimiser", "batch = 1", "optimiser.batch is 1. Expected `int` >= 2"),
        ("optimiser", "clip_norm = nan", "clip_norm is nan. Expected `float` >= 1e-09"),
        ("run", "compile = 1", "run.compile is 1. Expected `bool`, got `int`"),
        ("run", "out = 3", "run.out is 3. Expected a path in quotes."),
        ("run", 'out = "a\\u0000"', "Expected a path in quotes."),
        ("run", 'out = "~/a"', "run.out is '~/a'. Expected a path on this disk, written out."),
        ("run", "seed = -1", "run.seed is -1. Expected `int` >= 0"),
        ("mixtures", "snr_db = 3", "mixtures.snr_db is 3. Expected `array`, got `int`"),
        ("mixtures", "snr_db = [5, -5]", r"\[mixtures\] snr_db must be two rising numbers"),
        ("mixtures", "snr_db = [nan, 5]", r"mixtures.snr_db\[0\] is nan. Expected `float` >= -100"),
        ("mixtures", "mixtures_per_reference = 3", "batch must be a multiple .* which is 3"),
        ("mixtures", "noise = 1.5", "mixtures.noise is 1.5. Expected `float` <= 1"),
        ("mixtures", 'noise_kinds = ["loud"]', r"noise_kinds\[0\] is 'loud'. Invalid enum value"),
        ("mixtures", "noise_kinds = []", r"noise_kinds is \[\]. Expected `array` of length >= 1"),
        ("mixtures", "same_sex = 0.5", "same_sex needs to know the speakers. Add speakers_csv"),
        ("model", 'start_from = "x"\nsize = "mini"', "size is for a new network. Leave it out"),
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


@pytest.mark.parametrize("kind", ["noise", "room"])
def test_a_folder_that_is_not_used_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    text = f'[mixtures]\n{kind}_folder = "x"\n'
    read(tmp_path, f"{DATA}{text}reference_{kind} = 0.1")
    assert not caplog.messages
    read(tmp_path, DATA + text)
    TrainSettings.read_mixtures(tmp_path / "train.toml")
    words = f"[mixtures] {kind}_folder is not used, because {kind} and reference_{kind} are 0. Set"
    assert [words in message for message in caplog.messages] == [True, True]


def test_minutes_do_not_go_with_a_decay_in_minutes(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(f"{DATA}[optimiser]\ndecay_minutes = 5")
    assert TrainSettings.read(path).optimiser.decay_minutes == 5
    with pytest.raises(
        ConfigError, match=r"decay_minutes and --minutes both say when this run ends\. Leave"
    ):
        TrainSettings.read(path, minutes=1.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: no such file"):
        TrainSettings.read(tmp_path / "none.toml")


def test_the_mixtures_of_a_file_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "noisy.toml"
    path.write_text("[mixtures]\nnoise = 0.5\n[whatever]\nx = 1\n")
    assert TrainSettings.read_mixtures(path).noise == 0.5
    path.write_text("[mixtures]\nnoise = 5\n")
    with pytest.raises(ConfigError, match=r"mixtures.noise is 5. Expected `float` <= 1"):
        TrainSettings.read_mixtures(path)
    path.write_text("[mixture]\nnoise = 0.5\n")
    with pytest.raises(ConfigError, match=r"has no table \[mixtures\], so it does not say"):
        TrainSettings.read_mixtures(path)
    path.write_text("")
    assert TrainSettings.read_mixtures(path) == MixtureSettings()
