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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import __version__, files
from mcspex_cli.errors import CheckpointError, HubError, McspexError, error_line, without_passwords

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
"""The files of a model, on the Hub as in any folder; the card is for people."""

LARGEST = {CONFIG: 2**20, CARD: 2**24}
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

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Read `org/name` or `org/name@revision`; None if it cannot be a name on the Hub."""
        match = _NAME.fullmatch(text)
        if not match or len(match[1]) > 96 or re.search(r"--|\.git$", match[1]) or ".." in text:
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        """Return the name as users write it."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def label(self) -> str:
        """The name with the beginning of its commit."""
        return f"{self.repo}@{self.revision[:12]}" if self.revision else self.repo

    @property
    def pull_command(self) -> str:
        """The command that downloads it."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"mcspex models pull {self.repo}{revision}"

    @property
    def repository(self) -> Path:
        """Where the cache has the repository, or would have it."""
        return location() / f"models--{self.repo.replace('/', '--')}"

    @property
    def folder(self) -> Path:
        """Where the cache has the files of a commit, or would have them."""
        return self.repository / "snapshots" / str(self.revision)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it."""

    size: int
    digest: str
    """sha256 of a large file; git's sha1 of a small one."""

    def has_size_of(self, path: Path) -> bool:
        """Whether there is a file of its size at `path`."""
        return path.is_file() and path.stat().st_size == self.size

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is this one."""
        is_git = len(self.digest) == 40
        return self.has_size_of(path) and checksum(path, git=is_git) == self.digest


@dataclass(frozen=True)
class Listing:
    """What the Hub has under a name: a commit, and those of its files that we take."""

    name: HubName
    commit: HubName
    files: dict[str, RemoteFile]

    @property
    def missing_bytes(self) -> int:
        """How many bytes of it the cache lacks."""
        folder = self.commit.folder
        return sum(f.size for n, f in self.files.items() if not f.has_size_of(folder / n))


def checksum(path: Path, *, git: bool = False) -> str:
    """Return a file's sha256, or git's sha1 of it, as hexadecimal digits."""
    from huggingface_hub.utils import sha

    with path.open("rb") as file:
        return sha.git_hash(file.read()) if git else sha.sha_fileobj(file).hex()


# The cache.


def client_settings() -> Any:
    """The settings of the Hub's client, which it reads from the environment as it is imported.

    Raises:
        HubError: a variable has a value that it cannot have.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise HubError(
            "HF_ENDPOINT, HF_HUB_ETAG_TIMEOUT or HF_HUB_DOWNLOAD_TIMEOUT: cannot be used "
            f"({error}). A timeout is a whole number of seconds. Correct it, or unset it."
        ) from error
    return constants


def location() -> Path:
    """The folder of the cache, which may not exist yet."""
    return Path(client_settings().HF_HUB_CACHE)


def cached(name: HubName) -> HubName | None:
    """Return the downloaded commit that a name stands for; None unless it is all there."""
    revision = name.revision or "main"
    commit = HubName(name.repo, _refs(name.repository).get(revision, revision))
    is_whole = all((commit.folder / file).is_file() for file in (CONFIG, WEIGHTS))
    return commit if is_whole else None


def downloads() -> dict[HubName, list[str]]:
    """List every commit in the cache that has a config.json, even a damaged one.

    huggingface_hub's `scan_cache_dir` would read the whole cache, data sets included, and takes
    half a second to import; and it skips repositories in which any file is damaged.

    Returns:
        Each commit with the branches and tags that pointed to it when the Hub was last asked.
    """
    commits = {}
    for folder in sorted(location().glob("models--*")):
        repo, refs = "/".join(folder.name.split("--")[1:]), _refs(folder)
        for path in sorted(folder.glob("snapshots/*"), key=lambda path: path.lstat().st_mtime):
            if _COMMIT.fullmatch(path.name) and os.path.lexists(path / CONFIG):
                names = [ref for ref, commit in refs.items() if commit == path.name]
                commits[HubName(repo, path.name)] = names
    return commits


def _refs(repository: Path) -> dict[str, str]:
    """The branches and tags of a repository in the cache, each with its commit."""
    folder = repository / "refs"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_text(errors="replace").strip() for p in paths}


def remove(commits: Sequence[HubName]) -> int:
    """Delete commits of one repository from the cache, and return how many bytes that frees."""
    names, folder = {str(commit.revision) for commit in commits}, commits[0].repository

    def blobs() -> dict[Path, int]:
        """The files in the folder that commits lead to, with their sizes."""
        paths = {path.resolve() for path in folder.glob("snapshots/*/**/*") if path.is_file()}
        own = (path for path in paths if path.is_relative_to(folder.resolve()))
        return {path: path.stat().st_size for path in own}

    try:
        before = blobs()
        for commit in commits:
            shutil.rmtree(commit.folder)
        for ref, revision in _refs(folder).items():
            if revision in names:
                (folder / "refs" / ref).unlink()
        gone = before.keys() - blobs().keys()
        for path in gone:
            path.unlink(missing_ok=True)
        if not any(folder.glob("snapshots/*")):
            shutil.rmtree(folder)
    except OSError as error:
        raise files.output_error(folder, error, "cannot be deleted") from error
    return sum(before[path] for path in gone)


