"""Tables planted so that each published result is found to agree, or to disagree."""

from collections.abc import Callable
from typing import Any

import numpy as np

from quadscape.findings.known import known_rows
from quadscape.tables import Column, Table, TableSchema

Planted = dict[str, list[Table]]

ORIGINAL = {
    "run": "r",
    "P": 26490,
    "N": 45000,
    "classes": 10,
    "data": "cifar10",
    "normalization": "batch",
    "momentum": 0.97,
    "weight_decay": 1e-3,
    "batch_size": 512,
    "sampling": "independent",
}
"""The original study's setting."""

USUAL = {"run": "r", "P": 2000, "N": 1000, "classes": 10, "momentum": 0.0, "weight_decay": 1e-3, "batch_size": 100}
"""A small classifier."""


def plant(name: str, columns: dict[str, Any], **attributes: Any) -> Table:
    """A table whose schema is made from its columns, so that tests need no measure."""
    kinds = {"f": "float", "i": "int", "b": "bool", "U": "str"}
    arrays = {key: np.asarray(values) for key, values in columns.items()}
    schema = TableSchema(name, "", tuple(Column(key, "1", "", kinds[a.dtype.kind]) for key, a in arrays.items()))
    return Table(schema, arrays, attributes)


def spectrum(eigenvalues: np.ndarray, iteration: int, zero: float = 1e-9, **attributes: Any) -> Table:
    values = np.sort(np.asarray(eigenvalues, dtype=float))[::-1]
    positive = int(np.count_nonzero(values >= 0))
    index = np.arange(len(values))
    size = np.abs(values)

    def cut(at: float) -> dict[str, Any]:
        below, above = values[values < -at], values[values > at]
        share = float(-below.sum() / size.sum()) if size.sum() else 0.0
        return {"cut": at, "positive": len(above), "negative": len(below), "negative_share": share}

    return plant(
        "spectrum",
        {
            "index": index,
            "sign": np.where(index < positive, 1, -1),
            "rank": np.where(index < positive, index + 1, len(values) - index),
            "eigenvalue": values,
            "is_zero": size <= zero,
        },
        **attributes,
        iteration=iteration,
        zero_threshold=zero,
        largest=float(values[0]),
        smallest=float(values[-1]),
        trace=float(values.sum()),
        effective_rank=3.0,
        cuts=[cut(0.0), cut(zero)],
    )


def curves(
    iterations: np.ndarray, rate: Callable[[Any], Any], loss: Any = None, drops: tuple[int, ...] = (), **attributes: Any
) -> Table:
    steps = np.asarray(iterations)
    losses = np.ones(len(steps)) if loss is None else np.asarray(loss, dtype=float)
    rates = np.array([float(rate(step)) for step in steps])
    columns = {"iteration": steps, "batch_loss": losses, "learning_rate": rates}
    return plant("curves", columns, **attributes, drops=list(drops), window=5)


def power(count: int, exponent: float, scale: float = 1.0) -> np.ndarray:
    return scale * np.arange(1.0, count + 1) ** -exponent


def with_largest(value: float, iteration: int, smallest: float = -0.1, **attributes: Any) -> Table:
    return spectrum(np.array([value, value / 3, value / 10, smallest]), iteration, **attributes)


def matched(row: str, agree: bool, make: Callable[[float, int], Table]) -> Planted:
    """One checkpoint for each published iteration, right or a factor 4 off."""
    return {"spectrum": [make(v * (1 if agree else 4), i) for i, v in known_rows()[row].values.items()]}


def loss_path(agree: bool) -> Planted:
    values = known_rows()["original-loss-path"].values
    count = len(values)
    losses = np.array(list(values.values())) * (1.05 if agree else 1.5)
    columns = {
        "iteration": np.tile(list(values), 3),
        "split": np.repeat(["train", "validation", "test"], count),
        "loss": np.tile(losses, 3),
        "accuracy": np.full(3 * count, 0.5),
        "accuracy_low": np.full(3 * count, 0.4),
        "accuracy_high": np.full(3 * count, 0.6),
    }
    return {"evaluations": [plant("evaluations", columns, **ORIGINAL)]}


