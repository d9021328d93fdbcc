"""Scoring files: pairing, checks, statuses, confusion, workers."""

from __future__ import annotations

import math
import os
import pickle
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio, files
from mcspex_cli.errors import McspexError, PairingError
from mcspex_cli.evaluation import perceptual, scoring
from mcspex_cli.evaluation.metrics import COLUMNS, si_sdr, snr
from mcspex_cli.evaluation.pairing import without_estimate
from mcspex_cli.evaluation.scoring import ScoreSettings, Trio, pair, score, score_all
from mcspex_cli.evaluation.statistics import summarise
from tests.conftest import RATE_HZ, SHARED, buzz, needs_shared

ALL = ScoreSettings(tuple(COLUMNS))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """est/, truth/, other/ and mix/ with two files, one of them deep."""
    for seed, name in enumerate(("a", "deep/b")):
        target, other = buzz(110, 1, seed), buzz(190, 1, seed + 9)
        for folder, sound, suffix in (
            ("truth", target, ".flac"),
            ("other", other, ".wav"),
            ("mix", target + other, ".wav"),
            ("est", target + 0.1 * other, ".target.wav"),
        ):
            path = tmp_path / folder / f"{name}{suffix}"
            files.make_folders(path.parent)
            audio.write(path, sound, RATE_HZ)
    return tmp_path


def trio(folders: Path, *, mixture: bool = True, interferers: int = 0) -> Trio:
    """The files of case a."""
    others = (folders / "other/a.wav",) * interferers
    mixed = folders / "mix/a.wav" if mixture else None
    return Trio("a", folders / "est/a.target.wav", folders / "truth/a.flac", mixed, others)


def put(folders: Path, sound: audio.Samples, rate_hz: int = RATE_HZ) -> None:
    """Replace the estimate of case a."""
    audio.write(folders / "est/a.target.wav", sound, rate_hz, "FLOAT")


def heard(folders: Path, name: str) -> audio.Samples:
    """A file of the case."""
    return audio.read(folders / name, RATE_HZ)


def test_folders_are_paired_by_name(folders: Path) -> None:
    trios = pair(folders / "est", folders / "truth", folders / "mix", [folders / "other"])
    assert [t.name for t in trios] == ["a", "deep/b"]
    assert trios[1].truth == folders / "truth/deep/b.flac"
    assert trios[1].mixture == folders / "mix/deep/b.wav"
    assert trios[1].interferers == (folders / "other/deep/b.wav",)
    assert pair(folders / "est", folders / "truth", None, [folders / "mix"] * 2)[0] == Trio(
        "a",
        folders / "est/a.target.wav",
        folders / "truth/a.flac",
        None,
        (folders / "mix/a.wav",) * 2,
    )


def test_a_row_has_the_values_of_each_metric(folders: Path) -> None:
    names = ("est/a.target.wav", "truth/a.flac", "mix/a.wav", "other/a.wav")
    estimate, target, mixture, other = (heard(folders, name) for name in names)
    row = score(trio(folders, interferers=1), ALL)
    assert (row.name, row.status, row.note, row.confused) == ("a", "ok", "", False)
    assert row.si_sdr_db == si_sdr(estimate, target)
    assert row.input_si_sdr_db == si_sdr(mixture, target)
    assert row.si_sdr_i_db == row.si_sdr_db - row.input_si_sdr_db
    assert row.si_sdr_i_db == pytest.approx(20, abs=0.5)
    assert row.snr_db == snr(estimate, target)
    both = perceptual.sdr_sir_sar(estimate, target, [other])
    assert (row.sdr_db, row.sir_db, row.sar_db) == both
    assert row.pesq == perceptual.pesq(estimate, target, RATE_HZ)
    assert row.stoi == perceptual.stoi(estimate, target, RATE_HZ)
    extended = perceptual.stoi(estimate, target, RATE_HZ, extended=True)
    assert row.estoi == pytest.approx(extended, abs=1e-9)  # pystoi adds noise of 1e-16
    assert all(isinstance(asdict(row)[column], float) for column in COLUMNS.values())


