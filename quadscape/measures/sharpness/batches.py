"""The curvature that batches have along their own gradients (Andreyev & Beneventano, arXiv 2412.20553)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quadscape.measures.interfaces import as_array
from quadscape.measures.intervals import student

if TYPE_CHECKING:
    from quadscape.config.sections import Training
    from quadscape.network.objective import Objective

_SEED = 0x5BA7


def drawn_batches(training: "Training", count: int, batches: int, iteration: int) -> list[np.ndarray]:
    """Batches as a step of a run may see them, independent of each other.

    Args:
        training: The run's section.
        count: N.
        batches: How many.
        iteration: What their seed follows from.

    Returns:
        Indices of examples, none twice in a batch; all examples once where a batch is all of them. Where an epoch ends
        with a smaller batch (`remainder: keep`), each is that one as often as in an epoch.
    """
    size = training.batch_of(count)
    if size >= count:
        return [np.arange(count)]
    generator = np.random.default_rng([_SEED, iteration])
    ragged = count % size if training.remainder == "keep" and training.sampling == "reshuffled" else 0
    found = []
    for _ in range(batches):
        small = ragged and generator.integers(count // size + 1) == 0
        found.append(generator.choice(count, ragged if small else size, replace=False))
    return found


def batch_curvatures(objective: "Objective", theta: np.ndarray, decay: float, batches: list[np.ndarray]) -> np.ndarray:
    """g̃ᵀ(H_b + δ)g̃ and |g̃|² of batches, g̃ = g_b + δθ.

    Args:
        objective: The training loss.
        theta: θ, shape (P,).
        decay: δ.
        batches: Indices of the examples of each.

    Returns:
        Shape (batches, 2).
    """
    import torch

    found = []
    for batch in batches:
        part = objective.part(torch.from_numpy(batch))
        gradient = as_array(part.gradient(theta)) + decay * theta
        image = as_array(part.hessian_product(theta, gradient)) + decay * gradient
        found.append([gradient @ image, gradient @ gradient])
    return np.array(found)


class BatchSharpness(NamedTuple):
    """Two means of the curvature of batches along their gradients, each with its interval.

    Attributes:
        ratio: Ratio of means, lower and upper end.
        mean: Mean of ratios, lower and upper end.
    """

    ratio: tuple[float, float, float]
    mean: tuple[float, float, float]


def batch_sharpness(curvatures: np.ndarray) -> BatchSharpness:
    """Batch sharpness from what `batch_curvatures` gives.

    Args:
        curvatures: Shape (n, 2); a single row is that of all examples, and its ratio exact.

    Returns:
        Both means. The interval of the ratio of means is that of the mean of the jackknife's pseudo-values, which takes
        its bias of order 1/n away. NaN where a gradient vanishes.
    """
    above, below = np.asarray(curvatures, dtype=np.float64).T
    count = len(above)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = float(above.sum() / below.sum()), above / below
        without = (above.sum() - above) / (below.sum() - below)
    if count == 1:
        return BatchSharpness((ratio,) * 3, (ratio,) * 3)
    _, low, high = student(count * ratio - (count - 1) * without)
    return BatchSharpness((ratio, low, high), _finite(student(ratios)))


def _finite(values: tuple[float, ...]) -> Any:
    return tuple(value if np.isfinite(value) else float("nan") for value in values)
