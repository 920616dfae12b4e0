"""What a source of images holds: shape, classes, sizes of the splits and which example is in which, without its pixels.

The workflow's head asks this at every start, so nothing here imports torch or Zarr.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quadscape.config.sections import Data
from quadscape.data.image_folders import Listing, digest_listing, digest_times, list_folder
from quadscape.errors import DataError, StoreError
from quadscape.paths import user_path

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS_PER_CLASS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
_DECODING_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError)
_DECODING_ERRORS += (NotImplementedError, ArithmeticError, MemoryError, AssertionError, struct.error, zlib.error)
_SPLIT_STREAM = 0x5D17


@dataclass(frozen=True)
class DataDescription:
    """What can be said about a data set before it is read.

    Attributes:
        shape: Channels, height and width of every image.
        classes: Names of the classes; the label is the position.
        training: Number of training images, N.
        validation: Number of validation images.
        test: Number of test images.
        listing: Digest of what the source holds (names and sizes of files for folders); changes when the source does.
        parts: Images of each part that the source has, in order: of `all`, or of `train`, `test` and `validation`. Not
            known of a store alone.
        state: Digest of the listing and of the times at which the files were last changed; empty where there are none.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    training: int
    validation: int
    test: int
    listing: str
    parts: Mapping[str, int] = field(default_factory=dict, compare=False)
    state: str = field(default="", compare=False)

    @classmethod
    def of_store(cls, path: str | Path) -> "DataDescription":
        """The description under which a data store was made, for when the source is gone.

        Args:
            path: Directory of the store, or the `zarr.json` in it.

        Returns:
            The description.

        Raises:
            StoreError: The store's metadata are damaged.
        """
        file = Path(path) if Path(path).name == "zarr.json" else Path(path) / "zarr.json"
        try:
            attributes = json.loads(file.read_text(encoding="utf-8"))["attributes"]
            channels, height, width = map(int, attributes["shape"])
            training, validation, test = (int(attributes["counts"][name]) for name in SPLITS)
            classes, listing = tuple(attributes["classes"]), str(attributes["listing"])
            return cls((channels, height, width), classes, training, validation, test, listing)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"The metadata of {file.parent} are damaged ({error}); remove that directory and run the workflow "
                "again."
            ) from error


@dataclass(frozen=True)
class Census:
    """What a data set holds class by class.

    Attributes:
        classes: Names of the classes.
        counts: Images of each class in the training, validation and test set.
        leftovers: What an image folder holds besides, and is not used.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, int, int], ...]
    leftovers: tuple[str, ...] = ()


def _class_counts(labels: np.ndarray, classes: int) -> list[int]:
    return [int(n) for n in np.bincount(labels, minlength=classes)]


def _part(count: int, fraction: float) -> int:
    """The rounded fraction of a count, halves up."""
    return int(np.floor(count * fraction + 0.5))


def _split_held_out(labels: np.ndarray, classes: int, fraction: float, seed: int, stream: int) -> np.ndarray:
    """Marks a seeded random fraction of every class; boolean, shape (n,)."""
    chosen = np.zeros(labels.size, dtype=bool)
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_SPLIT_STREAM, stream, seed, label])))
        chosen[generator.permutation(members)[: _part(members.size, fraction)]] = True
    return chosen


def _check_sizes(config: Data, classes: Sequence[str], training: Sequence[int], validation: int, test: int) -> None:
    """Refuses a split without examples."""
    for name, count in zip(classes, training, strict=True):
        if count == 0:
            raise DataError(
                f"data.held_out is {config.held_out}, which leaves no training image of class '{name}'; "
                "lower it, or add images of that class."
            )
    for split, count in (("validation", validation), ("test", test)):
        if count == 0:
            raise DataError(
                f"The {split} set would be empty with data.held_out {config.held_out} and data.validation "
                f"{config.validation}; choose fractions that leave at least one image for it, or add images."
            )


def _sizes(held_out: Sequence[int], fraction: float) -> tuple[int, int]:
    """Sizes of validation and test set made of the held-out images of each class."""
    validation = sum(_part(count, fraction) for count in held_out)
    return validation, sum(held_out) - validation


def _split_rest(labels: np.ndarray, classes: int, config: Data, seed: int) -> np.ndarray:
    """Splits held-out examples into validation (1) and test (2), uint8."""
    return np.where(_split_held_out(labels, classes, config.validation, seed, 1), 1, 2).astype(np.uint8)


def _split_all(labels: np.ndarray, classes: int, config: Data, seed: int) -> np.ndarray:
    """Splits examples into training (0), validation (1) and test (2), uint8."""
    held = _split_held_out(labels, classes, config.held_out, seed, 0)
    split = np.zeros(labels.size, dtype=np.uint8)
    split[held] = _split_rest(labels[held], classes, config, seed)
    return split


def split_examples(config: Data, seed: int, labels: np.ndarray, classes: int, parts: Mapping[str, int]) -> np.ndarray:
    """Which example is in which split.

    Args:
        config: The `data` section.
        seed: Seed of the random split.
        labels: Class indices of all examples, in the order of the source.
        classes: Number of classes.
        parts: Examples of each part of the source, in order: see `DataDescription`.

    Returns:
        0 train, 1 validation, 2 test, uint8, shape (n,).
    """
    found, start = [], 0
    for name, count in parts.items():
        part = labels[start : start + count]
        start += count
        if name == "all":
            found.append(_split_all(part, classes, config, seed))
        elif name == "train" or len(parts) == 3:
            found.append(np.full(count, SPLITS.index(name), dtype=np.uint8))
        else:
            found.append(_split_rest(part, classes, config, seed))
    return np.concatenate(found)


# ---------------------------------------------------------------------------------------------------------------------
# Image folders


def decoding_errors() -> tuple[type[Exception], ...]:
    """What Pillow's readers raise on damaged files, depending on the format."""
    from PIL import Image

    return (*_DECODING_ERRORS, Image.DecompressionBombError)