def plateau_loss(agree: bool) -> Planted:
    steps = np.arange(0, 41000, 25)
    losses = np.ones(len(steps))
    for window, value in known_rows()["original-plateau-loss"].values.items():
        start, stop = map(int, window.split("-"))
        losses[(steps >= start) & (steps < stop)] = value * (1.05 if agree else 2)
    losses *= 1 + 1e-3 * np.random.default_rng(0).standard_normal(len(steps))
    return {"curves": [curves(steps, lambda _: 0.1, losses, **ORIGINAL)]}


def counts(row: str, agree: bool) -> Planted:
    def make(value: float, iteration: int) -> Table:
        value = min(int(value), 26000)
        if row == "original-positive-count":
            eigenvalues = np.concatenate([np.full(value, 1e-2), np.full(26490 - value, 1e-6)])
        else:
            eigenvalues = np.concatenate([np.full(26490 - value, 1e-2), np.full(value, -1e-3)])
        return spectrum(eigenvalues, iteration, **ORIGINAL)

    values = known_rows()[row].values
    return {"spectrum": [make(v if agree else v * 0.4, i) for i, v in values.items()]}


def around_drop(agree: bool, late: bool) -> Planted:
    path = {10000: 4.0, 10100: 3.0 if agree or late else 5.0, 15000: 10.0 if agree or not late else 2.0}
    steps = np.arange(0, 20001, 50)
    tables = [with_largest(value, i, **ORIGINAL) for i, value in path.items()]
    return {
        "spectrum": tables,
        "curves": [curves(steps, lambda i: 0.1 if i < 10000 else 0.01, None, (10000,), **ORIGINAL)],
    }


def settled(setting: dict[str, Any], share: float, momentum: float = 0.0) -> Planted:
    """Two last checkpoints at one rate with λ₁ + δ at a share of the limit."""
    limit = 2 * (1 + momentum) / 0.1
    value = share * limit - setting["weight_decay"]
    tables = [with_largest(value * (1 + 0.01 * k), 1000 * (k + 1), **setting) for k in (0, 1)]
    tables[-1] = with_largest(value, 2000, **setting)
    return {"spectrum": tables, "curves": [curves(np.arange(0, 2001, 10), lambda _: 0.1, **setting)]}


def sharp(name: str, largest: float, ratio: float, setting: dict[str, Any]) -> list[Table]:
    """The two tables of a run whose λ₁ has settled, with a batch sharpness of so many times 2/η."""
    head = {**setting, "run": name}
    course = {"state": ["converged"] * 2, "iteration": [0, 1000], "largest": [1.0, largest], "residual": [1e-6] * 2}
    course |= {"limit": [20.0, 20.0], "scaled": [np.nan, np.nan]}
    means = {"largest": largest, "batch_ratio": ratio}
    ends = {
        f"{name}{end}": [value * by] for name, value in means.items() for end, by in (("_low", 0.98), ("_high", 1.02))
    }
    plateau = {
        "first": [0],
        "last": [1000],
        "learning_rate": [0.1],
        "iterates": [60],
        "blocks": [20],
        "settled": [True],
    }
    plateau |= {name: [value] for name, value in means.items()} | ends | {"change_low": [-0.1], "change_high": [0.1]}
    return [plant("sharpness", course, **head), plant("sharpness_plateaus", plateau, **head)]


def sharpness(*runs: list[Table]) -> Planted:
    """Of several runs."""
    return {"sharpness": [run[0] for run in runs], "sharpness_plateaus": [run[1] for run in runs]}


