"""A Slurm cluster of several slurmd on this machine, for ``srun -N1 -w NODE`` as a way to a node.

All nodes are this machine: one host name, one file system. SLURMD_NODENAME tells a job
where it is; limits differ by what a slurmd was started with.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.life import Lab, leftovers
from tests.lab.requirements import LabError, find_program, missing

PROGRAMS = (
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("srun", "slurm-client"),
    ("munged", "munge"),
    ("prlimit", "util-linux"),
)

SLURM_CONF = """\
ClusterName=epdlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdTimeout=60
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName={prefix}[1-{count}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def unavailable() -> str | None:
    """Why a SlurmCluster cannot be started here, or None."""
    return missing(PROGRAMS)


def _free_ports(count: int) -> int:
    """First of ``count`` TCP ports in a row that nothing uses, outside the ephemeral range."""
    for first in range(17001, 31000, 64):
        sockets = []
        try:
            for port in range(first, first + count):
                probe = socket.socket()
                sockets.append(probe)
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return first
        finally:
            for probe in sockets:
                probe.close()
    raise LabError("no free ports for slurmd")


class SlurmCluster(Lab):
    """slurmctld, munged and ``count`` slurmd (node1, node2, ...), all state in a folder of its own."""

    def __init__(self, count: int = 2, *, prefix: str = "node", memlock_kib: int | None = None) -> None:
        super().__init__()
        self.names = tuple(f"{prefix}{index}" for index in range(1, count + 1))
        """Node names, as sinfo shows them."""
        self._prefix, self._memlock_kib = prefix, memlock_kib

    @property
    def env(self) -> dict[str, str]:
        """Environment in which srun, sbatch, sinfo and squeue find the cluster."""
        return {**os.environ, "SLURM_CONF": str(self.dir / "slurm.conf")}

    def run(self, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a Slurm client command; never raises for its rc."""
        return subprocess.run(
            list(argv),
            capture_output=True, text=True, timeout=timeout, env=self.env, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    # --- inner ----------------------------------------------------------

    def _unavailable(self) -> str | None:
        return unavailable()

    def _sweep(self) -> None:
        for folder in leftovers():
            _end_daemons(folder)

    def _start(self) -> None:
        self.dir.chmod(0o755)  # munged insists on folders that others cannot write, but may enter
        self._write_files()
        self._start_daemons()
        self._wait()

    def _stop(self) -> None:
        _end_daemons(self.dir)

    def _write_files(self) -> None:
        for name in ("state", "log", "munge", *(f"spool/{node}" for node in self.names)):
            (self.dir / name).mkdir(parents=True)
        key = self.dir / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        port = _free_ports(len(self.names) + 1)
        text = SLURM_CONF.format(
            dir=self.dir, host=socket.gethostname().partition(".")[0], port=port, prefix=self._prefix,
            count=len(self.names), first=port + 1, last=port + len(self.names),
        )  # fmt: skip
        (self.dir / "slurm.conf").write_text(text)

    def _daemon(self, program: str, *words: str) -> None:
        path = find_program(program)
        assert path is not None
        limit: list[str] = []
        if program == "slurmd" and self._memlock_kib is not None:
            limit = ["prlimit", f"--memlock={self._memlock_kib * 1024}:{self._memlock_kib * 1024}"]
        with (self.dir / "log" / f"start-{program}.log").open("ab") as log:
            done = subprocess.run(
                [*limit, path, *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, timeout=30,
            )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"{program} ended with {done.returncode}:\n{self._logs()}")

    def _start_daemons(self) -> None:
        munge = self.dir / "munge"
        paths = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--force", f"--socket={munge}/socket", *paths)
        self._daemon("slurmctld", "-f", str(self.dir / "slurm.conf"))
        for node in self.names:
            self._daemon("slurmd", "-f", str(self.dir / "slurm.conf"), "-N", node)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            done = self.run(["sinfo", "--noheader", "--states=idle", "--format=%D"])
            if done.stdout.strip() == str(len(self.names)):
                return
            time.sleep(0.1)
        raise LabError(f"the nodes did not become idle:\n{self._logs()}")

    def _logs(self) -> str:
        texts = {path.name: path.read_text(errors="replace") for path in sorted((self.dir / "log").iterdir())}
        return "\n".join(f"{name}: ...{text.strip()[-400:]}" for name, text in texts.items())


def _pids(mark: bytes) -> list[int]:
    """Daemons whose command line or environment (slurmstepd: only that) names this cluster's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            name = (entry / "comm").read_text().strip()
            if name not in ("munged", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"):
                continue
            if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found


def _end_daemons(folder: Path) -> None:
    """End all daemons and job steps of the cluster in this folder, by SIGKILL after 5 s."""
    mark = f"{folder}/".encode()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for _ in range(50):
            ours = _pids(mark)
            if not ours:
                return
            for pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.1)
