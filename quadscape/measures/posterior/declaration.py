"""The eigenvalue at which SGD samples the posterior, as declared."""

from quadscape.measures.declaration import TABLE_BYTES, Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

POINTS = 60
"""Curvatures of a curve, even in the logarithm."""

REPLICATES = 200
"""Bootstrap replicates of the noise."""

RATES = (0.1, 1.0, 10.0)
"""Learning rates of which crossings are counted, as multiples of the run's own."""

_BOOTSTRAP = "95 %, bootstrap over the directions of each band of the noise"

_SETTING = (
    Column("learning_rate", "1", "Learning rate η."),
    Column("batch_size", "1", "Batch size B.", "int"),
    Column("sampling", "1", "`reshuffled` or `independent`.", "str"),
    Column("own", "1", "Whether the run was trained so.", "bool"),
)

POSTERIOR = TableSchema(
    "posterior",
    "A band of curvature: r = N(λ + δ)·Var x, the variance of SGD over that of the posterior 1/(N(λ + δ)).",
    (
        Column("curvature", "loss / parameter²", "Geometric mean of λ̃ = λ + δ."),
        Column("count", "1", "Eigenvectors in the band.", "int"),
        Column("told", "1", "Whether a claim is made: window of ten relaxation times, and λ̃ ≥ 10δ.", "bool"),
        Column(
            "ratio",
            "1",
            "r as measured: N times the mean of λ̃ Var x, for a window without end.",
            interval="95 %, Student's t over blocks of time, and over iterates of the noise",
        ),
        Column("expected", "1", "r by the noisy quadratic model, with the band's mean noise."),
        Column("independent", "1", "The same, had batches been drawn independently."),
    ),
)

CURVES = TableSchema(
    "posterior_curves",
    "r by the noisy quadratic model at one curvature, with noise smoothed over bands, for one setting.",
    (
        *_SETTING,
        Column("curvature", "loss / parameter²", "λ̃."),
        Column("ratio", "1", "r.", interval=_BOOTSTRAP),
    ),
)

CROSSINGS = TableSchema(
    "posterior_crossings",
    "How often r crosses 1 in one setting, within a range of curvature.",
    (
        *_SETTING,
        Column("lowest", "loss / parameter²", "Least λ̃ of the range: 10δ, and where the run's window tells, if own."),
        Column("highest", "loss / parameter²", "Largest λ̃ of the range: of the spectrum, below the stability limit."),
        Column("predicted", "1", "Crossings of the curve.", "int"),
        Column("predicted_least", "1", "2.5 % quantile of the same over bootstrap replicates.", "int"),
        Column("predicted_most", "1", "97.5 % quantile of the same.", "int"),
        Column("first", "loss / parameter²", "The least λ̃ at which the curve crosses; NaN if it does not."),
        Column("last", "loss / parameter²", "The largest one."),
        Column("measured", "1", "Crossings of the measured bands; −1 where the run was not trained so.", "int"),
        Column("measured_sure", "1", "Of these, between bands whose intervals exclude 1.", "int"),
        Column("low_side", "1", "r at the lower end of the range, by the curve."),
        Column("high_side", "1", "r at the upper end."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # A table of all directions, and as many replicates of band means.
    return Cost(TABLE_BYTES + 60 * 8 * sizes.parameters, flops=2.0 * REPLICATES * sizes.parameters)


MEASURE = Measure(
    name="posterior",
    title="At which curvature does SGD spread as the posterior does, at this and other learning rates and batch sizes?",
    chapter=7,
    of="checkpoint",
    reads=("evolution",),
    tables=(POSTERIOR, CURVES, CROSSINGS),
    cost=_cost,
)
