"""What one example costs in a network, and the memory that passes over many take, by arithmetic alone.

Whoever plans without torch (the workflow's head) reads these; `quadscape.network.counting` counts them.
"""

from dataclasses import dataclass

CPU_GRAPH_BYTES = 512 << 20
"""Memory of the graph of a gradient over one chunk of examples on a CPU."""
TORCH_BYTES = {"cpu": 1 << 30, "cuda": 3 << 30}
"""Of the host, of a process that has loaded torch, by kind of device; with that of its driver."""
LARGEST_CHUNK = 4096
PRODUCT_GRAPHS = 6
"""Graphs of a gradient that a Hessian product takes at once (measured: 3.1 to 4.9; native float64 convolutions
unfold)."""


@dataclass(frozen=True)
class TensorCounts:
    """What columns of the Hessian of one parameter tensor take, for one example.

    Attributes:
        columns: Number of its elements.
        per_channel: Of them for one index of its first axis.
        positions: Of the output of its layer, for one channel; 0 where columns cannot start there.
        own: Operations of its layer's forward pass; 0 where it belongs to none.
        later: Operations of the forward passes of the layers behind it.
        values: Numbers that are made from it on, in the forward pass.
        unfolded: Numbers of the largest unfolded input of a layer from it on.
    """

    columns: int
    per_channel: int
    positions: int
    own: float
    later: float
    values: float
    unfolded: float


@dataclass(frozen=True)
class Counts:
    """What one example costs in a network. Operations are those of products and convolutions, two per multiply–add.

    Attributes:
        forward: Operations of the forward pass.
        backward: Operations of the backward pass.
        graph_numbers: Numbers that autograd keeps for a gradient whose own derivative will be taken.
        outputs: Numbers that modules hand on in the forward pass, each module within another counted as well.
        values: Numbers that operations make in the forward pass.
        unfolded: Numbers of all inputs of layers, unfolded, and of their outputs likewise.
        tensors: By parameter tensor.
    """

    forward: float
    backward: float
    graph_numbers: float
    outputs: float
    values: float
    unfolded: float
    tensors: tuple[TensorCounts, ...]

    def product_bytes(self, count: int, itemsize: int) -> float:
        """Peak of the memory for one Hessian product on a CPU, beside network and data.

        Args:
            count: N.
            itemsize: Bytes of a number.

        Returns:
            Bytes.
        """
        return PRODUCT_GRAPHS * self.chunk_bytes(count, itemsize)

    def chunk_bytes(self, count: int, itemsize: int) -> float:
        """Memory of the graph of a gradient over one chunk of examples, on a CPU.

        Args:
            count: N.
            itemsize: Bytes of a number.

        Returns:
            Bytes.
        """
        return chunk_bytes(self.graph_numbers, count, itemsize)


def chunk_bytes(graph_numbers: float, count: int, itemsize: int) -> float:
    """Memory of the graph of a gradient over one chunk of examples, on a CPU.

    Args:
        graph_numbers: That autograd keeps of one example.
        count: N.
        itemsize: Bytes of a number.

    Returns:
        Bytes.
    """
    graph = max(1, int(graph_numbers * itemsize))
    return chunk_of(graph, count) * graph


def chunk_of(bytes_per_example: int, count: int, budget: int = CPU_GRAPH_BYTES) -> int:
    """Examples per chunk: the largest power of two whose gradient graph fits a budget of memory.

    Args:
        bytes_per_example: Of the graph.
        count: N.
        budget: Bytes.

    Returns:
        Between 1 and N.
    """
    fitting = max(1, min(LARGEST_CHUNK, budget // bytes_per_example))
    return min(count, 1 << (fitting.bit_length() - 1))
