"""Who has a page open, and the files of each; they go when the page is closed."""

from __future__ import annotations

import itertools
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcspex_cli import audio, files
from mcspex_cli.errors import AudioError, McspexError, OutputError, line
from mcspex_cli.extraction import job, profile
from mcspex_cli.extraction.reference import LONGEST_READ_S, check_references
from mcspex_cli.serve.extractions import (
    SOUNDS,
    Extraction,
    ExtractionRequest,
    Extractions,
    Recording,
    Upload,
)

_LONGEST_ABSENCE_S = 300.0
"""After this time without a request, a page counts as closed. Browsers let pages in the background
send one a minute."""

LONGEST_NAME = 200

MOST_SESSIONS = 20
"""Pages that are open at once: each may fill the disk with as much as it may upload, and more."""

_MOST_MARKS, _MOST_MARKED_S = 100, 3600.0
"""How many parts may be marked, and how much in all of the 10 min that are used of each: they are
held in memory."""

OFFERED_FORMATS = tuple(suffix for suffix, form in audio.FORMATS.items() if form.is_lossless)
"""The formats in which a page offers its sounds."""

EXPORTS = (
    *(f"{name}{suffix}" for name in SOUNDS for suffix in OFFERED_FORMATS),
    *("voice.srt", f"voice{profile.SUFFIX}"),
)
"""The files that a page offers."""

_IN_THE_PAGE = {
    "Choose one of them with --channel 0.": "Choose one of them under More.",
    "Choose another with --track.": "Choose another under More.",
    "or a span in which it speaks alone": "or mark where it speaks alone",
    "listen to the residual (--residual)": 'listen to "Everybody else"',
    "the residual was turned down": '"Everybody else" was turned down',
    "estimate and residual do not add up to the mixture": "the voice and everybody else do not add "
    "up to the recording",
    "is probably not in the mixture": "is probably not in the recording",
    ", or take what can be read with --damaged keep": "",
    "Enroll it again: mcspex enroll ... --model": "Under More, choose the model that it was "
    "enrolled for, or save the voice again with",
    "or choose another disk.": "or start mcspex serve with TMPDIR on another disk.",
}
"""What messages say of the command line, in the words of the page."""


def _shown(name: str) -> str:
    return line(name.replace("\\", "/").rpartition("/")[2])[-LONGEST_NAME:] or "unnamed"


