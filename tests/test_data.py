"""Data sets: splits, normalisation, image folders of every kind, and what is refused."""

import contextlib
import os
import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from quadscape.config.sections import Data
from quadscape.data import sets as data
from quadscape.data import sources as data_sources
from quadscape.data.info import data_info
from quadscape.data.sets import DataSet, prepare
from quadscape.data.sources import DataDescription, census, describe
from quadscape.errors import DataError
from quadscape.store import read_store

DIGITS = Data(source="digits")


def assert_sentence(message, words):
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert str(word) in message


def refused(config, tmp_path, words):
    """The preparation refuses with one sentence; the description does too, or sees nothing wrong yet."""
    with pytest.raises(DataError) as caught:
        prepare(config, 0, tmp_path / "refused.zarr")
    assert_sentence(str(caught.value), words)
    assert not (tmp_path / "refused.zarr").exists()
    with contextlib.suppress(DataError):
        describe(config)


# Digits


def test_digits_are_described_as_they_are():
    bunch = load_digits()
    assert tuple(np.bincount(bunch.target)) == data_sources._DIGITS_PER_CLASS
    found = describe(DIGITS)
    assert found.shape == (1, 8, 8)
    assert found.classes == tuple("0123456789")
    assert found.training + found.validation + found.test == 1797
    assert abs(found.training - 0.7 * 1797) < 6
    assert abs(found.validation - found.test) <= 10


def test_digits_split_is_disjoint_stratified_and_in_the_source_order(tmp_path):
    prepare(DIGITS, 0, tmp_path / "data.zarr")
    arrays, attributes = read_store(tmp_path / "data.zarr")
    bunch = load_digits()
    np.testing.assert_array_equal(arrays["images"][:, 0], bunch.images)
    np.testing.assert_array_equal(arrays["labels"], bunch.target)
    assert attributes["scale"] == 16
    found = describe(DIGITS)
    assert DataDescription.of_store(tmp_path / "data.zarr") == found
    info = data_info(tmp_path / "data.zarr")
    assert info.counts == {"train": found.training, "validation": found.validation, "test": found.test}
    assert (info.shape, info.classes) == (found.shape, found.classes)
    for label in range(10):
        counts = np.bincount(arrays["split"][bunch.target == label], minlength=3)
        total = counts.sum()
        assert abs(counts[1:].sum() - 0.3 * total) <= 0.5
        assert abs(counts[1] - 0.5 * counts[1:].sum()) <= 0.5


def test_split_depends_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(DIGITS, seed, tmp_path / name)
    digests = [data_info(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    splits = [read_store(tmp_path / name)[0]["split"] for name in "ac"]
    assert not np.array_equal(*splits)


def test_images_are_normalised_with_the_training_split(tmp_path):
    prepare(DIGITS, 0, tmp_path / "data.zarr")
    arrays, _ = read_store(tmp_path / "data.zarr")
    loaded = DataSet.load(tmp_path / "data.zarr", dtype=torch.float64)
    train = arrays["images"][arrays["split"] == 0] / 16
    for number, name in enumerate(("train", "validation", "test")):
        images, labels = loaded.split(name)
        expected = (arrays["images"][arrays["split"] == number] / 16 - train.mean()) / train.std()
        np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(labels.numpy(), arrays["labels"][arrays["split"] == number])
        assert labels.dtype == torch.int64
        assert torch.equal(loaded.first(name, 3), images[:3])
    assert abs(float(loaded.split("train")[0].mean())) < 1e-12
    single = DataSet.load(tmp_path / "data.zarr").split("test")[0]
    assert torch.equal(single, loaded.split("test")[0].to(torch.float32))


def test_a_channel_without_variation_is_divided_by_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 3, 3), dtype=np.uint8)
    images[:, 1] = 51
    data.write_data(
        tmp_path / "d", images, np.arange(12) % 2, np.repeat([0, 1, 2], 4).astype(np.uint8), ["a", "b"], "x"
    )
    train = DataSet.load(tmp_path / "d", dtype=torch.float64).split("train")[0]
    assert torch.equal(train[:, 1], torch.zeros_like(train[:, 1]))
    assert abs(float(train[:, 0].std(correction=0)) - 1) < 1e-12


