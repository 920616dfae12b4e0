"""Largest eigenvalues of batches' Hessians, against dense ones and against closed forms."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measure_cases import PlainBasis, random_orthogonal

from quadscape.errors import VerificationError
from quadscape.findings import batch_hessians as findings
from quadscape.measures.batch_hessians import compute as batch_hessians
from quadscape.measures.batches import draw
from quadscape.tables import Table
from tests.findings_cases import USUAL, plant

SIZE = 12


class Quadratics:
    """ℓₙ(θ) = ½θᵀHₙθ, with the Hessian of every example known."""

    def __init__(self, hessians: np.ndarray) -> None:
        self.hessians = hessians
        self.count, self.size = len(hessians), hessians.shape[1]

    def part(self, examples: torch.Tensor) -> "Quadratics":
        return Quadratics(self.hessians[examples.numpy()])

    def hessian_product(self, theta: Any, v: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.hessians.mean(axis=0) @ np.asarray(v))


def examples(count: int, size: int = SIZE, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    vectors = random_orthogonal(size, 1)
    mean = (vectors * np.geomspace(4, 0.1, size)) @ vectors.T
    noise = generator.standard_normal((count, size, size)) * spread
    return mean + (noise + np.swapaxes(noise, 1, 2)) / 2


def measured(hessians: np.ndarray, sizes: list[int], batches: int = 4, eigenvalues: int = 3) -> dict[str, Table]:
    loss = Quadratics(hessians)
    values, vectors = np.linalg.eigh(hessians.mean(axis=0))
    basis = PlainBasis(values[::-1].copy(), vectors[:, ::-1].copy())
    options = SimpleNamespace(batches=batches, eigenvalues=eigenvalues)
    head = {"run": "a", "iteration": 40, "P": hessians.shape[1], "N": len(hessians), "weight_decay": 0.0}
    return batch_hessians.measure(loss, basis, np.zeros(loss.size), sizes, options, head)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [SIZE, 90])
def test_eigenpairs_are_those_of_dense_hessians(size: int) -> None:
    hessians = examples(50, size)
    pairs = measured(hessians, [8, 20])["batch_hessians"]
    assert len(pairs) == 2 * 4 * 3
    full, vectors = np.linalg.eigh(hessians.mean(axis=0))
    leading = vectors[:, ::-1][:, :3]
    for of in (8, 20):
        for number, batch in enumerate(draw(50, of, 4, (0, of))):
            dense = hessians[batch].mean(axis=0)
            values, found = np.linalg.eigh(dense)
            rows = pairs.where((pairs["batch_size"] == of) & (pairs["batch"] == number))
            assert rows["place"].tolist() == [1, 2, 3]
            scale = np.abs(values).max()
            np.testing.assert_allclose(rows["eigenvalue"], values[::-1][:3], atol=1e-3 * scale)
            assert (rows["residual"] <= 1e-3 * scale).all()
            first = found[:, -1]
            assert rows["curvature"][0] == pytest.approx(first @ hessians.mean(axis=0) @ first, rel=0.02, abs=0.02)
            assert rows["cosine"][0] == pytest.approx(abs(first @ leading[:, 0]), abs=0.03)
            assert rows["captured"][0] == pytest.approx(np.sum((leading.T @ first) ** 2), abs=0.03)
    assert (pairs["curvature"] <= full.max() + 1e-9).all()


def test_a_batch_of_all_examples_is_all_of_them() -> None:
    hessians = examples(16)
    tables = measured(hessians, [16])
    broadened = tables["batch_broadening"]
    assert broadened["batches"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(broadened["excess"], 0, atol=1e-9)
    np.testing.assert_allclose(tables["batch_hessians"]["captured"], 1, atol=1e-9)
    np.testing.assert_allclose(tables["batch_hessians"]["cosine"], 1, atol=1e-9)
    assert np.isnan(broadened["eigenvalue_low"]).all()


def test_means_are_over_batches() -> None:
    tables = measured(examples(64), [8, 16, 32], batches=5)
    pairs, broadened = tables["batch_hessians"], tables["batch_broadening"]
    for row in range(len(broadened)):
        own = pairs.where(
            (pairs["batch_size"] == broadened["batch_size"][row]) & (pairs["place"] == broadened["place"][row])
        )
        assert broadened["eigenvalue"][row] == pytest.approx(own["eigenvalue"].mean())
        assert broadened["excess"][row] == pytest.approx(own["eigenvalue"].mean() - broadened["full"][row])
        assert broadened["eigenvalue_low"][row] < broadened["eigenvalue"][row] < broadened["eigenvalue_high"][row]
    first = broadened.where(broadened["place"] == 1)
    assert (np.diff(first["excess"]) < 0).all()
    assert (first["excess"] > 0).all()


def test_what_is_not_found_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from quadscape.curvature import matrix_free

    solve, calls = matrix_free.extreme_eigenpairs, []

    def sometimes(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise VerificationError("it did not converge")
        return solve(*given, **options)

    monkeypatch.setattr(matrix_free, "extreme_eigenpairs", sometimes)
    tables = measured(examples(32), [8])
    assert np.isnan(tables["batch_hessians"]["eigenvalue"]).sum() == 3
    assert tables["batch_broadening"]["batches"].tolist() == [3, 3, 3]
    assert np.isfinite(tables["batch_broadening"]["captured"]).all()


def pairs_of(exponent: float, noise: float, full: float = 2.0, batches: int = 8) -> Table:
    """First eigenvalues with an excess of 10·B^exponent, and a relative noise."""
    sizes = np.repeat([8, 32, 128, 512], batches)
    generator = np.random.default_rng(1)
    excess = 10.0 * sizes**exponent * (1 + noise * generator.standard_normal(len(sizes)))
    columns = {
        "batch_size": sizes,
        "batch": np.tile(np.arange(batches), 4),
        "place": np.ones(len(sizes), dtype=int),
        "eigenvalue": full + excess,
    }
    return plant("batch_hessians", columns, **USUAL, iteration=500)


def test_the_exponent_of_the_excess() -> None:
    found = findings.exponent(pairs_of(-1.0, 0.2), 2.0)
    assert found.low <= -1.0 <= found.high
    assert found.value == pytest.approx(-1.0, abs=0.1)
    assert found.high - found.low < 0.4
    # What cannot be told from zero has no interval, and what lies below none at all.
    assert math.isnan(findings.exponent(pairs_of(-1.0, 5.0), 2.0).low)
    assert math.isnan(findings.exponent(pairs_of(-1.0, 0.1), 3.0).value)
    few = pairs_of(-1.0, 0.1)
    assert math.isnan(findings.exponent(few.where(few["batch_size"] < 128), 2.0).value)
