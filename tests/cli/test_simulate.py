"""`mcspex simulate`: mixtures drawn or given, and what it refuses."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import click.testing
import numpy as np
import pytest
from click.testing import CliRunner

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from tests.conftest import LIBRIMIX, RATE_HZ, ROOT, buzz

TOML = """
[mixtures]
segment_s = 0.6
reference_s = [0.5, 0.75]
noise = 0.6
noise_db = [10.0, 10.0]
room = 0.5
t60_s = [0.2, 0.2]
third_talker = 0.5
absent = 0.3
"""


def simulate(*words: object) -> click.testing.Result:
    return CliRunner().invoke(main, ["simulate", *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "mixtures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sounds(folder: Path, name: str, *kinds: str) -> list[audio.Samples]:
    return [audio.read(folder / kind / f"{name}.wav", RATE_HZ) for kind in kinds]


@pytest.fixture
def librimix(librimix: Path) -> Path:
    """Without the mixture that its metadata leaves out, of which there would be a warning."""
    (librimix / "test" / "mix_clean" / f"{LIBRIMIX['test'][2]}.wav").unlink()
    return librimix


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "mixtures.toml"
    path.write_text(TOML)
    return path


def test_as_many_mixtures_are_drawn_as_asked_for(corpus: Path, out: Path) -> None:
    done = simulate(corpus, "-o", out, "-n", 4)
    assert (done.exit_code, done.stderr) == (0, f"{out}: 4 mixtures at 8000 Hz\n")
    names = [f"{k:05d}" for k in range(4)]
    folders = ("mix_clean", "s1", "s2", "references")
    expected = {f"{folder}/{name}.wav" for folder in folders for name in names}
    assert contents(out).keys() == {*expected, "mixtures.csv"}
    assert [row["id"] for row in rows(out)] == names
    for name, row in zip(names, rows(out), strict=True):
        mixture, target, interferer, reference = sounds(out, name, *folders)
        np.testing.assert_allclose(mixture, target + interferer, atol=2 / 32768)
        assert len(mixture) == 24000
        assert 12000 <= len(reference) <= 64000
        assert Path(row["target"]).parent == corpus
        assert row["target"] != row["interferer"]
        assert row["present"] == "true"


def test_a_hundred_are_drawn_unasked(corpus: Path, out: Path, toml: Path) -> None:
    toml.write_text("[mixtures]\nsegment_s = 0.5\nreference_s = [0.5, 0.5]\n")
    assert simulate(corpus, "-o", out, "--mixtures", toml).exit_code == 0
    assert len(rows(out)) == 100


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path, toml: Path) -> None:
    sets = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        words = (corpus, "-o", tmp_path / name, "-n", 3, "--seed", seed, "--mixtures", toml)
        assert simulate(*words).exit_code == 0
        sets.append(contents(tmp_path / name))
    one, same, other = sets
    assert one == same
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.startswith(("mix_", "refer")))


def test_a_toml_says_what_to_draw(corpus: Path, out: Path, toml: Path) -> None:
    assert simulate(corpus, "-o", out, "-n", 16, "--mixtures", toml).exit_code == 0
    table = rows(out)
    silent = 0
    for row in table:
        kinds = ("mix_both", "mix_clean", "noise", "s1", "s2")
        both, clean, noise, target, interferer = sounds(out, row["id"], *kinds)
        np.testing.assert_allclose(both, clean + noise, atol=2 / 32768)
        assert len(both) == 4800
        assert noise.any() == bool(row["noise"])
        assert row["noise_db"] == ("10.0" if row["noise"] else "")
        assert row["t60_s"] in ("", "0.20")
        assert target.any() == (row["present"] == "true")
        assert interferer.any()
        if not row["t60_s"]:  # echoes that come late are in the mixture only
            np.testing.assert_allclose(clean, target + interferer, atol=2 / 32768)
        silent += not target.any()
    assert 0 < silent < 16
    assert {row["talkers"] for row in table} == {"2", "3"}
    assert {bool(row["noise"]) for row in table} == {bool(row["t60_s"]) for row in table}
    assert len({row["noise"] for row in table}) > 3


def test_a_librimix_set_gives_its_own_mixtures(librimix: Path, out: Path) -> None:
    folder = librimix / "test"
    done = simulate(folder, "-o", out, "--enrolments", folder / "map_mixture2enrollment")
    assert (done.exit_code, done.stderr) == (0, f"{out}: 4 mixtures at 8000 Hz\n")
    one, other = LIBRIMIX["test"][:2]
    for row, role in zip(rows(out), ("s1", "s2", "s1", "s2"), strict=True):
        name = row["id"].removesuffix(f"_{role}")
        swapped = {"s1": "s2", "s2": "s1"}[role]
        enrolment = {one: other, other: one}[name]
        ours = sounds(out, row["id"], "mix_clean", "s1", "s2", "references")
        theirs = [
            *sounds(folder, name, "mix_clean", role, swapped),
            *sounds(folder, enrolment, role),
        ]
        for sound, original in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(sound, original)


def test_a_librimix_set_needs_no_enrolments(librimix: Path, tmp_path: Path) -> None:
    for name in ("one", "same"):
        assert simulate(librimix / "dev", "-o", tmp_path / name).exit_code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "same")
    assert len(rows(tmp_path / "one")) == 4


def test_talkers_of_a_librimix_set_are_mixed_anew_if_a_number_is_asked_for(
    librimix: Path, out: Path
) -> None:
    done = simulate(librimix / "dev", "-o", out, "-n", 3)
    assert done.exit_code == 0, done.output
    assert {row["target"] for row in rows(out)} <= {"librispeech/84", "librispeech/174"}
    assert all(row["snr_db"] for row in rows(out))


def test_librispeech_trees_are_drawn_from(librispeech: Path, out: Path) -> None:
    assert simulate(librispeech, "-o", out, "-n", 2, "--rate", 16000).exit_code == 0
    for row in rows(out):
        assert {row["target"], row["interferer"]} == {"librispeech/84", "librispeech/174"}
    assert audio.probe(out / "s1" / "00000.wav").sample_rate_hz == 16000


def test_a_folder_with_files_needs_overwrite(corpus: Path, out: Path) -> None:
    assert simulate(corpus, "-o", out, "-n", 1).exit_code == 0
    before = contents(out)
    done = simulate(corpus, "-o", out, "-n", 1, "--seed", 1)
    assert done.exit_code == 1
    assert done.stderr == f"error: {out}: is not empty. Choose another -o, or add --overwrite.\n"
    assert contents(out) == before
    assert simulate(corpus, "-o", out, "-n", 1, "--seed", 1, "--overwrite").exit_code == 0
    assert contents(out) != before


def test_nothing_of_a_set_that_was_overwritten_is_left(corpus: Path, toml: Path, out: Path) -> None:
    assert simulate(corpus, "-o", out, "-n", 2, "--mixtures", toml).exit_code == 0
    toml.write_text("[mixtures]\nsegment_s = 1.0\n")
    assert simulate(corpus, "-o", out, "-n", 1, "--mixtures", toml, "--overwrite").exit_code == 0
    parts = ("mix_clean", "references", "s1", "s2")
    assert contents(out).keys() == {*(f"{part}/00000.wav" for part in parts), "mixtures.csv"}


@pytest.mark.parametrize("name", ["thesis.tex", "s1/labels.txt", "mix_clean/my_own.wav", "s2/new/"])
def test_only_a_set_is_overwritten(corpus: Path, out: Path, name: str) -> None:
    assert simulate(corpus, "-o", out, "-n", 1).exit_code == 0
    (out / name).mkdir() if name.endswith("/") else (out / name).touch()
    before = contents(out)
    done = simulate(corpus, "-o", out, "-n", 2, "--overwrite")
    assert (done.exit_code, done.stderr) == (
        1,
        f"error: {out}: has more than a set that mcspex simulate wrote. Choose another -o.\n",
    )
    assert contents(out) == before


def test_sources_are_not_overwritten(corpus: Path, librimix: Path) -> None:
    """Whether they are speakers, a LibriMix set or the files of a recipe."""
    folder = librimix / "test"
    recipe = folder / "r.csv"
    name = f"{LIBRIMIX['test'][0]}.wav"
    recipe.write_text(
        f"id,target,interferer,reference,snr_db\nx,s1/{name},{corpus}/ann/a.flac,s2/{name},0\n"
    )
    before = contents(folder)
    for words in ([corpus, "-o", corpus], [folder], ["--recipe", recipe]):
        done = simulate("-o", folder, *words, "--overwrite")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "has the files that are mixed. Choose another -o." in done.stderr
    assert contents(folder) == before


def test_a_set_is_not_written_among_the_speakers(corpus: Path) -> None:
    before = contents(corpus)
    done = simulate(corpus, "-n", 1, "-o", corpus / "set")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "set: is in a folder of SPEAKERS, and would be taken for some of them." in done.stderr
    assert contents(corpus) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name folders of speakers, or --recipe CSV."),
        (["SPEECH", "--recipe", "r.csv"], "Name folders of speakers, or --recipe CSV."),
        (["SET", "-n", "3", "--enrolments", "MAP"], "--enrolments is for one LibriMix set"),
        (["SPEECH", "--enrolments", "MAP"], "--enrolments is for one LibriMix set, without -n."),
        (["SET", "SET", "--enrolments", "MAP"], "--enrolments is for one LibriMix set"),
        (["--recipe", "r.csv", "--enrolments", "MAP"], "--enrolments is for one LibriMix set"),
        (["--recipe", "r.csv", "-n", "3"], "-n, --seed and --mixtures are for mixtures that are"),
        (["--recipe", "r.csv", "--mixtures", "TOML"], "and --mixtures are for mixtures that"),
        (["--recipe", "r.csv", "--seed", "0"], "-n, --seed and --mixtures are for mixtures that"),
        (["SET", "--seed", "3"], "-n, --seed and --mixtures are for mixtures that are drawn."),
        (["SET", "--mixtures", "TOML"], "-n, --seed and --mixtures are for mixtures that are"),
        (["SPEECH", "-n", "0"], "Invalid value for '-n'"),
        (["SPEECH", "--seed", "-1"], "Invalid value for '--seed'"),
        (["SPEECH", "--rate", "100"], "Invalid value for '--rate'"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_error(
    corpus: Path, librimix: Path, toml: Path, out: Path, words: list[str], message: str
) -> None:
    folder = librimix / "test"
    folders = {"SPEECH": corpus, "SET": folder, "MAP": folder / "map_mixture2enrollment"}
    done = simulate(*({**folders, "TOML": toml}.get(word, word) for word in words), "-o", out)
    assert done.exit_code == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists()


def test_somewhere_to_write_must_be_named(corpus: Path) -> None:
    done = simulate(corpus)
    assert done.exit_code == 2
    assert "Missing option '-o'" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "."),
        ("batch", ".", "--ref", "."),
        ("models", "export", "mcspex-16k"),
        ("models", "convert", "mcspex-16k", "--sample-rate", "8000"),
    ],
)
def test_a_folder_is_not_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*words, "-o", "-"])
    assert (done.exit_code, "a folder is needed, not standard output." in done.stderr) == (2, True)
    assert not any(tmp_path.iterdir())


@pytest.fixture
def spoilt(corpus: Path, librimix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the failures below are about, in the working folder."""
    monkeypatch.chdir(corpus.parent)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.wav").write_bytes(b"nonsense")
    Path("wrong.toml").write_text("[mixtures]\nnoise = 2.0\n")
    Path("map").write_text("one two\n")
    (librimix / "dev" / "s2" / f"{LIBRIMIX['dev'][1]}.wav").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: no such file or folder."),
        (["empty"], "empty: has no sound files in it. Name a folder of speakers."),
        (["speech/ann"], "two speakers or more are needed, with two files each or one of 2 s."),
        (
            ["Libri2Mix/wav8k/min"],
            "min: holds several LibriMix sets. Name one of them, for",
        ),
        (["speech", "broken"], "a.wav: not a readable sound file"),
        (["speech", "--mixtures", "none.toml"], "none.toml: no such file"),
        (
            ["speech", "--mixtures", "wrong.toml"],
            "mixtures.noise is 2.0. Expected `float` <= 1.0.",
        ),
        (["Libri2Mix/wav8k/min/dev"], f"s2/{LIBRIMIX['dev'][1]}.wav: is missing."),
        (["Libri2Mix/wav8k/min/test", "--enrolments", "map"], "map line 1: must have three words"),
        (
            ["Libri2Mix/wav8k/min/test", "--enrolments", "none"],
            "none: no such file",
        ),
        (["--recipe", "none.csv"], "none.csv: no such file or folder."),
        (["Libri2Mix/wav8k/min/test"] * 2, "_s1. Name one of their sets."),
    ],
)
@pytest.mark.usefixtures("spoilt")
def test_a_failure_is_exit_1_and_one_line(out: Path, words: list[str], message: str) -> None:
    done = simulate(*words, "-o", out)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert isinstance(done.exception, SystemExit)  # and so no traceback
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_one_line(corpus: Path, out: Path) -> None:
    audio.write(out.with_suffix(".wav"), buzz(100, 1), RATE_HZ)
    done = simulate(corpus, "-n", 1, "-o", out.with_suffix(".wav") / "inside")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "cannot be written: a part of this path is a file" in done.stderr
    (corpus / "broken.wav").touch()  # which is not read, as nothing can be written
    assert simulate(corpus, "-n", 1, "-o", out.with_suffix(".wav") / "inside").stderr == done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, names have one encoding")
def test_a_name_that_the_encoding_of_names_lacks_is_one_line(corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.csv"
    files = "ann/a.flac,bob/b.flac,ann/b.flac"
    recipe.write_text(f"id,target,interferer,reference,snr_db\nü,{files},0\n", "utf-8")
    recipe = recipe.rename(corpus / recipe.name)
    ascii_names = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "mcspex_cli", "simulate", "--recipe", recipe, "-o", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ascii_names},
        stderr=subprocess.PIPE,
        check=False,
    )
    advice = "no file can have this name in the encoding ascii. Set PYTHONUTF8=1."
    assert done.stderr.decode("utf-8") == f"error: ü.wav: {advice}\n"
    assert done.returncode == 1
    assert list(tmp_path.glob(".*")) == []
