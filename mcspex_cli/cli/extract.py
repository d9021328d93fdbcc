"""`mcspex extract`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.downloads import find_model, prepare
from mcspex_cli.errors import McspexError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.audio import Samples
    from mcspex_cli.checkpoint.names import CheckpointInfo
    from mcspex_cli.extraction.engine import Engine
    from mcspex_cli.extraction.jobs import FileSettings, Job
    from mcspex_cli.extraction.outputs import Extraction
    from mcspex_cli.extraction.runtime import EngineSettings

GOOD_REFERENCE_S = 1.5
"""Seconds of reference in all under which the user is warned."""


@dataclass(frozen=True)
class Voice:
    """A loaded model and the one voice that it is to follow."""

    engine: Engine
    info: CheckpointInfo
    references: Sequence[Path]
    embedding: Samples


@dataclass(frozen=True)
class Talk:
    """How much to say, and how."""

    as_json: bool
    quiet: bool
    verbose: bool


@click.command()
@click.argument("mixtures", nargs=-1, required=True, type=options.PATH, metavar="MIXTURE...")
@click.option(
    "--ref",
    "references",
    multiple=True,
    required=True,
    type=options.PATH,
    metavar="FILE",
    help="A clip of the wanted voice alone. Repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=options.PATH,
    metavar="FILE|DIR",
    help="Default: MIXTURE.target.wav beside the mixture.",
)
@options.model
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@options.precision
@options.runtime
@options.writing
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@options.as_json
@options.quiet
@click.option("-v", "--verbose", is_flag=True, help="Say what is used, and how.")
def extract(
    mixtures: tuple[Path, ...],
    references: tuple[Path, ...],
    output: Path | None,
    model: str | None,
    offline: bool,
    device: str,
    precision: str,
    runtime: str,
    channel: str,
    level: str,
    subtype: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Extract one person's voice from each MIXTURE.

    \b
    mcspex extract meeting.wav --ref alice.wav
    mcspex extract *.flac --ref alice1.wav --ref alice2.wav -o alice/
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli import audio
    from mcspex_cli.extraction.jobs import FileSettings, plan
    from mcspex_cli.extraction.opening import choose
    from mcspex_cli.extraction.runtime import EngineSettings

    jobs = plan(mixtures, references, output, overwrite=overwrite)
    seconds = sum(audio.probe(path).seconds for path in references)
    info = find_model(model, offline=offline, quiet=quiet or as_json)
    how = EngineSettings(device, precision, runtime=runtime)
    in_all = sum(_seconds(job.mixture) or 0.0 for job in jobs)
    how = replace(how, runtime=choose(info, how, in_all))
    prepare(info, how.runtime, quiet=quiet or as_json)
    voice = _enroll(references, info, how)
    if seconds < GOOD_REFERENCE_S:
        console.warn(f"only {seconds:.1f} s of reference; 3 s or more follow a voice better.")
    settings = FileSettings(channel=channel, level=level, subtype=subtype)
    _work(jobs, voice, settings, Talk(as_json, quiet, verbose))


def _enroll(references: Sequence[Path], info: CheckpointInfo, how: EngineSettings) -> Voice:
    """Load the model and embed the references."""
    from mcspex_cli.extraction.files import read_references
    from mcspex_cli.extraction.opening import open_engine
    from mcspex_cli.extraction.tuning import keep_memory

    keep_memory()
    engine = open_engine(info, how)
    clips = read_references(references, engine)
    return Voice(engine, info, references, engine.embed(clips))


def _work(jobs: Sequence[Job], voice: Voice, settings: FileSettings, talk: Talk) -> None:
    """Extract every job; one that fails does not stop the others."""
    from mcspex_cli import paths
    from mcspex_cli.extraction.files import extract_file

    paths.make_folders(*{job.output.parent for job in jobs})
    failed: list[McspexError] = []
    with console.progress(shown=not (talk.quiet or talk.as_json)) as bar:
        for job in jobs:
            task = bar.add_task(job.mixture.name, total=_seconds(job.mixture))
            advance = partial(bar.advance, task)
            try:
                done = extract_file(voice.engine, job, voice.embedding, settings, advance)
            except McspexError as error:
                failed.append(error)
                if len(jobs) > 1:
                    console.error(str(error))
            else:
                _tell(done, voice, talk)
            bar.remove_task(task)
    if failed and len(jobs) == 1:
        raise failed[0]
    if failed:
        kind = McspexError if len(failed) == len(jobs) else PartialFailure
        raise kind(f"{len(failed)} of {len(jobs)} mixtures failed, see above.")


def _seconds(mixture: Path) -> float | None:
    """How long a mixture is, if it can be read at all."""
    from mcspex_cli import audio

    try:
        return audio.probe(mixture).seconds
    except McspexError:
        return None


def _tell(done: Extraction, voice: Voice, talk: Talk) -> None:
    """Report one finished mixture."""
    if done.limited:
        console.warn(f"{done.output}: turned down (gain {done.gain_db[0]:+.1f} dB) not to clip.")
    if done.silent:
        console.warn(f"{done.output}: nothing of this voice was found, the result is silent.")
    if talk.as_json:
        console.data(_as_row(done, voice))
    elif not talk.quiet:
        detail = ""
        if talk.verbose:
            gains = ", ".join(f"{gain:+.1f}" for gain in done.gain_db)
            by = voice.engine.runtime
            detail = (
                f"; {voice.info.label} (sha256 {voice.info.sha256[:12]}) on {by.device}, "
                f"{by.precision}, {by.name}, gain {gains} dB"
            )
        console.say(
            f"{done.output}  ({done.seconds:.1f} s in {done.elapsed_s:.1f} s, "
            f"real-time factor {done.real_time_factor:.3f}{detail})"
        )


def _as_row(done: Extraction, voice: Voice) -> dict[str, object]:
    """What --json prints for one mixture."""
    return {
        "mixture": str(done.mixture),
        "references": [str(path) for path in voice.references],
        "output": str(done.output),
        "seconds": round(done.seconds, 3),
        "sample_rate_hz": done.sample_rate_hz,
        "elapsed_s": round(done.elapsed_s, 3),
        "real_time_factor": round(done.real_time_factor, 4),
        "gain_db": list(done.gain_db),
        "limited": done.limited,
        "silent": done.silent,
        "device": voice.engine.runtime.device,
        "precision": voice.engine.runtime.precision,
        "runtime": voice.engine.runtime.name,
        "model": voice.info.name,
        "model_revision": voice.info.revision,
        "model_sha256": voice.info.sha256,
    }
