"""Scoring files: pairing, checks, statuses, means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcspex_cli import audio, paths
from mcspex_cli.errors import AudioError, PairingError
from mcspex_cli.evaluation.scoring import Trio, pair, score, score_all, summarise
from tests.conftest import RATE_HZ, SHARED, buzz, needs_shared


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """est/, truth/ and mix/ with two files, one of them deep."""
    for seed, name in enumerate(("a", "deep/b")):
        target, other = buzz(110, 1, seed), buzz(190, 1, seed + 9)
        for folder, sound, suffix in (
            ("truth", target, ".flac"),
            ("mix", target + other, ".wav"),
            ("est", target + 0.1 * other, ".target.wav"),
        ):
            path = tmp_path / folder / f"{name}{suffix}"
            paths.make_folders(path.parent)
            audio.write(path, sound, RATE_HZ)
    return tmp_path


def test_folders_are_paired_by_name(folders: Path) -> None:
    trios = pair(folders / "est", folders / "truth", folders / "mix")
    assert [t.name for t in trios] == ["a", "deep/b"]
    assert trios[1].truth == folders / "truth/deep/b.flac"
    assert trios[1].mixture == folders / "mix/deep/b.wav"


def test_an_improvement_is_the_estimates_value_less_the_mixtures(folders: Path) -> None:
    for row in score_all(pair(folders / "est", folders / "truth", folders / "mix")):
        assert row.status == "ok"
        assert row.si_sdr_i_db == pytest.approx(20, abs=0.5)
        assert row.si_sdr_db is not None


def test_without_mixtures_there_is_no_improvement(folders: Path) -> None:
    rows = list(score_all(pair(folders / "est", folders / "truth", None)))
    assert [r.si_sdr_i_db for r in rows] == [None, None]
    assert summarise(rows).negative is None


def test_silence_is_a_status_and_not_in_the_means(folders: Path) -> None:
    audio.write(folders / "est/a.target.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    rows = list(score_all(pair(folders / "est", folders / "truth", folders / "mix")))
    assert [r.status for r in rows] == ["silent estimate", "ok"]
    assert rows[0].si_sdr_db is None
    summary = summarise(rows)
    assert (summary.files, summary.scored) == (2, 1)
    assert summary.si_sdr_db == rows[1].si_sdr_db
    audio.write(folders / "truth/deep/b.flac", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    rows = list(score_all(pair(folders / "est", folders / "truth", folders / "mix")))
    assert rows[1].status == "silent truth"
    assert summarise(rows).si_sdr_db is None


def test_negative_improvements_are_counted(folders: Path) -> None:
    other = buzz(190, 1, 9)
    audio.write(folders / "est/a.target.wav", other, RATE_HZ)
    rows = list(score_all(pair(folders / "est", folders / "truth", folders / "mix")))
    assert summarise(rows).negative == 1


@pytest.mark.parametrize("cut", [1, 79])
def test_a_small_difference_in_length_is_cut(folders: Path, cut: int) -> None:
    path = folders / "est/a.target.wav"
    whole = audio.read(path, RATE_HZ)
    audio.write(path, whole[:-cut], RATE_HZ)
    assert score(Trio("a", path, folders / "truth/a.flac", None)).status == "ok"


def test_a_large_difference_in_length_is_refused(folders: Path) -> None:
    path = folders / "est/a.target.wav"
    audio.write(path, audio.read(path, RATE_HZ)[:-200], RATE_HZ)
    with pytest.raises(PairingError, match=r"a.target.wav: 7800 samples, but .* has 8000"):
        score(Trio("a", path, folders / "truth/a.flac", None))


def test_another_rate_is_refused(folders: Path) -> None:
    path = folders / "est/a.target.wav"
    audio.write(path, buzz(110, 1), 16000)
    with pytest.raises(PairingError, match=r"16000 Hz, but .* has 8000 Hz. Resample one"):
        score(Trio("a", path, folders / "truth/a.flac", None))


def test_two_channels_are_refused(folders: Path) -> None:
    path = folders / "est/a.target.wav"
    audio.write(path, np.stack([buzz(110, 1)] * 2), RATE_HZ)
    with pytest.raises(AudioError, match="has 2 channels, scoring needs one"):
        score(Trio("a", path, folders / "truth/a.flac", None))


def test_an_estimate_without_truth_is_refused(folders: Path) -> None:
    (folders / "truth/a.flac").unlink()
    with pytest.raises(PairingError, match=r"a.target.wav: .*truth has no a.wav"):
        pair(folders / "est", folders / "truth", None)


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
            assert summarise(rows).negative == 1
