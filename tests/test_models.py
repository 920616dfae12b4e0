"""Networks: sizes and structure, the user's own factories, and the refusal of what is no sum over examples."""

import textwrap

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, gelu, group_norm

from quadscape.config.sections import CNN, MLP, Custom, Linear, ResNet9
from quadscape.errors import ModelError
from quadscape.network.models import (
    batch_norms,
    build_model,
    check_model,
    count_parameters,
    factory_code,
    initial_vector,
)
from quadscape.network.parameters import ParameterLayout


@pytest.mark.parametrize(("width", "expected"), [(1, 26490), (2, 104234)])
@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_resnet9_has_the_stated_number_of_parameters(width, expected, normalization):
    config = ResNet9(width=width, normalization=normalization)
    assert count_parameters(config, (3, 32, 32), 10) == expected
    assert ParameterLayout.of(build_model(config, (3, 32, 32), 10)).size == expected


def test_resnet9_computes_what_the_specification_says():
    torch.manual_seed(0)
    model = build_model(ResNet9(width=1), (3, 32, 32), 10).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    p = dict(model.named_parameters())

    def block(name, number, x):
        x = conv2d(x, p[f"{name}conv{number}.weight"], p[f"{name}conv{number}.bias"], padding=1)
        weight, bias = p[f"{name}norm{number}.weight"], p[f"{name}norm{number}.bias"]
        return gelu(group_norm(x, x.shape[1] // 4, weight, bias))

    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    x = block("", 1, images)
    assert x.shape[1] == 4
    x = avg_pool2d(block("", 2, x), 2)
    x = x + block("residual1.", 2, block("residual1.", 1, x))
    x = avg_pool2d(block("", 3, x), 2)
    x = avg_pool2d(block("", 4, x), 2)
    x = x + block("residual2.", 2, block("residual2.", 1, x))
    assert tuple(x.shape) == (5, 32, 4, 4)
    expected = avg_pool2d(x, 4).flatten(1) @ p["linear.weight"].T + p["linear.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert list(dict.fromkeys(b.layer for b in ParameterLayout.of(model).blocks)) == [
        "conv1", "norm1", "conv2", "norm2",
        "residual1.conv1", "residual1.norm1", "residual1.conv2", "residual1.norm2",
        "conv3", "norm3", "conv4", "norm4",
        "residual2.conv1", "residual2.norm1", "residual2.conv2", "residual2.norm2",
        "linear",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 11), (5, 33, 17), (2, 64, 16)])
@pytest.mark.parametrize(
    "config",
    [
        ResNet9(width=1),
        ResNet9(width=1, normalization="none"),
        ResNet9(width=1, normalization="batch", activation="tanh"),
        CNN(factory="cnn"),
        CNN(factory="cnn", channels=(3, 6), channels_per_group=3, activation="relu"),
        MLP(factory="mlp", hidden=(7, 5)),
        Linear(factory="linear"),
    ],
)
def test_any_size_and_channels_that_the_pools_allow(config, shape):
    model = build_model(config, shape, 4)
    check_model(model, torch.randn(3, *shape), 4)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config, shape, 4)


