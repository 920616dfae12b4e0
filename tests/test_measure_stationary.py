"""How far members from one start spread: simulated bowls, and bowls that the trainer descends."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import write_random_data
from family_cases import family, family_job
from measure_cases import PlainBasis, random_orthogonal
from stationary_cases import HEAD, RULE, member, seen
from test_measure_evolution import BOWL, CURVATURES
from test_training import make_run, train

from quadscape.data.sets import DataSet
from quadscape.measures.fluctuations import Model, is_steady
from quadscape.measures.stationary.bands import band_curvatures, bands_of
from quadscape.measures.stationary.compute import Work, compute, measure, pairs_of
from quadscape.training.task import TrainingTask


def test_simulated_members_spread_as_expected_and_less_where_reshuffled() -> None:
    """Ragged batches, many alike directions in every band: intervals cover what is exact."""
    kinds = np.geomspace(15.0, 0.06, 8)
    curvature = np.repeat(kinds, 30)
    tables = measure(
        [seen(place, s, curvature) for place, s in enumerate(("reshuffled", "independent"))], curvature, HEAD
    )
    table, pairs = tables["stationary"], tables["sampling_ratio"]
    assert len(table) == 16
    assert table["told"].all()
    np.testing.assert_allclose(table["curvature"][:8], kinds[::-1], rtol=1e-9)
    np.testing.assert_array_equal(table["curvature"][:8], table["curvature"][8:])
    inside = (table["ratio_low"] <= 1) & (table["ratio_high"] >= 1)
    assert inside.sum() >= 14
    np.testing.assert_allclose(table["ratio"], 1, atol=0.3)
    assert set(zip(pairs["reshuffled"].tolist(), pairs["independent"].tolist(), strict=True)) == {(0, 1)}
    covered = (pairs["ratio_low"] <= pairs["expected"]) & (pairs["ratio_high"] >= pairs["expected"])
    assert covered.sum() >= 6
    np.testing.assert_allclose(pairs["ratio"], pairs["expected"], rtol=0.35)
    # The flattest spread several times less, the steepest by about as much.
    assert pairs["ratio_high"][0] < 0.6
    assert abs(pairs["expected"][-1] - 1) < 0.3
    np.testing.assert_allclose(table["expected"][8:], table["independent"][8:])
    # Nλ̃ Var x, N of the member, of which the expectation is that of a window without end.
    np.testing.assert_allclose(table["temperature"], 1000 * table["curvature"] * table["variance"], rtol=1e-9)
    assert np.abs(np.log(table["temperature_expected"] / (1000 * table["curvature"] * table["expected"]))).max() < 0.2


def test_what_is_not_told() -> None:
    curvature = np.array([50.0, 3.0, 1.0, 1e-4, -0.1])
    plain = seen(0, "reshuffled", curvature, 1200)
    table = measure([plain], curvature, HEAD)["stationary"]
    # Without a minimum there is no band; without a stationary state nothing is expected.
    assert table["curvature"].tolist() == pytest.approx([1e-4, 1.0, 3.0, 50.0])
    assert table["told"].tolist() == [False, True, True, False]
    assert np.isfinite(table["relaxation"]).tolist() == [True, True, True, False]
    assert np.isnan(table["ratio"]).tolist() == [False, False, False, True]
    for keys in ({"steady": False}, {"continued": 200}, {"noise": plain.noise[:15]}):
        assert not measure([plain._replace(**keys)], curvature, HEAD)["stationary"]["told"].any()
    pairs = measure([plain, seen(1, "independent", curvature, 1200)], curvature, HEAD)["sampling_ratio"]
    assert pairs["told"].tolist() == [False, True, True, False]
    assert np.isnan(pairs["ratio_low"]).tolist() == [True, False, False, True]
    # A null direction has no band, and neither has a network without minima.
    assert (
        len(
            measure([plain._replace(bends=plain.bends[:, 1:])], curvature, HEAD | {"zero_threshold": 1e-3})[
                "stationary"
            ]
        )
        == 3
    )
    assert not len(measure([plain._replace(bends=plain.bends[:, :0])], -np.abs(curvature), HEAD)["stationary"])
    only = plain._replace(bends=plain.bends[:, -1:])
    alone = measure([only], curvature, HEAD | {"zero_threshold": 10.0})["stationary"]
    assert alone["curvature"].tolist() == pytest.approx([50.0])
    # Where the loss curves more or less than at the start, it is that which counts.
    bent = measure([plain._replace(bends=plain.bends * [1, -1, 4, np.nan])], curvature, HEAD)["stationary"]
    assert bent["told"].tolist() == [False, False, True, False]
    assert np.isnan(bent["plateau_curvature"]).tolist() == [False, False, False, True]
    assert bent["expected"][2] == pytest.approx(table["expected"][2], rel=0.5)
    np.testing.assert_allclose(bent["curvature"], table["curvature"])
    # With more weight decay than at the start, the same band has other curvatures.
    decayed = plain._replace(model=Model(RULE, plain.model.sampling, 0.5, plain.model.steps))
    moved = measure([decayed], curvature, HEAD)["stationary"]
    assert moved["curvature"].tolist() == pytest.approx([0.5001, 1.5, 3.5, 50.5])


def test_members_that_differ_in_sampling_alone_are_pairs() -> None:
    members = [
        member(0, "reshuffled"),
        member(1, "independent"),
        member(2, "independent", batch=8),
        member(3, "independent", rate=0.2),
        member(4, "reshuffled", rate=0.2, remainder="drop"),
    ]
    assert pairs_of(members) == [(0, 1), (4, 3)]
    assert pairs_of(members[:1]) == []
    assert pairs_of([members[0], members[2], members[3]]) == []
    curvature = np.array([3.0, 1.0])
    assert not len(measure([seen(0, "independent", curvature, 400)], curvature, HEAD)["sampling_ratio"])
    assert not len(measure([], curvature, HEAD)["stationary"])


def test_spikes() -> None:
    generator = np.random.default_rng(0)
    losses = generator.lognormal(0, 1.5, 2000)  # heavy tails, as of single batches
    assert losses.std() > losses.mean()
    assert is_steady(losses, 50)
    losses[1000:1300] *= 20
    assert not is_steady(losses, 50)
    assert is_steady(np.ones(20), 1e6)


def lenient(*given: Any) -> TrainingTask:
    """Members may diverge."""
    task = TrainingTask(*given)
    task.may_diverge = True
    return task


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """Bowls descended with ragged batches, and members of which nothing can be said."""
    folder = tmp_path_factory.mktemp("bowls")
    data = write_random_data(folder / "data.zarr", counts=(150, 20, 20))
    keys = {"dtype": "float64", "weight_decay": 0.01, "batch_size": 16, "trajectory": {"stride": 1, "dense": 0}}
    keys |= {"momentum": 0.9, "evaluate_every": 400}
    constant = {"schedule": "constant", "value": 0.02}
    late = {"schedule": "steps", "value": 0.02, "milestones": (75,), "factor": 0.1}
    sections = [
        {"iterations": 1200, "sampling": "reshuffled", "learning_rate": constant},
        {"iterations": 1200, "sampling": "independent", "learning_rate": constant},
        {"iterations": 80, "learning_rate": constant, "optimizer": {"method": "adam"}, "momentum": None},
        {"iterations": 80, "learning_rate": late},
        {"iterations": 80, "learning_rate": constant, "batch_size": "full"},
        {"iterations": 400, "learning_rate": {**constant, "value": 1e3}},
    ]
    manifests = []
    for place, section in enumerate(sections):
        given = {name: value for name, value in (keys | section).items() if value is not None}
        run = make_run(**given)
        train(folder / str(place), run, data, BOWL, loss="squared_error", task=lenient)
        manifests.append(folder / str(place) / "manifest.json")
    return data, manifests


def job_of(trained: tuple[Any, list[Any]], said: list[str]) -> Any:
    data, manifests = trained
    job = family_job(
        family({"kind": list("abcdef")[-len(manifests) :]}), data, manifests, iterates=1200, dtype="float64"
    )
    size, turned = len(CURVATURES), random_orthogonal(len(CURVATURES), 0)
    # Eigenvectors of the bowl, one of which has the other sign.
    basis = PlainBasis(CURVATURES, np.diag(np.sign(turned[0])))
    head = {"run": "start", "iteration": 7, "weight_decay": 0.01, "zero_threshold": 0.0}
    start = {"basis": basis, "checkpoint": SimpleNamespace(theta=np.full(size, 0.3)), "basis_head": head}
    job.__dict__["at_start"], job.log = SimpleNamespace(**start), said.append
    return job


def test_bowls_that_the_trainer_descends(trained: tuple[Any, list[Any]]) -> None:
    said: list[str] = []
    job = job_of(trained, said)
    # In items, in whatever parts.
    work = Work(job)
    assert work.items == 32
    parts = [work.measure(slice(first, first + 7)) for first in range(0, 32, 7)]
    np.testing.assert_array_equal(
        work.measure(slice(15, 17))["noise"], np.concatenate([p["noise"] for p in parts])[15:17]
    )
    tables = work.tables({name: np.concatenate([part[name] for part in parts]) for name in work.layout()})
    table, pairs = tables["stationary"], tables["sampling_ratio"]
    assert sorted(set(table["run"].tolist())) == [0, 1]
    for reason in ("adam", "not constant", "no noise", "diverged"):
        assert any(reason in line for line in said)
    assert table["sampling"].tolist() == ["reshuffled"] * 6 + ["independent"] * 6
    assert set(table["window"].tolist()) == {601}
    np.testing.assert_allclose(table["curvature"][:6], CURVATURES[::-1] + 0.01, rtol=1e-9)
    assert table["told"].all()
    images = DataSet.load(trained[0], dtype=torch.float64).split("train")[0].flatten(1)[:, : len(CURVATURES)].numpy()
    c = (0.3 * np.sqrt(CURVATURES)) ** 2 * images.var(axis=0)
    np.testing.assert_allclose(table["noise"], np.tile(c[::-1], 2), rtol=1e-6)
    np.testing.assert_allclose(table["plateau_curvature"], np.tile(CURVATURES[::-1] + 0.01, 2), rtol=1e-6)
    # One direction in some ten relaxation times that are independent of each other.
    assert ((table["ratio"] > 0.3) & (table["ratio"] < 2.5)).all()
    assert 0.7 < np.median(table["ratio"]) < 1.4
    clear = np.isfinite(pairs["ratio_low"])
    assert clear.tolist() == (pairs["relaxation"] * 20 <= 601).tolist()
    assert clear.sum() >= 4
    covered = (pairs["ratio_low"] <= pairs["expected"]) & (pairs["ratio_high"] >= pairs["expected"])
    assert covered.sum() >= clear.sum() - 1
    assert pairs["expected"][0] < 0.2
    assert tables["stationary"].attributes["start_iteration"] == 7


def test_a_family_of_which_nothing_can_be_said(trained: tuple[Any, list[Any]]) -> None:
    data, manifests = trained
    job = job_of((data, manifests[2:]), [])
    tables = compute(job)
    assert {name: len(table) for name, table in tables.items()} == {"stationary": 0, "sampling_ratio": 0}
    assert Work(job).items == 0


def test_curvature_of_bands_elsewhere() -> None:
    """Exact of few directions, on average of many, whatever lies beside them in the Hessian."""
    size, generator = 60, np.random.default_rng(3)
    vectors, other = random_orthogonal(size, 1), generator.standard_normal((size, size))
    hessian = 0.3 * (other + other.T) + np.diag(np.arange(size))
    eigenvalues = np.geomspace(10, 0.1, size)
    bands = [np.arange(0, 3), np.array([3, 4, 6, 7, 8, 9, 10]), np.arange(11, 60)]
    objective = SimpleNamespace(hessian_product=lambda theta, v: theta[0] * hessian @ v)
    true = [2 * np.mean([q @ hessian @ q for q in vectors[:, band].T]) for band in bands]
    basis = PlainBasis(eigenvalues, vectors)
    found = np.array([band_curvatures(objective, np.full(size, 2.0), basis, bands, seed) for seed in range(200)])
    np.testing.assert_allclose(found[:, 0], true[0], rtol=1e-10)
    np.testing.assert_allclose(found.mean(axis=0), true, atol=4 * found.std(axis=0).max() / 200**0.5)
    assert bands_of(eigenvalues, 0.0, 0.0)[0].max() == size - 1
