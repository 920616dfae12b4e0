"""A user's own network, parameters and images, named on a command line: scores without an experiment."""

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.amounts import format_bytes, format_seconds
from quadscape.config.sections import Custom, Data
from quadscape.data.sets import DataSet, prepare
from quadscape.data.sources import SPLITS, describe
from quadscape.errors import ConfigError, ModelError
from quadscape.library.loss import NetworkObjective, objective, steady
from quadscape.library.scores import EXACT_SIZE, STEPS, VECTORS
from quadscape.measures import MEASURES
from quadscape.measures.declaration import Sizes
from quadscape.network.checkpoint import load_foreign
from quadscape.network.models import build_model
from quadscape.numerics import resolve_device
from quadscape.tables import Table

_END_PRODUCTS = 60  # what the two ends usually take


def own_objective(
    model: str,
    images: Path,
    parameters: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    dtype: str = "float64",
    log: Callable[[str], object] = print,
) -> NetworkObjective:
    """The loss of a network over a folder of images.

    Args:
        model: `package.module:function`, called as in an experiment file, or the name of a classification model of
            torchvision, such as `resnet18`.
        images: A folder of one sub-folder per class, whose images are all used, or with `train/` and `test/` of that
            kind, of which `train/` is used. Pixels are normalised by the moments of each channel.
        parameters: A file saved with `torch.save(model.state_dict(), …)`; None: initial parameters of seed 0.
        arguments: Keyword arguments of the function.
        device: `auto`, `cpu` or `cuda`.
        dtype: `float64` or `float32`.
        log: Told what was found.

    Returns:
        The objective, its network checked; BatchNorm is frozen at its statistics over these images.
    """
    data = Data(source="image_folder", path=str(images))
    description = describe(data)
    log(
        f"{images}: {sum(description.parts.values()):,} images of {'×'.join(map(str, description.shape))} in "
        f"{len(description.classes)} classes."
    )
    inputs, labels = _examples(data, description.parts)
    network = _network(model, tuple(description.shape), len(description.classes), arguments or {})
    if parameters is not None:
        load_foreign(network, parameters)
    place = resolve_device(device)
    name = model.rpartition(":")[2]
    size = sum(parameter.numel() for parameter in network.parameters())
    log(f"{name}: {size:,} parameters; first it is checked that torch's derivatives of it are right.")
    found = objective(network.to(place), inputs, labels, dtype=dtype, run=name)
    log(f"{found}, on {place.type}.")
    return found


