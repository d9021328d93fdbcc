"""A batch's settings and plan: every mixture with its reference, truth and outputs, all checked.

```
folders, files, manifest ──▶ references ──▶ truths ──▶ files there? ──▶ outputs
                             by name, folder,          is one its own
                             pattern, or one for all   reference?
```

Everything that is wrong is collected, so that one try names it all; nothing is written.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from mcspex_cli import __version__, audio, files
from mcspex_cli.batch import storage
from mcspex_cli.batch.manifest import (
    ACTIVITY,
    AUDIO,
    JOURNAL,
    RESIDUAL,
    Task,
    files_by_name,
    list_references,
    read_manifest,
    refuse,
)
from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.errors import AudioError, CheckpointError, PairingError, name_some
from mcspex_cli.extraction.job import ACTIVITY_FORMATS, ExtractionOptions
from mcspex_cli.extraction.profile import is_profile_name, read_profile
from mcspex_cli.extraction.reference import Span, list_sources
from mcspex_cli.extraction.runtime import EngineSettings, choose_device

_logger = logging.getLogger("mcspex")

_SUFFIXES = {
    **dict.fromkeys((AUDIO, RESIDUAL), tuple(audio.FORMATS)),
    ACTIVITY: tuple(ACTIVITY_FORMATS),
}


@dataclass(frozen=True)
class BatchRequest:
    """What a user asks for: mixtures by folders, files or a manifest, and whose voices."""

    output: Path
    mixtures: Sequence[Path] = ()
    manifest: Path | None = None
    references: tuple[Path, ...] = ()
    """The clips of the one voice for all."""
    reference_folder: Path | None = None
    """Or a folder (or scp) with a reference for each mixture or speaker."""
    pattern: str | None = None
    """Which part of a mixture's name is the reference's (`manifest.compile_pattern`)."""
    truth: Path | None = None
    form: str = "wav"
    """The format of the estimates and residuals."""
    residual: bool = False
    activity: str | None = None
    """The format of the files that say when the voice speaks; None for no such files."""
    allow_unused: bool = False


@dataclass(frozen=True)
class BatchSettings:
    """How a batch is computed."""

    model: CheckpointInfo
    options: ExtractionOptions = field(default_factory=ExtractionOptions)
    engine_settings: EngineSettings = field(default_factory=EngineSettings)
    """How each worker runs the network; its device and its threads are the worker's own."""
    devices: tuple[str, ...] = ("auto",)
    jobs: int = 0
    """Processes, actors or array tasks; 0 for as many as the backend finds useful."""
    shard: tuple[int, int] = (1, 1)
    """(i, n): the i-th of n parts of about equal duration, i from 1."""
    fail_fast: bool = False
    backend: str = "local"
    """Where it is computed (--engine), by its name in `backends.BACKENDS`; the rest is for Ray and
    Slurm."""
    cpus: float = 2.0
    """Cores of each worker. How many threads it has may decide an estimate's last bit."""
    gpus: float | None = None
    """GPUs of each worker; None for one if Ray has any, and on Slurm for none."""
    address: str | None = None
    """Ray's: "auto", or "ray://HOST:PORT"; None for a Ray of this machine's own."""
    partition: str | None = None
    """Slurm's; None for its default."""
    time_min: int = 60
    """Slurm's limit for each task of the array, which is requeued to go on."""
    parallelism: int = 256
    """Tasks of Slurm's array that run at once."""
    wait: bool = True
    """Whether to wait for Slurm's array."""

    def fingerprint(self) -> str:
        """A hash of the version and settings that an estimate depends on."""
        runtime = "onnx" if self.engine_settings.runtime == "onnx" else "torch"  # also for "auto"
        engine = replace(self.engine_settings, device="auto", batch=0, threads=0, runtime=runtime)
        # Where nothing is done about an absent voice, presence changes no estimate.
        calibration = None if self.options.absent == "keep" else self.model.calibration
        settings = astuple(engine), astuple(self.options), calibration
        return hash_of((__version__, self.model.sha256, settings))

    def on_gpu(self) -> bool:
        """Whether it is computed on GPUs.

        Raises:
            EngineError: a device is missing.
        """
        if self.backend != "local":
            return bool(self.gpus)
        if self.engine_settings.runtime == "onnx":
            return all(device.startswith("cuda") for device in self.devices)
        if self.devices == ("cpu",):
            return False  # without torch, which takes seconds to import
        return "cpu" not in [choose_device(device).type for device in self.devices]


