"""Learning rates from a file: reading, writing, what a changed file makes anew, and runs that follow it."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import write_random_data
from hypothesis import given
from hypothesis import strategies as st
from test_training import Interrupted, make_run, train

from quadscape.config.sections import CNN, Table, Training
from quadscape.config.values import resolved
from quadscape.errors import ConfigError, StageError
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import Problem
from quadscape.results.places import Places
from quadscape.training.rate_tables import filled, rates_digest, read_rates, rounded, write_rates
from quadscape.training.replay import replay, write_start
from tests.experiments import TINY

STEPS = 70
RATES = 0.02 * (1 + 0.5 * np.sin(np.arange(STEPS)))
FINITE = st.floats(0, 1e300)
LISTS = st.lists(FINITE, min_size=1, max_size=40)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_random_data(tmp_path_factory.mktemp("data") / "data.zarr")


def table(path: Path | str, **keys: Any) -> dict[str, Any]:
    return {"schedule": "table", "path": str(path), **keys}


def experiment(path: Path | str, iterations: int = 3, **keys: Any) -> Any:
    training = {**TINY["training"], "iterations": iterations, "learning_rate": table(path, **keys)}
    return parse_experiment({**TINY, "training": training, "runs": [{"name": "a"}]})


# ---------------------------------------------------------------------------------------------------------------------
# Files


@given(rates=LISTS)
def test_what_is_written_is_read(rates: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rates") / "rates.csv"
    digest = write_rates(path, rates)
    found = read_rates(path)
    np.testing.assert_array_equal(found, rounded(rates))
    assert digest == rates_digest(found) == rates_digest(rates)
    assert [other.name for other in path.parent.iterdir()] == ["rates.csv"]
    assert write_rates(path, found) == digest


@given(rates=LISTS)
def test_rounding_keeps_six_digits_and_rounds_once(rates: list[float]) -> None:
    found = rounded(rates)
    np.testing.assert_array_equal(rounded(found), found)
    for rate, one in zip(rates, found, strict=True):
        assert abs(one - rate) <= 0.5000001e-5 * rate + 5e-324
        assert float(f"{one:.6g}") == one


@given(rates=LISTS, place=st.integers(0, 39), factor=st.floats(1.0001, 3))
def test_another_rate_is_another_digest_and_another_spelling_is_not(
    rates: list[float], place: int, factor: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rates = [max(1e-300, rate) for rate in rates]
    other = [*rates]
    other[place % len(rates)] *= factor
    assert rates_digest(other) != rates_digest(rates)
    folder = tmp_path_factory.mktemp("rates")
    spelt = "\ufeff# a comment\r\n\r\n  learning_rate \n" + "".join(f" +{rate:.17E}\n\n# x\n" for rate in rates)
    (folder / "other name.txt").write_text(spelt, encoding="utf-8", newline="")
    assert rates_digest(read_rates(folder / "other name.txt")) == rates_digest(rates)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0.1\n-0.2\n0.3\n", "line 2 is '-0.2'; valid are finite numbers, 0 or more"),
        ("0.1\n0.1\nnan\n", "line 3 is 'nan'"),
        ("# x\n\ninf\n", "line 3 is 'inf'"),
        ("1e999\n", "line 1 is '1e999'"),
        ("0.1\nfast\n", "line 2 is 'fast'"),
        ("0.1, 0.2\n", "line 1 is '0.1, 0.2'"),
        ("1_0\n", "line 1 is '1_0'"),
        ("0.1\nlearning_rate\n", "line 2 is 'learning_rate'"),
        ("learning_rate\nlearning_rate\n", "line 2 is 'learning_rate'"),
        ("x" * 99, "line 1 is 'xxx"),
        ("0.1\n0.2\n", "holds 2 learning rates, but the run has 3 iterations"),
        ("", "holds 0 learning rates"),
    ],
)
def test_what_is_no_table_gets_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        experiment(path)
    message = str(caught.value)
    assert message.startswith(f"runs[0].learning_rate.path is '{path}', ")
    assert message.endswith(".")
    assert "\n" not in message


def test_other_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    write_rates(path, [0.1, 0.2, 0.3])
    for given_path, words in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=rf"runs\[0\]\.learning_rate\.path is .*cannot be read \({words}"):
            experiment(given_path)
    (tmp_path / "latin").write_bytes(b"# n\xe4her\n0.1\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        experiment(tmp_path / "latin")
    for keys, words in (
        ({"value": 0.1}, r"learning_rate\.value is not a known key.*known here are digest, path, schedule"),
        ({"warmup": 1}, r"learning_rate\.warmup is not a known key"),
        ({"digest": "0" * 64}, r"but runs\[0\]\.learning_rate\.digest is 0000"),
    ):
        with pytest.raises(ConfigError, match=words):
            experiment(path, **keys)
    with pytest.raises(ConfigError, match=r"runs\[0\]\.learning_rate\.path is missing and has no default"):
        parse_experiment({**TINY, "runs": [{"name": "a", "learning_rate": {"schedule": "table"}}]})
    for bad in ([0.1, -0.1], [math.inf], [], [[0.1]]):
        with pytest.raises(ConfigError, match=r"No learning rates can be written to .*valid are finite numbers"):
            write_rates(path, bad)
    np.testing.assert_array_equal(read_rates(path), [0.1, 0.2, 0.3])


def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rates.csv"
    write_rates(path, [0.1])

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quadscape.durable.sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_rates(path, [0.2])
    np.testing.assert_array_equal(read_rates(path), [0.1])
    assert [other.name for other in tmp_path.iterdir()] == ["rates.csv"]


# ---------------------------------------------------------------------------------------------------------------------
# What a run follows from


def test_the_digest_and_not_the_path_is_what_a_run_follows_from(tmp_path: Path) -> None:
    for name, rates in (("a", [0.1, 0.2, 0.3]), ("b", [0.1, 0.2000001, 0.3, 7.0]), ("c", [0.1, 0.2, 0.4])):
        write_rates(tmp_path / name, rates)
    a, b, c = (resolved(experiment(tmp_path / name).runs[0].training()) for name in "abc")
    assert a == b != c
    assert a["learning_rate"] == {"schedule": "table", "digest": rates_digest([0.1, 0.2, 0.3])}
    assert a != resolved(experiment(tmp_path / "a", iterations=2).runs[0].training())
    pinned = experiment(tmp_path / "a", digest=a["learning_rate"]["digest"])
    assert resolved(pinned.runs[0].training()) == a
    assert Problem.of(pinned).runtime_minutes("training", run="a") > 0
    assert pinned.runs[0].dense_windows() == []


def test_a_run_with_a_table_follows_it_bit_by_bit_through_kills(data, tmp_path: Path, one_thread: None) -> None:
    path = tmp_path / "rates.csv"
    write_rates(path, [*RATES, 5.0])
    keys = {"iterations": STEPS, "momentum": 0.9, "batch_size": 16}
    run = make_run(**keys, learning_rate=Table(schedule="table", path=str(path)))
    manifest, whole = train(tmp_path / "whole", run, data)
    np.testing.assert_array_equal(whole.curves().learning_rate, rounded(RATES))
    assert manifest["parameters"]["training"]["learning_rate"] == {"schedule": "table", "digest": rates_digest(RATES)}
    for _ in range(5):
        try:
            again, pieces = train(tmp_path / "pieces", run, data, task=Interrupted)
        except KeyboardInterrupt:
            continue
        break
    assert again == manifest
    assert whole.stage.digest == pieces.stage.digest
    # Equal rates are equal steps, whatever schedule they come from; a replay needs no file.
    write_rates(path, np.full(STEPS, 0.02))
    _, flat = train(tmp_path / "flat", run, data)
    _, constant = train(tmp_path / "constant", run.model_copy(update={"learning_rate": _constant()}), data)
    np.testing.assert_array_equal(flat.stage.read("theta"), constant.stage.read("theta"))
    path.unlink()
    kept = whole.stage.read("theta")
    np.testing.assert_array_equal(list(replay(tmp_path / "whole", data, 30, 40)), kept[30:41])
    write_start(tmp_path / "whole", data, 33, tmp_path / "start.zarr")
    with pytest.raises(ConfigError, match="cannot be read"):
        train(tmp_path / "other", run, data)


def _constant() -> Any:
    return make_run(learning_rate={"schedule": "constant", "value": 0.02}).learning_rate


def test_divergence_names_the_table(data, tmp_path: Path) -> None:
    write_rates(tmp_path / "rates.csv", np.full(STEPS, 1e9))
    run = make_run(iterations=STEPS, learning_rate=Table(schedule="table", path=str(tmp_path / "rates.csv")))
    with pytest.raises(StageError, match=r"learning rate 1e\+09\); lower the rates of learning_rate\.path\."):
        train(tmp_path / "run", run, data, CNN(factory="cnn", channels=(4,)), loss="cross_entropy")


def test_a_finished_run_needs_its_file_no_more(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rates("rates.csv", RATES)
    then = experiment("rates.csv", iterations=STEPS)
    run = make_run(iterations=STEPS, learning_rate=Table(schedule="table", path="rates.csv"))
    place = Path(Places("tiny", then.curvature).trajectory("a")).parent
    train(place, run, data)
    write_rates("rates.csv", RATES[:-1])
    with pytest.raises(ConfigError, match=r"path is 'rates\.csv', which holds 69 learning rates, but the run has 70"):
        experiment("rates.csv", iterations=STEPS)
    Path("rates.csv").unlink()
    now = experiment("rates.csv", iterations=STEPS)
    assert resolved(now.runs[0].training()) == resolved(then.runs[0].training())
    for other in ({"iterations": STEPS - 1}, {"iterations": STEPS, "digest": "0" * 64}):
        with pytest.raises(ConfigError, match="cannot be read"):
            experiment("rates.csv", **other)


def test_the_section_of_a_finished_run_stands_without_a_path() -> None:
    training = Training(iterations=5, learning_rate={"schedule": "table", "digest": "1" * 64})
    assert filled(training) is training
    assert Training.model_validate(resolved(training)) == training
