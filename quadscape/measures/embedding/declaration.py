"""Embeddings of a trajectory, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

METHODS = ("pca", "umap", "autoencoder")
"""In the order of the tables."""

PATHS = ("run", "walk", "ou")
"""What is embedded: the iterates of the run, a random walk and an Ornstein–Uhlenbeck path."""

NEIGHBOURHOODS = (2, 5, 10, 20, 40)
"""Numbers of neighbours k of the scores; those below half the number of iterates are taken."""

LEAST = 8
"""Fewest iterates that are embedded."""

DIMENSIONS = 1000
"""Most dimensions of the paths beside the run; n points span n − 1 of them."""

HIDDEN, STEPS = 32, 500
"""Hidden units of the autoencoder on either side, and steps of its training."""

_SEEDS = "smallest to largest over the seeds, of which each has its own walk and Ornstein–Uhlenbeck path"
_APART = "only points at least 2τ apart in time are neighbours; NaN where most points have too few"

POINTS = TableSchema(
    "embedding_points",
    "One iterate of a run in one embedding. Lengths are in units of the root mean square distance of the iterates from "
    "their mean, the attribute radius; those of UMAP and of the autoencoder have no unit.",
    (
        Column("method", "1", "`pca`, `umap` or `autoencoder`.", "str"),
        Column("seed", "1", "Seed of the method; 0 alone for pca, which has none.", "int"),
        Column("iteration", "1", "Steps taken.", "int"),
        Column("x", "1", "First coordinate of the embedding."),
        Column("y", "1", "Second coordinate of the embedding."),
        Column("error", "1", "Distance of what the point is decoded to from the iterate; NaN for umap."),
    ),
)

SCORES = TableSchema(
    "embedding_scores",
    "How far one method's embedding of one path can be trusted, at one number of neighbours.",
    (
        Column(
            "path", "1", "`run`, `walk` (random) or `ou` (Ornstein–Uhlenbeck), with steps as long as the run's.", "str"
        ),
        Column("method", "1", "`pca`, `umap` or `autoencoder`.", "str"),
        Column("neighbours", "1", "Number of neighbours k.", "int"),
        Column(
            "trustworthiness", "1", "Whether neighbours in the embedding are neighbours in the path.", interval=_SEEDS
        ),
        Column("continuity", "1", "Whether neighbours in the path are neighbours in the embedding.", interval=_SEEDS),
        Column("trustworthiness_apart", "1", f"Trustworthiness where {_APART}.", interval=_SEEDS),
        Column("continuity_apart", "1", f"Continuity where {_APART}.", interval=_SEEDS),
        Column(
            "error",
            "1",
            "Mean squared distance of the decoded points, over the variance of the path; the same at every k. NaN for "
            "umap, which decodes nothing.",
            interval=_SEEDS,
        ),
    ),
)

PLANE = TableSchema(
    "embedding_plane",
    "Training loss at what the autoencoder of seed 0 decodes one point of its plane to.",
    (
        Column("x", "1", "First coordinate of the plane."),
        Column("y", "1", "Second coordinate of the plane."),
        Column("loss", "loss", "Mean training loss (without weight decay)."),
    ),
)


UMAP_BYTES = 0.5e9
"""Of UMAP and of what compiles it."""


def _cost(sizes: Sizes, options: Options) -> Cost:
    iterates, points, paths = options["iterates"], options["resolution"] ** 2, len(PATHS) * options["seeds"]
    # The weights of all autoencoders, with gradients and Adam's two moments, are small beside the rest.
    layers = 2 * HIDDEN * (iterates + 2)
    memory = sizes.torch_bytes + sizes.evaluation_bytes + UMAP_BYTES + (2 * iterates + 16) * 8 * sizes.parameters
    memory += 8 * paths * (8 * layers + 16 * iterates * (HIDDEN + iterates))
    training = 6 * STEPS * paths * iterates * layers
    flops = 2 * iterates**2 * sizes.parameters + 2 * points * iterates * sizes.parameters + training
    return Cost(memory, evaluations=points * sizes.training, flops=flops)


MEASURE = Measure(
    name="embedding",
    title="The path of a run in the planes of PCA, UMAP and an autoencoder, and how far each can be trusted.",
    chapter=9,
    of="run",
    reads=("data", "trajectory"),
    tables=(POINTS, SCORES, PLANE),
    cost=_cost,
    options=(
        Option("iterates", 100, "Most iterates that are embedded, evenly spaced.", at_least=LEAST),
        Option("neighbours", 15, "Size of UMAP's neighbourhoods, each point with itself.", at_least=3),
        Option("seeds", 3, "Seeds of UMAP, the autoencoder and the paths beside the run.", at_least=1),
        Option("resolution", 15, "Points of the autoencoder's plane along each coordinate.", at_least=3),
    ),
    evaluates=True,
    gpu=True,
)
