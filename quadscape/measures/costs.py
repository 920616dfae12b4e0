"""What the costs of several measures follow from; no array library is loaded, as every job reads all declarations."""

TILE_COLUMNS = 1024
"""Eigenvectors that are multiplied at once, at most."""

NOISE_ITERATES = 16
"""Iterates over which the noise of a plateau is averaged, each a pass over all gradients of single examples."""

_MOST_TILE_BYTES = 8.6e9


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
