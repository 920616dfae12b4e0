"""Autocorrelation of noise: batches of known overlap, planted memory, and iterates of a run."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quadscape.findings import noise_memory as findings
from quadscape.measures.members import columns_of
from quadscape.measures.noise_memory.compute import Window, memory_rows, overlaps, windows
from quadscape.measures.noise_memory.declaration import MEMORY
from quadscape.tables import Table

COUNT, SIZE = 120, 12


def batches_of(kind: str, number: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    if kind == "independent":
        return [generator.choice(COUNT, SIZE, replace=False) for _ in range(number)]
    found: list[np.ndarray] = []
    while len(found) < number:
        order = generator.permutation(COUNT)
        found += [order[k : k + SIZE] for k in range(0, COUNT, SIZE)]
    return found[:number]


def noise_of(batches: list[np.ndarray], gradients: np.ndarray) -> np.ndarray:
    return np.array([gradients[batch].mean(axis=0) for batch in batches]) - gradients.mean(axis=0)


def table_of(rows: list[dict[str, Any]]) -> Table:
    where = {"plateau": 0, "first": 0, "last": 99, "learning_rate": 0.1}
    return Table(MEMORY, columns_of([where | row for row in rows], MEMORY.all_columns()), {"run": "a"})


@pytest.mark.parametrize("kind", ["independent", "reshuffled"])
def test_gradients_that_do_not_change_are_predicted_by_what_batches_share(kind: str) -> None:
    gradients = np.random.default_rng(0).standard_normal((COUNT, 40))
    found = []
    for seed in range(60):
        batches = batches_of(kind, 40, seed)
        noise = noise_of(batches, gradients)
        found.append(memory_rows(noise @ noise.T, overlaps(batches, COUNT), np.arange(40)))
    measured = np.array([[row["correlation"] for row in rows] for rows in found])
    predicted = np.array([[row["predicted"] for row in rows] for rows in found])
    assert measured.shape == (60, 20)
    error = (measured - predicted).std(axis=0) / np.sqrt(len(found))
    assert (np.abs((measured - predicted).mean(axis=0)) < 4 * error).all()
    # An epoch has ten batches.
    expected = -np.maximum(0, 1 - np.arange(1, 21) / 10) / 9 if kind == "reshuffled" else np.zeros(20)
    np.testing.assert_allclose(predicted.mean(axis=0), expected, atol=0.02)
    if kind == "reshuffled":
        rows = table_of(found[0])
        assert rows["predicted"][0] < -0.08


def test_the_overlaps_of_batches() -> None:
    batches = [np.arange(6), np.arange(3, 9), np.arange(20, 32)]
    expected = overlaps(batches, COUNT)
    assert expected[0, 1] == pytest.approx(3 / 36 - 1 / COUNT)
    assert expected[0, 2] == pytest.approx(-1 / COUNT)
    assert expected[2, 2] == pytest.approx(1 / 12 - 1 / COUNT)


def test_planted_memory_is_found() -> None:
    generator = np.random.default_rng(1)
    noise = [generator.standard_normal(2000)]
    for _ in range(59):
        noise.append(0.8 * noise[-1] + 0.6 * generator.standard_normal(2000))
    products = np.array(noise) @ np.array(noise).T
    rows = memory_rows(products, overlaps(batches_of("independent", 60, 0), COUNT), np.arange(0, 120, 2))
    assert [row["lag"] for row in rows[:3]] == [2, 4, 6]
    assert [row["pairs"] for row in rows[:3]] == [59, 58, 57]
    for power, row in enumerate(rows[:6], start=1):
        assert row["correlation"] == pytest.approx(0.8**power, abs=0.05)
        assert row["correlation_low"] < row["correlation"] < row["correlation_high"]
    (found,) = findings.statements({"noise_memory": [table_of(rows)]})
    assert found.primary
    assert found.value == pytest.approx(0.8, abs=0.05)


def test_no_noise_has_no_correlation() -> None:
    assert memory_rows(np.zeros((8, 8)), overlaps(batches_of("independent", 8, 0), COUNT), np.arange(8)) == []
    whole = [np.arange(COUNT)] * 8
    assert memory_rows(np.eye(8), overlaps(whole, COUNT), np.arange(8)) == []
    assert memory_rows(np.eye(2), overlaps(batches_of("independent", 2, 0), COUNT), np.arange(2)) == []


def test_windows_are_even_and_end_with_the_plateau() -> None:
    rates = np.repeat([0.1, 0.01], [100, 60])
    # Every second iterate, and all near the drop.
    kept = np.unique([*range(0, 161, 2), *range(95, 106)])
    found = windows(kept, rates, 10)
    assert [window.learning_rate for window in found] == [0.1, 0.01]
    np.testing.assert_array_equal(found[0].iterations, np.arange(80, 100, 2))
    np.testing.assert_array_equal(found[1].iterations, np.arange(140, 160, 2))
    assert windows(np.array([0, 160]), rates, 10) == []
    assert windows(np.array([], dtype=int), np.array([]), 10) == []
    one = windows(np.arange(0, 50, 7), np.full(50, 0.1), 100)
    assert len(one) == 1
    np.testing.assert_array_equal(one[0].iterations, np.arange(0, 50, 7))


def test_items_are_iterates(monkeypatch: pytest.MonkeyPatch) -> None:
    from quadscape.measures.noise_memory import compute as module

    gradients = np.random.default_rng(0).standard_normal((COUNT, 5))
    batches = np.array(batches_of("reshuffled", 30, 0))
    job: Any = SimpleNamespace(options=SimpleNamespace(iterates=12), trajectory=lambda: trajectory)
    stage = SimpleNamespace(
        read=lambda name, iteration: np.append(batches[iteration], -1), manifest={"parameters": {"parameters": 5}}
    )
    trajectory = SimpleNamespace(stage=stage, diverged=None)
    work = module.Work(job)
    work.__dict__["windows"] = [Window(np.arange(4, 10), 0.1), Window(np.arange(18, 30), 0.01)]
    work.__dict__["_losses"] = SimpleNamespace(counts={"train": COUNT}, batch_norm=False)
    monkeypatch.setattr(work, "_noise", lambda t: gradients[batches[t]].mean(axis=0) - gradients.mean(axis=0))
    monkeypatch.setattr(module, "run_head", lambda *_: {"run": "a"})
    assert work.items == 18
    values = np.concatenate([work.measure(slice(start, start + 5))["noise"] for start in range(0, 18, 5)])
    assert values.shape == (18, *work.layout()["noise"])
    table = work.tables({"noise": values})["noise_memory"]
    assert table["plateau"].tolist() == [0] * 3 + [1] * 6
    own = values[6:]
    assert table["correlation"][3] == pytest.approx(
        np.diagonal(own @ own.T, 1).mean() / np.diagonal(own @ own.T).mean()
    )
    work.__dict__["windows"] = []
    assert not len(work.tables({"noise": np.empty((0, 5))})["noise_memory"])
