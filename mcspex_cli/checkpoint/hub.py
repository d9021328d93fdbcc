"""The Hugging Face Hub: the only place that uses the network.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to other programs. Three files are
taken, under fixed names: nothing that a server calls otherwise is written, and never a pickle.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import __version__
from mcspex_cli.checkpoint.cache import HubName, Snapshot, cached_file, discard, location
from mcspex_cli.checkpoint.configs import CARD, CONFIG, FILES, WEIGHTS
from mcspex_cli.checkpoint.troubles import explained
from mcspex_cli.errors import CheckpointError, HubError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

Advance = Callable[[int], None]
"""Told of every number of bytes that has come."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LARGEST = {CONFIG: 2**20, CARD: 2**24}
"""Bytes that a config and a card can have; what the weights may have, the config decides."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".tar", ".pkl")


@dataclass(frozen=True)
class Listing:
    """What the Hub has under a name: one commit, and those of its files that are ours to take."""

    asked: HubName
    commit: str
    files: dict[str, RepoSibling]

    @property
    def name(self) -> HubName:
        """The commit itself, whatever branch or tag was asked for."""
        return HubName(self.asked.repo, self.commit)

    def size(self, file: str) -> int:
        """Bytes of a file."""
        return self.files[file].size or 0

    @property
    def sha256(self) -> str | None:
        """Of the weights; None where the Hub does not say."""
        lfs = self.files[WEIGHTS].lfs
        return lfs.sha256 if lfs else None


def look_up(name: HubName) -> Listing:
    """Ask the Hub what it has under `name`.

    Raises:
        HubError: it cannot be reached, has no such model, or does not let us have it.
        CheckpointError: the repository has no mcspex model.
    """
    from huggingface_hub import constants

    with explained(name):
        found = _client().model_info(
            name.repo,
            revision=name.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    files = {file.rfilename: file for file in found.siblings or ()}
    _check_files(name, files)
    if not _COMMIT.fullmatch(found.sha or ""):
        raise HubError(f"{name}: the Hub names no commit of it. Is HF_ENDPOINT a Hub?")
    kept = {file: facts for file, facts in files.items() if file in FILES}
    listing = Listing(name, str(found.sha), kept)
    for file, largest in _LARGEST.items():
        if file in kept and listing.size(file) > largest:
            raise CheckpointError(f"{name}: {file} has {listing.size(file):,} bytes: no model's.")
    return listing


def fetch(listing: Listing, file: str, advance: Advance) -> Path:
    """Download one of FILES of a commit, unless the cache has it; what comes is checked.

    A connection that breaks is taken up again where it broke. What does not have the checksum
    that the Hub states is thrown away, in the cache too, and asked for once more.

    Raises:
        HubError: the file does not come.
        OutputError: the disk is full, or the cache cannot be written.
    """
    for _ in range(2):
        path = _download(listing, file, advance)
        if _is_listed(path, listing.files[file]):
            return path
        discard(path)
    raise HubError(f"{listing.asked}: {file} came damaged twice. It was not kept; try again later.")


def remember(listing: Listing) -> None:
    """Let the name that was asked for, a branch or a tag, mean this commit from now on."""
    from huggingface_hub import hf_hub_download

    revision = listing.asked.revision or "main"
    if revision != listing.commit:
        with explained(listing.asked):
            hf_hub_download(listing.asked.repo, CONFIG, revision=revision)


def check_space(listing: Listing) -> int:
    """Refuse a download that the disk has no room for; the bytes that the cache lacks.

    Raises:
        OutputError: too little is free where the cache lies.
    """
    cache = location()
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    wanted = sum(
        listing.size(file) for file in listing.files if not cached_file(listing.name, file)
    )
    free = shutil.disk_usage(there).free
    if free < wanted:
        raise OutputError(
            f"{listing.asked}: needs {wanted / 1e6:.1f} MB, {there} has {free / 1e6:.1f} MB free. "
            "Free some space, or let HF_HOME name another disk."
        )
    return wanted


def mismatches(snapshot: Snapshot) -> list[str]:
    """The files of a cached commit whose checksums are not the Hub's.

    Raises:
        HubError: the Hub cannot be asked.
    """
    with explained(HubName(snapshot.repo, snapshot.commit)):
        verdict = _client().verify_repo_checksums(snapshot.repo, revision=snapshot.commit)
    return [wrong["path"] for wrong in verdict.mismatches if wrong["path"] in FILES]


def upload(folder: Path, name: HubName, *, private: bool) -> str:
    """Make the repository if need be, and one commit of a model's files; where it can be seen.

    Raises:
        HubError: there is no token, it may not write there, or the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # they are not ours, and speak to everyone
    operations = [
        CommitOperationAdd(file, folder / file) for file in FILES if (folder / file).is_file()
    ]
    with explained(name, writing=True):
        api = _client()
        api.create_repo(name.repo, private=private, exist_ok=True)
        commit = api.create_commit(
            name.repo, operations, commit_message="Upload a model", revision=name.revision
        )
    return commit.commit_url


def _client() -> HfApi:
    """The Hub's client, as this program."""
    from huggingface_hub import HfApi

    return HfApi(library_name="mcspex", library_version=__version__)


def _download(listing: Listing, file: str, advance: Advance) -> Path:
    """One file of a commit, from the cache or the Hub, unchecked."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repo, commit = listing.asked.repo, listing.commit
    with explained(listing.asked):
        if cached_file(listing.name, file) is None:
            # The client makes paths of what a server calls a file's commit and content.
            facts = get_hf_file_metadata(hf_hub_url(repo, file, revision=commit))
            if facts.commit_hash != commit or not _ETAG.fullmatch(facts.etag or ""):
                raise HubError(f"{listing.asked}: the server mislabels {file}. It was not taken.")
        path = hf_hub_download(
            repo,
            file,
            revision=commit,
            tqdm_class=_bar(advance),
            library_name="mcspex",
            library_version=__version__,
        )
    return Path(path)


def _is_listed(path: Path, listed: RepoSibling) -> bool:
    """Whether a file is the one that the Hub lists: by sha256, or as git names its content."""
    data = path.read_bytes()
    if listed.lfs:
        return hashlib.sha256(data).hexdigest() == listed.lfs.sha256
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return listed.blob_id in {None, blob.hexdigest()}


def _check_files(name: HubName, files: Iterable[str]) -> None:
    """Refuse a repository without what a model of ours is made of."""
    names = set(files)
    if {CONFIG, WEIGHTS} <= names:
        return
    if any(file.endswith(_PICKLES) for file in names):
        raise CheckpointError(
            f"{name}: has pickled weights only, which can run code. Download them yourself, "
            "then mcspex models convert FILE -o FOLDER."
        )
    lacking = " and ".join(file for file in (CONFIG, WEIGHTS) if file not in names)
    raise CheckpointError(f"{name}: not an mcspex model, there is no {lacking} in it.")


def _bar(advance: Advance) -> Any:
    """A progress bar as the client wants one, which shows nothing and passes the bytes on."""
    from huggingface_hub.utils.tqdm import tqdm

    class Told(tqdm):
        """Silent."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            """Count bytes; less than none where a server starts a file anew."""
            advance(int(n or 0))

    return Told
