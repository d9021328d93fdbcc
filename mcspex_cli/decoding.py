"""What libsndfile does not read (videos, AAC, AMR, ...): decoded by ffmpeg where there is one.

The only place that starts ffmpeg and ffprobe. Nothing is written to a disk: samples come
through a pipe, block by block.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import IO, Any

import numpy as np

from mcspex_cli.errors import AudioError
from mcspex_cli.integrity import Blocks

_FORMATS = (
    "3gp aac ac3 aiff amr amrnb amrwb ape asf au avi caf dts eac3 flac flv gsm loas matroska mov "
    "mp3 mpc mpc8 mpeg mpegts mxf nistsphere ogg qcp tak tta voc w64 wav wtv wv"
).split()
"""Containers that hold their sound themselves; playlists would name other files, or servers."""

_GUARDS = ("-v", "error", "-protocol_whitelist", "file", "-format_whitelist", ",".join(_FORMATS))

_EXACT = ("mov", "avi")
"""Containers whose header knows how long a track is."""

_BROKEN_OFF = re.compile(r"ended prematurely|exceeds containing master element")
"""What Matroska's reader says of a damaged file before it ends as if all were well."""

_PREFIX = re.compile(r"(\[[^\]]* @ \w+\] )+")
"""The part of ffmpeg that says something."""

_LONGEST = 200
"""Characters of ffmpeg's own words in a message."""


@dataclass(frozen=True)
class Track:
    """The first sound track of a file.

    `frames`, samples per channel, is approximate: encoders pad, and some containers only tell
    how long the picture is.
    """

    sample_rate_hz: int
    channels: int
    frames: int
    is_exact: bool
    """Whether so many frames, but for padding, must come of a whole file."""


PROGRAMS = ("ffmpeg", "ffprobe")
"""What has to be installed."""


def programs() -> tuple[str, str] | None:
    """Where ffmpeg and ffprobe are; None unless both are on the PATH."""
    ffmpeg, ffprobe = map(shutil.which, PROGRAMS)
    return (ffmpeg, ffprobe) if ffmpeg and ffprobe else None


class Decoded:
    """The first sound track of a file, as ffmpeg decodes it.

    Pauses in a recording, as its time stamps tell them, are silence.

    Raises:
        AudioError: there is no ffmpeg, or it cannot read the file, or finds no sound in it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._ffmpeg = path, _programs(path)[0]
        state = path.stat()
        self._track = _track(path, path.absolute(), state.st_size, state.st_mtime_ns)
        self.sample_rate_hz, self.channels = self._track.sample_rate_hz, self._track.channels
        self.frames = self._track.frames
        """Samples per channel, approximately."""

    def blocks(self, size: int) -> Blocks:
        """Decode to blocks [channel, sample] of `size` samples per channel, the last shorter.

        Closing this ends ffmpeg.

        Raises:
            AudioError: the file is damaged or cut short.
        """
        frames, width = 0, 4 * self.channels
        with _started(self._command()) as child:
            while data := child.output.read(size * width):
                block = np.frombuffer(data[: len(data) - len(data) % width], "<f4")
                frames += len(block) // self.channels
                yield block.reshape(-1, self.channels).T.astype(np.float32)
            self._check_end(child, frames)

    def _command(self) -> list[str]:
        """Ffmpeg's command line: stop at the first damage, samples to stdout."""
        track = self._track
        shape = ("-ar", str(track.sample_rate_hz), "-ac", str(track.channels))
        source = (*_GUARDS, "-i", _address(self._path), "-map", "0:a:0")
        # async=1 fills what is missing between time stamps, and changes no other sample.
        how = ("-af", "aresample=async=1", *shape, "-f", "f32le", "-")
        return [self._ffmpeg, "-nostdin", "-xerror", *source, *how]

    def _check_end(self, child: _Child, frames: int) -> None:
        """After the last block: refuse a file of which more should have come."""
        path, rate_hz = self._path, self.sample_rate_hz
        code, said = child.finish()
        reason = _reason(said, path) or f"exit code {code}"
        cure = f"Copy it again, or keep what is left: ffmpeg -i {path.name} {path.stem}.new.wav"
        if code and not frames:
            raise AudioError(f"{path}: ffmpeg cannot decode it ({reason}). Convert it to WAV.")
        if code:
            at_s = frames / rate_hz
            raise AudioError(f"{path}: damaged after {at_s:.2f} s ({reason}). {cure}")
        if _BROKEN_OFF.search(said):
            raise AudioError(f"{path}: damaged or truncated ({reason}). {cure}")
        if not frames:
            raise AudioError(f"{path}: holds no samples. Copy or record it again.")
        if self._track.is_exact and frames < 0.99 * self.frames - 0.5 * rate_hz:
            held_s, said_s = frames / rate_hz, self.frames / rate_hz
            raise AudioError(f"{path}: truncated, {held_s:.2f} of {said_s:.2f} s. {cure}")


