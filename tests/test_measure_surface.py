"""Surfaces against closed forms: a quadratic loss, rescaled layers, eigen-planes; deep networks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measure_cases import PlainBasis, chosen, random_orthogonal
from torch import nn

from quadscape.errors import ConfigError
from quadscape.figures import FIGURES, save
from quadscape.measures.surface import compute as surface
from quadscape.measures.surface.compute import Surfaces, count_minima, curvatures, random_pair, suggested_form
from quadscape.measures.surface.declaration import planes_of
from quadscape.network.filters import Filters
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout, current_vector
from quadscape.planning.experiment import check_problem
from quadscape.planning.experiment_file import parse_experiment
from quadscape.tables import Table

HEAD = {"run": "a", "iteration": 0, "P": 12, "N": 9, "weight_decay": 0.0, "zero_threshold": 1e-12}
FILTERS = Filters(np.repeat([0, 1, 2, -1], 3), 3)


class Quadratic:
    """ℓₙ(θ) = cₙ + gₙᵀx + ½xᵀAx with x = θ − θ₀; the cₙ cancel in differences only example by example."""

    def __init__(self, eigenvalues: np.ndarray, seed: int = 0, offset: float = 0.0, count: int = 9) -> None:
        generator = np.random.default_rng(seed)
        self.size, self.count = len(eigenvalues), count
        self.vectors = random_orthogonal(self.size, seed)
        self.hessian = (self.vectors * eigenvalues) @ self.vectors.T
        self.centre = generator.standard_normal(self.size)
        self.slopes = generator.standard_normal((count, self.size))
        self.offsets = offset * generator.standard_normal(count) + 5.0
        self.basis = PlainBasis(eigenvalues, self.vectors)

    def rise(self, theta: np.ndarray) -> np.ndarray:
        x = theta - self.centre
        return self.slopes @ x + 0.5 * x @ self.hessian @ x

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        return self.offsets + self.rise(theta)

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return self.slopes.mean(axis=0) + self.hessian @ (theta - self.centre)

    def hessian_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        return self.hessian @ v


def measured(loss: Any, filters: Filters = FILTERS, **options: Any) -> dict[str, Table]:
    options = {"resolution": 7, "samples": 3} | options
    return surface.measure(loss, loss.basis, loss.centre, filters, chosen("surface", **options), HEAD)


def plane_of(tables: dict[str, Table], name: str) -> tuple[Table, dict[str, Any]]:
    points, planes = tables["surface"], tables["surface_planes"]
    row = planes.where(planes["plane"] == name)
    return points.where(points["plane"] == name), {column: row[column][0] for column in row.columns}


def test_a_quadratic_is_its_closed_form() -> None:
    loss = Quadratic(np.linspace(3, -1, 12), offset=1e3)
    tables = measured(loss, planes="random, extreme, 2:-3, random:5")
    assert list(dict.fromkeys(tables["surface"]["plane"])) == ["random", "extreme", "2:-3", "random:5"]
    spans = {"extreme": loss.vectors[:, [0, 11]], "2:-3": loss.vectors[:, [1, 9]]}
    spans |= {name: random_pair(FILTERS, loss.centre, seed) for name, seed in (("random", 0), ("random:5", 5))}
    for name, vectors in spans.items():
        points, plane = plane_of(tables, name)
        for row in range(len(points)):
            x = vectors @ np.array([points["a"][row], points["b"][row]])
            expected = loss.slopes.mean(axis=0) @ x + 0.5 * x @ loss.hessian @ x
            assert points["difference"][row] == pytest.approx(expected, abs=2e-12)
        np.testing.assert_allclose(points["loss"] - points["difference"], loss.offsets.mean())
        lengths = np.linalg.norm(vectors, axis=0)
        assert [plane["length_first"], plane["length_second"]] == pytest.approx(lengths)
        assert plane["cosine"] == pytest.approx(vectors[:, 0] @ vectors[:, 1] / lengths.prod(), abs=1e-14)
        along = [v @ loss.hessian @ v / (v @ v) for v in vectors.T]
        inside = np.linalg.qr(vectors)[0]
        ends = np.linalg.eigvalsh(inside.T @ loss.hessian @ inside)
        for which in ("suggested", "measured"):
            found = [plane[f"{which}_{part}"] for part in ("first", "second", "smallest", "largest")]
            np.testing.assert_allclose(found, [*along, *ends], rtol=1e-9, atol=1e-9)


def test_a_point_at_the_centre_and_reaches() -> None:
    loss = Quadratic(
        np.array([8.0, 2.0, 1e-6, 0.0, -2.0, -8.0] + [0.0] * 6)[np.argsort([0, 1, 2, 3, 10, 11] + [5] * 6)]
    )
    tables = measured(loss, planes="1:-1, random, 5:6", reach=0.5, loss_rise=1.0, limit=0.25)
    for name, expected in (
        ("1:-1", (0.5, 0.5)),
        ("random", (0.5, 0.5)),
        ("5:6", (0.25 * np.linalg.norm(loss.centre),) * 2),
    ):
        points, plane = plane_of(tables, name)
        assert [plane["reach_first"], plane["reach_second"]] == pytest.approx(expected)
        assert points["a"].max() == plane["reach_first"]
        middle = len(points) // 2
        assert [points[column][middle] for column in ("a", "b", "difference")] == [0.0, 0.0, 0.0]
    assert tables["surface"].attributes["loss"] == loss.offsets.mean()


def test_random_directions_are_filter_normalised() -> None:
    theta = np.random.default_rng(0).standard_normal(12)
    for direction in random_pair(FILTERS, theta, 3).T:
        np.testing.assert_allclose(FILTERS.norms(direction), FILTERS.norms(theta))
        assert not direction[9:].any()
    assert not np.allclose(random_pair(FILTERS, theta, 3), random_pair(FILTERS, theta, 4))


class Case:
    """A network's loss over a few examples, with the ends of its Hessian's spectrum."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.layout = ParameterLayout.of(model)
        self.objective = Objective(model, self.layout, inputs, labels, "cross_entropy", len(inputs))
        self.theta = current_vector(model).numpy()

    def basis(self) -> PlainBasis:
        unit = np.eye(len(self.theta))
        hessian = np.stack([self.objective.hessian_product(self.theta, column).numpy() for column in unit])
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        return PlainBasis(values[::-1], vectors[:, ::-1].copy(), 1e-12)

    def tables(self, basis: Any = None, **options: Any) -> dict[str, Table]:
        basis = basis or self.basis()
        options = {"resolution": 7, "samples": 3} | options
        filters = Filters.of(self.layout)
        return surface.measure(self.objective, basis, self.theta, filters, chosen("surface", **options), HEAD)


