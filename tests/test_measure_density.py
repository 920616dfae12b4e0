import numpy as np
import pytest
from measure_cases import chosen, random_orthogonal
from scipy.sparse.linalg import aslinearoperator

from quadscape.measures import SCHEMAS
from quadscape.measures.density import compute as density
from quadscape.tables import read_table

HEAD = {"run": "a", "iteration": 3, "P": 200, "N": 10, "weight_decay": 0.0}


def test_the_table_holds_density_counts_and_trace_with_intervals(tmp_path) -> None:
    eigenvalues = np.concatenate([10 * np.arange(1.0, 151) ** -1.2, -2 * np.arange(1.0, 51) ** -1.2])
    vectors = random_orthogonal(200, 0)
    hessian = aslinearoperator((vectors * eigenvalues) @ vectors.T)
    density.measure(hessian, chosen("density", vectors=8, steps=60), HEAD).write(tmp_path / "density.parquet")
    table = read_table(tmp_path / "density.parquet", SCHEMAS["density"])
    place, head = table["eigenvalue"], table.attributes
    assert head["run"] == "a"
    assert head["largest"] == pytest.approx(10)
    assert head["smallest"] == pytest.approx(-2)
    assert head["linear"] == pytest.approx(12 / 60)
    assert (np.diff(place) > 0).all()
    assert place[0] < -2
    assert place[-1] > 10
    assert np.trapezoid(table["density"], place) == pytest.approx(1, abs=0.01)
    assert head["trace_low"] < eigenvalues.sum() < head["trace_high"]
    # Where the kernel is narrow against the scale on which counts change, these are those of the eigenvalues.
    at = np.searchsorted(place, [-0.5, 1.0])
    exact = [(eigenvalues < place[i]).sum() for i in at]
    assert (table["below_low"][at] - 3 < exact).all()
    assert (exact < table["below_high"][at] + 3).all()
    assert (table["density_low"] >= 0).all()
    assert (table["density_low"] <= table["density"]).all()


@pytest.mark.parametrize("eigenvalues", [[0.0] * 5, [3.0] * 5, [2.0]])
def test_degenerate_spectra_have_a_density(eigenvalues) -> None:
    table = density.measure(aslinearoperator(np.diag(eigenvalues)), chosen("density", vectors=2, steps=4), HEAD)
    assert table.attributes["trace"] == pytest.approx(sum(eigenvalues))
    assert np.isfinite(table["density"]).all()
    # Half of the kernel lies below the only eigenvalue.
    middle = np.interp(len(eigenvalues) / 2, table["below"], table["eigenvalue"])
    assert middle == pytest.approx(eigenvalues[0], abs=0.02)
