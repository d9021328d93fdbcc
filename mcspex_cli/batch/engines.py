"""What does a batch's work: processes of this machine, actors of Ray, or an array of Slurm.

```
           ┌─▶ local: this process, or several ─┐
WorkList ──┼─▶ ray: actors, anywhere            ├─▶ Worker ──▶ files, journal
           └─▶ slurm: tasks of an array ────────┘
```

All of them do the same units and write the same journal, so that a batch that one of them began is
finished by any other.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from mcspex_cli import files
from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal, JournalWriter
from mcspex_cli.batch.plan import BatchPlan
from mcspex_cli.batch.processes import LocalProcess, Station, deal, run_here
from mcspex_cli.batch.run import BatchSettings, Outcome, Unit, WorkList, seconds, shares
from mcspex_cli.errors import EngineError, McspexError

WORTH_A_TASK_S, MOST_TASKS = 3600.0, 1000
"""Seconds of audio for a task of Slurm's array, and how many tasks Slurm takes unless told."""

_POLL_S = 2.0
"""How often Slurm and the journal are asked."""

_SUBMITTING_S = 120
"""How long a command waits for another that submits the same batch."""

_TIMEOUTS = 100
"""How often a task of Slurm's array is queued again when its time is over."""

_RAY_STORE_BYTES = 100 * 2**20
"""What a Ray of this machine's own sets aside for objects: units and rows are small."""


def run(work: WorkList, stopping: Event) -> Iterator[Outcome]:
    """Do a work list on its engine, beginning no other task once `stopping` is set.

    Yields:
        What came of each task, which is in the journal by then.

    Raises:
        DiskFullError: nothing more can be written.
        McspexError: the model, a device or the cluster cannot be used, or workers die again and
            again.
    """
    if not work.todo:
        return
    engine = ENGINES[work.settings.engine]
    outcomes = engine.run(work, stopping)
    with closing(outcomes if engine.name == "slurm" else _accounted(work, outcomes)) as outcomes:
        yield from outcomes


def _accounted(
    work: WorkList, outcomes: Generator[Outcome, None, None]
) -> Generator[Outcome, None, None]:
    """Outcomes up to the first failure that ends all; the journal gets what was done how fast."""
    began, audio_s, counts = time.time(), 0.0, [0, 0]
    with closing(outcomes):
        try:
            for outcome in outcomes:
                counts[outcome.row is None] += 1
                audio_s += outcome.row["seconds"] if outcome.row else 0.0
                yield outcome
                if outcome.row is None and work.settings.fail_fast:
                    return
        finally:
            if any(counts):
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
                line = {"began": at, "wall_s": round(time.time() - began, 3)}
                line |= {"audio_s": round(audio_s, 3), "done": counts[0], "failed": counts[1]}
                JournalWriter(work.plan.folder).add_run(line)


# Ray.


def _connect_ray(settings: BatchSettings) -> BatchSettings:
    """Connect to a Ray cluster, or start a Ray here, and decide what its actors have."""
    cluster = settings.cluster
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    has = _initialise_ray(address)
    if cluster.gpus is None:
        cluster = replace(cluster, gpus=float(has.get("GPU", 0) >= 1))
    if local_cpus := has.get("CPU", 0) if address == "local" and not cluster.gpus else 0:
        cluster = replace(cluster, cpus=min(cluster.cpus, local_cpus))
    settings = replace(settings, cluster=cluster)
    if not _actors(settings, has):
        raise EngineError(
            f"Ray has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs, and a worker "
            f"needs {cluster.cpus:g} and {cluster.gpus:g}. Ask for less with --resources."
        )
    return settings


def _initialise_ray(address: str) -> dict[str, float]:
    """Connect this process to Ray; what the cluster has. SIGTERM ends this process as before."""
    ours = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER" not in os.environ
    if ours:  # or SIGTERM prints a trace of Ray's C++
        os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    import ray
    from ray.exceptions import RayError

    if ours:  # the processes that Ray starts keep their handlers
        del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]
    here: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
        here = {"include_dashboard": False, "object_store_memory": _RAY_STORE_BYTES}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **here)
        has: dict[str, float] = ray.cluster_resources()
    except (OSError, ImportError, RuntimeError, ValueError, RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "Start it with ray start --head, or leave --address out."
        if address.startswith("ray://"):  # to which Ray sends no token unless told
            remedy = "If the cluster asks for a token, set RAY_AUTH_MODE=token."
        raise EngineError(
            f"--address {address}: cannot connect to Ray ({reason}). {remedy}"
        ) from error
    except SystemExit as end:  # while it starts, Ray has a handler of SIGTERM of its own
        raise KeyboardInterrupt from end
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)  # Ray's ends with an exit code of its own
    return has


def _actors(settings: BatchSettings, has: dict[str, float]) -> int:
    """How many actors fit into a cluster."""
    needs = {"CPU": settings.cluster.cpus, "GPU": settings.cluster.gpus}
    return int(min((has.get(name, 0) / each for name, each in needs.items() if each), default=1))


