"""The loss of single examples: the ℓ in L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ), yₙ)."""

import torch

from quadscape.errors import ModelError


def example_losses(outputs: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Loss of each example of a batch.

    Args:
        outputs: Class scores, shape (n, classes).
        labels: Class indices, int64, shape (n,).
        kind: `cross_entropy` (natural logarithm), or `squared_error`: ½|f(x) − onehot(y)|².

    Returns:
        Losses, shape (n,), in the dtype of `outputs`.

    Raises:
        ModelError: The outputs have another shape.
    """
    if outputs.ndim != 2 or outputs.shape[0] != labels.shape[0]:
        raise ModelError(
            f"The model returned outputs of shape {tuple(outputs.shape)} for {labels.shape[0]} examples; "
            "it must return one row of class scores per example."
        )
    if kind == "cross_entropy":
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
    # Not one_hot, which vmap cannot batch.
    targets = (labels[:, None] == torch.arange(outputs.shape[1], device=labels.device)).to(outputs.dtype)
    return 0.5 * (outputs - targets).square().sum(dim=1)
