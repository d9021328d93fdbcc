"""Sound in and out of `mcspex live`: standard input and output, and sound cards.

What arrives is put into an `Inflow` by another thread, so that nothing is lost while a model is
loaded or the network computes.
"""

from __future__ import annotations

import io
import os
import queue
import re
import select
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli.cli import console
from mcspex_cli.errors import AudioError, McspexError, NonFiniteError, OutputError, install_extra

if TYPE_CHECKING:
    import soundfile

    from mcspex_cli.audio import Samples

    Arrival = tuple[float, Samples]
    """When a block arrived, by `time.monotonic`, and its samples [channel, sample]."""

    Write = Callable[[Samples], None]
    """Writes or plays samples [sample]."""

ENCODINGS = {"s16": "PCM_16", "s24": "PCM_24", "s32": "PCM_32", "u8": "PCM_U8", "f32": "FLOAT"}
"""The encodings of samples, all little-endian, with libsndfile's names for them. The number is the
bits of a sample."""

DEFAULT_ENCODING = "s16"

SPEED_ADVICE = "Use a longer --latency, or a smaller model."

_READ_BYTES = 2**14
_PIPE_BYTES = 512
"""A pipe that can be written to takes as many bytes without a wait, by POSIX."""

_LONGEST_WAIT_S, _STEP_S = 10.0, 0.1
"""How long a reader that takes nothing is waited for after an interruption, and in which steps."""

_MAX_WAITING_BLOCKS = 2**12
"""If this many blocks wait, a pipe is read no further, and recording from a sound card fails."""

_HELD_S, _SHORTEST_S = 0.1, 0.5
"""How long it takes to read what a pipe held, and the least in which a source shows its pace."""

_UNKNOWN_BYTES = 0x7FFFF000
"""A WAV header that announces this length or a larger one is a pipe's, whose length is unknown."""

_WAV_KINDS = {"u8": (1, 8), "s16": (1, 16), "s24": (1, 24), "s32": (1, 32), "f32": (3, 32)}
"""What a WAV header says of each encoding: whether samples are integers (1), and their bits."""

_CHUNK = re.compile(rb"\0*([ -~]{4}|ID3|[ -~]{0,3}\Z)")
"""How a chunk of a WAV begins, after zeros that fill the one before: with its name, if all of it is
there. Notes (ID3) may follow as well."""

_OTHER_FORMATS = (
    *(b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"FORM", b".snd", b"caff", b"riff", b"wvpk"),
    *(b"RIFX", b"RIFF", b"#!AMR", b"FLV\1", b"0&\xb2u", b"TTA1", b"MAC ", b"MPCK", b"MP+", b"NIST"),
    *(b"G@\0\x10", b"G@\x11\x10", b"\x1f\x8b\x08"),
)
"""How files begin that would be noise if they were taken for raw samples."""

_BARE_FRAME = re.compile(rb"\xff[\xe2\xe3\xf1-\xf5\xf9-\xfd]|\x0bw")
"""How MP3, AAC and AC-3 without a header begin; raw samples may do so, too."""


class ReaderStalled(OutputError):  # noqa: N818
    """The program that reads standard output has not read for long since an interruption."""

    exit_code = 130


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
    def frame_bytes(self) -> int:
        """The bytes of one sample of all channels."""
        return self.channels * int(self.encoding[1:]) // 8

    def decode(self, data: bytes) -> Samples:
        """Decode bytes of whole frames to [channel, sample]."""
        with self._open(io.BytesIO(data), "r") as file:
            samples: Samples = file.read(dtype="float32", always_2d=True).T
        return samples

    def encode(self, samples: Samples) -> bytes:
        """Encode samples [channel, sample] as bytes."""
        data = io.BytesIO()
        with self._open(data, "w") as file:
            file.write(samples.T)
        return data.getvalue()

    def _open(self, data: io.BytesIO, mode: str) -> soundfile.SoundFile:
        import soundfile

        subtype, shape = ENCODINGS[self.encoding], (self.sample_rate_hz, self.channels)
        return soundfile.SoundFile(data, mode, *shape, subtype, "LITTLE", "RAW")

    def header(self) -> bytes:
        """A WAV header for a stream whose length is not known; empty for raw samples."""
        if not self.wav:
            return b""
        (tag, bits), unknown = _WAV_KINDS[self.encoding], 0xFFFFFFFF
        size, rate_hz = self.frame_bytes, self.sample_rate_hz
        form = struct.pack("<HHIIHH", tag, self.channels, rate_hz, rate_hz * size, size, bits)
        begin = struct.pack("<4sI8sI", b"RIFF", unknown, b"WAVEfmt ", len(form))
        return begin + form + struct.pack("<4sI", b"data", unknown)


