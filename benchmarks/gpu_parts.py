"""The first minutes on a GPU: whether what everything rests on is right at full size, and how fast it is.

    python -m benchmarks.gpu_parts                        # all of it, under nine minutes on an H100
    python -m benchmarks.gpu_parts --parts matrices       # one part

What matters most comes first: products with a matrix of more than 2³¹ entries; panels of the reduction; columns of the
Hessian from every layer; divide and conquer where hardly anything deflates; a whole reduction that is checked; and the
largest matrix that the library can decompose. Every part is a process of its own, and prints a line of JSON for
whatever it finds.

Needs torch, numpy, pydantic and pyyaml; Pillow for real images.
"""

import argparse
from functools import partial

from benchmarks.gpu.eigenbasis import library_part, reduction_part, vectors_part
from benchmarks.gpu.hessian import OPTIONS, hessian_part
from benchmarks.gpu.matrices import machine_part, matrices_part
from benchmarks.gpu.runner import Found, Part, command
from benchmarks.setting import option


def _panels(arguments: argparse.Namespace) -> Found:
    return reduction_part(arguments, arguments.n, 40, whole=False)


def _reduction(arguments: argparse.Namespace) -> Found:
    return reduction_part(arguments, min(arguments.n, arguments.checked), 50, whole=True)


def _library(arguments: argparse.Namespace) -> Found:
    return library_part(arguments, 40, arguments.sizes)


main = command(
    __doc__,
    "benchmarks.gpu_parts",
    [
        Part("machine", 40, machine_part),
        Part("matrices", 90, matrices_part),
        Part("panels", 60, _panels),
        Part("hessian", 150, partial(hessian_part, seconds=100)),
        Part("vectors", 90, partial(vectors_part, seconds=60)),
        Part("reduction", 70, _reduction),
        Part("library", 60, _library),
    ],
    option("--n", type=int, default=104_234, help="size of the matrix (default: 104234)"),
    option("--checked", type=int, default=32_768, help="size of the reduction that is checked (default: 32768)"),
    option(
        "--sizes",
        type=int,
        nargs="+",
        default=[16_384, 20_480, 24_576, 28_672],
        help="of the library (default: 16384 20480 24576 28672)",
    ),
    *OPTIONS,
)

if __name__ == "__main__":
    main()
