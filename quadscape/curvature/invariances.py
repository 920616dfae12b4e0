"""Directions in which the parameters can move while the network's function stays: generators of scales and shifts.

Where a normalisation follows a weight W, sW gives the same function; where a positively homogeneous operation (ReLU,
pooling) lies between two weights, so do sW₁ and W₂/s, for each channel of its own. With u = Aθ, A the diagonal matrix
of the exponents, L(exp(tA)θ) = L(θ) for all t, so g·u = 0 and, differentiated by θ, Hu = −Ag: for a single weight
Hu = −g_u, and uᵀHu = −u·g_u = 0 forces a negative eigenvalue whenever g_u ≠ 0. Where a constant is added that a
normalisation or the softmax takes away again, u does not depend on θ and Hu = 0: an exact null vector.

Generators are found on the traced graph. Every channel of every value has an exponent (or a shift); each operation says
which of them must be equal and which 0, and what remains free, once the output's are 0, is a family of generators. An
operation that is not known sets all to 0, so that nothing is claimed that need not hold; and what is claimed is
confirmed by gradients of single examples (`Generators.deviation`), which also measures how far the ε of a normalisation
breaks it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch

from quadscape.curvature.graph import Graph, Input, Node, trace
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterBlock

aten = torch.ops.aten
Kind = Literal["scale", "shift"]
KINDS: tuple[Kind, ...] = ("scale", "shift")

CONFIRMED = 1e-2
"""Largest |gₙ·u| / (|gₙ| |u|), over the entries of u only, with which a candidate counts as an invariance: what is none
has about 1/√entries and more in some example."""
_EXAMPLES = 16
_NOISE = 0.1

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_HOMOGENEOUS = {
    aten.relu.default,
    aten.leaky_relu.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.neg.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
}
"""f(sx) = s f(x) for s > 0, channel by channel."""
_TRANSLATED = _HOMOGENEOUS - {aten.relu.default, aten.leaky_relu.default, aten.neg.default}
"""f(x + c) = f(x) + c, channel by channel (without padding by zeros, which the confirmation would find)."""


@dataclass(frozen=True)
class Generators:
    """Generators of one kind, each of unit length.

    Attributes:
        kind: `scale` (u = Aθ) or `shift` (u constant).
        vectors: u as columns, shape (P, k), sparse, float64.
        exponents: Diagonals of A as columns, scaled as u is; zero for shifts; the same shape.
        deviation: Largest |gₙ·u| / (|gₙ| |u|) over the entries of u that was seen: 0 but for rounding and for the ε of
            normalisations.
    """

    kind: Kind
    vectors: scipy.sparse.csc_array
    exponents: scipy.sparse.csc_array
    deviation: float

    @property
    def count(self) -> int:
        """Number of generators."""
        return int(self.vectors.shape[1])

    @cached_property
    def gram(self) -> np.ndarray:
        """UᵀU, shape (k, k)."""
        return (self.vectors.T @ self.vectors).toarray()


# ---------------------------------------------------------------------------------------------------------------------
# Constraints on channels


class _Classes:
    """Channels of values that must move together; class 0 does not move."""

    def __init__(self) -> None:
        self._parents = [0]

    def new(self, count: int) -> np.ndarray:
        found = np.arange(len(self._parents), len(self._parents) + count)
        self._parents.extend(found.tolist())
        return found

    def root(self, member: int) -> int:
        while self._parents[member] != member:
            self._parents[member] = self._parents[self._parents[member]]
            member = self._parents[member]
        return member

    def roots(self, members: np.ndarray) -> np.ndarray:
        unique, inverse = np.unique(members, return_inverse=True)
        return np.array([self.root(int(m)) for m in unique], dtype=np.int64)[inverse].reshape(members.shape)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        for a, b in zip(*(part.reshape(-1) for part in np.broadcast_arrays(first, second)), strict=True):
            low, high = sorted((self.root(int(a)), self.root(int(b))))
            self._parents[high] = low

    def fix(self, members: np.ndarray) -> None:
        self.join(members, np.zeros(1, dtype=np.int64))


@dataclass(frozen=True)
class _Value:
    """Channels of a value: their classes, and the axis that counts them."""

    classes: np.ndarray
    axis: int


@dataclass(frozen=True)
class _Entries:
    """Entries of a parameter tensor: exponent = that of `plus` less that of `minus`, classes of the tensor's shape."""

    plus: np.ndarray
    minus: np.ndarray


