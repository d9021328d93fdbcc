"""Spectrograms, PNG files and axes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from mcspex_cli.evaluation.pictures import (
    COLUMNS,
    RANGE_DB,
    ROWS,
    SHADES,
    Axis,
    axis,
    draw,
    png,
    scale,
    spectrogram,
)
from tests.conftest import RATE_HZ


def tone(hz: float, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.sin(2 * np.pi * hz * t).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_tone_is_at_its_height(rate_hz: int, share: float) -> None:
    levels = spectrogram(tone(share * rate_hz / 2, 1, rate_hz), rate_hz)
    row = np.argmax(levels.mean(axis=1))
    assert 1 - (row + 0.5) / len(levels) == pytest.approx(share, abs=0.01)


def test_a_full_scale_sine_has_the_level_that_is_said() -> None:
    for rate_hz in (8000, 16000):
        assert spectrogram(tone(1000, 1, rate_hz), rate_hz).max() == pytest.approx(-6, abs=0.5)


@pytest.mark.parametrize("samples", [1, 10, 255, 8000, 8000 * 100])
def test_a_picture_is_small_whatever_the_length(samples: int) -> None:
    levels = spectrogram(np.ones(samples, np.float32), RATE_HZ)
    assert 1 <= levels.shape[0] <= ROWS
    assert 1 <= levels.shape[1] <= COLUMNS
    assert np.isfinite(levels).all()


def test_a_long_sound_is_averaged_not_cut() -> None:
    sound = np.concatenate([tone(1000, 30), np.zeros(30 * RATE_HZ, np.float32)])
    columns = spectrogram(sound, RATE_HZ).max(axis=0)
    assert (columns[:254] > -10).all()
    assert (columns[258:] < -100).all()


def test_a_drawing_decodes_to_its_size_and_colours() -> None:
    levels = spectrogram(tone(1000, 1), RATE_HZ)
    levels[0, 0], levels[0, 1] = levels.max() + 20, levels.max() - RANGE_DB
    picture = imread(io.BytesIO(draw(levels, levels.max() - 20)))
    assert picture.shape[:2] == levels.shape
    light = picture[..., :3].sum(axis=-1)
    assert light[0, 0] == light.max() > 2.5
    assert light[0, 1] == light.min() < 0.1


def test_a_png_is_what_others_read() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 7, (5, 9)).astype(np.uint8)
    palette = rng.integers(0, 256, (7, 3)).astype(np.uint8)
    read = np.rint(imread(io.BytesIO(png(pixels, palette)))[..., :3] * 255)
    np.testing.assert_array_equal(read, palette[pixels])


def test_colours_get_lighter_evenly() -> None:
    colours = imread(io.BytesIO(scale()))[0, :, :3]
    assert len(colours) == SHADES
    light = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


@pytest.mark.parametrize(
    "values", [[0.0], [-5.0, 5.0], [-38.7, 20.4, 0.0], [1e-3, 2e-3], [-1e3, 1e3]]
)
def test_an_axis_holds_its_values_with_round_ticks(values: list[float]) -> None:
    made = axis(values, 10, 110)
    assert all(10 < made.at(v) < 110 for v in values)
    assert 2 <= len(made.ticks) <= 9
    assert all(made.low <= tick <= made.high for tick in made.ticks)


def test_an_axis_may_run_backwards() -> None:
    assert Axis(0, 10, 100, 0).at(2.5) == 75
    assert Axis(-1, 1, 0, 1).ticks == pytest.approx([-1, -0.5, 0, 0.5, 1])
