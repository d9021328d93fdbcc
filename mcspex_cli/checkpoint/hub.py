"""The Hugging Face Hub, and its cache on this disk. Nothing else here uses the network.

```
HF_HUB_CACHE/models--org--name/blobs/DIGEST             the files, by their checksums
                               snapshots/COMMIT/FILE    links to them
                               refs/BRANCH              the commit that it pointed to
```

huggingface_hub downloads, uploads and keeps the cache; HF_ENDPOINT, HF_TOKEN, HF_HOME and
HF_HUB_OFFLINE mean what they mean to other programs. What is added here: only three files are
taken, never a pickle or code; each must have the checksum that the Hub lists; and an answer whose
headers would lead the client outside its cache is refused.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import __version__, files
from mcspex_cli.checkpoint.config import (
    CARD,
    CONFIG,
    FILES,
    LARGEST_CONFIG,
    WEIGHTS,
    Config,
    checksum,
    largest_weights,
    read_config,
)
from mcspex_cli.errors import CheckpointError, HubError, McspexError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

Progress = Callable[[int, int], None]
"""Gets the bytes received so far, and the bytes to be received in all."""

LARGEST_CARD = 2**24
_LARGEST = {CONFIG: LARGEST_CONFIG, CARD: LARGEST_CARD}
"""Bytes; how large the weights can be follows from the config."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".tar", ".pkl")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(rf'(?:W/)?"?(?:{_DIGEST.pattern})"?')
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@(\w(?:[\w./-]{{0,200}}\w)?))?", re.ASCII)
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """org/name on the Hub, and a branch, tag or commit."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return the name as users write it."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Snapshot:
    """A downloaded model: one commit of one repository."""

    repo: str
    commit: str
    folder: Path
    refs: tuple[str, ...] = ()
    """The branches and tags that pointed to this commit when the Hub was last asked."""

    @property
    def label(self) -> str:
        """Its name, with the beginning of its commit."""
        return f"{self.repo}@{self.commit[:12]}"

    def is_of(self, name: HubName) -> bool:
        """Whether a name means it, by no revision, a branch, a tag, or seven digits of a commit."""
        revision = name.revision
        if self.repo != name.repo:
            return False
        if revision is None or revision in self.refs:
            return True
        return len(revision) >= 7 and self.commit.startswith(revision)


@dataclass(frozen=True)
class ListedFile:
    """A file as the Hub lists it."""

    size: int
    digest: str
    """sha256 of a large file; git's sha1 of a small one."""

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is this one."""
        if path.stat().st_size != self.size:
            return False
        return checksum(path, git=len(self.digest) == 40) == self.digest


@dataclass(frozen=True)
class Listing:
    """What the Hub has under a name: a commit, and those of its files that we take."""

    name: HubName
    commit: str
    files: dict[str, ListedFile]

    def cached(self, file: str) -> Path | None:
        """Where the cache has a file of this commit, right or wrong; None if it has not."""
        return cached_file(HubName(self.name.repo, self.commit), file)


def parse_name(text: str) -> HubName | None:
    """Read `org/name` or `org/name@revision`; None if it cannot be a name on the Hub."""
    match = _NAME.fullmatch(text)
    if not match or len(match[1]) > 96 or re.search(r"--|\.git$", match[1]) or ".." in text:
        return None
    return HubName(match[1], match[2])


def location() -> Path:
    """The folder of the cache, which may not exist yet."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_file(name: HubName, file: str) -> Path | None:
    """Return where the cache has a file of a model, or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name.repo, file, revision=name.revision, cache_dir=location())
    return Path(path) if isinstance(path, str) else None


def cached(name: HubName) -> Snapshot | None:
    """Return the downloaded model that a name stands for; None unless it is all there."""
    config, weights = (cached_file(name, file) for file in (CONFIG, WEIGHTS))
    if not config or not weights:
        return None
    return Snapshot(name.repo, config.parent.name, config.parent)


def snapshots() -> list[Snapshot]:
    """List every commit in the cache that has a config.json, even a damaged one.

    huggingface_hub's `scan_cache_dir` would read the whole cache, data sets included, and takes
    half a second to import; and it skips repositories in which any file is damaged.
    """
    commits = []
    for folder in sorted(location().glob("models--*")):
        refs: dict[str, list[str]] = {}
        for path in sorted((folder / "refs").rglob("*")):
            if path.is_file():
                ref = path.relative_to(folder / "refs").as_posix()
                refs.setdefault(path.read_text().strip(), []).append(ref)
        repo = "/".join(folder.name.split("--")[1:])
        for path in sorted(folder.glob("snapshots/*"), key=lambda path: path.lstat().st_mtime):
            if _COMMIT.fullmatch(path.name) and os.path.lexists(path / CONFIG):
                commits.append(Snapshot(repo, path.name, path, tuple(refs.get(path.name, ()))))
    return commits


def remove(repo: str, commits: Collection[str]) -> int:
    """Delete commits of a repository from the cache, and return how many bytes that frees.

    Raises:
        CheckpointError: The repository is damaged, so that it can only be deleted as a whole.
    """
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(location())
    whole = [r for r in cache.repos if (r.repo_type, r.repo_id) == ("model", repo)]
    if whole:
        strategy = replace(cache, repos=frozenset(whole)).delete_revisions(*commits)
        strategy.execute()
        return strategy.expected_freed_size
    folder = location() / f"models--{repo.replace('/', '--')}"
    if not {path.name for path in folder.glob("snapshots/*")} <= set(commits):
        raise CheckpointError(
            f"{repo}: its files are damaged, so that it can only be deleted as a whole: "
            f"mcspex models rm {repo}"
        )
    kept = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(path.stat().st_size for path in kept)
    shutil.rmtree(folder)
    return size


def look_up(name: HubName) -> Listing:
    """Ask the Hub what it has under `name`.

    Raises:
        HubError: It cannot be reached, has no such model, or does not give it.
        CheckpointError: The repository has no mcspex model.
    """
    from huggingface_hub import constants

    with explained(name):
        info = _client().model_info(
            name.repo,
            revision=name.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        siblings = {str(file.rfilename): file for file in info.siblings or ()}
        listed = {}
        for file in FILES:
            if fact := siblings.get(file):
                digest = str(fact.lfs.sha256 if fact.lfs else fact.blob_id)
                listed[file] = ListedFile(int(fact.size or 0), digest)
        commit = str(info.sha)
    _check_names(name, siblings)
    if not _COMMIT.fullmatch(commit) or not all(
        file.size > 0 and _DIGEST.fullmatch(file.digest) for file in listed.values()
    ):
        raise HubError(f"{name}: {_NO_HUB.format(endpoint())}")
    for file, largest in _LARGEST.items():
        if file in listed and listed[file].size > largest:
            size = listed[file].size
            raise CheckpointError(f"{name}: {file} has {size:,} bytes, too many for a model's.")
    return Listing(name, commit, listed)


def download(name: HubName, progress: Progress | None = None) -> Snapshot:
    """Ask the Hub for `name`, and download what the cache lacks of it.

    The config is checked before the weights are asked for. The weights must have the size that
    follows from it, and the checksums that it and the Hub state.

    Raises:
        HubError: The Hub does not give it.
        CheckpointError: It is not a model for this program, or it is incomplete.
        OutputError: The disk is full.
    """
    listing = look_up(name)
    total, received = _check_space(listing), 0

    def advance(count: int) -> None:
        nonlocal received
        received += count
        if progress:
            progress(received, total)

    folder = _fetch(listing, CONFIG, advance).parent
    try:
        config = read_config(folder, str(name), "Tell its author.")
        _check_weights(listing, config)
        if checksum(_fetch(listing, WEIGHTS, advance)) != config.sha256:
            raise CheckpointError(f"{name}: {_OTHER_WEIGHTS}")
    except HubError:
        raise  # the config may be good
    except CheckpointError:
        with suppress(CheckpointError):
            remove(name.repo, [listing.commit])
        raise
    if CARD in listing.files:
        _fetch(listing, CARD, advance)
    revision = name.revision or "main"
    if revision != listing.commit:
        ref = folder.parents[1] / "refs" / revision
        files.make_folders(ref.parent)
        with files.whole(ref) as partial:
            partial.write_text(listing.commit)
    return Snapshot(name.repo, listing.commit, folder)


def mismatches(snapshot: Snapshot) -> list[str]:
    """Return the files of a downloaded model that differ from what the Hub lists.

    Raises:
        HubError: The Hub cannot be asked.
    """
    listed = look_up(HubName(snapshot.repo, snapshot.commit)).files
    here = {file: snapshot.folder / file for file in listed if (snapshot.folder / file).is_file()}
    return [file for file, path in here.items() if not listed[file].matches(path)]


def upload(contents: dict[str, bytes], name: HubName, *, private: bool) -> str:
    """Make one commit of a model's files, and the repository if need be; return its address.

    Raises:
        HubError: There is no token, it may not write there, or the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    operations = [CommitOperationAdd(file, content) for file, content in contents.items()]
    with explained(name, writing=True):
        api, timeout = _client(), constants.HF_HUB_ETAG_TIMEOUT
        if name.revision:
            api.model_info(name.repo, revision=name.revision, timeout=timeout)
        api.create_repo(name.repo, private=private, exist_ok=True)
        if private and not api.model_info(name.repo, timeout=timeout).private:
            raise HubError(
                f"{name}: exists and is public. Make it private on the Hub, or use another name."
            )
        commit = api.create_commit(
            name.repo, operations, commit_message="Upload a model", revision=name.revision
        )
    return commit.commit_url


