"""Noise, rooms and narrow bands, computed for whole batches on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

EARLY_S = 0.05
"""How long after the direct sound a reflection still counts as the target's speech."""

_SPEED_OF_SOUND = 343.0
"""In m/s."""

_REFLECTIONS = 3
"""How often, at most, a talker is mirrored along each axis."""

_HARMONICS = 12


@dataclass(frozen=True)
class Room:
    """A box with talkers and a microphone in it; metres."""

    t60_s: float
    size: tuple[float, ...]
    microphone: tuple[float, ...]
    talkers: tuple[tuple[float, ...], ...]
    seed: int
    """Of the late reverberation."""


def draw_room(t60_s: float, talkers: int, rng: np.random.Generator) -> Room:
    """A room of 3 to 8 by 3 to 8 by 2.5 to 3.5 m; all in it half a metre from the walls."""
    size = rng.uniform((3, 3, 2.5), (8, 8, 3.5))
    places = rng.uniform(0.5, size - 0.5, size=(1 + talkers, 3))
    microphone, *mouths = (tuple(map(float, place)) for place in places)
    seed = int(rng.integers(2**31))
    return Room(t60_s, tuple(map(float, size)), microphone, tuple(mouths), seed)


def room_responses(
    rooms: Sequence[Room], length: int, sample_rate_hz: int, device: torch.device
) -> Tensor:
    """Impulse responses of each talker in each room, [room, talker, sample].

    The direct sound is 1 at sample 0. Mirror images up to the third order are placed one by
    one (Allen and Berkley 1979); into them fades, over `EARLY_S`, a diffuse tail, noise that
    falls by 60 dB in T60 and has the energy that statistical acoustics gives it (critical
    distance 0.057 sqrt(V / T60)). The walls reflect what Eyring's formula gives for T60.
    """
    size, microphone, talkers, t60 = (
        torch.tensor([getattr(room, name) for room in rooms]).to(device, non_blocking=True)
        for name in ("size", "microphone", "talkers", "t60_s")
    )
    t60, volume = t60[:, None], size.prod(-1, keepdim=True)
    x, y, z = size.unsqueeze(-1).unbind(1)
    absorbed = 1 - torch.exp(-0.161 * volume / (2 * (x * y + y * z + x * z) * t60))
    distance, order = _images(size, microphone, talkers)
    direct = distance.amin(-1, keepdim=True)
    strength = (1 - absorbed).sqrt()[..., None] ** order * direct / distance
    delay = (distance - direct) / _SPEED_OF_SOUND * sample_rate_hz
    early = _place(delay, strength, length)
    tail = torch.stack([_white(r.seed, (len(r.talkers), length), device) for r in rooms])
    time = torch.arange(length, device=device) / sample_rate_hz
    critical = 0.057 * (volume / t60).sqrt()
    rate = 6 * np.log(10) / t60[..., None]
    power = (direct / critical[..., None]) ** 2 * rate / sample_rate_hz * torch.exp(-rate * time)
    fade = (time / EARLY_S).clamp(max=1)
    return early * (1 - fade) + tail * power.sqrt() * fade


