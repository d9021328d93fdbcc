"""`mcspex models`: list, describe, download, check, convert, calibrate and share models."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcspex_cli import files
from mcspex_cli.cli import console, options
from mcspex_cli.cli.options import argument, flag, option
from mcspex_cli.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.checkpoint import CheckpointInfo


NAME = argument("NAME", shell_complete=options.complete_models)
NEW_FOLDER = option(
    "DIR", "The folder to make.", "-o", "--output", type=options.FOLDER, required=True
)
YES = flag("Do not ask.", "-y", "--yes")

_LEAST_AUC = 0.6
"""Below this, presence is of no use; a guess has 0.5."""


@click.group()
def models() -> None:
    """List, describe, download, check, convert and share models.

    A model is a folder with config.json and model.safetensors, the name of one that comes with
    mcspex, or org/name[@revision] on the Hugging Face Hub. --model looks for them in this
    order.
    """


@options.command(models, "list")
def list_models(as_json: bool = options.JSON) -> None:
    """List the models on this disk: bundled and downloaded ones."""
    from mcspex_cli.checkpoint.checkpoint import available

    infos, damaged = available()
    for error in damaged:
        console.warn(str(error))
    if as_json:
        console.data([_facts(info) for info in infos], indent=2)
    else:
        rows = [(info.name, *_columns(info)) for info in infos]
        console.table(("model", "system", "rate", "size", "from"), rows)


@options.command(models)
def show(name: str = NAME, offline: bool = options.OFFLINE, as_json: bool = options.JSON) -> None:
    """Describe a model: system, rate, licence, quality, and its card."""
    import msgspec

    from mcspex_cli.checkpoint.checkpoint import count_weights

    console.messages.quiet = as_json
    info = options.find_model(name, offline=offline)
    card = options.read_card(info)
    weights = None if info.has_only_graphs else count_weights(info)
    licence, numbers = (card.licence, card.numbers) if card else (None, [])
    if as_json:
        facts = {
            **_facts(info),
            "weights": weights,
            "licence": licence,
            "numbers": numbers,
            "config": msgspec.to_builtins(info.config),
            "card": card.text if card else None,
            "provenance": info.provenance,
        }
        console.data(facts, indent=2)
        return
    system, rate, size, source = _columns(info)
    kind = f"{weights / 1e6:.3g} M weights, {size}" if weights else "ONNX, for --runtime"
    rows = [
        ("model", info.label),
        ("from", f"{source}, {info.folder}"),
        ("system", f"{system}, {kind}"),
        ("rate", rate),
        ("sha256", info.sha256),
        ("licence", licence or "not stated: ask its author"),
        *(("" if row else "numbers", text) for row, text in enumerate(numbers or ["none stated"])),
    ]
    console.facts(rows)
    console.text(f"\n{card.text}\n" if card else "\nIt has no card.\n")


@options.command(models, has_quiet=True)
def pull(
    name: str = argument("ORG/NAME", type=options.TEXT),
    revision: str | None = option(
        "REV", "Branch, tag or commit.  [default: main]", type=options.TEXT
    ),
) -> None:
    """Download a model from the Hugging Face Hub, or update it.

    Only config.json, model.safetensors and README.md are downloaded. HF_HOME, HF_ENDPOINT,
    HF_TOKEN and HF_HUB_OFFLINE mean what they mean to other programs.
    """
    from mcspex_cli.checkpoint.checkpoint import bundled
    from mcspex_cli.checkpoint.hub import HubName

    if name in bundled():
        raise CheckpointError(f"{name}: comes with mcspex, so there is nothing to download.")
    parsed = HubName.parse(name if revision is None else f"{name}@{revision}")
    if parsed is None:
        wrong = f"--revision {revision}" if revision and HubName.parse(name) else name
        raise click.UsageError(f"{wrong} is not of the form org/name[@revision].")
    options.download(parsed)


@options.command(models)
def verify(
    names: tuple[str, ...] = argument(
        "[NAME]...", nargs=-1, shell_complete=options.complete_models
    ),
    offline: bool = options.OFFLINE,
) -> None:
    """Check that models load, and that their files are undamaged.

    Files are compared with the checksums in their config and, for downloaded models, on the Hub.
    Without a NAME, all models of `mcspex models list` are checked.
    """
    from mcspex_cli.checkpoint import checkpoint, hub
    from mcspex_cli.extraction.presence import parse_calibration

    infos, damaged = ([], []) if names else checkpoint.available()
    for name in names:
        try:
            infos.append(checkpoint.find_checkpoint(name, offline=True))
        except CheckpointError as error:
            damaged.append(error)
    for failure in damaged:
        console.error(str(failure))
    bad = len(damaged)
    for info in infos:
        problem, compared = checkpoint.verify(info), "its config"
        problems = [problem] if problem else []
        try:
            parse_calibration(info.calibration, info.config.embedding, info.label)
        except CheckpointError as error:
            problems.append(str(error).removeprefix(f"{info.label}: "))
        if info.revision and not offline:
            try:
                wrong = hub.mismatches(hub.HubName(info.name, info.revision))
                problems += [f"{file}: differs from the Hub's. {info.remedy}" for file in wrong]
                compared = "its config and the Hub"
            except CheckpointError as error:
                console.warn(f"not compared with the Hub. {error}")
        for problem in problems:
            console.error(f"{info.label}: {problem}")
        if not problems:
            console.text(f"{info.label}: good, compared with {compared}\n")
        bad += bool(problems)
    if bad:
        total = console.count(len(infos) + len(damaged), "model")
        raise CheckpointError(f"{bad} of {total} damaged or missing, see above.")


@options.command(models, "path")
def print_folder(name: str = NAME) -> None:
    """Print the folder of a model, for scripts. Nothing is downloaded."""
    from mcspex_cli.checkpoint.checkpoint import find_checkpoint

    console.text(f"{find_checkpoint(name, offline=True).folder.resolve()}\n")


@options.command(models)
def rm(name: str = argument("ORG/NAME[@REV]", type=options.TEXT), yes: bool = YES) -> None:
    """Delete a downloaded model: all commits, or the one you name."""
    from mcspex_cli.checkpoint import hub
    from mcspex_cli.checkpoint.checkpoint import downloads_of

    parsed = hub.HubName.parse(name)
    commits = downloads_of(parsed) if parsed else []
    if not commits:
        raise CheckpointError(
            f"{name}: has not been downloaded. To see the downloaded models: mcspex models list"
        )
    for commit in commits:
        console.say(f"{commit.label}  ({commit.folder})")
    if not yes:
        click.confirm(f"Delete {console.count(len(commits), 'commit')}?", abort=True, err=True)
    freed = hub.remove(commits)
    console.say(f"{name}: deleted, {console.size(freed)} freed")


@options.command(models)
def convert(
    source: str = argument("MODEL|FILE", type=options.TEXT, shell_complete=options.complete_models),
    output: Path = NEW_FOLDER,
    sample_rate: int | None = option(
        "HZ",
        "The new sample rate of a MODEL, or the one that a FILE was trained at.  [default for a "
        "FILE: 8000]",
        "--sample-rate",
        "--rate",
        type=click.IntRange(4000, 192_000),
    ),
    config: Path | None = options.path(
        "JSON",
        "The settings that the weights of a FILE do not show.  [default: mdl.json beside it]",
    ),
    licence: str | None = option(
        "ID", "Licence of the weights, for the card: mit, ...", "--license", type=options.TEXT
    ),
    half: bool = flag("Store the weights in half precision, at half the size."),
    overwrite: bool = flag("Replace a model that is in DIR."),
    offline: bool = options.OFFLINE,
) -> None:
    """Convert a MODEL to another rate, or a SpEx+ FILE to a model.

    A MODEL is anything that --model takes. At another sample rate its output stays the same in the
    band that both rates have; above that it has learned nothing.

    A FILE is a checkpoint of gemengtju/SpEx_Plus (best.pt.tar), of
    xuchenglin28/speaker_extraction_SpEx, of ClearerVoice, or of wesep's ConvTasNet with
    multi-scale encoder and decoder. Each of its tensors must have a place in our network; code in
    it is not run.

    \b
    mcspex models convert mcspex-16k --sample-rate 8000 -o mcspex-8k
    mcspex models convert best.pt.tar -o spexplus
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.checkpoint import convert as conversion
    from mcspex_cli.checkpoint.checkpoint import check_replaceable

    file = Path(source)
    is_file = file.exists() and not file.is_dir()
    if not is_file and (sample_rate is None or config is not None):
        raise click.UsageError(
            f"{source} is not a file. For a model, give --sample-rate and no --config."
        )
    check_replaceable(output, overwrite=overwrite)
    info = None if is_file else options.find_model(source, offline=offline)
    if (info.folder if info else file.parent).resolve() == output.resolve():
        raise OutputError(f"{output}: {source} is in it. Name another folder.")
    if info and sample_rate:
        checkpoint = conversion.resample(info, sample_rate)
    else:
        beside = file.with_name("mdl.json")
        config = config or (beside if beside.is_file() else None)
        checkpoint = conversion.convert(file, config, sample_rate or 8000)
    check_replaceable(output, overwrite=overwrite)  # again: another program may have written
    checkpoint.save(output, licence, half=half)
    for note in checkpoint.notes:
        console.say(note)
    console.say(f"{output}  ({checkpoint.summary})")


