"""A throw-away SLURM on this machine: the real daemons of Debian's packages, virtual nodes, fake GPUs, no systemd.

Every daemon is a child of this process in the foreground, so that a dead one is reaped and known to be dead, whatever
this machine's first process does about orphans. Everything is written below one temporary directory, but for the
configuration: it must be in /etc/slurm, since Snakemake's executor drops SLURM_CONF. What was there is set aside and
put back. After a run that was killed, the next one ends its daemons and cleans up.

Nodes come in threes, one three for each scenario at a time: two workers, which jobs are bound to by the feature
`pair<k>`, and a third for a controller that is to be preempted, alone in the partition `lobby<k>`.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge", "slurmdbd", "mariadb-server")
COMMANDS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch")
ETC = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "cgroup.conf", "slurmdbd.conf")
MARK = "# The throw-away cluster of quadscape's tests in "
SAVED = ".before-quadscape"
DATABASE_SOCKET = "/run/mysqld/mysqld.sock"

# Less than any job of the workflow asks for.
CPU_MINUTES = 9
# Less than a long stage takes.
BRIEF_MINUTES = 1
# Declared per node, whatever the machine has: nothing here is to wait for resources.
CPUS, MEMORY_MB, GPUS = 16, 64000, 2
SLOTS = 5
# Character devices that are there anyway stand for GPUs; SLURM does not open them.
FAKE_GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")[:GPUS]

# Seconds. SLURM looks every 30 s whether a grace time or a time limit is over.
GRACE, LONG_GRACE, KILL_WAIT, NODE_TIMEOUT = 2, 60, 3, 20


class UnavailableError(Exception):
    """SLURM cannot run here; says why."""


def until(condition: Callable[[], object], seconds: float, what: str, poll: float = 0.2) -> None:
    """Waits for a condition.

    Raises:
        TimeoutError: It did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(poll)


