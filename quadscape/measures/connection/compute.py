"""The loss along the straight line between the ends of two runs (Frankle et al., arXiv 1912.05671).

A barrier may be one of the numbering of hidden units alone, so the line is also taken after these are aligned
(Entezari et al., arXiv 2110.06296; Ainsworth et al., arXiv 2209.04836).
"""

from typing import Any, NamedTuple

import numpy as np

from quadscape.config.model import model_section
from quadscape.errors import ConfigError
from quadscape.measures.connection.declaration import CONNECTION, CONNECTION_SUMMARY
from quadscape.measures.interpolation.compute import Evaluate, empty, floor_of, measure
from quadscape.measures.job import Job
from quadscape.measures.run_losses import RunLosses, run_head
from quadscape.tables import Table, TableSchema

_SHARED = ("model", "loss", "data")


def compute(job: Job) -> dict[str, Table]:
    """The line between the ends of a pair of runs.

    Args:
        job: Of a pair; reads data and trajectories.

    Returns:
        Tables `connection` and `connection_summary`, empty where a run diverged. Attributes as those of
        `interpolation`, of the first run, and runs, the names of both; alignment, what was done, or why nothing was;
        and where hidden units were aligned units, their number; moved, how many are at another place; and
        distance_aligned.

    Raises:
        ConfigError: The runs differ in network, loss or data, so that no line has one loss.
    """
    both = [job.trajectory(which) for which in (0, 1)]
    names = [member.run for member in job.family.members]
    given: list[dict[str, Any]] = [trajectory.stage.manifest["parameters"] for trajectory in both]
    for key in _SHARED:
        if given[0][key] != given[1][key]:
            raise ConfigError(
                f"The runs of the pair '{names[0]}', '{names[1]}' have another {key} each, so that no loss is defined "
                "between their ends; pair runs of one network, loss and data set."
            )
    losses = RunLosses(job)
    head = run_head(job, both[0], losses.counts["train"], losses.batch_norm) | {"runs": names}
    lost = [name for name, trajectory in zip(names, both, strict=True) if trajectory.diverged is not None]
    if lost:
        job.log(f"run '{lost[0]}' diverged: it has no end to go to")
        return joined({False: empty(head)})
    ends = [trajectory.theta(trajectory.training.iterations) for trajectory in both]

    def line(last: np.ndarray) -> dict[str, Table]:
        return measure(losses.at, ends[0], last, losses.counts, job.options.points, head, job.epsilon, job.log)

    found = _aligned(job, given[0]["model"], losses.at, *ends)
    if found.end is None:
        job.log(f"the hidden units of '{names[1]}' are not aligned: {found.said}")
        return joined({False: line(ends[1])}, {"alignment": f"not aligned: {found.said}"})
    said = {
        "alignment": found.said,
        "units": found.units,
        "moved": found.moved,
        "distance_aligned": float(np.linalg.norm(found.end - ends[0])),
    }
    as_it_is = line(ends[1])
    return joined({False: as_it_is, True: line(found.end) if found.moved else as_it_is}, said)


class _Aligned(NamedTuple):
    """The second end with its hidden units aligned to those of the first.

    Attributes:
        said: What was done, or why nothing was.
        end: θ, shape (P,); None where nothing was done.
        units: Number of hidden units.
        moved: How many are at another place.
    """

    said: str
    end: np.ndarray | None = None
    units: int = 0
    moved: int = 0


def _aligned(job: Job, model: Any, evaluate: Evaluate, first: np.ndarray, second: np.ndarray) -> _Aligned:
    from quadscape.data.info import data_info
    from quadscape.network.models import build_model
    from quadscape.network.parameters import ParameterLayout
    from quadscape.network.permutations import aligned_orders, hidden_units, permuted, random_orders

    config, info = model_section(model), data_info(job.path("data"))
    units = hidden_units(config, info.shape)
    if units is None:
        return _Aligned("which units may change places is known of built-in networks alone")
    if not units:
        return _Aligned("the network has no hidden units that may change places")
    layout = ParameterLayout.of(build_model(config, info.shape, len(info.classes)))
    other = evaluate(permuted(second, layout, units, random_orders(units, 0)))
    for split, here in evaluate(second).items():
        scale = np.array([here.scale, other[split].scale])
        if not abs(other[split].loss - here.loss) <= floor_of(scale, job.epsilon):
            return _Aligned(f"a random renumbering changes the {split} loss from {here.loss} to {other[split].loss}")
    orders = aligned_orders(first, second, layout, units)
    moved = sum(int((order != np.arange(len(order))).sum()) for order in orders)
    count = sum(each.count for each in units)
    return _Aligned("by weight matching", permuted(second, layout, units, orders), count, moved)


def joined(lines: dict[bool, dict[str, Table]], attributes: dict[str, Any] | None = None) -> dict[str, Table]:
    """The tables of a line as it is, and after it of the aligned one.

    Args:
        lines: Tables of `interpolation` by whether hidden units are aligned.
        attributes: Added to those of the line as it is.

    Returns:
        Tables `connection` and `connection_summary`.
    """
    schemas = {"interpolation": CONNECTION, "interpolation_summary": CONNECTION_SUMMARY}
    return {schema.name: _stacked(schema, name, lines, attributes or {}) for name, schema in schemas.items()}


def _stacked(schema: TableSchema, name: str, lines: dict[bool, dict[str, Table]], attributes: dict[str, Any]) -> Table:
    parts = {aligned: tables[name] for aligned, tables in lines.items()}
    columns = {
        column: np.concatenate([part[column] for part in parts.values()])
        for column in schema.all_columns()
        if column != "aligned"
    }
    columns["aligned"] = np.repeat(list(parts), [len(part) for part in parts.values()])
    return Table(schema, columns, {**parts[False].attributes, **attributes})
