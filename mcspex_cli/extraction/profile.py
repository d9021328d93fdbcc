"""Voice profiles: a voice as one or more models embed it, in a small file without any sound.

It is a safetensors file: a tensor for each embedding, and the rest as JSON in the metadata.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from mcspex_cli import files
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import CheckpointError, OutputError

SUFFIX = ".safetensors"

FORMAT = 2
"""Version of the file; since 2 it has a checksum. A newer one needs a newer mcspex."""

_KEY = "mcspex_profile"  # the key of our JSON in the file's metadata
_MAX_BYTES = 2**24  # the size of a profile of as many clips as there may be, with long names
_MAX_CLIPS = 10_000
_MAX_EMBEDDING = 4096
_MAX_TEXT = 1000
_DAMAGED = "{}: this voice profile is damaged. Enroll the voice again."

Text = Annotated[str, Meta(max_length=_MAX_TEXT)]


@dataclass(frozen=True)
class ReferenceQuality:
    """How good one clip is as a reference; all of it can be JSON."""

    path: Text
    """The file, or a span of one: "meeting.wav 12.0-18.5 s"."""
    seconds: float
    """Of the whole clip."""
    used_s: float
    """How much of it is embedded: it without long pauses."""
    speech_s: float
    level_db: float
    """Of the speech, dB of full scale; -120 without speech."""
    clipped: float
    """Share of the samples that are at full scale, in runs of 3 or more."""
    snr_db: float | None
    """The level of speech over that of pauses, at most 60; None without pauses."""
    two_voices: bool | None
    """Whether its parts sound like two people, who do not speak at once. It is None for a model
    without calibration, and for less than 3 s of speech."""
    warning: Text | None = None
    """What is worst about it, in a line."""

    def rename(self, name: str) -> ReferenceQuality:
        """The same of a clip of another name."""
        warning = self.warning and self.warning.replace(self.path, name, 1)
        return replace(self, path=name, warning=warning)


@dataclass(frozen=True)
class Enrolment:
    """A voice as one model embeds it."""

    name: Text
    """The model's."""
    revision: Text | None
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the model's weights."""
    seconds: Annotated[float, Meta(gt=0)]
    """How much speech it was made of."""
    embedding: npt.NDArray[np.float32] = field(compare=False)
    """[embedding]."""

    @property
    def label(self) -> str:
        """The model, for people."""
        return f"{self.name} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True)
class Profile:
    """A voice, enrolled for one or more models."""

    name: Text
    """Whose voice it is."""
    models: Annotated[tuple[Enrolment, ...], Meta(min_length=1, max_length=64)]
    """An enrolment for each model."""
    qualities: Annotated[tuple[ReferenceQuality, ...], Meta(max_length=_MAX_CLIPS)] = ()
    """Of each clip; file names are without folders."""
    created: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$")] = field(
        default_factory=lambda: date.today().isoformat()
    )
    """The day, as in 2026-01-31."""

    def enrolment_for(self, model: CheckpointInfo, path: Path) -> Enrolment:
        """The voice as a model embeds it.

        Raises:
            CheckpointError: it is not enrolled for this model. The message says for which it is.
        """
        for one in self.models:
            if one.sha256 == model.sha256 and len(one.embedding) == model.config.embedding:
                return one
        models = ", ".join(one.label for one in self.models)
        raise CheckpointError(
            f"{path}: enrolled for {models}, not for {model.label} (sha256 {model.sha256[:12]}). "
            f"Enroll it again: mcspex enroll ... --model {model.argument}"
        )

    def to_dict(self, path: Path) -> dict[str, Any]:
        """The profile as JSON, with the length of its embeddings instead of their numbers."""
        return {
            "profile": str(path),
            "name": self.name,
            "created": self.created,
            "models": [{**asdict(one), "embedding": len(one.embedding)} for one in self.models],
            "references": [asdict(quality) for quality in self.qualities],
        }


def is_profile_name(path: Path) -> bool:
    """Whether a file is taken for a profile, by its suffix."""
    return path.suffix.lower() == SUFFIX


def write_profile(path: Path, profile: Profile, *, overwrite: bool = False) -> None:
    """Write a profile, whole or not at all.

    Raises:
        OutputError: as `check_profile_output`; the disk is full.
    """
    from safetensors.numpy import save

    check_profile_output(path, profile.name, len(profile.qualities), overwrite=overwrite)
    document = asdict(profile)
    tensors = {f"embedding.{one['sha256']}": one.pop("embedding") for one in document["models"]}
    header = {"format": FORMAT, "checksum": _checksum(document, tensors)}
    text = msgspec.json.encode({**header, **document}).decode()
    data = save(tensors, {_KEY: text})
    files.make_folders(path.parent)
    with files.whole(path) as unfinished:
        unfinished.write_bytes(data)


