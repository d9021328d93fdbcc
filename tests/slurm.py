"""A Slurm of two nodes on this machine, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
AuthType=auth/munge
CredType=cred/munge
# What is requeued waits until its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
KillWait=2
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=test Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def is_here() -> bool:
    """Whether Slurm and munge are installed, and may be started."""
    return all(map(shutil.which, PROGRAMS)) and os.geteuid() == 0


class Slurm:
    """munged, slurmctld and two slurmd on loopback; `configuration` is for SLURM_CONF."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.configuration = folder, folder / "slurm.conf"
        folder.chmod(0o755)
        (folder / "state").mkdir()
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        text = CONFIGURATION.format(folder=folder, ports=[free_port() for _ in range(3)])
        self.configuration.write_text(text)
        places = {"socket": "munge.socket", "key-file": "key", "pid-file": "munge.pid"}
        places |= {"log-file": "munge.log", "seed-file": "seed"}
        self._run("munged", "--force", *(f"--{name}={folder / at}" for name, at in places.items()))
        self._run("slurmctld")
        for node in ("one", "two"):
            self._run("slurmd", "-N", node)
        nodes = ("sinfo", "--noheader", "--format=%D %t")
        assert self._wait(lambda: self._run(*nodes).stdout.split() == ["2", "idle"], 60)

    def _wait(self, there: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (ended := there()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return ended

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        return subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> None:
        """End all jobs, then the daemons; what does not end soon is killed."""
        self._run("scancel", "--user=root")
        self._wait(lambda: not self._run("squeue", "--noheader").stdout, 10)
        names = ("one", "two", "slurmctld", "munge")
        daemons = [int((self.folder / f"{name}.pid").read_text()) for name in names]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for daemon in daemons:
                with suppress(ProcessLookupError):
                    os.kill(daemon, number)
            if self._wait(lambda: not any(Path(f"/proc/{one}").exists() for one in daemons), 10):
                return


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