def decays(agree: bool) -> Planted:
    """A run without weight decay beside one with it."""
    without = sharp("without", 4.0 if agree else 16.0, 1.0, ORIGINAL | {"weight_decay": 0.0})
    return sharpness(without, sharp("with", 18.0, 1.0, ORIGINAL))


def outliers(normalization: str, count: int) -> Planted:
    bulk = power(1000, 0.2, 0.1)
    eigenvalues = np.concatenate([np.linspace(5, 1, count), bulk])
    setting = USUAL | {"normalization": normalization}
    return {"spectrum": [spectrum(eigenvalues, 500, **setting)]}


def start(agree: bool) -> Planted:
    ranks = np.arange(1.0, 1001)
    bent = 10 * np.exp(-ranks / 100) if agree else 10 / ranks
    return {"spectrum": [spectrum(bent, 0, **USUAL)]}


def parts(agree: bool) -> Planted:
    eigenvalues = power(20, 1)
    columns = {
        "index": np.arange(20),
        "sign": np.ones(20, dtype=int),
        "rank": np.arange(1, 21),
        "eigenvalue": eigenvalues,
        "gauss_newton": eigenvalues * (0.95 if agree else 0.3),
        "remainder": eigenvalues * (0.05 if agree else 0.7),
        "is_zero": np.zeros(20, dtype=bool),
    }
    return {"parts_ritz": [plant("parts_ritz", columns, **USUAL, iteration=500, error=1e-6)]}


def subspace(agree: bool) -> Planted:
    ks = np.array([1, 9, 12, 2000])
    overlap = np.array([0.9, 0.85, 0.8, 1.0]) if agree else np.array([0.1, 0.05, 0.04, 1.0])
    columns = {"end": np.array(["top"] * 4), "k": ks, "overlap": overlap, "chance": ks / 2000}
    return {"overlap_subspace": [plant("overlap_subspace", columns, **USUAL, iteration_a=100, iteration_b=500)]}


def neighbours(agree: bool, bands: int = 24) -> Planted:
    size = 26490
    edges = np.unique(np.rint(np.geomspace(1, size + 1, bands + 1)).astype(int))
    first, last = edges[:-1], edges[1:] - 1
    count = len(first)
    a, b = (axis.ravel() for axis in np.indices((count, count)))
    # All power stays in the own band, or goes everywhere alike.
    ratio = np.where(a == b, size / (last - first + 1)[b], 0.0) if agree else np.ones(count**2)
    columns = {
        "band_a": a,
        "band_b": b,
        "sign_a": np.ones(count**2, dtype=int),
        "first_rank_a": first[a],
        "last_rank_a": last[a],
        "sign_b": np.ones(count**2, dtype=int),
        "first_rank_b": first[b],
        "last_rank_b": last[b],
        "ratio": ratio.astype(float),
    }
    return {"overlap_bands": [plant("overlap_bands", columns, **ORIGINAL, iteration_a=100, iteration_b=500)]}


def lines(exponent: float = 1.0, step: float = 1.0, related: bool = False, count: int = 40) -> Planted:
    """Lines that grow as a power beyond their quadratic radius; best steps given for both signs."""
    generator = np.random.default_rng(0)
    signs = np.repeat([1, -1], count)
    ranks = np.tile(np.arange(1, count + 1), 2)
    eigenvalues = signs / ranks
    gradient = np.full(2 * count, 0.01)
    newton = np.where(signs > 0, -gradient / eigenvalues, np.nan)
    free = generator.uniform(1, 2, 2 * count) if not related else 1 / np.abs(eigenvalues)
    fits: dict[str, Any] = {
        "index": np.arange(2 * count),
        "sign": signs,
        "rank": ranks,
        "eigenvalue": eigenvalues,
        "is_zero": np.zeros(2 * count, dtype=bool),
        "form": np.array(["log"] * 2 * count),
        "curvature_ratio": np.ones(2 * count),
        "validation_curvature": eigenvalues * 1.1,
        "form_reach": np.ones(2 * count),
        "gradient": gradient,
        "minimum": np.where(signs > 0, step * newton, -free * gradient),
        "newton": newton,
    }
    for name in ("positive", "negative"):
        fits[f"radius_{name}"] = np.full(2 * count, 0.1)
        fits[f"radius_{name}_status"] = np.array(["measured"] * 2 * count)
    head = USUAL | {"iteration": 500}
    forms = {name: fits[name] for name in ("index", "sign", "rank", "eigenvalue", "is_zero", "form")}
    forms |= {
        "best_form": fits["form"],
        "best_error": np.full(2 * count, 1e-3),
        "rise": np.full(2 * count, 1e-2),
        "growth": np.full(2 * count, exponent),
    }
    return {"line_fit": [plant("line_fit", fits, **head)], "line_forms": [plant("line_forms", forms, **head)]}


