"""What the costs of several measures follow from; no array library is loaded, as every job reads all declarations."""

from quadscape.measures.declaration import Cost, Sizes

TILE_COLUMNS = 1024
"""Eigenvectors that are multiplied at once, at most."""

NOISE_ITERATES = 16
"""Iterates over which the noise of a plateau is averaged, each a pass over all gradients of single examples."""

_MOST_TILE_BYTES = 8.6e9


def overlap_cost(sizes: Sizes, pairs: int = 1) -> Cost:
    """What it takes to multiply eigenbases with each other, in tiles; see `quadscape.curvature.projections`.

    Args:
        sizes: Of the run.
        pairs: Of bases, one after the other.

    Returns:
        Torch and the tiles, and the products.
    """
    size = sizes.parameters
    memory = sizes.torch_bytes + min(_MOST_TILE_BYTES, 8 * size**2)
    return Cost(memory_bytes=memory, flops=2 * pairs * size**3)


def tiled_bytes(parameters: int, rows: int) -> float:
    """Memory of many vectors times an eigenbasis; see `quadscape.curvature.projections.project`.

    Args:
        parameters: P.
        rows: Vectors that are multiplied.

    Returns:
        Bytes of the vectors, two tiles of the basis, a product and what its reader makes of it, or tiles of up to 9 GiB
        in all.
    """
    held = 8 * parameters * (rows + 3 * TILE_COLUMNS) + 64 * rows * TILE_COLUMNS
    return min(_MOST_TILE_BYTES, held)
