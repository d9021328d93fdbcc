"""`mcspex extract` of real recordings: spans, rests, activity, absent voices, levels, pipes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import find_checkpoint, write_calibration
from mcspex_cli.evaluation.metrics import si_sdr
from mcspex_cli.extraction.job import (
    ACTIVITY_FORMATS,
    HIGHEST_GAIN_DB,
    LOWEST_GAIN_DB,
    ExtractionOptions,
)
from tests.conftest import EXAMPLES, RATE_HZ, buzz, calibration
from tests.media import SoundTrack, make

Run = Callable[..., Result]

SET = EXAMPLES / "set"


def calibrated(tiny: Path, folder: Path, **told: Any) -> Path:
    """A copy of a model with a calibration by which a threshold alone decides."""
    shutil.copytree(tiny, folder)
    info = find_checkpoint(folder)
    told = asdict(calibration(info.config.embedding, **{"threshold": 0.0, **told}))
    write_calibration(info, told)
    return folder


@pytest.fixture(scope="module")
def models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models for which every voice is there, none is, or the wrong one came out; and others."""
    root = tmp_path_factory.mktemp("calibrated")
    kinds: dict[str, dict[str, Any]] = {
        "present": {},
        "absent": {"threshold": 1.0},
        "wrong": {"wrong_speaker": -9.0},
    }
    made = {name: str(calibrated(tiny_folder, root / name, **kinds[name])) for name in kinds}
    return {**made, "unknown": str(tiny_folder)}


