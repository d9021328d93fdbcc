"""A batch's work, dealt out: what may share batches, and who does what; pure."""

from __future__ import annotations

import heapq
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mcspex_cli.checkpoint.checkpoint import CheckpointInfo
from mcspex_cli.extraction.jobs import FileSettings, Job
from mcspex_cli.extraction.journal import fingerprint
from mcspex_cli.extraction.runtime import EngineSettings

Unit = tuple[Job, ...]
"""Jobs whose windows share batches; made from the whole plan, so that it is always the same."""

WINDOW_S = EngineSettings().window_s
"""Mixtures up to here are one window, and share a batch only if they are equally long."""


@dataclass(frozen=True)
class BatchSettings:
    """How a batch is computed."""

    checkpoint: CheckpointInfo
    files: FileSettings = field(default_factory=FileSettings)
    devices: tuple[str, ...] = ("auto",)
    precision: str = "auto"
    runtime: str = "torch"
    """One of `RUNTIMES`, but not "auto": what is done must not depend on what is prepared."""
    batch: int = 0
    """Signals at once; 0 for one on a CPU, sixteen on a GPU, fewer where memory is short."""
    jobs: int = 0
    """Processes; 0 for one per GPU, or for two CPU cores if there is work for it."""
    shard: tuple[int, int] = (1, 1)
    """(i, n): the i-th of n shares of about equal duration, i from 1."""
    fail_fast: bool = False

    def key(self) -> str:
        """Fingerprint of all that an estimate depends on."""
        files, engine = self.files, EngineSettings()
        calibration = self.checkpoint.calibration
        return fingerprint(
            {
                "model": self.checkpoint.sha256,
                "precision": self.precision,
                "runtime": self.runtime,
                "windows": [engine.window_s, engine.context_s, engine.fade_s],
                "channel": files.channel,
                "level": files.level,
                "subtype": files.subtype,
                "mix-back": [files.wet_db, files.dry_db],
                "absent": [files.absent, calibration if files.absent == "mute" else None],
            }
        )


@dataclass(frozen=True)
class Share:
    """What one process does, and where."""

    units: Sequence[Unit]
    done: frozenset[str]
    """Ids of jobs that only keep their units whole."""
    settings: BatchSettings
    device: str
    threads: int


def units(plan: Sequence[Job], size: int) -> list[Unit]:
    """Put jobs together whose windows can share batches of `size`.

    Those are mixtures of one window and equal length, and mixtures of more than one window.
    """
    if size == 1:
        return [(job,) for job in plan]
    alike: dict[object, list[list[Job]]] = defaultdict(list)
    room: dict[object, float] = {}
    for job in plan:
        windows = 1.0 if job.seconds is None else max(1.0, job.seconds / WINDOW_S)
        key = job.id if job.seconds is None else "long" if windows > 1 else job.seconds
        if room.get(key, 0) <= 0:
            alike[key].append([])
            room[key] = size
        alike[key][-1].append(job)
        room[key] -= windows
    return [tuple(unit) for made in alike.values() for unit in made]


def shares(work: Sequence[Unit], count: int) -> list[list[Unit]]:
    """Deal units out to `count` of about equal duration, each in the order of `work`."""
    lengths = [sum(job.seconds or 0.0 for job in unit) for unit in work]
    loads = [(0.0, number) for number in range(count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(work)), key=lambda index: (-lengths[index], index)):
        load, number = heapq.heappop(loads)
        dealt[number].append(index)
        heapq.heappush(loads, (load + lengths[index] + 1e-3, number))
    return [[work[index] for index in sorted(indices)] for indices in dealt]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
