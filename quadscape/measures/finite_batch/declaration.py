"""Lines of single batches, as declared."""

from quadscape.measures.batches import batch_sizes
from quadscape.measures.columns import DIRECTION, IS_ZERO
from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

GAUSSIAN_CURVATURE = 0.2
"""Largest relative spread of a batch's curvature with which Gaussian theory of its minimum may speak."""

ROW_CALLS = 5
"""Of a row, in passes of about a millisecond."""

LINE_POINTS, LINES = 61, 48
"""Points of one line and lines of one checkpoint, as line searches have them where nothing else is said."""

_BOOTSTRAP = "95 %, bootstrap over batches of this training set"

MINIMA = TableSchema(
    "finite_batch",
    "Along one eigenvector, where batches of one size see the minimum.",
    (
        *DIRECTION,
        IS_ZERO,
        Column("decayed", "1", "Whether the loss is L̃, with weight decay; else L.", "bool"),
        Column(
            "side",
            "1",
            "`only`, or where λ is negative and the line has a minimum on both sides of its maximum: `negative`, "
            "`positive`.",
            "str",
        ),
        Column("batch_size", "1", "Examples of a batch, B; drawn without repeats, each batch anew.", "int"),
        Column("minimum", "parameter", "Where the loss of all examples is least; NaN if at an end of the line."),
        Column("curvature", "loss / parameter²", "Second derivative of the loss of all examples there."),
        Column("median", "parameter", "Median of the batches' minima."),
        Column(
            "spread",
            "parameter",
            "Interquartile range of the batches' minima over 1.349, of Gaussian ones their standard deviation; NaN "
            "where a quartile lies beyond the line.",
            interval=_BOOTSTRAP,
        ),
        Column(
            "predicted",
            "parameter",
            "√(Varₙ(gₙᵀq + t̄hₙ)/(Bλ²)·(N − B)/(N − 1)) with slopes gₙᵀq and curvatures hₙ of single examples at t = 0, "
            "t̄ = −gᵀq/λ (g̃ and λ̃ where `decayed`); NaN unless λ is positive.",
        ),
        Column(
            "predicted_there",
            "parameter",
            "The same with the examples' slopes at `minimum` itself, and `curvature`.",
        ),
        Column("ratio", "1", "spread / predicted.", interval=_BOOTSTRAP),
        Column(
            "curvature_spread",
            "1",
            "Interquartile range over 1.349 of the batches' curvatures at their minima, over their median.",
        ),
        Column("height", "loss", "Median of a batch's own loss at its minimum less that at t = 0."),
        Column("excess", "loss", "Median of the loss of all examples at a batch's minimum less that at `minimum`."),
        Column(
            "kurtosis",
            "1",
            "Excess kurtosis of the minima; 0 if Gaussian; NaN where any is beyond, or λ zero.",
        ),
        Column(
            "tail",
            "1",
            "Width of the middle 95 % of the minima over that of the middle half, over its Gaussian value 2.906.",
        ),
        Column("p_normal", "1", "p of Shapiro and Wilk's test that they are Gaussian; NaN where kurtosis is."),
        Column("not_normal", "1", "Whether Benjamini–Hochberg at 10 % rejects that, among all rows.", "bool"),
        Column(
            "correlation",
            "1",
            "Spearman's rank correlation of a batch's minimum and its curvature there.",
            interval="95 %, Fisher's z, over batches",
        ),
        Column("below", "1", "Share of batches whose loss is least at the negative end of the line (or side)."),
        Column("above", "1", "The same at the positive end."),
        Column(
            "gaussian",
            "1",
            f"Whether Gaussian theory may speak: curvature_spread < {GAUSSIAN_CURVATURE}, none beyond, λ not zero.",
            "bool",
        ),
    ),
)

NOISE = TableSchema(
    "line_noise",
    "Slopes and curvatures of single examples along one eigenvector; exact on this training set but for rounding.",
    (
        *DIRECTION,
        IS_ZERO,
        Column("slope", "loss / parameter", "Mean of gₙᵀq, from the lines alone."),
        Column("slope_variance", "loss² / parameter²", "Variance of gₙᵀq over examples, qᵀCq (divided by N)."),
        Column("line_curvature", "loss / parameter²", "Mean of hₙ = qᵀHₙq, from the lines alone."),
        Column("curvature_variance", "loss² / parameter⁴", "Variance of hₙ over examples (divided by N)."),
        Column("slope_curvature", "1", "Correlation of gₙᵀq and hₙ over examples."),
        Column(
            "cross",
            "1",
            "Root mean square, over the other lines' eigenvectors p, of the correlation of gₙᵀq and gₙᵀp: the share of "
            "QᵀCQ off its diagonal. Independent examples give 1/√N (attribute chance_cross).",
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # One line of all examples as it was kept and in float64, its slopes and curvatures, and those of all lines.
    memory = TABLE_BYTES + (3 * 8 * LINE_POINTS + 2 * 8 * LINES) * sizes.training
    # Batches of all sizes together hold some N examples. Of each line and size with and without decay there is a row,
    # whose draws, splines, quantiles and tests are over so few numbers that each takes what a call does.
    rows = 2.0 * LINES * len(batch_sizes(sizes.training))
    flops = 2 * 2.0 * LINES * LINE_POINTS * options["batches"] * sizes.training
    return Cost(memory, flops=flops, calls=ROW_CALLS * rows)


MEASURE = Measure(
    name="finite_batch",
    title="Lines of single batches: their minima, curvatures and heights, against batch size and eigenvalue.",
    chapter=4,
    of="checkpoint",
    reads=("checkpoint", "line_search"),
    tables=(MINIMA, NOISE),
    cost=_cost,
    options=(Option("batches", 200, "Batches drawn for each direction and batch size.", at_least=20),),
)
