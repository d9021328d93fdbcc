"""Mixtures drawn on the fly: what is in them, and who is never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mcspex_cli.errors import ConfigError
from mcspex_cli.training.mixtures import (
    Corpus,
    MixtureSampler,
    MixtureSettings,
    _arc,
    _rest,
    gain_for_snr,
)
from tests.conftest import RATE_HZ

SHORT = MixtureSettings(segment_s=0.8, reference_s=(0.5, 1.0))


@pytest.fixture
def marked() -> Corpus:
    """A corpus whose every sample tells its speaker and utterance: 100 * speaker + number."""
    from mcspex_cli.training.mixtures import Speaker

    pieces, speakers, at = [], [], 0
    for who, lengths in enumerate(((900, 500, 700), (1200, 300), (400, 400, 400, 400))):
        speaker = Speaker(f"s{who}", at)
        for utterance, length in enumerate(lengths):
            pieces.append(torch.full((length,), 100 * (who + 1) + utterance, dtype=torch.int16))
            speaker.bounds.append(speaker.bounds[-1] + length)
            speaker.sentences.append(f"s{who}-{utterance}")
        at += speaker.bounds[-1]
        speakers.append(speaker)
    return Corpus(torch.cat(pieces), speakers, 1000)


def test_a_corpus_holds_every_utterance_once(corpus: Path) -> None:
    read = Corpus.read([corpus], RATE_HZ)
    assert [Path(s.name).name for s in read.speakers] == ["ann", "bob", "cyn"]
    assert read.speakers[1].sentences == ["a", "b", "d"]
    assert read.samples.dtype == torch.int16
    assert read.seconds == pytest.approx(3 * (1.0 + 1.2 + 1.4))


def test_draws_are_repeated_by_their_generator(corpus: Path) -> None:
    sampler = MixtureSampler(Corpus.read([corpus], RATE_HZ), SHORT)
    one, same, other = (sampler.draw(4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.mixture, same.mixture)
    assert torch.equal(one.reference, same.reference)
    assert one.mixture.shape == (4, 6400)
    assert not torch.equal(one.mixture, other.mixture)


def test_snr_and_level_are_in_their_ranges(corpus: Path) -> None:
    settings = MixtureSettings(0.8, (0.5, 1.0), (-2.0, 2.0), (-30.0, -20.0))
    sampler = MixtureSampler(Corpus.read([corpus], RATE_HZ), settings)
    batch = sampler.draw(64, np.random.default_rng(0))
    level = 10 * torch.log10(batch.mixture.square().mean(-1))
    assert -30.1 < level.min() < -28 and -22 < level.max() < -19.9
    interferer = batch.mixture - batch.target
    snr = 10 * torch.log10(batch.target.square().sum(-1) / interferer.square().sum(-1))
    assert -2.01 < snr.min() < -1.5 and 1.5 < snr.max() < 2.01


def test_the_reference_is_the_target_in_other_utterances(marked: Corpus) -> None:
    rng = np.random.default_rng(0)
    sampler = MixtureSampler(marked, MixtureSettings(0.6, (0.5, 2.0)))
    for _ in range(300):
        who = int(rng.integers(3))
        target = _arc(marked.speakers[who], 600, rng)
        said = sampler._gather([target], 600)[0] * 32768
        heard = sampler._gather([_rest(target, rng)], 2000)[0] * 32768
        assert 0 < target.length <= 600
        assert set(said.tolist()) - {0.0} <= {100.0 * (who + 1) + k for k in range(4)}
        assert set(heard.tolist()) <= {100.0 * (who + 1) + k for k in range(4)}
        assert not set(said.tolist()) & set(heard.tolist())
        assert not (said[target.length :]).any()


def test_speakers_are_labelled_and_never_mixed_with_themselves(marked: Corpus) -> None:
    sampler = MixtureSampler(marked, MixtureSettings(0.3, (0.5, 1.0)))
    batch = sampler.draw(200, np.random.default_rng(1))
    assert set(batch.speaker.tolist()) == {0, 1, 2}
    # A reference is constant but for its utterances: its speaker shows in the ratio.
    ratios = batch.reference.max(-1).values / batch.reference.min(-1).values
    assert ratios.max() < 1.04
    plans = [sampler._pair(300, np.random.default_rng(k)) for k in range(200)]
    assert all(t.speaker is not i.speaker and r.speaker is t.speaker for _, t, i, r in plans)


def test_the_same_sentence_is_never_mixed(corpus: Path) -> None:
    sampler = MixtureSampler(Corpus.read([corpus], RATE_HZ), SHORT)
    for seed in range(300):
        _, target, interferer, _ = sampler._pair(6400, np.random.default_rng(seed))
        assert not target.sentences() & interferer.sentences()


def test_speakers_who_say_the_same_and_nothing_else_are_refused(corpus: Path) -> None:
    for k, name in enumerate("efg"):
        (corpus / "cyn" / f"{name}.flac").rename(corpus / "cyn" / f"{'abd'[k]}.flac")
        if k < 2:
            (corpus / "ann" / f"{'abc'[k]}.flac").touch()
    (corpus / "ann" / "c.flac").rename(corpus / "ann" / "d.flac")
    sampler = MixtureSampler(Corpus.read([corpus], RATE_HZ), MixtureSettings(3.0, (0.5, 1.0)))
    with pytest.raises(ConfigError, match=r"same sentences and never mixed. Rename them"):
        sampler.draw(20, np.random.default_rng(0))


def test_gain_for_snr_is_by_energy() -> None:
    target, interferer = torch.randn(3, 500), 7 * torch.randn(3, 500)
    snr = torch.tensor([[-5.0], [0.0], [5.0]])
    scaled = interferer * gain_for_snr(target, interferer, snr)
    ratio = target.square().sum(-1) / scaled.square().sum(-1)
    torch.testing.assert_close(10 * torch.log10(ratio), snr[:, 0])


def test_too_few_speakers_are_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="two speakers or more"):
        Corpus.read([corpus / "ann"], RATE_HZ)
    with pytest.raises(ConfigError, match="no such folder of speakers"):
        Corpus.read([corpus / "zoe"], RATE_HZ)
