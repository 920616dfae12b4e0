"""Made-up lines and walks for the measures of chapter 9, and runs that are trained."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import training
from measure_cases import PlainBasis, chosen
from problems import SMALL, dense_hessian, problem

from quadscape.config.model import model_section
from quadscape.config.sections import Data, Run
from quadscape.data.sets import prepare
from quadscape.measures.connection import compute as connection
from quadscape.measures.embedding import compute as embedding
from quadscape.measures.fractal import compute as fractal
from quadscape.measures.fractal.declaration import PRECISIONS
from quadscape.measures.interpolation import compute as interpolation
from quadscape.measures.job import Job
from quadscape.measures.path import compute as path
from quadscape.measures.ruggedness import compute as ruggedness
from quadscape.measures.ruggedness.spectral import exact_scores
from quadscape.measures.run_losses import Evaluation
from quadscape.measures.sharpness import compute as sharpness
from quadscape.measures.sharpness.compute import NUMBERS
from quadscape.measures.sharpness.iterates import chosen_iterates
from quadscape.network.filters import Filters
from quadscape.stage.run import run_stage
from quadscape.tables import Table
from quadscape.training.task import TrainingTask

COUNTS = {"train": 1257, "validation": 270}
HEAD = {"run": "a", "P": 2000, "N": 1257, "method": "sgd", "batch_norm": False, "initial": True}
HEAD["loss"] = "cross_entropy"


def line_tables(run: str, bump: float = 0.0, points: int = 41) -> dict[str, Table]:
    """A line that falls from 2.3 to 0.02, with a bump at α = ½ if asked for, and a validation loss that turns up."""

    def evaluate(theta: np.ndarray) -> dict[str, Evaluation]:
        a = float(theta[0])
        loss = 2.3 - 2.28 / (1 + np.exp(-14 * (a - 0.45))) + bump * np.exp(-(((a - 0.5) / 0.06) ** 2))
        held = loss + 0.3 * max(0.0, a - 0.5) ** 2 * 4
        return {s: Evaluation(v, float(np.exp(-v)), v + 3) for s, v in (("train", loss), ("validation", held))}

    return interpolation.measure(evaluate, np.zeros(3), np.ones(3), COUNTS, points, HEAD | {"run": run})


def connection_tables(first: str, second: str) -> dict[str, Table]:
    """A line between two ends with a barrier of 0.6, of which aligning hidden units leaves a tenth."""

    def evaluate(theta: np.ndarray) -> dict[str, Evaluation]:
        loss = 0.05 + (0.06 if theta[1] else 0.6) * float(np.sin(np.pi * theta[0])) ** 2
        return {s: Evaluation(v, float(np.exp(-v)), v + 3) for s, v in (("train", loss), ("validation", loss + 0.1))}

    head = HEAD | {"run": f"pairs/{first}/{second}", "runs": [first, second]}
    lines = {
        aligned: interpolation.measure(evaluate, np.array([0.0, aligned]), np.array([1.0, aligned]), COUNTS, 41, head)
        for aligned in (False, True)
    }
    return connection.joined(lines, {"alignment": "by weight matching", "units": 40, "moved": 38})


def path_tables(run: str, count: int = 120, size: int = 40, noise: float = 0.02, **options: Any) -> dict[str, Table]:
    """A path that descends along two directions and walks at random in all, on a bowl."""
    iterates = descending_path(run, count, size, noise)
    options = {"walks": 8, "resolution": 9} | options
    return path.measure(10 * np.arange(count), iterates, bowl, chosen("path", **options), HEAD | {"run": run})


def descending_path(run: str, count: int, size: int, noise: float) -> np.ndarray:
    """Iterates that descend along two directions and walk at random in all."""
    generator = np.random.default_rng(len(run))
    t = np.linspace(0, 1, count)
    iterates = noise * np.cumsum(generator.standard_normal((count, size)), axis=0) / np.sqrt(size)
    iterates[:, 0] += 2 * np.exp(-6 * t)
    iterates[:, 1 % size] += 0.8 * np.sin(4 * t)
    return iterates


def embedding_tables(
    run: str, count: int = 40, size: int = 40, noise: float = 0.02, **options: Any
) -> dict[str, Table]:
    """Embeddings of such a path; what stands for UMAP's is PCA's, bent, since UMAP is compiled for seconds."""

    def bent(points: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
        return np.tanh(points[:, :2]) + 0.02 * np.random.default_rng(seed).standard_normal((len(points), 2))

    iterates = descending_path(run, count, size, noise)
    options = {"seeds": 2, "resolution": 7} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "umap_layout", bent)
        return embedding.measure(
            10 * np.arange(count), iterates, bowl, chosen("embedding", **options), HEAD | {"run": run}, lambda _: None
        )


def bowl(theta: np.ndarray) -> float:
    """A loss that is steep along the first coordinates."""
    return float(0.05 + np.log1p((1.0 / np.arange(1, len(theta) + 1)) @ theta**2))


def run_job(folder: Path, model: Mapping[str, Any], options: Mapping[str, Any], loss: str, **section: Any) -> Job:
    """A job of a measure of a run, which is trained on a fifth of the digits."""
    data = folder / "data.zarr"
    if not data.exists():
        prepare(Data(source="digits", held_out=0.8), 0, data)
    run = Run(name="r", **training(**section).model_dump(exclude_unset=True))
    task = TrainingTask(run, 0, model_section(model), loss, data, "cpu")
    task.may_diverge = True
    run_stage(task, folder / "run", log=lambda _: None)
    inputs = {"data": [data], "trajectory": [folder / "run" / "manifest.json"]}
    return Job("r", (), {"dtype": "float64", **options}, inputs, device="cpu", log=lambda _: None)


def sharpness_tables(run: str, rates: np.ndarray, drops: tuple[int, ...], **head: Any) -> dict[str, Table]:
    """A largest eigenvalue that rises to the stability limit of heavy-ball and fluctuates there; some iterates fail."""
    iterations = chosen_iterates(np.arange(len(rates) + 1), drops, 64)
    count, generator = len(iterations), np.random.default_rng(len(run))
    limit = 3.8 / rates[np.maximum(iterations - 1, 0)]
    largest = (
        limit * (1 - np.exp(-iterations / (0.1 * len(rates) + 1))) * np.exp(0.1 * generator.standard_normal(count))
    )
    numbers = {name: np.zeros(count) for name in NUMBERS} | {"largest": largest + 0.5, "second": 0.6 * largest}
    numbers |= {"loss": 2 * np.exp(-iterations / (0.2 * len(rates) + 1)), "norm": np.linspace(4, 3, count)}
    numbers["state"] = np.where(np.arange(count) % 11 == 3, 1.0, 0.0)
    for name, share in (("batch_sharpness", 0.3), ("mean_ratio", 0.25)):
        middle = share * largest * np.exp(0.1 * generator.standard_normal(count))
        numbers |= {name: middle, f"{name}_low": 0.7 * middle, f"{name}_high": 1.4 * middle}
    given = {"momentum": 0.9, "nesterov": False, "no_limit": "", "weight_decay": 1e-3, "batch_size": 64, "batches": 16}
    return sharpness.tabulate(iterations, numbers, rates, HEAD | {"run": run} | given | head)


@cache
def _fractal() -> dict[str, Table]:
    both = {name: problem(*SMALL["mlp"], getattr(torch, name), count=20, chunk=64) for name in PRECISIONS}
    objective, theta = both["float64"]
    values, vectors = np.linalg.eigh(dense_hessian(objective, theta).numpy())
    basis, filters = PlainBasis(values[::-1], vectors[:, ::-1]), Filters.of(objective.layout)
    options, head = chosen("fractal", windows=4, points=129), HEAD | {"iteration": 0}
    losses = {name: loss for name, (loss, _) in both.items()}
    return fractal.measure(losses, basis, theta.numpy(), filters, options, head)


def fractal_tables(head: Mapping[str, Any]) -> dict[str, Table]:
    """Nested lines of one small network, said to be of another checkpoint."""
    return {name: Table(t.schema, t.columns, t.attributes | head) for name, t in _fractal().items()}


@cache
def _rugged() -> dict[str, Table]:
    objective, theta = problem(*SMALL["mlp"], count=40, chunk=64)
    values, vectors = np.linalg.eigh(dense_hessian(objective, theta).numpy())
    options = chosen("ruggedness", directions=3, points=11, batch_size=8)
    spectrum, head = exact_scores(values[::-1]), HEAD | {"iteration": 0, "weight_decay": 1e-3}
    return ruggedness.measure(objective, theta.numpy(), spectrum, vectors[:, -1], options, head)


def rugged_tables(head: Mapping[str, Any]) -> dict[str, Table]:
    """Scores of one small network, said to be of another checkpoint."""
    return {name: Table(t.schema, t.columns, t.attributes | head) for name, t in _rugged().items()}
