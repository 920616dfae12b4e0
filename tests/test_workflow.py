"""The workflow as users run it: what is computed, what is recomputed, and what is refused before any job."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from quadscape.measures import MEASURES
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets, measure_rules
from tests.checkouts import ROOT, Checkout
from tests.experiments import TINY


def _content(checkout: Checkout) -> dict[str, bytes]:
    """What rules declare and tables hold: digests of everything computed, byte for byte."""
    root = checkout.path / "results/tiny"
    files = [
        *root.rglob("manifest*.json"),
        *root.rglob("*.zarr/zarr.json"),
        *root.rglob("figures/*"),
        *root.rglob("pages/*"),
    ]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if "store.zarr" not in path.parts}


PER_CHECKPOINT = {"extract_checkpoint", "compute_hessian_shard", "compute_hessian", "compute_eigenbasis"}
PER_CHECKPOINT |= {f"measure_{name}" for name, measure in MEASURES.items() if measure.of == "checkpoint"}
# Of a Gauss–Newton matrix, which is not asked for, and what the experiment leaves out.
PER_CHECKPOINT -= {f"measure_{name}" for name in ("parts", "fractal", "independence", "ruggedness", "surface")}
PER_CHECKPOINT -= {f"measure_{name}" for name in ("batch_hessians", "example_curvature", "evolution", "posterior")}
# Of subsets of the data, of which there are none.
PER_CHECKPOINT -= {"measure_identified", "measure_noise_crossed"}


@pytest.mark.slow
def test_everything_is_made_and_then_nothing(checkout: Checkout) -> None:
    results = checkout.path / "results/tiny"
    assert {path.name for path in (results / "figures").glob("*.*g")} == {
        f"{name}.{kind}"
        for kind in ("svg", "png")
        for name in (
            "learning_curves",
            "spectrum",
            "spectral_density",
            "eigenvector_localisation",
            "line_searches",
            "quadratic_radius",
            "quadratic_through_training",
            "gradient_cosine",
            "batch_minima",
            "noise_curvature",
            "eigenvector_overlap",
            "interpolation",
            "trajectory_plane",
        )
    }
    assert {path.name for path in (results / "pages").glob("*.html")} == {"trajectory_plane.html"}
    assert (results / "findings.rst").read_text().startswith("What was found")
    assert not checkout.plan()


def _kill(child: subprocess.Popen[str], jobs: int, wait: float) -> bool:
    """Kills a head with all its jobs some time after so many of them have begun; whether one was running then.

    The time is a share of what the head has taken to its first job. A job takes about as long, on a slow machine too.
    """
    began, first = time.monotonic(), 0.0
    assert child.stdout is not None
    for line in child.stdout:
        if re.match(r"(local)?rule \w+:", line):
            first, jobs = first or time.monotonic() - began, jobs - 1
            if jobs == 0:
                time.sleep(wait * first)
                break
    running = bool(psutil.Process(child.pid).children())
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    return running


EIGENBASIS = "results/tiny/runs/a/checkpoints/40/eigenbasis/manifest.json"
CURVES = "results/tiny/figures/learning_curves.svg"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "most", "jobs"),
    [
        pytest.param((EIGENBASIS, CURVES), 3, 2, id="one-basis-one-figure"),
        pytest.param((), 6, 4, id="everything", marks=pytest.mark.long),
    ],
)
def test_killed_with_all_its_jobs_the_same_command_goes_on(
    finished: Checkout, tmp_path: Path, targets: tuple[str, ...], most: int, jobs: int
) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure()
    chance, kills = random.Random(1), 0
    while kills < most:
        child = checkout.begin(*checkout.command(*targets))
        kills += _kill(child, chance.randint(1, jobs), chance.uniform(0, 1))
        if child.returncode != -signal.SIGKILL:  # it ended before
            break
    assert kills >= 3
    code, output = checkout.snakemake(*targets)
    assert code == 0, output
    found, expected = _content(checkout), _content(finished)
    assert found == {path: expected[path] for path in found or expected}
    assert targets or found.keys() == expected.keys()


@pytest.mark.slow
def test_one_figure_lists_only_what_it_needs(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure()
    planned = checkout.plan("results/tiny/figures/spectrum.svg")
    assert planned == Counter(
        prepare_data=1,
        train=1,
        extract_checkpoint=2,
        compute_hessian_shard=2,
        compute_hessian=2,
        compute_eigenbasis=2,
        measure_spectrum=2,
        draw_figure=1,
    )
    assert checkout.plan("results/tiny/figures/learning_curves.svg") == Counter(
        prepare_data=1, train=1, measure_curves=1, draw_figure=1
    )


@pytest.mark.slow
def test_figures_of_eigenvectors_list_only_what_they_need(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    on = {"half-0": [40], "half-1": [40], "order": [40]}
    subsets = [{"name": f"half-{half}", "half": half} for half in (0, 1)] + [{"name": "order", "shuffled": True}]

    def bases(count: int) -> dict[str, int]:
        return dict.fromkeys(
            ("extract_checkpoint", "compute_hessian_shard", "compute_hessian", "compute_eigenbasis"), count
        )

    # One checkpoint, on all of the data and on three subsets.
    checkout.configure(subsets=subsets, runs=[{"name": "a", "checkpoints": [40], "curvature_on": on}])
    once = {"prepare_data": 1, "train": 1, "draw_figure": 1}
    planned = checkout.plan("results/tiny/figures/identified_directions.svg")
    assert planned == Counter(**once, **bases(4), select_subset=3, measure_identified=1)
    # Where there is another checkpoint, the change between them stands beside it.
    checkout.configure(subsets=subsets, runs=[{"name": "a", "checkpoints": [0, 40], "curvature_on": on}])
    planned = checkout.plan("results/tiny/figures/identified_directions.svg")
    assert planned == Counter(**once, **bases(5), select_subset=3, measure_identified=1, measure_overlap=1)
    planned = checkout.plan("results/tiny/figures/eigenvector_overlap.svg")
    assert planned == Counter(**once, **bases(2), measure_overlap=1)
    code, listing = checkout.snakemake("-n")
    assert code == 0, listing
    assert "identified_directions" in listing


def test_the_tiny_gallery_has_every_measure_and_few_jobs(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    shutil.copy2(ROOT / "experiments/tiny.yaml", checkout.path / "tiny.yaml")
    planned = checkout.plan()
    assert {f"measure_{name}" for name in MEASURES} <= planned.keys()
    assert planned.total() <= 250


@pytest.mark.slow
def test_another_checkpoint_trains_nothing(checkout: Checkout) -> None:
    checkout.configure(runs=[{"name": "a", "checkpoints": [0, 20, 40]}])
    planned = checkout.plan()
    assert planned.pop("measure_overlap") == 2
    assert planned.pop("draw_figure") == 10
    assert planned.pop("write_findings") == 1
    assert checkout.figures() == {
        "spectrum",
        "eigenvector_localisation",
        "spectral_density",
        "line_searches",
        "quadratic_radius",
        "quadratic_through_training",
        "gradient_cosine",
        "batch_minima",
        "noise_curvature",
        "eigenvector_overlap",
    }
    assert planned == Counter(dict.fromkeys(PER_CHECKPOINT, 1))
    assert set(re.findall(r"iteration=(\d+)", checkout.listing)) == {"20"}


@pytest.mark.slow
def test_what_changes_no_result_runs_nothing(checkout: Checkout) -> None:
    later = time.time() + 10
    for path in [*checkout.path.glob("quadscape/**/*.py"), *checkout.path.glob("workflow_scripts/*.py")]:
        path.write_text("# A remark at the top.\n" + path.read_text() + "\n# And one at the end.\n")
        os.utime(path, (later, later))
    for path in [*checkout.path.glob("rules/*.smk"), checkout.path / "Snakefile", checkout.path / "tiny.yaml"]:
        path.write_text(path.read_text() + "\n# A remark.\n")
        os.utime(path, (later, later))
    assert not checkout.plan()


@pytest.mark.slow
def test_a_fresh_checkout_over_finished_results_runs_nothing(checkout: Checkout, tmp_path: Path) -> None:
    fresh = Checkout(tmp_path / "fresh")
    fresh.configure()
    shutil.move(checkout.path / "results", fresh.path / "results")
    assert not fresh.plan()


@pytest.mark.slow
def test_a_changed_figure_is_drawn_again(checkout: Checkout) -> None:
    path = checkout.path / "quadscape/figures/spectrum.py"
    path.write_text(path.read_text() + "\nUNUSED = 1\n")
    assert not checkout.plan()
    path.write_text(path.read_text().replace("low / 3, high * 3", "low / 3, high * 4"))
    assert checkout.plan() == Counter(draw_figure=1)
    assert checkout.figures() == {"spectrum"}


LINES_AGAIN = Counter(
    measure_line_search=2, measure_line_forms=2, measure_finite_batch=2, draw_figure=4, write_findings=1
)
"""Line searches, and what reads them."""


@pytest.mark.slow
def test_a_changed_measure_is_measured_again(checkout: Checkout) -> None:
    path = checkout.path / "quadscape/measures/line_search/analysis.py"
    path.write_text(path.read_text().replace("CLUSTERING = 6.0", "CLUSTERING = 5.0"))
    assert checkout.plan() == LINES_AGAIN
    assert checkout.figures() == {"line_searches", "quadratic_radius", "quadratic_through_training", "batch_minima"}


@pytest.mark.slow
def test_one_option_measures_one_measure_again(checkout: Checkout) -> None:
    checkout.configure(measures={**TINY["measures"], "overlap": {"bands": 9}})
    assert checkout.plan() == Counter(measure_overlap=1, draw_figure=1, write_findings=1)
    assert checkout.figures() == {"eigenvector_overlap"}
    # And what reads its tables.
    checkout.configure(measures={**TINY["measures"], "line_search": {"directions": 6, "points": 25}})
    assert checkout.plan() == LINES_AGAIN
    checkout.configure()
    assert not checkout.plan()


@pytest.mark.slow
def test_a_new_hessian_version_recomputes_what_follows(checkout: Checkout) -> None:
    path = checkout.path / "quadscape/provenance/versions.py"
    text = path.read_text()
    assert '"hessian": 2' in text
    path.write_text(text.replace('"hessian": 2', '"hessian": 3'))
    planned = checkout.plan()
    assert "train" not in planned
    assert "extract_checkpoint" not in planned
    assert planned["compute_hessian_shard"] == planned["compute_hessian"] == planned["compute_eigenbasis"] == 2
    assert checkout.figures() >= {"spectrum", "eigenvector_overlap"}


@pytest.mark.long
def test_another_number_of_shards_computes_the_same(checkout: Checkout) -> None:
    results = checkout.path / "results/tiny/runs/a/checkpoints/40"
    bases = {path: path.read_bytes() for path in results.glob("eigenbasis/manifest.json")}
    # What is yet to be gathered is spread over as many as are asked for.
    checkout.configure(curvature={"shards": 2}, runs=[{"name": "a", "checkpoints": [0, 20, 40]}])
    planned = checkout.plan()
    assert (planned["compute_hessian_shard"], planned["compute_hessian"]) == (2, 1)
    checkout.configure(curvature={"shards": 2})
    assert not checkout.plan(), "a finished Hessian keeps the shards that it has"
    shutil.rmtree(results / "hessian")
    planned = checkout.plan("--forcerun", "compute_eigenbasis")
    assert (planned["compute_hessian_shard"], planned["compute_hessian"], planned["compute_eigenbasis"]) == (2, 1, 2)
    assert not {"train", "extract_checkpoint"} & set(planned)
    hessian = str((results / "hessian/manifest.json").relative_to(checkout.path))
    code, output = checkout.snakemake(hessian, *(str(path.relative_to(checkout.path)) for path in bases))
    assert code == 0, output
    assert {path.name for path in (results / "hessian_shards").iterdir()} == {"1-of-1", "1-of-2", "2-of-2"}
    assert {path: path.read_bytes() for path in bases} == bases
    assert '"event": "unit"' not in (results / "eigenbasis/events.jsonl").read_text().rpartition('"event": "start"')[2]
    code, status = checkout.run(sys.executable, "-m", "quadscape.cli", "status", "results")
    assert code == 0, status
    assert len(re.findall(r"checkpoints/40/hessian_shards/\d-of-2 +complete", status)) == 2
    # It keeps these when others are asked for, and is made of as many when it must be made again.
    checkout.configure(curvature={"shards": 1})
    assert not {"compute_hessian_shard", "compute_hessian", "compute_eigenbasis"} & set(checkout.plan())
    shutil.rmtree(results / "hessian_shards/2-of-2")
    code, output = checkout.snakemake(hessian, "--forcerun", "compute_hessian")
    assert code == 0, output
    assert (results / "hessian_shards/2-of-2/manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "device", "gpus"), [(1, "auto", "1"), (3, "cpu", "0")])
def test_shards_are_jobs_of_their_own_when_there_are_several(
    tmp_path: Path, shards: int, device: str, gpus: str
) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure(curvature={"shards": shards}, device=device)
    target = "results/tiny/runs/a/checkpoints/40/eigenbasis/manifest.json"
    code, listing = checkout.snakemake("-n", target, profile="profiles/slurm")
    assert code == 0, listing
    # Snakemake indents the jobs of a group.
    grouped = Counter(re.findall(r"^ +rule (\w+):", listing, flags=re.MULTILINE))
    alone = Counter(re.findall(r"^rule (\w+):", listing, flags=re.MULTILINE))
    assert grouped == Counter(["compute_hessian", "compute_eigenbasis"] + ["compute_hessian_shard"] * (shards == 1))
    assert alone["compute_hessian_shard"] == (0 if shards == 1 else shards)
    # Rules that gain from a GPU ask for one, unless the experiment does without.
    asked = {
        rule: re.findall(r"\bgpu=(\d)", text) for rule, text in re.findall(r"rule (\w+):\n((?: +\w.*\n)+)", listing)
    }
    computed = {"compute_hessian_shard", "compute_hessian", "compute_eigenbasis"}
    assert asked == {rule: [gpus] for rule in {"train", *computed}} | {"prepare_data": [], "extract_checkpoint": []}


@pytest.mark.slow
def test_the_parts_of_the_hessian_are_made_when_asked_for(checkout: Checkout) -> None:
    both = {"curvature": {"gauss_newton": True}}
    checkout.configure(**both)
    assert checkout.plan() == Counter(compute_gauss_newton=2, measure_parts=2, draw_figure=1, write_findings=1)
    assert checkout.figures() == {"curvature_parts"}
    # They are made for one checkpoint, and then not again when they are asked for the other, too.
    checkout.configure(**both, runs=[{"name": "a", "checkpoints": [40]}])
    targets = ["results/tiny/figures/curvature_parts.png", "results/tiny/findings.rst"]
    code, output = checkout.snakemake(*targets)
    assert code == 0, output
    assert (checkout.path / targets[0]).stat().st_size > 10_000
    assert not checkout.plan(*targets)
    checkout.configure(**both)
    assert checkout.plan() == Counter(compute_gauss_newton=1, measure_parts=1, draw_figure=1, write_findings=1)


@pytest.mark.slow
def test_a_lost_manifest_is_rewritten_without_recomputing(checkout: Checkout) -> None:
    stage = checkout.path / "results/tiny/runs/a/checkpoints/40/hessian"
    before = (stage / "manifest.json").read_bytes()
    (stage / "manifest.json").unlink()
    assert not checkout.plan(), "what is finished does not need it"
    code, output = checkout.snakemake(str(stage.relative_to(checkout.path) / "manifest.json"))
    assert code == 0, output
    assert (stage / "manifest.json").read_bytes() == before
    assert '"event": "unit"' not in (stage / "events.jsonl").read_text().rpartition('"event": "start"')[2]
    assert not checkout.plan()


@pytest.mark.slow
def test_a_removed_stage_directory_heals(checkout: Checkout) -> None:
    stage = checkout.path / "results/tiny/runs/a/checkpoints/40/eigenbasis"
    manifest = (stage / "manifest.json").read_bytes()
    shutil.rmtree(stage / "store.zarr")
    shutil.rmtree(checkout.path / "results/tiny/tables/spectrum/a/40")
    (checkout.path / "results/tiny/figures/spectrum.svg").unlink()
    code, output = checkout.snakemake("results/tiny/figures/spectrum.svg")
    assert code != 0
    assert f"remove {stage.relative_to(checkout.path)}/manifest.json and run the workflow again" in output
    assert f"remove the directory {stage.relative_to(checkout.path)}" in output
    shutil.rmtree(stage)
    code, output = checkout.snakemake("results/tiny/figures/spectrum.svg")
    assert code == 0, output
    assert (stage / "manifest.json").read_bytes() == manifest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainng": {}}, ["trainng", "did you mean 'training'"]),
        ({"runs": [{"name": "a", "checkpoints": [41]}]}, ["41", "40"]),
        ({"data": {"source": "image_folder", "path": "no/such/folder"}}, ["no/such/folder"]),
        ({"model": {"factory": "nowhere.at_all:function"}}, ["nowhere"]),
        ({"measures": {"line_search": {"directions": 100000}}}, ["directions", "100000"]),
        ({"curvature": {"shards": 1000}}, ["curvature.shards", "1000"]),
        ({"runs": [{"name": "b", "path": "none.pt", "checkpoints": [3]}]}, ["runs[0].path", "none.pt"]),
    ],
)
def test_mistakes_stop_the_workflow_before_any_job(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure(**changes)
    code, output = checkout.snakemake()
    assert code != 0
    for word in words:
        assert word in output
    assert "Traceback" not in output
    assert not (checkout.path / "results").exists()


def test_later_attempts_ask_for_more() -> None:
    families, runs = [{"name": "f", "vary": {"seed": [0, 1]}}], [*TINY["runs"], {"name": "b", "seed": 2}]
    problem = Problem.of(parse_experiment({**TINY, "families": families, "runs": runs, "pairs": [["a", "b"]]}))
    run = problem.experiment.runs[0]
    jobs = re.findall(r'(?:memory|memory_mb)\("(\w+)"', "".join(p.read_text() for p in (ROOT / "rules").glob("*.smk")))
    assert len(set(jobs)) >= 8
    for job in jobs:
        memory = [problem.memory_mb(job, attempt) for attempt in (1, 2, 3)]
        minutes = [problem.runtime_minutes(job, attempt, run.name) for attempt in (1, 2, 3)]
        assert memory == pytest.approx([memory[0], 1.5 * memory[0], 2 * memory[0]], abs=1)
        assert minutes == pytest.approx([minutes[0], 2 * minutes[0], 3 * minutes[0]], abs=3)
    # No rule asks for the same whatever happened before.
    for path in (ROOT / "rules").glob("*.smk"):
        text = path.read_text()
        if path.name != "measures.smk":
            assert (
                len(re.findall(r"^rule ", text, re.M))
                == len(re.findall(r"mem_mb=memory\(", text))
                == text.count("runtime=")
            )
    wildcards = SimpleNamespace(run="a", family="f", pair="pairs/a/b", iteration="40", first="0", second="40")
    for rule in measure_rules(Targets(problem)):
        memory = [rule.memory(wildcards, attempt) for attempt in (1, 2, 3)]
        minutes = [rule.runtime(wildcards, attempt) for attempt in (1, 2, 3)]
        assert memory == pytest.approx([memory[0], 1.5 * memory[0], 2 * memory[0]], abs=1)
        assert minutes == pytest.approx([minutes[0], 2 * minutes[0], 3 * minutes[0]], abs=3)
