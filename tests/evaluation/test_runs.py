"""Reading runs and putting them side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcspex_cli.errors import AudioError, ConfigError, PairingError
from mcspex_cli.evaluation.groups import Groups, read_groups
from mcspex_cli.evaluation.runs import OTHERS, gather, read_run, read_runs
from tests.evaluation.conftest import stage


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return stage(tmp_path, ["a", "deep/b"])


def batch(folder: Path, scores: object, version: object = 1) -> Path:
    """Turn a folder into what `mcspex batch` leaves."""
    folder.mkdir(exist_ok=True)
    report = {"format": version, "scores": scores}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_a_folder_is_read_by_name(scene: Path) -> None:
    (scene / "good" / "a.wav").rename(scene / "good" / "a.target.wav")
    run = read_run(scene / "good")
    assert run.label == "good"
    assert set(run.outputs) == {"a", "deep/b"}
    assert run.outputs["a"].estimate == scene / "good" / "a.target.wav"


def test_a_batch_brings_its_mixtures_and_truths(scene: Path) -> None:
    row = {"name": "a", "status": "ok", "estimate": "a.wav", "mixture": "m/a.wav"}
    failed = {**row, "name": "b", "status": "failed", "note": "too short"}
    pending = {**row, "name": "c", "status": "pending", "truth": None}
    folder = batch(scene / "good", [{**row, "truth": "t/a.wav"}, failed, pending])
    outputs = read_run(folder).outputs
    assert outputs["a"].estimate == folder / "a.wav"
    assert (outputs["a"].mixture, outputs["a"].truth) == (Path("m/a.wav"), Path("t/a.wav"))
    assert (outputs["b"].estimate, outputs["b"].problem) == (None, "too short")
    assert (outputs["c"].estimate, outputs["c"].problem) == (None, "pending")
    assert outputs["c"].truth is None


def test_another_report_json_is_not_taken_for_a_batch(scene: Path) -> None:
    for text in (
        "[]",
        '{"summary": {}}',
        '{"format": 1, "scores": [{"name": "a", "status": "ok"}]}',
    ):
        (scene / "good" / "report.json").write_text(text)
        assert len(read_run(scene / "good").outputs) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"report.json: is damaged .*Run mcspex batch again"),
        ('{"format": 2}', "has format 2, not 1. Update mcspex"),
        ('{"format": 1}', r"is damaged \(no scores\). Run mcspex batch"),
        ('{"format": 1, "scores": [3]}', "is damaged"),
        ('{"format": 1, "scores": [{"estimate": "a"}]}', "is damaged .KeyError"),
        (
            '{"format": 1, "scores": [{"name": 1, "status": 1, "estimate": 1}]}',
            "is damaged .TypeErr",
        ),
    ],
)
def test_a_damaged_batch_is_refused(scene: Path, text: str, message: str) -> None:
    (scene / "good" / "report.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_run(scene / "good")


def test_what_is_no_run_is_refused(scene: Path) -> None:
    (scene / "none").mkdir()
    with pytest.raises(AudioError, match="nowhere: no such file or folder"):
        read_run(scene / "nowhere")
    with pytest.raises(PairingError, match=r"a.wav: is a file. Name a folder of estimates"):
        read_run(scene / "good" / "a.wav")
    with pytest.raises(PairingError, match="none: no sound files in this folder"):
        read_run(scene / "none")


def test_a_label_can_be_given_but_a_path_wins(scene: Path) -> None:
    (scene / "x=good").mkdir()
    (scene / "good" / "a.wav").rename(scene / "x=good" / "a.wav")
    words = [f"ours={scene / 'good'}", str(scene / "x=good"), f"={scene / 'bad'}"]
    assert [run.label for run in read_runs(words)] == ["ours", "x=good", "bad"]


def test_one_label_for_two_runs_is_refused(scene: Path) -> None:
    with pytest.raises(PairingError, match=r"both are called bad. Name one: NAME=.*bad$"):
        read_runs([f"bad={scene / 'good'}", str(scene / "bad")])


def test_cases_are_those_of_all_runs_and_the_places_first(scene: Path) -> None:
    (scene / "good" / "a.wav").unlink()
    groups = Groups({"unknown": "one", "deep/b": "two"}, {}, {"deep/b": "B"})
    runs = read_runs([str(scene / "good"), str(scene / "bad")])
    first, second = gather(runs, scene / "truth", scene / "mixtures", groups)
    assert (first.name, first.title, first.group) == ("deep/b", "B", "two")
    assert (second.name, second.group) == ("a", OTHERS)
    assert second.outputs[0] is None
    assert second.outputs[1]
    assert second.truth == scene / "truth" / "a.wav"


def test_folders_complete_and_override_what_runs_say(scene: Path) -> None:
    rows = [{"name": n, "status": "ok", "estimate": "a.wav", "mixture": f"m/{n}.wav"} for n in "az"]
    runs = [read_run(batch(scene / "good", rows))]
    first, second = gather(runs, scene / "truth", scene / "mixtures")
    assert (first.mixture, first.truth) == (scene / "mixtures/a.wav", scene / "truth/a.wav")
    assert (second.mixture, second.truth) == (Path("m/z.wav"), None)


def test_a_missing_truth_is_refused(scene: Path) -> None:
    runs = [read_run(scene / "good")]
    with pytest.raises(AudioError, match="nowhere: no such file or folder"):
        gather(runs, scene / "nowhere", None)
    with pytest.raises(PairingError, match=r"is a file. Name a folder"):
        gather(runs, None, scene / "truth" / "a.wav")


def test_groups_may_name_headings(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("\ufeffname,sex,group,title\na.wav,f,one,A & B\nb,m,,\n", "utf-8")
    groups = read_groups(path)
    assert (groups.by_name, groups.titles) == ({"a": "one"}, {"a": "A & B"})
    assert read_groups(path, "sex").of("b") == "m"
