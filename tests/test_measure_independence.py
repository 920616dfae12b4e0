"""Independence of eigendirections: losses that are quadratic, separable, or coupled by a known term, and a network."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from measure_cases import PlainBasis, SeparableObjective, chosen, random_orthogonal
from problems import dense_hessian, problem

from quadscape.config.sections import MLP
from quadscape.findings.independence import statements
from quadscape.measures.independence.compute import Around, measure
from quadscape.measures.independence.lines import Between, Line, fractions, lines_of, pairs_of, sets_of
from quadscape.measures.interfaces import as_array
from quadscape.measures.line_search import compute as line_search
from quadscape.measures.line_search.analysis import grid
from quadscape.measures.line_search.losses import SplitLosses
from quadscape.tables import Table

Function = Callable[[float], float]

EPSILON = float(np.finfo(np.float64).eps)
HEAD: dict[str, Any] = {"run": "a", "iteration": 40, "weight_decay": 1e-3, "zero_threshold": 1e-12}
EIGENVALUES = np.concatenate([np.geomspace(8, 1e-2, 9), -np.geomspace(1e-2, 2, 4)])


class Coupled(SeparableObjective):
    """A separable loss with c·aᵢ²aⱼ² added for some pairs of directions."""

    def __init__(self, *given: Any, coupling: dict[tuple[int, int], float]) -> None:
        super().__init__(*given)
        self._coupling = coupling

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        a = self._along(theta)
        added = sum(c * a[i] ** 2 * a[j] ** 2 for (i, j), c in self._coupling.items())
        return super().example_losses(theta) + added


class Bowl:
    """½|θ|², of two examples: what line searches validate on, and the measure does not read."""

    count = 2

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        return np.full(2, 0.5 * theta @ theta)

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return theta

    def hessian_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        return v


def searched(loss: Any, basis: PlainBasis, theta: np.ndarray, **options: Any) -> dict[str, Table]:
    """Tables of line searches."""
    given = chosen("line_search", **({"directions": len(theta), "points": 41} | options))
    sides = [SplitLosses(side, theta, EPSILON, 0) for side in (loss, Bowl())]
    lines = line_search.Lines(*sides, basis, theta, given, HEAD["weight_decay"])
    return lines.tables(lines.values(slice(None)), HEAD | {"P": len(theta), "N": loss.count}, EPSILON)


def measured(
    tables: dict[str, Table], loss: Any, basis: PlainBasis, theta: np.ndarray, **options: Any
) -> dict[str, Table]:
    """These, and those of the measure that reads them."""
    around = Around(SplitLosses(loss, theta, EPSILON, 0), theta, EPSILON)
    given, head = chosen("independence", **options), HEAD | {"P": len(theta), "N": loss.count}
    return tables | measure(around, basis, tables["line_search"], tables["line_fit"], given, head)


def planted(
    functions: list[Function],
    eigenvalues: np.ndarray = EIGENVALUES,
    coupling: dict[tuple[int, int], float] | None = None,
    *,
    lines: int | None = None,
    **options: Any,
) -> dict[str, Table]:
    size = len(functions)
    vectors = random_orthogonal(size, 3)
    theta = 2 * vectors.sum(axis=1)
    loss = Coupled(vectors, functions, theta, coupling=coupling or {})
    basis = PlainBasis(eigenvalues, vectors, HEAD["zero_threshold"])
    return measured(searched(loss, basis, theta, directions=lines or size), loss, basis, theta, **options)


def quadratic(eigenvalue: float) -> Function:
    return lambda a: 0.02 * a + 0.5 * eigenvalue * a**2


def bent(eigenvalue: float, size: float = 0.03, odd: float = 0.3) -> Function:
    """A line that leaves its quadratic at a rise of about `size`, whatever λ is."""

    def f(a: float) -> float:
        u = 0.5 * abs(eigenvalue) * a**2 / size
        lean = odd * math.copysign(u**1.5, a) / (1 + u)
        return 0.02 * a + math.copysign(size, eigenvalue) * (math.log1p(u) + lean)

    return f


def of_set(table: Table, name: str) -> Table:
    return table.where(table["set"] == name)


def test_of_a_quadratic_loss_nothing_is_told() -> None:
    tables = planted([quadratic(value) for value in EIGENVALUES])
    found = tables["independence"]
    assert set(found["set"].tolist()) == {"top", "bulk", "bottom", "all", "isotropic"}
    assert len(of_set(found, "isotropic")) == 4 * 8
    # Derivatives of this loss are by differences.
    for name in ("separable", "quadratic"):
        np.testing.assert_allclose(found["actual"], found[name], rtol=1e-8, atol=1e-10)
    assert not found["beyond"].any()
    assert (np.abs(found["actual"] - found["separable"]) < 1e-9).all()
    assert (found["actual_low"] <= found["actual"]).all()
    np.testing.assert_allclose(tables["interaction"]["interaction"], 0, atol=1e-13)
    assert not statements({"independence": [found]})


class Exact:
    """½Σλᵢaᵢ² + 0.02 Σaᵢ with its own derivatives; examples differ by terms that cancel."""

    def __init__(self, vectors: np.ndarray, eigenvalues: np.ndarray, theta: np.ndarray) -> None:
        self._vectors, self._eigenvalues, self._theta = vectors, eigenvalues, theta
        self.size, self.count = len(vectors), 6

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        a = self._vectors.T @ (theta - self._theta)
        return 1 + 0.02 * a.sum() + 0.5 * a @ (self._eigenvalues * a) + 0.1 * np.linspace(-1, 1, self.count) * a[0]

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        a = self._vectors.T @ (theta - self._theta)
        return self._vectors @ (0.02 + self._eigenvalues * a)

    def hessian_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        return self._vectors @ (self._eigenvalues * (self._vectors.T @ v))


def test_rounding_gives_no_skill() -> None:
    vectors = random_orthogonal(13, 3)
    theta = 2 * vectors.sum(axis=1)
    loss, basis = Exact(vectors, EIGENVALUES, theta), PlainBasis(EIGENVALUES, vectors)
    tables = measured(searched(loss, basis, theta), loss, basis, theta)
    found = tables["independence"]
    assert np.isnan(found["skill"]).all()
    assert (np.abs(found["actual"] - found["quadratic"]) <= 10 * found["rounding"]).all()
    assert (found["rounding"] < 1e-13).all()
    planes = tables["interaction"]
    assert (np.abs(planes["interaction"]) <= 10 * planes["rounding"]).all()


def test_of_a_separable_loss_lines_tell_everything() -> None:
    found = planted([bent(value) for value in EIGENVALUES], lines=10)["independence"]
    for name in ("top", "bulk", "bottom", "all"):
        rows = of_set(found, name)
        assert rows["beyond"].any()
        # On the lines' own grid nothing is interpolated.
        assert (rows["skill"][rows["beyond"]] > 1 - 1e-6).all()
        np.testing.assert_allclose(rows["separable"], rows["actual"], rtol=1e-7, atol=1e-10)
        assert np.isnan(rows["odd_size"]).all()
    (first, *others) = statements({"independence": [found]})
    assert first.primary
    assert first.value == pytest.approx(1, abs=1e-6)
    assert not any(one.primary for one in others)


@pytest.mark.parametrize("odd", [0.0, 0.3])
def test_isotropic_directions_are_interpolated(odd: float) -> None:
    eigenvalues = np.concatenate([np.geomspace(8, 1e-2, 45), np.zeros(5), -np.geomspace(1e-2, 2, 20)])
    functions = [bent(value, odd=odd) if value else quadratic(0.0) for value in eigenvalues]
    tables = planted(functions, eigenvalues, lines=16, directions=12)
    rows = of_set(tables["independence"], "isotropic")
    far = rows.where(rows["beyond"])
    assert len(far) > 20
    assert (far["lines"] == 70).all()
    missed = far["actual"] - far["separable"]
    if not odd:
        # All lines have one form: between two of them there is nothing to miss, but beyond their ends.
        inside = far["t"] < 0.5 * far["t"].max()
        assert np.count_nonzero(inside) > 10
        assert (far["skill"][inside] > 0.999).all()
        assert (far["skill"] > 0.5).all()
        np.testing.assert_allclose(far["odd_size"], 0, atol=1e-8)
    else:
        assert np.median(far["skill"]) > 0.3
        scores = missed / far["odd_size"]
        assert 0.5 < np.sqrt(np.mean(scores**2)) < 1.6, "the odd parts are what is missed"
        assert np.abs(scores).max() < 4


def test_forms_that_change_with_the_eigenvalue_are_met_between_lines() -> None:
    eigenvalues = np.geomspace(8, 1e-3, 60)
    functions = [bent(value, size=0.03 * value**0.2, odd=0) for value in eigenvalues]
    rows = of_set(planted(functions, eigenvalues, lines=12)["independence"], "isotropic")
    inside = rows["beyond"] & (rows["t"] < 0.5 * rows["t"].max())
    assert np.count_nonzero(inside) > 3
    assert (rows["skill"][inside] > 0.98).all()


def test_a_planted_coupling_is_found() -> None:
    coupling = 2000.0
    functions = [bent(value, odd=0) for value in EIGENVALUES]
    tables = planted(functions, coupling={(0, 1): coupling}, directions=6)
    found = tables["independence"]
    for name in ("top", "all"):
        rows = of_set(found, name).where(of_set(found, name)["beyond"])
        assert np.median(rows["skill"]) < 0.2
        a = [rows["t"] * line.reach for line in lines_of(tables["line_search"], tables["line_fit"])[:2]]
        np.testing.assert_allclose(rows["actual"] - rows["separable"], coupling * a[0] ** 2 * a[1] ** 2, rtol=1e-6)
    assert (of_set(found, "bottom")["skill"][of_set(found, "bottom")["beyond"]] > 1 - 1e-6).all()
    planes = tables["interaction"]
    assert np.unique(planes["pair"]).tolist() == [0, 1, 2]
    one = planes.where(planes["pair"] == 0)
    assert len(one) == 81
    assert (one["index_x"][0], one["index_y"][0]) == (0, 1)
    np.testing.assert_allclose(one["interaction"], coupling * one["x"] ** 2 * one["y"] ** 2, rtol=1e-9, atol=1e-12)
    others = planes.where(planes["pair"] > 0)
    assert (np.abs(others["interaction"]) <= 10 * others["rounding"]).all()
    (first, *_) = statements({"independence": [found]})
    assert first.high < 0.5


def test_losses_of_a_network_are_what_is_compared() -> None:
    found = []
    lines: dict[str, Table] = {}
    for chunk in (4, 11):
        objective, start = problem(MLP(factory="mlp", hidden=(2,)), (1, 2, 2), count=11, classes=2, chunk=chunk)
        values, vectors = np.linalg.eigh(dense_hessian(objective, start).numpy())
        basis, theta = PlainBasis(values[::-1].copy(), vectors[:, ::-1].copy(), 1e-10), start.numpy()
        lines = lines or searched(objective, basis, theta)
        found.append(measured(lines, objective, basis, theta, directions=2, points=4, resolution=5))
    for name in ("independence", "interaction"):
        for column, values in found[0][name].columns.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values, found[1][name][column], rtol=1e-6, atol=1e-12)
    table = found[0]["independence"]
    errors = [np.abs(table["actual"] - table[name]) for name in ("separable", "quadratic")]
    told = np.isfinite(table["skill"])
    assert told.any()
    np.testing.assert_allclose(table["skill"][told], (1 - errors[0] / errors[1])[told], rtol=1e-12)
    assert (errors[1][told] >= 10 * table["rounding"][told]).all()

    def rise(step: np.ndarray) -> float:
        return float(
            (as_array(objective.example_losses(theta + step)) - as_array(objective.example_losses(theta))).mean()
        )

    rows = of_set(table, "all").where(of_set(table, "all")["direction"] == 1)
    own = sets_of(lines_of(lines["line_search"], lines["line_fit"]))["all"]
    signs = np.random.default_rng((0, 3, 1)).choice([-1.0, 1.0], len(own))
    shares = {line.index: sign * line.reach for sign, line in zip(signs, own, strict=True)}
    check(rows, shares, basis, rise)
    # With all lines searched the isotropic prediction is the sum of their own even parts.
    rows = of_set(table, "isotropic").where(of_set(table, "isotropic")["direction"] == 0)
    vector = np.random.default_rng((0, 4, 0)).standard_normal(len(theta))
    vector /= np.linalg.norm(vector)
    along = vector @ basis.vectors(0, len(theta))
    gradient, product = as_array(objective.gradient(theta)), as_array(objective.hessian_product(theta, vector))
    for row in range(len(rows)):
        t = rows["t"][row]
        assert rows["length"][row] == pytest.approx(t)
        even = 0.0
        for index, value in enumerate(basis.eigenvalues):
            step = t * along[index] * basis.vectors(index, index + 1)[:, 0]
            if abs(value) > basis.zero_threshold:
                even += 0.5 * (rise(step) + rise(-step)) - 0.5 * value * (t * along[index]) ** 2
        quadratic = t * gradient @ vector + 0.5 * t**2 * vector @ product
        assert rows["quadratic"][row] == pytest.approx(quadratic, rel=1e-9)
        assert rows["separable"][row] - quadratic == pytest.approx(even, rel=2e-2, abs=1e-3 * abs(quadratic))


def check(rows: Table, shares: dict[int, float], basis: PlainBasis, rise: Callable[[np.ndarray], float]) -> None:
    """Both sides evaluated anew."""
    vectors = {index: basis.vectors(index, index + 1)[:, 0] for index in shares}
    vector = np.sum([share * vectors[index] for index, share in shares.items()], axis=0)
    assert len(rows)
    for row in range(len(rows)):
        t = rows["t"][row]
        assert rows["actual"][row] == pytest.approx(rise(t * vector), rel=1e-9)
        assert rows["length"][row] == pytest.approx(t * np.linalg.norm(vector))
        separable = sum(rise(t * share * vectors[index]) for index, share in shares.items())
        assert rows["separable"][row] == pytest.approx(separable, rel=1e-7)


def test_what_overflows_cuts_lines_and_has_no_skill() -> None:
    def walled(value: float) -> Function:
        inside = bent(value, odd=0)
        # Further out than a third of the rise of the ends, on one side.
        return lambda a: math.inf if value * a > 0 and 0.5 * abs(value) * a**2 > 0.03 else inside(a)

    functions = [walled(value) if place % 2 else bent(value, odd=0) for place, value in enumerate(EIGENVALUES)]
    with np.errstate(invalid="ignore"):
        tables = planted(functions, directions=2)
    found = tables["independence"]
    assert (of_set(found, "all")["skill"][of_set(found, "all")["beyond"]] > 0.99).all()
    lines = lines_of(tables["line_search"], tables["line_fit"])
    assert all(np.isfinite(line.rise).all() for line in lines)
    assert all(0.5 * abs(line.eigenvalue) * line.reach**2 <= 0.03 for line in lines[1::2])
    assert np.isfinite(tables["interaction"]["interaction"]).all()
    none = planted([lambda a: 0.0 if a == 0 else math.nan] * 3, np.array([2.0, 1.0, -1.0]))
    assert not len(none["independence"])
    assert not len(none["interaction"])


def test_where_the_loss_alone_overflows_nothing_is_told() -> None:
    with np.errstate(invalid="ignore"):
        found = planted([bent(value) for value in EIGENVALUES], coupling={(0, 1): math.inf}, directions=1)
    rows = of_set(found["independence"], "top")
    assert np.isnan(rows["actual"]).all()
    assert np.isnan(rows["skill"]).all()
    assert np.isnan(rows["actual_low"]).all()
    inner = found["interaction"].where(found["interaction"]["pair"] == 0)
    assert np.isnan(inner["interaction"][(inner["x"] != 0) & (inner["y"] != 0)]).all()


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [1.0],
        [-1.0],
        [0.0],
        [1.0, 0.0],
        [1.0, -1.0],
        [2.0, 1.0, 0.5],
        [-1.0, -2.0, -3.0],
        [0.0] * 4,
        [3.0] + [1e-13] * 4,
    ],
)
def test_few_directions(eigenvalues: list[float]) -> None:
    values = np.array(eigenvalues)
    tables = planted(
        [bent(value, odd=0) if value else quadratic(0.0) for value in values], values, directions=1, points=1
    )
    found, told = tables["independence"], np.abs(values) > 1e-12
    # Of a single λ there is no bulk.
    sets = {"all", "isotropic"} if told.any() else set()
    sets |= {"top"} if (values > 1e-12).any() else set()
    sets |= {"bottom"} if (values < -1e-12).any() else set()
    sets |= {"bulk"} if told.sum() > 1 else set()
    assert set(found["set"].tolist()) == sets
    assert len(found) == len(sets)
    # One line alone is itself.
    if told.sum() == 1:
        np.testing.assert_allclose(of_set(found, "all")["separable"], of_set(found, "all")["actual"], rtol=1e-6)
    pairs = len(np.unique(tables["interaction"]["pair"]))
    assert pairs == {(1.0, -1.0): 1, (2.0, 1.0, 0.5): 1}.get(tuple(eigenvalues), 0)


def test_without_lines_the_tables_are_empty() -> None:
    tables = planted([bent(value) for value in EIGENVALUES])
    nothing = tables["line_fit"].where(np.zeros(len(tables["line_fit"]), dtype=bool))
    assert not lines_of(tables["line_search"], nothing)
    assert not any(sets_of([]).values())
    assert not pairs_of([])
    assert Between([]).parts(np.ones(2), np.ones(2), np.ones(2, dtype=bool)) == (0.0, 0.0, 0.0)


def line(index: int, eigenvalue: float, f: Function | None = None) -> Line:
    t = grid(41, eigenvalue, 0.1, 100.0)
    f = f or bent(eigenvalue)
    rise = np.array([f(value) for value in t])
    return Line(index, eigenvalue, False, 0.02, eigenvalue, t, rise, np.full(41, 1e-17), (0.5 * t[-1], 0.25 * t[-1]))


def test_pairs_are_the_two_largest_the_middle_and_the_most_negative() -> None:
    lines = [line(place, value) for place, value in enumerate([5.0, 4.0, 1.0, 0.1, -0.5, -2.0])]
    assert [(one.index, two.index) for one, two in pairs_of(lines)] == [(0, 1), (0, 2), (0, 5)]
    assert [(one.index, two.index) for one, two in pairs_of(lines[:2])] == [(0, 1)]
    assert not pairs_of(lines[4:])
    assert {name: [one.index for one in found] for name, found in sets_of(lines).items()} == {
        "top": [0, 1],
        "bulk": [3, 4, 2],
        "bottom": [4, 5],
        "all": [0, 1, 2, 3, 4, 5],
    }


def test_radii_have_sides() -> None:
    one = line(0, 2.0)
    assert one.left(-0.6 * one.reach)
    assert not one.left(-0.4 * one.reach)
    assert one.left(0.4 * one.reach)
    assert not one.left(0.0)


def test_points_lie_on_the_grid() -> None:
    one = line(0, 2.0)
    found = fractions(one, 0.6, 5, 0.05)
    assert set(np.round(found * one.reach, 14)) <= set(np.round(one.t, 14))
    assert 0.4 < found[-1] <= 0.6
    assert len(found) == 5
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(fractions(one, 1e-9, 3, 0.01), [1e-11, 1e-10, 1e-9])
    assert fractions(one, 1.0, 1, 0.05).tolist() == [1.0]


def test_beyond_the_end_of_a_line_its_form_is_kept() -> None:
    one = line(0, 2.0, bent(2.0, odd=0))
    between, end = Between([one]), one.reach
    told = np.ones(1, dtype=bool)
    at_end, *_ = between.parts(np.array([2.0]), np.array([end]), told)
    beyond, *_ = between.parts(np.array([2.0]), np.array([3 * end]), told)
    assert beyond == pytest.approx(9 * at_end)
    # Of another sign nothing is known, nor where λ is numerically zero.
    assert between.parts(np.array([-2.0]), np.array([end]), told)[0] == 0
    assert between.parts(np.array([2.0]), np.array([end]), ~told)[0] == 0


def test_what_rounding_spoils_is_not_read_off() -> None:
    exact = line(0, 2.0, bent(2.0, odd=0))
    noise = 1e-9 * np.random.default_rng(0).standard_normal(41)
    noisy = Line(0, 2.0, False, 0.02, 2.0, exact.t, exact.rise + noise, np.full(41, 3e-9), exact.radii)
    told = np.ones(1, dtype=bool)
    for x in np.geomspace(1e-6, 1, 40) * exact.reach:
        clean, *_ = Between([exact]).parts(np.array([2.0]), np.array([x]), told)
        found, _, rounding = Between([noisy]).parts(np.array([2.0]), np.array([x]), told)
        assert abs(found - clean) <= 2e-3 * x**2
        assert rounding <= 1.1e-3 * x**2
