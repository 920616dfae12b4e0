"""Scores of ruggedness of networks, beside how they train, and whether the two rank alike.

Every network is to be trained at the same fraction of the limit of its own learning rate (`chosen: {by: limit}`): else
a score that follows the scale of the curvature tells only who was trained at how large a step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadscape.measures.discoveries import discoveries
from quadscape.measures.interpolation.declaration import SUMMARY
from quadscape.measures.job import Job
from quadscape.measures.members import MemberRun, by_cell, columns_of, family_head, read_members, target_loss
from quadscape.measures.ruggedness.declaration import RUGGEDNESS
from quadscape.measures.ruggedness_compared import statistics
from quadscape.measures.ruggedness_compared.declaration import (
    BUMP,
    NETWORKS,
    PRIMARY_OUTCOME,
    PRIMARY_SCORE,
    RANKS,
    RUNS,
    SCORES,
    WHOLE,
)
from quadscape.tables import Table

_RANKED = ("steps_to_target", "final_loss", "seed_spread")


def compute(job: Job) -> dict[str, Table]:
    """Compares the networks of a family.

    Args:
        job: Reads the trajectories, the scores of their checkpoints and of those that gave their learning rates, and
            the straight lines from start to end.

    Returns:
        The tables of `measure`.
    """
    members = read_members(job)
    layouts = [job.trajectory(member.place).stage.manifest["results"]["layout"] for member in members]
    bumps = [bump_of(job.table("interpolation", SUMMARY, member.place)) for member in members]
    cells = {job.family.members[member.place].run: member.cell for member in members}
    for member in members:
        cells |= dict.fromkeys(job.family.members[member.place].limits, member.cell)
    every = [job.table("ruggedness", RUGGEDNESS, which) for which in range(len(job.inputs["ruggedness"]))]
    measured = [(cells[str(table.attributes["run"])], table) for table in every]
    return measure(members, layouts, bumps, measured, job.options.target, family_head(job.family, members))


def bump_of(summary: Table) -> float:
    """The largest rise of the training loss from start to end, NaN where there is no line."""
    found = summary["bump"][summary["split"] == "train"]
    return float(found[0]) if len(found) else math.nan


def architecture(layout: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
    """Depth of a network, and whether it normalises.

    Args:
        layout: Its parameters with layer and shape, as in the results of a training.

    Returns:
        Number of layers with a matrix or a kernel, and whether a layer has nothing but vectors.
    """
    largest: dict[str, int] = {}
    for block in layout:
        largest[block["layer"]] = max(largest.get(block["layer"], 0), len(block["shape"]))
    return sum(size > 1 for size in largest.values()), any(size <= 1 for size in largest.values())


def measure(
    members: Sequence[MemberRun],
    layouts: Sequence[Sequence[Mapping[str, Any]]],
    bumps: Sequence[float],
    measured: Sequence[tuple[str, Table]],
    target: float,
    head: Mapping[str, Any],
) -> dict[str, Table]:
    """The comparison from what was read.

    Args:
        members: Members of the family.
        layouts: Parameters of each.
        bumps: Rise on the line from start to end, of each.
        measured: Tables `ruggedness` with the cell of their network.
        target: Training loss whose first reach is counted; 0: the median of the final training losses.
        head: Attributes of the tables.

    Returns:
        Tables `compared_runs`, `compared_networks`, `compared_scores` and `compared_ranks`. Attributes: target_loss;
        of the ranks half_width, what so many networks can tell from nothing.
    """
    target = target_loss(members, target)
    head = {**head, "target_loss": None if math.isnan(target) else target}
    runs = [_run(member, bump, target) for member, bump in zip(members, bumps, strict=True)]
    networks = [_network(cell, own, layouts, runs) for cell, own in by_cell(members).items()]
    scores = _scores([network["cell"] for network in networks], measured)
    ranks = _ranks(networks, scores)
    told = max((row["networks"] for row in ranks), default=0)
    return {
        "compared_runs": Table(RUNS, columns_of(runs, RUNS.all_columns()), head),
        "compared_networks": Table(NETWORKS, columns_of(networks, NETWORKS.all_columns()), head),
        "compared_scores": Table(SCORES, columns_of(scores, SCORES.all_columns()), head),
        "compared_ranks": Table(
            RANKS, columns_of(ranks, RANKS.all_columns()), {**head, "half_width": statistics.half_width(told)}
        ),
    }


def _run(member: MemberRun, bump: float, target: float) -> dict[str, Any]:
    steps = member.steps_to(target)
    final = member.final(0, 0)
    return {
        **member.member,
        "diverged_at": member.diverged,
        "learning_rate": member.learning_rate,
        "final_loss": final if math.isfinite(final) else math.inf,
        "steps_to_target": float(steps) if steps >= 0 else math.inf,
        "gap": member.final(1, 0) - final,
        "bump": bump,
    }


def _network(
    cell: str,
    own: Sequence[MemberRun],
    layouts: Sequence[Sequence[Mapping[str, Any]]],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    of = {name: np.array([runs[member.place][name] for member in own]) for name in ("final_loss", "steps_to_target")}
    means = {name: np.array([runs[member.place][name] for member in own]) for name in ("gap", "bump")}
    depth, normalised = architecture(layouts[own[0].place])
    return {
        "cell": cell,
        "members": len(own),
        "parameters": own[0].parameters,
        "depth": depth,
        "normalised": normalised,
        **{name: float(np.median(values)) for name, values in of.items()},
        "seed_spread": spread(of["final_loss"]),
        **{name: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else math.nan for name, v in means.items()},
    }


def spread(losses: np.ndarray) -> float:
    """Standard deviation of the logarithm of final losses.

    Args:
        losses: Of the seeds of a network, ∞ where it diverged, shape (n,).

    Returns:
        With n − 1; ∞ where one is infinite, NaN below two seeds or where a loss is 0.
    """
    if len(losses) < 2 or not (losses > 0).all():
        return math.nan
    return float(np.log(losses).std(ddof=1)) if np.isfinite(losses).all() else math.inf


def _scores(cells: Sequence[str], measured: Sequence[tuple[str, Table]]) -> list[dict[str, Any]]:
    """Means over the checkpoints of a network at one iteration."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for cell, table in measured:
        at = int(table.attributes["iteration"])
        for name, value, ranked in zip(table["score"].tolist(), table["value"], table["ranked"], strict=True):
            # What is below its own error in one of them says nothing of the mean.
            found.setdefault((cell, at, name), []).append(float(value) if ranked else math.nan)
    places = {cell: place for place, cell in enumerate(cells)}
    rows = [
        {"cell": cell, "score": name, "iteration": at, "value": float(np.mean(values)), "checkpoints": len(values)}
        for (cell, at, name), values in found.items()
    ]
    # Within a network and an iteration scores keep the order of their table.
    return sorted(rows, key=lambda row: (places[row["cell"]], row["iteration"]))


