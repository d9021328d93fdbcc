"""Folders of speech: who speaks in LibriSpeech, LibriMix and plain trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcspex_cli.errors import ConfigError
from mcspex_cli.training.clips import is_librimix, list_clips, list_mixtures, read_enrolments
from tests.conftest import LIBRIMIX

METADATA = "metadata/mixture_test_mix_clean.csv"


def test_a_plain_folder_is_a_speaker_and_a_stem_a_sentence(corpus: Path) -> None:
    clips = list_clips([corpus])
    assert [(Path(c.speaker).name, c.sentence) for c in clips] == [
        *(("ann", name) for name in "abc"),
        *(("bob", name) for name in "abd"),
        *(("cyn", name) for name in "efg"),
    ]
    assert all(c.path.is_file() for c in clips)


def test_equal_names_in_two_trees_are_two_speakers(corpus: Path) -> None:
    (corpus.parent / "more").mkdir()
    (corpus / "bob").rename(corpus.parent / "more" / "ann")
    clips = list_clips([corpus, corpus.parent / "more"])
    assert [Path(c.speaker).name for c in clips[-3:]] == ["ann"] * 3
    assert len({c.speaker for c in clips}) == 3


def test_two_chapters_of_librispeech_are_one_speaker(librispeech: Path) -> None:
    clips = list_clips([librispeech])
    assert {c.speaker for c in clips} == {"librispeech/84", "librispeech/174"}
    assert [c.sentence for c in clips if c.speaker == "librispeech/84"] == [
        "84-121123-0000",
        "84-121123-0001",
        "84-121550-0000",
    ]
    assert list_clips([librispeech.parent]) == clips


def test_a_name_like_librispeechs_in_another_tree_is_no_speaker(librispeech: Path) -> None:
    (librispeech / "84" / "121550").rename(librispeech / "84" / "attic")
    speakers = {c.speaker for c in list_clips([librispeech])}
    assert str(librispeech / "84" / "attic") in speakers
    assert len(speakers) == 3


def test_librimix_and_librispeech_name_a_speaker_alike(librimix: Path, librispeech: Path) -> None:
    in_mixtures, alone = ({c.speaker for c in list_clips([f])} for f in (librimix / "dev",
                          librispeech))  # fmt: skip
    assert in_mixtures == alone


def test_a_librimix_set_is_known_by_its_three_folders(librimix: Path, corpus: Path) -> None:
    assert all(is_librimix(librimix / name) for name in LIBRIMIX)
    assert not is_librimix(librimix)
    assert not is_librimix(corpus)
    (librimix / "dev" / "s2").rename(librimix / "dev" / "s3")
    assert not is_librimix(librimix / "dev")


def test_a_librimix_sets_clips_are_its_talkers(librimix: Path) -> None:
    clips = list_clips([librimix / "dev"])
    assert {c.path.parent.name for c in clips} == {"s1", "s2"}
    assert sorted((c.speaker, c.sentence) for c in clips) == [
        ("librispeech/174", "174-50561-0000"),
        ("librispeech/174", "174-50561-0001"),
        ("librispeech/84", "84-121123-0000"),
        ("librispeech/84", "84-121550-0000"),
    ]


def test_metadata_says_which_mixtures_there_are(librimix: Path) -> None:
    folder = librimix / "test"
    mixtures = list_mixtures(folder)
    assert [m.id for m in mixtures] == list(LIBRIMIX["test"][:2])
    assert mixtures[0].path == folder / "mix_clean" / f"{mixtures[0].id}.wav"
    assert [c.path for c in mixtures[0].talkers] == [
        folder / role / f"{mixtures[0].id}.wav" for role in ("s1", "s2")
    ]
    assert [c.sentence for c in mixtures[0].talkers] == ["4077-13754-0001", "5142-33396-0065"]
    (librimix / METADATA).rename(folder / "mixture_test_mix_clean.csv")
    assert list_mixtures(folder) == mixtures


def test_without_metadata_the_folder_says_it(librimix: Path) -> None:
    (librimix / METADATA).unlink()
    assert [m.id for m in list_mixtures(librimix / "test")] == sorted(LIBRIMIX["test"])


def test_missing_folders_and_sounds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"zoe: no such folder of speakers"):
        list_clips([tmp_path / "zoe"])
    with pytest.raises(ConfigError, match=r"no sound files in it. Name a folder of speakers"):
        list_clips([tmp_path])


def test_missing_files_of_a_librimix_set_are_named(librimix: Path) -> None:
    folder, first = librimix / "test", LIBRIMIX["test"][0]
    (folder / "s2" / f"{first}.wav").rename(folder / "kept.wav")
    with pytest.raises(ConfigError, match=rf"s2/{first}.wav: is missing. Generate the set again"):
        list_mixtures(folder)
    (folder / "mix_clean" / f"{first}.wav").unlink()
    with pytest.raises(ConfigError, match=rf"test: mix_clean/{first}.wav is missing. Generate"):
        list_mixtures(folder)
    with pytest.raises(ConfigError, match=r"not a LibriMix set; it needs mix_clean, s1 and s2"):
        list_mixtures(librimix)


def test_an_empty_set_is_refused(librimix: Path) -> None:
    for path in (librimix / "dev" / "mix_clean").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"dev: mix_clean is empty. Generate the set again"):
        list_mixtures(librimix / "dev")


@pytest.mark.parametrize("name", ["84-121123-0000", "a_b", "84-1-0_174-2-1_61-3-2"])
def test_mixtures_that_do_not_name_two_utterances_are_refused(librimix: Path, name: str) -> None:
    paths = [librimix / "dev" / f / f"{LIBRIMIX['dev'][0]}.wav" for f in ("mix_clean", "s1", "s2")]
    for path in paths:
        path.rename(path.with_stem(name))
    with pytest.raises(ConfigError, match=rf"{name}.wav: is not named UTTERANCE_UTTERANCE"):
        list_mixtures(librimix / "dev")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"id,length\nx,1\n", "csv: column 'mixture_ID' is missing in its first line"),
        (b"", "csv: column 'mixture_ID' is missing in its first line"),
        (b"mixture_ID\n\xff\xfe\n", "csv: cannot be read as text"),
        (b"length,mixture_ID\n1\n", "csv line 2: has fewer columns than the first line"),
    ],
)
def test_unusable_metadata_is_named(librimix: Path, text: bytes, message: str) -> None:
    (librimix / METADATA).write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        list_mixtures(librimix / "test")


def test_enrolments_name_a_clip_for_each_target(librimix: Path) -> None:
    folder = librimix / "test"
    path = folder / "map_mixture2enrollment"
    path.write_text(path.read_text() + "\n")
    one, other = LIBRIMIX["test"][:2]
    assert read_enrolments(path, folder) == {
        (one, "4077-13754-0001"): folder / "s1" / f"{other}.wav",
        (one, "5142-33396-0065"): folder / "s2" / f"{other}.wav",
        (other, "4077-13754-0004"): folder / "s1" / f"{one}.wav",
        (other, "5142-36377-0020"): folder / "s2" / f"{one}.wav",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4077 s1/x", r"line 5: needs mixture, utterance and clip"),
        ("4077 s1/x one more", r"line 5: needs mixture, utterance and clip"),
        ("m u s1/none", r"line 5: .*test/s1/none.wav does not exist. Is it of this set\?"),
        ("m u mix_clean/4077-13754-0001_5142-33396-0065", r"line 5: .*Is it of this set\?"),
        ("m 4077-13754-0001 s1/4077-13754-0001_5142-33396-0065", "line 5: s1/4077.* no other clip"),
        ("m 4077-13754-0004 s2/4077-13754-0001_5142-33396-0065", "line 5: s2/4077.* no other clip"),
    ],
)
def test_a_wrong_enrolment_is_named_by_its_line(librimix: Path, line: str, message: str) -> None:
    path = librimix / "test" / "map_mixture2enrollment"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_enrolments(path, librimix / "test")


def test_unreadable_enrolments_are_named(librimix: Path) -> None:
    path = librimix / "test" / "map"
    with pytest.raises(ConfigError, match=r"map: cannot be read as text \(.*No such file"):
        read_enrolments(path, librimix / "test")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"map: cannot be read as text \(.*utf-8"):
        read_enrolments(path, librimix / "test")