@pytest.mark.parametrize("keys", [{"held_out": 0.001}, {"validation": 0.001}, {"validation": 0.999}])
def test_an_empty_split_is_refused(keys, tmp_path):
    refused(Data(source="digits", **keys), tmp_path, ("would be empty", "data.held_out", "data.validation"))


def test_a_class_without_training_images_is_refused(tmp_path):
    refused(Data(source="digits", held_out=0.999), tmp_path, ("data.held_out is 0.999", "no training image"))


# Image folders


def photograph(seed, size=(6, 5), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(pixels[:, :, 0])
    return Image.fromarray(pixels if mode == "RGBA" else pixels[:, :, :3])


def make_folder(root, classes=("cat", "dog"), count=10, mode="RGB", suffix="png"):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            photograph(100 * label + index, mode=mode).save(root / name / f"{index:04d}.{suffix}")
    return root


def folder(root, **keys):
    return Data(source="image_folder", path=str(root), **keys)


def test_flat_folder(tmp_path):
    root = make_folder(tmp_path / "pictures", ("zebra", "ant", "Bee"))
    found = describe(folder(root))
    assert found.classes == ("Bee", "ant", "zebra")
    assert (found.shape, found.training) == ((3, 5, 6), 21)
    assert found.validation + found.test == 9
    prepare(folder(root), 0, tmp_path / "data.zarr")
    arrays, attributes = read_store(tmp_path / "data.zarr")
    assert attributes["counts"] == {"train": 21, "validation": found.validation, "test": found.test}
    assert list(arrays["labels"]) == [0] * 10 + [1] * 10 + [2] * 10
    expected = np.asarray(photograph(0)).transpose(2, 0, 1)  # the first of "zebra", the first class that was written
    np.testing.assert_array_equal(arrays["images"][20], expected)


def test_folder_with_train_and_test(tmp_path):
    make_folder(tmp_path / "p" / "train", count=7)
    make_folder(tmp_path / "p" / "test", count=4)
    found = describe(folder(tmp_path / "p"))
    assert (found.training, found.validation, found.test) == (14, 4, 4)
    prepare(folder(tmp_path / "p"), 0, tmp_path / "data.zarr")
    arrays, _ = read_store(tmp_path / "data.zarr")
    assert list(arrays["split"][:14]) == [0] * 14
    assert sorted(arrays["split"][14:]) == [1] * 4 + [2] * 4


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_validation_folder_serves_as_the_held_out_images(name, tmp_path):
    make_folder(tmp_path / "p" / "train", count=7)
    make_folder(tmp_path / "p" / name, count=4)
    found = describe(folder(tmp_path / "p", validation=0.25))
    assert (found.training, found.validation, found.test) == (14, 2, 6)
    make_folder(tmp_path / "p" / "test", count=3)
    found = describe(folder(tmp_path / "p", validation=0.25))
    assert (found.training, found.validation, found.test) == (14, 8, 6)
    prepare(folder(tmp_path / "p"), 0, tmp_path / "data.zarr")
    assert data_info(tmp_path / "data.zarr").counts == {"train": 14, "validation": 8, "test": 6}


def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "one")
    prepare(folder(root), 0, tmp_path / "one.zarr")
    other = tmp_path / "other"
    for path in sorted(root.rglob("*.png"), reverse=True):
        target = other / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    walk, scan = os.walk, os.scandir
    monkeypatch.setattr(os, "walk", lambda *a, **k: [(r, d[::-1], f[::-1]) for r, d, f in walk(*a, **k)][::-1])
    monkeypatch.setattr(os, "scandir", lambda path: _Reversed(scan(path)))
    assert describe(folder(other)) == describe(folder(root))
    prepare(folder(other), 0, tmp_path / "other.zarr")
    assert data_info(tmp_path / "one.zarr").digest == data_info(tmp_path / "other.zarr").digest


