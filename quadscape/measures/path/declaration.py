"""Principal components of a trajectory, as declared."""

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

LISTED = 20
"""Largest number of components in the table."""

DIMENSIONS = 1000
"""Most dimensions of a simulated random walk; in more, shares scatter less."""

COMPONENTS = TableSchema(
    "path_components",
    "One principal component of the iterates of a run, beside that of a random walk of as many points.",
    (
        Column("component", "1", "Number of the component, from 1.", "int"),
        Column("share", "1", "Share of the variance of the iterates that it explains."),
        Column(
            "walk",
            "1",
            "The same of a random walk in infinitely many dimensions, in closed form.",
            interval="95 %, over simulated walks in the attribute walk_dimensions dimensions",
        ),
    ),
)

POINTS = TableSchema(
    "path_points",
    "One iterate: its place in the plane of the first two principal components, and its distance from that plane.",
    (
        Column("iteration", "1", "Steps taken.", "int"),
        Column("pc1", "parameter", "Coordinate on the first component, from the mean of the iterates."),
        Column("pc2", "parameter", "Coordinate on the second component; 0 where there is none."),
        Column("distance", "parameter", "Euclidean distance of the iterate from the plane."),
        Column("radius", "parameter", "Euclidean distance of the iterate from the mean of the iterates."),
    ),
)

PLANE = TableSchema(
    "path_plane",
    "Training loss at one point of the plane of the first two principal components through the mean of the iterates.",
    (
        Column("pc1", "parameter", "Coordinate on the first component."),
        Column("pc2", "parameter", "Coordinate on the second component."),
        Column("loss", "loss", "Mean training loss (without weight decay)."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    iterates, points = options["iterates"], options["resolution"] ** 2
    walks = 3 * 8 * iterates * max(iterates, DIMENSIONS)
    memory = sizes.torch_bytes + sizes.evaluation_bytes + (2 * iterates + 16) * 8 * sizes.parameters + walks
    flops = 2 * iterates**2 * sizes.parameters + options["walks"] * (2 * iterates**2 * DIMENSIONS + 10 * iterates**3)
    return Cost(memory, evaluations=points * sizes.training, flops=flops)


MEASURE = Measure(
    name="path",
    title="The path of a run in the plane of its principal components, and the loss on that plane.",
    chapter=9,
    of="run",
    reads=("data", "trajectory"),
    tables=(COMPONENTS, POINTS, PLANE),
    cost=_cost,
    options=(
        Option("iterates", 512, "Most iterates whose components are taken, evenly spaced.", at_least=3),
        Option("resolution", 21, "Points of the plane along each component.", at_least=3),
        Option("walks", 40, "Simulated random walks, for the interval of their shares.", at_least=2),
    ),
    evaluates=True,
    gpu=True,
)
