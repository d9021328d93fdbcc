"""The Hugging Face Hub: the only place that uses the network.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to other programs. Three files are
taken, never a pickle or code. They are kept under names of our own making, fixed ones and the
checksums that a listing states, and only once they have these: a server names no path here.
"""

from __future__ import annotations

import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import __version__, files
from mcspex_cli.checkpoint import cache
from mcspex_cli.checkpoint.cache import HubName
from mcspex_cli.checkpoint.configs import CARD, CONFIG, FILES, WEIGHTS
from mcspex_cli.checkpoint.troubles import broken_off, endpoint, explained
from mcspex_cli.errors import CheckpointError, HubError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Advance = Callable[[int], None]
"""Told of every number of bytes that has come."""

_LARGEST = {CONFIG: 2**20, CARD: 2**24}
"""Bytes that a config and a card can have; what the weights may have, the config decides."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".tar", ".pkl")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATIENCE = 4
"""Times that a download may break off in a row without a byte having come."""

_PAUSE_S = 0.2
"""Seconds before it is taken up again."""


@dataclass(frozen=True)
class Listed:
    """A file as the Hub lists it."""

    size: int
    digest: str
    """sha256 of large files; of others, git's sha1."""

    def is_at(self, path: Path) -> bool:
        """Whether the file at a path is this one."""
        if path.stat().st_size != self.size:
            return False
        return cache.checksum(path, of_git=len(self.digest) == 40) == self.digest


@dataclass(frozen=True)
class Listing:
    """What the Hub has under a name: one commit, and those of its files that are ours to take."""

    asked: HubName
    commit: str
    files: dict[str, Listed]

    @property
    def name(self) -> HubName:
        """The commit itself, whatever branch or tag was asked for."""
        return HubName(self.asked.repo, self.commit)

    @property
    def sha256(self) -> str | None:
        """Of the weights; None where the Hub keeps them as it keeps small files."""
        digest = self.files[WEIGHTS].digest
        return digest if len(digest) == 64 else None


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
        siblings = {str(file.rfilename): file for file in found.siblings or ()}
        facts = {file: siblings[file] for file in FILES if file in siblings}
        files = {
            file: Listed(int(fact.size or 0), str(fact.lfs.sha256 if fact.lfs else fact.blob_id))
            for file, fact in facts.items()
        }
        commit = str(found.sha)
    _check_files(name, siblings)
    listed = cache.COMMIT.fullmatch(commit) and all(
        file.size > 0 and _DIGEST.fullmatch(file.digest) for file in files.values()
    )
    if not listed:
        raise HubError(f"{name}: the Hub states no commit, sizes and checksums. Is it one?")
    for file, largest in _LARGEST.items():
        if file in files and files[file].size > largest:
            raise CheckpointError(f"{name}: {file} has {files[file].size:,} bytes: no model's.")
    return Listing(name, commit, files)


def reach(timeout_s: float) -> str:
    """Ask the Hub for anything at all; its address.

    Raises:
        HubError: it does not answer, or says that it cannot.
    """
    from huggingface_hub import constants, get_session

    with explained(HubName("the Hub")):
        answer = get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=timeout_s)
    if answer.status_code >= 500:
        raise HubError(f"the Hub has a problem ({answer.status_code}). Try again later.")
    return endpoint()


