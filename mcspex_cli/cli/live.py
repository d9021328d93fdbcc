"""`mcspex live`: raw samples or WAV through pipes, and sound cards."""

from __future__ import annotations

import io
import math
import os
import queue
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import choice, flag, option
from mcspex_cli.errors import (
    AudioError,
    McspexError,
    NonFiniteError,
    OutputError,
    install_extra,
)

if TYPE_CHECKING:
    from mcspex_cli import EngineSettings, Extractor, Voice
    from mcspex_cli.audio import Samples
    from mcspex_cli.extraction.streaming import LiveExtractor

ENCODINGS = {"s16": "PCM_16", "s24": "PCM_24", "s32": "PCM_32", "u8": "PCM_U8", "f32": "FLOAT"}
"""The encodings of raw samples, all little-endian, with libsndfile's names for them."""

_READ_BYTES = 2**14
_MAX_WAITING_BLOCKS = 2**12
"""If so many blocks wait, a pipe is read no further, and recording from a sound card fails."""

_UNKNOWN_BYTES = 0x7FFFF000
"""A WAV header that announces this length or a larger one is a pipe's, whose length is unknown."""

_OTHER_FORMATS = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"\x1aE\xdf\xa3": "Matroska"}

_LATE_S = 0.25
"""How late the output is when the first warning comes; another comes whenever that has doubled."""

_NEED = "needs sounddevice (in a checkout: pip install '.[live]')"
"""What the help says of options for sound cards."""

_SPEED_ADVICE = "Use a longer --latency, or a smaller model."


def _policies() -> dict[str, str]:
    from mcspex_cli.extraction.job import ABSENT

    return {row.name: row.help for row in ABSENT.values() if not row.fails}


@dataclass(frozen=True)
class LiveRequest:
    """The arguments of `mcspex live`."""

    references: tuple[Path, ...] = options.references()
    latency_s: float = option(
        "SECONDS",
        "How much later the voice comes out. A longer one sounds better and costs less.",
        "--latency",
        type=options.FiniteRange(0.1, 3.0),
        default=1.0,
    )
    absent: str = choice(_policies, "What to do while the voice is absent", default="keep")
    rate_hz: int | None = option(
        "HZ",
        "Sample rate of raw samples, or of the sound cards.  [default: a WAV's or a card's own]",
        "--rate",
        type=click.IntRange(1000, 1_000_000),
    )
    channels: int = option(
        "N",
        "Channels of raw samples; several are mixed to one.",
        type=click.IntRange(1, 1024),
        default=1,
    )
    encoding: str = choice(
        lambda: dict.fromkeys(ENCODINGS, ""),
        "Raw samples, little-endian",
        "--format",
        default="s16",
    )
    from_start: bool = flag(
        "Also use what arrives while the model is loaded; the delay is longer by that."
    )
    input_device: str | None = option(
        "N|NAME", f"Record from this sound card instead of standard input; {_NEED}."
    )
    output_device: str | None = option(
        "N|NAME",
        f"Play on this sound card instead of writing to standard output; {_NEED}.",
    )
    list_devices: bool = flag("List the sound cards, and end.")
    model: str | None = options.MODEL
    offline: bool = options.OFFLINE
    engine_settings: EngineSettings = options.ENGINE
    quiet: bool = options.QUIET
    verbose: bool = flag("Say when the voice comes and goes.", "-v", "--verbose")


