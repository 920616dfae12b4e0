"""Curvature of networks of any size from products with vectors: eigenpairs at both ends, and the spectral density.

Nothing here forms a P × P matrix: memory is a few vectors per eigenpair or Lanczos step.

*Eigenpairs* come from SciPy. A cold start is ARPACK's implicitly restarted Lanczos method, once per end: without a
preconditioner LOBPCG needed several times as many products and stagnated at small tolerances. A warm start, from the
eigenvectors at a neighbouring θ, goes to LOBPCG first, for it takes them as a block, where ARPACK takes one vector and
builds a whole Krylov space before it looks; what LOBPCG leaves unfinished, ARPACK does from the sum of its vectors.
PRIMME would do both in one, but is distributed as source only.

Neither may miss an eigenvalue, as a Krylov space does that holds one vector of a multiple one (networks have many exact
zeros), and LOBPCG where another eigenvalue has overtaken those that it was started from: ARPACK therefore looks at what
is orthogonal to the eigenvectors found, until nothing there is beyond them.

*The density* is stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019). For a unit
vector v, m Lanczos steps give nodes θₖ and weights wₖ with Σ wₖ f(θₖ) = vᵀf(A)v for every polynomial f of degree below
2m; over v uniform on the sphere the expectation of vᵀf(A)v is tr f(A) / P. Standard errors over independent v tell how
far chance may be off; what is left, the error of the quadrature for functions that are no polynomials, falls with m and
is small for functions that change little between neighbouring nodes, hence the kernel. No package was found that does
this for a given product without bringing another framework; it is the few lines below.
"""

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, lobpcg
from scipy.special import ndtr

from quadscape.errors import ModelError, VerificationError
from quadscape.network.objective import Objective, Vector

_DENSE_SIZE = 64
"""Up to this many parameters, as many products as there are parameters are the shorter way."""

_SCALE_STEPS = 5
"""Lanczos steps that show the size of the largest |λ|, to a factor of about two."""

_RANDOM_PART = 1e-2
"""Random part of a warm start: it keeps every eigenvector in reach."""

_WARM_ITERATIONS = 5
"""Iterations of LOBPCG, each at most one product per eigenpair: enough from near for a loose tolerance."""

_CHECK_TOLERANCE = 1e-3
"""Residual, in units of the largest |λ|, with which it is seen whether anything is beyond what was found."""


class CurvatureOperator(LinearOperator):
    """Hessian or Gauss–Newton matrix of an objective at θ, as products with float64 vectors.

    Attributes:
        products: How many products were taken.
    """

    def __init__(
        self, objective: Objective, theta: Vector, kind: Literal["hessian", "gauss_newton"] = "hessian"
    ) -> None:
        super().__init__(np.dtype(np.float64), (objective.size, objective.size))  # type: ignore[call-arg]  # stub lacks it
        method = objective.hessian_product if kind == "hessian" else objective.gauss_newton_product
        self._product = partial(method, theta)
        self.products = 0

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._product(np.ascontiguousarray(x.ravel())).numpy()

    def _adjoint(self) -> "CurvatureOperator":
        return self