class Inflow:
    """Sound that another thread puts in as it arrives; iterate over it for each `Arrival`."""

    def __init__(self, name: str, form: SoundFormat) -> None:
        self.name, self.format = name, form
        self.arrived = 0
        """Samples per channel that were put in so far."""
        self._queue: queue.SimpleQueue[Arrival | McspexError | None] = queue.SimpleQueue()
        """Blocks and the end, which a signal handler may put in at any time."""
        self._first: list[Arrival | McspexError | None] = []
        """What `skip_backlog` took out of the queue and kept."""
        self._room = threading.Semaphore(_MAX_WAITING_BLOCKS)

    def put(self, block: Samples, *, waits: bool = True) -> None:
        """Add a block; if too many wait already, wait, or without `waits` end with an error."""
        import numpy as np

        from mcspex_cli.audio import LOUDEST

        if not (np.abs(block) <= LOUDEST).all():  # false for NaN, too
            at = f"at {self.arrived / self.format.sample_rate_hz:.1f} s. Check --format."
            self.end(NonFiniteError(f"{self.name}: NaN, infinite or impossibly loud samples {at}"))
        elif self._room.acquire(blocking=waits):
            self._queue.put((time.monotonic(), block))
            self.arrived += block.shape[1]
        else:
            slow = "this machine is too slow, and too much sound waits. " + SPEED_ADVICE
            self.end(AudioError(f"{self.name}: {slow}"))

    def end(self, error: McspexError | None = None) -> None:
        """End the sound after the blocks that wait, with an error or without; once is enough."""
        self._queue.put(error)

    def skip_backlog(self) -> float:
        """Drop what has arrived, if the source is live; return how many seconds that were.

        A source is live if its sound comes in real time, in the last second or since it began, for
        which this waits if that was just now. What a pipe held before it was read does not count.
        Nothing is dropped of a file, or of a program that writes all that it has and then waits.
        """
        blocks = self._take()
        if not blocks:
            return 0.0
        began = blocks[0][0] + _HELD_S
        time.sleep(max(0.0, began + _SHORTEST_S - time.monotonic()))
        blocks, now = self._take(), time.monotonic()
        seconds = [block.shape[1] / self.format.sample_rate_hz for _, block in blocks]
        since = max(began, now - 1.0)
        recent_s = [s for s, (at, _) in zip(seconds, blocks, strict=True) if at > since]
        if len(recent_s) < 2 or not 0.5 <= sum(recent_s) / (now - since) <= 1.5:
            return 0.0
        self._first = []
        self._room.release(len(blocks))
        return float(sum(seconds))

    def _take(self) -> list[Arrival]:
        """Take all that waits out of the queue, and keep it; no blocks mean silence or the end."""
        self._first += [self._queue.get() for _ in range(self._queue.qsize())]
        blocks = [item for item in self._first if isinstance(item, tuple)]
        return blocks if len(blocks) == len(self._first) else []

    def __iter__(self) -> Iterator[Arrival]:
        while True:
            try:
                # On Windows, Ctrl-C would not end a longer wait.
                item = self._first.pop(0) if self._first else self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, McspexError):
                raise item
            self._room.release()
            yield item


# --- standard input and output -------------------------------------------------------------------


def open_stdin(sample_rate_hz: int | None, channels: int | None, encoding: str | None) -> Inflow:
    """Begin to read standard input: WAV or, without a WAV header, raw samples of this format.

    Of raw samples the rate has to be known; by default they are mono, `DEFAULT_ENCODING`.

    Raises:
        AudioError: it has no sound that can be read live, or WAV of another format.
    """
    console.check_sound_input("Pipe sound into it, or use --input-device.")
    descriptor = sys.stdin.fileno()  # its buffer would be locked by a thread that waits for sound
    start = _read(descriptor, 12)
    if not start:
        raise AudioError("standard input is empty. Pipe sound into it.")
    if start[:4] in (b"RIFF", b"RF64", b"BW64") and start[8:] == b"WAVE":
        form = _read_wav_header(descriptor, is_long=start[:4] != b"RIFF")
        start = b""
        own = form.sample_rate_hz, form.channels, form.encoding
        options = sample_rate_hz or own[0], channels or own[1], encoding or own[2]
        if options != own:
            raise AudioError(
                f"standard input is WAV of {own[0]} Hz, {own[1]} ch, {own[2]}. "
                "Leave --rate, --channels and --format out."
            )
    else:
        is_other = start.startswith(_OTHER_FORMATS) or start[4:8] == b"ftyp"
        if is_other or sample_rate_hz is None:
            problem = "is a file of another kind" if is_other else "has no WAV header"
            raise AudioError(
                f"standard input {problem}. Pipe WAV, or raw samples with --rate: "
                "ffmpeg -i INPUT -f wav - | mcspex live ..."
            )
        if _BARE_FRAME.match(start):
            console.warn(
                "standard input begins like MP3, AAC or AC-3. If so, the output is noise: decode "
                "it first, with ffmpeg -i INPUT -f wav -"
            )
        form = SoundFormat(sample_rate_hz, channels or 1, encoding or DEFAULT_ENCODING)
    inflow = Inflow("standard input", form)
    arguments = (descriptor, start, inflow)
    threading.Thread(target=_pump, args=arguments, name="mcspex-stdin", daemon=True).start()
    return inflow