@options.command(models, has_quiet=True)
def export(
    name: str = NAME,
    form: str = option(None, "The format.", "--to", type=click.Choice(["onnx"]), default="onnx"),
    output: Path = NEW_FOLDER,
    overwrite: bool = flag("Replace an export that is in DIR."),
    offline: bool = options.OFFLINE,
) -> None:
    """Write a model as ONNX graphs, for use without torch.

    DIR gets embed.onnx, extract.onnx, config.json and the card, once both graphs have been compared
    with torch. mcspex can use DIR, too, as --model with --runtime onnx.

    \b
    mcspex models export mcspex-16k --to onnx -o mcspex-onnx
    mcspex extract mix.wav --ref alice.wav --model mcspex-onnx --runtime onnx
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.checkpoint.checkpoint import check_replaceable, find_checkpoint
    from mcspex_cli.checkpoint.hub import WEIGHTS
    from mcspex_cli.extraction import onnx

    onnx.check_installed(*onnx.EXPORTER)
    check_replaceable(output, overwrite=overwrite)
    info = options.find_model(name, offline=offline)
    if (output / WEIGHTS).exists() and find_checkpoint(output).sha256 != info.sha256:
        raise OutputError(f"{output}: has the weights of another model. Name another -o.")
    onnx.export_model(info, output, overwrite=overwrite)
    size = sum(graph.stat().st_size for graph in output.glob("*.onnx"))
    console.say(f"{output}  ({info.label} as {form.upper()}, {console.size(size)})")


@options.command(models)
def push(
    model: str = argument("FOLDER", type=click.Path(file_okay=False)),
    name: str = argument("ORG/NAME"),
    licence: str | None = option(
        "ID", "Licence of the weights, for a card: cc-by-4.0.", "--license", type=options.TEXT
    ),
    data: tuple[str, ...] = option(
        "TEXT",
        "A corpus that it was trained on, with its licence, for a card. Repeatable.",
        type=options.TEXT,
        multiple=True,
    ),
    private: bool = flag("Make the repository private."),
    dry_run: bool = flag("Check and show everything, but send nothing."),
    yes: bool = YES,
) -> None:
    """Upload a model to the Hugging Face Hub.

    The model is loaded and shown first. If the folder has no README.md, one is made of --license
    and --data, and sent. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from mcspex_cli.checkpoint import hub
    from mcspex_cli.checkpoint.card import prepare_publication
    from mcspex_cli.checkpoint.checkpoint import find_checkpoint

    target = hub.HubName.parse(name)
    if target is None:
        raise click.UsageError(f"{name} is not of the form org/name[@branch].")
    info = find_checkpoint(model, offline=True)
    contents = prepare_publication(info, target.repo, licence, data)
    for file, content in contents.items():
        console.say(f"{file:20}{console.size(len(content)):>10}")
    card = info.folder / hub.CARD
    if not card.is_file() or card.read_bytes() != contents[hub.CARD]:
        for row in ("", *contents[hub.CARD].decode().splitlines()):
            console.say(row)
    if dry_run:
        console.say(f"dry run: nothing was sent to {target}.")
        return
    if not yes:
        click.confirm(f"Upload to {target}?", abort=True, err=True)
    console.text(f"{hub.upload(contents, target, private=private)}\n")


