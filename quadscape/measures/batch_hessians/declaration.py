"""Hessians of batches, as declared."""

from quadscape.measures.batches import batch_sizes
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

PRODUCTS = 45
"""Hessian products for the largest eigenvalues of one batch, about."""

_STUDENT = "95 %, Student's t over batches of this training set"

PAIRS = TableSchema(
    "batch_hessians",
    "One of the largest eigenvalues of the Hessian of one batch.",
    (
        Column("batch_size", "1", "Examples of the batch, B, none twice.", "int"),
        Column("batch", "1", "Number of the batch, from 0.", "int"),
        Column("place", "1", "Place of the eigenvalue, from 1, in descending order.", "int"),
        Column("eigenvalue", "loss / parameter²", "Eigenvalue of the batch's Hessian; NaN where it was not found."),
        Column("residual", "loss / parameter²", "‖H_b p − λp‖ of its eigenvector p."),
        Column("curvature", "loss / parameter²", "pᵀHp of all examples."),
        Column("cosine", "1", "|cos| of p with the eigenvector of all examples in the same place."),
        Column("captured", "1", "Share of p's squared norm in as many first eigenvectors of all examples."),
    ),
)

BROADENED = TableSchema(
    "batch_broadening",
    "The largest eigenvalues of batches of one size.",
    (
        Column("batch_size", "1", "Examples of a batch, B.", "int"),
        Column("place", "1", "Place of the eigenvalue, from 1.", "int"),
        Column("batches", "1", "Batches whose eigenvalues were found.", "int"),
        Column("full", "loss / parameter²", "Eigenvalue of the Hessian of all examples in this place."),
        Column("eigenvalue", "loss / parameter²", "Mean over batches.", interval=_STUDENT),
        Column("excess", "loss / parameter²", "That less `full`.", interval=_STUDENT),
        Column("curvature", "loss / parameter²", "Mean of pᵀHp over batches.", interval=_STUDENT),
        Column("captured", "1", "Mean of `captured` over batches.", interval=_STUDENT),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    total = sum(batch_sizes(sizes.training))
    batches = options["batches"] * len(batch_sizes(sizes.training))
    vectors = options["eigenvalues"] * batches
    # Krylov vectors of one batch, and what is found of all.
    memory = sizes.torch_bytes + sizes.product_bytes + 8 * sizes.parameters * (60 + vectors) + 8e6
    products = PRODUCTS * options["batches"] * total
    return Cost(memory, products=products, flops=2.0 * vectors * sizes.parameters**2)


MEASURE = Measure(
    name="batch_hessians",
    title="Hessians of batches: how far their largest eigenvalues lie above those of all examples.",
    chapter=4,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(PAIRS, BROADENED),
    cost=_cost,
    options=(
        Option("batches", 6, "Batches of each size.", at_least=2),
        Option("eigenvalues", 3, "Largest eigenvalues of each.", at_least=1, parameters_at_most=True),
    ),
    evaluates=True,
    gpu=True,
)
