"""Tables of a plausible experiment, made by the probes themselves from planted spectra, lines and gradients."""

import base64
from dataclasses import dataclass, replace

import numpy as np
from identified_cases import plausible
from measure_cases import GivenGradients, PlainBasis, chosen, random_orthogonal
from scipy.sparse.linalg import aslinearoperator
from view_cases import (
    connection_tables,
    embedding_tables,
    fractal_tables,
    line_tables,
    path_tables,
    rugged_tables,
    sharpness_tables,
)

from quadscape.measures.batch_hessians.declaration import BROADENED, PAIRS
from quadscape.measures.curves import compute as curves
from quadscape.measures.density import compute as density
from quadscape.measures.evolution import compute as evolution
from quadscape.measures.evolution.drops import side, table_of
from quadscape.measures.example_curvature.declaration import CURVATURES
from quadscape.measures.example_curvature.declaration import EXAMPLES as EXAMPLE_IMAGES
from quadscape.measures.final_test import compute as final_test
from quadscape.measures.finite_batch import compute as finite_batch
from quadscape.measures.fluctuations import Model, Window
from quadscape.measures.gradients import compute as gradients
from quadscape.measures.independence import compute as independence
from quadscape.measures.interfaces import as_array
from quadscape.measures.leakage import compute as leakage
from quadscape.measures.line_forms import compute as line_forms
from quadscape.measures.line_search import compute as line_search
from quadscape.measures.line_search.declaration import EXAMPLES
from quadscape.measures.localisation import compute as localisation
from quadscape.measures.members import columns_of
from quadscape.measures.noise_crossed.compute import band_rows
from quadscape.measures.noise_crossed.declaration import CROSSED, POWERS
from quadscape.measures.noise_curvature import compute as noise_curvature
from quadscape.measures.noise_memory.declaration import MEMORY
from quadscape.measures.overlap import compute as overlap
from quadscape.measures.parts import compute as parts
from quadscape.measures.posterior import compute as posterior
from quadscape.measures.ranks import direction_rows, log_indices
from quadscape.measures.spectrum import compute as spectrum
from quadscape.measures.surface import compute as surface
from quadscape.network.filters import Filters
from quadscape.tables import Table
from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum

COUNT = 200
EPSILON = float(np.finfo(np.float64).eps)


