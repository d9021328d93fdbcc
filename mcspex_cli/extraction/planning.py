"""A batch's plan: every mixture with its references, truth and output, all checked at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from mcspex_cli import audio, files
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import AudioError, CheckpointError, McspexError, PairingError, PlanError
from mcspex_cli.extraction.jobs import Job
from mcspex_cli.extraction.manifests import Entry, read_manifest, read_scp
from mcspex_cli.extraction.profile import is_profile_name, read_profile
from mcspex_cli.extraction.reference import list_sources
from mcspex_cli.extraction.references import list_references

_NUMBER = re.compile(r"(\d+)")

AUDIO = "audio"
"""The folder in a batch's output folder that its estimates go to."""


@dataclass(frozen=True)
class BatchRequest:
    """What is asked of a batch: mixtures by folders, files or a manifest, and whose voices."""

    output: Path
    mixtures: Sequence[Path] = ()
    manifest: Path | None = None
    references: tuple[Path, ...] = ()
    """The clips of the one voice for all."""
    reference_folder: Path | None = None
    """Or a folder (or scp) with a reference for each mixture or speaker."""
    pattern: str | None = None
    truth: Path | None = None
    """A folder, or scp, with the truth of each mixture."""
    suffix: str = ".wav"
    """Of the outputs."""
    allow_unused: bool = False
    """Whether there may be references that belong to no mixture."""


def plan_batch(request: BatchRequest) -> list[Job]:
    """Make and check the whole plan; nothing is written.

    Raises:
        PlanError: files are missing, used twice or without partner, two outputs have one
            name, or one would leave its folder; with a line for each.
        PairingError: there is nothing to do, or as the readers of manifests and references.
        AudioError: a folder is not there, or links into itself.
    """
    problems: list[str] = []
    request = replace(request, references=tuple(list_sources(request.references)))
    if request.manifest:
        if request.manifest.resolve().is_relative_to(request.output.resolve()):
            raise PairingError(
                f"{request.manifest}: is in the output folder, whose reports would then be of its "
                "lines only. The command that made it tries again what failed; or copy it."
            )
        entries = read_manifest(request.manifest, problems)
    else:
        entries = list(_search(request))
    entries = _with_references(request, entries, problems)
    entries = _with_truth(request, entries, problems)
    _check_files(entries, problems)
    jobs = _with_outputs(request, entries, problems)
    _refuse(problems)
    return jobs


def check_profiles(jobs: Sequence[Job], model: CheckpointInfo) -> None:
    """Refuse a plan with profiles that cannot be used, or are for other models.

    Raises:
        PlanError: as said, with a line for each.
    """
    problems = []
    for path in sorted({path for job in jobs for path in job.references}):
        if is_profile_name(path):
            try:
                read_profile(path).enrolment_for(model, path)
            except CheckpointError as error:
                problems.append(str(error))
    _refuse(problems)


