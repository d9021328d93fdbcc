"""Small scenes to report on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcspex_cli import audio
from tests.conftest import RATE_HZ, buzz


def stage(folder: Path, names: Sequence[str], systems: Sequence[str] = ("good", "bad")) -> Path:
    """Write mixtures/, truth/ and a folder for each system, 0.5 s each.

    The first system leaves a tenth of the other talker, the next two tenths and so on; of the
    last, every third case (from the first) is the other talker.
    """
    for seed, name in enumerate(names):
        target, other = buzz(110, 0.5, seed), (0.3 + 0.1 * seed) * buzz(190, 0.5, seed + 99)
        sounds = {"mixtures": target + other, "truth": target}
        for number, system in enumerate(systems, 1):
            lost = number == len(systems) > 1 and seed % 3 == 0
            sounds[system] = other + 0.1 * target if lost else target + 0.1 * number * other
        for kind, sound in sounds.items():
            path = folder / kind / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            audio.write(path, sound, RATE_HZ)
    return folder
