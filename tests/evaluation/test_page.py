"""The page: what is in it, what it does without, where it may be written."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mcspex_cli import audio
from mcspex_cli.errors import OutputError
from mcspex_cli.evaluation.comparison import (
    PageSettings,
    SystemOutputs,
    read_system,
    read_systems,
)
from mcspex_cli.evaluation.page import (
    COLUMNS,
    RANGE_DB,
    ROWS,
    SHADES,
    Page,
    draw_spectrogram,
    spectrogram,
    write_page,
)
from mcspex_cli.evaluation.report import read_groups
from tests.conftest import EXAMPLES, RATE_HZ, SHARED, buzz, needs_shared
from tests.evaluation.conftest import stage


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return stage(tmp_path, ["a", "deep/b", "c"])


def make(scene: Path, settings: PageSettings | None = None) -> tuple[Page, str]:
    """The page of the scene's systems and its text."""
    default = PageSettings(scene / "truth", scene / "mixtures")
    runs = read_systems([str(scene / "good"), str(scene / "bad")])
    page = write_page(runs, scene / "page.html", settings or default)
    return page, page.path.read_text("utf-8")


def pixels(png: bytes) -> np.ndarray:
    """A picture's colours from 0 to 1, [row, column, rgb]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def articles(text: str) -> list[str]:
    return re.findall(r'<article class="case".*?</article>', text, re.S)


def test_each_case_has_its_sounds_pictures_and_scores(scene: Path) -> None:
    page, text = make(scene)
    assert (page.cases, page.shown, page.warnings) == (3, 3, ())
    assert "hard to compare" not in text
    assert len(articles(text)) == 3
    for article in articles(text):
        assert re.findall(r'class="label">(?:<svg.*?</svg>)?\s*(\w+)<', article) == [
            "Mixture", "good", "bad", "Truth",
        ]  # fmt: skip
        assert article.count('data-metric="si_sdr"') == 3
        assert article.count('data-metric="si_sdr_i"') == 2
    assert text.count("Target confusion") == 1
    assert text.count('class="point') == 6
    assert text.count(" confused") >= 1


def test_sounds_and_pictures_are_whole(scene: Path) -> None:
    _, text = make(scene)
    kinds = re.findall(r'src="data:(\w+/\w+);base64,([^"]+)"', text)
    flacs = [base64.b64decode(data) for kind, data in kinds if kind == "audio/flac"]
    pngs = [base64.b64decode(data) for kind, data in kinds if kind == "image/png"]
    assert (len(flacs), len(pngs)) == (12, 13)  # and the scale of colours
    expected = audio.read(scene / "mixtures" / "a.wav", RATE_HZ)
    heard, rate_hz = soundfile.read(io.BytesIO(flacs[0]), dtype="float32")
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(heard, expected, atol=2**-15)
    assert pixels(pngs[1]).shape[:2] == (129, 63)


def test_encoding_keeps_16_bits_and_clips() -> None:
    sound = np.array([0.5, -0.25, 1.5, -2, 0] * 100, np.float32)
    heard, rate_hz = soundfile.read(io.BytesIO(audio.encode(sound, 44100)), dtype="float32")
    assert rate_hz == 44100
    np.testing.assert_allclose(heard, np.clip(sound, -1, 1), atol=2**-15)


def test_a_sound_beyond_full_scale_is_turned_down(scene: Path) -> None:
    loud = 10 * audio.read(scene / "good" / "a.wav", RATE_HZ)
    audio.write(scene / "good" / "a.wav", loud, RATE_HZ, "FLOAT")
    _, text = make(scene)
    by_db = 20 * np.log10(np.abs(loud).max())
    assert f"Beyond full scale: turned down by {by_db:.1f} dB." in text


def test_high_rates_are_brought_to_what_browsers_play(scene: Path) -> None:
    for kind in ("good", "bad", "truth", "mixtures"):
        audio.write(scene / kind / "a.wav", buzz(100, 1), 96000)
    _, text = make(scene)
    assert "s at 48 kHz" in articles(text)[0]


def test_a_page_that_another_program_wrote_meanwhile_stays(scene: Path) -> None:
    page = scene / "page.html"
    with pytest.raises(OutputError, match=r"page.html: exists already. Add --overwrite"):
        write_page(
            [read_system(scene / "good")], page, PageSettings(), lambda _: page.write_text("other")
        )
    assert page.read_text() == "other"


def test_a_long_sound_is_embedded_up_to_two_minutes(scene: Path) -> None:
    for kind in ("good", "bad", "truth", "mixtures"):
        audio.write(scene / kind / "a.wav", np.tile(buzz(100, 1), 150), RATE_HZ)
    _, text = make(scene)
    assert '<span class="muted">first 120 s of 150.00 s at 8 kHz</span>' in articles(text)[0]
    flac = re.findall(r'src="data:audio/flac;base64,([^"]+)"', text)[0]
    assert soundfile.info(io.BytesIO(base64.b64decode(flac))).frames == 120 * RATE_HZ
    _, text = make(
        scene, PageSettings(scene / "truth", scene / "mixtures", embed=False, overwrite=True)
    )
    assert '<span class="muted">150.00 s at 8 kHz</span>' in articles(text)[0]
    assert soundfile.info(scene / "page_files" / "00001.flac").frames == 150 * RATE_HZ


def test_without_truth_there_are_players_but_no_scores(scene: Path) -> None:
    page, text = make(scene, PageSettings(mixtures=scene / "mixtures"))
    assert text.count("<audio") == 9
    assert "SI-SDR" not in text
    assert "<table" not in text
    assert '<svg class="plot"' not in text
    assert "No truth is known." in text
    assert page.warnings == ("no truth is known, so the page has no scores. Add --truth DIR.",)


def test_without_mixtures_there_is_no_improvement_and_no_plot(scene: Path) -> None:
    page, text = make(scene, PageSettings(scene / "truth"))
    assert page.warnings == ("no mixture for 3 of 3 cases: a, c, deep/b",)
    assert 'id="means"' in text
    assert '<svg class="plot"' not in text
    assert 'data-metric="si_sdr_i"' not in text


def test_a_missing_output_costs_its_cell(scene: Path) -> None:
    (scene / "good" / "a.wav").unlink()
    page, text = make(scene)
    assert page.warnings == ("good: no output for 1 of 3 cases: a",)
    assert "The systems were not scored on the same cases" in text
    assert articles(text)[0].count("No output for this case.") == 1
    assert articles(text)[0].count("<audio") == 3


def test_a_broken_file_costs_its_cell_and_keeps_its_folder_private(scene: Path) -> None:
    whole = (scene / "good" / "a.wav").read_bytes()
    (scene / "good" / "a.wav").write_bytes(whole[:999])
    page, text = make(scene)
    assert len(page.warnings) == 1
    assert page.warnings[0].startswith(f"{scene / 'good' / 'a.wav'}: truncated")
    assert "a.wav: truncated" in articles(text)[0]
    assert str(scene) not in text
    (row,) = re.findall(r"<tr><th scope=\"row\">.*?good</th>(.*?)</tr>", text, re.S)
    assert re.findall(r'data-value="(\d+)"', row)[:2] == ["3", "2"]


def test_another_length_is_said_beside_the_sound(scene: Path) -> None:
    audio.write(scene / "good" / "a.wav", buzz(110, 0.3), RATE_HZ)
    page, text = make(scene)
    assert articles(text)[0].count("<audio") == 4
    assert "a.wav: 2400 samples, but a.wav has 4000" in articles(text)[0]
    assert "<dt>Length</dt><dd>0.30 s at 8 kHz</dd>" in articles(text)[0]
    assert "Not in the means: length differs." in articles(text)[0]
    assert len(page.warnings) == 1


def test_a_sign_flip_counts_but_is_said(scene: Path) -> None:
    for name in ("a", "c"):
        path = scene / "good" / f"{name}.wav"
        audio.write(path, -audio.read(path, RATE_HZ), RATE_HZ)
    page, text = make(scene)
    assert page.warnings == (
        "good: sign-flipped outputs: 2. They count here; mcspex score counts them with "
        "--flipped-ok.",
    )
    assert text.count("sign flipped.") == 2
    assert "Not in the means" not in text


def test_groups_make_sections_with_means_and_titles(scene: Path) -> None:
    groups = scene / "groups.csv"
    groups.write_text("id,group,title\nc,Second,Case C\ndeep/b,First,\n")
    _, text = make(scene, PageSettings(scene / "truth", scene / "mixtures", read_groups(groups)))
    assert re.findall(r'<h3 class="group">(.*?)</h3>', text) == ["Second", "First", "Other cases"]
    assert re.findall(r'class="title">(.*?)<', text) == ["Case C", "deep/b", "a"]
    table = re.search(r'id="groups".*?</table>', text, re.S)
    assert table
    assert re.findall(r'row">(.*?)<', table[0]) == ["Second", "First", "Other cases"]


def test_groups_and_sounds_of_other_cases_are_a_warning(scene: Path) -> None:
    groups, others = scene / "groups.csv", scene / "others"
    groups.write_text("id,group\nz,First\n")
    page, _ = make(scene, PageSettings(scene / "truth", scene / "mixtures", read_groups(groups)))
    assert page.warnings == (f"{groups}: names none of the cases.",)
    others.mkdir()
    page, _ = make(scene, PageSettings(scene / "truth", others, overwrite=True))
    assert page.warnings[-1] == f"{others}: has none of the cases."


def test_a_batch_needs_no_more_than_its_folder(scene: Path) -> None:
    rows = [
        {
            "name": name,
            "status": "ok",
            "estimate": f"{name}.wav",
            "mixture": str(scene / "mixtures" / f"{name}.wav"),
            "truth": str(scene / "truth" / f"{name}.wav"),
        }
        for name in ("a", "c")
    ]
    rows.append({"name": "d", "status": "failed", "note": "the reference is silent"})
    (scene / "good" / "report.json").write_text(json.dumps({"format": 1, "scores": rows}))
    page = write_page([read_system(scene / "good")], scene / "good" / "report.html", PageSettings())
    assert (page.cases, page.warnings[0]) == (3, "good: no output for 1 of 3 cases: d")
    text = page.path.read_text("utf-8")
    assert text.count('data-metric="si_sdr_i"') == 2
    assert "the reference is silent" in text


def test_a_batch_without_truth_shows_what_needs_none_and_what_is_better(scene: Path) -> None:
    runs = []
    for system, values in {"good": (0.9, 0.2, 0.7), "bad": (0.6, 0.4, 0.9)}.items():
        row = dict(zip(("presence", "wer", "speech_left"), values, strict=True))
        more = {"input_wer": 0.75, "mixture": str(scene / "mixtures/a.wav"), "truth": None}
        row = {"name": "a", "status": "done", "estimate": "a.wav", "note": "", **row, **more}
        report = {"format": 1, "scores": [row]}
        (scene / system / "report.json").write_text(json.dumps(report))
        runs.append(read_system(scene / system))
    page = write_page(runs, scene / "page.html", PageSettings())
    assert page.warnings == (
        "no truth is known, so the page has only what needs none. Add --truth DIR.",
    )
    text = page.path.read_text("utf-8")
    means = re.search(r'id="means".*?</table>', text, re.S)
    assert means
    labels = re.findall(r'class="whole">(.*?)<', means[0])
    assert labels == ["Presence", "Speech left", "WER", "Presence"]  # the last is the median
    assert "Confused" not in means[0]
    assert re.findall(r'class="number best" data-value="(.*?)"', means[0]) == ["0.9", "0.2"]
    hint = "lower for WER; Speech left is neither good nor bad by itself."
    assert f"Higher is better, but {hint}" in text
    assert "No truth is known: these numbers are hints" in text
    assert re.findall(r'data-metric="wer">(.*?) <', text) == ["0.750", "0.200", "0.400"]
    assert '<svg class="plot"' not in text
    runs[0] = read_systems([f"good={scene / 'good'}"])[0]
    page = write_page(runs, scene / "with.html", PageSettings(scene / "truth"))
    text = page.path.read_text("utf-8")
    assert text.count('data-metric="presence"') == text.count('data-metric="si_sdr_i"') == 2


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "{{ 7 * 191 }}",
    "50% #1 ünï 日本 'q'",
]


def test_names_are_only_ever_text(tmp_path: Path) -> None:
    scene = stage(tmp_path, HOSTILE, ["good"])
    groups = scene / "groups.csv"
    label = "</title><script>alert(3)</script>\u202e\x1b"
    groups.write_text(f"id,group,title\n{HOSTILE[0]},{label},{label}\n", "utf-8")
    run = read_systems([f"{label}={scene / 'good'}"])
    settings = PageSettings(scene / "truth", scene / "mixtures", read_groups(groups), title=label)
    text = write_page(run, scene / "page.html", settings).path.read_text("utf-8")
    assert "<img src=x" not in text
    assert "<svg onload" not in text
    assert text.count("<script>") == 1
    assert "1337" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "&lt;/script&gt;\\u202e\\x1b" in text
    for name in HOSTILE:
        assert html.escape(name, quote=True).replace("&#x27;", "&#39;").replace(
            "&quot;", "&#34;"
        ) in text  # fmt: skip


def test_a_name_that_is_no_text_is_shown_somehow(tmp_path: Path) -> None:
    stage(tmp_path, ["a"], ["good"])
    path = tmp_path / "good" / "b\udcff.wav"
    try:
        (tmp_path / "good" / "a.wav").rename(path)
    except OSError:
        pytest.skip("this file system has only names that are text")
    write_page([read_system(tmp_path / "good")], tmp_path / "page.html", PageSettings())


def test_without_embedding_files_lie_beside_the_page(scene: Path) -> None:
    settings = PageSettings(scene / "truth", scene / "mixtures", embed=False)
    _, text = make(scene, settings)
    names = sorted(path.name for path in (scene / "page_files").iterdir())
    assert len(names) == 24
    assert names[:2] == ["00001.flac", "00002.png"]
    for name in names:
        assert f'src="page_files/{name}"' in text
    assert "data:audio" not in text
    for path in ("page.html", "page_files"):
        with pytest.raises(OutputError, match=f"{path}: exists already. Add --overwrite"):
            make(scene, settings)
        (scene / "page.html").unlink(missing_ok=True)
    (scene / "page_files" / "99999.png").touch()
    make(scene, PageSettings(scene / "truth", scene / "mixtures", embed=False, overwrite=True))
    assert sorted(path.name for path in (scene / "page_files").iterdir()) == names
    assert not list(scene.glob(".*"))
    page, _ = make(scene, PageSettings(scene / "truth", scene / "mixtures", overwrite=True))
    assert page.warnings == (
        f"{scene}/page_files: has sounds of the earlier page. The new page does not need this "
        "folder; delete it if nothing else does.",
    )


@pytest.mark.parametrize("folder", ["good", "truth", "mixtures", "run/audio"])
def test_sounds_beside_the_page_do_not_go_among_those_that_are_compared(
    scene: Path, folder: str
) -> None:
    shutil.copytree(scene / "good", scene / "run" / "audio")
    (scene / "run" / "journal").mkdir()
    runs = [*read_systems([str(scene / "good")]), SystemOutputs("run", scene / "run", {})]
    settings = PageSettings(scene / "truth", scene / "mixtures", embed=False)
    with pytest.raises(OutputError, match=r"page_files: is in a folder of sounds that are compar"):
        write_page(runs, scene / folder / "page.html", settings)
    write_page(runs, scene / "run" / "page.html", settings)


def test_a_folder_with_other_files_is_kept(scene: Path) -> None:
    settings = PageSettings(scene / "truth", scene / "mixtures", embed=False, overwrite=True)
    (scene / "page_files").mkdir()
    (scene / "page_files" / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"page_files: has files that are not of a report. Move"):
        make(scene, settings)
    (scene / "good").rename(scene / "page_files" / "good")
    runs = [read_system(scene / "page_files" / "good")]
    with pytest.raises(
        OutputError, match="page_files: is an input, and inputs are never overwritten"
    ):
        write_page(runs, scene / "page.html", settings)


def test_a_failure_leaves_nothing(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio, "encode", full)
    before = sorted(scene.iterdir())
    for embed in (True, False):
        with pytest.raises(OutputError, match=r"page.*: cannot be written: the disk is full"):
            make(scene, PageSettings(scene / "truth", scene / "mixtures", embed=embed))
        assert sorted(scene.iterdir()) == before


def test_a_page_is_not_written_just_anywhere(scene: Path) -> None:
    runs = [read_system(scene / "good")]
    (scene / "folder.html").mkdir()
    groups = scene / "groups.html"
    groups.write_text("id,group\n")
    for name, message in (
        ("folder.html", "folder.html: is a folder. Name a file"),
        ("groups.html", "groups.html: is an input, and inputs are never overwritten"),
    ):
        with pytest.raises(OutputError, match=message):
            write_page(runs, scene / name, PageSettings(groups=read_groups(groups), overwrite=True))
    (scene / "page.html").touch()
    with pytest.raises(OutputError, match=r"page.html: exists already. Add --overwrite"):
        write_page(runs, scene / "page.html", PageSettings())


def test_only_some_cases_are_shown_but_all_count(scene: Path) -> None:
    settings = PageSettings(scene / "truth", scene / "mixtures", max_cases=2)
    page, text = make(scene, settings)
    assert (page.cases, page.shown) == (3, 2)
    assert text.count('class="point') == 6
    assert len(re.findall(r'<a href="#case-\d+">\s*<g class="point', text)) == 4
    assert sorted(re.findall(r'class="tag">(.*?)<', text)) == ["best", "worst"]
    assert "(2 shown below)" in text
    assert "the 1 best and 1 worst by SI-SDRi" in text
    page, text = make(scene, PageSettings(max_cases=1, seed=7, overwrite=True))
    assert "Shown are 1 drawn at random (seed 7)." in text
    page, text = make(scene, replace(settings, max_cases=0, overwrite=True))
    assert page.shown == 0
    assert 'id="means"' in text
    assert "<audio" not in text


def test_progress_ends_at_one(scene: Path) -> None:
    heard: list[float] = []
    write_page([read_system(scene / "good")], scene / "page.html", PageSettings(), heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


@needs_shared
def test_the_authors_demo_page_is_remade_with_its_scores(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo_page", EXAMPLES / "demo_page.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.main(SHARED / "cases", tmp_path / "page.html")
    assert [warning.partition(".")[0] for warning in page.warnings] == [
        "MC-SpEx: sign-flipped outputs: 4"
    ]
    shown = articles(page.path.read_text("utf-8"))
    table = (SHARED / "cases" / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (-?[\d.]+) \| (-?[\d.]+) \| (-?[\d.]+) \|$", table, re.M)
    assert len(rows) == len(shown) == 4
    for (name, *values), article in zip(rows, shown, strict=True):
        assert f">{name}<" in article
        found = re.findall(r'data-metric="si_sdr">(.*?) dB', article)
        numbers = [float(number.replace("−", "-")) for number in found]
        assert numbers == pytest.approx([float(v) for v in values], abs=0.0101)
    confused = ["Target confusion" in article for article in shown]
    assert confused == [False, False, True, False]
    wrong = re.search(r'<section class="cell wrong">.*?</section>', shown[2], re.S)
    assert wrong
    assert "SpEx+" in wrong[0]


# A model for 8 kHz, and spectrograms.


@pytest.mark.parametrize(
    ("rate_hz", "why"),
    [
        (8000, "Black above 4 kHz: a model for 8 kHz returns nothing higher."),
        (5000, "Black above 2.8 kHz: this output has no sound there."),
        (16000, ""),
    ],
)
def test_an_output_without_high_frequencies_says_why(scene: Path, rate_hz: int, why: str) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * rate_hz).astype(np.float32)
    for kind in ("good", "bad", "truth", "mixtures"):
        wide = 0.1 * np.random.default_rng(1).standard_normal(48000).astype(np.float32)
        path = scene / kind / "a.wav"
        audio.write(path, wide, 16000)
    audio.write(scene / "narrow.wav", noise, rate_hz)
    audio.write(scene / "good/a.wav", audio.read(scene / "narrow.wav", 16000), 16000)
    _, text = make(scene)
    assert re.findall("Black above[^<]*", text) == ([why] if why else [])
    assert why in articles(text)[0].split("<section")[2]


def tone(hz: float, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.sin(2 * np.pi * hz * t).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 44100])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_tone_is_at_its_height(rate_hz: int, share: float) -> None:
    levels = spectrogram(tone(share * rate_hz / 2, 1, rate_hz), rate_hz)
    row = np.argmax(levels.mean(axis=1))
    assert 1 - (row + 0.5) / len(levels) == pytest.approx(share, abs=0.01)
    for at_hz in (8000, 16000):
        assert spectrogram(tone(1000, 1, at_hz), at_hz).max() == pytest.approx(-6, abs=0.5)


@pytest.mark.parametrize("samples", [1, 10, 255, 8000, 8000 * 100])
def test_a_picture_is_small_whatever_the_length(samples: int) -> None:
    levels = spectrogram(np.ones(samples, np.float32), RATE_HZ)
    assert 1 <= levels.shape[0] <= ROWS
    assert 1 <= levels.shape[1] <= COLUMNS
    assert np.isfinite(levels).all()


def test_a_long_sound_is_averaged_not_cut() -> None:
    sound = np.concatenate([tone(1000, 30), np.zeros(30 * RATE_HZ, np.float32)])
    columns = spectrogram(sound, RATE_HZ).max(axis=0)
    assert (columns[:254] > -10).all()
    assert (columns[258:] < -100).all()


def test_a_drawing_decodes_to_its_size_and_colours_that_get_lighter_evenly() -> None:
    levels = spectrogram(tone(1000, 1), RATE_HZ)
    levels[0, 0], levels[0, 1] = levels.max() + 20, levels.max() - RANGE_DB
    picture = pixels(draw_spectrogram(levels, levels.max() - 20))
    assert picture.shape[:2] == levels.shape
    light = picture.sum(axis=-1)
    assert light[0, 0] == light.max() > 2.5
    assert light[0, 1] == light.min() < 0.1
    scale = pixels(draw_spectrogram(np.linspace(-RANGE_DB, 0, SHADES)[None], 0.0))[0]
    assert (np.diff(scale @ [0.2126, 0.7152, 0.0722]) > 0).all()
