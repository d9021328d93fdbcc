"""A batch's plan: everything checked, all that is wrong listed, nothing written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mcspex_cli import audio
from mcspex_cli.batch.journal import Journal
from mcspex_cli.batch.manifest import Task, compile_pattern, list_references
from mcspex_cli.batch.plan import BatchPlan, BatchRequest, plan_batch
from mcspex_cli.batch.worklist import measure
from mcspex_cli.errors import AudioError, PairingError, PlanError
from tests.conftest import RATE_HZ, buzz


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mixtures in a tree, a reference and a truth for each; the working folder."""
    monkeypatch.chdir(tmp_path)
    names = ("a.wav", "x/b.flac", "x/y/c.wav")
    touch(*(f"{place}/{name}" for place in ("mix", "refs", "truth") for name in names), "r.wav")
    return tmp_path


def touch(*names: str) -> None:
    """Files of a name's length, so that no two of one folder are alike."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(os.fsencode(name))


def whole_plan(*mixtures: str, refs: str | None = None, **asked: Any) -> BatchPlan:
    """The plan for some mixtures, with one reference for all if nothing else is said."""
    references = () if refs or "references" in asked else (Path("r.wav"),)
    asked = {"references": references, "output": Path("out"), **asked}
    paths = tuple(map(Path, mixtures))
    return plan_batch(
        BatchRequest(mixtures=paths, reference_folder=Path(refs) if refs else None, **asked)
    )


def plan(*mixtures: str, **asked: Any) -> Sequence[Task]:
    return whole_plan(*mixtures, **asked).tasks


def listed(text: str, name: str = "m.csv", **asked: Any) -> Sequence[Task]:
    """The plan for a manifest's text."""
    Path(name).write_text(text)
    return plan(manifest=Path(name), **asked)