def _read_some(descriptor: int, most: int) -> bytes:
    try:
        return os.read(descriptor, most)
    except OSError as error:
        raise AudioError(f"standard input: cannot be read ({error.strerror}).") from error


def _read(descriptor: int, size: int) -> bytes:
    """Read `size` bytes, or all up to the end, and return the first of them."""
    data = b""
    while size and (more := _read_some(descriptor, min(size, _READ_BYTES))):
        data, size = (data + more)[:_READ_BYTES], size - len(more)
    return data


def _read_wav_header(descriptor: int, *, is_long: bool) -> SoundFormat:
    """Read the chunks of a WAV up to the first sample; one that `is_long` is an RF64 or a BW64."""
    from mcspex_cli.audio import HIGHEST_HZ, LOWEST_HZ, MOST_CHANNELS
    from mcspex_cli.containers import is_usual_wav

    broken = AudioError("standard input: its WAV header is broken. Pipe raw samples with --rate.")
    chunks: dict[bytes, bytes] = {}
    size = 0
    while b"data" not in chunks and len(head := _read(descriptor, 8)) == 8:
        name, size = struct.unpack("<4sI", head)
        chunks[name] = b"" if name == b"data" else _read(descriptor, size + size % 2)
    form = chunks.get(b"fmt ", b"")
    if len(form) < 16:
        raise broken
    tag, channels, rate_hz, bytes_per_s, frame_bytes, bits = struct.unpack("<HHIIHH", form[:16])
    is_usual = is_usual_wav(tag, channels, rate_hz, bytes_per_s, frame_bytes, bits)
    if tag == 0xFFFE:  # the tag proper comes later
        tag = int.from_bytes(form[24:26], "little")
    encoding = next((key for key, kind in _WAV_KINDS.items() if kind == (tag, bits)), None)
    is_possible = 1 <= channels <= MOST_CHANNELS and LOWEST_HZ <= rate_hz <= HIGHEST_HZ
    if encoding is None or not (is_possible and is_usual):
        raise AudioError(
            f"standard input: WAV of this kind (format {tag}, {bits} bits, {channels} channels in "
            f"{frame_bytes} bytes, {rate_hz} Hz) cannot be read live. Convert it to 16-bit PCM."
        )
    if b"data" not in chunks:
        raise broken
    if is_long and size == 0xFFFFFFFF:
        size = int.from_bytes(chunks.get(b"ds64", b"")[8:16], "little")
    elif not is_long and size >= _UNKNOWN_BYTES:
        size = 0
    return SoundFormat(rate_hz, channels, encoding, wav=True, data_bytes=size or None)


def _pump(descriptor: int, held: bytes, inflow: Inflow) -> None:
    """Read standard input to its end, and put what arrives into `inflow` at once."""
    form = inflow.format
    left = sys.maxsize if form.data_bytes is None else form.data_bytes
    try:
        while True:
            whole = len(held) - len(held) % form.frame_bytes
            if whole:
                inflow.put(form.decode(held[:whole]))
            data = _read_some(descriptor, min(_READ_BYTES, left))
            held, left = held[whole:] + data, left - len(data)
            if not data:
                break
        if form.data_bytes is not None and left:
            announced_s, missing_s = (
                size / form.frame_bytes / form.sample_rate_hz
                for size in (form.data_bytes, left + len(held))
            )
            console.warn(
                f"standard input was cut off: the last {missing_s:.2f} of the {announced_s:.2f} s "
                "that its WAV header announces are missing."
            )
        elif held:
            advice = "" if form.wav else " Check --format and --channels."
            console.warn(
                "standard input ended in the middle of a sample: "
                f"{console.count(len(held), 'byte')} left out.{advice}"
            )
        nothing = AudioError("standard input holds no samples. Pipe sound into it.")
        inflow.end(None if inflow.arrived else nothing)
        follows = b"" if left else _read_some(descriptor, _READ_BYTES)
        if b"WAVEfmt " in follows:
            console.warn(
                "standard input: another WAV follows the first and is not read. Pipe one alone."
            )
        elif not _CHUNK.match(follows):
            console.warn(
                "standard input: more follows than its WAV header announces, and is not read. If "
                "it is sound, correct the header, or pipe raw samples with --rate."
            )
    except AudioError as error:
        inflow.end(error)


