"""Estimates beside what jobs took, of the demo and of w = 1 on 1,010 images, at the speeds of the machine they ran on.

Processor seconds and the largest memory of each job are from the last lines of its log (docs/costs.md). Speeds are kept
here as `quadscape estimate` measured them on that machine, so that the test tells of laws alone, wherever it runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadscape.data.sources import DataDescription
from quadscape.planning.estimate import estimate_experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.work import NOMINAL
from quadscape.results.sizes import Network

MATRICES = {"matrix float32": 79.6e9, "matrix float64": 43.1e9, "read": 15.1e9}
SPEEDS: dict[str, dict[str, float]] = {
    "w1": {
        "columns float32": 30.1e9,
        "forward float32": 15.8e9,
        "forward float64": 6.53e9,
        "gradient float32": 23.9e9,
        "gradient float64": 6.88e9,
        "product float32": 8.20e9,
        "product float64": 3.74e9,
        "steps": 161.0,
    },
    "demo": {
        "columns float64": 5.49e9,
        "forward float32": 4.06e9,
        "forward float64": 3.39e9,
        "gradient float32": 10.3e9,
        "gradient float64": 5.00e9,
        "product float32": 2.29e9,
        "product float64": 1.80e9,
        "steps": 635.0,
    },
}
TAKEN: dict[str, dict[str, tuple[float, float, float]]] = {
    # Least and most of processor seconds of its jobs, and GB.
    "demo": {
        "prepare_data": (2.9, 3.3, 0.731),
        "training": (10.0, 13.8, 0.801),
        "extract_checkpoint": (3.3, 5.5, 0.816),
        "hessian_shard": (18.5, 24.8, 0.871),
        "hessian": (5.4, 6.2, 0.995),
        "eigenbasis": (13.7, 17.6, 1.20),
        "measure_curves": (0.8, 1.0, 0.157),
        "measure_final_test": (0.9, 1.1, 0.152),
        "measure_spectrum": (0.5, 0.7, 0.141),
        "measure_density": (14.5, 18.6, 1.07),
        "measure_line_search": (21.9, 27.7, 1.10),
        "measure_line_forms": (0.5, 0.9, 0.151),
        "measure_independence": (8.7, 10.5, 1.11),
        "measure_gradients": (4.0, 5.1, 0.977),
        "measure_finite_batch": (2.5, 3.2, 0.220),
        "measure_noise_curvature": (3.7, 6.0, 1.07),
        "measure_batch_hessians": (8.4, 10.4, 0.946),
        "measure_example_curvature": (7.8, 10.0, 1.04),
        "measure_noise_memory": (5.4, 10.6, 0.916),
        # Of checkpoints that end a plateau.
        "measure_evolution": (10.8, 14.2, 1.04),
        "measure_posterior": (1.3, 1.4, 0.220),
        "measure_localisation": (2.6, 3.0, 0.788),
        "measure_overlap": (2.8, 3.9, 0.782),
        "measure_ruggedness": (12.8, 16.1, 1.10),
        "measure_interpolation": (2.9, 4.1, 0.704),
        "measure_path": (8.8, 11.2, 0.745),
        "measure_surface": (9.0, 12.3, 1.10),
    },
    "w1": {
        "prepare_data": (2.1, 2.1, 0.629),
        "training": (15.0, 15.0, 0.995),
        "extract_checkpoint": (6.1, 6.1, 0.861),
        "hessian_shard": (1695.1, 1695.1, 2.20),
        "hessian": (133.1, 133.1, 2.73),
        "eigenbasis": (2740.2, 2740.2, 9.51),
        "measure_curves": (0.7, 0.7, 0.154),
        "measure_final_test": (0.7, 0.7, 0.150),
        "measure_spectrum": (0.6, 0.6, 0.141),
        "measure_density": (179.7, 179.7, 2.34),
        "measure_line_search": (197.8, 197.8, 2.45),
        "measure_line_forms": (0.7, 0.7, 0.148),
        "measure_gradients": (52.5, 52.5, 2.04),
        "measure_finite_batch": (1.7, 1.7, 0.215),
        "measure_localisation": (29.0, 29.0, 2.97),
        "measure_ruggedness": (360.2, 360.2, 2.39),
        "measure_interpolation": (12.1, 12.1, 0.896),
        "measure_path": (22.8, 22.8, 0.914),
        "measure_surface": (113.2, 113.2, 2.37),
    },
}
W1: dict[str, Any] = {
    "name": "w1",
    "data": {"source": "image_folder", "path": "images"},
    "model": {"factory": "resnet9", "width": 1},
    "training": {
        "iterations": 160,
        "batch_size": 128,
        "learning_rate": {"schedule": "steps", "value": 0.05, "milestones": [120], "factor": 0.1},
        "trajectory": {"stride": 2, "dense": 20},
        "evaluate_every": 40,
    },
    "runs": [{"name": "a", "checkpoints": [160]}],
    "measures": {
        "line_search": {"directions": 12, "points": 21},
        "density": {"vectors": 2, "steps": 20},
        "ruggedness": {"directions": 2, "points": 11},
        "path": {"iterates": 40, "resolution": 5},
        "interpolation": {"points": 11},
        "surface": {"resolution": 7, "samples": 4},
        "fractal": False,
        "embedding": False,
        "sharpness": False,
    },
}
DEMO = Path(__file__).parents[1] / "experiments/demo.yaml"


@pytest.mark.parametrize("name", ["demo", "w1"])
def test_every_stage_and_measure_is_within_a_factor_of_two(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(networks: list[Any], *_: Any) -> list[Mapping[str, float]]:
        return [{**NOMINAL["cpu"], **MATRICES, **SPEEDS[name]}] * len(networks)

    monkeypatch.setattr("quadscape.planning.estimate.measure_speeds", measured)
    experiment = parse_experiment({**(yaml.safe_load(DEMO.read_text()) if name == "demo" else W1), "device": "cpu"})
    digits = tuple("0123456789")
    w1 = DataDescription((3, 32, 32), digits, 1010, 0, 400, "")
    data = Problem.of(experiment).data if name == "demo" else w1
    size = {"demo": 2406, "w1": 26_490}[name]
    problem = Problem(experiment, data, {run.name: Network(size, None) for run in experiment.runs})
    (found,) = estimate_experiment(problem, ["cpu"])
    needs = {need.stage: need for need in found.needs}
    assert name == "w1" or needs.keys() == TAKEN[name].keys()
    for stage, (least, most, memory) in TAKEN[name].items():
        need = needs[stage]
        assert most / 2 <= need.seconds <= 2 * least, f"{stage}: {need.seconds:.3g} s, of {least} to {most}"
        assert memory <= need.memory_bytes / 1e9 <= 2 * memory, f"{stage}: {need.memory_bytes:.3g} B, of {memory} GB"