def layers(activation: type[nn.Module], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 4), activation(), nn.Linear(4, 3)).double()


def examples(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64), torch.arange(count) % 3


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_rescaled_layers_change_the_sharpness_and_no_filter_normalised_surface(activation: type[nn.Module]) -> None:
    model, scaled = layers(activation), layers(activation)
    with torch.no_grad():
        # What the first two layers give is four times as large, and the last divides by it.
        for parameter in (scaled[0].weight, scaled[0].bias, scaled[2].bias):
            parameter *= 4.0
        scaled[4].weight /= 4.0
    before, after = (Case(one, *examples()).tables(planes="random, 1:2") for one in (model, scaled))
    assert after["surface"].attributes["sharpness"] > 2 * before["surface"].attributes["sharpness"]
    (points, plane), (other, other_plane) = (plane_of(tables, "random") for tables in (before, after))
    assert np.ptp(points["difference"]) > 0.05
    for column in ("a", "b", "loss", "difference"):
        np.testing.assert_allclose(points[column], other[column], rtol=1e-11, atol=1e-13)
    assert [plane[name] for name in ("lower", "minima")] == [other_plane[name] for name in ("lower", "minima")]
    # Per squared length of d they differ, per squared coordinate they do not.
    for which in ("suggested", "measured"):
        form, same = (one[f"{which}_first"] * one["length_first"] ** 2 for one in (plane, other_plane))
        assert form == pytest.approx(same, rel=1e-9)
    assert not np.allclose(plane_of(before, "1:2")[0]["difference"], plane_of(after, "1:2")[0]["difference"], rtol=0.1)


