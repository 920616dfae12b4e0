"""The loss of a run's network at any parameters, over the splits that measures may read."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quadscape.config.model import model_section
from quadscape.errors import ModelError

if TYPE_CHECKING:
    from quadscape.measures.job import Job
    from quadscape.network.objective import Objective
    from quadscape.training.trajectory import Trajectory

SPLITS = ("train", "validation")
"""The splits in order; test data are for `final_test` alone."""

ROUNDING = 64
"""Errors of a mean loss, in units of ε times the size of what is summed; see `Evaluation.scale`."""


class Evaluation(NamedTuple):
    """A split at one point.

    Attributes:
        loss: Mean loss.
        accuracy: Share of examples classified correctly.
        scale: Mean over the examples of |ℓₙ| + max |scores|: what the rounding error of the mean loss is in proportion
            to. The forward pass is off by a few ε of its scores, the logarithm and the sum by a few ε of the losses.
    """

    loss: float
    accuracy: float
    scale: float


class RunLosses:
    """Losses of a run's network, built anew, at any θ.

    Statistics of BatchNorm are those over the whole training split at that θ, as checkpoints have them.

    Attributes:
        counts: Number of examples of every split that has any.
        batch_norm: Whether the network has BatchNorm.
    """

    def __init__(self, job: "Job", splits: tuple[str, ...] = SPLITS) -> None:
        import torch

        from quadscape.data.sets import DataSet
        from quadscape.network.models import batch_norms, build_model, cast, factory_code
        from quadscape.network.objective import Objective
        from quadscape.network.parameters import ParameterLayout

        given = job.trajectory().stage.manifest["parameters"]
        config = model_section(given["model"])
        data = DataSet.load(job.path("data"), device=job.device, dtype=job.dtype)
        shape, classes = data.shape, len(data.classes)
        model = cast(build_model(config, shape, classes), job.dtype, job.device)
        layout = ParameterLayout.of(model)
        if layout.size != given["parameters"] or factory_code(config) != given["model_code"]:
            raise ModelError(
                f"model.factory '{config.factory}' now builds another network than the one that run '{job.run}' "
                "trained; restore the factory, or run the workflow again."
            )
        self.counts = {name: data.counts[name] for name in splits if data.counts[name]}
        self._objectives: dict[str, Objective] = {}
        for name in self.counts:
            images, labels = data.split(name)  # type: ignore[arg-type]
            self._objectives[name] = Objective(model, layout, images, labels, given["loss"], 1).over(images, labels)
        self.batch_norm, self._model = bool(batch_norms(model)), model
        self._frozen: torch.nn.Module | None = None
        if self.batch_norm:
            self._frozen = cast(build_model(config, shape, classes), torch.float64, job.device)
            exact = DataSet.load(job.path("data"), device=job.device, dtype=torch.float64)
            self._images = exact.split("train")[0]

    def at(self, theta: np.ndarray) -> dict[str, Evaluation]:
        """Every split at one point.

        Args:
            theta: θ, float64, shape (P,).

        Returns:
            By split, in order.
        """
        self._freeze(theta)
        return {name: _evaluation(objective, theta) for name, objective in self._objectives.items()}

    def objective(self, split: str, theta: np.ndarray) -> "Objective":
        """The loss over a split around one point.

        Args:
            split: Its name.
            theta: θ, float64, shape (P,), at which statistics of BatchNorm are frozen.

        Returns:
            The objective, of which there is one per split.
        """
        self._freeze(theta)
        return self._objectives[split]

    def _freeze(self, theta: np.ndarray) -> None:
        if self._frozen is None:
            return
        import torch

        from quadscape.network.checkpoint import freeze_batch_norms
        from quadscape.network.parameters import assign_vector

        assign_vector(self._frozen, torch.from_numpy(theta))
        freeze_batch_norms(self._frozen, self._images)
        found = dict(self._frozen.named_buffers())
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                buffer.copy_(found[name])


def _evaluation(objective: Any, theta: np.ndarray) -> Evaluation:
    from quadscape.network.losses import example_losses

    scores = objective.outputs(theta)
    losses = example_losses(scores, objective.labels, objective.loss_kind).double()
    right = (scores.argmax(dim=1) == objective.labels).double()
    scale = losses.abs() + scores.abs().amax(dim=1).double()
    count = objective.count
    return Evaluation(float(losses.sum()) / count, float(right.sum()) / count, float(scale.sum()) / count)


def run_head(job: "Job", trajectory: "Trajectory", examples: int, batch_norm: bool) -> dict[str, Any]:
    """What tables of a whole run say of its setting.

    Args:
        job: The job.
        trajectory: Its training.
        examples: N.
        batch_norm: Whether its network has BatchNorm.

    Returns:
        run, iterations, P, N, weight_decay, method, loss, batch_norm, and initial: whether it began at initial
        parameters and stepped along the gradient, not from another run or by its eigenvectors.
    """
    given = trajectory.stage.manifest["parameters"]
    return {
        "run": job.run,
        "iterations": trajectory.training.iterations,
        "P": int(given["parameters"]),
        "N": examples,
        "weight_decay": trajectory.training.weight_decay,
        "method": trajectory.training.optimizer.method,
        "loss": given["loss"],
        "batch_norm": batch_norm,
        "initial": not {"start", "step"} & given.keys(),
    }
