"""Which mixture goes to which output, decided and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import audio, files
from mcspex_cli.errors import OutputError
from mcspex_cli.extraction.activity import ACTIVITY_FORMATS
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

    @property
    def name(self) -> str:
        """What the mixture is called: by its id if it has one, or its path."""
        return self.id or str(self.mixture)

    def outputs(self) -> list[Path]:
        """All files that it writes."""
        return [path for path in (self.output, self.residual, self.activity) if path]


@dataclass(frozen=True)
class Request:
    """What `extract` is asked for. Places are files if they have a suffix, else folders."""

    mixtures: Sequence[Path]
    references: Sequence[Path]
    """Files that are read besides, and never overwritten."""
    output: Path | None = None
    """None: beside each mixture."""
    residual: Path | None = None
    activity: Path | None = None
    speaker: str = "target"
    overwrite: bool = False


def plan(request: Request) -> list[Job]:
    """Give each mixture its outputs: beside it, in a folder, or the one file named.

    The names in a folder, which need not exist yet, and beside a mixture are `STEM.target.wav`,
    `STEM.residual.wav` and `STEM.activity.json`.

    Raises:
        AudioError: a mixture or reference does not exist.
        OutputError: an output exists (and may not be overwritten), is one of the inputs, is
            asked for twice, has an unknown suffix, or its folder is missing.
    """
    for path in (*request.mixtures, *request.references):
        files.check_exists(path)
    _check_suffixes(request)
    jobs = [
        Job(
            mixture,
            _place(request.output or mixture.parent, mixture, ".target.wav"),
            residual=request.residual and _place(request.residual, mixture, ".residual.wav"),
            activity=request.activity and _place(request.activity, mixture, ".activity.json"),
            speaker=request.speaker,
        )
        for mixture in request.mixtures
    ]
    _check_collisions(jobs)
    inputs = {path.resolve() for path in (*request.mixtures, *request.references)}
    named = {place for place in (request.output, request.residual, request.activity) if place}
    for job in jobs:
        for output in job.outputs():
            _check_place(output, inputs, request.overwrite, named=output in named)
    return jobs


def _is_file(place: Path) -> bool:
    """Whether a file is meant, not a folder."""
    return bool(place.suffix) and not place.is_dir()


def _place(place: Path, mixture: Path, ending: str) -> Path:
    """A place itself, or a name in it."""
    return place if _is_file(place) else place / f"{mixture.stem}{ending}"


def _check_suffixes(request: Request) -> None:
    """Refuse files of a kind that cannot be written."""
    for place in (request.output, request.residual):
        if place and _is_file(place) and place.suffix.lower() not in audio.OUTPUT_FORMATS:
            raise OutputError(f"{place}: cannot write this format. Use .wav, .flac or .ogg.")
    place = request.activity
    if place and _is_file(place) and place.suffix.lower() not in ACTIVITY_FORMATS:
        raise OutputError(f"{place}: cannot note activity so. Use .json, .rttm or .srt.")


def _check_collisions(jobs: Sequence[Job]) -> None:
    """Refuse two mixtures with one output, or one output for two things."""
    taken: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs():
            other = taken.setdefault(output.resolve(), job.mixture)
            if other is not job.mixture:
                raise OutputError(
                    f"{other} and {job.mixture} would both be written to {output}. "
                    "Rename one, or extract them one at a time with -o FILE."
                )
        if len({output.resolve() for output in job.outputs()}) < len(job.outputs()):
            raise OutputError(f"{job.output}: is asked for twice. Give each output its own name.")


def _check_place(output: Path, inputs: set[Path], overwrite: bool, *, named: bool) -> None:
    """Refuse an output that would destroy something."""
    if output.resolve() in inputs:
        raise OutputError(
            f"{output}: is an input, which is never overwritten. Choose another name."
        )
    if output.is_dir():
        raise OutputError(f"{output}: is a directory. Choose another name.")
    if named and not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder. Make it, or choose another -o.")
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already. Add --overwrite to replace it.")