def open_image(path: Path) -> Any:
    """Opens an image lazily: its header is read, its pixels are not.

    Args:
        path: The file.

    Returns:
        Pillow's image.

    Raises:
        DataError: It cannot be read, or has more than 8 bits per channel.
    """
    from PIL import Image

    try:
        image = Image.open(path)
    except decoding_errors() as error:
        raise DataError(f"The image {path} cannot be read ({reason_of(error)}); replace or remove it.") from error
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith(("I", "F")) or ";16" in raw:
        raise DataError(f"The image {path} has more than 8 bits per channel; convert it to 8 bits, choosing the range.")
    return image


def reason_of(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _is_grey(mode: str) -> bool:
    return mode in {"1", "L", "LA", "La"}


def all_grey(files: Sequence[Path]) -> bool:
    """Whether all images are grey."""
    # Stops at the first colour image, so that only a wholly grey folder costs a look at every header.
    for file in files:
        with open_image(file) as image:
            if not _is_grey(image.mode):
                return False
    return True


def _folder_counts(config: Data, parts: dict[str, Listing]) -> list[list[int]]:
    """Images of each class in the training, validation and test set: three lists, in the order of the classes."""
    if "all" in parts:
        counts = _class_counts(parts["all"].labels, len(parts["all"].classes))
        held = [_part(count, config.held_out) for count in counts]
        training = [count - out for count, out in zip(counts, held, strict=True)]
    else:
        classes = len(parts["train"].classes)
        training = _class_counts(parts["train"].labels, classes)
        if len(parts) == 3:
            return [training, *(_class_counts(parts[name].labels, classes) for name in ("validation", "test"))]
        held = _class_counts(parts["test" if "test" in parts else "validation"].labels, classes)
    validation = [_part(count, config.validation) for count in held]
    return [training, validation, [count - out for count, out in zip(held, validation, strict=True)]]


def _folder_sizes(config: Data, parts: dict[str, Listing]) -> tuple[int, int, int]:
    """Sizes of the three splits of an image folder."""
    training, validation, test = _folder_counts(config, parts)
    _check_sizes(config, next(iter(parts.values())).classes, training, sum(validation), sum(test))
    return sum(training), sum(validation), sum(test)


# ---------------------------------------------------------------------------------------------------------------------
# The public functions


def describe(config: Data, known: DataDescription | None = None) -> DataDescription:
    """Says what a data set holds without reading its images.

    Args:
        config: The `data` section.
        known: What was found before: where all files are as they were, none is opened to learn the images' shape.

    Returns:
        Shape, classes, sizes of the splits, and a digest of the source's listing.

    Raises:
        DataError: An image folder is missing, or of a kind that cannot be used.
    """
    if config.source == "digits":
        classes = tuple(str(digit) for digit in range(10))
        held = [_part(count, config.held_out) for count in _DIGITS_PER_CLASS]
        left = [count - out for count, out in zip(_DIGITS_PER_CLASS, held, strict=True)]
        validation, test = _sizes(held, config.validation)
        _check_sizes(config, classes, left, validation, test)
        return DataDescription(
            (1, 8, 8), classes, sum(left), validation, test, "digits", {"all": sum(_DIGITS_PER_CLASS)}
        )
    if config.source == "cifar10":
        validation, test = _sizes([1000] * 10, config.validation)
        _check_sizes(config, CIFAR10_CLASSES, [5000] * 10, validation, test)
        return DataDescription(
            (3, 32, 32), CIFAR10_CLASSES, 50000, validation, test, "cifar10", {"train": 50000, "test": 10000}
        )
    folder = list_folder(user_path(config.path))
    parts, files = folder.parts, folder.files
    training, validation, test = _folder_sizes(config, parts)
    listing, state = digest_listing(folder), digest_times(folder)
    if known is not None and (known.listing, known.state) == (listing, state):
        shape = known.shape
    else:
        with open_image(files[0]) as image:
            width, height = image.size
        if min(width, height) < 1:
            raise DataError(f"The image {files[0]} has no pixels; replace or remove it.")
        shape = (1 if all_grey(files) else 3, height, width)
    first, sizes = next(iter(parts.values())), {name: len(part.files) for name, part in parts.items()}
    return DataDescription(shape, first.classes, training, validation, test, listing, sizes, state)


def census(config: Data) -> Census:
    """Counts the images of every class in every split, without reading any.

    Args:
        config: The `data` section.

    Returns:
        The counts.
    """
    if config.source == "image_folder":
        folder = list_folder(user_path(config.path))
        counts = _folder_counts(config, folder.parts)
        return Census(next(iter(folder.parts.values())).classes, tuple(zip(*counts, strict=True)), folder.leftovers)
    if config.source == "cifar10":
        classes: tuple[str, ...] = CIFAR10_CLASSES
        training, held = [5000] * 10, [1000] * 10
    else:
        classes = tuple(str(digit) for digit in range(10))
        held = [_part(count, config.held_out) for count in _DIGITS_PER_CLASS]
        training = [count - out for count, out in zip(_DIGITS_PER_CLASS, held, strict=True)]
    validation = [_part(count, config.validation) for count in held]
    rows = zip(training, validation, held, strict=True)
    return Census(classes, tuple((a, b, c - b) for a, b, c in rows))
