"""Paths: what is there, and folders to make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcspex_cli.errors import AudioError, OutputError, PairingError

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .caf .w64 .rf64 .au .snd".split()
)
"""Suffixes taken for sound files when a folder is searched."""


def find(folder: Path) -> list[Path]:
    """List the sound files under `folder`, however deep, by path; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def by_name(folder: Path) -> dict[str, Path]:
    """Sound files under a folder by the name they are paired by.

    That is the path below the folder, with slashes, without its suffix or a `.target` before it.

    Raises:
        PairingError: two files have one name.
    """
    named: dict[str, Path] = {}
    for path in find(folder):
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(".target")
        if name in named:
            raise PairingError(f"{named[name]} and {path}: one name, two files. Move one away.")
        named[name] = path
    return named


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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path` to write to, renamed to `path` if the block succeeds.

    Raises:
        OutputError: the block could not write.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        reason = error.strerror
        raise OutputError(f"{path}: cannot be written ({reason}). Free some space.") from error
    finally:
        partial.unlink(missing_ok=True)
