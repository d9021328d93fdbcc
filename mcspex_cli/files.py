"""Finding sound files; reading text; files and folders that appear whole or not at all.

What is being written has a hidden name beside its own (`.NAME.MACHINE-PROCESS-NUMBER.partial`)
until it is complete. What a killed process leaves under such a name is removed by the next run
that writes to the same folder.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import hashlib
import io
import itertools
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

from mcspex_cli.errors import (
    TOO_LITTLE_MEMORY,
    AudioError,
    ConfigError,
    DiskFullError,
    McspexError,
    OutputError,
    line,
)

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .spx .mp3 .mp2 .aif .aiff .aifc .caf .w64 .rf64 .au .snd .sph "
    ".bwf .bw64 .wv .tta .ape .tak .mpc .m4a .m4b .m4r .mp4 .m4v .mkv .mka .mov .qt .webm .weba "
    ".mpga .aac .ac3 .eac3 .dts .wma .wmv .asf .amr .awb .gsm .qcp .3gp .3gpp .3ga .3g2 .avi "
    ".flv .f4v .mpg .mpeg .vob .ts .mts .m2t .m2ts .mxf .ogv".split()
)
"""Suffixes taken for recordings when a folder is searched."""

try:
    _CONTAINER = Path("/proc/self/ns/pid").readlink()
except OSError:  # not on Linux
    _CONTAINER = Path()
_MACHINE = hashlib.sha256(f"{socket.gethostname()}{_CONTAINER}".encode()).hexdigest()[:8]
"""Tells this machine or container from others that write to the same folder. Containers may share
the name of their host, but each numbers its processes from 1."""

LONGEST_NAME = 255
"""Bytes of a file's or folder's name that nearly all disks allow."""

_LONGEST_WITHIN = 200
"""Bytes of a file's name that leave room for the rest of a hidden name."""

_PARTIAL = re.compile(rf"\..+\.{_MACHINE}-(\d+)(?:-\d+)?\.partial")
"""The hidden name of what a process of this machine has not finished."""

_numbers = itertools.count()
_waiting: ContextVar[dict[Path, Path] | None] = ContextVar("waiting", default=None)
"""Within `together`: the names of files, and what waits to get them."""

_swept: set[Path] = set()

_logger = logging.getLogger("mcspex")

_circles: set[Path] = set()
"""Links to a folder above them, of each of which one warning was given."""

_URL = re.compile(r"[a-z][a-z0-9+.]+:/")
"""How a URL begins as a `Path`, which drops its second slash."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""How a disk, or a user's share of it, says that it is full."""

_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space, or choose another disk.",
    errno.EDQUOT: "your disk quota is used up. Free some space, or choose another disk.",
    errno.EACCES: "permission denied. Change its permissions, or choose another place.",
    errno.EPERM: "the system does not permit it. Change its permissions, or choose another place.",
    errno.EROFS: "the disk is read-only. Choose another disk.",
    errno.EISDIR: "it is a folder. Name a file.",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another path.",
    errno.ENOENT: "its folder does not exist. Make that folder first, or correct the path.",
    errno.EEXIST: "something else has this name. Choose another name.",
    errno.ENOTEMPTY: "a folder has this name. Choose another name.",
    errno.EBUSY: "it is in use, or a disk is mounted there. Choose a place in it, or another.",
    errno.ENAMETOOLONG: "its name is too long. Choose a shorter one.",
    errno.ELOOP: "its links lead in a circle. Remove one of them.",
    errno.EMFILE: "too many files are open. Raise the limit with: ulimit -n 4096",
    errno.ENFILE: "too many files are open on this machine. Close other programs.",
    errno.EFBIG: "it is larger than the disk or its limit allows. Choose another disk.",
    errno.ENOMEM: TOO_LITTLE_MEMORY,
    errno.EIO: "the disk failed (input/output error). Check the disk, or choose another.",
    errno.ESTALE: "the network disk went away (stale file handle). Mount it again.",
}


def explain(error: OSError) -> str:
    """Why the system refused a path, and what to do: two short sentences to follow a colon."""
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return f"{error.strerror or error}. Check this path."