@options.command()
def live(request: LiveRequest = options.group(LiveRequest)) -> None:
    """Extract one person's voice from sound that is still arriving.

    Reads WAV or raw samples from standard input and writes the same kind, mono, to standard
    output; or uses sound cards.

    \b
    arecord -f S16_LE -r 16000 -t raw | mcspex live --ref alice.wav --rate 16000 |
        aplay -f S16_LE -r 16000 -t raw
    mcspex live --ref alice.wav --input-device 1 --output-device 4
    """  # noqa: D301 (click needs the character itself)
    if request.list_devices:
        console.table(("name", "number", "in", "out", "rate Hz"), _list_devices())
        return
    if not request.references:
        raise click.UsageError("whose voice? Add --ref FILE.")
    if request.input_device is not None and request.channels > 1:
        raise click.UsageError("--channels is of raw samples; a sound card records mono here.")
    from mcspex_cli.extraction.reference import list_sources

    references, raw = list_sources(request.references), None
    if request.rate_hz:
        raw = SoundFormat(request.rate_hz, request.channels, request.encoding)
    if request.input_device is None:
        microphone, (format_in, inflow) = None, _open_stdin(raw)
    else:
        microphone = SoundCard(request.input_device, "input", request.rate_hz)
        format_in = SoundFormat(microphone.sample_rate_hz, 1, request.encoding)
        inflow = Inflow("the sound card", microphone.sample_rate_hz)
    format_out = replace(format_in, channels=1)
    loudspeaker = None
    if request.output_device is not None:
        loudspeaker = SoundCard(request.output_device, "output", format_in.sample_rate_hz)
    write = loudspeaker.write if loudspeaker else _stdout_writer(format_out)
    if not request.quiet:
        mixed = ", which are mixed" if format_in.channels > 1 else ""
        console.say(f"in: {microphone or format_in}{mixed}; out: {loudspeaker or format_out}")
    extractor, voice = _load(request, references)
    extraction = extractor.live(
        voice,
        latency_s=request.latency_s,
        sample_rate_hz=format_in.sample_rate_hz,
        absent=request.absent,
    )
    interrupted = threading.Event()
    with ExitStack() as stack:
        if microphone is not None:
            stack.callback(microphone.close)
            microphone.record(inflow)
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
            calibration = extractor.engine.calibration
            threshold = calibration.segment_threshold if calibration else None
            _work(request, extraction, inflow, write, threshold)
    if interrupted.is_set():
        console.error("interrupted. All sound that had arrived before is done.")
        click.get_current_context().exit(130)


def _load(request: LiveRequest, references: list[Path]) -> tuple[Extractor, Voice]:
    """Load the model, enroll the voice, and compute once, as the first time takes longer."""
    import numpy as np

    from mcspex_cli import Extractor
    from mcspex_cli.extraction.job import check_calibrated
    from mcspex_cli.extraction.reference import check_sources

    info = options.find_model(request.model, offline=request.offline, quiet=request.quiet)
    check_calibrated(info, info.calibration, request.absent)
    check_sources(references, info)
    engine = options.start_engine(info, request.engine_settings, math.inf, quiet=request.quiet)
    extractor = Extractor(info, engine)
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
    threshold: float | None,
) -> None:
    """Push each block as it arrives, write what is due, and show messages and warnings."""
    clock, samples, rate_hz = _Clock(), 0, extraction.sample_rate_hz
    present = mix_told = False

    def warn() -> None:
        nonlocal mix_told
        while inflow.warnings:
            console.warn(inflow.warnings.pop(0))
        if extraction.channels_cancel and not mix_told:
            mix_told = True
            console.warn(
                "the channels cancel each other out in the mix, or nearly so, so that little or "
                "nothing is heard. Send one of them alone."
            )

    for arrival, block in inflow:
        samples += block.shape[1]
        due = extraction.push(block)
        clock.check(arrival, samples / rate_hz)
        clock.pause(write, due)
        warn()
        presence = extraction.presence
        if request.verbose and threshold is not None and presence is not None:
            was_present, present = present, presence >= threshold
            if present != was_present:
                at_s = max(0.0, samples / rate_hz - request.latency_s)
                state = "comes" if present else "goes"
                console.say(f"{at_s:.1f} s: the voice {state} (presence {presence:.2f})")
    write(extraction.flush())
    warn()
    if extraction.limited:
        console.warn("parts of the voice were turned down so that they do not clip.")
    if not request.quiet and samples:
        factor = extraction.computed_s / (samples / rate_hz)
        console.say(f"{console.duration(samples / rate_hz)}, real-time factor {factor:.2f}")


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
                f"delay grows. {_SPEED_ADVICE}"
            )

    def pause(self, write: Callable[[Samples], None], samples: Samples) -> None:
        """Write samples, and do not count the time that it takes."""
        before = time.monotonic()
        write(samples)
        self._start += time.monotonic() - before


