"""Whether a network is what exact curvature takes it for: found on a few examples, before anything expensive.

The verification of an eigenbasis compares the columns of the Hessian with products that go through the same network,
and so shares its faults. Here every claim is held against something that does not share them: outputs of a freshly
built network, slopes of the loss by finite differences of plain evaluations, differences of gradients. All of it is
float64, on a CPU.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.smoothness import kinks
from quadscape.errors import ModelError
from quadscape.network.losses import example_losses
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterBlock, ParameterLayout, assign_vector

Build = Callable[[torch.dtype | None], nn.Module]
"""Builds the network anew, in evaluation mode with its buffers and θ, in a precision or (None) in its own."""

EXAMPLES = 3
_SEED = 0x5E1F
# float32 against float64, relative to the largest output: far above rounding, far below what a lost cast does.
_CAST = 1e-2
_SAME = 1e-9
_SLOPE = 1e-4
_PRODUCT = 1e-4
_SYMMETRY = 1e-6
_COLUMN = 1e-6
# Steps of finite differences relative to the parameters: one of them is above rounding and meets no kink, of which a
# large network has one in nearly every direction at the longer ones.
_STEPS = (1e-5, 1e-7, 1e-8, 1e-9, 1e-4, 1e-3)


@dataclass(frozen=True)
class SelfCheck:
    """What was found of a network that passed.

    Attributes:
        kind: `exact`, or `almost everywhere` where the loss has kinks.
        kinks: Operations that have them.
        unused: Names of the parameters that have no effect on the outputs.
        errors: Largest relative deviation of each comparison.
    """

    kind: str
    kinks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    errors: dict[str, float] = field(default_factory=dict)

    def with_errors(self, errors: dict[str, float]) -> "SelfCheck":
        """The same, with other deviations in the place of those of their names."""
        return replace(self, errors=self.errors | errors)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SelfCheck":
        """From what `to_json` gave."""
        return cls(values["kind"], tuple(values["kinks"]), tuple(values["unused"]), dict(values["errors"]))

    def sentence(self) -> str:
        """For a log."""
        text = f"checked on {EXAMPLES} examples: the Hessian is {self.kind}"
        if self.kinks:
            text += f" ({', '.join(self.kinks)})"
        if self.unused:
            text += f"; without effect are {', '.join(self.unused)}"
        return text + "."


def check_network(
    build: Build, theta: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, loss: str
) -> SelfCheck:
    """Checks what depends on the network alone, whatever its parameters.

    A `ModelError` says, in one sentence, that casting changes the outputs, that something made of parameters outlives a
    call, that torch cannot differentiate a module twice or does it wrongly, or that columns differ from products.

    Args:
        build: Builds the network.
        theta: Parameters at which it is looked at, float64, shape (P,).
        images: A few normalised images, float64, shape (n, channels, height, width), on the CPU.
        labels: Class indices, int64, shape (n,).
        loss: Loss of one example.

    Returns:
        What was found.
    """
    model = build(torch.float64)
    _check_outputs(model, images)
    _check_precision(model, images, torch.float64)
    _check_precision(build(torch.float32), images, torch.float32)  # autocast leaves float64 alone
    errors = {"cast": _check_casts(build, model, images)}
    with _explained(model, "called with given parameters"):
        errors["state"] = _check_state(build, model, theta, images)
    unused = _without_effect(model, theta, images)
    objective = Objective(model, ParameterLayout.of(model), images, labels, loss, len(images))
    errors |= check_derivatives(objective, theta)
    engine = _engine(objective, theta)
    found = kinks(engine.graph)
    errors["column"] = _check_columns(objective, engine, theta)
    return SelfCheck("almost everywhere" if found else "exact", found, unused, errors)


def check_derivatives(objective: Objective, theta: torch.Tensor) -> dict[str, float]:
    """Checks gradient and Hessian product at θ against differences of the loss and of the gradient.

    A `ModelError` says which is wrong or cannot be computed.

    Args:
        objective: L over a few examples, float64.
        theta: Where, shape (P,).

    Returns:
        Largest relative deviation of the gradient (`slope`), of the product (`product`) and from symmetry.
    """
    with _explained(objective.model, "differentiated"):
        gradient = objective.gradient(theta)
    _check_finite(objective.layout, gradient, "gradient of the loss")
    errors = {"slope": _check_slopes(objective, theta, gradient)}
    with _explained(objective.model, "differentiated twice"):
        return errors | _check_product(objective, theta, gradient)


# ---------------------------------------------------------------------------------------------------------------------
# The network


# What torch raises of networks that it cannot run or differentiate.
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


def _evaluate(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    try:
        with torch.no_grad():
            return model(images)
    except _FAILURES as error:
        dtype = str(images.dtype).removeprefix("torch.")
        raise ModelError(
            f"The network failed on images of shape {tuple(images.shape)} in {dtype} ({_reason(error)})."
        ) from error


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value; infinite where one is not finite."""
    found = float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
    return found if math.isfinite(found) else math.inf


