"""Networks: the built-in ones, those of the user, and the check that a network's loss is a plain sum over examples.

The names of modules are the names of layers in figures. Global averages are means over the two image axes rather than
`AdaptiveAvgPool2d`, whose backward pass is not deterministic on CUDA.
"""

import importlib
import math
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from quadscape.config.sections import CNN, MLP, Custom, Linear, Model, Normalized, ResNet9
from quadscape.errors import ModelError
from quadscape.network.parameters import ParameterLayout, current_vector
from quadscape.network.shapes import check_image_network
from quadscape.numerics import precision_kept
from quadscape.provenance.source import source_hash

Shape = tuple[int, int, int]

_INITIALISATION_STREAM = 0x1417
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
_BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


# ---------------------------------------------------------------------------------------------------------------------
# Built-in networks


class Convolutions(nn.Module):
    """3×3 convolutions with bias and padding 1, each followed by normalisation and activation."""

    def __init__(self, config: Normalized) -> None:
        super().__init__()
        self._config = config
        self.activation = _ACTIVATIONS[config.activation]()

    def add(self, number: int, inputs: int, outputs: int) -> None:
        """Adds the convolution of that number and its normalisation."""
        self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1))
        self.add_module(f"norm{number}", _normalization(outputs, self._config))

    def apply_block(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """Convolution, normalisation and activation of that number; height and width stay."""
        return self.activation(self.get_submodule(f"norm{number}")(self.get_submodule(f"conv{number}")(x)))


class ResidualPair(Convolutions):
    """x + f₂(f₁(x)) with two convolutions, or f₂(f₁(x)) alone."""

    def __init__(self, channels: int, config: ResNet9) -> None:
        super().__init__(config)
        self._skip = config.skip
        self.add(1, channels, channels)
        self.add(2, channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, channels, h, w) to the same shape."""
        y = self.apply_block(2, self.apply_block(1, x))
        return x + y if self._skip else y


class ResNet9Network(Convolutions):
    """ResNet9 with widths 4w, 8w, 16w, 32w and a global average before the linear layer (4×4 at 32×32 pixels)."""

    def __init__(self, config: ResNet9, shape: Shape, classes: int) -> None:
        super().__init__(config)
        w = config.width
        self.add(1, shape[0], 4 * w)
        self.add(2, 4 * w, 8 * w)
        self.residual1 = ResidualPair(8 * w, config)
        self.add(3, 8 * w, 16 * w)
        self.add(4, 16 * w, 32 * w)
        self.residual2 = ResidualPair(32 * w, config)
        self.linear = nn.Linear(32 * w, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, channels, height, width) to class scores (n, classes)."""
        x = self.apply_block(1, x)
        x = self.residual1(avg_pool2d(self.apply_block(2, x), 2))
        x = avg_pool2d(self.apply_block(3, x), 2)
        x = self.residual2(avg_pool2d(self.apply_block(4, x), 2))
        return self.linear(x.mean(dim=(2, 3)))


class CNNNetwork(Convolutions):
    """Stages of convolutions, each with 2×2 average pooling at its end, flattened into one linear layer."""

    def __init__(self, config: CNN, shape: Shape, classes: int) -> None:
        super().__init__(config)
        channels, height, width = shape
        self._depth, self._stages = config.depth, len(config.channels)
        self._skips = []
        for number, outputs in enumerate(each for each in config.channels for _ in range(config.depth)):
            self.add(number + 1, channels, outputs)
            self._skips.append(config.skip and channels == outputs)
            channels = outputs
        height, width = height >> self._stages, width >> self._stages
        self.linear = nn.Linear(channels * height * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, channels, height, width) to class scores (n, classes)."""
        for stage in range(self._stages):
            for number in range(stage * self._depth, (stage + 1) * self._depth):
                y = self.apply_block(number + 1, x)
                x = x + y if self._skips[number] else y
            x = avg_pool2d(x, 2)
        return self.linear(x.flatten(1))


class MLPNetwork(nn.Module):
    """Fully connected layers over the flattened image, with normalisation and activation between them."""

    def __init__(
        self, widths: Sequence[int], bias: bool, activation: str | None, *, normalized: bool = False, skip: bool = False
    ) -> None:
        super().__init__()
        self.layers: list[str] = []
        self._skips = [skip and inputs == outputs for inputs, outputs in pairwise(widths)]
        for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            name = "linear" if len(widths) == 2 else f"linear{number}"
            self.add_module(name, nn.Linear(inputs, outputs, bias=bias))
            self.layers.append(name)
            if normalized and number < len(widths) - 1:
                self.add_module(f"norm{number}", nn.LayerNorm(outputs))
        self.activation = nn.Identity() if activation is None else _ACTIVATIONS[activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, channels, height, width) to class scores (n, classes)."""
        x = x.flatten(1)
        modules = dict(self.named_children())
        for number, name in enumerate(self.layers[:-1], start=1):
            y = modules[name](x)
            if f"norm{number}" in modules:
                y = modules[f"norm{number}"](y)
            y = self.activation(y)
            x = x + y if self._skips[number - 1] else y
        return self.get_submodule(self.layers[-1])(x)


def _normalization(channels: int, config: Normalized) -> nn.Module:
    if config.normalization == "group":
        return nn.GroupNorm(channels // config.channels_per_group, channels)
    return nn.BatchNorm2d(channels) if config.normalization == "batch" else nn.Identity()


def _build_built_in(config: ResNet9 | CNN | MLP | Linear, shape: Shape, classes: int) -> nn.Module:
    if isinstance(config, (ResNet9, CNN)):
        check_image_network(config, shape)
        return (
            ResNet9Network(config, shape, classes)
            if isinstance(config, ResNet9)
            else CNNNetwork(config, shape, classes)
        )
    pixels = int(np.prod(shape))
    if isinstance(config, MLP):
        widths = (pixels, *config.hidden, classes)
        normalized = config.normalization == "layer"
        return MLPNetwork(widths, True, config.activation, normalized=normalized, skip=config.skip)
    return MLPNetwork((pixels, classes), config.bias, None)


# ---------------------------------------------------------------------------------------------------------------------
# The user's own networks


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _import_factory(path: str) -> Any:
    """Imports a factory.

    Args:
        path: `package.module:function`; the current directory is searched first, as for a script in it.

    Returns:
        The function.

    Raises:
        ModelError: It cannot be imported or called.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        with precision_kept():
            module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"model.factory is '{path}', but the module '{module_name}' cannot be imported from {here} or the "
            f"installed packages ({_explain(error)})."
        ) from error
    finally:  # what a module sets for all of torch must not reach what is computed here
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device if device.type != "cpu" else None)
    if not hasattr(module, name):
        raise ModelError(f"model.factory is '{path}', but '{module_name}' has no '{name}'.")
    function = getattr(module, name)
    if not callable(function):
        raise ModelError(
            f"model.factory is '{path}', but '{name}' is not a function (it is a {type(function).__name__})."
        )
    return function


def _build_custom(config: Custom, shape: Shape, classes: int) -> nn.Module:
    function = _import_factory(config.factory)
    try:
        with precision_kept():
            model = function(shape, classes, **config.arguments)
    except Exception as error:
        raise ModelError(
            f"model.factory '{config.factory}' failed when called with input shape {shape}, {classes} classes and the "
            f"arguments {config.arguments} ({_explain(error)})."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model.factory '{config.factory}' returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Building


@contextmanager
def _fixed_state(seed: int) -> Generator[None]:
    """Makes construction depend on the seed alone, and leaves torch's global state as it was."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(_INITIALISATION_STREAM, seed))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def derive_seed(stream: int, *numbers: int) -> int:
    """A 64-bit seed for torch from named numbers, well mixed.

    Args:
        stream: Constant that keeps different uses of one seed apart.
        numbers: The user's seed, and counters.

    Returns:
        An integer in [0, 2⁶⁴).
    """
    return int(np.random.SeedSequence([stream, *numbers]).generate_state(1, np.uint64)[0])


def _build(config: Model, shape: Shape, classes: int, seed: int) -> nn.Module:
    with _fixed_state(seed):
        if isinstance(config, Custom):
            with torch.device("cpu"):
                return _build_custom(config, shape, classes)
        return _build_built_in(config, shape, classes)


def build_model(config: Model, shape: Shape, classes: int) -> nn.Module:
    """Builds a network; buffers that it fills at random are always the same.

    Args:
        config: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Returns:
        The network, on the CPU; its parameters are those of seed 0.
    """
    with torch.device("cpu"):
        model = _build(config, shape, classes, 0)
    ParameterLayout.of(model)
    return model


def initial_vector(config: Model, shape: Shape, classes: int, seed: int) -> torch.Tensor:
    """The initial parameters: PyTorch's default initialisation under a seed.

    Args:
        config: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        seed: Seed; the result depends on nothing else.

    Returns:
        θ₀, float64, shape (P,).
    """
    with torch.device("cpu"):
        return current_vector(_build(config, shape, classes, seed)).to(torch.float64)


def factory_code(config: Model) -> str | None:
    """Hash of the source of a user's factory, so that editing the network is a change of the experiment.

    Args:
        config: The `model` section.

    Returns:
        Hash of the factory's module that comments and docstrings do not change; None for built-in networks, whose code
        the stage versions cover, and for modules that have no Python source.
    """
    if not isinstance(config, Custom):
        return None
    _import_factory(config.factory)
    path = Path(sys.modules[config.factory.partition(":")[0]].__file__ or "")
    return source_hash(path.read_text(encoding="utf-8")) if path.suffix == ".py" else None


def count_parameters(config: Model, shape: Shape, classes: int, most: float = math.inf) -> int:
    """P, without making the parameters where that can be avoided.

    Args:
        config: The `model` section.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        most: A user's network of more parameters than this is not made.

    Returns:
        The number of parameters.
    """
    if isinstance(config, Custom):
        # A factory may do what the meta device cannot; then the network is made after all.
        with suppress(ModelError, RuntimeError, ValueError), torch.device("meta"):
            size = sum(parameter.numel() for parameter in _build_custom(config, shape, classes).parameters())
            if size > most:
                return size
        return ParameterLayout.of(build_model(config, shape, classes)).size
    with torch.device("meta"):
        return ParameterLayout.of(_build_built_in(config, shape, classes)).size


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in another precision: complex numbers stay complex, and integers what they are.

    Args:
        tensor: Of any dtype.
        dtype: A real floating-point type.

    Returns:
        The tensor, in `dtype` or in the complex type of its precision.
    """
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def cast(model: nn.Module, dtype: torch.dtype, device: str | torch.device | None = None) -> nn.Module:
    """Changes the precision of a network's parameters and buffers, as `in_precision` does.

    `Module.to` would take the real part of complex buffers.

    Args:
        model: The network, which is changed.
        dtype: A real floating-point type.
        device: Where it is to live; None: where it does.

    Returns:
        The network.
    """
    held = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_complex()
    ]
    for module, name, _ in held:
        setattr(module, name, None)
    model.to(device=device, dtype=dtype)
    for module, name, buffer in held:
        setattr(module, name, in_precision(buffer, dtype).to(device))
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm modules of a network by name.

    Args:
        model: The network.

    Returns:
        The modules, in order of registration.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def check_model(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """Checks that a network's loss is a function of its parameters and a plain sum over examples.

    Args:
        model: The network, of any dtype, on the device of `images`; left as it was.
        images: Two or more images, shape (n, channels, height, width).
        classes: Number of classes.

    Raises:
        ModelError: See `check_sum_over_examples`; or a BatchNorm keeps no statistics, or training changes a buffer that
            is not BatchNorm's.
    """
    for name, module in batch_norms(model).items():
        if not getattr(module, "track_running_stats", True) or module.running_mean is None:
            raise ModelError(
                f"Layer '{name}' is a BatchNorm without tracked statistics, which cannot be frozen; build it with "
                "track_running_stats=True."
            )
    check_sum_over_examples(model, images, classes)
    was_training = model.training
    try:
        _check_buffers(model, _double_state(model), images.to(torch.float64))
    finally:
        model.train(was_training)


def check_sum_over_examples(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """Checks that a network in evaluation mode maps each example alone, in float64 on a few images.

    Args:
        model: The network, of any dtype, on the device of `images`; left as it was.
        images: Two or more images, shape (n, channels, height, width).
        classes: Number of classes.

    Raises:
        ModelError: It fails, its outputs have another shape, are not finite or are random, or one example's output
            depends on the others.
    """
    was_training = model.training
    state, x = _double_state(model), images.to(torch.float64)
    try:
        model.eval()
        outputs = _call(model, state, x)
        if tuple(outputs.shape) != (len(x), classes):
            raise ModelError(
                f"The network returned outputs of shape {tuple(outputs.shape)} for {len(x)} examples of {classes} "
                f"classes; it must return one row of class scores per example, here {(len(x), classes)}."
            )
        if not bool(torch.isfinite(outputs).all()):
            raise ModelError("The network's outputs are not finite (NaN or infinite) on the first training images.")
        if not torch.equal(outputs, _call(model, state, x)):
            raise ModelError(
                "The network returns different outputs for the same images, even in evaluation mode, so its loss is "
                "random and not a function of its parameters; switch randomness off with self.training."
            )
        half = len(x) // 2
        parts = torch.cat([_call(model, state, part) for part in (x[:half], x[half:])])
        difference = float((outputs - parts).abs().max() / outputs.abs().max().clamp_min(1e-300))
        if difference > 1e-8:
            raise ModelError(
                "The network's output for one example depends on the other examples of the batch (relative change "
                f"{difference:.1e} when the batch is divided), as with a batch norm in training mode, so its loss is "
                "not a sum over examples; use normalisation within each example."
            )
    finally:
        model.train(was_training)


def _double_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of parameters and buffers, in double precision."""
    return {
        name: in_precision(tensor.detach().clone(), torch.float64)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _call(model: nn.Module, state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Evaluates a network in float64 without gradients."""
    try:
        with torch.no_grad():
            outputs = torch.func.functional_call(model, dict(state), (x,))
    except Exception as error:
        raise ModelError(
            f"The network failed on images of shape {tuple(x.shape)} in float64 ({_explain(error)})."
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise ModelError(f"The network returned a {type(outputs).__name__}; it must return a tensor of class scores.")
    return outputs


def _check_buffers(model: nn.Module, state: dict[str, torch.Tensor], x: torch.Tensor) -> None:
    """Checks that training changes no other state than BatchNorm's statistics, which are recomputed for curvature."""
    known = {f"{name}.{buffer}".lstrip(".") for name in batch_norms(model) for buffer in _BATCH_NORM_BUFFERS}
    scratch = {name: tensor.clone() for name, tensor in state.items()}
    model.train()
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        _call(model, scratch, x)
    for name, _ in model.named_buffers():
        if name not in known and not torch.equal(scratch[name], state[name]):
            raise ModelError(
                f"Training changes the buffer '{name}', whose value at a checkpoint is then not defined by θ; only "
                "BatchNorm's statistics may change."
            )
