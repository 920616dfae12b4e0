"""Checkpoints: what they hold, frozen BatchNorm, parameters trained elsewhere, and what is refused."""

import textwrap

import numpy as np
import pytest
import torch
from cases import write_random_data

import results
from quadscape.data.info import data_info
from quadscape.data.sets import DataSet
from quadscape.errors import ConfigError, ModelError, StoreError
from quadscape.network.checkpoint import Checkpoint, freeze_batch_norms
from quadscape.network.losses import example_losses
from quadscape.network.models import batch_norms, build_model
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.stage.run import run_stage
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")

CNN = {"factory": "cnn", "channels": [4, 8]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


def make_experiment(model=None, **run) -> Experiment:
    training = {
        "iterations": 30,
        "batch_size": 16,
        "learning_rate": {"schedule": "steps", "value": 0.05, "milestones": [20]},
        "trajectory": {"stride": 10, "dense": 0},
        "weight_decay": 0.25,
    }
    runs = [{"name": "a", "checkpoints": [0, 20, 30], **run}]
    return parse_experiment({"device": "cpu", "model": model or CNN, "training": training, "runs": runs})


def train(experiment, data, path):
    run = experiment.run("a")
    task = TrainingTask(run, experiment.run_seed(run), experiment.model, experiment.loss, data, "cpu")
    run_stage(task, path, log=lambda text: None)
    return path / "manifest.json"


def extract(experiment, iteration, trajectory, data, out):
    results.extract(experiment, "a", iteration, trajectory, data, out)


def place(root, name):
    """Where the workflow would put a checkpoint: what is found of the network of one serves the others of that root."""
    return root / f"runs/a/checkpoints/{name}/checkpoint.zarr"


def assert_sentence(message, words):
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert str(word) in message


@pytest.mark.parametrize("normalization", ["group", "batch", "none"])
def test_checkpoint_of_a_run(normalization, data, tmp_path):
    experiment = make_experiment({**CNN, "normalization": normalization})
    manifest = train(experiment, data, tmp_path / "run")
    trajectory = Trajectory.open(manifest)
    for iteration, rate in ((0, 0.05), (20, 0.005), (30, 0.005)):
        out = place(tmp_path, iteration)
        extract(experiment, iteration, manifest, data, out)
        checkpoint = Checkpoint.load(out)
        np.testing.assert_array_equal(checkpoint.theta, trajectory.theta(iteration))
        assert checkpoint.theta.dtype == np.float64
        assert (checkpoint.run, checkpoint.iteration, checkpoint.loss) == ("a", iteration, "cross_entropy")
        assert (checkpoint.weight_decay, checkpoint.momentum) == (0.25, 0.9)
        np.testing.assert_allclose(checkpoint.learning_rate, rate)
        assert checkpoint.training["iterations"] == 30
        assert checkpoint.data_digest == data_info(data).digest
        assert checkpoint.hessian_kind == "exact"
        assert checkpoint.model_config == experiment.model
        assert checkpoint.layout.size == len(checkpoint.theta)
        model = checkpoint.model()
        assert not model.training
        vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        np.testing.assert_array_equal(vector.numpy(), checkpoint.theta)
        single = checkpoint.model(torch.float32)
        assert {p.dtype for p in single.parameters()} == {torch.float32}
        images = DataSet.load(data).first("test", 3)
        np.testing.assert_allclose(single(images).detach(), model(images.double()).detach(), rtol=0, atol=1e-5)
    digests = {Checkpoint.load(place(tmp_path, i)).digest for i in (0, 20, 30)}
    assert len(digests) == 3


def test_checkpoints_are_byte_identical_when_extracted_again(data, tmp_path):
    experiment = make_experiment({**CNN, "normalization": "batch"})
    manifest = train(experiment, data, tmp_path / "run")
    for name in ("one", "two"):
        extract(experiment, 20, manifest, data, tmp_path / name)
    first, second = ((tmp_path / name / "zarr.json").read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    "config",
    [
        {"factory": "resnet9", "width": 1, "normalization": "batch"},
        {"factory": "cnn", "normalization": "batch", "activation": "tanh"},
    ],
)
def test_frozen_batch_norm_equals_full_batch_training_mode(config, data, tmp_path):
    experiment = make_experiment(config)
    manifest = train(experiment, data, tmp_path / "run")
    images, labels = DataSet.load(data, dtype=torch.float64).split("train")
    for iteration in (0, 30):
        extract(experiment, iteration, manifest, data, place(tmp_path, iteration))
        model = Checkpoint.load(place(tmp_path, iteration)).model()
        frozen = model(images).detach()
        loss = example_losses(frozen, labels, "cross_entropy").mean()
        model.train()
        whole = model(images).detach()
        scale = float(whole.abs().max())
        np.testing.assert_allclose(frozen.numpy(), whole.numpy(), rtol=0, atol=1e-12 * scale)
        np.testing.assert_allclose(loss, example_losses(whole, labels, "cross_entropy").mean(), rtol=1e-13)


def test_statistics_do_not_depend_on_chunks_or_former_statistics(data):
    config = make_experiment({"factory": "resnet9", "width": 1, "normalization": "batch"}).model
    images, _ = DataSet.load(data, dtype=torch.float64).split("train")
    found = []
    for chunk in (7, 50):
        model = build_model(config, (1, 8, 8), 3).double()
        with torch.no_grad():
            for layer in batch_norms(model).values():
                layer.running_mean.fill_(chunk)
        freeze_batch_norms(model, images, chunk)
        found.append(torch.cat([b.reshape(-1).double() for b in model.buffers()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


OWN = """
    import torch
    from torch import nn

    class OutOfOrder(nn.Module):
        '''Registered in another order than executed, with one layer never used.'''

        def __init__(self, shape, classes):
            super().__init__()
            self.last = nn.BatchNorm1d(6)
            self.unused = nn.BatchNorm1d(2)
            self.first = nn.BatchNorm2d(shape[0])
            self.conv = nn.Linear(shape[0] * shape[1] * shape[2], 6)
            self.linear = nn.Linear(6, classes)
            self.register_buffer("shift", torch.rand(1))

        def forward(self, x):
            x = self.conv(self.first(x * x).flatten(1))
            return self.linear(torch.tanh(self.last(x))) + self.shift

    class Shared(nn.Module):
        def __init__(self, shape, classes):
            super().__init__()
            self.norm = nn.BatchNorm2d(shape[0])
            self.linear = nn.Linear(shape[0] * shape[1] * shape[2], classes)

        def forward(self, x):
            return self.linear(self.norm(torch.tanh(self.norm(x))).flatten(1))

    def relu(shape, classes):
        pixels = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 4), nn.ReLU(), nn.Linear(4, classes))

    class Coupled(Shared):
        def forward(self, x):
            return self.linear((x - x.mean(0)).flatten(1))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_checkpoint_networks.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: {"factory": f"own_checkpoint_networks:{name}"}
    __import__("sys").modules.pop("own_checkpoint_networks", None)


def save_foreign(experiment, path, change=lambda state: state, classes=3):
    model = build_model(experiment.model, (1, 8, 8), classes).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * index)
    torch.save(change(dict(model.state_dict())), path)
    return model


def test_layers_are_frozen_in_the_order_of_execution(own, data, tmp_path):
    experiment = make_experiment(own("OutOfOrder"), path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt")
    extract(experiment, 5, None, data, tmp_path / "c")
    checkpoint = Checkpoint.load(tmp_path / "c")
    assert "shift" in checkpoint.buffers
    assert checkpoint.run == "a"
    model = checkpoint.model()
    images, _ = DataSet.load(data, dtype=torch.float64).split("train")
    frozen = model(images).detach()
    np.testing.assert_allclose(frozen.numpy(), model.train()(images).detach().numpy(), rtol=0, atol=1e-12)


def test_one_batch_norm_used_twice_is_refused(own, data, tmp_path):
    experiment = make_experiment(own("Shared"), path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt")
    with pytest.raises(ModelError) as caught:
        extract(experiment, 5, None, data, tmp_path / "c")
    assert_sentence(str(caught.value), ("'norm'", "2 times"))


def test_coupled_examples_are_refused(own, data, tmp_path):
    experiment = make_experiment(own("Coupled"), path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt")
    with pytest.raises(ModelError, match="depends on the other examples"):
        extract(experiment, 5, None, data, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_kinks_make_the_hessian_almost_everywhere(own, data, tmp_path):
    for model in (own("relu"), {**CNN, "activation": "relu"}):
        experiment = make_experiment(model, path=str(tmp_path / "theta.pt"), checkpoints=[5])
        save_foreign(experiment, tmp_path / "theta.pt")
        extract(experiment, 5, None, data, tmp_path / "c")
        assert Checkpoint.load(tmp_path / "c").hessian_kind == "almost everywhere"


def test_a_changed_factory_is_noticed(own, data, tmp_path):
    experiment = make_experiment(own("relu"), path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt")
    extract(experiment, 5, None, data, tmp_path / "c")
    __import__("own_checkpoint_networks").relu = __import__("own_checkpoint_networks").OutOfOrder
    with pytest.raises(ModelError) as caught:
        Checkpoint.load(tmp_path / "c")
    assert_sentence(str(caught.value), ("own_checkpoint_networks:relu", tmp_path / "c"))


# Parameters trained elsewhere


def test_foreign_parameters(data, tmp_path):
    experiment = make_experiment(path=str(tmp_path / "theta_{iteration}.pt"), checkpoints=[5, 6])
    model = save_foreign(experiment, tmp_path / "theta_6.pt")
    extract(experiment, 6, None, data, tmp_path / "c")
    checkpoint = Checkpoint.load(tmp_path / "c")
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    np.testing.assert_array_equal(checkpoint.theta, expected.numpy())
    assert (checkpoint.training, checkpoint.momentum, checkpoint.learning_rate) == (None, None, None)
    assert checkpoint.weight_decay == 0.25
    with pytest.raises(ConfigError) as caught:
        extract(experiment, 5, None, data, tmp_path / "d")
    assert_sentence(str(caught.value), (tmp_path / "theta_5.pt", "no such file"))


def test_foreign_batch_norm_statistics_are_not_needed(data, tmp_path):
    experiment = make_experiment({**CNN, "normalization": "batch"}, path=str(tmp_path / "theta.pt"), checkpoints=[5])
    found = []
    for change in (
        lambda state: state,
        lambda state: {name: v for name, v in state.items() if "running" not in name and "num_batches" not in name},
    ):
        save_foreign(experiment, tmp_path / "theta.pt", change)
        extract(experiment, 5, None, data, place(tmp_path, 5))
        found.append(Checkpoint.load(place(tmp_path, 5)).digest)
    assert found[0] == found[1]


def _set(name, value):
    return lambda state: {**state, name: value}


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A root with the checkpoint of a model that was not wrapped."""
    root = tmp_path_factory.mktemp("plain")
    experiment = make_experiment(path=str(root / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, root / "theta.pt")
    extract(experiment, 5, None, data, place(root, "plain"))
    return root


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.net.{name}",
        lambda name: name.replace(".", "._orig_mod."),
        lambda name: f"module.{name.replace('.', '._fsdp_wrapped_module.')}",
    ],
)
def test_names_of_wrapped_models_are_unwrapped_and_said(rename, plain, data, tmp_path, capsys):
    experiment = make_experiment(path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt", lambda state: {rename(name): state[name] for name in state})
    extract(experiment, 5, None, data, place(plain, "wrapped"))
    assert Checkpoint.load(place(plain, "wrapped")).digest == Checkpoint.load(place(plain, "plain")).digest
    taken = rename("x.y").split(".")[0] if rename("x.y")[0] != "x" else "_orig_mod"
    assert taken in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "conv2.bias"}, ("lacks 1 of", "'conv2.bias'")),
        (lambda state: {f"module.{k}": v for k, v in [*state.items()][1:]}, ("lacks", "'conv1.weight'", "'module.")),
        (lambda state: {(f"module.{k}" if "bias" in k else k): v for k, v in state.items()}, ("'module.",)),
        (lambda state: {**{f"module.{k}": v for k, v in state.items()}, "n_averaged": torch.ones(())}, ("'module.",)),
        (_set("conv1.bias", torch.ones(4, dtype=torch.complex64)), ("'conv1.bias'", "complex64")),
        (_set("conv1.bias", torch.ones(4, dtype=torch.int8)), ("'conv1.bias'", "int8")),
        (_set("conv1.bias", torch.ones(4).to_sparse()), ("'conv1.bias'", "sparse")),
        (lambda state: {}, ("no tensor at all",)),
        (lambda state: {**state, 3: torch.ones(4)}, ("name 3",)),
        (_set("extra", torch.zeros(3)), ("network lacks", "'extra'")),
        (_set("conv1.weight", torch.zeros(4, 3, 3, 3)), ("'conv1.weight'", "(4, 3, 3, 3)", "(4, 1, 3, 3)")),
        (_set("conv1.weight", 3.0), ("no state_dict", "'conv1.weight'", "float")),
        (_set("conv1.bias", torch.full((4,), torch.nan)), ("4 of the", "not finite")),
        (lambda state: list(state.values()), ("list", "no state_dict")),
        (lambda state: torch.zeros(3), ("Tensor", "no state_dict")),
        (lambda state: {"model": state}, ("no state_dict", "'model'", "dict")),
    ],
)
def test_unfit_foreign_parameters_are_refused(change, words, data, tmp_path):
    experiment = make_experiment(path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt", change)
    with pytest.raises(ModelError) as caught:
        extract(experiment, 5, None, data, tmp_path / "c")
    assert_sentence(str(caught.value), words)
    assert not (tmp_path / "c").exists()


def test_unreadable_foreign_files_are_refused(data, tmp_path):
    path = tmp_path / "theta.pt"
    experiment = make_experiment(path=str(path), checkpoints=[5])
    save_foreign(experiment, path)
    whole = path.read_bytes()
    torch.save(build_model(experiment.model, (1, 8, 8), 3), path)
    pickled = path.read_bytes()
    for content in (b"", b"weights", whole[: len(whole) // 2], pickled):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            extract(experiment, 5, None, data, tmp_path / "c")
        assert_sentence(str(caught.value), (path, "cannot be read as saved tensors", "torch.save"))


def test_another_number_of_classes_is_refused(data, tmp_path):
    experiment = make_experiment(path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt", classes=4)
    with pytest.raises(ModelError, match=r"'linear.weight' with shape \(4, 32\)"):
        extract(experiment, 5, None, data, tmp_path / "c")


# Trajectories that do not fit


def test_a_trajectory_of_something_else_is_refused(data, tmp_path):
    manifest = train(make_experiment(), data, tmp_path / "run")
    other = make_experiment({**CNN, "activation": "tanh"})
    with pytest.raises(StoreError) as caught:
        extract(other, 20, manifest, data, tmp_path / "c")
    assert_sentence(str(caught.value), ("another model",))
    data2 = write_random_data(tmp_path / "data.zarr", seed=1)
    with pytest.raises(StoreError, match="another data"):
        extract(make_experiment(), 20, manifest, data2, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"Iteration 21 .* 20 and 30"):
        extract(make_experiment(), 21, manifest, data, tmp_path / "c")
    with pytest.raises(ConfigError, match="no path and no trajectory"):
        extract(make_experiment(), 20, None, data, tmp_path / "c")


def test_a_damaged_checkpoint_is_an_error(data, tmp_path):
    experiment = make_experiment(path=str(tmp_path / "theta.pt"), checkpoints=[5])
    save_foreign(experiment, tmp_path / "theta.pt")
    extract(experiment, 5, None, data, tmp_path / "c")
    chunk = next(p for p in (tmp_path / "c" / "theta").rglob("*") if p.is_file() and p.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="damaged"):
        Checkpoint.load(tmp_path / "c")
