"""Recipes: a CSV's rows, and LibriMix's mixtures with their references."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcspex_cli.errors import ConfigError
from mcspex_cli.training.recipes import librimix_recipes, read_recipes
from tests.conftest import LIBRIMIX

HEADER = "id,target,interferer,reference,snr_db,pair\n"


@pytest.fixture
def recipe(corpus: Path) -> Path:
    path = corpus / "recipe.csv"
    path.write_text(
        HEADER
        + "one,ann/a.flac,bob/b.flac,ann/b.flac,3.5,different\n"
        + "two,cyn/g.flac,bob/a.flac,cyn/e.flac,-5,different\n"
    )
    return path


def test_rows_are_read_with_paths_from_the_csvs_folder(recipe: Path, corpus: Path) -> None:
    one, two = read_recipes(recipe)
    assert (one.id, one.snr_db, two.id, two.snr_db) == ("one", 3.5, "two", -5.0)
    assert (one.target, one.interferer) == (corpus / "ann/a.flac", corpus / "bob/b.flac")
    assert (one.reference, one.mixture) == (corpus / "ann/b.flac", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,ann/zz.flac,bob/b.flac,ann/b.flac,0,d", r"line 2: .*zz.flac does not exist"),
        ("x,ann/a.flac,bob/b.flac,ann/b.flac,loud,d", "line 2: snr_db 'loud' is no number"),
        ("../x,ann/a.flac,bob/b.flac,ann/b.flac,0,d", "line 2: id '../x' cannot be a file's name"),
        ("x,ann/a.flac", "line 2: has fewer columns than the first line"),
        ("x,ann/a.flac,bob/b.flac,ann/b.flac,nan,d", "line 2: snr_db 'nan' is no number"),
        ("", "has no rows"),
    ],
)
def test_a_bad_row_is_named(corpus: Path, row: str, message: str) -> None:
    path = corpus / "recipe.csv"
    path.write_text(HEADER + row + "\n")
    with pytest.raises(ConfigError, match=message):
        read_recipes(path)


def test_a_bad_file_is_named(corpus: Path, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipes(corpus / "none.csv")
    recipe.write_text(recipe.read_text().replace("two,", "one,"))
    with pytest.raises(ConfigError, match="id 'one' is there twice"):
        read_recipes(recipe)
    recipe.write_text("id,target\nx,y\n")
    with pytest.raises(ConfigError, match="column 'interferer' is missing"):
        read_recipes(recipe)
    recipe.write_bytes(b"\xff\xfe" + recipe.read_bytes())
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_recipes(recipe)


def test_a_spreadsheets_byte_order_mark_is_no_matter(recipe: Path) -> None:
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
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
        assert recipe.interferer == folder / other / f"{name}.wav"
        assert recipe.mixture == folder / "mix_clean" / f"{name}.wav"
        assert recipe.snr_db is None


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
    with pytest.raises(ConfigError, match=rf"map_mixture2enrollment: no reference for .*{target}"):
        librimix_recipes(librimix / "test", path)
    only = f"train-100/s1/{LIBRIMIX['train-100'][2]}.wav"  # its speaker has one utterance
    with pytest.raises(ConfigError, match=rf"train-100: no reference for .*{only}"):
        librimix_recipes(librimix / "train-100")


def test_the_target_said_again_is_no_reference(librimix: Path) -> None:
    folder = librimix / "dev"
    for role in ("mix_clean", "s1", "s2"):
        path = folder / role / f"{LIBRIMIX['dev'][1]}.wav"
        path.rename(path.with_stem("174-50561-0001_84-121123-0000"))
    again = "s2/174-50561-0001_84-121123-0000.wav"  # sorted first, and 84 says nothing else
    with pytest.raises(ConfigError, match=rf"no reference for .*{again}"):
        librimix_recipes(folder)
