"""The largest eigenpairs of the Hessian without the matrix: ours beside hessian-eigenthings' Lanczos method.

`python -m benchmarks.topk --width 1 --images 64 --count 10` prints a table, then one line of JSON: products used,
seconds, and the largest residual ‖Hq − λq‖ / λ₁, taken with products in float64 that neither solver saw. Both work on
the same float32 network, all examples in one batch. The peer takes its number of steps as an argument and restarts
nothing: it is run with a number that grows by a half until its residuals meet the tolerance, and only the last of these
runs counts.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peers import package_missing
from benchmarks.setting import THREADS, benchmark, machine, network, option, prepare, problem, random_data, timed
from quadscape.curvature.matrix_free import CurvatureOperator, extreme_eigenpairs
from quadscape.network.objective import Objective

Residual = Callable[[np.ndarray, np.ndarray], float]


def ours(objective: Objective, theta: torch.Tensor, count: int, tolerance: float, residual: Residual) -> dict[str, Any]:
    """Products, seconds and residual of `extreme_eigenpairs`."""
    operator = CurvatureOperator(objective, theta)
    operator.matvec(np.ones(objective.size))  # warms up
    seconds, found = timed(lambda: extreme_eigenpairs(operator, largest=count, smallest=0, tolerance=tolerance))
    return {
        "products": found.products,
        "seconds": seconds,
        "residual": residual(found.eigenvalues, found.eigenvectors),
        "largest": float(found.eigenvalues[0]),
    }


def eigenthings(
    objective: Objective, theta: torch.Tensor, count: int, tolerance: float, residual: Residual
) -> dict[str, Any]:
    """Products, seconds and residual of hessian-eigenthings' Lanczos method with full reorthogonalisation."""
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    loss = supervised_loss(torch.nn.functional.cross_entropy)
    operator = HessianOperator(objective.model, [(objective.images, objective.labels)], loss)
    operator.matvec(torch.ones(objective.size))  # warms up
    steps = 2 * count
    while True:
        seconds, found = timed(
            lambda steps=steps: lanczos(  # type: ignore[misc]
                operator, k=count, max_iter=steps, which="LA", reorthogonalize=True, seed=0
            )
        )
        error = residual(found.eigenvalues.double().numpy(), found.eigenvectors.double().numpy().T)
        if error <= tolerance or steps == objective.size:
            return {
                "products": found.iterations,
                "seconds": seconds,
                "residual": error,
                "largest": float(found.eigenvalues[0]),
            }
        steps = min(objective.size, steps * 3 // 2)


@benchmark(
    __doc__,
    *network(width=1, images=64),
    option("--count", type=int, default=10, help="number of eigenpairs (default: 10)"),
    option("--tolerance", type=float, default=1e-4, help="residual in units of λ₁ (default: 1e-4)"),
    THREADS,
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    prepare(arguments.threads)
    data = random_data(arguments.images, (3, arguments.pixels, arguments.pixels))
    objective, theta = problem(arguments.width, arguments.norm, torch.float32, data)
    exact, _ = problem(arguments.width, arguments.norm, torch.float64, data)

    def residual(values: np.ndarray, vectors: np.ndarray) -> float:
        images = np.stack([exact.hessian_product(theta, vector).numpy() for vector in vectors.T], axis=1)
        return float(np.linalg.norm(images - vectors * values, axis=0).max() / values[0])

    reason = package_missing("hessian_eigenthings")
    results = {"ours": ours(objective, theta, arguments.count, arguments.tolerance, residual)}
    if reason is None:
        results["hessian_eigenthings"] = eigenthings(objective, theta, arguments.count, arguments.tolerance, residual)
    print(f"{'':20s} {'products':>9s} {'seconds':>9s} {'residual':>9s} {'largest':>11s}")
    for name, row in results.items():
        print(f"{name:20s} {row['products']:9d} {row['seconds']:9.2f} {row['residual']:9.1e} {row['largest']:11.6f}")
    return {
        "width": arguments.width,
        "images": arguments.images,
        "norm": arguments.norm,
        "count": arguments.count,
        "tolerance": arguments.tolerance,
        "results": results,
        "skipped": {} if reason is None else {"hessian_eigenthings": reason},
        **machine(),
    }


if __name__ == "__main__":
    main()
