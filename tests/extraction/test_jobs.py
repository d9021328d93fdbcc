"""Which output each mixture gets, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcspex_cli.errors import AudioError, OutputError
from mcspex_cli.extraction.jobs import Request, plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.flac", "ref.wav", "sub/a.wav", "old.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def outputs(folder: Path, *mixtures: str, output: str | None = None, overwrite: bool = False):
    jobs = plan(
        Request(
            [folder / m for m in mixtures],
            [folder / "ref.wav"],
            folder / output if output else None,
            overwrite=overwrite,
        )
    )
    return [str(job.output.relative_to(folder)) for job in jobs]


def besides(folder: Path, *mixtures: str, **places: str) -> list[list[str]]:
    """Each mixture's outputs, where residuals and activities are asked for too."""
    named = {name: folder / place for name, place in places.items()}
    jobs = plan(Request([folder / m for m in mixtures], [folder / "ref.wav"], **named))
    return [[str(path.relative_to(folder)) for path in job.outputs()] for job in jobs]


def test_residual_and_activity_are_files_or_folders_too(folder: Path) -> None:
    assert besides(folder, "a.wav", residual="r.flac", activity="sub/a.RTTM") == [
        ["a.target.wav", "r.flac", "sub/a.RTTM"]
    ]
    assert besides(folder, "a.wav", "b.flac", output="x", residual="x", activity="y") == [
        ["x/a.target.wav", "x/a.residual.wav", "y/a.activity.json"],
        ["x/b.target.wav", "x/b.residual.wav", "y/b.activity.json"],
    ]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"residual": "r.mp3"}, "r.mp3: cannot write this format"),
        ({"activity": "a.txt"}, r"a.txt: cannot note activity so. Use .json, .rttm or .srt"),
        ({"residual": "ref.wav"}, "ref.wav: is an input"),
        ({"residual": "old.wav"}, "old.wav: exists already"),
        ({"residual": "none/r.wav"}, "none: no such folder"),
        ({"output": "x.wav", "residual": "x.wav"}, r"x.wav: is asked for twice"),
    ],
)
def test_what_is_refused_of_outputs_is_refused_of_them(
    folder: Path, places: dict[str, str], message: str
) -> None:
    with pytest.raises(OutputError, match=message):
        besides(folder, "a.wav", **places)


def test_one_residual_for_two_mixtures_is_refused(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"would both be written to .*r.wav"):
        besides(folder, "a.wav", "b.flac", residual="r.wav")


def test_beside_the_mixture_by_default(folder: Path) -> None:
    assert outputs(folder, "a.wav", "sub/a.wav") == ["a.target.wav", "sub/a.target.wav"]


def test_in_a_folder_which_need_not_exist_yet(folder: Path) -> None:
    expected = ["new/deep/a.target.wav", "new/deep/b.target.wav"]
    assert outputs(folder, "a.wav", "b.flac", output="new/deep") == expected
    assert not (folder / "new").exists()


def test_under_the_name_given(folder: Path) -> None:
    assert outputs(folder, "a.wav", output="sub/x.flac") == ["sub/x.flac"]


def test_an_existing_output_is_replaced_only_when_asked(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"old.wav: exists already. Add --overwrite"):
        outputs(folder, "a.wav", output="old.wav")
    assert outputs(folder, "a.wav", output="old.wav", overwrite=True) == ["old.wav"]


@pytest.mark.parametrize("output", ["a.wav", "ref.wav", "sub/../a.wav"])
def test_an_input_is_never_overwritten(folder: Path, output: str) -> None:
    with pytest.raises(OutputError, match="is an input, which is never overwritten"):
        outputs(folder, "a.wav", output=output, overwrite=True)


def test_an_input_behind_a_link_is_never_overwritten(folder: Path) -> None:
    (folder / "link.wav").symlink_to(folder / "a.wav")
    with pytest.raises(OutputError, match="is an input"):
        outputs(folder, "a.wav", output="link.wav", overwrite=True)


@pytest.mark.parametrize("output", ["out", "x.wav"])
def test_two_mixtures_with_one_output_are_refused(folder: Path, output: str) -> None:
    with pytest.raises(OutputError, match=r"a.wav and .*sub/a.wav would both be written to"):
        outputs(folder, "a.wav", "sub/a.wav", output=output)
    assert not (folder / "out").exists()


def test_a_format_that_cannot_be_written_is_refused_early(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"x.mp3: cannot write this format. Use .wav"):
        outputs(folder, "a.wav", output="x.mp3")


def test_a_directory_in_the_outputs_place_is_refused(folder: Path) -> None:
    (folder / "a.target.wav").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        outputs(folder, "a.wav", overwrite=True)


@pytest.mark.parametrize("mixture", ["none.wav", "none/a.wav"])
def test_a_missing_mixture_is_refused_before_any_work(folder: Path, mixture: str) -> None:
    with pytest.raises(AudioError, match=rf"{mixture}: no such file or folder"):
        outputs(folder, "a.wav", mixture)
    assert not (folder / "none").exists()


def test_a_missing_folder_is_named_before_any_work(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"none: no such folder. Make it"):
        outputs(folder, "a.wav", output="none/x.wav")
