from pathlib import Path

import numpy as np
import pytest
from measure_cases import chosen, random_orthogonal
from test_measure_interpolation import SHORT
from view_cases import HEAD, path_tables, run_job

from quadscape.measures.path import compute as path
from quadscape.measures.path.compute import evenly_spaced, principal, simulated_shares, walk_shares
from quadscape.measures.run_losses import RunLosses

OPTIONS = {"iterates": 512, "resolution": 5, "walks": 4}


def walk(count: int, size: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).standard_normal((count, size)), axis=0)


def measured(iterates: np.ndarray, loss=lambda theta: float(theta @ theta), **options):
    count = len(iterates)
    return path.measure(np.arange(count), iterates.copy(), loss, chosen("path", **OPTIONS | options), HEAD)


def test_components_are_those_of_the_singular_values() -> None:
    iterates = walk(30, 12, 0) + 5.0
    found = principal(iterates.copy())
    centred = iterates - iterates.mean(axis=0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.shares[:12], values**2 / (values**2).sum(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(np.abs(found.axes.T @ right[:2].T), np.eye(2), atol=1e-10)
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(left[:, :2] * values[:2]), atol=1e-10)
    rest = centred - centred @ right[:2].T @ right[:2]
    np.testing.assert_allclose(found.distance, np.linalg.norm(rest, axis=1), atol=1e-10)
    np.testing.assert_allclose(found.centre, iterates.mean(axis=0), atol=1e-13)
    assert found.variance == pytest.approx((values**2).sum() / 30)
    assert found.rank == 12
    assert found.coordinates[-1, 0] > found.coordinates[0, 0]


def test_a_planted_plane_comes_back() -> None:
    basis, generator = random_orthogonal(200, 1)[:, :2], np.random.default_rng(2)
    t = np.linspace(0, 1, 80)
    flat = np.stack([3 * t + 0.1 * generator.standard_normal(80), np.sin(5 * t)], axis=1)
    iterates = 0.3 + flat @ basis.T
    tables = measured(iterates, lambda theta: float(np.square(theta - 0.3).sum()))
    components, points, plane = (tables[f"path_{name}"] for name in ("components", "points", "plane"))
    assert len(components) == components.attributes["rank"] == 2
    assert components["share"].sum() == pytest.approx(1, abs=1e-12)
    assert points["distance"].max() < 1e-12
    np.testing.assert_allclose(points["radius"] ** 2, points["pc1"] ** 2 + points["pc2"] ** 2)
    # Distances in the plane are those of the points that were planted in it.
    coordinates = np.stack([points["pc1"], points["pc2"]], axis=1)
    between = np.linalg.norm(coordinates[:, None] - coordinates, axis=2)
    np.testing.assert_allclose(between, np.linalg.norm(flat[:, None] - flat, axis=2), atol=1e-10)
    # The loss on the plane is that of its points: here the squared distance from a point of the plane.
    middle = principal(iterates.copy())
    origin = middle.axes.T @ (np.full(200, 0.3) - middle.centre)
    expected = (plane["pc1"] - origin[0]) ** 2 + (plane["pc2"] - origin[1]) ** 2
    np.testing.assert_allclose(plane["loss"], expected, atol=1e-10)
    assert plane["pc1"].min() < points["pc1"].min() < points["pc1"].max() < plane["pc1"].max()


def test_shares_of_a_walk_are_those_of_the_closed_form() -> None:
    for count in (2, 3, 50):
        assert walk_shares(count, count - 1).sum() == pytest.approx(1)
    np.testing.assert_allclose(walk_shares(100_000, 3), 6 / (np.pi * np.arange(1, 4)) ** 2, rtol=1e-6)
    assert walk_shares(100_000, 1)[0] == pytest.approx(0.6079, abs=1e-4)


def test_simulated_walks_agree_within_their_standard_error() -> None:
    shares = np.array([principal(walk(60, 3000, seed)).shares[:2] for seed in range(40)])
    error = shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
    assert (error < 0.005).all()
    assert (np.abs(shares.mean(axis=0) - walk_shares(60, 2)) < 4 * error + 1e-3).all()


def test_the_band_holds_the_closed_form_and_repeats() -> None:
    low, high = simulated_shares(60, 1000, 3, 40)
    expected = walk_shares(60, 3)
    assert ((low < expected) & (expected < high)).all()
    np.testing.assert_array_equal(low, simulated_shares(60, 1000, 3, 40)[0])
    # In few dimensions walks differ more.
    few = simulated_shares(60, 10, 3, 40)
    assert (few[1] - few[0] > high - low).all()


@pytest.mark.parametrize(("count", "size"), [(2, 5), (5, 1), (9, 7)])
def test_a_path_on_a_line_has_one_component_and_no_plane(count: int, size: int) -> None:
    direction = np.random.default_rng(0).standard_normal(size)
    tables = measured(np.linspace(0, 1, count)[:, None] * direction)
    assert tables["path_components"]["share"].tolist() == pytest.approx([1.0])
    assert len(tables["path_plane"]) == 0
    points = tables["path_points"]
    assert np.abs(points["pc2"]).max() == 0
    assert points["distance"].max() < 1e-14
    assert np.ptp(points["pc1"]) == pytest.approx(np.linalg.norm(direction))


def test_a_path_that_stays_has_no_component() -> None:
    tables = measured(np.full((7, 4), 0.1))
    assert [len(tables[f"path_{name}"]) for name in ("components", "points", "plane")] == [0, 7, 0]
    assert (tables["path_points"]["radius"] == 0).all()
    assert tables["path_points"].attributes["variance"] == 0.0


@pytest.mark.parametrize(
    ("stride", "iterations", "most", "expected"),
    [
        (2, 10, 512, [0, 2, 4, 6, 8, 10]),
        (1, 10, 4, [0, 4, 8]),
        (3, 10, 3, [0, 6]),
        (20, 10, 9, [0, 10]),
        (5, 5, 3, [0, 5]),
    ],
)
def test_iterates_are_evenly_spaced(stride: int, iterations: int, most: int, expected: list[int]) -> None:
    assert evenly_spaced(stride, iterations, most).tolist() == expected


def test_a_trained_network(tmp_path: Path) -> None:
    section = {**SHORT, "trajectory": {"stride": 2, "dense": 0}}
    job = run_job(tmp_path, {"factory": "mlp", "hidden": [9, 7]}, OPTIONS, "cross_entropy", **section)
    tables = path.compute(job)
    points, plane = tables["path_points"], tables["path_plane"]
    assert points["iteration"].tolist() == list(range(0, 31, 2))
    assert len(plane) == 25
    # The centre of the grid, moved to its place in the space of parameters.
    iterates = np.stack([job.trajectory().theta(t) for t in range(0, 31, 2)])
    found = principal(iterates.copy())
    row = {name: plane[name][7] for name in ("pc1", "pc2", "loss")}
    theta = iterates.mean(axis=0) + found.axes @ np.array([row["pc1"], row["pc2"]])
    assert RunLosses(job).at(theta)["train"].loss == pytest.approx(row["loss"], rel=1e-10)
    assert (points["distance"] < points["radius"]).all()


def test_a_run_that_diverged_has_empty_tables(tmp_path: Path) -> None:
    wild = {**SHORT, "learning_rate": {"schedule": "constant", "value": 1e30}}
    job = run_job(tmp_path, {"factory": "linear"}, OPTIONS, "squared_error", **wild)
    assert [len(table) for table in path.compute(job).values()] == [0, 0, 0]


def test_no_more_than_the_listed_components() -> None:
    assert len(path_tables("a")["path_components"]) == 20
