"""Paths: what is there, folders to make, and files and folders that appear whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcspex_cli.errors import AudioError, OutputError

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .caf .w64 .rf64 .au .snd".split()
)
"""Suffixes taken for sound files when a folder is searched."""

CONTAINERS = frozenset(".m4a .mp4 .m4v .mkv .mka .mov .webm .aac .wma .wmv .amr .3gp .avi".split())
"""Suffixes of recordings that need ffmpeg; taken where a user's own recordings are searched."""

_MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
"""Tells this machine from others that write to the same folder."""

_LONG_NAME = 200
"""Bytes of a file's name to which no more can be added: most disks allow 255."""

_PARTIAL = re.compile(rf"\..+\.{_MACHINE}-(\d+)\.partial")
"""A file that a process of this machine has not finished."""


def find(
    folder: Path,
    without: Collection[Path] = (),
    also: Collection[str] = (),
    *,
    containers: bool = False,
) -> list[Path]:
    """List the sound files under `folder`, however deep, by path; hidden ones are left out.

    Links to folders are followed. `without` has folders that are not entered, resolved; `also` has
    other files' suffixes. With `containers`, files of those suffixes are listed too, but for those
    beside which there is a sound file of the same stem: that is their sound, converted before.

    Raises:
        AudioError: a link leads to a folder above it.
    """
    suffixes = SUFFIXES.union(also, CONTAINERS if containers else ())
    found = sorted(_walk(folder, {folder.resolve()}, without, suffixes))
    converted = {path.with_suffix("") for path in found if path.suffix.lower() in SUFFIXES}
    return [
        path
        for path in found
        if path.suffix.lower() not in CONTAINERS or path.with_suffix("") not in converted
    ]


def by_name(
    folder: Path, also: Collection[str] = (), *, containers: bool = False
) -> dict[str, list[Path]]:
    """The files that `find` lists by their path in `folder` without suffix, "a/b"."""
    named: dict[str, list[Path]] = {}
    for path in find(folder, also=also, containers=containers):
        named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return named


def _walk(
    folder: Path, above: set[Path], without: Collection[Path], suffixes: Collection[str]
) -> Iterator[Path]:
    """The files of a folder and those below; `above` are it and those over it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below = path.resolve()
                if below in above:
                    raise AudioError(f"{path}: links to a folder above it. Remove this link.")
                if below not in without:
                    yield from _walk(path, above | {below}, without, suffixes)
            elif path.suffix.lower() in suffixes and (entry.is_symlink() or entry.is_file()):
                yield path  # a link to nothing is one too, so that its reader says so


def check_exists(path: Path) -> None:
    """Refuse a path where there is nothing.

    Raises:
        AudioError: there is no such file or folder.
    """
    if not path.exists():
        raise AudioError(f"{path}: no such file or folder.")


def make_folders(*folders: Path) -> None:
    """Make folders, with those above them, where they do not exist.

    Raises:
        OutputError: one cannot be made.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot make this folder ({error.strerror}).") from error


def touch(path: Path) -> None:
    """Make an empty file where there is none.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.touch()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def partial(path: Path) -> Path:
    """The hidden name beside `path` that this process writes to before `path` is whole."""
    name = os.fsencode(path.name)
    if len(name) > _LONG_NAME:
        name = hashlib.sha256(name).hexdigest().encode()
    return path.with_name(f".{os.fsdecode(name)}.{_MACHINE}-{os.getpid()}.partial")


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that are no more left unfinished under `folder`."""
    for path in folder.rglob(".*.partial"):
        named = _PARTIAL.fullmatch(path.name)
        if named and not _runs(int(named[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path` to write to, renamed to `path` if the block succeeds.

    Raises:
        OutputError: the block could not write.
    """
    unfinished = partial(path)
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        reason = error.strerror
        raise OutputError(f"{path}: cannot be written ({reason}). Free some space.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to write files to, renamed if the block succeeds.

    Where `folder` is there already, the files replace those of their names in it.

    Raises:
        OutputError: the block could not write.
    """
    unfinished = partial(folder)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if not folder.exists():
            with suppress(OSError):  # another process has just made it
                unfinished.rename(folder)
        for path in unfinished.iterdir() if unfinished.exists() else ():
            path.replace(folder / path.name)
    except OSError as error:
        reason = error.strerror
        raise OutputError(
            f"{folder}: cannot be written ({reason}). Free some space, or name another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process is there and alive; on Windows, where asking could end it, always."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with suppress(OSError):
        # A dead one stays there as a zombie where nobody collects orphans, as in containers.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
