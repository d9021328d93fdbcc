"""benchmarks/limits.py: its conditions are what they say, and every one of them runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import limits
from benchmarks.conditions import (
    BASELINE,
    EVERYTHING,
    TABLES,
    Change,
    at_level,
    clipped,
    coded,
    draw_plans,
    in_noise,
    in_room,
    overlapping,
    several,
    telephone,
    two,
    without_target,
)
from benchmarks.limits import markdown, summarise
from mcspex_cli import audio, si_sdr
from mcspex_cli.training.data import Corpus
from mcspex_cli.training.mixtures import Batch, MixtureSampler
from tests.conftest import RATE_HZ, buzz


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four speakers of three files of 4 s, and a table of their sexes."""
    folder = tmp_path_factory.mktemp("speakers")
    for number, pitch_hz in enumerate((100, 130, 170, 220)):
        for take in range(3):
            path = folder / f"s{number}" / f"{number}{take}.wav"
            path.parent.mkdir(exist_ok=True)
            audio.write(path, buzz(pitch_hz, 4.0, 10 * number + take), RATE_HZ)
    sexes = "".join(f"s{number},{'MMFF'[number]}\n" for number in range(4))
    (folder / "speakers.csv").write_text(f"speaker,sex\n{sexes}")
    return folder


@pytest.fixture(scope="module")
def corpus(speakers: Path) -> Corpus:
    """The four speakers."""
    return Corpus.read([speakers], RATE_HZ)


def made(corpus: Corpus, change: Change) -> Batch:
    """Four mixtures in a condition."""
    plans = [change(plan) for plan in draw_plans(corpus, 4, 0)]
    return MixtureSampler(corpus, EVERYTHING).compose(plans)


def level_db(signals: object) -> np.ndarray:
    """RMS levels [row] of signals [row, sample]."""
    return 10 * np.log10(np.mean(np.square(np.asarray(signals)), axis=-1))


def test_every_condition_is_measured(
    speakers: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["limits", str(speakers), "--model", str(tiny_folder), "-n", "2"]
    words += ["--genders", str(speakers / "speakers.csv"), "-o", str(tmp_path / "limits.json")]
    monkeypatch.setattr(sys, "argv", words)
    limits.main()
    said = capsys.readouterr().out
    tables = json.loads((tmp_path / "limits.json").read_text())["tables"]
    assert list(tables) == [*TABLES, "absence"]
    firsts = [lines[0] for name, lines in tables.items() if name != "absence"]
    assert all(first == firsts[0] for first in firsts)
    assert firsts[0]["condition"] == BASELINE.name
    for name, conditions in TABLES.items():
        assert [line["condition"] for line in tables[name]][-len(conditions) :] == [
            condition.name for condition in conditions
        ]
        assert all(f"| {condition.name} |" in said for condition in conditions)
        for line in tables[name][-len(conditions) :]:
            assert np.isfinite(
                [line["si_sdr_db"], line["change_db"], *line["each_si_sdr_i_db"]]
            ).all()
    assert tables["overlap"][0]["confused_percent"] in (0, 50, 100)
    assert "target_alone_db" not in tables["overlap"][0]
    assert all("target_alone_db" in line for line in tables["overlap"][1:])
    groups = [x["mixtures"] for x in tables["talkers"] if "gender" in x["condition"]]
    assert sum(groups) == 2
    assert all(0 <= line["auc"] <= 1 for line in tables["absence"])


def test_only_the_tables_asked_for(
    speakers: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["limits", str(speakers / "s0"), str(speakers / "s3"), "--model", str(tiny_folder)]
    monkeypatch.setattr(sys, "argv", [*words, "-n", "1", "--only", "talkers"])
    limits.main()
    said = capsys.readouterr().out
    assert said.startswith("talkers\n")
    assert BASELINE.name in said
    assert "three talkers" not in said  # there are two
    assert "noise" not in said


def test_voices_and_cuts_are_the_same_in_all_conditions(corpus: Corpus) -> None:
    plain = made(corpus, two)
    for change in (in_noise(5), several(3), several(4), overlapping(0.5)):
        changed = made(corpus, change)
        for ours, theirs in zip(plain.target, changed.target, strict=True):
            heard = theirs.abs() > 1e-3
            assert si_sdr(theirs[heard], ours[heard]) > 20  # but for softer ends
        assert (changed.speaker == plain.speaker).all()
    assert level_db(made(corpus, several(4)).interferer - plain.interferer).min() > -60


def test_conditions_are_what_they_say(corpus: Corpus) -> None:
    noisy = made(corpus, in_noise(10))
    speech = noisy.mixture - noisy.noise
    assert level_db(speech) - level_db(noisy.noise) == pytest.approx(10, abs=0.01)
    assert not made(corpus, two).noise.any()
    apart = made(corpus, overlapping(0))
    both = (apart.target.abs() > 1e-4) & (apart.interferer.abs() > 1e-4)
    assert both.float().mean() < 0.01
    absent = made(corpus, without_target(two))
    assert not absent.target.any()
    assert absent.interferer.any()
    early, late = (made(corpus, in_room(s, 0.5)) for s in (0.2, 0.8))
    lost = [si_sdr(b.mixture[0] - b.interferer[0], b.target[0]) for b in (early, late)]
    assert lost[0] > lost[1] + 3  # the late echoes count against the estimate
    far = made(corpus, in_room(0.8))
    assert lost[1] > si_sdr(far.mixture[0] - far.interferer[0], far.target[0])


def test_recordings_are_treated_as_said() -> None:
    voice = buzz(120, 2.0)
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    for hertz, passes in ((100, False), (1000, True), (3800, False)):
        tone = np.sin(2 * np.pi * hertz * time).astype(np.float32)
        assert (level_db(telephone(tone, RATE_HZ)) > -4) == passes
    assert level_db(at_level(-40)(voice, RATE_HZ)) == pytest.approx(-40, abs=0.1)
    loud = clipped(10)(voice, RATE_HZ)
    assert np.abs(loud).max() == pytest.approx(1, abs=1e-4)
    assert si_sdr(loud, voice) < 20
    codecs = coded("MP3", "MPEG_LAYER_III", 0.5), coded("OGG", "OPUS", 0.9), coded("WAV", "GSM610")
    for codec in codecs:
        decoded = codec(voice, RATE_HZ)
        assert decoded.shape == voice.shape
        assert 5 < si_sdr(decoded, voice) < 60  # in time, and not untouched


def test_differences_are_paired() -> None:
    first = [{"si_sdr_db": float(k), "si_sdr_i_db": k - 1.0} for k in range(4)]
    other = [{"si_sdr_db": k - 2.0, "si_sdr_i_db": k - 3.0} for k in range(4)]
    for rows in (first, other):
        for row in rows:
            row |= {"target_alone_db": None, "other_alone_db": None}
    line = summarise("other", other, first)
    assert (line["change_db"], line["change_error_db"]) == (-2.0, 0.0)
    assert line["confused_percent"] == 75
    assert line["standard_error_db"] == pytest.approx(np.sqrt(5 / 3 / 4))
    last = markdown([summarise("first", first), line]).splitlines()[-1]
    assert last == "| other | -0.5 dB | -1.5 ± 0.6 dB | 75 % | -2.0 ± 0.0 dB |"
