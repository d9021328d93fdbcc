"""A batch's plan: every mixture with its reference, truth and outputs, all checked before the work.

```
folders, files, manifest ──▶ references ──▶ truths ──▶ files there? ──▶ outputs ──▶ lengths
                             by name, folder,          which is whose                by headers
                             pattern, or one for all   reference?
```

Everything that is wrong is collected, so that one try names it all; nothing is written.
"""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from mcspex_cli import audio
from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal, fingerprint, same_files
from mcspex_cli.batch.pairing import (
    ACTIVITY,
    AUDIO,
    RESIDUAL,
    Task,
    list_references,
    read_manifest,
    read_scp,
)
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import AudioError, CheckpointError, McspexError, PairingError, PlanError
from mcspex_cli.extraction.activity import ACTIVITY_FORMATS
from mcspex_cli.extraction.clip import Span
from mcspex_cli.extraction.profile import is_profile_name, read_profile
from mcspex_cli.extraction.reference import list_sources

_SUFFIXES = {
    AUDIO: tuple(audio.FORMATS),
    RESIDUAL: tuple(audio.FORMATS),
    ACTIVITY: tuple(ACTIVITY_FORMATS),
}
_AT_ONCE = 256
"""Mixtures whose lengths one thread reads in one go."""

_NUMBER = re.compile(r"(\d+)")


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
    """Which part of a mixture's name is the reference's (`pairing.compile_pattern`)."""
    truth: Path | None = None
    suffix: str = ".wav"
    residual: bool = False
    activity: str | None = None
    """The suffix of the files that say when the voice speaks; None for no such files."""
    allow_unused: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """The tasks of a batch in the order of its reports, and its output folder."""

    folder: Path
    tasks: Sequence[Task]
    warnings: tuple[str, ...] = ()


def plan_batch(request: BatchRequest) -> BatchPlan:
    """Make and check the whole plan, but for the mixtures' lengths (`measure`).

    Raises:
        PlanError: files are missing, used twice or without partner, a mixture would be its own
            reference, two outputs have one name, or one would leave its folder; with a line for
            each.
        PairingError: there is nothing to do, or the manifest, references or truths cannot be read.
        AudioError: a folder is not there.
    """
    request = _in_place(request)
    problems: list[str] = []
    warnings: list[str] = []
    if request.manifest:
        if request.manifest.resolve().is_relative_to(request.output.resolve()):
            raise PairingError(
                f"{request.manifest}: is in the output folder, so the reports there would be "
                "replaced by reports of this list only. To try what failed again, repeat "
                "the first command."
            )
        tasks = read_manifest(request.manifest, problems, warnings)
    else:
        tasks = list(_search(request, warnings))
    checks = _Checks(request, problems, warnings)
    tasks = _with_references(checks, tasks)
    tasks = _with_truth(checks, tasks)
    checks.refuse_missing(tasks)
    checks.refuse_own_references(tasks)
    tasks = _with_outputs(checks, tasks)
    refuse(problems)
    return BatchPlan(request.output, tasks, tuple(warnings))


def measure(plan: BatchPlan, journal: Journal) -> BatchPlan:
    """The plan with its mixtures' lengths, as far as they can be read.

    What the journal knows of unchanged files is not read again.
    """

    def measured(start: int) -> list[Task]:
        tasks = []
        for task in plan.tasks[start : start + _AT_ONCE]:
            lines = journal.done.get(task.id, ())
            known = [one.seconds for one in lines if same_files(one.inputs, task.inputs)[1]]
            tasks.append(replace(task, seconds=known[0] if known else _seconds(task)))
        return tasks

    with ThreadPoolExecutor(4) as readers:
        parts = readers.map(measured, range(0, len(plan.tasks), _AT_ONCE))
        return replace(plan, tasks=[task for part in parts for task in part])


def check_profiles(plan: BatchPlan, model: CheckpointInfo) -> None:
    """Refuse a plan with profiles that cannot be used, or are for other models.

    Raises:
        PlanError: something is wrong; it has a line for each problem.
    """
    problems = []
    for path in map(Path, sorted({name for task in plan.tasks for name in task.references})):
        if is_profile_name(path) and not storage.url(path):
            try:
                read_profile(path).enrolment_for(model, path)
            except CheckpointError as error:
                problems.append(str(error))
    refuse(problems)


