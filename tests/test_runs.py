"""Runs with a network of their own."""

import pytest

from quadscape.errors import ConfigError
from quadscape.planning.estimate import estimate_experiment
from quadscape.planning.experiment import Experiment
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.targets import Targets
from tests.experiments import TINY

OWN = {"factory": "mlp", "hidden": [2], "activation": "sigmoid"}  # 160 parameters, where the others have 235
RUNS = [*TINY["runs"], {"name": "b", "checkpoints": [40], "model": OWN}]


def two_networks(**changes: object) -> Experiment:
    return parse_experiment({**TINY, "runs": RUNS, **changes})


def test_sizes_belong_to_a_run() -> None:
    problem = Problem.of(two_networks())
    assert {name: network.parameters for name, network in problem.networks.items()} == {"a": 235, "b": 160}
    assert problem.sizes_text() == "160 and 235 parameters"
    assert [problem.sizes(run).parameters for run in "ab"] == [235, 160]
    assert problem.memory_mb("gauss_newton", run="b") <= problem.memory_mb("gauss_newton", run="a")
    assert problem.runtime_minutes("eigenbasis", run="b") <= problem.runtime_minutes("eigenbasis")
    settings = Targets(problem).settings()
    assert [settings[run]["P"] for run in "ab"] == [235, 160]
    assert [settings[run]["normalization"] for run in "ab"] == ["none", "none"]


def test_only_large_networks_take_two_threads() -> None:
    large = {"name": "b", "checkpoints": [40], "model": {"factory": "mlp", "hidden": [100]}}  # 7,510 parameters
    problem = Problem.of(two_networks(runs=[*TINY["runs"], large]))
    assert [problem.threads(run) for run in "ab"] == [1, 2]


def test_a_model_of_a_run_is_checked_as_that_of_the_experiment() -> None:
    for model, sentence in (
        ({"factory": "mlp", "hiden": [3]}, r"runs\[1\]\.model\.hiden is not a known key.*'hidden'"),
        ({"factory": "mlpp"}, r"runs\[1\]\.model\.factory is \"mlpp\"; valid are cnn, linear, mlp, resnet9"),
        ({"factory": "mlp", "hidden": [0]}, r"runs\[1\]\.model\.hidden\[0\] is 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            parse_experiment({**TINY, "runs": [*TINY["runs"], {"name": "b", "model": model}]})
    options = {"measures": {"overlap": {"bands": 8}, "line_search": {"directions": 200}}}
    with pytest.raises(ConfigError, match=r"line_search\.directions is 200, but the network of run 'b' has only 160"):
        Problem.of(two_networks(**options))
    options["measures"]["line_search"]["runs"] = ["a"]
    assert Problem.of(two_networks(**options)).parameters == 235


def test_estimates_add_up_over_networks() -> None:
    both = estimate_experiment(Problem.of(two_networks()), ["cuda"])[0]
    alone = estimate_experiment(Problem.of(parse_experiment(TINY)), ["cuda"])[0]
    jobs = {part: [need.jobs for need in both.needs if need.stage == part] for part in ("training", "eigenbasis")}
    assert jobs == {"training": [1, 1], "eigenbasis": [2, 1]}
    first, second = (need.disk_bytes for need in both.needs if need.stage == "eigenbasis")
    assert first == next(need.disk_bytes for need in alone.needs if need.stage == "eigenbasis")
    assert second < first


def test_estimates_count_start_points_once() -> None:
    start = {"run": "a", "iteration": 30}
    others = [{"name": name, "start": {**start, "iteration": at}} for name, at in (("c", 30), ("d", 30), ("e", 31))]
    experiment = parse_experiment({**TINY, "runs": [*TINY["runs"], *others]})
    needs = estimate_experiment(Problem.of(experiment), ["cpu"])[0].needs
    [starts] = [need for need in needs if need.stage == "extract_start"]
    training = next(need for need in needs if need.stage == "training")
    assert starts.jobs == 2
    assert starts.disk_bytes == 2 * 8 * 235  # θ and momentum
    assert starts.memory_bytes == training.memory_bytes
    assert 0 < starts.seconds <= training.seconds + 1
    alone = estimate_experiment(Problem.of(parse_experiment(TINY)), ["cuda"])[0].needs
    assert not any(need.stage == "extract_start" for need in alone)
