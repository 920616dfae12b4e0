"""Curvature of single examples: closed forms, and an example that carries a direction."""

import base64
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measure_cases import PlainBasis, random_orthogonal
from problems import SMALL, dense_hessian, problem

from quadscape.findings import example_curvature as findings
from quadscape.measures.example_curvature import compute as example_curvature
from quadscape.measures.example_curvature.compute import Curvatures, half_share, participation, statistics
from quadscape.measures.example_curvature.declaration import PLACES, SHOWN
from quadscape.tables import Table

CLASSES = ("a", "b", "c", "d", "e")


def measured(objective: Any, theta: torch.Tensor, directions: int, **head: Any) -> dict[str, Table]:
    size = objective.size
    values, vectors = np.linalg.eigh(dense_hessian(objective, theta).numpy())
    basis = PlainBasis(values[::-1].copy(), vectors[:, ::-1].copy(), 1e-12)
    curvatures = Curvatures(objective, basis, theta.numpy(), directions)
    attributes = {"run": "a", "iteration": 40, "P": size, "N": objective.count, "weight_decay": 0.0} | head
    return curvatures.tables(curvatures.values(slice(None)), {"zero_threshold": 1e-12} | attributes, CLASSES)


def test_of_a_linear_model_it_is_the_closed_form() -> None:
    """Logistic regression: qᵀHₙq = qᵀGₙq = Varₚ(zₙ), with scores that move by zₙ along q."""
    objective, theta = problem(*SMALL["linear"])
    tables = measured(objective, theta, 6)
    table, images = tables["example_curvature"], objective.images.reshape(objective.count, -1)
    probabilities = torch.softmax(objective.outputs(theta), dim=1)
    vectors = np.linalg.eigh(dense_hessian(objective, theta).numpy())[1][:, ::-1]
    told = ~table["is_zero"]
    assert told.sum() >= 3
    for row, index in zip(np.flatnonzero(told), table["index"][told].tolist(), strict=True):
        q = objective.parameters(torch.from_numpy(vectors[:, index].copy()))
        weight, bias = (next(q[name] for name in q if name.endswith(end)) for end in ("weight", "bias"))
        moved = images @ weight.T + bias
        variance = (probabilities * moved**2).sum(1) - (probabilities * moved).sum(1) ** 2
        expected = statistics(np.zeros(objective.count), variance.numpy(), variance.numpy())
        for name in ("gauss_newton", "hessian", "participation", "half", "few", "participation_hessian"):
            assert table[name][row] == pytest.approx(expected[name], rel=1e-8), name
        assert table["hessian"][row] == pytest.approx(table["eigenvalue"][row], rel=1e-8, abs=1e-12)
        assert table["negative"][row] == 0
        assert table["top_example"][row] == int(variance.argmax())
        assert table["top_share"][row] == pytest.approx(float(variance.max() / variance.sum()))


@pytest.mark.parametrize("name", ["mlp", "cnn-group"])
def test_the_mean_of_the_examples_is_the_eigenvalue(name: str) -> None:
    objective, theta = problem(*SMALL[name])
    table = measured(objective, theta, 9)["example_curvature"]
    np.testing.assert_allclose(table["hessian"], table["eigenvalue"], atol=1e-12)
    assert (table["gauss_newton"] >= -1e-15).all()
    assert len(table) == 9


def test_one_example_that_carries_a_direction() -> None:
    generator = np.random.default_rng(0)
    others, count = 1e-6 * np.abs(generator.standard_normal(200)), 200
    curvature = others.copy()
    curvature[17] = 5.0
    found = statistics(curvature - others, -curvature, curvature)
    assert found["participation"] == pytest.approx(1 / count, rel=1e-3)
    assert found["half"] == pytest.approx(0.5 / count, rel=1e-3)
    assert found["few"] == pytest.approx(1, abs=1e-4)
    assert found["negative"] == 1
    assert found["opposed"] == 0


def test_a_pixel_that_one_image_has_is_a_direction_that_it_carries() -> None:
    objective, theta = problem(*SMALL["linear"])
    images = objective.images.clone()
    images[:, 0, 0, 0] = 0
    images[3, 0, 0, 0] = 2.0
    planted = objective.over(images, objective.labels)
    # The weights of that pixel come first of each class.
    basis = PlainBasis(np.linspace(2, 1, planted.size), np.eye(planted.size), 1e-12)
    head = {"run": "a", "iteration": 1, "P": planted.size, "N": planted.count, "zero_threshold": 1e-12}
    curvatures = Curvatures(planted, basis, theta.numpy(), planted.size)
    table = curvatures.tables(curvatures.values(slice(None)), head, CLASSES)["example_curvature"]
    weights = planted.layout.blocks[0]
    pixels = int(np.prod(planted.images.shape[1:]))
    assert weights.shape == (len(CLASSES), pixels)
    alone = table.where((table["index"] % pixels == 0) & (table["index"] < weights.stop))
    assert len(alone) == len(CLASSES)
    assert (alone["top_example"] == 3).all()
    np.testing.assert_allclose(alone["participation"], 1 / planted.count)
    np.testing.assert_allclose(alone["top_share"], 1)
    others = table.where(table["index"] % pixels == 1)
    assert (others["participation"] > 1.5 / planted.count).all()


