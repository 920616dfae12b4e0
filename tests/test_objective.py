from functools import partial

import numpy as np
import pytest
import torch
from problems import SMALL, dense_hessian, mean_loss, problem, relative_error

from quadscape.errors import DataError
from quadscape.network.objective import Objective, data_chunk
from quadscape.network.parameters import ParameterLayout, current_vector

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_gradient_and_product_agree_with_autograd(name, loss):
    objective, theta = problem(*SMALL[name], loss=loss)
    assert objective.loss(theta) == pytest.approx(float(mean_loss(objective, theta)), rel=1e-14)
    gradient = torch.func.grad(partial(mean_loss, objective))(theta)
    assert relative_error(objective.gradient(theta), gradient) < 1e-13
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative_error(objective.hessian_product(theta, v), dense_hessian(objective, theta) @ v) < 1e-12


def test_gradient_is_the_slope_of_the_loss():
    objective, theta = problem(*SMALL["cnn-group"])
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = (objective.loss(theta + 1e-5 * v) - objective.loss(theta - 1e-5 * v)) / 2e-5
    assert float(objective.gradient(theta) @ v) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", ["mlp", "cnn-group", "cnn-batch"])
def test_example_gradients_average_to_the_gradient(name, loss):
    objective, theta = problem(*SMALL[name], loss=loss)
    gradients = objective.example_gradients(theta, slice(None))
    assert gradients.shape == (objective.count, objective.size)
    assert relative_error(gradients.mean(dim=0), objective.gradient(theta)) < 1e-12
    some = objective.example_gradients(theta, np.array([7, 2, 7]))
    torch.testing.assert_close(some, gradients[[7, 2, 7]], rtol=1e-12, atol=1e-15)
    assert objective.example_gradients(theta, slice(0, 0)).shape == (0, objective.size)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_results_do_not_depend_on_the_chunk(chunk):
    reference, theta = problem(*SMALL["cnn-group"], chunk=5)
    objective, _ = problem(*SMALL["cnn-group"], chunk=chunk)
    assert objective.chunk == min(chunk, 11)
    torch.testing.assert_close(objective.gradient(theta), reference.gradient(theta), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(objective.example_losses(theta), reference.example_losses(theta), rtol=1e-13, atol=0)
    assert objective.outputs(theta).shape == (11, 5)


def test_sums_over_chunks_are_float64_in_a_float32_network():
    objective, theta = problem(*SMALL["mlp"], dtype=torch.float32)
    assert objective.dtype == torch.float32
    assert objective.example_losses(theta).dtype == torch.float64
    assert objective.gradient(theta.numpy()).dtype == torch.float64
    assert objective.example_gradients(theta, slice(0, 2)).dtype == torch.float32
    exact, _ = problem(*SMALL["mlp"])
    assert 0 < relative_error(objective.gradient(theta), exact.gradient(theta)) < 1e-5


def test_theta_and_the_network_are_left_as_they_were():
    objective, theta = problem(*SMALL["cnn-batch"])
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    original = theta.clone()
    objective.gradient(theta)
    objective.hessian_product(theta, theta)
    objective.example_gradients(theta, slice(0, 3))
    assert torch.equal(theta, original)
    assert all(torch.equal(value, before[name]) for name, value in objective.model.state_dict().items())


class _WithoutForwardDerivative(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(4, 4)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(_Cube.apply(self.embed(x[:, 0, 0])))


class _Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_product_without_forward_derivatives_falls_back_to_double_backward():
    torch.manual_seed(0)
    model = _WithoutForwardDerivative().double()
    layout, theta = ParameterLayout.of(model), current_vector(model)
    images, labels = torch.randn(6, 1, 1, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = Objective(model, layout, images, labels, "cross_entropy", 4)
    v = torch.randn(layout.size, dtype=torch.float64)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(_Cube.apply, (images,), (images,))
    step = 1e-5
    difference = (objective.gradient(theta + step * v) - objective.gradient(theta - step * v)) / (2 * step)
    assert relative_error(objective.hessian_product(theta, v), difference) < 1e-7


def test_no_examples_is_refused():
    objective, _ = problem(*SMALL["linear"])
    with pytest.raises(DataError, match="no examples"):
        Objective(objective.model, objective.layout, objective.images[:0], objective.labels[:0], "cross_entropy", 4)


def test_data_chunk_follows_memory():
    objective, _ = problem(*SMALL["cnn-group"], dtype=torch.float32)
    double, _ = problem(*SMALL["cnn-group"])
    size, twice = objective.graph_bytes_per_example(), double.graph_bytes_per_example()
    assert size > 4 * objective.images[0].numel()
    assert 1.5 * size < twice < 2.1 * size
    cpu = torch.device("cpu")
    assert data_chunk(1 << 20, 50_000, cpu) == 512
    assert data_chunk(1 << 20, 100, cpu) == 100
    assert data_chunk(1 << 40, 100, cpu) == 1
    assert data_chunk(1, 10**6, cpu) == 4096


class _ReadsAValue(torch.nn.Module):
    """A network that vmap refuses, though its loss is a plain sum over examples."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, images):
        assert float(images.abs().max()) >= 0
        return self.scale * self.linear(images.flatten(1))


class _ReadsNone(_ReadsAValue):
    def forward(self, images):
        return self.scale * self.linear(images.flatten(1))


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_example_gradients_without_vmap_are_the_same(loss):
    torch.manual_seed(3)
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    reads, plain = _ReadsAValue().double(), _ReadsNone().double()
    theta = torch.randn(16, dtype=torch.float64)
    found, expected = (
        Objective(model, ParameterLayout.of(model), images, labels, loss, 2).example_gradients(theta, slice(None))
        for model in (reads, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "cnn-group", "cnn-batch", "linear"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("forward", [True, False])
def test_curvatures_of_examples_are_those_of_autograd(name, loss, forward, monkeypatch):
    if name not in SMALL:
        pytest.skip("no such network")
    objective, theta = problem(*SMALL[name], loss=loss, chunk=4)  # 11 examples: a ragged last chunk
    q = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    q /= q.norm()
    if not forward:
        monkeypatch.setattr("quadscape.network.objective.Objective.network", without_forward(Objective.network))
    slopes, hessian, gauss_newton = objective.example_curvatures(theta, q)
    monkeypatch.undo()
    for n in range(objective.count):
        one = objective.part(slice(n, n + 1))
        assert float(slopes[n]) == pytest.approx(float(one.gradient(theta) @ q), rel=1e-10, abs=1e-13)
        assert float(hessian[n]) == pytest.approx(float(one.hessian_product(theta, q) @ q), rel=1e-9, abs=1e-12)
        assert float(gauss_newton[n]) == pytest.approx(
            float(one.gauss_newton_product(theta, q) @ q), rel=1e-9, abs=1e-12
        )


class _NoForward(torch.autograd.Function):
    """The identity, without a forward derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def without_forward(network):
    """A network of which torch has no forward derivative, as of one with fused attention."""

    def made(objective, parameters, images):
        return _NoForward.apply(network(objective, parameters, images))

    return made
