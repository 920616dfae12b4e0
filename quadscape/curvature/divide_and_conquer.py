"""All eigenpairs of a symmetric tridiagonal matrix, of which any range of vectors can be had without the others.

Divide and conquer (Cuppen 1981): T = diag(T₁, T₂) + ρ u uᵀ with half-size T₁ = Q₁D₁Q₁ᵀ and T₂ = Q₂D₂Q₂ᵀ, so that
T = diag(Q₁, Q₂)(D + ρ z zᵀ)diag(Q₁, Q₂)ᵀ. The eigenvalues λᵢ of D + ρ z zᵀ are the roots of the secular equation
1 + ρ Σⱼ zⱼ²/(dⱼ − λ) = 0, and its eigenvectors have the entries ẑⱼ/(dⱼ − λᵢ), with the ẑ for which the computed λᵢ are
exact (Gu and Eisenstat 1994): orthogonal to rounding however close the eigenvalues lie.

Those entries are a formula in O(n) numbers, so nothing of size n² is kept: `merge_level` finds the numbers, one level
of the recursion at a time, and `Tree.vectors` multiplies a range of columns through the levels, from the root down,
making the factors in tiles as it goes. Over all columns that is 2n³ operations, matrix products in float64, and memory
for a few n×k matrices for ranges of k columns.

MRRR by ranges (LAPACK's stemr with an index range) was tried first: each range builds its own representation, and
vectors of different ranges were orthogonal to 1e-6 only (n = 3,000, power law), with exactly degenerate eigenvalues it
failed, and all ranges together took three times as long as one call.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from quadscape.curvature.solver_plan import FIELDS, LEAF, bounds, depth

_GROUP = 32
"""Rows that plane rotations which are multiplied into one small matrix may touch."""
_ITERATIONS = 100
_DEFLATION = 2.0
"""What counts as zero, in units of eps: the residual that deflation leaves. LAPACK has 8."""
_EPS = float(np.finfo("float64").eps)


def _scale(diagonal: np.ndarray, off_diagonal: np.ndarray) -> float:
    """A power of two near the largest entry: dividing by it is exact."""
    largest = max(float(np.abs(diagonal).max()), float(np.abs(off_diagonal).max(initial=0.0)))
    return 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Leaves


def _dense_pairs(dense: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Eigenpairs of a small matrix of which the lower triangle is given."""
    if device.type == "cuda":
        values, q = torch.linalg.eigh(torch.from_numpy(dense).to(device))
        return values.cpu().numpy(), q.cpu().numpy()
    # Only here, so that a GPU needs no SciPy.
    import scipy.linalg

    return scipy.linalg.eigh(dense, lower=True, driver="evd")


