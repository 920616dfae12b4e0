"""Copies of the project in which tests run its commands."""

import os
import re
import shutil
import subprocess
import sys
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


class Checkout:
    """A copy of the project, with an experiment file, in which commands are run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in PROJECT:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__"))
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

    def run(self, *command: str, timeout: float = 600) -> tuple[int, str]:
        """Exit code and output of a command."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def start(self, *arguments: str, profile: str = "profiles/local") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "snakemake", *arguments, "--profile", profile, "--configfile", "tiny.yaml"]
        return subprocess.Popen(
            [*command, *(["--cores", "2"] if profile == "profiles/local" else [])],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def snakemake(self, *arguments: str, profile: str = "profiles/local") -> tuple[int, str]:
        """Exit code and output."""
        child = self.start(*arguments, profile=profile)
        output, _ = child.communicate(timeout=600)
        return child.returncode, output

    def plan(self, *targets: str) -> Counter[str]:
        """Rules that a dry run lists, with counts."""
        code, self.listing = self.snakemake("-n", *targets)
        assert code == 0, self.listing
        listed = Counter(re.findall(r"^ *(?:local)?rule (\w+):", self.listing, flags=re.MULTILINE))
        del listed["all"]
        return listed

    def figures(self) -> set[str]:
        """Figures that the last dry run lists."""
        return set(re.findall(r"wildcards: figure=(\w+)", self.listing))
