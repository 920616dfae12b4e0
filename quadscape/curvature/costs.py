"""What Hessian, Gauss–Newton matrix and eigenbasis take in memory, disk and operations, by arithmetic alone.

A stage says it of its plan (`estimate`), the planner of a network's counts before there is a plan
(`quadscape.planning.laws`); both by the functions here, which import no torch.
"""

from quadscape.network.counts import TORCH_BYTES, Counts, TensorCounts, chunk_of

STRIP_BYTES = 512 << 20
"""Of a strip of columns in float64, at most."""
ENGINE_CHUNK = 64
"""Examples of one primal pass on a CPU, at most."""
ENGINE_TILE_BYTES = 64 << 20
"""Tangents that are carried at once on a CPU."""
SIGN_PROBES = 16
"""Random sign vectors of each kind that a matrix is verified with: a norm estimated from 16 is off by at most
√(2/16)/2 = 18 % (one σ)."""
USUAL_COLUMNS = 256
"""Columns of one channel, as far as the choice between columns and positions goes."""
MATRIX_ROWS = 1024
"""Rows of one chunk of a stored matrix."""
ACCUMULATED_BYTES = {"cpu": 1 << 30, "cuda": 18 << 30}
"""Entries of the Gauss–Newton matrix in float64 that are summed at once: of a GPU an eighth of its memory, of which no
more than this is assumed beforehand."""
ROW_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Rows of Jacobians at once."""
_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 16


# ---------------------------------------------------------------------------------------------------------------------
# Cutting


def power_of_two_below(value: int) -> int:
    """The largest power of two that is not larger."""
    return 1 << (value.bit_length() - 1)


def widest_strip(size: int) -> int:
    """Columns of a strip at most: about a thirty-second of P, so that a kill never loses much.

    Args:
        size: P.

    Returns:
        A power of two.
    """
    return power_of_two_below(min(size, max(_SMALLEST_BLOCK, size // 32)))


def column_block(size: int) -> int:
    """Columns of one file of a P×P matrix, before its cost is looked at: a power of two.

    Args:
        size: P.

    Returns:
        At most 256, about a thirty-second of P below, at least 16, and so few that a strip of one file in float64 stays
        under 512 MiB.
    """
    return power_of_two_below(max(1, min(widest_strip(size), _LARGEST_BLOCK, STRIP_BYTES // (8 * size))))


def strip_columns(size: int) -> int:
    """Columns of any strip, at most: by its width or by its bytes, where a single file may be more.

    Args:
        size: P.

    Returns:
        A number of columns.
    """
    return max(column_block(size), min(widest_strip(size), 2 * STRIP_BYTES // (8 * size)))


# ---------------------------------------------------------------------------------------------------------------------
# Memory and disk


def starts_at_positions(counts: TensorCounts) -> bool:
    """Whether columns of a tensor are likely to be carried as positions of its layer's output.

    Args:
        counts: Of the tensor.

    Returns:
        True where there are fewer of them than columns.
    """
    return 0 < counts.positions < min(counts.per_channel, USUAL_COLUMNS)


def resident_bytes(device: str, images: float) -> int:
    """Host memory for torch and the data.

    Args:
        device: `cpu` or `cuda`.
        images: Numbers of all images.

    Returns:
        Bytes.
    """
    return int(TORCH_BYTES[device] + 12 * images)


def strips_bytes(size: int, columns: int) -> int:
    """Memory of three strips of columns, as they are read, checked and compared, or computed, checked and stored.

    Args:
        size: P.
        columns: Of the widest.

    Returns:
        Bytes.
    """
    return 24 * size * columns


def storing_bytes(size: int, columns: int, itemsize: int) -> int:
    """Memory of a strip of columns that is being stored while the next one is computed, and of what is encoded of it.

    Args:
        size: P.
        columns: Of the widest.
        itemsize: Bytes of an entry.

    Returns:
        Bytes.
    """
    return 2 * itemsize * size * columns


def engine_bytes(counts: Counts, examples: int, itemsize: int, columns: int) -> float:
    """Most that the engine takes for one strip on a CPU, beside network and data.

    Args:
        counts: Of the network.
        examples: N.
        itemsize: Bytes of a number.
        columns: Of the strip.

    Returns:
        Bytes, at least `HessianEngine.memory_bytes` and rarely three times as much.
    """
    chunk = min(ENGINE_CHUNK, chunk_of(max(1, int(counts.graph_numbers * itemsize)), examples))
    together = chunk * itemsize
    carried = 0.0
    for one in counts.tensors:
        directions = max(1.0, ENGINE_TILE_BYTES / max(1.0, one.values * together))
        if starts_at_positions(one):
            directions = one.positions
        carried = max(carried, min(directions, columns, one.columns) * (2 * one.values + one.unfolded) * together)
    size = sum(one.columns for one in counts.tensors)
    rows = 3 * min(columns, USUAL_COLUMNS) * max(one.columns for one in counts.tensors) * itemsize
    primal = (5 * counts.values + counts.unfolded) * together
    return primal + carried + 4 * ENGINE_TILE_BYTES + columns * size * 8 + rows


def lower_entries(size: int, block: int, start: int, stop: int) -> int:
    """Entries of some columns on and below the blocks on the diagonal.

    Args:
        size: P.
        block: Columns of a file.
        start: First column.
        stop: One after the last column.

    Returns:
        Their number.
    """
    return sum((size - c) * min(block, stop - c) for c in range(start, stop, block))


def run_bytes(size: int, entries: float, columns: float, itemsize: int) -> int:
    """Memory of a run of columns of the Gauss–Newton matrix, in float64 and as stored, and of the one before it.

    That one is being stored meanwhile, and so is there in the matrix's precision, and encoded.

    Args:
        size: P.
        entries: Of them on and below the diagonal.
        columns: Their number.
        itemsize: Bytes of an entry.

    Returns:
        Bytes.
    """
    return int(8 * entries + itemsize * size * columns) + storing_bytes(size, int(columns), itemsize)


def rows_bytes(size: int, rows: float, itemsize: int) -> int:
    """Memory of some rows of Jacobians, with what their derivation holds.

    Args:
        size: P.
        rows: Their number.
        itemsize: Bytes of an entry.

    Returns:
        Bytes.
    """
    return int(3 * rows * size * itemsize)


def gauss_newton_bytes(device: str, size: int, classes: int, itemsize: int) -> int:
    """Most that runs of columns of the Gauss–Newton matrix take of the host, beside network and data.

    Args:
        device: `cpu` or `cuda`.
        size: P.
        classes: C.
        itemsize: Bytes of an entry.

    Returns:
        Bytes.
    """
    block = column_block(size)
    # A run may be one block beyond what fits, and has the most columns where these are short: at the end.
    entries = min(size * (size + block) / 2, ACCUMULATED_BYTES[device] / 8 + block * size)
    columns = min(float(size), (2 * entries) ** 0.5 + block)
    rows = 0.0 if device == "cuda" else max(classes, ROW_BYTES["cpu"] / (size * itemsize))
    return run_bytes(size, entries, columns, itemsize) + rows_bytes(size, rows, itemsize)


def eigenbasis_bytes(device: str, solver: str, solver_bytes: float, product_bytes: float) -> int:
    """Memory that the eigenbasis takes of the host.

    Args:
        device: `cpu` or `cuda`.
        solver: As `plan_solver` calls it.
        solver_bytes: What it takes where the matrix is.
        product_bytes: What one product of the float64 objective takes on a CPU.

    Returns:
        Bytes.
    """
    if device == "cuda":
        # The matrix is on the GPU; the host holds strips, and a library's results.
        return TORCH_BYTES[device] + int(solver_bytes if solver == "cusolver" else 4 << 30)
    # The checks at the end take no more than the solver did.
    return TORCH_BYTES[device] + int(max(product_bytes, solver_bytes))


def triangle_bytes(size: int, itemsize: int) -> float:
    """A stored lower triangle: of each column of files, what begins at or below the diagonal.

    Args:
        size: P.
        itemsize: Bytes of an entry.

    Returns:
        Bytes.
    """
    block, rows = column_block(size), min(size, MATRIX_ROWS)
    files = sum(-(-size // rows) - start // rows for start in range(0, size, block))
    return float(files) * rows * block * itemsize


# ---------------------------------------------------------------------------------------------------------------------
# Operations


def columns_operations(counts: Counts) -> float:
    """Operations of all columns of the Hessian for one example, at most.

    Tangents go through every later layer and back (twice its forward pass each way), and meet its input and the adjoint
    of its output in rows of its weight (twice); from positions of an output, which stand for more columns than they
    are, less than half of that.

    Args:
        counts: Of the network.

    Returns:
        At least what `HessianEngine.flops` counts, and rarely three times as much.
    """
    total = 3 * (counts.forward + counts.backward)
    for one in counts.tensors:
        passes = 2.5 if starts_at_positions(one) else 4.2
        total += one.columns * (passes * one.later + one.own)
    return total
