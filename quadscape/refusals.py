"""What the operating system refuses, in words: rights to read and to write, and space."""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from quadscape.durable import FULL

REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
"""What the system says where a right is missing."""


def _who(path: Path) -> str:
    """Owner, group and rights of a place, for a sentence."""
    found = path.stat()
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"belongs to {owner} (group {group}) and has the rights {stat.filemode(found.st_mode)}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def forbidden(path: Path, unless: Collection[str] = ()) -> str:
    """What this user may not read below a place: that is no damage.

    Args:
        path: A file or a directory.
        unless: Names in it that nobody needs to read.

    Returns:
        One sentence that names the first of them, its owner and its rights; empty where everything may be read.
    """
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = sorted({*subfolders} - {*unless})
        for name in (*subfolders, *sorted({*files} - {*unless})):
            if sentence := _forbidden(Path(folder) / name):
                return sentence
    return _forbidden(path)


def _forbidden(path: Path) -> str:
    if os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)) or not os.path.lexists(path):
        return ""
    try:
        who = _who(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})."
    return (
        f"{path} may not be read by this user: it {who}; nothing is known to be damaged. Ask the owner for the right "
        "to read it."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def unwritable(path: Path) -> str:
    """Why this user cannot write something.

    Args:
        path: A file or directory; of one that is not there, what counts is the folder that it would be made in.

    Returns:
        One sentence that names the file or folder, its owner and its rights; empty where it can be written.
    """
    place = path
    try:
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        folder = place.is_dir()
        if os.access(place, os.W_OK | (os.X_OK if folder else 0)):
            return ""
        read_only = bool(os.statvfs(place).f_flag & os.ST_RDONLY)
        who = _who(place)
    except OSError as error:
        # Not even looked at.
        return f"{path} cannot be written ({error.strerror}); ask the owner of the folders above it for the right to."
    if read_only:
        return (
            f"{place.absolute()} cannot be written, since its file system is read-only; what is there can be read, and "
            "what is new needs a folder elsewhere."
        )
    # A link is followed, and the owner is asked for the rights of what it leads to.
    real = f" (that is {place.resolve()})" if place.resolve() != place.absolute() else ""
    return (
        f"{place.absolute()}{real} may not be written by this user: it {who}. Its owner can share it with the group "
        "(`chmod -R g+rwX` on the folder, and `umask 002` before what makes more); or work in a clone of your own, in "
        "which what is only read is linked."
    )


def first_unwritable(paths: Iterable[Path]) -> str:
    """The sentence of `unwritable` on the first of several places; empty where all can be written."""
    return next(filter(None, map(unwritable, paths)), "")


def folders_below(directory: Path) -> list[Path]:
    """A folder and all folders in it, as far as they can be seen."""
    return [directory, *(Path(folder) / name for folder, names, _ in os.walk(directory) for name in sorted(names))]


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def in_words(error: OSError, place: Path | None = None) -> str:
    """What an error of the operating system says to a user: a missing right, or a full disk.

    Args:
        error: The error.
        place: A folder on the disk that may be full; by default the file of the error.

    Returns:
        One sentence that names the file or folder (of rights also the owner) and what helps; empty where it is another
        error.
    """
    if error.errno in FULL:
        where = place or error.filename
        return (
            f"The disk{f' of {where}' if where else ''} is full ({error.strerror}); free some space and run the same "
            "command again: what was finished is kept."
        )
    return _refusal(error) if error.errno in REFUSED and error.filename is not None else ""


def _refusal(error: OSError) -> str:
    places = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    for place in places:
        # What cannot be entered hides what is in it.
        for folder in [*reversed(place.parents), place]:
            try:
                sentence = _forbidden(folder)
            except OSError as hidden:  # a link into what cannot be entered
                sentence = f"{folder} cannot be read ({hidden.strerror})."
            if sentence:
                return sentence
        if sentence := first_unwritable([place, place.parent]):
            return sentence
    return f"{places[0]}: {error.strerror}; ask its owner." if places else ""