@pytest.fixture
def extract(scene: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `mcspex extract` in the scene's folder with one of `models`, or the bundled one."""
    monkeypatch.chdir(scene)

    def run(*arguments: str | int | Path, model: str = "present", stdin: bytes = b"") -> Result:
        words = ["extract", *map(str, arguments), "--device", "cpu"]
        words += ["--model", models[model]] if model else ["--passes", "1"]
        return CliRunner().invoke(main, words, input=stdin)

    return run


PLAIN = ("mixture.wav", "--ref", "reference.wav", "-o", "o.wav")


def get(path: str | Path) -> np.ndarray:
    """A file's one channel."""
    return soundfile.read(path, dtype="float64")[0]


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- references in the mixture ----------------------------------------------------------------


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody speaks alone for five seconds, then among others; a second's silence ends it."""
    path = tmp_path_factory.mktemp("meeting") / "meeting.wav"
    parts = [audio.read(EXAMPLES / f"{name}.flac", RATE_HZ) for name in ("reference", "mixture")]
    sound = np.concatenate([*parts, np.zeros(2 * RATE_HZ)]).astype(np.float32)
    audio.write(path, sound, RATE_HZ)
    return path


def test_a_span_is_the_reference_that_it_would_be_if_cut_out(extract: Run, meeting: Path) -> None:
    span = ("--ref-span", "0:00.5-4.5", "-o", "a.wav")
    done = extract(meeting, *span, "--json")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row["references"] == [f"{meeting} 0.5-4.5 s"]
    soundfile.write("cut.wav", get(meeting)[4000:36_000], RATE_HZ, subtype="PCM_16")
    assert extract(meeting, "--ref", "cut.wav", "-o", "b.wav").exit_code == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    assert extract(meeting, *span, "--overwrite", model="").exit_code == 0
    truth = audio.read(EXAMPLES / "truth.flac", RATE_HZ)
    length = len(audio.read(EXAMPLES / "reference.flac", RATE_HZ))
    there = slice(length, length + len(truth))
    before = si_sdr(get(meeting)[there], truth)
    assert si_sdr(get("a.wav")[there], truth) > before + 5


def test_spans_and_clips_are_one_voice(extract: Run, meeting: Path) -> None:
    words = ("--ref-span", "0.5-2", "--ref-span", "3-4.5", "--ref", "reference.wav")
    done = extract(meeting, *words, "-o", "a.wav", "--activity", "a.srt", "--json")
    assert done.exit_code == 0, done.output
    names = ["reference.wav", f"{meeting} 0.5-2.0 s", f"{meeting} 3.0-4.5 s"]
    assert json.loads(done.stdout)["references"] == names
    assert set(Path("a.srt").read_text().splitlines()[2::4]) <= {"target"}


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (
            "8-99",
            "meeting.wav: ends at 11.10 s, before the span 8.0-99.0 s does. Choose another span.",
        ),
        ("9.5-11", "meeting.wav 9.5-11.0 s: is silent. Check the recording and its channels."),
    ],
)
def test_a_span_of_no_use_is_one_line(
    extract: Run, meeting: Path, scene: Path, span: str, message: str
) -> None:
    before = listing(scene)
    done = extract(meeting, "--ref-span", span, "-o", "a.wav")
    assert (done.exit_code, done.stderr) == (1, f"error: {meeting.parent}/{message}\n")
    assert listing(scene) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mixture.wav",), "whose voice? Add --ref FILE, or --ref-span FROM-TO."),
        (("mixture.wav", "--ref-span", "soon"), "'soon' is not a span."),
        (("mixture.wav", "--ref-span", "0:75-1:90"), "'0:75-1:90' is not a span."),
        (("mixture.wav", "--ref-span", "1.5-1"), "1.5-1: this span ends before it starts."),
        (("mixture.wav", "--ref-span", "1-1.1"), "1-1.1: 0.10 s is too short."),
        (("mixture.wav", "truth.wav", "--ref-span", "0-1"), "works with one MIXTURE only"),
        ((*PLAIN, "--residual", "-"), "only -o can be standard output."),
        ((*PLAIN, "--activity", "-"), "only -o can be standard output."),
        (("-", "--ref", "reference.wav"), "from standard input needs -o FILE, or -o -."),
        (("-", "-", "--ref", "reference.wav", "-o", "x"), "only once; name - once."),
        (
            (*PLAIN[:3], "-o", "-", "--json"),
            "-o - works with one MIXTURE only, and not with --json",
        ),
        (("truth.wav", *PLAIN[:3], "-o", "-"), "-o - works with one MIXTURE only"),
        ((*PLAIN, "--track", ""), "'--track': it is empty."),
        ((*PLAIN, "--level", "lufs"), "level 'lufs' is not one of match"),
        ((*PLAIN, "--level", "lufs=3"), "level 'lufs=3' is not one of match"),
        ((*PLAIN, "--absent", "ignore"), "'ignore' is none of keep, mute, fail"),
        ((*PLAIN, "--wet", "41"), "41.0 is not in the range"),
        ((*PLAIN, "--dry", "-121"), "-121.0 is not in the range"),
        ((*PLAIN, "--dry", "loud"), "'loud' is not a valid float"),
    ],
)
def test_wrong_usage_is_exit_2(
    extract: Run, scene: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = listing(scene)
    done = extract(*arguments)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.exit_code == 2
    assert message in said
    assert listing(scene) == before


# --- what is left, and when it speaks ----------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with all that the bundled model makes of the example, and the JSON row."""
    folder = tmp_path_factory.mktemp("example")
    words = ["extract", str(EXAMPLES / "mixture.flac"), "--ref", str(EXAMPLES / "reference.flac")]
    words += ["-o", f"{folder}/o.wav", "--residual", f"{folder}/rest.flac", "--json"]
    done = CliRunner().invoke(main, [*words, "--activity", f"{folder}/a.json", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return folder, json.loads(done.stdout)


def test_voice_and_rest_are_the_mixture(example: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = example
    voice, rest = get(folder / "o.wav"), get(folder / "rest.flac")
    mixture, truth = get(EXAMPLES / "mixture.flac"), get(EXAMPLES / "truth.flac")
    assert np.abs(voice + rest - mixture).max() <= 2 / 2**15
    assert si_sdr(rest, mixture - truth) > 5
    assert listing(folder) == ["a.json", "o.wav", "rest.flac"]


def test_the_bundled_model_tells_that_the_voice_is_there(
    example: tuple[Path, dict[str, Any]],
) -> None:
    folder, row = example
    assert row["present"] is True
    assert row["wrong_speaker"] is False
    assert row["presence"] > 0.9
    assert (row["residual"], row["activity"]) == (f"{folder}/rest.flac", f"{folder}/a.json")
    assert (row["residual_gain_db"], row["limited"]) == (0.0, False)
    spans = [(segment["start_s"], segment["end_s"]) for segment in row["segments"]]
    assert spans == [(0.0, 2.0), (2.0, 4.0), (4.0, 4.158)]
    assert row["active_s"] == pytest.approx(3.9, abs=0.3)


def test_activity_is_where_the_truth_is(example: tuple[Path, dict[str, Any]]) -> None:
    folder, row = example
    document = json.loads((folder / "a.json").read_text())
    assert document["speaker"] == "reference"
    assert document["mixture"] == str(EXAMPLES / "mixture.flac")
    assert document["presence"] == row["presence"]
    assert document["active_s"] == row["active_s"]
    truth = audio.read(EXAMPLES / "truth.flac", RATE_HZ)
    inside = np.zeros(len(truth), bool)
    for span in document["spans"]:
        inside[round(span["start_s"] * RATE_HZ) : round(span["end_s"] * RATE_HZ)] = True
    assert np.square(truth[inside]).sum() > 0.98 * np.square(truth).sum()


def test_files_or_folders_for_one_or_several(extract: Run, scene: Path) -> None:
    audio.write(scene / "more.wav", buzz(90, 1), RATE_HZ)
    before = set(listing(scene))
    words = ("mixture.wav", "more.wav", "--ref", "reference.wav", "-o", "x", "--residual", "x")
    done = extract(*words, "--activity", "y/z")
    assert done.exit_code == 0, done.output
    expected = {f"x/{name}.{kind}.wav" for name in ("mixture", "more") for kind in ("target",)}
    expected |= {"x/mixture.residual.wav", "x/more.residual.wav"}
    expected |= {"y/z/mixture.activity.json", "y/z/more.activity.json"}
    assert set(listing(scene)) - before == expected
    first = done.stderr.splitlines()[0]
    assert first.startswith("x/mixture.target.wav  (2.0 s in ")
    assert ", presence 0." in first
    assert first.endswith(")  x/mixture.residual.wav  y/z/mixture.activity.json")
    done = extract(*words, "--activity", "y/z")
    message = "error: x/mixture.target.wav: exists already. Add --overwrite to replace it.\n"
    assert (done.exit_code, done.stderr) == (1, message)
    assert extract(*words, "--activity", "y/z", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--residual", "r.mp3"),
            f"r.mp3: cannot write this format. End the name in {', '.join(audio.FORMATS)}.",
        ),
        (
            ("--activity", "a.txt"),
            f"a.txt: cannot write this format. End the name in {', '.join(ACTIVITY_FORMATS)}.",
        ),
        (
            ("--residual", "truth.wav"),
            "truth.wav: exists already. Add --overwrite to replace it.",
        ),
        *(
            (
                ("--residual", name),
                f"{name}: is named for two outputs. Give each a name that differs by more than "
                "upper and lower case.",
            )
            for name in ("o.wav", "O.wav")
        ),
        (
            ("--residual", "o.wav/r.wav"),
            "o.wav/r.wav: its folder has the name of another output. Rename one.",
        ),
    ],
)
def test_a_bad_place_is_one_line_before_any_work(
    extract: Run, scene: Path, words: tuple[str, str], message: str
) -> None:
    before = {path: path.read_bytes() for path in scene.iterdir()}
    done = extract(*PLAIN, *words)
    assert (done.exit_code, done.stderr) == (1, f"error: {message}\n")
    assert {path: path.read_bytes() for path in scene.iterdir()} == before


@pytest.mark.parametrize("suffix", ["json", "rttm", "srt"])
def test_activity_of_an_absent_voice_is_empty(extract: Run, suffix: str) -> None:
    done = extract(*PLAIN, "--activity", f"a.{suffix}", model="absent")
    assert done.exit_code == 0
    text = Path(f"a.{suffix}").read_text()
    assert json.loads(text)["spans"] == [] if suffix == "json" else text == ""
    assert done.stderr.startswith(
        "warning: o.wav: the voice is probably not in the mixture (presence 0."
    )
    assert done.stderr.splitlines()[0].endswith("; the result is another voice, or a remnant.")


# --- voices that are not there -----------------------------------------------------------------


def test_an_absent_voice_is_told_by_the_bundled_model(extract: Run) -> None:
    """Asked for somebody who is not in the recording."""
    words = (SET / "mixtures" / "slt_1.flac", "--ref", SET / "references" / "awb.flac")
    done = extract(*words, "-o", "o.wav", "--json", model="")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert (row["present"], row["active_s"]) == (False, 0)
    assert row["presence"] < 0.5
    assert "warning: o.wav: the voice is probably not in " in done.stderr
    assert np.abs(get("o.wav")).max() > 0


def test_an_absent_voice_is_silenced_if_asked_for(extract: Run) -> None:
    done = extract(*PLAIN, "--absent", "mute", "--residual", "r.wav", "--json", model="absent")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("; the result is silence.\n")
    assert not get("o.wav").any()
    np.testing.assert_array_equal(get("r.wav"), get("mixture.wav"))
    row = json.loads(done.stdout)
    assert (row["silent"], row["present"]) == (True, False)
    done = extract(*PLAIN, "--absent", "mute", "--dry", "-20", "--overwrite", model="absent")
    assert done.stderr.splitlines()[0].endswith("; the result is the mixture alone.")


def test_an_absent_voice_is_exit_5_if_asked_for(extract: Run, scene: Path) -> None:
    before = listing(scene)
    done = extract(*PLAIN, "--absent", "fail", "--residual", "r.wav", model="absent")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert done.stderr.startswith("error: mixture.wav: the voice is not in it (presence 0.")
    assert done.stderr.endswith("). Check the reference, or use --absent keep.\n")
    assert listing(scene) == before


def test_of_several_some_absent_are_exit_3_all_absent_5(extract: Run, scene: Path) -> None:
    mixtures = [SET / "mixtures" / f"{name}.flac" for name in ("slt_2", "awb_1")]
    words = ("--ref", SET / "references" / "awb.flac", "-o", "out", "--absent", "fail")
    done = extract(*mixtures, *words, model="")
    assert done.exit_code == 3, done.output
    assert "slt_2.flac: the voice is not in it" in done.stderr
    assert done.stderr.endswith("error: 1 of 2 mixtures failed, see above.\n")
    assert listing(scene / "out") == ["awb_1.target.wav"]
    audio.write(scene / "more.wav", buzz(90, 1), RATE_HZ)
    both = ("mixture.wav", "more.wav", "--ref", "reference.wav", "-o", "n", "--absent", "fail")
    done = extract(*both, model="absent")
    assert done.exit_code == 5
    assert done.stderr.endswith("error: 2 of 2 mixtures failed, see above.\n")
    (scene / "more.wav").write_text("no sound")
    assert extract(*both, model="absent").exit_code == 1
    assert listing(scene / "n") == []


@pytest.mark.parametrize("absent", ["mute", "fail"])
def test_a_model_that_cannot_tell_is_refused(extract: Run, scene: Path, absent: str) -> None:
    before = listing(scene)
    done = extract(*PLAIN, "--absent", absent, model="unknown")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "cannot tell whether a voice is there. Use --absent keep, or calibrate" in done.stderr
    assert listing(scene) == before
    done = extract(*PLAIN, "--json", model="unknown")
    row = json.loads(done.stdout)
    assert (row["presence"], row["present"], row["wrong_speaker"]) == (None, None, None)
    assert row["segments"] == []


@pytest.mark.parametrize(
    ("told", "message"),
    [({"centre": [0.0]}, "is of another model"), ({"segment_weights": None}, "is malformed")],
)
def test_a_bad_calibration_is_one_line(
    extract: Run, scene: Path, tiny_folder: Path, told: dict[str, Any], message: str
) -> None:
    calibrated(tiny_folder, scene / "odd", **told)
    done = CliRunner().invoke(main, ["extract", *PLAIN, "--model", "odd", "--device", "cpu"])
    expected = f"error: odd: its calibration {message}. Calibrate it again.\n"
    assert (done.exit_code, done.stderr) == (1, expected)


def test_the_wrong_speaker_is_a_warning(extract: Run) -> None:
    # Of random networks, several passes leave nothing in the residual.
    done = extract(*PLAIN, "--json", "--passes", "1", model="wrong")
    assert done.exit_code == 0
    assert done.stderr == (
        "warning: o.wav: may follow the wrong person: what is left sounds like the reference. "
        "Try a longer reference, or listen to the residual (--residual).\n"
    )
    assert json.loads(done.stdout)["wrong_speaker"] is True
    assert extract(*PLAIN, "--overwrite", "-q", model="present").output == ""


def test_a_voice_alone_is_not_the_wrong_one(extract: Run) -> None:
    for name in ("truth", "set/truth/awb_1"):
        reference = "reference" if name == "truth" else "set/references/awb"
        words = (EXAMPLES / f"{name}.flac", "--ref", EXAMPLES / f"{reference}.flac")
        done = extract(*words, "-o", "o.wav", "--overwrite", "-q", model="")
        assert (done.exit_code, done.output) == (0, "")


# --- how loud ----------------------------------------------------------------------------------


def test_loudness_is_a_broadcasters(extract: Run) -> None:
    import pyloudnorm  # which imports scipy.signal: too long for all who only collect tests

    words = (EXAMPLES / "mixture.flac", "--ref", EXAMPLES / "reference.flac", "-o", "o.wav")
    words = (*words, "--json")
    done = extract(*words, "--level", "lufs=-35", "--subtype", "FLOAT", model="")
    assert done.exit_code == 0, done.output
    meter = pyloudnorm.Meter(16_000, filter_class="DeMan")
    assert meter.integrated_loudness(get("o.wav")) == pytest.approx(-35, abs=0.1)
    done = extract(*words, "--level", "lufs=0", "--overwrite", model="")
    assert json.loads(done.stdout)["limited"] is True
    assert done.stderr.startswith("warning: o.wav: turned down by ")
    assert np.abs(get("o.wav")).max() == pytest.approx(0.891, abs=1e-3)


def test_a_warning_of_an_output_names_it_whatever_the_mixture_is_called(
    extract: Run, scene: Path
) -> None:
    (scene / "mixture.wav").rename(scene / "t")  # as "turned down" begins
    done = extract("t", *PLAIN[1:], "--dry", "40")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("warning: o.wav: turned down by ")


def test_gains_have_the_limits_of_python_users(extract: Run) -> None:
    for gain_db in (LOWEST_GAIN_DB, HIGHEST_GAIN_DB):
        ExtractionOptions(wet_db=gain_db, dry_db=gain_db)
    for option in ("--wet", "--dry"):
        done = extract(*PLAIN, option, HIGHEST_GAIN_DB + 1)
        assert done.exit_code == 2
        assert f"{LOWEST_GAIN_DB}<=x<={HIGHEST_GAIN_DB}" in done.stderr


def test_the_surroundings_are_mixed_back(extract: Run) -> None:
    assert extract(*PLAIN, "--wet", "-120", "--dry", "0").exit_code == 0
    assert np.abs(get("o.wav") - get("mixture.wav")).max() <= 2 / 2**15
    words = (*PLAIN, "--overwrite", "--subtype", "FLOAT")
    assert extract(*words).exit_code == 0
    voice = get("o.wav")
    assert extract(*words, "--wet", "-6", "--dry", "-20").exit_code == 0
    expected = 10 ** (-6 / 20) * voice + 0.1 * get("mixture.wav")
    np.testing.assert_allclose(get("o.wav"), expected, atol=1e-5)


# --- streams -----------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def test_standard_input_is_called_so(extract: Run, scene: Path, temporary: Path) -> None:
    words = ("-", "--ref-span", "0.2-1.9", "-o", "o.wav", "--residual", "r", "--activity", "a")
    sound = (scene / "mixture.wav").read_bytes()
    done = extract(*words, "--json", model="absent", stdin=sound)
    assert done.exit_code == 0, done.output
    assert "o.wav: the voice is probably not in the mixture (presence" in done.stderr
    row = json.loads(done.stdout)
    assert (row["mixture"], row["references"]) == ("stdin", ["stdin 0.2-1.9 s"])
    assert (row["residual"], row["activity"]) == ("r/stdin.residual.wav", "a/stdin.activity.json")
    assert json.loads(Path("a/stdin.activity.json").read_text())["mixture"] == "stdin"
    assert str(temporary) not in done.output
    assert list(temporary.iterdir()) == []
    done = extract("mixture.wav", *words[1:3], "-o", "p.wav", model="absent")
    assert Path("o.wav").read_bytes() == Path("p.wav").read_bytes()


def test_standard_output_gets_the_sound_alone(extract: Run, scene: Path, temporary: Path) -> None:
    assert extract(*PLAIN).exit_code == 0
    done = extract("mixture.wav", "--ref", "reference.wav", "-o", "-", "--residual", "r.wav")
    assert done.stdout_bytes == Path("o.wav").read_bytes()
    assert done.stderr.startswith("standard output  (2.0 s in ")
    assert len(get("r.wav")) == len(get("mixture.wav"))
    assert list(temporary.iterdir()) == []
    done = extract("mixture.wav", "--ref", "reference.wav", "-o", "-", model="absent")
    assert done.stderr.startswith(
        "warning: standard output: the voice is probably not in the mixture"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "error: standard input is empty. Pipe a sound file into it.\n"),
        (b"no sound\n" * 99, "error: standard input: not a readable sound file"),
        (None, "error: standard input: truncated: 1.25 of 2.00 s are there. Copy it again"),
    ],
)
def test_a_stream_of_no_use_is_one_line(
    extract: Run, scene: Path, temporary: Path, data: bytes | None, message: str
) -> None:
    before = listing(scene)
    sound = (scene / "mixture.wav").read_bytes()[:20_000] if data is None else data
    done = extract("-", "--ref", "reference.wav", "-o", "o.wav", "--residual", "r.wav", stdin=sound)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(message)
    assert str(temporary) not in done.stderr
    assert listing(scene) == before


