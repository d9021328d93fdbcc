"""Folders of speech: who speaks in them, the corpus in memory, and what is cut from it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcspex_cli import audio
from mcspex_cli.errors import AudioError, ConfigError
from mcspex_cli.training.data import (
    Corpus,
    Speaker,
    Stretch,
    draw_reference,
    draw_stretch,
    list_librimix,
    list_utterances,
    read_enrolments,
    read_sexes,
)
from mcspex_cli.training.mixtures import MixtureSampler
from mcspex_cli.training.settings import MixtureSettings
from tests.conftest import LIBRIMIX, RATE_HZ, buzz

METADATA = "metadata/mixture_test_mix_clean.csv"
SHORT = MixtureSettings(segment_s=0.5, reference_s=(0.5, 1.0))


def test_a_plain_folder_is_a_speaker_and_a_stem_a_sentence(corpus: Path) -> None:
    clips = list_utterances([corpus])
    assert [(Path(c.speaker).name, c.sentence) for c in clips] == [
        *(("ann", name) for name in "abc"),
        *(("bob", name) for name in "abd"),
        *(("cyn", name) for name in "efg"),
    ]
    assert all(c.path.is_file() for c in clips)


def test_equal_names_in_two_trees_are_two_speakers(corpus: Path) -> None:
    (corpus.parent / "more").mkdir()
    (corpus / "bob").rename(corpus.parent / "more" / "ann")
    clips = list_utterances([corpus, corpus.parent / "more"])
    assert [Path(c.speaker).name for c in clips[-3:]] == ["ann"] * 3
    assert len({c.speaker for c in clips}) == 3


def test_a_folder_that_is_named_twice_has_each_speaker_once(corpus: Path) -> None:
    link = corpus.parent / "link"
    link.symlink_to(corpus)
    speakers = Corpus.read([corpus, corpus / "ann" / "..", link], RATE_HZ).speakers
    assert [Path(speaker.name) for speaker in speakers] == [
        corpus / name for name in ("ann", "bob", "cyn")
    ]
    assert [len(speaker.sentences) for speaker in speakers] == [3, 3, 3]


def test_two_chapters_of_librispeech_are_one_speaker(librispeech: Path) -> None:
    clips = list_utterances([librispeech])
    assert {c.speaker for c in clips} == {"librispeech/84", "librispeech/174"}
    assert [c.sentence for c in clips if c.speaker == "librispeech/84"] == [
        "84-121123-0000",
        "84-121123-0001",
        "84-121550-0000",
    ]
    assert list_utterances([librispeech.parent]) == clips
    read = Corpus.read([librispeech], RATE_HZ)
    assert [(s.name[-3:], len(s.sentences)) for s in read.speakers] == [("174", 2), ("/84", 3)]


def test_a_name_like_librispeechs_in_another_tree_is_no_speaker(librispeech: Path) -> None:
    (librispeech / "84" / "121550").rename(librispeech / "84" / "attic")
    speakers = {c.speaker for c in list_utterances([librispeech])}
    assert str(librispeech / "84" / "attic") in speakers
    assert len(speakers) == 3


def test_librimix_and_librispeech_name_a_speaker_alike(librimix: Path, librispeech: Path) -> None:
    in_mixtures, alone = ({c.speaker for c in list_utterances([f])} for f in (librimix / "dev",
                          librispeech))  # fmt: skip
    assert in_mixtures == alone


def test_a_librimix_sets_clips_are_its_talkers(librimix: Path) -> None:
    clips = list_utterances([librimix / "dev"])
    assert {c.path.parent.name for c in clips} == {"s1", "s2"}
    assert sorted((c.speaker, c.sentence) for c in clips) == [
        ("librispeech/174", "174-50561-0000"),
        ("librispeech/174", "174-50561-0001"),
        ("librispeech/84", "84-121123-0000"),
        ("librispeech/84", "84-121550-0000"),
    ]


def test_metadata_says_which_mixtures_there_are(
    librimix: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = librimix / "test"
    mixtures = list_librimix(folder)
    warning = f"{librimix / METADATA}: mixtures left out, as it does not list them: 1."
    assert caplog.messages == [warning]
    assert [m.id for m in mixtures] == list(LIBRIMIX["test"][:2])
    assert mixtures[0].path == folder / "mix_clean" / f"{mixtures[0].id}.wav"
    assert [c.path for c in mixtures[0].talkers] == [
        folder / role / f"{mixtures[0].id}.wav" for role in ("s1", "s2")
    ]
    assert [c.sentence for c in mixtures[0].talkers] == ["4077-13754-0001", "5142-33396-0065"]
    (librimix / METADATA).rename(folder / "mixture_test_mix_clean.csv")
    assert list_librimix(folder) == mixtures


def test_without_metadata_the_folder_says_it(librimix: Path) -> None:
    (librimix / METADATA).unlink()
    assert [m.id for m in list_librimix(librimix / "test")] == sorted(LIBRIMIX["test"])


def test_missing_folders_and_sounds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"zoe: there is no such folder of speakers"):
        list_utterances([tmp_path / "zoe"])
    with pytest.raises(ConfigError, match=r"has no sound files in it. Name a folder of speakers"):
        list_utterances([tmp_path])


def test_a_set_among_a_speakers_files_is_not_taken_for_speakers(corpus: Path) -> None:
    for part in ("mix_clean", "s1", "s2"):
        (corpus / "ann" / "set" / part).mkdir(parents=True)
        audio.write(corpus / "ann" / "set" / part / "x.wav", buzz(100, 1.0), RATE_HZ)
    message = "holds a LibriMix set. Name it, or the folders of speakers beside it: .*ann/set"
    with pytest.raises(ConfigError, match=message):
        list_utterances([corpus])
    message = "s1: belongs to a LibriMix set. Name it, or the folders .*ann/set"
    with pytest.raises(ConfigError, match=message):
        list_utterances([corpus / "ann" / "set" / "s1"])


def test_missing_files_of_a_librimix_set_are_named(librimix: Path) -> None:
    folder, first = librimix / "test", LIBRIMIX["test"][0]
    (folder / "s2" / f"{first}.wav").rename(folder / "kept.wav")
    with pytest.raises(ConfigError, match=rf"s2/{first}.wav: is missing. Generate the set again"):
        list_librimix(folder)
    (folder / "mix_clean" / f"{first}.wav").unlink()
    with pytest.raises(ConfigError, match=rf"test: mix_clean/{first}.wav is missing. Generate"):
        list_librimix(folder)
    with pytest.raises(ConfigError, match=r"is not a LibriMix set, which has mix_clean, s1 and s2"):
        list_librimix(librimix)


def test_an_empty_set_is_refused(librimix: Path) -> None:
    for path in (librimix / "dev" / "mix_clean").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"dev: mix_clean is empty. Generate the set again"):
        list_librimix(librimix / "dev")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("84-121123-0000", r"has 1 utterances, but the set has the 2 folders s1, s2"),
        ("84-1-0_174-2-1_61-3-2", r"has 3 utterances, but the set has the 2 folders s1, s2"),
        ("a_84-1-0", r"LibriMix names a mixture by its utterances, .* 'a' does not say who speaks"),
        (
            "p225-001_p226-002",
            r"numbers of speaker, chapter and utterance.* 'p225-001' does not say who speaks",
        ),
    ],
)
def test_names_that_do_not_tell_the_talkers_are_explained(
    librimix: Path, name: str, message: str
) -> None:
    paths = [librimix / "dev" / f / f"{LIBRIMIX['dev'][0]}.wav" for f in ("mix_clean", "s1", "s2")]
    for path in paths:
        path.rename(path.with_stem(name))
    with pytest.raises(ConfigError, match=rf"{name}.wav: .*{message}"):
        list_librimix(librimix / "dev")


def test_a_simulated_folder_is_not_taken_for_speakers(librimix: Path) -> None:
    (librimix / "dev" / "mix_clean" / "00000.wav").touch()
    (librimix / "dev" / "references").mkdir()
    message = r"dev: was made by mcspex simulate, .* Name the folders of speakers from which"
    with pytest.raises(ConfigError, match=message):
        list_utterances([librimix / "dev"])


def test_a_set_of_three_talkers_has_three_targets(three_talkers: Path) -> None:
    other, mixture = list_librimix(three_talkers)
    assert [c.path.parent.name for c in mixture.talkers] == ["s1", "s2", "s3"]
    assert [c.speaker[12:] for c in mixture.talkers] == ["84", "174", "61"]
    assert len(list_utterances([three_talkers])) == 6
    read = Corpus.read([three_talkers], RATE_HZ, mixed=True)
    assert [len(talkers) for talkers in read.mixtures] == [3] * 6
    batch = MixtureSampler(read, SHORT).draw(0, 0, range(8))
    parts = batch.target + batch.interferer
    np.testing.assert_allclose(batch.mixture, parts, atol=1e-6)
    (three_talkers / "s3" / f"{other.id}.wav").unlink()
    with pytest.raises(ConfigError, match=rf"s3/{other.id}.wav: is missing"):
        list_librimix(three_talkers)


def test_sexes_are_found_by_a_folders_name(tmp_path: Path) -> None:
    one, other = tmp_path / "a.csv", tmp_path / "b.csv"
    one.write_text("speaker,age,sex\nann,3,F\nbob,4,m\n")
    other.write_text("sex,speaker\nMale,cyn\nX,dan\nfemale,61\n")
    names = ["x/ann", "y/bob", "cyn", "z/dan", "librispeech/61", "eve"]
    assert read_sexes([one, other], names) == ["female", "male", "male", "", "female", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"id,length\nx,1\n", "csv: column 'mixture_ID' is missing in its first line"),
        (b"", "csv: column 'mixture_ID' is missing in its first line"),
        (b"mixture_ID\n\xff\xfe\n", "csv: is not text in UTF-8"),
        (b"length,mixture_ID\n1\n", "csv line 2: has 1 column, not 2"),
    ],
)
def test_unusable_metadata_is_named(librimix: Path, text: bytes, message: str) -> None:
    (librimix / METADATA).write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        list_librimix(librimix / "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4077 s1/x", r"line 5: must have three words: mixture, utterance and clip"),
        (
            "m u s1/none",
            r"line 5: .*test/s1/none.wav does not exist. Is the file for",
        ),
        (
            "m u mix_clean/4077-13754-0001_5142-33396-0065",
            r"line 5: .*Is the file for another",
        ),
        (
            "m 4077-13754-0001 s1/4077-13754-0001_5142-33396-0065",
            "line 5: s1/4077.* is not another",
        ),
        (
            "m 4077-13754-0004 s2/4077-13754-0001_5142-33396-0065",
            "line 5: s2/4077.* is not another",
        ),
        (
            "4077-13754-0001_5142-33396-0065 4077-13754-0001 s2/5142-36377-0021_4077-13754-0002",
            "line 5: 4077-13754-0001_.* 4077-13754-0001 is there twice. Remove one.",
        ),
    ],
)
def test_a_wrong_enrolment_is_named_by_its_line(librimix: Path, line: str, message: str) -> None:
    path = librimix / "test" / "map_mixture2enrollment"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_enrolments(path, librimix / "test")


def test_unreadable_enrolments_are_named(librimix: Path) -> None:
    path = librimix / "test" / "map"
    with pytest.raises(ConfigError, match=r"map: no such file"):
        read_enrolments(path, librimix / "test")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"map: is not text in UTF-8"):
        read_enrolments(path, librimix / "test")
    (librimix / "test/s2/4077-13754-0001.wav").touch()  # whose name has no second talker
    path.write_text("m u s2/4077-13754-0001\n")
    with pytest.raises(ConfigError, match=r"line 1: .*Is the file for another set"):
        read_enrolments(path, librimix / "test")


def laid_out(pieces: list[list[torch.Tensor]]) -> Corpus:
    """A corpus of each speaker's utterances; speaker 0 says "0-0", "0-1" and so on."""
    speakers, at = [], 0
    for who, utterances in enumerate(pieces):
        bounds = np.cumsum([0, *map(len, utterances)]).tolist()
        names = [f"{who}-{number}" for number in range(len(utterances))]
        speakers.append(Speaker(f"s{who}", at, bounds, names))
        at += bounds[-1]
    return Corpus(torch.cat([piece for own in pieces for piece in own]), speakers, RATE_HZ)


