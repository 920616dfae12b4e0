"""The spectral density, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

_INTERVAL = "95 %, Student's t, over start vectors"


SCHEMA = TableSchema(
    "density",
    "The spectrum of the Hessian of the training loss (without weight decay) around one λ, broadened by a kernel.",
    (
        Column("eigenvalue", "loss / parameter²", "Place λ."),
        Column("density", "parameter² / loss", "Share of the eigenvalues per unit of λ.", interval=_INTERVAL),
        Column("below", "1", "Number of eigenvalues below λ.", interval=_INTERVAL),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    memory = sizes.torch_bytes + sizes.product_bytes + 8 * (options["steps"] + 20) * sizes.parameters
    return Cost(memory, products=options["vectors"] * options["steps"] * sizes.training)


MEASURE = Measure(
    name="density",
    title="Spectral density of the Hessian by stochastic Lanczos quadrature, without its eigenbasis.",
    chapter=2,
    of="checkpoint",
    reads=("data", "checkpoint"),
    tables=(SCHEMA,),
    cost=_cost,
    options=(
        Option("vectors", 8, "Random start vectors; the intervals are over them.", at_least=2),
        Option("steps", 64, "Lanczos steps, and so Hessian products, per start vector: the resolution.", at_least=2),
    ),
    evaluates=True,
    gpu=True,
    items=True,
)
