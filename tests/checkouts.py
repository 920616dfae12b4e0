"""Copies of the project in which tests run its commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, Self

import yaml

from tests.experiments import TINY

ROOT = Path(__file__).resolve().parents[1]
PROJECT = [
    "Snakefile",
    "config.yaml",
    "rules",
    "workflow_scripts",
    "quadscape",
    "profiles",
    "experiments",
    "envs",
    "docs",
]


def unpack(archive: Path, target: Path) -> None:
    """Unpacks results of an earlier version; Python before 3.11.4 knows no filters."""
    with tarfile.open(archive) as opened:
        opened.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def jobs(output: str) -> Counter[str]:
    """Rules that Snakemake lists, or has run, with counts."""
    listed = Counter(re.findall(r"^ *(?:local)?rule (\w+):", output, flags=re.MULTILINE))
    del listed["all"]
    return listed


class Checkout:
    """A copy of the project, with an experiment file, in which commands are run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in PROJECT:
            source = ROOT / name
            if source.is_dir():
                # With compiled modules, which hold for the very same files alone, and what definitions follow from, as
                # long as no source changes; without what is just being written.
                shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("*.pyc.*", ".definitions-*"))
            else:
                path.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, path / name)

    def configure(self, **changes: Any) -> None:
        (self.path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}))

    @classmethod
    def at(cls, path: Path) -> Self:
        """The checkout that lies there."""
        found = object.__new__(cls)
        found.path = path
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Of its commands, which run its own code."""
        return {**os.environ, "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command, in a session of its own."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, timeout: float = 600) -> tuple[int, str]:
        """Exit code and output of a command."""
        child = self.begin(*command)
        try:
            output, _ = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        return child.returncode, output

    def command(self, *arguments: str, profile: str = "profiles/local") -> list[str]:
        """Snakemake's."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--profile", profile, "--configfile", "tiny.yaml"]
        return [*command, *(["--cores", "2"] if profile == "profiles/local" else [])]

    def snakemake(self, *arguments: str, profile: str = "profiles/local") -> tuple[int, str]:
        """Exit code and output."""
        return self.run(*self.command(*arguments, profile=profile))

    def plan(self, *targets: str) -> Counter[str]:
        """Rules that a dry run lists, with counts."""
        code, self.listing = self.snakemake("-n", *targets)
        assert code == 0, self.listing
        return jobs(self.listing)

    def figures(self) -> set[str]:
        """Figures that the last dry run lists."""
        return set(re.findall(r"wildcards: figure=(\w+)", self.listing))
