"""How well the last iterate of a run does on test data, which nothing else looks at.

Every choice (the schedule, the length of the run, which checkpoint) was made before, in the experiment file; nothing is
chosen by these numbers.
"""

import numpy as np

from quadscape.measures.curves.compute import wilson
from quadscape.measures.final_test.declaration import FINAL_TEST
from quadscape.measures.job import Job
from quadscape.tables import Table

_TEST = 2
"""Place of the test split in arrays of evaluations: train, validation, test."""


def measure(evaluation: np.ndarray, count: int, run: str) -> Table:
    """The last evaluation on the test split.

    Args:
        evaluation: Loss and accuracy, shape (T + 1, 3, 2), of train, validation and test; NaN where not evaluated.
        count: Number of test examples.
        run: Name of the run.

    Returns:
        A table under `FINAL_TEST` of one row, or of none where there is no test example or no evaluation.
    """
    values = np.asarray(evaluation, dtype=np.float64)[:, _TEST]
    taken = np.flatnonzero(np.isfinite(values).all(axis=1))[-1:] if count else np.empty(0, dtype=np.int64)
    loss, accuracy = values[taken].T
    low, high = wilson(accuracy, max(count, 1))
    columns = {
        "iteration": taken,
        "loss": loss,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
    }
    return Table(FINAL_TEST, columns, {"run": run, "count": int(count)})


def compute(job: Job) -> dict[str, Table]:
    """Test loss and accuracy at the end of one run.

    Args:
        job: Reads the trajectory.

    Returns:
        The table of `measure`.
    """
    return {"final_test": measure(job.course.evaluation, job.course.counts["test"], job.run)}
