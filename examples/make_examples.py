"""Remake the example files, or make a larger folder of synthetic voices to train on.

Needs the speech synthesisers flite and espeak-ng (Debian: apt install flite espeak-ng);
their output is free to use. Run from the repository's root:

    python examples/make_examples.py
    python examples/make_examples.py --voices voices --sentences 60
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcspex_cli import audio

RATE_HZ = 16000
VOICES_RATE_HZ = 8000
"""Of the voices to train on, so that the training example is quick."""
SNR_DB = 0.0

TARGET, INTERFERER = "slt", "en-gb+m5"
TARGET_SAYS = "The ferry leaves the harbour at seven, and we must not forget the red suitcase."
INTERFERER_SAYS = "Last winter they painted every window of the old railway station dark green."
REFERENCE_SAYS = "My grandmother keeps eleven hens behind her house, and each of them has a name."

FLITE = ("awb", "kal", "rms", "slt")
ESPEAK = [f"{accent}+{kind}" for accent in ("en-us", "en-gb") for kind in ("m2", "m5", "f2", "f4")]

SHIPPED = (*FLITE, "en-us+m2", "en-us+f2", "en-gb+m5", "en-gb+f4")
SHIPPED_SENTENCES = 5
"""The voices that examples/train.toml trains on."""

SET = {
    "slt_1": ("en-gb+m5", "Different gender"),
    "slt_2": ("en-us+f4", "Same gender"),
    "rms_1": ("en-gb+f2", "Different gender"),
    "rms_2": ("en-us+m2", "Same gender"),
    "awb_1": ("slt", "Different gender"),
    "awb_2": ("en-gb+m2", "Same gender"),
}
"""The test set's mixtures, SPEAKER_NUMBER: who interferes, and the group that makes it."""

TURNS = ("references/slt", "mixtures/slt_1", "references/rms", "mixtures/awb_2", "references/awb")
"""The interview's: slt alone, with somebody else, then two others; and again with her."""

GAP_S = 0.4

WHO = "my sister|the teacher|a tall man|our neighbour|the captain|nobody|every child|an old dog"
DID = "opened|was looking for|carried|forgot|painted|sold|remembered|could not find|wanted"
WHAT = "the yellow boat|a box of apples|three letters|his winter coat|the garden gate|some bread"
WHERE = "in the morning|behind the church|before it rained|on the hill|at twenty past nine|again"


def speak(voice: str, text: str, rate_hz: int = RATE_HZ) -> audio.Samples:
    """Say `text` with a flite or espeak-ng voice; [sample] at `rate_hz`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        if voice in FLITE:
            command = ["flite", "-voice", voice, "-t", text, "-o", str(path)]
        else:
            command = ["espeak-ng", "-v", voice, "-w", str(path), text]
        subprocess.run(command, check=True)
        return audio.read(path, rate_hz)


def mix(target: audio.Samples, interferer: audio.Samples) -> tuple[audio.Samples, audio.Samples]:
    """Mix two voices [sample], equally loud; the mixture and the target in it."""
    length = min(len(target), len(interferer))
    target, interferer = target[:length], interferer[:length]
    ratio = np.square(target).sum() / np.square(interferer).sum()
    mixture = target + interferer * np.sqrt(ratio / 10 ** (SNR_DB / 10))
    scale = 0.9 / np.abs(mixture).max()
    return mixture * scale, target * scale


def sentence(rng: random.Random) -> str:
    """A random sentence."""
    return " ".join(rng.choice(part.split("|")) for part in (WHO, DID, WHAT, WHERE)) + "."


def make_example(folder: Path) -> None:
    """Write mixture.flac, reference.flac and truth.flac."""
    mixture, truth = mix(speak(TARGET, TARGET_SAYS), speak(INTERFERER, INTERFERER_SAYS))
    audio.write(folder / "mixture.flac", mixture, RATE_HZ)
    audio.write(folder / "truth.flac", truth, RATE_HZ)
    audio.write(folder / "reference.flac", speak(TARGET, REFERENCE_SAYS), RATE_HZ)


def make_set(folder: Path) -> None:
    """Write mixtures/, truth/, a reference for each speaker and groups.csv."""
    rng = random.Random(2)
    for name in ("mixtures", "truth", "references"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = ["id,group"]
    for name, (interferer, group) in SET.items():
        speaker = name.split("_")[0]
        mixture, truth = mix(speak(speaker, sentence(rng)), speak(interferer, sentence(rng)))
        audio.write(folder / "mixtures" / f"{name}.flac", mixture, RATE_HZ)
        audio.write(folder / "truth" / f"{name}.flac", truth, RATE_HZ)
        if not name.endswith("_1"):
            clip = speak(speaker, sentence(rng))
            audio.write(folder / "references" / f"{speaker}.flac", clip, RATE_HZ)
        rows.append(f"{name},{group}")
    (folder / "groups.csv").write_text("\n".join(rows) + "\n")


def make_interview(folder: Path) -> None:
    """Write interview.flac: turns of the test set's voices one after the other, equally loud."""
    turns = []
    for name in (*TURNS, "mixtures/slt_2"):
        turn = audio.read(folder / "set" / f"{name}.flac", RATE_HZ)
        turns += [0.1 * turn / turn.std(), np.zeros(round(GAP_S * RATE_HZ), np.float32)]
    audio.write(folder / "interview.flac", np.concatenate(turns[:-1]), RATE_HZ)


def make_voices(folder: Path, voices: Sequence[str], sentences: int) -> None:
    """Write `sentences` random sentences by each voice as VOICE/VOICE-NUMBER.ogg."""
    rng = random.Random(1)
    for voice in voices:
        (folder / voice).mkdir(parents=True, exist_ok=True)
        for number in range(sentences):
            path = folder / voice / f"{voice}-{number:03d}.ogg"
            speech = speak(voice, sentence(rng), VOICES_RATE_HZ)
            audio.write(path, speech, VOICES_RATE_HZ)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voices", type=Path, help="write all voices to this folder instead")
    parser.add_argument("--sentences", type=int, default=60, help="of each voice, with --voices")
    arguments = parser.parse_args()
    if arguments.voices:
        make_voices(arguments.voices, [*FLITE, *ESPEAK], arguments.sentences)
    else:
        make_example(Path(__file__).parent)
        make_set(Path(__file__).parent / "set")
        make_interview(Path(__file__).parent)
        make_voices(Path(__file__).parent / "voices", SHIPPED, SHIPPED_SENTENCES)


if __name__ == "__main__":
    main()
