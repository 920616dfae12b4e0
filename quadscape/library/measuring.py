"""Measures and figures by name."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quadscape.config.values import listed
from quadscape.curvature.matrix_free import CurvatureOperator
from quadscape.errors import ConfigError
from quadscape.figures import FIGURES
from quadscape.library.curvature import DenseEigenbasis
from quadscape.library.loss import NetworkObjective, dtype_name, steady
from quadscape.library.scores import scores
from quadscape.measures import MEASURES, OWNERS
from quadscape.measures.declaration import Measure, effective_options
from quadscape.measures.density import compute as density
from quadscape.measures.gradients import compute as gradients
from quadscape.measures.interfaces import checkpoint_head
from quadscape.measures.line_forms import compute as line_forms
from quadscape.measures.line_search import compute as line_search
from quadscape.measures.localisation import compute as localisation
from quadscape.measures.overlap import compute as overlap
from quadscape.measures.spectrum import compute as spectrum
from quadscape.measures.surface import compute as surface
from quadscape.network.filters import Filters
from quadscape.network.objective import Objective
from quadscape.planning.experiment import check_problem
from quadscape.planning.experiment_file import parse_experiment
from quadscape.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANY = 1 << 62


class _NoExamples:
    """The loss over no examples, where no validation data are given: all its values are NaN."""

    count = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def example_losses(self, theta: Any) -> np.ndarray:
        return np.full(1, np.nan)

    def gradient(self, theta: Any) -> np.ndarray:
        return np.full(self.size, np.nan)

    def hessian_product(self, theta: Any, v: Any) -> np.ndarray:
        return np.full(self.size, np.nan)

    def example_gradients(self, theta: Any, examples: slice) -> np.ndarray:
        return np.empty((0, self.size))


def measure(
    name: str,
    of: DenseEigenbasis | NetworkObjective,
    other: DenseEigenbasis | None = None,
    *,
    validation: Objective | None = None,
    **options: Any,
) -> dict[str, Table]:
    """One measure, by the name that it has in experiment files.

    Args:
        name: `spectrum`, `line_search`, `gradients`, `localisation` or `surface` of an eigenbasis, `density` or
            `ruggedness` of an objective or an eigenbasis, or `overlap` of two eigenbases.
        of: What is measured.
            With the tables of `line_search` come those of `line_forms`, which follow from them.
        other: The second eigenbasis of `overlap`.
        validation: The loss on validation data, for `line_search`: `loss.on(inputs, labels)`. None: only the training
            loss is searched, and what columns say of validation is NaN.
        **options: The measure's section of the experiment file (docs/configuration.md); a default that exceeds the
            number of parameters is clipped.

    Returns:
        The measure's tables by name. `table["column"]` is an array, `table.schema` says what each column is, and
        `table.attributes` holds what is true of the whole table.

    Raises:
        ConfigError: There is no such measure or option, or it is not measured of this.

    >>> tables = measure("line_search", basis, directions=5)
    >>> sorted(tables), len(tables["line_fit"])
    (['line_fit', 'line_forms', 'line_search'], 5)
    >>> tables["line_fit"].schema.all_columns()["newton"].description
    'Minimum of the quadratic −gᵀq/qᵀHq; NaN unless the curvature is positive.'
    """
    declared = _declared(name)
    subject = of.objective if isinstance(of, DenseEigenbasis) else of
    if not isinstance(subject, NetworkObjective):
        raise ConfigError(
            f"'{name}' is measured of what quadscape.objective made, or of its eigenbasis, not of the class "
            f"{type(subject).__name__}."
        )
    chosen = measure_options(declared, options, subject)
    for wanted, given, what in (("overlap", other, "other"), ("line_search", validation, "validation")):
        if given is not None and name != wanted:
            raise ConfigError(f"'{name}' takes no {what}, which belongs to '{wanted}'.")
    if validation is not None and (not isinstance(validation, Objective) or validation.layout != subject.layout):
        raise ConfigError("validation is no objective of the same network; give loss.on(inputs, labels).")
    with steady():
        if name == "density":
            head = checkpoint_head(subject.checked, subject.size, subject.count)
            return {"density": density.measure(CurvatureOperator(subject, of.theta), chosen, head)}
        if name == "ruggedness":
            return scores(of, subject, chosen)
        if not isinstance(of, DenseEigenbasis):
            raise ConfigError(f"'{name}' is measured of an eigenbasis; give quadscape.eigenbasis(objective).")
        if name == "overlap":
            return _overlap(of, other, chosen)
        return _of_basis(name, of, subject, chosen, validation)


def _of_basis(
    name: str, basis: DenseEigenbasis, loss: NetworkObjective, options: SimpleNamespace, validation: Objective | None
) -> dict[str, Table]:
    """What is measured of one eigenbasis."""
    head = checkpoint_head(loss.checked, loss.size, loss.count) | {"zero_threshold": basis.zero_threshold}
    if name == "spectrum":
        head["invariances"] = basis.invariances
        found = spectrum.measure(basis.eigenvalues, basis.zero_threshold, basis.generator_overlaps, head)
        return {"spectrum": found}
    if name == "gradients":
        return gradients.measure(loss, basis, basis.theta, head, device=loss.device)
    if name == "localisation":
        blocks = [
            (block.layer or "(network)", block.name.rpartition(".")[2], slice(block.start, block.stop))
            for block in loss.layout.blocks
        ]
        return localisation.measure(basis, blocks, head)
    epsilon = torch.finfo(loss.dtype).eps
    if name == "surface":
        filters = Filters.of(loss.layout)
        return surface.measure(loss, basis, basis.theta, filters, options, head, epsilon=epsilon, device=loss.device)
    other = _NoExamples(loss.size) if validation is None else validation
    tables = line_search.measure(loss, other, basis, basis.theta, options, head, epsilon=epsilon)
    tables |= line_forms.measure(tables["line_search"], tables["line_fit"])
    lines = tables["line_search"]
    return tables if validation is not None else {**tables, "line_search": lines.where(lines["split"] == "train")}


def _overlap(first: DenseEigenbasis, second: DenseEigenbasis | None, options: SimpleNamespace) -> dict[str, Table]:
    if second is None or second.size != first.size:
        size = "none" if second is None else f"{second.size} eigenvectors"
        raise ConfigError(
            f"'overlap' compares two eigenbases of one network; the first has {first.size} eigenvectors, the other: "
            f"{size}."
        )
    networks = [basis.objective.checked for basis in (first, second) if isinstance(basis.objective, NetworkObjective)]
    steps = {"iteration_a": networks[0].iteration, "iteration_b": networks[-1].iteration}
    head = {"run": networks[0].run, **steps, "P": first.size}
    return overlap.measure(first, second, options.bands, head, device=first.objective.device)


_HERE = ("spectrum", "line_search", "gradients", "localisation", "ruggedness", "density", "overlap", "surface")


def _declared(name: str) -> Measure:
    if name not in MEASURES:
        raise ConfigError(f"There is no measure '{name}'; the measures here are {listed(list(_HERE))}.")
    if name not in _HERE:
        raise ConfigError(
            f"'{name}' is measured of results on disk, by the workflow; the measures here are {listed(list(_HERE))}."
        )
    return MEASURES[name]


def measure_options(declared: Measure, options: Mapping[str, Any], loss: NetworkObjective) -> SimpleNamespace:
    """Options of a measure, checked as those of an experiment file are.

    Args:
        declared: The measure.
        options: Those that are given.
        loss: What is measured: its sizes clip defaults.

    Returns:
        All options as attributes.

    Raises:
        ConfigError: There is no such option.
    """
    known = [option.name for option in declared.options]
    for name in options:
        if name not in known:
            raise ConfigError(f"'{declared.name}' has no option '{name}'; its options are {listed(known)}.")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    experiment = parse_experiment({"measures": {declared.name: plain}})
    # Nothing is trained here: no batch is too large.
    check_problem(experiment, *({run.name: count for run in experiment.runs} for count in (loss.size, _MANY)))
    given = experiment.measures.given(declared.name) | {"dtype": dtype_name(loss.dtype)}
    return SimpleNamespace(**effective_options(declared, given, loss.size))


def draw(name: str, *tables: Table | Mapping[str, Table | Sequence[Table]]) -> "Figure":
    """One figure of the report, by its name.

    Args:
        name: Such as `spectrum`, `line_searches` or `quadratic_radius`: a key of `quadscape.figures.FIGURES`, whose
            `caption` tells how to read it.
        *tables: What `measure`, or `Results.tables`, returned, of one checkpoint or several in their order.

    Returns:
        The figure, which a notebook shows, and `savefig` or `quadscape.figures.save` writes.

    Raises:
        ConfigError: There is no such figure, or a table that it reads is missing.

    >>> figure = draw("spectrum", measure("spectrum", basis))
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['rank within the sign']
    """
    if name not in FIGURES:
        raise ConfigError(f"There is no figure '{name}'; the figures are {listed(list(FIGURES))}.")
    found: dict[str, list[Table]] = {}
    for table in (*FIGURES[name].tables, *FIGURES[name].also):
        found[table] = []
        for given in tables:
            named = {given.schema.name: given} if isinstance(given, Table) else given
            one = named.get(table, ())
            found[table] += [one] if isinstance(one, Table) else list(one)
        if not found[table] and table in FIGURES[name].tables:
            raise ConfigError(
                f"The figure '{name}' reads the table '{table}' of the measure '{OWNERS[table].name}', which was not "
                "given."
            )
    return FIGURES[name].draw(found)
