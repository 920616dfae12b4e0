"""Parts and orders of a data set, as data stores of their own, so that whatever reads data reads them, too."""

from pathlib import Path

import numpy as np

from quadscape.config.sections import Subset
from quadscape.data.sets import data_arrays, example_spec, write_examples
from quadscape.data.sources import SPLITS
from quadscape.errors import ConfigError
from quadscape.store import read_store

_CLASS_STREAM = 0x5C1A
_HALF_STREAM = 0x5A1F
_ORDER_STREAM = 0x50DE


def choose_examples(subset: Subset, labels: np.ndarray, split: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Which examples a subset has, and in which order.

    Args:
        subset: The subset.
        labels: Classes of all examples, int64, shape (n,).
        split: 0 train, 1 validation, 2 test, shape (n,).
        classes: Names of the classes.

    Returns:
        Numbers of examples, int64: of the training split those that are drawn, in their order or shuffled, then all
        others of the chosen classes.

    Raises:
        ConfigError: There is no such class, a class has too few examples, or none is left.
    """
    where = f"subsets: '{subset.name}'"
    numbers = list(range(len(classes)))
    if subset.classes is not None:
        for name in subset.classes:
            if name not in classes:
                raise ConfigError(f"{where} has the class '{name}'; the classes are {', '.join(classes)}.")
        numbers = [classes.index(name) for name in subset.classes]
    of_classes = np.isin(labels, numbers)
    training = np.flatnonzero(of_classes & (split == SPLITS.index("train")))
    if subset.per_class is not None:
        drawn = []
        for number in sorted(numbers):
            there = training[labels[training] == number]
            if len(there) < subset.per_class:
                raise ConfigError(
                    f"{where} has per_class {subset.per_class}, but class '{classes[number]}' has only {len(there)} "
                    f"training examples; valid are 1 to {len(there)}."
                )
            drawn.append(_generator(_CLASS_STREAM, subset.seed, number).permutation(there)[: subset.per_class])
        training = np.sort(np.concatenate(drawn))
    if subset.half is not None:
        order = _generator(_HALF_STREAM, subset.seed).permutation(len(training))
        middle = len(training) // 2
        training = training[np.sort(order[:middle] if subset.half == 0 else order[middle:])]
    if subset.shuffled:
        training = _generator(_ORDER_STREAM, subset.seed).permutation(training)
    if not len(training):
        raise ConfigError(f"{where} leaves no training example.")
    others = np.flatnonzero(of_classes & (split != SPLITS.index("train")))
    return np.concatenate([training, others]).astype(np.int64)


def _generator(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def write_subset(subset: Subset, data: str | Path, out: str | Path) -> dict[str, int]:
    """Writes the data store of a subset.

    It holds besides `origin(example)`, the numbers of its examples in the whole store, and is normalised with the
    constants of the whole: a network is the same function on both.

    Args:
        subset: The subset.
        data: The whole data store.
        out: Directory of the store; what was there is replaced.

    Returns:
        Number of examples of each split.
    """
    arrays, attributes = read_store(data)
    chosen = choose_examples(subset, arrays["labels"], arrays["split"], tuple(attributes["classes"]))
    found = data_arrays(arrays["images"][chosen], arrays["labels"][chosen], arrays["split"][chosen])
    found.append(
        (example_spec("origin", len(chosen), "int64", "Number of the example in the store of all data."), chosen)
    )
    same = {key: attributes[key] for key in ("scale", "mean", "std", "classes", "source")}
    outside = {"listing": "", "whole": attributes["content"], "subset": subset.described()}
    return write_examples(out, found, same, outside)