@pytest.fixture
def marked() -> Corpus:
    """A corpus whose every sample tells its speaker and utterance: 100 * (1 + speaker) + number."""
    lengths = ((900, 500, 700), (1200, 300), (400, 400, 400, 400))
    return laid_out(
        [
            [torch.full((n,), 100 * (1 + who) + k, dtype=torch.int16) for k, n in enumerate(each)]
            for who, each in enumerate(lengths)
        ]
    )


def marks(corpus: Corpus, stretch: Stretch) -> set[int]:
    """The values in a stretch of a `marked` corpus, at the speed at which it was recorded."""
    samples = corpus.gather([replace(stretch, speed=1.0)], stretch.length)[0] * 32768
    return set(samples.int().tolist())


def sine(hertz: float, length: int) -> torch.Tensor:
    time = torch.arange(length, dtype=torch.float64) / RATE_HZ
    return (0.5 * torch.sin(2 * torch.pi * hertz * time)).float()


def alone(corpus: Path, seconds: float) -> audio.Samples:
    """Leave bob a single clip, of some length."""
    (corpus / "bob" / "b.flac").unlink()
    (corpus / "bob" / "d.flac").unlink()
    audio.write(corpus / "bob" / "a.flac", buzz(100, seconds), RATE_HZ)
    return audio.read(corpus / "bob" / "a.flac", RATE_HZ)


