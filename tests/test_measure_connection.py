from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from family_cases import family, family_job, trained
from test_measure_interpolation import SHORT

from quadscape.config.model import model_section
from quadscape.config.sections import Data
from quadscape.data.sets import prepare
from quadscape.errors import ConfigError
from quadscape.findings.connection import statements
from quadscape.measures.connection import compute as connection
from quadscape.measures.job import Job
from quadscape.network import permutations
from quadscape.network.models import build_model
from quadscape.network.parameters import ParameterLayout
from quadscape.network.permutations import Units, hidden_units, permuted, random_orders
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


@pytest.mark.parametrize(
    "model",
    [
        {"factory": "mlp", "hidden": [12, 8]},
        {"factory": "cnn", "channels": [8, 8], "channels_per_group": 4, "skip": True},
        {"factory": "cnn", "channels": [6], "normalization": "batch"},
    ],
)
def test_a_network_and_its_own_permutation_have_a_barrier_that_aligning_removes(
    model: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pair_job(tmp_path, [model] * 2, "cross_entropy", (0, 0))
    config = model_section(model)
    layout, units = ParameterLayout.of(build_model(config, (1, 8, 8), 10)), hidden_units(config, (1, 8, 8))
    first, theta = job.trajectory(0), job.trajectory(0).theta(30)
    assert units is not None
    moved = permuted(theta, layout, units, random_orders(units, 1))
    second = SimpleNamespace(
        stage=first.stage, training=first.training, diverged=None, theta=lambda iteration: moved.copy()
    )
    monkeypatch.setattr(job, "trajectory", lambda which=0: (first, second)[which])
    tables = connection.compute(job)
    summary, line = tables["connection_summary"], tables["connection"]
    before, after = (summary.where(summary["aligned"] == aligned) for aligned in (False, True))
    np.testing.assert_allclose(before["start"], before["end"], atol=before["floor"].max())
    assert (before["barrier"] > 1e-3).all()
    assert after["barrier"].tolist() == [0.0, 0.0]
    aligned = line.where(line["aligned"] & (line["split"] == "train"))
    np.testing.assert_allclose(aligned["loss"], before["start"][0], atol=after["floor"].max())
    head = line.attributes
    assert head["alignment"] == "by weight matching"
    assert 0 < head["moved"] <= head["units"] == sum(each.count for each in units)
    assert head["distance_aligned"] == 0 < head["distance"]
    claims = [statement.claim for statement in statements({name: [table] for name, table in tables.items()})]
    assert "above the straight line" in claims[0]
    assert "no barrier after hidden units are aligned" in claims[1]


def test_aligning_does_not_lengthen_the_way_between_two_runs(tmp_path: Path) -> None:
    job = pair_job(tmp_path, [{"factory": "mlp", "hidden": [12]}] * 2, "cross_entropy")
    line = connection.compute(job)["connection"]
    assert line.attributes["distance_aligned"] < line.attributes["distance"]
    train = line.where(line["split"] == "train")
    for at in (0, -1):
        ends = [train.where(train["aligned"] == aligned)["loss"][at] for aligned in (False, True)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-12)


def test_what_cannot_be_aligned_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    job = pair_job(tmp_path, [{"factory": "linear"}] * 2, "cross_entropy")
    job.log = said.append
    line = connection.compute(job)["connection"]
    assert not line["aligned"].any()
    assert "no hidden units" in line.attributes["alignment"]
    assert "no hidden units" in said[-1]
    # A structure that is not the network's is found out before it is used.
    job = pair_job(tmp_path / "wrong", [{"factory": "mlp", "hidden": [6]}] * 2, "cross_entropy")
    job.log = said.append
    monkeypatch.setattr(permutations, "hidden_units", lambda *_: (Units(6, 1, [("linear1.weight", 0)]),))
    tables = connection.compute(job)
    assert not tables["connection"]["aligned"].any()
    assert "changes the train loss" in said[-1]
    assert "not aligned" in statements({name: [table] for name, table in tables.items()})[0].claim


def test_runs_of_two_networks_are_no_pair(tmp_path: Path) -> None:
    job = pair_job(tmp_path, [{"factory": "linear"}, {"factory": "mlp", "hidden": [3]}], "cross_entropy")
    with pytest.raises(ConfigError, match="have another model each"):
        connection.compute(job)