@dataclass
class RidgeObjective:
    """L(θ) = Σᵢ a·λᵢ/2·w²·log(1 + xᵢ²/w²) + cubic terms in the eigenbasis: cheap, and not quadratic beyond w."""

    vectors: np.ndarray
    eigenvalues: np.ndarray
    centre: np.ndarray
    shift: float = 0.0
    count: int = COUNT

    @property
    def size(self) -> int:
        return len(self.centre)

    def _terms(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        positive = self.eigenvalues > 0
        w = 0.3 / (np.abs(self.eigenvalues) + 1e-3) ** 0.25
        u = x / w
        scale = 0.5 * self.eigenvalues * w**2
        value = np.where(
            positive, scale * np.log1p(u**2) + 0.05 * scale * u**3 / (1 + u**2), scale * u**2 + 0.1 * w**2 * u**4
        )
        slope = self.shift * 0.05 * np.sqrt(np.abs(self.eigenvalues)) * x
        return value + slope, w, u

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        x = self.vectors.T @ (theta - self.centre)
        total = float(self._terms(x)[0].sum())
        spread = np.random.default_rng(3).standard_normal(self.count)
        return 0.4 + total + 0.3 * (spread - spread.mean()) * total

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        x, h = self.vectors.T @ (theta - self.centre), 1e-6
        return self.vectors @ ((self._terms(x + h)[0] - self._terms(x - h)[0]) / (2 * h))

    def hessian_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, h = self.vectors.T @ (theta - self.centre), 1e-3
        up, middle, down = (self._terms(x + d)[0] for d in (h, 0.0, -h))
        return self.vectors @ ((up - 2 * middle + down) / h**2 * (self.vectors.T @ as_array(v)))


def eigenvalues_at(size: int, stage: float, *, negative: bool = True) -> np.ndarray:
    """A power law whose negative part fades as `stage` goes from 0 to 1."""
    below = size // 4 if negative else 0
    above = size - below
    up = (2 + 30 * stage) * np.arange(1, above + 1) ** -1.3 * np.exp(-8 * (np.arange(above) / above) ** 4)
    down = -(0.8 - 0.7 * stage) * np.arange(1, below + 1) ** -1.1 * np.exp(-8 * (np.arange(below) / max(below, 1)) ** 3)
    return np.concatenate([up, down[::-1]])


def turned(vectors: np.ndarray, angle: float, seed: int) -> np.ndarray:
    """A basis in which neighbours have turned into each other, and all a little."""
    size = len(vectors)
    generator = np.random.default_rng(seed)
    distance = np.abs(np.log1p(np.arange(size))[:, None] - np.log1p(np.arange(size))[None, :])
    skew = generator.standard_normal((size, size)) * np.exp(-3 * distance) * angle
    skew = skew - skew.T
    step = np.linalg.solve(np.eye(size) + skew / 2, np.eye(size) - skew / 2)
    return vectors @ step


def checkpoint_tables(
    size: int, run: str, iteration: int, stage: float, directions: int = 24, **options
) -> dict[str, Table]:
    eigenvalues = eigenvalues_at(size, stage, **options)
    vectors = random_orthogonal(size, 1)
    zero = 1e-6 * eigenvalues[0]
    head = {"run": run, "iteration": iteration, "P": size, "N": COUNT, "weight_decay": 1e-3, "zero_threshold": zero}
    basis = PlainBasis(eigenvalues, vectors, zero)
    generator = np.random.default_rng(iteration)
    theta = generator.standard_normal(size) * 0.3
    training = RidgeObjective(vectors, eigenvalues, theta)
    validation = RidgeObjective(vectors, eigenvalues, theta, shift=1.0)
    coefficients = generator.standard_t(3, (COUNT, size)) * np.sqrt(np.abs(eigenvalues) + 1e-4)
    losses = [line_search.SplitLosses(loss, theta, EPSILON, 0) for loss in (training, validation)]
    lines = line_search.Lines(*losses, basis, theta, chosen("line_search", directions=directions), 1e-3)
    values = lines.values(slice(None), keep=True)
    tables = lines.tables(values, head, EPSILON)
    tables |= finite_batch.measure(tables["line_search"], tables["line_fit"], values[EXAMPLES], 50)
    tables |= line_forms.measure(tables["line_search"], tables["line_fit"])
    around = independence.Around(losses[0], theta, EPSILON)
    given = chosen("independence", directions=2, points=5, resolution=5)
    tables |= independence.measure(around, basis, tables["line_search"], tables["line_fit"], given, head)
    tables |= gradients.measure(GivenGradients(coefficients @ vectors.T), basis, theta, head)
    variances = tables["gradients"]["variance"]
    noise = GivenGradients(coefficients @ vectors.T)
    tables |= noise_curvature.measure(noise, basis, theta, variances, 8, head)
    tables["noise_crossed"] = crossed_table(eigenvalues, head)
    tables |= batch_tables(eigenvalues, head)
    tables |= way_tables(eigenvalues, head)
    tables |= curvature_tables(eigenvalues, head)
    negative = int((eigenvalues < -zero).sum())
    invariances = {"negative": negative, "negative_without_generators": max(0, negative - 3)}
    overlaps = np.random.default_rng(7).uniform(0, 0.1, (size, 2))
    tables["spectrum"] = spectrum.measure(eigenvalues, zero, overlaps, head | {"invariances": invariances})
    blocks = [
        (layer, kind, slice(size * part // 6, size * (part + 1) // 6))
        for part, (layer, kind) in enumerate((f"layer{k}", kind) for k in range(3) for kind in ("weight", "bias"))
    ]
    tables |= localisation.measure(basis, blocks, head)
    tables |= part_tables(eigenvalues, vectors, zero, head)
    hessian = aslinearoperator((vectors * eigenvalues) @ vectors.T)
    tables["density"] = density.measure(hessian, chosen("density", vectors=4, steps=20), head)
    filters = Filters(np.arange(size) * 8 // size - 1, 7)
    planes = chosen("surface", resolution=9, samples=4)
    tables |= rugged_tables(head)
    tables |= fractal_tables(head)
    tables |= plausible(size, iteration, run=run)
    return tables | surface.measure(training, basis, theta, filters, planes, head)


def crossed_table(eigenvalues: np.ndarray, head: dict) -> Table:
    """Bands of two halves that agree but for some noise."""
    rows = []
    generator = np.random.default_rng(5)
    for half in (0, 1):
        values = eigenvalues * np.exp(0.1 * generator.standard_normal(len(eigenvalues)))
        names = ("own_curvature", "own_noise", "curvature", "noise", *POWERS)
        found = {name: values * np.exp(0.1 * generator.standard_normal(len(values))) for name in names}
        given = {"halving": 0, "seed": 0, "half": half, "examples": COUNT // 2}
        rows += [given | row for row in band_rows(found, max(head["weight_decay"], head["zero_threshold"]))]
    return Table(CROSSED, columns_of(rows, CROSSED.all_columns()), head)


def way_tables(eigenvalues: np.ndarray, head: dict) -> dict[str, Table]:
    """Coordinates of a noisy quadratic from far away, still where there is no minimum; then the rate falls."""
    rule, sampling, steps = Momentum(0.05, 0.9), Sampling(COUNT, max(1, COUNT // 16), reshuffled=False), 600
    curvature = eigenvalues + head["weight_decay"]
    stable = rule.is_stable(curvature)
    noise = 1e-2 * np.abs(curvature) ** 1.5 + 1e-9
    generator = np.random.default_rng(int(head["iteration"]))
    x, v, rows = np.full(len(curvature), 5.0), np.zeros(len(curvature)), []
    lower = replace(rule, rate=rule.rate / 4)
    for step in range(2 * steps + 1):
        rows.append(x)
        xi = np.sqrt(sampling.variance * noise) * generator.standard_normal(len(curvature))
        v = rule.momentum * v + np.where(stable, curvature * x, 0.0) + xi
        x = x - (rule if step < steps else lower).rate * v
    model = Model(rule, sampling, head["weight_decay"], steps // 2 + 1)
    where = {"first": 0, "last": steps, "begins": True, "steady": True}
    noises, sides = np.tile(noise, (16, 1)), []
    for one, first in ((rule, 0), (lower, steps)):
        own, window = np.array(rows[first : first + steps + 1]), Window(first, first + steps, begins=True)
        losses = 1 + own[-model.steps : -1] ** 2 @ np.where(stable, curvature, 0.0) / 2
        sides.append(side(own, window, replace(model, rule=one), noises, losses, steady=True))
    tables = evolution.measure(np.array(rows[: steps + 1]), eigenvalues, noises, model, head | where)
    tables["evolution_drops"] = table_of([(sides[0], sides[1])], eigenvalues, tables["evolution"].attributes)
    return tables | posterior.measure(tables["evolution"], tables["evolution_bands"])


def batch_tables(eigenvalues: np.ndarray, head: dict) -> dict[str, Table]:
    """Eigenvalues of batches that come down to those of all examples."""
    rows, pairs = [], []
    for size in (8, 32, 128):
        for place in range(1, min(3, len(eigenvalues)) + 1):
            full = float(eigenvalues[place - 1])
            row = {"batch_size": size, "place": place, "batches": 6, "full": full}
            for name, value in (("eigenvalue", full + 4 / size), ("excess", 4 / size), ("curvature", full - 2 / size)):
                row |= {name: value, f"{name}_low": value - 1 / size, f"{name}_high": value + 1 / size}
            share = 1 - 2 / size
            rows.append(row | {"captured": share, "captured_low": share - 0.1, "captured_high": min(1.0, share + 0.1)})
            for batch in range(6):
                pair = {"batch_size": size, "batch": batch, "place": place, "residual": 1e-4, "cosine": share}
                pair |= {"eigenvalue": full + (4 + 0.2 * batch) / size, "curvature": full - 2 / size, "captured": share}
                pairs.append(pair)
    return {
        "batch_broadening": Table(BROADENED, columns_of(rows, BROADENED.all_columns()), head),
        "batch_hessians": Table(PAIRS, columns_of(pairs, PAIRS.all_columns()), head),
    }


def curvature_tables(eigenvalues: np.ndarray, head: dict) -> dict[str, Table]:
    """Shares of examples along a few eigenvectors, and small images."""
    chosen_ones = log_indices(eigenvalues, 8)
    which = direction_rows(eigenvalues, chosen_ones)
    generator = np.random.default_rng(4)
    columns = which | {"is_zero": np.abs(which["eigenvalue"]) <= head["zero_threshold"]}
    for name in CURVATURES.all_columns().keys() - columns.keys():
        columns[name] = generator.uniform(0.01, 0.9, len(chosen_ones))
    columns["top_example"] = generator.integers(0, COUNT, len(chosen_ones))
    rows = []
    for place in range(min(3, len(chosen_ones))):
        direction = {name: values[place].item() for name, values in which.items()}
        for number in range(4):
            image = base64.b64encode(generator.integers(0, 256, (3, 8, 8), dtype=np.uint8).tobytes()).decode()
            row = {"place": number + 1, "example": number, "share": 0.2 / (number + 1), "slope": (-1.0) ** number}
            row |= {"hessian": 1.0, "label": "cat", "prediction": ("cat", "dog")[number % 2], "probability": 0.4}
            rows.append(direction | row | {"image": image})
    return {
        "example_curvature": Table(CURVATURES, columns, head),
        "curvature_examples": Table(
            EXAMPLE_IMAGES, columns_of(rows, EXAMPLE_IMAGES.all_columns()), head | {"image_shape": [3, 8, 8]}
        ),
    }


def part_tables(eigenvalues: np.ndarray, vectors: np.ndarray, zero: float, head: dict) -> dict[str, Table]:
    """Of a Hessian whose Gauss–Newton part has the large eigenvalues, and half of the dimensions."""
    size = len(eigenvalues)
    hessian = (vectors * eigenvalues) @ vectors.T
    kept = np.where(np.arange(size) < size // 2, np.maximum(eigenvalues, 0), 0)
    bent = turned(vectors, 0.02, 5)
    gauss_newton = (bent * kept) @ bent.T
    remainder = hessian - gauss_newton
    values = {"H": eigenvalues} | {
        part: np.linalg.eigvalsh(matrix)[::-1] for part, matrix in (("G", gauss_newton), ("R", remainder))
    }
    indices = log_indices(eigenvalues, parts.ROWS_PER_SIGN)
    along = [np.einsum("pk,pk->k", vectors, matrix @ vectors)[indices] for matrix in (gauss_newton, remainder)]
    return {
        "parts_spectrum": parts.spectra(values, dict.fromkeys("HGR", zero), head),
        "parts_ritz": parts.along_eigenvectors(eigenvalues, indices, *along, zero, head),
    }


def pair_tables(size: int, run: str, first: int, second: int, angle: float, **options) -> dict[str, Table]:
    values = [eigenvalues_at(size, stage, **options) for stage in (0.2, 0.8)]
    vectors = random_orthogonal(size, 1)
    turning = (vectors, turned(vectors, angle, second))
    bases = [PlainBasis(of, q, 1e-5 * of[0]) for of, q in zip(values, turning, strict=True)]
    head = {"run": run, "iteration_a": first, "iteration_b": second}
    variances = tuple(np.abs(of) + 1e-3 * of[0] for of in values)
    leaked = leakage.measure(*bases, (variances[0], variances[1]), head | {"zero_threshold": 1e-5})
    return overlap.measure(*bases, 60, head) | leaked


def memory_tables(run: str) -> dict[str, Table]:
    """Noise of reshuffled batches of which an epoch has twenty."""
    rows = []
    generator = np.random.default_rng(6)
    for plateau, rate in enumerate((0.1, 0.01)):
        for lag in range(2, 50, 2):
            predicted = -max(0.0, 1 - lag / 20) / 19
            row = {"plateau": plateau, "first": 800, "last": 900, "learning_rate": rate, "lag": lag, "pairs": 50 - lag}
            value = predicted + 0.03 * generator.standard_normal()
            row |= {"correlation": value, "correlation_low": value - 0.06, "correlation_high": value + 0.06}
            rows.append(row | {"predicted": predicted})
    return {"noise_memory": Table(MEMORY, columns_of(rows, MEMORY.all_columns()), {"run": run})}


def run_tables(run: str, steps: int, drops: tuple[int, ...]) -> dict[str, Table]:
    generator = np.random.default_rng(len(run))
    t = np.arange(steps)
    rate = 0.1 * 0.1 ** np.searchsorted(drops, t, side="right")
    fall = 1.9 * np.exp(-t / (0.15 * steps)) + 0.35 * (rate / 0.1) ** 0.4
    loss = fall * generator.lognormal(0, 0.15, steps)
    evaluation = np.full((steps + 1, 3, 2), np.nan)
    for place, (excess, points) in enumerate(((0, 0.97), (0.15, 0.93), (0.17, 0.92))):
        at = np.arange(0, steps + 1, max(1, steps // 50))
        values = fall[np.minimum(at, steps - 1)] + excess * (1 - np.exp(-at / (0.3 * steps)))
        evaluation[at, place] = np.stack([values, points * np.exp(-0.3 * values)], axis=1)
    norms = np.abs(generator.standard_normal((steps, 2))) + 0.1
    counts = {"train": 1257, "validation": 270, "test": 270}
    tables = curves.measure(loss, rate, norms, ["conv1", "linear"], evaluation, counts, {"run": run})
    tables |= {"final_test": final_test.measure(evaluation, counts["test"], run)}
    return (
        tables
        | line_tables(run, bump=0.5 * (run != "r0"))
        | path_tables(run)
        | embedding_tables(run)
        | connection_tables(run, "b")
        | sharpness_tables(run, rate, drops)
        | memory_tables(run)
    )
