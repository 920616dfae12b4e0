"""Columns that tables of directions, of bands of directions, and of members of a family share."""

from quadscape.tables import Column

DIRECTION = (
    Column("index", "1", "Index of the eigenvector in descending order of eigenvalue, from 0.", "int"),
    Column("sign", "1", "+1 for an eigenvalue of at least 0, −1 below.", "int"),
    Column("rank", "1", "Rank by magnitude among the eigenvalues of this sign, from 1.", "int"),
    Column("eigenvalue", "loss / parameter²", "Eigenvalue λ of the Hessian."),
)
"""One eigenvector; `quadscape.measures.ranks.direction_rows` gives the values."""

IS_ZERO = Column("is_zero", "1", "Whether |λ| is at most the numerical zero ε_λ.", "bool")


def band_columns(suffix: str = "", whose: str = "") -> tuple[Column, ...]:
    """Columns of one band of log rank.

    Args:
        suffix: Of the names of the columns.
        whose: Of which basis, in words.

    Returns:
        sign, first_rank and last_rank.
    """
    return (
        Column(f"sign{suffix}", "1", f"Sign of the eigenvalues of the band{whose}.", "int"),
        Column(f"first_rank{suffix}", "1", f"Smallest rank within the sign of the band{whose}.", "int"),
        Column(f"last_rank{suffix}", "1", f"Largest rank within the sign of the band{whose}.", "int"),
    )


BAND_SIZE = (
    Column("count", "1", "Eigenvectors in the band.", "int"),
    Column("eigenvalue", "loss / parameter²", "Median eigenvalue of the band."),
)


def curvature_band(where: str = "") -> tuple[Column, ...]:
    """Columns of one band even in log λ̃.

    Args:
        where: Of which point the curvatures are, in words.

    Returns:
        curvature, lowest, highest and count.
    """
    return (
        Column("curvature", "loss / parameter²", f"Geometric mean of λ̃ over the band{where}."),
        Column("lowest", "loss / parameter²", f"Smallest λ̃ of the band{where}."),
        Column("highest", "loss / parameter²", f"Largest λ̃ of the band{where}."),
        Column("count", "1", "Eigenvectors in the band.", "int"),
    )


MEMBER = (
    Column("run", "1", "Place of the member in the family, from 0.", "int"),
    Column("cell", "1", "Labels of the member on all axes that do more than change the seed.", "str"),
    Column("seed", "1", "Seed of initial parameters and batch order.", "int"),
)
"""One member of a family."""

SETTINGS = (
    Column("method", "1", "`sgd`, `rmsprop`, `adam` or `adamw`.", "str"),
    Column("momentum", "1", "Momentum μ of SGD; NaN for other methods."),
    Column("batch_size", "1", "Examples of one step, B.", "int"),
    Column("learning_rate", "1", "Learning rate η after the warm-up."),
    Column("weight_decay", "1", "Weight decay δ."),
    Column("iterations", "1", "Planned number of steps.", "int"),
    Column("examples", "1", "Number of training examples, N.", "int"),
    Column("parameters", "1", "Number of parameters, P.", "int"),
)
"""What of a run's training its results are compared by."""

DIVERGED = Column("diverged_at", "1", "Iteration at which the loss was first not finite; −1 if it never was.", "int")
