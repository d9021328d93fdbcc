"""Which reference is whose: by name, folder or pattern, and never by chance."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcspex_cli.errors import PairingError
from mcspex_cli.extraction.references import compile_pattern, list_references


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, name: str, pattern: str | None = None) -> list[str]:
    """The clips for a mixture's name."""
    problems: list[str] = []
    known = list_references(folder, pattern, problems)
    assert problems == []
    return [path.relative_to(folder).as_posix() for path in known.clips[known.find(name)]]


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
        (("x/a.wav", "b/c.wav"), "b/a", ["x/a.wav"]),  # a stem beats a folder
    ],
)
def test_a_reference_is_found_by_name(
    tmp_path: Path, files: tuple[str, ...], name: str, clips: list[str]
) -> None:
    assert found(touch(tmp_path, *files), name) == clips


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
def test_a_pattern_says_who_speaks(
    tmp_path: Path, pattern: str, name: str, clips: list[str]
) -> None:
    folder = touch(tmp_path, "ann.wav", "bob/1.wav", "bob/2.wav")
    assert found(folder, name, pattern) == clips


@pytest.mark.parametrize(
    ("files", "name", "pattern", "message"),
    [
        (("x/a.wav", "y/a.wav"), "a", None, "has both x/a and y/a for it. Rename one."),
        (("x/a.wav", "y/a.wav"), "1_a", "{n}_{speaker}", "has both x/a and y/a for it."),
        (("b.wav",), "a", None, "no reference a in "),
        (("b.wav",), "x/y/a", None, "no reference x/y/a or a or x/y or y in "),
        (("b.wav",), "a_1", "{speaker}_{n}", "no reference a in "),
        (("a.wav",), "a", "{speaker}_{n}", "its name does not match "),
        (("a.wav",), "b/a_", "{speaker}_{n}", "its name does not match "),
        (("a.wav",), "xx", "(?P<speaker>a)?x", "its name does not match "),
    ],
)
def test_no_reference_or_two_of_equal_right_are_refused(
    tmp_path: Path, files: tuple[str, ...], name: str, pattern: str | None, message: str
) -> None:
    known = list_references(touch(tmp_path, *files), pattern, [])
    with pytest.raises(PairingError, match=message):
        known.find(name)


def test_an_scp_names_its_clips(tmp_path: Path) -> None:
    (tmp_path / "refs.scp").write_text("ann clips/1.wav\nbob /b.wav\n")
    known = list_references(tmp_path / "refs.scp", "{speaker}_{n}", [])
    assert known.clips[known.find("x/ann_2")] == [tmp_path / "clips/1.wav"]
    assert known.clips[known.find("bob_2")] == [Path("/b.wav")]


@pytest.mark.parametrize(
    ("files", "first", "second"),
    [
        (("a.flac", "a.wav"), "a.flac", "a.wav"),
        (("a.wav", "a/1.wav"), "a.wav", "a/1.wav"),
    ],
)
def test_one_name_of_two_clips_is_a_problem(
    tmp_path: Path, files: tuple[str, ...], first: str, second: str
) -> None:
    problems: list[str] = []
    list_references(touch(tmp_path, *files), None, problems)
    both = f"{tmp_path / first} and {tmp_path / second}"
    assert problems == [f"{both}: one name, two clips. Rename one."]


@pytest.mark.parametrize("name", ["none", "a.wav", "none.txt"])
def test_what_is_no_place_for_references_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.wav")
    with pytest.raises(PairingError, match=rf"{name}: is neither a folder of references nor an"):
        list_references(tmp_path / name, None, [])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{speaker}_{speaker}", "--pattern {speaker}_{speaker}: names a field twice."),
        ("{speaker}_{n}_{n}", "names a field twice."),
        ("{name}_{n}", "has no speaker. Write it like {speaker}_{n} or (?P<speaker>[a-z]+)-.*"),
        ("([a-z]+)", "has no speaker."),
        ("", "--pattern : has no speaker."),
        ("(?P<speaker>[a-z", "--pattern (?P<speaker>[a-z: unterminated character set"),
        ("{speaker}_{2}", "bad character in group name"),
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
