"""Curvature of single examples, as declared."""

from quadscape.measures.columns import DIRECTION, IS_ZERO
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

FEW = 0.01
"""Share of examples that counts as a few."""

SHOWN, PLACES = 6, 6
"""Directions whose largest examples are shown, and how many of each."""

CURVATURES = TableSchema(
    "example_curvature",
    "Curvature of single examples along one eigenvector q; exact on this training set but for rounding.",
    (
        *DIRECTION,
        IS_ZERO,
        Column("gauss_newton", "loss / parameter²", "qᵀGq, mean of qᵀGₙq ≥ 0 over examples."),
        Column("hessian", "loss / parameter²", "qᵀHq, mean of qᵀHₙq."),
        Column("participation", "1", "(Σγ)²/(NΣγ²) of γₙ = qᵀGₙq: effective share of examples; 1/N if one has it all."),
        Column("half", "1", "Smallest share of examples that has half of Σγ."),
        Column("few", "1", f"Share of Σγ of the {FEW:.0%} of examples with the largest γ (one at least)."),
        Column("participation_hessian", "1", "(Σ|h|)²/(NΣh²) of hₙ = qᵀHₙq."),
        Column("half_hessian", "1", "Smallest share of examples that has half of Σ|h|."),
        Column("negative", "1", "Share of Σ|h| of examples with hₙ < 0."),
        Column(
            "opposed",
            "1",
            f"Of the {FEW:.0%} of examples (two at least) with the largest |gₙᵀq|, how far their slopes cancel: "
            "1 − |Σ|/Σ|·|; 0 if all push the same way.",
        ),
        Column("top_example", "1", "Training example with the largest γ.", "int"),
        Column("top_share", "1", "Its share of Σγ."),
    ),
)

EXAMPLES = TableSchema(
    "curvature_examples",
    "One of the examples that carry most of qᵀGq along one of a few eigenvectors.",
    (
        *DIRECTION,
        Column("place", "1", "Place of the example, from 1.", "int"),
        Column("example", "1", "Number of the training example, from 0.", "int"),
        Column("share", "1", "Its share of Σγ."),
        Column("slope", "loss / parameter", "gₙᵀq."),
        Column("hessian", "loss / parameter²", "qᵀHₙq."),
        Column("label", "1", "Name of its class.", "str"),
        Column("prediction", "1", "Name of the class with the largest score.", "str"),
        Column("probability", "1", "Softmax of the scores at its own class."),
        Column("image", "1", "The image: bytes of uint8 in base64, of the shape in attribute image_shape.", "str"),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # Forward derivatives keep less than the graph of a product.
    memory = sizes.torch_bytes + sizes.product_bytes + 6 * 8 * sizes.parameters + 64 * sizes.training
    return Cost(memory, products=options["directions"] * sizes.training)


MEASURE = Measure(
    name="example_curvature",
    title="Curvature of single examples along eigenvectors: many a little, or a few a lot?",
    chapter=4,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(CURVATURES, EXAMPLES),
    cost=_cost,
    options=(
        Option(
            "directions",
            500,
            "Number of eigenvectors, on log-spaced ranks of both signs and of the bulk.",
            at_least=1,
            parameters_at_most=True,
        ),
    ),
    evaluates=True,
    gpu=True,
    items=True,
)
