"""Recipes and draws as signals, and the files that they become."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio
from mcspex_cli.errors import AudioError, ConfigError, OutputError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.settings import DataSettings, MixtureSettings
from mcspex_cli.training.simulate import (
    Recipe,
    Rendering,
    draw_renderings,
    librimix_recipes,
    read_recipes,
    read_validation,
    render,
    write_renderings,
)
from tests.conftest import LIBRIMIX, RATE_HZ, SHARED, needs_shared

HEADER = "id,target,interferer,reference,snr_db,pair\n"
SHORT = MixtureSettings(segment_s=0.8, reference_s=(0.5, 1.0))
NOISY = replace(SHORT, noise=0.5, third_talker=0.5, absent=0.3, room=0.5, narrow_band=0.5)
FOLDERS = ("mix_clean", "s1", "s2", "references")


@pytest.fixture
def recipe(corpus: Path) -> Path:
    path = corpus / "recipe.csv"
    path.write_text(
        HEADER
        + "one,ann/a.flac,bob/b.flac,ann/b.flac,3.5,different\n"
        + "two,cyn/g.flac,bob/a.flac,cyn/e.flac,-5,different\n"
    )
    return path


@pytest.fixture
def recipes(recipe: Path) -> list[Recipe]:
    return read_recipes(recipe)


def test_rows_are_read_with_paths_from_the_csvs_folder(recipe: Path, corpus: Path) -> None:
    one, two = read_recipes(recipe)
    assert (one.id, one.snr_db, two.id, two.snr_db) == ("one", 3.5, "two", -5.0)
    assert (one.target, one.interferers) == (corpus / "ann/a.flac", (corpus / "bob/b.flac",))
    assert (one.reference, one.mixture) == (corpus / "ann/b.flac", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,ann/zz.flac,bob/b.flac,ann/b.flac,0,d", r"line 2: .*zz.flac does not exist"),
        ("x,ann/a.flac,bob/b.flac,ann,0,d", r"line 2: .*ann is not a file\. Name one\."),
        ("x,ann/a.flac,,ann/b.flac,0,d", r"line 2: .* is not a file\. Name one\."),
        ("x,ann/a.flac,bob/b.flac,ann/b.flac,loud,d", "line 2: snr_db 'loud' is not a number"),
        ("x,ann/a.flac,bob/b.flac,ann/b.flac,nan,d", "line 2: snr_db 'nan' is not a number"),
        ("x,ann/a.flac,bob/b.flac,ann/b.flac,1e9,d", "'1e9' is not a number from -100 to 100"),
        (".x,ann/a.flac,bob/b.flac,ann/b.flac,0,d", "line 2: id '.x' cannot be the name of a"),
        (
            f"{'x' * 252},ann/a.flac,bob/b.flac,ann/b.flac,0,d",
            "line 2: id 'xx.*' cannot be the name",
        ),
        (
            "x\0,ann/a.flac,bob/b.flac,ann/b.flac,0,d",
            "line 2: (id .x.* cannot be|line contains NUL)",
        ),
        ("../x,ann/a.flac,bob/b.flac,ann/b.flac,0,d", "line 2: id '../x' cannot be the"),
        ("x,ann/a.flac", "line 2: has 2 columns, not 6"),
        (2 * "x,ann/a.flac,bob/b.flac,ann/b.flac,0,d\n", "line 3: id 'x' is used twice"),
        ("x,ann/a.flac,bob/b.flac,ann/b.flac,0,d\nX,ann/a.flac,bob/b.flac,ann/b.flac,1,d", "twice"),
        ("x,ann/a.flac,bob/b.flac,ann/../ann/a.flac,0,d", "line 2: needs three different files"),
        ("", "has no rows"),
    ],
)
def test_a_bad_row_is_named(corpus: Path, row: str, message: str) -> None:
    path = corpus / "recipe.csv"
    path.write_text(HEADER + row + "\n")
    with pytest.raises(ConfigError, match=message):
        read_recipes(path)


def test_a_bad_file_is_named(corpus: Path, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_recipes(corpus / "none.csv")
    recipe.write_text("id,target\nx,y\n")
    with pytest.raises(ConfigError, match="column 'interferer' is missing"):
        read_recipes(recipe)
    problems = {1: "column 'id' is there twice", 200_000: "line 1: field larger than field limit"}
    for width, problem in problems.items():
        recipe.write_text(HEADER.replace("id,", f"id,{'x' * width},id,"))
        with pytest.raises(ConfigError, match=problem):
            read_recipes(recipe)
    recipe.write_bytes(b"\xff\xfe" + recipe.read_bytes())
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_recipes(recipe)


def test_how_a_spreadsheet_saves_a_recipe_does_not_matter(recipe: Path) -> None:
    content = recipe.read_bytes().replace(b",", b";").replace(b"\n", b"\r\n")
    recipe.write_bytes(b"\xef\xbb\xbf\r\n" + content + b";;;;;\r\n")
    assert [r.id for r in read_recipes(recipe)] == ["one", "two"]


def test_each_librimix_talker_is_a_target_once(librimix: Path) -> None:
    folder = librimix / "test"
    recipes = librimix_recipes(folder)
    names = LIBRIMIX["test"][:2]
    assert [r.id for r in recipes] == [f"{name}_{role}" for name in names for role in ("s1", "s2")]
    for recipe in recipes:
        name, role = recipe.id.rsplit("_", 1)
        other = {"s1": "s2", "s2": "s1"}[role]
        assert recipe.target == folder / role / f"{name}.wav"
        assert recipe.interferers == (folder / other / f"{name}.wav",)
        assert recipe.mixture == folder / "mix_clean" / f"{name}.wav"
        assert recipe.snr_db is None


def test_each_of_three_talkers_is_a_target_once(three_talkers: Path) -> None:
    recipes = librimix_recipes(three_talkers)
    assert [r.id.rsplit("_", 1)[1] for r in recipes] == ["s1", "s2", "s3"] * 2
    for recipe in recipes:
        files = [recipe.target, *recipe.interferers]
        assert sorted(path.parent.name for path in files) == ["s1", "s2", "s3"]
        rendering = render(recipe, RATE_HZ)
        parts = rendering.target + rendering.interferer
        np.testing.assert_allclose(rendering.mixture, parts, atol=3 / 32768)
        assert rendering.labels["interferer"].count(" + ") == 1


def test_enrolments_name_the_references(librimix: Path) -> None:
    folder = librimix / "test"
    recipes = librimix_recipes(folder, folder / "map_mixture2enrollment")
    one, other = LIBRIMIX["test"][:2]
    assert [r.reference for r in recipes] == [
        folder / "s1" / f"{other}.wav",
        folder / "s2" / f"{other}.wav",
        folder / "s1" / f"{one}.wav",
        folder / "s2" / f"{one}.wav",
    ]


def test_without_enrolments_references_are_drawn_the_same_every_time(librimix: Path) -> None:
    (librimix / "metadata" / "mixture_test_mix_clean.csv").unlink()
    recipes = librimix_recipes(librimix / "test")
    assert len(recipes) == 6
    for recipe in recipes:
        name, role = recipe.id.rsplit("_", 1)
        target = name.split("_")[role == "s2"]
        reference = recipe.reference.stem.split("_")[recipe.reference.parent.name == "s2"]
        assert reference != target
        assert reference.split("-")[0] == target.split("-")[0]
    assert librimix_recipes(librimix / "test") == recipes


def test_a_target_without_a_reference_is_named(librimix: Path) -> None:
    path = librimix / "test" / "map_mixture2enrollment"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    target = f"test/s2/{LIBRIMIX['test'][1]}.wav"
    with pytest.raises(ConfigError, match=rf"enrollment: has no reference for .*{target}"):
        librimix_recipes(librimix / "test", path)
    only = f"train-100/s1/{LIBRIMIX['train-100'][2]}.wav"  # its speaker has one utterance
    with pytest.raises(ConfigError, match=rf"train-100: has no reference for .*{only}"):
        librimix_recipes(librimix / "train-100")


def test_the_target_said_again_is_no_reference(librimix: Path) -> None:
    folder = librimix / "dev"
    for role in ("mix_clean", "s1", "s2"):
        path = folder / role / f"{LIBRIMIX['dev'][1]}.wav"
        path.rename(path.with_stem("174-50561-0001_84-121123-0000"))
    again = "s2/174-50561-0001_84-121123-0000.wav"  # sorted first, and 84 says nothing else
    with pytest.raises(ConfigError, match=rf"no reference for .*{again}"):
        librimix_recipes(folder)


def drawn(corpus: Path, settings: MixtureSettings, count: int, seed: int = 0) -> list[Rendering]:
    return list(draw_renderings(Corpus.read([corpus], RATE_HZ), settings, count, seed))


def signals(rendering: Rendering) -> list[audio.Samples]:
    return [s for s in vars(rendering).values() if isinstance(s, np.ndarray)]


def test_a_rendering_is_cut_and_mixed_as_told(recipes: list[Recipe], corpus: Path) -> None:
    renderings = [render(recipe, RATE_HZ) for recipe in recipes]
    assert [m.id for m in renderings] == ["one", "two"]
    assert [len(m.mixture) for m in renderings] == [8000, 8000]
    for item, snr_db in zip(renderings, (3.5, -5), strict=True):
        ratio = np.square(item.target).sum() / np.square(item.interferer).sum()
        assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=1e-3)
        np.testing.assert_allclose(item.mixture, item.target + item.interferer, atol=1e-6)
    np.testing.assert_array_equal(
        renderings[1].reference, audio.read(corpus / "cyn/e.flac", RATE_HZ)
    )
    assert renderings[0].noise is None
    assert renderings[0].labels["target"] == str(corpus / "ann/a.flac")
    assert renderings[0].labels["snr_db"] == "3.50"


def test_a_peak_over_0_9_turns_all_down(recipes: list[Recipe], corpus: Path) -> None:
    loud = audio.read(corpus / "ann/a.flac", RATE_HZ)
    audio.write(corpus / "ann/a.flac", loud / np.abs(loud).max(), RATE_HZ)
    rendering = render(recipes[0], RATE_HZ)
    assert np.abs(rendering.mixture).max() == pytest.approx(0.9, abs=1e-4)
    np.testing.assert_allclose(
        rendering.mixture, rendering.target + rendering.interferer, atol=1e-6
    )


def test_no_signal_of_a_rendering_exceeds_full_scale(recipes: list[Recipe], corpus: Path) -> None:
    for name, gain in (("ann/a", 40), ("bob/b", -40), ("ann/b", 40)):
        sound = audio.read(corpus / f"{name}.flac", RATE_HZ)
        audio.write(corpus / f"{name}.wav", gain * sound, RATE_HZ, "FLOAT")
    one = replace(
        recipes[0],
        target=corpus / "ann/a.wav",
        interferers=(corpus / "bob/b.wav",),
        reference=corpus / "ann/b.wav",
        mixture=corpus / "ann/b.flac",
    )
    rendering = render(one, RATE_HZ)
    for signal in (rendering.target, rendering.interferer, rendering.reference):
        assert np.abs(signal).max() <= 1


@pytest.mark.parametrize("part", ["target", "interferer", "reference"])
def test_a_silent_file_is_refused(recipes: list[Recipe], part: str) -> None:
    paths = {"target": recipes[0].target, "reference": recipes[0].reference}
    path = paths.get(part, recipes[0].interferers[0])
    for silence in (np.zeros(9000), 1e-5 * np.random.default_rng(0).standard_normal(9000)):
        audio.write(path, silence.astype(np.float32), RATE_HZ)
        with pytest.raises(ConfigError, match=rf"one: {path} is silent"):
            render(recipes[0], RATE_HZ)


def test_a_reference_that_no_network_can_embed_is_refused(recipes: list[Recipe]) -> None:
    path = recipes[0].reference
    audio.write(path, np.full(800, 0.1, np.float32), RATE_HZ)
    with pytest.raises(AudioError, match=rf"one: {path}, the reference: 0.10 s is too short. Give"):
        render(recipes[0], RATE_HZ)


def test_renderings_are_written_in_librimix_layout(recipes: list[Recipe], tmp_path: Path) -> None:
    out = tmp_path / "out"
    renderings = [render(recipe, RATE_HZ) for recipe in recipes]
    assert list(write_renderings(renderings, out, RATE_HZ)) == ["one", "two"]
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.wav"))
    assert names == [f"{folder}/{n}.wav" for folder in sorted(FOLDERS) for n in ("one", "two")]
    mixture, s1, s2 = (audio.read(out / folder / "one.wav", RATE_HZ) for folder in FOLDERS[:3])
    np.testing.assert_allclose(mixture, s1 + s2, atol=3 / 32768)
    with (out / "mixtures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"id": item.id, **item.labels} for item in renderings]


def test_names_in_the_table_run_nothing_in_a_spreadsheet(
    recipes: list[Recipe], tmp_path: Path
) -> None:
    labels = {"target": "=1+1", "interferer": "a\x1b", "noise": "caf\udce9", "snr_db": "-1.50"}
    rendering = replace(render(recipes[0], RATE_HZ), labels=labels)
    list(write_renderings([rendering], tmp_path / "out", RATE_HZ))
    _, row = (tmp_path / "out" / "mixtures.csv").read_bytes().splitlines()
    assert row == b"one,'=1+1,a\\x1b,caf\xe9,-1.50"


def test_a_set_is_there_only_if_all_of_it_is(recipes: list[Recipe], tmp_path: Path) -> None:
    recipes[1].reference.unlink()
    writing = write_renderings((render(r, RATE_HZ) for r in recipes), tmp_path / "out", RATE_HZ)
    assert next(writing) == "one"
    with pytest.raises(audio.AudioError, match=r"e.flac: no such file"):
        next(writing)
    assert not list(tmp_path.glob("*out*"))


def test_what_another_program_wrote_meanwhile_stays(recipes: list[Recipe], tmp_path: Path) -> None:
    renderings = [render(recipe, RATE_HZ) for recipe in recipes]
    writing = write_renderings(renderings, tmp_path / "out", RATE_HZ)
    next(writing)
    list(write_renderings(renderings[:1], tmp_path / "out", RATE_HZ))
    with pytest.raises(OutputError, match=r"out: is not empty\. Choose another -o"):
        list(writing)
    assert [path.name for path in tmp_path.glob("out/s1/*")] == ["one.wav"]


@pytest.mark.parametrize("lost", ["s1", "references/one.wav", "mixtures.csv"])
def test_a_set_of_which_a_part_is_deleted_meanwhile_is_an_error(
    recipes: list[Recipe], tmp_path: Path, lost: str
) -> None:
    writing = write_renderings([render(r, RATE_HZ) for r in recipes], tmp_path / "out", RATE_HZ)
    next(writing)
    (unfinished,) = tmp_path.glob(".out.*")
    if lost == "s1":
        shutil.rmtree(unfinished / lost)
    else:
        (unfinished / lost).unlink()
    with pytest.raises(OutputError, match=rf"out: {lost}.* was deleted before all was done\. Run"):
        list(writing)
    assert not list(tmp_path.glob("*out*"))


def test_validation_on_what_is_trained_on_is_warned_of(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataSettings(train=(recipe.parent / "cyn", recipe.parent / "none"), validation=recipe)
    assert len(read_validation(data, RATE_HZ, slice(0, None, 2))) == 1
    assert f"{recipe}: in 1 of 2 mixtures the target is a file that" in caplog.messages[0]
    caplog.clear()
    read_validation(data, RATE_HZ, slice(1, None, 2))
    read_validation(replace(data, train=()), RATE_HZ, slice(0, None, 2))
    assert not caplog.messages


def test_draws_are_the_same_for_the_same_seed(corpus: Path) -> None:
    one, same, other = (drawn(corpus, NOISY, 3, seed) for seed in (5, 5, 6))
    for a, b, c in zip(one, same, other, strict=True):
        assert a.labels == b.labels
        for x, y in zip(signals(a), signals(b), strict=True):
            np.testing.assert_array_equal(x, y)
        assert a.labels != c.labels
        assert not np.array_equal(a.mixture, c.mixture)
    assert [item.id for item in one] == ["00000", "00001", "00002"]
    assert not np.array_equal(one[0].mixture, one[1].mixture)
    for a, b in zip(drawn(corpus, NOISY, 5, 5), one, strict=False):  # however many are drawn
        np.testing.assert_array_equal(a.mixture, b.mixture)


def test_plain_draws_are_the_sum_of_two_talkers(corpus: Path) -> None:
    for item in drawn(corpus, replace(SHORT, snr_db=(2.0, 2.0)), 8):
        assert item.noise is None
        assert len(item.mixture) == 6400
        assert 4000 <= len(item.reference) <= 8000
        np.testing.assert_allclose(item.mixture, item.target + item.interferer, atol=1e-6)
        ratio = np.square(item.target).sum() / np.square(item.interferer).sum()
        assert 10 * np.log10(ratio) == pytest.approx(2, abs=1e-3)
        labels = item.labels
        assert (labels["talkers"], labels["snr_db"], labels["present"]) == ("2", "2.00", "true")
        assert [labels[key] for key in ("noise", "noise_db", "t60_s", "highest_hz")] == [""] * 4
        assert labels["target"] != labels["interferer"]


def test_labels_say_what_was_drawn(corpus: Path) -> None:
    renderings = drawn(corpus, replace(NOISY, noise_db=(6.0, 6.0), t60_s=(0.3, 0.3)), 40)
    assert {m.labels["talkers"] for m in renderings} == {"2", "3"}
    for item in renderings:
        labels = item.labels
        assert item.noise is not None
        assert int(labels["talkers"]) == 1 + len(labels["interferer"].split(" + "))
        assert len(labels["snr_db"].split(" + ")) == int(labels["talkers"]) - 1
        assert labels["present"] == str(bool(item.target.any())).lower()
        assert (labels["noise"] == "") == (not item.noise.any())
        assert labels["noise_db"] == ("6.0" if labels["noise"] else "")
        assert labels["t60_s"] in ("", "0.30")
        assert labels["highest_hz"] == "" or 2000 <= float(labels["highest_hz"]) <= 4000
    for key in ("present", "noise", "t60_s", "highest_hz"):
        assert len({m.labels[key] for m in renderings}) > 1, key


def test_files_of_noise_and_rooms_are_named(corpus: Path, tmp_path: Path) -> None:
    for name in ("noise/hall/fan", "rooms/car/near"):
        (tmp_path / name).parent.mkdir(parents=True)
        click = np.zeros(2000, np.float32)
        click[[10, 500]] = 0.5, 0.2
        audio.write(tmp_path / f"{name}.wav", click, RATE_HZ)
    files = replace(
        NOISY, noise_folder=tmp_path / "noise", room_folder=tmp_path / "rooms", noise_kinds=("hum",)
    )
    labels = [item.labels for item in drawn(corpus, files, 40)]
    assert {label["noise"] for label in labels} == {"", "hum", "hall/fan.wav"}
    assert {label["room_file"] for label in labels} == {"", "car/near.wav"}
    assert not any(label["room_file"] and label["t60_s"] for label in labels)


def test_parts_that_cancel_in_a_mixture_are_not_cut_off(corpus: Path) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 500 * np.arange(9600) / RATE_HZ)
    for path in corpus.rglob("*.flac"):
        audio.write(path, tone.astype(np.float32), RATE_HZ)
    loud = replace(SHORT, segment_s=0.5, level_db=(0.0, 0.0), snr_db=(0.0, 0.0))
    for item in drawn(corpus, replace(loud, noise=0.5, noise_kinds=("hum",)), 12):
        assert item.noise is not None
        clean = item.mixture - item.noise
        parts = (item.mixture, clean, item.target, item.interferer, item.noise)
        assert max(np.abs(part).max() for part in parts) == pytest.approx(0.9, abs=1e-4)
        assert np.abs(item.reference).max() == pytest.approx(0.9, abs=1e-4)


@needs_shared
def test_every_sixth_validation_mixture_averages_0_27_db() -> None:
    """All 312 average 0.18 dB."""
    recipes = read_recipes(SHARED / "speech" / "dev-recipe.csv")
    assert len(recipes) == 312
    values = [si_sdr(r.mixture, r.target) for r in (render(x, RATE_HZ) for x in recipes[::6])]
    assert np.mean(values) == pytest.approx(0.273, abs=0.01)
