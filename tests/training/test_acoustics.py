"""Noise, rooms and bands against what physics and arithmetic say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mcspex_cli import audio
from mcspex_cli.training import acoustics
from mcspex_cli.training.acoustics import (
    EARLY_S,
    Room,
    align_response,
    change_speed,
    convolve,
    draw_room,
    early_part,
    limit_band,
    room_responses,
    stationary_noise,
    torchaudio_functional,
)
from mcspex_cli.training.data import NoiseFiles, NoiseStretch

RATE_HZ = 16000
CPU = torch.device("cpu")


def rooms(t60_s: float, count: int = 6) -> list[Room]:
    rng = np.random.default_rng(0)
    return [draw_room(t60_s, 2, rng) for _ in range(count)]


def responses(t60_s: float, count: int = 6) -> Tensor:
    return room_responses(rooms(t60_s, count), round(0.8 * RATE_HZ), RATE_HZ, CPU)


def test_talkers_and_microphone_are_inside_the_room() -> None:
    for room in rooms(0.4, 50):
        for place in (room.microphone, *room.talkers):
            assert all(0.5 <= x <= wall - 0.5 for x, wall in zip(place, room.size, strict=True))


def test_the_direct_sound_comes_first_and_alone() -> None:
    response = responses(0.4)
    assert response.shape == (6, 2, 12800)
    assert (response[..., 0] >= 1).all()  # 1, and what arrives within the same sample
    assert (response[..., 0] < 1.6).all()


@pytest.mark.parametrize("t60_s", [0.2, 0.4, 0.6])
def test_reverberation_falls_by_60_db_in_t60(t60_s: float) -> None:
    # Schroeder's backward integral, its slope from -5 to -25 dB.
    left = responses(t60_s).square().flip(-1).cumsum(-1).flip(-1).mean((0, 1))
    level = 10 * torch.log10(left / left[0])
    first, last = (int((level < db).nonzero()[0]) for db in (-5, -25))
    measured = 3 * (last - first) / RATE_HZ
    assert measured == pytest.approx(t60_s, rel=0.25)


def test_a_nearer_talker_is_drier() -> None:
    near, far = (
        Room(0.4, (6.0, 5.0, 3.0), (3.0, 2.5, 1.5), ((3.0 + away, 2.5, 1.5),), 1)
        for away in (0.5, 2.4)
    )
    response = room_responses([near, far], 6400, RATE_HZ, CPU)[:, 0]
    direct_db = -10 * torch.log10(response[:, 16:].square().sum(-1))
    # The direct sound falls with the square of the distance; the reverberation does not.
    assert direct_db[0] - direct_db[1] == pytest.approx(20 * np.log10(2.4 / 0.5), abs=2)


def test_the_first_echo_is_where_geometry_puts_it() -> None:
    # Microphone and talker 1.5 m above the floor and 2 m apart; all other walls are far off.
    room = Room(0.3, (40.0, 40.0, 30.0), (20.0, 20.0, 1.5), ((22.0, 20.0, 1.5),), 1)
    response = room_responses([room], 3200, RATE_HZ, CPU)[0, 0]
    path_m = np.hypot(2, 3) - 2
    expected = path_m / 343 * RATE_HZ
    assert int(response[4:400].argmax()) + 4 == pytest.approx(expected, abs=1)


def test_the_early_part_ends_softly() -> None:
    response = torch.ones(1, 3200)
    early = early_part(response, RATE_HZ)
    end = round(EARLY_S * RATE_HZ)
    assert torch.equal(early[:, :end], response[:, :end])
    assert early[0, end + 80] == pytest.approx(0.5, abs=0.01)
    assert not early[:, end + 161 :].any()


def test_convolution_is_convolution() -> None:
    torch.manual_seed(0)
    signals, filters = torch.randn(3, 200), torch.randn(3, 50)
    expected = [np.convolve(s, f)[:200] for s, f in zip(signals, filters, strict=True)]
    np.testing.assert_allclose(convolve(signals, filters), expected, atol=1e-4)


def noise(kind: str, length: int = 64000) -> Tensor:
    speech = torch.linspace(2, 0.1, 513)
    return stationary_noise([kind], [3], length, RATE_HZ, speech)[0]


def octave_db(signal: Tensor, low_hz: float) -> float:
    """Mean power spectral density from a frequency to its double."""
    power = torch.fft.rfft(signal).abs().square()
    hertz = torch.linspace(0, RATE_HZ / 2, len(power))
    return float(10 * torch.log10(power[(hertz >= low_hz) & (hertz < 2 * low_hz)].mean()))


@pytest.mark.parametrize(("kind", "slope_db"), [("white", 0), ("pink", -3)])
def test_the_spectrum_of_noise_falls_as_its_name_says(kind: str, slope_db: float) -> None:
    levels = [octave_db(noise(kind), 250 * 2**k) for k in range(4)]
    np.testing.assert_allclose(np.diff(levels), slope_db, atol=0.4)


def test_speech_shaped_noise_has_speechs_spectrum() -> None:
    power = torch.fft.rfft(noise("speech")).abs().square()
    bands = torch.stack([part.mean() for part in power.tensor_split(8)])
    expected = torch.stack([p.mean() for p in torch.linspace(2, 0.1, len(power)).tensor_split(8)])
    torch.testing.assert_close(bands / bands.sum(), expected / expected.sum(), rtol=0.1, atol=0.003)


def test_hum_is_mains_and_its_harmonics() -> None:
    power = torch.fft.rfft(noise("hum", RATE_HZ)).abs().square()  # a bin is 1 Hz
    loud = (power > 1e-6 * power.max()).nonzero().squeeze(1).tolist()
    mains = loud[0]
    assert mains in (50, 60)
    assert all(hertz % mains == 0 for hertz in loud)
    assert len(loud) == 12


def test_a_rows_noise_is_its_own_in_any_batch() -> None:
    speech = torch.ones(513)
    together = stationary_noise(["white", "pink"], [1, 2], 1000, RATE_HZ, speech)
    alone = stationary_noise(["pink"], [2], 1000, RATE_HZ, speech)
    torch.testing.assert_close(together[1:], alone)
    torch.testing.assert_close(together.square().mean(-1), torch.ones(2))


def test_a_limited_band_keeps_what_is_in_it() -> None:
    time = torch.arange(RATE_HZ) / RATE_HZ
    low, high = (torch.sin(2 * np.pi * hertz * time) for hertz in (900, 2200))
    band = torch.tensor([[0.0]]), torch.tensor([[2000.0]]), torch.tensor([[12.0]])
    limited = limit_band((low + high)[None], *band, RATE_HZ)
    torch.testing.assert_close(limited[0], low, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("slope_db", "expected_db"),
    [(12.0, [-24.0, -12.3, -3.0, 0.0]), (30.0, [-60.0, -30.0, -3.0, 0.0])],
)
def test_below_a_band_it_falls_by_its_slope(slope_db: float, expected_db: list[float]) -> None:
    time = torch.arange(RATE_HZ) / RATE_HZ
    tones = torch.stack([torch.sin(2 * np.pi * hertz * time) for hertz in (75, 150, 300, 3000)])
    band = (torch.full((4, 1), value) for value in (300.0, 3400.0, slope_db))
    limited = limit_band(tones, *band, RATE_HZ)
    lost_db = 10 * torch.log10(limited.square().mean(-1) / tones.square().mean(-1))
    torch.testing.assert_close(lost_db, torch.tensor(expected_db), rtol=0, atol=0.3)


def sine(hertz: float, length: int) -> Tensor:
    time = torch.arange(length, dtype=torch.float64) / RATE_HZ
    return (0.5 * torch.sin(2 * torch.pi * hertz * time)).float()


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.0, 1.1, 1.25])
def test_a_faster_tone_is_higher_and_as_loud(speed: float) -> None:
    whole = sine(800, round(8000 * speed))  # whole periods
    faster = change_speed(torch.stack([whole, 2 * whole]), speed, 8000)
    assert faster.shape == (2, 8000)
    inside = slice(200, 7800)
    expected = sine(800 * speed, 8000)[inside]
    np.testing.assert_allclose(faster[0, inside], expected, atol=1e-3)
    np.testing.assert_allclose(faster[1, inside], 2 * expected, atol=2e-3)


def test_what_would_be_over_half_the_rate_is_left_out() -> None:
    faster = change_speed(sine(7800, 8800), 1.1, 8000)
    assert faster[200:7800].abs().max() < 1e-2


def test_torchaudio_and_what_replaces_it_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torchaudio_functional():
        pytest.skip("torchaudio cannot be imported here")
    generator = torch.Generator().manual_seed(0)
    speech = limit_band(
        torch.randn(3, 12000, generator=generator), torch.zeros(3, 1), torch.full((3, 1), 5000.0),
        torch.full((3, 1), 12.0), RATE_HZ,
    )  # fmt: skip
    response = torch.randn(3, 4000, generator=generator) * torch.linspace(1, 0, 4000)

    def both() -> list[Tensor]:
        sped = [change_speed(speech[:, : round(8000 * s)], s, 8000) for s in (0.9, 1.13)]
        return [convolve(speech, response), *(signals[:, 200:7800] for signals in sped)]

    with_it = both()
    monkeypatch.setattr(acoustics, "torchaudio_functional", lambda: None)
    for one, other in zip(with_it, both(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.01 * float(one.std()))


@pytest.fixture
def noise_files(tmp_path: Path) -> NoiseFiles:
    """Half a second, 10 ms, and two samples of a low tone that ends where it is highest."""
    for name, length in (("a", 8000), ("b", 160), ("c", 2)):
        time = torch.arange(length) - length + 1
        tone = 0.5 * torch.cos(2 * np.pi * 100 * time / RATE_HZ)
        audio.write(tmp_path / f"{name}.wav", tone.numpy(), RATE_HZ)
    return NoiseFiles(tmp_path, RATE_HZ, CPU)


def test_short_noises_start_over_without_a_click(noise_files: NoiseFiles) -> None:
    noise = noise_files.gather([NoiseStretch(0, 500), NoiseStretch(0, 7990)], 20_000)
    torch.testing.assert_close(noise.square().mean(-1), torch.ones(2))
    # A tone of 100 Hz changes by 2 pi 100 / 16000 of its peak from one sample to the next.
    steps = noise.diff().abs().max(-1).values / noise.abs().max(-1).values
    assert (steps < 1.5 * 2 * np.pi * 100 / RATE_HZ).all()
    assert noise_files.gather([NoiseStretch(1, 3), NoiseStretch(2, 1)], 9000).isfinite().all()


def test_long_noises_are_cut_from_anywhere(noise_files: NoiseFiles) -> None:
    rng = np.random.default_rng(0)
    drawn = [noise_files.draw(3000, rng) for _ in range(300)]
    starts = [stretch.start for stretch in drawn if stretch.file == 0]
    assert min(starts) < 300 and 4700 < max(starts) <= 5000
    assert {stretch.file for stretch in drawn} == {0, 1, 2}
    part = noise_files.gather([NoiseStretch(0, 5000)], 3000)[0]
    file = noise_files.samples[5000:8000].float()
    torch.testing.assert_close(part, file / file.square().mean().sqrt())


def test_a_response_begins_with_its_direct_sound() -> None:
    response = torch.zeros(4000)
    response[[100, 101, 102, 900, 3000]] = torch.tensor([0.3, -0.5, 0.2, 0.6, 1e-5])
    aligned = align_response(response, RATE_HZ)
    assert len(aligned) == 800  # up to the echo, after which there is nearly nothing
    torch.testing.assert_close(aligned[:2], torch.tensor([1.0, -0.4]))
    torch.testing.assert_close(aligned[799], torch.tensor(-1.2))
