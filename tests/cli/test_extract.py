"""`mcspex extract` as a user types it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from mcspex_cli.errors import line
from mcspex_cli.extraction import runtime
from tests.conftest import RATE_HZ, ROOT, auto_precision, buzz
from tests.test_audio import BAD, make_bad

Run = Callable[..., Result]

ASKED = ("mixture.wav", "--ref", "reference.wav")


@pytest.fixture
def extract(scene: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `mcspex extract` in the scene's folder with the tiny model."""
    monkeypatch.chdir(scene)

    def run(*arguments: str, model: str = str(tiny_folder)) -> Result:
        words = ["extract", *arguments, "--model", model, "--device", "cpu"]
        return CliRunner().invoke(main, words)

    return run


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_the_default_output_lies_beside_the_mixture(extract: Run, scene: Path) -> None:
    done = extract("mixture.wav", "--ref", "reference.wav")
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("mixture.target.wav  (2.0 s in ")
    assert "real-time factor" in done.stderr
    info = soundfile.info("mixture.target.wav")
    assert (info.frames, info.samplerate, info.subtype) == (16000, 8000, "PCM_16")


def test_json_has_one_object_for_each_mixture(extract: Run, scene: Path, tiny_folder: Path) -> None:
    audio.write(scene / "more.wav", buzz(90, 1), RATE_HZ)
    done = extract("mixture.wav", "more.wav", "--ref", "reference.wav", "-o", "out", "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["mixture"] for r in rows] == ["mixture.wav", "more.wav"]
    assert [r["output"] for r in rows] == ["out/mixture.target.wav", "out/more.target.wav"]
    first = rows[0]
    assert first["references"] == ["reference.wav"]
    assert first["seconds"] == 2.0
    assert first["real_time_factor"] == pytest.approx(first["elapsed_s"] / 2, abs=1e-3)
    assert first["model_sha256"] == find_checkpoint(tiny_folder).sha256
    assert (first["device"], first["precision"]) == ("cpu", auto_precision())
    assert first["model"] == "tiny"
    assert len(first["gain_db"]) == 1
    assert (first["limited"], first["silent"]) == (False, False)


def test_quiet_says_nothing_and_verbose_more(extract: Run, tiny_folder: Path) -> None:
    arguments = ("mixture.wav", "--ref", "reference.wav", "--overwrite")
    assert extract(*arguments, "-q").output == ""
    said, sha256 = extract(*arguments, "-v").stderr, find_checkpoint(tiny_folder).sha256
    assert f"tiny (sha256 {sha256[:12]}) on cpu, {auto_precision()}" in said


def test_format_subtype_level_and_channel_are_the_users(extract: Run, scene: Path) -> None:
    stereo = np.stack([buzz(100, 6), buzz(200, 6)])
    audio.write(scene / "stereo.wav", stereo, 44100)
    done = extract("stereo.wav", "--ref", "reference.wav", "-o", "x.flac", "--subtype", "PCM_24",
                   "--level", "peak", "--channel", "all")  # fmt: skip
    assert done.exit_code == 0, done.output
    info = soundfile.info("x.flac")
    assert (info.channels, info.samplerate, info.subtype) == (2, 44100, "PCM_24")
    assert np.abs(soundfile.read("x.flac")[0]).max() == pytest.approx(0.891, abs=1e-3)


def test_several_references_are_one_voice(extract: Run, scene: Path) -> None:
    audio.write(scene / "second.wav", buzz(112, 1, 7), RATE_HZ)
    one = extract("mixture.wav", "--ref", "reference.wav", "-o", "1.wav")
    two = extract("mixture.wav", "--ref", "reference.wav", "--ref", "second.wav", "-o", "2.wav")
    assert (one.exit_code, two.exit_code) == (0, 0)
    assert (scene / "1.wav").read_bytes() != (scene / "2.wav").read_bytes()


def test_a_reference_that_is_there_twice_counts_once(extract: Run, scene: Path) -> None:
    words = ["mixture.wav", "--ref", "reference.wav"]
    assert extract(*words, "-o", "1.wav").exit_code == 0
    done = extract(*words, "--ref", str(scene / "reference.wav"), "-o", "2.wav")
    assert done.exit_code == 0
    warning = "is the same file as reference.wav, and counts once."
    assert f"warning: {scene / 'reference.wav'}: {warning}\n" in done.stderr
    assert (scene / "1.wav").read_bytes() == (scene / "2.wav").read_bytes()


def test_what_is_replaced_keeps_its_permissions(extract: Run, scene: Path) -> None:
    (scene / "truth.wav").chmod(0o600)
    done = extract("mixture.wav", "--ref", "reference.wav", "-o", "truth.wav", "--overwrite")
    assert done.exit_code == 0
    assert (scene / "truth.wav").stat().st_mode & 0o777 == 0o600


def test_a_short_reference_is_used_with_a_warning(extract: Run, scene: Path) -> None:
    audio.write(scene / "brief.wav", buzz(110, 0.3), RATE_HZ)
    done = extract("mixture.wav", "--ref", "brief.wav")
    assert done.exit_code == 0
    assert "warning: only 0.3 s of speech" in done.stderr


def test_one_bad_file_of_several_does_not_stop_the_others(extract: Run, scene: Path) -> None:
    (scene / "bad.wav").write_text("no sound")
    done = extract("bad.wav", "mixture.wav", "--ref", "reference.wav", "-o", "out")
    assert done.exit_code == 3
    assert "error: bad.wav: not a readable sound file" in done.stderr
    assert "error: 1 of 2 mixtures failed" in done.stderr
    assert listing(scene / "out") == ["mixture.target.wav"]


def test_all_files_bad_is_exit_1(extract: Run, scene: Path) -> None:
    for name in ("bad1.wav", "bad2.wav"):
        (scene / name).write_text("no sound")
    done = extract("bad1.wav", "bad2.wav", "--ref", "reference.wav")
    assert done.exit_code == 1
    assert "error: 2 of 2 mixtures failed" in done.stderr


@pytest.mark.parametrize("role", ["mixture", "reference"])
@pytest.mark.parametrize(
    ("kind", "message"), [*BAD, ("silent", "is silent"), ("short", "0.25 s is too short")]
)
def test_a_bad_input_is_one_line_and_exit_1(
    extract: Run, scene: Path, kind: str, message: str, role: str
) -> None:
    path = make_bad(scene, kind)
    if kind in ("silent", "short"):
        sound = buzz(110, 0.25) if kind == "short" else np.zeros(9000, np.float32)
        audio.write(path, sound, RATE_HZ)
    before = listing(scene)
    if role == "mixture":
        message = "is a folder. For all recordings in it" if kind == "directory" else message
        done = extract(path.name, "--ref", "reference.wav", "-o", "out.wav")
    else:
        done = extract("mixture.wav", "--ref", path.name, "-o", "out.wav")
        message = "no sound files in this folder" if kind == "directory" else message
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {path.name}: ")
    assert done.stderr.count("\n") == 1
    assert_matches(done.stderr, message)
    assert listing(scene) == before


def assert_matches(text: str, pattern: str) -> None:
    import re

    assert re.search(pattern, text), text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_is_no_file_is_not_replaced(extract: Run, scene: Path) -> None:
    os.mkfifo(scene / "pipe.wav")
    done = extract("mixture.wav", "--ref", "reference.wav", "-o", "pipe.wav", "--overwrite")
    assert (done.exit_code, done.stderr) == (
        1, "error: pipe.wav: is not a regular file. Choose another name.\n"
    )  # fmt: skip


OUTPUTS = [
    (
        "truth.wav",
        "truth.wav: exists already. Add --overwrite to replace it.\n",
    ),
    (".wav", ".wav: names no file. Put a name before the dot.\n"),
    ("truth.wav/", "truth.wav/mixture.target.wav: truth.wav is not a folder."),
    (
        "/dev/null",
        "/dev/null/mixture.target.wav: /dev/null is not a folder. Choose another place.\n",
    ),
    (
        "mixture.wav",
        "mixture.wav: is an input, and inputs are never overwritten. Choose another name.\n",
    ),
    (
        "x.mp3",
        f"x.mp3: cannot write this format. End the name in {', '.join(audio.FORMATS)}.\n",
    ),
    (
        "truth.wav/out",
        "truth.wav/out/mixture.target.wav: truth.wav is not a folder. Choose another place.\n",
    ),
    ("truth.wav/x.wav", "truth.wav/x.wav: truth.wav is not a folder."),
    ("n" * 252 + ".wav", "n" * 252 + ".wav: cannot be written: its name"),
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(([*ASKED, "-o", output], message) for output, message in OUTPUTS),
        ([*ASKED, "-o", "o.ogg", "--subtype", "PCM_16"], "o.ogg: OGG has no PCM_16 samples. Leave"),
        (
            [*ASKED, "-o", "o.wav", "--residual", "r.flac", "--subtype", "FLOAT"],
            "r.flac: FLAC has no FLOAT samples. Use --subtype PCM_16 or PCM_24.",
        ),
        (["-", "--ref", "none.wav", "-o", "o.wav"], "none.wav: no such file or folder."),
        (["-", "--ref", "reference.wav", "-o", "o.mp3"], "o.mp3: cannot write this format."),
        (["mixture.wav", "--ref-span", "1-9"], "mixture.wav: ends at 2.00 s, before the span"),
        (
            ["mixture.wav", "mixture.wav", "--ref", "reference.wav"],
            "mixture.wav: would be written twice to mixture.target.wav.",
        ),
        (
            ["mixture.wav", "folder/mixture.target.wav", *ASKED[1:], "-o", "folder"],
            "folder/mixture.target.wav: is an input, and inputs are never overwritten.",
        ),
        (["mixture.wav", "--ref", "brief.wav"], "brief.wav: 0.20 s is too short."),
        (["folder", "--ref", "reference.wav"], "folder: is a folder. For all recordings in it"),
        (["pipe.wav", "--ref", "reference.wav"], "pipe.wav: is not a regular file."),
        (["mixture.wav", "--ref", "pipe.wav"], "pipe.wav: is not a regular file."),
        ([*ASKED, "--channel", "7"], "mixture.wav: has no channel 7"),
        (["mixture.wav", "--ref", "-"], "-: no such file or folder. Only a mixture of extract may"),
        (
            ["https://nowhere/a.mp3", "--ref", "reference.wav"],
            "https://nowhere/a.mp3: no such file or folder. URLs are only for sounds and manifests",
        ),
        pytest.param(
            [*ASKED, "-o", "/proc/x.wav"],
            "/proc/x.wav: ",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="has no /proc"),
        ),
        pytest.param(
            [*ASKED, "-o", "locked/x.wav"],
            "locked/x.wav: locked is write-protected.",
            marks=pytest.mark.skipif(
                os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere"
            ),
        ),
        pytest.param(
            ["unreadable.wav", "--ref", "reference.wav"],
            "unreadable.wav: cannot be read: permission denied.",
            marks=pytest.mark.skipif(
                os.name != "posix" or os.geteuid() == 0, reason="root may read anything"
            ),
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_stream_is_read_or_a_model_loaded(
    extract: Run, scene: Path, words: list[str], message: str
) -> None:
    audio.write(scene / "brief.wav", buzz(110, 0.2), RATE_HZ)
    (scene / "folder").mkdir()
    shutil.copy(scene / "mixture.wav", scene / "folder" / "mixture.target.wav")
    (scene / "locked").mkdir(mode=0o500)
    os.mkfifo(scene / "pipe.wav")
    shutil.copy(scene / "mixture.wav", scene / "unreadable.wav")
    (scene / "unreadable.wav").chmod(0)
    before = {path: path.stat().st_mtime_ns for path in scene.iterdir()}
    done = extract(*words, model="nobody")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {message}")
    assert {path: path.stat().st_mtime_ns for path in scene.iterdir()} == before


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_precision_that_is_slow_on_this_cpu_is_a_warning(
    extract: Run, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_quick_bfloat16", lambda: False)
    words = ("mixture.wav", "--ref", "reference.wav", "-o", "o.wav", "--precision", precision)
    done = extract(*words, "--passes", "1", "-q")
    assert done.exit_code == 0, done.output
    slow = f"warning: {precision} is many times slower than float32 on this CPU. Choose float32."
    assert done.stderr.startswith(slow)


@pytest.mark.parametrize("target", ["o.wav", "none.wav", "none/none.wav"])
def test_a_link_that_leads_nowhere_is_replaced_only_if_that_is_asked_for(
    extract: Run, scene: Path, target: str
) -> None:
    (scene / "o.wav").symlink_to(target)
    words = ("mixture.wav", "--ref", "reference.wav", "-o", "o.wav")
    done = extract(*words)
    assert (done.exit_code, "o.wav: exists already" in done.stderr) == (1, True)
    assert (scene / "o.wav").is_symlink()
    assert extract(*words, "--overwrite").exit_code == 0
    assert not (scene / "o.wav").is_symlink()


@pytest.mark.parametrize(
    "words", [["extract"], ["batch", "-o", "out"], ["enroll", "-o", "v.safetensors"]]
)
@pytest.mark.parametrize("name", ["a\x1b[2Jb.wav", "rtl\u202evaw.wav", "a\u2028b\nc.wav"])
def test_a_name_does_not_steer_the_terminal(
    scene: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str
) -> None:
    monkeypatch.chdir(scene)
    Path(name).write_text("no sound")
    references = [] if words[0] == "enroll" else ["--ref", "reference.wav"]
    done = CliRunner().invoke(main, [*words, name, *references, "--model", str(tiny_folder)])
    assert done.exit_code in (1, 3)
    assert line(name) in done.stderr
    assert not set(done.output) & set("\x1b\u202e\u2028")
    assert "\nc.wav" not in done.output


def test_names_mean_what_they_mean_elsewhere(extract: Run, scene: Path) -> None:
    """`./-` is a file, and what ends in a slash a folder, which may have a dot in its name."""
    shutil.copy(scene / "mixture.wav", scene / "-")
    places = "-o", "v1.0/", "--residual", "others.wav/", "--activity", "."
    done = extract("./-", "--ref", "reference.wav", *places)
    assert done.exit_code == 0, done.output
    for name in ("v1.0/-.target.wav", "others.wav/-.residual.wav", "-.activity.json"):
        assert (scene / name).is_file()


def test_a_long_name_has_room_for_a_span(extract: Run, scene: Path) -> None:
    (scene / "mixture.wav").rename(scene / ("m" * 251 + ".wav"))
    done = extract("m" * 251 + ".wav", "--ref-span", "0-1.5", "-o", "o.wav")
    assert done.exit_code == 0, done.output


def test_two_mixtures_with_one_output_name_are_refused(extract: Run, scene: Path) -> None:
    (scene / "sub").mkdir()
    audio.write(scene / "sub/mixture.wav", buzz(90, 1), RATE_HZ)
    done = extract("mixture.wav", "sub/mixture.wav", "--ref", "reference.wav", "-o", "out")
    assert done.exit_code == 1
    advice = "Rename one, or name a folder instead of a file."
    assert f"would both be written to out/mixture.target.wav. {advice}" in done.stderr
    assert not (scene / "out").exists()


def test_an_unknown_model_lists_the_known(extract: Run) -> None:
    done = extract("mixture.wav", "--ref", "reference.wav", model="nobody")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: nobody: no such model. Bundled: mcspex-")


def test_a_folder_that_is_no_model_is_refused(extract: Run, scene: Path) -> None:
    done = extract("mixture.wav", "--ref", "reference.wav", model=str(scene))
    expected = f"error: {scene}: not a model, because it has no config.json.\n"
    assert (done.exit_code, done.stderr) == (1, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["mixture.wav"],
        ["--ref", "reference.wav"],
        ["mixture.wav", "--ref", "reference.wav", "--level", "loud"],
        ["mixture.wav", "--ref", "reference.wav", "--subtype", "PCM_8"],
        ["mixture.wav", "--ref", "reference.wav", "--precision", "int8"],
        ["mixture.wav", "--ref", "reference.wav", "--nonsense"],
    ],
)
def test_wrong_usage_is_exit_2(extract: Run, arguments: list[str]) -> None:
    assert extract(*arguments).exit_code == 2


@pytest.mark.parametrize("damage", ["other-system", "truncated"])
def test_unusable_weights_are_one_line(
    extract: Run, scene: Path, tiny_folder: Path, damage: str
) -> None:
    model = Path(shutil.copytree(tiny_folder, scene / "model"))
    if damage == "truncated":
        data = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(data[:-10])
        expected = "damaged, or not safetensors"
    else:
        config = (model / "config.json").read_text().replace('"mcspex"', '"spexplus"')
        (model / "config.json").write_text(config)
        expected = "not the weights of this system"
    done = extract("mixture.wav", "--ref", "reference.wav", model="model")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert expected in done.stderr
    assert not (scene / "mixture.target.wav").exists()


def test_a_path_that_the_system_refuses_is_one_line(extract: Run) -> None:
    done = extract("m" * 300 + ".wav", "--ref", "reference.wav")
    assert done.exit_code == 1
    assert "its name is too long" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_name_with_brackets_is_printed_as_it_is(extract: Run, scene: Path) -> None:
    (scene / "mixture.wav").rename(scene / "song[live].wav")
    done = extract("song[live].wav", "--ref", "reference.wav")
    assert "song[live].target.wav  (2.0 s" in done.stderr
    words = ["score", "song[live].target.wav", "--truth", "truth.wav"]
    assert "song[live].target.wav" in CliRunner().invoke(main, words).stdout


def is_written(path: Path) -> bool:
    """Whether some of a file is there, under its hidden name."""
    try:
        return any(part.stat().st_size for part in path.parent.glob(f".{path.stem}.*.partial"))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "model"), [(signal.SIGINT, "tiny_folder"), (signal.SIGTERM, "exported")]
)
def test_a_signal_in_the_middle_leaves_nothing(
    scene: Path, request: pytest.FixtureRequest, number: signal.Signals, model: str
) -> None:
    long = scene / "long.wav"  # soon computed, and long to write, since it has many samples
    sound = buzz(110, 60)
    with audio.open_writer(long, 96_000, 1, "PCM_16") as writer:
        for _ in range(20):
            writer.write(sound[None])
    before = listing(scene)
    command = [sys.executable, "-m", "mcspex_cli", "extract", str(long), "--device", "cpu"]
    command += ["--ref", str(scene / "reference.wav")]
    command += ["--model", str(request.getfixturevalue(model))]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not is_written(scene / "long.target.wav") and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.strip().endswith("Finished files are kept; unfinished ones are removed.")
    assert "Traceback" not in said
    assert listing(scene) == before


