"""Findings from embeddings of a run: how far each method can be trusted, beside paths with nothing to see."""

import math
from typing import Any

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number, percent
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, described
from quadscape.tables import Table

MEASURE = "embedding"

PRIMARY = ""
"""Nothing published is tested; all findings are exploratory."""

NEIGHBOURS = 10
"""Number of neighbours of the statements; of a path with too few iterates the largest that it has."""

_METHODS = {"pca": "PCA", "umap": "UMAP", "autoencoder": "the autoencoder"}
_SEEDS = "range over seeds"
_ONE = "one seed"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `embedding_scores`.

    Returns:
        Statements, by run and method.
    """
    found: list[Statement] = []
    for run in reading.runs_of(tables, "embedding_scores"):
        table = run.tables[0]
        sizes = table["neighbours"]
        k = int(sizes[sizes <= NEIGHBOURS].max(initial=int(sizes.min())))
        for method in _METHODS:
            found += _method(run, table.where((table["method"] == method) & (sizes == k)), method, k)
    return found


def _method(run: RunTables, table: Table, method: str, k: int) -> list[Statement]:
    at: dict[str, Any] = {"measure": MEASURE, "run": run.run}
    name, found = _METHODS[method], []
    kept, walk, ou = _values(table, method, "trustworthiness")
    if not math.isnan(kept.value):
        text = f"Of the {k} nearest neighbours of an iterate, {name} has the trustworthiness {number(kept.value)}, of "
        text += (
            f"those of a random walk {number(walk.value)}, of those of an Ornstein–Uhlenbeck path {number(ou.value)}"
        )
        found.append(described(text, kept, **at))
    kept, walk, ou = _values(table, method, "trustworthiness_apart")
    if not math.isnan(kept.value):
        text = (
            f"Among iterates two correlation times apart or more, {name} has the trustworthiness {number(kept.value)}"
        )
        text += f" at {k} neighbours, on a random walk {number(walk.value)}, "
        text += f"on an Ornstein–Uhlenbeck path {number(ou.value)}"
        found.append(described(text, kept, **at))
    kept, walk, ou = _values(table, method, "error")
    if not math.isnan(kept.value):
        text = f"{name[0].upper()}{name[1:]} leaves {percent(kept.value)} of the path's variance out, of a random "
        text += f"walk's {percent(walk.value)}, of an Ornstein–Uhlenbeck path's {percent(ou.value)}"
        found.append(described(text, kept, **at))
    return found


def _values(table: Table, method: str, column: str) -> tuple[Estimate, Estimate, Estimate]:
    """A column of the run and of the two paths beside it."""
    found = []
    for path in ("run", "walk", "ou"):
        row = np.flatnonzero(table["path"] == path)
        value, low, high = (float(table[f"{column}{side}"][row[0]]) for side in ("", "_low", "_high"))
        if path == "run" and method == "pca":
            found.append(Estimate.exact(value))
        else:
            found.append(Estimate(value, low, high, _SEEDS) if high > low else Estimate.alone(value, _ONE))
    return found[0], found[1], found[2]
