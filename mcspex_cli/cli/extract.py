"""`mcspex extract`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options, streams
from mcspex_cli.cli.models import find_model, prepare
from mcspex_cli.cli.outcomes import Talk, Wanted, tell
from mcspex_cli.errors import AbsentError, AudioError, McspexError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.extraction.jobs import FileSettings, Job
    from mcspex_cli.extraction.reference import Span
    from mcspex_cli.extraction.runtime import EngineSettings

STREAM = Path("-")
"""Standard input, as a mixture; standard output, as an output."""


@click.command()
@click.argument("mixtures", nargs=-1, required=True, type=options.PATH, metavar="MIXTURE...")
@click.option(
    "--ref",
    "references",
    multiple=True,
    type=options.PATH,
    metavar="FILE|DIR",
    help="A clip of the wanted voice alone, a folder of clips, or a profile. Repeatable.",
)
@click.option(
    "--ref-span",
    "spans",
    multiple=True,
    metavar="FROM-TO",
    callback=lambda _, __, texts: [_span(text) for text in texts],
    help="When it speaks alone in the mixture itself: 12.0-18.5 or 0:12-0:18.5. Repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=options.PATH,
    metavar="FILE|DIR|-",
    help="Default: MIXTURE.target.wav beside the mixture.",
)
@click.option(
    "--residual",
    type=options.PATH,
    metavar="FILE|DIR",
    help="Write what is left of the mixture, too.",
)
@click.option(
    "--activity",
    type=options.PATH,
    metavar="FILE|DIR",
    help="Write when the voice speaks, too: .json, .rttm or .srt.",
)
@options.model
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@options.precision
@options.runtime
@options.writing
@options.treating
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@options.as_json
@options.quiet
@click.option("-v", "--verbose", is_flag=True, help="Say what is used, and how.")
def extract(as_json: bool, quiet: bool, verbose: bool, **asked: Any) -> None:
    """Extract one person's voice from each MIXTURE; - is standard input.

    \b
    mcspex extract meeting.wav --ref alice.wav
    mcspex extract *.flac --ref alice1.wav --ref alice2.wav -o alice/
    mcspex extract podcast.mp4 --ref-span 0:12-0:18.5 --residual rest.wav --activity alice.srt
    ffmpeg -i talk.mkv -f wav - | mcspex extract - --ref alice.wav -o - | aplay
    """  # noqa: D301 (click needs the character itself)
    _check(asked, as_json=as_json)
    to_stdout = asked["output"] == STREAM
    # Of the outermost context, so that errors are told by the streams' names as well.
    keep = click.get_current_context().find_root().with_resource
    if to_stdout:
        streams.check_stdout()
        asked["output"] = keep(streams.folder()) / "stdout.wav"
        keep(console.shown_as(asked["output"], streams.STDOUT))
    if STREAM in asked["mixtures"]:
        asked["stdin"] = keep(streams.stdin_file())
        keep(console.shown_as(asked["stdin"], streams.STDIN))
    _extract(asked, Talk(as_json, quiet, verbose))
    if to_stdout:
        streams.to_stdout(asked["output"])


def _check(asked: dict[str, Any], *, as_json: bool) -> None:
    """Refuse what cannot be meant."""
    mixtures, output = asked["mixtures"], asked["output"]
    if not asked["references"] and not asked["spans"]:
        raise click.UsageError("whose voice? Add --ref FILE, or --ref-span FROM-TO.")
    if asked["spans"] and len(mixtures) > 1:
        raise click.UsageError("--ref-span is a span of one MIXTURE; name one only.")
    if mixtures.count(STREAM) > 1:
        raise click.UsageError("standard input can be read once; name - once only.")
    if STREAM in mixtures and output is None:
        raise click.UsageError("a MIXTURE from standard input needs -o FILE, or -o -.")
    if output == STREAM and (len(mixtures) > 1 or as_json):
        raise click.UsageError("-o - is for the sound of one MIXTURE, without --json.")
    if asked["level"] == "raw" and asked["dry_db"] is not None:
        raise click.UsageError("--level raw is far louder than the mixture; leave --dry out.")
    if STREAM in (asked["residual"], asked["activity"]):
        raise click.UsageError("only -o can be standard output.")


def _extract(asked: dict[str, Any], talk: Talk) -> None:
    """Plan, load the model and work."""
    from mcspex_cli.extraction.jobs import FileSettings
    from mcspex_cli.extraction.reference import check_sources

    settings = FileSettings(*(asked[name] for name in options.WRITING))
    jobs = _plan(asked)
    silent = talk.quiet or talk.as_json
    info = find_model(asked["model"], offline=asked["offline"], quiet=silent)
    options.check_presence(info, settings.absent)
    check_sources(asked["references"], info)
    how = _how(asked, info, jobs)
    prepare(info, how.runtime, quiet=silent)
    wanted = _enroll(asked, info, how, jobs[0].mixture)
    for line in wanted.voice.warnings:
        console.warn(line)
    _work(jobs, wanted, settings, talk)


def _plan(asked: dict[str, Any]) -> list[Job]:
    """Which files are to be written."""
    from mcspex_cli.extraction.jobs import Request, plan
    from mcspex_cli.extraction.reference import list_sources

    stdin: Path = asked.get("stdin", STREAM)
    references = asked["references"]
    alone = len(references) == 1 and not asked["spans"]
    request = Request(
        [stdin if path == STREAM else path for path in asked["mixtures"]],
        list_sources(references),
        asked["output"],
        asked["residual"],
        asked["activity"],
        speaker=references[0].stem if alone else "target",
        overwrite=asked["overwrite"],
    )
    return [replace(job, id="stdin" if job.mixture == stdin else "") for job in plan(request)]


def _how(asked: dict[str, Any], info: CheckpointInfo, jobs: Sequence[Job]) -> EngineSettings:
    """What the network is to be run by."""
    from mcspex_cli.extraction.engine import choose_runtime
    from mcspex_cli.extraction.runtime import EngineSettings

    how = EngineSettings(asked["device"], asked["precision"], runtime=asked["runtime"])
    in_all = sum(_seconds(job.mixture) or 0.0 for job in jobs)
    return replace(how, runtime=choose_runtime(info, how, in_all))


def _enroll(
    asked: dict[str, Any], info: CheckpointInfo, how: EngineSettings, mixture: Path
) -> Wanted:
    """Load the model and embed the references, those in the mixture too."""
    from mcspex_cli.extraction.engine import open_engine
    from mcspex_cli.extraction.reference import enroll
    from mcspex_cli.extraction.runtime import keep_memory

    keep_memory()
    engine = open_engine(info, how)
    voice = enroll(
        asked["references"],
        engine,
        info,
        spans=asked["spans"],
        mixture=mixture,
        channel=asked["channel"],
    )
    return Wanted(engine, info, voice)


def _work(jobs: Sequence[Job], wanted: Wanted, settings: FileSettings, talk: Talk) -> None:
    """Extract every job; one that fails does not stop the others."""
    from mcspex_cli import files
    from mcspex_cli.extraction.files import extract_file

    files.make_folders(*{path.parent for job in jobs for path in job.outputs()})
    failed: list[McspexError] = []
    with console.progress(shown=not (talk.quiet or talk.as_json)) as bar:
        for job in jobs:
            task = bar.add_task(job.id or job.mixture.name, total=_seconds(job.mixture))
            advance = partial(bar.advance, task)
            try:
                done = extract_file(wanted.engine, job, wanted.voice.embedding, settings, advance)
            except McspexError as error:
                failed.append(error)
                if len(jobs) > 1:
                    console.error(str(error))
            else:
                tell(job, done, settings.absent, wanted, talk)
            bar.remove_task(task)
    if failed and len(jobs) == 1:
        raise failed[0]
    if failed:
        raise _kind(failed, jobs)(f"{len(failed)} of {len(jobs)} mixtures failed, see above.")


def _kind(failed: Sequence[McspexError], jobs: Sequence[Job]) -> type[McspexError]:
    """What is to be raised for several failures."""
    if len(failed) < len(jobs):
        return PartialFailure
    absent = all(isinstance(error, AbsentError) for error in failed)
    return AbsentError if absent else McspexError


def _span(text: str) -> Span:
    """--ref-span, read."""
    from mcspex_cli.extraction.reference import Span

    try:
        return Span.parse(text)
    except AudioError as error:
        raise click.BadParameter(str(error)) from error


def _seconds(mixture: Path) -> float | None:
    """How long a mixture is, if it can be read at all."""
    from mcspex_cli import audio

    try:
        return audio.probe(mixture).seconds
    except McspexError:
        return None
