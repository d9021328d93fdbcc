"""Models that a command needs, got from the Hub or prepared where they are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcspex_cli.cli import console
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from mcspex_cli.checkpoint.cache import HubName
    from mcspex_cli.checkpoint.cards import Card
    from mcspex_cli.checkpoint.names import CheckpointInfo


def find_model(model: str | None, *, offline: bool, quiet: bool = False) -> CheckpointInfo:
    """What --model names, or the default; a download is shown."""
    from mcspex_cli.checkpoint.names import CheckpointInfo, find_checkpoint, locate

    found = locate(model)
    if isinstance(found, CheckpointInfo):
        return found
    return find_checkpoint(str(found), offline=True) if offline else download(found, quiet=quiet)


def download(name: HubName, *, quiet: bool = False) -> CheckpointInfo:
    """Get a model from the Hub and see that it loads; say what came, and its licence."""
    from mcspex_cli.checkpoint.names import pull
    from mcspex_cli.checkpoint.weights import load_checkpoint

    came = 0
    with console.progress(shown=not quiet) as bar:
        task = bar.add_task(str(name), total=None)

        def advance(done: int, total: int) -> None:
            """Show it."""
            nonlocal came
            came = done
            bar.update(task, completed=done, total=total)

        info = pull(name, advance)
    load_checkpoint(info)
    card = card_of(info)
    if not quiet:
        licence = card.licence if card and card.licence else "not stated: ask its author"
        what = f"{console.size(came)} downloaded" if came else "already here"
        console.say(f"{info.label}  ({what}; licence: {licence})")
    return info


def prepare(info: CheckpointInfo, runtime: str, *, quiet: bool = False) -> None:
    """Make the graphs that a runtime needs, if there are none yet."""
    if runtime != "onnx":
        return
    from mcspex_cli.extraction import onnx

    if onnx.lacks_graphs(info):
        if not quiet:
            console.say(f"{info.label}: making graphs for {runtime}, which is done once ...")
        onnx.prepare(info)


def card_of(info: CheckpointInfo) -> Card | None:
    """A model's card; one that cannot be read is warned of, and as good as none."""
    from mcspex_cli.checkpoint.cards import read_card

    try:
        return read_card(info.folder)
    except CheckpointError as error:
        console.warn(str(error))
        return None
