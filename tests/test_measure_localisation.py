"""How few components a vector has, against closed forms and against random vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_cases import PlainBasis, random_orthogonal

from quadscape.measures.localisation import compute as localisation

HEAD = {"run": "a", "iteration": 4, "N": 10, "weight_decay": 0.0}


def measured(vectors: np.ndarray, values: np.ndarray | None = None, zero: float = 0.0, blocks=None) -> dict:
    size = len(vectors)
    values = np.linspace(2, 1, size) if values is None else values
    blocks = blocks or [("a", "weight", slice(0, size))]
    head = HEAD | {"P": size, "zero_threshold": zero}
    return localisation.measure(PlainBasis(values, vectors, zero), blocks, head)


def hadamard(power: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(len(matrix))


@pytest.mark.parametrize(("vectors", "participation"), [(np.eye(64), 1.0), (hadamard(6), 64.0)])
def test_one_component_and_all_of_them(vectors: np.ndarray, participation: float) -> None:
    tables = measured(vectors)
    np.testing.assert_allclose(tables["localisation"]["participation"], participation)
    # 64 components are no more than the hundred that count as the largest.
    np.testing.assert_allclose(tables["localisation"]["largest_share"], 1.0)
    # A whole basis spans everything, whichever it is: the diagonal of its projector is constant.
    counts = tables["localisation_bands"]["count"]
    assert counts.sum() == 64
    singles = counts == 1
    np.testing.assert_allclose(tables["localisation_bands"]["participation"][singles], participation)


def test_the_share_of_the_largest_components() -> None:
    vectors = hadamard(9)  # 512 equal components
    np.testing.assert_allclose(measured(vectors)["localisation"]["largest_share"], 100 / 512)


def test_a_band_does_not_depend_on_its_basis() -> None:
    size = 200
    vectors = random_orthogonal(size, 3)
    values = np.linspace(2, 1, size)
    before = measured(vectors, values)["localisation_bands"]
    start, stop = (int(edge) for edge in (before["first_rank"][-1] - 1, before["last_rank"][-1]))
    turned = vectors.copy()
    turned[:, start:stop] = vectors[:, start:stop] @ random_orthogonal(stop - start, 5)
    after = measured(turned, values)
    np.testing.assert_allclose(after["localisation_bands"]["participation"], before["participation"])
    single = measured(vectors, values)["localisation"]["participation"]
    assert not np.allclose(after["localisation"]["participation"], single)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.7, 0.95), place=st.integers(0, 12))
def test_a_planted_localised_eigenvector_stands_out(seed: int, share: float, place: int) -> None:
    """One of 500 has a known share of its norm in 40 weights of one layer; all others are random."""
    size, few, layer = 500, 40, slice(200, 300)
    generator = np.random.default_rng(seed)
    inside = 200 + generator.permutation(100)[:few]
    planted = np.full(size, np.sqrt((1 - share) / (size - few)))
    planted[inside] = np.sqrt(share / few)
    planted *= generator.choice([-1.0, 1.0], size)
    others = generator.standard_normal((size, size - 1))
    vectors = np.linalg.qr(np.column_stack([planted, others]))[0]
    vectors = np.insert(vectors[:, 1:], place, vectors[:, 0], axis=1)
    blocks = [("a", "weight", slice(0, 200)), ("b", "weight", layer), ("c", "weight", slice(300, 500))]
    tables = measured(vectors, blocks=blocks)
    found, head = tables["localisation"], tables["localisation"].attributes
    row = int(np.flatnonzero(found["index"] == place)[0])
    participation = 1 / (share**2 / few + (1 - share) ** 2 / (size - few))
    assert found["participation"][row] == pytest.approx(participation)
    # The hundred largest are the forty, and sixty of those that share the rest.
    assert found["largest_share"][row] == pytest.approx(share + 60 * (1 - share) / (size - few))
    layers = tables["localisation_layers"]
    own = layers.where((layers["index"] == place) & (layers["layer"] == "b"))
    assert own["share"][0] == pytest.approx(share + (100 - few) * (1 - share) / (size - few))
    ordinary = np.delete(found["participation"], row)
    # Random vectors spread by some 4 % about what chance says; the planted one is alone far below.
    assert ordinary.min() > 0.7 * head["chance_participation"] > 1.4 * participation


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_vectors_are_what_chance_says(seed: int) -> None:
    size = 400
    tables = measured(random_orthogonal(size, seed))
    head = tables["localisation"].attributes
    assert head["chance_participation"] == (size + 2) / 3
    # Means over 400 vectors, whose own spreads are some 10 % and 2 %.
    assert np.mean(1 / tables["localisation"]["participation"]) == pytest.approx(3 / (size + 2), rel=0.03)
    assert tables["localisation"]["largest_share"].mean() == pytest.approx(head["chance_share"], rel=0.02)
    bands = tables["localisation_bands"]
    wide = bands["count"] > 5
    np.testing.assert_allclose(bands["participation"][wide], bands["chance"][wide], rtol=0.25)


def test_layers_share_what_there_is() -> None:
    size = 60
    blocks = [("one", "weight", slice(0, 20)), ("one", "bias", slice(20, 25)), ("two", "weight", slice(25, 60))]
    tables = measured(np.eye(size), blocks=blocks)["localisation_layers"]
    by_vector = tables["share"].reshape(-1, 3)
    np.testing.assert_allclose(by_vector.sum(axis=1), 1.0)
    assert set(np.unique(by_vector)) == {0.0, 1.0}
    at = tables.where((tables["layer"] == "one") & (tables["kind"] == "bias"))
    np.testing.assert_array_equal(at["share"] == 1, (at["index"] >= 20) & (at["index"] < 25))
    np.testing.assert_allclose(at["chance"], 5 / size)


def test_the_numerical_zero_is_left_out_and_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 90
    vectors, values = random_orthogonal(size, 2), np.concatenate([np.linspace(3, 1, 30), np.zeros(40), -np.ones(20)])
    whole = measured(vectors, values, 1e-3)
    assert set(np.abs(whole["localisation"]["eigenvalue"]) > 1e-3) == {True}
    assert len(whole["localisation"]) == 50
    assert whole["localisation_bands"]["is_zero"].any()
    monkeypatch.setattr(localisation, "TILE_BYTES", 8 * size * 7)
    for name, table in measured(vectors, values, 1e-3).items():
        for column, found in table.columns.items():
            if found.dtype.kind == "f":
                np.testing.assert_allclose(found, whole[name][column], rtol=1e-12, err_msg=column)


def test_one_parameter_and_a_null_matrix() -> None:
    tables = measured(np.ones((1, 1)))
    assert tables["localisation"]["participation"].tolist() == [1.0]
    nothing = measured(np.eye(5), np.zeros(5), 1e-9)
    assert len(nothing["localisation"]) == len(nothing["localisation_layers"]) == 0
    assert nothing["localisation_bands"]["is_zero"].all()
