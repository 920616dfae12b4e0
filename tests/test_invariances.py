"""Generators of scales and shifts: found where they are, and nowhere else; with float64 autograd as the reference."""

import numpy as np
import pytest
import torch
from test_architectures import dense_hessian, objective_of
from torch import nn

from quadscape.curvature.invariances import (
    find_generators,
    joined,
    negatives_without,
    orthonormal_coefficients,
    overlaps,
)

IMAGES = (2, 6, 6)


class Residual(nn.Module):
    """x + f(x), then a normalisation: what is added must scale together."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm, self.out = nn.GroupNorm(1, channels), nn.Linear(channels, 3)

    def forward(self, x):
        x = self.first(x)
        return self.out(nn.functional.gelu(self.norm(x + self.second(x))).mean(dim=(2, 3)))


class Tied(nn.Module):
    """The same weight twice: its scale is no free one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(72, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.a(x.flatten(1)))
        return self.out(torch.relu(self.b(torch.relu(self.b(x)))))


NETWORKS = {
    # name: network, loss, scales, shifts
    "tanh": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Tanh(), nn.Linear(4, 3)), "cross_entropy", 0, 5),
    "tanh, squared error": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Tanh(), nn.Linear(4, 3)),
        "squared_error",
        0,
        0,
    ),
    # One scale per hidden unit.
    "relu": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)),
        "squared_error",
        10,
        0,
    ),
    # One per channel, through pooling and flattening; and of the softmax one for each of 16 inputs, and the bias.
    "relu convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(16, 3)
        ),
        "cross_entropy",
        4,
        17,
    ),
    # Two groups of a weight with its bias; their common bias is a shift.
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3)
        ),
        "cross_entropy",
        2,
        2 + 5,
    ),
    # After ReLU γ and β of each channel scale against the next weight as well.
    "group norm, relu": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3)
        ),
        "squared_error",
        1 + 4,
        1,
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
        "squared_error",
        1,
        1,
    ),
    # Frozen statistics do not follow the weight.
    "batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3)
        ),
        "squared_error",
        0,
        0,
    ),
    "residual": (lambda: Residual(4), "squared_error", 1, 0),
    "tied": (Tied, "squared_error", 0, 0),
}


def problem(name, count=7):
    make, loss, scales, shifts = NETWORKS[name]
    torch.manual_seed(3)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    objective, theta = objective_of(model, IMAGES, 3, torch.float64, loss, count, 4)
    return objective, np.asarray(theta, dtype=np.float64), scales, shifts


@pytest.mark.parametrize("name", NETWORKS)
def test_every_invariance_is_found_and_no_other(name):
    objective, theta, scales, shifts = problem(name)
    found = find_generators(objective, theta)
    assert [part.kind for part in found] == ["scale", "shift"]
    assert [part.count for part in found] == [scales, shifts]
    hessian = dense_hessian(objective, torch.from_numpy(theta)).numpy()
    gradient = objective.gradient(theta).numpy()
    for part in found:
        u = part.vectors.toarray()
        np.testing.assert_allclose(np.linalg.norm(u, axis=0), 1.0, rtol=1e-12)
        # The ε of a normalisation is 1e-5 of its variance, which is about 1.
        exact = 1e-3 if "norm" in name or name == "residual" else 1e-11
        scale = np.abs(np.linalg.eigvalsh(hessian)).max()
        assert np.abs(gradient @ u).max(initial=0) < exact * np.linalg.norm(gradient)
        assert np.abs(hessian @ u + part.exponents.toarray() * gradient[:, None]).max(initial=0) < exact * scale
        assert part.deviation < exact
    if shifts:
        moved = theta + 0.7 * found[1].vectors.toarray().sum(axis=1)
        assert objective.loss(moved) == pytest.approx(objective.loss(theta), rel=1e-9)


@pytest.mark.parametrize("name", ["relu", "relu convolutions"])
def test_scales_leave_the_loss_alone_at_any_distance(name):
    objective, theta, *_ = problem(name)
    scales = find_generators(objective, theta)[0]
    weights = np.random.default_rng(0).uniform(-1, 1, scales.count)
    factors = np.exp(scales.exponents.toarray() @ weights)
    assert np.abs(factors - 1).max() > 0.01
    assert objective.loss(theta * factors) == pytest.approx(objective.loss(theta), rel=1e-12)


def test_candidates_that_do_not_hold_are_dropped(monkeypatch):
    """A rule that is wrong: tanh taken for homogeneous."""
    from quadscape.curvature import invariances

    wrong = invariances._HOMOGENEOUS | {torch.ops.aten.tanh.default}
    monkeypatch.setattr(invariances, "_HOMOGENEOUS", wrong)
    objective, theta, *_ = problem("tanh")
    assert find_generators(objective, theta)[0].count == 0


@pytest.mark.parametrize("name", ["relu", "relu convolutions", "group norm, relu", "tanh"])
def test_negative_eigenvalues_without_generators(name):
    objective, theta, *_ = problem(name)
    u = joined(find_generators(objective, theta)).toarray()
    hessian = dense_hessian(objective, torch.from_numpy(theta)).numpy()
    values, vectors = np.linalg.eigh(hessian)
    values, vectors = values[::-1], vectors[:, ::-1]
    components, gram = vectors.T @ u, u.T @ u
    complement = np.linalg.svd(u @ orthonormal_coefficients(gram))[0][:, orthonormal_coefficients(gram).shape[1] :]
    restricted = np.linalg.eigvalsh(complement.T @ hessian @ complement)
    for cut in (1e-9, 1e-4, 1e-2):
        assert negatives_without(values, components, gram, cut) == (restricted < -cut).sum()


def test_overlaps_are_squared_projections():
    generator = np.random.default_rng(1)
    q = np.linalg.qr(generator.standard_normal((9, 9)))[0]
    u = q[:, :3] @ generator.standard_normal((3, 4))  # four that span three dimensions
    u /= np.linalg.norm(u, axis=0)
    np.testing.assert_allclose(overlaps(q.T @ u, u.T @ u), [1, 1, 1, 0, 0, 0, 0, 0, 0], atol=1e-12)
    assert overlaps(np.zeros((9, 0)), np.zeros((0, 0))).tolist() == [0.0] * 9
    assert negatives_without(np.array([1.0, -1.0]), np.zeros((2, 0)), np.zeros((0, 0)), 0.0) == 1
