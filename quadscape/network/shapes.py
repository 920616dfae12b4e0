"""Shapes of the parameters of the built-in networks, and what sizes they may have, by arithmetic alone.

The workflow's head counts with these at every start, so nothing here imports torch; a test compares with the networks.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

from quadscape.config.sections import CNN, MLP, Linear, Normalized, ResNet9
from quadscape.errors import ConfigError, ModelError

Shape = tuple[int, int, int]
BuiltIn = ResNet9 | CNN | MLP | Linear

_LARGEST = 2**61 - 1
"""Numbers of a tensor, of which each takes four bytes and all together less than 2⁶³."""


def check_image_network(config: ResNet9 | CNN, shape: Shape) -> None:
    """Checks that the pools fit the image and the groups fit the channels.

    Args:
        config: The network.
        shape: Channels, height and width of an image.

    Raises:
        ModelError: They do not.
    """
    if isinstance(config, ResNet9):
        widths, pools = [4 * config.width, 8 * config.width, 16 * config.width, 32 * config.width], 3
    else:
        widths, pools = list(config.channels), len(config.channels)
    smallest = min(shape[1:])
    if smallest >> pools == 0:
        raise ModelError(
            f"model.factory '{config.factory}' halves the image {pools} times and so needs at least "
            f"{2**pools}×{2**pools} pixels, but the images have {shape[1]}×{shape[2]}."
        )
    if config.normalization != "group":
        return
    for channels in widths:
        if channels % config.channels_per_group:
            raise ModelError(
                f"model.channels_per_group is {config.channels_per_group}, which does not divide a layer's {channels} "
                f"channels; valid are the common divisors of {', '.join(map(str, widths))}."
            )
    final = (shape[1] >> pools) * (shape[2] >> pools) if isinstance(config, ResNet9) else 2
    if config.channels_per_group * final == 1:
        raise ModelError(
            "model.channels_per_group is 1, but the last layers have a single pixel, and normalising one value gives "
            "always zero; choose at least 2, or larger images."
        )


def _convolution(inputs: int, outputs: int, config: Normalized) -> Iterator[tuple[int, ...]]:
    """Weight and bias of a 3×3 convolution, and those of its normalisation."""
    yield from ((outputs, inputs, 3, 3), (outputs,))
    if config.normalization != "none":
        yield from ((outputs,), (outputs,))


def _affine(inputs: int, outputs: int, *, bias: bool = True) -> Iterator[tuple[int, ...]]:
    yield (outputs, inputs)
    if bias:
        yield (outputs,)


def parameter_shapes(config: BuiltIn, shape: Shape, classes: int) -> list[tuple[int, ...]]:
    """Shapes of all parameters of a built-in network.

    Args:
        config: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Returns:
        One shape per tensor.
    """
    found: list[tuple[int, ...]] = []
    if isinstance(config, MLP | Linear):
        widths = (math.prod(shape), *(config.hidden if isinstance(config, MLP) else ()), classes)
        bias = config.bias if isinstance(config, Linear) else True
        for number, (inputs, outputs) in enumerate(pairwise(widths), start=2):
            found += _affine(inputs, outputs, bias=bias)
            if isinstance(config, MLP) and config.normalization == "layer" and number < len(widths):
                found += [(outputs,), (outputs,)]
        return found
    check_image_network(config, shape)
    if isinstance(config, ResNet9):
        w = config.width
        pairs = [(shape[0], 4 * w), (4 * w, 8 * w), *2 * [(8 * w, 8 * w)]]
        pairs += [(8 * w, 16 * w), (16 * w, 32 * w), *2 * [(32 * w, 32 * w)]]
        features = 32 * w
    else:
        pairs = list(pairwise((shape[0], *(each for each in config.channels for _ in range(config.depth)))))
        pools = len(config.channels)
        features = config.channels[-1] * (shape[1] >> pools) * (shape[2] >> pools)
    for inputs, outputs in pairs:
        found += _convolution(inputs, outputs, config)
    return [*found, *_affine(features, classes)]


def count_built_in(config: BuiltIn, shape: Shape, classes: int) -> int:
    """P of a built-in network.

    Args:
        config: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Returns:
        The number of parameters.

    Raises:
        ConfigError: A tensor would be larger than any can be.
    """
    shapes = parameter_shapes(config, shape, classes)
    largest = max(shapes, key=math.prod)
    if math.prod(largest) > _LARGEST:
        raise ConfigError(
            f"model describes a network that cannot be built (a tensor of {'×'.join(map(str, largest))} numbers); "
            "give smaller sizes."
        )
    return sum(map(math.prod, shapes))
