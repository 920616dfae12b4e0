"""Hessian and eigenbasis at full size on one GPU: a share of every part is measured, the rest extrapolated.

    python -m benchmarks.gpu_whole                                       # all parts, under nine minutes on an H100
    python -m benchmarks.gpu_whole --parts reduction --checked 104234 --seconds 900

The reference network with w = 2, so P = 104,234, and N = 50,000, unless said otherwise. Of every part a share is
measured and named (`measured_share`), and the seconds of the whole follow from it: columns from one and two chunks of
examples, panels from their rate along the matrix, ranges from their mean. The last part reduces a whole matrix of
80,000 rows and checks it; where its time does not suffice, it says how far it came. Every part is a process of its
own, and prints a line of JSON for whatever it finds.

Needs torch, numpy, pydantic and pyyaml; Pillow for real images.
"""

import argparse
from functools import partial
from typing import Any

from benchmarks.gpu.eigenbasis import reduction_part, vectors_part
from benchmarks.gpu.hessian import OPTIONS, hessian_part, products_part
from benchmarks.gpu.matrices import gram_part
from benchmarks.gpu.runner import Found, Part, command
from benchmarks.gpu.storing import storing_part
from benchmarks.setting import option

_WHOLE = "reduction of "
_STARTING = 45.0


def _panels(arguments: argparse.Namespace) -> Found:
    return reduction_part(arguments, arguments.n, 40, whole=False)


def _reduction(arguments: argparse.Namespace) -> Found:
    # What the part has left, less the time to start, to make a matrix and to check it.
    return reduction_part(arguments, arguments.checked, arguments.seconds - _STARTING, whole=True)


def summed(parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A table of all steps, printed, and the sums by stage.

    Args:
        parts: What each part found.

    Returns:
        By stage, the seconds in all and the share of them that was measured.
    """
    rows = [row for found in parts.values() for row in found if "stage" in row]
    # A matrix of another size stands for nothing here.
    rows = [row for row in rows if not row["step"].startswith(_WHOLE)]
    totals: dict[str, Any] = {}
    print(f"\n{'stage':12s} {'step':26s} {'seconds':>9s} {'measured':>9s}")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == stage]
        seconds = sum(row["seconds"] for row in of_stage)
        measured = sum(row["seconds"] * row["measured_share"] for row in of_stage)
        for row in of_stage:
            print(f"{stage:12s} {row['step']:26s} {row['seconds']:9.2f} {row['measured_share']:9.0%}")
        totals[stage] = {"seconds_extrapolated": seconds, "measured_share": measured / seconds if seconds else 0.0}
        print(f"{stage:12s} {'in all, extrapolated':26s} {seconds:9.2f} {totals[stage]['measured_share']:9.0%}")
    return {"stages": totals}


main = command(
    __doc__,
    "benchmarks.gpu_whole",
    [
        Part("hessian", 150, partial(hessian_part, seconds=100)),
        Part("panels", 60, _panels),
        Part("vectors", 90, partial(vectors_part, seconds=60)),
        Part("gram", 50, gram_part),
        Part("products", 40, products_part),
        Part("storing", 40, storing_part),
        Part("reduction", 3600, _reduction),
    ],
    option("--n", type=int, default=104_234, help="size of the matrix (default: 104234)"),
    option("--checked", type=int, default=80_000, help="size of the reduction that is checked (default: 80000)"),
    option("--folder", help="where a file is written to measure the disk (default: that of temporary files)"),
    *OPTIONS,
    close=summed,
)

if __name__ == "__main__":
    main()
