"""Data sets: where images come from, how they are split, and the one store that everything else reads.

The store holds undecided facts only: pixels as integers, labels, the split of every example, and the constants
of normalisation. Its content depends on the source and the seed, never on the order of a file system or on the machine.
"""

import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Data
from quadscape.data.image_folders import Listing, digest_listing, list_folder
from quadscape.data.info import DataInfo, data_info
from quadscape.data.sources import (
    CIFAR10_CLASSES,
    SPLITS,
    Split,
    all_grey,
    decoding_errors,
    describe,
    open_image,
    reason_of,
    split_examples,
)
from quadscape.errors import DataError
from quadscape.paths import user_path
from quadscape.store import ArraySpec, digest, read_store, write_store

_DOWNLOAD_TIMEOUT = 20.0


def _pixels(path: Path, mode: str) -> np.ndarray:
    """One image as (height, width[, 3]) uint8."""
    with open_image(path) as image:
        try:
            return np.asarray(image.convert(mode))
        except decoding_errors() as error:
            raise DataError(f"The image {path} is damaged ({reason_of(error)}); replace or remove it.") from error


def _decode(listing: Listing, grey: bool, first: Path) -> np.ndarray:
    """Decodes a folder's images.

    Args:
        listing: The folder's files.
        grey: Whether to decode to one channel.
        first: The file whose size all images must have.

    Returns:
        Pixels, uint8, shape (n, channels, height, width).

    Raises:
        DataError: An image is damaged or has another size.
    """
    with open_image(first) as image:
        width, height = image.size
    pixels = np.empty((len(listing.files), 1 if grey else 3, height, width), dtype=np.uint8)
    for index, path in enumerate(listing.files):
        values = _pixels(path, "L" if grey else "RGB")
        if values.shape[:2] != (height, width):
            raise DataError(
                f"All images must have one size, but {first} has {width}×{height} pixels and {path} has "
                f"{values.shape[1]}×{values.shape[0]}; resize them to one size first."
            )
        pixels[index] = values[None] if grey else values.transpose(2, 0, 1)
    return pixels


