"""Speeds of a device of this machine for the networks of an experiment: measured in processor time, and kept.

On a CPU they are those of one core: several threads wait for each other by spinning, which on a busy machine counts as
processor time, and most jobs have one.

Of a network are measured a loss, a step, and a Hessian product over a few examples, in both precisions; of the largest
also a few columns of the Hessian. What each takes beside the counted operations tells how fast they go. All of it is
processor time, so that a busy machine tells the same, and no more than a few seconds in all: networks that are left
take the speeds of the most alike. What was measured is kept for this host in the user's cache.
"""

import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Run, Training
from quadscape.curvature.costs import columns_operations
from quadscape.curvature.engine import HessianEngine
from quadscape.errors import QuadscapeError
from quadscape.network.counts import Counts
from quadscape.network.models import build_model, cast, initial_vector
from quadscape.network.objective import Objective
from quadscape.network.parameters import ParameterLayout
from quadscape.planning.counted import Countable, user_cache
from quadscape.planning.work import NOMINAL
from quadscape.results.sizes import Kept
from quadscape.training.optimizers import make_optimizer, state_names
from quadscape.training.steps import Trainer

_BUDGET = 4.0
"""Seconds of processor time for all networks."""
_ENOUGH = 0.05
"""Seconds after which no piece of work is repeated."""
_EXAMPLES = 64
_COLUMNS = 32
"""Of a strip whose time is taken, at most."""
_PLACES = 3
"""Strips of which it is."""
_STRIP_OPERATIONS = 15e9
"""Of such a strip, and so about a second: where a column takes more, over fewer examples."""
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_FORMAT = 3

Speeds = Mapping[str, float]


@dataclass(frozen=True)
class _Network:
    """A network with all that is measured of it, over one random image that stands for all."""

    countable: Countable
    counts: Counts
    device: str

    def objective(self, dtype: str) -> Objective:
        one, device = self.countable, torch.device(self.device)
        model = cast(build_model(one.model, one.shape, one.classes), _DTYPES[dtype], device).eval()
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, *one.shape, generator=generator, dtype=torch.float64).to(device, _DTYPES[dtype])
        labels = torch.zeros(1, dtype=torch.int64, device=device).expand(_EXAMPLES)
        images = image.expand(_EXAMPLES, *one.shape).contiguous()
        return Objective(model, ParameterLayout.of(model), images, labels, one.loss, _EXAMPLES)

    @property
    def theta(self) -> np.ndarray:
        one = self.countable
        return initial_vector(one.model, one.shape, one.classes, 0).numpy()


class _Trainer(Trainer):
    """What a training step needs."""

    def __init__(self, objective: Objective) -> None:
        self.device, self.dtype, self.loss = objective.device, objective.dtype, objective.loss_kind
        self.splits = {"train": (objective.images, objective.labels)}
        self.model, self.layout = objective.model, objective.layout
        self.layer_sizes = [block.stop - block.start for block in objective.layout.blocks]