def _images(size: Tensor, microphone: Tensor, talkers: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [room, talker, image] of the mirrored talkers, and the walls in between."""
    steps = torch.arange(-_REFLECTIONS, _REFLECTIONS + 1, device=size.device)
    count = torch.cartesian_prod(steps, steps, steps)
    # Mirrored n times along an axis, a talker at x is at n * size + x, or + size - x if n is odd.
    odd = count % 2 == 1
    place = torch.where(odd, size[:, None, None] - talkers[:, :, None], talkers[:, :, None])
    image = count * size[:, None, None] + place
    distance = (image - microphone[:, None, None]).norm(dim=-1)
    return distance.clamp_min(0.1), count.abs().sum(-1)


def _place(delay: Tensor, strength: Tensor, length: int) -> Tensor:
    """Impulses at fractional delays, in samples, shared between the two nearest."""
    whole = delay.floor()
    share = delay - whole
    response = torch.zeros(*delay.shape[:-1], length + 1, device=delay.device)
    for index, part in ((whole, 1 - share), (whole + 1, share)):
        inside = index < length
        response.scatter_add_(-1, index.clamp(max=length).long(), strength * part * inside)
    return response[..., :length]


def align_response(response: Tensor, sample_rate_hz: int) -> Tensor:
    """Cut a room response [sample] so that its direct sound is at sample 0 and scale that to 1.

    The direct sound is the highest of the first millisecond that reaches half the highest peak:
    an echo may be the highest of all. The tail ends where less than a millionth of the energy
    is left.
    """
    level = response.abs()
    first = int((level >= 0.5 * level.max()).nonzero()[0])
    direct = first + int(level[first : first + max(1, sample_rate_hz // 1000)].argmax())
    aligned = response[direct:] / response[direct]
    left = aligned.double().square().flip(0).cumsum(0).flip(0)
    return aligned[: int((left > 1e-6 * left[0]).sum())]


def early_part(responses: Tensor, sample_rate_hz: int) -> Tensor:
    """The responses' direct sound and what follows within `EARLY_S`, then a 10 ms fade."""
    time = torch.arange(responses.shape[-1], device=responses.device) / sample_rate_hz
    return responses * (1 - (time - EARLY_S) / 0.01).clamp(0, 1)


def convolve(signals: Tensor, responses: Tensor) -> Tensor:
    """Convolve signals [..., sample] with responses [..., sample]; as long as the signals."""
    length = signals.shape[-1]
    # A Fourier transform of 2^k points takes a quarter of the time of one of any other size.
    size = 1 << (length + responses.shape[-1] - 2).bit_length()
    spectrum = torch.fft.rfft(signals, n=size) * torch.fft.rfft(responses, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length]


def change_speed(signals: Tensor, speed: float, length: int) -> Tensor:
    """Signals [..., sample] played `speed` times as fast, and so higher, in `length` samples.

    Band-limited. `signals` has round(length * speed) samples, and `speed` is in hundredths.
    Without torchaudio the spectrum is cut or padded, for which a signal's two ends meet.
    """
    if torchaudio := torchaudio_functional():
        resampled: Tensor = torchaudio.resample(
            signals,
            round(100 * speed),
            100,
            lowpass_filter_width=64,
            rolloff=0.95,
            resampling_method="sinc_interp_kaiser",
        )
        return functional.pad(resampled, (0, length - resampled.shape[-1]))
    spectrum = torch.fft.rfft(signals)
    if length < signals.shape[-1]:
        spectrum = spectrum[..., : length // 2 + 1]
    return torch.fft.irfft(spectrum, n=length) * (length / signals.shape[-1])


@cache
def torchaudio_functional() -> ModuleType | None:
    """Torchaudio's signal processing, or None where it cannot be imported.

    Beside a torch without CUDA, the torchaudio of PyPI raises an OSError.
    """
    try:
        from torchaudio import functional as torchaudio  # type: ignore[import-untyped]
    except (ImportError, OSError):
        return None
    return torchaudio


def limit_band(
    signals: Tensor, lowest_hz: Tensor, highest_hz: Tensor, slope_db: Tensor, sample_rate_hz: int
) -> Tensor:
    """Signals [row, sample] with what is from `lowest_hz` to `highest_hz` [row, 1].

    Above it fades out over 5 % of that frequency; below, towards 0 Hz by `slope_db` [row, 1] per
    octave, as a Butterworth filter does (12 dB: of second order).
    """
    spectrum = torch.fft.rfft(signals)
    hertz = torch.linspace(0, sample_rate_hz / 2, spectrum.shape[-1], device=signals.device)
    kept = spectrum * ((highest_hz - hertz) / (0.05 * highest_hz) + 1).clamp(0, 1)
    octaves_below = torch.log2(lowest_hz.clamp_min(1e-3) / hertz.clamp_min(1.0))
    kept = kept / (1 + 10 ** (octaves_below * slope_db / 10)).sqrt()
    return torch.fft.irfft(kept, n=signals.shape[-1])


def stationary_noise(
    kinds: Sequence[str], seeds: Sequence[int], length: int, sample_rate_hz: int, speech: Tensor
) -> Tensor:
    """Noise of each kind of `settings.Noise` but babble, RMS 1, [row, sample].

    `speech` [bin] is the average power spectrum of speech; the noise is made where that lies.
    """
    spectra = torch.fft.rfft(torch.stack([_white(s, (length,), speech.device) for s in seeds]))
    bins = spectra.shape[-1]
    hertz = torch.linspace(0, sample_rate_hz / 2, bins, device=speech.device)
    power = {
        "white": torch.ones_like(hertz),
        "pink": 1 / hertz.clamp_min(50),
        "speech": functional.interpolate(speech[None, None], bins, mode="linear")[0, 0],
        "hum": torch.zeros_like(hertz),
    }
    noise = torch.fft.irfft(spectra * torch.stack([power[k] for k in kinds]).sqrt(), n=length)
    for row in (row for row, kind in enumerate(kinds) if kind == "hum"):
        noise[row] = _hum(seeds[row], length, sample_rate_hz, speech.device)
    return at_unit_rms(noise)


def at_unit_rms(signals: Tensor) -> Tensor:
    """Signals [..., sample] at RMS 1; silence stays silence."""
    return signals / signals.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-8)


def _white(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Normal noise from a seed of its own, so that a row is the same in any batch."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def _hum(seed: int, length: int, sample_rate_hz: int, device: torch.device) -> Tensor:
    """50 or 60 Hz and its harmonics, each weaker than the one below."""
    rng = np.random.default_rng(seed)
    order = np.arange(1, _HARMONICS + 1)
    hertz = rng.choice((50.0, 60.0)) * order
    amplitude = rng.uniform(0.2, 1, _HARMONICS) / order
    amplitude[hertz >= sample_rate_hz / 2] = 0
    phase = rng.uniform(0, 2 * np.pi, _HARMONICS)
    columns = (torch.from_numpy(a).float().to(device)[:, None] for a in (hertz, amplitude, phase))
    frequency, loudness, start = columns
    time = torch.arange(length, device=device) / sample_rate_hz
    return (loudness * torch.sin(2 * np.pi * frequency * time + start)).sum(0)