def gradients(
    setting: dict[str, Any],
    iteration: int = 500,
    exponent: float = 1.5,
    top_share: float = 0.8,
    participation: float = 0.05,
    noise: float = 1.0,
) -> Table:
    size = setting["P"]
    eigenvalues = power(size, 1, 10)
    squares = np.where(np.arange(size) < 10, top_share / 10, (1 - top_share) / (size - 10))
    columns = {
        "index": np.arange(size),
        "sign": np.ones(size, dtype=int),
        "rank": np.arange(1, size + 1),
        "eigenvalue": eigenvalues,
        "mean": np.full(size, 0.1),
        "mean_low": np.full(size, 0.09),
        "mean_high": np.full(size, 0.11),
        "participation": np.full(size, participation),
        "gradient": np.sqrt(squares),
        "variance": noise * eigenvalues**exponent,
        "top_share": np.full(size, 0.02),
    }
    head = {"zero_threshold": 1e-9, "chance_mean": 0.01, "iteration": iteration}
    return plant("gradients", columns, **setting, **head)


def noise_scale(agree: bool) -> Planted:
    levels = (1.0, 5.0) if agree else (5.0, 1.0)
    return {"gradients": [gradients(USUAL, 100 * k, noise=level) for k, level in enumerate(levels)]}


def exponent(agree: bool, setting: dict[str, Any]) -> Planted:
    return {"spectrum": [spectrum(power(2500, 1.0 if agree else 2.5, 10), 500, **setting)]}


FULL = USUAL | {"batch_size": 1000}


def localised(agree: bool) -> Planted:
    k = 40
    columns = {
        "sign": np.ones(k, dtype=int),
        "rank": np.arange(k) + 1,
        "participation": np.full(k, 50.0),
        "largest_share": np.full(k, 0.8 if agree else 0.3),
    }
    head = ORIGINAL | {"iteration": 40_000, "chance_participation": 8_830.7, "largest": 100}
    return {"localisation": [plant("localisation", columns, **head)]}


TEXT = {"run": "r", "data": "text", "P": 2000, "N": 1000}


