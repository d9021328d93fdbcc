"""`mcspex live` between real pipes: raw samples and WAV, live sources, ends and errors."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mcspex_cli import Extractor, audio
from mcspex_cli.__main__ import main
from mcspex_cli.cli import live_audio
from mcspex_cli.cli.live_audio import Inflow, SoundFormat
from mcspex_cli.errors import install_extra
from tests.conftest import RATE_HZ, ROOT, buzz
from tests.test_live import blocks

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")

MIXTURE = buzz(110, 3, 1) + buzz(190, 3, 2)
PCM_16 = np.round(32767 * MIXTURE).astype("<i2").tobytes()


Run = Callable[..., tuple[bytes, str, int]]


@pytest.fixture
def options(exported: Path, scene: Path) -> list[str]:
    """A tiny model that is quickly loaded, and a reference."""
    model = ["--device", "cpu", "--precision", "float32", "--model", str(exported)]
    return [*model, "--ref", str(scene / "reference.wav")]


@pytest.fixture
def run(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run the command in this process, between a real pipe and a real file."""

    def run(
        *more: str, data: bytes = b"", stdin: int | None = None, stdout: str = ""
    ) -> tuple[bytes, str, int]:
        ours, theirs = os.pipe()
        feeder = threading.Thread(target=lambda: (os.write(theirs, data), os.close(theirs)))
        feeder.start()
        path = Path(stdout) if stdout else tmp_path / "stdout"
        with (
            os.fdopen(os.dup(ours if stdin is None else stdin)) as source,
            path.open("w") as out,
            monkeypatch.context() as patch,
            pytest.raises(SystemExit) as end,
        ):
            patch.setattr(sys, "stdin", source)
            patch.setattr(sys, "stdout", out)
            main(["live", *options, *more])
        written = b"" if stdout else path.read_bytes()
        os.close(ours)
        feeder.join()
        return written, capsys.readouterr().err, end.value.code

    return run


def expected(options: list[str], mixture: audio.Samples) -> audio.Samples:
    """What Python makes of the mixture, at the default latency."""
    extractor = Extractor.load(options[5], device="cpu", precision="float32")
    live = extractor.live(extractor.enroll(options[7]))
    return np.concatenate([live.push(mixture), live.flush()])


@pytest.mark.parametrize(
    ("subtype", "encoding"), [("PCM_16", "s16"), ("PCM_24", "s24"), ("FLOAT", "f32")]
)
def test_samples_come_out_as_they_went_in(
    run: Run, options: list[str], subtype: str, encoding: str
) -> None:
    stereo = np.stack([1.2 * MIXTURE, 0.8 * MIXTURE])[:, :12_000]
    raw, wav = io.BytesIO(), io.BytesIO()
    soundfile.write(raw, stereo.T, RATE_HZ, subtype, "LITTLE", "RAW")
    soundfile.write(wav, stereo.T, RATE_HZ, subtype, format="WAV")
    form = ("--rate", "8000", "--channels", "2", "--format", encoding)
    from_raw, said, code = run(*form, data=raw.getvalue())
    first, second, last = said.splitlines()
    assert code == 0
    assert first == (
        f"in: raw {encoding}, 8000 Hz, 2 channels, which are mixed; "
        f"out: raw {encoding}, 8000 Hz, mono"
    )
    assert second == "ready, 1 s of latency"
    assert re.fullmatch(r"1\.5 s, real-time factor \d\.\d\d", last)
    from_wav, said, code = run("-q", data=wav.getvalue() + b"LIST\4\0\0\0more")
    assert (said, code) == ("", 0)
    assert from_wav[44:] == from_raw
    with soundfile.SoundFile(io.BytesIO(from_wav)) as file:
        assert (file.samplerate, file.channels, file.subtype) == (RATE_HZ, 1, subtype)
    raw_format = {"samplerate": RATE_HZ, "channels": 1, "format": "RAW", "endian": "LITTLE"}
    estimate, _ = soundfile.read(io.BytesIO(from_raw), subtype=subtype, **raw_format)
    np.testing.assert_allclose(estimate, expected(options, MIXTURE[:12_000]), atol=1e-4)