def test_on_eigen_planes_the_picture_suggests_the_eigenvalues() -> None:
    case = Case(layers(nn.Tanh), *examples())
    basis = case.basis()
    names = {"extreme": (0, -1), "1:2": (0, 1), "3:-2": (2, -2)}
    tables = case.tables(basis, planes=",".join(names), loss_rise=1e-3, resolution=11)
    for name, places in names.items():
        _, plane = plane_of(tables, name)
        for which, tolerance in (("measured", 1e-9), ("suggested", 0.02)):
            for part, place in zip(("first", "second"), places, strict=True):
                assert plane[f"{which}_{part}"] == pytest.approx(basis.eigenvalues[place], rel=tolerance), (name, part)
        assert plane["cosine"] == pytest.approx(0, abs=1e-10)
    assert tables["surface"].attributes["sharpness"] == basis.eigenvalues[0]
    samples = tables["surface_samples"]
    assert samples["seed"].tolist() == [0, 1, 2]
    assert (basis.eigenvalues[-1] <= samples["smallest"]).all()
    assert (samples["largest"] <= basis.eigenvalues[0]).all()


def test_rows_are_those_of_the_whole() -> None:
    case = Case(layers(nn.Tanh), *examples())
    options = chosen("surface", planes="random, extreme", resolution=5, samples=0)
    surfaces = Surfaces(case.objective, case.basis(), case.theta, Filters.of(case.layout), options)
    whole = surfaces.values(slice(None))["difference"]
    assert whole.shape == (surfaces.rows, 5) == (10, 5)
    for row in (0, 2, 7):
        np.testing.assert_array_equal(surfaces.values(slice(row, row + 1))["difference"][0], whole[row])


class Deep(nn.Module):
    """Many narrow layers of ReLU, each added to what it takes or in place of it."""

    def __init__(self, depth: int, width: int, *, skip: bool) -> None:
        super().__init__()
        self.first, self.last, self.skip = nn.Linear(64, width), nn.Linear(width, 10), skip
        self.middle = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in (self.first, *self.middle, self.last):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        if skip:
            for layer in self.middle:
                layer.weight.data *= 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        for layer in self.middle:
            x = torch.relu(layer(x)) + (x if self.skip else 0)
        return self.last(x)


