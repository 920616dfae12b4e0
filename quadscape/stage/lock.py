"""Who is at work on a stage: one owner at a time, who shows a heartbeat, and fencing of those thought dead."""

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadscape.amounts import format_seconds
from quadscape.digests import canonical
from quadscape.durable import create, write_whole
from quadscape.errors import FencedError
from quadscape.stage.events import Log

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lock whose heartbeat has not moved for this long, on the observer's own clock, has no living owner."""


REMIND_SECONDS = 600.0
"""How often whoever waits says again for what."""


def process_state(pid: int) -> tuple[str, str] | None:
    """State letter and start time in clock ticks of a process; None when hidden, or not alive (a zombie is not)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else (fields[0], fields[19])


def process_is_hidden(pid: int) -> bool:
    """Whether there is a process of which nothing can be seen: another user's, where /proc hides those (hidepid)."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.access(f"/proc/{pid}/stat", os.R_OK)
    except (OSError, OverflowError):
        pass
    return False


def process_is_alive(pid: Any) -> bool:
    """Whether there is a process of that number on this machine."""
    return isinstance(pid, int) and (process_state(pid) is not None or process_is_hidden(pid))


def this_machine() -> list[str]:
    """What must be equal for process ids to be comparable: host, boot and pid namespace."""
    found = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    ):
        try:
            found.append(read())
        except OSError:
            found.append("")
    return found


_STOPPED = {"T", "t"}
OUTGOING, INCOMING = "outgoing", "incoming"
"""What is being set aside or taken back (`quadscape.stage.superseded`), handed on from a killed owner to the next."""
RELEASED = b"released    "
"""Stands where the heartbeat's count was, and is as long."""


@dataclass(frozen=True)
class Owner:
    """The last owner of a stage directory, as its lock tells.

    Attributes:
        number: Of the ownership, growing by one with each.
        record: Token, host, pid and the like; empty when it is damaged.
        beat: The heartbeat's count, or `RELEASED`.
    """

    number: int
    record: dict[str, Any]
    beat: bytes

    @property
    def released(self) -> bool:
        """Whether the owner gave the lock back."""
        return self.beat == RELEASED

    def __str__(self) -> str:
        return f"{self.record.get('host', '?')}:{self.record.get('pid', '?')}"

    def is_alive(self, directory: Path) -> bool | None:
        """Whether the owner is certainly at work here, or certainly not; None when only its heartbeat can tell."""
        # A copied directory brings its lock along; its inode tells that the owner is at work elsewhere. The device
        # number would not do: NFS gives each client its own.
        if self.released or self.record.get("inode") != directory.stat().st_ino:
            return False
        if self.record.get("machine") != this_machine() or self.record.get("started") is None:
            return None
        pid = self.record.get("pid", -1)
        state = process_state(pid)
        if state is None and isinstance(pid, int) and process_is_hidden(pid):
            return None  # the number may be another process's by now
        if state is None or state[1] != self.record["started"]:
            return False
        return None if state[0] in _STOPPED else True

    def is_stopped(self, directory: Path) -> bool:
        """Whether the owner is here, and was stopped: it goes on when whoever did that lets it."""
        if self.is_alive(directory) is not None or self.record.get("machine") != this_machine():
            return False
        state = process_state(self.record.get("pid", -1))
        return state is not None and state[0] in _STOPPED


_BEAT = """
import os, select, sys
descriptor, offset, parent, seconds = (*map(int, sys.argv[1:4]), float(sys.argv[4]))
count = 0
while not select.select([0], [], [], seconds)[0] and os.getppid() == parent:
    try:
        state = open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        state = "?"
    if state not in {"T", "t"}:
        count += 1
        try:
            os.pwrite(descriptor, b"%012d" % count, offset)
            os.fsync(descriptor)
        except OSError:
            pass
"""
"""The heartbeat, in a process of its own: a thread stands still while, for example, SciPy's `eigh` holds the
interpreter for an hour. It ends with its parent (end of file on its input), and pauses while the parent is stopped."""


