"""The parts of the Hessian, as declared."""

from quadscape.measures.columns import DIRECTION, IS_ZERO
from quadscape.measures.declaration import Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

SPECTRA = TableSchema(
    "parts_spectrum",
    "One eigenvalue of the Hessian H, of its Gauss–Newton part G, or of the remainder R = H − G.",
    (
        Column("part", "1", "H, G or R.", "str"),
        Column("sign", "1", "+1 for an eigenvalue of at least 0, −1 below.", "int"),
        Column("rank", "1", "Rank by magnitude among the eigenvalues of this part and sign, from 1.", "int"),
        Column("eigenvalue", "loss / parameter²", "Eigenvalue."),
        Column("is_zero", "1", "Whether its magnitude is at most the numerical zero of this part.", "bool"),
    ),
)


RITZ = TableSchema(
    "parts_ritz",
    "One eigenvector q of the Hessian, and how its eigenvalue λ = qᵀGq + qᵀRq is made up.",
    (
        *DIRECTION,
        Column("gauss_newton", "loss / parameter²", "qᵀGq, never negative but for rounding."),
        Column("remainder", "loss / parameter²", "qᵀRq."),
        IS_ZERO,
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size = sizes.parameters
    # Two dense matrices, and their tridiagonal reductions (4/3 P³ each).
    memory = sizes.torch_bytes + 2200 * 8 * size + 2 * sizes.itemsize * size**2
    return Cost(memory, flops=8 / 3 * size**3)


MEASURE = Measure(
    name="parts",
    title="Which part of the Hessian makes its eigenvalues: spectra of H, of its Gauss–Newton part G and of R = H − G.",
    chapter=2,
    of="checkpoint",
    reads=("data", "checkpoint", "hessian", "gauss_newton", "eigenbasis"),
    tables=(SPECTRA, RITZ),
    cost=_cost,
    gpu=True,
    items=True,
)
