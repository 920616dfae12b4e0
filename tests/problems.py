"""Small networks and data that several test modules share."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import write_random_data

from quadscape.config.sections import CNN, MLP, Curvature, Linear, Model, ResNet9
from quadscape.config.values import resolved
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.hessian import HessianShardTask, HessianTask
from quadscape.curvature.shards import shard_directory, shard_name
from quadscape.network.checkpoint import freeze_batch_norms
from quadscape.network.models import build_model, initial_vector
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, assign_vector
from quadscape.planning.experiment_file import parse_experiment
from quadscape.stage.run import run_stage
from results import extract

SMALL = {
    "linear": (Linear(factory="linear"), (1, 4, 4)),
    "mlp": (MLP(factory="mlp", hidden=(9, 7)), (1, 4, 4)),
    "cnn-group": (CNN(factory="cnn", channels=(4, 8), normalization="group"), (1, 8, 8)),
    "cnn-none": (CNN(factory="cnn", channels=(4, 8), normalization="none"), (1, 8, 8)),
    "cnn-batch": (CNN(factory="cnn", channels=(4, 8), normalization="batch"), (1, 8, 8)),
}
RESNET9 = {f"resnet9-{kind}": (ResNet9(width=1, normalization=kind), (3, 8, 8)) for kind in ("group", "none", "batch")}


def problem(
    config: Model,
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float64,
    *,
    count: int = 11,
    classes: int = 5,
    loss: str = "cross_entropy",
    chunk: int = 4,
) -> tuple[Objective, torch.Tensor]:
    """An objective over random images and a float64 θ; BatchNorm is frozen at statistics of 64 such images."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(64, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    theta = initial_vector(config, shape, classes, 1)
    # Away from the initial point, where biases vanish and scales are one, nothing cancels by symmetry.
    theta = theta + 0.05 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    model = build_model(config, shape, classes).double()
    assign_vector(model, theta)
    freeze_batch_norms(model, images)
    model, images = model.to(dtype).eval(), images[:count]
    return Objective(model, ParameterLayout.of(model), images.to(dtype), labels, loss, chunk), theta


def scalar_problem() -> tuple[Objective, torch.Tensor]:
    """Least squares with one parameter: scores are θ times the only pixel, and its negative."""

    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.scale * x.flatten(1)
            return torch.cat([x, -x], dim=1)

    model = Scale()
    images, labels = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(5, 1, 1, 1), torch.tensor([0, 1, 0, 1, 1])
    return Objective(model, ParameterLayout.of(model), images, labels, "squared_error", 2), torch.tensor([0.3]).double()


def mean_loss(objective: Objective, vector: torch.Tensor) -> torch.Tensor:
    """The loss over all examples at once as a function of flat parameters."""
    parameters = objective.layout.unflatten(vector)
    return objective.chunk_loss(parameters, objective.images, objective.labels) / objective.count


def dense_hessian(objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """The Hessian by torch.func.hessian of the flat mean loss over all examples at once: an independent reference."""
    return torch.func.hessian(partial(mean_loss, objective))(theta)


def lower_triangle(engine: HessianEngine, size: int, block: int) -> torch.Tensor:
    """All columns in strips, as the lower block triangle; zero above."""
    result = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, size, block):
        stop = min(size, start + block)
        columns = engine.columns(start, stop)
        assert columns.shape == (size - start, stop - start)
        assert columns.dtype == torch.float64
        result[start:, start:stop] = columns
    return result


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative Frobenius error."""
    return float(torch.linalg.norm(found - reference) / torch.linalg.norm(reference))


def write_checkpoint(
    folder: Path, config: Model, shape: tuple[int, int, int], *, counts: tuple[int, int, int] = (23, 6, 6)
) -> tuple[Path, Path]:
    """A data store and a checkpoint of a network over it, by way of a file of parameters; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_random_data(folder / "data.zarr", shape, 3, counts)
    model = build_model(config, shape, 3)
    theta = initial_vector(config, shape, 3, 4)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assign_vector(model, theta + 0.05 * noise)
    torch.save(model.state_dict(), folder / "state.pt")
    experiment = parse_experiment(
        {
            "name": "test",
            "data": {"source": "digits"},
            "model": resolved(config),
            "runs": [{"name": "foreign", "path": str(folder / "state.pt"), "checkpoints": [0]}],
        }
    )
    extract(experiment, "foreign", 0, None, data, folder / "checkpoint.zarr")
    return folder / "checkpoint.zarr", data


def run_hessian(directory: Path, checkpoint: Path, data: Path, config: Curvature) -> dict[str, Any]:
    """All shards of a Hessian, then the stage that gathers them; returns its manifest."""
    for number in range(1, config.shards + 1):
        task = HessianShardTask(checkpoint, data, config, "cpu", number)
        run_stage(task, shard_directory(directory, shard_name(number, config.shards)), log=lambda line: None)
    return run_stage(HessianTask(directory, checkpoint, data, config, "cpu"), directory, log=lambda line: None)


class DiesAtEveryThirdUnit:
    """Put before a task's class: every third call of `compute` ends like a kill between two units."""

    calls = 0

    def compute(self, unit, plan, store):
        type(self).calls += 1
        if type(self).calls % 3 == 0:
            raise KeyboardInterrupt
        return super().compute(unit, plan, store)