def reach(timeout_s: float) -> str:
    """Ask the Hub for anything at all, and return its address.

    Raises:
        HubError: It does not answer, or says that it cannot.
    """
    from huggingface_hub import constants, get_session

    with explained(HubName("the Hub")):
        answer = get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=timeout_s)
    if answer.status_code >= 500:
        raise HubError(f"the Hub has a problem ({answer.status_code}). Try again later.")
    return endpoint()


def endpoint() -> str:
    """The Hub's address, without a password."""
    from huggingface_hub import constants

    return re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)


_NO_HUB = "{} does not answer as the Hub does. Check HF_ENDPOINT, proxy and firewall."
_OTHER_WEIGHTS = f"its {CONFIG} belongs to other weights (sha256). Tell its author."


def _client() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="mcspex", library_version=__version__)


def _check_names(name: HubName, names: Collection[str]) -> None:
    """Refuse a repository without a model's files."""
    missing = " and ".join(file for file in (CONFIG, WEIGHTS) if file not in names)
    if missing and WEIGHTS not in names and any(file.endswith(_PICKLES) for file in names):
        raise CheckpointError(
            f"{name}: has only pickled weights, which can run code. Download them yourself, then "
            "mcspex models convert FILE -o FOLDER"
        )
    if missing:
        raise CheckpointError(f"{name}: not an mcspex model, because it has no {missing}.")


