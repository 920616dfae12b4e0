"""The largest eigenvalue through training, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

CHAIN = 4
"""Consecutive iterates of one item: the first begins at random vectors, each other one where the one before ended."""

PRODUCTS = 24
"""Hessian products that an iterate takes, with some to spare."""

BUDGET = 120
"""Most that it may take."""

BLOCKS = 10
"""Fewest blocks in time that a mean over a plateau has an interval from."""

STATES = ("converged", "small gap", "negative", "not converged", "not finite")
"""What became of an iterate's largest eigenvalue; all but the first are failures."""

_CURVATURE = "loss / parameter²"
_BATCHES = "95 %, jackknife over batches, Student's t"
_BLOCKS = "95 %, Student's t, over blocks in time"

SHARPNESS = TableSchema(
    "sharpness",
    "One iterate of a run: the largest eigenvalue of the Hessian of the training loss (without weight decay), what "
    "stability allows, and the curvature that single batches have along their own gradients.",
    (
        Column("iteration", "1", "Steps taken.", "int"),
        Column(
            "state",
            "1",
            "`converged`, or why the largest eigenvalue is not drawn: `small gap` to the second, `negative` (the "
            "largest in magnitude is), `not converged` within the budget, `not finite`.",
            "str",
        ),
        Column("largest", _CURVATURE, "Largest eigenvalue λ₁; a Ritz value."),
        Column("residual", _CURVATURE, "|Hq − λ₁q| of its vector: an eigenvalue is no further from `largest`."),
        Column("second", _CURVATURE, "Second largest Ritz value; NaN where there is one parameter."),
        Column("smallest", _CURVATURE, "Smallest Ritz value, at least the smallest eigenvalue."),
        Column("products", "1", "Hessian products that it took.", "int"),
        Column("loss", "loss", "Training loss over all examples (without weight decay)."),
        Column("learning_rate", "1", "Learning rate η of the step that led here; at the start, of the first step."),
        Column("limit", _CURVATURE, "Largest stable λ₁ + δ of the rule in use; NaN where none applies."),
        Column("plain_limit", _CURVATURE, "2/η, that of gradient descent without momentum."),
        Column("noisy_limit", _CURVATURE, "2(1 − μ)/η, of heavy-ball; NaN for other rules."),
        Column(
            "batch_sharpness",
            _CURVATURE,
            "E[g̃ᵀ(H_b + δ)g̃] / E|g̃|² over batches b, g̃ = g_b + δθ; exact where a batch is all examples.",
            interval=_BATCHES,
        ),
        Column(
            "mean_ratio",
            _CURVATURE,
            "E[g̃ᵀ(H_b + δ)g̃ / |g̃|²] over the same batches.",
            interval="95 %, Student's t, over batches",
        ),
        Column("scaled", "loss", "λ₁ times the squared norm of all scale-invariant weights; NaN without any."),
    ),
)

PLATEAUS = TableSchema(
    "sharpness_plateaus",
    "One plateau of constant learning rate; all but `first` and `last` over the iterates of its later half.",
    (
        Column("first", "1", "Steps taken before the plateau.", "int"),
        Column("last", "1", "Steps taken at its end.", "int"),
        Column("learning_rate", "1", "Learning rate η."),
        Column("iterates", "1", "Iterates of the later half whose largest eigenvalue converged.", "int"),
        Column("correlation_time", "iterates", "Where the autocorrelation of λ₁ about a line falls to 1/e."),
        Column("blocks", "1", f"Blocks in time of at least twice that; 0 where that makes fewer than {BLOCKS}.", "int"),
        Column(
            "change",
            "1",
            "Change of λ₁ over the half along a straight line through the blocks, over its mean.",
            interval="95 %, Student's t, of the line through the blocks",
        ),
        Column("settled", "1", "Whether λ₁ has no trend there, and one would have been seen.", "bool"),
        Column("largest", _CURVATURE, "Mean of λ₁.", interval=_BLOCKS),
        Column("limit_ratio", "1", "Mean of λ₁ + δ over the stability limit of the rule.", interval=_BLOCKS),
        Column("batch_sharpness", _CURVATURE, "Mean of the batch sharpness.", interval=_BLOCKS),
        Column("batch_ratio", "1", "Batch sharpness times η/2.", interval=_BLOCKS),
        Column("loss", "loss", "Mean of the training loss.", interval=_BLOCKS),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # Batches are counted as if all of them together had three times as many examples as there are.
    iterates, batches = options["iterates"], 3 * sizes.training
    memory = sizes.torch_bytes + sizes.product_bytes + 8 * (2 * BUDGET + 24) * sizes.parameters
    return Cost(
        memory,
        evaluations=iterates * sizes.training,
        gradients=iterates * batches,
        products=iterates * (PRODUCTS * sizes.training + batches),
    )


MEASURE = Measure(
    name="sharpness",
    title="The largest eigenvalue through training, beside the stability limit, the loss and the batch sharpness.",
    chapter=2,
    of="run",
    reads=("data", "trajectory"),
    tables=(SHARPNESS, PLATEAUS),
    cost=_cost,
    options=(
        Option("iterates", 128, "Iterates, half of them even, half denser after the start and drops.", at_least=4),
        Option("batches", 16, "Batches of the run's own size that are drawn at each iterate.", at_least=2),
    ),
    evaluates=True,
    gpu=True,
    items=True,
)
