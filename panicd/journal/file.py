"""The journal's file: its lock, and whether it is still the one that was opened."""

import fcntl
import os
from pathlib import Path
from typing import Final

from panicd.journal.error import JournalError, JournalInUseError

ROOM: Final = 16 << 20  # bytes


def beside(path: Path, suffix: str) -> Path:
    """Return the file beside a database that has this suffix."""
    return path.with_name(path.name + suffix)


def lock(path: Path) -> int:
    """Return the open lock file: flock(2) ends with the process that holds it.

    Raises:
        JournalInUseError: another process has it.
        OSError: it can't be made.
    """
    descriptor = os.open(beside(path, ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise JournalInUseError(f"{path}: another process has it open") from None
    return descriptor


def identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from its successor; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_identity(path: Path, known: tuple[int, int] | None) -> None:
    """Refuse to write into a file that nobody will find again.

    Args:
        path: of the journal.
        known: the identity of the file that was opened.

    Raises:
        JournalError: another file has taken its place, or none.
    """
    if identity(path) != known:
        raise JournalError(f"{path}: was removed, replaced or hidden while panicd had it open")


def sync_directory(path: Path) -> None:
    """Make the list of a directory's files durable (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_room(path: Path) -> bool:
    """Tell whether the disk of a file will take some megabytes more (statvfs(3))."""
    try:
        there = os.statvfs(path)
    except OSError:
        return False
    return there.f_bavail * there.f_frsize >= ROOM and not there.f_flag & os.ST_RDONLY