@options.command(models, has_quiet=True)
def calibrate(
    name: str = argument("NAME"),
    sources: tuple[Path, ...] = argument(
        "SPEAKERS|CSV...", nargs=-1, required=True, type=options.PATH
    ),
    count: int | None = option(
        None,
        "How many mixtures, and how many recordings with turns, to draw from SPEAKERS.  "
        "[default: 100]",
        "-n",
        type=click.IntRange(1),
    ),
    seed: int = options.SEED,
    as_json: bool = options.JSON,
) -> None:
    """Measure how a model tells whether a voice is present.

    It draws mixtures, and as many recordings in which people take turns, from folders of SPEAKERS
    on whom the model was not trained, or makes the mixtures of the CSV of a recipe (see mcspex
    simulate). From each it extracts two voices: the target's, and one that is not in it. It also
    measures what good references are. The result is written to the config.json of NAME, a folder.

    \b
    mcspex models calibrate runs/best held-out-speakers/
    """  # noqa: D301 (click needs the character itself)
    from mcspex_cli.checkpoint.checkpoint import find_source, write_calibration
    from mcspex_cli.checkpoint.hub import CONFIG

    info = options.find_model(name, offline=True)
    for source in sources:
        files.check_exists(source)
    if count and not any(source.is_dir() for source in sources):
        raise click.UsageError("-n is for recordings that are drawn from folders of SPEAKERS.")
    if origin := find_source(info.folder):
        raise CheckpointError(
            f"{info.label}: {origin}, and is not changed. Copy {info.folder} and calibrate the "
            "copy."
        )
    files.check_output(info.folder / CONFIG, overwrite=True)
    # They import torch, which takes seconds.
    from mcspex_cli.extraction.engine import open_engine
    from mcspex_cli.training.calibration import LOST, Calibrator, read_cases

    engine = open_engine(replace(info, calibration=None))  # it may be damaged
    calibrator = Calibrator(
        engine, read_cases(sources, count or 100, engine.sample_rate_hz, seed), seed
    )
    trials = console.track(
        calibrator.trials(), "calibrating", calibrator.seconds, attrgetter("seconds")
    )
    calibration = asdict(calibrator.calibration(list(trials)))
    write_calibration(info, calibration)
    if as_json:
        console.data(calibration, indent=2)
    measured = calibration["measured"]
    false = 100 * measured["absent_taken_for_present"]
    console.say(
        f"{info.label}: calibrated with {measured['recordings']} recordings of "
        f"{measured['speakers']} voices: AUC {measured['auc']:.3f}. {100 * LOST:.1f} % of the "
        f"voices that are present are called absent, {false:.1f} % of the absent ones are called "
        "present."
    )
    if measured["auc"] < _LEAST_AUC:
        console.warn(
            f"{info.label}: its presence is little or no better than a guess (AUC under "
            f"{_LEAST_AUC}). Train the model longer, then calibrate it again."
        )


def _facts(info: CheckpointInfo) -> dict[str, Any]:
    """Return what --json says about any model."""
    return {
        **{key: getattr(info, key) for key in ("name", "source", "revision", "sha256")},
        "folder": str(info.folder),
        "refs": list(info.refs),
        "system": info.config.system,
        "sample_rate_hz": info.config.sample_rate_hz,
        "bytes": info.weight_bytes,
    }


def _columns(info: CheckpointInfo) -> tuple[str, str, str, str]:
    """Return its system, sample rate, size and source, for people."""
    from mcspex_cli.checkpoint.checkpoint import DEFAULT_MODEL

    rate = f"{info.config.sample_rate_hz / 1000:g} kHz"
    size = console.size(info.weight_bytes) if info.weight_bytes else "no weights"
    source: str = info.source
    if info.revision:
        source = ", ".join(["the Hub", *info.refs, info.revision[:12]])
    elif source == "bundled" and info.name == (os.environ.get("MCSPEX_MODEL") or DEFAULT_MODEL):
        source += ", the default"
    return info.title, rate, size, source
