"""What lies in an image folder: its classes and splits, and what is neither.

Every entry is used, named as a leftover (`Folder.leftovers`), or refused: what could be lost data (a link that leads
nowhere, an image of a type that is not read, an image beside the class folders) never goes unnoticed. Folders that look
like splits are taken for splits or refused, and never silently for classes.
"""

import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from quadscape.errors import DataError

# Of torchvision's ImageFolder; repeated here because importing torchvision costs seconds at every start of a workflow.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Images, volumes, videos, arrays and archives that are not read, but are data.
# fmt: off
_OTHER_DATA = frozenset([
    ".gif", ".apng", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".jpe", ".jfif", ".jif",
    ".svg", ".svgz", ".ico", ".icns", ".tga", ".psd", ".psb", ".xcf", ".exr", ".hdr", ".pbm", ".pnm", ".pfm",
    ".pcx", ".dds", ".sgi", ".rgb", ".qoi", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2",
    ".raf", ".dcm", ".dicom", ".nii", ".mha", ".mhd", ".nrrd", ".fits", ".mp4", ".avi", ".mov", ".mkv", ".webm",
    ".mpg", ".mpeg", ".npy", ".npz", ".mat", ".h5", ".hdf5", ".pt", ".pth", ".pkl", ".pickle", ".parquet",
    ".arrow", ".tfrecord", ".lmdb", ".mdb", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar",
])
# What systems and programs leave behind, whatever it holds.
_SYSTEM = frozenset([
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
    "lost+found", "icon\r",
])
# fmt: on

_SPLIT_WORDS = {
    word: kind
    for kind, words in {
        "train": "train training trainings trn learn learning entrainement entrenamiento",
        "validation": "val valid validation validate validating vali dev devel development",
        "test": "test testing tests tst testset prueba",
        "several": "trainval traintest trainvaltest valtest testval",
        # Held out, but for what?
        "held out": "eval evaluation evaluate evaluating holdout heldout",
    }.items()
    for word in words.split()
}
_SHORT = {"tr": "train", "te": "test", "ts": "test", "va": "validation", "vl": "validation", "vd": "validation"}
# fmt: off
_NOISE = frozenset([
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "pic", "pics", "picture",
    "pictures", "photo", "photos", "split", "splits", "sub", "subset", "folder", "folders", "dir", "sample",
    "samples", "example", "examples", "daten", "bilder", "final", "new", "old", "full", "part", "fold",
])
# fmt: on


@dataclass(frozen=True)
class Listing:
    """The image files of one folder of class folders, in order: class by class, sorted by path."""

    root: Path
    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """An image folder.

    Attributes:
        parts: `all` for a flat one, else `train`, and `test` and/or `validation`.
        leftovers: What is not used and needs not be, as paths within the folder.
    """

    parts: dict[str, Listing]
    leftovers: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """All image files."""
        return [file for listing in self.parts.values() for file in listing.files]


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image that is read."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


# ---------------------------------------------------------------------------------------------------------------------
# Names that look like splits


def _words(name: str) -> list[str]:
    """The words of a name that say something, without case, accents, digits and words such as `set`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKD", name))
    plain = "".join(letter for letter in spaced.casefold() if not unicodedata.combining(letter))
    found = []
    for word in re.findall(r"[^\W\d_]+", plain):
        for noise in sorted(_NOISE, key=len, reverse=True):
            for rest in (word.removesuffix(noise), word.removeprefix(noise)):
                if rest in _SPLIT_WORDS:
                    word = rest
        if word not in _NOISE and len(word) > 1:
            found.append(word)
    return found


def split_kind(name: str) -> str | None:
    """What split a folder's name looks like.

    Args:
        name: The name, in any case and spelling.

    Returns:
        `train`, `validation`, `test`, `held out` where it may be either of these, `several`, or None for others.
    """
    words = _words(name)
    joined = _SPLIT_WORDS.get("".join(words))
    if joined is not None:
        return joined
    kinds = {_SPLIT_WORDS.get(word) for word in words}
    if not kinds or None in kinds:
        return None
    return kinds.pop() if len(kinds) == 1 else "several"


def _looks_misspelt(name: str) -> bool:
    """Whether a name may be a split's with letters changed; asked only beside a folder that certainly is one."""
    words = "".join(_words(name))
    return words in _SHORT or bool(difflib.get_close_matches(words, _SPLIT_WORDS, n=1, cutoff=0.72))


