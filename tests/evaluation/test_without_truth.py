"""Scores without a truth: whose voice it is, what is said, and what batch measured."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mcspex_cli import Extractor, audio
from mcspex_cli.errors import CheckpointError, ConfigError, McspexError, PairingError
from mcspex_cli.evaluation.metrics import open_transcriber, open_verifier, word_error_rate
from mcspex_cli.evaluation.pairing import Pairing, pair, read_transcript
from mcspex_cli.evaluation.report import read_presences
from mcspex_cli.evaluation.scoring import ScoreSettings, score_file
from tests.conftest import EXAMPLES

VTT = """WEBVTT

NOTE made by hand

1
00:00:01.000 --> 00:00:02.500 align:start
<v Ann>Good <i>morning</i>,

2
00:00:03.000 --> 00:00:04.000
everybody.
"""


# Whose voice it is.


def test_a_voice_is_more_similar_to_its_own_reference_than_to_anothers(
    warnings: Callable[[], list[str]],
) -> None:
    verifier = open_verifier(Extractor.load())
    folder = EXAMPLES / "set"
    truth = audio.read(folder / "truth/slt_1.flac", 16000)
    own, other = (verifier((folder / f"references/{n}.flac",)) for n in ("slt", "awb"))
    assert verifier((folder / "references/slt.flac",)) is own
    values = [similarity(truth, 16000) for similarity in (own, other)]
    assert values[0] > values[1] + 0.2
    wide = audio.read(folder / "truth/slt_1.flac", 44100)
    assert own(wide, 44100) == pytest.approx(values[0], abs=0.02)
    assert math.isnan(own(0 * truth, 16000))
    assert warnings() == []
    pairing = Pairing(
        "a",
        folder / "truth/slt_1.flac",
        mixture=folder / "mixtures/slt_1.flac",
        references=(folder / "references/slt.flac",),
    )
    row = score_file(pairing, ScoreSettings(("similarity", "similarity_i")), verifier)
    gain = row.values["similarity"] - row.values["input_similarity"]
    assert row.values["similarity"] == pytest.approx(values[0])
    assert row.values["similarity_i"] == pytest.approx(gain)
    assert gain > 0.05
    missing = Pairing("a", pairing.estimate, references=(folder / "none.flac",))
    row = score_file(missing, ScoreSettings(("similarity",)), verifier)
    assert (row.status, "none.flac: no such file" in row.note) == ("unreadable", True)


def test_a_model_that_is_not_calibrated_compares_no_voices(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"how similar voices are. Calibrate it: mcspex mod"):
        open_verifier(Extractor.load(tiny_folder))


# What batch measured.


def test_presence_is_that_of_the_batch_that_made_the_file(tmp_path: Path) -> None:
    rows = [{"name": name, "status": "done", "estimate": f"audio/{name}.wav"} for name in "ab"]
    rows[0]["presence"] = 0.5
    (tmp_path / "report.json").write_text(json.dumps({"format": 1, "scores": rows}))
    presences = {tmp_path / "audio/a.wav": 0.5, tmp_path / "audio/b.wav": None}
    assert read_presences(tmp_path / "audio") == presences
    assert read_presences(tmp_path / "audio/a.wav") == presences
    assert read_presences(tmp_path / "audio/x/y/z.wav") == presences
    assert read_presences(tmp_path) == {}  # it is not beside the report
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot be read as JSON .* Run mcspex batch again"):
        read_presences(tmp_path / "audio")


# What is said.


@pytest.mark.parametrize(
    ("words", "transcript", "rate"),
    [
        ("good morning everybody", "Good morning, everybody!", 0),
        ("good evening everybody", "Good morning, everybody.", 1 / 3),
        ("", "one two", 1),
        ("one two three four five", "one", 4),
        ("the cat", "the the cat", 1 / 3),
        ("one two three", "One\ntwo,\r\nthree.\n", 0),
        ("ça va", "Ça va ?", 0),
        ("anything", "", math.nan),
        ("anything", " -- ...\n", math.nan),
    ],
)
def test_word_error_rates(words: str, transcript: str, rate: float) -> None:
    assert word_error_rate(words, transcript) == pytest.approx(rate, nan_ok=True)


def test_transcripts_are_text_or_webvtt(tmp_path: Path) -> None:
    for name, content in (("a.txt", "\ufeffGood morning,\neverybody."), ("b.vtt", VTT)):
        (tmp_path / name).write_text(content, "utf-8")
        assert read_transcript(tmp_path / name).split() == ["Good", "morning,", "everybody."]


def test_transcripts_belong_to_estimates_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.target.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "other.json").write_text("{}")
    estimates = estimates_of(tmp_path / "e", "a.wav", "deep/b.wav")
    pairings = pair(estimates, transcripts=tmp_path)
    assert [pairing.transcript for pairing in pairings] == ["one", "two"]
    (one,) = pair(estimates / "a.wav", transcripts=tmp_path / "deep/b.target.txt")
    assert one.transcript == "two"


def estimates_of(folder: Path, *names: str) -> Path:
    """A folder with files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("change", "place", "kind", "message"),
    [
        (lambda f: None, "t/a.txt", PairingError, "must be all files or all folders"),
        (lambda f: None, "t", PairingError, r"b.wav: no transcript \(.txt, .vtt\) called b in "),
        (
            lambda f: (f / "t/a.vtt").touch(),
            "t",
            PairingError,
            r"a.txt and .*a.vtt: both have the name a. Move one",
        ),
        (lambda f: (f / "t/b.txt").write_bytes(b"\xff"), "t", ConfigError, "text in UTF-8"),
        (
            lambda f: (f / "t/b.vtt").write_text("two"),
            "t",
            ConfigError,
            r"b.vtt: is not WebVTT \(.*\). Name plain text .txt",
        ),
    ],
)
def test_transcripts_that_cannot_be_used_are_one_line(
    tmp_path: Path,
    change: Callable[[Path], object],
    place: str,
    kind: type[McspexError],
    message: str,
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.txt").write_text("one")
    change(tmp_path)
    estimates = estimates_of(tmp_path / "e", "a.wav", "b.wav")
    with pytest.raises(kind, match=message) as error:
        pair(estimates, transcripts=tmp_path / place)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_transcript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.srt").touch()
    with pytest.raises(ConfigError, match=r"is not a transcript. Its name must end in .txt"):
        read_transcript(tmp_path / "a.srt")


@pytest.mark.skipif(
    not importlib.util.find_spec("faster_whisper"), reason="faster-whisper is not installed"
)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bogus", "--whisper bogus: is not on this disk. Name the folder of a faster-whisper"),
        ("empty", "cannot be loaded (it has no tokenizer.json). Name the folder"),
        ("damaged", "cannot be loaded (Unable to open file 'model.bin'"),
    ],
)
def test_a_whisper_model_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        open_transcriber(model)
    assert message in str(error.value)


@pytest.mark.skipif(
    bool(importlib.util.find_spec("faster_whisper")), reason="faster-whisper is installed"
)
def test_without_faster_whisper_the_line_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install '.\[transcripts\]'"):
        open_transcriber("base")
