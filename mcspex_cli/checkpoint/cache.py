"""The Hugging Face Hub's cache on this disk, where every program keeps what it downloads.

HF_HOME and HF_HUB_CACHE say where it lies. Nothing here asks the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli.checkpoint.configs import CONFIG, WEIGHTS

_NAME = re.compile(r"(\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(\w[\w./-]{0,200}))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """org/name on the Hub, and the branch, tag or commit that is meant, if one is."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """As a user writes it."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Snapshot:
    """A model in the cache: one commit of one repository."""

    repo: str
    commit: str
    folder: Path
    refs: tuple[str, ...] = ()
    """Branches and tags that meant this commit when the Hub was last asked."""


def parse_name(text: str) -> HubName | None:
    """Read `org/name` or `org/name@revision`; None for what cannot be a name on the Hub."""
    named = _NAME.fullmatch(text)
    if not named or "--" in named[1] or ".." in text:
        return None
    return HubName(named[1], named[2])


def location() -> Path:
    """The folder that the cache is in; it need not be there yet."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_file(name: HubName, file: str) -> Path | None:
    """Where the cache has a file of a model, if it does."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repo, file, revision=name.revision)
    return Path(found) if isinstance(found, str) else None


def cached(name: HubName) -> Snapshot | None:
    """Look `name` up; None unless its config and weights are there."""
    config, weights = (cached_file(name, file) for file in (CONFIG, WEIGHTS))
    if not config or not weights:
        return None
    return Snapshot(name.repo, config.parent.name, config.parent)


def all_cached() -> list[Snapshot]:
    """Every commit in the cache that has the files of a model, of whatever library."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = [repo for repo in scan_cache_dir(location()).repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []
    return [
        Snapshot(repo.repo_id, one.commit_hash, one.snapshot_path, tuple(sorted(one.refs)))
        for repo in sorted(repos, key=lambda repo: repo.repo_id)
        for one in sorted(repo.revisions, key=lambda one: -one.last_modified)
        if {CONFIG, WEIGHTS} <= {file.file_name for file in one.files}
    ]


def remove(commits: Iterable[str]) -> int:
    """Delete commits from the cache; the bytes that became free."""
    from huggingface_hub import scan_cache_dir

    strategy = scan_cache_dir(location()).delete_revisions(*commits)
    strategy.execute()
    return strategy.expected_freed_size


def discard(path: Path) -> None:
    """Delete a file of the cache that is not what it should be, and what it links to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
