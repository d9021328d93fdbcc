"""A batch's plan: everything checked, all that is wrong listed, nothing written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mcspex_cli import audio
from mcspex_cli.errors import AudioError, PairingError, PlanError
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.planning import BatchRequest, measured, plan_batch
from tests.conftest import RATE_HZ, buzz


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mixtures in a tree, a reference and a truth for each; the working folder."""
    monkeypatch.chdir(tmp_path)
    names = ("a.wav", "x/b.flac", "x/y/c.wav")
    touch(*(f"{place}/{name}" for place in ("mix", "refs", "truth") for name in names), "r.wav")
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def plan(*mixtures: str, refs: str | None = None, **asked: Any) -> list[Job]:
    """The plan for some mixtures, with one reference for all if nothing else is said."""
    references = () if refs or "references" in asked else (Path("r.wav"),)
    asked = {"references": references, "output": Path("out"), **asked}
    paths = tuple(map(Path, mixtures))
    return plan_batch(
        BatchRequest(mixtures=paths, reference_folder=Path(refs) if refs else None, **asked)
    )


def listed(text: str, name: str = "m.csv", **asked: Any) -> list[Job]:
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
    jobs = plan("mix", refs="refs", truth=Path("truth"))
    assert [job.id for job in jobs] == ["a", "x/b", "x/y/c"]
    assert [str(job.output) for job in jobs] == [
        "out/audio/a.wav",
        "out/audio/x/b.wav",
        "out/audio/x/y/c.wav",
    ]
    assert [str(job.mixture) for job in jobs] == ["mix/a.wav", "mix/x/b.flac", "mix/x/y/c.wav"]
    assert [job.references for job in jobs] == [
        (Path("refs/a.wav"),),
        (Path("refs/x/b.flac"),),
        (Path("refs/x/y/c.wav"),),
    ]
    assert [str(job.truth) for job in jobs] == ["truth/a.wav", "truth/x/b.flac", "truth/x/y/c.wav"]
    assert not Path("out").exists()


def test_files_and_folders_are_mixed_and_the_suffix_is_the_users(folder: Path) -> None:
    jobs = plan("mix/x", "mix/a.wav", suffix=".flac")
    assert [job.output.name for job in jobs] == ["b.flac", "c.flac", "a.flac"]
    assert {job.references for job in jobs} == {(Path("r.wav"),)}


def test_what_lies_among_the_mixtures_but_is_none_is_left_out(folder: Path) -> None:
    touch("mix/out/audio/a.wav", "mix/.hidden/z.wav", "mix/._a.wav", "mix/readme.txt")
    for place in ("refs", "truth"):
        (folder / place).rename(folder / "mix" / place)
    jobs = plan("mix", refs="mix/refs", truth=Path("mix/truth"), output=Path("mix/out"))
    assert [job.id for job in jobs] == ["a", "x/b", "x/y/c"]


def test_a_manifests_paths_start_at_its_folder(folder: Path) -> None:
    (job,) = listed("mixture,reference\na.wav,../r.wav\n", "mix/m.csv")
    assert (job.mixture, job.output) == (Path("mix/a.wav"), Path("out/audio/a.wav"))
    assert job.references == (Path("mix/../r.wav"),)


def test_a_manifests_references_win_over_those_for_all(folder: Path) -> None:
    first, second = listed("mixture,reference\nmix/a.wav,refs/a.wav\nmix/x/b.flac,\n")
    assert first.references == (Path("refs/a.wav"),)
    assert second.references == (Path("r.wav"),)


def test_truth_may_be_an_scp(folder: Path) -> None:
    Path("truth.scp").write_text("a truth/a.wav\nx/b r.wav\nx/y/c truth/x/y/c.wav\n")
    jobs = plan("mix", truth=Path("truth.scp"))
    assert [str(job.truth) for job in jobs] == ["truth/a.wav", "r.wav", "truth/x/y/c.wav"]


def test_a_link_to_a_folder_of_mixtures_is_followed(folder: Path) -> None:
    Path("elsewhere").mkdir()
    touch("elsewhere/d.wav")
    Path("mix/more").symlink_to(folder / "elsewhere")
    assert [job.id for job in plan("mix")] == ["a", "more/d", "x/b", "x/y/c"]


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
        "3: none.wav is not there, or no file.",
        "4: none.wav is not there, or no file.",
        "5: none.wav is not there, or no file.",
        "6: names no mixture.",
        "7: has 1 columns, not 4.",
        "8: the same mixture and references as m.csv line 2. Drop one.",
        "9 and m.csv line 2 would both be written to out/audio/A.wav. Rename one.",
        "10: output '../g.wav' leaves the output folder. Give it another id.",
        "11: no reference nobody in refs. Add it, or drop this mixture.",
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
        ("C:x.wav", "is an absolute path"),
        ("C:\\x.wav", "is an absolute path"),
        ("x.mp3", "does not end in .wav, .flac, .ogg"),
        ("x", "does not end in .wav, .flac, .ogg"),
        (".wav", "does not end in .wav, .flac, .ogg"),
    ],
)
def test_an_output_stays_in_its_folder_and_has_a_format(
    folder: Path, output: str, reason: str
) -> None:
    with pytest.raises(PlanError) as caught:
        listed(f"mixture,output\nmix/a.wav,{output}\n")
    assert caught.value.problems == (
        f"m.csv line 2: output {output!r} {reason}. Give it another id.",
    )
    assert str(caught.value).startswith("1 problem, ")


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
    assert problems("mix") == (
        "mix/x/b.flac: output 'x/b.wav' leaves the output folder by a link. Give it another id.",
        "mix/x/y/c.wav: output 'x/y/c.wav' leaves the output folder by a link. Give it another id.",
    )