def problems(*mixtures: str, **asked: Any) -> tuple[str, ...]:
    """What is wrong with a plan; nothing is written."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(PlanError) as caught:
        plan(*mixtures, **asked)
    assert sorted(Path().rglob("*")) == before
    return caught.value.problems


def test_a_trees_shape_is_kept(folder: Path) -> None:
    names = ["a.wav", "x/b.flac", "x/y/c.wav"]
    tasks = plan("mix", refs="refs", truth=Path("truth"))
    assert [task.id for task in tasks] == ["a", "x/b", "x/y/c"]
    assert [task.output for task in tasks] == ["a.wav", "x/b.wav", "x/y/c.wav"]
    assert [task.mixture for task in tasks] == [f"mix/{name}" for name in names]
    assert [task.references for task in tasks] == [(f"refs/{name}",) for name in names]
    assert [task.truth for task in tasks] == [f"truth/{name}" for name in names]
    assert not Path("out").exists()


def test_files_and_folders_are_mixed_and_the_suffix_is_the_users(folder: Path) -> None:
    tasks = plan("mix/x", "mix/a.wav", form="flac", residual=True, activity="srt")
    assert [task.output for task in tasks] == ["b.flac", "y/c.flac", "a.flac"]
    assert {task.references for task in tasks} == {("r.wav",)}
    assert {kind: str(path) for kind, path in tasks[1].outputs(Path("out")).items()} == {
        "audio": "out/audio/y/c.flac",
        "residual": "out/residual/y/c.flac",
        "activity": "out/activity/y/c.srt",
    }


def test_a_manifest_may_ask_for_residuals_and_activities_of_some(folder: Path) -> None:
    text = "mixture,span,residual,activity\nmix/a.wav,0-2,rest.flac,when.rttm\nmix/x/b.flac,,,\n"
    first, second = listed(text)
    assert (first.residual, first.activity, first.spans) == ("rest.flac", "when.rttm", ("0-2",))
    assert (first.references, second.references) == ((), ("r.wav",))
    assert list(second.outputs(Path("out"))) == ["audio"]


def test_what_lies_among_the_mixtures_but_is_none_is_left_out(folder: Path) -> None:
    touch("mix/out/audio/a.wav", "mix/.hidden/z.wav", "mix/._a.wav", "mix/readme.txt")
    for place in ("refs", "truth"):
        (folder / place).rename(folder / "mix" / place)
    tasks = plan("mix", refs="mix/refs", truth=Path("mix/truth"), output=Path("mix/out"))
    assert [task.id for task in tasks] == ["a", "x/b", "x/y/c"]


def test_what_another_batch_extracted_is_no_mixture_unless_it_is_named(
    folder: Path, warnings: Callable[[], list[str]]
) -> None:
    touch("mix/old/audio/x/a.wav", "mix/old/residual/a.wav", "mix/old/journal/1.jsonl")
    touch("mix/new/audio/a.wav")
    whole = whole_plan("mix")
    assert [task.id for task in whole.tasks] == ["a", "new/audio/a", "x/b", "x/y/c"]
    left_out = (
        "mix/old: has the results of another batch, which are left out. To extract from them, "
        "name mix/old/audio."
    )
    assert warnings() == [left_out]
    assert [task.id for task in plan("mix/old/audio")] == ["x/a"]
    with pytest.raises(AudioError, match=re.escape(left_out)):
        plan("mix/old")
    Path("empty").mkdir()
    with pytest.raises(
        AudioError, match=r"^empty: no sound files in this folder\. Name another\.$"
    ):
        plan("mix", "empty")
    with pytest.raises(AudioError, match=r"^refs: has no sound files except the references\.$"):
        plan("mix", "refs", references=(Path("refs"),))


def test_a_folder_or_file_that_is_named_twice_is_planned_once(folder: Path) -> None:
    ids = [task.id for task in plan("mix")]
    Path("link").symlink_to(folder / "mix")
    for again in ("mix", "mix/", str(folder / "mix"), "link", "mix/a.wav"):
        assert [task.id for task in plan("mix", again)] == ids, again
    assert [task.id for task in plan("mix/x", "mix")] == ["b", "y/c", "a"]


def test_a_manifests_paths_start_at_its_folder(folder: Path) -> None:
    (task,) = listed("mixture,reference\na.wav,../r.wav\n", "mix/m.csv")
    assert (task.mixture, task.output) == ("mix/a.wav", "a.wav")
    assert task.references == ("mix/../r.wav",)


def test_a_manifests_references_win_over_those_for_all(folder: Path) -> None:
    first, second = listed("mixture,reference\nmix/a.wav,refs/a.wav\nmix/x/b.flac,\n")
    assert (first.references, second.references) == (("refs/a.wav",), ("r.wav",))


def test_truth_may_be_an_scp(folder: Path) -> None:
    Path("truth.scp").write_text("a truth/a.wav\nx/b r.wav\nx/y/c truth/x/y/c.wav\n")
    tasks = plan("mix", truth=Path("truth.scp"))
    assert [task.truth for task in tasks] == ["truth/a.wav", "r.wav", "truth/x/y/c.wav"]


def test_a_link_to_a_folder_of_mixtures_is_followed(folder: Path) -> None:
    Path("elsewhere").mkdir()
    touch("elsewhere/d.wav")
    Path("mix/more").symlink_to(folder / "elsewhere")
    assert [task.id for task in plan("mix")] == ["a", "more/d", "x/b", "x/y/c"]


def test_all_that_is_wrong_with_a_manifest_is_said_at_once(folder: Path) -> None:
    touch("refs/unused.wav")
    text = (
        "mixture,reference,truth,id\n"
        "mix/a.wav,r.wav,truth/a.wav,a\n"  # 2: good
        "none.wav,r.wav,truth/a.wav,b\n"
        "mix/a.wav,none.wav,truth/a.wav,c\n"
        "mix/a.wav,refs/a.wav,none.wav,d\n"
        ",r.wav,truth/a.wav,e\n"  # 6
        "mix/a.wav\n"
        "mix/a.wav,r.wav,truth/a.wav,f\n"  # as line 2
        "mix/x/b.flac,r.wav,truth/a.wav,A\n"  # collides with line 2 where case means nothing
        "mix/x/b.flac,refs/a.wav,truth/a.wav,../g\n"  # 10
        "mix/x/y/c.wav,,truth/a.wav,nobody\n"
        "mix/x/y/c.wav,refs/x/b.flac;refs/x/y/c.wav,,h\n"
    )
    with pytest.raises(PlanError) as caught:
        listed(text, refs="refs", truth=Path("truth"))
    said = [problem.removeprefix("m.csv line ") for problem in caught.value.problems]
    assert said == [
        "3: none.wav does not exist, or is not a file.",
        "4: none.wav does not exist, or is not a file.",
        "5: none.wav does not exist, or is not a file.",
        "6: names no mixture. Name one, or drop the line.",
        "7: has 1 column, not 4.",
        "8: has the mixture and references of m.csv line 2. Remove one.",
        "9 and m.csv line 2 would both be written to out/audio/A.wav. Rename one, or give it "
        "another id.",
        "10: output '../g.wav' leaves the output folder. Give it another id or name.",
        "11: refs has no reference nobody. Add it, or say with --pattern, like {speaker}_{n}, "
        "which part of a mixture's name is its reference's.",
        "12: truth has no truth h for it.",
        "refs/unused.wav: belongs to no mixture. Remove it, or add --allow-unused.",
    ]
    assert str(caught.value) == "11 problems, see above. Nothing was started."
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("../x.wav", "leaves the output folder"),
        ("a/../../x.wav", "leaves the output folder"),
        ("..\\x.wav", "leaves the output folder"),
        ("/tmp/x.wav", "is an absolute path"),
        ("\\x.wav", "is an absolute path"),
        ("C:\\x.wav", "is an absolute path"),
        ("C:/x.wav", "is an absolute path"),
        ("x.mp3", f"does not end in {', '.join(audio.FORMATS)}"),
        ("x", f"does not end in {', '.join(audio.FORMATS)}"),
        (".wav", "would be hidden, so that score and report do not find it"),
        ("./.x.wav", "would be hidden, so that score and report do not find it"),
        ("a/.x/y.wav", "would be hidden, so that score and report do not find it"),
        (f"a/{'x' * 252}.wav", "is too long: disks allow 255 bytes"),
        (f"{'é' * 126}.wav", "is too long: disks allow 255 bytes"),
        (f"{'9' * 5000}/x.wav", "is too long: disks allow 255 bytes"),
    ],
)
def test_an_output_stays_in_its_folder_and_has_a_format(
    folder: Path, output: str, reason: str
) -> None:
    with pytest.raises(PlanError) as caught:
        listed(f"mixture,output\nmix/a.wav,{output}\n")
    assert caught.value.problems == (
        f"m.csv line 2: output {output!r} {reason}. Give it another id or name.",
    )
    assert str(caught.value).startswith("1 problem, ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_colon_in_a_name_is_no_drive(folder: Path) -> None:
    touch("new/a:b.wav")
    (task,) = plan("new")
    assert (task.id, task.output) == ("a:b", "a:b.wav")


@pytest.mark.parametrize("id_", ["../x", "/etc/x"])
def test_so_does_an_id(folder: Path, id_: str) -> None:
    assert "output folder" in problems_of_id(id_) or "absolute" in problems_of_id(id_)


def problems_of_id(id_: str) -> str:
    with pytest.raises(PlanError) as caught:
        listed(f"{id_} mix/a.wav\n", "m.scp")
    return caught.value.problems[0]


def test_an_output_does_not_leave_by_a_link(folder: Path) -> None:
    Path("elsewhere").mkdir()
    Path("out/audio").mkdir(parents=True)
    Path("out/audio/x").symlink_to(folder / "elsewhere")
    reason = "leaves the output folder by a link. Give it another id or name."
    assert problems("mix") == (
        f"mix/x/b.flac: output 'x/b.wav' {reason}",
        f"mix/x/y/c.wav: output 'x/y/c.wav' {reason}",
    )


def test_an_audio_folder_may_be_a_link_itself(folder: Path) -> None:
    Path("disk").mkdir()
    Path("out").mkdir()
    Path("out/audio").symlink_to(folder / "disk")
    assert len(plan("mix")) == 3


def test_outputs_with_the_names_of_folders_are_listed_in_order(folder: Path) -> None:
    names = [f"{number}.wav" for number in range(5)]
    rows = [f"mix/a.wav,{name}\nmix/x/b.flac,{name}/b.wav\n" for name in names]
    with pytest.raises(PlanError) as caught:
        listed("mixture,output\n" + "".join(rows))
    clashes = [text for text in caught.value.problems if "other outputs need a folder" in text]
    assert [text.partition(":")[0] for text in clashes] == [
        f"m.csv line {line}" for line in range(2, 12, 2)
    ]


@pytest.mark.parametrize("role", ["mixture", "reference", "truth"])
def test_an_input_is_never_written_over(folder: Path, role: str) -> None:
    touch("out/audio/x/b.wav")
    row = {"mixture": "mix/a.wav", "reference": "r.wav", "truth": "truth/a.wav"}
    row = {**row, role: "out/audio/x/b.wav", "id": "x/b"}
    with pytest.raises(PlanError) as caught:
        listed(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    assert caught.value.problems == (
        "m.csv line 2: would be written over out/audio/x/b.wav, an input.",
    )


def test_an_input_behind_a_link_is_not_either(folder: Path) -> None:
    touch("out/audio/a.wav")
    Path("mix/link.wav").symlink_to(folder / "out/audio/a.wav")
    assert problems("mix") == ("mix/a.wav: would be written over out/audio/a.wav, an input.",)


def test_two_mixtures_of_one_name_are_refused(folder: Path) -> None:
    touch("mix/a.flac")
    assert problems("mix") == (
        "mix/a.wav and mix/a.flac would both be written to out/audio/a.wav. Rename one, or give "
        "it another id.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "mixture,output\nmix/a.wav,é.wav\nmix/x/b.flac,é.flac\n",
        "mixture,output,id\nmix/a.wav,1.wav,e\u0301\nmix/x/b.flac,2.wav,é\n",
    ],
)
def test_one_id_of_two_outputs_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(PlanError, match="1 problem") as caught:
        listed(text)
    assert "m.csv line 3 and m.csv line 2 both have the id é." in caught.value.problems[0]


def test_one_mixture_with_two_voices_is_two_jobs(folder: Path) -> None:
    tasks = listed("mixture,reference,id\nmix/a.wav,r.wav,1\nmix/a.wav,refs/a.wav,2\n")
    assert [task.output for task in tasks] == ["1.wav", "2.wav"]


def test_a_mixture_without_a_reference_is_named(folder: Path) -> None:
    assert problems("mix/a.wav", references=()) == (
        "mix/a.wav: has no reference. Add one, or use --ref or --refs.",
    )


def test_unused_references_are_named_or_allowed(folder: Path) -> None:
    expected = "refs/x/b.flac: belongs to no mixture. Remove it, or add --allow-unused."
    assert expected in problems("mix/a.wav", refs="refs")
    (task,) = plan("mix/a.wav", refs="refs", allow_unused=True)
    assert task.references == ("refs/a.wav",)


def test_truths_of_no_mixture_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan("mix", truth=Path("truth"))
    Path("mix/a.wav").unlink()
    plan("mix", truth=Path("truth"), allow_unused=True)
    assert not caplog.messages
    plan("mix", truth=Path("truth"))
    assert caplog.messages == ["truth: truths of no mixture: 1 (a). Is a mixture missing?"]


def test_missing_truth_is_named(folder: Path) -> None:
    Path("truth/x/b.flac").unlink()
    assert problems("mix", truth=Path("truth")) == ("mix/x/b.flac: truth has no truth x/b for it.",)


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    Path("mix/gone.wav").symlink_to("nowhere.wav")
    assert problems("mix") == ("mix/gone.wav: does not exist, or is not a file.",)


def test_a_file_that_is_probably_meant_is_named(folder: Path) -> None:
    shutil.copy("mix/a.wav", "mix/Zoe\u0301.wav")
    for name, meant in (("mix\\a.wav", "mix/a.wav"), ("mix/Zo\u00e9.wav", "mix/Zoe\u0301.wav"),
                        ("mix/A.wav", "mix/a.wav")):  # fmt: skip
        with pytest.raises(PlanError) as caught:
            listed(f"mixture,reference\n{name},r.wav\n")
        (said,) = caught.value.problems
        assert f" Is it {meant}? Slashes, accents and capitals have to be the same." in said


def test_a_link_in_a_circle_is_named_and_left_out(
    folder: Path, warnings: Callable[[], list[str]]
) -> None:
    before = [task.mixture for task in plan("mix")]
    Path("mix/x/loop").symlink_to(folder / "mix")
    Path("refs/loop").symlink_to(folder / "refs")
    made = whole_plan("mix", refs="refs")
    assert [task.mixture for task in made.tasks] == before
    assert warnings() == [
        f"{link}: links to a folder above it and is not followed."
        for link in ("mix/x/loop", "refs/loop")
    ]


def test_one_rule_for_every_kind_of_recording(folder: Path) -> None:
    touch("mix/x/d.m4a", "mix/e.mp4", "mix/f.mp3", "refs/x/d.webm", "refs/e.mp3", "refs/f.m4a")
    tasks = plan("mix", refs="refs")
    assert [task.id for task in tasks] == ["a", "e", "f", "x/b", "x/d", "x/y/c"]
    touch("mix/f.m4a")
    assert "mix/f.mp3 and mix/f.m4a would both be written to out/audio/f.wav." in " ".join(
        problems("mix", refs="refs")
    )


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"mixtures": "none"}, AudioError, "none: no such file or folder."),
        ({"mixtures": "empty"}, AudioError, "empty: no sound files in this folder. Name another."),
        ({"refs": "none"}, AudioError, "none: no such file or folder."),
        ({"refs": "refs", "pattern": "x"}, PairingError, "--pattern x: does not say where the"),
        ({"truth": Path("none.scp")}, AudioError, "none.scp: no such file or folder."),
    ],
)
def test_a_question_without_sense_is_refused(
    folder: Path, asked: dict[str, Any], kind: type[Exception], message: str
) -> None:
    Path("empty").mkdir()
    with pytest.raises(kind, match=message):
        plan(asked.pop("mixtures", "mix"), **asked)
    assert not Path("out").exists()


def test_a_folder_that_is_no_utf8_is_planned_like_any(folder: Path) -> None:
    name = os.fsdecode(b"mix/caf\xe9.wav")
    touch(name)
    assert os.fsdecode(b"caf\xe9") in [task.id for task in plan("mix")]


def test_lengths_are_measured_as_far_as_files_can_be_read(folder: Path) -> None:
    for name, seconds, subtype in (("a.wav", 1.5, "PCM_16"), ("x/y/c.wav", 0.5, "FLOAT")):
        audio.write(Path("mix", name), buzz(100, seconds), RATE_HZ, subtype)
    Path("mix/cut.wav").write_bytes(Path("mix/a.wav").read_bytes()[:999])
    made = measure(whole_plan("mix"), Journal(Path("out"))).tasks
    assert [(task.id, task.length_s) for task in made] == [
        *(("a", 1.5), ("cut", 477 / RATE_HZ), ("x/b", None), ("x/y/c", 0.5))
    ]


@pytest.mark.parametrize("way", ["folder", "copy", "link", "manifest"])
def test_a_mixture_that_is_its_own_reference_is_refused(folder: Path, way: str) -> None:
    if way == "copy":
        shutil.copytree("mix", "copy")
    elif way == "link":
        Path("copy").symlink_to("mix")
    Path("m.csv").write_text("mixture,reference\nmix/a.wav,mix/a.wav\n")
    asked = {"manifest": Path("m.csv")} if way == "manifest" else {}
    refs = {"folder": "mix", "copy": "copy", "link": "copy"}.get(way)
    (said,) = problems(*(() if asked else ("mix",)), refs=refs, **asked)
    more = "" if asked else " The same is true of 2 more."
    assert said.endswith(
        "is its own reference. Name a recording in which the wanted person speaks alone." + more
    )


def test_a_mixture_that_is_its_own_truth_is_refused(folder: Path) -> None:
    (said,) = problems("mix", truth=Path("mix"))
    assert "is its own truth. Name a recording in which" in said
    assert said.endswith(" The same is true of 2 more.")
    shutil.copytree("mix", "copy")  # the truth of somebody who speaks alone
    assert len(plan("mix", truth=Path("copy"))) == 3


def test_a_truth_that_is_the_reference_has_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(plan("mix", refs="refs", truth=Path("truth"))) == 3
    assert not caplog.messages
    shutil.copytree("truth", "copy")
    assert len(plan("mix", refs="copy", truth=Path("truth"))) == 3
    (said,) = caplog.messages
    assert said.startswith("mix/a.wav: its truth is its reference, too, so its scores are better")
    assert said.endswith(" The same is true of 2 more.")


def test_empty_files_are_not_called_copies(folder: Path) -> None:
    for name in ("mix/a.wav", "refs/a.wav"):
        Path(name).write_bytes(b"")  # each fails for itself, when it is read
    assert len(plan("mix", refs="refs")) == 3


def test_a_mixture_and_a_truth_that_are_both_missing_are_not_one_file(folder: Path) -> None:
    with pytest.raises(PlanError) as caught:
        listed("mixture,truth\nmix/none.wav,truth/none.wav\n")
    assert [said.partition(": ")[2] for said in caught.value.problems] == [
        f"{name}/none.wav does not exist, or is not a file." for name in ("mix", "truth")
    ]


def test_accents_of_two_forms_are_one_name(folder: Path) -> None:
    for name in ("mixed/caf\u00e9_1.wav", "voices/cafe\u0301.wav", "true/cafe\u0301_1.wav"):
        touch(name)
    named = {"refs": "voices", "truth": Path("true")}
    for pattern in ("{speaker}_{n}", "(?P<speaker>caf\u00e9)_", "(?P<speaker>cafe\u0301)_"):
        (task,) = plan("mixed", pattern=pattern, **named)
        assert (task.references, task.truth) == (
            ("voices/cafe\u0301.wav",),
            "true/cafe\u0301_1.wav",
        )


def test_a_reference_of_the_mixtures_size_is_not_taken_for_it(folder: Path) -> None:
    Path("same.wav").write_text("MIX/A.WAV")
    assert plan("mix/a.wav", references=(Path("same.wav"),))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("x.wav", other) for other in ("./x.wav", "a/../x.wav", "X.wav", "x.wav/y/z.wav")),
        ("\u00e9.wav", "e\u0301.wav"),
    ],
)
def test_two_outputs_for_which_there_is_one_place_are_refused(
    folder: Path, one: str, other: str
) -> None:
    text = f"mixture,reference,output,id\nmix/a.wav,r.wav,{one},1\nmix/a.wav,refs/a.wav,{other},2\n"
    with pytest.raises(PlanError):
        listed(text)


def test_two_truths_of_one_name_are_refused(folder: Path) -> None:
    touch("truth/a.flac")
    with pytest.raises(PlanError) as caught:
        listed("mixture,reference,id\nmix/a.wav,r.wav,a\n", truth=Path("truth"))
    assert "both have the same name" in caught.value.problems[0]


def test_truths_are_a_folder_or_an_scp(folder: Path) -> None:
    touch("truths.csv")
    with pytest.raises(PairingError, match="is neither a folder of truths nor an scp"):
        listed("mixture,reference,id\nmix/a.wav,r.wav,a\n", truth=Path("truths.csv"))


def clips_for(name: str, pattern: str | None = None) -> list[str]:
    """The clips of refs/ for a mixture's name."""
    said: list[str] = []
    known = list_references(Path("refs"), pattern, said)
    assert said == []
    return [path.removeprefix("refs/") for path in known.find(name)]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "name", "clips"),
    [
        (("a.wav",), "a", ["a.wav"]),
        (("x/a.wav", "y/a.wav"), "y/a", ["y/a.wav"]),  # equal path
        (("a.wav", "b.flac"), "x/y/b", ["b.flac"]),  # stem
        (("deep/a.wav",), "x/a", ["deep/a.wav"]),  # stem of one deeper
        (("a.wav", "x/b.wav"), "x/c", ["x/b.wav"]),  # folder, with one clip
        (("ann/1.wav", "ann/2.wav", "bob/1.wav"), "ann/mix7", ["ann/1.wav", "ann/2.wav"]),
        (("ann/1.wav", "ann/2.wav"), "set/ann/mix7", ["ann/1.wav", "ann/2.wav"]),  # its name
        (("ann.wav", "bob.wav"), "set/ann/mix7", ["ann.wav"]),
        (("a/1.wav", "a/x/2.wav"), "a", ["a/1.wav", "a/x/2.wav"]),  # a folder like the mixture
        (("a.wav", "x/a.wav"), "a", ["a.wav"]),  # an equal path beats an equal stem
        (("b/c.wav", "b/x/a.wav"), "b/a", ["b/x/a.wav"]),  # a stem beats its own folder
        (("p/x/a.wav", "q/x/b.wav"), "x/a", ["p/x/a.wav"]),  # or a folder of several persons
    ],
)
def test_a_reference_is_found_by_name(
    empty: Path, files: tuple[str, ...], name: str, clips: list[str]
) -> None:
    touch(*(f"refs/{file}" for file in files))
    assert clips_for(name) == clips


