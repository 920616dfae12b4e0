"""Findings on test data, which nothing else reads."""

from quadscape.findings import reading
from quadscape.findings.numbers import percent
from quadscape.findings.reading import Tables
from quadscape.findings.statement import Estimate, Statement, described

MEASURE = "final_test"
PRIMARY = ""


def statements(tables: Tables) -> list[Statement]:
    """Findings of all runs.

    Args:
        tables: `final_test`.

    Returns:
        Accuracy on test data at the end of each run.
    """
    found = []
    for run in reading.runs_of(tables, MEASURE):
        table = run.tables[0]
        accuracy, low, high = (float(table[name][0]) for name in ("accuracy", "accuracy_low", "accuracy_high"))
        found.append(
            described(
                f"At the end {percent(accuracy)} of the test examples, which nothing was chosen by, are classified "
                "correctly",
                Estimate(accuracy, low, high, "95 %, Wilson, over examples of the population", "1"),
                measure=MEASURE,
                run=run.run,
                iterations=(int(table["iteration"][0]),),
            )
        )
    return found
