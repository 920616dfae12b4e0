"""A job of a stage that asks for a GPU and has none: on a cluster an error, unless slowness is meant; else the CPU."""

import atexit
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quadscape.cluster.slurm_head import mark_submitted_job
from quadscape.errors import StageError
from quadscape.numerics import resolve_device
from quadscape.planning.jobs import run_measure_job, start_job
from quadscape.stage.deadline import SUBMITTED_JOB, submitted_job
from tests.experiments import TINY

GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE")


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(atexit, "register", lambda _: None)
    for name in (*GIVEN, SUBMITTED_JOB, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def _job(tmp_path: Path, device: str, resources: dict[str, Any]) -> Any:
    return SimpleNamespace(
        log=[str(tmp_path / "job.log")],
        rule="train",
        wildcards=["a"],
        threads=1,
        config={**TINY, "device": device},
        resources=resources,
        params=SimpleNamespace(measure="gradients"),
    )


def _submit(monkeypatch: pytest.MonkeyPatch, number: str = "17") -> None:
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--executor", "slurm-jobstep"])
    monkeypatch.setenv(SUBMITTED_JOB, "")
    mark_submitted_job()


# Whatever a profile has made of the resource: its rule has it.
@pytest.mark.parametrize("resources", [{"gpu": 1}, {"gpu": 0, "slurm_partition": "cpu"}])
def test_a_submitted_job_without_its_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any]
) -> None:
    _submit(monkeypatch)
    with pytest.raises(StageError, match=r"given no GPU, though its stage asks for one.*set device to 'cpu'"):
        start_job(_job(tmp_path, "auto", resources))
    with pytest.raises(StageError, match="given no GPU"):
        run_measure_job(_job(tmp_path, "auto", resources), print)


@pytest.mark.parametrize(
    ("device", "resources", "submitted"),
    [
        ("cpu", {"gpu": 0}, True),  # slow on purpose
        ("auto", {"mem_mb": 1}, True),  # small networks, many to a job, ask for none
        ("auto", {"gpu": 1}, False),  # a laptop
    ],
)
def test_others_take_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, resources: dict[str, Any], submitted: bool
) -> None:
    if submitted:
        _submit(monkeypatch)
    experiment, _ = start_job(_job(tmp_path, device, resources))
    assert resolve_device(experiment.device).type == "cpu"


def test_a_shell_in_an_allocation_is_no_submitted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a head may compute locally, and on the CPU of which the user has asked for a share."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(sys, "argv", ["snakemake", "--cores", "2"])
    mark_submitted_job()
    assert SUBMITTED_JOB not in os.environ
    start_job(_job(tmp_path, "auto", {"gpu": 1}))
    # Nor is a job that one of ours starts, with its environment.
    _submit(monkeypatch)
    assert submitted_job() == "17"
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert submitted_job() == ""
    start_job(_job(tmp_path, "auto", {"gpu": 1}))


@pytest.mark.parametrize("name", GIVEN)
def test_a_gpu_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _submit(monkeypatch)
    monkeypatch.setenv(name, "1")
    with pytest.raises(StageError, match=f"was given a GPU \\({name}=1\\), but CUDA is not usable"):
        start_job(_job(tmp_path, "auto", {"gpu": 1}))