@pytest.mark.parametrize(
    ("pattern", "name", "clips"),
    [
        ("{speaker}_{n}", "ann_1", ["ann.wav"]),
        ("{speaker}_{n}", "x/y/bob_2_3", ["bob/1.wav", "bob/2.wav"]),
        ("{n}-{speaker}", "12-ann", ["ann.wav"]),
        ("{a}.{speaker}", "x.bob", ["bob/1.wav", "bob/2.wav"]),
        (r"(?P<speaker>[a-z]+)-\d+$", "set/ann-17", ["ann.wav"]),
        (r"^(?P<speaker>[^/]+)/", "bob/x/7", ["bob/1.wav", "bob/2.wav"]),
        (r"(?P<speaker>[a-z]{3})\d{2}", "ann17", ["ann.wav"]),
    ],
)
def test_a_pattern_says_who_speaks(empty: Path, pattern: str, name: str, clips: list[str]) -> None:
    touch("refs/ann.wav", "refs/bob/1.wav", "refs/bob/2.wav")
    assert clips_for(name, pattern) == clips


@pytest.mark.parametrize(
    ("files", "name", "pattern", "message"),
    [
        (("x/a.wav", "y/a.wav"), "a", None, "has both x/a and y/a for it. Rename one."),
        (("ann/2.wav", "bob/1.wav"), "ann/1", None, "has both bob/1 and ann for it."),
        (("ann.wav", "1.wav"), "set/ann/1", None, "has both 1 and ann for it."),
        (("p/ann/2.wav", "p/bob/1.wav"), "ann/1", None, "has both p/bob/1 and p/ann for it."),
        (("x/a.wav", "y/a.wav"), "1_a", "{n}_{speaker}", "has both x/a and y/a for it."),
        (("b.wav",), "a", None, "refs has no reference a. Add it, or say with --pattern, like"),
        (("b.wav",), "x/y/a", None, "refs has no reference x/y/a or a or x/y or y. Add"),
        (("b.wav",), "a_1", "{speaker}_{n}", "refs has no reference a. Add it, or leave this"),
        (("a.wav",), "a", "{speaker}_{n}", "its name a does not match --pattern {speaker}_{n}."),
        (("a.wav",), "b/a_", "{speaker}_{n}", "its name b/a_ does not match --pattern {speaker}"),
        (("a.wav",), "xx", "(?P<speaker>a)?x", "its name xx does not match --pattern (?P<speaker"),
    ],
)
def test_no_reference_or_two_that_fit_are_refused(
    empty: Path, files: tuple[str, ...], name: str, pattern: str | None, message: str
) -> None:
    touch(*(f"refs/{file}" for file in files))
    with pytest.raises(PairingError, match=re.escape(message)):
        clips_for(name, pattern)