def _run_on_ray(work: WorkList, stopping: Event) -> Generator[Outcome, None, None]:
    """Do a work list by actors of Ray, wherever it has room for them."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        fit = work.settings.jobs or _actors(work.settings, ray.cluster_resources())
        count = max(1, min(fit, len(work.units)))
        yield from deal(work, [_Actor(work) for _ in range(count)], stopping)
    except RayTaskError:  # a bug of ours, with the actor's traceback
        raise
    except RayError as error:  # not of a member's death, but of the cluster's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"Ray failed: {reason} Go on with the same command.") from error
    finally:
        ray.shutdown()


class _Actor:
    """A member: an actor of Ray. Where it is lost, another is started as soon as there is room."""

    def __init__(self, work: WorkList) -> None:
        import ray
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

        self.deaths: tuple[type[Exception], ...] = (RayActorError, OutOfMemoryError)
        self.deaths += (NodeDiedError, ObjectLostError)  # what it had done went with its machine
        cluster = work.settings.cluster
        self._class = ray.remote(RemoteStation).options(
            num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_concurrency=2
        )
        device = "cuda" if cluster.gpus else "cpu"
        self._arguments = (Path.cwd(), work.plan.folder, work.settings, device)
        self._handle: Any = None

    def start(self) -> Future[list[Outcome] | McspexError]:
        self.end(now=True)
        self._handle = self._class.remote(*self._arguments)
        return self.submit([], set())

    def submit(self, parcel: Sequence[Unit], done: set[str]) -> Future[list[Outcome] | McspexError]:
        future: Future[list[Outcome] | McspexError]
        future = self._handle.extract.remote(parcel, done).future()
        return future

    def stop(self) -> None:
        self._handle.stop.remote()

    def end(self, *, now: bool) -> None:  # noqa: ARG002 (what it has done is in the journal)
        import ray

        if self._handle:
            ray.kill(self._handle)


class RemoteStation(Station):
    """A station of a Ray actor, which may be on another machine."""

    def __init__(self, cwd: Path, folder: Path, settings: BatchSettings, device: str) -> None:
        super().__init__(folder, settings, device, settings.cluster.threads)
        self._cwd, self._folder = cwd, folder

    def extract(self, parcel: Sequence[Unit], done: set[str]) -> list[Outcome] | McspexError:
        """As `Station.extract`, from the folder in which the command was started."""
        with suppress(OSError):
            os.chdir(self._cwd)
        if not (storage.url(self._folder) or self._folder.is_dir()):
            return EngineError(
                f"{self._cwd / self._folder}: is not there on Ray's node {socket.gethostname()}. "
                "All nodes need the files under the same paths: use a shared folder."
            )
        return super().extract(parcel, done)


# Slurm.


class Share:
    """What a task of the array does: some units of a plan. submitit pickles it."""

    def __init__(self, plan: BatchPlan, units: Sequence[Unit], settings: BatchSettings) -> None:
        self._plan = replace(plan, tasks=[task for unit in units for task in unit])
        self._units = units
        device = "cuda" if settings.cluster.gpus else "cpu"
        self._settings = replace(settings, engine="local", devices=(device,), jobs=1)

    def __call__(self) -> None:
        """Do what is left of it, in a process of its own, so that what kills that is found out."""
        work = WorkList(self._plan, Journal(self._plan.folder), self._settings, self._units)
        threads = self._settings.cluster.threads  # not those of the whole machine
        process = LocalProcess(work, self._settings.devices[0], threads)
        for _ in _accounted(work, deal(work, [process], Event())):
            pass

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again where Slurm takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmArray:
    """An array that works on a batch."""

    job: str
    """Slurm's number of it."""

    @classmethod
    def find(cls, folder: Path) -> SlurmArray | None:
        """The array that works on a batch now, if there is one."""
        with suppress(OSError, ValueError, TypeError):
            array = cls(**json.loads((_slurm_folder(folder) / "array.json").read_text()))
            return array if array.is_live() else None
        return None

    @classmethod
    def find_or_submit(cls, work: WorkList, executor: Any) -> SlurmArray:
        """The array that works on a work list; of commands that begin at once, one submits it.

        Raises:
            EngineError: another command submits it, and does not come to an end of that.
        """
        from filelock import SoftFileLock, Timeout

        folder = _slurm_folder(work.plan.folder)
        files.make_folders(folder)
        lock = SoftFileLock(folder / "submitting", timeout=_SUBMITTING_S)
        try:
            with lock:
                return cls.find(work.plan.folder) or cls.submit(work, executor)
        except Timeout as error:
            raise EngineError(
                f"{lock.lock_file}: another command has been submitting this batch for "
                f"{_SUBMITTING_S} s. If there is none, remove this file. Then try again."
            ) from error

    @classmethod
    def submit(cls, work: WorkList, executor: Any) -> SlurmArray:
        """Share a work list out and submit it to an executor of submitit."""
        settings = work.settings
        count = settings.jobs or min(MOST_TASKS, math.ceil(seconds(work.todo) / WORTH_A_TASK_S))
        parts = shares(work.units, max(1, min(count, len(work.units))))
        with executor.batch():
            jobs = [executor.submit(Share(work.plan, part, settings)) for part in parts]
        array = cls(jobs[0].job_id.partition("_")[0])
        with files.whole(_slurm_folder(work.plan.folder) / "array.json") as path:
            path.write_text(json.dumps(asdict(array)))
        return array

    def is_live(self) -> bool:
        """Whether any of its tasks runs or waits, as far as Slurm can be asked."""
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%i", f"--jobs={self.job}"],
            capture_output=True,
            text=True,
            check=False,
        )
        return bool(asked.stdout.strip()) or (
            asked.returncode != 0 and "Invalid job id" not in asked.stderr
        )