def refuse(problems: Sequence[str]) -> None:
    """Raise what is wrong, if anything is.

    Raises:
        PlanError: a profile cannot be used with the model.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise PlanError(f"{count}, see above. Nothing was started.", sorted(problems, key=_natural))


def _in_place(request: BatchRequest) -> BatchRequest:
    """A request with the paths that `file:///` URLs stand for."""
    manifest, folder, truth = request.manifest, request.reference_folder, request.truth
    return replace(
        request,
        output=storage.place(request.output),
        mixtures=[*map(storage.place, request.mixtures)],
        manifest=manifest and storage.place(manifest),
        references=tuple(map(storage.place, request.references)),
        reference_folder=folder and storage.place(folder),
        truth=truth and storage.place(truth),
    )


def _search(request: BatchRequest, warnings: list[str]) -> Iterator[Task]:
    """The files named, and those in the folders named but for what is no mixture."""
    output = request.output
    others = (output, output / AUDIO, output / RESIDUAL, request.reference_folder, request.truth)
    roots = {root.resolve() for root in request.mixtures}
    without = {path.resolve() for path in others if path} - roots
    references = {os.path.realpath(clip) for clip in _clips(request.references)}
    for root in request.mixtures:
        storage.check_exists(root)
        if not storage.is_folder(root):
            yield Task(root.stem, str(root))
            continue
        names: Iterable[str] = map(str, storage.find(root, without, warnings=warnings))
        if references:
            names = (name for name in names if os.path.realpath(name) not in references)
        start, number = len(str(root / "x")) - 1, 0
        for number, name in enumerate(names, 1):  # noqa: B007
            yield Task(os.path.splitext(name[start:])[0].replace(os.sep, "/"), name)  # noqa: PTH122
        if not number:
            raise AudioError(f"{storage.name(root)}: no sound files in this folder.")


def _clips(references: Iterable[Path]) -> list[Path]:
    """The clips that are named, and those in the folders named."""
    clips: list[Path] = []
    for path in references:
        if storage.url(path):
            clips += storage.find(path) if storage.is_folder(path) else [path]
        else:
            clips += list_sources([path])
    return clips


class Locations:
    """Where files are, in all and from a folder; links to folders are resolved, once each.

    No path leads from an object store to this disk: there both are the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = None if storage.url(folder) else os.path.realpath(folder)
        self._known: dict[str, tuple[str, str]] = {}

    def of(self, path: str) -> tuple[str, str]:
        """A file's absolute path, and that from the folder; on another drive both are absolute."""
        if url := storage.url(path):
            return url, url
        parent, name = os.path.split(path)
        if parent not in self._known:
            real = relative = os.path.realpath(parent)
            if self._folder is not None:
                with suppress(ValueError):
                    relative = os.path.relpath(real, self._folder).replace(os.sep, "/")
            self._known[parent] = real, relative
        real, relative = self._known[parent]
        return f"{real}/{name}", f"{relative}/{name}".removeprefix("./")


