"""One batch on this machine, on Ray and on Slurm, with workers that are killed: equal bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mcspex_cli import audio
from mcspex_cli.__main__ import main
from mcspex_cli.batch import backends
from mcspex_cli.batch.journal import Journal
from mcspex_cli.batch.plan import BatchRequest, BatchSettings, plan_batch
from mcspex_cli.batch.worklist import WorkList, open_work
from mcspex_cli.checkpoint.checkpoint import find_checkpoint
from tests.conftest import RATE_HZ, ROOT, buzz
from tests.slurm import Slurm, free_port, is_here

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

needs_slurm = pytest.mark.skipif(not is_here(), reason="slurm and munge are not installed")

COUNT, BROKEN = 60, "mix/31.wav"


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """What workers that clusters start find: this package, and one thread as the tests have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
        yield


@pytest.fixture(scope="module")
def set_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty mixtures of many lengths, one of them broken, and a reference."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "mix").mkdir()
    audio.write(folder / "ref.wav", buzz(110, 3, 3), RATE_HZ)
    for number in range(COUNT):
        sound = buzz(100 + number, 0.5 + number % 13 / 10, number)
        audio.write(folder / f"mix/{number:02}.wav", sound, RATE_HZ)
    (folder / BROKEN).write_text("no sound")
    return folder


def run(output: str, model: Path, *more: str, mixtures: str = "mix") -> Result:
    asked = ["batch", mixtures, "--ref", "ref.wav", "-o", f"{output}/out", "--model", str(model)]
    here = () if "--engine" in more else ("--devices", "cpu", "--jobs", "1")
    return CliRunner().invoke(main, [*asked, *more, *here])


@pytest.fixture(scope="module")
def whole(set_: Path, tiny_folder: Path) -> Path:
    """The set, with whole/out from one process that nothing disturbed."""
    before = Path.cwd()
    torch.set_num_threads(1)  # as many as the workers have, which decides the last bit
    os.chdir(set_)
    try:
        done = run("whole", tiny_folder)
    finally:
        os.chdir(before)
    assert done.exit_code == 3, done.output
    return set_


