"""The loss of a plain torch module over tensors, after the checks that the workflow makes of a network."""

import copy
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from quadscape.config.values import listed
from quadscape.curvature.self_check import EXAMPLES, SelfCheck, check_network
from quadscape.errors import ConfigError, DataError, ModelError
from quadscape.measures.interfaces import as_array
from quadscape.network.checkpoint import freeze_batch_norms
from quadscape.network.models import batch_norms, cast, check_model
from quadscape.network.objective import Objective, Vector, data_chunk
from quadscape.network.parameters import ParameterLayout, assign_vector, current_vector
from quadscape.numerics import apply_numerics, current_threads, precision_kept

_LOSSES = ("cross_entropy", "squared_error")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@contextmanager
def steady() -> Generator[None]:
    """Torch as in the workflow's jobs, deterministic and in plain precision; afterwards as the user had set it."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    flags = cudnn.benchmark, cudnn.deterministic
    try:
        with (
            precision_kept(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            apply_numerics(current_threads())
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device if device.type != "cpu" else None)
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        cudnn.benchmark, cudnn.deterministic = flags


@dataclass(frozen=True)
class CheckedNetwork:
    """A copy of a user's network that passed all checks, with what tables say of it.

    Attributes:
        model: In evaluation mode, in float64 on the CPU, BatchNorm frozen at the statistics over the training inputs.
        device: Where the user's module is, and the loss is to be computed.
        theta: θ, float64, shape (P,).
        shape: Of one input.
        classes: Number of classes.
        loss: `cross_entropy` or `squared_error`.
        found: What was found of it.
        run: Name under which tables and figures show it.
        iteration: Number of steps that it was trained for.
        weight_decay: δ of its training.
    """

    model: torch.nn.Module
    device: torch.device
    theta: np.ndarray
    shape: tuple[int, ...]
    classes: int
    loss: str
    found: SelfCheck
    run: str
    iteration: int
    weight_decay: float


class NetworkObjective(Objective):
    """The loss of a user's network over some examples; `objective` makes it.

    Attributes:
        checked: The network.
        given: The inputs as they were given, in their own precision.
    """

    def __init__(self, checked: CheckedNetwork, given: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> None:
        model = cast(copy.deepcopy(checked.model), dtype, checked.device)
        images, labels = given.to(checked.device, dtype), labels.to(checked.device)
        super().__init__(model, ParameterLayout.of(model), images, labels, checked.loss, 1)
        self.checked, self.given = checked, given
        self.chunk = data_chunk(self.graph_bytes_per_example(), self.count, self.device)

    def __repr__(self) -> str:
        sizes = f"P={self.size}, N={self.count}, {self.loss_kind}, {dtype_name(self.dtype)}"
        return f"NetworkObjective({sizes}): the Hessian is {self.checked.found.kind}"

    @property
    def theta(self) -> np.ndarray:
        """θ: the parameters of the user's module when the objective was made, float64, shape (P,)."""
        return self.checked.theta

    def on(self, inputs: torch.Tensor, labels: torch.Tensor) -> "NetworkObjective":
        """The loss of the same network over other examples, such as validation data.

        Args:
            inputs: Of the same shape as those that the objective was made with.
            labels: Class indices.

        Returns:
            The objective. BatchNorm stays frozen at its statistics over the first inputs.

        Raises:
            DataError: The inputs have another shape, or there is a label of no class.
        """
        given, labels = _examples(inputs, labels)
        shape, expected = tuple(given.shape[1:]), self.checked.shape
        if shape != expected:
            raise DataError(f"One of these inputs has shape {shape}; valid here is {expected}.")
        _check_labels(labels, self.checked.classes)
        return NetworkObjective(self.checked, given, labels, self.dtype)