def adam(agree: bool) -> Planted:
    """SGD and Adam at five rates, with batches of 50 and of all 1,000 examples; Adam gains most at full batch."""
    rates, seeds, rows = (0.01, 0.03, 0.1, 0.3, 1.0), range(3), []
    ends = {("sgd", 50): 0.12, ("adam", 50): 0.1, ("sgd", 1000): 0.2, ("adam", 1000): 0.1}
    if not agree:
        ends = {("sgd", 50): 0.3, ("adam", 50): 0.1, ("sgd", 1000): 0.1, ("adam", 1000): 0.1}
    for (method, size), end in ends.items():
        for rate in rates:
            for seed in seeds:
                loss = end * (1 + np.log10(rate / 0.1) ** 2) * (1 + 0.01 * seed) * (1.001 if method == "sgd" else 1)
                rows.append((method, size, rate, seed, loss * (1 + 0.002 * (seed - 1) * (method == "sgd"))))
    methods, sizes, of_rates, of_seeds, losses = (np.array(part) for part in zip(*rows, strict=True))
    cells = np.array([f"{m} · {b} · {r:g}" for m, b, r, _, _ in rows])
    labels = {
        c: {"method": m, "batch": str(b), "rate": f"{r:g}"} for c, (m, b, r, _, _) in zip(cells, rows, strict=True)
    }
    count = len(rows)
    columns = {
        "run": np.arange(count),
        "cell": cells,
        "seed": of_seeds,
        "method": methods,
        "momentum": np.where(methods == "sgd", 0.0, np.nan),
        "batch_size": sizes,
        "learning_rate": of_rates,
        "weight_decay": np.zeros(count),
        "iterations": np.full(count, 100),
        "examples": np.full(count, 1000),
        "parameters": np.full(count, 2000),
        "diverged_at": np.full(count, -1),
        "training_loss": losses,
        "validation_loss": losses + 0.1,
        "gap": np.full(count, 0.1),
        "examples_to_target": 50 * sizes,
        "gradient_variance": 1.0 / sizes,
    }
    head = {**TEXT, "axes": {"method": [], "batch": [], "rate": []}, "rate_axes": ["rate"], "cells": labels}
    return {"descent_members": [plant("descent_members", columns, **head)]}


def deep(agree: bool) -> Planted:
    """Slopes of networks of 22 layers at the first step; a straight line explains much, or little."""
    columns = {
        "cell": ["tanh", "relu"],
        "window": ["initial", "initial"],
        "layers": [20, 20],
        "members": [5, 5],
        "without": [0, 0],
    }
    for name, value, half in (("slope", -0.1, 0.01), ("linearity", 0.97 if agree else 0.5, 0.02)):
        columns |= {name: [value] * 2, f"{name}_low": [value - half] * 2, f"{name}_high": [value + half] * 2}
    return {"layer_slopes": [plant("layer_slopes", columns, **USUAL, normalization="none")]}


def line(agree: bool) -> Planted:
    """A training loss that falls from 2.3 to 0.3, or rises on the way by a tenth of that."""
    bump = 0.0 if agree else 0.2
    columns = {
        "split": ["train"],
        "monotone": [agree],
        "bump": [bump],
        "foot": [np.nan if agree else 0.2],
        "top": [np.nan if agree else 0.4],
        "barrier": [bump],
        "barrier_at": [np.nan if agree else 0.4],
        "start": [2.3],
        "end": [0.3],
        "floor": [1e-12],
    }
    head = USUAL | {"method": "sgd", "batch_norm": False, "initial": True, "loss": "cross_entropy"}
    return {"interpolation_summary": [plant("interpolation_summary", columns, **head)]}


def batch_minima(agree: bool) -> Planted:
    """Spreads of batches' minima as the original study's, or three times as large, and twice predicted."""
    known = known_rows()["original-minima-spread"].values
    at, spread = (np.log(np.array(list(values), dtype=float)) for values in (known.keys(), known.values()))
    eigenvalues = np.geomspace(10, 1e-3, 30)
    spread = np.exp(np.interp(np.log(eigenvalues), at, spread)) * (1.1 if agree else 3.0)
    columns = {
        "index": np.arange(30),
        "sign": np.ones(30, dtype=int),
        "rank": np.arange(1, 31),
        "eigenvalue": eigenvalues,
        "is_zero": np.zeros(30, dtype=bool),
        "decayed": np.ones(30, dtype=bool),
        "side": np.full(30, "only"),
        "batch_size": np.full(30, 512),
        "spread": spread,
        "spread_low": 0.9 * spread,
        "spread_high": 1.1 * spread,
        "ratio": np.full(30, 2.0),
        "gaussian": np.arange(30) % 2 == 0,
        "p_normal": np.full(30, 0.5),
        "not_normal": np.arange(30) < 3,
    }
    head = {"iteration": 40000, "training_batch_size": 512}
    return {"finite_batch": [plant("finite_batch", columns, **ORIGINAL, **head)]}


