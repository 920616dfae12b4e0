"""The library for a notebook: a plain torch module and tensors in, Hessian, eigenbasis, tables and figures out.

What the workflow does in stages on disk is done here in memory, with the same engine, the same checks of the network,
and the same verification of every matrix; what does not fit into memory is refused with the sizes.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
>>> inputs, labels = torch.randn(20, 4), torch.randint(2, (20,))
>>> loss = objective(model, inputs, labels)
>>> basis = eigenbasis(loss)

The examples of the functions go on from these lines.
"""

import copy
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quadscape.amounts import format_bytes
from quadscape.config.values import listed
from quadscape.curvature.eigensolver import decompose, fix_signs, plan_solver
from quadscape.curvature.engine import HessianEngine
from quadscape.curvature.invariances import (
    Generators,
    combined,
    find_generators,
    joined,
    negatives_without,
    overlaps,
)
from quadscape.curvature.matrix_free import CurvatureOperator, ExtremeEigenpairs, extreme_eigenpairs
from quadscape.curvature.self_check import EXAMPLES, SelfCheck, check_network
from quadscape.curvature.solver_plan import LIBRARY_MATRICES
from quadscape.curvature.strips import UNIT_FLOPS, check_finite, cut_strips, multiply_probes
from quadscape.curvature.verification import (
    DEFLATED_SEED,
    FORCED,
    FORCED_SEED,
    PROBE_SEED,
    SIGN_PROBES,
    BasisEvidence,
    Evidence,
    Forced,
    Spots,
    deflated_indices,
    project_out,
    sampled_ranks,
    sign_probes,
    spot_columns,
    verify_eigenbasis,
    verify_hessian,
)
from quadscape.errors import ConfigError, DataError, ModelError, StageError
from quadscape.figures import FIGURES
from quadscape.measures import MEASURES, OWNERS
from quadscape.measures.declaration import Measure, effective_options
from quadscape.measures.density import compute as density
from quadscape.measures.gradients import compute as gradients
from quadscape.measures.interfaces import as_array, checkpoint_head
from quadscape.measures.line_search import compute as line_search
from quadscape.measures.localisation import compute as localisation
from quadscape.measures.overlap import compute as overlap
from quadscape.measures.spectrum import compute as spectrum
from quadscape.memory_limits import memory_available
from quadscape.network.checkpoint import freeze_batch_norms
from quadscape.network.models import batch_norms, cast, check_model
from quadscape.network.objective import Objective, Vector, data_chunk
from quadscape.network.parameters import ParameterLayout, assign_vector, current_vector
from quadscape.numerics import apply_numerics, current_threads, device_memory_explained
from quadscape.planning.experiment import check_problem
from quadscape.planning.experiment_file import parse_experiment
from quadscape.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSSES = ("cross_entropy", "squared_error")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_TILE = 1024
_MANY = 1 << 62