@dataclass(frozen=True)
class SoundFormat:
    """The format of a stream of sound."""

    sample_rate_hz: int
    channels: int
    encoding: str
    """One of `ENCODINGS`."""
    wav: bool = False
    """Whether a WAV header comes first."""
    data_bytes: int | None = None
    """How many bytes of sound there are; None if that is not known."""

    @property
    def bits(self) -> int:
        """The bits of one sample of one channel."""
        return int(self.encoding[1:])

    @property
    def frame_bytes(self) -> int:
        """The bytes of one sample of all channels."""
        return self.channels * self.bits // 8

    def __str__(self) -> str:
        channels = "mono" if self.channels == 1 else f"{self.channels} channels"
        form = "WAV" if self.wav else "raw"
        return f"{form} {self.encoding}, {self.sample_rate_hz} Hz, {channels}"

    def decode(self, data: bytes) -> Samples:
        """Decode bytes of whole frames to [channel, sample]."""
        import soundfile

        shape = {"samplerate": self.sample_rate_hz, "channels": self.channels}
        raw = {"format": "RAW", "subtype": ENCODINGS[self.encoding], "endian": "LITTLE"}
        block, _ = soundfile.read(io.BytesIO(data), always_2d=True, dtype="float32", **shape, **raw)
        samples: Samples = block.T
        return samples

    def encode(self, samples: Samples) -> bytes:
        """Encode samples [sample] as bytes."""
        import soundfile

        out = io.BytesIO()
        subtype = ENCODINGS[self.encoding]
        soundfile.write(out, samples, self.sample_rate_hz, subtype, "LITTLE", "RAW")
        return out.getvalue()

    def header(self) -> bytes:
        """A WAV header for a stream whose length is not known; empty for raw samples."""
        if not self.wav:
            return b""
        rate_hz, unknown = self.sample_rate_hz, 0xFFFFFFFF
        tag = 3 if self.encoding == "f32" else 1
        sizes = (rate_hz, rate_hz * self.frame_bytes, self.frame_bytes, self.bits)
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, self.channels, *sizes)
        return (
            struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE")
            + form
            + struct.pack("<4sI", b"data", unknown)
        )


class Inflow:
    """Sound that another thread puts in as it arrives; iterate over it for its blocks.

    Yields:
        Each block [channel, sample] with the time, of `time.monotonic`, at which it arrived.
    """

    def __init__(self, name: str, sample_rate_hz: int) -> None:
        self.name, self.sample_rate_hz = name, sample_rate_hz
        self._queue: queue.Queue[tuple[float, Samples]] = queue.Queue(_MAX_WAITING_BLOCKS)
        self._ended = threading.Event()
        self._error: McspexError | None = None
        self.arrived = 0
        """Samples per channel that were put in so far."""
        self.warnings: list[str] = []
        """What is wrong with it, and has not been shown yet."""

    def put(self, block: Samples, *, waits: bool = True) -> None:
        """Add a block; if too many wait already, wait, or without `waits` end with an error."""
        import numpy as np

        if not np.isfinite(block).all():
            at_s = self.arrived / self.sample_rate_hz
            self.end(NonFiniteError(f"{self.name}: NaN or infinite samples at {at_s:.1f} s."))
        self.arrived += block.shape[1]
        while not self._ended.is_set():
            try:
                self._queue.put((time.monotonic(), block), timeout=0.1 if waits else 0)
                return
            except queue.Full:
                if not waits:
                    slow = "this machine is too slow, and too much sound waits. " + _SPEED_ADVICE
                    self.end(AudioError(f"{self.name}: {slow}"))

    def end(self, error: McspexError | None = None) -> None:
        """Take no more blocks. Those that wait are still given; then the error is raised."""
        self._error = self._error or error
        self._ended.set()

    def skip_backlog(self) -> float:
        """Drop what has arrived, if the source is live; return how many seconds that were.

        A source is live if a second of sound arrived in the last second. Nothing is dropped of a
        file, or of a program that writes all that it has and then waits.
        """
        now = time.monotonic()
        with self._queue.mutex:
            waiting = list(self._queue.queue)
            recent = [len(block[0]) for at, block in waiting if at > now - 1.0]
            seconds = sum(len(block[0]) for _, block in waiting) / self.sample_rate_hz
            is_live = 0.5 <= sum(recent) / self.sample_rate_hz <= 1.5 and len(recent) > 1
            if not is_live or self._ended.is_set():
                return 0.0
            self._queue.queue.clear()
            self._queue.not_full.notify_all()
        return seconds

    def __iter__(self) -> Iterator[tuple[float, Samples]]:
        while not (self._ended.is_set() and self._queue.empty()):
            try:
                yield self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        if self._error:
            raise self._error


