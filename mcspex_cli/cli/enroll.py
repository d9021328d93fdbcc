"""`mcspex enroll`: voices kept for later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.downloads import find_model, prepare
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcspex_cli.checkpoint.names import CheckpointInfo
    from mcspex_cli.checkpoint.profiles import Profile
    from mcspex_cli.extraction.voices import Voice

_COLUMNS = ("seconds", "speech s", "used s", "level dB", "SNR dB", "clipped", "two voices")


class _Name(click.types.StringParamType):
    """A model's name, in which MCSPEX_MODEL may have spaces, as a folder's has."""

    envvar_list_splitter = "\0"


@click.command()
@click.argument("sources", nargs=-1, type=options.PATH, metavar="[REF]...")
@click.option("-o", "--output", type=options.PATH, metavar="FILE", help="The profile to write.")
@click.option("--name", metavar="TEXT", help="Whose voice.  [default: the profile's file name]")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=_Name(),
    envvar="MCSPEX_MODEL",
    show_envvar=True,
    metavar="NAME",
    shell_complete=options.complete_models,
    help="As elsewhere. Repeatable: one profile for several models.",
)
@options.offline
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@options.precision
@options.runtime
@click.option("--overwrite", is_flag=True, help="Replace an existing profile.")
@click.option("--list", "listed", is_flag=True, help="List the profiles in REFs, or here.")
@click.option("--show", "shown", is_flag=True, help="Say what is in the profiles REF.")
@options.as_json
@options.quiet
def enroll(
    sources: tuple[Path, ...], listed: bool, shown: bool, as_json: bool, quiet: bool, **asked: Any
) -> None:
    """Keep a voice in a small file, a profile, that is taken wherever --ref is.

    REF is a clip of one person alone, a folder of such clips, or an older profile. Says how
    good they are. A profile has no sound in it, and is for the models that it was made with.

    \b
    mcspex enroll alice1.wav alice2.wav -o alice.safetensors
    mcspex extract meeting.wav --ref alice.safetensors
    mcspex enroll --list voices/
    """  # noqa: D301 (click needs the character itself)
    if listed and shown:
        raise click.UsageError("--list or --show, not both.")
    if listed:
        _list(sources or (Path(),), as_json=as_json)
    elif not sources:
        raise click.UsageError("name a REF: a clip of the voice alone, or a folder of clips.")
    elif shown:
        _show(sources, as_json=as_json)
    else:
        _enroll(sources, asked, as_json=as_json, quiet=quiet)


def _enroll(sources: Sequence[Path], asked: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Check everything, embed by every model, write, and say how good the clips are."""
    from mcspex_cli.checkpoint import profiles
    from mcspex_cli.extraction.voices import check_sources

    output = asked["output"]
    if output is None:
        raise click.UsageError("say with -o where the profile goes, as in -o alice.safetensors.")
    profiles.check_output(output, overwrite=asked["overwrite"])
    infos = _models(asked, quiet=quiet or as_json)
    for info in infos:
        check_sources(sources, info)
    voices = [_voice(sources, info, asked, quiet=quiet or as_json) for info in infos]
    made = tuple(
        profiles.enrolment(info, voice.embedding, voice.seconds)
        for info, voice in zip(infos, voices, strict=True)
    )
    best = next(
        (v for v in voices if any(q.two_voices is not None for q in v.qualities)), voices[0]
    )
    name = asked["name"] or output.stem
    profile = profiles.Profile(name, profiles.today(), made, _rows(best))
    profiles.write(output, profile, overwrite=asked["overwrite"])
    _tell(output, profile, best, as_json=as_json, quiet=quiet)


def _models(asked: dict[str, Any], *, quiet: bool) -> list[CheckpointInfo]:
    """The models named, each once, or the default."""
    names = asked["models"] or (None,)
    found = [find_model(name, offline=asked["offline"], quiet=quiet) for name in names]
    return list({info.sha256: info for info in found}.values())


def _voice(
    sources: Sequence[Path], info: CheckpointInfo, asked: dict[str, Any], *, quiet: bool
) -> Voice:
    """The voice as one model hears it."""
    from mcspex_cli.extraction import voices
    from mcspex_cli.extraction.opening import choose, open_engine
    from mcspex_cli.extraction.runtime import EngineSettings

    how = EngineSettings(asked["device"], asked["precision"], runtime=asked["runtime"])
    how = replace(how, runtime=choose(info, how, 0.0))
    prepare(info, how.runtime, quiet=quiet)
    return voices.enroll(sources, open_engine(info, how), info)


def _rows(voice: Voice) -> tuple[dict[str, Any], ...]:
    """The qualities of a voice's clips, without folders."""
    rows = []
    for quality in voice.qualities:
        name = Path(quality.path).name
        warning = quality.warning and quality.warning.replace(quality.path, name, 1)
        rows.append({**vars(quality), "path": name, "warning": warning})
    return tuple(rows)


def _tell(output: Path, profile: Profile, voice: Voice, *, as_json: bool, quiet: bool) -> None:
    """Say what was made, and of what."""
    from mcspex_cli.checkpoint.profiles import described

    for line in voice.warnings:
        console.warn(line)
    if as_json:
        console.data(described(output, profile), indent=2)
    elif not quiet:
        _table(profile.qualities)
        models = " and ".join(one.name for one in profile.enrolments)
        console.say(f"{output}: {console.duration(voice.seconds)} of speech, for {models}")


def _table(qualities: Sequence[Any]) -> None:
    """A row for each clip."""
    words = {None: "-", True: "YES", False: "no"}
    rows = [
        [
            row["path"],
            *(f"{row[key]:.1f}" for key in ("seconds", "speech_s", "used_s", "level_db")),
            "-" if row["snr_db"] is None else f"{row['snr_db']:.0f}",
            f"{100 * row['clipped']:.1f} %",
            words[row["two_voices"]],
        ]
        for row in qualities
    ]
    console.table(["reference", *_COLUMNS], rows)


def _list(sources: Sequence[Path], *, as_json: bool) -> None:
    """List profiles; those that are damaged have an error each, and the last one for all."""
    from mcspex_cli import files
    from mcspex_cli.checkpoint import profiles

    found, damaged = [], 0
    for source in sources:
        files.check_exists(source)
        for path in profiles.find(source) if source.is_dir() else [source]:
            try:
                found.append((path, profiles.read(path)))
            except CheckpointError as error:
                console.error(str(error))
                damaged += 1
    if as_json:
        console.data([profiles.described(*one) for one in found], indent=2)
    else:
        console.table(
            ["profile", "name", "created", "speech s", "models"],
            [
                [
                    str(path),
                    profile.name,
                    profile.created,
                    f"{max(one.seconds for one in profile.enrolments):.1f}",
                    ", ".join(one.name for one in profile.enrolments),
                ]
                for path, profile in found
            ],
        )
    if damaged:
        raise CheckpointError(f"{console.count(damaged, 'profile')} cannot be used, see above.")


def _show(sources: Sequence[Path], *, as_json: bool) -> None:
    """Say what is in profiles."""
    from mcspex_cli.checkpoint import profiles

    read = [(path, profiles.read(path)) for path in sources]
    if as_json:
        console.data([profiles.described(*one) for one in read], indent=2)
        return
    for path, profile in read:
        lines = [("profile", str(path)), ("name", profile.name), ("created", profile.created)]
        lines += [
            ("model", f"{one.label}, {console.duration(one.seconds)} of speech")
            for one in profile.enrolments
        ]
        console.text("".join(f"{key:9}{value}\n" for key, value in lines))
        _table(profile.qualities)
