"""What a training run takes in memory and disk, and how many steps one unit has, by arithmetic alone.

The stage says it of its plan (`quadscape.training.task`), the planner before there is one (`quadscape.planning.laws`).
"""

import math

from quadscape.config.sections import Training
from quadscape.network.counts import TORCH_BYTES

FULL_CHUNK = {"cpu": 512, "cuda": 4096}
"""Examples at once in the gradient of a full batch, by kind of device."""
STATE = {
    "sgd": {"momentum": "momentum_buffer"},
    "rmsprop": {"mean_square": "square_avg"},
    "adam": {"mean": "exp_avg", "mean_square": "exp_avg_sq"},
    "adamw": {"mean": "exp_avg", "mean_square": "exp_avg_sq"},
}
"""What each method keeps of the past, as vectors of the size of θ: the name here, and torch's."""
EVALUATION_CHUNK = {"cpu": 512, "cuda": 4096}
"""Examples at once where whole splits are evaluated."""
_MAX_STEPS = 256
_MAX_SHARD_BYTES = 64 * 2**20
_MAX_UNIT_SECONDS = 30.0
# Low guesses of what a core and a GPU reach, per second: a unit may be shorter than the limit, hardly longer.
_RATE = {"cpu": 1e10, "cuda": 1e12}
_THREADING_OPERATIONS = 5e8


def step_threads(batch: int, forward: float, allowed: int) -> int:
    """CPU threads of a step: more than one only delay small steps, and make their sums depend on the machine.

    Args:
        batch: Examples of a step.
        forward: Operations of the forward pass of one example.
        allowed: Threads that the job may use.

    Returns:
        1, or all of them.
    """
    return allowed if 3 * batch * forward > _THREADING_OPERATIONS else 1


def unit_steps(run: Training, size: int, batch: int, forward: float, device: str, threads: int) -> int:
    """Steps of a unit, from counted operations: a busy machine must not change the plan.

    Args:
        run: The run.
        size: P.
        batch: Examples of a step.
        forward: Operations of the forward pass of one example.
        device: `cpu` or `cuda`.
        threads: CPU threads.

    Returns:
        A power of two.
    """
    rate = _RATE[device] * (threads if device == "cpu" else 1)
    seconds = 3 * batch * forward / rate * (2 if run.dtype == "float64" else 1)
    steps = min(_MAX_STEPS, _MAX_SHARD_BYTES // (8 * size), run.iterations + 1)
    steps = max(1, min(steps, int(_MAX_UNIT_SECONDS / max(seconds, 1e-9))))
    return 2 ** int(math.log2(steps))


def together(run: Training, batch: int, device: str) -> int:
    """Examples that go through the network at once in a step."""
    return min(batch, FULL_CHUNK[device]) if run.batch_size == "full" else batch


def vectors_of_state(run: Training) -> int:
    """Vectors of the size of θ that the optimizer of a run keeps besides θ."""
    return len(STATE[run.optimizer.method])


def training_bytes(
    run: Training, size: int, numbers: float, outputs: float, examples: int, steps: int, device: str
) -> int:
    """Memory of a training run, without that of a step rule.

    Args:
        run: The run.
        size: P.
        numbers: Of all images of all splits.
        outputs: Numbers that modules hand on, for one example.
        examples: That go through the network at once.
        steps: Of a unit.
        device: `cpu` or `cuda`.

    Returns:
        Bytes.
    """
    item = 8 if run.dtype == "float64" else 4
    rows = min(steps, run.iterations + 1)
    return int(
        TORCH_BYTES[device] + numbers * (2 + 2 * item) + 3 * outputs * examples * item + 8 * size * (3 * rows + 8)
    )


def training_disk(run: Training, size: int, states: int, slots: int, units: int) -> int:
    """Disk of a trajectory.

    Args:
        run: The run.
        size: P.
        states: Vectors of the optimizer's state, without the parameters.
        slots: Width of the record of batches.
        units: Their number.

    Returns:
        Bytes.
    """
    kept = sum(run.is_saved(t) for t in range(run.iterations + 1))
    # Numbers of examples are stored compressed: two to three bytes each.
    return 8 * size * (kept + (1 + states) * (units + 1)) + run.iterations * (3 * slots + 80)