def broadened(agree: bool) -> Planted:
    """Excesses of batches' first eigenvalues that go as 1/B, or as its root."""
    sizes = np.repeat([8, 32, 128, 512], 6)
    excess = 10.0 * sizes ** (-1.0 if agree else -0.5) * np.tile(np.linspace(0.9, 1.1, 6), 4)
    columns = {
        "batch_size": sizes,
        "batch": np.tile(np.arange(6), 4),
        "place": np.ones(24, dtype=int),
        "eigenvalue": 2 + excess,
    }
    means = {"batch_size": np.unique(sizes), "place": np.ones(4, dtype=int), "full": np.full(4, 2.0)}
    for name in ("eigenvalue", "captured"):
        means |= {f"{name}{end}": np.full(4, 0.5) for end in ("", "_low", "_high")}
    return {
        "batch_hessians": [plant("batch_hessians", columns, **USUAL, iteration=500)],
        "batch_broadening": [plant("batch_broadening", means, **USUAL, iteration=500)],
    }


def path(agree: bool) -> Planted:
    """Components of a random walk, or of a path along a line."""
    walk = np.array([0.608, 0.152])
    share = walk if agree else np.array([0.98, 0.01])
    columns = {"component": [1, 2], "share": share, "walk": walk, "walk_low": 0.97 * walk, "walk_high": 1.03 * walk}
    return {"path_components": [plant("path_components", columns, **USUAL, data="imagenet", iterates=500)]}


def planes(agree: bool) -> Planted:
    """Random planes at a saddle, none or most of which show it."""
    smallest = np.where(np.arange(100) < (0 if agree else 80), -0.1, 0.1)
    columns = {"seed": np.arange(100), "largest": np.full(100, 1.0), "smallest": smallest}
    head = {"iteration": 100, "zero_threshold": 1e-9, "smallest_eigenvalue": -2.0}
    return {"surface_samples": [plant("surface_samples", columns, **USUAL, **head)]}


def ranked(agree: bool) -> Planted:
    """Networks whose curvature at the start ranks with the final training loss, or not."""
    value = -0.7 if agree else 0.3
    columns: dict[str, Any] = {
        "score": np.array(["trace_over_norm"]),
        "iteration": np.array([0]),
        "outcome": np.array(["final_loss"]),
        "networks": np.array([24]),
        "primary": np.array([True]),
        "rejected": np.array([False]),
        "p_value": np.array([np.nan]),
    }
    for name in ("correlation", "partial"):
        columns |= {name: [value], f"{name}_low": [value - 0.2], f"{name}_high": [value + 0.2]}
    return {"compared_ranks": [plant("compared_ranks", columns, run="nets", half_width=0.4)]}


def nested_lines(agree: bool) -> Planted:
    """Windows of three lines, with an exponent of 1 in all of them, or of 2 in the widest and nothing in the others."""
    lines, windows = np.repeat(["top", "bulk", "random"], 8), np.tile(np.arange(4).repeat(2), 3)
    precision = np.tile(["float64", "float32"], 12)
    exact = precision == "float64"
    above = exact & (agree | (windows == 0))
    exponent = np.where(above, (1.0 if agree else 1.99) + 0.004 * np.sin(np.arange(24)), np.nan)
    columns = {
        "line": lines,
        "window": windows,
        "precision": precision,
        "half_width": 0.1 * 10.0**-windows,
        "residual": np.where(exact, 1e-17, 1e-8),
        "floor": np.where(exact, 1e-17, 1e-8),
        "exponent": exponent,
        "exponent_low": exponent - 0.02,
        "exponent_high": exponent + 0.02,
        "state": np.where(above, "rough" if agree else "smooth", "none above the floor"),
    }
    return {"fractal": [plant("fractal", columns, **USUAL, iteration=2000, theta_norm=10.0)]}


