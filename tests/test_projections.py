"""Tiled products with eigenbases against dense ones and closed forms, their reads, and their memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from fork_server import call, start_server
from hypothesis import given
from hypothesis import strategies as st
from measure_cases import PlainBasis, random_orthogonal

from quadscape.curvature.eigensolver import basis_specs
from quadscape.curvature.projections import _PIECE_BYTES, ALIGNMENT, displacements, overlap_tiles, project
from quadscape.curvature.stored_basis import StoredBasis
from quadscape.errors import StoreError
from quadscape.memory_limits import peak_memory
from quadscape.numerics import apply_numerics
from quadscape.stage.protocol import StageStore
from quadscape.store import write_store

# From the smallest tiles that there are, through ragged ones, to everything at once.
MEMORIES = st.sampled_from([0, 20_000, 50_000, 120_000, 300_000, None])
SIZES = st.integers(1, 90)
DTYPES = st.sampled_from(["float32", "float64"])


class CountingBasis(PlainBasis):
    """Counts how often each vector is read, and checks that reads begin and end where chunks do."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(np.zeros(vectors.shape[1]), vectors)
        self.reads: Counter[int] = Counter()

    def vectors(self, start: int, stop: int) -> np.ndarray:
        if stop > start:
            assert start % ALIGNMENT == 0
            assert stop % ALIGNMENT == 0 or stop == len(self.eigenvalues)
        self.reads.update(range(start, stop))
        return super().vectors(start, stop)


def householder(direction: np.ndarray) -> np.ndarray:
    """I − 2uuᵀ."""
    unit = direction / np.linalg.norm(direction)
    return np.eye(len(unit)) - 2 * np.outer(unit, unit)


def assembled(tiles, shape: tuple[int, int]) -> np.ndarray:
    """The whole product; entries in no tile are NaN, entries in two an error."""
    whole = np.full(shape, np.nan)
    for tile in tiles:
        part = whole[tile.rows, tile.columns]
        assert part.shape == tuple(tile.values.shape)
        assert np.isnan(part).all()
        part[...] = tile.values.numpy()
    return whole


@given(size=SIZES, memory=MEMORIES)
def test_overlap_of_two_reflections_has_a_closed_form(size, memory):
    u, v = np.random.default_rng(size).standard_normal((2, size))
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    first, second = (PlainBasis(np.zeros(size), householder(direction)) for direction in (u, v))
    found = assembled(overlap_tiles(first, second, memory=memory), (size, size))
    expected = np.eye(size) - 2 * np.outer(u, u) - 2 * np.outer(v, v) + 4 * (u @ v) * np.outer(u, v)
    np.testing.assert_allclose(found, expected, atol=1e-14)


@given(size=SIZES, memory=MEMORIES, first=DTYPES, second=DTYPES)
def test_overlap_is_the_dense_product_in_the_wider_dtype(size, memory, first, second):
    generator = np.random.default_rng(size)
    a, b = (generator.standard_normal((size, size)).astype(dtype) for dtype in (first, second))
    tiles = list(overlap_tiles(PlainBasis(np.zeros(size), a), PlainBasis(np.zeros(size), b), memory=memory))
    expected = a.astype("float64").T @ b.astype("float64")
    wider = np.promote_types(first, second)
    assert all(tile.values.numpy().dtype == wider for tile in tiles)
    tolerance = 8 * np.finfo(wider).eps * size
    np.testing.assert_allclose(assembled(tiles, (size, size)), expected, atol=tolerance)


@given(size=SIZES, memory=MEMORIES, dtype=DTYPES)
def test_a_basis_with_itself_is_the_identity_on_and_below_the_diagonal(size, memory, dtype):
    q = random_orthogonal(size, size).astype(dtype)
    found = assembled(overlap_tiles(PlainBasis(np.zeros(size), q), memory=memory), (size, size))
    lower = np.tril_indices(size)
    np.testing.assert_allclose(found[lower], np.eye(size)[lower], atol=20 * np.finfo(dtype).eps)
    assert not np.isnan(found[lower]).any()


@given(size=SIZES, count=st.integers(1, 70), memory=MEMORIES, rows=DTYPES, columns=DTYPES, tensor=st.booleans())
def test_projections_are_the_dense_product(size, count, memory, rows, columns, tensor):
    generator = np.random.default_rng(size * count)
    x, q = generator.standard_normal((count, size)).astype(rows), random_orthogonal(size, size).astype(columns)
    asked = []

    def read(part: slice):
        asked.extend(range(part.start, part.stop))
        return torch.from_numpy(x[part]) if tensor else x[part]

    tiles = list(project(read, count, PlainBasis(np.zeros(size), q), memory=memory))
    assert asked == list(range(count))  # once each, in order
    wider = np.promote_types(rows, columns)
    assert all(tile.values.numpy().dtype == wider for tile in tiles)
    expected = x.astype("float64") @ q.astype("float64")
    np.testing.assert_allclose(assembled(tiles, (count, size)), expected, atol=8 * np.finfo(wider).eps * size)


def test_nothing_times_a_basis_is_nothing():
    basis = PlainBasis(np.zeros(3), np.eye(3))
    assert list(project(lambda part: np.empty((0, 3)), 0, basis)) == []


@given(size=st.integers(1, 40), kept=st.sets(st.integers(0, 60), min_size=1))
def test_displacements_are_subtracted_before_anything_is_rounded(size, kept):
    steps = np.array(sorted(kept))
    q = random_orthogonal(size, 1)
    reference = 1e3 * np.random.default_rng(2).standard_normal(size)
    theta = np.full((61, size), np.nan)
    theta[steps] = reference + 1e-6 * steps[:, None] * q[:, 0]
    rows = displacements(lambda part: theta[part], steps, reference)
    basis = PlainBasis(np.zeros(size), q.astype("float32"))
    found = assembled(project(rows, len(steps), basis, memory=0), (len(steps), size))
    expected = np.zeros((len(steps), size))
    expected[:, 0] = 1e-6 * steps
    np.testing.assert_allclose(found, expected, atol=2e-10)