@contextmanager
def reading(path: Path, kind: type[McspexError] = AudioError) -> Iterator[None]:
    """Turn an OSError in the block into `kind`, naming `path` and the reason."""
    try:
        yield
    except FileNotFoundError as error:
        name, advice = str(path), "Check the name."
        if name == "-":
            advice = "Only a mixture of extract may be standard input."
        elif _URL.match(name):
            name = name.replace(":/", "://", 1)
            advice = "URLs are only for sounds and manifests of batch. Copy it to this disk first."
        raise kind(f"{name}: no such file or folder. {advice}") from error
    except OSError as error:
        raise kind(f"{path}: cannot be read: {explain(error)}") from error


def output_error(path: Path, error: OSError, action: str = "cannot be written") -> OutputError:
    """The error for an output at `path` that the system refused; `DiskFullError` on a full disk."""
    kind = DiskFullError if error.errno in FULL else OutputError
    return kind(f"{path}: {action}: {explain(error)}")


def find(folder: Path, without: Collection[Path] = (), also: Collection[str] = ()) -> list[Path]:
    """List the recordings under `folder`, however deep, by path; hidden ones are left out.

    Links to folders are followed, except to a folder above the link: what is there is listed
    anyway, and a warning says so. Links to nothing are listed too: whoever reads them reports it.

    Args:
        folder: where to search.
        without: resolved folders that are not entered.
        also: suffixes to list besides `SUFFIXES`.

    Raises:
        AudioError: a folder cannot be read.
    """

    def fail(error: OSError) -> NoReturn:
        raise AudioError(f"{error.filename}: cannot be searched: {explain(error)}") from error

    suffixes, paths = SUFFIXES.union(also), []
    above = {folder: {folder.resolve()}}
    """For each folder to search: it and the folders over it, resolved."""
    for here, below, names in os.walk(folder, onerror=fail, followlinks=True):
        folders, below[:] = [name for name in below if not name.startswith(".")], []
        for name in folders:
            path, over = Path(here, name), above[Path(here)]
            resolved = path.resolve()
            if resolved not in over and resolved not in without:
                below.append(name)
                above[path] = over | {resolved}
            elif resolved in over and path not in _circles:
                _circles.add(path)
                _logger.warning(f"{path}: links to a folder above it and is not followed.")
        files = [Path(here, name) for name in names if not name.startswith(".")]
        paths += [path for path in files if path.suffix.lower() in suffixes]
    return sorted(paths)


def check_name(path: Path) -> None:
    """Refuse, with an AudioError, a name with a NUL or an unpaired surrogate: no file has one.

    A name that this system's encoding of names cannot write is a UnicodeEncodeError, with that part
    of the path.
    """
    try:
        is_possible = b"\0" not in str(path).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        is_possible = False
    for part in path.parts if is_possible else ():
        os.fsencode(part)
    if not is_possible:
        raise AudioError(f"{line(str(path))}: no file can have this name. Correct it.")


def check_exists(path: Path) -> os.stat_result:
    """Refuse a path where there is nothing, and give the status of what is there.

    Raises:
        AudioError: there is no such file or folder, or it cannot be reached.
    """
    check_name(path)
    with reading(path):
        return path.stat()


def read_bytes(path: Path, kind: type[McspexError]) -> bytes:
    """All of a small file, or an error of this `kind`: also for a device or a named pipe.

    Reading one of those may never end. A pipe without a name, as `<(...)` makes, is read.
    """
    with reading(path, kind):
        place = Path(os.path.realpath(path))
        if place.exists() and not (place.is_file() or place.is_dir()):
            raise kind(f"{path}: is not a regular file. Save its content to one first.")
        return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path, ConfigError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8. Save it again as UTF-8.") from error


CsvRow = tuple[int, list[str] | str]
"""A row's line number, and its cells or what is wrong with it."""