@pytest.mark.parametrize("skip", [True, False])
def test_a_cnn_of_some_depth_is_stages_with_skips(skip):
    config = CNN(factory="cnn", channels=(1, 4), depth=3, skip=skip, normalization="none", activation="sigmoid")
    model = build_model(config, (1, 8, 8), 3).double()
    p = dict(model.named_parameters())
    x = images = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    for number in range(1, 7):
        y = torch.sigmoid(conv2d(x, p[f"conv{number}.weight"], p[f"conv{number}.bias"], padding=1))
        x = x + y if skip and number != 4 else y
        x = avg_pool2d(x, 2) if number in {3, 6} else x
    expected = x.flatten(1) @ p["linear.weight"].T + p["linear.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    plain, same = (build_model(c, (1, 8, 8), 3) for c in (CNN(factory="cnn"), CNN(factory="cnn", depth=1)))
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in same.named_parameters()]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("normalization", ["layer", "none"])
def test_an_mlp_normalises_within_examples_and_skips_where_the_width_stays(skip, normalization):
    config = MLP(factory="mlp", hidden=(6, 6, 5), activation="tanh", normalization=normalization, skip=skip)
    model = build_model(config, (1, 2, 3), 3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    p = dict(model.named_parameters())
    images = torch.randn(4, 1, 2, 3, dtype=torch.float64)
    x = images.flatten(1)
    for number in (1, 2, 3):
        y = x @ p[f"linear{number}.weight"].T + p[f"linear{number}.bias"]
        if normalization == "layer":
            centred = y - y.mean(1, keepdim=True)
            y = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
            y = y * p[f"norm{number}.weight"] + p[f"norm{number}.bias"]
        x = x + torch.tanh(y) if skip and number < 3 else torch.tanh(y)
    expected = x @ p["linear4.weight"].T + p["linear4.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert len(p) == 8 + 6 * (normalization == "layer")


def test_a_resnet_without_skips_has_the_same_parameters():
    with_skips, without = (build_model(ResNet9(width=1, skip=skip), (1, 8, 8), 3) for skip in (True, False))
    without.load_state_dict(with_skips.state_dict())
    images = torch.randn(2, 1, 8, 8)
    assert not torch.allclose(with_skips(images), without(images))
    pair = without.residual1
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(pair(x), pair.apply_block(2, pair.apply_block(1, x)))


def test_small_networks_have_the_stated_layers():
    assert count_parameters(Linear(factory="linear"), (3, 4, 5), 7) == 60 * 7 + 7
    assert count_parameters(Linear(factory="linear", bias=False), (3, 4, 5), 7) == 60 * 7
    assert count_parameters(MLP(factory="mlp", hidden=(9, 8)), (1, 4, 5), 7) == 20 * 9 + 9 + 9 * 8 + 8 + 8 * 7 + 7
    cnn = CNN(factory="cnn", channels=(4, 8), normalization="group")
    assert count_parameters(cnn, (1, 8, 8), 10) == 4 * 10 + 8 + 8 * 37 + 16 + 32 * 10 + 10


def test_initial_parameters_depend_on_the_seed_alone():
    config = ResNet9(width=1)
    expected = initial_vector(config, (1, 8, 8), 10, 3)
    assert expected.dtype == torch.float64
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state()
        again = initial_vector(config, (1, 8, 8), 10, 3)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(expected, again)
    assert not torch.equal(expected, initial_vector(config, (1, 8, 8), 10, 4))
    conv1 = expected[:36]
    assert float(conv1.abs().max()) <= 1 / 3  # PyTorch's default: uniform within 1/√fan_in


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        (ResNet9(width=1), (3, 7, 32), ("8×8", "7×32")),
        (CNN(factory="cnn", channels=(4, 4, 4, 4)), (1, 8, 8), ("16×16", "8×8")),
        (ResNet9(width=1, channels_per_group=8), (3, 32, 32), ("channels_per_group is 8", "4 channels")),
        (CNN(factory="cnn", channels=(8, 6)), (1, 8, 8), ("channels_per_group is 4", "6 channels")),
        (ResNet9(width=1, channels_per_group=1), (3, 8, 8), ("channels_per_group is 1", "single pixel")),
    ],
)
def test_impossible_networks_are_refused(config, shape, words):
    with pytest.raises(ModelError) as caught:
        build_model(config, shape, 10)
    with pytest.raises(ModelError):
        count_parameters(config, shape, 10)
    assert_sentence(str(caught.value), words)


def assert_sentence(message, words):
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message