@contextmanager
def _steady() -> Generator[None]:
    """Torch as in the workflow's jobs, deterministic and in plain precision; afterwards as the user had set it."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    flags = cudnn.benchmark, cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32
    apply_numerics(current_threads())
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device if device.type != "cpu" else None)
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        cudnn.benchmark, cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32 = flags


# ---------------------------------------------------------------------------------------------------------------------
# The loss


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
        sizes = f"P={self.size}, N={self.count}, {self.loss_kind}, {_name(self.dtype)}"
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
    precision = _DTYPES.get(_name(dtype))
    if precision is None:
        raise ConfigError(f"dtype is '{_name(dtype)}'; valid are {listed(list(_DTYPES))}.")
    with _steady():
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


def _name(dtype: str | torch.dtype) -> str:
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
        raise DataError(f"The inputs are {_name(given.dtype)}; they must be real numbers, normalised, such as float32.")
    if not bool(torch.isfinite(given).all()):
        raise DataError("The inputs are not finite (NaN or infinite); leave such examples out.")
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.shape != given.shape[:1] or not whole:
        raise DataError(
            f"The labels have shape {tuple(targets.shape)} and are {_name(targets.dtype)}; they must be class indices, "
            f"integers of shape ({len(given)},), one for each input."
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


def _in_precision(of: Objective, dtype: torch.dtype) -> Objective:
    if of.dtype == dtype:
        return of
    if isinstance(of, NetworkObjective):
        return NetworkObjective(of.checked, of.given, of.labels, dtype)
    model = cast(copy.deepcopy(of.model), dtype)
    return Objective(model, of.layout, of.images.to(dtype), of.labels, of.loss_kind, of.chunk)


def _point(of: Objective, theta: Vector | None) -> np.ndarray:
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


# ---------------------------------------------------------------------------------------------------------------------
# Hessian


@dataclass(frozen=True, eq=False)
class Hessian:
    """The exact Hessian of a loss at θ, in memory.

    Attributes:
        matrix: ∇²L(θ), symmetric, shape (P, P), in the objective's dtype.
        verification: Trace, norm and errors of the matrix, and every check with its threshold.
        products: Independent float64 products with the sign vectors of `PROBE_SEED`, shape (P, SIGN_PROBES).
        objective: L.
        theta: θ, shape (P,).
    """

    matrix: np.ndarray
    verification: dict[str, Any]
    products: np.ndarray
    objective: Objective
    theta: np.ndarray

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        found = self.verification
        return f"Hessian(P={len(self.matrix)}, {self.matrix.dtype}, relative error {found['relative_error']:.1e})"


def _check_room(what: str, of: Objective, matrices: int, more: int = 0) -> None:
    """Refuses what does not fit into memory."""
    needed, there = matrices * of.size**2 * of.dtype.itemsize + more, memory_available()
    if needed > there:
        narrower = "" if of.dtype == torch.float32 else "take dtype='float32', "
        raise StageError(
            f"{what} of {of.size:,} parameters in {_name(of.dtype)} takes {format_bytes(needed)} of memory, of which "
            f"{format_bytes(there)} are free here; {narrower}make the network smaller, ask for what needs no matrix "
            "(top_eigenpairs, the measure 'density'), or use the workflow, which keeps matrices on disk "
            "(docs/scale.md)."
        )


def hessian(objective: Objective, theta: Vector | None = None) -> Hessian:
    """The exact Hessian ∇²L(θ), verified against independent products.

    Args:
        objective: L, as from `objective(model, inputs, labels)`.
        theta: θ, shape (P,); None: the network's own parameters.

    Returns:
        The matrix, with what it was verified with. It is an array to NumPy: `numpy.asarray(hessian)`.

    A `StageError` says that it does not fit into memory, a `VerificationError` that it failed a check.

    >>> found = hessian(loss)
    >>> found.matrix.shape, bool((found.matrix == found.matrix.T).all())
    ((23, 23), True)
    >>> found.verification["relative_error"] < 1e-14
    True
    """
    point, size, name = _point(objective, theta), objective.size, _name(objective.dtype)
    _check_room("The Hessian", objective, 1)
    with _steady(), device_memory_explained("columns of the Hessian", "take fewer parameters, or a CPU"):
        engine = HessianEngine(objective, point)
        bounds = cut_strips(size, engine.flops, UNIT_FLOPS[objective.device.type])[1]
        if objective.device.type == "cpu":
            widest = int(np.diff(bounds).max())
            _check_room("The Hessian", objective, 1, engine.memory_bytes(widest) + 24 * size * widest)
        matrix = np.empty((size, size), dtype=name)
        for start, stop in pairwise(bounds):
            strip = engine.columns(start, stop).numpy()
            check_finite(strip, start, "the Hessian")
            matrix[start:, start:stop] = strip
        precisions = {key: _in_precision(objective, dtype) for key, dtype in _DTYPES.items()}
        products = multiply_probes(
            size, slice(0, SIGN_PROBES), lambda key, vector: precisions[key].hessian_product(point, vector)
        )
        verification = verify_hessian(
            ((start, matrix[start:, start:stop]) for start, stop in pairwise(bounds)),
            objective.layout,
            sign_probes(size, SIGN_PROBES, PROBE_SEED),
            products["products"][1],
            products["float32_products"][1],
            name,
        )
    for start, stop in pairwise(bounds):
        corner = matrix[start:stop, start:stop]
        matrix[start:stop, start:stop] = (corner + corner.T) / 2
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
    return Hessian(matrix, verification, products["products"][1], objective, point)


# ---------------------------------------------------------------------------------------------------------------------
# Eigenbasis


@dataclass(frozen=True, eq=False)
class DenseEigenbasis:
    """All eigenpairs of a Hessian, in memory, verified as the workflow verifies an eigenbasis.

    Attributes:
        eigenvalues: λ₁ ≥ … ≥ λ_P, float64, shape (P,).
        eigenvectors: As columns, orthonormal, the component of largest magnitude positive, shape (P, P).
        verification: Value and threshold of every check, and the estimates behind them.
        invariances: Numbers of generators, and of negative eigenvalues with and without them.
        generator_overlaps: Squared lengths of the eigenvectors' projections onto scale, then shift generators, (P, 2).
        objective: L.
        theta: θ, shape (P,).
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    verification: dict[str, Any]
    invariances: dict[str, Any]
    generator_overlaps: np.ndarray
    objective: Objective
    theta: np.ndarray

    def __repr__(self) -> str:
        largest, smallest = self.eigenvalues[[0, -1]]
        return f"DenseEigenbasis(P={self.size}, λ from {largest:.4g} to {smallest:.4g}, ε_λ={self.zero_threshold:.1e})"

    @property
    def size(self) -> int:
        """P."""
        return len(self.eigenvalues)

    @property
    def zero_threshold(self) -> float:
        """Numerical zero ε_λ: eigenvalues of smaller magnitude cannot be told from 0."""
        return float(self.verification["zero_threshold"])

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Eigenvectors start … stop − 1 as columns, shape (P, stop − start)."""
        return self.eigenvectors[:, start:stop]

    def select(self, indices: np.ndarray) -> np.ndarray:
        """Eigenvectors of any indices as columns, shape (P, k)."""
        return self.eigenvectors[:, indices]


@dataclass(frozen=True)
class _Pairs:
    """Eigenpairs that are not verified yet."""

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @property
    def size(self) -> int:
        return len(self.eigenvalues)

    def vectors(self, start: int, stop: int) -> np.ndarray:
        return self.eigenvectors[:, start:stop]

    def select(self, indices: np.ndarray) -> np.ndarray:
        return self.eigenvectors[:, indices]


def eigenbasis(of: Hessian | Objective, theta: Vector | None = None) -> DenseEigenbasis:
    """The whole eigenbasis H = QΛQᵀ of a Hessian, verified against independent products.

    Args:
        of: The Hessian from `hessian`, or the objective whose Hessian is then computed.
        theta: θ of an objective, shape (P,); None: the network's own parameters.

    Returns:
        Eigenvalues in descending order with their eigenvectors.

    Raises:
        ModelError: `theta` is given for a Hessian, which has its own.

    A `StageError` says that it does not fit into memory, a `VerificationError` that it failed a check.

    >>> basis.eigenvectors.shape, bool(basis.eigenvalues[0] > basis.zero_threshold)
    ((23, 23), True)
    >>> basis.invariances["shift"]["generators"]  # all scores may shift alike: by the bias, and by each hidden unit
    4
    """
    if isinstance(of, Hessian):
        if theta is not None:
            raise ModelError("theta is given with a Hessian, which has its own; give one of them.")
        found = of
    else:
        _point(of, theta)
        _check_solvable(of, LIBRARY_MATRICES + 1)
        found = hessian(of, theta)
    _check_solvable(found.objective, LIBRARY_MATRICES)
    device = found.objective.device
    with _steady(), device_memory_explained(f"the eigenproblem of {len(found.matrix)} columns"):
        matrix = torch.from_numpy(found.matrix.copy()).to(device)
        values, vectors = decompose(matrix, current_threads())
        del matrix
        pairs = _Pairs(values, fix_signs(vectors))
        del vectors
        return _verified(found, pairs)


def _check_solvable(of: Objective, matrices: int) -> None:
    _check_room("The eigenbasis", of, matrices if of.device.type == "cpu" else 2)
    if plan_solver(of.size, _name(of.dtype), of.device)["solver"] == "streamed":
        raise StageError(
            f"The eigenproblem of {of.size:,} columns in {_name(of.dtype)} is too large to be solved at once on this "
            f"{of.device.type}; use the workflow, which solves it in parts (docs/scale.md)."
        )


def _verified(found: Hessian, pairs: _Pairs) -> DenseEigenbasis:
    """Eigenpairs of a Hessian held against products of the float64 objective, as the stage `eigenbasis` does."""
    size, double = pairs.size, _in_precision(found.objective, torch.float64)
    generators = find_generators(double, found.theta)

    def evidence_of(vectors: np.ndarray) -> Evidence:
        products = [double.hessian_product(found.theta, vector).numpy() for vector in vectors.T.astype(np.float64)]
        return Evidence(vectors.astype(np.float64), np.stack(products, axis=1))

    signs = sign_probes(size, SIGN_PROBES, DEFLATED_SEED)
    spots = spot_columns(found.objective.layout)
    units = np.zeros((size, len(spots)))
    units[spots, np.arange(len(spots))] = 1.0
    evidence = BasisEvidence(
        Evidence(sign_probes(size, SIGN_PROBES, PROBE_SEED), found.products),
        evidence_of(pairs.select(sampled_ranks(size))),
        evidence_of(project_out(pairs.select(deflated_indices(pairs.eigenvalues)), signs)),
        Spots(found.matrix[:, spots].astype(np.float64), evidence_of(units).products),
        _forced(generators, double.gradient(found.theta).numpy(), evidence_of),
    )
    verification = verify_eigenbasis(
        pairs,
        found.verification,
        evidence,
        found.matrix.dtype.name,
        found.objective.device,
        _TILE,
    )
    cut, vectors = verification["zero_threshold"], pairs.eigenvectors
    along = [np.asarray((part.vectors.T @ vectors).T, dtype=np.float64) for part in generators]
    every = joined(generators)
    invariances: dict[str, Any] = {
        **{part.kind: {"generators": part.count, "deviation": part.deviation} for part in generators},
        "negative": int((pairs.eigenvalues < -cut).sum()),
        "negative_without_generators": negatives_without(
            pairs.eigenvalues, np.concatenate(along, axis=1), (every.T @ every).toarray(), cut
        ),
    }
    squares = [overlaps(components, part.gram) for components, part in zip(along, generators, strict=True)]
    return DenseEigenbasis(
        pairs.eigenvalues,
        vectors,
        verification,
        invariances,
        np.stack(squares, axis=1),
        found.objective,
        found.theta,
    )


def _forced(
    generators: Sequence[Generators], gradient: np.ndarray, evidence_of: Callable[[np.ndarray], Evidence]
) -> dict[str, Forced]:
    """What the network's invariances force products with the Hessian to be."""
    forced: dict[str, Forced] = {}
    for part in generators:
        if part.count:
            sums, exponents = combined(part, sign_probes(part.count, FORCED, FORCED_SEED))
            products = evidence_of(sums).products
            forced[part.kind] = Forced(sums, products, -exponents * gradient[:, None], part.deviation)
    return forced


