"""Where a page's sounds and pictures go: into the page itself, or a folder beside it."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from mcspex_cli.errors import OutputError

_TYPES = {".flac": "audio/flac", ".png": "image/png"}

_OURS = re.compile(r"\d{5,}\.(flac|png)")
"""Names of the files beside a page: numbers, since nothing that a user named is safe."""

Put = Callable[[bytes, str], str]
"""Stores data of a suffix, gives its URL."""


def check_place(output: Path, inputs: Sequence[Path], *, embed: bool, overwrite: bool) -> None:
    """Refuse a page that would destroy something or has no folder.

    Raises:
        OutputError: the page is not called .html, exists (and `overwrite` is not set), is one
            of the `inputs`, or its folder is missing; or that of its files has other things in it.
    """
    if output.suffix.lower() != ".html":
        raise OutputError(f"{output}: a page's name must end in .html.")
    if output.is_dir():
        raise OutputError(f"{output}: is a directory. Choose another name.")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder. Make it, or choose another -o.")
    folder = _files(output)
    for path in (output,) if embed else (output, folder):
        if any(path.resolve() in (p.resolve(), *p.resolve().parents) for p in inputs):
            raise OutputError(
                f"{path}: is an input, which is never overwritten. Choose another -o."
            )
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already. Add --overwrite to replace it.")
    if not embed and folder.exists() and not _is_ours(folder):
        raise OutputError(f"{folder}: holds what no report wrote. Move it, or choose another -o.")


def _is_ours(folder: Path) -> bool:
    """Whether there is nothing in a folder but a page's files."""
    return folder.is_dir() and all(_OURS.fullmatch(path.name) for path in folder.iterdir())


def _files(output: Path) -> Path:
    """The folder of a page's files."""
    return output.with_name(f"{output.stem}_files")


@contextmanager
def shelf(output: Path, *, embed: bool) -> Iterator[Put]:
    """Where sounds and pictures go: into the page, or a folder that appears when complete."""
    if embed:
        yield data_url
        return
    folder = _files(output)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    # Quoted whole, a colon too: before a slash it would end a scheme.
    address = quote(os.fsencode(folder.name), safe="")
    count = 0

    def put(data: bytes, suffix: str) -> str:
        """Write the next file."""
        nonlocal count
        count += 1
        name = f"{count:05d}{suffix}"
        (partial / name).write_bytes(data)
        return f"{address}/{name}"

    try:
        partial.mkdir()
        yield put
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def data_url(data: bytes, suffix: str) -> str:
    """Data as its own address."""
    return f"data:{_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"