def _check_weights(listing: Listing, config: Config) -> None:
    """Refuse weights that cannot belong to a config, before any of them is downloaded."""
    name, listed = listing.name, listing.files[WEIGHTS]
    largest = largest_weights(config.system, name)
    if listed.size > largest:
        raise CheckpointError(
            f"{name}: its weights have {listed.size:,} bytes, and its config's network has "
            f"{largest:,} at most. Tell its author."
        )
    if len(listed.digest) == 64 and listed.digest != config.sha256:
        raise CheckpointError(f"{name}: {_OTHER_WEIGHTS}")


def _check_space(listing: Listing) -> int:
    """Return how many bytes the cache lacks; refuse if the disk has no room for them."""
    existing = next(above for above in (location(), *location().parents) if above.exists())
    cached_sizes = {f: path.stat().st_size for f in listing.files if (path := listing.cached(f))}
    needed = sum(f.size for name, f in listing.files.items() if cached_sizes.get(name) != f.size)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{listing.name}: needs {needed / 1e6:.1f} MB, and {existing} has {free / 1e6:.1f} MB "
            "free. Free some space, or set HF_HOME to a folder on another disk."
        )
    return needed


def _fetch(listing: Listing, file: str, advance: Callable[[int], None]) -> Path:
    """Download a file of a commit, unless the cache has it with the listed checksum."""
    from huggingface_hub.utils.tqdm import tqdm

    name, listed, path = listing.name, listing.files[file], listing.cached(file)
    received = 0
    if path and listed.matches(path):
        return path

    class Counter(tqdm):
        """Counts bytes instead of showing them, and ends a download that does not end."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal received
            received += int(n or 0)
            advance(int(n or 0))
            if received > listed.size:
                raise HubError(f"{name}: {file} is larger than the Hub listed. Try again later.")

        def update_transfer(self, n: float) -> None:
            """Of bytes on the way, which `update` gets as well."""

    for again in (path is not None, True):
        with explained(name), _checked_answers(name):
            answer = _client().hf_hub_download(
                name.repo,
                file,
                revision=listing.commit,
                cache_dir=location(),
                force_download=again,
                tqdm_class=Counter,
            )
        new = Path(answer)
        if listed.matches(new):
            return new
        advance(-received)
        received = 0
    for part in (new.resolve(), new):
        part.unlink(missing_ok=True)
    raise HubError(f"{name}: {file} arrived damaged twice and was deleted. Try again later.")


@contextmanager
def _checked_answers(name: HubName) -> Iterator[None]:
    """Check each answer to the client within the block before the client uses it.

    Raises:
        HubError: A header of which the client makes a path is not a checksum; or the Hub is too
            busy, where the client would try again for as long as the Hub likes.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def check(response: Any) -> None:
        headers, status = response.headers, response.status_code
        if _is_busy(status):
            raise HubError(f"{name}: {_busy(status, headers)}")
        commit = headers.get("X-Repo-Commit")
        etag = headers.get("X-Linked-Etag") or headers.get("ETag")
        if (commit is not None and not _COMMIT.fullmatch(commit)) or (
            response.request.method == "HEAD" and etag is not None and not _ETAG.fullmatch(etag)
        ):
            raise HubError(f"{name}: {_NO_HUB.format(endpoint())}")

    def checked() -> Any:
        client = factory()
        client.event_hooks["response"].append(check)
        return client

    factory = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(checked)
    try:
        yield
    finally:
        set_client_factory(factory)


