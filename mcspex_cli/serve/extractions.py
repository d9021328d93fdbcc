"""Extractions from the pages of a server: one at a time, the others wait in a queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import McspexError
from mcspex_cli.extraction.job import ExtractionOptions, Outputs, Result
from mcspex_cli.serve.recording import CancelledError, Recording, Upload, read_peaks

if TYPE_CHECKING:
    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.reference import Voice

SOUNDS = "voice", "others"
"""What an extraction writes as WAV files: the estimate and the residual."""


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


class Extraction:
    """One extraction: in the queue, at work, done, failed or cancelled.

    Args:
        request: how.
        recording: the mixture.
        references: clips and profiles of the person.
        model: the one that is asked for.
        folder: where its files go.
    """

    def __init__(
        self,
        request: ExtractionRequest,
        recording: Recording,
        references: Sequence[Upload],
        model: CheckpointInfo,
        folder: Path,
    ) -> None:
        self.request, self.recording, self.model = request, recording, model
        self.references = tuple(references)
        self.options: ExtractionOptions = replace(
            recording.options, level=request.level, absent=request.absent
        )
        self.folder = folder
        self.state, self.step, self.error = "waiting", "", ""
        self.is_cancelled = False
        self.voice: Voice | None = None
        self.result: Result | None = None
        self.peaks: dict[str, bytes] = {}
        self._done_s = self._began = 0.0

    @property
    def is_active(self) -> bool:
        """Whether it waits or works."""
        return self.state in ("waiting", "working")

    def cancel(self) -> None:
        """End it as soon as that can be."""
        self.is_cancelled = True
        if self.state == "waiting":
            self.state = "cancelled"

    def path(self, name: str) -> Path:
        """Where one of its files is, by a name such as "voice.wav"."""
        return self.folder / name

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
        except McspexError as error:
            self.state, self.error = "failed", str(error)
        except Exception as error:
            self.state = "failed"
            self.error = f"{type(error).__name__} ({error}). This is a bug, please report it."

    def _extract(self, extractor: Extractor) -> None:
        from mcspex_cli.extraction.clip import Span

        recording, options = self.recording, self.options
        start_s = recording.info.start_s
        self.voice = extractor.enroll(
            [reference.path for reference in self.references],
            spans=[
                Span.parse(f"{start + start_s:.3f}-{end + start_s:.3f}")
                for start, end in self.request.spans
            ],
            mixture=recording.upload.path,
            channel=options.channel,
            track=options.track,
            damaged=options.damaged,
            advance=lambda _: self._check_cancelled(),
        )
        estimate, residual = (self.path(f"{name}.wav") for name in SOUNDS)
        outputs = Outputs(
            estimate, residual, self.path("voice.srt"), self.request.name or "target", True
        )
        self.step, self._began = "extracting", time.monotonic()
        self.result = extractor.extract_file(
            recording.upload.path, self.voice, outputs, options, self._advance
        )
        for name in SOUNDS:
            self.peaks[name] = read_peaks(self.path(f"{name}.wav"))

    def _advance(self, done_s: float) -> None:
        self._done_s += done_s
        self._check_cancelled()
        if self._done_s >= self.recording.info.seconds - 0.1:
            self.step = "writing"

    def _check_cancelled(self) -> None:
        if self.is_cancelled:
            raise CancelledError("cancelled.")

    def to_dict(self, place: int) -> dict[str, Any]:
        """What the page knows of it; `place` is how many come before it."""
        share = min(1.0, self._done_s / self.recording.info.seconds)
        spent_s = time.monotonic() - self._began
        return {
            "id": self.folder.name,
            "state": self.state,
            "place": place,
            "step": self.step,
            "share": share,
            "left_s": spent_s * (1 - share) / share if share > 0.01 else None,
            "error": self.error,
            "result": self._summary() if self.state == "done" else None,
        }

    def _summary(self) -> dict[str, Any]:
        """The result; its times count from the beginning of the sound."""
        assert self.result
        assert self.voice
        whole = self.result.to_dict()
        start_s = self.result.start_s
        names = ("seconds", "elapsed_s", "presence", "present", "wrong_speaker", "active_s")
        return {
            **{name: whole[name] for name in names},
            "start_s": start_s,
            "segments": [
                [one.start_s - start_s, one.end_s - start_s, one.presence, one.present]
                for one in self.result.segments
            ],
            "warnings": [*self.voice.warnings, *self.result.warnings],
        }


class Extractions:
    """The queue, and the model that was loaded last.

    Args:
        models: what pages may choose from, by name.
    """

    def __init__(self, models: dict[str, CheckpointInfo]) -> None:
        self.models = models
        self.devices = ["auto", "cpu"]
        self._queue: list[Extraction] = []
        self._worker = ThreadPoolExecutor(1, "mcspex-serve")
        self._loaded: tuple[tuple[str, str], Extractor] | None = None

    def warm_up(self) -> None:
        """Load the first model, so that the first extraction begins at once."""
        self._worker.submit(self._warm_up)

    def _warm_up(self) -> None:
        import torch

        self.devices += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        self._load(next(iter(self.models.values())), "auto")

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
        self._worker.submit(self._run, extraction)

    def place(self, extraction: Extraction) -> int:
        """How many come before one."""
        queue = [one for one in self._queue if not one.is_cancelled]
        return queue.index(extraction) if extraction in queue else 0

    def _run(self, extraction: Extraction) -> None:
        try:
            extraction.run(self._load)
        finally:
            self._queue.remove(extraction)

    def close(self) -> None:
        """Cancel all, and wait until the last one has ended."""
        for extraction in self._queue:
            extraction.cancel()
        self._worker.shutdown(wait=True, cancel_futures=True)
