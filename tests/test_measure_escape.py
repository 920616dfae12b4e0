"""The planted loss with several wells, and which starts end in the best one."""

from pathlib import Path

import family_cases as cases
import numpy as np
import pytest
import torch
from cases import write_random_data
from scipy.integrate import solve_ivp

from quadscape.data.sets import DataSet
from quadscape.errors import ModelError
from quadscape.measures.escape import compute as escape
from quadscape.network.losses import example_losses
from quadscape.network.models import check_model
from quadscape.network.planted import multi_well

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


def losses(network, images: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    outputs = torch.func.functional_call(network, {"position": theta}, (images,))
    return example_losses(outputs, labels, "squared_error")


def test_the_training_loss_is_the_closed_form(data: Path) -> None:
    images, labels = DataSet.load(data, dtype=torch.float64).split("train")
    network = multi_well((1, 8, 8), 3).double()
    check_model(network, images[:4], 3)
    z = images.flatten(1).mean(1)
    for theta in torch.empty(20, 2, dtype=torch.float64).uniform_(-1.8, 1.8):
        own = losses(network, images, labels, theta)
        assert float(own.mean()) == pytest.approx(network.training_loss(theta.numpy()), rel=1e-12)
        # The noise of examples, too: s z Σθ.
        np.testing.assert_allclose(own - own.mean(), 15 * z * theta.sum(), atol=1e-9)


def test_wells_are_minima_and_the_first_is_the_best(data: Path) -> None:
    images, labels = DataSet.load(data, dtype=torch.float64).split("train")
    network = multi_well((1, 8, 8), 3).double()
    values = []
    for number, well in enumerate(network.wells()):
        theta = torch.tensor(well, requires_grad=True)
        mean = losses(network, images, labels, theta).mean()
        (gradient,) = torch.autograd.grad(mean, theta)
        assert float(gradient.norm()) < 1e-9
        hessian = torch.func.hessian(lambda t: losses(network, images, labels, t).mean())(theta.detach())
        assert float(torch.linalg.eigvalsh(hessian)[0]) > 0.5
        assert network.basin(well) == number
        values.append(float(mean))
    assert np.argmin(values) == 0
    assert values[3] - values[0] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_basins_are_those_of_gradient_flow(dimensions: int, data: Path) -> None:
    images, labels = DataSet.load(data, dtype=torch.float64).split("train")
    network = multi_well((1, 8, 8), 3, dimensions=dimensions).double()
    slope = torch.func.grad(lambda t: losses(network, images, labels, t).mean())
    generator = np.random.default_rng(0)
    for start in [*generator.uniform(-1.5, 1.5, (3, dimensions)), np.full(dimensions, 0.08), np.full(dimensions, 0.12)]:
        end = solve_ivp(lambda _, t: -slope(torch.from_numpy(t)).numpy(), (0, 60), start, rtol=1e-8).y[:, -1]
        np.testing.assert_allclose(network.wells()[network.basin(start)], end, atol=1e-3)
    assert network.basin(np.full(dimensions, np.nan)) == -1


def test_a_landscape_without_two_wells_is_refused() -> None:
    for keys in ({"tilt": 0.5}, {"tilt": 0.0}, {"height": -1.0}, {"dimensions": 0}):
        with pytest.raises(ModelError, match="valid are"):
            multi_well((1, 8, 8), 3, **keys)


def test_shares_and_censored_starts() -> None:
    table = cases.escape_tables()["escape"]
    assert table["starts"].tolist() == [24] * 3
    assert table["diverged"].tolist() == [1, 0, 0]
    # Full-batch descent stays where it began.
    assert table["ended"][2] == table["began"][2]
    assert table["moved"][2] == 0
    np.testing.assert_allclose(table["share"], table["ended"] / 24)
    low, high = 0.149, 0.449  # Wilson's of 6.5 of 24, roughly; the exact ends are tested with `curves`
    assert table["share_low"][2] < table["share"][2] < table["share_high"][2]
    assert low - 0.05 < table["share_low"][2] < high


def test_trained_runs(data: Path, tmp_path: Path) -> None:
    model = {"factory": "quadscape.network.planted:multi_well", "arguments": {"noise": 30.0, "floor": 40.0}}
    shared = {"iterations": 300, "rate": 0.1, "evaluate_every": 300, "trajectory": {"stride": 300, "dense": 0}}
    sections = [shared | {"batch_size": size, "seed": seed} for size in (1, "full") for seed in range(3)]
    manifests = cases.trained(tmp_path, data, model, sections, "squared_error")
    made = cases.family({"batch": ["1", "full"], "seed": ["0", "1", "2"]})
    tables = escape.compute(cases.family_job(made, data, manifests))
    assert tables["escape"].attributes["largest_error"] < 1e-4
    runs = tables["escape_runs"]
    np.testing.assert_array_equal(runs["began"][3:], runs["ended"][3:])
    np.testing.assert_array_equal(runs["began"][:3], runs["began"][3:])
    assert tables["escape"]["moved"][1] == 0
    assert (runs["excess"] > -1e-9).all()


def test_other_networks_declare_no_wells(data: Path, tmp_path: Path) -> None:
    manifests = cases.trained(tmp_path, data, {"factory": "linear"}, [{"iterations": 10}], "squared_error")
    tables = escape.compute(cases.family_job(cases.family({"a": ["x"]}, ()), data, manifests))
    assert len(tables["escape"]) == len(tables["escape_runs"]) == 0
