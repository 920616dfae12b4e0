"""Gradient noise against curvature, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

_PROBES = "95 %, jackknife over random probes, on this training set"

GEOMETRY = TableSchema(
    "noise_curvature",
    "The covariance C of single examples' gradients against the Hessian H of the same loss, of one checkpoint.",
    (
        Column("trace", "loss² / parameter²", "tr C."),
        Column("noise_norm", "loss² / parameter²", "Frobenius norm ‖C‖.", interval=_PROBES),
        Column("curvature_norm", "loss / parameter²", "Frobenius norm ‖H‖."),
        Column(
            "off_diagonal",
            "1",
            "Share of ‖C‖² that is off the diagonal in the eigenbasis, 1 − Σᵢ(qᵢᵀCqᵢ)²/‖C‖².",
            interval=_PROBES,
        ),
        Column("off_diagonal_rotated", "1", "What that is on average if C is rotated at random.", interval=_PROBES),
        Column("commutator", "1", "‖CH − HC‖/(‖C‖‖H‖); 0 if they share an eigenbasis.", interval=_PROBES),
        Column(
            "commutator_rotated",
            "1",
            "Root mean square of that if C is rotated at random, in closed form.",
            interval=_PROBES,
        ),
        Column(
            "relative_commutator",
            "1",
            "‖CH − HC‖/(√2‖CH‖): 0 if they share an eigenbasis, about 1 if C is rotated at random. Two matrices of few "
            "large eigenvalues each nearly commute if these lie apart, which the norm above counts and this does not.",
            interval=_PROBES,
        ),
        Column("relative_commutator_rotated", "1", "Its value if C is rotated at random, of mean squares."),
        Column("alignment", "1", "tr(CH)/(‖C‖‖H‖), the cosine of C and H as vectors.", interval=_PROBES),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size, vectors = sizes.parameters, 2 * options["probes"]
    # Two tiles of gradients, and the vectors with what C and H make of them.
    memory = sizes.torch_bytes + sizes.gradient_bytes + 3 * GRADIENT_BYTES + 9 * 8 * size * vectors
    flops = 8.0 * sizes.training * size * vectors + 8.0 * size**2 * vectors
    return Cost(memory, gradients=sizes.training, flops=flops)


GRADIENT_BYTES = 1 << 28
"""Gradients of single examples that are held at once, in float64."""

MEASURE = Measure(
    name="noise_curvature",
    title="Does the noise of gradients share its eigenvectors with the Hessian?",
    chapter=4,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis", "gradients"),
    tables=(GEOMETRY,),
    cost=_cost,
    options=(Option("probes", 32, "Random vectors, beside as many first eigenvectors.", at_least=4),),
    evaluates=True,
    gpu=True,
)
