"""Localisation of eigenvectors, as declared."""

from quadscape.measures.columns import BAND_SIZE, DIRECTION, band_columns
from quadscape.measures.declaration import Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

LARGEST = 100
"""Components whose share of the squared norm is given."""

PASSES = 9
"""Over all components: five make arrays (float64, squares, shares, their squares, a copy of each band's columns), and
four add up (norms, fourth powers, layers, diagonals of bands)."""

DIRECTIONS = TableSchema(
    "localisation",
    "One eigenvector beyond the numerical zero, and how it is spread over the parameters.",
    (
        *DIRECTION,
        Column("participation", "parameters", "Participation ratio 1/Σq⁴ of its components: as many equal ones."),
        Column("largest_share", "1", f"Share of the squared norm in its {LARGEST} largest components."),
    ),
)

PARAMETERS = TableSchema(
    "localisation_layers",
    "One eigenvector beyond the numerical zero, and the part of it that lies in one parameter of the network.",
    (
        *DIRECTION,
        Column("layer", "1", "Name of the layer.", "str"),
        Column("kind", "1", "Kind of parameter: `weight`, `bias` or what the layer calls it.", "str"),
        Column("share", "1", "Part of its squared norm."),
        Column("chance", "1", "The same of a random vector: the part of all parameters that lies there."),
    ),
)

BANDS = TableSchema(
    "localisation_bands",
    "The projector onto the eigenvectors of one band of log rank, which no choice of basis within the band changes.",
    (
        *band_columns(),
        *BAND_SIZE,
        Column("participation", "parameters", "Participation ratio k²/Σd² of the projector's diagonal d."),
        Column("chance", "parameters", "The same for a random subspace of this dimension k: k(P + 2)/(k + 2)."),
        Column("is_zero", "1", "Whether the band's median |λ| is at most the numerical zero ε_λ.", "bool"),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size = sizes.parameters
    # A tile of eigenvectors as it was read and in float64, its squares, their shares, and those of the tile before.
    memory = sizes.torch_bytes + min(2.6e9, 40 * size**2) + 64 * 8 * size
    return Cost(memory, numbers=float(PASSES) * size**2)


MEASURE = Measure(
    name="localisation",
    title="How few parameters, and of which layers, an eigenvector lives in.",
    chapter=2,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(DIRECTIONS, PARAMETERS, BANDS),
    cost=_cost,
)
