"""All eigenpairs of a symmetric matrix: the streamed way beside LAPACK's divide and conquer.

`python -m benchmarks.eigenbasis --n 6000` prints a table, then one line of JSON. Three spectra: clusters, a power law
with both signs, and the Hessian of a briefly trained network with respect to its first n parameters. Each matrix is
written to a file first; then the streamed way solves it, as the long stage that it is part of (journal, scratch and
chunks on disk), and LAPACK's driver `evd` does, both in processes of their own and in the same precision. Reported are

- residual, max ‖Aqᵢ − λᵢqᵢ‖ / ‖A‖, and orthogonality, max |QᵀQ − I|, of both, computed in float64;
- the peak of resident memory over that after imports, in matrices;
- seconds: of the streamed way everything, reading and writing included; of LAPACK the call.

`python -m benchmarks.eigenbasis --growth` does the power law at n = 2,000 … 12,000 and extrapolates.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.fft
import scipy.linalg
import torch

from benchmarks.setting import THREADS, benchmark, gemm_rate, machine, option, timed
from quadscape.curvature.eigensolver import basis_specs, blas_threads, make_solver
from quadscape.curvature.solver_plan import streamed_plan
from quadscape.memory_limits import peak_memory
from quadscape.numerics import apply_numerics, current_threads
from quadscape.stage.events import read_events
from quadscape.stage.finished import open_stage
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.stage.run import run_stage
from quadscape.store import ArraySpec

DRIVER = "evd"
SIZES = (2000, 3000, 4000, 6000, 8000, 12_000)
TARGET = 104_234
PARTS = ("reduction", "divide and conquer", "back-transformation")
_READ_BYTES = 8 << 20


# ---------------------------------------------------------------------------------------------------------------------
# Matrices


def _with_spectrum(spectrum: np.ndarray) -> np.ndarray:
    """QΛQᵀ, float64, for an orthogonal Q of three cosine transforms with random signs between them."""
    chance, size = np.random.default_rng(0), len(spectrum)
    matrix = np.diag(spectrum)
    for _ in range(3):
        signs = chance.choice([-1.0, 1.0], size)
        for axis in (0, 1):
            matrix *= signs[:, None] if axis == 0 else signs
            matrix = scipy.fft.dct(matrix, norm="ortho", axis=axis, overwrite_x=True, workers=-1)
    return (matrix + matrix.T) / 2


def clustered(size: int) -> np.ndarray:
    """Twenty eigenvalues from −0.3 to 1, each of them many times up to 1e-10, and half of all at zero up to 1e-12."""
    chance = np.random.default_rng(1)
    spectrum = np.linspace(-0.3, 1.0, 20)[np.arange(size) % 20] + 1e-10 * chance.standard_normal(size)
    spectrum[: size // 2] = 1e-12 * chance.standard_normal(size // 2)
    return _with_spectrum(spectrum)


def power_law(size: int) -> np.ndarray:
    """|λᵢ| = i^−1.5, every fifth of them negative: as Hessians of trained networks have it."""
    index = np.arange(1, size + 1)
    return _with_spectrum(index**-1.5 * np.where(index % 5 == 0, -1.0, 1.0))


def real_hessian(size: int) -> np.ndarray:
    """Of a perceptron trained for 300 iterations on handwritten digits, with respect to its first n parameters."""
    from sklearn.datasets import load_digits

    from quadscape.curvature.engine import HessianEngine
    from quadscape.network.objective import Objective
    from quadscape.network.parameters import ParameterLayout

    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float64)[:, None]
    labels = torch.tensor(digits.target)
    hidden = -(-size // 100)  # 64·h + h + 32·h + … parameters, a few more than n
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, hidden),
        torch.nn.Tanh(),
        torch.nn.Linear(hidden, 40),
        torch.nn.Tanh(),
        torch.nn.Linear(40, 10),
    ).double()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(300):
        batch = slice(100 * step % 1700, 100 * step % 1700 + 100)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
    layout = ParameterLayout.of(model)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    engine = HessianEngine(Objective(model, layout, images, labels, "cross_entropy", 256), theta)
    matrix = np.zeros((size, size))
    for start in range(0, size, 500):
        stop = min(size, start + 500)
        matrix[start:, start:stop] = engine.columns(start, stop).numpy()[: size - start]  # from row `start` on
    # The squares on the diagonal hold both triangles, computed independently.
    return np.tril(matrix) + np.tril(matrix, -1).T


SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    "clustered": clustered,
    "power_law": power_law,
    "real_hessian": real_hessian,
}


# ---------------------------------------------------------------------------------------------------------------------
# Both ways, each in a process of its own


class MatrixTask:
    """The streamed way as a long stage, for a matrix in a file.

    Attributes:
        name: Name of the stage.
        version: Of its mathematics.
    """

    name, version = "matrix_basis", 1

    def __init__(self, path: Path, size: int, dtype: str, threads: int, device: str = "cpu") -> None:
        self._path, self._size, self._dtype, self._threads = path, size, dtype, threads
        self._device = torch.device(device)
        self._made: Any = None

    def parameters(self) -> dict[str, Any]:
        """What determines the result."""
        return {"path": str(self._path), "size": self._size, "dtype": self._dtype}

    def plan(self) -> dict[str, Any]:
        """Of the solver."""
        plan = streamed_plan(self._size, self._dtype, self._device.type)
        return {**plan, "threads": self._threads, "device": self._device.type}

    def _solver(self, plan: dict[str, Any]) -> Any:
        if self._made is None:
            self._made = make_solver(self._size, self._dtype, plan, self._fill)
        return self._made

    def _fill(self, matrix: torch.Tensor) -> None:
        step = max(1, _READ_BYTES // (self._size * matrix.element_size()))
        with self._path.open("rb") as file:
            for rows in matrix.split(step):
                read = np.fromfile(file, dtype=self._dtype, count=rows.numel())
                rows.copy_(torch.from_numpy(read.reshape(rows.shape)))

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """The basis, and the solver's scratch."""
        return [*basis_specs(self._size, self._dtype, plan["block"]), *self._solver(plan).scratch]

    def units(self, plan: dict[str, Any]) -> int:
        """The solver's."""
        return self._solver(plan).units

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Of memory; disk and time are not asked for."""
        return Needs(self._solver(plan).memory_bytes(), 1)

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads."""
        apply_numerics(plan["threads"])

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """One unit."""
        return self._solver(plan).compute(unit, store)

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """How many units each part has."""
        return {"parts": self._solver(plan).parts}


