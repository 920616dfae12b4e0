"""Stationary variances of runs from one checkpoint, as declared."""

from quadscape.measures.columns import MEMBER, curvature_band
from quadscape.measures.costs import NOISE_ITERATES, tiled_bytes
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

BANDS = 30
"""Bands, even in log λ̃ of the checkpoint at which all members start."""

PROBES = 4
"""Hessian products for the mean curvature of a band at one iterate."""

_UNIT = "parameter²"

_BAND = (
    Column("band", "1", "Band of the checkpoint's positive λ̃, even in log λ̃, from 0: the same for all members.", "int"),
    *curvature_band(", at the start"),
    Column(
        "relaxation",
        "steps",
        "Longest τ of the band by the noisy quadratic model, on the plateau; infinite without a minimum.",
    ),
)

STATIONARY = TableSchema(
    "stationary",
    "One member of a family and one band of eigenvectors of the checkpoint at which all members start: how far the "
    "member spreads along them at its end.",
    (
        *MEMBER,
        Column("sampling", "1", "How its batches are drawn: `reshuffled` or `independent`.", "str"),
        Column("batch_size", "1", "Examples of one step, B.", "int"),
        Column("learning_rate", "1", "Learning rate η of the plateau."),
        Column("window", "1", "Iterates of which statistics are: the last of the run.", "int"),
        *_BAND,
        Column(
            "plateau_curvature",
            "loss / parameter²",
            "Mean of qᵀHq + δ over the band and iterates of the plateau, by which the model scales each λ̃; "
            "NaN where τ at the start is far too long, and the model takes λ̃ of the start.",
            interval="95 %, Student's t over iterates",
        ),
        Column("told", "1", "Whether the run says something of the stationary state; see docs/stationary.md.", "bool"),
        Column("blocks", "1", "Blocks of time, each of 2τ or more, at most 20; an interval takes 10.", "int"),
        Column(
            "ratio",
            "1",
            "Variances over expected ones, of sums over the band.",
            interval="95 %, Student's t over blocks of time, and over iterates of the noise",
        ),
        Column("noise", "loss² / parameter²", "Mean c: variance of slopes gₙᵀq over examples, mean over the plateau."),
        Column("variance", _UNIT, "Mean variance about a straight line, over T − 2."),
        Column("expected", _UNIT, "Mean of what the model expects of the same statistic, in a stationary state."),
        Column("independent", _UNIT, "The same, had batches been drawn independently."),
        Column("temperature", "1", "Mean of r = Nλ̃ Var x, λ̃ on the plateau: 1 where x spreads like the posterior."),
        Column("temperature_expected", "1", "Mean of r by the model in a window without end."),
    ),
)

SAMPLING_RATIO = TableSchema(
    "sampling_ratio",
    "Two members that differ in how batches are drawn, and nothing else, and one band: how much less far the one with "
    "reshuffled batches spreads.",
    (
        Column("reshuffled", "1", "Place in the family of the member with reshuffled batches.", "int"),
        Column("independent", "1", "Place of the member with independent batches.", "int"),
        Column("batch_size", "1", "Examples of one step, B, of both.", "int"),
        Column("learning_rate", "1", "Learning rate η of both."),
        Column("seed", "1", "Seed of both.", "int"),
        *_BAND,
        Column("told", "1", "Whether both say something of their stationary states.", "bool"),
        Column("blocks", "1", "Blocks of time, each of 2τ or more, at most 20; an interval takes 10.", "int"),
        Column(
            "ratio",
            "1",
            "Variance with reshuffled batches over that with independent ones, of sums over the band.",
            interval="95 %, jackknife of its logarithm over blocks of time, and over iterates of both noises",
        ),
        Column("expected", "1", "Ratio of what the model expects of the two, each with its own c."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size, count, steps, members = sizes.parameters, sizes.training, options["iterates"] // 2 + 1, sizes.members
    tiles = tiled_bytes(size, max(steps, count))
    # Coordinates of one member at a time, noises and blocks of time of all.
    memory = sizes.torch_bytes + sizes.product_bytes + 8 * size * (steps + members * (2 * NOISE_ITERATES + 30)) + tiles
    # Steps are taken again: of batches no larger than all examples, some epochs.
    gradients = NOISE_ITERATES * count + min(steps * 512, 20 * count)
    flops = 2.0 * (NOISE_ITERATES * count + steps) * size**2 + 200.0 * steps * size
    products = NOISE_ITERATES * PROBES * BANDS * count
    return Cost(memory, gradients=members * gradients, products=members * products, flops=members * flops)


MEASURE = Measure(
    name="stationary",
    title="Do runs from one checkpoint spread as the noisy quadratic model says: batches drawn independently or "
    "reshuffled?",
    chapter=7,
    of="family",
    reads=("data", "trajectory", "start_checkpoint", "start_eigenbasis"),
    tables=(STATIONARY, SAMPLING_RATIO),
    cost=_cost,
    options=(Option("iterates", 4000, "Most steps at the end of a run that are looked at.", at_least=40),),
    evaluates=True,
    gpu=True,
    items=True,
    # Only what starts at one checkpoint and then keeps its learning rate has anything to tell.
    by_default=False,
)