def samplings(agree: bool) -> Planted:
    """Two members of a family in two bands, the flatter of which spreads less where batches are reshuffled, or not."""
    value = np.array([0.2 if agree else 1.5, 1.0])
    shared = {"curvature": [0.1, 1.0], "lowest": [0.08, 0.8], "highest": [0.12, 1.2], "told": [True, True]}
    shared |= {"relaxation": [100.0, 19.0], "learning_rate": [0.1, 0.1]}
    pairs = {**shared, "reshuffled": [0, 0], "independent": [1, 1], "batch_size": [100, 100]}
    pairs |= {"ratio": value, "ratio_low": 0.8 * value, "ratio_high": 1.2 * value, "expected": [0.2, 1.0]}
    members = {name: np.tile(values, 2) for name, values in shared.items()}
    members |= {
        "run": np.repeat([0, 1], 2),
        "cell": np.repeat(["reshuffled", "independent"], 2),
        "seed": np.zeros(4, int),
    }
    ratio = np.array([1.0, 1.0, 0.9, 2.0])
    members |= {"ratio": ratio, "ratio_low": ratio - 0.2, "ratio_high": ratio + 0.2}
    tables = {"stationary": members, "sampling_ratio": pairs}
    return {name: [plant(name, columns, **USUAL)] for name, columns in tables.items()}


def fluctuations(exponent: float, ratio: float) -> Planted:
    """Ten stationary bands above the crossover, and forty directions of them."""
    curvature, head = np.geomspace(10, 0.5, 10), {"iteration": 2000, "first": 0, "last": 2000, "steady": True}
    head |= {"epoch": 20.0, "sampling": "reshuffled", "energy": 0.01, "energy_expected": 0.012}
    variance = curvature**exponent * np.exp(0.02 * np.sin(np.arange(10)))
    bands = {
        "curvature": curvature,
        "told": np.ones(10, dtype=bool),
        "relaxation": np.full(10, 8.0),
        "variance": variance,
        "expected": variance / ratio,
        "independent": 2 * variance / ratio,
        **{f"ratio{end}": ratio * np.full(10, size) for end, size in (("", 1.0), ("_low", 0.8), ("_high", 1.2))},
    }
    many = np.repeat(variance, 4)
    ways = {
        "told": np.ones(40, dtype=bool),
        "state": np.full(40, "settled"),
        "settling": np.full(40, 30.0),
        "relaxation": np.full(40, 8.0),
        "variance": many * ratio * np.exp(0.1 * np.sin(np.arange(40))),
        "expected": many,
    }
    return {
        "evolution": [plant("evolution", ways, **USUAL, **head)],
        "evolution_bands": [plant("evolution_bands", bands, **USUAL, **head)],
    }


def posterior(agree: bool) -> Planted:
    """One crossing at the original study's eigenvalues, or at ten times these."""
    found: Planted = {"posterior": [], "posterior_crossings": []}
    for iteration, (rate, value) in enumerate(known_rows()["original-posterior-crossing"].values.items(), start=1):
        at = float(value) * (1.2 if agree else 10.0)
        row = {"learning_rate": [float(rate)], "batch_size": [512], "sampling": ["independent"], "own": [True]}
        row |= {"lowest": [1e-3], "highest": [10.0], "first": [at], "last": [at], "low_side": [0.5], "high_side": [3.0]}
        row |= {key: [1] for key in ("predicted", "predicted_least", "predicted_most", "measured", "measured_sure")}
        bands = {"told": [True, True], "ratio": [0.5, 3.0], "expected": [0.5, 3.0]}
        head = ORIGINAL | {"iteration": 1000 * iteration}
        found["posterior"].append(plant("posterior", bands, **head))
        found["posterior_crossings"].append(plant("posterior_crossings", row, **head))
    return found