def test_many_displacements_are_read_in_pieces():
    size, steps = 70_000, np.array([3, 4, 5, 6, 7, 8, 9, 20, 40])
    asked = []

    def theta(part: slice) -> np.ndarray:
        asked.append(list(range(part.start, part.stop, part.step)))
        return np.array(asked[-1], dtype="float64")[:, None] * np.ones(size)

    rows = displacements(theta, steps, np.ones(size))
    np.testing.assert_array_equal(rows(slice(0, 9))[:, 5], steps - 1)
    assert asked == [[3, 4, 5], [6, 7, 8], [9], [20], [40]]
    np.testing.assert_array_equal(rows(slice(8, 9))[:, 0], [39])


def test_an_iterate_that_was_not_kept_is_told():
    theta = np.ones((5, 3))
    theta[2] = np.nan
    with pytest.raises(ValueError, match="θ of iteration 2 is not a number"):
        displacements(lambda part: theta[part], np.array([0, 1, 2, 4]), np.zeros(3))(slice(0, 4))


@pytest.mark.parametrize("memory", [0, 150_000, None])
@pytest.mark.parametrize("size", [1, 16, 100, 200])
def test_no_vector_is_read_more_often_than_memory_forces(size, memory):
    first, second, one = (CountingBasis(random_orthogonal(size, seed)) for seed in range(3))
    batches = len({tile.rows.start for tile in overlap_tiles(first, second, memory=memory)})
    assert set(first.reads.values()) == {1}
    assert set(second.reads.values()) == {batches}
    assert first.reads.keys() == second.reads.keys() == set(range(size))
    assert batches == (-(-size // ALIGNMENT) if memory == 0 else 1) or memory
    # Alone: once as rows, and as columns once for each batch below.
    starts = sorted({tile.rows.start for tile in overlap_tiles(one, memory=memory)})
    assert one.reads == {i: 1 + sum(start > i for start in starts) for i in range(size)}
    assert sum(one.reads.values()) <= size * (len(starts) + 1) / 2 + ALIGNMENT * len(starts)


def test_memory_saves_reads():
    size, reads = 300, []
    for memory in (0, 400_000, 800_000, None):
        second = CountingBasis(np.eye(size))
        list(overlap_tiles(PlainBasis(np.zeros(size), np.eye(size)), second, memory=memory))
        reads.append(second.reads[0])
    assert reads == sorted(reads, reverse=True)
    assert (reads[0], reads[-1]) == (19, 1)


def test_tiles_begin_where_stored_chunks_do():
    _, vectors = basis_specs(64, "float32", 32)
    assert vectors.chunks[1] == ALIGNMENT


def test_damage_found_while_reading_ahead_is_told():
    class Damaged(PlainBasis):
        def vectors(self, start: int, stop: int) -> np.ndarray:
            if stop > 32:
                raise StoreError("Array 'eigenvectors' is damaged")
            return super().vectors(start, stop)

    tiles = project(lambda part: np.ones((1, 64)), 1, Damaged(np.zeros(64), np.eye(64)), memory=0)
    assert next(tiles).columns == slice(0, 16)
    assert next(tiles).columns == slice(16, 32)
    with pytest.raises(StoreError, match="damaged"):
        next(tiles)


def measure(folder: Path, kind: str, memory: int) -> tuple[int, float]:
    """Bytes that the products of stored bases take, and the sum of squares of what they are."""
    apply_numerics(1)
    first, second = (StoredBasis(StageStore(folder / name)) for name in ("first", "second"))
    size = len(first.eigenvalues)
    _ = torch.ones(64, 64) @ torch.from_numpy(first.vectors(0, 16)[:64])  # warms up
    before = psutil.Process().memory_info().rss
    if kind == "overlap":
        tiles = overlap_tiles(first, second, memory=memory)
    else:
        tiles = project(lambda part: np.ones((part.stop - part.start, size)), 1000, first, memory=memory)
    total = 0.0
    for tile in tiles:
        total += float(tile.values.double().square().sum())
    return peak_memory() - before, total


@pytest.fixture(scope="module")
def server() -> None:
    start_server("test_projections")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    size, folder = 3501, tmp_path_factory.mktemp("stores")
    for seed, name in enumerate(("first", "second")):
        values, vectors = basis_specs(size, "float32", 512)
        u = np.random.default_rng(seed).standard_normal(size).astype("float32")
        u /= np.linalg.norm(u)
        q = np.eye(size, dtype="float32") - 2 * np.outer(u, u)
        write_store(folder / name / "store.zarr", [(values, np.zeros(size)), (vectors, q)], {})
    return folder, size


@pytest.mark.parametrize("kind", ["overlap", "project"])
def test_memory_is_that_of_tiles(server, stores, kind):
    folder, size = stores
    memory = 12 << 20  # a matrix has 49 MB, 1000 rows in float64 28
    used, total = call(measure, folder, kind, memory)
    # The rest is what Zarr copies, and its threads keep, of pieces on their way.
    assert 0.5 * memory < used < 1.1 * memory + 12 * _PIECE_BYTES
    # |QₐᵀQ_b|² = P; a vector of ones has |1ᵀQ|² = P, and there are 1000 of them.
    expected = 1000 * size if kind == "project" else size
    assert total == pytest.approx(expected, rel=1e-4)