def parse_csv(
    path: Path | str,
    text: str,
    is_key: Callable[[str], bool],
    usual: str = ",",
    kind: type[McspexError] = ConfigError,
) -> tuple[list[str], Iterator[CsvRow]]:
    """The headings of a CSV, and its rows, with stripped cells.

    Empty rows, and empty columns at the end, are left out, since spreadsheets write some.

    Commas, semicolons or tabs separate it: the first of them, `usual` before the others, that makes
    a heading for which `is_key` is true. Without such a heading it is read as `usual`. If it cannot
    be read so, an error of this `kind` says what is wrong at `path`.
    """
    # At the end `usual` again: if no delimiter makes such a heading, start over with it.
    for delimiter in (usual, *",;\t".replace(usual, ""), usual):
        rows = _csv_rows(text, delimiter)
        number, headings = next(rows, (0, []))
        if not isinstance(headings, str) and any(map(is_key, headings)):
            break
    if isinstance(headings, str):
        raise kind(f"{path} line {number}: {headings}")
    return headings, rows


def _csv_rows(text: str, delimiter: str) -> Iterator[CsvRow]:
    file, number, width = io.StringIO(text, newline=""), 0, 0
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            cells, number = [cell.strip() for cell in row], rows.line_num
            if any(cells):
                while not cells[-1] and len(cells) > width:
                    cells.pop()
                width = width or len(cells)
                problem = f"has {len(cells)} column{'s' * (len(cells) > 1)}, not {width}."
                yield number, cells if len(cells) == width else problem
    except csv.Error as error:  # a quote without its end reaches to the end of the file
        yield number + 1, f"{error}. Check its quotes."


def normal(name: str) -> str:
    """A name as it is compared: some systems write an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def name_key(name: str) -> str:
    """A key equal for names that some disks treat as one file."""
    return normal(name).casefold()


def check_suffix(path: Path, suffixes: Collection[str]) -> None:
    """Refuse, with an OutputError, a file that ends in none of the suffixes."""
    if path.suffix.lower() not in suffixes:
        endings = ", ".join(suffixes)
        raise OutputError(f"{path}: cannot write this format. End the name in {endings}.")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Try whether a file can be written, and refuse it if not.

    Raises:
        OutputError: it is a folder, exists and may not be replaced, or its folder cannot be made
            or written.
    """
    _check_local(path)
    problem = ""
    try:
        folder = next((one for one in path.parents if os.path.lexists(one)), path)
        if path.is_dir():
            problem = "is a folder. Name a file."
        elif path.exists() and not path.is_file():
            problem = "is not a regular file. Choose another name."
        elif os.path.lexists(path) and not overwrite:
            problem = "exists already. Add --overwrite to replace it."
        elif not folder.is_dir():
            problem = f"{folder} is not a folder. Choose another place."
        elif not os.access(folder, os.W_OK | os.X_OK):
            place = "the working folder" if folder == Path() else folder
            problem = f"{place} is write-protected. Choose another place."
    except OSError as error:  # a name that is too long, say
        raise output_error(path, error) from error
    if problem:
        raise OutputError(f"{path}: {problem}")
    trial = hidden_name(folder / path.name)
    try:
        try:
            trial.touch(exist_ok=False)
        finally:  # also after a Ctrl-C
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def _check_local(path: Path) -> None:
    """Refuse a URL or ~/x as an output: a folder would be made here, called by its scheme, or ~."""
    if _URL.match(str(path)):
        url = str(path).replace(":/", "://", 1)
        raise OutputError(f"{url}: only batch writes to URLs. Choose a place on this disk.")
    home, *below = path.parts or ("",)
    if home.startswith("~") and below and not os.path.lexists(home):
        raise OutputError(
            f"{path}: {home} is not read as a home folder here. Write the whole path."
        )


def working_folder() -> str:
    """The current folder; empty if it was deleted."""
    with suppress(OSError):
        return os.getcwd()  # noqa: PTH109
    return ""


def real_path(path: Path) -> Path:
    """A path without links; unlike `Path.resolve`, it raises no error for links in a circle."""
    return Path(os.path.realpath(path))


def identities(*paths: Path) -> set[object]:
    """For each file, what all of its names share: the real path and, if it exists, the inode."""
    keys: set[object] = set()
    for path in paths:
        keys.add(real_path(path))
        with suppress(OSError):
            state = path.stat()
            keys.add((state.st_dev, state.st_ino))
    return keys