def _slurm_folder(folder: Path) -> Path:
    return folder / "slurm"


def _slurm_executor(work: WorkList) -> Any:
    import submitit

    cluster = work.settings.cluster
    executor = submitit.SlurmExecutor(_slurm_folder(work.plan.folder).resolve(), _TIMEOUTS)
    executor.update_parameters(
        job_name="mcspex",
        time=cluster.time_min,
        cpus_per_task=cluster.threads,
        array_parallelism=cluster.parallelism,
        **({"partition": cluster.partition} if cluster.partition else {}),
        **({"gpus_per_node": math.ceil(cluster.gpus)} if cluster.gpus else {}),
    )
    return executor


def _run_on_slurm(work: WorkList, stopping: Event) -> Generator[Outcome, None, None]:
    """Submit a work list as an array, or find that which works on it, and follow the journal."""
    folder, left = work.plan.folder, {task.id: task for task in work.todo}
    if storage.url(folder):
        raise EngineError(
            f"{storage.url(folder)}: Slurm's logs cannot be written to an object store. Choose an "
            "-o on a disk that all nodes share."
        )
    try:
        array = SlurmArray.find_or_submit(work, _slurm_executor(work))
    except Exception as error:
        if type(error).__name__ != "FailedJobError":
            raise
        raise EngineError(f"Slurm refused the array: {str(error).splitlines()[0]}") from error
    while work.settings.cluster.wait and not stopping.is_set():
        live = array.is_live()  # before the journal is read, which then is all there will be
        began = time.monotonic()
        journal = Journal(folder)
        reading_s = time.monotonic() - began
        for id_ in left.keys() & (journal.done.keys() | journal.failed.keys()):
            if done := journal.result(left[id_], work.key):
                yield Outcome(left.pop(id_), done.row)
            elif reason := journal.failure(left[id_], work.key, array.job):
                yield Outcome(left.pop(id_), None, reason)
        if not left:
            return
        if not live:
            raise EngineError(
                f"Slurm's array {array.job} has ended with {len(left)} of its files left to do; "
                f"{_slurm_folder(folder)} has its logs. Go on with the same command."
            )
        stopping.wait(max(_POLL_S, 10 * reading_s))


@dataclass(frozen=True)
class BatchEngine:
    """What can do a batch; a row of `ENGINES`."""

    name: str
    help: str
    run: Callable[[WorkList, Event], Generator[Outcome, None, None]]
    module: str = ""
    """What it needs to be installed, by the extra of the engine's name."""
    program: str = ""
    """What it needs on the PATH."""
    options: tuple[str, ...] = ()
    """The options of the command that are for it only, or for it and another."""

    def check(self) -> None:
        """Refuse an engine that this machine does not have.

        Raises:
            EngineError: what is missing, and how to get it.
        """
        if self.module and not find_spec(self.module):
            raise EngineError(
                f"--engine {self.name} needs {self.module}. Install it: pip install "
                f"'mcspex[{self.name}]'"
            )
        if self.program and not shutil.which(self.program):
            raise EngineError(
                f"--engine {self.name}: {self.program} is not here. Start the command on a machine "
                "that can submit jobs, or choose another engine."
            )


ENGINES = {
    engine.name: engine
    for engine in (
        BatchEngine("local", "processes of this machine", run_here, options=("devices",)),
        BatchEngine(
            *("ray", "a Ray cluster", _run_on_ray, "ray"),
            options=("resources", "gpus", "address"),
        ),
        BatchEngine(
            *("slurm", "an array of Slurm jobs", _run_on_slurm, "submitit", "sbatch"),
            options=("resources", "gpus", "partition", "time_min", "parallelism", "wait"),
        ),
    )
}
"""Every engine by its name."""


def connect(settings: BatchSettings) -> BatchSettings:
    """Reach the cluster, and settle what each worker has of it.

    Raises:
        EngineError: it cannot be reached, or has less than a worker needs.
    """
    if settings.engine == "ray":
        return _connect_ray(settings)
    return settings
