"""Voice profiles: what a voice is to one or more models, in a small file without any sound."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcspex_cli import files
from mcspex_cli.checkpoint.names import CheckpointInfo
from mcspex_cli.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUFFIX = ".safetensors"

FORMAT = 1
"""Version of the file; a newer one asks for a newer mcspex."""

_KEY = "mcspex_profile"
"""The key of our JSON among the file's metadata."""

_LARGEST = 2**24
"""Bytes; those of as many clips as there may be, with long names."""

_MOST_MODELS = 64
_LONGEST_EMBEDDING = 4096
_MOST_CLIPS = 10_000
_LONGEST_TEXT = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_NUMBERS = ("seconds", "used_s", "speech_s", "level_db", "clipped")


@dataclass(frozen=True)
class Enrolment:
    """A voice as one model hears it."""

    name: str
    """The model's."""
    revision: str | None
    sha256: str
    """Of its weights."""
    seconds: float
    """Of speech that it was made of."""
    embedding: npt.NDArray[np.float32] = field(compare=False)
    """[embedding]."""

    @property
    def label(self) -> str:
        """The model for people."""
        return f"{self.name} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True)
class Profile:
    """A voice, enrolled for one or more models."""

    name: str
    """Whose voice."""
    created: str
    """The day: 2026-01-31."""
    enrolments: tuple[Enrolment, ...]
    qualities: tuple[Mapping[str, Any], ...] = ()
    """The fields of a `ReferenceQuality` for each clip, file names without folders."""


def is_profile(path: Path) -> bool:
    """Whether a name is that of a profile."""
    return path.suffix.lower() == SUFFIX


def write(path: Path, profile: Profile, *, overwrite: bool = False) -> None:
    """Write a profile, whole.

    Raises:
        OutputError: as `check_output`, the disk is full, or it would be too long to be read.
    """
    from safetensors.numpy import save

    check_output(path, overwrite=overwrite)
    if len(profile.name) > _LONGEST_TEXT or len(profile.qualities) > _MOST_CLIPS:
        raise OutputError(
            f"{path}: too long. A profile's name has {_LONGEST_TEXT} characters at most, and it is "
            f"made of {_MOST_CLIPS:,} clips at most."
        )
    models = [
        {key: value for key, value in vars(one).items() if key != "embedding"}
        for one in profile.enrolments
    ]
    said = {
        "format": FORMAT,
        "name": profile.name,
        "created": profile.created,
        "models": models,
        "qualities": [dict(quality) for quality in profile.qualities],
    }
    tensors = {f"embedding.{one.sha256}": one.embedding for one in profile.enrolments}
    data = save(tensors, {_KEY: json.dumps(said, allow_nan=False)})
    with files.whole(path) as partial:
        partial.write_bytes(data)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a place for a profile before any work.

    Raises:
        OutputError: its suffix is another, its folder is not there, or it exists already.
    """
    if not is_profile(path):
        raise OutputError(f"{path}: a profile's name ends in {SUFFIX}. Rename it.")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory. Choose another name.")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder. Make it, or choose another -o.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already. Add --overwrite to replace it.")


def find(folder: Path) -> list[Path]:
    """The profiles directly in a folder, damaged ones too; other safetensors are left out."""
    found = []
    for path in sorted(folder.iterdir()):
        if is_profile(path) and not path.name.startswith("."):
            try:
                ours = _open(path)[0] is not None
            except CheckpointError:
                ours = True
            found += [path] if ours else []
    return found


def read(path: Path) -> Profile:
    """Read a profile, strictly.

    Raises:
        CheckpointError: it is not there, damaged, something else, or of a newer mcspex.
    """
    text, tensors = _open(path)
    if text is None:
        raise CheckpointError(
            f"{path}: is no voice profile, but other safetensors, as a model is. "
            "Make a profile: mcspex enroll"
        )
    return _parsed(path, text, tensors)


def embedding_for(path: Path, profile: Profile, model: CheckpointInfo) -> Enrolment:
    """What a profile has for a model.

    Raises:
        CheckpointError: nothing; it says for which it was enrolled.
    """
    for one in profile.enrolments:
        if one.sha256 == model.sha256:
            if one.embedding.shape != (model.config["embedding"],):
                break
            return one
    known = ", ".join(one.label for one in profile.enrolments)
    raise CheckpointError(
        f"{path}: enrolled for {known}, not for {model.label} (sha256 {model.sha256[:12]}). "
        f"Enroll again: mcspex enroll ... --model {model.name}"
    )


def enrolment(model: CheckpointInfo, embedding: Any, seconds: float) -> Enrolment:
    """A voice's entry for a model; `embedding` is [embedding]."""
    return Enrolment(model.name, model.revision, model.sha256, round(seconds, 3), embedding)


