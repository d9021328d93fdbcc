"""`mcspex models convert`, `export` and `push`: others' models to ours, and ours to others."""

from __future__ import annotations

from pathlib import Path

import click

from mcspex_cli.cli import console, options
from mcspex_cli.cli.downloads import find_model
from mcspex_cli.errors import OutputError


@click.command()
@click.argument("checkpoint", type=options.PATH)
@click.option(
    "-o", "--output", required=True, type=options.PATH, metavar="DIR", help="The folder to make."
)
@click.option(
    "--config",
    type=options.PATH,
    metavar="JSON",
    help="Sizes to check the weights against.  [default: mdl.json beside CHECKPOINT, if there]",
)
@click.option(
    "--rate",
    type=click.IntRange(4000, 192_000),
    default=8000,
    show_default=True,
    metavar="HZ",
    help="The sample rate it was trained at, which its weights do not say.",
)
@click.option("--license", "licence", metavar="ID", help="Of the weights, for the card: mit, ...")
@click.option("--half", is_flag=True, help="Round the weights to half the size.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is in DIR.")
def convert(
    checkpoint: Path,
    output: Path,
    config: Path | None,
    rate: int,
    licence: str | None,
    half: bool,
    overwrite: bool,
) -> None:
    """Make a model of a SpEx+ CHECKPOINT that other code has trained.

    Understood are those of gemengtju/SpEx_Plus (best.pt.tar), xuchenglin28/speaker_extraction_SpEx,
    ClearerVoice, and wesep's ConvTasNet with multi-scale encoder and decoder. Every tensor has to
    have its place; code in a checkpoint is not run.

    \b
    mcspex models convert best.pt.tar -o spexplus
    mcspex extract mix.wav --ref alice.wav --model spexplus
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.checkpoint import convert as conversion

    _check_free(output, checkpoint, overwrite=overwrite)
    beside = checkpoint.parent / "mdl.json"
    made = conversion.convert(checkpoint, config or (beside if beside.is_file() else None), rate)
    conversion.keep(made, checkpoint, output, licence, half=half)
    for note in made.notes:
        console.say(note)
    console.say(f"{output}  (SpEx+, from the layers of {made.layout})")


def _check_free(output: Path, checkpoint: Path, *, overwrite: bool) -> None:
    """Refuse a folder in which something of the user's would be replaced unasked."""
    from mcspex_cli.checkpoint.configs import FILES

    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file. Name a folder.")
    for file in FILES:
        if (output / file).resolve() == checkpoint.resolve():
            raise OutputError(f"{checkpoint}: would be replaced by its own copy. Name another -o.")
        if (output / file).exists() and not overwrite:
            raise OutputError(
                f"{output / file}: is there already. Name another -o, or add --overwrite."
            )


@click.command()
@click.argument("name", shell_complete=options.complete_models)
@click.option(
    "--to",
    type=click.Choice(["onnx"]),
    default="onnx",
    show_default=True,
    expose_value=False,
    help="The form of the graphs.",
)
@click.option(
    "-o", "--output", required=True, type=options.PATH, metavar="DIR", help="The folder to make."
)
@click.option("--overwrite", is_flag=True, help="Replace what is exported in DIR.")
@options.offline
@options.quiet
def export(name: str, output: Path, overwrite: bool, offline: bool, quiet: bool) -> None:
    """Make graphs of a model that run without torch, and without mcspex.

    DIR gets embed.onnx, extract.onnx, config.json and the card. Both graphs are compared with
    torch before. For mcspex, DIR is a model that --runtime onnx can use.

    \b
    mcspex models export mcspex-small-8k --to onnx -o small-onnx
    mcspex extract mix.wav --ref alice.wav --model small-onnx --runtime onnx
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.extraction import onnx

    onnx.check_installed(*onnx.EXPORTER)
    info = find_model(name, offline=offline, quiet=quiet)
    onnx.check_free(output, info, overwrite=overwrite)
    onnx.export_model(info, output)
    if not quiet:
        sizes = [(output / file).stat().st_size for file in (onnx.EMBED, onnx.EXTRACT)]
        console.say(f"{output}  ({info.label} as ONNX, {console.size(sum(sizes))})")


@click.command()
@click.argument("model", metavar="FOLDER", shell_complete=options.complete_folders)
@click.argument("name", metavar="ORG/NAME")
@click.option("--license", "licence", metavar="ID", help="Of the weights, for a card: cc-by-4.0.")
@click.option(
    "--data",
    multiple=True,
    metavar="TEXT",
    help="A corpus trained on, with its licence, for a card. Repeatable.",
)
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--dry-run", is_flag=True, help="Check and show everything, send nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def push(
    model: str,
    name: str,
    licence: str | None,
    data: tuple[str, ...],
    private: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Upload a model to the Hugging Face Hub, after it was loaded and shown.

    For a folder without a README.md one is made and sent, for which --license and --data are
    needed. The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from mcspex_cli.checkpoint.cache import parse_name
    from mcspex_cli.checkpoint.names import find_checkpoint
    from mcspex_cli.checkpoint.publishing import prepare, publish

    target = parse_name(name)
    if target is None:
        raise click.UsageError(f"{name} is not of the form org/name[@branch].")
    publication = prepare(find_checkpoint(model, offline=True), target, licence, data)
    for file, content in publication.files.items():
        console.say(f"{file:20}{console.size(len(content)):>10}")
    if publication.changed:
        for row in ("", *publication.card.splitlines()):
            console.say(row)
    if dry_run:
        console.say(f"dry run: nothing was sent to {target}.")
        return
    if not yes:
        click.confirm(f"Upload to {target}?", abort=True, err=True)
    console.text(f"{publish(publication, private=private)}\n")