@contextmanager
def stdout(
    form: SoundFormat, references: Iterable[Path], interrupted: threading.Event
) -> Iterator[Write]:
    """Give a function that writes samples to standard output at once.

    It raises a BrokenPipeError if the program that reads them has ended, and a ReaderStalled if
    that reads nothing for 10 s after `interrupted` was set. It is refused if the output is one of
    the `references`, or standard input.
    """
    console.check_sound_output(references, from_stdin=True)
    descriptor, header = sys.stdout.fileno(), form.header()

    def write(samples: Samples) -> None:
        nonlocal header
        data, header = memoryview(header + form.encode(samples[None])), b""
        try:
            while data:
                _wait_for_reader(descriptor, interrupted)
                data = data[os.write(descriptor, data[:_PIPE_BYTES]) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output: writing failed ({error.strerror}).") from error

    yield write


def _wait_for_reader(descriptor: int, interrupted: threading.Event) -> None:
    """Wait until `_PIPE_BYTES` can be written, for else an interrupt could not end the write."""
    if os.name != "posix":  # where only sockets can be waited for
        return
    waited_s = 0.0
    while not select.select([], [descriptor], [], _STEP_S)[1]:
        waited_s += _STEP_S if interrupted.is_set() else 0.0
        if waited_s > _LONGEST_WAIT_S:
            raise ReaderStalled("interrupted. The rest is lost: nothing reads standard output.")


# --- sound cards ---------------------------------------------------------------------------------


@contextmanager
def _sounddevice(device: int | str = "") -> Iterator[Any]:
    """The package that plays and records; its errors name the `device`."""
    try:
        import sounddevice
    except ImportError as error:
        advice = install_extra("live")
        raise McspexError(f"sound cards need the package sounddevice. {advice}") from error
    except OSError as error:
        raise McspexError(
            "sound cards need the library PortAudio (on Debian: apt install libportaudio2)."
        ) from error
    try:
        yield sounddevice
    except (ValueError, sounddevice.PortAudioError) as error:
        raise McspexError(
            f"sound card {device}: {error}. mcspex live --list-devices lists all."
        ) from error


def list_sound_cards() -> list[tuple[str, ...]]:
    """Every sound card: name, number, channels in and out, rate."""
    with _sounddevice() as library:
        devices = library.query_devices()
    if not len(devices):
        raise McspexError("there is no sound card. Use pipes instead: mcspex live --help")
    return [
        (
            *(device["name"], str(number)),
            *(str(device[f"max_{kind}_channels"]) for kind in ("input", "output")),
            f"{device['default_samplerate']:g}",
        )
        for number, device in enumerate(devices)
    ]


class SoundCard:
    """A sound card that records or plays one channel.

    Args:
        device: its number, or a part of its name.
        kind: "input" or "output".
        sample_rate_hz: None for the card's own.

    Raises:
        McspexError: there is no such card, or it cannot do this rate.
    """

    def __init__(self, device: str, kind: str, sample_rate_hz: int | None) -> None:
        self.device: int | str = int(device) if device.isdecimal() else device
        self._kind = kind
        with _sounddevice(device) as library:
            info = library.query_devices(self.device, kind)
            self.sample_rate_hz = sample_rate_hz or round(info["default_samplerate"])
            check = getattr(library, f"check_{kind}_settings")
            check(self.device, samplerate=self.sample_rate_hz, channels=1, dtype="float32")

    def start(self, **settings: Any) -> Any:
        """Start its stream, a context; one for output still plays all that it has at the end."""
        with _sounddevice(self.device) as library:
            shape = (self.sample_rate_hz, 0, self.device, 1, "float32")
            stream = getattr(library, f"{self._kind.title()}Stream")(*shape, **settings)
            stream.start()
            return stream


class Microphone(Inflow):
    """What a sound card records, from when it is iterated over; arguments as `SoundCard`."""

    def __init__(self, device: str, sample_rate_hz: int | None, encoding: str) -> None:
        self._card = SoundCard(device, "input", sample_rate_hz)
        super().__init__("the sound card", SoundFormat(self._card.sample_rate_hz, 1, encoding))

    def __iter__(self) -> Iterator[Arrival]:
        def take(block: Samples, _: int, __: object, status: Any) -> None:
            if status.input_overflow:
                console.warn("the sound card lost some sound: this machine was too busy.")
            self.put(block.T.copy(), waits=False)

        with self._card.start(callback=take):
            yield from super().__iter__()


@contextmanager
def loudspeaker(device: str, sample_rate_hz: int) -> Iterator[Write]:
    """Give a function that plays samples, and waits until the card takes them."""
    card = SoundCard(device, "output", sample_rate_hz)
    stream = None
    with ExitStack() as stack:

        def write(samples: Samples) -> None:
            nonlocal stream
            stream = stream or stack.enter_context(card.start())
            with _sounddevice(device):
                stream.write(samples[:, None])

        yield write