def _open_stdin(raw: SoundFormat | None) -> tuple[SoundFormat, Inflow]:
    """Begin to read standard input: WAV or, without a WAV header, samples in the format `raw`."""
    console.check_sound_input("Pipe sound into it, or use --input-device.")
    descriptor = sys.stdin.fileno()  # its buffer would be locked by a thread that waits for sound
    start = _read(descriptor, 4)
    if not start:
        raise AudioError("standard input is empty. Pipe sound into it.")
    if start in (b"RIFF", b"RF64"):
        form, start = _read_wav_header(descriptor, start), b""
        if raw and raw.sample_rate_hz != form.sample_rate_hz:
            raise AudioError(
                f"standard input is WAV of {form.sample_rate_hz} Hz, not {raw.sample_rate_hz} Hz. "
                "Leave --rate out."
            )
    else:
        kind = next((k for magic, k in _OTHER_FORMATS.items() if start.startswith(magic)), None)
        if kind or raw is None:
            what = f"is {kind}" if kind else "has no WAV header"
            raise AudioError(
                f"standard input {what}. Pipe WAV, or raw samples with --rate: "
                "ffmpeg -i INPUT -f wav - | mcspex live ..."
            )
        form = raw
    inflow = Inflow("standard input", form.sample_rate_hz)
    threading.Thread(
        target=_pump, args=(descriptor, start, form, inflow), name="mcspex-stdin", daemon=True
    ).start()
    return form, inflow


def _pump(descriptor: int, held: bytes, form: SoundFormat, inflow: Inflow) -> None:
    """Read standard input to its end, and put what arrives into `inflow` at once."""
    left = sys.maxsize if form.data_bytes is None else form.data_bytes
    try:
        while True:
            whole = len(held) - len(held) % form.frame_bytes
            if whole:
                inflow.put(form.decode(held[:whole]))
            held = held[whole:]
            data = os.read(descriptor, min(_READ_BYTES, left))
            if not data:
                break
            left -= len(data)
            held += data
        if form.data_bytes is not None and left:
            announced_s = form.data_bytes / form.frame_bytes / form.sample_rate_hz
            missing_s = left / form.frame_bytes / form.sample_rate_hz
            inflow.warnings.append(
                f"standard input was cut off: the last {missing_s:.2f} of the {announced_s:.2f} s "
                "that its WAV header announces are missing."
            )
        if held:
            inflow.warnings.append(
                f"standard input ended in the middle of a sample: {len(held)} bytes are left out. "
                "Check --format and --channels."
            )
        nothing = AudioError("standard input holds no samples. Pipe sound into it.")
        inflow.end(None if inflow.arrived else nothing)
        if not left and b"WAVEfmt " in os.read(descriptor, _READ_BYTES):
            inflow.warnings.append(
                "standard input: another WAV follows the first and is not read. Pipe one alone."
            )
    except OSError as error:
        inflow.end(AudioError(f"standard input: cannot be read ({error.strerror})."))


def _read(descriptor: int, size: int) -> bytes:
    """Bytes from standard input: `size` of them, or fewer at its end."""
    data = b""
    try:
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
    except OSError as error:
        raise AudioError(f"standard input: cannot be read ({error.strerror}).") from error
    return data


