"""Overlaps of eigenbases, as declared."""

from quadscape.measures.columns import BAND_SIZE, DIRECTION, band_columns
from quadscape.measures.costs import overlap_cost
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

_AXIS_A, _AXIS_B = band_columns("_a", " of the first basis"), band_columns("_b", " of the second basis")

ROWS = TableSchema(
    "overlap_rows",
    "One eigenvector of the first basis and the eigenvector of the second that is most like it.",
    (
        *DIRECTION,
        Column("maximum", "1", "Largest |cos| with any eigenvector of the second basis."),
        Column("partner", "1", "Index of that eigenvector.", "int"),
        Column("partner_eigenvalue", "loss / parameter²", "Eigenvalue of that eigenvector."),
    ),
)


MAXIMA = TableSchema(
    "overlap_maxima",
    "Row maxima of one band of log rank of the first basis, over all its eigenvectors.",
    (
        *_AXIS_A,
        *BAND_SIZE,
        Column("median", "1", "Median of the largest |cos| with any eigenvector of the second basis."),
        Column("lower_quartile", "1", "25 % quantile of the same."),
        Column("upper_quartile", "1", "75 % quantile of the same."),
    ),
)


BANDS = TableSchema(
    "overlap_bands",
    "A band of log rank of the first basis against one of the second.",
    (
        Column("band_a", "1", "Band of the first basis, from 0 (largest eigenvalues).", "int"),
        Column("band_b", "1", "Band of the second basis, from 0 (largest eigenvalues).", "int"),
        *_AXIS_A,
        *_AXIS_B,
        Column("ratio", "1", "Mean of cos² over the band's pairs, divided by the 1/P of chance."),
    ),
)


def _magnitudes(suffix: str, whose: str) -> tuple[Column, ...]:
    return (
        Column(f"sign{suffix}", "1", f"Sign of the eigenvalues of the band of {whose}; 0: |λ| ≤ ε_λ.", "int"),
        Column(f"least{suffix}", "loss / parameter²", f"|λ| of the band of {whose} is above this; 0 for that of zero."),
        Column(
            f"most{suffix}", "loss / parameter²", f"|λ| of the band of {whose} is at most this; ε_λ for that of zero."
        ),
        Column(f"count{suffix}", "1", f"Eigenvectors in the band of {whose}.", "int"),
    )


POWER = TableSchema(
    "overlap_power",
    "A band of log |λ| of the first basis against one of the second; bands without an eigenvalue are left out.",
    (
        *_magnitudes("_a", "the first basis"),
        *_magnitudes("_b", "the second basis"),
        Column("power", "1", "Σ cos² over the second band, mean over the eigenvectors of the first: what lies in it."),
        Column("chance", "1", "Its expectation for a random basis, the second band's share of all directions."),
        Column("ratio", "1", "power / chance."),
    ),
)


SUBSPACE = TableSchema(
    "overlap_subspace",
    "The span of the k highest, or of the k lowest, eigenvectors of one basis against that of the other.",
    (
        Column("end", "1", "`top`: the k largest eigenvalues; `bottom`: the k smallest.", "str"),
        Column("k", "1", "Dimension of both subspaces.", "int"),
        Column("overlap", "1", "Mean of cos² over the principal angles, 1 for equal subspaces."),
        Column("chance", "1", "Its expectation k/P for a random subspace."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    return overlap_cost(sizes)


MEASURE = Measure(
    name="overlap",
    title="|QₐᵀQ_b| between the eigenbases of two checkpoints of a run: are the eigenvectors constant?",
    chapter=2,
    of="checkpoint_pair",
    reads=("eigenbasis",),
    tables=(ROWS, MAXIMA, BANDS, POWER, SUBSPACE),
    cost=_cost,
    options=(
        Option(
            "bands",
            60,
            "Logarithmic bands of eigenvalue rank per axis, and at most as many of |λ|.",
            at_least=2,
            parameters_at_most=True,
        ),
    ),
    gpu=True,
)
