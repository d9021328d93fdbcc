"""README.md, the model card: read, written, and completed before a model is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcspex_cli import files
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo, count_weights, load_checkpoint
from mcspex_cli.checkpoint.hub import CARD, CONFIG, LARGEST, WEIGHTS, client_settings, silence
from mcspex_cli.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


@dataclass(frozen=True)
class Card:
    """A model card."""

    source: ModelCard
    """Metadata, by which the Hub files a model (license, tags, model-index, ...), and text."""
    licence: str | None
    """The licence of the weights: an identifier like cc-by-4.0, or a name."""
    numbers: list[str]
    """The measurements, a line for each data set: "312 mixtures: SI-SDRi (dB) 6.86"."""
    text: str


def read_card(folder: Path) -> Card | None:
    """Read the card in a model's folder; None if there is none.

    Raises:
        CheckpointError: it is too long, or its metadata is not YAML.
        ConfigError: it cannot be read, or is not text in UTF-8.
        HubError: the Hub's client, which reads it, cannot be used.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST[CARD]:
        raise CheckpointError(f"{path}: is too long for a card. Shorten it.")
    client_settings()
    text = files.read_text(path)
    from huggingface_hub import ModelCard

    try:
        with silence():
            card = ModelCard(text, ignore_metadata_errors=True)
        facts = card.data.to_dict()  # type: ignore[no-untyped-call]
        licence = facts.get("license_name") or facts.get("license")
        by_data: dict[str, list[str]] = {}
        for result in getattr(card.data, "eval_results", None) or ():
            if isinstance(result.metric_value, int | float | str):
                number = f"{result.metric_name or result.metric_type} {result.metric_value}"
                by_data.setdefault(str(result.dataset_name), []).append(number[:60])
        return Card(
            card,
            " ".join(licence.split())[:60] if isinstance(licence, str) else None,
            [f"{data}: {', '.join(numbers)}" for data, numbers in by_data.items()],
            card.text.strip(),
        )
    except Exception as error:  # the YAML reader's errors have no common class
        raise CheckpointError(
            f"{path}: the metadata at its top is not valid YAML. Correct it."
        ) from error


def make_card(
    info: CheckpointInfo,
    name: str,
    licence: str | None,
    data: Sequence[str] = (),
    origin: str = "",
) -> str:
    """Write a card from what a checkpoint says about itself, and from the rest.

    Args:
        info: the checkpoint.
        name: what it is to be called: org/name on the Hub.
        licence: its identifier; None leaves it open, and `push` will ask for it.
        data: what it was trained on, one line each, with the licences.
        origin: where the weights come from, in sentences.
    """
    from huggingface_hub import EvalResult, ModelCardData

    gain_db = info.provenance.get("validation_si_sdr_i_db")
    result, number = None, "None yet."
    if isinstance(gain_db, float):
        result = EvalResult(
            task_type="audio-to-audio",
            task_name="Target speaker extraction",
            dataset_type="validation",
            dataset_name="the run's validation mixtures",
            metric_type="si-sdr-improvement",
            metric_name="SI-SDRi (dB)",
            metric_value=round(gain_db, 2),
        )
        number = f"{result.metric_name} on {result.dataset_name}: {result.metric_value}"
    metadata = ModelCardData(
        license=licence,
        library_name="mcspex",
        pipeline_tag="audio-to-audio",
        tags=["target-speaker-extraction", "speech-separation", info.config.system],
        model_name=name,
        eval_results=[result] if result else None,
    ).to_yaml()
    sources = "\n".join(f"- {line}" for line in data)
    return f"""---
{metadata}
---

# {name}

{info.title}, {count_weights(info) / 1e6:.3g} M weights, {info.config.sample_rate_hz} Hz. {origin}
sha256 of `{WEIGHTS}`: `{info.sha256}`

Runs in mcspex, a command-line tool that pulls one person's voice out of a recording in which
people talk over each other:

```bash
mcspex extract mixture.wav --ref reference.wav --model {name}
```

## Numbers

{number}

## Training data

{sources or "Not stated."}
"""


def prepare_publication(
    info: CheckpointInfo, repo: str, licence: str | None, data: Sequence[str]
) -> dict[str, bytes]:
    """Load a model as its users will, complete its card, and return its files for the Hub.

    Raises:
        CheckpointError: the model does not load, or its card lacks what others need to know.
    """
    load_checkpoint(info)
    card, path = read_card(info.folder), info.folder / CARD
    if card is None:
        if not licence or not data:
            raise CheckpointError(
                f"{info.folder}: has no {CARD}. To have one made, give --license ID and, for each "
                "corpus that the model was trained on, --data 'CORPUS (LICENCE)'."
            )
        minutes = info.provenance.get("minutes")
        origin = f"Trained for {minutes:.0f} min." if isinstance(minutes, float) else ""
        content = make_card(info, repo, licence, data, origin).encode()
    else:
        if data or (licence and card.licence):
            option = "--data" if data else "--license"
            raise CheckpointError(f"{path}: already states this. Edit it, and leave out {option}.")
        facts = {"license": licence, **card.source.data.to_dict()}  # type: ignore[no-untyped-call]
        missing = [key for key in ("license", "library_name", "tags") if not facts.get(key)]
        if facts.get("library_name", "mcspex") != "mcspex":
            missing = ["library_name: mcspex"]
        if missing:
            raise CheckpointError(
                f"{path}: the metadata at its top, between two lines of ---, lacks "
                f"{', '.join(missing)}. Add them."
            )
        content = path.read_bytes()
        if licence:
            card.source.data["license"] = licence
            content = str(card.source).encode()
    config = (info.folder / CONFIG).read_bytes()
    return {CONFIG: config, WEIGHTS: info.weights.read_bytes(), CARD: content}
