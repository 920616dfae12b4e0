"""Embeddings of the iterates of a run into a plane, beside those of paths with nothing to see.

All of it happens in the coordinates of the iterates on all their principal components, of which n points have n − 1 at
most: distances between iterates are what they are in the space of parameters, and nothing of P dimensions is embedded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from quadscape.measures.embedding.autoencoder import Autoencoders, fit
from quadscape.measures.embedding.declaration import (
    DIMENSIONS,
    LEAST,
    METHODS,
    NEIGHBOURHOODS,
    PATHS,
    PLANE,
    POINTS,
    SCORES,
)
from quadscape.measures.embedding.layout import umap_layout
from quadscape.measures.embedding.nulls import correlation_time, pulled_path, random_walk
from quadscape.measures.embedding.scores import trustworthiness
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.path.compute import Components, components_of, evenly_spaced, extent
from quadscape.measures.run_losses import RunLosses, run_head
from quadscape.tables import Table

_SCORES = ("trustworthiness", "continuity", "trustworthiness_apart", "continuity_apart", "error")


def compute(job: Job) -> dict[str, Table]:
    """The embeddings of one run.

    Args:
        job: Reads data and trajectory.

    Returns:
        The tables of `measure`, empty where the run diverged, never moved in a plane or has too few iterates.
    """
    trajectory, losses = job.trajectory(), RunLosses(job, ("train",))
    head = run_head(job, trajectory, losses.counts["train"], losses.batch_norm)
    if trajectory.diverged is not None:
        job.log(f"run '{job.run}' diverged at iteration {trajectory.diverged}: its path is not embedded")
        return empty(head)
    section = trajectory.training
    iterations = evenly_spaced(section.trajectory.stride, section.iterations, job.options.iterates)
    iterates = np.stack([trajectory.theta(int(iteration)) for iteration in iterations])
    return measure(iterations, iterates, lambda theta: losses.at(theta)["train"].loss, job.options, head, job.log)


def empty(head: Mapping[str, Any]) -> dict[str, Table]:
    """The tables where nothing is embedded.

    Args:
        head: Their attributes.

    Returns:
        Tables without rows.
    """
    return {
        schema.name: Table(schema, columns_of([], schema.all_columns()), head) for schema in (POINTS, SCORES, PLANE)
    }


class Embedding(NamedTuple):
    """Points of a path in a plane.

    Attributes:
        points: Shape (n, 2).
        decoded: What they are decoded to in the coordinates of the path, shape (n, d); None for a method without.
    """

    points: np.ndarray
    decoded: np.ndarray | None


def measure(
    iterations: np.ndarray,
    iterates: np.ndarray,
    loss: Callable[[np.ndarray], float],
    options: Any,
    attributes: Mapping[str, Any],
    log: Callable[[str], object] = print,
) -> dict[str, Table]:
    """Embeddings of a path, their scores beside those of other paths, and the decoded loss.

    Args:
        iterations: Steps taken, at equal distances, int64, shape (n,).
        iterates: θ at these, float64, shape (n, P); overwritten.
        loss: Training loss at a θ.
        options: neighbours, seeds and resolution.
        attributes: Head of the tables.
        log: Told why nothing is embedded.

    Returns:
        Tables `embedding_points`, `embedding_scores` and `embedding_plane`. Attributes: iterates, n; spacing, the steps
        between them; rank, how many components have variance beyond rounding; radius, the root mean square distance
        from the mean; correlation_time, τ in steps; dimensions, of the paths beside the run; neighbours and seeds.
    """
    count = len(iterations)
    found = components_of(iterates)
    spacing = int(iterations[1] - iterations[0]) if count > 1 else 0
    head = {
        **attributes,
        "iterates": count,
        "spacing": spacing,
        "rank": found.rank,
        "radius": float(np.sqrt(found.total / count)),
        "neighbours": min(options.neighbours, count - 1),
        "seeds": options.seeds,
    }
    if count < LEAST or found.rank < 2:
        few = f"it has {count} iterates, and {LEAST} would do" if count < LEAST else "it never leaves a line"
        log(f"the path of run '{attributes.get('run', '')}' is not embedded: {few}")
        return empty(head)
    run = _coordinates(found)
    steps, time = np.linalg.norm(np.diff(run, axis=0), axis=1), correlation_time(run)
    dimensions, seeds = min(iterates.shape[1], DIMENSIONS), range(options.seeds)
    head |= {"correlation_time": time * spacing, "dimensions": dimensions}
    paths = {
        "run": [run] * options.seeds,
        "walk": [_coordinates(components_of(random_walk(steps, dimensions, seed))) for seed in seeds],
        "ou": [_coordinates(components_of(pulled_path(steps, dimensions, time, seed))) for seed in seeds],
    }
    trained = fit(np.stack([_padded(path, count - 1) for name in PATHS for path in paths[name]]), [*seeds] * len(PATHS))
    embedded = {
        (name, method): [
            _embed(method, paths[name][seed], head["neighbours"], seed, trained, place * len(seeds))
            for seed in (seeds if (name, method) != ("run", "pca") else seeds[:1])
        ]
        for place, name in enumerate(PATHS)
        for method in METHODS
    }
    scores = [
        _scores(name, method, k, list(zip(paths[name], of, strict=False)), time)
        for (name, method), of in embedded.items()
        for k in NEIGHBOURHOODS
        if 2 * k < count
    ]
    points = [
        row
        for method in METHODS
        for seed, embedding in enumerate(embedded["run", method])
        for row in _rows(method, seed, iterations, embedding, run)
    ]
    plane = _plane(found, iterates, trained, loss, options.resolution)
    rows = ((POINTS, points), (SCORES, scores), (PLANE, plane))
    return {schema.name: Table(schema, columns_of(of, schema.all_columns()), head) for schema, of in rows}


def _coordinates(found: Components) -> np.ndarray:
    """Coordinates on all principal components, in units of the root mean square distance from the mean."""
    return _pointed(found) * np.sqrt(found.values[: found.rank] * len(found.values) / found.total)


def _pointed(found: Components) -> np.ndarray:
    """Eigenvectors with the signs that `principal` gives, as LAPACK's depend on the machine; shape (n, rank)."""
    vectors = found.vectors[:, : found.rank]
    furthest = vectors[np.abs(vectors).argmax(axis=0), np.arange(found.rank)]
    negative = furthest < 0
    negative[:1] = vectors[-1, :1] < vectors[0, :1]
    return vectors * np.where(negative, -1.0, 1.0)


