import numpy as np
import pytest

from quadscape.measures.curves import compute as curves

HEAD = {"run": "a"}


def run(steps: int, rates: np.ndarray, loss: np.ndarray) -> dict:
    evaluation = np.full((steps + 1, 3, 2), np.nan)
    evaluation[:: max(1, steps // 4)] = [[1.0, 0.5], [1.1, 0.4], [1.2, 0.3]]
    norms = np.ones((steps, 2)) * [3.0, 4.0]
    counts = {"train": 100, "validation": 50, "test": 50}
    return curves.measure(loss, rates, norms, ["conv1", "linear"], evaluation, counts, HEAD)


def test_windows_stay_on_their_side_of_a_drop() -> None:
    steps = 6000
    rates = np.where(np.arange(steps) < 3000, 0.1, 0.01)
    table = run(steps, rates, np.where(np.arange(steps) < 3000, 2.0, 1.0))["curves"]
    assert table.attributes["drops"] == [3000]
    assert set(np.unique(table["batch_loss"])) == {1.0, 2.0}
    np.testing.assert_array_equal(table["batch_loss"] > 1.5, table["iteration"] < 3000)
    np.testing.assert_array_equal(table["learning_rate"], rates[table["iteration"]])
    assert len(table) <= curves.ROWS + 2
    assert {2999, 3000} <= set(table["iteration"].tolist())


def test_a_cosine_has_no_drops() -> None:
    rates = 0.05 * (1 + np.cos(np.linspace(0, np.pi, 500, endpoint=False)))
    assert len(curves.find_drops(rates[:400])) == 0


def test_spread_and_mean_of_noise() -> None:
    loss = np.random.default_rng(0).uniform(0, 1, 4000)
    table = run(4000, np.full(4000, 0.1), loss)["curves"]
    inner = (table["iteration"] > 100) & (table["iteration"] < 3900)
    assert table["batch_loss"][inner].mean() == pytest.approx(loss.mean(), abs=0.02)
    assert table["batch_loss_q05"][inner].mean() == pytest.approx(0.05, abs=0.03)
    assert table["batch_loss_q95"][inner].mean() == pytest.approx(0.95, abs=0.03)


def test_evaluations_keep_only_what_was_evaluated() -> None:
    table = run(8, np.full(8, 0.1), np.ones(8))["evaluations"]
    assert sorted(set(table["iteration"].tolist())) == [0, 2, 4, 6, 8]
    # Test data are for `final_test` alone.
    assert set(table["split"]) == {"train", "validation"}
    held_out = table.where(table["split"] == "validation")
    np.testing.assert_allclose(held_out["accuracy"], 0.4)
    assert (held_out["accuracy_low"] < 0.4).all()
    assert (held_out["accuracy_high"] > 0.4).all()


def test_wilson_against_a_known_value() -> None:
    low, high = curves.wilson(np.array([0.0, 0.5]), 10)
    np.testing.assert_allclose(low, [0.0, 0.2366], atol=2e-4)
    np.testing.assert_allclose(high, [0.2775, 0.7634], atol=2e-4)


def test_gradient_norms_by_layer() -> None:
    table = run(50, np.full(50, 0.1), np.ones(50))["layer_gradients"]
    assert set(table["layer"]) == {"conv1", "linear"}
    np.testing.assert_allclose(table.where(table["layer"] == "linear")["norm"], 4.0)


def test_arrays_longer_than_the_run_are_cut() -> None:
    steps = 20
    rates, loss = np.full(steps + 1, 0.1), np.ones(steps + 1)
    rates[-1] = loss[-1] = np.nan
    tables = curves.measure(
        loss,
        rates,
        np.ones((steps + 1, 1)),
        ["a"],
        np.ones((steps + 1, 3, 2)),
        {"test": 7, "validation": 8, "train": 9},
        HEAD,
    )
    assert tables["curves"]["iteration"].max() == steps - 1
    assert np.isfinite(tables["curves"]["batch_loss"]).all()


def test_a_run_without_steps() -> None:
    tables = run(1, np.full(1, np.nan), np.full(1, np.nan))
    assert len(tables["curves"]) == 0
    assert len(tables["evaluations"]) == 4
