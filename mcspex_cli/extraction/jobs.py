"""Which mixture goes to which output, decided and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import audio, paths
from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.levels import Level

ABSENT = ("keep", "mute", "fail")
"""What may be done where the voice is not there."""


@dataclass(frozen=True)
class FileSettings:
    """How a mixture is read and its estimate written."""

    channel: str = "mix"
    """"mix", a channel's number, or "all": each channel extracted for itself."""
    level: str = "match"
    """"match" (as loud as in the mixture), "peak" (to -1 dBFS), "lufs=-23" (so loud by BS.1770)
    or "raw" (the network's).

    Most networks' level is arbitrary, and matched by least squares; some have learnt it."""
    subtype: str = "PCM_16"
    absent: str = "keep"
    """What is done where the voice is not there, of `ABSENT`: nothing, silence, an error."""
    wet_db: float = 0.0
    """Gain of the voice."""
    dry_db: float | None = None
    """Gain of the mixture that is added to it; None for none."""

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: a level that `Level` does not know, or what is none of `ABSENT`.
        """
        Level.parse(self.level)
        if self.absent not in ABSENT:
            raise ValueError(f"absent {self.absent!r} is none of {', '.join(ABSENT)}")


@dataclass(frozen=True)
class Job:
    """One mixture, the file that its estimate goes to and, in a batch, all that belongs to it."""

    mixture: Path
    output: Path
    references: tuple[Path, ...] = ()
    truth: Path | None = None
    id: str = ""
    seconds: float | None = None
    """The mixture's length; None if it could not be read."""
    residual: Path | None = None
    """Where what is left of the mixture goes."""
    activity: Path | None = None
    """Where it is noted when the voice speaks: .json, .rttm or .srt."""
    speaker: str = "target"
    """What the voice is called in that."""


def plan(
    mixtures: Sequence[Path], references: Sequence[Path], output: Path | None, *, overwrite: bool
) -> list[Job]:
    """Give each mixture its output: beside it, in a folder, or the one file named.

    `output` is a file if it has a suffix and is no folder; the names in a folder, which need
    not exist yet, and beside a mixture are `STEM.target.wav`.

    Raises:
        AudioError: a mixture or reference does not exist.
        OutputError: an output exists (and `overwrite` is not set), is one of the inputs, is
            shared by two mixtures, or its folder is missing.
    """
    for path in (*mixtures, *references):
        paths.check_exists(path)
    is_file = output is not None and not output.is_dir() and bool(output.suffix)
    if output and is_file and output.suffix.lower() not in audio.OUTPUT_FORMATS:
        raise OutputError(f"{output}: cannot write this format. Use .wav, .flac or .ogg.")
    jobs = []
    for mixture in mixtures:
        if output and is_file:
            target = output
        else:
            target = (output or mixture.parent) / f"{mixture.stem}.target.wav"
        jobs.append(Job(mixture, target))
    _check_collisions(jobs)
    inputs = {path.resolve() for path in (*mixtures, *references)}
    for job in jobs:
        _check_place(job.output, inputs, overwrite, named=is_file)
    return jobs


def _check_collisions(jobs: Sequence[Job]) -> None:
    """Refuse two mixtures with one output."""
    taken: dict[Path, Path] = {}
    for job in jobs:
        other = taken.setdefault(job.output.resolve(), job.mixture)
        if other is not job.mixture:
            raise OutputError(
                f"{other} and {job.mixture} would both be written to {job.output}. "
                "Rename one, or extract them one at a time with -o FILE."
            )


def _check_place(output: Path, inputs: set[Path], overwrite: bool, *, named: bool) -> None:
    """Refuse an output that would destroy something."""
    if output.resolve() in inputs:
        raise OutputError(f"{output}: is an input, which is never overwritten. Choose another -o.")
    if output.is_dir():
        raise OutputError(f"{output}: is a directory. Choose another name.")
    if named and not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder. Make it, or choose another -o.")
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already. Add --overwrite to replace it.")