PLANTED: dict[str, Callable[[bool], Planted]] = {
    "original-localised": localised,
    "original-loss-path": loss_path,
    "original-plateau-loss": plateau_loss,
    "original-sharpness-path": lambda ok: matched(
        "original-sharpness-path", ok, lambda v, i: with_largest(v, i, **ORIGINAL)
    ),
    "original-most-negative": lambda ok: matched(
        "original-most-negative", ok, lambda v, i: with_largest(10.0, i, smallest=v, **ORIGINAL)
    ),
    "original-positive-count": lambda ok: counts("original-positive-count", ok),
    "original-negative-count": lambda ok: counts("original-negative-count", ok),
    "original-sharpness-falls-after-drop": lambda ok: around_drop(ok, late=False),
    "original-sharpness-rises-late": lambda ok: around_drop(ok, late=True),
    "original-below-edge": lambda ok: settled(ORIGINAL, 0.1 if ok else 0.9, momentum=0.97),
    "original-top-ratio-100": lambda ok: {
        "spectrum": [spectrum(power(2500, np.log(13.5 if ok else 100) / np.log(100)), 500, **ORIGINAL)]
    },
    "original-top-ratio-1000": lambda ok: {
        "spectrum": [spectrum(power(2500, np.log(110 if ok else 1e4) / np.log(1000)), 500, **ORIGINAL)]
    },
    "original-exponent": lambda ok: exponent(ok, ORIGINAL),
    "original-minima-spread": batch_minima,
    "original-noise-exponent": lambda ok: {"gradients": [gradients(ORIGINAL, exponent=1.5 if ok else 1.0)]},
    "original-neighbours-mix": neighbours,
    "rank-exponent-trained": lambda ok: exponent(ok, USUAL),
    "rank-exponent-start": start,
    "outliers-classes": lambda ok: outliers("none", 10 if ok else 28),
    "outliers-batchnorm": lambda ok: outliers("batch", 1 if ok else 10),
    "outliers-gauss-newton": parts,
    "original-edge-needs-decay": decays,
    "batch-sharpness-edge": lambda ok: sharpness(sharp("r", 10.0, 1.0 if ok else 0.4, USUAL)),
    "edge-full-batch": lambda ok: settled(FULL, 1.0 if ok else 0.3),
    "edge-mini-batch-below": lambda ok: settled(USUAL, 0.5 if ok else 1.1),
    "top-subspace-preserved": subspace,
    "top-subspace-gradient": lambda ok: {"gradients": [gradients(USUAL, top_share=0.8 if ok else 0.1)]},
    "growth-sub-quadratic": lambda ok: lines(exponent=1.0 if ok else 4.0),
    "best-step-positive": lambda ok: lines(step=1.1 if ok else 10.0),
    "best-step-negative": lambda ok: lines(related=not ok, count=200),
    "noise-power-law": lambda ok: {"gradients": [gradients(USUAL, exponent=1.5 if ok else 0.3)]},
    "batch-hessian-broadened": broadened,
    "variance-crossover": lambda ok: fluctuations(0.0 if ok else 1.0, 1.0),
    "discrete-time-variance": lambda ok: fluctuations(0.0, 1.05 if ok else 3.0),
    "original-posterior-crossing": posterior,
    "few-examples-rule": lambda ok: {"gradients": [gradients(USUAL, participation=0.02 if ok else 0.3)]},
    "noise-scale-grows": noise_scale,
    "start-curvature-predicts": ranked,
    "reshuffled-spreads-less": samplings,
    "adam-gain-full-batch": adam,
    "adam-gain-grows": adam,
    "gradient-norm-depth": deep,
    "interpolation-monotone": line,
    "loss-fractal": nested_lines,
    "trajectory-pca-random-walk": path,
    "random-planes-hide-saddles": planes,
}
"""By published result: tables under which it agrees (True), and tables under which it disagrees (False)."""