def test_times_are_the_containers_and_tracks_can_be_chosen(extract: Run, scene: Path) -> None:
    mixture, other = audio.read(EXAMPLES / "mixture.flac", RATE_HZ), get("truth.wav")
    tracks = (SoundTrack(mixture, RATE_HZ, "flac", 2.0, "eng"), SoundTrack(other, RATE_HZ, "flac"))
    video = make(scene / "talk.mkv", *tracks, picture_s=6)
    words = (video, "--ref", EXAMPLES / "reference.flac", "-o", "o.wav", "--overwrite", "--json")
    done = extract(*words, "--activity", "a.json", model="")
    row = json.loads(done.stdout)
    assert row["start_s"] == pytest.approx(2, abs=0.05)
    assert row["seconds"] == pytest.approx(len(mixture) / RATE_HZ, abs=0.1)
    assert row["segments"][0]["start_s"] == pytest.approx(2, abs=0.05)
    document = json.loads(Path("a.json").read_text())
    assert document["spans"][0]["start_s"] >= 1.9
    assert document["segments"] == row["segments"]
    assert done.stderr.count("sound track") == 1
    assert "talk.mkv: has 2 sound tracks: " in done.stderr
    for track, seconds, name in (("eng", len(mixture) / RATE_HZ, "a.srt"), ("2", 2.0, "a.rttm")):
        done = extract(*words, "--track", track, "--activity", name, model="")
        assert json.loads(done.stdout)["seconds"] == pytest.approx(seconds, abs=0.1)
        assert "sound tracks" not in done.stderr
    assert Path("a.srt").read_text().split("\n")[1] >= "00:00:01,9"
    assert extract(*words, "--track", "7").exit_code == 1


