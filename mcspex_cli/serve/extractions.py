"""What a page works on: its recording, decoded for browsers, and the queue of extractions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcspex_cli import audio
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import TOO_LITTLE_MEMORY, McspexError, OutputError, is_lack_of_memory
from mcspex_cli.evaluation.page import (
    COLUMNS,
    QUIET_DB,
    SPECTRUM_S,
    Levels,
    draw_spectrogram,
    spectrogram,
)
from mcspex_cli.extraction.job import ExtractionOptions, Outputs, Result
from mcspex_cli.extraction.reference import Span, Voice

if TYPE_CHECKING:
    from mcspex_cli.extraction.extractor import Extractor

_PEAKS_PER_S = 100.0
_MOST_PEAKS = 100_000
"""A page holds at most this many peaks of a sound, 400 kB; they are finer for shorter sounds."""

_LOUDEST_PEAK = 1.12
"""What goes 1 dB beyond full scale is clipped, which is not heard; louder sound is turned down."""

_PICTURE_HZ = 16_000
"""Pictures show what is below half of this, where speech is."""

_LONGEST_WHOLE_S = 60.0
"""Of a longer part, a picture shows a sample for each of its columns."""

SOUNDS = "voice", "others"
"""What an extraction writes as WAV files: the estimate and the residual."""


class CancelledError(McspexError):
    """The user has cancelled the extraction."""


def _reason(error: Exception) -> str:
    if isinstance(error, McspexError):
        return str(error)
    if is_lack_of_memory(error):
        return TOO_LITTLE_MEMORY
    return f"{type(error).__name__} ({error}). This is a bug, please report it."


@dataclass(frozen=True)
class Upload:
    """A file from a page; `name` is what its user calls it, and is never a path."""

    name: str
    path: Path


class Recording:
    """The mixture of a session, as a WAV file that a browser can play from anywhere.

    Raises:
        OutputError: by its header, the WAV file would be larger than `max_bytes`.
    """

    def __init__(
        self, upload: Upload, reader: audio.Reader, options: ExtractionOptions, max_bytes: int
    ) -> None:
        self.upload, self.info, self.options = upload, reader.info, options
        self._reader, self._max_bytes = reader, max_bytes
        self._check_size(self.info.frames)
        self.playable = upload.path.with_name("mixture.wav")
        self.peaks = bytearray()
        """Of what is decoded so far, see `find_peaks`."""
        self.seconds = self.info.seconds
        """What the header announces; once all is decoded, the true length."""
        self.is_decoded = False
        self.error = ""
        self.warnings: list[str] = []

    def decode(self, is_current: Callable[[], bool]) -> None:
        """Decode it all, or as long as `is_current`; what goes wrong is its `error`."""

        def written(gain: float = 1.0) -> Iterator[audio.Samples]:
            rate_hz, frames = self.info.sample_rate_hz, self.info.frames
            with audio.open_writer(self.playable, rate_hz, 1, "PCM_16", frames) as writer:
                for block in self._reader:
                    if not is_current():
                        raise CancelledError("cancelled.")  # so that no file appears
                    # A header may announce less than there is.
                    self._check_size(self._reader.frames)
                    writer.write(gain * block)
                    yield block[0]

        try:
            for peaks in find_peaks(written(), _peak_samples(self.info)):
                self.peaks += peaks
            loudest = float(np.frombuffer(bytes(self.peaks), "<f4").max(initial=0))
            if is_loud := loudest > _LOUDEST_PEAK:
                for _ in written(1 / loudest):
                    pass
            self.seconds = self._reader.frames / self.info.sample_rate_hz
            self.warnings = list(self._reader.warnings)
            if is_loud:
                self.warnings.append(
                    f"{self.upload.path}: goes beyond full scale, so that you hear it "
                    f"{20 * math.log10(loudest):.1f} dB quieter here."
                )
        except Exception as error:
            self.error = _reason(error)
        finally:
            self.is_decoded = True

    def _check_size(self, frames: int) -> None:
        if 2 * frames > self._max_bytes:  # of 16 bits
            raise OutputError(
                f"{self.upload.name}: is too long. Decoded, it takes more than the "
                f"{self._max_bytes / 2**20:,.0f} MB that a recording may take. "
                "Start mcspex serve with a larger --max-upload."
            )

    def to_dict(self) -> dict[str, Any]:
        """What the page shows of it."""
        return {
            "name": self.upload.name,
            "seconds": self.seconds,
            "peak_s": _peak_samples(self.info) / self.info.sample_rate_hz,
            "channels": self.info.channels,
            "channel": self.options.channel,
            "tracks": list(self.info.tracks),
            "track": int(self.options.track or 1),
            "decoded": self.is_decoded,
            "error": self.error,
            "warnings": self.warnings,
        }


def _peak_samples(info: audio.AudioInfo) -> int:
    """The samples of a stretch that has one peak, by the length that a header says."""
    per_s = min(_PEAKS_PER_S, _MOST_PEAKS / max(info.seconds, 1.0))
    return max(1, round(info.sample_rate_hz / per_s))


def find_peaks(blocks: Iterable[audio.Samples], size: int) -> Iterator[bytes]:
    """The highest absolute sample of each `size` samples of blocks [sample], as 32-bit floats."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        samples = np.abs(np.concatenate([rest, block]))
        whole = len(samples) // size * size
        yield samples[:whole].reshape(-1, size).max(axis=1).astype("<f4").tobytes()
        rest = samples[whole:]
    if len(rest):
        yield rest.max().astype("<f4").tobytes()


