"""What measures need from objective, eigenbasis and checkpoint; any object with these members will do."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class ObjectiveLike(Protocol):
    """The loss of one data split as a function of θ; see `quadscape.network.objective.Objective`."""

    @property
    def size(self) -> int:
        """P, the number of parameters."""

    @property
    def count(self) -> int:
        """N, the number of examples."""

    def example_losses(self, theta: Any, /) -> Any:
        """Losses of all examples, float64, shape (N,)."""

    def gradient(self, theta: Any, /) -> Any:
        """Gradient of the mean loss, float64, shape (P,)."""

    def hessian_product(self, theta: Any, v: Any, /) -> Any:
        """Hessian of the mean loss times a vector, float64, shape (P,)."""

    def example_gradients(self, theta: Any, examples: slice, /) -> Any:
        """Gradients of single examples, shape (n, P)."""


class BasisLike(Protocol):
    """An orthonormal eigenbasis; see `quadscape.curvature.stored_basis.Eigenbasis`."""

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues in descending order, float64, shape (P,)."""

    @property
    def zero_threshold(self) -> float:
        """Numerical zero ε_λ."""

    def vectors(self, start: int, stop: int, /) -> np.ndarray:
        """Eigenvectors start … stop − 1 as columns, shape (P, stop − start)."""


class CheckpointLike(Protocol):
    """What the head of a table says about a checkpoint; see `quadscape.network.checkpoint.Checkpoint`."""

    @property
    def run(self) -> str:
        """Name of its run."""

    @property
    def iteration(self) -> int:
        """Number of steps taken."""

    @property
    def weight_decay(self) -> float:
        """Weight decay δ of its training."""


def as_array(values: Any) -> np.ndarray:
    """A float64 array from an array or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def checkpoint_head(checkpoint: CheckpointLike, size: int, count: int) -> dict[str, Any]:
    """What every table of one checkpoint carries, whether or not there is an eigenbasis.

    Args:
        checkpoint: The checkpoint.
        size: P, the number of parameters.
        count: N, the number of training examples.

    Returns:
        Attributes run, iteration, P, N and weight_decay.
    """
    return {
        "run": checkpoint.run,
        "iteration": int(checkpoint.iteration),
        "P": int(size),
        "N": int(count),
        "weight_decay": float(checkpoint.weight_decay),
    }


def merged(attributes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Attributes with further ones added."""
    return {**attributes, **more}


def unit_vector(basis: BasisLike, index: int) -> np.ndarray:
    """One eigenvector.

    A stored float32 vector is a unit vector to 1e-7 only, and what is added up along it takes |q| = 1.

    Args:
        basis: The eigenbasis.
        index: Which of them.

    Returns:
        q of length 1, float64, shape (P,).
    """
    vector = as_array(basis.vectors(index, index + 1))[:, 0]
    return vector / np.linalg.norm(vector)