def test_only_what_is_asked_for_is_computed(folders: Path) -> None:
    row = asdict(score(trio(folders, interferers=1), ScoreSettings(("snr", "sir", "stoi"))))
    found = {column for column in COLUMNS.values() if row[column] is not None}
    assert found == {"snr_db", "sir_db", "stoi"}
    row = asdict(score(trio(folders)))
    assert {c for c in COLUMNS.values() if row[c] is not None} == {
        "si_sdr_db",
        "si_sdr_i_db",
        "snr_db",
    }


def test_without_interferers_there_is_sdr_alone(folders: Path) -> None:
    row = score(trio(folders), ScoreSettings(("sdr", "sir", "sar")))
    assert row.sdr_db is not None
    assert (row.sir_db, row.sar_db) == (None, None)


def test_settings_rows_and_the_function_can_be_sent_to_a_worker(folders: Path) -> None:
    row = score(trio(folders), ALL)
    for thing in (row, ALL, trio(folders), score):
        assert pickle.loads(pickle.dumps(thing)) == thing


# Target confusion.


def test_without_mixtures_there_is_no_improvement(folders: Path) -> None:
    row = score(trio(folders, mixture=False))
    assert (row.si_sdr_i_db, row.input_si_sdr_db, row.confused) == (None, None, None)


def test_worse_than_the_mixture_is_confused(folders: Path) -> None:
    put(folders, heard(folders, "other/a.wav"))
    row = score(trio(folders))
    assert row.si_sdr_i_db is not None
    assert row.si_sdr_i_db < 0
    assert (row.status, row.confused) == ("ok", True)


def test_nearer_to_an_interferer_than_to_the_truth_is_confused(folders: Path) -> None:
    put(folders, heard(folders, "truth/a.flac") + 1.5 * heard(folders, "other/a.wav"))
    mixture = heard(folders, "truth/a.flac") + 9 * heard(folders, "other/a.wav")
    audio.write(folders / "mix/a.wav", mixture, RATE_HZ, "FLOAT")
    assert score(trio(folders)).confused is False  # it has improved
    assert score(trio(folders, interferers=1)).confused is True
    assert score(trio(folders, mixture=False, interferers=1)).confused is True
    put(folders, heard(folders, "truth/a.flac") + 0.5 * heard(folders, "other/a.wav"))
    assert score(trio(folders, mixture=False, interferers=1)).confused is False


# Statuses.


def test_silence_is_a_status_without_values(folders: Path) -> None:
    put(folders, np.zeros(RATE_HZ, np.float32))
    row = score(trio(folders, interferers=1), ALL)
    assert (row.status, row.si_sdr_db, row.stoi) == ("silent estimate", None, None)
    audio.write(folders / "truth/a.flac", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    row = score(trio(folders, interferers=1), ALL)
    assert (row.status, row.si_sdr_db, row.confused) == ("silent truth", None, None)
    summary = summarise([asdict(r) for r in (row, score(trio(folders)))])
    assert (summary.files, summary.scored, summary.metrics) == (2, 0, {})


def test_an_estimate_with_nothing_of_the_truth_counts_as_silent(folders: Path) -> None:
    square = np.tile(np.array([0.5, 0.5, -0.5, -0.5], np.float32), 2000)
    audio.write(folders / "truth/a.flac", square, RATE_HZ)
    put(folders, np.tile(np.array([0.5, -0.5, -0.5, 0.5], np.float32), 2000))
    row = score(trio(folders, mixture=False))
    assert (row.status, row.si_sdr_db) == ("silent estimate", None)
    assert row.note == "nothing of the truth is in it."


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.3, -1.0])
def test_a_copy_is_exact_whatever_its_level(folders: Path, gain: float) -> None:
    audio.write(folders / "truth/a.flac", buzz(110, 1), RATE_HZ)
    put(folders, np.float32(gain) * heard(folders, "truth/a.flac"))
    row = score(trio(folders))
    if gain == 0.3:  # float32 has rounded it
        assert row.si_sdr_db is not None
        assert 130 < row.si_sdr_db < scoring.EXACT_DB
    else:
        assert (row.status, row.si_sdr_db, row.snr_db) == ("exact", None, None)


