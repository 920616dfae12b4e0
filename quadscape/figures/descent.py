"""Loss of variants of gradient descent against steps, examples and seconds."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import OTHER, Look, best_cells, can_be_log, keys, looks
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Variants of gradient descent"

_MOST = 4
"""Most families."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws a block of four panels per family: loss against steps, examples and seconds, and how it ends.

    Args:
        tables: `descent_course`, `descent_members` and `descent_cost`, one of each per family.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    pieces = zip(tables["descent_course"], tables["descent_members"], tables["descent_cost"], strict=True)
    families = [(course, members, cost) for course, members, cost in pieces if len(course)]
    if not families:
        return style.message(TITLE, "No family of runs was trained.")
    families = families[:_MOST]
    names, scores = [], dict[str, float]()
    for _, members, _ in families:
        for name, cell in best_cells(members).items():
            names.append(name)
            ends = members["training_loss"][members["cell"] == cell]
            scores[name] = min(scores.get(name, np.inf), float(ends.mean()) if np.isfinite(ends).all() else np.inf)
    shown = looks(names, scores)
    figure = Figure(figsize=(9.6, 5.6 * len(families) + 1.2), layout=style.layout())
    grid = figure.subplots(2 * len(families), 2, squeeze=False)
    for place, (course, members, cost) in enumerate(families):
        panels = grid[2 * place : 2 * place + 2].ravel()
        _courses(panels[:3], course, members, cost, shown)
        _ends(panels[3], members, shown)
        panels[0].set_title(f"family {members.attributes['run']}", loc="left")
    handles = keys(shown, len(set(names)) - len(shown))
    handles.append(style.line_key("single seeds", color=style.GREY, linewidth=0.6))
    if any(_lost(members) for _, members, _ in families):
        text = "last evaluation before a seed diverged"
        handles.append(style.line_key(text, color=style.BLACK, marker="x", linestyle="", markersize=8))
    style.legend(figure, handles, columns=3)
    figure.suptitle(TITLE)
    return figure


def _lost(members: "Table") -> set[int]:
    """Runs that diverged, of the settings that are drawn."""
    drawn = np.isin(members["cell"], list(best_cells(members).values()))
    return set(members["run"][drawn & (members["diverged_at"] >= 0)].tolist())


