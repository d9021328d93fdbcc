"""Which files belong together: an estimate, its truth, its mixture and what else it needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcspex_cli import files
from mcspex_cli.errors import ConfigError, PairingError, import_package

_TRANSCRIPTS = (".txt", ".vtt")
"""The formats of transcripts, by the suffix of the file."""


@dataclass(frozen=True)
class Pairing:
    """An estimate and the files that it is compared with, under one name."""

    name: str
    estimate: Path
    truth: Path | None = None
    """The target alone: the `target` of metrics."""
    mixture: Path | None = None
    interferers: tuple[Path, ...] = ()
    """The other talkers of the mixture, each alone."""
    references: tuple[Path, ...] = ()
    """Clips and profiles of the voice; `pair` finds none."""
    transcript: str = ""
    """What the target says."""
    presence: float | None = None
    """What the extraction measured; `pair` does not know it."""


def case_name(path: str | Path) -> str:
    """The name that pairs a file with others: without the suffixes of its format and `.target`."""
    return _full_name(path).removesuffix(".target")


def case_names(paths: Sequence[str | Path]) -> list[str]:
    """The `case_name` of several files, of which one may have the name of another's estimate.

    Beside a.wav, a.target.wav keeps its `.target`: it is another case. Then its own estimate is
    a.target.target.wav.
    """
    full_names = [_full_name(path) for path in paths]
    others = set(full_names)

    def shorten(name: str) -> str:
        rest = name.removesuffix(".target")
        is_another_case = rest != name and rest in others and shorten(rest) == rest
        return name if is_another_case else rest

    return list(map(shorten, full_names))


def _full_name(path: str | Path) -> str:
    """A file's name without the suffixes of its format."""
    path = Path(path)
    for suffixes in (_TRANSCRIPTS, files.SUFFIXES):
        if path.suffix.lower() in suffixes:
            path = path.with_suffix("")
    return files.normal(str(path))


def is_batch(folder: Path) -> bool:
    """Whether it is the output folder of `mcspex batch`, finished or not."""
    return (folder / "journal").is_dir() and (folder / "audio").is_dir()


def files_by_case(folder: Path, suffixes: Collection[str] = files.SUFFIXES) -> dict[str, Path]:
    """All files of some formats under a folder by their `case_names`.

    Raises:
        AudioError, PairingError: there is no such folder, it is a batch's output folder, in which
            residuals would be taken for estimates, or two files in it have one name.
    """
    files.check_exists(folder)
    if not folder.is_dir():
        raise PairingError(f"{folder}: is a file. Name a folder.")
    if is_batch(folder):
        raise PairingError(f"{folder}: is the output folder of a batch. Name {folder / 'audio'}.")
    named: dict[str, Path] = {}
    paths = [path for path in files.find(folder, also=suffixes) if path.suffix.lower() in suffixes]
    names = case_names([path.relative_to(folder) for path in paths])
    for name, path in zip(names, paths, strict=True):
        other = named.setdefault(name, path)
        if other != path:
            raise PairingError(f"{other} and {path}: both have the name {name}. Move one.")
    return named


def find_partners(
    estimates: Mapping[str, Path],
    folder: Path | None,
    suffixes: Collection[str] = files.SUFFIXES,
    kind: str = "file (.wav, .flac, ...)",
) -> dict[str, Path]:
    """The files of a folder by the names of estimates, each of which has to have one.

    `kind` is what an error calls the one that is missing.
    """
    if folder is None:
        return {}
    partners = files_by_case(folder, suffixes)
    for name, path in estimates.items():
        if name not in partners:
            raise PairingError(
                f"{path}: no {kind} called {name} in {folder}. Add it, or remove the estimate."
            )
    return partners


def pair(
    estimates: Path,
    truth: Path | None = None,
    mixtures: Path | None = None,
    interferers: Sequence[Path] = (),
    transcripts: Path | None = None,
) -> list[Pairing]:
    """Pair a file with a file, or each estimate of a folder with the files of its name.

    Raises:
        ConfigError: a transcript cannot be read.
        PairingError: a folder is compared with a file, two files of a folder have one name, or
            a file is missing in one of the other folders.
    """
    others = [path for path in (truth, mixtures, *interferers, transcripts) if path]
    if any(estimates.is_dir() != other.is_dir() for other in others):
        raise PairingError(
            "estimates, truth, mixtures, interferers and transcripts must be all files or all "
            "folders."
        )
    if not estimates.is_dir():
        words = read_transcript(transcripts) if transcripts else ""
        name, talkers = estimates.name, tuple(interferers)
        return [Pairing(name, estimates, truth, mixtures, talkers, transcript=words)]
    named = files_by_case(estimates)
    if not named:
        raise PairingError(f"{estimates}: no sound files in this folder. Name another.")
    truths, mixed = find_partners(named, truth), find_partners(named, mixtures)
    talkers_by_name = [find_partners(named, folder) for folder in interferers]
    kind = f"transcript ({', '.join(_TRANSCRIPTS)})"
    texts = find_partners(named, transcripts, _TRANSCRIPTS, kind)
    return [
        Pairing(
            name,
            path,
            truths.get(name),
            mixed.get(name),
            tuple(by_name[name] for by_name in talkers_by_name),
            transcript=read_transcript(texts[name]) if texts else "",
        )
        for name, path in named.items()
    ]


def missing_estimates(estimates: Path, truth: Path) -> list[str]:
    """Names of the truths without an estimate; none where both are files."""
    if not estimates.is_dir():
        return []
    return sorted(files_by_case(truth).keys() - files_by_case(estimates).keys())


def read_transcript(path: Path) -> str:
    """Read the words of a text file, or of a WebVTT file without its times, tags and notes.

    Raises:
        ConfigError: it is not text, or its suffix says WebVTT and it is not.
    """
    if path.suffix.lower() not in _TRANSCRIPTS:
        raise ConfigError(f"{path}: is not a transcript. Its name must end in .txt or .vtt.")
    content = files.read_text(path)
    if path.suffix.lower() == ".txt":
        return content
    webvtt = import_package("webvtt", "transcripts")
    try:
        return "\n".join(caption.text for caption in webvtt.from_string(content).captions)
    except webvtt.errors.MalformedFileError as error:
        raise ConfigError(f"{path}: is not WebVTT ({error}). Name plain text .txt.") from error
