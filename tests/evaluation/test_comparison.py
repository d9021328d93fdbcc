"""Reading runs, putting them side by side, and choosing the cases to show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mcspex_cli.errors import ConfigError, PairingError
from mcspex_cli.evaluation.comparison import (
    OTHER_CASES,
    Comparison,
    ComparisonCase,
    Output,
    PageSettings,
    SystemOutputs,
    compare_systems,
    read_system,
    read_systems,
)
from mcspex_cli.evaluation.report import read_groups
from mcspex_cli.evaluation.scoring import Score
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
    run = read_system(scene / "good")
    assert run.label == "good"
    assert set(run.outputs) == {"a", "deep/b"}
    assert run.outputs["a"].estimate == scene / "good" / "a.target.wav"


def test_a_batch_brings_its_mixtures_and_truths(scene: Path) -> None:
    row = {"name": "a", "status": "ok", "estimate": "a.wav", "mixture": "m/a.wav"}
    failed = {**row, "name": "b", "status": "failed", "note": "too short"}
    pending = {**row, "name": "c", "status": "pending", "truth": None}
    folder = batch(scene / "good", [{**row, "truth": "t/a.wav"}, failed, pending])
    outputs = read_system(folder).outputs
    assert outputs["a"].estimate == folder / "a.wav"
    assert (outputs["a"].mixture, outputs["a"].truth) == (folder / "m/a.wav", folder / "t/a.wav")
    assert (outputs["b"].estimate, outputs["b"].problem) == (None, "too short")
    assert (outputs["c"].estimate, outputs["c"].problem) == (None, "pending")
    assert outputs["c"].truth is None
    accented = read_system(batch(scene / "bad", [{**row, "name": "cafe\u0301"}]))
    assert list(accented.outputs) == ["caf\u00e9"]


def test_another_report_json_is_not_taken_for_a_batch(scene: Path) -> None:
    for text in (
        "[]",
        '{"summary": {}}',
        '{"format": 1, "scores": [{"name": "a", "status": "ok"}]}',
    ):
        (scene / "good" / "report.json").write_text(text)
        assert len(read_system(scene / "good").outputs) == 2


def test_a_batch_without_a_report_says_so(scene: Path) -> None:
    for name in ("audio", "journal"):
        (scene / "good" / name).mkdir()
    with pytest.raises(PairingError, match=r"good: has no report, .*good/audio with"):
        read_system(scene / "good")


def test_a_damaged_batch_is_refused(scene: Path) -> None:
    (scene / "good" / "report.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot be read as JSON .*Run mcspex batch again"):
        read_system(scene / "good")


def test_a_label_can_be_given_but_a_path_wins(scene: Path) -> None:
    (scene / "x=good").mkdir()
    (scene / "good" / "a.wav").rename(scene / "x=good" / "a.wav")
    words = [f"ours={scene / 'bad'}", str(scene / "x=good")]
    assert [run.label for run in read_systems(words)] == ["ours", "x=good"]


def test_cases_are_those_of_all_runs_and_the_places_first(scene: Path) -> None:
    (scene / "good" / "a.wav").unlink()
    groups = scene / "groups.csv"
    groups.write_text("id,group,title\nunknown,one,\ndeep/b,two,B\n")
    runs = read_systems([str(scene / "good"), str(scene / "bad")])
    settings = PageSettings(scene / "truth", scene / "mixtures", read_groups(groups))
    first, second = compare_systems(runs, settings).cases
    assert (first.name, first.title, first.group) == ("deep/b", "B", "two")
    assert (second.name, second.group) == ("a", OTHER_CASES)
    assert second.outputs[0].estimate is None
    assert second.outputs[1].estimate
    assert second.truth == scene / "truth" / "a.wav"


def test_folders_complete_and_override_what_runs_say(scene: Path) -> None:
    rows = [{"name": n, "status": "ok", "estimate": "a.wav", "mixture": f"m/{n}.wav"} for n in "az"]
    runs = [read_system(batch(scene / "good", rows))]
    first, second = compare_systems(runs, PageSettings(scene / "truth", scene / "mixtures")).cases
    assert (first.mixture, first.truth) == (scene / "mixtures/a.wav", scene / "truth/a.wav")
    assert (second.mixture, second.truth) == (scene / "good/m/z.wav", None)


@pytest.mark.parametrize("kind", ["truth", "mixture"])
def test_runs_of_other_targets_are_told(scene: Path, kind: str) -> None:
    def run(label: str, other: str) -> SystemOutputs:
        places = {"truth": "../truth/a.wav", "mixture": "../mixtures/a.wav", kind: other}
        row = {**Score("a", "ok", "", {"si_sdr_db": 1.0}).to_dict(), "estimate": "a.wav", **places}
        return read_system(batch(scene / label, [row]))

    place = "truth/a.wav" if kind == "truth" else "mixtures/a.wav"
    shutil.copy(scene / place, scene / "copy.wav")
    first = run("good", f"../{place}")
    same, other = run("bad", "../copy.wav"), run("bad", "../good/a.wav")
    said = f"bad: compared with other {kind}s here than in its own batch: a. Are the runs of the "
    for second, times in ((same, 0), (other, 1)):
        lines = compare_systems([first, second], PageSettings()).warnings()
        assert sum(said in line for line in lines) == times
    folders = PageSettings(scene / "truth", scene / "mixtures")
    assert said not in str(compare_systems([first, other], folders).warnings())


def comparison(gains: list[float | None], count: int | None = None, seed: int = 0) -> Comparison:
    """Cases c00, c01, ... of one system with these SI-SDRi."""
    cases = []
    for number, gain in enumerate(gains):
        columns = {"si_sdr_db": gain, "si_sdr_i_db": gain, "input_si_sdr_db": 0.0}
        values = {} if gain is None else columns
        status = "unreadable" if gain is None else "ok"
        row = Score("", status, "", values, (gain or 0) < 0).to_dict()
        name = f"c{number:02d}"
        cases.append(ComparisonCase(name, name, "", Path("m"), Path("t"), [Output(row=row)]))
    settings = PageSettings(max_cases=count, seed=seed)
    return Comparison([SystemOutputs("x", Path(), {})], cases, settings)


def test_a_third_is_best_a_third_worst_a_third_drawn() -> None:
    gain = [float((7 * n) % 30) for n in range(30)]
    first, again, *others = (comparison([*gain], 8, seed).choose() for seed in (0, 0, 1, 2, 3))
    for why, gains in (("best", [27, 28, 29]), ("worst", [0, 1, 2])):
        assert sorted(gain[int(name[1:])] for name in first if first[name] == why) == gains
    assert list(first.values()).count("drawn at random") == 2
    assert again == first
    assert any(other != first for other in others)


@pytest.mark.parametrize("count", [0, 1, 5, 9, 10, 11])
def test_as_many_are_chosen_as_are_asked_for(count: int) -> None:
    for gains in ([None] * 10, [1.0, None] * 5, [float(n) for n in range(10)]):
        chosen = comparison([*gains], count, seed=1).choose()
        assert len(chosen) == min(count, 10)
        assert ("" in chosen.values()) == (count >= 10)


def test_summaries_count_and_average() -> None:
    systems = comparison([4.0, -2.0, 10.0, None])
    (row,) = systems.summaries(systems.cases)
    assert (row.files, row.scored, row.confused) == (4, 3, 1)
    gain = row.metrics["si_sdr_i_db"]
    assert (gain.mean, gain.median) == (4.0, 4.0)


def test_a_batchs_own_scores_are_taken_and_others_are_made(scene: Path) -> None:
    names = {key: f"../{key}/a.wav" for key in ("truth", "mixture")}
    (scene / "mixtures").rename(scene / "mixture")
    row = Score("a", "sign flipped", "", {"pesq": 2.5}).to_dict()
    runs = [read_system(batch(scene / "good", [{**row, "estimate": "a.wav", **names}]))]
    (case,) = compare_systems(runs, PageSettings()).cases
    assert case.rows[0]
    assert [case.rows[0][key] for key in ("pesq", "status", "note")] == [2.5, "ok", "sign flipped."]
    (case,) = compare_systems(runs, PageSettings(scene / "bad")).cases
    assert case.rows[0]
    assert (case.rows[0]["pesq"], case.rows[0]["snr_db"] is None) == (None, False)
    refused = {**row, "status": "rate differs", "presence": 0.5, "estimate": "a.wav", **names}
    (case,) = compare_systems([read_system(batch(scene / "good", [refused]))], PageSettings()).cases
    assert case.rows[0]["presence"] == 0.5
    assert case.rows[0]["status"] != "rate differs"  # as perhaps there is --resample now
    damaged = {**row, "pesq": "2", "estimate": "a.wav", **names}
    with pytest.raises(ConfigError, match="its scores are damaged"):
        read_system(batch(scene / "good", [damaged]))
