"""`mcspex models`: what there is, what it is, and what of it is on this disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.calibrate import calibrate
from mcspex_cli.cli.downloads import card_of, download, find_model
from mcspex_cli.cli.exchange import convert, export, push
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.names import CheckpointInfo


@click.group()
def models() -> None:
    """List, describe, download, check and share models.

    A model is a folder with config.json and model.safetensors, the name of one that comes with
    mcspex, or org/name[@revision] on the Hugging Face Hub; in this order, wherever --model is.
    """


@models.command("list")
@options.as_json
def list_models(as_json: bool) -> None:
    """List the models that work without a network: bundled ones, and the Hub's cache."""
    from mcspex_cli.checkpoint.names import available

    found, damaged = available()
    for error in damaged:
        console.warn(str(error))
    if as_json:
        console.data([_facts(info) for info in found], indent=2)
        return
    rows = [[info.name, _system(info), _rate(info), _size(info), _whence(info)] for info in found]
    console.table(["model", "system", "rate", "size", "from"], rows)


@models.command()
@click.argument("name", shell_complete=options.complete_models)
@options.offline
@options.as_json
def show(name: str, offline: bool, as_json: bool) -> None:
    """Say what a model is: system, rate, licence, numbers, and its card."""
    from mcspex_cli.checkpoint.weights import count_weights
    from mcspex_cli.extraction.onnx import has_only_graphs

    info = find_model(name, offline=offline, quiet=as_json)
    card, weights = card_of(info), None if has_only_graphs(info) else count_weights(info)
    licence = card.licence if card else None
    numbers = card.numbers if card else []
    if as_json:
        text = {"card": card.text if card else None, "provenance": info.provenance}
        said = {"weights": weights, "licence": licence, "numbers": numbers}
        console.data({**_facts(info), **said, "config": info.config, **text}, indent=2)
        return
    rows = {
        "model": info.label,
        "from": f"{_whence(info)}, {info.folder}",
        "system": f"{_system(info)}, "
        + (f"{weights / 1e6:.1f} M weights, {_size(info)}" if weights else "ONNX, for --runtime"),
        "rate": _rate(info),
        "sha256": info.sha256,
        "licence": licence or "not stated: ask its author",
        "numbers": f"\n{'':9}".join(numbers) or "none stated",
    }
    console.text("".join(f"{key:9}{value}\n" for key, value in rows.items()))
    console.text(f"\n{card.text}\n" if card else "\nIt has no card.\n")


@models.command()
@click.argument("name", metavar="ORG/NAME")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
@options.quiet
def pull(name: str, revision: str | None, quiet: bool) -> None:
    """Download a model from the Hugging Face Hub, or get its newest commit.

    Only config.json, model.safetensors and README.md are taken. HF_HOME, HF_ENDPOINT, HF_TOKEN
    and HF_HUB_OFFLINE mean what they mean to other programs.
    """
    from mcspex_cli.checkpoint.cache import parse_name
    from mcspex_cli.checkpoint.names import bundled

    if name in bundled():
        raise CheckpointError(f"{name}: comes with mcspex, there is nothing to download.")
    parsed = parse_name(name if revision is None else f"{name}@{revision}")
    if parsed is None:
        said = f"--revision {revision}" if revision and parse_name(name) else name
        raise click.UsageError(f"{said} is not of the form org/name[@revision].")
    download(parsed, quiet=quiet)


@models.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=options.complete_models)
@options.offline
def verify(names: tuple[str, ...], offline: bool) -> None:
    """Compare models' files with the checksums in their config and on the Hub.

    Without a NAME: every model of `mcspex models list`.
    """
    from mcspex_cli.checkpoint.names import available, find_checkpoint
    from mcspex_cli.checkpoint.verification import verify_all

    damaged: list[CheckpointError] = []
    if names:
        found = [find_checkpoint(name, offline=True) for name in names]
    else:
        found, damaged = available()
    for error in damaged:
        console.error(str(error))
    bad = len(damaged)
    for verdict in verify_all(found, offline=offline):
        label = verdict.info.label
        bad += bool(verdict.problems)
        for problem in verdict.problems:
            console.error(f"{label}: {problem}")
        if verdict.unasked:
            console.warn(f"not compared with the Hub. {verdict.unasked}")
        if not verdict.problems:
            console.text(f"{label}: good, compared with {verdict.compared}\n")
    if bad:
        total = console.count(len(found) + len(damaged), "model")
        raise CheckpointError(f"{bad} of {total} damaged, see above.")


@models.command()
@click.argument("name", shell_complete=options.complete_models)
def path(name: str) -> None:
    """Print the folder that a model lies in, for scripts. Nothing is downloaded."""
    from mcspex_cli.checkpoint.names import find_checkpoint

    console.text(f"{find_checkpoint(name, offline=True).folder.resolve()}\n")


@models.command()
@click.argument("name", metavar="ORG/NAME[@REV]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(name: str, yes: bool) -> None:
    """Delete a downloaded model from the Hub's cache: all of its commits, or the one named."""
    from mcspex_cli.checkpoint import cache
    from mcspex_cli.checkpoint.names import commits_of

    asked = cache.parse_name(name)
    found = commits_of(asked) if asked else []
    if asked is None or not found:
        raise CheckpointError(f"{name}: not in the Hub's cache; mcspex models list shows what is.")
    for snapshot in found:
        console.say(f"{snapshot.label}  ({snapshot.folder})")
    if not yes:
        click.confirm(f"Delete {console.count(len(found), 'commit')}?", abort=True, err=True)
    freed = cache.remove(asked.repo, [snapshot.commit for snapshot in found])
    console.say(f"{name}: deleted, {console.size(freed)} freed")


models.add_command(calibrate)
models.add_command(convert)
models.add_command(export)
models.add_command(push)


def _facts(info: CheckpointInfo) -> dict[str, Any]:
    """What --json says of any model."""
    return {
        "name": info.name,
        "source": info.source,
        "folder": str(info.folder),
        "revision": info.revision,
        "refs": list(info.refs),
        "system": info.config.get("system"),
        "sample_rate_hz": info.config.get("sample_rate_hz"),
        "bytes": info.weight_bytes,
        "sha256": info.sha256,
    }


def _whence(info: CheckpointInfo) -> str:
    """Where a model is from, for people."""
    from mcspex_cli.checkpoint.names import DEFAULT_MODEL

    if info.revision:
        return ", ".join(["the Hub", *info.refs, info.revision[:12]])
    default = info.source == "bundled" and info.name == DEFAULT_MODEL
    return info.source + (", the default" if default else "")


def _size(info: CheckpointInfo) -> str:
    """How large the weights' file is."""
    return console.size(info.weight_bytes) if info.weight_bytes else "no weights"


def _rate(info: CheckpointInfo) -> str:
    """The sample rate, in kHz."""
    rate_hz = info.config.get("sample_rate_hz")
    if isinstance(rate_hz, int) and 0 < rate_hz < 10**6:
        return f"{rate_hz / 1000:g} kHz"
    return "unknown"


def _system(info: CheckpointInfo) -> str:
    """The system's name, as its paper writes it."""
    from mcspex_cli.checkpoint.cards import title

    return title(info)
