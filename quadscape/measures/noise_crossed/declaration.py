"""Cross-fitted noise against curvature, as declared."""

from quadscape.measures.declaration import Cost, Measure, Options, Sizes
from quadscape.tables import Column, TableSchema

BANDS = 30
"""Bands, even in log λ."""

POWERS = {"power_05": 0.5, "power_10": 1.0, "power_15": 1.5, "power_20": 2.0, "power_25": 2.5, "power_30": 3.0}
"""Exponents g of qᵀH^g q, by column."""

CROSSED = TableSchema(
    "noise_crossed",
    "A band of positive eigenvalues of one half of the data: curvature and noise along it, of either half.",
    (
        Column("halving", "1", "Number of the halving, from 0.", "int"),
        Column("seed", "1", "Seed of the halving.", "int"),
        Column("half", "1", "The half whose eigenvectors they are, 0 or 1.", "int"),
        Column("examples", "1", "Training examples of the other half.", "int"),
        Column("count", "1", "Eigenvectors in the band.", "int"),
        Column("own_curvature", "loss / parameter²", "Mean eigenvalue λ of the half whose eigenvectors they are."),
        Column("own_noise", "loss² / parameter²", "Mean qᵀCq of the same half."),
        Column("curvature", "loss / parameter²", "Mean qᵀHq of the other half."),
        Column("noise", "loss² / parameter²", "Mean qᵀCq of the other half."),
        *(
            Column(name, "(loss / parameter²)^g", f"Mean qᵀH^g q of the other half, g = {power:g}; negative λ as 0.")
            for name, power in POWERS.items()
        ),
        Column("told", "1", "Whether own_curvature lies above numerical zero and weight decay.", "bool"),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    size, count = sizes.parameters, sizes.training
    halvings = max(1, sizes.subsets // 2)
    memory = sizes.torch_bytes + sizes.gradient_bytes + min(8.6e9, 8 * size * max(size, count // 2)) + 64 * size
    # Gradients of both halves times both bases, and both overlaps of the bases.
    return Cost(memory, gradients=2 * count * halvings, flops=halvings * (4.0 * count * size**2 + 2.0 * size**3))


MEASURE = Measure(
    name="noise_crossed",
    title="How does gradient noise grow with curvature, where the directions come from other data than both?",
    chapter=4,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis", "subset_data", "subset_eigenbasis"),
    tables=(CROSSED,),
    cost=_cost,
    evaluates=True,
    gpu=True,
)
