"""UMAP (McInnes, Healy & Melville, arXiv 1802.03426) of a few points."""

import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np

from quadscape.measures.embedding.scores import distances_of

_EPOCHS = 500


def umap_layout(points: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    """UMAP's embedding of points into a plane.

    Nearest neighbours are searched here, all against all: for a few hundred points that takes no time, and UMAP's own
    search would be compiled for seconds in every process.

    Args:
        points: Shape (n, d).
        neighbours: Size of a neighbourhood, the point itself included; at most n.
        seed: Seed of the layout. It is the same again on one machine; another processor rounds otherwise, which the
            layout amplifies as another seed would.

    Returns:
        Shape (n, 2), float64.
    """
    neighbours = min(neighbours, len(points) - 1)
    distances = distances_of(points)
    np.fill_diagonal(distances, -1.0)  # each first among its own, whatever else lies on it
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    np.fill_diagonal(distances, 0.0)
    umap = _umap()
    with warnings.catch_warnings():
        # The neighbours come without an index for further points, of which there are none.
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]", category=UserWarning)
        method = umap.UMAP(
            n_neighbors=neighbours,
            n_epochs=_EPOCHS,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(nearest, np.take_along_axis(distances, nearest, axis=1)),
            force_approximation_algorithm=True,  # or the neighbours would be searched again
        )
        return np.asarray(method.fit_transform(points), dtype=np.float64)


def _umap() -> Any:
    """The module, which compiles parts of itself and keeps them beside itself or in the user's cache."""
    import numba

    beside, settings = Path(numba.__file__).parent.parent, cast("Any", numba.config)
    if not settings.CACHE_DIR and not any(os.access(folder, os.W_OK) for folder in (beside, Path.home())):
        # Importing it would fail where there is no place for what it compiles.
        settings.CACHE_DIR = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, settings.CACHE_DIR, ignore_errors=True)
    # With its other threads, OpenMP's, it would set how many torch computes with.
    settings.THREADING_LAYER = "workqueue"
    with warnings.catch_warnings():
        # Of a part that needs Tensorflow.
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        import umap
    return umap
