"""Other users, in tests that run as root: a process that becomes one, and a Python that it may run."""

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fork_server import call

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

ALICE, BOB, EVE = "daemon", "bin", "nobody"
"""Users that every Linux has."""
TEAM = 60_000
"""The group of the first two: a number is enough."""


def number_of(user: str) -> int:
    return pwd.getpwnam(user).pw_uid


def become(user: str, umask: int) -> None:
    """Makes this process another user's, for good; only root can."""
    found = pwd.getpwnam(user)
    os.umask(umask)
    os.setgroups([found.pw_gid, *([] if user == EVE else [TEAM])])
    os.setgid(found.pw_gid)
    os.setuid(found.pw_uid)
    os.environ.update(USER=user, LOGNAME=user)


def call_as(user: str, umask: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of another user, forked from one that has imported everything."""
    return call(_as, user, umask, function, arguments)


def _as(user: str, umask: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    become(user, umask)
    return function(*arguments)


def _is_open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents) and bool(path.stat().st_mode & 0o001)


def python_of_all(folder: Path) -> tuple[str, dict[str, str]]:
    """A Python that every user can run: this one, or one that is linked or copied where all can come to it.

    Args:
        folder: Where a copy goes; all can come to it.

    Returns:
        The interpreter, with the packages of this one, and environment variables that it needs.
    """
    this = Path(sys.executable)
    if _is_open_to_all(this):
        return str(this), {}
    home = folder / "python"
    shutil.copytree(
        sys.base_prefix,
        home,
        symlinks=True,
        copy_function=_link,
        ignore=shutil.ignore_patterns("site-packages", "test", "share", "include", "__pycache__"),
    )
    packages = Path(sysconfig.get_path("purelib"))
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(home / "bin" / Path(sys.executable).resolve().name)
    (venv / "pyvenv.cfg").write_text(f"home = {home / 'bin'}\ninclude-system-site-packages = false\n")
    (venv / "lib").symlink_to(packages.parents[1])
    return str(venv / "bin/python"), {"LD_LIBRARY_PATH": str(home / "lib")}


def run_as(user: str, umask: int, folder: Path, environment: dict[str, str], *command: str) -> tuple[int, str]:
    """Exit code and output of a command of another user, in a folder."""
    found, home = pwd.getpwnam(user), str(folder)
    own = {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache", "USER": user, "LOGNAME": user}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **own, **environment},
        user=found.pw_uid,
        group=found.pw_gid,
        extra_groups=[] if user == EVE else [TEAM],
        umask=umask,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def share(folder: Path, user: str, team: int = TEAM) -> Path:
    """Makes a folder a user's, and the team's: what is made in it belongs to the team."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, number_of(user), team, follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o2775)
        elif not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o060)
    return folder