def test_a_corpus_holds_every_utterance_once(corpus: Path) -> None:
    read = Corpus.read([corpus], RATE_HZ)
    assert [Path(s.name).name for s in read.speakers] == ["ann", "bob", "cyn"]
    assert read.speakers[1].sentences == ["a", "b", "d"]
    assert read.samples.dtype == torch.int16
    assert read.seconds == pytest.approx(3 * (1.0 + 1.2 + 1.4))
    files = [audio.read(path, RATE_HZ) for path in sorted(corpus.rglob("*.flac"))]
    np.testing.assert_array_equal(read.samples.numpy() / 32768, np.concatenate(files))
    assert [s.start for s in read.speakers] == [0, 28800, 57600]
    assert read.speakers[2].bounds == [0, 8000, 17600, 28800]
    assert not read.mixtures


def test_another_rate_is_resampled(corpus: Path) -> None:
    read = Corpus.read([corpus], 16000)
    assert read.sample_rate_hz == 16000
    assert read.seconds == pytest.approx(3 * (1.0 + 1.2 + 1.4), abs=0.01)


def test_a_file_of_floats_beyond_full_scale_is_turned_down_and_not_clipped(corpus: Path) -> None:
    quiet = Corpus.read([corpus], RATE_HZ).samples[:8000].float()
    loud = audio.read(corpus / "ann" / "a.flac", RATE_HZ)
    (corpus / "ann" / "a.flac").unlink()
    loud *= np.float32(8 / np.abs(loud).max())
    audio.write(corpus / "ann" / "a.wav", loud, RATE_HZ, "FLOAT")
    samples = Corpus.read([corpus], RATE_HZ).samples[:8000].float()
    assert samples.abs().max() >= 32767
    assert (samples - quiet * (quiet @ samples / (quiet @ quiet))).abs().max() < 4