def _ranks(networks: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    values: dict[tuple[int, str], dict[str, float]] = {}
    for row in scores:
        values.setdefault((row["iteration"], row["score"]), {})[row["cell"]] = row["value"]
    covariates = np.array([[row["depth"] for row in networks], [row["normalised"] for row in networks]], dtype=float)
    outcomes = {name: np.array([row[name] for row in networks], dtype=float) for name in (*_RANKED, "gap")}
    rows: list[dict[str, Any]] = []
    for (at, score), of in values.items():
        x = np.array([of.get(row["cell"], math.nan) for row in networks])
        for outcome in _RANKED:
            is_primary = (score, at, outcome) == (PRIMARY_SCORE, 0, PRIMARY_OUTCOME)
            rows.append({"score": score, "iteration": at, "outcome": outcome, "primary": is_primary})
            rows[-1] |= rank_row(x, outcomes[outcome], covariates)
    bump = np.array([row["bump"] for row in networks], dtype=float)
    rows.append({"score": BUMP, "iteration": WHOLE, "outcome": "gap", "primary": False})
    rows[-1] |= rank_row(bump, outcomes["gap"], covariates)
    primary = np.array([row["primary"] for row in rows])
    rejected = discoveries(np.array([row["p_value"] for row in rows]), ~primary)
    return [{**row, "rejected": bool(found)} for row, found in zip(rows, rejected, strict=True)]


def rank_row(x: np.ndarray, y: np.ndarray, covariates: np.ndarray) -> dict[str, Any]:
    """How one score ranks with one outcome.

    Args:
        x: The score of every network, NaN where there is none, shape (n,).
        y: The outcome, of the same shape; ∞ ranks last.
        covariates: What is given, shape (k, n).

    Returns:
        Values of the columns of `compared_ranks` from networks to p_value.
    """
    there = ~(np.isnan(x) | np.isnan(y))
    x, y, covariates, count = x[there], y[there], covariates[:, there], int(np.count_nonzero(there))
    row: dict[str, Any] = {"networks": count, "p_value": statistics.p_value(x, y)}
    plain, partial = (math.nan,) * 3, (math.nan,) * 3
    # Without a correlation there is nothing to draw again.
    if math.isfinite(row["p_value"]):
        drawn = statistics.resamples(count)
        plain = statistics.percentiles(float(statistics.spearman(x, y)), statistics.spearman(x[drawn], y[drawn]), count)
        others = np.swapaxes(covariates[:, drawn], 0, 1)
        partial = statistics.percentiles(
            float(statistics.partial_spearman(x, y, covariates)),
            statistics.partial_spearman(x[drawn], y[drawn], others),
            count,
        )
    for name, (value, low, high) in (("correlation", plain), ("partial", partial)):
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row