@pytest.fixture(autouse=True)
def _here(set_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(set_)


def work_list(output: str, mixtures: str, settings: BatchSettings) -> WorkList:
    clip = (Path("ref.wav"),)
    request = BatchRequest(Path(output, "out"), [Path(mixtures)], references=clip)
    with open_work(plan_batch(request), settings) as work:
        return work


def contents(output: str) -> dict[str, bytes]:
    """A batch's files, but for the journal, the logs of Slurm, and the times in run.json."""
    folder = Path(output, "out")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    paths = (path for path in paths if path.parts[0] not in ("journal", "slurm", "run.json"))
    return {str(path): (folder / path).read_bytes() for path in paths}


def assert_like_whole(output: str) -> None:
    assert contents(output).keys() == contents("whole").keys()
    assert contents(output) == contents("whole")


def ended(output: str) -> int:
    """How many tasks have ended."""
    journal = Journal(Path(output, "out"))
    return len(journal.results) + len(journal.failures)


def wait_for(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # what is looked at costs time of the one core that all have


def meanwhile(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do)
    thread.start()
    return thread


def actors(holding: str = "") -> list[int]:
    """The processes of Ray's actors that work for this folder, with a file of that name open."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            ours = (folder / "cwd").readlink() == Path.cwd().resolve()
            if ours and b"ray::WorkerHost" in (folder / "cmdline").read_bytes():
                links = [str(link.readlink()) for link in (folder / "fd").iterdir()]
                if not holding or any(link.endswith(f"/{holding}") for link in links):
                    found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture(scope="module")
def cluster(_environment: None) -> Iterator[Any]:
    """A Ray cluster of one node of one core; tests add the second."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    port = free_port()
    only = {"include_dashboard": False, "ray_client_server_port": port}
    with warnings.catch_warnings():  # Ray leaves its client server's logs open
        warnings.simplefilter("ignore", ResourceWarning)
        head = Cluster(initialize_head=True, head_node_args={**small, **only})
    head.client = f"ray://{head.head_node.node_ip_address}:{port}"
    head.small = small
    yield head
    head.shutdown()


def test_ray_goes_on_with_what_this_machine_began_and_loses_a_worker_and_a_node(
    cluster: Any, whole: Path, tiny_folder: Path
) -> None:
    def interrupt() -> None:
        wait_for(lambda: Path("ray/out/journal").is_dir() and ended("ray") >= 3)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = meanwhile(interrupt)
    begun = run("ray", tiny_folder)
    interrupting.join()
    assert begun.exit_code == 130, begun.output
    node = cluster.add_node(**cluster.small)
    had = [ended("ray")]

    def harm() -> None:
        wait_for(lambda: ended("ray") >= had[0] + 3)
        wait_for(actors)
        os.kill(actors()[0], signal.SIGKILL)
        had.append(ended("ray"))
        wait_for(lambda: ended("ray") >= had[1] + 3)
        cluster.remove_node(node, allow_graceful=False)
        had.append(ended("ray"))

    harming = meanwhile(harm)
    done = run(
        *("ray", tiny_folder, "--engine", "ray", "--resources", "cpu=1"),
        *("--address", cluster.address),
    )
    harming.join()
    assert done.exit_code == 3, done.output
    assert 3 <= had[0] < had[1] < had[2] < COUNT
    assert_like_whole("ray")


def test_a_file_that_workers_die_of_has_failed(
    cluster: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcspex_cli.batch.workers.DEATHS_PER_FILE", 1)  # test_deal counts to three
    Path("few").mkdir()
    audio.write("few/poison.wav", buzz(100, 110), RATE_HZ)  # read ahead, not at once
    for number in range(3):
        audio.write(f"few/{number}.wav", buzz(100, 1, number), RATE_HZ)
    over = threading.Event()

    def harm() -> None:
        while not over.wait(0.01):
            for actor in actors("poison.wav"):
                os.kill(actor, signal.SIGKILL)
                over.set()

    harming = meanwhile(harm)
    try:
        done = run(
            *("poison", tiny_folder, "--engine", "ray", "--resources", "cpu=1"),
            *("--address", cluster.client),
            mixtures="few",
        )
    finally:
        over.set()
        harming.join()
    assert done.exit_code == 3, done.output
    journal = Journal(Path("poison/out"))
    assert journal.failures.keys() == {"poison"}
    assert journal.results.keys() == {"0", "1", "2"}
    assert "few/poison.wav: 1 processes that worked on it were killed, one after" in done.stderr


def test_a_cluster_that_is_not_there_and_more_than_there_is_are_refused(
    cluster: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.util.client.worker.INITIAL_TIMEOUT_SEC", 0.1)
    monkeypatch.setattr("ray.util.client.worker.MAX_TIMEOUT_SEC", 0.1)
    nowhere = f"ray://127.0.0.1:{free_port()}"
    done = run("none", tiny_folder, "--engine", "ray", "--address", nowhere)
    assert done.exit_code == 1
    assert f"--address {nowhere}: cannot connect to Ray (ray client connection" in done.stderr
    nowhere = f"127.0.0.1:{free_port()}"  # for which Ray itself would wait many minutes
    done = run("none", tiny_folder, "--engine", "ray", "--address", nowhere)
    assert done.exit_code == 1
    assert f"--address {nowhere}: cannot connect to Ray (" in done.stderr
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    done = run(
        *("more", tiny_folder, "--engine", "ray", "--resources", "cpu=64"),
        *("--address", "auto"),
    )
    assert done.exit_code == 1
    assert "and a worker needs 64 and 0. Ask for less with --resources." in done.stderr
    import ray

    ray.shutdown()


def test_a_ray_that_dies_on_the_machine_of_the_command_ends_it(
    whole: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setattr("mcspex_cli.batch.backends._CHECK_S", 0.5)
    names = ("initial_delay_ms", "period_ms", "failure_threshold")
    soon = {f"health_check_{name}": value for name, value in zip(names, (0, 200, 2), strict=True)}
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    head = Cluster(initialize_head=True, head_node_args={**small, "_system_config": soon})

    def harm() -> None:
        wait_for(lambda: Path("lost/out/journal").is_dir() and ended("lost") >= 3)
        os.kill(head.head_node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    harming = meanwhile(harm)
    try:
        asked = ("--engine", "ray", "--resources", "cpu=1", "--address", head.address)
        done = run("lost", tiny_folder, *asked)
    finally:
        harming.join()
        head.shutdown()
    assert done.exit_code == 1, done.output
    assert "error: Ray on this machine has died. Run the same command again." in done.stderr
    assert run("lost", tiny_folder).exit_code == 3
    assert_like_whole("lost")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    pytest.importorskip("submitit", reason="submitit is not installed")
    daemons = Slurm(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(daemons.configuration))
        yield daemons
    daemons.stop()


@needs_slurm
def test_slurm_loses_and_requeues_jobs_and_gives_the_same(
    slurm: Slurm, whole: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("slurm", tiny_folder, "--engine", "slurm", "--resources", "cpu=1")
    monkeypatch.setattr(backends, "_POLL_S", 0.5)
    settings = BatchSettings(find_checkpoint(tiny_folder), jobs=3, backend="slurm", cpus=1)
    work = work_list("slurm", "mix", settings)

    with ThreadPoolExecutor(2) as commands:  # at once
        (job,) = set(commands.map(backends.find_or_submit, [work, work]))
    begun = run(*asked, "--no-wait")
    assert begun.exit_code == 0, begun.output
    assert "works on 60 files. Run the same command again, without --no-wait" in begun.stderr
    for other in (("--level", "peak"), ("--ref", "mix/01.wav")):
        refused = run(*asked, "--overwrite", *other)
        assert refused.exit_code == 1
        assert f"is running in this folder as Slurm's array {job}. Wait until" in refused.stderr
    here = run("slurm", tiny_folder, "--overwrite", "--level", "peak")
    assert here.exit_code == 1
    assert "is running in this folder" in here.stderr  # be its tasks begun, or waiting
    here = run("slurm", tiny_folder)
    assert here.exit_code == 1
    assert re.search("works on this batch. Wait|same batch is running in this", here.stderr)
    wait_for(lambda: ended("slurm") >= 3)
    subprocess.run(["scontrol", "requeue", f"{job}_0"], check=True)
    subprocess.run(["scancel", f"{job}_2"], check=True)
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_for(lambda: signal.getsignal(signal.SIGINT) is not before)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = meanwhile(interrupt)
    left = run(*asked)
    interrupting.join()
    assert left.exit_code == 130, left.output
    assert f"Slurm's array {job} works on " in left.stderr
    lost = run(*asked)
    assert lost.exit_code == 1, lost.output
    assert f"Slurm's array {job} has ended with " in lost.stderr
    done = run(*asked, "--jobs", "1")
    assert done.exit_code == 3, done.output
    assert_like_whole("slurm")


@pytest.mark.skipif(is_here(), reason="a real Slurm has run shares just now")
def test_a_share_runs_under_submitit(whole: Path, tiny_folder: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    settings = BatchSettings(find_checkpoint(tiny_folder), devices=("cpu",), backend="slurm")
    work = work_list("share", "mix/01.wav", settings)
    share = backends.ArrayTask(work, work.units)
    submitit.LocalExecutor("share/logs").submit(share).result()
    assert (
        Path("share/out/audio/01.wav").read_bytes() == Path("whole/out/audio/01.wav").read_bytes()
    )
    assert share.checkpoint().function is share


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ray", "--engine ray needs ray. Run in a checkout of mcspex: pip install '.[ray]'"),
        ("slurm", "--engine slurm: sbatch is not here. Start the command on a machine that can"),
    ],
)
def test_an_engine_that_is_not_here_says_what_is_missing(
    tiny_folder: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setattr(backends, "find_spec", lambda module: module != "ray")
    monkeypatch.setenv("PATH", "")
    done = run("absent", tiny_folder, "--engine", name)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not Path("absent").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        *(
            (("--engine", "ray", "--resources", text), "is neither cpu=N nor gpu=N, as in gpu=1,")
            for text in ("cpu", "tpu=1", "gpu=-1", "cpu=1,gpu=x", "gpu=0.00001")
        ),
        (
            ("--engine", "ray", "--resources", "gpu=1.5"),
            "'gpu=1.5': above 1 only whole numbers are",
        ),
        (("--engine", "ray", "--resources", "cpu=5000"), "'cpu=5000': at most 4096 are possible."),
        (("--engine", "ray", "--devices", "cpu"), "--devices is for --engine local."),
        (("--engine", "slurm", "--time", "1"), "1 is not in the range x>=5."),
        (("--engine", "local", "--gpus", "1"), "--gpus is for --engine ray or slurm."),
        (("--engine", "ray", "--time", "5"), "--time is for --engine slurm."),
        (("--engine", "ray", "--address", ""), "'--address': it is empty."),
        (("--engine", "slurm", "--partition", ""), "'--partition': it is empty."),
        (("--engine", "dask"), "'dask' is none of local, ray, slurm."),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(
    tiny_folder: Path, asked: tuple[str, ...], message: str
) -> None:
    done = run("absent", tiny_folder, *asked)
    assert done.exit_code == 2
    assert message in done.stderr