@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full"])
def test_a_closed_or_full_stderr_costs_no_estimate(
    scene: Path, exported: Path, closing: str
) -> None:
    words = [sys.executable, "-m", "mcspex_cli", "extract", *ASKED, "-o", "o.wav"]
    command = shlex.join([*words, "--model", str(exported), "--device", "cpu"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["sh", "-c", f"{command} {closing}"]
    assert subprocess.run(shell, cwd=scene, env=environment, check=False).returncode == 0
    assert soundfile.info(scene / "o.wav").frames == 2 * RATE_HZ


@pytest.mark.parametrize(
    ("is_closed", "reason"),
    [
        (True, "standard output was closed before all was written."),
        (False, "standard output: writing failed (No space left on device)."),
    ],
)
def test_json_that_nobody_takes_ends_with_one_line(
    scene: Path, exported: Path, is_closed: bool, reason: str
) -> None:
    shutil.copy(scene / "mixture.wav", scene / "second.wav")
    words = [sys.executable, "-m", "mcspex_cli", "extract", *ASKED, "second.wav", "--json"]
    words += ["--model", str(exported), "--device", "cpu"]
    reader, pipe = os.pipe()
    os.close(reader)
    with open(pipe if is_closed else "/dev/full", "w") as output:  # noqa: PTH123
        done = subprocess.run(
            words, cwd=scene, stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, f"error: {reason} 1 of 2 mixtures done.\n")
    assert (scene / "mixture.target.wav").exists()


def test_a_device_that_is_not_there_is_one_line(scene: Path, tiny_folder: Path) -> None:
    words = ["extract", str(scene / "mixture.wav"), "--ref", str(scene / "reference.wav")]
    done = CliRunner().invoke(main, [*words, "--model", str(tiny_folder), "--device", "cuda:9"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: device 'cuda:9' is not available.")


def test_ctrl_c_is_exit_130_and_leaves_nothing(
    extract: Run, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcspex_cli.model.systems import System

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = listing(scene)
    monkeypatch.setattr(System, "extract", interrupt)
    done = extract("mixture.wav", "--ref", "reference.wav")
    assert done.exit_code == 130
    assert "interrupted" in done.stderr
    assert listing(scene) == before