def check_profile_output(path: Path, name: str, clips: int, *, overwrite: bool) -> None:
    """Refuse a place where a profile of this `name` and as many `clips` cannot be written.

    Raises:
        OutputError: as `files.check_output`; its name does not end in .safetensors; what would be
            overwritten is no profile; the profile is too large.
    """
    if len(name) > _MAX_TEXT or clips > _MAX_CLIPS:
        raise OutputError(
            f"{path}: too large. A profile's name has at most {_MAX_TEXT} characters, and a "
            f"profile is made from at most {_MAX_CLIPS:,} clips."
        )
    if not is_profile_name(path):
        raise OutputError(f"{path}: a profile's name ends in {SUFFIX}. Choose such a name.")
    files.check_output(path, overwrite=overwrite)
    if path.exists() and not _is_profile(path, if_damaged=False):
        raise OutputError(
            f"{path}: is not a voice profile, and --overwrite replaces nothing else. "
            "Choose another name."
        )


def find_profiles(folder: Path) -> list[Path]:
    """List the profiles directly in a folder, damaged ones too, but no other safetensors."""
    names = [path for path in folder.iterdir() if is_profile_name(path) and path.name[0] != "."]
    return [path for path in sorted(names) if _is_profile(path, if_damaged=True)]


def _is_profile(path: Path, *, if_damaged: bool) -> bool:
    try:
        return _read(path)[0] is not None
    except CheckpointError:
        return if_damaged


def read_profile(path: Path) -> Profile:
    """Read a profile, and check all of it.

    Raises:
        CheckpointError: it is not there, damaged, something else, or of a newer mcspex.
    """
    text, tensors = _read(path)
    if text is None:
        raise CheckpointError(
            f"{path}: is not a voice profile but other safetensors, such as a model. "
            "Make a profile with mcspex enroll."
        )
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
        version, checksum = document.pop("format"), document.pop("checksum", "")
        if version > FORMAT:
            raise CheckpointError(
                f"{path}: made by a newer mcspex (format {version}). Update mcspex."
            )
        expected = {1: "", FORMAT: _checksum(document, tensors)}[version]
        for model in document["models"]:
            model["embedding"] = tensors.pop(f"embedding.{model['sha256']}")
        profile = msgspec.convert(document, Profile)
    except (msgspec.MsgspecError, LookupError, TypeError, RecursionError, UnicodeError) as error:
        raise CheckpointError(_DAMAGED.format(path)) from error
    if checksum != expected or tensors or not all(map(_is_sound, profile.models)):
        raise CheckpointError(_DAMAGED.format(path))
    return profile


def _is_sound(enrolment: Enrolment) -> bool:
    embedding = enrolment.embedding
    has_shape = embedding.ndim == 1 and 1 <= len(embedding) <= _MAX_EMBEDDING
    return has_shape and embedding.dtype == np.float32 and bool(np.isfinite(embedding).all())


def _read(path: Path) -> tuple[str | None, dict[str, Any]]:
    """A profile's JSON and tensors; for other safetensors, None and no tensors.

    Raises:
        CheckpointError: it cannot be read, is damaged, too large, or not a file.
    """
    from safetensors import safe_open

    if path.exists() and not path.is_file():  # opening a pipe would wait forever
        raise CheckpointError(f"{path}: is not a file. Name a voice profile.")
    with files.reading(path, CheckpointError), path.open("rb"):  # for a clear error
        size = path.stat().st_size
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            fits = text is not None and size <= _MAX_BYTES
            tensors = {key: file.get_tensor(key) for key in file.keys()} if fits else {}  # noqa: SIM118
    except Exception as error:  # the errors of safetensors share no base class
        raise CheckpointError(
            f"{path}: damaged, or not a voice profile. Enroll the voice again."
        ) from error
    if text is not None and not fits:
        raise CheckpointError(
            f"{path}: {size:,} bytes are too many for a voice profile. Enroll the voice again."
        )
    return text, tensors


def _checksum(document: dict[str, Any], tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256(msgspec.json.encode(document, order="sorted"))
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].tobytes())
    return digest.hexdigest()
