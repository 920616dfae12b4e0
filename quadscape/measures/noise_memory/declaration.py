"""Autocorrelation of gradient noise along training, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

PLATEAUS = 5
"""Plateaus of the learning rate that a run is assumed to have."""

MEMORY = TableSchema(
    "noise_memory",
    "Correlation of the noise of two steps of a plateau of constant learning rate, so many iterations apart.",
    (
        Column("plateau", "1", "Number of the plateau, from 0.", "int"),
        Column("first", "1", "Steps taken before the first of the iterates.", "int"),
        Column("last", "1", "Steps taken before the last of them.", "int"),
        Column("learning_rate", "1", "Learning rate η there."),
        Column("lag", "iterations", "How far apart the two steps are.", "int"),
        Column("pairs", "1", "Pairs of iterates.", "int"),
        Column(
            "correlation",
            "1",
            "Mean of ξ_tᵀξ_s over pairs over the mean of |ξ_t|², ξ_t = g_b(θ_t) − g(θ_t) with the batch b of step t.",
            interval="95 %, normal, pairs as if independent",
        ),
        Column(
            "predicted",
            "1",
            "What the examples that the batches share give, if gradients of examples did not change: 0 on average for "
            "independent batches, −1/(K − 1) for two of one epoch of K.",
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    iterates = options["iterates"]
    memory = sizes.torch_bytes + sizes.gradient_bytes + 8 * sizes.parameters * (2 * PLATEAUS * iterates + 4)
    flops = PLATEAUS * 2.0 * iterates**2 * sizes.parameters
    return Cost(memory, gradients=PLATEAUS * 1.2 * iterates * sizes.training, flops=flops)


MEASURE = Measure(
    name="noise_memory",
    title="Is the noise of one step correlated with that of later ones?",
    chapter=4,
    of="run",
    reads=("data", "trajectory"),
    tables=(MEMORY,),
    cost=_cost,
    options=(Option("iterates", 48, "Iterates at the end of each plateau of the learning rate.", at_least=4),),
    evaluates=True,
    gpu=True,
    items=True,
)
