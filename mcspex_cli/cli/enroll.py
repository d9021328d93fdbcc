"""`mcspex enroll`: keep a voice in a profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.models import find_model, prepare
from mcspex_cli.errors import CheckpointError
from mcspex_cli.extraction.runtime import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
    from mcspex_cli.extraction.profile import ReferenceQuality
    from mcspex_cli.extraction.reference import Voice

_COLUMNS = ("seconds", "speech s", "used s", "level dB", "SNR dB", "clipped", "two voices")


class _Name(click.types.StringParamType):
    """A model's name, in which MCSPEX_MODEL may have spaces, as a folder's has."""

    envvar_list_splitter = "\0"


@click.command()
@click.argument("sources", nargs=-1, type=options.PATH, metavar="[REF]...")
@click.option("-o", "--output", type=options.PATH, metavar="FILE", help="The profile to write.")
@click.option(
    "--name", metavar="TEXT", help="Whose voice it is.  [default: the profile's file name]"
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=_Name(),
    envvar="MCSPEX_MODEL",
    show_envvar=True,
    metavar="NAME",
    shell_complete=options.complete_models,
    help="As for extract. Repeat it for a profile for several models.",
)
@options.offline
@options.device
@options.precision
@options.runtime
@click.option("--overwrite", is_flag=True, help="Replace an existing profile.")
@click.option(
    "--list", "listed", is_flag=True, help="List the profiles in the folders REF, or here."
)
@click.option("--show", "shown", is_flag=True, help="Show what is in the profiles REF.")
@options.as_json
@options.quiet
def enroll(
    sources: tuple[Path, ...],
    output: Path | None,
    name: str | None,
    models: tuple[str, ...],
    offline: bool,
    device: str,
    precision: str,
    runtime: str,
    overwrite: bool,
    listed: bool,
    shown: bool,
    as_json: bool,
    quiet: bool,
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
    from mcspex_cli.extraction.profile import (
        Profile,
        check_profile_output,
        write_profile,
    )

    if listed and shown:
        raise click.UsageError("--list or --show, not both.")
    if listed:
        _list(sources or (Path(),), as_json=as_json)
    elif not sources:
        raise click.UsageError("name a REF: a clip of the voice alone, or a folder of clips.")
    elif shown:
        _show(sources, as_json=as_json)
    elif output is None:
        raise click.UsageError("say with -o where the profile goes, as in -o alice.safetensors.")
    else:
        check_profile_output(output, overwrite=overwrite)
        quiet_models = quiet or as_json
        named = [find_model(one, offline=offline, quiet=quiet_models) for one in models or (None,)]
        infos = list({info.sha256: info for info in named}.values())
        settings = EngineSettings(device, precision, runtime=runtime)
        voices = _embed(sources, output, infos, settings, quiet=quiet_models)
        enrolments = tuple(v.enrolment(info) for info, v in zip(infos, voices, strict=True))
        # Only a calibrated model can tell whether a clip has two voices.
        best = next(
            (v for v in voices if any(q.two_voices is not None for q in v.qualities)), voices[0]
        )
        profile = Profile(name or output.stem, enrolments, _without_folders(best))
        write_profile(output, profile, overwrite=overwrite)
        for line in best.warnings:
            console.warn(line)
        if as_json:
            console.data(profile.to_dict(output), indent=2)
        elif not quiet:
            _show_qualities(profile.qualities)
            names = " and ".join(one.name for one in profile.models)
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
    from mcspex_cli.extraction.engine import open_engine
    from mcspex_cli.extraction.job import check_no_input, identities
    from mcspex_cli.extraction.reference import check_sources, list_sources
    from mcspex_cli.extraction.reference import enroll as embed
    from mcspex_cli.extraction.runtime import choose_runtime

    sources = list_sources(sources)
    for source in sources:
        check_no_input(output, identities(source))
    check_sources(sources, *infos)
    voices = []
    for info in infos:
        chosen = choose_runtime(info, settings, 0.0)
        prepare(info, chosen.runtime, quiet=quiet)
        voices.append(embed(sources, open_engine(info, chosen), info))
    return voices


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
    rows = [
        [
            one.path,
            *(f"{value:.1f}" for value in (one.seconds, one.speech_s, one.used_s, one.level_db)),
            "-" if one.snr_db is None else f"{one.snr_db:.0f}",
            f"{100 * one.clipped:.1f} %",
            words[one.two_voices],
        ]
        for one in qualities
    ]
    console.table(["reference", *_COLUMNS], rows)


def _list(sources: Sequence[Path], *, as_json: bool) -> None:
    """List profiles, with an error for each that is damaged and one for them all at the end."""
    from mcspex_cli import files
    from mcspex_cli.extraction.profile import find_profiles, read_profile

    profiles, damaged = [], 0
    for source in sources:
        files.check_exists(source)
        for path in find_profiles(source) if source.is_dir() else [source]:
            try:
                profiles.append((path, read_profile(path)))
            except CheckpointError as error:
                console.error(str(error))
                damaged += 1
    if as_json:
        console.data([profile.to_dict(path) for path, profile in profiles], indent=2)
    else:
        console.table(
            ["profile", "name", "created", "speech s", "models"],
            [
                [
                    str(path),
                    profile.name,
                    profile.created,
                    f"{max(one.seconds for one in profile.models):.1f}",
                    ", ".join(one.name for one in profile.models),
                ]
                for path, profile in profiles
            ],
        )
    if damaged:
        raise CheckpointError(f"{console.count(damaged, 'profile')} cannot be used, see above.")


def _show(sources: Sequence[Path], *, as_json: bool) -> None:
    """Print what is in profiles."""
    from mcspex_cli.extraction.profile import read_profile

    profiles = [(path, read_profile(path)) for path in sources]
    if as_json:
        console.data([profile.to_dict(path) for path, profile in profiles], indent=2)
        return
    for path, profile in profiles:
        lines = [("profile", str(path)), ("name", profile.name), ("created", profile.created)]
        lines += [
            ("model", f"{one.label}, {console.duration(one.seconds)} of speech")
            for one in profile.models
        ]
        console.text("".join(f"{key:9}{value}\n" for key, value in lines))
        _show_qualities(profile.qualities)
