"""Evolution per eigendirection, as declared."""

from quadscape.measures.columns import DIRECTION
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

BANDS = 30
"""Bands, even in log λ̃."""

NOISE_GRADIENTS = 16
"""Passes over all gradients of single examples, for the noise of a plateau."""

TILE_COLUMNS = 1024
"""Eigenvectors that are multiplied at once, at most."""

STATES = ("settled", "never out", "not settled", "not seen", "no minimum", "unstable")
"""What became of a direction within the window."""

_UNIT = "parameter²"

EVOLUTION = TableSchema(
    "evolution",
    "One eigenvector: the way of a run along it, in a window of constant learning rate that ends at the checkpoint.",
    (
        *DIRECTION,
        Column("curvature", "loss / parameter²", "λ̃ = λ + δ, with weight decay."),
        Column("relaxation", "steps", "τ = −1/ln|z| of the slower root by the noisy quadratic model; else infinite."),
        Column("frequency", "radian / step", "By which angle it turns in a step by that model; 0: it does not."),
        Column("distance", "parameter", "Distance at the beginning from its mean over the second half."),
        Column("state", "1", f"What became of it: {', '.join(STATES)}.", "str"),
        Column("settling", "steps", "When the fitted envelope fell to one standard deviation; NaN if it did not."),
        Column("turns", "radian / step", "Measured frequency of its fluctuations; NaN where it is not told."),
        Column("damping", "1", "Measured |z| of its fluctuations; NaN where it is not told."),
        Column(
            "noise",
            "loss² / parameter²",
            "c, variance of slopes gₙᵀq over examples (divided by N), mean over iterates of the second half.",
            interval="95 %, Student's t over iterates",
        ),
        Column("variance", _UNIT, "Variance of the second half about a straight line, over T − 2."),
        Column("expected", _UNIT, "What the model expects of the same statistic, in a stationary state."),
        Column("independent", _UNIT, "The same, had batches been drawn independently."),
        Column("stationary", _UNIT, "Variance by the model in a window without end."),
        Column("told", "1", "Whether the window says something of the stationary state; see docs/dynamics.md.", "bool"),
    ),
)

EVOLUTION_BANDS = TableSchema(
    "evolution_bands",
    "Positive curvatures of a band even in log λ̃, of which the window tells if it tells of any: how they fluctuate.",
    (
        Column("curvature", "loss / parameter²", "Geometric mean of λ̃."),
        Column("lowest", "loss / parameter²", "Smallest λ̃ of the band."),
        Column("highest", "loss / parameter²", "Largest λ̃ of the band."),
        Column("count", "1", "Eigenvectors in the band.", "int"),
        Column("told", "1", "Whether the window says something of the stationary state of these.", "bool"),
        Column("relaxation", "steps", "Longest τ of the band."),
        Column("blocks", "1", "Blocks of time, each of 2τ or more, at most 20; an interval takes 10.", "int"),
        Column(
            "ratio",
            "1",
            "Variances over expected ones, of sums over the band.",
            interval="95 %, Student's t over blocks of time, and over iterates of the noise",
        ),
        Column("noise", "loss² / parameter²", "Mean c."),
        Column("variance", _UNIT, "Mean variance."),
        Column("expected", _UNIT, "Mean of what the model expects."),
        Column("independent", _UNIT, "The same, had batches been drawn independently."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size, count, steps = sizes.parameters, sizes.training, options["iterates"] + 1
    tiles = min(8.6e9, 8 * size * (max(steps, count) + 3 * TILE_COLUMNS) + 64 * max(steps, count) * TILE_COLUMNS)
    memory = sizes.torch_bytes + sizes.gradient_bytes + 8 * size * (steps + 4 * NOISE_GRADIENTS) + tiles
    # Steps are taken again: of batches no larger than all examples, some epochs.
    gradients = NOISE_GRADIENTS * count + min(steps * 512, 20 * count)
    flops = 2.0 * (NOISE_GRADIENTS * count + steps) * size**2 + 200.0 * steps * size
    return Cost(memory, gradients=gradients, flops=flops)


MEASURE = Measure(
    name="evolution",
    title="How does a run move along each eigenvector: when does it settle, how does it turn, how far does it spread?",
    chapter=5,
    of="checkpoint",
    reads=("data", "trajectory", "checkpoint", "eigenbasis"),
    tables=(EVOLUTION, EVOLUTION_BANDS),
    cost=_cost,
    options=(Option("iterates", 2000, "Most steps before the checkpoint that are looked at.", at_least=10),),
    evaluates=True,
    gpu=True,
    items=True,
)