class _Reversed:
    def __init__(self, entries):
        self.entries = iter(list(entries)[::-1])

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def close(self):
        return None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def test_the_listing_changes_with_the_folder(tmp_path):
    root = make_folder(tmp_path / "p")
    before = describe(folder(root)).listing
    assert describe(folder(root)).listing == before
    photograph(999).save(root / "cat" / "new.png")
    assert describe(folder(root)).listing != before


def test_a_renamed_file_changes_the_listing_but_not_the_digest(tmp_path):
    root = make_folder(tmp_path / "p")
    prepare(folder(root), 0, tmp_path / "data.zarr")
    before, described = data_info(tmp_path / "data.zarr"), describe(folder(root))
    assert DataDescription.of_store(tmp_path / "data.zarr" / "zarr.json") == described
    (root / "dog" / "0009.png").rename(root / "dog" / "0010.png")
    prepare(folder(root), 0, tmp_path / "data.zarr")
    assert data_info(tmp_path / "data.zarr") == before
    assert DataDescription.of_store(tmp_path / "data.zarr").listing != described.listing
    photograph(77).save(root / "dog" / "0010.png")
    prepare(folder(root), 0, tmp_path / "data.zarr")
    assert data_info(tmp_path / "data.zarr").digest != before.digest


def test_hidden_files_and_others_are_left_out(tmp_path):
    root = make_folder(tmp_path / "p")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._0001.png").write_bytes(b"a file manager's leftover")
    assert describe(folder(root)).training == 14
    prepare(folder(root), 0, tmp_path / "data.zarr")
    assert sum(data_info(tmp_path / "data.zarr").counts.values()) == 20


def test_greyscale_folder_has_one_channel(tmp_path):
    root = make_folder(tmp_path / "p", mode="L")
    Image.new("LA", (6, 5), (7, 255)).save(root / "cat" / "alpha.png")
    Image.new("1", (6, 5), 1).save(root / "cat" / "binary.png")
    assert describe(folder(root)).shape == (1, 5, 6)
    prepare(folder(root), 0, tmp_path / "data.zarr")
    arrays, _ = read_store(tmp_path / "data.zarr")
    assert arrays["images"].shape == (22, 1, 5, 6)
    assert (arrays["images"][10] == 7).all()
    assert (arrays["images"][11] == 255).all()


def test_mixtures_become_colour(tmp_path):
    root = make_folder(tmp_path / "p", mode="L")
    photograph(3).quantize(16).save(root / "dog" / "palette.png")
    photograph(4, mode="RGBA").save(root / "dog" / "transparent.png")
    photograph(5).convert("CMYK").save(root / "dog" / "print.jpg")
    assert describe(folder(root)).shape == (3, 5, 6)
    prepare(folder(root), 0, tmp_path / "data.zarr")
    images = read_store(tmp_path / "data.zarr")[0]["images"]
    assert images.shape == (23, 3, 5, 6)
    np.testing.assert_array_equal(images[0, 0], images[0, 2])
    np.testing.assert_array_equal(images[-1], np.asarray(photograph(4, mode="RGBA"))[:, :, :3].transpose(2, 0, 1))


def test_missing_folder(tmp_path):
    refused(folder(tmp_path / "absent"), tmp_path, ("data.path", tmp_path / "absent"))


def test_empty_folder(tmp_path):
    (tmp_path / "p").mkdir()
    refused(folder(tmp_path / "p"), tmp_path, ("one sub-folder per class", "it holds none"))


def test_images_without_class_folders(tmp_path):
    (tmp_path / "p").mkdir()
    photograph(0).save(tmp_path / "p" / "a.png")
    refused(folder(tmp_path / "p"), tmp_path, ("one sub-folder per class", "directly"))


def test_one_class(tmp_path):
    refused(folder(make_folder(tmp_path / "p", ("cat",))), tmp_path, ("only one class, 'cat'",))


def test_class_without_images(tmp_path):
    root = make_folder(tmp_path / "p")
    (root / "empty").mkdir()
    refused(folder(root), tmp_path, (root / "empty", "no images", ".png"))


def test_train_without_test(tmp_path):
    make_folder(tmp_path / "p" / "train")
    refused(folder(tmp_path / "p"), tmp_path, ("neither test/ nor val/",))