def _stem(name: str) -> tuple[str, str] | None:
    """`cat` and `train` of `cat_train`: what is left of a name besides one word of a split."""
    words = _words(name)
    kinds = [word for word in words if word in _SPLIT_WORDS]
    rest = [word for word in words if word not in _SPLIT_WORDS]
    return (" ".join(rest), _SPLIT_WORDS[kinds[0]]) if len(kinds) == 1 and rest else None


# ---------------------------------------------------------------------------------------------------------------------
# Entries


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} in the image folder cannot be read: {error.strerror or error}; make it readable.")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None


def _is_leftover_name(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM or name.endswith("~")


def _kind(entry: os.DirEntry[str]) -> str:
    """`folder` or `file`; anything else is refused."""
    path = Path(entry.path)
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise _unreadable(path, error) from None
        # The target does not exist, or a chain of links leads back to itself.
        raise DataError(
            f"{path} is a link to '{path.readlink()}', which leads nowhere; restore what it points to, or "
            "remove the link."
        ) from None
    raise DataError(
        f"{path} is neither a file nor a folder (a device, pipe or socket); remove it from the image folder."
    )


def _starts_binary(path: Path) -> bool:
    """Whether a file begins as no text does."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise _unreadable(path, error) from None
    if b"\0" in head:
        return True
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError:
        # Text in an old encoding has no control characters.
        return any(byte < 9 or 13 < byte < 27 for byte in head)
    return False


def _is_unknown_image(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _check_other_file(path: Path, *, in_class: bool) -> None:
    """Refuses a file that is not read as an image and might be data all the same."""
    suffix = path.suffix.lower()
    known = f"known are {', '.join(EXTENSIONS)}"
    where = "its class folder" if in_class else "the image folder"
    if (suffix in _OTHER_DATA and (in_class or not _is_archive(suffix))) or (
        _starts_binary(path) and (in_class or _is_unknown_image(path))
    ):
        raise DataError(
            f"{path} is of a type that is not read ({known}); convert it to one of these, or move it out of {where}."
        )


def _is_archive(suffix: str) -> bool:
    return suffix in {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}


class _Reader:
    """Reads one image folder, collecting what is left over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leftovers: list[str] = []
        # Folders in class folders that look like splits: kind and path.
        self.nested: list[tuple[str, Path]] = []

    def leave(self, path: Path, suffix: str = "") -> None:
        self.leftovers.append(path.relative_to(self.root).as_posix() + suffix)

    def subfolders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder; what else is in it is left over or refused."""
        names, files = [], []
        for entry in _entries(folder):
            path = Path(entry.path)
            if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in entry.name.rstrip("\r")):
                raise DataError(f"{entry.name!a} in {folder} has a name that is no text; rename it.")
            if _is_leftover_name(entry.name):
                self.leave(path)
            elif _kind(entry) == "folder":
                names.append(entry.name)
            else:
                files.append(path)
        images = [path for path in files if is_image(path.name)]
        if images and names:
            raise DataError(
                f"The image {images[0]} lies beside the class folders {_shown(names)} and in none of them"
                f"{_others(images)}; move it into its class's folder, or out of {folder}."
            )
        for path in files:
            if not is_image(path.name):
                _check_other_file(path, in_class=False)
                self.leave(path)
        return names

    def images(self, top: Path) -> list[Path]:
        """All images of a class folder, in ImageFolder's order."""
        found: list[tuple[str, list[str]]] = []
        pending: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(top, ())]
        while pending:
            folder, above = pending.pop()
            try:
                status = folder.stat()
            except OSError as error:
                raise _unreadable(folder, error) from None
            place = (status.st_dev, status.st_ino)
            if place in above:
                raise DataError(f"{folder} is a link that leads back to a folder that it lies in; remove it.")
            names, entries = [], _entries(folder)
            for entry in entries:
                path = Path(entry.path)
                if _is_leftover_name(entry.name):
                    self._leave_hidden(entry)
                elif _kind(entry) == "folder":
                    if is_image(entry.name):
                        raise DataError(
                            f"{path} is a folder, though its name is that of an image; rename or remove it."
                        )
                    kind = split_kind(entry.name)
                    self.nested += [(kind, path)] if kind else []
                    pending.append((path, (*above, place)))
                elif is_image(entry.name):
                    names.append(entry.name)
                else:
                    _check_other_file(path, in_class=True)
                    self.leave(path)
            if not entries and folder != top:
                self.leave(folder, "/")
            found.append((str(folder), names))
        return [Path(folder, name) for folder, names in sorted(found) for name in sorted(names)]

    def _leave_hidden(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        if entry.name.startswith(".") and entry.is_dir():
            for folder, _, names in os.walk(path):
                for name in names:
                    if is_image(name):
                        raise DataError(
                            f"The hidden folder {path} holds images ({Path(folder, name).name}) of a class; rename it "
                            "if they belong to the class, or remove it."
                        )
        self.leave(path)

    def classes(self, root: Path, names: Sequence[str]) -> Listing:
        """Lists a folder of class folders."""
        if not names:
            loose = any(is_image(entry.name) for entry in _entries(root))
            holds = "its images lie in it directly" if loose else "it holds none"
            raise DataError(f"The image folder {root} needs one sub-folder per class, but {holds}.")
        if len(names) == 1:
            inner = [
                entry.name
                for entry in _entries(root / names[0])
                if not _is_leftover_name(entry.name) and entry.is_dir()
            ]
            hint = (
                f"; if its sub-folders {_shown(inner)} are what is meant, give '{root / names[0]}' as data.path"
                if inner
                else ""
            )
            raise DataError(
                f"The image folder {root} holds only one class, '{names[0]}'; at least two are needed{hint}."
            )
        self._check_names(root, names)
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = self.images(root / name)
            if not found:
                raise DataError(
                    f"The class folder {root / name} holds no images; known file types are {', '.join(EXTENSIONS)}."
                )
            files += found
            labels += [label] * len(found)
        kinds = {kind for kind, _ in self.nested}
        if len(kinds) > 1:
            first = self.nested[0]
            second = next(item for item in self.nested if item[0] != first[0])
            raise DataError(
                f"{first[1]} and {second[1]} look like splits, but lie in folders that would be classes; put the "
                f"splits first, as {root}/train/<class>/ and {root}/test/<class>/, or rename them if they are none."
            )
        return Listing(root, tuple(files), np.array(labels, dtype=np.int64), tuple(names))

    def _check_names(self, root: Path, names: Sequence[str]) -> None:
        """Checks that class folders are different folders with names of their own."""
        seen: dict[str, str] = {}
        places: dict[tuple[int, int], str] = {}
        for name in names:
            form = _composed(name)
            status = (root / name).stat()
            place = (status.st_dev, status.st_ino)
            if form in seen:
                raise DataError(
                    f"{root} has two class folders {name!r} whose names differ only in how their accents are written "
                    f"({seen[form]!a} and {name!a}); merge them, or rename one."
                )
            if place in places:
                raise DataError(
                    f"{root / name} and {root / places[place]} are the same folder; remove one of the links."
                )
            seen[form], places[place] = name, name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _shown(names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:3])
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _others(paths: Sequence[Path]) -> str:
    return f" (and so do {len(paths) - 1} more)" if len(paths) > 1 else ""