@dataclass(frozen=True)
class ExtremeEigenpairs:
    """Eigenpairs at both ends of a spectrum.

    Attributes:
        eigenvalues: The largest in descending order, then the smallest in descending order, shape (k,).
        eigenvectors: Orthonormal columns in the same order, shape (P, k).
        residuals: ‖Aq − λq‖ of each, from products that the solver did not see.
        products: Products used in all.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    residuals: np.ndarray
    products: int


def extreme_eigenpairs(
    operator: CurvatureOperator,
    largest: int,
    smallest: int,
    *,
    start: ExtremeEigenpairs | None = None,
    tolerance: float = 1e-8,
    seed: int = 0,
) -> ExtremeEigenpairs:
    """The largest and smallest eigenvalues with their eigenvectors.

    Args:
        operator: A symmetric operator.
        largest: Number of the algebraically largest.
        smallest: Number of the algebraically smallest.
        start: Result at a neighbouring θ with the same numbers. It saves products where the two are near on the scale
            of the tolerance: most of them at tolerances of 1e-3 to 1e-5, few at 1e-8.
        tolerance: Largest residual, in units of the largest |λ|. A float32 network allows about 1e-5.
        seed: Seed of the starting vectors.

    Returns:
        The eigenpairs; the same for the same seed.

    Raises:
        ModelError: There are not so many eigenvalues, or `start` is of another size.
        VerificationError: The residuals are larger than the tolerance.
    """
    size, before = operator.shape[0], operator.products
    count = largest + smallest
    if not 0 < count <= size or min(largest, smallest) < 0:
        raise ModelError(
            f"{largest} largest and {smallest} smallest eigenvalues were asked for; valid are 1 to {size} in all."
        )
    if start is not None and start.eigenvectors.shape != (size, count):
        raise ModelError(
            f"The eigenvectors to start from have shape {start.eigenvectors.shape}; valid is ({size}, {count})."
        )
    if size <= max(_DENSE_SIZE, 5 * count):
        basis, scale = np.eye(size), 0.0
    else:
        generator = np.random.default_rng(seed)
        random = generator.standard_normal(size) / math.sqrt(size)
        scale = float(np.abs(lanczos_quadrature(operator, random, _SCALE_STEPS)[0]).max())
        ends = []
        for sign, columns in ((1, slice(0, largest)), (-1, slice(largest, count))):
            if columns.start < columns.stop:
                near = np.empty((size, 0)) if start is None else start.eigenvectors[:, columns]
                ends.append(_one_end(operator, sign, columns.stop - columns.start, near, scale, tolerance, generator))
        basis = np.linalg.qr(np.concatenate(ends, axis=1))[0]
    images = operator.matmat(basis)
    values, rotation = np.linalg.eigh(basis.T @ images)
    scale = max(scale, float(np.abs(values).max()))
    order = np.r_[0:largest, len(values) - smallest : len(values)]
    values, rotation = values[::-1][order], rotation[:, ::-1][:, order]
    vectors, images = basis @ rotation, images @ rotation
    residuals = np.linalg.norm(images - vectors * values, axis=0)
    worst = float(residuals.max()) / (scale or 1.0)
    if worst > tolerance:
        raise VerificationError(
            f"The worst of {count} eigenpairs has a residual of {worst:.1e} of the largest |λ|, above the tolerance of "
            f"{tolerance:.1e}; ask for fewer of them, or for a larger tolerance."
        )
    return ExtremeEigenpairs(values, vectors, residuals, operator.products - before)


def _one_end(
    operator: CurvatureOperator,
    sign: int,
    count: int,
    near: np.ndarray,
    scale: float,
    tolerance: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Eigenvectors of at least the `count` largest eigenvalues of sign · A, as columns; `near` holds count or none."""
    size = operator.shape[0]
    # ARPACK's criterion is relative to each eigenvalue: the shift, which changes no Krylov space, makes it one that is
    # relative to the largest |λ|, so that eigenvalues near zero converge too.
    shift = 2 * scale or 1.0

    def solve(wanted: int, start: np.ndarray, known: np.ndarray, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
        def without_known(x: np.ndarray) -> np.ndarray:
            return x - known @ (known.T @ x)

        def product(x: np.ndarray) -> np.ndarray:
            x = without_known(x.ravel())
            return without_known(sign * operator.matvec(x)) + shift * x

        shifted = LinearOperator(operator.shape, matvec=product, dtype=np.dtype(np.float64))
        found = eigsh(shifted, k=wanted, which="LA", v0=without_known(start), tol=accuracy / 4, rng=generator)
        return found[0] - shift, found[1]

    def refine(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where it is not finished; the residuals say so too
            values, vectors, history = lobpcg(
                LinearOperator(operator.shape, matvec=lambda x: sign * operator.matvec(x), dtype=np.dtype(np.float64)),
                block,
                tol=tolerance * scale / 2,
                maxiter=_WARM_ITERATIONS,
                retResidualNormsHistory=True,
            )
        return values, vectors, float(np.max(history[-1]))

    try:
        first, finished = generator.standard_normal(size) / math.sqrt(size), False
        # A single one is no slower with ARPACK, which needs no second look.
        if near.shape[1] > 1:
            values, vectors, residual = refine(near)
            near, finished = vectors, residual <= tolerance * scale
        if not finished:
            if near.shape[1]:
                first = near.sum(axis=1) + _RANDOM_PART * first
            values, vectors = solve(count, first, np.empty((size, 0)), tolerance)
        while count > 1:
            known, beyond = np.linalg.qr(vectors)[0], np.sort(values)[-count] + tolerance * scale
            value, vector = solve(1, generator.standard_normal(size), known, max(tolerance, _CHECK_TOLERANCE))
            if value[0] <= beyond:
                break
            value, vector = solve(1, vector[:, 0], known, tolerance)
            values, vectors = np.append(values, value), np.concatenate([vectors, vector], axis=1)
    except ArpackNoConvergence:
        raise VerificationError(
            f"The {count} {'largest' if sign > 0 else 'smallest'} eigenvalues did not converge to a tolerance of "
            f"{tolerance:.1e}; ask for fewer of them, or for a larger tolerance."
        ) from None
    return vectors


# ---------------------------------------------------------------------------------------------------------------------
# Density


def lanczos_quadrature(operator: LinearOperator, vector: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature of the spectral measure of a vector, by Lanczos steps with full reorthogonalisation in float64.

    Args:
        operator: A symmetric operator.
        vector: v, of any length other than 0.
        steps: Largest number of steps; there are fewer where v lies in an invariant subspace of smaller dimension, and
            then the quadrature is exact for every function.

    Returns:
        Nodes in ascending order and weights of sum 1, both of one shape (at most steps,).
    """
    size = len(vector)
    steps = min(steps, size)
    basis = np.empty((steps, size))
    diagonal, beside, scale = np.zeros(steps), np.zeros(steps), 0.0
    direction = vector / np.linalg.norm(vector)
    for step in range(steps):
        basis[step] = direction
        image = operator.matvec(direction)
        scale = max(scale, float(np.linalg.norm(image)))
        diagonal[step] = direction @ image
        for _ in range(2):  # twice is enough
            image = image - (basis[: step + 1] @ image) @ basis[: step + 1]
        beside[step] = np.linalg.norm(image)
        if beside[step] <= 10 * np.finfo(float).eps * math.sqrt(size) * scale:
            break
        direction = image / beside[step]
    nodes, vectors = eigh_tridiagonal(diagonal[: step + 1], beside[:step])
    return nodes, vectors[0] ** 2


@dataclass(frozen=True)
class Kernel:
    """What an eigenvalue is broadened to: a Gaussian in u = asinh(λ / linear).

    Around 0 its width is `width` · `linear`, far from 0 it is the share `width` of |λ|: as fine as Lanczos resolves
    either, for its absolute resolution is about the same everywhere but at the ends, where it is far better.

    Attributes:
        width: Standard deviation in u.
        linear: |λ| up to which u is about linear.
    """

    width: float
    linear: float

    def density(self, point: float, nodes: np.ndarray) -> np.ndarray:
        """Density at a point that each node contributes per unit of λ, of the shape of the nodes."""
        height = 1 / (math.sqrt(2 * math.pi) * self.width * math.hypot(point, self.linear))
        return height * np.exp(-0.5 * self._distance(point, nodes) ** 2)

    def below(self, point: float, nodes: np.ndarray) -> np.ndarray:
        """Part of each node that lies below a point, of the shape of the nodes."""
        return ndtr(self._distance(point, nodes))

    def _distance(self, point: float, nodes: np.ndarray) -> np.ndarray:
        return (np.arcsinh(point / self.linear) - np.arcsinh(nodes / self.linear)) / self.width


@dataclass(frozen=True)
class SpectralDensity:
    """Quadratures of the spectral measure at random vectors, from which averages over the spectrum are estimated.

    Attributes:
        size: P.
        nodes: Shape (vectors, steps); filled up with zeros of weight 0 where Lanczos ended early.
        weights: Their weights, of sum 1 for each vector.
    """

    size: int
    nodes: np.ndarray
    weights: np.ndarray

    def average(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean of a function over the eigenvalues.

        Args:
            values: The function at the nodes, shape (…, vectors, steps).

        Returns:
            Estimates of tr f(A) / P, shape (…), and their standard errors over the vectors (NaN for one vector).
        """
        each = (values * self.weights).sum(axis=-1)
        count = each.shape[-1]
        spread = each.std(axis=-1, ddof=1) if count > 1 else np.full(each.shape[:-1], np.nan)
        return each.mean(axis=-1), spread / math.sqrt(count)

    def trace(self) -> tuple[float, float]:
        """The trace of A and its standard error."""
        mean, error = self.average(self.nodes)
        return self.size * float(mean), self.size * float(error)

    def density(self, grid: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues per unit of λ, as a fraction of all, and its standard error; both of the shape of `grid`."""
        found = [self.average(kernel.density(point, self.nodes)) for point in grid]
        return np.array([mean for mean, _ in found]), np.array([error for _, error in found])

    def count_below(self, grid: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
        """Number of eigenvalues below each point, and its standard error; both of the shape of `grid`."""
        found = [self.average(kernel.below(point, self.nodes)) for point in grid]
        return self.size * np.array([mean for mean, _ in found]), self.size * np.array([error for _, error in found])


def spectral_density(
    operator: LinearOperator, vectors: int, steps: int, seed: int = 0, *, first: int = 0
) -> SpectralDensity:
    """Stochastic Lanczos quadrature over random start vectors.

    Args:
        operator: A symmetric operator.
        vectors: Number of start vectors, uniform on the sphere; the first ones do not depend on how many there are.
        steps: Lanczos steps, and so products, for each.
        seed: Seed of the start vectors.
        first: How many of them are left out at the front.

    Returns:
        The quadratures.
    """
    size = operator.shape[0]
    generator = np.random.default_rng(seed)
    nodes, weights = np.zeros((2, vectors - first, min(steps, size)))
    for row in range(-first, vectors - first):
        start = generator.standard_normal(size)
        if row < 0:
            continue
        found = lanczos_quadrature(operator, start, steps)
        nodes[row, : len(found[0])], weights[row, : len(found[1])] = found
    return SpectralDensity(size, nodes, weights)
