"""`mcspex report`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.evaluation.comparison import PageSettings, compare_systems, read_system
from tests.conftest import RATE_HZ
from tests.evaluation.conftest import stage


def report(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return stage(tmp_path, ["a", "b", "c", "d"])


def test_a_page_is_written_and_named(scene: Path) -> None:
    done = report(
        scene / "good", f"other={scene / 'bad'}", "--truth", scene / "truth", "--mixtures",
        scene / "mixtures", "--max-cases", 3, "--title", "T & T", "-o", scene / "page.html",
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    size = (scene / "page.html").stat().st_size / 1e3
    assert done.stderr == f"{scene / 'page.html'}  (3 of 4 cases shown, {size:.1f} kB)\n"
    text = (scene / "page.html").read_text("utf-8")
    assert "<h1>T &amp; T</h1>" in text
    assert "other" in text


def test_a_batch_is_all_it_takes(scene: Path, tiny_folder: Path) -> None:
    words = ["batch", scene / "mixtures", "--ref", scene / "truth" / "a.wav", "--truth"]
    words += [scene / "truth", "--model", tiny_folder, "-o", scene / "run", "--quiet"]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.output
    done = report(scene / "run", "-o", scene / "page.html")
    size = (scene / "page.html").stat().st_size / 1e3
    assert done.stderr == f"{scene / 'page.html'}  (4 of 4 cases shown, {size:.1f} kB)\n"
    text = (scene / "page.html").read_text("utf-8")
    assert text.count("<audio") == 12
    rows = json.loads((scene / "run" / "report.json").read_text())["scores"]
    scored = sum(row["status"] == "ok" for row in rows)  # the tiny model may flip a sign
    assert scored > 1
    assert text.count('data-metric="si_sdr_i"') == scored


@pytest.mark.parametrize("replaced", ["run/audio/b.wav", "truth/b.wav", "mixtures/b.wav"])
def test_a_file_that_was_replaced_after_its_batch_is_scored_again(
    scene: Path, tiny_folder: Path, replaced: str
) -> None:
    words = ["batch", scene / "mixtures", "--ref", scene / "truth" / "a.wav", "--truth"]
    words += [scene / "truth", "--model", tiny_folder, "-o", scene / "run", "--quiet"]
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 0
    rows = json.loads((scene / "run" / "report.json").read_text())["scores"]
    earlier = {row["name"]: row["si_sdr_i_db"] for row in rows}
    # Written anew, since a copy's time may be that of the original.
    (scene / replaced).write_bytes((scene / "good" / "b.wav").read_bytes())
    done = report(scene / "run", "-o", scene / "page.html")
    assert done.exit_code == 0
    assert "report.json: is older than the files of b, so what it says of" in done.stderr
    cases = {
        case.name: case.rows[0].get("si_sdr_i_db") if case.rows else None
        for case in compare_systems([read_system(scene / "run")], PageSettings()).cases
    }
    assert cases.keys() == earlier.keys()
    assert {name for name in cases if cases[name] != earlier[name]} == {"b"}


def test_what_is_missing_is_a_warning(scene: Path) -> None:
    (scene / "good" / "a.wav").unlink()
    (scene / "good" / "b.wav").write_bytes(b"")
    words = (scene / "good", scene / "bad", "--truth", scene / "truth", "--mixtures")
    done = report(*words, scene / "mixtures", "--no-embed", "-o", scene / "page.html")
    assert done.exit_code == 0
    first, second, _ = done.stderr.splitlines()
    assert first == "warning: good: no output for 1 of 4 cases: a"
    assert second.startswith(f"warning: {scene / 'good' / 'b.wav'}: the file is empty")
    assert len(list((scene / "page_files").iterdir())) == 28


@pytest.mark.parametrize(
    ("which", "spoil", "remedy"),
    [
        ("good", lambda s: (s[::2], RATE_HZ // 2), ["--resample"]),
        ("mixtures", lambda s: (np.stack([s, s / 2]).T, RATE_HZ), ["--channel", "0"]),
    ],
)
def test_the_remedies_that_warnings_name_work(
    scene: Path,
    which: str,
    spoil: Callable[[audio.Samples], tuple[np.ndarray, int]],
    remedy: list[str],
) -> None:
    soundfile.write(scene / which / "a.wav", *spoil(audio.read(scene / which / "a.wav", RATE_HZ)))
    words = [scene / "good", "--truth", scene / "truth", "--mixtures", scene / "mixtures"]
    done = report(*words, "-o", scene / "page.html")
    assert (done.exit_code, done.stderr.count("\n")) == (0, 2)
    assert remedy[0] in done.stderr
    done = report(*words, "-o", scene / "page.html", "--overwrite", *remedy)
    assert (done.exit_code, done.stderr.count("\n")) == (0, 1)
    assert (scene / "page.html").read_text().count('data-metric="si_sdr_i"') == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: no such file or folder."),
        (["good", "other/../good"], "both are called good. Name one: NAME=other/../good"),
        (["good/a.wav"], "a.wav: is a file. Name a folder."),
        (["other"], "other: no sound files in this folder. Name another."),
        (["good", "--truth", "none"], "none: no such file or folder."),
        (["good", "--mixtures", "truth/a.wav"], "a.wav: is a file. Name a folder."),
        (["good", "--groups", "none"], "none: no such file or folder."),
        (["good", "-o", "page.pdf"], "page.pdf: cannot write this format. End the name in .html."),
        (["good", "-o", "none/p.html"], "none: no such folder. Make it"),
        (["good", "-o", "mixtures/a.wav/p.html"], "a.wav is not a folder. Choose another"),
        (["=good"], "'=good': is neither FOLDER nor NAME=FOLDER."),
        (["good="], "'good=': is neither FOLDER nor NAME=FOLDER."),
        ([""], "'': is neither FOLDER nor NAME=FOLDER."),
    ],
)
def test_failures_are_one_line(
    scene: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(scene)
    (scene / "other").mkdir()
    done = report("-o", "page.html", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not (scene / "page.html").exists()


def test_neither_a_run_nor_an_output_is_left_out(scene: Path) -> None:
    assert report("-o", scene / "page.html").exit_code == 2
    assert report(scene / "good").exit_code == 2
    done = report(scene / "good", "-o", scene / "page.html", "--group-by", "sex")
    assert (done.exit_code, "--group-by means nothing without --groups" in done.stderr) == (2, True)
    done = report(scene / "good", "-o", scene / "page.html", "--title", "")
    assert (done.exit_code, "'--title': it is empty." in done.stderr) == (2, True)


def test_torch_is_not_needed(scene: Path) -> None:
    code = (
        "import sys\nfrom mcspex_cli.__main__ import main\n"
        "try: main(['report', 'good', '--truth', 'truth', '-o', 'page.html'])\n"
        "except SystemExit as done: assert not done.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=scene, env={"PYTHONPATH": root}, check=False
    )
    assert done.returncode == 0