def seconds_of(work: Callable[[], Any], device: str, repeats: int = 5, *, warm: bool = False) -> float:
    """The least time of a piece of work, after one that warms up; of fewer repetitions where it is long.

    Args:
        work: What is timed.
        device: `cpu`, where it is processor time, or `cuda`.
        repeats: At most.
        warm: Whether something alike was done before, so that nothing has to warm up.

    Returns:
        Seconds.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    if not warm:
        work()
    found: list[float] = []
    for _ in range(repeats):
        began = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - began)
        if sum(found) > _ENOUGH:
            break
    return max(min(found), 1e-7)


def measure_matrices(device: str, size: int) -> dict[str, float]:
    """How fast products of matrices are, and reads.

    Args:
        device: `cpu` or `cuda`.
        size: P: no larger matrices are taken.

    Returns:
        Speeds of `matrix float32`, `matrix float64` and `read`.
    """
    # The matrix of a product with a vector: larger than caches only if that of the experiment is.
    most, longest = (8192, 16384) if device == "cuda" else (1024, 6144)
    n, rows = min(max(size, 256), most), min(max(size, 256), longest)
    found = {}
    for name, dtype in _DTYPES.items():
        matrix = torch.full((n, n), 1.0 / n, dtype=dtype, device=device)
        found[f"matrix {name}"] = 2 * n**3 / seconds_of(partial(torch.matmul, matrix, matrix), device)
    matrix, vector = torch.ones(rows, rows, device=device), torch.ones(rows, device=device)
    found["read"] = 4 * rows**2 / seconds_of(lambda: matrix @ vector, device)
    return found


def _passes(network: _Network, dtype: str, run: Training) -> dict[str, float]:
    """Speeds of a network's passes and steps, by what they take beside their counted operations."""
    objective, counts, theta = network.objective(dtype), network.counts, network.theta
    both = max(1.0, counts.forward + counts.backward)

    def seconds(work: Callable[[Objective], Any], count: int) -> float:
        part = objective.part(slice(0, count))
        return seconds_of(lambda: work(part), network.device)

    count = _few(both)
    forward = seconds(lambda part: part.loss(theta), count)
    product = seconds(lambda part: part.hessian_product(theta, np.ones(len(theta))), count)
    small, large = (_step_seconds(network, objective, run, k) for k in (2, max(4, count)))
    slope = max((large - small) / (max(4, count) - 2), 0.1 * large / max(4, count))
    return {
        f"forward {dtype}": max(1.0, counts.forward) * count / forward,
        f"gradient {dtype}": both / slope,
        f"product {dtype}": 2 * both * count / product,
        "steps": 1 / max(small - 2 * slope, 0.1 * small),
    }


def _few(operations: float, most: float = 4e8) -> int:
    """Examples at once: as many as an objective takes, or so many that nothing takes long."""
    return max(4, min(_EXAMPLES, int(most / operations)))


def _step_seconds(network: _Network, objective: Objective, run: Training, count: int) -> float:
    trainer = _Trainer(objective)
    state = trainer.start_state(torch.from_numpy(network.theta), state_names(run))
    parameter = torch.nn.Parameter(state.theta.clone())
    optimizer = make_optimizer(run, parameter, state.moments, 0)

    def step() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, gradient = trainer.gradient(state, np.arange(count))
            trainer.layer_norms(gradient)
            parameter.grad = gradient
            optimizer.step()

    return seconds_of(step, network.device)


