"""A Slurm cluster of real daemons on this machine: every node has its own network, host name and slurmd.

A node is a process that holds a network, host name and mount namespace; the namespaces and the cable to the bridge
go with it, so a test run that is killed leaves no interface behind. All daemons stay in the foreground as children
of the test, and end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "ip", "nsenter", "unshare")
SUBNET = "10.232.0"
CONTROLLER_PORT, NODE_PORT = 6817, 6818  # the daemons have networks of their own, so nothing can be in the way
CPUS = 4
START_SECONDS = 30.0
ACCOUNTS = """
-- Answers as a site with accounting does, which needs a data base: partition lab wants an account, and knows one.
function slurm_job_submit(job, partitions, user)
    if job.partition == "lab" and job.account ~= "physics" then return slurm.ESLURM_INVALID_ACCOUNT end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""


def reason_to_skip() -> str | None:
    """Why no cluster can run here, or None."""
    if os.geteuid() != 0:
        return "network namespaces and slurmd need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge iproute2)"
    held = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"no namespaces here: {held.stderr.strip()}" if held.returncode else None


class Cluster:
    """Context manager: munged, slurmctld and a slurmd a node.

    nodes: number of fake GPUs by node name; the first node is the first of the default order. silent_seconds: after
    which a node that doesn't answer is down; a busy machine needs many.
    """

    def __init__(self, nodes: dict[str, int], silent_seconds: int = 300) -> None:
        self.nodes = nodes
        self.silent_seconds = silent_seconds
        # Not below pytest's folder, which only its owner may enter: munge refuses a socket there.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._children: list[subprocess.Popen[Any]] = []
        self._holders: dict[str, int] = {}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.client("scancel", "--user=root")
            wait_for(lambda: not self.client("squeue", "--noheader"), 15)
        self._end()

    def client(
        self, *command: str, environment: dict[str, str] | None = None, cwd: Path | None = None, seconds: float = 20
    ) -> str:
        """Runs a command as a user on the login node; returns its standard output."""
        done = subprocess.run(
            ["nsenter", f"--target={self._holders['controller']}", "--net", *command],
            env={**self._environment(), **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout.strip()

    def commands(self) -> dict[str, str]:
        """Variables with which Slurm's commands do, in any process, what they do on the login node."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        enter = f"nsenter --target={self._holders['controller']} --net"
        for program in ("sbatch", "scontrol", "sinfo", "squeue", "scancel"):
            path = folder / program
            path.write_text(f'#!/bin/sh\nexec {enter} {shutil.which(program)} "$@"\n')
            path.chmod(0o755)
        return {**self._environment(), "PATH": f"{folder}:{os.environ['PATH']}"}

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` knows: JobState, Restarts, ExitCode, ..."""
        words = self.client("scontrol", "show", "job", number, "--oneliner").split()
        return dict(word.partition("=")[::2] for word in words)

    def processes(self, node: str) -> list[psutil.Process]:
        """Everything that runs on a node."""
        holder = self._holders[node]
        network = os.readlink(f"/proc/{holder}/ns/net")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if process.pid != holder and os.readlink(f"/proc/{process.pid}/ns/net") == network:
                    found.append(process)
        return found

    def kill(self, node: str) -> None:
        """As when its power fails: slurmd and all jobs' processes are gone, and say nothing."""
        for process in self.processes(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def wait_for_end(self, number: str, seconds: float) -> dict[str, str]:
        """Returns `job` as soon as it is neither waiting nor running. Raises TimeoutError."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        try:
            wait_for(lambda: self.job(number)["JobState"] in ended, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"job {number} is {self.job(number)['JobState']}: {error}\n{self.logs()}") from None
        return self.job(number)

    def _start(self) -> None:
        self.folder.chmod(0o755)
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir()
        self._start_munge()
        addresses = {"controller": f"{SUBNET}.254"}
        addresses |= {node: f"{SUBNET}.{number}" for number, node in enumerate(self.nodes, 1)}
        hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        for name in addresses:
            self._hold_namespaces(name)
        self._wire(addresses)
        self._write_settings(addresses)
        self._daemon("controller", "slurmctld", "-D")
        for node in self.nodes:
            self._daemon(node, "slurmd", "-D", "-N", node)
        try:
            wait_for(self._all_idle, START_SECONDS)
        except TimeoutError:
            raise RuntimeError(f"cluster didn't start:\n{self.logs()}") from None

    def _all_idle(self) -> bool:
        ask = ("sinfo", "--Node", "--noheader", "--partition=main", "--format=%T")
        with contextlib.suppress(subprocess.SubprocessError):
            return self.client(*ask).split() == ["idle"] * len(self.nodes)
        return False

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        tails = [f"{path.name}:\n" + path.read_text()[-1500:] for path in sorted((self.folder / "log").iterdir())]
        return "\n".join(tails)

    def _start_munge(self) -> None:
        """A key and a socket of our own, so that the machine's munge plays no part."""
        key = self.folder / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(128))
        self._run(
            *("munged", "--foreground", f"--key-file={key}", f"--socket={self.folder}/munge.sock"),
            *(f"--pid-file={self.folder}/munge.pid", f"--seed-file={self.folder}/munge.seed"),
            log="munged",
        )
        wait_for((self.folder / "munge.sock").exists, 10)

    def _hold_namespaces(self, name: str) -> None:
        """Starts the process that is the machine `name`."""
        set_up = (
            'ip link set lo up && hostname "$1" && mount --bind "$2" /etc/hosts && echo ready && exec sleep infinity'
        )
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", set_up, "sh", name, str(self.folder / "hosts")],
            stdout=subprocess.PIPE,
            preexec_fn=_die_with_parent,
        )
        self._children.append(holder)
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no namespaces for {name}")
        self._holders[name] = holder.pid

    def _wire(self, addresses: dict[str, str]) -> None:
        """A bridge in the controller's network, and a cable from it to each node."""
        self._inside("controller", "ip", "link", "add", "bridge0", "type", "bridge")
        self._inside("controller", "ip", "link", "set", "bridge0", "up")
        self._inside("controller", "ip", "address", "add", f"{addresses['controller']}/24", "dev", "bridge0")
        for node in self.nodes:
            cable = ("type", "veth", "peer", "name", "eth0", "netns", str(self._holders[node]))
            self._inside("controller", "ip", "link", "add", f"to-{node}", *cable)
            self._inside("controller", "ip", "link", "set", f"to-{node}", "master", "bridge0", "up")
            self._inside(node, "ip", "address", "add", f"{addresses[node]}/24", "dev", "eth0")
            self._inside(node, "ip", "link", "set", "eth0", "up")

    def _write_settings(self, addresses: dict[str, str]) -> None:
        folder = self.folder
        lines = [
            "ClusterName=test",
            f"SlurmctldHost=controller({addresses['controller']})",
            f"SlurmctldPort={CONTROLLER_PORT}",
            "AuthType=auth/munge",
            # A requeued job waits until its old credential has expired: two minutes unless told, at least five seconds.
            f"AuthInfo=socket={folder}/munge.sock,cred_expire=5",
            "SlurmUser=root",
            "SlurmdUser=root",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool/%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/%n.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1",
            # Nodes claim more CPUs than the machine may have.
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "KillWait=10",
            f"SlurmdTimeout={self.silent_seconds}",
            "GresTypes=gpu",
            "JobSubmitPlugins=lua",
            "PartitionName=main Nodes=ALL Default=YES State=UP",
            "PartitionName=lab Nodes=ALL State=UP",
        ]
        devices = []
        for node, gpus in self.nodes.items():
            own = f"Gres=gpu:{gpus} " if gpus else ""
            lines.append(
                f"NodeName={node} NodeAddr={addresses[node]} Port={NODE_PORT} CPUs={CPUS} RealMemory=4000 {own}"
            )
            for number in range(gpus):
                device = folder / f"{node}-gpu{number}"
                os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))  # slurmd insists on a character device
                devices.append(f"NodeName={node} Name=gpu File={device}")
        (folder / "job_submit.lua").write_text(ACCOUNTS)
        (folder / "slurm.conf").write_text("".join(line + "\n" for line in lines))
        (folder / "gres.conf").write_text("".join(line + "\n" for line in devices))

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        # Tests that are of the pre-flight switch it on: it takes longer than most of what the others do.
        return {**clean, "SLURM_CONF": str(self.folder / "slurm.conf"), "LDM_PREFLIGHT": "off"}

    def on_node(self, name: str, *command: str) -> None:
        """Runs a command as root of a node, with its network and its mounts."""
        holder = f"--target={self._holders[name]}"
        subprocess.run(["nsenter", holder, "--net", "--mount", *command], check=True, capture_output=True, text=True)

    def _inside(self, name: str, *command: str) -> None:
        enter = ["nsenter", f"--target={self._holders[name]}", "--net"]
        subprocess.run([*enter, *command], check=True, capture_output=True, text=True)

    def _daemon(self, name: str, *command: str) -> None:
        # The host name and /etc/hosts are the node's, for the daemon and for the jobs that it starts.
        self._run("nsenter", f"--target={self._holders[name]}", "--net", "--uts", "--mount", *command, log=name)

    def _run(self, *command: str, log: str) -> None:
        with (self.folder / "log" / log).open("w") as file:
            self._children.append(
                subprocess.Popen(
                    command,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_die_with_parent,
                )
            )

    def _end(self) -> None:
        """Ends the daemons, then their machines, last started first."""
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Returns as soon as the condition holds. Raises TimeoutError when it doesn't in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {seconds:.0f} s")
        time.sleep(0.2)


def _die_with_parent() -> None:
    """Asks the kernel to end this process when the test's process ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