def test_all_files_that_cannot_be_read_are_named(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (corpus / "bob" / "cut.flac").write_bytes(b"fLaC")
    with pytest.raises(AudioError, match=r"bob/cut.flac: "):
        Corpus.read([corpus], RATE_HZ)
    for number in range(21):
        (corpus / "cyn" / f"zero{number:02}.wav").touch()
    message = "^22 files cannot be used; the first 20 are named above. Repair or remove them.$"
    with pytest.raises(AudioError, match=message):
        Corpus.read([corpus], RATE_HZ)
    assert len(caplog.messages) == 20
    assert re.search("bob/cut.flac: ", caplog.messages[0])
    assert re.search("cyn/zero18.wav: the file is empty", caplog.messages[-1])


def test_a_speakers_folder_within_anothers_is_warned_of(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list_utterances([corpus])
    assert not caplog.messages
    shutil.move(corpus / "cyn", corpus / "bob" / "2026" / "cyn")
    list_utterances([corpus])
    assert re.search("bob/2026/cyn: counts as a speaker of its own, alth", caplog.messages[0])


def test_too_few_speakers_are_refused(corpus: Path) -> None:
    message = r"two speakers or more are needed, with two files each or one of 2 s"
    with pytest.raises(ConfigError, match=message):
        Corpus.read([corpus / "ann"], RATE_HZ)
    for name in ("bob/b", "bob/d", "cyn/e", "cyn/f"):  # what is left of them is short
        (corpus / f"{name}.flac").unlink()
    with pytest.raises(ConfigError, match=message):
        Corpus.read([corpus], RATE_HZ)


def test_a_single_clip_is_halved_and_one_half_is_the_others_reference(corpus: Path) -> None:
    whole = alone(corpus, 2.5)
    read = Corpus.read([corpus], RATE_HZ)
    bob = read.speakers[1]
    assert (bob.bounds, bob.sentences) == ([0, 10000, 20000], ["a/1", "a/2"])
    rng = np.random.default_rng(0)
    firsts = set()
    for _ in range(20):
        target = draw_stretch(bob, 16000, 1.0, rng)
        reference = draw_reference(target, 8000, rng)
        assert target.sentences() | reference.sentences() == {"a/1", "a/2"}
        assert not target.sentences() & reference.sentences()
        firsts.add(target.first)
        samples = read.gather([target], target.length)[0].numpy()
        half = whole[10000:] if target.first else whole[:10000]
        np.testing.assert_array_equal(samples, half[-target.length :])
    assert firsts == {0, 1}


@pytest.mark.parametrize(("seconds", "names"), [(2.0, ["ann", "bob", "cyn"]),
                                                (1.999, ["ann", "cyn"])])  # fmt: skip
def test_a_single_clip_too_short_to_halve_is_left_out(
    corpus: Path, seconds: float, names: list[str]
) -> None:
    alone(corpus, seconds)
    read = Corpus.read([corpus], RATE_HZ)
    assert [Path(s.name).name for s in read.speakers] == names
    ends = [s.start + s.bounds[-1] for s in read.speakers]
    assert [s.start for s in read.speakers] == [0, *ends[:-1]]
    assert ends[-1] == len(read.samples)


def test_what_a_speaker_says_in_two_mixtures_counts_once(librimix: Path) -> None:
    folder, (one, other) = librimix / "dev", LIBRIMIX["dev"]
    for role in ("mix_clean", "s1", "s2"):  # 174 and 84 say the same in both
        path = folder / role / f"{other}.wav"
        path.rename(path.with_stem("174-50561-0000_84-121123-0000"))
        audio.write(folder / role / f"{one}.wav", buzz(150, 2.2), RATE_HZ)
        audio.write(path.with_stem("174-50561-0000_84-121123-0000"), buzz(150, 2.2), RATE_HZ)
    read = Corpus.read([folder], RATE_HZ)
    assert [len(set(s.sentences)) for s in read.speakers] == [2, 2]  # halved
    with pytest.raises(ConfigError, match=r"dev: no talker has a second utterance"):
        Corpus.read([folder], RATE_HZ, mixed=True)


def test_given_mixtures_are_pairs_in_both_roles(librimix: Path) -> None:
    read = Corpus.read([librimix / "train-100"], RATE_HZ, mixed=True)
    pairs = [tuple(read.speakers[who].sentences[k] for who, k in m) for m in read.mixtures]
    one, other, third = (tuple(name.split("_")) for name in LIBRIMIX["train-100"])
    both = {one, one[::-1], other, other[::-1]}
    assert set(pairs) == {*both, third[::-1]}  # 27 says nothing else, so it is no target
    assert len(pairs) == 5
    assert not Corpus.read([librimix / "train-100"], RATE_HZ).mixtures


def test_several_sets_are_given_together(librimix: Path) -> None:
    folders = [librimix / "train-100", librimix / "dev"]
    read = Corpus.read(folders, RATE_HZ, mixed=True)
    assert len(read.mixtures) == 5 + 4
    assert len(read.speakers) == 5


def test_a_folder_without_mixtures_gives_none(librimix: Path, corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"speech: is not a LibriMix set.* leave out mixing = "):
        Corpus.read([librimix / "dev", corpus], RATE_HZ, mixed=True)
    with pytest.raises(ConfigError, match=r"zoe: is not a LibriMix set"):
        Corpus.read([librimix / "zoe"], RATE_HZ, mixed=True)


def place(part: audio.Samples, whole: audio.Samples) -> tuple[float, int]:
    """How like a stretch of `whole` a part is at best, -1 to 1, and where that is."""
    size = len(whole) + len(part)
    dots = np.fft.irfft(np.fft.rfft(whole, size) * np.fft.rfft(part, size).conj(), size)
    sums = np.cumsum(np.square(np.concatenate(([0], whole)), dtype=np.float64))
    energy = (sums[len(part) :] - sums[: -len(part)]) * np.square(part).sum()
    likeness = dots[: len(energy)] / np.sqrt(energy)
    at = int(likeness.argmax())
    return float(likeness[at]), at


def test_draws_of_given_mixtures_are_stretches_of_their_files(librimix: Path) -> None:
    folder = librimix / "train-100"
    files = {
        name: [audio.read(folder / f / f"{name}.wav", RATE_HZ) for f in ("mix_clean", "s1", "s2")]
        for name in LIBRIMIX["train-100"]
    }
    read = Corpus.read([folder], RATE_HZ, mixed=True)
    batch = MixtureSampler(read, SHORT).draw(0, 0, range(32))
    roles = set()
    for mixture, target, interferer in zip(
        batch.mixture.numpy(), batch.target.numpy(), batch.interferer.numpy(), strict=True
    ):
        places = {name: place(mixture, signals[0]) for name, signals in files.items()}
        name = max(places, key=lambda n: places[n][0])
        at = places[name][1]
        mix, *voices = (signal[at : at + len(mixture)] for signal in files[name])
        gain = np.dot(mixture, mix) / np.dot(mix, mix)
        role = int(np.argmax([np.dot(target, voice) for voice in voices]))
        atol = 2 * gain / 32768
        np.testing.assert_allclose(mixture, gain * mix, atol=atol)
        np.testing.assert_allclose(target, gain * voices[role], atol=atol)
        np.testing.assert_allclose(interferer, gain * voices[1 - role], atol=atol)
        roles.add((name, role))
    one, other, third = LIBRIMIX["train-100"]
    assert roles == {(one, 0), (one, 1), (other, 0), (other, 1), (third, 1)}
    assert not batch.noise.any()


def test_given_references_are_of_the_target_in_another_utterance(librimix: Path) -> None:
    read = Corpus.read([librimix / "train-100"], RATE_HZ, mixed=True)
    sampler = MixtureSampler(read, replace(SHORT, mixtures_per_reference=2))
    for step in range(20):
        plans = sampler.plan(0, step, range(8))
        for lead, other in zip(plans[::2], plans[1::2], strict=True):
            assert other.reference is lead.reference
            assert other.speaker == lead.speaker
        for plan in plans:
            assert plan.reference.speaker is plan.target.speaker is read.speakers[plan.speaker]
            assert not plan.reference.sentences() & plan.target.sentences()
            assert plan.snr_db == ()


def test_given_mixtures_can_have_babble_around_them(librimix: Path) -> None:
    read = Corpus.read([librimix / "train-100"], RATE_HZ, mixed=True)  # with 27's one utterance
    settings = replace(SHORT, noise=1.0, noise_kinds=("babble",), noise_db=(5.0, 5.0))
    batch = MixtureSampler(read, settings).draw(0, 0, range(8))
    speech, noise = (s.square().mean(-1) for s in (batch.target + batch.interferer, batch.noise))
    np.testing.assert_allclose(10 * torch.log10(speech / noise), 5.0, atol=1e-3)


def test_a_talker_cut_short_is_followed_by_silence(librimix: Path) -> None:
    name = LIBRIMIX["dev"][0]
    path = librimix / "dev" / "s2" / f"{name}.wav"
    audio.write(path, audio.read(path, RATE_HZ)[:800], RATE_HZ)
    read = Corpus.read([librimix / "dev"], RATE_HZ, mixed=True)
    batch = MixtureSampler(read, SHORT).draw(0, 0, range(16))
    assert batch.mixture.isfinite().all()
    assert not batch.interferer[:, 800:].any(-1).all()


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_the_reference_is_the_target_in_other_utterances(marked: Corpus, speed: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        who = int(rng.integers(3))
        target = draw_stretch(marked.speakers[who], 600, speed, rng)
        reference = draw_reference(target, 8000, rng)
        assert 0 < target.length <= round(600 * speed)
        assert reference.speed == target.speed == speed
        target_marks, reference_marks = marks(marked, target), marks(marked, reference)
        own = {100 * (1 + who) + k for k in range(4)}
        assert target_marks <= own and reference_marks <= own
        assert not target_marks & reference_marks
        assert {f"{who}-{mark % 100}" for mark in target_marks} == target.sentences()
        assert {f"{who}-{mark % 100}" for mark in reference_marks} == reference.sentences()


def test_every_utterance_is_drawn_from_all_over(marked: Corpus) -> None:
    rng = np.random.default_rng(0)
    stretches = [draw_stretch(marked.speakers[2], 300, 1.0, rng) for _ in range(400)]
    assert {stretch.first for stretch in stretches} == {0, 1, 2, 3}
    assert (
        min(stretch.offset for stretch in stretches) < 20
        and max(stretch.offset for stretch in stretches) > 1580
    )
    assert all(stretch.length == 300 for stretch in stretches)
    assert {len(stretch.sentences()) for stretch in stretches} == {1, 2}


def test_a_segment_longer_than_what_is_said_ends_in_silence(marked: Corpus) -> None:
    stretch = draw_stretch(marked.speakers[1], 5000, 1.0, np.random.default_rng(0))
    samples = marked.gather([stretch], 5000)[0] * 32768
    assert len(stretch.sentences()) == 1  # the other is left for the reference
    assert set(samples[: stretch.length].tolist()) == {200.0 + stretch.first}
    assert not samples[stretch.length :].any()


def test_the_only_utterance_of_a_speaker_is_drawn_from() -> None:
    corpus = laid_out([[torch.arange(1, 1001, dtype=torch.int16)]])
    rng = np.random.default_rng(0)
    for length in (300, 5000):
        stretch = draw_stretch(corpus.speakers[0], length, 1.0, rng)
        assert stretch.length == min(length, 1000)
        samples = (corpus.gather([stretch], stretch.length)[0] * 32768).int()
        assert samples.tolist() == list(
            range(stretch.offset + 1, stretch.offset + 1 + stretch.length)
        )


def test_a_reference_starts_over_where_it_is_too_short(marked: Corpus) -> None:
    rng = np.random.default_rng(1)
    reference = draw_reference(draw_stretch(marked.speakers[1], 600, 1.0, rng), 8000, rng)
    once = marked.gather([reference], reference.length)[0]
    longer = marked.gather([reference], 3 * reference.length + 7)[0]
    assert torch.equal(longer, torch.cat([once, once, once, once[:7]]))
    assert (longer != 0).all()


def test_references_begin_anywhere_in_the_first_half(marked: Corpus) -> None:
    rng = np.random.default_rng(0)
    target = Stretch(marked.speakers[0], 0, 600, 0, 0)  # leaves 500 and 700 samples
    begins = [draw_reference(target, 8000, rng).offset - 900 for _ in range(300)]
    assert min(begins) < 20 and 580 < max(begins) <= 600


def test_the_target_said_once_more_is_no_reference() -> None:
    speaker = Speaker("zoe", 0, [0, 100, 200, 300, 400], list("abac"))
    rng = np.random.default_rng(0)
    drawn = [draw_reference(Stretch(speaker, 0, 100, 0, 0), 8000, rng) for _ in range(50)]
    assert {tuple(stretch.sentences()) for stretch in drawn} == {("b",), ("c",)}


def test_a_speaker_who_says_nothing_else_has_no_reference() -> None:
    speaker = Speaker("zoe", 0, [0, 100, 200], ["same", "same"])
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"zoe: has no second utterance to take a reference from"):
        draw_reference(draw_stretch(speaker, 50, 1.0, rng), 80, rng)


def test_a_faster_voice_is_higher() -> None:
    tone = (sine(400, 16000) * 32768).short()
    corpus = laid_out([[tone, tone]])
    stretch = Stretch(corpus.speakers[0], 0, 16000, 0, 0)
    for speed in (0.9, 1.0, 1.1):
        samples = corpus.gather([replace(stretch, speed=speed)], 8000)
        inside = slice(200, 7800)
        np.testing.assert_allclose(samples[0, inside], sine(400 * speed, 8000)[inside], atol=1e-3)


def test_voices_of_different_speeds_are_gathered_together(corpus: Path) -> None:
    read = Corpus.read([corpus], RATE_HZ)
    rng = np.random.default_rng(0)
    speeds = (1.1, 0.9, 1.0, 1.1, 1.0)
    stretches = [draw_stretch(read.speakers[k % 3], 4000, s, rng) for k, s in enumerate(speeds)]
    together = read.gather(stretches, 4000)
    for row, stretch in zip(together, stretches, strict=True):
        np.testing.assert_allclose(row, read.gather([stretch], 4000)[0], atol=1e-6)


def test_the_spectrum_is_that_of_the_speech() -> None:
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    flat = laid_out([[(3000 * noise).short()]]).spectrum
    assert flat.shape == (513,)
    assert flat.mean() == pytest.approx(1, abs=1e-4)
    assert flat[1:-1].min() > 0.7 and flat[1:-1].max() < 1.4
    tone = laid_out([[(sine(1000, 50_000) * 32768).short()]]).spectrum
    assert tone.argmax() == 128  # of 1024 at 8 kHz
    assert tone.mean() == pytest.approx(1, abs=1e-4)
    assert tone[:120].sum() + tone[137:].sum() < 1e-3


def test_the_spectrum_of_very_little_or_silent_speech_is_finite() -> None:
    assert laid_out([[torch.ones(100, dtype=torch.int16)]]).spectrum.isfinite().all()
    assert laid_out([[torch.zeros(5000, dtype=torch.int16)]]).spectrum.isfinite().all()


def test_silence_and_clips_of_no_length_are_refused(corpus: Path) -> None:
    for path in corpus.rglob("*.flac"):
        audio.write(path, np.zeros(4000, np.float32), RATE_HZ)
    with pytest.raises(ConfigError, match="all of it is silent"):
        Corpus.read([corpus], RATE_HZ)
    audio.write(corpus / "ann" / "a.flac", np.ones(1, np.float32), 48000)
    with pytest.raises(AudioError, match=r"a.flac: is too short"):
        Corpus.read([corpus], RATE_HZ)


def test_long_silence_in_a_clip_is_shortened(corpus: Path) -> None:
    """A track on which somebody else speaks for minutes; what is lower than any sound counts."""
    whole = Corpus.read([corpus], RATE_HZ)
    sound = audio.read(corpus / "ann" / "a.flac", RATE_HZ)
    quiet = 1e-5 * np.random.default_rng(0).standard_normal(60 * RATE_HZ).astype(np.float32)
    for pauses in ((quiet, quiet), (quiet[:0], 0 * quiet), (0 * quiet, quiet[:4000])):
        audio.write(
            corpus / "ann" / "a.flac", np.concatenate([pauses[0], sound, pauses[1]]), RATE_HZ
        )
        padded = Corpus.read([corpus], RATE_HZ)
        assert 0.3 < padded.seconds - whole.seconds < 2.2
        ann = padded.samples[: padded.speakers[0].bounds[1]].numpy()
        assert np.abs(ann).max() == np.abs(sound * 32768).max()


def test_silent_clips_and_short_only_ones_are_left_out_and_told_of(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ann/b", "bob/b", "cyn/e", "cyn/f", "cyn/g"):
        dither = 1e-5 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
        audio.write(corpus / f"{name}.flac", dither, RATE_HZ)
    speakers = Corpus.read([corpus], RATE_HZ).speakers
    assert [list(speaker.sentences) for speaker in speakers] == [["a", "c"], ["a", "d"]]
    told = f"{corpus / 'ann' / 'b.flac'}: is left out, as it is silent. So are 4 other files."
    assert told in caplog.messages
    audio.write(corpus / "ann" / "a.wav", buzz(100, 1), RATE_HZ)
    Corpus.read([corpus, corpus], RATE_HZ)
    told = f"{corpus / 'ann' / 'a.flac'}: is left out, as a file of the same name takes its place."
    assert told in caplog.messages
    (corpus / "dan").mkdir()
    audio.write(corpus / "dan" / "h.flac", buzz(100, 1)[:RATE_HZ], RATE_HZ)
    Corpus.read([corpus], RATE_HZ)
    told = f"{corpus / 'dan' / 'h.flac'}: is left out, as it is its speaker's only file and "
    assert f"{told}shorter than 2 s." in caplog.messages