def test_wav_of_unknown_length_is_read_and_written(run: Run, tmp_path: Path) -> None:
    wav, path = io.BytesIO(), tmp_path / "live.wav"
    soundfile.write(wav, MIXTURE, RATE_HZ, "PCM_16", format="WAV")
    data = wav.getvalue()
    path.write_bytes(run(data=data[:40] + b"\xff\xff\xff\xff" + data[44:])[0])
    assert audio.read(path, RATE_HZ).shape == MIXTURE.shape


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_wav_of_a_broadcaster_is_read(run: Run, magic: bytes) -> None:
    wav = io.BytesIO()
    soundfile.write(wav, MIXTURE, RATE_HZ, "PCM_16", format="RF64")
    data = wav.getvalue()
    assert run("-q", data=magic + data[4:]) == run("-q", data=data)
    assert len(run("-q", data=magic + data[4:])[0]) == 44 + 2 * len(MIXTURE)


class Conversation:
    """A process whose input and output go on at the same time."""

    def __init__(self, options: Sequence[str]) -> None:
        words = [sys.executable, "-W", "error", "-m", "mcspex_cli", "live", "--rate", "8000"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*words, *options], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._stdin, self._stdout = self.process.stdin, self.process.stdout.fileno()
        self._stderr = self.process.stderr
        self.arrivals: list[tuple[float, int]] = []
        """When output came, and up to which sample."""
        self.lines: list[str] = []
        self._threads = [threading.Thread(target=one) for one in (self._listen, self._read)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        while data := os.read(self._stdout, 65536):
            self.arrivals.append((time.monotonic(), self.received() + len(data) // 2))

    def _read(self) -> None:
        for line in self._stderr:
            self.lines.append(line.decode().strip())

    def is_ready(self) -> bool:
        return any(line.startswith("ready") for line in self.lines)

    def send(self, samples: audio.Samples) -> None:
        self._stdin.write(np.round(32767 * samples).astype("<i2").tobytes())
        self._stdin.flush()

    def received(self) -> int:
        return self.arrivals[-1][1] if self.arrivals else 0

    def end(self) -> int:
        """The exit code, once everything has come."""
        with self.process:
            self._stdin.close()
            for thread in self._threads:
                thread.join()
        return self.process.returncode

    def converse(self) -> list[float]:
        """Send silence until it is ready, then the mixture, as a sound card would; when, each."""
        began = time.monotonic()
        sent: list[float] = []

        def send_in_time(block: audio.Samples) -> None:
            time.sleep(max(0.0, began + 160 * len(sent) / RATE_HZ - time.monotonic()))
            self.send(block)
            sent.append(time.monotonic())

        while not self.is_ready() or len(sent) < 75:
            send_in_time(np.zeros(160, np.float32))
        for block in blocks(MIXTURE, 160):
            send_in_time(block)
        assert self.end() == 0
        return sent


def test_the_latency_holds_for_pipes(options: list[str]) -> None:
    for _ in range(3):  # a busy machine may hold up either side
        talk = Conversation([*options, "--latency", "0.5"])
        sent = talk.converse()
        skipped = 160 * len(sent) - talk.received()
        live = [(at, (skipped + done) // 160) for at, done in talk.arrivals]
        last = range(len(sent) - 130, len(sent) - 30)
        delay_s = np.median([at - sent[block] for at, block in live if block in last])
        is_slow = any("too slow" in line for line in talk.lines)
        if skipped and not is_slow and abs(delay_s - 0.5) < 0.15:
            break
    ready = f"ready, 0.5 s of latency; skipped the {skipped / RATE_HZ:.1f} s that came before"
    assert ready in talk.lines
    assert delay_s == pytest.approx(0.5, abs=0.15)
    assert not is_slow


@pytest.mark.parametrize(
    ("held_s", "blocks_s", "after_s", "ends", "skipped_s"),
    [
        (3.0, 20 * [0.05], 0.05, False, pytest.approx(3.7, abs=0.3)),
        (0.0, 20 * [0.05], 0.05, False, pytest.approx(0.7, abs=0.3)),
        (3.0, 20 * [0.05], 1.2, True, 0.0),
        (3.0, 20 * [1.0], 0.05, False, 0.0),
        (3.0, [], 0.05, False, 0.0),
    ],
    ids=["a live source", "one that has begun", "it ends", "a fast program", "one that waits"],
)
def test_what_a_live_source_sent_before_is_skipped(
    held_s: float, blocks_s: list[float], after_s: float, ends: bool, skipped_s: Any
) -> None:
    inflow = Inflow("a pipe", SoundFormat(RATE_HZ, 1, "s16"))

    def send() -> None:
        inflow.put(np.zeros((1, int(held_s * RATE_HZ) + 6), np.float32))
        for seconds in blocks_s:
            time.sleep(0.05)
            inflow.put(np.zeros((1, int(seconds * RATE_HZ)), np.float32))
        if ends:
            inflow.end()

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(after_s)
    assert inflow.skip_backlog() == skipped_s
    sender.join()


@posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_gives_what_had_arrived(options: list[str], number: str) -> None:
    talk = Conversation(options)
    talk.send(MIXTURE)
    while talk.received() < len(MIXTURE) - 8000:
        time.sleep(0.02)
    talk.process.send_signal(getattr(signal, number))
    assert talk.process.wait(60) == 130
    assert talk.end() == 130
    assert talk.received() == len(MIXTURE)
    assert talk.lines[-1] == "error: interrupted. All sound that had arrived before is done."


@posix
def test_an_interrupt_while_the_model_loads_gives_what_had_arrived(
    options: list[str], tiny_folder: Path
) -> None:
    options[5] = str(tiny_folder)
    talk = Conversation([*options, "--from-start"])
    talk.send(MIXTURE)
    while not talk.lines:
        time.sleep(0.02)
    time.sleep(0.3)  # torch is imported meanwhile, which takes longer
    talk.process.send_signal(signal.SIGINT)
    assert talk.end() == 130
    assert talk.received() == len(MIXTURE)
    assert talk.lines[-1] == "error: interrupted. All sound that had arrived before is done."


@posix
def test_a_reader_that_takes_nothing_is_not_waited_for_after_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_audio, "_LONGEST_WAIT_S", 0.5)
    (ours, theirs), interrupted = os.pipe(), threading.Event()
    with os.fdopen(ours), os.fdopen(theirs, "w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        with live_audio.stdout(SoundFormat(RATE_HZ, 1, "s16"), [], interrupted) as write:
            write(MIXTURE)
            timer = threading.Timer(1.0, interrupted.set)
            timer.start()
            with pytest.raises(live_audio.ReaderStalled):
                write(np.zeros(2**17, np.float32))
            assert interrupted.is_set()


@posix
@pytest.mark.parametrize("numbers", [("SIGINT", "SIGTERM"), ("SIGHUP", "SIGHUP")])
def test_a_second_signal_of_any_kind_ends_it_at_once(
    options: list[str], numbers: tuple[str, ...]
) -> None:
    words = [sys.executable, "-W", "error", "-m", "mcspex_cli", "live", "--rate", "8000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*words, *options], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe
    ) as one:
        assert one.stdin and one.stderr
        one.stdin.write(PCM_16)
        while not one.stderr.readline().startswith(b"ready"):
            pass
        one.stdin.write(3 * PCM_16)  # more than a pipe that nobody reads takes
        time.sleep(1)
        for number in numbers:
            one.send_signal(getattr(signal, number))
            time.sleep(0.3)
        assert one.wait(5) == 130


@posix
def test_a_reader_that_has_gone_ends_it_quietly(options: list[str]) -> None:
    words = [sys.executable, "-W", "error", "-m", "mcspex_cli", "live", *options]
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*words, "--rate", "8000", "-q"], input=PCM_16, stdout=theirs, stderr=subprocess.PIPE,
        cwd=ROOT, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_machine_that_is_too_slow_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from mcspex_cli.cli.live import _Clock

    clock, began = _Clock(), time.monotonic()
    for pause_s in (0.0, 0.3, 0.0, 0.9):
        time.sleep(pause_s)
        clock.check(began, 1.0)
        with clock.paused():  # does not count
            time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line, late_s in zip(lines, (0.3, 1.2), strict=True):
        told = re.fullmatch(
            r"warning: this machine is too slow: it is (\d\.\d) s behind\. Nothing is lost, but "
            r"the delay grows\. Use a longer --latency, or a smaller model\.",
            line,
        )
        assert told
        assert float(told[1]) == pytest.approx(late_s, abs=0.25)


STDIN_ERRORS = [
    (b"", [], "is empty. Pipe sound into it."),
    (PCM_16, [], "has no WAV header. Pipe WAV, or raw samples with --rate: ffmpeg -i INPUT"),
    *(
        (start + PCM_16, ["--rate", "8000"], "is a file of another kind. Pipe WAV, or raw samples")
        for start in (
            *(b"fLaC", b"ID3\4", b"\0\0\0 ftyp", b"RIFX....WAVE", b"RIFF....AVI "),
            *(b"#!AMR\n", b"\x1f\x8b\x08\0", b"G@\x11\x10"),
        )
    ),
    (
        SoundFormat(8000, 1, "s16", wav=True).header(),
        ["-q"],
        "holds no samples. Pipe sound into it.",
    ),
    (b"RIFF\0\0\0\0WAVE", [], ": its WAV header is broken. Pipe raw samples with --rate."),
    (
        struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 9, b"WAVE", b"fmt ", 16, 6, 1, 8000, 8000, 1, 8),
        [],
        ": WAV of this kind (format 6, 8 bits, 1 channels in 1 bytes, 8000 Hz) cannot be read",
    ),
    *(
        (
            struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 9, b"WAVE", b"fmt ", 16, 1, *form),
            [],
            f": WAV of this kind (format 1, {form[4]} bits, {form[0]} channels in {form[3]} bytes,",
        )
        for form in (
            *((1, 2_000_000, 9, 2, 16), (2000, 8000, 9, 4000, 16), (1, 8000, 32_000, 4, 16)),
            *((1, 8000, 16_000, 2, 24), (1, 8000, 24_000, 4, 24)),
        )
    ),
]


@pytest.mark.parametrize(("data", "form", "message"), STDIN_ERRORS)
def test_what_is_no_sound_is_refused(run: Run, data: bytes, form: list[str], message: str) -> None:
    out, said, code = run(*form, data=data)
    assert (out, code) == (b"", 1)
    assert said.startswith(f"error: standard input{'' if message[0] == ':' else ' '}{message}")
    assert said.count("\n") == 1


def test_sound_that_is_damaged_is_told(run: Run) -> None:
    out, said, code = run("--rate", "8000", data=PCM_16[:8000] + b"\0")
    assert (len(out), code) == (8000, 0)
    assert "warning: standard input ended in the middle of a sample: 1 byte left out." in said
    wav = io.BytesIO()
    soundfile.write(wav, MIXTURE[:8000], RATE_HZ, "PCM_16", format="WAV")
    picture = b"LIST" + struct.pack("<I", 99_999) + bytes(100_000)
    long = wav.getvalue()[:12] + picture + wav.getvalue()[12:-4000]
    out, said, code = run(data=long)
    assert (len(out), code) == (44 + 12_000, 0)
    assert (
        "warning: standard input was cut off: the last 0.25 of the 1.00 s that its WAV header "
        "announces are missing." in said
    )
    assert run("-q", data=long[:-1])[1].count("\n") == 1  # and nothing about half a sample
    out, said, code = run("-q", data=2 * wav.getvalue())
    assert (len(out), code) == (44 + 16_000, 0)
    assert said == (
        "warning: standard input: another WAV follows the first and is not read. Pipe one alone.\n"
    )
    for start, begins in ((b"\xff\xfb\x90\x44", True), (b"\xff\xff\0\0", False)):
        said = run("-q", "--rate", "8000", data=start + PCM_16[:4000])[1]
        assert said.startswith("warning: standard input begins like MP3, AAC or AC-3.") == begins
    short = wav.getvalue()[:40] + struct.pack("<I", 8000) + wav.getvalue()[44:]
    out, said, code = run("-q", data=short)
    assert (len(out), code) == (44 + 8000, 0)
    assert said.startswith("warning: standard input: more follows than its WAV header announces")
    for rest in (bytes(500), b"\0LIST\4\0\0\0more", b"ID3", b"ID3\3\0\0\0\0\0\0"):
        assert run("-q", data=wav.getvalue() + rest)[1:] == ("", 0)
    assert run("-q", "--rate", "48000", data=PCM_16[:4]) == (bytes(4), "", 0)
    for sample in (np.nan, 1e13):
        samples = MIXTURE[:8000].copy()
        samples[5000] = sample
        out, said, code = run("--rate", "8000", "--format", "f32", data=samples.tobytes())
        assert code == 1
        message = "error: standard input: NaN, infinite or impossibly loud samples at "
        assert said.splitlines()[-1].startswith(message)


def test_channels_that_cancel_each_other_out_are_told_once(run: Run) -> None:
    opposite = np.stack([MIXTURE, -MIXTURE]).T.astype("<f4").tobytes()
    form = ("--rate", "8000", "--channels", "2", "--format", "f32", "-q")
    for seconds in (3, 0.5):
        out, said, code = run(*form, data=opposite[: int(seconds * RATE_HZ) * 8])
        assert (len(out), code) == (seconds * RATE_HZ * 4, 0)
        assert said == (
            "warning: the channels cancel each other out in the mix, or nearly so, so that little "
            "or nothing is heard. Send one of them alone.\n"
        )


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (["--absent", "fail"], "'fail' is none of keep, mute.\n"),
        (["--format", "s8"], "'s8' is none of s16, s24, s32, u8, f32.\n"),
        (["--latency", "9"], "9.0 is not in the range 0.1<=x<=3.0.\n"),
        (["--channels", "257"], "257 is not in the range 1<=x<=256.\n"),
        (["--input-device", "1", "--channels", "2"], "sound cards record one channel.\n"),
        (["--input-device", "1", "--from-start"], "records once the model is loaded.\n"),
        (["--input-device", ""], "it is empty. Give a value, or leave the option out.\n"),
        (["--output-device", ""], "it is empty. Give a value, or leave the option out.\n"),
    ],
)
def test_usage_errors(run: Run, form: list[str], message: str) -> None:
    _, said, code = run(*form)
    assert code == 2
    assert said.endswith(message)


