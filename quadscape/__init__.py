"""The exact Hessian, and its whole eigenbasis, of a neural network's loss: what the landscape really looks like.

`quadscape.objective(model, inputs, labels)` begins with a plain torch module and tensors, `quadscape.load_experiment`
with an experiment file, `quadscape.open_results` with what a workflow has left; docs/library.md shows them in use.
Importing this package loads nothing that it needs; a name does, when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quadscape import figures, measures
    from quadscape.errors import QuadscapeError
    from quadscape.library.curvature import DenseEigenbasis, Hessian, eigenbasis, hessian, top_eigenpairs
    from quadscape.library.loss import NetworkObjective, objective
    from quadscape.library.measuring import draw, measure
    from quadscape.network.checkpoint import Checkpoint
    from quadscape.network.objective import Objective
    from quadscape.planning.experiment import Experiment
    from quadscape.planning.experiment_file import load_experiment
    from quadscape.results.opened import Results, open_results
    from quadscape.tables import Table

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "DenseEigenbasis",
    "Experiment",
    "Hessian",
    "NetworkObjective",
    "Objective",
    "QuadscapeError",
    "Results",
    "Table",
    "draw",
    "eigenbasis",
    "figures",
    "hessian",
    "load_experiment",
    "measure",
    "measures",
    "objective",
    "open_results",
    "top_eigenpairs",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'quadscape' has no attribute '{name}'")
    from importlib import import_module

    if name in {"figures", "measures"}:
        return import_module(f"quadscape.{name}")
    elsewhere = {
        "Checkpoint": "network.checkpoint",
        "Experiment": "planning.experiment",
        "Objective": "network.objective",
        "QuadscapeError": "errors",
        "Results": "results.opened",
        "Table": "tables",
        "load_experiment": "planning.experiment_file",
        "open_results": "results.opened",
    }
    return getattr(import_module(f"quadscape.{elsewhere.get(name, 'library')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