def test_two_validation_folders(tmp_path):
    for part in ("train", "val", "validation"):
        make_folder(tmp_path / "p" / part)
    refused(folder(tmp_path / "p"), tmp_path, ("both val/ and validation/",))


def test_classes_of_train_and_test_differ(tmp_path):
    make_folder(tmp_path / "p" / "train")
    make_folder(tmp_path / "p" / "test", ("cat", "dog", "eel"))
    refused(folder(tmp_path / "p"), tmp_path, ("'eel' is only in test/",))


def test_too_few_images_for_the_splits(tmp_path):
    refused(folder(make_folder(tmp_path / "p", count=1), held_out=0.1), tmp_path, ("would be empty",))


def test_sizes_differ(tmp_path):
    root = make_folder(tmp_path / "p")
    photograph(0, size=(6, 7)).save(root / "dog" / "9999.png")
    refused(folder(root), tmp_path, (root / "cat" / "0000.png", root / "dog" / "9999.png", "6×5", "6×7"))


def test_corrupt_files(tmp_path):
    root = make_folder(tmp_path / "p")
    victim = root / "dog" / "0004.png"
    whole = victim.read_bytes()
    for content in (b"", b"no image at all", whole[: len(whole) // 2], whole[:60]):
        victim.write_bytes(content)
        refused(folder(root), tmp_path, (victim, "replace or remove it"))


def test_more_than_eight_bits(tmp_path):
    root = make_folder(tmp_path / "p", mode="L")
    wide = root / "cat" / "wide.png"
    Image.fromarray(np.full((5, 6), 40000, dtype=np.uint16)).save(wide)
    refused(folder(root), tmp_path, (wide, "8 bits"))


# CIFAR-10


def test_cifar10_without_data_and_network(tmp_path, monkeypatch):
    # A proxy that refuses at once: the test must neither download nor wait where there is a network.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    config = Data(source="cifar10", path=str(tmp_path / "cifar"))
    assert describe(config).training == 50000
    refused(config, tmp_path, ("CIFAR-10 is not in", tmp_path / "cifar", "cifar-10-batches-py", "data.path"))


def test_cifar10_keeps_all_training_images(tmp_path, monkeypatch):
    class Small:
        def __init__(self, root, train, download):
            generator = np.random.default_rng(train)
            count = 40 if train else 30
            self.data = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            self.targets = [i % 10 for i in range(count)]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Small)
    prepare(Data(source="cifar10", validation=0.34), 0, tmp_path / "data.zarr")
    arrays, attributes = read_store(tmp_path / "data.zarr")
    assert attributes["counts"] == {"train": 40, "validation": 10, "test": 20}
    assert list(arrays["split"][:40]) == [0] * 40
    np.testing.assert_array_equal(arrays["images"][0], Small(None, True, False).data[0].transpose(2, 0, 1))
    for label in range(10):
        held = arrays["split"][40:][arrays["labels"][40:] == label]
        assert sorted(held) == [1, 2, 2]
    found = describe(types.SimpleNamespace(source="cifar10", held_out=0.3, validation=0.2))
    assert (found.shape, found.training, found.validation, found.test) == ((3, 32, 32), 50000, 2000, 8000)


# What is not what it seems


SPELLINGS = [
    ("Train", "valid"),
    ("training", "testing"),
    ("TRAIN_SET", "Test-Set"),
    ("trn", "tst"),
    ("01_train", "02_val"),
]
SPELLINGS += [("trainImages", "devSet"), ("x_train", "x_test"), ("Training", "holdout"), ("ｔｒａｉｎ", "eval2")]


@pytest.mark.parametrize(("train", "held"), SPELLINGS)
def test_splits_are_understood_in_any_spelling(train, held, tmp_path):
    make_folder(tmp_path / "p" / train, count=7)
    make_folder(tmp_path / "p" / held, count=4)
    found = describe(folder(tmp_path / "p"))
    assert (found.classes, found.training, found.validation + found.test) == (("cat", "dog"), 14, 8)
    prepare(folder(tmp_path / "p"), 0, tmp_path / "data.zarr")
    assert data_info(tmp_path / "data.zarr").counts["train"] == 14


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("test", "val"), ("none of them is for training",)),
        (("train", "Training", "test"), ("Training/ and train/", "the same split")),
        (("train", "test", "eval"), ("eval/", "for validation or for testing")),
        (("trainval", "test", "train_val"), ("train_val/ and trainval/", "the same split")),
        (("train_test", "test"), ("train_test/", "several splits")),
        (("tr", "te"), ("may be short for splits",)),
        (("train", "tets"), ("'train'", "misspelt")),
        (("train", "test", "unlabeled"), ("'test', which looks like a split", "rename it", "class_test")),
        (("cat_train", "cat_test", "dog_train", "dog_test"), ("'cat_test' and 'cat_train'",)),
    ],
)
def test_what_looks_like_splits_is_never_taken_for_classes(names, words, tmp_path):
    for name in names:
        make_folder(tmp_path / "p" / name, count=4)
    refused(folder(tmp_path / "p"), tmp_path, words)
    with pytest.raises(DataError):
        describe(folder(tmp_path / "p"))


