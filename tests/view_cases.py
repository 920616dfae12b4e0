"""Made-up lines and walks for the measures of chapter 9, and runs that are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from family_cases import training

from quadscape.config.sections import Data, Run
from quadscape.data.sets import prepare
from quadscape.measures.interpolation import compute as interpolation
from quadscape.measures.job import Job
from quadscape.measures.members import model_section
from quadscape.measures.run_losses import Evaluation
from quadscape.stage.run import run_stage
from quadscape.tables import Table
from quadscape.training.task import TrainingTask

COUNTS = {"train": 1257, "validation": 270}
HEAD = {"run": "a", "P": 2000, "N": 1257, "method": "sgd", "batch_norm": False, "initial": True}
HEAD["loss"] = "cross_entropy"


def line_tables(run: str, bump: float = 0.0, points: int = 41) -> dict[str, Table]:
    """A line that falls from 2.3 to 0.02, with a bump at α = ½ if asked for, and a validation loss that turns up."""

    def evaluate(theta: np.ndarray) -> dict[str, Evaluation]:
        a = float(theta[0])
        loss = 2.3 - 2.28 / (1 + np.exp(-14 * (a - 0.45))) + bump * np.exp(-(((a - 0.5) / 0.06) ** 2))
        held = loss + 0.3 * max(0.0, a - 0.5) ** 2 * 4
        return {s: Evaluation(v, float(np.exp(-v)), v + 3) for s, v in (("train", loss), ("validation", held))}

    return interpolation.measure(evaluate, np.zeros(3), np.ones(3), COUNTS, points, HEAD | {"run": run})


def run_job(folder: Path, model: Mapping[str, Any], options: Mapping[str, Any], loss: str, **section: Any) -> Job:
    """A job of a measure of a run, which is trained on a fifth of the digits."""
    data = folder / "data.zarr"
    if not data.exists():
        prepare(Data(source="digits", held_out=0.8), 0, data)
    run = Run(name="r", **training(**section).model_dump(exclude_unset=True))
    task = TrainingTask(run, 0, model_section(model), loss, data, "cpu")
    task.may_diverge = True
    run_stage(task, folder / "run", log=lambda _: None)
    inputs = {"data": [data], "trajectory": [folder / "run" / "manifest.json"]}
    return Job("r", (), {"dtype": "float64", **options}, inputs, device="cpu", log=lambda _: None)
