"""The experiment file: every kind of mistake gets its one sentence, and the defaults are the same everywhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quadscape.cli import main
from quadscape.config.sections import Steps
from quadscape.config.values import Section, resolved
from quadscape.config.yaml_files import check_given_config
from quadscape.errors import ConfigError
from quadscape.measures import MEASURES
from quadscape.measures.declaration import effective_options
from quadscape.planning.experiment import Experiment, MeasureSection, check_problem
from quadscape.planning.experiment_file import earlier_names, load_experiment, parse_experiment
from quadscape.planning.problem import Problem
from quadscape.planning.reference import configuration_reference

ROOT = Path(__file__).resolve().parents[1]


def _run(**keys: Any) -> dict[str, Any]:
    return {"runs": [{"name": "a", **keys}]}


BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("unknown key", {"trainng": 1}, ("trainng", "training")),
    ("unknown nested key", {"data": {"pth": "x"}}, ("data.pth", "path")),
    ("unknown key in a run", _run(momentm=0.9), ("runs[0].momentm", "momentum")),
    (
        "unknown key of a schedule",
        {"training": {"learning_rate": {"schedule": "steps", "milestone": [1]}}},
        ("milestones",),
    ),
    ("unknown key of a model", {"model": {"factory": "mlp", "width": 3}}, ("model.width", "hidden")),
    ("unknown key of a probe", {"measures": {"line_search": {"pionts": 9}}}, ("measures.line_search.pionts", "points")),
    ("misspelt choice", {"data": {"source": "cifar"}}, ("data.source", '"cifar"', "cifar10")),
    ("misspelt loss", {"loss": "crossentropy"}, ("loss", "crossentropy", "cross_entropy")),
    ("misspelt factory", {"model": {"factory": "resnet"}}, ("model.factory", "resnet9", "package.module:function")),
    ("misspelt schedule", {"training": {"learning_rate": {"schedule": "step"}}}, ("learning_rate.schedule", "steps")),
    (
        "schedule left out",
        {"training": {"learning_rate": {"value": 0.1}}},
        ("learning_rate.schedule", "missing", "cosine"),
    ),
    ("schedule is a number", {"training": {"learning_rate": 0.1}}, ("training.learning_rate", "0.1")),
    ("misspelt normalisation", {"model": {"normalization": "layer"}}, ("model.normalization", "group", "batch")),
    ("misspelt remainder", {"training": {"remainder": "pad"}}, ("training.remainder", "wrap")),
    ("misspelt device", {"device": "gpu"}, ("device", "cuda")),
    ("misspelt dtype", {"curvature": {"dtype": "float16"}}, ("curvature.dtype", "float32", "float64")),
    (
        "TF32 of float64",
        {"curvature": {"dtype": "float64", "tf32": True}},
        ("curvature", "tf32 needs dtype float32", "float64"),
    ),
    ("text for a number", {"training": {"batch_size": "many"}}, ("training.batch_size", "many", "number of examples")),
    ("quoted number", {"training": {"batch_size": "512"}}, ("training.batch_size", "512")),
    ("fraction for a count", {"training": {"iterations": 10.5}}, ("training.iterations", "10.5")),
    ("truth value for a number", {"seed": True}, ("seed", "true", "integer")),
    ("number for a truth value", {"training": {"nesterov": 1}}, ("training.nesterov", "1")),
    ("not a number", {"training": {"weight_decay": float("nan")}}, ("training.weight_decay",)),
    (
        "infinite",
        {"training": {"learning_rate": {"schedule": "constant", "value": float("inf")}}},
        ("learning_rate.value",),
    ),
    ("mapping for a list", {"runs": {"name": "a"}}, ("runs",)),
    ("number for a section", {"training": 3}, ("training", "3")),
    ("zero width", {"model": {"width": 0}}, ("model.width", "0", "1")),
    ("no hidden layer", {"model": {"factory": "mlp", "hidden": []}}, ("model.hidden", "at least one")),
    (
        "negative learning rate",
        _run(learning_rate={"schedule": "constant", "value": -0.1}),
        ("learning_rate.value", "-0.1"),
    ),
    ("negative decay", {"training": {"weight_decay": -1e-3}}, ("training.weight_decay", "-0.001")),
    ("momentum of one", {"training": {"momentum": 1.0}}, ("training.momentum", "1.0", "less than 1")),
    ("nesterov without momentum", _run(nesterov=True, momentum=0.0), ("runs[0]", "nesterov", "momentum")),
    ("zero batch", {"training": {"batch_size": 0}}, ("training.batch_size", "0")),
    (
        "milestones out of order",
        _run(learning_rate={"schedule": "steps", "milestones": [20, 10]}),
        ("milestones", "increasing"),
    ),
    ("factor above one", _run(learning_rate={"schedule": "steps", "factor": 10.0}), ("factor", "10.0")),
    (
        "warm-up beyond the run",
        _run(iterations=10, learning_rate={"schedule": "constant", "warmup": 11}),
        ("warmup", "11", "10"),
    ),
    ("held-out fraction", {"data": {"held_out": 1.0}}, ("data.held_out", "1.0")),
    ("no runs", {"runs": []}, ("runs", "at least one")),
    ("run without a name", {"runs": [{"iterations": 3}]}, ("runs[0].name", "missing")),
    ("two runs of one name", {"runs": [{"name": "a"}, {"name": "a"}]}, ("runs", "'a'", "differ")),
    ("name with a space", {"name": "my experiment"}, ("name", "my experiment", "letters")),
    ("name with a slash", _run(name="../a"), ("runs[0].name", "../a")),
    ("checkpoint beyond the run", _run(iterations=100, checkpoints=[101]), ("runs[0]", "101", "100")),
    ("checkpoint never saved", _run(checkpoints=[3]), ("runs[0]", "3", "0 and 4")),
    ("negative checkpoint", _run(checkpoints=[-1]), ("runs[0].checkpoints[0]", "-1")),
    ("checkpoint listed twice", _run(checkpoints=[4, 4]), ("runs[0].checkpoints", "twice")),
    ("foreign run without checkpoint", _run(path="w.pt"), ("runs[0]", "checkpoints")),
    ("foreign checkpoints in one file", _run(path="w.pt", checkpoints=[0, 1]), ("runs[0]", "{iteration}")),
    ("even number of points", {"measures": {"line_search": {"points": 10}}}, ("points", "10", "odd")),
    ("one band", {"measures": {"overlap": {"bands": 1}}}, ("measures.overlap.bands", "1", "2")),
    ("unknown measure", {"measures": {"lin_search": {}}}, ("measures.lin_search", "did you mean 'line_search'")),
    ("a number for a measure", {"measures": {"density": 3}}, ("measures.density", "3")),
    ("measures and their earlier name", {"measures": {}, "probes": {}}, ("probes", "measures")),
    ("measured of no run", {"measures": {"density": {"runs": []}}}, ("measures.density.runs", "at least one")),
    (
        "measured of an unknown run",
        {"measures": {"density": {"runs": ["x"]}}},
        ("measures.density.runs", "'x'", "drops"),
    ),
    ("shown of an unknown run", {"figures": {"runs": ["x"]}}, ("figures.runs", "'x'", "drops")),
    ("more runs than a figure shows", {"figures": {"runs": list("abcdefghi")}}, ("figures.runs", "8")),
    ("parts without Gauss–Newton", {"measures": {"parts": True}}, ("measures.parts", "curvature.gauss_newton")),
]


@pytest.mark.parametrize(("raw", "words"), [(raw, words) for _, raw, words in BAD], ids=[name for name, *_ in BAD])
def test_a_mistake_gets_one_sentence(raw: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(raw)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 400


def test_many_mistakes_name_the_first_and_count_the_rest() -> None:
    with pytest.raises(ConfigError, match=r"^nam is not a known key .*\(and 2 more problems\)\.$"):
        parse_experiment({"nam": 1, "seed": "x", "loss": 3})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measures": {"line_search": {"directions": 101}}}, ("directions", "101", "100 parameters")),
        ({"measures": {"line_search": {"directions": 5}, "overlap": {"bands": 101}}}, ("bands", "101", "100")),
        ({"training": {"batch_size": 51}}, ("batch_size", "51", "50 training images")),
    ],
)
def test_sizes_are_checked(change: dict[str, Any], words: tuple[str, ...]) -> None:
    experiment = parse_experiment({"training": {"batch_size": 50}, **change})
    with pytest.raises(ConfigError) as caught:
        check_problem(experiment, *({run.name: count for run in experiment.runs} for count in (100, 50)))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("text", "word"), [("[1, 2]", "mapping"), ("a: [", "YAML"), ("1: 2", "not a known key")])
def test_a_file_that_is_no_experiment(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ConfigError, match=word):
        load_experiment(tmp_path / "e.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path / "none.yaml")


def test_dates_and_other_yaml_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither number"):
        parse_experiment(yaml.safe_load("name: 2026-01-01"))


def test_config_yaml_states_every_default() -> None:
    raw = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert resolved(parse_experiment(raw)) == resolved(parse_experiment({})) == resolved(Experiment())

    def missing(section: Section, given: dict[str, Any], path: str) -> list[str]:
        found = []
        for key in type(section).model_fields:
            value = getattr(section, key)
            if isinstance(section, MeasureSection) and key in MeasureSection.model_fields:
                continue  # what every measure shares is said once
            if key not in given:
                found.append(path + key)
            elif isinstance(value, Section):
                found += missing(value, given[key], f"{path}{key}.")
        return found

    assert missing(Experiment(), raw, "") == []


def test_the_configuration_page_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == configuration_reference(), "run `make docs`"


def test_scientific_notation_without_a_dot_is_a_number() -> None:
    assert parse_experiment(yaml.safe_load("training: {weight_decay: 1e-3}")).training.weight_decay == 1e-3


def test_runs_inherit_training_and_replace_whole_keys() -> None:
    experiment = parse_experiment(
        {
            "seed": 3,
            "training": {"momentum": 0.5, "learning_rate": {"schedule": "steps", "value": 1.0, "milestones": [7]}},
            "runs": [{"name": "a"}, {"name": "b", "learning_rate": {"schedule": "steps"}, "seed": 4}],
        }
    )
    a, b = experiment.runs
    assert (a.momentum, b.momentum) == (0.5, 0.5)
    assert a.learning_rate == Steps(value=1.0, milestones=(7,))
    assert b.learning_rate == Steps()
    assert (experiment.run_seed(a), experiment.run_seed(b)) == (3, 4)


def test_training_parameters_do_not_hold_name_and_checkpoints() -> None:
    one, two = (parse_experiment(_run(checkpoints=c)).runs[0].training() for c in ([], [0, 4]))
    assert resolved(one) == resolved(two)
    assert not {"name", "checkpoints", "path"} & set(resolved(one))


@given(stride=st.integers(1, 9), dense=st.integers(0, 5), iterations=st.integers(1, 60), milestone=st.integers(1, 70))
def test_saved_iterations(stride: int, dense: int, iterations: int, milestone: int) -> None:
    run = parse_experiment(
        _run(
            iterations=iterations,
            trajectory={"stride": stride, "dense": dense},
            learning_rate={"schedule": "steps", "milestones": [milestone]},
        )
    ).runs[0]
    saved = {t for t in range(iterations + 1) if run.is_saved(t)}
    expected = {t for t in range(iterations + 1) if t % stride == 0} | {iterations}
    if milestone <= iterations:
        expected |= {t for t in range(iterations + 1) if abs(t - milestone) <= dense}
    assert saved == expected
    assert not run.is_saved(-1)
    assert not run.is_saved(iterations + 1)


def test_pins_are_equal_everywhere() -> None:
    def pins(text: str) -> dict[str, str]:
        return dict(re.findall(r"^\s*-?\s*([A-Za-z0-9_.-]+)==([\w.]+)", text, flags=re.MULTILINE))

    runtime = pins((ROOT / "requirements.txt").read_text())
    development = pins((ROOT / "requirements-dev.txt").read_text())
    conda = pins((ROOT / "envs/quadscape.yaml").read_text())
    assert {name: development[name] for name in runtime} == runtime
    assert {name: runtime[name] for name in conda} == conda
    direct = {line.split("==")[0] for line in (ROOT / "requirements.in").read_text().split()}
    assert set(conda) == direct
    project = (ROOT / "pyproject.toml").read_text()
    block = project[project.index("dependencies = [") : project.index("]", project.index("dependencies = ["))]
    assert set(re.findall(r'"([A-Za-z0-9-]+)[><=]', block)) == direct
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert "://" not in line


# Files as they are


TWICE = [
    ("name: x\nseed: 1\nname: y\n", "'name' twice, in line 1 and in line 3"),
    (
        "training:\n  momentum: 0.1\n  dtype: float32\n  momentum: 0.2\n",
        "'training.momentum' twice, in line 2 and in line 4",
    ),
    ("runs:\n- {name: a,\n   name: b}\n", "'runs[0].name' twice, in line 2 and in line 3"),
    ('"name": x\nname: y\n', "'name' twice, in line 1 and in line 2"),
    ('{"name": "x",\n "name": "y"}', "'name' twice, in line 1 and in line 2"),
    ('{\t"seed": 1,\n\t"seed": 2}', "'seed' twice"),
    ("model: {factory: 'a:b', arguments: {1: x, '1': y}}", "'model.arguments.1' twice"),
    ("data: {<<: &d {path: x}, path: y}\nprobes: {<<: *d, path: z, path: u}\n", "'probes.path' twice"),
]


@pytest.mark.parametrize(("text", "words"), TWICE)
def test_keys_given_twice_are_refused_with_both_lines(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load_experiment(tmp_path / "x.yaml")
    assert "x.yaml" in str(caught.value)


def test_anchors_and_merge_keys_go_on_working(tmp_path: Path) -> None:
    text = "training: &t {iterations: 40, batch_size: 32, learning_rate: {schedule: constant}}\n"
    text += "runs:\n- {<<: *t, name: a}\n- {<<: *t, name: b, iterations: 80}\n- {name: c, <<: *t, batch_size: 8}\n"
    (tmp_path / "x.yaml").write_text(text)
    runs = load_experiment(tmp_path / "x.yaml").runs
    assert [(run.iterations, run.batch_size) for run in runs] == [(40, 32), (80, 32), (40, 8)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("näme: x".encode("latin-1"), "not UTF-8"),
        ("name: x".encode("utf-16"), "not UTF-8"),
        (b"name: \xff\xfe", "not UTF-8"),
        (b"[" * 5000, "nested deeper"),
        (b"runs: &a [*a]", "alias"),
        (
            b"a: &a [1,1,1,1,1,1,1,1]\n"
            + b"".join(
                b"b%d: &b%d [%s]\n" % (i, i, b",".join([b"*b%d" % (i - 1) if i else b"*a"] * 8)) for i in range(9)
            ),
            "alias",
        ),
        (b"name: 2020-01-01", "name is 2020-01-01"),
        (b"name: 2020-13-45", "2020-13-45"),
        (b"seed: 0x_", "'0x_'"),
        (b"runs: !!set {a}", "runs is"),
        (b"name: !!python/object:os.system x", "not valid YAML"),
        (b"yes: x", "True in the experiment file is not a known key"),
        (b'name: "\\ud800"', "name is"),
        (b"training: {iterations: 99999999999999999999999}", "training.iterations"),
        (b"model: {factory: [mlp]}", "model.factory"),
    ],
)
def test_files_that_are_no_experiment_get_their_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load_experiment(tmp_path / "x.yaml")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfname: marked")
    assert load_experiment(tmp_path / "x.yaml").name == "marked"


def test_paths_that_are_no_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    for path, words in (
        (tmp_path, "Is a directory"),
        (tmp_path / "link", "leads nowhere"),
        (tmp_path / "x", "No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_experiment(path)


@pytest.mark.parametrize(
    ("words", "twice"),
    [
        (["--config", "seed=1", "seed=2"], "'seed' twice"),
        (["-n", "--config", "seed=1", "name=x", "-C", "seed=2", "--cores", "1"], "'seed' twice"),
        (["--config", "data={source: digits, source: cifar10}"], "'source' twice"),
        (["--config", "seed=1", "name=x", "--cores", "1"], ""),
        (["--config", "base64//eA==", "seed=1"], ""),
    ],
)
def test_keys_given_twice_on_the_command_line(words: list[str], twice: str) -> None:
    if not twice:
        check_given_config(words)
        return
    with pytest.raises(ConfigError, match=twice):
        check_given_config(words)


def test_the_earlier_name_of_measures_is_read_and_said() -> None:
    raw = {"probes": {"line_search": {"points": 9}, "density": False}}
    experiment = parse_experiment(raw)
    assert experiment.measures.given("line_search") == {"dtype": "float64", "points": 9}
    assert not experiment.is_measured("density", "drops")
    assert len(earlier_names(raw)) == 1
    assert earlier_names({"measures": {}}) == []


def test_measures_are_on_for_what_is_computed() -> None:
    experiment = parse_experiment({"measures": {"density": {"runs": ["drops"]}, "overlap": False}})
    assert experiment.is_measured("density", "drops")
    assert not experiment.is_measured("density", "constant-0.01")
    assert not experiment.is_measured("overlap", "drops")
    assert not experiment.is_measured("parts", "drops")
    assert parse_experiment({"curvature": {"gauss_newton": True}}).is_measured("parts", "drops")


def test_defaults_beyond_the_network_are_clipped_and_given_ones_are_not() -> None:
    measure = MEASURES["line_search"]
    assert effective_options(measure, {"dtype": "float64"}, 5)["directions"] == 5
    assert effective_options(measure, {"dtype": "float64", "directions": 7}, 5)["directions"] == 7
    assert effective_options(measure, {"dtype": "float64"}, 500)["directions"] == 48


def test_validation_says_what_was_clipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "three_parameters.py"
    source.write_text(
        "import torch\n"
        "class Three(torch.nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.scales = torch.nn.Parameter(torch.ones(3))\n"
        "        self.classes = classes\n"
        "    def forward(self, images):\n"
        "        return torch.outer(images.mean(dim=(1, 2, 3)) * self.scales.prod(), torch.arange(self.classes))\n"
        "def make(shape, classes):\n"
        "    return Three(shape, classes)\n"
    )
    path = tmp_path / "small.yaml"
    model = {"factory": "three_parameters:make"}
    monkeypatch.chdir(tmp_path)
    runs = [{"name": "a", "checkpoints": [0]}]
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}, "model": model, "runs": runs}))
    assert main(["validate", str(path)]) == 0
    assert "measures.line_search.directions is 3 instead of its default 48" in capsys.readouterr().out


def test_gallery_and_tiny_declare_the_same_and_the_study_has_five_seeds() -> None:
    gallery, tiny, study = (load_experiment(ROOT / f"experiments/{name}.yaml") for name in ("gallery", "tiny", "study"))
    for experiment in (gallery, tiny):
        of_runs = [name for name, measure in MEASURES.items() if measure.of != "family"]
        assert all(experiment.is_measured(name, experiment.runs[0].name) for name in of_runs)
    assert [run.name for run in gallery.listed_runs] == [run.name for run in tiny.listed_runs]
    checkpoints = [[len(run.checkpoints) for run in experiment.listed_runs] for experiment in (gallery, tiny)]
    assert checkpoints == [[3, 1, 1], [2, 1, 1]]
    # One halving where the gallery has three, each at the last checkpoint.
    first = ["half-0-a", "half-1-a", "order"]
    subsets = [[list(run.curvature_on) for run in experiment.listed_runs] for experiment in (gallery, tiny)]
    assert subsets[1] == [first, ["few"], []]
    assert subsets[0] == [[*first[:2], *(f"half-{h}-{seed}" for seed in "bc" for h in (0, 1)), "order"], ["few"], []]
    for experiment, halvings in ((gallery, 3), (tiny, 1)):
        run = experiment.listed_runs[0]
        assert run.subsets_at(run.checkpoints[-1]) == list(run.curvature_on)
        halves = [experiment.subset(name) for name in run.curvature_on if name != "order"]
        assert sorted((half.seed, half.half) for half in halves) == [(s, h) for s in range(halvings) for h in (0, 1)]
    assert tiny.model.factory == gallery.model.factory
    sizes = Problem.of(tiny).networks
    assert all(sizes[run.name].parameters <= 600 for run in tiny.listed_runs)
    assert [family.name for family in gallery.families] == [family.name for family in tiny.families]
    for name, measure in MEASURES.items():
        if measure.of == "family":
            measured = [[grid.name for grid in e.grids if e.is_measured(name, grid.name)] for e in (gallery, tiny)]
            assert measured[0] == measured[1] != []
    assert gallery.pairs == tiny.pairs != ()
    assert [list(family.vary) for family in gallery.families] == [list(family.vary) for family in tiny.families]
    seeds = [study.run_seed(run) for run in study.listed_runs if run.learning_rate == study.runs[0].learning_rate]
    assert len(set(seeds)) == len(seeds) >= 5