@dataclass(frozen=True)
class BatchPlan:
    """The tasks of a batch in the order of its reports, and its output folder."""

    folder: Path
    tasks: Sequence[Task]

    @property
    def label(self) -> str:
        """What people call the folder."""
        return storage.label(self.folder)

    @property
    def has_truth(self) -> bool:
        """Whether anything can be scored."""
        return any(task.truth for task in self.tasks)

    def fingerprint(self) -> str:
        """A hash of what it reads and writes, by the paths from its folder; not of the truths."""
        tasks = self.tasks
        return hash_of([(t.id, t.names(), t.input_key.rpartition("-")[2]) for t in tasks])

    def sounds(self) -> Iterator[Path]:
        """The estimates and residuals that its tasks write."""
        for task in self.tasks:
            for kind, path in task.outputs(self.folder).items():
                if kind != ACTIVITY:
                    yield path


def plan_batch(request: BatchRequest) -> BatchPlan:
    """Make and check the whole plan, without the mixtures' lengths (`worklist.measure` adds them).

    Raises:
        PlanError: files are missing, used twice or without partner, a mixture would be its own
            reference, two outputs have one name, or one would leave its folder; with a line for
            each.
        PairingError: there is nothing to do, or the manifest, references or truths cannot be read.
        AudioError: a folder is not there.
    """
    planner = _Planner(request)
    tasks = planner.with_references(planner.find_tasks())
    tasks = planner.with_truth(tasks)
    planner.check_inputs(tasks)
    tasks = planner.with_outputs(tasks)
    planner.check_outputs(tasks)
    refuse(planner.problems)
    return BatchPlan(planner.request.output, tasks)


def check_profiles(plan: BatchPlan, model: CheckpointInfo) -> None:
    """Refuse a plan with profiles that cannot be used, or are for other models."""
    problems = []
    for path in map(Path, sorted({name for task in plan.tasks for name in task.references})):
        if is_profile_name(path) and not storage.is_url(path):
            try:
                read_profile(path).enrolment_for(model, path)
            except CheckpointError as error:
                problems.append(str(error))
    refuse(problems)


class Location(NamedTuple):
    """Where a file is; both are the same if no path leads from the batch's folder to it."""

    absolute: str
    relative: str
    """Its path from the batch's folder."""


