"""Families in memory: members with made-up courses, and small ones that are trained."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from quadscape.config.model import model_section
from quadscape.config.sections import Run, Training
from quadscape.measures.descent import compute as descent
from quadscape.measures.escape import compute as escape
from quadscape.measures.family import Family, Member
from quadscape.measures.job import Job
from quadscape.measures.layers import compute as layers
from quadscape.measures.members import MemberRun, columns_of, family_head
from quadscape.measures.ruggedness.declaration import RUGGEDNESS, SCORES
from quadscape.measures.ruggedness_compared import compute as compared
from quadscape.measures.tuning import compute as tuning
from quadscape.network.planted import multi_well
from quadscape.stage.run import run_stage
from quadscape.tables import Table
from quadscape.training.task import TrainingTask
from quadscape.training.trajectory import Curves

COUNTS = {"train": 1000, "validation": 200, "test": 200}


def family(axes: Mapping[str, Sequence[str]], repeats: Sequence[str] = ("seed",), name: str = "family") -> Family:
    """Every combination of labels, the last axis fastest."""
    members = [
        Member(f"{name}/{place}", dict(zip(axes, labels, strict=True)))
        for place, labels in enumerate(product(*axes.values()))
    ]
    return Family(name, {axis: tuple(labels) for axis, labels in axes.items()}, tuple(repeats), tuple(members))


def training(**keys: Any) -> Training:
    """A section with a constant rate, evaluated often."""
    rate = keys.pop("rate", 0.1)
    given = {
        "iterations": 400,
        "batch_size": 50,
        "learning_rate": {"schedule": "constant", "value": rate},
        "evaluate_every": 20,
        "trajectory": {"stride": 1, "dense": 0},
        "weight_decay": 0.0,
    }
    given |= {} if keys.get("optimizer", "sgd") != "sgd" else {"momentum": 0.0}
    return Training.model_validate(given | keys)


def course(
    section: Training, loss: np.ndarray, validation: np.ndarray, norms: np.ndarray, diverged: int = -1
) -> Curves:
    """The course of a run whose evaluations follow these losses, shape (T + 1,), up to where it diverged."""
    steps = section.iterations
    evaluation = np.full((steps + 1, 3, 2), np.nan)
    at = [t for t in range(steps + 1) if t % section.evaluate_every == 0 or t == steps]
    at = [t for t in at if diverged < 0 or t < diverged]
    for split, values in enumerate((loss, validation, validation)):
        evaluation[at, split, 0] = values[at]
        evaluation[at, split, 1] = np.exp(-values[at])
    batch, norms = loss[:steps].copy(), norms.copy()
    if diverged >= 0:
        batch[diverged:], norms[diverged:] = np.nan, np.nan
    names = tuple(f"linear{place + 1}" for place in range(norms.shape[1]))
    return Curves(batch, np.full(steps, section.learning_rate.value), norms, names, evaluation, COUNTS)


METHODS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "rmsprop": {"optimizer": {"method": "rmsprop"}},
    "adam": {"optimizer": {"method": "adam"}},
}
BATCHES = {"B=1": 1, "B=50": 50, "full": "full"}
GAIN = {"sgd": 1.0, "momentum": 0.7, "rmsprop": 0.6, "adam": 0.5}


def descending(
    methods: Sequence[str] = ("sgd", "adam"),
    batches: Sequence[str] = ("B=50", "full"),
    rates: Sequence[float] = (0.1,),
    seeds: int = 3,
    diverged: Sequence[int] = (),
) -> tuple[Family, list[MemberRun]]:
    """A family whose losses fall exponentially to a floor that depends on method, rate, batch and seed."""
    labels = {
        "optimizer": list(methods),
        "batch": list(batches),
        "rate": [f"η={rate:g}" for rate in rates],
        "seed": [f"seed {seed}" for seed in range(seeds)],
    }
    made = family(labels)
    members = []
    for place, (member, (method, batch, rate, seed)) in enumerate(
        zip(made.members, product(methods, batches, rates, range(seeds)), strict=True)
    ):
        section = training(**METHODS[method], batch_size=BATCHES[batch], rate=rate)
        generator = np.random.default_rng([7, place])
        t = np.arange(section.iterations + 1)
        best = 0.05 * GAIN[method]
        away = np.log10(rate / 0.1) ** 2
        noise = {"B=1": 0.3, "B=50": 0.1, "full": 0.0}[batch]
        floor = best * (1 + away + 0.2 * np.random.default_rng([3, seed]).uniform()) + 0.02 * noise
        loss = 2.3 * np.exp(-t / (40 * (1 + away))) + floor * (1 + 0.02 * generator.standard_normal(len(t)))
        validation = loss + 0.1 * t / section.iterations * (1 + 0.1 * generator.standard_normal())
        norms = np.abs(loss[:-1, None] * np.array([0.3, 1.0]) * generator.lognormal(0, noise + 1e-3, (len(t) - 1, 2)))
        at = 150 if place in diverged else -1
        run = course(section, loss, validation, norms, at)
        members.append(MemberRun(place, made.cell(member), seed, section, run, 2410, at))
    return made, members


def lengths_of(members: Sequence[MemberRun]) -> list[np.ndarray]:
    """Made-up lengths of steps, none of diverged runs."""
    found = []
    for member in members:
        generator = np.random.default_rng([11, member.place])
        spread = 0.02 + 0.3 / np.sqrt(member.batch_size)
        found.append(generator.lognormal(0, spread, 100) if member.diverged < 0 else np.empty(0))
    return found


def descent_tables(*given: Any, **options: Any) -> dict[str, Table]:
    """Tables of `descent` and `tuning` of a made-up family, with made-up costs."""
    made, members = descending(*given, **options)
    head = family_head(made, members)
    tables = descent.measure(members, lengths_of(members), 0.0, head) | tuning.measure(members, head)
    rows = []
    for cell in made.cells:
        settings = next(member for member in members if member.cell == cell).settings
        size = settings["batch_size"]
        vectors = {"sgd": 1, "rmsprop": 1}.get(settings["method"], 2)
        counted = 8.0 * 2410 * (2 + vectors) + 4.0 * min(size, 512) * 400
        cost = {"at_once": min(size, 512), "seconds_per_step": 2e-4 + 2e-7 * size}
        rows.append({"cell": cell, **settings, **cost, "counted_bytes": counted, "measured_bytes": 1.2 * counted})
    columns = descent.columns_of(rows, descent.COST.all_columns())
    return tables | {"descent_cost": Table(descent.COST, columns, head | {"device": "cpu", "threads": 1})}


SLOPES = {"tanh": -0.06, "sigmoid": -0.3, "relu": -0.01, "gelu": -0.1}


def layer_tables(
    activations: Sequence[str] = ("tanh", "sigmoid", "relu", "gelu"),
    depths: Sequence[int] = (22,),
    seeds: int = 3,
    diverged: Sequence[int] = (),
) -> dict[str, Table]:
    """Tables of `layers`: norms that fall by a factor per layer, less so later in the run."""
    labels = {
        "activation": list(activations),
        "depth": [f"{depth} layers" for depth in depths],
        "seed": [f"seed {seed}" for seed in range(seeds)],
    }
    made = family(labels, name="depth")
    members, layouts = [], []
    for place, (member, (activation, depth, seed)) in enumerate(
        zip(made.members, product(activations, depths, range(seeds)), strict=True)
    ):
        section = training(iterations=200)
        generator = np.random.default_rng([5, place])
        t = np.arange(section.iterations)
        fading = SLOPES[activation] * np.exp(-t / 150)
        own = 0.05 * generator.standard_normal(depth)
        logs = fading[:, None] * np.arange(depth)[::-1] + own + 0.1 * generator.standard_normal((len(t), depth))
        at = 60 if place in diverged else -1
        loss = np.linspace(2.3, 0.5, section.iterations + 1)
        run = course(section, loss, loss, 10**logs, at)
        members.append(MemberRun(place, made.cell(member), seed, section, run, 5000, at))
        shapes = [[16, 64], *([[16, 16]] * (depth - 2)), [10, 16]]
        layouts.append(
            [
                {"name": f"linear{k + 1}.weight", "layer": f"linear{k + 1}", "shape": shape}
                for k, shape in enumerate(shapes)
            ]
        )
    found = [layers.depth_of(m.course.layers, layout) for m, layout in zip(members, layouts, strict=True)]
    return layers.measure(members, found, family_head(made, members))


def escape_tables(batches: Sequence[str] = ("B=1", "B=50", "full"), seeds: int = 24) -> dict[str, Table]:
    """Tables of `escape`: small batches leave worse basins more often; one start diverges."""
    labels = {"batch": list(batches), "seed": [f"seed {seed}" for seed in range(seeds)]}
    made = family(labels, name="wells")
    network = multi_well((1, 4, 4), 3)
    wells, members, ends = network.wells(), [], []
    for place, (member, (batch, seed)) in enumerate(zip(made.members, product(batches, range(seeds)), strict=True)):
        section = training(batch_size=BATCHES[batch])
        generator = np.random.default_rng([9, seed])
        start = generator.uniform(-1.5, 1.5, 2)
        leaves = generator.uniform() < {"B=1": 0.9, "B=50": 0.4, "full": 0.0}[batch]
        well = 0 if leaves else network.basin(start)
        noise = {"B=1": 0.15, "B=50": 0.05, "full": 0.0}[batch]
        end = wells[well] + noise * np.random.default_rng([13, place]).standard_normal(2)
        at = 50 if batch == "B=1" and seed == 5 else -1
        loss = np.full(section.iterations + 1, network.training_loss(end))
        run = course(section, loss, loss, np.ones((section.iterations, 1)), at)
        members.append(MemberRun(place, made.cell(member), seed, section, run, 2, at))
        ends.append((start, end))
    return escape.measure(members, [network] * len(members), ends, family_head(made, members))


def trained(folder: Path, data: Path, model: Any, sections: Sequence[Mapping[str, Any]], loss: str) -> list[Path]:
    """Trains runs; their manifests."""
    found, network = [], model_section(model)
    for place, keys in enumerate(sections):
        seed = keys.get("seed", 0)
        run = Run(name=f"r{place}", **training(**keys).model_dump(exclude_unset=True))
        path = folder / f"r{place}"
        run_stage(TrainingTask(run, seed, network, loss, data, "cpu"), path, log=lambda _: None)
        found.append(path / "manifest.json")
    return found


def family_job(made: Family, data: Path, manifests: Sequence[Path], **options: Any) -> Job:
    """The job of a measure of a trained family."""
    inputs = {"data": [data] * len(manifests), "trajectory": list(manifests)}
    return Job(made.name, (), options, inputs, family=made, device="cpu", log=lambda _: None)


def scores_of(run: str, iteration: int, **values: float) -> Table:
    """A table of scores of ruggedness: 1 but for those that are given; NaN is not ranked."""
    rows = [
        {
            "group": score.group,
            "score": name,
            "unit": score.unit,
            "value": values.get(name, 1.0),
            "value_low": np.nan,
            "value_high": np.nan,
            "over": "exact",
            "repeats": 0,
            "ranked": bool(np.isfinite(values.get(name, 1.0))),
        }
        for name, score in SCORES.items()
    ]
    return Table(RUGGEDNESS, columns_of(rows, RUGGEDNESS.all_columns()), {"run": run, "iteration": iteration})


def networks(
    depths: Sequence[int] = (2, 2, 4, 4, 8, 8), seeds: int = 2, diverged: Sequence[int] = ()
) -> tuple[Family, list[MemberRun], list[list[dict[str, Any]]]]:
    """A family of networks, each second one normalised, the later the harder to train; and their layouts."""
    labels = {
        "network": [f"net {place}" for place in range(len(depths))],
        "seed": [f"seed {seed}" for seed in range(seeds)],
    }
    made = family(labels, name="nets")
    members, layouts = [], []
    for place, (member, (network, seed)) in enumerate(
        zip(made.members, product(range(len(depths)), range(seeds)), strict=True)
    ):
        section = training(rate=0.01 * (1 + network))
        t, generator = np.arange(section.iterations + 1), np.random.default_rng([17, place])
        loss = 2.3 * np.exp(-t / (20 * (1 + network))) + 0.02 * (1 + network) * generator.uniform(0.9, 1.1)
        validation = loss + 0.1 + 0.01 * generator.standard_normal()
        at = 150 if place in diverged else -1
        run = course(section, loss, validation, np.ones((section.iterations, 1)), at)
        members.append(MemberRun(place, made.cell(member), seed, section, run, 1000 + network, at))
        layers = [{"layer": f"linear{k}", "shape": [16, 16]} for k in range(depths[network])]
        layouts.append(layers + [{"layer": "norm1", "shape": [16]}] * (network % 2))
    return made, members, layouts


@cache
def compared_tables(
    depths: tuple[int, ...] = (2, 2, 4, 4, 8, 8), seeds: int = 2, diverged: tuple[int, ...] = ()
) -> dict[str, Table]:
    """Tables of `ruggedness_compared` of `networks`: one score rises with the difficulty, others are made up."""
    made, members, layouts = networks(depths, seeds, diverged)
    generator, measured = np.random.default_rng(19), []
    for place, cell in enumerate(made.cells):
        for iteration in (0, 20):
            values = {name: float(generator.lognormal()) for name in SCORES}
            values |= {"trace_over_norm": 1.0 + place, "cosine": np.nan if place == 1 else 0.5}
            measured.append((cell, scores_of(f"{made.name}/{cell}", iteration, **values)))
    bumps = [0.0 if member.place % 3 else 0.1 * member.place for member in members]
    return compared.measure(members, layouts, bumps, measured, 0.0, family_head(made, members))
