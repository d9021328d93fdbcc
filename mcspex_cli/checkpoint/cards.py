"""README.md, the model card: facts for programs on top, words for people below."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli.checkpoint.configs import CARD
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

    from mcspex_cli.checkpoint.names import CheckpointInfo

TITLES = {"mcspex": "MC-SpEx", "spexplus": "SpEx+"}
"""The systems, as their papers write them."""

TAGS = ("target-speaker-extraction", "speech-separation")


@dataclass(frozen=True)
class Card:
    """A model card, taken apart."""

    metadata: Mapping[str, Any]
    """What the Hub files a model by: license, tags, model-index, ..."""
    results: Sequence[EvalResult]
    """What was measured, of the metadata's model-index."""
    text: str

    @property
    def licence(self) -> str | None:
        """What the weights may be used for: an identifier like cc-by-4.0, or a name."""
        said = self.metadata.get("license_name") or self.metadata.get("license")
        return " ".join(said.split())[:60] if isinstance(said, str) else None

    @property
    def numbers(self) -> list[str]:
        """What was measured, a line for each data set: "312 mixtures: SI-SDRi (dB) 6.86"."""
        lines: dict[str, list[str]] = {}
        for result in self.results:
            if isinstance(result.metric_value, int | float | str):
                number = f"{result.metric_name or result.metric_type} {result.metric_value}"
                lines.setdefault(str(result.dataset_name), []).append(number[:60])
        return [f"{data}: {', '.join(numbers)}" for data, numbers in lines.items()]


def read_card(folder: Path) -> Card | None:
    """Read the card of a model's folder; None if it has none.

    Raises:
        CheckpointError: it is there, and is no text or its metadata are no YAML.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        card = _parse(path.read_text("utf-8"))
        facts: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
        return Card(facts, getattr(card.data, "eval_results", None) or (), card.text.strip())
    except Exception as error:  # the YAML reader's errors are no one's subclass here
        raise CheckpointError(f"{path}: its metadata cannot be read. Mend its top.") from error


def with_licence(folder: Path, licence: str) -> str:
    """A folder's card as text, this licence added to its metadata."""
    card = _parse((folder / CARD).read_text("utf-8"))
    card.data["license"] = licence
    return str(card)


def _parse(text: str) -> ModelCard:
    """Take a card apart, whatever its metadata are worth."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import logging as client_log

    verbosity = client_log.get_verbosity()
    client_log.set_verbosity(logging.ERROR)  # what is odd about it is for us to say
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    finally:
        client_log.set_verbosity(verbosity)


@dataclass(frozen=True)
class Particulars:
    """What a checkpoint cannot say of itself."""

    name: str
    """What it is to be called: org/name on the Hub."""
    weights: int
    """How many it has."""
    licence: str | None
    """Its identifier; None leaves it open, and `push` will ask."""
    data: Sequence[str] = ()
    """What it was trained on, one line each, with the licences."""
    origin: str = ""
    """Where the weights come from, in a sentence or more."""


def make_card(info: CheckpointInfo, said: Particulars) -> str:
    """Write a card from what a checkpoint says of itself, and what is said of it."""
    numbers = _results(info)
    measured = "\n".join(f"{r.metric_name} on {r.dataset_name}: {r.metric_value}" for r in numbers)
    sources = "\n".join(f"- {line}" for line in said.data)
    return f"""---
{_metadata(info, said)}
---

# {said.name}

{title(info)}, {said.weights / 1e6:.1f} M weights, {info.config["sample_rate_hz"]} Hz. {said.origin}
sha256 of `model.safetensors`: `{info.sha256}`

Runs in mcspex, a command-line tool that pulls one person's voice out of a recording in which
people talk over each other:

```bash
mcspex extract mixture.wav --ref reference.wav --model {said.name}
```

## Numbers

{measured or "None yet."}

## Training data

{sources or "Not stated."}
"""


def _metadata(info: CheckpointInfo, said: Particulars) -> str:
    """The card's top, as YAML."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        license=said.licence,
        library_name="mcspex",
        pipeline_tag="audio-to-audio",
        tags=[*TAGS, info.config["system"]],
        model_name=said.name,
        eval_results=_results(info) or None,
    ).to_yaml()


def _results(info: CheckpointInfo) -> list[EvalResult]:
    """What a training measured of itself."""
    from huggingface_hub import EvalResult

    gain_db = info.provenance.get("validation_si_sdr_i_db")
    if not isinstance(gain_db, float):
        return []
    return [
        EvalResult(
            task_type="audio-to-audio",
            task_name="Target speaker extraction",
            dataset_type="validation",
            dataset_name="the run's validation mixtures",
            metric_type="si-sdr-improvement",
            metric_name="SI-SDRi (dB)",
            metric_value=round(gain_db, 2),
        )
    ]


def title(info: CheckpointInfo) -> str:
    """The system's name, as its paper writes it."""
    system = str(info.config.get("system"))
    return TITLES.get(system, system)