def solve_leaves(
    diagonal: np.ndarray, off_diagonal: np.ndarray, device: torch.device | str = "cpu", leaf: int = LEAF
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenpairs of the blocks on the diagonal, less what couples them.

    Args:
        diagonal: Of T, shape (n,).
        off_diagonal: Of T, shape (n − 1,).
        device: Of the arithmetic.
        leaf: Rows of the largest block.

    Returns:
        Level 0, shape (len(FIELDS), n), and the leaves' eigenvectors: rows of all leaves below each other, shape
        (n, at most `leaf`); columns beyond a leaf's size are zero.
    """
    size, scale = len(diagonal), _scale(diagonal, off_diagonal)
    d, e = diagonal / scale, off_diagonal / scale
    cuts = bounds(size, 0, leaf)
    for cut in cuts[1:-1]:
        d[cut - 1] -= abs(e[cut - 1])
        d[cut] -= abs(e[cut - 1])
    level = np.full((len(FIELDS), size), -1.0)
    vectors = np.zeros((size, max(b - a for a, b in pairwise(cuts))))
    for a, b in pairwise(cuts):
        dense = np.diag(d[a:b]) + np.diag(e[a : b - 1], -1)
        values, q = _dense_pairs(dense, torch.device(device))
        level[:3, a:b] = values, q[0], q[-1]
        vectors[a:b, : b - a] = q
    return level, vectors


# ---------------------------------------------------------------------------------------------------------------------
# One merge


def _deflate(
    d: np.ndarray, z: np.ndarray, rho: float
) -> tuple[list[int], list[int], list[tuple[int, int, float, float]]]:
    """Takes out what the secular equation need not know: negligible zⱼ, and of two close dⱼ one (LAPACK's `dlaed2`).

    Args:
        d: Ascending in the order given by the caller's sort; changed in place by rotations.
        z: Of norm 1; changed in place.
        rho: ρ > 0.

    Returns:
        Positions that stay coupled, those that are deflated, and the rotations (first, second, cosine, sine).
    """
    tolerance = _DEFLATION * _EPS * max(float(np.abs(d).max()), float(np.abs(z).max()))
    coupled: list[int] = []
    deflated: list[int] = []
    rotations: list[tuple[int, int, float, float]] = []
    values, weights = d.tolist(), z.tolist()
    previous = -1
    for j in range(len(values)):
        if rho * abs(weights[j]) <= tolerance:
            deflated.append(j)
            continue
        if previous >= 0:
            length = math.hypot(weights[j], weights[previous])
            cosine, sine = weights[j] / length, -weights[previous] / length
            if abs((values[j] - values[previous]) * cosine * sine) <= tolerance:
                low, high = values[previous], values[j]
                weights[j], weights[previous] = length, 0.0
                values[previous] = low * cosine**2 + high * sine**2
                values[j] = low * sine**2 + high * cosine**2
                rotations.append((previous, j, cosine, sine))
                deflated.append(previous)
            else:
                coupled.append(previous)
        previous = j
    if previous >= 0:
        coupled.append(previous)
    d[:], z[:] = values, weights
    return coupled, deflated, rotations


def _tiles(rows: int, columns: int, tile_bytes: int) -> list[slice]:
    step = max(1, tile_bytes // (8 * max(1, columns)))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def _secular_roots(d: torch.Tensor, z: torch.Tensor, rho: float, tile_bytes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Roots of 1 + ρ Σ zⱼ²/(dⱼ − λ), each as the pole that it is closest to and its distance from it.

    Safeguarded rational interpolation at the two neighbouring poles (Li 1993, "the middle way").

    Args:
        d: Poles, strictly ascending, shape (k,), k ≥ 2.
        z: Weights, none 0.
        rho: ρ > 0.
        tile_bytes: Memory of one tile.

    Returns:
        Index of the pole, and λ less that pole, both of shape (k,).
    """
    count = len(d)
    square = rho * z.square()
    origins = torch.empty(count, dtype=torch.int64, device=d.device)
    offsets = torch.empty_like(d)
    for rows in _tiles(count, count, tile_bytes):
        index = torch.arange(rows.start, rows.stop, device=d.device)
        is_last = index == count - 1
        # The poles between which a root is interpolated; the last root lies beyond both.
        left = torch.where(is_last, index - 1, index)
        right = left + 1
        end = torch.where(is_last, square.sum(), d[right] - d[index])
        # ψ sums poles up to `left`, φ those from `right` on; within this tile's own columns a mask tells.
        first, final = min(rows.start, count - 2), min(rows.stop, count - 1) + 1
        mask = (torch.arange(first, final, device=d.device) <= left[:, None]).double()
        inside = mask * square[first:final], (1.0 - mask) * square[first:final]

        def sums(inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            middle = inverse[:, first:final]  # ruff: ignore[function-uses-loop-variable]
            return (
                inverse[:, :first] @ square[:first] + (middle * inside[0]).sum(dim=1),  # ruff: ignore[function-uses-loop-variable]
                inverse[:, final:] @ square[final:] + (middle * inside[1]).sum(dim=1),  # ruff: ignore[function-uses-loop-variable]
            )

        def terms(origin: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
            return ((d - d[origin][:, None]) - tau[:, None]).reciprocal_()

        # Which half of the interval? There the nearer pole is the origin.
        psi, phi = sums(terms(index, end / 2))
        middle_value = 1.0 + psi + phi
        from_left = is_last | (middle_value >= 0)
        origin = torch.where(from_left, index, right)
        low = torch.where(is_last & (middle_value < 0), end / 2, torch.where(from_left, 0.0, -end / 2))
        high = torch.where(is_last & (middle_value < 0), end, torch.where(from_left, end / 2, 0.0))
        # Start: the two nearest poles exactly, the others as they are in the middle.
        tau = _start(d, square, index, is_last, from_left, end, middle_value)
        tau = torch.where((tau > low) & (tau < high), tau, (low + high) / 2)
        active = torch.ones_like(is_last)
        for _ in range(_ITERATIONS):
            inverse = terms(origin, tau)
            psi, phi = sums(inverse)
            slopes = sums(inverse.square_())
            value = 1.0 + psi + phi
            low = torch.where(value < 0, torch.maximum(low, tau), low)
            high = torch.where(value > 0, torch.minimum(high, tau), high)
            error = _EPS * (8.0 * (phi - psi) + 2.0 + tau.abs() * (slopes[0] + slopes[1]))
            done = (value.abs() <= error) | (high - low <= 2.0 * _EPS * torch.maximum(low.abs(), high.abs()))
            active &= ~done
            if not bool(active.any()):
                break
            step = _middle_way(d[left] - d[origin] - tau, d[right] - d[origin] - tau, value, slopes, is_last)
            proposed = tau + step
            inner = (proposed > low) & (proposed < high)
            tau = torch.where(active, torch.where(inner, proposed, _halved(low, high)), tau)
        origins[rows], offsets[rows] = origin, tau
    return origins, offsets


def _start(
    d: torch.Tensor,
    square: torch.Tensor,
    index: torch.Tensor,
    is_last: torch.Tensor,
    from_left: torch.Tensor,
    end: torch.Tensor,
    middle_value: torch.Tensor,
) -> torch.Tensor:
    """Roots of c + sᵢ/(dᵢ − λ) + sᵢ₊₁/(dᵢ₊₁ − λ) with c such that it has the right value in the middle."""
    right = torch.where(is_last, index, index + 1)
    near, far = square[index], square[right]
    # In the middle both poles are half the interval away.
    c = middle_value - (far - near) * 2.0 / end
    a = torch.where(from_left, c * end + near + far, c * end - near - far)
    b = torch.where(from_left, near * end, far * end)
    root = torch.where(from_left, a * a - 4.0 * b * c, a * a + 4.0 * b * c).abs().sqrt()
    left_start = torch.where(a > 0, 2.0 * b / (a + root), (a - root) / (2.0 * c))
    right_start = torch.where(a < 0, 2.0 * b / (a - root), -(a + root) / (2.0 * c))
    return torch.where(is_last, end / 2, torch.where(from_left, left_start, right_start))


def _middle_way(
    left: torch.Tensor,
    right: torch.Tensor,
    value: torch.Tensor,
    slopes: tuple[torch.Tensor, torch.Tensor],
    is_last: torch.Tensor,
) -> torch.Tensor:
    """Step to the root of c + s/(left − η) + S/(right − η) that agrees with ψ and φ and their slopes."""
    c = value - left * slopes[0] - right * slopes[1]
    a = (left + right) * value - left * right * (slopes[0] + slopes[1])
    b = left * right * value
    root = (a * a - 4.0 * b * c).abs().sqrt()
    between = torch.where(a <= 0, (a - root) / (2.0 * c), 2.0 * b / (a + root))
    beyond = torch.where(a >= 0, (a + root) / (2.0 * c.abs()), 2.0 * b / (a - root))
    return torch.where(is_last, beyond, between)


def _halved(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Middle of a bracket; geometric where its ends differ by more than a factor of four (a root next to a pole)."""
    size_low, size_high = torch.minimum(low.abs(), high.abs()), torch.maximum(low.abs(), high.abs())
    sign = torch.where(high > 0, 1.0, -1.0)
    geometric = sign * torch.where(size_low > 0, (size_low * size_high).sqrt(), size_high * 2.0**-20)
    return torch.where(size_high > 4.0 * size_low, geometric, (low + high) / 2)


def _exact_weights(d: torch.Tensor, origins: torch.Tensor, offsets: torch.Tensor, tile_bytes: int) -> torch.Tensor:
    """|ẑ| for which the roots are exact, up to a factor: ẑⱼ² = Πᵢ(λᵢ − dⱼ) / Πᵢ≠ⱼ(dᵢ − dⱼ)."""
    product = torch.ones_like(d)
    for rows in _tiles(len(d), len(d), tile_bytes):
        ratio = (d[origins[rows]][:, None] - d) + offsets[rows][:, None]
        gaps = d[rows][:, None] - d
        gaps[torch.arange(rows.stop - rows.start), torch.arange(rows.start, rows.stop)] = 1.0
        product *= ratio.div_(gaps).prod(dim=0)
    return product.abs().sqrt()


def _merge(below: np.ndarray, middle: int, coupling: float, device: torch.device | str, tile_bytes: int) -> np.ndarray:
    """One node from its two children.

    Args:
        below: Fields of the children, side by side, shape (len(FIELDS), m).
        middle: Rows of the first child.
        coupling: Entry of T between the children.
        device: Of the arithmetic.
        tile_bytes: Memory of one tile.

    Returns:
        Fields of the node.
    """
    values, first, last = below[:3]
    size = len(values)
    node = np.full_like(below, -1.0)
    sign = math.copysign(1.0, coupling)
    z = np.concatenate([last[:middle], sign * first[middle:]]) / math.sqrt(2.0)
    rho = 2.0 * abs(coupling)
    by_value = np.argsort(values, kind="stable")
    d, weights = values[by_value], z[by_value]
    coupled, deflated, rotations = _deflate(d, weights, rho)
    # In the children's columns, what has been rotated.
    ends = np.zeros((2, size))
    ends[0, :middle], ends[1, middle:] = first[:middle], last[middle:]
    for place, (p, j, cosine, sine) in enumerate(rotations):
        a, b = by_value[p], by_value[j]
        ends[:, a], ends[:, b] = cosine * ends[:, a] + sine * ends[:, b], cosine * ends[:, b] - sine * ends[:, a]
        node[10:, place] = a, b, cosine, sine
    slots = np.array(coupled + deflated, dtype=np.int64)
    count = len(coupled)
    poles, found = d[slots], d[slots]
    ends = ends[:, by_value[slots]]
    field = dict(zip(FIELDS, node, strict=True))
    if count:
        dk = torch.tensor(poles[:count], dtype=torch.float64, device=device)
        zk = torch.tensor(weights[slots[:count]], dtype=torch.float64, device=device)
        if count == 1:
            origins, offsets = torch.zeros(1, dtype=torch.int64, device=device), rho * zk.square()
        else:
            origins, offsets = _secular_roots(dk, zk, rho, tile_bytes)
        exact = torch.copysign(_exact_weights(dk, origins, offsets, tile_bytes), zk)
        exact /= exact.norm()
        rows_of = torch.tensor(ends[:, :count], dtype=torch.float64, device=device) * exact
        squares = exact.square()
        norms, products = torch.empty_like(dk), torch.empty(2, count, dtype=torch.float64, device=device)
        for columns in _tiles(count, count, tile_bytes):
            inverse = ((dk - dk[origins[columns]][:, None]) - offsets[columns][:, None]).reciprocal_()
            products[:, columns] = rows_of @ inverse.T
            norms[columns] = inverse.square_().mul_(squares).sum(dim=1).rsqrt()  # in pairs: more exactly than a product
        found[:count] = (dk[origins] + offsets).cpu().numpy()
        ends[:, :count] = (products * norms).cpu().numpy()
        field["weights"][:count], field["norms"][:count] = exact.cpu().numpy(), norms.cpu().numpy()
        field["origins"][:count], field["offsets"][:count] = origins.cpu().numpy(), offsets.cpu().numpy()
    order = np.argsort(found, kind="stable")
    field["values"][:], field["order"][:] = found[order], order
    field["first"][:], field["last"][:] = ends[:, order]
    field["poles"][:], field["source"][:] = poles, by_value[slots]
    return node


def merge_level(
    level: int,
    below: np.ndarray,
    diagonal: np.ndarray,
    off_diagonal: np.ndarray,
    device: torch.device | str = "cpu",
    tile_bytes: int = 8 << 20,
    leaf: int = LEAF,
) -> np.ndarray:
    """All nodes of a level from those of the level below.

    Args:
        level: From 1 to `depth(n, leaf)`.
        below: The level below, shape (len(FIELDS), n).
        diagonal: Of T, shape (n,).
        off_diagonal: Of T, shape (n − 1,).
        device: Of the arithmetic.
        tile_bytes: Memory of one tile; a few are in use at a time.
        leaf: Rows of the largest leaf.

    Returns:
        The level, shape (len(FIELDS), n).
    """
    size = len(diagonal)
    scaled = off_diagonal / _scale(diagonal, off_diagonal)
    here, under = bounds(size, level, leaf), bounds(size, level - 1, leaf)
    nodes = [
        _merge(below[:, a:b], middle - a, float(scaled[middle - 1]), device, tile_bytes)
        for a, middle, b in zip(here, under[1::2], here[1:], strict=False)
    ]
    return np.concatenate(nodes, axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Vectors


@dataclass(frozen=True)
class _Node:
    """What is needed to multiply with one node's factor, on the device.

    Attributes:
        poles: d of the coupled slots, shape (k,).
        weights: ẑ, shape (k,).
        shifted: d_origin: the pole that each root is measured from, shape (k,).
        offsets: λ − d_origin, shape (k,).
        norms: 1/|·| of the columns, shape (k,).
        source: Column of the children behind each slot, shape (m,).
        slot: Slot of each column of the children: the inverse of `source`, so that rows are gathered. To put them where
            they belong instead would be sorted first by torch, wherever it has to be deterministic on a GPU.
        order: Slot of each eigenvalue, shape (m,).
        place: Index of the eigenvalue of each slot, shape (m,).
        rotations: Products of plane rotations, in the order in which they are to be applied: rows, and a matrix.
    """

    poles: torch.Tensor
    weights: torch.Tensor
    shifted: torch.Tensor
    offsets: torch.Tensor
    norms: torch.Tensor
    source: torch.Tensor
    slot: torch.Tensor
    order: torch.Tensor
    place: torch.Tensor
    rotations: list[tuple[torch.Tensor, torch.Tensor]]

    def columns(self, start: int, stop: int, tile_bytes: int) -> torch.Tensor:
        """Columns of the factor in the children's basis, shape (m, stop − start)."""
        slots, count = self.order[start:stop], len(self.poles)
        result = torch.empty(len(self.order), stop - start, dtype=torch.float64, device=self.poles.device)
        result[count:] = 0.0
        is_root = slots < count
        roots = torch.where(is_root, slots, 0)
        if count:
            shifted, offsets = self.shifted[roots], self.offsets[roots]
            norms = torch.where(is_root, self.norms[roots], 0.0)
            for rows in _tiles(count, stop - start, tile_bytes):
                entries = (self.poles[rows][:, None] - shifted).sub_(offsets).reciprocal_()
                torch.mul(entries.mul_(norms), self.weights[rows][:, None], out=result[rows])
        result[slots[~is_root], torch.nonzero(~is_root)[:, 0]] = 1.0
        result = result.index_select(0, self.slot)
        self._unrotate(result)
        return result

    def multiply(self, x: torch.Tensor, work: torch.Tensor, tile: torch.Tensor) -> None:
        """Factor times x, in place: from the node's eigenvectors to those of its children.

        Args:
            x: Shape (m, columns).
            work: At least twice the size of x, to be written to.
            tile: The same, for tiles of the factor; at least (m,).
        """
        count, size = len(self.poles), x.numel()
        result, slots = work[:size].view(x.shape), work[size : 2 * size].view(x.shape)
        torch.index_select(x, 0, self.place, out=slots)
        result[count:] = slots[count:]
        if count:
            scaled = slots[:count].mul_(self.norms[:, None])
            for rows in _tiles(count, count, 8 * len(tile)):
                inverse = tile[: (rows.stop - rows.start) * count].view(-1, count)
                torch.sub(self.poles[rows][:, None], self.shifted, out=inverse)
                inverse.sub_(self.offsets).reciprocal_()
                torch.mul(inverse @ scaled, self.weights[rows][:, None], out=result[rows])
        torch.index_select(result, 0, self.slot, out=x)
        self._unrotate(x)

    def _unrotate(self, x: torch.Tensor) -> None:
        for rows, matrix in self.rotations:
            x[rows] = matrix @ x[rows]


def _grouped_rotations(
    fields: dict[str, np.ndarray], device: torch.device | str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rotations of coefficients, the last one first, a few at a time as one matrix."""
    number = int((fields["rotated"] >= 0).sum())
    all_pairs = np.stack([fields["rotated"][:number], fields["partner"][:number]]).astype(np.int64)
    groups = []
    stop = number
    while stop:
        touched: set[int] = set()
        start = stop
        while start and len(touched | set(all_pairs[:, start - 1].tolist())) <= _GROUP:
            start -= 1
            touched.update(all_pairs[:, start].tolist())
        part = slice(start, stop)
        pairs = all_pairs[:, part]
        stop = start
        rows, places = np.unique(pairs, return_inverse=True)
        matrix = np.eye(len(rows))
        firsts, seconds = places.reshape(2, -1)
        for a, b, c, s in zip(
            firsts[::-1], seconds[::-1], fields["cosine"][part][::-1], fields["sine"][part][::-1], strict=True
        ):
            matrix[a], matrix[b] = c * matrix[a] - s * matrix[b], s * matrix[a] + c * matrix[b]
        groups.append((torch.tensor(rows, device=device), torch.tensor(matrix, device=device)))
    return groups


def _node(fields: dict[str, np.ndarray], device: torch.device | str) -> _Node:
    count = int((fields["origins"] >= 0).sum())

    def floats(name: str) -> torch.Tensor:
        return torch.tensor(fields[name][:count], dtype=torch.float64, device=device)

    def integers(name: str) -> torch.Tensor:
        return torch.tensor(fields[name].astype(np.int64), device=device)

    poles, order, source = floats("poles"), integers("order"), integers("source")
    return _Node(
        poles,
        floats("weights"),
        poles[integers("origins")[:count]],
        floats("offsets"),
        floats("norms"),
        source,
        torch.argsort(source),
        order,
        torch.argsort(order),
        _grouped_rotations(fields, device),
    )


class Tree:
    """All levels, ready to make eigenvectors.

    Attributes:
        size: n.
        eigenvalues: In ascending order, float64, shape (n,).
    """

    def __init__(
        self,
        diagonal: np.ndarray,
        off_diagonal: np.ndarray,
        levels: list[np.ndarray],
        leaves: np.ndarray,
        device: torch.device | str = "cpu",
        tile_bytes: int = 8 << 20,
        leaf: int = LEAF,
    ) -> None:
        """Joins what `solve_leaves` and `merge_level` found.

        Args:
            diagonal: Of T, shape (n,).
            off_diagonal: Of T, shape (n − 1,).
            levels: From the leaves to the root.
            leaves: The leaves' eigenvectors.
            device: Of the arithmetic and of the results.
            tile_bytes: Memory of one tile of a factor.
            leaf: Rows of the largest leaf.
        """
        self.size = len(diagonal)
        self._tile_bytes = tile_bytes
        self.eigenvalues = levels[-1][0] * _scale(diagonal, off_diagonal)
        self._levels = []
        for number, level in enumerate(levels[1:], start=1):
            cuts = bounds(self.size, number, leaf)
            nodes = []
            for a, b in pairwise(cuts):
                nodes.append((a, b, _node(dict(zip(FIELDS, level[:, a:b], strict=True)), device)))
            self._levels.append(nodes)
        cuts = bounds(self.size, 0, leaf)
        self._leaves = [
            (a, b, torch.tensor(leaves[a:b, : b - a], dtype=torch.float64, device=device)) for a, b in pairwise(cuts)
        ]

    def vectors(self, start: int, stop: int) -> torch.Tensor:
        """Eigenvectors of consecutive indices.

        Args:
            start: First index, from 0 for the smallest eigenvalue.
            stop: One after the last.

        Returns:
            Columns, float64, shape (n, stop − start).
        """
        if not self._levels:
            return self._leaves[0][2][:, start:stop].clone()
        root = self._levels[-1][0][2]
        result = root.columns(start, stop, self._tile_bytes)
        # The same memory for all nodes: of changing sizes, much would lie idle.
        half = max((b - a for a, b, _ in self._levels[-2]), default=0) if len(self._levels) > 1 else 0
        work = result.new_empty(2 * half * (stop - start))
        tile = result.new_empty(max(half, self._tile_bytes // 8))
        for nodes in reversed(self._levels[:-1]):
            for a, b, node in nodes:
                node.multiply(result[a:b], work, tile)
        for a, b, leaf in self._leaves:
            result[a:b] = leaf @ result[a:b]
        return result


def decompose_tridiagonal(
    diagonal: np.ndarray,
    off_diagonal: np.ndarray,
    device: torch.device | str = "cpu",
    tile_bytes: int = 8 << 20,
    leaf: int = LEAF,
) -> Tree:
    """All levels at once.

    Args:
        diagonal: Of T, float64, shape (n,).
        off_diagonal: Of T, float64, shape (n − 1,).
        device: Of the arithmetic.
        tile_bytes: Memory of one tile.
        leaf: Rows of the largest leaf.

    Returns:
        The tree.
    """
    level, leaves = solve_leaves(diagonal, off_diagonal, device, leaf)
    levels = [level]
    for number in range(1, depth(len(diagonal), leaf) + 1):
        levels.append(merge_level(number, levels[-1], diagonal, off_diagonal, device, tile_bytes, leaf))
    return Tree(diagonal, off_diagonal, levels, leaves, device, tile_bytes, leaf)


def tridiagonal_eigenvalues(
    diagonal: np.ndarray,
    off_diagonal: np.ndarray,
    device: torch.device | str = "cpu",
    tile_bytes: int = 8 << 20,
    leaf: int = LEAF,
) -> np.ndarray:
    """Eigenvalues without vectors: of all levels only the last is kept.

    Args:
        diagonal: Of T, float64, shape (n,).
        off_diagonal: Of T, float64, shape (n − 1,).
        device: Of the arithmetic.
        tile_bytes: Memory of one tile.
        leaf: Rows of the largest leaf.

    Returns:
        In ascending order, float64, shape (n,).
    """
    level, _ = solve_leaves(diagonal, off_diagonal, device, leaf)
    for number in range(1, depth(len(diagonal), leaf) + 1):
        level = merge_level(number, level, diagonal, off_diagonal, device, tile_bytes, leaf)
    return level[0] * _scale(diagonal, off_diagonal)