class Locations:
    """Where files are, seen from a batch's folder; links to folders are resolved, once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = None if storage.is_url(folder) else os.path.realpath(folder)
        self._folders: dict[str, tuple[str, str]] = {}

    def of(self, path: str) -> Location:
        """Where a file is."""
        if url := storage.url(path):
            return Location(url, url)
        parent, name = os.path.split(path)
        if parent not in self._folders:
            real = relative = os.path.realpath(parent)
            if self._folder is not None:
                with suppress(ValueError):  # on another drive
                    relative = os.path.relpath(real, self._folder).replace(os.sep, "/")
            self._folders[parent] = real, relative
        real, relative = self._folders[parent]
        return Location(f"{real}/{name}", f"{relative}/{name}".removeprefix("./"))


class _Planner:
    """Completes tasks step by step: each file is looked at once, and all that is wrong is noted."""

    def __init__(self, request: BatchRequest) -> None:
        manifest, folder, truth = request.manifest, request.reference_folder, request.truth
        self.request = replace(  # with the paths that `file:///` URLs stand for
            request,
            output=storage.to_path(request.output),
            mixtures=[*map(storage.to_path, request.mixtures)],
            manifest=manifest and storage.to_path(manifest),
            references=tuple(map(storage.to_path, request.references)),
            reference_folder=folder and storage.to_path(folder),
            truth=truth and storage.to_path(truth),
        )
        self.problems: list[str] = []
        self._stamp = cache(storage.stamp)
        self._locations = Locations(self.request.output)
        self._is_inside = cache(
            lambda path, root: Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
        )
        self._is_batch = cache(lambda folder: storage.is_folder(folder / JOURNAL))
        self._names_in = cache(_names_in)

    def find_tasks(self) -> list[Task]:
        """The manifest's, or one for each file named or found in the folders named.

        What is found twice, since a folder is named twice or a file in it too, is one task.
        """
        manifest, output = self.request.manifest, self.request.output
        if not manifest:
            tasks: dict[str, Task] = {}
            for place, task in self._search():
                tasks.setdefault(place, task)
            return list(tasks.values())
        if manifest.resolve().is_relative_to(output.resolve()):
            raise PairingError(
                f"{storage.label(manifest)}: is in the output folder, so the reports there would "
                "be replaced by reports of this list only. To try what failed again, repeat the "
                "first command."
            )
        return read_manifest(manifest, self.problems)

    def _search(self) -> Iterator[tuple[str, Task]]:
        """Files named, and those in named folders except references, truths and outputs.

        Yields:
            The path below the resolved root, and the task: equal paths are one file.
        """
        request, output = self.request, self.request.output
        others = (output, output / AUDIO, output / RESIDUAL, request.reference_folder)
        roots = {root.resolve() for root in request.mixtures}
        without = {path.resolve() for path in (*others, request.truth) if path} - roots
        references = set(map(os.path.realpath, self._clips))
        for root in request.mixtures:
            storage.check_exists(root)
            if not storage.is_folder(root):
                yield self._locations.of(str(root)).absolute, Task(root.stem, str(root))
                continue
            real_root = storage.url(root) or os.path.realpath(root)
            names = [*map(str, storage.find(root, without))]
            if references and names:
                names = [name for name in names if os.path.realpath(name) not in references]
                if not names:
                    text = f"{storage.label(root)}: has no sound files except the references."
                    raise AudioError(text)
            batches = {name: self._batch_of(name, root) for name in names}
            names = [name for name in names if not batches[name]]
            left_out = [
                f"{storage.label(batch)}: has the results of another batch, which are left out. To "
                f"extract from them, name {storage.label(batch / AUDIO)}."
                for batch in dict.fromkeys(batches.values())
                if batch
            ]
            if not names:
                nothing = f"{storage.label(root)}: no sound files in this folder. Name another."
                raise AudioError(left_out[0] if left_out else nothing)
            for text in left_out:
                _logger.warning(text)
            # The length of the root's path with a slash; 0 for ".", with which no name begins.
            start = len(str(root / "x")) - 1
            for name in names:
                id_ = os.path.splitext(name[start:])[0].replace(os.sep, "/")  # noqa: PTH122
                yield f"{real_root}/{name[start:]}", Task(id_, name)

    def _batch_of(self, name: str, root: Path) -> Path | None:
        """The folder of the batch that extracted a file below `root`; None if none did."""
        if not any(f"{os.sep}{part}{os.sep}" in name for part in (AUDIO, RESIDUAL)):
            return None
        for folder in Path(name).parents:
            if folder == root:
                break
            if folder.name in {AUDIO, RESIDUAL} and self._is_batch(folder.parent):
                return folder.parent
        return None

    @cached_property
    def _clips(self) -> list[Path]:
        """The clips of the one voice for all, and those in the folders named for it."""
        clips: list[Path] = []
        for path in self.request.references:
            if storage.is_url(path):
                clips += storage.find(path) if storage.is_folder(path) else [path]
            else:
                clips += list_sources([path])
        return clips

    def with_references(self, tasks: Sequence[Task]) -> list[Task]:
        """Give each task that names none the references that the request has for it."""
        request, by_name = self.request, None
        shared = tuple(map(str, self._clips))
        if request.reference_folder:
            by_name = list_references(request.reference_folder, request.pattern, self.problems)

        def references(task: Task) -> tuple[str, ...]:
            if task.references or task.spans:
                return task.references
            try:
                if by_name:
                    return by_name.find(task.id)
            except PairingError as error:
                self._note(task, str(error))
                return ()
            if not shared:
                self._note(task, "has no reference. Add one, or use --ref or --refs.")
            return shared

        tasks = [replace(task, references=references(task)) for task in tasks]
        if by_name and not request.allow_unused:
            used = {task.references for task in tasks}
            real = {os.path.realpath(path) for clips in used for path in clips}
            self.problems += [
                f"{storage.label(path)}: belongs to no mixture. Remove it, or add --allow-unused."
                for path in sorted({path for clips in by_name.clips.values() for path in clips})
                if os.path.realpath(path) not in real
            ]
        return tasks

    def with_truth(self, tasks: Sequence[Task]) -> list[Task]:
        """Give each task that names none the truth of its name."""
        truth = self.request.truth
        if truth is None:
            return list(tasks)
        truths = files_by_name(truth, "truths", self.problems)
        tasks = [
            replace(task, truth=task.truth or truths.get(files.normal(task.id))) for task in tasks
        ]
        for task in tasks:
            if not task.truth:
                self._note(task, f"{storage.label(truth)} has no truth {task.id} for it.")
        unused = sorted(truths.keys() - {files.normal(task.id) for task in tasks})
        if unused and not self.request.allow_unused:
            _logger.warning(
                f"{storage.label(truth)}: truths of no mixture: {len(unused)} "
                f"({name_some(unused)}). Is a mixture missing?"
            )
        return tasks

    def check_inputs(self, tasks: Sequence[Task]) -> None:
        """Note files that are not there, tasks that are there twice, and wrong spans.

        A mixture that is its own reference or truth is noted once for all: it is one mistake. Of a
        truth that is the reference, too, there is only a warning: some want to see that limit.
        """
        first_of: dict[tuple[str, ...], Task] = {}
        own: dict[str, list[Task]] = {}
        known: list[Task] = []
        for task in tasks:
            for path in (task.mixture, *task.references, task.truth):
                if path is not None and self._stamp(path) is None:
                    name, hint = storage.label(path), self._similar(path)
                    what = "" if name == self._where(task) else f"{name} "
                    self._note(task, f"{what}does not exist, or is not a file.{hint}")
            try:
                for span in task.spans:
                    Span.parse(span)
            except AudioError as error:
                self._note(task, str(error))
            key = (self._locations.of(task.mixture).absolute, *task.references, *task.spans)
            first = first_of.setdefault(key, task)
            if first is not task:
                where = self._where(first)
                self._note(task, f"has the mixture and references of {where}. Remove one.")
            if any(self._are_same(task.mixture, path) for path in task.references):
                own.setdefault("reference", []).append(task)
            # Not by content: where one person speaks alone, the truth may be a copy of the mixture.
            stamp = self._stamp(task.mixture)
            if task.truth and stamp and stamp == self._stamp(task.truth):
                own.setdefault("truth", []).append(task)
            if task.truth and any(self._are_same(task.truth, path) for path in task.references):
                known.append(task)
        if known:
            _logger.warning(
                f"{self._where(known[0])}: its truth is its reference, too, so its scores are "
                f"better than with another recording of the voice.{_and_more(known)}"
            )
        for role, same in own.items():
            what = f"is its own {role}. Name a recording in which the wanted person speaks alone."
            self._note(same[0], what + _and_more(same))

    def _similar(self, path: str) -> str:
        """A hint at the file that is probably meant by a path that does not exist."""
        meant = Path(path.replace("\\", "/"))
        other = self._names_in(meant.parent).get(files.name_key(meant.name))
        if other is None or other == Path(path):
            return ""
        return f" Is it {other}? Slashes, accents and capitals have to be the same."

    def _are_same(self, one: str, other: str) -> bool:
        first, second = self._stamp(one), self._stamp(other)
        if not first or not second or first.size != second.size or not first.size:
            return False  # empty files are no copies of each other: each fails for itself
        if storage.is_url(one) or storage.is_url(other):
            return one == other
        return first.identity == second.identity or filecmp.cmp(one, other, shallow=False)

    def with_outputs(self, tasks: Sequence[Task]) -> list[Task]:
        """Give each task the names of its outputs, and the key of its inputs."""
        sound, activity = self.request.form, self.request.activity

        def complete(task: Task) -> Task:
            estimate = f"{task.id}.{sound}"
            return replace(
                task,
                output=task.output or estimate,
                residual=task.residual or (estimate if self.request.residual else ""),
                activity=task.activity or (f"{task.id}.{activity}" if activity else ""),
                input_key=self._input_key(task),
            )

        return [complete(task) for task in tasks]

    def check_outputs(self, tasks: Sequence[Task]) -> None:
        """Note outputs that would leave the folder, collide, or be written over an input."""
        paths = {path for t in tasks for path in (t.mixture, *t.references, t.truth) if path}
        inputs = {stamp.identity for stamp in map(self._stamp, paths) if stamp}
        by_path: dict[str, Task] = {}
        by_id: dict[str, Task] = {}
        for task in tasks:
            id_ = files.normal(task.id)
            for kind, name in task.names().items():
                path = f"{self.request.output}/{kind}/{name}"
                if reason := self._wrong_name(kind, name):
                    what = "output" if kind == AUDIO else kind
                    self._note(task, f"{what} {name!r} {reason}. Give it another id or name.")
                    break
                key = files.name_key(f"{kind}/{posixpath.normpath(name)}")
                if (other := by_path.setdefault(key, task)) is not task:
                    self._note_clash(task, other, f"would both be written to {storage.label(path)}")
                    break
                if kind == AUDIO and (other := by_id.setdefault(id_, task)) is not task:
                    self._note_clash(task, other, f"both have the id {task.id}")
                    break
                if (old := storage.stamp(path)) and old.identity in inputs:
                    self._note(task, f"would be written over {storage.label(path)}, an input.")
        for path in sorted(by_path.keys() & _folders_above(by_path)):
            note = "other outputs need a folder of this output's name. Rename it."
            self._note(by_path[path], note)

    def _wrong_name(self, kind: str, name: str) -> str | None:
        """What is wrong with an output's name below its folder, if anything."""
        if re.match(r"(?:[A-Za-z]:)?[\\/]", name):
            return "is an absolute path"
        if ":" in name and os.name == "nt":
            return "has a colon, which Windows does not allow"
        parts = re.split(r"[\\/]", name)
        if any(part.startswith(".") and part != "." for part in parts):
            hidden = "would be hidden, so that score and report do not find it"
            return "leaves the output folder" if ".." in parts else hidden
        if os.path.splitext(name)[1].lower() not in _SUFFIXES[kind]:  # noqa: PTH122
            return f"does not end in {', '.join(_SUFFIXES[kind])}"
        if any(len(os.fsencode(part)) > files.LONGEST_NAME for part in name.split("/")):
            return f"is too long: disks allow {files.LONGEST_NAME} bytes"
        root = f"{self.request.output}/{kind}"
        parent = os.path.dirname(f"{root}/{name}")  # noqa: PTH120
        return None if self._is_inside(parent, root) else "leaves the output folder by a link"

    def _input_key(self, task: Task) -> str:
        inputs = (task.mixture, *task.references)
        stamps = [*map(self._stamp, inputs)]
        exact = hash_of([stamp and tuple(stamp.version) for stamp in stamps])
        in_seconds = hash_of([stamp and tuple(stamp.in_seconds) for stamp in stamps])
        absolute, relative = zip(*map(self._locations.of, inputs), strict=True)
        places = ([absolute, task.spans], [relative, task.spans])
        return "-".join((f"{exact}+{in_seconds}", *map(hash_of, places)))

    def _where(self, task: Task) -> str:
        """What a message calls a task: its file, or the manifest's line."""
        if task.line:
            assert self.request.manifest
            return f"{storage.label(self.request.manifest)} line {task.line}"
        return storage.label(task.mixture)

    def _note(self, task: Task, problem: str) -> None:
        self.problems.append(f"{self._where(task)}: {problem}")

    def _note_clash(self, task: Task, other: Task, problem: str) -> None:
        tasks = f"{self._where(task)} and {self._where(other)}"
        self.problems.append(f"{tasks} {problem}. Rename one, or give it another id.")


