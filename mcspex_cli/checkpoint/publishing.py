"""A model to the Hub: looked over first, so that what is there can be used by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcspex_cli import paths
from mcspex_cli.checkpoint import hub
from mcspex_cli.checkpoint.cache import HubName
from mcspex_cli.checkpoint.cards import Card, Particulars, make_card, read_card
from mcspex_cli.checkpoint.configs import CARD, CONFIG, WEIGHTS
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.checkpoint.weights import count_weights, load_checkpoint
from mcspex_cli.errors import CheckpointError


@dataclass(frozen=True)
class Publication:
    """What would be uploaded, and to where."""

    info: CheckpointInfo
    name: HubName
    card: str
    """The whole text of README.md."""
    written: bool
    """Whether the card is ours to write, there being none."""

    @property
    def sizes(self) -> dict[str, int]:
        """The files and their bytes."""
        here = {file: (self.info.folder / file).stat().st_size for file in (CONFIG, WEIGHTS)}
        return {**here, CARD: len(self.card.encode())}


def prepare(
    info: CheckpointInfo, name: HubName, licence: str | None, data: Sequence[str]
) -> Publication:
    """Load the model as its users will, and see to its card. Nothing is written or sent.

    Raises:
        CheckpointError: it does not load; or its card lacks what others need to know.
    """
    load_checkpoint(info)
    card = read_card(info.folder)
    if card:
        _check_card(info, card)
        return Publication(info, name, (info.folder / CARD).read_text(), written=False)
    if not licence or not data:
        raise CheckpointError(
            f"{info.folder}: no {CARD} yet. Say --license ID and --data 'CORPUS (LICENCE)', for "
            "each corpus, and one is written; or write it yourself."
        )
    minutes = info.provenance.get("minutes")
    origin = f"Trained for {minutes:.0f} minutes with mcspex." if isinstance(minutes, float) else ""
    said = Particulars(name.repo, count_weights(info), licence, data, origin)
    return Publication(info, name, make_card(info, said), written=True)


def publish(publication: Publication, *, private: bool = False) -> str:
    """Upload; where the commit can be seen.

    Raises:
        HubError: the Hub does not take it.
        OutputError: the card cannot be written.
    """
    if publication.written:
        with paths.whole(publication.info.folder / CARD) as partial:
            partial.write_text(publication.card)
    return hub.upload(publication.info.folder, publication.name, private=private)


def _check_card(info: CheckpointInfo, card: Card) -> None:
    """Refuse a card by which nobody could find the model, or know what it may be used for."""
    lacking = [key for key in ("license", "library_name", "tags") if not card.metadata.get(key)]
    if card.metadata.get("library_name", "mcspex") != "mcspex":
        lacking = ["library_name: mcspex"]
    if lacking:
        raise CheckpointError(
            f"{info.folder / CARD}: its metadata lack {', '.join(lacking)}. Add them at its top, "
            "between two lines of ---."
        )