class _Checks:
    """What is known of the files of a plan, each looked at once, and what is wrong with them."""

    def __init__(self, request: BatchRequest, problems: list[str], warnings: list[str]) -> None:
        self.request, self.problems, self.warnings = request, problems, warnings
        self._stamps: dict[str, storage.Stamp | None] = {}
        self._locations = Locations(request.output)

    def where(self, task: Task) -> str:
        """What a message calls a task: its file, or the manifest's line."""
        if task.line:
            return f"{self.request.manifest} line {task.line}"
        return storage.name(task.mixture)

    def problem(self, task: Task, text: str) -> None:
        self.problems.append(f"{self.where(task)}: {text}")

    def stamp(self, path: str) -> storage.Stamp | None:
        if path not in self._stamps:
            self._stamps[path] = storage.stamp(path)
        return self._stamps[path]

    def identities(self) -> set[int]:
        return {stamp.identity for stamp in self._stamps.values() if stamp}

    def inputs_key(self, task: Task) -> str:
        """What the mixture and references are, and where: in all, and from the output folder."""
        inputs = (task.mixture, *task.references)
        stamps = [known[:2] if (known := self.stamp(path)) else None for path in inputs]
        places = [self._locations.of(path) for path in inputs]
        absolute, relative = zip(*places, strict=True)
        parts = (stamps, [absolute, task.spans], [relative, task.spans])
        return "-".join(map(fingerprint, parts))

    def refuse_missing(self, tasks: Sequence[Task]) -> None:
        asked: dict[tuple[str, ...], Task] = {}
        for task in tasks:
            for path in (task.mixture, *task.references, task.truth):
                if path is not None and self.stamp(path) is None:
                    self.problem(task, f"{storage.name(path)} does not exist, or is not a file.")
            try:
                for span in task.spans:
                    Span.parse(span)
            except AudioError as error:
                self.problem(task, str(error))
            first = asked.setdefault(
                (self._locations.of(task.mixture)[0], *task.references, *task.spans), task
            )
            if first is not task:
                self.problem(
                    task, f"has the mixture and references of {self.where(first)}. Remove one."
                )

    def refuse_own_references(self, tasks: Sequence[Task]) -> None:
        own = [t for t in tasks if any(self._are_same(t.mixture, path) for path in t.references)]
        more = f" So it is for {len(own) - 1} more." if len(own) > 1 else ""
        for task in own[:1]:
            self.problem(
                task,
                "is its own reference. Name a recording in which the wanted person speaks alone."
                + more,
            )

    def _are_same(self, one: str, other: str) -> bool:
        first, second = self.stamp(one), self.stamp(other)
        if not first or not second or first.size != second.size:
            return False
        if storage.url(one) or storage.url(other):
            return one == other
        return first.identity == second.identity or filecmp.cmp(one, other, shallow=False)


def _with_references(checks: _Checks, tasks: Sequence[Task]) -> list[Task]:
    """Give each task that names none the references that the request has for it."""
    request = checks.request
    if request.reference_folder is None:
        shared = tuple(map(str, _clips(request.references)))
        for task in tasks:
            if not (task.references or task.spans or shared):
                checks.problem(task, "has no reference. Add one, or use --ref or --refs.")
        return [t if t.references or t.spans else replace(t, references=shared) for t in tasks]
    known = list_references(
        request.reference_folder, request.pattern, checks.problems, checks.warnings
    )
    clips_of = {name: tuple(clips) for name, clips in known.clips.items()}
    used: set[tuple[str, ...]] = set()
    paired = []
    for task in tasks:
        clips = task.references
        if not clips and not task.spans:
            try:
                clips = clips_of[known.find(task.id)]
            except PairingError as error:
                checks.problem(task, str(error))
        used.add(clips)
        paired.append(replace(task, references=clips) if clips else task)
    if not request.allow_unused:
        real = {os.path.realpath(path) for clips in used for path in clips}
        checks.problems += [
            f"{storage.name(path)}: belongs to no mixture. Remove it, or add --allow-unused."
            for path in sorted({path for clips in clips_of.values() for path in clips})
            if os.path.realpath(path) not in real
        ]
    return paired


def _with_truth(checks: _Checks, tasks: Sequence[Task]) -> list[Task]:
    """Give each task that names none the truth of its name."""
    truth, problems = checks.request.truth, checks.problems
    if truth is None:
        return list(tasks)
    known: dict[str, str] = {}
    if storage.is_folder(truth):
        for name, same in storage.by_name(truth, warnings=checks.warnings).items():
            known[name] = str(same[0])
            for path in same[1:]:
                both = f"{storage.name(same[0])} and {storage.name(path)}"
                problems.append(f"{both}: two truths of one name. Move one away.")
    elif truth.suffix.lower() == ".scp":
        known = read_scp(truth, problems)
    else:
        raise PairingError(f"{storage.name(truth)}: is neither a folder of truths nor an scp.")
    for task in tasks:
        if not task.truth and task.id not in known:
            checks.problem(task, f"{storage.name(truth)} has no truth {task.id} for it.")
    return [replace(task, truth=task.truth or known.get(task.id)) for task in tasks]


