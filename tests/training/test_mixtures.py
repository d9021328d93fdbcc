"""Mixtures drawn on the fly: what is in them, alone or all at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcspex_cli import audio
from mcspex_cli.errors import ConfigError, EngineError
from mcspex_cli.training.data import Corpus, Speaker
from mcspex_cli.training.mixtures import Batch, MixtureSampler, Surroundings, draw_batches
from mcspex_cli.training.settings import MixtureSettings
from tests.conftest import RATE_HZ

PLAIN = MixtureSettings(segment_s=0.8, reference_s=(0.5, 1.0))
EVERYTHING = replace(
    PLAIN,
    speed=(0.9, 1.1),
    third_talker=0.5,
    partial_overlap=0.5,
    absent=0.3,
    noise=0.8,
    room=0.5,
    narrow_band=0.5,
    reference_noise=0.5,
    reference_room=0.5,
    reference_narrow_band=0.5,
)


@pytest.fixture
def talkers(corpus: Path) -> Corpus:
    return Corpus.read([corpus], RATE_HZ)


def draw(corpus: Corpus, settings: MixtureSettings, rows: int = 24) -> Batch:
    return MixtureSampler(corpus, settings).draw(7, 3, range(rows))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in vars(batch).items() if tensor is not None}


def power(signals: torch.Tensor) -> torch.Tensor:
    return signals.square().mean(-1)


def test_a_mixture_is_the_sum_of_its_parts(talkers: Corpus) -> None:
    batch = draw(talkers, PLAIN)
    assert batch.mixture.shape == (24, 6400)
    assert batch.reference.shape[0] == 24
    assert 4000 <= batch.reference.shape[1] <= 8000
    torch.testing.assert_close(batch.mixture, batch.target + batch.interferer + batch.noise)
    assert batch.present.all()
    assert not batch.noise.any()


def test_the_same_seed_draws_the_same(talkers: Corpus) -> None:
    one, same = (draw(talkers, EVERYTHING) for _ in range(2))
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, getattr(same, name)), name
    sampler = MixtureSampler(talkers, EVERYTHING)
    assert not torch.equal(one.mixture, sampler.draw(8, 3, range(24)).mixture)
    assert not torch.equal(one.mixture, sampler.draw(7, 4, range(24)).mixture)


def test_mixtures_share_a_reference_in_groups(talkers: Corpus) -> None:
    sampler = MixtureSampler(talkers, replace(EVERYTHING, mixtures_per_reference=3))
    batch = sampler.draw(7, 3, range(24))
    assert batch.mixture.shape == (24, 6400)
    assert (len(batch.reference), len(batch.speaker), len(batch.present)) == (8, 8, 24)
    for step in range(20):
        plans = sampler.plan(7, step, range(24))
        for row, plan in enumerate(plans):
            lead = plans[row - row % 3]
            assert plan.reference is lead.reference
            assert plan.speaker == lead.speaker
            assert plan.target.speed == plan.reference.speed
            assert plan.reference.length <= round(plan.reference_length * plan.reference.speed)
            assert not plan.target.sentences() & plan.reference.sentences()
            assert plan is lead or plan.target != lead.target


def test_few_lengths_of_references_are_drawn(talkers: Corpus) -> None:
    sampler = MixtureSampler(talkers, replace(PLAIN, reference_s=(0.5, 0.9), reference_lengths=3))
    lengths = [{p.reference_length for p in sampler.plan(0, k, range(3))} for k in range(40)]
    assert set.union(*lengths) == {4000, 5600, 7200}
    assert {len(of_a_batch) for of_a_batch in lengths} == {1}


def test_references_of_their_own_lengths_are_those_of_equal_ones(talkers: Corpus) -> None:
    own = replace(EVERYTHING, own_reference_lengths=True, mixtures_per_reference=2)
    sampler = MixtureSampler(talkers, own)
    plans, whole = sampler.plan(7, 3, range(24)), sampler.draw(7, 3, range(24))
    assert whole.reference_lengths is not None
    assert len(set(whole.reference_lengths.tolist())) > 2
    assert whole.reference.shape == (12, max(whole.reference_lengths))
    for row, length in enumerate(whole.reference_lengths):
        alone = sampler.compose(plans[2 * row : 2 * row + 2])
        assert alone.reference_lengths is None
        assert alone.reference.shape == (1, length)
        torch.testing.assert_close(
            whole.reference[row, :length], alone.reference[0], rtol=0, atol=1e-5
        )
        assert not whole.reference[row, length:].any()


def test_snr_and_level_are_in_their_ranges(talkers: Corpus) -> None:
    batch = draw(talkers, replace(PLAIN, snr_db=(-2.0, 2.0), level_db=(-30.0, -20.0)), 64)
    level = 10 * torch.log10(power(batch.mixture))
    assert -30.1 < level.min() < -28 and -22 < level.max() < -19.9
    snr = 10 * torch.log10(power(batch.target) / power(batch.interferer))
    assert -2.01 < snr.min() < -1.5 and 1.5 < snr.max() < 2.01


def test_the_same_sentence_is_never_mixed(talkers: Corpus) -> None:
    sampler = MixtureSampler(talkers, replace(PLAIN, third_talker=0.5))
    for seed in range(300):
        plan = sampler.plan_mixture(np.random.default_rng(seed), 4000)
        voices = [plan.target, *plan.interferers]
        sentences = [voice.sentences() for voice in voices]
        assert len(set.union(*sentences)) == sum(map(len, sentences))
        assert len({voice.speaker.name for voice in voices}) == len(voices)
        assert plan.reference.speaker is plan.target.speaker
        assert not plan.reference.sentences() & plan.target.sentences()


def test_speakers_who_all_say_the_same_are_refused(corpus: Path) -> None:
    for talker in ("bob", "cyn"):
        for path, name in zip(sorted((corpus / talker).iterdir()), "abc", strict=True):
            path.rename(corpus / talker / f"_{name}.flac")
    for path in (corpus / "ann").iterdir():
        path.rename(corpus / "ann" / f"_{path.name}")
    sampler = MixtureSampler(Corpus.read([corpus], RATE_HZ), replace(PLAIN, segment_s=3.0))
    with pytest.raises(ConfigError, match=r"the same name.*never mixed.*Rename the files"):
        sampler.draw(0, 0, range(20))


def test_a_third_talker_joins(talkers: Corpus) -> None:
    sampler = MixtureSampler(talkers, replace(PLAIN, third_talker=0.5))
    counts = [
        len(sampler.plan_mixture(np.random.default_rng(k), 4000).interferers) for k in range(200)
    ]
    assert set(counts) == {1, 2}
    assert 60 < counts.count(2) < 140
    batch = draw(talkers, replace(PLAIN, third_talker=1.0, snr_db=(0.0, 0.0)), 64)
    # Two others as loud as the target each: 3 dB together, if they are unlike.
    ratio = 10 * torch.log10(power(batch.interferer) / power(batch.target))
    assert 2 < ratio.median() < 4


def test_a_partial_overlap_leaves_somebody_alone(talkers: Corpus) -> None:
    settings = replace(PLAIN, partial_overlap=1.0, overlap=(0.5, 0.5), snr_db=(3.0, 3.0))
    batch = draw(talkers, settings, 64)
    halves = slice(0, 3000), slice(3400, 6400)
    quiet = torch.stack([power(s[:, h]) < 1e-9 for s in vars(batch).values() for h in halves
                         if s is batch.target or s is batch.interferer])  # fmt: skip
    assert (quiet.sum(0) == 1).all()
    assert (quiet.sum(1) > 0).all()  # either of them, early or late
    # The SNR is that of the time in which they speak.
    target_early, late = quiet[0], quiet[1]
    whole = ~(target_early | late)
    ratio = power(batch.target) / power(batch.interferer)
    assert 10 * torch.log10(ratio[whole]).median() == pytest.approx(6, abs=1)


def test_an_absent_target_is_silence(talkers: Corpus) -> None:
    batch = draw(talkers, replace(PLAIN, absent=0.5), 64)
    assert 16 < batch.present.sum() < 48
    assert not batch.target[~batch.present].any()
    assert (power(batch.target[batch.present]) > 1e-9).all()
    assert (power(batch.interferer) > 1e-9).all()


@pytest.mark.parametrize("kind", ["white", "pink", "speech", "babble", "hum"])
def test_noise_is_as_far_below_the_speech_as_told(talkers: Corpus, kind: str) -> None:
    batch = draw(talkers, replace(PLAIN, noise=1.0, noise_db=(5.0, 5.0), noise_kinds=(kind,)), 4)
    below = 10 * torch.log10(power(batch.target + batch.interferer) / power(batch.noise))
    torch.testing.assert_close(below, torch.full((4,), 5.0), rtol=0, atol=1e-3)


def test_a_room_leaves_late_echoes_out_of_the_target(talkers: Corpus) -> None:
    dry, wet = (draw(talkers, replace(PLAIN, room=room, t60_s=(0.5, 0.5))) for room in (0.0, 1.0))
    echoes = wet.mixture - wet.target - wet.interferer
    assert (power(echoes) > 1e-3 * power(wet.target)).all()
    assert not torch.equal(dry.target, wet.target)


def test_a_narrow_band_holds_for_mixture_and_target(talkers: Corpus) -> None:
    settings = replace(PLAIN, narrow_band=1.0, noise=1.0, band_hz=(1000.0, 1000.0))
    batch = draw(talkers, settings, 4)
    for signals in (batch.mixture, batch.target, batch.interferer, batch.noise):
        spectrum = torch.fft.rfft(signals).abs().square()
        assert spectrum[:, 900:].sum() < 1e-6 * spectrum.sum()


def test_mixtures_and_references_are_inverted_each_by_itself(talkers: Corpus) -> None:
    sampler = MixtureSampler(talkers, replace(PLAIN, inverted=0.5))
    plans = sampler.plan(0, 0, range(32))
    kinds = {(plan.around.inverted, plan.around_reference.inverted) for plan in plans}
    assert len(kinds) == 4
    upright = [
        replace(
            plan,
            around=replace(plan.around, inverted=False),
            around_reference=replace(plan.around_reference, inverted=False),
        )
        for plan in plans
    ]
    drawn, expected = sampler.compose(plans), sampler.compose(upright)
    for row, plan in enumerate(plans):
        sign = -1 if plan.around.inverted else 1
        for name in ("mixture", "target", "interferer"):
            assert torch.equal(getattr(drawn, name)[row], sign * getattr(expected, name)[row])
        sign = -1 if plan.around_reference.inverted else 1
        assert torch.equal(drawn.reference[row], sign * expected.reference[row])


def test_references_have_surroundings_of_their_own(talkers: Corpus) -> None:
    plain = draw(talkers, PLAIN)
    for name in ("reference_noise", "reference_room", "reference_narrow_band"):
        settings = MixtureSettings(**{**asdict(PLAIN), name: 1.0})
        changed = draw(talkers, settings)
        assert not torch.allclose(plain.reference, changed.reference, atol=1e-4), name
        assert changed.reference.isfinite().all()
        assert not changed.noise.any()


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """A tone of 900 Hz that is shorter than a segment, and another of 2 kHz that is longer."""
    folder = tmp_path / "noises"
    for name, hertz, seconds in (("hall/low", 900, 0.3), ("street/high", 2000, 2.0)):
        (folder / name).parent.mkdir(parents=True)
        time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * hertz * time)
        audio.write(folder / f"{name}.flac", tone.astype(np.float32), RATE_HZ)
    return folder


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """One room with four responses, and one with one: an echo after 10 ms and after 100 ms."""
    folder = tmp_path / "rooms"
    for name, echo in [*((f"hall/{k}", 0.3 + 0.1 * k) for k in range(4)), ("car/0", 0.2)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        response = np.zeros(1000, np.float32)
        response[[37, 37 + 80, 37 + 800]] = -0.9, -0.9 * echo, -0.9 * echo
        audio.write(folder / f"{name}.flac", response, RATE_HZ)
    return folder


def test_noises_are_drawn_from_a_folder(talkers: Corpus, noises: Path) -> None:
    settings = replace(
        PLAIN, noise=1.0, noise_db=(5.0, 5.0), noise_folder=noises, noise_files=1.0,
        reference_noise=1.0,
    )  # fmt: skip
    sampler = MixtureSampler(talkers, settings)
    plans = sampler.plan(0, 0, range(32))
    batch = sampler.compose(plans)
    below = 10 * torch.log10(power(batch.target + batch.interferer) / power(batch.noise))
    torch.testing.assert_close(below, torch.full((32,), 5.0), rtol=0, atol=1e-3)
    spectra = torch.fft.rfft(batch.noise).abs().argmax(-1) / 0.8
    files = [p.around.noise_stretch.file for p in plans if p.around.noise_stretch]
    assert set(files) == {0, 1}
    for hertz, file in zip(spectra, files, strict=True):
        assert abs(float(hertz) - (900, 2000)[file]) < 10
    assert len({p.around.noise_stretch for p in plans}) > 16
    assert all(p.around_reference.noise == "file" for p in plans)


def test_files_are_taken_as_often_as_asked(talkers: Corpus, noises: Path, rooms: Path) -> None:
    settings = replace(
        PLAIN, noise=0.5, noise_folder=noises, noise_files=0.4, room=0.5, room_folder=rooms,
        room_files=0.3,
    )  # fmt: skip
    plans = [MixtureSampler(talkers, settings).plan(0, k, range(100)) for k in range(4)]
    arounds = [plan.around for plans_ in plans for plan in plans_]
    noisy = [a.noise == "file" for a in arounds if a.noise]
    echoing = [bool(a.responses) for a in arounds if a.room or a.responses]
    assert 150 < len(noisy) < 250 and 150 < len(echoing) < 250
    assert np.mean(noisy) == pytest.approx(0.4, abs=0.1)
    assert np.mean(echoing) == pytest.approx(0.3, abs=0.1)
    assert not any(a.room and a.responses for a in arounds)
    computed = replace(settings, noise_folder=None, room_folder=None)
    for plan in MixtureSampler(talkers, computed).plan(0, 0, range(100)):
        assert plan.around.noise != "file" and not plan.around.responses


def test_rooms_are_drawn_from_a_folder(talkers: Corpus, rooms: Path) -> None:
    settings = replace(PLAIN, room=1.0, room_folder=rooms, room_files=1.0, snr_db=(0.0, 0.0))
    sampler = MixtureSampler(talkers, settings)
    plans = sampler.plan(0, 0, range(48))
    batch = sampler.compose(plans)
    dry = sampler.compose([replace(p, around=Surroundings()) for p in plans])
    files = sampler.rooms
    assert files
    for row, plan in enumerate(plans):
        names = [files.names[k] for k in plan.around.responses]
        assert len({name.split("/")[0] for name in names}) == 1
        assert len(set(names)) == (3 if names[0].startswith("hall") else 1)
        echo = 0.2 if names[0] == "car/0.flac" else 0.3 + 0.1 * int(names[0][5])
        # The target is the direct sound and the echo after 10 ms; the later one is not in it.
        expected = dry.target[row].clone()
        expected[80:] += echo * dry.target[row, :-80]
        gain = (expected * batch.target[row]).sum() / expected.square().sum()
        torch.testing.assert_close(batch.target[row], gain * expected, rtol=0, atol=2e-4)
        late = (batch.mixture - batch.target - batch.interferer)[row]
        torch.testing.assert_close(
            late[800:], gain * echo * dry.target[row, :-800], rtol=0, atol=2e-4
        )


@pytest.mark.parametrize("mixtures_per_reference", [1, 3])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_batch_is_the_same_whole_or_shared_out(
    talkers: Corpus, noises: Path, rooms: Path, mixtures_per_reference: int, recorded: bool
) -> None:
    settings = replace(EVERYTHING, mixtures_per_reference=mixtures_per_reference)
    if recorded:
        settings = replace(settings, noise_folder=noises, room_folder=rooms, room_files=0.5)
    sampler = MixtureSampler(talkers, settings)
    whole, again = (sampler.draw(7, 3, range(24)) for _ in range(2))
    parts = [sampler.draw(7, 3, range(k, k + 6)) for k in range(0, 24, 6)]
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, getattr(again, name)), name
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, tensor, rtol=0, atol=1e-5, msg=name)


def test_folders_without_usable_files_are_refused(talkers: Corpus, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    audio.write(tmp_path / "empty" / ".hidden.wav", np.ones(9, np.float32), RATE_HZ)
    for key in ("noise_folder", "room_folder"):
        for name, problem in (("empty", "no sound files in it"), ("none", "no such folder")):
            settings = MixtureSettings(**{**asdict(PLAIN), key: tmp_path / name})
            with pytest.raises(ConfigError, match=rf"{name}: .*{problem}.*{key}"):
                MixtureSampler(talkers, settings)
    audio.write(tmp_path / "empty" / "zero.wav", np.zeros(900, np.float32), RATE_HZ)
    with pytest.raises(ConfigError, match=r"zero.wav: is silent. Remove it"):
        MixtureSampler(talkers, replace(PLAIN, noise_folder=tmp_path / "empty"))


@pytest.fixture
def many(tmp_path: Path) -> Corpus:
    """Eight speakers, of whom a table calls four male, three female, and one nothing."""
    path = tmp_path / "speakers.csv"
    rows = [f"s{k},{'M' if k < 4 else 'female'}" for k in range(7)]
    path.write_text("\n".join(["speaker,sex", *rows, "s7,?", "zoe,F"]) + "\n")
    speakers = [Speaker(f"x/s{k}", 16000 * k, [0, 8000, 16000], [f"{k}a", f"{k}b"])
                for k in range(8)]  # fmt: skip
    samples = torch.randn(8 * 16000, generator=torch.Generator().manual_seed(0))
    return Corpus((3000 * samples).short(), speakers, RATE_HZ)


def sexes(corpus: Corpus, settings: MixtureSettings) -> list[str]:
    """For 400 mixtures, the sexes of the talkers: "MM", "FM", "?M" and so on."""
    sampler = MixtureSampler(corpus, settings)
    letters = dict(zip([s.name for s in corpus.speakers], "MMMMFFF?", strict=True))
    plans = (sampler.plan_mixture(np.random.default_rng(k), 4000) for k in range(400))
    return [letters[p.target.speaker.name] + letters[p.interferers[0].speaker.name] for p in plans]


def test_pairs_of_the_same_sex_are_drawn_more_often(many: Corpus, tmp_path: Path) -> None:
    table = (tmp_path / "speakers.csv",)
    always = sexes(many, replace(PLAIN, same_sex=1.0, speakers_csv=table))
    assert {pair for pair in always if pair[0] != "?"} == {"MM", "FF"}
    assert {"?M", "?F"} <= set(always)
    often, by_chance = (
        np.mean([pair in ("MM", "FF") for pair in sexes(many, settings)])
        for settings in (replace(PLAIN, same_sex=0.5, speakers_csv=table), PLAIN)
    )
    assert by_chance == pytest.approx((4 * 3 + 3 * 2) / (8 * 7), abs=0.08)
    assert often == pytest.approx((7 / 8 + by_chance) / 2, abs=0.08)


def test_a_table_without_the_speakers_is_refused(many: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "speakers.csv"
    settings = replace(PLAIN, same_sex=0.5, speakers_csv=(path,))
    path.write_text("speaker,sex\nzoe,F\n")
    with pytest.raises(
        ConfigError, match=r"csv: no row names a speaker of the training data.* as s0."
    ):
        MixtureSampler(many, settings)
    path.write_text("name,sex\nzoe,F\n")
    with pytest.raises(ConfigError, match=r"csv: column 'speaker' is missing"):
        MixtureSampler(many, settings)
    path.unlink()
    with pytest.raises(ConfigError, match=r"csv: no such file"):
        MixtureSampler(many, settings)


def test_batches_that_processes_draw_are_those_drawn_here(talkers: Corpus) -> None:
    sampler = MixtureSampler(talkers, EVERYTHING)
    drawn = draw_batches(sampler, 3, 5, range(2), workers=2)
    for step in range(5, 9):
        ahead, here = next(drawn), sampler.draw(3, step, range(2))
        for name, value in vars(here).items():
            assert value is None or torch.equal(getattr(ahead, name), value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's loader waits 5 s for a process that has been killed."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader

    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(Loader._try_get_data, "__defaults__", (0.2,))


def test_a_process_that_cannot_draw_or_ends_is_one_line(
    talkers: Corpus, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = MixtureSampler(talkers, PLAIN)
    error = ConfigError("files of the same name count as the same sentence.")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sampler, "draw", fail)
    with pytest.raises(ConfigError) as refused:
        next(draw_batches(sampler, 0, 0, range(2), workers=1))
    assert str(refused.value) == str(error)
    monkeypatch.setattr(sampler, "draw", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(EngineError, match=r"mixtures ended, .* Lower \[run\] workers"):
        next(draw_batches(sampler, 0, 0, range(2), workers=1))


def test_a_process_that_is_killed_is_noticed_where_its_mixtures_are_awaited(
    talkers: Corpus, impatient: None
) -> None:
    batches = draw_batches(MixtureSampler(talkers, PLAIN), 0, 0, range(2), workers=1)
    before = multiprocessing.active_children()
    next(batches)
    (process,) = set(multiprocessing.active_children()) - set(before)
    process.kill()
    time.sleep(1)  # in the middle of a step, say; an error that is raised here is not expected
    with pytest.raises(EngineError, match=r"mixtures ended, .* Lower \[run\] workers"):
        for _ in range(10):
            next(batches)