def objective(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    loss: str = "cross_entropy",
    *,
    dtype: str | torch.dtype = "float64",
    run: str = "network",
    iteration: int = 0,
    weight_decay: float = 0.0,
) -> NetworkObjective:
    """The mean loss of a network over some examples, L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ), yₙ).

    The module is copied and stays as it is. The copy is in evaluation mode (no dropout), with BatchNorm frozen at its
    statistics over all inputs, and on the module's device. It is checked as the workflow checks every network: that
    its loss is a plain sum over examples, and that torch's derivatives of it are right. A `QuadscapeError` of one
    sentence says what is wrong.

    Args:
        model: Maps inputs, shape (n, …), to class scores, shape (n, classes); its present parameters are θ.
        inputs: Real numbers, shape (N, …), already normalised.
        labels: Class indices, shape (N,).
        loss: Of one example: `cross_entropy`, or `squared_error`, ½|f(x) − onehot(y)|².
        dtype: `float64` or `float32`, the precision of network, Hessian and eigenbasis.
        run: Name under which tables and figures show it.
        iteration: Number of steps that it was trained for, for tables and figures.
        weight_decay: δ of its training: line searches show L̃ = L + (δ/2)|θ|² too.

    Returns:
        The objective, with θ as `theta`.

    Raises:
        ConfigError: There is no such loss or dtype.
        ModelError: The parameters are not finite, or the network is of a kind that is refused (docs/refused.md).

    >>> loss
    NetworkObjective(P=23, N=20, cross_entropy, float64): the Hessian is exact
    >>> expected = torch.nn.functional.cross_entropy(model(inputs), labels)
    >>> bool(np.isclose(loss.loss(loss.theta), expected.item()))
    True
    """
    if loss not in _LOSSES:
        raise ConfigError(f"loss is '{loss}'; valid are {listed(list(_LOSSES))}.")
    precision = DTYPES.get(dtype_name(dtype))
    if precision is None:
        raise ConfigError(f"dtype is '{dtype_name(dtype)}'; valid are {listed(list(DTYPES))}.")
    with steady():
        given, targets = _examples(inputs, labels)
        own, device = _copied(model)
        theta = current_vector(own).to(torch.float64)
        bad = int((~torch.isfinite(theta)).sum())
        if bad:
            raise ModelError(f"{bad} of the {len(theta)} parameters of the network are not finite.")
        double, classes, found = _checked(own, theta, given, targets, loss, device)
        shape = tuple(given.shape[1:])
        checked = CheckedNetwork(
            double, device, theta.numpy(), shape, classes, loss, found, run, iteration, weight_decay
        )
        return NetworkObjective(checked, given, targets, precision)


def dtype_name(dtype: str | torch.dtype) -> str:
    """Name of a precision, as in an experiment file."""
    return str(dtype).removeprefix("torch.")