def _read_wav_header(descriptor: int, start: bytes) -> SoundFormat:
    """Read a WAV header, up to the first sample."""
    from mcspex_cli.audio import HIGHEST_HZ, LOWEST_HZ, MOST_CHANNELS

    broken = AudioError("standard input: its WAV header is broken. Pipe raw samples with --rate.")
    _read(descriptor, 8)
    form: tuple[int, int, str] | None = None
    long_bytes = None
    while len(head := _read(descriptor, 8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            if form is None:
                break
            size = long_bytes if start == b"RF64" and size == 0xFFFFFFFF else size
            known = size and (start == b"RF64" or size < _UNKNOWN_BYTES)
            return SoundFormat(*form, wav=True, data_bytes=size if known else None)
        left = size + size % 2
        body = _read(descriptor, min(left, _READ_BYTES))
        for at in range(_READ_BYTES, left, _READ_BYTES):  # the rest of a long chunk
            _read(descriptor, min(_READ_BYTES, left - at))
        if name == b"ds64" and len(body) >= 16:
            (long_bytes,) = struct.unpack("<8xQ", body[:16])
        if name == b"fmt " and len(body) >= 16:
            tag, channels, rate_hz, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if tag == 0xFFFE and len(body) >= 26:
                (tag,) = struct.unpack("<H", body[24:26])
            kinds = {(1, 8): "u8", (1, 16): "s16", (1, 24): "s24", (1, 32): "s32", (3, 32): "f32"}
            is_possible = 1 <= channels <= MOST_CHANNELS and LOWEST_HZ <= rate_hz <= HIGHEST_HZ
            if (tag, bits) not in kinds or not is_possible:
                raise AudioError(
                    f"standard input: WAV of this kind (format {tag}, {bits} bits, {channels} "
                    f"channels, {rate_hz} Hz) cannot be read live. Convert it to 16-bit PCM."
                )
            form = (rate_hz, channels, kinds[tag, bits])
    raise broken


def _stdout_writer(form: SoundFormat) -> Callable[[Samples], None]:
    """Return a function that writes samples [sample] to standard output at once.

    It raises a BrokenPipeError if the program that reads them has ended.
    """
    console.check_sound_output()
    descriptor, header = sys.stdout.fileno(), form.header()

    def write(samples: Samples) -> None:
        nonlocal header
        data = memoryview(header + form.encode(samples))
        header = b""
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output: writing failed ({error.strerror}).") from error

    return write


def _load_sounddevice() -> Any:
    """Import the package that plays and records."""
    try:
        import sounddevice
    except ImportError as error:
        advice = install_extra("live")
        raise McspexError(f"sound cards need the package sounddevice. {advice}") from error
    except OSError as error:
        raise McspexError(
            "sound cards need the library PortAudio (on Debian: apt install libportaudio2)."
        ) from error
    return sounddevice


def _list_devices() -> Iterator[tuple[str, ...]]:
    """Every sound card: name, number, channels in and out, rate."""
    devices = _load_sounddevice().query_devices()
    if not len(devices):
        raise McspexError("there is no sound card. Use pipes instead: mcspex live --help")
    for number, device in enumerate(devices):
        channels = (str(device[f"max_{kind}_channels"]) for kind in ("input", "output"))
        yield (device["name"], str(number), *channels, f"{device['default_samplerate']:g}")


class SoundCard:
    """A sound card that records, or plays.

    Args:
        device: its number, or a part of its name.
        kind: "input" or "output".
        sample_rate_hz: None for the card's own.

    Raises:
        McspexError: there is no such card, or it cannot do this rate.
    """

    def __init__(self, device: str, kind: str, sample_rate_hz: int | None) -> None:
        self._library = _load_sounddevice()
        self._stream: Any = None
        self.device: int | str = int(device) if device.isdecimal() else device
        with _card_errors(device):
            info = self._library.query_devices(self.device, kind)
            self.sample_rate_hz = sample_rate_hz or round(info["default_samplerate"])
            check = getattr(self._library, f"check_{kind}_settings")
            check(self.device, samplerate=self.sample_rate_hz, channels=1, dtype="float32")

    def __str__(self) -> str:
        return f"sound card {self.device}, {self.sample_rate_hz} Hz, mono"

    def _start(self, kind: Callable[..., Any], **options: Any) -> None:
        with _card_errors(self.device):
            self._stream = kind(self.sample_rate_hz, 0, self.device, 1, "float32", **options)
            self._stream.start()

    def record(self, inflow: Inflow) -> None:
        """Begin to record."""

        def take(block: Samples, _: int, __: object, status: Any) -> None:
            if status.input_overflow:
                inflow.warnings.append("the sound card lost some sound: this machine was too busy.")
            inflow.put(block.T.copy(), waits=False)

        self._start(self._library.InputStream, callback=take)

    def write(self, samples: Samples) -> None:
        """Play samples [sample]; waits until the card takes them."""
        if self._stream is None:
            self._start(self._library.OutputStream)
        with _card_errors(self.device):
            self._stream.write(samples[:, None])

    def close(self) -> None:
        """Play what is left, and give the card back."""
        if self._stream is not None:
            self._stream.stop()
            self._stream.close()


@contextmanager
def _card_errors(device: int | str) -> Iterator[None]:
    """Turn PortAudio's errors into `McspexError`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, ValueError) and type(error).__name__ != "PortAudioError":
            raise
        raise McspexError(
            f"sound card {device}: {error}. mcspex live --list-devices lists all."
        ) from error
