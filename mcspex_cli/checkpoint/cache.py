"""The Hugging Face Hub's cache on this disk, where every program keeps what it downloads.

```
HF_HUB_CACHE/models--org--name/blobs/DIGEST               the files, by their checksums
                               snapshots/COMMIT/FILE      links to them
                               refs/BRANCH                the commit that it meant
```

HF_HOME and HF_HUB_CACHE say where it lies. Nothing here asks the network.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import files
from mcspex_cli.checkpoint.configs import CONFIG, WEIGHTS

COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@(\w(?:[\w./-]{{0,200}}\w)?))?", re.ASCII)


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

    @property
    def label(self) -> str:
        """Its name, with the beginning of its commit."""
        return f"{self.repo}@{self.commit[:12]}"

    def is_of(self, revision: str | None) -> bool:
        """Whether a branch, tag or commit, or seven digits or more of one, means it; None: yes."""
        if revision is None or revision in self.refs:
            return True
        return len(revision) >= 7 and self.commit.startswith(revision)


def parse_name(text: str) -> HubName | None:
    """Read `org/name` or `org/name@revision`; None for what cannot be a name on the Hub."""
    named = _NAME.fullmatch(text)
    if not named or len(named[1]) > 96 or re.search(r"--|\.git$", named[1]) or ".." in text:
        return None
    return HubName(named[1], named[2])


def location() -> Path:
    """The folder that the cache is in; it need not be there yet."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_alone() -> bool:
    """Whether HF_HUB_OFFLINE says that the Hub is not to be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def blob(repo: str, digest: str) -> Path:
    """Where a file of this checksum lies, or would."""
    return _folder(repo) / "blobs" / digest


def lock(repo: str, digest: str) -> Path:
    """What a program holds while it writes a blob."""
    return location() / ".locks" / _folder(repo).name / f"{digest}.lock"


def checksum(path: Path, *, of_git: bool = False) -> str:
    """A file's sha256, or the sha1 by which git knows it, as hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        if of_git:
            named = b"blob %d\0" % path.stat().st_size
            digest = hashlib.sha1(named, usedforsecurity=False)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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
    """Every commit of every repository in the cache that has a config.json, be it damaged."""
    found = []
    for folder in sorted(location().glob("models--*")):
        repo = "/".join(folder.name.split("--")[1:])
        refs = _refs(folder)
        for commit in sorted(folder.glob("snapshots/*"), key=lambda path: path.lstat().st_mtime):
            config = commit / CONFIG
            if COMMIT.fullmatch(commit.name) and (config.exists() or config.is_symlink()):
                named = tuple(sorted(ref for ref, meant in refs.items() if meant == commit.name))
                found.append(Snapshot(repo, commit.name, commit, named))
    return found


def point(name: HubName, file: str, blob: Path) -> Path:
    """Let a file of a commit be this blob; where it then is.

    Where a disk has no links the blob itself moves there.
    """
    pointer = _folder(name.repo) / "snapshots" / str(name.revision) / file
    files.make_folders(pointer.parent)
    discard(pointer)
    try:
        pointer.symlink_to(Path("..", "..", "blobs", blob.name))
    except OSError:
        blob.replace(pointer)
    return pointer


def remember(name: HubName, commit: str) -> None:
    """Let a branch or tag mean this commit from now on; a commit means itself."""
    revision = name.revision or "main"
    if revision != commit:
        ref = _folder(name.repo) / "refs" / revision
        files.make_folders(ref.parent)
        with files.whole(ref) as partial:
            partial.write_text(commit)


def discard(path: Path) -> None:
    """Delete a file of a commit, if it is there; what it links to stays."""
    path.unlink(missing_ok=True)


def remove(repo: str, commits: Collection[str]) -> int:
    """Delete commits of a repository, and it with its last; the bytes that became free."""
    folder = _folder(repo)
    before = _size(folder)
    for commit in commits:
        shutil.rmtree(folder / "snapshots" / commit)
        for ref, meant in _refs(folder).items():
            if meant == commit:
                (folder / "refs" / ref).unlink()
    used = {path.resolve() for path in folder.glob("snapshots/*/*")}
    if used:
        for path in folder.glob("blobs/*"):
            if path.resolve() not in used:
                path.unlink()
    else:
        shutil.rmtree(folder)
    return before - _size(folder)


def _folder(repo: str) -> Path:
    """Where the cache keeps a repository."""
    return location() / f"models--{repo.replace('/', '--')}"


def _refs(folder: Path) -> dict[str, str]:
    """What each branch and tag of a repository means."""
    refs = (path for path in (folder / "refs").rglob("*") if path.is_file())
    return {path.relative_to(folder / "refs").as_posix(): path.read_text().strip() for path in refs}


def _size(folder: Path) -> int:
    """Bytes of a repository's files."""
    found = (*folder.glob("blobs/*"), *folder.glob("snapshots/*/*"))
    return sum(path.stat().st_size for path in found if not path.is_symlink())