def _names_in(folder: Path) -> dict[str, Path]:
    """What is in a folder, by `files.name_key`; nothing if it cannot be read."""
    with suppress(OSError):
        return {files.name_key(path.name): path for path in folder.iterdir()}
    return {}


def _and_more(tasks: Sequence[Task]) -> str:
    return f" The same is true of {len(tasks) - 1} more." if len(tasks) > 1 else ""


def _folders_above(paths: Iterable[str]) -> set[str]:
    """All folders that these relative paths lead through."""
    folders = {""}
    for path in paths:
        parent = posixpath.dirname(path)
        while parent not in folders:
            folders.add(parent)
            parent = posixpath.dirname(parent)
    return folders


def same_places(one: str, other: str) -> bool:
    """Whether two keys (`Task.input_key`) are of files in the same places, whatever they hold now.

    It is enough that they lie in the same way from the output folder: all was moved together.
    """
    pairs = zip(one.split("-")[1:], other.split("-")[1:], strict=False)
    return one == other or any(place == other_place for place, other_place in pairs)


def unchanged(before: str, now: str) -> bool:
    """Whether two keys are of files in the same places, with the same sizes and times.

    The times may have been cut to seconds since (`Stamp.in_seconds`).
    """
    is_same = now.partition("+")[0] in before.partition("-")[0].split("+")
    return is_same and same_places(before, now)


def hash_of(value: object) -> str:
    """A hash of a value whose `repr` is stable."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