def test_nested_splits_are_refused_with_the_way_out(tmp_path):
    for part in ("train", "test"):
        make_folder(tmp_path / "p" / "images" / part)
    refused(folder(tmp_path / "p"), tmp_path, ("'images'", "'test', 'train'", tmp_path / "p" / "images"))
    make_folder(tmp_path / "p" / "masks" / "train")
    refused(folder(tmp_path / "p"), tmp_path, ("look like splits, but lie in folders that would be classes",))
    for name in ("cat", "dog"):
        for part in ("Training", "Validation"):
            make_folder(tmp_path / "q" / name, (part,))
    refused(folder(tmp_path / "q"), tmp_path, ("look like splits", "cat", "Training"))


@pytest.mark.parametrize(
    "names", [("bus", "car", "train"), ("exam", "quiz", "test"), ("strain", "vest"), ("class_test", "a")]
)
def test_a_genuine_class_keeps_its_name(names, tmp_path):
    root = make_folder(tmp_path / "p", names)
    assert describe(folder(root)).classes == tuple(sorted(names))


def _link_class(root):
    (root / "eel").symlink_to("nowhere")


def _link_image(root):
    (root / "cat" / "0099.png").symlink_to("../gone.png")


def _link_to_itself(root):
    (root / "dog" / "more").symlink_to("more")


def _loop(root):
    (root / "dog" / "again").symlink_to("..")


def _same_folder(root):
    (root / "eel").symlink_to("cat")


def _loose(root):
    photograph(1).save(root / "loose.png")


def _other_type(root):
    photograph(1).save(root / "cat" / "moving.gif")


def _no_type(root):
    photograph(1).save(root / "cat" / "0100", format="PNG")


def _array(root):
    np.save(root / "dog" / "pixels.npy", np.zeros(3))


def _binary(root):
    (root / "dog" / "pixels.dat").write_bytes(bytes(range(256)))


def _hidden_images(root):
    make_folder(root / "cat", (".checkpoints",))


def _pipe(root):
    os.mkfifo(root / "cat" / "pipe.png")


def _folder_named_image(root):
    (root / "cat" / "0101.png").mkdir()


def _control(root):
    make_folder(root, ("e\nel",))


def _two_accents(root):
    make_folder(root, ("caf\u00e9", "cafe\u0301"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_link_class, ("eel", "'nowhere'", "leads nowhere")),
        (_link_image, ("0099.png", "leads nowhere")),
        (_link_to_itself, ("more", "leads nowhere")),
        (_loop, ("again", "leads back")),
        (_same_folder, ("eel", "cat", "same folder")),
        (_loose, ("loose.png", "beside the class folders")),
        (_other_type, ("moving.gif", "not read", ".webp")),
        (_no_type, ("0100", "not read")),
        (_array, ("pixels.npy", "not read")),
        (_binary, ("pixels.dat", "not read")),
        (_hidden_images, (".checkpoints", "hidden")),
        (_pipe, ("pipe.png", "neither a file nor a folder")),
        (_folder_named_image, ("0101.png", "is a folder")),
        (_control, ("no text", "rename")),
        (_two_accents, ("accents",)),
    ],
)
def test_what_could_be_lost_is_refused(change, words, tmp_path):
    root = make_folder(tmp_path / "p")
    change(root)
    refused(folder(root), tmp_path, words)
    with pytest.raises(DataError):
        describe(folder(root))