def test_deep_plain_networks_are_chaotic_and_residual_ones_smooth() -> None:
    """In kind what Li et al. show: several minima on a random plane without skips, one with them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = torch.from_numpy(digits.data[:50] / 16 - 0.3)
    labels = torch.from_numpy(digits.target[:50])
    minima = {}
    for skip in (False, True):
        torch.manual_seed(0)
        model = Deep(48, 12, skip=skip).double()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        case = Case(model, inputs, labels)
        flat = SimpleNamespace(eigenvalues=np.ones(len(case.theta)), zero_threshold=0.0)
        tables = case.tables(flat, planes="random", resolution=13, samples=0)
        minima[skip] = tables["surface_planes"]["minima"][0]
    assert minima[True] == 1, minima
    assert minima[False] >= 3, minima


def test_minima_and_lower_points_beyond_rounding() -> None:
    i, j = np.mgrid[-4:5, -4:5].astype(float)
    wells = np.minimum((i - 2) ** 2 + (j - 2) ** 2, (i + 2) ** 2 + (j + 2) ** 2 + 0.5)
    nothing = np.zeros_like(wells)
    assert count_minima(wells, nothing) == 2
    assert count_minima(wells, nothing + 1.5) == 0
    assert count_minima(nothing, nothing) == 0
    assert count_minima(i**2, nothing) == 0  # a valley has none
    holes = wells.copy()
    holes[0:4, :] = np.nan
    assert count_minima(holes, nothing) == 2  # the other well, and what is left of the first beside the wall
    noise = 1e-17 * np.random.default_rng(0).standard_normal(wells.shape)
    assert count_minima(noise, nothing + 1e-16) == 0


def test_curvatures_of_what_spans_no_plane_are_missing() -> None:
    found = curvatures(np.zeros((2, 2)), np.zeros((2, 2)))
    assert all(np.isnan(value) for value in found.values())
    assert np.isnan(suggested_form(np.full((5, 5), np.nan), (1.0, 1.0))).all()
    skew = curvatures(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert [skew["smallest"], skew["largest"]] == pytest.approx([2.0, 2.0])


def lost(everywhere: bool) -> Quadratic:
    """A loss that is not finite beside θ, on one side or on both."""
    loss = Quadratic(np.linspace(3, -1, 12))
    quadratic = loss.rise

    def rise(theta: np.ndarray) -> np.ndarray:
        side = theta[0] - loss.centre[0]
        return np.where(side > 0.01 or (everywhere and side != 0), np.inf, quadratic(theta))

    loss.rise = rise  # type: ignore[method-assign]
    return loss


def test_losses_that_are_not_finite_and_networks_without_filters() -> None:
    points, plane = plane_of(measured(lost(everywhere=False), planes="random"), "random")
    assert 0.2 < np.isnan(points["difference"]).mean() < 0.8
    assert np.isnan(plane["suggested_first"])
    assert np.isfinite(plane["measured_first"])
    none = Filters(np.full(12, -1), 0)
    points, plane = plane_of(measured(Quadratic(np.ones(12)), none, planes="random"), "random")
    assert plane["length_first"] == 0
    assert not points["difference"].any()
    assert np.isnan([plane[name] for name in ("cosine", "suggested_first", "measured_largest")]).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["surface", "surface_relief"])
def test_figures_of_degenerate_tables(name: str, tmp_path: Path) -> None:
    none = Filters(np.full(12, -1), 0)
    constant = measured(Quadratic(np.ones(12)), none, planes="random", resolution=5)
    holes, island = (measured(lost(everywhere), planes="random, 1:2") for everywhere in (False, True))
    many = measured(Quadratic(np.linspace(3, -1, 12)), planes="random, extreme, 1:2, 1:3, 2:3", resolution=5)
    empty = measured(Quadratic(np.ones(1)), Filters(np.array([0]), 1), planes="extreme", samples=0)
    drawn = {"constant": [constant], "holes": [holes, island], "many": [empty, *[many] * 4], "empty": [empty]}
    panels = {"constant": 1, "holes": 4, "many": 8, "empty": 0}
    for case, tables in drawn.items():
        figure = FIGURES[name].draw({table: [one[table] for one in tables] for table in FIGURES[name].tables})
        if case in {"constant", "holes"}:  # laying out takes most of the time
            save(figure, tmp_path / f"{case}.png")
        shown = [axis for axis in figure.axes if axis.get_title() or axis.get_title(loc="left")]
        assert len(shown) == panels[case], case


def test_planes_beyond_the_network_are_left_out() -> None:
    loss = Quadratic(np.ones(1))
    tables = measured(loss, Filters(np.array([0]), 1), planes="random, extreme")
    assert tables["surface_planes"]["plane"].tolist() == ["random"]
    tables = measured(loss, Filters(np.array([0]), 1), planes="extreme", samples=0)
    assert [len(table) for table in tables.values()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no plane"),
        ("random,", "'' is no plane"),
        ("pca", "'pca' is no plane"),
        ("0:1", "'0:1' is no plane"),
        ("1:2:3", "'1:2:3' is no plane"),
        ("2:2", "one eigenvector"),
        ("extreme, -1:1", "'extreme' and '-1:1' are one plane"),
        ("random, random:0", "are one plane"),
    ],
)
def test_planes_that_are_none_are_refused_at_parse(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"measures\.surface\.planes is") as caught:
        parse_experiment({"measures": {"surface": {"planes": text}}})
    assert said in str(caught.value)


def test_ranks_beyond_the_network_are_refused_before_any_job() -> None:
    experiment = parse_experiment({"measures": {"surface": {"planes": "random, 3:-4"}}})
    sizes = [{run.name: count for run in experiment.runs} for count in (6, 10**6)]
    with pytest.raises(ConfigError, match=r"measures\.surface\.planes is 'random, 3:-4', which takes 7"):
        check_problem(experiment, *sizes)
    check_problem(experiment, dict.fromkeys(sizes[0], 7), sizes[1])


def test_ranks_count_from_either_end() -> None:
    assert [plane.least_parameters for plane in planes_of("random, extreme, 1:5, -2:-7, 3:-4")] == [1, 2, 5, 7, 7]


def test_a_basis_may_be_measured_in_a_notebook() -> None:
    import quadscape

    torch.manual_seed(0)
    inputs, labels = torch.randn(30, 5), torch.arange(30) % 3
    basis = quadscape.eigenbasis(
        quadscape.objective(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), inputs, labels)
    )
    tables = quadscape.measure("surface", basis, planes="1:-1", resolution=5, samples=2)
    assert len(tables["surface"]) == 25
    assert tables["surface_planes"]["measured_first"][0] == pytest.approx(basis.eigenvalues[0])
