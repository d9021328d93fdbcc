"""Recipes: parsing, rendering, writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio
from mcspex_cli.errors import ConfigError, OutputError
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.training.recipes import read_recipes, render, write_renderings
from tests.conftest import RATE_HZ, SHARED, needs_shared

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


def test_a_rendering_is_cut_and_mixed_as_told(recipe: Path, corpus: Path) -> None:
    made = [render(r, RATE_HZ) for r in read_recipes(recipe)]
    assert [m.id for m in made] == ["one", "two"]
    assert [len(m.mixture) for m in made] == [8000, 8000]
    for item, snr_db in zip(made, (3.5, -5), strict=True):
        ratio = np.square(item.target).sum() / np.square(item.interferer).sum()
        assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=1e-3)
        np.testing.assert_allclose(item.mixture, item.target + item.interferer, atol=1e-6)
    np.testing.assert_array_equal(made[1].reference, audio.read(corpus / "cyn/e.flac", RATE_HZ))


def test_a_peak_over_0_9_turns_all_down(recipe: Path, corpus: Path) -> None:
    loud = audio.read(corpus / "ann/a.flac", RATE_HZ)
    audio.write(corpus / "ann/a.flac", loud / np.abs(loud).max(), RATE_HZ)
    made = render(read_recipes(recipe)[0], RATE_HZ)
    assert np.abs(made.mixture).max() == pytest.approx(0.9, abs=1e-4)


def test_renderings_are_written_in_librimix_layout(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert list(write_renderings(read_recipes(recipe), out, RATE_HZ)) == ["one", "two"]
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.wav"))
    folders = ("mix_clean", "references", "s1", "s2")
    assert names == [f"{folder}/{name}.wav" for folder in folders for name in ("one", "two")]
    mixture, s1, s2 = (
        audio.read(out / folder / "one.wav", RATE_HZ) for folder in ("mix_clean", "s1", "s2")
    )
    np.testing.assert_allclose(mixture, s1 + s2, atol=3 / 32768)


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


def test_a_folder_with_files_is_not_written_into_unasked(recipe: Path, corpus: Path) -> None:
    recipes = read_recipes(recipe)
    with pytest.raises(OutputError, match=r"is not empty. Choose another -o, or add --overwrite"):
        list(write_renderings(recipes, corpus, RATE_HZ))
    assert list(write_renderings(recipes, corpus, RATE_HZ, overwrite=True)) == ["one", "two"]


def test_a_silent_interferer_is_refused(recipe: Path, corpus: Path) -> None:
    audio.write(corpus / "bob/b.flac", np.zeros(9000, np.float32), RATE_HZ)
    with pytest.raises(ConfigError, match=r"one: .*b.flac is silent"):
        render(read_recipes(recipe)[0], RATE_HZ)


@needs_shared
def test_the_validation_mixtures_average_0_18_db() -> None:
    recipes = read_recipes(SHARED / "speech" / "dev-recipe.csv")
    assert len(recipes) == 312
    values = [si_sdr(r.mixture, r.target) for r in (render(x, RATE_HZ) for x in recipes)]
    assert np.mean(values) == pytest.approx(0.18, abs=0.01)