class Session:
    """One open page: its recording, its references and its extraction, in a folder of its own.

    Its uploads may have `max_bytes` together.
    """

    def __init__(self, folder: Path, extractions: Extractions, max_bytes: int) -> None:
        self.id, self.folder = folder.name, folder
        self.recording: Recording | None = None
        self.references: dict[str, Upload] = {}
        self.extraction: Extraction | None = None
        self.is_open, self.last_request_s = True, time.monotonic()
        self._extractions, self._max_bytes = extractions, max_bytes
        self._numbers = itertools.count(1)
        self._changing = threading.Lock()
        """Held while the recording or the extraction is replaced: two requests may ask for it."""
        self._names: dict[str, str] = {}
        """What the user calls each file that came."""

    def check_space(self, name: str, size: int, path: Path | None = None) -> None:
        """Refuse a file of `size` bytes, of which some may be at `path`, if it is too large."""
        others = self._uploaded_bytes(path)
        if size + others > self._max_bytes:
            remedy = (
                "Load the page again, which deletes what is there, or start" if others else "Start"
            )
            raise OutputError(
                f"{_shown(name)}: is too large; a page may send "
                f"{self._max_bytes / 2**20:,.0f} MB in all. "
                f"{remedy} mcspex serve with a larger --max-upload."
            )

    async def receive(self, name: str, size: int, body: AsyncIterator[bytes]) -> Upload:
        """Store a file as it comes; `size` is what is announced of its bytes."""
        name = _shown(name)
        suffix = Path(name).suffix.lower()
        suffixes = files.SUFFIXES | {profile.SUFFIX}
        path = self.folder / f"upload-{next(self._numbers)}{suffix if suffix in suffixes else ''}"
        self._names[str(path)] = name
        self.check_space(name, size)
        try:
            with path.open("wb") as file:
                async for chunk in body:
                    self.last_request_s = time.monotonic()
                    file.write(chunk)
                    file.flush()
                    self.check_space(name, file.tell(), path)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise files.output_error(Path(name), error, "cannot be kept") from error
            raise
        return Upload(name, path)

    def _uploaded_bytes(self, but: Path | None) -> int:
        """What other uploads have on the disk, also those that are still coming or have stalled."""
        total = 0
        for path in self.folder.glob("upload-*"):
            if path != but:
                with suppress(FileNotFoundError):  # removed meanwhile
                    total += path.stat().st_size
        return total

    def receive_recording(self, upload: Upload, channel: str = "mix", track: str = "") -> None:
        """Take a file as the recording, in place of any before, and have it decoded.

        Unlike elsewhere, the `channel` cannot be "all", nor the `track` a language.
        """
        if channel == "all" or not (track.isdecimal() or track == ""):
            raise AudioError(
                f"{upload.name}: a page plays one channel of one track. Give channel=mix or the "
                "number of a channel, and the number of a track."
            )
        try:
            options = job.ExtractionOptions(channel=channel, track=track or None, damaged="keep")
        except ValueError as error:
            raise AudioError(f"{upload.name}: {error}.") from error
        with self._changing:
            before = self.recording
            is_new = before is None or before.upload != upload
            try:
                reader = job.open_mixture(upload.path, options)
                recording = Recording(upload, reader, options, self._max_bytes)
            except McspexError:
                if is_new:
                    upload.path.unlink(missing_ok=True)
                raise
            self.recording = recording
            self._forget_extraction()
            if before and is_new:
                with suppress(OSError):
                    before.upload.path.unlink()
        self._extractions.decoder.submit(
            recording.decode, lambda: self.is_open and self.recording is recording
        )

    def _forget_extraction(self) -> None:
        if self.extraction:
            self.extraction.cancel()
            shutil.rmtree(self.extraction.folder, ignore_errors=True)
            self.extraction = None

    def receive_reference(self, upload: Upload) -> None:
        """Add a sound file or a profile to the references."""
        try:
            check_references([upload.path])
        except McspexError:
            upload.path.unlink(missing_ok=True)
            raise
        self.references[upload.path.stem] = upload

    def remove_reference(self, key: str) -> None:
        """Take a reference away again."""
        upload = self.references.pop(key, None)
        if upload and not (self.extraction and self.extraction.is_active):
            upload.path.unlink(missing_ok=True)

    def result(self) -> Extraction:
        """The extraction, if it is done.

        Raises:
            FileNotFoundError: it is not.
        """
        if self.extraction and self.extraction.state == "done":
            return self.extraction
        raise FileNotFoundError

    def sound(self, name: str) -> Path:
        """A WAV file of one channel: the "mixture", the "voice" or the "others".

        Raises:
            FileNotFoundError: it is not there, or not yet.
        """
        recording = self.recording
        if name == "mixture" and recording and recording.is_decoded and not recording.error:
            return recording.playable
        if name in SOUNDS:
            return self.result().folder / f"{name}.wav"
        raise FileNotFoundError

    def extract(self, request: ExtractionRequest) -> None:
        """Put an extraction into the queue, after all that can be refused before."""
        with self._changing:
            self._extract(request)

    def _extract(self, request: ExtractionRequest) -> None:
        recording, model = self.recording, self._extractions.models.get(request.model)
        if recording is None:
            raise AudioError("there is no recording. Drop one into the page.")
        if recording.error or not recording.is_decoded:
            raise AudioError(recording.error or "the recording is still being read. Wait for it.")
        if self.extraction and self.extraction.is_active:
            raise McspexError("an extraction is on its way. Cancel it first.")
        marked_s = sum(min(end - start, LONGEST_READ_S) for start, end in request.spans)
        if len(request.spans) > _MOST_MARKS or marked_s > _MOST_MARKED_S:
            raise McspexError(
                f"too much is marked. Mark {_MOST_MARKS} parts or less, an hour in all."
            )
        if model is None or request.device not in self._extractions.devices:
            raise McspexError("there is no such model or device. Load the page again.")
        if request.absent not in job.ABSENT_ACCEPTED:
            accepted = ", ".join(job.ABSENT_ACCEPTED)
            raise McspexError(f"absent {request.absent!r:.80} is none of {accepted}.")
        if request.absent != "keep" and model.calibration is None:
            raise McspexError(
                f"{model.label}: cannot tell whether a voice is there. Under More, choose to leave "
                "the result as it is where the person does not speak, or choose another model."
            )
        references = list(self.references.values())
        job.check_distinct(recording.upload.path, [reference.path for reference in references])
        try:
            options = replace(recording.options, level=request.level, absent=request.absent)
        except ValueError as error:
            raise McspexError(f"{error}.") from error
        self._forget_extraction()
        folder = self.folder / f"extraction-{next(self._numbers)}"
        self.extraction = Extraction(request, options, recording, references, model, folder)
        self._extractions.add(self.extraction)

    def export(self, kind: str) -> tuple[Path, str]:
        """A file of the result, of `EXPORTS`, and its name for the user.

        Raises:
            FileNotFoundError: there is no such file, or not yet.
        """
        extraction = self.result()
        if kind not in EXPORTS:
            raise FileNotFoundError
        name, path = Path(extraction.recording.upload.name).stem, extraction.export(kind)
        if path.suffix != profile.SUFFIX:
            return path, f"{name}.{kind}"
        name = extraction.request.name or name
        if not path.exists():
            voice = extraction.voice
            assert voice
            models = (voice.enrolment(extraction.model),)
            qualities = tuple(q.rename(self.reword(q.path)) for q in voice.qualities)
            profile.write_profile(path, profile.Profile(name, models, qualities))
        return path, f"{name}{profile.SUFFIX}"

    def reword(self, message: str) -> str:
        """Put a message into the words of the page and the user's names for files, on one line."""
        for path in sorted(self._names, key=len, reverse=True):
            message = message.replace(path, self._names[path])
        if self.extraction:
            message = message.replace(f"{self.extraction.folder}/", "")
        for words, others in _IN_THE_PAGE.items():
            message = message.replace(words, others)
        return line(message.replace(f"{self.folder}/", ""))

    def to_dict(self) -> dict[str, Any]:
        """All that the page is to show. A page that asks for it is still open."""
        self.last_request_s = time.monotonic()
        recording, extraction = self.recording, self.extraction
        state = {
            "recording": recording and recording.to_dict(),
            # A copy, as other threads add and remove some meanwhile.
            "references": {key: upload.name for key, upload in self.references.copy().items()},
            "extraction": extraction and extraction.to_dict(self._extractions.place(extraction)),
            "devices": self._extractions.devices,
        }
        return self._reword_all(state)

    def _reword_all(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._reword_all(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._reword_all(each) for each in value]
        return self.reword(value) if isinstance(value, str) else value

    def close(self) -> None:
        """Cancel what is on its way, and delete all files."""
        self.is_open = False
        if self.extraction:
            self.extraction.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All open pages of a server, in a folder that goes with it.

    What a killed server left is removed by the next command here that makes such a folder.
    """

    def __init__(self, extractions: Extractions, max_bytes: int) -> None:
        self.extractions, self._max_bytes = extractions, max_bytes
        self._stack = ExitStack()
        self.folder = self._stack.enter_context(files.temporary_folder())
        self.pages: dict[str, Session] = {}

    def open(self) -> Session:
        """A new one, under a name that nobody can guess."""
        if len(self.pages) >= MOST_SESSIONS:
            raise McspexError(
                f"{MOST_SESSIONS} pages are open already. Close one, then load this page again."
            )
        folder = self.folder / secrets.token_urlsafe(24)
        session = Session(folder, self.extractions, self._max_bytes)
        self.pages[session.id] = session  # before its folder, which would be swept
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            del self.pages[session.id]
            raise files.output_error(self.folder, error, "cannot make a folder in it") from error
        return session

    def close(self, session: Session) -> None:
        """Delete all of a page."""
        self.pages.pop(session.id, None)
        session.close()

    def close_silent(self) -> None:
        """Close those whose page has not been heard of for long, and finish closing others."""
        for session in list(self.pages.values()):
            if time.monotonic() - session.last_request_s > _LONGEST_ABSENCE_S:
                self.close(session)
        with suppress(OSError):
            for folder in self.folder.iterdir():  # what was written while it was deleted
                if folder.name not in self.pages:
                    shutil.rmtree(folder, ignore_errors=True)

    def close_all(self) -> None:
        """End all work, and delete all files."""
        try:
            for session in list(self.pages.values()):
                self.close(session)
            self.extractions.close()
        finally:
            self._stack.close()