def test_an_scp_names_its_clips(empty: Path) -> None:
    Path("refs.scp").write_text("ann clips/1.wav\nbob /b.wav\n")
    known = list_references(Path("refs.scp"), "{speaker}_{n}", [])
    assert known.find("x/ann_2") == ("clips/1.wav",)
    assert known.find("bob_2") == ("/b.wav",)


@pytest.mark.parametrize(
    ("files", "first", "second"),
    [
        (("a.flac", "a.wav"), "a.flac", "a.wav"),
        (("a.wav", "a/1.wav"), "a.wav", "a/1.wav"),
    ],
)
def test_one_name_of_two_clips_is_a_problem(
    empty: Path, files: tuple[str, ...], first: str, second: str
) -> None:
    touch(*(f"refs/{file}" for file in files))
    said: list[str] = []
    list_references(Path("refs"), None, said)
    assert said == [f"refs/{first} and refs/{second}: both have the same name. Rename one."]


@pytest.mark.parametrize("name", ["a.wav", "a.txt"])
def test_what_is_no_place_for_references_is_refused(empty: Path, name: str) -> None:
    touch(name)
    with pytest.raises(PairingError, match=rf"{name}: is neither a folder of references nor an"):
        list_references(Path(name), None, [])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "{speaker}_{speaker}",
            "--pattern {speaker}_{speaker}: names a field twice, or by a number. Give each field",
        ),
        ("{speaker}_{n}_{n}", "names a field twice"),
        ("{name}_{n}", "does not say where the speaker is. Write it like {speaker}_{n} or (?P<"),
        ("([a-z]+)", "does not say where"),
        ("", "--pattern : does not say where"),
        (
            "(?P<speaker>[a-z",
            "--pattern (?P<speaker>[a-z: is not a regular expression (unterminated",
        ),
        ("(?P<speaker>x{99999999999})", "is not a regular expression (the repetition number is"),
        (
            "{speaker}_{2}",
            "--pattern {speaker}_{2}: names a field twice, or by a number.",
        ),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(PairingError) as caught:
        compile_pattern(pattern)
    assert message in str(caught.value)


def test_letters_of_a_template_mean_themselves() -> None:
    compiled = compile_pattern("{speaker}.(1)+{n}")
    found = compiled.search("x/ann.(1)+2")
    assert found
    assert found["speaker"] == "ann"
    assert not compiled.search("annx112")
