"""`mcspex extract`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model, prepare
from mcspex_cli.errors import AbsentError, AudioError, McspexError, OutputError, PartialFailure

if TYPE_CHECKING:
    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.job import ExtractionOptions, Job, Result
    from mcspex_cli.extraction.reference import Span, Voice

STREAM = Path("-")
"""Standard input, as a mixture; standard output, as an output."""

_COPIED_BYTES = 2**20


@dataclass(frozen=True)
class ExtractRequest:
    """What `mcspex extract` is asked for, besides how: the files and the model."""

    mixtures: tuple[Path, ...]
    references: tuple[Path, ...]
    spans: tuple[Span, ...]
    output: Path | None
    residual: Path | None
    activity: Path | None
    model: str | None
    offline: bool
    device: str
    precision: str
    runtime: str
    overwrite: bool
    as_json: bool
    quiet: bool
    verbose: bool

    @property
    def is_silent(self) -> bool:
        """Whether a person is told nothing but warnings and errors."""
        return self.quiet or self.as_json


@click.command()
@click.argument("mixtures", nargs=-1, required=True, type=options.PATH, metavar="MIXTURE...")
@options.reference()
@click.option(
    "--ref-span",
    "spans",
    multiple=True,
    metavar="FROM-TO",
    callback=lambda _, __, texts: tuple(_span(text) for text in texts),
    help="When the person speaks alone in the mixture itself: 12.0-18.5, 0:12-0:18.5, or 12- "
    "for all from there. Repeatable.",
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
    help="Also write what is left of the mixture: with --level match, estimate and residual add up "
    "to the mixture.",
)
@click.option(
    "--activity",
    type=options.PATH,
    metavar="FILE|DIR",
    help="Write when the voice speaks, too: .json, .rttm or .srt.",
)
@options.running
@options.writing
@options.treating
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@options.as_json
@options.quiet
@click.option("-v", "--verbose", is_flag=True, help="Say what is used, and how.")
def extract(**values: Any) -> None:
    """Extract one person's voice from each MIXTURE; - is standard input.

    \b
    mcspex extract meeting.wav --ref alice.wav
    mcspex extract *.flac --ref alice1.wav --ref alice2.wav -o alice/
    mcspex extract podcast.mp4 --ref-span 0:12-0:18.5 --residual rest.wav --activity alice.srt
    ffmpeg -i talk.mkv -f wav - | mcspex extract - --ref alice.wav -o - | aplay
    """  # noqa: D301 (click needs the character itself)
    request = options.filled(ExtractRequest, values)
    settings = options.extraction_options(values)
    _check_usage(request)
    to_stdout = request.output == STREAM
    # Of the outermost context, so that errors are told by the streams' names as well.
    keep = click.get_current_context().find_root().with_resource
    if to_stdout:
        _check_stdout()
        request = replace(request, output=keep(_temporary_folder()) / "stdout.wav")
        keep(console.shown_as(request.output or Path(), "standard output"))
    stdin = None
    if STREAM in request.mixtures:
        _check_stdin()
        stdin = keep(_temporary_folder()) / "stdin"
        keep(console.shown_as(stdin, "standard input"))
        mixtures = tuple(stdin if path == STREAM else path for path in request.mixtures)
        request = replace(request, mixtures=mixtures)
    _extract(request, settings, stdin)
    if to_stdout:
        _copy_to_stdout(request.output or Path())


def _check_usage(request: ExtractRequest) -> None:
    """Refuse combinations of options that mean nothing."""
    places = request.output, request.residual, request.activity
    for message, is_wrong in {
        "whose voice? Add --ref FILE, or --ref-span FROM-TO.": not (
            request.references or request.spans
        ),
        "--ref-span is a span of one MIXTURE; name one only.": request.spans
        and len(request.mixtures) > 1,
        "standard input can be read once; name - once only.": request.mixtures.count(STREAM) > 1,
        "a MIXTURE from standard input needs -o FILE, or -o -.": STREAM in request.mixtures
        and request.output is None,
        "-o - is for the sound of one MIXTURE, without --json.": request.output == STREAM
        and (len(request.mixtures) > 1 or request.as_json),
        "only -o can be standard output.": STREAM in places[1:],
    }.items():
        if is_wrong:
            raise click.UsageError(message)


def _extract(request: ExtractRequest, settings: ExtractionOptions, stdin: Path | None) -> None:
    """Check everything that can be known before the model is loaded, load it, and work."""
    from mcspex_cli import audio
    from mcspex_cli.extraction.engine import open_engine
    from mcspex_cli.extraction.extractor import Extractor
    from mcspex_cli.extraction.job import Places, check_presence, check_references
    from mcspex_cli.extraction.profile import Profile
    from mcspex_cli.extraction.reference import check_sources, check_spans, list_sources
    from mcspex_cli.extraction.runtime import EngineSettings, choose_runtime, keep_memory

    voices: list[Voice] = []
    references, places = list_sources(request.references), Places()
    jobs = _plan(request, stdin, lambda: voices[0])
    for job in jobs:
        check_references(job, references)
        places.add(job)
    sources = check_sources(references)
    if stdin:
        _copy_stdin(stdin)
    for place, job in enumerate(jobs):
        try:
            reader = job.open(settings)
            jobs[place] = replace(job, reader=reader)
            if place >= audio.MOST_OPEN:
                reader.close()
        except McspexError:  # one of several is told when it is its turn
            if len(jobs) == 1:
                raise
    if jobs[0].reader:
        check_spans(jobs[0].reader, request.spans)
    seconds = sum(job.reader.info.seconds for job in jobs if job.reader)
    info = find_model(request.model, offline=request.offline, quiet=request.is_silent)
    check_presence(info, info.calibration, settings.absent)
    for path, source in sources.items():
        if isinstance(source, Profile):
            source.enrolment_for(info, path)
    engine = EngineSettings(request.device, request.precision, runtime=request.runtime)
    engine = choose_runtime(info, engine, seconds)
    prepare(info, engine.runtime, quiet=request.is_silent)
    keep_memory()
    extractor = Extractor(info, open_engine(info, engine))
    voices.append(
        extractor.enroll(
            [one if isinstance(one, audio.Reader) else path for path, one in sources.items()],
            spans=request.spans,
            mixture=jobs[0].mixture,
            channel=settings.channel,
            track=settings.track,
            damaged=settings.damaged,
        )
    )
    for line in voices[0].warnings:
        console.warn(line)
    _work(request, extractor, jobs, settings, seconds)


def _plan(request: ExtractRequest, stdin: Path | None, voice: Callable[[], Voice]) -> list[Job]:
    """Which files are to be written: beside a mixture, in a folder, or the one file named."""
    from mcspex_cli import files
    from mcspex_cli.extraction.job import Job, Outputs

    alone = len(request.references) == 1 and not request.spans
    speaker = request.references[0].stem if alone else "target"
    jobs = []
    for mixture in request.mixtures:
        if mixture != stdin:
            files.check_exists(mixture)
        if mixture.is_dir():
            raise AudioError(
                f"{mixture}: is a folder. For all recordings in it: mcspex batch {mixture} "
                "--ref FILE -o DIR"
            )
        outputs = Outputs(
            _place(request.output or mixture.parent, mixture, ".target.wav"),
            request.residual and _place(request.residual, mixture, ".residual.wav"),
            request.activity and _place(request.activity, mixture, ".activity.json"),
            speaker,
            request.overwrite,
        )
        jobs.append(Job(mixture, voice, outputs, "stdin" if mixture == stdin else ""))
    return jobs


def _place(place: Path, mixture: Path, ending: str) -> Path:
    """A place itself if it names a file, else the name of `mixture` with an ending in it."""
    from mcspex_cli.audio import FORMATS
    from mcspex_cli.extraction.presence import ACTIVITY_FORMATS

    if os.path.isdir(place):  # noqa: PTH112 (Path.is_dir raises if the name is too long)
        return place / f"{mixture.stem}{ending}"
    if place.name.lower() in (*FORMATS, *ACTIVITY_FORMATS):
        raise OutputError(f"{place}: names no file. Put a name before the dot.")
    return place if place.suffix else place / f"{mixture.stem}{ending}"


def _work(
    request: ExtractRequest,
    extractor: Extractor,
    jobs: Sequence[Job],
    settings: ExtractionOptions,
    seconds: float,
) -> None:
    """Extract every job; one that fails does not stop the others."""
    failed: list[McspexError] = []
    name = jobs[0].id or jobs[0].mixture.name if len(jobs) == 1 else f"{len(jobs)} mixtures"
    with console.progress(shown=not request.is_silent) as bar:
        task = bar.add_task(name, total=seconds or None)
        results = extractor.extract_files(jobs, settings, lambda done_s: bar.advance(task, done_s))
        with closing(results):  # so that an interrupt here does not write what is left
            for job, result in results:
                if not isinstance(result, McspexError):
                    _show(request, job, result)
                    continue
                failed.append(result)
                if len(jobs) > 1:
                    console.error(str(result))
    if failed and len(jobs) == 1:
        raise failed[0]
    if failed:
        kind: type[McspexError] = PartialFailure
        if len(failed) == len(jobs):
            absent = all(isinstance(error, AbsentError) for error in failed)
            kind = AbsentError if absent else McspexError
        raise kind(f"{len(failed)} of {len(jobs)} mixtures failed, see above.")


def _show(request: ExtractRequest, job: Job, result: Result) -> None:
    output = job.outputs.estimate
    for line in result.warnings:
        is_of_mixture = line.startswith(str(job.mixture))
        console.warn(line if is_of_mixture else f"{output}: {line}")
    if request.as_json:
        row = result.to_dict()
        if job.id:  # the temporary file of standard input is nobody's business
            names = (source.replace(str(job.mixture), job.id) for source in row["references"])
            row["references"] = list(names)
            row["warnings"] = [line.replace(str(job.mixture), job.id) for line in row["warnings"]]
        console.data(row)
    elif not request.quiet:
        facts = [
            f"{result.seconds:.1f} s in {result.elapsed_s:.1f} s",
            f"real-time factor {result.real_time_factor:.3f}",
        ]
        if result.presence is not None:
            facts.append(f"presence {result.presence:.2f}")
        detail = ""
        if request.verbose:
            gains = ", ".join(f"{gain:+.1f}" for gain in result.gain_db)
            revision = f"@{result.model_revision[:12]}" if result.model_revision else ""
            detail = (
                f"; {result.model}{revision} (sha256 {result.model_sha256[:12]}) on "
                f"{result.device}, {result.precision}, {result.runtime}, gain {gains} dB, speaks "
                f"{result.active_s:.1f} s"
            )
        others = [str(path) for path in job.outputs.paths()[1:]]
        console.say("  ".join([str(output), f"({', '.join(facts)}{detail})", *others]))


def _span(text: str) -> Span:
    from mcspex_cli.extraction.reference import Span

    try:
        return Span.parse(text)
    except AudioError as error:
        raise click.BadParameter(str(error)) from error


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is removed afterwards."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="mcspex-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"no temporary folder ({error.strerror}). Set TMPDIR.") from error
    with folder as name:
        yield Path(name)


def _check_stdin() -> None:
    """Refuse a standard input from which nothing can come."""
    if sys.stdin is None:
        raise AudioError("standard input is closed. Pipe a sound file into it.")
    if sys.stdin.isatty():
        raise AudioError("standard input is a terminal. Pipe a sound file into it.")


def _copy_stdin(path: Path) -> None:
    """Keep standard input in a file, since some formats are read from their end."""
    copied = 0
    try:
        with path.open("wb") as file:
            while block := _read_stdin():
                copied += file.write(block)
    except OSError as error:
        raise OutputError(
            f"standard input: cannot be kept ({error.strerror}). Set TMPDIR."
        ) from error
    if not copied:
        raise AudioError("standard input is empty. Pipe a sound file into it.")


def _read_stdin() -> bytes:
    try:
        return sys.stdin.buffer.read(_COPIED_BYTES)
    except OSError as error:
        raise AudioError(f"standard input: cannot be read ({error.strerror}).") from error


def _check_stdout() -> None:
    """Refuse to write sound to a terminal, before any work."""
    if sys.stdout is None:
        raise OutputError("standard output is closed. Redirect it to a file or program.")
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal. Redirect it to a file or program.")


def _copy_to_stdout(path: Path) -> None:
    """Copy a finished file to standard output."""
    with path.open("rb") as file:
        try:
            shutil.copyfileobj(file, sys.stdout.buffer, _COPIED_BYTES)
            sys.stdout.buffer.flush()
        except OSError as error:
            # The interpreter would fail, at its end, on what is still buffered.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                message = "standard output was closed before all was written."
            else:
                message = f"standard output: writing failed ({error.strerror})."
            raise OutputError(message) from error