def test_harmless_leftovers_are_named_and_change_nothing(tmp_path):
    root = make_folder(tmp_path / "p")
    before = describe(folder(root))
    for name in (
        "README.md",
        "cat/notes.txt",
        "labels.csv",
        "dog/Thumbs.db",
        ".DS_Store",
        "cat/.#lock",
        "dog/0001.png~",
    ):
        (root / name).write_text("nothing")
    for name in ("__MACOSX", ".git", "dog/empty"):
        (root / name).mkdir()
    (root / "__MACOSX" / "._0001.png").write_bytes(b"\0")
    (root / "pictures.zip").write_bytes(b"PK\3\4\0")
    assert describe(folder(root)) == before
    left = census(folder(root)).leftovers
    assert set(left) >= {
        "README.md",
        "cat/notes.txt",
        "labels.csv",
        "dog/Thumbs.db",
        "__MACOSX",
        "dog/empty/",
        "pictures.zip",
    }


def test_every_class_is_counted(tmp_path):
    make_folder(tmp_path / "p" / "train", count=7)
    make_folder(tmp_path / "p" / "test", count=5)
    found = census(folder(tmp_path / "p"))
    assert (found.classes, found.counts) == (("cat", "dog"), ((7, 3, 2), (7, 3, 2)))
    for config in (folder(make_folder(tmp_path / "q", ("a", "b", "c"))), DIGITS, Data(source="cifar10")):
        sizes, counted = describe(config), census(config)
        assert tuple(map(sum, zip(*counted.counts, strict=True))) == (sizes.training, sizes.validation, sizes.test)
        assert counted.classes == sizes.classes


def test_listings_of_folders_that_were_always_understood_stay(tmp_path):
    make_folder(tmp_path / "flat", ("b", "A", "a-b"), count=4)
    make_folder(tmp_path / "flat" / "b", ("more", "more-still"), count=2)
    for part in ("train", "val", "test"):
        make_folder(tmp_path / "parts" / part, count=4)
    found = [describe(folder(tmp_path / name)).listing[:16] for name in ("flat", "parts")]
    # As computed by the code of the first results.
    assert found == ["4d63be933d0c1428", "25bc7b410607b2ae"]


def test_accents_in_two_spellings_are_the_same_class(tmp_path):
    make_folder(tmp_path / "p" / "train", ("caf\u00e9", "cafz"), count=7)
    make_folder(tmp_path / "p" / "test", ("cafe\u0301", "cafz"), count=4)
    prepare(folder(tmp_path / "p"), 0, tmp_path / "data.zarr")
    arrays, _ = read_store(tmp_path / "data.zarr")
    test = arrays["split"] > 0
    assert sorted(arrays["labels"][test]) == [0] * 4 + [1] * 4
    # "café" sorts behind "cafz" with its accent composed, and before it otherwise.
    np.testing.assert_array_equal(arrays["images"][14], np.asarray(photograph(100)).transpose(2, 0, 1))
    assert arrays["labels"][14] == 0


def test_paths_may_begin_at_home_and_be_spelt_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "pictur\u00e9s")
    expected = describe(folder(tmp_path / "pictur\u00e9s"))
    assert describe(folder("~/pictur\u00e9s")) == describe(folder("~/picture\u0301s")) == expected


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    root, scan = make_folder(tmp_path / "p"), os.scandir

    def deny(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    refused(folder(root), tmp_path, (root / "dog", "Permission denied"))


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    refused(folder(tmp_path / "file"), tmp_path, ("that is a file",))
    (tmp_path / "link").symlink_to("gone")
    refused(folder(tmp_path / "link"), tmp_path, ("leads nowhere",))
