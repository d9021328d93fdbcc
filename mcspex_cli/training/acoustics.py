"""Noise, rooms and narrow bands, made on whole batches at once, wherever the tensors lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EARLY_S = 0.05
"""How long after the direct sound a reflection still counts as the target's speech."""

SPEED_OF_SOUND = 343.0
"""In m/s."""

_ORDER = 3
"""Walls that an image of a talker is mirrored in, at most, along each axis."""

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
    distance 0.057 sqrt(V / T60)).
    """
    size, microphone, talkers, t60 = (
        torch.tensor([getattr(room, name) for room in rooms]).to(device, non_blocking=True)
        for name in ("size", "microphone", "talkers", "t60_s")
    )
    t60 = t60[:, None]
    distance, order = _images(size, microphone, talkers)
    direct = distance.amin(-1, keepdim=True)
    strength = _reflection(size, t60)[..., None] ** order * direct / distance
    delay = (distance - direct) / SPEED_OF_SOUND * sample_rate_hz
    early = _place(delay, strength, length)
    tail = torch.stack([_white(r.seed, (len(r.talkers), length), device) for r in rooms])
    time = torch.arange(length, device=device) / sample_rate_hz
    volume = size.prod(-1, keepdim=True)
    critical = 0.057 * (volume / t60).sqrt()
    rate = 6 * np.log(10) / t60[..., None]
    power = (direct / critical[..., None]) ** 2 * rate / sample_rate_hz * torch.exp(-rate * time)
    fade = (time / EARLY_S).clamp(max=1)
    response: Tensor = early * (1 - fade) + tail * power.sqrt() * fade
    return response


def early_part(responses: Tensor, sample_rate_hz: int) -> Tensor:
    """The responses' direct sound and what follows within `EARLY_S`, then a 10 ms fade."""
    time = torch.arange(responses.shape[-1], device=responses.device) / sample_rate_hz
    return responses * (1 - (time - EARLY_S) / 0.01).clamp(0, 1)


def convolve(signals: Tensor, responses: Tensor) -> Tensor:
    """Signals [..., sample] in their rooms, as long as they were; the responses likewise."""
    length = signals.shape[-1]
    size = length + responses.shape[-1] - 1
    spectrum = torch.fft.rfft(signals, n=size) * torch.fft.rfft(responses, n=size)
    convolved: Tensor = torch.fft.irfft(spectrum, n=size)[..., :length]
    return convolved


def stationary_noise(
    kinds: Sequence[str], seeds: Sequence[int], length: int, sample_rate_hz: int, speech: Tensor
) -> Tensor:
    """Noise of each kind but babble, RMS 1, [row, sample], where `speech` lies.

    Args:
        kinds: of `settings.NOISES`, one for each row.
        seeds: one for each row.
        length: in samples.
        sample_rate_hz: of the noise.
        speech: the average power spectrum of speech, [bin].
    """
    spectra = torch.fft.rfft(torch.stack([_white(s, (length,), speech.device) for s in seeds]))
    bins = spectra.shape[-1]
    hertz = torch.linspace(0, sample_rate_hz / 2, bins, device=speech.device)
    as_speech = torch.nn.functional.interpolate(speech[None, None], bins, mode="linear")[0, 0]
    power = {
        "white": torch.ones_like(hertz),
        "pink": 1 / hertz.clamp_min(50),
        "speech": as_speech,
        "hum": torch.zeros_like(hertz),
    }
    noise = torch.fft.irfft(spectra * torch.stack([power[k] for k in kinds]).sqrt(), n=length)
    for row in (row for row, kind in enumerate(kinds) if kind == "hum"):
        noise[row] = _hum(seeds[row], length, sample_rate_hz, speech.device)
    level = noise.square().mean(-1, keepdim=True).sqrt()
    levelled: Tensor = noise / level.clamp_min(1e-8)
    return levelled


def limit_band(
    signals: Tensor, lowest_hz: Tensor, highest_hz: Tensor, sample_rate_hz: int
) -> Tensor:
    """Signals [row, sample] with what is from `lowest_hz` to `highest_hz` [row].

    Above it fades out over 5 % of that frequency; below, towards 0 Hz by 12 dB per octave, as a
    second-order filter does.
    """
    length = signals.shape[-1]
    spectrum = torch.fft.rfft(signals)
    hertz = torch.linspace(0, sample_rate_hz / 2, spectrum.shape[-1], device=signals.device)
    edge, low = highest_hz[:, None], lowest_hz[:, None]
    kept = spectrum * ((edge - hertz) / (0.05 * edge) + 1).clamp(0, 1)
    kept = kept / (1 + (low / hertz.clamp_min(1.0)) ** 4).sqrt()
    limited: Tensor = torch.fft.irfft(kept, n=length)
    return limited


def _images(size: Tensor, microphone: Tensor, talkers: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [room, talker, image] of the mirrored talkers, and the walls in between."""
    steps = torch.arange(-_ORDER, _ORDER + 1, device=size.device)
    count = torch.cartesian_prod(steps, steps, steps)
    # Mirrored n times along an axis, a talker at x is at n * size + x, or + size - x if n is odd.
    odd = count % 2 == 1
    place = torch.where(odd, size[:, None, None] - talkers[:, :, None], talkers[:, :, None])
    image = count * size[:, None, None] + place
    distance = (image - microphone[:, None, None]).norm(dim=-1)
    return distance.clamp_min(0.1), count.abs().sum(-1)


def _reflection(size: Tensor, t60: Tensor) -> Tensor:
    """The walls' amplitude reflection [room, 1] that gives a T60. Source: Eyring's formula."""
    x, y, z = size.unbind(-1)
    surface = 2 * (x * y + y * z + x * z)
    absorbed = 1 - torch.exp(-0.161 * size.prod(-1) / (surface * t60[:, 0]))
    return (1 - absorbed).sqrt()[:, None]


def _place(delay: Tensor, strength: Tensor, length: int) -> Tensor:
    """Impulses at fractional delays, in samples, shared between the two nearest."""
    whole = delay.floor()
    share = delay - whole
    response = torch.zeros(*delay.shape[:-1], length + 1, device=delay.device)
    for index, part in ((whole, 1 - share), (whole + 1, share)):
        heard = index < length
        response.scatter_add_(-1, index.clamp(max=length).long(), strength * part * heard)
    return response[..., :length]


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