def _programs(path: Path) -> tuple[str, str]:
    """Ffmpeg and ffprobe, or why this path cannot be read without."""
    found = programs()
    if found is None:
        raise AudioError(
            f"{path}: not a readable sound file here. Install ffmpeg, or convert it to WAV."
        )
    return found


@lru_cache(maxsize=1024)
def _track(path: Path, place: Path, size: int, changed_ns: int) -> Track:  # noqa: ARG001
    """A file's first sound track; asked once for each state of the file."""
    wanted = "stream=sample_rate,channels,duration:format=format_name,duration"
    found = _probed(path, "-select_streams", "a:0", "-show_entries", wanted)
    if not found.get("streams"):
        raise AudioError(f"{path}: has no sound track. Name a file that has one.")
    stream, container = found["streams"][0], found.get("format", {})
    rate_hz, channels = int(stream.get("sample_rate", 0)), int(stream.get("channels", 0))
    if rate_hz < 1 or channels < 1:
        raise AudioError(f"{path}: not a readable sound file (unknown codec). Convert it to WAV.")
    own_s = float(stream.get("duration", 0))
    length_s = own_s or float(container.get("duration", 0)) or _stamped_s(path)
    is_exact = own_s > 0 and container.get("format_name", "").startswith(_EXACT)
    return Track(rate_hz, channels, round(length_s * rate_hz), is_exact)


def _probed(path: Path, *options: str) -> dict[str, Any]:
    """What ffprobe tells of a file."""
    with _started([_programs(path)[1], *_GUARDS, *options, "-of", "json", _address(path)]) as child:
        document = child.output.read()
        code, said = child.finish()
    if "moov atom not found" in said and _is_mp4(path):
        raise AudioError(f"{path}: truncated, its index (moov atom) is missing. Copy it again.")
    try:
        found: dict[str, Any] = json.loads(document)
    except ValueError:
        code = code or 1
    if code:
        reason = _reason(said, path) or f"exit code {code}"
        raise AudioError(f"{path}: not a readable sound file ({reason}). Export it again as WAV.")
    return found


def _is_mp4(path: Path) -> bool:
    """Whether a file begins as MP4 does; ffmpeg believes its suffix."""
    with path.open("rb") as file:
        return file.read(8)[4:] in (b"ftyp", b"mdat", b"wide", b"free", b"skip")


def _stamped_s(path: Path) -> float:
    """Seconds from the first to the last time stamp, for files whose header has no length."""
    wanted = ("-select_streams", "a:0", "-show_entries", "packet=pts_time", "-of", "csv=p=0")
    first_s = last_s = None
    with _started([_programs(path)[1], *_GUARDS, *wanted, _address(path)]) as child:
        for line in child.output:
            with suppress(ValueError):  # "N/A"
                last_s = float(line.strip(b",\r\n"))
                first_s = last_s if first_s is None else first_s
    return 0.0 if first_s is None or last_s is None else max(0.0, last_s - first_s)


def _address(path: Path) -> str:
    """A path so that ffmpeg takes it for no option and for no other protocol."""
    return f"file:{path.absolute()}"


def _reason(said: str, path: Path) -> str:
    """The last line of what ffmpeg said, without what would steer a terminal."""
    lines = [line for line in said.splitlines() if line.strip()]
    last = _PREFIX.sub("", lines[-1]).removeprefix(f"{_address(path)}: ") if lines else ""
    return "".join(c if c.isprintable() else " " for c in last).strip()[:_LONGEST]


class _Child:
    """A running program, whose complaints are listened to so that they cannot block it."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes], said: IO[bytes]):
        self._process, self.output, self._said = process, output, said
        self._heard: deque[bytes] = deque(maxlen=8)  # the last ones tell why it ended
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Take the complaints until the program ends."""
        while part := os.read(self._said.fileno(), 2**12):
            self._heard.append(part)

    def finish(self) -> tuple[int, str]:
        """Wait for the end of a program that has closed its output: exit code, complaints."""
        code = self._process.wait()
        self._listener.join()
        return code, os.fsdecode(b"".join(self._heard))

    def end(self) -> None:
        """End the program, and what it has started itself, unless it has ended."""
        if self._process.poll() is None:
            if os.name == "posix":
                with suppress(OSError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self.output.close()
        self._listener.join()


@contextmanager
def _started(command: Sequence[str]) -> Iterator[_Child]:
    """Run a program until the block is left, however that happens.

    In a session of its own, Ctrl-C does not reach it, which would look like a damaged file.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        reason = error.strerror
        raise AudioError(f"{command[0]}: cannot be started ({reason}). Mend ffmpeg.") from error
    with process:
        assert process.stdout and process.stderr
        child = _Child(process, process.stdout, process.stderr)
        try:
            yield child
        finally:
            child.end()
