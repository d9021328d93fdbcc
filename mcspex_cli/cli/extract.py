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
    from mcspex_cli.checkpoint.names import CheckpointInfo
    from mcspex_cli.extraction.engine import Engine
    from mcspex_cli.extraction.jobs import FileSettings, Job
    from mcspex_cli.extraction.outputs import Extraction
    from mcspex_cli.extraction.runtime import EngineSettings
    from mcspex_cli.extraction.voices import Voice


@dataclass(frozen=True)
class Wanted:
    """A loaded model and the one voice that it is to follow."""

    engine: Engine
    info: CheckpointInfo
    references: Sequence[Path]
    voice: Voice


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
    metavar="FILE|DIR",
    help="A clip of the wanted voice alone, a folder of clips, or a profile. Repeatable.",
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
    from mcspex_cli.extraction.jobs import FileSettings, plan
    from mcspex_cli.extraction.opening import choose
    from mcspex_cli.extraction.runtime import EngineSettings
    from mcspex_cli.extraction.voices import check_sources, list_sources

    jobs = plan(mixtures, list_sources(references), output, overwrite=overwrite)
    info = find_model(model, offline=offline, quiet=quiet or as_json)
    check_sources(references, info)
    how = EngineSettings(device, precision, runtime=runtime)
    in_all = sum(_seconds(job.mixture) or 0.0 for job in jobs)
    how = replace(how, runtime=choose(info, how, in_all))
    prepare(info, how.runtime, quiet=quiet or as_json)
    wanted = _enroll(references, info, how)
    for line in wanted.voice.warnings:
        console.warn(line)
    settings = FileSettings(channel=channel, level=level, subtype=subtype)
    _work(jobs, wanted, settings, Talk(as_json, quiet, verbose))


def _enroll(references: Sequence[Path], info: CheckpointInfo, how: EngineSettings) -> Wanted:
    """Load the model and embed the references."""
    from mcspex_cli.extraction.opening import open_engine
    from mcspex_cli.extraction.tuning import keep_memory
    from mcspex_cli.extraction.voices import enroll

    keep_memory()
    engine = open_engine(info, how)
    return Wanted(engine, info, references, enroll(references, engine, info))


def _work(jobs: Sequence[Job], wanted: Wanted, settings: FileSettings, talk: Talk) -> None:
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
                done = extract_file(wanted.engine, job, wanted.voice.embedding, settings, advance)
            except McspexError as error:
                failed.append(error)
                if len(jobs) > 1:
                    console.error(str(error))
            else:
                _tell(done, wanted, talk)
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


def _tell(done: Extraction, wanted: Wanted, talk: Talk) -> None:
    """Report one finished mixture."""
    if done.limited:
        console.warn(f"{done.output}: turned down (gain {done.gain_db[0]:+.1f} dB) not to clip.")
    if done.silent:
        console.warn(f"{done.output}: nothing of this voice was found, the result is silent.")
    if talk.as_json:
        console.data(_as_row(done, wanted))
    elif not talk.quiet:
        detail = ""
        if talk.verbose:
            gains = ", ".join(f"{gain:+.1f}" for gain in done.gain_db)
            by = wanted.engine.runtime
            detail = (
                f"; {wanted.info.label} (sha256 {wanted.info.sha256[:12]}) on {by.device}, "
                f"{by.precision}, {by.name}, gain {gains} dB"
            )
        console.say(
            f"{done.output}  ({done.seconds:.1f} s in {done.elapsed_s:.1f} s, "
            f"real-time factor {done.real_time_factor:.3f}{detail})"
        )


def _as_row(done: Extraction, wanted: Wanted) -> dict[str, object]:
    """What --json prints for one mixture."""
    return {
        "mixture": str(done.mixture),
        "references": [str(path) for path in wanted.references],
        "output": str(done.output),
        "seconds": round(done.seconds, 3),
        "sample_rate_hz": done.sample_rate_hz,
        "elapsed_s": round(done.elapsed_s, 3),
        "real_time_factor": round(done.real_time_factor, 4),
        "gain_db": list(done.gain_db),
        "limited": done.limited,
        "silent": done.silent,
        "device": wanted.engine.runtime.device,
        "precision": wanted.engine.runtime.precision,
        "runtime": wanted.engine.runtime.name,
        "model": wanted.info.name,
        "model_revision": wanted.info.revision,
        "model_sha256": wanted.info.sha256,
    }