def read_peaks(path: Path) -> bytes:
    """The peaks of a whole file of one channel."""
    reader = audio.Reader(path)
    blocks = (block[0] for block in reader)
    return b"".join(find_peaks(blocks, _peak_samples(reader.info)))


def draw_part(path: Path, mixture: Path, start_s: float, end_s: float) -> bytes:
    """A PNG of the spectrogram of a part of a WAV file, as bright as its mixture's would be.

    The file has one channel, and may have hours. The brightest colour is that of the loudest place
    of the mixture's part.

    Raises:
        OSError: a file is not there any more.
    """
    loudest_db = float(_part_levels(mixture, start_s, end_s).max())
    levels = _part_levels(path, start_s, end_s)
    return draw_spectrogram(levels, max(loudest_db, QUIET_DB))


def _part_levels(path: Path, start_s: float, end_s: float) -> Levels:
    import soundfile

    with path.open("rb") as stream, soundfile.SoundFile(stream) as file:
        rate_hz, frames = file.samplerate, file.frames
        first, last = (min(max(0, round(s * rate_hz)), frames) for s in (start_s, end_s))
        count, length = 1, max(last - first, 1)
        if length > _LONGEST_WHOLE_S * rate_hz:
            count, length = COLUMNS, math.ceil(2 * SPECTRUM_S * rate_hz)
        pieces = []
        for start in np.linspace(first, max(first, last - length), count).astype(int):
            file.seek(start)
            pieces.append(file.read(length, "float32"))
    samples = np.concatenate(pieces)
    if rate_hz > _PICTURE_HZ:
        resampler = audio.Resampler(rate_hz, _PICTURE_HZ, 1)
        samples = np.concatenate(list(resampler.run([samples[None]])), axis=-1)[0]
    return spectrogram(samples, min(rate_hz, _PICTURE_HZ))


@dataclass(frozen=True)
class ExtractionRequest:
    """What a page asks for."""

    spans: tuple[tuple[float, float], ...] = ()
    """When the person speaks alone, in seconds from the beginning of the sound."""
    model: str = ""
    """One of those that the server offers."""
    device: str = "auto"
    level: str = "match"
    absent: str = "keep"
    name: str = ""
    """Whose voice it is."""


