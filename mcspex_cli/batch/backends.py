"""Where a batch is computed: in processes of this machine, actors of Ray, or an array of Slurm.

```
           ┌─▶ local: this process, or several ─┐
WorkList ──┼─▶ ray: actors, anywhere            ├─▶ Worker ──▶ files, journal
           └─▶ slurm: tasks of an array ────────┘
```

All do the same units and write the same journal, so that any of them can resume a batch that
another began. Processes and actors may die: `distribute` gives what one had left to the others.

Users choose a backend with --engine. Each of its workers runs the network by an `Engine` of
`extraction.engine`.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from mcspex_cli import files
from mcspex_cli.batch import storage
from mcspex_cli.batch.journal import Journal, JournalWriter, Run
from mcspex_cli.batch.plan import BatchSettings
from mcspex_cli.batch.workers import (
    Answer,
    Outcome,
    Outcomes,
    Worker,
    WorkerHost,
    distribute,
)
from mcspex_cli.batch.worklist import (
    WINDOW_S,
    Unit,
    WorkList,
    another_batch,
    batch_fingerprint,
    claim,
    equal_parts,
    total_s,
)
from mcspex_cli.errors import (
    DiskFullError,
    EngineError,
    McspexError,
    OutputError,
    error_line,
    install_extra,
)
from mcspex_cli.extraction.runtime import cores, end_with_parent, leave_signals, memory

_logger = logging.getLogger("mcspex")

_CORES_EACH = 2
"""The cores of each process; with one, it takes 2.5 times as long."""

_MEMORY_EACH = 1.5e9
"""The bytes of memory of each process, for torch and a model."""

_WORTH_A_PROCESS_S = 60.0
"""Seconds of audio that make up for the start of a process."""

_WORTH_AN_ARRAY_TASK_S = 3600.0
"""Seconds of audio that make up for the start of an `ArrayTask`."""

_MOST_ARRAY_TASKS = 1000
"""The most tasks of an array unless --jobs is given; by default, Slurm refuses more."""

_POLL_S = 2.0
"""Seconds between two looks at Slurm and the journal."""

_CHECK_S = 10.0
"""Seconds between two checks that Ray still runs on this machine."""

_ANSWER_S = 10.0
"""How long to wait until a Ray on another machine answers."""

_SUBMITTING_S = 120
"""How long a command waits for another that submits the same batch."""

_MOST_REQUEUES = 100
"""How often an `ArrayTask` is queued again when its time is over."""

_RAY_STORE_BYTES = 100 * 2**20
"""The object store of a Ray that is started here: units and results are small."""


def run(work: WorkList, stopping: Event) -> Outcomes:
    """Do a work list on its backend, beginning no other unit once `stopping` is set.

    What came of a task is yielded once the journal has it.

    Raises:
        DiskFullError: nothing more can be written; it says how much is left.
        McspexError: the model, a device or the cluster cannot be used, or workers die again and
            again.
    """
    if not work.todo:
        return
    try:
        yield from BACKENDS[work.settings.backend].run(work, stopping)
    except DiskFullError as error:
        journal = Journal(work.plan.folder)
        left = sum(not journal.valid_result(task, work.key) for task in work.todo)
        count = "1 file" if left == 1 else f"{left} files"
        raise DiskFullError(f"{error} {count} left; then run the same command again.") from error
    finally:  # what processes left that were ended in their work
        files.sweep(work.plan.folder)
        files.sweep(Path(tempfile.gettempdir()), ".*.partial")


def _record_run(work: WorkList, outcomes: Outcomes) -> Outcomes:
    """Pass outcomes on, with `fail_fast` until the first failure; then write a `Run` of them."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    began = time.monotonic()
    audio_s, finished, failed = 0.0, 0, 0
    with closing(outcomes):
        try:
            for outcome in outcomes:
                if outcome.result is None:
                    failed += 1
                else:
                    finished += 1
                    audio_s += outcome.result["seconds"]
                yield outcome
                if failed and work.settings.fail_fast:
                    return
        finally:
            if finished or failed:
                wall_s = round(time.monotonic() - began, 3)
                run = Run(at, wall_s, round(audio_s, 3), finished, failed)
                JournalWriter(work.plan.folder).add_run(run)