def check_no_input(outputs: Iterable[Path], inputs: Set[object]) -> None:
    """Refuse an output that is an input; `inputs` are the `identities` of all of them."""
    for path in outputs:
        if identities(path) & inputs:
            raise OutputError(
                f"{path}: is an input, and inputs are never overwritten. Choose another name."
            )


class UsedFiles:
    """Files that are read and written, to refuse one that is written twice or over an input.

    Args:
        inputs: what is read for all mixtures.
    """

    def __init__(self, inputs: Iterable[Path] = ()) -> None:
        self._inputs = identities(*inputs)
        self._outputs: dict[str, tuple[str, Path]] = {}
        """By place, what each is written for, and the output itself."""

    def add(self, mixture: Path, outputs: Sequence[Path], name: str, *, overwrite: bool) -> None:
        """Add a mixture, called `name`, and the files that are written for it.

        Raises:
            OutputError: one would be written over a mixture or by another mixture too, or as
                `check_output`.
        """
        for path in (mixture, *outputs):
            check_name(path)
        writer, output = self._outputs.get(_place(mixture), ("", mixture))
        if writer and identities(mixture) & identities(output):
            raise OutputError(
                f"{mixture}: would be overwritten by the output for {writer}. Leave it out, "
                "or choose another -o."
            )
        self._inputs |= identities(mixture)
        own: dict[str, tuple[str, Path]] = {}
        for path in outputs:
            # Not by its inode: if another process replaces an output, the next file may get that.
            place = _place(path)
            check_no_input([path], self._inputs)
            if place in own:
                raise OutputError(
                    f"{path}: is named for two outputs. Give each a name that differs by more than "
                    "upper and lower case."
                )
            if not {*path.parents}.isdisjoint(outputs):
                raise OutputError(f"{path}: its folder has the name of another output. Rename one.")
            writer, _ = self._outputs.get(place, ("", path))
            if name == writer:
                raise OutputError(
                    f"{name}: would be written twice to {path}. Leave one out, or give each its "
                    "own output."
                )
            if writer:
                raise OutputError(
                    f"{writer} and {name} would both be written to {path}. "
                    "Rename one, or name a folder instead of a file."
                )
            own[place] = name, path
        for path in outputs:
            check_output(path, overwrite=overwrite)
        self._outputs |= own


def _place(path: Path) -> str:
    """The real path of a file, as disks see it that do not tell upper and lower case apart."""
    return name_key(os.path.realpath(path))


def make_folders(*folders: Path) -> None:
    """Make folders, with those above them, where they do not exist.

    Raises:
        OutputError: one cannot be made.
    """
    for folder in folders:
        _check_local(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error, "cannot make this folder") from error


def hidden_name(path: Path) -> Path:
    """A new hidden name beside `path` to write to until `path` is complete.

    No other call, thread or process gets the same. Nothing is written or removed yet.
    """
    name = os.fsencode(path.name)
    if len(name) > _LONGEST_WITHIN:
        name = hashlib.sha256(name).hexdigest().encode()
    owner = f"{_MACHINE}-{os.getpid()}-{next(_numbers)}"
    return path.with_name(f".{os.fsdecode(name)}.{owner}.partial")


def sweep_once(folder: Path) -> None:
    """Remove from a folder, before this process first writes to it, what killed processes left."""
    if folder not in _swept:
        _swept.add(folder)
        with suppress(OSError):
            sweep(folder, ".*.partial")


