"""Whether a model's files are what they were: by its config, and by the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from mcspex_cli.checkpoint import cache, hub
from mcspex_cli.checkpoint.configs import CONFIG, WEIGHTS
from mcspex_cli.checkpoint.names import CheckpointInfo, sha256
from mcspex_cli.errors import HubError


@dataclass(frozen=True)
class Verdict:
    """What a look at a model's files showed."""

    info: CheckpointInfo
    problems: tuple[str, ...]
    """A line for each file that is not right."""
    unasked: str = ""
    """Why the Hub was not asked although the model is of the Hub."""

    @property
    def compared(self) -> str:
        """What the files were compared with, in words."""
        asked = self.info.revision and not self.unasked
        return "its config and the Hub" if asked else "its config"


def verify(info: CheckpointInfo, *, offline: bool = False) -> Verdict:
    """Compare the checksums of a model's files with those that config.json and the Hub state."""
    problems, unasked = [], ""
    try:
        if sha256(info.folder / WEIGHTS) != info.sha256:
            problems.append(f"{WEIGHTS}: sha256 is not the one in {CONFIG}. {info.remedy}")
    except OSError as error:
        problems.append(f"{WEIGHTS}: cannot be read ({error.strerror}). {info.remedy}")
    if info.revision and offline:
        unasked = "offline"
    elif info.revision:
        try:
            wrong = hub.mismatches(cache.Snapshot(info.name, info.revision, info.folder))
            problems += [f"{file}: not as on the Hub. {info.remedy}" for file in wrong]
        except HubError as error:
            unasked = str(error)
    return Verdict(info, tuple(problems), unasked)
