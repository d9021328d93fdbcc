"""From what a user calls a model to its files on this disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcspex_cli.checkpoint import cache, hub
from mcspex_cli.checkpoint.configs import (
    CARD,
    CONFIG,
    REMEDY,
    WEIGHTS,
    largest_weights,
    parse_config,
    read_config,
)
from mcspex_cli.errors import CheckpointError, ForeignModel, HubError

DEFAULT_MODEL = "mcspex-small-8k"

OTHER_WEIGHTS = f"its {CONFIG} was written for other weights (sha256). Tell its author."

Progress = Callable[[int, int], None]
"""Told the bytes that have come, and those to come in all."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint on disk, described without loading it."""

    name: str
    folder: Path
    sha256: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    revision: str | None = None
    """The commit, of a model of the Hub."""
    calibration: Any = None
    """What presence is told by, as the config has it; see `extraction.presence`."""
    refs: tuple[str, ...] = ()
    """Branches and tags that meant this commit when the Hub was last asked."""

    @property
    def weight_bytes(self) -> int:
        """The size of its weights' file; 0 if that is missing."""
        path = self.folder / WEIGHTS
        return path.stat().st_size if path.is_file() else 0

    @property
    def label(self) -> str:
        """Its name, with the commit that it is of."""
        return f"{self.name}@{self.revision[:12]}" if self.revision else self.name

    @property
    def source(self) -> str:
        """Where it comes from: "bundled", "hub" or "folder"."""
        if self.revision:
            return "hub"
        return "bundled" if bundled().get(self.name) == self.folder else "folder"

    @property
    def remedy(self) -> str:
        """What helps when its files are damaged."""
        return {
            "hub": _pull_again(self.name, self.revision),
            "bundled": "Install mcspex again.",
            "folder": REMEDY,
        }[self.source]


def bundled() -> dict[str, Path]:
    """The checkpoints that come with the package: name to folder."""
    package = Path(__file__).parents[1]
    for root in (package / "weights", package.parent / "weights"):
        if root.is_dir():
            return {p.name: p for p in sorted(root.iterdir()) if (p / CONFIG).is_file()}
    return {}


def find_checkpoint(model: str | Path | None = None, *, offline: bool = False) -> CheckpointInfo:
    """Resolve `model`: an existing folder, a bundled name, or org/name[@revision] on the Hub.

    In this order; a `Path` is always a folder, and None the bundled default. What the Hub's cache
    has is taken as it is there, without a request, so that a model does not change by itself:
    `pull` asks for news.

    Raises:
        CheckpointError: there is no such model, or its config.json cannot be used.
        HubError: it is not in the cache, and the Hub does not give it or is not to be asked.
    """
    found = locate(model)
    if isinstance(found, CheckpointInfo):
        return found
    if not offline:
        return pull(found)
    revision = f" --revision {found.revision}" if found.revision else ""
    raise HubError(
        f"{found}: no such folder, and not in the Hub's cache. "
        f"With a connection: mcspex models pull {found.repo}{revision}"
    )


def locate(model: str | Path | None) -> CheckpointInfo | cache.HubName:
    """Resolve `model` as `find_checkpoint` does, up to where the Hub would have to be asked.

    Raises:
        CheckpointError: there is no such model, or its config.json cannot be used.
    """
    known = bundled()
    if model is None:
        return _describe(known[DEFAULT_MODEL])
    name = None if isinstance(model, Path) else cache.parse_name(model)
    folder, other = Path(model), name or str(model) in known
    if str(model) and folder.is_dir() and (not other or (folder / CONFIG).is_file()):
        return _describe(folder)
    if str(model) in known:
        return _describe(known[str(model)])
    if name is None:
        raise CheckpointError(
            f"{model or repr(model)}: no such model. Bundled: {', '.join(known) or 'none'}; or "
            f"name a folder with {CONFIG}, or org/name on the Hugging Face Hub."
        )
    here = cache.cached(name)
    return _describe_cached(here) if here else name