def test_a_flipped_sign_shows_its_values_and_is_not_in_the_means(folders: Path) -> None:
    plain = score(trio(folders), ALL)
    put(folders, -heard(folders, "est/a.target.wav"))
    row = score(trio(folders), ALL)
    assert row.status == "sign flipped"
    assert row.si_sdr_db == pytest.approx(plain.si_sdr_db)
    assert row.si_sdr_i_db == pytest.approx(plain.si_sdr_i_db)
    assert row.snr_db is not None
    assert row.snr_db < 0 < plain.snr_db  # type: ignore[operator]
    assert row.stoi == pytest.approx(plain.stoi)
    assert summarise([asdict(row)]).scored == 0
    allowed = score(trio(folders), ScoreSettings(flipped_ok=True))
    assert (allowed.status, allowed.note) == ("ok", "sign flipped.")
    assert allowed.si_sdr_db == row.si_sdr_db


def test_a_negative_inner_product_below_0_db_is_no_flip(folders: Path) -> None:
    target, other = heard(folders, "truth/a.flac"), heard(folders, "other/a.wav")
    put(folders, other - 0.3 * target)
    row = score(trio(folders))
    assert (row.status, row.confused) == ("ok", True)


@pytest.mark.parametrize("cut", [1, 79])
def test_a_small_difference_in_length_is_cut(folders: Path, cut: int) -> None:
    put(folders, heard(folders, "est/a.target.wav")[:-cut])
    row = score(trio(folders, interferers=1), ALL)
    assert (row.status, row.note) == ("ok", f"cut to {RATE_HZ - cut} samples.")
    assert row.sir_db is not None


@pytest.mark.parametrize("which", ["est/a.target.wav", "mix/a.wav", "other/a.wav"])
def test_a_large_difference_in_length_is_refused(folders: Path, which: str) -> None:
    audio.write(folders / which, heard(folders, which)[:-200], RATE_HZ)
    row = score(trio(folders, interferers=1))
    assert (row.status, row.si_sdr_db) == ("length differs", None)
    truth = folders / "truth/a.flac"
    assert row.note == f"{folders / which}: 7800 samples, but {truth} has 8000. Of one mixture?"


@pytest.mark.parametrize("which", ["est/a.target.wav", "mix/a.wav", "other/a.wav"])
def test_another_rate_is_refused_unless_resampled(folders: Path, which: str) -> None:
    plain = score(trio(folders, interferers=1))
    audio.write(folders / which, audio.read(folders / which, 16000), 16000, "FLOAT")
    row = score(trio(folders, interferers=1))
    assert row.status == "rate differs"
    truth = folders / "truth/a.flac"
    assert row.note == f"{folders / which}: 16000 Hz, but {truth} has 8000 Hz. Use --resample."
    row = score(trio(folders, interferers=1), ScoreSettings(resample=True))
    assert row.status == "ok"
    assert row.si_sdr_db == pytest.approx(plain.si_sdr_db, abs=0.5)


