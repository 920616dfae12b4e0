"""Makes checkpoints, and refuses what no checkpoint may be made of.

Whatever would make L something else than a plain sum over examples, or its derivatives something else than what they
are taken for, is found here on a few examples, before a Hessian is begun (`quadscape.curvature.self_check`).
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Model, Run, Training
from quadscape.config.values import resolved
from quadscape.curvature.self_check import EXAMPLES, SelfCheck, check_derivatives, check_network
from quadscape.data.info import data_info
from quadscape.data.sets import DataSet
from quadscape.data.sources import DataDescription
from quadscape.errors import ConfigError, ModelError, StoreError
from quadscape.network.checkpoint import PLACEHOLDER, freeze_batch_norms, load_foreign
from quadscape.network.models import Shape, batch_norms, build_model, cast, check_model, factory_code, initial_vector
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, assign_vector, current_vector
from quadscape.numerics import apply_numerics, current_threads, resolve_device
from quadscape.paths import user_path
from quadscape.store import ArraySpec, store_directory, write_store
from quadscape.training.trajectory import Trajectory

RECORD = "self_check.json"
# Of the checks; raised when they find more.
_CHECKS = 1


def _check_same(trajectory: Trajectory, directory: str | Path, expected: Mapping[str, Any]) -> None:
    """Checks that a trajectory belongs to the experiment.

    Args:
        trajectory: The trajectory.
        directory: Where it lies, for the message.
        expected: Its parameters under this experiment.

    Raises:
        StoreError: It was computed with another network, loss or data set.
    """
    for key, value in expected.items():
        if trajectory.stage.manifest["parameters"][key] != value:
            raise StoreError(
                f"The trajectory in {directory} was computed with another {key} than this experiment's; run the "
                "workflow again, so that it is computed anew."
            )


@dataclass(frozen=True)
class OnSubset:
    """A subset of the data on which a checkpoint is analysed, whatever it was trained on.

    Attributes:
        name: Its name.
        data: Its data store.
        trained_on: The data store of the training.
    """

    name: str
    data: str | Path
    trained_on: str | Path


def extract_checkpoint(
    config: Model,
    loss_kind: str,
    run: Run,
    iteration: int,
    trajectory: str | Path | None,
    data: str | Path | OnSubset,
    out: str | Path,
    device: str,
) -> SelfCheck:
    """Writes the checkpoint of one iteration, from a trajectory or from parameters trained elsewhere.

    Arrays: `theta(parameter)` float64 and `buffers/<name>`. Attributes: see `Checkpoint`. What was found of the network
    is written beside it (`self_check.json`), since it is no part of the checkpoint's content.

    Args:
        config: The `model` section.
        loss_kind: Loss of one example, as in `quadscape.network.losses`.
        run: The run's section.
        iteration: Number of steps.
        trajectory: Directory or manifest of the run's training stage; unused for parameters trained elsewhere, whose
            file the run's section names.
        data: The data store on which it was trained and is analysed, or a subset on which it is analysed.
        out: Directory of the checkpoint; what was there is replaced.
        device: Where statistics of BatchNorm are computed over the training set: `cpu`, `cuda` or `auto`.

    Returns:
        What was found of the network.

    Raises:
        ModelError: θ is not finite, the loss is not a plain sum over examples, or its derivatives are not to be had.
    """
    out, part = store_directory(out), data if isinstance(data, OnSubset) else OnSubset("", data, data)
    info = data_info(part.data)
    model = cast(build_model(config, info.shape, len(info.classes)), torch.float64)
    layout = ParameterLayout.of(model)
    identity = {
        "model": resolved(config),
        "model_code": factory_code(config),
        "loss": loss_kind,
        "data": info.digest,
    }
    of_training = identity | {"data": data_info(part.trained_on).digest}
    trained, rate = _load_parameters(model, run, iteration, trajectory, of_training)
    theta = current_vector(model).clone()
    if bad := int((~torch.isfinite(theta)).sum()):
        raise ModelError(
            f"{bad} of the {len(theta)} parameters of run '{run.name}' at iteration {iteration} are not finite."
        )
    images, labels = _freeze_and_check(model, device, part.data, len(info.classes))
    objective = Objective(model, layout, images, labels, loss_kind, len(images))
    network = _network(config, info.shape, len(info.classes), loss_kind)
    found = _recorded(out, network)
    if found is None:
        build = partial(_built, config, info.shape, len(info.classes), theta, dict(model.named_buffers()))
        found = check_network(build, theta, images, labels, loss_kind)
    else:
        found = found.with_errors(check_derivatives(objective, theta))
    assign_vector(model, theta)
    attributes = {
        "run": run.name,
        "iteration": iteration,
        **({"subset": part.name} if part.name else {}),
        "model": identity["model"],
        "model_code": identity["model_code"],
        "shape": list(info.shape),
        "classes": list(info.classes),
        "loss": identity["loss"],
        "layout": layout.to_json(),
        "training": None if trained is None else trained.stage.manifest["parameters"]["training"],
        # Of what was trained: some of it may have been chosen when it was.
        **_rule(run if trained is None else trained.training, trained is not None),
        "learning_rate": rate,
        "data": identity["data"],
        "hessian_kind": found.kind,
    }
    arrays = _arrays(theta, model)
    _record(out, network, found)
    write_store(out, arrays, attributes)
    return found


def _load_parameters(
    model: torch.nn.Module, run: Run, iteration: int, trajectory: str | Path | None, identity: Mapping[str, Any]
) -> tuple[Trajectory | None, float | None]:
    """Gives the network its parameters.

    Returns:
        The training that they come from and the learning rate, where that is known.

    Raises:
        ConfigError: The run was neither trained nor has a path.
        StoreError: It diverged before that iteration.
    """
    if run.path is not None:
        load_foreign(model, user_path(run.path.replace(PLACEHOLDER, str(iteration))))
        return None, None
    if trajectory is None:
        raise ConfigError(f"Run '{run.name}' has no path and no trajectory; run the workflow, which trains it.")
    opened = Trajectory.open(trajectory)
    _check_same(opened, trajectory, identity)
    if opened.diverged is not None and opened.diverged <= iteration:
        raise StoreError(
            f"Run '{run.name}' diverged at iteration {opened.diverged}, so that there is no checkpoint at iteration "
            f"{iteration}; ask for an earlier one, or for a lower learning rate."
        )
    assign_vector(model, torch.from_numpy(opened.theta(iteration)))
    # As recorded: a table of rates may be gone by now.
    rate = float(opened.stage.read("learning_rate", min(iteration, opened.training.iterations - 1)))
    return opened, rate


def check_factory(config: Model, loss_kind: str, seed: int, data: DataDescription) -> SelfCheck:
    """Checks a network at its initial parameters, on random images, as `extract_checkpoint` does.

    Args:
        config: The `model` section.
        loss_kind: Loss of one example, as in `quadscape.network.losses`.
        seed: Of the initial parameters.
        data: What the data set holds.

    Returns:
        What was found.
    """
    apply_numerics(current_threads())
    shape, classes = data.shape, len(data.classes)
    theta = initial_vector(config, shape, classes, seed)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (EXAMPLES,), generator=generator)
    model = cast(build_model(config, shape, classes), torch.float64)
    assign_vector(model, theta)
    check_model(model, images, classes)
    build = partial(_built, config, shape, classes, theta, dict(model.named_buffers()))
    return check_network(build, theta, images[:EXAMPLES], labels, loss_kind)


def _built(
    config: Model,
    shape: Shape,
    classes: int,
    theta: torch.Tensor,
    buffers: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
) -> torch.nn.Module:
    """A network built anew, with parameters and buffers, in a precision or in its own."""
    model = build_model(config, shape, classes)
    if dtype is not None:
        cast(model, dtype)
    assign_vector(model, theta)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# What was found of a network, once for all its checkpoints


def _network(config: Model, shape: Shape, classes: int, loss: str) -> str:
    """Digest of all that the checks of a network follow from."""
    parts = [resolved(config), factory_code(config), list(shape), classes, loss, version("torch"), _CHECKS]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _recorded(out: Path, network: str) -> SelfCheck | None:
    """What was found when another checkpoint of the experiment was made of this network."""
    for path in sorted(out.parent.parent.parent.parent.glob(f"*/checkpoints/*/{RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["network"] == network:
                return SelfCheck.from_json(record["found"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being replaced, or not ours: then the check is made
    return None


def _record(out: Path, network: str, found: SelfCheck) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"network": network, "found": found.to_json()}, indent=1, sort_keys=True)
    prepared = out.with_name(f"{RECORD}.{uuid.uuid4().hex}")
    prepared.write_text(text + "\n", encoding="utf-8")
    Path(prepared).replace(out.with_name(RECORD))


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def _rule(run: Training, trained: bool) -> dict[str, Any]:
    """Weight decay and momentum; of parameters trained elsewhere only the weight decay means anything."""
    return run.rule() if trained else run.rule() | {"momentum": None}


def _freeze_and_check(
    model: torch.nn.Module, device_name: str, data: str | Path, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Freezes BatchNorm and checks the network, which stays on the CPU; returns a few images and labels."""
    apply_numerics(current_threads())
    # Without BatchNorm a few images are enough, which need no accelerator.
    device = resolve_device(device_name) if batch_norms(model) else torch.device("cpu")
    loaded = DataSet.load(data, device, torch.float64)
    few = loaded.first("train", 4).to("cpu")
    check_model(model, few, classes)
    if batch_norms(model):
        freeze_batch_norms(model.to(device), loaded.split("train")[0])
        model.to("cpu")
        check_model(model, few, classes)
    return few[:EXAMPLES], loaded.labels("train")[:EXAMPLES]


def _arrays(theta: torch.Tensor, model: torch.nn.Module) -> list[tuple[ArraySpec, np.ndarray]]:
    values = theta.numpy()
    arrays = [(ArraySpec("theta", values.shape, "float64", ("parameter",), values.shape), values)]
    for name, buffer in model.named_buffers():
        content = buffer.detach().cpu().numpy()
        dimensions = tuple(f"{name}_{axis}" for axis in range(content.ndim))
        spec = ArraySpec(f"buffers/{name}", content.shape, content.dtype.name, dimensions, content.shape)
        arrays.append((spec, content))
    return arrays