def pull(name: cache.HubName, progress: Progress | None = None) -> CheckpointInfo:
    """Ask the Hub for `name` and download what the cache lacks of it.

    The config is read before the weights are asked for, and the weights have to be as large as
    it says and have the checksums that it and the Hub state.

    Raises:
        HubError: the Hub does not give it.
        CheckpointError: it is no model for this program, or not whole.
        OutputError: the disk is full.
    """
    listing = hub.look_up(name)
    total, done = hub.check_space(listing), 0

    def advance(came: int) -> None:
        """Count what has come."""
        nonlocal done
        done += came
        if progress:
            progress(done, total)

    folder = hub.fetch(listing, CONFIG, advance).parent
    try:
        config = read_config(folder, str(name), "Tell its author.")
        _check_weights(listing, config)
        if cache.checksum(hub.fetch(listing, WEIGHTS, advance)) != config["sha256"]:
            raise CheckpointError(f"{name}: {OTHER_WEIGHTS}")
    except HubError:
        raise  # what has come may be good
    except CheckpointError:
        cache.remove(name.repo, [listing.commit])
        raise
    if CARD in listing.files:
        hub.fetch(listing, CARD, advance)
    cache.remember(name, listing.commit)
    return _describe_cached(cache.Snapshot(name.repo, listing.commit, folder))


def available() -> tuple[list[CheckpointInfo], list[CheckpointError]]:
    """Every model that works without a connection: bundled first, then the Hub's cache.

    Returns:
        The models, and an error for each of ours in the cache that is damaged or incomplete.
    """
    found, damaged = [_describe(folder) for folder in bundled().values()], []
    for snapshot in cache.all_cached():
        try:
            info = _describe_cached(snapshot)
        except ForeignModel:
            continue
        except CheckpointError as error:
            damaged.append(error)
            continue
        if info.weight_bytes:
            found.append(info)
        else:
            damaged.append(CheckpointError(f"{info.label}: {WEIGHTS} is missing. {info.remedy}"))
    return found, damaged


def commits_of(name: cache.HubName) -> list[cache.Snapshot]:
    """The commits of ours in the Hub's cache, damaged ones too, that a name means."""
    found = []
    for snapshot in cache.all_cached():
        if snapshot.repo == name.repo and snapshot.is_of(name.revision):
            try:
                read_config(snapshot.folder)
            except ForeignModel:
                continue
            except CheckpointError:
                pass  # damaged, and to go all the more
            found.append(snapshot)
    return found


def _pull_again(repo: str, commit: str | None) -> str:
    """What helps when a file of the Hub is damaged."""
    return f"Get it again: mcspex models pull {repo} --revision {commit}"


def _describe(folder: Path) -> CheckpointInfo:
    """A bundled checkpoint, or one in a folder."""
    raw = read_config(folder)
    return CheckpointInfo(
        name=folder.resolve().name,
        folder=folder,
        sha256=raw["sha256"],
        config=raw["system"],
        provenance=raw["provenance"],
        calibration=raw.get("calibration"),
    )


def _describe_cached(snapshot: cache.Snapshot) -> CheckpointInfo:
    """A checkpoint in the Hub's cache."""
    remedy = _pull_again(snapshot.repo, snapshot.commit)
    raw = read_config(snapshot.folder, snapshot.label, remedy)
    return CheckpointInfo(
        name=snapshot.repo,
        folder=snapshot.folder,
        sha256=raw["sha256"],
        config=raw["system"],
        provenance=raw["provenance"],
        calibration=raw.get("calibration"),
        revision=snapshot.commit,
        refs=snapshot.refs,
    )


def _check_weights(listing: hub.Listing, config: dict[str, Any]) -> None:
    """Refuse weights that cannot be those of this config, before a byte of them comes."""
    name, size = listing.asked, listing.files[WEIGHTS].size
    largest = largest_weights(parse_config(config["system"], name))
    if size > largest:
        raise CheckpointError(
            f"{name}: its weights have {size:,} bytes, its config's network {largest:,} at most. "
            "Tell its author."
        )
    if listing.sha256 not in {None, config["sha256"]}:
        raise CheckpointError(f"{name}: {OTHER_WEIGHTS}")
