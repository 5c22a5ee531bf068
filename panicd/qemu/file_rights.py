"""Opening a file that somebody else names, with no more rights than he has.

The kernel would check this for a process of that user. panicd is none, and does not become one:
that takes CAP_SETUID, with which its service could read and write the memory of every user's
processes, and it is one process for all (setfsuid(2) and its kin change one thread, whose memory,
signals and dumpability the others share). So a path is walked here as path_resolution(7) has it,
one name after the other, each step looked at through a descriptor (O_PATH) that stands for what was
looked at and nothing else, and only the end of it is opened.

It errs on the side of no: where an access control list says more than the mode (acl(5)), only the
owner's rights are known.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOST_LINKS: Final = 40  # followed on the way: path_resolution(7)
READ: Final = 4
SEARCH: Final = 1
PSEUDO: Final = (Path("/proc"), Path("/sys"))
"""File systems whose files are not what a program wrote to them."""

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL: Final = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Rights:
    """A user's rights to files: his number, and his groups'."""

    uid: int
    groups: frozenset[int]

    def allow(self, status: os.stat_result, wanted: int, *, has_list: bool) -> bool:
        """Tell whether a file may be used so (inode(7), 'The file type and mode').

        Args:
            status: the file's.
            wanted: ``READ`` or ``SEARCH``.
            has_list: it has an access control list.
        """
        if self.uid == 0:
            return True
        if status.st_uid == self.uid:
            return bool(status.st_mode >> 6 & wanted)
        if has_list:
            return False
        return bool(status.st_mode >> (3 if status.st_gid in self.groups else 0) & wanted)


def open_as(path: Path, users: Iterable[Rights]) -> int:
    """Open a regular file for reading that each of these users may read. Blocking.

    The last part of its name is followed nowhere.

    Args:
        path: absolute.
        users: who names it.

    Raises:
        OSError: one of them may not, it is not there, or it is no such file.
    """
    users = tuple(users)
    found = _walk(path, users)
    try:
        _require(found, users, READ)
        return _open_looked_at(found)
    finally:
        os.close(found)


def open_regular(path: Path) -> int:
    """Open a regular file for reading, with all rights there are. Blocking.

    Raises:
        OSError: it is not there, or it is no such file.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _open_looked_at(found)
    finally:
        os.close(found)


def _open_looked_at(found: int) -> int:
    """Open what a descriptor stands for, if it is a regular file; no lease is waited for."""
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode) or status.st_dev in _pseudo():
        raise OSError("it is no file")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(f"/proc/self/fd/{found}", flags)


def _walk(path: Path, users: tuple[Rights, ...]) -> int:
    """Return a descriptor that stands for what a path names."""
    left = list(reversed(path.parts[1:]))
    links: list[Path] = []
    here = os.open("/", _LOOK)
    try:
        while left:
            _require(here, users, SEARCH)
            there = os.open(left.pop(), _LOOK, dir_fd=here)
            if left and stat.S_ISLNK(os.fstat(there).st_mode):
                target = Path(_target(there))
                links.append(target)
                _require_few(links)
                left += reversed(target.parts[target.is_absolute() :])
                there = os.open("/" if target.is_absolute() else ".", _LOOK, dir_fd=here)
            os.close(here)
            here = there
    except BaseException:
        os.close(here)
        raise
    return here


def _require_few(links: list[Path]) -> None:
    if len(links) > MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _target(link: int) -> str:
    """Return what a symbolic link says, and let go of it."""
    try:
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _require(file: int, users: tuple[Rights, ...], wanted: int) -> None:
    status, has_list = os.fstat(file), _has_list(file)
    for user in users:
        if not user.allow(status, wanted, has_list=has_list):
            refusal = f"user {user.uid} may not read it; the configuration may name it"
            raise PermissionError(errno.EACCES, refusal)


def _has_list(file: int) -> bool:
    try:
        return bool(os.getxattr(f"/proc/self/fd/{file}", _ACL))
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.EOPNOTSUPP, errno.ELOOP}:
            return False
        raise


def _pseudo() -> set[int]:
    return {path.stat().st_dev for path in PSEUDO if path.is_mount()}