def sweep(folder: Path, pattern: str = "**/.*.partial") -> None:
    """Remove what ended processes of this machine left unfinished in `folder`, however deep."""
    for path in folder.glob(pattern):
        name = _PARTIAL.fullmatch(path.name)
        if name and not _is_running(int(name[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # another user's, say
                    path.unlink()


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    with suppress(OSError):
        # In a container without an init, a dead process stays as a zombie for good.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder among temporary files, which is removed afterwards.

    If this process is killed, the next one that makes such a folder removes it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder = hidden_name(Path(tempfile.gettempdir()) / "mcspex")
        sweep_once(folder.parent)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(f"no temporary folder ({error.strerror}). Set TMPDIR.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path` to write to, renamed to `path` if the block succeeds.

    What replaces a file has its permissions. Within `together`, it is renamed at the end of that
    block.

    Raises:
        AudioError: no file can have this name.
        OutputError: the block could not write.
    """
    check_name(path)
    unfinished, waiting = hidden_name(path), _waiting.get()
    sweep_once(path.parent)
    try:
        yield unfinished
        if waiting is None:
            _keep_mode(path, unfinished)
            unfinished.replace(path)
        elif path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        else:
            waiting[path] = unfinished
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise


@contextmanager
def together(*, overwrite: bool = True) -> Iterator[None]:
    """Have the files that are written whole in the block appear at its end: all, or none of them.

    If one cannot get its name, those before it are taken back, and what they replaced is there
    again. Unless they may `overwrite`, they do not replace what another program has written in the
    meantime.

    Raises:
        OutputError: one of them cannot be given its name.
    """
    waiting: dict[Path, Path] = {}
    replaced: dict[Path, Path] = {}
    named: list[Path] = []
    token = _waiting.set(waiting)
    try:
        yield
        for path in () if overwrite else waiting:
            check_output(path, overwrite=False)
        for path, unfinished in waiting.items():
            try:
                if len(waiting) > 1 and path.is_file():
                    replaced[path] = hidden_name(path)
                    _link_or_copy(path, replaced[path])
                _keep_mode(path, unfinished)
                unfinished.replace(path)
            except OSError as error:
                raise output_error(path, error) from error
            named.append(path)
    except BaseException:
        for path in named:
            with suppress(OSError):
                if path in replaced:
                    replaced.pop(path).replace(path)
                else:
                    path.unlink()
        raise
    finally:
        _waiting.reset(token)
        for unfinished in (*waiting.values(), *replaced.values()):
            with suppress(OSError):
                unfinished.unlink()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to write files to; all of them appear together.

    Where `folder` exists, its other files and all permissions stay. Whenever the process is
    killed, all files are those of before or all are those of after: on Linux both folders are
    exchanged in one step. Elsewhere `folder` is away for a moment; if the process is killed just
    then, the next `whole_folder` brings the old one back; if later, it removes the old one.

    Raises:
        OutputError: the block could not write, or `folder` is where a disk is mounted.
    """
    _check_movable(folder)
    folder = folder.resolve() if folder.exists() else folder
    unfinished, aside = hidden_name(folder), folder.with_name(f".{folder.name}.before")
    sweep_once(folder.parent)
    try:
        if aside.is_dir():
            if folder.exists():  # a process was killed before it had removed the old one
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(folder)
        unfinished.mkdir(parents=True)
        yield unfinished
        try:
            unfinished.rename(folder)  # where there is no folder yet, or an empty one
        except OSError:
            if not folder.is_dir():
                raise
            for path in folder.iterdir():
                if (unfinished / path.name).exists():
                    _keep_mode(path, unfinished / path.name)
                else:
                    _link_or_copy(path, unfinished / path.name)
            _keep_mode(folder, unfinished)
            if not _exchange(unfinished, folder):
                folder.rename(aside)
                unfinished.rename(folder)
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise output_error(folder, error) from error
    except OutputError as error:
        raise type(error)(str(error).replace(str(unfinished), str(folder))) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_movable(folder: Path) -> None:
    _check_local(folder)
    if os.path.ismount(real_path(folder)):  # it could not be exchanged, after all the work
        raise output_error(folder, OSError(errno.EBUSY, ""))


def _keep_mode(old: Path, new: Path) -> None:
    """Give what replaces a file or folder the permissions of that, if it is there."""
    with suppress(OSError):  # some disks have none
        new.chmod(stat.S_IMODE(old.stat().st_mode))


def _link_or_copy(source: Path, copy: Path) -> None:
    """Give a file, or all files of a folder, second names, or copy what cannot have any."""
    if source.is_dir() and not source.is_symlink():
        copy.mkdir()
        for path in source.iterdir():
            _link_or_copy(path, copy / path.name)
        return
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, copy, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; false where the system or the disk cannot."""
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
