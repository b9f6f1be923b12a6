"""Debian's Slurm with two nodes on this machine: each has a network, processes, a name and temporary files of its own,
so that a Ray starts on each as it would on two machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.conftest import REPO

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter", "unshare")
NODES = ("n1", "n2")
CONFIG = """
ClusterName=biomedclip
SlurmctldHost=ctl({net}.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge iproute2"
    return "" if os.geteuid() == 0 else "namespaces of the network want root"


class Slurm:
    """A controller and two nodes of two CPUs, with addresses that only this machine knows."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="slurm", dir="/var/tmp"))
        self.temporary = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))  # an empty folder of its own on each node
        tag = f"{os.getpid() % 10_000:x}"
        self.bridge, self.spaces = f"bs{tag}", {node: f"bs{tag}{node}" for node in NODES}
        self.net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM", "SBATCH"))} | {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self.home / "slurm.conf"),
            "RAY_TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        """Bring the daemons up and wait for both nodes."""
        addresses = {node: f"{self.net}.{number}" for number, node in enumerate(NODES, start=11)}
        names = {"localhost": "127.0.0.1", "ctl": f"{self.net}.1", **addresses}
        hosts = self.home / "hosts"
        hosts.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
        (self.home / "state").mkdir()
        lines = [f"NodeName={node} NodeAddr={address} CPUs=2 State=UNKNOWN" for node, address in addresses.items()]
        (self.home / "slurm.conf").write_text(CONFIG.format(home=self.home, net=self.net, nodes="\n".join(lines)))
        self._munge()
        self._ip(f"link add {self.bridge} type bridge")
        self._ip(f"addr add {self.net}.1/24 dev {self.bridge}")
        self._ip(f"link set {self.bridge} up")
        own_hosts = f"mount --bind {hosts} /etc/hosts"
        self._daemon("unshare", "--uts", "--mount", "bash", "-c", f"hostname ctl; {own_hosts}; exec slurmctld -D")
        for node, address in addresses.items():
            (self.home / f"spool.{node}").mkdir()
            self._network(self.spaces[node], address)
            begin = f"hostname {node}; {own_hosts}; mount -t tmpfs none {self.temporary}; exec slurmd -D -N {node}"
            self._daemon(
                *("nsenter", f"--net=/run/netns/{self.spaces[node]}"),
                *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("bash", "-c", begin),
            )
        self.until(lambda: self.run("sinfo", "-h", "-o", "%t %D").split("\n")[:1] == ["idle 2"], "two idle nodes")

    def _munge(self) -> None:
        key, socket = self.home / "munge.key", self.home / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.home.chmod(0o711)
        files = [f"--{name}-file={self.home}/munged.{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *files)
        self.until(socket.exists, "munged")

    def _network(self, space: str, address: str) -> None:
        """A network of its own, tied to the bridge."""
        self._ip(f"netns add {space}")
        self._ip(f"link add {space}a type veth peer name {space}b")
        self._ip(f"link set {space}a master {self.bridge} up")
        self._ip(f"link set {space}b netns {space}")
        self._ip(f"-n {space} link set lo up")
        self._ip(f"-n {space} addr add {address}/24 dev {space}b")
        self._ip(f"-n {space} link set {space}b up")
        self._ip(f"-n {space} route add default via {self.net}.1")

    def run(self, *command: str, check: bool = False) -> str:
        done = subprocess.run(command, env=self.env, cwd=REPO, capture_output=True, text=True, check=False, timeout=60)
        assert not (check and done.returncode), done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        """sbatch; the job's number."""
        return self.run("sbatch", "--parsable", *arguments, check=True)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self._told(job, "JobState")

    def minutes(self, job: str) -> int:
        """Whole minutes that it has run."""
        hours, minutes, _ = self._told(job, "RunTime").split(":")
        return 60 * int(hours) + int(minutes)

    def _told(self, job: str, field: str) -> str:
        return self.run("scontrol", "show", "job", "-o", job).partition(f" {field}=")[2].partition(" ")[0]

    def limit(self, job: str, minutes: int) -> None:
        """Another time limit for a job."""
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}", check=True)

    def again(self, job: str) -> None:
        """Wait until a job that was queued again runs: Slurm leaves it for two minutes, and one that is started sooner
        may meet its own end on a node, which then refuses it.
        """
        self.until(lambda: self.state(job) == "PENDING", f"{job} queued again", 240)
        self.until(lambda: self.state(job) == "RUNNING", f"{job} running again", 300)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(self.home.glob("*.log"))
        )

    def close(self) -> None:
        self.run("scancel", "--full", "--user=root", "--signal=KILL")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGKILL)  # with a node's own init go all its processes
            daemon.wait(30)
        for space in self.spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _ip(self, command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True)

    def _daemon(self, *command: str) -> None:
        log = self.home / f"daemon-{len(self.daemons)}.log"
        with log.open("wb") as output:
            self.daemons.append(
                subprocess.Popen(command, env=self.env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            )