@contextmanager
def explained(name: HubName, *, writing: bool = False) -> Iterator[None]:
    """Turn whatever the Hub's client raises in the block into one of our errors.

    Raises:
        HubError: The reason is the Hub, or the connection to it.
        OutputError: The reason is this disk.
    """
    try:
        with silenced():
            yield
    except McspexError:
        raise
    except Exception as error:
        raise _explanation(name, error, writing=writing) from error


@contextmanager
def silenced() -> Iterator[None]:
    """Hide what the Hub's client logs and warns of: each failure is reported once, by us."""
    from huggingface_hub.utils import logging as client_logging

    verbosity = client_logging.get_verbosity()
    client_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        client_logging.set_verbosity(verbosity)


def _explanation(name: HubName, error: BaseException, *, writing: bool) -> McspexError:
    """Return our error for one of the client's."""
    from huggingface_hub import errors

    wrapped = isinstance(error, errors.LocalEntryNotFoundError) or type(error) is RuntimeError
    if wrapped and error.__cause__:
        return _explanation(name, error.__cause__, writing=writing)
    disk = (*files.FULL, errno.EFBIG)
    no_connection = OSError | ImportError | errors.HTTPError  # type: ignore[attr-defined]
    reason = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, errors.HfHubHTTPError):
        text = _refusal(name, error, writing=writing)
    elif isinstance(error, OSError) and (error.errno in disk or error.filename is not None):
        return files.output_error(Path(error.filename or location()), error)
    elif isinstance(error, errors.OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set, so the Hub was not asked. Unset it."
    elif isinstance(error, UnicodeError):
        text = f"HF_TOKEN or HF_ENDPOINT is not plain text ({reason}). Set it anew."
    elif writing and isinstance(error, ValueError):
        text = f"the Hub does not accept it ({reason})."
    elif reason.startswith("Consistency check"):
        text = "a file came with another size than announced. Try again later."
    elif isinstance(error, no_connection):
        text = f"cannot reach {endpoint()} ({reason}). Check the connection. Models on this disk "
        text += "work without it."
    else:
        text = _NO_HUB.format(endpoint())
    return HubError(f"{name}: {text}")


def _refusal(name: HubName, error: HfHubHTTPError, *, writing: bool) -> str:
    """Say what an answer with an error status means."""
    from huggingface_hub import errors, get_token

    status = error.response.status_code
    not_found = isinstance(error, errors.RepositoryNotFoundError)
    if isinstance(error, errors.GatedRepoError):
        text = f"gated. Ask for access at {endpoint()}/{name.repo}, then {_LOG_IN}."
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"has no revision {name.revision or 'main'}. Leave it out, or name another."
    elif status == 401 and not not_found and get_token() is not None:
        text = "the Hub rejects your token (401). Remove it, or set another."
    elif writing and status in {401, 403, 404}:
        text = f"you may not write there ({status}). With a token that may, {_LOG_IN}."
    elif not_found:
        text = "no such folder, and no such model on the Hub. Check the name; if it is private, "
        text += f"{_LOG_IN}."
    elif status in {401, 403}:
        text = f"you may not read it ({status}). Check your access, and {_LOG_IN}."
    elif _is_busy(status):
        text = _busy(status, error.response.headers)
    else:
        text = f"the Hub refuses ({status}). Check the name and the revision."
    return text


def _is_busy(status: int) -> bool:
    return status in {408, 429} or status >= 500


def _busy(status: int, headers: Any) -> str:
    wait = headers.get("Retry-After", "")
    when = f"in {wait} s" if wait.isdecimal() else "later"
    problem = "gets too many requests from here" if status == 429 else "has a problem"
    return f"the Hub {problem} ({status}). Try again {when}."