def test_a_voice_is_needed(run: Run, options: list[str]) -> None:
    del options[6:]
    assert run()[1].endswith("Error: whose voice? Add --ref FILE.\n")


def test_wav_and_options_must_agree(run: Run) -> None:
    wav = io.BytesIO()
    soundfile.write(wav, MIXTURE[:8000], RATE_HZ, "PCM_16", format="WAV")
    for name, value in (("--rate", "16000"), ("--channels", "2"), ("--format", "f32")):
        said = "error: standard input is WAV of 8000 Hz, 1 ch, s16. Leave --rate, --channels and "
        assert run(name, value, data=wav.getvalue()) == (b"", f"{said}--format out.\n", 1)
    agree = ("--rate", "8000", "--channels", "1", "--format", "s16", "-q")
    assert run(*agree, data=wav.getvalue())[1:] == ("", 0)


@posix
def test_an_input_that_cannot_be_read_is_told(run: Run, tmp_path: Path) -> None:
    only_written = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    said = run("--rate", "8000", stdin=only_written)[1]
    os.close(only_written)
    assert said == "error: standard input: cannot be read (Bad file descriptor).\n"


@posix
def test_a_terminal_is_no_place_for_sound(run: Run) -> None:
    import pty

    ours, theirs = pty.openpty()
    try:
        said = run("--rate", "8000", stdin=theirs)[1]
        assert said.startswith("error: standard input is a terminal. Pipe sound into it, or use")
        said = run("--rate", "8000", data=PCM_16, stdout=os.ttyname(theirs))[1]
        assert said.startswith("error: standard output is a terminal. Redirect it to a file")
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_one_line(run: Run) -> None:
    said = run("--rate", "8000", "-q", data=PCM_16, stdout="/dev/full")[1]
    assert said == "error: standard output: writing failed (No space left on device).\n"