def test_an_audio_folder_may_be_a_link_itself(folder: Path) -> None:
    Path("disk").mkdir()
    Path("out").mkdir()
    Path("out/audio").symlink_to(folder / "disk")
    assert len(plan("mix")) == 3


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
        "mix/a.wav and mix/a.flac would both be written to out/audio/a.wav. Rename one.",
    )


def test_one_id_of_two_outputs_is_refused(folder: Path) -> None:
    text = "mixture,output\nmix/a.wav,1.wav\nmix/x/b.flac,1.flac\n"
    with pytest.raises(PlanError, match="1 problem") as caught:
        listed(text)
    assert "m.csv line 3 and m.csv line 2 would both" in caught.value.problems[0]


@pytest.mark.parametrize("mixtures", [("a.wav", "a.wav"), (".", "a.wav"), (".", ".")])
def test_a_mixture_named_twice_is_refused(
    folder: Path, mixtures: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("mix")
    said = problems(*mixtures, references=(Path("../r.wav"),))
    assert "a.wav: the same mixture and references as a.wav. Drop one." in said


def test_one_mixture_with_two_voices_is_two_jobs(folder: Path) -> None:
    jobs = listed("mixture,reference,id\nmix/a.wav,r.wav,1\nmix/a.wav,refs/a.wav,2\n")
    assert [job.output.name for job in jobs] == ["1.wav", "2.wav"]


def test_a_mixture_without_a_reference_is_named(folder: Path) -> None:
    assert problems("mix/a.wav", references=()) == (
        "mix/a.wav: has no reference. Add one, or --ref or --refs.",
    )


def test_unused_references_are_named_or_allowed(folder: Path) -> None:
    expected = "refs/x/b.flac: belongs to no mixture. Remove it, or add --allow-unused."
    assert expected in problems("mix/a.wav", refs="refs")
    (job,) = plan("mix/a.wav", refs="refs", allow_unused=True)
    assert job.references == (Path("refs/a.wav"),)


def test_missing_truth_is_named(folder: Path) -> None:
    Path("truth/x/b.flac").unlink()
    assert problems("mix", truth=Path("truth")) == ("mix/x/b.flac: truth has no truth x/b for it.",)


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    Path("mix/gone.wav").symlink_to("nowhere.wav")
    assert problems("mix") == ("mix/gone.wav: mix/gone.wav is not there, or no file.",)


def test_a_folder_that_links_into_itself_is_read_once(folder: Path) -> None:
    before = [job.mixture for job in plan("mix")]
    Path("mix/x/loop").symlink_to(folder / "mix")
    assert [job.mixture for job in plan("mix")] == before


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"mixtures": "none"}, AudioError, "none: no such file or folder."),
        ({"mixtures": "empty"}, AudioError, "empty: no sound files in this folder."),
        ({"refs": "none"}, PairingError, "none: is neither a folder of references nor an scp."),
        ({"refs": "refs", "pattern": "x"}, PairingError, "--pattern x: has no speaker."),
        ({"truth": Path("none.scp")}, PairingError, r"none.scp: cannot be read \(No such file"),
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
    assert os.fsdecode(b"caf\xe9") in [job.id for job in plan("mix")]


def test_lengths_are_measured_as_far_as_files_can_be_read(folder: Path) -> None:
    audio.write(Path("mix/a.wav"), buzz(100, 1.5), RATE_HZ)
    assert [job.seconds for job in measured(plan("mix"))] == [1.5, None, None]


@pytest.mark.parametrize("other", ["./x.wav", "a/../x.wav", "X.wav"])
def test_one_output_by_two_spellings_is_refused(folder: Path, other: str) -> None:
    text = f"mixture,reference,output,id\nmix/a.wav,r.wav,x.wav,1\nmix/a.wav,refs/a.wav,{other},2\n"
    with pytest.raises(PlanError):
        listed(text)


def test_two_truths_of_one_name_are_refused(folder: Path) -> None:
    touch("truth/a.flac")
    with pytest.raises(PlanError) as caught:
        listed("mixture,reference,id\nmix/a.wav,r.wav,a\n", truth=Path("truth"))
    assert "one name, two truths" in caught.value.problems[0]


def test_truths_are_a_folder_or_an_scp(folder: Path) -> None:
    touch("truths.csv")
    with pytest.raises(PairingError, match="is neither a folder of truths nor an scp"):
        listed("mixture,reference,id\nmix/a.wav,r.wav,a\n", truth=Path("truths.csv"))
