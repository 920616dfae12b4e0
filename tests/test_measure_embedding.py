import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_cases import chosen, random_orthogonal
from sklearn.datasets import make_swiss_roll
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness as reference
from test_measure_interpolation import SHORT
from view_cases import HEAD, bowl, descending_path, embedding_tables, run_job

from quadscape.figures import FIGURES, save
from quadscape.findings.embedding import statements
from quadscape.measures.embedding import compute as embedding
from quadscape.measures.embedding.autoencoder import fit
from quadscape.measures.embedding.layout import umap_layout
from quadscape.measures.embedding.nulls import correlation_time, pulled_path, random_walk
from quadscape.measures.embedding.scores import trustworthiness
from quadscape.measures.run_losses import RunLosses

SPEC = FIGURES["embedding"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def unit(points: np.ndarray) -> np.ndarray:
    """Centred, of mean squared length 1, on principal components."""
    centred = points - points.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left * values * np.sqrt(len(points) / (values**2).sum())


def measured(iterates: np.ndarray, loss=bowl, log=lambda _: None, **options):
    given = chosen("embedding", **{"seeds": 1, "resolution": 3} | options)
    return embedding.measure(10 * np.arange(len(iterates)), iterates.copy(), loss, given, HEAD, log)


def row(table, path: str, method: str, neighbours: int) -> dict[str, float]:
    rows = table.where((table["path"] == path) & (table["method"] == method) & (table["neighbours"] == neighbours))
    assert len(rows) == 1
    return {name: values[0] for name, values in rows.columns.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Scores


@pytest.mark.parametrize("neighbours", [1, 5, 14])
def test_trustworthiness_is_that_of_scikit_learn(neighbours: int) -> None:
    points = np.random.default_rng(0).standard_normal((30, 6))
    flat = points[:, :2] + 0.3 * np.random.default_rng(1).standard_normal((30, 2))
    assert trustworthiness(points, flat, neighbours) == pytest.approx(reference(points, flat, n_neighbors=neighbours))
    assert trustworthiness(flat, points, neighbours) == pytest.approx(reference(flat, points, n_neighbors=neighbours))


def test_a_perfect_embedding_and_a_random_one() -> None:
    generator = np.random.default_rng(0)
    points = generator.standard_normal((200, 2))
    for gap in (0, 30):
        assert trustworthiness(points, 3 * points @ random_orthogonal(2, 0), 10, gap) == 1
        scores = [trustworthiness(points, generator.standard_normal((200, 2)), 10, gap) for _ in range(20)]
        assert np.mean(scores) == pytest.approx(0.5, abs=4 * np.std(scores) / np.sqrt(20) + 0.03)


def test_neighbours_close_in_time_are_left_out() -> None:
    # Points come in tight groups of three in time; between groups the embedding says nothing.
    generator = np.random.default_rng(0)
    points, flat = (np.repeat(generator.standard_normal((40, d)), 3, axis=0) for d in (5, 2))
    points += 1e-3 * generator.standard_normal(points.shape)
    flat += 1e-3 * generator.standard_normal(flat.shape)
    assert trustworthiness(points, flat, 2) > 0.95
    assert trustworthiness(points, flat, 2, gap=3) == pytest.approx(0.5, abs=0.1)


def test_ranks_are_counted_among_what_is_left() -> None:
    generator, k, gap = np.random.default_rng(3), 3, 4
    points, flat = generator.standard_normal((24, 4)), generator.standard_normal((24, 2))
    shares = []
    for i in range(24):
        others = [j for j in range(24) if abs(i - j) >= gap]
        by_flat = sorted(others, key=lambda j: np.linalg.norm(flat[i] - flat[j]))
        by_points = sorted(others, key=lambda j: np.linalg.norm(points[i] - points[j]))
        excess = sum(max(0, by_points.index(j) + 1 - k) for j in by_flat[:k])
        # At worst they are the k last.
        shares.append(1 - excess / sum(range(len(others) - 2 * k + 1, len(others) - k + 1)))
    assert trustworthiness(points, flat, k, gap) == pytest.approx(np.mean(shares))


def test_few_neighbours_that_far_apart_are_no_score() -> None:
    points = np.random.default_rng(0).standard_normal((20, 3))
    assert np.isnan(trustworthiness(points, points, 2, gap=15))
    assert np.isnan(trustworthiness(points, points, 10))
    assert trustworthiness(points, points, 9) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Paths with nothing to see


def test_a_pulled_path_has_its_correlation_time_and_a_walk_none() -> None:
    times = [correlation_time(unit(pulled_path(np.ones(3000), 50, 20.0, seed))) for seed in range(4)]
    assert np.mean(times) == pytest.approx(20, rel=0.1)
    assert correlation_time(unit(random_walk(np.ones(400), 50, 0))) > 50
    assert correlation_time(np.random.default_rng(0).standard_normal((500, 40))) < 1
    assert correlation_time(np.zeros((5, 2))) == 1
    assert correlation_time(np.array([[-1.0], [1.0]])) <= 1


def test_steps_are_as_long_as_given() -> None:
    lengths = np.linspace(0.1, 2, 30)
    walk = random_walk(lengths, 40, 3)
    np.testing.assert_allclose(np.linalg.norm(np.diff(walk, axis=0), axis=1), lengths)
    pulled = pulled_path(lengths, 40, 5.0, 3)
    pushes = pulled[1:] - np.exp(-1 / 5) * pulled[:-1]
    np.testing.assert_allclose(np.linalg.norm(pushes, axis=1), lengths)
    assert np.abs(walk - random_walk(lengths, 40, 4)).max() > 0.1
    np.testing.assert_array_equal(walk, random_walk(lengths, 40, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Methods


def test_a_planted_plane_comes_back_from_pca() -> None:
    basis = random_orthogonal(200, 1)[:, :2]
    t = np.linspace(0, 1, 30)
    flat = np.stack([3 * t, np.sin(5 * t)], axis=1)
    tables = measured(0.3 + flat @ basis.T)
    found = row(tables["embedding_scores"], "run", "pca", 5)
    assert found["trustworthiness"] == found["continuity"] == 1
    assert found["error"] < 1e-12
    points = tables["embedding_points"].where(tables["embedding_points"]["method"] == "pca")
    plane = tables["embedding_points"].attributes["radius"] * np.stack([points["x"], points["y"]], axis=1)
    between = np.linalg.norm(plane[:, None] - plane, axis=2)
    np.testing.assert_allclose(between, np.linalg.norm(flat[:, None] - flat, axis=2), atol=1e-9)
    assert points["error"].max() < 1e-6


def test_a_swiss_roll_orders_the_methods() -> None:
    points = unit(make_swiss_roll(300, random_state=0)[0])
    by_umap, by_pca = umap_layout(points, 15, 0), PCA(2).fit_transform(points)
    scores = [trustworthiness(points, by, 10) for by in (by_pca, by_umap)]
    assert scores[0] < 0.97 < 0.99 < scores[1]
    # The threads that torch computes with are what they were, and a seed gives the same bits.
    assert torch.get_num_threads() == 1
    np.testing.assert_array_equal(by_umap, umap_layout(points, 15, 0))
    assert np.abs(by_umap - umap_layout(points, 15, 1)).max() > 1e-3


def test_a_linear_autoencoder_is_pca() -> None:
    points = np.stack([unit(np.random.default_rng(s).standard_normal((40, 8)) * 0.7 ** np.arange(8)) for s in (0, 1)])
    found = fit(points, [0, 1], linear=True)
    for given, decoded in zip(points, found.decoded, strict=True):
        expected = np.square(given[:, 2:]).sum() / 40
        assert np.square(decoded - given).sum() / 40 == pytest.approx(expected, rel=1e-3)
        # What it decodes lies in the plane of the first two components.
        assert np.square(decoded[:, 2:]).sum() < 1e-2 * np.square(decoded).sum()


def test_an_autoencoder_repeats_decodes_and_is_alone_in_its_set() -> None:
    points = np.stack([unit(random_walk(np.ones(19), 30, seed)) for seed in (0, 1)])
    found, again = fit(points, [5, 6], steps=50), fit(points, [5, 6], steps=50)
    np.testing.assert_array_equal(found.decoded, again.decoded)
    np.testing.assert_allclose(found.decode(1, found.codes[1]), found.decoded[1], atol=1e-12)
    np.testing.assert_allclose(fit(points[1:], [6], steps=50).decoded[0], found.decoded[1], atol=1e-6)
    longer = fit(points, [5, 6], steps=300)
    assert np.square(longer.decoded - points).sum() < np.square(found.decoded - points).sum()


# ---------------------------------------------------------------------------------------------------------------------
# The measure


def test_the_loss_on_the_plane_is_that_of_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    iterates = descending_path("a", 24, 50, 0.05)
    seen: list[np.ndarray] = []
    trained = []
    monkeypatch.setattr(embedding, "umap_layout", lambda points, *_: points[:, :2])
    monkeypatch.setattr(embedding, "fit", lambda *given: trained.extend([fit(*given), given[0][0]]) or trained[0])
    tables = measured(iterates, lambda theta: seen.append(theta) or float(len(seen)), resolution=4)
    plane, points = tables["embedding_plane"], tables["embedding_points"]
    assert plane["loss"].tolist() == list(range(1, 17))
    own = points.where(points["method"] == "autoencoder")
    assert plane["x"].min() < own["x"].min() < own["x"].max() < plane["x"].max()
    # What an iterate is decoded to lies as far from it as its error says, in the space of parameters.
    centred = iterates - iterates.mean(axis=0)
    left, _, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(np.sum(left[:, :-1] * trained[1], axis=0))
    axes = (right[:-1].T * signs)[:, : trained[0].decoded.shape[2]]
    radius = points.attributes["radius"]
    back = iterates.mean(axis=0) + radius * trained[0].decoded[0] @ axes.T
    np.testing.assert_allclose(np.linalg.norm(back - iterates, axis=1) / radius, own["error"], rtol=1e-6)
    code = np.array([[plane["x"][6], plane["y"][6]]])
    expected = iterates.mean(axis=0) + radius * trained[0].decode(0, code)[0] @ axes.T
    np.testing.assert_allclose(seen[6], expected, atol=1e-9)


def test_a_sign_of_an_eigenvector_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    iterates = descending_path("a", 20, 30, 0.05)
    monkeypatch.setattr(embedding, "umap_layout", lambda points, *_: points[:, :2])
    before = measured(iterates)
    plain = embedding.components_of

    def turned(given: np.ndarray):
        found = plain(given)
        return found._replace(vectors=found.vectors * np.random.default_rng(0).choice([-1, 1], len(given)))

    monkeypatch.setattr(embedding, "components_of", turned)
    for name, table in measured(iterates).items():
        assert table.digest() == before[name].digest()
    points = before["embedding_points"].where(before["embedding_points"]["method"] == "pca")
    assert points["x"][-1] > points["x"][0]


def test_scores_are_ranges_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(points: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
        return points[:, :2] + (0.1 + seed) * np.random.default_rng(seed).standard_normal((len(points), 2))

    monkeypatch.setattr(embedding, "umap_layout", noisy)
    table = measured(descending_path("a", 40, 50, 0.05), seeds=3)["embedding_scores"]
    assert set(table["neighbours"]) == {2, 5, 10}
    assert len(table) == 3 * 3 * 3
    found = row(table, "run", "umap", 5)
    assert found["trustworthiness_low"] < found["trustworthiness"] < found["trustworthiness_high"]
    assert np.isnan(found["error"])
    exact = row(table, "run", "pca", 5)
    assert exact["trustworthiness_low"] == exact["trustworthiness"] == exact["trustworthiness_high"]
    walk = row(table, "walk", "pca", 5)
    assert walk["error_low"] < walk["error_high"]
    assert table.attributes["dimensions"] == 50


@pytest.mark.parametrize(
    ("iterates", "why"),
    [
        (np.full((12, 4), 0.1), "line"),
        (np.linspace(0, 1, 12)[:, None] * np.ones(4), "line"),
        (descending_path("a", 2, 9, 0.1), "2 iterates"),
        (descending_path("a", 7, 9, 0.1), "7 iterates"),
    ],
)
def test_what_cannot_be_embedded_is_said(iterates: np.ndarray, why: str, tmp_path: Path) -> None:
    said: list[str] = []
    tables = measured(iterates, log=said.append)
    assert [len(table) for table in tables.values()] == [0, 0, 0]
    assert why in said[0]
    save(SPEC.draw({name: [table] for name, table in tables.items()}), tmp_path / "none.png")
    assert statements({name: [table] for name, table in tables.items()}) == []


def test_a_trained_network(tmp_path: Path) -> None:
    section = {**SHORT, "trajectory": {"stride": 2, "dense": 0}}
    options = {"iterates": 10, "neighbours": 4, "seeds": 1, "resolution": 3}
    job = run_job(tmp_path, {"factory": "mlp", "hidden": [4]}, options, "cross_entropy", **section)
    tables = embedding.compute(job)
    points = tables["embedding_points"]
    assert points["iteration"][:8].tolist() == list(range(0, 31, 4))
    assert len(points) == 3 * 8
    assert np.isfinite(tables["embedding_plane"]["loss"]).all()
    # The training loss near the path is about that of the path.
    own = RunLosses(job).at(job.trajectory().theta(28))["train"].loss
    assert tables["embedding_plane"]["loss"].min() < own + 0.5
    save(SPEC.draw({name: [table] for name, table in tables.items()}), tmp_path / "few.png")
    for name, table in embedding.compute(job).items():
        assert table.digest() == tables[name].digest()


def test_a_run_that_diverged_has_empty_tables(tmp_path: Path) -> None:
    wild = {**SHORT, "learning_rate": {"schedule": "constant", "value": 1e30}}
    options = {"iterates": 10, "neighbours": 4, "seeds": 1, "resolution": 3}
    job = run_job(tmp_path, {"factory": "linear"}, options, "squared_error", **wild)
    assert [len(table) for table in embedding.compute(job).values()] == [0, 0, 0]


def test_findings_stand_beside_the_other_paths() -> None:
    found = statements({name: [table] for name, table in embedding_tables("a").items()})
    assert all("random walk" in statement.claim and "Ornstein" in statement.claim for statement in found)
    assert {statement.interval for statement in found} == {"exact", "range over seeds"}


@pytest.mark.parametrize("flat", [False, True])
def test_a_plane_without_a_finite_loss_and_a_level_one(flat: bool, tmp_path: Path) -> None:
    tables = embedding_tables("a", count=8, seeds=1)
    plane = tables["embedding_plane"]
    plane.columns["loss"][:] = 1.0 if flat else np.nan
    save(SPEC.draw({name: [table] for name, table in tables.items()}), tmp_path / "level.png")


def test_reading_the_measure_loads_no_umap() -> None:
    code = "import sys, quadscape.measures.embedding.compute; print({'umap', 'numba', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
