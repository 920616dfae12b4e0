"""The library of a notebook, against torch's and NumPy's own answers; what is refused; what importing it costs."""

import copy
import doctest
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import quadscape
from quadscape import library
from quadscape.errors import ConfigError, DataError, ModelError, QuadscapeError, StageError, StoreError
from results import ITERATIONS

COUNT = 70
"""More than one data chunk of the engine, and the second of another size."""

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


NETWORKS = {"mlp": (mlp, (4,)), "cnn": (cnn, (1, 6, 6))}


def problem(name: str, seed: int = 0, count: int = COUNT) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    build, shape = NETWORKS[name]
    return build(), torch.randn(count, *shape), torch.randint(3, (count,))


@pytest.fixture(scope="module")
def basis() -> library.DenseEigenbasis:
    return library.eigenbasis(library.objective(*problem("mlp")))


def by_autograd(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    double = copy.deepcopy(model).double()
    shapes = {name: p.shape for name, p in double.named_parameters()}

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        outputs = torch.func.functional_call(double, parameters, (inputs.double(),))
        return nn.functional.cross_entropy(outputs, labels)

    theta = torch.cat([p.detach().reshape(-1) for p in double.parameters()])
    return torch.autograd.functional.hessian(loss, theta).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("name", NETWORKS)
def test_the_hessian_is_autograds(name: str) -> None:
    model, inputs, labels = problem(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = library.objective(model, inputs, labels)
    found = library.hessian(loss)
    np.testing.assert_allclose(np.asarray(found), by_autograd(model, inputs, labels), rtol=0, atol=1e-14)
    assert found.matrix.dtype == np.float64
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def test_the_hessian_at_another_theta_and_in_float32() -> None:
    model, inputs, labels = problem("mlp")
    loss = library.objective(model, inputs, labels)
    moved = loss.theta + 0.1
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    expected = by_autograd(model, inputs, labels)
    np.testing.assert_allclose(library.hessian(loss, moved).matrix, expected, rtol=0, atol=1e-6)
    single = library.hessian(library.objective(model, inputs, labels, dtype=torch.float32))
    assert single.matrix.dtype == np.float32
    np.testing.assert_allclose(single.matrix, expected, rtol=0, atol=1e-6)


def test_the_eigenbasis_is_numpys(basis: library.DenseEigenbasis) -> None:
    matrix = by_autograd(*problem("mlp"))
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(basis.eigenvalues, values[::-1], rtol=0, atol=1e-13)
    assert abs(basis.vectors(0, 1)[:, 0] @ vectors[:, -1]) == pytest.approx(1)
    assert (basis.eigenvectors.max(axis=0) >= -basis.eigenvectors.min(axis=0)).all()
    assert 0 < basis.zero_threshold < 1e-12
    # Shifts of all scores alike (for each of five hidden units, and the bias) do not change a cross-entropy.
    assert basis.invariances["shift"]["generators"] == 6


def test_top_eigenpairs_are_the_first_of_the_basis(basis: library.DenseEigenbasis) -> None:
    top = library.top_eigenpairs(basis.objective, 3)
    np.testing.assert_allclose(top.eigenvalues, basis.eigenvalues[:3], rtol=1e-8)
    np.testing.assert_allclose(np.abs(top.eigenvectors.T @ basis.vectors(0, 3)), np.eye(3), atol=1e-6)


def test_a_batch_norm_is_frozen_at_the_statistics_over_all_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(), nn.Linear(3, 2))
    inputs, labels = torch.randn(12, 4), torch.randint(2, (12,))
    loss = library.objective(model, inputs, labels)
    fresh = copy.deepcopy(model)
    fresh[3].eval()
    expected = nn.functional.cross_entropy(fresh(inputs), labels)
    assert loss.loss(loss.theta) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(model[1].running_mean.abs().max()) == 0
    outputs = loss.outputs(loss.theta)
    # Not bit by bit: products of one row may be summed otherwise than those of many.
    torch.testing.assert_close(loss.on(inputs[:1], labels[:1]).outputs(loss.theta), outputs[:1], rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Measures and figures


def test_line_searches(basis: library.DenseEigenbasis) -> None:
    options = {"directions": 4, "points": 11}
    tables = library.measure("line_search", basis, **options)
    lines, fits = tables["line_search"], tables["line_fit"]
    assert len(fits) == 4
    assert set(lines["split"]) == {"train"}
    np.testing.assert_allclose(fits["curvature"], fits["eigenvalue"], rtol=0, atol=1e-12)
    first = lines.where(lines["index"] == 0)
    loss, theta, t = basis.objective, basis.theta, first["t"][-1]
    rise = loss.loss(theta + t * basis.vectors(0, 1)[:, 0]) - loss.loss(theta)
    assert first["difference"][-1] == pytest.approx(rise, rel=1e-9)
    assert np.isnan(fits["validation_gradient"]).all()
    _, inputs, labels = problem("mlp", seed=1, count=9)
    both = library.measure("line_search", basis, validation=loss.on(inputs, labels), **options)
    assert both["line_search"].attributes["validation_N"] == 9
    validated = both["line_search"]
    again = validated.where(validated["split"] == "train")
    np.testing.assert_array_equal(again["difference"], lines["difference"])
    one, two = (len(library.draw("line_searches", *given).axes) for given in ((tables,), (tables, both)))
    assert two == 2 * one > 0


def test_every_measure_of_a_basis_and_its_figures(basis: library.DenseEigenbasis) -> None:
    tables: dict[str, Any] = {}
    for name in ("spectrum", "gradients", "localisation"):
        tables |= library.measure(name, basis)
    tables |= library.measure("density", basis, vectors=2, steps=8)
    tables |= library.measure("line_search", basis, directions=2, points=np.int64(9))
    tables |= library.measure("overlap", basis, basis)
    for name in ("spectrum", "gradient_cosine", "spectral_density", "eigenvector_localisation", "quadratic_radius"):
        assert library.draw(name, tables).axes
    assert library.draw("eigenvector_overlap", tables).axes
    assert len(library.draw("spectrum", tables["spectrum"], tables).axes) == 2
    spectrum = tables["spectrum"]
    assert spectrum.attributes["run"] == "network"
    assert spectrum.attributes["P"] == basis.size
    assert spectrum.attributes["trace"] == pytest.approx(np.trace(by_autograd(*problem("mlp"))))


def test_defaults_are_clipped_to_the_number_of_parameters(
    basis: library.DenseEigenbasis, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[Any] = []
    monkeypatch.setattr(library.measuring.overlap, "measure", lambda *given, **_: options.append(given[2]))
    library.measure("overlap", basis, basis)
    library.measure("overlap", basis, basis, bands=7)
    assert options == [basis.size, 7]


# ---------------------------------------------------------------------------------------------------------------------
# Refused


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.dropout(x))


class Kept(nn.Module):
    """Keeps what it made of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scores: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scores = self.linear(x)
        return self.scores


def changed(model: nn.Module, change: Any) -> nn.Module:
    with torch.no_grad():
        change(model)
    return model


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0, 1, 2])
LINEAR = nn.Linear(4, 3)
USED = Kept()
USED(X)

MISTAKES: dict[str, tuple[type[QuadscapeError], str, dict[str, Any]]] = {
    "nan": (ModelError, "15 of the 15 parameters of the network are not finite", {
        "model": changed(nn.Linear(4, 3), lambda m: [p.fill_(float("nan")) for p in m.parameters()])}),
    "no module": (ModelError, "The network is a function; it must be a torch.nn.Module", {"model": lambda x: x}),
    "frozen": (ModelError, "'weight' does not require gradients", {
        "model": changed(nn.Linear(4, 3), lambda m: m.weight.requires_grad_(False))}),
    "meta": (ModelError, "The network is on meta; it must be on one device", {"model": nn.Linear(4, 3, device="meta")}),
    "lazy": (ModelError, "lazy module", {"model": nn.LazyLinear(3)}),
    "labels' shape": (DataError, r"shape \(6, 1\) and are int64; they must be class indices", {"labels": Y[:, None]}),
    "labels' dtype": (DataError, "are float32; they must be class indices", {"labels": Y.float()}),
    "labels' number": (DataError, r"integers of shape \(6,\), one for each input", {"labels": Y[:4]}),
    "label of no class": (DataError, "from 0 to 5, but .* 3 classes; valid are 0 to 2", {"labels": Y + torch.tensor(
        [0, 0, 0, 0, 0, 3])}),
    "integers": (DataError, "inputs are int64; they must be real numbers", {"inputs": X.long()}),
    "one number each": (DataError, r"inputs have shape \(6,\)", {"inputs": X[:, 0]}),
    "infinite": (DataError, "inputs are not finite", {"inputs": X / 0}),
    "text": (DataError, "must be tensors or arrays of numbers", {"inputs": ["a"] * 6}),
    "wrong width": (ModelError, r"failed on images of shape \(4, 3\) in float64", {"inputs": X[:, :3]}),
    "one score": (ModelError, r"outputs of shape \(4, 2, 3\)", {"inputs": torch.stack([X, X], 1)}),
    "dropout while evaluated": (ModelError, "different outputs for the same images", {"model": Random()}),
    "batch norm without statistics": (ModelError, "'1' is a BatchNorm without tracked statistics", {
        "model": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))}),
    "kept": (ModelError, "cannot be copied .*compute that anew", {"model": USED}),
    "loss": (ConfigError, "loss is 'mse'; valid are cross_entropy, squared_error", {"loss": "mse"}),
    "dtype": (ConfigError, "dtype is 'float16'; valid are float32, float64", {"dtype": torch.float16}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_refused_is_told_in_one_sentence(mistake: str) -> None:
    kind, pattern, given = MISTAKES[mistake]
    with pytest.raises(kind, match=pattern) as error:
        library.objective(**{"model": LINEAR, "inputs": X, "labels": Y} | given)
    assert re.fullmatch(r"[^\n]+\.", str(error.value))


def test_what_measures_and_figures_refuse(basis: library.DenseEigenbasis, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = basis.objective
    with pytest.raises(ConfigError, match=r"no measure 'spektrum'; the measures here are spectrum, line_search"):
        library.measure("spektrum", basis)
    with pytest.raises(ConfigError, match="'curves' is measured of results on disk"):
        library.measure("curves", basis)
    with pytest.raises(ConfigError, match="'line_search' has no option 'point'; its options are directions, points"):
        library.measure("line_search", basis, point=9)
    with pytest.raises(ConfigError, match=r"measures\.line_search\.points.*odd"):
        library.measure("line_search", basis, points=10)
    with pytest.raises(ConfigError, match=r"directions is 99, but the network has only 43 parameters"):
        library.measure("line_search", basis, directions=99)
    with pytest.raises(ConfigError, match="'spectrum' takes no validation, which belongs to 'line_search'"):
        library.measure("spectrum", basis, validation=loss)
    with pytest.raises(ConfigError, match="validation is no objective of the same network"):
        library.measure("line_search", basis, validation=loss.loss)
    with pytest.raises(ConfigError, match=r"of what quadscape\.objective made, .* not of the class Objective"):
        library.measure("density", loss.part(slice(3)))
    with pytest.raises(ConfigError, match="'spectrum' is measured of an eigenbasis"):
        library.measure("spectrum", loss)
    with pytest.raises(ConfigError, match="compares two eigenbases of one network"):
        library.measure("overlap", basis)
    with pytest.raises(ConfigError, match="reads the table 'line_search' of the measure 'line_search'"):
        library.draw("line_searches", library.measure("spectrum", basis))
    with pytest.raises(
        ConfigError, match="no figure 'spectra'; the figures are learning_curves, layer_gradients, spectrum"
    ):
        library.draw("spectra")
    with pytest.raises(ModelError, match=r"θ has shape \(2,\); it must have one number for each parameter, \(43,\)"):
        library.hessian(loss, np.zeros(2))
    with pytest.raises(ModelError, match="43 of the 43 numbers of θ are not finite"):
        library.eigenbasis(loss, np.full(43, np.nan))
    with pytest.raises(ModelError, match="A Linear is no objective"):
        library.hessian(LINEAR)
    with pytest.raises(ModelError, match="valid are 1 to 43 in all"):
        library.top_eigenpairs(loss, 44)
    with pytest.raises(DataError, match=r"has shape \(3,\); valid here is \(4,\)"):
        loss.on(X[:, :3], Y)
    monkeypatch.setattr(library.curvature, "memory_available", lambda: 10_000)
    with pytest.raises(StageError, match=r"of 43 parameters in float64 takes 14\.8 kB of memory, of which 10 kB"):
        library.hessian(loss)


def test_parameters_without_effect_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    model.unused = nn.Linear(2, 2)
    model.forward = model[0].forward
    with pytest.warns(UserWarning, match=r"unused\.weight, unused\.bias have no effect") as told:
        library.objective(model, X, Y)
    assert told[0].filename == __file__


def test_torch_is_left_as_the_user_had_set_it() -> None:
    mode = torch.get_deterministic_debug_mode()
    torch.set_default_dtype(torch.float64)
    torch.set_deterministic_debug_mode("warn")
    try:
        with torch.inference_mode():
            library.objective(nn.Linear(4, 3), X.double() + 1, Y)
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_deterministic_debug_mode(mode)


# ---------------------------------------------------------------------------------------------------------------------
# Results on disk


def test_finished_results_are_opened(made_results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = quadscape.open_results(made_results / "results" / "small")
    monkeypatch.chdir(tmp_path)
    assert results.runs == ["a"]
    assert results.iterations("a") == list(ITERATIONS)
    assert str(ITERATIONS[-1]) in repr(results)
    last = ITERATIONS[-1]
    checkpoint, basis = results.checkpoint("a", last), results.eigenbasis("a", last)
    np.testing.assert_array_equal(results.trajectory("a").theta(last), checkpoint.theta)
    loss = results.objective("a", last)
    np.testing.assert_allclose(library.hessian(loss).matrix, results.hessian("a", last).dense(), rtol=0, atol=1e-13)
    assert basis.size == loss.size == len(checkpoint.theta)
    tables = results.tables("spectrum")
    assert [table.attributes["iteration"] for table in tables["spectrum"]] == list(ITERATIONS)
    assert len(quadscape.draw("spectrum", tables).axes) == len(ITERATIONS)
    with pytest.raises(ConfigError, match=r"no run 'b' in .*; the runs are a\."):
        results.trajectory("b")
    with pytest.raises(ConfigError, match="no checkpoint at iteration 7; its checkpoints are at 0, 40"):
        results.eigenbasis("a", 7)
    with pytest.raises(ConfigError, match="no measure 'spektrum'"):
        results.tables("spektrum")
    with pytest.raises(StoreError, match="There are no results in"):
        quadscape.open_results(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Importing, and examples


def test_importing_is_lazy_and_fast() -> None:
    code = (
        "import resource, sys; before = resource.getrusage(resource.RUSAGE_SELF).ru_utime; import quadscape; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before); "
        "print({'torch', 'numpy', 'zarr', 'scipy', 'pydantic', 'matplotlib'} & set(sys.modules)); "
        "print(sorted(set(quadscape.__all__) - set(dir(quadscape)))); "
        "print(len(quadscape.measures.MEASURES) > 5, len(quadscape.figures.FIGURES) > 5)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules, missing, packages = found.stdout.splitlines()
    assert float(seconds) <= 0.3
    assert (modules, missing, packages) == ("set()", "[]", "True True")


def test_every_name_is_there() -> None:
    for name in quadscape.__all__:
        assert getattr(quadscape, name) is not None
    with pytest.raises(AttributeError, match="module 'quadscape' has no attribute 'hesian'"):
        _ = quadscape.hesian
    assert quadscape.Experiment().name == "cifar10"


OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_examples_in_docstrings() -> None:
    runner, names = doctest.DocTestRunner(optionflags=OPTIONS), {**vars(library), "np": np}
    modules = (library, library.loss, library.curvature, library.measuring)
    found = [test for module in modules for test in doctest.DocTestFinder().find(module) if test.examples]
    found.sort(key=lambda test: test.name != "quadscape.library")
    for test in found:  # those of functions go on from the module's
        test.globs = names
        runner.run(test, clear_globs=False)
    assert {test.name.rpartition(".")[2] for test in found} >= {"hessian", "eigenbasis", "measure", "draw"}
    assert runner.summarize(verbose=False).failed == 0


def test_the_page_is_what_its_code_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=OPTIONS)
    assert found.attempted > 10
    assert found.failed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library_lines.png", "library_spectrum.png"]


BASIS = """\
import torch, quadscape
model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 3))
inputs, labels = torch.randn(100, 6), torch.randint(3, (100,))
loss = quadscape.objective(model, inputs, labels)
hessian = quadscape.hessian(loss)
basis = quadscape.eigenbasis(hessian)
print(hessian.matrix.shape, basis.eigenvectors.shape, basis.eigenvalues[:3])
"""

FIGURE = """\
lines = quadscape.measure("line_search", basis, directions=8)
print(lines["line_fit"]["form"])
figure = quadscape.draw("spectrum", quadscape.measure("spectrum", basis))
figure.savefig("spectrum.png")
"""


def test_a_few_lines_are_enough(tmp_path: Path) -> None:
    assert len(BASIS.splitlines()) <= 10
    assert len(FIGURE.splitlines()) <= 5
    root = Path(__file__).parents[1]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    found = subprocess.run(
        [sys.executable, "-c", BASIS + FIGURE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 60
    assert found.stdout.startswith("(53, 53) (53, 53) [")
    assert found.stderr == ""
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000