@pytest.fixture
def sound_cards(monkeypatch: pytest.MonkeyPatch) -> list[audio.Samples]:
    """Sound cards: 1 records the mixture until Ctrl-C, and 4 plays; what it plays is the list."""
    library, played = types.ModuleType("sounddevice"), []

    class Stream:
        def __init__(self, *shape: Any, callback: Any = None) -> None:
            assert shape == (RATE_HZ, 0, 1 if callback else 4, 1, "float32")
            self.callback, self.is_open = callback, False

        def start(self) -> None:
            self.is_open = True
            if self.callback:
                threading.Thread(target=self.feed).start()

        def feed(self) -> None:
            for number, block in enumerate(blocks(MIXTURE, 800)):
                status = types.SimpleNamespace(input_overflow=number == 2)
                self.callback(block[:, None], len(block), None, status)
            os.kill(os.getpid(), signal.SIGINT)

        def write(self, samples: audio.Samples) -> None:
            played.append(samples[:, 0])

        def __enter__(self) -> Any:
            assert self.is_open
            return self

        def __exit__(self, *_: object) -> None:
            self.is_open = False

    def query_devices(device: Any = None, kind: str = "") -> Any:
        if device not in (None, 1, 4):
            raise ValueError(f"No {kind} device matching {device!r}")
        row = {"max_input_channels": 1, "max_output_channels": 2, "default_samplerate": 8000.0}
        return [{"name": "built-in"} | row, {"name": "USB"} | row] if device is None else row

    def check(device: int, samplerate: int, channels: int, dtype: str) -> None:
        if samplerate != RATE_HZ:
            raise PortAudioError("Invalid sample rate")

    class PortAudioError(Exception):
        pass

    for name in ("InputStream", "OutputStream"):
        setattr(library, name, Stream)
    for name in ("check_input_settings", "check_output_settings"):
        setattr(library, name, check)
    for one in (PortAudioError, query_devices):
        setattr(library, one.__name__, one)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    return played


