"""`mcspex extract`, and `mcspex enroll`, which keeps a voice in a profile."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli import files
from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import argument, flag, option, path
from mcspex_cli.errors import (
    AbsentError,
    AudioError,
    CheckpointError,
    McspexError,
    OutputError,
    PartialFailure,
    printable,
)

if TYPE_CHECKING:
    from mcspex_cli import EngineSettings, ExtractionOptions, Extractor, Job, Result, Span, Voice
    from mcspex_cli.extraction.profile import Profile, ReferenceQuality

_STREAM = "-"
"""Standard input, as a mixture; standard output, as an output. A file called so is ./- instead."""

_COPIED_BYTES = 2**20


def _spans(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> tuple[Span, ...]:
    if not texts:
        return ()
    from mcspex_cli.extraction.reference import Span

    try:
        return tuple(map(Span.parse, texts))
    except AudioError as error:
        raise click.BadParameter(str(error)) from error


@dataclass(frozen=True)
class ExtractRequest:
    """The arguments of `mcspex extract`."""

    mixtures: tuple[str, ...] = argument(
        "MIXTURE...", nargs=-1, required=True, type=options.PATH_AS_TYPED
    )
    references: tuple[Path, ...] = options.references()
    spans: tuple[Span, ...] = option(
        "FROM-TO",
        "A part of the mixture in which the person speaks alone: 12.0-18.5, 0:12-0:18.5, or 12- "
        "to the end. Repeatable.",
        "--ref-span",
        multiple=True,
        callback=_spans,
    )
    output: str | None = option(
        "FILE|DIR|-",
        "What to write; - is standard output.  [default: MIXTURE.target.wav beside the mixture]",
        *("-o", "--output"),
        type=options.PATH_AS_TYPED,
    )
    residual: str | None = option(
        "FILE|DIR",
        "Also write what is left of the mixture. With --level match, estimate and residual add up "
        "to the mixture.",
        type=options.PATH_AS_TYPED,
    )
    activity: str | None = option(
        "FILE|DIR",
        "Also write when the person speaks, to a file that ends in {}.",
        type=options.PATH_AS_TYPED,
        cls=options.TableOption,
        rows=options.table("extraction.job", "ACTIVITY_FORMATS"),
        strict=False,
    )
    model: str | None = options.MODEL
    offline: bool = options.OFFLINE
    engine_settings: EngineSettings = options.ENGINE
    passes: int = options.PASSES_OPTION
    extraction: ExtractionOptions = options.EXTRACTION
    overwrite: bool = flag("Replace existing outputs.")
    as_json: bool = options.JSON
    verbose: bool = flag("Also show the model, the device and the gain.", "-v", "--verbose")


@options.command(has_quiet=True)
def extract(request: ExtractRequest = options.group(ExtractRequest)) -> None:
    """Extract one person's voice from each MIXTURE.

    A MIXTURE is a sound file or a video; - is standard input.

    \b
    mcspex extract meeting.wav --ref alice.wav
    mcspex extract *.flac --ref alice1.wav --ref alice2.wav -o alice/
    mcspex extract podcast.mp4 --ref-span 0:12-0:18.5 --residual rest.wav --activity alice.srt
    ffmpeg -i talk.mkv -f wav - | mcspex extract - --ref alice.wav -o - | aplay
    """  # noqa: D301 (click needs the character itself)
    _check_usage(request)
    from_stdin, to_stdout = _STREAM in request.mixtures, request.output == _STREAM
    if to_stdout:
        from mcspex_cli.extraction.reference import list_sources

        mixtures = [Path(name) for name in request.mixtures if name != _STREAM]
        inputs = [*mixtures, *list_sources(request.references)]
        console.check_sound_output(inputs, from_stdin=from_stdin)
    if from_stdin:
        console.check_sound_input("Pipe a sound file into it.")
    if not from_stdin and not to_stdout:
        _extract(request)
        return
    # In the outermost context, so that errors are shown with the streams' names as well.
    enter = click.get_current_context().find_root().with_resource
    folder = enter(files.temporary_folder())
    stdin, stdout = folder / "stdin", folder / "stdout.wav"
    enter(console.shown_as(stdin, "standard input"))
    enter(console.shown_as(stdout, "standard output"))
    request = replace(
        request,
        mixtures=tuple(str(stdin) if name == _STREAM else name for name in request.mixtures),
        output=str(stdout) if to_stdout else request.output,
    )
    try:
        _extract(request, stdin if from_stdin else None)
    except OutputError as error:
        is_temporary = isinstance(error.__cause__, OSError) and str(error).startswith(str(folder))
        if not is_temporary:  # what the system refused is a file that the user named
            raise
        hint = f"Temporary files are in TMPDIR ({folder.parent})."
        raise type(error)(f"{error} {hint}") from error
    if to_stdout:
        _copy_to_stdout(stdout)


def _check_usage(request: ExtractRequest) -> None:
    """Refuse combinations of options that mean nothing."""
    several = len(request.mixtures) > 1
    if not (request.references or request.spans):
        raise click.UsageError("whose voice? Add --ref FILE, or --ref-span FROM-TO.")
    if request.spans and several:
        raise click.UsageError("--ref-span works with one MIXTURE only.")
    if request.mixtures.count(_STREAM) > 1:
        raise click.UsageError("standard input can be read only once; name - once.")
    if _STREAM in request.mixtures and request.output is None:
        raise click.UsageError("a MIXTURE from standard input needs -o FILE, or -o -.")
    if request.output == _STREAM and (several or request.as_json):
        raise click.UsageError("-o - works with one MIXTURE only, and not with --json.")
    if _STREAM in (request.residual, request.activity):
        raise click.UsageError("only -o can be standard output.")


def _extract(request: ExtractRequest, stdin: Path | None = None) -> None:
    """Check everything that can be known before the model is loaded, load it, and work."""
    from mcspex_cli.extraction import reference
    from mcspex_cli.extraction.job import check_absent, check_jobs

    extraction = request.extraction
    references = reference.list_sources(request.references)
    jobs = _plan(request, stdin, lambda: voice)  # which is enrolled below
    for job in jobs:
        console.check_log_files(job.outputs.paths())
        options.check_subtype(job.outputs.sounds(), extraction.subtype)
    check_jobs(jobs, references)
    profiles = reference.check_references(references)
    if stdin:
        _copy_stdin(stdin)
    for index, job in enumerate(jobs):
        try:
            jobs[index] = replace(job, reader=job.open(extraction))
        except McspexError:  # one of several fails when it is its turn
            if len(jobs) == 1:
                raise
    first = jobs[0]
    if first.reader and request.spans:
        reference.check_spans(first.reader, request.spans)
    seconds = sum(job.reader.info.seconds for job in jobs if job.reader)
    info = options.find_model(request.model, offline=request.offline)
    check_absent(extraction.absent, info, info.calibration)
    for profile_path, profile in profiles.items():
        profile.enrolment_for(info, profile_path)
    settings = replace(request.engine_settings, passes=request.passes)
    extractor = options.load_extractor(info, settings, seconds)
    voice = extractor.enroll(
        references, spans=request.spans, mixture=first.mixture, options=extraction
    )
    for line in voice.warnings:
        console.warn(line)
    _work(request, extractor, jobs, seconds, voice)


def _plan(request: ExtractRequest, stdin: Path | None, voice: Callable[[], Voice]) -> list[Job]:
    """A job for each mixture: its outputs are beside it, in a folder, or the file named."""
    from mcspex_cli.extraction.job import Job, Outputs, speaker_name

    jobs = []
    for mixture in map(Path, request.mixtures):
        if mixture != stdin:
            files.check_exists(mixture)
        if mixture.is_dir():
            raise AudioError(
                f"{mixture}: is a folder. For all recordings in it: mcspex batch {mixture} "
                "--ref FILE -o DIR"
            )
        outputs = Outputs(
            _output(request.output or str(mixture.parent), mixture, ".target.wav"),
            _output(request.residual, mixture, ".residual.wav") if request.residual else None,
            _output(request.activity, mixture, ".activity.json") if request.activity else None,
            speaker_name(request.references, request.spans),
            request.overwrite,
        )
        jobs.append(Job(mixture, voice, outputs, "stdin" if mixture == stdin else ""))
    return jobs


def _output(name: str, mixture: Path, ending: str) -> Path:
    """The file that `name` names, or a file called like the mixture in the folder that it names.

    A name that ends in a slash is a folder's, even if it does not exist yet.
    """
    from mcspex_cli.audio import FORMATS
    from mcspex_cli.extraction.job import ACTIVITY_FORMATS

    output = Path(name)
    # Path.is_dir would raise if the name is too long.
    is_folder = not os.path.basename(name) or os.path.isdir(name)  # noqa: PTH112, PTH119
    if not is_folder and output.name.lower() in (*FORMATS, *ACTIVITY_FORMATS):
        raise OutputError(f"{output}: names no file. Put a name before the dot.")
    return output if output.suffix and not is_folder else output / f"{mixture.stem}{ending}"


def _work(
    request: ExtractRequest, extractor: Extractor, jobs: Sequence[Job], seconds: float, voice: Voice
) -> None:
    """Extract every job; one that fails does not stop the others."""
    failed: list[McspexError] = []
    name = jobs[0].id or jobs[0].mixture.name if len(jobs) == 1 else f"{len(jobs)} mixtures"
    with (
        console.progress(name, seconds or None) as update,
        # It is closed, so that nothing more is written after an interrupt.
        closing(
            extractor.extract_files(
                jobs, request.extraction, lambda seconds: update(advance=seconds)
            )
        ) as results,
    ):
        for number, (job, result) in enumerate(results, 1):
            if isinstance(result, McspexError):
                failed.append(result)
                if len(jobs) > 1:
                    console.error(str(result))
                continue
            try:
                _show(request, job, result, voice)
            except OSError as error:
                done = f"{number} of {console.count(len(jobs), 'mixture')} done."
                raise OutputError(f"{_stdout_error(error)} {done}") from error
    if failed and len(jobs) == 1:
        raise failed[0]
    if failed:
        kind: type[McspexError] = PartialFailure
        if len(failed) == len(jobs):
            absent = all(isinstance(error, AbsentError) for error in failed)
            kind = AbsentError if absent else McspexError
        raise kind(f"{len(failed)} of {len(jobs)} mixtures failed, see above.")


def _show(request: ExtractRequest, job: Job, result: Result, voice: Voice) -> None:
    row, output = result.to_dict(), job.outputs.estimate
    for line in result.warnings:
        if line in voice.warnings:  # shown before: those of a span are its mixture's, too
            continue
        is_of_mixture = line.startswith(f"{job.mixture}: ")
        console.warn(line if is_of_mixture else f"{output}: {line}")
    if request.as_json:
        if job.id:  # not the name of the temporary file of standard input
            for key in ("references", "warnings"):
                row[key] = [line.replace(str(job.mixture), job.id) for line in row[key]]
        console.data(row)
    speed, sound = console.figures(row)
    if request.verbose:
        revision = f"@{result.model_revision[:12]}" if result.model_revision else ""
        speed += (
            f"; {result.model}{revision} (sha256 {result.model_sha256[:12]}) on "
            f"{result.device}, {result.precision}, {result.runtime}, {sound}"
        )
    others = (row["residual"], row["activity"])
    console.say("  ".join([str(output), f"({speed})", *filter(None, others)]))


def _copy_stdin(path: Path) -> None:
    """Keep standard input in a file, since some formats are read from their end."""

    def read() -> bytes:
        try:
            return sys.stdin.buffer.read(_COPIED_BYTES)
        except OSError as error:
            raise AudioError(f"standard input: cannot be read ({error.strerror}).") from error

    copied = 0
    try:
        with path.open("wb") as file:
            while block := read():
                copied += file.write(block)
    except OSError as error:
        raise files.output_error(path, error, "cannot be kept") from error
    if not copied:
        raise AudioError("standard input is empty. Pipe a sound file into it.")


def _copy_to_stdout(path: Path) -> None:
    with path.open("rb") as file:
        try:
            shutil.copyfileobj(file, sys.stdout.buffer, _COPIED_BYTES)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise _stdout_error(error) from error


def _stdout_error(error: OSError) -> OutputError:
    """The error for a standard output that cannot be written; it takes nothing any more."""
    # The interpreter would fail, at its end, on what is still buffered.
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return OutputError("standard output was closed before all was written.")
    return OutputError(f"standard output: writing failed ({error.strerror}).")


class _Name(click.types.StringParamType):
    """A model's name, which may have spaces in MCSPEX_MODEL, since a folder's may."""

    envvar_list_splitter = "\0"


@options.command(has_quiet=True)
def enroll(
    sources: tuple[Path, ...] = argument("[REF]...", nargs=-1, type=options.PATH),
    output: Path | None = path("FILE", "The profile to write.", "-o", "--output"),
    name: str | None = option(
        "TEXT", "Whose voice it is.  [default: the profile's file name]", type=options.TEXT
    ),
    models: tuple[str, ...] = option(
        "NAME",
        "As for extract. Repeat it to make a profile for several models.",
        "--model",
        multiple=True,
        type=_Name(),
        envvar="MCSPEX_MODEL",
        show_envvar=True,
        shell_complete=options.complete_models,
    ),
    offline: bool = options.OFFLINE,
    engine_settings: EngineSettings = options.ENGINE,
    overwrite: bool = flag("Replace an existing profile."),
    listed: bool = flag("List the profiles in the folders REF, or in this one.", "--list"),
    shown: bool = flag("Show what is in the profiles REF.", "--show"),
    as_json: bool = options.JSON,
) -> None:
    """Save a voice in a small file, a profile, for use as --ref.

    REF is a clip of one person alone, a folder of such clips, or an older profile. The command
    shows how good each clip is. A profile holds no sound, and works only with the models that it
    was made with.

    \b
    mcspex enroll alice1.wav alice2.wav -o alice.safetensors
    mcspex extract meeting.wav --ref alice.safetensors
    mcspex enroll --list voices/
    """  # noqa: D301 (click needs the character itself)
    if listed and shown:
        raise click.UsageError("--list or --show, not both.")
    if (listed or shown) and (output or name or overwrite):
        raise click.UsageError(
            "--list and --show write nothing; leave -o, --name, --overwrite out."
        )
    if not sources and not listed:
        raise click.UsageError("name a REF: a clip of the voice alone, or a folder of clips.")
    if listed or shown:
        _show_profiles(sources or (Path(),), listed=listed, as_json=as_json)
        return
    if output is None:
        raise click.UsageError("say with -o where the profile goes, as in -o alice.safetensors.")
    from mcspex_cli.extraction import profile, reference

    clips = reference.list_sources(sources)
    name = printable(name or output.stem)
    profile.check_profile_output(output, name, len(clips), overwrite=overwrite)
    named = [options.find_model(model, offline=offline) for model in models or (None,)]
    infos = list({info.sha256: info for info in named}.values())
    files.check_no_input([output], files.identities(*clips))
    reference.check_references(clips, *infos)
    voices = [options.load_extractor(info, engine_settings, 0.0).enroll(clips) for info in infos]
    enrolments = tuple(v.enrolment(info) for info, v in zip(infos, voices, strict=True))
    # Only a calibrated model can tell whether a clip has two voices.
    best = next(
        (v for v in voices if any(q.two_voices is not None for q in v.qualities)), voices[0]
    )
    # A profile does not tell where its clips were. It is text, which not all names of files are.
    qualities = tuple(clip.rename(printable(Path(clip.path).name)) for clip in best.qualities)
    voice_profile = profile.Profile(name, enrolments, qualities)
    profile.write_profile(output, voice_profile, overwrite=overwrite)
    for line in best.warnings:
        console.warn(line)
    if as_json:
        console.data(voice_profile.to_dict(output), indent=2)
    elif not console.messages.quiet:
        _show_qualities(voice_profile.qualities)
        names = " and ".join(model.name for model in voice_profile.models)
        console.say(f"{output}: {console.duration(best.seconds)} of speech, for {names}")


def _show_qualities(qualities: Sequence[ReferenceQuality]) -> None:
    words = {None: "-", True: "YES", False: "no"}
    console.table(
        (
            *("reference", "seconds", "speech s", "used s"),
            *("level dB", "SNR dB", "clipped", "two voices"),
        ),
        [
            (
                clip.path,
                *(f"{value:.1f}" for value in (clip.seconds, clip.speech_s, clip.used_s)),
                f"{clip.level_db:.1f}",
                "-" if clip.snr_db is None else f"{clip.snr_db:.0f}",
                f"{100 * clip.clipped:.1f} %",
                words[clip.two_voices],
            )
            for clip in qualities
        ],
    )


def _show_profiles(sources: Sequence[Path], *, listed: bool, as_json: bool) -> None:
    """Show profiles one by one, or list those of folders with an error for each damaged one."""
    from mcspex_cli.extraction.profile import find_profiles, read_profile

    profiles: list[tuple[Path, Profile]] = []
    damaged = 0
    for source in sources:
        if listed:
            files.check_exists(source)
        for file in find_profiles(source) if listed and source.is_dir() else [source]:
            try:
                profiles.append((file, read_profile(file)))
            except CheckpointError as error:
                if not listed:
                    raise
                console.error(str(error))
                damaged += 1
    if as_json:
        console.data([profile.to_dict(file) for file, profile in profiles], indent=2)
    elif listed:
        rows = [
            (
                *(str(file), profile.name, profile.created),
                f"{max(model.seconds for model in profile.models):.1f}",
                ", ".join(model.name for model in profile.models),
            )
            for file, profile in profiles
        ]
        console.table(("profile", "name", "created", "speech s", "models"), rows)
    else:
        for file, profile in profiles:
            lines = [("profile", str(file)), ("name", profile.name), ("created", profile.created)]
            for model in profile.models:
                speech = f"{console.duration(model.seconds)} of speech"
                lines.append(("model", f"{model.label}, {speech}"))
            console.facts(lines)
            _show_qualities(profile.qualities)
    if damaged:
        raise CheckpointError(f"{console.count(damaged, 'profile')} cannot be used, see above.")
