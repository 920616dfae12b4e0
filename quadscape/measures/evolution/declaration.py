"""Evolution per eigendirection, as declared."""

from quadscape.measures.columns import DIRECTION, curvature_band
from quadscape.measures.costs import NOISE_ITERATES, tiled_bytes
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

BANDS = 30
"""Bands, even in log λ̃."""

STATES = ("settled", "never out", "not settled", "not seen", "no minimum", "unstable")
"""What became of a direction within the window."""

_UNIT = "parameter²"

_WINDOWS = 2
"""Windows that are looked at: a checkpoint's own, and most often one on the other side of a decrease of the rate."""

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
        *curvature_band(),
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

_OVER_TIME = "95 %, Student's t over blocks of time of both windows"

EVOLUTION_DROPS = TableSchema(
    "evolution_drops",
    "One decrease of the learning rate at which the checkpoint's window begins or ends: by how much less the "
    "fluctuations about the minimum add to the loss after it than before.",
    (
        Column("decrease", "1", "Steps taken before the lower rate.", "int"),
        Column("rate_before", "1", "Learning rate η before."),
        Column("rate_after", "1", "Learning rate η after."),
        Column("window_before", "1", "Iterates of which statistics are, before.", "int"),
        Column("window_after", "1", "Iterates of which statistics are, after.", "int"),
        Column("told", "1", "Whether a claim is made: any such direction, a steady loss, 16 noises each.", "bool"),
        Column("count", "1", "Directions of which either window has 20 relaxation times.", "int"),
        Column("lowest", "loss / parameter²", "Smallest λ̃ of these."),
        Column("blocks", "1", "Blocks of time of the window with fewer, each of 2τ or more of all these.", "int"),
        Column("energy", "loss", "½Σλ̃ Var x of these before the decrease, as measured."),
        Column("drop", "loss", "½Σλ̃ Var x before less after, as measured.", interval=_OVER_TIME),
        Column(
            "expected",
            "loss",
            "The same by the model, in windows of that length.",
            interval="95 %, Student's t over iterates of the noise of both windows",
        ),
        Column("independent", "loss", "The same, had batches been drawn independently."),
        Column(
            "loss",
            "loss",
            "Mean loss of the batches, with weight decay, before less after: of all directions, and of the way down.",
            interval=f"{_OVER_TIME}, of an epoch or more",
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size, count, steps = sizes.parameters, sizes.training, options["iterates"] + 1
    tiles = tiled_bytes(size, max(steps, count))
    # Coordinates of one window at a time; noises and blocks of time of all.
    memory = sizes.torch_bytes + sizes.gradient_bytes + 8 * size * (steps + 10 * NOISE_ITERATES) + tiles
    # Steps are taken again: of batches no larger than all examples, some epochs.
    gradients = NOISE_ITERATES * count + min(steps * 512, 20 * count)
    flops = 2.0 * (NOISE_ITERATES * count + steps) * size**2 + 200.0 * steps * size
    return Cost(memory, gradients=_WINDOWS * gradients, flops=_WINDOWS * flops)


MEASURE = Measure(
    name="evolution",
    title="How does a run move along each eigenvector: when does it settle, how does it turn, how far does it spread?",
    chapter=5,
    of="checkpoint",
    reads=("data", "trajectory", "checkpoint", "eigenbasis"),
    tables=(EVOLUTION, EVOLUTION_BANDS, EVOLUTION_DROPS),
    cost=_cost,
    options=(Option("iterates", 2000, "Most steps before the checkpoint that are looked at.", at_least=10),),
    evaluates=True,
    gpu=True,
    items=True,
)