def today() -> str:
    """The day, as a profile has it."""
    return date.today().isoformat()


def described(path: Path, profile: Profile) -> dict[str, Any]:
    """A profile as JSON, without its numbers."""
    models = [{**asdict(one), "embedding": len(one.embedding)} for one in profile.enrolments]
    return {
        "profile": str(path),
        "name": profile.name,
        "created": profile.created,
        "models": models,
        "references": [dict(quality) for quality in profile.qualities],
    }


def _open(path: Path) -> tuple[str | None, dict[str, Any]]:
    """A profile's JSON and tensors; None and none of other safetensors.

    Raises:
        CheckpointError: it cannot be read, is damaged or too large.
    """
    from safetensors import safe_open

    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            fits = text is not None and size <= _LARGEST
            tensors = {key: file.get_tensor(key) for key in file.keys()} if fits else {}  # noqa: SIM118
    except Exception as error:  # safetensors' errors share no base class
        raise CheckpointError(f"{path}: damaged or not safetensors. Enroll again.") from error
    if text is not None and not fits:
        raise CheckpointError(f"{path}: {size:,} bytes are too many for a profile. Enroll again.")
    return text, tensors


def _parsed(path: Path, text: str, tensors: Mapping[str, Any]) -> Profile:
    """A file's JSON and tensors, checked against each other."""
    try:
        said = json.loads(text)
        version = said["format"]
        if type(version) is int and version > FORMAT:
            raise CheckpointError(f"{path}: of a newer mcspex (format {version}). Update mcspex.")
        _require(version == FORMAT)
        rows, qualities = said["models"], said["qualities"]
        _require(isinstance(rows, list) and 1 <= len(rows) <= _MOST_MODELS)
        _require(isinstance(qualities, list) and len(qualities) <= _MOST_CLIPS)
        _require({f"embedding.{row['sha256']}" for row in rows} == set(tensors))
        _require(len(tensors) == len(rows))
        enrolments = tuple(_enrolment(row, tensors[f"embedding.{row['sha256']}"]) for row in rows)
        _require(bool(_DATE.fullmatch(said["created"])))
        return Profile(
            _text(said["name"]), said["created"], enrolments, tuple(map(_quality, qualities))
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: a damaged voice profile. Enroll again.") from error


def _enrolment(row: Any, embedding: Any) -> Enrolment:
    """One model's row with its tensor."""
    import numpy as np

    _require(bool(_SHA256.fullmatch(row["sha256"])))
    _require(embedding.dtype == np.float32 and embedding.ndim == 1)
    _require(1 <= len(embedding) <= _LONGEST_EMBEDDING and bool(np.isfinite(embedding).all()))
    revision = None if row["revision"] is None else _text(row["revision"])
    seconds = _number(row["seconds"])
    _require(seconds > 0)
    return Enrolment(_text(row["name"]), revision, row["sha256"], seconds, embedding)


def _quality(row: Any) -> dict[str, Any]:
    """One clip's row, with no more keys than are known."""
    snr_db, two, warning = row["snr_db"], row["two_voices"], row["warning"]
    _require(two is None or isinstance(two, bool))
    return {
        "path": _text(row["path"]),
        **{key: _number(row[key]) for key in _NUMBERS},
        "snr_db": None if snr_db is None else _number(snr_db),
        "two_voices": two,
        "warning": None if warning is None else _text(warning),
    }


def _number(value: Any) -> float:
    """A finite number."""
    _require(type(value) in (int, float) and math.isfinite(value))
    return float(value)


def _text(value: Any) -> str:
    """Text of a sane length."""
    _require(isinstance(value, str) and len(value) <= _LONGEST_TEXT)
    return str(value)


def _require(holds: bool) -> None:
    """Refuse what is none of ours.

    Raises:
        ValueError: it does not hold.
    """
    if not holds:
        raise ValueError