def _streamed(path: Path, size: int, dtype: str, threads: int, folder: Path) -> dict[str, Any]:
    """Runs the stage; its seconds, those of its parts, and its memory over that of now."""
    apply_numerics(threads)
    # What a first call of everything loads is not memory of the matrix.
    warm = folder / "warm"
    _ones(path.with_name("warm"), dtype)
    run_stage(MatrixTask(path.with_name("warm"), 256, dtype, threads), warm, log=lambda _: None)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    before = psutil.Process().memory_info().rss
    task = MatrixTask(path, size, dtype, threads)
    seconds, manifest = timed(lambda: run_stage(task, folder / "stage", log=lambda _: None))
    peak = peak_memory() - before
    parts = manifest["results"]["parts"]
    spent = [event["seconds"] for event in read_events(folder / "stage") if event["event"] == "unit"]
    ends = np.cumsum([0, *parts])
    return {
        "seconds": seconds,
        "parts": {name: sum(spent[a:b]) for name, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)},
        "peak_bytes": peak,
        "estimated_bytes": task.estimate(task.plan()).memory_bytes,
    }


def _ones(path: Path, dtype: str) -> None:
    (np.ones((256, 256)) + np.diag(np.arange(256.0))).astype(dtype).tofile(path)


def _lapack(path: Path, size: int, dtype: str, threads: int, folder: Path) -> dict[str, Any]:
    """Calls LAPACK; seconds and memory over that of now. The pairs are left in files."""
    apply_numerics(threads)
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    matrix = np.fromfile(path, dtype=dtype).reshape(size, size)
    with blas_threads(threads):
        seconds, (values, vectors) = timed(
            lambda: scipy.linalg.eigh(matrix.T, driver=DRIVER, overwrite_a=True, check_finite=False)
        )
    peak = peak_memory() - before
    np.save(folder / "values.npy", values)
    np.save(folder / "vectors.npy", vectors.T)  # rows in memory
    return {"seconds": seconds, "peak_bytes": peak}