def test_samples_that_are_no_numbers_are_refused(folders: Path) -> None:
    sound = heard(folders, "est/a.target.wav").copy()
    sound[4000] = math.nan
    put(folders, sound)
    row = score(trio(folders))
    assert row.status == "not finite"
    assert "a.target.wav: NaN or infinite sample at 0.50 s" in row.note


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.unlink(), "no such file or folder"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("sound"), "not a readable sound file"),
        (lambda path: audio.write(path, np.stack([buzz(110, 1)] * 2), RATE_HZ), "has 2 channels"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "a.*wav"),
    ],
)
@pytest.mark.parametrize("which", ["est/a.target.wav", "mix/a.wav"])
def test_what_cannot_be_read_is_refused(folders: Path, which: str, break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    break_it(folders / which)
    row = score(trio(folders))
    assert row.status == "unreadable"
    assert row.note.startswith(f"{folders / which}: ")
    assert message in row.note or message == "a.*wav"
    assert "\n" not in row.note


def test_a_truth_that_cannot_be_read_is_refused(folders: Path) -> None:
    (folders / "truth/a.flac").write_text("no")
    assert score(trio(folders)).status == "unreadable"


# Pairing.


def test_an_estimate_without_truth_is_refused(folders: Path) -> None:
    (folders / "truth/a.flac").unlink()
    with pytest.raises(PairingError, match=r"a.target.wav: .*truth has no a.wav"):
        pair(folders / "est", folders / "truth", None)


def test_an_estimate_without_interferer_is_refused(folders: Path) -> None:
    (folders / "other/a.wav").unlink()
    with pytest.raises(PairingError, match=r"a.target.wav: .*other has no a.wav"):
        pair(folders / "est", folders / "truth", None, [folders / "other"])


def test_truths_without_estimate_are_named(folders: Path) -> None:
    assert without_estimate(folders / "est", folders / "truth") == []
    (folders / "est/deep/b.target.wav").unlink()
    assert without_estimate(folders / "est", folders / "truth") == ["deep/b"]
    assert without_estimate(folders / "est/a.target.wav", folders / "truth/a.flac") == []


def test_one_name_for_two_files_is_refused(folders: Path) -> None:
    audio.write(folders / "truth/a.wav", buzz(110, 1), RATE_HZ)
    with pytest.raises(PairingError, match=r"a.flac and .*a.wav: one name, two files"):
        pair(folders / "est", folders / "truth", None)


def test_a_folder_against_a_file_is_refused(folders: Path) -> None:
    with pytest.raises(PairingError, match="all files or all folders"):
        pair(folders / "est", folders / "truth/a.flac", None)


def test_an_empty_folder_is_refused(folders: Path) -> None:
    (folders / "none").mkdir()
    with pytest.raises(PairingError, match="no sound files in this folder"):
        pair(folders / "none", folders / "truth", None)


# Workers.


def test_workers_give_the_same_rows_in_the_same_order(folders: Path) -> None:
    trios = pair(folders / "est", folders / "truth", folders / "mix") * 12
    (folders / "est/deep/b.target.wav").unlink()
    settings = ScoreSettings(("si_sdr", "si_sdr_i", "stoi"))
    alone = list(score_all(trios, settings))
    assert [row.status for row in alone] == ["ok", "unreadable"] * 12
    before = signal.getsignal(signal.SIGINT), dict(os.environ)
    assert list(score_all(trios, settings, workers=2)) == alone
    assert (signal.getsignal(signal.SIGINT), dict(os.environ)) == before


def test_workers_stop_when_nobody_wants_their_rows(folders: Path) -> None:
    rows = score_all(pair(folders / "est", folders / "truth", None) * 100, workers=2)
    next(rows)
    began = len(scoring.active_children())
    rows.close()  # type: ignore[attr-defined]
    assert began == 2
    assert scoring.active_children() == []


def test_a_worker_that_was_killed_is_one_line(folders: Path) -> None:
    rows = score_all(pair(folders / "est", folders / "truth", None) * 400, workers=2)
    next(rows)
    for process in scoring.active_children():
        process.kill()
    with pytest.raises(McspexError, match=r"a worker was killed .*Use --workers 1"):
        list(rows)


def test_workers_are_for_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    sensible = scoring.sensible_workers
    assert [sensible(n, ("si_sdr",)) for n in (1, 199, 200)] == [1, 1, 6]
    assert [sensible(n, ("si_sdr", "pesq")) for n in (1, 39, 40, 48)] == [1, 1, 5, 6]


@needs_shared
def test_the_papers_own_demo_cases_score_as_measured_elsewhere() -> None:
    cases = SHARED / "cases"
    expected = {
        "mixtures": (-4.61, -1.45, 6.24, -1.84),
        "spexplus": (6.72, 3.90, -32.48, 2.63),
        "mcspex": (15.80, 17.29, 21.22, 17.38),
    }
    for folder, values in expected.items():
        rows = list(score_all(pair(cases / folder, cases / "truth", cases / "mixtures")))
        assert [r.si_sdr_db for r in rows] == pytest.approx(values, abs=0.01)
        if folder == "spexplus":
            assert [r.name for r in rows if r.confused] == ["same_gen_female_female"]
        # The authors' MC-SpEx turns the sign round in all four.
        assert {r.status for r in rows} == {"sign flipped" if folder == "mcspex" else "ok"}