@pytest.mark.parametrize("voice", [("--ref", "reference.wav"), ("--ref-span", "0-1")])
def test_what_is_left_of_a_damaged_mixture_is_kept_if_asked_for(
    extract: Run, scene: Path, voice: tuple[str, str]
) -> None:
    data = (scene / "mixture.wav").read_bytes()
    (scene / "cut.wav").write_bytes(data[:20_000])
    words = ("cut.wav", *voice, "-o", "o.wav", "--json")
    assert extract(*words).exit_code == 1
    done = extract(*words, "--damaged", "keep")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["seconds"] == pytest.approx(1.25, abs=0.01)
    assert done.stderr.count("warning: cut.wav: truncated") == 1


@pytest.mark.parametrize("output", ["", "new/deep/v.wav"])
def test_a_name_is_not_empty_and_its_folder_is_made(extract: Run, output: str) -> None:
    done = extract("mixture.wav", "--ref", "reference.wav", "-o", output)
    assert done.exit_code == (0 if output else 2)
    assert Path(output).is_file() if output else "the name is empty" in done.stderr


def test_a_mixture_is_not_its_own_reference_and_a_folder_is_for_batch(
    extract: Run, scene: Path
) -> None:
    shutil.copy("mixture.wav", "copy.wav")
    for reference in ("mixture.wav", "copy.wav"):
        done = extract("mixture.wav", "--ref", reference)
        assert done.exit_code == 1
        assert "mixture.wav: is its own reference" in done.stderr
    done = extract(scene, "--ref", "reference.wav")
    assert f"mcspex batch {scene} --ref FILE -o DIR" in done.stderr
