import numpy as np
import pytest

from quadscape.measures.curves.compute import wilson
from quadscape.measures.final_test import compute as final_test


def test_the_last_evaluation_is_taken() -> None:
    evaluation = np.full((11, 3, 2), np.nan)
    evaluation[[0, 5, 10]] = [[[2.0, 0.1]] * 3, [[1.0, 0.5]] * 3, [[0.5, 0.9], [0.6, 0.8], [0.7, 0.75]]]
    table = final_test.measure(evaluation, 40, "a")
    assert table["iteration"].tolist() == [10]
    assert (table["loss"][0], table["accuracy"][0]) == (0.7, 0.75)
    low, high = wilson(np.array([0.75]), 40)
    assert (table["accuracy_low"][0], table["accuracy_high"][0]) == (pytest.approx(low[0]), pytest.approx(high[0]))
    assert table.attributes == {"run": "a", "count": 40}


@pytest.mark.parametrize(("count", "value"), [(0, 0.5), (10, np.nan)])
def test_without_test_data_there_is_no_row(count: int, value: float) -> None:
    assert len(final_test.measure(np.full((4, 3, 2), value), count, "a")) == 0
