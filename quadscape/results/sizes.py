"""What the workflow's head must know of data set and network, kept from one start to the next.

The head starts often (every dry run, every SLURM job parses the Snakefile again), so it neither imports torch nor does
anything twice: `results/<name>/sizes.json` holds what was found, under digests of what it follows from.

- A head looks at the data source anew each time, since the digest of its listing decides whether anything is to be
  done; only the shape of the images is taken over where no file was written since. Jobs take what their head has kept.
- Which measures of which runs are on, which runs step by which eigenbasis, and which results read which large arrays,
  for `quadscape purge`, which knows no experiment file.
- Built-in networks are counted by arithmetic. A network of the user's own is made once, in a process of its own
  (`python -m quadscape.results.sizes`), and again when any source file that it came from has changed.

What is kept is a shortcut and nothing else: whatever is missing, damaged or from elsewhere is found out again, and
where the file cannot be written, every start does so.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quadscape import errors
from quadscape.config.sections import Custom, Data, Model
from quadscape.config.values import resolved
from quadscape.data.sources import DataDescription, describe
from quadscape.digests import json_digest
from quadscape.errors import ConfigError, DataError, ModelError, QuadscapeError
from quadscape.network.shapes import Shape, count_built_in

_FORMAT = 1


class Kept:
    """What was found at earlier starts, by name and under the digest of what it follows from.

    Attributes:
        is_job: Whether this process is a job, whose head has looked at everything just before.
    """

    def __init__(self, path: str | Path | None = None, *, is_job: bool = False) -> None:
        """Reads what is kept.

        Args:
            path: The file; None: nothing is kept.
            is_job: Whether this process is a job.
        """
        self.is_job = is_job
        self._path = None if path is None else Path(path)
        self._entries = {} if self._path is None else self._read(self._path)
        self._before = json.dumps(self._entries, sort_keys=True)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            checksum = document.pop("checksum")
            if checksum == json_digest(document) and document["format"] == _FORMAT:
                return dict(document["entries"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}

    def get(self, name: str, key: str) -> dict[str, Any] | None:
        """What is kept of that name; None where there is nothing, or it follows from something else."""
        entry = self._entries.get(name)
        return entry["value"] if entry is not None and entry["key"] == key else None

    def put(self, name: str, key: str, value: dict[str, Any]) -> None:
        """Keeps JSON values under a name, in place of what was there."""
        self._entries[name] = {"key": key, "value": json.loads(json.dumps(value))}

    def save(self) -> None:
        """Writes the file where anything in it has changed; only heads do, and whoever reads sees all of it or none."""
        if self._path is None or self.is_job or json.dumps(self._entries, sort_keys=True) == self._before:
            return
        document = {"format": _FORMAT, "entries": self._entries}
        text = json.dumps({**document, "checksum": json_digest(document)}, indent=1, sort_keys=True)
        draft = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(text + "\n", encoding="utf-8")
            draft.replace(self._path)
            self._before = json.dumps(self._entries, sort_keys=True)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def keep_asked(kept: Kept, asked: Mapping[str, Sequence[str]]) -> None:
    """Keeps which measures the experiment asks for.

    Args:
        kept: What is kept.
        asked: Measures by run.
    """
    kept.put("measures", "", {run: list(measures) for run, measures in asked.items()})


def asked_measures(kept: Kept, run: str) -> list[str] | None:
    """Measures that the head which started last asked for; None where its experiment had no such run, or none did."""
    return (kept.get("measures", "") or {}).get(run)


def keep_steps(kept: Kept, bases: Mapping[str, tuple[str, int]]) -> None:
    """Keeps which runs step by the eigenbasis of which checkpoint.

    Args:
        kept: What is kept.
        bases: Run and iteration of the checkpoint by run; where there are none, and were none, nothing is kept.
    """
    if bases or kept.get("steps", "") is not None:
        kept.put("steps", "", {run: list(basis) for run, basis in bases.items()})


def keep_readers(kept: Kept, runs: Sequence[str], readers: Mapping[str, Sequence[str]]) -> None:
    """Keeps which results of the experiment read which large arrays.

    Args:
        kept: What is kept.
        runs: The experiment's runs; of those of others nothing is known.
        readers: Outputs that are made from a stage, or from what a result keeps, by the manifest of that; all below
            the folder of the experiment.
    """
    kept.put("readers", "", {"runs": list(runs), "of": {path: list(found) for path, found in readers.items()}})


def kept_readers(kept: Kept, run: str, manifest: str) -> list[str] | None:
    """Outputs that are made from a stage, as the head asked for that started last.

    Args:
        kept: What is kept.
        run: Name of the run that the stage belongs to.
        manifest: Its manifest, below the folder of the experiment.

    Returns:
        None where its experiment had no such run, or no head has started since this is kept.
    """
    found = kept.get("readers", "")
    return None if found is None or run not in found["runs"] else found["of"].get(manifest, [])


def basis_steps(kept: Kept, run: str, iteration: int) -> list[str]:
    """Runs that step by the eigenbasis of a checkpoint, as the head asked for that started last."""
    return [name for name, basis in (kept.get("steps", "") or {}).items() if basis == [run, iteration]]


# ---------------------------------------------------------------------------------------------------------------------
# Data


def _kept_fields(data: DataDescription) -> dict[str, Any]:
    # The order of the parts means something, and that of keys in a file does not.
    return {**asdict(data), "parts": list(data.parts.items())}


def _described(fields: dict[str, Any]) -> DataDescription:
    shape, classes, parts = tuple(fields["shape"]), tuple(fields["classes"]), dict(fields["parts"])
    return DataDescription(**{**fields, "shape": shape, "classes": classes, "parts": parts})


def look_at_data(section: Data, prepared: Path, kept: Kept) -> tuple[DataDescription, str]:
    """What the data set holds.

    Args:
        section: The `data` section.
        prepared: Root metadata of the data store, which stands in for a source that has gone.
        kept: What is kept.

    Returns:
        The description, and why the store stands in for the source; empty where the source can be used.

    Raises:
        DataError: The data source is unusable and no data store was made from it before.
    """
    key = json_digest(resolved(section))
    before = kept.get("data", key)
    if before is not None and kept.is_job:
        return _described(before["description"]), before["problem"]
    problem = ""
    try:
        data = describe(section, None if before is None else _described(before["description"]))
    except DataError as error:
        # The source may be gone once the store is made; finished work must not need it again.
        if not prepared.exists():
            raise
        problem, data = str(error), DataDescription.of_store(prepared)
    kept.put("data", key, {"description": _kept_fields(data), "problem": problem})
    return data, problem


# ---------------------------------------------------------------------------------------------------------------------
# Network


@dataclass(frozen=True)
class Network:
    """Sizes of a network.

    Attributes:
        parameters: P.
        code: What `quadscape.network.models.factory_code` says.
    """

    parameters: int
    code: str | None


def measure_network(model: Custom, shape: Shape, classes: int, most: float) -> dict[str, Any]:
    """Makes a network of the user's own and counts it; imports torch.

    Args:
        model: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        most: A network of more parameters than this is counted without making it.

    Returns:
        Fields of `Network`, and under `files` the digests of the sources that it came from.

    Raises:
        ConfigError: A size is beyond what a tensor can have.
    """
    from quadscape.network.models import count_parameters, factory_code

    try:
        parameters = count_parameters(model, shape, classes, most)
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"model describes a network that cannot be built ({reason}); give smaller sizes.") from None
    code = factory_code(model)
    own = sys.modules[model.factory.partition(":")[0]]
    files = {_source(module) for module in list(sys.modules.values())} | {_source(own, everywhere=True)}
    return {
        "parameters": parameters,
        "code": code,
        "files": {file: _file_state(file) for file in sorted(files - {""})},
    }


def _source(module: Any, *, everywhere: bool = False) -> str:
    """The file of a module of the user's; empty for what is installed or this project's."""
    file = getattr(module, "__file__", None)
    # Some of torch's modules name no file that there is.
    if not isinstance(file, str) or not Path(file).is_absolute():
        return ""
    path = os.path.realpath(file)
    installed = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed.add(str(Path(__file__).resolve().parents[1]))
    return "" if not everywhere and any(path.startswith(root + os.sep) for root in installed) else path


def _file_state(path: str) -> str:
    """What tells a file from any other; empty where there is none."""
    try:
        with open(path, "rb") as file:  # ruff: ignore[builtin-open]
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _origin(name: str) -> str:
    """The file that a module would be imported from, found without importing anything; empty where there is none."""
    importlib.invalidate_caches()
    before, here = list(sys.path), str(Path.cwd())
    # As `quadscape.network.models` does it.
    sys.path[:] = before if here in before else [here, *before]
    try:
        search, found = None, None
        parts = name.split(".")
        for depth in range(len(parts)):
            whole = ".".join(parts[: depth + 1])
            specs = (finder.find_spec(whole, search) for finder in sys.meta_path if hasattr(finder, "find_spec"))
            found = next((spec for spec in specs if spec is not None), None)
            if found is None:
                return ""
            search = found.submodule_search_locations
        return (found and found.origin) or ""
    except Exception:  # whatever an import hook raises: the import itself will tell
        return ""
    finally:
        sys.path[:] = before


def _in_process(question: dict[str, Any]) -> dict[str, Any]:
    """Asks `measure_network` in a process of its own.

    Args:
        question: Its arguments.

    Returns:
        Its answer.

    Raises:
        ModelError: As all that it raises; or the process ended without an answer.
    """
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        # Without the present directory before everything: a user's file may be called like a module of Python.
        [sys.executable, "-P", "-m", "quadscape.results.sizes"],
        input=json.dumps({**question, "search": sys.path}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ModelError(
            f"model.factory '{question['model']['factory']}' could not be counted: the process that makes it ended "
            f"with {how}."
        ) from None
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return dict(answer)


def _version(package: str) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return ""


def look_at_network(model: Model, loss: str, data: DataDescription, kept: Kept, most: float) -> Network:
    """Counts a network.

    Args:
        model: The `model` section.
        loss: The loss.
        data: What the data set holds.
        kept: What is kept.
        most: A user's network of more parameters than this is counted without making it.

    Returns:
        Its sizes.
    """
    shape, classes = data.shape, len(data.classes)
    if not isinstance(model, Custom):
        return Network(count_built_in(model, shape, classes), None)
    key = json_digest([resolved(model), shape, classes, loss, _version("torch"), sys.version_info[:3]])
    found = kept.get("network", key)
    origin = "" if found is not None and kept.is_job else _origin(model.factory.partition(":")[0])
    if found is None or (
        not kept.is_job
        and (found["origin"] != origin or any(_file_state(path) != then for path, then in found["files"].items()))
    ):
        question = {"model": resolved(model), "shape": shape, "classes": classes, "most": most}
        # Where torch is there already, another process would only take longer.
        answer = measure_network(model, shape, classes, most) if "torch" in sys.modules else _in_process(question)
        found = {**answer, "origin": origin}
        kept.put("network", key, found)
    return Network(found["parameters"], found["code"])


def main() -> None:
    """Answers one question, which comes as JSON, as JSON; what the user's code prints goes to standard error."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = json.load(sys.stdin)
    sys.path[:] = question["search"]
    model = Custom.model_validate_json(json.dumps(question["model"]), strict=True)
    try:
        answer = measure_network(model, tuple(question["shape"]), question["classes"], question["most"])
    except QuadscapeError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    with reply:
        json.dump(answer, reply)


if __name__ == "__main__":
    main()