class _Walk:
    """One pass over a graph, in which channels get their classes and parameters their exponents or shifts."""

    def __init__(self, kind: Kind, graph: Graph, values: dict[str, torch.Tensor], softmax: bool) -> None:
        self.kind, self.graph, self.tensors = kind, graph, values
        self.classes = _Classes()
        self.entries: dict[int, _Entries] = {}
        self.columns: list[tuple[int, np.ndarray]] = []
        """Weights of which one column may move with the channels that it feeds, by those channels' classes."""
        self._uses = {name: sum(node.inputs.count(name) for node in graph.nodes) for name in graph.parameters}
        owners = list(graph.parameters.values())
        self._own = {name: i for name, i in graph.parameters.items() if self._uses[name] == 1 and owners.count(i) == 1}
        self._found: dict[str, _Value] = {}
        for node in graph.nodes:
            self._found[node.name] = self._visit(node)
        outputs = self._value(graph.outputs)
        self.softmax: np.ndarray | None = None
        if kind == "shift" and softmax and outputs.axis == values[graph.outputs].ndim - 1:
            self.classes.join(outputs.classes, outputs.classes[:1])
            self.softmax = outputs.classes
        else:
            self.classes.fix(outputs.classes)

    def _value(self, name: str) -> _Value:
        if name not in self._found:
            tensor = self.tensors[name]
            axis = min(1, tensor.ndim - 1)
            channels = tensor.shape[axis] if tensor.ndim else 1
            self._found[name] = _Value(np.zeros(channels, dtype=np.int64), axis)
        return self._found[name]

    def _parameter(self, name: str | None) -> int | None:
        """Index of a parameter that this one operation alone uses."""
        return None if name is None else self._own.get(name)

    def _unknown(self, node: Node) -> _Value:
        for name in node.inputs:
            if name in self._found:
                self.classes.fix(self._found[name].classes)
        return self._value(node.name)

    def _visit(self, node: Node) -> _Value:
        args, kwargs = node.arguments
        names = [node.inputs[a.position] if isinstance(a, Input) else None for a in args]
        shape = self.tensors[node.name].shape
        handler: Callable[[Node, tuple[Any, ...], list[str | None], torch.Size], _Value | None]
        if kwargs and node.target is not aten.clone.default:
            return self._unknown(node)
        if node.target is aten.linear.default or node.target in _CONVOLUTIONS:
            handler = self._affine
        elif node.target in {aten.group_norm.default, aten.layer_norm.default}:
            handler = self._normalization
        elif node.target in (_HOMOGENEOUS if self.kind == "scale" else _TRANSLATED):
            handler = self._same
        elif node.target is aten.mean.dim:
            handler = self._mean
        elif node.target in {aten.reshape.default, aten.flatten.using_ints, aten.view.default}:
            handler = self._reshape
        elif node.target is aten.add.Tensor and self.kind == "scale":
            handler = self._sum
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            handler = self._frozen
        else:
            return self._unknown(node)
        found = handler(node, args, names, shape)
        return self._unknown(node) if found is None else found

    def _affine(self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size) -> _Value | None:
        weight, bias = self._parameter(names[1]), self._parameter(names[2] if len(names) > 2 else None)
        has_bias = len(args) > 2 and args[2] is not None
        if weight is None or (has_bias and bias is None):
            return None
        x = self._value(names[0] or "")
        tensor = self.tensors[names[1] or ""]
        axis = len(shape) - 1 if node.target is aten.linear.default else 1
        if x.axis != axis:
            return None
        if self.kind == "shift":
            # A constant passes a weight only where its sum over inputs is known: not at all.
            self.classes.fix(x.classes)
            if not has_bias:
                return None
            out = self.classes.new(tensor.shape[0])
            self.entries[bias] = _Entries(out, np.zeros_like(out))  # type: ignore[index]
            if node.target is aten.linear.default:
                self.columns.append((weight, out))
            return _Value(out, axis)
        out = self.classes.new(tensor.shape[0])
        groups = args[6] if node.target in _CONVOLUTIONS and len(args) > 6 else 1
        per_group = tensor.shape[1]
        inputs = x.classes.reshape(groups, per_group).repeat(tensor.shape[0] // groups, axis=0)
        spatial = (1,) * (tensor.ndim - 2)
        full = tuple(tensor.shape)
        self.entries[weight] = _Entries(
            np.broadcast_to(out.reshape(-1, 1, *spatial), full),
            np.broadcast_to(inputs.reshape(*full[:2], *spatial), full),
        )
        if bias is not None:
            self.entries[bias] = _Entries(out, np.zeros_like(out))
        return _Value(out, axis)

    def _normalization(
        self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size
    ) -> _Value | None:
        x = self._value(names[0] or "")
        if node.target is aten.group_norm.default:
            if x.axis != 1:
                return None
            groups, weight, bias = args[1], 2, 3
        else:
            normalised = tuple(args[1])
            if not (normalised == tuple(shape[1:]) or (x.axis == len(shape) - 1 and normalised == tuple(shape[-1:]))):
                return None
            groups, weight, bias = 1, 2, 3
        together = x.classes.reshape(groups, -1)
        self.classes.join(together, together[:, :1])
        return self._affine_part(x, [names[i] if i < len(names) else None for i in (weight, bias)], args[2:4])

    def _affine_part(self, x: _Value, names: Sequence[str | None], given: Sequence[Any]) -> _Value | None:
        """γ and β after a normalisation: whatever came in, what goes out moves with these two alone."""
        if all(argument is None for argument in given):
            return _Value(np.zeros_like(x.classes), x.axis)
        indices = [self._parameter(name) for name in names]
        if any(index is None and argument is not None for index, argument in zip(indices, given, strict=False)):
            return _Value(np.zeros_like(x.classes), x.axis)
        out = self.classes.new(len(x.classes))
        for place, (index, name) in enumerate(zip(indices, names, strict=True)):
            if index is None or (self.kind == "shift" and place == 0):
                continue
            tensor = self.tensors[name or ""]
            spread = out.reshape(-1, *(1,) * (tensor.ndim - 1)) if tensor.shape[0] == len(out) else out
            full = np.broadcast_to(spread, tuple(tensor.shape))
            self.entries[index] = _Entries(full, np.zeros_like(full))
        if self.kind == "shift" and indices[1] is None:
            return _Value(np.zeros_like(out), x.axis)
        return _Value(out, x.axis)

    def _frozen(self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size) -> _Value | None:
        x = self._value(names[0] or "")
        self.classes.fix(x.classes)
        return self._affine_part(x, names[1:3], args[1:3])

    def _same(self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size) -> _Value | None:
        x = self._value(names[0] or "")
        return x if x.axis == 1 or len(shape) == 2 or node.target is aten.relu.default else None

    def _mean(self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size) -> _Value | None:
        x = self._value(names[0] or "")
        ndim = self.tensors[names[0] or ""].ndim
        keep = len(args) > 2 and args[2]
        over = [axis % ndim for axis in args[1] or range(ndim)]
        if x.axis in over or 0 in over:
            return None
        return _Value(x.classes, x.axis - (0 if keep else sum(axis < x.axis for axis in over)))

    def _reshape(self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size) -> _Value | None:
        x, before = self._value(names[0] or ""), self.tensors[names[0] or ""].shape
        if before == shape:
            return x
        if x.axis == 1 and len(shape) == 2 and before[0] == shape[0]:
            return _Value(np.repeat(x.classes, int(np.prod(before[2:]))), 1)
        return None

    def _sum(self, node: Node, args: tuple[Any, ...], names: list[str | None], shape: torch.Size) -> _Value | None:
        if None in names[:2] or any(self.tensors[name or ""].shape != shape for name in names[:2]):
            return None
        first, second = (self._value(name or "") for name in names[:2])
        if first.axis != second.axis:
            return None
        self.classes.join(first.classes, second.classes)
        return first


# ---------------------------------------------------------------------------------------------------------------------
# Candidates


def _evaluate(graph: Graph, objective: Objective, theta: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = objective.parameters(theta)
    blocks = objective.layout.blocks
    values: dict[str, torch.Tensor] = {
        graph.images: images,
        **graph.constants,
        **{name: parameters[blocks[index].name] for name, index in graph.parameters.items()},
    }
    with torch.no_grad():
        for node in graph.nodes:
            values[node.name] = node.function(*[values[name] for name in node.inputs])
    return values


def _candidates(kind: Kind, walk: _Walk, blocks: Sequence[ParameterBlock], size: int) -> scipy.sparse.csc_array:
    """Exponents, or shifts, of the free classes, as columns."""
    rows: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    values: list[np.ndarray] = []

    def put(places: np.ndarray, members: np.ndarray, value: float) -> None:
        roots = walk.classes.roots(members)
        free = roots != 0
        rows.append(places[free])
        classes.append(roots[free])
        values.append(np.full(int(free.sum()), value))

    for index, entries in walk.entries.items():
        places = np.arange(blocks[index].start, blocks[index].stop)
        put(places, entries.plus.reshape(-1), 1.0)
        put(places, entries.minus.reshape(-1), -1.0)
    extra = int(max((c.max(initial=0) for c in classes), default=0)) + 1
    if walk.softmax is not None:
        (scores,) = np.unique(walk.classes.roots(walk.softmax))
        for index, out in walk.columns:
            if scores != 0 and (walk.classes.roots(out) == scores).all():
                # Each input's weights to all classes: as the bias, times that input.
                inputs = (blocks[index].stop - blocks[index].start) // len(out)
                rows.append(np.arange(blocks[index].start, blocks[index].stop))
                classes.append(np.tile(extra + np.arange(inputs), len(out)))
                values.append(np.ones(inputs * len(out)))
                extra += inputs
    if not rows:
        return scipy.sparse.csc_array((size, 0))
    _, numbers = np.unique(np.concatenate(classes), return_inverse=True)
    count = int(numbers.max(initial=-1)) + 1
    matrix = scipy.sparse.csc_array((np.concatenate(values), (np.concatenate(rows), numbers)), shape=(size, count))
    matrix.eliminate_zeros()
    return matrix


def _normalised(columns: scipy.sparse.csc_array) -> np.ndarray:
    return np.sqrt(np.asarray(columns.multiply(columns).sum(axis=0)).reshape(-1))


def _deviations(objective: Objective, theta: np.ndarray, columns: scipy.sparse.csc_array) -> np.ndarray:
    """Largest |gₙ·u| / (|gₙ| |u|) of some examples, gₙ restricted to the entries of u, for columns of unit length."""
    count = min(_EXAMPLES, objective.count)
    gradients = objective.example_gradients(theta, slice(0, count)).double().cpu().numpy()
    support = columns.astype(bool).astype(np.float64)
    along = np.abs(columns.T @ gradients.T)
    lengths = np.sqrt(support.T @ np.square(gradients.T))
    return np.divide(along, lengths, out=np.zeros_like(along), where=lengths > 0).max(axis=1)


def find_generators(objective: Objective, theta: np.ndarray) -> list[Generators]:
    """Finds and confirms a network's invariances.

    Args:
        objective: L, in float64.
        theta: θ, shape (P,).

    Returns:
        One `Generators` for each kind, in the order of `KINDS`; either may be empty.
    """
    images = objective.images[: min(2, objective.count)]
    graph = trace(objective.model, objective.layout, images)
    values = _evaluate(graph, objective, torch.as_tensor(theta), images)
    # At another point too, for what holds by chance at this one: zero biases, symmetric initial weights.
    chance = np.random.Generator(np.random.PCG64(0))
    spread = np.sqrt(np.square(theta).mean()) or 1.0
    other = theta + _NOISE * spread * chance.standard_normal(objective.size)
    softmax = objective.loss_kind == "cross_entropy"
    found = []
    for kind in KINDS:
        walk = _Walk(kind, graph, values, softmax)
        exponents = _candidates(kind, walk, objective.layout.blocks, objective.size)
        deviation = np.zeros(exponents.shape[1])
        for point in (other, theta):
            vectors = exponents * point[:, None] if kind == "scale" else exponents
            vectors = scipy.sparse.csc_array(vectors)
            lengths = _normalised(vectors)
            scaled = scipy.sparse.csc_array(vectors * (1.0 / np.where(lengths > 0, lengths, 1.0)))
            deviation = np.maximum(deviation, _deviations(objective, point, scaled))
        kept = (lengths > 0) & (deviation <= CONFIRMED)
        diagonal = exponents[:, kept] * (1.0 / lengths[kept]) if kind == "scale" else exponents[:, kept] * 0.0
        found.append(
            Generators(kind, scaled[:, kept], scipy.sparse.csc_array(diagonal), float(deviation[kept].max(initial=0.0)))
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Against an eigenbasis


def orthonormal_coefficients(gram: np.ndarray) -> np.ndarray:
    """T such that the columns of UT are orthonormal and span what those of U span.

    Args:
        gram: UᵀU, of unit diagonal, shape (k, k).

    Returns:
        Shape (k, r), r the numerical rank.
    """
    if not len(gram):
        return np.zeros((0, 0))
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * len(gram)
    return vectors[:, kept] / np.sqrt(values[kept])


def overlaps(components: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Squared lengths of the eigenvectors' projections onto the span of generators.

    Args:
        components: QᵀU, shape (P, k).
        gram: UᵀU, shape (k, k).

    Returns:
        From 0 to 1, shape (P,).
    """
    return np.square(components @ orthonormal_coefficients(gram)).sum(axis=1)


def negatives_without(eigenvalues: np.ndarray, components: np.ndarray, gram: np.ndarray, cut: float) -> int:
    """Eigenvalues below −cut of the Hessian restricted to what is orthogonal to all generators.

    By Haynsworth's inertia additivity (1968) for the bordered matrix of H + cut·I and an orthonormal basis B of the
    generators: n₋ of the restriction is n₋(H + cut·I) + n₊(Bᵀ(H + cut·I)⁻¹B) − r.

    Args:
        eigenvalues: λ, shape (P,).
        components: QᵀU, shape (P, k).
        gram: UᵀU, shape (k, k).
        cut: Magnitude up to which an eigenvalue counts as zero.

    Returns:
        Their number.
    """
    shifted = eigenvalues + cut
    smallest = np.finfo(np.float64).eps * max(1.0, float(np.abs(eigenvalues).max(initial=0.0)))
    shifted = np.where(np.abs(shifted) < smallest, smallest, shifted)
    along = components @ orthonormal_coefficients(gram)
    inverse = along.T @ (along / shifted[:, None])
    positive = int((np.linalg.eigvalsh((inverse + inverse.T) / 2) > 0).sum()) if inverse.size else 0
    return int((shifted < 0).sum()) + positive - along.shape[1]


def joined(generators: Iterable[Generators]) -> scipy.sparse.csc_array:
    """All generators as columns.

    Args:
        generators: Of every kind.

    Returns:
        Shape (P, k), k of all kinds together.
    """
    return scipy.sparse.csc_array(scipy.sparse.hstack([part.vectors for part in generators]))


def combined(generators: Generators, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of generators, which are generators too.

    Args:
        generators: Of one kind.
        weights: Shape (k, m).

    Returns:
        Vectors u of unit length, and the diagonals of A that belong to them; shapes (P, m).
    """
    vectors, exponents = generators.vectors @ weights, generators.exponents @ weights
    lengths = np.linalg.norm(vectors, axis=0)
    lengths[lengths == 0] = 1.0
    return vectors / lengths, exponents / lengths
