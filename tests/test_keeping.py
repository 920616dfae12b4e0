"""`keep`: which large arrays the workflow purges, and after what reads them, if only a comparison does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.keeping import Keeping
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from tests.experiments import TINY

RUNS = "results/tiny/runs"
OFF = dict.fromkeys(
    (
        *("density", "gradients", "localisation", "line_search", "line_forms", "finite_batch"),
        *("independence", "noise_curvature", "batch_hessians", "example_curvature", "fractal", "sharpness", "surface"),
        *("evolution", "posterior"),
    ),
    False,
)
RICH: dict[str, Any] = {
    **TINY,
    "curvature": {"gauss_newton": True},
    "subsets": [{"name": "h", "half": 0}, {"name": "g", "half": 1}],
    "runs": [
        {"name": "a", "checkpoints": [0, 40], "curvature_on": {"h": [40], "g": [40]}},
        {"name": "stepped", "step": {"method": "projected", "last": 3, "run": "a", "iteration": 40}},
        {"name": "more", "start": {"run": "stepped", "iteration": 10, "optimizer": "fresh"}},
    ],
    "families": [{"name": "f", "vary": {"seed": [1, 2, 3]}, "set": {"checkpoints": [0]}}],
    "measures": {**OFF, "embedding": False, "ruggedness": {"runs": ["f"]}, "ruggedness_compared": True},
}


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def keeping(**changes: Any) -> Keeping:
    return Keeping(Targets(Problem.of(parse_experiment({**RICH, **changes}))))


def readers(found: Keeping, stage: str) -> set[str]:
    """Folders of what reads a stage."""
    outputs = found.readers.get(f"{RUNS}/{stage}/manifest.json", [])
    return {str(Path(output).parent).removeprefix("results/tiny/") for output in outputs}


def test_everything_that_reads_them_is_known() -> None:
    found = keeping()
    assert readers(found, "a/checkpoints/40/hessian") == {"tables/parts/a/40"}
    assert readers(found, "a/checkpoints/40/gauss_newton") == {"tables/parts/a/40"}
    assert readers(found, "a/checkpoints/40/on-h/eigenbasis") == {
        "tables/identified/a/40",
        "tables/noise_crossed/a/40",
    }
    assert readers(found, "a/checkpoints/0/eigenbasis") == {
        "tables/overlap/a/0-40",
        "tables/parts/a/0",
        "tables/spectrum/a/0",
    }
    assert readers(found, "a/checkpoints/40/eigenbasis") == {
        *("tables/overlap/a/0-40", "tables/parts/a/40", "tables/spectrum/a/40", "tables/identified/a/40"),
        *("tables/noise_crossed/a/40", "runs/stepped/trajectory", "runs/stepped/starts/10/start.zarr"),
    }
    members = {name for name in found.readers if "/runs/f/" in name}
    assert len(members) == 3
    # Scores of members are asked for by what compares them alone, too.
    alone = keeping(measures={**RICH["measures"], "ruggedness": {"runs": ["a"]}})
    assert {name for name in alone.readers if "/runs/f/" in name} == members
    assert list(keeping().readers.items()) == list(found.readers.items()), "sizes.json is not written anew each time"


def test_a_family_that_reads_the_basis_of_its_start_is_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = (*MEASURES["tuning"].reads, "start_checkpoint", "start_eigenbasis")
    monkeypatch.setitem(MEASURES, "tuning", replace(MEASURES["tuning"], reads=reads))
    start = {"run": "a", "iteration": 40, "batches": "fresh"}
    both = {"name": "both", "vary": {"sampling": ["reshuffled", "independent"]}, "set": {"start": start}}
    found = keeping(families=[*RICH["families"], both], keep="tables")
    result = next(path for path in found.targets.results("tuning") if "/both/" in path)
    assert "tables/tuning/both/family" in readers(found, "a/checkpoints/40/eigenbasis")
    assert "tables/tuning/both/family" not in readers(found, "a/checkpoints/0/eigenbasis")
    assert result in found.inputs(_Wildcards("40", "basis"))
    # It alone keeps the basis, and alone has it purged.
    of_all = {output for outputs in found.readers.values() for output in outputs}
    for output in of_all - {result}:
        touch(output)
    again = keeping(families=[*RICH["families"], both], keep="tables")
    assert f"{RUNS}/a/checkpoints/40/purge-basis.json" in again.outputs()
    touch(result)
    assert keeping(families=[*RICH["families"], both], keep="tables").outputs() == []


@pytest.mark.parametrize(
    ("keep", "purged"),
    [("all", set()), ("bases", {"hessian"}), ("tables", {"hessian", "basis"})],
)
def test_what_is_purged(keep: str, purged: set[str]) -> None:
    found = keeping(keep=keep)
    places = ["a/checkpoints/0", "a/checkpoints/40", "a/checkpoints/40/on-h", "a/checkpoints/40/on-g"]
    outputs = {path.removeprefix(f"{RUNS}/") for path in found.outputs() if "/f/" not in path}
    assert outputs == {f"{place}/purge-{what}.json" for place in places for what in purged}
    assert sum("/f/" in path for path in found.outputs()) == 3 * len(purged)


def test_a_basis_that_nothing_reads_stays() -> None:
    changes = {"measures": {**RICH["measures"], "identified": False, "noise_crossed": False}, "keep": "tables"}
    on_half = [path for path in keeping(**changes).outputs() if "on-h" in path]
    assert on_half == [f"{RUNS}/a/checkpoints/40/on-h/purge-hessian.json"]
    assert f"{RUNS}/a/checkpoints/40/on-h/eigenbasis/manifest.json" in keeping(**changes).targets.everything()
    # Those that are compared are made for that, and gone when it is.
    assert not any("on-h" in path for path in keeping(keep="tables").targets.everything())


class _Wildcards:
    run = "a"

    def __init__(self, iteration: str, what: str) -> None:
        self.iteration, self.what = iteration, what


def touch(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()


def test_what_was_purged_is_not_asked_for_again() -> None:
    found, basis = keeping(keep="tables"), f"{RUNS}/a/checkpoints/0/eigenbasis/manifest.json"
    assert basis in found.inputs(_Wildcards("0", "hessian"))
    place = "a/checkpoints/0/purge-"
    for output in {output for outputs in found.readers.values() for output in outputs}:
        touch(output)
    # Everything is made, and nothing large is there: whether it was purged or removed by hand.
    assert keeping(keep="tables").outputs() == []
    assert basis not in keeping(keep="tables").inputs(_Wildcards("0", "hessian"))
    touch(basis)
    assert [path.removeprefix(f"{RUNS}/") for path in keeping(keep="tables").outputs()] == [f"{place}basis.json"]
    # It was purged before, and something has needed it since.
    Path(f"{RUNS}/{place}basis.json").write_text('{"purged": {"eigenbasis": {}}, "kept": {}}')
    assert keeping(keep="tables").outdated() == [f"{RUNS}/{place}basis.json"]
    assert keeping(keep="all").outdated() == []
    Path(f"{RUNS}/{place}basis.json").write_text('{"purged": {}, "kept": {"eigenbasis": "it is damaged"}}')
    assert keeping(keep="tables").outdated() == []


def test_a_purge_that_was_killed_goes_on() -> None:
    found, place = keeping(keep="bases"), f"{RUNS}/a/checkpoints/0"
    for output in {output for outputs in found.readers.values() for output in outputs}:
        touch(output)

    def outputs() -> list[str]:
        return [path for path in keeping(keep="bases").outputs() if path.startswith(place)]

    assert outputs() == []
    touch(f"{place}/hessian_shards/1-of-1/purged.json")
    assert outputs() == [f"{place}/purge-hessian.json"]
    # Whatever else was purged is no input.
    touch(f"{place}/eigenbasis/purged.json")
    assert f"{place}/eigenbasis/manifest.json" not in found.inputs(_Wildcards("0", "hessian"))
    touch(f"{place}/purge-hessian.json")
    assert outputs() == []


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^keep is .basis. .*'all', 'bases' or 'tables'"):
        parse_experiment({**TINY, "keep": "basis"})
