"""`mcspex live`: extract a voice from sound that is still arriving.

```
standard input ──┐                                          ┌──▶ standard output
                 ├──▶ Inflow ──▶ LiveExtractor ──▶ write ───┤
sound card ──────┘ of a thread                              └──▶ sound card
```
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, live_audio, options
from mcspex_cli.cli.live_audio import Inflow, SoundFormat
from mcspex_cli.cli.options import choice, flag, option

if TYPE_CHECKING:
    from mcspex_cli import EngineSettings
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.cli.live_audio import Write
    from mcspex_cli.extraction.streaming import LiveExtractor

_LATE_S = 0.25
"""How late the output is when the first warning comes; another comes whenever that has doubled."""

_NEED = "needs sounddevice (in a checkout: pip install '.[live]')"
"""What the help says of options for sound cards."""


@dataclass(frozen=True)
class LiveRequest:
    """The arguments of `mcspex live`."""

    references: tuple[Path, ...] = options.references()
    latency_s: float = option(
        "SECONDS",
        "How much later the voice comes out. A longer latency sounds better and takes less time.",
        "--latency",
        type=options.FiniteRange(0.1, 3.0),
        default=1.0,
    )
    absent: str = choice(
        options.table("extraction.job", "ABSENT_ACCEPTED"),
        "What to do while the voice is absent",
        default="keep",
    )
    rate_hz: int | None = option(
        "HZ",
        "Sample rate of raw samples, or of the sound cards.  [default: a WAV's or a card's own]",
        "--rate",
        type=click.IntRange(1000, 1_000_000),
    )
    channels: int | None = option(
        "N",
        "Channels of raw samples; several are mixed to one.  [default: 1]",
        type=click.IntRange(1, 256),
    )
    encoding: str | None = choice(
        options.table("cli.live_audio", "ENCODINGS"),
        f"Format of raw samples, little-endian; {live_audio.DEFAULT_ENCODING} by default",
        "--format",
    )
    from_start: bool = flag(
        "Also use what arrives while the model is loaded; the voice is then later by that time."
    )
    input_device: str | None = option(
        "N|NAME",
        f"Record from this sound card instead of standard input; {_NEED}.",
        type=options.TEXT,
    )
    output_device: str | None = option(
        "N|NAME",
        f"Play on this sound card instead of writing to standard output; {_NEED}.",
        type=options.TEXT,
    )
    list_devices: bool = flag("List the sound cards and exit.")
    model: str | None = options.MODEL
    offline: bool = options.OFFLINE
    engine_settings: EngineSettings = options.ENGINE
    verbose: bool = flag("Say when the voice comes and goes.", "-v", "--verbose")


@options.command(has_quiet=True)
def live(request: LiveRequest = options.group(LiveRequest)) -> None:
    """Extract one person's voice from sound that is still arriving.

    Reads WAV or raw samples from standard input, and writes the same format, mono, to standard
    output. It can also use sound cards.

    \b
    arecord -f S16_LE -r 16000 -t raw | mcspex live --ref alice.wav --rate 16000 |
        aplay -f S16_LE -r 16000 -t raw
    mcspex live --ref alice.wav --input-device 1 --output-device 4
    """  # noqa: D301 (click needs the character itself)
    if request.list_devices:
        console.table(("name", "number", "in", "out", "rate Hz"), live_audio.list_sound_cards())
        return
    if not request.references:
        raise click.UsageError("whose voice? Add --ref FILE.")
    if request.input_device is not None and (request.channels or 1) > 1:
        raise click.UsageError("--channels is for raw samples; sound cards record one channel.")
    if request.input_device is not None and request.from_start:
        raise click.UsageError(
            "--from-start is for standard input; a sound card records once the model is loaded."
        )
    from mcspex_cli.extraction.reference import list_sources

    references = list_sources(request.references)
    if request.input_device is None:
        inflow = live_audio.open_stdin(request.rate_hz, request.channels, request.encoding)
    else:
        encoding = request.encoding or live_audio.DEFAULT_ENCODING
        inflow = live_audio.Microphone(request.input_device, request.rate_hz, encoding)
    form, interrupted = replace(inflow.format, channels=1), threading.Event()
    if request.output_device is None:
        output = live_audio.stdout(form, references, interrupted)
    else:
        output = live_audio.loudspeaker(request.output_device, form.sample_rate_hz)

    def stop() -> None:
        interrupted.set()
        inflow.end()

    with output as write, ExitStack() as stack:
        source = _describe(request.input_device, inflow.format)
        console.say(f"in: {source}; out: {_describe(request.output_device, form)}")
        info = options.find_model(request.model, offline=request.offline)
        ending_gently = console.ending_gently(stop, "SIGHUP")
        if request.from_start:  # else nothing is lost that would have been used
            stack.enter_context(ending_gently)
        extraction = _load(request, info, references, form.sample_rate_hz)
        skipped_s = 0.0
        if not request.from_start:
            stack.enter_context(ending_gently)
            skipped_s = inflow.skip_backlog()
        skipped = f"; skipped the {skipped_s:.1f} s that came before" if skipped_s else ""
        console.say(f"ready, {request.latency_s:g} s of latency{skipped}")
        with suppress(BrokenPipeError):
            _extract(request, extraction, inflow, write)
    if interrupted.is_set():
        console.error("interrupted. All sound that had arrived before is done.")
        click.get_current_context().exit(130)


def _describe(device: str | None, form: SoundFormat) -> str:
    kind = f"sound card {device}"
    if device is None:
        kind = f"{'WAV' if form.wav else 'raw'} {form.encoding}"
    channels = "mono" if form.channels == 1 else f"{form.channels} channels, which are mixed"
    return f"{kind}, {form.sample_rate_hz} Hz, {channels}"


def _load(
    request: LiveRequest, info: CheckpointInfo, references: list[Path], sample_rate_hz: int
) -> LiveExtractor:
    """Load the model, enroll the voice, and compute once, as the first time takes longer."""
    import numpy as np

    from mcspex_cli.extraction.job import check_absent
    from mcspex_cli.extraction.reference import check_references

    check_absent(request.absent, info, info.calibration)
    check_references(references, info)
    extractor = options.load_extractor(info, request.engine_settings, math.inf)
    voice = extractor.enroll(references)
    for line in voice.warnings:
        console.warn(line)
    begin = partial(extractor.live, voice, latency_s=request.latency_s)
    trial = begin()
    trial.push(np.zeros(trial.timing.window, np.float32))
    trial.flush()
    return begin(sample_rate_hz=sample_rate_hz, absent=request.absent)


def _extract(request: LiveRequest, extraction: LiveExtractor, inflow: Inflow, write: Write) -> None:
    """Push each block as it arrives, write what is due, and say what happens."""
    clock, seconds = _Clock(), 0.0
    present = is_warned = False
    for arrival, block in inflow:
        due = extraction.push(block)
        seconds += block.shape[1] / extraction.sample_rate_hz
        clock.check(arrival, seconds)
        with clock.paused():
            write(due)
        is_warned = is_warned or _warn_of_channels(extraction)
        if request.verbose and bool(extraction.present) != present:
            present = not present
            state = "comes" if present else "goes"
            at_s = max(0.0, seconds - request.latency_s)
            console.say(f"{at_s:.1f} s: the voice {state} (presence {extraction.presence:.2f})")
    write(extraction.flush())
    if not is_warned:
        _warn_of_channels(extraction)
    if extraction.limited:
        console.warn("parts of the voice were turned down so that they do not clip.")
    if seconds:
        factor = extraction.computed_s / seconds
        console.say(f"{console.duration(seconds)}, real-time factor {factor:.2f}")


def _warn_of_channels(extraction: LiveExtractor) -> bool:
    """Warn if the channels cancel each other out, and tell whether they do."""
    if extraction.channels_cancel:
        console.warn(
            "the channels cancel each other out in the mix, or nearly so, so that little or "
            "nothing is heard. Send one of them alone."
        )
    return extraction.channels_cancel


class _Clock:
    """Warns when this machine is too slow for sound that arrives in real time.

    A block is due when it arrives; a file's, which all arrive at once, when they would have arrived
    in real time. Time in which the output waits for its reader does not count.
    """

    def __init__(self) -> None:
        self._ready = time.monotonic()
        self._start = -math.inf
        """When the sound began, if it all came in real time."""
        self._limit_s = _LATE_S

    def check(self, arrival: float, seconds: float) -> None:
        """Warn if the sound up to `seconds`, which arrived at `arrival`, is done late."""
        self._start = max(self._start, max(arrival, self._ready) - seconds)
        late_s = time.monotonic() - self._start - seconds
        if late_s > self._limit_s:
            self._limit_s = 2 * late_s
            console.warn(
                f"this machine is too slow: it is {late_s:.1f} s behind. Nothing is lost, but the "
                f"delay grows. {live_audio.SPEED_ADVICE}"
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time that the block takes."""
        before = time.monotonic()
        yield
        self._start += time.monotonic() - before
