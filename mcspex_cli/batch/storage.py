"""Object stores in the place of folders: s3://bucket/key, gs://bucket/key, all that fsspec reads.

A `Path` drops the second slash of a URL. So they are kept here, `s3:/bucket/key`: names, suffixes
and parents are then those of any path. What touches files comes through this module, where a URL
goes to its store and any other path to the disk.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple
from urllib.request import url2pathname

from mcspex_cli import files
from mcspex_cli.errors import AudioError, DiskFullError, McspexError, OutputError, install_extra

_URL = re.compile(r"([a-z][a-z0-9+.]+):/+(.+)")
"""A scheme has two letters or more: one is a drive of Windows."""

_PASSWORD = re.compile(r"[a-z][a-z0-9+.]+:/+[^/:]*:(?!\d*(?:/|$)).*@")
"""The start of a URL with a user and a password; a host and its port do not match."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of mcspex that has a store's package, by the scheme of its URLs."""

_VERSION = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
"""What changes when an object does, by the names that stores have for it."""


class Stamp(NamedTuple):
    """A file's size, time and identity: equal only for the same file, if it is unchanged."""

    size: int
    time_ns: int
    """Of an object, a number made of its version."""
    identity: int
    """Device and inode as one number; of an object, a number made of its URL."""

    @property
    def version(self) -> list[int]:
        """Size and time, one of which changes with the content."""
        return [self.size, self.time_ns]

    @property
    def in_seconds(self) -> list[int]:
        """The version as it is once an archive, such as a tar, has cut its time to seconds."""
        return [self.size, self.time_ns // 10**9 * 10**9]

    def is_still(self, version: list[int] | None) -> bool:
        """Whether it is unchanged since it had a version; its time may have been cut to seconds."""
        if version is None:
            return False
        size, time_ns = version
        return self.version in (version, Stamp(size, time_ns, 0).in_seconds)


def to_path(text: str | Path) -> Path:
    """The path that a user means by a text: `file:///a`, a URL of this disk, means /a.

    Raises:
        AudioError: it is a URL with a password, which journals and reports would show, or of a
            scheme and nothing else, as from a script whose variable for the bucket is empty.
    """
    scheme, separator, rest = str(text).partition(":/")
    if re.fullmatch(r"[a-z][a-z0-9+.]+:/*", str(text)):
        raise AudioError(f"{scheme.rstrip(':')}://: names no bucket or folder. Add its name.")
    if _PASSWORD.match(str(text)):
        raise AudioError(
            f"{scheme}://...: has a password, which reports would show. Put it where programs for "
            "this store look for it (for s3: AWS_SECRET_ACCESS_KEY), or into fsspec's "
            "configuration."
        )
    is_here = separator and scheme in ("file", "local")
    return Path(url2pathname("/" + rest.lstrip("/")) if is_here else text)


def url(path: str | Path) -> str | None:
    """The URL that a path stands for; None for a file."""
    match = _URL.fullmatch(str(path))
    return f"{match[1]}://{match[2]}" if match else None


def is_url(path: str | Path) -> bool:
    """Whether a path stands for a URL."""
    return url(path) is not None


def label(path: str | Path) -> str:
    """A path as messages and reports show it: an object by its URL."""
    return url(path) or str(path)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, or in a store any object whose key begins so."""
    if not is_url(path):
        return path.is_dir()
    with _open_store(path) as (store, key):
        return bool(store.isdir(key))


def is_empty(path: Path) -> bool:
    """Whether there is nothing in a folder, or no such folder.

    An object called like the folder, with a slash at the end, counts as nothing: consoles of stores
    make one for an empty folder.
    """
    if not is_url(path):
        return not path.is_dir() or not any(path.iterdir())
    with _open_store(path) as (store, key):
        store.invalidate_cache()
        names = store.ls(key, detail=False) if store.isdir(key) else []
    return all(name.rstrip("/") == key.rstrip("/") for name in names)


def check_exists(path: Path) -> None:
    """As `files.check_exists`."""
    if not is_url(path):
        files.check_exists(path)
    elif not is_folder(path) and stamp(path) is None:
        raise AudioError(f"{url(path)}: no such file or folder. Check the name.")


def find(folder: Path, without: Collection[Path] = (), also: Collection[str] = ()) -> list[Path]:
    """The recordings below a folder, as `files.find` lists them."""
    if not is_url(folder):
        return files.find(folder, without, also)
    scheme = str(folder).partition(":")[0]
    with _open_store(folder) as (store, key):
        keys = store.find(key)
    return sorted(
        path
        for path in (Path(f"{scheme}:/{key.lstrip('/')}") for key in keys)
        if path.suffix.lower() in files.SUFFIXES.union(also)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not any(path.resolve().is_relative_to(other) for other in without)
    )


def stamp(path: str | Path, *, anew: bool = False) -> Stamp | None:
    """A file's stamp; None if there is no such file.

    Objects are looked up in a list of their folder that is made once or, if `anew`, asked for: then
    an absent one is an AudioError.
    """
    if is_url(path):
        folder, last = os.path.split(path)
        if not is_url(folder):
            return None  # a bucket
        if not anew:
            return objects(folder).get(last)
        with _open_store(path) as (store, key):
            store.invalidate_cache()
            return _stamp(store.info(key))
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    if not S_ISREG(status.st_mode):
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_dev << 64 | status.st_ino)


@cache
def objects(folder: str) -> dict[str, Stamp]:
    """The objects of a folder itself, by name, until `objects.cache_clear()`."""
    with _open_store(folder) as (store, key):
        try:
            store.invalidate_cache()
            infos = store.ls(key, detail=True)
        except FileNotFoundError:
            return {}
    objects = (info for info in infos if info["type"] == "file")
    return {info["name"].rpartition("/")[2]: _stamp(info) for info in objects}


def _stamp(info: dict[str, Any]) -> Stamp:
    version = next((info[key] for key in _VERSION if info.get(key)), "")
    version = version.timestamp() if isinstance(version, datetime) else version
    digests = (hashlib.sha256(str(text).encode()).digest() for text in (version, info["name"]))
    return Stamp(info["size"], *(int.from_bytes(digest[:8], "big") for digest in digests))


def read(path: Path, kind: type[McspexError] = AudioError) -> bytes:
    """A small file's bytes; if it cannot be read, an error of this `kind` says so."""
    if is_url(path):
        with _open_store(path, kind) as (store, key):
            return bytes(store.cat_file(key))
    return files.read_bytes(path, kind)


def write(path: Path, data: bytes) -> None:
    """Replace a small object."""
    with _open_store(path, OutputError) as (store, key):
        store.pipe_file(key, data)


def fetch(path: str | Path, scratch: Path) -> Path:
    """Where a file is on this disk: its own place, or that of a copy below `scratch`."""
    if not is_url(path):
        return Path(path)
    copy = scratch / path
    if not copy.exists():
        files.make_folders(copy.parent)
        with files.whole(copy) as partial, _open_store(path) as (store, key):
            store.get_file(key, str(partial))
    return copy


def send(copy: Path, path: Path) -> None:
    """Move a file of this disk to its object."""
    with _open_store(path, OutputError) as (store, key):
        store.put_file(str(copy), key)
    copy.unlink()


def with_urls(text: str, scratch: Path) -> str:
    """A message with the URLs of copies below `scratch` in the place of their paths."""
    return re.sub(re.escape(f"{scratch}/") + r"([a-z][a-z0-9+.]+):/", r"\1://", text)


@contextmanager
def temporary_copies() -> Iterator[Path]:
    """Give a folder on this disk for copies, which is removed afterwards.

    Raises:
        DiskFullError: it was full when the block wrote there.
    """
    with files.temporary_folder() as folder:
        try:
            yield folder
        except DiskFullError as error:
            if str(folder) not in str(error):
                raise
            raise DiskFullError(
                f"{folder.parent}: is full, and objects are copied there. Free some space, or set "
                "TMPDIR to a folder on another disk."
            ) from error


@contextmanager
def on_disk(folder: Path) -> Iterator[Path]:
    """A folder to write files to: itself, or one whose files all become objects in the end."""
    if not is_url(folder):
        yield folder
        return
    with temporary_copies() as scratch:
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                send(path, folder / path.relative_to(scratch))


@contextmanager
def _open_store(
    path: str | Path, kind: type[McspexError] = AudioError
) -> Iterator[tuple[Any, str]]:
    """The store and key of a URL; whatever goes wrong there is an error of a kind, with the URL.

    Raises:
        OSError: this disk is full.
    """
    import fsspec

    try:
        yield fsspec.core.url_to_fs(url(path))
    except ImportError as error:
        extra = _EXTRAS.get(str(path).partition(":")[0])
        advice = f" {install_extra(extra)}" if extra else ""
        raise kind(f"{url(path)}: needs another package ({error}).{advice}") from error
    except Exception as error:  # of botocore, aiohttp, ...: each store has its own
        if isinstance(error, OSError) and error.errno in files.FULL:
            raise  # of this disk
        absent = "no such file or folder: " if isinstance(error, FileNotFoundError) else ""
        raise kind(f"{url(path)}: {absent}{str(error) or type(error).__name__}") from error