def _courses(panels: "np.ndarray", course: "Table", members: "Table", cost: "Table", shown: dict[str, Look]) -> None:
    seconds = dict(zip(cost["cell"].tolist(), cost["seconds_per_step"].tolist(), strict=True))
    best = best_cells(members)
    lost = _lost(members)
    ordered = sorted(best.items(), key=lambda item: item[0] in shown)  # grey below
    drawn: list[list[np.ndarray]] = [[], [], []]
    for name, cell in ordered:
        look = shown.get(name, OTHER)
        own = course.where((course["cell"] == cell) & (course["training_loss"] > 0))
        scales = (own["iteration"], own["examples_seen"], own["iteration"] * seconds.get(cell, np.nan))
        for axis, x, every_x in zip(panels, scales, drawn, strict=True):
            every_x.append(np.asarray(x, dtype=np.float64))
            for run in np.unique(own["run"]).tolist():
                rows = own["run"] == run
                axis.plot(x[rows], own["training_loss"][rows], color=look.colour, linewidth=0.5, alpha=0.7, zorder=2)
                if run in lost:
                    last = (x[rows][-1:], own["training_loss"][rows][-1:])
                    axis.plot(*last, "x", color=style.BLACK, markersize=9, mew=1.6, zorder=6)
            at, mean = _mean(own["iteration"], x, own["training_loss"])
            every = max(1, len(at) // 8)
            axis.plot(
                at,
                mean,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markersize=4.5,
                markevery=every,
                zorder=3,
            )
    labels = ("iteration (steps taken)", "examples seen", "time of these steps (s)")
    for axis, label, parts in zip(panels, labels, drawn, strict=True):
        axis.set_xlabel(label)
        axis.set_ylabel("training loss per example")
        if can_be_log(course["training_loss"]):
            axis.set_yscale("log")
        style.plain_log(axis)
        if label != labels[0]:
            _scale(axis, np.concatenate(parts))
        style.few_ticks(axis)
        if axis.get_xscale() == "linear" and label != labels[2]:
            axis.xaxis.set_major_formatter(lambda value, _: style.thousands(value))


def _scale(axis: "Axes", x: np.ndarray) -> None:
    """Batches of different sizes see examples at very different pace: on a linear axis the small ones are a wall."""
    positive = x[np.isfinite(x) & (x > 0)]
    if len(positive) and positive.max() > 100 * positive.min():
        axis.set_xscale("log", nonpositive="mask")
        axis.set_xlim(0.8 * positive.min(), 1.3 * positive.max())


def _mean(iterations: np.ndarray, x: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean over the seeds that are there, at every evaluation that all of the first half have."""
    steps = np.unique(iterations)
    most = max((int(np.count_nonzero(iterations == step)) for step in steps), default=0)
    kept = [step for step in steps if np.count_nonzero(iterations == step) == most]
    at = np.array([x[iterations == step][0] for step in kept])
    return at, np.array([np.exp(np.log(losses[iterations == step]).mean()) for step in kept])


def _ends(axis: "Axes", members: "Table", shown: dict[str, Look]) -> None:
    """Final validation loss against the examples that it took to reach the target."""
    reached = members["examples_to_target"]
    most = max([1, *reached[reached > 0].tolist()])
    never = 4 * most
    some = False
    for name, cell in best_cells(members).items():
        look = shown.get(name, OTHER)
        rows = (members["cell"] == cell) & np.isfinite(members["validation_loss"])
        if not rows.any():
            continue
        x = np.where(reached[rows] < 0, never, np.maximum(reached[rows], 0.5)).astype(float)
        some |= bool((reached[rows] < 0).any())
        y = members["validation_loss"][rows]
        axis.plot(x, y, look.marker, color=look.colour, markersize=3.5, alpha=0.6, linestyle="", zorder=2)
        axis.plot(
            np.exp(np.log(x).mean()), y.mean(), look.marker, color=look.colour, markersize=9, mec="white", zorder=4
        )
    if len(reached[reached > 0]):
        axis.set_xscale("log")
    axis.margins(y=0.12)
    if not axis.lines:
        axis.plot([1], [np.nan])
        axis.set_xticks([])
        axis.set_yticks([])
        style.note(axis, "every member diverged", "upper left")
    style.plain_log(axis, horizontal=True)
    if some:
        axis.axvline(2 * most, color=style.GREY, linewidth=0.8)
        axis.text(never, 0.98, "never", transform=axis.get_xaxis_transform(), ha="center", va="top", fontsize=8.5)
    target = members.attributes.get("target_loss")
    text = " reached" if target is None else f" {style.power(target)}"
    axis.set_xlabel(f"examples seen until the training loss is{text}")
    axis.set_ylabel("final validation loss")


SPEC = FigureSpec(
    name="descent",
    title=TITLE,
    category="8. Comparisons",
    labels={"measure": "descent", "shown": "loss by steps, examples and seconds"},
    caption="""\
Training loss of variants of gradient descent against steps, examples and seconds, and where they end, a block of four
panels per family of runs.

Each variant is drawn at the learning rate of its least validation loss, where the family has several. Thin lines are
single seeds, thick ones with markers their geometric mean, as far as all of them go; a cross is the last evaluation of
a seed before it diverged. Seconds are steps times the least time of a step on the machine that measured them, without
evaluations. Where batches differ much these axes are logarithmic, and begin at the first evaluation after the start.
Bottom right: the validation loss at the end against the examples that were seen when the training loss first was at
most the one that is named; small markers are seeds, large ones their means; right of the line are runs that never got
there. What is lower is better everywhere. Compare curves on the axis of the budget that matters: a small batch is fast
by examples and slow by seconds. At most eight variants have colours, those of the least training loss.
""",
    tables=("descent_course", "descent_members", "descent_cost"),
    draw=draw,
)