@posix
def test_sound_cards_record_and_play(
    run: Run, options: list[str], sound_cards: list[audio.Samples]
) -> None:
    out, said, code = run("--input-device", "1", "--output-device", "4")
    assert (out, code) == (b"", 130)
    assert said.splitlines() == [
        "in: sound card 1, 8000 Hz, mono; out: sound card 4, 8000 Hz, mono",
        "ready, 1 s of latency",
        "warning: the sound card lost some sound: this machine was too busy.",
        said.splitlines()[-2],
        "error: interrupted. All sound that had arrived before is done.",
    ]
    np.testing.assert_array_equal(np.concatenate(sound_cards), expected(options, MIXTURE))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (["--input-device", "micro"], "micro: No input device matching 'micro'"),
        (["--input-device", "1", "--rate", "9000"], "1: Invalid sample rate"),
        (["--output-device", "7", "--rate", "8000"], "7: No output device matching 7"),
    ],
)
def test_sound_cards_that_cannot_be_used_are_told(
    run: Run, sound_cards: list[audio.Samples], form: list[str], message: str
) -> None:
    message = f"error: sound card {message}. mcspex live --list-devices lists all.\n"
    data = PCM_16[:4] if "--output-device" in form else b""
    assert run(*form, data=data) == (b"", message, 1)


def test_sound_cards_are_listed(run: Run, sound_cards: list[audio.Samples]) -> None:
    out, _, code = run("--list-devices")
    assert [line.split() for line in out.decode().splitlines()] == [
        "name number in out rate Hz".split(),
        "built-in 0 1 2 8000".split(),
        "USB 1 1 2 8000".split(),
    ]
    assert code == 0


def test_sound_cards_need_their_libraries(run: Run) -> None:
    try:
        import sounddevice  # noqa: F401
    except ImportError:
        message = f"sound cards need the package sounddevice. {install_extra('live')}"
    except OSError:
        message = "sound cards need the library PortAudio (on Debian: apt install libportaudio2)."
    else:
        pytest.skip("sounddevice works here")
    for form in (["--list-devices"], ["--input-device", "0"]):
        assert run(*form) == (b"", f"error: {message}\n", 1)
    form = ["--output-device", "0", "--rate", "8000"]
    assert run(*form, data=PCM_16) == (b"", f"error: {message}\n", 1)