# Requests.


def look_up(name: HubName) -> Listing:
    """Ask the Hub what it has under `name`, and refuse what is no mcspex model."""
    timeout = client_settings().HF_HUB_ETAG_TIMEOUT
    with _client(name) as api:
        info = api.model_info(
            name.repo, revision=name.revision, files_metadata=True, timeout=timeout
        )
        siblings = {str(file.rfilename): file for file in info.siblings or ()}
        remote = {}
        for file in FILES:
            if fact := siblings.get(file):
                digest = str(fact.lfs.sha256 if fact.lfs else fact.blob_id)
                remote[file] = RemoteFile(int(fact.size or 0), digest)
        commit = str(info.sha)
    if WEIGHTS not in remote and any(file.endswith(_PICKLES) for file in siblings):
        raise CheckpointError(
            f"{name}: has only pickled weights, which can run code. Download them yourself, then "
            "mcspex models convert FILE -o FOLDER"
        )
    if missing := " and ".join(file for file in (CONFIG, WEIGHTS) if file not in remote):
        raise CheckpointError(f"{name}: not an mcspex model, because it has no {missing}.")
    if not _COMMIT.fullmatch(commit) or not all(
        file.size > 0 and _DIGEST.fullmatch(file.digest) for file in remote.values()
    ):
        raise HubError(f"{name}: {_not_a_hub()}")
    for file, largest in LARGEST.items():
        if file in remote and (size := remote[file].size) > largest:
            raise CheckpointError(f"{name}: {file} has {size:,} bytes, too many for a model's.")
    return Listing(name, HubName(name.repo, commit), remote)


def mismatches(commit: HubName) -> list[str]:
    """Return the files of a downloaded commit that differ from what the Hub lists."""
    remote = look_up(commit).files
    here = [file for file in remote if (commit.folder / file).is_file()]
    return [file for file in here if not remote[file].matches(commit.folder / file)]


def fetch(listing: Listing, file: str, advance: Callable[[int], None]) -> Path:
    """Download a file of a listing, unless the cache has it with the listed checksum.

    `advance` gets the number of bytes whenever some arrive.

    Raises:
        HubError: the Hub does not give it, or gives something else.
        OutputError: the disk is full.
    """
    from huggingface_hub.utils.tqdm import tqdm

    name, remote, path = listing.name, listing.files[file], listing.commit.folder / file
    received = 0

    class Counter(tqdm):
        """Counts bytes instead of showing them, and ends a download that is too long."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal received
            received += int(n or 0)
            advance(int(n or 0))
            if received > remote.size:
                raise HubError(f"{name}: {file} is larger than the Hub listed. Try again later.")

        def update_transfer(self, n: float) -> None:
            """Ignore bytes on the way: `update` gets them as well."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Ignore how fast they come."""

    if remote.matches(path):
        return path
    for again in (path.is_file(), True):  # what is there is damaged
        with _client(name) as api:
            api.hf_hub_download(
                name.repo,
                file,
                revision=listing.commit.revision,
                force_download=again,
                tqdm_class=Counter,
            )
        if remote.matches(path):
            return path
        advance(-received)
        received = 0
    for part in (path.resolve(), path):
        part.unlink(missing_ok=True)
    raise HubError(f"{name}: {file} arrived damaged twice and was deleted. Try again later.")


def point_to(listing: Listing) -> None:
    """Have the branch or tag of a listing's name mean its commit from now on."""
    revision, commit = listing.name.revision or "main", listing.commit
    if commit.revision not in (revision, _refs(commit.repository).get(revision)):
        ref = commit.repository / "refs" / revision
        files.make_folders(ref.parent)
        with files.whole(ref) as partial:
            partial.write_text(str(commit.revision))


def upload(contents: dict[str, bytes], name: HubName, *, private: bool) -> str:
    """Make one commit of a model's files, and the repository if need be; return its address."""
    timeout = client_settings().HF_HUB_ETAG_TIMEOUT
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    operations = [CommitOperationAdd(file, content) for file, content in contents.items()]
    with _client(name, writing=True) as api:
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


# The client, and its errors as ours.


def reach(timeout_s: float) -> str:
    """Ask the Hub for anything at all, and return its address."""
    endpoint = client_settings().ENDPOINT
    from huggingface_hub import get_session

    hub = HubName("the Hub")
    try:
        answer = get_session().get(f"{endpoint}/api/models?limit=1", timeout=timeout_s)
    except Exception as error:
        raise _our_error(hub, error) from error
    if busy := _busy(answer):
        raise HubError(f"{hub}: {busy}")
    return _endpoint()


def _endpoint() -> str:
    """The Hub's address, without a password."""
    return without_passwords(client_settings().ENDPOINT)


