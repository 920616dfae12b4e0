"""Optimizers on one flat float64 vector: torch's own, with all their state where a run can be resumed."""

from collections.abc import Mapping

import torch

from quadscape.config.sections import SGD, Adam, AdamW, RMSProp, Training
from quadscape.training.costs import STATE


def state_names(training: Training) -> tuple[str, ...]:
    """Names of the vectors of the size of θ that a method keeps besides θ.

    Args:
        training: The `training` section.

    Returns:
        The names.
    """
    return tuple(STATE[training.optimizer.method])


def make_optimizer(
    training: Training, theta: torch.nn.Parameter, moments: Mapping[str, torch.Tensor], steps: int
) -> torch.optim.Optimizer:
    """The optimizer of a run, where it stands after some steps.

    Args:
        training: The `training` section.
        theta: θ, float64, shape (P,).
        moments: What the method keeps of the past, by the names of `state_names`; updated in place by each step.
        steps: Number of steps taken.

    Returns:
        The optimizer, with learning rate 0.
    """
    config, decay = training.optimizer, training.weight_decay
    optimizer: torch.optim.Optimizer
    if isinstance(config, SGD):
        optimizer = torch.optim.SGD(
            [theta],
            lr=0.0,
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=decay,
            foreach=False,
            fused=False,
        )
    elif isinstance(config, RMSProp):
        optimizer = torch.optim.RMSprop(
            [theta], lr=0.0, alpha=config.smoothing, eps=config.epsilon, weight_decay=decay, foreach=False
        )
    else:
        assert isinstance(config, Adam)
        method = torch.optim.AdamW if isinstance(config, AdamW) else torch.optim.Adam
        betas = (config.beta1, config.beta2)
        optimizer = method(
            [theta], lr=0.0, betas=betas, eps=config.epsilon, weight_decay=decay, foreach=False, fused=False
        )
    state = optimizer.state[theta]
    for name, theirs in STATE[config.method].items():
        state[theirs] = moments[name]
    if not isinstance(config, SGD):
        state["step"] = torch.tensor(float(steps), dtype=torch.float64)
    return optimizer


def clip(training: Training, theta: torch.nn.Parameter) -> None:
    """Clips the gradient of θ as the run says: by its norm, or each entry by its value.

    Args:
        training: The `training` section.
        theta: θ, with its gradient.
    """
    if training.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_([theta], training.clip_norm, foreach=False)
    if training.clip_value is not None:
        torch.nn.utils.clip_grad_value_([theta], training.clip_value, foreach=False)
