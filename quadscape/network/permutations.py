"""Hidden units that may change places: permutations of units under which a built-in network stays the same function.

The units of a hidden layer can be renumbered when the weights into them and out of them are renumbered alike. Where
layers are added to each other their units share one numbering. A group normalisation sees its groups: its channels may
change places within their group, and whole groups with each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quadscape.config.sections import CNN, MLP, Linear, Model, ResNet9
from quadscape.network.models import Shape
from quadscape.network.parameters import ParameterLayout

_SWEEPS = 100
_STARTS = 8
_SEED = 2209


@dataclass(frozen=True)
class Units:
    """Hidden units with one numbering.

    Attributes:
        count: How many.
        together: Number of neighbours that a normalisation keeps together; 1 where there is none.
        places: Names of parameters and their axes that the numbering runs along; an axis that is m times as long as
            there are units has m entries in a row for each.
    """

    count: int
    together: int = 1
    places: list[tuple[str, int]] = field(default_factory=list)


class _Builder:
    """Collects units while walking through a network from its input; None stands for what cannot be renumbered."""

    def __init__(self) -> None:
        self.found: list[Units] = []

    def layer(self, name: str, inputs: Units | None, outputs: Units | None, norm: str | None) -> None:
        """A layer with bias, and the normalisation after it."""
        if inputs is not None:
            inputs.places.append((f"{name}.weight", 1))
        if outputs is not None:
            outputs.places.extend([(f"{name}.weight", 0), (f"{name}.bias", 0)])
            if norm is not None:
                outputs.places.extend([(f"{norm}.weight", 0), (f"{norm}.bias", 0)])

    def units(self, count: int, together: int = 1) -> Units:
        """New units."""
        self.found.append(Units(count, together))
        return self.found[-1]


def hidden_units(config: Model, shape: Shape) -> tuple[Units, ...] | None:
    """The hidden units of a network.

    Args:
        config: The `model` section.
        shape: Channels, height and width of an image.

    Returns:
        Units, from the input on; none where there are none; None for a network whose structure is not known here.
    """
    if isinstance(config, Linear):
        return ()
    if isinstance(config, MLP):
        return _of_mlp(config, int(np.prod(shape)))
    if isinstance(config, CNN):
        return _of_cnn(config, shape[0])
    return _of_resnet9(config) if isinstance(config, ResNet9) else None


def _of_mlp(config: MLP, pixels: int) -> tuple[Units, ...]:
    build, before, width = _Builder(), None, pixels
    for number, count in enumerate(config.hidden, start=1):
        tied = config.skip and count == width
        after = before if tied else build.units(count)
        build.layer(f"linear{number}", before, after, f"norm{number}" if config.normalization == "layer" else None)
        before, width = after, count
    build.layer(f"linear{len(config.hidden) + 1}", before, None, None)
    return tuple(build.found)


def _of_cnn(config: CNN, channels: int) -> tuple[Units, ...]:
    build, before = _Builder(), None
    for number, count in enumerate((each for each in config.channels for _ in range(config.depth)), start=1):
        tied = config.skip and count == channels
        after = before if tied else build.units(count, _together(config))
        build.layer(f"conv{number}", before, after, _norm(config, f"norm{number}"))
        before, channels = after, count
    build.layer("linear", before, None, None)
    return tuple(build.found)


def _of_resnet9(config: ResNet9) -> tuple[Units, ...]:
    build, before, together = _Builder(), None, _together(config)
    for number, factor in enumerate((4, 8, 16, 32), start=1):
        after = build.units(factor * config.width, together)
        build.layer(f"conv{number}", before, after, _norm(config, f"norm{number}"))
        before = after
        if number % 2 == 0:
            pair, inside = f"residual{number // 2}", build.units(after.count, together)
            last = after if config.skip else build.units(after.count, together)
            build.layer(f"{pair}.conv1", after, inside, _norm(config, f"{pair}.norm1"))
            build.layer(f"{pair}.conv2", inside, last, _norm(config, f"{pair}.norm2"))
            before = last
    build.layer("linear", before, None, None)
    return tuple(build.found)


def _together(config: CNN | ResNet9) -> int:
    return config.channels_per_group if config.normalization == "group" else 1


def _norm(config: CNN | ResNet9, name: str) -> str | None:
    return None if config.normalization == "none" else name


def permuted(
    theta: np.ndarray, layout: ParameterLayout, units: Sequence[Units], orders: Sequence[np.ndarray]
) -> np.ndarray:
    """The same network with its hidden units in another order.

    Args:
        theta: θ, shape (P,).
        layout: Where each parameter lies in θ.
        units: The hidden units.
        orders: For each of these the old number of the unit at every new place, shape (count,).

    Returns:
        θ of the renumbered network, shape (P,).
    """
    tensors = _tensors(theta, layout)
    for each, order in zip(units, orders, strict=True):
        for name, axis in each.places:
            tensors[name] = np.take(tensors[name], _along(order, tensors[name].shape[axis]), axis=axis)
    return np.concatenate([tensors[block.name].reshape(-1) for block in layout.blocks])


def random_orders(units: Sequence[Units], seed: int) -> list[np.ndarray]:
    """Random orders that every network of these units allows.

    Args:
        units: The hidden units.
        seed: Seed.

    Returns:
        One order for each, as `permuted` takes them.
    """
    generator, found = np.random.default_rng([_SEED, seed]), []
    for each in units:
        groups = generator.permutation(np.arange(each.count).reshape(-1, each.together))
        found.append(generator.permuted(groups, axis=1).reshape(-1))
    return found


def aligned_orders(
    first: np.ndarray, second: np.ndarray, layout: ParameterLayout, units: Sequence[Units]
) -> list[np.ndarray]:
    """Orders of hidden units that bring a network near another: weight matching (Ainsworth et al., arXiv 2209.04836).

    One numbering after another is chosen so that θ₁·θ₂ is largest with all others fixed, which is a problem of
    assignment, until none changes. That finds a local optimum; the best of several starts is taken, the first from the
    input on and from the numbering that is there, the others in random order and from random numberings.

    Args:
        first: θ₁, shape (P,).
        second: θ₂, whose units are renumbered, shape (P,).
        layout: Where each parameter lies in θ.
        units: The hidden units.

    Returns:
        Orders as `permuted` takes them for θ₂; those that are there where none is better.
    """
    fixed, free = _tensors(first, layout), _tensors(second, layout)
    generator = np.random.default_rng(_SEED)
    unchanged = [np.arange(each.count) for each in units]
    best, most = unchanged, _overlap(fixed, free, units, unchanged)
    for start in range(_STARTS if units else 0):
        orders = [order.copy() for order in unchanged] if start == 0 else random_orders(units, start)
        value = _overlap(fixed, free, units, orders)
        for _ in range(_SWEEPS):
            before = value
            for which in range(len(units)) if start == 0 else generator.permutation(len(units)):
                tried = list(orders)
                tried[which] = assignment(_likeness(fixed, free, units, orders, which), units[which].together)
                # Where a numbering runs along both axes of one weight the problem is not quite one of assignment.
                if (reached := _overlap(fixed, free, units, tried)) > value:
                    orders, value = tried, reached
            if not value > before:
                break
        if value > most:
            best, most = orders, value
    return best


def _tensors(theta: np.ndarray, layout: ParameterLayout) -> dict[str, np.ndarray]:
    return {block.name: theta[block.start : block.stop].reshape(block.shape) for block in layout.blocks}


def _along(order: np.ndarray, length: int) -> np.ndarray:
    """Indices along an axis with several entries in a row for each unit."""
    each = length // len(order)
    return (order[:, None] * each + np.arange(each)).reshape(-1)


def _reordered(
    tensors: Mapping[str, np.ndarray],
    units: Sequence[Units],
    orders: Sequence[np.ndarray],
    but: tuple[int, str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Parameters along whose axes the numberings run, renumbered; along one axis of one of them not."""
    found: dict[str, np.ndarray] = {}
    for which, (each, order) in enumerate(zip(units, orders, strict=True)):
        for name, axis in each.places:
            tensor = found.get(name, tensors[name])
            if but != (which, name, axis):
                tensor = np.take(tensor, _along(order, tensor.shape[axis]), axis=axis)
            found[name] = tensor
    return found


