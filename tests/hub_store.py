"""What the Hub of the tests keeps: files, commits, branches, tags, and who may do what."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

LARGE_BYTES = 1_000_000
LARGE_NAMES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class Blob:
    """The bytes of a file with what the Hub says about them."""

    data: bytes
    large: bool

    @classmethod
    def of(cls, name: str, data: bytes) -> Blob:
        """As git LFS would keep it: weights and everything above 1 MB is large."""
        return cls(data, name.endswith(LARGE_NAMES) or len(data) > LARGE_BYTES)

    @property
    def sha256(self) -> str:
        """What large files are named after."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git keeps of a large file."""
        head = "version https://git-lfs.github.com/spec/v1\noid sha256:"
        return f"{head}{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        """Git's sha1 of what git keeps."""
        kept = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        """What the client names its blob after."""
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """The commits of a model, and the branches and tags that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def sha(self, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        known = {**{sha: sha for sha in self.commits}, **self.tags, **self.branches}
        return known.get(revision)

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        """Let a branch hold exactly these files; give back the commit."""
        said = [self.branches.get(branch, ""), *(f"{n} {files[n].oid}" for n in sorted(files))]
        sha = hashlib.sha1("\n".join(said).encode()).hexdigest()
        self.commits[sha] = files
        (self.tags if branch in self.tags else self.branches)[branch] = sha
        return sha


@dataclass(frozen=True)
class Request:
    """What was asked; the header names are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        """The token that was sent."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Answer:
    """What is answered."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def said(data: Any, status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json"})


def refused(status: int, message: str, code: str = "") -> Answer:
    """An error as the Hub words it, with the code by which the client tells it."""
    answer = said({"error": message}, status)
    answer.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return answer


def unknown(user: str | None) -> Answer:
    """To strangers, a private repository is one that does not exist."""
    if user:
        return refused(404, "Repository not found", "RepoNotFound")
    return refused(401, "Invalid username or password.", "RepoNotFound")


def owner(name: str) -> str:
    """Whose repository it is."""
    return name.split("/", maxsplit=1)[0]


@dataclass
class Store:
    """Repositories, and who may do what.

    A user may write below the own name, and reads private and gated repositories there or by
    `grants`.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # token: user
    read_only: set[str] = field(default_factory=set)  # tokens
    grants: set[tuple[str, str]] = field(default_factory=set)  # user, repository
    uploads: dict[str, bytes] = field(default_factory=dict)  # by sha256

    def may_read(self, user: str | None, name: str) -> bool:
        """Whether a user sees what is private or gated."""
        return user is not None and (user == owner(name) or (user, name) in self.grants)

    def grown(self, name: str) -> int:
        """How many bytes more than it has a file is said to have."""
        return 0


class RefusedError(Exception):
    """An answer that ends the work on a request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


@dataclass
class Call:
    """A request with the store, its user and what the path names."""

    store: Store
    request: Request
    user: str | None
    repo: str = ""
    revision: str = ""
    name: str = ""

    def found(self) -> Repo:
        """The repository, if it is there and the user may know of it."""
        repo = self.store.repos.get(self.repo)
        if repo is None or (repo.private and not self.store.may_read(self.user, self.repo)):
            raise RefusedError(unknown(self.user))
        return repo

    def commit(self) -> tuple[str, dict[str, Blob]]:
        """The commit that the path names, and its files."""
        repo = self.found()
        sha = repo.sha(self.revision or "main")
        if sha is None:
            message = f"Invalid rev id: {self.revision}"
            raise RefusedError(refused(404, message, "RevisionNotFound"))
        return sha, repo.commits[sha]

    def writable(self) -> Repo:
        """The repository, if the user may write to it."""
        if self.user is None:
            raise RefusedError(unknown(None))
        repo = self.found()
        if self.user != owner(self.repo) or self.request.token in self.store.read_only:
            message = f"Forbidden: you must have write access to {self.repo}"
            raise RefusedError(refused(403, message))
        return repo

    def json(self) -> Any:
        """What was sent."""
        return json.loads(self.request.body)