@contextmanager
def _client(name: HubName, *, writing: bool = False) -> Iterator[HfApi]:
    """Give the Hub's client, whose answers are checked and whose errors become ours.

    Headers of which the client makes paths must be checksums. A busy Hub is an error at once,
    unless `writing`; the client would wait for as long as the Hub likes.

    Raises:
        HubError: the reason is the Hub, or the connection to it.
        OutputError: the reason is this disk.
    """
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils import _http

    def check(response: Any) -> None:
        headers, busy = response.headers, _busy(response)
        if busy and not writing:
            raise HubError(f"{name}: {busy}")
        commit = headers.get("X-Repo-Commit")
        etag = headers.get("X-Linked-Etag") or headers.get("ETag")
        if (commit is not None and not _COMMIT.fullmatch(commit)) or (
            response.request.method == "HEAD" and etag is not None and not _ETAG.fullmatch(etag)
        ):
            raise HubError(f"{name}: {_not_a_hub()}")

    def checked() -> Any:
        client = factory()
        client.event_hooks["response"].append(check)
        return client

    factory, settings = _http._GLOBAL_CLIENT_FACTORY, client_settings()
    shares = getattr(settings, "HF_HUB_DISABLE_SHARED_BLOBS", None)
    # A repository keeps its files in its own folder, or `remove` would not free what they take.
    settings.HF_HUB_DISABLE_SHARED_BLOBS = True
    set_client_factory(checked)
    try:
        with silence():
            yield HfApi(library_name="mcspex", library_version=__version__)
    except McspexError:
        raise
    except Exception as error:
        raise _our_error(name, error, writing=writing) from error
    finally:
        set_client_factory(factory)
        settings.HF_HUB_DISABLE_SHARED_BLOBS = shares


@contextmanager
def silence() -> Iterator[None]:
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


def _our_error(name: HubName, error: BaseException, *, writing: bool = False) -> McspexError:
    """Return our error for one of the client's."""
    from huggingface_hub import errors

    wrapped = isinstance(error, errors.LocalEntryNotFoundError) or type(error) is RuntimeError
    if wrapped and error.__cause__:
        return _our_error(name, error.__cause__, writing=writing)
    reason = error_line(error)
    match error:
        case errors.HfHubHTTPError():
            text = _refusal(name, error, writing=writing)
        case OSError() if error.filename is not None or error.errno in (*files.FULL, errno.EFBIG):
            return files.output_error(Path(error.filename or location()), error)
        case errors.OfflineModeIsEnabled():
            text = "HF_HUB_OFFLINE is set, so the Hub was not asked. Unset it."
        case UnicodeError():
            text = "your token, or HF_ENDPOINT, has a character that it cannot have. Correct it."
        case ValueError() if writing:
            text = f"the Hub does not accept it ({reason})."
        case _ if reason.startswith("Consistency check"):
            text = "a file came with another size than announced. Try again later."
        case OSError() | ImportError() | errors.HTTPError():  # type: ignore[attr-defined]
            # A missing file can only be the one of the certificates: others have names, see above.
            by_trust = "certificate" in reason or isinstance(error, FileNotFoundError)
            advice = "Let SSL_CERT_FILE name a file with the certificates that your network needs."
            text = f"cannot reach {_endpoint()} ({reason}). "
            text += advice if by_trust else "Check the connection."
            text += " Models on this disk work without it."
        case _:
            text = _not_a_hub()
    return HubError(f"{name}: {text}")


def _refusal(name: HubName, error: HfHubHTTPError, *, writing: bool) -> str:
    """Say what an answer with an error status means."""
    from huggingface_hub import errors, get_token

    status, unknown = error.response.status_code, isinstance(error, errors.RepositoryNotFoundError)
    match error:
        case errors.GatedRepoError():
            text = f"gated. Ask for access at {_endpoint()}/{name.repo}, then {_LOG_IN}."
        case errors.RevisionNotFoundError():
            text = f"has no revision {name.revision or 'main'}. Leave it out, or name another."
        case _ if status == 401 and not unknown and get_token() is not None:
            text = "the Hub rejects your token (401). Remove it, or set another."
        case _ if writing and status in {401, 403, 404}:
            text = f"you may not write there ({status}). With a token that may, {_LOG_IN}."
        case _ if unknown:
            text = "no such folder, and no such model on the Hub. Check the name; if it is "
            text += f"private, {_LOG_IN}."
        case _ if status in {401, 403}:
            text = f"you may not read it ({status}). Check your access, and {_LOG_IN}."
        case _:
            refusal = f"the Hub refuses ({status}). Check the name and the revision."
            text = _busy(error.response) or refusal
    return text


def _busy(response: Any) -> str:
    """Say that the Hub cannot answer now; nothing if it can."""
    status, wait = response.status_code, response.headers.get("Retry-After", "")
    if status not in {408, 429} and status < 500:
        return ""
    when = f"in {wait} s" if wait.isdecimal() else "later"
    problem = "gets too many requests from here" if status == 429 else "has a problem"
    return f"the Hub {problem} ({status}). Try again {when}."


def _not_a_hub() -> str:
    return f"{_endpoint()} does not answer as the Hub does. Check HF_ENDPOINT, proxy and firewall."