def _overlap(
    fixed: Mapping[str, np.ndarray],
    free: Mapping[str, np.ndarray],
    units: Sequence[Units],
    orders: Sequence[np.ndarray],
) -> float:
    return sum(float(np.vdot(fixed[name], tensor)) for name, tensor in _reordered(free, units, orders).items())


def _likeness(
    fixed: Mapping[str, np.ndarray],
    free: Mapping[str, np.ndarray],
    units: Sequence[Units],
    orders: Sequence[np.ndarray],
    which: int,
) -> np.ndarray:
    """What θ₁·θ₂ gains by unit j of the second network at place i, shape (count, count)."""
    count = units[which].count
    gain = np.zeros((count, count))
    for name, axis in units[which].places:
        tensor = _reordered(free, units, orders, (which, name, axis))[name]
        rows, columns = (np.moveaxis(of, axis, 0).reshape(count, -1) for of in (fixed[name], tensor))
        gain += rows @ columns.T
    return gain


def assignment(gain: np.ndarray, together: int) -> np.ndarray:
    """The best order: within pairs of groups first, then of the groups.

    Args:
        gain: What is gained by unit j at place i, shape (count, count).
        together: Number of neighbours that stay together.

    Returns:
        The unit at every place, shape (count,).
    """
    from scipy.optimize import linear_sum_assignment

    if together == 1:
        return linear_sum_assignment(gain, maximize=True)[1]
    groups = len(gain) // together
    blocks = gain.reshape(groups, together, groups, together).transpose(0, 2, 1, 3)
    inner = np.empty((groups, groups, together), dtype=np.int64)
    values = np.empty((groups, groups))
    for a in range(groups):
        for b in range(groups):
            rows, columns = linear_sum_assignment(blocks[a, b], maximize=True)
            inner[a, b], values[a, b] = columns, blocks[a, b][rows, columns].sum()
    chosen = linear_sum_assignment(values, maximize=True)[1]
    return np.concatenate([chosen[a] * together + inner[a, chosen[a]] for a in range(groups)])