@contextmanager
def _socket_timeout(seconds: float) -> Generator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_cifar10(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Pixels, labels and the number of training images of CIFAR-10, downloaded where it is missing."""
    from torchvision.datasets import CIFAR10

    try:
        # torchvision would wait for ever on a network that swallows packets, as compute nodes often have.
        with _socket_timeout(_DOWNLOAD_TIMEOUT), redirect_stdout(StringIO()):
            try:
                training = CIFAR10(root=path, train=True, download=False)
            except RuntimeError:
                training = CIFAR10(root=path, train=True, download=True)
            test = CIFAR10(root=path, train=False, download=False)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 is not in '{path}' and could not be downloaded ({reason_of(error)}); where there is a network, "
            f"fetch cifar-10-python.tar.gz from the CIFAR-10 home page and unpack it there, so that {Path(path)}/"
            "cifar-10-batches-py exists, or set data.path to the folder that has it."
        ) from error
    pixels = np.concatenate([training.data, test.data]).transpose(0, 3, 1, 2)
    labels = np.concatenate([np.asarray(training.targets), np.asarray(test.targets)]).astype(np.int64)
    return np.ascontiguousarray(pixels), labels, len(training.targets)


def prepare(config: Data, seed: int, path: str | Path) -> None:
    """Reads a source and writes the data store.

    Arrays: `images(example, channel, row, column)` uint8, `labels(example)` int64, `split(example)` uint8 (0 train,
    1 validation, 2 test). Attributes: `scale` (the pixel value of white), `mean` and `std` of each channel of
    images/scale over the training split, `classes`, `source`, `counts`. The order is the source's.

    Args:
        config: The `data` section.
        seed: Seed of the random split.
        path: Directory of the store; what was there is replaced.
    """
    # Refuses what cannot be used, before anything is decoded or downloaded.
    listing = describe(config).listing
    if config.source == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = bunch.images.astype(np.uint8)[:, None]
        labels = bunch.target.astype(np.int64)
        split = split_examples(config, seed, labels, 10, {"all": labels.size})
        write_data(
            path, pixels, labels, split, [str(digit) for digit in range(10)], "digits", scale=16, listing=listing
        )
    elif config.source == "cifar10":
        pixels, labels, training = _read_cifar10(str(user_path(config.path)))
        split = split_examples(config, seed, labels, 10, {"train": training, "test": labels.size - training})
        write_data(path, pixels, labels, split, CIFAR10_CLASSES, "cifar10", listing=listing)
    else:
        _prepare_folder(config, seed, path, listing)


def _prepare_folder(config: Data, seed: int, path: str | Path, listing: str) -> None:
    folder = list_folder(user_path(config.path))
    parts, files = folder.parts, folder.files
    grey = all_grey(files)
    classes = next(iter(parts.values())).classes
    pixels = np.concatenate([_decode(part, grey, files[0]) for part in parts.values()])
    labels = np.concatenate([part.labels for part in parts.values()])
    split = split_examples(config, seed, labels, len(classes), {name: len(part.files) for name, part in parts.items()})
    if digest_listing(list_folder(user_path(config.path))) != listing:
        raise DataError(f"The image folder {config.path} changed while it was read; run again when it no longer does.")
    write_data(path, pixels, labels, split, classes, "image_folder", listing=listing)


def write_data(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    split: np.ndarray,
    classes: Sequence[str],
    source: str,
    *,
    scale: int = 255,
    listing: str = "",
) -> None:
    """Writes a data store from arrays.

    Args:
        path: Directory of the store; what was there is replaced.
        images: Pixels, uint8, shape (n, channels, height, width).
        labels: Class indices, shape (n,).
        split: 0 train, 1 validation, 2 test, shape (n,).
        classes: Names of the classes.
        source: Where the images come from.
        scale: The pixel value of white.
        listing: Digest of what the source held.
    """
    mean, std = _moments(images[split == 0], scale)
    attributes = {"scale": scale, "mean": mean, "std": std, "classes": list(classes), "source": source}
    write_examples(path, data_arrays(images, labels, split), attributes, {"listing": listing})


def data_arrays(images: np.ndarray, labels: np.ndarray, split: np.ndarray) -> list[tuple[ArraySpec, np.ndarray]]:
    """The arrays of a data store, with their layout.

    Args:
        images: Pixels, uint8, shape (n, channels, height, width).
        labels: Class indices, shape (n,).
        split: 0 train, 1 validation, 2 test, shape (n,).

    Returns:
        Layout and values of each.
    """
    count, white = int(labels.size), "Pixels; white is the store's attribute scale."
    rows = max(1, min(count, 2**24 // int(np.prod(images.shape[1:]))))
    axes, chunks = ("example", "channel", "row", "column"), (rows, *images.shape[1:])
    image_spec = ArraySpec(
        "images", images.shape, "uint8", axes, chunks, compress=True, attributes={"description": white}
    )
    return [
        (image_spec, images),
        (example_spec("labels", count, "int64", "Class."), labels),
        (example_spec("split", count, "uint8", "0 train, 1 validation, 2 test."), split),
    ]


def example_spec(name: str, count: int, dtype: str, description: str) -> ArraySpec:
    """Layout of an array with one number for each example."""
    return ArraySpec(name, (count,), dtype, ("example",), (count,), attributes={"description": description})


def write_examples(
    path: str | Path,
    arrays: Sequence[tuple[ArraySpec, np.ndarray]],
    attributes: Mapping[str, Any],
    outside: Mapping[str, Any],
) -> dict[str, int]:
    """Writes a data store.

    Args:
        path: Directory of the store; what was there is replaced.
        arrays: `images`, `labels`, `split` and further ones.
        attributes: `scale`, `mean`, `std`, `classes` and `source`.
        outside: Attributes that are no part of the content's digest: a renamed file makes the store anew, but must not
            train a network again.

    Returns:
        Number of examples of each split.
    """
    values = {spec.name: np.asarray(found, dtype=spec.dtype) for spec, found in arrays}
    counts: dict[str, int] = {name: int((values["split"] == i).sum()) for i, name in enumerate(SPLITS)}
    whole = {**attributes, "shape": list(values["images"].shape[1:]), "counts": counts}
    write_store(path, arrays, {**whole, "content": digest(values, whole), **outside})
    return counts


def _moments(images: np.ndarray, scale: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images/scale, from exact integer sums."""
    mean, std = [], []
    values = np.arange(256, dtype=np.int64)
    for channel in range(images.shape[1]):
        histogram = np.bincount(images[:, channel].ravel(), minlength=256)
        count, total = int(histogram.sum()), int((histogram * values).sum())
        squares = int((histogram * values**2).sum())
        mean.append(total / (count * scale))
        # Python's integers keep n Σx² − (Σx)² exact, so that the constants are the same on every machine.
        std.append(float(np.sqrt((count * squares - total * total) / (count * count * scale * scale))))
    return mean, std


class DataSet:
    """A data set in memory: its splits as normalised tensors.

    Normalised is (images/scale − mean)/std, computed in float64 and then cast; a channel without variation is divided
    by 1. Each split keeps the order of the store.

    Attributes:
        info: Shape, classes, sizes and digest.
    """

    def __init__(
        self,
        info: DataInfo,
        images: np.ndarray,
        labels: np.ndarray,
        split: np.ndarray,
        levels: np.ndarray,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.info = info
        self._images, self._labels, self._split, self._levels = images, labels, split, levels
        self._device, self._dtype = device, dtype
        self._cache: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "DataSet":
        """Loads a data store, checking its digest.

        Args:
            path: Directory of the store, or the `zarr.json` in it.
            device: Where tensors are to live.
            dtype: Their floating-point type.

        Returns:
            The data set.
        """
        arrays, attributes = read_store(path)
        mean = np.array(attributes["mean"])[:, None]
        std = np.array(attributes["std"])[:, None]
        levels = (np.arange(256) / attributes["scale"] - mean) / np.where(std == 0, 1.0, std)
        return cls(
            data_info(path),
            arrays["images"],
            arrays["labels"],
            arrays["split"],
            levels,
            torch.device(device),
            dtype,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.info.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.info.classes

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each split."""
        return self.info.counts

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays and of what gives them meaning."""
        return self.info.digest

    def split(self, name: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """One split, normalised.

        Args:
            name: `train`, `validation` or `test`.

        Returns:
            Images of shape (n, channels, height, width) and labels, int64, of shape (n,), in the store's order.
        """
        if name not in self._cache:
            chosen = self._split == SPLITS.index(name)
            pixels = self._images[chosen]
            labels = torch.from_numpy(self._labels[chosen])
            self._cache[name] = (self._normalised(pixels), labels.to(self._device))
        return self._cache[name]

    def first(self, name: Split, count: int) -> torch.Tensor:
        """The first images of one split, normalised, without making the others.

        Args:
            name: `train`, `validation` or `test`.
            count: Number of images.

        Returns:
            Images of shape (count, channels, height, width); fewer where the split has fewer.
        """
        return self._normalised(self._images[np.flatnonzero(self._split == SPLITS.index(name))[:count]])

    def labels(self, name: Split) -> torch.Tensor:
        """The labels of one split, without its images.

        Args:
            name: `train`, `validation` or `test`.

        Returns:
            Class indices, int64, shape (n,), on the CPU, in the store's order.
        """
        return torch.from_numpy(self._labels[self._split == SPLITS.index(name)])

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        values = torch.empty(pixels.shape, dtype=self._dtype)
        for channel, levels in enumerate(torch.from_numpy(self._levels).to(self._dtype)):
            # 256 levels: normalising them is normalising every pixel.
            values[:, channel] = torch.from_numpy(np.take(levels.numpy(), pixels[:, channel]))
        return values.to(self._device)

    def pixels(self, name: Split) -> np.ndarray:
        """The images of one split as stored.

        Args:
            name: `train`, `validation` or `test`.

        Returns:
            Pixels, uint8, shape (n, channels, height, width).
        """
        return self._images[self._split == SPLITS.index(name)]
