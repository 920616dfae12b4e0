"""Waiting until what was written would survive a crash of the machine."""

import contextlib
import errno
import os
import uuid
from pathlib import Path

from quadscape.errors import StageError

# What file systems say that cannot do something, rather than failed to do it.
CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF, errno.EISDIR}
CANNOT |= {errno.EACCES, errno.EPERM}
FULL = {errno.ENOSPC, errno.EDQUOT}


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a directory, would survive a crash of the machine."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in CANNOT and path.is_dir():
            return
        raise
    try:
        sync_open(descriptor, path)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int, path: Path) -> None:
    """The same for what is open.

    Args:
        descriptor: Its number.
        path: Where it lies, for the message.

    Raises:
        OSError: The disk is full.
        StageError: The file system fails, or cannot do it for a file.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        # CIFS and shared folders of virtual machines refuse it for directories. Then a crash of the whole machine may
        # lose the last units, which are computed again: what is in the journal is compared with the files in any case.
        if error.errno in CANNOT and path.is_dir():
            return
        if error.errno in FULL:
            raise
        raise StageError(
            f"The file system of {path} cannot make sure that it is stored (fsync: {error.strerror}); have the results "
            "on another file system."
        ) from error


def create(path: Path, flags: int) -> int:
    """Opens a file, which is made if it is not there, with the rights that the user's umask leaves: others may go on.

    Args:
        path: The file.
        flags: As for `os.open`.

    Returns:
        Its descriptor.
    """
    return os.open(path, flags | os.O_CREAT, 0o666)


def write_whole(descriptor: int, text: bytes) -> None:
    """Writes all of a text, also where the system takes it in parts."""
    while text:
        text = text[os.write(descriptor, text) :]


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in place of what was there: whoever reads sees all of it or all of that, crash or not.

    Args:
        path: The file.
        text: Its content.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8")
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
