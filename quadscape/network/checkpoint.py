"""Checkpoints: everything that curvature and measures need to know of a network, besides the data.

A checkpoint is θ, the buffers, the layout of θ and the section that builds the network. Parameters trained elsewhere
enter here too. How one is made, and what is refused then, is told in `quadscape.training.extraction`.

BatchNorm is frozen at statistics recomputed over the whole training set, layer after layer in the order of execution,
each layer seeing its inputs with the layers before it already frozen (float64, biased variance): the frozen network
equals the network in training mode on the whole training set as one batch, up to rounding.
"""

import json
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import TypeAdapter

from quadscape.config.sections import Model
from quadscape.errors import ConfigError, ModelError
from quadscape.network.models import batch_norms, build_model, cast, factory_code
from quadscape.network.parameters import ParameterLayout, assign_vector
from quadscape.store import open_store, read_store

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PLACEHOLDER = "{iteration}"
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)


@dataclass(frozen=True)
class Checkpoint:
    """A network at one iteration.

    Attributes:
        theta: θ, float64, shape (P,).
        buffers: Buffers by name; BatchNorm's are the frozen statistics.
        run: Name of the run.
        iteration: Number of steps taken.
        model_config: The `model` section.
        shape: Channels, height and width of an image.
        classes: Names of the classes.
        loss: `cross_entropy` or `squared_error`.
        layout: Where each parameter lies in θ.
        training: The resolved `training` section; None for parameters trained elsewhere.
        weight_decay: δ.
        momentum: μ; None for parameters trained elsewhere.
        learning_rate: η of the step after this iteration (of the last step at the end); None for parameters trained
            elsewhere.
        data_digest: Digest of the data store.
        hessian_kind: `exact`, or `almost everywhere` where the network has kinks.
        digest: SHA-256 of the checkpoint's content.
        built: The network that was built to see its layout, until it is given out.
    """

    theta: np.ndarray
    buffers: dict[str, np.ndarray]
    run: str
    iteration: int
    model_config: Model
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    loss: str
    layout: ParameterLayout
    training: dict[str, Any] | None
    weight_decay: float
    momentum: float | None
    learning_rate: float | None
    data_digest: str
    hessian_kind: str
    digest: str
    built: list[torch.nn.Module] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Loads a checkpoint, checking its digest.

        Args:
            path: Directory of the store, or the `zarr.json` in it.

        Returns:
            The checkpoint.
        """
        return cls.of(*read_store(path), path)

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], attributes: dict[str, Any], path: str | Path) -> "Checkpoint":
        """A checkpoint from what its store holds.

        Args:
            arrays: Arrays of the store.
            attributes: Its attributes.
            path: Where it lies.

        Returns:
            The checkpoint.

        Raises:
            ModelError: The factory now builds another network than the one of the checkpoint.
        """
        config = _MODEL.validate_json(json.dumps(attributes["model"]), strict=True)
        channels, height, width = attributes["shape"]
        classes = tuple(attributes["classes"])
        network = build_model(config, (channels, height, width), len(classes))
        layout = ParameterLayout.of(network)
        if layout.to_json() != attributes["layout"] or factory_code(config) != attributes["model_code"]:
            raise ModelError(
                f"model.factory '{config.factory}' now builds another network than the one of the checkpoint {path}; "
                "restore the factory, or run the workflow again."
            )
        return cls(
            theta=arrays["theta"],
            buffers={name.removeprefix("buffers/"): v for name, v in arrays.items() if name.startswith("buffers/")},
            run=attributes["run"],
            iteration=attributes["iteration"],
            model_config=config,
            shape=(channels, height, width),
            classes=classes,
            loss=attributes["loss"],
            layout=layout,
            training=attributes["training"],
            weight_decay=attributes["weight_decay"],
            momentum=attributes["momentum"],
            learning_rate=attributes["learning_rate"],
            data_digest=attributes["data"],
            hessian_kind=attributes["hessian_kind"],
            digest=str(dict(open_store(path).attrs)["digest"]),
            built=[network],
        )

    def model(self, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu") -> torch.nn.Module:
        """The network in evaluation mode.

        Args:
            dtype: Type of its floating-point parameters and buffers.
            device: Where it is to live.

        Returns:
            The network, with the checkpoint's parameters and buffers.
        """
        network = self.built.pop() if self.built else build_model(self.model_config, self.shape, len(self.classes))
        model = cast(network, torch.float64)
        assign_vector(model, torch.from_numpy(self.theta))
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(torch.from_numpy(self.buffers[name]))
        return cast(model, dtype, device).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Parameters trained elsewhere


def _refuse(path: Path, what: str) -> NoReturn:
    raise ModelError(
        f"{path} {what}; it must be a file saved with torch.save(model.state_dict(), …) of the network in the "
        "experiment's model section."
    )


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads a file of parameters.

    Args:
        path: A file saved with `torch.save(model.state_dict(), …)`.

    Returns:
        Tensors by name.

    Raises:
        ConfigError: There is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"The run's path is '{path}', but there is no such file; give a file of saved parameters.")
    try:
        # Only tensors: a pickle from elsewhere must not run code here.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        _refuse(path, f"cannot be read as saved tensors ({reason} …)")
    if not isinstance(state, dict):
        _refuse(path, f"holds a {type(state).__name__} and no state_dict")
    if not state:
        _refuse(path, "holds no tensor at all")
    for name, value in state.items():
        if not isinstance(name, str):
            _refuse(path, f"is no state_dict: it has the name {name!r}, which is no text")
        if not isinstance(value, torch.Tensor):
            inner = ", a mapping that may be the state_dict, to be saved alone" if isinstance(value, dict) else ""
            _refuse(path, f"is no state_dict: its entry '{name}' is a {type(value).__name__} and no tensor{inner}")
        if value.is_quantized or value.layout != torch.strided or value.device.type == "meta" or value.is_complex():
            kind = f"{value.dtype}, {value.layout}, {value.device.type}"
            _refuse(path, f"has '{name}' as a tensor of kind {kind}, not plain real numbers")
    return state


_UNPICKLING_ERRORS: tuple[type[Exception], ...] = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError)
_UNPICKLING_ERRORS += (
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    ImportError,
)
_UNPICKLING_ERRORS += (struct.error, zipfile.BadZipFile, zlib.error)
# Names that wrappers put into the names of what they wrap, at any depth.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def _fits(names: Collection[str], known: Collection[str], optional: Collection[str]) -> bool:
    return all(name in known for name in names) and all(name in names or name in optional for name in known)


def _unwrapped(
    state: dict[str, torch.Tensor], known: Collection[str], optional: Collection[str]
) -> tuple[dict[str, torch.Tensor], str]:
    """Takes what a wrapper has put before or into all names away, where that makes them fit.

    Args:
        state: Tensors by name.
        known: Names of the network's tensors.
        optional: Those that may be missing.

    Returns:
        Tensors by their new names, or as they were where nothing makes them fit; and what was taken away.
    """
    if _fits(state, known, optional):
        return state, ""
    bare = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in state}
    inside = next((word for word in _WRAPPERS if any(word in name.split(".") for name in state)), "")
    for renamed, found in (({name: name for name in state}, ""), (bare, inside)):
        prefix = ""
        while True:
            if len(set(renamed.values())) == len(renamed) and _fits(renamed.values(), known, optional):
                return {new: state[old] for old, new in renamed.items()}, "' and '".join(filter(None, (found, prefix)))
            heads = {name.partition(".")[0] for name in renamed.values() if "." in name}
            if len(heads) != 1 or not all("." in name for name in renamed.values()):
                break
            prefix += heads.pop() + "."
            renamed = {old: new.partition(".")[2] for old, new in renamed.items()}
    return state, ""


def load_foreign(model: torch.nn.Module, path: Path) -> None:
    """Copies parameters trained elsewhere into a float64 network; all names and shapes must fit."""
    known = model.state_dict()
    recomputed = {f"{name}.{kind}".lstrip(".") for name in batch_norms(model) for kind in _STATISTICS}
    state, taken = _unwrapped(_read_state(path), known, recomputed)
    if taken:
        print(f"{path}: '{taken}' was taken away from the names of its tensors, so that they fit.", file=sys.stderr)
    missing = [name for name in known if name not in state and name not in recomputed]
    unknown = [name for name in state if name not in known]
    if missing:
        others = f", and has '{unknown[0]}', which the network lacks" if unknown else ""
        _refuse(path, f"lacks {len(missing)} of the network's {len(known)} tensors, among them '{missing[0]}'{others}")
    if unknown:
        _refuse(path, f"has {len(unknown)} tensors that the network lacks, among them '{unknown[0]}'")
    for name, value in state.items():
        if value.shape != known[name].shape:
            _refuse(path, f"has '{name}' with shape {tuple(value.shape)}, where it is {tuple(known[name].shape)} here")
        if value.is_floating_point() != known[name].is_floating_point():
            _refuse(path, f"has '{name}' as {value.dtype}, where it is {known[name].dtype} here")
    model.load_state_dict(state, strict=False)


# ---------------------------------------------------------------------------------------------------------------------
# BatchNorm


class _LayerReachedError(Exception):
    """Ends a forward pass at the layer that was asked for."""


def _execution_order(model: torch.nn.Module, images: torch.Tensor) -> list[str]:
    """Finds the order in which the BatchNorm layers are executed.

    Args:
        model: The network.
        images: A few images.

    Returns:
        Their names; layers that are never executed are left out.

    Raises:
        ModelError: A layer is executed twice.
    """
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: order.append(name))
        for name, module in batch_norms(model).items()
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    for name in order:
        if order.count(name) > 1:
            raise ModelError(
                f"Layer '{name}' is a BatchNorm that is used {order.count(name)} times in one pass, which no one set "
                "of statistics can freeze; give each use its own layer."
            )
    return order


def _channel_moments(
    model: torch.nn.Module, layer: torch.nn.Module, images: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel of a layer's input over all images."""
    found: list[torch.Tensor] = []

    def capture(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].transpose(0, 1).flatten(1))
        raise _LayerReachedError

    handle = layer.register_forward_pre_hook(capture)
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    try:
        for start in range(0, len(images), chunk):
            try:
                model(images[start : start + chunk])
            except _LayerReachedError:
                values = found.pop()
            added, part = values.shape[1], values.mean(1)
            deviation = (values - part[:, None]).square().sum(1)
            if count == 0:
                count, mean, squares = added, part, deviation
                continue
            # Merging of moments (Chan, Golub & LeVeque 1979): no difference of large sums.
            shift, total = part - mean, count + added
            squares = squares + deviation + shift.square() * (count * added / total)
            mean, count = mean + shift * (added / total), total
    finally:
        handle.remove()
    return mean, squares / count


@torch.no_grad()
def freeze_batch_norms(model: torch.nn.Module, images: torch.Tensor, chunk: int = 512) -> None:
    """Sets the statistics of every BatchNorm layer to those over all images.

    Args:
        model: A network in float64; left in evaluation mode.
        images: The training images, normalised, float64, on the network's device.
        chunk: Images of one pass.
    """
    model.eval()
    for name in _execution_order(model, images[:2]):
        layer = model.get_submodule(name)
        mean, variance = _channel_moments(model, layer, images, chunk)
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(variance)