def measured(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with their mixtures' lengths, as far as those can be read."""
    with ThreadPoolExecutor(4) as readers:
        lengths = readers.map(lambda job: _seconds(job.mixture), jobs)
        return [replace(job, seconds=s) for job, s in zip(jobs, lengths, strict=True)]


def _search(request: BatchRequest) -> Iterator[Entry]:
    """The files named, and those in the folders named but for what is no mixture."""
    output = request.output
    others = (output, output / AUDIO, request.reference_folder, request.truth)
    without = {path.resolve() for path in others if path}
    references = {path.resolve() for path in request.references}
    for root in request.mixtures:
        files.check_exists(root)
        if not root.is_dir():
            yield Entry(str(root), root, root.stem)
            continue
        found = files.find(root, without)
        if references:
            found = [path for path in found if path.resolve() not in references]
        if not found:
            raise AudioError(f"{root}: no sound files in this folder.")
        for path in found:
            yield Entry(str(path), path, path.relative_to(root).with_suffix("").as_posix())


def _with_references(
    request: BatchRequest, entries: Sequence[Entry], problems: list[str]
) -> list[Entry]:
    """Give each entry that names none the references that the request has for it."""
    if request.reference_folder is None:
        for entry in entries:
            if not entry.references and not request.references:
                problems.append(f"{entry.where}: has no reference. Add one, or --ref or --refs.")
        return [replace(e, references=e.references or request.references) for e in entries]
    known = list_references(request.reference_folder, request.pattern, problems)
    used: set[str] = set()
    paired = []
    for entry in entries:
        clips = entry.references
        if not clips:
            try:
                clips = tuple(known.clips[known.find(entry.id)])
            except PairingError as error:
                problems.append(f"{entry.where}: {error}")
        used.update(map(os.path.realpath, clips))
        paired.append(replace(entry, references=clips))
    if not request.allow_unused:
        listed = sorted({path for clips in known.clips.values() for path in clips})
        problems += [
            f"{path}: belongs to no mixture. Remove it, or add --allow-unused."
            for path in listed
            if os.path.realpath(path) not in used
        ]
    return paired


def _with_truth(
    request: BatchRequest, entries: Sequence[Entry], problems: list[str]
) -> list[Entry]:
    """Give each entry that names none the truth of its name."""
    if request.truth is None:
        return list(entries)
    known: dict[str, Path] = {}
    if request.truth.is_dir():
        for name, same in files.by_name(request.truth).items():
            known[name] = same[0]
            for path in same[1:]:
                problems.append(f"{same[0]} and {path}: one name, two truths. Move one away.")
    elif request.truth.suffix.lower() == ".scp":
        known = read_scp(request.truth, problems)
    else:
        raise PairingError(f"{request.truth}: is neither a folder of truths nor an scp.")
    with_truth = []
    for entry in entries:
        truth = entry.truth or known.get(entry.id)
        if truth is None:
            problems.append(f"{entry.where}: {request.truth} has no truth {entry.id} for it.")
        with_truth.append(replace(entry, truth=truth))
    return with_truth


def _check_files(entries: Sequence[Entry], problems: list[str]) -> None:
    """Note files that are not there, and what is asked for twice."""
    there: dict[Path, bool] = {}
    asked: dict[tuple[Path, ...], Entry] = {}
    for entry in entries:
        truth = (entry.truth,) if entry.truth else ()
        for path in (entry.mixture, *entry.references, *truth):
            if path not in there:
                there[path] = path.is_file()
            if not there[path]:
                problems.append(f"{entry.where}: {path} is not there, or no file.")
        first = asked.setdefault((entry.mixture, *entry.references), entry)
        if first is not entry:
            problems.append(
                f"{entry.where}: the same mixture and references as {first.where}. Drop one."
            )


def _with_outputs(
    request: BatchRequest, entries: Sequence[Entry], problems: list[str]
) -> list[Job]:
    """Give each entry its output, noting those that would leave the folder or collide."""
    folder = request.output / AUDIO
    inputs = {
        os.path.realpath(p) for e in entries for p in (e.mixture, *e.references, e.truth) if p
    }
    taken: dict[str, Entry] = {}
    ids: dict[str, Entry] = {}
    inside: dict[Path, bool] = {}
    jobs = []
    for entry in entries:
        name = entry.output or entry.id + request.suffix
        output = folder / name
        wrong = _wrong_name(name)
        if not wrong and output.parent not in inside:
            real = os.path.realpath(output.parent)
            inside[output.parent] = Path(real).is_relative_to(os.path.realpath(folder))
        if wrong or not inside[output.parent]:
            reason = wrong or "leaves the output folder by a link"
            problems.append(f"{entry.where}: output {name!r} {reason}. Give it another id.")
            continue
        if os.path.realpath(output) in inputs:
            problems.append(f"{entry.where}: would be written over {output}, an input.")
        # One name in two cases is one file on many disks.
        first = taken.setdefault(PurePosixPath(name).as_posix().casefold(), entry)
        if first is entry:
            first = ids.setdefault(entry.id, entry)
        if first is not entry:
            problems.append(
                f"{entry.where} and {first.where} would both be written to {output}. Rename one."
            )
        jobs.append(Job(entry.mixture, output, entry.references, entry.truth, entry.id))
    return jobs


def _refuse(problems: Sequence[str]) -> None:
    """Raise what is wrong, if anything is."""
    if problems:
        found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise PlanError(f"{found}, see above. Nothing was started.", sorted(problems, key=_natural))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts line 9 before line 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in _NUMBER.split(text)]


def _wrong_name(name: str) -> str | None:
    """What is wrong with an output's name below its folder, if anything."""
    for kind in (PurePosixPath(name), PureWindowsPath(name)):
        if kind.is_absolute() or kind.drive or kind.root:
            return "is an absolute path"
        if ".." in kind.parts:
            return "leaves the output folder"
    if PurePosixPath(name).suffix.lower() not in audio.OUTPUT_FORMATS:
        return f"does not end in {', '.join(audio.OUTPUT_FORMATS)}"
    return None


def _seconds(mixture: Path) -> float | None:
    """A mixture's length, if it can be read."""
    try:
        return audio.probe(mixture).seconds
    except (McspexError, OSError):
        return None
