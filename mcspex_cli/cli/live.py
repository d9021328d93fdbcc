"""`mcspex live`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model, prepare

if TYPE_CHECKING:
    from mcspex_cli.audio import Samples
    from mcspex_cli.cli.pipes import Inflow
    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.presence import Calibration
    from mcspex_cli.extraction.reference import Voice
    from mcspex_cli.extraction.streaming import LiveExtractor

_LATE_S = 0.25
"""Lateness that is told; and then each time that it has doubled."""


@dataclass(frozen=True)
class LiveRequest:
    """What `mcspex live` is asked for."""

    references: tuple[Path, ...]
    latency_s: float
    absent: str
    rate_hz: int | None
    channels: int
    encoding: str
    from_start: bool
    input_device: str | None
    output_device: str | None
    list_devices: bool
    model: str | None
    offline: bool
    device: str
    precision: str
    runtime: str
    quiet: bool
    verbose: bool


def _policies() -> dict[str, str]:
    from mcspex_cli.extraction.job import ABSENT

    return {row.name: row.help for row in ABSENT.values() if not row.fails}


def _encodings() -> dict[str, str]:
    from mcspex_cli.cli.pipes import ENCODINGS

    return dict.fromkeys(ENCODINGS, "")


@click.command()
@options.reference()
@click.option(
    "--latency",
    "latency_s",
    type=click.FloatRange(0.1, 3.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How much later the voice comes out. A longer one sounds better and costs less.",
)
@click.option(
    "--absent",
    cls=options.TableOption,
    rows=_policies,
    default="keep",
    show_default=True,
    help="What to do while the voice is absent",
)
@click.option(
    "--rate",
    "rate_hz",
    type=click.IntRange(1000, 1_000_000),
    metavar="HZ",
    help="Sample rate of raw samples, or of the sound cards.  [default: a WAV's or a card's own]",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    metavar="N",
    help="Channels of raw samples; several are mixed to one.",
)
@click.option(
    "--format",
    "encoding",
    cls=options.TableOption,
    rows=_encodings,
    default="s16",
    show_default=True,
    help="Raw samples, little-endian",
)
@click.option(
    "--from-start",
    is_flag=True,
    help="Also use what arrives while the model is loaded; the delay is longer by that.",
)
@click.option(
    "--input-device",
    metavar="N|NAME",
    help="Record from this sound card instead of standard input; needs mcspex[live].",
)
@click.option(
    "--output-device",
    metavar="N|NAME",
    help="Play on this sound card instead of writing to standard output; needs mcspex[live].",
)
@click.option("--list-devices", is_flag=True, help="List the sound cards, and end.")
@options.running
@options.quiet
@click.option("-v", "--verbose", is_flag=True, help="Say when the voice comes and goes.")
def live(**values: Any) -> None:
    """Extract one person's voice from sound that is still arriving.

    Reads WAV or raw samples from standard input and writes the same kind, mono, to standard
    output; or uses sound cards.

    \b
    arecord -f S16_LE -r 16000 -t raw | mcspex live --ref alice.wav --rate 16000 |
        aplay -f S16_LE -r 16000 -t raw
    mcspex live --ref alice.wav --input-device 1 --output-device 4
    """  # noqa: D301 (click needs the character itself)
    request = options.filled(LiveRequest, values)
    if request.list_devices:
        from mcspex_cli.cli.pipes import list_devices

        headings = ("name", "number", "in", "out", "rate Hz")
        console.table(headings, [(name, number, *rest) for number, name, *rest in list_devices()])
        return
    if not request.references:
        raise click.UsageError("whose voice? Add --ref FILE.")
    if request.input_device is not None and request.channels > 1:
        raise click.UsageError("--channels is of raw samples; a sound card records mono here.")
    _run(request)


def _run(request: LiveRequest) -> None:
    """Check what can be checked, load the model, and work until the sound ends."""
    from mcspex_cli.cli import pipes
    from mcspex_cli.extraction.reference import list_sources

    references, raw = list_sources(request.references), None
    if request.rate_hz:
        raw = pipes.SoundFormat(request.rate_hz, request.channels, request.encoding)
    microphone, loudspeaker = None, None
    if request.input_device is not None:
        microphone = pipes.SoundCard(request.input_device, "input", request.rate_hz)
        form = pipes.SoundFormat(microphone.sample_rate_hz, 1, request.encoding)
    else:
        form, inflow = pipes.open_stdin(raw)
    form_out = replace(form, channels=1)
    if request.output_device is not None:
        loudspeaker = pipes.SoundCard(request.output_device, "output", form.sample_rate_hz)
    sink = loudspeaker or pipes.Stdout(form_out)
    if not request.quiet:
        mixed = ", which are mixed" if form.channels > 1 else ""
        console.say(f"in: {microphone or form}{mixed}; out: {loudspeaker or form_out}")
    extractor, voice = _load(request, references)
    extraction = extractor.live(
        voice,
        latency_s=request.latency_s,
        sample_rate_hz=form.sample_rate_hz,
        absent=request.absent,
    )
    interrupted = threading.Event()
    with ExitStack() as stack:
        if microphone is not None:
            stack.callback(microphone.close)
            inflow = microphone.record()
        if loudspeaker is not None:
            stack.callback(loudspeaker.close)
        skipped_s = 0.0 if request.from_start else inflow.skip_backlog()
        if not request.quiet:
            skipped = f"; skipped the {skipped_s:.1f} s that came before" if skipped_s else ""
            console.say(f"ready, {request.latency_s:g} s of latency{skipped}")

        def stop() -> None:
            interrupted.set()
            inflow.end()

        with console.ending_gently(stop), suppress(BrokenPipeError):
            _work(request, extraction, inflow, sink.write, extractor.engine.calibration)
    if interrupted.is_set():
        console.error("interrupted. All sound that had arrived before is done.")
        click.get_current_context().exit(130)


def _load(request: LiveRequest, references: list[Path]) -> tuple[Extractor, Voice]:
    """Load the model, enroll the voice, and compute once, as the first time takes longer."""
    import numpy as np

    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.job import check_presence
    from mcspex_cli.extraction.reference import check_sources
    from mcspex_cli.extraction.runtime import keep_memory

    info = find_model(request.model, offline=request.offline, quiet=request.quiet)
    check_presence(info, info.calibration, request.absent)
    check_sources(references, info)
    prepare(info, request.runtime, quiet=request.quiet)
    keep_memory()
    extractor = Extractor.load(
        info, device=request.device, precision=request.precision, runtime=request.runtime
    )
    voice = extractor.enroll(references)
    for line in voice.warnings:
        console.warn(line)
    trial = extractor.live(voice, latency_s=request.latency_s)
    trial.push(np.zeros(trial.timing.window, np.float32))
    trial.flush()
    return extractor, voice


def _work(
    request: LiveRequest,
    extraction: LiveExtractor,
    inflow: Inflow,
    write: Callable[[Samples], None],
    calibration: Calibration | None,
) -> None:
    """Push each block as it arrives, pass on what is due, and say what a person should know."""
    clock, present, samples, rate_hz = _Clock(), False, 0, extraction.sample_rate_hz
    warned = False
    for arrival, block in inflow:
        samples += block.shape[1]
        due = extraction.push(block)
        clock.tell(arrival, samples / rate_hz)
        clock.wait(write, due)
        warned = warned or _warn_of_mix(extraction)
        while inflow.warnings:
            console.warn(inflow.warnings.pop(0))
        presence = extraction.presence
        if request.verbose and calibration and presence is not None:
            is_present = presence >= calibration.segment_threshold
            if is_present != present:
                at_s = max(0.0, samples / rate_hz - request.latency_s)
                state = "comes" if is_present else "goes"
                console.say(f"{at_s:.1f} s: the voice {state} (presence {presence:.2f})")
            present = is_present
    write(extraction.flush())
    if not warned:
        _warn_of_mix(extraction)
    for line in inflow.warnings:
        console.warn(line)
    if extraction.limited:
        console.warn("parts of the voice were turned down so that they do not clip.")
    if not request.quiet and samples:
        factor = extraction.computed_s / (samples / rate_hz)
        console.say(f"{console.duration(samples / rate_hz)}, real-time factor {factor:.2f}")


def _warn_of_mix(extraction: LiveExtractor) -> bool:
    """Warn if channels cancel each other out, and tell whether they do."""
    if extraction.channels_cancel:
        console.warn(
            "the channels cancel each other out in the mix, or nearly so, so that little or "
            "nothing is heard. Send one of them alone."
        )
    return extraction.channels_cancel


class _Clock:
    """Tells when this machine is too slow for sound that arrives in real time.

    A sample is due when it arrives, or when it would have arrived in real time if it came sooner,
    from a file. The time that others take to receive our output does not count.
    """

    def __init__(self) -> None:
        self._ready = time.monotonic()
        self._start = -math.inf
        """When the sound began, or would have begun if it had always come as the latest did."""
        self._limit_s = _LATE_S

    def tell(self, arrival: float, seconds: float) -> None:
        """Warn if the sound up to `seconds`, which came at `arrival`, is done late."""
        self._start = max(self._start, max(arrival, self._ready) - seconds)
        late_s = time.monotonic() - self._start - seconds
        if late_s > self._limit_s:
            self._limit_s = 2 * late_s
            console.warn(
                f"this machine is too slow: it is {late_s:.1f} s behind. Nothing is lost, but the "
                "delay grows. Use a longer --latency, or a smaller model."
            )

    def wait(self, write: Callable[[Samples], None], samples: Samples) -> None:
        """Write, which may take as long as it likes."""
        before = time.monotonic()
        write(samples)
        self._start += time.monotonic() - before
