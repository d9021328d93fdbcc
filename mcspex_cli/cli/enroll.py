"""`mcspex enroll`: keep a voice in a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import flag, option
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.extraction.profile import Profile, ReferenceQuality
    from mcspex_cli.extraction.reference import Voice
    from mcspex_cli.extraction.runtime import EngineSettings


class _Name(click.types.StringParamType):
    """A model's name, in which MCSPEX_MODEL may have spaces, as a folder's has."""

    envvar_list_splitter = "\0"


@click.command()
@options.declared
def enroll(
    sources: tuple[Path, ...] = options.argument("[REF]...", nargs=-1, type=options.PATH),
    output: Path | None = options.path("FILE", "The profile to write.", "-o", "--output"),
    name: str | None = option("TEXT", "Whose voice it is.  [default: the profile's file name]"),
    models: tuple[str, ...] = option(
        "NAME",
        "As for extract. Repeat it for a profile for several models.",
        "--model",
        multiple=True,
        type=_Name(),
        envvar="MCSPEX_MODEL",
        show_envvar=True,
        shell_complete=options.complete_models,
    ),
    offline: bool = options.OFFLINE,
    engine: EngineSettings = options.ENGINE,
    overwrite: bool = flag("Replace an existing profile."),
    listed: bool = flag("List the profiles in the folders REF, or here.", "--list"),
    shown: bool = flag("Show what is in the profiles REF.", "--show"),
    as_json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Keep a voice in a small file, a profile, to use wherever --ref takes a file.

    REF is a clip of one person alone, a folder of such clips, or an older profile. The command
    shows how good each clip is. A profile holds no sound. It works only with the models that it
    was made with.

    \b
    mcspex enroll alice1.wav alice2.wav -o alice.safetensors
    mcspex extract meeting.wav --ref alice.safetensors
    mcspex enroll --list voices/
    """  # noqa: D301 (click needs the character itself)
    if listed and shown:
        raise click.UsageError("--list or --show, not both.")
    if not sources and not listed:
        raise click.UsageError("name a REF: a clip of the voice alone, or a folder of clips.")
    if listed or shown:
        _show_profiles(sources or (Path(),), listed=listed, as_json=as_json)
        return
    if output is None:
        raise click.UsageError("say with -o where the profile goes, as in -o alice.safetensors.")
    from mcspex_cli.extraction import profile

    profile.check_profile_output(output, overwrite=overwrite)
    quiet = quiet or as_json
    infos = [options.find_model(one, offline=offline, quiet=quiet) for one in models or (None,)]
    infos = list({info.sha256: info for info in infos}.values())
    voices = _embed(sources, output, infos, engine, quiet=quiet)
    enrolments = tuple(v.enrolment(info) for info, v in zip(infos, voices, strict=True))
    # Only a calibrated model can tell whether a clip has two voices.
    best = next(
        (v for v in voices if any(q.two_voices is not None for q in v.qualities)), voices[0]
    )
    made = profile.Profile(name or output.stem, enrolments, _without_folders(best))
    profile.write_profile(output, made, overwrite=overwrite)
    for line in best.warnings:
        console.warn(line)
    if as_json:
        console.data(made.to_dict(output), indent=2)
    elif not quiet:
        _show_qualities(made.qualities)
        names = " and ".join(one.name for one in made.models)
        console.say(f"{output}: {console.duration(best.seconds)} of speech, for {names}")


def _embed(
    sources: Sequence[Path],
    output: Path,
    infos: Sequence[CheckpointInfo],
    settings: EngineSettings,
    *,
    quiet: bool,
) -> list[Voice]:
    """The voice as each model embeds it."""
    from mcspex_cli.extraction import job, reference

    sources = reference.list_sources(sources)
    for source in sources:
        job.check_no_input(output, job.identities(source))
    reference.check_sources(sources, *infos)
    return [
        reference.enroll(sources, options.open_engine(info, settings, 0.0, quiet=quiet), info)
        for info in infos
    ]


def _without_folders(voice: Voice) -> tuple[ReferenceQuality, ...]:
    """The qualities of a voice's clips. A profile does not tell where its clips were."""
    qualities = []
    for quality in voice.qualities:
        name = Path(quality.path).name
        warning = quality.warning and quality.warning.replace(quality.path, name, 1)
        qualities.append(replace(quality, path=name, warning=warning))
    return tuple(qualities)


def _show_qualities(qualities: Sequence[ReferenceQuality]) -> None:
    words = {None: "-", True: "YES", False: "no"}
    console.table(
        (
            *("reference", "seconds", "speech s", "used s"),
            *("level dB", "SNR dB", "clipped", "two voices"),
        ),
        [
            (
                one.path,
                *(f"{value:.1f}" for value in (one.seconds, one.speech_s, one.used_s)),
                f"{one.level_db:.1f}",
                "-" if one.snr_db is None else f"{one.snr_db:.0f}",
                f"{100 * one.clipped:.1f} %",
                words[one.two_voices],
            )
            for one in qualities
        ],
    )


def _show_profiles(sources: Sequence[Path], *, listed: bool, as_json: bool) -> None:
    """Show profiles one by one, or list those of folders with an error for each damaged one."""
    from mcspex_cli import files
    from mcspex_cli.extraction.profile import find_profiles, read_profile

    profiles: list[tuple[Path, Profile]] = []
    damaged = 0
    for source in sources:
        if listed:
            files.check_exists(source)
        for path in find_profiles(source) if listed and source.is_dir() else [source]:
            try:
                profiles.append((path, read_profile(path)))
            except CheckpointError as error:
                if not listed:
                    raise
                console.error(str(error))
                damaged += 1
    if as_json:
        console.data([profile.to_dict(path) for path, profile in profiles], indent=2)
    elif listed:
        rows = [
            (
                *(str(path), profile.name, profile.created),
                f"{max(one.seconds for one in profile.models):.1f}",
                ", ".join(one.name for one in profile.models),
            )
            for path, profile in profiles
        ]
        console.table(("profile", "name", "created", "speech s", "models"), rows)
    else:
        for path, profile in profiles:
            lines = [("profile", str(path)), ("name", profile.name), ("created", profile.created)]
            for one in profile.models:
                speech = console.duration(one.seconds)
                lines.append(("model", f"{one.label}, {speech} of speech"))
            console.facts(lines)
            _show_qualities(profile.qualities)
    if damaged:
        raise CheckpointError(f"{console.count(damaged, 'profile')} cannot be used, see above.")