# ---------------------------------------------------------------------------------------------------------------------
# Classes and splits


def _refuse_splits(root: Path, what: str) -> NoReturn:
    raise DataError(
        f"The image folder {root} {what}; valid are folders of classes only, or train/ with test/ and/or validation/, "
        "each with the class folders in it."
    )


def _holds_only_images(folder: Path) -> bool:
    """Whether images lie in a folder directly, and no folders."""
    entries = [entry for entry in _entries(folder) if not _is_leftover_name(entry.name)]
    return any(is_image(entry.name) for entry in entries) and not any(entry.is_dir() for entry in entries)


def _splits(root: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Which folder holds which part, by part; None where the folders are classes.

    Args:
        root: The image folder.
        names: Its folders.

    Returns:
        Names of the folders of `train`, and `test` and/or `validation`; a single one of these is divided, whatever it
        is called.

    Raises:
        DataError: They look like both, or like splits that cannot be told.
    """
    kinds = {name: split_kind(name) for name in names}
    looking, other = [name for name in names if kinds[name]], [name for name in names if not kinds[name]]
    if not looking:
        if 1 < len(names) <= 3 and all(name.casefold() in _SHORT for name in names):
            _refuse_splits(root, f"holds {_shown(names)}, which may be short for splits; write their names out")
        _check_stems(root, names)
        return None
    if other:
        if len(names) <= 3 and all(map(_looks_misspelt, other)):
            _refuse_splits(root, f"holds '{looking[0]}', which looks like a split, and '{other[0]}', a misspelt one")
        # As of a train among other vehicles: a split would hold class folders, a class holds images.
        if len(looking) == 1 and len(other) > 1 and _holds_only_images(root / looking[0]):
            _check_stems(root, names)
            return None
        _refuse_splits(
            root,
            f"holds '{looking[0]}', which looks like a split, beside '{other[0]}', which does not: move out what "
            f"belongs to no split, or, if '{looking[0]}' is a class, rename it, for example to 'class_{looking[0]}'",
        )
    by_kind: dict[str, str] = {}
    for name in names:
        kind = kinds[name] or ""
        if kind in by_kind:
            _refuse_splits(
                root, f"has both {by_kind[kind]}/ and {name}/, which look like the same split; keep one of them"
            )
        by_kind[kind] = name
    if "several" in by_kind:
        _refuse_splits(root, f"has {by_kind['several']}/, which names several splits at once")
    if "train" not in by_kind:
        _refuse_splits(root, f"holds {_shown(names)}, which look like splits, but none of them is for training")
    train = by_kind.pop("train")
    if not by_kind:
        raise DataError(f"The image folder {root} has {train}/ but neither test/ nor val/; add one of them.")
    if "held out" in by_kind:
        if len(by_kind) > 1:
            _refuse_splits(
                root, f"has {by_kind['held out']}/, which may be for validation or for testing, beside another"
            )
        return {"train": train, "test": by_kind["held out"]}
    # In the order of their names, as ever.
    return {"train": train} | dict(sorted(by_kind.items(), key=lambda item: item[1]))


def _check_stems(root: Path, names: Sequence[str]) -> None:
    """Refuses `cat_train` beside `cat_test`."""
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        parts = _stem(name)
        if parts is None:
            continue
        stem, kind = parts
        if stem in found and found[stem][1] != kind:
            _refuse_splits(root, f"holds '{found[stem][0]}' and '{name}', which look like splits of one class")
        found.setdefault(stem, (name, kind))


def _aligned(train: Listing, part: Listing, folder: str, train_folder: str) -> Listing:
    """A part with the labels of the training set's classes, which must be the same."""
    own = {_composed(name): label for label, name in enumerate(part.classes)}
    theirs = {_composed(name): label for label, name in enumerate(train.classes)}
    different = sorted(own.keys() ^ theirs.keys())
    if different:
        here = train_folder if different[0] in theirs else folder
        raise DataError(f"The classes of {train.root} and {part.root} differ: '{different[0]}' is only in {here}/.")
    order = np.array([theirs[name] for name in own], dtype=np.int64)
    # Accents written in another way can change the order of the names.
    rank = np.argsort(order[part.labels], kind="stable")
    files = tuple(part.files[index] for index in rank)
    return Listing(part.root, files, order[part.labels][rank], part.classes)


def list_folder(root: Path) -> Folder:
    """Lists an image folder.

    Args:
        root: The folder.

    Returns:
        Its classes, splits and leftovers.

    Raises:
        DataError: There is no such folder, or something in it cannot be used or might be data.
    """
    if not root.is_dir():
        what = "there is no such folder"
        if root.is_symlink() and not root.exists():
            what = f"that is a link to '{root.readlink()}', which leads nowhere"
        elif root.exists():
            what = "that is a file"
        raise DataError(f"data.path is '{root}', but {what}; it must hold one sub-folder of images per class.")
    reader = _Reader(root)
    names = reader.subfolders(root)
    folders = _splits(root, names)
    if folders is None:
        return Folder({"all": reader.classes(root, names)}, tuple(reader.leftovers))
    reader._check_names(root, names)
    parts: dict[str, Listing] = {}
    for part, folder in folders.items():
        listing = reader.classes(root / folder, reader.subfolders(root / folder))
        parts[part] = listing if part == "train" else _aligned(parts["train"], listing, folder, folders["train"])
    return Folder(parts, tuple(reader.leftovers))


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise DataError(str(_unreadable(file, error))) from None


def digest_listing(folder: Folder) -> str:
    """Digest of names and sizes of all images.

    Args:
        folder: The folder.

    Returns:
        Hexadecimal digest; a file that has gone, or cannot be read, is a `DataError`.
    """
    total = hashlib.sha256()
    for part, listing in sorted(folder.parts.items()):
        for file in listing.files:
            line = f"{part}/{file.relative_to(listing.root).as_posix()} {_status(file).st_size}\n"
            total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def digest_times(folder: Folder) -> str:
    """Digest of paths and times of all images, to tell whether any was written since.

    Args:
        folder: The folder.

    Returns:
        Hexadecimal digest; a file that has gone, or cannot be read, is a `DataError`.
    """
    total = hashlib.sha256()
    for file in folder.files:
        status = _status(file)
        line = f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()