def _plane(
    found: Components,
    centred: np.ndarray,
    trained: Autoencoders,
    loss: Callable[[np.ndarray], float],
    resolution: int,
) -> list[dict[str, float]]:
    """The loss on a grid of the plane of the first autoencoder."""
    # A point of the path's coordinates, as a combination of the centred iterates.
    weights = _pointed(found) * np.sqrt(found.total / len(centred) / found.values[: found.rank])
    first, second = (extent(trained.codes[0, :, k], resolution) for k in (0, 1))
    rows = []
    for a in first:
        for b in second:
            coordinates = trained.decode(0, np.array([[a, b]]))[0, : found.rank]
            rows.append({"x": a, "y": b, "loss": loss(found.centre + (weights @ coordinates) @ centred)})
    return rows


def _padded(coordinates: np.ndarray, size: int) -> np.ndarray:
    return np.pad(coordinates, ((0, 0), (0, size - coordinates.shape[1])))


def _embed(method: str, path: np.ndarray, neighbours: int, seed: int, trained: Autoencoders, first: int) -> Embedding:
    """One path by one method; its autoencoders are from `first` on among the trained."""
    if method == "pca":
        return Embedding(path[:, :2], np.where(np.arange(path.shape[1]) < 2, path, 0.0))
    if method == "umap":
        return Embedding(umap_layout(path, neighbours, seed), None)
    return Embedding(trained.codes[first + seed], trained.decoded[first + seed][:, : path.shape[1]])


def _scores(
    name: str, method: str, k: int, pairs: list[tuple[np.ndarray, Embedding]], time: float
) -> dict[str, str | int | float]:
    found = []
    for path, (points, decoded) in pairs:
        gaps = (0.0, 2 * time)
        kept = [trustworthiness(*both, k, gap) for gap in gaps for both in ((path, points), (points, path))]
        found.append([*kept, float("nan") if decoded is None else float(np.square(decoded - path).sum()) / len(path)])
    row: dict[str, str | int | float] = {"path": name, "method": method, "neighbours": k}
    for column, values in zip(_SCORES, np.array(found).T, strict=True):
        row |= {column: values.mean(), f"{column}_low": values.min(), f"{column}_high": values.max()}
    return row


def _rows(
    method: str, seed: int, iterations: np.ndarray, embedding: Embedding, path: np.ndarray
) -> list[dict[str, Any]]:
    points, decoded = embedding
    error = np.full(len(path), np.nan) if decoded is None else np.linalg.norm(decoded - path, axis=1)
    return [
        {"method": method, "seed": seed, "iteration": iteration, "x": x, "y": y, "error": off}
        for iteration, (x, y), off in zip(iterations, points, error, strict=True)
    ]
