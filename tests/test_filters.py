"""Filter normalisation against the definition, tensor by tensor."""

import numpy as np
import pytest
import torch

from quadscape.network.filters import Filters
from quadscape.network.parameters import ParameterLayout, current_vector


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.GroupNorm(1, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 5, bias=False),
    ).double()


def test_each_filter_of_a_direction_gets_the_length_of_that_filter_of_theta() -> None:
    model = _network()
    layout = ParameterLayout.of(model)
    theta = current_vector(model).numpy()
    direction = np.random.default_rng(1).standard_normal(layout.size)
    filters = Filters.of(layout)
    assert filters.count == 3 + 5
    found = layout.unflatten(torch.from_numpy(filters.normalised(direction, theta)))
    given = layout.unflatten(torch.from_numpy(direction))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert not found[name].any(), name
            continue
        for d, was, w in zip(found[name], given[name], parameter.detach(), strict=True):
            assert float(d.norm()) == pytest.approx(float(w.norm()), rel=1e-14)
            assert torch.allclose(d / d.norm(), was / was.norm(), rtol=0, atol=1e-14)


def test_filters_without_length_have_no_direction() -> None:
    layout = ParameterLayout.of(_network())
    filters = Filters.of(layout)
    theta, direction = np.ones(layout.size), np.ones(layout.size)
    theta[:18] = 0.0
    direction[18:36] = 0.0
    found = filters.normalised(direction, theta)
    assert not found[:36].any()
    assert found[36:54].all()
    assert filters.normalised(np.zeros(layout.size), theta).tolist() == [0.0] * layout.size


def test_a_network_of_vectors_alone_has_no_filters() -> None:
    layout = ParameterLayout.of(torch.nn.LayerNorm(4))
    filters = Filters.of(layout)
    assert filters.count == 0
    assert not filters.normalised(np.ones(8), np.ones(8)).any()
