"""A model to the Hub: looked over first, so that what is there can be used by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcspex_cli.checkpoint import hub
from mcspex_cli.checkpoint.cache import HubName
from mcspex_cli.checkpoint.cards import Card, Particulars, make_card, read_card, with_licence
from mcspex_cli.checkpoint.configs import CARD, CONFIG, WEIGHTS
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.checkpoint.weights import count_weights, load_checkpoint
from mcspex_cli.errors import CheckpointError


@dataclass(frozen=True)
class Publication:
    """What would be uploaded, and to where."""

    name: HubName
    files: dict[str, bytes]
    changed: bool
    """Whether the card is not, or not quite, the folder's."""

    @property
    def card(self) -> str:
        """The whole text of README.md."""
        return self.files[CARD].decode()


def prepare(
    info: CheckpointInfo, name: HubName, licence: str | None, data: Sequence[str]
) -> Publication:
    """Load the model as its users will, and see to its card. Nothing is written or sent.

    Raises:
        CheckpointError: it does not load; or its card lacks what others need to know.
    """
    load_checkpoint(info)
    files = {file: (info.folder / file).read_bytes() for file in (CONFIG, WEIGHTS)}
    card = read_card(info.folder)
    if card and not licence and not data:
        _check_card(info, card, licence)
        return Publication(name, {**files, CARD: (info.folder / CARD).read_bytes()}, changed=False)
    if card:
        _check_card(info, card, licence)
        if data or card.licence:
            raise CheckpointError(
                f"{info.folder / CARD}: is there, and says such things itself. Edit it, and leave "
                f"out --{'data' if data else 'license'}."
            )
        text = with_licence(info.folder, str(licence))
    elif licence and data:
        minutes = info.provenance.get("minutes")
        origin = f"Trained for {minutes:.0f} minutes." if isinstance(minutes, float) else ""
        text = make_card(info, Particulars(name.repo, count_weights(info), licence, data, origin))
    else:
        raise CheckpointError(
            f"{info.folder}: no {CARD} yet. Say --license ID and --data 'CORPUS (LICENCE)', for "
            "each corpus, and one is made; or write it yourself."
        )
    return Publication(name, {**files, CARD: text.encode()}, changed=True)


def publish(publication: Publication, *, private: bool = False) -> str:
    """Upload; where the commit can be seen.

    Raises:
        HubError: the Hub does not take it.
    """
    return hub.upload(publication.files, publication.name, private=private)


def _check_card(info: CheckpointInfo, card: Card, licence: str | None) -> None:
    """Refuse a card by which nobody could find the model, or know what it may be used for."""
    facts = {"license": licence, **card.metadata}
    lacking = [key for key in ("license", "library_name", "tags") if not facts.get(key)]
    if facts.get("library_name", "mcspex") != "mcspex":
        lacking = ["library_name: mcspex"]
    if lacking:
        raise CheckpointError(
            f"{info.folder / CARD}: its metadata lack {', '.join(lacking)}. Add them at its top, "
            "between two lines of ---."
        )