WAYS = {"streamed": _streamed, "lapack": _lapack}


def _in_process(way: str, path: Path, size: int, dtype: str, threads: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.eigenbasis", "--child", way]
    command += ["--n", str(size), "--dtype", dtype, "--threads", str(threads), "--folder", str(folder), str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def errors(matrix: np.ndarray, values: np.ndarray, block: Callable[[int, int], np.ndarray]) -> tuple[float, float]:
    """Residual and orthogonality.

    Args:
        matrix: A, shape (n, n).
        values: Eigenvalues, shape (n,).
        block: Eigenvectors of a range of indices, as columns.

    Returns:
        max ‖Aqᵢ − λᵢqᵢ‖ / max |λ|, and max |QᵀQ − I|; all products in float64.
    """
    size, step = len(values), 2000
    residual, orthogonality = 0.0, 0.0
    exact = matrix.astype(np.float64)
    for start in range(0, size, step):
        columns = block(start, min(size, start + step)).astype(np.float64)
        here = values[start : start + step].astype(np.float64)
        residual = max(residual, float(np.linalg.norm(exact @ columns - columns * here, axis=0).max()))
        for first in range(0, start + 1, step):
            product = block(first, min(size, first + step)).astype(np.float64).T @ columns
            if first == start:
                # Squares in pairs: a product adds them up with errors larger than those that are looked for.
                lengths = np.square(np.ascontiguousarray(columns.T)).sum(axis=1)
                np.fill_diagonal(product, lengths - 1.0)
            orthogonality = max(orthogonality, float(np.abs(product).max()))
    return residual / float(np.abs(values).max()), orthogonality


def compare(matrix: np.ndarray, threads: int) -> dict[str, Any]:
    """Solves a matrix both ways.

    Args:
        matrix: Symmetric, shape (n, n), in the precision to be worked in.
        threads: Threads of both.

    Returns:
        Residual, orthogonality, seconds and memory of both.
    """
    size, dtype = len(matrix), str(matrix.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "matrix"
        matrix.tofile(path)
        ours = _in_process("streamed", path, size, dtype, threads, folder / "ours")
        theirs = _in_process("lapack", path, size, dtype, threads, folder / "theirs")
        stage = open_stage(folder / "ours/stage")
        residual, orthogonality = errors(
            matrix,
            stage.read("eigenvalues"),
            lambda a, b: stage.read("eigenvectors", (slice(None), slice(a, b))),
        )
        vectors = np.load(folder / "theirs/vectors.npy", mmap_mode="r")
        lapack_residual, lapack_orthogonality = errors(
            matrix, np.load(folder / "theirs/values.npy"), lambda a, b: vectors[a:b].T
        )
    return {
        "residual": residual,
        "orthogonality": orthogonality,
        "lapack_residual": lapack_residual,
        "lapack_orthogonality": lapack_orthogonality,
        "seconds": ours["seconds"],
        "parts": ours["parts"],
        "lapack_seconds": theirs["seconds"],
        "peak_matrices": ours["peak_bytes"] / matrix.nbytes,
        "estimated_matrices": ours["estimated_bytes"] / matrix.nbytes,
        "lapack_peak_matrices": theirs["peak_bytes"] / matrix.nbytes,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _print_spectra(spectra: dict[str, dict[str, Any]], dtype: str) -> None:
    names = ("residual", "orthogonality", "seconds", "peak, matrices")
    print(f"{dtype:14s} " + " ".join(f"{name:>19s}" for name in names))
    print(f"{'':14s} " + " ".join(f"{'ours':>9s} {DRIVER:>9s}" for _ in names))
    for name, row in spectra.items():
        print(
            f"{name:14s} {row['residual']:9.1e} {row['lapack_residual']:9.1e} {row['orthogonality']:9.1e} "
            f"{row['lapack_orthogonality']:9.1e} {row['seconds']:9.1f} {row['lapack_seconds']:9.1f} "
            f"{row['peak_matrices']:9.2f} {row['lapack_peak_matrices']:9.2f}"
        )


def _spectra(arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """All spectra at one size."""
    found = {}
    for name, make in SPECTRA.items():
        began = time.monotonic()
        matrix = make(arguments.n).astype(arguments.dtype)
        print(f"{name}: matrix made in {time.monotonic() - began:.0f} s", file=sys.stderr)
        found[name] = compare(matrix, threads)
    _print_spectra(found, arguments.dtype)
    rows = list(found.values())
    return {
        "n": arguments.n,
        "spectra": found,
        "peak_matrices": max(row["peak_matrices"] for row in rows),
        "seconds": max(row["seconds"] for row in rows),
        "lapack_seconds": min(row["lapack_seconds"] for row in rows),
    }


def _exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of a line through the logarithms of the upper half of sizes, where constant costs do not count."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def _growth(arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """The power law at all sizes, and every part extrapolated as n³ from the largest."""
    rows = []
    print(f"{'n':>7s} {'seconds':>8s} {'evd':>8s} " + " ".join(f"{name:>20s}" for name in PARTS) + f" {'peak':>6s}")
    for size in arguments.sizes:
        row = {"n": size, **compare(power_law(size).astype(arguments.dtype), threads)}
        rows.append(row)
        print(
            f"{size:7,d} {row['seconds']:8.1f} {row['lapack_seconds']:8.1f} "
            + " ".join(f"{row['parts'][name]:20.2f}" for name in PARTS)
            + f" {row['peak_matrices']:6.2f}"
        )
    largest = rows[-1]
    factor = (TARGET / largest["n"]) ** 3
    itemsize = np.dtype(arguments.dtype).itemsize
    shares = {
        "bandwidth": largest["n"] ** 3 / 3 * itemsize / 2 / largest["parts"]["reduction"],
        "operations": 4 * largest["n"] ** 3 / largest["parts"]["back-transformation"],
    }
    return {
        "sizes": rows,
        "exponents": {name: _exponent(arguments.sizes, [row["parts"][name] for row in rows]) for name in PARTS},
        "achieved": shares,
        "extrapolated": {name: largest["parts"][name] * factor for name in PARTS},
        "extrapolated_to": TARGET,
    }


@benchmark(
    __doc__,
    option("--n", type=int, default=6000, help="size of the matrix (default: 6000)"),
    option("--dtype", choices=["float32", "float64"], default="float32"),
    THREADS,
    option("--growth", action="store_true", help="the power law at growing sizes instead"),
    option("--sizes", type=int, nargs="+", default=SIZES, help="sizes of --growth"),
    option("--child", choices=WAYS, help=argparse.SUPPRESS),
    option("--folder", type=Path, help=argparse.SUPPRESS),
    option("path", nargs="?", type=Path, help=argparse.SUPPRESS),
)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    apply_numerics(arguments.threads or current_threads())
    threads = torch.get_num_threads()
    if arguments.child:
        return WAYS[arguments.child](arguments.path, arguments.n, arguments.dtype, threads, arguments.folder)
    found = (_growth if arguments.growth else _spectra)(arguments, threads)
    return {**found, "dtype": arguments.dtype, "driver": DRIVER, "gemm_gflops": gemm_rate() / 1e9, **machine()}


if __name__ == "__main__":
    main()