def _check_outputs(model: nn.Module, images: torch.Tensor) -> None:
    outputs = _evaluate(model, images)
    if outputs.dtype != torch.float64:
        raise ModelError(
            f"The network in float64 returns outputs in {str(outputs.dtype).removeprefix('torch.')}, so it loses "
            "precision (or an imaginary part) on the way; return real class scores in the dtype of the parameters."
        )


class _Precision(TorchFunctionMode):
    """Notes the first operation whose result follows from parameters and is of less than their precision.

    Attributes:
        found: Name of the operation, dtype of its result, and module; None: there is none.
    """

    def __init__(self, inside: list[str], dtype: torch.dtype) -> None:
        super().__init__()
        self._inside, self._bits = inside, torch.finfo(dtype).bits
        self.found: tuple[str, str, str] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function, and looks at its result."""
        result = func(*args, **(kwargs or {}))
        follows = isinstance(result, torch.Tensor) and result.requires_grad
        if self.found is None and follows and torch.finfo(result.dtype).bits < self._bits:
            name = getattr(func, "__name__", str(func))
            self.found = name, str(result.dtype).removeprefix("torch."), self._inside[-1] if self._inside else ""
        return result


def _check_precision(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuses a network that leaves its precision on the way: its outputs are no smooth function of parameters."""
    with _tracked(model) as inside, _Precision(inside, dtype) as precision, _explained(model, "evaluated"):
        model(images.to(dtype))
    if precision.found is not None:
        operation, found, layer = precision.found
        own = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"{_place(layer)} computes in {found} ('{operation}') although its parameters are {own}, so that the loss "
            "is no smooth function of them; convert to the dtype of the input, or to "
            "torch.promote_types(x.dtype, torch.float32), and switch autocast off."
        )


def _check_casts(build: Build, double: nn.Module, images: torch.Tensor) -> float:
    """Compares the network as it is built with the one in float64."""
    model = build(None)
    dtype = max((p.dtype for p in model.parameters()), key=lambda d: torch.finfo(d).bits)
    own = _evaluate(model, images.to(dtype))
    error = _difference(own.to(torch.float64), _evaluate(double, images))
    if error > max(_CAST, 50 * torch.finfo(dtype).eps):
        raise ModelError(
            f"The network's outputs in its own precision and in float64 differ by {error:.1e} (relative), so it is not "
            "the same function in both: something in it depends on the dtype, or is lost when it is converted; make "
            "the forward pass independent of the dtype."
        )
    return error


def _scales(layout: ParameterLayout, theta: torch.Tensor) -> torch.Tensor:
    """For every parameter the typical size of its tensor, of which changes are a fraction; shape (P,)."""
    scale = torch.empty_like(theta)
    for block in layout.blocks:
        part = theta[block.start : block.stop]
        scale[block.start : block.stop] = part.square().mean().sqrt().clamp_min(1e-2)
    return scale


def _random(layout: ParameterLayout, theta: torch.Tensor, stream: int) -> torch.Tensor:
    """A random direction in which every tensor changes by about its own size, shape (P,)."""
    generator = torch.Generator().manual_seed(_SEED + stream)
    return _scales(layout, theta) * torch.randn(theta.shape, generator=generator, dtype=torch.float64)


def _check_state(build: Build, model: nn.Module, theta: torch.Tensor, images: torch.Tensor) -> float:
    """Compares a network that was used at θ, at θ′ and at θ again with fresh ones, and with one that is given θ′."""
    layout = ParameterLayout.of(model)
    other = theta + 0.1 * _random(layout, theta, 1)

    def used(vector: torch.Tensor) -> torch.Tensor:
        assign_vector(model, vector)
        return _evaluate(model, images)

    def fresh(vector: torch.Tensor) -> torch.Tensor:
        new = build(torch.float64)
        assign_vector(new, vector)
        return _evaluate(new, images)

    first, moved, again = used(theta), used(other), used(theta)
    new = build(torch.float64)
    with torch.no_grad():
        given = [torch.func.functional_call(new, layout.unflatten(v), (images,)) for v in (theta, other)][1]
    expected = fresh(other)
    errors = _difference(moved, expected), _difference(again, fresh(theta)), _difference(again, first)
    if max(errors) > _SAME:
        stale = [b.name for b in layout.blocks if _moves(fresh, theta, other, b) and not _moves(used, theta, other, b)]
        named = f"; parameter '{stale[0]}' has no effect on a network that was used before" if stale else ""
        raise ModelError(
            "The network's outputs follow parameters that it had before: a used and a freshly built network with the "
            f"same parameters differ by {max(errors):.1e} (relative){named}. Something made of parameters is kept "
            "between calls; compute it anew in every forward pass."
        )
    if (error := _difference(given, expected)) > _SAME:
        raise ModelError(
            f"The network's outputs differ by {error:.1e} (relative) between parameters that are copied into it and "
            "the same parameters given to its forward pass (torch.func.functional_call), so it reaches a parameter by "
            "another way than its attribute, such as a list, a closure or a cache; register it only once, as a "
            "parameter, and use what is registered in every forward pass."
        )
    return max(*errors, error)