# This machine.


def workers_here(work: WorkList) -> tuple[int, int]:
    """How many processes this machine uses, and the CPU threads of each; 0 for torch's choice.

    There is a process for each GPU, or for two cores each.
    """
    settings = work.settings
    if settings.jobs:
        count = settings.jobs
    elif settings.on_gpu():
        count = len(settings.devices)
    else:
        # By all of the shard, not by what is left: resumed, each process must have as many threads
        # as before, since their number may decide an estimate's last bit.
        worth = 1 + int(work.audio_s / _WORTH_A_PROCESS_S)
        count = int(max(1, min(cores() // _CORES_EACH, worth, memory() // _MEMORY_EACH)))
    return count, max(1, cores() // count) if count > 1 else 0


def estimate_s(work: WorkList) -> float | None:
    """How long a work list would take here, by trying the network on a few seconds.

    Files whose length is not known count as nothing; None if there are no others.
    """
    audio_s = total_s(work.todo)
    if not audio_s:
        return None if work.todo else 0.0
    count, threads = workers_here(work)
    settings = work.settings
    engine = Worker(work.plan.folder, settings, settings.devices[0], threads).extractor.engine
    noise = np.random.default_rng(0).standard_normal(round(WINDOW_S * engine.sample_rate_hz))
    mixture = (0.05 * noise).astype(np.float32)
    voice = engine.embed([mixture])
    engine.extract(mixture[: engine.sample_rate_hz], voice)  # the first one takes longer
    began = time.perf_counter()
    engine.extract(mixture, voice)
    took_s = time.perf_counter() - began
    return audio_s * took_s / WINDOW_S / count


def _run_here(work: WorkList, stopping: Event) -> Outcomes:
    count, threads = workers_here(work)
    count, devices = min(count, len(work.units)), work.settings.devices
    if count > (most := max(1, memory() // _MEMORY_EACH)):
        _logger.warning(
            f"the memory of this machine may not suffice for {count} processes of about "
            f"{_MEMORY_EACH / 1e9:g} GB each. If they die, use --jobs {most:g}."
        )
    if count == 1:
        worker = Worker(work.plan.folder, work.settings, devices[0], threads)
        return _record_run(work, worker.extract(work.units, work.finished_ids, stopping.is_set))
    with leave_signals("SIGHUP"):
        resource_tracker.ensure_running()  # it dies of a terminal's end, and then knows nothing
    processes = [_LocalProcess(work, devices[i % len(devices)], threads) for i in range(count)]
    return _record_run(work, distribute(work, processes, stopping))


class _LocalProcess:
    """A process of this machine, in a pool of its own: so its death spares the others."""

    deaths: tuple[type[Exception], ...] = (BrokenProcessPool,)

    def __init__(self, work: WorkList, device: str, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._arguments = (work.plan.folder, work.settings, device, threads, Path.cwd(), self._stop)
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> Answer:
        if self._pool:
            self._pool.shutdown(wait=False)
        self._pool = ProcessPoolExecutor(1, self._context, _begin, self._arguments)
        return self.submit([], set())

    def submit(self, parcel: Sequence[Unit], finished_ids: set[str]) -> Answer:
        assert self._pool
        with leave_signals("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2"):
            return self._pool.submit(_extract, parcel, finished_ids)

    def stop(self) -> None:
        self._stop.set()

    def end(self, *, now: bool) -> None:
        if self._pool:
            processes = dict(self._pool._processes or {}) if now else {}
            for process in processes.values():
                process.kill()
                process.join()
            self._pool.shutdown(wait=not now, cancel_futures=True)


_here: list[WorkerHost] = []
"""In a process of a `_LocalProcess`: its worker."""


def _begin(*arguments: Any) -> None:
    """Prepare this process, which does not outlive the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _here.append(WorkerHost(*arguments))


def _extract(parcel: Sequence[Unit], finished_ids: set[str]) -> list[Outcome] | McspexError:
    return _here[0].extract(parcel, finished_ids)


# Clusters.


def _device_and_threads(settings: BatchSettings) -> tuple[str, int]:
    """The device of each worker, and its CPU threads."""
    return "cuda" if settings.gpus else "cpu", max(1, math.ceil(settings.cpus))


def connect(settings: BatchSettings) -> BatchSettings:
    """Connect to a Ray cluster, or start a Ray here, and settle what each worker has of it.

    Raises:
        EngineError: it cannot be reached, or has less than a worker needs.
    """
    if settings.backend != "ray":
        return settings
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    cluster = _initialise_ray(address)
    cores_there, gpus_there = cluster.get("CPU", 0), cluster.get("GPU", 0)
    if settings.gpus is None:
        settings = replace(settings, gpus=float(gpus_there >= 1))
    if address == "local" and not settings.gpus and cores_there:
        settings = replace(settings, cpus=min(settings.cpus, cores_there))
    if not _room(settings, cluster):
        raise EngineError(
            f"Ray has {cores_there:g} cores and {gpus_there:g} GPUs, and a worker needs "
            f"{settings.cpus:g} and {settings.gpus:g}. Ask for less with --resources."
        )
    return settings


def _initialise_ray(address: str) -> dict[str, float]:
    """Connect this process to Ray, and return how much of each resource the cluster has."""
    is_set_here = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER" not in os.environ
    if is_set_here:  # or SIGTERM prints a trace of Ray's C++
        os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    import ray
    from ray.exceptions import RayError

    if is_set_here:  # the processes that Ray starts keep their handlers
        del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]
    local_options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
        local_options = {"include_dashboard": False, "object_store_memory": _RAY_STORE_BYTES}
    before = signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = address.rpartition(":")
        if port.isdecimal() and "//" not in host:  # where nothing answers, Ray waits for minutes
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which would repeat the error, in two lines
            ray.init(address, log_to_driver=False, logging_level="ERROR", **local_options)
        cluster: dict[str, float] = ray.cluster_resources()
    except (OSError, ImportError, RuntimeError, ValueError, OverflowError, RayError) as error:
        ray.shutdown()  # or the next try in this process fails for its leftovers
        raise _no_ray(address, error) from error
    except SystemExit as end:  # while it starts, Ray has a handler of SIGTERM of its own
        raise KeyboardInterrupt from end
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)  # Ray's ends with an exit code of its own
    return cluster


def _no_ray(address: str, error: Exception) -> EngineError:
    """The error for a Ray that cannot be started, or reached at an address."""
    problem = f"--address {address}: cannot connect to Ray"
    remedy = "Start it with ray start --head, or leave --address out."
    reason = error_line(error)
    if address == "local":
        problem = "Ray does not start on this machine"
        remedy = f"It needs memory, and space for files in {tempfile.gettempdir()}."
    elif address.startswith("ray://"):  # to which Ray sends no token unless told
        reason = error_line(error, -1)
        remedy = "If the cluster asks for a token, set RAY_AUTH_MODE=token."
        if isinstance(error, ConnectionAbortedError):  # Ray's server for this client died
            remedy = "Start the head node with GRPC_ENABLE_FORK_SUPPORT=0 if this goes on."
    return EngineError(f"{problem} ({reason}). {remedy}")


def _room(settings: BatchSettings, cluster: dict[str, float]) -> int:
    """How many actors fit into a cluster that has these cores and GPUs."""
    needs = {"CPU": settings.cpus, "GPU": settings.gpus}
    fits = [cluster.get(name, 0) / each for name, each in needs.items() if each]
    return int(min(fits, default=1))


def _run_on_ray(work: WorkList, stopping: Event) -> Outcomes:
    import ray
    from ray.exceptions import RayError, RayTaskError

    here, checked = ray.get_runtime_context().get_node_id(), time.monotonic()

    def check() -> None:
        """Refuse to wait if Ray on this machine has died: no answers come then, nor an error."""
        nonlocal checked
        if time.monotonic() - checked < _CHECK_S:
            return
        checked = time.monotonic()
        if not all(node["Alive"] for node in ray.nodes() if node["NodeID"] == here):
            raise EngineError("Ray on this machine has died. Run the same command again.")

    try:
        fit = work.settings.jobs or _room(work.settings, ray.cluster_resources())
        count = max(1, min(fit, len(work.units)))
        actors = [_Actor(work) for _ in range(count)]
        yield from _record_run(work, distribute(work, actors, stopping, check))
    except RayTaskError:  # a bug of ours, with the actor's traceback
        raise
    except RayError as error:  # not of a process's death, but of the cluster's
        raise EngineError(f"Ray failed: {error_line(error)} Run the same command again.") from error
    finally:
        ray.shutdown()


class _Actor:
    """An actor of Ray. Where it is lost, another is started as soon as there is room."""

    def __init__(self, work: WorkList) -> None:
        import ray
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

        # After NodeDiedError and ObjectLostError, what it had done is lost with its machine.
        deaths = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)
        self.deaths: tuple[type[Exception], ...] = deaths
        settings = work.settings
        self._class = ray.remote(WorkerHost).options(
            num_cpus=settings.cpus, num_gpus=settings.gpus, max_concurrency=2
        )
        self._arguments = (work.plan.folder, settings, *_device_and_threads(settings), Path.cwd())
        self._handle: Any = None

    def start(self) -> Answer:
        self.end(now=True)
        self._handle = self._class.remote(*self._arguments)
        return self.submit([], set())

    def submit(self, parcel: Sequence[Unit], finished_ids: set[str]) -> Answer:
        return self._handle.extract.remote(parcel, finished_ids).future()

    def stop(self) -> None:
        self._handle.stop.remote()

    def end(self, *, now: bool) -> None:  # noqa: ARG002 (what it has done is in the journal)
        import ray

        if self._handle and ray.is_initialized():  # else Ray would be started anew
            ray.kill(self._handle)


class ArrayTask:
    """A task of Slurm's array, which does some units of a work list. submitit pickles it.

    So it does many of the `Task`s that a batch consists of.
    """

    def __init__(self, work: WorkList, units: Sequence[Unit]) -> None:
        self._batch = batch_fingerprint(work.plan, work.key)
        self._plan = replace(work.plan, tasks=[task for unit in units for task in unit])
        self._units, self._settings = units, work.settings

    def __call__(self) -> None:
        """Do what is left of it in a process of its own, whose death this one can report."""
        device, threads = _device_and_threads(self._settings)  # not all threads of the machine
        with claim(self._plan.folder, self._batch):
            work = WorkList(self._plan, Journal(self._plan.folder), self._settings, self._units)
            processes = [_LocalProcess(work, device, threads)]
            for _ in _record_run(work, distribute(work, processes, Event())):
                pass

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again where Slurm takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def find_array(work: WorkList) -> str | None:
    """Slurm's number of the array that works on a batch now; None if there is none.

    Raises:
        OutputError: the array that works in its folder is of another batch.
    """
    folder, batch = work.plan.folder, batch_fingerprint(work.plan, work.key)
    try:
        array = json.loads((folder / "slurm/array.json").read_text())
        number = str(array["job"])
        is_other = array["batch"] != batch
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not _is_live(number):
        return None
    if is_other:
        raise another_batch(folder, f"is running in this folder as Slurm's array {number}")
    return number


def _is_live(array: str) -> bool:
    """Whether any task of an array runs or waits; also true if Slurm does not answer."""
    if not shutil.which("squeue"):
        return False  # the folder has left its cluster
    command = ["squeue", "--noheader", "--format=%i", f"--jobs={array}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return "Invalid job id" not in answer.stderr
    return bool(answer.stdout.strip())


def check_no_array(work: WorkList) -> None:
    """Refuse to do a batch, but by Slurm, in whose folder an array of Slurm works.

    Raises:
        OutputError: an array of the same batch has work left to do, or one of another batch works.
    """
    array = find_array(work)
    if array and work.todo and work.settings.backend != "slurm":
        raise OutputError(
            f"{work.plan.label}: Slurm's array {array} works on this batch. Wait until it has "
            f"ended, or end it with: scancel {array}"
        )


def find_or_submit(work: WorkList) -> str:
    """Slurm's number of the array that works on a work list.

    Of several commands that begin at once, one submits it.
    """
    from filelock import SoftFileLock, Timeout

    folder = work.plan.folder / "slurm"
    files.make_folders(folder)
    lock = SoftFileLock(folder / "submitting", timeout=_SUBMITTING_S)
    try:
        with lock:
            return find_array(work) or _submit(work)
    except Timeout as error:
        raise EngineError(
            f"{lock.lock_file}: another command has been submitting this batch for "
            f"{_SUBMITTING_S} s. If there is none, remove this file. Then try again."
        ) from error


def _submit(work: WorkList) -> str:
    import submitit
    from submitit.core.utils import FailedJobError

    settings, folder = work.settings, work.plan.folder / "slurm"
    executor = submitit.SlurmExecutor(folder.resolve(), _MOST_REQUEUES)
    executor.update_parameters(
        job_name="mcspex",
        time=settings.time_min,
        cpus_per_task=_device_and_threads(settings)[1],
        array_parallelism=settings.parallelism,
        partition=settings.partition,
        gpus_per_node=math.ceil(settings.gpus or 0) or None,
    )
    count = settings.jobs or min(
        _MOST_ARRAY_TASKS, math.ceil(total_s(work.todo) / _WORTH_AN_ARRAY_TASK_S)
    )
    parts = equal_parts(work.units, max(1, min(count, len(work.units))))
    try:
        with executor.batch():
            jobs = [executor.submit(ArrayTask(work, part)) for part in parts]
    except FailedJobError as error:
        raise EngineError(f"Slurm refused the array: {error_line(error)}") from error
    array = str(jobs[0].job_id.partition("_")[0])
    with files.whole(folder / "array.json") as path:
        path.write_text(json.dumps({"job": array, "batch": batch_fingerprint(work.plan, work.key)}))
    return array


def _run_on_slurm(work: WorkList, stopping: Event) -> Outcomes:
    """Submit a work list as an array, or find the one that works on it, and follow the journal."""
    folder, left = work.plan.folder, {task.id: task for task in work.todo}
    if storage.is_url(folder):
        raise EngineError(
            f"{storage.url(folder)}: Slurm's logs cannot be written to an object store. Choose an "
            "-o on a disk that all nodes share."
        )
    array = find_or_submit(work)
    while work.settings.wait and not stopping.is_set():
        live = _is_live(array)  # before the journal is read, which then is all there will be
        began = time.monotonic()
        journal = Journal(folder)
        reading_s = time.monotonic() - began
        for id_ in left.keys() & (journal.results.keys() | journal.failures.keys()):
            if line := journal.valid_result(left[id_], work.key):
                yield Outcome(left.pop(id_), line.result())
            elif reason := journal.failure(left[id_], work.key, array):
                yield Outcome(left.pop(id_), None, reason)
        if not left:
            return
        if not live:
            raise EngineError(
                f"Slurm's array {array} has ended with {len(left)} of its files left to do; "
                f"{folder / 'slurm'} has its logs. Run the same command again."
            )
        stopping.wait(max(_POLL_S, 10 * reading_s))  # so that little time goes into reading


@dataclass(frozen=True)
class Backend:
    """What can do a batch, a choice of --engine; a row of `BACKENDS`."""

    name: str
    help: str
    run: Callable[[WorkList, Event], Outcomes]
    options: tuple[str, ...]
    """Options of the command that mean something for it, and not for every backend."""
    module: str = ""
    """The package that it needs; the extra of mcspex that installs it has the backend's name."""
    program: str = ""
    """The program that it needs on the PATH."""

    def check(self) -> None:
        """Refuse a backend that this machine does not have, with an EngineError."""
        if self.module and not find_spec(self.module):
            need = f"--engine {self.name} needs {self.module}."
            raise EngineError(f"{need} {install_extra(self.name)}")
        if self.program and not shutil.which(self.program):
            raise EngineError(
                f"--engine {self.name}: {self.program} is not here. Start the command on a machine "
                "that can submit jobs, or choose another engine."
            )


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("local", "processes of this machine", _run_here, ("devices",)),
        Backend(
            "ray", "a Ray cluster", _run_on_ray, ("resources", "gpus", "address"), module="ray"
        ),
        Backend(
            "slurm",
            "an array of Slurm jobs",
            _run_on_slurm,
            ("resources", "gpus", "partition", "time_min", "parallelism", "wait"),
            module="submitit",
            program="sbatch",
        ),
    )
}
"""Every backend by its name."""
