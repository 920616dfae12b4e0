from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from family_cases import family, family_job, trained
from test_measure_interpolation import SHORT

from quadscape.config.sections import Data
from quadscape.data.sets import prepare
from quadscape.errors import ConfigError
from quadscape.measures.connection import compute as connection
from quadscape.measures.job import Job
from quadscape.network.planted import multi_well

OPTIONS = {"dtype": "float64", "points": 11}
WELLS = {"factory": "quadscape.network.planted:multi_well", "arguments": {"dimensions": 1, "noise": 1.0}}


def pair_job(folder: Path, models, loss: str, seeds=(0, 1), **section) -> Job:
    """A job of the ends of two runs, trained on a fifth of the digits."""
    data = folder / "data.zarr"
    prepare(Data(source="digits", held_out=0.8), 0, data)
    manifests = [
        trained(folder / str(place), data, model, [{**SHORT, **section, "seed": seed}], loss)[0]
        for place, (model, seed) in enumerate(zip(models, seeds, strict=True))
    ]
    made = replace(family({"run": ("a", "b")}, repeats=()), name="pairs/a/b")
    return family_job(made, data, manifests, **OPTIONS)


def test_two_ends_of_a_convex_loss_have_no_barrier(tmp_path: Path) -> None:
    job = pair_job(tmp_path, [{"factory": "linear"}] * 2, "squared_error", momentum=0.0)
    tables = connection.compute(job)
    line, summary = tables["connection"], tables["connection_summary"]
    assert summary["barrier"].tolist() == [0.0, 0.0]
    assert line.attributes["distance"] > 0
    for place, split in enumerate(("train", "validation")):
        rows = line.where(line["split"] == split)
        for which, at in ((0, 0), (1, -1)):
            end = job.trajectory(which).curves().evaluation[30, place, 0]
            assert rows["loss"][at] == pytest.approx(end, rel=1e-5)


def test_the_barrier_between_two_wells_is_the_planted_one(tmp_path: Path) -> None:
    network = multi_well((1, 8, 8), 10, dimensions=1, noise=1.0)
    starts = {}
    for seed in range(12):
        job = pair_job(
            tmp_path / str(seed), [WELLS] * 2, "squared_error", (seed, seed + 1), momentum=0.0, batch_size="full"
        )
        starts = {network.basin(job.trajectory(which).theta(0)): which for which in (0, 1)}
        if len(starts) == 2:
            break
    assert len(starts) == 2
    tables = connection.compute(job)
    summary = tables["connection_summary"]
    ends = [job.trajectory(which).theta(30) for which in (0, 1)]
    fine = np.linspace(0, 1, 2001)
    loss = np.array([network.training_loss((1 - a) * ends[0] + a * ends[1]) for a in fine])
    barrier = (loss - (1 - fine) * loss[0] - fine * loss[-1]).max()
    assert summary["barrier"][0] == pytest.approx(barrier, rel=1e-2)


def test_runs_of_two_networks_are_no_pair(tmp_path: Path) -> None:
    job = pair_job(tmp_path, [{"factory": "linear"}, {"factory": "mlp", "hidden": [3]}], "cross_entropy")
    with pytest.raises(ConfigError, match="have another model each"):
        connection.compute(job)
