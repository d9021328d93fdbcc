"""Whether models' files are what they were: by their config, and by the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mcspex_cli.checkpoint import cache, hub
from mcspex_cli.checkpoint.configs import CONFIG, GRAPHS, WEIGHTS
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.errors import CheckpointError


@dataclass(frozen=True)
class Verdict:
    """What a look at a model's files showed."""

    info: CheckpointInfo
    problems: tuple[str, ...]
    """A line for each file that is not right."""
    compared: str
    """What the files were compared with, in words."""
    unasked: str = ""
    """Why the Hub was not asked although it should have been."""


def verify_all(models: Iterable[CheckpointInfo], *, offline: bool = False) -> Iterator[Verdict]:
    """Compare the checksums of models' files with those that their config and the Hub state.

    Args:
        models: What to look at.
        offline: Do not ask the Hub.
    """
    for info in models:
        problems = _by_config(info)
        if not info.revision or offline:
            yield Verdict(info, tuple(problems), "its config")
            continue
        try:
            wrong = hub.mismatches(cache.Snapshot(info.name, info.revision, info.folder))
        except CheckpointError as error:
            yield Verdict(info, tuple(problems), "its config", unasked=str(error))
        else:
            problems += [f"{file}: not as on the Hub. {info.remedy}" for file in wrong]
            yield Verdict(info, tuple(problems), "its config and the Hub")


def _by_config(info: CheckpointInfo) -> list[str]:
    """What is wrong with the weights, or graphs instead of them, going by what is said of them."""
    if (info.folder / GRAPHS).is_file() and not (info.folder / WEIGHTS).exists():
        return _of_graphs(info)
    try:
        if cache.checksum(info.folder / WEIGHTS) == info.sha256:
            return []
    except OSError as error:
        return [f"{WEIGHTS}: cannot be read ({error.strerror}). {info.remedy}"]
    return [f"{WEIGHTS}: sha256 is not the one in {CONFIG}. {info.remedy}"]


def _of_graphs(info: CheckpointInfo) -> list[str]:
    """What is wrong with the graphs in a folder."""
    try:
        sums = json.loads((info.folder / GRAPHS).read_bytes())["sha256"]
        wrong = [
            name for name, sha256 in sums.items() if cache.checksum(info.folder / name) != sha256
        ]
    except OSError as error:
        return [f"{error.filename}: cannot be read ({error.strerror}). {info.remedy}"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{info.folder / GRAPHS}: damaged. Export the model again."]
    return [f"{info.folder / name}: damaged. Export the model again." for name in wrong]
