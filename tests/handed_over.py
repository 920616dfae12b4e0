"""Whether what a unit hands over to be stored stays as it is while the next unit is computed."""

from typing import Any

import numpy as np

from quadscape.stage.protocol import Arrays, StageStore, Task


def guard(task: Task) -> None:
    """Has a task fail that changes what it has handed over, or hands over parts of the same memory twice.

    Args:
        task: Changed in place.
    """
    compute = task.compute
    before: list[tuple[str, np.ndarray, bytes]] = []

    def checked(unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        arrays = compute(unit, plan, store)
        for name, values, content in before:
            assert values.tobytes() == content, f"{name} of the unit before {unit} was changed"
            for other, (_, more) in arrays.items():
                assert not np.may_share_memory(values, more), f"{name} and {other} of unit {unit} share memory"
        before[:] = [(name, values, values.tobytes()) for name, (_, values) in arrays.items()]
        return arrays

    task.compute = checked  # type: ignore[method-assign]
