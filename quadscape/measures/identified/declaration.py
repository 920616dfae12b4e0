"""Which eigenvectors the data determine, as declared."""

from quadscape.measures.columns import BAND_SIZE, band_columns
from quadscape.measures.costs import overlap_cost
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

COMPARED = (
    Column("comparison", "1", "Number of the comparison, from 0.", "int"),
    Column("kind", "1", "`order`: the same data summed otherwise; `halves`: two halves; `subset`: other data.", "str"),
    Column("subset", "1", "What the own basis, or the other half, is compared with, in words.", "str"),
    Column("seed", "1", "Seed of the subset.", "int"),
    Column("examples", "1", "Training examples of the smaller of the two data sets.", "int"),
)

MAXIMA = TableSchema(
    "identified_maxima",
    "A band of log rank of one basis of a checkpoint, without what cannot be told from zero, against another basis.",
    (
        *COMPARED,
        *band_columns(),
        *BAND_SIZE,
        Column("largest", "loss / parameter²", "Largest eigenvalue of the band."),
        Column("smallest", "loss / parameter²", "Smallest eigenvalue of the band."),
        Column("median", "1", "Median of the largest |cos| with any eigenvector of the other basis."),
        Column("lower_quartile", "1", "25 % quantile of the same."),
        Column("upper_quartile", "1", "75 % quantile of the same."),
        Column("captured", "1", "Median norm of what lies in the other basis' ranks from half to twice the own."),
        Column("captured_chance", "1", "What a random vector would have there, √(share of all directions)."),
    ),
)

DIMENSION = TableSchema(
    "identified_dimension",
    "How many eigenvectors of one end two halves of the data agree on; the last rows are of all halvings together.",
    (
        Column("end", "1", "`top`: positive eigenvalues; `bottom`: negative ones.", "str"),
        Column("halving", "1", "Number of the comparison; −1: of all halvings.", "int"),
        Column("seed", "1", "Seed of the halving; −1: of all.", "int"),
        Column("halvings", "1", "Halvings that the row is of.", "int"),
        Column("examples", "1", "Training examples of the smallest half.", "int"),
        Column(
            "directions", "1", "Eigenvalues of this end beyond the numerical zero of the first half; median.", "int"
        ),
        Column("chance_from", "1", "Rank from which on a random vector has a captured norm of 0.7; 0: nowhere.", "int"),
        Column(
            "k_vec",
            "1",
            "Largest rank up to which every band has a median largest |cos| of 0.7; of all halvings their median.",
            interval="range over halvings",
        ),
        Column(
            "k_sub",
            "1",
            "The same of the norm that half to twice the rank captures.",
            interval="range over halvings",
        ),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    # Two halves are one comparison, others are compared with the own basis: at most one for each subset.
    return overlap_cost(sizes, pairs=max(1, sizes.subsets))


MEASURE = Measure(
    name="identified",
    title="Which eigenvectors do the data determine? Eigenbases of one checkpoint on halves, orders and other subsets.",
    chapter=2,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis", "subset_data", "subset_eigenbasis"),
    tables=(MAXIMA, DIMENSION),
    cost=_cost,
    options=(
        Option(
            "bands",
            30,
            "Logarithmic bands of eigenvalue rank.",
            at_least=2,
            parameters_at_most=True,
        ),
    ),
    gpu=True,
)
