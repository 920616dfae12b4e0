"""Findings on whether a score of ruggedness tells which network is hard to train."""

import math

import numpy as np

from quadscape.findings import reading
from quadscape.findings.numbers import number
from quadscape.findings.reading import RunTables, Tables
from quadscape.findings.statement import Estimate, Statement, compared, described
from quadscape.measures.ruggedness_compared.declaration import BUMP, NETWORKS_TOLD, OUTCOMES
from quadscape.tables import Table

MEASURE = "ruggedness_compared"

PRIMARY = "start-curvature-predicts"
"""The finding declared beforehand; all others are exploratory."""

_INTERVAL = "95 %, bootstrap over networks"


def statements(tables: Tables) -> list[Statement]:
    """Findings of all families.

    Args:
        tables: `compared_ranks` and `compared_networks`.

    Returns:
        Statements, by family.
    """
    networks = {of.run: of.tables[0] for of in reading.runs_of(tables, "compared_networks")}
    found: list[Statement] = []
    for run in reading.runs_of(tables, "compared_ranks"):
        table = run.tables[0]
        if run.run in networks:
            found.append(_ends(run, networks[run.run]))
        found += [statement for row in np.flatnonzero(table["primary"]) for statement in _primary(run, table, int(row))]
        found += _many(run, table)
        found += [_bump(run, table, int(row)) for row in np.flatnonzero(table["score"] == BUMP)]
    return found


def _estimate(table: Table, row: int, name: str = "correlation") -> Estimate:
    count = int(table["networks"][row])
    return reading.estimate(table, name, row, f"{_INTERVAL}, n = {count}", f"over {count} networks: no interval")


def _size(count: int) -> str:
    return f": not tested at this size (n = {count})" if count < NETWORKS_TOLD else ""


def _ends(run: RunTables, networks: Table) -> Statement:
    losses = networks["final_loss"]
    finite = losses[np.isfinite(losses)]
    never = int(np.count_nonzero(np.isinf(networks["steps_to_target"])))
    text = f"{len(networks):,} networks, each trained at the same fraction of the limit of its own learning rate, end"
    if not len(finite):
        return described(f"{text} nowhere: all diverged", Estimate.exact(len(losses)), measure=MEASURE, run=run.run)
    text += f" at training losses from {number(float(finite.min()))} to {number(float(finite.max()))}"
    if len(finite) < len(losses):
        text += f"; {len(losses) - len(finite):,} diverged"
    if never:
        text += f"; {never:,} never reach {number(reading.attribute(networks, 'target_loss'))}"
    ratio = float(finite.max() / finite.min())
    return described(text, Estimate.alone(ratio, "largest over smallest, no interval"), measure=MEASURE, run=run.run)


def _primary(run: RunTables, table: Table, row: int) -> list[Statement]:
    estimate, partial = _estimate(table, row), _estimate(table, row, "partial")
    text = f"tr H/‖H‖ at the start has rank correlation {number(estimate.value)} with the final training loss"
    setting = {**run.setting, "networks": int(table["networks"][row])}
    found = [compared(PRIMARY, text, estimate, setting, measure=MEASURE, run=run.run)]
    if math.isfinite(estimate.value):
        found.append(described(text + _size(setting["networks"]), estimate, measure=MEASURE, run=run.run))
    if math.isfinite(partial.value):
        text = "Given depth and normalisation, tr H/‖H‖ at the start has rank correlation "
        text += f"{number(partial.value)} with the final training loss{_size(setting['networks'])}"
        found.append(described(text, partial, measure=MEASURE, run=run.run))
    return found


def _many(run: RunTables, table: Table) -> list[Statement]:
    """How many of all pairs are more than chance."""
    tested = ~table["primary"] & np.isfinite(table["p_value"])
    if not tested.any():
        return []
    rejected, count = int(np.count_nonzero(table["rejected"])), int(table["networks"][tested].max())
    text = f"Of {int(np.count_nonzero(tested)):,} exploratory rank correlations of scores with how networks train, "
    text += (
        f"{rejected:,} are more than chance (Benjamini–Hochberg at 10 %); {count} networks tell a correlation beyond "
    )
    text += f"±{number(reading.attribute(table, 'half_width'))} from none{_size(count)}"
    found = [described(text, Estimate.exact(rejected), measure=MEASURE, run=run.run)]
    if not rejected or count < NETWORKS_TOLD:
        return found
    best = int(np.argmax(np.where(table["rejected"], np.abs(table["correlation"]), -1)))
    estimate = _estimate(table, best)
    text = f"The strongest of them: {table['score'][best]} {_when(table, best)} ranks with the "
    text += (
        f"{OUTCOMES[str(table['outcome'][best])]} at {number(estimate.value)}, and given depth and normalisation at "
    )
    text += number(float(table["partial"][best]))
    return [*found, described(text, estimate, measure=MEASURE, run=run.run)]


def _when(table: Table, row: int) -> str:
    iteration = int(table["iteration"][row])
    return "at the start" if iteration == 0 else f"at iteration {iteration:,}"


def _bump(run: RunTables, table: Table, row: int) -> Statement:
    estimate, count = _estimate(table, row), int(table["networks"][row])
    if math.isnan(estimate.value):
        text = "No correlation of bumps on the straight line from start to end with the generalisation gap: too few "
        text += "networks, or all of them alike"
        return described(text, Estimate.alone(math.nan, f"n = {count}"), measure=MEASURE, run=run.run)
    text = "The bump of the training loss on the straight line from start to end has rank correlation "
    text += f"{number(estimate.value)} with the generalisation gap over {count} networks{_size(count)}"
    return described(text, estimate, measure=MEASURE, run=run.run)
