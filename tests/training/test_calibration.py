"""What likenesses mean is learnt: closed forms, an ideal network, the command."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks.voices import talk
from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import (
    DEFAULT_MODEL,
    bundled,
    find_checkpoint,
    read_config,
    save_checkpoint,
    write_calibration,
)
from mcspex_cli.errors import CheckpointError, ConfigError
from mcspex_cli.extraction.engine import Engine
from mcspex_cli.extraction.presence import parse_calibration, probability
from mcspex_cli.extraction.runtime import EngineSettings, Runtime
from mcspex_cli.model.systems import build
from mcspex_cli.training import calibration as calibration_module
from mcspex_cli.training.calibration import (
    MIN_CASES,
    Calibrator,
    Case,
    Trial,
    area,
    draw_turns,
    equal_error,
    fit,
    read_cases,
)
from mcspex_cli.training.simulate import Rendering
from tests.conftest import RATE_HZ
from tests.hub import Hub

VOICES = 7


def test_a_fit_to_one_yes_or_no_is_its_log_odds() -> None:
    """80 % of those with it, 30 % of those without."""
    feature = np.repeat([1.0, 1.0, 0.0, 0.0], [80, 20, 30, 70])[:, None]
    present = np.repeat([True, False, True, False], [80, 20, 30, 70])
    slope, offset = fit(feature, present)
    assert offset == pytest.approx(np.log(0.3 / 0.7), abs=0.01)
    assert slope + offset == pytest.approx(np.log(0.8 / 0.2), abs=0.01)


def test_a_fit_is_where_no_step_makes_the_truth_likelier() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 3)) * [1, 20, 0.05] + [5, -3, 0]
    chances = 1 / (1 + np.exp(-(features @ [1, -0.05, 10] - 5)))
    present = rng.random(400) < chances
    weights = fit(features, present)

    def likelihood(weights: np.ndarray) -> float:
        odds = np.where(present, 1, -1) * (features @ weights[:-1] + weights[-1])
        penalty = np.square(weights[:-1] * features.std(axis=0)).sum()
        penalty += (weights[-1] + weights[:-1] @ features.mean(axis=0)) ** 2
        return float(-np.logaddexp(0, -odds).mean() - 1e-3 * penalty / 2)

    best = likelihood(weights)
    for part in range(4):
        for step in (0.98, 1.02):
            other = weights.copy()
            other[part] *= step
            assert likelihood(other) < best


def test_cases_without_error_have_finite_weights() -> None:
    features = np.column_stack([np.r_[np.zeros(30), np.ones(30)], np.ones(60)])
    weights = fit(features, np.arange(60) >= 30)
    assert np.isfinite(weights).all()
    assert (features @ weights[:-1] + weights[-1] > 0).tolist() == [False] * 30 + [True] * 30


def test_the_area_is_how_often_a_present_voice_is_ahead() -> None:
    assert area(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert area(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 0
    assert area(np.ones(3), np.ones(5)) == 0.5
    rng = np.random.default_rng(1)
    present, absent = rng.integers(0, 20, 50) + 3.0, rng.integers(0, 20, 70) * 1.0
    pairs = [(p > a) + (p == a) / 2 for p in present for a in absent]
    assert area(present, absent) == pytest.approx(np.mean(pairs))


def test_the_equal_error_is_where_both_wrongs_are_as_many() -> None:
    assert equal_error(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == (0, 3)
    present, absent = np.array([2.0, 5, 6, 7]), np.array([0.0, 1, 3, 4])
    rate, threshold = equal_error(present, absent)
    assert rate == pytest.approx(0.25)
    assert (present < threshold).mean() == (absent >= threshold).mean() == 0.25
    rng = np.random.default_rng(2)
    present, absent = rng.normal(2, 1, 4000), rng.normal(0, 1, 4000)
    rate, threshold = equal_error(present, absent)
    assert rate == pytest.approx(0.1587, abs=0.015)  # that of a normal deviate beyond 1
    assert threshold == pytest.approx(1, abs=0.1)


class Bands(Runtime):
    """An ideal network where every voice has a band of its own: it lets the voice's pass."""

    name, device, precision, batch = "torch", "cpu", "float32", 1
    sample_rate_hz, hop, true_level = RATE_HZ, 1, False
    inverted = False

    def embed(self, references: audio.Samples) -> audio.Samples:
        """The bands' levels."""
        bands = np.array_split(np.fft.rfft(references), VOICES, axis=-1)
        levels = [np.sqrt(np.mean(np.abs(band) ** 2, axis=-1)) for band in bands]
        return np.stack(levels, axis=-1).astype(np.float32)

    def extract(
        self, mixtures: Sequence[audio.Samples], voices: audio.Samples
    ) -> list[audio.Samples]:
        """Let a voice's band pass, and a little of the others; or, inverted, the others."""
        made = []
        for mixture, voice in zip(mixtures, voices, strict=True):
            spectrum = np.fft.rfft(mixture)
            wanted = np.repeat(voice == voice.max(), -(-len(spectrum) // VOICES))[: len(spectrum)]
            passes = np.where(wanted ^ self.inverted, 1, 0.05)
            made.append(np.fft.irfft(spectrum * passes, len(mixture)).astype(np.float32))
        return made


def sing(voice: int, seed: int, seconds: float = 1.0) -> audio.Samples:
    """Noise in a voice's band."""
    length = round(seconds * RATE_HZ)
    spectrum = np.fft.rfft(np.random.default_rng((voice, seed)).standard_normal(length))
    bands = np.array_split(np.arange(len(spectrum)), VOICES)
    other = np.ones(len(spectrum), bool)
    other[bands[voice]] = False
    spectrum[other] *= 1e-3
    return (0.1 * np.fft.irfft(spectrum, length)).astype(np.float32)


def cases(count: int = 56, voices: int = VOICES) -> Iterator[Case]:
    """Mixtures of two of some voices."""
    for k in range(count):
        one, other = k % voices, (k + 1 + k // voices % (voices - 1)) % voices
        target, interferer = sing(one, 2 * k), sing(other, 2 * k + 1)
        made = Rendering(str(k), target + interferer, target, interferer, sing(one, 999, 0.7))
        yield Case(made, f"v{one}", frozenset([f"v{other}"]))


def engine() -> Engine:
    return Engine(Bands(), EngineSettings(passes=1))


def test_an_ideal_network_is_told_without_error() -> None:
    calibrator = Calibrator(engine(), cases())
    trials = list(calibrator.trials())
    assert [trial.present for trial in trials] == [True, False] * 56
    assert not any(trial.confused for trial in trials)
    for case, asked in zip(calibrator.cases, trials[1::2], strict=True):
        assert asked.speaker not in {case.speaker, *case.others}
    made = calibrator.calibration(trials)
    assert (made.measured["recordings"], made.measured["speakers"]) == (56, VOICES)
    assert (made.measured["auc"], made.measured["equal_error_rate"]) == (1.0, 0.0)
    assert (made.measured["auc_mixtures"], made.measured["segment_auc"]) == (1.0, 1.0)
    assert made.measured["absent_taken_for_present"] == 0
    assert (made.measured["swapped"], made.measured["wrong_speaker_hits"]) == (0, None)
    presences = [probability(made.file_odds(trial.features)) for trial in trials]
    called = np.array(presences) >= made.threshold
    assert called[::2].mean() >= 0.96  # 3 % may be lost
    assert not called[1::2].any()
    assert made.mute_threshold <= made.segment_threshold
    assert (made.same_voice_parts, made.same_voice_clips) == (-1, -1)  # they are too short
    centre = np.mean([engine().embed([sing(k, 999, 0.7)]) for k in range(VOICES)], axis=0)
    assert made.centre == pytest.approx(centre.tolist(), abs=1e-4)


def test_the_same_seed_gives_the_same_calibration() -> None:
    made = [
        (calibrator := Calibrator(engine(), cases(), seed)).calibration(list(calibrator.trials()))
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]


def test_a_network_that_follows_nobody_is_no_use() -> None:
    inverted = engine()
    inverted.runtime.inverted = True
    calibrator = Calibrator(inverted, cases())
    trials = list(calibrator.trials())
    assert all(trial.confused for trial in trials[::2])
    with pytest.raises(ConfigError, match="the wrong voice came out of every mixture"):
        calibrator.calibration(trials)
    mended = [replace(t, confused=t.confused and k % 4 == 0) for k, t in enumerate(trials)]
    assert calibrator.calibration(mended).measured["swapped"] == 28


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match=rf"49 mixtures .* are too few. {MIN_CASES} are needed: "):
        Calibrator(engine(), cases(49))
    calibrator = Calibrator(engine(), cases(50, voices=5))
    trials = [
        Trial(np.zeros((1, 3)), np.zeros(1), None, k % 2 == 0, f"v{k % 5}") for k in range(100)
    ]
    with pytest.raises(ConfigError, match=r"5 voices are too few"):
        calibrator.calibration(trials)
    with pytest.raises(ConfigError, match=r"5 voices are too few"):
        next(calibrator.trials())  # before any of the work
    with pytest.raises(ConfigError, match=r"0: has all speakers, so that none is absent"):
        list(Calibrator(engine(), cases(50, voices=2)).trials())


def test_turns_are_taken_by_voices_that_are_named() -> None:
    voices = {f"v{k}": [sing(k, take, 3.0) for take in range(3)] for k in range(VOICES)}
    drawn = list(draw_turns(voices, 12, RATE_HZ, 1))
    again = list(draw_turns(voices, 12, RATE_HZ, 1))
    for case, same in zip(drawn, again, strict=True):
        one = case.rendering
        assert np.array_equal(one.mixture, same.rendering.mixture)
        assert 4 <= len(one.mixture) / RATE_HZ <= 30.01
        assert np.allclose(one.mixture, one.target + one.interferer, atol=1e-6)
        assert 1 <= len(case.others) <= 3
        assert case.speaker not in case.others
        assert case.turns
        speaks = [(np.abs(track) > 0).mean() for track in (one.target, one.interferer)]
        if not case.echo:
            assert 0.03 < speaks[0] < 0.85
            assert speaks[1] > 0.1
        assert any(np.array_equal(one.reference, spoken) for spoken in voices[case.speaker])
        bands = engine().embed([one.target])
        assert bands.argmax() == int(case.speaker[1:])
    assert 2 <= sum(case.echo for case in drawn) <= 7
    with pytest.raises(ConfigError, match="need three speakers"):
        list(draw_turns({name: voices[name] for name in ("v0", "v1")}, 1, RATE_HZ, 0))


def test_clips_that_are_too_short_for_a_reference_do_not_matter() -> None:
    voices = {f"v{k}": [sing(k, take, 3.0) for take in range(2)] for k in range(VOICES)}
    with_coughs = {name: [clips[0], clips[1][:1000], clips[1]] for name, clips in voices.items()}
    for case, same in zip(
        draw_turns(with_coughs, 8, RATE_HZ, 1), draw_turns(voices, 8, RATE_HZ, 1), strict=True
    ):
        assert np.array_equal(case.rendering.mixture, same.rendering.mixture)
        assert np.array_equal(case.rendering.reference, same.rendering.reference)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of seven speakers, two clips of a second each, and 28 recipes of them."""
    folder = tmp_path_factory.mktemp("speakers")
    for voice in range(VOICES):
        (folder / f"v{voice}").mkdir()
        for take in range(2):
            sound = talk(voice, take, 1.0, RATE_HZ)
            audio.write(folder / f"v{voice}" / f"{take}.wav", sound, RATE_HZ)
    with (folder / "mixtures.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "target", "interferer", "reference", "snr_db"])
        for k in range(28):
            one, other = k % VOICES, (k + 1 + k // VOICES % (VOICES - 1)) % VOICES
            table.writerow([k, f"v{one}/0.wav", f"v{other}/1.wav", f"v{one}/1.wav", k % 5 - 2])
    return folder


def test_given_mixtures_are_of_the_speakers_whose_folders_they_are_in(speakers: Path) -> None:
    found = list(islice(read_cases([speakers / "mixtures.csv"], 0, RATE_HZ, 0), 3))
    assert [case.speaker for case in found] == ["v0", "v1", "v2"]
    assert [case.others for case in found] == [{"v1"}, {"v2"}, {"v3"}]
    assert len(found[0].rendering.mixture) == RATE_HZ


def test_drawn_cases_name_their_speakers(speakers: Path, tmp_path: Path) -> None:
    """Also where a folder's name has what is between two talkers in the table of a set."""
    folder = shutil.copytree(speakers, tmp_path / "read + spoken")
    drawn = list(read_cases([folder], 4, RATE_HZ, 0))
    assert [case.turns for case in drawn] == [False] * 4 + [True] * 4
    for case in drawn:
        assert case.speaker not in case.others
        assert {Path(name).parent for name in (case.speaker, *case.others)} == {folder}
    assert [case.echo for case in drawn[:4]] == [
        bool(case.rendering.labels["t60_s"]) for case in drawn[:4]
    ]


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings with turns that are about as short as they may be, and few are enough."""
    monkeypatch.setattr(calibration_module, "TURNS_S", (4.0, 6.0))
    monkeypatch.setattr(calibration_module, "MIN_CASES", 20)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def calibrate(*words: object) -> Result:
    return run("models", "calibrate", *words)


def test_the_command_puts_it_into_the_config(
    model: Path, speakers: Path, scene: Path, short_turns: None
) -> None:
    before, weights = (
        json.loads((model / "config.json").read_text()),
        (model / "model.safetensors").read_bytes(),
    )
    files = set(model.iterdir())
    rows = (speakers / "mixtures.csv").read_text().splitlines(keepends=True)
    (speakers / "few.csv").write_text("".join(rows[: 1 + 2 * VOICES]))
    done = calibrate(model, speakers / "few.csv")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("model: calibrated with 28 recordings of 7 voices: AUC 0.")
    assert "3.0 % of the voices that are present are called absent" in done.stderr
    assert done.stdout == ""
    after = json.loads((model / "config.json").read_text())
    before.pop("calibration", None)
    assert after.pop("calibration")["measured"]["recordings"] == 28
    assert after == before
    assert (model / "model.safetensors").read_bytes() == weights
    assert set(model.iterdir()) == files
    assert "good" in run("models", "verify", model).stdout
    words = ("--ref", scene / "reference.wav", "--model", model, "--device", "cpu")
    done = run("extract", scene / "mixture.wav", *words)
    assert done.exit_code == 0, done.output
    assert ", presence 0." in done.stderr


def test_the_command_draws_from_folders_and_mends_a_damaged_one(
    model: Path, speakers: Path, short_turns: None
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "calibration": {"echo_weights": 3}}))
    done = calibrate(model, speakers, "-n", 10, "--seed", 3, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == (  # as it has to be for a network of random weights
        "warning: model: its presence is little or no better than a guess (AUC under 0.6). Train "
        "the model longer, then calibrate it again.\n"
    )
    made = json.loads(done.stdout)
    assert made["measured"]["auc"] < 0.6
    assert made == read_config(model).calibration
    size = config["system"]["embedding"]
    calibration = parse_calibration(made, size, "model")
    assert calibration is not None
    assert calibration.measured["speakers"] == 7
    assert calibration.measured["recordings"] == 20


def test_a_model_that_is_replaced_meanwhile_does_not_get_the_calibration(model: Path) -> None:
    info = find_checkpoint(model)
    save_checkpoint(model, build(replace(info.config, stacks=3)), {})
    with pytest.raises(CheckpointError, match=r"model: was replaced while it was calibrated"):
        write_calibration(info, {})
    assert read_config(model).calibration is None


def test_a_calibration_that_cannot_be_made_changes_nothing(model: Path, speakers: Path) -> None:
    before = (model / "config.json").read_bytes()
    done = calibrate(model, speakers, "-n", 24)
    message = "error: 48 mixtures and recordings with turns are too few. 50 are needed: raise -n, "
    message += "or add rows to the CSV.\n"
    assert (done.exit_code, done.stderr) == (1, message)
    done = calibrate(model, speakers / "none.csv")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "none.csv: no such file" in done.stderr
    done = calibrate(model, speakers / "mixtures.csv", "-n", 30)
    assert (done.exit_code, "-n is for recordings that are drawn" in done.stderr) == (2, True)
    assert calibrate(model).exit_code == 2
    assert calibrate(model, speakers, "-n", 0).exit_code == 2
    assert (model / "config.json").read_bytes() == before


def test_a_model_of_the_hub_is_not_changed(hub: Hub, tiny_folder: Path, speakers: Path) -> None:
    names = ("config.json", "model.safetensors")
    hub.add("ann/voices", {name: (tiny_folder / name).read_bytes() for name in names})
    assert run("models", "pull", "ann/voices").exit_code == 0
    folder = run("models", "path", "ann/voices").stdout.strip()
    for name in ("ann/voices", folder):
        done = calibrate(name, speakers / "mixtures.csv")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert name != "ann/voices" or "ann/voices@" in done.stderr
        assert "comes from the Hub, and is not changed. Copy " in done.stderr
        assert "and calibrate the copy.\n" in done.stderr
    done = run("models", "export", folder, "-o", folder, "--overwrite")
    assert f"{folder}: has a model that comes from the Hub. Name another folder." in done.stderr


def test_the_installed_model_is_not_changed(speakers: Path) -> None:
    before = (bundled()[DEFAULT_MODEL] / "config.json").read_bytes()
    for name in (DEFAULT_MODEL, bundled()[DEFAULT_MODEL]):
        done = calibrate(name, speakers / "mixtures.csv")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert f"{DEFAULT_MODEL}: comes with mcspex, and is not changed. Copy " in done.stderr
    model = bundled()[DEFAULT_MODEL]
    done = run("models", "convert", model, "--sample-rate", 8000, "-o", model, "--overwrite")
    assert f"{model}: has a model that comes with mcspex. Name another folder." in done.stderr
    assert (bundled()[DEFAULT_MODEL] / "config.json").read_bytes() == before