def _moves(
    outputs: Callable[[torch.Tensor], torch.Tensor], theta: torch.Tensor, other: torch.Tensor, block: ParameterBlock
) -> bool:
    """Whether a change of one tensor has an effect on the outputs."""
    changed = theta.clone()
    changed[block.start : block.stop] = other[block.start : block.stop]
    return not torch.equal(outputs(theta), outputs(changed))


def _without_effect(model: nn.Module, theta: torch.Tensor, images: torch.Tensor) -> tuple[str, ...]:
    """Names of the parameters whose change leaves the outputs as they are, bit for bit."""
    layout = ParameterLayout.of(model)
    other = theta + 0.1 * _random(layout, theta, 2)
    assign_vector(model, theta)
    before, found = _evaluate(model, images), []
    parameters = dict(model.named_parameters())
    for block in layout.blocks:
        values = [v[block.start : block.stop].reshape(block.shape) for v in (other, theta)]
        with torch.no_grad():
            parameters[block.name].copy_(values[0])
            if torch.equal(_evaluate(model, images), before):
                found.append(block.name)
            parameters[block.name].copy_(values[1])
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives


def _check_finite(layout: ParameterLayout, vector: torch.Tensor, what: str) -> None:
    for block in layout.blocks:
        if not bool(torch.isfinite(vector[block.start : block.stop]).all()):
            raise ModelError(
                f"The {what} in parameter '{block.name}' is not finite, although the loss is, as of a square root or a "
                "norm at zero; keep its argument away from there, for example by adding a small constant."
            )


def _check_slopes(objective: Objective, theta: torch.Tensor, gradient: torch.Tensor) -> float:
    """The gradient in each tensor against the slope of plain evaluations of the loss along a direction in it."""
    model, layout = objective.model, objective.layout
    direction = _random(layout, theta, 3)
    assign_vector(model, theta)
    parameters = dict(model.named_parameters())

    def loss(block: ParameterBlock, step: float) -> float:
        part = slice(block.start, block.stop)
        with torch.no_grad():
            parameters[block.name].copy_((theta[part] + step * direction[part]).reshape(block.shape))
            value = example_losses(model(objective.images), objective.labels, objective.loss_kind).mean()
            parameters[block.name].copy_(theta[part].reshape(block.shape))
        return float(value)

    claimed = [float(gradient[b.start : b.stop] @ direction[b.start : b.stop]) for b in layout.blocks]
    floor = 1e-7 * max(map(abs, claimed)) + 1e-9 * (1 + abs(objective.loss(theta)))
    worst = 0.0
    for block, slope in zip(layout.blocks, claimed, strict=True):
        best, seen = math.inf, math.nan
        for step in _STEPS:
            difference = (loss(block, step) - loss(block, -step)) / (2 * step)
            error = abs(difference - slope) / (max(abs(difference), abs(slope)) + floor / _SLOPE)
            if error < best or math.isnan(seen):
                best, seen = error, difference
            if best <= _SLOPE:
                break
        if not best <= _SLOPE:
            raise ModelError(
                f"The gradient of the loss in parameter '{block.name}' is not its slope ({slope:.3g} for {seen:.3g} "
                "along a random direction): a part of the network is hidden from differentiation, as by "
                "torch.no_grad(), .detach(), .data or a straight-through estimator; let it take part, or keep what it "
                "computes in a buffer."
            )
        worst = max(worst, best)
    return worst


