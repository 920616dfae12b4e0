"""Scores of ruggedness against what training makes of networks, as declared."""

from quadscape.measures.columns import DIVERGED, MEMBER
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

PRIMARY_SCORE, PRIMARY_OUTCOME = "trace_over_norm", "final_loss"
"""The pair named beforehand, at iteration 0 (Fort & Scherlis, arXiv 1807.02581); all others are exploratory."""

BUMP = "bump"
"""The predictor that belongs to a whole run: the largest rise on the straight line from start to end."""

WHOLE = -1
"""Iteration of a predictor that belongs to a whole run."""

OUTCOMES = {
    "steps_to_target": "steps to a loss",
    "final_loss": "final training loss",
    "seed_spread": "spread over seeds",
    "gap": "validation − training loss",
}
"""What a network is compared by, with words for figures; the gap only with the bump."""

NETWORKS_TOLD = 20
"""Networks from which on something is said."""

RUNS = TableSchema(
    "compared_runs",
    "One member of a family of networks: how its training went.",
    (
        *MEMBER,
        DIVERGED,
        Column("learning_rate", "parameter² / loss", "Learning rate η after the warm-up."),
        Column("final_loss", "loss", "Loss over the training split at the end; ∞ if it diverged."),
        Column(
            "steps_to_target",
            "1",
            "Steps taken at the first evaluation at which the training loss is at most the table's attribute "
            "target_loss; ∞ if that is never seen.",
        ),
        Column("gap", "loss", "Validation minus training loss at the end; NaN if it diverged."),
        Column(
            "bump",
            "loss",
            "Largest rise of the training loss along the straight line from start to end; NaN if it diverged.",
        ),
    ),
)

NETWORKS = TableSchema(
    "compared_networks",
    "One network: a cell of the family.",
    (
        Column("cell", "1", "Labels of the network.", "str"),
        Column("members", "1", "Seeds that were trained.", "int"),
        Column("parameters", "1", "Number of parameters, P.", "int"),
        Column("depth", "1", "Layers with a matrix or a kernel of weights.", "int"),
        Column("normalised", "1", "Whether a layer has vectors alone, as those that normalise.", "bool"),
        Column("final_loss", "loss", "Median over seeds; ∞ if more than half diverged."),
        Column("steps_to_target", "1", "Median over seeds; ∞ if more than half never reached it."),
        Column(
            "seed_spread",
            "1",
            "Standard deviation over seeds of ln(final loss), n − 1; ∞ if one diverged, NaN with one seed.",
        ),
        Column("gap", "loss", "Mean over seeds that did not diverge."),
        Column("bump", "loss", "Mean over seeds that did not diverge."),
    ),
)

SCORES = TableSchema(
    "compared_scores",
    "One score of ruggedness of one network.",
    (
        Column("cell", "1", "Labels of the network.", "str"),
        Column("score", "1", "Its name; docs/ruggedness.md defines each.", "str"),
        Column("iteration", "1", "Steps taken where it was measured; 0: at the start.", "int"),
        Column("value", "unit of the score", "Mean over checkpoints; NaN where one must not be compared."),
        Column("checkpoints", "1", "Number of seeds that it was measured of.", "int"),
    ),
)

RANKS = TableSchema(
    "compared_ranks",
    "How one score ranks with one outcome over networks.",
    (
        Column("score", "1", "Name of the score, or `bump`.", "str"),
        Column("iteration", "1", "Steps taken where it was measured; −1: it belongs to the whole run.", "int"),
        Column("outcome", "1", "Name of a column of `compared_networks`.", "str"),
        Column("networks", "1", "Networks with both.", "int"),
        Column(
            "correlation",
            "1",
            "Spearman's; what never ended in time, or diverged, ranks last.",
            interval="95 %, bootstrap over networks",
        ),
        Column(
            "partial",
            "1",
            "The same of what is left of both ranks after straight lines in the rank of the depth and in "
            "normalisation.",
            interval="95 %, bootstrap over networks",
        ),
        Column("p_value", "1", "Of no association, two-sided, by permutation of networks."),
        Column("primary", "1", "Whether it is the pair that was named beforehand.", "bool"),
        Column("rejected", "1", "Whether Benjamini–Hochberg at 10 % rejects it, among all but the primary.", "bool"),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return Cost(memory_bytes=2 * TABLE_BYTES, flops=1e9)


MEASURE = Measure(
    name="ruggedness_compared",
    title="Does a score of ruggedness, at the start or early, rank with how a network trains?",
    chapter=8,
    of="family",
    reads=("trajectory", "ruggedness", "interpolation"),
    tables=(RUNS, NETWORKS, SCORES, RANKS),
    cost=_cost,
    options=(
        Option(
            "target",
            0.0,
            "Training loss whose first reach is counted; 0: the median of the final training losses of the members.",
            at_least=0,
        ),
    ),
    # Only of families of networks, and they need Hessians at their checkpoints.
    by_default=False,
)
