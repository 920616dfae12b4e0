import numpy as np
import pytest
import torch

from quadscape.config.model import model_section
from quadscape.network.models import build_model, cast, initial_vector
from quadscape.network.parameters import ParameterLayout, assign_vector
from quadscape.network.permutations import (
    Units,
    aligned_orders,
    assignment,
    hidden_units,
    permuted,
    random_orders,
)

SHAPE, CLASSES = (1, 8, 8), 10
NETWORKS = {
    "mlp": {"factory": "mlp", "hidden": [12, 9]},
    "mlp, normalised": {"factory": "mlp", "hidden": [12, 9], "normalization": "layer"},
    "mlp, skip": {"factory": "mlp", "hidden": [12, 12, 12, 9], "skip": True},
    "mlp, skip from the input": {"factory": "mlp", "hidden": [64, 12], "skip": True},
    "cnn": {"factory": "cnn", "channels": [8, 12], "normalization": "none"},
    "cnn, groups": {"factory": "cnn", "channels": [8, 12], "channels_per_group": 4},
    "cnn, batch": {"factory": "cnn", "channels": [6, 9], "normalization": "batch"},
    "cnn, deep with skip": {
        "factory": "cnn",
        "channels": [8, 12],
        "channels_per_group": 2,
        "depth": 3,
        "skip": True,
    },
    "resnet9": {"factory": "resnet9", "width": 1, "channels_per_group": 4},
    "resnet9, no skip": {"factory": "resnet9", "width": 1, "skip": False, "normalization": "none"},
}


def network(name: str):
    config = model_section(NETWORKS[name])
    shape = (1, 16, 16) if "resnet" in name else SHAPE
    model = cast(build_model(config, shape, CLASSES), torch.float64).eval()
    layout = ParameterLayout.of(model)
    # Normalisations begin with ones and zeros, which tell no units apart.
    theta = initial_vector(config, shape, CLASSES, 3).numpy()
    theta = theta + 0.1 * np.random.default_rng(0).standard_normal(len(theta))
    images = torch.from_numpy(np.random.default_rng(1).standard_normal((5, *shape)))

    def outputs(of: np.ndarray) -> np.ndarray:
        assign_vector(model, torch.from_numpy(of))
        with torch.no_grad():
            return model(images).numpy()

    units = hidden_units(config, shape)
    assert units is not None
    return theta, layout, units, outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permutation_leaves_the_function(name: str) -> None:
    theta, layout, units, outputs = network(name)
    before, moved = outputs(theta), permuted(theta, layout, units, random_orders(units, 0))
    assert np.abs(moved - theta).max() > 0.01
    np.testing.assert_allclose(outputs(moved), before, atol=1e-12 * np.abs(before).max())
    # Every parameter but the last bias has an axis of units, and every axis of units is in order.
    named = {place for each in units for place, _ in each.places}
    assert {block.name for block in layout.blocks} - named == (
        {layout.blocks[-1].name} if "input" not in name else {"linear1.weight", "linear1.bias", layout.blocks[-1].name}
    )
    # The check can fail: one place less, and the function is another.
    less = [Units(units[0].count, units[0].together, units[0].places[1:]), *units[1:]]
    assert np.abs(outputs(permuted(theta, layout, less, random_orders(units, 0))) - before).max() > 1e-4


def test_groups_must_be_kept_together() -> None:
    theta, layout, units, outputs = network("cnn, groups")
    orders = random_orders(units, 0)
    for each, order in zip(units, orders, strict=True):
        assert each.together == 4
        assert (order.reshape(-1, 4) // 4 == order.reshape(-1, 4)[:, :1] // 4).all()
    wrong = [np.random.default_rng(0).permutation(each.count) for each in units]
    before = outputs(theta)
    assert np.abs(outputs(permuted(theta, layout, units, wrong)) - before).max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_aligned_with_its_own_permutation(name: str) -> None:
    theta, layout, units, _ = network(name)
    moved = permuted(theta, layout, units, random_orders(units, 5))
    found = permuted(moved, layout, units, aligned_orders(theta, moved, layout, units))
    np.testing.assert_array_equal(found, theta)


def test_the_nearest_order_of_few_units_is_found() -> None:
    theta, layout, units, _ = network("mlp")
    other = theta + 0.5 * np.random.default_rng(4).standard_normal(len(theta))
    found = permuted(other, layout, units, aligned_orders(theta, other, layout, units))
    assert np.linalg.norm(found - theta) <= np.linalg.norm(other - theta)
    for seed in range(20):
        tried = permuted(other, layout, units, random_orders(units, seed))
        assert np.linalg.norm(found - theta) < np.linalg.norm(tried - theta)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_an_assignment_is_the_best_of_all(together: int) -> None:
    import itertools

    gain = np.random.default_rng(together).standard_normal((6, 6))
    allowed = [
        order
        for order in itertools.permutations(range(6))
        if all(len({unit // together for unit in order[a : a + together]}) == 1 for a in range(0, 6, together))
    ]
    best = max(allowed, key=lambda order: gain[np.arange(6), order].sum())
    assert assignment(gain, together).tolist() == list(best)


def test_networks_without_hidden_units_and_unknown_ones() -> None:
    assert hidden_units(model_section({"factory": "linear"}), SHAPE) == ()
    theta = np.arange(3.0)
    assert aligned_orders(theta, theta, ParameterLayout.of(torch.nn.Linear(2, 1)), ()) == []
    wells = {"factory": "quadscape.network.planted:multi_well", "arguments": {"dimensions": 1, "noise": 1.0}}
    assert hidden_units(model_section(wells), SHAPE) is None