FACTORIES = """
    import torch
    from torch import nn

    def good(shape, classes, width=3):
        pixels = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, classes))

    def no_module(shape, classes):
        return "network"

    def fails(shape, classes):
        raise KeyError("oops")

    def frozen(shape, classes):
        model = good(shape, classes)
        model[1].weight.requires_grad_(False)
        return model

    def empty(shape, classes):
        return nn.Flatten()

    class Coupled(nn.Module):
        def __init__(self, shape, classes):
            super().__init__()
            self.inner = good(shape, classes)

        def forward(self, x):
            return self.inner(x - x.mean(0))

    class NotFinite(Coupled):
        def forward(self, x):
            return self.inner(x) / 0

    class TwoOutputs(Coupled):
        def forward(self, x):
            return self.inner(x), x

    class Random(Coupled):
        def forward(self, x):
            return self.inner(nn.functional.dropout(x, 0.5, training=True))

    class Counting(Coupled):
        def __init__(self, shape, classes):
            super().__init__(shape, classes)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.seen += 1
            return self.inner(x)

    def wrong_classes(shape, classes):
        return good(shape, classes + 1)

    def untracked(shape, classes):
        return nn.Sequential(nn.BatchNorm2d(shape[0], track_running_stats=False), good(shape, classes))

    def dropout(shape, classes):
        return nn.Sequential(nn.Dropout(0.5), good(shape, classes))

    def wrong_size(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(3, classes))

    not_callable = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(textwrap.dedent(FACTORIES))
    (tmp_path / "own_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    yield
    for name in ("own_networks", "own_broken"):
        __import__("sys").modules.pop(name, None)


@pytest.mark.usefixtures("factories")
def test_own_factory_is_imported_from_the_current_directory():
    config = Custom(factory="own_networks:good", arguments={"width": 5})
    assert count_parameters(config, (1, 4, 4), 3) == 16 * 5 + 5 + 5 * 3 + 3
    check_model(build_model(config, (1, 4, 4), 3), torch.randn(4, 1, 4, 4), 3)
    check_model(build_model(Custom(factory="own_networks:dropout"), (1, 4, 4), 3), torch.randn(4, 1, 4, 4), 3)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("own_missing:good", ("own_missing", "cannot be imported")),
        ("own_broken:good", ("own_broken", "not_installed_anywhere")),
        ("own_networks:absent", ("has no 'absent'",)),
        ("own_networks:not_callable", ("not_callable", "int")),
        ("own_networks:no_module", ("str", "torch.nn.Module")),
        ("own_networks:fails", ("KeyError", "oops")),
        ("own_networks:frozen", ("1.weight", "gradients")),
        ("own_networks:empty", ("no parameters",)),
    ],
)
def test_bad_factories_are_refused_when_built(factory, words):
    with pytest.raises(ModelError) as caught:
        build_model(Custom(factory=factory), (1, 4, 4), 3)
    assert_sentence(str(caught.value), words)


@pytest.mark.usefixtures("factories")
def test_wrong_arguments_of_a_factory_are_named():
    with pytest.raises(ModelError) as caught:
        build_model(Custom(factory="own_networks:good", arguments={"depth": 2}), (1, 4, 4), 3)
    assert_sentence(str(caught.value), ("depth", "own_networks:good"))


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("Coupled", ("depends on the other examples",)),
        ("NotFinite", ("not finite",)),
        ("TwoOutputs", ("tuple", "tensor of class scores")),
        ("Random", ("different outputs for the same images",)),
        ("Counting", ("buffer 'seen'",)),
        ("wrong_classes", ("(4, 4)", "(4, 3)")),
        ("untracked", ("Layer '0'", "track_running_stats")),
        ("wrong_size", ("failed on images",)),
    ],
)
def test_networks_that_are_no_sum_over_examples_are_refused(factory, words):
    model = build_model(Custom(factory=f"own_networks:{factory}"), (1, 4, 4), 3)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        check_model(model, torch.randn(4, 1, 4, 4), 3)
    assert_sentence(str(caught.value), words)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_batch_norm_is_found_and_passes_the_check_in_evaluation_mode():
    model = build_model(ResNet9(width=1, normalization="batch"), (1, 8, 8), 3)
    assert len(batch_norms(model)) == 8
    state = torch.get_rng_state()
    check_model(model, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert next(model.parameters()).dtype == torch.float32


def test_editing_a_factory_changes_its_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "edited_networks.py"
    source = "import torch\n\n\ndef network(shape, classes):\n    return torch.nn.Flatten()\n"
    path.write_text(source)
    config = Custom(factory="edited_networks:network")
    before = factory_code(config)
    path.write_text("# A remark.\n" + source)
    assert factory_code(config) == before
    path.write_text(source.replace("Flatten()", "Flatten(1)"))
    assert factory_code(config) != before
    assert factory_code(Linear(factory="linear")) is None