def fetch(listing: Listing, file: str, advance: Advance) -> Path:
    """Download one of FILES of a commit, unless the cache has it; where it is.

    What has come of it before, in this run or an earlier one, is not asked for again. What does
    not have the checksum that the Hub states is thrown away, and asked for once more.

    Raises:
        HubError: the file does not come.
        OutputError: the disk is full, or the cache cannot be written.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    listed, here = listing.files[file], cache.cached_file(listing.name, file)
    if here and listed.is_at(here):
        return here
    blob = cache.blob(listing.asked.repo, listed.digest)
    lock = cache.lock(listing.asked.repo, listed.digest)
    files.make_folders(blob.parent, lock.parent)
    with explained(listing.asked), WeakFileLock(lock):
        for _ in range(2):
            if not blob.is_file():
                _receive(listing, file, blob, advance)
            if listed.is_at(blob):
                return cache.point(listing.name, file, blob)
            blob.unlink()
    raise HubError(f"{listing.asked}: {file} came damaged twice. It was not kept; try again later.")


def check_space(listing: Listing) -> int:
    """Refuse a download that the disk has no room for; the bytes that the cache lacks.

    Raises:
        OutputError: too little is free where the cache lies.
    """
    folder = cache.location()
    there = next(above for above in (folder, *folder.parents) if above.exists())
    missing = (file for name, file in listing.files.items() if not _is_here(listing, name))
    wanted, free = sum(file.size for file in missing), shutil.disk_usage(there).free
    if free < wanted:
        raise OutputError(
            f"{listing.asked}: needs {wanted / 1e6:.1f} MB, {there} has {free / 1e6:.1f} MB free. "
            "Free some space, or let HF_HOME name another disk."
        )
    return wanted


def mismatches(snapshot: cache.Snapshot) -> list[str]:
    """The files of a cached commit that are not as the Hub lists them.

    Raises:
        HubError: the Hub cannot be asked.
    """
    listing = look_up(HubName(snapshot.repo, snapshot.commit))
    return [
        file
        for file, listed in listing.files.items()
        if (snapshot.folder / file).is_file() and not listed.is_at(snapshot.folder / file)
    ]


def upload(files: dict[str, bytes], name: HubName, *, private: bool) -> str:
    """Make the repository if need be, and one commit of a model's files; where it can be seen.

    Raises:
        HubError: there is no token, it may not write there, or the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # they are not ours, and speak to everyone
    operations = [CommitOperationAdd(file, content) for file, content in files.items()]
    with explained(name, writing=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client's, of how it is made
        api, timeout = _client(), constants.HF_HUB_ETAG_TIMEOUT
        if name.revision:
            api.model_info(name.repo, revision=name.revision, timeout=timeout)
        api.create_repo(name.repo, private=private, exist_ok=True)
        if private and not api.model_info(name.repo, timeout=timeout).private:
            raise HubError(
                f"{name}: is there already, and public. Make it private, or name another."
            )
        commit = api.create_commit(
            name.repo, operations, commit_message="Upload a model", revision=name.revision
        )
    return commit.commit_url


def _client() -> HfApi:
    """The Hub's client, as this program."""
    from huggingface_hub import HfApi

    return HfApi(library_name="mcspex", library_version=__version__)


def _check_files(name: HubName, files: Collection[str]) -> None:
    """Refuse a repository without what a model of ours is made of."""
    lacking = " and ".join(file for file in (CONFIG, WEIGHTS) if file not in files)
    if not lacking:
        return
    if any(file.endswith(_PICKLES) for file in files) and WEIGHTS not in files:
        raise CheckpointError(
            f"{name}: has pickled weights only, which can run code. Download them yourself, "
            "then mcspex models convert FILE -o FOLDER."
        )
    raise CheckpointError(f"{name}: not an mcspex model, there is no {lacking} in it.")


def _is_here(listing: Listing, file: str) -> bool:
    """Whether the cache has a file of this size already."""
    here = cache.cached_file(listing.name, file)
    return here is not None and here.stat().st_size == listing.files[file].size


def _receive(listing: Listing, file: str, blob: Path, advance: Advance) -> None:
    """Download a file to its blob, going on where it broke off, now or in an earlier run."""
    partial, size = blob.with_name(f"{blob.name}.incomplete"), listing.files[file].size
    partial.touch()
    came, idle = partial.stat().st_size, 0
    if came > size:
        partial.write_bytes(b"")
        came = 0
    advance(came)
    while came < size:
        before = came
        with broken_off() as broken:
            _stream(listing, file, partial, advance)
        came = partial.stat().st_size
        idle = 0 if came > before else idle + 1
        if broken and idle == _PATIENCE:
            raise broken[0]
        if came > size or (not broken and came < size):
            partial.unlink()
            raise HubError(f"{listing.asked}: {file} came with another size than announced.")
        if broken:
            time.sleep(_PAUSE_S)
    partial.replace(blob)


def _stream(listing: Listing, file: str, partial: Path, advance: Advance) -> None:
    """Add to a file what it lacks, as it comes, up to a byte more than it should have."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    came, size = partial.stat().st_size, listing.files[file].size
    headers: dict[str, Any] = {
        **build_hf_headers(library_name="mcspex", library_version=__version__),
        "Accept-Encoding": "identity",
        **({"Range": f"bytes={came}-"} if came else {}),
    }
    url = hf_hub_url(listing.asked.repo, file, revision=listing.commit)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        with partial.open("r+b") as written:
            if response.status_code != 206:  # it begins anew, whatever was asked for
                advance(-came)
                came = 0
            written.truncate(came)
            written.seek(came)
            for block in response.iter_bytes():
                came += written.write(block)
                advance(len(block))
                if came > size:
                    return