def _network(model: str, shape: tuple[int, ...], classes: int, arguments: Mapping[str, Any]) -> torch.nn.Module:
    if ":" in model:
        return build_model(Custom(factory=model, arguments=dict(arguments)), shape, classes)  # type: ignore[arg-type]
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise ConfigError(
            f"--model is '{model}'; valid are package.module:function, or a classification model of torchvision: "
            f"{', '.join(known[:6])}, …, {known[-1]}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return models.get_model(model, weights=None, num_classes=classes, **arguments)
        except Exception as error:
            raise ModelError(
                f"torchvision's '{model}' cannot be made with {classes} classes and {dict(arguments)} ({error})."
            ) from error


def _examples(data: Data, parts: Collection[str]) -> tuple[torch.Tensor, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "data.zarr"
        prepare(data, 0, store)
        loaded = DataSet.load(store, dtype=torch.float64)
        names = ("train",) if "train" in parts else tuple(name for name in SPLITS if loaded.counts[name])
        found = [loaded.split(name) for name in names]
        return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


def estimate(name: str, loss: NetworkObjective, options: Any) -> str:
    """What scores or a surface will take, after one loss, one gradient and one product were timed.

    Args:
        name: `ruggedness` or `surface`.
        loss: The objective.
        options: Those of the measure.

    Returns:
        One sentence.
    """
    cost = MEASURES[name].cost(_sizes(loss), vars(options))
    products, steps, how = cost.products / loss.count + _END_PRODUCTS, 20, "the ends of the spectrum"
    if name == "ruggedness" and loss.size <= EXACT_SIZE:
        products, how = products + loss.size, "all eigenvalues"
    elif name == "ruggedness":
        products, steps = products + VECTORS * STEPS, STEPS + 20
        how = f"the spectrum from {VECTORS} random vectors"
    direction = np.random.default_rng(0).standard_normal(loss.size)
    with steady():
        seconds = [
            _seconds(lambda: loss.loss(loss.theta)),
            _seconds(lambda: loss.gradient(loss.theta)),
            _seconds(lambda: loss.hessian_product(loss.theta, direction)),
        ]
    counts = (cost.evaluations / loss.count, cost.gradients / loss.count, products)
    total = sum(count * each for count, each in zip(counts, seconds, strict=True))
    return (
        f"{counts[0]:,.0f} losses, {counts[1]:,.0f} gradients and {counts[2]:,.0f} Hessian products, {how}: about "
        f"{format_seconds(total)}; vectors take {format_bytes(8 * loss.size * steps)} of memory, one product about "
        f"{format_bytes(loss.product_bytes())}."
    )


def _seconds(work: Callable[[], object]) -> float:
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _sizes(loss: NetworkObjective) -> Sizes:
    given = loss.given
    return Sizes(loss.size, loss.count, 0, 0, 0, 8 * given[0].numel(), 8)


class Progress:
    """Says at most every few seconds how much is done, and how long the rest may take.

    Attributes:
        say: Told a line.
        what: What is counted.
    """

    def __init__(self, say: Callable[[str], object], what: str) -> None:
        self.what = what
        self.say, self._began, self._last = say, time.monotonic(), time.monotonic()

    def __call__(self, item: Any, done: int, of: int) -> None:
        """After one of them; `done` of `of` are done."""
        now = time.monotonic()
        if now - self._last > 5 or done == of:
            self._last, left = now, (now - self._began) / done * (of - done)
            self.say(f"{done}/{of} {self.what}" + (f", about {format_seconds(left)} left" if done < of else " done"))


def format_scores(table: Table) -> str:
    """The table as text, a block per group.

    Args:
        table: `ruggedness`.

    Returns:
        Lines with value, interval and unit of every score.
    """
    lines: list[str] = []
    group = ""
    columns = ("group", "score", "value", "value_low", "value_high", "unit", "over", "ranked")
    rows: Sequence[tuple[Any, ...]] = list(zip(*(table[name].tolist() for name in columns), strict=True))
    for of, score, value, low, high, unit, over, ranked in rows:
        if of != group:
            lines += ["", of] if lines else [of]
            group = of
        exact = low == value == high or not (np.isfinite(low) or np.isfinite(high))
        ends = f"≥ {low:.3g}" if np.isnan(high) else f"{low:.3g} … {high:.3g}"
        interval = "" if exact else ends
        note = over if ranked or np.isnan(value) else f"{over}; below its own error"
        lines.append(f"  {score:<30} {value:>10.4g}  {interval:<24} {'' if unit == '1' else unit:<24} {note}".rstrip())
    return "\n".join(lines)


def write_found(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Writes tables, the figures that can be drawn from them, and the pages that can be turned.

    Args:
        tables: Of one measure, by name.
        folder: Where to; it is made.

    Returns:
        The files.
    """
    from quadscape.figures import FIGURES, save
    from quadscape.figures.pages import PAGES
    from quadscape.figures.pages.document import save_page

    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, table in tables.items():
        found.append(folder / f"{name}.parquet")
        table.write(found[-1])
    for figure in FIGURES.values():
        if set(figure.tables) <= tables.keys():
            found.append(folder / f"{figure.name}.svg")
            save(figure.draw({name: [tables[name]] for name in figure.tables}), found[-1])
    for page in PAGES.values():
        if set(page.tables) <= tables.keys():
            found.append(folder / f"{page.name}.html")
            save_page(page, page.scenes({name: [tables[name]] for name in page.tables}), found[-1])
    return found


def format_planes(table: Table) -> str:
    """What pictures of planes suggest, beside the Hessian, as text.

    Args:
        table: `surface_planes`.

    Returns:
        A line per plane.
    """
    columns = ("plane", "suggested_smallest", "suggested_largest", "measured_smallest", "measured_largest", "minima")
    ends = (table.attributes["smallest_eigenvalue"], table.attributes["sharpness"])
    lines = [f"curvature in all directions: {ends[0]:.3g} to {ends[1]:.3g}"]
    for name, *numbers, minima in zip(*(table[column].tolist() for column in columns), strict=True):
        low, high, least, most = (f"{number:.3g}" for number in numbers)
        text = f"plane {name}: the picture suggests {low} to {high}, the Hessian has {least} to {most}"
        lines.append(f"{text}; minima: {minima}")
    return "\n".join(lines)
