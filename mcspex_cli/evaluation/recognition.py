"""The networks that scores without a truth ask: whose voice it is, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from mcspex_cli import audio
from mcspex_cli.audio import Samples
from mcspex_cli.errors import CheckpointError, ConfigError
from mcspex_cli.extraction.extractor import Extractor
from mcspex_cli.extraction.presence import PresenceMeter
from mcspex_cli.extraction.reference import Voice

WHISPER_HZ = 16_000


class Verifier:
    """Compares voices by a model's speaker encoder; a reference is embedded once.

    Args:
        extractor: the model.
        warn: is told what may be wrong with a reference.

    Raises:
        CheckpointError: the model is not calibrated: its similarities mean nothing.
    """

    def __init__(
        self, extractor: Extractor, warn: Callable[[str], object] = lambda _: None
    ) -> None:
        engine = extractor.engine
        if engine.calibration is None:
            raise CheckpointError(
                f"{extractor.model.label}: cannot tell how similar voices are. Calibrate it: "
                f"mcspex models calibrate {extractor.model.folder} SPEAKERS"
            )
        self._extractor, self._engine, self._calibration = extractor, engine, engine.calibration
        self._warn = warn
        self._voices: dict[tuple[Path, ...], Voice] = {}

    def voice(self, references: tuple[Path, ...]) -> Voice:
        """Embed the voice of some clips, folders or profiles, unless they were embedded before.

        Raises:
            AudioError: a clip cannot be used.
            CheckpointError: a profile cannot be used, or is for other models.
        """
        if references not in self._voices:
            self._voices[references] = voice = self._extractor.enroll(references)
            for text in voice.warnings:
                self._warn(text)
        return self._voices[references]

    def similarity(self, voice: Voice, sound: Samples, rate_hz: int) -> float:
        """Tell how similar a sound [sample] is to a voice: the mean over segments of 2 s.

        Returns:
            -1 to 1; nan where nothing is audible.
        """
        to_hz = self._engine.sample_rate_hz
        blocks = audio.Resampler(rate_hz, to_hz, 1).run([sound[None]])
        signal = np.concatenate(list(blocks), axis=-1)
        meter = PresenceMeter(self._engine.embed_parts, to_hz, voice.embedding, self._calibration)
        meter.add(signal[0], signal[0])
        meter.finish()
        similarity = meter.similarity()
        return np.nan if similarity is None else similarity


class Transcriber:
    """Recognises words by a Whisper model on this disk.

    Args:
        model: its folder, or its name if faster-whisper has downloaded it before.

    Raises:
        ConfigError: faster-whisper cannot be imported, or the model is not here or damaged.
    """

    def __init__(self, model: str) -> None:
        try:
            from faster_whisper import WhisperModel
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"faster_whisper cannot be imported ({error}). "
                "Run: pip install 'mcspex[transcripts]'"
            ) from error
        is_folder = Path(model).is_dir()
        try:
            # Without a tokenizer the package would fetch one from the network.
            if is_folder and not (Path(model) / "tokenizer.json").is_file():
                raise FileNotFoundError("it has no tokenizer.json")
            self._model: Any = WhisperModel(model, local_files_only=True)
        except Exception as error:  # the package raises all kinds of errors on what is no model
            reason = " ".join(str(error).split())
            problem = f"cannot be loaded ({reason})" if is_folder else "is not on this disk"
            raise ConfigError(
                f"--whisper {model}: {problem}. Name the folder of a faster-whisper model, or get "
                "one: hf download Systran/faster-whisper-base"
            ) from error

    def transcribe(self, sound: Samples, rate_hz: int) -> str:
        """Recognise the words of a sound [sample], in whichever language they are."""
        signal = soxr.resample(sound, rate_hz, WHISPER_HZ).astype(np.float32)
        segments, _ = self._model.transcribe(signal, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)
