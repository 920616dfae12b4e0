"""Counts of the networks of an experiment, each counted once on a host and kept from then on.

Counting loads torch, which the workflow's head does not: a process of its own does it
(`python -m quadscape.planning.counted`), for all networks that are not known yet. What was counted is kept with the
experiment's sizes and, for other experiments, in the user's cache.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from quadscape.config.sections import Model
from quadscape.config.values import resolved
from quadscape.digests import json_digest
from quadscape.network.counts import Counts, TensorCounts
from quadscape.network.shapes import Shape
from quadscape.results.sizes import Kept

_FORMAT = 1
"""Of the counts: raised where something else is counted."""


@cache
def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Countable:
    """A network with all that its counts follow from.

    Attributes:
        model: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        loss: The loss.
        parameters: P.
        code: What tells the source of a network of the user's own from others; None for a built-in one.
    """

    model: Model
    shape: Shape
    classes: int
    loss: str
    parameters: int
    code: str | None

    @cached_property
    def key(self) -> str:
        """What its counts are kept under."""
        given = [resolved(self.model), list(self.shape), self.classes, self.loss, self.code, _torch(), _FORMAT]
        return f"counts {json_digest(given)[:24]}"


def user_cache() -> Path:
    """Where what was found on this host is kept for all experiments of a user: XDG_CACHE_HOME, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quadscape"


def _of_document(fields: dict[str, Any]) -> Counts:
    return Counts(**{**fields, "tensors": tuple(TensorCounts(**one) for one in fields["tensors"])})


def assumed(network: Countable) -> Counts:
    """What is assumed of a network that cannot be counted, since it cannot be run; its jobs will say why.

    Args:
        network: The network.

    Returns:
        Counts of one whose parameters are all used at 64 positions.
    """
    forward = 2.0 * 64 * network.parameters
    tensor = TensorCounts(network.parameters, network.parameters, 0, 0.0, forward, 1e5, 1e5)
    return Counts(forward, 2 * forward, 2e5, 1e5, 1e5, 1e5, (tensor,))


def counts_of(networks: Sequence[Countable], kept: Kept) -> list[Counts]:
    """Counts of some networks.

    Args:
        networks: The networks.
        kept: What is kept of the experiment, and of what is counted now.

    Returns:
        Of each.
    """
    shared = Kept(user_cache() / "counts.json")
    keys = [network.key for network in networks]
    missing = {
        key: network
        for key, network in zip(keys, networks, strict=True)
        if kept.get(key, "") is None and shared.get(key, "") is None
    }
    answers = dict(zip(missing, _count(list(missing.values())), strict=True)) if missing else {}
    for key in keys:
        found = kept.get(key, "") or shared.get(key, "") or answers[key]
        kept.put(key, "", found)
        if key in answers and answers[key]["counted"]:
            shared.put(key, "", answers[key])
    shared.save()
    known = [kept.get(key, "") or {"counted": False} for key in keys]
    return [
        _of_document(one["counts"]) if one["counted"] else assumed(network)
        for one, network in zip(known, networks, strict=True)
    ]


def _count(networks: Sequence[Countable]) -> list[dict[str, Any]]:
    questions = [
        {"model": resolved(one.model), "shape": list(one.shape), "classes": one.classes, "loss": one.loss}
        for one in networks
    ]
    # Where torch is there already, another process would only take longer.
    if "torch" in sys.modules:
        return [_answer(question) for question in questions]
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        # Without the present directory before everything: a user's file may be called like a module of Python.
        [sys.executable, "-P", "-m", "quadscape.planning.counted"],
        input=json.dumps({"search": sys.path, "questions": questions}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    try:
        return list(json.loads(done.stdout))
    except ValueError:
        return [{"counted": False}] * len(questions)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from quadscape.network.counting import count_network

    model: Model = TypeAdapter(Model).validate_json(json.dumps(question["model"]), strict=True)
    try:
        counts = count_network(model, tuple(question["shape"]), question["classes"], question["loss"])
    except Exception:  # whatever the user's code raises: its jobs will say it, and all others go on
        return {"counted": False}
    return {"counted": True, "counts": asdict(counts)}


def main() -> None:
    """Answers questions, which come as JSON, as JSON; what the user's code prints goes to standard error."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    given = json.load(sys.stdin)
    sys.path[:] = given["search"]
    with reply:
        json.dump([_answer(question) for question in given["questions"]], reply)


if __name__ == "__main__":
    main()