def _columns(network: _Network, dtype: str) -> float:
    """Operations of columns of the Hessian per second."""
    objective, counts = network.objective(dtype), network.counts
    # As many examples as the engine takes at once: over few, what every operation takes by itself is most of the time.
    few = objective.part(slice(0, _few(max(1.0, 20 * counts.forward), _STRIP_OPERATIONS)))
    engine = HessianEngine(few, network.theta)
    width = max(1, min(objective.size // 8, _COLUMNS))
    starts = _even_in_operations(engine, objective.size, width)
    engine.columns(starts[-1], starts[-1] + 1)  # warms up
    pace = 0.0
    for start in starts:
        stop = start + width
        while stop > start + 1 and engine.flops(start, stop) > _STRIP_OPERATIONS:
            stop = (start + stop + 1) // 2
        seconds = seconds_of(partial(engine.columns, start, stop), network.device, 1, warm=True)
        pace += seconds / max(1.0, engine.flops(start, stop)) / len(starts)
    # By the law's operations, which are a little more than the engine's.
    return columns_operations(counts) * few.count / max(1.0, engine.flops(0, objective.size)) / pace


def _even_in_operations(engine: HessianEngine, size: int, width: int) -> list[int]:
    """Where strips begin that lie in the middle of the first, the second … part of all operations.

    Columns of early layers take many times the operations of late ones, at another speed. The time of all is the sum
    over operations of what each takes, and so its mean over places that are even in operations, not in columns.

    Args:
        engine: Whose columns.
        size: P.
        width: Columns of a strip.

    Returns:
        First columns, ascending.
    """
    bounds = np.unique(np.linspace(0, size, 33).astype(np.int64))
    costs = np.cumsum([engine.flops(int(a), int(b)) for a, b in pairwise(bounds)])
    places = (np.arange(_PLACES) + 0.5) / _PLACES * costs[-1]
    begins = np.interp(places, np.concatenate([[0.0], costs]), bounds)
    return [max(0, min(size - width, int(begin))) for begin in begins]


@contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def measure_speeds(
    networks: Sequence[tuple[Countable, Counts]], run: Run, dtype: str, device: str, cache: Path | None = None
) -> list[dict[str, float]]:
    """Speeds of all kinds of work, for each network.

    Args:
        networks: With their counts.
        run: Whose optimizer steps.
        dtype: Of the curvature.
        device: Of this machine: `cpu` or `cuda`.
        cache: Where speeds of this host are kept; None: in the user's cache.

    Returns:
        For each network.
    """
    path = user_cache() / f"speeds-{socket.gethostname()}.json" if cache is None else cache
    kept, began = Kept(path), time.process_time()
    key = f"{_FORMAT} {device} {dtype}"
    known = [kept.get(countable.key, key) for countable, _ in networks]
    found = {index: speeds for index, speeds in enumerate(known) if speeds is not None}
    order = sorted(range(len(networks)), key=lambda index: -networks[index][1].forward)
    matrices = kept.get("matrices", key)
    if matrices is None:
        matrices = measure_matrices(device, max(one.parameters for one, _ in networks))
        kept.put("matrices", key, matrices)
    columns = 0.0
    for index in order:
        countable, counts = networks[index]
        speeds = found.get(index)
        if speeds is None and (not found or time.process_time() - began < _BUDGET):
            try:
                network = _Network(countable, counts, device)
                passes = [_passes(network, name, run) for name in _DTYPES]
                # Where a step takes float64, it takes about as long: what it holds counts as operations.
                speeds = {**passes[1], **passes[0]}
                if not columns:
                    speeds[f"columns {dtype}"] = columns = _columns(network, dtype)
            except (QuadscapeError, RuntimeError):
                # It cannot be run: its jobs will say why.
                continue
            kept.put(countable.key, key, speeds)
        if speeds is not None:
            found[index] = speeds
            columns = columns or speeds.get(f"columns {dtype}", 0.0)
    kept.save()
    return [_filled(_nearest(found, networks, index, dtype), matrices, device) for index in range(len(networks))]


def _nearest(
    found: Mapping[int, dict[str, float]], networks: Sequence[tuple[Countable, Counts]], index: int, dtype: str
) -> dict[str, float]:
    """Speeds of the network itself, or of the one whose forward pass is most alike in size."""
    if not found:
        return {}
    here = np.log(max(1.0, networks[index][1].forward))
    known = found[min(found, key=lambda other: abs(np.log(max(1.0, networks[other][1].forward)) - here))]
    columns, product = f"columns {dtype}", f"product {dtype}"
    other = next((one for one in found.values() if columns in one), None)
    if columns in known or other is None:
        return known
    # Of other networks in proportion to their products.
    return {**known, columns: other[columns] * known[product] / other[product]}


def _filled(known: Mapping[str, float], matrices: Mapping[str, float], device: str) -> dict[str, float]:
    """All kinds: what was not measured is nominal."""
    speeds = {**NOMINAL[device], **matrices, **known}
    other = {"float32": "float64", "float64": "float32"}
    for name, twin in other.items():
        if f"columns {name}" not in known and f"columns {twin}" in known:
            factor = speeds[f"product {name}"] / speeds[f"product {twin}"]
            speeds[f"columns {name}"] = factor * speeds[f"columns {twin}"]
    return speeds