def top_eigenpairs(objective: Objective, k: int, theta: Vector | None = None) -> ExtremeEigenpairs:
    """The k largest eigenvalues of the Hessian with their eigenvectors, from products alone, without the matrix.

    Args:
        objective: L.
        k: How many.
        theta: θ, shape (P,); None: the network's own parameters.

    Returns:
        Eigenvalues in descending order, eigenvectors as columns, and the residual of each.

    A `ModelError` says that k is none of 1 to P, a `VerificationError` that they did not converge.

    >>> bool(np.allclose(top_eigenpairs(loss, 2).eigenvalues, basis.eigenvalues[:2]))
    True
    """
    point = _point(objective, theta)
    tolerance = 1e-5 if objective.dtype == torch.float32 else 1e-8
    with _steady(), device_memory_explained("a product with the Hessian"):
        return extreme_eigenpairs(CurvatureOperator(objective, point), k, 0, tolerance=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Measures and figures by name


class _NoExamples:
    """The loss over no examples, where no validation data are given: all its values are NaN."""

    count = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def example_losses(self, theta: Any) -> np.ndarray:
        return np.full(1, np.nan)

    def gradient(self, theta: Any) -> np.ndarray:
        return np.full(self.size, np.nan)

    def hessian_product(self, theta: Any, v: Any) -> np.ndarray:
        return np.full(self.size, np.nan)

    def example_gradients(self, theta: Any, examples: slice) -> np.ndarray:
        return np.empty((0, self.size))


def measure(
    name: str,
    of: DenseEigenbasis | NetworkObjective,
    other: DenseEigenbasis | None = None,
    *,
    validation: Objective | None = None,
    **options: Any,
) -> dict[str, Table]:
    """One measure, by the name that it has in experiment files.

    Args:
        name: `spectrum`, `line_search`, `gradients` or `localisation` of an eigenbasis, `density` of an objective or an
            eigenbasis, or `overlap` of two eigenbases.
        of: What is measured.
        other: The second eigenbasis of `overlap`.
        validation: The loss on validation data, for `line_search`: `loss.on(inputs, labels)`. None: only the training
            loss is searched, and what columns say of validation is NaN.
        **options: The measure's section of the experiment file (docs/configuration.md); a default that exceeds the
            number of parameters is clipped.

    Returns:
        The measure's tables by name. `table["column"]` is an array, `table.schema` says what each column is, and
        `table.attributes` holds what is true of the whole table.

    Raises:
        ConfigError: There is no such measure or option, or it is not measured of this.

    >>> tables = measure("line_search", basis, directions=5)
    >>> sorted(tables), len(tables["line_fit"])
    (['line_fit', 'line_search'], 5)
    >>> tables["line_fit"].schema.all_columns()["newton"].description
    'Minimum of the quadratic −gᵀq/qᵀHq; NaN unless the curvature is positive.'
    """
    declared = _declared(name)
    subject = of.objective if isinstance(of, DenseEigenbasis) else of
    if not isinstance(subject, NetworkObjective):
        raise ConfigError(
            f"'{name}' is measured of what quadscape.objective made, or of its eigenbasis, not of the class "
            f"{type(subject).__name__}."
        )
    chosen = _options(declared, options, subject)
    for wanted, given, what in (("overlap", other, "other"), ("line_search", validation, "validation")):
        if given is not None and name != wanted:
            raise ConfigError(f"'{name}' takes no {what}, which belongs to '{wanted}'.")
    if validation is not None and (not isinstance(validation, Objective) or validation.layout != subject.layout):
        raise ConfigError("validation is no objective of the same network; give loss.on(inputs, labels).")
    with _steady():
        if name == "density":
            head = checkpoint_head(subject.checked, subject.size, subject.count)
            return {"density": density.measure(CurvatureOperator(subject, of.theta), chosen, head)}
        if not isinstance(of, DenseEigenbasis):
            raise ConfigError(f"'{name}' is measured of an eigenbasis; give quadscape.eigenbasis(objective).")
        if name == "overlap":
            return _overlap(of, other, chosen)
        return _of_basis(name, of, subject, chosen, validation)


def _of_basis(
    name: str, basis: DenseEigenbasis, loss: NetworkObjective, options: SimpleNamespace, validation: Objective | None
) -> dict[str, Table]:
    """What is measured of one eigenbasis."""
    head = checkpoint_head(loss.checked, loss.size, loss.count) | {"zero_threshold": basis.zero_threshold}
    if name == "spectrum":
        head["invariances"] = basis.invariances
        found = spectrum.measure(basis.eigenvalues, basis.zero_threshold, basis.generator_overlaps, head)
        return {"spectrum": found}
    if name == "gradients":
        return gradients.measure(loss, basis, basis.theta, head, device=loss.device)
    if name == "localisation":
        blocks = [
            (block.layer or "(network)", block.name.rpartition(".")[2], slice(block.start, block.stop))
            for block in loss.layout.blocks
        ]
        return localisation.measure(basis, blocks, head)
    epsilon = torch.finfo(loss.dtype).eps
    if validation is not None:
        return line_search.measure(loss, validation, basis, basis.theta, options, head, epsilon=epsilon)
    tables = line_search.measure(loss, _NoExamples(loss.size), basis, basis.theta, options, head, epsilon=epsilon)
    lines = tables["line_search"]
    return {**tables, "line_search": lines.where(lines["split"] == "train")}


def _overlap(first: DenseEigenbasis, second: DenseEigenbasis | None, options: SimpleNamespace) -> dict[str, Table]:
    if second is None or second.size != first.size:
        size = "none" if second is None else f"{second.size} eigenvectors"
        raise ConfigError(
            f"'overlap' compares two eigenbases of one network; the first has {first.size} eigenvectors, the other: "
            f"{size}."
        )
    networks = [basis.objective.checked for basis in (first, second) if isinstance(basis.objective, NetworkObjective)]
    steps = {"iteration_a": networks[0].iteration, "iteration_b": networks[-1].iteration}
    head = {"run": networks[0].run, **steps, "P": first.size}
    return overlap.measure(first, second, options.bands, head, device=first.objective.device)


_HERE = ("spectrum", "line_search", "gradients", "localisation", "density", "overlap")


def _declared(name: str) -> Measure:
    if name not in MEASURES:
        raise ConfigError(f"There is no measure '{name}'; the measures here are {listed(list(_HERE))}.")
    if name not in _HERE:
        raise ConfigError(
            f"'{name}' is measured of results on disk, by the workflow; the measures here are {listed(list(_HERE))}."
        )
    return MEASURES[name]


def _options(declared: Measure, options: Mapping[str, Any], loss: NetworkObjective) -> SimpleNamespace:
    """Options checked as those of an experiment file are."""
    known = [option.name for option in declared.options]
    for name in options:
        if name not in known:
            raise ConfigError(f"'{declared.name}' has no option '{name}'; its options are {listed(known)}.")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    experiment = parse_experiment({"measures": {declared.name: plain}})
    check_problem(experiment, loss.size, _MANY)  # nothing is trained here: no batch is too large
    given = experiment.measures.given(declared.name) | {"dtype": _name(loss.dtype)}
    return SimpleNamespace(**effective_options(declared, given, loss.size))


def draw(name: str, *tables: Table | Mapping[str, Table | Sequence[Table]]) -> "Figure":
    """One figure of the report, by its name.

    Args:
        name: Such as `spectrum`, `line_searches` or `quadratic_radius`: a key of `quadscape.figures.FIGURES`, whose
            `caption` tells how to read it.
        *tables: What `measure`, or `Results.tables`, returned, of one checkpoint or several in their order.

    Returns:
        The figure, which a notebook shows, and `savefig` or `quadscape.figures.save` writes.

    Raises:
        ConfigError: There is no such figure, or a table that it reads is missing.

    >>> figure = draw("spectrum", measure("spectrum", basis))
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['rank within the sign']
    """
    if name not in FIGURES:
        raise ConfigError(f"There is no figure '{name}'; the figures are {listed(list(FIGURES))}.")
    found: dict[str, list[Table]] = {}
    for table in FIGURES[name].tables:
        found[table] = []
        for given in tables:
            named = {given.schema.name: given} if isinstance(given, Table) else given
            one = named.get(table, ())
            found[table] += [one] if isinstance(one, Table) else list(one)
        if not found[table]:
            raise ConfigError(
                f"The figure '{name}' reads the table '{table}' of the measure '{OWNERS[table].name}', which was not "
                "given."
            )
    return FIGURES[name].draw(found)