def _examples(inputs: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Detached copies of what is given, if it is real numbers and one class index for each."""
    try:
        given, targets = torch.as_tensor(inputs).detach(), torch.as_tensor(labels).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"Inputs and labels must be tensors or arrays of numbers ({error}).") from error
    if given.ndim < 2 or len(given) == 0:
        raise DataError(f"The inputs have shape {tuple(given.shape)}; they must be one or more examples, (N, …).")
    if not given.is_floating_point():
        raise DataError(
            f"The inputs are {dtype_name(given.dtype)}; they must be real numbers, normalised, such as float32."
        )
    if not bool(torch.isfinite(given).all()):
        raise DataError("The inputs are not finite (NaN or infinite); leave such examples out.")
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.shape != given.shape[:1] or not whole:
        raise DataError(
            f"The labels have shape {tuple(targets.shape)} and are {dtype_name(targets.dtype)}; they must be class "
            f"indices, integers of shape ({len(given)},), one for each input."
        )
    return given.clone(), targets.to(torch.int64, copy=True)


def _check_labels(labels: torch.Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"The labels are from {low} to {high}, but the network returns scores of {classes} classes; valid are 0 to "
            f"{classes - 1}."
        )


def _copied(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.device]:
    """A copy of a user's module on the CPU, and where the module is."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"The network is a {type(model).__name__}; it must be a torch.nn.Module.")
    ParameterLayout.of(model)
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise ModelError(f"The network is on {' and '.join(devices)}; it must be on one device that holds numbers.")
    try:
        return copy.deepcopy(model).to("cpu"), torch.device(devices[0])
    except Exception as error:
        raise ModelError(
            f"The network cannot be copied ({type(error).__name__}: {' '.join(str(error).split())[:160]}), as where "
            "something made of parameters is kept in it; compute that anew in every forward pass."
        ) from error


def _checked(
    own: torch.nn.Module,
    theta: torch.Tensor,
    given: torch.Tensor,
    labels: torch.Tensor,
    loss: str,
    device: torch.device,
) -> tuple[torch.nn.Module, int, SelfCheck]:
    """The network in float64 with BatchNorm frozen, its number of classes, and what was found of it.

    The checks are those that the workflow makes before a checkpoint is written, on a few examples, on the CPU.

    Returns:
        All three.
    """
    double = cast(copy.deepcopy(own), torch.float64)
    few = given[:4].to("cpu", torch.float64)
    few = torch.cat([few, few]) if len(few) == 1 else few
    # A network that fails here, or returns something else, is told so by `check_model`.
    classes = _classes(double, few) or int(labels.max()) + 1
    check_model(double, few, classes)
    _check_labels(labels, classes)
    if batch_norms(double):
        freeze_batch_norms(double.to(device), given.to(device, torch.float64))
        double.to("cpu")
        check_model(double, few, classes)
    build = partial(_built, own, theta, dict(double.named_buffers()))
    targets = labels[: len(few)].cpu().expand(len(few))[:EXAMPLES]
    found = check_network(build, theta, few[:EXAMPLES], targets, loss)
    if found.unused:
        warnings.warn(
            f"Of the network's parameters, {', '.join(found.unused)} have no effect on its outputs; their rows of the "
            "Hessian are zero.",
            stacklevel=3,
        )
    assign_vector(double, theta)
    return double.eval(), classes, found


def _classes(model: torch.nn.Module, few: torch.Tensor) -> int:
    """Length of the rows that a network returns; 0 where it returns no rows."""
    try:
        with torch.no_grad():
            outputs = copy.deepcopy(model).eval()(few)
        return int(outputs.shape[1]) if outputs.ndim == 2 else 0
    except Exception:
        return 0


def _built(
    own: torch.nn.Module, theta: torch.Tensor, buffers: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> torch.nn.Module:
    """The network anew, in a precision or in its own."""
    model = copy.deepcopy(own)
    if dtype is not None:
        cast(model, dtype)
    assign_vector(model, theta)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return model.eval()


def in_precision(of: Objective, dtype: torch.dtype) -> Objective:
    """The same loss in a precision."""
    if of.dtype == dtype:
        return of
    if isinstance(of, NetworkObjective):
        return NetworkObjective(of.checked, of.given, of.labels, dtype)
    model = cast(copy.deepcopy(of.model), dtype)
    return Objective(model, of.layout, of.images.to(dtype), of.labels, of.loss_kind, of.chunk)


def point_of(of: Objective, theta: Vector | None) -> np.ndarray:
    """θ where something is asked for.

    Args:
        of: The objective.
        theta: θ; None: the parameters that the network has.

    Returns:
        θ, float64, shape (P,).

    Raises:
        ModelError: This is no objective, or no finite θ of its size.
    """
    if not isinstance(of, Objective):
        raise ModelError(
            f"A {type(of).__name__} is no objective; quadscape.objective(model, inputs, labels) makes one."
        )
    if theta is None:
        theta = of.theta if isinstance(of, NetworkObjective) else current_vector(of.model)
    point = as_array(theta)
    if point.shape != (of.size,):
        raise ModelError(f"θ has shape {point.shape}; it must have one number for each parameter, ({of.size},).")
    if not np.isfinite(point).all():
        raise ModelError(f"{int((~np.isfinite(point)).sum())} of the {of.size} numbers of θ are not finite.")
    return point