def present_owner(directory: Path) -> Owner | None:
    """The last owner of a stage directory.

    Args:
        directory: The stage's directory.

    Returns:
        The owner, alive or not; None when there was never one.
    """
    root = directory / "lock"
    try:
        numbers = [int(path.name) for path in root.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return None
    if not numbers:
        return None
    try:
        head, _, beat = (root / str(max(numbers)) / "owner").read_bytes().partition(b"\n")
        record = json.loads(head)
    except (FileNotFoundError, ValueError):
        record, beat = {}, b""
    return Owner(max(numbers), record if isinstance(record, dict) else {}, beat)


class Lock:
    """Ownership of a stage directory: a numbered directory `lock/<n>`; the highest number owns.

    Only one process can create a number (renaming a directory onto one that is not empty fails, on NFS too), and the
    highest number is never removed, only followed by the next. So two that take over at once cannot both succeed,
    however long either was stopped in between. The owner's record and its heartbeat are in the file `owner`; beside it
    the owner prepares what it will rename into the stage. The next owner moves that workspace away first of all.

    Attributes:
        token: Random name of this owner.
        workspace: Directory of this owner, on the stage's file system.
    """

    def __init__(self, directory: Path, heartbeat: float, stale_after: float) -> None:
        self._directory, self._root = directory, directory / "lock"
        self._heartbeat, self._stale_after = heartbeat, stale_after
        self.token = uuid.uuid4().hex
        self.workspace = self._root
        self._number = 0
        self._descriptor = -1
        self._beating: subprocess.Popen[bytes] | None = None

    def acquire(self, log: Log, event: Callable[..., None]) -> None:
        """Waits while another owner lives, then takes the lock.

        Args:
            log: Where to say that it waits.
            event: Where to record a takeover.
        """
        poll = min(1.0, self._heartbeat)
        seen: tuple[int, bytes] | None = None
        quiet, waited, said = 0.0, 0.0, -1
        while True:
            owner = present_owner(self._directory)
            if owner is None:
                if self._claim(1):
                    break
                continue
            alive = owner.is_alive(self._directory)
            if alive or (owner.number, owner.beat) != seen:
                # What counts is how often this process looked: a clock goes on while the observer itself is stopped.
                seen, quiet = (owner.number, owner.beat), 0.0
            if alive is False or quiet > self._stale_after:
                if self._claim(owner.number + 1):
                    if not owner.released:
                        log(f"Took over from {owner}, which is gone.")
                        event("takeover", previous=str(owner))
                    break
                continue
            if said != owner.number:
                log(f"Waiting: {owner} is at work in {self._directory}.")
                event("wait", owner=str(owner))
                said, waited = owner.number, 0.0
            elif waited % REMIND_SECONDS < poll <= waited:
                log(f"Waiting, for {format_seconds(waited)}: {owner} is at work in {self._directory}.")
                event("wait", owner=str(owner))
            time.sleep(poll)
            quiet, waited = quiet + poll, waited + poll
        self._fence()
        command = [sys.executable, "-I", "-S", "-c", _BEAT, self._descriptor, self._head, os.getpid(), self._heartbeat]
        self._beating = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._descriptor,),
        )

    def _claim(self, number: int) -> bool:
        """Tries to create a number; False when another process was faster."""
        record = {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": this_machine(),
            "pid": os.getpid(),
            "started": (process_state(os.getpid()) or (None, None))[1],
            "inode": self._directory.stat().st_ino,
        }
        head = canonical(record).encode() + b"\n"
        draft = self._root / f"new.{self.token}"
        mine = False
        try:
            draft.mkdir(parents=True, exist_ok=True)
            self._descriptor = create(draft / "owner", os.O_RDWR | os.O_TRUNC)
            write_whole(self._descriptor, head + b"%012d" % 0)
            draft.rename(self._root / str(number))
        except OSError as error:
            # ENOENT: the owner has just swept this draft away.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise
        finally:
            self._number, self._head, self.workspace = number, len(head), self._root / str(number)
            # A number that was created too late, below the highest, is void.
            mine = self.is_mine()
            if not mine:
                if self._descriptor >= 0:
                    os.close(self._descriptor)
                    self._descriptor = -1
                shutil.rmtree(draft, ignore_errors=True)
                if _token_in(self.workspace) == self.token:
                    shutil.rmtree(self.workspace, ignore_errors=True)
                self._number = 0
        return mine

    def _fence(self) -> None:
        """Takes the workspaces of former owners away from them, and sweeps drafts of killed contenders."""
        for path in list(self._root.iterdir()):
            if path.name.startswith("new.") or (path.name.isdecimal() and int(path.name) < self._number):
                fenced = self.workspace / f"fenced.{path.name}"
                # Renamed first: removing takes a while, and a draft may be about to become a lock.
                with contextlib.suppress(FileNotFoundError):
                    path.rename(fenced)
                self._inherit(fenced)
                shutil.rmtree(fenced, ignore_errors=True)

    def _inherit(self, fenced: Path) -> None:
        """Keeps the finished results that a former owner was moving; it may have had them from another one."""
        for name in (OUTGOING, INCOMING):
            with contextlib.suppress(FileNotFoundError):
                (fenced / name).rename(self.workspace / name)
        for path in fenced.glob("fenced.*"):
            self._inherit(path)

    def paused(self, beats: int, seconds: float) -> float:
        """How long this process was stopped (suspended by SLURM, say), of which only its heartbeat knows.

        Args:
            beats: What `beats` was at the beginning.
            seconds: How long ago that is.

        Returns:
            Seconds; 0 where it was not, or only as long as a slow file system lets the heartbeat wait.
        """
        active = (self.beats() - beats + 1) * self._heartbeat
        return seconds - active if seconds > 2 * active + 2 * self._heartbeat else 0.0

    def beats(self) -> int:
        """How often the heart has beaten."""
        text = os.pread(self._descriptor, len(RELEASED), self._head)
        return int(text) if text.isdigit() else 0

    def is_mine(self) -> bool:
        """Whether this process still owns the stage."""
        owner = present_owner(self._directory)
        return owner is not None and owner.number == self._number and owner.record.get("token") == self.token

    def check(self) -> None:
        """Checks that this process still owns the stage.

        Raises:
            FencedError: Another process has taken over.
        """
        if not self.is_mine():
            raise FencedError(
                f"Another process has taken over {self._directory} while this one was thought dead, or the directory "
                "was moved; this one stops here, nothing is lost."
            )

    def publish(self, prepared: Path, target: Path) -> None:
        """Renames something from the workspace into place, or back; the target's directory is left to be synced."""
        self.check()
        prepared.replace(target)

    def discard(self, path: Path) -> None:
        """Removes a file or directory if it is there: at once, and not if this process was taken over."""
        self.check()
        discarded = self.workspace / f"discarded.{uuid.uuid4().hex}"
        try:
            path.rename(discarded)
        except FileNotFoundError:
            self.check()
            return
        if discarded.is_dir():
            shutil.rmtree(discarded, ignore_errors=True)
        else:
            discarded.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the lock back, if it is still this process's."""
        if self._beating is not None:
            assert self._beating.stdin is not None
            self._beating.stdin.close()
            self._beating.wait()
            self._beating = None
        if self._descriptor < 0:
            return
        owner = present_owner(self._directory)
        if self.is_mine():
            for path in self.workspace.iterdir():
                if path.name in {OUTGOING, INCOMING}:
                    continue  # the next owner brings it to where it belongs
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != "owner":
                    path.unlink(missing_ok=True)
        elif owner is not None and owner.number > self._number:
            # What zarr has put into a workspace that had been moved away.
            shutil.rmtree(self.workspace, ignore_errors=True)
        # In place, which needs no space on a full disk, and in this owner's own file, whatever its path is by now.
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, RELEASED, self._head)
            os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


def _token_in(workspace: Path) -> str | None:
    try:
        return str(json.loads((workspace / "owner").read_bytes().partition(b"\n")[0])["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
