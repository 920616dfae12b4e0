"""Small networks and data that several test modules share."""

import torch

from quadscape.config import CNN, MLP, Linear, Model, ResNet9
from quadscape.models import build_model, initial_vector
from quadscape.objective import Objective
from quadscape.parameters import ParameterLayout

SMALL = {
    "linear": (Linear(factory="linear"), (1, 4, 4)),
    "mlp": (MLP(factory="mlp", hidden=(9, 7)), (1, 4, 4)),
    "cnn-group": (CNN(factory="cnn", channels=(4, 8), normalization="group"), (1, 8, 8)),
    "cnn-none": (CNN(factory="cnn", channels=(4, 8), normalization="none"), (1, 8, 8)),
    "cnn-batch": (CNN(factory="cnn", channels=(4, 8), normalization="batch"), (1, 8, 8)),
}
RESNET9 = {
    f"resnet9-{kind}": (ResNet9(width=1, normalization=kind), (3, 8, 8)) for kind in ("group", "none", "batch")
}


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
    """An objective over random images (BatchNorm frozen at their statistics) and a float64 θ."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    model = build_model(config, shape, classes).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(images)
    model = model.to(dtype).eval()
    theta = initial_vector(config, shape, classes, 1)
    # Away from the initial point, where biases vanish and scales are one, nothing cancels by symmetry.
    theta = theta + 0.05 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    return Objective(model, ParameterLayout.of(model), images.to(dtype), labels, loss, chunk), theta


def dense_hessian(objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """The Hessian by torch.func.hessian of the flat mean loss over all examples at once: an independent reference."""

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parameters = objective.layout.unflatten(vector)
        return objective.chunk_loss(parameters, objective.images, objective.labels) / objective.count

    return torch.func.hessian(loss)(theta)


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative Frobenius error."""
    return float(torch.linalg.norm(found - reference) / torch.linalg.norm(reference))
