"""Measures on a real small network: their numbers against those of automatic differentiation."""

import copy

import numpy as np
import torch
from measure_cases import PlainBasis, chosen

from quadscape.measures.gradients import compute as gradients
from quadscape.measures.line_search import compute as line_search
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, current_vector


def _nearly(one: np.ndarray, two: np.ndarray) -> None:
    np.testing.assert_allclose(two, one, rtol=1e-3)


def test_lines_and_gradients_of_a_small_network() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, 3)
    ).double()
    images, labels = torch.randn(40, 1, 2, 3, dtype=torch.float64), torch.randint(0, 3, (40,))
    layout = ParameterLayout.of(model)
    theta = current_vector(model).numpy() * 2
    # A chunk that does not divide the number of examples.
    training = Objective(model, layout, images[:27], labels[:27], "cross_entropy", 10)
    validation = Objective(model, layout, images[27:], labels[27:], "cross_entropy", 10)

    def loss(vector: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model, layout.unflatten(vector), (images[:27],))
        return torch.nn.functional.cross_entropy(outputs, labels[:27])

    hessian = torch.autograd.functional.hessian(loss, torch.from_numpy(theta)).numpy()
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    basis = PlainBasis(values[::-1], vectors[:, ::-1].copy(), 1e-12)
    size = len(theta)
    head = {"run": "a", "iteration": 0, "P": size, "N": 27, "weight_decay": 1e-2, "zero_threshold": 1e-12}

    fits = line_search.measure(training, validation, basis, theta, chosen("line_search", directions=size), head)[
        "line_fit"
    ]
    clear = np.abs(fits["eigenvalue"]) > 1e-6
    np.testing.assert_allclose(fits["curvature"], fits["eigenvalue"], atol=1e-10)
    np.testing.assert_allclose(fits["curvature_ratio"][clear], 1, atol=1e-3)
    slope = torch.func.grad(loss)(torch.from_numpy(theta)).numpy()
    np.testing.assert_allclose(fits["gradient"], basis.vectors(0, size).T @ slope, atol=1e-12)
    # All logits shifted alike, by biases or by the weights of one of 4 hidden units: 5 exactly flat directions.
    assert fits["is_zero"].sum() >= 5
    flat = fits.where(fits["is_zero"])
    assert set(flat["radius_positive_status"]) <= {"unresolved"}

    # The same network in float32 where that is enough: what is read off the lines stays.
    short = tuple(
        Objective(copy.deepcopy(model).float(), layout, split.images.float(), split.labels, "cross_entropy", 10)
        for split in (training, validation)
    )
    options = chosen("line_search", directions=size)
    exact = line_search.measure(training, validation, basis, theta, options, head)
    mixed = line_search.measure(training, validation, basis, theta, options, head, short=short)
    lines, others = exact["line_search"], mixed["line_search"]
    used = others["rounding"] > lines["rounding"]
    assert used[lines["split"] == "train"].mean() > 0.2
    np.testing.assert_allclose(others["difference"][~used], lines["difference"][~used], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(others["difference"][used], lines["difference"][used], rtol=3e-4)
    for name in fits.columns:
        one, two = (tables["line_fit"][name] for tables in (exact, mixed))
        if name.startswith("radius") or name == "newton":
            (np.testing.assert_array_equal if one.dtype.kind != "f" else _nearly)(one, two)
        elif one.dtype.kind != "f" or name == "form_reach":
            np.testing.assert_array_equal(one, two, err_msg=name)
        elif name in {"minimum", "minimum_decayed", "minimum_validation"}:
            np.testing.assert_array_equal(np.isfinite(one), np.isfinite(two))
            found = np.isfinite(one)
            low, high = (mixed["line_fit"][f"{name}_{end}"][found] for end in ("low", "high"))
            assert ((low <= one[found]) & (one[found] <= high)).all()
    assert len(set(mixed["line_fit"]["form"])) > 1

    table = gradients.measure(training, basis, theta, head, bands=8, memory=1)["gradients"]
    np.testing.assert_allclose(table["gradient"], basis.vectors(0, size).T @ slope, atol=1e-12)
    np.testing.assert_allclose(table["share"].sum(), 1)