def test_equal_gaussian_and_opposed_examples() -> None:
    equal = np.full(300, 2.0)
    found = statistics(np.tile([1.0, -1.0], 150), equal, equal)
    assert found["participation"] == found["participation_hessian"] == pytest.approx(1)
    assert found["half"] == pytest.approx(0.5)
    assert found["few"] == pytest.approx(0.01)
    slopes = np.zeros(300)
    slopes[:4] = [5, -5, 4, 0.1]
    assert statistics(slopes, equal, equal)["opposed"] == pytest.approx(1 - 4 / 14)
    gaussian = np.random.default_rng(1).standard_normal(200_000) ** 2
    assert participation(gaussian) == pytest.approx(1 / 3, rel=0.02)
    signed = np.array([3.0, -1.0, -1.0, 1.0])
    assert statistics(signed, signed, np.abs(signed))["negative"] == pytest.approx(2 / 6)


def test_nothing_to_share() -> None:
    nothing = np.zeros(5)
    found = statistics(nothing, nothing, nothing)
    assert math.isnan(found["participation"])
    assert math.isnan(found["opposed"])
    assert math.isnan(half_share(nothing))
    alone = statistics(np.ones(1), np.ones(1), np.ones(1))
    assert alone["participation"] == 1
    assert alone["opposed"] == 0


def test_the_images_shown_are_those_of_the_first_directions() -> None:
    objective, theta = problem(*SMALL["cnn-group"])
    tables = measured(objective, theta, 30)
    table, shown = tables["example_curvature"], tables["curvature_examples"]
    assert len(set(shown["index"].tolist())) == SHOWN
    assert len(shown) == SHOWN * min(PLACES, objective.count)
    assert (shown["sign"] == -1).sum() == min(PLACES, objective.count)
    assert shown["rank"].max() <= np.sort(table["rank"][table["sign"] > 0])[SHOWN - 2]
    outputs, labels = objective.outputs(theta), objective.labels
    shape = tuple(shown.attributes["image_shape"])
    assert shape == tuple(objective.images.shape[1:])
    for row in range(len(shown)):
        example = int(shown["example"][row])
        assert shown["label"][row] == CLASSES[int(labels[example])]
        assert shown["prediction"][row] == CLASSES[int(outputs[example].argmax())]
        assert shown["probability"][row] == pytest.approx(float(torch.softmax(outputs[example], 0)[labels[example]]))
        pixels = np.frombuffer(base64.b64decode(shown["image"][row]), dtype=np.uint8).reshape(shape)
        for channel in range(shape[0]):
            own = objective.images[:, channel]
            expected = (objective.images[example, channel] - own.min()) / (own.max() - own.min()) * 255
            assert np.abs(pixels[channel] - expected.numpy()).max() <= 0.5 + 1e-9
    first = shown.where(shown["index"] == shown["index"][0])
    assert (np.diff(first["share"]) <= 0).all()


def test_items_are_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, theta = problem(*SMALL["mlp"])
    basis = PlainBasis(np.linspace(1, -1, objective.size), random_orthogonal(objective.size, 0), 1e-9)
    checkpoint = SimpleNamespace(theta=theta.numpy(), classes=CLASSES)
    head = {"run": "a", "iteration": 1, "P": objective.size, "N": objective.count, "zero_threshold": 1e-9}
    job: Any = SimpleNamespace(
        objective=lambda split: objective,
        basis=basis,
        checkpoint=checkpoint,
        options=SimpleNamespace(directions=7),
        basis_head=head,
    )
    work = example_curvature.Work(job)
    assert work.items == 7
    parts = [work.measure(slice(start, start + 2)) for start in range(0, 7, 2)]
    values = np.concatenate([part["values"] for part in parts])
    assert work.layout() == {"values": values.shape[1:]}
    whole = example_curvature.compute(job)
    for name, table in work.tables({"values": values}).items():
        for column in table.columns:
            np.testing.assert_array_equal(table[column], whole[name][column])


def test_findings_answer_the_question() -> None:
    objective, theta = problem(*SMALL["cnn-group"])
    found = findings.statements({"example_curvature": [measured(objective, theta, 30)["example_curvature"]]})
    assert [one.primary for one in found] == [True] + [False] * (len(found) - 1)
    assert "of the examples" in found[0].claim