def ask(*command: str, seconds: float = 30.0) -> str:
    """Output of a SLURM client, which may not hang.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def show_job(number: str) -> dict[str, str]:
    """What `scontrol show job` tells of a job."""
    return dict(word.split("=", 1) for word in ask("scontrol", "-o", "show", "job", number).split() if "=" in word)


def _succeeds(*command: str, seconds: float = 10.0) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, cwd="/").returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> None:
    """Installs Debian's packages where they are missing.

    Raises:
        UnavailableError: They cannot be installed here.
    """
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if os.geteuid():
        raise UnavailableError("the daemons of a SLURM cluster need root")
    if all(map(shutil.which, COMMANDS)):
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"SLURM is not installed, and there is no apt-get to install {' '.join(PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], capture_output=True, text=True, timeout=600, env=environment)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UnavailableError(f"apt-get {' '.join(command)} failed: {words[-1]}")


def _why_no_cgroups() -> str:
    """Why SLURM cannot use cgroups here; empty when it can."""
    mounts = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup"}
    for controller in ("freezer", "memory"):
        root = Path("/sys/fs/cgroup") / controller
        if str(root) not in mounts:
            return f"there is no cgroup v1 hierarchy {root} (v2 needs systemd)"
        try:
            (root / "quadscape_probe").mkdir()
            (root / "quadscape_probe").rmdir()
        except OSError as error:
            return f"cgroups cannot be made in {root}: {error.strerror}"
    return ""


@dataclass(frozen=True)
class Slot:
    """Three nodes for one scenario.

    Attributes:
        feature: Of the two workers.
        workers: Their names.
        lobby: Partition of the third node, preemptible.
        host: Name of the third node.
    """

    feature: str
    workers: tuple[str, str]
    lobby: str
    host: str


class Cluster:
    """The cluster.

    Attributes:
        slots: Threes of nodes.
        accounting: Whether slurmdbd and its database run.
        no_cgroups: Why jobs are not tracked and limited by cgroups; empty when they are.
    """

    def __init__(self, slots: int = SLOTS, accounting: bool = False) -> None:
        self.slots = [
            Slot(f"pair{k + 1}", (f"n{3 * k + 1}", f"n{3 * k + 2}"), f"lobby{k + 1}", f"n{3 * k + 3}")
            for k in range(slots)
        ]
        self.accounting = accounting
        self.no_cgroups = _why_no_cgroups()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._root = Path()
        self._lock = -1

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes."""
        return [name for slot in self.slots for name in (*slot.workers, slot.host)]

    # -----------------------------------------------------------------------------------------------------------------
    # Start and stop

    def start(self) -> None:
        """Starts everything, and waits until the nodes are idle.

        Raises:
            UnavailableError: It cannot run here.
        """
        install()
        self._lock = os.open("/run/quadscape-slurm.lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # one cluster at a time
        try:
            _clean_up_after_a_killed_run()
            if _succeeds("scontrol", "ping"):
                raise UnavailableError("this machine has a SLURM of its own, which the tests must not touch")
            self._root = Path(tempfile.mkdtemp(prefix="quadscape-slurm-", dir="/var/tmp"))
            self._root.chmod(0o755)
            for name in ("state", "log", "pid"):
                (self._root / name).mkdir()
            self._configure()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self._run("slurmctld", "slurmctld", "-D")
            for name in self.nodes:
                self.start_node(name)
            until(lambda: self._idle() == len(self.nodes), 60, "nodes that are idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends everything and removes what was written."""
        if "slurmctld" in self._daemons:
            with contextlib.suppress(Exception):
                ask("scancel", "--user", "root", "--full")
                until(lambda: not ask("squeue", "-h"), 20, "an empty queue")
        # Records are flushed from the controller to slurmdbd to the database.
        for name in [*self.nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self._end(name)
        if self._root != Path():
            _end_steps()
            _restore()
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = Path()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _run(self, name: str, *command: str, user: str | None = None) -> None:
        with (self._root / "log" / f"{name}.out").open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                start_new_session=True,
            )
        self._daemons[name] = child
        (self._root / "pid" / name).write_text(f"{child.pid} {command[0]}")

    def _end(self, name: str) -> None:
        child = self._daemons.pop(name, None)
        if child is None:
            return
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _idle(self) -> int:
        return sum(state.startswith("idle") for state in self.node_states().values())

    # -----------------------------------------------------------------------------------------------------------------
    # Parts

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        workers = ",".join(name for slot in self.slots for name in slot.workers)
        tracking = "linuxproc" if self.no_cgroups else "cgroup"
        lines = [
            f"{MARK}{self._root}",
            "ClusterName=quadscape",
            f"SlurmctldHost={host}(127.0.0.1)",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "AuthInfo=cred_expire=5",  # a requeued job waits that long
            f"StateSaveLocation={self._root}/state",
            f"SlurmdSpoolDir={self._root}/spool.%n",
            f"SlurmctldPidFile={self._root}/slurmctld.pid",
            f"SlurmdPidFile={self._root}/slurmd.%n.pid",
            f"SlurmctldLogFile={self._root}/log/slurmctld.log",
            f"SlurmdLogFile={self._root}/log/slurmd.%n.log",
            "ReturnToService=2",
            f"ProctrackType=proctrack/{tracking}",
            f"TaskPlugin=task/{'none' if self.no_cgroups else 'cgroup'}",
            f"JobAcctGatherType=jobacct_gather/{'linux' if self.accounting else 'none'}",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "SlurmdParameters=config_overrides",
            "GresTypes=gpu",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0",
            "PriorityType=priority/basic",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "JobRequeue=1",
            f"KillWait={KILL_WAIT}",
            "MinJobAge=7200",
            "SlurmctldTimeout=60",
            f"SlurmdTimeout={NODE_TIMEOUT}",
        ]
        if self.accounting:
            lines += [
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=localhost",
                "AccountingStoreFlags=job_comment",
                "AccountingStorageTRES=gres/gpu",
            ]
        for number, name in enumerate(self.nodes):
            feature = next((f" Feature={slot.feature}" for slot in self.slots if name in slot.workers), "")
            lines.append(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={17001 + number} CPUs={CPUS} "
                f"RealMemory={MEMORY_MB} Gres=gpu:{GPUS}{feature}"
            )
        preemptible = f"PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE}"
        lines += [
            f"PartitionName=cpu Nodes={workers} Default=YES PriorityTier=10 PreemptMode=OFF MaxTime={CPU_MINUTES}",
            f"PartitionName=gpu Nodes={workers} {preemptible}",
            f"PartitionName=gpucancel Nodes={workers} PriorityTier=1 PreemptMode=CANCEL GraceTime={GRACE}",
            f"PartitionName=gpupatient Nodes={workers} PriorityTier=1 PreemptMode=REQUEUE GraceTime={LONG_GRACE}",
            f"PartitionName=brief Nodes={workers} PriorityTier=10 PreemptMode=OFF MaxTime={BRIEF_MINUTES}",
            "PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF",
            *(f"PartitionName={slot.lobby} Nodes={slot.host} {preemptible}" for slot in self.slots),
        ]
        texts = {
            "slurm.conf": "\n".join(lines) + "\n",
            "gres.conf": "".join(
                f"NodeName={name} Name=gpu File={device}\n" for name in self.nodes for device in FAKE_GPUS
            ),
        }
        if not self.no_cgroups:
            texts["cgroup.conf"] = (
                "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=yes\nConstrainRAMSpace=yes\n"
            )
        if self.accounting:
            texts["slurmdbd.conf"] = (
                "AuthType=auth/munge\nDbdHost=localhost\nSlurmUser=root\nStorageType=accounting_storage/mysql\n"
                "StorageHost=localhost\nStorageUser=root\nStorageLoc=slurm_acct_db\n"
                f"LogFile={self._root}/log/slurmdbd.log\nPidFile={self._root}/slurmdbd.pid\n"
            )
        _set_aside()
        for name, text in texts.items():
            path = ETC / name
            path.write_text(text)
            path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)

    def _start_munge(self) -> None:
        if _succeeds("sh", "-c", "munge -n | unmunge"):
            return
        for directory in ("/run/munge", "/var/log/munge", "/var/lib/munge", "/etc/munge"):
            Path(directory).mkdir(parents=True, exist_ok=True)
            shutil.chown(directory, "munge", "munge")
        Path("/run/munge").chmod(0o755)
        key = Path("/etc/munge/munge.key")
        if not key.exists() or not key.stat().st_size:
            ask("mungekey", "--create", "--force")
        shutil.chown(key, "munge", "munge")
        key.chmod(0o400)
        self._run("munged", "munged", "--foreground", user="munge")
        until(lambda: _succeeds("sh", "-c", "munge -n | unmunge"), 20, "munge")

    def _start_accounting(self) -> None:
        if Path(DATABASE_SOCKET).exists() and _succeeds("mariadb-admin", "--socket", DATABASE_SOCKET, "ping"):
            raise UnavailableError(f"this machine has a database of its own at {DATABASE_SOCKET}")
        home = self._root / "database"
        for directory in (home, Path(DATABASE_SOCKET).parent):
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, "mysql", "mysql")
        ask(
            "mariadb-install-db",
            "--no-defaults",
            "--user=mysql",
            f"--datadir={home}",
            "--auth-root-authentication-method=socket",
            seconds=120,
        )
        self._run(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            f"--datadir={home}",
            f"--socket={DATABASE_SOCKET}",
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            user="mysql",
        )
        query = ["mariadb", "--no-defaults", "--socket", DATABASE_SOCKET, "-e", "create database slurm_acct_db"]
        until(lambda: _succeeds(*query), 60, "the database")
        self._run("slurmdbd", "slurmdbd", "-D")
        until(lambda: _succeeds("sacctmgr", "-n", "list", "cluster"), 60, "slurmdbd")
        ask("sacctmgr", "-i", "add", "cluster", "quadscape")

    # -----------------------------------------------------------------------------------------------------------------
    # Nodes

    def start_node(self, name: str) -> None:
        """Starts a node's slurmd."""
        self._run(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """SIGKILLs a node's slurmd, as if the node had gone; what ran there goes on."""
        child = self._daemons.pop(name)
        child.kill()
        child.wait()

    def node_states(self) -> dict[str, str]:
        """State of each node."""
        try:
            text = ask("sinfo", "-h", "-N", "-o", "%N %T")
        except (RuntimeError, subprocess.TimeoutExpired):
            return {}
        return dict(line.split() for line in text.splitlines())

    def log(self) -> str:
        """What the controller wrote last."""
        path = self._root / "log/slurmctld.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-40:]) if path.exists() else ""


@contextlib.contextmanager
def running(slots: int = SLOTS, accounting: bool = False) -> Generator[Cluster]:
    """A cluster that is stopped at the end."""
    cluster = Cluster(slots, accounting)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


# ---------------------------------------------------------------------------------------------------------------------
# What was there before


def _set_aside() -> None:
    ETC.mkdir(exist_ok=True)
    for name in FILES:
        path = ETC / name
        if path.exists():
            path.rename(f"{path}{SAVED}")


def _restore() -> None:
    for name in FILES:
        path = ETC / name
        path.unlink(missing_ok=True)
        saved = Path(f"{path}{SAVED}")
        if saved.exists():
            saved.rename(path)


def _command(pid: int) -> str:
    """Command line of a living process, else nothing."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _end_steps() -> None:
    """Ends the shepherds of jobs that outlived their node's daemon; they are a test cluster's, there is no other."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and re.match(r"slurmstepd: \[", _command(int(entry.name))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _clean_up_after_a_killed_run() -> None:
    """Ends the daemons of a run that was killed, known by its configuration, and removes what it wrote."""
    try:
        first = (ETC / "slurm.conf").read_text().partition("\n")[0]
    except FileNotFoundError:
        return
    if not first.startswith(MARK):
        return
    root = Path(first.removeprefix(MARK))
    for path in (root / "pid").glob("*"):
        pid, command = path.read_text().split()
        if command in _command(int(pid)):
            os.kill(int(pid), signal.SIGKILL)
    _end_steps()
    _restore()
    shutil.rmtree(root, ignore_errors=True)
