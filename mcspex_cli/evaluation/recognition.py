"""What scores without a truth need: whose voice it is, what is said, and what batch measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr

from mcspex_cli import audio, files
from mcspex_cli.audio import Samples
from mcspex_cli.errors import CheckpointError, ConfigError, PairingError, install_extra
from mcspex_cli.evaluation.metrics import Compare, CompareWith, Transcribe
from mcspex_cli.evaluation.scoring import TRANSCRIPTS, Pairing, case_name, find_partners
from mcspex_cli.evaluation.summary import read_batch
from mcspex_cli.extraction.presence import PresenceMeter, leads

if TYPE_CHECKING:
    from mcspex_cli.extraction.extractor import Extractor

WHISPER_HZ = 16_000


def open_verifier(
    extractor: Extractor, warn: Callable[[str], object] = lambda _: None
) -> CompareWith:
    """Return what compares sounds with voices, by the speaker encoder of a model.

    A sound's similarity is the mean over segments of 2 s, -1 to 1; nan where nothing is audible.
    A sound of the other polarity than the reference is inverted before, see `presence.Polarity`.
    A voice (clips, folders or profiles) is embedded once. `warn` is called with what may be wrong
    with a reference.

    Raises:
        CheckpointError: the model is not calibrated: its similarities mean nothing.
    """
    engine = extractor.engine
    if engine.calibration is None:
        raise CheckpointError(
            f"{extractor.model.label}: cannot tell how similar voices are. Calibrate it: "
            f"mcspex models calibrate {extractor.model.folder} SPEAKERS"
        )

    @cache
    def compare_with(references: tuple[Path, ...]) -> Compare:
        voice = extractor.enroll(references)
        for text in voice.warnings:
            warn(text)
        return partial(similarity, voice.embedding)

    def similarity(embedding: Samples, sound: Samples, rate_hz: int) -> float:
        resampler = audio.Resampler(rate_hz, engine.sample_rate_hz, 1)
        signal = np.concatenate(list(resampler.run([sound[None]])), axis=-1)[0]
        meters = (PresenceMeter(engine, embedding) for _ in range(2))
        same, inverse = map(_similarity, meters, (signal, -signal))
        return inverse if leads(inverse, same) else same

    return compare_with


def _similarity(meter: PresenceMeter, signal: Samples) -> float:
    meter.add(signal, signal)
    similarity = meter.result().similarity
    return math.nan if similarity is None else similarity


def open_transcriber(model: str) -> Transcribe:
    """Load a Whisper model from this disk; it recognises words in whichever language they are.

    `model` is its folder, or its name if faster-whisper has downloaded it before.

    Raises:
        ConfigError: faster-whisper cannot be imported, or the model is not here or damaged.
    """
    try:
        from faster_whisper import WhisperModel
    except (ImportError, OSError) as error:
        reason = f"faster_whisper cannot be imported ({error})."
        raise ConfigError(f"{reason} {install_extra('transcripts')}") from error
    is_folder = Path(model).is_dir()
    try:
        # Without a tokenizer the package would fetch one from the network.
        if is_folder and not (Path(model) / "tokenizer.json").is_file():
            raise FileNotFoundError("it has no tokenizer.json")
        whisper = WhisperModel(model, local_files_only=True)
    except Exception as error:  # the package raises all kinds of errors on what is no model
        reason = " ".join(str(error).split())
        problem = f"cannot be loaded ({reason})" if is_folder else "is not on this disk"
        raise ConfigError(
            f"--whisper {model}: {problem}. Name the folder of a faster-whisper model, or get "
            "one: hf download Systran/faster-whisper-base"
        ) from error

    def transcribe(sound: Samples, rate_hz: int) -> str:
        signal = soxr.resample(sound, rate_hz, WHISPER_HZ).astype(np.float32)
        segments, _ = whisper.transcribe(signal, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def add_transcripts(pairings: Sequence[Pairing], place: Path) -> list[Pairing]:
    """Give each pairing the transcript of its name: `place` is a folder, or the one file.

    Raises:
        ConfigError: a transcript cannot be read.
        PairingError: a transcript is missing, or two have one name.
    """
    files.check_exists(place)
    estimates = {case_name(pairing.name): pairing.estimate for pairing in pairings}
    if place.is_dir():
        kind = f"transcript ({', '.join(TRANSCRIPTS)})"
        named = find_partners(estimates, place, TRANSCRIPTS, kind)
    elif len(pairings) == 1:
        named = dict.fromkeys(estimates, place)
    else:
        raise PairingError(f"{place}: is a file. Name a folder with a transcript for each.")
    return [
        replace(pairing, transcript=read_transcript(named[case_name(pairing.name)]))
        for pairing in pairings
    ]


def read_transcript(path: Path) -> str:
    """Read the words of a text file, or of a WebVTT file without its times, tags and notes.

    Raises:
        ConfigError: it is not text, or its suffix says WebVTT and it is not.
    """
    if path.suffix.lower() not in TRANSCRIPTS:
        raise ConfigError(f"{path}: is no transcript. Its name must end in .txt or .vtt.")
    content = files.read_text(path)
    if path.suffix.lower() == ".txt":
        return content
    try:
        import webvtt
    except ImportError as error:
        reason = f"{path}: webvtt cannot be imported."
        raise ConfigError(f"{reason} {install_extra('transcripts')}") from error
    try:
        return "\n".join(caption.text for caption in webvtt.from_string(content).captions)
    except webvtt.errors.MalformedFileError as error:
        raise ConfigError(f"{path}: is not WebVTT ({error}). Name plain text .txt.") from error


def add_presences(pairings: Sequence[Pairing], estimates: Path) -> list[Pairing]:
    """Give pairings the presence that `mcspex batch` measured, if it made these estimates.

    From a file alone it cannot be told: it also takes the level that the network chose.
    """
    presences: dict[Path, float | None] = {}
    for folder in estimates.resolve().parents[:2]:
        for row in read_batch(folder):
            if row.get("estimate"):
                presences[(folder / row["estimate"]).resolve()] = row.get("presence")
    return [
        replace(pairing, presence=presences.get(pairing.estimate.resolve())) for pairing in pairings
    ]