def _with_outputs(checks: _Checks, tasks: Sequence[Task]) -> list[Task]:
    """Give each task its outputs, noting those that would leave the folder or collide."""
    request, inputs = checks.request, checks.identities()
    taken: dict[str, Task] = {}
    ids: dict[str, Task] = {}
    inside: dict[str, bool] = {}
    roots = {kind: f"{request.output}/{kind}" for kind in _SUFFIXES}
    planned = []
    for task in tasks:
        names = {
            AUDIO: task.output or task.id + request.suffix,
            RESIDUAL: task.residual or (task.id + request.suffix if request.residual else ""),
            ACTIVITY: task.activity or (task.id + request.activity if request.activity else ""),
        }
        for kind, name in names.items():
            reason = _wrong_name(kind, name) if name else None
            if name and not reason and not _is_inside(roots[kind], name, inside):
                reason = "leaves the output folder by a link"
            if reason:
                what = "output" if kind == AUDIO else kind
                checks.problem(task, f"{what} {name!r} {reason}. Give it another id or name.")
                break
            # One name in two cases is one file on many disks.
            place = f"{kind}/{posixpath.normpath(name)}".casefold()
            first = taken.setdefault(place, task) if name else task
            if kind == AUDIO and first is task:
                first = ids.setdefault(task.id, task)
            path = f"{roots[kind]}/{name}"
            if first is not task:
                checks.problems.append(
                    f"{checks.where(task)} and {checks.where(first)} would both be written to "
                    f"{storage.name(path)}. Rename one, or give it another id."
                )
                break
            if name and (old := storage.stamp(path)) and old.identity in inputs:
                checks.problem(task, f"would be written over {storage.name(path)}, an input.")
        else:
            planned.append(
                replace(
                    task,
                    output=names[AUDIO],
                    residual=names[RESIDUAL],
                    activity=names[ACTIVITY],
                    inputs=checks.inputs_key(task),
                )
            )
    return planned


def _is_inside(folder: str, name: str, inside: dict[str, bool]) -> bool:
    """Whether an output stays below its folder, whatever links there are; `inside` remembers."""
    parent = os.path.dirname(f"{folder}/{name}")  # noqa: PTH120
    if parent not in inside:
        real, root = os.path.realpath(parent), os.path.realpath(folder)
        inside[parent] = Path(real).is_relative_to(root)
    return inside[parent]


def _wrong_name(kind: str, name: str) -> str | None:
    """What is wrong with an output's name below its folder, if anything."""
    if name.startswith("/") or "\\" in name or ":" in name:
        windows = PureWindowsPath(name)
        if name.startswith("/") or windows.root:
            return "is an absolute path"
        if ":" in name and os.name == "nt":
            return "has a colon, which Windows does not allow"
        if ".." in windows.parts:
            return "leaves the output folder"
    if ".." in name and ".." in name.split("/"):
        return "leaves the output folder"
    if os.path.splitext(name)[1].lower() not in _SUFFIXES[kind]:  # noqa: PTH122
        return f"does not end in {', '.join(_SUFFIXES[kind])}"
    return None


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in _NUMBER.split(text)]


def _seconds(task: Task) -> float | None:
    if storage.url(task.mixture):
        return None
    try:
        seconds = _plain_wav_seconds(task.mixture)
        return audio.probe(Path(task.mixture)).seconds if seconds is None else seconds
    except (McspexError, OSError):
        return None


def _plain_wav_seconds(path: str) -> float | None:
    """The length of a plain WAV file by its first 44 bytes, 8 times as fast as a library does it.

    None for any other file.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        head, size = file.read(44), os.fstat(file.fileno()).st_size
    if len(head) < 44 or head[:4] != b"RIFF" or head[8:20] != b"WAVEfmt \x10\0\0\0":
        return None
    rate_hz, align, data = (struct.unpack_from("<I", head, at)[0] for at in (24, 32, 40))
    align &= 0xFFFF
    if head[36:40] != b"data" or data + 44 != size or not rate_hz or not align:
        return None
    return float(data // align / rate_hz)
