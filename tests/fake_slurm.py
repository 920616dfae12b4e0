"""SLURM's commands as small scripts: they tell what a test has put down, and note how they were called."""

import os
import sys
from pathlib import Path

_SCRIPT = """#!{python}
import os, pathlib, sys, time
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
with (folder / "calls").open("a") as file:
    print(name, *sys.argv[1:], sep="\\x1f", file=file)
noted = folder / "noted"
if name == "sbatch" and noted.exists():
    with (folder / "environments").open("a") as file:
        print(*(key for key in os.environ if key.startswith(noted.read_text())), file=file)
if (folder / "hangs").exists():
    time.sleep(60)
answer = folder / f"{{name}}.answer"
if name == "squeue" and any(word.startswith("--Format") for word in sys.argv):
    answer = folder / "restarts.answer"
print(answer.read_text() if answer.exists() else "", end="")
error = folder / f"{{name}}.error"
if error.exists():
    print(error.read_text(), file=sys.stderr)
    sys.exit(1)
"""


class FakeSlurm:
    """The commands, in a directory for the front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("squeue", "sbatch", "srun", "scancel", "scontrol", "sacct", "sacctmgr", "sinfo"):
            path = self.bin / name
            path.write_text(_SCRIPT.format(python=sys.executable, folder=str(folder)))
            path.chmod(0o755)
        self.fail("sacct", "Slurm accounting storage is disabled")

    def queue(self, root: Path, *jobs: str) -> None:
        """Puts down jobs, each `id state name reason rule restarts`; `-` for an empty one."""
        lines, restarts = [], []
        for job in jobs:
            number, state, name, reason, rule, count = (
                word.replace("-", "") if word == "-" else word for word in job.split()
            )
            lines.append(f"{number}|{state}|{reason}|gpu|n1|{name}|{root}|{rule}\n")
            restarts.append(f"{number:<30}{count:<12}\n")
        self.answer("squeue", "".join(lines))
        self.answer("restarts", "".join(restarts))

    def answer(self, name: str, text: str) -> None:
        (self.folder / f"{name}.answer").write_text(text)

    def fail(self, name: str, text: str | None) -> None:
        (self.folder / f"{name}.error").unlink(missing_ok=True)
        if text is not None:
            (self.folder / f"{name}.error").write_text(text)

    def hang(self) -> None:
        (self.folder / "hangs").touch()

    def calls(self, name: str) -> list[list[str]]:
        if not (self.folder / "calls").exists():
            return []
        calls = [line.split("\x1f") for line in (self.folder / "calls").read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]

    def note_environment(self, prefix: str) -> None:
        """From now on `sbatch` notes names of environment variables."""
        (self.folder / "noted").write_text(prefix)

    def environments(self) -> list[set[str]]:
        """What it has noted, call by call."""
        return [set(line.split()) for line in (self.folder / "environments").read_text().splitlines()]

    @property
    def path(self) -> str:
        return f"{self.bin}{os.pathsep}{os.environ['PATH']}"