def _check_product(objective: Objective, theta: torch.Tensor, gradient: torch.Tensor) -> dict[str, float]:
    """One product against differences of gradients, and two against symmetry."""
    layout = objective.layout
    first, second = (_random(layout, theta, stream) for stream in (4, 5))
    product, other = objective.hessian_product(theta, first), objective.hessian_product(theta, second)
    _check_finite(layout, product, "second derivative of the loss")
    size = float(torch.linalg.vector_norm(product))
    floor = 1e-7 * float(torch.linalg.vector_norm(gradient)) * float(torch.linalg.vector_norm(first)) + 1e-9
    best, where = math.inf, layout.blocks[0]
    for step in _STEPS:
        ahead, behind = (objective.gradient(theta + sign * step * first) for sign in (1, -1))
        deviation = product - (ahead - behind) / (2 * step)
        error = float(torch.linalg.vector_norm(deviation)) / (size + floor / _PRODUCT)
        if not error >= best:
            best = error
            where = max(layout.blocks, key=lambda b: float(deviation[b.start : b.stop].abs().max()))
        if best <= _PRODUCT:
            break
    if not best <= _PRODUCT:
        raise ModelError(
            f"A Hessian product differs by {best:.1e} (relative) from the difference of gradients, most in parameter "
            f"'{where.name}': a second derivative of some operation is wrong in torch, or the gradient jumps; see "
            "docs/refused.md for the operations that are known, and write it out in simpler ones."
        )
    left, right = float(second @ product), float(first @ other)
    symmetry = abs(left - right) / (float(torch.linalg.vector_norm(second)) * size + floor / _SYMMETRY)
    if not symmetry <= _SYMMETRY:
        raise ModelError(
            f"The Hessian is not symmetric (uᵀHv and vᵀHu differ by {symmetry:.1e}, relative to |u||Hv|): the gradient "
            "of some operation is not that of what it computes; write it out in simpler ones."
        )
    return {"product": best, "symmetry": symmetry}


def _engine(objective: Objective, theta: torch.Tensor) -> HessianEngine:
    try:
        return HessianEngine(objective, theta)
    except _FAILURES as error:
        raise ModelError(
            "The network cannot be differentiated operation by operation, as columns of its Hessian need "
            f"({_reason(error)}); write it in torch's own operations."
        ) from error


def _check_columns(objective: Objective, engine: HessianEngine, theta: torch.Tensor) -> float:
    """A column of every parameter tensor against the product with that unit vector."""
    generator = torch.Generator().manual_seed(_SEED)
    found, largest = [], 0.0
    for block in objective.layout.blocks:
        index = block.start + int(torch.randint(block.stop - block.start, (1,), generator=generator))
        unit = torch.zeros_like(theta)
        unit[index] = 1
        expected = objective.hessian_product(theta, unit)[index:]
        try:
            column = engine.columns(index, index + 1)[:, 0]
        except _FAILURES as error:
            node = engine.current
            place = _place(node.layer if node else "")
            what = f"'{node.target}'" if node else "an operation"
            raise ModelError(
                f"{place} has an operation, {what}, whose second derivative torch cannot compute for columns of the "
                f"Hessian ({_reason(error)}); write it out in simpler ones."
            ) from error
        size = float(torch.linalg.vector_norm(expected))
        found.append((float(torch.linalg.vector_norm(column - expected)), size, block.name))
        largest = max(largest, size)
    worst = 0.0
    for difference, size, name in found:
        relative = difference / max(size, 1e-6 * largest, 1e-300)
        if not relative <= _COLUMN and not difference <= 1e-12:
            raise ModelError(
                f"A column of the Hessian in parameter '{name}' differs by {relative:.1e} (relative) from the Hessian "
                "product: an operation of the network has different derivatives one by one and in a batch; please "
                "report the network, or write the operation out in simpler ones."
            )
        worst = max(worst, relative)
    return worst


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _reason(error: BaseException) -> str:
    """What torch says, as a part of a sentence: its own first one."""
    text = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {text[:160]}{' …' if len(text) > 160 else ''}"


def _place(layer: str) -> str:
    return f"Layer '{layer}'" if layer else "The network"


@contextmanager
def _tracked(model: nn.Module) -> Generator[list[str]]:
    """Names of the modules that a forward pass is inside of, innermost last; where one fails, they stay."""
    inside: list[str] = []

    def enter(name: str) -> None:
        if not name:  # the network itself: what an earlier pass left does not count
            inside.clear()
        inside.append(name)

    def leave(*_: object) -> None:
        inside.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, x, name=name: enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _explained(model: nn.Module, what: str) -> Generator[None]:
    """Turns what torch says of a network that it cannot differentiate into a sentence that names the module."""
    with _tracked(model) as inside:
        try:
            yield
        except ModelError:
            raise
        except _FAILURES as error:
            suspects = [*([inside[-1]] if inside else []), *_with_hooks(model)]
            raise ModelError(
                f"{_place(suspects[0] if suspects else '')} cannot be {what} by torch.func ({_reason(error)}); usual "
                "causes are a torch.autograd.Function without setup_context, activation checkpointing, and hooks on "
                "gradients: write the function out in torch's operations, and switch the others off for evaluation."
            ) from error


def _with_hooks(model: nn.Module) -> Iterator[str]:
    """Modules that have hooks on their gradients."""
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            yield name