@dataclass(eq=False)
class Extraction:
    """One extraction: in the queue, at work, done, failed or cancelled."""

    request: ExtractionRequest
    options: ExtractionOptions
    recording: Recording
    references: list[Upload]
    """Clips and profiles of the person."""
    model: CheckpointInfo
    folder: Path
    """Where its files go."""
    state: str = "waiting"
    step: str = ""
    error: str = ""
    is_cancelled: bool = False
    voice: Voice | None = None
    result: Result | None = None
    _done_s: float = 0.0
    _began: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether it waits or works."""
        return self.state in ("waiting", "working")

    def cancel(self) -> None:
        """End it as soon as that can be."""
        self.is_cancelled = True
        if self.state == "waiting":
            self.state = "cancelled"

    def run(self, load: Callable[[CheckpointInfo, str], Extractor]) -> None:
        """Do it; what goes wrong is its `error`."""
        try:
            self._check_cancelled()
            self.state, self.step = "working", "loading"
            extractor = load(self.model, self.request.device)
            self.step = "listening"
            self._extract(extractor)
            self._check_cancelled()
            self.state = "done"
        except CancelledError:
            self.state = "cancelled"
        except Exception as error:
            self.state, self.error = "failed", _reason(error)

    def _extract(self, extractor: Extractor) -> None:
        mixture, options = self.recording.upload.path, self.options
        start_s = self.recording.info.start_s
        self.voice = extractor.enroll(
            [reference.path for reference in self.references],
            spans=[
                Span.parse(f"{start + start_s:.3f}-{end + start_s:.3f}")
                for start, end in self.request.spans
            ],
            mixture=mixture,
            options=options,
            advance=lambda _: self._check_cancelled(),
        )
        estimate, residual = (self.folder / f"{name}.wav" for name in SOUNDS)
        subtitles, speaker = self.folder / "voice.srt", self.request.name or "target"
        outputs = Outputs(estimate, residual, subtitles, speaker, overwrite=True)
        self.step, self._began = "extracting", time.monotonic()
        self.result = extractor.extract_file(mixture, self.voice, outputs, options, self._advance)

    def _advance(self, done_s: float) -> None:
        self._done_s += done_s
        self._check_cancelled()
        if self._done_s >= self.recording.seconds - 0.1:
            self.step = "writing"

    def _check_cancelled(self) -> None:
        if self.is_cancelled:
            raise CancelledError("cancelled.")

    def to_dict(self, place: int) -> dict[str, Any]:
        """What the page shows of it; `place` is how many come before it."""
        share = min(1.0, self._done_s / self.recording.seconds)
        spent_s = time.monotonic() - self._began
        return {
            "id": self.folder.name,
            "state": self.state,
            "place": place,
            "step": "cancelling" if self.is_cancelled else self.step,
            "share": share,
            "left_s": spent_s * (1 - share) / share if share > 0.01 else None,
            "error": self.error,
            "result": self._summary() if self.state == "done" else None,
        }

    def _summary(self) -> dict[str, Any]:
        """The result; its times count from the beginning of the sound."""
        assert self.result
        assert self.voice
        values, start_s = self.result.to_dict(), self.result.start_s
        names = ("seconds", "elapsed_s", "presence", "present", "wrong_speaker", "active_s")
        return {
            **{name: values[name] for name in names},
            "start_s": start_s,
            "segments": [
                [part.start_s - start_s, part.end_s - start_s, part.presence, part.present]
                for part in self.result.segments
            ],
            # Those of a span are its recording's, too.
            "warnings": list(dict.fromkeys([*self.voice.warnings, *self.result.warnings])),
        }

    def export(self, kind: str) -> Path:
        """A file of the result, of `EXPORTS`; sounds but WAV are made when they are asked for."""
        path = self.folder / kind
        if path.suffix in audio.FORMATS and path.suffix != ".wav" and not path.exists():
            wav = audio.Reader(path.with_suffix(".wav"))
            rate_hz, subtype = wav.info.sample_rate_hz, self.options.subtype
            with audio.open_writer(path, rate_hz, 1, subtype) as writer:
                for block in wav:
                    writer.write(block)
        return path


class Extractions:
    """The queue of all pages, the threads that work, and the model that was loaded last."""

    def __init__(self, models: dict[str, CheckpointInfo]) -> None:
        self.models = models
        """What pages may choose from, by name."""
        self.devices = ["auto", "cpu"]
        self.decoder = ThreadPoolExecutor(2, "mcspex-decode")
        self._queue: list[Extraction] = []
        self._worker = ThreadPoolExecutor(1, "mcspex-serve")
        self._loaded: tuple[tuple[str, str], Extractor] | None = None

    def warm_up(self) -> None:
        """Load the first model, so that the first extraction begins at once."""

        def load() -> None:
            import torch

            self.devices += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
            self._load(next(iter(self.models.values())), "auto")

        self._worker.submit(load)

    def _load(self, model: CheckpointInfo, device: str) -> Extractor:
        from mcspex_cli.extraction.extractor import Extractor

        key = model.sha256, device
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # memory holds one model at a time
            self._loaded = key, Extractor.load(model, device=device)
        return self._loaded[1]

    def add(self, extraction: Extraction) -> None:
        """Put one at the end of the queue."""
        self._queue.append(extraction)
        work = self._worker.submit(extraction.run, self._load)
        work.add_done_callback(lambda _: self._queue.remove(extraction))

    def place(self, extraction: Extraction) -> int:
        """How many come before one."""
        queue = [other for other in self._queue if not other.is_cancelled]
        return queue.index(extraction) if extraction in queue else 0

    def close(self) -> None:
        """Cancel all, and wait until the last one has ended."""
        for extraction in self._queue:
            extraction.cancel()
        for threads in (self._worker, self.decoder):
            threads.shutdown(wait=True, cancel_futures=True)
